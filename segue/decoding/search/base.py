"""The one search loop: a search says which hypotheses to look behind next, the loop moves the model's state.

    log-probabilities (L, V) of what follows each living hypothesis -> Search.advance -> the hypotheses to go on with
    the rows of the states where they branch off: select, join -> extend(what is new in them) -> commit

Beams go on from the step before; trees from any hypothesis that they have kept the state of.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from segue.decoding.prompt import arrange
from segue.decoding.sampling import Prefix, Sampling, log_softmax
from segue.errors import SegueError
from segue.models.base import Decodable, Decoding, Output, init_prompt_state, pad_rows


@dataclass(frozen=True)
class Place:
    """Where the model stands: row `row` of `state` has read the prompt and the first `read` tokens of an answer."""

    state: Decoding
    row: int
    read: int = 0


@dataclass
class Hypothesis:
    """An answer under consideration.

    tokens, logprobs: what was added to the prompt, without a stop token; the stop token's log-probability is in
    `total` only. total: natural log-probability of all of it. bonus: what score terms other than the probability
    have added to it, for its rank among hypotheses; lean: what one does that looks at the whole and does not add up.
    stopped: it ended with a stop token. score: what the search ranks finished answers by. proven: no better one exists
    (None: not known). group: of a search in groups. place: where the model goes on from to read it. hidden: (N, D) the
    model's hidden states at what was read of it last (at first the prompt), for searches that need them.
    """

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    total: float = 0.0
    bonus: float = 0.0
    lean: float = 0.0
    stopped: bool = False
    score: float = 0.0
    proven: bool | None = None
    group: int = 0
    prefix: Prefix | None = None  # only where a processor needs it
    place: Place | None = field(default=None, repr=False)
    hidden: Tensor | None = field(default=None, repr=False)

    @property
    def length(self) -> int:
        """Tokens, a stop token included."""
        return len(self.tokens) + self.stopped

    def extended(self, token: int, logprob: float, bonus: float = 0.0, lean: float = 0.0) -> Hypothesis:
        """One token further, to be read from where this one stands."""
        prefix = self.prefix
        if prefix is not None:
            prefix = prefix.copy()
            prefix.append(token)
        return Hypothesis([*self.tokens, token], [*self.logprobs, logprob], self.total + logprob, self.bonus + bonus,
                          lean, group=self.group, prefix=prefix, place=self.place)

    def ended(self, logprob: float, bonus: float = 0.0, lean: float = 0.0) -> Hypothesis:
        """With a stop token behind it."""
        return Hypothesis(self.tokens, self.logprobs, self.total + logprob, self.bonus + bonus, lean, stopped=True,
                          group=self.group)


@dataclass
class Found:
    """What a search brought. answers: best first, at least one. passes: of the model, prefill included, shared with
    the prompts beside it. nodes: tokens that the model read for this prompt's answers."""

    answers: list[Hypothesis]
    passes: int
    nodes: int


class Search(Protocol):
    """The search of one prompt's answer, of at most `n` tokens, ended by any of `stops`."""

    def advance(self, living: Sequence[Hypothesis], logprobs: np.ndarray) -> list[Hypothesis]:
        """The hypotheses to go on with, each longer than one that was read before; none ends the search.

        living: those it went on with, now read (at first the empty one).
        logprobs: (L, V) float64, of the token after each of `living`; -inf is ruled out. Those that end with a stop
        token, or have n tokens, are kept by the search.
        """
        ...

    def results(self) -> list[Hypothesis]:
        """The finished answers, best first, at least one."""
        ...


class Factory(Protocol):
    """Options of a search that the loop runs, and how to begin one.

    width: hypotheses read at once at most. needs_hidden: it looks at hidden states. returns: it goes on from
    hypotheses of earlier steps, not only the last one. ranks_whole: it ranks whole answers by their log-probability.
    """

    needs_hidden: ClassVar[bool]
    returns: ClassVar[bool]
    ranks_whole: ClassVar[bool]

    @property
    def width(self) -> int: ...
    def begin(self, n: int, stops: frozenset[int]) -> Search: ...


class Together:
    """Of options that are a `Factory`: the loop runs the searches of all prompts together."""

    alone: ClassVar[bool] = False
    ranks_whole: ClassVar[bool] = False

    def run(self: Factory, model: Decodable, prompts: Sequence[Sequence[int]], limits: Sequence[int | None],
            sampling: Sampling, stops: frozenset[int]) -> list[Found]:
        return search(model, prompts, limits, self, sampling, stops)


class Options(Protocol):
    """Options of any search, named in `options`, and how to run it. alone: prompts do not share passes."""

    options: ClassVar[tuple[str, ...]]
    alone: ClassVar[bool]

    @property
    def width(self) -> int: ...
    def run(self, model: Decodable, prompts: Sequence[Sequence[int]], limits: Sequence[int | None],
            sampling: Sampling, stops: frozenset[int]) -> list[Found]:
        """Search the answers to prompts."""
        ...


