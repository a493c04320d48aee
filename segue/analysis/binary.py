"""How well scores tell two classes apart: at a threshold, over all thresholds, and how sure one may be of it.

labels: (N,) bool. scores: (N,), higher is likelier true; what is at or above a threshold counts as found.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from segue.errors import SegueError


@dataclass(frozen=True)
class Confusion:
    """True and false, positives and negatives. Ratios of nothing are nan."""

    tp: int
    fp: int
    tn: int
    fn: int

    @property
    def sensitivity(self) -> float:
        return _ratio(self.tp, self.tp + self.fn)

    @property
    def specificity(self) -> float:
        return _ratio(self.tn, self.tn + self.fp)

    @property
    def precision(self) -> float:
        return _ratio(self.tp, self.tp + self.fp)

    @property
    def balanced_accuracy(self) -> float:
        return (self.sensitivity + self.specificity) / 2


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")


def confusion(labels: np.ndarray, found: np.ndarray) -> Confusion:
    """labels, found: (N,) bool."""
    labels, found = np.asarray(labels, bool), np.asarray(found, bool)
    if labels.shape != found.shape:
        raise SegueError(f"{len(found)} answers for {len(labels)} labels: one for each is needed")
    return Confusion(int((labels & found).sum()), int((~labels & found).sum()), int((~labels & ~found).sum()),
                     int((labels & ~found).sum()))


def curve(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Thresholds, falling, and the true and false positives at each; equal scores are one threshold."""
    labels, scores = np.asarray(labels, bool), np.asarray(scores, float)
    if labels.shape != scores.shape or labels.all() or not labels.any():
        raise SegueError(f"{len(scores)} scores for {int(labels.sum())} true and {int((~labels).sum())} false labels: "
                         "one score for each, and some of both, are needed")
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)
    return scores[order][last], np.cumsum(labels[order])[last], np.cumsum(~labels[order])[last]


def roc_auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """The chance that a positive scores above a negative, ties counting half."""
    _, tp, fp = curve(labels, scores)
    tp, fp = np.append(0, tp), np.append(0, fp)
    return float(((tp[1:] + tp[:-1]) / 2 * np.diff(fp)).sum() / (tp[-1] * fp[-1]))


def pr_auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Average precision: the mean of the precision over the positives, in the order in which they are found."""
    _, tp, fp = curve(labels, scores)
    return float((np.diff(tp, prepend=0) * tp / (tp + fp)).sum() / tp[-1])


def equal_error(labels: np.ndarray, scores: np.ndarray) -> float:
    """The threshold at which sensitivity and specificity are nearest each other: on validation data, one rule for
    models that would otherwise stand at different points."""
    thresholds, tp, fp = curve(labels, scores)
    return float(thresholds[np.argmin(np.abs(tp / tp[-1] - (1 - fp / fp[-1])))])


def calibration_error(labels: np.ndarray, chances: np.ndarray, bins: int = 15) -> float:
    """Expected difference between the chance said and what was true, over equal bins of the chance."""
    place = np.minimum((np.asarray(chances) * bins).astype(int), bins - 1)
    gaps = np.bincount(place, chances, bins) - np.bincount(place, np.asarray(labels, float), bins)
    return float(np.abs(gaps).sum() / len(place))


def bootstrap(measure: Callable[[np.ndarray], float], groups: np.ndarray, draws: int = 1000, level: float = 0.95,
              seed: int = 0) -> tuple[float, float]:
    """The interval of a measure when whole groups of rows are drawn again (rows of one source are not independent).

    measure: of an index of rows. groups: (N,) which group each row is of. Draws that give nan are left out.
    """
    draw, (_, of) = np.random.default_rng(seed), np.unique(groups, return_inverse=True)
    order = np.argsort(of, kind="stable")
    members = np.split(order, np.cumsum(np.bincount(of))[:-1])
    values = np.array([measure(np.concatenate([members[i] for i in draw.integers(0, len(members), len(members))]))
                       for _ in range(draws)])
    low, high = np.nanpercentile(values, [50 * (1 - level), 50 * (1 + level)])
    return float(low), float(high)
