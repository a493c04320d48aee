"""Scans: the linear scan h_t = a_t * h_{t-1} + b_t, diagonal, real or complex; the selective scan; and the diagonal
scan, with constant complex decays and its output computed in the same pass.

They serve all diagonal state-space models and gated linear recurrences. They do not work in log space, so a = 0 (a
reset) and a < 0 (parity) are ordinary values. On a CPU, in float32 and float64 and their complex kinds, long sequences
take compiled loops (`segue.kernels.cpu.scan`), and on a GPU the selective scan and the real linear one take Triton
kernels (`segue.kernels.triton.scan`); everything else takes the plain torch forms here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from segue.kernels.compiled import as_array, as_flat, as_mask, has_triton, runs_compiled


def linear_scan_reference(a: Tensor, b: Tensor, initial: Tensor, starts: Tensor | None = None) -> Tensor:
    """The naive loop. a: (B or 1, T or 1, ...), real or complex. b: (B, T, ...). initial: (B, ...). starts: (B, T) bool
    or None, the state is zero before these. Returns all states (B, T, ...)."""
    a, states, h = a.expand(b.shape), [], initial
    for t in range(b.shape[1]):
        if starts is not None:
            h = h * ~starts[:, t].view(-1, *[1] * (h.dim() - 1))
        h = a[:, t] * h + b[:, t]
        states.append(h)
    return torch.stack(states, 1) if states else b


def linear_scan(a: Tensor, b: Tensor, initial: Tensor, starts: Tensor | None = None) -> Tensor:
    """As `linear_scan_reference`: compiled where possible, else in about log2(T) passes over the data.

    Elements (a, b) compose as (a2 * a1, a2 * b1 + b2); each pass composes every element with the one 2^i before it.
    A start is an element whose a is zero.
    """
    if b.shape[1] == 0:
        return b
    if runs_compiled(b, a, initial, complex_too=True) or _on_gpu(b, a, initial):
        return _LinearScan.apply(a, b, initial, as_mask(b, starts))
    a = a.expand(b.shape)
    if starts is not None:
        a = a.masked_fill(starts.view(*starts.shape, *[1] * (a.dim() - 2)), 0.0)
    b = torch.cat([(a[:, :1] * initial[:, None] + b[:, :1]), b[:, 1:]], 1)
    step = 1
    while step < a.shape[1]:
        b = torch.cat([b[:, :step], a[:, step:] * b[:, :-step] + b[:, step:]], 1)
        a = torch.cat([a[:, :step], a[:, step:] * a[:, :-step]], 1)
        step *= 2
    return b


def selective_scan_reference(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, state: Tensor,
                             starts: Tensor | None = None, low: float = 0.0) -> tuple[Tensor, Tensor]:
    """h_t = a_t h_{t-1} + dt_t u_t B_t, y_t = h_t C_t + D u_t, in torch (Gu & Dao 2023, arXiv 2312.00752), with a_t =
    exp(dt_t A) spread over `low` to 1: low + (1 - low) exp(dt_t A), where -1 tracks states (arXiv 2411.12537).

    u, dt: (B, T, I). A: (I, S). B, C: (B, T, S). D: (I,). state: (B, I, S). starts: (B, T) bool, the state is zero
    before these. Returns y (B, T, I) and the last state (B, I, S).
    """
    factors = low + (1 - low) * (dt[..., None] * A).exp()
    h = linear_scan(factors, (dt * u)[..., None] * B[:, :, None], state, starts)
    return (h * C[:, :, None]).sum(-1) + D * u, (h[:, -1] if h.shape[1] else state)


def selective_scan(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, state: Tensor,
                   starts: Tensor | None = None, low: float = 0.0) -> tuple[Tensor, Tensor]:
    """As `selective_scan_reference`; where it is compiled, the states (B, T, I, S) are never all in memory.

    Computed in float32 at least, since decays near one do not survive bfloat16; y has the dtype of u, the last state
    that of `state`.
    """
    kind, kept = u.dtype, state.dtype
    wide = torch.promote_types(kind, torch.promote_types(kept, torch.float32))
    u, dt, A, B, C, D, state = (x.to(wide) for x in (u, dt, A, B, C, D, state))
    if not (runs_compiled(u) or _on_gpu(u)):
        y, final = selective_scan_reference(u, dt, A, B, C, D, state, starts, low)
    else:
        y, final, _ = _SelectiveScan.apply(u, dt, A.T, B, C, D, state.transpose(1, 2), as_mask(u, starts), low,
                                           torch.is_grad_enabled())
        final = final.transpose(1, 2)
    return y.to(kind), final.to(kept)


def _on_gpu(x: Tensor, *others: Tensor) -> bool:
    """Whether the Triton kernels support it; a single step is faster in torch."""
    return (x.device.type == "cuda" and x.dtype in (torch.float32, torch.float64) and x.shape[1] > 1 and x.numel() > 0
            and all(y.dtype == x.dtype for y in others) and not torch.compiler.is_compiling()
            and has_triton())


def diagonal_scan_reference(u: Tensor, decay: Tensor, weights: Tensor, state: Tensor, starts: Tensor | None = None,
                            lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """h_t = decay h_{t-1} + u_t, y_t = Re sum_n weights h_t, N complex numbers h a channel, in torch.

    u: (B, T, H). decay, weights: (2, N, H), real and imaginary parts, as those of state: (B, 2, N, H). starts: (B, T)
    bool, the state is zero before these. lengths: (B,), how many nodes each row has (default T): the outputs after them
    say nothing. Returns y (B, T, H) and the last state (B, 2, N, H).
    """
    a, w, h = torch.complex(*decay), torch.complex(*weights), torch.complex(*state.unbind(1))
    a = a.expand(*u.shape[:2], *a.shape)
    if lengths is not None:
        over = torch.arange(u.shape[1], device=u.device) >= lengths[:, None]
        a, u = a.masked_fill(over[..., None, None], 1.0), u.masked_fill(over[..., None], 0.0)
        starts = None if starts is None else starts & ~over
    every = linear_scan(a, u[:, :, None].to(a.dtype).expand(a.shape), h, starts)
    final = every[:, -1] if every.shape[1] else h
    return (every * w).sum(2).real, torch.stack([final.real, final.imag], 1)


def diagonal_scan(u: Tensor, decay: Tensor, weights: Tensor, state: Tensor, starts: Tensor | None = None,
                  lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """As `diagonal_scan_reference`; where it is compiled, the states (B, T, N, H) are never all in memory.

    Computed in float32 at least; y has the dtype of u, the last state that of `state`.
    """
    kind, kept = u.dtype, state.dtype
    wide = torch.promote_types(kind, torch.promote_types(kept, torch.float32))
    u, decay, weights, state = (x.to(wide) for x in (u, decay, weights, state))
    if not runs_compiled(u):
        y, final = diagonal_scan_reference(u, decay, weights, state, starts, lengths)
    else:
        ends = torch.full(u.shape[:1], u.shape[1]) if lengths is None else lengths
        y, final, _ = _DiagonalScan.apply(u, decay, weights, state, as_mask(u, starts), ends, torch.is_grad_enabled())
    return y.to(kind), final.to(kept)


def diagonal_kernel(decay: Tensor, weights: Tensor, length: int) -> Tensor:
    """(L, H): the impulse response of `diagonal_scan`, Re sum_n weights decay^l (a Vandermonde product)."""
    one = F.pad(decay.new_ones(1, 1, decay.shape[2]), (0, 0, 0, length - 1))
    if runs_compiled(one):
        return diagonal_scan(one, decay, weights, decay.new_zeros(1, *decay.shape))[0][0]
    a, powers = torch.complex(*decay), torch.complex(*weights)[None]
    while powers.shape[0] < length:  # all powers there are, times the next one: log2(L) products
        powers, a = torch.cat([powers, a * powers]), a * a
    return powers[:length].sum(1).real


class _LinearScan(torch.autograd.Function):
    @staticmethod
    def forward(a: Tensor, b: Tensor, initial: Tensor, starts: Tensor) -> Tensor:
        return _linear(b)[0](a, b, initial, starts)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], *inputs[2:], output)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        a, *rest = ctx.saved_tensors
        da, db, dinitial = _linear(grad)[1](a, *rest, grad)
        return da.sum_to_size(a.shape), db, dinitial, None


def _linear(x: Tensor) -> tuple[Callable[..., Tensor], Callable[..., tuple[Tensor, ...]]]:
    """The forward and backward functions for the device of x."""
    if x.device.type == "cpu":
        return _linear_forward, _linear_backward
    from segue.kernels.triton import scan

    return scan.linear, scan.linear_backward


def _linear_forward(a: Tensor, b: Tensor, initial: Tensor, starts: Tensor) -> Tensor:
    from segue.kernels.cpu import scan, threads

    states = torch.empty(b.shape, dtype=b.dtype)
    # One row is cut into its channels only by the vector unit: a batch is what the threads share.
    threads.parallel_for(scan.linear, len(b), *map(as_flat, (a, b)), as_array(initial).reshape(len(b), -1),
                         as_array(starts), as_flat(states))
    return states


def _linear_backward(a: Tensor, initial: Tensor, starts: Tensor, states: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
    from segue.kernels.cpu import scan, threads

    rows = len(grad)
    da = torch.zeros(rows, *a.shape[1:], dtype=a.dtype)
    db, dinitial = torch.empty(grad.shape, dtype=a.dtype), torch.empty(initial.shape, dtype=a.dtype)
    threads.parallel_for(scan.linear_backward, rows, as_flat(a), as_array(initial).reshape(rows, -1), as_array(starts),
                         *map(as_flat, (states, grad, da, db)), dinitial.numpy().reshape(rows, -1))
    return da, db, dinitial


class _SelectiveScan(torch.autograd.Function):
    """Inputs as of the compiled form: A (S, I), state (B, S, I); gives the states that were kept, too."""

    @staticmethod
    def forward(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, state: Tensor, starts: Tensor,
                low: float, learning: bool) -> tuple[Tensor, ...]:
        return _selective(u)[0](u, dt, A, B, C, D, state, starts, low, learning)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(output[2])
        ctx.set_materialize_grads(True)
        ctx.save_for_backward(*inputs[:6], inputs[7], output[2])
        ctx.low = inputs[8]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor, dfinal: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        du, ddt, dA, dB, dC, dstate = _selective(dy)[1](*saved, dy, dfinal, ctx.low)
        return du, ddt, dA, dB, dC, (dy * saved[0]).sum((0, 1)), dstate, None, None, None


def _selective(x: Tensor) -> tuple[Callable[..., tuple[Tensor, ...]], Callable[..., tuple[Tensor, ...]]]:
    """The forward and backward functions for the device of x."""
    if x.device.type == "cpu":
        return _selective_forward, _selective_backward
    from segue.kernels.triton import scan

    return scan.forward, scan.backward


def _selective_forward(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, state: Tensor, starts: Tensor,
                       low: float, learning: bool) -> tuple[Tensor, Tensor, Tensor]:
    from segue.kernels.cpu import scan, threads

    rows, length, inner = u.shape
    y, final = torch.empty_like(u, memory_format=torch.contiguous_format), u.new_empty(rows, A.shape[0], inner)
    kept = u.new_empty(rows, -(-length // scan.SPAN) if learning else 0, A.shape[0], inner)
    threads.parallel_for(scan.selective, rows * -(-inner // scan.WIDE),
                         *map(as_array, (u, dt, A, B, C, D, starts, state)), low, y.numpy(), final.numpy(),
                         kept.numpy())
    return y, final, kept


def _selective_backward(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, starts: Tensor, kept: Tensor,
                        dy: Tensor, dfinal: Tensor, low: float) -> tuple[Tensor, ...]:
    from segue.kernels.cpu import scan, threads

    (rows, length, inner), states = u.shape, A.shape[0]
    blocks = -(-inner // scan.WIDE)
    du, ddt = (torch.empty(u.shape, dtype=u.dtype) for _ in range(2))
    dA, dstate = (u.new_empty(rows, states, inner) for _ in range(2))
    dB, dC = (u.new_empty(blocks, rows, length, states) for _ in range(2))
    threads.parallel_for(scan.selective_backward, rows * blocks,
                         *map(as_array, (u, dt, A, B, C, D, starts, kept, dy, dfinal)), low,
                         *(x.numpy() for x in (du, ddt, dA, dB, dC, dstate)))
    return du, ddt, dA.sum(0), dB.sum(0), dC.sum(0), dstate


class _DiagonalScan(torch.autograd.Function):
    @staticmethod
    def forward(u: Tensor, decay: Tensor, weights: Tensor, state: Tensor, starts: Tensor, lengths: Tensor,
                learning: bool) -> tuple[Tensor, Tensor, Tensor]:
        from segue.kernels.cpu import scan, threads

        rows, length, width = u.shape
        y, final = u.new_zeros(u.shape), u.new_empty(rows, *decay.shape)
        kept = u.new_empty(rows, -(-length // scan.SPAN) if learning else 0, *decay.shape)
        threads.parallel_for(scan.diagonal, rows * -(-width // scan.WIDE),
                             *map(as_array, (u, decay, weights, starts, lengths, state)),
                             *(x.numpy() for x in (y, final, kept)))
        return y, final, kept

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(output[2])
        ctx.save_for_backward(*inputs[:3], *inputs[4:6], output[2])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor, dfinal: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        from segue.kernels.cpu import scan, threads

        u, decay, weights, starts, lengths, kept = ctx.saved_tensors
        du = u.new_zeros(u.shape)
        ddecay, dweights, dstate = (u.new_empty(u.shape[0], *decay.shape) for _ in range(3))
        threads.parallel_for(scan.diagonal_backward, u.shape[0] * -(-u.shape[2] // scan.WIDE),
                             *map(as_array, (u, decay, weights, starts, lengths, kept, dy, dfinal)),
                             *(x.numpy() for x in (du, ddecay, dweights, dstate)))
        return du, ddecay.sum(0), dweights.sum(0), dstate, None, None, None
