"""When a tensor is one for the compiled loops of `segue.kernels.cpu`, and how they take it; whether Triton's run here.
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
"""Shorter sequences stay in torch: a short prompt must not wait for a compiler. Training waits once for many steps:
there so many elements count, times 8, over all rows."""


def runs_compiled(x: Tensor, *others: Tensor, complex_too: bool = False) -> bool:
    """Whether the compiled loops take these tensors, and are worth it at their length."""
    kinds = (torch.float32, torch.float64, *((torch.complex64, torch.complex128) if complex_too else ()))
    learning = torch.is_grad_enabled() and x.requires_grad
    long = x.shape[1] >= COMPILED_FROM or (learning and x.shape[0] * x.shape[1] >= 8 * COMPILED_FROM)
    return (x.device.type == "cpu" and x.dtype in kinds and long and x.numel() > 0
            and all(y.dtype == x.dtype for y in others) and not torch.compiler.is_compiling())


@cache
def has_triton() -> bool:
    """Whether Triton is there, and the C compiler without which it runs nothing."""
    return find_spec("triton") is not None and any(map(which, (os.environ.get("CC") or "gcc", "clang")))


def as_array(x: Tensor) -> np.ndarray:
    """The numbers of a tensor, one after the other; no copy where they lie so."""
    return x.detach().resolve_conj().resolve_neg().contiguous().numpy()


def as_flat(x: Tensor) -> np.ndarray:
    """(B, T, ...) -> an array (B, T, C)."""
    return as_array(x).reshape(*x.shape[:2], -1)


def as_mask(x: Tensor, starts: Tensor | None) -> Tensor:
    """The document starts (B, T) bool of x (B, T, ...) as compiled loops take them: (B, 0) for none."""
    return torch.zeros(x.shape[0], 0, dtype=torch.bool) if starts is None else starts


def as_lines(x: Tensor) -> tuple[Any, ...]:
    """(..., X) for loops that read it where it lies, as a slice of a wider projection need not be copied: all numbers
    from the first to the last, and how many it is from one to the next along each axis but the last."""
    x = x.detach().resolve_neg()
    x = x if x.stride(-1) == 1 else x.contiguous()
    reach = sum((n - 1) * stride for n, stride in zip(x.shape, x.stride())) + 1 if x.numel() else 0
    return x.as_strided((reach,), (1,)).numpy(), *x.stride()[:-1]


def chunk_count(length: int, chunk: int, starts: Tensor) -> int:
    """How many chunks a row may have, of which each ends where a document does."""
    return -(-length // chunk) + (int(starts.sum(1).max()) if starts.numel() else 0)
