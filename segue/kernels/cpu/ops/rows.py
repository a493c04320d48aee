"""Row-wise operations: embedding, norms, features, arithmetic."""

from __future__ import annotations

import math

from numba import njit

from segue.kernels.cpu.ops.activations import activate, softplus
from segue.kernels.cpu.ops.base import FEW, HALF, ONE, ZERO, copy_floats, dot, f32, fast, prompt_end, row, thread_range
from segue.kernels.cpu.program import (
    EXP,
    L2,
    LAYER,
    LOCAL,
    LOCAL_BYTES,
    NODES,
    NONE,
    POSITION,
    ROW,
    TOKEN,
)
from segue.kernels.cpu.simd import exp, floats, longs, real

LARGEST = f32(3e38)  # a limit from here on is none


@njit
def embed(job, op, me, team):
    """into(3), width, table, positions or 0."""
    width = op[4]
    for node in range(me, job[NODES], team):
        into = row(job, op, 1, node)
        copy_floats(op[5] + 4 * width * longs(job[TOKEN], job[NODES])[node], into, width)
        if op[6]:
            x, y = floats(op[6] + 4 * width * longs(job[POSITION], job[NODES])[node], width), floats(into, width)
            for j in range(width):
                y[j] += x[j]


@fast
def mark_prompt(job, op, me, team):
    """source(3), into(3), width, table, prefix."""
    width = op[7]
    for node in range(me, job[NODES], team):
        end = prompt_end(job, op[9], longs(job[ROW], job[NODES])[node])
        in_prompt = 1 if longs(job[POSITION], job[NODES])[node] < end else 0
        x, embedding = floats(row(job, op, 1, node), width), floats(op[8] + 4 * width * in_prompt, width)
        y = floats(row(job, op, 4, node), width)
        for j in range(width):
            y[j] = x[j] + embedding[j]


@njit
def angles(job, op, me, team):
    """into(3), count, frequencies (float64), restart?, prefix."""
    count = op[4]
    frequencies = longs(op[5], count)
    for node in range(me, job[NODES], team):
        into = floats(row(job, op, 1, node), 2 * count)
        position = longs(job[POSITION], job[NODES])[node]
        if op[6]:
            end = prompt_end(job, op[7], longs(job[ROW], job[NODES])[node])
            position -= end if position >= end else 0
        for j in range(count):
            angle = position * real(frequencies[j])
            into[j] = math.cos(angle)
            into[count + j] = math.sin(angle)


@fast
def normed(x_at, y_at, width, kind, weight, bias, epsilon):
    """`width` numbers at one address normed, to another."""
    x, y, mean, square = floats(x_at, width), floats(y_at, width), ZERO, ZERO
    if kind == LAYER:
        for j in range(width):
            mean += x[j]
        mean /= f32(width)
    for j in range(width):
        square += (x[j] - mean) * (x[j] - mean)
    if kind == L2:
        scale = ONE / max(f32(math.sqrt(square)), epsilon)
    else:
        scale = ONE / f32(math.sqrt(square / f32(width) + epsilon))
    if weight:
        w = floats(weight, width)
        for j in range(width):
            y[j] = (x[j] - mean) * scale * w[j]
    else:
        for j in range(width):
            y[j] = (x[j] - mean) * scale
    if bias:
        b = floats(bias, width)
        for j in range(width):
            y[j] += b[j]


@njit
def norm(job, op, me, team):
    """source(3), into(3), width, groups, kind, weight or 0, bias or 0, epsilon."""
    width, groups = op[7], op[8]
    for item in range(me, job[NODES] * groups, team):
        node, group = item // groups, 4 * (item % groups) * width
        normed(row(job, op, 1, node) + group, row(job, op, 4, node) + group, width, op[9], op[10], op[11],
               f32(real(op[12])))


@fast
def map(job, op, me, team):
    """source(3), into(3), width, scale or 0, shift or 0, activation, limit."""
    begin, count = thread_range(op[7], me, team)
    limit = f32(real(op[11]))
    for node in range(job[NODES]):
        x, y = floats(row(job, op, 1, node) + 4 * begin, count), floats(row(job, op, 4, node) + 4 * begin, count)
        if op[8]:
            scale = floats(op[8] + 4 * begin, count)
            for j in range(count):
                y[j] = x[j] * scale[j]
        else:
            for j in range(count):
                y[j] = x[j]
        if op[9]:
            shift = floats(op[9] + 4 * begin, count)
            for j in range(count):
                y[j] += shift[j]
        if limit < LARGEST:
            for j in range(count):
                y[j] = min(max(y[j], -limit), limit)
        activate(row(job, op, 4, node) + 4 * begin, count, op[10])


