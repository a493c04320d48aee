"""State space duality on the CPU, forward and backward, in float32 and float64: one pass over the sequence.

A task is a few heads of one row that share keys and queries. Chunk by chunk, all its data (keys, queries, values, the
attention-like weights of the chunk, the states) stays in the second-level cache; only the lower triangle is computed.
The states before each chunk are stored for the backward pass, which recomputes the rest. Buffers are padded with zeros
to whole vectors.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from segue.kernels.cpu import simd
from segue.kernels.cpu.loops import bare, copy, exp, kernel
from segue.kernels.cpu.products import (
    LOWER,
    SEEN,
    UPPER,
    WHOLE,
    at,
    dots,
    filled,
    load,
    product,
    scale,
    scaled,
    shrink,
    total,
    turn,
)
from segue.kernels.cpu.vectors import SIZES, Numbers, Place, choice, number

CHUNK = 64
HEADS = 4  # of a task: they share the products of keys and queries


def _pairs(back: bool, builder: Any, kind: Any, args: list[Any]) -> None:
    rows, row, scores, decay, write, first, skip, pairs, dpairs, dwrite, ddecay = args
    b, (lanes, size) = builder, SIZES[kind]
    skips = Numbers.spread(b, kind, b.load(number(b, kind, skip, simd.I64(0))))

    def line(t: Any) -> list[Any]:
        here = Numbers.spread(b, kind, b.load(number(b, kind, decay, t)))
        begin = b.load(simd.pointer(b, b.add(first, b.mul(t, simd.I64(8)))))
        begin, at_t = b.select(b.icmp_signed("<", begin, simd.I64(0)), simd.I64(0), begin), b.mul(row, t)
        own, one = b.mul(t, simd.I64(size)), skips.of(1)

        def body(i: Any, total: Any) -> list[Any]:
            place = Place(b, kind, b.mul(i, simd.I64(lanes * size)))
            until, before = b.sub(b.add(own, simd.I64(size)), place.at), b.sub(b.mul(begin, simd.I64(size)), place.at)
            left = (here - place.get(decay)).least(0).exp()
            left = (left - left.first(before)).first(until)
            score, written = place.get(b.add(scores, at_t)).first(until), place.get(write)
            pair = score * left * written
            if back:
                slope = place.get(b.add(dpairs, at_t)).first(until) * left
                place.put(place.get(dwrite) + slope * score, dwrite)
                place.put(slope * written, b.add(dpairs, at_t))
                total = (Numbers(b, total) + slope * score * written).value
            place.put(pair + skips * (one.first(until) - one.first(b.sub(until, simd.I64(size)))), b.add(pairs, at_t))
            return [total]

        (total,) = simd.each(b, b.add(b.udiv(t, simd.I64(lanes)), simd.I64(1)), [skips.of(0).value], body)
        if back:
            b.store(b.extract_element(Numbers(b, total).total().value, simd.I32(0)), number(b, kind, ddecay, t))
        return []

    simd.each(b, rows, [], line)


some_pairs = choice("some_pairs", 11, {back: partial(_pairs, bool(back)) for back in (0, 1)})
"""some_pairs(back, size, rows, row, scores, decay, write, first, skip, pairs, dpairs, dwrite, ddecay): how much a node
t reads of each s, from first[t] to t: pairs[t, s] = scores[t, s] write[s] exp(decay[t] - decay[s]), and `skip` of
itself. If `back`, the gradients of pairs become those of the scores, those of the writes are added, and ddecay[t] is
that of what decayed until then. row: bytes."""


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
def _meet(u, row, begin, count, keys, apart, states, starts, q, k, kt, scores, first):
    """What a chunk's heads share: its keys and queries, `apart` numbers behind them, their products, its documents."""
    load(u, row, begin, keys, count, states, k)
    load(u, row, begin, keys + apart, count, states, q)
    turn(k, kt, count, states)
    product(scores, q, kt, count, states, count, False, False, SEEN, 1)
    _documents(starts, row, begin, count, first)


