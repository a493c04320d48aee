"""Coherence of music: pitch and rhythm similarity of consecutive bars, and the recurrence of themes (measures named in
Theme Transformer, 2021, arXiv 2111.04093; the grooving similarity is of Wu & Yang 2020, arXiv 2008.01307).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from segue.errors import SegueError
from segue.kinds.notes import GRID, Note

BAR = 4 * GRID  # steps


def pitch_classes(notes: Iterable[Note], bar: int = BAR) -> np.ndarray:
    """(bars, 12): the total length in steps of the notes of each pitch class, by the bar in which they begin."""
    notes = list(notes)
    table = np.zeros((1 + max((note.start // bar for note in notes), default=-1), 12))
    for note in notes:
        table[note.start // bar, note.pitch % 12] += note.length
    return table


def grooves(notes: Iterable[Note], bar: int = BAR, places: int = 16) -> np.ndarray:
    """(bars, places) bool: at which positions of the bar a note begins."""
    notes = list(notes)
    table = np.zeros((1 + max((note.start // bar for note in notes), default=-1), places), bool)
    for note in notes:
        table[note.start // bar, note.start % bar * places // bar] = True
    return table


def pitch_consistency(notes: Iterable[Note], bar: int = BAR) -> float:
    """The mean overlap of the pitch-class histograms of consecutive bars, 0 to 1. Pairs with a bar without notes are
    left out; nan where no pair is left."""
    table = pitch_classes(notes, bar)
    total = table.sum(1, keepdims=True)
    shares = table / np.where(total > 0, total, 1)
    valid = (total[1:] > 0) & (total[:-1] > 0)
    return float(np.minimum(shares[1:], shares[:-1]).sum(1)[valid[:, 0]].mean()) if valid.any() else float("nan")


def groove_consistency(notes: Iterable[Note], bar: int = BAR, places: int = 16) -> float:
    """The mean share of positions at which consecutive bars agree whether a note begins, 0 to 1."""
    table = grooves(notes, bar, places)
    return float((table[1:] == table[:-1]).mean()) if len(table) > 1 else float("nan")


def theme_gaps(themes: Sequence[tuple[int, int]]) -> list[int]:
    """Bars between the end of each theme (begin, end) and the beginning of the next."""
    if any(begin >= end for begin, end in themes) or any(a[1] > b[0] for a, b in zip(themes, themes[1:])):
        raise SegueError(f"themes {list(themes)[:5]} are bars from which and up to which, in order")
    return [after[0] - before[1] for before, after in zip(themes, themes[1:])]


def inconsistency(vectors: np.ndarray, condition: np.ndarray | None = None) -> float:
    """Mean cosine distance of segment vectors (N, D) (see `segue.training.motifs.MotifRetriever.vectors`): to a
    condition (D,), the theme uncontrollability; without one, between all pairs, the melody or theme inconsistency."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    if condition is not None:
        return float(1 - (unit @ (condition / np.linalg.norm(condition))).mean())
    first, second = np.triu_indices(len(unit), 1)
    return float(1 - (unit[first] * unit[second]).sum(1).mean()) if len(first) else float("nan")
