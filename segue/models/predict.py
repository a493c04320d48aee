"""What every method of next-element prediction offers, neural or not: a prefix in, a distribution out."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from segue.errors import SegueError
from segue.models.base import Decodable


@runtime_checkable
class SequencePredictor(Protocol):
    """`vocabulary` is V, the number of different elements, the end of a sequence included where it is predicted."""

    @property
    def vocabulary(self) -> int: ...

    def next(self, prefix: Any) -> np.ndarray:
        """(V,): the distribution of the element after a prefix (ids, possibly none) of a sequence."""
        ...

    def predictions(self, sequence: Any) -> np.ndarray:
        """(n, V): the distribution of each of the n elements of a sequence, from those before it."""
        ...


class DecodablePredictor:
    """Any `Decodable` model as a predictor of its first `size` tokens (default: all), made to sum to 1 over these.

    start: the token every sequence begins with in training; it is put before each prefix.
    """

    def __init__(self, model: Decodable, start: int, size: int | None = None) -> None:
        self.model, self.start, self.vocabulary = model, start, size or model.vocabulary
        if not (0 <= start < model.vocabulary and 0 < self.vocabulary <= model.vocabulary):
            raise SegueError(f"start token {start} and {self.vocabulary} predicted tokens do not fit a vocabulary of "
                             f"{model.vocabulary}")

    def next(self, prefix: Any) -> np.ndarray:
        return self.predictions([*np.asarray(getattr(prefix, "ids", prefix)).tolist(), self.start])[-1]

    @torch.no_grad()
    def predictions(self, sequence: Any) -> np.ndarray:
        ids = np.asarray(getattr(sequence, "ids", sequence), np.int64)
        tokens = torch.from_numpy(np.concatenate([[self.start], ids[:-1]]))[None]
        if not ids.size:
            return np.empty((0, self.vocabulary))
        logits = self.model.extend(tokens, self.model.init_state(1)).logits[0, :, :self.vocabulary]
        return logits.double().softmax(-1).cpu().numpy()
