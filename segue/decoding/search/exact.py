"""Exact search: the likeliest of all answers (the mode), found and proven by depth-first branch and bound.

An answer's log-probability only falls as it grows, so a prefix bounds everything that begins with it, and a prefix that
cannot beat the answers found so far is pruned. One state goes down by `extend` and back up by `rewind`. On the modes of
each length, and what they say about models: Yoshida et al. 2023, "MAP's not dead yet" (arXiv 2311.08817).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from segue.decoding.sampling import Sampling
from segue.decoding.search.base import Hypothesis, SearchResult, empty_hypothesis, next_logprobs, prefill
from segue.errors import SegueError
from segue.models.base import Decodable, Decoding, Output


@dataclass(frozen=True)
class Exact:
    """Options of an exact search.

    budget: passes of the model at most, each over one token. When it runs out, the answers are the best found so far,
        and not proven.
    length_penalty: as in beam search, answers are ranked by log-probability / length ** length_penalty; 0 is the mode.
        num_return_sequences: how many of the best answers are returned.
    each_length: the best answer of each length instead (the stop token counts; those of full length may be cut there).
    """

    options: ClassVar[tuple[str, ...]] = ("budget", "length_penalty", "num_return_sequences", "each_length")
    sequential: ClassVar[bool] = True

    budget: int = 10_000
    length_penalty: float = 0.0
    num_return_sequences: int = 1
    each_length: bool = False

    def __post_init__(self) -> None:
        if self.budget < 1 or self.num_return_sequences < 1 or self.length_penalty < 0:
            raise SegueError("exact search needs a budget and num_return_sequences of at least 1 and a length_penalty "
                             f"of at least 0, not {self.budget}, {self.num_return_sequences} and {self.length_penalty}")
        if self.each_length and self.num_return_sequences > 1:
            raise SegueError("each_length gives one answer of each length: leave num_return_sequences out")

    @property
    def width(self) -> int:
        return 1

    def run(self, model: Decodable, prompts: Sequence[Sequence[int]], limits: Sequence[int | None],
            sampling: Sampling, stops: frozenset[int]) -> list[SearchResult]:
        with torch.inference_mode():
            return [BranchAndBound(self, model, limit or 1, sampling, stops).search(prompt)
                    for prompt, limit in zip(prompts, limits)]


class BranchAndBound:
    """The search for one answer, see `Exact`."""

    def __init__(self, options: Exact, model: Decodable, n: int, sampling: Sampling, stops: frozenset[int]) -> None:
        if options.budget < n:
            raise SegueError(f"a budget of {options.budget} passes cannot reach the end of an answer of {n} tokens: "
                             "give a larger budget or a smaller n")
        self.options, self.model, self.n, self.sampling, self.stops = options, model, n, sampling, stops
        self.kept: dict[int, list[Hypothesis]] = {}  # best first; by length with each_length, else all under 0
        self.passes = 1

    def search(self, prompt: Sequence[int]) -> SearchResult:
        state, output = prefill(self.model, [prompt], self.n)
        begin = int(state.positions[0])
        path = [empty_hypothesis(self.model, prompt, self.sampling, self.n, self.stops)]
        untried = [self._children(path[0], output)]  # children of each hypothesis on the path, likeliest last
        exhausted = False
        while path:
            if not untried[-1] or path[-1].total + untried[-1][-1][1] <= self._floor(len(path)):
                path.pop()
                untried.pop()
                continue
            token, logprob = untried[-1].pop()
            deeper = path[-1].extended(token, logprob)
            if len(deeper.tokens) == self.n:
                self._keep(deeper)
            elif exhausted := self.passes >= self.options.budget:
                break
            else:
                untried.append(self._children(deeper, self._step(state, begin, deeper)))
                path.append(deeper)
        answers = [answer for answers in self.kept.values() for answer in answers]
        for answer in answers:
            answer.proven = not exhausted
        answers.sort(key=lambda answer: -answer.score)
        return SearchResult(answers, self.passes, self.passes - 1)

    def _step(self, state: Decoding, begin: int, hypothesis: Hypothesis) -> Output:
        """Rewind the state to the hypothesis' last token but one, and read its last. begin: the position after the
        prompt."""
        self.passes += 1
        num_rewind = int(state.positions[0]) - begin - len(hypothesis.tokens) + 1
        if num_rewind:
            state.rewind(num_rewind)
        output = self.model.extend(torch.tensor([hypothesis.tokens[-1:]], device=state.positions.device), state)
        state.commit()
        return output

    def _children(self, hypothesis: Hypothesis, output: Output) -> list[tuple[int, float]]:
        """The next tokens that could lead to a better answer, with their log-probabilities. If the answer may end here,
        that is recorded first: it takes no pass, and tightens the bound."""
        (logprobs,) = next_logprobs(output, [hypothesis], self.sampling, True)
        if logprobs.max() > 0:
            raise SegueError("a processor raises a log-probability above 0: exact search cannot use it, since answers "
                             "must become less likely as they grow")
        for token in self.stops:
            if hypothesis.total + logprobs[token] > self._floor(len(hypothesis.tokens) + 1):
                self._keep(hypothesis.ended(float(logprobs[token])))
            logprobs[token] = -np.inf
        promising = np.flatnonzero(hypothesis.total + logprobs > self._floor(len(hypothesis.tokens) + 1))
        promising = promising[np.argsort(logprobs[promising], kind="stable")]
        return list(zip(promising.tolist(), logprobs[promising].tolist()))

    def _rank(self, total: float, length: int) -> float:
        return total / length**self.options.length_penalty

    def _floor(self, length: int) -> float:
        """The log-probability that a prefix of this length must exceed to lead to an answer worth keeping."""
        if self.options.each_length:
            return min(self._kept_threshold(end) for end in range(length, self.n + 1))
        return self._kept_threshold(0) * self.n**self.options.length_penalty  # the best rank is at full length

    def _kept_threshold(self, key: int) -> float:
        """What an answer must beat to be kept: a log-probability with each_length, else a score."""
        best_answers = self.kept.get(key, [])
        if len(best_answers) < self.options.num_return_sequences:
            return -np.inf
        return best_answers[-1].total if self.options.each_length else best_answers[-1].score

    def _keep(self, answer: Hypothesis) -> None:
        key = answer.length if self.options.each_length else 0
        answer.score, answer.place = self._rank(answer.total, answer.length), None
        best_answers = self.kept.setdefault(key, [])
        best_answers.append(answer)
        best_answers.sort(key=lambda other: -other.score)
        del best_answers[self.options.num_return_sequences :]
