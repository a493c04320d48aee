"""LLVM intrinsics that Numba lacks: raw addresses, atomics, vector loops, and the matrix micro-kernel.

Everything here is target-independent vector IR, which LLVM turns into AVX-512, AVX2, NEON or plain scalar code, except
for products of bytes on processors that have an instruction for them.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Callable
from inspect import Parameter, Signature
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import carray, config, njit, types
from numba.core import cgutils
from numba.extending import intrinsic


def has(feature: str) -> bool:
    """Whether code is compiled for a processor with it: this one, unless Numba was told another."""
    if config.CPU_FEATURES is None:
        return llvm.get_host_cpu_features().get(feature, False)
    return f"+{feature}" in config.CPU_FEATURES.split(",")


WIDE = llvm.get_host_cpu_features().get("avx512f", False)
INTEGER = has("avx512vnni" if WIDE else "avxvnni")  # products of bytes, four to a lane; else int8 weights are widened
LANES = 16 if WIDE else 8  # float32 per vector: one AVX-512 register, one AVX2 register, two NEON registers
BLOCK = 8 if WIDE else 4  # rows of x that one pass over the weights serves: as many as the registers hold
QUAD = 4 if WIDE else 2  # up to so many rows, four panels of keys or values are read at once instead of two
PANELS = 2
TILE = PANELS * LANES  # outputs per tile: weights, keys and values are padded to a multiple of it
UNROLL = 4  # steps of the inner loop per branch: inner sizes are padded to a multiple of it
NEAR = 512  # bytes between what is used and what is fetched: the processor itself sees to what is further ahead ...
AHEAD = 8192  # ... unless so many rows are multiplied by each weight that it falls behind: some hundred nanoseconds

F32, I8, I32, I64 = ir.FloatType(), ir.IntType(8), ir.IntType(32), ir.IntType(64)
VECTOR, WORDS = ir.VectorType(F32, LANES), ir.VectorType(I32, LANES)
ZEROS = ir.Constant(VECTOR, [0.0] * LANES)
LOWEST = np.float32(-3e38)  # the score of masked keys
MANY = 4  # vectors that a matrix as memory works on at once, so that sums need not wait for each other
FLOAT, WIDENED, BYTES = range(3)  # micro-kernels: for float32; for int8 weights; for int8 weights and inputs
INT8 = BYTES if INTEGER else WIDENED
GROUP = 4 if INTEGER else 1  # int8 weights of one output that lie together, one step of the inner loop


@intrinsic
def _pointer(typingctx: Any, address: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), codegen


def _array_at(dtype: Any) -> Any:
    @njit(inline="always")
    def view(address, size):
        return carray(_pointer(address), (size,), dtype)

    return view


floats = _array_at(types.float32)
"""floats(address, size): the float32 array that lies there."""
longs = _array_at(types.int64)


def define(name: str, signature: Any, body: Callable[..., Any], constants: int = 0) -> Any:
    """An intrinsic from a few lines of IR: body(builder, values, *constants). Constants: of so many of the first
    arguments, the numbers if they are known when compiled, else None."""

    def typed(typingctx: Any, *args: Any) -> Any:
        known = [getattr(arg, "literal_value", None) for arg in args[:constants]]

        def codegen(context: Any, builder: Any, sig: Any, values: Any) -> Any:
            result = body(builder, values, *known)
            return context.get_dummy_value() if sig.return_type == types.void else result

        return signature, codegen

    names = ["typingctx", *(f"a{i}" for i in range(len(signature.args)))]
    typed.__name__ = typed.__qualname__ = name
    typed.__signature__ = Signature([Parameter(n, Parameter.POSITIONAL_OR_KEYWORD) for n in names])  # type: ignore[attr-defined]
    return intrinsic(prefer_literal=constants > 0)(typed)


def pointer(builder: Any, address: Any) -> Any:
    """An address as a pointer to a whole number of 64 bits."""
    return builder.inttoptr(address, I64.as_pointer())


def call(builder: Any, name: str, result: Any, *args: Any) -> Any:
    """Call a function of the compiler's, by its name, that gives a `result`."""
    kind = ir.FunctionType(result, [a.type for a in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), args)


def _compare_and_swap(builder: Any, a: list[Any]) -> Any:
    pair = builder.cmpxchg(pointer(builder, a[0]), a[1], a[2], "acq_rel", "acquire")
    return builder.zext(builder.extract_value(pair, 1), I64)


def _relax(builder: Any, a: list[Any]) -> None:
    """Tell the core that this is a spin loop."""
    machine = platform.machine().lower()
    if machine in ("x86_64", "amd64", "i686", "x86"):
        call(builder, "llvm.x86.sse2.pause", ir.VoidType())
    elif machine in ("arm64", "aarch64"):
        call(builder, "llvm.aarch64.hint", ir.VoidType(), I32(1))


