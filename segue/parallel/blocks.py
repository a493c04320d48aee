"""Attention of a block of queries to a block of keys, one of many that are merged: forward it also tells the
log-sum-exp of its scores, and backward it is given that of all blocks together."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from segue.errors import SegueError
from segue.mixers.attention import attend


class BlockAttention(Protocol):
    """q: (B, H, Q, E). k, v: (B, G, K, E) with H a multiple of G. causal: query i sees keys 0 ... i (then Q = K). bias:
    added to the scores, broadcastable to (B, H, Q, K), -inf where nothing is seen."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, causal: bool, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """(B, H, Q, E) and (B, H, Q), float32 at least; a query that sees nothing gives 0 and -inf."""
        ...

    def backward(self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, lse: Tensor, delta: Tensor, causal: bool,
                 bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """The block's part of the gradients of q, k and v. lse, delta: (B, H, Q), of the attention over all blocks: the
        log-sum-exp of its scores, and the sum over features of its output times that output's gradient, `grad`."""
        ...


def _bias(q: Tensor, k: Tensor, causal: bool, bias: Tensor | None) -> Tensor | None:
    if not causal:
        return bias
    later = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).triu(1)
    none = torch.zeros(later.shape, dtype=q.dtype, device=q.device).masked_fill(later, -math.inf)
    return none if bias is None else bias + none


class Naive:
    """Plain products, all scores of the block at once: the reference, on every device."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, causal: bool, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        return attend(q, k, v, bias=_bias(q, k, causal, bias))

    def backward(self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, lse: Tensor, delta: Tensor, causal: bool,
                 bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        groups, scale = k.shape[1], q.shape[-1] ** -0.5
        keys, values = (x.repeat_interleave(q.shape[1] // groups, 1) for x in (k, v))
        scores, bias = (q @ keys.mT) * scale, _bias(q, k, causal, bias)
        scores = scores if bias is None else scores + bias
        weights = (scores - lse.nan_to_num(neginf=0.0)[..., None]).exp().to(q.dtype)
        slope = weights * (grad @ values.mT - delta[..., None]).to(q.dtype) * scale
        dk, dv = (x.unflatten(1, (groups, -1)).sum(2) for x in (slope.mT @ q, weights.mT @ grad))
        return slope @ keys, dk, dv


class Flash:
    """torch's fused attention for CPUs: no more than a tile of the scores exists at once."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, causal: bool, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        if bias is not None:  # the kernel takes one of the two
            bias, causal = self._whole(q, k, _bias(q, k, causal, bias)), False
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal, attn_mask=bias)
        if bias is not None:  # of a query that sees nothing the kernel says 0
            lse = lse.masked_fill((bias == -math.inf).all(-1), -math.inf)
        return out, lse

    @staticmethod
    def _whole(q: Tensor, k: Tensor, bias: Tensor | None) -> Tensor | None:
        """The kernel wants four dimensions of the dtype of q, of which the first two may be 1."""
        if bias is None:
            return None
        return bias.to(q.dtype).expand(*bias.shape[:2], q.shape[2], k.shape[2]).contiguous()

    def backward(self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, lse: Tensor, delta: Tensor, causal: bool,
                 bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        if bias is not None:
            bias, causal = self._whole(q, k, _bias(q, k, causal, bias)), False
        # The kernel makes delta of an output: any whose product with the gradient is delta will do.
        most = grad.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(grad.dtype).tiny)
        unit = grad / most
        out = unit * (delta[..., None] / most / unit.square().sum(-1, keepdim=True).clamp(min=1.0)).to(grad.dtype)
        groups, shared = k.shape[1], q.shape[1] // k.shape[1]
        keys, values = (x.repeat_interleave(shared, 1) if shared > 1 else x for x in (k, v))
        dq, dk, dv = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad.contiguous(), q, keys, values, out, lse.nan_to_num(neginf=0.0), 0.0, causal, attn_mask=bias)
        if shared > 1:
            dk, dv = (x.unflatten(1, (groups, -1)).sum(2) for x in (dk, dv))
        return dq, dk, dv


BACKENDS: dict[str, BlockAttention] = {"naive": Naive(), "flash": Flash()}


def backend_for(q: Tensor, name: str = "auto") -> str:
    """The name of the backend for such queries: `name`, or by "auto" flash on a CPU and naive elsewhere."""
    if name != "auto" and name not in BACKENDS:
        raise SegueError(f"attention backend '{name}' is unknown: choose from auto, {', '.join(BACKENDS)}")
    if name != "auto":
        return name
    return "flash" if q.device.type == "cpu" and q.numel() else "naive"
