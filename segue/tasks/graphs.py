"""Tasks about graphs, as batches for `segue.models.graphs.GraphSequence`: an element is a node, with its features and
its row of the adjacency (`segue.models.graphs.pack_graphs`). The length is the number of nodes. After Behrouz et al.
2024, arXiv 2411.15671.

Answers about a whole graph are asked for at its last node. Where an answer is yes or no, both are drawn alike: graphs
with as many edges each, of like degrees, so that only the structure tells.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from segue.kernels import graphs as loops
from segue.models.graphs import pack_graphs
from segue.objectives import Batch
from segue.tasks.base import Task

COLOURS = 4
FARTHEST = 9  # distances are told up to here
FEATURES = COLOURS + 1  # of each node: its colour, and whether it is asked for
Drawn = tuple[np.ndarray, np.ndarray, np.ndarray]  # features of nodes, edges, an answer for each node (-1: none)
Draw = Callable[[int, np.random.Generator], Drawn]


def tree_edges(nodes: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """(n - 1, 2) edges of a tree on these nodes: each one after the first joins one before it."""
    before = (draw.random(len(nodes) - 1) * np.arange(1, len(nodes))).astype(np.int64)
    return np.stack([nodes[before], nodes[1:]], 1)


def more_edges(edges: np.ndarray, nodes: np.ndarray, count: int, draw: np.random.Generator) -> np.ndarray:
    """The edges, and `count` others between these nodes (all that there are, where they are fewer)."""
    place = np.argsort(np.argsort(nodes))
    a, b = np.triu_indices(len(nodes), 1)
    known = np.searchsorted(np.sort(nodes), np.sort(edges, 1))  # ranks of the ends
    a, b = np.sort(np.stack([place[a], place[b]]), 0)
    free = ~np.isin(a * len(nodes) + b, known[:, 0] * len(nodes) + known[:, 1])
    chosen = draw.permutation(np.flatnonzero(free))[:count]
    return np.concatenate([edges, np.sort(nodes)[np.stack([a[chosen], b[chosen]], 1)]])


def gnp(n: int, p: float, draw: np.random.Generator) -> np.ndarray:
    """Edges of a random graph: each of all pairs with probability p."""
    a, b = np.triu_indices(n, 1)
    there = draw.random(len(a)) < p
    return np.stack([a[there], b[there]], 1)


def degree(n: int, draw: np.random.Generator) -> Drawn:
    """How many neighbours each node has, in a random graph with 4 on average."""
    edges = gnp(n, 4 / n, draw)
    return np.zeros((n, FEATURES)), edges, np.bincount(edges.reshape(-1), minlength=n)


def connectivity(n: int, draw: np.random.Generator) -> Drawn:
    """Whether a graph is connected. It is two random connected parts of a quarter of the nodes at least, with about
    n ln n / 2 edges in all, as at the threshold of connectivity; in half of the graphs an edge joins the parts, in
    place of one within. (At the threshold itself it is nodes without any edge that tell, which needs no look around.)
    """
    order, cut = draw.permutation(n), int(draw.integers(n // 4, n - n // 4 + 1))
    wanted = max(int(n * np.log(n) / 2) - (n - 2), 2)
    parts = []
    for nodes in (order[:cut], order[cut:]):
        parts.append(more_edges(tree_edges(nodes, draw), nodes, max(1, wanted * len(nodes) // n), draw))
    joined = int(draw.integers(2))
    if joined:
        longer = int(len(parts[1]) >= len(parts[0]))  # behind its tree are edges that it can do without
        parts[longer] = np.concatenate([parts[longer][:-1], [[order[draw.integers(cut)],
                                                              order[draw.integers(cut, n)]]]])
    return np.zeros((n, FEATURES)), np.concatenate(parts), last(n, joined)


def colours(n: int, draw: np.random.Generator) -> Drawn:
    """How many nodes have the first of 4 colours. A palette of 4 nodes, one of the first colour at least, comes again
    and again, up to n nodes, so that shares say nothing of numbers; the order is random."""
    palette = np.append(draw.integers(COLOURS, size=3), 0)
    colour = draw.permutation(np.tile(palette, draw.integers(1, n // 4 + 1)))
    n = len(colour)
    features = np.zeros((n, FEATURES))
    features[np.arange(n), colour] = 1
    return features, gnp(n, min(1.0, 4 / n), draw), last(n, int((colour == 0).sum()))


def cycle(n: int, draw: np.random.Generator) -> Drawn:
    """Whether there is a cycle: two trees, or three of which one has an edge more."""
    yes = int(draw.integers(2))
    parts = np.split(draw.permutation(n), np.sort(1 + draw.choice(n - 1, size=1 + yes, replace=False)))
    edges = [tree_edges(nodes, draw) for nodes in parts]
    if yes:
        at = int(np.argmax([len(nodes) for nodes in parts]))
        edges[at] = more_edges(edges[at], parts[at], 1, draw)
    return np.zeros((n, FEATURES)), np.concatenate(edges), last(n, yes)


def path(n: int, draw: np.random.Generator) -> Drawn:
    """How many edges lie between the two marked nodes of a connected graph (9: as many or more)."""
    nodes = draw.permutation(n)
    edges = more_edges(tree_edges(nodes, draw), nodes, n // 4, draw)
    a, b = draw.choice(n, size=2, replace=False)
    features = np.zeros((n, FEATURES))
    features[[a, b], COLOURS] = 1
    near = loops.adjacency(n, *np.ascontiguousarray(edges.T))
    far = loops.shortest_distances(*near, np.array([a]), np.array([b]), FARTHEST)
    return features, edges, last(n, int(far[0]))


def last(n: int, answer: int) -> np.ndarray:
    """An answer at the last of n nodes."""
    return np.append(np.full(n - 1, -1), answer)


def task(name: str, vocabulary: int, one: Draw, chance: float, shortest: int) -> Task:
    """vocabulary: answers are below it."""
    def draw(rows: int, length: int, generator: torch.Generator) -> Batch:
        numbers = np.random.default_rng(int(torch.randint(1 << 62, (), generator=generator)))
        drawn = [one(length, numbers) for _ in range(rows)]
        tokens = pack_graphs([torch.from_numpy(features) for features, _, _ in drawn],
                        [torch.from_numpy(edges) for _, edges, _ in drawn], length)
        targets = torch.full((rows, length), -1)
        for row, (_, _, answers) in zip(targets, drawn):
            row[: len(answers)] = torch.from_numpy(answers)
        return Batch(tokens, targets.clamp(max=vocabulary - 1))

    return Task(name, vocabulary, draw, chance, "arXiv 2411.15671", shortest)


GRAPHS: dict[str, Task] = {each.name: each for each in (
    task("degree", 16, degree, 0.2, 8), task("connectivity", 2, connectivity, 0.5, 12),
    task("colours", 64, colours, 0.1, 8), task("cycle", 2, cycle, 0.5, 12), task("path", FARTHEST + 1, path, 0.3, 8))}