def emit_exp(builder: Any, a: list[Any]) -> Any:
    """e^x of a float or a vector, to about 2 units in the last place, and 0 from x = -88 on: what weighs so little is
    nothing, since products with numbers below the normal ones take a hundred times as long. In IR, not in Python: no
    fast-math flag may reorder the reduction."""
    b, kind = builder, a[0].type
    name = "f32" if kind == F32 else f"v{kind.count}f32"

    def constant(value: float) -> Any:
        return ir.Constant(kind, value if kind == F32 else [value] * kind.count)

    def integer(value: int) -> Any:
        return I32(value) if kind == F32 else ir.Constant(ir.VectorType(I32, kind.count), [value] * kind.count)

    def fma(x: Any, y: Any, z: Any) -> Any:
        return call(b, f"llvm.fmuladd.{name}", kind, x, y, z)

    x = b.select(b.fcmp_ordered(">", a[0], constant(88.0)), constant(88.0), a[0])  # one instruction; a NaN stays one
    x = b.select(b.fcmp_ordered("<", x, constant(-88.0)), constant(-88.0), x)  # n of -127 gives 0
    n = call(b, f"llvm.rint.{name}", kind, b.fmul(x, constant(1 / math.log(2))))
    high = round(math.log(2) * 2**16) / 2**16  # so short that n * high is exact
    r = fma(n, constant(high - math.log(2)), fma(n, constant(-high), x))
    p = constant(1 / math.factorial(7))
    for degree in reversed(range(7)):
        p = fma(p, r, constant(1 / math.factorial(degree)))
    # 2^n by writing n into the exponent: integers stay 32 bits wide, so that a loop around this stays vectorised.
    exponent = b.shl(b.add(b.fptosi(n, integer(0).type), integer(127)), integer(23))
    return b.fmul(p, b.bitcast(exponent, kind))


def _exp2(builder: Any, a: list[Any]) -> Any:
    """2^x of a float, to about 2 units in the last place: what `emit_exp` does, less what brings x to base 2. At -127
    it is 0, too."""
    b, (x,) = builder, a
    x = call(b, "llvm.maxnum.f32", F32, call(b, "llvm.minnum.f32", F32, x, F32(127.0)), F32(-127.0))
    n = call(b, "llvm.rint.f32", F32, x)
    r = b.fsub(x, n)
    p = F32(math.log(2) ** 7 / math.factorial(7))
    for degree in reversed(range(7)):
        p = call(b, "llvm.fmuladd.f32", F32, p, r, F32(math.log(2) ** degree / math.factorial(degree)))
    exponent = b.shl(b.add(b.fptosi(n, I32), I32(127)), I32(23))
    return b.fmul(p, b.bitcast(exponent, F32))


def _vector(builder: Any, address: Any) -> Any:
    """The LANES floats at an address."""
    return builder.load(builder.inttoptr(address, VECTOR.as_pointer()), align=4)


def _store(builder: Any, value: Any, address: Any) -> None:
    builder.store(value, builder.inttoptr(address, VECTOR.as_pointer()), align=4)


def _prefetch(builder: Any, address: Any) -> None:
    """Ask for the line of memory at an address, to read it, in the second-level cache."""
    at, (read, second, data) = builder.inttoptr(address, I8.as_pointer()), (I32(0), I32(2), I32(1))
    call(builder, "llvm.prefetch.p0", ir.VoidType(), at, read, second, data)


def emit_copy(builder: Any, a: list[Any]) -> None:
    """Copy so many bytes: to, from, bytes."""
    name = "llvm.memcpy.p0i8.p0i8.i64"
    call(builder, name, ir.VoidType(), *(builder.inttoptr(x, I8.as_pointer()) for x in a[:2]), a[2], ir.IntType(1)(0))


def _broadcast(builder: Any, value: Any) -> Any:
    """A vector of LANES times the same value."""
    undefined = ir.Constant(ir.VectorType(value.type, LANES), ir.Undefined)
    return builder.shuffle_vector(builder.insert_element(undefined, value, I32(0)), undefined,
                                  ir.Constant(WORDS, [0] * LANES))


def _load_broadcast(builder: Any, address: Any, kind: Any = F32) -> Any:
    """The number at an address, LANES times."""
    return _broadcast(builder, builder.load(builder.inttoptr(address, kind.as_pointer()), align=4))


def _valid_lanes(builder: Any, count: Any, first: Any) -> Any:
    """Mask of the LANES numbers from `first` on that are below `count`."""
    remaining = _broadcast(builder, builder.trunc(builder.sub(count, first), I32))
    return builder.icmp_signed("<", ir.Constant(WORDS, list(range(LANES))), remaining)


def emit_sum(builder: Any, value: Any) -> Any:
    """The sum of the numbers of a vector, in every place."""
    b, lanes, distance = builder, value.type.count, value.type.count // 2
    while distance:
        mask = ir.Constant(ir.VectorType(I32, lanes), [i ^ distance for i in range(lanes)])
        value, distance = b.fadd(value, b.shuffle_vector(value, value, mask)), distance // 2
    return value


