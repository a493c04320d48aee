"""A pool of large buffers for reuse: the system clears each page of fresh memory at its first use, which takes longer
than computing what is written there."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

LINE = 64  # bytes of a line of the cache, where a buffer begins
LEAST, MOST = 1 << 20, 1 << 30  # bytes: the smallest buffer worth keeping, and the limit of the pool
KINDS = {torch.float32: np.float32, torch.float64: np.float64}


class _Loan:
    """A block that returns to the pool when the last tensor over it is freed."""

    spare: ClassVar[dict[int, np.ndarray]] = {}  # the longest idle first

    def __init__(self, memory: np.ndarray) -> None:
        self.memory = memory
        self.__array_interface__ = memory.__array_interface__

    def __del__(self) -> None:
        if len(self.memory) >= LEAST:
            self.spare[id(self.memory)] = self.memory
            while sum(map(len, list(self.spare.values()))) > MOST:
                self.spare.pop(next(iter(self.spare)))


def pooled_empty(like: Tensor, *shape: int) -> Tensor:
    """An uninitialised tensor of this shape from the pool, of the dtype of `like` (float32 or float64)."""
    size = math.prod(shape) * like.element_size()
    fitting = (key for key, block in list(_Loan.spare.items()) if size + LINE <= len(block) <= 2 * size)
    memory = _Loan.spare.pop(next(fitting, -1), None)  # None also if another thread took it
    if memory is None:
        memory = np.empty(size + LINE, np.uint8)  # NumPy requests huge pages
    begin = -memory.ctypes.data % LINE
    return torch.from_numpy(np.asarray(_Loan(memory))[begin : begin + size].view(KINDS[like.dtype]).reshape(shape))
