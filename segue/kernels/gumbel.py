"""Drawing from scores: Gumbel-max, its soft form (Jang et al. 2017, arXiv 1611.01144; Maddison et al. 2017, arXiv
1611.00712), and gradients that pass a hard choice (straight through; Bengio et al. 2013, arXiv 1308.3432)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from segue.errors import SegueError


def waiting(scores: Tensor, generator: torch.Generator | None = None, dtype: torch.dtype = torch.float64) -> Tensor:
    """Logarithms of exponential waiting times, the shape of `scores`; their negatives are Gumbel noise.

    dtype: of the uniform numbers they are made of. In float32 those have 24 bits, so that none waits for less than
    6e-8, and an event of chance 1e-7 comes with 0.73 of its chance, one of 3e-8 with 0.32: samplers of many steps then
    miss what is rare.
    """
    uniform = torch.rand(scores.shape, generator=generator, dtype=dtype, device=scores.device)
    return uniform.log_().neg_().log_()


def gumbel_max(scores: Tensor, generator: torch.Generator | None = None, dtype: torch.dtype = torch.float64) -> Tensor:
    """Exact draws from softmax(scores): (..., V) -> (...) long. Scores may be -inf, but not all of a row."""
    return waiting(scores, generator, dtype).neg_().add_(scores).argmax(-1)


def gumbel_softmax(scores: Tensor, temperature: float = 1.0, hard: bool = False,
                   generator: torch.Generator | None = None) -> Tensor:
    """Soft draws from softmax(scores), with a gradient: (..., V) -> (..., V) that add up to 1, and come the nearer to
    one-hot rows the lower the temperature. hard: one-hot rows with the soft ones' gradient."""
    if temperature <= 0:
        raise SegueError(f"the temperature of soft draws must be above 0, not {temperature}: gumbel_max is for 0")
    soft = ((scores - waiting(scores, generator).to(scores.dtype)) / temperature).softmax(-1)
    if not hard:
        return soft
    return straight_through(F.one_hot(soft.argmax(-1), soft.shape[-1]).to(soft.dtype), soft)


def straight_through(hard: Tensor, soft: Tensor) -> Tensor:
    """`hard` itself, to the last bit, with the gradient of `soft`."""
    return hard + (soft - soft.detach())
