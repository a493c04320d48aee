"""Exact nearest-neighbour search."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from segue.errors import SegueError

SCORES = 1 << 24  # computed at a time


class VectorIndex:
    """vectors: (N, D). cosine: by cosine similarity (default), else by Euclidean distance."""

    def __init__(self, vectors: Tensor | np.ndarray, cosine: bool = True) -> None:
        vectors = torch.as_tensor(vectors).detach()
        if vectors.dim() != 2:
            raise SegueError(f"an index holds rows of numbers (N, D), not {tuple(vectors.shape)}")
        self.cosine = cosine
        self.vectors = F.normalize(vectors, dim=-1) if cosine else vectors

    def __len__(self) -> int:
        return len(self.vectors)

    def add(self, vectors: Tensor | np.ndarray) -> None:
        """Append vectors (M, D)."""
        added = VectorIndex(torch.as_tensor(vectors).to(self.vectors), self.cosine).vectors
        if added.shape[1] != self.vectors.shape[1]:
            raise SegueError(f"vectors of {added.shape[1]} numbers do not go with those of the index, "
                             f"{self.vectors.shape[1]}")
        self.vectors = torch.cat([self.vectors, added])

    def scores(self, queries: Tensor | np.ndarray) -> Tensor:
        """(Q, N): cosines, or negative distances, of queries (Q, D) to all vectors of the index."""
        queries = torch.as_tensor(queries).to(self.vectors)
        if self.cosine:
            return F.normalize(queries, dim=-1) @ self.vectors.mT
        return -torch.cdist(queries, self.vectors)

    def search(self, queries: Tensor | np.ndarray, k: int, without: Sequence[Any] | None = None,
               below: float | None = None) -> tuple[Tensor, Tensor]:
        """The k nearest vectors of each query: scores (Q, k), best first, and indices (Q, k) long; -inf and -1 where
        there are fewer.

        without: for each query, indices to exclude (its own). below: also exclude scores of this and above (near
            duplicates: 0.999).
        """
        queries = torch.as_tensor(queries).to(self.vectors)
        k, best = min(k, len(self)), list[tuple[Tensor, Tensor]]()
        chunk = max(1, SCORES // max(1, len(self)))
        for start in range(0, len(queries), chunk):
            scores = self.scores(queries[start : start + chunk])
            if below is not None:
                scores = scores.masked_fill(scores >= below, -torch.inf)
            for row, excluded in enumerate(without[start : start + chunk] if without is not None else ()):
                scores[row, torch.as_tensor(excluded, dtype=torch.long, device=scores.device)] = -torch.inf
            values, indices = scores.topk(k, -1)
            best.append((values, indices.masked_fill(values == -torch.inf, -1)))
        if not best:
            return queries.new_zeros(0, k), torch.zeros(0, k, dtype=torch.long)
        return torch.cat([values for values, _ in best]), torch.cat([indices for _, indices in best])


def precision_at_recall(relevant: np.ndarray, total: np.ndarray, levels: Sequence[float]) -> np.ndarray:
    """(L,) mean over queries of the interpolated precision: the best precision at this recall or higher; 0 at a recall
    that is not reached.

    relevant: (Q, K) bool, whether each retrieved item is, best first. total: (Q,), the number of relevant items;
    queries without any are left out. levels: of recall, 0 to 1; at 0 it is the best precision of all.
    """
    relevant, total = relevant[total > 0], total[total > 0]
    if not len(relevant):
        raise SegueError("no query has a right answer: there is no precision")
    hits = relevant.cumsum(1)
    precision = np.maximum.accumulate((hits / np.arange(1, relevant.shape[1] + 1))[:, ::-1], 1)[:, ::-1]
    recall, rows = hits / total[:, None], np.arange(len(relevant))
    curve = []
    for level in levels:
        reached = recall >= level - 1e-12
        curve.append(np.where(reached.any(1), precision[rows, reached.argmax(1)], 0.0).mean())
    return np.array(curve)
