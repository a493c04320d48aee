"""Draft and verify: one pass of the model over the last confirmed tokens and what drafters put behind them.

    trees = drafter.propose(tips)                       # a guess per row, possibly none
    output = model.extend(tokens, state, parents)       # scores at the confirmed token and at every drafted node
    place = acceptor(tree, row)                         # takes tokens along the draft, at least one
    state.commit(path)                                  # what was accepted is real, the rest was never there

Rows accept different lengths and run together. Without a draft this is ordinary decoding. A row that took a token back
(SequenceMatch: Cundy & Ermon 2023, arXiv 2306.05426) ends its pass there, and its state goes back after the commit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from segue.decoding.accept import Acceptor
from segue.decoding.draft.base import Tree
from segue.decoding.prompt import SetPrompt
from segue.decoding.sampling import Noise, Prefix, Sampling, log_softmax
from segue.models.base import Decodable, Decoding


class Scores:
    """The logits (B, N, V) of one pass, read where they are needed. best: the likeliest token of each node."""

    def __init__(self, logits: Tensor | np.ndarray, plain: bool) -> None:
        self.logits = logits
        if isinstance(logits, Tensor) and logits.device.type == "cpu":
            # numpy takes a node's scores in a fraction of the time of a torch operation, but knows no bfloat16
            self.logits = logits.numpy() if logits.dtype in (torch.float32, torch.float64) else logits.float().numpy()
        self.best: list[list[int]] | None = self.logits.argmax(-1).tolist() if plain else None

    def at(self, row: int, node: int) -> np.ndarray:
        """(V,) float64, a copy."""
        if isinstance(self.logits, Tensor):
            return self.logits[row, node].double().cpu().numpy()
        return self.logits[row, node].astype(np.float64)


class Row:
    """One answer in the making. What an acceptor asks (see `accept.Ask`) is answered here.

    index: its place among the prompts. request: its name towards drafters. out: the tokens said, without a stop
    token. sets: the prompt, if it has sets. finish: why it ended ("length", "stop", "until"), None while it runs.
    tops: with `top` above 0, at each token of `out` so many of the likeliest ones there.
    backspace: the token that takes the last one of `out` back, and does nothing where there is none. It counts towards
    `limit` as any other; `actions` has all of them in order. back: so many tokens the state must then go back after
    the commit of this pass, so that the token that is last now can be read again.
    """

    def __init__(self, index: int, request: int, prompt: Sequence[int], limit: int | None, sampling: Sampling,
                 stops: frozenset[int], noise: Callable[[int], Noise], model: Decodable, logprobs: bool = False,
                 until: Callable[[list[int]], bool] | None = None, top: int = 0,
                 backspace: int | None = None) -> None:
        self.index, self.request, self.limit = index, request, limit
        self.sampling, self.stops, self.until = sampling, stops, until
        self.prefix = Prefix.of(model, prompt, limit, stops)
        self.sets = prompt if isinstance(prompt, SetPrompt) else None
        self.position = len(prompt)
        self.noise = noise
        self._noise = noise(0)
        self.out: list[int] = []
        self.logprobs: list[float] | None = [] if logprobs else None
        self.top, self.tops = top, list[list[tuple[int, float]]]()
        self.per_pass: list[int] = []
        self.backspace, self.back = backspace, 0
        self.actions: list[int] | None = None if backspace is None else []
        self.produced = self.passes = self.drafted = self.accepted = 0
        self.last = -1  # the last token taken, not yet seen by the model
        self.finish: str | None = None
        self.hidden: Tensor | None = None
        self.scores: Scores
        self.place = 0  # in this pass' batch

    @property
    def history(self) -> int:
        """How far a state may have to go back: the whole answer, and the prompt's last token."""
        return 0 if self.backspace is None else (self.limit or 0) + 1

    def choose(self, node: int) -> int:
        best = self.scores.best
        if best is not None and self.sampling.plain:
            return best[self.place][node + 1]
        return self.sampling.choose(self.scores.at(self.place, node + 1), self.prefix, self._noise.at(self.position))

    def distribution(self, node: int) -> np.ndarray:
        return self.sampling.distribution(self.scores.at(self.place, node + 1), self.prefix)

    def ranking(self, node: int) -> np.ndarray:
        scores = self.scores.at(self.place, node + 1)
        return (self.sampling.process if self.sampling.greedy else self.sampling.warp)(scores, self.prefix)

    def take(self, token: int, node: int) -> bool:
        self.produced += 1
        self.position += 1  # also with a backspace: a second try must not draw the same number
        if self.actions is not None:
            self.actions.append(token)
        if token == self.backspace:
            self.erase()
            return True
        self.last = token
        if token in self.stops:
            self.finish = "stop"
            return True
        self.out.append(token)
        self.prefix.append(token)
        if self.logprobs is not None:
            scores = log_softmax(self.scores.at(self.place, node + 1))
            self.logprobs.append(float(scores[token]))
            if self.top:
                self.tops.append(likeliest(scores, self.top))
        if self.until is not None and self.until(self.out):
            self.finish = "until"
        elif self.produced == self.limit:
            self.finish = "length"
        return self.finish is not None

    def erase(self) -> None:
        """Take the last token of the answer back."""
        self.back = 1
        if self.out:
            self.back = 2
            self.out.pop()
            self.prefix.pop()
            if self.logprobs:
                self.logprobs.pop()
            if self.tops:
                self.tops.pop()
        self.last = self.prefix.tokens[-1]
        if self.prefix.limit is not None:
            self.prefix.limit -= self.back  # so many tokens fewer can remain at the end
        if self.produced == self.limit:
            self.finish = "length"


