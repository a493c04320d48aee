"""How near generated samples are to real ones, by features of both: the Frechet distance (Heusel et al. 2017, arXiv
1706.08500) and MAUVE (Pillutla et al. 2021, arXiv 2102.01454).

Features are what the caller's extractor gives; numbers of different extractors, or of different counts, do not compare.
"""

from __future__ import annotations

import zlib
from collections.abc import Hashable, Sequence
from typing import Any, Protocol

import numpy as np

from segue.errors import SegueError

MIX = np.uint64(0x9E3779B97F4A7C15)


class FeatureExtractor(Protocol):
    """N sequences, as one vector each: (N, D). `functools.partial(segue.analysis.embedding.embed, model)` is one, of
    any model of the library; so is `HashedNgrams`."""

    def __call__(self, samples: Sequence[Any], /) -> np.ndarray: ...


class HashedNgrams:
    """Features that need no model: how often each run of up to `order` elements occurs, hashed with signs to `size`
    numbers (Weinberger et al. 2009, arXiv 0902.2206), of length 1 (0 where there is nothing). The same everywhere."""

    def __init__(self, size: int = 256, order: int = 2) -> None:
        self.size, self.order = size, order
        self.hashes: dict[Hashable, int] = {}

    def __call__(self, samples: Sequence[Sequence[Hashable]], /) -> np.ndarray:
        found = np.zeros((len(samples), self.size))
        for row, sample in zip(found, samples):
            for token in sample:
                if token not in self.hashes:
                    self.hashes[token] = zlib.crc32(repr(token).encode())
            ids = np.array([self.hashes[token] for token in sample], np.uint64)
            runs = np.zeros(len(ids) + 1, np.uint64)
            for n in range(1, min(self.order, len(ids)) + 1):
                runs = (runs[:-1] ^ ids[n - 1 :]) * MIX  # of n elements, from those of n - 1
                runs ^= runs >> np.uint64(31)
                sign = 1 - 2 * (runs >> np.uint64(63)).astype(int)
                np.add.at(row, (runs % np.uint64(self.size)).astype(int), sign)
        return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)


def frechet_distance(features: np.ndarray, real: np.ndarray) -> float:
    """|m - m'|^2 + trace(S + S' - 2 (S S')^(1/2)) of the means m and covariances S of two sets of features (N, D) and
    (M, D): 0 where both are alike. With an Inception network's features it is the FID, with those of clips the FVD.

    Few rows raise it, most where there are fewer than D: compare equal counts only.
    """
    a, b = _two(features, real)
    if min(len(a), len(b)) < 2:
        raise SegueError("a Frechet distance is of two sets of at least 2 rows each, which have a covariance")
    one, other = (np.atleast_2d(np.cov(rows, rowvar=False)) for rows in (a, b))
    values, vectors = np.linalg.eigh(one)
    root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
    # The eigenvalues of S S' are those of the symmetric S^(1/2) S' S^(1/2).
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ other @ root), 0)).sum()
    apart = np.square(a.mean(0) - b.mean(0)).sum()
    return float(max(0.0, apart + np.trace(one) + np.trace(other) - 2 * cross))


def mauve(features: np.ndarray, real: np.ndarray, buckets: int = 0, scale: float = 5.0, seed: int = 0) -> float:
    """The area under the curve of exp(-scale KL(real | R)) against exp(-scale KL(made | R)), over all mixtures R of
    both: 1 where they are alike, towards 0 where they have nothing in common. Distributions are over `buckets` groups
    of near features (default: a tenth of the smaller set, at least 2), found by k-means on what of the features, each
    of length 1, lies along the principal components that hold 90% of the variance (as the package mauve-text does).

    features, real: (N, D) and (M, D); of some thousand rows, equally many: fewer lower it.
    """
    return mauve_of(*near_groups(features, real, buckets, seed), scale)


