"""The memory that a computation needs."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _StorageTracker(TorchDispatchMode):
    """Tracks the total size of the storages that operators allocate, until they are freed."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, int] = {}
        self.current = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = {id(x.untyped_storage()) for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if not isinstance(x, torch.Tensor):
                continue
            storage = x.untyped_storage()
            if id(storage) not in self.live and id(storage) not in inputs:
                self.live[id(storage)] = size = storage.nbytes()
                self.current += size
                weakref.finalize(storage, self._freed, id(storage))
        self.peak = max(self.peak, self.current)
        return out

    def _freed(self, key: int) -> None:
        self.current -= self.live.pop(key, 0)


def peak_memory(function: Callable[[], Any]) -> int:
    """Bytes: the largest total of tensors allocated by `function` that were alive together, its result included.
    Scratch space inside an operator is not seen."""
    with _StorageTracker() as tracker:
        result = function()
    del result
    return tracker.peak


def saved_memory(function: Callable[[], Any], besides: Iterable[torch.Tensor] = ()) -> int:
    """Bytes that autograd saves for the backward pass of what `function` returns, each storage once; those of `besides`
    (the parameters, say) are not counted. Operators on other threads are not seen."""
    excluded = {x.untyped_storage().data_ptr() for x in besides}
    packed: list[weakref.ref[torch.Tensor]] = []

    def pack(x: torch.Tensor) -> torch.Tensor:
        packed.append(weakref.ref(x))
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        graph = function()
    alive = [x.untyped_storage() for x in (ref() for ref in packed) if x is not None]  # without graphs already freed
    sizes = {storage.data_ptr(): storage.nbytes() for storage in alive}
    total = sum(size for address, size in sizes.items() if address not in excluded)
    del graph
    return total
