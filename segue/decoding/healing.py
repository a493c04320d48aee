"""Prompts that end inside a token ("token healing", Lundberg 2023).

A model that has learned "bar" as one token never saw the token "ba" followed by "r"; and where a blank belongs to the
word behind it, it never saw a word after a token that is a blank alone. So the last tokens of a prompt are taken back
if some longer token begins with what they spell, and the answer must first spell that again.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from segue.decoding.prompt import OpenPrompt
from segue.decoding.sampling import Array, Prefix, only

if TYPE_CHECKING:
    from segue.kinds.codecs import Codec

Text = bytes | str


class Spelling:
    """What each token of a codec spells, in order; none where tokens are items, which have no beginnings."""

    def __init__(self, codec: Codec) -> None:
        self.codec = codec
        items = isinstance(codec.decode([]), list)
        texts: list[Text] = [] if items else [codec.decode([id]) for id in range(codec.size)]
        self.pairs = sorted((text, id) for id, text in enumerate(texts) if text)
        self.texts = [text for text, _ in self.pairs]
        self.longest = max(map(len, self.texts), default=0)

    def starting(self, text: Text) -> slice:
        """Where the tokens stand that begin with `text`."""
        return slice(bisect_left(self.texts, text), bisect_right(self.texts, text, key=lambda word: word[: len(text)]))

    def open(self, tokens: Sequence[int], keep: int) -> OpenPrompt | None:
        """The prompt without the most last tokens that a longer token might begin with, the first `keep` left alone;
        None where there is no such token."""
        found: OpenPrompt | None = None
        for count in range(1, len(tokens) - keep + 1):
            text: Text = self.codec.decode(tokens[-count:])
            if not text or len(text) >= self.longest:
                break
            if any(len(longer) > len(text) for longer in self.texts[self.starting(text)]):
                found = OpenPrompt(tokens[:-count], text, count)
        return found

    def allowed(self, rest: Text) -> Array:
        """The tokens that begin with `rest`, and those that it begins with."""
        ids = [id for _, id in self.pairs[self.starting(rest)]]
        for end in range(1, len(rest)):
            at = bisect_left(self.texts, rest[:end])
            while at < len(self.texts) and self.texts[at] == rest[:end]:
                ids.append(self.pairs[at][1])
                at += 1
        return np.array(sorted(ids), np.int64)


@lru_cache(maxsize=8)
def spelling(codec: Codec) -> Spelling:
    return Spelling(codec)


class Healing:
    """The processor that makes answers to an `OpenPrompt` begin with what was taken back."""

    def __init__(self, spelling: Spelling) -> None:
        self.spelling = spelling

    def __call__(self, scores: Array, prefix: Prefix) -> Array:
        if not prefix.rest or prefix.count >= len(prefix.rest):
            return scores
        rest = prefix.rest[len(self.spelling.codec.decode(prefix.said)) :]
        return only(scores, self.spelling.allowed(rest)) if rest else scores
