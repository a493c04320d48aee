"""Metrics of next-element predictors: Brier score, log-loss, accuracy, and ranks with a stated rule for ties."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from segue.errors import SegueError, check_choice

if TYPE_CHECKING:
    from segue.models.predict import SequencePredictor


def brier(probabilities: np.ndarray, targets: np.ndarray) -> float:
    """Mean over predictions *and classes* of (p - 1[true])^2: probabilities (N, V), targets (N,) ids.

    Dividing by V makes the score incomparable between vocabularies: state V beside it, or multiply by it.
    """
    true = _target_scores(probabilities, targets)
    return float((np.square(probabilities).sum() - 2 * true.sum() + len(targets)) / probabilities.size)


def log_loss(probabilities: np.ndarray, targets: np.ndarray, floor: float = 1e-12) -> float:
    """Mean of -log2 p(true) in bits; probabilities below `floor` count as `floor`."""
    return float(-np.log2(np.maximum(_target_scores(probabilities, targets), floor)).mean())


def ranks(scores: np.ndarray, targets: np.ndarray, ties: str = "expected",
          seen: Sequence[Any] | None = None) -> np.ndarray:
    """(N,) rank of the true element among scores (N, V), 1 the best.

    ties: "expected" (the mean rank over random orders of equal scores), "optimistic" or "pessimistic". NaN is the
        lowest score, so that a model that diverged ranks as one that knows nothing does.
    seen: for each row, ids that are not candidates (items that the person had already); the target always is one.
    """
    check_choice("ties", ties, ("expected", "optimistic", "pessimistic"))
    scores = nan_as_lowest(scores)
    true = _target_scores(scores, targets)[:, None]
    better, equal = scores > true, scores == true
    equal[np.arange(len(targets)), targets] = False  # the target itself
    for row, ids in enumerate(() if seen is None else seen):
        better[row, np.asarray(ids, int)] = equal[row, np.asarray(ids, int)] = False
    return 1 + better.sum(1) + equal.sum(1) * {"expected": 0.5, "optimistic": 0, "pessimistic": 1}[ties]


def nan_as_lowest(scores: np.ndarray) -> np.ndarray:
    """The scores with minus infinity for NaN, which else would be neither above nor below the target's score."""
    unknown = np.isnan(scores)
    return np.where(unknown, -np.inf, scores) if unknown.any() else scores


def rank_correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's rank correlation of two arrays (N,), equal values sharing their mean rank; nan if one is constant."""
    both: list[np.ndarray] = []
    for values in (x, y):
        _, inverse, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
        both.append(np.take(np.cumsum(counts) - (counts - 1) / 2, inverse))
    if any(np.ptp(rank) == 0 for rank in both):
        return math.nan
    return float(np.corrcoef(both)[0, 1])


def top_k(scores: np.ndarray, targets: np.ndarray, k: int = 1, ties: str = "expected",
          seen: Sequence[Any] | None = None) -> float:
    """Share of predictions whose true element is among the k best; k = 1 is the accuracy.

    For ties across rank k, "expected" counts the probability that a random order puts the true element within k.
    """
    best = ranks(scores, targets, "optimistic", seen)
    worst = ranks(scores, targets, "pessimistic", seen)
    if ties == "expected":
        return float(np.clip((k + 1 - best) / (worst - best + 1), 0, 1).mean())
    return float((ranks(scores, targets, ties, seen) <= k).mean())


def pass_at(k: int, tries: Sequence[int], right: Sequence[int]) -> float:
    """pass@k: the mean over problems of the probability that k of its n `tries`, drawn without replacement, include one
    of the c `right` ones, 1 - C(n - c, k) / C(n, k) (Chen et al. 2021, arXiv 2107.03374)."""
    if not tries or any(not (1 <= k <= n and 0 <= c <= n) for n, c in zip(tries, right, strict=True)):
        raise SegueError(f"every problem needs k = {k} tries or more, not more right ones than tries, and k at least 1")
    return float(np.mean([1 - math.comb(n - c, k) / math.comb(n, k) for n, c in zip(tries, right)]))


def recovery(predicted: Sequence[Any], truth: Sequence[Any]) -> np.ndarray:
    """(N,) sequence recovery: the share of each true sequence's elements that are predicted at the same position.
    Missing predictions count as wrong, and elements beyond the true length are ignored. Comparing elements, not tokens,
    it applies to models over words and over letters alike."""
    if len(predicted) != len(truth) or not all(len(true) for true in truth):
        raise SegueError(f"{len(predicted)} answers for {len(truth)} true sequences: one for each, none of them empty")
    return np.array([sum(a == b for a, b in zip(one, true)) / len(true) for one, true in zip(predicted, truth)])


def frame_metrics(detected: np.ndarray, expected: np.ndarray) -> dict[str, float]:
    """How well generated pictures show what they should, by the detections of a classifier. detected, expected:
    (n, things) bool. "F1": pooled over all things and pictures (Char-F1 of StoryGAN, Li et al. 2019, arXiv 1812.02784);
    "exact": the share of pictures with exactly the expected things (frame accuracy)."""
    hits, total = (detected & expected).sum(), detected.sum() + expected.sum()
    return {"F1": float(2 * hits / max(total, 1)),
            "exact": float((detected == expected).all(1).sum() / max(len(detected), 1))}


@dataclass(frozen=True)
class OrderSensitivity:
    """Of questions whose parts are presented in several orders: mean: accuracy over all orders. best, worst: shares of
    questions answered correctly in at least one order, and in every order. changed: the share of questions whose answer
    depends on the order."""

    mean: float
    best: float
    worst: float
    changed: float


def order_sensitivity(answers: np.ndarray, truth: np.ndarray) -> OrderSensitivity:
    """answers: (N, orders), the answer to each question in each order. truth: (N,)."""
    correct = answers == truth[:, None]
    return OrderSensitivity(float(correct.mean()), float(correct.any(1).mean()), float(correct.all(1).mean()),
                            float((answers != answers[:, :1]).any(1).mean()))


@dataclass(frozen=True)
class Scores:
    """Scores of a predictor over every prefix of sequences, the empty one included: `brier`, `top_k` with k = 1 (ties
    by expectation) and `log_loss` in bits. classes: V. predictions: N."""

    brier: float
    accuracy: float
    bits: float
    classes: int
    predictions: int


def evaluate(predictor: SequencePredictor, sequences: Iterable[Any]) -> Scores:
    """Score a predictor on whole sequences (arrays of ids or `Sequence`s, with their end symbol if they have one)."""
    size, squared, hits, bits, classes = 0, 0.0, 0.0, 0.0, predictor.vocabulary
    for sequence in sequences:
        targets = np.asarray(getattr(sequence, "ids", sequence), int)
        if not targets.size:
            continue
        probabilities, n = predictor.predictions(sequence), len(targets)
        size += n
        squared += brier(probabilities, targets) * n
        hits += top_k(probabilities, targets) * n
        bits += log_loss(probabilities, targets) * n
    if not size:
        raise SegueError("there is nothing to score: every sequence is empty")
    return Scores(squared / size, hits / size, bits / size, classes, size)


def _target_scores(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """(N,) the score of each row's target."""
    if scores.ndim != 2 or len(scores) != len(targets):
        raise SegueError(f"{len(targets)} targets for scores of shape {scores.shape}: one row for each is needed")
    return scores[np.arange(len(targets)), targets]
