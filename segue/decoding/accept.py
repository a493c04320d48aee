"""Acceptors decide how far along a draft the answer goes.

`walk` and `reject` are exact. `walk` draws every token from the model's own distribution *before* looking at the
draft, and goes on as long as a drafted node carries that token: it needs nothing from the draft, and with `Noise` it
gives the very text of plain decoding. `reject` is speculative sampling (Leviathan et al. 2023; Chen et al. 2023; for
trees Miao et al. 2024): it accepts drafted tokens more often when the drafter drew them from a distribution near the
model's; the text is distributed as the model's, but is another one than plain decoding gives for this seed. `typical`
(Cai et al. 2024, arXiv 2401.10774) and `near_best` (Xia et al. 2022, arXiv 2205.10350) are lossy: they take what is
likely enough.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from segue.decoding.draft.base import Tree
from segue.decoding.sampling import Noise, draw, entropy
from segue.errors import SegueError

MOST_CHILDREN = 1024  # random numbers set aside for the children of one node


class Ask(Protocol):
    """What an acceptor is given: one row of the answer, with the model's scores at the draft's nodes.

    Nodes are those of the draft, -1 stands for the last confirmed token.
    """

    position: int  # of the next token

    def choose(self, node: int) -> int:
        """The token that plain decoding puts after `node`."""
        ...

    def distribution(self, node: int) -> np.ndarray:
        """(V,) float64, what the token after `node` is drawn from, given all that was taken so far."""
        ...

    def ranking(self, node: int) -> np.ndarray:
        """(V,) float64, the scores by which the token after `node` is chosen, given all that was taken so far."""
        ...

    def noise(self, lane: int) -> Noise: ...

    def take(self, token: int, node: int) -> bool:
        """Put a token, scored at `node`, behind the answer; True if no other may follow in this pass (the answer ends
        with it, or it took one back)."""
        ...


class Acceptor(Protocol):
    """Decides how far along a draft the answer goes."""

    def __call__(self, tree: Tree, row: Ask) -> int:
        """Take one token or more; give the last node of the draft that they went through (-1: none)."""
        ...


def walk(tree: Tree, row: Ask) -> int:
    """Exact for greedy and for sampling, the same text as without a draft (the rule of the Lookahead paper)."""
    # Side-by-side branches share beginnings, so several nodes may stand for the same place in the text.
    live = [-1]
    while True:
        token = row.choose(live[0])
        if row.take(token, live[0]):
            return live[0]
        after = [node for place in live for node in tree.children.get(place, ()) if tree.tokens[node] == token]
        if not after:
            return live[0]
        live = after


def reject(tree: Tree, row: Ask) -> int:
    """Exact in distribution, for drafts drawn from known distributions (`Tree.q`; picked ones count as certain)."""
    place = -1
    while True:
        p = row.distribution(place)
        chance = row.noise(1)
        accepted = None
        for turn, node in enumerate(tree.children.get(place, ())):
            token = tree.tokens[node]
            q = None if tree.q is None else tree.q[place + 1]
            odds = p[token] / (1.0 if q is None else q[token])
            if chance.at(row.position * MOST_CHILDREN + turn) < odds:
                accepted = node
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
            row.take(draw(p, row.noise(0).at(row.position)), place)
            return place
        if row.take(tree.tokens[accepted], place):
            return place
        place = accepted


def typical(tree: Tree, row: Ask, floor: float = 0.09, share: float = 0.3) -> int:
    """Lossy: a drafted token is taken if its probability is above min(floor, share * exp(-entropy)), the likeliest such
    one first; greedy decoding stays as it is. What comes behind the draft is drawn from the model."""
    place = -1
    while True:
        p = row.distribution(place)
        least = min(floor, share * np.exp(-entropy(p)))
        fits = [node for node in tree.children.get(place, ()) if p[tree.tokens[node]] > least]
        if not fits:
            row.take(draw(p, row.noise(0).at(row.position)), place)
            return place
        best = max(fits, key=lambda node: p[tree.tokens[node]])
        if row.take(tree.tokens[best], place):
            return place
        place = best


def near_best(tree: Tree, row: Ask, beta: int = 5, tau: float = 3.0) -> int:
    """Lossy: where no drafted node carries the model's own token, the best drafted one is taken in its stead if it is
    among the `beta` likeliest and its score less than `tau` below the highest. tau = 0 is `walk`, and when greedy so is
    beta = 1. (GAD++; a draft that is taken to its end is followed by a token of the model's own.)"""
    live = [-1]
    while True:
        token = row.choose(live[0])
        below = [node for place in live for node in tree.children.get(place, ())]
        if below and all(tree.tokens[node] != token for node in below):
            scores = row.ranking(live[0])
            best = max((tree.tokens[node] for node in below), key=lambda drafted: scores[drafted])
            if scores.max() - scores[best] < tau and (scores >= scores[best]).sum() <= beta:
                token = best
        if row.take(token, live[0]):
            return live[0]
        after = [node for node in below if tree.tokens[node] == token]
        if not after:
            return live[0]
        live = after


ACCEPTORS: dict[str, Acceptor] = {"walk": walk, "rejection": reject, "typical": typical, "near-best": near_best}
