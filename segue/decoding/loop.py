"""The running batch: prompts are read, rows join, move on together pass by pass, and leave when they finish.

Rows are independent: an answer is the same alone or in a batch, whoever joins or leaves.

A model may offer, beside `extend`, the hook `step(tokens, state) -> logits`: one token (B,) int64 per row is made real
at once (extend and commit in one), and the scores (B, V) of what follows come back, both as numpy arrays. The plain
loop then costs no torch operation per token; engines that step in a millisecond want that.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from segue.decoding.accept import Acceptor
from segue.decoding.cost import Cost
from segue.decoding.draft import NOTHING, Drafter, Tip, Tree
from segue.decoding.prompt import arrange
from segue.decoding.sampling import WINDOW, log_softmax
from segue.decoding.verify import Row, Scores, accept, forward
from segue.errors import SegueError
from segue.mixers.state import gather_nodes
from segue.models.base import Decodable, Decoding, needs_whole_prompt, pad_rows, set_prompt_lengths

PREFILL = 2048  # prompt tokens per pass: a book as a prompt must not need the memory of a book times the width


class Prefill:
    """Prompts being read, a piece at a time; those that are the same are read once.

    state: where to begin, one row for each different prompt in order of appearance, and `done`, how many of its tokens
    that has seen already (a prefix that was kept). size: tokens per piece (default: PREFILL).
    told: after each piece `told` has the log-probabilities (U, n, V) behind its tokens, for those who want them; they
    are of that piece alone, since those of a long prompt are more than a memory holds.
    """

    def __init__(self, model: Decodable, rows: list[Row], hidden: bool = False, size: int | None = None,
                 state: Decoding | None = None, done: int = 0, told: bool = False) -> None:
        self.model, self.rows, self.hidden, self.done = model, rows, hidden, done
        self.tells = told
        self.told: np.ndarray | None = None
        prompts: list[Sequence[int]] = [row.sets or tuple(row.prefix.tokens) for row in rows]
        self.unique = {prompt: place for place, prompt in enumerate(dict.fromkeys(prompts))}
        self.places = [self.unique[prompt] for prompt in prompts]
        lengths, table = torch.tensor([len(prompt) for prompt in self.unique]), pad_rows(list(self.unique))
        self.longest = table.shape[1]
        self.first: list[Any] = [None] * len(self.unique)
        self.seen: list[list[Tensor]] = [[] for _ in self.unique]
        with torch.inference_mode(), undisturbed(model):
            history = max(row.history for row in rows)
            self.state = model.init_state(len(self.unique), history) if state is None else state
        self.path = model.path  # now: a model may pass to other code later, but not for this state
        layout = arrange(list(self.unique), self.state.positions.device)
        self.placed: dict[str, Any] = {} if layout is None else {"layout": layout}
        self.size = self.longest if self.placed or needs_whole_prompt(model) else size or PREFILL
        self.table, self.lengths = table.to(self.state.positions.device), lengths.to(self.state.positions.device)
        set_prompt_lengths(model, self.state, self.lengths)

    def advance(self) -> bool:
        """Read one piece; True once all is read."""
        with torch.inference_mode(), undisturbed(self.model):
            piece = self.table[:, self.done : self.done + self.size]
            counts = (self.lengths - self.done).clamp(0, piece.shape[1])
            last = (counts - 1).clamp(min=0)[:, None]
            output = self.model.extend(piece, self.state, None, None if self.tells else last, **self.placed)
            if self.tells:
                self.told = log_softmax(output.logits.double().cpu().numpy())
                output.logits = gather_nodes(output.logits, last)
            self.state.commit(None, None if bool((counts == piece.shape[1]).all()) else counts)
        for place, (count, length) in enumerate(zip(counts.tolist(), self.lengths.tolist())):
            if count and self.hidden:
                self.seen[place].append(output.hidden[place, :count])
            if count and self.done + count == length:
                self.first[place] = output.logits[place]
        self.done += piece.shape[1]
        return self.done >= self.longest

    def finish(self) -> Decoding:
        """Give every row the scores of its first token; the state, a row for each of `rows`."""
        if len(self.unique) < len(self.rows):
            with torch.inference_mode():
                self.state = self.state.select(torch.tensor(self.places, device=self.state.positions.device))
        scores = Scores(torch.stack([self.first[place] for place in self.places]),
                        any(row.sampling.plain for row in self.rows))
        for number, (row, place) in enumerate(zip(self.rows, self.places)):
            row.scores, row.place, row.passes = scores, number, 1
            row.hidden = torch.cat(self.seen[place]) if self.hidden else None
        return self.state


class Loop:
    """A running batch. Rows join it once their prompts are read (`admit`), move on together (`turn`), and leave it
    when they finish; `run` is all of that for rows that begin together.

    `keep=False` forgets what was said (endless streams).
    """

    def __init__(self, model: Decodable, drafter: Drafter | None, acceptor: Acceptor, cost: Cost,
                 keep: bool = True) -> None:
        self.model, self.drafter, self.acceptor, self.cost = model, drafter, acceptor, cost
        self.keep, self.path = keep, model.path
        self.live: list[Row] = []
        self.state: Decoding | None = None
        self.seconds = {"prefill": 0.0, "draft": 0.0, "forward": 0.0, "choose": 0.0, "total": 0.0}
        self._observed: dict[int, int] = {}  # how much of each answer the drafter has seen

    @property
    def hidden(self) -> bool:
        """Whether the drafter must be shown the last layer's output."""
        return self.drafter is not None and self.drafter.needs_hidden

    def run(self, rows: list[Row]) -> Iterator[list[Row]]:
        """Pass after pass, until all rows have finished; yields the rows that moved."""
        if self.hidden and any(row.backspace is not None for row in rows):
            raise SegueError("draft heads cannot follow backspaces: choose draft both, trie, lookup or none")
        try:
            with evaluating(self.model):
                begin = time.perf_counter()
                prefill = Prefill(self.model, rows, self.hidden)
                while not prefill.advance():
                    pass
                self.seconds["prefill"] += time.perf_counter() - begin
                self.seconds["total"] += time.perf_counter() - begin
                moved = self.admit(prefill)
                while moved:
                    yield moved
                    moved = self.turn()
        finally:
            self.forget(self.live)

    def admit(self, *read: Prefill) -> list[Row]:
        """Rows whose prompts are read join the batch; each takes its first token."""
        begin = time.perf_counter()
        self.leave()
        states = ([] if self.state is None else [self.state]) + [prefill.finish() for prefill in read]
        with torch.inference_mode():
            self.state = states[0].join(states[1:]) if states[1:] else states[0]
        self.path = read[0].path
        for prefill in read:
            self.live += prefill.rows
            for row in prefill.rows:
                self._observed[row.request] = 0
                if self.drafter is not None:
                    self.drafter.observe(row.request, row.prefix.tokens, prompt=True)
            accept(prefill.rows, [NOTHING] * len(prefill.rows), self.acceptor)
        rows = [row for prefill in read for row in prefill.rows]
        self._go_back()
        self._observe(rows)
        self.seconds["total"] += time.perf_counter() - begin
        return rows

    def turn(self) -> list[Row]:
        """One pass of all rows that have not finished; gives them, or none where none is left."""
        begin = time.perf_counter()
        self.leave()
        if self.live:
            self._pass(self.live)
            self._observe(self.live)
        self.seconds["total"] += time.perf_counter() - begin
        return list(self.live)

    def forget(self, rows: Sequence[Row]) -> None:
        """These are no longer answered: nothing of them stays with the drafter."""
        for row in rows:
            if self._observed.pop(row.request, None) is not None and self.drafter is not None:
                self.drafter.forget(row.request)

    def leave(self) -> None:
        """Rows that have finished leave the batch."""
        if not self.keep:
            for row in self.live:
                self._trim(row)
        stay = [place for place, row in enumerate(self.live) if row.finish is None]
        if len(stay) == len(self.live):
            return
        self.live = [self.live[place] for place in stay]
        assert self.state is not None
        with torch.inference_mode():
            self.state = self.state.select(torch.tensor(stay, device=self.state.positions.device)) if stay else None

    def _go_back(self) -> None:
        """The states of rows that took a token back follow them."""
        if any(row.back for row in self.live):
            assert self.state is not None
            with torch.inference_mode():
                self.state.rewind(torch.tensor([row.back for row in self.live], device=self.state.positions.device))
        for row in self.live:
            row.back = 0

    def _observe(self, rows: list[Row]) -> None:
        if self.drafter is None:
            return
        for row in rows:
            if self._observed[row.request] > len(row.out):  # the drafter saw what is no more: begin anew
                self.drafter.forget(row.request)
                self.drafter.observe(row.request, row.prefix.tokens[: row.prefix.prompt], prompt=True)
                self._observed[row.request] = 0
            self.drafter.observe(row.request, row.out[self._observed[row.request] :])
            self._observed[row.request] = len(row.out)
        self.forget([row for row in rows if row.finish is not None])

    def _pass(self, live: list[Row]) -> None:
        assert self.state is not None
        start = time.perf_counter()
        with undisturbed(self.model):
            trees = self._draft(live) if self.drafter is not None else [NOTHING] * len(live)
        drafted = time.perf_counter()
        with torch.inference_mode(), undisturbed(self.model):
            commit = forward(self.model, self.state, live, trees, getattr(self.model, "step", None), self.hidden)
            ran = time.perf_counter()
            before = sum(row.produced for row in live)
            last = accept(live, trees, self.acceptor)
            chosen = time.perf_counter()
            if any(row.finish is None for row in live):
                commit(last)
                self._go_back()
        end = time.perf_counter()
        seconds = self.seconds
        seconds["draft"] += drafted - start
        seconds["forward"] += ran - drafted + end - chosen
        seconds["choose"] += chosen - ran
        if self.drafter is not None:
            won = (sum(row.produced for row in live) - before) / len(live)
            self.cost.record(1 + max(map(len, trees)), won, drafted - start, end - drafted)

    def _draft(self, live: list[Row]) -> list[Tree]:
        assert self.drafter is not None
        budget = self.cost.budget()
        # The last token of an answer is the model's own, so a draft may be one shorter than what is left.
        left = [budget if row.limit is None else min(row.limit - row.produced - 1, budget) for row in live]
        # Who needs hidden states is shown all of them, also where no draft is wanted.
        wanted = [place for place, depth in enumerate(left) if depth > 0 or self.hidden]
        if not wanted:
            return [NOTHING] * len(live)
        tips = [Tip(live[place].request, budget, left[place], live[place].hidden) for place in wanted]
        trees = [NOTHING] * len(live)
        for place, tree in zip(wanted, self.drafter.propose(tips)):
            trees[place] = tree
        return trees

    def _trim(self, row: Row) -> None:
        if len(row.out) > 2 * WINDOW:
            drop = len(row.out) - WINDOW
            del row.out[:drop]
            if row.request in self._observed:
                self._observed[row.request] -= drop
        row.per_pass.clear()
        if row.logprobs is not None and len(row.logprobs) > 2 * WINDOW:
            del row.logprobs[:-WINDOW]


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Dropout off while decoding."""
    training = isinstance(model, nn.Module) and model.training
    if training:
        model.eval()
    try:
        yield
    finally:
        if training:
            model.train()


@contextmanager
def undisturbed(model: Decodable) -> Iterator[None]:
    """One thread for torch's small operations while the compiled engine has threads of its own: two pools on the same
    cores wait for each other (seen: 80 ms instead of 2 for a draft of 16 nodes)."""
    threads = torch.get_num_threads()
    if threads == 1 or not model.path.startswith("cpu kernels"):
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
