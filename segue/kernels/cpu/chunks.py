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
from segue.kernels.cpu.loops import bare, copy, dot, exp, kernel, size_of
from segue.kernels.cpu.products import (
    BLOCK,
    FULL,
    X_LOWER,
    X_UPPER,
    Y_LOWER,
    accumulate_rows,
    at,
    dotted,
    inner_product,
    load,
    outer_product,
    padded,
    product,
    row_dots,
    scale,
    scale_in_place,
    store,
    transpose,
)
from segue.kernels.cpu.vectors import SIZES, Numbers, Place, dispatch, element_pointer, loop_row
from segue.kernels.rnn import EMPTY

CHUNK = 64  # nodes; of the delta rule, steps


@bare
def _chunk_end(starts, row, start, max_nodes, length):
    """The end of the chunk that begins at `start`: before the next document, and within max_nodes."""
    stop = min(start + max_nodes, length)
    if starts.shape[1]:
        for t in range(start + 1, stop):
            if starts[row, t]:
                return t
    return stop


@bare
def _num_chunks(edges, task):
    """The number of chunks of a task."""
    chunks = 0
    while chunks + 1 < edges.shape[1] and edges[task, chunks + 1] > edges[task, chunks]:
        chunks += 1
    return chunks


@njit
def _unstack4(buffers):
    """Unstack four buffers of one shape."""
    return buffers[0], buffers[1], buffers[2], buffers[3]


def _weigh(back: bool, builder: Any, kind: Any, args: list[Any]) -> None:
    rows, row, scores, g, top, grads, row_numbers = args
    lanes, size = SIZES[kind]

    def line(t: Any) -> list[Any]:
        maximum = Numbers.broadcast(builder, kind, builder.load(element_pointer(builder, kind, top, t)))
        output = element_pointer(builder, kind, row_numbers, t)
        grad_norm = Numbers.broadcast(builder, kind, builder.load(output)) if back else maximum
        at_t = builder.mul(row, t)

        def body(i: Any, total: Any) -> list[Any]:
            place = Place(builder, kind, builder.mul(i, simd.I64(lanes * size)))
            valid_bytes = builder.sub(builder.mul(builder.add(t, simd.I64(1)), simd.I64(size)), place.at)
            weight = (place.get(g) - maximum).exp().first(valid_bytes)
            score = place.get(builder.add(scores, at_t)).first(valid_bytes) * weight
            place.put(score, builder.add(scores, at_t))
            if back:
                grad = (place.get(builder.add(grads, at_t)) + grad_norm).first(valid_bytes) * weight
                place.put(grad, builder.add(grads, at_t))
            return [(Numbers(builder, total) + score).value]

        vectors = builder.add(builder.udiv(t, simd.I64(lanes)), simd.I64(1))
        (total,) = simd.emit_loop(builder, vectors, [maximum.constant(0).value], body)
        if not back:
            builder.store(builder.extract_element(Numbers(builder, total).sum().value, simd.I32(0)), output)
        return []

    simd.emit_loop(builder, rows, [], line)


def _log_sigmoid(builder: Any, kind: Any, args: list[Any]) -> None:
    count, x = args

    def body(place: Place) -> list[Numbers]:
        value = place.get(x)
        place.put(value.minimum(0) - value.minimum(0 - value).exp().log1p(), x)
        return []

    loop_row(builder, kind, count, body)


weigh = dispatch("weigh", 7, {back: partial(_weigh, bool(back)) for back in (0, 1)})
"""weigh(back, size, rows, row, scores, g, top, slopes, numbers): scores[t, s] *= exp(g[s] - top[t]) for s <= t; their
sums are numbers[t]. If `back`, slopes[t, s] become (slopes[t, s] + numbers[t]) exp(g[s] - top[t]). row: bytes."""
log_sigmoid = dispatch("log_sigmoid", 2, {0: _log_sigmoid})
"""log_sigmoid(0, size, count, x): of the numbers at x, in place."""


