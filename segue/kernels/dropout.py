"""Dropout that spends little on its random numbers: on a CPU, torch draws one for each element, which is a good part of
a training step of small models. Here 64 random bits serve four elements."""

from __future__ import annotations

import torch
from torch import Tensor, nn

LEVELS = 1 << 16  # of a chance, by 16 random bits


class Dropout(nn.Dropout):
    """As `torch.nn.Dropout`; on a CPU the chance `p` is rounded to 1 / LEVELS, and what is kept scaled accordingly."""

    def forward(self, x: Tensor) -> Tensor:
        kept = round((1 - self.p) * LEVELS)
        if not self.training or x.device.type != "cpu" or kept in (0, LEVELS) or torch.compiler.is_compiling():
            return super().forward(x)
        bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(1 << 63), None).view(torch.int16)
        mask = (bits[: x.numel()] < kept - LEVELS // 2).view(x.shape)
        return x * mask.to(x.dtype).mul_(LEVELS / kept)
