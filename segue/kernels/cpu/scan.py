"""Linear, selective and diagonal scans on the CPU, forward and backward, in float32 and float64; linear ones of complex
numbers, too.

Vectors run over channels. The states of a selective scan, (B, T, I, S) numbers in the plain form, never leave the
cache: one in SPAN is stored for the backward pass, which recomputes the rest.
"""

from __future__ import annotations

import math

import numpy as np

from segue.kernels.cpu.loops import bare, copy, exp2, kernel

WIDE = 64  # channels that are moved together
SPAN = 32  # nodes between two states that are kept


@kernel
def linear(begin, end, a, b, initial, starts, states):
    """states[t] = a[t] * states[t - 1] + b[t], all (B, T, C), real or complex.

    a: (B or 1, T or 1, C), the same for all rows or nodes where it is 1. starts: (B, T) bool, or (B, 0): the state is
    zero before these.
    """
    length, width = b.shape[1], b.shape[2]
    decay_per_row, decay_per_node = a.shape[0] > 1, a.shape[1] > 1
    for row in range(begin, end):
        for t in range(length):
            if starts.shape[1] and starts[row, t]:
                copy(b[row, t], states[row, t])
                continue
            decay = a[row if decay_per_row else 0, t if decay_per_node else 0]
            previous = states[row, t - 1] if t else initial[row]
            for j in range(width):
                states[row, t, j] = decay[j] * previous[j] + b[row, t, j]


@kernel
def linear_backward(begin, end, a, initial, starts, states, grad, da, db, dinitial):
    """The gradients of `linear`. da: (B, T or 1, C), zeros to begin with."""
    length, width = grad.shape[1], grad.shape[2]
    decay_per_row, decay_per_node = a.shape[0] > 1, a.shape[1] > 1
    for row in range(begin, end):
        decay_row = row if decay_per_row else 0
        for t in range(length - 1, -1, -1):
            if t + 1 < length and not (starts.shape[1] and starts[row, t + 1]):
                decay = a[decay_row, t + 1 if decay_per_node else 0]
                for j in range(width):
                    db[row, t, j] = grad[row, t, j] + np.conj(decay[j]) * db[row, t + 1, j]
            else:
                copy(grad[row, t], db[row, t])
            if not (starts.shape[1] and starts[row, t]):
                previous = states[row, t - 1] if t else initial[row]
                decay_node = t if decay_per_node else 0
                for j in range(width):
                    da[row, decay_node, j] += db[row, t, j] * np.conj(previous[j])
        for j in range(width):
            dinitial[row, j] = np.conj(a[decay_row, 0, j]) * db[row, 0, j]
        if starts.shape[1] and starts[row, 0]:
            dinitial[row] = 0


@bare
def _enter(u, dt, step, x):
    """A node's step sizes, and those times its inputs."""
    for j in range(len(u)):
        step[j] = dt[j]
        x[j] = dt[j] * u[j]


@bare
def _skip(u, d, out):
    for j in range(len(u)):
        out[j] = d[j] * u[j]


@bare
def _leave(u, d, dout, step, dx, dstep, du, ddt):
    """The gradients of a node's inputs and step sizes."""
    to_e = u.dtype.type(math.log(2))
    for j in range(len(u)):
        du[j] = dx[j] * step[j] + dout[j] * d[j]
        ddt[j] = dx[j] * u[j] + dstep[j] * to_e


