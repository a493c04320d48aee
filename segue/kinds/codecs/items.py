"""Sequences of items: one token an item of a fixed vocabulary, or token ids as they are."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from segue.errors import SegueError
from segue.kinds.codecs.base import END, UNKNOWN, Codec

NUMBER = re.compile(r"-?[0-9]+")


class ItemCodec(Codec):
    """One token for each item (str or int) of a vocabulary; then the unknown item; then the end.

    An item outside the vocabulary becomes the unknown item, which decodes as "<unknown>".
    """

    name = "items"

    def __init__(self, items: Sequence[str | int]) -> None:
        self.items = list(items)
        self.ids = {item: id for id, item in enumerate(self.items)}
        if len(self.ids) != len(self.items) or not all(isinstance(item, (str, int)) for item in self.items):
            raise SegueError("the items of a codec are different strings or whole numbers")
        self.unk = len(self.items)
        self.bos = self.eos = self.unk + 1
        self.size = self.unk + 2

    @classmethod
    def count(cls, counts: Mapping[Any, int], min_count: int = 1, vocabulary: int | None = None) -> ItemCodec:
        """The vocabulary of counted items, most frequent first, ties in the order of the items; without those counted
        fewer than `min_count` times. vocabulary: the most tokens, the unknown item and the end included."""
        if vocabulary is not None and vocabulary < 3:
            raise SegueError(f"a vocabulary of {vocabulary} leaves no room for items: at least 3")
        order = sorted((item for item, n in counts.items() if n >= min_count), key=lambda item: (-counts[item], item))
        return cls(order if vocabulary is None else order[: vocabulary - 2])

    def encode(self, obj: Sequence[str | int]) -> np.ndarray:
        ids, unknown = self.ids, self.unk
        if self.items and not isinstance(self.items[0], str):  # whole numbers may come as text
            obj = [int(item) if isinstance(item, str) and NUMBER.fullmatch(item) else item for item in obj]
        return np.fromiter((ids.get(item, unknown) for item in obj), dtype=np.int32, count=len(obj))

    def lookup(self, elements: Sequence[Any] | None) -> np.ndarray | None:
        return None if elements is None else self.encode(elements)

    def decode(self, ids: Iterable[int]) -> list[str | int]:
        array = self.checked(ids)
        return [UNKNOWN if id == self.unk else self.items[id] for id in array[array != self.eos].tolist()]

    def token(self, id: int) -> str:
        return END if id == self.eos else UNKNOWN if id == self.unk else str(self.items[id])

    def weights(self) -> np.ndarray:
        return np.array([1] * (len(self.items) + 1) + [0], dtype=np.int64)

    def state(self) -> dict[str, Any]:
        return {"items": self.items}


class IdCodec(Codec):
    """Token ids unchanged, for a model without a tokenizer: objects are lists of ids. size: of the model's vocabulary.
    eos: the id that ends a text, or None."""

    name = "ids"

    def __init__(self, size: int, eos: int | None = None) -> None:
        self.size, self.eos = size, eos

    def encode(self, obj: Sequence[int | str]) -> np.ndarray:
        try:
            typed = (str(item).split() for item in obj)  # the items of "5 6, 7" are "5 6" and "7"
            return self.checked([int(number) for numbers in typed for number in numbers]).astype(np.int32)
        except ValueError as error:
            raise SegueError(f"this model came without a tokenizer, so it knows token ids only, not {str(obj)[:60]!r}: "
                             f"give whole numbers below {self.size}") from error

    def decode(self, ids: Iterable[int]) -> list[int]:
        return self.checked(ids).tolist()

    def token(self, id: int) -> str:
        return END if id == self.eos else str(id)

    def weights(self) -> np.ndarray:
        weights = np.ones(self.size, dtype=np.int64)
        if self.eos is not None:
            weights[self.eos] = 0
        return weights

    def state(self) -> dict[str, Any]:
        return {"size": self.size, "eos": self.eos}
