"""The gated root-mean-square norm of Mamba-2 (Dao & Gu 2024, arXiv 2405.21060)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from segue.kernels.scan import _array, _lines, compiles


def gated_norm_reference(y: Tensor, gate: Tensor, scale: Tensor, groups: int = 1, eps: float = 1e-5) -> Tensor:
    """scale v / sqrt(mean of v^2 + eps), v = y silu(gate), the mean over each of `groups` equal parts of the features.

    y, gate: (B, T, D). scale: (D,). Returns (B, T, D).
    """
    opened = (y * F.silu(gate)).unflatten(-1, (groups, -1))
    return F.rms_norm(opened, opened.shape[-1:], None, eps).flatten(-2) * scale


def gated_norm(y: Tensor, gate: Tensor, scale: Tensor, groups: int = 1, eps: float = 1e-5) -> Tensor:
    """As `gated_norm_reference`, compiled for long sequences on a CPU and then computed in float32 at least."""
    kind = torch.promote_types(torch.promote_types(y.dtype, gate.dtype), scale.dtype)
    if y.device.type == "cpu":
        y, gate, scale = (x.to(torch.promote_types(kind, torch.float32)) for x in (y, gate, scale))
    if not compiles(y):
        return gated_norm_reference(y, gate, scale, groups, eps).to(kind)
    return _GatedNorm.apply(y, gate, scale, groups, eps).to(kind)


class _GatedNorm(torch.autograd.Function):
    @staticmethod
    def forward(y: Tensor, gate: Tensor, scale: Tensor, groups: int, eps: float) -> Tensor:
        from segue.kernels.cpu import norm, threads

        out = y.new_empty(y.shape)
        threads.share(norm.gated, -(-out[..., 0].numel() // norm.NODES), _array(y.flatten(0, 1)),
                      _lines(gate.flatten(0, 1)), _array(scale), groups, eps, out.flatten(0, 1).numpy())
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:3])
        ctx.options = inputs[3:]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        from segue.kernels.cpu import norm, threads

        y, gate, scale = ctx.saved_tensors
        tasks = -(-y[..., 0].numel() // norm.NODES)
        dy, dgate, dscale = y.new_empty(y.shape), y.new_empty(y.shape), y.new_zeros(tasks, y.shape[2])
        threads.share(norm.gated_backward, tasks, _array(y.flatten(0, 1)), _lines(gate.flatten(0, 1)), _array(scale),
                      *ctx.options, _array(dout.flatten(0, 1)),
                      *(x.numpy() for x in (dy.flatten(0, 1), dgate.flatten(0, 1), dscale)))
        return dy, dgate, dscale.sum(0), None, None
