"""Accuracy of filling blanks, in sequences of which an instrument reads only some letters, and two baselines without
training: the most frequent letter, and retrieval of the most similar sequence (arXiv 2408.00892).

Rows are arrays of ids. Ids in `known` are readable at every position; all others are blanks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from segue.errors import SegueError


@dataclass(frozen=True)
class BlankScores:
    """Counts by sequence (n,). right: blanks that were filled correctly. blanks: all of them. lengths: elements."""

    right: np.ndarray
    blanks: np.ndarray
    lengths: np.ndarray

    @property
    def each(self) -> np.ndarray:
        """Accuracy on the blanks of each sequence that has any."""
        return self.right[self.blanks > 0] / self.blanks[self.blanks > 0]

    @property
    def mean(self) -> float:
        """The mean of `each` over sequences; nan where no sequence has blanks."""
        return float(self.each.mean()) if (self.blanks > 0).any() else float("nan")

    @property
    def pooled(self) -> float:
        """Accuracy over all blanks of all sequences; nan where there are none."""
        return float(self.right.sum() / self.blanks.sum()) if self.blanks.sum() else float("nan")

    @property
    def identity(self) -> float:
        """Accuracy over all elements; readable ones, which need no prediction, count as correct."""
        return float((self.right + self.lengths - self.blanks).sum() / max(1, self.lengths.sum()))


def blank_scores(guesses: Sequence[np.ndarray], truths: Sequence[np.ndarray], known: Sequence[int]) -> BlankScores:
    """Compare filled sequences with the true ones, blank by blank."""
    if [len(row) for row in guesses] != [len(row) for row in truths]:
        raise SegueError("guesses and truths are not as many, or not as long: give one guess for each element")
    blanks = [~np.isin(row, known) for row in truths]
    right = [int(((guess == row) & blank).sum()) for guess, row, blank in zip(guesses, truths, blanks)]
    return BlankScores(np.array(right, np.int64), np.array([int(blank.sum()) for blank in blanks], np.int64),
                       np.array([len(row) for row in truths], np.int64))


class PatternLookup:
    """Fills blanks by retrieval: from the stored sequence of the same length whose readable letters match best.

    rows: the stored sequences. `commonest` is their most frequent unreadable id: it fills blanks where no sequence has
    the same length, and where the retrieved one has a readable letter.
    """

    def __init__(self, rows: Sequence[np.ndarray], known: Sequence[int]) -> None:
        self.known = np.array(list(known))
        flat = np.concatenate(rows) if len(rows) else np.zeros(0, np.int64)
        hidden = flat[~np.isin(flat, self.known)]
        if not hidden.size:
            raise SegueError("there is no blank in these sequences: nothing can be looked up")
        self.commonest = int(np.bincount(hidden).argmax())
        lengths = np.array([len(row) for row in rows])
        self.tables = {n: np.stack([row for row in rows if len(row) == n]) for n in np.unique(lengths).tolist()}
        self.patterns = {n: self.pattern(table) for n, table in self.tables.items()}

    def pattern(self, row: np.ndarray) -> np.ndarray:
        """What is readable of a row or table: its ids, -1 at blanks."""
        return np.where(np.isin(row, self.known), row, -1)

    def find(self, row: np.ndarray) -> tuple[np.ndarray | None, float]:
        """The stored sequence that matches a row best (the first of equals), and its similarity: of the positions that
        are readable in either, the share at which both have the same id. The ids at the row's blanks are not used."""
        query, patterns = self.pattern(row), self.patterns.get(len(row))
        if patterns is None:
            return None, 0.0
        equal = ((patterns == query) & (query >= 0)).sum(1)
        similarity = equal / np.maximum(1, ((patterns >= 0) | (query >= 0)).sum(1))
        best = int(similarity.argmax())
        return self.tables[len(row)][best], float(similarity[best])

    def fill(self, row: np.ndarray) -> np.ndarray:
        """The row with its blanks filled."""
        nearest = self.find(row)[0]
        guess = np.full(len(row), self.commonest) if nearest is None else \
            np.where(np.isin(nearest, self.known), self.commonest, nearest)
        return np.where(np.isin(row, self.known), row, guess)
