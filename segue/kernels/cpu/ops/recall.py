"""The recurrent vectors of block-recurrent transformers, carried from block to block."""

from __future__ import annotations

import math

from segue.kernels.cpu.ops.base import (
    ONE,
    ZERO,
    barrier,
    copy_floats,
    dot,
    f32,
    fast,
    keys_at,
    row,
    scaled,
    state_after,
    state_before,
    states_around,
    zero,
)
from segue.kernels.cpu.ops.linear import product
from segue.kernels.cpu.ops.rows import normed
from segue.kernels.cpu.program import (
    BATCH,
    FIRST,
    LAYER,
    LENGTH,
    LEVEL,
    LEVELS,
    LOCAL,
    LOCAL_BYTES,
    NODES,
    ORDER,
    PARENT,
    POSITION,
    ROW,
)
from segue.kernels.cpu.simd import TILE, floats, longs, real, soften


@fast
def softmax(scores, count):
    """In place."""
    scaled(scores, ONE / soften(scores, count, count), scores, count)


@fast
def attend(q, keys, values, stride, count, width, target, scores):
    """Attention of one query to `count` keys and values, `stride` bytes apart."""
    s, y, scale = floats(scores, count), floats(target, width), f32(1 / math.sqrt(width))
    for i in range(count):
        s[i] = dot(q, keys + i * stride, width) * scale
    softmax(scores, count)
    y[:] = ZERO
    for i in range(count):
        v = floats(values + i * stride, width)
        for j in range(width):
            y[j] += s[i] * v[j]


@fast
def normed_memory(job, op, memory, i, target):
    """The layer norm of vector i of the memory plus its name, filled up with zeros."""
    width = op[22]
    padded_width = (width + TILE - 1) // TILE * TILE
    x, name = floats(memory + 4 * i * padded_width, width), floats(op[23] + 4 * i * width, width)
    y = floats(target, padded_width)
    y[:] = ZERO
    for j in range(width):
        y[j] = x[j] + name[j]
    normed(target, target, width, LAYER, op[24], op[25], f32(real(op[26])))


@fast
def recall(job, op, me, team):
    """queries(3), into(3), sizes(6), asks, scales, tells, scales, update, scales, bias, vectors, block, width, names,
    norm's weight, bias, epsilon, gate, first keys and values, state offset, steps of either product.

    Level by level. State: the memory (vectors, width), and its keys beside its values (vectors, 2 width).
    """
    heads, head_width, key, value = op[7], op[9], op[10], op[11]
    vectors, block, width, offset = op[20], op[21], op[22], op[29]
    padded_width, pair_width = (width + TILE - 1) // TILE * TILE, (2 * width + TILE - 1) // TILE * TILE
    size = vectors * (padded_width + pair_width)
    normed = job[LOCAL]  # all threads share the memory of the first
    queries = normed + 4 * vectors * padded_width
    answers = queries + 4 * vectors * pair_width
    updated = answers + 4 * vectors * pair_width
    byte_buffer = updated + 4 * vectors * padded_width
    scores = byte_buffer + me * job[LOCAL_BYTES] + 4 * vectors * (op[31] + 2)
    slots = scores + 4 * ((max(block, vectors) + TILE - 1) // TILE * TILE)
    order, levels = longs(job[ORDER], job[NODES]), longs(job[LEVEL], job[LEVELS] + 1)
    positions, parents = longs(job[POSITION], job[NODES]), longs(job[PARENT], job[NODES])
    for level in range(job[LEVELS]):
        first, nodes = levels[level], levels[level + 1] - levels[level]
        for item in range(me, nodes * heads, team):
            node, head = order[first + item // heads], 4 * (item % heads) * head_width
            memory = op[28]
            if positions[node] >= block:
                memory = state_before(job, offset, size, node) + 4 * vectors * padded_width
            attend(row(job, op, 1, node) + head, memory + head, memory + 4 * width + head, 4 * pair_width, vectors,
                   head_width, row(job, op, 4, node) + head, scores)
        for index in range(me, nodes, team):
            node = order[first + index]
            old, new = states_around(job, offset, size, node)
            copy_floats(old, new, size)
        barrier(job, team)
        for index in range(nodes):
            node = order[first + index]
            if (positions[node] + 1) % block:
                continue
            memory = state_after(job, offset, size, node)
            pairs = memory + 4 * vectors * padded_width
            memory_keys = op[28] if positions[node] < block else pairs
            for i in range(me, vectors, team):
                normed_memory(job, op, memory, i, normed + 4 * i * padded_width)
            product(job, normed, width, 4 * padded_width, vectors, byte_buffer, queries, 4 * pair_width, op[13], op[14],
                    zero(me), op[30], pair_width // TILE, me, team)
            b = longs(job[ROW], job[NODES])[node]
            slot, step = longs(job[LENGTH], job[BATCH])[b], node
            base = slot - longs(job[FIRST], job[BATCH])[b]
            path = longs(slots, block)
            for i in range(block):  # the nodes of the block
                if step >= 0:
                    path[i], step = base + step, parents[step]
                else:
                    slot -= 1
                    path[i] = slot
            for item in range(me, vectors * heads, team):
                i, head = item // heads, 4 * (item % heads) * head_width
                query, answer = queries + 4 * i * pair_width + head, answers + 4 * i * pair_width + head
                attend(query, memory_keys + head, memory_keys + 4 * width + head, 4 * pair_width, vectors, head_width,
                       answer, scores)
                keys, values = keys_at(job, op, 7, b, item % heads)
                q, y = floats(query + 4 * width, head_width), floats(answer + 4 * width, head_width)
                s = floats(scores, block)
                scale = f32(1 / math.sqrt(head_width))
                for n in range(block):
                    panel = floats(keys + 4 * (path[n] // TILE * key * TILE + path[n] % TILE), key * TILE)
                    total = ZERO
                    for j in range(head_width):
                        total += q[j] * panel[j * TILE]
                    s[n] = total * scale
                softmax(scores, block)
                y[:] = ZERO
                for n in range(block):
                    v = floats(values + 4 * path[n] * value, head_width)
                    for j in range(head_width):
                        y[j] += s[n] * v[j]
                if item % heads == 0:
                    padding = floats(answers + 4 * (i * pair_width + 2 * width), pair_width - 2 * width)
                    padding[:] = ZERO
            product(job, answers, 2 * width, 4 * pair_width, vectors, byte_buffer, updated, 4 * padded_width, op[17],
                    op[18], op[19], op[31], padded_width // TILE, me, team)
            gate = floats(op[27], width)
            for i in range(me, vectors, team):
                x, y = floats(updated + 4 * i * padded_width, width), floats(memory + 4 * i * padded_width, width)
                for j in range(width):
                    y[j] = x[j] + gate[j] * (y[j] - x[j])
                normed_memory(job, op, memory, i, normed + 4 * i * padded_width)
            product(job, normed, width, 4 * padded_width, vectors, byte_buffer, pairs, 4 * pair_width, op[15], op[16],
                    zero(me), op[30], pair_width // TILE, me, team)
        barrier(job, team)
