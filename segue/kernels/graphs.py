"""Loops over graphs, compiled with Numba: minimum spanning forests round by round, neighbourhoods, distances, walks.

A graph of n nodes is given by its edges (ends `u` and `v`), or, for walking along, by `begins` (n + 1,) and `others`:
the neighbours of node i are others[begins[i]:begins[i + 1]] (see `adjacency`). Several graphs are one with parts.
"""

from __future__ import annotations

import numpy as np

from segue.kernels.jit import jit
from segue.kernels.linkage import find_root


def adjacency(n: int, u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """begins and others of undirected edges, the neighbours of each node in the order of the edges."""
    here, there = np.stack([u, v], 1).reshape(-1), np.stack([v, u], 1).reshape(-1)
    order = np.argsort(here, kind="stable")
    return np.searchsorted(here[order], np.arange(n + 1)), there[order]


@jit()
def boruvka(n, u, v, rank):
    """Contract edges in rounds: every cluster takes its strongest edge to another one (Borůvka 1926), those joined
    become one cluster, until no edge leads out of any. rank: different numbers from 0 on in each graph, the strongest
    edge has the lowest.

    Gives the clusters (R + 1, n), each called as one of its nodes, at first every node its own; which edges were taken,
    (m,) bool; and the nodes in an order in which each cluster of each round stands together: the stronger the edge, the
    nearer its ends; of two the one whose first node has the stronger edges comes first.
    """
    parent, taken = np.arange(n), np.zeros(u.size, np.bool_)
    following, last = np.full(n, -1), np.arange(n)  # a chain for each cluster, from the node it is called as
    key = np.zeros(n)
    for e in range(u.size):
        key[u[e]] += 1 / (1 + rank[e])
        key[v[e]] += 1 / (1 + rank[e])
    ordered = np.argsort(rank)
    rounds = [np.arange(n)]
    while True:
        label = rounds[-1]
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
        now = np.empty(n, np.int64)
        for i in range(n):
            now[i] = find_root(parent, i)
        rounds.append(now)
    found = np.empty((len(rounds), n), np.int64)
    for at in range(len(rounds)):
        found[at] = rounds[at]
    order, at = np.empty(n, np.int64), 0
    for i in range(n):
        if parent[i] == i:
            node = i
            while node >= 0:
                order[at] = node
                at += 1
                node = following[node]
    return found, taken, order


@jit()
def k_hop_neighbourhoods(begins, others, k):
    """(P, 3) node, radius 0 to k, and each node that is at most that far from it; the nearest first."""
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
    """(len(sources),) how many edges from each source to its target; `farthest` where there are more, or no way."""
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
    """(n, L + 1) nodes of a random walk from each node, by numbers (n, L) drawn from [0, 1); a node without edges is
    not left."""
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
