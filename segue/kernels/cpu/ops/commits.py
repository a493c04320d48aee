"""Commits: moving caches and states of all layers to the accepted nodes."""

from __future__ import annotations

from numba import njit

from segue.kernels.cpu.ops.base import copy_floats, keys_at
from segue.kernels.cpu.program import AFTER, BATCH, BEFORE, LENGTH, PATH, SLOTS, STEPS
from segue.kernels.cpu.simd import TILE, floats, longs


@njit
def move(job, op, me, team):
    """sizes(6). Gather the keys and values along each row's path to the slots right behind its cursor."""
    heads, key, value = op[2], op[4], op[5]
    batch, steps = job[BATCH], job[STEPS]
    lengths, path = longs(job[LENGTH], batch), longs(job[PATH], batch * steps)
    for item in range(me, batch * heads, team):
        b = item // heads
        keys, values = keys_at(job, op, 1, b, item % heads)
        for step in range(steps):  # a path ascends, so nothing is overwritten before it has moved
            node = path[b * steps + step]
            if node > step:
                old, new = lengths[b] + node, lengths[b] + step
                source = floats(keys + 4 * (old // TILE * key * TILE + old % TILE), key * TILE)
                target = floats(keys + 4 * (new // TILE * key * TILE + new % TILE), key * TILE)
                for j in range(key):
                    target[j * TILE] = source[j * TILE]
                copy_floats(values + 4 * old * value, values + 4 * new * value, value)


@njit
def pick(job, op, me, team):
    """state offset, size. The committed state of each row becomes that of one node (-1: stays)."""
    offset, size = op[1], op[2]
    path = longs(job[PATH], job[BATCH])
    for b in range(me, job[BATCH], team):
        if path[b] >= 0:
            copy_floats(job[AFTER] + 4 * (offset * job[SLOTS] + path[b] * size),
                        job[BEFORE] + 4 * (offset * job[BATCH] + b * size), size)
