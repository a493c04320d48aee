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
        self.mixture_weights = np.tile(np.array([0.2, 0.2, 0.2, 0.35, 0.05]), (len(HISTORY_LENGTHS), 1))
        self.recurrence_factor = 1.0

    def learn(self, documents: Sequence[np.ndarray]) -> None:
        counts = np.bincount(np.concatenate(documents), minlength=self.vocabulary)[: self.vocabulary] + 0.5
        self.frequencies = counts / counts.sum()
        size = self.items
        flat = np.concatenate([np.append(ids[ids < size], -1) for ids in documents]).astype(np.int64)
        left, right, pair_counts = _count_pairs(flat, size)
        left, right = np.concatenate([left, right]), np.concatenate([right, left])
        item_counts = np.bincount(flat[flat >= 0], minlength=size)
        similarity = np.tile(pair_counts, 2) / np.sqrt(item_counts[left] * item_counts[right])
        order = np.lexsort((-similarity, left))
        left, right, similarity = left[order], right[order], similarity[order]
        rank = np.arange(len(left)) - np.searchsorted(left, np.arange(size))[left]
        kept = rank < self.most
        width = int(rank[kept].max()) + 1 if kept.any() else 1
        self.near, self.weight = np.zeros((size, width), np.int32), np.zeros((size, width), np.float32)
        self.near[left[kept], rank[kept]] = right[kept]
        self.weight[left[kept], rank[kept]] = similarity[kept]
        self.weight /= np.maximum(self.weight.sum(1, keepdims=True), 1e-12)

    def tune(self, documents: Sequence[np.ndarray]) -> None:
        """Fit the mixture weights by expectation-maximisation, and the factor for items already in the history."""
        positions = [(number, at) for number, ids in enumerate(documents) for at in range(1, len(ids))
                     if ids[at] < self.items]
        if not positions:
            return
        sampled = np.unique(np.linspace(0, len(positions) - 1, TUNING_POSITIONS).astype(int))
        positions = [positions[i] for i in sampled.tolist()]
        histories = np.concatenate([histories_before(documents[number], np.array([at]), self.reach)
                                    for number, at in positions])
        targets = np.array([documents[number][at] for number, at in positions])
        self._fit_mixture_weights(histories, targets)
        self._fit_recurrence_factor(histories, targets)

    def _fit_mixture_weights(self, histories: np.ndarray, targets: np.ndarray) -> None:
        weights, length_class = self._history_weights(histories)
        rows, columns = np.nonzero(self._items(histories))
        items = histories[rows, columns]
        target_weight = (self.weight[items] * (self.near[items] == targets[rows, None])).sum(1)
        components = [np.bincount(rows, target_weight * weights[k, rows, columns], len(targets))
                      for k in range(len(DECAYS))]
        likelihoods = np.stack([*components, self.frequencies[targets], np.full(len(targets), 1 / self.vocabulary)], 1)
        for index in range(len(HISTORY_LENGTHS)):
            in_class = likelihoods[length_class == index]
            for _ in range(30 if len(in_class) else 0):
                posterior = in_class * self.mixture_weights[index]
                posterior /= posterior.sum(1, keepdims=True)
                self.mixture_weights[index] = (posterior.sum(0) + 1) / (len(in_class) + posterior.shape[1])

    def _fit_recurrence_factor(self, histories: np.ndarray, targets: np.ndarray) -> None:
        """Make the mean probability of items already in the history equal to how often they recur."""
        self.recurrence_factor = 1.0
        predicted = []
        for batch in np.array_split(histories, -(-len(histories) // 256)):
            probabilities = self.predict(batch)[np.arange(len(batch))[:, None], np.maximum(batch, 0)]
            predicted.append(probabilities.sum(1, where=_is_first_occurrence(batch, self.items)))
        mean = np.concatenate(predicted).mean()
        recurred = [target in row for target, row in zip(targets.tolist(), histories.tolist())]
        observed = float(np.clip(float(np.mean(recurred)), 1e-6, 1 - 1e-6))
        factor = observed / (1 - observed) * (1 - mean) / max(mean, 1e-9)
        self.recurrence_factor = float(np.clip(factor, 1e-4, 1e2))

    def predict(self, histories: np.ndarray) -> np.ndarray:
        n = len(histories)
        weights, length_class = self._history_weights(histories)
        mixture = self.mixture_weights[length_class]
        rows, columns = np.nonzero(self._items(histories))
        items = histories[rows, columns]
        item_weights = (weights[:, rows, columns] * mixture[rows, : len(DECAYS)].T).sum(0)
        cells = rows[:, None] * self.vocabulary + self.near[items]
        out = np.bincount(cells.ravel(), (self.weight[items] * item_weights[:, None]).ravel(), n * self.vocabulary)
        out = out[: n * self.vocabulary].reshape(n, self.vocabulary) + mixture[:, -2, None] * self.frequencies + \
            mixture[:, -1:] / self.vocabulary
        if self.recurrence_factor != 1.0:
            is_first = _is_first_occurrence(histories, self.items)
            rows, columns = np.nonzero(is_first)
            out[rows, histories[rows, columns]] *= self.recurrence_factor
        return out / out.sum(1, keepdims=True)

    def _items(self, histories: np.ndarray) -> np.ndarray:
        return (histories >= 0) & (histories < self.items)

    def _history_weights(self, histories: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the weight of each item of a history under each of DECAYS, (3, N, reach), summing to 1 or, without
        items, to 0; and the class of its length in HISTORY_LENGTHS, (N,)."""
        is_item = self._items(histories)
        steps_back = np.cumsum(is_item[:, ::-1], 1)[:, ::-1] - 1
        steps_back = np.maximum(steps_back, 0).astype(float)
        weights = np.stack([np.where(is_item, decay**steps_back, 0.0) for decay in DECAYS])
        weights /= np.maximum(weights.sum(2, keepdims=True), 1e-12)
        length = is_item.sum(1)
        return weights, np.maximum(np.searchsorted(HISTORY_LENGTHS, length, side="right") - 1, 0)

    def settings(self) -> dict[str, Any]:
        return {"vocabulary": self.vocabulary, "items": self.items, "most": self.most}

    def arrays(self) -> dict[str, np.ndarray]:
        return {"often": self.frequencies, "near": self.near, "weight": self.weight, "parts": self.mixture_weights,
                "again": np.array([self.recurrence_factor])}

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        self.frequencies, self.mixture_weights = arrays["often"], arrays["parts"]
        self.near, self.weight = arrays["near"], arrays["weight"]
        self.recurrence_factor = float(arrays["again"][0])


def _count_pairs(flat: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Count how often two of `size` items lie within `NEIGHBOUR_TOKENS` tokens of each other: (P,) each, the smaller
    item, the larger one, and the count. flat: (n,) items of all documents, each document followed by a -1."""
    document = np.cumsum(flat < 0)
    pairs = [np.empty(0, np.int64)]
    for distance in range(1, int(np.clip(MAX_PAIRS // max(len(flat), 1), 1, NEIGHBOUR_TOKENS)) + 1):
        left, right = flat[:-distance], flat[distance:]
        valid = (left >= 0) & (right >= 0) & (left != right) & (document[:-distance] == document[distance:])
        left, right = left[valid], right[valid]
        pairs.append(np.minimum(left, right) * size + np.maximum(left, right))
    keys = np.sort(np.concatenate(pairs))
    begins = np.flatnonzero(np.diff(keys, prepend=-1))
    return keys[begins] // size, keys[begins] % size, np.diff(begins, append=len(keys))


def _is_first_occurrence(histories: np.ndarray, items: int) -> np.ndarray:
    """Return which tokens of histories (N, reach) are items at their first occurrence, bool."""
    order = np.argsort(histories, 1, kind="stable")
    sorted_tokens = np.take_along_axis(histories, order, 1)
    is_new = np.ones(histories.shape, bool)
    is_new[:, 1:] = sorted_tokens[:, 1:] != sorted_tokens[:, :-1]
    is_first = np.empty_like(is_new)
    np.put_along_axis(is_first, order, is_new, 1)
    return is_first & (histories >= 0) & (histories < items)
