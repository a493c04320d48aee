"""Contrastive search (Su et al. 2022, arXiv 2202.06417): among the likeliest next tokens, prefer one whose hidden state
is unlike those before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from segue.decoding.search.base import BatchedSearch, Hypothesis
from segue.decoding.verify import top_tokens
from segue.errors import SegueError


@dataclass(frozen=True)
class Contrastive(BatchedSearch):
    """Options, named as in transformers. Each step reads top_k tokens and keeps the one with the largest
    (1 - penalty_alpha) * probability - penalty_alpha * largest cosine of its hidden state with one before."""

    options: ClassVar[tuple[str, ...]] = ("penalty_alpha", "top_k")
    needs_hidden: ClassVar[bool] = True
    revisits: ClassVar[bool] = False

    penalty_alpha: float = 0.6
    top_k: int = 4

    def __post_init__(self) -> None:
        if not 0 <= self.penalty_alpha <= 1 or self.top_k < 1:
            raise SegueError("contrastive search needs a penalty_alpha from 0 to 1 and a top_k of at least 1, not "
                             f"{self.penalty_alpha} and {self.top_k}")

    @property
    def width(self) -> int:
        return self.top_k

    def begin(self, n: int, stops: frozenset[int]) -> ContrastiveSearch:
        return ContrastiveSearch(self, n, stops)


class ContrastiveSearch:
    """The search for one answer, see `Contrastive`: the live hypotheses are the candidates for one token."""

    def __init__(self, options: Contrastive, n: int, stops: frozenset[int]) -> None:
        self.options, self.n, self.stops = options, n, stops
        self.before: Tensor | None = None  # directions (N, D) of the hidden states so far
        self.answer = Hypothesis()

    def advance(self, living: Sequence[Hypothesis], logprobs: np.ndarray) -> list[Hypothesis]:
        """living: the candidates for the last token (a stop token may be one), all after the same tokens."""
        directions = [F.normalize(hypothesis.hidden.double(), dim=-1)
                      for hypothesis in living if hypothesis.hidden is not None]
        best = 0
        if self.before is not None:
            similarities = (torch.cat(directions) @ self.before.T).amax(1).tolist() if len(self.before) else \
                [0.0] * len(directions)
            weight = self.options.penalty_alpha
            best = int(np.argmax([(1 - weight) * np.exp(hypothesis.logprobs[-1]) - weight * similarity
                                  for hypothesis, similarity in zip(living, similarities)]))
        new = directions[best][directions[best].any(-1)]  # hidden states at an encoder-decoder's source are all zero
        self.before = new if self.before is None else torch.cat([self.before, new])
        chosen = living[best]
        if chosen.tokens and chosen.tokens[-1] in self.stops:
            self.answer = Hypothesis(chosen.tokens[:-1], chosen.logprobs[:-1], chosen.total, stopped=True)
        elif len(chosen.tokens) == self.n:
            self.answer = chosen
        else:
            return [chosen.extended(token, logprob) for token, logprob in top_tokens(logprobs[best], self.options.top_k)
                    if logprob > -np.inf]
        self.answer.score = self.answer.total
        return []

    def results(self) -> list[Hypothesis]:
        return [self.answer]
