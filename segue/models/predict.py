"""The protocol of next-element predictors, neural or not: a prefix in, a distribution out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from segue.errors import SegueError
from segue.models.base import Decodable, pad_rows


@runtime_checkable
class SequencePredictor(Protocol):
    """Predicts the next element. `vocabulary` is V, the number of distinct elements, the end of a sequence included
    where it is predicted."""

    @property
    def vocabulary(self) -> int: ...

    def next(self, prefix: Any) -> np.ndarray:
        """(V,): the distribution of the element after a prefix (ids, possibly none) of a sequence."""
        ...

    def predictions(self, sequence: Any) -> np.ndarray:
        """(n, V): the distribution of each of the n elements of a sequence, from those before it."""
        ...


def next_of(model: SequencePredictor, prefixes: Sequence[Any]) -> np.ndarray:
    """(n, V): the distribution of the element after each of n prefixes, in one batch if the model has `next_many`."""
    next_many = getattr(model, "next_many", None)
    if next_many is not None:
        return next_many(prefixes)
    return np.array([model.next(prefix) for prefix in prefixes]).reshape(len(prefixes), model.vocabulary)


class DecodablePredictor:
    """Any `Decodable` model as a predictor of its first `size` tokens (default: all), made to sum to 1 over these.

    start: the token that begins every sequence in training, prepended to each prefix (None: there is none, and prefixes
    cannot be empty). size: V of the predictor. length: how many of a prefix's latest elements the model reads (default:
    all), for models of a limited context.
    """

    def __init__(self, model: Decodable, start: int | None, size: int | None = None, length: int | None = None) -> None:
        self.model, self.start, self.vocabulary, self.length = model, start, size or model.vocabulary, length
        if not (0 <= (start or 0) < model.vocabulary and 0 < self.vocabulary <= model.vocabulary):
            raise SegueError(f"start token {start} and {self.vocabulary} predicted tokens do not fit a vocabulary of "
                             f"{model.vocabulary}")

    def next(self, prefix: Any) -> np.ndarray:
        return self.next_many([prefix])[0]

    @torch.no_grad()
    def next_many(self, prefixes: Sequence[Any]) -> np.ndarray:
        """(n, V): the distribution of the element after each of n prefixes."""
        if not len(prefixes):
            return np.empty((0, self.vocabulary))
        start = [] if self.start is None else [self.start]
        ids = [np.asarray(getattr(prefix, "ids", prefix), np.int64) for prefix in prefixes]
        rows = [[*start, *row[max(0, len(row) - (self.length or len(row))) :].tolist()] for row in ids]
        if not min(map(len, rows)):
            raise SegueError("an empty prefix has nothing to go on from: give the token that sequences start with")
        state = self.model.init_state(len(rows))
        tokens, last = (x.to(state.positions.device) for x in (
            pad_rows(rows), torch.tensor([[len(row) - 1] for row in rows])))
        logits = self.model.extend(tokens, state, at=last).logits
        return logits[:, 0, : self.vocabulary].double().softmax(-1).cpu().numpy()

    @torch.no_grad()
    def predictions(self, sequence: Any) -> np.ndarray:
        ids = np.asarray(getattr(sequence, "ids", sequence), np.int64)
        if not ids.size:
            return np.empty((0, self.vocabulary))
        if self.start is None or (self.length is not None and len(ids) > self.length + 1):
            return self.next_many([ids[:end] for end in range(len(ids))])
        tokens, state = torch.from_numpy(np.concatenate([[self.start], ids[:-1]]))[None], self.model.init_state(1)
        logits = self.model.extend(tokens.to(state.positions.device), state).logits[0, :, : self.vocabulary]
        return logits.double().softmax(-1).cpu().numpy()
