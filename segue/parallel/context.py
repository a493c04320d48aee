"""A stack whose sequences are cut over ranks (context parallelism): every rank holds all weights and a share of the
elements of each row. Attention goes round a ring; a recurrence is handed the state of the rank before it.

    torch.distributed.init_process_group("gloo")              # under torchrun
    model = context_parallel(stack)                           # of all processes, or of a group or mesh dimension
    batch = batch.map(model.share)                            # targets were made before
    loss = NextElement()(model, batch)                        # the sum over this rank's elements
    loss.total.backward()
    sum_gradients(model.comm, list(stack.parameters()))       # now those of the whole batch
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
from segue.parallel.communicate import Communicator, Processes, all_gather, all_reduce, gathered, receive, send
from segue.parallel.ring import ring_attention
from segue.parallel.schedule import Block, Order, RingSchedule, Rotate, pick_rotation
from segue.parallel.shard import ContextShard


class Handed(Carry):
    """The state that this rank's elements follow: what came before them is on other ranks.

    Where a chain only multiplies its state by factors and adds to it (`Recurrence.state_factors`), every rank tells the
    others
    both, and makes the states before its stretches of them: all work at once, on the chain twice. Any other recurrence
    waits for the rank before it. `state`: the one at the beginning of the sequence, a row for each row and stretch.
    """

    def __init__(self, recurrence: Recurrence, state: Tensors, comm: Communicator, shard: ContextShard) -> None:
        super().__init__(recurrence, state)
        self.comm, self.shard = comm, shard

    def previous_state(self, inputs: Tensors, starts: Tensor | None) -> Tensors:
        if self.comm.size == 1 and self.shard.chunks == 1:
            return self.state
        kept = self.recurrence.state_factors(inputs)
        if kept is None:
            return self._chain(inputs, starts)
        nothing = tuple(torch.zeros_like(state) for state in self.state)
        added = self.recurrence.scan(inputs, nothing, starts)[1]
        return tuple(self._prefix(*each, starts) for each in zip(self.state, kept, added))

    def _prefix(self, state: Tensor, keeps: Tensor, adds: Tensor, starts: Tensor | None) -> Tensor:
        """The states before this rank's stretches. keeps, adds: of each of them."""
        adds, keeps = adds.to(state.dtype), keeps.to(state.dtype).expand_as(adds)
        if starts is not None:
            keeps = keeps.masked_fill(starts.any(1).view(-1, *[1] * (adds.dim() - 1)), 0.0)
        chunks = self.shard.chunks
        every = gathered(self.comm, torch.stack([keeps, adds])).unflatten(2, (-1, chunks))  # (N, 2, B, chunks, ...)
        there = {at: (rank, index) for rank in range(self.comm.size)
                 for index, at in enumerate(self.shard.stretches(rank))}
        befores = [state.unflatten(0, (-1, chunks))[:, 0]]
        for at in range(len(there) - 1):
            rank, index = there[at]
            befores.append(every[rank, 0, :, index] * befores[-1] + every[rank, 1, :, index])
        # All of them, also where few are wanted: a gradient must come back on every rank.
        return torch.stack(befores, 1)[:, list(self.shard.stretches(self.comm.rank))].flatten(0, 1)

    def _chain(self, inputs: Tensors, starts: Tensor | None) -> Tensors:
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
    """A stack of which this rank reads its share of every row; the weights are the stack's own.

    `hidden` and `forward` take this rank's elements (B, N, ...) and give what the stack would give there. Where they
    stand follows from the shard, so the positions of the layout are not read; documents may be packed (`starts`).
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
            if not (attends(mixer) if isinstance(mixer, Attention) else recurs(mixer)):
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
        """Whole rows (B, T, ...) of the shares (B, N, ...) that all ranks give, on all of them; no gradient flows."""
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
            if self.stack.checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, mix, use_reentrant=False)
            else:
                x = block(x, mix)
        return self.stack.finish(x, layout)

    def layouts(self, x: Tensor, starts: Tensor | None = None) -> tuple[Layout, Layout]:
        """How this rank's elements x (B, N, ...) stand, and those of whole rows. starts: (B, N) of its documents."""
        every = None if starts is None else self.shard.join(all_gather(self.comm, starts.to(torch.uint8))).bool()
        rows = 1 if starts is None else len(x)
        whole = Layout.chain((rows, x.shape[1] * self.comm.size), starts=every, device=x.device)
        return Layout(self.share(whole.positions).expand(x.shape[:2]), starts=starts), whole

    def mix(self, mixer: Mixer, x: Tensor, layout: Layout, whole: Layout) -> Tensor:
        """What a mixer of the stack makes of this rank's x (B, N, D), where these are its `layouts`."""
        mixer.check_layout(layout)
        return self._attend(mixer, x, layout, whole) if isinstance(mixer, Attention) else \
            recur(mixer, x, layout, self.comm, self.shard)

    def _attend(self, mixer: Attention, x: Tensor, layout: Layout, whole: Layout) -> Tensor:
        q, k, v = mixer.project(x, layout.positions)
        device = x.device.type
        if torch.is_autocast_enabled(device):
            q, k, v = (y.to(torch.get_autocast_dtype(device)) for y in (q, k, v))
        n, size = x.shape[1], self.comm.size
        causal = mixer.causal and not mixer.needs_whole_prompt
        rotate = self.rotate or pick_rotation(mixer.heads, mixer.kv_heads, n, n, "full", mixer.head_width, size)
        bare = whole.starts is None and mixer.rule in (rules.causal, rules.full) and mixer.positions != "alibi"
        places = [self.shard.places(rank, n * size).to(x.device) for rank in range(size)]

        def bias(block: Block) -> Tensor:
            """-inf where a query may not look, and what the mixer adds elsewhere."""
            nodes, keys = places[block.queries], places[block.keys]
            nodes = nodes[n // 2 :] if block.late else nodes
            keys = keys[: n // 2] if block.early else keys
            pairs = rules.Pairs(whole.positions[:, nodes, None], whole.positions[:, None, keys],
                                (keys <= nodes[:, None])[None])
            seen = mixer.rule(pairs)
            if whole.segments is not None:
                seen = seen & (whole.segments[:, nodes, None] == whole.segments[:, None, keys])
            added = mixer.bias(q, pairs)
            seen = seen[:, None]
            added = torch.zeros_like(seen, dtype=q.dtype) if added is None else added
            return added.masked_fill(~seen, -torch.inf)

        with torch.autocast(device, enabled=False):
            schedule = RingSchedule(size, rotate, causal, self.shard.order)
            y, _ = ring_attention(q, k, v, self.comm, schedule, self.backend, None if bare else bias)
        return mixer.output(y, x)


def recur(mixer: Mixer, x: Tensor, layout: Layout, comm: Communicator, shard: ContextShard) -> Tensor:
    """What a mixer makes of this rank's x (B, N, D), where it remembers by recurrences alone. Stretches are rows of
    their own, that begin in the states they are handed. layout: of x, with the positions in whole rows."""
    def apart(x: Tensor) -> Tensor:
        return x.unflatten(1, (shard.chunks, -1)).flatten(0, 1)

    layout = Layout(apart(layout.positions), starts=None if layout.starts is None else apart(layout.starts))
    x = apart(x)
    parts = {name: Handed(part.recurrence, part.state, comm, shard)
             for name, part in mixer.parts(len(x), x, 0).items() if isinstance(part, Carry)}
    return mixer.run(x, layout, dict(parts)).unflatten(0, (-1, shard.chunks)).flatten(1, 2)


def recurs(mixer: Mixer) -> bool:
    """Whether a mixer remembers by recurrences alone, and reads on from where it stopped."""
    return mixer.causal and not mixer.needs_whole_prompt and all(
        isinstance(part, Carry) for part in mixer.parts(1, next(mixer.parameters()), 0).values())


def attends(mixer: Attention) -> bool:
    """Whether an attention's masks and biases depend on positions alone, and its keys on their own nodes."""
    return mixer.distances is None and mixer.learned_span is None and mixer.qkv_global is None and \
        not mixer.traits and mixer.convolution is None and mixer.rule is not rules.prompted


def context_parallel(stack: Stack, group: Communicator | dist.ProcessGroup | DeviceMesh | None = None,
                     order: Order | None = None, rotate: Rotate | None = None,
                     backend: str = "auto") -> ContextParallel:
    """The stack, with every row cut over the ranks of a group.

    stack: alike on all ranks. group: processes of `torch.distributed`, one dimension of a device mesh, or any
    communicator (default: all processes). order: of the shares, see `ContextShard` (default: zigzag where all layers
    are causal attention, so that all ranks have as much to do, else contiguous). rotate: what goes round, "kv" or "q"
    (default: for each layer what sends less, see `pick_rotation`). backend: of attention, see `segue.parallel.blocks`.

    A row's length must be a multiple of the ranks, of twice as many in a zigzag (`ContextShard.padded`). Every rank
    calls every forward and every backward pass. A SegueError names a mixer that has no such form.
    """
    comm = Processes(group) if group is None or isinstance(group, dist.ProcessGroup | DeviceMesh) else group
    alone = all(isinstance(block.mixer, Attention) and block.mixer.causal for block in stack.blocks)
    shard = ContextShard(comm.size, order or ("zigzag" if alone else "contiguous"))
    return ContextParallel(stack, comm, shard, rotate, backend)


def sum_gradients(comm: Communicator, parameters: list[nn.Parameter]) -> None:
    """Sum `grad` over ranks, in one message. A parameter that has none on some rank counts as zero there."""
    if comm.size == 1:
        return
    parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = torch.cat([part.flatten() for part in parts])
    if isinstance(comm, Processes):
        dist.all_reduce(flat, group=comm.group)
    else:
        flat = all_reduce(comm, flat)
    for parameter, part in zip(parameters, flat.split([part.numel() for part in parts])):
        parameter.grad = part.view_as(parameter)