def near_groups(features: np.ndarray, real: np.ndarray, buckets: int = 0, seed: int = 0
                ) -> tuple[np.ndarray, np.ndarray]:
    """(N,) and (M,): of which group each row is, see `mauve`."""
    a, b = _two(features, real)
    k = min(buckets or max(2, round(min(len(a), len(b)) / 10)), len(a) + len(b))
    both = np.concatenate([a, b])
    both = both / np.maximum(np.linalg.norm(both, axis=1, keepdims=True), 1e-12)
    both = both - both.mean(0)
    values, vectors = np.linalg.eigh(both.T @ both)
    share = np.cumsum(values[::-1]) / max(values.sum(), 1e-300)
    groups = k_means(both @ vectors[:, ::-1][:, : int(np.searchsorted(share, 0.9)) + 1], k, seed)
    return groups[: len(a)], groups[len(a) :]


def mauve_of(made: np.ndarray, real: np.ndarray, scale: float = 5.0) -> float:
    """MAUVE of rows whose groups are known, (N,) and (M,)."""
    k = 1 + max(int(made.max()), int(real.max()))
    q, p = (np.bincount(groups, minlength=k) / len(groups) for groups in (made, real))
    return frontier_area(p, q, scale)


def frontier_area(p: np.ndarray, q: np.ndarray, scale: float = 5.0, points: int = 25) -> float:
    """MAUVE of two distributions (K,); of the trapezia over either axis the mean, so that it is the same both ways."""
    weights = np.linspace(1e-6, 1 - 1e-6, points)[:, None]
    mixed = weights * p + (1 - weights) * q
    curve = np.exp(-scale * np.array([[_kl(q, each), _kl(p, each)] for each in mixed]))
    curve = np.concatenate([[[1.0, 0.0]], curve, [[0.0, 1.0]]])

    def area(x: np.ndarray, y: np.ndarray) -> float:
        order = np.lexsort((-y, x))
        return float(((y[order][1:] + y[order][:-1]) / 2 * np.diff(x[order])).sum())

    return (area(*curve.T) + area(*curve.T[::-1])) / 2


def k_means(points: np.ndarray, k: int, seed: int = 0, rounds: int = 100, tries: int = 5) -> np.ndarray:
    """(N,) which of k groups each point (N, D) is of, by Lloyd's rounds from a beginning of points that are far apart
    (k-means++, Arthur & Vassilvitskii 2007), of so many tries the one with the least squares; a group may end up
    empty."""
    draw = np.random.default_rng(seed)
    found = [_grouped(points, k, draw, rounds) for _ in range(tries)]
    return min(found, key=lambda each: each[0])[1]


def _grouped(points: np.ndarray, k: int, draw: np.random.Generator, rounds: int) -> tuple[float, np.ndarray]:
    """The sum of the squared distances to the centres of the groups, and the groups (N,)."""
    size = np.square(points).sum(1)
    centres = np.empty((k, points.shape[1]))
    near = np.full(len(points), np.inf)
    for at in range(k):
        chance = near / near.sum() if at and near.sum() > 0 else None
        centres[at] = points[draw.choice(len(points), p=chance)]
        near = np.minimum(near, (size - points @ (2 * centres[at]) + np.square(centres[at]).sum()).clip(0))
    groups = np.full(len(points), -1)
    for turn in range(rounds + 1):
        apart = np.square(centres).sum(1) - points @ (2 * centres.T)
        closest = apart.argmin(1)
        if turn == rounds or (closest == groups).all():
            break
        groups = closest
        order = np.argsort(groups, kind="stable")
        some, first = np.unique(groups[order], return_index=True)
        centres[some] = np.add.reduceat(points[order], first) / np.bincount(groups)[some][:, None]
    return float((size + apart.min(1)).sum()), closest


def _kl(p: np.ndarray, q: np.ndarray) -> float:
    there = p > 0
    return float((p[there] * np.log(p[there] / q[there])).sum())


def _two(features: np.ndarray, real: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(features, float), np.asarray(real, float)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or not len(a) or not len(b):
        raise SegueError(f"features of shapes {a.shape} and {b.shape}: give two sets of rows (N, D) of one extractor")
    return a, b
