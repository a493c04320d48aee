"""The operations of a program. Each is `operation(job, op, me, team)`: thread `me` of `team` does its share.

`job` holds the integers of this call (see `program.py`), `op` one row of the table. Inner loops run over exactly
LANES elements, which LLVM turns into straight vector code; rows of registers are padded so that they may.
"""

from __future__ import annotations

import math

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
    ELMAN,
    ELU1,
    EXP,
    FIRST,
    GELU,
    GELU_TANH,
    GRU,
    JORDAN,
    KEEP,
    L2,
    LAYER,
    LENGTH,
    LEVEL,
    LEVELS,
    LOCAL,
    LOCAL_BYTES,
    LOG_SIGMOID,
    LOGITS,
    LSTM,
    NODES,
    NONE,
    ORDER,
    PARENT,
    PATH,
    POSITION,
    PROMPT,
    RECIPROCAL,
    RELU,
    RELU2,
    ROW,
    SCRATCH,
    SIGMOID,
    SILU,
    SLOTS,
    SLSTM,
    SOFTPLUS,
    STALLS,
    STEPS,
    TANH,
    TOKEN,
    WANT,
    WANTED,
)
from segue.kernels.cpu.simd import (
    AHEAD,
    BLOCK,
    GROUP,
    INTEGER,
    LANES,
    LOWEST,
    MANY,
    NEAR,
    QUAD,
    TILE,
    UNROLL,
    add,
    add_lanes,
    complex_lanes,
    convolve_lanes,
    copy,
    copy_lanes,
    delta_lanes,
    delta_many,
    dense_lanes,
    diagonal_lanes,
    dot_lanes,
    exp,
    fetch_lines,
    filter_lanes,
    filter_many,
    floats,
    load,
    longs,
    low_rank_lanes,
    matrix_lanes,
    matrix_many,
    modes_lanes,
    multiply_lanes,
    pair,
    pair8,
    quad,
    quantise,
    real,
    relax,
    rotate_lanes,
    scale_lanes,
    scan_lanes,
    scatter_lanes,
    soften,
    store,
    yield_core,
)

f32 = np.float32
ZERO, HALF, ONE, TWO = f32(0), f32(0.5), f32(1), f32(2)
# Sums may be reordered and fused, infinities and NaN stay what they are; a check for division by zero would keep
# loops from being vectorised.
fast = njit(fastmath={"reassoc", "contract", "nsz", "arcp"}, error_model="numpy")
ROOT_HALF, TANH_SCALE, TANH_CUBE = f32(math.sqrt(0.5)), f32(math.sqrt(2 / math.pi)), f32(0.044715)
LARGEST = f32(3e38)  # a limit from here on is none
TINY = f32(np.finfo(np.float32).tiny)
SPINS = 3000
NEARBY = 1 << 17  # bytes of a head's keys and values that are few
LINE = 64  # bytes of a line of the cache
FORESEEN = 1024  # floats of weights, or words of them, that are fetched while a thread waits for the others
FEW = BLOCK * TILE  # numbers that a thread's local memory always has room for


@njit
def barrier(job, team):
    """Wait until all of the team are here. At BARRIER lies how many came, and 64 bytes on, how often it was full."""
    if team == 1:
        return
    address = job[BARRIER]
    turn = load(address + 64)
    if add(address, 1) == team - 1:
        store(address, 0)
        store(address + 64, turn + 1)
        return
    spins = 0
    while load(address + 64) == turn:
        spins += 1
        if spins < SPINS:
            relax()
        else:  # others want the cores: let them, and remember it
            if spins == SPINS:
                job[STALLS] += 1
            yield_core()


@njit
def row(job, op, at, node):
    """The address of a node's row in the operand at columns `at` to `at + 2`: offset, column, stride; or of the vector
    that stands for all of them."""
    if op[at] == CONSTANT:
        return op[at + 1]
    return job[SCRATCH] + 4 * (op[at] * job[NODES] + op[at + 1] + node * op[at + 2])


@njit
def before(job, offset, size, node, large=False):
    """The address of the recurrent state that a node follows: its row's committed one, or its parent's."""
    parent = longs(job[PARENT], job[NODES])[node]
    if parent >= 0:
        return after(job, offset, size, parent, large)
    return job[BEFORE] + 4 * (offset * job[BATCH] + longs(job[ROW], job[NODES])[node] * size)


@njit
def after(job, offset, size, node, large=False):
    """The address of the state after a node: a slot for each node, or one for each row, moving along with it. On a
    chain `large` ones always move: to write one for each node may take longer than to read all weights."""
    slot = node if job[KEEP] and not (large and job[CHAIN]) else longs(job[ROW], job[NODES])[node]
    return job[AFTER] + 4 * (offset * job[SLOTS] + slot * size)


@njit
def prompt_end(job, prefix, b):
    """The position behind the prompt of row b."""
    return prefix if prefix else longs(job[PROMPT], job[BATCH])[b]


@fast
def sigmoid(x):
    return ONE / (ONE + exp(-x))


@fast
def tanh(x):
    return ONE - TWO / (ONE + exp(TWO * x))


@fast
def softplus(x):
    """log(1 + e^x): log(1 + z) is 2 atanh(z / (2 + z)), whose series converges fast for z = e^-|x|."""
    z = exp(-abs(x))
    s = z / (TWO + z)
    q = s * s
    series = f32(1 / 13)
    for odd in (11, 9, 7, 5, 3, 1):
        series = series * q + f32(1 / odd)
    return max(x, ZERO) + TWO * s * series


