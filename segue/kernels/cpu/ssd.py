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
from segue.kernels.cpu.loops import bare, copy, exp, kernel, size_of
from segue.kernels.cpu.products import (
    FULL,
    X_LOWER,
    X_UPPER,
    Y_LOWER,
    at,
    inner_product,
    load,
    padded,
    product,
    row_dots,
    scale,
    scale_in_place,
    scaled,
    transpose,
)
from segue.kernels.cpu.vectors import SIZES, Numbers, Place, dispatch, element_pointer

CHUNK = 64
HEADS = 4  # of a task: they share the products of keys and queries


def _pair_weights(back: bool, builder: Any, kind: Any, args: list[Any]) -> None:
    rows, row, scores, decay, write, first, skip, pairs, dpairs, dwrite, ddecay = args
    b, (lanes, size) = builder, SIZES[kind]
    skips = Numbers.broadcast(b, kind, b.load(element_pointer(b, kind, skip, simd.I64(0))))

    def line(t: Any) -> list[Any]:
        decay_t = Numbers.broadcast(b, kind, b.load(element_pointer(b, kind, decay, t)))
        begin = b.load(simd.pointer(b, b.add(first, b.mul(t, simd.I64(8)))))
        begin, at_t = b.select(b.icmp_signed("<", begin, simd.I64(0)), simd.I64(0), begin), b.mul(row, t)
        offset_t, one = b.mul(t, simd.I64(size)), skips.constant(1)

        def body(i: Any, total: Any) -> list[Any]:
            place = Place(b, kind, b.mul(i, simd.I64(lanes * size)))
            valid_bytes = b.sub(b.add(offset_t, simd.I64(size)), place.at)
            earlier_bytes = b.sub(b.mul(begin, simd.I64(size)), place.at)
            factor = (decay_t - place.get(decay)).minimum(0).exp()
            factor = (factor - factor.first(earlier_bytes)).first(valid_bytes)
            score, written = place.get(b.add(scores, at_t)).first(valid_bytes), place.get(write)
            pair = score * factor * written
            if back:
                grad = place.get(b.add(dpairs, at_t)).first(valid_bytes) * factor
                place.put(place.get(dwrite) + grad * score, dwrite)
                place.put(grad * written, b.add(dpairs, at_t))
                total = (Numbers(b, total) + grad * score * written).value
            place.put(pair + skips * (one.first(valid_bytes) - one.first(b.sub(valid_bytes, simd.I64(size)))),
                      b.add(pairs, at_t))
            return [total]

        (total,) = simd.emit_loop(b, b.add(b.udiv(t, simd.I64(lanes)), simd.I64(1)), [skips.constant(0).value],
                                  body)
        if back:
            b.store(b.extract_element(Numbers(b, total).sum().value, simd.I32(0)),
                    element_pointer(b, kind, ddecay, t))
        return []

    simd.emit_loop(b, rows, [], line)


pair_weights = dispatch("some_pairs", 11, {back: partial(_pair_weights, bool(back)) for back in (0, 1)})
"""some_pairs(back, size, rows, row, scores, decay, write, first, skip, pairs, dpairs, dwrite, ddecay): the weight
of node s for node t, from first[t] to t: pairs[t, s] = scores[t, s] write[s] exp(decay[t] - decay[s]), and `skip` of
itself. If `back`, the gradients of pairs become those of the scores, those of the writes are added, and ddecay[t] is
that of what decayed until then. row: bytes."""


@bare
def _document_starts(starts, row, begin, count, first):
    """Where in the chunk the document of each node begins, -1: before it."""
    last = -1
    for t in range(count):
        if starts.shape[1] and starts[row, begin + t]:
            last = t
        first[t] = last


