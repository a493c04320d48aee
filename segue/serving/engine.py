"""The serving engine: continuous batching of requests, each with its own length and sampling settings.

One thread owns the model. Between two passes of the batch it prefills a bounded piece of the waiting prompts (so that a
long prompt does not delay running answers), adds rows whose prompts are read, and drops rows that finished or were
cancelled. States of earlier prompts are cached, and shared prefixes are not read again.
"""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue

import numpy as np

from segue.decoding.accept import RowView, walk
from segue.decoding.draft import Drafter, Tree
from segue.decoding.generate import make_cost
from segue.decoding.loop import Loop, Prefill, eval_mode
from segue.decoding.sampling import Noise, Sampling
from segue.decoding.verify import Row, top_tokens
from segue.errors import SegueError
from segue.models.base import Decodable, Decoding, are_alike, begin_token, check_prompt, needs_whole_prompt

MIN_PREFIX_TOKENS = 16  # shorter prefixes are faster to read again than to look up and copy

PromptScore = tuple[float, list[tuple[int, float]]] | None
"""A prompt token's log-probability, and the likeliest tokens at its position with theirs; None for the first token."""

_requests = itertools.count(1 << 40)  # request numbers for drafters, distinct from those of `generate`


class Overloaded(SegueError):
    """The queue is full: try again later."""


class Closing(SegueError):
    """The engine is being closed."""


@dataclass
class Request:
    """A request for one or more answers to a prompt.

    prompt: token ids, at least one. n: tokens to generate at most (0: only score the prompt, with `prompt_logprobs`).
    sampling: how they are chosen. stops: tokens that end an answer. count: number of answers. seed, row: fix their
    random numbers; answer i uses stream row + i of the seed. logprobs: return the log-probability of each token, and of
    this many likeliest tokens beside it (None: no log-probabilities). prompt_logprobs: also those of the prompt's
    tokens. until: called after each token with the answer's tokens so far; True ends it.
    """

    prompt: list[int]
    n: int = 16
    sampling: Sampling = field(default_factory=Sampling)
    stops: frozenset[int] = frozenset()
    count: int = 1
    seed: int = 0
    row: int = 0
    logprobs: int | None = None
    prompt_logprobs: bool = False
    until: Callable[[list[int]], bool] | None = None


@dataclass
class AnswerUpdate:
    """What one pass added to one answer of a request.

    index: of the answer. tokens: the new tokens; logprobs, top_logprobs: theirs, if requested. finish: why the answer
    ended, in its last update. prompt: scores of the prompt's tokens, if requested, in the first update. error: why the
    request failed.
    """

    index: int
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    top_logprobs: list[list[tuple[int, float]]] = field(default_factory=list)
    finish: str | None = None
    prompt: list[PromptScore] | None = None
    error: Exception | None = None


class Ticket:
    """A submitted request. `cancel` frees its rows. deliver: called with every update, from the engine's thread."""

    def __init__(self, request: Request, deliver: Callable[[AnswerUpdate], None]) -> None:
        self.request, self.deliver = request, deliver
        self.cancelled = threading.Event()
        self.rows: list[Row] = []
        self.prompt_scores: list[PromptScore] = [None]  # of the prompt's tokens read so far, if requested
        self.delivered: dict[int, int] = {}  # tokens delivered of each answer

    def send(self, update: AnswerUpdate) -> None:
        """Deliver an update; cancel the request if its receiver fails."""
        try:
            self.deliver(update)
        except Exception:  # a failing callback must not stop the engine's thread
            self.cancel()

    def cancel(self) -> None:
        """End the request; its rows leave the batch before the next pass."""
        self.cancelled.set()

    @property
    def token_bound(self) -> int:
        """The most tokens that its rows can hold, prompts included."""
        return self.request.count * (len(self.request.prompt) + self.request.n)


