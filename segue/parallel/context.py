"""Context parallelism: the sequences of a stack are split over ranks; every rank holds all weights and a share of the
elements of each row. Attention runs as a ring; a recurrence receives the state of the rank before it.

    torch.distributed.init_process_group("gloo")              # under torchrun
    model = context_parallel(stack)                           # of all processes, or of a group or mesh dimension
    batch = batch.map(model.share)                            # after the targets were made
    loss = NextElement()(model, batch)                        # the sum over this rank's elements
    loss.total.backward()
    sum_gradients(model.comm, list(stack.parameters()))       # the gradients of the whole batch
"""

from __future__ import annotations

from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.utils.checkpoint import checkpoint

from segue.errors import SegueError
from segue.mixers import Attention, Mixer, rules
from segue.mixers.layout import Layout
from segue.mixers.state import Carry, Recurrence, State, Tensors
from segue.models.stack import OnePassModel, Stack
from segue.parallel.blocks import backend_for
from segue.parallel.communicate import (
    Communicator,
    Processes,
    all_gather,
    all_reduce,
    differentiable_gather,
    receive,
    send,
)
from segue.parallel.ring import ring_attention
from segue.parallel.schedule import Block, Order, RingSchedule, Rotate, pick_rotation
from segue.parallel.shard import ContextShard


class DistributedCarry(Carry):
    """The memory of a recurrence whose earlier elements are on other ranks: computes the state before this rank's.

    Where a stretch of inputs only multiplies the state by factors and adds to it (`Recurrence.state_factors`), all
    ranks gather each other's factors and sums and compute the states before their stretches from these: they work in
    parallel, with two scans each. Any other recurrence waits for the state of the rank before. state: at the beginning
    of the sequence, with a batch row for each row and stretch.
    """

    def __init__(self, recurrence: Recurrence, state: Tensors, comm: Communicator, shard: ContextShard) -> None:
        super().__init__(recurrence, state)
        self.comm, self.shard = comm, shard

    def previous_state(self, inputs: Tensors, starts: Tensor | None) -> Tensors:
        if self.comm.size == 1 and self.shard.chunks == 1:
            return self.state
        factors = self.recurrence.state_factors(inputs)
        if factors is None:
            return self._receive_state(inputs, starts)
        zeros = tuple(torch.zeros_like(state) for state in self.state)
        sums = self.recurrence.scan(inputs, zeros, starts)[1]
        return tuple(self._prefix_states(*each, starts) for each in zip(self.state, factors, sums))

    def _prefix_states(self, state: Tensor, factors: Tensor, sums: Tensor, starts: Tensor | None) -> Tensor:
        """The states before this rank's stretches. factors, sums: what each of them does to the state before it."""
        sums, factors = sums.to(state.dtype), factors.to(state.dtype).expand_as(sums)
        if starts is not None:
            factors = factors.masked_fill(starts.any(1).view(-1, *[1] * (sums.dim() - 1)), 0.0)
        chunks = self.shard.chunks
        gathered = differentiable_gather(self.comm, torch.stack([factors, sums]))
        gathered = gathered.unflatten(2, (-1, chunks))  # (N, 2, B, chunks, ...)
        owners = {at: (rank, index) for rank in range(self.comm.size)
                  for index, at in enumerate(self.shard.stretch_indices(rank))}
        befores = [state.unflatten(0, (-1, chunks))[:, 0]]
        for at in range(len(owners) - 1):
            rank, index = owners[at]
            befores.append(gathered[rank, 0, :, index] * befores[-1] + gathered[rank, 1, :, index])
        # All states are stacked, though few are used: backward must run the gather's exchange on every rank.
        return torch.stack(befores, 1)[:, list(self.shard.stretch_indices(self.comm.rank))].flatten(0, 1)

    def _receive_state(self, inputs: Tensors, starts: Tensor | None) -> Tensors:
        comm, state = self.comm, self.state
        if self.shard.chunks > 1:
            raise SegueError(f"{type(self.recurrence).__name__} hands its state from rank to rank, or its stretches "
                             "are too short: choose order='contiguous'")
        if comm.rank:
            state = tuple(receive(comm, comm.rank - 1, x) for x in state)
        if comm.rank < comm.size - 1:
            final = self.recurrence.scan(inputs, state, starts)[1]
            state = tuple(send(comm, comm.rank + 1, x, through) for x, through in zip(final, state))
        return state


