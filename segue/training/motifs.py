"""Motif retrieval: the passages of a sequence that are variations of one motif. A network learns, from altered copies
of segments, embeddings that are near for variations of one segment; a cluster of segments within one sequence is then a
motif (the theme retrieval of Theme Transformer, 2021, arXiv 2111.04093). For any kind of sequence.
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
    """Segments of `length` elements, one every `hop` (default: length). A shorter one at the end is kept if it has at
    least half of that length."""
    hop = hop or length
    if length < 1 or hop < 1:
        raise SegueError(f"segments of {length} elements every {hop}: give 1 or more")
    return [ids[at : at + length] for at in range(0, len(ids), hop)
            if at == 0 or len(ids) - at >= max(1, length // 2)]


def edit_randomly(ids: Ids, rng: np.random.Generator, rate: float, letters: int) -> Ids:
    """An altered copy: each element is, with probability `rate`, replaced by a random one of `letters`, followed by an
    inserted one, or deleted. Never empty."""
    edited: list[int] = []
    for element in ids.tolist():
        if rng.random() >= rate:
            edited.append(element)
            continue
        operation = rng.integers(3)
        edited += [int(rng.integers(letters))] if operation == 0 else \
            [element, int(rng.integers(letters))] if operation == 1 else []
    return np.array(edited or ids[:1].tolist())


def find_clusters(eps: float, points: np.ndarray, metric: str) -> np.ndarray:
    """(N,) cluster labels by DBSCAN (Ester et al. 1996), -1 for none. Two neighbours within `eps` make a cluster.
    metric: "cosine" of vectors (N, D), or "precomputed" distances (N, N)."""
    labels: np.ndarray = require("sklearn.cluster", "classical").DBSCAN(
        eps=eps, min_samples=2, metric=metric).fit_predict(points)
    return labels


def largest_cluster(labels: np.ndarray) -> np.ndarray:
    """The indices of the largest cluster, in order (of equally large ones the first); empty if there is no cluster."""
    clustered = labels[labels >= 0]
    return np.flatnonzero(labels == np.bincount(clustered).argmax()) if len(clustered) else np.zeros(0, np.int64)


class MotifRetriever:
    """Finds the segments of a sequence that repeat a motif with variations, by contrastive embeddings and clustering.

    letters: the vocabulary size. alter: makes the positive examples, altered copies of a segment (`edit_randomly`, or
    the variations of the kind, such as transposition). mixer, width, depth: of the network; the vector of a segment is
    the mean of its hidden states.
    temperature: of the contrastive loss (InfoNCE). eps: the largest cosine distance of neighbours in a cluster. Results
    depend on it strongly, so choose it on sequences whose motifs are known.
    """

    def __init__(self, letters: int, alter: Alter, mixer: str = "gru", width: int = 64, depth: int = 1,
                 temperature: float = 0.1, eps: float = 0.2, seed: int = 0) -> None:
        if not 0 < eps < 2:
            raise SegueError(f"eps {eps} is a cosine distance: give a number between 0 and 2")
        self.alter, self.temperature, self.eps, self.seed = alter, temperature, eps, seed
        torch.manual_seed(seed)
        self.model = Stack(StackConfig(letters, width, [mixer] * depth, pool="mean"))

    def fit(self, pieces: Sequence[Sequence[Ids]], steps: int = 200, rows: int = 32, rate: float = 3e-3) -> None:
        """Train on pieces, each a list of segments. A batch has two altered copies of one segment from each of `rows`
        pieces: the copies of one segment are positives, those from other pieces are negatives."""
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
        """The vectors of N segments, (N, D)."""
        return embed(self.model, list(segments), "last")

    def clusters(self, segments: Sequence[Ids]) -> np.ndarray:
        """(N,) long: see `find_clusters`."""
        return find_clusters(self.eps, self.vectors(segments), "cosine")

    def motif(self, segments: Sequence[Ids]) -> np.ndarray:
        """The indices of the segments that are the motif of a sequence (see `largest_cluster`), the theme first."""
        return largest_cluster(self.clusters(segments))
