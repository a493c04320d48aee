"""Draft and verify: one pass of the model over each row's last confirmed token and the draft after it.

    trees = drafter.propose(tips)                       # a draft per row, possibly empty
    output = model.extend(tokens, state, parents)       # scores at the confirmed token and at every drafted node
    node = acceptor(tree, row)                          # takes at least one token along the draft
    state.commit(path)                                  # keeps what was accepted, drops the rest

Rows of a batch accept different lengths. Without a draft this is ordinary decoding. A row that took a backspace
(SequenceMatch: Cundy & Ermon 2023, arXiv 2306.05426) ends its pass there, and its state is rewound after the commit.
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
    """The logits (B, N, V) of one pass, converted row by row when asked for. best: the argmax of each node, if used."""

    def __init__(self, logits: Tensor | np.ndarray, argmax: bool) -> None:
        self.logits = logits
        if isinstance(logits, Tensor) and logits.device.type == "cpu":
            # numpy indexes a node's scores in a fraction of the time of a torch operation, but has no bfloat16
            self.logits = logits.numpy() if logits.dtype in (torch.float32, torch.float64) else logits.float().numpy()
        self.best: list[list[int]] | None = self.logits.argmax(-1).tolist() if argmax else None

    def at(self, row: int, node: int) -> np.ndarray:
        """(V,) float64 scores of one node, a copy."""
        if isinstance(self.logits, Tensor):
            return self.logits[row, node].double().cpu().numpy()
        return self.logits[row, node].astype(np.float64)


class Row:
    """One answer being decoded; implements what acceptors use (`accept.RowView`).

    index: of its prompt. request: a unique number, by which drafters know it. batch_row: its row in this pass. out: the
    tokens generated, without a stop token. produced: how many were taken, stop tokens and backspaces included. sets:
    the prompt, if it has sets. finish: why it ended ("length", "stop", "until"), None while it runs. top_logprobs: with
    `top` above 0, for each token of `out` the `top` likeliest tokens there.
    backspace: the token that removes the last one of `out`, and does nothing where there is none. It counts towards
    `limit` as any other; `actions` has all of them in order. rewind_by: how many tokens the state must be rewound after
    the commit of this pass, so that the token that is now the last can be read again.
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
        self.top, self.top_logprobs = top, list[list[tuple[int, float]]]()
        self.per_pass: list[int] = []
        self.backspace, self.rewind_by = backspace, 0
        self.actions: list[int] | None = None if backspace is None else []
        self.produced = self.passes = self.drafted = self.accepted = 0
        self.last = -1  # the last token taken, not yet read by the model
        self.finish: str | None = None
        self.hidden: Tensor | None = None
        self.scores: Scores
        self.batch_row = 0

    @property
    def max_rewind(self) -> int:
        """The most tokens that a state may have to be rewound: the whole answer and the prompt's last token."""
        return 0 if self.backspace is None else (self.limit or 0) + 1

    def choose(self, node: int) -> int:
        """The model's own token after a node of the draft (-1: the confirmed token)."""
        argmax = self.scores.best
        if argmax is not None and self.sampling.is_argmax:
            return argmax[self.batch_row][node + 1]
        scores = self.scores.at(self.batch_row, node + 1)
        return self.sampling.choose(scores, self.prefix, self._noise.at(self.position))

    def distribution(self, node: int) -> np.ndarray:
        """(V,) probabilities of the token after a node, as sampled from."""
        return self.sampling.distribution(self.scores.at(self.batch_row, node + 1), self.prefix)

    def ranking(self, node: int) -> np.ndarray:
        """(V,) scores of the token after a node, with processors (and when sampling, truncation) applied."""
        scores = self.scores.at(self.batch_row, node + 1)
        return (self.sampling.process if self.sampling.greedy else self.sampling.warp)(scores, self.prefix)

    def take(self, token: int, node: int) -> bool:
        """Append the token chosen after a node to the answer, or apply a backspace; True if the row's pass ends."""
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
            scores = log_softmax(self.scores.at(self.batch_row, node + 1))
            self.logprobs.append(float(scores[token]))
            if self.top:
                self.top_logprobs.append(top_tokens(scores, self.top))
        if self.until is not None and self.until(self.out):
            self.finish = "until"
        elif self.produced == self.limit:
            self.finish = "length"
        return self.finish is not None

    def erase(self) -> None:
        """Remove the last token of the answer, if there is one."""
        self.rewind_by = 1
        if self.out:
            self.rewind_by = 2
            self.out.pop()
            self.prefix.pop()
            if self.logprobs:
                self.logprobs.pop()
            if self.top_logprobs:
                self.top_logprobs.pop()
        self.last = self.prefix.tokens[-1]
        if self.prefix.limit is not None:
            self.prefix.limit -= self.rewind_by  # the backspace and the removed token both used up the limit
        if self.produced == self.limit:
            self.finish = "length"


