"""Input-guided aggressive decoding (Ge, Xia et al. 2022, arXiv 2205.10350): where an answer mostly copies its source
(correcting, simplifying, editing), draft all the rest of the source. A sentence without edits takes one pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from segue.decoding.draft.base import NO_DRAFT, Tip, Tree, chain_tree
from segue.decoding.draft.lookup import suffixes

START = -1  # the token before the first one of both source and answer
AMBIGUOUS = 0  # in place of a position: the n-gram occurs more than once


class _Request:
    """One request: its source, the position after each of its n-grams, the last tokens of the answer, and the position
    in the source that the answer has reached (the source's end: unknown). Source and answer both begin with START, so
    that an empty answer is aligned with the source's beginning."""

    def __init__(self, ngram: int, reach: int) -> None:
        self.ngram, self.reach = ngram, reach
        self.source, self.tail, self.place = [START], [START], 1
        self.after: dict[tuple[int, ...], int] = {(START,): 1}
        self.read = False  # whether the separator was found

    def read_source(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            self.source.append(token)
            for suffix in suffixes(self.source, self.ngram):
                self.after[suffix] = AMBIGUOUS if suffix in self.after else len(self.source)

    def append_answer(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            self.tail = [*self.tail, token][-self.ngram :]
            self.place = self._locate(self.place + 1)

    def _locate(self, expected: int) -> int:
        """The source position after the answer's last token: the match nearest to `expected`; else by the shortest
        suffix that occurs in the source exactly once; else `expected`, taking the token for a substitution."""
        end, token = len(self.source), self.tail[-1]
        nearby = [place for place in range(max(2, expected - self.reach), min(end, expected + self.reach) + 1)
                  if self.source[place - 1] == token] if self.reach else []
        if nearby:
            return min(nearby, key=lambda place: abs(place - expected))
        for suffix in suffixes(self.tail, self.ngram):
            place = self.after.get(suffix)
            if place is None:
                break
            if place != AMBIGUOUS:
                return place
        return min(expected, end) if self.reach else end

    def follow(self, length: int) -> list[int]:
        return self.source[self.place : self.place + length]


class SourceCopy:
    """Drafts the rest of the source from the position that the answer has reached.

    separator: the token that ends the source in a prompt (`begin` of an encoder-decoder); the tokens after it belong to
        the answer. None: the whole prompt is the source.
    reach: the answer's last token is looked for within this many tokens of where plain copying would have put it; if it
        is not there, and its suffixes occur nowhere else, it counts as a substitution. 0: as published, positions are
        found by suffixes alone.
    ngram: the longest suffix of the answer that is looked up; a longer one is tried where a shorter one is ambiguous.
    length: tokens drafted at most.
    """

    name: ClassVar[str] = "source"
    needs_hidden: ClassVar[bool] = False

    def __init__(self, separator: int | None = None, ngram: int = 3, length: int = 256, reach: int = 8) -> None:
        self.separator, self.ngram, self.length, self.reach = separator, ngram, length, reach
        self._requests: dict[int, _Request] = {}

    def observe(self, row: int, tokens: Sequence[int], prompt: bool = False) -> None:
        request = self._requests.setdefault(row, _Request(self.ngram, self.reach))
        tokens = list(tokens)
        if prompt and not request.read:
            request.read = self.separator in tokens
            end = tokens.index(self.separator) if request.read else len(tokens)  # type: ignore[arg-type]
            request.read_source(tokens[:end])
            tokens = tokens[end + 1 :]
        request.append_answer(tokens)

    def propose(self, tips: Sequence[Tip]) -> list[Tree]:
        drafts = []
        for tip in tips:
            request, length = self._requests.get(tip.row), min(self.length, tip.nodes, tip.depth)
            drafts.append(chain_tree(request.follow(length)) if request is not None and length > 0 else NO_DRAFT)
        return drafts

    def forget(self, row: int) -> None:
        self._requests.pop(row, None)
