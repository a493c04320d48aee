"""The matrix memory of the mLSTM (Beck et al. 2024, arXiv 2405.04517): gated linear attention with an exponential input
gate, stabilised by a running maximum m and normalised by n.

m_t = max(log f_t + m_{t-1}, i_t);  [C n]_t = exp(log f_t + m_{t-1} - m_t) [C n]_{t-1} + exp(i_t - m_t) k_t [v_t 1]^T
y_t = C_t^T q_t / (max(|n_t q_t|, exp(-m_t)) + eps),  with log f = log sigmoid of the gate's input

On a CPU, in float32 and float64, long sequences take compiled loops (`segue.kernels.cpu.chunks`).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from segue.kernels.compiled import as_array, as_lines, as_mask, chunk_count, runs_compiled
from segue.kernels.cpu.buffers import pooled_empty

CHUNK = 64
EMPTY = -1e30
"""The running maximum of an empty memory: below any input."""


def _normalised_output(joined: Tensor, m: Tensor, eps: float) -> Tensor:
    """The output from [C n]^T q."""
    return joined[..., :-1] / (torch.maximum(joined[..., -1:].abs(), (-m)[..., None].exp()) + eps)


def mlstm_reference(q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, memory: Tensor, m: Tensor,
                    starts: Tensor | None = None, eps: float = 1e-6) -> tuple[Tensor, Tensor, Tensor]:
    """The naive loop. q, k: (B, T, H, K). v: (B, T, H, E). i, f: (B, T, H), the gates' inputs. memory:
    (B, H, K, E + 1), [C n]. m: (B, H). starts: (B, T) bool or None, the memory is empty again before these.

    Returns the outputs (B, T, H, E), the memory and m. No gradient flows through the maximum, on which y does not
    depend (except for eps); it does flow into the given m, which scales the memory.
    """
    joined, outputs = F.pad(v, (0, 1), value=1.0), []
    for t in range(q.shape[1]):
        if starts is not None:
            memory = memory.masked_fill(starts[:, t, None, None, None], 0.0)
            m = m.masked_fill(starts[:, t, None], EMPTY)
        kept = F.logsigmoid(f[:, t]) + m
        m = torch.maximum(kept, i[:, t]).detach()
        memory = (kept - m).exp()[..., None, None] * memory + (
            (i[:, t] - m).exp()[..., None] * k[:, t])[..., None] * joined[:, t, :, None]
        outputs.append(_normalised_output((q[:, t, :, None] @ memory)[:, :, 0], m, eps))
    return (torch.stack(outputs, 1) if outputs else torch.zeros_like(v)), memory, m


def mlstm(q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, memory: Tensor, m: Tensor,
          starts: Tensor | None = None, lengths: Tensor | None = None,
          eps: float = 1e-6) -> tuple[Tensor, Tensor, Tensor]:
    """As `mlstm_reference`, chunk by chunk: the parallel form inside a chunk, one update of the memory between chunks.

    With `lengths` (B,) the returned memory is the one after that many nodes. Gates and memory are float32 at least.
    """
    n, kind, kinds = q.shape[1], v.dtype, (memory.dtype, m.dtype)
    wide = torch.promote_types(i.dtype, torch.float32)
    exact = torch.promote_types(torch.promote_types(kind, kinds[0]), wide)
    if n == 0:
        return torch.zeros_like(v), memory, m
    if n == 1 and starts is None and lengths is None:  # a step
        q, k, v, i, f, memory, m = (x.to(wide) for x in (q, k, v, i, f, memory, m))
        y, memory, m = mlstm_reference(q, k, v, i, f, memory, m, None, eps)
    elif runs_compiled(i.to(exact)):  # in float32 for bfloat16, too
        q, k, v, i, f, memory, m = (x.to(exact) for x in (q, k, v, i, f, memory, m))
        ends = torch.full(v.shape[:1], n) if lengths is None else lengths
        y, memory, m, *_ = _MLSTM.apply(q, k, v, i, f, memory, m, as_mask(v, starts), ends, eps,
                                        torch.is_grad_enabled())
    else:
        y, memory, m = _by_chunks(q, k, v, i.to(wide), f.to(wide), memory.to(wide), m.to(wide), starts, lengths, eps)
    return y.to(kind), memory.to(kinds[0]), m.to(kinds[1])


def _by_chunks(q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, memory: Tensor, m: Tensor, starts: Tensor | None,
               lengths: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """`mlstm` in torch; gates and memory have one dtype, q, k and v may have a smaller one."""
    n, kind, wide = q.shape[1], v.dtype, i.dtype
    chunk = min(CHUNK, n)
    pad = -n % chunk

    def chunked(x: Tensor, value: float = 0.0) -> Tensor:  # (B, T, H, ...) -> (B, H, T / C, C, ...)
        return F.pad(x, (0, 0) * (x.dim() - 2) + (0, pad), value=value).unflatten(1, (-1, chunk)).movedim(3, 1)

    decay = F.logsigmoid(f)
    if lengths is not None:  # nodes past the length neither write nor decay
        live = (torch.arange(n, device=q.device) < lengths[:, None])[..., None]
        k, i, decay = k * live[..., None], i.masked_fill(~live, EMPTY), decay * live
        starts = None if starts is None else starts & live[..., 0]
    q, k, joined = chunked(q), chunked(k), chunked(F.pad(v, (0, 1), value=1.0))
    i, decay = chunked(i, EMPTY), chunked(decay).cumsum(-1)
    seen = torch.ones(chunk, chunk, dtype=torch.bool, device=q.device).tril()
    first = None
    if starts is not None:  # a pair must share a document; what is carried reaches only the first of a chunk
        document = F.pad(starts, (0, pad)).unflatten(1, (-1, chunk)).long().cumsum(-1)[:, None]
        seen, first = seen & (document[..., :, None] == document[..., None, :]), document == 0
    weights = (decay[..., :, None] - decay[..., None, :] + i[..., None, :]).masked_fill(~seen, -torch.inf)
    largest = weights.detach().amax(-1)

    given, before = m, []
    m = given.detach()
    for own, decays, last in zip(largest[..., -1].unbind(2), decay[..., -1].detach().unbind(2),
                                 [None] * decay.shape[2] if first is None else first[..., -1].unbind(2)):
        before.append(m)
        reached = decays + m if last is None else (decays + m).masked_fill(~last, -torch.inf)
        m = torch.maximum(own, reached)
    carried = decay + torch.stack([given, *before[1:]], 2)[..., None]
    if first is not None:
        carried = carried.masked_fill(~first, -torch.inf)
    maximum = torch.maximum(largest, carried.detach())
    weights, carried = (weights - maximum[..., None]).exp(), (carried - maximum).exp()
    local = ((q @ k.transpose(-1, -2)) * weights.to(kind)) @ joined
    writes = ((k * weights[..., -1, :, None].to(kind)).transpose(-1, -2) @ joined).to(wide)
    memories = []
    for keeps, adds in zip(carried[..., -1, None, None].unbind(2), writes.unbind(2)):
        memories.append(memory)
        memory = torch.addcmul(adds, keeps, memory)
    read = local.to(wide) + (carried[..., None] * q) @ torch.stack(memories, 2)
    y = _normalised_output(read, maximum, eps).movedim(1, 3).flatten(1, 2)[:, :n]
    return y, memory, m


class _MLSTM(torch.autograd.Function):
    """The compiled form. Returns y, the memory, m, and what backward needs of the chunks."""

    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, memory: Tensor, m: Tensor, starts: Tensor,
                lengths: Tensor, eps: float, learning: bool) -> tuple[Tensor, ...]:
        from segue.kernels.cpu import chunks, threads

        batch, length, heads, _ = v.shape
        tasks = batch * heads
        count = chunk_count(length, chunks.CHUNK, starts) if learning else 0
        y, final, final_m = pooled_empty(v, *v.shape), torch.empty(memory.shape, dtype=v.dtype), torch.empty_like(m)
        kept, kept_m = pooled_empty(v, tasks, count, *memory.shape[2:]), pooled_empty(v, tasks, count)
        norms, edges = pooled_empty(v, batch, heads, length), torch.zeros(tasks, count + 1, dtype=torch.long)
        threads.parallel_for(chunks.mlstm, tasks, *map(as_lines, (q, k, v)),
                             *map(as_array, (i, f, starts, lengths, memory, m)),
                             eps, *(x.numpy() for x in (y, final, final_m, kept, kept_m, norms, edges)))
        return y, final, final_m, kept, kept_m, norms, edges

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(*output[2:])
        ctx.save_for_backward(*inputs[:5], inputs[7], output[0], *output[3:])
        ctx.eps = inputs[9]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor, dfinal: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        from segue.kernels.cpu import chunks, threads

        q, k, v, i, f, starts, y, *kept = ctx.saved_tensors
        batch, _, heads = i.shape
        dq, dk, dv, di, df = (pooled_empty(x, *x.shape) for x in (q, k, v, i, f))
        dmemory, dm = torch.empty(dfinal.shape, dtype=v.dtype), v.new_empty(batch, heads)
        threads.parallel_for(chunks.mlstm_backward, batch * heads, *map(as_lines, (q, k, v)),
                             *map(as_array, (i, f, starts)), ctx.eps, as_lines(y), *map(as_array, kept),
                             as_lines(dy), as_array(dfinal), *(x.numpy() for x in (dq, dk, dv, di, df, dmemory, dm)))
        return dq, dk, dv, di, df, dmemory, dm, None, None, None, None
