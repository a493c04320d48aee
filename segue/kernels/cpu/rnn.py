"""Head-wise nonlinear recurrences on the CPU, forward and backward, in float32 and float64: one call runs all steps.

A task is one head of a few rows (a batch tile). Its states, its part of the recurrent weights and its gradient stay in
the nearest caches; the products of a step run in a register tile, whose size `segue.kernels.tiles` gives; the gradient
of the weights is gathered over a span of steps, so that it, too, is a product that fills the registers. Numbers of a
step lie gate by gate, then row by row; what happens to them between the products is in `segue.kernels.cpu.cells`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import overload

from segue.kernels.cpu import cells, simd
from segue.kernels.cpu.cache import compiled
from segue.kernels.cpu.scan import FAST
from segue.kernels.rnn import CELLS, EMPTY

GRU = CELLS["gru"].code
ROWS, MOST_PANELS = (8, 4, 2, 1), 3  # each combination is code of its own: what there is no code for, runs in parts
OPTIONS: dict[str, Any] = {"fastmath": FAST, "error_model": "numpy"}
"""A test for division by zero would keep loops from vectorising."""
fast = njit(**OPTIONS)


def kernel(function: Callable[..., Any]) -> Any:
    return compiled(function, **OPTIONS)


def _tile(builder: Any, kind: Any, lanes: int, rows: int, panels: int, args: list[Any]) -> None:
    """y[r, c] = first[c] + sum over o < outer, i < k of x[r, o, i] * w[o k + i, c] (+ source[r, c]), for `rows` rows
    and `panels` vectors of columns c, in registers.

    args: addresses first (of a vector of columns), w, x, source (0: none), y; bytes from one line of w to the next
    (w_step); bytes from one row of x to the next (x_row), from one i (x_step), and what is added after k of them
    (x_jump); k, outer; bytes from one row to the next in source (source_row) and in y (y_row).
    """
    first, w, x, source, y, w_step, x_row, x_step, x_jump, k, outer, source_row, y_row = args
    b, size = builder, 4 if kind == simd.F32 else 8
    vector = ir.VectorType(kind, lanes)
    undefined, zeros = ir.Constant(vector, ir.Undefined), ir.Constant(ir.VectorType(simd.I32, lanes), [0] * lanes)

    def load(address: Any, p: int) -> Any:
        return b.load(b.inttoptr(b.add(address, simd.I64(p * lanes * size)), vector.as_pointer()), align=size)

    def spread(address: Any) -> Any:
        value = b.load(b.inttoptr(address, kind.as_pointer()), align=size)
        return b.shuffle_vector(b.insert_element(undefined, value, simd.I32(0)), undefined, zeros)

    name = f"llvm.fmuladd.v{lanes}f{8 * size}"
    begin = [load(first, p) for p in range(panels)]
    lines = [b.add(x, b.mul(x_row, simd.I64(r))) for r in range(rows)]
    entry, loop, done = b.block, b.append_basic_block("loop"), b.append_basic_block("done")
    b.branch(loop)
    b.position_at_end(loop)
    i, left, at_w, at_x = (b.phi(simd.I64) for _ in range(4))
    sums = [[b.phi(vector) for _ in range(panels)] for _ in range(rows)]
    weights = [load(at_w, p) for p in range(panels)]
    after = []
    for r in range(rows):
        value = spread(b.add(lines[r], at_x))
        after.append([simd._call(b, name, vector, weights[p], value, sums[r][p]) for p in range(panels)])
    following = b.add(i, simd.I64(1))
    turns = b.icmp_signed("==", following, k)
    onward = b.add(at_x, b.select(turns, b.add(x_step, x_jump), x_step))
    remaining = b.select(turns, b.sub(left, simd.I64(1)), left)
    for phi, start, end in ((i, simd.I64(0), b.select(turns, simd.I64(0), following)), (left, outer, remaining),
                            (at_w, w, b.add(at_w, w_step)), (at_x, simd.I64(0), onward)):
        phi.add_incoming(start, entry)
        phi.add_incoming(end, loop)
    for r in range(rows):
        for p in range(panels):
            sums[r][p].add_incoming(begin[p], entry)
            sums[r][p].add_incoming(after[r][p], loop)
    b.cbranch(b.icmp_signed(">", remaining, simd.I64(0)), loop, done)
    b.position_at_end(done)

    def put(r: int, p: int, value: Any) -> None:
        address = b.add(b.add(y, b.mul(y_row, simd.I64(r))), simd.I64(p * lanes * size))
        b.store(value, b.inttoptr(address, vector.as_pointer()), align=size)

    with b.if_else(b.icmp_signed("==", source, simd.I64(0))) as (plain, added):
        with plain:
            for r in range(rows):
                for p in range(panels):
                    put(r, p, after[r][p])
        with added:
            for r in range(rows):
                line = b.add(source, b.mul(source_row, simd.I64(r)))
                for p in range(panels):
                    put(r, p, b.fadd(after[r][p], load(line, p)))


def _make_tile(kind: Any, lanes: int) -> Any:
    """tile(rows, panels, ...) for the powers of two in ROWS and up to MOST_PANELS; the rest as of `_tile`."""

    def build(builder: Any, args: list[Any]) -> None:
        end = builder.append_basic_block("end")
        which = builder.add(builder.mul(args[1], simd.I64(ROWS[0] + 1)), args[0])
        switch = builder.switch(which, end)
        for panels in range(1, MOST_PANELS + 1):
            for rows in ROWS:
                case = builder.append_basic_block(f"tile{rows}x{panels}")
                switch.add_case(simd.I64(panels * (ROWS[0] + 1) + rows), case)
                builder.position_at_end(case)
                _tile(builder, kind, lanes, rows, panels, args[2:])
                builder.branch(end)
        builder.position_at_end(end)

    choose = simd._define("choose", types.void(*[types.int64] * 15), build)

    @njit
    def tile(rows, panels, first, w, x, source, y, w_step, x_row, x_step, x_jump, k, outer, source_row, y_row):
        choose(rows, panels, first, w, x, source, y, w_step, x_row, x_step, x_jump, k, outer, source_row, y_row)

    return tile


_tile32, _tile64 = _make_tile(simd.F32, simd.LANES), _make_tile(ir.DoubleType(), simd.LANES // 2)


def _at(array):
    raise NotImplementedError


@overload(_at, inline="always")
def _typed_at(array):
    """The address of an array."""
    return lambda array: np.int64(array.ctypes.data)


def _run(like, rows, panels, first, w, x, source, y, w_step, x_row, x_step, x_jump, k, outer, source_row, y_row):
    raise NotImplementedError


@overload(_run)
def _typed_run(like, rows, panels, first, w, x, source, y, w_step, x_row, x_step, x_jump, k, outer, source_row, y_row):
    """`tile` for any number of rows, and for numbers as in `like`; steps and rows in numbers instead of bytes."""
    tile, size, most = (_tile32, 4, ROWS[0]) if like.dtype == types.float32 else (_tile64, 8, ROWS[0])

    def run(like, rows, panels, first, w, x, source, y, w_step, x_row, x_step, x_jump, k, outer, source_row, y_row):
        part = most
        while rows > 0:
            while part > rows:
                part >>= 1
            tile(part, panels, first, w, x, source, y, w_step * size, x_row * size, x_step * size, x_jump * size, k,
                 outer, source_row * size, y_row * size)
            rows -= part
            x, y = x + part * x_row * size, y + part * y_row * size
            if source != 0:
                source += part * source_row * size

    return run


@fast
def _add(x, y):
    for j in range(len(y)):
        x[j] += y[j]


@fast
def _copy(source, target):
    for j in range(len(target)):
        target[j] = source[j]


@kernel
def forward(begin, end, cell, rows, panels, wide, x, w, bias, starts, lengths, state, y, kept, final):
    """All steps of the tasks begin..end, of which each is a head of up to `rows` rows.

    wide: W, which is D filled up to whole vectors. x: (B, T, N, G, D), the gates' inputs. w: (N, G W / tile, D, tile),
    packed. bias: (N, G W). starts: (B, T) bool or (B, 0). lengths: (B,). state, final: (S, B, N, D). y: (B, T, N, D).
    kept: (tasks, T, parts, rows W), what the backward pass needs of each step: gates, then the states h, c, n as far as
    the cell has them; or (tasks, 0, parts, rows W), if there will be no backward pass.
    """
    batch, length, heads, gates, d = x.shape
    states, tile, across, size = state.shape[0], w.shape[3], rows * wide, x.itemsize
    row_step, step = length * heads * d * size, heads * d * size  # bytes to the next row and step of y
    direct = wide == d  # else through buffers of whole vectors
    source, out = np.zeros((gates, across), x.dtype), np.zeros(across, x.dtype)
    g, now = np.zeros((gates, across), x.dtype), np.zeros((4, across), x.dtype)  # R h + b; h, c, n, m
    for task in range(begin, end):
        n, row = task % heads, task // heads * rows
        count = min(rows, batch - row)
        for s in range(states):
            for r in range(count):
                _copy(state[s, row + r, n], now[s, r * wide : r * wide + d])
                if lengths[row + r] == 0:
                    _copy(state[s, row + r, n], final[s, row + r, n])
        for t in range(length):
            if starts.shape[1]:
                for r in range(count):
                    if starts[row + r, t]:
                        now[:3, r * wide : r * wide + wide] = 0
                        now[3, r * wide : r * wide + wide] = EMPTY
            k, j = 0, 0
            for p in range(w.shape[1]):
                _run(x, count, panels, _at(bias[n]) + (k * wide + j) * size, _at(w[n, p]), _at(now), 0,
                     _at(g) + (k * across + j) * size, tile, wide, 1, 0, d, 1, 0, wide)
                j += tile
                if j == wide:
                    k, j = k + 1, 0
            keep = _at(kept[task, t]) if kept.shape[1] else 0
            if direct:
                cells.forward(cell, size, count, wide, across * size, _at(g), _at(x[row, t, n]), gates * row_step,
                              d * size, gates * step, _at(now), keep, _at(y[row, t, n]), row_step, step)
            else:
                for r in range(count):
                    for k in range(gates):
                        _copy(x[row + r, t, n, k], source[k, r * wide : r * wide + d])
                cells.forward(cell, size, count, wide, across * size, _at(g), _at(source), wide * size, across * size,
                              0, _at(now), keep, _at(out), wide * size, 0)
                for r in range(count):
                    _copy(out[r * wide : r * wide + d], y[row + r, t, n])
            for r in range(count):
                if lengths[row + r] == t + 1:
                    for s in range(states):
                        _copy(now[s, r * wide : r * wide + d], final[s, row + r, n])


@kernel
def backward(begin, end, cell, rows, panels, wide, span, w, starts, lengths, state, kept, dy, dfinal, dx, dweight,
             dbias, dstate):
    """The gradients of `forward`. w: (N, W / tile, G D, tile), packed the other way round. dx: as x. dweight: (tiles,
    N, G, D, W), added to, and dbias: (tiles, N, G, D), per batch tile. dstate: as state."""
    batch, length, heads, gates, d = dx.shape
    states, parts, tile, across, size = state.shape[0], kept.shape[2], w.shape[3], rows * wide, dx.itemsize
    row_step, step = length * heads * d * size, heads * d * size
    inner = min(states, 3)  # states that a step needs of the one before
    direct = wide == d
    into, out = np.zeros(across, dx.dtype), np.zeros((gates, across), dx.dtype)
    dg, total = np.zeros((span, gates, across), dx.dtype), np.zeros((gates, across), dx.dtype)
    hs = np.zeros(span * across, dx.dtype)  # the states before, row by row
    nothing = np.zeros(max(wide, tile), dx.dtype)
    back, now = np.zeros((4, across), dx.dtype), np.zeros((3, across), dx.dtype)  # gradients of h, c, n, m
    for task in range(begin, end):
        n, block = task % heads, task // heads
        row = block * rows
        count = min(rows, batch - row)
        back[:], total[:] = 0, 0
        slot = 0
        for t in range(length - 1, -1, -1):
            fresh = t == 0
            for r in range(count):
                if starts.shape[1]:
                    fresh |= starts[row + r, t]
                if lengths[row + r] == t + 1:
                    for s in range(states):
                        _add(back[s, r * wide :], dfinal[s, row + r, n])
            last = _at(now)
            if not fresh:
                last = _at(kept[task, t - 1, parts - inner])
            for s in range(inner if fresh else 0):  # what was before, where a document starts nothing
                for r in range(count):
                    line = slice(r * wide, r * wide + d)
                    if starts.shape[1] and starts[row + r, t]:
                        now[s, line] = 0
                    elif t == 0:
                        _copy(state[s, row + r, n], now[s, line])
                    else:
                        _copy(kept[task, t - 1, parts - inner + s, line], now[s, line])
            to, before = _at(dg[slot]), _at(hs) + slot * count * wide * size
            if direct:
                cells.backward(cell, size, count, wide, across * size, _at(kept[task, t]), last, _at(dy[row, t, n]),
                               row_step, -step, _at(back), to, _at(dx[row, t, n]), gates * row_step, d * size,
                               -gates * step, _at(total), before)
            else:
                for r in range(count):
                    _copy(dy[row + r, t, n], into[r * wide : r * wide + d])
                cells.backward(cell, size, count, wide, across * size, _at(kept[task, t]), last, _at(into), wide * size,
                               0, _at(back), to, _at(out), wide * size, across * size, 0, _at(total), before)
                for r in range(count):
                    for k in range(gates):
                        _copy(out[k, r * wide : r * wide + d], dx[row + r, t, n, k])
            for p in range(w.shape[1]):
                target = _at(back) + p * tile * size
                _run(dx, count, panels, _at(nothing), _at(w[n, p]), to, target if cell == GRU else 0, target, tile,
                     wide, 1, across - d, d, gates, wide, wide)
            if starts.shape[1]:
                for r in range(count):
                    if starts[row + r, t]:
                        back[:, r * wide : r * wide + wide] = 0
            slot += 1
            if t == 0 or slot == span:
                left, right = _at(dg), _at(hs)
                for k in range(gates):
                    for i in range(0, d, rows):
                        target = _at(dweight[block, n, k, i])
                        for j in range(0, wide * size, tile * size):
                            _run(dx, min(rows, d - i), panels, _at(nothing), right + j,
                                 left + (k * across + i) * size, target + j, target + j, wide, 1, wide,
                                 (gates * rows - count) * wide, count, slot, wide, wide)
                slot = 0
        for r in range(count):
            line = slice(r * wide, r * wide + d)
            for k in range(gates):
                _add(dbias[block, n, k], total[k, line])
            for s in range(states):
                _copy(back[s, line], dstate[s, row + r, n])
                if lengths[row + r] == 0:
                    _add(dstate[s, row + r, n], dfinal[s, row + r, n])