@bare
def _decays(g, write, row, begin, count, head, first, decay, state_factor, end_factor, strength):
    """decay: sums of log decays in the chunk. state_factor: decay of the state before the chunk up to a node;
    end_factor: decay from a node to the chunk's end; strength: of the node's write. Returns the decay of the state over
    the whole chunk."""
    zero, last_start = decay.dtype.type(0), first[count - 1]
    total = zero
    for t in range(count):
        total += g[row, begin + t, head]
        decay[t], strength[t] = total, write[row, begin + t, head]
    for t in range(count, CHUNK):
        decay[t], strength[t] = total, zero
    for t in range(CHUNK):
        state_factor[t], end_factor[t] = exp(decay[t]), exp(total - decay[t])
    for t in range(count):
        if first[t] >= 0:
            state_factor[t] = zero
        if t < last_start:
            end_factor[t] = zero
    return exp(total) if last_start < 0 else zero


@bare
def _load_shared(u, row, begin, count, keys, query_offset, states, starts, q, k, kt, scores, first):
    """Load what a chunk's heads share: keys, queries (`query_offset` numbers after the keys), their products, and the
    starts of documents."""
    load(u, row, begin, keys, count, states, k)
    load(u, row, begin, keys + query_offset, count, states, q)
    transpose(k, kt, count, states)
    product(scores, q, kt, count, states, count, False, False, Y_LOWER, 1)
    _document_starts(starts, row, begin, count, first)


