"""Clusters of similar records, which a split keeps on one side.

With relatives on both sides (homologous proteins, alleles, quoted texts, logs of one routine), a model that has only
memorised would seem to generalise.
"""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING

import numpy as np

from segue.errors import SegueError

if TYPE_CHECKING:
    from segue.data.records import Data

SAMPLED_PAIRS = 200  # of records, to choose the word length
CHANCE_SHARE = 0.05  # of the linking threshold: the median pair may share so much by chance


def clusters(data: Data, k: int | None = None, share: float = 0.4) -> np.ndarray:
    """See `Data.clusters`."""
    if not 0 < share <= 1 or (k is not None and k < 1):
        raise SegueError(f"words of {k} elements of which a share of {share} links two records: give k of 1 or more, "
                         "and a share above 0 and at most 1")
    if not len(data):
        return np.zeros(0, np.int64)
    from segue.kernels.linkage import linkage  # brings Numba, which reading need not wait for

    codes = [hash_elements(data.values(i)) for i in range(len(data))]
    k = k or word_length(codes, share)
    sets = [word_hashes(sequence, k) for sequence in codes]
    offsets = np.cumsum([0, *map(len, sets)])
    _, flat = np.unique(np.concatenate(sets), return_inverse=True)
    owners = np.repeat(np.arange(len(sets)), np.diff(offsets))[np.argsort(flat, kind="stable")]
    return linkage(flat, offsets, owners, np.cumsum([0, *np.bincount(flat)]), share)


def hash_elements(values: np.ndarray) -> np.ndarray:
    """A 64-bit hash of each element (splitmix64)."""
    x = (values.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def word_hashes(codes: np.ndarray, k: int) -> np.ndarray:
    """Sorted hashes of the different words of k elements in a record; a record shorter than k is one word."""
    n = max(1, len(codes) - k + 1)
    hashes = np.zeros(n, np.uint64)
    for at in range(min(k, len(codes))):
        hashes = hashes * np.uint64(0xD6E8FEB86659FD93) + codes[at : at + n]
    return np.unique(hashes)


def word_length(codes: list[np.ndarray], share: float) -> int:
    """The smallest k at which random records hardly share words: the median over sampled pairs is a twentieth of the
    linking threshold. For example 4 for typical proteins, 8 for genes, and more for prose, which repeats itself."""
    draw = np.random.default_rng(0)
    pairs = draw.integers(0, len(codes), (SAMPLED_PAIRS, 2))
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    longest = max(map(len, codes))
    for k in count(1):
        sets = {i: word_hashes(codes[i], k) for i in np.unique(pairs).tolist()}
        common = [len(np.intersect1d(sets[a], sets[b], assume_unique=True)) / min(len(sets[a]), len(sets[b]))
                  for a, b in pairs.tolist()]
        if k >= longest or not common or np.median(common) <= CHANCE_SHARE * share:
            return k
    raise AssertionError
