"""Synthetic tasks: a vocabulary and a generator of rows of any length."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from segue.objectives import Batch, generator_of


@dataclass(frozen=True)
class Task:
    """name. vocabulary: ids and targets are below it. draw: (rows, length, generator) -> Batch of that many rows of
    `length` elements, with target -1 where there is no question. chance: accuracy of guessing. source: the paper it
    comes from. shortest: the least length of a row."""

    name: str
    vocabulary: int
    draw: Callable[[int, int, torch.Generator], Batch]
    chance: float
    source: str = ""
    shortest: int = 2

    def batches(self, rows: int, lengths: tuple[int, int], seed: int = 0) -> Callable[[int], Batch]:
        """Batches as a pure function of the training step, of one random length each, between the two (inclusive)."""

        def batch(step: int) -> Batch:
            generator = generator_of(seed, step)
            length = int(torch.randint(lengths[0], lengths[1] + 1, (), generator=generator))
            return self.draw(rows, length, generator)

        return batch

    def test(self, rows: int, length: int, seed: int = 0) -> Batch:
        """Rows from a stream that no training step draws from."""
        return self.draw(rows, length, torch.Generator().manual_seed(-1 - seed))


@dataclass(frozen=True)
class Curriculum:
    """A size that grows while training: from `first` to `last`, `by` more every `every` steps."""

    first: int
    last: int
    every: int
    by: int = 1

    def at(self, step: int) -> int:
        return min(self.last, self.first + step // self.every * self.by)


def read_twice(batch: Batch) -> Batch:
    """Every row repeated once, with targets only in the second copy: a model of limited memory reads the second copy
    knowing the question (Arora et al. 2024, arXiv 2407.05483)."""
    ignored = torch.full_like(batch.targets, -1)
    prompt = None if batch.prompt is None else torch.cat([torch.ones_like(batch.prompt), batch.prompt], 1)
    return Batch(torch.cat([batch.tokens, batch.tokens], 1), torch.cat([ignored, batch.targets], 1), prompt=prompt)
