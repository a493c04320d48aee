"""Items described by text: dictionaries of attributes, and histories of them, as tokens (Recformer: Li et al. 2023,
arXiv 2305.13731)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from segue.errors import SegueError
from segue.kinds.codecs import Codec, PieceCodec
from segue.sequence import Sequence as Tokens

BEGIN, KEY, VALUE = 0, 1, 2  # sorts of tokens
TYPES = 3


class TextItemCodec:
    """A history becomes a begin, then its items, the newest first, each as `key value key value ...`.

    So what is cut off behind `length` tokens is what is oldest. words: the codec of the texts. attributes: so many of
    the first attributes of an item are read (those that are empty do not count), each cut behind `longest` tokens.
    items: so many of the newest items are read. length: tokens in all.

    Ids: those of `words`, then the begin, then a mask (`begin`, `mask`, `size`). Channels: "type" (0 begin, 1 key,
    2 value), "item" (0 begin, then the place of the item, 1 the newest; `items` + 1 of them) and "word", a number for
    each word of which a token is a piece. An item alone is a history of one.
    """

    def __init__(self, words: Codec, attributes: int = 3, longest: int = 32, items: int = 50,
                 length: int = 1024) -> None:
        if min(attributes, longest, items) < 1 or length < 2:
            raise SegueError(f"{attributes} attributes of {longest} tokens, {items} items, {length} tokens in all: "
                             "give at least one of each, and two tokens")
        self.words, self.attributes, self.longest, self.items, self.length = words, attributes, longest, items, length
        self.begin, self.mask, self.size = words.size, words.size + 1, words.size + 2
        pieces = words.pieces if isinstance(words, PieceCodec) else None
        opens = [not piece[:1].isalnum() and piece[:1] < b"\x80" for piece in pieces] if pieces is not None else []
        self._opens = np.array(opens, bool) if pieces is not None else np.ones(words.size, bool)

    @property
    def tables(self) -> dict[str, int]:
        """What `StackConfig.tables` of a model of these rows must hold."""
        return {"type": TYPES, "item": self.items + 1}

    def item(self, item: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(n,) each: ids, types and whether a word begins, of one item."""
        ids, types, opens = list[np.ndarray](), list[np.ndarray](), list[np.ndarray]()
        attributes = [(key, text) for key, value in item.items() if (text := attribute_text(value))][: self.attributes]
        for key, text in attributes:
            parts = [self.words.encode(f" {key}"), self.words.encode(f" {text}")]
            tokens = np.concatenate(parts)[: self.longest].astype(np.int64)
            word_starts = self._opens[tokens]
            word_starts[[0, *([len(parts[0])] if len(parts[0]) < len(tokens) else [])]] = True
            ids.append(tokens)
            types.append(np.where(np.arange(len(tokens)) < len(parts[0]), KEY, VALUE))
            opens.append(word_starts)
        if not ids:
            raise SegueError("an item without a text cannot be told: give it an attribute that is not empty")
        return np.concatenate(ids), np.concatenate(types), np.concatenate(opens)

    def history(self, items: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> Tokens:
        """A history of items that `item` gave, the oldest first."""
        latest = list(items[::-1][: self.items])
        ids = np.concatenate([[self.begin], *(ids for ids, _, _ in latest)])[: self.length]
        channels = {
            "type": np.concatenate([[BEGIN], *(types for _, types, _ in latest)]),
            "item": np.repeat(np.arange(len(latest) + 1), [1, *(len(ids) for ids, _, _ in latest)]),
            "word": np.cumsum(np.concatenate([[True], *(opens for _, _, opens in latest)])) - 1}
        return Tokens(ids.astype(np.int32), {name: values[: len(ids)] for name, values in channels.items()})

    def encode(self, items: Sequence[Mapping[str, Any]]) -> Tokens:
        """A history of items, the oldest first; none is a begin alone."""
        return self.history([self.item(item) for item in items])

    @staticmethod
    def rows(tokens: Tokens) -> np.ndarray:
        """(n, 3) int64: ids, types and places of items, as a stack with `tables` reads them."""
        return np.stack([tokens.ids, tokens.channels["type"], tokens.channels["item"]], 1).astype(np.int64)


def attribute_text(value: Any) -> str:
    """The text of an attribute: of lists with commas between, of nothing none."""
    if value is None:
        return ""
    if isinstance(value, (list, tuple)):
        return ", ".join(filter(None, map(attribute_text, value)))
    return " ".join(str(value).split())
