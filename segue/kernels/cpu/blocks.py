"""Products with block-diagonal matrices on the CPU, together with a few columns of a dense one, forward and backward,
in float32 and float64."""

from __future__ import annotations

from segue.kernels.cpu.loops import kernel
from segue.kernels.cpu.products import WHOLE, at, blocked, multiply

ROWS = 64  # that lie in the nearest caches together: a span
SPANS = 8  # of a task, going back


@kernel
def forward(begin, end, panels, x, w, dense, y, z):
    """y[r, o, block] = x[r, block] @ w[block, :, o] and z = x @ dense, for spans of ROWS rows.

    panels: vectors of a block. x: lines. w: (G, d, O, d). dense: (G d, M). y: (R, O, G d). z: (R, M).
    """
    (rows, outputs, total), width, size, many = y.shape, w.shape[1], y.itemsize, z.shape[1]
    for span in range(begin, end):
        first = span * ROWS
        count, source = min(ROWS, rows - first), at(x[0]) + first * x[1] * size
        for block in range(len(w)):
            for o in range(outputs):
                weights = at(w) + (block * width * outputs + o) * width * size
                multiply(size, count, panels, 0, weights, source + block * width * size, 0,
                         at(y) + ((first * outputs + o) * total + block * width) * size, outputs * width, x[1], 1, 0,
                         width, 1, 0, outputs * total)
        if many:
            blocked(size, at(z) + first * many * size, source, at(dense), many, x[1], 1, many, count, total, many,
                    False, WHOLE, 1)


@kernel
def backward(begin, end, panels, x, turned, across, dy, dz, dx, dw, ddense):
    """The gradients of `forward`, for groups of SPANS spans. turned: (G, O, d, d), w[block, :, o]^T. across: dense^T.
    dw: (groups, G, d, O, d) and ddense: (groups, G d, M), zeros to begin with, per group."""
    (rows, outputs, total), width, size, many = dy.shape, turned.shape[3], dy.itemsize, dz.shape[1]
    for group in range(begin, end):
        for first in range(group * SPANS * ROWS, min((group + 1) * SPANS * ROWS, rows), ROWS):
            count, source, into = min(ROWS, rows - first), at(x[0]) + first * x[1] * size, at(dx) + first * total * size
            if many:
                above = at(dz) + first * many * size
                blocked(size, into, above, at(across), total, many, 1, total, count, many, total, False, WHOLE, 1)
                blocked(size, at(ddense) + group * total * many * size, source, above, many, 1, x[1], many, total,
                        count, many, True, WHOLE, 1)
            for block in range(len(turned)):
                place = block * width * size
                above = at(dy) + first * outputs * total * size + place
                multiply(size, count, panels, 0, at(turned) + outputs * width * place, above,
                         into + place if many else 0, into + place, width, outputs * total, 1, total - width, width,
                         outputs, total, total)
                for o in range(outputs):
                    own = at(dw) + ((group * len(turned) + block) * width * outputs + o) * width * size
                    multiply(size, width, panels, 0, above + o * total * size, source + place, own, own,
                             outputs * total, 1, x[1], 0, count, 1, outputs * width, outputs * width)
