"""Tasks about two sets: a causal model must store the first one before it sees the second."""

from __future__ import annotations

import torch

from segue.objectives import Batch
from segue.tasks.base import Task

ELEMENTS = 64
FIRST, SECOND, ANSWER, BLANK = range(ELEMENTS, ELEMENTS + 4)


def intersection(rows: int, length: int, generator: torch.Generator) -> Batch:
    """A mark, a set, a mark, a set, and a query mark whose target is their one common element (Arora et al. 2024, arXiv
    2407.05483). One set is eight times as large as the other; which one comes first is random in each row. The whole
    row is prompt."""
    small = max(1, (min(length, 59) - 3) // 9)
    large = min(length - 3 - small, ELEMENTS - small)
    drawn = torch.rand(rows, ELEMENTS, generator=generator).argsort(1)[:, : small + large - 1]
    common, smaller, larger = drawn[:, :1], drawn[:, :small], torch.cat([drawn[:, :1], drawn[:, small:]], 1)
    smaller, larger = (x.gather(1, torch.rand(x.shape, generator=generator).argsort(1)) for x in (smaller, larger))

    def mark(token: int, count: int = 1) -> torch.Tensor:
        return torch.full((rows, count), token)

    def row(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.cat([mark(BLANK, length - 3 - small - large), mark(FIRST), a, mark(SECOND), b, mark(ANSWER)], 1)

    small_first = torch.rand(rows, 1, generator=generator) < 0.5
    tokens = torch.where(small_first, row(smaller, larger), row(larger, smaller))
    targets = torch.cat([torch.full((rows, length - 1), -1), common], 1)
    return Batch(tokens, targets, prompt=torch.ones_like(tokens, dtype=torch.bool))


INTERSECTION = Task("intersection", ELEMENTS + 4, intersection, 1 / 4, "arXiv 2407.05483", shortest=5)
