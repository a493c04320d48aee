"""Memories that are matrices, on the CPU, forward and backward, in float32 and float64: the mLSTM's and the delta
rule's, chunk by chunk.

A task is one head of one row. It walks along the sequence with its memory, and all that a chunk needs (queries, keys,
values, the pairs' weights) lies in the second-level cache; every product fills the registers, and what no pair can see
is not computed. The memory before each chunk is kept for the backward pass, which makes the rest anew. A chunk ends
where a document does, so that no pair of a chunk ever crosses one.

Inputs come as `lines`: (address, numbers from row to row, from node to node, from head to head), so that they need not
be contiguous. Buffers are filled up with zeros to whole vectors.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import overload

from segue.kernels.cpu import simd
from segue.kernels.cpu.rnn import EMPTY, _add, _at, _run, fast, kernel
from segue.kernels.cpu.scan import _exp

CHUNK = 64  # nodes; of the delta rule, steps
BLOCK = simd.BLOCK  # rows of a product that are computed together
PANELS = 2  # and vectors of columns
WHOLE, LOWER, UPPER, SEEN = range(4)
"""Shapes of a product: nothing is nought; x[r, i] is for i > r; for i < r; y[r, c] is not wanted for c > r."""


def _lanes(like: Any) -> Any:
    raise NotImplementedError


@overload(_lanes, inline="always")
def _typed_lanes(like):
    lanes = simd.LANES if like.dtype == types.float32 else simd.LANES // 2
    return lambda like: lanes


@fast
def _part(y, x, w, nothing, first, rows, begin, end, vectors, turned, add):
    """Rows first, first + 1, ... of y (+)= x @ w, over begin..end of the inner index."""
    size, lanes = y.itemsize, _lanes(y)
    x_row, x_step = (1, x.shape[1]) if turned else (x.shape[1], 1)
    at_x = _at(x) + (first * x_row + begin * x_step) * size
    for panel in range(0, vectors, PANELS):
        panels = min(PANELS, vectors - panel)
        into = _at(y) + (first * y.shape[1] + panel * lanes) * size
        _run(y, rows, panels, _at(nothing), _at(w) + (begin * w.shape[1] + panel * lanes) * size, at_x,
             into if add else 0, into, w.shape[1], x_row, x_step, 0, end - begin, 1, y.shape[1], y.shape[1])


@fast
def _product(y, x, w, nothing, rows, inner, columns, turned, add, shape, many):
    """y (+)= x @ w, or x^T @ w if `turned`; the triangles of `shape` have `many` columns per row (LOWER, SEEN) or rows
    per column (UPPER)."""
    lanes = _lanes(y)
    vectors = (columns + lanes - 1) // lanes
    for first in range(0, rows, BLOCK):
        count, begin, end, wide = min(BLOCK, rows - first), 0, inner, vectors
        if shape == LOWER:
            end = min(inner, (first + count) * many)
        elif shape == UPPER:
            begin = first // many
        elif shape == SEEN:
            wide = min(vectors, ((first + count) * many + lanes - 1) // lanes)
        _part(y, x, w, nothing, first, count, begin, end, wide, turned, add)


@fast
def _load(lines, row, head, start, count, width, target):
    """(count, width) numbers into the beginning of a buffer."""
    size, into = target.itemsize, _at(target)
    source = lines[0] + (row * lines[1] + start * lines[2] + head * lines[3]) * size
    for j in range(count):
        simd.copy(into + j * target.shape[1] * size, source + j * lines[2] * size, width * size)


@fast
def _store(source, target, row, head, start, count, width):
    size, stride = source.itemsize, target.shape[2] * target.shape[3]
    into = _at(target) + ((row * target.shape[1] + start) * stride + head * target.shape[3]) * size
    for j in range(count):
        simd.copy(into + j * stride * size, _at(source) + j * source.shape[1] * size, width * size)


_turn32, _turn64 = simd.turning(simd.F32, simd.LANES), simd.turning(ir.DoubleType(), simd.LANES // 2)


def _turn(source, target, rows, columns):
    raise NotImplementedError


@overload(_turn)
def _typed_turn(source, target, rows, columns):
    """target = source^T, of buffers that are whole vectors high and wide."""
    turn, lanes = (_turn32, simd.LANES) if source.dtype == types.float32 else (_turn64, simd.LANES // 2)

    def run(source, target, rows, columns):
        size = source.itemsize
        row, line = source.shape[1] * size, target.shape[1] * size
        for r in range(0, rows, lanes):
            for c in range(0, columns, lanes):
                turn(_at(source) + r * row + c * size, row, _at(target) + c * line + r * size, line)

    return run


@fast
def _scale(source, by, target, rows):
    for r in range(rows):
        factor, line, into = by[r], source[r], target[r]
        for c in range(len(line)):
            into[c] = factor * line[c]


@fast
def _dot(x, y, count):
    total = x.dtype.type(0)
    for c in range(count):
        total += x[c] * y[c]
    return total


@fast
def _sum(x, count):
    total = x.dtype.type(0)
    for c in range(count):
        total += x[c]
    return total


@fast
def _multiply(x, y, count):
    """x *= y up to `count`, and nought from there on."""
    for c in range(count):
        x[c] *= y[c]
    x[count:] = 0


@fast
def _shrink(S, n, by):
    for r in range(len(S)):
        line = S[r]
        for c in range(len(line)):
            line[c] *= by
    for r in range(len(n)):
        n[r] *= by


@fast
def _end(starts, row, start, longest, length):
    """Where the chunk from `start` on ends."""
    stop = min(start + longest, length)
    if starts.shape[1]:
        for t in range(start + 1, stop):
            if starts[row, t]:
                return t
    return stop


@fast
def _gates(i, f, row, head, start, count, before, b, g, top, weights, carried):
    """b: the running sum of log sigmoid(f) in the chunk; g = i - b; top: the largest g up to a node, and `before`;
    weights[t, s] = exp(g_s - top_t) of the pairs s <= t, and carried[t] = exp(before - top_t) of the memory. The
    stabiliser is b + top."""
    zero = b.dtype.type(0)
    total, most = zero, before
    for t in range(count):
        x = f[row, start + t, head]
        b[t] = min(x, zero) - math.log1p(_exp(-abs(x)))
    for t in range(count):
        total += b[t]
        b[t] = total
        g[t] = i[row, start + t, head] - total
        most = max(most, g[t])
        top[t] = most
    for t in range(count):
        line, least = weights[t], top[t]
        for s in range(t + 1):
            line[s] = _exp(g[s] - least)
        line[t + 1 :] = 0
    for t in range(count):
        carried[t] = _exp(before - top[t])


@fast
def _get(source, row, head, S, n, width):
    """A memory [S n] from (..., K, E + 1)."""
    for r in range(source.shape[2]):
        line, into = source[row, head, r], S[r]
        for c in range(width):
            into[c] = line[c]
        n[r] = line[width]


@fast
def _set(target, row, head, S, n, width):
    for r in range(target.shape[2]):
        line, into = S[r], target[row, head, r]
        for c in range(width):
            into[c] = line[c]
        into[width] = n[r]


@kernel
def mlstm(begin, end, q, k, v, i, f, starts, lengths, memory, m, eps, y, final, final_m, kept, kept_m, norms, edges):
    """`segue.kernels.mlstm` for the tasks begin..end.

    q, k, v: lines. i, f: (B, T, H). starts: (B, T) bool or (B, 0). lengths: (B,). memory, final: (B, H, K, E + 1).
    m, final_m: (B, H). y: (B, T, H, E). kept: (tasks, chunks, K, E + 1) and kept_m: (tasks, chunks), the memory before
    each chunk; edges: (tasks, chunks + 1), where they begin (of all three none, if there will be no backward pass).
    norms: (B, H, T), what a node reads of the normaliser.
    """
    heads, wide, width, lanes, kind = y.shape[2], memory.shape[2], y.shape[3], _lanes(y), y.dtype
    K, E = (wide + lanes - 1) // lanes * lanes, (width + lanes - 1) // lanes * lanes
    Q, keys, turned = np.zeros((CHUNK, K), kind), np.zeros((CHUNK, K), kind), np.zeros((K, CHUNK), kind)
    V, read, S = np.zeros((CHUNK, E), kind), np.zeros((CHUNK, E), kind), np.zeros((wide, E), kind)
    scores, weights = np.zeros((CHUNK, CHUNK), kind), np.zeros((CHUNK, CHUNK), kind)
    b, g, top, carried = np.zeros(CHUNK, kind), np.zeros(CHUNK, kind), np.zeros(CHUNK, kind), np.zeros(CHUNK, kind)
    n, nothing, tiny = np.zeros(K, kind), np.zeros(PANELS * lanes, kind), kind.type(eps)
    for task in range(begin, end):
        row, head = task // heads, task % heads
        _get(memory, row, head, S, n, width)
        before, chunk, start = m[row, head], 0, 0
        while start < lengths[row]:
            if starts.shape[1] and starts[row, start]:
                S[:], n[:], before = 0, 0, kind.type(EMPTY)
            stop = _end(starts, row, start, CHUNK, lengths[row])
            count = stop - start
            last = count - 1
            if kept.shape[1]:
                edges[task, chunk], edges[task, chunk + 1], kept_m[task, chunk] = start, stop, before
                _set(kept, task, chunk, S, n, width)
            _load(q, row, head, start, count, wide, Q)
            _load(k, row, head, start, count, wide, keys)
            _load(v, row, head, start, count, width, V)
            _gates(i, f, row, head, start, count, before, b, g, top, weights, carried)
            _turn(keys, turned, count, wide)
            _product(scores, Q, turned, nothing, count, wide, count, False, False, SEEN, 1)
            for t in range(count):
                _multiply(scores[t], weights[t], t + 1)
                norms[row, head, start + t] = _sum(scores[t], t + 1) + carried[t] * _dot(Q[t], n, wide)
            _scale(Q, carried, Q, count)
            _product(read, scores, V, nothing, count, count, width, False, False, LOWER, 1)
            _product(read, Q, S, nothing, count, wide, width, False, True, WHOLE, 1)
            for t in range(count):
                by = max(abs(norms[row, head, start + t]), _exp(-(b[t] + top[t]))) + tiny
                line, into = read[t], y[row, start + t, head]
                for c in range(width):
                    into[c] = line[c] / by
            _scale(keys, weights[last], keys, count)
            _shrink(S, n, carried[last])
            for s in range(count):
                _add(n, keys[s])
            _product(S, keys, V, nothing, wide, count, width, True, True, WHOLE, 1)
            before = b[last] + top[last]
            chunk, start = chunk + 1, stop
        y[row, start:, head] = 0
        final_m[row, head] = before
        _set(final, row, head, S, n, width)


@kernel
def mlstm_backward(begin, end, q, k, v, i, f, starts, eps, y, kept, kept_m, norms, edges, dy, dfinal, dq, dk, dv, di,
                   df, dmemory, dm):
    """The gradients of `mlstm`, of nodes past a row's length nought; none flows through the stabiliser, but one into
    the m that is given.

    Of the log decays b (sums of log f) they need not be followed pair by pair: b_t weighs what q_t reads and, the other
    way round, what k_t writes, so that db_t = q_t dq_t - k_t dk_t.
    """
    heads, wide, width, lanes, kind = y.shape[2], dq.shape[3], y.shape[3], _lanes(y), y.dtype
    K, E = (wide + lanes - 1) // lanes * lanes, (width + lanes - 1) // lanes * lanes
    zero, one, tiny, nothing = kind.type(0), kind.type(1), kind.type(eps), np.zeros(PANELS * lanes, kind)
    Q, keys, dQ, dK = (np.zeros((CHUNK, K), kind), np.zeros((CHUNK, K), kind), np.zeros((CHUNK, K), kind),
                       np.zeros((CHUNK, K), kind))
    V, dV, above, scaled = (np.zeros((CHUNK, E), kind), np.zeros((CHUNK, E), kind), np.zeros((CHUNK, E), kind),
                            np.zeros((CHUNK, E), kind))
    turned, turned_v, back = np.zeros((K, CHUNK), kind), np.zeros((E, CHUNK), kind), np.zeros((E, K), kind)
    scores, slopes, weights = (np.zeros((CHUNK, CHUNK), kind), np.zeros((CHUNK, CHUNK), kind),
                               np.zeros((CHUNK, CHUNK), kind))
    b, g, top, carried = np.zeros(CHUNK, kind), np.zeros(CHUNK, kind), np.zeros(CHUNK, kind), np.zeros(CHUNK, kind)
    S, dS, n, dn = np.zeros((K, E), kind), np.zeros((K, E), kind), np.zeros(K, kind), np.zeros(K, kind)
    dnorm, db = np.zeros(CHUNK, kind), np.zeros(CHUNK, kind)
    for task in range(begin, end):
        row, head = task // heads, task % heads
        _get(dfinal, row, head, dS, dn, width)
        S[:], n[:], chunks, reached = 0, 0, 0, 0
        while chunks + 1 < edges.shape[1] and edges[task, chunks + 1] > edges[task, chunks]:
            chunks += 1
        for chunk in range(chunks - 1, -1, -1):
            start, count = edges[task, chunk], edges[task, chunk + 1] - edges[task, chunk]
            last, reached = count - 1, max(reached, start + count)
            _get(kept, task, chunk, S, n, width)
            _load(q, row, head, start, count, wide, Q)
            _load(k, row, head, start, count, wide, keys)
            _load(v, row, head, start, count, width, V)
            _gates(i, f, row, head, start, count, kept_m[task, chunk], b, g, top, weights, carried)
            for t in range(count):  # through the division
                norm, least = norms[row, head, start + t], _exp(-(b[t] + top[t]))
                by = max(abs(norm), least) + tiny
                line, grad, into = y[row, start + t, head], dy[row, start + t, head], above[t]
                for c in range(width):
                    into[c] = grad[c] / by
                along = _dot(into, line, width)
                dnorm[t] = zero if abs(norm) < least else -along if norm > 0 else along
            _turn(keys, turned, count, wide)
            _turn(V, turned_v, count, width)
            _product(scores, Q, turned, nothing, count, wide, count, False, False, SEEN, 1)
            _product(slopes, above, turned_v, nothing, count, width, count, False, False, SEEN, 1)
            for t in range(count):
                _multiply(scores[t], weights[t], t + 1)
                line, by, share = slopes[t], weights[t], dnorm[t]
                for s in range(t + 1):
                    line[s] = (line[s] + share) * by[s]
                line[t + 1 :] = 0
            # What the chunk writes, to the memory and to its own nodes.
            _turn(dS, back, wide, width)
            _scale(V, weights[last], scaled, count)
            for s in range(count):
                line, by = dK[s], weights[last, s]
                for r in range(wide):
                    line[r] = by * dn[r]
            _product(dK, scaled, back, nothing, count, width, wide, False, True, WHOLE, 1)
            ahead = _dot(n, dn, wide)
            for r in range(wide):
                ahead += _dot(S[r], dS[r], width)
            ahead *= carried[last]
            for s in range(count):
                ahead += _dot(keys[s], dK[s], wide)
            _product(dK, slopes, Q, nothing, count, count, wide, True, True, UPPER, 1)
            _product(dV, scores, above, nothing, count, count, width, True, False, UPPER, 1)
            _scale(keys, weights[last], dQ, count)
            _product(dV, dQ, dS, nothing, count, wide, width, False, True, WHOLE, 1)
            # What it reads.
            _turn(S, back, wide, width)
            _scale(above, carried, scaled, count)
            for t in range(count):
                dnorm[t] *= carried[t]
                line, by = dQ[t], dnorm[t]
                for r in range(wide):
                    line[r] = by * n[r]
            _product(dQ, scaled, back, nothing, count, width, wide, False, True, WHOLE, 1)
            _product(dQ, slopes, keys, nothing, count, count, wide, False, True, LOWER, 1)
            for t in range(count):
                written = _dot(keys[t], dK[t], wide)
                di[row, start + t, head] = written
                db[t] = _dot(Q[t], dQ[t], wide) - written
            for t in range(last, -1, -1):
                ahead += db[t]
                df[row, start + t, head] = ahead / (one + _exp(f[row, start + t, head]))
            _store(dQ, dq, row, head, start, count, wide)
            _store(dK, dk, row, head, start, count, wide)
            _store(dV, dv, row, head, start, count, width)
            _shrink(dS, dn, carried[last])
            for t in range(count):
                line, by = Q[t], dnorm[t]
                for r in range(wide):
                    dn[r] += by * line[r]
            _product(dS, Q, scaled, nothing, wide, count, width, True, True, WHOLE, 1)
            if starts.shape[1] and starts[row, start]:
                dS[:], dn[:] = 0, 0
        for t in range(reached, len(dq[row])):
            dq[row, t, head], dk[row, t, head], dv[row, t, head] = 0, 0, 0
            di[row, t, head], df[row, t, head] = zero, zero
        _set(dmemory, row, head, dS, dn, width)
        share = _dot(n, dn, wide)
        for r in range(wide):
            share += _dot(S[r], dS[r], width)
        dm[row, head] = share


@fast
def _pairs(scores, rows, many, behind, sign):
    """scores *= sign where the step s came before row t (strictly, if `behind`; all `many` steps of the node t, if
    not), else nought."""
    for t in range(rows):
        line, seen = scores[t], t if behind else (t + 1) * many
        for s in range(seen):
            line[s] *= sign
        line[seen:] = 0


@kernel
def delta(begin, end, q, k, v, beta, many, starts, lengths, state, y, final, kept, errors, edges):
    """`segue.kernels.delta` for the tasks begin..end, steps side by side: `many` for each node.

    q: lines of nodes; k, v: of steps. beta: (B, T M, H). starts: (B, T) bool or (B, 0). lengths: (B,). state, final:
    (B, H, K, E). y: (B, T, H, E). kept: (tasks, chunks, K, E), the state before each chunk, errors: (tasks, T M, E),
    what each step found wrong (v minus what was known of k), and edges: (tasks, chunks + 1), where chunks begin; of all
    three none, if there will be no backward pass.
    """
    heads, wide, width, lanes, kind = y.shape[2], state.shape[2], y.shape[3], _lanes(y), y.dtype
    K, E, one, longest = ((wide + lanes - 1) // lanes * lanes, (width + lanes - 1) // lanes * lanes, kind.type(1),
                          max(1, CHUNK // many))
    most = (longest * many + lanes - 1) // lanes * lanes
    Q, keys, turned = np.zeros((longest, K), kind), np.zeros((most, K), kind), np.zeros((K, most), kind)
    written, read, S = np.zeros((most, E), kind), np.zeros((longest, E), kind), np.zeros((wide, E), kind)
    system, scores, V = np.zeros((most, most), kind), np.zeros((longest, most), kind), np.zeros((most, E), kind)
    less, strengths, nothing = np.zeros((wide, E), kind), np.zeros(most, kind), np.zeros(PANELS * lanes, kind)
    for task in range(begin, end):
        row, head = task // heads, task % heads
        for r in range(wide):
            S[r, :width] = state[row, head, r]
        chunk, start = 0, 0
        while start < lengths[row]:
            if starts.shape[1] and starts[row, start]:
                S[:] = 0
            stop = _end(starts, row, start, longest, lengths[row])
            count, first = stop - start, start * many
            steps = count * many
            if kept.shape[1]:
                edges[task, chunk], edges[task, chunk + 1] = start, stop
                for r in range(wide):
                    kept[task, chunk, r] = S[r, :width]
            _load(q, row, head, start, count, wide, Q)
            _load(k, row, head, first, steps, wide, keys)
            _load(v, row, head, first, steps, width, V)
            for s in range(steps):
                strengths[s] = beta[row, first + s, head]
            _turn(keys, turned, steps, wide)
            _product(system, keys, turned, nothing, steps, wide, steps, False, False, SEEN, 1)
            _pairs(system, steps, 1, True, -one)
            for r in range(wide):
                for c in range(E):
                    less[r, c] = -S[r, c]
            _product(V, keys, less, nothing, steps, wide, width, False, True, WHOLE, 1)  # wrong before the chunk
            for s in range(0, steps, BLOCK):  # what the chunk's own steps write, from the first on
                size = min(BLOCK, steps - s)
                if s:
                    _part(V, system, written, nothing, s, size, 0, s, E // lanes, False, True)
                for j in range(s, s + size):
                    line, into, strength = V[j], written[j], strengths[j]
                    for o in range(s, j):
                        by, other = system[j, o], written[o]
                        for c in range(E):
                            line[c] += by * other[c]
                    for c in range(E):
                        into[c] = strength * line[c]
            if kept.shape[1]:
                for s in range(steps):
                    errors[task, first + s] = V[s, :width]
            _product(scores, Q, turned, nothing, count, wide, steps, False, False, SEEN, many)
            _pairs(scores, count, many, False, one)
            _product(read, Q, S, nothing, count, wide, width, False, False, WHOLE, 1)
            _product(read, scores, written, nothing, count, steps, width, False, True, LOWER, many)
            _store(read, y, row, head, start, count, width)
            _product(S, keys, written, nothing, wide, steps, width, True, True, WHOLE, 1)
            chunk, start = chunk + 1, stop
        y[row, start:, head] = 0
        for r in range(wide):
            final[row, head, r] = S[r, :width]


@kernel
def delta_backward(begin, end, q, k, beta, many, starts, kept, errors, edges, dy, dfinal, dq, dk, dv, dbeta, dstate):
    """The gradients of `delta`, of nodes past a row's length nought."""
    heads, wide, width, lanes, kind = dy.shape[2], dq.shape[3], dy.shape[3], _lanes(dy), dy.dtype
    K, E, one, longest = ((wide + lanes - 1) // lanes * lanes, (width + lanes - 1) // lanes * lanes, kind.type(1),
                          max(1, CHUNK // many))
    most = (longest * many + lanes - 1) // lanes * lanes
    Q, dQ, above = np.zeros((longest, K), kind), np.zeros((longest, K), kind), np.zeros((longest, E), kind)
    keys, dK, turned = np.zeros((most, K), kind), np.zeros((most, K), kind), np.zeros((K, most), kind)
    written, wrong, dwritten, dwrong = (np.zeros((most, E), kind), np.zeros((most, E), kind), np.zeros((most, E), kind),
                                       np.zeros((most, E), kind))
    turned_w, back = np.zeros((E, most), kind), np.zeros((E, K), kind)
    system, scores, slopes = (np.zeros((most, most), kind), np.zeros((longest, most), kind),
                              np.zeros((longest, most), kind))
    S, dS = np.zeros((K, E), kind), np.zeros((K, E), kind)
    strengths, nothing = np.zeros(most, kind), np.zeros(PANELS * lanes, kind)
    for task in range(begin, end):
        row, head = task // heads, task % heads
        for r in range(wide):
            dS[r, :width] = dfinal[row, head, r]
        chunks, reached = 0, 0
        while chunks + 1 < edges.shape[1] and edges[task, chunks + 1] > edges[task, chunks]:
            chunks += 1
        for chunk in range(chunks - 1, -1, -1):
            start, count = edges[task, chunk], edges[task, chunk + 1] - edges[task, chunk]
            first, steps, reached = start * many, count * many, max(reached, start + count)
            for r in range(wide):
                S[r, :width] = kept[task, chunk, r]
            _load(q, row, head, start, count, wide, Q)
            _load(k, row, head, first, steps, wide, keys)
            for s in range(steps):
                strengths[s] = beta[row, first + s, head]
                wrong[s, :width] = errors[task, first + s]
            _scale(wrong, strengths, written, steps)
            for t in range(count):
                above[t, :width] = dy[row, start + t, head]
            _turn(keys, turned, steps, wide)
            _turn(written, turned_w, steps, width)
            _product(system, keys, turned, nothing, steps, wide, steps, False, False, SEEN, 1)
            _pairs(system, steps, 1, True, -one)
            _product(scores, Q, turned, nothing, count, wide, steps, False, False, SEEN, many)
            _pairs(scores, count, many, False, one)
            _product(dwritten, scores, above, nothing, steps, count, width, True, False, UPPER, many)
            _product(dwritten, keys, dS, nothing, steps, wide, width, False, True, WHOLE, 1)
            for s in range((steps - 1) // BLOCK * BLOCK, -1, -BLOCK):  # back through the system
                size = min(BLOCK, steps - s)
                if s + size < steps:
                    _part(dwritten, system, dwrong, nothing, s, size, s + size, steps, E // lanes, True, True)
                for j in range(s + size - 1, s - 1, -1):
                    line, into, strength = dwritten[j], dwrong[j], strengths[j]
                    for o in range(j + 1, s + size):
                        by, other = system[o, j], dwrong[o]
                        for c in range(E):
                            line[c] += by * other[c]
                    for c in range(E):
                        into[c] = strength * line[c]
                    dbeta[row, first + j, head] = _dot(wrong[j], line, width)
            _store(dwrong, dv, row, head, first, steps, width)
            for s in range(steps):
                for c in range(E):
                    dwrong[s, c] = -dwrong[s, c]  # what was known of a key is taken away
            _product(slopes, above, turned_w, nothing, count, width, steps, False, False, SEEN, many)
            _pairs(slopes, count, many, False, one)
            _product(system, dwrong, turned_w, nothing, steps, width, steps, False, False, SEEN, 1)
            _pairs(system, steps, 1, True, one)
            _turn(dS, back, wide, width)
            _product(dK, written, back, nothing, steps, width, wide, False, False, WHOLE, 1)
            _turn(S, back, wide, width)
            _product(dK, dwrong, back, nothing, steps, width, wide, False, True, WHOLE, 1)
            _product(dK, slopes, Q, nothing, steps, count, wide, True, True, UPPER, many)
            _product(dK, system, keys, nothing, steps, steps, wide, False, True, LOWER, 1)
            _product(dK, system, keys, nothing, steps, steps, wide, True, True, UPPER, 1)
            _product(dQ, above, back, nothing, count, width, wide, False, False, WHOLE, 1)
            _product(dQ, slopes, keys, nothing, count, steps, wide, False, True, LOWER, many)
            _store(dQ, dq, row, head, start, count, wide)
            _store(dK, dk, row, head, first, steps, wide)
            _product(dS, Q, above, nothing, wide, count, width, True, True, WHOLE, 1)
            _product(dS, keys, dwrong, nothing, wide, steps, width, True, True, WHOLE, 1)
            if starts.shape[1] and starts[row, start]:
                dS[:] = 0
        for t in range(reached, len(dq[row])):
            dq[row, t, head] = 0
        for s in range(reached * many, len(dk[row])):
            dk[row, s, head], dv[row, s, head], dbeta[row, s, head] = 0, 0, 0
        for r in range(wide):
            dstate[row, head, r] = dS[r, :width]
