"""Products of rows with weight matrices, with fused activations and additions."""

from __future__ import annotations

from numba import njit

from segue.kernels.cpu.ops.activations import activate
from segue.kernels.cpu.ops.base import FEW, TAKEN, ZERO, barrier, copy_floats, f32, fast, fetch, row, zero
from segue.kernels.cpu.ops.rows import normed
from segue.kernels.cpu.program import BARRIER, COLUMNS, LOCAL, LOCAL_BYTES, LOGITS, NODES, NONE, WANT, WANTED
from segue.kernels.cpu.simd import (
    AHEAD,
    BLOCK,
    GROUP,
    INTEGER,
    LANES,
    NEAR,
    TILE,
    UNROLL,
    add,
    add_lanes,
    copy_lanes,
    floats,
    longs,
    multiply_lanes,
    pair,
    pair8,
    quantise,
    real,
)

LOT = 1 << 18  # bytes of weights that a thread of several takes at a time from a large matrix
FORESEEN = 1024  # floats of weights, or words of them, that are fetched while a thread waits for the others


@fast
def finish(raw, rows, tiles, into, stride, kind, gated, adds):
    """Activation, gate and sum over what the micro-kernel left in raw (rows, tiles * TILE)."""
    gates = raw + 4 * FEW
    if gated:  # together, since a loop of LANES steps would be unrolled where it should become vector code
        for i in range(rows * tiles):
            copy_lanes(raw + 4 * i * TILE, gates + 4 * i * LANES)
        activate(gates, rows * tiles * LANES, kind)
    else:
        activate(raw, rows * tiles * TILE, kind)
    for r in range(rows):
        for tile in range(tiles):
            i, out = r * tiles + tile, into + r * stride + 4 * tile * (LANES if gated else TILE)
            y = raw + 4 * i * TILE
            if gated:
                multiply_lanes(gates + 4 * i * LANES, y + 4 * LANES, out)
            elif adds:
                add_lanes(y, out)
                add_lanes(y + 4 * LANES, out + 4 * LANES)
            else:
                copy_lanes(y, out)
                copy_lanes(y + 4 * LANES, out + 4 * LANES)


