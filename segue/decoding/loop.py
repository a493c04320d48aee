"""Continuous batching: prompts are prefilled, rows join the running batch, advance one pass at a time, and leave it
when they finish.

Rows are independent: an answer is the same alone or in a batch, whoever joins or leaves.

Besides `extend` a model may offer the hook `step(tokens, state) -> logits`: it extends the state by one token per row,
(B,) int64, commits it, and returns the scores (B, V) of the next token; both are numpy arrays. Plain decoding then
costs no torch operation per token, which matters to engines whose step takes a millisecond.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from segue.decoding.accept import Acceptor
from segue.decoding.cost import Cost
from segue.decoding.draft import NO_DRAFT, Drafter, Tip, Tree
from segue.decoding.prompt import layout_with_sets
from segue.decoding.sampling import PREFIX_WINDOW, log_softmax
from segue.decoding.verify import Row, Scores, accept, forward
from segue.errors import SegueError
from segue.mixers.layout import gather_nodes
from segue.models.base import Decodable, Decoding, max_positions, needs_whole_prompt, pad_rows, set_prompt_lengths

PREFILL_TOKENS = 2048  # prompt tokens per pass, so that a book-long prompt needs no activations for the whole book


class Prefill:
    """Reads the prompts of some rows, a piece at a time; identical prompts are read once.

    hidden: keep the hidden states, for drafters that need them. size: tokens per piece (default: PREFILL_TOKENS).
    state, done: a cached prefix to begin from: a row for each distinct prompt, in order of appearance, which has read
    its first `done` tokens. all_logprobs: after each piece, `logprobs` holds the log-probabilities (U, n, V) after each
    of its tokens, U the number of distinct prompts (only that piece's: those of a long prompt would not fit in memory).
    """

    def __init__(self, model: Decodable, rows: list[Row], hidden: bool = False, size: int | None = None,
                 state: Decoding | None = None, done: int = 0, all_logprobs: bool = False) -> None:
        self.model, self.rows, self.hidden, self.done = model, rows, hidden, done
        self.all_logprobs = all_logprobs
        self.logprobs: np.ndarray | None = None
        prompts: list[Sequence[int]] = [row.sets or tuple(row.prefix.tokens) for row in rows]
        self.unique = {prompt: index for index, prompt in enumerate(dict.fromkeys(prompts))}
        self.unique_index = [self.unique[prompt] for prompt in prompts]
        lengths, table = torch.tensor([len(prompt) for prompt in self.unique]), pad_rows(list(self.unique))
        self.longest = table.shape[1]
        self.first_logits: list[Any] = [None] * len(self.unique)
        self.hidden_pieces: list[list[Tensor]] = [[] for _ in self.unique]
        with torch.inference_mode(), single_torch_thread(model):
            history = max(row.max_rewind for row in rows)
            self.state = model.init_state(len(self.unique), history) if state is None else state
        self.path = model.path  # read now: a model may switch to other code later, but not for this state
        layout = layout_with_sets(list(self.unique), self.state.positions.device)
        self.extend_options: dict[str, Any] = {} if layout is None else {"layout": layout}
        self.size = self.longest if self.extend_options or needs_whole_prompt(model) else size or PREFILL_TOKENS
        self.table, self.lengths = table.to(self.state.positions.device), lengths.to(self.state.positions.device)
        set_prompt_lengths(model, self.state, self.lengths)

    def advance(self) -> bool:
        """Read one piece; True once the prompts are read."""
        with torch.inference_mode(), single_torch_thread(self.model):
            piece = self.table[:, self.done : self.done + self.size]
            counts = (self.lengths - self.done).clamp(0, piece.shape[1])
            last = (counts - 1).clamp(min=0)[:, None]
            logit_positions = None if self.all_logprobs else last
            output = self.model.extend(piece, self.state, None, logit_positions, **self.extend_options)
            if self.all_logprobs:
                self.logprobs = log_softmax(output.logits.double().cpu().numpy())
                output.logits = gather_nodes(output.logits, last)
            self.state.commit(None, None if bool((counts == piece.shape[1]).all()) else counts)
        for index, (count, length) in enumerate(zip(counts.tolist(), self.lengths.tolist())):
            if count and self.hidden:
                self.hidden_pieces[index].append(output.hidden[index, :count])
            if count and self.done + count == length:
                self.first_logits[index] = output.logits[index]
        self.done += piece.shape[1]
        return self.done >= self.longest

    def finish(self) -> Decoding:
        """Give every row the scores of its first token; returns the state, with a row for each of `rows`."""
        if len(self.unique) < len(self.rows):
            with torch.inference_mode():
                self.state = self.state.select(torch.tensor(self.unique_index, device=self.state.positions.device))
        scores = Scores(torch.stack([self.first_logits[index] for index in self.unique_index]),
                        any(row.sampling.is_argmax for row in self.rows))
        for number, (row, index) in enumerate(zip(self.rows, self.unique_index)):
            row.scores, row.batch_row, row.passes = scores, number, 1
            row.hidden = torch.cat(self.hidden_pieces[index]) if self.hidden else None
        return self.state


class Loop:
    """The running batch. Rows join it once their prompts are read (`admit`), advance together (`step`), and leave it
    when they finish; `run` does all of that for rows that start together.

    keep: keep all of each answer; False keeps only its last tokens (for endless streams).
    """

    def __init__(self, model: Decodable, drafter: Drafter | None, acceptor: Acceptor, cost: Cost,
                 keep: bool = True) -> None:
        self.model, self.drafter, self.acceptor, self.cost = model, drafter, acceptor, cost
        self.keep, self.path, self.max_positions = keep, model.path, max_positions(model)
        self.live: list[Row] = []
        self.state: Decoding | None = None
        self.seconds = {"prefill": 0.0, "draft": 0.0, "forward": 0.0, "choose": 0.0, "total": 0.0}
        self._observed: dict[int, int] = {}  # tokens of each answer that the drafter has seen

    @property
    def hidden(self) -> bool:
        """Whether the drafter needs the last layer's hidden states."""
        return self.drafter is not None and self.drafter.needs_hidden

    def run(self, rows: list[Row]) -> Iterator[list[Row]]:
        """Decode until all rows have finished; yields, after each pass, the rows that advanced."""
        if self.hidden and any(row.backspace is not None for row in rows):
            raise SegueError("draft heads cannot follow backspaces: choose draft both, trie, lookup or none")
        try:
            with eval_mode(self.model):
                begin = time.perf_counter()
                prefill = Prefill(self.model, rows, self.hidden)
                while not prefill.advance():
                    pass
                self.seconds["prefill"] += time.perf_counter() - begin
                self.seconds["total"] += time.perf_counter() - begin
                advanced = self.admit(prefill)
                while advanced:
                    yield advanced
                    advanced = self.step()
        finally:
            self.release(self.live)

    def admit(self, *prefills: Prefill) -> list[Row]:
        """Add rows whose prompts are read to the batch; each takes its first token. Returns these rows."""
        begin = time.perf_counter()
        self.drop_finished()
        states = ([] if self.state is None else [self.state]) + [prefill.finish() for prefill in prefills]
        with torch.inference_mode():
            self.state = states[0].join(states[1:]) if states[1:] else states[0]
        self.path = prefills[0].path
        for prefill in prefills:
            self.live += prefill.rows
            for row in prefill.rows:
                if self.drafter is not None:
                    self._observed[row.request] = 0
                    self.drafter.observe(row.request, row.prefix.tokens, prompt=True)
            accept(prefill.rows, [NO_DRAFT] * len(prefill.rows), self.acceptor)
        rows = [row for prefill in prefills for row in prefill.rows]
        self._rewind()
        self._observe(rows)
        self.seconds["total"] += time.perf_counter() - begin
        return rows

    def step(self) -> list[Row]:
        """Run one pass of the model over the unfinished rows; returns these (empty: all have finished)."""
        begin = time.perf_counter()
        self.drop_finished()
        if self.live:
            self._pass(self.live)
            self._observe(self.live)
        self.seconds["total"] += time.perf_counter() - begin
        return list(self.live)

    def release(self, rows: Sequence[Row]) -> None:
        """Make the drafter forget these rows, which have ended."""
        for row in rows:
            if self._observed.pop(row.request, None) is not None and self.drafter is not None:
                self.drafter.forget(row.request)

    def drop_finished(self) -> None:
        """Remove the rows that have finished, and their states, from the batch."""
        if not self.keep:
            for row in self.live:
                self._trim_history(row)
        remaining = [index for index, row in enumerate(self.live) if row.finish is None]
        if len(remaining) == len(self.live):
            return
        self.live = [self.live[index] for index in remaining]
        assert self.state is not None
        with torch.inference_mode():
            self.state = self.state.select(torch.tensor(remaining, device=self.state.positions.device)) \
                if remaining else None

    def _rewind(self) -> None:
        """Rewind the states of rows that took a backspace."""
        if any(row.rewind_by for row in self.live):
            assert self.state is not None
            counts = torch.tensor([row.rewind_by for row in self.live], device=self.state.positions.device)
            with torch.inference_mode():
                self.state.rewind(counts)
        for row in self.live:
            row.rewind_by = 0

    def _observe(self, rows: list[Row]) -> None:
        """Show the drafter the tokens that rows took since it last saw them, and release the finished rows."""
        if self.drafter is None:
            return
        for row in rows:
            if self._observed[row.request] > len(row.out):  # the drafter saw tokens since taken back: start again
                self.drafter.forget(row.request)
                self.drafter.observe(row.request, row.prefix.tokens[: row.prefix.prompt], prompt=True)
                self._observed[row.request] = 0
            self.drafter.observe(row.request, row.out[self._observed[row.request] :])
            self._observed[row.request] = len(row.out)
        self.release([row for row in rows if row.finish is not None])

    def _pass(self, live: list[Row]) -> None:
        """One pass: draft, verify, accept and commit; records the seconds of each, and the cost of the draft."""
        assert self.state is not None
        started = time.perf_counter()
        with single_torch_thread(self.model):
            trees = self._draft(live) if self.drafter is not None else [NO_DRAFT] * len(live)
        drafted = time.perf_counter()
        with torch.inference_mode(), single_torch_thread(self.model):
            commit = forward(self.model, self.state, live, trees, getattr(self.model, "step", None), self.hidden)
            computed = time.perf_counter()
            before = sum(row.produced for row in live)
            last = accept(live, trees, self.acceptor)
            accepted = time.perf_counter()
            if any(row.finish is None for row in live):
                commit(last)
                self._rewind()
        ended = time.perf_counter()
        seconds = self.seconds
        seconds["draft"] += drafted - started
        seconds["forward"] += computed - drafted + ended - accepted
        seconds["choose"] += accepted - computed
        if self.drafter is not None:
            tokens_per_row = (sum(row.produced for row in live) - before) / len(live)
            self.cost.record(1 + max(map(len, trees)), tokens_per_row, drafted - started, ended - drafted)

    def _draft(self, live: list[Row]) -> list[Tree]:
        """A draft for each row, within the cost model's budget and the tokens that the row has left."""
        assert self.drafter is not None
        budget, room = self.cost.budget(), self._room(live)
        # Each pass ends with a token of the model's own, so a draft is at least one shorter than the tokens left.
        depths = [min(budget, room, budget if row.limit is None else row.limit - row.produced - 1) for row in live]
        # A drafter that needs hidden states gets all of them, even where no draft is wanted.
        drafting = [index for index, depth in enumerate(depths) if depth > 0 or self.hidden]
        if not drafting:
            return [NO_DRAFT] * len(live)
        tips = [Tip(live[index].request, budget, depths[index], live[index].hidden) for index in drafting]
        trees = [NO_DRAFT] * len(live)
        for index, tree in zip(drafting, self.drafter.propose(tips)):
            trees[index] = tree
        return trees

    def _room(self, live: list[Row]) -> int:
        """How deep a draft may be so that no row goes beyond the model's positions, as it might not without a draft;
        the same for all, because the nodes of shorter drafts are padded."""
        if self.max_positions is None:
            return sys.maxsize
        restart = getattr(self.model, "restart", False)
        longest = max(row.prefix.length + (0 if restart else max(row.prefix.source - 1, 0)) for row in live)
        return max(self.max_positions - longest, 0)

    def _trim_history(self, row: Row) -> None:
        """Keep only the last tokens of a row, for streams without end."""
        if len(row.out) > 2 * PREFIX_WINDOW:
            drop = len(row.out) - PREFIX_WINDOW
            del row.out[:drop]
            if row.request in self._observed:
                self._observed[row.request] -= drop
        row.per_pass.clear()
        if row.logprobs is not None and len(row.logprobs) > 2 * PREFIX_WINDOW:
            del row.logprobs[:-PREFIX_WINDOW]


@contextmanager
def eval_mode(model: Any) -> Iterator[None]:
    """Run a block with the model in evaluation mode, then restore its mode."""
    training = isinstance(model, nn.Module) and model.training
    if training:
        model.eval()
    try:
        yield
    finally:
        if training:
            model.train()


@contextmanager
def single_torch_thread(model: Decodable) -> Iterator[None]:
    """Run a block with one torch thread if the model runs in the compiled engine, which has threads of its own: two
    thread pools on the same cores wait for each other (measured: 80 ms instead of 2 for a draft of 16 nodes)."""
    threads = torch.get_num_threads()
    if threads == 1 or not model.path.startswith("cpu kernels"):
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
