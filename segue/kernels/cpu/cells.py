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
from segue.kernels.cpu.vectors import SIZES, Numbers, dispatch, prefetch
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
    log_decay = f.minimum(0) - f.minimum(0 - f).exp().log1p() + m  # the log of sigmoid(f), plus m
    m = log_decay.maximum(i)
    i, f, z, o = (i - m).exp(), (log_decay - m).exp(), z.tanh(), o.sigmoid()
    c, n = f * c + i * z, f * n + i
    h = o * c * n.inverse()
    return [i, f, z, o, s, h, c, n], [h, c, n, m]


def _slstm_back(kept: Vectors, last: Vectors, grad: Vectors) -> tuple[Vectors, Vectors, Any]:
    (i, f, z, o, s, _, c, n), (dh, dc, dn, dm) = kept, grad
    inverse = n.inverse()
    dcell, level = dh * o * inverse, c * inverse
    do = dh * level * o * (1 - o)
    dc, dn = dc + dcell, dn - dcell * level
    di, df = (dc * z + dn) * i, (dc * last[1] + dn * last[2]) * f
    rest = dm - di - df  # the larger of both log gates was the stabiliser: what it takes from both goes to it
    held = i.where_less(1, rest, 0)
    di, dm = di + (rest - held), df + held
    dg = [di, dm * (1 - s), dc * i * (1 - z * z), do]
    return dg, dg, [0, dc * f, dn * f, dm]


FORMULAS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "elman": (_elman, _elman_back), "lstm": (_lstm, _lstm_back), "gru": (_gru, _gru_back),
    "slstm": (_slstm, _slstm_back)}


class Rows:
    """A vector of one row, or of two rows joined into one, so that the operations on both overlap."""

    def __init__(self, builder: Any, kind: Any, num_rows: int) -> None:
        self.builder, self.num_rows, (self.lanes, self.size) = builder, num_rows, SIZES[kind]
        self.vector = ir.VectorType(kind, self.lanes)

    def _shuffle(self, left: Any, right: Any, first: int, count: int) -> Any:
        mask = ir.Constant(ir.VectorType(simd.I32, count), list(range(first, first + count)))
        return self.builder.shuffle_vector(left, right, mask)

    def _addresses(self, address: Any, row: Any) -> list[Any]:
        """row: bytes from one row to the next."""
        return [address, self.builder.add(address, row)][: self.num_rows]

    def get(self, address: Any, row: Any) -> Numbers:
        b = self.builder
        values = [b.load(b.inttoptr(pointer, self.vector.as_pointer()), align=self.size)
                  for pointer in self._addresses(address, row)]
        return Numbers(b, values[0] if self.num_rows == 1 else self._shuffle(values[0], values[1], 0, 2 * self.lanes))

    def put(self, value: Numbers, address: Any, row: Any, nontemporal: bool = False) -> None:
        """nontemporal: past the cache, for what is not read soon."""
        b = self.builder
        for k, pointer in enumerate(self._addresses(address, row)):
            row_value = self._shuffle(value.value, value.value, k * self.lanes, self.lanes)
            instruction = b.store(row_value, b.inttoptr(pointer, self.vector.as_pointer()),
                                  align=self.lanes * self.size if nontemporal else self.size)
            if nontemporal:
                instruction.set_metadata("nontemporal", b.module.add_metadata([simd.I32(1)]))

    def prefetch(self, address: Any, row: Any, write: bool = False) -> None:
        for pointer in self._addresses(address, row):
            prefetch(self.builder, pointer, write)


def _loop_rows(builder: Any, kind: Any, rows: Any, wide: Any, body: Callable[..., None]) -> None:
    """body(two, at, row, column, line) for each vector of each row, two rows at a time as long as there are. at: its
    place in what lies row behind row, `row_bytes` bytes each. row: a number. column: its place in the row, in bytes."""
    b, (lanes, size) = builder, SIZES[kind]
    row_bytes, vector_bytes = b.mul(wide, simd.I64(size)), simd.I64(lanes * size)

    def loop_vectors(num_rows: int, r: Any) -> list[Any]:
        def run_vector(j: Any) -> list[Any]:
            column = b.mul(j, vector_bytes)
            body(Rows(b, kind, num_rows), b.add(b.mul(r, row_bytes), column), r, column, row_bytes)
            return []

        simd.emit_loop(b, b.udiv(wide, simd.I64(lanes)), [], run_vector)
        return []

    pairs = b.lshr(rows, simd.I64(1))
    with b.if_then(b.icmp_signed(">", pairs, simd.I64(0))):
        simd.emit_loop(b, pairs, [], lambda pair: loop_vectors(2, b.shl(pair, simd.I64(1))))
    with b.if_then(b.trunc(rows, ir.IntType(1))):
        loop_vectors(1, b.sub(rows, simd.I64(1)))