@bare
def _selective(row, i, u, dt, b, c, d, starts, floor, y, saved, rate, h, step, x, out):
    length, width, states = u.shape[1], min(WIDE, u.shape[2] - i), rate.shape[0]
    floor, span = u.dtype.type(floor), u.dtype.type(1 - floor)
    channels = slice(i, i + width)
    for t in range(length):
        if saved.shape[1] and t % SPAN == 0:
            for n in range(states):
                copy(h[n], saved[row, t // SPAN, n, channels])
        if starts.shape[1] and starts[row, t]:
            h[:] = 0
        _enter(u[row, t, channels], dt[row, t, channels], step, x)
        _skip(u[row, t, channels], d[channels], out)
        for n in range(states):
            bn, cn = b[row, t, n], c[row, t, n]
            for j in range(WIDE):
                v = (floor + span * exp2(step[j] * rate[n, j])) * h[n, j] + x[j] * bn
                h[n, j] = v
                out[j] += v * cn
        copy(out, y[row, t, channels])


@kernel
def selective(begin, end, u, dt, a, b, c, d, starts, state, low, y, final, saved):
    """h = e h + dt u b, y = h c + d u, with e = low + (1 - low) exp(dt a), for the blocks of channels begin..end of all
    rows.

    u, dt, y: (B, T, I). a: (S, I). b, c: (B, T, S). d: (I,). starts: (B, T) bool, or (B, 0). state, final: (B, S, I).
    saved: (B, T / SPAN, S, I), the states before every SPAN-th node, or (B, 0, ...).
    """
    inner, states = u.shape[2], a.shape[0]
    blocks, to_2 = (inner + WIDE - 1) // WIDE, u.dtype.type(1 / math.log(2))
    rate, h = np.zeros((states, WIDE), u.dtype), np.zeros((states, WIDE), u.dtype)
    step, x, out = np.zeros(WIDE, u.dtype), np.zeros(WIDE, u.dtype), np.zeros(WIDE, u.dtype)
    for task in range(begin, end):
        row, i = task // blocks, task % blocks * WIDE
        width = min(WIDE, inner - i)
        if width < WIDE:
            rate[:], h[:], step[:], x[:] = 0, 0, 0, 0
        for n in range(states):
            for j in range(width):
                rate[n, j], h[n, j] = a[n, i + j] * to_2, state[row, n, i + j]
        _selective(row, i, u, dt, b, c, d, starts, low, y, saved, rate, h, step, x, out)
        for n in range(states):
            for j in range(width):
                final[row, n, i + j] = h[n, j]


@bare
def _selective_backward(row, block, u, dt, b, c, d, starts, saved, dy, floor_, du, ddt, db, dc, rate, previous, g,
                        drate, h, decay, step, x, dout, dx, dstep):
    i, kind = block * WIDE, u.dtype
    length, width, states = u.shape[1], min(WIDE, u.shape[2] - i), rate.shape[0]
    floor_, span_size, zero, channels = kind.type(floor_), kind.type(1 - floor_), kind.type(0), slice(i, i + width)
    for span in range((length - 1) // SPAN, -1, -1):
        start, stop = span * SPAN, min(span * SPAN + SPAN, length)
        for n in range(states):
            copy(saved[row, span, n, channels], previous[n, :width])
        for t in range(start, stop):  # the states of this span again
            k = t - start
            _enter(u[row, t, channels], dt[row, t, channels], step[k], x[k])
            is_start = starts.shape[1] and starts[row, t]
            floor, above = (zero, zero) if is_start else (floor_, span_size)
            for n in range(states):
                bn = b[row, t, n]
                for j in range(WIDE):
                    e = above * exp2(step[k, j] * rate[n, j])
                    decay[k, n, j] = e  # what of it moves with dt and a
                    v = (floor + e) * previous[n, j] + x[k, j] * bn
                    h[k, n, j] = v
                    previous[n, j] = v
        for t in range(stop - 1, start - 1, -1):
            k = t - start
            copy(dy[row, t, channels], dout[:width])
            dx[:], dstep[:] = 0, 0
            floor = zero if starts.shape[1] and starts[row, t] else floor_
            if k == 0:
                for n in range(states):
                    copy(saved[row, span, n, channels], previous[n, :width])
            last_state = h[k - 1] if k else previous
            for n in range(states):
                bn, cn, db_total, dc_total = b[row, t, n], c[row, t, n], zero, zero
                for j in range(WIDE):
                    dc_total += dout[j] * h[k, n, j]
                    v = g[n, j] + dout[j] * cn
                    db_total += v * x[k, j]
                    dx[j] += v * bn
                    g[n, j] = v * (floor + decay[k, n, j])
                    v *= decay[k, n, j] * last_state[n, j]
                    dstep[j] += v * rate[n, j]
                    drate[n, j] += v * step[k, j]
                db[block, row, t, n], dc[block, row, t, n] = db_total, dc_total
            _leave(u[row, t, channels], d[channels], dout, step[k], dx, dstep, du[row, t, channels],
                   ddt[row, t, channels])


@kernel
def selective_backward(begin, end, u, dt, a, b, c, d, starts, saved, dy, dfinal, low, du, ddt, da, db, dc, dstate):
    """The gradients of `selective`. da: (B, S, I), per row. db, dc: (blocks of channels, B, T, S), per block."""
    inner, states, kind = u.shape[2], a.shape[0], u.dtype
    blocks, to_2 = (inner + WIDE - 1) // WIDE, kind.type(1 / math.log(2))
    rate, previous, g, drate = (np.zeros((states, WIDE), kind), np.zeros((states, WIDE), kind),
                                np.zeros((states, WIDE), kind), np.zeros((states, WIDE), kind))
    h, decay = np.zeros((SPAN, states, WIDE), kind), np.zeros((SPAN, states, WIDE), kind)
    step, x = np.zeros((SPAN, WIDE), kind), np.zeros((SPAN, WIDE), kind)
    dout, dx, dstep = np.zeros(WIDE, kind), np.zeros(WIDE, kind), np.zeros(WIDE, kind)
    for task in range(begin, end):
        row, block = task // blocks, task % blocks
        i = block * WIDE
        width = min(WIDE, inner - i)
        if width < WIDE:
            rate[:], previous[:], g[:], step[:], x[:], dout[:] = 0, 0, 0, 0, 0, 0
        drate[:] = 0
        for n in range(states):
            for j in range(width):
                rate[n, j], g[n, j] = a[n, i + j] * to_2, dfinal[row, n, i + j]
        _selective_backward(row, block, u, dt, b, c, d, starts, saved, dy, low, du, ddt, db, dc, rate, previous, g,
                            drate, h, decay, step, x, dout, dx, dstep)
        for n in range(states):
            for j in range(width):
                da[row, n, i + j], dstate[row, n, i + j] = drate[n, j], g[n, j]


@kernel
def diagonal(begin, end, u, decay, weights, starts, lengths, state, y, final, saved):
    """h = decay h + u, y = Re sum_n weights h, complex as (real, imaginary), for the blocks of channels begin..end of
    all rows; a row ends after lengths[row] nodes.

    u, y: (B, T, H). decay, weights: (2, N, H). starts: (B, T) bool, or (B, 0). state, final: (B, 2, N, H).
    saved: (B, T / SPAN, 2, N, H), the states before every SPAN-th node, or (B, 0, ...).
    """
    width, states = u.shape[2], decay.shape[1]
    blocks = (width + WIDE - 1) // WIDE
    x, output = np.zeros((SPAN, WIDE), u.dtype), np.zeros((SPAN, WIDE), u.dtype)
    h = np.zeros((2, states, WIDE), u.dtype)
    a, w = np.zeros((2, states, WIDE), u.dtype), np.zeros((2, states, WIDE), u.dtype)
    for task in range(begin, end):
        row, i = task // blocks, task % blocks * WIDE
        count = min(WIDE, width - i)
        if count < WIDE:
            x[:], h[:], a[:], w[:] = 0, 0, 0, 0
        for c in range(2):
            for n in range(states):
                for j in range(count):
                    h[c, n, j] = state[row, c, n, i + j]
                    a[c, n, j], w[c, n, j] = decay[c, n, i + j], weights[c, n, i + j]
        for start in range(0, lengths[row], SPAN):
            nodes = min(SPAN, lengths[row] - start)
            for k in range(nodes):
                for j in range(count):
                    x[k, j] = u[row, start + k, i + j]
            output[:] = 0
            for n in range(states):  # one state after the other, each through the whole span, all in the nearest cache
                re, im, ar, ai, wr, wi = h[0, n], h[1, n], a[0, n], a[1, n], w[0, n], w[1, n]
                if saved.shape[1]:
                    for j in range(count):
                        saved[row, start // SPAN, 0, n, i + j] = re[j]
                        saved[row, start // SPAN, 1, n, i + j] = im[j]
                for k in range(nodes):
                    if starts.shape[1] and starts[row, start + k]:
                        re[:], im[:] = 0, 0
                    for j in range(WIDE):
                        p, q = re[j], im[j]
                        re[j] = ar[j] * p - ai[j] * q + x[k, j]
                        im[j] = ar[j] * q + ai[j] * p
                        output[k, j] += wr[j] * re[j] - wi[j] * im[j]
            for k in range(nodes):
                for j in range(count):
                    y[row, start + k, i + j] = output[k, j]
        for c in range(2):
            for n in range(states):
                for j in range(count):
                    final[row, c, n, i + j] = h[c, n, j]


@kernel
def diagonal_backward(begin, end, u, decay, weights, starts, lengths, saved, dy, dfinal, du, ddecay, dweights, dstate):
    """The gradients of `diagonal`. ddecay, dweights: (B, 2, N, H), per row."""
    width, states = u.shape[2], decay.shape[1]
    blocks, kind = (width + WIDE - 1) // WIDE, u.dtype
    x, dout, dx = np.zeros((SPAN, WIDE), kind), np.zeros((SPAN, WIDE), kind), np.zeros((SPAN, WIDE), kind)
    real, imaginary = np.zeros((SPAN + 1, WIDE), kind), np.zeros((SPAN + 1, WIDE), kind)
    a, w, g = np.zeros((2, states, WIDE), kind), np.zeros((2, states, WIDE), kind), np.zeros((2, states, WIDE), kind)
    da, dw = np.zeros((2, states, WIDE), kind), np.zeros((2, states, WIDE), kind)
    continues = np.ones(SPAN, kind)  # 0 where a node follows nothing
    for task in range(begin, end):
        row, i = task // blocks, task % blocks * WIDE
        count = min(WIDE, width - i)
        da[:], dw[:] = 0, 0
        if count < WIDE:
            x[:], dout[:], a[:], w[:], g[:], real[:], imaginary[:] = 0, 0, 0, 0, 0, 0, 0
        for c in range(2):
            for n in range(states):
                for j in range(count):
                    g[c, n, j] = dfinal[row, c, n, i + j]
                    a[c, n, j], w[c, n, j] = decay[c, n, i + j], weights[c, n, i + j]
        for span in range((lengths[row] - 1) // SPAN, -1, -1):
            start = span * SPAN
            nodes = min(SPAN, lengths[row] - start)
            for k in range(nodes):
                continues[k] = kind.type(0) if starts.shape[1] and starts[row, start + k] else kind.type(1)
                for j in range(count):
                    x[k, j], dout[k, j] = u[row, start + k, i + j], dy[row, start + k, i + j]
            dx[:] = 0
            for n in range(states):
                ar, ai, wr, wi, gr, gi = a[0, n], a[1, n], w[0, n], w[1, n], g[0, n], g[1, n]
                dar, dai, dwr, dwi = da[0, n], da[1, n], dw[0, n], dw[1, n]
                for j in range(count):
                    real[0, j], imaginary[0, j] = saved[row, span, 0, n, i + j], saved[row, span, 1, n, i + j]
                for k in range(nodes):  # the states of this span again
                    for j in range(WIDE):
                        p, q = real[k, j] * continues[k], imaginary[k, j] * continues[k]
                        real[k + 1, j] = ar[j] * p - ai[j] * q + x[k, j]
                        imaginary[k + 1, j] = ar[j] * q + ai[j] * p
                for k in range(nodes - 1, -1, -1):
                    for j in range(WIDE):
                        p, q = gr[j] + wr[j] * dout[k, j], gi[j] - wi[j] * dout[k, j]
                        dwr[j] += dout[k, j] * real[k + 1, j]
                        dwi[j] -= dout[k, j] * imaginary[k + 1, j]
                        dx[k, j] += p
                        p, q = p * continues[k], q * continues[k]
                        dar[j] += p * real[k, j] + q * imaginary[k, j]
                        dai[j] += q * real[k, j] - p * imaginary[k, j]
                        gr[j] = ar[j] * p + ai[j] * q
                        gi[j] = ar[j] * q - ai[j] * p
            for k in range(nodes):
                for j in range(count):
                    du[row, start + k, i + j] = dx[k, j]
        for c in range(2):
            for n in range(states):
                for j in range(count):
                    ddecay[row, c, n, i + j], dweights[row, c, n, i + j] = da[c, n, j], dw[c, n, j]
                    dstate[row, c, n, i + j] = g[c, n, j]
