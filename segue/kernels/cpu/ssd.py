"""State space duality on the CPU, forward and backward, in float32 and float64: one pass over the sequence.

A task is a few heads of one row that share keys and queries. Chunk by chunk, all it works on (the keys, queries and
values of a chunk, how much each node reads of each, the states) stays in the second-level cache; only what lies on or
below the diagonal is computed. The states before each chunk are kept for the backward pass, which makes the rest anew.
Buffers are filled up with zeros to whole vectors.
"""

from __future__ import annotations

import numpy as np

from segue.kernels.cpu import simd
from segue.kernels.cpu.loops import bare, copy, dot, exp, kernel
from segue.kernels.cpu.products import LOWER, SEEN, UPPER, WHOLE, load, product, turn

CHUNK = 64
HEADS = 4  # of a task: they share the products of keys and queries


@bare
def _scaled(source, scale, target):
    for j in range(len(target)):
        target[j] = scale * source[j]


@bare
def _add_scaled(source, scale, target):
    for j in range(len(target)):
        target[j] += scale * source[j]


@bare
def _documents(starts, row, begin, count, first):
    """Where in the chunk the document of each node begins, -1: before it."""
    last = -1
    for t in range(count):
        if starts.shape[1] and starts[row, begin + t]:
            last = t
        first[t] = last


@bare
def _decays(g, write, row, begin, count, head, first, decay, entered, onward, factor):
    """decay: sums of log decays in the chunk. entered: what is left at a node of the state before the chunk; onward:
    what is left of a node at the end, factor: that times how much it writes. Returns what is left of the state."""
    zero, last = decay.dtype.type(0), first[count - 1]
    total = zero
    for t in range(count):
        total += g[row, begin + t, head]
        decay[t], factor[t] = total, write[row, begin + t, head]
    for t in range(count, CHUNK):
        decay[t], factor[t] = total, zero
    for t in range(CHUNK):
        entered[t], onward[t] = exp(decay[t]), exp(total - decay[t])
    for t in range(count):
        if first[t] >= 0:
            entered[t] = zero
        if t < last:
            onward[t] = zero
    return exp(total) if last < 0 else zero


@bare
def _read(scores, decay, write, index, first, now, skip, pairs):
    """How much a node (`now`) reads of each: scores times decay times write, and `skip` of itself."""
    here, begin, at = decay[now], index.dtype.type(first), index.dtype.type(now)
    zero = decay.dtype.type(0)
    for j in range(CHUNK):
        e = scores[j] * write[j] * exp(min(here - decay[j], zero))
        pairs[j] = e if index[j] <= at and index[j] >= begin else zero
    pairs[now] += skip


@bare
def _read_back(scores, decay, write, index, first, now, skip, pairs, dpairs, dwrite):
    """As `_read`; the gradients of `pairs` become those of the scores, those of the writes are added. Returns that of
    what decayed until now."""
    here, begin, at = decay[now], index.dtype.type(first), index.dtype.type(now)
    zero = decay.dtype.type(0)
    total = zero
    for j in range(CHUNK):
        e = exp(min(here - decay[j], zero))
        if not (index[j] <= at and index[j] >= begin):
            e = zero
        seen = index[j] <= at
        d = (dpairs[j] if seen else zero) * e
        s = scores[j] if seen else zero
        dwrite[j] += d * s
        dpairs[j] = d * write[j]
        pairs[j] = s * e * write[j]
        total += d * s * write[j]
    pairs[now] += skip
    return total


