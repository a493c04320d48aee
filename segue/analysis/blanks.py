"""How well blanks were filled in, in sequences of which an instrument can read only some letters; and two baselines
that learn nothing: the commonest letter and the most similar sequence (arXiv 2408.00892).

Rows are arrays of ids; those in `known` can be read wherever they stand, and all others are blanks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from segue.errors import SegueError


@dataclass(frozen=True)
class BlankScores:
    """right, blanks, lengths: (n,) of each sequence, how many blanks were filled in rightly, how many there were, and
    how many elements in all."""

    right: np.ndarray
    blanks: np.ndarray
    lengths: np.ndarray

    @property
    def each(self) -> np.ndarray:
        """The share of right blanks of each sequence that has any."""
        return self.right[self.blanks > 0] / self.blanks[self.blanks > 0]

    @property
    def mean(self) -> float:
        """Over sequences."""
        return float(self.each.mean()) if (self.blanks > 0).any() else float("nan")

    @property
    def pooled(self) -> float:
        """Over all blanks."""
        return float(self.right.sum() / self.blanks.sum()) if self.blanks.sum() else float("nan")

    @property
    def identity(self) -> float:
        """Over all elements, the known ones too, which are right for nothing."""
        return float((self.right + self.lengths - self.blanks).sum() / max(1, self.lengths.sum()))


def blank_scores(guesses: Sequence[np.ndarray], truths: Sequence[np.ndarray], known: Sequence[int]) -> BlankScores:
    """Counts what was filled in rightly."""
    if [len(row) for row in guesses] != [len(row) for row in truths]:
        raise SegueError("guesses and truths are not as many, or not as long: give one guess for each element")
    blanks = [~np.isin(row, known) for row in truths]
    right = [int(((guess == row) & blank).sum()) for guess, row, blank in zip(guesses, truths, blanks)]
    return BlankScores(np.array(right, np.int64), np.array([int(blank.sum()) for blank in blanks], np.int64),
                       np.array([len(row) for row in truths], np.int64))


class PatternLookup:
    """Fills blanks from the sequence of the same length whose readable letters match best: retrieval, and no learning.

    rows: to look up in. `commonest` is their most frequent blank, which stands where there is no such sequence, and
    where the one found has a known letter.
    """

    def __init__(self, rows: Sequence[np.ndarray], known: Sequence[int]) -> None:
        self.known = np.array(list(known))
        flat = np.concatenate(rows) if len(rows) else np.zeros(0, np.int64)
        free = flat[~np.isin(flat, self.known)]
        if not free.size:
            raise SegueError("there is no blank in these sequences: nothing can be looked up")
        self.commonest = int(np.bincount(free).argmax())
        lengths = np.array([len(row) for row in rows])
        self.tables = {n: np.stack([row for row in rows if len(row) == n]) for n in np.unique(lengths).tolist()}
        self.patterns = {n: self.pattern(table) for n, table in self.tables.items()}

    def pattern(self, row: np.ndarray) -> np.ndarray:
        """Ids, -1 at blanks."""
        return np.where(np.isin(row, self.known), row, -1)

    def find(self, row: np.ndarray) -> tuple[np.ndarray | None, float]:
        """The sequence that matches a row best (the first of equals), whatever stands in the row's blanks; and the
        match: of the places where either can be read, the share at which both say the same."""
        seen, patterns = self.pattern(row), self.patterns.get(len(row))
        if patterns is None:
            return None, 0.0
        same = ((patterns == seen) & (seen >= 0)).sum(1)
        match = same / np.maximum(1, ((patterns >= 0) | (seen >= 0)).sum(1))
        best = int(match.argmax())
        return self.tables[len(row)][best], float(match[best])

    def fill(self, row: np.ndarray) -> np.ndarray:
        """The row with its blanks filled in."""
        found = self.find(row)[0]
        guess = np.full(len(row), self.commonest) if found is None else \
            np.where(np.isin(found, self.known), self.commonest, found)
        return np.where(np.isin(row, self.known), row, guess)
