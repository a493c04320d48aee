"""Token healing (Lundberg 2023), for prompts that end inside a token.

A model that has learned "bar" as one token never saw the token "ba" followed by "r"; and where a space belongs to the
word after it, it never saw a word after a token that is a space alone. So the last tokens of a prompt are removed if
some longer token begins with the text they spell, and the answer must begin with that text.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from segue.decoding.prompt import OpenPrompt
from segue.decoding.sampling import Array, Prefix, keep_only

if TYPE_CHECKING:
    from segue.kinds.codecs import Codec

Text = bytes | str


class Spelling:
    """The text of each token of a codec, sorted; empty where tokens are items, which have no prefixes."""

    def __init__(self, codec: Codec) -> None:
        self.codec = codec
        items = isinstance(codec.decode([]), list)
        texts: list[Text] = [] if items else [codec.decode([id]) for id in range(codec.size)]
        self.pairs = sorted((text, id) for id, text in enumerate(texts) if text)
        self.texts = [text for text, _ in self.pairs]
        self.longest = max(map(len, self.texts), default=0)

    def starting_with(self, text: Text) -> slice:
        """The range of the tokens, in sorted order, that begin with `text`."""
        return slice(bisect_left(self.texts, text), bisect_right(self.texts, text, key=lambda word: word[: len(text)]))

    def open(self, tokens: Sequence[int], keep: int) -> OpenPrompt | None:
        """The prompt without as many last tokens as some longer token might begin with, never any of the first `keep`;
        None where there is no such token."""
        prompt: OpenPrompt | None = None
        for count in range(1, len(tokens) - keep + 1):
            text: Text = self.codec.decode(tokens[-count:])
            if not self.codec.decode(tokens[-count:][:1]) or len(text) >= self.longest:
                break  # a token that spells nothing (a special one) could not be said again
            if any(len(longer) > len(text) for longer in self.texts[self.starting_with(text)]):
                prompt = OpenPrompt(tokens[:-count], text, count)
        return prompt

    def allowed(self, text: Text) -> Array:
        """The tokens that begin with `text`, and those that `text` begins with."""
        ids = [id for _, id in self.pairs[self.starting_with(text)]]
        for end in range(1, len(text)):
            at = bisect_left(self.texts, text[:end])
            while at < len(self.texts) and self.texts[at] == text[:end]:
                ids.append(self.pairs[at][1])
                at += 1
        return np.array(sorted(ids), np.int64)


@lru_cache(maxsize=8)
def spelling_of(codec: Codec) -> Spelling:
    """The codec's spelling, cached."""
    return Spelling(codec)


class Healing:
    """The processor that makes answers to an `OpenPrompt` begin with the text removed from it."""

    def __init__(self, spelling: Spelling) -> None:
        self.spelling = spelling

    def __call__(self, scores: Array, prefix: Prefix) -> Array:
        if not prefix.removed_text or prefix.count >= len(prefix.removed_text):
            return scores
        missing = prefix.removed_text[len(self.spelling.codec.decode(prefix.generated)) :]
        return keep_only(scores, self.spelling.allowed(missing)) if missing else scores
