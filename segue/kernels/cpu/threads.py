"""Loops over rows on all cores: a function compiled without the interpreter lock, its range split between threads."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import torch


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=max(os.cpu_count() or 1, 2), thread_name_prefix="segue-rows")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not live on in a child


def share(function: Callable[..., None], count: int, *arguments: Any) -> None:
    """Call `function(begin, end, *arguments)` so that 0..count is covered, on as many threads as torch uses."""
    parts = min(torch.get_num_threads(), count)
    edges = [count * part // parts for part in range(parts + 1)] if parts else [0]
    waiting = [_pool().submit(function, begin, end, *arguments) for begin, end in zip(edges[1:-1], edges[2:])]
    if parts:
        function(edges[0], edges[1], *arguments)
    for part in waiting:
        part.result()
