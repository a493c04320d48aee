"""The matrix memories of the mLSTM and the delta rule on the CPU, chunk by chunk, forward and backward, in float32 and
float64.

A task is one head of one row. It goes along the sequence with its memory; all that a chunk needs (queries, keys,
values, the pairs' weights) fits the second-level cache, every product is register-blocked, and masked pairs are not
computed. The memory before each chunk is stored for the backward pass, which recomputes the rest. A chunk ends where a
document does, so that no pair of a chunk crosses a document boundary.

Buffers are padded with zeros to whole vectors.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
from numba import njit

from segue.kernels.cpu import simd
from segue.kernels.cpu.loops import bare, copy, dot, exp, kernel
from segue.kernels.cpu.products import (
    BLOCK,
    LOWER,
    SEEN,
    UPPER,
    WHOLE,
    at,
    dots,
    dotted,
    filled,
    load,
    part,
    product,
    scale,
    shrink,
    spread,
    store,
    total,
    turn,
)
from segue.kernels.cpu.vectors import SIZES, Numbers, Place, choice, number, over
from segue.kernels.rnn import EMPTY

CHUNK = 64  # nodes; of the delta rule, steps


@bare
def _end(starts, row, start, longest, length):
    """Where the chunk from `start` on ends."""
    stop = min(start + longest, length)
    if starts.shape[1]:
        for t in range(start + 1, stop):
            if starts[row, t]:
                return t
    return stop


@bare
def _count(edges, task):
    """How many chunks a task has."""
    chunks = 0
    while chunks + 1 < edges.shape[1] and edges[task, chunks + 1] > edges[task, chunks]:
        chunks += 1
    return chunks


@njit
def _four(buffers):
    """Buffers of one shape, each by itself."""
    return buffers[0], buffers[1], buffers[2], buffers[3]


def _weigh(back: bool, builder: Any, kind: Any, args: list[Any]) -> None:
    rows, row, scores, g, top, slopes, numbers = args
    lanes, size = SIZES[kind]

    def line(t: Any) -> list[Any]:
        most = Numbers.spread(builder, kind, builder.load(number(builder, kind, top, t)))
        own = number(builder, kind, numbers, t)
        share = Numbers.spread(builder, kind, builder.load(own)) if back else most
        at_t = builder.mul(row, t)

        def body(i: Any, total: Any) -> list[Any]:
            place = Place(builder, kind, builder.mul(i, simd.I64(lanes * size)))
            left = builder.sub(builder.mul(builder.add(t, simd.I64(1)), simd.I64(size)), place.at)
            weight = (place.get(g) - most).exp().first(left)
            score = place.get(builder.add(scores, at_t)).first(left) * weight
            place.put(score, builder.add(scores, at_t))
            if back:
                slope = (place.get(builder.add(slopes, at_t)) + share).first(left) * weight
                place.put(slope, builder.add(slopes, at_t))
            return [(Numbers(builder, total) + score).value]

        vectors = builder.add(builder.udiv(t, simd.I64(lanes)), simd.I64(1))
        (total,) = simd.each(builder, vectors, [most.of(0).value], body)
        if not back:
            builder.store(builder.extract_element(Numbers(builder, total).total().value, simd.I32(0)), own)
        return []

    simd.each(builder, rows, [], line)


def _log_sigmoid(builder: Any, kind: Any, args: list[Any]) -> None:
    count, x = args

    def body(place: Place) -> list[Numbers]:
        value = place.get(x)
        place.put(value.least(0) - value.least(0 - value).exp().log1p(), x)
        return []

    over(builder, kind, count, body)


weigh = choice("weigh", 7, {back: partial(_weigh, bool(back)) for back in (0, 1)})
"""weigh(back, size, rows, row, scores, g, top, slopes, numbers): scores[t, s] *= exp(g[s] - top[t]) for s <= t; their
sums are numbers[t]. If `back`, slopes[t, s] become (slopes[t, s] + numbers[t]) exp(g[s] - top[t]). row: bytes."""
log_sigmoid = choice("log_sigmoid", 2, {0: _log_sigmoid})
"""log_sigmoid(0, size, count, x): of the numbers at x, in place."""


@bare
def _gates(i, f, row, head, start, count, before, b, g, top, carried, onward):
    """b: the running sum of log sigmoid(f) in the chunk; g = i - b; top: the largest g up to a node, and `before`. What
    is written at s weighs exp(g_s - top_t) at t, onward[s] at the last node; carried[t] = exp(before - top_t), of the
    memory. The stabiliser is b + top."""
    total, most = b.dtype.type(0), before
    for t in range(count):
        b[t] = f[row, start + t, head]
    log_sigmoid(0, b.itemsize, count, at(b))
    for t in range(count):
        total += b[t]
        b[t] = total
        g[t] = i[row, start + t, head] - total
        most = max(most, g[t])
        top[t] = most
    for t in range(count):
        carried[t] = exp(before - top[t])
        onward[t] = exp(g[t] - most)


@bare
def _gates_back(read, written, ahead, f, row, head, start, count, di, df):
    """The gradients of the gates. read: q dq of each node; written: k dk; ahead: of what the chunk leaves behind."""
    one = read.dtype.type(1)
    for t in range(count - 1, -1, -1):
        di[row, start + t, head] = written[t]
        ahead += read[t] - written[t]
        df[row, start + t, head] = ahead / (one + exp(f[row, start + t, head]))


@bare
def _divide(norms, row, head, start, count, b, top, eps, inverse):
    """What each node's sum is multiplied with at last."""
    one, tiny = b.dtype.type(1), b.dtype.type(eps)
    for t in range(count):
        inverse[t] = one / (max(abs(norms[row, head, start + t]), exp(-(b[t] + top[t]))) + tiny)


