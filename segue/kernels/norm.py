"""A norm with a SiLU gate: the gate before the norm, as in Mamba-2 (Dao & Gu 2024, arXiv 2405.21060), or after it, as
in most recurrences. On a CPU, long sequences take one compiled pass (`segue.kernels.cpu.norm`)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from segue.kernels.compiled import as_array, as_lines, runs_compiled
from segue.kernels.cpu.buffers import pooled_empty


def gated_norm_reference(y: Tensor, gate: Tensor, scale: Tensor, groups: int = 1, eps: float = 1e-5,
                         late: bool = False, beside: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """scale v / sqrt(mean of v^2 + eps), v = y silu(gate), the mean over each of `groups` equal parts of the features.

    y, gate: (B, T, D). scale: (D,). late: the gate comes after the norm: v = y, and the result is multiplied by
    silu(gate). beside: near (B, T, D) and skip (D,), only if `late`: the mean is subtracted from v first (a layer
    norm), and skip * near is added before the gate. Returns (B, T, D).
    """
    v = (y if late else y * F.silu(gate)).unflatten(-1, (groups, -1))
    if beside is None:
        v = F.rms_norm(v, v.shape[-1:], None, eps).flatten(-2) * scale
    else:
        v = F.layer_norm(v, v.shape[-1:], eps=eps).flatten(-2) * scale + beside[0] * beside[1]
    return v * F.silu(gate) if late else v


def gated_norm(y: Tensor, gate: Tensor, scale: Tensor, groups: int = 1, eps: float = 1e-5, late: bool = False,
               beside: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """As `gated_norm_reference`, compiled for long sequences on a CPU and then computed in float32 at least."""
    given = (y, gate, scale, *(beside or ()))
    kind = y.dtype
    for x in given[1:]:
        kind = torch.promote_types(kind, x.dtype)
    if y.device.type == "cpu":
        y, gate, scale, *others = (x.to(torch.promote_types(kind, torch.float32)) for x in given)
        beside = (others[0], others[1]) if others else None
    if not runs_compiled(y):
        return gated_norm_reference(y, gate, scale, groups, eps, late, beside).to(kind)
    near, skip = beside or (None, None)
    return _GatedNorm.apply(y, gate, scale, near, skip, groups, eps, late).to(kind)


class _GatedNorm(torch.autograd.Function):
    @staticmethod
    def forward(y: Tensor, gate: Tensor, scale: Tensor, near: Tensor | None, skip: Tensor | None, groups: int,
                eps: float, late: bool) -> Tensor:
        from segue.kernels.cpu import norm, threads

        out = pooled_empty(y, *y.shape)
        threads.parallel_for(norm.gated, _tasks(y), *_kernel_inputs(y, gate, scale, near, skip, late), groups, eps,
                             out.flatten(0, 1).numpy())
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:5])
        ctx.options = inputs[5:]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        from segue.kernels.cpu import norm, threads

        y, gate, scale, near, skip = ctx.saved_tensors
        groups, eps, late = ctx.options
        dy, dgate = pooled_empty(y, *y.shape), pooled_empty(y, *y.shape)
        dnear = dy if near is None else pooled_empty(y, *y.shape)
        dparameters = y.new_zeros(_tasks(y), 2, y.shape[2])
        inputs = _kernel_inputs(y, gate, scale, near, skip, late)
        threads.parallel_for(norm.gated_backward, _tasks(y), *inputs, groups, eps,
                             *(as_array(x.flatten(0, 1)) for x in (dout, dy, dgate, dnear)), dparameters.numpy())
        dscale, dskip = dparameters.sum(0)
        others = (None, None) if near is None else (dnear, dskip)
        return dy, dgate, dscale, *others, None, None, None


def _tasks(y: Tensor) -> int:
    from segue.kernels.cpu import norm

    return -(-y[..., 0].numel() // norm.NODES)


def _kernel_inputs(y: Tensor, gate: Tensor, scale: Tensor, near: Tensor | None, skip: Tensor | None, late: bool,
           ) -> tuple[Any, ...]:
    """The inputs as the compiled passes take them."""
    from segue.kernels.cpu import norm

    mode = norm.GATE_AFTER * late + (norm.CENTRED | norm.SKIP) * (near is not None)
    near, skip = y if near is None else near, scale if skip is None else skip
    return (mode, as_array(y.flatten(0, 1)), as_lines(gate.flatten(0, 1)), as_array(scale),
            as_array(near.flatten(0, 1)), as_array(skip))
