"""Bidirectional linear attention without decay (`segue.kernels.gla` without decays is the causal one)."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from segue.kernels.gla import gla


def linear_attention_both_ways(q: Tensor, k: Tensor, v: Tensor, starts: Tensor | None = None) -> Tensor:
    """Linear attention of each node to its whole document: y_i = sum over j of (q_i . k_j) v_j, not normalised.

    q, k: (B, T, H, K). v: (B, T, H, E). starts: (B, T) bool, where documents begin, or None. Returns (B, T, H, E).
    """
    if starts is None:
        return torch.einsum("bnhk,bhke->bnhe", q, torch.einsum("bnhk,bnhe->bhke", k, v))
    fresh = v.new_zeros(v.shape[0], v.shape[2], k.shape[3], v.shape[3])
    ends = torch.cat([starts[:, 1:], torch.ones_like(starts[:, :1])], 1)
    before, _ = gla(q, k, v, None, fresh, starts)
    after, _ = gla(q.flip(1), k.flip(1), v.flip(1), None, fresh, ends.flip(1))
    return before + after.flip(1) - (q * k).sum(-1, keepdim=True) * v  # each counts the node itself


def linear_attention_on_grid(q: Tensor, k: Tensor, v: Tensor, grid: tuple[int, ...], angles: Tensor) -> Tensor:
    """Linear attention of each node of a grid to all: y_i = sum over j of (sum over e of q_ie k_je cos(d_ije angle_e))
    v_j, where d_ije is the distance of i and j along the axis of feature e.

    The axes have len(angles) features each, in turn; the rest have none. Nodes at the same index of an axis share its
    angles, so their writes are summed first and rotated together.
    q, k: (B, N, H, K), v: (B, N, H, E), the nodes in row-major order. angles: per step along an axis, in float64.
    Returns (B, N, H, E).
    """
    share = len(angles)
    rest = share * len(grid)
    total = linear_attention_both_ways(q[..., rest:], k[..., rest:], v) if rest < k.shape[-1] else torch.zeros_like(v)
    for axis, (size, *own) in enumerate(zip(grid, q.split(share, -1), k.split(share, -1))):
        before, behind = prod(grid[:axis]), prod(grid[axis + 1 :])
        queries, keys, values = (y.unflatten(1, (before, size, behind)) for y in (*own, v))
        place = torch.arange(size, dtype=angles.dtype, device=q.device)
        apart = ((place[:, None] - place)[..., None] * angles[: keys.shape[-1]]).cos().to(v.dtype)
        memory = torch.einsum("mnk,bnhke->bmhke", apart, torch.einsum("bunwhk,bunwhe->bnhke", keys, values))
        total = total + torch.einsum("bunwhk,bnhke->bunwhe", queries, memory).flatten(1, 3)
    return total
