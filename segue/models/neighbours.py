"""Item-based nearest-neighbour recommendation (Sarwar et al. 2001) as a proper distribution of the next item."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from segue.models.advised import Advisor, histories_before

MAX_PAIRS = 8_000_000  # the most pairs of neighbouring tokens to count
NEIGHBOUR_TOKENS = 64  # largest distance of neighbouring tokens, reduced if there would be too many pairs
DECAYS = (1.0, 0.8, 0.0)  # weight of a history's items per step back: all equal, recent ones, the last one alone
HISTORY_LENGTHS = (0, 1, 2, 4, 8, 16, 32)  # lower bounds of the classes of history length with their own weights
TUNING_POSITIONS = 4_000  # positions on which `tune` fits the mixture weights


class Neighbours(Advisor):
    """Item-based nearest neighbours over the first `items` of `vocabulary` tokens.

    Items are similar by the cosine of their co-occurrence within `NEIGHBOUR_TOKENS` tokens; each keeps its `most`
    nearest neighbours, normalised to sum to 1. The prediction is a mixture of the means of the history's neighbours,
    under each of DECAYS, of the tokens' frequencies and of a uniform distribution, with weights per class of history
    length. Items already in the history are then scaled by how often items recur.
    """

    name = "neighbours of items"
    reach: int = 100

    def __init__(self, vocabulary: int, items: int, most: int = 100) -> None:
        self.vocabulary, self.items, self.most = vocabulary, items, most
        self.parts = np.tile(np.array([0.2, 0.2, 0.2, 0.35, 0.05]), (len(HISTORY_LENGTHS), 1))
        self.again = 1.0

    def learn(self, documents: Sequence[np.ndarray]) -> None:
        counts = np.bincount(np.concatenate(documents), minlength=self.vocabulary)[: self.vocabulary] + 0.5
        self.often = counts / counts.sum()
        flat = np.concatenate([np.append(ids[ids < self.items], -1) for ids in documents]).astype(np.int64)
        document = np.cumsum(flat < 0)
        size, pairs = self.items, [np.empty(0, np.int64)]
        for distance in range(1, int(np.clip(MAX_PAIRS // max(len(flat), 1), 1, NEIGHBOUR_TOKENS)) + 1):
            one, other = flat[:-distance], flat[distance:]
            good = (one >= 0) & (other >= 0) & (one != other) & (document[:-distance] == document[distance:])
            one, other = one[good], other[good]
            pairs.append(np.minimum(one, other) * size + np.maximum(one, other))
        keys = np.sort(np.concatenate(pairs))
        begins = np.flatnonzero(np.diff(keys, prepend=-1))
        together = np.tile(np.diff(begins, append=len(keys)), 2)
        one, other = keys[begins] // size, keys[begins] % size
        one, other = np.concatenate([one, other]), np.concatenate([other, one])
        chosen = np.bincount(flat[flat >= 0], minlength=size)
        near = together / np.sqrt(chosen[one] * chosen[other])
        order = np.lexsort((-near, one))
        one, other, near = one[order], other[order], near[order]
        begins = np.searchsorted(one, np.arange(size))
        place = np.arange(len(one)) - begins[one]
        kept = place < self.most
        width = int(place[kept].max()) + 1 if kept.any() else 1
        self.near, self.weight = np.zeros((size, width), np.int32), np.zeros((size, width), np.float32)
        self.near[one[kept], place[kept]] = other[kept]
        self.weight[one[kept], place[kept]] = near[kept]
        self.weight /= np.maximum(self.weight.sum(1, keepdims=True), 1e-12)

    def tune(self, documents: Sequence[np.ndarray]) -> None:
        """Fit the mixture weights by expectation-maximisation, and the factor for items already in the history."""
        at = [(number, place) for number, ids in enumerate(documents) for place in range(1, len(ids))
              if ids[place] < self.items]
        evenly = np.unique(np.linspace(0, len(at) - 1, TUNING_POSITIONS).astype(int)) if at else np.empty(0, int)
        at = [at[i] for i in evenly.tolist()]
        if not at:
            return
        behind = np.concatenate([histories_before(documents[number], np.array([place]), self.reach)
                                 for number, place in at])
        targets = np.array([documents[number][place] for number, place in at])
        weights, length = self._history_weights(behind)
        rows, columns = np.nonzero(self._items(behind))
        held = behind[rows, columns]
        each = (self.weight[held] * (self.near[held] == targets[rows, None])).sum(1)
        chances = np.stack([*(np.bincount(rows, each * weights[k, rows, columns], len(at)) for k in range(len(DECAYS))),
                            self.often[targets], np.full(len(at), 1 / self.vocabulary)], 1)
        for age in range(len(HISTORY_LENGTHS)):
            mine = chances[length == age]
            for _ in range(30 if len(mine) else 0):
                share = mine * self.parts[age]
                share /= share.sum(1, keepdims=True)
                self.parts[age] = (share.sum(0) + 1) / (len(mine) + self.parts.shape[1])
        comes = float(np.mean([target in row for target, row in zip(targets.tolist(), behind.tolist())]))
        self.again = 1.0
        repeats = []  # the probability that each prediction gives to items of its history
        for part in np.array_split(behind, -(-len(behind) // 256)):
            each = self.predict(part)[np.arange(len(part))[:, None], np.maximum(part, 0)]
            repeats.append(each.sum(1, where=_is_first_occurrence(part, self.items)))
        predicted = np.concatenate(repeats).mean()
        comes = float(np.clip(comes, 1e-6, 1 - 1e-6))
        self.again = float(np.clip(comes / (1 - comes) * (1 - predicted) / max(predicted, 1e-9), 1e-4, 1e2))

    def predict(self, behind: np.ndarray) -> np.ndarray:
        n = len(behind)
        weights, length = self._history_weights(behind)
        parts = self.parts[length]
        rows, columns = np.nonzero(self._items(behind))
        held = behind[rows, columns]
        each = (weights[:, rows, columns] * parts[rows, : len(DECAYS)].T).sum(0)
        place = rows[:, None] * self.vocabulary + self.near[held]
        out = np.bincount(place.ravel(), (self.weight[held] * each[:, None]).ravel(), n * self.vocabulary)
        out = out[: n * self.vocabulary].reshape(n, self.vocabulary) + parts[:, -2, None] * self.often + \
            parts[:, -1:] / self.vocabulary
        if self.again != 1.0:
            first = _is_first_occurrence(behind, self.items)
            rows, columns = np.nonzero(first)
            out[rows, behind[rows, columns]] *= self.again
        return out / out.sum(1, keepdims=True)

    def _items(self, behind: np.ndarray) -> np.ndarray:
        return (behind >= 0) & (behind < self.items)

    def _history_weights(self, behind: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the weight of each item of a history under each of DECAYS, (3, N, reach), summing to 1 or, without
        items, to 0; and the class of its length in HISTORY_LENGTHS, (N,)."""
        there = self._items(behind)
        age = np.cumsum(there[:, ::-1], 1)[:, ::-1] - 1
        found = np.stack([np.where(there, fade ** np.maximum(age, 0).astype(float), 0.0) for fade in DECAYS])
        found /= np.maximum(found.sum(2, keepdims=True), 1e-12)
        length = there.sum(1)
        return found, np.maximum(np.searchsorted(HISTORY_LENGTHS, length, side="right") - 1, 0)

    def settings(self) -> dict[str, Any]:
        return {"vocabulary": self.vocabulary, "items": self.items, "most": self.most}

    def arrays(self) -> dict[str, np.ndarray]:
        return {"often": self.often, "near": self.near, "weight": self.weight, "parts": self.parts,
                "again": np.array([self.again])}

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        self.often, self.near, self.weight, self.parts = (arrays[n] for n in ("often", "near", "weight", "parts"))
        self.again = float(arrays["again"][0])


def _is_first_occurrence(behind: np.ndarray, items: int) -> np.ndarray:
    """Return which tokens of histories (N, reach) are items at their first occurrence, bool."""
    order = np.argsort(behind, 1, kind="stable")
    ranked = np.take_along_axis(behind, order, 1)
    fresh = np.ones(behind.shape, bool)
    fresh[:, 1:] = ranked[:, 1:] != ranked[:, :-1]
    found = np.empty_like(fresh)
    np.put_along_axis(found, order, fresh, 1)
    return found & (behind >= 0) & (behind < items)
