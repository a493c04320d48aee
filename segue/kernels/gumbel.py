"""Drawing from scores by Gumbel-max, and gradients that pass a hard choice (the straight-through estimator; Bengio et
al. 2013, arXiv 1308.3432)."""

from __future__ import annotations

import torch
from torch import Tensor


def exponential_noise(scores: Tensor, generator: torch.Generator | None = None,
                      dtype: torch.dtype = torch.float64) -> Tensor:
    """Logarithms of exponential waiting times, the shape of `scores`; their negatives are Gumbel noise.

    dtype: of the uniform numbers they are made of. In float32 those have 24 bits, so that none waits for less than
    6e-8, and an event of chance 1e-7 comes with 0.73 of its chance, one of 3e-8 with 0.32: samplers of many steps then
    miss what is rare.
    """
    uniform = torch.rand(scores.shape, generator=generator, dtype=dtype, device=scores.device)
    return uniform.log_().neg_().log_()


def gumbel_max(scores: Tensor, generator: torch.Generator | None = None, dtype: torch.dtype = torch.float64) -> Tensor:
    """Exact draws from softmax(scores): (..., V) -> (...) long. Scores may be -inf, but not all of a row."""
    return exponential_noise(scores, generator, dtype).neg_().add_(scores).argmax(-1)


def straight_through(hard: Tensor, soft: Tensor) -> Tensor:
    """`hard` itself, to the last bit, with the gradient of `soft`."""
    return hard + (soft - soft.detach())
