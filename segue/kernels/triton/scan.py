"""The real linear scan and the selective scan in Triton, forward and backward: one program runs all steps of a few
channels of one row, with their states in registers. Going back, the selective scan runs each span of steps anew from
the state before it, which was kept.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

SPAN = 64  # steps between two states that are kept
WIDE = 32  # channels of a program of the selective scan
LANES = 64  # of the linear one


@triton.jit
def _linear(a, b, initial, starts, states, length, width, WIDE: tl.constexpr, STARTS: tl.constexpr):
    row, channel = tl.program_id(0).to(tl.int64), tl.program_id(1) * WIDE + tl.arange(0, WIDE)
    live = channel < width
    h = tl.load(initial + row * width + channel, live, 0.0)
    for t in range(length):
        at = (row * length + t) * width + channel
        if STARTS:
            h = tl.where(tl.load(starts + row * length + t) != 0, 0.0, h)
        h = tl.load(a + at, live, 0.0) * h + tl.load(b + at, live, 0.0)
        tl.store(states + at, h, live)


@triton.jit
def _linear_backward(a, initial, starts, states, grad, da, db, dinitial, length, width, WIDE: tl.constexpr,
                     STARTS: tl.constexpr):
    row, channel = tl.program_id(0).to(tl.int64), tl.program_id(1) * WIDE + tl.arange(0, WIDE)
    live = channel < width
    first = tl.load(initial + row * width + channel, live, 0.0)
    dh = first * 0
    for i in range(length):
        t = length - 1 - i
        at = (row * length + t) * width + channel
        dh += tl.load(grad + at, live, 0.0)
        last = tl.load(states + at - width, live & (t > 0), 0.0)
        last = tl.where(t > 0, last, first)
        tl.store(db + at, dh, live)
        if STARTS:
            fresh = tl.load(starts + row * length + t) != 0
            tl.store(da + at, tl.where(fresh, 0.0, dh * last), live)
            dh = tl.where(fresh, 0.0, dh * tl.load(a + at, live, 0.0))
        else:
            tl.store(da + at, dh * last, live)
            dh = dh * tl.load(a + at, live, 0.0)
    tl.store(dinitial + row * width + channel, dh, live)


@triton.jit
def _forward(u, dt, A, B, C, D, starts, state, y, final, kept, length, inner, states, spans, low, S: tl.constexpr,
             WIDE: tl.constexpr, SPAN: tl.constexpr, KEEP: tl.constexpr, STARTS: tl.constexpr):
    row, channel, one = tl.program_id(0).to(tl.int64), tl.program_id(1) * WIDE + tl.arange(0, WIDE), tl.arange(0, S)
    live, some = channel < inner, one < states
    both = some[:, None] & live[None, :]
    at = one[:, None] * inner + channel[None, :]  # in a state (S, I)
    a, skip = tl.load(A + at, both, 0.0), tl.load(D + channel, live, 0.0)
    h = tl.load(state + row * states * inner + at, both, 0.0)
    for t in range(length):
        place = row * length + t
        if KEEP:
            tl.store(kept + (row * spans + t // SPAN) * states * inner + at, h, both & (t % SPAN == 0))
        x, step = tl.load(u + place * inner + channel, live, 0.0), tl.load(dt + place * inner + channel, live, 0.0)
        b, c = tl.load(B + place * states + one, some, 0.0), tl.load(C + place * states + one, some, 0.0)
        factor = low + (1 - low) * tl.exp(step[None, :] * a)
        if STARTS:
            factor = tl.where(tl.load(starts + place) != 0, 0.0, factor)
        h = factor * h + (step * x)[None, :] * b[:, None]
        tl.store(y + place * inner + channel, tl.sum(h * c[:, None], 0) + skip * x, live)
    tl.store(final + row * states * inner + at, h, both)


@triton.jit
def _backward(u, dt, A, B, C, D, starts, kept, dy, dfinal, span, du, ddt, dA, dB, dC, dstate, length, inner, states,
              spans, low, S: tl.constexpr, WIDE: tl.constexpr, SPAN: tl.constexpr, STARTS: tl.constexpr):
    row, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    channel, one = block * WIDE + tl.arange(0, WIDE), tl.arange(0, S)
    live, some = channel < inner, one < states
    both = some[:, None] & live[None, :]
    at = one[:, None] * inner + channel[None, :]
    # The states before each step of a span: (SPAN, S, WIDE) of its own for each program.
    mine = span + (row * tl.num_programs(1) + block) * (SPAN * S * WIDE)
    mine += one[:, None] * WIDE + tl.arange(0, WIDE)[None, :]
    shared = (block * tl.num_programs(0).to(tl.int64) + row) * length * states + one  # in dB and dC (blocks, B, T, S)
    a, skip = tl.load(A + at, both, 0.0), tl.load(D + channel, live, 0.0)
    dh = tl.load(dfinal + row * states * inner + at, both, 0.0)
    da = a * 0
    for i in range(spans):
        begin = (spans - 1 - i) * SPAN
        end = tl.minimum(begin + SPAN, length)
        h = tl.load(kept + (row * spans + spans - 1 - i) * states * inner + at, both, 0.0)
        tl.debug_barrier()  # nobody still reads the span before
        for t in range(begin, end):
            place = row * length + t
            if STARTS:
                h = tl.where(tl.load(starts + place) != 0, 0.0, h)
            tl.store(mine + (t - begin) * S * WIDE, h)
            x, step = tl.load(u + place * inner + channel, live, 0.0), tl.load(dt + place * inner + channel, live, 0.0)
            b = tl.load(B + place * states + one, some, 0.0)
            h = (low + (1 - low) * tl.exp(step[None, :] * a)) * h + (step * x)[None, :] * b[:, None]
        tl.debug_barrier()  # all of it is written
        for j in range(end - begin):
            now = end - 1 - j
            place = row * length + now
            last = tl.load(mine + (now - begin) * S * WIDE)
            x, step = tl.load(u + place * inner + channel, live, 0.0), tl.load(dt + place * inner + channel, live, 0.0)
            b, c = tl.load(B + place * states + one, some, 0.0), tl.load(C + place * states + one, some, 0.0)
            given = tl.load(dy + place * inner + channel, live, 0.0)
            decay = (1 - low) * tl.exp(step[None, :] * a)
            h = (low + decay) * last + (step * x)[None, :] * b[:, None]
            tl.store(dC + shared + now * states, tl.sum(h * given[None, :], 1), some)
            dh += c[:, None] * given[None, :]
            tl.store(dB + shared + now * states, tl.sum(dh * (step * x)[None, :], 1), some)
            written, slope = tl.sum(dh * b[:, None], 0), dh * last * decay
            tl.store(du + place * inner + channel, skip * given + step * written, live)
            tl.store(ddt + place * inner + channel, tl.sum(slope * a, 0) + x * written, live)
            da += slope * step[None, :]
            dh = dh * (low + decay)
            if STARTS:
                dh = tl.where(tl.load(starts + place) != 0, 0.0, dh)
    tl.store(dA + row * states * inner + at, da, both)
    tl.store(dstate + row * states * inner + at, dh, both)


def forward(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, state: Tensor, starts: Tensor,
            low: float, learning: bool) -> tuple[Tensor, Tensor, Tensor]:
    """y, the last state and the states before each span; arguments as of `segue.kernels.scan`, but A (S, I), states
    (B, S, I), and starts (B, T) or (B, 0)."""
    (rows, length, inner), states = u.shape, A.shape[0]
    spans = -(-length // SPAN)
    y, final = u.new_empty(u.shape), u.new_empty(rows, states, inner)
    kept = u.new_empty(rows, spans if learning else 0, states, inner)
    _forward[(rows, triton.cdiv(inner, WIDE))](
        *(x.contiguous() for x in (u, dt, A, B, C, D, starts.to(torch.int8), state)), y, final, kept, length, inner,
        states, spans, low, triton.next_power_of_2(states), WIDE, SPAN, learning, bool(starts.shape[1]), num_warps=1)
    return y, final, kept


def backward(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, starts: Tensor, kept: Tensor,
             dy: Tensor, dfinal: Tensor, low: float) -> tuple[Tensor, ...]:
    """The gradients of u, dt, A, B, C and state."""
    (rows, length, inner), states = u.shape, A.shape[0]
    blocks, wide = triton.cdiv(inner, WIDE), triton.next_power_of_2(states)
    du, ddt = u.new_empty(u.shape), u.new_empty(u.shape)
    dA, dstate = (u.new_empty(rows, states, inner) for _ in range(2))
    dB, dC = (u.new_empty(blocks, rows, length, states) for _ in range(2))
    _backward[(rows, blocks)](
        *(x.contiguous() for x in (u, dt, A, B, C, D, starts.to(torch.int8), kept, dy, dfinal)),
        u.new_empty(rows * blocks, SPAN, wide, WIDE), du, ddt, dA, dB, dC, dstate, length, inner, states, kept.shape[1],
        low, wide, WIDE, SPAN, bool(starts.shape[1]), num_warps=1)
    return du, ddt, dA.sum(0), dB.sum(0), dC.sum(0), dstate


def linear(a: Tensor, b: Tensor, initial: Tensor, starts: Tensor) -> Tensor:
    """All states; arguments as of `segue.kernels.scan`, but starts (B, T) or (B, 0)."""
    (rows, length), width = b.shape[:2], b[0, 0].numel()
    states = b.new_empty(b.shape)
    _linear[(rows, triton.cdiv(width, LANES))](
        *(x.contiguous() for x in (a.expand(b.shape), b, initial, starts.to(torch.int8))), states, length, width, LANES,
        bool(starts.shape[1]), num_warps=1)
    return states


def linear_backward(a: Tensor, initial: Tensor, starts: Tensor, states: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
    """The gradients of a, as wide as the states, of b and of initial."""
    (rows, length), width = grad.shape[:2], grad[0, 0].numel()
    da, db, dinitial = states.new_empty(states.shape), states.new_empty(states.shape), initial.new_empty(initial.shape)
    _linear_backward[(rows, triton.cdiv(width, LANES))](
        *(x.contiguous() for x in (a.expand(states.shape), initial, starts.to(torch.int8), states, grad)), da, db,
        dinitial, length, width, LANES, bool(starts.shape[1]), num_warps=1)
    return da, db, dinitial