@bare
def _gates(i, f, row, head, start, count, previous_maximum, b, g, maxima, state_factor, write_factor):
    """b: the running sum of log sigmoid(f) in the chunk; g = i - b; maxima: the largest g up to a node, and
    `previous_maximum`. The write of node s has weight exp(g_s - maxima_t) at node t and write_factor[s] at the
    last node; the memory has state_factor[t] = exp(previous_maximum - maxima_t). The stabiliser is b + maxima."""
    total, maximum = b.dtype.type(0), previous_maximum
    for t in range(count):
        b[t] = f[row, start + t, head]
    log_sigmoid(0, size_of(b), count, at(b))
    for t in range(count):
        total += b[t]
        b[t] = total
        g[t] = i[row, start + t, head] - total
        maximum = max(maximum, g[t])
        maxima[t] = maximum
    for t in range(count):
        state_factor[t] = exp(previous_maximum - maxima[t])
        write_factor[t] = exp(g[t] - maximum)


@bare
def _gate_gradients(read, written, carry, f, row, head, start, count, di, df):
    """The gradients of the gates. read: q dq of each node; written: k dk; carry: the gradient of the decays of later
    chunks."""
    one = read.dtype.type(1)
    for t in range(count - 1, -1, -1):
        di[row, start + t, head] = written[t]
        carry += read[t] - written[t]
        df[row, start + t, head] = carry / (one + exp(f[row, start + t, head]))


@bare
def _normalisers(norms, row, head, start, count, b, maxima, eps, inverse):
    """The factor of each node's sum: 1 / max(|norm|, exp(-stabiliser))."""
    one, tiny = b.dtype.type(1), b.dtype.type(eps)
    for t in range(count):
        inverse[t] = one / (max(abs(norms[row, head, start + t]), exp(-(b[t] + maxima[t]))) + tiny)


@bare
def _normaliser_gradients(norms, row, head, start, count, b, maxima, products, dnorm):
    """The gradients of the norms. products: dy y of each node."""
    for t in range(count):
        norm = norms[row, head, start + t]
        if abs(norm) < exp(-(b[t] + maxima[t])):
            dnorm[t] = products.dtype.type(0)
        else:
            dnorm[t] = -products[t] if norm > 0 else products[t]


@bare
def _load_state(source, row, head, S, n, width):
    """A memory [S n] from (..., K, E + 1)."""
    for r in range(source.shape[2]):
        source_line, target_line = source[row, head, r], S[r]
        for c in range(width):
            target_line[c] = source_line[c]
        n[0, r] = source_line[width]


@bare
def _store_state(target, row, head, S, n, width):
    for r in range(target.shape[2]):
        source_line, target_line = S[r], target[row, head, r]
        for c in range(width):
            target_line[c] = source_line[c]
        target_line[width] = n[0, r]


