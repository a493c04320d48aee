"""Oracles: scores of sequences, as functions of soft rows of letters that can be maximised by gradients.

An `Oracle` maps rows (B, L, A) of weights of A letters, one-hot for a definite sequence, to (B,) scores, higher is
better, differentiable where possible. A search exploits the errors of the oracle that it maximises, so oracles come in
pairs fitted to different measurements: `train` to maximise, `judge` to evaluate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segue.errors import SegueError
from segue.mixers.layout import Layout
from segue.models.base import padding_starts

Oracle = Callable[[Tensor], Tensor]  # rows (B, L, A) -> scores (B,)
STRENGTH = 1e-6  # of a ridge, as a part of the mean square of the features


@dataclass(frozen=True)
class OraclePair:
    """train: the oracle that a search maximises. judge: the one that evaluates its results, which it has not seen."""

    train: Oracle
    judge: Oracle


class NetworkOracle:
    """A regression network as an oracle: its first logit at the last position of a row. model: a `Classifier` of one
    class over any backbone, or a `Flat` network, trained by `segue.objectives.regression`; it is frozen here."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model.eval().requires_grad_(False)

    def __call__(self, rows: Tensor) -> Tensor:
        return self.model(rows).logits[:, -1, 0]


class TableOracle:
    """A complete table of measurements: (A^L,) scores of all sequences of L letters, the first letter counting most.
    It reads the likeliest letter of each position, and has no gradients."""

    def __init__(self, table: Tensor, letters: int) -> None:
        self.table, self.letters = table, letters

    def __call__(self, rows: Tensor) -> Tensor:
        return self.table[sequence_index(rows.argmax(-1), self.letters)]


def sequence_index(ids: Tensor, letters: int) -> Tensor:
    """(..., L) ids -> (...) long: the sequences' indices among all of their length, the first letter counting most."""
    return (ids * letters ** torch.arange(ids.shape[-1] - 1, -1, -1, device=ids.device)).sum(-1)


def soft_kmers(rows: Tensor, k: int) -> Tensor:
    """Soft letters (B, L, A) -> the soft overlapping k-mers that start at each position, (B, L - k + 1, A^k), the first
    letter counting most. One-hot letters give one-hot k-mers."""
    words = rows[:, : rows.shape[1] - k + 1]
    for shift in range(1, k):
        letter = rows[:, shift : rows.shape[1] - k + 1 + shift]
        words = (words[..., :, None] * letter[..., None, :]).flatten(-2)
    return words


class Encoder:
    """A frozen backbone's features of soft rows: the mean of its last hidden vectors over a row's letters.

    backbone: anything with `hidden(rows, layout)` -> (B, T, D): a `Stack` or a `Classifier` over any mixers.
    vocabulary: number of its ids. letters: (A,) its ids of the A letters of a row. before: ids prepended to each row.
    k: the backbone reads overlapping k-mers (DNABERT); `letters` are then its (A^k,) ids of the k-mers, the first
    letter counting most.
    """

    def __init__(self, backbone: Any, vocabulary: int, letters: Sequence[int], before: Sequence[int] = (),
                 k: int = 1) -> None:
        self.backbone, self.k = backbone.eval().requires_grad_(False), k
        self.letters = F.one_hot(torch.as_tensor(list(letters)), vocabulary)
        self.before = F.one_hot(torch.as_tensor(list(before), dtype=torch.long), vocabulary)

    def __call__(self, rows: Tensor, lengths: Tensor | None = None) -> Tensor:
        """(B, L, A) -> (B, D). lengths: (B,) long, the rows' lengths without padding (default: L)."""
        rows, lengths = soft_kmers(rows, self.k), None if lengths is None else lengths - self.k + 1
        weight = next(self.backbone.parameters())
        prefix = self.before.to(weight).expand(len(rows), -1, -1)
        inputs = torch.cat([prefix, rows.to(weight) @ self.letters.to(weight)], 1)
        ends = torch.full((len(rows),), inputs.shape[1], device=rows.device) if lengths is None else \
            lengths + len(self.before)
        starts = padding_starts(ends, inputs.shape[1])
        layout = Layout.chain((len(rows), inputs.shape[1]), starts=starts, device=rows.device)
        hidden = self.backbone.hidden(inputs, layout)[:, len(self.before) :]
        positions = torch.arange(hidden.shape[1], device=rows.device)
        valid_mask = (positions < (ends - len(self.before))[:, None])[..., None]
        return torch.where(valid_mask, hidden, 0.0).sum(1) / valid_mask.sum(1)


