"""Products with block-diagonal matrices on the CPU, forward and backward, in float32 and float64."""

from __future__ import annotations

from segue.kernels.cpu.loops import kernel
from segue.kernels.cpu.products import at, multiply

ROWS = 64  # that lie in the nearest caches together: a span
SPANS = 8  # of a task, going back


@kernel
def forward(begin, end, panels, x, w, y):
    """y[r, o, block] = x[r, block] @ w[block, :, o], for spans of ROWS rows.

    panels: vectors of a block. x: lines. w: (G, d, O, d). y: (R, O, G d).
    """
    rows, outputs, width, size = y.shape[0], y.shape[1], w.shape[1], y.itemsize
    for span in range(begin, end):
        first = span * ROWS
        for block in range(len(w)):
            for o in range(outputs):
                weights = at(w) + (block * width * outputs + o) * width * size
                multiply(size, min(ROWS, rows - first), panels, 0, weights,
                         at(x[0]) + (first * x[1] + block * width) * size, 0,
                         at(y) + (first * outputs * y.shape[2] + o * y.shape[2] + block * width) * size,
                         outputs * width, x[1], 1, 0, width, 1, 0, outputs * y.shape[2])


@kernel
def backward(begin, end, panels, x, turned, dy, dx, dw):
    """The gradients of `forward`, for groups of SPANS spans. turned: (G, O, d, d), w[block, :, o]^T. dw: (groups, G, d,
    O, d), zeros to begin with, per group."""
    rows, outputs, total, width, size = dy.shape[0], dy.shape[1], dy.shape[2], turned.shape[3], dy.itemsize
    for group in range(begin, end):
        for first in range(group * SPANS * ROWS, min((group + 1) * SPANS * ROWS, rows), ROWS):
            count = min(ROWS, rows - first)
            for block in range(len(turned)):
                above = at(dy) + (first * outputs * total + block * width) * size
                multiply(size, count, panels, 0, at(turned) + block * outputs * width * width * size, above, 0,
                         at(dx) + (first * total + block * width) * size, width, outputs * total, 1, total - width,
                         width, outputs, 0, total)
                for o in range(outputs):
                    into = at(dw) + (((group * len(turned) + block) * width) * outputs + o) * width * size
                    multiply(size, width, panels, 0, above + o * total * size,
                             at(x[0]) + (first * x[1] + block * width) * size, into, into, outputs * total, 1, x[1], 0,
                             count, 1, outputs * width, outputs * width)