@bare
def _forward(row, group, groups, head, count_heads, u, write, g, skip, starts, y, kept, h, q, k, qs, kt, v, out,
             scores, pairs, lines, index, first):
    """Heads `head` .. of a row, from their states h on, which become the last ones."""
    length, states, width = g.shape[1], kept.shape[3], kept.shape[4]
    keys = g.shape[2] * width + group * states
    decay, entered, onward, factor = lines[0], lines[1], lines[2], lines[3]
    for chunk in range((length + CHUNK - 1) // CHUNK):
        begin = chunk * CHUNK
        count = min(CHUNK, length - begin)
        load(u, row, begin, keys, count, states, k)
        load(u, row, begin, keys + groups * states, count, states, q)
        turn(k, kt, count, states)
        product(scores, q, kt, count, states, count, False, False, SEEN, 1)
        _documents(starts, row, begin, count, first)
        for n in range(count_heads):
            state, which = h[n], head + n
            if kept.shape[1]:
                for s in range(states):
                    copy(state[s], kept[row, chunk, which, s])
            load(u, row, begin, which * width, count, width, v)
            carried = _decays(g, write, row, begin, count, which, first, decay, entered, onward, factor)
            for t in range(count):
                _read(scores[t], decay, factor, index, first[t], t, skip[which], pairs[t])
                _scaled(q[t], entered[t], qs[t])
            product(out, qs, state, count, states, width, False, False, WHOLE, 1)
            product(out, pairs, v, count, count, width, False, True, LOWER, 1)
            for t in range(count):
                copy(out[t], y[row, begin + t, which * width : which * width + width])
                _scaled(k[t], onward[t] * factor[t], qs[t])
            for s in range(states):
                _scaled(state[s], carried, state[s])
            product(state, qs, v, states, count, width, True, True, WHOLE, 1)


@kernel
def forward(begin, end, groups, u, write, g, skip, starts, state, y, final, kept):
    """All nodes of the tasks begin..end, of which each is up to HEADS heads of a group in a row.

    u: lines (B, T, H E + 2 G S), values, keys and queries, of which there are G groups. write, g: (B, T, H), what a
    node writes, and its log decay. skip: (H,). starts: (B, T) bool, or (B, 0): the state is zero before these. state,
    final: (B, H, S, E). y: (B, T, H E). kept: (B, T / CHUNK, H, S, E), the states before the chunks, or (B, 0, ...).
    """
    kind, (heads, states, width) = g.dtype, state.shape[1:]
    parts, each = (heads // groups + HEADS - 1) // HEADS, heads // groups
    lanes = 4 * simd.LANES // g.itemsize
    deep, wide = (states + lanes - 1) // lanes * lanes, (width + lanes - 1) // lanes * lanes
    h, kt = np.zeros((HEADS, states, wide), kind), np.zeros((deep, CHUNK), kind)
    q, k, qs = np.zeros((CHUNK, deep), kind), np.zeros((CHUNK, deep), kind), np.zeros((CHUNK, deep), kind)
    v, out = np.zeros((CHUNK, wide), kind), np.zeros((CHUNK, wide), kind)
    scores, pairs = np.zeros((CHUNK, CHUNK), kind), np.zeros((CHUNK, CHUNK), kind)
    lines, index = np.zeros((4, CHUNK), kind), np.arange(CHUNK).astype(kind)
    first = np.zeros(CHUNK, np.int64)
    for task in range(begin, end):
        row, group, part = task // (groups * parts), task // parts % groups, task % parts
        head, count = group * each + part * HEADS, min(HEADS, each - part * HEADS)
        for n in range(count):
            for s in range(states):
                for j in range(width):
                    h[n, s, j] = state[row, head + n, s, j]
        _forward(row, group, groups, head, count, u, write, g, skip, starts, y, kept, h, q, k, qs, kt, v, out, scores,
                 pairs, lines, index, first)
        for n in range(count):
            for s in range(states):
                for j in range(width):
                    final[row, head + n, s, j] = h[n, s, j]


@bare
def _backward(row, group, groups, part, head, count_heads, u, write, g, skip, starts, kept, dy, du, dshared, dwrite, dg,
              dskip, dh, q, k, qs, ks, dq, dk, far, kt, v, top, dv, vt, h, ht, scores, pairs, dpairs, lines, index,
              first):
    """The gradients of `_forward`, from those of the last states, dh, on, which become those of the first."""
    length, states, width = g.shape[1], kept.shape[3], kept.shape[4]
    keys = g.shape[2] * width + group * states
    decay, entered, onward, factor, dfactor, ddecay = lines[0], lines[1], lines[2], lines[3], lines[4], lines[5]
    for chunk in range((length - 1) // CHUNK, -1, -1):
        begin = chunk * CHUNK
        count = min(CHUNK, length - begin)
        load(u, row, begin, keys, count, states, k)
        load(u, row, begin, keys + groups * states, count, states, q)
        turn(k, kt, count, states)
        product(scores, q, kt, count, states, count, False, False, SEEN, 1)
        _documents(starts, row, begin, count, first)
        for n in range(count_heads):
            back, which = dh[n], head + n
            line = which * width
            for s in range(states):
                copy(kept[row, chunk, which, s], h[s, :width])
            load(u, row, begin, line, count, width, v)
            load(dy, row, begin, line, count, width, top)
            carried = _decays(g, write, row, begin, count, which, first, decay, entered, onward, factor)
            turn(v, vt, count, width)
            product(dpairs, top, vt, count, width, count, False, False, SEEN, 1)
            for t in range(CHUNK):
                dfactor[t] = 0
            for t in range(count):
                dskip[row, which] += dpairs[t, t]
                ddecay[t] = _read_back(scores[t], decay, factor, index, first[t], t, skip[which], pairs[t], dpairs[t],
                                       dfactor)
                _scaled(q[t], entered[t], qs[t])
                _scaled(k[t], onward[t] * factor[t], ks[t])
            for t in range(count):
                ddecay[t] -= factor[t] * dfactor[t]
            product(dv, pairs, top, count, count, width, True, False, UPPER, 1)
            product(dv, ks, back, count, states, width, False, True, WHOLE, 1)
            for t in range(count):
                copy(dv[t], du[row, begin + t, line : line + width])
            product(dq, dpairs, k, count, count, states, False, n > 0, LOWER, 1)
            product(dk, dpairs, q, count, count, states, True, n > 0, UPPER, 1)
            turn(h, ht, states, width)  # through the state before the chunk
            product(far, top, ht, count, width, states, False, False, WHOLE, 1)
            for t in range(count):
                _add_scaled(far[t], entered[t], dq[t])
                ddecay[t] += dot(qs[t], far[t], states)
            turn(back, ht, states, width)  # through the one after it
            product(far, v, ht, count, width, states, False, False, WHOLE, 1)
            end = decay.dtype.type(0)
            for s in range(states):
                end += carried * dot(h[s], back[s], width)
            for t in range(count):
                _add_scaled(far[t], onward[t] * factor[t], dk[t])
                through = onward[t] * dot(k[t], far[t], states)
                dfactor[t] += through
                ddecay[t] -= through * factor[t]
                end += through * factor[t]
            ddecay[count - 1] += end
            for s in range(states):
                _scaled(back[s], carried, back[s])
            product(back, qs, top, states, count, width, True, True, WHOLE, 1)
            total = decay.dtype.type(0)
            for t in range(count - 1, -1, -1):
                total += ddecay[t]
                dg[row, begin + t, which], dwrite[row, begin + t, which] = total, dfactor[t]
        for t in range(count):
            copy(dk[t], dshared[part, row, begin + t, 0, group])
            copy(dq[t], dshared[part, row, begin + t, 1, group])


@kernel
def backward(begin, end, groups, u, write, g, skip, starts, kept, dy, dfinal, du, dshared, dwrite, dg, dskip, dstate):
    """The gradients of `forward`. dy: lines (B, T, H E). du: (B, T, H E + ...), whose first H E are filled; dshared:
    (tasks of a group, B, T, 2, G, S), of keys and queries, per task. dskip: (B, H), zeros to begin with."""
    kind, (heads, states, width) = g.dtype, dfinal.shape[1:]
    parts, each = (heads // groups + HEADS - 1) // HEADS, heads // groups
    lanes = 4 * simd.LANES // g.itemsize
    deep, wide = (states + lanes - 1) // lanes * lanes, (width + lanes - 1) // lanes * lanes
    dh, h = np.zeros((HEADS, deep, wide), kind), np.zeros((deep, wide), kind)
    kt, vt, ht = np.zeros((deep, CHUNK), kind), np.zeros((wide, CHUNK), kind), np.zeros((wide, deep), kind)
    q, k, qs, ks = (np.zeros((CHUNK, deep), kind), np.zeros((CHUNK, deep), kind), np.zeros((CHUNK, deep), kind),
                    np.zeros((CHUNK, deep), kind))
    dq, dk, far = np.zeros((CHUNK, deep), kind), np.zeros((CHUNK, deep), kind), np.zeros((CHUNK, deep), kind)
    v, top, dv = np.zeros((CHUNK, wide), kind), np.zeros((CHUNK, wide), kind), np.zeros((CHUNK, wide), kind)
    scores, pairs, dpairs = (np.zeros((CHUNK, CHUNK), kind), np.zeros((CHUNK, CHUNK), kind),
                             np.zeros((CHUNK, CHUNK), kind))
    lines, index = np.zeros((6, CHUNK), kind), np.arange(CHUNK).astype(kind)
    first = np.zeros(CHUNK, np.int64)
    for task in range(begin, end):
        row, group, part = task // (groups * parts), task // parts % groups, task % parts
        head, count = group * each + part * HEADS, min(HEADS, each - part * HEADS)
        for n in range(count):
            for s in range(states):
                for j in range(width):
                    dh[n, s, j] = dfinal[row, head + n, s, j]
        _backward(row, group, groups, part, head, count, u, write, g, skip, starts, kept, dy, du, dshared, dwrite,
                  dg, dskip, dh, q, k, qs, ks, dq, dk, far, kt, v, top, dv, vt, h, ht, scores, pairs, dpairs, lines,
                  index, first)
        for n in range(count):
            for s in range(states):
                for j in range(width):
                    dstate[row, head + n, s, j] = dh[n, s, j]
