"""The one search loop: a search says which hypotheses live on and with which token, the loop moves the model's state.

    log-probabilities (L, V) of what follows each living hypothesis -> Search.advance -> the next hypotheses
    state.select(parents of the next) -> extend(their tokens) -> commit
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch

from segue.decoding.sampling import Prefix, Sampling, log_softmax
from segue.models.base import Decodable


@dataclass
class Hypothesis:
    """An answer under consideration.

    tokens, logprobs: what was added to the prompt, without a stop token; the stop token's log-probability is in
    `total` only. total: natural log-probability of all of it. bonus: what score terms other than the probability
    have added to it, for its rank among hypotheses. stopped: it ended with a stop token. score: what the search ranks
    finished answers by. parent: its place among the hypotheses before the last step. group: of a search in groups.
    """

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    total: float = 0.0
    bonus: float = 0.0
    stopped: bool = False
    score: float = 0.0
    parent: int = 0
    group: int = 0
    prefix: Prefix | None = None  # only where a processor needs it

    def extended(self, token: int, logprob: float, parent: int, bonus: float = 0.0) -> Hypothesis:
        """One token further; `parent` is this hypothesis' own place."""
        return Hypothesis([*self.tokens, token], [*self.logprobs, logprob], self.total + logprob, self.bonus + bonus,
                          parent=parent, group=self.group)

    def ended(self, logprob: float, bonus: float = 0.0) -> Hypothesis:
        """With a stop token behind it."""
        return Hypothesis(self.tokens, self.logprobs, self.total + logprob, self.bonus + bonus, stopped=True,
                          group=self.group)


class Search(Protocol):
    """The search of one prompt's answer, of at most `n` tokens, ended by any of `stops`."""

    def advance(self, living: Sequence[Hypothesis], logprobs: np.ndarray) -> list[Hypothesis]:
        """The hypotheses that live on, each one token longer than its `parent` in `living`; none ends the search.

        logprobs: (L, V) float64, of the token after each of `living`; -inf is ruled out. Those that end with a stop
        token, or have n tokens, are kept by the search.
        """
        ...

    def results(self) -> list[Hypothesis]:
        """The finished answers, best first, at least one."""
        ...


class Factory(Protocol):
    """Options of a search, and how to begin one. width: living hypotheses at most."""

    width: int

    def begin(self, n: int, stops: frozenset[int]) -> Search: ...


def search(model: Decodable, prompts: Sequence[Sequence[int]], limits: Sequence[int | None], make: Factory,
           sampling: Sampling, stops: frozenset[int]) -> tuple[list[list[Hypothesis]], int]:
    """Search the answers to prompts, together. Gives each prompt's results, and how many passes it took."""
    remembers = sampling.repetition_penalty != 1 or bool(sampling.processors)
    searches = [make.begin(limit or 1, stops) for limit in limits]
    living = [[Hypothesis(prefix=Prefix(prompt, model.vocabulary) if remembers else None)] for prompt in prompts]
    with torch.inference_mode():
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        table = torch.zeros(len(prompts), int(lengths.max()), dtype=torch.long)
        for row, prompt in enumerate(prompts):
            table[row, : len(prompt)] = torch.tensor(prompt)
        state = model.init_state(len(prompts))
        device = state.positions.device
        lengths = lengths.to(device)
        output = model.extend(table.to(device), state, None, (lengths - 1)[:, None])
        state.commit(None, None if bool((lengths == table.shape[1]).all()) else lengths)
        passes = 1
        while True:
            scores = output.logits[:, -1].double().cpu().numpy()
            if remembers:
                scores = np.stack([sampling.process(row, hypothesis.prefix) for row, hypothesis in
                                   zip(scores, (h for group in living for h in group)) if hypothesis.prefix])
            logprobs = log_softmax(scores)
            rows: list[int] = []
            start = 0
            for number, group in enumerate(living):
                if not group:
                    continue
                living[number] = searches[number].advance(group, logprobs[start : start + len(group)])
                for hypothesis in living[number]:
                    rows.append(start + hypothesis.parent)
                    before = group[hypothesis.parent].prefix
                    if before is not None:
                        hypothesis.prefix = before.copy()
                        hypothesis.prefix.append(hypothesis.tokens[-1])
                start += len(group)
            if not rows:
                return [found.results() for found in searches], passes
            if rows != list(range(start)):
                state = state.select(torch.tensor(rows, device=device))
            tokens = [[hypothesis.tokens[-1]] for group in living for hypothesis in group]
            output = model.extend(torch.tensor(tokens, device=device), state)
            state.commit()
            passes += 1
