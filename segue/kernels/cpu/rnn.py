"""Head-wise nonlinear recurrences on the CPU, forward and backward, in float32 and float64: one call runs all steps.

A task is one head of a few rows (a batch tile). Its hidden states, its part of the recurrent weights and its gradient
stay in the nearest caches; the products of a step run in a register tile, whose size `segue.kernels.tiles` gives; the
gradient of the weights is gathered over a span of steps, so that it, too, is a product that fills the registers.
"""

from __future__ import annotations

import math
from functools import partial
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
MOST_ROWS, MOST_PANELS = 8, 3
OPTIONS = {"fastmath": FAST, "error_model": "numpy"}  # a test for division by zero would keep loops from vectorising
fast = njit(**OPTIONS)


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
    """y[r, c] (+)= sum over i < k of x[r, i] * w[i, c], for `rows` rows and `panels` vectors of columns, in registers.

    args: addresses w, x, y; bytes from one i to the next in w (w_step) and in x (x_step), from one row to the next in x
    (x_row) and in y (y_row); k; adds (0: y is overwritten).
    """
    w, w_step, x, x_row, x_step, k, y, y_row, adds = args
    b, size = builder, 4 if kind == simd.F32 else 8
    vector = ir.VectorType(kind, lanes)
    zero = ir.Constant(vector, [0.0] * lanes)
    undefined, first = ir.Constant(vector, ir.Undefined), ir.Constant(ir.VectorType(simd.I32, lanes), [0] * lanes)

    def load(address: Any) -> Any:
        return b.load(b.inttoptr(address, vector.as_pointer()), align=size)

    def spread(address: Any) -> Any:
        value = b.load(b.inttoptr(address, kind.as_pointer()), align=size)
        return b.shuffle_vector(b.insert_element(undefined, value, simd.I32(0)), undefined, first)

    name = f"llvm.fmuladd.v{lanes}f{8 * size}"
    entry, loop, done = b.block, b.append_basic_block("loop"), b.append_basic_block("done")
    lines = [b.add(x, b.mul(x_row, simd.I64(r))) for r in range(rows)]
    b.branch(loop)
    b.position_at_end(loop)
    i, at_w, at_x = b.phi(simd.I64), b.phi(simd.I64), b.phi(simd.I64)
    sums = [[b.phi(vector) for _ in range(panels)] for _ in range(rows)]
    weights = [load(b.add(at_w, simd.I64(p * lanes * size))) for p in range(panels)]
    after = []
    for r in range(rows):
        value = spread(b.add(lines[r], at_x))
        after.append([simd._call(b, name, vector, weights[p], value, sums[r][p]) for p in range(panels)])
    following = b.add(i, simd.I64(1))
    for phi, start, end in ((i, simd.I64(0), following), (at_w, w, b.add(at_w, w_step)),
                            (at_x, simd.I64(0), b.add(at_x, x_step))):
        phi.add_incoming(start, entry)
        phi.add_incoming(end, loop)
    for r in range(rows):
        for p in range(panels):
            sums[r][p].add_incoming(zero, entry)
            sums[r][p].add_incoming(after[r][p], loop)
    b.cbranch(b.icmp_signed("<", following, k), loop, done)
    b.position_at_end(done)
    targets = [(after[r][p], b.inttoptr(b.add(b.add(y, b.mul(y_row, simd.I64(r))), simd.I64(p * lanes * size)),
                                        vector.as_pointer())) for r in range(rows) for p in range(panels)]
    with b.if_else(b.icmp_signed("==", adds, simd.I64(0))) as (put, add):
        with put:
            for value, target in targets:
                b.store(value, target, align=size)
        with add:
            for value, target in targets:
                b.store(b.fadd(b.load(target, align=size), value), target, align=size)


def _make_tile(kind: Any, lanes: int) -> Any:
    """tile(rows, panels, w, w_step, x, x_row, x_step, k, y, y_row, adds) for up to MOST_ROWS and MOST_PANELS."""

    def build(builder: Any, args: list[Any]) -> None:
        end = builder.append_basic_block("end")
        which = builder.add(builder.mul(args[1], simd.I64(MOST_ROWS + 1)), args[0])
        switch = builder.switch(which, end)
        for panels in range(1, MOST_PANELS + 1):
            for rows in range(1, MOST_ROWS + 1):
                case = builder.append_basic_block(f"tile{rows}x{panels}")
                switch.add_case(simd.I64(panels * (MOST_ROWS + 1) + rows), case)
                builder.position_at_end(case)
                _tile(builder, kind, lanes, rows, panels, args[2:])
                builder.branch(end)
        builder.position_at_end(end)

    choose = simd._define("choose", types.void(*[types.int64] * 11), build)

    @njit
    def tile(rows, panels, w, w_step, x, x_row, x_step, k, y, y_row, adds):
        choose(rows, panels, w, w_step, x, x_row, x_step, k, y, y_row, adds)

    return tile