@njit
def tiles_at_once(k, tiles, size, nodes, team):
    """Tiles of a large matrix that a thread takes at a time, so that nobody waits for one whose core is slower or taken
    away for a moment; 0 if the matrix is small and each thread has its own share."""
    num_tiles = max(1, LOT // (TILE * k * size * max(1, (nodes + BLOCK - 1) // BLOCK)))
    return num_tiles if team > 1 and tiles > 3 * num_tiles * team else 0


@njit
def first_tiles(k, tiles, size, nodes, queries, me, team):
    """Where this thread begins in a matrix, and where it ends or looks for more: see `multiply`."""
    num_tiles = tiles_at_once(k, tiles, size, nodes, team)
    if num_tiles:
        return num_tiles * me, num_tiles * me + num_tiles
    count = queries if queries else tiles
    return count * me // team, count * (me + 1) // team


@njit
def multiply(job, source, stride, nodes, into, out, weights, scales, bias, k, tiles, adds, kind, gated, queries, keys,
             me, team):
    """This thread's tiles of a matrix product: rows of `source` (addresses and strides in bytes) to rows of `into`.
    With int8 weights and INTEGER the rows are bytes. At most one product may be between two barriers. queries, keys: of
    a small matrix, tiles of queries and of keys, and as many of values, each of which the threads share; or 0."""
    size = GROUP if scales else 4
    num_tiles = tiles_at_once(k, tiles, size, nodes, team)
    tile, last = first_tiles(k, tiles, size, nodes, queries, me, team)
    part = queries if queries else tiles  # where the next of queries, keys and values begins
    while tile < tiles:
        multiply_tiles(job, source, stride, nodes, into, out, weights, scales, bias, k, tile, min(last, tiles), adds,
                       kind, gated, me)
        if num_tiles:
            tile = num_tiles * (team + add(job[BARRIER] + TAKEN, 1))
            last = tile + num_tiles
        else:
            tile, last = part + keys * me // team, part + keys * (me + 1) // team
            part += keys if queries else tiles


@njit
def multiply_tiles(job, source, stride, nodes, into, out, weights, scales, bias, k, tile, last, adds, kind, gated, me):
    """The tiles from `tile` up to `last` of a matrix product, see `multiply`."""
    raw = job[LOCAL] + me * job[LOCAL_BYTES]
    size = GROUP if scales else 4
    direct = kind == NONE and not gated  # then the micro-kernel stores where the result belongs
    blocks = (nodes + BLOCK - 1) // BLOCK
    while tile < last:
        num_tiles = max(1,
                        min(BLOCK // max(nodes, 1), last - tile))  # as many as there is room for to be finished at once
        column = 4 * tile * (LANES if gated else TILE)
        for block in range(blocks):  # equal blocks: nine rows are 5 + 4, not 8 + 1
            first, end = nodes * block // blocks, nodes * (block + 1) // blocks
            rows = end - first
            x, target = source + first * stride, into + first * out + column
            y, row_stride, accumulate = (target, out, adds) if direct else (raw, 4 * num_tiles * TILE, 0)
            ahead = NEAR if rows < BLOCK - 1 else AHEAD
            for index in range(tile, tile + num_tiles):
                w, bias_address = weights + index * TILE * k * size, bias + 4 * index * TILE if bias else 0
                if scales and rows < BLOCK - 1:
                    pair8(rows, w, size * TILE, 0, NEAR, x, stride, k, y, row_stride, scales + 4 * index * TILE,
                          bias_address, accumulate)
                elif scales:  # a distance that is a constant spares a register, which eight rows are short of
                    pair8(rows, w, size * TILE, 0, AHEAD, x, stride, k, y, row_stride, scales + 4 * index * TILE,
                          bias_address, accumulate)
                else:
                    pair(rows, w, 4 * TILE, 0, ahead, x, stride, k, y, row_stride, 0, bias_address, accumulate)
                y += 4 * TILE
            if not direct:
                finish(raw, rows, num_tiles, target, out, kind, gated, adds)
        tile += num_tiles


@njit
def prefetch_weights(job, op, me, team):
    """Ask for the first of the weights that this thread will read in `linear`."""
    k, tiles, size = op[10], op[11], GROUP if op[8] else 4
    first, _ = first_tiles(k, tiles, size, job[WANTED] if op[15] else job[NODES], op[30], me, team)
    fetch(op[7] + first * TILE * k * size, FORESEEN)


@njit
def made_alone(job, op, team):
    """Whether this thread has made all that it will read in the next operation, see `Program._divide_by_heads`."""
    return (op[30] > 0 and op[30] % team == 0 and op[31] % team == 0 and op[COLUMNS + 14] % team == 0
            and tiles_at_once(op[10], op[11], GROUP if op[8] else 4, job[NODES], team) == 0)


@njit
def make_rows(job, op, nodes, local, stride, me, team):
    """The rows of a product that begins with a norm, or whose nodes are chosen (see `linear`).

    Of few rows each thread makes all in memory of its own: that takes less than waiting for the others. Besides, it
    norms its share of all nodes in the register, where later operations may look.
    """
    width, epsilon, chosen = op[16], f32(real(op[26])), longs(job[WANT], job[WANTED])
    few = nodes <= BLOCK
    if few:
        for i in range(nodes):  # what other threads have left in their caches
            fetch(row(job, op, 21 if op[20] else 1, chosen[i] if op[15] else i), width)
    if op[20]:
        for node in range(me, job[NODES], team):
            normed(row(job, op, 21, node), row(job, op, 1, node), width, op[20] - 1, op[24], op[25], epsilon)
        if not few:
            barrier(job, team)
    if few:
        for i in range(nodes):
            node, into = chosen[i] if op[15] else i, local + i * stride
            if op[20] and node % team != me:
                normed(row(job, op, 21, node), into, width, op[20] - 1, op[24], op[25], epsilon)
            else:
                copy_floats(row(job, op, 1, node), into, width)
            behind = floats(into + 4 * width, UNROLL)  # the micro-kernel reads so far, and 0 times NaN is no 0
            for j in range(UNROLL):
                behind[j] = ZERO
    elif op[15]:
        for i in range(me, nodes, team):
            copy_floats(row(job, op, 1, chosen[i]), row(job, op, 27, i), width)
        barrier(job, team)


@njit
def linear(job, op, me, team):
    """source(3), into(3), weights, scales or 0, bias or 0, k, tiles, add?, activation, gated?, logits of the wanted
    nodes?, width, bytes(3); if a norm makes the source: 1 + its kind, its source(3), weight or 0, bias or 0, epsilon;
    room for the wanted nodes(3); tiles of queries and of keys, or 0."""
    if op[15]:
        nodes, into = job[WANTED], job[LOGITS]
    else:
        nodes, into = job[NODES], row(job, op, 4, 0)
    source, stride = row(job, op, 1, 0), 4 * op[3]
    local = job[LOCAL] + me * job[LOCAL_BYTES] + 8 * FEW
    if op[20] or op[15]:
        local_stride = 4 * ((op[16] + TILE - 1) // TILE * TILE + LANES)  # no power of two: the cache would be short of
        make_rows(job, op, nodes, local, local_stride, me, team)  # places for so many lines
        if nodes <= BLOCK:
            source, stride, local = local, local_stride, local + nodes * local_stride
        elif op[15]:
            source, stride = row(job, op, 27, 0), 4 * op[29]
    elif nodes <= BLOCK:  # more would take longer to ask for than to wait for
        for node in range(nodes):  # what other threads have left in their caches
            fetch(source + node * stride, op[16])
    if INTEGER and op[8]:
        float_source, float_stride, k = source, stride, op[10]
        if nodes <= BLOCK:  # for itself: that takes less than waiting for the others
            source, stride = local, 4 * (k + 2)
            for node in range(nodes):
                quantise(float_source + node * float_stride, op[16], source + node * stride, k)
        else:
            source, stride = row(job, op, 17, 0), 4 * op[19]
            for node in range(me, nodes, team):
                quantise(float_source + node * float_stride, op[16], source + node * stride, k)
            barrier(job, team)
    multiply(job, source, stride, nodes, into, 4 * op[6], op[7], op[8], op[9], op[10], op[11], op[12], op[13], op[14],
             op[30], op[31], me, team)


@njit
def product(job, source, width, stride, rows, byte_buffer, into, out, weights, scales, bias, k, tiles, me, team):
    """A matrix product of a few rows that all threads share, and of which all threads have made a part; `byte_buffer`
    is room for them as bytes."""
    none = zero(me)
    barrier(job, team)
    if INTEGER and scales:
        for i in range(me, rows, team):
            quantise(source + i * stride, width, byte_buffer + 4 * i * (k + 2), k)
        source, stride = byte_buffer, 4 * (k + 2)
        barrier(job, team)
    multiply(job, source, stride, rows, into, out, weights, scales, bias, k, tiles, none, NONE + none, none, none, none,
             me, team)
    barrier(job, team)