@bare
def _divide_back(norms, row, head, start, count, b, top, along, dnorm):
    """The gradients of the norms. along: dy y of each node."""
    for t in range(count):
        norm = norms[row, head, start + t]
        dnorm[t] = along.dtype.type(0) if abs(norm) < exp(-(b[t] + top[t])) else -along[t] if norm > 0 else along[t]


@bare
def _get(source, row, head, S, n, width):
    """A memory [S n] from (..., K, E + 1)."""
    for r in range(source.shape[2]):
        line, into = source[row, head, r], S[r]
        for c in range(width):
            into[c] = line[c]
        n[0, r] = line[width]


@bare
def _set(target, row, head, S, n, width):
    for r in range(target.shape[2]):
        line, into = S[r], target[row, head, r]
        for c in range(width):
            into[c] = line[c]
        into[width] = n[0, r]


@kernel
def mlstm(begin, end, q, k, v, i, f, starts, lengths, memory, m, eps, y, final, final_m, kept, kept_m, norms, edges):
    """`segue.kernels.mlstm` for the tasks begin..end.

    q, k, v: lines. i, f: (B, T, H). starts: (B, T) bool or (B, 0). lengths: (B,). memory, final: (B, H, K, E + 1).
    m, final_m: (B, H). y: (B, T, H, E). kept: (tasks, chunks, K, E + 1) and kept_m: (tasks, chunks), the memory before
    each chunk; edges: (tasks, chunks + 1), where they begin (of all three none, if there will be no backward pass).
    norms: (B, H, T), what a node reads of the normaliser.
    """
    heads, wide, width, size, kind = y.shape[2], memory.shape[2], y.shape[3], y.itemsize, y.dtype
    K, E = filled(wide, size), filled(width, size)
    Q, keys, turned = np.zeros((CHUNK, K), kind), np.zeros((CHUNK, K), kind), np.zeros((K, CHUNK), kind)
    V, read, S = np.zeros((CHUNK, E), kind), np.zeros((CHUNK, E), kind), np.zeros((wide, E), kind)
    lines = np.zeros((7, CHUNK), kind)
    b, g, top, carried, onward, sums, reads = lines[0], lines[1], lines[2], lines[3], lines[4], lines[5], lines[6]
    scores, ones, n = np.zeros((CHUNK, CHUNK), kind), np.ones((1, CHUNK), kind), np.zeros((1, K), kind)
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
            load(q, row, start, head * q[3], count, wide, Q)
            load(k, row, start, head * k[3], count, wide, keys)
            load(v, row, start, head * v[3], count, width, V)
            _gates(i, f, row, head, start, count, before, b, g, top, carried, onward)
            turn(keys, turned, count, wide)
            product(scores, Q, turned, count, wide, count, False, False, SEEN, 1)
            weigh(0, size, count, CHUNK * size, at(scores), at(g), at(top), 0, at(sums))
            dotted(size, count, K, at(Q), K, at(n), 0, at(reads))
            for t in range(count):
                norms[row, head, start + t] = sums[t] + carried[t] * reads[t]
            _divide(norms, row, head, start, count, b, top, eps, sums)
            scale(Q, carried, Q, count)
            product(read, scores, V, count, count, width, False, False, LOWER, 1)
            product(read, Q, S, count, wide, width, False, True, WHOLE, 1)
            scale(read, sums, read, count)
            store(read, y, row, head, start, count, width)
            scale(keys, onward, keys, count)
            shrink(S, carried, last)
            shrink(n, carried, last)
            product(n, ones, keys, 1, count, wide, False, True, WHOLE, 1)
            product(S, keys, V, wide, count, width, True, True, WHOLE, 1)
            before = b[last] + top[last]
            chunk, start = chunk + 1, stop
        y[row, start:, head] = 0
        final_m[row, head] = before
        _set(final, row, head, S, n, width)