@kernel
def mlstm(begin, end, q, k, v, i, f, starts, lengths, memory, m, eps, y, final, final_m, saved, saved_m, norms, edges):
    """`segue.kernels.mlstm` for the tasks begin..end.

    q, k, v: lines. i, f: (B, T, H). starts: (B, T) bool or (B, 0). lengths: (B,). memory, final: (B, H, K, E + 1).
    m, final_m: (B, H). y: (B, T, H, E). saved: (tasks, chunks, K, E + 1) and saved_m: (tasks, chunks), the memory
    before each chunk; edges: (tasks, chunks + 1), where they begin (of all three none, if there will be no backward
    pass). norms: (B, H, T), what a node reads of the normaliser.
    """
    heads, key_width, width, size, kind = y.shape[2], memory.shape[2], y.shape[3], size_of(y), y.dtype
    K, E = padded(key_width, size), padded(width, size)
    Q, keys, keys_t = np.zeros((CHUNK, K), kind), np.zeros((CHUNK, K), kind), np.zeros((K, CHUNK), kind)
    V, outputs, S = np.zeros((CHUNK, E), kind), np.zeros((CHUNK, E), kind), np.zeros((key_width, E), kind)
    lines = np.zeros((7, CHUNK), kind)
    b, g, maxima, state_factor, write_factor = lines[0], lines[1], lines[2], lines[3], lines[4]
    sums, reads = lines[5], lines[6]
    scores, ones, n = np.zeros((CHUNK, CHUNK), kind), np.ones((1, CHUNK), kind), np.zeros((1, K), kind)
    for task in range(begin, end):
        row, head = task // heads, task % heads
        _load_state(memory, row, head, S, n, width)
        previous_maximum, chunk, start = m[row, head], 0, 0
        while start < lengths[row]:
            if starts.shape[1] and starts[row, start]:
                S[:], n[:], previous_maximum = 0, 0, kind.type(EMPTY)
            stop = _chunk_end(starts, row, start, CHUNK, lengths[row])
            count = stop - start
            last = count - 1
            if saved.shape[1]:
                edges[task, chunk], edges[task, chunk + 1], saved_m[task, chunk] = start, stop, previous_maximum
                _store_state(saved, task, chunk, S, n, width)
            load(q, row, start, head * q[3], count, key_width, Q)
            load(k, row, start, head * k[3], count, key_width, keys)
            load(v, row, start, head * v[3], count, width, V)
            _gates(i, f, row, head, start, count, previous_maximum, b, g, maxima, state_factor, write_factor)
            transpose(keys, keys_t, count, key_width)
            product(scores, Q, keys_t, count, key_width, count, False, False, Y_LOWER, 1)
            weigh(0, size, count, CHUNK * size, at(scores), at(g), at(maxima), 0, at(sums))
            dotted(size, count, K, at(Q), K, at(n), 0, at(reads))
            for t in range(count):
                norms[row, head, start + t] = sums[t] + state_factor[t] * reads[t]
            _normalisers(norms, row, head, start, count, b, maxima, eps, sums)
            scale(Q, state_factor, Q, count)
            product(outputs, scores, V, count, count, width, False, False, X_LOWER, 1)
            product(outputs, Q, S, count, key_width, width, False, True, FULL, 1)
            scale(outputs, sums, outputs, count)
            store(outputs, y, row, head, start, count, width)
            scale(keys, write_factor, keys, count)
            scale_in_place(S, state_factor, last)
            scale_in_place(n, state_factor, last)
            product(n, ones, keys, 1, count, key_width, False, True, FULL, 1)
            product(S, keys, V, key_width, count, width, True, True, FULL, 1)
            previous_maximum = b[last] + maxima[last]
            chunk, start = chunk + 1, stop
        y[row, start:, head] = 0
        final_m[row, head] = previous_maximum
        _store_state(final, row, head, S, n, width)


