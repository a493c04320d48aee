"""State space duality (Dao & Gu 2024, arXiv 2405.21060): S_t = exp(g_t) S_{t-1} + k_t v_t^T, y_t = S_t^T q_t, with one
log decay g per head. A pair's decay is then a number, which needs no bound (compare `segue.kernels.gla`)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 64


def ssd_reference(q: Tensor, k: Tensor, v: Tensor, g: Tensor, state: Tensor, starts: Tensor | None = None,
                  ) -> tuple[Tensor, Tensor]:
    """The naive loop. q, k: (B, T, G, K), shared by the H / G heads of a group. v: (B, T, H, E). g: (B, T, H).
    state: (B, H, K, E). starts: (B, T) bool or None, the state is zero before these.

    Returns outputs (B, T, H, E) and the last state.
    """
    outputs = []
    q, k = (x.repeat_interleave(v.shape[2] // x.shape[2], 2) for x in (q, k))
    for t in range(q.shape[1]):
        if starts is not None:
            state = state * ~starts[:, t, None, None, None]
        state = g[:, t, :, None, None].exp() * state + k[:, t, :, :, None] * v[:, t, :, None]
        outputs.append((q[:, t, :, :, None] * state).sum(-2))
    return (torch.stack(outputs, 1) if outputs else torch.zeros_like(v)), state


def ssd(q: Tensor, k: Tensor, v: Tensor, g: Tensor, state: Tensor, starts: Tensor | None = None,
        lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """As `ssd_reference`, chunk by chunk: matrix products inside a chunk, one state update between chunks.

    With `lengths` (B,) the state is the one after so many nodes. Decays and the state are kept in float32 at least.
    """
    batch, n, heads, width = v.shape
    groups = q.shape[2]
    if n == 0:
        return torch.zeros_like(v), state
    if lengths is not None:  # nodes past the length neither write nor decay
        live = torch.arange(n, device=q.device) < lengths[:, None]
        k, g = k * live[..., None, None], g * live[..., None]
        starts = None if starts is None else starts & live
    chunk = min(CHUNK, n)
    pad = -n % chunk

    def chunked(x: Tensor) -> Tensor:  # (B, T, Y, X) -> (B, T / C, Y, C, X)
        return F.pad(x, (0, 0, 0, 0, 0, pad)).unflatten(1, (-1, chunk)).transpose(2, 3)

    def shared(x: Tensor) -> Tensor:  # (B, T / C, H, C, X) -> (B, T / C, G, C, H / G * X), beside keys and queries
        return x.unflatten(2, (groups, -1)).transpose(3, 4).flatten(4)

    kind, wide = v.dtype, torch.promote_types(g.dtype, torch.float32)
    q, k, v = chunked(q), chunked(k), chunked(v)
    decay = chunked(g[..., None]).to(wide).cumsum(-2)  # (B, T / C, H, C, 1)
    seen = torch.ones(chunk, chunk, dtype=torch.bool, device=q.device).tril()
    onward, carried, entered = (decay[..., -1:, :] - decay).exp(), decay[..., -1:, :].exp(), decay.exp()
    if starts is not None:
        # A pair must share a document, the carried state reaches only the first of a chunk, only the last goes on.
        document = F.pad(starts, (0, pad)).unflatten(1, (-1, chunk)).long().cumsum(-1)[:, :, None, :, None]
        seen = seen & (document == document.transpose(-1, -2))
        first = document == 0
        onward, carried = onward * (document == document[..., -1:, :]), carried * first[..., -1:, :]
        entered = entered * first
    pairs = (decay - decay.transpose(-1, -2)).masked_fill(~seen, -math.inf).exp().to(kind)
    scores = (q @ k.transpose(-1, -2))[:, :, :, None] * pairs.unflatten(2, (groups, -1))
    local = (scores @ v.unflatten(2, (groups, -1))).flatten(2, 3)
    writes = (k.transpose(-1, -2) @ shared(v * onward.to(kind))).to(wide)
    keeps = shared(carried.expand(*carried.shape[:-1], width))  # (B, T / C, G, 1, H / G * E)
    final = shared(state.to(wide)[:, None])[:, 0]
    befores = []  # the state before each chunk; taken apart by unbind, whose gradient is one stack
    for keep, adds in zip(keeps.unbind(1), writes.unbind(1)):
        befores.append(final)
        final = torch.addcmul(adds, keep, final)
    far = (q @ torch.stack(befores, 1).to(kind)).unflatten(4, (-1, width)).transpose(3, 4).flatten(2, 3)
    y = (local + far * entered.to(kind)).transpose(2, 3).flatten(1, 2)[:, :n]
    return y, final.unflatten(3, (-1, width)).transpose(2, 3).flatten(1, 2).to(state.dtype)
