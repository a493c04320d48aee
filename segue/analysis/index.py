"""Exact search for the nearest of many vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from segue.errors import SegueError

SCORES = 1 << 24  # computed at once


class VectorIndex:
    """vectors: (N, D). cosine: near in direction (default), else in Euclidean distance."""

    def __init__(self, vectors: Tensor | np.ndarray, cosine: bool = True) -> None:
        vectors = torch.as_tensor(vectors).detach()
        if vectors.dim() != 2:
            raise SegueError(f"an index holds rows of numbers (N, D), not {tuple(vectors.shape)}")
        self.cosine = cosine
        self.vectors = F.normalize(vectors, dim=-1) if cosine else vectors

    def __len__(self) -> int:
        return len(self.vectors)

    def add(self, vectors: Tensor | np.ndarray) -> None:
        """Put more vectors (M, D) behind those that are there."""
        more = VectorIndex(torch.as_tensor(vectors).to(self.vectors), self.cosine).vectors
        if more.shape[1] != self.vectors.shape[1]:
            raise SegueError(f"vectors of {more.shape[1]} numbers do not go with those of the index, "
                             f"{self.vectors.shape[1]}")
        self.vectors = torch.cat([self.vectors, more])

    def scores(self, queries: Tensor | np.ndarray) -> Tensor:
        """(Q, N): cosines, or minus distances, of queries (Q, D) with all that the index holds."""
        queries = torch.as_tensor(queries).to(self.vectors)
        if self.cosine:
            return F.normalize(queries, dim=-1) @ self.vectors.mT
        return -torch.cdist(queries, self.vectors)

    def search(self, queries: Tensor | np.ndarray, k: int, without: Sequence[Any] | None = None,
               below: float | None = None) -> tuple[Tensor, Tensor]:
        """(Q, k) scores, best first, and (Q, k) long, where their vectors stand; -inf and -1 where there are no more.

        without: for each query, places that are no answer (its own). below: nor is what scores so high or higher (near
            duplicates: 0.999).
        """
        queries = torch.as_tensor(queries).to(self.vectors)
        k, best = min(k, len(self)), list[tuple[Tensor, Tensor]]()
        size = max(1, SCORES // max(1, len(self)))
        for at in range(0, len(queries), size):
            scores = self.scores(queries[at : at + size])
            if below is not None:
                scores = scores.masked_fill(scores >= below, -torch.inf)
            for row, own in enumerate(without[at : at + size] if without is not None else ()):
                scores[row, torch.as_tensor(own, dtype=torch.long, device=scores.device)] = -torch.inf
            values, places = scores.topk(k, -1)
            best.append((values, places.masked_fill(values == -torch.inf, -1)))
        if not best:
            return queries.new_zeros(0, k), torch.zeros(0, k, dtype=torch.long)
        return torch.cat([values for values, _ in best]), torch.cat([places for _, places in best])


def precision_at_recall(right: np.ndarray, total: np.ndarray, levels: Sequence[float]) -> np.ndarray:
    """(L,) mean over queries of the interpolated precision, the best one at this recall or a higher one; 0 at a recall
    that is not reached.

    right: (Q, K) bool, whether the answers are, best first. total: (Q,), how many right answers there are; queries that
    have none do not count. levels: of recall, 0 to 1; at 0 it is the best precision of all.
    """
    right, total = right[total > 0], total[total > 0]
    if not len(right):
        raise SegueError("no query has a right answer: there is no precision")
    found = right.cumsum(1)
    precision = np.maximum.accumulate((found / np.arange(1, right.shape[1] + 1))[:, ::-1], 1)[:, ::-1]
    recall, rows = found / total[:, None], np.arange(len(right))
    curve = []
    for level in levels:
        reached = recall >= level - 1e-12
        curve.append(np.where(reached.any(1), precision[rows, reached.argmax(1)], 0.0).mean())
    return np.array(curve)
