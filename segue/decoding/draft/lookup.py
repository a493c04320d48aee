"""Prompt lookup (Saxena 2023): copy what followed the latest earlier occurrence of the last few tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

from segue.decoding.draft.base import NO_DRAFT, Tip, Tree, chain_tree


def suffixes(tokens: Sequence[int], longest: int) -> Iterator[tuple[int, ...]]:
    """The last token, the last two, and so on up to the last `longest`."""
    for n in range(1, min(longest, len(tokens)) + 1):
        yield tuple(tokens[-n:])


class _RequestText:
    """One request's tokens, and for every n-gram the position after its latest occurrence."""

    def __init__(self, ngram: int, window: int) -> None:
        self.ngram, self.window = ngram, window
        self.tokens: list[int] = []
        self.after: dict[tuple[int, ...], int] = {}

    def extend(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            position = len(self.tokens)
            for suffix in suffixes(self.tokens, self.ngram):
                self.after[suffix] = position
            self.tokens.append(token)
            if position >= 2 * self.window:  # rebuild from the recent half, so that memory is bounded
                recent = self.tokens[-self.window:]
                self.tokens, self.after = [], {}
                self.extend(recent)

    def follow(self, length: int) -> list[int]:
        """What followed the latest occurrence of the longest known suffix, continued periodically past the end."""
        for suffix in reversed(list(suffixes(self.tokens, self.ngram))):
            position = self.after.get(suffix)
            if position is not None:
                copied = self.tokens[position : position + length]
                while len(copied) < length:
                    copied.append(copied[position - len(self.tokens)])
                return copied
        return []


class PromptLookup:
    """Drafts by copying from this request's own prompt and answer.

    ngram: the longest suffix looked up; shorter ones are tried after it. length: tokens drafted at most. window: recent
    tokens that are searched, at least.
    """

    needs_hidden: ClassVar[bool] = False

    def __init__(self, ngram: int = 3, length: int = 10, window: int = 32_768) -> None:
        self.ngram, self.length, self.window = ngram, length, window
        self._texts: dict[int, _RequestText] = {}

    def observe(self, row: int, tokens: Sequence[int], prompt: bool = False) -> None:
        if row not in self._texts:
            self._texts[row] = _RequestText(self.ngram, self.window)
        self._texts[row].extend(tokens)

    def propose(self, tips: Sequence[Tip]) -> list[Tree]:
        drafts = []
        for tip in tips:
            text = self._texts.get(tip.row)
            drafts.append(chain_tree(text.follow(min(self.length, tip.nodes, tip.depth))) if text else NO_DRAFT)
        return drafts

    def forget(self, row: int) -> None:
        self._texts.pop(row, None)
