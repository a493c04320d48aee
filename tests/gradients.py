"""What the tests of kernels share: outputs with their gradients, and how near two lists of tensors lie."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def with_gradients(function: Any, inputs: list[Tensor], *others: Any, given: int | None = None) -> list[Tensor]:
    """The first `given` outputs (default: all) of function(*inputs, *others), which all learn, and the gradients of a
    sum of them with fixed random weights."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    outputs = function(*inputs, *others)
    outputs = list(outputs[:given]) if isinstance(outputs, tuple) else [outputs]
    generator = torch.Generator().manual_seed(5)
    wide = [torch.promote_types(y.dtype, torch.float64) for y in outputs]
    loss = sum((y * torch.randn(y.shape, generator=generator, dtype=kind).to(y.dtype)).sum().real
               for y, kind in zip(outputs, wide))
    return outputs + list(torch.autograd.grad(loss, inputs))  # type: ignore[arg-type]


def agree(actual: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    """Equal but for `tolerance`, of the largest number where that is above 1; all finite."""
    for index, (a, b) in enumerate(zip(actual, expected, strict=True)):
        assert a.shape == b.shape and a.isfinite().all(), index
        if b.numel():
            assert (a - b).abs().max() <= tolerance * max(1.0, float(b.detach().abs().max())), index
