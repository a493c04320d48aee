"""The contract of drafters: they propose a draft, and the model verifies it in one pass. A wrong draft costs time but
never changes the text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np
from torch import Tensor


@dataclass
class Tree:
    """A draft: a tree of tokens after the last confirmed token.

    tokens: one per node. parents: the node each follows, -1 the last confirmed token; parents come before children.
    q: (len + 1, V), where the tokens were *drawn*: row p + 1 is the distribution from which the children of node p
        were drawn, independently of each other. None where they were picked without chance.
    """

    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    q: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def is_chain(self) -> bool:
        """Whether every node follows the one before it."""
        return all(parent == node - 1 for node, parent in enumerate(self.parents))

    @cached_property
    def children(self) -> dict[int, list[int]]:
        """The children of each node that has some, by node (-1: the last confirmed token), in order."""
        children: dict[int, list[int]] = {}
        for node, parent in enumerate(self.parents):
            children.setdefault(parent, []).append(node)
        return children

    def path(self, node: int) -> list[int]:
        """The nodes from a root down to `node`; empty for -1."""
        path = []
        while node >= 0:
            path.append(node)
            node = self.parents[node]
        return path[::-1]

    def node_depths(self) -> list[int]:
        """The depth of each node; a root has 1."""
        depths: list[int] = []
        for parent in self.parents:
            depths.append(1 if parent < 0 else depths[parent] + 1)
        return depths


NO_DRAFT = Tree()


def chain_tree(tokens: Sequence[int]) -> Tree:
    """A draft without branches."""
    return Tree(list(tokens), list(range(-1, len(tokens) - 1))) if tokens else NO_DRAFT


@dataclass
class Tip:
    """A request for a draft after the last confirmed token of one row.

    row: the number of the request. nodes, depth: the draft's nodes and depth at most.
    hidden: (A, D) hidden states of the last layer at the newly confirmed tokens, for drafters with `needs_hidden`. Such
        drafters get a tip in every pass, of depth 0 where no draft is wanted. The last observed token, which the model
        has yet to read, has no hidden state.
    """

    row: int
    nodes: int
    depth: int
    hidden: Tensor | None = None


class Drafter(Protocol):
    """Observes confirmed tokens and proposes drafts of what may follow.

    Every confirmed token of a request is observed once, in order: the prompt with `prompt=True`, then the answer. A
    rejected draft is never observed. After `forget`, no proposal may contain anything learned from that request's
    prompt.

    Optional attributes: `nodes`, the size of its largest drafts, and `measured`, the draft size measured to be best,
    with which the cost model then begins.
    """

    @property
    def needs_hidden(self) -> bool:
        """Whether tips must carry hidden states."""
        ...

    def observe(self, row: int, tokens: Sequence[int], prompt: bool = False) -> None:
        """Learn from newly confirmed tokens of a request."""
        ...

    def propose(self, tips: Sequence[Tip]) -> list[Tree]:
        """A draft for each tip, to follow the last observed token of its row. Deterministic: asking again gives the
        same drafts."""
        ...

    def forget(self, row: int) -> None:
        """The request has ended."""
        ...