@fast
def erf(x):
    """Abramowitz and Stegun 7.1.26, absolute error below 2e-7."""
    z = abs(x)
    t = ONE / (ONE + f32(0.3275911) * z)
    p = ((((f32(1.061405429) * t - f32(1.453152027)) * t + f32(1.421413741)) * t - f32(0.284496736)) * t
         + f32(0.254829592)) * t
    y = ONE - p * exp(-z * z)
    return y if x >= ZERO else -y


@fast
def activate(address, size, kind):
    """In place."""
    y = floats(address, size)
    if kind == SILU:
        for j in range(size):
            y[j] = y[j] * sigmoid(y[j])
    elif kind == GELU:
        for j in range(size):
            y[j] = HALF * y[j] * (ONE + erf(y[j] * ROOT_HALF))
    elif kind == GELU_TANH:
        for j in range(size):
            y[j] = y[j] * sigmoid(TWO * TANH_SCALE * (y[j] + TANH_CUBE * y[j] * y[j] * y[j]))
    elif kind == RELU:
        for j in range(size):
            y[j] = max(y[j], ZERO)
    elif kind == RELU2:
        for j in range(size):
            y[j] = max(y[j], ZERO) * max(y[j], ZERO)
    elif kind == SIGMOID:
        for j in range(size):
            y[j] = sigmoid(y[j])
    elif kind == TANH:
        for j in range(size):
            y[j] = tanh(y[j])
    elif kind == EXP:
        for j in range(size):
            y[j] = exp(y[j])
    elif kind == SOFTPLUS:
        for j in range(size):
            y[j] = softplus(y[j])
    elif kind == LOG_SIGMOID:
        for j in range(size):
            y[j] = -softplus(-y[j])
    elif kind == ELU1:
        for j in range(size):
            y[j] = exp(min(y[j], ZERO)) + max(y[j], ZERO)
    elif kind == RECIPROCAL:
        for j in range(size):
            y[j] = ONE / y[j]


@njit
def embed(job, op, me, team):
    """into(3), width, table, positions or 0."""
    width = op[4]
    for node in range(me, job[NODES], team):
        into = floats(row(job, op, 1, node), width)
        into[:] = floats(op[5] + 4 * width * longs(job[TOKEN], job[NODES])[node], width)
        if op[6]:
            into += floats(op[6] + 4 * width * longs(job[POSITION], job[NODES])[node], width)


@fast
def norm(job, op, me, team):
    """source(3), into(3), width, groups, kind, weight or 0, bias or 0, epsilon."""
    width, groups = op[7], op[8]
    epsilon = f32(real(op[12]))
    for item in range(me, job[NODES] * groups, team):
        node, group = item // groups, item % groups
        x = floats(row(job, op, 1, node) + 4 * group * width, width)
        y = floats(row(job, op, 4, node) + 4 * group * width, width)
        mean = ZERO
        if op[9] == LAYER:
            for j in range(width):
                mean += x[j]
            mean /= f32(width)
        square = ZERO
        for j in range(width):
            square += (x[j] - mean) * (x[j] - mean)
        if op[9] == L2:
            scale = ONE / max(f32(math.sqrt(square)), epsilon)
        else:
            scale = ONE / f32(math.sqrt(square / f32(width) + epsilon))
        if op[10]:
            w = floats(op[10], width)
            for j in range(width):
                y[j] = (x[j] - mean) * scale * w[j]
        else:
            for j in range(width):
                y[j] = (x[j] - mean) * scale
        if op[11]:
            b = floats(op[11], width)
            for j in range(width):
                y[j] += b[j]


@njit
def angles(job, op, me, team):
    """into(3), count, frequencies (float64), restart?, prefix."""
    count = op[4]
    turns = longs(op[5], count)
    for node in range(me, job[NODES], team):
        into = floats(row(job, op, 1, node), 2 * count)
        position = longs(job[POSITION], job[NODES])[node]
        if op[6]:
            end = prompt_end(job, op[7], longs(job[ROW], job[NODES])[node])
            position -= end if position >= end else 0
        for j in range(count):
            angle = position * real(turns[j])
            into[j] = math.cos(angle)
            into[count + j] = math.sin(angle)


@njit
def put(source, target, count):
    """Copy `count` floats."""
    copy(target, source, 4 * count)