@kernel
def mlstm_backward(begin, end, q, k, v, i, f, starts, eps, y, kept, kept_m, norms, edges, dy, dfinal, dq, dk, dv, di,
                   df, dmemory, dm):
    """The gradients of `mlstm`, of nodes past a row's length nought; none flows through the stabiliser, but one into
    the m that is given. y, dy: lines.

    Of the log decays b (sums of log f) they need not be followed pair by pair: b_t weighs what q_t reads and, the other
    way round, what k_t writes, so that db_t = q_t dq_t - k_t dk_t.
    """
    heads, wide, width, size, kind = dq.shape[2], dq.shape[3], dv.shape[3], dq.itemsize, dq.dtype
    K, E = filled(wide, size), filled(width, size)
    Q, keys, dQ, dK = _four(np.zeros((4, CHUNK, K), kind))
    V, dV, above, scaled = _four(np.zeros((4, CHUNK, E), kind))
    b, g, top, carried = _four(np.zeros((4, CHUNK), kind))
    onward, inverse, read, written = _four(np.zeros((4, CHUNK), kind))
    S, dS, n, dn = np.zeros((K, E), kind), np.zeros((K, E), kind), np.zeros((1, K), kind), np.zeros((1, K), kind)
    turned, turned_v, back = np.zeros((K, CHUNK), kind), np.zeros((E, CHUNK), kind), np.zeros((E, K), kind)
    scores, slopes = np.zeros((CHUNK, CHUNK), kind), np.zeros((CHUNK, CHUNK), kind)
    dnorm, room = np.zeros((1, CHUNK), kind), np.zeros(1, kind)
    for task in range(begin, end):
        row, head = task // heads, task % heads
        _get(dfinal, row, head, dS, dn, width)
        S[:], n[:], reached = 0, 0, 0
        for chunk in range(_count(edges, task) - 1, -1, -1):
            start, count = edges[task, chunk], edges[task, chunk + 1] - edges[task, chunk]
            last, reached = count - 1, max(reached, start + count)
            _get(kept, task, chunk, S, n, width)
            load(q, row, start, head * q[3], count, wide, Q)
            load(k, row, start, head * k[3], count, wide, keys)
            load(v, row, start, head * v[3], count, width, V)
            load(dy, row, start, head * dy[3], count, width, above)
            load(y, row, start, head * y[3], count, width, scaled)
            _gates(i, f, row, head, start, count, kept_m[task, chunk], b, g, top, carried, onward)
            _divide(norms, row, head, start, count, b, top, eps, inverse)
            scale(above, inverse, above, count)
            dots(above, scaled, read, count)
            _divide_back(norms, row, head, start, count, b, top, read, dnorm[0])
            turn(keys, turned, count, wide)
            turn(V, turned_v, count, width)
            product(scores, Q, turned, count, wide, count, False, False, SEEN, 1)
            product(slopes, above, turned_v, count, width, count, False, False, SEEN, 1)
            weigh(1, size, count, CHUNK * size, at(scores), at(g), at(top), at(slopes), at(dnorm))
            # What the chunk writes, to the memory and to its own nodes.
            turn(dS, back, wide, width)
            scale(V, onward, scaled, count)
            spread(dn, onward, dK, count)
            product(dK, scaled, back, count, width, wide, False, True, WHOLE, 1)
            ahead = (total(S, dS, wide, room) + total(n, dn, 1, room)) * carried[last] + total(keys, dK, count, room)
            product(dK, slopes, Q, count, count, wide, True, True, UPPER, 1)
            product(dV, scores, above, count, count, width, True, False, UPPER, 1)
            scale(keys, onward, dQ, count)
            product(dV, dQ, dS, count, wide, width, False, True, WHOLE, 1)
            # What it reads.
            turn(S, back, wide, width)
            scale(above, carried, scaled, count)
            dnorm[0] *= carried
            spread(n, dnorm, dQ, count)
            product(dQ, scaled, back, count, width, wide, False, True, WHOLE, 1)
            product(dQ, slopes, keys, count, count, wide, False, True, LOWER, 1)
            dots(keys, dK, written, count)
            dots(Q, dQ, read, count)
            _gates_back(read, written, ahead, f, row, head, start, count, di, df)
            store(dQ, dq, row, head, start, count, wide)
            store(dK, dk, row, head, start, count, wide)
            store(dV, dv, row, head, start, count, width)
            shrink(dS, carried, last)
            shrink(dn, carried, last)
            product(dn, dnorm, Q, 1, count, wide, False, True, WHOLE, 1)
            product(dS, Q, scaled, wide, count, width, True, True, WHOLE, 1)
            if starts.shape[1] and starts[row, start]:
                dS[:], dn[:] = 0, 0
        dq[row, reached:, head], dk[row, reached:, head], dv[row, reached:, head] = 0, 0, 0
        di[row, reached:, head], df[row, reached:, head] = 0, 0
        _set(dmemory, row, head, dS, dn, width)
        dm[row, head] = total(S, dS, wide, room) + total(n, dn, 1, room)


