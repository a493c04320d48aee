"""Head-wise nonlinear recurrences on the CPU, forward and backward, in float32 and float64: one call runs all steps.

A task is one head of a few rows (a batch tile). Its states, its part of the recurrent weights and its gradient stay in
cache; the products of a step run in a register tile, whose size `segue.kernels.tiles` gives; the gradient of the
weights is accumulated over a span of steps, so that it, too, is a register-blocked product. Values of a step are laid
out gate by gate, then row by row; the elementwise work between the products is in `segue.kernels.cpu.cells`.
"""

from __future__ import annotations

import numpy as np

from segue.kernels.cpu import cells
from segue.kernels.cpu.loops import add, copy, kernel, size_of
from segue.kernels.cpu.products import at, multiply
from segue.kernels.rnn import CELLS, EMPTY

GRU = CELLS["gru"].code
LARGE = 1 << 24  # bytes of a gradient that no cache holds until it is read: to fetch what is overwritten would be vain


@kernel
def forward(begin, end, cell, rows, panels, padded_width, x, w, bias, starts, lengths, state, y, saved, final):
    """All steps of the tasks begin..end, of which each is a head of up to `rows` rows.

    padded_width: W, which is D filled up to whole vectors. x: (B, T, N, G, D), the gates' inputs. w: (N, G W / tile, D,
    tile), packed. bias: (N, G W). starts: (B, T) bool or (B, 0). lengths: (B,). state, final: (S, B, N, D). y: (B, T,
    N, D). saved: (tasks, T, parts, rows W), what the backward pass needs of each step: gates, then the states h, c, n
    as far as the cell has them; or (tasks, 0, parts, rows W), if there will be no backward pass.
    """
    batch, length, heads, gates, d = x.shape
    states, tile, state_stride, size = state.shape[0], w.shape[3], rows * padded_width, size_of(x)
    row_step, step = length * heads * d * size, heads * d * size  # bytes to the next row and step of y
    direct = padded_width == d  # else through buffers of whole vectors
    source, output = np.zeros((gates, state_stride), x.dtype), np.zeros(state_stride, x.dtype)
    source_address, output_address = at(source), at(output)
    x_row, x_gate, x_step, y_row, y_step = padded_width * size, state_stride * size, 0, padded_width * size, 0
    if direct:
        x_row, x_gate, x_step, y_row, y_step = gates * row_step, d * size, gates * step, row_step, step
    g = np.zeros((rows, gates * padded_width), x.dtype)  # R h + b
    current = np.zeros((4, state_stride), x.dtype)  # h, c, n, m
    for task in range(begin, end):
        n, row = task % heads, task // heads * rows
        count = min(rows, batch - row)
        for s in range(states):
            for r in range(count):
                copy(state[s, row + r, n], current[s, r * padded_width : r * padded_width + d])
                if lengths[row + r] == 0:
                    copy(state[s, row + r, n], final[s, row + r, n])
        for t in range(length):
            if starts.shape[1]:
                for r in range(count):
                    if starts[row + r, t]:
                        current[:3, r * padded_width : r * padded_width + padded_width] = 0
                        current[3, r * padded_width : r * padded_width + padded_width] = EMPTY
            for p in range(w.shape[1]):
                offset = p * tile * size
                multiply(size, count, panels, at(bias[n]) + offset, at(w[n, p]), at(current), 0, at(g) + offset, tile,
                         padded_width, 1, 0, d, 1, 0, gates * padded_width)
            saved_address = at(saved[task, t]) if saved.shape[1] else 0
            if direct:
                source_address, output_address = at(x[row, t, n]), at(y[row, t, n])
            else:
                for r in range(count):
                    for k in range(gates):
                        copy(x[row + r, t, n, k], source[k, r * padded_width : r * padded_width + d])
            cells.forward(cell, size, count, padded_width, state_stride * size, at(g), source_address, x_row, x_gate,
                          x_step, at(current), saved_address, output_address, y_row, y_step)
            if not direct:
                for r in range(count):
                    copy(output[r * padded_width : r * padded_width + d], y[row + r, t, n])
            for r in range(count):
                if lengths[row + r] == t + 1:
                    for s in range(states):
                        copy(current[s, r * padded_width : r * padded_width + d], final[s, row + r, n])


