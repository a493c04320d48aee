"""Attention over quantised keys (LongVQ): codes within a window one by one, older ones summed by code."""

from __future__ import annotations

from numba import njit

from segue.kernels.cpu.ops.base import ONE, ZERO, barrier, copy_floats, dot, f32, fast, keys_at, row, states_around
from segue.kernels.cpu.program import BATCH, FIRST, LENGTH, LOCAL, LOCAL_BYTES, NODES, PARENT, ROW
from segue.kernels.cpu.simd import LANES, LOWEST, NEAR, TILE, UNROLL, exp, floats, longs, pair, quad, real


@njit
def weighted_sum(weights, count, values, stride, begin, end, target, accumulate):
    """Columns `begin` to `end` (whole tiles) of the sum of weights times `count` rows, `stride` bytes apart, to
    `target`, or added to what is there (accumulate). Weights, and rows, go on to a multiple of UNROLL."""
    inner, column = (count + UNROLL - 1) // UNROLL * UNROLL, begin
    while column < end:
        width_read = 2 * TILE if end - column > TILE else TILE
        v, y = values + 4 * column, target + 4 * column
        if width_read > TILE:
            quad(1, v, stride, 4 * TILE, NEAR, weights, 0, inner, y, 0, 0, 0, accumulate)
        else:
            pair(1, v, stride, 0, NEAR, weights, 0, inner, y, 0, 0, 0, accumulate)
        column += width_read


@fast
def quantised(job, op, me, team):
    """q(3), k(3), v(3), into(3), sizes(6), key, value, window, count of codes, codes, half of their squares, bias,
    scale, state offset. Cache: v, the code nearest to k, and its number. State: of what has left the window, by code,
    the sums of values (codes, value) and their number. Each thread has columns of the values; the weights are found by
    all."""
    line, key, value, window, codes, offset = op[17], op[19], op[20], op[21], op[22], op[27]
    padded_value, padded_codes = (value + TILE - 1) // TILE * TILE, (codes + LANES - 1) // LANES * LANES
    begin, end = padded_value // TILE * me // team * TILE, padded_value // TILE * (me + 1) // team * TILE
    columns = max(min(end, value) - begin, 0)
    to_key, to_code, size = 4 * padded_value, 4 * (line - TILE), padded_codes * (padded_value + 1)
    scale, halves, bias = f32(real(op[26])), floats(op[24], codes), floats(op[25], window)
    rows, parents = longs(job[ROW], job[NODES]), longs(job[PARENT], job[NODES])
    code_weights = job[LOCAL] + me * job[LOCAL_BYTES]
    weights = code_weights + 4 * padded_codes
    for node in range(job[NODES]):
        b = rows[node]
        if b < 0:  # not among those to repeat
            continue
        cached, num_committed, first = keys_at(job, op, 13, b, 0)[1], longs(job[LENGTH], job[BATCH])[b], longs(
            job[FIRST], job[BATCH])[b]
        q, k, into = row(job, op, 1, node), row(job, op, 4, node), row(job, op, 10, node)
        entry = cached + 4 * line * (num_committed + node - first)
        old, new = states_around(job, offset, size, node, True)
        copy_floats(row(job, op, 7, node) + 4 * begin, entry + 4 * begin, columns)
        if old != new:
            for code in range(padded_codes):
                copy_floats(old + 4 * (code * padded_value + begin), new + 4 * (code * padded_value + begin), columns)
        counts = floats(new + 4 * padded_codes * padded_value, codes)
        if me == 0:
            nearest, best = 0, LOWEST
            for code in range(codes):
                score = dot(op[23] + 4 * key * code, k, key) - halves[code]
                if score > best:
                    nearest, best = code, score
            copy_floats(op[23] + 4 * key * nearest, entry + to_key, key)
            floats(entry + to_code, 1)[0] = nearest
            copy_floats(old + 4 * padded_codes * padded_value, new + 4 * padded_codes * padded_value, codes)
        barrier(job, team)
        oldest = max(num_committed - window, 0) // UNROLL * UNROLL
        num_window = num_committed + node - first + 1 - oldest
        w = floats(weights, (num_window + UNROLL - 1) // UNROLL * UNROLL)
        w[:] = ZERO
        total, step, slots_left, distance, leaving = ZERO, node, num_committed, 0, -1
        while step >= 0 or slots_left > 0:  # back along the path, to the node that has just left the window
            if step >= 0:
                slot, step = num_committed + step - first, parents[step]
            else:
                slots_left -= 1
                slot = slots_left
            past_entry = cached + 4 * line * slot
            if distance == window:
                leaving = int(floats(past_entry + to_code, 1)[0])
                v = floats(past_entry + 4 * begin, columns)
                sums = floats(new + 4 * (leaving * padded_value + begin), columns)
                for j in range(columns):
                    sums[j] += v[j]
                break
            w[slot - oldest] = exp(dot(q, past_entry + to_key, key) * scale + bias[distance])
            total += w[slot - oldest]
            distance += 1
        s = floats(code_weights, padded_codes)
        s[:] = ZERO
        for code in range(codes):
            count = counts[code] + (ONE if code == leaving else ZERO)
            if count > ZERO:
                s[code] = exp(dot(q, op[23] + 4 * key * code, key) * scale)
                total += s[code] * count
        weighted_sum(weights, num_window, cached + 4 * line * oldest, 4 * line, begin, end, into, 0)
        weighted_sum(code_weights, codes, new, 4 * padded_value, begin, end, into, 1)
        y = floats(into + 4 * begin, columns)
        for j in range(columns):
            y[j] /= total
        barrier(job, team)
        if me == 0 and leaving >= 0:
            counts[leaving] += ONE
