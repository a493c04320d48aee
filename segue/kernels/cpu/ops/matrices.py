"""Matrix memories, one for each head, with their normalisers and gates."""

from __future__ import annotations

import numpy as np
from numba import njit

from segue.kernels.cpu.ops.base import (
    ONE,
    copy_floats,
    dot,
    f32,
    fast,
    prompt_end,
    row,
    state_after,
    state_before,
    thread_range,
)
from segue.kernels.cpu.program import BATCH, CHAIN, FIRST, LOCAL, LOCAL_BYTES, NODES, POSITION, ROW
from segue.kernels.cpu.simd import (
    LANES,
    MANY,
    delta_lanes,
    delta_many,
    exp,
    floats,
    longs,
    matrix_lanes,
    matrix_many,
    real,
)

TINY = f32(np.finfo(np.float32).tiny)


@njit  # not `fast`: both widths of its lanes must round alike
def matrix(job, op, me, team):
    """q(3), k(3), v(3), decay(3), write(3), into(3), heads, groups, key, value, steps, decay per feature?, delta?,
    scale, state offset.
    State: (heads, value / LANES, key, LANES), so that a thread's columns of values lie together."""
    heads, groups, key, value, steps, featured, delta, offset = (
        op[19], op[20], op[21], op[22], op[23], op[24], op[25], op[27])
    scale = f32(real(op[26]))
    chunks = (value + LANES - 1) // LANES
    size = heads * chunks * key * LANES
    local = job[LOCAL] + me * job[LOCAL_BYTES]
    one = local + 4 * MANY * LANES
    floats(one, 1)[0] = ONE
    rows = longs(job[ROW], job[NODES])
    item, last = heads * chunks * me // team, heads * chunks * (me + 1) // team
    while item < last:
        head, chunk = item // chunks, item % chunks
        num_vectors = MANY if min(chunks - chunk, last - item) >= MANY else 1
        width = min(num_vectors * LANES, value - chunk * LANES)
        start_at, column = 4 * item * key * LANES, head * groups // heads * key
        for node in range(job[NODES]):
            if rows[node] < 0:  # not among those to repeat
                continue
            old = state_before(job, offset, size, node, True) + start_at
            new = state_after(job, offset, size, node, True) + start_at
            q, k = row(job, op, 1, node) + 4 * column, row(job, op, 4, node) + 4 * column
            v, write = row(job, op, 7, node) + 4 * (head * value + chunk * LANES), row(job, op, 13, node) + 4 * head
            decay, hop = row(job, op, 10, node) + 4 * head * (key if featured else 1), 4 * featured
            for _ in range(steps):
                if delta and num_vectors == 1:
                    delta_lanes(q, k, decay, hop, v, write, old, new, local, key)
                elif delta:
                    delta_many(q, k, decay, hop, v, write, old, new, local, key)
                elif num_vectors > 1:
                    matrix_many(q, k, decay, hop, v, write, old, new, local, key)
                else:
                    matrix_lanes(q, k, decay, hop, v, write, old, new, local, key)
                k, v, write = k + 4 * groups * key, v + 4 * heads * value, write + 4 * heads
                old, decay, hop = new, one, 0
            y, out = floats(row(job, op, 16, node) + 4 * (head * value + chunk * LANES), width), floats(local, width)
            for j in range(width):
                y[j] = out[j] * scale
        item += num_vectors


@njit
def prompt_nodes(job, node, b):
    """From where to where the nodes lie whose keys and values a node of row b reads ahead."""
    if not job[CHAIN]:
        return node, node + 1
    first = longs(job[FIRST], job[BATCH] + 1)[b]  # the first node of a row brings the prompt of all
    return first, longs(job[FIRST], job[BATCH] + 1)[b + 1] if node == first else first


