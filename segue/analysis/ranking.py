"""Ranking metrics of the true next item: HR@k, NDCG@k and MRR, among all items or among sampled negatives.

Ranks are comparable only if they are all full or all sampled, with the same negatives, and treat the items that a
person had already in the same way. Sampled ranks need not even order methods as full ones do (Krichene & Rendle 2020),
so always report which they are. """

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from segue.analysis.metrics import nan_as_lowest, ranks
from segue.errors import SegueError
from segue.models.predict import next_of

if TYPE_CHECKING:
    from segue.models.predict import SequencePredictor

TOPS = (1, 5, 10)


@dataclass(frozen=True)
class Ranking:
    """hits: HR@k by k, the share of ranks up to k (the recall, as there is one true item). ndcg: NDCG@k by k, the mean
    of 1 / log2(rank + 1) for ranks up to k, else 0. mrr: the mean of 1 / rank. predictions: the number of ranks."""

    hits: dict[int, float]
    ndcg: dict[int, float]
    mrr: float
    predictions: int


def ranking(item_ranks: np.ndarray, tops: Sequence[int] = TOPS) -> Ranking:
    """Metrics of ranks (N,): 1 is the best, ties have their mean rank (2.5 is beyond the second), unknown items have an
    infinite one."""
    if not len(item_ranks):
        raise SegueError("there is nothing to rank: no element is asked for")
    gain = 1 / np.log2(item_ranks + 1)
    return Ranking({k: float((item_ranks <= k).mean()) for k in tops},
                   {k: float(np.where(item_ranks <= k, gain, 0.0).mean()) for k in tops},
                   float((1 / item_ranks).mean()), len(item_ranks))


def sampled_ranks(scores: np.ndarray, targets: np.ndarray, negatives: int = 100, weights: np.ndarray | None = None,
                  seen: Sequence[Any] | None = None, seed: int = 0) -> np.ndarray:
    """(N,) rank of the true item among itself and `negatives` other items, drawn for each row without replacement.

    scores: (N, V). weights: (V,), negatives are drawn in proportion to them (popularity: how often items were chosen);
    uniformly where None. seen: for each row, ids that are not drawn. Ties count half; NaN is the lowest score.
    """
    scores = nan_as_lowest(scores)
    rng = np.random.default_rng(seed)
    rates = np.ones(scores.shape[1]) if weights is None else np.asarray(weights, float)
    found = np.empty(len(targets))
    for row, (values, target) in enumerate(zip(scores, targets)):
        eligible = rates > 0
        eligible[target] = False
        if seen is not None:
            eligible[np.asarray(seen[row], int)] = False
        others = np.flatnonzero(eligible)
        if len(others) < negatives:
            raise SegueError(f"{negatives} others cannot be drawn of {len(others)}: ask for fewer, or rank among all")
        # The first arrivals of Poisson processes with these rates are a weighted draw without replacement.
        first = np.argpartition(rng.exponential(size=len(others)) / rates[others], negatives - 1)[:negatives]
        sampled = values[others[first]]
        found[row] = 1 + (sampled > values[target]).sum() + 0.5 * (sampled == values[target]).sum()
    return found


def rank_next(model: SequencePredictor, prefixes: Sequence[Any], targets: Sequence[int], *, items: int | None = None,
              drop_seen: bool = False, negatives: int = 0, weights: np.ndarray | None = None, seed: int = 0,
              rows: int = 256) -> np.ndarray:
    """(N,) rank of the target after each prefix (ids), for `ranking`.

    items: ids below it are candidates (default: all of the model's); other targets have an infinite rank. drop_seen:
    the elements of a prefix are not candidates. negatives, weights, seed: rank among sampled items (`sampled_ranks`)
    instead of all. rows: batch size.
    """
    target, found = np.asarray(targets, int), np.full(len(targets), np.inf)
    size = items or model.vocabulary
    for start in range(0, len(target), rows):
        known = np.flatnonzero(target[start : start + rows] < size) + start
        batch = [np.asarray(prefixes[i], np.int64) for i in known.tolist()]
        scores = next_of(model, batch)[:, :size]
        seen = [ids[ids < size] for ids in batch] if drop_seen else None
        found[known] = sampled_ranks(scores, target[known], negatives, weights, seen, seed + start) if negatives else \
            ranks(scores, target[known], seen=seen)
    return found