def _fma(builder: Any, x: Any, y: Any, z: Any) -> Any:
    return call(builder, f"llvm.fmuladd.v{LANES}f32", VECTOR, x, y, z)


def emit_loop(builder: Any, count: Any, totals: list[Any], body: Callable[..., list[Any]]) -> list[Any]:
    """Loop i over 0..count - 1 (at least once), totals = body(i, *totals); gives the last totals."""
    b, entry = builder, builder.block
    loop, done = b.append_basic_block("loop"), b.append_basic_block("done")
    b.branch(loop)
    b.position_at_end(loop)
    i, phis = b.phi(I64), [b.phi(total.type) for total in totals]
    results, next_i = body(i, *phis), b.add(i, I64(1))
    for phi, first, next_value in zip([i, *phis], [I64(0), *totals], [next_i, *results]):
        phi.add_incoming(first, entry)
        phi.add_incoming(next_value, b.block)
    b.cbranch(b.icmp_signed("<", next_i, count), loop, done)
    b.position_at_end(done)
    return results


def _scan(builder: Any, args: list[Any]) -> None:
    """A step of the selective scan for LANES channels: h = e h + dt u b, y = sum of h c, plus d u, where e is exp(dt a)
    spread over a range: its least, and how much there is above it, are the two floats at `reach`."""
    b = builder
    dt, u, d, a, write, read, old, new, y, states, reach = args
    step, value = _vector(b, dt), _vector(b, u)
    input_term = b.fmul(step, value)
    least, span = _load_broadcast(b, reach), _load_broadcast(b, b.add(reach, I64(4)))

    def state(n: Any, total: Any) -> list[Any]:
        offset, scalar = b.mul(n, I64(4 * LANES)), b.shl(n, I64(2))
        decay = _fma(b, span, emit_exp(b, [b.fmul(step, _vector(b, b.add(a, offset)))]), least)
        h = _fma(b, decay, _vector(b, b.add(old, offset)), b.fmul(input_term, _load_broadcast(b, b.add(write, scalar))))
        _store(b, h, b.add(new, offset))
        return [_fma(b, h, _load_broadcast(b, b.add(read, scalar)), total)]

    (total,) = emit_loop(b, states, [b.fmul(_vector(b, d), value)], state)
    _store(b, total, y)


def _convolve(builder: Any, args: list[Any]) -> None:
    """A step of a short convolution for LANES channels: y = bias + sum of w times the last inputs, which lie in `old`,
    and x; `new` has all but the first of these. Rows of w and of the states lie `stride` bytes apart."""
    b = builder
    x, w, bias, old, new, y, taps, stride = args
    latest = _vector(b, x)

    def tap(t: Any, total: Any) -> list[Any]:
        is_last, offset = b.icmp_signed("==", b.add(t, I64(1)), taps), b.mul(t, stride)
        value = b.select(is_last, latest, _vector(b, b.select(is_last, x, b.add(old, offset))))
        target = b.select(b.icmp_signed("==", t, I64(0)), y, b.sub(b.add(new, offset), stride))
        _store(b, value, target)  # the first goes where the result will lie
        return [_fma(b, value, _vector(b, b.add(w, offset)), total)]

    (total,) = emit_loop(b, taps, [_vector(b, bias)], tap)
    _store(b, total, y)


def _filter(builder: Any, args: list[Any], num_vectors: int) -> None:
    """y += sum of w x over `count` lines of `num_vectors` times LANES numbers; from one line to the next so many
    bytes."""
    b = builder
    w, w_line, x, x_line, y, count = args
    offsets = [I64(4 * LANES * c) for c in range(num_vectors)]

    def lag(i: Any, *totals: Any) -> list[Any]:
        taps, values = b.add(w, b.mul(i, w_line)), b.add(x, b.mul(i, x_line))
        return [_fma(b, _vector(b, b.add(taps, offset)), _vector(b, b.add(values, offset)), total)
                for offset, total in zip(offsets, totals)]

    for offset, total in zip(offsets, emit_loop(b, count, [_vector(b, b.add(y, offset)) for offset in offsets], lag)):
        _store(b, total, b.add(y, offset))


def _diagonal(builder: Any, args: list[Any]) -> None:
    """h = a h + x for LANES numbers."""
    a, x, old, new, y = args
    h = _fma(builder, _vector(builder, a), _vector(builder, old), _vector(builder, x))
    _store(builder, h, new)
    _store(builder, h, y)


def _complex_product(builder: Any, a: Any, h: Any, imaginary_a: Any, imaginary_h: Any) -> tuple[Any, Any]:
    """The product of LANES complex numbers at a with those at h; imaginary_a, imaginary_h: bytes from the real to the
    imaginary parts."""
    b = builder
    ar, ai, hr, hi = (_vector(b, at) for at in (a, b.add(a, imaginary_a), h, b.add(h, imaginary_h)))
    return b.fsub(b.fmul(ar, hr), b.fmul(ai, hi)), _fma(b, ar, hi, b.fmul(ai, hr))


