"""Gated norms on the CPU, forward and backward, in float32 and float64: one pass over the nodes, one group of features
at a time, which stays in the first-level cache."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from segue.kernels.cpu.loops import kernel, size_of
from segue.kernels.cpu.products import at
from segue.kernels.cpu.vectors import Numbers, Place, dispatch, loop_row

NODES = 64  # of a task
GATE_AFTER, CENTRED, SKIP = 1, 2, 4
"""Flags of a mode: the gate follows the norm instead of preceding it; the mean is subtracted; a skip connection is
added to the norm's output."""


def _silu(gate: Numbers) -> tuple[Numbers, Numbers]:
    """SiLU and its derivative."""
    s = gate.sigmoid()
    return gate * s, s * (gate * (1 - s) + 1)


def _statistics(mode: int, builder: Any, kind: Any, width: Any, eps: Any, y: Any, gate: Any, v: Any,
                ) -> tuple[Numbers, Numbers]:
    """The mean (or zero) and the inverse deviation of a group. v: buffer for the norm's input, if that is not y."""

    def accumulate(place: Place, total: Numbers) -> list[Numbers]:
        value = place.get(y)
        if not mode & GATE_AFTER:
            value = value * _silu(place.get(gate))[0]
            place.put(value, v)
        return [total + (value if mode & CENTRED else value * value)]

    count, epsilon = (Numbers.broadcast(builder, kind, builder.sitofp(x, kind)) if x is width else
                      Numbers.broadcast(builder, kind, builder.load(builder.inttoptr(x, kind.as_pointer())))
                      for x in (width, eps))
    (total,) = loop_row(builder, kind, width, accumulate, 0.0)
    if not mode & CENTRED:
        return total.constant(0), 1 / (total.sum() / count + epsilon).sqrt()
    mean, source = total.sum() / count, y if mode & GATE_AFTER else v

    def squares(place: Place, total: Numbers) -> list[Numbers]:
        centred = place.masked(place.get(source) - mean)
        return [total + centred * centred]

    (total,) = loop_row(builder, kind, width, squares, 0.0)
    return mean, 1 / (total.sum() / count + epsilon).sqrt()


def _forward(mode: int, builder: Any, kind: Any, args: list[Any]) -> None:
    width, eps, y, gate, scale, skip_input, skip, v, out = args
    mean, root = _statistics(mode, builder, kind, width, eps, y, gate, v)

    def body(place: Place) -> list[Numbers]:
        value = (place.get(y if mode & GATE_AFTER else v) - mean) * root * place.get(scale)
        if mode & SKIP:
            value = value + place.get(skip_input) * place.get(skip)
        place.put(value * _silu(place.get(gate))[0] if mode & GATE_AFTER else value, out)
        return []

    loop_row(builder, kind, width, body)


def _backward(mode: int, builder: Any, kind: Any, args: list[Any]) -> None:
    width, eps, y, gate, scale, skip_input, skip, v, dout, dy, dgate, dscale, dskip_input, dskip, dv = args
    mean, root = _statistics(mode, builder, kind, width, eps, y, gate, v)
    source = y if mode & GATE_AFTER else v

    def add(place: Place, value: Numbers, base: Any) -> None:
        place.put(place.get(base) + value, base)

    def accumulate(place: Place, total: Numbers, projection: Numbers) -> list[Numbers]:
        normed, grad, weight = (place.get(source) - mean) * root, place.get(dout), place.get(scale)
        if mode & GATE_AFTER:
            gate_value, slope = _silu(place.get(gate))
            value = normed * weight
            if mode & SKIP:
                value = value + place.get(skip_input) * place.get(skip)
            place.put(grad * value * slope, dgate)
            grad = grad * gate_value
        if mode & SKIP:
            place.put(grad * place.get(skip), dskip_input)
            add(place, grad * place.get(skip_input), dskip)
        add(place, grad * normed, dscale)
        grad = grad * weight
        place.put(grad, dv)
        return [total + grad, projection + grad * normed]

    total, projection = loop_row(builder, kind, width, accumulate, 0.0, 0.0)
    count = Numbers.broadcast(builder, kind, builder.sitofp(width, kind))
    total, projection = total.sum() / count, projection.sum() / count

    def body(place: Place) -> list[Numbers]:
        normed, grad = (place.get(source) - mean) * root, place.get(dv)
        grad = (grad - total if mode & CENTRED else grad) - normed * projection
        grad = grad * root
        if not mode & GATE_AFTER:
            gate_value, slope = _silu(place.get(gate))
            place.put(grad * place.get(y) * slope, dgate)
            grad = grad * gate_value
        place.put(grad, dy)
        return []

    loop_row(builder, kind, width, body)


MODES = (0, GATE_AFTER, GATE_AFTER | CENTRED | SKIP)
"""The modes that are compiled."""
forward, backward = (dispatch(name, arguments, {mode: partial(build, mode) for mode in MODES})
                     for name, build, arguments in (("forward", _forward, 9), ("backward", _backward, 15)))


@kernel
def gated(begin, end, mode, y, gate, scale, skip_input, skip, groups, eps, out):
    """`segue.kernels.norm.gated_norm`, group by group, for the tasks begin..end.

    y, skip_input, out: (N, D). gate: lines (N, D). scale, skip: (D,). skip_input, skip: not looked at, if `mode` has no
    BESIDE.
    """
    width, size = y.shape[1] // groups, size_of(y)
    buffer, epsilon = np.zeros(width, y.dtype), np.full(1, eps, y.dtype)
    for n in range(begin * NODES, min(end * NODES, len(y))):
        for i in range(0, y.shape[1], width):
            at_i = (n * y.shape[1] + i) * size
            forward(mode, size, width, at(epsilon), at(y) + at_i, at(gate[0]) + (n * gate[1] + i) * size,
                    at(scale) + i * size, at(skip_input) + at_i, at(skip) + i * size, at(buffer), at(out) + at_i)


@kernel
def gated_backward(begin, end, mode, y, gate, scale, skip_input, skip, groups, eps, dout, dy, dgate, dskip_input,
                   dparameters):
    """The gradients of `gated`. dparameters: (tasks, 2, D), zeros to begin with, of scale and skip, per task."""
    width, size, total = y.shape[1] // groups, size_of(y), y.shape[1]
    buffer, epsilon, dv = np.zeros(width, y.dtype), np.full(1, eps, y.dtype), np.zeros(width, y.dtype)
    for n in range(begin * NODES, min(end * NODES, len(y))):
        parameter_grads = at(dparameters) + n // NODES * 2 * total * size
        for i in range(0, total, width):
            offset, at_i = i * size, (n * total + i) * size
            backward(mode, size, width, at(epsilon), at(y) + at_i, at(gate[0]) + (n * gate[1] + i) * size,
                     at(scale) + offset, at(skip_input) + at_i, at(skip) + offset, at(buffer), at(dout) + at_i,
                     at(dy) + at_i, at(dgate) + at_i, parameter_grads + offset, at(dskip_input) + at_i,
                     parameter_grads + total * size + offset, at(dv))
