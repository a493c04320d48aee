"""From prompts to continuations: `generate` returns whole answers, `stream` yields pieces; searches start here too."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

import numpy as np
from torch import Tensor

from segue.decoding.accept import ACCEPTORS, Acceptor
from segue.decoding.cost import Cost
from segue.decoding.draft import Drafter
from segue.decoding.loop import Loop, eval_mode
from segue.decoding.prompt import OpenPrompt, SetPrompt
from segue.decoding.recipes import DECODERS, build, look_up, resolve
from segue.decoding.sampling import Noise, Sampling
from segue.decoding.search import SEARCHES, Hypothesis, Options
from segue.decoding.verify import Row
from segue.errors import SegueError
from segue.models.base import Decodable, check_prompt, layout_form, needs_whole_prompt

Prompt = Sequence[int] | Tensor | np.ndarray
Until = Callable[[list[int]], bool] | None

_requests = itertools.count()  # a drafter may serve many calls, so its rows need unique numbers


@dataclass
class Continuation:
    """A model's answer to one prompt, and how it was made.

    tokens: without the prompt and without the stop token. logprobs: natural log-probability of each token under the
    model's own scores (before any processor); None if not asked for.
    finish: "length", "stop" (a stop token), "until" (a stop string or the caller's condition).
    path: the code that ran the model. decoder, draft: their names.
    produced: tokens and backspaces, the stop token included. passes: model passes that gave tokens, prefill included.
    drafted, accepted: draft nodes verified, and accepted. per_pass: tokens of the answer from each pass.
    actions: with a backspace token, everything generated in order, backspaces and the tokens they removed included.
    rows: how many were decoded together. seconds: for all of those; prefill, draft, forward, choose and total.
    cost: what the cost model measured, where drafts were on.
    score: a search's score of this answer. others: a search's further answers, best first. nodes: tokens that the model
    read for the search, without the prompt. proven: of an exact search, whether it finished, so that no better answer
    exists; False if its budget ran out.
    text, value, whole: where a codec is known, the decoded answer as text, as the kind's own object, and that object
    after the prime. pieces: the text that each pass added. remark: anything else that the user should know.
    """

    tokens: list[int]
    finish: str
    path: str
    decoder: str
    draft: str | None = None
    logprobs: list[float] | None = None
    produced: int = 0
    passes: int = 0
    drafted: int = 0
    accepted: int = 0
    rows: int = 1
    seconds: dict[str, float] = field(default_factory=dict)
    cost: dict[str, Any] | None = None
    score: float | None = None
    others: list[Continuation] = field(default_factory=list)
    nodes: int = 0
    proven: bool | None = None
    text: str | None = None
    value: Any = None
    whole: Any = None
    per_pass: list[int] = field(default_factory=list)
    actions: list[int] | None = None
    pieces: list[str] = field(default_factory=list)
    remark: str = ""
    writer: Callable[[Any, Any], None] | None = field(default=None, repr=False)

    @property
    def tokens_per_pass(self) -> float:
        return self.produced / max(self.passes, 1)

    @property
    def tokens_per_second(self) -> float:
        """Of this row alone, after the prefill."""
        spent = self.seconds.get("total", 0.0) - self.seconds.get("prefill", 0.0)
        return max(self.produced - 1, 0) / spent if spent > 0 else 0.0

    @property
    def note(self) -> str:
        """A one-line summary: tokens, speed, how it ended, model path and decoder."""
        drafts = ""
        if self.draft:
            drafts = f", {self.tokens_per_pass:.2f} a pass ({self.accepted} of {self.drafted} drafted)"
        batch_note = f", {self.rows} rows together" if self.rows > 1 else ""
        if self.proven is not None:
            batch_note += ", the best there is" if self.proven else ", the best until the budget ran out: not proven"
        ended = f"ended by {self.finish}"
        if self.finish == "stop" and not self.tokens:
            ended = "to the model the sequence ends here (min_new_tokens=100 goes on)"
        return (f"{len(self.tokens)} tokens, {self.tokens_per_second:.0f} tokens/s{drafts}{batch_note}; "
                f"{ended}; {self.path}, {self.decoder}{f' + {self.draft}' if self.draft else ''}"
                f"{f'; {self.remark}' if self.remark else ''}")

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        names = ("tokens", "finish", "path", "decoder", "draft", "logprobs", "passes", "drafted", "accepted", "rows",
                 "cost", "score", "nodes", "proven", "text", "actions", "remark")
        values = {name: getattr(self, name) for name in names}
        return values | {"tokens_per_pass": round(self.tokens_per_pass, 4),
                         "tokens_per_second": round(self.tokens_per_second, 2),
                         "seconds": {name: round(value, 6) for name, value in self.seconds.items()},
                         "others": [continuation.as_dict() for continuation in self.others]}

    def save(self, path: Any) -> None:
        """Write the prime followed by the answer in its kind's own file format."""
        if self.writer is None:
            raise SegueError(f"cannot write {path}: only continuations of a fitted model know their file format")
        self.writer(self.whole, path)


@dataclass
class Piece:
    """What one pass added to one row of a stream. index: the row. finish: set on the row's last piece. back: how many
    of the tokens given before are taken back."""

    index: int
    tokens: list[int]
    logprobs: list[float] | None
    finish: str | None
    back: int = 0


def _check_prompts(prompts: Sequence[Prompt], model: Decodable) -> tuple[Decodable, list[Sequence[int]]]:
    """The model to decode with, and the prompts as checked lists of token ids."""
    if isinstance(prompts, (Tensor, np.ndarray)) or (len(prompts) and isinstance(prompts[0], (int, np.integer))):
        raise SegueError("prompts must be a list of prompts: put your one prompt in brackets")
    lists: list[Sequence[int]] = []
    for prompt in prompts:
        sets = prompt.map_runs(lambda run: [int(token) for token in run]) if isinstance(prompt, SetPrompt) else None
        if isinstance(prompt, OpenPrompt):
            lists.append(prompt)
        else:
            lists.append([int(token) for token in prompt] if sets is None or sets.is_ordered else sets)
    if any(isinstance(prompt, SetPrompt) for prompt in lists):
        model = layout_form(model)
    vocabulary = model.vocabulary
    for number, prompt in enumerate(lists):
        if not prompt:
            raise SegueError(f"prompt {number} is empty: give at least one token, for example the one that begins a "
                             "document")
        if not 0 <= min(prompt) <= max(prompt) < vocabulary:
            raise SegueError(f"prompt {number} has a token outside the model's vocabulary of {vocabulary}: was it "
                             "encoded with another codec?")
        check_prompt(model, prompt)
    return model, lists


def resolve_limits(n: int | Sequence[int] | None, count: int) -> list[int | None]:
    """n as one limit for each of `count` prompts, checked."""
    limits: list[int | None] = list(n) if isinstance(n, Sequence | np.ndarray) else [n] * count
    if len(limits) != count or any(limit is not None and (not isinstance(limit, Integral) or limit < 1)
                                   for limit in limits):
        raise SegueError(f"n must be at least 1, a whole number, one for all or one for each of the {count} prompts, "
                         f"not {n}")
    return limits


def _stop_ids(eos: Any) -> frozenset[int]:
    return frozenset(() if eos is None else [eos] if isinstance(eos, Integral) else eos)


def make_cost(drafter: Drafter | None, adaptive: bool = True) -> Cost:
    """A cost model with draft sizes that suit the drafter: its largest draft, then quarters of it for where a wide
    draft costs more than it gains. The smallest of a large drafter is 7, eight nodes with the confirmed token: for up
    to eight the compiled engine reads its weights once, so a pass takes no longer than for one."""
    largest = getattr(drafter, "nodes", None) or getattr(drafter, "length", None) or 64
    sizes = [largest]
    while largest >= 32 and sizes[0] > 16:
        sizes.insert(0, sizes[0] // 4)
    smallest = 7 if largest >= 32 else max(largest // 4, 1)
    return Cost((0, smallest, *sizes), getattr(drafter, "measured", 0), fixed=not adaptive)


def _resolve_acceptor(acceptor: str | Acceptor) -> Acceptor:
    return look_up("acceptor", acceptor, ACCEPTORS) if isinstance(acceptor, str) else acceptor


def _make_rows(model: Decodable, prompts: list[Sequence[int]], sampling: Sampling, *, n: int | Sequence[int] | None,
               eos: int | Sequence[int] | None, seed: int | Sequence[int], logprobs: bool,
               until: Until | Sequence[Until], backspace: int | None) -> Iterator[Row]:
    """The rows of the answers, in order, created lazily; arguments as of `generate`."""
    limits, stops = resolve_limits(n, len(prompts)), _stop_ids(eos)
    if backspace is not None:
        _check_backspace(backspace, model, limits, stops)
    if not isinstance(seed, Integral) and np.shape(seed) != (len(prompts),):
        raise SegueError(f"seed {seed} for {len(prompts)} prompts: give one whole number for all or one for each")

    def noise(row: int) -> Callable[[int], Noise]:
        # A list of seeds makes each row what it would be alone; one seed makes row i the i-th stream of that seed.
        own: tuple[Any, int] = (seed, row) if isinstance(seed, Integral) else (seed[row], 0)  # type: ignore[index]
        return lambda lane: Noise(*own, lane)

    for index, prompt in enumerate(prompts):
        yield Row(index, next(_requests), prompt, limits[index], sampling, stops, noise(index), model, logprobs,
                  until[index] if isinstance(until, Sequence) else until, backspace=backspace)


def _check_backspace(backspace: int, model: Decodable, limits: list[int | None], stops: frozenset[int]) -> None:
    if not 0 <= backspace < model.vocabulary or backspace in stops:
        raise SegueError(f"backspace {backspace} must be a token of the model's vocabulary of {model.vocabulary} that "
                         "ends no answer")
    if None in limits:
        raise SegueError("with a backspace an answer may go on for ever: give n, the most tokens and backspaces")
    if needs_whole_prompt(model):
        raise SegueError("a backspace goes back to the prompt's last token, and this model must read its prompt at "
                         "once: choose another mixer")


def _surviving_counts(per_pass: list[int]) -> list[int]:
    """How many of each pass' tokens were not removed by later backspaces; a count of -1 is a pass that removed one."""
    surviving: list[int] = []
    for count in per_pass:
        surviving.append(max(count, 0))
        if count < 0:
            surviving[max(index for index, remaining in enumerate(surviving) if remaining)] -= 1
    return surviving


def generate(model: Decodable, prompts: Sequence[Prompt], n: int | Sequence[int] | None = 256,
             decoder: str | None = None, draft: str | Drafter | None = None, *,
             eos: int | Sequence[int] | None = None, seed: int | Sequence[int] = 0, logprobs: bool = False,
             until: Until | Sequence[Until] = None, acceptor: str | Acceptor = "walk",
             adaptive: bool = True, cost: Cost | None = None, batch: int = 32, backspace: int | None = None,
             **options: Any) -> list[Continuation]:
    """Continue prompts of token ids; one `Continuation` per prompt, in order.

    prompts: any number, of any lengths, at least one token each; a `SetPrompt` has unordered parts (it needs a model of
        attention only, in plain torch or transformers). n: tokens to add at most (None: until it stops), one for all
        or one for each.
    decoder: a name in DECODERS: greedy, sample, trie, lookup, beam, diverse-beam, conditional-beam, contrastive, exact,
        tree (default: sample if an option of it is given, else greedy). draft: a name in DRAFTERS, "none", or a
        `Drafter` (one that is kept has learned from earlier answers).
    eos: stop tokens. They end an answer and are not part of it.
    seed: fixes sampling; with one per prompt, each answer is what it would be alone.
    logprobs: also return the log-probability of each token.
    until: called after each token with the answer's tokens so far; True ends it. One for all or one for each.
    acceptor: "walk" (the same text as plain decoding), "rejection" (the same distribution), "typical" (lossy when
        sampling: longer drafts are accepted) or "near-best" (lossy: a drafted token is accepted if it is nearly the
        likeliest; `partial(near_best, beta=..., tau=...)` says how nearly), see `accept`.
    adaptive: let the cost model choose draft sizes and switch drafting off where it does not pay; cost: a cost model to
        keep from one call to the next. Neither changes the text.
    batch: rows decoded together at most.
    backspace: a token that removes the answer's last token, for models that have learned to use it (see
        `segue.objectives.OccupancyMatching`); n then counts tokens and backspaces together.
    options: temperature, top_k, top_p, min_p, typical_p, epsilon_cutoff, eta_cutoff, repetition_penalty, processors
        (see `Sampling`); no_repeat_ngram_size, bad_words_ids, min_new_tokens and the other `Rules`, with any decoder;
        for beams: num_beams, length_penalty, early_stopping, num_return_sequences (see `search.beam`), what keeps them
        apart (`search.diverse`) or conditions them (`search.conditional`); budget and more of the other searches
        (`search.exact`, `search.tree`, `search.contrastive`).
    """
    name, sampling, drafter, label, search_options = resolve(decoder, draft, options, model)
    if (recipe := DECODERS[name]).search is not None:
        if n is None:
            raise SegueError(f"decoder '{name}' needs to know how long the answer may be: give n")
        if "seed" in SEARCHES[recipe.search].options:
            if not isinstance(seed, Integral):
                raise SegueError(f"decoder '{name}' draws the same for every prompt: give one seed")
            search_options["seed"] = seed
        if backspace is not None or until is not None:
            raise SegueError(f"decoder '{name}' searches, it neither takes back nor stops at a condition of the "
                             "caller's: choose greedy or sample")
        return _search(model, prompts, n, name, build(SEARCHES[recipe.search], **search_options), sampling, eos, batch,
                       logprobs)
    answers: list[Continuation] = []
    rule, cost = _resolve_acceptor(acceptor), cost or make_cost(drafter, adaptive)
    model, lists = _check_prompts(prompts, model)
    waiting = _make_rows(model, lists, sampling, n=n, eos=eos, seed=seed, logprobs=logprobs, until=until,
                         backspace=backspace)
    while rows := list(itertools.islice(waiting, max(batch, 1))):
        loop = Loop(model, drafter, rule, cost)
        for _ in loop.run(rows):
            pass
        measured = None if drafter is None else loop.cost.report()
        answers += [Continuation(
            row.out, row.finish or "length", loop.path, name, label, row.logprobs, row.produced, row.passes,
            row.drafted, row.accepted, len(rows), dict(loop.seconds), measured,
            per_pass=_surviving_counts(row.per_pass), actions=row.actions) for row in rows]
    return answers


def stream(model: Decodable, prompts: Sequence[Prompt], n: int | Sequence[int] | None = None,
           decoder: str | None = None, draft: str | Drafter | None = None, *,
           eos: int | Sequence[int] | None = None, seed: int | Sequence[int] = 0, logprobs: bool = False,
           until: Until | Sequence[Until] = None, acceptor: str | Acceptor = "walk",
           adaptive: bool = True, cost: Cost | None = None, batch: int = 32, backspace: int | None = None,
           **options: Any) -> Iterator[Piece]:
    """As `generate`, but yields each row's tokens as soon as they are known; n=None continues until the caller stops.

    Memory is bounded however long it runs (with a model of constant state): only the last 65,536 tokens of an answer
    are kept for processors and `until`. With a `backspace`, a piece may take back tokens given before (`Piece.back`).
    """
    name, sampling, drafter, _, _ = resolve(decoder, draft, options, model)
    if DECODERS[name].search is not None:
        raise SegueError(f"decoder '{name}' knows its answer only at the end: it cannot stream")
    rule, cost = _resolve_acceptor(acceptor), cost or make_cost(drafter, adaptive)
    model, lists = _check_prompts(prompts, model)
    waiting = _make_rows(model, lists, sampling, n=n, eos=eos, seed=seed, logprobs=logprobs, until=until,
                         backspace=backspace)
    while rows := list(itertools.islice(waiting, max(batch, 1))):
        loop = Loop(model, drafter, rule, cost, keep=False)
        for advanced in loop.run(rows):
            for row in advanced:
                count = max(row.per_pass[-1], 0)
                tokens = row.out[len(row.out) - count :]
                scores = None if row.logprobs is None else row.logprobs[len(row.logprobs) - count :]
                yield Piece(row.index, tokens, scores, row.finish, max(-row.per_pass[-1], 0))


def _search(model: Decodable, prompts: Sequence[Prompt], n: int | Sequence[int], name: str, options: Options,
            sampling: Sampling, eos: int | Sequence[int] | None, batch: int, logprobs: bool) -> list[Continuation]:
    model, lists = _check_prompts(prompts, model)
    limits, stops = resolve_limits(n, len(lists)), _stop_ids(eos)
    answers = []
    group_size = 1 if options.sequential else max(1, batch // options.width)
    for start in range(0, len(lists), group_size):
        group = slice(start, start + group_size)
        begin = time.perf_counter()
        with eval_mode(model):
            results = options.run(model, lists[group], limits[group], sampling, stops)
        seconds = {"total": time.perf_counter() - begin}

        def as_continuation(best: Hypothesis, passes: int, nodes: int, rows: int = len(lists[group]),
                            seconds: dict[str, float] = seconds) -> Continuation:
            return Continuation(best.tokens, "stop" if best.stopped else "length", model.path, name,
                                logprobs=best.logprobs if logprobs else None, produced=best.length, passes=passes,
                                rows=rows, seconds=seconds, score=best.score, nodes=nodes, proven=best.proven)

        for number, result in enumerate(results, start):
            if not result.answers:
                raise SegueError(f"nothing may follow in any hypothesis of prompt {number}: the processors rule out "
                                 "all answers, or more hypotheses (num_beams) are needed")
            best, *others = (as_continuation(hypothesis, result.passes, result.nodes) for hypothesis in result.answers)
            best.others = others
            answers.append(best)
    return answers
