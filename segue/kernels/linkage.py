"""Single-linkage clustering of sets by their overlap, compiled with Numba."""

from __future__ import annotations

import numpy as np

from segue.kernels.jit import jit


@jit()
def find_root(parent, i):
    """The root of i in a union-find forest, with path halving (Tarjan & van Leeuwen 1984)."""
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = parent[i]
    return i


@jit()
def linkage(words, offsets, having, begins, share):
    """(n,) int64: the first member of each set's cluster. Two of the n sets are linked if they share at least `share`
    of the smaller one's words.

    Set i is words[offsets[i]:offsets[i + 1]], distinct numbers; having[begins[w]:begins[w + 1]] are the sets that
    contain word w, in order. A pair costs as many steps as it shares words.
    """
    n = offsets.size - 1
    parent = np.arange(n)
    shared = np.zeros(n, np.int32)
    met = np.empty(n, np.int64)
    for i in range(n):
        count = 0
        for word in words[offsets[i]:offsets[i + 1]]:
            for at in range(begins[word], begins[word + 1]):
                j = having[at]
                if j >= i:
                    break
                if shared[j] == 0:
                    met[count] = j
                    count += 1
                shared[j] += 1
        size = offsets[i + 1] - offsets[i]
        for j in met[:count]:
            if shared[j] >= share * min(size, offsets[j + 1] - offsets[j]):
                a, b = find_root(parent, i), find_root(parent, j)
                parent[max(a, b)] = min(a, b)
            shared[j] = 0
    for i in range(n):
        parent[i] = find_root(parent, i)
    return parent
