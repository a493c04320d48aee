"""Tasks of memory: what was read must be said again."""

from __future__ import annotations

import torch

from segue.objectives import Batch
from segue.tasks.base import Task

SYMBOLS = 8


def copy(rows: int, length: int, generator: torch.Generator) -> Batch:
    """Symbols, a mark, then the symbols once more, of which every one is asked for (Hochreiter & Schmidhuber 1997)."""
    n = (length - 1) // 2
    symbols = torch.randint(SYMBOLS, (rows, n), generator=generator)
    tokens = torch.cat([symbols, torch.full((rows, length - 2 * n), SYMBOLS), symbols], 1)
    targets = torch.full_like(tokens, -1)
    targets[:, length - n - 1 : -1] = symbols
    return Batch(tokens, targets)


COPY = Task("copy", SYMBOLS + 1, copy, 1 / SYMBOLS, shortest=3)
