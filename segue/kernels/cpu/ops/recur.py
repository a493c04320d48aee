"""Nonlinear recurrences."""

from __future__ import annotations

from segue.kernels.cpu.ops.activations import sigmoid, softplus, tanh
from segue.kernels.cpu.ops.base import (
    barrier,
    copy_floats,
    f32,
    fast,
    row,
    state_after,
    state_before,
    thread_range,
    zero,
)
from segue.kernels.cpu.ops.linear import multiply_tiles
from segue.kernels.cpu.program import ELMAN, GRU, JORDAN, LEVEL, LEVELS, LSTM, NODES, NONE, ORDER, SLSTM
from segue.kernels.cpu.simd import GROUP, INTEGER, TILE, exp, floats, longs, quantise, real


@fast
def recur(job, op, me, team):
    """inputs(3), into(3), before(3), share(3), weights, scales, bias, k, tiles, hidden, cell, heads, floor, state
    offset, offset of the running maximum, bytes(3), decay.

    Level by level: the nodes of one depth gather their parents' states, one product per head gives the hidden-to-hidden
    share of their gates, then the gates act. State: h, and what the cell has besides.
    """
    weights, scales, bias, k, tiles, hidden, cell, heads = (
        op[13], op[14], op[15], op[16], op[17], op[18], op[19], op[20])
    floor, offset = f32(real(op[21])), op[22]
    padded_hidden = (hidden + TILE - 1) // TILE * TILE
    size = padded_hidden * (3 if cell == SLSTM else 2 if cell in (LSTM, JORDAN) else 1)
    order, levels = longs(job[ORDER], job[NODES]), longs(job[LEVEL], job[LEVELS] + 1)
    head_width, block = hidden // heads, tiles * TILE
    begin, count = thread_range(head_width, me, team)
    none = zero(me)
    for level in range(job[LEVELS]):
        first, nodes = levels[level], levels[level + 1] - levels[level]
        for index in range(me, nodes, team):
            copy_floats(state_before(job, offset, size, order[first + index]), row(job, op, 7, index), padded_hidden)
            if INTEGER and scales:
                for head in range(heads):
                    quantise(row(job, op, 7, index) + 4 * head * head_width, head_width,
                             row(job, op, 24, index) + 4 * head * (k + 2), k)
        barrier(job, team)
        for head in range(heads):
            column, source, stride = head * block, row(job, op, 7, 0) + 4 * head * head_width, 4 * op[9]
            if INTEGER and scales:
                source, stride = row(job, op, 24, 0) + 4 * head * (k + 2), 4 * op[26]
            multiply_tiles(job, source, stride, nodes, row(job, op, 10, 0) + 4 * column, 4 * op[12],
                           weights + column * k * (GROUP if scales else 4), scales + 4 * column if scales else 0,
                           bias + 4 * column if bias else 0, k, tiles * me // team, tiles * (me + 1) // team, none,
                           NONE + none, none, me)
        barrier(job, team)
        for item in range(nodes * heads):
            index, head = item // heads, item % heads
            node, column_at = order[first + index], 4 * (head * head_width + begin)
            x, s = row(job, op, 1, node) + column_at, row(job, op, 10, index) + 4 * (head * block + begin)
            old = state_before(job, offset, size, node) + column_at
            new = state_after(job, offset, size, node) + column_at
            y = floats(row(job, op, 4, node) + column_at, count)
            # The gates' shares of the input and of the state: stretches of all heads, and of one.
            xa, sa = floats(x, count), floats(s, count)
            xb, sb = floats(x + 4 * hidden, count), floats(s + 4 * head_width, count)
            xc, sc = floats(x + 8 * hidden, count), floats(s + 8 * head_width, count)
            xd, sd = floats(x + 12 * hidden, count), floats(s + 12 * head_width, count)
            # New values are computed in scratch memory, then stored, since old and new states may be the same memory.
            if cell == LSTM:  # in torch's order: input, forget, cell, output
                previous = floats(old + 4 * padded_hidden, count)
                for j in range(count):
                    retained = sigmoid(xb[j] + sb[j]) * previous[j]
                    sa[j] = retained + sigmoid(xa[j] + sa[j]) * tanh(xc[j] + sc[j])
                    y[j] = sigmoid(xd[j] + sd[j]) * tanh(sa[j])
                copy_floats(s, new + 4 * padded_hidden, count)
            elif cell == GRU:  # reset, update, new
                previous = floats(old, count)
                for j in range(count):
                    n = tanh(xc[j] + sigmoid(xa[j] + sa[j]) * sc[j])
                    y[j] = n + sigmoid(xb[j] + sb[j]) * (previous[j] - n)
            elif cell == ELMAN:
                for j in range(count):
                    y[j] = tanh(xa[j] + sa[j])
            elif cell == JORDAN:
                previous, rate = floats(old + 4 * padded_hidden, count), f32(real(op[27]))
                for j in range(count):
                    sa[j] += rate * previous[j]
                    y[j] = tanh(xa[j] + sa[j])
                copy_floats(s, new + 4 * padded_hidden, count)
            else:  # input, forget, cell, output; memories c, n and the maximum m
                maximum_offset = op[23]
                previous, norm = floats(old + 4 * padded_hidden, count), floats(old + 8 * padded_hidden, count)
                maxima = floats(state_before(job, maximum_offset, padded_hidden, node) + column_at, count)
                for j in range(count):
                    retained, i = maxima[j] - softplus(-(xb[j] + sb[j])), xa[j] + sa[j]
                    m = max(retained, i)
                    f, i = exp(retained - m), exp(i - m)
                    sa[j] = f * previous[j] + i * tanh(xc[j] + sc[j])
                    sb[j] = max(f * norm[j] + i, floor)
                    sc[j] = m
                    y[j] = sigmoid(xd[j] + sd[j]) * sa[j] / sb[j]
                copy_floats(s, new + 4 * padded_hidden, count)
                copy_floats(s + 4 * head_width, new + 8 * padded_hidden, count)
                copy_floats(s + 8 * head_width, state_after(job, maximum_offset, padded_hidden, node) + column_at,
                            count)
            copy_floats(row(job, op, 4, node) + column_at, new, count)
        barrier(job, team)