@kernel
def mlstm_backward(begin, end, q, k, v, i, f, starts, eps, y, saved, saved_m, norms, edges, dy, dfinal, dq, dk, dv, di,
                   df, dmemory, dm):
    """The gradients of `mlstm`, of nodes past a row's length nought; none flows through the stabiliser, but one into
    the m that is given. y, dy: lines.

    Of the log decays b (sums of log f) they need not be followed pair by pair: b_t weighs what q_t reads and, the other
    way round, what k_t writes, so that db_t = q_t dq_t - k_t dk_t.
    """
    heads, key_width, width, size, kind = dq.shape[2], dq.shape[3], dv.shape[3], size_of(dq), dq.dtype
    K, E = padded(key_width, size), padded(width, size)
    Q, keys, dQ, dK = _unstack4(np.zeros((4, CHUNK, K), kind))
    V, dV, dout, scaled = _unstack4(np.zeros((4, CHUNK, E), kind))
    b, g, maxima, state_factor = _unstack4(np.zeros((4, CHUNK), kind))
    write_factor, inverse, read, written = _unstack4(np.zeros((4, CHUNK), kind))
    S, dS, n, dn = np.zeros((K, E), kind), np.zeros((K, E), kind), np.zeros((1, K), kind), np.zeros((1, K), kind)
    keys_t, values_t, state_t = np.zeros((K, CHUNK), kind), np.zeros((E, CHUNK), kind), np.zeros((E, K), kind)
    scores, dscores = np.zeros((CHUNK, CHUNK), kind), np.zeros((CHUNK, CHUNK), kind)
    dnorm, scratch = np.zeros((1, CHUNK), kind), np.zeros(1, kind)
    for task in range(begin, end):
        row, head = task // heads, task % heads
        _load_state(dfinal, row, head, dS, dn, width)
        S[:], n[:], num_nodes = 0, 0, 0
        for chunk in range(_num_chunks(edges, task) - 1, -1, -1):
            start, count = edges[task, chunk], edges[task, chunk + 1] - edges[task, chunk]
            last, num_nodes = count - 1, max(num_nodes, start + count)
            _load_state(saved, task, chunk, S, n, width)
            load(q, row, start, head * q[3], count, key_width, Q)
            load(k, row, start, head * k[3], count, key_width, keys)
            load(v, row, start, head * v[3], count, width, V)
            load(dy, row, start, head * dy[3], count, width, dout)
            load(y, row, start, head * y[3], count, width, scaled)
            _gates(i, f, row, head, start, count, saved_m[task, chunk], b, g, maxima, state_factor, write_factor)
            _normalisers(norms, row, head, start, count, b, maxima, eps, inverse)
            scale(dout, inverse, dout, count)
            row_dots(dout, scaled, read, count)
            _normaliser_gradients(norms, row, head, start, count, b, maxima, read, dnorm[0])
            transpose(keys, keys_t, count, key_width)
            transpose(V, values_t, count, width)
            product(scores, Q, keys_t, count, key_width, count, False, False, Y_LOWER, 1)
            product(dscores, dout, values_t, count, width, count, False, False, Y_LOWER, 1)
            weigh(1, size, count, CHUNK * size, at(scores), at(g), at(maxima), at(dscores), at(dnorm))
            # What the chunk writes, to the memory and to its own nodes.
            transpose(dS, state_t, key_width, width)
            scale(V, write_factor, scaled, count)
            outer_product(dn, write_factor, dK, count)
            product(dK, scaled, state_t, count, width, key_width, False, True, FULL, 1)
            through_state = inner_product(S, dS, key_width, scratch) + inner_product(n, dn, 1, scratch)
            carry = through_state * state_factor[last] + inner_product(keys, dK, count, scratch)
            product(dK, dscores, Q, count, count, key_width, True, True, X_UPPER, 1)
            product(dV, scores, dout, count, count, width, True, False, X_UPPER, 1)
            scale(keys, write_factor, dQ, count)
            product(dV, dQ, dS, count, key_width, width, False, True, FULL, 1)
            # What it reads.
            transpose(S, state_t, key_width, width)
            scale(dout, state_factor, scaled, count)
            for t in range(count):
                dnorm[0, t] *= state_factor[t]
            outer_product(n, dnorm, dQ, count)
            product(dQ, scaled, state_t, count, width, key_width, False, True, FULL, 1)
            product(dQ, dscores, keys, count, count, key_width, False, True, X_LOWER, 1)
            row_dots(keys, dK, written, count)
            row_dots(Q, dQ, read, count)
            _gate_gradients(read, written, carry, f, row, head, start, count, di, df)
            store(dQ, dq, row, head, start, count, key_width)
            store(dK, dk, row, head, start, count, key_width)
            store(dV, dv, row, head, start, count, width)
            scale_in_place(dS, state_factor, last)
            scale_in_place(dn, state_factor, last)
            product(dn, dnorm, Q, 1, count, key_width, False, True, FULL, 1)
            product(dS, Q, scaled, key_width, count, width, True, True, FULL, 1)
            if starts.shape[1] and starts[row, start]:
                dS[:], dn[:] = 0, 0
        dq[row, num_nodes:, head], dk[row, num_nodes:, head], dv[row, num_nodes:, head] = 0, 0, 0
        di[row, num_nodes:, head], df[row, num_nodes:, head] = 0, 0
        _store_state(dmemory, row, head, dS, dn, width)
        dm[row, head] = inner_product(S, dS, key_width, scratch) + inner_product(n, dn, 1, scratch)


