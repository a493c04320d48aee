"""The delta rule with M generalised Householder steps per token: S <- (I - beta k k^T) S + beta k v^T for each (k, v,
beta) of the token, then y = S^T q (Yang et al. 2024, arXiv 2406.06484; Siems et al. 2025, arXiv 2502.10297).

On a CPU, in float32 and float64, long sequences take compiled loops (`segue.kernels.cpu.chunks`). On a GPU, in
half precision, they take fla's kernels (`segue.kernels.fla`)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from segue.kernels import fla
from segue.kernels.compiled import as_array, as_lines, as_mask, chunk_count, runs_compiled
from segue.kernels.cpu.buffers import pooled_empty

CHUNK = 32  # steps solved together


def delta_reference(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, state: Tensor, starts: Tensor | None = None,
                    ) -> tuple[Tensor, Tensor]:
    """The naive loop. q: (B, T, H, K); k: (B, T, M, H, K); v: (B, T, M, H, E); beta: (B, T, M, H), from 0 to 2 for keys
    of length 1; state: (B, H, K, E); starts: (B, T) bool or None, the state is zero before these.

    Returns outputs (B, T, H, E) and the last state.
    """
    outputs = []
    for t in range(q.shape[1]):
        if starts is not None:
            state = state.masked_fill(starts[:, t, None, None, None], 0.0)
        for key, value, strength in zip(k[:, t].unbind(1), v[:, t].unbind(1), beta[:, t].unbind(1)):
            known = (state * key[..., None]).sum(-2)
            state = state + (strength[..., None] * key)[..., None] * (value - known)[..., None, :]
        outputs.append((q[:, t, :, :, None] * state).sum(-2))
    return (torch.stack(outputs, 1) if outputs else v.new_zeros(*q.shape[:3], v.shape[-1])), state


def normalise_qk(q: Tensor, k: Tensor, least: float) -> tuple[Tensor, Tensor]:
    """Normalise queries to length K^-0.5 and keys to length 1 (vectors shorter than `least` less than that)."""
    return F.normalize(q, dim=-1, eps=least) * q.shape[-1] ** -0.5, F.normalize(k, dim=-1, eps=least)


def delta(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, state: Tensor, starts: Tensor | None = None,
          lengths: Tensor | None = None, least: float = 0.0) -> tuple[Tensor, Tensor]:
    """As `delta_reference`, chunk by chunk in the WY form: the writes of a chunk solve one triangular system, and the
    states between chunks follow by matrix products.

    least: normalise queries and keys first (`normalise_qk`), unless it is 0. With `lengths` (B,) the returned state is
    the one after that many nodes. Computed in float32 at least, since a product of reflections does not survive
    bfloat16, except where fla's kernels take half precision on a GPU; y has the dtype of v, the state that of `state`.
    """
    batch, n = k.shape[:2]
    if n == 0:
        return v.new_zeros(*q.shape[:3], v.shape[-1]), state
    kind, kept = v.dtype, state.dtype
    if fla.supports("delta", v, k.shape[-1]):
        with torch.autocast("cuda", enabled=False):
            if least:
                q, k = normalise_qk(q.float(), k.float(), least)
            beta, starts = _mask_padding(beta, starts, lengths)
            y, final = fla.delta(q, k, v, beta, state, starts)
            return y, final.to(kept)
    wide = torch.promote_types(kind, torch.promote_types(kept, torch.float32))
    q, k, v, beta, state = (x.to(wide) for x in (q, k, v, beta, state))
    with torch.autocast(q.device.type, enabled=False):
        if runs_compiled(q) and not (n == 1 and starts is None and lengths is None):
            ends = torch.full((batch,), n) if lengths is None else lengths
            k, v, beta = (x.flatten(1, 2) for x in (k, v, beta))
            y, final, *_ = _Delta.apply(q, k, v, beta, state, as_mask(q, starts), ends, least, torch.is_grad_enabled())
            return y.to(kind), final.to(kept)
        if least:
            q, k = normalise_qk(q, k, least)
        if n == 1 and starts is None and lengths is None:  # a step
            y, final = delta_reference(q, k, v, beta, state)
        else:
            y, final = _by_chunks(q, k, v, beta, state, starts, lengths)
        return y.to(kind), final.to(kept)


def _by_chunks(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, state: Tensor, starts: Tensor | None,
               lengths: Tensor | None) -> tuple[Tensor, Tensor]:
    """`delta` in torch, without normalising queries and keys."""
    n, steps = k.shape[1:3]
    beta, starts = _mask_padding(beta, starts, lengths)
    chunk = min(max(1, CHUNK // steps), n)
    pad = -n % chunk

    def chunked(x: Tensor) -> Tensor:  # (B, T, M, H, X) -> (B, H, T / C, C M, X)
        x = F.pad(x, (0, 0, 0, 0, 0, 0, 0, pad)).unflatten(1, (-1, chunk))
        return x.permute(0, 4, 1, 2, 3, 5).flatten(3, 4)

    q, k, v, beta = chunked(q[:, :, None]), chunked(k), chunked(v), chunked(beta[..., None])
    before, seen = _step_order(chunk, steps, q.device)
    from_state, writes = q, k
    keeps = None
    if starts is not None:
        # Documents inside a chunk: a pair must share one, the carried state reaches only the first, and only the
        # last is carried on.
        document = F.pad(starts, (0, pad)).unflatten(1, (-1, chunk)).long().cumsum(-1)[:, None]  # (B, 1, T / C, C)
        row = document.repeat_interleave(steps, -1)
        before = before & (row[..., :, None] == row[..., None, :])
        seen = seen & (document[..., :, None] == row[..., None, :])
        from_state = q * (document == 0)[..., None]
        writes = k * (row == row[..., -1:])[..., None]
        keeps = (document[..., -1, None, None] == 0).to(state.dtype)
        reach = (row == 0)[..., None]
    system = (beta * k @ k.mT).masked_fill(~before, 0.0)
    solved = torch.linalg.solve_triangular(system, beta * torch.cat([v, k], -1), upper=False, unitriangular=True)
    new, forgets = solved.split([v.shape[-1], k.shape[-1]], -1)
    if starts is not None:
        forgets = forgets * reach
    befores, written, final = [], [], state  # taken apart by unbind, whose gradient is one stack
    for index, (u, w, key) in enumerate(zip(new.unbind(2), forgets.unbind(2), writes.mT.unbind(2))):
        befores.append(final)
        written.append(u - w @ final)
        final = (final if keeps is None else keeps[:, :, index] * final) + key @ written[-1]
    local = (q @ k.mT).masked_fill(~seen, 0.0)
    y = from_state @ torch.stack(befores, 2) + local @ torch.stack(written, 2)
    return y.flatten(2, 3)[:, :, :n].transpose(1, 2), final


def _mask_padding(beta: Tensor, starts: Tensor | None, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Strengths and starts with nodes past each row's length switched off, by strength 0."""
    if lengths is None:
        return beta, starts
    live = torch.arange(beta.shape[1], device=beta.device) < lengths[:, None]
    return beta * live[..., None, None], None if starts is None else starts & live


