"""Recurrent cells as vector code: one step of a few rows, forward and backward, which reads and writes each number
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
    h = o * c * n.inverse()
    return [i, f, z, o, s, h, c, n], [h, c, n, m]


def _slstm_back(kept: Vectors, last: Vectors, grad: Vectors) -> tuple[Vectors, Vectors, Any]:
    (i, f, z, o, s, _, c, n), (dh, dc, dn, dm) = kept, grad
    inverse = n.inverse()
    share, level = dh * o * inverse, c * inverse
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


class Rows:
    """A vector of one row, or of each of two rows as one: what is made of them need not wait for each other."""

    def __init__(self, builder: Any, kind: Any, many: int) -> None:
        self.builder, self.many, (self.lanes, self.size) = builder, many, SIZES[kind]
        self.vector = ir.VectorType(kind, self.lanes)

    def _chosen(self, one: Any, other: Any, first: int, count: int) -> Any:
        mask = ir.Constant(ir.VectorType(simd.I32, count), list(range(first, first + count)))
        return self.builder.shuffle_vector(one, other, mask)

    def _places(self, address: Any, row: Any) -> list[Any]:
        """row: bytes from one row to the next."""
        return [address, self.builder.add(address, row)][: self.many]

    def get(self, address: Any, row: Any) -> Numbers:
        b = self.builder
        values = [b.load(b.inttoptr(place, self.vector.as_pointer()), align=self.size)
                  for place in self._places(address, row)]
        return Numbers(b, values[0] if self.many == 1 else self._chosen(values[0], values[1], 0, 2 * self.lanes))

    def put(self, value: Numbers, address: Any, row: Any, past: bool = False) -> None:
        """past: the cache, if it is not read soon."""
        b = self.builder
        for k, place in enumerate(self._places(address, row)):
            part = self._chosen(value.value, value.value, k * self.lanes, self.lanes)
            done = b.store(part, b.inttoptr(place, self.vector.as_pointer()),
                           align=self.lanes * self.size if past else self.size)
            if past:
                done.set_metadata("nontemporal", b.module.add_metadata([simd.I32(1)]))

    def fetch(self, address: Any, row: Any, write: bool = False) -> None:
        for place in self._places(address, row):
            fetch(self.builder, place, write)


def _over(builder: Any, kind: Any, rows: Any, wide: Any, body: Callable[..., None]) -> None:
    """body(two, at, row, column, line) for each vector of each row, two rows at a time as long as there are. at: its
    place in what lies row behind row, `line` bytes each. row: a number. column: its place in the row, in bytes."""
    b, (lanes, size) = builder, SIZES[kind]
    line, whole = b.mul(wide, simd.I64(size)), simd.I64(lanes * size)

    def along(many: int, r: Any) -> list[Any]:
        def one(j: Any) -> list[Any]:
            column = b.mul(j, whole)
            body(Rows(b, kind, many), b.add(b.mul(r, line), column), r, column, line)
            return []

        simd.each(b, b.udiv(wide, simd.I64(lanes)), [], one)
        return []

    pairs = b.lshr(rows, simd.I64(1))
    with b.if_then(b.icmp_signed(">", pairs, simd.I64(0))):
        simd.each(b, pairs, [], lambda pair: along(2, b.shl(pair, simd.I64(1))))
    with b.if_then(b.trunc(rows, ir.IntType(1))):
        along(1, b.sub(rows, simd.I64(1)))


def _forward(cell: str, builder: Any, kind: Any, args: list[Any]) -> None:
    """A step of `rows` rows of `wide` numbers. States and what is kept (0: nothing) lie `across` bytes from each other,
    the gates of g row by row, rows of x and y x_row and y_row apart, gates of x x_gate. The next step's x and y lie
    x_step and y_step further: so far that the processor does not foresee it."""
    rows, wide, across, g, x, x_row, x_gate, x_step, states, kept, y, y_row, y_step = args
    b, (formula, _), gates, many = builder, FORMULAS[cell], CELLS[cell].gates, CELLS[cell].states

    def lie(base: Any, apart: Any, count: int) -> list[Any]:
        return [b.add(base, b.mul(apart, simd.I64(k))) for k in range(count)]

    def body(two: Rows, at: Any, r: Any, column: Any, line: Any) -> None:
        g_row = b.mul(line, simd.I64(gates))
        given, into = b.add(b.add(x, column), b.mul(r, x_row)), b.add(b.add(y, column), b.mul(r, y_row))
        own, before = b.add(b.add(g, column), b.mul(r, g_row)), lie(b.add(states, at), across, many)
        lines = lie(given, x_gate, gates)
        for address in lines:
            two.fetch(b.add(address, x_step), x_row)
        two.fetch(b.add(into, y_step), y_row, write=True)
        parts, after = formula([two.get(address, x_row) for address in lines],
                               [two.get(address, g_row) for address in lie(own, line, gates)],
                               [two.get(address, line) for address in before])
        for value, address in zip(after, before):
            two.put(value, address, line)
        two.put(after[0], into, y_row)
        with b.if_then(b.icmp_signed("!=", kept, simd.I64(0))):
            for value, address in zip(parts, lie(b.add(kept, at), across, len(parts))):
                two.put(value, address, line, past=True)

    _over(b, kind, rows, wide, body)


def _backward(cell: str, builder: Any, kind: Any, args: list[Any]) -> None:
    """The same backward. last: h, c, n before. back: gradients of the states, which become those before. dg: gradients
    of g, added to `total`, too. hs: the h before goes there."""
    rows, wide, across, kept, last, dy, dy_row, dy_step, back, dg, dx, dx_row, dx_gate, dx_step, total, hs = args
    b, (_, formula), gates, many = builder, FORMULAS[cell], CELLS[cell].gates, CELLS[cell].states
    parts = CELLS[cell].parts

    def body(two: Rows, at: Any, r: Any, column: Any, line: Any) -> None:
        def lie(base: Any, count: int) -> list[Any]:
            return [b.add(b.add(base, at), b.mul(across, simd.I64(k))) for k in range(count)]

        given, into = b.add(b.add(dy, column), b.mul(r, dy_row)), b.add(b.add(dx, column), b.mul(r, dx_row))
        two.fetch(b.add(given, dy_step), dy_row)
        for address in lie(kept, parts):
            two.fetch(b.sub(address, b.mul(across, simd.I64(parts))), line)
        grad, before = ([two.get(address, line) for address in lie(base, count)]
                        for base, count in ((back, many), (last, min(many, 3))))
        grad[0] = grad[0] + two.get(given, dy_row)
        recurrent, inputs, after = formula([two.get(address, line) for address in lie(kept, parts)], before, grad)
        two.put(before[0], b.add(hs, at), line)
        for k, (own, sums) in enumerate(zip(lie(dg, gates), lie(total, gates))):
            two.put(recurrent[k], own, line)
            two.put(two.get(sums, line) + recurrent[k], sums, line)
            place = b.add(into, b.mul(dx_gate, simd.I64(k)))
            two.put(inputs[k], place, dx_row)
            two.fetch(b.add(place, dx_step), dx_row, write=True)
        for value, address in zip(after, lie(back, many)):
            if isinstance(value, Numbers):
                two.put(value, address, line)

    _over(b, kind, rows, wide, body)


forward, backward = (choice(name, arguments, {CELLS[cell].code: partial(build, cell) for cell in FORMULAS})
                     for name, build, arguments in (("forward", _forward, 13), ("backward", _backward, 16)))
