"""Head-wise nonlinear recurrences: Elman, LSTM, GRU and sLSTM cells whose recurrent weights are block-diagonal over
heads (FlashRNN: Pöppel, Beck & Hochreiter 2024, arXiv 2412.07752; sLSTM: Beck et al. 2024, arXiv 2405.04517).

All cells share one interface: their gates are functions of inputs that were projected beforehand, for all steps at
once, and of R h + b of the previous state. On a CPU, in float32 and float64, long sequences take compiled loops
(`segue.kernels.cpu.rnn`), on a GPU Triton kernels (`segue.kernels.triton.rnn`); everything else takes the plain loop
here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from segue.errors import check_choice
from segue.kernels.compiled import as_array, has_triton, runs_compiled
from segue.kernels.tiles import tiles_for

Tensors = tuple[Tensor, ...]
EMPTY = -1e30
"""The stabiliser of an empty sLSTM cell: below any input, so that its first input has weight exp(0)."""


def _elman(x: Tensor, g: Tensor, state: Tensors) -> Tensors:
    return (torch.tanh(x[..., 0, :] + g[..., 0, :]),)


def _lstm(x: Tensor, g: Tensor, state: Tensors) -> Tensors:
    i, f, z, o = (x + g).unbind(-2)
    c = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(z)
    return torch.sigmoid(o) * torch.tanh(c), c


def _gru(x: Tensor, g: Tensor, state: Tensors) -> Tensors:
    r, z = torch.sigmoid(x[..., :2, :] + g[..., :2, :]).unbind(-2)
    n = torch.tanh(x[..., 2, :] + r * g[..., 2, :])
    return (n + z * (state[0] - n),)


def _slstm(x: Tensor, g: Tensor, state: Tensors) -> Tensors:
    i, f, z, o = (x + g).unbind(-2)
    _, c, n, m = state
    kept = F.logsigmoid(f) + m
    m = torch.maximum(kept, i)
    i, f = (i - m).exp(), (kept - m).exp()
    c, n = f * c + i * torch.tanh(z), f * n + i
    return torch.sigmoid(o) * c / n, c, n, m


@dataclass(frozen=True)
class Cell:
    """A cell of a recurrence.

    gates: G, parts of its input. states: how many tensors its state has, of which the first, h, is its output. parts:
        numbers per unit and step that a fused backward pass needs: the gates after their nonlinearities (for "gru", R h
        + b of n before n; for "slstm", sigmoid(f) after the rest), c, n, h. code: its number in compiled code.
    step: inputs x (..., N, G, D), g = R h + b of the same shape, and the state -> the next state.
    """

    gates: int
    states: int
    parts: int
    code: int
    step: Callable[[Tensor, Tensor, Tensors], Tensors]


CELLS: dict[str, Cell] = {
    "elman": Cell(1, 1, 1, 0, _elman),  # h = tanh(g)
    "lstm": Cell(4, 2, 6, 1, _lstm),  # gates i, f, z, o; states h, c
    "gru": Cell(3, 1, 5, 2, _gru),  # gates r, z, n, of which r weighs R h + b of n, as in torch
    "slstm": Cell(4, 4, 8, 3, _slstm),  # gates i, f, z, o, of which i is exponential; states h, c, n, m
}


def empty_state(cell: str, shape: tuple[int, ...], like: Tensor) -> Tensors:
    """The state before the first step: tensors of `shape` (B, N, D)."""
    state = tuple(like.new_zeros(shape) for _ in range(CELLS[cell].states))
    return (*state[:3], torch.full_like(state[3], EMPTY)) if cell == "slstm" else state


def recurrence_reference(cell: str, x: Tensor, weight: Tensor, bias: Tensor, state: Tensors,
                         starts: Tensor | None = None, lengths: Tensor | None = None) -> tuple[Tensor, Tensors]:
    """The plain loop over time.

    cell: see CELLS. x: (B, T, N, G, D), N heads of D units. weight: (N, G, D, D), [head, gate, out, in]. bias:
    (N, G, D). state: tensors (B, N, D). starts: (B, T) bool, the state is empty again before these. lengths: (B,), the
    returned state is the one after so many steps. Returns all h (B, T, N, D) and the state.
    """
    run, transposed = CELLS[cell].step, weight.flatten(1, 2).transpose(1, 2)
    empty, wanted, outputs = empty_state(cell, tuple(state[0].shape), state[0]), state, []
    for t, now in enumerate(x.unbind(1)):  # taken apart at once: the gradient of x[:, t] would be all of x, every step
        if starts is not None:
            state = tuple(torch.where(starts[:, t, None, None], e, s) for e, s in zip(empty, state))
        g = (state[0].transpose(0, 1) @ transposed).transpose(0, 1).unflatten(2, weight.shape[1:3]) + bias
        state = run(now, g, state)
        outputs.append(state[0])
        wanted = state if lengths is None else tuple(
            torch.where((t < lengths)[:, None, None], s, w) for s, w in zip(state, wanted))
    return (torch.stack(outputs, 1) if outputs else x[:, :, :, 0]), wanted


def recurrence(cell: str, x: Tensor, weight: Tensor, bias: Tensor, state: Tensors, starts: Tensor | None = None,
               lengths: Tensor | None = None) -> tuple[Tensor, Tensors]:
    """As `recurrence_reference`, with all steps in one compiled call where possible.

    Computed in float32 at least, since a recurrence in bfloat16 drifts; h has the dtype of x, the state keeps its own.
    """
    check_choice("cell", cell, CELLS)
    kind, kinds = x.dtype, tuple(s.dtype for s in state)
    wide = torch.promote_types(torch.promote_types(kind, weight.dtype), torch.promote_types(kinds[0], torch.float32))
    x, weight, bias = (y.to(wide) for y in (x, weight, bias))
    state = tuple(s.to(wide) for s in state)
    if runs_compiled(x) or _on_gpu(x):
        batch, length = x.shape[:2]
        if starts is None:
            starts = torch.zeros(batch, 0, dtype=torch.bool, device=x.device)
        if lengths is None:
            lengths = torch.full((batch,), length, device=x.device)
        y, last, _ = _Recurrence.apply(cell, x, weight, bias, torch.stack(state), starts, lengths,
                                       torch.is_grad_enabled())
        final = last.unbind(0)
    else:
        y, final = recurrence_reference(cell, x, weight, bias, state, starts, lengths)
    return y.to(kind), tuple(s.to(dtype) for s, dtype in zip(final, kinds))


def _on_gpu(x: Tensor) -> bool:
    """Whether the Triton kernels support it: they hold the weights on chip, so heads are small powers of two."""
    if x.device.type != "cuda" or x.dtype != torch.float32 or not x.numel() or torch.compiler.is_compiling():
        return False
    widths = (16, 32, 64) if torch.backends.cudnn.allow_tf32 else (16, 32)  # exact products hold three parts
    return x.shape[-1] in widths and has_triton()


class _Recurrence(torch.autograd.Function):
    """The fused kernels. state: (S, B, N, D). Returns h, the last state, and what backward needs of each step."""

    @staticmethod
    def forward(cell: str, x: Tensor, weight: Tensor, bias: Tensor, state: Tensor, starts: Tensor, lengths: Tensor,
                learning: bool) -> Tensors:
        return _kernels(x)[0](CELLS[cell], x, weight, bias, state, starts, lengths, learning)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(output[2])
        ctx.set_materialize_grads(False)  # or there would be zeros for all that was kept
        ctx.cell, ctx.shape = CELLS[inputs[0]], output[0].shape
        ctx.save_for_backward(inputs[2], *inputs[4:7], output[2])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor | None, dfinal: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # once: checkpointing gives them but one time
        state = saved[1]
        dfinal = torch.zeros_like(state) if dfinal is None else dfinal
        dy = state.new_zeros(ctx.shape) if dy is None else dy
        return (None, *_kernels(dy)[1](ctx.cell, *saved, dy, dfinal), None, None, None)


def _kernels(x: Tensor) -> tuple[Callable[..., Tensors], Callable[..., Tensors]]:
    """The forward and backward functions for the device of x."""
    if x.device.type == "cpu":
        return _forward, _backward
    from segue.kernels.triton import rnn

    return rnn.forward, rnn.backward


def _pack(matrix: Tensor, tile: int) -> Tensor:
    """(N, K, Q) -> (N, Q / tile, K, tile)."""
    return matrix.unflatten(2, (-1, tile)).transpose(1, 2).contiguous()


def _forward(cell: Cell, x: Tensor, weight: Tensor, bias: Tensor, state: Tensor, starts: Tensor, lengths: Tensor,
             learning: bool) -> Tensors:
    from segue.kernels.cpu import rnn, threads
    from segue.kernels.cpu.buffers import pooled_empty

    batch, length, heads, gates, width = x.shape
    plan = tiles_for(x.dtype, gates, width)
    rest, tasks = -width % plan.lanes, heads * -(-batch // plan.rows)
    y, final = pooled_empty(x, batch, length, heads, width), x.new_empty(state.shape)
    kept = pooled_empty(x, tasks, length if learning else 0, cell.parts, plan.rows * (width + rest))
    packed = _pack(F.pad(weight.detach(), (0, 0, 0, rest)).flatten(1, 2).transpose(1, 2), plan.across * plan.lanes)
    biases = F.pad(bias.detach(), (0, rest)).flatten(1)
    threads.parallel_for(rnn.forward, tasks, cell.code, plan.rows, plan.across, width + rest,
                         *map(as_array, (x, packed, biases, starts, lengths, state)),
                         *(z.numpy() for z in (y, kept, final)))
    return y, final, kept


def _backward(cell: Cell, weight: Tensor, state: Tensor, starts: Tensor, lengths: Tensor, kept: Tensor, dy: Tensor,
              dfinal: Tensor) -> Tensors:
    from segue.kernels.cpu import rnn, threads
    from segue.kernels.cpu.buffers import pooled_empty

    (batch, length), (heads, gates, width) = dy.shape[:2], weight.shape[:3]
    plan = tiles_for(dy.dtype, gates, width)
    rest, blocks = -width % plan.lanes, -(-batch // plan.rows)
    dx, dstate = pooled_empty(dy, batch, length, heads, gates, width), dy.new_empty(state.shape)
    dweight = dy.new_zeros(blocks, heads, gates, width, width + rest)
    dbias = dy.new_zeros(blocks, heads, gates, width)
    packed = _pack(F.pad(weight, (0, rest)).flatten(1, 2), plan.panels * plan.lanes)
    threads.parallel_for(rnn.backward, heads * blocks, cell.code, plan.rows, plan.panels, width + rest, plan.span,
                         *map(as_array, (packed, starts, lengths, state, kept, dy, dfinal)),
                         *(z.numpy() for z in (dx, dweight, dbias, dstate)))
    return dx, dweight.sum(0)[..., :width], dbias.sum(0), dstate