_tile32, _tile64 = _make_tile(simd.F32, simd.LANES), _make_tile(ir.DoubleType(), simd.LANES // 2)


def _product(rows, panels, w, x, k, y, x_row, x_step):
    raise NotImplementedError


@overload(_product)
def _typed_product(rows, panels, w, x, k, y, x_row, x_step):
    """y[r, p * tile + c] = sum over i < k of x[r * x_row + i * x_step] * w[p, i, c] for all panels p of w; y is (rows,
    columns), and x begins at its address."""
    tile = _tile32 if w.dtype == types.float32 else _tile64
    size = 4 if w.dtype == types.float32 else 8

    def product(rows, panels, w, x, k, y, x_row, x_step):
        width = w.shape[2]
        for p in range(w.shape[0]):
            tile(rows, panels, np.int64(w[p].ctypes.data), width * size, np.int64(x.ctypes.data), x_row * size,
                 x_step * size, k, np.int64(y.ctypes.data) + p * width * size, y.shape[1] * size, 0)

    return product


def _gather(most, panels, tile, dg, h, count, gates, dr):
    raise NotImplementedError


@overload(_gather)
def _typed_gather(most, panels, tile, dg, h, count, gates, dr):
    """dr[q, j] += sum over i < count of dg[i, q] * h[i, j], for q < gates; panels of `tile` columns j."""
    run = _tile32 if h.dtype == types.float32 else _tile64
    size = 4 if h.dtype == types.float32 else 8

    def gather(most, panels, tile, dg, h, count, gates, dr):
        width, columns = h.shape[1], dg.shape[1]
        for j in range(0, width, tile):
            for q in range(0, gates, most):
                run(min(most, gates - q), panels, np.int64(h.ctypes.data) + j * size, width * size,
                    np.int64(dg.ctypes.data) + q * size, size, columns * size, count,
                    np.int64(dr.ctypes.data) + (q * width + j) * size, width * size, 1)

    return gather


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
    for j in range(len(h)):
        dg[j] = dh[j] * (one - h[j] * h[j])


@fast
def _lstm(g, c, h):
    """One row: gates i, f, z, o in g become what they are after their nonlinearity; the cell and h move on."""
    d = len(h)
    one, two = h.dtype.type(1), h.dtype.type(2)
    _sigmoid(g[: 2 * d])
    _tanh(g[2 * d : 3 * d])
    _sigmoid(g[3 * d : 4 * d])
    i, f, z, o = g[:d], g[d : 2 * d], g[2 * d : 3 * d], g[3 * d : 4 * d]
    for j in range(d):
        c[j] = f[j] * c[j] + i[j] * z[j]
    for j in range(d):
        h[j] = o[j] * (two / (one + _exp(-two * c[j])) - one)


@fast
def _lstm_back(g, c, before, dh, dc, dg):
    """dh in; dc moves back; dg are the gradients of the gates before their nonlinearity."""
    d = len(dh)
    one, two = dh.dtype.type(1), dh.dtype.type(2)
    i, f, z, o = g[:d], g[d : 2 * d], g[2 * d : 3 * d], g[3 * d : 4 * d]
    di, df, dz, do = dg[:d], dg[d : 2 * d], dg[2 * d : 3 * d], dg[3 * d : 4 * d]
    for j in range(d):
        t = two / (one + _exp(-two * c[j])) - one
        do[j] = dh[j] * t * o[j] * (one - o[j])
        dc[j] += dh[j] * o[j] * (one - t * t)
    for j in range(d):
        df[j] = dc[j] * before[j] * f[j] * (one - f[j])
    for j in range(d):
        di[j] = dc[j] * z[j] * i[j] * (one - i[j])
        dz[j] = dc[j] * i[j] * (one - z[j] * z[j])
    for j in range(d):
        dc[j] *= f[j]


@fast
def _gru(g, x, h):
    """One row: g holds R h + b of r, z, n, and a fourth part is free; it becomes r, z, R h + b of n, n."""
    d = len(h)
    r, z, s, n, last = g[:d], g[d : 2 * d], g[2 * d : 3 * d], g[3 * d : 4 * d], x[2 * d : 3 * d]
    _add(g[: 2 * d], x[: 2 * d])
    _sigmoid(g[: 2 * d])
    for j in range(d):
        n[j] = last[j] + r[j] * s[j]
    _tanh(n)
    for j in range(d):
        h[j] = n[j] + z[j] * (h[j] - n[j])


@fast
def _gru_back(g, before, dh, carried, dx, dg):
    """dx: gradients of the inputs of r, z, n; dg: of R h + b; carried: what reaches the state before besides R."""
    d = len(dh)
    one = dh.dtype.type(1)
    r, z, s, n = g[:d], g[d : 2 * d], g[2 * d : 3 * d], g[3 * d : 4 * d]
    dr, dz, dn = dx[:d], dx[d : 2 * d], dx[2 * d : 3 * d]
    for j in range(d):
        dn[j] = dh[j] * (one - z[j]) * (one - n[j] * n[j])
    for j in range(d):
        dz[j] = dh[j] * (before[j] - n[j]) * z[j] * (one - z[j])
    for j in range(d):
        dr[j] = dn[j] * s[j] * r[j] * (one - r[j])
    _copy(dx, dg)
    s = dg[2 * d : 3 * d]
    for j in range(d):
        s[j] *= r[j]
    for j in range(d):
        carried[j] = dh[j] * z[j]


@fast
def _slstm(g, c, n, m, h):
    """One row: the gates i, f, z, o in g become i and f after stabilising, z, o, and a fifth part sigmoid(f)."""
    d = len(h)
    zero = h.dtype.type(0)
    i, f, z, o, s = g[:d], g[d : 2 * d], g[2 * d : 3 * d], g[3 * d : 4 * d], g[4 * d : 5 * d]
    _copy(f, s)
    for j in range(d):  # the log of sigmoid(f), plus m
        f[j] = min(f[j], zero) - _log1p(_exp(-abs(f[j]))) + m[j]
    _sigmoid(s)
    _tanh(z)
    _sigmoid(o)
    for j in range(d):
        m[j] = max(i[j], f[j])
    for j in range(d):
        i[j] = _exp(i[j] - m[j])
    for j in range(d):
        f[j] = _exp(f[j] - m[j])
    for j in range(d):
        c[j] = f[j] * c[j] + i[j] * z[j]
    for j in range(d):
        n[j] = f[j] * n[j] + i[j]
    for j in range(d):
        h[j] = o[j] * c[j] / n[j]


@fast
def _slstm_back(g, c, n, last_c, last_n, dh, dc, dn, dm, dg):
    d = len(dh)
    one, zero = dh.dtype.type(1), dh.dtype.type(0)
    i, f, z, o, s = g[:d], g[d : 2 * d], g[2 * d : 3 * d], g[3 * d : 4 * d], g[4 * d : 5 * d]
    di, df, dz, do = dg[:d], dg[d : 2 * d], dg[2 * d : 3 * d], dg[3 * d : 4 * d]
    for j in range(d):
        mean = c[j] / n[j]
        share = dh[j] * o[j] / n[j]
        do[j] = dh[j] * mean * o[j] * (one - o[j])
        dc[j] += share
        dn[j] -= share * mean
    for j in range(d):
        di[j] = (dc[j] * z[j] + dn[j]) * i[j]
        dz[j] = dc[j] * i[j] * (one - z[j] * z[j])
    for j in range(d):
        df[j] = (dc[j] * last_c[j] + dn[j] * last_n[j]) * f[j]
    for j in range(d):  # the larger of both log gates was the stabiliser: what it takes from both goes to it
        rest = dm[j] - di[j] - df[j]
        kept = rest if i[j] < one else zero
        di[j] += rest - kept
        dm[j] = df[j] + kept
        df[j] = dm[j] * (one - s[j])
    for j in range(d):
        dc[j] *= f[j]
        dn[j] *= f[j]


@partial(compiled, **OPTIONS)
def forward(begin, end, cell, rows, panels, wx, w, bias, starts, lengths, state, y, kept, final):
    """All steps of the tasks begin..end, of which each is a head of up to `rows` rows.

    wx: (B, T, N, G, D) gates' inputs. w: (N, P, D, tile) packed weights. bias: (N, G, D). starts: (B, T) bool or
    (B, 0). lengths: (B,). state, final: (S, B, N, D). y: (B, T, N, D). kept: (B, T, N, K, D) or (B, 0, ...), for the
    backward pass.
    """
    batch, length, heads, gates, d = wx.shape
    states, parts = state.shape[0], kept.shape[3]
    inner = min(states - 1, 2)  # states besides h that backward needs
    columns = max(w.shape[1] * w.shape[3], 5 * d)
    g = np.zeros((rows, columns), wx.dtype)
    now = np.zeros((states, rows, d), wx.dtype)
    for task in range(begin, end):
        n, row = task % heads, task // heads * rows
        count = min(rows, batch - row)
        flat = bias[n].reshape(gates * d)
        for s in range(states):
            for r in range(count):
                _copy(state[s, row + r, n], now[s, r])
                if lengths[row + r] == 0:
                    _copy(state[s, row + r, n], final[s, row + r, n])
        for t in range(length):
            if starts.shape[1]:
                for r in range(count):
                    if starts[row + r, t]:
                        now[:, r] = 0
                        if cell == SLSTM:
                            now[3, r] = EMPTY
            _product(count, panels, w[n], now[0], d, g, d, 1)
            for r in range(count):
                b, h, gate = row + r, now[0, r], g[r]
                x = wx[b, t, n].reshape(gates * d)
                _add(gate, flat)
                if cell == GRU:
                    _gru(gate, x, h)
                else:
                    _add(gate, x)
                    if cell == LSTM:
                        _lstm(gate, now[1, r], h)
                    elif cell == SLSTM:
                        _slstm(gate, now[1, r], now[2, r], now[3, r], h)
                    else:
                        _tanh(gate[:d])
                        _copy(gate, h)
                _copy(h, y[b, t, n])
                if kept.shape[1] and parts:
                    memory = kept[b, t, n].reshape(parts * d)
                    first = parts - inner
                    _copy(gate, memory[: first * d])
                    for s in range(1, inner + 1):
                        _copy(now[s, r], memory[(first + s - 1) * d : (first + s) * d])
                if lengths[b] == t + 1:
                    for s in range(states):
                        _copy(now[s, r], final[s, b, n])


@partial(compiled, **OPTIONS)
def backward(begin, end, cell, rows, panels, span, w, starts, lengths, state, y, kept, dy, dfinal, dwx, dr, dbias,
             dstate):
    """The gradients of `forward`. w: (N, P, G D, tile), packed the other way round. dwx: as wx. dr: (tiles, N, G D, D
    padded) and dbias: (tiles, N, G D), per batch tile; both are added to. dstate: as state."""
    batch, length, heads, gates, d = dwx.shape
    states, tile = state.shape[0], w.shape[3]
    inner = min(states - 1, 2)
    wide = w.shape[1] * tile
    dg = np.zeros((span * rows, gates * d), dwx.dtype)
    h = np.zeros((span * rows, wide), dwx.dtype)
    dh, carried = np.zeros((rows, wide), dwx.dtype), np.zeros((rows, d), dwx.dtype)
    back = np.zeros((states, rows, d), dwx.dtype)  # gradients of the other states; 0 is not used
    last = np.zeros((3, d), dwx.dtype)
    for task in range(begin, end):
        n, block = task % heads, task // heads
        row = block * rows
        count = min(rows, batch - row)
        back[:], dh[:], carried[:] = 0, 0, 0
        filled = 0
        for t in range(length - 1, -1, -1):
            for r in range(count):
                b = row + r
                fresh = starts.shape[1] and starts[b, t]
                if lengths[b] == t + 1:
                    _add(dh[r], dfinal[0, b, n])
                    for s in range(1, states):
                        _add(back[s, r], dfinal[s, b, n])
                slot = filled + r
                _add(dh[r], dy[b, t, n])
                for s in range(1, inner + 1):  # what the cell held before
                    if fresh:
                        last[s] = 0
                    elif t == 0:
                        _copy(state[s, b, n], last[s])
                    else:
                        _copy(kept[b, t - 1, n, kept.shape[3] - inner + s - 1], last[s])
                if fresh:
                    h[slot] = 0
                elif t == 0:
                    _copy(state[0, b, n], h[slot, :d])
                else:
                    _copy(y[b, t - 1, n], h[slot, :d])
                out = dwx[b, t, n].reshape(gates * d)
                if cell == GRU:
                    gate = kept[b, t, n].reshape(4 * d)
                    _gru_back(gate, h[slot, :d], dh[r, :d], carried[r], out, dg[slot])
                else:
                    if cell == LSTM:
                        gate = kept[b, t, n].reshape(5 * d)
                        _lstm_back(gate, gate[4 * d :], last[1], dh[r, :d], back[1, r], dg[slot])
                    elif cell == SLSTM:
                        gate = kept[b, t, n].reshape(7 * d)
                        _slstm_back(gate, gate[5 * d : 6 * d], gate[6 * d :], last[1], last[2], dh[r, :d], back[1, r],
                                    back[2, r], back[3, r], dg[slot])
                    else:
                        _elman_back(y[b, t, n], dh[r], dg[slot])
                    _copy(dg[slot], out)
            _product(count, panels, w[n], dg[filled], gates * d, dh, gates * d, 1)
            for r in range(count):
                if cell == GRU:
                    _add(dh[r], carried[r])
                if starts.shape[1] and starts[row + r, t]:
                    dh[r] = 0
                    back[:, r] = 0
            filled += count
            if t == 0 or filled + count > span * rows:
                _gather(rows, panels, tile, dg, h, filled, gates * d, dr[block, n])
                for k in range(filled):
                    _add(dbias[block, n], dg[k])
                filled = 0
        for r in range(count):
            b = row + r
            for s in range(states):
                _copy(dh[r] if s == 0 else back[s, r], dstate[s, b, n])
                if lengths[b] == 0:
                    _add(dstate[s, b, n], dfinal[s, b, n])
