"""Repeats with variation: edit distances, where a pattern returns, and how well segments were grouped."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Ids = Sequence[int] | np.ndarray


def edit_distances(a: Ids, b: Ids, anywhere: bool = True) -> np.ndarray:
    """(len(b) + 1,): the fewest replacements, insertions and deletions that make a of what of b ends there, of all of
    it (Levenshtein 1966; swaps too: `segue.analysis.texts`), or of the part that fits best (anywhere; Sellers 1980)."""
    b = np.asarray(b)
    steps = np.arange(len(b) + 1)
    row = np.zeros_like(steps) if anywhere else steps
    for number, each in enumerate(a, 1):
        above = np.minimum(row[1:] + 1, row[:-1] + (b != each))
        row = np.minimum.accumulate(np.concatenate([[number], above]) - steps) + steps  # insertions, from the left
    return row


def distance_table(rows: Sequence[Ids]) -> np.ndarray:
    """(N, N): edit distances between sequences, over the length of the longer one."""
    return np.array([[edit_distances(a, b, anywhere=False)[-1] / max(1, len(a), len(b)) for b in rows] for a in rows])


def occurrences(pattern: Ids, ids: Ids, tolerance: float = 0.25) -> list[int]:
    """Where in `ids` a pattern ends that is there within `tolerance` of its length in edits: of places nearer to each
    other than half the pattern the best, in order."""
    found = edit_distances(pattern, ids)
    room, ends = max(1, len(pattern) // 2), list[int]()
    for at in sorted(np.flatnonzero(found <= tolerance * len(pattern)), key=lambda each: (found[each], each)):
        if all(abs(int(at) - end) >= room for end in ends):
            ends.append(int(at))
    return sorted(ends)


def pair_scores(found: np.ndarray, true: np.ndarray) -> tuple[int, int, int]:
    """How many pairs of segments are together in both clusterings (N,), in `found`, and in `true`; -1 is with none."""
    first, second = np.triu_indices(len(found), 1)
    both = [(labels[first] == labels[second]) & (labels[first] >= 0) for labels in (found, true)]
    return int((both[0] & both[1]).sum()), int(both[0].sum()), int(both[1].sum())