class ContextParallel(OnePassModel, nn.Module):
    """A stack that reads this rank's share of every row; the weights are the stack's own.

    `hidden` and `forward` take this rank's elements (B, N, ...) and return what the stack would return for them. Their
    positions follow from the shard, so the layout's are ignored; documents may be packed (`starts`).
    """

    def __init__(self, stack: Stack, comm: Communicator, shard: ContextShard, rotate: Rotate | None = None,
                 backend: str = "auto") -> None:
        super().__init__()
        config = stack.config
        if config.pool or config.cross is not None:
            raise SegueError("a stack that pools, or reads a source, reads whole rows: it cannot be cut over processes")
        self.stack, self.comm, self.shard, self.rotate, self.backend = stack, comm, shard, rotate, backend
        backend_for(torch.empty(0), backend)
        for name, block in zip(config.mixers, stack.blocks):
            mixer = block.mixer
            if not (has_ring_form(mixer) if isinstance(mixer, Attention) else is_recurrent(mixer)):
                raise SegueError(f"mixer '{name}' has no form over several processes: attention with fixed masks and "
                                 "biases has, and what remembers by recurrences alone")

    @property
    def head(self) -> nn.Linear:
        return self.stack.head

    @property
    def vocabulary(self) -> int:
        return self.stack.vocabulary

    def share(self, x: Tensor) -> Tensor:
        """This rank's elements of whole rows x (B, T, ...)."""
        return self.shard.take(x, self.comm.rank)

    def join(self, x: Tensor) -> Tensor:
        """Whole rows (B, T, ...) of all ranks' shares (B, N, ...), on every rank; without gradients."""
        return self.shard.join(all_gather(self.comm, x.detach().contiguous()))

    def hidden(self, tokens: Tensor, layout: Layout, state: State | None = None) -> Tensor:
        if state is not None:
            raise SegueError("a stack that is cut over processes reads whole sequences: continue with the stack itself")
        if layout.parents is not None or any(x is not None for x in (layout.grid, layout.prompt, layout.sets)):
            raise SegueError("rows that are cut over processes are chains of elements: no trees, grids, prompts, sets")
        layout, whole = self.layouts(tokens, layout.starts)
        x = self.stack.embed(tokens, layout.positions)
        for block in self.stack.blocks:
            mix = partial(self.mix, layout=layout, whole=whole)
            if self.stack.checkpointing and block.recomputable and torch.is_grad_enabled():
                x = checkpoint(block, x, mix, use_reentrant=False)
            else:
                x = block(x, mix)
        return self.stack.finish(x, layout)

    def layouts(self, x: Tensor, starts: Tensor | None = None) -> tuple[Layout, Layout]:
        """The layouts of this rank's elements x (B, N, ...) and of whole rows. starts: (B, N) bool, of its
        documents."""
        every = None if starts is None else self.shard.join(all_gather(self.comm, starts.to(torch.uint8))).bool()
        rows = 1 if starts is None else len(x)
        whole = Layout.chain((rows, x.shape[1] * self.comm.size), starts=every, device=x.device)
        return Layout(self.share(whole.positions).expand(x.shape[:2]), starts=starts), whole

    def mix(self, mixer: Mixer, x: Tensor, layout: Layout, whole: Layout) -> Tensor:
        """Run a mixer of the stack on this rank's x (B, N, D), with its `layouts`."""
        mixer.check_layout(layout)
        return self._attend(mixer, x, layout, whole) if isinstance(mixer, Attention) else \
            run_recurrent(mixer, x, layout, self.comm, self.shard)

    def _attend(self, mixer: Attention, x: Tensor, layout: Layout, whole: Layout) -> Tensor:
        q, k, v = mixer.project(x, layout.positions)
        device = x.device.type
        if torch.is_autocast_enabled(device):
            q, k, v = (y.to(torch.get_autocast_dtype(device)) for y in (q, k, v))
        n, size = x.shape[1], self.comm.size
        causal = mixer.causal and not mixer.needs_whole_prompt
        rotate = self.rotate or pick_rotation(mixer.heads, mixer.kv_heads, n, n, "full", mixer.head_width, size)
        needs_bias = whole.starts is not None or mixer.rule not in (rules.causal, rules.full) or \
            mixer.positions == "alibi"
        indices = [self.shard.positions(rank, n * size).to(x.device) for rank in range(size)]

        def bias(block: Block) -> Tensor:
            """The mixer's own bias, with -inf where a query may not attend."""
            queries, keys = indices[block.queries], indices[block.keys]
            queries = queries[n // 2 :] if block.late else queries
            keys = keys[: n // 2] if block.early else keys
            pairs = rules.Pairs(whole.positions[:, queries, None], whole.positions[:, None, keys],
                                (keys <= queries[:, None])[None])
            visible = mixer.rule(pairs)
            if whole.segments is not None:
                visible = visible & (whole.segments[:, queries, None] == whole.segments[:, None, keys])
            added = mixer.bias(q, pairs)
            visible = visible[:, None]
            added = torch.zeros_like(visible, dtype=q.dtype) if added is None else added
            return added.masked_fill(~visible, -torch.inf)

        with torch.autocast(device, enabled=False):
            schedule = RingSchedule(size, rotate, causal, self.shard.order)
            y, _ = ring_attention(q, k, v, self.comm, schedule, self.backend, bias if needs_bias else None)
        return mixer.output(y, x)


def run_recurrent(mixer: Mixer, x: Tensor, layout: Layout, comm: Communicator, shard: ContextShard) -> Tensor:
    """Run a mixer whose memories are all recurrences on this rank's x (B, N, D). Each stretch becomes a batch row,
    which begins in the state that it receives. layout: of x, with the positions in whole rows."""
    def split_stretches(x: Tensor) -> Tensor:
        return x.unflatten(1, (shard.chunks, -1)).flatten(0, 1)

    starts = None if layout.starts is None else split_stretches(layout.starts)
    layout = Layout(split_stretches(layout.positions), starts=starts)
    x = split_stretches(x)
    parts = {name: DistributedCarry(part.recurrence, part.state, comm, shard)
             for name, part in mixer.parts(len(x), x, 0).items() if isinstance(part, Carry)}
    return mixer.run(x, layout, dict(parts)).unflatten(0, (-1, shard.chunks)).flatten(1, 2)


def is_recurrent(mixer: Mixer) -> bool:
    """Whether all memories of a mixer are recurrences, and it reads causally."""
    return mixer.causal and not mixer.needs_whole_prompt and all(
        isinstance(part, Carry) for part in mixer.parts(1, next(mixer.parameters()), 0).values())


def has_ring_form(mixer: Attention) -> bool:
    """Whether an attention can run as a ring: its masks and biases depend on positions alone, its keys on single
    nodes."""
    return mixer.distances is None and mixer.learned_span is None and mixer.qkv_global is None and \
        not mixer.traits and mixer.convolution is None and mixer.rule is not rules.prompted


def context_parallel(stack: Stack, group: Communicator | dist.ProcessGroup | DeviceMesh | None = None,
                     order: Order | None = None, rotate: Rotate | None = None,
                     backend: str = "auto") -> ContextParallel:
    """The stack, with every row split over the ranks of a group.

    stack: the same weights on all ranks. group: processes of `torch.distributed`, one dimension of a device mesh, or
    any communicator (default: all processes). order: of the shares, see `ContextShard` (default: zigzag if all layers
    are causal attention, which balances their work, else contiguous). rotate: what goes round the ring, "kv" or "q"
    (default: for each layer what sends less, see `pick_rotation`). backend: of attention, see `segue.parallel.blocks`.

    A row's length must be a multiple of the number of ranks, in a zigzag of twice that (`ContextShard.padded`). Every
    rank must run every forward and backward pass. A SegueError names a mixer that cannot be split.
    """
    comm = Processes(group) if group is None or isinstance(group, dist.ProcessGroup | DeviceMesh) else group
    only_causal_attention = all(isinstance(block.mixer, Attention) and block.mixer.causal for block in stack.blocks)
    shard = ContextShard(comm.size, order or ("zigzag" if only_causal_attention else "contiguous"))
    return ContextParallel(stack, comm, shard, rotate, backend)


def sum_gradients(comm: Communicator, parameters: list[nn.Parameter]) -> None:
    """Sum the parameters' gradients over ranks, in one message. A gradient that some ranks do not have counts as zero
    there; one that none has stays away."""
    if comm.size == 1:
        return
    parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    there = torch.tensor([p.grad is not None for p in parameters]).to(parts[0])
    flat = torch.cat([there, *(part.flatten() for part in parts)])  # of the widest type, where there are several
    if isinstance(comm, Processes):
        dist.all_reduce(flat, group=comm.group)
    else:
        flat = all_reduce(comm, flat)
    there, *sums = flat.split([len(parts), *(part.numel() for part in parts)])
    for parameter, count, part in zip(parameters, there.tolist(), sums):
        parameter.grad = part.view_as(parameter).to(parameter.dtype) if count else None
