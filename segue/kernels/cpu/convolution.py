"""The short causal convolution on the CPU, forward and backward, in float32 and float64: one pass over the data.

A task is WIDE channels of one row, of which SPAN nodes lie in the nearest cache at a time, behind the taps - 1 before.
"""

from __future__ import annotations

import numpy as np

from segue.kernels.cpu import simd
from segue.kernels.cpu.rnn import _at, fast, kernel

WIDE = 64  # channels that are moved together
SPAN = 32  # nodes


@fast
def _move(source, stride, target, target_stride, lines, size):
    """Lines of `size` bytes from one address to another, `stride` bytes from line to line."""
    for k in range(lines):
        simd.copy(target + k * target_stride, source + k * stride, size)


@fast
def _reach(starts, row, start, nodes, back, last):
    """back[k]: how many nodes back each node sees, at most so many as `last` says of the node before, and one."""
    most = len(back) - SPAN
    for k in range(nodes):
        last = 0 if starts.shape[1] and starts[row, start + k] else min(last + 1, most)
        back[k] = last
    return last


@kernel
def short(begin, end, x, window, weight, bias, starts, y):
    """y_t = bias + sum over taps of weight x, as far back as a document goes.

    x: lines. window: (B, taps - 1, D), what was before. weight: (taps, D), the last tap is the node's own. starts:
    (B, T) bool or (B, 0). y: (B, T, D).
    """
    length, width, taps, kind = y.shape[1], y.shape[2], len(weight), y.dtype
    size = y.itemsize
    blocks, before = (width + WIDE - 1) // WIDE, taps - 1
    near, out = np.zeros((before + SPAN, WIDE), kind), np.zeros((SPAN, WIDE), kind)
    w, shift, back = np.zeros((taps, WIDE), kind), np.zeros(WIDE, kind), np.zeros(SPAN + before, np.int64)
    for task in range(begin, end):
        row, first = task // blocks, task % blocks * WIDE
        wide, last = min(WIDE, width - first), before
        line, source = wide * size, x[0] + (row * x[1] + first) * size
        into = _at(y) + (row * length * width + first) * size
        for j in range(wide):
            shift[j] = bias[first + j]
            for tap in range(taps):
                w[tap, j] = weight[tap, first + j]
        _move(_at(window) + (row * before * width + first) * size, width * size, _at(near), WIDE * size, before, line)
        for start in range(0, length, SPAN):
            nodes = min(SPAN, length - start)
            _move(source + start * x[2] * size, x[2] * size, _at(near) + before * WIDE * size, WIDE * size, nodes,
                  line)
            last = _reach(starts, row, start, nodes, back, last)
            for k in range(nodes):
                for j in range(WIDE):
                    out[k, j] = shift[j]
            for tap in range(taps):
                for k in range(nodes):
                    if back[k] >= before - tap:
                        for j in range(WIDE):
                            out[k, j] += w[tap, j] * near[k + tap, j]
            _move(_at(out), WIDE * size, into + start * width * size, width * size, nodes, line)
            for k in range(before):
                for j in range(WIDE):
                    near[k, j] = near[nodes + k, j]


@kernel
def short_backward(begin, end, x, window, weight, starts, dy, dx, dwindow, dweight):
    """The gradients of `short`. dweight: (B, taps + 1, D), per row, the last line that of the bias."""
    length, width, taps, kind = dy.shape[1], dy.shape[2], len(weight), dy.dtype
    size = dy.itemsize
    blocks, before = (width + WIDE - 1) // WIDE, taps - 1
    near, grad, top = (np.zeros((before + SPAN, WIDE), kind), np.zeros((before + SPAN, WIDE), kind),
                       np.zeros((SPAN, WIDE), kind))
    w, dw, back = np.zeros((taps, WIDE), kind), np.zeros((taps + 1, WIDE), kind), np.zeros(SPAN + before, np.int64)
    for task in range(begin, end):
        row, first = task // blocks, task % blocks * WIDE
        wide, last = min(WIDE, width - first), before
        line, source = wide * size, x[0] + (row * x[1] + first) * size
        into, above = _at(dx) + (row * length * width + first) * size, _at(dy) + (row * length * width + first) * size
        dw[:], grad[:] = 0, 0
        for j in range(wide):
            for tap in range(taps):
                w[tap, j] = weight[tap, first + j]
        _move(_at(window) + (row * before * width + first) * size, width * size, _at(near), WIDE * size, before, line)
        for start in range(0, length, SPAN):
            nodes = min(SPAN, length - start)
            _move(source + start * x[2] * size, x[2] * size, _at(near) + before * WIDE * size, WIDE * size, nodes,
                  line)
            last = _reach(starts, row, start, nodes, back, last)
            _move(above + start * width * size, width * size, _at(top), WIDE * size, nodes, line)
            for k in range(nodes):
                for j in range(WIDE):
                    dw[taps, j] += top[k, j]
            for tap in range(taps):
                for k in range(nodes):
                    if back[k] >= before - tap:
                        for j in range(WIDE):
                            grad[k + tap, j] += w[tap, j] * top[k, j]
                            dw[tap, j] += near[k + tap, j] * top[k, j]
            ready = nodes if start + nodes < length else nodes + before  # that no later node sees
            early = max(0, min(ready, before - start))  # that lie in the window
            if early:
                _move(_at(grad), WIDE * size, _at(dwindow) + ((row * before + start) * width + first) * size,
                      width * size, early, line)
            _move(_at(grad) + early * WIDE * size, WIDE * size, into + (start + early - before) * width * size,
                  width * size, ready - early, line)
            for k in range(before):
                for j in range(WIDE):
                    near[k, j], grad[k, j] = near[nodes + k, j], grad[nodes + k, j]
            grad[before:] = 0
        for tap in range(taps + 1):
            for j in range(wide):
                dweight[row, tap, first + j] = dw[tap, j]
