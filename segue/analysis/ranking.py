"""How high a predictor ranks what came next: HR@k, NDCG@k and MRR, among all items or among sampled ones.

Ranks among all items and among sampled ones cannot be compared, nor ranks with and without the items that a person had
already, nor ranks among other samples. Sampled ranks need not even put methods in the same order as full ones (Krichene
& Rendle 2020). So always say which they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from segue.analysis.metrics import ranks
from segue.errors import SegueError
from segue.models.predict import next_of

if TYPE_CHECKING:
    from segue.models.predict import SequencePredictor

TOPS = (1, 5, 10)


@dataclass(frozen=True)
class Ranking:
    """hits: HR@k by k, the share of ranks up to k (recall, as one item is right). ndcg: NDCG@k, the mean of
    1 / log2(rank + 1) over the same. mrr: the mean of 1 / rank. predictions: how many ranks."""

    hits: dict[int, float]
    ndcg: dict[int, float]
    mrr: float
    predictions: int


def ranking(found: np.ndarray, tops: Sequence[int] = TOPS) -> Ranking:
    """Of ranks (N,), 1 the best, ties at their middle (2.5 is beyond the second), infinite where an item is unknown."""
    if not len(found):
        raise SegueError("there is nothing to rank: no element is asked for")
    gain = 1 / np.log2(found + 1)
    return Ranking({k: float((found <= k).mean()) for k in tops},
                   {k: float(np.where(found <= k, gain, 0.0).mean()) for k in tops}, float((1 / found).mean()),
                   len(found))


def sampled_ranks(scores: np.ndarray, targets: np.ndarray, negatives: int = 100, weights: np.ndarray | None = None,
                  seen: Sequence[Any] | None = None, seed: int = 0) -> np.ndarray:
    """(N,) rank of the true item among itself and so many others, drawn for each row without repeats.

    scores: (N, V). weights: (V,), the others are drawn in proportion to them one after the other (how often items were
    chosen: the paper's popularity); uniformly where None. seen: for each row, ids that are not drawn. Ties count half.
    """
    draw = np.random.default_rng(seed)
    chance = np.ones(scores.shape[1]) if weights is None else np.asarray(weights, float)
    found = np.empty(len(targets))
    for row, (values, target) in enumerate(zip(scores, targets)):
        free = chance > 0
        free[target] = False
        if seen is not None:
            free[np.asarray(seen[row], int)] = False
        others = np.flatnonzero(free)
        if len(others) < negatives:
            raise SegueError(f"{negatives} others cannot be drawn of {len(others)}: ask for fewer, or rank among all")
        # The first arrivals of processes with these rates are such a draw.
        first = np.argpartition(draw.exponential(size=len(others)) / chance[others], negatives - 1)[:negatives]
        against = values[others[first]]
        found[row] = 1 + (against > values[target]).sum() + 0.5 * (against == values[target]).sum()
    return found


def rank_next(model: SequencePredictor, prefixes: Sequence[Any], targets: Sequence[int], *, items: int | None = None,
              drop_seen: bool = False, negatives: int = 0, weights: np.ndarray | None = None, seed: int = 0,
              rows: int = 256) -> np.ndarray:
    """(N,) rank of what came after each prefix (ids), for `ranking`.

    items: the first so many ids are candidates (default: all of the model's); a target behind them has an infinite
    rank. drop_seen: what a prefix holds is no candidate. negatives, weights, seed: rank among so many sampled items
    (`sampled_ranks`) instead of all. rows: prefixes at once.
    """
    wanted, found = np.asarray(targets, int), np.full(len(targets), np.inf)
    size = items or model.vocabulary
    for at in range(0, len(wanted), rows):
        inside = np.flatnonzero(wanted[at : at + rows] < size) + at
        some = [np.asarray(prefixes[i], np.int64) for i in inside.tolist()]
        scores = next_of(model, some)[:, :size]
        held = [ids[ids < size] for ids in some] if drop_seen else None
        found[inside] = sampled_ranks(scores, wanted[inside], negatives, weights, held, seed + at) if negatives else \
            ranks(scores, wanted[inside], seen=held)
    return found
