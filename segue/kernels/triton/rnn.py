"""Head-wise nonlinear recurrences in Triton, forward and backward: one program runs all steps of one head of a few
rows, with the recurrent weights (and, going back, their gradient) on the chip throughout (FlashRNN's fused form, Pöppel
et al. 2024, arXiv 2412.07752). Heads are 16, 32 or 64 units wide: four gates of wider ones do not fit an H100's chip.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from segue.kernels.rnn import Cell

ROWS = 16  # of a batch per program: the least that a tensor core multiplies
ELMAN, LSTM, GRU, SLSTM = (tl.constexpr(code) for code in range(4))
EMPTY = tl.constexpr(-1e30)  # the stabiliser of an sLSTM cell that holds nothing yet


@triton.jit
def _tanh(x):
    return 2 * tl.sigmoid(2 * x) - 1


@triton.jit
def _product(x, w, PRECISION: tl.constexpr):
    return tl.dot(x, w, input_precision=PRECISION, out_dtype=x.dtype)


@triton.jit
def _save(state, at, every, h, c, n, m, where, S: tl.constexpr):
    """Tensors of a state of S of them, for the rows where this holds."""
    tl.store(state + at, h, where)
    if S > 1:
        tl.store(state + every + at, c, where)
    if S > 2:
        tl.store(state + 2 * every + at, n, where)
        tl.store(state + 3 * every + at, m, where)


@triton.jit
def _forward(x, weight, bias, state, starts, lengths, y, kept, final, batch, length, heads, CELL: tl.constexpr,
             G: tl.constexpr, S: tl.constexpr, K: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr,
             KEEP: tl.constexpr, STARTS: tl.constexpr, PRECISION: tl.constexpr):
    head, row, unit = tl.program_id(0), tl.program_id(1) * ROWS + tl.arange(0, ROWS), tl.arange(0, D)
    live = (row < batch)[:, None]
    at, every = (row[:, None] * heads + head) * D + unit, batch * heads * D  # in a state; from one state to the next
    matrix, biases = weight + head * G * D * D + unit[None, :] * D + unit[:, None], bias + head * G * D + unit
    w0, b0 = tl.load(matrix), tl.load(biases)[None, :]
    if CELL != ELMAN:
        w1, b1 = tl.load(matrix + D * D), tl.load(biases + D)[None, :]
        w2, b2 = tl.load(matrix + 2 * D * D), tl.load(biases + 2 * D)[None, :]
    if S > 1:
        w3, b3 = tl.load(matrix + 3 * D * D), tl.load(biases + 3 * D)[None, :]
    h = tl.load(state + at, live, 0.0)
    c, n, m = h, h, h
    if S > 1:
        c = tl.load(state + every + at, live, 0.0)
    if CELL == SLSTM:
        n = tl.load(state + 2 * every + at, live, 1.0)
        m = tl.load(state + 3 * every + at, live, 0.0)
    until = tl.load(lengths + row, row < batch, -1)[:, None]
    _save(final, at, every, h, c, n, m, live & (until == 0), S)
    for t in range(length):
        if STARTS:
            fresh = tl.load(starts + row * length + t, row < batch, 0)[:, None] != 0
            h, c, n = tl.where(fresh, 0.0, h), tl.where(fresh, 0.0, c), tl.where(fresh, 0.0, n)
            m = tl.where(fresh, EMPTY, m)
        place = (row[:, None].to(tl.int64) * length + t) * heads + head  # beyond 2^31 numbers in all
        given, saved = x + place * (G * D) + unit, kept + place * (K * D) + unit
        g0 = _product(h, w0, PRECISION) + b0
        x0 = tl.load(given, live, 0.0)
        if CELL == ELMAN:
            h = _tanh(g0 + x0)
        else:
            g1, g2 = _product(h, w1, PRECISION) + b1, _product(h, w2, PRECISION) + b2
            x1, x2 = tl.load(given + D, live, 0.0), tl.load(given + 2 * D, live, 0.0)
            if CELL == GRU:
                a0, a1 = tl.sigmoid(g0 + x0), tl.sigmoid(g1 + x1)
                a2, a3 = g2, _tanh(x2 + a0 * g2)
                h = a3 + a1 * (h - a3)
            else:
                g3 = _product(h, w3, PRECISION) + b3 + tl.load(given + 3 * D, live, 0.0)
                a2, a3 = _tanh(g2 + x2), tl.sigmoid(g3)
                if CELL == LSTM:
                    a0, a1 = tl.sigmoid(g0 + x0), tl.sigmoid(g1 + x1)
                    c = a1 * c + a0 * a2
                    h = a3 * _tanh(c)
                else:
                    g0, g1 = g0 + x0, g1 + x1
                    reached = tl.minimum(g1, 0.0) - tl.log(1 + tl.exp(-tl.abs(g1))) + m
                    m = tl.maximum(reached, g0)
                    a0, a1 = tl.exp(g0 - m), tl.exp(reached - m)
                    c, n = a1 * c + a0 * a2, a1 * n + a0
                    h = a3 * c / n
            if KEEP:
                tl.store(saved, a0, live)
                tl.store(saved + D, a1, live)
                tl.store(saved + 2 * D, a2, live)
                tl.store(saved + 3 * D, a3, live)
                if CELL == LSTM:
                    tl.store(saved + 4 * D, c, live)
                if CELL == SLSTM:
                    tl.store(saved + 4 * D, tl.sigmoid(g1), live)
                    tl.store(saved + 5 * D, c, live)
                    tl.store(saved + 6 * D, n, live)
        if KEEP:
            tl.store(saved + (K - 1) * D, h, live)
        tl.store(y + place * D + unit, h, live)
        _save(final, at, every, h, c, n, m, live & (until == t + 1), S)


@triton.jit
def _backward(weight, state, starts, lengths, kept, dy, dfinal, dx, dweight, dbias, dstate, batch, length, heads,
              CELL: tl.constexpr, G: tl.constexpr, S: tl.constexpr, K: tl.constexpr, D: tl.constexpr,
              ROWS: tl.constexpr, STARTS: tl.constexpr, PRECISION: tl.constexpr):
    head, tile, unit = tl.program_id(0), tl.program_id(1), tl.arange(0, D)
    row = tile * ROWS + tl.arange(0, ROWS)
    live = (row < batch)[:, None]
    at, every = (row[:, None] * heads + head) * D + unit, batch * heads * D
    square = unit[:, None] * D + unit[None, :]
    matrix = weight + head * G * D * D + square  # [out, in]
    zero = tl.load(state + at, row[:, None] < 0, 0.0)
    dh, dc, dn, dm = zero, zero, zero, zero
    w0 = tl.load(matrix)
    r0 = w0 * 0
    s0 = tl.sum(zero, 0)
    if CELL != ELMAN:
        w1, w2 = tl.load(matrix + D * D), tl.load(matrix + 2 * D * D)
        r1, r2, s1, s2 = r0, r0, s0, s0
    if S > 1:
        w3 = tl.load(matrix + 3 * D * D)
        r3, s3 = r0, s0
    until = tl.load(lengths + row, row < batch, -1)[:, None]
    for i in range(length):
        t = length - 1 - i
        place = (row[:, None].to(tl.int64) * length + t) * heads + head  # beyond 2^31 numbers in all
        saved, before = kept + place * (K * D) + unit, kept + (place - heads) * (K * D) + unit
        step = row[:, None] * 0 + t
        first, later = live & (step == 0), live & (step > 0)
        ended = live & (until == t + 1)
        dh += tl.load(dy + place * D + unit, live, 0.0) + tl.load(dfinal + at, ended, 0.0)
        last = tl.load(state + at, first, 0.0) + tl.load(before + (K - 1) * D, later, 0.0)
        fresh = live & (row[:, None] < 0)
        if STARTS:
            fresh = tl.load(starts + row * length + t, row < batch, 0)[:, None] != 0
            last = tl.where(fresh, 0.0, last)
        out = dx + place * (G * D) + unit
        if CELL == ELMAN:
            h = tl.load(saved, live, 0.0)
            d0 = dh * (1 - h * h)
            tl.store(out, d0, live)
            dh = _product(d0, w0, PRECISION)
        else:
            a0, a1 = tl.load(saved, live, 0.0), tl.load(saved + D, live, 0.0)
            a2, a3 = tl.load(saved + 2 * D, live, 0.0), tl.load(saved + 3 * D, live, 0.0)
            if CELL == GRU:
                d2 = dh * (1 - a1) * (1 - a3 * a3)
                d1 = dh * (last - a3) * a1 * (1 - a1)
                d0 = d2 * a2 * a0 * (1 - a0)
                tl.store(out + 2 * D, d2, live)
                d2 = d2 * a0
                dh = dh * a1 + _product(d0, w0, PRECISION) + _product(d1, w1, PRECISION) + _product(d2, w2, PRECISION)
            else:
                dc += tl.load(dfinal + every + at, ended, 0.0)
                if CELL == LSTM:
                    c = tl.load(saved + 4 * D, live, 0.0)
                    last_c = tl.load(state + every + at, first, 0.0) + tl.load(before + 4 * D, later, 0.0)
                    last_c = tl.where(fresh, 0.0, last_c)
                    squashed = _tanh(c)
                    d3 = dh * squashed * a3 * (1 - a3)
                    dc += dh * a3 * (1 - squashed * squashed)
                    d0, d1 = dc * a2 * a0 * (1 - a0), dc * last_c * a1 * (1 - a1)
                else:
                    dn += tl.load(dfinal + 2 * every + at, ended, 0.0)
                    dm += tl.load(dfinal + 3 * every + at, ended, 0.0)
                    c, n = tl.load(saved + 5 * D, live, 0.0), tl.load(saved + 6 * D, live, 1.0)
                    last_c = tl.load(state + every + at, first, 0.0) + tl.load(before + 5 * D, later, 0.0)
                    last_n = tl.load(state + 2 * every + at, first, 0.0) + tl.load(before + 6 * D, later, 0.0)
                    last_c, last_n = tl.where(fresh, 0.0, last_c), tl.where(fresh, 0.0, last_n)
                    share = dh * a3 / n
                    d3 = dh * c / n * a3 * (1 - a3)
                    dc, dn = dc + share, dn - share * c / n
                    d0, d1 = (dc * a2 + dn) * a0, (dc * last_c + dn * last_n) * a1
                    rest = dm - d0 - d1  # what the stabiliser takes from both gates goes to the larger of them
                    d0, dm = tl.where(a0 < 1, d0, d0 + rest), tl.where(a0 < 1, d1 + rest, d1)
                    d1 = dm * (1 - tl.load(saved + 4 * D, live, 0.0))
                    dn = tl.where(fresh, 0.0, dn * a1)
                    dm = tl.where(fresh, 0.0, dm)
                d2 = dc * a0 * (1 - a2 * a2)
                dc = tl.where(fresh, 0.0, dc * a1)
                tl.store(out + 2 * D, d2, live)
                tl.store(out + 3 * D, d3, live)
                r3, s3 = r3 + _product(tl.trans(d3), last, PRECISION), s3 + tl.sum(d3, 0)
                dh = _product(d0, w0, PRECISION) + _product(d1, w1, PRECISION)
                dh += _product(d2, w2, PRECISION) + _product(d3, w3, PRECISION)
            tl.store(out, d0, live)
            tl.store(out + D, d1, live)
            r1, s1 = r1 + _product(tl.trans(d1), last, PRECISION), s1 + tl.sum(d1, 0)
            r2, s2 = r2 + _product(tl.trans(d2), last, PRECISION), s2 + tl.sum(d2, 0)
        r0, s0 = r0 + _product(tl.trans(d0), last, PRECISION), s0 + tl.sum(d0, 0)
        dh = tl.where(fresh, 0.0, dh)
    mine = tile * heads + head
    matrix, biases = dweight + mine * G * D * D + square, dbias + mine * G * D + unit
    tl.store(matrix, r0)
    tl.store(biases, s0)
    if CELL != ELMAN:
        tl.store(matrix + D * D, r1)
        tl.store(matrix + 2 * D * D, r2)
        tl.store(biases + D, s1)
        tl.store(biases + 2 * D, s2)
    if S > 1:
        tl.store(matrix + 3 * D * D, r3)
        tl.store(biases + 3 * D, s3)
    ended = live & (until == 0)
    dh += tl.load(dfinal + at, ended, 0.0)
    if S > 1:
        dc += tl.load(dfinal + every + at, ended, 0.0)
    if S > 2:
        dn += tl.load(dfinal + 2 * every + at, ended, 0.0)
        dm += tl.load(dfinal + 3 * every + at, ended, 0.0)
    _save(dstate, at, every, dh, dc, dn, dm, live, S)


def _precision() -> str:
    """Of products of float32: as torch lets cuDNN's recurrences have it."""
    return "tf32" if torch.backends.cudnn.allow_tf32 else "tf32x3"


