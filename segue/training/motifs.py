"""Motifs: which passages of a sequence are variations of one thing. A network learns from altered copies to place them
near each other, and what lies close together within one sequence is a motif (the theme retrieval of Theme Transformer,
2021, arXiv 2111.04093). For melodies, DNA, logs: whatever can be cut and altered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from segue.analysis.embedding import embed
from segue.errors import SegueError, require
from segue.models import Stack, StackConfig
from segue.models.base import pad_rows
from segue.objectives import Batch, InBatch
from segue.training.learn import learn

Ids = np.ndarray
Alter = Callable[[Ids, np.random.Generator], Ids]


def cut_segments(ids: Ids, length: int, hop: int | None = None) -> list[Ids]:
    """Segments of `length` elements, one every `hop` (default: length); what is left at the end is a shorter one, if it
    is at least half as long."""
    hop = hop or length
    if length < 1 or hop < 1:
        raise SegueError(f"segments of {length} elements every {hop}: give 1 or more")
    return [ids[at : at + length] for at in range(0, len(ids), hop)
            if at == 0 or len(ids) - at >= max(1, length // 2)]


def edit_randomly(ids: Ids, rng: np.random.Generator, rate: float, letters: int) -> Ids:
    """An altered copy: each element is, at `rate`, replaced by any of `letters`, doubled by one, or left out. Never
    empty."""
    told: list[int] = []
    for each in ids.tolist():
        if rng.random() >= rate:
            told.append(each)
            continue
        what = rng.integers(3)
        told += [int(rng.integers(letters))] if what == 0 else [each, int(rng.integers(letters))] if what == 1 else []
    return np.array(told or ids[:1].tolist())


def find_clusters(eps: float, points: np.ndarray, metric: str) -> np.ndarray:
    """(N,) long: which cluster each point is of by DBSCAN (Ester et al. 1996), -1 of none. Two near ones are a cluster.
    metric: "cosine" of vectors (N, D), or "precomputed" distances (N, N)."""
    labels: np.ndarray = require("sklearn.cluster", "classical").DBSCAN(
        eps=eps, min_samples=2, metric=metric).fit_predict(points)
    return labels


def largest_cluster(labels: np.ndarray) -> np.ndarray:
    """The segments of the largest cluster, in order (of equal ones the earliest); none where nothing comes twice."""
    known = labels[labels >= 0]
    return np.flatnonzero(labels == np.bincount(known).argmax()) if len(known) else np.zeros(0, np.int64)


class MotifRetriever:
    """Finds, segment by segment, what in a sequence is a varied repetition.

    letters: ids are below. alter: makes the copies that are to lie near (`edit_randomly`, or what varies motifs of the
    kind: transposition, say). mixer, width, depth: of the network, whose vector of a segment is the mean of its hidden
    ones.
    temperature: of the contrastive loss (InfoNCE). eps: how near, in cosine distance, segments of one cluster lie: it
    decides everything, so choose it on sequences whose motifs are known.
    """

    def __init__(self, letters: int, alter: Alter, mixer: str = "gru", width: int = 64, depth: int = 1,
                 temperature: float = 0.1, eps: float = 0.2, seed: int = 0) -> None:
        if not 0 < eps < 2:
            raise SegueError(f"eps {eps} is a cosine distance: give a number between 0 and 2")
        self.alter, self.temperature, self.eps, self.seed = alter, temperature, eps, seed
        torch.manual_seed(seed)
        self.model = Stack(StackConfig(letters, width, [mixer] * depth, pool="mean"))

    def fit(self, pieces: Sequence[Sequence[Ids]], steps: int = 200, rows: int = 32, rate: float = 3e-3) -> None:
        """Learn from pieces, each a list of segments. A batch has two altered copies of one segment of each of so many
        pieces: the others are what it must be told from, and those of its own piece are not among them."""
        pieces = [piece for piece in pieces if len(piece)]
        if len(pieces) < 2:
            raise SegueError(f"{len(pieces)} pieces: segments are told from those of other pieces, give 2 or more")

        def draw(step: int) -> Batch:
            rng = np.random.default_rng((self.seed, step))
            chosen = [pieces[i] for i in rng.permutation(len(pieces))[:rows]]
            segments = [piece[rng.integers(len(piece))] for piece in chosen]
            table = [self.alter(each, rng).tolist() for _ in range(2) for each in segments]
            ids = pad_rows(table)
            targets = torch.full_like(ids, -1)
            targets[torch.arange(len(table)), torch.tensor(list(map(len, table))) - 1] = 0
            return Batch(ids, targets)

        learn(self.model, draw, steps, rate=rate, seed=self.seed, objective=InBatch(self.temperature, fill=0.0))

    def vectors(self, segments: Sequence[Ids]) -> np.ndarray:
        """(N, D)."""
        return embed(self.model, list(segments), "last")

    def clusters(self, segments: Sequence[Ids]) -> np.ndarray:
        """(N,) long: see `find_clusters`."""
        return find_clusters(self.eps, self.vectors(segments), "cosine")

    def motif(self, segments: Sequence[Ids]) -> np.ndarray:
        """Which segments are the motif of a sequence: see `largest_cluster`. The first of them is the condition that
        returns.
        """
        return largest_cluster(self.clusters(segments))
