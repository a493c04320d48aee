"""Products of matrices in registers, in float32 and float64: of any number of rows, and of triangles; and what brings
numbers to them and takes them away.

Their code is large, so that it is compiled once, and whoever needs it calls it by its name.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import overload

from segue.kernels.cpu import simd
from segue.kernels.cpu.cache import compile_named
from segue.kernels.cpu.loops import OPTIONS, bare
from segue.kernels.cpu.vectors import Numbers, Place, dispatch, element_pointer, loop_row

ROWS, MOST_PANELS = (8, 4, 2, 1), 3  # each combination is code of its own: what there is no code for, runs in parts
BLOCK, PANELS = simd.BLOCK, 2  # rows and vectors of columns of a product that are computed together
FULL, X_LOWER, X_UPPER, Y_LOWER = range(4)
"""Shapes of a product y = x @ w: no zeros; x[r, i] = 0 for i > r; x[r, i] = 0 for i < r; only columns c <= r of y are
needed."""
KINDS = ((simd.F32, 4), (ir.DoubleType(), 8))


def _tile(builder: Any, kind: Any, lanes: int, rows: int, panels: int, args: list[Any]) -> None:
    """y[r, c] = first[c] + sum over o < outer, i < k of x[r, o, i] * w[o k + i, c] (+ source[r, c]), for `rows` rows
    and `panels` vectors of columns c, in registers.

    args: addresses first (of a vector of columns; 0: zeros), w, x, source (0: none), y; bytes from one line of w to the
    next (w_step); bytes from one row of x to the next (x_row), from one i (x_step), and what is added after k of them
    (x_jump); k, outer; bytes from one row to the next in source (source_row) and in y (y_row).
    """
    first, w, x, source, y, w_step, x_row, x_step, x_jump, k, outer, source_row, y_row = args
    b, size = builder, 4 if kind == simd.F32 else 8
    vector = ir.VectorType(kind, lanes)
    undefined = ir.Constant(vector, ir.Undefined)
    lane_zero = ir.Constant(ir.VectorType(simd.I32, lanes), [0] * lanes)

    def load(address: Any, p: int) -> Any:
        return b.load(b.inttoptr(b.add(address, simd.I64(p * lanes * size)), vector.as_pointer()), align=size)

    def load_broadcast(address: Any) -> Any:
        value = b.load(b.inttoptr(address, kind.as_pointer()), align=size)
        return b.shuffle_vector(b.insert_element(undefined, value, simd.I32(0)), undefined, lane_zero)

    name = f"llvm.fmuladd.v{lanes}f{8 * size}"
    zeros = cgutils.global_constant(b, "zeros", ir.Constant(ir.ArrayType(kind, panels * lanes), None))
    first = b.select(b.icmp_signed("==", first, simd.I64(0)), b.ptrtoint(zeros, simd.I64), first)
    initial = [load(first, p) for p in range(panels)]
    lines = [b.add(x, b.mul(x_row, simd.I64(r))) for r in range(rows)]

    def step(i: Any, at_w: Any, at_x: Any, *sums: Any) -> list[Any]:
        weights, sums_after = [load(at_w, p) for p in range(panels)], list[Any]()
        for r in range(rows):
            value = load_broadcast(b.add(lines[r], at_x))
            sums_after += [simd.call(b, name, vector, weights[p], value, sums[r * panels + p]) for p in range(panels)]
        return [b.add(at_w, w_step), b.add(at_x, x_step), *sums_after]

    def steps(o: Any, at_w: Any, at_x: Any, *sums: Any) -> list[Any]:
        at_w, at_x, *sums_after = simd.emit_loop(b, k, [at_w, at_x, *sums], step)
        return [at_w, b.add(at_x, x_jump), *sums_after]

    _, _, *sums = simd.emit_loop(b, outer, [w, simd.I64(0), *initial * rows], steps)
    sums_after = [sums[r * panels : (r + 1) * panels] for r in range(rows)]

    def store_row(r: int, p: int, value: Any) -> None:
        address = b.add(b.add(y, b.mul(y_row, simd.I64(r))), simd.I64(p * lanes * size))
        b.store(value, b.inttoptr(address, vector.as_pointer()), align=size)

    with b.if_else(b.icmp_signed("==", source, simd.I64(0))) as (overwrite, accumulate):
        with overwrite:
            for r in range(rows):
                for p in range(panels):
                    store_row(r, p, sums_after[r][p])
        with accumulate:
            for r in range(rows):
                line = b.add(source, b.mul(source_row, simd.I64(r)))
                for p in range(panels):
                    store_row(r, p, b.fadd(sums_after[r][p], load(line, p)))


def _choose(builder: Any, args: list[Any]) -> None:
    """The tile for numbers of so many bytes, for rows (of ROWS) and panels; the rest as of `_tile`."""
    end = builder.append_basic_block("end")
    key = builder.add(builder.mul(builder.add(builder.mul(args[0], simd.I64(MOST_PANELS + 1)), args[2]),
                                  simd.I64(ROWS[0] + 1)), args[1])
    switch = builder.switch(key, end)
    for kind, size in KINDS:
        for panels in range(1, MOST_PANELS + 1):
            for rows in ROWS:
                case = builder.append_basic_block(f"tile{rows}x{panels}x{size}")
                switch.add_case(simd.I64((size * (MOST_PANELS + 1) + panels) * (ROWS[0] + 1) + rows), case)
                builder.position_at_end(case)
                _tile(builder, kind, 4 * simd.LANES // size, rows, panels, args[3:])
                builder.branch(end)
    builder.position_at_end(end)


_tile_variant = simd.define("some_rows", types.void(*[types.int64] * 16), _choose)
_transpose32, _transpose64 = (simd.make_transpose(kind, 4 * simd.LANES // size) for kind, size in KINDS)


def _multiply(size, rows, panels, first, w, x, source, y, w_step, x_row, x_step, x_jump, k, outer, source_row, y_row):
    tile_rows = ROWS[0]
    while rows > 0:
        while tile_rows > rows:
            tile_rows >>= 1
        _tile_variant(size, tile_rows, panels, first, w, x, source, y, w_step * size, x_row * size, x_step * size,
                      x_jump * size, k, outer, source_row * size, y_row * size)
        rows -= tile_rows
        x, y = x + tile_rows * x_row * size, y + tile_rows * y_row * size
        if source != 0:
            source += tile_rows * source_row * size


multiply = compile_named("segue_multiply", _multiply, 16, **OPTIONS)
"""multiply(size, rows, panels, ...) as of `_tile` for any number of rows of numbers of `size` bytes; steps and rows in
numbers instead of bytes."""


def _blocked_product(size, y, x, w, y_row, x_row, x_step, w_step, rows, inner, columns, accumulate, shape, per_row):
    lanes = 4 * simd.LANES // size
    vectors = (columns + lanes - 1) // lanes
    for first in range(0, rows, BLOCK):
        count, begin, end, num_vectors = min(BLOCK, rows - first), 0, inner, vectors
        if shape == X_LOWER:
            end = min(inner, (first + count) * per_row)
        elif shape == X_UPPER:
            begin = first // per_row
        elif shape == Y_LOWER:
            num_vectors = min(vectors, ((first + count) * per_row + lanes - 1) // lanes)
        for panel in range(0, num_vectors, PANELS):
            into = y + (first * y_row + panel * lanes) * size
            multiply(size, count, min(PANELS, num_vectors - panel), 0, w + (begin * w_step + panel * lanes) * size,
                     x + (first * x_row + begin * x_step) * size, into if accumulate else 0, into, w_step, x_row,
                     x_step, 0, end - begin, 1, y_row, y_row)


def _transpose_blocks(size, source, row, target, line, rows, columns):
    lanes = 4 * simd.LANES // size
    for r in range(0, rows, lanes):
        for c in range(0, columns, lanes):
            block_source, block_target = source + (r * row + c) * size, target + (c * line + r) * size
            if size == 4:
                _transpose32(block_source, row * size, block_target, line * size)
            else:
                _transpose64(block_source, row * size, block_target, line * size)


blocked = compile_named("segue_product", _blocked_product, 14, **OPTIONS)
"""blocked(size, y, x, w, y_row, x_row, x_step, w_step, rows, inner, columns, plus, shape, many): y (+)= x @ w, of whole
vectors of columns; see `product`."""
_transpose = compile_named("segue_turn", _transpose_blocks, 7, **OPTIONS)


def at(array):
    raise NotImplementedError


@overload(at, inline="always")
def _typed_at(array):
    return lambda array: np.int64(array.ctypes.data)


@bare
def padded(count, size):
    """`count` numbers of `size` bytes, rounded up to whole vectors."""
    lanes = 4 * simd.LANES // size
    return (count + lanes - 1) // lanes * lanes


@bare
def product(y, x, w, rows, inner, columns, transposed, accumulate, shape, per_row):
    """y (+)= x @ w, or x^T @ w if `transposed`, of buffers that are whole vectors wide; the triangles of `shape` have
    `per_row` columns per row (X_LOWER, Y_LOWER) or rows per column (X_UPPER)."""
    x_row, x_step = (1, x.shape[1]) if transposed else (x.shape[1], 1)
    blocked(y.itemsize, at(y), at(x), at(w), y.shape[1], x_row, x_step, w.shape[1], rows, inner,
            columns, accumulate, shape, per_row)


@bare
def accumulate_rows(y, x, w, first, rows, begin, end, columns, transposed):
    """Rows first, first + 1, ... of y += x @ w, over begin..end of the inner index."""
    x_row, x_step = (1, x.shape[1]) if transposed else (x.shape[1], 1)
    size = y.itemsize
    blocked(size, at(y) + first * y.shape[1] * size, at(x) + (first * x_row + begin * x_step) * size,
            at(w) + begin * w.shape[1] * size, y.shape[1], x_row, x_step, w.shape[1], rows, end - begin, columns, True,
            FULL, 1)


@bare
def transpose(source, target, rows, columns):
    """target = source^T, of buffers that are whole vectors high and wide."""
    _transpose(source.itemsize, at(source), source.shape[1], at(target), target.shape[1], rows, columns)


@bare
def load(lines, row, start, column, count, width, target):
    """Numbers place .. place + width of `count` nodes from `start` on, into the beginning of a buffer. lines: (B, T,
    ...), numbers as they lie, and how many it is from row to row and from node to node."""
    size, address = target.itemsize, at(target)
    source = at(lines[0]) + (row * lines[1] + start * lines[2] + column) * size
    for t in range(count):
        simd.copy(address + t * target.shape[1] * size, source + t * lines[2] * size, width * size)


@bare
def store(source, target, row, head, start, count, width):
    """The inverse of `load`, into a dense (B, T, H, E)."""
    size, stride = source.itemsize, target.shape[2] * target.shape[3]
    address = at(target) + ((row * target.shape[1] + start) * stride + head * target.shape[3]) * size
    for t in range(count):
        simd.copy(address + t * stride * size, at(source) + t * source.shape[1] * size, width * size)


def _scale(accumulate: bool, builder: Any, kind: Any, args: list[Any]) -> None:
    rows, wide, x, x_row, factors, y, y_row = args

    def line(r: Any) -> list[Any]:
        factor = Numbers.broadcast(builder, kind, builder.load(element_pointer(builder, kind, factors, r)))
        source, target = builder.add(x, builder.mul(x_row, r)), builder.add(y, builder.mul(y_row, r))

        def body(place: Place) -> list[Numbers]:
            value = factor * place.get(source)
            place.put(place.get(target) + value if accumulate else value, target)
            return []

        loop_row(builder, kind, wide, body)
        return []

    simd.emit_loop(builder, rows, [], line)


def _dot(builder: Any, kind: Any, args: list[Any]) -> None:
    rows, wide, x, x_row, y, y_row, output = args

    def line(r: Any) -> list[Any]:
        left, right = builder.add(x, builder.mul(x_row, r)), builder.add(y, builder.mul(y_row, r))
        (total,) = loop_row(builder, kind, wide, lambda place,
                            total: [total + place.get(left) * place.get(right)], 0.0)
        builder.store(builder.extract_element(total.sum().value, simd.I32(0)),
                      element_pointer(builder, kind, output, r))
        return []

    simd.emit_loop(builder, rows, [], line)


_scaled_variant = dispatch("some_scaled", 7, {plus: partial(_scale, bool(plus)) for plus in (0, 1)})
_dots_variant = dispatch("some_dots", 7, {0: _dot})


def _scales(size, accumulate, rows, wide, x, x_row, factors, y, y_row):
    _scaled_variant(accumulate, size, rows, wide, x, x_row * size, factors, y, y_row * size)


def _dots(size, rows, wide, x, x_row, y, y_row, into):
    _dots_variant(0, size, rows, wide, x, x_row * size, y, y_row * size, into)


scaled = compile_named("segue_scaled", _scales, 9, **OPTIONS)
"""scaled(size, plus, rows, wide, x, x_row, by, y, y_row): y[r] (+)= by[r] * x[r]; rows in numbers."""
dotted = compile_named("segue_dotted", _dots, 8, **OPTIONS)
"""dotted(size, rows, wide, x, x_row, y, y_row, into): into[r] = the sum of x[r] * y[r]."""


@bare
def scale(source, factors, target, rows):
    """target[r] = by[r] * source[r]"""
    scaled(target.itemsize, False, rows, target.shape[1], at(source), source.shape[1], at(factors), at(target),
           target.shape[1])


@bare
def scale_in_place(x, factors, index):
    """x *= by[place]"""
    scaled(x.itemsize, False, 1, x.size, at(x), 0, at(factors) + index * x.itemsize, at(x), 0)


@bare
def row_dots(x, y, output, rows):
    """into[r] = x[r] . y[r]"""
    dotted(x.itemsize, rows, x.shape[1], at(x), x.shape[1], at(y), y.shape[1], at(output))


@bare
def outer_product(x, factors, target, rows):
    """target[r] = by[r] * x, x and by of one row"""
    scaled(target.itemsize, False, rows, target.shape[1], at(x), 0, at(factors), at(target), target.shape[1])


@bare
def inner_product(x, y, rows, output):
    """The sum of x * y over `rows` rows; output: a buffer of one number."""
    dotted(x.itemsize, 1, rows * x.shape[1], at(x), 0, at(y), 0, at(output))
    return output[0]