@bare
def _forward(row, group, groups, head, num_heads, u, write, g, skip, starts, y, saved, h, q, k, qs, kt, v, out,
             scores, pairs, lines, first):
    """Heads `head` .. of a row, from their states h on, which become the last ones."""
    length, states, width = g.shape[1], saved.shape[3], saved.shape[4]
    keys = g.shape[2] * width + group * states
    decay, state_factor, end_factor, strength, chunk_decay = lines[0], lines[1], lines[2], lines[3], lines[4]
    size = size_of(q)
    for chunk in range((length + CHUNK - 1) // CHUNK):
        begin = chunk * CHUNK
        count = min(CHUNK, length - begin)
        _load_shared(u, row, begin, count, keys, groups * states, states, starts, q, k, kt, scores, first)
        for n in range(num_heads):
            state, head_index = h[n], head + n
            if saved.shape[1]:
                for s in range(states):
                    copy(state[s], saved[row, chunk, head_index, s])
            load(u, row, begin, head_index * width, count, width, v)
            chunk_decay[0] = _decays(g, write, row, begin, count, head_index, first, decay, state_factor, end_factor,
                                     strength)
            pair_weights(0, size, count, CHUNK * size, at(scores), at(decay), at(strength), at(first),
                         at(skip) + head_index * size, at(pairs), 0, 0, 0)
            scale(q, state_factor, qs, count)
            product(out, qs, state, count, states, width, False, False, FULL, 1)
            product(out, pairs, v, count, count, width, False, True, X_LOWER, 1)
            for t in range(count):
                simd.copy(at(y) + ((row * length + begin + t) * y.shape[2] + head_index * width) * size,
                          at(out) + t * out.shape[1] * size, width * size)
                end_factor[t] *= strength[t]
            scale(k, end_factor, qs, count)
            scale_in_place(state, chunk_decay, 0)
            product(state, qs, v, states, count, width, True, True, FULL, 1)


@kernel
def forward(begin, end, groups, u, write, g, skip, starts, state, y, final, saved):
    """All nodes of the tasks begin..end, of which each is up to HEADS heads of a group in a row.

    u: lines (B, T, H E + 2 G S), values, keys and queries, of which there are G groups. write, g: (B, T, H), what a
    node writes, and its log decay. skip: (H,). starts: (B, T) bool, or (B, 0): the state is zero before these. state,
    final: (B, H, S, E). y: (B, T, H E). saved: (B, T / CHUNK, H, S, E), the states before the chunks, or (B, 0, ...).
    """
    kind, (heads, states, width) = g.dtype, state.shape[1:]
    tasks_per_group, heads_per_group = (heads // groups + HEADS - 1) // HEADS, heads // groups
    padded_states, padded_width = padded(states, g.itemsize), padded(width, g.itemsize)
    h, kt = np.zeros((HEADS, states, padded_width), kind), np.zeros((padded_states, CHUNK), kind)
    q, k = np.zeros((CHUNK, padded_states), kind), np.zeros((CHUNK, padded_states), kind)
    qs = np.zeros((CHUNK, padded_states), kind)
    v, out = np.zeros((CHUNK, padded_width), kind), np.zeros((CHUNK, padded_width), kind)
    scores, pairs = np.zeros((CHUNK, CHUNK), kind), np.zeros((CHUNK, CHUNK), kind)
    lines = np.zeros((5, CHUNK), kind)
    first = np.zeros(CHUNK, np.int64)
    for task in range(begin, end):
        row, group, part = task // (groups * tasks_per_group), task // tasks_per_group % groups, task % tasks_per_group
        head, count = group * heads_per_group + part * HEADS, min(HEADS, heads_per_group - part * HEADS)
        for n in range(count):
            for s in range(states):
                copy(state[row, head + n, s], h[n, s, :width])
        _forward(row, group, groups, head, count, u, write, g, skip, starts, y, saved, h, q, k, qs, kt, v, out, scores,
                 pairs, lines, first)
        for n in range(count):
            for s in range(states):
                copy(h[n, s], final[row, head + n, s])


@bare
def _backward(row, group, groups, part, head, num_heads, u, write, g, skip, starts, saved, dy, du, dshared, dwrite, dg,
              dskip, dh, q, k, qs, ks, dq, dk, projected, kt, v, dout, dv, vt, h, ht, scores, pairs, dpairs, lines,
              first):
    """The gradients of `_forward`, from those of the last states, dh, on, which become those of the first."""
    length, states, width = g.shape[1], saved.shape[3], saved.shape[4]
    keys = g.shape[2] * width + group * states
    decay, state_factor, end_factor = lines[0], lines[1], lines[2]
    strength, dstrength, ddecay = lines[3], lines[4], lines[5]
    chunk_decay, products, weights, size = lines[6], lines[7], lines[8], size_of(q)
    for chunk in range((length - 1) // CHUNK, -1, -1):
        begin = chunk * CHUNK
        count = min(CHUNK, length - begin)
        _load_shared(u, row, begin, count, keys, groups * states, states, starts, q, k, kt, scores, first)
        for n in range(num_heads):
            dstate, head_index = dh[n], head + n
            line = head_index * width
            for s in range(states):
                copy(saved[row, chunk, head_index, s], h[s, :width])
            load(u, row, begin, line, count, width, v)
            load(dy, row, begin, line, count, width, dout)
            chunk_decay[0] = _decays(g, write, row, begin, count, head_index, first, decay, state_factor, end_factor,
                                     strength)
            transpose(v, vt, count, width)
            product(dpairs, dout, vt, count, width, count, False, False, Y_LOWER, 1)
            for t in range(CHUNK):
                dstrength[t] = 0
            for t in range(count):
                dskip[row, head_index] += dpairs[t, t]
                weights[t] = end_factor[t] * strength[t]
            pair_weights(1, size, count, CHUNK * size, at(scores), at(decay), at(strength), at(first),
                         at(skip) + head_index * size, at(pairs), at(dpairs), at(dstrength), at(ddecay))
            scale(q, state_factor, qs, count)
            scale(k, weights, ks, count)
            for t in range(count):
                ddecay[t] -= strength[t] * dstrength[t]
            product(dv, pairs, dout, count, count, width, True, False, X_UPPER, 1)
            product(dv, ks, dstate, count, states, width, False, True, FULL, 1)
            for t in range(count):
                simd.copy(at(du) + ((row * length + begin + t) * du.shape[2] + line) * size,
                          at(dv) + t * dv.shape[1] * size, width * size)
            product(dq, dpairs, k, count, count, states, False, n > 0, X_LOWER, 1)
            product(dk, dpairs, q, count, count, states, True, n > 0, X_UPPER, 1)
            transpose(h, ht, states, width)  # through the state before the chunk
            product(projected, dout, ht, count, width, states, False, False, FULL, 1)
            scaled(size, True, count, projected.shape[1], at(projected), projected.shape[1], at(state_factor), at(dq),
                   dq.shape[1])
            row_dots(qs, projected, products, count)
            for t in range(count):
                ddecay[t] += products[t]
            transpose(dstate, ht, states, width)  # through the one after it
            product(projected, v, ht, count, width, states, False, False, FULL, 1)
            grad_end = chunk_decay[0] * inner_product(h, dstate, states, products)
            scaled(size, True, count, projected.shape[1], at(projected), projected.shape[1], at(weights), at(dk),
                   dk.shape[1])
            row_dots(k, projected, products, count)
            for t in range(count):
                grad = end_factor[t] * products[t]
                dstrength[t] += grad
                ddecay[t] -= grad * strength[t]
                grad_end += grad * strength[t]
            ddecay[count - 1] += grad_end
            scale_in_place(dstate, chunk_decay, 0)
            product(dstate, qs, dout, states, count, width, True, True, FULL, 1)
            sums = decay.dtype.type(0)
            for t in range(count - 1, -1, -1):
                sums += ddecay[t]
                dg[row, begin + t, head_index], dwrite[row, begin + t, head_index] = sums, dstrength[t]
        for t in range(count):
            copy(dk[t], dshared[part, row, begin + t, 0, group])
            copy(dq[t], dshared[part, row, begin + t, 1, group])


@kernel
def backward(begin, end, groups, u, write, g, skip, starts, saved, dy, dfinal, du, dshared, dwrite, dg, dskip, dstate):
    """The gradients of `forward`. dy: lines (B, T, H E). du: (B, T, H E + ...), whose first H E are filled; dshared:
    (tasks of a group, B, T, 2, G, S), of keys and queries, per task. dskip: (B, H), zeros to begin with."""
    kind, (heads, states, width) = g.dtype, dfinal.shape[1:]
    tasks_per_group, heads_per_group = (heads // groups + HEADS - 1) // HEADS, heads // groups
    padded_states, padded_width = padded(states, g.itemsize), padded(width, g.itemsize)
    dh, h = np.zeros((HEADS, padded_states, padded_width), kind), np.zeros((padded_states, padded_width), kind)
    kt, vt = np.zeros((padded_states, CHUNK), kind), np.zeros((padded_width, CHUNK), kind)
    ht = np.zeros((padded_width, padded_states), kind)
    q, k, qs, ks = (np.zeros((CHUNK, padded_states), kind), np.zeros((CHUNK, padded_states), kind),
                    np.zeros((CHUNK, padded_states), kind), np.zeros((CHUNK, padded_states), kind))
    dq, dk = np.zeros((CHUNK, padded_states), kind), np.zeros((CHUNK, padded_states), kind)
    projected = np.zeros((CHUNK, padded_states), kind)
    v, dout = np.zeros((CHUNK, padded_width), kind), np.zeros((CHUNK, padded_width), kind)
    dv = np.zeros((CHUNK, padded_width), kind)
    scores, pairs, dpairs = (np.zeros((CHUNK, CHUNK), kind), np.zeros((CHUNK, CHUNK), kind),
                             np.zeros((CHUNK, CHUNK), kind))
    lines = np.zeros((9, CHUNK), kind)
    first = np.zeros(CHUNK, np.int64)
    for task in range(begin, end):
        row, group, part = task // (groups * tasks_per_group), task // tasks_per_group % groups, task % tasks_per_group
        head, count = group * heads_per_group + part * HEADS, min(HEADS, heads_per_group - part * HEADS)
        for n in range(count):
            for s in range(states):
                copy(dfinal[row, head + n, s], dh[n, s, :width])
        _backward(row, group, groups, part, head, count, u, write, g, skip, starts, saved, dy, du, dshared, dwrite,
                  dg, dskip, dh, q, k, qs, ks, dq, dk, projected, kt, v, dout, dv, vt, h, ht, scores, pairs, dpairs,
                  lines, first)
        for n in range(count):
            for s in range(states):
                copy(dh[n, s], dstate[row, head + n, s])
