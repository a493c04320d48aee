"""What a synthetic task is: a vocabulary and a way to draw rows of a length."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from segue.objectives import Batch, generator_of


@dataclass(frozen=True)
class Task:
    """name. vocabulary: element ids are below it, targets too. draw: (rows, length, generator) -> Batch of that many
    rows of `length` elements, with targets -1 where no answer is asked for. chance: accuracy of a guess. source: the
    paper it comes from. shortest: the least length that holds a whole question."""

    name: str
    vocabulary: int
    draw: Callable[[int, int, torch.Generator], Batch]
    chance: float
    source: str = ""
    shortest: int = 2

    def batches(self, rows: int, lengths: tuple[int, int], seed: int = 0) -> Callable[[int], Batch]:
        """A pure function of the step, as training wants it: rows of one length, drawn between the two (inclusive)."""

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
    """Every row twice, one reading after the other, with its answers asked for only in the second: a model of limited
    memory then knows at the second reading what the first one asked (Arora et al. 2024, arXiv 2407.05483)."""
    unasked = torch.full_like(batch.targets, -1)
    prompt = None if batch.prompt is None else torch.cat([torch.ones_like(batch.prompt), batch.prompt], 1)
    return Batch(torch.cat([batch.tokens, batch.tokens], 1), torch.cat([unasked, batch.targets], 1), prompt=prompt)
