"""Sampling by the Gumbel-max trick, and the straight-through estimator (Bengio et al. 2013, arXiv 1308.3432)."""

from __future__ import annotations

import torch
from torch import Tensor


def exponential_noise(scores: Tensor, generator: torch.Generator | None = None,
                      dtype: torch.dtype = torch.float64) -> Tensor:
    """Logarithms of exponential random numbers in the shape of `scores`; their negatives are Gumbel noise.

    dtype: of the uniform numbers that they are made from. In float32 those have 24 bits, so no exponential is below
    6e-8, and an event of probability 1e-7 occurs with 0.73 of its probability, one of 3e-8 with 0.32: samplers of many
    steps then miss rare events.
    """
    uniform = torch.rand(scores.shape, generator=generator, dtype=dtype, device=scores.device)
    return uniform.log_().neg_().log_()


def gumbel_max(scores: Tensor, generator: torch.Generator | None = None, dtype: torch.dtype = torch.float64) -> Tensor:
    """Samples of softmax(scores): (..., V) -> (...) long. Scores may be -inf, but not all of a row."""
    return exponential_noise(scores, generator, dtype).neg_().add_(scores).argmax(-1)


def straight_through(hard: Tensor, soft: Tensor) -> Tensor:
    """The value of `hard`, bitwise, with the gradient of `soft`."""
    return hard + (soft - soft.detach())
