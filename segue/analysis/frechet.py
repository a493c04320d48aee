"""How far two sets of vectors are from each other as wholes (Fréchet distance; of features of pictures: Heusel et al.
2017, arXiv 1706.08500)."""

from __future__ import annotations

import torch
from torch import Tensor

from segue.errors import SegueError


def frechet(first: Tensor, second: Tensor) -> float:
    """The squared Fréchet distance of the two normal distributions that have the means and covariances of these sets,
    (N, D) and (M, D): |m - n|² + tr(A + B - 2 (A B)^(1/2))."""
    if first.shape[1:] != second.shape[1:] or min(len(first), len(second)) < 2:
        raise SegueError(f"vectors {tuple(first.shape)} and {tuple(second.shape)}: give at least two in each set, all "
                         "of one size")
    means = [x.double().mean(0) for x in (first, second)]
    a, b = (x.double().T.cov().view(x.shape[1], x.shape[1]) for x in (first, second))
    values, vectors = torch.linalg.eigh(a)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    # (A B)^(1/2) has the eigenvalues of (A^(1/2) B A^(1/2))^(1/2), which is symmetric.
    both = torch.linalg.eigvalsh(root @ b @ root).clamp(min=0).sqrt().sum()
    return float((means[0] - means[1]).square().sum() + a.trace() + b.trace() - 2 * both)