@bare
def _mask_pairs(scores, rows, steps_per_node, strict, sign):
    """scores *= sign where step s is before row t (strict) or up to the last of the steps_per_node steps of node t (not
    strict), else 0."""
    for t in range(rows):
        line, num_valid = scores[t], t if strict else (t + 1) * steps_per_node
        for s in range(num_valid):
            line[s] *= sign
        line[num_valid:] = 0


@bare
def _normalise_rows(x, rows, width, min_norm, length, norms):
    """Scale rows to norm `length`, with norms below `min_norm` taken as that; norms: the norms before."""
    for r in range(rows):
        line = x[r]
        norms[r] = math.sqrt(dot(line, line, width))
        factor = length / max(norms[r], min_norm)
        for c in range(width):
            line[c] *= factor


@bare
def _normalise_rows_backward(x, dx, rows, width, min_norm, length, norms):
    """The gradients of `_normalise_rows`, with its output x."""
    for r in range(rows):
        line, grad, norm = x[r], dx[r], max(norms[r], min_norm)
        projection = dot(line, grad, width) / (length * length) if norms[r] >= min_norm else min_norm * 0
        for c in range(width):
            grad[c] = (grad[c] - projection * line[c]) * (length / norm)


@bare
def _load_chunk(q, k, beta, row, head, start, count, steps_per_node, key_width, min_norm, length, Q, keys, strengths,
                norms_q, norms):
    """Load a chunk's queries, keys and strengths; queries and keys are normalised if min_norm > 0."""
    first, steps, one = start * steps_per_node, count * steps_per_node, Q.dtype.type(1)
    load(q, row, start, head * q[3], count, key_width, Q)
    load(k, row, first, head * k[3], steps, key_width, keys)
    if min_norm > 0:
        _normalise_rows(Q, count, key_width, min_norm, length, norms_q)
        _normalise_rows(keys, steps, key_width, min_norm, one, norms)
    for s in range(steps):
        strengths[s] = beta[row, first + s, head]


@bare
def _similarities(keys, Q, keys_t, system, scores, steps, count, steps_per_node, key_width):
    """system: minus the products of a step's key with those before it. scores: of queries with keys."""
    one = Q.dtype.type(1)
    transpose(keys, keys_t, steps, key_width)
    product(system, keys, keys_t, steps, key_width, steps, False, False, Y_LOWER, 1)
    _mask_pairs(system, steps, 1, True, -one)
    product(scores, Q, keys_t, count, key_width, steps, False, False, Y_LOWER, steps_per_node)
    _mask_pairs(scores, count, steps_per_node, False, one)


