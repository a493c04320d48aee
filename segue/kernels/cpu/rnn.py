"""Head-wise nonlinear recurrences on the CPU, forward and backward, in float32 and float64: one call runs all steps.

A task is one head of a few rows (a batch tile). Its states, its part of the recurrent weights and its gradient stay in
the nearest caches; the products of a step run in a register tile, whose size `segue.kernels.tiles` gives; the gradient
of the weights is gathered over a span of steps, so that it, too, is a product that fills the registers. Numbers of a
step lie gate by gate, then row by row, so that one loop over whole vectors serves all rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import overload

from segue.kernels.cpu import simd
from segue.kernels.cpu.cache import compiled
from segue.kernels.cpu.scan import FAST, _exp

ELMAN, LSTM, GRU, SLSTM = range(4)
EMPTY = -1e30  # the stabiliser of an sLSTM cell that holds nothing yet
ROWS, MOST_PANELS = (8, 4, 2, 1), 3  # each combination is code of its own: what there is no code for, runs in parts
OPTIONS: dict[str, Any] = {"fastmath": FAST, "error_model": "numpy"}
"""A test for division by zero would keep loops from vectorising."""
fast = njit(**OPTIONS)


def kernel(function: Callable[..., Any]) -> Any:
    return compiled(function, **OPTIONS)


def _log1p(x: Any) -> Any:
    return math.log1p(x)


@overload(_log1p, inline="always")
def _typed_log1p(x):
    """log(1 + x) for 0 <= x <= 1."""
    if x != types.float32:
        return lambda x: math.log1p(x)

    def series(x):  # 2 atanh(s), s = x / (2 + x) at most 1/3: to half a unit in the last place after eight terms
        one = np.float32(1)
        s = x / (x + np.float32(2))
        q = s * s
        p = np.float32(1 / 15)
        p = p * q + np.float32(1 / 13)
        p = p * q + np.float32(1 / 11)
        p = p * q + np.float32(1 / 9)
        p = p * q + np.float32(1 / 7)
        p = p * q + np.float32(1 / 5)
        p = p * q + np.float32(1 / 3)
        p = p * q + one
        return (s + s) * p

    return series


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
def _sigmoid(x):
    one = x.dtype.type(1)
    for j in range(len(x)):
        x[j] = one / (one + _exp(-x[j]))


@fast
def _tanh(x):
    one, two = x.dtype.type(1), x.dtype.type(2)
    for j in range(len(x)):
        x[j] = two / (one + _exp(-two * x[j])) - one


@fast
def _add(x, y):
    for j in range(len(y)):
        x[j] += y[j]


@fast
def _copy(source, target):
    for j in range(len(target)):
        target[j] = source[j]


@fast
def _elman_back(h, dh, dg):
    one = h.dtype.type(1)
    for j in range(len(dh)):
        dg[j] = dh[j] * (one - h[j] * h[j])


@fast
def _lstm(i, f, z, o, last, c, h):
    """Gates become what they are after their nonlinearity; c and h are the next states."""
    one, two = h.dtype.type(1), h.dtype.type(2)
    _sigmoid(i)
    _sigmoid(f)
    _tanh(z)
    _sigmoid(o)
    for j in range(len(h)):
        c[j] = f[j] * last[j] + i[j] * z[j]
    for j in range(len(h)):
        h[j] = o[j] * (two / (one + _exp(-two * c[j])) - one)


@fast
def _lstm_back(i, f, z, o, c, last, dh, dc, di, df, dz, do):
    """dh in; dc moves back; di, df, dz, do are the gradients of the gates before their nonlinearity."""
    one, two = dh.dtype.type(1), dh.dtype.type(2)
    for j in range(len(dh)):
        t = two / (one + _exp(-two * c[j])) - one
        do[j] = dh[j] * t * o[j] * (one - o[j])
        dc[j] += dh[j] * o[j] * (one - t * t)
    for j in range(len(dh)):
        df[j] = dc[j] * last[j] * f[j] * (one - f[j])
    for j in range(len(dh)):
        di[j] = dc[j] * z[j] * i[j] * (one - i[j])
    for j in range(len(dh)):
        dz[j] = dc[j] * i[j] * (one - z[j] * z[j])
    for j in range(len(dh)):
        dc[j] *= f[j]


@fast
def _gru(r, z, s, n, last, h):
    """r, z: with their inputs; s: R h + b of n; n: its input."""
    _sigmoid(r)
    _sigmoid(z)
    for j in range(len(h)):
        n[j] += r[j] * s[j]
    _tanh(n)
    for j in range(len(h)):
        h[j] = n[j] + z[j] * (last[j] - n[j])


@fast
def _gru_back(r, z, s, n, last, dh, carried, dr, dz, dn):
    """carried: what reaches the state before besides through R."""
    one = dh.dtype.type(1)
    for j in range(len(dh)):
        dn[j] = dh[j] * (one - z[j]) * (one - n[j] * n[j])
    for j in range(len(dh)):
        dz[j] = dh[j] * (last[j] - n[j]) * z[j] * (one - z[j])
    for j in range(len(dh)):
        dr[j] = dn[j] * s[j] * r[j] * (one - r[j])
    for j in range(len(dh)):
        carried[j] = dh[j] * z[j]


@fast
def _multiply(x, y):
    for j in range(len(y)):
        x[j] *= y[j]


@fast
def _slstm(i, f, z, o, s, last_c, last_n, m, c, n, h):
    """i and f become what they are after stabilising, s sigmoid(f); m moves on."""
    zero = h.dtype.type(0)
    _copy(f, s)
    for j in range(len(h)):  # the log of sigmoid(f), plus m
        f[j] = min(f[j], zero) - _log1p(_exp(-abs(f[j]))) + m[j]
    _sigmoid(s)
    _tanh(z)
    _sigmoid(o)
    for j in range(len(h)):
        m[j] = max(i[j], f[j])
    for j in range(len(h)):
        i[j] = _exp(i[j] - m[j])
    for j in range(len(h)):
        f[j] = _exp(f[j] - m[j])
    for j in range(len(h)):
        c[j] = f[j] * last_c[j] + i[j] * z[j]
    for j in range(len(h)):
        n[j] = f[j] * last_n[j] + i[j]
    for j in range(len(h)):
        h[j] = o[j] * c[j] / n[j]


@fast
def _slstm_back(i, f, z, o, s, c, n, last_c, last_n, dh, dc, dn, dm, di, df, dz, do):
    one, zero = dh.dtype.type(1), dh.dtype.type(0)
    for j in range(len(dh)):
        do[j] = dh[j] * o[j] / n[j]
    for j in range(len(dh)):
        dc[j] += do[j]
        dn[j] -= do[j] * c[j] / n[j]
    for j in range(len(dh)):
        do[j] *= c[j] * (one - o[j])
    for j in range(len(dh)):
        di[j] = (dc[j] * z[j] + dn[j]) * i[j]
    for j in range(len(dh)):
        dz[j] = dc[j] * i[j] * (one - z[j] * z[j])
    for j in range(len(dh)):
        df[j] = (dc[j] * last_c[j] + dn[j] * last_n[j]) * f[j]
    for j in range(len(dh)):  # the larger of both log gates was the stabiliser: what it takes from both goes to it
        rest = dm[j] - di[j] - df[j]
        kept = rest if i[j] < one else zero
        di[j] += rest - kept
        dm[j] = df[j] + kept
    for j in range(len(dh)):
        df[j] = dm[j] * (one - s[j])
    for j in range(len(dh)):
        dc[j] *= f[j]
        dn[j] *= f[j]


@kernel
def forward(begin, end, cell, rows, panels, wide, x, w, bias, starts, lengths, state, y, kept, final):
    """All steps of the tasks begin..end, of which each is a head of up to `rows` rows.

    wide: W, which is D filled up to whole vectors. x: (B, T, N, G, D), the gates' inputs. w: (N, G W / tile, D, tile),
    packed. bias: (N, G W). starts: (B, T) bool or (B, 0). lengths: (B,). state, final: (S, B, N, D). y: (B, T, N, D).
    kept: (tasks, T, parts, rows W), what the backward pass needs of each step, ending with the states c, n (where the
    cell has them) and h; or two steps long, if there will be no backward pass.
    """
    batch, length, heads, gates, d = x.shape
    states, slots, parts, tile = state.shape[0], kept.shape[1], kept.shape[2], w.shape[3]
    inner = min(states - 1, 2)  # states besides h that backward needs
    at = parts - 1 - inner  # where they begin
    summed = gates - (cell == GRU)  # gates to whose share of the state the input is added at once
    direct = wide == d
    row_step = length * heads * gates * d if direct else wide
    source = np.zeros((gates, rows * wide), x.dtype)
    now = np.zeros((4, rows * wide), x.dtype)  # h, c, n before the step, where they are not those that are kept; m
    for task in range(begin, end):
        n, row = task % heads, task // heads * rows
        count = min(rows, batch - row)
        size = count * wide
        for s in range(states):
            for r in range(count):
                _copy(state[s, row + r, n], now[s, r * wide : r * wide + d])
                if lengths[row + r] == 0:
                    _copy(state[s, row + r, n], final[s, row + r, n])
        for t in range(length):
            g, before = kept[task, t % slots], kept[task, (t - 1) % slots]
            fresh = t == 0
            if starts.shape[1]:
                for r in range(count):
                    fresh |= starts[row + r, t]
            if fresh and t > 0:
                _copy(before[parts - 1], now[0, :size])
                for s in range(1, inner + 1):
                    _copy(before[at + s - 1], now[s, :size])
            if fresh and starts.shape[1]:
                for r in range(count):
                    if starts[row + r, t]:
                        now[:3, r * wide : r * wide + wide] = 0
                        if cell == SLSTM:
                            now[3, r * wide : r * wide + wide] = EMPTY
            if not direct:
                for r in range(count):
                    for k in range(gates):
                        _copy(x[row + r, t, n, k], source[k, r * wide : r * wide + d])
            last_h = now[0] if fresh else before[parts - 1]
            lies, given, into, first = _at(last_h), _at(source), _at(g), _at(bias[n])
            if direct:
                given = _at(x[row, t, n])
            k, j = 0, 0
            for p in range(w.shape[1]):
                _run(x, count, panels, first + (k * wide + j) * x.itemsize, _at(w[n, p]), lies,
                     given + (k * (d if direct else rows * wide) + j) * x.itemsize if k < summed else 0,
                     into + (k * rows * wide + j) * x.itemsize, tile, wide, 1, 0, d, 1, row_step, wide)
                j += tile
                if j == wide:
                    k, j = k + 1, 0
            h = g[parts - 1, :size]
            if cell == ELMAN:
                _tanh(h)
            elif cell == GRU:
                for r in range(count):
                    _copy(x[row + r, t, n, 2], g[3, r * wide : r * wide + d])
                    g[3, r * wide + d : r * wide + wide] = 0
                _gru(g[0, :size], g[1, :size], g[2], g[3, :size], last_h, h)
            else:
                last_c = now[1] if fresh else before[at]
                if cell == LSTM:
                    _lstm(g[0, :size], g[1, :size], g[2, :size], g[3, :size], last_c, g[4], h)
                else:
                    last_n = now[2] if fresh else before[6]
                    _slstm(g[0, :size], g[1, :size], g[2, :size], g[3, :size], g[4, :size], last_c, last_n, now[3],
                           g[5], g[6], h)
            for r in range(count):
                _copy(h[r * wide : r * wide + d], y[row + r, t, n])
                if lengths[row + r] == t + 1:
                    line = slice(r * wide, r * wide + d)
                    _copy(h[line], final[0, row + r, n])
                    for s in range(1, inner + 1):
                        _copy(g[at + s - 1, line], final[s, row + r, n])
                    if states == 4:
                        _copy(now[3, line], final[3, row + r, n])


@kernel
def backward(begin, end, cell, rows, panels, wide, span, w, starts, lengths, state, kept, dy, dfinal, dx, dweight,
             dbias, dstate):
    """The gradients of `forward`. w: (N, W / tile, G D, tile), packed the other way round. dx: as x. dweight: (tiles,
    N, G, D, W), added to, and dbias: (tiles, N, G, D), per batch tile. dstate: as state."""
    batch, length, heads, gates, d = dx.shape
    states, parts, tile = state.shape[0], kept.shape[2], w.shape[3]
    inner = min(states - 1, 2)
    at = parts - 1 - inner
    dg = np.zeros((span, gates, rows * wide), dx.dtype)
    total = np.zeros((gates, rows * wide), dx.dtype)
    hs = np.zeros(span * rows * wide, dx.dtype)  # the states before, row by row
    nothing = np.zeros(max(wide, tile), dx.dtype)
    back = np.zeros((4, rows * wide), dx.dtype)  # gradients of h, c, n, m
    carried = np.zeros(rows * wide, dx.dtype)
    now = np.zeros((3, rows * wide), dx.dtype)
    for task in range(begin, end):
        n, block = task % heads, task // heads
        row = block * rows
        count = min(rows, batch - row)
        size = count * wide
        back[:], total[:] = 0, 0
        dh, dc, dn, dm = back[0, :size], back[1], back[2], back[3]
        slot = 0
        for t in range(length - 1, -1, -1):
            g, before = kept[task, t], kept[task, max(t - 1, 0)]
            fresh = t == 0
            for r in range(count):
                b = row + r
                if starts.shape[1]:
                    fresh |= starts[b, t]
                if lengths[b] == t + 1:
                    for s in range(states):
                        _add(back[s, r * wide :], dfinal[s, b, n])
                _add(dh[r * wide :], dy[b, t, n])
            if fresh:  # what was before, where a document starts nothing
                for s in range(inner + 1):
                    for r in range(count):
                        line = slice(r * wide, r * wide + d)
                        if starts.shape[1] and starts[row + r, t]:
                            now[s, line] = 0
                        elif t == 0:
                            _copy(state[s, row + r, n], now[s, line])
                        else:
                            _copy(before[parts - 1 if s == 0 else at + s - 1, line], now[s, line])
            last_h = now[0] if fresh else before[parts - 1]
            _copy(last_h, hs[slot * size : slot * size + size])
            to = dg[slot]
            if cell == ELMAN:
                _elman_back(g[0], dh, to[0])
            elif cell == GRU:
                _gru_back(g[0], g[1], g[2], g[3], last_h, dh, carried, to[0], to[1], to[2])
            else:
                last_c = now[1] if fresh else before[at]
                if cell == LSTM:
                    _lstm_back(g[0], g[1], g[2], g[3], g[4], last_c, dh, dc, to[0], to[1], to[2], to[3])
                else:
                    last_n = now[2] if fresh else before[6]
                    _slstm_back(g[0], g[1], g[2], g[3], g[4], g[5], g[6], last_c, last_n, dh, dc, dn, dm, to[0], to[1],
                                to[2], to[3])
            for r in range(count):
                for k in range(gates):
                    _copy(to[k, r * wide : r * wide + d], dx[row + r, t, n, k])
            if cell == GRU:
                _multiply(to[2], g[0, :size])
            for k in range(gates):
                _add(total[k], to[k, :size])
            source, into = _at(to), _at(back)
            for p in range(w.shape[1]):
                _run(dx, count, panels, _at(nothing), _at(w[n, p]), source, 0, into + p * tile * dx.itemsize, tile,
                     wide, 1, rows * wide - d, d, gates, 0, wide)
            if cell == GRU:
                _add(dh, carried[:size])
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
                        for j in range(0, wide * dx.itemsize, tile * dx.itemsize):
                            _run(dx, min(rows, d - i), panels, _at(nothing), right + j,
                                 left + (k * rows * wide + i) * dx.itemsize, target + j, target + j, wide, 1, wide,
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
