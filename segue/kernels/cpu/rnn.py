"""Head-wise nonlinear recurrences on the CPU, forward and backward, in float32 and float64: one call runs all steps.

A task is one head of a few rows (a batch tile). Its states, its part of the recurrent weights and its gradient stay in
cache; the products of a step run in a register tile, whose size `segue.kernels.tiles` gives; the gradient of the
weights is accumulated over a span of steps, so that it, too, is a register-blocked product. Values of a step are laid
out gate by gate, then row by row; the elementwise work between the products is in `segue.kernels.cpu.cells`.
"""

from __future__ import annotations

import numpy as np

from segue.kernels.cpu import cells
from segue.kernels.cpu.loops import add, copy, kernel
from segue.kernels.cpu.products import at, multiply
from segue.kernels.rnn import CELLS, EMPTY

GRU = CELLS["gru"].code


@kernel
def forward(begin, end, cell, rows, panels, wide, x, w, bias, starts, lengths, state, y, kept, final):
    """All steps of the tasks begin..end, of which each is a head of up to `rows` rows.

    wide: W, which is D filled up to whole vectors. x: (B, T, N, G, D), the gates' inputs. w: (N, G W / tile, D, tile),
    packed. bias: (N, G W). starts: (B, T) bool or (B, 0). lengths: (B,). state, final: (S, B, N, D). y: (B, T, N, D).
    kept: (tasks, T, parts, rows W), what the backward pass needs of each step: gates, then the states h, c, n as far as
    the cell has them; or (tasks, 0, parts, rows W), if there will be no backward pass.
    """
    batch, length, heads, gates, d = x.shape
    states, tile, across, size = state.shape[0], w.shape[3], rows * wide, x.itemsize
    row_step, step = length * heads * d * size, heads * d * size  # bytes to the next row and step of y
    direct = wide == d  # else through buffers of whole vectors
    source, out = np.zeros((gates, across), x.dtype), np.zeros(across, x.dtype)
    g, now = np.zeros((rows, gates * wide), x.dtype), np.zeros((4, across), x.dtype)  # R h + b; h, c, n, m
    for task in range(begin, end):
        n, row = task % heads, task // heads * rows
        count = min(rows, batch - row)
        for s in range(states):
            for r in range(count):
                copy(state[s, row + r, n], now[s, r * wide : r * wide + d])
                if lengths[row + r] == 0:
                    copy(state[s, row + r, n], final[s, row + r, n])
        for t in range(length):
            if starts.shape[1]:
                for r in range(count):
                    if starts[row + r, t]:
                        now[:3, r * wide : r * wide + wide] = 0
                        now[3, r * wide : r * wide + wide] = EMPTY
            for p in range(w.shape[1]):
                to = p * tile * size
                multiply(size, count, panels, at(bias[n]) + to, at(w[n, p]), at(now), 0, at(g) + to, tile, wide, 1, 0,
                         d, 1, 0, gates * wide)
            keep = at(kept[task, t]) if kept.shape[1] else 0
            if direct:
                cells.forward(cell, size, count, wide, across * size, at(g), at(x[row, t, n]), gates * row_step,
                              d * size, gates * step, at(now), keep, at(y[row, t, n]), row_step, step)
            else:
                for r in range(count):
                    for k in range(gates):
                        copy(x[row + r, t, n, k], source[k, r * wide : r * wide + d])
                cells.forward(cell, size, count, wide, across * size, at(g), at(source), wide * size, across * size,
                              0, at(now), keep, at(out), wide * size, 0)
                for r in range(count):
                    copy(out[r * wide : r * wide + d], y[row + r, t, n])
            for r in range(count):
                if lengths[row + r] == t + 1:
                    for s in range(states):
                        copy(now[s, r * wide : r * wide + d], final[s, row + r, n])


