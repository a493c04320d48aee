"""Ring attention: exact attention over a sequence split over ranks, forward and backward, by any `RingSchedule`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from segue.errors import SegueError
from segue.mixers.attention import merge_into
from segue.parallel.blocks import BACKENDS, BlockAttention, backend_for
from segue.parallel.communicate import Communicator, all_reduce
from segue.parallel.schedule import Block, RingSchedule

Bias = Callable[[Block], Tensor | None]
"""A block -> what is added to its scores, (B or 1, H or 1, Q, K), or None."""


def half_of(x: Tensor, late: bool) -> Tensor:
    """The earlier or later half of the elements of x (B, H, N, ...)."""
    half = x.shape[2] // 2
    return x[:, :, half:] if late else x[:, :, :half]


def run_schedule(comm: Communicator, schedule: RingSchedule, moving: Sequence[Tensor],
                 compute: Callable[[Block, list[Tensor]], list[Tensor]],
                 keep: Callable[[list[Tensor], bool], None] | None = None, results: Sequence[Tensor] = ()) -> None:
    """Run a schedule: move the shares, compute the blocks, return results to their owners.

    moving: this rank's tensors that go round, each (B, H, N, ...). compute: (block, the moving tensors it needs) ->
    results for their owner. keep: called with results for this rank, and whether they are of half of its share.
    results: tensors of the shape of a whole share's results; none where no results are returned.
    """
    late = schedule.rotate == "q"  # of queries the later half may be enough, of keys the earlier
    held, done = list(moving), list[Tensor]()

    def cut(tensors: Sequence[Tensor], whole: Sequence[Tensor], half: bool) -> list[Tensor]:
        return [half_of(x, late).contiguous() if half and x.shape[2] == full.shape[2] else x
                for x, full in zip(tensors, whole)]

    for step in schedule.plan(comm.rank, returns=bool(results)):
        sends, receives = list[tuple[Tensor, int]](), list[tuple[Tensor, int]]()
        coming, back, halved = list[Tensor](), list[Tensor](), False
        for message in step.sends:
            tensors = cut(held, moving, message.half) if message.moving else done
            sends += [(x, message.target) for x in tensors]
        for message in step.receives:
            whole = moving if message.moving else results
            buffers = [torch.empty_like(half_of(x, late) if message.half else x, memory_format=torch.contiguous_format)
                       for x in whole]
            receives += [(x, message.source) for x in buffers]
            if message.moving:
                coming = buffers
            else:
                back, halved = buffers, message.half
        wait = comm.exchange(sends, receives)
        done = []
        if step.block is not None:
            half = step.block.late if late else step.block.early
            done = compute(step.block, cut(held, moving, half))
            if keep is not None and step.block.queries == step.block.keys:
                keep(done, False)
        wait()
        if back and keep is not None:
            keep(back, halved)
        held = coming


def forward(comm: Communicator, schedule: RingSchedule, q: Tensor, k: Tensor, v: Tensor, core: BlockAttention,
            bias: Bias | None = None) -> tuple[Tensor, Tensor]:
    """The attention output of this rank's queries over all keys, (B, H, N, E), and the log-sum-exp of their scores
    (B, H, N), both at least float32."""
    wide = torch.promote_types(q.dtype, torch.float32)
    # Laid out as (B, N, H, E), so that the output projection needs no copy.
    out = torch.zeros(len(q), q.shape[2], q.shape[1], v.shape[3], dtype=wide, device=q.device).transpose(1, 2)
    lse = torch.full(q.shape[:3], -torch.inf, dtype=wide, device=q.device)

    def keep(found: list[Tensor], late: bool) -> None:
        merge_into(*(half_of(x, True) if late else x for x in (out, lse)), *found)

    def compute(block: Block, held: list[Tensor]) -> list[Tensor]:
        if schedule.rotate == "q":
            (queries,), (keys, values) = held, (half_of(x, False) if block.early else x for x in (k, v))
        else:
            queries, (keys, values) = half_of(q, True) if block.late else q, held
        found = list(core.forward(queries, keys, values, block.causal, None if bias is None else bias(block)))
        if schedule.rotate == "kv":
            keep(found, block.late)
        return found

    if schedule.rotate == "kv":
        run_schedule(comm, schedule, (k, v), compute)
    else:
        run_schedule(comm, schedule, (q,), compute, keep, (out.to(q.dtype), lse))
    return out, lse


def backward(comm: Communicator, schedule: RingSchedule, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor,
             lse: Tensor, core: BlockAttention, bias: Bias | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, given that of the output. The same tensors go round as in the forward pass (with queries
    also the output's gradient, the log-sum-exp and delta), and their gradients are returned to their owners."""
    wide = torch.promote_types(q.dtype, torch.float32)
    delta = (grad.to(wide) * out.to(wide)).sum(-1)
    dq, dk, dv = (torch.zeros(x.shape, dtype=wide, device=x.device) for x in (q, k, v))

    def add(into: Tensor, x: Tensor, half: bool, late: bool) -> None:
        (half_of(into, late) if half else into).add_(x)

    def compute(block: Block, held: list[Tensor]) -> list[Tensor]:
        if schedule.rotate == "q":
            theirs, (keys, values) = held, (half_of(x, False) if block.early else x for x in (k, v))
        else:
            theirs, (keys, values) = [half_of(x, True) if block.late else x for x in (q, grad, lse, delta)], held
        queries, slope, total, products = theirs
        found = core.backward(slope, queries, keys, values, total, products, block.causal,
                              None if bias is None else bias(block))
        if schedule.rotate == "kv":
            add(dq, found[0], block.late, True)
            return [x.contiguous() for x in found[1:]]
        add(dk, found[1], block.early, False)
        add(dv, found[2], block.early, False)
        return [found[0].contiguous()]

    def keep(found: list[Tensor], half: bool) -> None:
        for into, x in zip((dq,) if schedule.rotate == "q" else (dk, dv), found):
            add(into, x, half, schedule.rotate == "q")

    if schedule.rotate == "kv":
        run_schedule(comm, schedule, (k, v), compute, keep, (k, v))
    else:
        run_schedule(comm, schedule, (q, grad, lse, delta), compute, keep, (q,))
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype)


