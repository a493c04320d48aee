"""State space duality (Dao & Gu 2024, arXiv 2405.21060): S_t = exp(g_t) S_{t-1} + w_t k_t v_t^T, y_t = S_t^T q_t + d
v_t, with one log decay g, write strength w and skip d per head. A pair's decay is then a number, which needs no bound
(compare `segue.kernels.gla`). On a CPU, in float32 and float64, long sequences take compiled loops
(`segue.kernels.cpu.ssd`), on a GPU fla's kernels (`segue.kernels.fla`); everything else takes the plain torch form.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from segue.kernels import fla
from segue.kernels.compiled import as_array, as_lines, as_mask, runs_compiled

CHUNK = 64


def split_projection(u: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Split u into values (B, T, H, E), keys and queries (B, T, G, K); see `ssd_reference`."""
    heads, keys, width = state.shape[1:]
    shared = (u.shape[2] - heads * width) // 2
    v, k, q = u.split([heads * width, shared, shared], -1)
    return v.unflatten(-1, (heads, width)), k.unflatten(-1, (-1, keys)), q.unflatten(-1, (-1, keys))


def ssd_reference(u: Tensor, write: Tensor, g: Tensor, skip: Tensor, state: Tensor, starts: Tensor | None = None,
                  ) -> tuple[Tensor, Tensor]:
    """The naive loop. u: (B, T, H E + 2 G K), the values of H heads, then keys and then queries of G groups, each
    shared by H / G heads. write, g: (B, T, H). skip: (H,). state: (B, H, K, E). starts: (B, T) bool or None, the state
    is zero before these.

    Returns outputs (B, T, H E) and the last state.
    """
    outputs, (v, k, q) = [], split_projection(u, state)
    q, k = (x.repeat_interleave(v.shape[2] // x.shape[2], 2) for x in (q, k))
    for t in range(q.shape[1]):
        if starts is not None:
            state = state * ~starts[:, t, None, None, None]
        written = (write[:, t, :, None] * k[:, t])[..., None] * v[:, t, :, None]
        state = g[:, t, :, None, None].exp() * state + written
        outputs.append((q[:, t, :, :, None] * state).sum(-2) + skip[:, None] * v[:, t])
    return (torch.stack(outputs, 1) if outputs else v).flatten(2), state


def ssd(u: Tensor, write: Tensor, g: Tensor, skip: Tensor, state: Tensor, starts: Tensor | None = None,
        lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """As `ssd_reference`, chunk by chunk: matrix products inside a chunk, one state update between chunks.

    With `lengths` (B,) the returned state is the one after that many nodes. Decays and the state are kept in float32
    at least.
    """
    if u.shape[1] == 0:
        return split_projection(u, state)[0].flatten(2), state
    if lengths is not None:  # nodes past the length neither write nor decay
        live = torch.arange(u.shape[1], device=u.device) < lengths[:, None]
        write, g = write * live[..., None], g * live[..., None]
        starts = None if starts is None else starts & live
    kind, kept = u.dtype, state.dtype
    if u.device.type == "cpu":
        wide = torch.promote_types(torch.promote_types(kind, g.dtype), torch.promote_types(kept, torch.float32))
        u, write, g, skip, state = (x.to(wide) for x in (u, write, g, skip, state))
    if runs_compiled(u):
        y, final, _ = _SSD.apply(u, write, g, skip, state, as_mask(u, starts), torch.is_grad_enabled())
    else:
        v, k, q = split_projection(u, state)
        run = fla.ssd if fla.supports("ssd", v, k.shape[-1]) else _chunked
        y, final = run(q, k, v * write[..., None].to(v.dtype), g, state, starts)
        y = (y + v * skip[:, None].to(v.dtype)).flatten(2)
    return y.to(kind), final.to(kept)


class _SSD(torch.autograd.Function):
    """The compiled form; also returns the states before the chunks."""

    @staticmethod
    def forward(u: Tensor, write: Tensor, g: Tensor, skip: Tensor, state: Tensor, starts: Tensor, learning: bool,
                ) -> tuple[Tensor, Tensor, Tensor]:
        from segue.kernels.cpu import ssd, threads

        (rows, length), (heads, _, width) = u.shape[:2], state.shape[1:]
        y, final = u.new_empty(rows, length, heads * width), u.new_empty(state.shape)
        kept = u.new_empty(rows, -(-length // ssd.CHUNK) if learning else 0, *state.shape[1:])
        threads.parallel_for(ssd.forward, _tasks(u, state), _groups(u, state), as_lines(u),
                             *map(as_array, (write, g, skip, starts, state)), *(x.numpy() for x in (y, final, kept)))
        return y, final, kept

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(output[2])
        ctx.set_materialize_grads(True)
        ctx.save_for_backward(*inputs[:4], inputs[5], output[2])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor, dfinal: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        from segue.kernels.cpu import ssd, threads

        u, write, g, skip, starts, kept = ctx.saved_tensors
        rows, length, heads = g.shape
        tasks, keys = _tasks(u, dfinal), dfinal.shape[2]
        du, dwrite, dg, dstate = (torch.empty(x.shape, dtype=x.dtype) for x in (u, write, g, dfinal))
        shared = u.shape[2] - heads * dfinal.shape[3]
        groups = _groups(u, dfinal)
        dshared = u.new_empty(tasks // (rows * groups), rows, length, 2, groups, keys)
        dskip = u.new_zeros(rows, heads)
        threads.parallel_for(ssd.backward, tasks, groups, as_lines(u), *map(as_array, (write, g, skip, starts, kept)),
                             as_lines(dy), as_array(dfinal),
                             *(x.numpy() for x in (du, dshared, dwrite, dg, dskip, dstate)))
        torch.sum(dshared.flatten(3), 0, out=du[..., -shared:])
        return du, dwrite, dg, dskip.sum(0), dstate, None, None


def _groups(u: Tensor, state: Tensor) -> int:
    heads, keys, width = state.shape[1:]
    return (u.shape[2] - heads * width) // (2 * keys)


def _tasks(u: Tensor, state: Tensor) -> int:
    from segue.kernels.cpu import ssd

    heads, groups = state.shape[1], _groups(u, state)
    return u.shape[0] * groups * -(-(heads // groups) // ssd.HEADS)


def _chunked(q: Tensor, k: Tensor, v: Tensor, g: Tensor, state: Tensor, starts: Tensor | None) -> tuple[Tensor, Tensor]:
    """The plain torch form: q, k (B, T, G, K), v (B, T, H, E) -> y (B, T, H, E) and the last state."""
    _, n, heads, width = v.shape
    groups = q.shape[2]
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
