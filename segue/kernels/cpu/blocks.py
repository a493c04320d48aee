"""Products with block-diagonal matrices on the CPU, together with a few columns of a dense one, forward and backward,
in float32 and float64."""

from __future__ import annotations

from segue.kernels.cpu.loops import kernel
from segue.kernels.cpu.products import FULL, at, blocked, multiply

ROWS = 64  # that lie in the nearest caches together: a span
SPANS = 8  # of a task, going back


@kernel
def forward(begin, end, panels, x, w, dense, y, z):
    """y[r, o, block] = x[r, block] @ w[block, :, o] and z = x @ dense, for spans of ROWS rows.

    panels: vectors of a block. x: lines. w: (G, d, O, d). dense: (G d, M). y: (R, O, G d). z: (R, M).
    """
    (rows, outputs, total), width, size, dense_width = y.shape, w.shape[1], y.itemsize, z.shape[1]
    for span in range(begin, end):
        first = span * ROWS
        count, source = min(ROWS, rows - first), at(x[0]) + first * x[1] * size
        for block in range(len(w)):
            for o in range(outputs):
                weights = at(w) + (block * width * outputs + o) * width * size
                multiply(size, count, panels, 0, weights, source + block * width * size, 0,
                         at(y) + ((first * outputs + o) * total + block * width) * size, outputs * width, x[1], 1, 0,
                         width, 1, 0, outputs * total)
        if dense_width:
            blocked(size, at(z) + first * dense_width * size, source, at(dense), dense_width, x[1], 1, dense_width,
                    count, total, dense_width, False, FULL, 1)


@kernel
def backward(begin, end, panels, x, weights_t, dense_t, dy, dz, dx, dw, ddense):
    """The gradients of `forward`, for groups of SPANS spans. weights_t: (G, O, d, d), w[block, :, o]^T. dense_t:
    dense^T. dw: (groups, G, d, O, d) and ddense: (groups, G d, M), zeros to begin with, per group."""
    (rows, outputs, total), width, size, dense_width = dy.shape, weights_t.shape[3], dy.itemsize, dz.shape[1]
    for group in range(begin, end):
        for first in range(group * SPANS * ROWS, min((group + 1) * SPANS * ROWS, rows), ROWS):
            count, source, grad_x = min(ROWS,
                                        rows - first), at(x[0]) + first * x[1] * size, at(dx) + first * total * size
            if dense_width:
                grad = at(dz) + first * dense_width * size
                blocked(size, grad_x, grad, at(dense_t), total, dense_width, 1, total, count, dense_width, total, False,
                        FULL, 1)
                blocked(size, at(ddense) + group * total * dense_width * size, source, grad, dense_width, 1, x[1],
                        dense_width, total, count, dense_width, True, FULL, 1)
            for block in range(len(weights_t)):
                offset = block * width * size
                grad = at(dy) + first * outputs * total * size + offset
                multiply(size, count, panels, 0, at(weights_t) + outputs * width * offset, grad,
                         grad_x + offset if dense_width else 0, grad_x + offset, width, outputs * total, 1,
                         total - width, width, outputs, total, total)
                for o in range(outputs):
                    target = at(dw) + ((group * len(weights_t) + block) * width * outputs + o) * width * size
                    multiply(size, width, panels, 0, grad + o * total * size, source + offset, target, target,
                             outputs * total, 1, x[1], 0, count, 1, outputs * width, outputs * width)