def _complex(builder: Any, args: list[Any]) -> None:
    """h = a h + x for LANES complex numbers. imaginary_a, imaginary_state, imaginary_y: bytes from the real to the
    imaginary parts in a and x, in the states, and in y."""
    b = builder
    a, x, old, new, y, imaginary_a, imaginary_state, imaginary_y = args
    for product, address, state, output in zip(_complex_product(b, a, old, imaginary_a, imaginary_state),
                                               (x, b.add(x, imaginary_a)), (new, b.add(new, imaginary_state)),
                                               (y, b.add(y, imaginary_y))):
        h = b.fadd(product, _vector(b, address))
        _store(b, h, state)
        _store(b, h, output)


def _modes(builder: Any, args: list[Any]) -> None:
    """h = a h + u for all modes of LANES channels, y = sum of the real parts of c h, plus d u. Of each mode real and
    imaginary parts of a and c lie one behind the other."""
    b = builder
    u, table, d, old, new, y, modes = args
    value, size = _vector(b, u), I64(4 * LANES)

    def mode(n: Any, real: Any, imaginary: Any) -> list[Any]:  # two sums: they need not wait for each other
        line, at = b.add(table, b.mul(n, I64(4 * 4 * LANES))), b.mul(n, I64(2 * 4 * LANES))
        r, i = _complex_product(b, line, b.add(old, at), size, size)
        r = b.fadd(r, value)
        _store(b, r, b.add(new, at))
        _store(b, i, b.add(b.add(new, at), size))
        c, c_imaginary = (_vector(b, b.add(line, I64(part * 4 * LANES))) for part in (2, 3))
        return [_fma(b, r, c, real), _fma(b, i, c_imaginary, imaginary)]

    _store(b, b.fsub(*emit_loop(b, modes, [b.fmul(_vector(b, d), value), ZEROS], mode)), y)


def _matrix(builder: Any, args: list[Any], delta: bool, num_vectors: int) -> None:
    """One write to a matrix memory, for `num_vectors` times LANES columns of values: s = decay s + write k v, y = sum
    of q s. The decay of the next key feature lies `hop` bytes on (0: one for all). With `delta`, v minus the decayed
    memory's value for k. The states of LANES columns lie behind those of the LANES before them."""
    b = builder
    q, k, decay, hop, v, write, old, new, y, keys = args
    size = I64(4 * LANES)
    offsets = [b.mul(b.mul(keys, size), I64(c)) for c in range(num_vectors)]
    values = [_vector(b, b.add(v, I64(4 * LANES * c))) for c in range(num_vectors)]

    def scalar(i: Any, address: Any) -> Any:
        return _load_broadcast(b, b.add(address, b.shl(i, I64(2))))

    def decayed(i: Any) -> tuple[Any, list[Any]]:
        lines = b.add(old, b.mul(i, size))
        return _load_broadcast(b, b.add(decay, b.mul(i, hop))), [_vector(b, b.add(lines, offset)) for offset in offsets]

    def recall(i: Any, *totals: Any) -> list[Any]:
        decay_i, lines = decayed(i)
        factor = b.fmul(scalar(i, k), decay_i)
        return [_fma(b, factor, s, total) for s, total in zip(lines, totals)]

    def write_line(i: Any, *totals: Any) -> list[Any]:
        (decay_i, lines), key, query, target = decayed(i), scalar(i, k), scalar(i, q), b.add(new, b.mul(i, size))
        lines = [_fma(b, decay_i, s, b.fmul(key, value)) for s, value in zip(lines, values)]
        for s, offset in zip(lines, offsets):
            _store(b, s, b.add(target, offset))
        return [_fma(b, query, s, total) for s, total in zip(lines, totals)]

    if delta:
        recalled = emit_loop(b, keys, [ZEROS] * num_vectors, recall)
        values = [b.fsub(value, known) for value, known in zip(values, recalled)]
    strength = _load_broadcast(b, write)
    values = [b.fmul(value, strength) for value in values]
    for c, total in enumerate(emit_loop(b, keys, [ZEROS] * num_vectors, write_line)):
        _store(b, total, b.add(y, I64(4 * LANES * c)))


