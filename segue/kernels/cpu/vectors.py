"""Vector code for any vector width, in float32 and float64: arithmetic that emits LLVM IR, and the loop over a row of
numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from segue.kernels.cpu import simd

SIZES = {simd.F32: (simd.LANES, 4), ir.DoubleType(): (simd.LANES // 2, 8)}
"""Numbers in a vector, and bytes of a number."""


def _broadcast(builder: Any, vector: Any, value: Any) -> Any:
    one = builder.insert_element(ir.Constant(vector, ir.Undefined), value, simd.I32(0))
    return builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(simd.I32, vector.count), [0] * vector.count))


class Numbers:
    """A vector in a register: arithmetic writes IR, so that a cell reads as its formulas do."""

    def __init__(self, builder: Any, value: Any) -> None:
        self.builder, self.value, self.type = builder, value, value.type

    @staticmethod
    def broadcast(builder: Any, kind: Any, value: Any) -> Numbers:
        """A number in every place."""
        return Numbers(builder, _broadcast(builder, ir.VectorType(kind, SIZES[kind][0]), value))

    def constant(self, value: Any) -> Any:
        return value if isinstance(value, Numbers) else Numbers(
            self.builder, ir.Constant(self.type, [float(value)] * self.type.count))

    def _do(self, name: str, num_bytes: Any, right: Any) -> Numbers:
        value = getattr(self.builder, name)(self.constant(num_bytes).value, self.constant(right).value,
                                            flags=("contract", "arcp"))
        return Numbers(self.builder, value)

    def __add__(self, other: Any) -> Numbers:
        return self._do("fadd", self, other)

    def __sub__(self, other: Any) -> Numbers:
        return self._do("fsub", self, other)

    def __rsub__(self, other: Any) -> Numbers:
        return self._do("fsub", other, self)

    def __mul__(self, other: Any) -> Numbers:
        return self._do("fmul", self, other)

    def __truediv__(self, other: Any) -> Numbers:
        return self._do("fdiv", self, other)

    def __rtruediv__(self, other: Any) -> Numbers:
        return self._do("fdiv", other, self)

    def _library(self, name: str) -> Numbers:
        return Numbers(self.builder, simd.call(self.builder, f"llvm.{name}.v{self.type.count}f64", self.type,
                                               self.value))

    def exp(self) -> Numbers:
        if self.type.element == simd.F32:
            return Numbers(self.builder, simd.emit_exp(self.builder, [self.value]))
        return self._library("exp")

    def first(self, num_bytes: Any) -> Numbers:
        """The numbers in the first `num_bytes` bytes, and zeros for the rest."""
        b, lanes, size = self.builder, self.type.count, SIZES[self.type.element][1]
        kind = ir.VectorType(simd.I64, lanes)
        mask = b.icmp_signed("<", ir.Constant(kind, [lane * size for lane in range(lanes)]),
                             _broadcast(b, kind, num_bytes))
        return Numbers(b, b.select(mask, self.value, self.constant(0).value))

    def sqrt(self) -> Numbers:
        name = f"llvm.sqrt.v{self.type.count}f{8 * SIZES[self.type.element][1]}"
        return Numbers(self.builder, simd.call(self.builder, name, self.type, self.value))

    def sum(self) -> Numbers:
        """The sum of the numbers, in every place."""
        return Numbers(self.builder, simd.emit_sum(self.builder, self.value))

    def log1p(self) -> Numbers:
        """log(1 + x) for 0 <= x <= 1."""
        if self.type.element != simd.F32:
            return (self + 1)._library("log")
        s = self * (self + 2).inverse()  # 2 atanh(s), s at most 1/3: to about a unit in the last place by eight terms
        q, p = s * s, self.constant(1 / 15)
        for odd in (13, 11, 9, 7, 5, 3, 1):
            p = p * q + 1 / odd
        return (s + s) * p

    def inverse(self) -> Numbers:
        """1 / x of finite numbers: in float32 a refined estimate, to about a unit in the last place, where the
        processor has one, since a division takes several times as long."""
        value = self.builder.fdiv(self.constant(1).value, self.value, flags=("arcp", "ninf"))
        return Numbers(self.builder, value)

    def sigmoid(self) -> Numbers:
        return ((0 - self).exp() + 1).inverse()

    def tanh(self) -> Numbers:
        return ((self * -2).exp() + 1).inverse() * 2 - 1

    def where_less(self, limit: Any, yes: Any, no: Any) -> Numbers:
        """yes where this is less than the limit, else no."""
        test = self.builder.fcmp_ordered("<", self.value, self.constant(limit).value)
        return Numbers(self.builder, self.builder.select(test, self.constant(yes).value, self.constant(no).value))

    def minimum(self, other: Any) -> Numbers:
        return self.constant(other).where_less(self, other, self)

    def maximum(self, other: Any) -> Numbers:
        return self.where_less(other, other, self)


def prefetch(builder: Any, address: Any, write: bool = False) -> None:
    """Ask for the line of memory at an address, to read or to write it."""
    simd.call(builder, "llvm.prefetch.p0", ir.VoidType(), builder.inttoptr(address, simd.I8.as_pointer()),
              simd.I32(int(write)), simd.I32(3), simd.I32(1))


class Place:
    """Where a loop over a row stands: at a vector that lies `at` bytes behind the beginning, or at what is left of one.

    remaining: bytes of that, None: a whole vector.
    """

    def __init__(self, builder: Any, kind: Any, at: Any, remaining: Any = None) -> None:
        lanes, self.size = SIZES[kind]
        self.builder, self.at, self.remaining, self.vector = builder, at, remaining, ir.VectorType(kind, lanes)
        self.zeros = ir.Constant(self.vector, [0.0] * lanes)

    def get(self, base: Any) -> Numbers:
        """What the row that begins at an address has here, zeros where it has nothing."""
        b, address = self.builder, self.builder.add(base, self.at)
        if self.remaining is None:
            return Numbers(b, b.load(b.inttoptr(address, self.vector.as_pointer()), align=self.size))
        buffer = cgutils.alloca_once(b, self.vector)
        b.store(self.zeros, buffer)
        simd.emit_copy(b, [b.ptrtoint(buffer, simd.I64), address, self.remaining])
        return Numbers(b, b.load(buffer))

    def put(self, value: Numbers, base: Any) -> None:
        b, address = self.builder, self.builder.add(base, self.at)
        if self.remaining is None:
            b.store(value.value, b.inttoptr(address, self.vector.as_pointer()), align=self.size)
        else:
            buffer = cgutils.alloca_once(b, self.vector)
            b.store(value.value, buffer)
            simd.emit_copy(b, [address, b.ptrtoint(buffer, simd.I64), self.remaining])

    def prefetch(self, base: Any, write: bool = False) -> None:
        prefetch(self.builder, self.builder.add(base, self.at), write)

    def masked(self, value: Numbers) -> Numbers:
        """The numbers that the row has, and zeros for the rest of the vector."""
        return value if self.remaining is None else value.first(self.remaining)


def loop_row(builder: Any, kind: Any, count: Any, body: Callable[..., list[Numbers]], *totals: float) -> list[Numbers]:
    """totals = body(place, *totals) along a row of `count` numbers, a vector at a time; from these numbers on."""
    b, entry, (lanes, size) = builder, builder.block, SIZES[kind]
    num_vectors, zero = b.udiv(count, simd.I64(lanes)), simd.I64(0)
    begin = [ir.Constant(ir.VectorType(kind, lanes), [total] * lanes) for total in totals]
    loop, rest, tail, done = (b.append_basic_block(name) for name in ("loop", "rest", "tail", "done"))
    b.cbranch(b.icmp_signed(">", num_vectors, zero), loop, rest)
    b.position_at_end(loop)
    i, phis = b.phi(simd.I64), [b.phi(value.type) for value in begin]
    results = body(Place(b, kind, b.mul(i, simd.I64(lanes * size))), *(Numbers(b, phi) for phi in phis))
    next_i, end = b.add(i, simd.I64(1)), b.block
    for phi, first, next_value in zip([i, *phis], [zero, *begin], [next_i, *(total.value for total in results)]):
        phi.add_incoming(first, entry)
        phi.add_incoming(next_value, end)
    b.cbranch(b.icmp_signed("<", next_i, num_vectors), loop, rest)
    b.position_at_end(rest)
    partial = [b.phi(value.type) for value in begin]
    for phi, first, next_value in zip(partial, begin, results):
        phi.add_incoming(first, entry)
        phi.add_incoming(next_value.value, end)
    remaining = b.mul(b.sub(count, b.mul(num_vectors, simd.I64(lanes))), simd.I64(size))
    b.cbranch(b.icmp_signed(">", remaining, zero), tail, done)
    b.position_at_end(tail)
    last = body(Place(b, kind, b.mul(num_vectors, simd.I64(lanes * size)), remaining),
                *(Numbers(b, phi) for phi in partial))
    end = b.block
    b.branch(done)
    b.position_at_end(done)
    final = [b.phi(value.type) for value in begin]
    for phi, value, next_value in zip(final, partial, last):
        phi.add_incoming(value, rest)
        phi.add_incoming(next_value.value, end)
    return [Numbers(b, phi) for phi in final]


def element_pointer(builder: Any, kind: Any, base: Any, index: Any) -> Any:
    """Where number `index` of a row lies."""
    return builder.inttoptr(builder.add(base, builder.mul(index, simd.I64(SIZES[kind][1]))), kind.as_pointer())


def dispatch(name: str, arguments: int, variants: dict[int, Callable[[Any, Any, list[Any]], None]]) -> Any:
    """An intrinsic (key of a variant, bytes of a number, what `variant(builder, kind, arguments)` takes). Where the
    first two are known when compiled, there is code for these alone."""

    def body(builder: Any, args: list[Any], known_code: int | None, known_size: int | None) -> None:
        end = builder.append_basic_block("end")
        switch = builder.switch(builder.add(builder.shl(args[0], simd.I64(4)), args[1]), end)
        for code, variant in variants.items():
            for kind, (_, size) in SIZES.items():
                if known_code not in (None, code) or known_size not in (None, size):
                    continue
                case = builder.append_basic_block(f"{name}{code}x{size}")
                switch.add_case(simd.I64(16 * code + size), case)
                builder.position_at_end(case)
                variant(builder, kind, args[2:])
                builder.branch(end)
        builder.position_at_end(end)

    return simd.define(name, types.void(*[types.int64] * (arguments + 2)), body, constants=2)
