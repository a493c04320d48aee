"""Products with block-diagonal matrices on the CPU, together with a few columns of a dense one, forward and backward,
in float32 and float64."""

from __future__ import annotations

from segue.kernels.cpu.loops import kernel
from segue.kernels.cpu.products import FULL, at, blocked, multiply
from segue.kernels.cpu.simd import fetch_lines

ROWS = 32  # that lie in the nearest cache together, though they are a power of two apart: a span
SPANS = 16  # of a task, going back


@kernel
def forward(begin, end, panels, x, w, dense, outputs, z):
    """y[o][r, block] = x[r, block] @ w[block, :, o] and z = x @ dense, for spans of ROWS rows.

    panels: vectors of a block. x: lines. w: (G, d, O, d). dense: (G d, M). outputs: (O,), the addresses of y, each (R,
    G d). z: (R, M).
    """
    width, size, dense_width, rows, total = w.shape[1], w.itemsize, z.shape[1], len(z), len(w) * w.shape[1]
    for span in range(begin, end):
        first = span * ROWS
        count, source = min(ROWS, rows - first), at(x[0]) + first * x[1] * size
        for block in range(len(w)):
            # Columns of rows: the processor sees no order in them, and would wait for the memory.
            fetch_lines(source + (ROWS * x[1] + block * width) * size, x[1] * size, ROWS)
            for o in range(len(outputs)):
                weights = at(w) + (block * width * len(outputs) + o) * width * size
                multiply(size, count, panels, 0, weights, source + block * width * size, 0,
                         outputs[o] + (first * total + block * width) * size, len(outputs) * width, x[1], 1, 0, width,
                         1, 0, total)
        if dense_width:
            blocked(size, at(z) + first * dense_width * size, source, at(dense), dense_width, x[1], 1, dense_width,
                    count, total, dense_width, False, FULL, 1)


@kernel
def backward(begin, end, panels, x, weights_t, dense_t, doutputs, dz, dx, dw, ddense):
    """The gradients of `forward`, for groups of SPANS spans. weights_t: (G, O, d, d), w[block, :, o]^T. dense_t:
    dense^T. doutputs: (O,), addresses. dw: (groups, G, d, O, d) and ddense: (groups, G d, M), zeros to begin with, per
    group."""
    (rows, total), (_, outputs, width, _), size, dense_width = dx.shape, weights_t.shape, dx.itemsize, dz.shape[1]
    for group in range(begin, end):
        for first in range(group * SPANS * ROWS, min((group + 1) * SPANS * ROWS, rows), ROWS):
            count, source = min(ROWS, rows - first), at(x[0]) + first * x[1] * size
            grad_x = at(dx) + first * total * size
            if dense_width:
                grad = at(dz) + first * dense_width * size
                blocked(size, grad_x, grad, at(dense_t), total, dense_width, 1, total, count, dense_width, total, False,
                        FULL, 1)
                blocked(size, at(ddense) + group * total * dense_width * size, source, grad, dense_width, 1, x[1],
                        dense_width, total, count, dense_width, True, FULL, 1)
            for block in range(len(weights_t)):
                offset = block * width * size
                fetch_lines(source + ROWS * x[1] * size + offset, x[1] * size, ROWS)
                for o in range(outputs):
                    grad = doutputs[o] + first * total * size + offset
                    fetch_lines(grad + ROWS * total * size, total * size, ROWS)
                    multiply(size, count, panels, 0, at(weights_t) + (block * outputs + o) * width * width * size, grad,
                             grad_x + offset if dense_width or o else 0, grad_x + offset, width, total, 1, 0, width, 1,
                             total, total)
                    target = at(dw) + ((group * len(weights_t) + block) * width * outputs + o) * width * size
                    multiply(size, width, panels, 0, grad, source + offset, target, target, total, 1, x[1], 0, count, 1,
                             outputs * width, outputs * width)
