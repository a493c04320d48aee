"""Nonlinear recurrences: Jordan (1986) and Elman (1990) networks, LSTM (Hochreiter & Schmidhuber 1997, with the forget
gate of Gers et al. 2000) and GRU (Cho et al. 2014). Reference account: Lipton et al. 2015, arXiv 1506.00019."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segue.errors import SegueError, check_choice
from segue.kernels.rnn import CELLS, empty_state, recurrence, runs_compiled
from segue.mixers.base import Mixer
from segue.mixers.layout import Layout
from segue.mixers.state import Parts, Recurrence, SteppedRecurrence, Tensors

if TYPE_CHECKING:
    from segue.kernels.cpu.program import Program, View

KINDS: dict[type[nn.RNNBase], str] = {nn.LSTM: "lstm", nn.GRU: "gru", nn.RNN: "elman"}
"""Torch's modules as cells of `segue.kernels.rnn`."""


class TorchRecurrence(Recurrence):
    """Any of torch's fused recurrent modules (nn.LSTM, nn.GRU, nn.RNN; one layer, batch first) as a `Recurrence`. Where
    the kernels of `segue.kernels.rnn` are compiled it runs those instead: they can stop and reset anywhere, and are
    faster than all of torch's but the LSTM."""

    def __init__(self, module: nn.RNNBase) -> None:
        super().__init__()
        self.module = module

    def initial(self, batch: int, like: Tensor) -> Tensors:
        memories = 2 if isinstance(self.module, nn.LSTM) else 1
        return tuple(like.new_zeros(batch, self.module.hidden_size) for _ in range(memories))

    def _run_module(self, x: Tensor, state: Tensors) -> tuple[Tensor, Tensors]:
        if x.device.type == "cuda":
            # CuDNN autocasts to float16, whatever dtype autocast asks for. It keeps what backward needs in training
            # mode only, which changes nothing else here: one layer has no dropout.
            self.module.train(torch.is_grad_enabled())
            with torch.autocast("cuda", enabled=False):
                dtype = next(self.module.parameters()).dtype
                y, final = self._run_uncast(*(tensor.to(dtype) for tensor in (x, *state)))
                return y, tuple(new.to(old.dtype) for new, old in zip(final, state))
        return self._run_uncast(x, *state)

    def _run_uncast(self, x: Tensor, *state: Tensor) -> tuple[Tensor, Tensors]:
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
        whole = starts is None and lengths is None
        if runs_compiled(x) and not (whole and isinstance(self.module, nn.LSTM)):
            into_gates, into_state, bias, state_bias = module_weights(self.module)
            cell, units = KINDS[type(self.module)], self.module.hidden_size
            gates = F.linear(x, into_gates, bias).unflatten(-1, (1, -1, units))
            y, final = recurrence(cell, gates, into_state.view(1, -1, units, units), state_bias.view(1, -1, units),
                                  tuple(s[:, None] for s in state), starts, lengths)
            return y.flatten(2), tuple(s[:, 0] for s in final)
        return self._scan_in_pieces(x, state, starts, lengths)

    def _scan_in_pieces(self, x: Tensor, state: Tensors, starts: Tensor | None,
                        lengths: Tensor | None) -> tuple[Tensor, Tensors]:
        """`scan` by torch's kernels, which cannot stop or reset in the middle: the run is cut wherever a row does."""
        batch, n = x.shape[:2]
        cuts = set() if starts is None else set(torch.nonzero(starts.any(0))[:, 0].tolist())
        cuts |= set() if lengths is None else set(lengths.tolist())
        edges = [0, *sorted(cuts - {0, n}), n]
        initial, stopped, outputs = self.initial(batch, x), state, []
        for begin, end in zip(edges[:-1], edges[1:]):
            if lengths is not None:
                stopped = _select_rows(lengths == begin, state, stopped)
            if starts is not None and begin in cuts:
                state = _select_rows(starts[:, begin], initial, state)
            y, state = self._run_module(x[:, begin:end], state)
            outputs.append(y)
        final = state if lengths is None else _select_rows(lengths == n, state, stopped)
        return (torch.cat(outputs, 1) if len(outputs) > 1 else outputs[0]), final


def module_weights(module: nn.RNNBase) -> Tensors:
    """The input weights (G D, width), the recurrent weights (G D, D), and the bias of each (G D,), for G gates."""
    return tuple(getattr(module, f"{name}_l0") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))


def _select_rows(rows: Tensor, a: Tensors, b: Tensors) -> Tensors:
    return tuple(torch.where(rows[:, None], x, y) for x, y in zip(a, b))


