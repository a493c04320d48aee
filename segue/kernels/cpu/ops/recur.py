"""Nonlinear recurrences."""

from __future__ import annotations

from segue.kernels.cpu.ops.activations import sigmoid, softplus, tanh
from segue.kernels.cpu.ops.base import barrier, f32, fast, part, put, row, state_after, state_before, zero
from segue.kernels.cpu.ops.linear import some
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
    wide = (hidden + TILE - 1) // TILE * TILE
    size = wide * (3 if cell == SLSTM else 2 if cell in (LSTM, JORDAN) else 1)
    order, levels = longs(job[ORDER], job[NODES]), longs(job[LEVEL], job[LEVELS] + 1)
    narrow, block = hidden // heads, tiles * TILE
    begin, count = part(narrow, me, team)
    no = zero(me)
    for level in range(job[LEVELS]):
        first, nodes = levels[level], levels[level + 1] - levels[level]
        for index in range(me, nodes, team):
            put(state_before(job, offset, size, order[first + index]), row(job, op, 7, index), wide)
            if INTEGER and scales:
                for head in range(heads):
                    quantise(row(job, op, 7, index) + 4 * head * narrow, narrow,
                             row(job, op, 24, index) + 4 * head * (k + 2), k)
        barrier(job, team)
        for head in range(heads):
            at, source, stride = head * block, row(job, op, 7, 0) + 4 * head * narrow, 4 * op[9]
            if INTEGER and scales:
                source, stride = row(job, op, 24, 0) + 4 * head * (k + 2), 4 * op[26]
            some(job, source, stride, nodes, row(job, op, 10, 0) + 4 * at, 4 * op[12],
                 weights + at * k * (GROUP if scales else 4), scales + 4 * at if scales else 0,
                 bias + 4 * at if bias else 0, k, tiles * me // team, tiles * (me + 1) // team, no, NONE + no, no,
                 me)
        barrier(job, team)
        for item in range(nodes * heads):
            index, head = item // heads, item % heads
            node, place = order[first + index], 4 * (head * narrow + begin)
            x, s = row(job, op, 1, node) + place, row(job, op, 10, index) + 4 * (head * block + begin)
            old, new = state_before(job, offset, size, node) + place, state_after(job, offset, size, node) + place
            y = floats(row(job, op, 4, node) + place, count)
            # The gates' shares of the input and of the state: stretches of all heads, and of one.
            xa, sa = floats(x, count), floats(s, count)
            xb, sb = floats(x + 4 * hidden, count), floats(s + 4 * narrow, count)
            xc, sc = floats(x + 8 * hidden, count), floats(s + 8 * narrow, count)
            xd, sd = floats(x + 12 * hidden, count), floats(s + 12 * narrow, count)
            # What is new is computed where it cannot be mistaken for what is old, then stored.
            if cell == LSTM:  # in torch's order: input, forget, cell, output
                past = floats(old + 4 * wide, count)
                for j in range(count):
                    kept = sigmoid(xb[j] + sb[j]) * past[j]
                    sa[j] = kept + sigmoid(xa[j] + sa[j]) * tanh(xc[j] + sc[j])
                    y[j] = sigmoid(xd[j] + sd[j]) * tanh(sa[j])
                put(s, new + 4 * wide, count)
            elif cell == GRU:  # reset, update, new
                past = floats(old, count)
                for j in range(count):
                    n = tanh(xc[j] + sigmoid(xa[j] + sa[j]) * sc[j])
                    y[j] = n + sigmoid(xb[j] + sb[j]) * (past[j] - n)
            elif cell == ELMAN:
                for j in range(count):
                    y[j] = tanh(xa[j] + sa[j])
            elif cell == JORDAN:
                past, rate = floats(old + 4 * wide, count), f32(real(op[27]))
                for j in range(count):
                    sa[j] += rate * past[j]
                    y[j] = tanh(xa[j] + sa[j])
                put(s, new + 4 * wide, count)
            else:  # input, forget, cell, output; memories c, n and the maximum m
                high = op[23]
                past, norm = floats(old + 4 * wide, count), floats(old + 8 * wide, count)
                top = floats(state_before(job, high, wide, node) + place, count)
                for j in range(count):
                    kept, i = top[j] - softplus(-(xb[j] + sb[j])), xa[j] + sa[j]
                    m = max(kept, i)
                    f, i = exp(kept - m), exp(i - m)
                    sa[j] = f * past[j] + i * tanh(xc[j] + sc[j])
                    sb[j] = max(f * norm[j] + i, floor)
                    sc[j] = m
                    y[j] = sigmoid(xd[j] + sd[j]) * sa[j] / sb[j]
                put(s, new + 4 * wide, count)
                put(s + 4 * narrow, new + 8 * wide, count)
                put(s + 8 * narrow, state_after(job, high, wide, node) + place, count)
            put(row(job, op, 4, node) + place, new, count)
        barrier(job, team)
