"""The two cells of xLSTM (Beck et al. 2024, arXiv 2405.04517) in their blocks, as Bio-xLSTM uses them (Schmidinger et
al. 2024, arXiv 2411.04165): the sLSTM, which can track states, and the mLSTM, which stores key-value pairs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segue.errors import SegueError
from segue.kernels.blocks import block_product, block_products
from segue.kernels.mlstm import EMPTY, mlstm
from segue.kernels.norm import gated_norm
from segue.mixers.base import Mixer
from segue.mixers.convolution import ShortConvolution
from segue.mixers.layout import Layout
from segue.mixers.positions import rotary_frequencies, rotate
from segue.mixers.recurrent import Headwise
from segue.mixers.state import Parts, Recurrence, Tensors

if TYPE_CHECKING:
    from segue.kernels.cpu.program import Program, View

EPSILON = 1e-6  # added to the matrix memory's normaliser
NORM_EPSILON = 1e-5


class BlockLinear(nn.Module):
    """`outputs` block-diagonal linear maps (B, N, D) -> (B, N, outputs, D). width: D, divisible by `blocks`."""

    def __init__(self, width: int, blocks: int, outputs: int = 1) -> None:
        super().__init__()
        if width % blocks:
            raise SegueError(f"width {width} must be divisible by {blocks} blocks")
        self.weight = nn.Parameter(torch.empty(blocks, outputs, width // blocks, width // blocks))
        nn.init.normal_(self.weight, std=math.sqrt(2 / (5 * width)))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack(block_product(x, self.weight), 2)

    def compose(self, weight: Tensor) -> Tensor:
        """Return the map (M, D) of x that equals the map `weight` (M, outputs, D) of the outputs."""
        blocks = weight.unflatten(2, (len(self.weight), -1))
        return torch.einsum("monj,noji->mni", blocks, self.weight).flatten(1)

    def dense(self) -> Tensor:
        """Return the same map as one matrix, (outputs * D, D), output by output."""
        return torch.cat([torch.block_diag(*blocks) for blocks in self.weight.unbind(1)])


class HeadNorm(nn.Module):
    """Layer norm over each head separately, with one weight per channel: (B, N, H, d) -> (B, N, H d)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.to(self.weight.dtype), x.shape[-1:], eps=NORM_EPSILON).flatten(2) * self.weight

    def lower(self, program: Program, y: View, heads: int) -> None:
        program.norm(y, y, "layer", None, None, NORM_EPSILON, heads)
        program.multiply(y, self.weight)


