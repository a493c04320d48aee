"""The short causal convolution on the CPU, forward and backward, in float32 and float64."""

from __future__ import annotations

import numpy as np

from segue.kernels.cpu.loops import bare, copy, exp, kernel

WIDE = 512  # channels of a task: lines this long are read and written at the pace of the memory


@bare
def _add_product(z, x, y):
    for j in range(len(z)):
        z[j] += x[j] * y[j]


@bare
def _gather(x, weight, bias, window, row, t, i, reach, z):
    """z = bias + the sum over a node and `reach` before it."""
    wide, taps = len(z), weight.shape[0]
    copy(bias[i : i + wide], z)
    for k in range(reach + 1):
        w, at = taps - 1 - k, row * x[1] + (t - k) * x[2] + i
        if k <= t:
            _add_product(z, weight[w, i : i + wide], x[0][at : at + wide])
        else:
            _add_product(z, weight[w, i : i + wide], window[row, w + t, i : i + wide])


@bare
def _silu(z, y):
    one = z.dtype.type(1)
    for j in range(len(z)):
        y[j] = z[j] / (one + exp(-z[j]))


@bare
def _silu_back(z, dz):
    one = z.dtype.type(1)
    for j in range(len(z)):
        gate = one / (one + exp(-z[j]))
        dz[j] *= gate * (one + z[j] * (one - gate))


@bare
def _back(dz, x, w, dw, dx):
    for j in range(len(dz)):
        dw[j] += dz[j] * x[j]
        dx[j] += dz[j] * w[j]


@bare
def _short(row, i, x, weight, bias, window, starts, silu, y, z):
    length, wide, taps = y.shape[1], len(z), weight.shape[0]
    reach = taps - 1
    for t in range(length):
        reach = 0 if starts.shape[1] and starts[row, t] else min(reach + 1, taps - 1)
        out = y[row, t, i : i + wide]
        _gather(x, weight, bias, window, row, t, i, reach, z)
        if silu:
            _silu(z, out)
        else:
            copy(z, out)


@bare
def _short_backward(row, i, x, weight, bias, window, starts, silu, dy, dx, dwindow, z, dz, dw, db):
    length, wide, taps = dy.shape[1], len(z), weight.shape[0]
    reach = taps - 1
    for t in range(length):
        reach = 0 if starts.shape[1] and starts[row, t] else min(reach + 1, taps - 1)
        copy(dy[row, t, i : i + wide], dz)
        if silu:
            _gather(x, weight, bias, window, row, t, i, reach, z)
            _silu_back(z, dz)
        for j in range(wide):
            db[j] += dz[j]
        dx[row, t, i : i + wide] = 0
        for k in range(reach + 1):
            w, at = taps - 1 - k, row * x[1] + (t - k) * x[2] + i
            line = weight[w, i : i + wide]
            if k <= t:
                _back(dz, x[0][at : at + wide], line, dw[w], dx[row, t - k, i : i + wide])
            else:
                _back(dz, window[row, w + t, i : i + wide], line, dw[w], dwindow[row, w + t, i : i + wide])


@kernel
def short(begin, end, x, weight, bias, window, starts, silu, y):
    """y[t] = bias + sum over k of weight[taps - 1 - k] x[t - k], then y times its sigmoid if `silu`, for the blocks of
    channels begin..end of all rows.

    x: lines (B, T, D). weight: (taps, D). window: (B, taps - 1, D), what was before. starts: (B, T) bool, or (B, 0):
    nothing before these is seen. y: (B, T, D).
    """
    width = y.shape[2]
    blocks = (width + WIDE - 1) // WIDE
    z = np.zeros(WIDE, y.dtype)
    for task in range(begin, end):
        row, i = task // blocks, task % blocks * WIDE
        _short(row, i, x, weight, bias, window, starts, silu, y, z[: min(WIDE, width - i)])


@kernel
def short_backward(begin, end, x, weight, bias, window, starts, silu, dy, dx, dweight, dbias, dwindow):
    """The gradients of `short`. dweight: (B, taps, D), dbias: (B, D), per row; dwindow: zeros to begin with."""
    width, taps = dy.shape[2], weight.shape[0]
    blocks = (width + WIDE - 1) // WIDE
    buffers = np.zeros((taps + 3, WIDE), dy.dtype)
    for task in range(begin, end):
        row, i = task // blocks, task % blocks * WIDE
        wide = min(WIDE, width - i)
        buffers[:] = 0
        z, dz, db, dw = buffers[0, :wide], buffers[1, :wide], buffers[2, :wide], buffers[3:, :wide]
        _short_backward(row, i, x, weight, bias, window, starts, silu, dy, dx, dwindow, z, dz, dw, db)
        dbias[row, i : i + wide] = db
        dweight[row, :, i : i + wide] = dw
