"""Smooth inverse frequency embeddings (SIF: Arora, Liang & Ma 2017): weighted means of element vectors without their
common direction; and element vectors from co-occurrence."""

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
    """Return element vectors (V, width) float32, similar for elements with similar neighbours within `window`, zero for
    elements that never occur.

    The positive pointwise mutual information of pairs is factored by a truncated SVD, which skip-gram with negative
    sampling does implicitly (Levy & Goldberg 2014): left singular vectors times roots of singular values.
    rows: ids (n,). seed: of the randomised SVD (Halko et al. 2011).
    """
    if not 0 < width <= vocabulary or window < 1:
        raise SegueError(f"{width} features of {vocabulary} elements, window {window}: give from 1 to as many features "
                         "as elements, and a window of 1 or more")
    flat = np.concatenate([np.zeros(0, np.int64), *rows]).astype(np.int64)
    document = np.repeat(np.arange(len(rows)), [len(ids) for ids in rows])
    codes: np.ndarray = np.zeros(0, np.int64)
    counts: np.ndarray = np.zeros(0)
    for distance in range(1, window + 1):
        same_document = document[distance:] == document[:-distance]
        a, b = flat[:-distance][same_document], flat[distance:][same_document]
        new_codes, new_counts = np.unique(np.concatenate([a * vocabulary + b, b * vocabulary + a]), return_counts=True)
        codes, inverse = np.unique(np.concatenate([codes, new_codes]), return_inverse=True)
        counts = np.bincount(inverse, np.concatenate([counts, new_counts]), len(codes))
    if not len(codes):
        raise SegueError("no two elements stand in one sequence: there is nothing that occurs together")
    first, second = codes // vocabulary, codes % vocabulary
    element_counts = np.bincount(first, counts, vocabulary)
    information = np.log(counts * counts.sum() / (element_counts[first] * element_counts[second]))
    keep = information > 0
    pmi = torch.sparse_coo_tensor(torch.from_numpy(np.stack([first[keep], second[keep]])),
                                  torch.from_numpy(information[keep]), (vocabulary, vocabulary),
                                  check_invariants=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        singular_vectors, values, _ = torch.svd_lowrank(pmi, min(vocabulary, width + 10), niter=6)
    return (singular_vectors[:, :width] * values[:width].sqrt()).float()


class SIFEmbedding(nn.Module):
    """The vector of a sequence: the mean of its elements' vectors weighted by a / (a + p), minus its projection on the
    common direction, the first right singular vector of the training sequences' vectors. Exactly invariant to order.

    elements: (V, D). frequency: (V,), p, each element's relative frequency. common: (D,), the unit vector to remove,
    zero for none.
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
        """Estimate frequencies and the common direction from rows of ids, which should be the training data alone."""
        counts = torch.bincount(torch.from_numpy(np.concatenate(rows).astype(np.int64)), minlength=len(elements))
        model = cls(elements, counts / counts.sum(), a)
        vectors = torch.cat([model.vectors(torch.from_numpy(np.asarray(row, np.int64))[None], torch.tensor([len(row)]))
                             for row in rows])
        model.common = torch.linalg.svd(vectors, full_matrices=False).Vh[0]
        return model

    def vectors(self, source: Tensor, lengths: Tensor) -> Tensor:
        """Return the vector (B, D) of each row of ids (B, S), of which the first `lengths` (B,) are real; 0 of an empty
        row."""
        mask = length_mask(lengths, source.shape[1])
        # sorted, so that rounding does not depend on the order
        source = torch.where(mask, source, len(self.elements)).sort(1).values
        source = torch.where(mask, source, 0)
        weights = self.a / (self.a + self.frequency[source]) * mask
        mean = (weights[..., None] * self.elements[source]).sum(1) / lengths.clamp(min=1)[:, None]
        return mean - (mean @ self.common)[:, None] * self.common
