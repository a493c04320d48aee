"""The short causal convolution on the CPU, forward and backward, in float32 and float64.

A task is a span of nodes of one row, and as many channels as the first-level cache holds for all taps. Outputs are
accumulated in registers; so is the gradient of an input, a sum over the gradients of the nodes that see it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from segue.kernels.cpu import simd
from segue.kernels.cpu.loops import bare, kernel, size_of
from segue.kernels.cpu.products import at
from segue.kernels.cpu.vectors import Numbers, Place, dispatch, loop_row

NODES, WIDE = 256, 256  # nodes and channels of a task
TAPS = 4  # that are unrolled: there are so many, or a multiple, the furthest back of weight zero


def _sum(builder: Any, place: Place, first: Any, taps: Any, rows: Any, w: Any, w_row: Any) -> Numbers:
    """The value at `first` plus the sum of taps times rows."""
    (total,) = _taps(builder, taps, [place.get(first)], lambda k, total: [
        total + place.get(_row(builder, rows, k)) * place.get(builder.add(w, builder.mul(w_row, k)))])
    return total


def _taps(builder: Any, taps: Any, totals: list[Numbers], body: Callable[..., list[Numbers]]) -> list[Numbers]:
    """totals = body(tap, *totals)"""

    def tap_group(group: Any, *values: Any) -> list[Any]:
        partial = [Numbers(builder, value) for value in values]
        for k in range(TAPS):
            partial = body(builder.add(builder.mul(group, simd.I64(TAPS)), simd.I64(k)), *partial)
        return [total.value for total in partial]

    results = simd.emit_loop(builder, builder.udiv(taps, simd.I64(TAPS)), [total.value for total in totals], tap_group)
    return [Numbers(builder, value) for value in results]


def _row(builder: Any, rows: Any, k: Any) -> Any:
    """The address of a row, from a table of such."""
    return builder.load(simd.pointer(builder, builder.add(rows, builder.mul(k, simd.I64(8)))))


def _gather(silu: bool, builder: Any, kind: Any, args: list[Any]) -> None:
    width, taps, rows, w, w_row, first, y, step, y_step = args
    last_row = _row(builder, rows, builder.sub(taps, simd.I64(1)))

    def body(place: Place) -> list[Numbers]:
        place.prefetch(builder.add(last_row, step))
        place.prefetch(builder.add(y, y_step), write=True)
        z = _sum(builder, place, first, taps, rows, w, w_row)
        place.put(z * z.sigmoid() if silu else z, y)
        return []

    loop_row(builder, kind, width, body)


def _back(silu: bool, builder: Any, kind: Any, args: list[Any]) -> None:
    width, taps, rows, w, w_row, first, dy, dz, dw, dfirst, step, dy_step = args
    last_row = _row(builder, rows, builder.sub(taps, simd.I64(1)))

    def body(place: Place) -> list[Numbers]:
        place.prefetch(builder.add(last_row, step))
        place.prefetch(builder.add(dy, dy_step))
        grad = place.get(dy)
        if silu:
            z = _sum(builder, place, first, taps, rows, w, w_row)
            gate = z.sigmoid()
            grad = grad * (gate * (z * (1 - gate) + 1))
        place.put(grad, dz)
        place.put(place.get(dfirst) + grad, dfirst)

        def tap(k: Any) -> list[Numbers]:
            target = builder.add(dw, builder.mul(w_row, k))
            place.put(place.get(target) + place.get(_row(builder, rows, k)) * grad, target)
            return []

        return _taps(builder, taps, [], tap)

    loop_row(builder, kind, width, body)


gather = dispatch("gather", 9, {silu: partial(_gather, bool(silu)) for silu in (0, 1)})
"""gather(silu, size, wide, taps, rows, w, w_row, first, y, step, y_step): y = first + the sum over k of w[k] rows[k],
then y times its sigmoid if `silu`, for `wide` numbers. All but counts are addresses; rows: a table of them. w_row, and
how far behind the last of the rows and y those of the next call lie, which are fetched: bytes."""
back = dispatch("back", 12, {silu: partial(_back, bool(silu)) for silu in (0, 1)})
"""back(silu, size, wide, taps, rows, w, w_row, first, dy, dz, dw, dfirst, step, dy_step): from the gradient of y that
of what it was before the sigmoid, dz; dw, which lies as w does, and dfirst are added to."""


@bare
def _num_visible(starts, row, t, window):
    """How many earlier nodes of its document a node sees, at most `window`."""
    if starts.shape[1]:
        for k in range(min(window, t + 1)):
            if starts[row, t - k]:
                return k
    return window


@bare
def _input_addresses(table, x, window, zeros, row, t, i, num_visible):
    """Fill `table` with the addresses of the inputs that a node sees, from the earliest to its own."""
    size, taps = zeros.itemsize, len(table)
    for k in range(taps):
        w = taps - 1 - k
        if k > num_visible:
            table[w] = at(zeros)
        elif k <= t:
            table[w] = at(x[0]) + (row * x[1] + (t - k) * x[2] + i) * size
        else:
            table[w] = at(window) + ((row * window.shape[1] + window.shape[1] - k + t) * window.shape[2] + i) * size


@kernel
def short(begin, end, x, weight, bias, window, starts, silu, y):
    """y[t] = bias + sum over k of weight[taps - 1 - k] x[t - k], then y times its sigmoid if `silu`, for the tasks
    begin..end: of each row, spans of nodes; of each span, blocks of channels.

    x: lines (B, T, D). weight: (taps, D), filled up to a multiple of TAPS. window: (B, W, D), what was before: so many
    nodes back are seen, but nothing before a start. starts: (B, T) bool, or (B, 0). y: (B, T, D).
    """
    (_, length, width), taps, size = y.shape, weight.shape[0], size_of(y)
    blocks, spans = (width + WIDE - 1) // WIDE, (length + NODES - 1) // NODES
    zeros, table = np.zeros(WIDE, y.dtype), np.zeros(taps, np.int64)
    for task in range(begin, end):
        row, span, i = task // (spans * blocks), task // blocks % spans, task % blocks * WIDE
        for t in range(span * NODES, min(span * NODES + NODES, length)):
            _input_addresses(table, x, window, zeros, row, t, i, _num_visible(starts, row, t, window.shape[1]))
            gather(silu, size, min(WIDE, width - i), taps, at(table), at(weight) + i * size, width * size,
                   at(bias) + i * size, at(y) + ((row * length + t) * width + i) * size, x[2] * size, width * size)


@kernel
def short_backward(begin, end, x, weight, bias, window, starts, silu, dy, dx, dparameters, dwindow):
    """The gradients of `short`. dparameters: (spans of all rows, taps + 1, D), zeros to begin with: of the weight, then
    of the bias."""
    (_, length, channels), taps, reach, size = dy.shape, weight.shape[0], window.shape[1], size_of(dy)
    blocks, spans = (channels + WIDE - 1) // WIDE, (length + NODES - 1) // NODES
    zeros, table, reaches = np.zeros(WIDE, dy.dtype), np.zeros(taps, np.int64), np.zeros(taps, np.int64)
    dz, discarded = np.zeros((taps, WIDE), dy.dtype), np.zeros((taps + 1, channels), dy.dtype)
    for task in range(begin, end):
        row, span, i = task // (spans * blocks), task // blocks % spans, task % blocks * WIDE
        width, first, last = min(WIDE, channels - i), span * NODES, min(span * NODES + NODES, length)
        parameter_grads = at(dparameters) + (row * spans + span) * (taps + 1) * channels * size
        for t in range(first, last + reach):
            slot, s = t % taps, t - reach  # the last node that sees s is t
            if t < length:
                reaches[slot] = _num_visible(starts, row, t, reach)
                _input_addresses(table, x, window, zeros, row, t, i, reaches[slot])
                # Parameter gradients of nodes after the span belong to another task.
                target = (parameter_grads if t < last else at(discarded)) + i * size
                back(silu, size, width, taps, at(table), at(weight) + i * size, channels * size, at(bias) + i * size,
                     at(dy) + ((row * length + t) * channels + i) * size, at(dz) + slot * WIDE * size, target,
                     target + taps * channels * size, x[2] * size, channels * size)
            if s < first and first > 0:
                continue
            for k in range(taps):
                is_visible = k <= reach and s + k >= 0 and s + k < length and reaches[(s + k) % taps] >= k
                table[taps - 1 - k] = at(dz) + (s + k) % taps * WIDE * size if is_visible else at(zeros)
            target = at(dx) + (row * length + s) * channels * size
            if s < 0:
                target = at(dwindow) + (row * reach + t) * channels * size
            gather(0, size, width, taps, at(table), at(weight) + i * size, channels * size, at(zeros),
                   target + i * size, 0, channels * size)