class SLSTM(Mixer):
    """A scalar-memory LSTM with exponential gates, a stabiliser and block-diagonal recurrent weights, initially zero.

    width: model width D. heads: blocks of units that do not see each other's states. taps: of the convolution before
    the input and the forget gate. depth: relative depth of the layer in its stack, 0 to 1; forget biases start at
    5 - 12 (j / (d - 1))^(0.3 + 1.3 depth) for unit j.
    """

    def __init__(self, width: int, heads: int = 4, taps: int = 4, depth: float = 0.0) -> None:
        super().__init__(width)
        self.convolution = ShortConvolution(width, taps, silu=True)
        self.gates, self.inputs = BlockLinear(width, heads, 2), BlockLinear(width, heads, 2)
        self.recurrence = Headwise("slstm", heads, width // heads)
        self.norm = HeadNorm(width)
        place = torch.linspace(0, 1, width // heads)
        self.recurrence.bias_hh.data[:, 1] = 5 - 12 * place ** (0.3 + 1.3 * depth)

    def run(self, x: Tensor, layout: Layout, parts: Parts) -> Tensor:
        near = self.convolution((x,), layout, parts.get("convolution"))
        projected = torch.stack([*block_product(near, self.gates.weight), *block_product(x, self.inputs.weight)],
                                2)  # i, f, z, o
        inputs = (projected.unflatten(3, self.recurrence.shape).transpose(2, 3),)
        return self.norm(self.recurrence(inputs, layout, parts.get("recurrence")).unflatten(2, self.recurrence.shape))

    def lower(self, program: Program, source: View, into: View) -> None:
        near, gates = program.register("near", self.width), program.register("gates", 4 * self.width)
        program.convolve(source, near, self.convolution.weight, self.convolution.bias)
        program.linear(near, gates[: 2 * self.width], self.gates.dense())
        program.linear(source, gates[2 * self.width :], self.inputs.dense())
        y = self.recurrence.lower_gates(program, gates)
        self.norm.lower(program, y, self.recurrence.shape[0])
        program.add(y, into)


class MatrixMemory(Recurrence):
    """The mLSTM's matrix memory C with normaliser n and stabiliser m.

    Inputs: q, k (B, N, H, K), v (B, N, H, E) and gates i, f (B, N, H). State: [C n] (B, H, K, E + 1) and m (B, H).
    """

    learnable_tensors = (0,)

    def __init__(self, heads: int, key_width: int, value_width: int) -> None:
        super().__init__()
        self.shape = (heads, key_width, value_width + 1)

    def initial(self, batch: int, like: Tensor) -> Tensors:
        return like.new_zeros(batch, *self.shape), like.new_full((batch, self.shape[0]), EMPTY)

    def learnable_initial(self, batch: int, like: Tensor) -> Tensors:
        # With m = 0, not the exp m = 0 of an empty state: the memory is stored in units of exp m.
        return like.new_zeros(batch, *self.shape), like.new_zeros(batch, self.shape[0])

    def scan(self, inputs: Tensors, state: Tensors, starts: Tensor | None = None,
             lengths: Tensor | None = None) -> tuple[Tensor, Tensors]:
        q, k, v, i, f = inputs
        memory, m = state
        y, memory, m = mlstm(q, k, v, i, f, memory, m, starts, lengths, EPSILON)
        return y, (memory, m)


class MLSTM(Mixer):
    """A matrix memory behind a short convolution, between an up- and a down-projection.

    width: model width D. heads: number of heads. expand: inner width relative to D. taps: of the convolution before
    queries and keys. block: channels per block of the block-diagonal maps to queries, keys and values.
    positions: "none", or "rotary" position embeddings (Bio-xLSTM's models of DNA and proteins). theta: base of the
    rotary frequencies.
    """

    linear_in_values = True

    def __init__(self, width: int, heads: int = 4, expand: int = 2, taps: int = 4, block: int = 4,
                 positions: str = "none", theta: float = 500_000.0) -> None:
        super().__init__(width)
        inner, self.heads = expand * width, heads
        if inner % heads or inner % block:
            raise SegueError(f"inner width {inner} must be divisible by {heads} heads and by blocks of {block}")
        if positions not in ("none", "rotary"):
            raise SegueError(f"positions '{positions}' are unknown to an mLSTM: choose none or rotary")
        self.frequencies = rotary_frequencies(inner // heads // 2 * 2, theta) if positions == "rotary" else None
        self.into = nn.Linear(width, 2 * inner, bias=False)
        self.convolution = ShortConvolution(inner, taps, silu=True)
        self.qk, self.v = BlockLinear(inner, inner // block, 2), BlockLinear(inner, inner // block)
        self.gates = nn.Linear(3 * inner, 2 * heads)
        self.memory = MatrixMemory(heads, inner // heads, inner // heads)
        self.norm = HeadNorm(inner)
        self.skip = nn.Parameter(torch.ones(inner))
        self.out = nn.Linear(inner, width, bias=False)
        nn.init.normal_(self.into.weight, std=math.sqrt(2 / (5 * width)))
        nn.init.zeros_(self.gates.weight)
        nn.init.normal_(self.gates.bias[:heads], std=0.1)
        self.gates.bias.data[heads:] = torch.linspace(3, 6, heads)  # memories of tens to hundreds of nodes

    def _project(self, x: Tensor, layout: Layout, parts: Parts) -> tuple[Tensors, Tensor, Tensor]:
        """Return the memory's inputs (q, k, v, i, f), the convolved input, and the output gate."""
        u, gate = self.into(x).chunk(2, -1)
        near = self.convolution((u,), layout, parts.get("convolution"))
        scale = (u.shape[2] // self.heads) ** -0.5  # of the keys
        # The gates read q, k and v, which are linear in `near` and `u`: compose the maps, which is cheaper.
        weight = self.gates.weight.unflatten(1, (3, -1))
        queries, keys = self.qk.weight.unbind(-3)
        (q, k), gates = block_products(near, torch.stack([queries, keys * scale], -3), self.qk.compose(weight[:, :2]))
        (v,), others = block_products(u, self.v.weight, self.v.compose(weight[:, 2:]))
        i, f = (gates + others + self.gates.bias).chunk(2, -1)
        q, k, v = (y.unflatten(2, (self.heads, -1)) for y in (q, k, v))
        if self.frequencies is not None:
            q, k = (rotate(y.transpose(1, 2), layout.positions, self.frequencies).transpose(1, 2) for y in (q, k))
        return (q, k, v, i, f), near, gate

    def run(self, x: Tensor, layout: Layout, parts: Parts) -> Tensor:
        inputs, near, gate = self._project(x, layout, parts)
        mixed = self.memory(inputs, layout, parts.get("memory"))
        return self._gate_and_project(mixed, near, gate)

    def _gate_and_project(self, mixed: Tensor, near: Tensor, gate: Tensor) -> Tensor:
        return self.out(gated_norm(mixed.flatten(2), gate, self.norm.weight, self.heads, NORM_EPSILON, True,
                                   (near, self.skip)))

    def lower(self, program: Program, source: View, into: View) -> None:
        if self.frequencies is not None:
            raise SegueError("an mLSTM with rotary positions has no form for the compiled CPU engine")
        inner, heads = self.norm.weight.shape[0], self.heads
        both, near, qkv = (program.register(name, n * inner) for name, n in (("both", 2), ("near", 1), ("qkv", 3)))
        gates, floor, y = (program.register(name, n) for name, n in (
            ("gates", 2 * heads), ("floor", heads), ("y", inner)))
        q, k, v, write, forget = qkv[:inner], qkv[inner : 2 * inner], qkv[2 * inner :], gates[:heads], gates[heads:]
        program.linear(source, both, self.into.weight)
        program.convolve(both[:inner], near, self.convolution.weight, self.convolution.bias)
        program.linear(near, qkv[: 2 * inner], self.qk.dense())
        program.linear(both[:inner], v, self.v.dense())
        program.linear(qkv, gates, self.gates.weight, self.gates.bias)
        program.map(forget, forget, "log_sigmoid")
        program.stabilise(forget, write, floor, -math.inf)
        program.matrix(q, k, v, y, heads, forget, write, scale=(inner // heads) ** -0.5, floor=floor, epsilon=EPSILON)
        self.norm.lower(program, y, heads)
        program.add(near, y, self.skip)
        program.multiply(y, both[inner:], "silu")
        program.linear(y, into, self.out.weight, add=True)

    def _project_alone(self, x: Tensor) -> tuple[Tensors, Tensor, Tensor]:
        return self._project(x, Layout.of(x), {})

    def matrix(self, x: Tensor) -> Tensor:
        (q, k, _, i, f), _, _ = self._project_alone(x)
        decay = F.logsigmoid(f).cumsum(1).transpose(1, 2)
        weights = decay[..., :, None] - decay[..., None, :] + i.transpose(1, 2)[..., None, :]
        weights = weights.masked_fill(torch.ones(weights.shape[-2:], dtype=torch.bool, device=x.device).triu(1),
                                      -torch.inf)
        m = (decay + (i.transpose(1, 2) - decay).cummax(-1).values)[..., None]  # the maximum of each row
        scores = torch.einsum("bthk,bshk->bhts", q, k) * (weights - m).exp()
        return scores / (torch.maximum(scores.sum(-1, keepdim=True).abs(), (-m).exp()) + EPSILON)

    def values(self, x: Tensor) -> Tensor:
        return self._project_alone(x)[0][2].transpose(1, 2)

    def output(self, mixed: Tensor, x: Tensor) -> Tensor:
        _, near, gate = self._project_alone(x)
        return self._gate_and_project(mixed.transpose(1, 2), near, gate)