def ridge(features: Tensor, targets: Tensor, strength: float = STRENGTH) -> Tensor:
    """The weights (..., D) of ridge regression: features (..., n, D), targets (..., n).

    (X'X + b I)^-1 X'y, or the equal dual form X'(XX' + b I)^-1 y where examples are fewer than features. b: `strength`
    times the mean squared norm of X's rows, trace(XX') / n. No intercept: add a constant feature and centre the
    targets. Differentiable; float64 features are advised.
    """
    n, width = features.shape[-2:]
    penalty = strength * features.square().sum((-2, -1))[..., None, None] / n
    if n < width:
        kernel = features @ features.mT
        eye = torch.eye(n, dtype=features.dtype, device=features.device)
        dual = torch.linalg.solve(kernel + penalty * eye, targets[..., None])
        return (features.mT @ dual)[..., 0]
    eye = torch.eye(width, dtype=features.dtype, device=features.device)
    return torch.linalg.solve(features.mT @ features + penalty * eye, features.mT @ targets[..., None])[..., 0]


@dataclass(frozen=True)
class RidgeHead:
    """A linear head on features, fitted in closed form: (B, D) -> (B,) scores in the targets' units, float64.

    weights: (D,), for standardised targets. mean, scale: of the targets.
    """

    weights: Tensor
    mean: float = 0.0
    scale: float = 1.0

    @staticmethod
    def fit(features: Tensor, targets: Tensor, strength: float = STRENGTH) -> RidgeHead:
        """features: (n, D); targets: (n,). See `ridge`."""
        standard, mean, scale = standardise(features, targets)
        return RidgeHead(ridge(features.double(), standard, strength), mean, scale)

    @staticmethod
    def bagged(features: Tensor, targets: Tensor, count: int = 5, strength: float = STRENGTH,
               generator: torch.Generator | None = None) -> RidgeHead:
        """The mean of `count` heads, each fitted to as many examples drawn with replacement."""
        standard, mean, scale = standardise(features, targets)
        drawn = torch.randint(len(standard), (count, len(standard)), generator=generator)
        weights = [ridge(features[rows].double(), standard[rows], strength) for rows in drawn]
        return RidgeHead(torch.stack(weights).mean(0), mean, scale)

    def standard(self, features: Tensor) -> Tensor:
        """(B,) scores in standard deviations of the targets from their mean."""
        return features.double() @ self.weights

    def __call__(self, features: Tensor) -> Tensor:
        return self.standard(features) * self.scale + self.mean


def standardise(features: Tensor, targets: Tensor) -> tuple[Tensor, float, float]:
    """Standardised targets, their mean and their standard deviation."""
    if len(features) != len(targets) or len(targets) < 2:
        raise SegueError(f"{len(features)} rows of features and {len(targets)} scores: give as many of both, at least "
                         "2")
    targets = targets.double()
    mean, scale = float(targets.mean()), float(targets.std(correction=0)) or 1.0
    return (targets - mean) / scale, mean, scale


@dataclass(frozen=True)
class RidgeOracle:
    """A ridge head on features of soft rows, in standard deviations of the scores that it was fitted to."""

    features: Callable[[Tensor], Tensor]
    head: RidgeHead = field(repr=False)

    def __call__(self, rows: Tensor) -> Tensor:
        return self.head.standard(self.features(rows))
