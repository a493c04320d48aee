"""Attribute-conditional beam search (Yoshida et al. 2023, arXiv 2311.08817): likely answers with an attribute A, ranked
by log p(answer so far) + weight * log q(A | answer so far), where q predicts A of the complete answer."""

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
the attribute if that token comes next. It may use `tokens` and `hidden` of each hypothesis."""


@dataclass(frozen=True)
class ConditionalBeam(Beam):
    """Options of the search, in addition to a beam search's.

    attribute: predicts the attribute of the complete answer, for example `Foresight.attribute` (`search.foresight`).
    attribute_weight: 1 is Bayes' rule, 0 plain beam search. attribute_top: how many of the likeliest next tokens of
        each hypothesis are considered.
    holds: whether an answer's tokens have the attribute. With it, an answer may end only where it has; answers that
        have it come first, and all are ranked by their log-probability alone.
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
    """The search for one answer, see `ConditionalBeam`: a beam search with the prediction as lookahead score."""

    options: ConditionalBeam

    def advance(self, living: Sequence[Hypothesis], logprobs: np.ndarray, bonus: np.ndarray | None = None,
                lookahead: np.ndarray | None = None) -> list[Hypothesis]:
        weight, attribute = self.options.attribute_weight, self.options.attribute
        if weight and attribute is not None:
            count = min(self.options.attribute_top, logprobs.shape[1])
            tokens = np.argpartition(-logprobs, count - 1, axis=1)[:, :count]
            foreseen = np.asarray(attribute(living, tokens), np.float64)
            if foreseen.shape != tokens.shape or not (foreseen <= 0).all():
                raise SegueError(f"the attribute must give log-probabilities (at most 0) of shape {tokens.shape}, "
                                 f"not {foreseen.shape} up to {foreseen.max(initial=-np.inf)}")
            lookahead = np.full_like(logprobs, -np.inf)
            np.put_along_axis(lookahead, tokens, weight * foreseen, 1)
        if (holds := self.options.holds) is not None:
            lookahead = np.zeros_like(logprobs) if lookahead is None else lookahead
            ended = [0.0 if holds(hypothesis.tokens) else -np.inf for hypothesis in living]
            lookahead[:, list(self.stops)] = np.array(ended)[:, None]
        return super().advance(living, logprobs, bonus, lookahead)

    def results(self) -> list[Hypothesis]:
        if (holds := self.options.holds) is not None:
            for answer in self.done:
                answer.score = self._rank(answer.total, answer.length)
            self.done.sort(key=lambda answer: (not holds(answer.tokens), -answer.score))
        return super().results()
