"""Attention over the key-value cache."""

from __future__ import annotations

from numba import njit

from segue.kernels.cpu.ops.base import LINE, ONE, ZERO, copy_floats, f32, fast, fetch, keys_at, prompt_end, row, scaled
from segue.kernels.cpu.program import (
    BATCH,
    CAPACITY,
    CHAIN,
    FIRST,
    LENGTH,
    LOCAL,
    LOCAL_BYTES,
    NODES,
    PARENT,
    POSITION,
    ROW,
)
from segue.kernels.cpu.simd import (
    BLOCK,
    LANES,
    LOWEST,
    NEAR,
    QUAD,
    TILE,
    UNROLL,
    fetch_lines,
    floats,
    longs,
    pair,
    quad,
    real,
    rotate_lanes,
    scatter_lanes,
    soften,
)

NEARBY = 1 << 17  # bytes of a head's keys and values that are few


@fast
def rotate(address, angle_address, rotated_width):
    """Rotate in place: features j and j + turned / 2 are one plane."""
    half = rotated_width // 2
    whole_count = half // LANES * LANES
    for j in range(0, 4 * whole_count, 4 * LANES):
        rotate_lanes(address + j, address + 4 * half + j, angle_address + j, angle_address + 4 * half + j)
    x, angle = floats(address, rotated_width), floats(angle_address, rotated_width)
    for j in range(whole_count, half):
        a, b = x[j], x[half + j]
        x[j] = a * angle[j] - b * angle[half + j]
        x[half + j] = b * angle[j] + a * angle[half + j]


