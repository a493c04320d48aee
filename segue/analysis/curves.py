"""Means at each position of a sequence, with confidence intervals."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from segue.errors import SegueError


@dataclass(frozen=True)
class Curve:
    """mean, low, high: (T,), the mean at each position and the ends of its bootstrap interval."""

    mean: Tensor
    low: Tensor
    high: Tensor


def per_position_curve(values: Tensor, draws: int = 1000, level: float = 0.9, seed: int = 0) -> Curve:
    """The mean of values (N, T) at each position over the N rows, and its bootstrap interval of confidence `level`,
    from `draws` resamples of the rows. nan: not measured there."""
    if values.dim() != 2 or not len(values) or not 0 < level < 1:
        raise SegueError(f"a curve is of rows (N, T) at a level between 0 and 1, not of {tuple(values.shape)} at "
                         f"{level}")
    generator = torch.Generator().manual_seed(seed)
    values = values.double()
    valid, filled = (~values.isnan()).double(), values.nan_to_num()
    counts = torch.stack([torch.bincount(torch.randint(len(values), (len(values),), generator=generator),
                                         minlength=len(values)) for _ in range(draws)]).double()
    means = (counts @ filled) / (counts @ valid)
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = means.nanquantile(ends, 0)
    return Curve(values.nanmean(0), low, high)
