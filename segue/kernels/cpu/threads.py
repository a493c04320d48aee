"""Parallel loops: a function compiled without the interpreter lock, its range split between threads.

The threads are those of torch's own OpenMP, where it can be called: after a parallel operation these spin for a while,
and would take the cores from any other threads."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import torch

_PART = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_PROCESS = os.getpid()


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=max(os.cpu_count() or 1, 2), thread_name_prefix="segue-rows")


@cache
def _team() -> Callable[..., None] | None:
    """GNU OpenMP's function to run a callback on a number of threads, if torch brought it; None in a forked process,
    which has none of its threads."""
    try:
        team = ctypes.CDLL(None).GOMP_parallel if os.getpid() == _PROCESS else None
    except (AttributeError, OSError, TypeError):
        return None
    if team is not None:
        team.argtypes, team.restype = [_PART, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint], None
    return team


def _forked() -> None:
    _pool.cache_clear()
    _team.cache_clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)  # threads do not live on in a child


def parallel_for(function: Callable[..., None], count: int, *arguments: Any) -> None:
    """Call `function(begin, end, *arguments)` on parts that together cover 0..count, on as many threads as torch
    uses."""
    parts = min(torch.get_num_threads(), count)
    edges = [count * part // parts for part in range(parts + 1)] if parts else [0]
    remaining, errors = iter(list(zip(edges, edges[1:]))), list[BaseException]()

    def work(_: Any = None) -> None:
        try:
            for begin, end in remaining:  # whoever comes takes the next part
                function(begin, end, *arguments)
        except BaseException as error:  # which a thread that is not Python's would lose
            errors.append(error)

    team = _team()
    if parts > 1 and team is not None:
        team(_PART(work), None, parts, 0)
    else:
        futures = [_pool().submit(work) for _ in range(parts - 1)]
        work()
        for future in futures:
            future.result()
    if errors:
        raise errors[0]
