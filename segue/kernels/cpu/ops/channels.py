"""Per-channel memories: convolutions, scans, modes, dense states, long filters."""

from __future__ import annotations

from numba import njit

from segue.kernels.cpu.ops.activations import activate, sigmoid
from segue.kernels.cpu.ops.base import (
    ZERO,
    copy_floats,
    fast,
    keys_at,
    row,
    state_after,
    state_before,
    states_around,
    thread_range,
)
from segue.kernels.cpu.program import BATCH, CHAIN, FIRST, LENGTH, LOCAL, LOCAL_BYTES, NODES, PARENT, ROW
from segue.kernels.cpu.simd import (
    LANES,
    MANY,
    NEAR,
    complex_lanes,
    convolve_lanes,
    dense_lanes,
    diagonal_lanes,
    dot_lanes,
    filter_lanes,
    filter_many,
    floats,
    longs,
    low_rank_lanes,
    modes_lanes,
    scan_lanes,
)


@fast
def convolve(job, op, me, team):
    """source(3), into(3), width, taps, weight (taps, width), bias, state offset, activation.
    State: (taps - 1, width)."""
    width, taps, offset = op[7], op[8], op[11]
    begin, count = thread_range(width, me, team)
    for node in range(job[NODES]):
        x, y = row(job, op, 1, node), row(job, op, 4, node)
        old, new = states_around(job, offset, (taps - 1) * width, node)
        for start in range(begin, begin + count, LANES):
            at = 4 * start
            convolve_lanes(x + at, op[9] + at, op[10] + at, old + at, new + at, y + at, taps, 4 * width)
        activate(y + 4 * begin, count, op[12])


@fast
def scan(job, op, me, team):
    """u(3), dt(3), b(3), c(3), gate(3), into(3), width, states, a (width / LANES, states, LANES), d, state offset,
    range (2). State: as a."""
    width, states, offset = op[19], op[20], op[23]
    begin, count = thread_range(width, me, team)
    rows = longs(job[ROW], job[NODES])
    for start in range(begin, begin + count, LANES):
        at = 4 * start
        for node in range(job[NODES]):
            if rows[node] >= 0:  # else not among those to repeat
                scan_lanes(row(job, op, 4, node) + at, row(job, op, 1, node) + at, op[22] + at, op[21] + states * at,
                           row(job, op, 7, node), row(job, op, 10, node),
                           state_before(job, offset, states * width, node, True) + states * at,
                           state_after(job, offset, states * width, node, True) + states * at,
                           row(job, op, 16, node) + at, states, op[24])
    for node in range(job[NODES]):
        y, gates = floats(row(job, op, 16, node) + 4 * begin, count), floats(row(job, op, 13, node) + 4 * begin, count)
        for j in range(count):
            y[j] *= gates[j] * sigmoid(gates[j])


@njit
def diagonal(job, op, me, team):
    """decay(3), source(3), into(3), width, complex?, state offset. State: real parts, then imaginary ones."""
    width, is_complex, offset = op[10], op[11], op[12]
    begin, count = thread_range(width, me, team)
    padded_width = (width + LANES - 1) // LANES * LANES
    local = job[LOCAL] + me * job[LOCAL_BYTES]
    for node in range(job[NODES]):
        a, x, into = row(job, op, 1, node), row(job, op, 4, node), row(job, op, 7, node)
        old, new = states_around(job, offset, padded_width * (1 + is_complex), node)
        for start in range(begin, begin + count, LANES):
            start_at, remaining = 4 * start, width - start
            y, imaginary_offset = into + start_at, 4 * width
            if remaining < LANES:  # the columns behind belong to another register
                y, imaginary_offset = local, 4 * LANES
            if is_complex:
                complex_lanes(a + start_at, x + start_at, old + start_at, new + start_at, y, 4 * width,
                              4 * padded_width, imaginary_offset)
            else:
                diagonal_lanes(a + start_at, x + start_at, old + start_at, new + start_at, y)
            if remaining < LANES:
                copy_floats(local, into + start_at, remaining)
                if is_complex:
                    copy_floats(local + imaginary_offset, into + start_at + 4 * width, remaining)


def make_modes(step, parts):
    """u(3), into(3), width, modes, table (width / LANES, modes * parts, LANES), d, state offset: one step of channels.
    State: (width / LANES, modes, 2, LANES)."""

    @njit
    def operation(job, op, me, team):
        width, count, offset = op[7], op[8], op[11]
        begin, channels = thread_range(width, me, team)
        size = (width + LANES - 1) // LANES * LANES * 2 * count
        y = job[LOCAL] + me * job[LOCAL_BYTES]
        rows = longs(job[ROW], job[NODES])
        for start in range(begin, begin + channels, LANES):
            start_at = 4 * start
            for node in range(job[NODES]):
                if rows[node] < 0:  # not among those to repeat
                    continue
                u, into = row(job, op, 1, node), row(job, op, 4, node)
                old, new = states_around(job, offset, size, node, True)
                step(u + start_at, op[9] + parts * count * start_at, op[10] + start_at, old + 2 * count * start_at,
                     new + 2 * count * start_at, y, count)
                copy_floats(y, into + start_at, min(LANES, width - start))

    return operation