@kernel
def backward(begin, end, cell, rows, panels, wide, span, w, starts, lengths, state, kept, dy, dfinal, dx, dweight,
             dbias, dstate):
    """The gradients of `forward`. w: (N, W / tile, G D, tile), packed the other way round. dx: as x. dweight: (tiles,
    N, G, D, W), added to, and dbias: (tiles, N, G, D), per batch tile. dstate: as state."""
    batch, length, heads, gates, d = dx.shape
    states, parts, tile, across, size = state.shape[0], kept.shape[2], w.shape[3], rows * wide, dx.itemsize
    row_step, step = length * heads * d * size, heads * d * size
    inner = min(states, 3)  # states that a step needs of the one before
    direct = wide == d
    into, out = np.zeros(across, dx.dtype), np.zeros((gates, across), dx.dtype)
    dg, total = np.zeros((span, gates, across), dx.dtype), np.zeros((gates, across), dx.dtype)
    hs = np.zeros(span * across, dx.dtype)  # the states before, row by row
    back, now = np.zeros((4, across), dx.dtype), np.zeros((3, across), dx.dtype)  # gradients of h, c, n, m
    for task in range(begin, end):
        n, block = task % heads, task // heads
        row = block * rows
        count = min(rows, batch - row)
        back[:], total[:] = 0, 0
        slot = 0
        for t in range(length - 1, -1, -1):
            fresh = t == 0
            for r in range(count):
                if starts.shape[1]:
                    fresh |= starts[row + r, t]
                if lengths[row + r] == t + 1:
                    for s in range(states):
                        add(back[s, r * wide :], dfinal[s, row + r, n])
            last = at(now)
            if not fresh:
                last = at(kept[task, t - 1, parts - inner])
            for s in range(inner if fresh else 0):  # what was before, where a document starts nothing
                for r in range(count):
                    line = slice(r * wide, r * wide + d)
                    if starts.shape[1] and starts[row + r, t]:
                        now[s, line] = 0
                    elif t == 0:
                        copy(state[s, row + r, n], now[s, line])
                    else:
                        copy(kept[task, t - 1, parts - inner + s, line], now[s, line])
            to, before = at(dg[slot]), at(hs) + slot * count * wide * size
            if direct:
                cells.backward(cell, size, count, wide, across * size, at(kept[task, t]), last, at(dy[row, t, n]),
                               row_step, -step, at(back), to, at(dx[row, t, n]), gates * row_step, d * size,
                               -gates * step, at(total), before)
            else:
                for r in range(count):
                    copy(dy[row + r, t, n], into[r * wide : r * wide + d])
                cells.backward(cell, size, count, wide, across * size, at(kept[task, t]), last, at(into), wide * size,
                               0, at(back), to, at(out), wide * size, across * size, 0, at(total), before)
                for r in range(count):
                    for k in range(gates):
                        copy(out[k, r * wide : r * wide + d], dx[row + r, t, n, k])
            for p in range(w.shape[1]):
                target = at(back) + p * tile * size
                multiply(size, count, panels, 0, at(w[n, p]), to, target if cell == GRU else 0, target, tile,
                         wide, 1, across - d, d, gates, wide, wide)
            if starts.shape[1]:
                for r in range(count):
                    if starts[row + r, t]:
                        back[:, r * wide : r * wide + wide] = 0
            slot += 1
            if t == 0 or slot == span:
                left, right = at(dg), at(hs)
                for k in range(gates):
                    for i in range(0, d, rows):
                        target = at(dweight[block, n, k, i])
                        for j in range(0, wide * size, tile * size):
                            multiply(size, min(rows, d - i), panels, 0, right + j, left + (k * across + i) * size,
                                     target + j, target + j, wide, 1, wide, (gates * rows - count) * wide, count, slot,
                                     wide, wide)
                slot = 0
        for r in range(count):
            line = slice(r * wide, r * wide + d)
            for k in range(gates):
                add(dbias[block, n, k], total[k, line])
            for s in range(states):
                copy(back[s, line], dstate[s, row + r, n])
                if lengths[row + r] == 0:
                    add(dstate[s, row + r, n], dfinal[s, row + r, n])
