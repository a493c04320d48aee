"""Gated norms on the CPU, forward and backward, in float32 and float64: one pass over the nodes, one group of features
at a time, which stays in the first-level cache."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from segue.kernels.cpu.loops import kernel
from segue.kernels.cpu.products import at
from segue.kernels.cpu.vectors import Numbers, Place, choice, over

NODES = 64  # of a task
LATE, CENTRED, BESIDE = 1, 2, 4
"""What there may be: the gate is behind the norm, not before it; the mean is taken away; something is added to what
comes out of the norm."""


def _silu(gate: Numbers) -> tuple[Numbers, Numbers]:
    """And its derivative."""
    s = gate.sigmoid()
    return gate * s, s * (gate * (1 - s) + 1)


def _statistics(mode: int, builder: Any, kind: Any, wide: Any, eps: Any, y: Any, gate: Any, v: Any,
                ) -> tuple[Numbers, Numbers]:
    """The mean, or zero, and what a group is multiplied with. v: what is to be normed goes there, if that is not y."""

    def opened(place: Place, total: Numbers) -> list[Numbers]:
        value = place.get(y)
        if not mode & LATE:
            value = value * _silu(place.get(gate))[0]
            place.put(value, v)
        return [total + (value if mode & CENTRED else value * value)]

    count, given = (Numbers.spread(builder, kind, builder.sitofp(x, kind)) if x is wide else
                    Numbers.spread(builder, kind, builder.load(builder.inttoptr(x, kind.as_pointer())))
                    for x in (wide, eps))
    (total,) = over(builder, kind, wide, opened, 0.0)
    if not mode & CENTRED:
        return total.of(0), 1 / (total.total() / count + given).sqrt()
    mean, source = total.total() / count, y if mode & LATE else v

    def squares(place: Place, total: Numbers) -> list[Numbers]:
        apart = place.only(place.get(source) - mean)
        return [total + apart * apart]

    (total,) = over(builder, kind, wide, squares, 0.0)
    return mean, 1 / (total.total() / count + given).sqrt()


def _forward(mode: int, builder: Any, kind: Any, args: list[Any]) -> None:
    wide, eps, y, gate, scale, near, skip, v, out = args
    mean, root = _statistics(mode, builder, kind, wide, eps, y, gate, v)

    def body(place: Place) -> list[Numbers]:
        value = (place.get(y if mode & LATE else v) - mean) * root * place.get(scale)
        if mode & BESIDE:
            value = value + place.get(near) * place.get(skip)
        place.put(value * _silu(place.get(gate))[0] if mode & LATE else value, out)
        return []

    over(builder, kind, wide, body)


def _backward(mode: int, builder: Any, kind: Any, args: list[Any]) -> None:
    wide, eps, y, gate, scale, near, skip, v, dout, dy, dgate, dscale, dnear, dskip, dv = args
    mean, root = _statistics(mode, builder, kind, wide, eps, y, gate, v)
    source = y if mode & LATE else v

    def add(place: Place, value: Numbers, base: Any) -> None:
        place.put(place.get(base) + value, base)

    def behind(place: Place, total: Numbers, along: Numbers) -> list[Numbers]:
        normed, grad, by = (place.get(source) - mean) * root, place.get(dout), place.get(scale)
        if mode & LATE:
            opens, slope = _silu(place.get(gate))
            value = normed * by
            if mode & BESIDE:
                value = value + place.get(near) * place.get(skip)
            place.put(grad * value * slope, dgate)
            grad = grad * opens
        if mode & BESIDE:
            place.put(grad * place.get(skip), dnear)
            add(place, grad * place.get(near), dskip)
        add(place, grad * normed, dscale)
        grad = grad * by
        place.put(grad, dv)
        return [total + grad, along + grad * normed]

    total, along = over(builder, kind, wide, behind, 0.0, 0.0)
    count = Numbers.spread(builder, kind, builder.sitofp(wide, kind))
    total, along = total.total() / count, along.total() / count

    def body(place: Place) -> list[Numbers]:
        normed, grad = (place.get(source) - mean) * root, place.get(dv)
        grad = (grad - total if mode & CENTRED else grad) - normed * along
        grad = grad * root
        if not mode & LATE:
            opens, slope = _silu(place.get(gate))
            place.put(grad * place.get(y) * slope, dgate)
            grad = grad * opens
        place.put(grad, dy)
        return []

    over(builder, kind, wide, body)


MODES = (0, LATE, LATE | CENTRED | BESIDE)
"""Those that there is code for."""
forward, backward = (choice(name, arguments, {mode: partial(build, mode) for mode in MODES})
                     for name, build, arguments in (("forward", _forward, 9), ("backward", _backward, 15)))


@kernel
def gated(begin, end, mode, y, gate, scale, near, skip, groups, eps, out):
    """`segue.kernels.norm.gated_norm`, group by group, for the tasks begin..end.

    y, near, out: (N, D). gate: lines (N, D). scale, skip: (D,). near, skip: not looked at, if `mode` has no BESIDE.
    """
    width, size = y.shape[1] // groups, y.itemsize
    opened, least = np.zeros(width, y.dtype), np.full(1, eps, y.dtype)
    for n in range(begin * NODES, min(end * NODES, len(y))):
        for i in range(0, y.shape[1], width):
            at_i = (n * y.shape[1] + i) * size
            forward(mode, size, width, at(least), at(y) + at_i, at(gate[0]) + (n * gate[1] + i) * size,
                    at(scale) + i * size, at(near) + at_i, at(skip) + i * size, at(opened), at(out) + at_i)


@kernel
def gated_backward(begin, end, mode, y, gate, scale, near, skip, groups, eps, dout, dy, dgate, dnear, dparameters):
    """The gradients of `gated`. dparameters: (tasks, 2, D), zeros to begin with, of scale and skip, per task."""
    width, size, total = y.shape[1] // groups, y.itemsize, y.shape[1]
    opened, least, dv = np.zeros(width, y.dtype), np.full(1, eps, y.dtype), np.zeros(width, y.dtype)
    for n in range(begin * NODES, min(end * NODES, len(y))):
        own = at(dparameters) + n // NODES * 2 * total * size
        for i in range(0, total, width):
            place, at_i = i * size, (n * total + i) * size
            backward(mode, size, width, at(least), at(y) + at_i, at(gate[0]) + (n * gate[1] + i) * size,
                     at(scale) + place, at(near) + at_i, at(skip) + place, at(opened), at(dout) + at_i, at(dy) + at_i,
                     at(dgate) + at_i, own + place, at(dnear) + at_i, own + total * size + place, at(dv))
