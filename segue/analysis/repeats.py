"""Repeats with variation: edit distances, approximate occurrences of a pattern, and pair counts of clusterings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Ids = Sequence[int] | np.ndarray


def edit_distances(a: Ids, b: Ids, anywhere: bool = True) -> np.ndarray:
    """(len(b) + 1,): at each end position in b, the fewest replacements, insertions and deletions that turn what of b
    ends there into a: the best-matching substring (anywhere; Sellers 1980), or the whole prefix (Levenshtein 1966;
    `segue.analysis.texts.edit_distance` counts swaps too)."""
    b = np.asarray(b)
    steps = np.arange(len(b) + 1)
    row = np.zeros_like(steps) if anywhere else steps
    for i, element in enumerate(a, 1):
        from_above = np.minimum(row[1:] + 1, row[:-1] + (b != element))
        row = np.minimum.accumulate(np.concatenate([[i], from_above]) - steps) + steps  # insertions, from the left
    return row


def distance_table(rows: Sequence[Ids]) -> np.ndarray:
    """(N, N): edit distances between sequences, divided by the length of the longer one."""
    return np.array([[edit_distances(a, b, anywhere=False)[-1] / max(1, len(a), len(b)) for b in rows] for a in rows])


def occurrences(pattern: Ids, ids: Ids, tolerance: float = 0.25) -> list[int]:
    """Ascending end positions in `ids` of approximate occurrences of a pattern, of at most `tolerance` times its length
    edits. Of occurrences closer than half the pattern's length only the best is kept (non-maximum suppression)."""
    distances = edit_distances(pattern, ids)
    min_gap, ends = max(1, len(pattern) // 2), list[int]()
    candidates = np.flatnonzero(distances <= tolerance * len(pattern))
    for candidate in sorted(candidates, key=lambda end: (distances[end], end)):
        if all(abs(int(candidate) - end) >= min_gap for end in ends):
            ends.append(int(candidate))
    return sorted(ends)


def pair_scores(found: np.ndarray, true: np.ndarray) -> tuple[int, int, int]:
    """Pairs of segments in the same cluster in both clusterings (N,), in `found`, and in `true`; label -1 is in no
    cluster."""
    first, second = np.triu_indices(len(found), 1)
    both = [(labels[first] == labels[second]) & (labels[first] >= 0) for labels in (found, true)]
    return int((both[0] & both[1]).sum()), int(both[0].sum()), int(both[1].sum())
