"""The short causal convolution on the CPU, forward and backward, in float32 and float64: one pass over the data.

A task is WIDE channels of one row.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from segue.kernels.cpu.chunks import _numbers
from segue.kernels.cpu.rnn import fast, kernel

WIDE = 128  # channels that are moved together


@njit(inline="always")
def _line(x, row, t, first, wide, like):
    """`wide` channels of a node; x: (address, numbers from row to row, from node to node, 0)."""
    return _numbers(like, x[0] + (row * x[1] + t * x[2] + first) * like.itemsize, wide)


@fast
def _gather(x, y, by):
    for c in range(len(y)):
        y[c] += x[c] * by[c]


@kernel
def short(begin, end, x, window, weight, bias, starts, y):
    """y_t = bias + sum over taps of weight x, as far back as a document goes.

    x: lines. window: (B, taps - 1, D), what was before. weight: (taps, D), the last tap is the node's own. starts:
    (B, T) bool or (B, 0). y: (B, T, D).
    """
    (length, width), taps = y.shape[1:], len(weight)
    blocks = (width + WIDE - 1) // WIDE
    for task in range(begin, end):
        row, first = task // blocks, task % blocks * WIDE
        wide = min(WIDE, width - first)
        here, back = slice(first, first + wide), taps - 1
        for t in range(length):
            back = 0 if starts.shape[1] and starts[row, t] else min(back + 1, taps - 1) if t else back
            into = y[row, t, here]
            into[:] = bias[here]
            for behind in range(back + 1):
                at = t - behind
                seen = _line(x, row, at, first, wide, bias) if at >= 0 else window[row, taps - 1 + at, here]
                _gather(seen, into, weight[taps - 1 - behind, here])


@kernel
def short_backward(begin, end, x, window, weight, starts, dy, dx, dwindow, dweight):
    """The gradients of `short`. dweight: (B, taps + 1, D), per row, the last line that of the bias; it, dx and dwindow
    zeros to begin with."""
    (length, width), taps = dy.shape[1:], len(weight)
    blocks = (width + WIDE - 1) // WIDE
    for task in range(begin, end):
        row, first = task // blocks, task % blocks * WIDE
        wide = min(WIDE, width - first)
        here, back = slice(first, first + wide), taps - 1
        total = np.zeros((taps + 1, wide), dy.dtype)
        for t in range(length):
            back = 0 if starts.shape[1] and starts[row, t] else min(back + 1, taps - 1) if t else back
            grad = dy[row, t, here]
            for behind in range(back + 1):
                at, tap = t - behind, taps - 1 - behind
                if at >= 0:
                    _gather(grad, dx[row, at, here], weight[tap, here])
                    _gather(grad, total[tap], _line(x, row, at, first, wide, weight))
                else:
                    _gather(grad, dwindow[row, taps - 1 + at, here], weight[tap, here])
                    _gather(grad, total[tap], window[row, taps - 1 + at, here])
            for c in range(wide):
                total[taps, c] += grad[c]
        dweight[row, :, here] = total
