"""Attribute-conditional beam search (Yoshida et al. 2023, arXiv 2311.08817): the likeliest answers that have an
attribute A, by log p(answer so far) + weight * log q(A | answer so far), where q foresees the complete answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from segue.decoding.search.base import Hypothesis
from segue.decoding.search.beam import Beam, BeamSearch
from segue.errors import SegueError

Attribute = Callable[[Sequence[Hypothesis], np.ndarray], np.ndarray]
"""(hypotheses, next tokens (L, K)) -> (L, K) natural log-probabilities, at most 0, that the complete answer will have
the attribute if it goes on with that token. Of each hypothesis `tokens` and `hidden` may be looked at."""


@dataclass(frozen=True)
class ConditionalBeam(Beam):
    """Options of the search, on top of a beam's.

    attribute: foresees the complete answer, for example `Foresight.attribute` (see `search.foresight`).
    attribute_weight: 1 is Bayes' rule, 0 the beam search. attribute_top: so many of the likeliest next tokens of each
        hypothesis are looked at; others are left out.
    holds: whether an answer's tokens do have the attribute. With it, an answer may end where it does, and nowhere else
        (nothing is left to foresee there); answers that have it come first, and all are ranked by their log-probability
        alone.
    """

    options: ClassVar[tuple[str, ...]] = (*Beam.options, "attribute", "attribute_weight", "attribute_top", "holds")
    needs_hidden: ClassVar[bool] = True

    attribute: Attribute | None = None
    attribute_weight: float = 1.0
    attribute_top: int = 100
    holds: Callable[[list[int]], bool] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.attribute is None:
            raise SegueError("a conditional beam search needs attribute: a function that foresees whether the complete "
                             "answer will have it, such as one learnt by segue.decoding.search.foresee")
        if self.attribute_weight < 0 or self.attribute_top < 1:
            raise SegueError("attribute_weight must be at least 0 and attribute_top at least 1, not "
                             f"{self.attribute_weight} and {self.attribute_top}")

    def begin(self, n: int, stops: frozenset[int]) -> ConditionalSearch:
        return ConditionalSearch(self, n, stops)


class ConditionalSearch(BeamSearch):
    """The search of one answer, see `ConditionalBeam`: a beam search that leans towards what is foreseen."""

    options: ConditionalBeam

    def advance(self, living: Sequence[Hypothesis], logprobs: np.ndarray, bonus: np.ndarray | None = None,
                lean: np.ndarray | None = None) -> list[Hypothesis]:
        weight, attribute = self.options.attribute_weight, self.options.attribute
        if weight and attribute is not None:
            count = min(self.options.attribute_top, logprobs.shape[1])
            tokens = np.argpartition(-logprobs, count - 1, axis=1)[:, :count]
            foreseen = np.asarray(attribute(living, tokens), np.float64)
            if foreseen.shape != tokens.shape or not (foreseen <= 0).all():
                raise SegueError(f"the attribute must give log-probabilities (at most 0) of shape {tokens.shape}, "
                                 f"not {foreseen.shape} up to {foreseen.max(initial=-np.inf)}")
            lean = np.full_like(logprobs, -np.inf)
            np.put_along_axis(lean, tokens, weight * foreseen, 1)
            if (holds := self.options.holds) is not None:
                ended = [0.0 if holds(hypothesis.tokens) else -np.inf for hypothesis in living]
                lean[:, list(self.stops)] = np.array(ended)[:, None]
        return super().advance(living, logprobs, bonus, lean)

    def results(self) -> list[Hypothesis]:
        if (holds := self.options.holds) is not None:
            for answer in self.done:
                answer.score = self._rank(answer.total, answer.length)
            self.done.sort(key=lambda answer: (not holds(answer.tokens), -answer.score))
        return super().results()