def _forward(cell: str, builder: Any, kind: Any, args: list[Any]) -> None:
    """A step of `num_rows` rows of `wide` numbers. States and what is kept (0: nothing) lie `state_stride` bytes from
    each other, the gates of g row by row, rows of x and y x_row and y_row apart, gates of x x_gate. The next step's x
    and y lie x_step and y_step further: so far that the processor does not foresee it."""
    num_rows, wide, state_stride, g, x, x_row, x_gate, x_step, states, saved, y, y_row, y_step = args
    b, (formula, _), gates, num_states = builder, FORMULAS[cell], CELLS[cell].gates, CELLS[cell].states

    def addresses(base: Any, stride: Any, count: int) -> list[Any]:
        return [b.add(base, b.mul(stride, simd.I64(k))) for k in range(count)]

    def body(rows: Rows, at: Any, r: Any, column: Any, line: Any) -> None:
        g_row = b.mul(line, simd.I64(gates))
        inputs, output = b.add(b.add(x, column), b.mul(r, x_row)), b.add(b.add(y, column), b.mul(r, y_row))
        gates_row = b.add(b.add(g, column), b.mul(r, g_row))
        previous = addresses(b.add(states, at), state_stride, num_states)
        gate_inputs = addresses(inputs, x_gate, gates)
        for address in gate_inputs:
            rows.prefetch(b.add(address, x_step), x_row)
        rows.prefetch(b.add(output, y_step), y_row, write=True)
        saved_values, new_states = formula([rows.get(address, x_row) for address in gate_inputs],
                                           [rows.get(address, g_row) for address in addresses(gates_row, line, gates)],
                                           [rows.get(address, line) for address in previous])
        for value, address in zip(new_states, previous):
            rows.put(value, address, line)
        rows.put(new_states[0], output, y_row)
        with b.if_then(b.icmp_signed("!=", saved, simd.I64(0))):
            for value, address in zip(saved_values, addresses(b.add(saved, at), state_stride, len(saved_values))):
                rows.put(value, address, line, nontemporal=True)

    _loop_rows(b, kind, num_rows, wide, body)


def _backward(cell: str, builder: Any, kind: Any, args: list[Any]) -> None:
    """The same backward. last: h, c, n before. grad_states: gradients of the states, which become those before. dg:
    gradients of g, added to `total`, too. hs: the h before goes there. past: whether dx, which then begins at a whole
    vector, goes past the cache."""
    (num_rows, wide, state_stride, saved, last, dy, dy_row, dy_step, grad_states, dg, dx, dx_row, dx_gate, dx_step,
     past, total, hs) = args
    b, (_, formula), gates, num_states = builder, FORMULAS[cell], CELLS[cell].gates, CELLS[cell].states
    num_saved = CELLS[cell].parts

    def body(rows: Rows, at: Any, r: Any, column: Any, line: Any) -> None:
        def addresses(base: Any, count: int) -> list[Any]:
            return [b.add(b.add(base, at), b.mul(state_stride, simd.I64(k))) for k in range(count)]

        grad_input, grad_output = b.add(b.add(dy, column), b.mul(r, dy_row)), b.add(b.add(dx, column), b.mul(r, dx_row))
        rows.prefetch(b.add(grad_input, dy_step), dy_row)
        for address in addresses(saved, num_saved):
            rows.prefetch(b.sub(address, b.mul(state_stride, simd.I64(num_saved))), line)
        grad, previous = ([rows.get(address, line) for address in addresses(base, count)]
                          for base, count in ((grad_states, num_states), (last, min(num_states, 3))))
        grad[0] = grad[0] + rows.get(grad_input, dy_row)
        saved_values = [rows.get(address, line) for address in addresses(saved, num_saved)]
        recurrent, inputs, previous_grads = formula(saved_values, previous, grad)
        rows.put(previous[0], b.add(hs, at), line)
        for k, (target, total_address) in enumerate(zip(addresses(dg, gates), addresses(total, gates))):
            rows.put(recurrent[k], target, line)
            rows.put(rows.get(total_address, line) + recurrent[k], total_address, line)
            gate_target = b.add(grad_output, b.mul(dx_gate, simd.I64(k)))
            with b.if_else(b.icmp_signed("!=", past, simd.I64(0))) as (past_cache, into_cache):
                with past_cache:
                    rows.put(inputs[k], gate_target, dx_row, nontemporal=True)
                with into_cache:
                    rows.put(inputs[k], gate_target, dx_row)
                    rows.prefetch(b.add(gate_target, dx_step), dx_row, write=True)
        for value, address in zip(previous_grads, addresses(grad_states, num_states)):
            if isinstance(value, Numbers):
                rows.put(value, address, line)

    _loop_rows(b, kind, num_rows, wide, body)


forward, backward = (dispatch(name, arguments, {CELLS[cell].code: partial(build, cell) for cell in FORMULAS})
                     for name, build, arguments in (("forward", _forward, 13), ("backward", _backward, 17)))
