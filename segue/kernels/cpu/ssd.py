"""State space duality on the CPU, forward and backward, in float32 and float64: one pass over the sequence.

A task is a few heads of one row that share keys and queries. Chunk by chunk, all it works on (the keys, queries and
values of a chunk, how much each node reads of each, the states) stays in the second-level cache, where the register
tile of `segue.kernels.cpu.rnn` multiplies it; only what lies on or below the diagonal is computed. The states before
each chunk are kept for the backward pass, which makes the rest anew.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from segue.kernels.cpu import simd
from segue.kernels.cpu.cache import compiled
from segue.kernels.cpu.rnn import _at, _run
from segue.kernels.cpu.scan import FAST, _copy, _exp, bare

CHUNK = 64
HEADS = 4  # of a task: they share the products of keys and queries
LANES, BLOCK = simd.LANES, 8 if simd.WIDE else 4
WHOLE, LOWER, UPPER, CORNER = range(4)


@bare
def _product(x, x_row, x_step, w, y, rows, k, shape, add, nothing):
    """y[r] = sum over i < k of x[r * x_row + i * x_step] * w[i] for r < rows, added to what is there if `add`.

    w, y: (.., C), C a multiple of LANES. shape: LOWER, x is zero where i > r; UPPER, where i < r; CORNER, y is wanted
    only where its column is at most r; or WHOLE.
    """
    columns, size = w.shape[1], w.itemsize
    lanes = LANES * 4 // size
    panels = 2 if columns // lanes % 2 == 0 else 1
    at_x, at_w, at_y, zeros = _at(x), _at(w), _at(y), _at(nothing)
    for j in range(0, columns, panels * lanes):
        for i in range(0, rows, BLOCK):
            many = min(BLOCK, rows - i)
            if shape == CORNER and j >= i + many:
                continue
            first = i if shape == UPPER else 0
            last = min(i + many, k) if shape == LOWER else k
            into = at_y + (i * columns + j) * size
            source = at_x + (i * x_row + first * x_step) * size
            _run(w, many, panels, zeros, at_w + (first * columns + j) * size, source, into if add else 0, into, columns,
                 x_row, x_step, 0, last - first, 1, columns, columns)


@bare
def _scaled(source, scale, target):
    for j in range(len(target)):
        target[j] = scale * source[j]


@bare
def _add_scaled(source, scale, target):
    for j in range(len(target)):
        target[j] += scale * source[j]


@bare
def _dot(x, y):
    total = x.dtype.type(0)
    for j in range(len(x)):
        total += x[j] * y[j]
    return total


@bare
def _load(source, row, begin, count, i, width, target):
    """Numbers i .. i + width of the nodes from `begin` on; nought where there are none."""
    for t in range(count):
        _copy(source[row, begin + t, i : i + width], target[t, :width])
    for t in range(count, CHUNK):
        for j in range(width):
            target[t, j] = 0


@bare
def _transpose(x, rows, y):
    """y[j, i] = x[i, j]"""
    for j in range(y.shape[0]):
        line = y[j]
        for i in range(rows):
            line[i] = x[i, j]


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
        entered[t], onward[t] = _exp(decay[t]), _exp(total - decay[t])
    for t in range(count):
        if first[t] >= 0:
            entered[t] = zero
        if t < last:
            onward[t] = zero
    return _exp(total) if last < 0 else zero


@bare
def _read(scores, decay, write, index, first, now, skip, pairs):
    """How much a node (`now`) reads of each: scores times decay times write, and `skip` of itself."""
    here, begin, at = decay[now], index.dtype.type(first), index.dtype.type(now)
    zero = decay.dtype.type(0)
    for j in range(CHUNK):
        e = scores[j] * write[j] * _exp(min(here - decay[j], zero))
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
        e = _exp(min(here - decay[j], zero))
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
def _forward(row, group, head, count_heads, u, write, g, skip, starts, y, kept, h, q, k, qs, kt, v, out, scores, pairs,
             lines, index, first, nothing):
    """Heads `head` .. of a row, from their states h on, which become the last ones."""
    length, states, width = y.shape[1], kept.shape[3], kept.shape[4]
    heads, wide = g.shape[2], q.shape[1]
    groups = (u.shape[2] - heads * width) // (2 * states)
    keys = heads * width + group * states
    decay, entered, onward, factor = lines[0], lines[1], lines[2], lines[3]
    for chunk in range((length + CHUNK - 1) // CHUNK):
        begin = chunk * CHUNK
        count = min(CHUNK, length - begin)
        _load(u, row, begin, count, keys, states, k)
        _load(u, row, begin, count, keys + groups * states, states, q)
        _transpose(k, CHUNK, kt)
        _product(q, wide, 1, kt, scores, count, states, CORNER, False, nothing)
        _documents(starts, row, begin, count, first)
        for n in range(count_heads):
            state, which = h[n], head + n
            if kept.shape[1]:
                for s in range(states):
                    _copy(state[s], kept[row, chunk, which, s])
            _load(u, row, begin, count, which * width, width, v)
            carried = _decays(g, write, row, begin, count, which, first, decay, entered, onward, factor)
            for t in range(count):
                _read(scores[t], decay, factor, index, first[t], t, skip[which], pairs[t])
                _scaled(q[t], entered[t], qs[t])
            _product(qs, wide, 1, state, out, count, states, WHOLE, False, nothing)
            _product(pairs, CHUNK, 1, v, out, count, count, LOWER, True, nothing)
            for t in range(count):
                _copy(out[t], y[row, begin + t, which * width : which * width + width])
                _scaled(k[t], onward[t] * factor[t], qs[t])
            for s in range(states):
                _scaled(state[s], carried, state[s])
            _product(qs, 1, wide, v, state, states, count, WHOLE, True, nothing)


@partial(compiled, fastmath=FAST, error_model="numpy")
def forward(begin, end, u, write, g, skip, starts, state, y, final, kept):
    """All nodes of the tasks begin..end, of which each is up to HEADS heads of a group in a row.

    u: (B, T, H E + 2 G S), values, keys and queries. write, g: (B, T, H), what a node writes, and its log decay. skip:
    (H,). starts: (B, T) bool, or (B, 0): the state is zero before these. state, final: (B, H, S, E). y: (B, T, H E).
    kept: (B, T / CHUNK, H, S, E), the states before the chunks, or (B, 0, ...).
    """
    kind, (heads, states, width) = u.dtype, state.shape[1:]
    groups = (u.shape[2] - heads * width) // (2 * states)
    parts, each = (heads // groups + HEADS - 1) // HEADS, heads // groups
    deep, wide = (states + LANES - 1) // LANES * LANES, (width + LANES - 1) // LANES * LANES
    h, kt = np.zeros((HEADS, states, wide), kind), np.zeros((states, CHUNK), kind)
    q, k, qs = np.zeros((CHUNK, deep), kind), np.zeros((CHUNK, deep), kind), np.zeros((CHUNK, deep), kind)
    v, out = np.zeros((CHUNK, wide), kind), np.zeros((CHUNK, wide), kind)
    scores, pairs = np.zeros((CHUNK, CHUNK), kind), np.zeros((CHUNK, CHUNK), kind)
    lines, index = np.zeros((4, CHUNK), kind), np.arange(CHUNK).astype(kind)
    first, nothing = np.zeros(CHUNK, np.int64), np.zeros(2 * LANES, kind)
    for task in range(begin, end):
        row, group, part = task // (groups * parts), task // parts % groups, task % parts
        head, count = group * each + part * HEADS, min(HEADS, each - part * HEADS)
        for n in range(count):
            for s in range(states):
                for j in range(width):
                    h[n, s, j] = state[row, head + n, s, j]
        _forward(row, group, head, count, u, write, g, skip, starts, y, kept, h, q, k, qs, kt, v, out, scores, pairs,
                 lines, index, first, nothing)
        for n in range(count):
            for s in range(states):
                for j in range(width):
                    final[row, head + n, s, j] = h[n, s, j]


@bare
def _backward(row, group, part, head, count_heads, u, write, g, skip, starts, kept, dy, du, dshared, dwrite, dg, dskip,
              dh, q, k, qs, ks, dq, dk, far, kt, v, top, dv, vt, h, ht, scores, pairs, dpairs, lines, index, first,
              nothing):
    """The gradients of `_forward`, from those of the last states, dh, on, which become those of the first."""
    length, states, width = dy.shape[1], kept.shape[3], kept.shape[4]
    heads, wide = g.shape[2], q.shape[1]
    groups = (u.shape[2] - heads * width) // (2 * states)
    keys = heads * width + group * states
    decay, entered, onward, factor, dfactor, ddecay = lines[0], lines[1], lines[2], lines[3], lines[4], lines[5]
    for chunk in range((length - 1) // CHUNK, -1, -1):
        begin = chunk * CHUNK
        count = min(CHUNK, length - begin)
        _load(u, row, begin, count, keys, states, k)
        _load(u, row, begin, count, keys + groups * states, states, q)
        _transpose(k, CHUNK, kt)
        _product(q, wide, 1, kt, scores, count, states, CORNER, False, nothing)
        _documents(starts, row, begin, count, first)
        for n in range(count_heads):
            back, which = dh[n], head + n
            line = which * width
            for s in range(states):
                _copy(kept[row, chunk, which, s], h[s, :width])
            _load(u, row, begin, count, line, width, v)
            _load(dy, row, begin, count, line, width, top)
            carried = _decays(g, write, row, begin, count, which, first, decay, entered, onward, factor)
            _transpose(v, CHUNK, vt)
            _product(top, v.shape[1], 1, vt, dpairs, count, width, CORNER, False, nothing)
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
            _product(pairs, 1, CHUNK, top, dv, count, count, UPPER, False, nothing)
            _product(ks, wide, 1, back, dv, count, states, WHOLE, True, nothing)
            for t in range(count):
                _copy(dv[t], du[row, begin + t, line : line + width])
            _product(dpairs, CHUNK, 1, k, dq, count, count, LOWER, n > 0, nothing)
            _product(dpairs, 1, CHUNK, q, dk, count, count, UPPER, n > 0, nothing)
            _transpose(h, states, ht)  # through the state before the chunk
            _product(top, v.shape[1], 1, ht, far, count, width, WHOLE, False, nothing)
            for t in range(count):
                _add_scaled(far[t], entered[t], dq[t])
                ddecay[t] += _dot(qs[t], far[t])
            _transpose(back, states, ht)  # through the one after it
            _product(v, v.shape[1], 1, ht, far, count, width, WHOLE, False, nothing)
            end = decay.dtype.type(0)
            for s in range(states):
                end += carried * _dot(h[s], back[s])
            for t in range(count):
                _add_scaled(far[t], onward[t] * factor[t], dk[t])
                through = onward[t] * _dot(k[t], far[t])
                dfactor[t] += through
                ddecay[t] -= through * factor[t]
                end += through * factor[t]
            ddecay[count - 1] += end
            for s in range(states):
                _scaled(back[s], carried, back[s])
            _product(qs, 1, wide, top, back, states, count, WHOLE, True, nothing)
            total = decay.dtype.type(0)
            for t in range(count - 1, -1, -1):
                total += ddecay[t]
                dg[row, begin + t, which], dwrite[row, begin + t, which] = total, dfactor[t]
        for t in range(count):
            _copy(dk[t], dshared[part, row, begin + t, 0, group])
            _copy(dq[t], dshared[part, row, begin + t, 1, group])


@partial(compiled, fastmath=FAST, error_model="numpy")
def backward(begin, end, u, write, g, skip, starts, kept, dy, dfinal, du, dshared, dwrite, dg, dskip, dstate):
    """The gradients of `forward`. du: (B, T, H E + ...), whose first H E are filled; dshared: (tasks of a group, B, T,
    2, G, S), of keys and queries, per task. dskip: (B, H), zeros to begin with."""
    kind, (heads, states, width) = u.dtype, dfinal.shape[1:]
    groups = (u.shape[2] - heads * width) // (2 * states)
    parts, each = (heads // groups + HEADS - 1) // HEADS, heads // groups
    deep, wide = (states + LANES - 1) // LANES * LANES, (width + LANES - 1) // LANES * LANES
    dh, h = np.zeros((HEADS, states, wide), kind), np.zeros((states, wide), kind)
    kt, vt, ht = np.zeros((states, CHUNK), kind), np.zeros((width, CHUNK), kind), np.zeros((width, deep), kind)
    q, k, qs, ks = (np.zeros((CHUNK, deep), kind), np.zeros((CHUNK, deep), kind), np.zeros((CHUNK, deep), kind),
                    np.zeros((CHUNK, deep), kind))
    dq, dk, far = np.zeros((CHUNK, deep), kind), np.zeros((CHUNK, deep), kind), np.zeros((CHUNK, deep), kind)
    v, top, dv = np.zeros((CHUNK, wide), kind), np.zeros((CHUNK, wide), kind), np.zeros((CHUNK, wide), kind)
    scores, pairs, dpairs = (np.zeros((CHUNK, CHUNK), kind), np.zeros((CHUNK, CHUNK), kind),
                             np.zeros((CHUNK, CHUNK), kind))
    lines, index = np.zeros((6, CHUNK), kind), np.arange(CHUNK).astype(kind)
    first, nothing = np.zeros(CHUNK, np.int64), np.zeros(2 * LANES, kind)
    for task in range(begin, end):
        row, group, part = task // (groups * parts), task // parts % groups, task % parts
        head, count = group * each + part * HEADS, min(HEADS, each - part * HEADS)
        for n in range(count):
            for s in range(states):
                for j in range(width):
                    dh[n, s, j] = dfinal[row, head + n, s, j]
        _backward(row, group, part, head, count, u, write, g, skip, starts, kept, dy, du, dshared, dwrite, dg, dskip,
                  dh, q, k, qs, ks, dq, dk, far, kt, v, top, dv, vt, h, ht, scores, pairs, dpairs, lines, index, first,
                  nothing)
        for n in range(count):
            for s in range(states):
                for j in range(width):
                    dstate[row, head + n, s, j] = dh[n, s, j]
