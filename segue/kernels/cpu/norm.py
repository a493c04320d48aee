"""The gated root-mean-square norm on the CPU, forward and backward, in float32 and float64: one pass over the nodes."""

from __future__ import annotations

import math

import numpy as np

from segue.kernels.cpu.loops import bare, exp, kernel

NODES = 64  # of a task


@bare
def _gated(y, gate, opened):
    """opened = y silu(gate); returns the sum of its squares."""
    one, total = y.dtype.type(1), y.dtype.type(0)
    for j in range(len(y)):
        v = y[j] * gate[j] / (one + exp(-gate[j]))
        opened[j] = v
        total += v * v
    return total


@bare
def _scale(opened, scale, root, out):
    for j in range(len(opened)):
        out[j] = opened[j] * root * scale[j]


@bare
def _toward_root(opened, scale, dout, root, dscale):
    """The gradient of the scale is added; returns that of the logarithm of `root`."""
    total = root * 0
    for j in range(len(opened)):
        v = dout[j] * opened[j] * root
        dscale[j] += v
        total += v * scale[j]
    return total


@bare
def _back(y, gate, opened, scale, dout, root, mean, dy, dgate):
    one = y.dtype.type(1)
    for j in range(len(y)):
        s = one / (one + exp(-gate[j]))
        d = root * (dout[j] * scale[j] - mean * root * opened[j])
        dy[j] = d * gate[j] * s
        dgate[j] = d * y[j] * s * (one + gate[j] * (one - s))


@kernel
def gated(begin, end, y, gate, scale, groups, eps, out):
    """out = scale v / sqrt(mean of v^2 + eps), v = y silu(gate), group by group, for the tasks begin..end.

    y, out: (N, D). gate: lines (N, D). scale: (D,).
    """
    width = y.shape[1] // groups
    opened = np.zeros(width, y.dtype)
    for n in range(begin * NODES, min(end * NODES, len(y))):
        for i in range(0, y.shape[1], width):
            at = n * gate[1] + i
            total = _gated(y[n, i : i + width], gate[0][at : at + width], opened)
            root = y.dtype.type(1 / math.sqrt(total / width + eps))
            _scale(opened, scale[i : i + width], root, out[n, i : i + width])


@kernel
def gated_backward(begin, end, y, gate, scale, groups, eps, dout, dy, dgate, dscale):
    """The gradients of `gated`. dscale: (tasks, D), zeros to begin with, per task."""
    width = y.shape[1] // groups
    opened = np.zeros(width, y.dtype)
    for n in range(begin * NODES, min(end * NODES, len(y))):
        for i in range(0, y.shape[1], width):
            here, at = slice(i, i + width), n * gate[1] + i
            opens = gate[0][at : at + width]
            total = _gated(y[n, here], opens, opened)
            root = y.dtype.type(1 / math.sqrt(total / width + eps))
            total = _toward_root(opened, scale[here], dout[n, here], root, dscale[n // NODES, here])
            mean = y.dtype.type(total / width)
            _back(y[n, here], opens, opened, scale[here], dout[n, here], root, mean, dy[n, here], dgate[n, here])
