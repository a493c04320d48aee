"""Input-guided aggressive decoding (Ge, Xia et al. 2022, arXiv 2205.10350): an answer that mostly copies its source is
drafted from it, all the rest at once. Correcting, simplifying, editing: a sentence without edits takes one pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from segue.decoding.draft.base import NOTHING, Tip, Tree, branch
from segue.decoding.draft.lookup import suffixes

START, SEVERAL = -1, 0  # the token before the first one of source and answer; the place of what was said repeatedly


class _Request:
    """One request's source, the place behind each of its n-grams, the last tokens of the answer, and the place of the
    source where the answer stands (its end: nowhere). Both begin with START, so that an answer which has just begun
    stands at the source's beginning."""

    def __init__(self, ngram: int, reach: int) -> None:
        self.ngram, self.reach = ngram, reach
        self.source, self.tail, self.place = [START], [START], 1
        self.after: dict[tuple[int, ...], int] = {(START,): 1}
        self.read = False  # the separator was met

    def read_source(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            self.source.append(token)
            for suffix in suffixes(self.source, self.ngram):
                self.after[suffix] = SEVERAL if suffix in self.after else len(self.source)

    def say(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            self.tail = [*self.tail, token][-self.ngram :]
            self.place = self._locate(self.place + 1)

    def _locate(self, expected: int) -> int:
        """Behind the answer's last token: nearest to where it is expected; else by the shortest suffix that the source
        has exactly once; else where it is expected, in exchange for another token."""
        end, token = len(self.source), self.tail[-1]
        near = [place for place in range(max(2, expected - self.reach), min(end, expected + self.reach) + 1)
                if self.source[place - 1] == token] if self.reach else []
        if near:
            return min(near, key=lambda place: abs(place - expected))
        for suffix in suffixes(self.tail, self.ngram):
            place = self.after.get(suffix)
            if place is None:
                break
            if place != SEVERAL:
                return place
        return min(expected, end) if self.reach else end

    def follow(self, length: int) -> list[int]:
        return self.source[self.place : self.place + length]


class SourceCopy:
    """Copies the rest of the source from where the answer stands in it.

    separator: the token that ends the source in a prompt (`begin` of an encoder-decoder); what a prompt holds behind it
        belongs to the answer. None: the whole prompt is the source.
    reach: the answer's last token is looked for so many tokens around the place where it would be had the answer gone
        on copying; where it is not there, and nowhere else either, it has taken another one's place. 0: as published,
        places are found by suffixes alone.
    ngram: a suffix of one token says where the answer stands, or if it is in the source several times one of two, and
        so on up to so many. length: tokens drafted at most.
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
        request.say(tokens)

    def propose(self, tips: Sequence[Tip]) -> list[Tree]:
        drafts = []
        for tip in tips:
            request, length = self._requests.get(tip.row), min(self.length, tip.nodes, tip.depth)
            drafts.append(branch(request.follow(length)) if request is not None and length > 0 else NOTHING)
        return drafts

    def forget(self, row: int) -> None:
        self._requests.pop(row, None)
