"""Metrics of designs: normalised scores, and diversity, since scores alone hide a search that ends in one sequence."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from segue.design.oracles import sequence_index
from segue.errors import SegueError


@dataclass(frozen=True)
class Percentiles:
    """Scores of designs, normalised to 0 at the least and 1 at the highest score ever measured."""

    best: float
    median: float
    mean: float


def percentile_report(scores: Tensor, least: float, most: float) -> Percentiles:
    """The 100th and the 50th percentile of normalised scores (the protocol of design-bench takes 128 designs)."""
    if not most > least:
        raise SegueError(f"scores from {least} to {most} span nothing: give the least and the most of the full table")
    normalised = (scores.double() - least) / (most - least)
    return Percentiles(float(normalised.max()), float(normalised.quantile(0.5)), float(normalised.mean()))


def diversity(ids: Tensor, letters: int, k: int = 3, natural: Tensor | None = None) -> dict[str, float]:
    """Diversity of sequences (B, L): `distinct`, the share of different sequences; `entropy` of the empirical
    distribution of the B sequences, in nats (at most log B); `apart`, the mean share of positions in which a pair
    differs; and with `natural` sequences (N, L'), `k-mers`, the correlation of both sets' k-mer counts."""
    _, counts = ids.unique(dim=0, return_counts=True)
    frequencies = counts.double() / len(ids)
    letter_counts = F.one_hot(ids, letters).double().sum(0)  # (L, A) sequences with each letter at each position
    pairs = len(ids) * (len(ids) - 1)
    identity = (letter_counts * (letter_counts - 1)).sum() / (pairs * ids.shape[1]) if pairs else math.nan
    report = {"distinct": len(counts) / len(ids), "entropy": float(-(frequencies * frequencies.log()).sum()),
              "apart": 1 - float(identity)}
    if natural is not None:
        both = torch.stack([kmer_counts(ids, letters, k), kmer_counts(natural, letters, k)])
        report["k-mers"] = float(torch.corrcoef(both)[0, 1])
    return report


def kmer_counts(ids: Tensor, letters: int, k: int) -> Tensor:
    """(A^k,) counts of k-mers."""
    return sequence_index(ids.unfold(1, k, 1), letters).flatten().bincount(minlength=letters**k).double()