modes, low_rank = make_modes(modes_lanes, 4), make_modes(low_rank_lanes, 10)


@njit
def dense(job, op, me, team):
    """u(3), into(3), width, states, outputs, a (width / LANES, room / MANY, states, MANY, LANES), b (width / LANES,
    room, LANES), c (width / LANES, outputs, room, LANES), d (width / LANES, outputs, LANES), state offset; room is
    states, padded. State: as b."""
    width, states, outputs, offset, nodes = op[7], op[8], op[9], op[14], job[NODES]
    begin, channels = thread_range(width, me, team)
    padded_states = (states + MANY - 1) // MANY * MANY
    size = (width + LANES - 1) // LANES * LANES * padded_states
    y = job[LOCAL] + me * job[LOCAL_BYTES]
    next_state = y + 4 * LANES  # the next state, since all of the last one is needed for each number of it
    rows = longs(job[ROW], nodes)
    for start in range(begin, begin + channels, LANES):
        start_at, remaining = 4 * start, min(LANES, width - start)
        for node in range(nodes):
            if rows[node] < 0:  # not among those to repeat
                continue
            u, into = row(job, op, 1, node), row(job, op, 4, node)
            old, new = states_around(job, offset, size, node, True)
            for first in range(0, padded_states, MANY):  # each node fetches a part of the next channels' matrices
                next_matrix = 4 * LANES * padded_states * states if first // MANY % nodes == node else 0
                prefetch_distance = NEAR if nodes == 1 else next_matrix
                dense_lanes(u + start_at, op[10] + padded_states * states * start_at + 4 * LANES * states * first,
                            op[11] + padded_states * start_at + 4 * LANES * first, old + padded_states * start_at,
                            next_state + 4 * LANES * first, states, prefetch_distance)
            copy_floats(next_state, new + padded_states * start_at, padded_states * LANES)
            for output in range(outputs):
                dot_lanes(u + start_at, op[13] + outputs * start_at + 4 * LANES * output,
                          op[12] + outputs * padded_states * start_at + 4 * LANES * padded_states * output, next_state,
                          y, padded_states)
                copy_floats(y, into + start_at + 4 * width * output, remaining)


@njit
def filter(job, op, me, team):
    """source(3), into(3), sizes(6), width, lags, taps (lags, width). From the node itself back: the order of the sum is
    the same whatever was committed before."""
    value, width, lags = op[11], op[13], op[14]
    begin, count = thread_range(width, me, team)
    padded_width = (width + LANES - 1) // LANES * LANES
    y = job[LOCAL] + me * job[LOCAL_BYTES]
    rows, parents = longs(job[ROW], job[NODES]), longs(job[PARENT], job[NODES])
    firsts, lengths = longs(job[FIRST], job[BATCH] + 1), longs(job[LENGTH], job[BATCH])
    for node in range(job[NODES]):
        b = rows[node]
        copy_floats(row(job, op, 1, node) + 4 * begin,
                    keys_at(job, op, 7, b, 0)[1] + 4 * (begin + (lengths[b] + node - firsts[b]) * value), count)
    start = begin
    while start < begin + count:
        remaining = begin + count - start
        num_vectors = MANY if remaining >= MANY * LANES else 1
        for node in range(job[NODES]):
            b = rows[node]
            x = keys_at(job, op, 7, b, 0)[1] + 4 * start
            floats(y, MANY * LANES)[:] = ZERO
            slot, step, lag = lengths[b] + node - firsts[b], node, 0
            while lag < lags and slot >= 0:
                follow_parents = step >= 0 and not job[CHAIN]  # else all before it lies in a row
                run_length = 1 if follow_parents else min(lags - lag, slot + 1)
                taps, inputs = op[15] + 4 * (lag * padded_width + start), x + 4 * slot * value
                if num_vectors > 1:
                    filter_many(taps, 4 * padded_width, inputs, -4 * value, y, run_length)
                else:
                    filter_lanes(taps, 4 * padded_width, inputs, -4 * value, y, run_length)
                lag += run_length
                step = parents[step] if follow_parents else -1
                slot = lengths[b] + step - firsts[b] if step >= 0 else lengths[b] - 1 if follow_parents else -1
            copy_floats(y, row(job, op, 4, node) + 4 * start, min(num_vectors * LANES, remaining))
        start += num_vectors * LANES
