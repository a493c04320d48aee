"""Metrics of binary classification: at a threshold, over all thresholds, and their confidence intervals.

labels: (N,) bool. scores: (N,), higher for the positive class; scores at or above a threshold are predicted positive.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from segue.errors import SegueError


@dataclass(frozen=True)
class Confusion:
    """Counts of true and false positives and negatives. Ratios over zero are nan."""

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


def confusion(labels: np.ndarray, predicted: np.ndarray) -> Confusion:
    """labels, predicted: (N,) bool."""
    labels, predicted = np.asarray(labels, bool), np.asarray(predicted, bool)
    if labels.shape != predicted.shape:
        raise SegueError(f"{len(predicted)} answers for {len(labels)} labels: one for each is needed")
    return Confusion(int((labels & predicted).sum()), int((~labels & predicted).sum()),
                     int((~labels & ~predicted).sum()), int((labels & ~predicted).sum()))


def curve(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Descending thresholds, and the counts of true and false positives at each; equal scores share a threshold."""
    labels, scores = np.asarray(labels, bool), np.asarray(scores, float)
    if labels.shape != scores.shape or labels.all() or not labels.any():
        raise SegueError(f"{len(scores)} scores for {int(labels.sum())} true and {int((~labels).sum())} false labels: "
                         "one score for each, and some of both, are needed")
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)
    return scores[order][last], np.cumsum(labels[order])[last], np.cumsum(~labels[order])[last]


def roc_auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """The probability that a positive scores above a negative, ties counting half."""
    _, tp, fp = curve(labels, scores)
    tp, fp = np.append(0, tp), np.append(0, fp)
    return float(((tp[1:] + tp[:-1]) / 2 * np.diff(fp)).sum() / (tp[-1] * fp[-1]))


def pr_auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Average precision: the mean over the positives of the precision at their scores."""
    _, tp, fp = curve(labels, scores)
    return float((np.diff(tp, prepend=0) * tp / (tp + fp)).sum() / tp[-1])


def equal_error(labels: np.ndarray, scores: np.ndarray) -> float:
    """The threshold at which sensitivity and specificity are closest (equal error rate): chosen on validation data, it
    makes models comparable whose scores are on different scales."""
    thresholds, tp, fp = curve(labels, scores)
    return float(thresholds[np.argmin(np.abs(tp / tp[-1] - (1 - fp / fp[-1])))])


def calibration_error(labels: np.ndarray, probabilities: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error: the mean gap between predicted probabilities and the share of true labels, over bins
    of equal width."""
    index = np.minimum((np.asarray(probabilities) * bins).astype(int), bins - 1)
    gaps = np.bincount(index, probabilities, bins) - np.bincount(index, np.asarray(labels, float), bins)
    return float(np.abs(gaps).sum() / len(index))


def bootstrap(measure: Callable[[np.ndarray], float], groups: np.ndarray, draws: int = 1000, level: float = 0.95,
              seed: int = 0) -> tuple[float, float]:
    """The cluster bootstrap interval of a measure: whole groups are resampled, as rows of one source are dependent.

    measure: a function of row indices. groups: (N,), the group of each row. Resamples that give nan are left out.
    """
    rng, (_, group) = np.random.default_rng(seed), np.unique(groups, return_inverse=True)
    order = np.argsort(group, kind="stable")
    members = np.split(order, np.cumsum(np.bincount(group))[:-1])
    values = np.array([measure(np.concatenate([members[i] for i in rng.integers(0, len(members), len(members))]))
                       for _ in range(draws)])
    low, high = np.nanpercentile(values, [50 * (1 - level), 50 * (1 + level)])
    return float(low), float(high)
