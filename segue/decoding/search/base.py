"""The search loop shared by all searches: a search chooses hypotheses, the loop manages the model's states.

    log-probabilities (L, V) after each live hypothesis -> Search.advance -> the hypotheses to read next
    the states that they branch off from: select, join -> extend by their new tokens -> commit

Beam searches continue from the step before; tree searches from any hypothesis whose state is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from segue.decoding.prompt import layout_with_sets
from segue.decoding.sampling import Prefix, Sampling, log_softmax
from segue.errors import SegueError
from segue.models.base import Decodable, Decoding, Output, init_prompt_state, pad_rows


@dataclass(frozen=True)
class Place:
    """A model state to continue from: row `row` of `state` has read the prompt and the first `read` answer tokens."""

    state: Decoding
    row: int
    read: int = 0


@dataclass
class Hypothesis:
    """An answer under consideration.

    tokens, logprobs: of the answer so far, without a stop token; the stop token's log-probability is in `total` only.
    total: natural log-probability of all of it. bonus: the sum of other score terms, for its rank among hypotheses.
    lookahead: a score term that looks at the whole answer and is replaced, not summed, at each step. stopped: it ended
    with a stop token. score: what the search ranks finished answers by. proven: no better one exists (None: unknown).
    group: its group, in a search by groups. place: the state to read it from. hidden: (N, D) hidden states at the
    tokens read last (at first the prompt), for searches that need them.
    """

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    total: float = 0.0
    bonus: float = 0.0
    lookahead: float = 0.0
    stopped: bool = False
    score: float = 0.0
    proven: bool | None = None
    group: int = 0
    prefix: Prefix | None = None  # only where a processor needs it
    place: Place | None = field(default=None, repr=False)
    hidden: Tensor | None = field(default=None, repr=False)

    @property
    def length(self) -> int:
        """The number of tokens, a stop token included."""
        return len(self.tokens) + self.stopped

    def extended(self, token: int, logprob: float, bonus: float = 0.0, lookahead: float = 0.0) -> Hypothesis:
        """A copy with one more token."""
        prefix = self.prefix
        if prefix is not None:
            prefix = prefix.copy()
            prefix.append(token)
        return Hypothesis([*self.tokens, token], [*self.logprobs, logprob], self.total + logprob, self.bonus + bonus,
                          lookahead, group=self.group, prefix=prefix, place=self.place)

    def ended(self, logprob: float, bonus: float = 0.0, lookahead: float = 0.0) -> Hypothesis:
        """A copy that ends here with a stop token."""
        return Hypothesis(self.tokens, self.logprobs, self.total + logprob, self.bonus + bonus, lookahead, stopped=True,
                          group=self.group)


@dataclass
class SearchResult:
    """The result of a search for one prompt. answers: best first. passes: of the model, prefill included, shared with
    the prompts searched together. nodes: tokens that the model read for this prompt's answers."""

    answers: list[Hypothesis]
    passes: int
    nodes: int


class Search(Protocol):
    """A search for the answer to one prompt, of at most `n` tokens, ended by any of `stops`."""

    def advance(self, living: Sequence[Hypothesis], logprobs: np.ndarray) -> list[Hypothesis]:
        """The hypotheses to read next, each an extension of one that was read; none ends the search.

        living: the hypotheses returned last time, now read (at first the empty one).
        logprobs: (L, V) float64, of the token after each of `living`; -inf is forbidden. The search itself keeps
        hypotheses that end with a stop token or have n tokens.
        """
        ...

    def results(self) -> list[Hypothesis]:
        """The finished answers, best first, at least one."""
        ...


class Factory(Protocol):
    """The options of a search that the loop runs, and a factory of such searches.

    width: hypotheses read at once, at most. needs_hidden: it uses hidden states. revisits: it continues from hypotheses
    of earlier steps, not only of the last one. ranks_whole: it ranks whole answers by their log-probability.
    """

    needs_hidden: ClassVar[bool]
    revisits: ClassVar[bool]
    ranks_whole: ClassVar[bool]

    @property
    def width(self) -> int: ...
    def begin(self, n: int, stops: frozenset[int]) -> Search: ...


class BatchedSearch:
    """Mixin for options that are a `Factory`: the loop runs the searches of all prompts in one batch."""

    sequential: ClassVar[bool] = False
    ranks_whole: ClassVar[bool] = False

    def run(self: Factory, model: Decodable, prompts: Sequence[Sequence[int]], limits: Sequence[int | None],
            sampling: Sampling, stops: frozenset[int]) -> list[SearchResult]:
        return search(model, prompts, limits, self, sampling, stops)


class Options(Protocol):
    """The options of any search, whose names are in `options`, and how to run it. sequential: prompts are searched one
    at a time."""

    options: ClassVar[tuple[str, ...]]
    sequential: ClassVar[bool]

    @property
    def width(self) -> int: ...
    def run(self, model: Decodable, prompts: Sequence[Sequence[int]], limits: Sequence[int | None],
            sampling: Sampling, stops: frozenset[int]) -> list[SearchResult]:
        """Search for the answers to prompts."""
        ...


def prefill(model: Decodable, prompts: Sequence[Sequence[int]], history: int = 0) -> tuple[Decoding, Output]:
    """Read prompts; returns the state, logits (B, 1, V) of what follows each, and hidden states (B, N, D)."""
    state = init_prompt_state(model, prompts, history)
    layout = layout_with_sets(prompts, state.positions.device)
    return state, _read_rows(model, state, prompts, **({} if layout is None else {"layout": layout}))


