"""The batching engine: requests join and leave one running batch, each with its own length and decoder settings.

One thread owns the model. Between two passes of the batch it reads a bounded piece of the waiting prompts (a long
prompt must not hold up those who are being answered), lets rows whose prompts are read join, and drops those that
finished or were cancelled. Beginnings of prompts that were read before are not read again.
"""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue

import numpy as np

from segue.decoding.accept import Ask, walk
from segue.decoding.draft import Drafter, Tree
from segue.decoding.generate import cost_of
from segue.decoding.loop import Loop, Prefill, evaluating
from segue.decoding.sampling import Noise, Sampling
from segue.decoding.verify import Row, likeliest
from segue.errors import SegueError
from segue.models.base import Decodable, Decoding, begin_token, check_prompt, needs_whole_prompt

WORTH = 16  # shorter beginnings are read again sooner than they are looked up and copied

PromptScore = tuple[float, list[tuple[int, float]]] | None  # of a token: its log-probability, and the likeliest ones

_requests = itertools.count(1 << 40)  # names towards drafters, apart from those of `generate`


class Overloaded(SegueError):
    """The queue is full: try again later."""


class Closing(SegueError):
    """The engine is being closed."""


@dataclass
class Request:
    """prompt: token ids, at least one. n: tokens to add at most (0: only read the prompt, with `told`). sampling: how
    they are chosen. stops: tokens that end an answer. count: how many answers. seed: fixes them, with row, the number
    of the first one among the streams of that seed. logprobs: of so many likeliest tokens at each place beside the
    chosen one's (None: none at all). told: also those of the prompt's tokens. until: called after each token of an
    answer with its tokens so far; True ends it."""

    prompt: list[int]
    n: int = 16
    sampling: Sampling = field(default_factory=Sampling)
    stops: frozenset[int] = frozenset()
    count: int = 1
    seed: int = 0
    row: int = 0
    logprobs: int | None = None
    told: bool = False
    until: Callable[[list[int]], bool] | None = None


@dataclass
class News:
    """What one pass added to one answer. index: which of the request's answers. tokens; logprobs and tops of them,
    where asked for. finish: why it ended, on its last news. prompt: log-probability and likeliest ones of each token of
    the prompt (None for the first), before all other news, where asked for. error: why the request has no answer."""

    index: int
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    tops: list[list[tuple[int, float]]] = field(default_factory=list)
    finish: str | None = None
    prompt: list[PromptScore] | None = None
    error: Exception | None = None


class Ticket:
    """A request in the engine. `cancel` frees its rows; `deliver` is called from the engine's thread with all news."""

    def __init__(self, request: Request, deliver: Callable[[News], None]) -> None:
        self.request, self.deliver = request, deliver
        self.cancelled = threading.Event()
        self.rows: list[Row] = []
        self.told: list[PromptScore] = [None]  # of the prompt's tokens that are read, where asked for
        self.delivered: dict[int, int] = {}  # of each answer, so many tokens

    def tell(self, news: News) -> None:
        """Deliver; who cannot be told any more has gone."""
        try:
            self.deliver(news)
        except Exception:  # the engine's thread must live on whatever its callers do
            self.cancel()

    def cancel(self) -> None:
        self.cancelled.set()

    @property
    def room(self) -> int:
        """Tokens its rows may come to hold."""
        return self.request.count * (len(self.request.prompt) + self.request.n)


