"""The compiled CPU engine against the torch reference: every mixer, every verb of the state, drawn shapes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numba import njit

from segue.decoding import generate
from segue.decoding.draft import ModelDraft
from segue.errors import SegueError
from segue.kernels.cpu import cache, simd
from segue.kernels.cpu.ops import linear
from segue.kernels.cpu.program import Program, View
from segue.kernels.jit import jit
from segue.mixers import MIXERS, Mixer
from segue.mixers.layout import Layout
from segue.mixers.state import Carry, Parts, SteppedRecurrence, Tensors
from segue.models import Stack, StackConfig, compiled
from segue.models.base import set_prompt_lengths
from segue.models.compiled import MAX_NODE_STATES, Accelerated, CompiledModel, accelerate, compile_model


class Probe(Mixer):
    """A mixer around one of the engine's recurrent operations, which a plain loop here spells out: its inputs are
    stretches of one projection, `widths` wide, and `prepared` before the loop."""

    widths: tuple[int, ...]

    def __init__(self, width: int, memories: tuple[tuple[float, tuple[int, ...]], ...], inner: int) -> None:
        super().__init__(width)
        probe = self
        self.into, self.out = torch.nn.Linear(width, sum(self.widths)), torch.nn.Linear(inner, width)

        class Loop(SteppedRecurrence):
            def initial(self, batch: int, like: torch.Tensor) -> Tensors:
                return tuple(like.new_full((batch, *shape), value) for value, shape in memories)

            def step(self, inputs: Tensors, state: Tensors) -> tuple[torch.Tensor, Tensors]:
                return probe.step(inputs, state)

        self.recurrence = Loop()

    def prepared(self, inputs: Tensors) -> Tensors:
        return inputs

    def step(self, inputs: Tensors, state: Tensors) -> tuple[torch.Tensor, Tensors]:
        raise NotImplementedError

    def emit(self, program: Program, inputs: list[View], y: View) -> None:
        raise NotImplementedError

    def run(self, x: torch.Tensor, layout: Layout, parts: Parts) -> torch.Tensor:
        inputs = self.prepared(self.into(x).split(self.widths, -1))
        carry = parts.get("recurrence")
        assert carry is None or isinstance(carry, Carry)
        return self.out(self.recurrence(inputs, layout, carry))

    def lower(self, program: Program, source: View, into: View) -> None:
        inputs = program.register("inputs", sum(self.widths))
        y = program.register("y", self.out.in_features)
        program.linear(source, inputs, self.into.weight, self.into.bias)
        edges = np.cumsum([0, *self.widths])
        self.emit(program, [inputs[a:b] for a, b in zip(edges[:-1], edges[1:])], y)
        program.linear(y, into, self.out.weight, self.out.bias, add=True)


class Diagonal(Probe):
    """h = a h + b, real or complex, the decays fixed or each node's own."""

    def __init__(self, width: int, inner: int = 20, complex: bool = False, fixed: bool = False) -> None:
        self.complex, self.fixed, size = complex, fixed, inner * (1 + complex)
        self.widths = (size, size)
        super().__init__(width, ((0.0, (size,)),), size)
        self.rate: torch.Tensor
        rate, angle = torch.linspace(0.1, 0.99, inner), torch.linspace(0, 3, inner)
        self.register_buffer("rate", torch.polar(rate, angle) if complex else rate)

    def prepared(self, inputs: Tensors) -> Tensors:
        decay, x = inputs[0].tanh(), inputs[1]
        return (torch.view_as_real(self.rate).mT.flatten().expand_as(x) if self.complex else self.rate.expand_as(x)
                ) if self.fixed else decay * 0.5**0.5, x

    def step(self, inputs: Tensors, state: Tensors) -> tuple[torch.Tensor, Tensors]:
        if self.complex:
            (a, b), (x, y), (h, i) = (values.chunk(2, -1) for values in (*inputs, *state))
            after = torch.cat([a * h - b * i + x, a * i + b * h + y], -1)
        else:
            after = inputs[0] * state[0] + inputs[1]
        return after, (after,)

    def emit(self, program: Program, inputs: list[View], y: View) -> None:
        decay, x = inputs
        program.map(decay, decay, "tanh")
        program.multiply(decay, torch.full((decay.width,), 0.5**0.5))
        program.diagonal(self.rate if self.fixed else decay, x, y, self.complex)


class Modes(Probe):
    """S4D's shape: each channel's own complex modes, of which it sees a real mixture, and itself."""

    def __init__(self, width: int, inner: int = 20, modes: int = 3) -> None:
        self.widths = (inner,)
        super().__init__(width, ((0.0, (inner, modes, 2)),), inner)
        self.a = torch.polar(torch.rand(inner, modes), 3 * torch.rand(inner, modes))
        self.c, self.d = torch.randn(inner, modes, dtype=torch.complex64), torch.randn(inner)

    def step(self, inputs: Tensors, state: Tensors) -> tuple[torch.Tensor, Tensors]:
        h = torch.view_as_complex(state[0].contiguous()) * self.a + inputs[0][..., None]
        return (h * self.c).real.sum(-1) + self.d * inputs[0], (torch.view_as_real(h),)

    def emit(self, program: Program, inputs: list[View], y: View) -> None:
        program.modes(inputs[0], y, self.a, self.c, self.d)


class LowRank(Modes):
    """S4's shape: the modes see one number of each other."""

    def __init__(self, width: int, inner: int = 20, modes: int = 3) -> None:
        super().__init__(width, inner, modes)
        self.b, self.away, self.seen = (0.2 * torch.randn(inner, modes, dtype=torch.complex64) for _ in range(3))
        self.a = 0.8 * self.a

    def step(self, inputs: Tensors, state: Tensors) -> tuple[torch.Tensor, Tensors]:
        h = torch.view_as_complex(state[0].contiguous())
        feedback = (self.seen * h).real.sum(-1, keepdim=True)
        h = h * self.a + self.b * inputs[0][..., None] - self.away * feedback
        return (h * self.c).real.sum(-1) + self.d * inputs[0], (torch.view_as_real(h),)

    def emit(self, program: Program, inputs: list[View], y: View) -> None:
        program.low_rank(inputs[0], y, self.a, self.away, self.seen, self.b, self.c, self.d)