class _Delta(torch.autograd.Function):
    """k, v: (B, T M, H, ...), beta: (B, T M, H). Gives y, the state, and what backward needs of the chunks."""

    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, state: Tensor, starts: Tensor, lengths: Tensor,
                least: float, learning: bool) -> tuple[Tensor, ...]:
        from segue.kernels.cpu import chunks, threads

        (batch, length, heads, _), width, many = q.shape, v.shape[3], k.shape[1] // q.shape[1]
        tasks = batch * heads
        count = chunk_count(length, max(1, chunks.CHUNK // many), starts) if learning else 0
        y, final = pooled_empty(q, batch, length, heads, width), torch.empty(state.shape, dtype=q.dtype)
        kept = pooled_empty(q, tasks, count, *state.shape[2:])
        errors = pooled_empty(q, tasks, k.shape[1] if learning else 0, width)
        edges = torch.zeros(tasks, count + 1, dtype=torch.long)
        threads.parallel_for(chunks.delta, tasks, *map(as_lines, (q, k, v)), as_array(beta), many,
                             *map(as_array, (starts, lengths, state)), least,
                             *(x.numpy() for x in (y, final, kept, errors, edges)))
        return y, final, kept, errors, edges

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(*output[2:])
        ctx.save_for_backward(*inputs[:2], inputs[3], inputs[5], *output[2:])
        ctx.least = inputs[7]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor, dfinal: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        from segue.kernels.cpu import chunks, threads

        q, k, beta, starts, kept, errors, edges = ctx.saved_tensors
        dq, dk, dv = pooled_empty(q, *q.shape), pooled_empty(q, *k.shape), pooled_empty(q, *k.shape[:3], dy.shape[3])
        dbeta, dstate = pooled_empty(q, *beta.shape), torch.empty(dfinal.shape, dtype=q.dtype)
        tasks, many = q.shape[0] * q.shape[2], k.shape[1] // q.shape[1]
        threads.parallel_for(chunks.delta_backward, tasks, *map(as_lines, (q, k)), as_array(beta), many,
                             as_array(starts), ctx.least, *map(as_array, (kept, errors, edges, dy, dfinal)),
                             *(x.numpy() for x in (dq, dk, dv, dbeta, dstate)))
        return dq, dk, dv, dbeta, dstate, None, None, None, None


def delta_matrix(q: Tensor, k: Tensor, beta: Tensor) -> Tensor:
    """(B, H, M, T, T): the matrix that maps the values of each of the M steps to the outputs, from a zero state."""
    n, steps = k.shape[1:3]
    q, rows = q.transpose(1, 2), k.permute(0, 3, 1, 2, 4).flatten(2, 3)  # (B, H, T M, K)
    strength = beta.permute(0, 3, 1, 2).flatten(2)
    before, seen = _step_order(n, steps, q.device)
    system = (strength[..., None] * rows @ rows.mT).masked_fill(~before, 0.0)
    local = (q @ rows.mT).masked_fill(~seen, 0.0)
    matrix = torch.linalg.solve_triangular(system, local, upper=False, left=False, unitriangular=True)
    return (matrix * strength[..., None, :]).unflatten(-1, (n, steps)).movedim(-1, 2)


def _step_order(tokens: int, steps: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Which steps come before which, (C M, C M) bool, and which come before a token's output, (C, C M) bool."""
    step = torch.arange(tokens * steps, device=device)
    return step[:, None] > step, torch.arange(tokens, device=device)[:, None] >= step // steps
