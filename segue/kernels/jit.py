"""Numba's `njit`, whose results are kept beside the sources or in the user's cache, where there is such a place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba


def jit(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """`numba.njit` with these options, cached on disk; where the sources are read-only and the user has no home, as in
    containers, where the engine's code is kept (`segue.kernels.cpu.cache`)."""

    def compile(function: Callable[..., Any]) -> Any:
        try:
            return numba.njit(cache=True, **options)(function)
        except RuntimeError:  # "cannot cache function: no locator available"
            from segue.kernels.cpu.cache import compile_cached

            return compile_cached(function, **options)

    return compile