class Prefixes:
    """States behind the beginnings of prompts, the latest used kept, `tokens` of them in all."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        self.kept: OrderedDict[tuple[int, ...], Decoding] = OrderedDict()
        self.hits = self.saved = 0

    def put(self, beginning: Sequence[int], state: Decoding) -> None:
        """state: one row that has seen exactly `beginning`."""
        if not WORTH <= len(beginning) <= self.tokens or tuple(beginning) in self.kept:
            return
        self.kept[tuple(beginning)] = state.snapshot()
        while sum(map(len, self.kept)) > self.tokens:
            self.kept.popitem(last=False)

    def find(self, prompt: Sequence[int]) -> tuple[int, Decoding] | None:
        """The longest beginning of the prompt that a state here stands behind or can go back to, and that state."""
        prompt = tuple(prompt)[:-1]  # the last token is always read: its scores are wanted
        shared = {key: next((i for i, (a, b) in enumerate(zip(key, prompt)) if a != b), min(len(key), len(prompt)))
                  for key in self.kept}
        for key in sorted(shared, key=lambda key: -shared[key]):
            if (length := shared[key]) < WORTH:
                return None
            state = self.kept[key].snapshot()
            try:
                state.rewind(len(key) - length)
            except SegueError:  # a recurrence cannot: another key may stand at the place itself
                continue
            self.kept.move_to_end(key)
            self.hits, self.saved = self.hits + 1, self.saved + length
            return length, state
        return None


class Engine:
    """Answers many requests at once.

    rows: answered at the same time, at most. tokens: that those may come to hold, prompts included (the memory bound).
    queue: requests that wait, at most; beyond that `submit` raises `Overloaded`. piece: prompt tokens read between two
    passes. prefixes: tokens of kept beginnings of prompts. draft: a drafter all requests share, or None.
    """

    def __init__(self, model: Decodable, *, rows: int = 32, tokens: int = 65_536, queue: int = 64, piece: int = 256,
                 prefixes: int = 8_192, draft: Drafter | None = None) -> None:
        if min(rows, tokens, queue, piece) < 1:
            raise SegueError(f"rows, tokens, queue and piece must be at least 1, not {rows}, {tokens}, {queue} and "
                             f"{piece}")
        self.model, self.rows, self.tokens, self.queue, self.piece = model, rows, tokens, queue, piece
        # What was read both ways, or seen by a drafter, cannot be gone on from.
        no_prefixes = needs_whole_prompt(model) or (draft is not None and draft.needs_hidden)
        self.prefixes = Prefixes(0 if no_prefixes else prefixes)
        self.loop = Loop(model, draft, self._take, cost_of(draft), keep=True)
        self.waiting: deque[Ticket] = deque()
        self.reading: list[tuple[Ticket, Prefill]] = []
        self.answering: list[Ticket] = []
        self.served = self.passes = 0
        self._broken: dict[int, Exception] = {}  # why no token could be chosen, by the row's request
        self._change = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="segue-engine", daemon=True)
        self._thread.start()

    def submit(self, request: Request, deliver: Callable[[News], None]) -> Ticket:
        """Queue a request. Raises SegueError where it can never be answered, Overloaded where the queue is full."""
        ticket = Ticket(request, deliver)
        if not request.prompt or not 0 <= min(request.prompt) <= max(request.prompt) < self.model.vocabulary:
            raise SegueError("the prompt must hold at least one token, all of them in the model's vocabulary")
        check_prompt(self.model, request.prompt)
        if request.n < (0 if request.told else 1) or request.count < 1:
            raise SegueError(f"ask for at least one token and one answer, not {request.n} and {request.count}")
        if request.count > self.rows or ticket.room > self.tokens:
            raise SegueError(f"{request.count} answers of {len(request.prompt)} + {request.n} tokens are more than "
                             f"this server holds at once ({self.rows} rows, {self.tokens} tokens)")
        with self._change:
            if self._closed:
                raise Closing("the server is closing")
            if len(self.waiting) >= self.queue:
                raise Overloaded(f"{len(self.waiting)} requests are waiting already: try again later")
            self.waiting.append(ticket)
            self._change.notify()
        return ticket

    def warm(self) -> None:
        """Answer a request of its own, so that the first real one does not wait for a compiler."""
        told: SimpleQueue[News] = SimpleQueue()
        begin = begin_token(self.model)
        self.submit(Request([0] if begin is None else [0, begin], 2), told.put)
        while (news := told.get()).finish is None:
            if news.error is not None:
                raise news.error
        self.served = self.passes = 0

    def close(self) -> None:
        """End all requests and the thread."""
        with self._change:
            self._closed = True
            self._change.notify()
        self._thread.join()

    def stats(self) -> dict[str, int]:
        return {"waiting": len(self.waiting), "reading": len(self.reading), "answering": len(self.answering),
                "rows": len(self.loop.live), "served": self.served, "passes": self.passes,
                "prefix_hits": self.prefixes.hits, "prefix_tokens_saved": self.prefixes.saved}

    # Everything below runs in the engine's own thread.

    def _run(self) -> None:
        with evaluating(self.model):
            while True:
                with self._change:
                    while not (self._closed or self.waiting or self.reading or self.answering):
                        self._change.wait()
                    if self._closed:
                        break
                try:
                    self._drop_cancelled()
                    self._accept()
                    self._read()
                    if self.loop.live:
                        self._report(self.loop.turn())
                        self.loop.leave()
                        self.passes += 1
                except Exception as error:  # a pass that breaks must not take the server with it
                    self._fail(error)
        self._fail(Closing("the server is closing"))

    def _take(self, tree: Tree, row: Ask) -> int:
        """The acceptor, `walk`. Where no token can be chosen, that answer ends, and no other one with it."""
        assert isinstance(row, Row)
        try:
            return walk(tree, row)
        except Exception as error:
            self._broken[row.request], row.finish = error, "error"
            return -1

    def _drop_cancelled(self) -> None:
        for ticket in self.answering:
            if ticket.cancelled.is_set():
                for row in ticket.rows:
                    row.finish = row.finish or "cancelled"
                self.loop.forget(ticket.rows)
        self.answering = [ticket for ticket in self.answering if not ticket.cancelled.is_set()]
        self.reading = [pair for pair in self.reading if not pair[0].cancelled.is_set()]
        with self._change:
            self.waiting = deque(ticket for ticket in self.waiting if not ticket.cancelled.is_set())

    def _accept(self) -> None:
        """Begin to read waiting requests, in order, while there is room for them."""
        while self.waiting:
            held = [*self.answering, *(ticket for ticket, _ in self.reading)]
            ticket = self.waiting[0]
            if sum(t.request.count for t in held) + ticket.request.count > self.rows or \
                    sum(t.room for t in held) + ticket.room > self.tokens:
                return
            with self._change:
                self.waiting.popleft()
            try:
                self.reading.append((ticket, self._begin(ticket)))
            except Exception as error:
                ticket.tell(News(0, error=error))

    def _begin(self, ticket: Ticket) -> Prefill:
        request = ticket.request

        def noise(index: int) -> Callable[[int], Noise]:
            return lambda lane: Noise(request.seed, request.row + index, lane)

        ticket.rows = [Row(index, next(_requests), request.prompt, max(request.n, 1), request.sampling, request.stops,
                           noise(index), self.model, request.logprobs is not None, request.until,
                           request.logprobs or 0)
                       for index in range(request.count)]
        known = None if request.told else self.prefixes.find(request.prompt)
        done, state = known or (0, None)
        return Prefill(self.model, ticket.rows, self.loop.hidden, self.piece, state, done, told=request.told)

    def _read(self) -> None:
        """A bounded piece of the prompts; those that are read join the batch."""
        budget, ready = self.piece, []
        while self.reading and budget > 0:
            ticket, prefill = self.reading[0]
            before = prefill.done
            try:
                whole = prefill.advance()
                if prefill.told is not None:
                    ticket.told += prompt_scores(prefill.told[0], ticket.request, before)
            except Exception as error:  # a prompt that cannot be read is nobody else's trouble
                self.reading.pop(0)
                ticket.tell(News(0, error=error))
                continue
            budget -= prefill.done - before
            self.prefixes.put(ticket.request.prompt[: prefill.done], prefill.state)
            if whole:
                self.reading.pop(0)
                ready.append((ticket, prefill))
        for ticket, _ in ready:
            if ticket.request.told:
                ticket.tell(News(0, prompt=ticket.told))
            if not ticket.request.n:  # the prompt was all that was asked about
                for index in range(ticket.request.count):
                    ticket.tell(News(index, finish="length"))
                self.served += 1
        if joining := [(ticket, prefill) for ticket, prefill in ready if ticket.request.n]:
            self.answering += [ticket for ticket, _ in joining]
            self._report(self.loop.admit(*(prefill for _, prefill in joining)))

    def _report(self, moved: Sequence[Row]) -> None:
        """Deliver what is new of the rows that moved."""
        rows = {id(row) for row in moved}
        for ticket in list(self.answering):
            for row in ticket.rows:
                if id(row) not in rows:
                    continue
                since, now = ticket.delivered.get(row.index, 0), len(row.out)
                ticket.delivered[row.index] = now
                ticket.tell(News(row.index, row.out[since:now], (row.logprobs or [])[since:now],
                                 row.tops[since:now], row.finish, error=self._broken.pop(row.request, None)))
            if all(row.finish is not None for row in ticket.rows):
                self.answering.remove(ticket)
                self.served += 1

    def _fail(self, error: Exception) -> None:
        """Nobody who is being answered can be: say why, and begin anew."""
        with self._change:
            lost = [*self.answering, *(ticket for ticket, _ in self.reading)]
            if self._closed:
                lost += self.waiting
                self.waiting.clear()
        self.loop.forget([row for ticket in self.answering for row in ticket.rows])
        self.reading, self.answering = [], []
        self.loop.live, self.loop.state = [], None
        self._broken.clear()
        for ticket in lost:
            ticket.tell(News(0, error=error))


def prompt_scores(scores: np.ndarray, request: Request, begin: int) -> list[PromptScore]:
    """What the model thought of the prompt's tokens behind those that it read last, which are the ones from `begin` on.
    scores: (n, V) log-probabilities behind each of these."""
    return [(float(row[token]), likeliest(row, request.logprobs) if request.logprobs else [])
            for row, token in zip(scores, request.prompt[begin + 1 :])]
