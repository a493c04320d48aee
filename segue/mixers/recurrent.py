"""Nonlinear recurrences: Jordan (1986) and Elman (1990) networks, LSTM (Hochreiter & Schmidhuber 1997, with the forget
gate of Gers et al. 2000) and GRU (Cho et al. 2014). Reference account: Lipton et al. 2015, arXiv 1506.00019."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence, unpack_sequence

from segue.errors import SegueError
from segue.mixers.base import Mixer
from segue.mixers.state import Carry, Layout, Part, Recurrence, SteppedRecurrence, Tensors

if TYPE_CHECKING:
    from segue.kernels.cpu.program import Program, View


class TorchRecurrence(Recurrence):
    """Any of torch's fused recurrent modules (nn.LSTM, nn.GRU, nn.RNN; one layer, batch first) as a `Recurrence`."""

    def __init__(self, module: nn.RNNBase) -> None:
        super().__init__()
        self.module = module

    def initial(self, batch: int, like: Tensor) -> Tensors:
        memories = 2 if isinstance(self.module, nn.LSTM) else 1
        return tuple(like.new_zeros(batch, self.module.hidden_size) for _ in range(memories))

    def _call(self, x: object, state: Tensors) -> tuple[object, Tensors]:
        layered = tuple(s[None].contiguous() for s in state)
        y, final = self.module(x, layered if len(layered) > 1 else layered[0])
        final = final if isinstance(final, tuple) else (final,)
        return y, tuple(new[0].to(old.dtype) for new, old in zip(final, state))  # autocast gives others

    def scan(self, inputs: Tensors, state: Tensors, starts: Tensor | None = None,
             lengths: Tensor | None = None) -> tuple[Tensor, Tensors]:
        (x,) = inputs
        batch, n = x.shape[:2]
        if not x.numel():
            return x.new_zeros(batch, n, self.module.hidden_size), state
        if starts is not None and bool(starts.any()):
            return self._scan_documents(x, state, starts, lengths)
        y, final = self._call(x, state)
        assert isinstance(y, Tensor)
        if lengths is not None:
            final = self._ragged_final(x, y, state, lengths, final)
        return y, final

    def _ragged_final(self, x: Tensor, y: Tensor, state: Tensors, lengths: Tensor, final: Tensors) -> Tensors:
        if bool((lengths == x.shape[1]).all()):
            return final
        some = torch.nonzero(lengths > 0)[:, 0]
        after = tuple(s.clone() for s in state)
        if len(some):
            packed = pack_sequence([x[row, : int(lengths[row])] for row in some], enforce_sorted=False)
            new = self._call(packed, tuple(s[some] for s in state))[1]
            after = tuple(s.index_put((some,), f) for s, f in zip(after, new))
        return after

    def _scan_documents(self, x: Tensor, state: Tensors, starts: Tensor, lengths: Tensor | None,
                        ) -> tuple[Tensor, Tensors]:
        """Documents packed in a row are run as rows of their own: torch's kernels cannot reset in the middle."""
        batch, n = x.shape[:2]
        pieces: list[tuple[int, int, int, bool]] = []  # row, begin, end, does it continue the state?
        finals: list[int] = []  # for each row the piece in which its requested final state lies, -1: the given state
        for row in range(batch):
            stop = n if lengths is None else int(lengths[row])
            heads = torch.nonzero(starts[row])[:, 0].tolist()
            edges = sorted({0, *heads, stop, n})
            finals.append(-1)
            for begin, end in zip(edges[:-1], edges[1:]):
                if begin < stop:
                    finals[-1] = len(pieces)
                pieces.append((row, begin, end, begin not in heads))
        # A piece cut at `stop` must hand its state on: run such tails after their heads, in a second round.
        fresh = self.initial(1, x)
        outputs: dict[tuple[int, int], Tensor] = {}
        ends: dict[tuple[int, int], Tensors] = {}
        first = [p for p in pieces if not p[3] or p[1] == 0]
        second = [p for p in pieces if p[3] and p[1] > 0]
        for group in (first, second):
            if not group:
                continue
            before = []
            for row, begin, _, continues in group:
                if not continues:
                    before.append(tuple(s[0] for s in fresh))
                else:
                    before.append(tuple(s[row] for s in state) if begin == 0 else ends[row, begin])
            packed = pack_sequence([x[row, begin:end] for row, begin, end, _ in group], enforce_sorted=False)
            y, after = self._call(packed, tuple(torch.stack(s) for s in zip(*before)))
            for index, ((row, begin, end, _), out) in enumerate(zip(group, unpack_sequence(y))):  # type: ignore[arg-type]
                outputs[row, begin] = out
                ends[row, end] = tuple(s[index] for s in after)
        y = torch.stack([torch.cat([outputs[r, b] for r, b, _, _ in pieces if r == row]) for row in range(batch)])
        last = [tuple(s[row] for s in state) if piece < 0 else ends[row, pieces[piece][2]]
                for row, piece in enumerate(finals)]
        return y, tuple(torch.stack(s) for s in zip(*last))