@njit
def fetch(address, count):
    """Ask for `count` floats."""
    fetch_lines(address, LINE, (4 * count + LINE - 1) // LINE)


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
def multiply(job, source, stride, nodes, into, out, weights, scales, bias, k, tiles, adds, kind, gated, me, team):
    """This thread's tiles of a matrix product: rows of `source` (addresses and strides in bytes) to rows of `into`.
    With int8 weights and INTEGER the rows are bytes."""
    tile, last = tiles * me // team, tiles * (me + 1) // team
    raw = job[LOCAL] + me * job[LOCAL_BYTES]
    size = GROUP if scales else 4
    plain = kind == NONE and not gated  # then the micro-kernel stores where the result belongs
    blocks = (nodes + BLOCK - 1) // BLOCK
    while tile < last:
        here = max(1, min(BLOCK // max(nodes, 1), last - tile))  # as many as there is room for to be finished at once
        column = 4 * tile * (LANES if gated else TILE)
        for block in range(blocks):  # equal blocks: nine rows are 5 + 4, not 8 + 1
            first, end = nodes * block // blocks, nodes * (block + 1) // blocks
            rows = end - first
            x, target = source + first * stride, into + first * out + column
            y, between, onto = (target, out, adds) if plain else (raw, 4 * here * TILE, 0)
            ahead = NEAR if rows < BLOCK - 1 else AHEAD
            for at in range(tile, tile + here):
                w, shift = weights + at * TILE * k * size, bias + 4 * at * TILE if bias else 0
                if scales and rows < BLOCK - 1:
                    pair8(rows, w, size * TILE, 0, NEAR, x, stride, k, y, between, scales + 4 * at * TILE, shift, onto)
                elif scales:  # a distance that is a constant spares a register, which eight rows are short of
                    pair8(rows, w, size * TILE, 0, AHEAD, x, stride, k, y, between, scales + 4 * at * TILE, shift, onto)
                else:
                    pair(rows, w, 4 * TILE, 0, ahead, x, stride, k, y, between, 0, shift, onto)
                y += 4 * TILE
            if not plain:
                finish(raw, rows, here, target, out, kind, gated, adds)
        tile += here


@njit
def foresee(op, me, team):
    """Ask for the first of the weights that this thread will read in `linear`."""
    k, tiles = op[10], op[11]
    fetch(op[7] + tiles * me // team * TILE * k * (GROUP if op[8] else 4), FORESEEN)


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
        floating, apart, k = source, stride, op[10]
        if nodes <= BLOCK:  # for itself: that takes less than waiting for the others
            source, stride = job[LOCAL] + me * job[LOCAL_BYTES] + 8 * FEW, 4 * (k + 2)
            for node in range(nodes):
                quantise(floating + node * apart, op[16], source + node * stride, k)
        else:
            source, stride = row(job, op, 17, 0), 4 * op[19]
            for node in range(me, nodes, team):
                quantise(floating + node * apart, op[16], source + node * stride, k)
            barrier(job, team)
    multiply(job, source, stride, nodes, into, 4 * op[6], op[7], op[8], op[9], op[10], op[11], op[12], op[13], op[14],
             me, team)


@fast
def scaled(source, by, into, count):
    """into = by * source."""
    whole = count // LANES * LANES
    for at in range(0, 4 * whole, 4 * LANES):
        scale_lanes(source + at, by, into + at)
    x, y = floats(source, count), floats(into, count)
    for j in range(whole, count):
        y[j] = x[j] * by


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


@njit
def part(width, me, team):
    """This thread's range of `width` elements, in whole vectors: where it begins and how many they are."""
    vectors = (width + LANES - 1) // LANES
    begin, end = vectors * me // team * LANES, vectors * (me + 1) // team * LANES
    return begin, min(end, width) - begin


@fast
def convolve(job, op, me, team):
    """source(3), into(3), width, taps, weight (taps, width), bias, state offset, activation.
    State: (taps - 1, width)."""
    width, taps, offset = op[7], op[8], op[11]
    begin, count = part(width, me, team)
    for node in range(job[NODES]):
        x, y = row(job, op, 1, node), row(job, op, 4, node)
        old, new = before(job, offset, (taps - 1) * width, node), after(job, offset, (taps - 1) * width, node)
        for start in range(begin, begin + count, LANES):
            at = 4 * start
            convolve_lanes(x + at, op[9] + at, op[10] + at, old + at, new + at, y + at, taps, 4 * width)
        activate(y + 4 * begin, count, op[12])


@fast
def scan(job, op, me, team):
    """u(3), dt(3), b(3), c(3), gate(3), into(3), width, states, a (width / LANES, states, LANES), d, state offset,
    range (2). State: as a."""
    width, states, offset = op[19], op[20], op[23]
    begin, count = part(width, me, team)
    rows = longs(job[ROW], job[NODES])
    for start in range(begin, begin + count, LANES):
        at = 4 * start
        for node in range(job[NODES]):
            if rows[node] >= 0:  # else not among those to repeat
                scan_lanes(row(job, op, 4, node) + at, row(job, op, 1, node) + at, op[22] + at, op[21] + states * at,
                           row(job, op, 7, node), row(job, op, 10, node),
                           before(job, offset, states * width, node, True) + states * at,
                           after(job, offset, states * width, node, True) + states * at,
                           row(job, op, 16, node) + at, states, op[24])
    for node in range(job[NODES]):
        y, gates = floats(row(job, op, 16, node) + 4 * begin, count), floats(row(job, op, 13, node) + 4 * begin, count)
        for j in range(count):
            y[j] *= gates[j] * sigmoid(gates[j])


@fast
def decay(job, op, me, team):
    """gate(3), width, temperature, floor: exp(max(log sigmoid(gate) / temperature, floor)) in place."""
    rate, floor = f32(1 / real(op[5])), f32(real(op[6]))
    begin, count = part(op[4], me, team)
    for node in range(job[NODES]):
        x = floats(row(job, op, 1, node) + 4 * begin, count)
        for j in range(count):
            x[j] = exp(max(-softplus(-x[j]) * rate, floor))


@njit
def diagonal(job, op, me, team):
    """decay(3), source(3), into(3), width, complex?, state offset. State: real parts, then imaginary ones."""
    width, whole, offset = op[10], op[11], op[12]
    begin, count = part(width, me, team)
    wide = (width + LANES - 1) // LANES * LANES
    local = job[LOCAL] + me * job[LOCAL_BYTES]
    for node in range(job[NODES]):
        a, x, into = row(job, op, 1, node), row(job, op, 4, node), row(job, op, 7, node)
        old, new = before(job, offset, wide * (1 + whole), node), after(job, offset, wide * (1 + whole), node)
        for start in range(begin, begin + count, LANES):
            at, rest = 4 * start, width - start
            y, beyond = (into + at, 4 * width) if rest >= LANES else (local, 4 * LANES)  # the next columns are others'
            if whole:
                complex_lanes(a + at, x + at, old + at, new + at, y, 4 * width, 4 * wide, beyond)
            else:
                diagonal_lanes(a + at, x + at, old + at, new + at, y)
            if rest < LANES:
                put(local, into + at, rest)
                if whole:
                    put(local + beyond, into + at + 4 * width, rest)


def of_modes(step, parts):
    """u(3), into(3), width, modes, table (width / LANES, modes * parts, LANES), d, state offset: one step of channels.
    State: (width / LANES, modes, 2, LANES)."""

    @njit
    def operation(job, op, me, team):
        width, count, offset = op[7], op[8], op[11]
        begin, mine = part(width, me, team)
        size = (width + LANES - 1) // LANES * LANES * 2 * count
        y = job[LOCAL] + me * job[LOCAL_BYTES]
        rows = longs(job[ROW], job[NODES])
        for start in range(begin, begin + mine, LANES):
            at = 4 * start
            for node in range(job[NODES]):
                if rows[node] < 0:  # not among those to repeat
                    continue
                u, into = row(job, op, 1, node), row(job, op, 4, node)
                old, new = before(job, offset, size, node, True), after(job, offset, size, node, True)
                step(u + at, op[9] + parts * count * at, op[10] + at, old + 2 * count * at, new + 2 * count * at, y,
                     count)
                put(y, into + at, min(LANES, width - start))

    return operation


modes, low_rank = of_modes(modes_lanes, 4), of_modes(low_rank_lanes, 10)


@njit
def dense(job, op, me, team):
    """u(3), into(3), width, states, outputs, a (width / LANES, room / MANY, states, MANY, LANES), b (width / LANES,
    room, LANES), c (width / LANES, outputs, room, LANES), d (width / LANES, outputs, LANES), state offset; room is
    states, padded. State: as b."""
    width, states, outputs, offset, nodes = op[7], op[8], op[9], op[14], job[NODES]
    begin, mine = part(width, me, team)
    room = (states + MANY - 1) // MANY * MANY
    size = (width + LANES - 1) // LANES * LANES * room
    y = job[LOCAL] + me * job[LOCAL_BYTES]
    fresh = y + 4 * LANES  # the next state, since all of the last one is needed for each number of it
    rows = longs(job[ROW], nodes)
    for start in range(begin, begin + mine, LANES):
        at, rest = 4 * start, min(LANES, width - start)
        for node in range(nodes):
            if rows[node] < 0:  # not among those to repeat
                continue
            u, into = row(job, op, 1, node), row(job, op, 4, node)
            old, new = before(job, offset, size, node, True), after(job, offset, size, node, True)
            for first in range(0, room, MANY):  # each node fetches a part of the next channels' matrices
                ahead = NEAR if nodes == 1 else 4 * LANES * room * states if first // MANY % nodes == node else 0
                dense_lanes(u + at, op[10] + room * states * at + 4 * LANES * states * first,
                            op[11] + room * at + 4 * LANES * first, old + room * at, fresh + 4 * LANES * first, states,
                            ahead)
            put(fresh, new + room * at, room * LANES)
            for output in range(outputs):
                dot_lanes(u + at, op[13] + outputs * at + 4 * LANES * output,
                          op[12] + outputs * room * at + 4 * LANES * room * output, fresh, y, room)
                put(y, into + at + 4 * width * output, rest)


@njit
def filter(job, op, me, team):
    """source(3), into(3), sizes(6), width, lags, taps (lags, width). From the node itself back: the order of the sum is
    the same whatever was committed before."""
    value, width, lags = op[11], op[13], op[14]
    begin, count = part(width, me, team)
    wide = (width + LANES - 1) // LANES * LANES
    y = job[LOCAL] + me * job[LOCAL_BYTES]
    rows, parents = longs(job[ROW], job[NODES]), longs(job[PARENT], job[NODES])
    firsts, lengths = longs(job[FIRST], job[BATCH] + 1), longs(job[LENGTH], job[BATCH])
    for node in range(job[NODES]):
        b = rows[node]
        put(row(job, op, 1, node) + 4 * begin,
            keys_at(job, op, 7, b, 0)[1] + 4 * (begin + (lengths[b] + node - firsts[b]) * value), count)
    start = begin
    while start < begin + count:
        rest = begin + count - start
        here = MANY if rest >= MANY * LANES else 1
        for node in range(job[NODES]):
            b = rows[node]
            x = keys_at(job, op, 7, b, 0)[1] + 4 * start
            floats(y, MANY * LANES)[:] = ZERO
            slot, step, lag = lengths[b] + node - firsts[b], node, 0
            while lag < lags and slot >= 0:
                apart = step >= 0 and not job[CHAIN]  # else all before it lies in a row
                run = 1 if apart else min(lags - lag, slot + 1)
                taps, inputs = op[15] + 4 * (lag * wide + start), x + 4 * slot * value
                if here > 1:
                    filter_many(taps, 4 * wide, inputs, -4 * value, y, run)
                else:
                    filter_lanes(taps, 4 * wide, inputs, -4 * value, y, run)
                lag += run
                step = parents[step] if apart else -1
                slot = lengths[b] + step - firsts[b] if step >= 0 else lengths[b] - 1 if apart else -1
            put(y, row(job, op, 4, node) + 4 * start, min(here * LANES, rest))
        start += here * LANES


@fast
def dot(x, y, count):
    """The sum of products of `count` numbers at either address."""
    a, b, total = floats(x, count), floats(y, count), ZERO
    for j in range(count):
        total += a[j] * b[j]
    return total


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
    scale, state offset. Cache: v, k and the code of k. State: of what has left the window, by code, the sums of values
    (codes, value) and their number. Each thread has columns of the values; the weights are found by all."""
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
        old, new = before(job, offset, size, node, True), after(job, offset, size, node, True)
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
            put(k, here + to_key, key)
            floats(here + to_code, 1)[0] = nearest
            counts[:] = floats(old + 4 * wide * room, codes)
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


@njit  # not `fast`: both widths of its lanes must round alike
def matrix(job, op, me, team):
    """q(3), k(3), v(3), decay(3), write(3), into(3), heads, groups, key, value, steps, decay per feature?, delta?,
    scale, state offset.
    State: (heads, value / LANES, key, LANES), so that a thread's columns of values lie together."""
    heads, groups, key, value, steps, featured, delta, offset = (
        op[19], op[20], op[21], op[22], op[23], op[24], op[25], op[27])
    scale = f32(real(op[26]))
    chunks = (value + LANES - 1) // LANES
    size = heads * chunks * key * LANES
    local = job[LOCAL] + me * job[LOCAL_BYTES]
    none = local + 4 * MANY * LANES
    floats(none, 1)[0] = ONE
    rows = longs(job[ROW], job[NODES])
    item, last = heads * chunks * me // team, heads * chunks * (me + 1) // team
    while item < last:
        head, chunk = item // chunks, item % chunks
        here = MANY if min(chunks - chunk, last - item) >= MANY else 1
        wide = min(here * LANES, value - chunk * LANES)
        place, column = 4 * item * key * LANES, head * groups // heads * key
        for node in range(job[NODES]):
            if rows[node] < 0:  # not among those to repeat
                continue
            old, new = before(job, offset, size, node, True) + place, after(job, offset, size, node, True) + place
            q, k = row(job, op, 1, node) + 4 * column, row(job, op, 4, node) + 4 * column
            v, write = row(job, op, 7, node) + 4 * (head * value + chunk * LANES), row(job, op, 13, node) + 4 * head
            decay, hop = row(job, op, 10, node) + 4 * head * (key if featured else 1), 4 * featured
            for _ in range(steps):
                if delta and here == 1:
                    delta_lanes(q, k, decay, hop, v, write, old, new, local, key)
                elif delta:
                    delta_many(q, k, decay, hop, v, write, old, new, local, key)
                elif here > 1:
                    matrix_many(q, k, decay, hop, v, write, old, new, local, key)
                else:
                    matrix_lanes(q, k, decay, hop, v, write, old, new, local, key)
                k, v, write = k + 4 * groups * key, v + 4 * heads * value, write + 4 * heads
                old, decay, hop = new, none, 0
            y, out = floats(row(job, op, 16, node) + 4 * (head * value + chunk * LANES), wide), floats(local, wide)
            for j in range(wide):
                y[j] = out[j] * scale
        item += here


@fast
def prefixed(job, op, me, team):
    """q(3), k(3), v(3), keys(3), values(3), into(3), heads, key, value, prefix, state offset, that of the normaliser.
    States: as of `matrix` and `normalise`."""
    heads, key, value, offset, sums = op[19], op[20], op[21], op[23], op[24]
    chunks = (value + LANES - 1) // LANES
    size, short = heads * chunks * key * LANES, (heads * key + LANES - 1) // LANES * LANES
    local = job[LOCAL] + me * job[LOCAL_BYTES]
    one = local + 4 * MANY * LANES
    floats(one, 1)[0] = ONE
    factors = floats(one + 4 * LANES, job[NODES])
    rows, positions = longs(job[ROW], job[NODES]), longs(job[POSITION], job[NODES])
    for head in range(heads * me // team, heads * (me + 1) // team):
        column, at = 4 * head * key, 4 * head * value
        for node in range(job[NODES]):
            b = rows[node]
            if b < 0:  # not among those to repeat
                continue
            begin, stop = ahead(job, node, b)
            end = prompt_end(job, op[22], b)
            q, own = row(job, op, 1, node) + column, floats(row(job, op, 4, node) + column, key)
            old, new = before(job, sums, short, node, True) + column, after(job, sums, short, node, True) + column
            put(old, new, key)
            norm = floats(new, key)
            for other in range(begin, stop):
                if positions[other] < end:
                    theirs = floats(row(job, op, 10, other) + column, key)
                    for j in range(key):
                        norm[j] += theirs[j]
            for j in range(key):
                norm[j] += own[j]
            factors[node] = ONE / max(dot(q, new, key), TINY)
        chunk = 0
        while chunk < chunks:
            here = MANY if chunks - chunk >= MANY else 1
            place, part_at = 4 * (head * chunks + chunk) * key * LANES, at + 4 * chunk * LANES
            for node in range(job[NODES]):
                b = rows[node]
                if b < 0:
                    continue
                begin, stop = ahead(job, node, b)
                end = prompt_end(job, op[22], b)
                q, k, v = row(job, op, 1, node) + column, row(job, op, 4, node) + column, row(job, op, 7, node)
                old = before(job, offset, size, node, True) + place
                new = after(job, offset, size, node, True) + place
                for other in range(begin, stop + 1):  # at last itself
                    if other < stop:
                        if positions[other] >= end:
                            continue
                        keys, values = row(job, op, 10, other) + column, row(job, op, 13, other)
                    else:
                        keys, values = k, v
                    if here > 1:
                        matrix_many(q, keys, one, 0, values + part_at, one, old, new, local, key)
                    else:
                        matrix_lanes(q, keys, one, 0, values + part_at, one, old, new, local, key)
                    old = new
                wide = min(here * LANES, value - chunk * LANES)
                y, out = floats(row(job, op, 16, node) + part_at, wide), floats(local, wide)
                for j in range(wide):
                    y[j] = out[j] * factors[node]
            chunk += here


@njit
def ahead(job, node, b):
    """From where to where the nodes lie whose keys and values a node of row b reads ahead."""
    if not job[CHAIN]:
        return node, node + 1
    first = longs(job[FIRST], job[BATCH] + 1)[b]  # the first node of a row brings the prompt of all
    return first, longs(job[FIRST], job[BATCH] + 1)[b + 1] if node == first else first


@fast
def softmax(scores, count):
    """In place."""
    s, top, total = floats(scores, count), LOWEST, ZERO
    for j in range(count):
        top = max(top, s[j])
    for j in range(count):
        s[j] = exp(s[j] - top)
        total += s[j]
    for j in range(count):
        s[j] /= total


@fast
def look(q, keys, values, stride, count, width, into, scores):
    """Attention of one query to `count` keys and values, `stride` bytes apart."""
    s, y, scale = floats(scores, count), floats(into, width), f32(1 / math.sqrt(width))
    for i in range(count):
        s[i] = dot(q, keys + i * stride, width) * scale
    softmax(scores, count)
    y[:] = ZERO
    for i in range(count):
        v = floats(values + i * stride, width)
        for j in range(width):
            y[j] += s[i] * v[j]


@fast
def named(job, op, memory, i, into):
    """The layer norm of vector i of the memory plus its name, filled up with zeros."""
    width = op[22]
    wide = (width + TILE - 1) // TILE * TILE
    x, name, y = floats(memory + 4 * i * wide, width), floats(op[23] + 4 * i * width, width), floats(into, wide)
    mean, square = ZERO, ZERO
    y[:] = ZERO
    for j in range(width):
        y[j] = x[j] + name[j]
        mean += y[j]
    mean /= f32(width)
    for j in range(width):
        square += (y[j] - mean) * (y[j] - mean)
    scale = ONE / f32(math.sqrt(square / f32(width) + f32(real(op[26]))))
    weight, bias = floats(op[24], width), floats(op[25], width)
    for j in range(width):
        y[j] = (y[j] - mean) * scale * weight[j] + bias[j]


@njit
def product(job, source, width, stride, rows, words, into, out, weights, scales, bias, k, tiles, me, team):
    """A matrix product of a few rows that all threads share, and of which all threads have made a part; `words` is room
    for them as bytes."""
    barrier(job, team)
    if INTEGER and scales:
        for i in range(me, rows, team):
            quantise(source + i * stride, width, words + 4 * i * (k + 2), k)
        source, stride = words, 4 * (k + 2)
        barrier(job, team)
    multiply(job, source, stride, rows, into, out, weights, scales, bias, k, tiles, 0, NONE, 0, me, team)
    barrier(job, team)


@fast
def recall(job, op, me, team):
    """queries(3), into(3), sizes(6), asks, scales, tells, scales, update, scales, bias, vectors, block, width, names,
    norm's weight, bias, epsilon, gate, first keys and values, state offset, steps of either product.

    Level by level. State: the memory (vectors, width), and its keys beside its values (vectors, 2 width).
    """
    heads, narrow, key, value = op[7], op[9], op[10], op[11]
    vectors, block, width, offset = op[20], op[21], op[22], op[29]
    wide, both = (width + TILE - 1) // TILE * TILE, (2 * width + TILE - 1) // TILE * TILE
    size = vectors * (wide + both)
    normed = job[LOCAL]  # all threads share the memory of the first
    asked = normed + 4 * vectors * wide
    found = asked + 4 * vectors * both
    moved = found + 4 * vectors * both
    words = moved + 4 * vectors * wide
    scores = words + me * job[LOCAL_BYTES] + 4 * vectors * (op[31] + 2)
    slots = scores + 4 * ((max(block, vectors) + TILE - 1) // TILE * TILE)
    order, levels = longs(job[ORDER], job[NODES]), longs(job[LEVEL], job[LEVELS] + 1)
    positions, parents = longs(job[POSITION], job[NODES]), longs(job[PARENT], job[NODES])
    for level in range(job[LEVELS]):
        first, nodes = levels[level], levels[level + 1] - levels[level]
        for item in range(me, nodes * heads, team):
            node, head = order[first + item // heads], 4 * (item % heads) * narrow
            memory = op[28] if positions[node] < block else before(job, offset, size, node) + 4 * vectors * wide
            look(row(job, op, 1, node) + head, memory + head, memory + 4 * width + head, 4 * both, vectors, narrow,
                 row(job, op, 4, node) + head, scores)
        for index in range(me, nodes, team):
            node = order[first + index]
            put(before(job, offset, size, node), after(job, offset, size, node), size)
        barrier(job, team)
        for index in range(nodes):
            node = order[first + index]
            if (positions[node] + 1) % block:
                continue
            memory = after(job, offset, size, node)
            pairs = memory + 4 * vectors * wide
            looks = op[28] if positions[node] < block else pairs
            for i in range(me, vectors, team):
                named(job, op, memory, i, normed + 4 * i * wide)
            product(job, normed, width, 4 * wide, vectors, words, asked, 4 * both, op[13], op[14], 0, op[30],
                    both // TILE, me, team)
            b = longs(job[ROW], job[NODES])[node]
            left, step = longs(job[LENGTH], job[BATCH])[b], node
            base = left - longs(job[FIRST], job[BATCH])[b]
            path = longs(slots, block)
            for i in range(block):  # the nodes of the block
                if step >= 0:
                    path[i], step = base + step, parents[step]
                else:
                    left -= 1
                    path[i] = left
            for item in range(me, vectors * heads, team):
                i, head = item // heads, 4 * (item % heads) * narrow
                ask, answer = asked + 4 * i * both + head, found + 4 * i * both + head
                look(ask, looks + head, looks + 4 * width + head, 4 * both, vectors, narrow, answer, scores)
                keys, values = keys_at(job, op, 7, b, item % heads)
                q, y, s = floats(ask + 4 * width, narrow), floats(answer + 4 * width, narrow), floats(scores, block)
                scale = f32(1 / math.sqrt(narrow))
                for n in range(block):
                    panel = floats(keys + 4 * (path[n] // TILE * key * TILE + path[n] % TILE), key * TILE)
                    total = ZERO
                    for j in range(narrow):
                        total += q[j] * panel[j * TILE]
                    s[n] = total * scale
                softmax(scores, block)
                y[:] = ZERO
                for n in range(block):
                    v = floats(values + 4 * path[n] * value, narrow)
                    for j in range(narrow):
                        y[j] += s[n] * v[j]
                if item % heads == 0:
                    rest = floats(found + 4 * (i * both + 2 * width), both - 2 * width)
                    rest[:] = ZERO
            product(job, found, 2 * width, 4 * both, vectors, words, moved, 4 * wide, op[17], op[18], op[19], op[31],
                    wide // TILE, me, team)
            gate = floats(op[27], width)
            for i in range(me, vectors, team):
                x, y = floats(moved + 4 * i * wide, width), floats(memory + 4 * i * wide, width)
                for j in range(width):
                    y[j] = x[j] + gate[j] * (y[j] - x[j])
                named(job, op, memory, i, normed + 4 * i * wide)
            product(job, normed, width, 4 * wide, vectors, words, pairs, 4 * both, op[15], op[16], 0, op[30],
                    both // TILE, me, team)
        barrier(job, team)


@fast
def stabilise(job, op, me, team):
    """forget(3), write(3), floor(3), heads, state offset. State: the running maximum."""
    offset = op[11]
    size = (op[10] + LANES - 1) // LANES * LANES
    begin, count = part(op[10], me, team)
    for node in range(job[NODES]):
        f, i = floats(row(job, op, 1, node) + 4 * begin, count), floats(row(job, op, 4, node) + 4 * begin, count)
        least = floats(row(job, op, 7, node) + 4 * begin, count)
        old = floats(before(job, offset, size, node) + 4 * begin, count)
        new = floats(after(job, offset, size, node) + 4 * begin, count)
        for j in range(count):
            kept = f[j] + old[j]
            top = max(kept, i[j])
            f[j], i[j], least[j], new[j] = exp(kept - top), exp(i[j] - top), exp(-top), top


@fast
def normalise(job, op, me, team):
    """q(3), k(3), decay(3), write(3), into(3), floor(3), heads, groups, key, value, decay per feature?, scale, epsilon,
    state offset. State: (heads, key)."""
    heads, groups, key, value, featured, offset = op[19], op[20], op[21], op[22], op[23], op[26]
    scale, epsilon = f32(real(op[24])), f32(real(op[25]))
    size = (heads * key + LANES - 1) // LANES * LANES
    for head in range(heads * me // team, heads * (me + 1) // team):
        column = 4 * (head * groups // heads) * key
        for node in range(job[NODES]):
            q, k = row(job, op, 1, node) + column, floats(row(job, op, 4, node) + column, key)
            decay = floats(row(job, op, 7, node) + 4 * head * (key if featured else 1), key if featured else 1)
            write = floats(row(job, op, 10, node), heads)[head]
            old = floats(before(job, offset, size, node) + 4 * head * key, key)
            sums = after(job, offset, size, node) + 4 * head * key
            new = floats(sums, key)
            for j in range(key):
                new[j] = decay[j if featured else 0] * old[j] + write * k[j]
            total = dot(q, sums, key)  # apart, since a loop is not vectorised where old and new are the same memory
            y = floats(row(job, op, 13, node) + 4 * head * value, value)
            factor = ONE / (max(abs(total * scale), floats(row(job, op, 16, node), heads)[head]) + epsilon)
            for j in range(value):
                y[j] *= factor


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
    for level in range(job[LEVELS]):
        first, nodes = levels[level], levels[level + 1] - levels[level]
        for index in range(me, nodes, team):
            floats(row(job, op, 7, index), wide)[:] = floats(before(job, offset, size, order[first + index]), wide)
            if INTEGER and scales:
                for head in range(heads):
                    quantise(row(job, op, 7, index) + 4 * head * narrow, narrow,
                             row(job, op, 24, index) + 4 * head * (k + 2), k)
        barrier(job, team)
        for head in range(heads):
            at, source, stride = head * block, row(job, op, 7, 0) + 4 * head * narrow, 4 * op[9]
            if INTEGER and scales:
                source, stride = row(job, op, 24, 0) + 4 * head * (k + 2), 4 * op[26]
            multiply(job, source, stride, nodes, row(job, op, 10, 0) + 4 * at, 4 * op[12],
                     weights + at * k * (GROUP if scales else 4), scales + 4 * at if scales else 0,
                     bias + 4 * at if bias else 0, k, tiles, 0, NONE, 0, me, team)
        barrier(job, team)
        for item in range(nodes * heads):
            index, head = item // heads, item % heads
            node, place = order[first + index], 4 * (head * narrow + begin)
            x, s = row(job, op, 1, node) + place, row(job, op, 10, index) + 4 * (head * block + begin)
            old, new = before(job, offset, size, node) + place, after(job, offset, size, node) + place
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
                floats(new + 4 * wide, count)[:] = sa
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
                floats(new + 4 * wide, count)[:] = sa
            else:  # input, forget, cell, output; memories c, n and the maximum m
                high = op[23]
                past, norm = floats(old + 4 * wide, count), floats(old + 8 * wide, count)
                top = floats(before(job, high, wide, node) + place, count)
                for j in range(count):
                    kept, i = top[j] - softplus(-(xb[j] + sb[j])), xa[j] + sa[j]
                    m = max(kept, i)
                    f, i = exp(kept - m), exp(i - m)
                    sa[j] = f * past[j] + i * tanh(xc[j] + sc[j])
                    sb[j] = max(f * norm[j] + i, floor)
                    sc[j] = m
                    y[j] = sigmoid(xd[j] + sd[j]) * sa[j] / sb[j]
                floats(new + 4 * wide, count)[:] = sa
                floats(new + 8 * wide, count)[:] = sb
                floats(after(job, high, wide, node) + place, count)[:] = sc
            floats(new, count)[:] = y
        barrier(job, team)


@fast
def map(job, op, me, team):
    """source(3), into(3), width, scale or 0, shift or 0, activation, limit."""
    begin, count = part(op[7], me, team)
    limit = f32(real(op[11]))
    for node in range(job[NODES]):
        x, y = floats(row(job, op, 1, node) + 4 * begin, count), floats(row(job, op, 4, node) + 4 * begin, count)
        if op[8]:
            scale = floats(op[8] + 4 * begin, count)
            for j in range(count):
                y[j] = x[j] * scale[j]
        else:
            y[:] = x
        if op[9]:
            shift = floats(op[9] + 4 * begin, count)
            for j in range(count):
                y[j] += shift[j]
        if limit < LARGEST:
            for j in range(count):
                y[j] = min(max(y[j], -limit), limit)
        activate(row(job, op, 4, node) + 4 * begin, count, op[10])


@fast
def scale(job, op, me, team):
    """MULTIPLY. values(3), by(3), width of by, values to each of its numbers, activation of by."""
    width, each = op[7], op[8]
    begin, count = part(width, me, team)
    local = job[LOCAL] + me * job[LOCAL_BYTES]
    for node in range(job[NODES]):
        values, by = row(job, op, 1, node), row(job, op, 4, node)
        for start in range(begin, begin + count, FEW):
            some = min(FEW, begin + count - start)
            factors, y = floats(by + 4 * start, some), floats(values + 4 * start * each, some * each)
            if op[9] != NONE:
                put(by + 4 * start, local, some)
                activate(local, some, op[9])
                factors = floats(local, some)
            if each == 1:
                for j in range(some):
                    y[j] *= factors[j]
            else:
                for i in range(some):
                    for j in range(each):
                        y[i * each + j] *= factors[i]


@fast
def plus(job, op, me, team):
    """ADD. source(3), into(3), width, weight or 0."""
    begin, count = part(op[7], me, team)
    for node in range(job[NODES]):
        x, y = floats(row(job, op, 1, node) + 4 * begin, count), floats(row(job, op, 4, node) + 4 * begin, count)
        if op[8]:
            w = floats(op[8] + 4 * begin, count)
            for j in range(count):
                y[j] += w[j] * x[j]
        else:
            for j in range(count):
                y[j] += x[j]


@fast
def polynomial(job, op, me, team):
    """source(3), into(3), width, groups, weight, size."""
    width, groups, size = op[7], op[8], op[10]
    for item in range(me, job[NODES] * groups, team):
        node, group = item // groups, item % groups
        x, w = floats(row(job, op, 1, node) + 4 * group * width, width), floats(op[9], size)
        into = row(job, op, 4, node) + 4 * group * size
        y = floats(into, size)
        y[0] = ONE
        y[1 : 1 + width] = x
        at = 1 + width
        for i in range(width):
            for j in range(width - i):
                y[at + j] = x[i] * x[i + j]
            at += width - i
        for j in range(size):
            y[j] *= w[j]


@fast
def exponential(job, op, me, team):
    """source(3), into(3), width, groups, directions, size."""
    width, groups, size = op[7], op[8], op[10]
    scale, share = f32(width**-0.25), f32(math.log(size) / 2)
    for item in range(me, job[NODES] * groups, team):
        node, group = item // groups, item % groups
        x, y = row(job, op, 1, node) + 4 * group * width, floats(row(job, op, 4, node) + 4 * group * size, size)
        less = HALF * dot(x, x, width) * scale * scale + share
        for j in range(size):
            y[j] = dot(x, op[9] + 4 * j * width, width) * scale - less
        activate(row(job, op, 4, node) + 4 * group * size, size, EXP)


@fast
def tell(job, op, me, team):
    """source(3), into(3), width, table, prefix."""
    width = op[7]
    for node in range(me, job[NODES], team):
        end = prompt_end(job, op[9], longs(job[ROW], job[NODES])[node])
        inside = 1 if longs(job[POSITION], job[NODES])[node] < end else 0
        x, kind = floats(row(job, op, 1, node), width), floats(op[8] + 4 * width * inside, width)
        y = floats(row(job, op, 4, node), width)
        for j in range(width):
            y[j] = x[j] + kind[j]


@fast
def spread(job, op, me, team):
    """TURN. source(3), into(3), angles(3), width, groups."""
    width, groups = op[10], op[11]
    for item in range(me, job[NODES] * groups, team):
        node, group = item // groups, item % groups
        angle = floats(row(job, op, 7, node), 2 * width)
        x, y = floats(row(job, op, 1, node) + 4 * group * width, width), floats(
            row(job, op, 4, node) + 8 * group * width, 2 * width)
        for j in range(width):
            y[j], y[width + j] = x[j] * angle[j], x[j] * angle[width + j]


@njit
def gather(job, op, me, team):
    """source(3), into(3), width: the rows of the wanted nodes, together."""
    width = op[7]
    want = longs(job[WANT], job[WANTED])
    for index in range(me, job[WANTED], team):
        floats(row(job, op, 4, index), width)[:] = floats(row(job, op, 1, want[index]), width)


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
                floats(values + 4 * new * value, value)[:] = floats(values + 4 * old * value, value)


@njit
def pick(job, op, me, team):
    """state offset, size. The committed state of each row becomes that of one node (-1: stays)."""
    offset, size = op[1], op[2]
    path = longs(job[PATH], job[BATCH])
    for b in range(me, job[BATCH], team):
        if path[b] >= 0:
            target = floats(job[BEFORE] + 4 * (offset * job[BATCH] + b * size), size)
            target[:] = floats(job[AFTER] + 4 * (offset * job[SLOTS] + path[b] * size), size)
