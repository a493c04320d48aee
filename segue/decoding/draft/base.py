"""Drafters guess what comes next; the model checks the guess in one pass. A wrong guess costs time, never text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np
from torch import Tensor


@dataclass
class Tree:
    """A draft: nodes that follow the last confirmed token.

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
    def chain(self) -> bool:
        return all(parent == node - 1 for node, parent in enumerate(self.parents))

    @cached_property
    def children(self) -> dict[int, list[int]]:
        """The children of each node that has some, by node (-1: the last confirmed token), in order."""
        found: dict[int, list[int]] = {}
        for node, parent in enumerate(self.parents):
            found.setdefault(parent, []).append(node)
        return found

    def path(self, node: int) -> list[int]:
        """Nodes from a root down to `node`; nothing for -1."""
        path = []
        while node >= 0:
            path.append(node)
            node = self.parents[node]
        return path[::-1]

    def depths(self) -> list[int]:
        """Of each node; a root has 1."""
        depths: list[int] = []
        for parent in self.parents:
            depths.append(1 if parent < 0 else depths[parent] + 1)
        return depths


NOTHING = Tree()


def branch(tokens: Sequence[int]) -> Tree:
    """A draft of one branch."""
    return Tree(list(tokens), list(range(-1, len(tokens) - 1))) if tokens else NOTHING


@dataclass
class Tip:
    """Where a draft is wanted.

    row: the request. nodes, depth: at most so many nodes, at most so deep (the rest of the answer is shorter).
    hidden: (A, D), the last layer's output at the tokens newly confirmed, for drafters with `needs_hidden`. These have
        a tip in every pass, of depth 0 where no draft is wanted. The last token observed, which the model has yet to
        read, has none.
    """

    row: int
    nodes: int
    depth: int
    hidden: Tensor | None = None


class Drafter(Protocol):
    """Learns from what was confirmed, and proposes what may follow.

    Every confirmed token of a request is observed once, in order: the prompt with `prompt=True`, then the answer. A
    rejected draft is never observed. After `forget` nothing of that request's prompt may show up in any proposal.

    It may say `nodes`, how large its drafts are at most, and `measured`, the draft size that was found best before: the
    cost model then begins with that one.
    """

    @property
    def needs_hidden(self) -> bool:
        """Whether tips must bring hidden states."""
        ...

    def observe(self, row: int, tokens: Sequence[int], prompt: bool = False) -> None: ...

    def propose(self, tips: Sequence[Tip]) -> list[Tree]:
        """A draft for each tip, to follow the last token observed of its row. Asked twice, it says the same."""
        ...

    def forget(self, row: int) -> None:
        """The request has ended."""
        ...
