"""Products of rows with weight matrices, with fused activations and additions."""

from __future__ import annotations

from numba import njit

from segue.kernels.cpu.ops.activations import activate
from segue.kernels.cpu.ops.base import FEW, TAKEN, barrier, fast, fetch, row, zero
from segue.kernels.cpu.program import BARRIER, LOCAL, LOCAL_BYTES, LOGITS, NODES, NONE, WANTED
from segue.kernels.cpu.simd import (
    AHEAD,
    BLOCK,
    GROUP,
    INTEGER,
    LANES,
    NEAR,
    TILE,
    add,
    add_lanes,
    copy_lanes,
    multiply_lanes,
    pair,
    pair8,
    quantise,
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
def multiply(job, source, stride, nodes, into, out, weights, scales, bias, k, tiles, adds, kind, gated, me, team):
    """This thread's tiles of a matrix product: rows of `source` (addresses and strides in bytes) to rows of `into`.
    With int8 weights and INTEGER the rows are bytes. At most one product may be between two barriers."""
    num_tiles = tiles_at_once(k, tiles, GROUP if scales else 4, nodes, team)
    tile, last = tiles * me // team, tiles * (me + 1) // team
    if num_tiles:
        tile, last = num_tiles * me, num_tiles * me + num_tiles
    while tile < tiles:
        multiply_tiles(job, source, stride, nodes, into, out, weights, scales, bias, k, tile, min(last, tiles), adds,
                       kind, gated, me)
        if num_tiles == 0:
            break
        tile = num_tiles * (team + add(job[BARRIER] + TAKEN, 1))
        last = tile + num_tiles


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
    num_tiles = tiles_at_once(k, tiles, size, job[WANTED] if op[15] else job[NODES], team)
    fetch(op[7] + (num_tiles * me if num_tiles else tiles * me // team) * TILE * k * size, FORESEEN)


@njit
def linear(job, op, me, team):
    """source(3), into(3), weights, scales or 0, bias or 0, k, tiles, add?, activation, gated?, logits?, width,
    bytes(3)."""
    if op[15]:
        nodes, into = job[WANTED], job[LOGITS]
    else:
        nodes, into = job[NODES], row(job, op, 4, 0)
    source, stride = row(job, op, 1, 0), 4 * op[3]
    if nodes <= BLOCK:  # more would take longer to ask for than to wait for
        for node in range(nodes):  # what other threads have left in their caches
            fetch(source + node * stride, op[16])
    if INTEGER and op[8]:
        float_source, float_stride, k = source, stride, op[10]
        if nodes <= BLOCK:  # for itself: that takes less than waiting for the others
            source, stride = job[LOCAL] + me * job[LOCAL_BYTES] + 8 * FEW, 4 * (k + 2)
            for node in range(nodes):
                quantise(float_source + node * float_stride, op[16], source + node * stride, k)
        else:
            source, stride = row(job, op, 17, 0), 4 * op[19]
            for node in range(me, nodes, team):
                quantise(float_source + node * float_stride, op[16], source + node * stride, k)
            barrier(job, team)
    multiply(job, source, stride, nodes, into, 4 * op[6], op[7], op[8], op[9], op[10], op[11], op[12], op[13], op[14],
             me, team)


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
    multiply(job, source, stride, rows, into, out, weights, scales, bias, k, tiles, none, NONE + none, none, me, team)
    barrier(job, team)
