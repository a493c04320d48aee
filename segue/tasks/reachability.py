"""Whether one vertex of a directed graph can be reached from another, with what is found on the way written down or not
(Merrill & Sabharwal 2023, arXiv 2310.07923: presumably more than a transformer does at once, not more than one does
that writes)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from segue.errors import SegueError
from segue.objectives import Batch
from segue.tasks.base import Task

POLICIES = ("none", "dummy", "search")
VERTICES = 12
DENSITY = 1.5  # edges a vertex: about where half of all vertices can be reached


@dataclass(frozen=True)
class Reachability:
    """Rows of the edges of a random graph in random order, an element each, then a target and a source; asked for is
    whether a path leads to one from the other, which is so in half of the rows.

    policy: what is written before the answer: "none"; "dummy", a token that says nothing for each vertex but one; or
    "search", again and again the first vertex to which an edge leads from what is reached, the source at first, and
    that is not yet, and when there is none the same token. Ids: edges u n + v for `vertices` n, then targets, vertices
    that are reached, the token that says nothing, no, yes, and what fills the front.
    """

    policy: str
    vertices: int = VERTICES

    def __post_init__(self) -> None:
        if self.policy not in POLICIES or self.vertices < 4:
            raise SegueError(f"a search '{self.policy}' in graphs of {self.vertices} vertices: choose from "
                             f"{', '.join(POLICIES)}, and at least 4")

    @property
    def vocabulary(self) -> int:
        return self.vertices**2 + 2 * self.vertices + 4

    def length(self, n: int) -> int:
        """Elements of a row about a graph of n vertices, without the answer itself."""
        return 1 + int(DENSITY * n) + 2 + (n - 1) * (self.policy != "none")

    def graphs(self, rows: int, n: int, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
        """Edges (rows, m, 2), the vertices reached in turn from a source (rows, n; -1 behind the last), a target (rows)
        and whether it is among them (rows)."""
        size = self.vertices
        names = torch.rand(rows, size, generator=generator).argsort(1)[:, :n]
        drawn = torch.rand(rows, n * (n - 1), generator=generator).argsort(1)[:, : int(DENSITY * n)]
        u, v = drawn // (n - 1), drawn % (n - 1)
        edges = torch.stack([names.gather(1, u), names.gather(1, v + (v >= u))], 2)
        leads = torch.zeros(rows, size * size).scatter(1, edges[..., 0] * size + edges[..., 1], 1.0)
        leads = leads.view(rows, size, size)
        found, reached = [names[:, 0]], F.one_hot(names[:, 0], size).float()
        for _ in range(n - 1):
            onward = (reached[:, None] @ leads)[:, 0] * (1 - reached) > 0
            first = onward.long().argmax(1)
            found.append(first.where(onward.any(1), -1))
            reached = reached + F.one_hot(first, size) * onward.any(1, keepdim=True)
        yes = torch.rand(rows, generator=generator) < 0.5
        there = (reached > 0) == yes[:, None]
        there &= torch.zeros(rows, size).scatter(1, names[:, 1:], 1.0) > 0
        target = (torch.rand(rows, size, generator=generator) * there).argmax(1)
        return edges, torch.stack(found, 1), target.where(there.any(1), -1), yes.long()

    def task(self, name: str) -> Task:
        """This question of graphs as large as there is room for; what room is left is filled in front."""
        size = self.vertices
        found, nothing = size**2 + size, size**2 + 2 * size

        def draw(rows: int, length: int, generator: torch.Generator) -> Batch:
            n = max(n for n in range(4, size + 1) if self.length(n) <= length or n == 4)
            some = list[tuple[torch.Tensor, ...]]()
            while sum(len(part[0]) for part in some) < rows:  # those with nothing to ask for are drawn anew
                drawn = self.graphs(rows, n, generator)
                some.append(tuple(part[drawn[2] >= 0] for part in drawn))
            edges, reached, target, yes = (torch.cat(parts)[:rows] for parts in zip(*some))
            front = torch.full((rows, length - self.length(n) + 1), self.vocabulary - 1)
            told = torch.cat([front, edges[..., 0] * size + edges[..., 1], size**2 + target[:, None],
                              found + reached[:, :1]], 1)
            answer = nothing + 1 + yes[:, None]
            written = torch.full((rows, 0 if self.policy == "none" else n - 1), nothing)
            if self.policy == "search":
                written = (found + reached[:, 1:]).where(reached[:, 1:] >= 0, nothing)
            tokens = torch.cat([told, written], 1)
            unasked = torch.full_like(tokens, -1)
            asked = torch.cat([written, answer], 1) if self.policy == "search" else answer
            return Batch(tokens, torch.cat([unasked[:, : length - asked.shape[1]], asked], 1))

        return Task(name, self.vocabulary, draw, 0.5, "arXiv 2310.07923", shortest=self.length(4))


REACHABILITY = tuple(Reachability(policy).task(f"reachability-{policy}") for policy in POLICIES)