class PrefixCache:
    """A least-recently-used cache of model states after prefixes of prompts, of at most `tokens` tokens in all."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        self.states: OrderedDict[tuple[int, ...], Decoding] = OrderedDict()
        self.hits = self.saved = 0

    def put(self, prefix: Sequence[int], state: Decoding) -> None:
        """Store a copy of a state of one row that has read exactly `prefix`."""
        if not MIN_PREFIX_TOKENS <= len(prefix) <= self.tokens or tuple(prefix) in self.states:
            return
        self.states[tuple(prefix)] = state.snapshot()
        while sum(map(len, self.states)) > self.tokens:
            self.states.popitem(last=False)

    def find(self, prompt: Sequence[int]) -> tuple[int, Decoding] | None:
        """The length of the prompt's longest prefix that a cached state has read or can be rewound to, and a copy of
        that state; None where there is none."""
        prompt = tuple(prompt)[:-1]  # the last token must be read: the answer begins with its scores
        shared = {key: next((i for i, (a, b) in enumerate(zip(key, prompt)) if a != b), min(len(key), len(prompt)))
                  for key in self.states}
        for key in sorted(shared, key=lambda key: -shared[key]):
            if (length := shared[key]) < MIN_PREFIX_TOKENS:
                return None
            state = self.states[key].snapshot()
            try:
                state.rewind(len(key) - length)
            except SegueError:  # a recurrence cannot rewind; a shorter key may need none
                continue
            self.states.move_to_end(key)
            self.hits, self.saved = self.hits + 1, self.saved + length
            return length, state
        return None


class Engine:
    """Answers many requests at once.

    rows: answers decoded at the same time, at most. tokens: the most that these may hold, prompts included (this bounds
    the memory). queue: waiting requests at most; beyond that `submit` raises `Overloaded`. piece: prompt tokens read
    between two passes. prefixes: tokens of the prefix cache. draft: a drafter that all requests share, or None.
    """

    def __init__(self, model: Decodable, *, rows: int = 32, tokens: int = 65_536, queue: int = 64, piece: int = 256,
                 prefixes: int = 8_192, draft: Drafter | None = None) -> None:
        if min(rows, tokens, queue, piece) < 1:
            raise SegueError(f"rows, tokens, queue and piece must be at least 1, not {rows}, {tokens}, {queue} and "
                             f"{piece}")
        self.model, self.rows, self.tokens, self.queue, self.piece = model, rows, tokens, queue, piece
        # No prefix cache where prompts are read bidirectionally or a drafter needs all their hidden states.
        no_prefixes = needs_whole_prompt(model) or (draft is not None and draft.needs_hidden)
        self.prefixes = PrefixCache(0 if no_prefixes else prefixes)
        self.loop = Loop(model, draft, self._walk_or_fail, make_cost(draft), keep=True)
        self.waiting: deque[Ticket] = deque()
        self.reading: list[tuple[Ticket, Prefill]] = []
        self.answering: list[Ticket] = []
        self.served = self.passes = 0
        self._errors: dict[int, Exception] = {}  # why no token could be chosen, by the row's request number
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="segue-engine", daemon=True)
        self._thread.start()

    def submit(self, request: Request, deliver: Callable[[AnswerUpdate], None]) -> Ticket:
        """Queue a request. Raises SegueError where it can never be answered, Overloaded where the queue is full."""
        ticket = Ticket(request, deliver)
        if not request.prompt or not 0 <= min(request.prompt) <= max(request.prompt) < self.model.vocabulary:
            raise SegueError("the prompt must hold at least one token, all of them in the model's vocabulary")
        check_prompt(self.model, request.prompt)
        if request.n < (0 if request.prompt_logprobs else 1) or request.count < 1:
            raise SegueError(f"ask for at least one token and one answer, not {request.n} and {request.count}")
        if request.count > self.rows or ticket.token_bound > self.tokens:
            raise SegueError(f"{request.count} answers of {len(request.prompt)} + {request.n} tokens are more than "
                             f"this server holds at once ({self.rows} rows, {self.tokens} tokens)")
        with self._changed:
            if self._closed:
                raise Closing("the server is closing")
            if len(self.waiting) >= self.queue:
                raise Overloaded(f"{len(self.waiting)} requests are waiting already: try again later")
            self.waiting.append(ticket)
            self._changed.notify()
        return ticket

    def warm(self) -> None:
        """Answer a dummy request, so that the first real one does not wait for compilation."""
        updates: SimpleQueue[AnswerUpdate] = SimpleQueue()
        begin = begin_token(self.model)
        self.submit(Request([0] if begin is None else [0, begin], 2), updates.put)
        while (update := updates.get()).finish is None:
            if update.error is not None:
                raise update.error
        self.served = self.passes = 0

    def close(self) -> None:
        """End all requests with `Closing`, and the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def stats(self) -> dict[str, int]:
        """Counts for monitoring, as /health gives them."""
        return {"waiting": len(self.waiting), "reading": len(self.reading), "answering": len(self.answering),
                "rows": len(self.loop.live), "served": self.served, "passes": self.passes,
                "prefix_hits": self.prefixes.hits, "prefix_tokens_saved": self.prefixes.saved}

    # Everything below runs in the engine's own thread.

    def _run(self) -> None:
        with eval_mode(self.model):
            while True:
                with self._changed:
                    while not (self._closed or self.waiting or self.reading or self.answering):
                        self._changed.wait()
                    if self._closed:
                        break
                try:
                    self._drop_cancelled()
                    self._start_waiting()
                    self._read_prompts()
                    if self.loop.live:
                        self._report(self.loop.step())
                        self.loop.drop_finished()
                        self.passes += 1
                except Exception as error:  # a failed pass must not end the server
                    self._fail(error)
        self._fail(Closing("the server is closing"))

    def _walk_or_fail(self, tree: Tree, row: RowView) -> int:
        """The acceptor `walk`; where it fails because no token can be chosen, it ends this answer alone."""
        assert isinstance(row, Row)
        try:
            return walk(tree, row)
        except Exception as error:
            self._errors[row.request], row.finish = error, "error"
            return -1

    def _drop_cancelled(self) -> None:
        for ticket in self.answering:
            if ticket.cancelled.is_set():
                for row in ticket.rows:
                    row.finish = row.finish or "cancelled"
                self.loop.release(ticket.rows)
        self.answering = [ticket for ticket in self.answering if not ticket.cancelled.is_set()]
        self.reading = [pair for pair in self.reading if not pair[0].cancelled.is_set()]
        with self._changed:
            self.waiting = deque(ticket for ticket in self.waiting if not ticket.cancelled.is_set())

    def _start_waiting(self) -> None:
        """Start the prefill of waiting requests, in order, while rows and tokens allow. A model that is compiled while
        it serves (`segue.models.compiled.Accelerated`) makes other states from then on, which cannot be joined."""
        while self.waiting:
            active = [*self.answering, *(ticket for ticket, _ in self.reading)]
            ticket = self.waiting[0]
            if sum(t.request.count for t in active) + ticket.request.count > self.rows or \
                    sum(t.token_bound for t in active) + ticket.token_bound > self.tokens:
                return
            with self._changed:
                self.waiting.popleft()
            try:
                prefill = self._start_prefill(ticket)
            except Exception as error:
                ticket.send(AnswerUpdate(0, error=error))
                continue
            running = [self.loop.state, *(other.state for _, other in self.reading)]
            if any(state is not None and not are_alike(state, prefill.state) for state in running):
                with self._changed:  # the model has switched to other code: first the answers that the old one began
                    self.waiting.appendleft(ticket)
                return
            self.reading.append((ticket, prefill))

    def _start_prefill(self, ticket: Ticket) -> Prefill:
        request = ticket.request

        def noise(index: int) -> Callable[[int], Noise]:
            return lambda lane: Noise(request.seed, request.row + index, lane)

        ticket.rows = [Row(index, next(_requests), request.prompt, max(request.n, 1), request.sampling, request.stops,
                           noise(index), self.model, request.logprobs is not None, request.until,
                           request.logprobs or 0)
                       for index in range(request.count)]
        cached = None if request.prompt_logprobs else self.prefixes.find(request.prompt)
        if cached is not None and not are_alike(cached[1], self.model.init_state(1)):
            self.prefixes.states.clear()  # of code that the model no longer runs
            cached = None
        num_cached, state = cached or (0, None)
        return Prefill(self.model, ticket.rows, self.loop.hidden, self.piece, state, num_cached,
                       request.prompt_logprobs)

    def _read_prompts(self) -> None:
        """Read a bounded piece of the prompts; rows whose prompts are read join the batch."""
        budget, ready = self.piece, []
        while self.reading and budget > 0:
            ticket, prefill = self.reading[0]
            before = prefill.done
            try:
                finished = prefill.advance()
                if prefill.logprobs is not None:
                    ticket.prompt_scores += score_prompt(prefill.logprobs[0], ticket.request, before)
            except Exception as error:  # a prompt that cannot be read must not affect other requests
                self.reading.pop(0)
                ticket.send(AnswerUpdate(0, error=error))
                continue
            budget -= prefill.done - before
            self.prefixes.put(ticket.request.prompt[: prefill.done], prefill.state)
            if finished:
                self.reading.pop(0)
                ready.append((ticket, prefill))
        for ticket, _ in ready:
            if ticket.request.prompt_logprobs:
                ticket.send(AnswerUpdate(0, prompt=ticket.prompt_scores))
            if not ticket.request.n:  # only the prompt's scores were requested
                for index in range(ticket.request.count):
                    ticket.send(AnswerUpdate(index, finish="length"))
                self.served += 1
        if joining := [(ticket, prefill) for ticket, prefill in ready if ticket.request.n]:
            self.answering += [ticket for ticket, _ in joining]
            self._report(self.loop.admit(*(prefill for _, prefill in joining)))

    def _report(self, advanced: Sequence[Row]) -> None:
        """Deliver the new tokens of the rows that advanced."""
        rows = {id(row) for row in advanced}
        for ticket in list(self.answering):
            for row in ticket.rows:
                if id(row) not in rows:
                    continue
                start, end = ticket.delivered.get(row.index, 0), len(row.out)
                ticket.delivered[row.index] = end
                ticket.send(AnswerUpdate(row.index, row.out[start:end], (row.logprobs or [])[start:end],
                                 row.top_logprobs[start:end], row.finish, error=self._errors.pop(row.request, None)))
            if all(row.finish is not None for row in ticket.rows):
                self.answering.remove(ticket)
                self.served += 1

    def _fail(self, error: Exception) -> None:
        """End all active requests with an error (when closing, waiting ones too), and start with an empty batch."""
        with self._changed:
            failed = [*self.answering, *(ticket for ticket, _ in self.reading)]
            if self._closed:
                failed += self.waiting
                self.waiting.clear()
        self.loop.release([row for ticket in self.answering for row in ticket.rows])
        self.reading, self.answering = [], []
        self.loop.live, self.loop.state = [], None
        self._errors.clear()
        for ticket in failed:
            ticket.send(AnswerUpdate(0, error=error))


def score_prompt(logprobs: np.ndarray, request: Request, begin: int) -> list[PromptScore]:
    """The scores of the prompt's tokens after `begin`. logprobs: (n, V), after each of the n tokens from `begin` on."""
    return [(float(row[token]), top_tokens(row, request.logprobs) if request.logprobs else [])
            for row, token in zip(logprobs, request.prompt[begin + 1 :])]