def top_tokens(logprobs: np.ndarray, count: int) -> list[tuple[int, float]]:
    """The `count` likeliest tokens of log-probabilities (V,), as (token, log-probability), best first."""
    count = min(count, len(logprobs))
    top = np.argpartition(-logprobs, count - 1)[:count]
    return [(int(token), float(logprobs[token])) for token in top[np.lexsort((top, -logprobs[top]))]]


Step = Callable[[np.ndarray, Decoding], np.ndarray]  # see `segue.decoding.loop`


def forward(model: Decodable, state: Decoding, rows: Sequence[Row], trees: Sequence[Tree], step: Step | None,
            hidden: bool) -> Callable[[Sequence[int]], None]:
    """Run the model on the last confirmed tokens and the drafts, and give each row its scores.

    Returns a function to call once with the last accepted node of each row (-1: none), which commits these paths.
    """
    argmax = any(row.sampling.is_argmax for row in rows)
    n = 1 + max(map(len, trees))
    for index, row in enumerate(rows):
        row.batch_row = index
        row.passes += 1
        row.drafted += len(trees[index])
    if n == 1 and step is not None and not hidden:
        scores = Scores(step(np.array([row.last for row in rows]), state)[:, None], argmax)
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
        if not all(tree.is_chain for tree in trees):
            # In the pass, node 0 is the confirmed token, so a drafted node's index is one more than in its tree.
            parents = torch.tensor([[-1, *[parent + 1 for parent in tree.parents], *[-1] * (n - 1 - len(tree))]
                                    for tree in trees], device=device)
    output = model.extend(tokens, state, parents)
    scores = Scores(output.logits, argmax)
    for row in rows:
        row.scores = scores

    def commit(last: Sequence[int]) -> None:
        paths = [[0, *[node + 1 for node in tree.path(end)]] for tree, end in zip(trees, last)]
        if hidden:
            for row, path in zip(rows, paths):
                row.hidden = output.hidden[row.batch_row, path]
        if parents is None:
            counts = [len(path) for path in paths]
            state.commit(None, None if min(counts) == n else torch.tensor(counts, device=device))
        else:
            longest = max(map(len, paths))
            state.commit(torch.tensor([path + [-1] * (longest - len(path)) for path in paths], device=device))

    return commit


def accept(rows: Sequence[Row], trees: Sequence[Tree], acceptor: Acceptor) -> list[int]:
    """Let each row take tokens along its draft; returns the last accepted node of each (-1: none)."""
    last = []
    for row, tree in zip(rows, trees):
        produced_before, length_before = row.produced, len(row.out)
        node = acceptor(tree, row)
        row.per_pass.append(len(row.out) - length_before)
        # All tokens of a pass but the last are drafted ones; the last always comes from the model.
        row.accepted += row.produced - produced_before - 1 if len(tree) else 0
        last.append(node)
    return last