class Headwise(Recurrence):
    """A cell of `segue.kernels.rnn` as N independent heads of D units (FlashRNN: Pöppel et al. 2024, arXiv 2412.07752).
    Inputs, already projected: (B, T, N, G, D) for G gates; state: tensors (B, N, D)."""

    learnable_tensors = (0, 1)  # the sLSTM's n, which it divides by, must stay above 0

    def __init__(self, cell: str, heads: int, width: int) -> None:
        super().__init__()
        self.cell, self.shape = cell, (heads, width)
        self.weight_hh = nn.Parameter(torch.zeros(heads, CELLS[cell].gates, width, width))
        self.bias_hh = nn.Parameter(torch.zeros(heads, CELLS[cell].gates, width))

    def initial(self, batch: int, like: Tensor) -> Tensors:
        return empty_state(self.cell, (batch, *self.shape), like)

    def learnable_initial(self, batch: int, like: Tensor) -> Tensors:
        # m = 0 too: the sLSTM's cell is stored in units of exp m, which an empty state has as 0.
        return tuple(torch.zeros_like(x) for x in self.initial(batch, like))

    def scan(self, inputs: Tensors, state: Tensors, starts: Tensor | None = None,
             lengths: Tensor | None = None) -> tuple[Tensor, Tensors]:
        y, final = recurrence(self.cell, inputs[0], self.weight_hh, self.bias_hh, state, starts, lengths)
        return y.flatten(2), final

    def lower(self, program: Program, source: View, into: nn.Linear) -> View:
        """Emit the projection `into` and the recurrence; returns the register of h. The rows of `into` are ordered head
        by head, those of the engine gate by gate."""
        rows = into.weight.unflatten(0, (self.shape[0], -1, self.shape[1])).transpose(0, 1).flatten(0, 2)
        bias = None if into.bias is None else into.bias.unflatten(0, (self.shape[0], -1, self.shape[1]))
        gates = program.register("gates", rows.shape[0])
        program.linear(source, gates, rows, None if bias is None else bias.transpose(0, 1).flatten())
        return self.lower_gates(program, gates)

    def lower_gates(self, program: Program, gates: View) -> View:
        y = program.register("y", self.shape[0] * self.shape[1])
        program.recur(gates, y, self.cell, self.weight_hh.flatten(1, 2), self.bias_hh.flatten(1), self.shape[0])
        return y