class Dense(Probe):
    """LSSL's shape: a matrix for each channel, and two outputs of it."""

    def __init__(self, width: int, inner: int = 20, states: int = 5) -> None:
        self.widths = (inner,)
        super().__init__(width, ((0.0, (inner, states)),), 2 * inner)
        self.a = torch.randn(inner, states, states) / (2 * states**0.5)
        self.b, self.c, self.d = torch.randn(inner, states), torch.randn(2, inner, states), torch.randn(2 * inner)

    def step(self, inputs: Tensors, state: Tensors) -> tuple[torch.Tensor, Tensors]:
        h = torch.einsum("cij,bcj->bci", self.a, state[0]) + self.b * inputs[0][..., None]
        y = torch.einsum("mci,bci->bmc", self.c, h).flatten(1)
        return y + self.d * inputs[0].repeat(1, 2), (h,)

    def emit(self, program: Program, inputs: list[View], y: View) -> None:
        program.dense(inputs[0], y, self.a, self.b, self.c, self.d)


class Filter(Probe):
    """Fixed filters over the past, which end before it does."""

    def __init__(self, width: int, inner: int = 20, lags: int = 60) -> None:
        self.widths = (inner,)
        super().__init__(width, ((0.0, (lags - 1, inner)),), inner)
        self.taps = torch.randn(lags, inner) / lags**0.5

    def step(self, inputs: Tensors, state: Tensors) -> tuple[torch.Tensor, Tensors]:
        line = torch.cat([inputs[0][:, None], state[0]], 1)
        return (line * self.taps).sum(1), (line[:, :-1],)

    def emit(self, program: Program, inputs: list[View], y: View) -> None:
        program.filter(inputs[0], y, self.taps)


