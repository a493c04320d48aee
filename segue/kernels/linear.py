"""Linear attention without decay, both ways (`segue.kernels.gla` without decays is the causal one)."""

from __future__ import annotations

import torch
from torch import Tensor

from segue.kernels.gla import gla


def linear_attention_both_ways(q: Tensor, k: Tensor, v: Tensor, starts: Tensor | None = None) -> Tensor:
    """Each node reads all of its document: y_i = sum over j of (q_i . k_j) v_j, not normalised.

    q, k: (B, T, H, K). v: (B, T, H, E). starts: (B, T) bool, where documents begin, or None. Returns (B, T, H, E).
    """
    if starts is None:
        return torch.einsum("bnhk,bhke->bnhe", q, torch.einsum("bnhk,bnhe->bhke", k, v))
    fresh = v.new_zeros(v.shape[0], v.shape[2], k.shape[3], v.shape[3])
    ends = torch.cat([starts[:, 1:], torch.ones_like(starts[:, :1])], 1)
    before, _ = gla(q, k, v, None, fresh, starts)
    after, _ = gla(q.flip(1), k.flip(1), v.flip(1), None, fresh, ends.flip(1))
    return before + after.flip(1) - (q * k).sum(-1, keepdim=True) * v  # each counts the node itself