def forward(cell: Cell, x: Tensor, weight: Tensor, bias: Tensor, state: Tensor, starts: Tensor, lengths: Tensor,
            learning: bool) -> tuple[Tensor, Tensor, Tensor]:
    """h, the last state and what backward needs, (B, T, N, parts, D); arguments as of `segue.kernels.rnn`."""
    batch, length, heads, gates, width = x.shape
    y, final = x.new_empty(batch, length, heads, width), torch.empty_like(state).contiguous()
    kept = x.new_empty(batch, length if learning else 0, heads, cell.parts, width)
    _forward[(heads, -(-batch // ROWS))](
        x.contiguous(), weight.contiguous(), bias.contiguous(), state.contiguous(), starts.to(torch.int8).contiguous(),
        lengths, y, kept, final, batch, length, heads, cell.code, gates, cell.states, cell.parts, width, ROWS, learning,
        bool(starts.shape[1]), _precision())
    return y, final, kept


def backward(cell: Cell, weight: Tensor, state: Tensor, starts: Tensor, lengths: Tensor, kept: Tensor, dy: Tensor,
             dfinal: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of x, weight, bias and state."""
    (batch, length), (heads, gates, width) = dy.shape[:2], weight.shape[:3]
    tiles = -(-batch // ROWS)
    dx, dstate = dy.new_empty(batch, length, heads, gates, width), torch.empty_like(state).contiguous()
    dweight, dbias = dy.new_empty(tiles, *weight.shape), dy.new_empty(tiles, heads, gates, width)
    _backward[(heads, tiles)](
        weight.contiguous(), state.contiguous(), starts.to(torch.int8).contiguous(), lengths, kept, dy.contiguous(),
        dfinal.contiguous(), dx, dweight, dbias, dstate, batch, length, heads, cell.code, gates, cell.states,
        cell.parts, width, ROWS, bool(starts.shape[1]), _precision())
    return dx, dweight.sum(0), dbias.sum(0), dstate