class RecurrentMixer(Mixer):
    """A recurrence of width `inner` (default: width), projected back to the model's width where they differ.

    recurrent_init: of the hidden-to-hidden weights, "orthogonal" or "uniform" (+-1/sqrt(inner), as torch does it).
    """

    module: Callable[..., nn.RNNBase]

    def __init__(self, width: int, inner: int | None = None, recurrent_init: str = "orthogonal") -> None:
        super().__init__(width)
        if recurrent_init not in ("orthogonal", "uniform"):
            raise SegueError(f"recurrent_init '{recurrent_init}' is unknown: choose orthogonal or uniform")
        inner = inner or width
        self.recurrence = self.make(width, inner)
        self.out = nn.Linear(inner, width, bias=False) if inner != width else nn.Identity()
        self.reset_parameters(inner, recurrent_init)

    def make(self, width: int, inner: int) -> Recurrence:
        return TorchRecurrence(self.module(width, inner, batch_first=True))

    def reset_parameters(self, inner: int, recurrent_init: str) -> None:
        for name, parameter in self.recurrence.named_parameters():
            if "bias" in name:
                nn.init.zeros_(parameter)
            elif "weight_hh" in name and recurrent_init == "orthogonal":
                for block in parameter.data.split(inner):
                    nn.init.orthogonal_(block)
            else:
                nn.init.uniform_(parameter, -(inner**-0.5), inner**-0.5)

    def parts(self, batch: int, like: Tensor, history: int) -> dict[str, Part]:
        return {"carry": Carry(self.recurrence, self.recurrence.initial(batch, like), history)}

    def run(self, x: Tensor, layout: Layout, parts: dict[str, Part] | None) -> Tensor:
        carry = None if parts is None else parts["carry"]
        return self.out(self.recurrence((x,), layout, carry))

    def lower(self, program: Program, source: View, into: View) -> None:
        cell = self.recurrence.module if isinstance(self.recurrence, TorchRecurrence) else None
        if not isinstance(cell, nn.LSTM | nn.GRU):
            return super().lower(program, source, into)
        into_gates, into_state, bias, state_bias = (cell.get_parameter(f"{name}_l0") for name in (
            "weight_ih", "weight_hh", "bias_ih", "bias_hh"))
        lstm = isinstance(cell, nn.LSTM)
        gates, y = program.register("gates", into_gates.shape[0]), program.register("y", cell.hidden_size)
        program.linear(source, gates, into_gates, bias + state_bias if lstm else bias)
        program.recur(gates, y, "lstm" if lstm else "gru", into_state, None if lstm else state_bias)
        if isinstance(self.out, nn.Linear):
            program.linear(y, into, self.out.weight, add=True)
        else:
            program.add(y, into)


class LSTM(RecurrentMixer):
    """Long short-term memory with a forget gate, whose bias begins at `forget_bias` (1: a half-life of many steps)."""

    module = nn.LSTM

    def __init__(self, width: int, inner: int | None = None, recurrent_init: str = "orthogonal",
                 forget_bias: float = 1.0) -> None:
        super().__init__(width, inner, recurrent_init)
        n = inner or width
        self.recurrence.get_parameter("module.bias_ih_l0").data[n : 2 * n] = forget_bias


class GRU(RecurrentMixer):
    """Gated recurrent unit; the reset gate acts on the projected state, as in torch."""

    module = nn.GRU


class Elman(RecurrentMixer):
    """The simple recurrent network: h_t = tanh(W x_t + U h_{t-1} + b)."""

    module = nn.RNN


class JordanRecurrence(SteppedRecurrence):
    """h_t = tanh(W x_t + U s_t + b), y_t = V h_t, s_{t+1} = decay s_t + y_t: the memory is what was put out."""

    def __init__(self, width: int, inner: int, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.weight_ih = nn.Parameter(torch.empty(inner, width))
        self.weight_hh = nn.Parameter(torch.empty(inner, width))
        self.bias = nn.Parameter(torch.empty(inner))
        self.weight_out = nn.Parameter(torch.empty(width, inner))

    def initial(self, batch: int, like: Tensor) -> Tensors:
        return (like.new_zeros(batch, self.weight_out.shape[0]),)

    def step(self, inputs: Tensors, state: Tensors) -> tuple[Tensor, Tensors]:
        h = torch.tanh(inputs[0] @ self.weight_ih.T + state[0] @ self.weight_hh.T + self.bias)
        y = h @ self.weight_out.T
        return y, (self.decay * state[0] + y,)


class Jordan(RecurrentMixer):
    """The output-feedback network. decay: of the context units' self-loop."""

    def __init__(self, width: int, inner: int | None = None, recurrent_init: str = "orthogonal",
                 decay: float = 0.5) -> None:
        self.decay = decay
        super().__init__(width, inner, recurrent_init)
        self.out = nn.Identity()  # the recurrence puts out the model's width already

    def make(self, width: int, inner: int) -> Recurrence:
        return JordanRecurrence(width, inner, self.decay)
