"""Linear attention without decay: y_t = q_t S_t, S_t = S_{t-1} + k_t v_t^T (Katharopoulos et al. 2020, arXiv
2006.16236).

Nothing is normalised here: a column of ones in v makes the sum that normalises.
"""

from __future__ import annotations

import torch
from torch import Tensor

from segue.kernels.gla import gla


def linear_attention(q: Tensor, k: Tensor, v: Tensor, state: Tensor, starts: Tensor | None = None,
                     lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Each node reads what stands before it, chunk by chunk. q, k: (B, T, H, K); v: (B, T, H, E); state: (B, H, K, E);
    starts, lengths: as of `gla`. Returns outputs (B, T, H, E) and the last state."""
    return gla(q, k, v, None, state, starts, lengths)


def linear_attention_both_ways(q: Tensor, k: Tensor, v: Tensor, starts: Tensor | None = None) -> Tensor:
    """Each node reads all of its document. Shapes as of `linear_attention`."""
    if starts is None:
        return torch.einsum("bnhk,bhke->bnhe", q, torch.einsum("bnhk,bnhe->bhke", k, v))
    fresh = v.new_zeros(v.shape[0], v.shape[2], k.shape[3], v.shape[3])
    ends = torch.cat([starts[:, 1:], torch.ones_like(starts[:, :1])], 1)
    before, _ = linear_attention(q, k, v, fresh, starts)
    after, _ = linear_attention(q.flip(1), k.flip(1), v.flip(1), fresh, ends.flip(1))
    return before + after.flip(1) - (q * k).sum(-1, keepdim=True) * v  # each counts the node itself
