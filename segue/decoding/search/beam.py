"""Beam search: each step keeps the `num_beams` likeliest hypotheses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from segue.decoding.search.base import BatchedSearch, Hypothesis, Search
from segue.errors import SegueError


@dataclass(frozen=True)
class Beam(BatchedSearch):
    """Options of a beam search, named as in transformers.

    num_beams: hypotheses kept. length_penalty: answers are ranked by log-probability / length ** length_penalty (0: the
    likeliest answer; above 0 favours long ones). The length counts the stop token. early_stopping: False, or "never",
    stops when no live hypothesis can beat the finished answers any more (which loses nothing); True as soon as there
    are num_beams answers. num_return_sequences: answers returned, at most num_beams.
    """

    options: ClassVar[tuple[str, ...]] = ("num_beams", "length_penalty", "early_stopping", "num_return_sequences")
    needs_hidden: ClassVar[bool] = False
    revisits: ClassVar[bool] = False
    ranks_whole: ClassVar[bool] = True

    num_beams: int = 4
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    num_return_sequences: int = 1

    def __post_init__(self) -> None:
        if self.num_beams < 1 or not 1 <= self.num_return_sequences <= self.num_beams:
            raise SegueError(f"beam search needs num_beams of at least 1, and num_return_sequences from 1 to "
                             f"num_beams, not {self.num_beams} and {self.num_return_sequences}")
        if self.early_stopping not in (True, False, "never"):
            raise SegueError(f"early_stopping is True, False or 'never', not {self.early_stopping!r}")

    @property
    def width(self) -> int:
        return self.num_beams

    def begin(self, n: int, stops: frozenset[int]) -> Search:
        return BeamSearch(self, n, stops)


class BeamSearch:
    """The search for one answer, see `Beam`."""

    def __init__(self, options: Beam, n: int, stops: frozenset[int]) -> None:
        self.options, self.n, self.stops = options, n, stops
        self.done: list[Hypothesis] = []  # best first, num_beams at most

    def advance(self, living: Sequence[Hypothesis], logprobs: np.ndarray,
                bonus: np.ndarray | None = None, lookahead: np.ndarray | None = None) -> list[Hypothesis]:
        """bonus: (L, V), at most 0, added to the rank of each next token and of everything after it. lookahead: (L, V),
        at most 0, added to the rank of the next token alone."""
        width, vocabulary = self.options.num_beams, logprobs.shape[1]
        extra = np.zeros_like(logprobs) if bonus is None else bonus
        lookaheads = np.zeros_like(logprobs) if lookahead is None else lookahead
        totals = (np.array([hypothesis.total + hypothesis.bonus for hypothesis in living])[:, None] + logprobs
                  + extra + lookaheads).ravel()
        # Every hypothesis may end with every stop token: with this many candidates, at least `width` continue.
        count = min(width * (1 + len(self.stops)), totals.size)
        top = np.argpartition(-totals, count - 1)[:count] if count < totals.size else np.arange(count)
        top = top[np.lexsort((top, -totals[top]))]
        continuing: list[Hypothesis] = []
        length = len(living[0].tokens) + 1
        for rank, index in enumerate(top.tolist()):
            if totals[index] == -np.inf or len(continuing) == width:
                break
            parent, token = divmod(index, vocabulary)
            scores = tuple(float(terms[parent, token]) for terms in (logprobs, extra, lookaheads))
            if token in self.stops:
                if rank < width:
                    self._keep(living[parent].ended(*scores), length)
            else:
                continuing.append(living[parent].extended(token, *scores))
        if length == self.n or not continuing:
            for hypothesis in continuing:
                self._keep(hypothesis, length)
            return []
        return [] if self._settled(continuing, length) else continuing

    def _rank(self, total: float, length: int) -> float:
        return total / length**self.options.length_penalty

    def _keep(self, hypothesis: Hypothesis, length: int) -> None:
        hypothesis.score = self._rank(hypothesis.total + hypothesis.bonus + hypothesis.lookahead, length)
        self.done.append(hypothesis)
        self.done.sort(key=lambda kept: -kept.score)
        del self.done[self.options.num_beams :]

    def _settled(self, continuing: list[Hypothesis], length: int) -> bool:
        """Whether no live hypothesis can change the result."""
        if len(self.done) < self.options.num_beams:
            return False
        if self.options.early_stopping not in (False, "never"):
            return True
        # A total only falls; its best possible rank is at the longest length (penalty > 0) or at the next one.
        farthest = self.n if self.options.length_penalty > 0 else length + 1
        best_total = max(hypothesis.total + hypothesis.bonus for hypothesis in continuing)
        return self._rank(best_total, farthest) <= self.done[-1].score

    def results(self) -> list[Hypothesis]:
        return self.done[: self.options.num_return_sequences]
