"""The cells of recurrences as vector code: a step of a few rows, forward and backward, each number read and written
once.

A cell is a formula over vectors in registers, for any vector width and for float32 and float64; `segue.kernels.rnn`
has the same in torch. The loops over time are in `segue.kernels.cpu.rnn`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from llvmlite import ir

from segue.kernels.cpu import simd
from segue.kernels.cpu.vectors import SIZES, Numbers, choice, fetch
from segue.kernels.rnn import CELLS

Vectors = list[Numbers]


# A cell forward: inputs x, g = R h + b and states -> what backward needs (gates, then h, c, n as far as there are) and
# the next states. Backward: what was kept, the states before, gradients of the states -> gradients of g, of x and of
# the states before; of h, what does not come through R (0: nothing).


def _elman(x: Vectors, g: Vectors, state: Vectors) -> tuple[Vectors, Vectors]:
    h = (x[0] + g[0]).tanh()
    return [h], [h]


def _elman_back(kept: Vectors, last: Vectors, grad: Vectors) -> tuple[Vectors, Vectors, Any]:
    (h,), (dh,) = kept, grad
    dg = [dh * (1 - h * h)]
    return dg, dg, [0]


def _lstm(x: Vectors, g: Vectors, state: Vectors) -> tuple[Vectors, Vectors]:
    i, f, z, o = (a + b for a, b in zip(x, g))
    i, f, z, o = i.sigmoid(), f.sigmoid(), z.tanh(), o.sigmoid()
    c = f * state[1] + i * z
    h = o * c.tanh()
    return [i, f, z, o, h, c], [h, c]


def _lstm_back(kept: Vectors, last: Vectors, grad: Vectors) -> tuple[Vectors, Vectors, Any]:
    (i, f, z, o, _, c), (dh, dc) = kept, grad
    t = c.tanh()
    dc = dc + dh * o * (1 - t * t)
    dg = [dc * z * i * (1 - i), dc * last[1] * f * (1 - f), dc * i * (1 - z * z), dh * t * o * (1 - o)]
    return dg, dg, [0, dc * f]


def _gru(x: Vectors, g: Vectors, state: Vectors) -> tuple[Vectors, Vectors]:
    r, z = (x[0] + g[0]).sigmoid(), (x[1] + g[1]).sigmoid()
    n = (x[2] + r * g[2]).tanh()
    h = n + z * (state[0] - n)
    return [r, z, g[2], n, h], [h]


def _gru_back(kept: Vectors, last: Vectors, grad: Vectors) -> tuple[Vectors, Vectors, Any]:
    (r, z, s, n, _), (dh,) = kept, grad
    dn = dh * (1 - z) * (1 - n * n)
    dz, dr = dh * (last[0] - n) * z * (1 - z), dn * s * r * (1 - r)
    return [dr, dz, dn * r], [dr, dz, dn], [dh * z]


def _slstm(x: Vectors, g: Vectors, state: Vectors) -> tuple[Vectors, Vectors]:
    i, f, z, o = (a + b for a, b in zip(x, g))
    _, c, n, m = state
    s = f.sigmoid()
    reached = f.least(0) - f.least(0 - f).exp().log1p() + m  # the log of sigmoid(f), plus m
    m = reached.most(i)
    i, f, z, o = (i - m).exp(), (reached - m).exp(), z.tanh(), o.sigmoid()
    c, n = f * c + i * z, f * n + i
    h = o * c / n
    return [i, f, z, o, s, h, c, n], [h, c, n, m]


def _slstm_back(kept: Vectors, last: Vectors, grad: Vectors) -> tuple[Vectors, Vectors, Any]:
    (i, f, z, o, s, _, c, n), (dh, dc, dn, dm) = kept, grad
    share, level = dh * o / n, c / n
    do = dh * level * o * (1 - o)
    dc, dn = dc + share, dn - share * level
    di, df = (dc * z + dn) * i, (dc * last[1] + dn * last[2]) * f
    rest = dm - di - df  # the larger of both log gates was the stabiliser: what it takes from both goes to it
    held = i.below(1, rest, 0)
    di, dm = di + (rest - held), df + held
    dg = [di, dm * (1 - s), dc * i * (1 - z * z), do]
    return dg, dg, [0, dc * f, dn * f, dm]


FORMULAS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "elman": (_elman, _elman_back), "lstm": (_lstm, _lstm_back), "gru": (_gru, _gru_back),
    "slstm": (_slstm, _slstm_back)}


def _over(builder: Any, kind: Any, rows: Any, wide: Any, body: Callable[..., None]) -> None:
    """body(get, put, at, row, column) for each vector of each row. get(address); put(value, address), `past` the cache
    if it is not read soon. at: its place in what lies row behind row, in bytes. row: a number. column: its place in the
    row, in bytes."""
    b, (lanes, size) = builder, SIZES[kind]
    vector, whole, vectors = ir.VectorType(kind, lanes), lanes * size, b.udiv(wide, simd.I64(lanes))

    def place(address: Any) -> Any:
        return b.inttoptr(address, vector.as_pointer())

    def get(address: Any) -> Numbers:
        return Numbers(b, b.load(place(address), align=size))

    def put(value: Numbers, address: Any, past: bool = False) -> None:
        done = b.store(value.value, place(address), align=whole if past else size)
        if past:
            done.set_metadata("nontemporal", b.module.add_metadata([simd.I32(1)]))

    def line(r: Any) -> list[Any]:
        def one(j: Any) -> list[Any]:
            body(get, put, b.mul(b.add(b.mul(r, vectors), j), simd.I64(whole)), r, b.mul(j, simd.I64(whole)))
            return []

        simd.each(b, vectors, [], one)
        return []

    simd.each(b, rows, [], line)


def _forward(cell: str, builder: Any, kind: Any, args: list[Any]) -> None:
    """A step of `rows` rows of `wide` numbers. Gates of g, states and what is kept (0: nothing) lie `across` bytes from
    each other, rows of x and y x_row and y_row, gates of x x_gate. The next step's x and y lie x_step and y_step
    further: so far that the processor does not foresee it."""
    rows, wide, across, g, x, x_row, x_gate, x_step, states, kept, y, y_row, y_step = args
    b, (formula, _), gates, many = builder, FORMULAS[cell], CELLS[cell].gates, CELLS[cell].states

    def body(get: Any, put: Any, at: Any, r: Any, column: Any) -> None:
        def lies(base: Any, k: int) -> Any:
            return b.add(b.add(base, at), b.mul(across, simd.I64(k)))

        given, into = b.add(b.add(x, column), b.mul(r, x_row)), b.add(b.add(y, column), b.mul(r, y_row))
        lines = [b.add(given, b.mul(x_gate, simd.I64(k))) for k in range(gates)]
        for line in lines:
            fetch(b, b.add(line, x_step))
        fetch(b, b.add(into, y_step), write=True)
        parts, after = formula([get(line) for line in lines], [get(lies(g, k)) for k in range(gates)],
                               [get(lies(states, s)) for s in range(many)])
        for s, value in enumerate(after):
            put(value, lies(states, s))
        put(after[0], into)
        with b.if_then(b.icmp_signed("!=", kept, simd.I64(0))):
            for k, value in enumerate(parts):
                put(value, lies(kept, k), past=True)

    _over(b, kind, rows, wide, body)


def _backward(cell: str, builder: Any, kind: Any, args: list[Any]) -> None:
    """The same backward. last: h, c, n before. back: gradients of the states, which become those before. dg: gradients
    of g, added to `total`, too. hs: the h before goes there."""
    rows, wide, across, kept, last, dy, dy_row, dy_step, back, dg, dx, dx_row, dx_gate, dx_step, total, hs = args
    b, (_, formula), gates, many = builder, FORMULAS[cell], CELLS[cell].gates, CELLS[cell].states
    parts = CELLS[cell].parts

    def body(get: Any, put: Any, at: Any, r: Any, column: Any) -> None:
        def lies(base: Any, k: int) -> Any:
            return b.add(b.add(base, at), b.mul(across, simd.I64(k)))

        given, into = b.add(b.add(dy, column), b.mul(r, dy_row)), b.add(b.add(dx, column), b.mul(r, dx_row))
        fetch(b, b.add(given, dy_step))
        for k in range(parts):
            fetch(b, b.sub(lies(kept, k), b.mul(across, simd.I64(parts))))
        grad, before = [get(lies(back, s)) for s in range(many)], [get(lies(last, s)) for s in range(min(many, 3))]
        grad[0] = grad[0] + get(given)
        recurrent, inputs, after = formula([get(lies(kept, k)) for k in range(parts)], before, grad)
        put(before[0], b.add(hs, at))
        for k in range(gates):
            put(recurrent[k], lies(dg, k))
            put(get(lies(total, k)) + recurrent[k], lies(total, k))
            line = b.add(into, b.mul(dx_gate, simd.I64(k)))
            put(inputs[k], line)
            fetch(b, b.add(line, dx_step), write=True)
        for s, value in enumerate(after):
            if isinstance(value, Numbers):
                put(value, lies(back, s))

    _over(b, kind, rows, wide, body)


forward, backward = (choice(name, arguments, {CELLS[cell].code: partial(build, cell) for cell in FORMULAS})
                     for name, build, arguments in (("forward", _forward, 13), ("backward", _backward, 16)))