@kernel
def delta(begin, end, q, k, v, beta, steps_per_node, starts, lengths, state, min_norm, y, final, saved, errors, edges):
    """`segue.kernels.delta` for the tasks begin..end, steps side by side: `steps_per_node` for each node.

    q: lines of nodes; k, v: of steps. beta: (B, T M, H). starts: (B, T) bool or (B, 0). lengths: (B,). state, final:
    (B, H, K, E). y: (B, T, H, E). saved: (tasks, chunks, K, E), the state before each chunk, errors: (tasks, T M, E),
    each step's error (v minus the memory's value for k), and edges: (tasks, chunks + 1), where chunks begin; of all
    three none, if there will be no backward pass.
    """
    heads, key_width, width, size, kind = y.shape[2], state.shape[2], y.shape[3], size_of(y), y.dtype
    max_nodes = max(1, CHUNK // steps_per_node)
    K, E, max_steps = padded(key_width, size), padded(width, size), padded(max_nodes * steps_per_node, size)
    Q, keys, keys_t = np.zeros((max_nodes, K), kind), np.zeros((max_steps, K), kind), np.zeros((K, max_steps), kind)
    written, outputs, S = np.zeros((max_steps, E), kind), np.zeros((max_nodes, E), kind), np.zeros((key_width, E), kind)
    system, scores = np.zeros((max_steps, max_steps), kind), np.zeros((max_nodes, max_steps), kind)
    V, negative_state = np.zeros((max_steps, E), kind), np.zeros((key_width, E), kind)
    strengths, norms = np.zeros(max_steps, kind), np.zeros(max_steps, kind)
    min_norm, length = kind.type(min_norm), kind.type(1 / math.sqrt(key_width))
    for task in range(begin, end):
        row, head = task // heads, task % heads
        for r in range(key_width):
            copy(state[row, head, r], S[r, :width])
        chunk, start = 0, 0
        while start < lengths[row]:
            if starts.shape[1] and starts[row, start]:
                S[:] = 0
            stop = _chunk_end(starts, row, start, max_nodes, lengths[row])
            count, first = stop - start, start * steps_per_node
            steps = count * steps_per_node
            if saved.shape[1]:
                edges[task, chunk], edges[task, chunk + 1] = start, stop
                for r in range(key_width):
                    copy(S[r], saved[task, chunk, r])
            _load_chunk(q, k, beta, row, head, start, count, steps_per_node, key_width, min_norm, length, Q, keys,
                        strengths, norms, norms)
            load(v, row, first, head * v[3], steps, width, V)
            _similarities(keys, Q, keys_t, system, scores, steps, count, steps_per_node, key_width)
            for r in range(key_width):
                for c in range(E):
                    negative_state[r, c] = -S[r, c]
            product(V, keys, negative_state, steps, key_width, width, False, True, FULL,
                    1)  # before the chunk's own steps
            for s in range(0, steps, BLOCK):
                size = min(BLOCK, steps - s)
                if s:
                    accumulate_rows(V, system, written, s, size, 0, s, E, False)
                for j in range(s, s + size):
                    line, target, strength = V[j], written[j], strengths[j]
                    for o in range(s, j):
                        weight, earlier = system[j, o], written[o]
                        for c in range(E):
                            line[c] += weight * earlier[c]
                    for c in range(E):
                        target[c] = strength * line[c]
            if saved.shape[1]:
                for s in range(steps):
                    copy(V[s], errors[task, first + s])
            product(outputs, Q, S, count, key_width, width, False, False, FULL, 1)
            product(outputs, scores, written, count, steps, width, False, True, X_LOWER, steps_per_node)
            store(outputs, y, row, head, start, count, width)
            product(S, keys, written, key_width, steps, width, True, True, FULL, 1)
            chunk, start = chunk + 1, stop
        y[row, start:, head] = 0
        for r in range(key_width):
            copy(S[r], final[row, head, r])


@kernel
def delta_backward(begin, end, q, k, beta, steps_per_node, starts, min_norm, saved, errors, edges, dy, dfinal, dq, dk,
                   dv, dbeta, dstate):
    """The gradients of `delta`, of nodes past a row's length nought."""
    heads, key_width, width, size, kind = dy.shape[2], dq.shape[3], dy.shape[3], size_of(dy), dy.dtype
    max_nodes, one = max(1, CHUNK // steps_per_node), kind.type(1)
    K, E, max_steps = padded(key_width, size), padded(width, size), padded(max_nodes * steps_per_node, size)
    Q, dQ, dout = np.zeros((max_nodes, K), kind), np.zeros((max_nodes, K), kind), np.zeros((max_nodes, E), kind)
    keys, dK, keys_t = np.zeros((max_steps, K), kind), np.zeros((max_steps, K), kind), np.zeros((K, max_steps), kind)
    written, error, dwritten, derror = _unstack4(np.zeros((4, max_steps, E), kind))
    written_t, state_t = np.zeros((E, max_steps), kind), np.zeros((E, K), kind)
    system, scores, dscores = (np.zeros((max_steps, max_steps), kind), np.zeros((max_nodes, max_steps), kind),
                               np.zeros((max_nodes, max_steps), kind))
    S, dS = np.zeros((K, E), kind), np.zeros((K, E), kind)
    strengths, norms, norms_q = np.zeros(max_steps, kind), np.zeros(max_steps, kind), np.zeros(max_nodes, kind)
    min_norm, length = kind.type(min_norm), kind.type(1 / math.sqrt(key_width))
    for task in range(begin, end):
        row, head = task // heads, task % heads
        for r in range(key_width):
            copy(dfinal[row, head, r], dS[r, :width])
        num_nodes = 0
        for chunk in range(_num_chunks(edges, task) - 1, -1, -1):
            start, count = edges[task, chunk], edges[task, chunk + 1] - edges[task, chunk]
            first, steps, num_nodes = start * steps_per_node, count * steps_per_node, max(num_nodes, start + count)
            for r in range(key_width):
                copy(saved[task, chunk, r], S[r, :width])
            _load_chunk(q, k, beta, row, head, start, count, steps_per_node, key_width, min_norm, length, Q, keys,
                        strengths, norms_q, norms)
            for s in range(steps):
                copy(errors[task, first + s], error[s, :width])
            scale(error, strengths, written, steps)
            for t in range(count):
                copy(dy[row, start + t, head], dout[t, :width])
            transpose(written, written_t, steps, width)
            _similarities(keys, Q, keys_t, system, scores, steps, count, steps_per_node, key_width)
            product(dwritten, scores, dout, steps, count, width, True, False, X_UPPER, steps_per_node)
            product(dwritten, keys, dS, steps, key_width, width, False, True, FULL, 1)
            for s in range((steps - 1) // BLOCK * BLOCK, -1, -BLOCK):  # back through the system
                size = min(BLOCK, steps - s)
                if s + size < steps:
                    accumulate_rows(dwritten, system, derror, s, size, s + size, steps, E, True)
                for j in range(s + size - 1, s - 1, -1):
                    line, target, strength = dwritten[j], derror[j], strengths[j]
                    for o in range(j + 1, s + size):
                        weight, later = system[o, j], derror[o]
                        for c in range(E):
                            line[c] += weight * later[c]
                    for c in range(E):
                        target[c] = strength * line[c]
                    dbeta[row, first + j, head] = dot(error[j], line, width)
            store(derror, dv, row, head, first, steps, width)
            for s in range(steps):
                for c in range(E):
                    derror[s, c] = -derror[s, c]  # the error is v minus the memory's value for k
            product(dscores, dout, written_t, count, width, steps, False, False, Y_LOWER, steps_per_node)
            _mask_pairs(dscores, count, steps_per_node, False, one)
            product(system, derror, written_t, steps, width, steps, False, False, Y_LOWER, 1)
            _mask_pairs(system, steps, 1, True, one)
            transpose(dS, state_t, key_width, width)
            product(dK, written, state_t, steps, width, key_width, False, False, FULL, 1)
            transpose(S, state_t, key_width, width)
            product(dK, derror, state_t, steps, width, key_width, False, True, FULL, 1)
            product(dK, dscores, Q, steps, count, key_width, True, True, X_UPPER, steps_per_node)
            product(dK, system, keys, steps, steps, key_width, False, True, X_LOWER, 1)
            product(dK, system, keys, steps, steps, key_width, True, True, X_UPPER, 1)
            product(dQ, dout, state_t, count, width, key_width, False, False, FULL, 1)
            product(dQ, dscores, keys, count, steps, key_width, False, True, X_LOWER, steps_per_node)
            product(dS, Q, dout, key_width, count, width, True, True, FULL, 1)
            product(dS, keys, derror, key_width, steps, width, True, True, FULL, 1)
            if min_norm > 0:
                _normalise_rows_backward(Q, dQ, count, key_width, min_norm, length, norms_q)
                _normalise_rows_backward(keys, dK, steps, key_width, min_norm, one, norms)
            store(dQ, dq, row, head, start, count, key_width)
            store(dK, dk, row, head, first, steps, key_width)
            if starts.shape[1] and starts[row, start]:
                dS[:] = 0
        dq[row, num_nodes:, head] = 0
        num_nodes *= steps_per_node
        dk[row, num_nodes:, head], dv[row, num_nodes:, head], dbeta[row, num_nodes:, head] = 0, 0, 0
        for r in range(key_width):
            copy(dS[r], dstate[row, head, r])
