"""Prompt lookup: what followed the last time the same few tokens were said is likely to follow again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

from segue.decoding.draft.base import NOTHING, Tip, Tree, branch


def suffixes(tokens: Sequence[int], longest: int) -> Iterator[tuple[int, ...]]:
    """The last token, the last two, and so on up to the last `longest`."""
    for n in range(1, min(longest, len(tokens)) + 1):
        yield tuple(tokens[-n:])


class _Text:
    """One request's tokens, and for every n-gram that has a successor the place of the latest successor."""

    def __init__(self, ngram: int, window: int) -> None:
        self.ngram, self.window = ngram, window
        self.tokens: list[int] = []
        self.after: dict[tuple[int, ...], int] = {}

    def extend(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            place = len(self.tokens)
            for suffix in suffixes(self.tokens, self.ngram):
                self.after[suffix] = place
            self.tokens.append(token)
            if place >= 2 * self.window:  # begin afresh with the recent half: memory stays flat
                recent = self.tokens[-self.window:]
                self.tokens, self.after = [], {}
                self.extend(recent)

    def follow(self, length: int) -> list[int]:
        """What followed the latest occurrence of the longest suffix known; repeats itself where it reaches the end."""
        for suffix in reversed(list(suffixes(self.tokens, self.ngram))):
            place = self.after.get(suffix)
            if place is not None:
                copied = self.tokens[place : place + length]
                while len(copied) < length:
                    copied.append(copied[place - len(self.tokens)])
                return copied
        return []


class PromptLookup:
    """Copies from what this request has said (Saxena 2023).

    ngram: the longest suffix that is looked up; shorter ones are tried after it. length: tokens drafted at most.
    window: at least so many recent tokens are searched.
    """

    needs_hidden: ClassVar[bool] = False

    def __init__(self, ngram: int = 3, length: int = 10, window: int = 32_768) -> None:
        self.ngram, self.length, self.window = ngram, length, window
        self._texts: dict[int, _Text] = {}

    def observe(self, row: int, tokens: Sequence[int], prompt: bool = False) -> None:
        if row not in self._texts:
            self._texts[row] = _Text(self.ngram, self.window)
        self._texts[row].extend(tokens)

    def propose(self, tips: Sequence[Tip]) -> list[Tree]:
        drafts = []
        for tip in tips:
            text = self._texts.get(tip.row)
            drafts.append(branch(text.follow(min(self.length, tip.nodes, tip.depth))) if text else NOTHING)
        return drafts

    def forget(self, row: int) -> None:
        self._texts.pop(row, None)
