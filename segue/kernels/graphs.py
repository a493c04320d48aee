"""Graph algorithms, compiled with Numba: minimum spanning forests by rounds, neighbourhoods, distances, random walks.

A graph of n nodes is given by its edges (ends `u` and `v`), or as an adjacency list by `begins` (n + 1,) and `others`:
the neighbours of node i are others[begins[i]:begins[i + 1]] (see `adjacency`). Several graphs are given as one graph of
several components.
"""

from __future__ import annotations

import numpy as np

from segue.kernels.jit import jit
from segue.kernels.linkage import find_root


def adjacency(n: int, u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The adjacency list (begins, others) of undirected edges; a node's neighbours are in the order of the edges."""
    here, there = np.stack([u, v], 1).reshape(-1), np.stack([v, u], 1).reshape(-1)
    order = np.argsort(here, kind="stable")
    return np.searchsorted(here[order], np.arange(n + 1)), there[order]


def boruvka(n: int, u: np.ndarray, v: np.ndarray, rank: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Borůvka's algorithm (1926): in each round every cluster takes its strongest edge to another one, and the joined
    ones become one cluster, until no edge leaves any. rank: distinct numbers from 0 on in each graph, the strongest
    edge has the lowest.

    Returns the clusters (R + 1, n) of each round, each named by one of its nodes, at first every node its own; which
    edges were taken, (m,) bool; and an order of the nodes in which the clusters of every round are contiguous: the
    stronger an edge, the nearer its ends; of two clusters the one whose first node has the stronger edges comes first.
    """
    found = np.empty((n.bit_length() + 1, n), np.int64)  # each round at least halves the clusters that have edges left
    rounds, taken, order = _boruvka(n, u, v, rank, np.argsort(rank), found)
    return found[:rounds], taken, order


@jit()
def _boruvka(n, u, v, rank, ordered, found):
    """`boruvka`, with the edges in order of rank: fills `found` with the clusters; the rounds, edges and nodes."""
    parent, taken = np.arange(n), np.zeros(u.size, np.bool_)
    following, last = np.full(n, -1), np.arange(n)  # a linked list for each cluster, from the node that names it
    key = np.zeros(n)
    for e in range(u.size):
        key[u[e]] += 1 / (1 + rank[e])
        key[v[e]] += 1 / (1 + rank[e])
    rounds = 1
    for i in range(n):
        found[0, i] = i
    while True:
        label = found[rounds - 1]
        best = np.full(n, -1)
        for e in range(u.size):
            a, b = label[u[e]], label[v[e]]
            if a != b:
                if best[a] < 0 or rank[e] < rank[best[a]]:
                    best[a] = e
                if best[b] < 0 or rank[e] < rank[best[b]]:
                    best[b] = e
        joined = False
        for e in ordered:
            if best[label[u[e]]] != e and best[label[v[e]]] != e:
                continue
            a, b = find_root(parent, u[e]), find_root(parent, v[e])
            if a == b:  # two nodes joined twice, by edges of one rank
                continue
            if key[b] > key[a] or (key[b] == key[a] and b < a):
                a, b = b, a
            parent[b] = a
            following[last[a]] = b
            last[a] = last[b]
            taken[e] = joined = True
        if not joined:
            break
        for i in range(n):
            found[rounds, i] = find_root(parent, i)
        rounds += 1
    order, at = np.empty(n, np.int64), 0
    for i in range(n):
        if parent[i] == i:
            node = i
            while node >= 0:
                order[at] = node
                at += 1
                node = following[node]
    return rounds, taken, order


@jit()
def k_hop_neighbourhoods(begins, others, k):
    """(P, 3): for each node and radius 0 to k, each node within that distance, nearest first; (node, radius, other)."""
    n = begins.size - 1
    found = [(0, 0, 0) for _ in range(0)]
    seen = np.full(n, -1)
    queue, far = np.empty(n, np.int64), np.empty(n, np.int64)
    for source in range(n):
        queue[0], far[0], seen[source] = source, 0, source
        at, end = 0, 1
        while at < end:
            node = queue[at]
            if far[at] < k:
                for other in others[begins[node]:begins[node + 1]]:
                    if seen[other] != source:
                        seen[other] = source
                        queue[end], far[end] = other, far[at] + 1
                        end += 1
            at += 1
        for radius in range(k + 1):
            for at in range(end):
                if far[at] <= radius:
                    found.append((source, radius, queue[at]))
    out = np.empty((len(found), 3), np.int64)
    for at in range(len(found)):
        out[at, 0], out[at, 1], out[at, 2] = found[at]
    return out


@jit()
def shortest_distances(begins, others, sources, targets, farthest):
    """(len(sources),): the edges on a shortest path from each source to its target; `farthest` if more, or no path."""
    n = begins.size - 1
    seen, queue, far = np.full(n, -1), np.empty(n, np.int64), np.empty(n, np.int64)
    out = np.full(sources.size, farthest)
    for pair in range(sources.size):
        queue[0], far[0], seen[sources[pair]] = sources[pair], 0, pair
        at, end = 0, 1
        while at < end and far[at] < farthest:
            node = queue[at]
            if node == targets[pair]:
                out[pair] = far[at]
                break
            for other in others[begins[node]:begins[node + 1]]:
                if seen[other] != pair:
                    seen[other] = pair
                    queue[end], far[end] = other, far[at] + 1
                    end += 1
            at += 1
    return out


@jit()
def random_walks(begins, others, draws):
    """(n, L + 1): the nodes of a random walk from each node. draws: (n, L) uniform numbers in [0, 1). A walk stays at a
    node without edges."""
    n, length = draws.shape
    out = np.empty((n, length + 1), np.int64)
    for i in range(n):
        out[i, 0] = node = i
        for step in range(length):
            degree = begins[node + 1] - begins[node]
            if degree:
                node = others[begins[node] + int(draws[i, step] * degree)]
            out[i, step + 1] = node
    return out
