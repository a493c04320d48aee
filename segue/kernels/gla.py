"""Gated linear attention (Yang et al. 2024, arXiv 2312.06635):
S_t = diag(exp g_t) S_{t-1} + k_t v_t^T, y_t = S_t^T q_t. On a GPU, long sequences take fla's kernels where they are
installed (`segue.kernels.fla`); everything else takes the plain torch form here."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from segue.kernels import fla

CHUNK = 32  # measured on CPUs: 16 is 1.1 to 1.4 times as slow, 64 would need a higher floor
FLOOR = -5.0
"""No log decay may be below this: over half a chunk, exp(-sum of log decays) must stay finite, also in bfloat16."""


def gla_reference(q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, state: Tensor, starts: Tensor | None = None,
                  ) -> tuple[Tensor, Tensor]:
    """The naive loop. q, k, g: (B, T, H, K); v: (B, T, H, E); state: (B, H, K, E); starts: (B, T) bool or None.
    g: None never forgets, which is plain linear attention.

    Returns outputs (B, T, H, E) and the last state.
    """
    outputs = []
    for t in range(q.shape[1]):
        decay = torch.ones_like(k[:, t]) if g is None else g[:, t].exp()
        if starts is not None:
            decay = decay.masked_fill(starts[:, t, None, None], 0.0)
        state = decay[..., None] * state + k[:, t, :, :, None] * v[:, t, :, None]
        outputs.append((q[:, t, :, :, None] * state).sum(-2))
    return (torch.stack(outputs, 1) if outputs else torch.zeros_like(v)), state


def gla(q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, state: Tensor, starts: Tensor | None = None,
        lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """As `gla_reference`, chunk by chunk: matrix products inside a chunk, one state update between chunks.

    g must not be below FLOOR. With `lengths` (B,) the returned state is the one after that many nodes. Decays and the
    state are kept in float32 at least, also where the products are in bfloat16.
    """
    batch, n, heads, _ = q.shape
    if n == 0:
        return torch.zeros_like(v), state
    if n == 1 and starts is None and lengths is None:  # a step
        final = (state if g is None else g[:, 0, :, :, None].exp() * state) + k[:, 0, :, :, None] * v[:, 0, :, None]
        return (q[:, 0, :, :, None] * final).sum(-2)[:, None].to(v.dtype), final.to(state.dtype)
    if lengths is not None:  # nodes past the length neither write nor decay
        live = (torch.arange(n, device=q.device) < lengths[:, None])[..., None, None]
        k, g = k * live, None if g is None else g * live
        starts = None if starts is None else starts & live[:, :, 0, 0]
    if fla.supports("linear" if g is None else "gla", v, k.shape[-1]):
        y, final = fla.gla(q, k, v, g, state, starts)
        return y, final.to(state.dtype)
    chunk = -(-n // -(-n // CHUNK))  # as long as each other, so that little is filled up
    pad = -n % chunk

    def chunked(x: Tensor) -> Tensor:  # (B, T, H, X) -> (B, H, T / C, C, X)
        return F.pad(x, (0, 0, 0, 0, 0, pad)).unflatten(1, (-1, chunk)).permute(0, 3, 1, 2, 4)

    kind = v.dtype
    wide = torch.promote_types(kind, torch.float32) if g is None else torch.promote_types(g.dtype, torch.float32)
    q, k, v = chunked(q), chunked(k), chunked(v)
    if g is None:
        inner, outer, keys, from_state, carried = q.to(kind), k.to(kind), k, q, q.new_ones(1, 1, q.shape[2], 1, 1)
    else:
        decay = chunked(g).to(wide).cumsum(-2)
        total = decay[..., -1:, :]
        middle = decay[..., chunk // 2, None, :].detach()  # any would do: pairs only meet in differences
        inner, outer = (q * (decay - middle).exp()).to(kind), (k * (middle - decay).exp()).to(kind)
        keys, carried = k * (total - decay).exp(), total[..., 0, :, None].exp()
        from_state = q * decay.exp()
    seen = torch.ones(chunk, chunk, dtype=torch.bool, device=q.device).tril()
    if starts is not None:
        # Documents inside a chunk: a pair must share one, the carried state reaches only the first, and only the
        # last is carried on.
        document = F.pad(starts, (0, pad)).unflatten(1, (-1, chunk)).long().cumsum(-1)[:, None]  # (B, 1, T / C, C)
        seen = seen & (document[..., :, None] == document[..., None, :])
        keys = keys * (document == document[..., -1:])[..., None]
        carried = carried * (document[..., -1, None, None] == 0)
        from_state = from_state * (document == 0)[..., None]
    local = (inner @ outer.transpose(-1, -2)).masked_fill(~seen, 0.0) @ v
    writes = (keys.to(kind).transpose(-1, -2) @ v).to(wide)
    final = state.to(wide)
    befores = []  # the state before each chunk; taken apart by unbind, whose gradient is one stack
    for keeps, adds in zip(carried.unbind(2), writes.unbind(2)):
        befores.append(final)
        final = torch.addcmul(adds, keeps, final)
    y = (local + from_state.to(kind) @ torch.stack(befores, 2).to(kind)).flatten(2, 3)[:, :, :n]
    return y.transpose(1, 2), final.to(state.dtype)