class Matrix(Probe):
    """A matrix as memory: every decay, the delta rule, several writes to a node, shared keys, normalisers."""

    def __init__(self, width: int, decay: str = "head", delta: bool = False, steps: int = 1, groups: int = 3,
                 normaliser: str = "") -> None:
        self.heads, self.groups, self.key, self.value, self.steps = 3, groups, 6, 20, steps
        self.decay, self.delta, self.normaliser = decay, delta, normaliser
        heads, key, value = self.heads, self.key, self.value
        self.widths = (groups * key, steps * groups * key, steps * heads * value,
                       heads * key if decay == "feature" else heads, steps * heads)
        super().__init__(width, ((0.0, (heads, key, value)), (0.0, (heads, key)), (-torch.inf, (heads,))),
                         heads * value)
        self.fixed = torch.tensor([1.0, 0.9, -0.5])

    def prepared(self, inputs: Tensors) -> Tensors:
        q, k, v, decay, write = inputs
        q, k = q.unflatten(-1, (self.groups, -1)), k.unflatten(-1, (self.steps, self.groups, -1))
        if self.normaliser == "sum":
            q, k = torch.nn.functional.elu(q) + 1, torch.nn.functional.elu(k) + 1
        elif self.delta:
            k = torch.nn.functional.normalize(k, dim=-1)
        if self.normaliser == "max":
            decay = torch.nn.functional.logsigmoid(decay)
        else:
            decay = self.fixed.expand_as(decay) if self.decay == "fixed" else decay.sigmoid()
            write = 2 * write.sigmoid()
        return (q.repeat_interleave(self.heads // self.groups, -2), k.repeat_interleave(self.heads // self.groups, -2),
                v.unflatten(-1, (self.steps, self.heads, -1)), decay.unflatten(-1, (self.heads, -1)),
                write.unflatten(-1, (self.steps, self.heads)))

    def step(self, inputs: Tensors, state: Tensors) -> tuple[torch.Tensor, Tensors]:
        (q, k, v, decay, write), (memory, norm, top) = inputs, state
        if self.normaliser == "max":
            new = torch.maximum(decay[..., 0] + top, write[:, 0])
            decay, write = (decay[..., 0] + top - new).exp()[..., None], (write - new[:, None]).exp()
            top = new
        memory, norm = decay[..., None] * memory, decay * norm
        for s in range(self.steps):
            value = v[:, s] - torch.einsum("bhk,bhkv->bhv", k[:, s], memory) if self.delta else v[:, s]
            memory = memory + torch.einsum("bh,bhk,bhv->bhkv", write[:, s], k[:, s], value)
            norm = norm + write[:, s, :, None] * k[:, s]
        y, total = 0.3 * torch.einsum("bhk,bhkv->bhv", q, memory), 0.3 * (q * norm).sum(-1, keepdim=True)
        if self.normaliser == "sum":
            y = y / (total + 1e-3)
        elif self.normaliser == "max":
            y = y / torch.maximum(total.abs(), (-top).exp()[..., None])
        return y.flatten(1), (memory, norm, top)

    def emit(self, program: Program, inputs: list[View], y: View) -> None:
        q, k, v, decay, write = inputs
        rest: dict[str, Any] = {}
        if self.normaliser == "sum":
            rest["epsilon"] = 1e-3
            program.map(q, q, "elu1")
            program.map(k, k, "elu1")
        elif self.delta:
            program.norm(k, k, "l2", None, None, 1e-12, self.steps * self.groups)
        if self.normaliser == "max":
            rest["floor"] = program.register("floor", self.heads)
            program.map(decay, decay, "log_sigmoid")
            program.stabilise(decay, write, rest["floor"], initial=-torch.inf)
        else:
            program.map(decay, decay, "sigmoid")
            program.map(write, write, "sigmoid")
            program.map(write, write, scale=2.0)
        factors = self.fixed if self.decay == "fixed" else decay
        program.matrix(q, k, v, y, self.heads, factors, write, self.delta, self.steps, self.groups, 0.3, **rest)


class Cell(Probe):
    """The nonlinear cells with heads: each sees its own part of the state."""

    def __init__(self, width: int, cell: str = "lstm", heads: int = 3, inner: int = 60, floor: float = 0.0) -> None:
        self.cell, self.heads, self.floor = cell, heads, floor
        gates = {"lstm": 4, "slstm": 4, "gru": 3, "elman": 1}[cell]
        self.widths = (gates * inner,)
        super().__init__(width, ((0.0, (inner,)), (0.0, (inner,)), (0.0, (inner,)), (-torch.inf, (inner,))), inner)
        self.weight = torch.nn.Parameter(torch.randn(heads, gates * inner // heads, inner // heads))
        self.bias = torch.nn.Parameter(torch.randn(heads, gates * inner // heads))

    def step(self, inputs: Tensors, state: Tensors) -> tuple[torch.Tensor, Tensors]:
        h, c, n, m = state
        share = torch.einsum("hoi,bhi->bho", self.weight, h.unflatten(-1, (self.heads, -1))) + self.bias
        gates = inputs[0].unflatten(-1, (-1, h.shape[-1])).unbind(1)
        recurrent = [part.flatten(1) for part in share.unflatten(-1, (len(gates), -1)).unbind(2)]
        if self.cell == "elman":
            h = (gates[0] + recurrent[0]).tanh()
        elif self.cell == "gru":
            reset, update = (gates[0] + recurrent[0]).sigmoid(), (gates[1] + recurrent[1]).sigmoid()
            h = torch.lerp((gates[2] + reset * recurrent[2]).tanh(), h, update)
        else:
            i, f, z, o = (x + y for x, y in zip(gates, recurrent))
            if self.cell == "lstm":
                c = f.sigmoid() * c + i.sigmoid() * z.tanh()
                h = o.sigmoid() * c.tanh()
            else:
                decayed = m + torch.nn.functional.logsigmoid(f)
                m = torch.maximum(decayed, i)
                c = (decayed - m).exp() * c + (i - m).exp() * z.tanh()
                n = ((decayed - m).exp() * n + (i - m).exp()).clamp(min=self.floor)
                h = o.sigmoid() * c / n
        return h, (h, c, n, m)

    def emit(self, program: Program, inputs: list[View], y: View) -> None:
        program.recur(inputs[0], y, self.cell, self.weight, self.bias, self.heads, self.floor)


class Pointwise(Probe):
    """No memory but a short convolution: the operations that act on numbers."""

    def __init__(self, width: int, inner: int = 21) -> None:
        self.widths = (inner, inner, 3)
        super().__init__(width, ((0.0, (3, inner)),), inner)
        self.taps, self.scale = torch.randn(inner, 4), torch.randn(inner)

    def step(self, inputs: Tensors, state: Tensors) -> tuple[torch.Tensor, Tensors]:
        x, gate, scale = inputs
        line = torch.cat([state[0], x[:, None]], 1)
        y = torch.tanh((line * self.taps.T).sum(1))
        y = (y * gate.sigmoid()).unflatten(-1, (3, -1)) * torch.nn.functional.softplus(scale)[..., None]
        y = torch.nn.functional.normalize(y, dim=-1).flatten(1) + self.scale * x + self.scale
        y = (0.5 * y - self.scale).exp()
        return (1 + y.clamp(-1.5, 1.5).exp()).reciprocal(), (line[:, 1:],)

    def emit(self, program: Program, inputs: list[View], y: View) -> None:
        x, gate, scale = inputs
        program.convolve(x, y, self.taps, activation="tanh")
        program.multiply(y, gate, "sigmoid")
        program.multiply(y, scale, "softplus")
        program.norm(y, y, "l2", None, None, 1e-12, groups=3)
        program.add(x, y, self.scale)
        program.add(self.scale, y)
        program.map(y, y, "exp", scale=0.5, shift=-self.scale)
        program.map(y, y, "exp", limit=1.5)
        program.map(y, y, "reciprocal", shift=1.0)


PROBES: dict[str, tuple[type[Probe], dict[str, Any]]] = {
    "diagonal": (Diagonal, {}),
    "diagonal fixed": (Diagonal, {"fixed": True}),
    "complex": (Diagonal, {"complex": True}),
    "complex fixed": (Diagonal, {"complex": True, "fixed": True}),
    "modes": (Modes, {}),
    "low rank": (LowRank, {}),
    "dense": (Dense, {}),
    "filter": (Filter, {}),
    "matrix": (Matrix, {}),
    "matrix fixed": (Matrix, {"decay": "fixed", "groups": 1}),
    "matrix normalised": (Matrix, {"decay": "feature", "normaliser": "sum"}),
    "matrix stabilised": (Matrix, {"normaliser": "max", "groups": 1}),
    "delta": (Matrix, {"delta": True, "decay": "feature"}),
    "delta product": (Matrix, {"delta": True, "steps": 3}),
    "lstm heads": (Cell, {}),
    "gru heads": (Cell, {"cell": "gru"}),
    "elman heads": (Cell, {"cell": "elman"}),
    "slstm": (Cell, {"cell": "slstm"}),
    "slstm floor": (Cell, {"cell": "slstm", "heads": 1, "inner": 20, "floor": 1.0}),
    "pointwise": (Pointwise, {}),
}
TOLERANCE = 1e-4  # of the logits, whose standard deviation is about 1 here
CASES: dict[str, dict[str, Any]] = {
    "rotary": {"mixers": ["attention"] * 2},
    "llama": {"mixers": ["attention"] * 2, "tied": False, "options": {"attention": {
        "kv_heads": 2, "qk_norm": True, "qkv_bias": True, "out_bias": True, "rotary_fraction": 0.5}}},
    "window": {"mixers": ["attention"] * 2, "options": {"attention": {"window": 9}}},
    "taps": {"mixers": ["attention"] * 2, "options": {"attention": {"taps": 2, "window": 9}}},
    "alibi": {"mixers": ["attention"] * 2, "channel": "mlp", "activation": "gelu", "bias": True, "norm": "layer",
              "parallel": True, "options": {"attention": {"positions": "alibi", "window": 40}}},
    "gpt2": {"mixers": ["attention"] * 2, "channel": "mlp", "activation": "gelu_tanh", "bias": True, "norm": "layer",
             "learned_positions": 1024, "embed_norm": True, "options": {"attention": {"positions": "none"}}},
    "lstm": {"mixers": ["lstm"] * 2, "activation": "relu", "channel": "mlp"},
    "gru": {"mixers": ["gru"] * 2, "options": {"gru": {"inner": 40}}, "activation": "relu2", "channel": "mlp"},
    "mamba": {"mixers": ["mamba"] * 2, "channel": "none"},
    "mamba, signed": {"mixers": ["mamba"] * 2, "options": {"mamba": {"eigenvalues": (-1, 1)}}},
    "mamba2": {"mixers": ["mamba2"] * 2, "channel": "none", "options": {"mamba2": {"states": 10, "head_width": 16}}},
    "mamba2, groups": {"mixers": ["mamba2"] * 2, "options": {"mamba2": {"states": 7, "groups": 2, "bias": True}}},
    "s5": {"mixers": ["s5"] * 2},
    "lru": {"mixers": ["lru"] * 2, "options": {"lru": {"states": 20}}},
    "gss": {"mixers": ["gss"] * 2, "options": {"gss": {"states": 6}}},
    "s4d": {"mixers": ["s4d"] * 2, "options": {"s4d": {"states": 6, "rule": "bilinear"}}},
    "dss": {"mixers": ["dss"] * 2, "options": {"dss": {"states": 10, "length": 64}}},
    "gla": {"mixers": ["gla"] * 2},
    "gla, short convolutions": {"mixers": ["gla"] * 2, "options": {"gla": {"taps": 3}}},
    "elman": {"mixers": ["elman"] * 2},
    "deltanet": {"mixers": ["deltanet"] * 2},
    "deltanet, products": {"mixers": ["deltanet"], "options": {"deltanet": {
        "eigenvalues": (-1, 1), "householders": 2, "gate": True, "expand_k": 0.5}}},
    "xlstm": {"mixers": ["mlstm", "slstm"]},
    "linear attention": {"mixers": ["linear-attention"] * 2},
    "linear attention, taylor": {"mixers": ["linear-attention"] * 2, "options": {"linear-attention": {
        "features": "taylor", "key_width": 5}}},
    "linear attention, favor": {"mixers": ["linear-attention"] * 2, "options": {"linear-attention": {
        "features": "favor", "key_width": 6}}},
    "linear attention, relu": {"mixers": ["linear-attention"] * 2, "options": {"linear-attention": {
        "features": "relu", "heads": 2}}},
    "jordan": {"mixers": ["jordan"] * 2, "options": {"jordan": {"inner": 40, "decay": 0.7}}},
    "s4": {"mixers": ["s4"] * 2, "options": {"s4": {"states": 6}}},
    "lssl": {"mixers": ["lssl"] * 2, "options": {"lssl": {"states": 5, "channels": 2, "init": "legt",
                                                          "learn_a": False}}},
    "liquid-s4": {"mixers": ["liquid-s4"] * 2, "options": {"liquid-s4": {"states": 6}}},
    "liquid-s4, kb": {"mixers": ["liquid-s4"] * 2, "options": {"liquid-s4": {
        "states": 4, "degree": 3, "liquid": "kb", "dt_min": 0.1, "dt_max": 1.0}}},
    "lightnet": {"mixers": ["lightnet"] * 2},
    "lightnet, averages": {"mixers": ["lightnet"] * 2, "options": {"lightnet": {"axes": 0, "toeplitz": 3, "heads": 2}}},
    "hyena": {"mixers": ["hyena"] * 2, "options": {"hyena": {"order": 3, "horizon": 20, "hidden": 8}}},
    "longvq": {"mixers": ["longvq"] * 2, "options": {"longvq": {"window": 5, "codes": 7, "keys": 6}}},
    "block-recurrent": {"mixers": ["block-recurrent"] * 2, "options": {"block-recurrent": {"block": 5, "memory": 3}}},
    "blocks": {"mixers": ["attention"] * 2, "options": {"attention": {"block": 7, "look_back": 2}}},
    "jrt": {"mixers": ["jrt"] * 2, "options": {"jrt": {"key_width": 4}}},
    "palm": {"mixers": ["palm"] * 2},
    "mixed": {"mixers": ["attention", "lstm", "mamba", "gla", "gru"]},
}
PROMPTED: dict[str, dict[str, Any]] = {  # these read their prompts both ways
    "prefix": {"mixers": ["attention"] * 2, "options": {"attention": {"prompt": True, "positions": "alibi"}}},
    "jrt": CASES["jrt"],
    "jrt, elu": {"mixers": ["jrt"] * 2, "options": {"jrt": {"features": "elu", "taps": 1}}},
    "palm": CASES["palm"],
    "palm, one way": {"mixers": ["palm"] * 2, "options": {"palm": {
        "bidirectional": False, "restart": False, "segments": False, "window": 12}}},
    "both": {"mixers": ["jrt", "palm", "gru"]},
}
for name, (_, options) in PROBES.items():
    CASES[name] = {"mixers": [name] * 2, "options": {name: options}, "channel": "none"}
INT8 = ["llama", "mamba2", "slstm", "delta", "jordan", "block-recurrent", "mixed"]


def build(vocabulary: int = 97, width: int = 64, **options: Any) -> Stack:
    torch.manual_seed(0)
    stack = Stack(StackConfig(vocabulary, width, **options)).eval().requires_grad_(False)
    for parameter in stack.parameters():
        if parameter.dim() > 1:
            parameter.normal_(std=0.8 / parameter.shape[1] ** 0.5)
    return stack


def draw(model: Any, *shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(model.vocabulary, shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module", autouse=True)
def probes() -> Iterator[None]:
    """The probes above as mixers that a stack may name."""
    with pytest.MonkeyPatch.context() as patch:
        for name, (kind, _) in PROBES.items():
            patch.setitem(MIXERS, name, kind)
        yield


@pytest.fixture(scope="module")
def pairs() -> dict[str, tuple[Stack, CompiledModel]]:
    stacks = {name: build(**options) for name, options in CASES.items()}
    stacks |= {f"{name}, int8": stacks[name] for name in INT8}
    return {name: (stack, compile_model(stack, "int8" if name.endswith("int8") else "float32", threads=2))
            for name, stack in stacks.items()}


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=5, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_every_verb_agrees_with_torch(pairs: Any, name: str, data: st.DataObject) -> None:
    stack, model = pairs[name]
    batch, history = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 8))
    a, b = stack.init_state(batch, history), model.init_state(batch, history)

    def both(n: int, parents: torch.Tensor | None = None, at: torch.Tensor | None = None) -> None:
        tokens = draw(stack, batch, n, seed=data.draw(st.integers(0, 99)))
        reference, actual = stack.extend(tokens, a, parents, at), model.extend(tokens, b, parents, at)
        assert actual.logits.shape == reference.logits.shape and actual.hidden.shape == reference.hidden.shape
        torch.testing.assert_close(actual.logits, reference.logits, atol=TOLERANCE, rtol=TOLERANCE)
        torch.testing.assert_close(actual.hidden, reference.hidden, atol=TOLERANCE, rtol=TOLERANCE)

    def ragged(n: int) -> torch.Tensor:
        return torch.tensor(data.draw(st.lists(st.integers(0, n), min_size=batch, max_size=batch)))

    # short chains, and prompts in chunks
    n = data.draw(st.sampled_from([1, 2, 7, MAX_NODE_STATES, MAX_NODE_STATES + 1, 150, 300]))
    both(n, at=torch.randint(n, (batch, 2)) if n > 50 else None)
    counts = ragged(n)
    a.commit(counts=counts), b.commit(counts=counts)
    for _ in range(3):
        both(1)
        a.commit(), b.commit()
    size = data.draw(st.integers(1, 12))
    parents = torch.tensor([[data.draw(st.integers(-1, i - 1)) for i in range(size)] for _ in range(batch)])
    both(size, parents)
    path = torch.full((batch, size), -1)
    for row in range(batch):
        node, line = data.draw(st.integers(-1, size - 1)), []
        while node >= 0:
            line.append(node)
            node = int(parents[row, node])
        path[row, : len(line)] = torch.tensor(line[::-1], dtype=torch.long)
    a.commit(path), b.commit(path)
    back = torch.minimum(ragged(history), a.positions)
    a.rewind(back), b.rewind(back)
    snapshot = b.snapshot()
    both(3)
    a.commit(), b.commit()
    both(2)
    a.commit(counts=torch.ones(batch, dtype=torch.long)), b.commit(counts=torch.ones(batch, dtype=torch.long))
    assert torch.equal(a.positions, b.positions)
    rows = torch.tensor(data.draw(st.lists(st.integers(0, batch - 1), min_size=1, max_size=5)))
    a, b, batch = a.select(rows), b.select(rows), len(rows)
    both(2)
    b.restore(snapshot)
    assert b.batch == snapshot.batch and torch.equal(b.positions, snapshot.positions)


@pytest.mark.parametrize("name", ["window", "taps", "blocks"])
def test_cache_rows_outside_every_window_are_dropped(pairs: Any, name: str) -> None:
    stack, model = pairs[name]
    a, b, chance = stack.init_state(3, 4), model.init_state(3, 4), np.random.default_rng(0)

    def both(n: int, parents: torch.Tensor | None = None) -> None:
        tokens = draw(stack, 3, n, seed=int(chance.integers(99)))
        expected = stack.extend(tokens, a, parents).logits
        torch.testing.assert_close(model.extend(tokens, b, parents).logits, expected, atol=TOLERANCE, rtol=TOLERANCE)

    for turn in range(40):
        both(18)
        counts = torch.tensor(chance.integers(12, 19, 3))
        a.commit(counts=counts), b.commit(counts=counts)
        both(3, torch.tensor([[-1, -1, 1]] * 3))
        path = torch.tensor([[1, 2], [0, -1], [-1, -1]])
        a.commit(path), b.commit(path)
        back = torch.tensor(chance.integers(0, 5, 3))
        a.rewind(back), b.rewind(back)
        if turn > 30:
            rows = torch.tensor(chance.permutation(3))
            a, b = a.select(rows), b.select(rows)
        if turn == 20:  # a row that begins anew, beside rows that have forgotten their beginnings
            assert b.dropped > 0
            fresh = torch.tensor([0, 1])
            a, b = a.select(fresh).join([stack.init_state(1, 4)]), b.select(fresh).join([model.init_state(1, 4)])
    assert b.longest > 400 and b.capacity <= 512
    snapshot = b.select(torch.tensor([0])).snapshot()
    assert snapshot.dropped > 0
    with pytest.raises(SegueError, match="attention saw there is forgotten"):
        snapshot.rewind(int(snapshot.lengths[0]))


@pytest.mark.parametrize("name", CASES)
def test_step_equals_extend_and_commit(pairs: Any, name: str) -> None:
    _, model = pairs[name]
    a, b = model.init_state(3), model.init_state(3)
    for step in range(40):  # past the first capacity of nothing, and more
        tokens = draw(model, 3, 1, seed=step)
        expected = model.extend(tokens, a).logits[:, 0]
        a.commit()
        assert np.array_equal(model.step(tokens[:, 0].numpy(), b), expected.numpy())
    assert torch.equal(a.positions, b.positions)


@pytest.mark.parametrize("name", [*CASES, *(f"{name}, int8" for name in INT8)])
def test_bits_do_not_depend_on_batch_draft_or_threads(pairs: Any, name: str) -> None:
    _, model = pairs[name]
    prompts, draft = draw(model, 9, 21), draw(model, 9, 8, seed=1)
    state = model.init_state(9)
    model.extend(prompts, state)
    state.commit()
    together = model.extend(draft, state).logits
    for row, threads in ((0, 1), (8, 2), (4, 5)):
        model.threads = threads
        single = model.init_state(1)
        model.extend(prompts[row : row + 1], single)
        single.commit()
        for node in range(8):
            logits = model.step(draft[row, node : node + 1].numpy(), single)
            assert np.array_equal(logits[0], together[row, node].numpy()), (row, node)
    model.threads = 2


@pytest.mark.parametrize("weights", ["float32", "int8"])
def test_a_large_matrix_shared_by_threads_gives_the_same_bits(weights: str) -> None:
    model = compile_model(build(vocabulary=20_000, width=256, mixers=["attention"]), weights)
    k, size = (256 // simd.GROUP, simd.GROUP) if weights == "int8" else (256, 4)
    assert all(linear.tiles_at_once(k, 20_000 // simd.TILE, size, nodes, team) > 0
               for nodes in (1, 20) for team in (2, 3))
    tokens = draw(model, 3, 20)
    answers = []
    for model.threads in (1, 2, 3):
        state = model.init_state(3)
        first = model.extend(tokens, state).logits
        state.commit()
        answers.append(torch.cat([first, model.extend(tokens[:, :1], state).logits], 1))
    assert torch.equal(answers[0], answers[1]) and torch.equal(answers[0], answers[2])


@njit
def quantised(x, width, into, k):  # type: ignore[no-untyped-def]
    simd.quantise(x, width, into, k)


def aligned_to_steps(width: int) -> int:
    return -(-width // (4 * simd.UNROLL)) * simd.UNROLL


def as_bytes(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """The memory that `quantise` fills for a row, the bytes in it, and how many steps of four they are."""
    k = aligned_to_steps(len(x))
    row, memory = np.append(x, np.full(simd.LANES, 9e9, np.float32)), np.zeros(k + 2, np.int32)
    quantised(row.ctypes.data, len(x), memory.ctypes.data, k)
    return memory, memory[:k].view(np.int8), k


@settings(max_examples=60, deadline=None, derandomize=True)
@given(width=st.integers(1, 70), size=st.sampled_from([1e-38, 1e-3, 1.0, 1e30]), seed=st.integers(0, 99))
def test_quantised_rows_equal_numpys(width: int, size: float, seed: int) -> None:
    x = (size * np.random.default_rng(seed).standard_normal(width)).astype(np.float32)
    memory, results, k = as_bytes(x)
    top = max(np.abs(x).max(), np.float32(1e-30))
    expected = np.zeros(4 * k, np.int8)
    expected[:width] = np.rint(x * (np.float32(127) / top))
    assert np.array_equal(results, expected)
    assert memory.view(np.float32)[k] == top * np.float32(1 / 127) and memory[k + 1] == -128 * expected.sum(dtype=int)
    if size >= 1e-3:
        assert np.abs(expected[:width] * memory.view(np.float32)[k] - x).max() <= 0.501 * memory.view(np.float32)[k]


def test_not_a_number_survives_quantisation() -> None:
    x = np.ones(40, np.float32)
    memory, result, k = as_bytes(0 * x)
    assert not result.any() and memory.view(np.float32)[k] > 0 and memory[k + 1] == 0
    x[33] = np.nan
    memory, _, k = as_bytes(x)
    assert np.isnan(memory.view(np.float32)[k])


KINDS = {"widened": simd.WIDENED} | ({"bytes": simd.BYTES} if simd.INTEGER else {})


@pytest.fixture(scope="module")
def blocks() -> dict[tuple[str, int], Any]:
    """The micro-kernels for int8 weights that this machine can run, of either width."""
    return {(name, panels): simd.make_block(panels, kind, 4) for name, kind in KINDS.items() for panels in (2, 4)}


@pytest.mark.parametrize("name", KINDS)
@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(rows=st.integers(1, 4), panels=st.sampled_from([2, 4]), width=st.integers(1, 90), seed=st.integers(0, 99))
def test_products_of_bytes_are_exact(blocks: Any, name: str, rows: int, panels: int, width: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    outputs, group, k = panels * simd.LANES, 4 if name == "bytes" else 1, aligned_to_steps(width)
    x, w = draw.integers(-127, 128, (rows, width)).astype(np.float32), draw.integers(-127, 128, (outputs, width))
    x[:, 0] = 127  # so that the scale is 1
    scale, bias = (2.0 ** draw.integers(-3, 3, outputs)).astype(np.float32), draw.integers(-9, 9, outputs)
    bias, y = bias.astype(np.float32), draw.integers(-9, 9, (rows, outputs)).astype(np.float32)
    expected = y + bias + (x.astype(int) @ w.T) * scale
    whole = np.zeros((outputs, 4 * k), np.int8)
    whole[:, :width] = w
    if name == "bytes":
        whole ^= np.int8(-128)
        source = np.stack([as_bytes(row)[0] for row in x])
        assert np.allclose(source.view(np.float32)[:, k], 1, rtol=1e-6)
        source.view(np.float32)[:, k] = 1
    else:
        k, source = 4 * k, np.zeros((rows, 4 * k), np.float32)
        source[:, :width] = x
    packed = np.ascontiguousarray(  # pairs of panels, each (steps, lanes of the pair, group)
        whole.reshape(panels // 2, simd.TILE, k, group).swapaxes(1, 2))
    blocks[name, panels](rows, packed.ctypes.data, simd.TILE * group, simd.TILE * group * k, simd.AHEAD,
                         source.ctypes.data, source.strides[0], k, y.ctypes.data, y.strides[0], scale.ctypes.data,
                         bias.ctypes.data, 1)
    assert np.array_equal(y, expected)


def prompted_pair(name: str, lengths: list[int], history: int = 0) -> tuple[Stack, CompiledModel, Any, Any]:
    """Both forms, and their states after random prompts of these lengths, with the ends of the prompts given."""
    stack = build(**PROMPTED[name])
    for parameter in stack.parameters():
        if parameter.dim() == 1:
            parameter.add_(0.1 * torch.randn_like(parameter))
    model, counts = compile_model(stack, threads=2), torch.tensor(lengths)
    ids, states, outputs = draw(stack, len(lengths), max(lengths)), [], []
    forms: tuple[Any, ...] = (stack, model)
    for form in forms:
        states.append(form.init_state(len(lengths), history))
        set_prompt_lengths(form, states[-1], counts)
        outputs.append(form.extend(ids, states[-1]))
        states[-1].commit(counts=counts)
    real = torch.arange(max(lengths)) < counts[:, None]
    torch.testing.assert_close(outputs[1].logits[real], outputs[0].logits[real], atol=TOLERANCE, rtol=TOLERANCE)
    return stack, model, states[0], states[1]


@pytest.mark.parametrize("name", PROMPTED)
@pytest.mark.parametrize("lengths", [[5, 1, 12, 9], [300, 17]])
def test_two_way_prompts_equal_the_torch_form(name: str, lengths: list[int]) -> None:
    stack, model, a, b = prompted_pair(name, lengths, history=4)
    batch = len(lengths)

    def both(n: int, parents: torch.Tensor | None = None) -> None:
        tokens = draw(stack, batch, n, seed=n)
        torch.testing.assert_close(model.extend(tokens, b, parents).logits, stack.extend(tokens, a, parents).logits,
                                   atol=TOLERANCE, rtol=TOLERANCE)

    for n in (1, 20, 3):
        both(n)
        a.commit(), b.commit()
    both(4, torch.tensor([[-1, 0, 0, 2]]).expand(batch, 4))
    path = torch.tensor([[0, 2, 3]]).expand(batch, 3)
    a.commit(path), b.commit(path)
    a.rewind(2), b.rewind(2)
    both(2)
    counts = torch.arange(batch) % 2
    a.commit(counts=counts), b.commit(counts=counts)
    rows = torch.tensor([batch - 1, 0, batch - 1])
    a, b, batch = a.select(rows), b.select(rows), 3
    both(2)
    a.commit(), b.commit()
    a, b, batch = a.join([a]), b.join([b]), 6
    both(3)


def test_generate_passes_prompt_lengths_to_the_engine() -> None:
    *forms, _, state = prompted_pair("both", [5, 9], history=8)
    expected, results = ([x.tokens for x in generate(form, [[5, 8, 2, 9, 9, 1], [7]], 12)] for form in forms)
    assert results == expected
    with pytest.raises(SegueError, match="go back"):
        state.rewind(1)


def test_learned_transition_matrices_and_default_s4_equal_torch() -> None:
    for name, options in (("lssl", {"states": 8}), ("s4", {})):
        torch.manual_seed(0)
        stack = Stack(StackConfig(50, 40, [name] * 2, {name: options})).eval().requires_grad_(False)
        model, ids = compile_model(stack), draw(stack, 2, 150)
        expected = stack.extend(ids, stack.init_state(2)).logits
        torch.testing.assert_close(model.extend(ids, model.init_state(2)).logits, expected, atol=TOLERANCE, rtol=0)


def test_step_bytes_count_weights_tables_and_states() -> None:
    small, large = (compile_model(build(width=48, mixers=["lssl"], options={"lssl": {"states": n}})).program
                    for n in (8, 16))
    matrices, vectors = 48 * (16**2 - 8**2), 48 * (16 - 8)  # A, and each of B, C and the state
    assert large.weight_bytes - small.weight_bytes == 4 * (matrices + 2 * vectors)
    assert large.step_bytes(9) - small.step_bytes(9) == 4 * (matrices + 4 * vectors)
    program = compile_model(build(mixers=["attention"])).program
    assert program.step_bytes(9) - program.step_bytes(8) == 4 * program.floats_per_position


def test_every_causal_mixer_compiles() -> None:
    for name, kind in MIXERS.items():
        if kind.causal and name not in PROBES:
            CompiledModel(Stack(StackConfig(50, 64, [name])))
    for options in ({"relative": 8}, {"span": 8}, {"window": 8, "global_tokens": 2}, {"positions": "learned"}):
        with pytest.raises(SegueError, match="this attention has no form"):
            CompiledModel(Stack(StackConfig(50, 64, ["attention"], {"attention": options})))
    with pytest.raises(SegueError, match="restart"):
        CompiledModel(Stack(StackConfig(50, 64, ["palm"], {"palm": {"positions": "alibi"}})))
    with pytest.raises(SegueError, match="looks ahead"):
        CompiledModel(Stack(StackConfig(50, 64, ["lightnet"], {"lightnet": {"causal": False}})))


@pytest.mark.parametrize("mixers", [["attention", "mamba", "lstm", "gla"], ["jordan", "s4", "jrt", "palm"],
                                    ["linear-attention", "liquid-s4", "lightnet", "hyena"],
                                    ["block-recurrent", "longvq", "lssl"]])
def test_int8_weights_stay_within_their_error(mixers: list[str]) -> None:
    options = {"lssl": {"states": 8, "learn_a": False}, "block-recurrent": {"block": 7, "memory": 3}}
    stack = build(width=128, mixers=mixers, options={name: options[name] for name in mixers if name in options})
    ids = draw(stack, 4, 60)
    exact, rounded = (m.extend(ids, m.init_state(4)).logits for m in (stack, compile_model(stack, "int8")))
    assert (exact - rounded).square().mean().sqrt() < 0.08 * exact.std()


def test_other_float_types_and_shapes_compile(pairs: Any) -> None:
    stack = build(vocabulary=50, width=36, hidden=50, mixers=["attention", "mamba", "lstm", "gla"],
                  options={"gla": {"heads": 3}, "attention": {"heads": 3}})
    ids = draw(stack, 2, 20)
    expected = stack.extend(ids, stack.init_state(2)).logits
    for kind in (torch.float64, torch.bfloat16):
        model = compile_model(stack.to(kind))
        assert stack.embedding.weight.dtype == kind
        torch.testing.assert_close(model.extend(ids, model.init_state(2)).logits, expected,
                                   atol=1e-4 if kind == torch.float64 else 0.1, rtol=0)


@pytest.mark.parametrize("mixer", ["attention", "mamba"])
def test_extend_without_requested_scores_advances_the_state(mixer: str) -> None:
    """As a drafter does, of several tokens at once."""
    stack = build(mixers=[mixer])
    model, ids = compile_model(stack), draw(stack, 2, 7)
    a, b = stack.init_state(2), model.init_state(2)
    no_positions = torch.empty(2, 0, dtype=torch.long)
    reference, actual = stack.extend(ids, a, None, no_positions), model.extend(ids, b, None, no_positions)
    assert actual.logits.shape == reference.logits.shape == (2, 0, stack.vocabulary)
    torch.testing.assert_close(actual.hidden, reference.hidden, atol=TOLERANCE, rtol=TOLERANCE)
    for state in (a, b):
        state.commit()
    torch.testing.assert_close(model.extend(ids, b).logits, stack.extend(ids, a).logits, atol=TOLERANCE, rtol=TOLERANCE)
    undrafted = generate(stack, ids.tolist(), 12)
    drafted = generate(stack, ids.tolist(), 12, draft=ModelDraft(model, min_probability=0.0), adaptive=False)
    assert [answer.tokens for answer in drafted] == [answer.tokens for answer in undrafted]


def test_concurrent_python_threads_get_the_same_answers(pairs: Any) -> None:
    _, model = pairs["mixed"]
    tokens = draw(model, 60)

    def decode() -> np.ndarray:
        state = model.init_state(1)
        return np.stack([model.step(tokens[i : i + 1].numpy(), state)[0] for i in range(60)])

    expected, result = decode(), {}
    workers = [threading.Thread(target=lambda i=i: result.update({i: decode()})) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=60)
    assert len(result) == 4 and all(np.array_equal(expected, value) for value in result.values())


def test_recurrent_memory_is_constant_over_100_000_tokens() -> None:
    model = compile_model(build(vocabulary=16, width=16, mixers=["gru", "mamba"], channel="none"), threads=1)
    state = model.init_state(1)

    def size() -> int:
        spaces = state.spaces.values()
        return sum(m.array.nbytes for m in (state.cache, state.local, state.states)) + state.tokens.nbytes + sum(
            space.scratch.array.nbytes for space in spaces)

    token = np.zeros(1, np.int64)
    model.step(token, state)
    before = size()
    for _ in range(100_000 - 1):
        logits = model.step(token, state)
    assert size() == before and np.isfinite(logits).all() and int(state.positions) == 100_000


def test_bad_calls_give_errors_by_name(pairs: Any) -> None:
    _, model = pairs["gpt2"]
    state = model.init_state(1)
    for bad_token in (-1, model.vocabulary):
        with pytest.raises(SegueError, match="token ids"):
            model.extend(torch.tensor([[bad_token]]), state)
        with pytest.raises(SegueError, match="token ids"):
            model.step(np.array([bad_token]), state)
    with pytest.raises(SegueError, match="learned positions"):
        model.extend(torch.zeros(1, 1025, dtype=torch.long), state)
    with pytest.raises(SegueError, match="int4"):
        compile_model(build(mixers=["gru"]), "int4")
    with pytest.raises(SegueError, match="looks ahead"):
        compile_model(build(mixers=["attention"], options={"attention": {"causal": False}}))
    for whole in ({"pool": "mean"}, {"inputs": 3, "tied": False}):
        with pytest.raises(SegueError, match="reads whole sequences"):
            compile_model(build(mixers=["gru"], **whole))
    _, model = pairs["lstm"]
    state = model.init_state(1, history=2)
    for _ in range(6):
        model.extend(draw(model, 1, 10), state)
        state.commit()
    with pytest.raises(SegueError, match="history"):
        state.rewind(59)
    with pytest.raises(SegueError, match="nothing is pending"):
        state.commit()


def test_calls_do_not_wait_for_the_compiler(pairs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stack, _ = pairs["mixed"]
    is_warm = False
    monkeypatch.setattr(compiled, "is_warm", lambda: is_warm)
    monkeypatch.setattr(compiled, "compile_in_background", lambda: True)
    model = accelerate(stack)
    assert isinstance(model, Accelerated) and "torch" in model.path
    early_state, ids = model.init_state(2), draw(stack, 2, 5)
    first = model.extend(ids, early_state).logits
    early_state.commit()
    is_warm = True
    assert model.path.startswith("cpu kernels float32")
    late_state = model.init_state(2)
    torch.testing.assert_close(model.extend(ids, late_state).logits, first, atol=TOLERANCE, rtol=0)
    late_state.commit()
    token = np.array([3, 4])  # each state stays with the code that made it
    np.testing.assert_allclose(model.step(token, early_state), model.step(token, late_state), atol=TOLERANCE)
    assert isinstance(accelerate(stack), CompiledModel)


def test_threads_load_the_engine_once(pairs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "is_warm", lambda: False)
    monkeypatch.setattr(compiled, "compile_in_background", lambda: True)
    model, loads = accelerate(pairs["mixed"][0]), []
    assert isinstance(model, Accelerated)
    monkeypatch.setattr(model.compiled, "load", lambda: (time.sleep(0.05), loads.append(1)))
    monkeypatch.setattr(compiled, "is_warm", lambda: True)
    with ThreadPoolExecutor(4) as threads:
        assert set(threads.map(lambda _: model.path, range(4))) == {model.compiled.path}
    assert loads == [1]


def test_the_compile_cache_belongs_to_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGUE_CACHE", str(tmp_path / "here"))
    place = cache.folder.__wrapped__()
    assert place is not None and place.is_relative_to(tmp_path / "here")
    copy = shutil.copytree(Path(cache.__file__).parent, tmp_path / "copy")
    monkeypatch.setattr(cache, "__file__", str(copy / "cache.py"))
    assert cache.folder.__wrapped__() != place, "a second copy of the code has compiled nothing yet"
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SEGUE_CACHE", str(tmp_path / "file"))  # not a folder: nothing can be kept, nothing fails
    assert cache.folder.__wrapped__() is None
    monkeypatch.delenv("SEGUE_CACHE")  # a container: no home, but a place for temporary files
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(cache, "gettempdir", lambda: str(tmp_path))
    place = cache.folder.__wrapped__()
    assert place is not None and place.is_relative_to(tmp_path) and place.parent.stat().st_mode & 0o077 == 0
    place.parent.chmod(0o777)
    assert cache.folder.__wrapped__() is None, "others could put their own code there"


def test_loops_compile_without_a_writable_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    real = numba.njit
    monkeypatch.setattr(cache, "folder", lambda: None)

    def njit(*function: Any, **options: Any) -> Any:
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return real(*function, **options)

    monkeypatch.setattr(numba, "njit", njit)
    assert jit(nogil=True)(lambda x: x + 1)(2) == 3


FORK = """
import os, torch, numpy as np
from segue.models import Stack, StackConfig
from segue.models.compiled import compile_model
model = compile_model(Stack(StackConfig(32, 32, ["attention", "lstm"])).eval(), threads=2)
def decode():
    state = model.init_state(1)
    return sum(float(model.step(np.array([i]), state).sum()) for i in range(9))
expected = decode()
child = os.fork()
if child == 0:
    os._exit(0 if decode() == expected else 1)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def run(code: str, **environment: str) -> None:
    process = subprocess.run([sys.executable, "-W", "ignore", "-c", code], env=os.environ | environment, timeout=300,
                             cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_starts_its_own_threads() -> None:
    run(FORK)


@pytest.mark.slow
@pytest.mark.parametrize("processor", ["generic", "haswell"])
def test_processors_without_vector_extensions_get_the_same_answers(processor: str, tmp_path: Path) -> None:
    """The same vector code, compiled without what this processor has beyond them."""
    features = "" if processor == "generic" else "+avx2,+fma"
    run("""
import torch
from segue.models import Stack, StackConfig
from segue.models.compiled import compile_model
torch.manual_seed(0)
stack = Stack(StackConfig(32, 48, ["attention", "lstm", "mamba", "gla", "gru"])).eval().requires_grad_(False)
ids = torch.randint(32, (2, 30))
expected = stack.extend(ids, stack.init_state(2)).logits
for weights, error in (("float32", 1e-4), ("int8", 0.1)):
    model = compile_model(stack, weights)
    assert (model.extend(ids, model.init_state(2)).logits - expected).abs().max() < error
""", NUMBA_CPU_NAME=processor, NUMBA_CPU_FEATURES=features, SEGUE_CACHE=str(tmp_path))
