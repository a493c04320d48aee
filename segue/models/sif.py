"""Weighted means of element vectors, without their common direction (SIF: Arora, Liang & Ma 2017), over vectors made
of what occurs together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from segue.errors import SegueError
from segue.mixers.layout import length_mask


def cooccurrence_vectors(rows: Sequence[np.ndarray], vocabulary: int, width: int = 64, window: int = 10,
                         seed: int = 0) -> Tensor:
    """(V, width) float32: elements that stand within `window` of the same others are alike. Zero for what never occurs.

    The positive pointwise mutual information of pairs, factored by a truncated singular value decomposition, which is
    what skip-gram with negative sampling comes to (Levy & Goldberg 2014): left vectors times roots of singular values.
    rows: ids (n,). seed: of the randomised decomposition (Halko et al. 2011).
    """
    if not 0 < width <= vocabulary or window < 1:
        raise SegueError(f"{width} features of {vocabulary} elements, window {window}: give from 1 to as many features "
                         "as elements, and a window of 1 or more")
    flat = np.concatenate([np.zeros(0, np.int64), *rows]).astype(np.int64)
    row = np.repeat(np.arange(len(rows)), [len(each) for each in rows])
    codes: np.ndarray = np.zeros(0, np.int64)
    counts: np.ndarray = np.zeros(0)
    for away in range(1, window + 1):
        same = row[away:] == row[:-away]
        a, b = flat[:-away][same], flat[away:][same]
        found, often = np.unique(np.concatenate([a * vocabulary + b, b * vocabulary + a]), return_counts=True)
        codes, place = np.unique(np.concatenate([codes, found]), return_inverse=True)
        counts = np.bincount(place, np.concatenate([counts, often]), len(codes))
    if not len(codes):
        raise SegueError("no two elements stand in one sequence: there is nothing that occurs together")
    first, second = codes // vocabulary, codes % vocabulary
    often = np.bincount(first, counts, vocabulary)
    information = np.log(counts * counts.sum() / (often[first] * often[second]))
    keep = information > 0
    table = torch.sparse_coo_tensor(torch.from_numpy(np.stack([first[keep], second[keep]])),
                                    torch.from_numpy(information[keep]), (vocabulary, vocabulary),
                                    check_invariants=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        left, values, _ = torch.svd_lowrank(table, min(vocabulary, width + 10), niter=6)
    return (left[:, :width] * values[:width].sqrt()).float()


class SIFEmbedding(nn.Module):
    """The vector of a sequence: the mean of its elements' vectors, each weighted by a / (a + p), less its part along
    the first right singular vector of those of the sequences it was fitted to. Exactly blind to order.

    elements: (V, D). frequency: (V,), p, how large a share of all elements each is. common: (D,), the unit vector that
    is taken away, zero for none.
    """

    elements: Tensor
    frequency: Tensor
    common: Tensor

    def __init__(self, elements: Tensor, frequency: Tensor, a: float = 1e-3, common: Tensor | None = None) -> None:
        super().__init__()
        if len(elements) != len(frequency) or a <= 0:
            raise SegueError(f"{len(elements)} vectors with {len(frequency)} frequencies and a = {a}: give one of each "
                             "for an element, and an a above 0")
        self.a = a
        self.register_buffer("elements", elements)
        self.register_buffer("frequency", frequency.to(elements))
        self.register_buffer("common", elements.new_zeros(elements.shape[1]) if common is None else common)

    @classmethod
    def fit(cls, rows: Sequence[np.ndarray], elements: Tensor, a: float = 1e-3) -> Self:
        """Frequencies and the common direction of these rows of ids (the training data, and no other)."""
        counts = torch.bincount(torch.from_numpy(np.concatenate(rows).astype(np.int64)), minlength=len(elements))
        model = cls(elements, counts / counts.sum(), a)
        plain = torch.cat([model.vectors(torch.from_numpy(np.asarray(row, np.int64))[None], torch.tensor([len(row)]))
                           for row in rows])
        model.common = torch.linalg.svd(plain, full_matrices=False).Vh[0]
        return model

    def vectors(self, source: Tensor, lengths: Tensor) -> Tensor:
        """(B, D): the vector of each row (B, S) of ids, of which the first `lengths` (B,) are real."""
        live = length_mask(lengths, source.shape[1])
        source = torch.where(live, source, len(self.elements)).sort(1).values  # rounding must not tell an order either
        source = torch.where(live, source, 0)
        weights = self.a / (self.a + self.frequency[source]) * live
        mean = (weights[..., None] * self.elements[source]).sum(1) / lengths[:, None]
        return mean - (mean @ self.common)[:, None] * self.common
