"""Attention over quantised keys (LongVQ): codes within a window one by one, older ones summed by code."""

from __future__ import annotations

from numba import njit

from segue.kernels.cpu.ops.base import ONE, ZERO, barrier, dot, f32, fast, keys_at, put, row, states_around
from segue.kernels.cpu.program import BATCH, FIRST, LENGTH, LOCAL, LOCAL_BYTES, NODES, PARENT, ROW
from segue.kernels.cpu.simd import LANES, LOWEST, NEAR, TILE, UNROLL, exp, floats, longs, pair, quad, real


@njit
def sum_up(weights, count, values, stride, begin, end, into, onto):
    """Columns `begin` to `end` (whole tiles) of the sum of weights times `count` rows, `stride` bytes apart, to `into`,
    or added to what lies there (onto). Weights, and rows, go on to a multiple of UNROLL."""
    inner, column = (count + UNROLL - 1) // UNROLL * UNROLL, begin
    while column < end:
        wide = 2 * TILE if end - column > TILE else TILE
        v, y = values + 4 * column, into + 4 * column
        if wide > TILE:
            quad(1, v, stride, 4 * TILE, NEAR, weights, 0, inner, y, 0, 0, 0, onto)
        else:
            pair(1, v, stride, 0, NEAR, weights, 0, inner, y, 0, 0, 0, onto)
        column += wide


@fast
def quantised(job, op, me, team):
    """q(3), k(3), v(3), into(3), sizes(6), key, value, window, count of codes, codes, half of their squares, bias,
    scale, state offset. Cache: v, the code nearest to k, and its number. State: of what has left the window, by code,
    the sums of values (codes, value) and their number. Each thread has columns of the values; the weights are found by
    all."""
    line, key, value, window, codes, offset = op[17], op[19], op[20], op[21], op[22], op[27]
    room, wide = (value + TILE - 1) // TILE * TILE, (codes + LANES - 1) // LANES * LANES
    begin, end = room // TILE * me // team * TILE, room // TILE * (me + 1) // team * TILE
    mine = max(min(end, value) - begin, 0)
    to_key, to_code, size = 4 * room, 4 * (line - TILE), wide * (room + 1)
    scale, halves, bias = f32(real(op[26])), floats(op[24], codes), floats(op[25], window)
    rows, parents = longs(job[ROW], job[NODES]), longs(job[PARENT], job[NODES])
    shares = job[LOCAL] + me * job[LOCAL_BYTES]
    weights = shares + 4 * wide
    for node in range(job[NODES]):
        b = rows[node]
        if b < 0:  # not among those to repeat
            continue
        cached, past, first = keys_at(job, op, 13, b, 0)[1], longs(job[LENGTH], job[BATCH])[b], longs(
            job[FIRST], job[BATCH])[b]
        q, k, into = row(job, op, 1, node), row(job, op, 4, node), row(job, op, 10, node)
        here = cached + 4 * line * (past + node - first)
        old, new = states_around(job, offset, size, node, True)
        put(row(job, op, 7, node) + 4 * begin, here + 4 * begin, mine)
        if old != new:
            for code in range(wide):
                put(old + 4 * (code * room + begin), new + 4 * (code * room + begin), mine)
        counts = floats(new + 4 * wide * room, codes)
        if me == 0:
            nearest, best = 0, LOWEST
            for code in range(codes):
                score = dot(op[23] + 4 * key * code, k, key) - halves[code]
                if score > best:
                    nearest, best = code, score
            put(op[23] + 4 * key * nearest, here + to_key, key)
            floats(here + to_code, 1)[0] = nearest
            put(old + 4 * wide * room, new + 4 * wide * room, codes)
        barrier(job, team)
        oldest = max(past - window, 0) // UNROLL * UNROLL
        seen = past + node - first + 1 - oldest
        w = floats(weights, (seen + UNROLL - 1) // UNROLL * UNROLL)
        w[:] = ZERO
        total, step, left, distance, leaving = ZERO, node, past, 0, -1
        while step >= 0 or left > 0:  # back along the path, to the node that has just left the window
            if step >= 0:
                slot, step = past + step - first, parents[step]
            else:
                left -= 1
                slot = left
            there = cached + 4 * line * slot
            if distance == window:
                leaving = int(floats(there + to_code, 1)[0])
                v, sums = floats(there + 4 * begin, mine), floats(new + 4 * (leaving * room + begin), mine)
                for j in range(mine):
                    sums[j] += v[j]
                break
            w[slot - oldest] = exp(dot(q, there + to_key, key) * scale + bias[distance])
            total += w[slot - oldest]
            distance += 1
        s = floats(shares, wide)
        s[:] = ZERO
        for code in range(codes):
            count = counts[code] + (ONE if code == leaving else ZERO)
            if count > ZERO:
                s[code] = exp(dot(q, op[23] + 4 * key * code, key) * scale)
                total += s[code] * count
        sum_up(weights, seen, cached + 4 * line * oldest, 4 * line, begin, end, into, 0)
        sum_up(shares, codes, new, 4 * room, begin, end, into, 1)
        y = floats(into + 4 * begin, mine)
        for j in range(mine):
            y[j] /= total
        barrier(job, team)
        if me == 0 and leaving >= 0:
            counts[leaving] += ONE
