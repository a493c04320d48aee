"""What designs are worth, and how different they are: reward alone hides a search that ends in one sequence."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from segue.design.oracles import numbers
from segue.errors import SegueError


@dataclass(frozen=True)
class Percentiles:
    """Scores of designs, as parts of the way from `least` to `most` of all that was ever measured."""

    best: float
    median: float
    mean: float


def percentile_report(scores: Tensor, least: float, most: float) -> Percentiles:
    """The 100th and the 50th percentile of normalised scores (the protocol of design-bench takes 128 designs)."""
    if not most > least:
        raise SegueError(f"scores from {least} to {most} span nothing: give the least and the most of the full table")
    parts = (scores.double() - least) / (most - least)
    return Percentiles(float(parts.max()), float(parts.quantile(0.5)), float(parts.mean()))


def diversity(ids: Tensor, letters: int, k: int = 3, natural: Tensor | None = None) -> dict[str, float]:
    """How different sequences (B, L) are: `distinct`, the share that is none of the others before it; `entropy`, nats
    of the B sequences as they were drawn (at most log B); `apart`, the mean share of places in which two differ; and
    where there are `natural` ones (N, L'), `k-mers`, the correlation of how often both have each word of k letters."""
    _, counts = ids.unique(dim=0, return_counts=True)
    chances = counts.double() / len(ids)
    letter = F.one_hot(ids, letters).double().sum(0)  # (L, A) how many have each letter there
    pairs = len(ids) * (len(ids) - 1)
    same = (letter * (letter - 1)).sum() / (pairs * ids.shape[1]) if pairs else math.nan
    found = {"distinct": len(counts) / len(ids), "entropy": float(-(chances * chances.log()).sum()),
             "apart": 1 - float(same)}
    if natural is not None:
        found["k-mers"] = float(torch.corrcoef(torch.stack([words(ids, letters, k), words(natural, letters, k)]))[0, 1])
    return found


def words(ids: Tensor, letters: int, k: int) -> Tensor:
    """(A^k,) how many words of k letters there are of each sort."""
    return numbers(ids.unfold(1, k, 1), letters).flatten().bincount(minlength=letters**k).double()
