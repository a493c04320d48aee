"""Dispatch to compiled loops: whether those of `segue.kernels.cpu` take a tensor, its conversion to arrays, and whether
Triton is available.
"""

from __future__ import annotations

import os
from functools import cache
from importlib.util import find_spec
from shutil import which
from typing import Any

import numpy as np
import torch
from torch import Tensor

COMPILED_FROM = 32
"""Elements from which a sequence takes the compiled loops: a short prompt must not wait for compilation. In training,
which compiles once for many steps, 8 times as many elements over all rows are enough."""


def runs_compiled(x: Tensor, *others: Tensor, complex_too: bool = False) -> bool:
    """Whether the compiled loops support these tensors and are worth it at their length."""
    kinds = (torch.float32, torch.float64, *((torch.complex64, torch.complex128) if complex_too else ()))
    learning = torch.is_grad_enabled() and x.requires_grad
    long = x.shape[1] >= COMPILED_FROM or (learning and x.shape[0] * x.shape[1] >= 8 * COMPILED_FROM)
    return (x.device.type == "cpu" and x.dtype in kinds and long and x.numel() > 0
            and all(y.dtype == x.dtype for y in others) and not torch.compiler.is_compiling())


@cache
def has_triton() -> bool:
    """Whether Triton is installed, and the C compiler that it needs."""
    return find_spec("triton") is not None and any(map(which, (os.environ.get("CC") or "gcc", "clang")))


def as_array(x: Tensor) -> np.ndarray:
    """A tensor as a contiguous array, without a copy where it is contiguous already."""
    return x.detach().resolve_conj().resolve_neg().contiguous().numpy()


def as_flat(x: Tensor) -> np.ndarray:
    """A tensor (B, T, ...) as a contiguous array (B, T, C)."""
    return as_array(x).reshape(*x.shape[:2], -1)


def as_mask(x: Tensor, starts: Tensor | None) -> Tensor:
    """Document starts (B, T) bool of x (B, T, ...) as the compiled loops take them: (B, 0) for None."""
    return torch.zeros(x.shape[0], 0, dtype=torch.bool) if starts is None else starts


def as_lines(x: Tensor) -> tuple[Any, ...]:
    """A strided tensor (..., X) for loops that read it in place, so that a slice of a wider projection is not copied: a
    flat array from its first number to its last, and the strides of all axes but the last."""
    x = x.detach().resolve_neg()
    x = x if x.stride(-1) == 1 else x.contiguous()
    reach = sum((n - 1) * stride for n, stride in zip(x.shape, x.stride())) + 1 if x.numel() else 0
    return x.as_strided((reach,), (1,)).numpy(), *x.stride()[:-1]


def chunk_count(length: int, chunk: int, starts: Tensor) -> int:
    """The most chunks of a row, if a chunk also ends where a document does."""
    return -(-length // chunk) + (int(starts.sum(1).max()) if starts.numel() else 0)
