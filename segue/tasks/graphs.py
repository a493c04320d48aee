"""Tasks about graphs, as batches for `segue.models.graphs.GraphSequence`: an element is a node, with its features and
its row of the adjacency (`segue.models.graphs.pack_graphs`). The length is the number of nodes. After Behrouz et al.
2024, arXiv 2411.15671.

The target of a question about a whole graph is at its last node. Graphs of yes-no questions have equally many edges and
similar degrees for either answer, so that only the structure tells them apart.
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
FARTHEST = 9  # greatest distance that is told apart
FEATURES = COLOURS + 1  # of each node: its colour, and whether it is marked
Drawn = tuple[np.ndarray, np.ndarray, np.ndarray]  # features of nodes, edges, an answer for each node (-1: none)
Draw = Callable[[int, np.random.Generator], Drawn]


def tree_edges(nodes: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """(n - 1, 2) edges of a random tree on these nodes: each node after the first has a parent before it."""
    parent = (draw.random(len(nodes) - 1) * np.arange(1, len(nodes))).astype(np.int64)
    return np.stack([nodes[parent], nodes[1:]], 1)


def more_edges(edges: np.ndarray, nodes: np.ndarray, count: int, draw: np.random.Generator) -> np.ndarray:
    """The edges, and `count` random new ones between these nodes (or all possible ones, if they are fewer)."""
    rank = np.argsort(np.argsort(nodes))
    a, b = np.triu_indices(len(nodes), 1)
    known = np.searchsorted(np.sort(nodes), np.sort(edges, 1))  # ranks of the ends
    a, b = np.sort(np.stack([rank[a], rank[b]]), 0)
    free = ~np.isin(a * len(nodes) + b, known[:, 0] * len(nodes) + known[:, 1])
    chosen = draw.permutation(np.flatnonzero(free))[:count]
    return np.concatenate([edges, np.sort(nodes)[np.stack([a[chosen], b[chosen]], 1)]])


def gnp(n: int, p: float, draw: np.random.Generator) -> np.ndarray:
    """Edges of an Erdos-Renyi graph: each pair with probability p."""
    a, b = np.triu_indices(n, 1)
    mask = draw.random(len(a)) < p
    return np.stack([a[mask], b[mask]], 1)


def degree(n: int, draw: np.random.Generator) -> Drawn:
    """The number of neighbours of each node, in a random graph with 4 on average."""
    edges = gnp(n, 4 / n, draw)
    return np.zeros((n, FEATURES)), edges, np.bincount(edges.reshape(-1), minlength=n)


def connectivity(n: int, draw: np.random.Generator) -> Drawn:
    """Whether a graph is connected. It has two random connected parts, each of at least a quarter of the nodes, with
    about n ln n / 2 edges in all, as at the threshold of connectivity; in half of the graphs an edge joins the parts
    instead of one within. (Graphs at the threshold itself are disconnected by isolated nodes, which is a local
    feature.) """
    order, cut = draw.permutation(n), int(draw.integers(n // 4, n - n // 4 + 1))
    extra = max(int(n * np.log(n) / 2) - (n - 2), 2)
    parts = []
    for nodes in (order[:cut], order[cut:]):
        parts.append(more_edges(tree_edges(nodes, draw), nodes, max(1, extra * len(nodes) // n), draw))
    connected = int(draw.integers(2))
    if connected:
        longer = int(len(parts[1]) >= len(parts[0]))  # its last edge is not in its tree, so can be replaced
        parts[longer] = np.concatenate([parts[longer][:-1], [[order[draw.integers(cut)],
                                                              order[draw.integers(cut, n)]]]])
    return np.zeros((n, FEATURES)), np.concatenate(parts), last(n, connected)


def colours(n: int, draw: np.random.Generator) -> Drawn:
    """The number of nodes of the first of 4 colours. A palette of 4 nodes, at least one of the first colour, is
    repeated a random number of times, up to n nodes, so that shares do not tell numbers; the order is random."""
    palette = np.append(draw.integers(COLOURS, size=3), 0)
    colour = draw.permutation(np.tile(palette, draw.integers(1, n // 4 + 1)))
    n = len(colour)
    features = np.zeros((n, FEATURES))
    features[np.arange(n), colour] = 1
    return features, gnp(n, min(1.0, 4 / n), draw), last(n, int((colour == 0).sum()))


def cycle(n: int, draw: np.random.Generator) -> Drawn:
    """Whether there is a cycle: two trees, or three of which one has an additional edge."""
    cyclic = int(draw.integers(2))
    parts = np.split(draw.permutation(n), np.sort(1 + draw.choice(n - 1, size=1 + cyclic, replace=False)))
    edges = [tree_edges(nodes, draw) for nodes in parts]
    if cyclic:
        largest = int(np.argmax([len(nodes) for nodes in parts]))
        edges[largest] = more_edges(edges[largest], parts[largest], 1, draw)
    return np.zeros((n, FEATURES)), np.concatenate(edges), last(n, cyclic)


def path(n: int, draw: np.random.Generator) -> Drawn:
    """The distance between the two marked nodes of a connected graph (9: that or more)."""
    nodes = draw.permutation(n)
    edges = more_edges(tree_edges(nodes, draw), nodes, n // 4, draw)
    a, b = draw.choice(n, size=2, replace=False)
    features = np.zeros((n, FEATURES))
    features[[a, b], COLOURS] = 1
    adjacency = loops.adjacency(n, *np.ascontiguousarray(edges.T))
    distance = loops.shortest_distances(*adjacency, np.array([a]), np.array([b]), FARTHEST)
    return features, edges, last(n, int(distance[0]))


def last(n: int, answer: int) -> np.ndarray:
    """(n,) targets: the answer at the last node, -1 elsewhere."""
    return np.append(np.full(n - 1, -1), answer)


def task(name: str, vocabulary: int, draw_graph: Draw, chance: float, shortest: int) -> Task:
    """A task of graphs by `draw_graph`. vocabulary: answers are below it, larger ones count as vocabulary - 1."""
    def draw(rows: int, length: int, generator: torch.Generator) -> Batch:
        rng = np.random.default_rng(int(torch.randint(1 << 62, (), generator=generator)))
        drawn = [draw_graph(length, rng) for _ in range(rows)]
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
