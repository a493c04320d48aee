"""Distances between the distributions of generated and real samples, by features of both: the Frechet distance (Heusel
et al. 2017, arXiv 1706.08500) and MAUVE (Pillutla et al. 2021, arXiv 2102.01454).

Features come from the caller's extractor; values from different extractors or sample counts are not comparable.
"""

from __future__ import annotations

import zlib
from collections.abc import Hashable, Sequence
from typing import Any, Protocol

import numpy as np

from segue.errors import SegueError

MIX = np.uint64(0x9E3779B97F4A7C15)


class FeatureExtractor(Protocol):
    """Maps N sequences to vectors (N, D): `functools.partial(segue.analysis.embedding.embed, model)` of any model of
    the library, or `HashedNgrams`."""

    def __call__(self, samples: Sequence[Any], /) -> np.ndarray: ...


class HashedNgrams:
    """Features that need no model: counts of n-grams up to `order`, hashed with signs to `size` numbers (Weinberger et
    al. 2009, arXiv 0902.2206), of norm 1 (0 for empty sequences). The same on every machine."""

    def __init__(self, size: int = 256, order: int = 2) -> None:
        self.size, self.order = size, order
        self.hashes: dict[Hashable, int] = {}

    def __call__(self, samples: Sequence[Sequence[Hashable]], /) -> np.ndarray:
        features = np.zeros((len(samples), self.size))
        for row, sample in zip(features, samples):
            for token in sample:
                if token not in self.hashes:
                    self.hashes[token] = zlib.crc32(repr(token).encode())
            ids = np.array([self.hashes[token] for token in sample], np.uint64)
            hashes = np.zeros(len(ids) + 1, np.uint64)
            for n in range(1, min(self.order, len(ids)) + 1):
                hashes = (hashes[:-1] ^ ids[n - 1 :]) * MIX  # of n elements, from those of n - 1
                hashes ^= hashes >> np.uint64(31)
                sign = 1 - 2 * (hashes >> np.uint64(63)).astype(int)
                np.add.at(row, (hashes % np.uint64(self.size)).astype(int), sign)
        return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)


def frechet_distance(features: np.ndarray, real: np.ndarray) -> float:
    """|m - m'|^2 + trace(S + S' - 2 (S S')^(1/2)) of the means m and covariances S of two sets of features (N, D) and
    (M, D); 0 if both are equal. With an Inception network's features it is the FID, with those of clips the FVD.

    It is biased upwards for few rows, most with fewer than D: compare equal counts only.
    """
    a, b = _feature_pair(features, real)
    if min(len(a), len(b)) < 2:
        raise SegueError("a Frechet distance is of two sets of at least 2 rows each, which have a covariance")
    cov_a, cov_b = (np.atleast_2d(np.cov(rows, rowvar=False)) for rows in (a, b))
    values, vectors = np.linalg.eigh(cov_a)
    root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
    # The eigenvalues of S S' are those of the symmetric S^(1/2) S' S^(1/2).
    trace_sqrt = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ cov_b @ root), 0)).sum()
    between_means = np.square(a.mean(0) - b.mean(0)).sum()
    return float(max(0.0, between_means + np.trace(cov_a) + np.trace(cov_b) - 2 * trace_sqrt))


def mauve(features: np.ndarray, real: np.ndarray, buckets: int = 0, scale: float = 5.0, seed: int = 0) -> float:
    """The area under the curve of exp(-scale KL(real | R)) against exp(-scale KL(generated | R)), over all mixtures R
    of both: 1 for equal distributions, towards 0 for disjoint ones. Distributions are over `buckets` clusters of
    features (default: a tenth of the smaller set, at least 2): k-means on the features, scaled to norm 1 and projected
    on the principal components that hold 90% of the variance (as the package mauve-text does).

    features, real: (N, D) and (M, D); use some thousand rows, equally many: with fewer it is biased downwards.
    """
    return mauve_of(*near_groups(features, real, buckets, seed), scale)