class RecurrentMixer(Mixer):
    """A recurrence of width `inner` (default: width), projected back to the model's width where they differ.

    recurrent_init: of the hidden-to-hidden weights, "orthogonal" or "uniform" (+-1/sqrt(inner), as torch does it).
    heads: number of independent parts of the state, faster the more there are; 1 (default) is torch's own module.
    """

    module: Callable[..., nn.RNNBase]

    def __init__(self, width: int, inner: int | None = None, recurrent_init: str = "orthogonal",
                 heads: int = 1) -> None:
        super().__init__(width)
        check_choice("recurrent_init", recurrent_init, ("orthogonal", "uniform"))
        inner = inner or width
        if heads < 1 or inner % heads:
            raise SegueError(f"a state of {inner} units cannot be {heads} heads: choose a divisor")
        self.into: nn.Linear | None = None  # projects to the gates of heads
        if heads == 1:
            self.recurrence = self.make_recurrence(width, inner)
        else:
            cell = KINDS[self.module]  # type: ignore[index]
            self.recurrence = Headwise(cell, heads, inner // heads)
            # Only a GRU needs a second bias: its reset gate lies between the two.
            self.into = nn.Linear(width, CELLS[cell].gates * inner, bias=cell == "gru")
        self.out = nn.Linear(inner, width, bias=False) if inner != width else nn.Identity()
        self.reset_parameters(inner, recurrent_init)

    def make_recurrence(self, width: int, inner: int) -> Recurrence:
        return TorchRecurrence(self.module(width, inner, batch_first=True))

    def reset_parameters(self, inner: int, recurrent_init: str) -> None:
        for name, parameter in self.named_parameters():
            if name.startswith("out."):
                continue
            if "bias" in name:
                nn.init.zeros_(parameter)
            elif "weight_hh" in name and recurrent_init == "orthogonal":
                for block in parameter.data.flatten(0, -2).split(parameter.shape[-1]):  # one per head and gate
                    nn.init.orthogonal_(block)
            else:
                nn.init.uniform_(parameter, -(inner**-0.5), inner**-0.5)

    def run(self, x: Tensor, layout: Layout, parts: Parts) -> Tensor:
        if isinstance(self.recurrence, Headwise) and self.into is not None:
            heads, units = self.recurrence.shape
            x = self.into(x).unflatten(-1, (heads, -1, units))
        return self.out(self.recurrence((x,), layout, parts.get("recurrence")))

    def lower(self, program: Program, source: View, into: View) -> None:
        if isinstance(self.recurrence, Headwise) and isinstance(self.into, nn.Linear):
            y = self.recurrence.lower(program, source, self.into)
        elif isinstance(self.recurrence, TorchRecurrence):
            y = self._lower_module(program, source, self.recurrence.module)
        else:
            return super().lower(program, source, into)
        if isinstance(self.out, nn.Linear):
            program.linear(y, into, self.out.weight, add=True)
        else:
            program.add(y, into)

    @staticmethod
    def _lower_module(program: Program, source: View, cell: nn.RNNBase) -> View:
        into_gates, into_state, bias, state_bias = module_weights(cell)
        gates, y = program.register("gates", into_gates.shape[0]), program.register("y", cell.hidden_size)
        program.linear(source, gates, into_gates, bias)
        program.recur(gates, y, KINDS[type(cell)], into_state, state_bias)
        return y


class PeepholeRecurrence(SteppedRecurrence):
    """LSTM with diagonal peephole connections: the input and forget gates read the previous cell, the output gate the
    new one (Gers & Schmidhuber 2000). Gates i, f, g, o as in torch. State: h, c, each (B, inner)."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.weight_ih = nn.Parameter(torch.empty(4 * inner, width))
        self.weight_hh = nn.Parameter(torch.empty(4 * inner, inner))
        self.bias = nn.Parameter(torch.empty(4 * inner))
        self.peepholes = nn.Parameter(torch.empty(3, inner))  # of i, f and o

    def initial(self, batch: int, like: Tensor) -> Tensors:
        return tuple(like.new_zeros(batch, self.peepholes.shape[1]) for _ in range(2))

    def step(self, inputs: Tensors, state: Tensors) -> tuple[Tensor, Tensors]:
        h, c = state
        peephole_i, peephole_f, peephole_o = self.peepholes
        i, f, g, o = (F.linear(inputs[0], self.weight_ih, self.bias) + F.linear(h, self.weight_hh)).chunk(4, -1)
        c = torch.sigmoid(f + peephole_f * c) * c + torch.sigmoid(i + peephole_i * c) * torch.tanh(g)
        h = torch.sigmoid(o + peephole_o * c) * torch.tanh(c)
        return h, tuple(new.to(old.dtype) for new, old in zip((h, c), state))  # autocast gives others


class LSTM(RecurrentMixer):
    """Long short-term memory with a forget gate, whose bias is initialised to `forget_bias` (1: a half-life of two
    steps). peepholes: gates read the cell too; runs as a plain loop, and needs heads = 1."""

    module = nn.LSTM

    def __init__(self, width: int, inner: int | None = None, recurrent_init: str = "orthogonal",
                 forget_bias: float = 1.0, heads: int = 1, peepholes: bool = False) -> None:
        if peepholes and heads > 1:
            raise SegueError(f"peepholes with {heads} heads: leave one of them out")
        self.peepholes = peepholes
        super().__init__(width, inner, recurrent_init, heads)
        if isinstance(self.recurrence, Headwise):
            self.recurrence.bias_hh.data[:, 1] = forget_bias
        else:
            n, bias = inner or width, "bias" if peepholes else "module.bias_ih_l0"
            self.recurrence.get_parameter(bias).data[n : 2 * n] = forget_bias

    def make_recurrence(self, width: int, inner: int) -> Recurrence:
        return PeepholeRecurrence(width, inner) if self.peepholes else super().make_recurrence(width, inner)


class GRU(RecurrentMixer):
    """Gated recurrent unit; the reset gate acts on the projected state, as in torch."""

    module = nn.GRU


class Elman(RecurrentMixer):
    """The simple recurrent network: h_t = tanh(W x_t + U h_{t-1} + b)."""

    module = nn.RNN


class JordanRecurrence(SteppedRecurrence):
    """h_t = tanh(W x_t + U s_t + b), y_t = V h_t, s_{t+1} = decay s_t + y_t: the state is a decaying sum of outputs."""

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
        self.out = nn.Identity()  # the recurrence outputs the model's width already

    def make_recurrence(self, width: int, inner: int) -> Recurrence:
        return JordanRecurrence(width, inner, self.decay)

    def lower(self, program: Program, source: View, into: View) -> None:
        cell = self.recurrence
        assert isinstance(cell, JordanRecurrence)
        gates, y = (program.register(name, len(cell.bias)) for name in ("gates", "y"))
        program.linear(source, gates, cell.weight_ih, cell.bias)
        # U s is a decaying sum of U V h over past h, so the engine keeps that instead of s.
        program.recur(gates, y, "jordan", cell.weight_hh @ cell.weight_out, None, decay=cell.decay)
        program.linear(y, into, cell.weight_out, add=True)
