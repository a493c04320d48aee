"""Attention of one block of queries to one block of keys, to be merged with others: forward also returns the
log-sum-exp of the scores, and backward takes the log-sum-exp over all blocks."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from segue.errors import SegueError
from segue.mixers.attention import attend


class BlockAttention(Protocol):
    """Attention of a block. q: (B, H, Q, E). k, v: (B, G, K, E) with H a multiple of G. causal: query i sees keys 0
    ... i (then Q = K). bias: added to the scores, broadcastable to (B, H, Q, K), -inf where a query may not attend."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, causal: bool, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """Output (B, H, Q, E) and log-sum-exp (B, H, Q), at least float32; 0 and -inf for a query that sees nothing."""
        ...

    def backward(self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, lse: Tensor, delta: Tensor, causal: bool,
                 bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """The block's part of the gradients of q, k and v. grad: of the output. lse, delta: (B, H, Q), over all blocks:
        the log-sum-exp of the scores, and the sum over features of output times gradient."""
        ...


def _add_causal_mask(q: Tensor, k: Tensor, causal: bool, bias: Tensor | None) -> Tensor | None:
    if not causal:
        return bias
    later = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).triu(1)
    none = torch.zeros(later.shape, dtype=q.dtype, device=q.device).masked_fill(later, -math.inf)
    return none if bias is None else bias + none


class Naive:
    """The reference, on every device: plain matrix products, with all scores of the block in memory."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, causal: bool, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        return attend(q, k, v, bias=_add_causal_mask(q, k, causal, bias))

    def backward(self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, lse: Tensor, delta: Tensor, causal: bool,
                 bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        groups, scale = k.shape[1], q.shape[-1] ** -0.5
        keys, values = (x.repeat_interleave(q.shape[1] // groups, 1) for x in (k, v))
        scores, bias = (q @ keys.mT) * scale, _add_causal_mask(q, k, causal, bias)
        scores = scores if bias is None else scores + bias
        weights = (scores - lse.nan_to_num(neginf=0.0)[..., None]).exp().to(q.dtype)
        slope = weights * (grad @ values.mT - delta[..., None]).to(q.dtype) * scale
        dk, dv = (x.unflatten(1, (groups, -1)).sum(2) for x in (slope.mT @ q, weights.mT @ grad))
        return slope @ keys, dk, dv


class Flash:
    """torch's fused attention for CPUs, which holds only a tile of the scores at a time."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, causal: bool, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        if bias is not None:  # the kernel takes either a mask or causal
            bias, causal = self._whole(q, k, _add_causal_mask(q, k, causal, bias)), False
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal, attn_mask=bias)
        if bias is not None:  # the kernel returns 0 for a query that sees nothing
            lse = lse.masked_fill((bias == -math.inf).all(-1), -math.inf)
        return out, lse

    @staticmethod
    def _whole(q: Tensor, k: Tensor, bias: Tensor | None) -> Tensor | None:
        """The bias as the kernel wants it: four dimensions (the first two may be 1), in the dtype of q."""
        if bias is None:
            return None
        return bias.to(q.dtype).expand(*bias.shape[:2], q.shape[2], k.shape[2]).contiguous()

    def backward(self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, lse: Tensor, delta: Tensor, causal: bool,
                 bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        if bias is not None:
            bias, causal = self._whole(q, k, _add_causal_mask(q, k, causal, bias)), False
        # The kernel computes delta from an output: pass one whose product with the gradient is delta.
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
