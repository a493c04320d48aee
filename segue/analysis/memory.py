"""How much memory a computation needs at once."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Watch(TorchDispatchMode):
    """Counts the storages that operators make, from their making until nobody holds them."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, int] = {}
        self.now = self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {id(x.untyped_storage()) for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if not isinstance(x, torch.Tensor):
                continue
            storage = x.untyped_storage()
            if id(storage) not in self.live and id(storage) not in given:
                self.live[id(storage)] = size = storage.nbytes()
                self.now += size
                weakref.finalize(storage, self._gone, id(storage))
        self.most = max(self.most, self.now)
        return out

    def _gone(self, key: int) -> None:
        self.now -= self.live.pop(key, 0)


def peak_memory(function: Callable[[], Any]) -> int:
    """Bytes: the largest total of tensors that `function` made and that were alive together, what it returns included.
    Scratch space inside an operator does not show."""
    with _Watch() as watch:
        kept = function()
    del kept
    return watch.most


def saved_memory(function: Callable[[], Any], besides: Iterable[torch.Tensor] = ()) -> int:
    """Bytes that the graph of what `function` returns keeps for the way back, each storage once; those of `besides`
    (the parameters, say) are not counted. Operators on other threads do not show."""
    known = {x.untyped_storage().data_ptr() for x in besides}
    packed: list[weakref.ref[torch.Tensor]] = []

    def pack(x: torch.Tensor) -> torch.Tensor:
        packed.append(weakref.ref(x))
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        graph = function()
    alive = [x.untyped_storage() for x in (ref() for ref in packed) if x is not None]  # others' graphs are gone
    total = sum({storage.data_ptr(): storage.nbytes() for storage in alive if storage.data_ptr() not in known}.values())
    del graph
    return total
