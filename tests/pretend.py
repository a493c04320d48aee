"""A device that is not there: on any machine, torch as it is where there is a GPU, to find tensors that meet on two.

Within `pretended()` tensors made on, or moved to, "cuda" are kept on the CPU and remembered: they say that they are on
"cuda", so does all that is computed from them, and what a GPU would refuse is refused: an operation on tensors of both
devices, a random generator of the other, NumPy. Numbers are real, so that whole runs go through; the precision is not.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

CUDA, CPU = torch.device("cuda"), torch.device("cpu")
aten = torch.ops.aten
INDEXED = {aten.index.Tensor, aten._unsafe_index.Tensor, aten.index_put_.default, aten.index_put.default,
           aten._index_put_impl_.default}  # places may lie on the CPU
ACROSS = {aten.copy_.default, aten._to_copy.default, aten._copy_from.default}
STRICT = {aten.cat.default, aten.stack.default}  # no single numbers of the CPU either


class Mixed(RuntimeError):
    """Tensors of two devices in one operation."""


def is_on_device(tensor: Tensor) -> bool:
    """Whether a tensor is on the pretended device."""
    with torch._C.DisableTorchFunction():
        if tensor.layout != torch.strided:
            return getattr(tensor, "_pretended", False)
        return getattr(tensor.untyped_storage(), "_pretended", False)


def mark(value: Any, on: bool = True) -> Any:
    """Mark the tensors in a value as there, or not."""
    def mark_leaf(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            with torch._C.DisableTorchFunction():
                (leaf if leaf.layout != torch.strided else leaf.untyped_storage())._pretended = on  # type: ignore
        return leaf

    return tree_map(mark_leaf, value)


class Operations(TorchDispatchMode):
    """Sees every operation: refuses mixtures, and marks what comes out.

    inside: the call whose operations these are was given tensors that are there, so that what it makes is there too.
    """

    inside = False

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        leaves, _ = tree_flatten((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        on = [is_on_device(tensor) for tensor in tensors]
        if any(on) and function not in ACROSS:
            operands = tensors
            if function in INDEXED and on[0]:
                operands = [args[0], *args[2:3]]
            strict = function in STRICT
            if single := [t for t in operands if isinstance(t, Tensor) and not is_on_device(t) and (t.dim() or strict)]:
                shapes = ", ".join(f"{tuple(t.shape)} on {'cuda' if is_on_device(t) else 'cpu'}" for t in tensors)
                raise Mixed(f"{function}: tensors on two devices ({shapes}): {len(single)} on the CPU")
        out = function(*args, **kwargs)
        if function in ACROSS:
            return out if function is aten.copy_.default else mark(out, on[0])
        return mark(out) if any(on) or (self.inside and not tensors) else out


class Calls(TorchFunctionMode):
    """Sees every call: `device`, moves, factories, generators, and NumPy."""

    def __init__(self, sort: type[torch.Generator], operations: Operations) -> None:
        super().__init__()
        self.operations, self.sort, self.generators = operations, sort, list[torch.Generator]()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(function, "__name__", "")
        target = args[0] if args and isinstance(args[0], Tensor) else None
        if getattr(function, "__self__", None) is Tensor.device:
            return CUDA if is_on_device(target) else CPU  # type: ignore[arg-type]
        if getattr(function, "__self__", None) is Tensor.is_cuda:
            return is_on_device(target)  # type: ignore[arg-type]
        if function is Tensor.cuda:
            return self.move(args[0], CUDA)
        if function is Tensor.cpu:
            return self.move(args[0], CPU)
        if function is Tensor.to:
            return self.to(args, kwargs)
        if name in ("numpy", "__array__") and target is not None and is_on_device(target) and not kwargs.get("force"):
            raise TypeError("can't convert cuda device type tensor to numpy")
        if name == "is_pinned":
            return False
        if name == "get_device":
            return 0 if is_on_device(target) else -1  # type: ignore[arg-type]
        requested = kwargs.get("device")
        if requested is not None:
            requested = torch.device(requested)
            kwargs["device"] = CPU
        on = requested.type == "cuda" if requested is not None else target is not None and is_on_device(target)
        for argument in (*args, *kwargs.values()):
            if isinstance(argument, self.sort) and on != any(argument is generator for generator in self.generators):
                raise Mixed(f"{name}: a generator of one device for a tensor of another")
        leaves, _ = tree_flatten((args, kwargs))
        was, self.operations.inside = self.operations.inside, any(
            isinstance(leaf, Tensor) and is_on_device(leaf) for leaf in leaves) and requested is None
        try:
            out = function(*args, **kwargs)
        finally:
            self.operations.inside = was
        if requested is not None and isinstance(out, Tensor):
            if name in ("as_tensor", "asarray") and is_on_device(out) != (requested.type == "cuda"):
                out = out.clone()
            return mark(out, requested.type == "cuda")
        if name == "new_tensor" and target is not None:
            return mark(out, is_on_device(target))
        return out

    def move(self, tensor: Tensor, where: torch.device) -> Tensor:
        on = where.type == "cuda"
        return tensor if is_on_device(tensor) == on else mark(tensor.clone(), on)

    def to(self, args: Any, kwargs: Any) -> Tensor:
        tensor, rest, where = args[0], [], None
        for argument in args[1:]:
            if isinstance(argument, Tensor):
                where = CUDA if is_on_device(argument) else CPU
                rest.append(argument.dtype)
            elif isinstance(argument, str | torch.device):
                where = torch.device(argument)
            elif isinstance(argument, torch.dtype):
                rest.append(argument)
        for name in ("device", "other"):
            if (argument := kwargs.pop(name, None)) is not None:
                if isinstance(argument, Tensor):
                    rest.append(argument.dtype)
                    where = CUDA if is_on_device(argument) else CPU
                else:
                    where = torch.device(argument)
        was = is_on_device(tensor)
        out = tensor.to(*rest, **kwargs) if rest or kwargs else tensor
        mark(out, was)
        return out if where is None else self.move(out, where)


@contextmanager
def pretended() -> Iterator[str]:
    """Within, "cuda" is to be had on this thread."""
    real = torch.Generator

    def generator(device: Any = "cpu") -> torch.Generator:
        created = real()
        if torch.device(device).type == "cuda":
            calls.generators.append(created)
        return created

    importlib.import_module("torch._dynamo")  # which the modes load, and which must find the generator unchanged
    operations = Operations()
    calls = Calls(real, operations)
    with ExitStack() as stack:
        stack.enter_context(mock.patch("torch.Generator", generator))
        for kernels in ("rnn._on_gpu", "scan._on_gpu", "fla._installed"):  # which would be started on a GPU
            stack.enter_context(mock.patch(f"segue.kernels.{kernels}", lambda *_: False))
        stack.enter_context(mock.patch("torch.backends.cudnn.is_acceptable", lambda *_: False))
        stack.enter_context(operations)
        stack.enter_context(calls)
        yield "cuda"