@bare
def _pairs(scores, rows, many, behind, sign):
    """scores *= sign where the step s came before row t (strictly, if `behind`; all `many` steps of the node t, if
    not), else nought."""
    for t in range(rows):
        line, seen = scores[t], t if behind else (t + 1) * many
        for s in range(seen):
            line[s] *= sign
        line[seen:] = 0


@bare
def _unit(x, rows, width, least, length, norms):
    """Rows become so long, but those shorter than `least`; norms: how long they were."""
    for r in range(rows):
        line = x[r]
        norms[r] = math.sqrt(dot(line, line, width))
        by = length / max(norms[r], least)
        for c in range(width):
            line[c] *= by


@bare
def _unit_back(x, dx, rows, width, least, length, norms):
    """The gradients of `_unit`, of what it made x."""
    for r in range(rows):
        line, grad, norm = x[r], dx[r], max(norms[r], least)
        along = dot(line, grad, width) / (length * length) if norms[r] >= least else least * 0
        for c in range(width):
            grad[c] = (grad[c] - along * line[c]) * (length / norm)


@bare
def _look(q, k, beta, row, head, start, count, many, wide, least, length, Q, keys, strengths, norms_q, norms):
    """Queries, keys and strengths of a chunk; of the first two the norms, where they become unit vectors."""
    first, steps, one = start * many, count * many, Q.dtype.type(1)
    load(q, row, start, head * q[3], count, wide, Q)
    load(k, row, first, head * k[3], steps, wide, keys)
    if least > 0:
        _unit(Q, count, wide, least, length, norms_q)
        _unit(keys, steps, wide, least, one, norms)
    for s in range(steps):
        strengths[s] = beta[row, first + s, head]


