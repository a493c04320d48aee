"""Numba's `njit` with an on-disk cache, next to the sources or in the user's cache folder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba


def jit(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """`numba.njit` with these options, cached on disk; where the sources are read-only and the user has no home, as in
    containers, in the cache of the compiled engine (`segue.kernels.cpu.cache`)."""

    def compile(function: Callable[..., Any]) -> Any:
        try:
            return numba.njit(cache=True, **options)(function)
        except RuntimeError:  # "cannot cache function: no locator available"
            from segue.kernels.cpu.cache import compile_cached

            return compile_cached(function, **options)

    return compile
