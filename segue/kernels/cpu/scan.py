"""Linear and selective scans on the CPU, forward and backward, in float32 and float64; linear ones in complex, too.

Channels lie side by side, so that one instruction moves many of them; the states of a selective scan, (B, T, I, S)
numbers in the plain form, never leave the cache: one in SPAN is kept for the backward pass, which makes the rest anew.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

from segue.kernels.cpu import simd
from segue.kernels.cpu.cache import compiled

FAST = {"reassoc", "contract", "nsz", "arcp"}  # reorder sums and fuse; infinities and NaN stay what they are
WIDE = 64  # channels that are moved together
SPAN = 32  # nodes between two states that are kept


def _exp(x: Any) -> Any:
    return math.exp(x)


@overload(_exp, inline="always")
def _typed_exp(x):
    if x == types.float32:
        return lambda x: simd.exp(x)
    return lambda x: math.exp(x)


@partial(compiled, fastmath=FAST)
def linear(begin, end, a, b, initial, starts, states):
    """states[t] = a[t] * states[t - 1] + b[t], all (B, T, C), real or complex.

    a: (B or 1, T or 1, C), the same for all rows or nodes where it is 1. starts: (B, T) bool, or (B, 0): the state is
    zero before these.
    """
    length, width = b.shape[1], b.shape[2]
    many, varying = a.shape[0] > 1, a.shape[1] > 1
    for row in range(begin, end):
        for t in range(length):
            if starts.shape[1] and starts[row, t]:
                states[row, t] = b[row, t]
                continue
            decay = a[row if many else 0, t if varying else 0]
            last = states[row, t - 1] if t else initial[row]
            for j in range(width):
                states[row, t, j] = decay[j] * last[j] + b[row, t, j]


@partial(compiled, fastmath=FAST)
def linear_backward(begin, end, a, initial, starts, states, grad, da, db, dinitial):
    """The gradients of `linear`. da: (B, T or 1, C), zeros to begin with."""
    length, width = grad.shape[1], grad.shape[2]
    many, varying = a.shape[0] > 1, a.shape[1] > 1
    for row in range(begin, end):
        which = row if many else 0
        for t in range(length - 1, -1, -1):
            if t + 1 < length and not (starts.shape[1] and starts[row, t + 1]):
                decay = a[which, t + 1 if varying else 0]
                for j in range(width):
                    db[row, t, j] = grad[row, t, j] + np.conj(decay[j]) * db[row, t + 1, j]
            else:
                db[row, t] = grad[row, t]
            if not (starts.shape[1] and starts[row, t]):
                last = states[row, t - 1] if t else initial[row]
                node = t if varying else 0
                for j in range(width):
                    da[row, node, j] += db[row, t, j] * np.conj(last[j])
        for j in range(width):
            dinitial[row, j] = np.conj(a[which, 0, j]) * db[row, 0, j]
        if starts.shape[1] and starts[row, 0]:
            dinitial[row] = 0


@partial(compiled, fastmath=FAST)
def selective(begin, end, u, dt, a, b, c, d, starts, state, y, final, kept):
    """h = exp(dt a) h + dt u b, y = h c + d u, for the blocks of channels begin..end of all rows.

    u, dt, y: (B, T, I). a: (S, I). b, c: (B, T, S). d: (I,). starts: (B, T) bool, or (B, 0). state, final: (B, S, I).
    kept: (B, T / SPAN, S, I), the states before every SPAN-th node, or (B, 0, ...).
    """
    length, inner, states = u.shape[1], u.shape[2], a.shape[0]
    blocks = (inner + WIDE - 1) // WIDE
    rate, h = np.zeros((states, WIDE), u.dtype), np.zeros((states, WIDE), u.dtype)
    step, x, out = np.zeros(WIDE, u.dtype), np.zeros(WIDE, u.dtype), np.zeros(WIDE, u.dtype)
    for task in range(begin, end):
        row, i = task // blocks, task % blocks * WIDE
        width = min(WIDE, inner - i)
        if width < WIDE:
            rate[:], h[:], step[:], x[:] = 0, 0, 0, 0
        for n in range(states):
            for j in range(width):
                rate[n, j], h[n, j] = a[n, i + j], state[row, n, i + j]
        for t in range(length):
            if kept.shape[1] and t % SPAN == 0:
                for n in range(states):
                    for j in range(width):
                        kept[row, t // SPAN, n, i + j] = h[n, j]
            if starts.shape[1] and starts[row, t]:
                h[:] = 0
            for j in range(width):
                step[j] = dt[row, t, i + j]
                x[j] = step[j] * u[row, t, i + j]
                out[j] = d[i + j] * u[row, t, i + j]
            for n in range(states):
                bn, cn = b[row, t, n], c[row, t, n]
                for j in range(WIDE):
                    v = _exp(step[j] * rate[n, j]) * h[n, j] + x[j] * bn
                    h[n, j] = v
                    out[j] += v * cn
            for j in range(width):
                y[row, t, i + j] = out[j]
        for n in range(states):
            for j in range(width):
                final[row, n, i + j] = h[n, j]


@partial(compiled, fastmath=FAST)
def selective_backward(begin, end, u, dt, a, b, c, d, starts, kept, dy, dfinal, du, ddt, da, db, dc, dstate):
    """The gradients of `selective`. da: (B, S, I), per row. db, dc: (blocks of channels, B, T, S), per block."""
    length, inner, states = u.shape[1], u.shape[2], a.shape[0]
    blocks = (inner + WIDE - 1) // WIDE
    kind = u.dtype
    rate, before, g, drate = (np.zeros((states, WIDE), kind), np.zeros((states, WIDE), kind),
                              np.zeros((states, WIDE), kind), np.zeros((states, WIDE), kind))
    h, decay = np.zeros((SPAN, states, WIDE), kind), np.zeros((SPAN, states, WIDE), kind)
    step, x = np.zeros((SPAN, WIDE), kind), np.zeros((SPAN, WIDE), kind)
    top, dx, dstep = np.zeros(WIDE, kind), np.zeros(WIDE, kind), np.zeros(WIDE, kind)
    for task in range(begin, end):
        row, block = task // blocks, task % blocks
        i = block * WIDE
        width = min(WIDE, inner - i)
        if width < WIDE:
            rate[:], before[:], g[:], step[:], x[:], top[:] = 0, 0, 0, 0, 0, 0
        drate[:] = 0
        for n in range(states):
            for j in range(width):
                rate[n, j], g[n, j] = a[n, i + j], dfinal[row, n, i + j]
        for span in range((length - 1) // SPAN, -1, -1):
            start, stop = span * SPAN, min(span * SPAN + SPAN, length)
            for n in range(states):
                for j in range(width):
                    before[n, j] = kept[row, span, n, i + j]
            for t in range(start, stop):  # the states of this span again
                k = t - start
                for j in range(width):
                    step[k, j] = dt[row, t, i + j]
                    x[k, j] = step[k, j] * u[row, t, i + j]
                fresh = starts.shape[1] and starts[row, t]
                for n in range(states):
                    bn = b[row, t, n]
                    for j in range(WIDE):
                        e = _exp(step[k, j] * rate[n, j])
                        if fresh:
                            e = kind.type(0)
                        decay[k, n, j] = e
                        v = e * before[n, j] + x[k, j] * bn
                        h[k, n, j] = v
                        before[n, j] = v
            for t in range(stop - 1, start - 1, -1):
                k = t - start
                for j in range(width):
                    top[j] = dy[row, t, i + j]
                    dx[j], dstep[j] = 0, 0
                if k:
                    last = h[k - 1]
                else:
                    for n in range(states):
                        for j in range(width):
                            before[n, j] = kept[row, span, n, i + j]
                    last = before
                for n in range(states):
                    bn, cn, toward_b, toward_c = b[row, t, n], c[row, t, n], kind.type(0), kind.type(0)
                    for j in range(WIDE):
                        toward_c += top[j] * h[k, n, j]
                        v = g[n, j] + top[j] * cn
                        toward_b += v * x[k, j]
                        dx[j] += v * bn
                        v *= decay[k, n, j]
                        g[n, j] = v
                        v *= last[n, j]
                        dstep[j] += v * rate[n, j]
                        drate[n, j] += v * step[k, j]
                    db[block, row, t, n], dc[block, row, t, n] = toward_b, toward_c
                for j in range(width):
                    v = u[row, t, i + j]
                    du[row, t, i + j] = dx[j] * step[k, j] + top[j] * d[i + j]
                    ddt[row, t, i + j] = dx[j] * v + dstep[j]
        for n in range(states):
            for j in range(width):
                da[row, n, i + j], dstate[row, n, i + j] = drate[n, j], g[n, j]
