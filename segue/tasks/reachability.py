"""Reachability between two vertices of a directed graph, with or without the search as intermediate tokens (Merrill &
Sabharwal 2023, arXiv 2310.07923: presumably beyond a transformer without intermediate tokens, within reach of one with
them)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from segue.errors import SegueError
from segue.objectives import Batch
from segue.tasks.base import Task

POLICIES = ("none", "dummy", "search")
VERTICES = 12
DENSITY = 1.5  # edges a vertex: at about this density half of all vertices are reachable


@dataclass(frozen=True)
class Reachability:
    """Rows of the edges of a random graph in random order, one element each, then a target and a source vertex; the
    answer is whether a path leads from the source to the target, true in half of the rows.

    policy: the intermediate tokens before the answer: "none"; "dummy", n - 1 empty tokens for n vertices; or "search":
    at each step the first vertex that is not reached yet and has an edge from a reached one, empty tokens when there
    is none. Ids: edges u n + v, then target vertices, reached vertices, the empty token, no, yes, padding in front.
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
        """Elements of a row about a graph of n vertices, without the answer."""
        return 1 + int(DENSITY * n) + 2 + (n - 1) * (self.policy != "none")

    def graphs(self, rows: int, n: int, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
        """Edges (rows, m, 2), the vertices in the order in which they are reached from a source (rows, n; -1 behind the
        last), a target (rows; -1 if all vertices or none can be reached) and whether it is reachable (rows)."""
        size = self.vertices
        names = torch.rand(rows, size, generator=generator).argsort(1)[:, :n]
        drawn = torch.rand(rows, n * (n - 1), generator=generator).argsort(1)[:, : int(DENSITY * n)]
        u, v = drawn // (n - 1), drawn % (n - 1)
        edges = torch.stack([names.gather(1, u), names.gather(1, v + (v >= u))], 2)
        adjacency = torch.zeros(rows, size * size).scatter(1, edges[..., 0] * size + edges[..., 1], 1.0)
        adjacency = adjacency.view(rows, size, size)
        order, reached = [names[:, 0]], F.one_hot(names[:, 0], size).float()
        for _ in range(n - 1):
            frontier = (reached[:, None] @ adjacency)[:, 0] * (1 - reached) > 0
            first = frontier.long().argmax(1)
            order.append(first.where(frontier.any(1), -1))
            reached = reached + F.one_hot(first, size) * frontier.any(1, keepdim=True)
        answer = torch.rand(rows, generator=generator) < 0.5
        others = torch.zeros(rows, size).scatter(1, names[:, 1:], 1.0) > 0
        inside, outside = others & (reached > 0), others & (reached == 0)
        candidates = torch.where(answer[:, None], inside, outside)
        target = (torch.rand(rows, size, generator=generator) * candidates).argmax(1)
        # Either answer must be possible, else graphs left out for one of them would make the other more frequent.
        return edges, torch.stack(order, 1), target.where(inside.any(1) & outside.any(1), -1), answer.long()

    def task(self, name: str) -> Task:
        """The task on the largest graphs that fit a row; rows are padded in front."""
        size = self.vertices
        first_reached, empty = size**2 + size, size**2 + 2 * size  # ids

        def draw(rows: int, length: int, generator: torch.Generator) -> Batch:
            n = max(n for n in range(4, size + 1) if self.length(n) <= length or n == 4)
            accepted = list[tuple[torch.Tensor, ...]]()
            while sum(len(part[0]) for part in accepted) < rows:  # rows without both sorts of target are drawn again
                drawn = self.graphs(rows, n, generator)
                accepted.append(tuple(part[drawn[2] >= 0] for part in drawn))
            edges, reached, target, reachable = (torch.cat(parts)[:rows] for parts in zip(*accepted))
            padding = torch.full((rows, length - self.length(n) + 1), self.vocabulary - 1)
            question = torch.cat([padding, edges[..., 0] * size + edges[..., 1], size**2 + target[:, None],
                                  first_reached + reached[:, :1]], 1)
            answer = empty + 1 + reachable[:, None]
            search = torch.full((rows, 0 if self.policy == "none" else n - 1), empty)
            if self.policy == "search":
                search = (first_reached + reached[:, 1:]).where(reached[:, 1:] >= 0, empty)
            tokens = torch.cat([question, search], 1)
            targets = torch.cat([search, answer], 1) if self.policy == "search" else answer
            ignored = torch.full_like(tokens, -1)[:, : length - targets.shape[1]]
            return Batch(tokens, torch.cat([ignored, targets], 1))

        return Task(name, self.vocabulary, draw, 0.5, "arXiv 2310.07923", shortest=self.length(4))


REACHABILITY = tuple(Reachability(policy).task(f"reachability-{policy}") for policy in POLICIES)