def prefill(model: Decodable, prompts: Sequence[Sequence[int]], history: int = 0) -> tuple[Decoding, Output]:
    """Read prompts; the logits are (B, 1, V), of what follows each, the hidden states (B, N, D)."""
    state = init_prompt_state(model, prompts, history)
    layout = arrange(prompts, state.positions.device)
    return state, _read(model, state, prompts, **({} if layout is None else {"layout": layout}))


def _read(model: Decodable, state: Decoding, rows: Sequence[Sequence[int]], **placed: Any) -> Output:
    """Rows of tokens of any lengths behind `state`, made real."""
    lengths, table = torch.tensor([len(tokens) for tokens in rows]), pad_rows(rows)
    device, width = state.positions.device, table.shape[1]
    even = bool((lengths == width).all())
    lengths = lengths.to(device)
    output = model.extend(table.to(device), state, None, None if width == 1 else (lengths - 1)[:, None], **placed)
    state.commit(None, None if even else lengths)
    return output


def follow(model: Decodable, hypotheses: Sequence[Hypothesis], returns: bool) -> tuple[list[Place], Output]:
    """Read what is new in each hypothesis, from its place on; gives where each then stands and what follows it."""
    states: dict[int, list[int]] = {}
    places = [hypothesis.place for hypothesis in hypotheses if hypothesis.place is not None]
    for number, place in enumerate(places):
        states.setdefault(id(place.state), []).append(number)
    parts = []
    for numbers in states.values():
        state, rows = places[numbers[0]].state, [places[number].row for number in numbers]
        if returns or rows != list(range(len(state.positions))):
            state = state.select(torch.tensor(rows, device=state.positions.device))
        parts.append(state)
    state = parts[0].join(parts[1:]) if len(parts) > 1 else parts[0]
    order = [number for numbers in states.values() for number in numbers]
    output = _read(model, state, [hypotheses[number].tokens[places[number].read :] for number in order])
    back = [0] * len(order)
    for row, number in enumerate(order):
        back[number] = row
    if len(parts) > 1:
        index = torch.tensor(back, device=output.logits.device)
        output = Output(output.logits[index], output.hidden[index])
    return [Place(state, row, len(hypothesis.tokens)) for row, hypothesis in zip(back, hypotheses)], output


def judged(output: Output, hypotheses: Sequence[Hypothesis], sampling: Sampling, ranks_whole: bool) -> np.ndarray:
    """(L, V) float64 log-probabilities of what follows each hypothesis, processors applied: to the log-probabilities
    where whole answers are ranked by their sum, so that what is ruled out makes nothing else likelier (as in
    transformers), and a hypothesis that nothing may follow is dropped; else to the scores, as when one token is chosen,
    where that is an error."""
    scores = output.logits[:, -1].double().cpu().numpy()
    if not sampling.remembers:
        return log_softmax(scores)
    scores, rule = (log_softmax(scores), sampling.ruled) if ranks_whole else (scores, sampling.process)
    scores = np.stack([rule(row, hypothesis.prefix) for row, hypothesis in zip(scores, hypotheses)
                       if hypothesis.prefix is not None])
    if np.isnan(scores).any():
        raise SegueError("a score is not a number: look at the model's weights or the processors")
    if ranks_whole and not sampling.renormalize_logits:
        return scores
    open_ = scores.max(-1) > -np.inf
    scores[open_] = log_softmax(scores[open_])
    return scores


def beginning(model: Decodable, prompt: Sequence[int], sampling: Sampling, limit: int, stops: frozenset[int],
              ) -> Hypothesis:
    """The empty answer, which may become `limit` tokens long."""
    return Hypothesis(prefix=Prefix.of(model, prompt, limit, stops) if sampling.remembers else None)


def search(model: Decodable, prompts: Sequence[Sequence[int]], limits: Sequence[int | None], make: Factory,
           sampling: Sampling, stops: frozenset[int]) -> list[Found]:
    """Search the answers to prompts, together."""
    searches = [make.begin(limit or 1, stops) for limit in limits]
    living = [[beginning(model, prompt, sampling, limit or 1, stops)] for prompt, limit in zip(prompts, limits)]
    nodes = [0] * len(prompts)
    with torch.inference_mode():
        state, output = prefill(model, prompts)
        places = [Place(state, row) for row in range(len(prompts))]
        fresh = [len(prompt) for prompt in prompts]
        passes = 1
        while True:
            every = [hypothesis for group in living for hypothesis in group]
            for number, hypothesis in enumerate(every):
                hypothesis.place = places[number]
                hypothesis.hidden = output.hidden[number, : fresh[number]] if make.needs_hidden else None
            logprobs, start = judged(output, every, sampling, make.ranks_whole), 0
            for number, group in enumerate(living):
                if group:
                    living[number] = searches[number].advance(group, logprobs[start : start + len(group)])
                    nodes[number] += sum(len(h.tokens) - h.place.read for h in living[number] if h.place is not None)
                    start += len(group)
            every = [hypothesis for group in living for hypothesis in group]
            if not every:
                return [Found(one.results(), passes, read) for one, read in zip(searches, nodes)]
            fresh = [len(each.tokens) - each.place.read for each in every if each.place is not None]
            places, output = follow(model, every, make.returns)
            passes += 1