@kernel
def backward(begin, end, cell, rows, panels, padded_width, span, w, starts, lengths, state, saved, dy, dfinal, dx,
             dweight, dbias, dstate):
    """The gradients of `forward`. w: (N, W / tile, G D, tile), packed the other way round. dx: as x. dweight: (tiles,
    N, G, D, W), added to, and dbias: (tiles, N, G, D), per batch tile. dstate: as state."""
    batch, length, heads, gates, d = dx.shape
    states, parts, tile, size = state.shape[0], saved.shape[2], w.shape[3], size_of(dx)
    state_stride = rows * padded_width
    row_step, step = length * heads * d * size, heads * d * size
    num_previous = min(states, 3)  # states that a step needs of the one before
    direct = padded_width == d
    past = direct and dx.size * size > LARGE
    dy_buffer, dx_buffer = np.zeros(state_stride, dx.dtype), np.zeros((gates, state_stride), dx.dtype)
    dy_address, dx_address = at(dy_buffer), at(dx_buffer)
    dy_row, dy_step, dx_row, dx_gate, dx_step = padded_width * size, 0, padded_width * size, state_stride * size, 0
    if direct:
        dy_row, dy_step, dx_row, dx_gate, dx_step = row_step, -step, gates * row_step, d * size, -gates * step
    dg, total = np.zeros((span, gates, state_stride), dx.dtype), np.zeros((gates, state_stride), dx.dtype)
    hs = np.zeros(span * state_stride, dx.dtype)  # the states before, row by row
    dstates = np.zeros((4, state_stride), dx.dtype)  # gradients of h, c, n, m
    previous_buffer = np.zeros((3, state_stride), dx.dtype)
    for task in range(begin, end):
        n, block = task % heads, task // heads
        row = block * rows
        count = min(rows, batch - row)
        dstates[:], total[:] = 0, 0
        slot = 0
        for t in range(length - 1, -1, -1):
            is_start = t == 0
            for r in range(count):
                if starts.shape[1]:
                    is_start |= starts[row + r, t]
                if lengths[row + r] == t + 1:
                    for s in range(states):
                        add(dstates[s, r * padded_width :], dfinal[s, row + r, n])
            previous = at(previous_buffer)
            if not is_start:
                previous = at(saved[task, t - 1, parts - num_previous])
            for s in range(num_previous if is_start else 0):  # the initial states, zero at a document's start
                for r in range(count):
                    line = slice(r * padded_width, r * padded_width + d)
                    if starts.shape[1] and starts[row + r, t]:
                        previous_buffer[s, line] = 0
                    elif t == 0:
                        copy(state[s, row + r, n], previous_buffer[s, line])
                    else:
                        copy(saved[task, t - 1, parts - num_previous + s, line], previous_buffer[s, line])
            gate_grads, hidden_address = at(dg[slot]), at(hs) + slot * count * padded_width * size
            if direct:
                dy_address, dx_address = at(dy[row, t, n]), at(dx[row, t, n])
            else:
                for r in range(count):
                    copy(dy[row + r, t, n], dy_buffer[r * padded_width : r * padded_width + d])
            cells.backward(cell, size, count, padded_width, state_stride * size, at(saved[task, t]), previous,
                           dy_address, dy_row, dy_step, at(dstates), gate_grads, dx_address, dx_row, dx_gate, dx_step,
                           past, at(total), hidden_address)
            if not direct:
                for r in range(count):
                    for k in range(gates):
                        copy(dx_buffer[k, r * padded_width : r * padded_width + d], dx[row + r, t, n, k])
            for p in range(w.shape[1]):
                target = at(dstates) + p * tile * size
                multiply(size, count, panels, 0, at(w[n, p]), gate_grads, target if cell == GRU else 0, target, tile,
                         padded_width, 1, state_stride - d, d, gates, padded_width, padded_width)
            if starts.shape[1]:
                for r in range(count):
                    if starts[row + r, t]:
                        dstates[:, r * padded_width : r * padded_width + padded_width] = 0
            slot += 1
            if t == 0 or slot == span:
                left, right = at(dg), at(hs)
                for k in range(gates):
                    for i in range(0, d, rows):
                        target = at(dweight[block, n, k, i])
                        for j in range(0, padded_width * size, tile * size):
                            multiply(size, min(rows, d - i), panels, 0, right + j, left + (k * state_stride + i) * size,
                                     target + j, target + j, padded_width, 1, padded_width,
                                     (gates * rows - count) * padded_width, count, slot, padded_width, padded_width)
                slot = 0
        for r in range(count):
            line = slice(r * padded_width, r * padded_width + d)
            for k in range(gates):
                add(dbias[block, n, k], total[k, line])
            for s in range(states):
                copy(dstates[s, line], dstate[s, row + r, n])
                if lengths[row + r] == 0:
                    add(dstate[s, row + r, n], dfinal[s, row + r, n])