class _RingAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, comm: Communicator, schedule: RingSchedule,
                core: BlockAttention, bias: Bias | None) -> tuple[Tensor, Tensor]:
        q, k, v = (x.contiguous() for x in (q, k, v))
        out, lse = forward(comm, schedule, q, k, v, core, bias)
        out = out.to(q.dtype)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.given = (comm, schedule, core, bias)
        ctx.mark_non_differentiable(lse)
        return out, lse

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        comm, schedule, core, bias = ctx.given
        q, k, v, out, lse = ctx.saved_tensors
        found = backward(comm, schedule, grads[0].contiguous(), q, k, v, out, lse, core, bias)
        return (*found, None, None, None, None)


def ring_attention(q: Tensor, k: Tensor, v: Tensor, comm: Communicator, schedule: RingSchedule | None = None,
                   backend: str = "auto", bias: Bias | None = None) -> tuple[Tensor, Tensor]:
    """softmax(q k^T / sqrt(E)) v over a sequence of which every rank holds a share, split as the schedule says.

    q: (B, H, N, E); k, v: (B, G, N, E), H a multiple of G; N equal on all ranks. schedule: default a causal zigzag in
    which keys and values go round. backend: see `segue.parallel.blocks`. bias: see `Bias`; it gets no gradient.
    Returns this rank's output (B, H, N, E), and the log-sum-exp of its scores (B, H, N), which has no gradient.
    """
    schedule = schedule or RingSchedule(comm.size)
    if schedule.ranks != comm.size:
        raise SegueError(f"a schedule of {schedule.ranks} ranks cannot run on {comm.size}: make it for as many")
    if q.shape[1] % k.shape[1]:
        raise SegueError(f"{q.shape[1]} query heads cannot share {k.shape[1]} key-value heads: choose a divisor")
    if schedule.causal and (q.shape[2] != k.shape[2] or (schedule.order == "zigzag" and q.shape[2] % 2)):
        raise SegueError(f"{q.shape[2]} queries and {k.shape[2]} keys on a rank: causal attention has as many of both, "
                         "and in a zigzag an even number")
    return _RingAttention.apply(q, k, v, comm, schedule, BACKENDS[backend_for(q, backend)], bias)


class _StoredScores(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, comm: Communicator, causal: bool) -> Tensor:
        n, size, scale = k.shape[2], comm.size, q.shape[-1] ** -0.5
        weights = q.new_empty(*q.shape[:3], size * n)
        ring_pass(comm, k, lambda owner, key: weights[..., owner * n : owner * n + n].copy_(q @ key.mT * scale))
        if causal:
            own = torch.arange(q.shape[2], device=q.device) + comm.rank * n
            weights.masked_fill_(own[:, None] < torch.arange(size * n, device=q.device), -torch.inf)
        weights = weights.softmax(-1)
        out = torch.zeros_like(q)
        ring_pass(comm, v, lambda owner, value: out.add_(weights[..., owner * n : owner * n + n] @ value))
        ctx.save_for_backward(q, k, v, weights)
        ctx.comm = comm
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        (q, k, v, weights), comm, (grad,) = ctx.saved_tensors, ctx.comm, grads
        n, scale = k.shape[2], q.shape[-1] ** -0.5
        slope, dq = torch.empty_like(weights), torch.zeros_like(q)
        ring_pass(comm, v, lambda owner, value: slope[..., owner * n : owner * n + n].copy_(grad @ value.mT))
        slope = torch._softmax_backward_data(slope, weights, -1, weights.dtype) * scale
        ring_pass(comm, k, lambda owner, key: dq.add_(slope[..., owner * n : owner * n + n] @ key))
        own = slice(comm.rank * n, comm.rank * n + n)
        dk, dv = (all_reduce(comm, x)[:, :, own] for x in (slope.mT @ q, weights.mT @ grad))
        return dq, dk, dv, None, None


def ring_pass(comm: Communicator, x: Tensor, use: Callable[[int, Tensor], object]) -> None:
    """Send x once round the ring, and call `use(owner, x)` with the x of every rank."""
    held, after, before = x.contiguous(), (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
    for step in range(comm.size):
        coming = torch.empty_like(held)
        last = step == comm.size - 1
        wait = comm.exchange([] if last else [(held, after)], [] if last else [(coming, before)])
        use((comm.rank - step) % comm.size, held)
        wait()
        held = coming


def stored_scores_attention(q: Tensor, k: Tensor, v: Tensor, comm: Communicator, causal: bool = False) -> Tensor:
    """Ring self-attention as published (Li et al. 2021), the reference for `ring_attention`. q, k, v: (B, H, N, E),
    contiguous shares. Keys go round once for the scores, which are all stored (a rank's queries against the whole
    sequence), then values for the output. In the backward pass both go round again, and the gradients of all keys and
    values are summed over ranks. `ring_attention` stores only the scores' log-sum-exp."""
    return _StoredScores.apply(q, k, v, comm, causal)