@fast
def store_kv(job, op, me, team):
    """STORE. q(3), k(3), v(3), angles(3), sizes(6), rotated_width, scale: rotate q and k, scale q, cache k and v."""
    heads, kv, width, key, value, rotated_width = op[13], op[14], op[15], op[16], op[17], op[19]
    scale = f32(real(op[20]))
    nodes, whole_count = job[NODES], width // LANES * LANES
    rows, firsts, lengths = longs(job[ROW], nodes), longs(job[FIRST], job[BATCH]), longs(job[LENGTH], job[BATCH])
    for prefetching in (True, False):  # ask for everything first: it lies apart, and in part in other threads' caches
        for item in range(kv * nodes * me // team, kv * nodes * (me + 1) // team):  # heads as they are attended to
            g, node = item // nodes, item % nodes
            b = rows[node]
            slot = lengths[b] + node - firsts[b]
            keys, values = keys_at(job, op, 13, b, g)
            panel, v_into = keys + 4 * (slot // TILE * key * TILE + slot % TILE), values + 4 * slot * value
            k, v = row(job, op, 4, node) + 4 * g * width, row(job, op, 7, node) + 4 * g * width
            if prefetching:
                if node == firsts[b] or slot % (LINE // 4) == 0:
                    fetch_lines(panel, 4 * TILE, width)
                fetch(k, width)
                fetch(v, width)
                fetch(v_into, width)
                continue
            rotate(k, row(job, op, 10, node), rotated_width)
            for j in range(0, whole_count, LANES):
                scatter_lanes(k + 4 * j, panel + 4 * j * TILE, 4 * TILE)
            x, line = floats(k, width), floats(panel, key * TILE)
            for j in range(whole_count, width):
                line[j * TILE] = x[j]
            copy_floats(v, v_into, width)
    for item in range(heads * nodes * me // team, heads * nodes * (me + 1) // team):
        head, node = item // nodes, item % nodes
        q = row(job, op, 1, node) + 4 * head * width
        rotate(q, row(job, op, 10, node), rotated_width)
        scaled(q, scale, q, width)


@fast
def masked_softmax(scores, size, room, q_position, shift, window, slope, num_committed, path_address, positions, first):
    """Scores of one query to unnormalised weights, in place, followed by zeros up to `room`; returns their sum.

    num_committed: how many of the `size` slots are committed (slot + shift is their position); the others are nodes of
    this call, from `first` on, of which `path_address` (an address; 0: all) tells those on the query's path.
    """
    s = floats(scores, size)
    if slope != ZERO or window:
        for j in range(size):
            distance = q_position - (j + shift if j < num_committed else positions[first + j - num_committed])
            s[j] -= slope * f32(abs(distance))
            if window and distance >= window:
                s[j] = LOWEST
    if path_address:
        path = longs(path_address, max(size - num_committed, 0))
        for j in range(size - num_committed):
            if path[j] == 0:
                s[num_committed + j] = LOWEST
    return soften(scores, size, room)


@njit
def work_item(firsts, blocks, item):
    """Head, row and block of nodes of an item of `attend`, in that order."""
    head, b, block = item // blocks, 0, item % blocks
    while block >= (firsts[b + 1] - firsts[b] + BLOCK - 1) // BLOCK:
        block -= (firsts[b + 1] - firsts[b] + BLOCK - 1) // BLOCK
        b += 1
    return head, b, block


@fast
def attend(job, op, me, team):
    """q(3), into(3), sizes(6), window or 0, slopes or 0, block of positions or 0, how many before it, prompt seen by
    all?, prompt alone?, prefix. Up to BLOCK nodes of a row share each pass over its cache."""
    heads, kv, width, key, value, window = op[7], op[8], op[9], op[10], op[11], op[13]
    span, blocks_back, prompt_visible, prompt_only = op[15], op[16], op[17], op[18]
    nodes, batch = job[NODES], job[BATCH]
    firsts, lengths = longs(job[FIRST], batch + 1), longs(job[LENGTH], batch)
    positions, parents = longs(job[POSITION], nodes), longs(job[PARENT], nodes)
    room = job[CAPACITY] + TILE
    local = job[LOCAL] + me * job[LOCAL_BYTES]
    raw = local + 4 * TILE
    scores = raw + 4 * BLOCK * 2 * TILE
    path_address = scores + 4 * BLOCK * room
    scales = floats(local, BLOCK)
    blocks = 0
    for b in range(batch):
        blocks += (firsts[b + 1] - firsts[b] + BLOCK - 1) // BLOCK
    item, last = heads * blocks * me // team, heads * blocks * (me + 1) // team
    while item < last:
        head, b, block = work_item(firsts, blocks, item)
        node = firsts[b] + block * BLOCK
        rows = min(BLOCK, firsts[b + 1] - node)
        keys, values = keys_at(job, op, 7, b, head * kv // heads)
        next_head, next_row, _ = work_item(firsts, blocks, min(item + 1, last - 1))
        next_keys = keys_at(job, op, 7, next_row, next_head * kv // heads)[0]
        num_committed, slots = lengths[b], lengths[b] + block * BLOCK + rows
        shift = positions[firsts[b]] - num_committed  # position minus slot of committed nodes (roots follow the last)
        end, last_slot, start = prompt_end(job, op[19], b), num_committed + firsts[b + 1] - firsts[b], 0
        # Slots among which the prompt lies.
        prompt = min(end, last_slot) if job[CHAIN] or num_committed >= end else last_slot
        if prompt_visible:
            slots = max(slots, prompt)
        if prompt_only:
            slots = min(slots, prompt)
        if window or span:
            start = num_committed
            for r in range(rows):
                reach = window if window else positions[node + r] % span + 1 + span * blocks_back
                start = min(start, positions[node + r] - reach + 1 - shift)
            start = max(0, start) // TILE * TILE
        # Few keys and values are fetched while what comes before them is used, many as they are read.
        prefetch_all = 4 * (slots - start) * (key + value) <= NEARBY
        hop = 4 * TILE * key  # from tile to tile of keys
        to_values = values - keys + 4 * start * (value - key) if prefetch_all else NEAR
        to_keys = next_keys - values + 4 * start * (key - value) if prefetch_all else NEAR
        q = row(job, op, 1, node) + 4 * head * width
        slot = start
        while slot < slots:
            num_panels = 2 if rows <= QUAD and slots - slot > TILE else 1
            k, s = keys + 4 * slot * key, scores + 4 * (slot - start)
            if num_panels == 2:
                quad(rows, k, 4 * TILE, hop, to_values - hop if prefetch_all else NEAR, q, 4 * op[3], key, s, 4 * room,
                     0, 0, 0)
            else:
                pair(rows, k, 4 * TILE, 0, to_values, q, 4 * op[3], key, s, 4 * room, 0, 0, 0)
            slot += num_panels * TILE
        inner = max(1, (slots - start + UNROLL - 1) // UNROLL) * UNROLL
        slope = floats(op[14], heads)[head] if op[14] else ZERO
        for r in range(rows):
            num_visible = num_committed + block * BLOCK + r + 1
            if not job[CHAIN]:
                path = longs(path_address, last_slot - num_committed)
                path[:] = 0
                step = node + r
                while step >= 0:
                    path[step - firsts[b]] = 1
                    step = parents[step]
                if (prompt_visible or prompt_only) and num_committed < end:
                    for j in range(last_slot - num_committed):
                        inside = 1 if positions[firsts[b] + j] < end else 0
                        path[j] = max(path[j], inside * prompt_visible)
                        if prompt_only:
                            path[j] = path[j] * inside
            if prompt_visible:
                num_visible = max(num_visible, prompt)
            if prompt_only:
                num_visible = min(num_visible, prompt)
            reach = positions[node + r] % span + 1 + span * blocks_back if span else window
            total = masked_softmax(scores + 4 * r * room, num_visible - start, inner, positions[node + r],
                                   shift + start, reach, slope, num_committed - start,
                                   0 if job[CHAIN] else path_address, positions, firsts[b])
            scales[r] = ONE / total if total > ZERO else ZERO  # a prompt that is not there
        column = 0
        while column < value:
            v = values + 4 * (start * value + column)
            width_read = TILE
            if rows <= QUAD and value - column > TILE:
                width_read = 2 * TILE
                quad(rows, v, 4 * value, 4 * TILE, to_keys, scores, 4 * room, inner, raw, 4 * width_read, 0, 0, 0)
            else:
                pair(rows, v, 4 * value, 0, to_keys, scores, 4 * room, inner, raw, 4 * width_read, 0, 0, 0)
            for r in range(rows):
                scaled(raw + 4 * r * width_read, scales[r], row(job, op, 4, node + r) + 4 * (head * width + column),
                       min(width_read, width - column))
            column += width_read
        item += 1
