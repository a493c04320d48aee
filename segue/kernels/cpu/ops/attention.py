"""Attention over the key-value cache."""

from __future__ import annotations

from numba import njit

from segue.kernels.cpu.ops.base import LINE, ONE, ZERO, f32, fast, fetch, keys_at, prompt_end, put, row, scaled
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
def turn(at, angle_at, turned):
    """Rotate in place: features j and j + turned / 2 are one plane."""
    half = turned // 2
    whole = half // LANES * LANES
    for j in range(0, 4 * whole, 4 * LANES):
        rotate_lanes(at + j, at + 4 * half + j, angle_at + j, angle_at + 4 * half + j)
    x, angle = floats(at, turned), floats(angle_at, turned)
    for j in range(whole, half):
        a, b = x[j], x[half + j]
        x[j] = a * angle[j] - b * angle[half + j]
        x[half + j] = b * angle[j] + a * angle[half + j]


@fast
def remember(job, op, me, team):
    """STORE. q(3), k(3), v(3), angles(3), sizes(6), turned, scale: rotate q and k, scale q, cache k and v."""
    heads, kv, width, key, value, turned = op[13], op[14], op[15], op[16], op[17], op[19]
    scale = f32(real(op[20]))
    nodes, whole = job[NODES], width // LANES * LANES
    rows, firsts, lengths = longs(job[ROW], nodes), longs(job[FIRST], job[BATCH]), longs(job[LENGTH], job[BATCH])
    for fetching in (True, False):  # ask for everything first: it lies apart, and in part in other threads' caches
        for item in range(kv * nodes * me // team, kv * nodes * (me + 1) // team):  # heads as they are attended to
            g, node = item // nodes, item % nodes
            b = rows[node]
            slot = lengths[b] + node - firsts[b]
            keys, values = keys_at(job, op, 13, b, g)
            panel, v_into = keys + 4 * (slot // TILE * key * TILE + slot % TILE), values + 4 * slot * value
            k, v = row(job, op, 4, node) + 4 * g * width, row(job, op, 7, node) + 4 * g * width
            if fetching:
                if node == firsts[b] or slot % (LINE // 4) == 0:
                    fetch_lines(panel, 4 * TILE, width)
                fetch(k, width)
                fetch(v, width)
                fetch(v_into, width)
                continue
            turn(k, row(job, op, 10, node), turned)
            for j in range(0, whole, LANES):
                scatter_lanes(k + 4 * j, panel + 4 * j * TILE, 4 * TILE)
            x, line = floats(k, width), floats(panel, key * TILE)
            for j in range(whole, width):
                line[j * TILE] = x[j]
            put(v, v_into, width)
    for item in range(heads * nodes * me // team, heads * nodes * (me + 1) // team):
        head, node = item // nodes, item % nodes
        q = row(job, op, 1, node) + 4 * head * width
        turn(q, row(job, op, 10, node), turned)
        scaled(q, scale, q, width)


@fast
def weigh(scores, size, room, q_position, shift, window, slope, past, marks, positions, first):
    """Scores of one query to unnormalised weights, in place, followed by zeros up to `room`; returns their sum.

    past: how many of the `size` slots are committed (slot + shift is their position); the others are nodes of this
    call, from `first` on, of which `marks` (an address; 0: all) tells those on the query's path.
    """
    s = floats(scores, size)
    if slope != ZERO or window:
        for j in range(size):
            distance = q_position - (j + shift if j < past else positions[first + j - past])
            s[j] -= slope * f32(abs(distance))
            if window and distance >= window:
                s[j] = LOWEST
    if marks:
        path = longs(marks, max(size - past, 0))
        for j in range(size - past):
            if path[j] == 0:
                s[past + j] = LOWEST
    return soften(scores, size, room)


@njit
def portion(firsts, blocks, item):
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
    span, back, ahead, alone = op[15], op[16], op[17], op[18]
    nodes, batch = job[NODES], job[BATCH]
    firsts, lengths = longs(job[FIRST], batch + 1), longs(job[LENGTH], batch)
    positions, parents = longs(job[POSITION], nodes), longs(job[PARENT], nodes)
    room = job[CAPACITY] + TILE
    local = job[LOCAL] + me * job[LOCAL_BYTES]
    raw = local + 4 * TILE
    scores = raw + 4 * BLOCK * 2 * TILE
    marks = scores + 4 * BLOCK * room
    scales = floats(local, BLOCK)
    blocks = 0
    for b in range(batch):
        blocks += (firsts[b + 1] - firsts[b] + BLOCK - 1) // BLOCK
    item, last = heads * blocks * me // team, heads * blocks * (me + 1) // team
    while item < last:
        head, b, block = portion(firsts, blocks, item)
        node = firsts[b] + block * BLOCK
        rows = min(BLOCK, firsts[b + 1] - node)
        keys, values = keys_at(job, op, 7, b, head * kv // heads)
        beyond, following, _ = portion(firsts, blocks, min(item + 1, last - 1))
        later = keys_at(job, op, 7, following, beyond * kv // heads)[0]
        past, slots = lengths[b], lengths[b] + block * BLOCK + rows
        shift = positions[firsts[b]] - past  # position minus slot, of what is committed (roots follow the last)
        end, last_slot, start = prompt_end(job, op[19], b), past + firsts[b + 1] - firsts[b], 0
        prompt = min(end, last_slot) if job[CHAIN] or past >= end else last_slot  # slots among which the prompt lies
        if ahead:
            slots = max(slots, prompt)
        if alone:
            slots = min(slots, prompt)
        if window or span:
            start = past
            for r in range(rows):
                near = window if window else positions[node + r] % span + 1 + span * back
                start = min(start, positions[node + r] - near + 1 - shift)
            start = max(0, start) // TILE * TILE
        # Few keys and values are fetched while what comes before them is used, many as they are read.
        few = 4 * (slots - start) * (key + value) <= NEARBY
        hop = 4 * TILE * key  # from tile to tile of keys
        to_values = values - keys + 4 * start * (value - key) if few else NEAR
        to_keys = later - values + 4 * start * (key - value) if few else NEAR
        q = row(job, op, 1, node) + 4 * head * width
        slot = start
        while slot < slots:
            here = 2 if rows <= QUAD and slots - slot > TILE else 1
            k, s = keys + 4 * slot * key, scores + 4 * (slot - start)
            if here == 2:
                quad(rows, k, 4 * TILE, hop, to_values - hop if few else NEAR, q, 4 * op[3], key, s, 4 * room, 0, 0, 0)
            else:
                pair(rows, k, 4 * TILE, 0, to_values, q, 4 * op[3], key, s, 4 * room, 0, 0, 0)
            slot += here * TILE
        inner = max(1, (slots - start + UNROLL - 1) // UNROLL) * UNROLL
        slope = floats(op[14], heads)[head] if op[14] else ZERO
        for r in range(rows):
            own = past + block * BLOCK + r + 1
            if not job[CHAIN]:
                path = longs(marks, last_slot - past)
                path[:] = 0
                step = node + r
                while step >= 0:
                    path[step - firsts[b]] = 1
                    step = parents[step]
                if (ahead or alone) and past < end:
                    for j in range(last_slot - past):
                        inside = 1 if positions[firsts[b] + j] < end else 0
                        path[j] = max(path[j], inside * ahead)
                        if alone:
                            path[j] = path[j] * inside
            if ahead:
                own = max(own, prompt)
            if alone:
                own = min(own, prompt)
            near = positions[node + r] % span + 1 + span * back if span else window
            total = weigh(scores + 4 * r * room, own - start, inner, positions[node + r], shift + start, near, slope,
                          past - start, 0 if job[CHAIN] else marks, positions, firsts[b])
            scales[r] = ONE / total if total > ZERO else ZERO  # a prompt that is not there
        column = 0
        while column < value:
            v = values + 4 * (start * value + column)
            wide = TILE
            if rows <= QUAD and value - column > TILE:
                wide = 2 * TILE
                quad(rows, v, 4 * value, 4 * TILE, to_keys, scores, 4 * room, inner, raw, 4 * wide, 0, 0, 0)
            else:
                pair(rows, v, 4 * value, 0, to_keys, scores, 4 * room, inner, raw, 4 * wide, 0, 0, 0)
            for r in range(rows):
                scaled(raw + 4 * r * wide, scales[r], row(job, op, 4, node + r) + 4 * (head * width + column),
                       min(wide, width - column))
            column += wide
        item += 1
