"""One scorer for everything that predicts the next element: Brier, log-loss, ranks with stated ties."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from segue.errors import SegueError

if TYPE_CHECKING:
    from segue.models.predict import SequencePredictor


def brier(chances: np.ndarray, targets: np.ndarray) -> float:
    """Mean over predictions *and classes* of (p - 1[true])^2: chances (N, V), targets (N,) ids.

    Dividing by V makes the score incomparable between vocabularies: state V beside it, or multiply by it.
    """
    return float((np.square(chances).sum() - 2 * _given(chances, targets).sum() + len(targets)) / chances.size)


def log_loss(chances: np.ndarray, targets: np.ndarray, floor: float = 1e-12) -> float:
    """Mean of -log2 p(true) in bits; probabilities below `floor` count as `floor`."""
    return float(-np.log2(np.maximum(_given(chances, targets), floor)).mean())


def ranks(scores: np.ndarray, targets: np.ndarray, ties: str = "expected",
          seen: Sequence[Any] | None = None) -> np.ndarray:
    """(N,) rank of the true element among scores (N, V), 1 the best.

    ties: "expected" (the mean rank over random orders of equal scores), "optimistic" or "pessimistic".
    seen: for each row, ids that are no candidates (a recommender's items the person had already); the target stays one.
    """
    if ties not in ("expected", "optimistic", "pessimistic"):
        raise SegueError(f"ties '{ties}' is unknown: choose expected, optimistic or pessimistic")
    given = _given(scores, targets)
    if seen is not None:
        scores = np.array(scores, float)
        for row, ids in enumerate(seen):
            scores[row, np.asarray(ids, int)] = -np.inf
        scores[np.arange(len(targets)), targets] = given
    better = (scores > given[:, None]).sum(1)
    equal = (scores == given[:, None]).sum(1) - 1
    return 1 + better + equal * {"expected": 0.5, "optimistic": 0, "pessimistic": 1}[ties]


def rank_correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's correlation of two lists of numbers (N,): that of their ranks, equal ones sharing the mean of theirs;
    nan where one of them is constant."""
    placed: list[np.ndarray] = []
    for values in (x, y):
        _, inverse, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
        placed.append(np.take(np.cumsum(counts) - (counts - 1) / 2, inverse))
    if any(np.ptp(place) == 0 for place in placed):
        return math.nan
    return float(np.corrcoef(placed)[0, 1])


def top_k(scores: np.ndarray, targets: np.ndarray, k: int = 1, ties: str = "expected",
          seen: Sequence[Any] | None = None) -> float:
    """Share of predictions whose true element is among the k best; k = 1 is the accuracy.

    Of a tie across the border, "expected" counts the share that random orders would put inside.
    """
    best = ranks(scores, targets, "optimistic", seen)
    worst = ranks(scores, targets, "pessimistic", seen)
    if ties == "expected":
        return float(np.clip((k + 1 - best) / (worst - best + 1), 0, 1).mean())
    return float((ranks(scores, targets, ties, seen) <= k).mean())


def pass_at(k: int, tries: Sequence[int], right: Sequence[int]) -> float:
    """pass@k: the mean over problems of the chance that k of a problem's `tries`, drawn without replacement, hold one
    of its `right` ones, 1 - C(n - c, k) / C(n, k) (Chen et al. 2021, arXiv 2107.03374): the share of right ones for
    k = 1, whether any is right for k = n."""
    if not tries or any(not (1 <= k <= n and 0 <= c <= n) for n, c in zip(tries, right, strict=True)):
        raise SegueError(f"every problem needs k = {k} tries or more, not more right ones than tries, and k at least 1")
    return float(np.mean([1 - math.comb(n - c, k) / math.comb(n, k) for n, c in zip(tries, right)]))


def recovery(said: Sequence[Any], truth: Sequence[Any]) -> np.ndarray:
    """(N,) the part of each true sequence's elements that a model said at the same place (sequence recovery); what was
    not said is wrong, and what goes beyond counts nothing. Elements are compared one by one, so models over words and
    over letters are too."""
    if len(said) != len(truth) or not all(len(each) for each in truth):
        raise SegueError(f"{len(said)} answers for {len(truth)} true sequences: one for each, none of them empty")
    return np.array([sum(a == b for a, b in zip(one, true)) / len(true) for one, true in zip(said, truth)])


@dataclass(frozen=True)
class OrderSensitivity:
    """Of questions asked with their parts in several orders: the accuracy over all orders (`mean`), of those right in
    some order (`best`) and in every order (`worst`); the share whose answer is not the same in all (`changed`)."""

    mean: float
    best: float
    worst: float
    changed: float


def order_sensitivity(answers: np.ndarray, truth: np.ndarray) -> OrderSensitivity:
    """answers: (N, orders), what was said to each question in each order. truth: (N,)."""
    right = answers == truth[:, None]
    return OrderSensitivity(float(right.mean()), float(right.any(1).mean()), float(right.all(1).mean()),
                            float((answers != answers[:, :1]).any(1).mean()))


@dataclass(frozen=True)
class Scores:
    """Of a predictor on sequences: every prefix counts once, the empty one included. See `brier`, `log_loss`, `top_k`.

    classes: V. predictions: N. accuracy breaks ties by expectation. bits: mean log-loss.
    """

    brier: float
    accuracy: float
    bits: float
    classes: int
    predictions: int


def evaluate(predictor: SequencePredictor, sequences: Iterable[Any]) -> Scores:
    """Score a predictor on whole sequences (arrays of ids or `Sequence`s, with their end symbol if they have one)."""
    size, total, hits, bits, classes = 0, 0.0, 0.0, 0.0, predictor.vocabulary
    for sequence in sequences:
        targets = np.asarray(getattr(sequence, "ids", sequence), int)
        if not targets.size:
            continue
        chances, n = predictor.predictions(sequence), len(targets)
        size += n
        total += brier(chances, targets) * n
        hits += top_k(chances, targets) * n
        bits += log_loss(chances, targets) * n
    if not size:
        raise SegueError("there is nothing to score: every sequence is empty")
    return Scores(total / size, hits / size, bits / size, classes, size)


def _given(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    if scores.ndim != 2 or len(scores) != len(targets):
        raise SegueError(f"{len(targets)} targets for scores of shape {scores.shape}: one row for each is needed")
    return scores[np.arange(len(targets)), targets]