def likeliest(logprobs: np.ndarray, count: int) -> list[tuple[int, float]]:
    """Of log-probabilities (V,), the `count` likeliest tokens with theirs, best first."""
    count = min(count, len(logprobs))
    best = np.argpartition(-logprobs, count - 1)[:count]
    return [(int(token), float(logprobs[token])) for token in best[np.lexsort((best, -logprobs[best]))]]


Step = Callable[[np.ndarray, Decoding], np.ndarray]  # see `segue.decoding.loop`


def forward(model: Decodable, state: Decoding, rows: Sequence[Row], trees: Sequence[Tree], step: Step | None,
            hidden: bool) -> Callable[[Sequence[int]], None]:
    """Run the model on the confirmed tokens and the drafts, give each row its scores; returns how to commit.

    The returned function takes the last accepted node of each row (-1: none), once.
    """
    plain = any(row.sampling.plain for row in rows)
    n = 1 + max(map(len, trees))
    for place, row in enumerate(rows):
        row.place = place
        row.passes += 1
        row.drafted += len(trees[place])
    if n == 1 and step is not None and not hidden:
        scores = Scores(step(np.array([row.last for row in rows]), state)[:, None], plain)
        for row in rows:
            row.scores = scores
        return lambda last: None
    device = state.positions.device
    parents = None
    if n == 1:
        tokens = torch.tensor([[row.last] for row in rows], device=device)
    else:
        nodes = [[row.last, *tree.tokens, *[0] * (n - 1 - len(tree))] for row, tree in zip(rows, trees)]
        tokens = torch.tensor(nodes, device=device)
        if not all(tree.chain for tree in trees):
            # A drafted node's number in the pass is one more than in its tree: node 0 is the confirmed token.
            parents = torch.tensor([[-1, *[parent + 1 for parent in tree.parents], *[-1] * (n - 1 - len(tree))]
                                    for tree in trees], device=device)
    output = model.extend(tokens, state, parents)
    scores = Scores(output.logits, plain)
    for row in rows:
        row.scores = scores

    def commit(last: Sequence[int]) -> None:
        paths = [[0, *[node + 1 for node in tree.path(place)]] for tree, place in zip(trees, last)]
        if hidden:
            for row, path in zip(rows, paths):
                row.hidden = output.hidden[row.place, path]
        if parents is None:
            counts = [len(path) for path in paths]
            state.commit(None, None if min(counts) == n else torch.tensor(counts, device=device))
        else:
            longest = max(map(len, paths))
            state.commit(torch.tensor([path + [-1] * (longest - len(path)) for path in paths], device=device))

    return commit


def accept(rows: Sequence[Row], trees: Sequence[Tree], acceptor: Acceptor) -> list[int]:
    """Let each row take tokens along its draft; gives the last accepted node of each."""
    last = []
    for row, tree in zip(rows, trees):
        before, said = row.produced, len(row.out)
        place = acceptor(tree, row)
        row.per_pass.append(len(row.out) - said)
        # A token is won by the draft if its node was drafted; the last one taken always comes from the model.
        row.accepted += row.produced - before - 1 if len(tree) else 0
        last.append(place)
    return last
