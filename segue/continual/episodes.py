"""Continual few-shot tasks: short streams of small sets, drawn from any table of labelled rows (Antoniou et al. 2020,
arXiv 2004.11967), and tests of recognising the training rows themselves (2022, arXiv 2209.07863)."""

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
    """sets: the training sets, in order. test: the test rows of all sets. Targets are from 0 to `classes` - 1, and no
    test row is a training row (except for `instances`, where each is the same row).

    rows: the indices in the table of each set's rows. test_rows: those of the test.
    """

    sets: list[Batch]
    test: Batch
    classes: int
    rows: list[Tensor]
    test_rows: Tensor


class Episodes:
    """Draws episodes; each depends on the seed and its number only.

    table: labelled rows, one class per row. sets: per episode (NSS). change: number of sets after which the classes
    change (CCI), so that there are way * sets / change classes in all. way: classes per set. shot: rows per class and
    set. targets: test rows per class and set.
    instances: recognise rows instead of classes: all rows of an episode are of one class of the table, each is a class
        of the episode, and the test has the same rows; corrupt it to make that hard.
    """

    def __init__(self, table: Batch, sets: int = 4, change: int = 2, way: int = 5, shot: int = 1, targets: int = 5,
                 instances: bool = False, seed: int = 0) -> None:
        if min(sets, change, way, shot, targets) < 1 or sets % change:
            raise SegueError(f"{sets} sets cannot change classes every {change}, with {way} classes, {shot} rows and "
                             f"{targets} test rows of each: all are 1 or more, and sets is a multiple of change")
        self.table, self.sets, self.change, self.way, self.shot = table, sets, change, way, shot
        self.targets, self.instances, self.seed = targets, instances, seed
        self.classes = way * sets // change
        row_labels = np.array(labels_of(table))
        self.rows_of_class = [np.flatnonzero(row_labels == label) for label in np.unique(row_labels)]
        needed = self.classes if instances else change * (shot + targets)
        self.usable_classes = [index for index, indices in enumerate(self.rows_of_class) if len(indices) >= needed]
        if len(self.usable_classes) < (1 if instances else self.classes):
            raise SegueError(f"an episode needs {1 if instances else self.classes} classes of {needed} rows, and the "
                             f"table has {len(self.usable_classes)}: give it more rows, or ask for fewer")

    def __call__(self, number: int) -> Episode:
        draw = np.random.default_rng([self.seed, number])
        rows_per_class = self.change * (self.shot + self.targets)
        if self.instances:
            chosen = draw.choice(self.rows_of_class[draw.choice(self.usable_classes)], self.classes, replace=False)
            rows = np.repeat(chosen[:, None], rows_per_class, 1)
        else:
            chosen_labels = draw.choice(self.usable_classes, self.classes, replace=False)
            rows = np.stack([draw.choice(self.rows_of_class[label], rows_per_class, replace=False)
                             for label in chosen_labels])
        train_rows, test_rows = np.split(rows, [self.change * self.shot], 1)
        sets = []
        for index in range(self.sets):
            group, subset = divmod(index, self.change)
            labels = np.arange(group * self.way, (group + 1) * self.way)
            sets.append((train_rows[labels, subset * self.shot : (subset + 1) * self.shot].ravel(),
                         labels.repeat(self.shot)))
        test = test_rows.ravel(), np.arange(self.classes).repeat(test_rows.shape[1])
        set_rows = [torch.from_numpy(set_rows_) for set_rows_, _ in sets]
        return Episode([relabel(self.table, *pair) for pair in sets], relabel(self.table, *test),
                       self.classes, set_rows, torch.from_numpy(test[0]))


def relabel(table: Batch, rows: np.ndarray, labels: np.ndarray) -> Batch:
    """Rows of the table with their targets replaced by these labels."""
    selected = table.rows(torch.from_numpy(rows))
    new_labels = torch.from_numpy(labels)[:, None].expand(selected.targets.shape)
    return replace(selected, targets=torch.where(selected.targets >= 0, new_labels, -1))


# Corruptions of rows of ids or vectors, up to the last target; padding is unchanged.

def live_mask(batch: Batch) -> Tensor:
    """(B, T) bool: the elements up to the last one with a target."""
    return (batch.targets >= 0).flip(1).cummax(1).values.flip(1)


def add_noise(batch: Batch, share: float, generator: torch.Generator) -> Batch:
    """Replace each id, or each number of a vector, with probability `share` by a random one of the batch (for vectors,
    of the same channel)."""
    tokens, mask = batch.tokens, live_mask(batch)
    values = tokens if tokens.dim() == 3 else tokens[..., None]
    pool = values[mask]  # (M, C)
    drawn = torch.randint(len(pool), values.shape, generator=generator)
    replaced = (torch.rand(values.shape, generator=generator) < share) & mask[..., None]
    return replace(batch, tokens=torch.where(replaced, pool.gather(0, drawn.flatten(0, 1)).view_as(values), values)
                   .view_as(tokens))


def occlude(batch: Batch, share: float, generator: torch.Generator, blank: float = 0) -> Batch:
    """Set one random span of each row, a `share` of its elements, to `blank`."""
    mask = live_mask(batch)
    count = mask.sum(1)
    size = (share * count).round().long()
    start = (torch.rand(len(count), generator=generator) * (count - size + 1)).long()
    positions = torch.arange(mask.shape[1])
    blanked = (positions >= start[:, None]) & (positions < (start + size)[:, None])
    blanked = blanked if batch.tokens.dim() == 2 else blanked[..., None]
    return replace(batch, tokens=batch.tokens.masked_fill(blanked, blank))


CORRUPTIONS: dict[str, Corruption] = {"noise": add_noise, "occlusion": occlude}


def mean_interval(scores: Sequence[float]) -> tuple[float, float]:
    """The mean over episodes, and half the width of its 95% confidence interval (normal)."""
    if len(scores) < 2:
        raise SegueError("one episode has no interval: score two or more")
    return float(np.mean(scores)), float(1.96 * np.std(scores, ddof=1) / len(scores) ** 0.5)