@bare
def _match(keys, Q, turned, system, scores, steps, count, many, wide):
    """system: minus the products of a step's key with those before it. scores: of queries with keys."""
    one = Q.dtype.type(1)
    turn(keys, turned, steps, wide)
    product(system, keys, turned, steps, wide, steps, False, False, SEEN, 1)
    _pairs(system, steps, 1, True, -one)
    product(scores, Q, turned, count, wide, steps, False, False, SEEN, many)
    _pairs(scores, count, many, False, one)


@kernel
def delta(begin, end, q, k, v, beta, many, starts, lengths, state, least, y, final, kept, errors, edges):
    """`segue.kernels.delta` for the tasks begin..end, steps side by side: `many` for each node.

    q: lines of nodes; k, v: of steps. beta: (B, T M, H). starts: (B, T) bool or (B, 0). lengths: (B,). state, final:
    (B, H, K, E). y: (B, T, H, E). kept: (tasks, chunks, K, E), the state before each chunk, errors: (tasks, T M, E),
    what each step found wrong (v minus what was known of k), and edges: (tasks, chunks + 1), where chunks begin; of all
    three none, if there will be no backward pass.
    """
    heads, wide, width, size, kind = y.shape[2], state.shape[2], y.shape[3], y.itemsize, y.dtype
    longest = max(1, CHUNK // many)
    K, E, most = filled(wide, size), filled(width, size), filled(longest * many, size)
    Q, keys, turned = np.zeros((longest, K), kind), np.zeros((most, K), kind), np.zeros((K, most), kind)
    written, read, S = np.zeros((most, E), kind), np.zeros((longest, E), kind), np.zeros((wide, E), kind)
    system, scores, V = np.zeros((most, most), kind), np.zeros((longest, most), kind), np.zeros((most, E), kind)
    less, strengths, norms = np.zeros((wide, E), kind), np.zeros(most, kind), np.zeros(most, kind)
    least, length = kind.type(least), kind.type(1 / math.sqrt(wide))
    for task in range(begin, end):
        row, head = task // heads, task % heads
        for r in range(wide):
            copy(state[row, head, r], S[r, :width])
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
                    copy(S[r], kept[task, chunk, r])
            _look(q, k, beta, row, head, start, count, many, wide, least, length, Q, keys, strengths, norms, norms)
            load(v, row, first, head * v[3], steps, width, V)
            _match(keys, Q, turned, system, scores, steps, count, many, wide)
            for r in range(wide):
                for c in range(E):
                    less[r, c] = -S[r, c]
            product(V, keys, less, steps, wide, width, False, True, WHOLE, 1)  # wrong before the chunk
            for s in range(0, steps, BLOCK):  # what the chunk's own steps write, from the first on
                size = min(BLOCK, steps - s)
                if s:
                    part(V, system, written, s, size, 0, s, E, False)
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
                    copy(V[s], errors[task, first + s])
            product(read, Q, S, count, wide, width, False, False, WHOLE, 1)
            product(read, scores, written, count, steps, width, False, True, LOWER, many)
            store(read, y, row, head, start, count, width)
            product(S, keys, written, wide, steps, width, True, True, WHOLE, 1)
            chunk, start = chunk + 1, stop
        y[row, start:, head] = 0
        for r in range(wide):
            copy(S[r], final[row, head, r])


@kernel
def delta_backward(begin, end, q, k, beta, many, starts, least, kept, errors, edges, dy, dfinal, dq, dk, dv, dbeta,
                   dstate):
    """The gradients of `delta`, of nodes past a row's length nought."""
    heads, wide, width, size, kind = dy.shape[2], dq.shape[3], dy.shape[3], dy.itemsize, dy.dtype
    longest, one = max(1, CHUNK // many), kind.type(1)
    K, E, most = filled(wide, size), filled(width, size), filled(longest * many, size)
    Q, dQ, above = np.zeros((longest, K), kind), np.zeros((longest, K), kind), np.zeros((longest, E), kind)
    keys, dK, turned = np.zeros((most, K), kind), np.zeros((most, K), kind), np.zeros((K, most), kind)
    written, wrong, dwritten, dwrong = _four(np.zeros((4, most, E), kind))
    turned_w, back = np.zeros((E, most), kind), np.zeros((E, K), kind)
    system, scores, slopes = (np.zeros((most, most), kind), np.zeros((longest, most), kind),
                              np.zeros((longest, most), kind))
    S, dS = np.zeros((K, E), kind), np.zeros((K, E), kind)
    strengths, norms, norms_q = np.zeros(most, kind), np.zeros(most, kind), np.zeros(longest, kind)
    least, length = kind.type(least), kind.type(1 / math.sqrt(wide))
    for task in range(begin, end):
        row, head = task // heads, task % heads
        for r in range(wide):
            copy(dfinal[row, head, r], dS[r, :width])
        reached = 0
        for chunk in range(_count(edges, task) - 1, -1, -1):
            start, count = edges[task, chunk], edges[task, chunk + 1] - edges[task, chunk]
            first, steps, reached = start * many, count * many, max(reached, start + count)
            for r in range(wide):
                copy(kept[task, chunk, r], S[r, :width])
            _look(q, k, beta, row, head, start, count, many, wide, least, length, Q, keys, strengths, norms_q, norms)
            for s in range(steps):
                copy(errors[task, first + s], wrong[s, :width])
            scale(wrong, strengths, written, steps)
            for t in range(count):
                copy(dy[row, start + t, head], above[t, :width])
            turn(written, turned_w, steps, width)
            _match(keys, Q, turned, system, scores, steps, count, many, wide)
            product(dwritten, scores, above, steps, count, width, True, False, UPPER, many)
            product(dwritten, keys, dS, steps, wide, width, False, True, WHOLE, 1)
            for s in range((steps - 1) // BLOCK * BLOCK, -1, -BLOCK):  # back through the system
                size = min(BLOCK, steps - s)
                if s + size < steps:
                    part(dwritten, system, dwrong, s, size, s + size, steps, E, True)
                for j in range(s + size - 1, s - 1, -1):
                    line, into, strength = dwritten[j], dwrong[j], strengths[j]
                    for o in range(j + 1, s + size):
                        by, other = system[o, j], dwrong[o]
                        for c in range(E):
                            line[c] += by * other[c]
                    for c in range(E):
                        into[c] = strength * line[c]
                    dbeta[row, first + j, head] = dot(wrong[j], line, width)
            store(dwrong, dv, row, head, first, steps, width)
            for s in range(steps):
                for c in range(E):
                    dwrong[s, c] = -dwrong[s, c]  # what was known of a key is taken away
            product(slopes, above, turned_w, count, width, steps, False, False, SEEN, many)
            _pairs(slopes, count, many, False, one)
            product(system, dwrong, turned_w, steps, width, steps, False, False, SEEN, 1)
            _pairs(system, steps, 1, True, one)
            turn(dS, back, wide, width)
            product(dK, written, back, steps, width, wide, False, False, WHOLE, 1)
            turn(S, back, wide, width)
            product(dK, dwrong, back, steps, width, wide, False, True, WHOLE, 1)
            product(dK, slopes, Q, steps, count, wide, True, True, UPPER, many)
            product(dK, system, keys, steps, steps, wide, False, True, LOWER, 1)
            product(dK, system, keys, steps, steps, wide, True, True, UPPER, 1)
            product(dQ, above, back, count, width, wide, False, False, WHOLE, 1)
            product(dQ, slopes, keys, count, steps, wide, False, True, LOWER, many)
            product(dS, Q, above, wide, count, width, True, True, WHOLE, 1)
            product(dS, keys, dwrong, wide, steps, width, True, True, WHOLE, 1)
            if least > 0:
                _unit_back(Q, dQ, count, wide, least, length, norms_q)
                _unit_back(keys, dK, steps, wide, least, one, norms)
            store(dQ, dq, row, head, start, count, wide)
            store(dK, dk, row, head, first, steps, wide)
            if starts.shape[1] and starts[row, start]:
                dS[:] = 0
        dq[row, reached:, head] = 0
        reached *= many
        dk[row, reached:, head], dv[row, reached:, head], dbeta[row, reached:, head] = 0, 0, 0
        for r in range(wide):
            copy(dS[r], dstate[row, head, r])
