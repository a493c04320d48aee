"""How the compiled loops of training are compiled, and what they share, in float32 and float64.

Inputs that need not be contiguous come as `lines`: a flat array, and the strides of all axes but the last."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from numba import njit, types
from numba.extending import overload

from segue.kernels.cpu import simd
from segue.kernels.cpu.cache import compile_cached

FAST = {"reassoc", "contract", "nsz", "arcp"}  # reorder sums and fuse; infinities and NaN stay what they are
OPTIONS: dict[str, Any] = {"fastmath": FAST, "error_model": "numpy"}
"""A test for division by zero would keep loops from vectorising."""
bare = njit(**OPTIONS, _nrt=False, no_cpython_wrapper=True, no_cfunc_wrapper=True)
"""For what compiled code calls per node: counting the references to slices of arrays would cost more than the sums."""


def kernel(function: Callable[..., Any]) -> Any:
    """For what torch calls."""
    return compile_cached(function, **OPTIONS, no_cfunc_wrapper=True)


def size_of(array: Any) -> int:
    """The bytes of a number of an array: as its `itemsize`, but known when compiled, so that there is no code for
    numbers of another kind (see `segue.kernels.cpu.vectors.dispatch`)."""
    return array.itemsize


@overload(size_of, inline="always")
def _typed_size(array):
    size = array.dtype.bitwidth // 8
    return lambda array: size


def exp(x: Any) -> Any:
    return math.exp(x)


@overload(exp, inline="always")
def _typed_exp(x):
    if x == types.float32:
        return lambda x: simd.exp(x)
    return lambda x: math.exp(x)


def exp2(x: Any) -> Any:
    return 2**x


@overload(exp2, inline="always")
def _typed_exp2(x):
    if x == types.float32:
        return lambda x: simd.exp2(x)
    return lambda x: math.exp(x * math.log(2))


@bare
def copy(source, target):
    for j in range(len(target)):
        target[j] = source[j]


@bare
def add(x, y):
    """x += y"""
    for j in range(len(y)):
        x[j] += y[j]


@bare
def dot(x, y, count):
    total = x.dtype.type(0)
    for c in range(count):
        total += x[c] * y[c]
    return total