def _quantise(builder: Any, args: list[Any]) -> None:
    """`width` floats at x as signed bytes, k words of four, the largest magnitude as 127.

    Behind them: their scale (float = scale * byte; NaN if there is one), and -128 times their sum, with which a sum of
    products begins, since the weights' bytes have 128 added.
    """
    x, width, into, k = args
    b = builder
    vectors = b.udiv(k, I64(LANES // 4))

    def values(i: Any) -> tuple[Any, Any]:
        first = b.mul(i, I64(LANES))
        return first, b.select(_valid_lanes(b, width, first), _vector(b, b.add(x, b.shl(first, I64(2)))), ZEROS)

    def maximum(i: Any, top: Any) -> list[Any]:  # of magnitudes as integers: the same order, and NaN is the largest
        size = b.and_(b.bitcast(values(i)[1], WORDS), ir.Constant(WORDS, [2**31 - 1] * LANES))
        return [call(b, f"llvm.smax.v{LANES}i32", WORDS, top, size)]

    smallest = int(np.float32(1e-30).view(np.int32))  # so that no quotient is infinite
    (top,) = emit_loop(b, vectors, [ir.Constant(WORDS, [smallest] * LANES)], maximum)
    top = b.bitcast(call(b, f"llvm.vector.reduce.smax.v{LANES}i32", I32, top), F32)
    inverse_scale = _broadcast(b, b.fdiv(F32(127), top))

    def write_bytes(i: Any, total: Any) -> list[Any]:
        first, value = values(i)
        value = call(b, f"llvm.maxnum.v{LANES}f32", VECTOR, b.fmul(value, inverse_scale),
                     _broadcast(b, F32(-127)))  # no NaN
        integers = b.fptosi(call(b, f"llvm.rint.v{LANES}f32", VECTOR, value), WORDS)
        kind = ir.VectorType(I8, LANES)
        b.store(b.trunc(integers, kind), b.inttoptr(b.add(into, first), kind.as_pointer()), align=1)
        return [b.add(total, integers)]

    total = call(b, f"llvm.vector.reduce.add.v{LANES}i32", I32,
                 *emit_loop(b, vectors, [ir.Constant(WORDS, [0] * LANES)], write_bytes))
    trailer = b.add(into, b.shl(k, I64(2)))
    b.store(b.fmul(top, F32(1 / 127)), b.inttoptr(trailer, F32.as_pointer()), align=4)
    b.store(b.mul(total, I32(-128)), b.inttoptr(b.add(trailer, I64(4)), I32.as_pointer()), align=4)


def _soften(builder: Any, args: list[Any]) -> Any:
    """`size` scores to unnormalised weights, in place, followed by zeros up to `room` numbers or a few more; gives
    their sum. A score that is LOWEST weighs nothing."""
    scores, size, room = args
    b, lowest = builder, ir.Constant(VECTOR, [float(LOWEST)] * LANES)
    vectors = b.udiv(b.add(room, I64(LANES - 1)), I64(LANES))

    def masked_scores(i: Any) -> tuple[Any, Any]:
        first = b.mul(i, I64(LANES))
        address = b.add(scores, b.shl(first, I64(2)))
        return address, b.select(_valid_lanes(b, size, first), _vector(b, address), lowest)

    def maximum(i: Any, top: Any) -> list[Any]:
        score = masked_scores(i)[1]
        return [b.select(b.fcmp_ordered(">", score, top), score, top)]

    (top,) = emit_loop(b, vectors, [lowest], maximum)
    top = _broadcast(b, call(b, f"llvm.vector.reduce.fmax.v{LANES}f32", F32, top))

    def weight(i: Any, total: Any) -> list[Any]:
        address, score = masked_scores(i)
        value = b.select(b.fcmp_ordered(">", score, lowest), emit_exp(b, [b.fsub(score, top)]), ZEROS)
        _store(b, value, address)
        return [b.fadd(total, value)]

    return b.extract_element(emit_sum(b, *emit_loop(b, vectors, [ZEROS], weight)), I32(0))


def _rotate(builder: Any, args: list[Any]) -> None:
    """Turn LANES planes in place. Addresses: of both coordinates, and of cosines and sines."""
    b, (first, second, cosine, sine) = builder, (_vector(builder, at) for at in args)
    _store(b, b.fsub(b.fmul(first, cosine), b.fmul(second, sine)), args[0])
    _store(b, _fma(b, second, cosine, b.fmul(first, sine)), args[1])


def _scatter(builder: Any, args: list[Any]) -> None:
    """LANES numbers to as many lines, `stride` bytes apart, one by one: the instruction for it is slower."""
    b, (source, into, stride) = builder, args
    value = _vector(b, source)
    for lane in range(LANES):
        at = b.inttoptr(b.add(into, b.mul(stride, I64(lane))), F32.as_pointer())
        b.store(b.extract_element(value, I32(lane)), at, align=4)


def _fetch_lines(builder: Any, args: list[Any]) -> None:
    """Ask for `count` (at least one) lines of memory, `stride` bytes apart."""
    b, (address, stride, count) = builder, args

    def line(i: Any) -> list[Any]:
        _prefetch(b, b.add(address, b.mul(i, stride)))
        return []

    emit_loop(b, count, [], line)


def _low_rank(builder: Any, args: list[Any]) -> None:
    """h = a h + b u - away t for all modes of LANES channels, t = sum of the real parts of seen h, y = sum of those of
    c h, plus d u. Real and imaginary parts of seen lie one behind the other for all modes, then, mode by mode, those of
    a, b, away, c."""
    b = builder
    u, table, d, old, new, y, modes = args
    value, size, mode_bytes = _vector(b, u), I64(4 * LANES), I64(2 * 4 * LANES)
    mode_table = b.add(table, b.mul(modes, mode_bytes))

    def factors(n: Any) -> list[Any]:
        return [b.add(mode_table, b.add(b.mul(n, I64(8 * 4 * LANES)), I64(part * 4 * LANES))) for part in range(8)]

    def project(n: Any, total: Any, other_total: Any) -> list[Any]:
        real, h = b.add(table, b.mul(n, mode_bytes)), b.add(old, b.mul(n, mode_bytes))
        for line in factors(n):
            _prefetch(b, line)
        return [_fma(b, _vector(b, real), _vector(b, h), total),
                _fma(b, _vector(b, b.add(real, size)), _vector(b, b.add(h, size)), other_total)]

    t = b.fsub(*emit_loop(b, modes, [ZEROS, ZEROS], project))

    def mode(n: Any, total: Any, other_total: Any) -> list[Any]:
        a, _, *factor_addresses = factors(n)
        h, target = b.add(old, b.mul(n, mode_bytes)), b.add(new, b.mul(n, mode_bytes))
        write, write_imaginary, away, away_imaginary, c, c_imaginary = (_vector(b, at) for at in factor_addresses)
        r, i = _complex_product(b, a, h, size, size)
        r = b.fsub(_fma(b, write, value, r), b.fmul(away, t))
        i = b.fsub(_fma(b, write_imaginary, value, i), b.fmul(away_imaginary, t))
        _store(b, r, target)
        _store(b, i, b.add(target, size))
        return [_fma(b, r, c, total), _fma(b, i, c_imaginary, other_total)]

    _store(b, b.fsub(*emit_loop(b, modes, [b.fmul(_vector(b, d), value), ZEROS], mode)), y)


def _dense(builder: Any, args: list[Any]) -> None:
    """MANY numbers of h = A h + w u for LANES channels, A by columns, which are fetched `ahead` bytes before they are
    needed; `new` is not the memory of `old`."""
    b = builder
    u, a, write, old, new, states, ahead = args
    value, lines = _vector(b, u), [I64(4 * LANES * i) for i in range(MANY)]

    def column(j: Any, *totals: Any) -> list[Any]:
        old_j = _vector(b, b.add(old, b.mul(j, I64(4 * LANES))))
        column_address = b.add(a, b.mul(j, I64(4 * LANES * MANY)))
        for line in lines:
            _prefetch(b, b.add(b.add(column_address, line), ahead))
        return [_fma(b, _vector(b, b.add(column_address, line)), old_j, total) for line, total in zip(lines, totals)]

    totals = emit_loop(b, states, [b.fmul(_vector(b, b.add(write, line)), value) for line in lines], column)
    for line, total in zip(lines, totals):
        _store(b, total, b.add(new, line))


def _dot(builder: Any, args: list[Any]) -> None:
    """y = sum of c h, plus d u, for LANES channels."""
    b = builder
    u, d, c, h, y, states = args

    def term(i: Any, total: Any) -> list[Any]:
        at = b.mul(i, I64(4 * LANES))
        return [_fma(b, _vector(b, b.add(c, at)), _vector(b, b.add(h, at)), total)]

    (total,) = emit_loop(b, states, [b.fmul(_vector(b, d), _vector(b, u))], term)
    _store(b, total, y)


def make_transpose(kind: Any, lanes: int) -> Any:
    """turn(source, row, target, line): a square of `lanes` numbers transposed; bytes from row to row of both."""

    def body(builder: Any, a: list[Any]) -> None:
        vector = ir.VectorType(kind, lanes)

        def row_pointer(address: Any, stride: Any, r: int) -> Any:
            return builder.inttoptr(builder.add(address, builder.mul(stride, I64(r))), vector.as_pointer())

        rows, distance = [builder.load(row_pointer(a[0], a[1], r), align=4) for r in range(lanes)], 1
        while distance < lanes:  # change the corners of squares, then of squares of twice the size
            lower = [j if not j & distance else lanes + j - distance for j in range(lanes)]
            upper = [j + distance if not j & distance else lanes + j for j in range(lanes)]
            for r in (r for r in range(lanes) if not r & distance):
                pair = rows[r], rows[r + distance]
                rows[r], rows[r + distance] = (builder.shuffle_vector(
                    *pair, ir.Constant(ir.VectorType(I32, lanes), mask)) for mask in (lower, upper))
            distance *= 2
        for r in range(lanes):
            builder.store(rows[r], row_pointer(a[2], a[3], r), align=4)

    return define("turn", void(*[long] * 4), body)


long, single, void = types.int64, types.float32, types.void
load = define("load", long(long), lambda b, a: b.load_atomic(pointer(b, a[0]), "acquire", 8))
store = define("store", void(long, long), lambda b, a: b.store_atomic(a[1], pointer(b, a[0]), "release", 8))
add = define("add", long(long, long), lambda b, a: b.atomic_rmw("add", pointer(b, a[0]), a[1], "acq_rel"))
swap_if = define("swap_if", long(long, long, long), _compare_and_swap)
relax = define("relax", void(), _relax)
yield_core = types.ExternalFunction("sched_yield", types.int32())
exp = define("exp", single(single), emit_exp)
exp2 = define("exp2", single(single), _exp2)
copy = define("copy", void(long, long, long), emit_copy)  # to, from, bytes
copy_lanes = define("copy_lanes", void(long, long), lambda b, a: _store(b, _vector(b, a[0]), a[1]))
add_lanes = define("add_lanes", void(long, long), lambda b, a: _store(b, b.fadd(*(_vector(b, x) for x in a)), a[1]))
multiply_lanes = define("multiply_lanes", void(long, long, long), lambda b, a: _store(
    b, b.fmul(_vector(b, a[0]), _vector(b, a[1])), a[2]))
scale_lanes = define("scale_lanes", void(long, single, long), lambda b, a: _store(
    b, b.fmul(_vector(b, a[0]), _broadcast(b, a[1])), a[2]))
scatter_lanes = define("scatter_lanes", void(*[long] * 3), _scatter)
rotate_lanes = define("rotate_lanes", void(*[long] * 4), _rotate)
soften = define("soften", single(*[long] * 3), _soften)
fetch_lines = define("fetch_lines", void(*[long] * 3), _fetch_lines)
scan_lanes = define("scan_lanes", void(*[long] * 11), _scan)
convolve_lanes = define("convolve_lanes", void(*[long] * 8), _convolve)
filter_lanes = define("filter_lanes", void(*[long] * 6), lambda b, a: _filter(b, a, num_vectors=1))
filter_many = define("filter_many", void(*[long] * 6), lambda b, a: _filter(b, a, num_vectors=MANY))
diagonal_lanes = define("diagonal_lanes", void(*[long] * 5), _diagonal)
complex_lanes = define("complex_lanes", void(*[long] * 8), _complex)
modes_lanes = define("modes_lanes", void(*[long] * 7), _modes)
matrix_lanes = define("matrix_lanes", void(*[long] * 10), lambda b, a: _matrix(b, a, delta=False, num_vectors=1))
matrix_many = define("matrix_many", void(*[long] * 10), lambda b, a: _matrix(b, a, delta=False, num_vectors=MANY))
delta_lanes = define("delta_lanes", void(*[long] * 10), lambda b, a: _matrix(b, a, delta=True, num_vectors=1))
delta_many = define("delta_many", void(*[long] * 10), lambda b, a: _matrix(b, a, delta=True, num_vectors=MANY))
quantise = define("quantise", void(*[long] * 4), _quantise)
low_rank_lanes = define("low_rank_lanes", void(*[long] * 7), _low_rank)
dense_lanes = define("dense_lanes", void(*[long] * 7), _dense)
dot_lanes = define("dot_lanes", void(*[long] * 6), _dot)
real = define("real", types.float64(long), lambda b, a: b.bitcast(a[0], ir.DoubleType()))
"""real(bits): the float64 that was stored as an integer."""


def _tile(builder: Any, panels: int, rows: int, kind: int, args: list[Any]) -> None:
    """The micro-kernel: y[r, p, lane] = sum over i of x[r, i] * w[p, i, lane], for `rows` rows and `panels` panels.

    All accumulators live in registers, each weight vector is loaded once for all rows, and every sum runs over i in
    order: a row's result is the same, bit for bit, whatever rows it is computed with. WIDENED: the weights are signed
    bytes, which become floats as they are loaded. BYTES: x[r, i] and w[p, i, lane] are four bytes each, as `quantise`
    leaves the one and with 128 added to the other, and the sums are integers.

    args: addresses w, x, y; bytes from one i to the next in w (step), and from one pair of panels to the next (far; the
    two of a pair lie side by side); bytes between rows of x (row); k (a multiple of UNROLL); bytes between rows of y
    (out), in which panels lie one behind the other. Before it is stored, each sum is multiplied by its scale (an
    address; not FLOAT), its bias is added (an address, or 0), and what lies in y (where adds is not 0).
    """
    w, step, pair_stride, ahead, x, row, k, y, out, scale, bias, adds = args
    b, size = builder, 1 if kind == WIDENED else 4
    element, number = (WORDS, I32) if kind == BYTES else (VECTOR, F32)

    def product(weights: Any, value: Any, total: Any) -> Any:
        if kind == BYTES:  # unsigned times signed
            return call(b, f"llvm.x86.avx512.vpdpbusd.{32 * LANES}", WORDS, total, weights, value)
        return _fma(b, weights, value, total)

    entry, loop, done = b.block, b.append_basic_block("inner"), b.append_basic_block("done")
    pairs = [b.add(w, b.mul(pair_stride, I64(p))) for p in range(panels // PANELS)]
    inputs = [b.add(x, b.mul(row, I64(r))) for r in range(rows)]
    # What follows a pair is the next one, which another stream is reading already: fetch past all of them.
    prefetch_end = b.sub(b.mul(k, step), ahead)
    skip = b.mul(pair_stride, I64(panels // PANELS - 1))
    trailers = [b.add(line, b.shl(k, I64(2))) for line in inputs]  # BYTES: scale and first sum of each row
    starts = [_load_broadcast(b, b.add(at, I64(4)), I32) if kind == BYTES else ZEROS for at in trailers]
    b.branch(loop)
    b.position_at_end(loop)
    i, offset = b.phi(I64), b.phi(I64)
    sums = [[b.phi(element) for _ in range(rows)] for _ in range(panels)]
    accumulators = [list(line) for line in sums]
    prefetch_offset = b.add(offset, ahead)
    if panels > PANELS:
        prefetch_offset = b.add(prefetch_offset, b.select(b.icmp_signed(">=", offset, prefetch_end), skip, I64(0)))
    for u in range(UNROLL):
        step_offset = offset if u == 0 else b.add(offset, b.mul(step, I64(u)))
        weights = []
        for p in range(panels):
            address = b.add(b.add(pairs[p // PANELS], step_offset), I64(p % PANELS * LANES * size))
            if kind == WIDENED:
                byte_weights = b.load(b.inttoptr(address, ir.VectorType(I8, LANES).as_pointer()), align=1)
                weights.append(b.sitofp(b.sext(byte_weights, WORDS), VECTOR))
            else:
                weights.append(b.load(b.inttoptr(address, element.as_pointer()), align=4))
        pair_bytes = PANELS * LANES * size  # of one step, and of one pair
        for p in range(panels // PANELS):
            for start in range(0, pair_bytes if u * pair_bytes % 64 == 0 else 0, 64):
                    at = b.add(b.add(pairs[p], prefetch_offset), b.add(b.mul(step, I64(u)), I64(start)))
                    _prefetch(b, at)
        for r in range(rows):
            at = b.add(inputs[r], b.shl(b.add(i, I64(u)), I64(2)))
            value = _load_broadcast(b, at, number)
            for p in range(panels):
                accumulators[p][r] = product(weights[p], value, accumulators[p][r])
    next_i, next_offset = b.add(i, I64(UNROLL)), b.add(offset, b.mul(step, I64(UNROLL)))
    for phi, start, end in ((i, I64(0), next_i), (offset, I64(0), next_offset)):
        phi.add_incoming(start, entry)
        phi.add_incoming(end, loop)
    for p in range(panels):
        for r in range(rows):
            sums[p][r].add_incoming(starts[r], entry)
            sums[p][r].add_incoming(accumulators[p][r], loop)
    b.cbranch(b.icmp_signed("<", next_i, k), loop, done)
    b.position_at_end(done)

    if kind == BYTES:
        accumulators = [[b.fmul(b.sitofp(accumulators[p][r], VECTOR), _load_broadcast(b, trailers[r]))
                         for r in range(rows)] for p in range(panels)]
    zero_bias = cgutils.global_constant(b, "none", ir.Constant(ir.ArrayType(F32, LANES * panels), None))
    bias = b.select(b.icmp_signed("==", bias, I64(0)), b.ptrtoint(zero_bias, I64), bias)
    biases = [_vector(b, b.add(bias, I64(4 * LANES * p))) for p in range(panels)]
    if kind == FLOAT:
        accumulators = [[b.fadd(accumulators[p][r], biases[p]) for r in range(rows)] for p in range(panels)]
    else:  # fused explicitly: left to LLVM, some of the kernels would be and some not
        scales = [_vector(b, b.add(scale, I64(4 * LANES * p))) for p in range(panels)]
        accumulators = [[_fma(b, accumulators[p][r], scales[p], biases[p]) for r in range(rows)] for p in range(panels)]
    results = [(accumulators[p][r], b.add(y, b.add(b.mul(out, I64(r)), I64(4 * LANES * p))))
               for r in range(rows) for p in range(panels)]
    with b.if_else(b.icmp_signed("==", adds, I64(0))) as (overwrite, accumulate):
        with overwrite:
            for value, target in results:
                _store(b, value, target)
        with accumulate:
            for value, target in results:
                _store(b, b.fadd(_vector(b, target), value), target)


def make_block(panels: int, kind: int, most: int) -> Any:
    """block(rows, w, step, far, ahead, x, row, k, y, out, scale, bias, adds): the micro-kernel for 1 to `most` rows."""

    def build(builder: Any, args: list[Any]) -> None:
        end = builder.append_basic_block("end")
        switch = builder.switch(args[0], end)
        for rows in range(1, most + 1):
            case = builder.append_basic_block(f"rows{rows}")
            switch.add_case(I64(rows), case)
            builder.position_at_end(case)
            _tile(builder, panels, rows, kind, args[1:])
            builder.branch(end)
        builder.position_at_end(end)

    choose = define("choose", void(*[long] * 13), build)

    @njit
    def block(rows, w, step, far, ahead, x, row, k, y, out, scale, bias, adds):
        choose(rows, w, step, far, ahead, x, row, k, y, out, scale, bias, adds)

    return block


pair, quad = make_block(PANELS, FLOAT, BLOCK), make_block(2 * PANELS, FLOAT, QUAD)
pair8 = make_block(PANELS, INT8, BLOCK)
