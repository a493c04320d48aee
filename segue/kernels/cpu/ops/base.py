"""Shared by all operations: compilation, the addresses of rows, states, keys and values, the barrier, and the division
of work between threads."""

from __future__ import annotations

import numpy as np
from numba import njit

from segue.kernels.cpu.program import (
    AFTER,
    BARRIER,
    BATCH,
    BEFORE,
    CACHE,
    CAPACITY,
    CHAIN,
    CONSTANT,
    KEEP,
    NODES,
    PARENT,
    PROMPT,
    ROW,
    SCRATCH,
    SLOTS,
)
from segue.kernels.cpu.simd import (
    BLOCK,
    LANES,
    TILE,
    add,
    copy,
    fetch_lines,
    floats,
    load,
    longs,
    relax,
    scale_lanes,
    store,
    yield_core,
)

f32 = np.float32
ZERO, HALF, ONE, TWO = f32(0), f32(0.5), f32(1), f32(2)
# Sums may be reordered and fused, infinities and NaN stay what they are; a check for division by zero would keep
# loops from being vectorised. Only compiled code calls these: without wrappers they are compiled in less time.
fast = njit(fastmath={"reassoc", "contract", "nsz", "arcp"}, error_model="numpy", no_cpython_wrapper=True,
            no_cfunc_wrapper=True)
SPINS = 3000
FEW = BLOCK * TILE  # numbers that a thread's local memory always has room for
LINE = 64  # bytes of a line of the cache
ROUND, TAKEN, STALLS = LINE, 2 * LINE, 3 * LINE  # bytes to what lies behind the barrier's count, see there


@njit
def barrier(job, team):
    """Wait until all of the team are here. At BARRIER lies how many came; ROUND on, how often it was full; TAKEN on,
    how much of what lies between two barriers threads have taken, see `linear.multiply`; STALLS on, how often a thread
    had to wait for long. All of that is the team's: a thread may look there when the job itself has gone."""
    if team == 1:
        return
    address = job[BARRIER]
    round_number = load(address + ROUND)
    if add(address, 1) == team - 1:
        store(address, 0)
        store(address + TAKEN, 0)
        store(address + ROUND, round_number + 1)
        return
    spins = 0
    while load(address + ROUND) == round_number:
        spins += 1
        if spins < SPINS:
            relax()
        else:  # others want the cores: let them, and remember it
            if spins == SPINS:
                add(address + STALLS, 1)
            yield_core()


@njit
def row(job, op, at, node):
    """The address of a node's row in the operand at columns `at` to `at + 2`: offset, column, stride; or of the vector
    that stands for all of them."""
    if op[at] == CONSTANT:
        return op[at + 1]
    return job[SCRATCH] + 4 * (op[at] * job[NODES] + op[at + 1] + node * op[at + 2])


@njit
def state_before(job, offset, size, node, large=False):
    """The address of the recurrent state before a node: its row's committed one, or its parent's."""
    parent = longs(job[PARENT], job[NODES])[node]
    if parent >= 0:
        return state_after(job, offset, size, parent, large)
    return job[BEFORE] + 4 * (offset * job[BATCH] + longs(job[ROW], job[NODES])[node] * size)


@njit
def state_after(job, offset, size, node, large=False):
    """The address of the state after a node: a slot for each node, or one for each row, moving along with it. On a
    chain `large` ones always move: to write one for each node may take longer than to read all weights."""
    slot = node if job[KEEP] and not (large and job[CHAIN]) else longs(job[ROW], job[NODES])[node]
    return job[AFTER] + 4 * (offset * job[SLOTS] + slot * size)


@njit
def states_around(job, offset, size, node, large=False):
    """The addresses of the states before and after a node."""
    return state_before(job, offset, size, node, large), state_after(job, offset, size, node, large)


@njit
def prompt_end(job, prefix, b):
    """The position after the prompt of row b."""
    return prefix if prefix else longs(job[PROMPT], job[BATCH])[b]


@njit
def keys_at(job, op, at, b, g):
    """The addresses of the cached keys and values of row b and head g; sizes in columns `at`: heads, kv_heads, width,
    key, value, offset. Keys lie in tiles (slot / TILE, key, TILE), as weights do; values (slot, value)."""
    heads, key, value = op[at + 1], op[at + 3], op[at + 4]
    layer = job[CACHE] + 4 * op[at + 5] * job[BATCH] * job[CAPACITY]
    pair_at = b * heads + g
    keys = layer + 4 * job[CAPACITY] * pair_at * key
    values = layer + 4 * job[CAPACITY] * (job[BATCH] * heads * key + pair_at * value)
    return keys, values


@njit
def thread_range(width, me, team):
    """This thread's range of `width` elements, in whole vectors: where it begins and how many they are."""
    vectors = (width + LANES - 1) // LANES
    begin, end = vectors * me // team * LANES, vectors * (me + 1) // team * LANES
    return begin, min(end, width) - begin


@njit
def copy_floats(source, target, count):
    """Copy `count` floats."""
    copy(target, source, 4 * count)


@njit
def zero(number):
    """0, but not as a compile-time constant, for which Numba would compile the whole product once more."""
    return number - number


@njit
def fetch(address, count):
    """Prefetch `count` floats."""
    fetch_lines(address, LINE, (4 * count + LINE - 1) // LINE)


@fast
def scaled(source, factor, target, count):
    """into = by * source."""
    whole_count = count // LANES * LANES
    for offset in range(0, 4 * whole_count, 4 * LANES):
        scale_lanes(source + offset, factor, target + offset)
    x, y = floats(source, count), floats(target, count)
    for j in range(whole_count, count):
        y[j] = x[j] * factor


@fast
def dot(x, y, count):
    """The sum of products of `count` numbers at either address."""
    a, b, total = floats(x, count), floats(y, count), ZERO
    for j in range(count):
        total += a[j] * b[j]
    return total