@fast
def prefixed(job, op, me, team):
    """q(3), k(3), v(3), keys(3), values(3), into(3), heads, key, value, prefix, state offset, that of the normaliser.
    States: as of `matrix` and `normalise`."""
    heads, key, value, offset, sums = op[19], op[20], op[21], op[23], op[24]
    chunks = (value + LANES - 1) // LANES
    size, sums_size = heads * chunks * key * LANES, (heads * key + LANES - 1) // LANES * LANES
    local = job[LOCAL] + me * job[LOCAL_BYTES]
    one = local + 4 * MANY * LANES
    floats(one, 1)[0] = ONE
    factors = floats(one + 4 * LANES, job[NODES])
    rows, positions = longs(job[ROW], job[NODES]), longs(job[POSITION], job[NODES])
    for head in range(heads * me // team, heads * (me + 1) // team):
        column, column_value = 4 * head * key, 4 * head * value
        for node in range(job[NODES]):
            b = rows[node]
            if b < 0:  # not among those to repeat
                continue
            begin, stop = prompt_nodes(job, node, b)
            end = prompt_end(job, op[22], b)
            q, key_features = row(job, op, 1, node) + column, floats(row(job, op, 4, node) + column, key)
            old = state_before(job, sums, sums_size, node, True) + column
            new = state_after(job, sums, sums_size, node, True) + column
            copy_floats(old, new, key)
            norm = floats(new, key)
            for source_node in range(begin, stop):
                if positions[source_node] < end:
                    prompt_key = floats(row(job, op, 10, source_node) + column, key)
                    for j in range(key):
                        norm[j] += prompt_key[j]
            for j in range(key):
                norm[j] += key_features[j]
            factors[node] = ONE / max(dot(q, new, key), TINY)
        chunk = 0
        while chunk < chunks:
            num_vectors = MANY if chunks - chunk >= MANY else 1
            start_at, value_offset = 4 * (head * chunks + chunk) * key * LANES, column_value + 4 * chunk * LANES
            for node in range(job[NODES]):
                b = rows[node]
                if b < 0:
                    continue
                begin, stop = prompt_nodes(job, node, b)
                end = prompt_end(job, op[22], b)
                q, k, v = row(job, op, 1, node) + column, row(job, op, 4, node) + column, row(job, op, 7, node)
                old = state_before(job, offset, size, node, True) + start_at
                new = state_after(job, offset, size, node, True) + start_at
                for source_node in range(begin, stop + 1):  # at last itself
                    if source_node < stop:
                        if positions[source_node] >= end:
                            continue
                        keys, values = row(job, op, 10, source_node) + column, row(job, op, 13, source_node)
                    else:
                        keys, values = k, v
                    if num_vectors > 1:
                        matrix_many(q, keys, one, 0, values + value_offset, one, old, new, local, key)
                    else:
                        matrix_lanes(q, keys, one, 0, values + value_offset, one, old, new, local, key)
                    old = new
                width = min(num_vectors * LANES, value - chunk * LANES)
                y, out = floats(row(job, op, 16, node) + value_offset, width), floats(local, width)
                for j in range(width):
                    y[j] = out[j] * factors[node]
            chunk += num_vectors


@fast
def stabilise(job, op, me, team):
    """forget(3), write(3), floor(3), heads, state offset. State: the running maximum."""
    offset = op[11]
    size = (op[10] + LANES - 1) // LANES * LANES
    begin, count = thread_range(op[10], me, team)
    for node in range(job[NODES]):
        f, i = floats(row(job, op, 1, node) + 4 * begin, count), floats(row(job, op, 4, node) + 4 * begin, count)
        least = floats(row(job, op, 7, node) + 4 * begin, count)
        old = floats(state_before(job, offset, size, node) + 4 * begin, count)
        new = floats(state_after(job, offset, size, node) + 4 * begin, count)
        for j in range(count):
            decayed = f[j] + old[j]
            maximum = max(decayed, i[j])
            f[j], i[j], least[j], new[j] = exp(decayed - maximum), exp(i[j] - maximum), exp(-maximum), maximum


@fast
def normalise(job, op, me, team):
    """q(3), k(3), decay(3), write(3), into(3), floor(3), heads, groups, key, value, decay per feature?, scale, epsilon,
    state offset. State: (heads, key)."""
    heads, groups, key, value, featured, offset = op[19], op[20], op[21], op[22], op[23], op[26]
    scale, epsilon = f32(real(op[24])), f32(real(op[25]))
    size = (heads * key + LANES - 1) // LANES * LANES
    for head in range(heads * me // team, heads * (me + 1) // team):
        column = 4 * (head * groups // heads) * key
        for node in range(job[NODES]):
            q, k = row(job, op, 1, node) + column, floats(row(job, op, 4, node) + column, key)
            decay = floats(row(job, op, 7, node) + 4 * head * (key if featured else 1), key if featured else 1)
            write = floats(row(job, op, 10, node), heads)[head]
            old = floats(state_before(job, offset, size, node) + 4 * head * key, key)
            sums = state_after(job, offset, size, node) + 4 * head * key
            new = floats(sums, key)
            for j in range(key):
                new[j] = decay[j if featured else 0] * old[j] + write * k[j]
            total = dot(q, sums, key)  # apart, since a loop is not vectorised where old and new are the same memory
            y = floats(row(job, op, 13, node) + 4 * head * value, value)
            factor = ONE / (max(abs(total * scale), floats(row(job, op, 16, node), heads)[head]) + epsilon)
            for j in range(value):
                y[j] *= factor