def near_groups(features: np.ndarray, real: np.ndarray, buckets: int = 0, seed: int = 0
                ) -> tuple[np.ndarray, np.ndarray]:
    """(N,) and (M,): the cluster of each row, see `mauve`."""
    a, b = _feature_pair(features, real)
    k = min(buckets or max(2, round(min(len(a), len(b)) / 10)), len(a) + len(b))
    both = np.concatenate([a, b])
    both = both / np.maximum(np.linalg.norm(both, axis=1, keepdims=True), 1e-12)
    both = both - both.mean(0)
    values, vectors = np.linalg.eigh(both.T @ both)
    explained = np.cumsum(values[::-1]) / max(values.sum(), 1e-300)
    groups = k_means(both @ vectors[:, ::-1][:, : int(np.searchsorted(explained, 0.9)) + 1], k, seed)
    return groups[: len(a)], groups[len(a) :]


def mauve_of(generated: np.ndarray, real: np.ndarray, scale: float = 5.0) -> float:
    """MAUVE from the clusters of rows, (N,) and (M,) (`near_groups`)."""
    k = 1 + max(int(generated.max()), int(real.max()))
    q, p = (np.bincount(groups, minlength=k) / len(groups) for groups in (generated, real))
    return frontier_area(p, q, scale)


def frontier_area(p: np.ndarray, q: np.ndarray, scale: float = 5.0, points: int = 25) -> float:
    """MAUVE of two distributions (K,), by the trapezoidal rule over `points` mixtures; the mean over both axes, so that
    it is symmetric."""
    weights = np.linspace(1e-6, 1 - 1e-6, points)[:, None]
    mixtures = weights * p + (1 - weights) * q
    curve = np.exp(-scale * np.array([[_kl(q, mixture), _kl(p, mixture)] for mixture in mixtures]))
    curve = np.concatenate([[[1.0, 0.0]], curve, [[0.0, 1.0]]])

    def area(x: np.ndarray, y: np.ndarray) -> float:
        order = np.lexsort((-y, x))
        return float(((y[order][1:] + y[order][:-1]) / 2 * np.diff(x[order])).sum())

    return (area(*curve.T) + area(*curve.T[::-1])) / 2


def k_means(points: np.ndarray, k: int, seed: int = 0, rounds: int = 100, tries: int = 5) -> np.ndarray:
    """(N,) the cluster of each point (N, D), by Lloyd's algorithm with k-means++ starts (Arthur & Vassilvitskii 2007):
    of `tries` runs of at most `rounds` iterations, the one with the least inertia. A cluster may end up empty."""
    rng = np.random.default_rng(seed)
    runs = [_cluster(points, k, rng, rounds) for _ in range(tries)]
    return min(runs, key=lambda run: run[0])[1]


def _cluster(points: np.ndarray, k: int, rng: np.random.Generator, rounds: int) -> tuple[float, np.ndarray]:
    """One run: the inertia (sum of squared distances to the centres), and the clusters (N,)."""
    norms = np.square(points).sum(1)
    centres = np.empty((k, points.shape[1]))
    nearest = np.full(len(points), np.inf)  # squared distances to the centres so far
    for i in range(k):
        p = nearest / nearest.sum() if i and nearest.sum() > 0 else None
        centres[i] = points[rng.choice(len(points), p=p)]
        nearest = np.minimum(nearest, (norms - points @ (2 * centres[i]) + np.square(centres[i]).sum()).clip(0))
    clusters = np.full(len(points), -1)
    for iteration in range(rounds + 1):
        distances = np.square(centres).sum(1) - points @ (2 * centres.T)  # squared, less the points' norms
        closest = distances.argmin(1)
        if iteration == rounds or (closest == clusters).all():
            break
        clusters = closest
        order = np.argsort(clusters, kind="stable")
        used, first = np.unique(clusters[order], return_index=True)
        centres[used] = np.add.reduceat(points[order], first) / np.bincount(clusters)[used][:, None]
    return float((norms + distances.min(1)).sum()), closest


def _kl(p: np.ndarray, q: np.ndarray) -> float:
    support = p > 0
    return float((p[support] * np.log(p[support] / q[support])).sum())


def _feature_pair(features: np.ndarray, real: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(features, float), np.asarray(real, float)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or not len(a) or not len(b):
        raise SegueError(f"features of shapes {a.shape} and {b.shape}: give two sets of rows (N, D) of one extractor")
    return a, b