def _read_rows(model: Decodable, state: Decoding, rows: Sequence[Sequence[int]], **options: Any) -> Output:
    """Extend a state by rows of tokens of any lengths, and commit. options: of `extend`."""
    lengths, table = torch.tensor([len(tokens) for tokens in rows]), pad_rows(rows)
    device, width = state.positions.device, table.shape[1]
    same_length = bool((lengths == width).all())
    lengths = lengths.to(device)
    output = model.extend(table.to(device), state, None, None if width == 1 else (lengths - 1)[:, None], **options)
    state.commit(None, None if same_length else lengths)
    return output


def read_hypotheses(model: Decodable, hypotheses: Sequence[Hypothesis], revisits: bool) -> tuple[list[Place], Output]:
    """Read the new tokens of each hypothesis from its place; returns their new places and the model's output."""
    states: dict[int, list[int]] = {}
    places = [hypothesis.place for hypothesis in hypotheses if hypothesis.place is not None]
    for number, place in enumerate(places):
        states.setdefault(id(place.state), []).append(number)
    parts = []
    for numbers in states.values():
        state, rows = places[numbers[0]].state, [places[number].row for number in numbers]
        if revisits or rows != list(range(len(state.positions))):
            state = state.select(torch.tensor(rows, device=state.positions.device))
        parts.append(state)
    state = parts[0].join(parts[1:]) if len(parts) > 1 else parts[0]
    order = [number for numbers in states.values() for number in numbers]
    output = _read_rows(model, state, [hypotheses[number].tokens[places[number].read :] for number in order])
    inverse = [0] * len(order)
    for row, number in enumerate(order):
        inverse[number] = row
    if len(parts) > 1:
        index = torch.tensor(inverse, device=output.logits.device)
        output = Output(output.logits[index], output.hidden[index])
    return [Place(state, row, len(hypothesis.tokens)) for row, hypothesis in zip(inverse, hypotheses)], output


def next_logprobs(output: Output, hypotheses: Sequence[Hypothesis], sampling: Sampling,
                  ranks_whole: bool) -> np.ndarray:
    """(L, V) float64 log-probabilities of the token after each hypothesis, with processors applied.

    Where whole answers are ranked (ranks_whole), processors change the log-probabilities, so that forbidding a token
    makes no other likelier (as in transformers); a hypothesis with no token left has -inf everywhere and is dropped.
    Else they change the scores, as when one token is chosen, and no token left is an error.
    """
    scores = output.logits[:, -1].double().cpu().numpy()
    if not sampling.uses_prefix:
        return log_softmax(scores)
    scores, rule = (log_softmax(scores), sampling.apply_processors) if ranks_whole else (scores, sampling.process)
    scores = np.stack([rule(row, hypothesis.prefix) for row, hypothesis in zip(scores, hypotheses)
                       if hypothesis.prefix is not None])
    if np.isnan(scores).any():
        raise SegueError("a score is not a number: look at the model's weights or the processors")
    if ranks_whole and not sampling.renormalize_logits:
        return scores
    continuable = scores.max(-1) > -np.inf
    scores[continuable] = log_softmax(scores[continuable])
    return scores


def empty_hypothesis(model: Decodable, prompt: Sequence[int], sampling: Sampling, limit: int, stops: frozenset[int],
              ) -> Hypothesis:
    """The empty answer to a prompt, of at most `limit` tokens."""
    return Hypothesis(prefix=Prefix.of(model, prompt, limit, stops) if sampling.uses_prefix else None)


def search(model: Decodable, prompts: Sequence[Sequence[int]], limits: Sequence[int | None], make: Factory,
           sampling: Sampling, stops: frozenset[int]) -> list[SearchResult]:
    """Search for the answers to prompts, in one batch."""
    searches = [make.begin(limit or 1, stops) for limit in limits]
    living = [[empty_hypothesis(model, prompt, sampling, limit or 1, stops)] for prompt, limit in zip(prompts, limits)]
    nodes = [0] * len(prompts)
    with torch.inference_mode():
        state, output = prefill(model, prompts)
        places = [Place(state, row) for row in range(len(prompts))]
        new_counts = [len(prompt) for prompt in prompts]
        passes = 1
        while True:
            flat = [hypothesis for group in living for hypothesis in group]
            for number, hypothesis in enumerate(flat):
                hypothesis.place = places[number]
                hypothesis.hidden = output.hidden[number, : new_counts[number]] if make.needs_hidden else None
            logprobs, start = next_logprobs(output, flat, sampling, make.ranks_whole), 0
            for number, group in enumerate(living):
                if group:
                    living[number] = searches[number].advance(group, logprobs[start : start + len(group)])
                    nodes[number] += sum(len(h.tokens) - h.place.read for h in living[number] if h.place is not None)
                    start += len(group)
            flat = [hypothesis for group in living for hypothesis in group]
            if not flat:
                return [SearchResult(member.results(), passes, count) for member, count in zip(searches, nodes)]
            new_counts = [len(hypothesis.tokens) - hypothesis.place.read
                          for hypothesis in flat if hypothesis.place is not None]
            places, output = read_hypotheses(model, flat, make.revisits)
            passes += 1
