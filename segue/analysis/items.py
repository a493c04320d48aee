"""Recommend items by their descriptions: an index of the items' vectors, searched with the vector of a history
(Recformer: Li et al. 2023, arXiv 2305.13731)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from segue.analysis.embedding import embed
from segue.errors import SegueError


class ItemIndex:
    """The vectors of all items by a model, as of the last `refresh`.

    rows: the model input of each of N items. temperature: divides cosines. pool: of the vectors, see `embed`.
    Items with equal input share one vector, so that their scores tie exactly.
    """

    def __init__(self, rows: Sequence[np.ndarray], temperature: float = 0.05, pool: str = "first") -> None:
        if not len(rows) or temperature <= 0:
            raise SegueError(f"an index of {len(rows)} items with temperature {temperature}: give an item, and a "
                             "temperature above 0")
        contents = [np.ascontiguousarray(row).tobytes() for row in rows]
        unique = dict(zip(contents, map(np.asarray, rows)))
        numbers = {content: number for number, content in enumerate(unique)}
        self._index = torch.tensor([numbers[content] for content in contents])  # of each item's vector among `_rows`
        self._rows = [*unique.values()]
        self.temperature, self.pool = temperature, pool
        self._vectors: Tensor | None = None

    def __len__(self) -> int:
        return len(self._index)

    def refresh(self, model: Any) -> None:
        """Encode all items with the model as it is now."""
        training = getattr(model, "training", False)
        vectors = F.normalize(torch.from_numpy(embed(model, self._rows, self.pool)), dim=-1)
        device = next(model.parameters()).device if hasattr(model, "parameters") else vectors.device
        self._vectors = vectors.to(device)
        if training:
            model.train()

    @property
    def unique_vectors(self) -> Tensor:
        """(U, D): unit vectors of the U different items; settable, to restore earlier ones."""
        if self._vectors is None:
            raise SegueError("the index holds no vectors yet: refresh it with a model")
        return self._vectors

    @unique_vectors.setter
    def unique_vectors(self, vectors: Tensor) -> None:
        self._vectors = vectors

    @property
    def vectors(self) -> Tensor:
        """(N, D): unit vectors of all items."""
        return self.unique_vectors[self._index]

    def scores(self, features: Tensor) -> Tensor:
        """(M, N): cosines of vectors (M, D) with all items, over the temperature; differentiable in `features`."""
        scores = F.normalize(features, dim=-1) @ self.unique_vectors.to(features).mT / self.temperature
        return scores[:, self._index.to(scores.device)]


class ItemRecommender:
    """A `SequencePredictor` of items by their texts: the softmax of an index's scores of a history's vector.

    read: turns a history of item numbers, the oldest first, into the model's input.
    """

    def __init__(self, model: Any, index: ItemIndex, read: Callable[[np.ndarray], np.ndarray]) -> None:
        self.model, self.index, self.read, self.vocabulary = model, index, read, len(index)

    def next_many(self, prefixes: Sequence[Any]) -> np.ndarray:
        """(n, N): probabilities of the next item after each of several histories."""
        rows = [self.read(np.asarray(getattr(prefix, "ids", prefix), np.int64)) for prefix in prefixes]
        if not rows:
            return np.empty((0, self.vocabulary))
        features = torch.from_numpy(embed(self.model, rows, self.index.pool))
        return self.index.scores(features.to(self.index.unique_vectors.device)).double().softmax(-1).cpu().numpy()

    def next(self, prefix: Any) -> np.ndarray:
        return self.next_many([prefix])[0]

    def predictions(self, sequence: Any) -> np.ndarray:
        ids = np.asarray(getattr(sequence, "ids", sequence), np.int64)
        return self.next_many([ids[:end] for end in range(len(ids))])
