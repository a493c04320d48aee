"""Continual few-shot tasks: short streams of tiny sets, drawn from any table of labelled rows (Antoniou et al. 2020,
arXiv 2004.11967), with a test of the very rows that were seen (2022, arXiv 2209.07863)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from segue.continual.buffer import labels_of
from segue.errors import SegueError
from segue.objectives import Batch

Corruption = Callable[[Batch, float, torch.Generator], Batch]


@dataclass(frozen=True)
class Episode:
    """sets: what is learned, one after the other. test: what is asked at the end, of all sets. Targets are numbers from
    0 to `classes` - 1, and no test row is a row of a set (but in a test of instances, where it is the same one).

    rows: which rows of the table those of each set are, in its order. test_rows: those of the test.
    """

    sets: list[Batch]
    test: Batch
    classes: int
    rows: list[Tensor]
    test_rows: Tensor


class Episodes:
    """Draws episodes; each is a function of seed and number alone.

    table: labelled rows, a class each. sets: in an episode (NSS). change: sets after which classes are new ones (CCI),
    so that there are way * sets / change classes in all. way: classes of a set. shot: rows of a class in a set.
    targets: test rows for each class and set.
    instances: recognise rows, not classes: all rows of an episode are of one class, each is a class of its own, is
        shown as it is and asked for as it is; corrupt the test to make that hard.
    """

    def __init__(self, table: Batch, sets: int = 4, change: int = 2, way: int = 5, shot: int = 1, targets: int = 5,
                 instances: bool = False, seed: int = 0) -> None:
        if min(sets, change, way, shot, targets) < 1 or sets % change:
            raise SegueError(f"{sets} sets cannot change classes every {change}, with {way} classes, {shot} rows and "
                             f"{targets} test rows of each: all are 1 or more, and sets is a multiple of change")
        self.table, self.sets, self.change, self.way, self.shot = table, sets, change, way, shot
        self.targets, self.instances, self.seed = targets, instances, seed
        self.classes = way * sets // change
        rows = np.array(labels_of(table))
        self.of = [np.flatnonzero(rows == label) for label in np.unique(rows)]
        needed = self.classes if instances else change * (shot + targets)
        self.fit = [index for index, of in enumerate(self.of) if len(of) >= needed]
        if len(self.fit) < (1 if instances else self.classes):
            raise SegueError(f"an episode needs {1 if instances else self.classes} classes of {needed} rows, and the "
                             f"table has {len(self.fit)}: give it more rows, or ask for fewer")

    def __call__(self, number: int) -> Episode:
        draw = np.random.default_rng([self.seed, number])
        each = self.change * (self.shot + self.targets)
        if self.instances:
            chosen = draw.choice(self.of[draw.choice(self.fit)], self.classes, replace=False)
            rows = np.repeat(chosen[:, None], each, 1)
        else:
            kinds = draw.choice(self.fit, self.classes, replace=False)
            rows = np.stack([draw.choice(self.of[kind], each, replace=False) for kind in kinds])
        shown, asked = np.split(rows, [self.change * self.shot], 1)
        learned = []
        for index in range(self.sets):
            group, turn = divmod(index, self.change)
            labels = np.arange(group * self.way, (group + 1) * self.way)
            learned.append((shown[labels, turn * self.shot : (turn + 1) * self.shot].ravel(),
                            labels.repeat(self.shot)))
        test = asked.ravel(), np.arange(self.classes).repeat(asked.shape[1])
        numbers = [torch.from_numpy(where) for where, _ in learned]
        return Episode([relabel(self.table, *pair) for pair in learned], relabel(self.table, *test),
                       self.classes, numbers, torch.from_numpy(test[0]))


def relabel(table: Batch, rows: np.ndarray, labels: np.ndarray) -> Batch:
    """Those rows of the table, each with that class wherever it has one."""
    found = table.rows(torch.from_numpy(rows))
    new = torch.from_numpy(labels)[:, None].expand(found.targets.shape)
    return replace(found, targets=torch.where(found.targets >= 0, new, -1))


# What makes rows harder to recognise: ids and vectors alike, up to the asked place; padding stays.

def live_mask(batch: Batch) -> Tensor:
    """(B, T) bool: the elements up to the last that is asked for."""
    return (batch.targets >= 0).flip(1).cummax(1).values.flip(1)


def add_noise(batch: Batch, share: float, generator: torch.Generator) -> Batch:
    """Each id, or each number of a vector by itself, is with chance `share` one that stands anywhere in the batch (of a
    vector, in the same channel)."""
    tokens, there = batch.tokens, live_mask(batch)
    values = tokens if tokens.dim() == 3 else tokens[..., None]
    pool = values[there]  # (M, C)
    drawn = torch.randint(len(pool), values.shape, generator=generator)
    hit = (torch.rand(values.shape, generator=generator) < share) & there[..., None]
    return replace(batch, tokens=torch.where(hit, pool.gather(0, drawn.flatten(0, 1)).view_as(values), values)
                   .view_as(tokens))


def occlude(batch: Batch, share: float, generator: torch.Generator, blank: float = 0) -> Batch:
    """A stretch of each row, the part `share` of its elements at a random place, is `blank`."""
    there = live_mask(batch)
    count = there.sum(1)
    size = (share * count).round().long()
    first = (torch.rand(len(count), generator=generator) * (count - size + 1)).long()
    place = torch.arange(there.shape[1])
    hit = (place >= first[:, None]) & (place < (first + size)[:, None])
    return replace(batch, tokens=batch.tokens.masked_fill(hit if batch.tokens.dim() == 2 else hit[..., None], blank))


CORRUPTIONS: dict[str, Corruption] = {"noise": add_noise, "occlusion": occlude}


def mean_interval(scores: Sequence[float]) -> tuple[float, float]:
    """The mean over episodes, and half the width of its 95% confidence interval (normal)."""
    if len(scores) < 2:
        raise SegueError("one episode has no interval: score two or more")
    return float(np.mean(scores)), float(1.96 * np.std(scores, ddof=1) / len(scores) ** 0.5)
