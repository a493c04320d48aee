"""Acceptors decide how many tokens of a draft become part of the answer.

`walk` and `rejection_sampling` are exact. `walk` draws every token from the model's own distribution *before* it looks
at the draft, and continues as long as a drafted node carries that token: it needs no probabilities from the drafter,
and with `Noise` the text is identical to plain decoding. `rejection_sampling` is speculative sampling (Leviathan et al.
2023; Chen et al. 2023; for trees Miao et al. 2024): it accepts more drafted tokens when the drafter drew them from a
distribution near the model's; the text follows the model's distribution, but differs from plain decoding with the same
seed. `typical` (Cai et al. 2024, arXiv 2401.10774) and `near_best` (Xia et al. 2022, arXiv 2205.10350) are lossy: they
accept any token that is likely enough.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from segue.decoding.draft.base import Tree
from segue.decoding.sampling import Noise, draw, entropy
from segue.errors import SegueError

MAX_CHILDREN = 1024  # random numbers reserved for the children of one node


class RowView(Protocol):
    """What an acceptor sees of one answer: the model's scores at the draft's nodes, and how to take a token.

    A node is an index into the draft; -1 is the last confirmed token.
    """

    position: int  # of the next token

    def choose(self, node: int) -> int:
        """The token that plain decoding puts after `node`."""
        ...

    def distribution(self, node: int) -> np.ndarray:
        """(V,) float64 probabilities of the token after `node`, given the tokens taken so far."""
        ...

    def ranking(self, node: int) -> np.ndarray:
        """(V,) float64 processed scores of the token after `node`, given the tokens taken so far."""
        ...

    def noise(self, lane: int) -> Noise:
        """The random numbers of this row: lane 0 draws tokens, lane 1 decides about drafts."""
        ...

    def take(self, token: int, node: int) -> bool:
        """Append a token, scored at `node`, to the answer; True if no other may follow in this pass (the answer ends
        with it, or it was a backspace)."""
        ...


class Acceptor(Protocol):
    """Decides how many tokens of a draft become part of the answer."""

    def __call__(self, tree: Tree, row: RowView) -> int:
        """Take at least one token; returns the last accepted node of the draft (-1: none)."""
        ...


def walk(tree: Tree, row: RowView) -> int:
    """Exact, greedy or sampled: the same text as without a draft (the rule of the Lookahead paper)."""
    # Branches that do not share nodes may begin alike, so several nodes can stand for the same prefix.
    nodes = [-1]
    while True:
        token = row.choose(nodes[0])
        if row.take(token, nodes[0]):
            return nodes[0]
        matching = [child for node in nodes for child in tree.children.get(node, ()) if tree.tokens[child] == token]
        if not matching:
            return nodes[0]
        nodes = matching


def rejection_sampling(tree: Tree, row: RowView) -> int:
    """Speculative sampling: exact in distribution, for drafts drawn from known distributions `Tree.q` (without q, each
    drafted token counts as drawn with probability 1)."""
    node = -1
    while True:
        p = row.distribution(node)
        noise = row.noise(1)
        accepted = None
        for number, child in enumerate(tree.children.get(node, ())):
            token = tree.tokens[child]
            q = None if tree.q is None else tree.q[node + 1]
            ratio = p[token] / (1.0 if q is None else q[token])
            if noise.at(row.position * MAX_CHILDREN + number) < ratio:
                accepted = child
                break
            if q is None:
                p = p.copy()
                p[token] = 0
            else:
                p = np.maximum(p - q, 0)
            if p.sum() <= 0:
                raise SegueError("the draft's distribution does not match its tokens: q must be what they were drawn "
                                 "from")
            p = p / p.sum()
        if accepted is None:
            row.take(draw(p, row.noise(0).at(row.position)), node)
            return node
        if row.take(tree.tokens[accepted], node):
            return node
        node = accepted


def typical(tree: Tree, row: RowView, floor: float = 0.09, share: float = 0.3) -> int:
    """Lossy: a drafted token is accepted if its probability is above min(floor, share * exp(-entropy)), the likeliest
    one first. The token after the draft is drawn from the model. Greedy decoding is unchanged."""
    node = -1
    while True:
        p = row.distribution(node)
        threshold = min(floor, share * np.exp(-entropy(p)))
        likely = [child for child in tree.children.get(node, ()) if p[tree.tokens[child]] > threshold]
        if not likely:
            row.take(draw(p, row.noise(0).at(row.position)), node)
            return node
        likeliest = max(likely, key=lambda child: p[tree.tokens[child]])
        if row.take(tree.tokens[likeliest], node):
            return node
        node = likeliest


def near_best(tree: Tree, row: RowView, beta: int = 5, tau: float = 3.0) -> int:
    """Lossy (GAD++): where no drafted node carries the model's own token, the best drafted token is accepted instead if
    it is among the `beta` likeliest and scores less than `tau` below the best. tau = 0 is `walk`, and so is beta = 1
    when greedy. A fully accepted draft is followed by a token of the model's own."""
    nodes = [-1]
    while True:
        token = row.choose(nodes[0])
        children = [child for node in nodes for child in tree.children.get(node, ())]
        if children and all(tree.tokens[child] != token for child in children):
            scores = row.ranking(nodes[0])
            best_token = max((tree.tokens[child] for child in children), key=lambda drafted: scores[drafted])
            if scores.max() - scores[best_token] < tau and (scores >= scores[best_token]).sum() <= beta:
                token = best_token
        if row.take(token, nodes[0]):
            return nodes[0]
        matching = [child for child in children if tree.tokens[child] == token]
        if not matching:
            return nodes[0]
        nodes = matching


ACCEPTORS: dict[str, Acceptor] = {"walk": walk, "rejection": rejection_sampling, "typical": typical,
                                  "near-best": near_best}