@bare
def _forward(row, group, groups, head, count_heads, u, write, g, skip, starts, y, kept, h, q, k, qs, kt, v, out,
             scores, pairs, lines, first):
    """Heads `head` .. of a row, from their states h on, which become the last ones."""
    length, states, width = g.shape[1], kept.shape[3], kept.shape[4]
    keys = g.shape[2] * width + group * states
    decay, entered, onward, factor, carried = lines[0], lines[1], lines[2], lines[3], lines[4]
    size = q.itemsize
    for chunk in range((length + CHUNK - 1) // CHUNK):
        begin = chunk * CHUNK
        count = min(CHUNK, length - begin)
        _meet(u, row, begin, count, keys, groups * states, states, starts, q, k, kt, scores, first)
        for n in range(count_heads):
            state, which = h[n], head + n
            if kept.shape[1]:
                for s in range(states):
                    copy(state[s], kept[row, chunk, which, s])
            load(u, row, begin, which * width, count, width, v)
            carried[0] = _decays(g, write, row, begin, count, which, first, decay, entered, onward, factor)
            some_pairs(0, size, count, CHUNK * size, at(scores), at(decay), at(factor), at(first),
                       at(skip) + which * size, at(pairs), 0, 0, 0)
            scale(q, entered, qs, count)
            product(out, qs, state, count, states, width, False, False, WHOLE, 1)
            product(out, pairs, v, count, count, width, False, True, LOWER, 1)
            for t in range(count):
                simd.copy(at(y) + ((row * length + begin + t) * y.shape[2] + which * width) * size,
                          at(out) + t * out.shape[1] * size, width * size)
                onward[t] *= factor[t]
            scale(k, onward, qs, count)
            shrink(state, carried, 0)
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
    deep, wide = filled(states, g.itemsize), filled(width, g.itemsize)
    h, kt = np.zeros((HEADS, states, wide), kind), np.zeros((deep, CHUNK), kind)
    q, k, qs = np.zeros((CHUNK, deep), kind), np.zeros((CHUNK, deep), kind), np.zeros((CHUNK, deep), kind)
    v, out = np.zeros((CHUNK, wide), kind), np.zeros((CHUNK, wide), kind)
    scores, pairs = np.zeros((CHUNK, CHUNK), kind), np.zeros((CHUNK, CHUNK), kind)
    lines = np.zeros((5, CHUNK), kind)
    first = np.zeros(CHUNK, np.int64)
    for task in range(begin, end):
        row, group, part = task // (groups * parts), task // parts % groups, task % parts
        head, count = group * each + part * HEADS, min(HEADS, each - part * HEADS)
        for one in range(count):
            for s in range(states):
                copy(state[row, head + one, s], h[one, s, :width])
        _forward(row, group, groups, head, count, u, write, g, skip, starts, y, kept, h, q, k, qs, kt, v, out, scores,
                 pairs, lines, first)
        for one in range(count):
            for s in range(states):
                copy(h[one, s], final[row, head + one, s])


@bare
def _backward(row, group, groups, part, head, count_heads, u, write, g, skip, starts, kept, dy, du, dshared, dwrite, dg,
              dskip, dh, q, k, qs, ks, dq, dk, far, kt, v, top, dv, vt, h, ht, scores, pairs, dpairs, lines, first):
    """The gradients of `_forward`, from those of the last states, dh, on, which become those of the first."""
    length, states, width = g.shape[1], kept.shape[3], kept.shape[4]
    keys = g.shape[2] * width + group * states
    decay, entered, onward, factor, dfactor, ddecay = lines[0], lines[1], lines[2], lines[3], lines[4], lines[5]
    carried, along, by, size = lines[6], lines[7], lines[8], q.itemsize
    for chunk in range((length - 1) // CHUNK, -1, -1):
        begin = chunk * CHUNK
        count = min(CHUNK, length - begin)
        _meet(u, row, begin, count, keys, groups * states, states, starts, q, k, kt, scores, first)
        for n in range(count_heads):
            back, which = dh[n], head + n
            line = which * width
            for s in range(states):
                copy(kept[row, chunk, which, s], h[s, :width])
            load(u, row, begin, line, count, width, v)
            load(dy, row, begin, line, count, width, top)
            carried[0] = _decays(g, write, row, begin, count, which, first, decay, entered, onward, factor)
            turn(v, vt, count, width)
            product(dpairs, top, vt, count, width, count, False, False, SEEN, 1)
            for t in range(CHUNK):
                dfactor[t] = 0
            for t in range(count):
                dskip[row, which] += dpairs[t, t]
                by[t] = onward[t] * factor[t]
            some_pairs(1, size, count, CHUNK * size, at(scores), at(decay), at(factor), at(first),
                       at(skip) + which * size, at(pairs), at(dpairs), at(dfactor), at(ddecay))
            scale(q, entered, qs, count)
            scale(k, by, ks, count)
            for t in range(count):
                ddecay[t] -= factor[t] * dfactor[t]
            product(dv, pairs, top, count, count, width, True, False, UPPER, 1)
            product(dv, ks, back, count, states, width, False, True, WHOLE, 1)
            for t in range(count):
                simd.copy(at(du) + ((row * length + begin + t) * du.shape[2] + line) * size,
                          at(dv) + t * dv.shape[1] * size, width * size)
            product(dq, dpairs, k, count, count, states, False, n > 0, LOWER, 1)
            product(dk, dpairs, q, count, count, states, True, n > 0, UPPER, 1)
            turn(h, ht, states, width)  # through the state before the chunk
            product(far, top, ht, count, width, states, False, False, WHOLE, 1)
            scaled(size, True, count, far.shape[1], at(far), far.shape[1], at(entered), at(dq), dq.shape[1])
            dots(qs, far, along, count)
            for t in range(count):
                ddecay[t] += along[t]
            turn(back, ht, states, width)  # through the one after it
            product(far, v, ht, count, width, states, False, False, WHOLE, 1)
            end = carried[0] * total(h, back, states, along)
            scaled(size, True, count, far.shape[1], at(far), far.shape[1], at(by), at(dk), dk.shape[1])
            dots(k, far, along, count)
            for t in range(count):
                through = onward[t] * along[t]
                dfactor[t] += through
                ddecay[t] -= through * factor[t]
                end += through * factor[t]
            ddecay[count - 1] += end
            shrink(back, carried, 0)
            product(back, qs, top, states, count, width, True, True, WHOLE, 1)
            sums = decay.dtype.type(0)
            for t in range(count - 1, -1, -1):
                sums += ddecay[t]
                dg[row, begin + t, which], dwrite[row, begin + t, which] = sums, dfactor[t]
        for t in range(count):
            copy(dk[t], dshared[part, row, begin + t, 0, group])
            copy(dq[t], dshared[part, row, begin + t, 1, group])


@kernel
def backward(begin, end, groups, u, write, g, skip, starts, kept, dy, dfinal, du, dshared, dwrite, dg, dskip, dstate):
    """The gradients of `forward`. dy: lines (B, T, H E). du: (B, T, H E + ...), whose first H E are filled; dshared:
    (tasks of a group, B, T, 2, G, S), of keys and queries, per task. dskip: (B, H), zeros to begin with."""
    kind, (heads, states, width) = g.dtype, dfinal.shape[1:]
    parts, each = (heads // groups + HEADS - 1) // HEADS, heads // groups
    deep, wide = filled(states, g.itemsize), filled(width, g.itemsize)
    dh, h = np.zeros((HEADS, deep, wide), kind), np.zeros((deep, wide), kind)
    kt, vt, ht = np.zeros((deep, CHUNK), kind), np.zeros((wide, CHUNK), kind), np.zeros((wide, deep), kind)
    q, k, qs, ks = (np.zeros((CHUNK, deep), kind), np.zeros((CHUNK, deep), kind), np.zeros((CHUNK, deep), kind),
                    np.zeros((CHUNK, deep), kind))
    dq, dk, far = np.zeros((CHUNK, deep), kind), np.zeros((CHUNK, deep), kind), np.zeros((CHUNK, deep), kind)
    v, top, dv = np.zeros((CHUNK, wide), kind), np.zeros((CHUNK, wide), kind), np.zeros((CHUNK, wide), kind)
    scores, pairs, dpairs = (np.zeros((CHUNK, CHUNK), kind), np.zeros((CHUNK, CHUNK), kind),
                             np.zeros((CHUNK, CHUNK), kind))
    lines = np.zeros((9, CHUNK), kind)
    first = np.zeros(CHUNK, np.int64)
    for task in range(begin, end):
        row, group, part = task // (groups * parts), task // parts % groups, task % parts
        head, count = group * each + part * HEADS, min(HEADS, each - part * HEADS)
        for one in range(count):
            for s in range(states):
                copy(dfinal[row, head + one, s], dh[one, s, :width])
        _backward(row, group, groups, part, head, count, u, write, g, skip, starts, kept, dy, du, dshared, dwrite,
                  dg, dskip, dh, q, k, qs, ks, dq, dk, far, kt, v, top, dv, vt, h, ht, scores, pairs, dpairs, lines,
                  first)
        for one in range(count):
            for s in range(states):
                copy(dh[one, s], dstate[row, head + one, s])