@fast
def scale(job, op, me, team):
    """MULTIPLY. values(3), by(3), width of by, values to each of its numbers, activation of by."""
    width, repeats = op[7], op[8]
    begin, count = thread_range(width, me, team)
    local = job[LOCAL] + me * job[LOCAL_BYTES]
    for node in range(job[NODES]):
        values, factors_address = row(job, op, 1, node), row(job, op, 4, node)
        for start in range(begin, begin + count, FEW):
            chunk = min(FEW, begin + count - start)
            factors = floats(factors_address + 4 * start, chunk)
            y = floats(values + 4 * start * repeats, chunk * repeats)
            if op[9] != NONE:
                copy_floats(factors_address + 4 * start, local, chunk)
                activate(local, chunk, op[9])
                factors = floats(local, chunk)
            if repeats == 1:
                for j in range(chunk):
                    y[j] *= factors[j]
            else:
                for i in range(chunk):
                    for j in range(repeats):
                        y[i * repeats + j] *= factors[i]


@fast
def add_rows(job, op, me, team):
    """ADD. source(3), into(3), width, weight or 0."""
    begin, count = thread_range(op[7], me, team)
    for node in range(job[NODES]):
        x, y = floats(row(job, op, 1, node) + 4 * begin, count), floats(row(job, op, 4, node) + 4 * begin, count)
        if op[8]:
            w = floats(op[8] + 4 * begin, count)
            for j in range(count):
                y[j] += w[j] * x[j]
        else:
            for j in range(count):
                y[j] += x[j]


@fast
def decay(job, op, me, team):
    """gate(3), width, temperature, floor: exp(max(log sigmoid(gate) / temperature, floor)) in place."""
    rate, floor = f32(1 / real(op[5])), f32(real(op[6]))
    begin, count = thread_range(op[4], me, team)
    for node in range(job[NODES]):
        x = floats(row(job, op, 1, node) + 4 * begin, count)
        for j in range(count):
            x[j] = exp(max(-softplus(-x[j]) * rate, floor))


@fast
def polynomial(job, op, me, team):
    """source(3), into(3), width, groups, weight, size."""
    width, groups, size = op[7], op[8], op[10]
    for item in range(me, job[NODES] * groups, team):
        node, group = item // groups, item % groups
        x, w = floats(row(job, op, 1, node) + 4 * group * width, width), floats(op[9], size)
        into = row(job, op, 4, node) + 4 * group * size
        y = floats(into, size)
        y[0] = ONE
        for i in range(width):
            y[1 + i] = x[i]
        index = 1 + width
        for i in range(width):
            for j in range(width - i):
                y[index + j] = x[i] * x[i + j]
            index += width - i
        for j in range(size):
            y[j] *= w[j]


@fast
def exponential(job, op, me, team):
    """source(3), into(3), width, groups, directions, size."""
    width, groups, size = op[7], op[8], op[10]
    scale, log_norm = f32(width**-0.25), f32(math.log(size) / 2)
    for item in range(me, job[NODES] * groups, team):
        node, group = item // groups, item % groups
        x, y = row(job, op, 1, node) + 4 * group * width, floats(row(job, op, 4, node) + 4 * group * size, size)
        offset = HALF * dot(x, x, width) * scale * scale + log_norm
        for j in range(size):
            y[j] = dot(x, op[9] + 4 * j * width, width) * scale - offset
        activate(row(job, op, 4, node) + 4 * group * size, size, EXP)


@fast
def cosine_features(job, op, me, team):
    """TURN. source(3), into(3), angles(3), width, groups."""
    width, groups = op[10], op[11]
    for item in range(me, job[NODES] * groups, team):
        node, group = item // groups, item % groups
        angle = floats(row(job, op, 7, node), 2 * width)
        x, y = floats(row(job, op, 1, node) + 4 * group * width, width), floats(
            row(job, op, 4, node) + 8 * group * width, 2 * width)
        for j in range(width):
            y[j], y[width + j] = x[j] * angle[j], x[j] * angle[width + j]
