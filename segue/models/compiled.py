"""A stack run by the compiled CPU engine: the same `extend`, `commit`, `select` and `rewind`, many times faster.

`compile_model` lowers a stack to a program; `accelerate` does so without waiting for the compiler.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segue.errors import SegueError
from segue.kernels.cpu import engine
from segue.kernels.cpu import program as p
from segue.kernels.cpu.cache import compile_in_background, is_warm
from segue.kernels.cpu.simd import BLOCK, TILE
from segue.mixers.layout import Layout, check_commit, check_node_indices, check_parents, check_rows
from segue.models.base import Decoding, Output, needs_whole_prompt
from segue.models.stack import Block, Stack, StackConfig

CHUNK = 256  # nodes (over all rows) per pass of a long prompt: bounds the scratch memory
MAX_NODE_STATES = 16  # a chain of at most this many nodes keeps its (small) recurrent states after each node


def lower(stack: Stack, weights: str = "float32") -> p.Program:
    """Return the program of a stack, with weights not yet packed; a SegueError says what has no compiled form."""
    if not isinstance(stack, Stack):
        raise SegueError(f"a {type(stack).__name__} has no form for the compiled CPU engine: only native stacks have")
    config = stack.config
    if config.pool or config.inputs or config.tables:
        raise SegueError("what reads whole sequences (pool, tables or real inputs) has no form for the compiled CPU "
                         "engine")
    if config.cross is not None:
        raise SegueError("cross-attention has no form for the compiled CPU engine")
    if config.post_norm or config.transform:
        raise SegueError("norms behind the sums and a transform before the head have no form for the compiled CPU "
                         "engine")
    program = p.Program(weights)
    x = program.register("x", config.width)
    table = stack.position_embedding
    program.embed(x, stack.embedding.weight, None if table is None else table.weight)
    if stack.embed_norm is not None:
        lower_norm(program, stack.embed_norm, config, x, x)
    for block in stack.blocks:
        lower_block(program, block, config, x)
    h = program.register("h", config.width)
    lower_norm(program, stack.norm, config, x, h)
    program.head(h, stack.head.weight)
    return program


def lower_norm(program: p.Program, module: Any, config: StackConfig, source: p.View, into: p.View) -> None:
    """Emit a norm of the register `source` into `into`."""
    program.norm(source, into, config.norm, module.weight, getattr(module, "bias", None), config.norm_eps)


def lower_block(program: p.Program, block: Block, config: StackConfig, x: p.View) -> None:
    """Emit a block that updates the register x in place."""
    if len(block.begins):
        raise SegueError("a learned initial state has no form for the compiled CPU engine")
    mixer_input, channel_input = (program.register(name, config.width) for name in ("h", "h2"))  # new ones each time
    lower_norm(program, block.mixer_norm, config, x, mixer_input)
    channel = block.channel
    if channel is not None and block.parallel:
        lower_norm(program, block.channel_norm, config, x, channel_input)
    block.mixer.lower(program, mixer_input, x)
    if channel is not None:
        if not block.parallel:
            lower_norm(program, block.channel_norm, config, x, channel_input)
        hidden = program.register("hidden", channel.out.in_features)
        program.linear(channel_input, hidden, channel.into.weight, channel.into.bias, activation=config.activation,
                       gated=channel.gated)
        program.linear(hidden, x, channel.out.weight, channel.out.bias, add=True)


@dataclass
class Pending:
    """The nodes of an extend that are not committed yet.

    tokens: (B, N). parents: (B, N), or None for a chain. after: recurrent states after the nodes. kept: whether `after`
    holds the states after each node (of a chain, large states only after the last); else it holds those after the last
    node of each row. before: if not kept, the states before each chunk of the prompt, with its first node.
    """

    tokens: np.ndarray
    parents: np.ndarray | None
    after: Memory
    kept: bool
    before: list[tuple[int, Memory]]


class Memory:
    """An aligned float32 array and its address, cached because ctypes is slow to look it up."""

    def __init__(self, size: int, copy: Memory | None = None) -> None:
        self.whole = self.array = p.aligned((size,), np.float32)
        self.address = self.array.ctypes.data
        if copy is not None:
            self.array[:] = copy.array

    def resized(self, size: int) -> Memory:
        """Return this memory resized, or a new, larger one. Its contents are lost."""
        if size > self.whole.size:
            return Memory(size)
        self.array = self.whole[:size]
        return self


class Space:
    """The job description and index arrays of a run with `counts` (B,) nodes per row: chains, unless `tree` is called.
    """

    def __init__(self, program: p.Program, counts: np.ndarray) -> None:
        batch, nodes = len(counts), int(counts.sum())
        self.job, self.nodes = p.aligned((p.JOB,), np.int64), nodes
        self.first = p.aligned((batch + 1,), np.int64)
        self.length, self.prompt = p.aligned((batch,), np.int64), p.aligned((batch,), np.int64)
        self.first[1:] = counts.cumsum()
        self.single = bool((counts == 1).all())
        self.all = np.arange(nodes)
        self.every = self.all.ctypes.data
        self.row, self.index = np.repeat(np.arange(batch), counts), np.arange(nodes)
        self.index -= self.first[self.row]  # of a node within its row
        self.token, self.position = p.aligned((nodes,), np.int64), p.aligned((nodes,), np.int64)
        self.parent = np.where(self.index > 0, self.all - 1, -1)
        self.scratch = Memory(nodes * program.floats_per_node + TILE)
        self._level(self.index)
        table = program.table
        for field, value in ((p.OPERATIONS, table), (p.ROW, self.row), (p.PARENT, self.parent),
                             (p.POSITION, self.position), (p.TOKEN, self.token), (p.FIRST, self.first),
                             (p.LENGTH, self.length), (p.PROMPT, self.prompt)):
            self.job[field] = value.ctypes.data
        self.job[p.COUNT], self.job[p.NODES], self.job[p.BATCH] = len(table), nodes, batch
        self.job[p.SCRATCH], self.job[p.CHAIN] = self.scratch.address, 1
        self.job[p.WORK] = program.weight_bytes * -(-nodes // BLOCK)
        self.address = self.job.ctypes.data

    def _level(self, depth: np.ndarray) -> None:
        """Order the nodes by depth, and record where each depth begins."""
        self.order = depth.argsort(kind="stable")
        self.levels = np.concatenate([[0], np.bincount(depth).cumsum()]).astype(np.int64)
        self.job[p.ORDER], self.job[p.LEVEL] = self.order.ctypes.data, self.levels.ctypes.data
        self.job[p.LEVELS] = len(self.levels) - 1

    def tree(self, parents: np.ndarray) -> None:
        """Arrange the nodes as trees: parents (B, N) within each row, -1 for a child of the state's last token."""
        batch, n = parents.shape
        depth = np.zeros((batch, n), np.int64)
        for node in range(1, n):
            above = parents[:, node]
            depth[:, node] = np.where(above >= 0, depth[np.arange(batch), above] + 1, 0)
        self.index = depth.reshape(-1)
        self.parent[:] = np.where(parents >= 0, parents + n * np.arange(batch)[:, None], -1).reshape(-1)
        self.job[p.CHAIN] = 0
        self._level(self.index)


class CompiledState:
    """The decoding state of a compiled model for a batch of rows; its methods are those of `segue.mixers.state.State`.

    In the cache, pending nodes follow the committed ones, which end at `lengths` in each row: committing a chain just
    advances `lengths`. If all attention has a window, positions out of its reach are dropped, less `back`, how far the
    state must be able to rewind. `prompt` is as in `segue.mixers.state.State`.
    """

    def __init__(self, model: CompiledModel, batch: int, history: int = 0) -> None:
        self.model, self.program = model, model.program
        self.lengths = np.zeros(batch, np.int64)
        self.history = history if self.program.states else 0
        self.back = max(history, self.program.reach or 0)  # prompts that share a beginning go back to it
        self.prompt: Tensor | None = None
        self.capacity = 0  # positions that the caches have room for
        self.dropped = 0  # first positions that the caches no longer hold, a multiple of TILE
        self.cache, self.local = Memory(0), Memory(0)
        self.states = Memory(batch * self.program.floats_per_state)
        for rows, initial in zip(self._rows(self.states), self.program.initial):
            rows[:] = initial
        self.spare: Memory | None = None  # buffer for states with one slot per row
        self.draft = Memory(0)  # buffer for the states after each node of a draft
        self.pending: Pending | None = None
        self.spaces: dict[tuple[int, bool], Space] = {}
        self.tokens = np.zeros((batch, 0), np.int64)  # with a history: all committed tokens, for replay from a mark
        self.marks: list[tuple[np.ndarray, Memory]] = []  # checkpoints: lengths (B,) and the recurrent states there
        if self.history:
            self._mark()

    @property
    def batch(self) -> int:
        return len(self._lengths)

    @property
    def lengths(self) -> np.ndarray:
        """Number of committed tokens per row, (B,)."""
        return self._lengths

    @lengths.setter
    def lengths(self, lengths: np.ndarray) -> None:
        self._lengths, self.longest = lengths, int(lengths.max(initial=0))

    def advance(self) -> None:
        """Count one more token in every row."""
        self._lengths += 1
        self.longest += 1

    @property
    def positions(self) -> Tensor:
        """The position of each row's next token, (B,) long."""
        return torch.from_numpy(self.lengths.copy())

    def commit(self, path: Tensor | None = None, counts: Tensor | None = None) -> None:
        """Commit pending nodes: a `path` (B, P) padded with -1, or the first `counts` (B,) of a chain (None: all)."""
        pending = self.pending
        if pending is None:
            raise SegueError("nothing is pending: call extend before commit")
        batch, n = pending.tokens.shape
        check_commit(path, counts, pending.parents, batch, n)
        if path is None:
            steps = None
            num_committed = np.full(batch, n) if counts is None else counts.numpy()
            last = num_committed - 1
        else:
            steps = np.ascontiguousarray(path.numpy(), np.int64)
            num_committed = (steps >= 0).sum(1)
            last = num_committed - 1
            if steps.shape[1]:
                last = np.where(num_committed > 0, steps[np.arange(batch), last], -1)
        if self.program.caches and steps is not None and (steps > np.arange(steps.shape[1])).any():
            self._job(self.program.moves, steps)
        if self.program.states and n:
            self._settle(pending, num_committed, last, steps)
        self.pending = None
        if self.history:
            self._remember(pending.tokens, num_committed, steps)
        self.lengths = self.lengths + num_committed
        if self.history and self.batch and (self.lengths - self.marks[-1][0]).min() >= self.history:
            self._mark()

    def _settle(self, pending: Pending, num_committed: np.ndarray, last: np.ndarray, steps: np.ndarray | None) -> None:
        """Set the recurrent states to those after the last committed node of each row."""
        batch, n = pending.tokens.shape
        if steps is None and (num_committed == n).all() and (n == 1 or not pending.kept):
            self.states, self.spare = pending.after, self.states  # one slot per row, after its last node
        elif pending.kept:
            last_nodes = np.where(last >= 0, last + n * np.arange(batch), -1)[:, None]
            chain = pending.parents is None
            self._job(self.program.small_picks if chain else self.program.picks, last_nodes, pending.after)
            if chain and len(self.program.repeats):
                self._repeat(n, num_committed)
        else:  # replay the rest of the chunk in which each row ends
            after, remaining = Memory(self.states.array.size, self.states), num_committed.copy()
            for start, before in pending.before:
                for old, new in zip(self._rows(before), self._rows(after)):
                    new[num_committed >= start] = old[num_committed >= start]
                remaining = np.where(num_committed >= start, num_committed - start, remaining)
            if (num_committed == n).any():
                for old, new in zip(self._rows(pending.after), self._rows(after)):
                    new[num_committed == n] = old[num_committed == n]
                remaining[num_committed == n] = 0
            tokens = [row[end - rest : end] for row, end, rest in zip(pending.tokens, num_committed, remaining)]
            self.states = self.model.replay(self, after, self.lengths + num_committed - remaining, tokens)

    def _repeat(self, n: int, num_committed: np.ndarray) -> None:
        """Recompute the large states after the first `taken` (B,) nodes of a chain, by repeating their operations."""
        space, table = self.spaces[n, False], self.program.repeats
        rows, job = np.where(space.index < num_committed[space.row], space.row, -1), space.job.copy()
        job[p.OPERATIONS], job[p.COUNT], job[p.ROW] = table.ctypes.data, len(table), rows.ctypes.data
        job[p.BEFORE] = job[p.AFTER] = self.states.address
        job[p.KEEP], job[p.SLOTS] = 0, self.batch
        engine.get_team().run(job, job.ctypes.data, self.model.threads)

    def _job(self, table: np.ndarray, path: np.ndarray, after: Memory | None = None) -> None:
        """Run bookkeeping operations (moves in caches, picks of states) over all layers."""
        job = p.aligned((p.JOB,), np.int64)
        path = np.ascontiguousarray(path)
        job[p.OPERATIONS], job[p.COUNT], job[p.BATCH] = table.ctypes.data, len(table), self.batch
        lengths = self.lengths - self.dropped
        job[p.CACHE], job[p.CAPACITY], job[p.LENGTH] = self.cache.address, self.capacity, lengths.ctypes.data
        job[p.PATH], job[p.STEPS] = path.ctypes.data, path.shape[1]
        if after is not None:
            job[p.BEFORE], job[p.AFTER] = self.states.address, after.address
            job[p.SLOTS] = after.array.size // self.program.floats_per_state
        engine.get_team().run(job, job.ctypes.data, 1)

    def _rows(self, memory: Memory) -> list[np.ndarray]:
        """Return views of the recurrent states of all layers, each (B, size)."""
        b = self.batch
        return [memory.array[b * at : b * (at + size)].reshape(b, size) for at, size in self.program.states]

    def _layers(self, memory: Memory, capacity: int) -> list[np.ndarray]:
        """Return views of the keys and values of all layers, each (B, heads, capacity / TILE, TILE * width)."""
        b, views = self.batch, []
        for at, heads, key, value in self.program.caches:
            layer = memory.array[b * capacity * at : b * capacity * (at + heads * (key + value))]
            split = b * capacity * heads * key
            views += [layer[:split].reshape(b, heads, capacity // TILE, key * TILE),
                      layer[split:].reshape(b, heads, capacity // TILE, value * TILE)]
        return views

    def reserve(self, nodes: int) -> None:
        """Make room for `nodes` more nodes in each row, doubling the capacity, so that n tokens cost O(n) copying."""
        full = bool(self.program.caches) and self.longest - self.dropped + nodes > self.capacity
        if full:
            self._drop()
        need = self.longest - self.dropped + nodes
        if full and need > self.capacity:
            capacity = p.padded(max(need, 2 * self.capacity, 128), TILE)
            cache = Memory(self.batch * capacity * self.program.floats_per_position)
            used = self.capacity // TILE
            for old, new in zip(self._layers(self.cache, self.capacity), self._layers(cache, capacity)):
                new[:, :, :used] = old
            self.cache, self.capacity = cache, capacity
        widest = self.program.widest + self.program.widest_row
        local = max(TILE + BLOCK * (3 * TILE + self.capacity + widest) + 2 * nodes, self.program.local)
        if local * self.model.threads > self.local.array.size:
            self.local = Memory(p.padded(2 * local, 2 * TILE) * self.model.threads)

    def _out_of_reach(self) -> int:
        """Return how many first positions no later node can attend to, a multiple of TILE."""
        reach = self.program.reach
        if reach is None or self.prompt is not None or not self.batch:
            return self.dropped
        oldest = min(int(lengths.min()) for lengths in (self.lengths - self.back, *(at for at, _ in self.marks)))
        return max(self.dropped, (oldest - reach) // TILE * TILE)

    def _drop(self) -> None:
        """Drop positions out of reach, if they are half of the cache or more."""
        dropped = self._out_of_reach()
        tiles = (dropped - self.dropped) // TILE
        if tiles and 2 * tiles * TILE >= self.capacity > 0:
            for layer in self._layers(self.cache, self.capacity):
                layer[:, :, :-tiles] = layer[:, :, tiles:]
            self.dropped = dropped

    def reclaim(self) -> None:
        """Reuse the buffer of pending states in the next run, since they will not be committed."""
        unused = None if self.pending is None else self.pending.after
        if unused is not None and unused is not self.states and unused.array.size == self.states.array.size:
            self.spare = unused

    def select(self, rows: Tensor) -> CompiledState:
        """Return a new state with these rows (long (R,), repeats allowed): fork, reorder or drop."""
        index = rows.numpy()
        new = CompiledState(self.model, len(index))
        new.lengths, new.history, new.tokens = self.lengths[index], self.history, self.tokens[index]
        new.prompt = None if self.prompt is None else self.prompt[rows]
        new.marks = [(lengths[index], self._select_states(states, index, new)) for lengths, states in self.marks]
        new.dropped, new.back = self.dropped, self.back
        new.dropped = new._out_of_reach()
        new.reserve(p.padded(1, TILE))
        first = (new.dropped - self.dropped) // TILE
        used = first + -(-(new.longest - new.dropped) // TILE)
        for old, view in zip(self._layers(self.cache, self.capacity), new._layers(new.cache, new.capacity)):
            view[:, :, : used - first] = old[index, :, first:used]
        new.states = self._select_states(self.states, index, new)
        return new

    def join(self, others: Sequence[CompiledState]) -> CompiledState:
        """Return a new state with the rows of this one followed by those of others."""
        parts = [self, *others]
        new = CompiledState(self.model, sum(part.batch for part in parts))
        new.lengths, new.history = np.concatenate([part.lengths for part in parts]), self.history
        new.dropped, new.back = min(part.dropped for part in parts), self.back
        if any(part.prompt is not None for part in parts):
            new.prompt = torch.cat([torch.zeros(part.batch, dtype=torch.long) if part.prompt is None else part.prompt
                                    for part in parts])
        width = max(part.tokens.shape[1] for part in parts)
        new.tokens = np.concatenate([np.pad(part.tokens, ((0, 0), (0, width - part.tokens.shape[1])))
                                     for part in parts])
        new.reserve(p.padded(1, TILE))
        ends = np.cumsum([part.batch for part in parts])
        rows = [slice(end - part.batch, end) for part, end in zip(parts, ends)]
        for part, slot in zip(parts, rows):
            start = (part.dropped - new.dropped) // TILE
            used = min(part.capacity, new.capacity - start * TILE) // TILE
            for old, view in zip(part._layers(part.cache, part.capacity), new._layers(new.cache, new.capacity)):
                view[slot, :, start : start + used] = old[:, :, :used]

        def stack_states(memories: Sequence[Memory]) -> Memory:
            stacked = Memory(new.states.array.size)
            for part, memory, slot in zip(parts, memories, rows):
                for old, view in zip(part._rows(memory), new._rows(stacked)):
                    view[slot] = old
            return stacked

        new.states = stack_states([part.states for part in parts])
        if self.history:  # pair marks from the latest back; a part with fewer marks repeats its oldest
            for age in range(max(len(part.marks) for part in parts), 0, -1):
                marks = [part.marks[max(-age, -len(part.marks))] for part in parts]
                lengths = np.concatenate([lengths for lengths, _ in marks])
                new.marks.append((lengths, stack_states([states for _, states in marks])))
        return new

    def _select_states(self, memory: Memory, index: np.ndarray, new: CompiledState) -> Memory:
        selected = Memory(new.states.array.size)
        for old, view in zip(self._rows(memory), new._rows(selected)):
            view[:] = old[index]
        return selected

    def rewind(self, n: int | Tensor) -> None:
        """Undo the last `n` (int or (B,)) committed tokens; recurrent states can go back at most `history` tokens."""
        steps = np.broadcast_to(np.asarray(n), (self.batch,))
        if (steps < 0).any() or (steps > self.lengths).any():
            raise SegueError(f"cannot rewind {steps.tolist()} tokens at positions {self.lengths.tolist()}")
        target = self.lengths - steps
        if self.dropped and (target < self.dropped + (self.program.reach or 0)).any():
            raise SegueError(f"cannot rewind {steps.tolist()} tokens at positions {self.lengths.tolist()}: what "
                             "attention saw there is forgotten; create the state with init_state(batch, history=N) for "
                             f"a larger N than {self.back}")
        if self.program.states and steps.any():
            if self.prompt is not None and ((target < self.prompt.numpy()) & (steps > 0)).any():
                raise SegueError(f"cannot rewind {steps.tolist()} tokens at positions {self.lengths.tolist()}: a state "
                                 f"that has read prompts of {self.prompt.tolist()} as a whole cannot go back into them")
            self._replay_to(target)
        self.lengths, self.pending = target, None

    def _replay_to(self, target: np.ndarray) -> None:
        start, base = np.full(self.batch, -1), Memory(self.states.array.size)
        for lengths, states in self.marks:  # start each row from its latest mark that is not beyond the target
            is_later = (lengths <= target) & (lengths > start)
            start = np.where(is_later, lengths, start)
            for old, new in zip(self._rows(states), self._rows(base)):
                new[is_later] = old[is_later]
        if (start < 0).any():
            raise SegueError(f"a recurrent state cannot go back that far: create it with init_state(batch, history=N) "
                             f"for a larger N than {self.history}")
        tokens = [row[a:b] for row, a, b in zip(self.tokens, start, target)]
        self.states = self.model.replay(self, base, start, tokens)
        for lengths, states in self.marks:  # marks beyond the target are no longer valid
            rewound = lengths > target
            lengths[rewound] = start[rewound]
            for old, new in zip(self._rows(base), self._rows(states)):
                new[rewound] = old[rewound]

    def _remember(self, tokens: np.ndarray, num_committed: np.ndarray, steps: np.ndarray | None) -> None:
        """Append committed tokens to the history."""
        capacity = int((self.lengths + num_committed).max(initial=0))
        if capacity > self.tokens.shape[1]:
            self.tokens = np.pad(self.tokens, ((0, 0), (0, capacity)))
        for row in range(self.batch):
            new = tokens[row] if steps is None else tokens[row, steps[row]]
            start, count = self.lengths[row], num_committed[row]
            self.tokens[row, start : start + count] = new[:count]

    def _mark(self) -> None:
        """Add a mark. Marks are `history` or more tokens apart, so that an older one is always far enough back."""
        self.marks = [*self.marks[-2:], (self.lengths.copy(), Memory(self.states.array.size, self.states))]

    def snapshot(self) -> CompiledState:
        """Return an independent copy of the committed state."""
        return self.select(torch.arange(self.batch))

    def restore(self, snapshot: CompiledState) -> None:
        """Go back to a snapshot, which stays usable."""
        self.__dict__.update(snapshot.snapshot().__dict__)


def wanted_in_chunk(at: np.ndarray, start: int, end: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Select, from the nodes `at` (B, M) whose logits are wanted, those in the chunk start .. end - 1. Return their
    rows and columns in `at`, and their indices among the chunk's nodes of all rows."""
    row, column = np.nonzero((at >= start) & (at < end))
    return row, column, row * (end - start) + at[row, column] - start


class CompiledModel:
    """A stack decoded by the compiled CPU engine. Satisfies `segue.models.base.Decodable`.

    weights: "float32", or "int8": matrices of signed bytes with one scale per output. On processors with VNNI, inputs
    are quantised to bytes as well, with one scale per node; elsewhere they stay float32. threads: per call (default: as
    many as torch uses). Safe to call from several Python threads.
    """

    def __init__(self, stack: Stack, weights: str = "float32", threads: int | None = None) -> None:
        if weights not in ("float32", "int8"):
            raise SegueError(f"weights '{weights}' are unknown: choose float32 or int8")
        self.weights, self.threads = weights, threads or torch.get_num_threads()
        self.config, self.vocabulary, self.layout_form = stack.config, stack.vocabulary, stack
        self.needs_whole_prompt = needs_whole_prompt(stack)
        with torch.no_grad():
            self.program = lower(stack, weights)

    def load(self) -> CompiledModel:
        """Pack the weights, load or compile the engine, and return self."""
        with torch.no_grad():
            self.program.finish()
        engine.load_engine()
        return self

    @property
    def path(self) -> str:
        return f"cpu kernels {self.weights}, {self.threads} thread{'s' * (self.threads > 1)}"

    def init_state(self, batch: int, history: int = 0) -> CompiledState:
        return CompiledState(self, batch, history)

    def extend(self, tokens: Tensor, state: Decoding, parents: Tensor | None = None,
               at: Tensor | None = None) -> Output:
        """See `segue.models.base.Decodable.extend`."""
        assert isinstance(state, CompiledState)
        ids, program, tree = tokens.numpy(), self.program, None if parents is None else parents.numpy()
        batch, n = ids.shape
        check_rows(batch, state)
        if at is not None:
            check_node_indices(at, batch, n)
        num_wanted = n if at is None else at.shape[1]
        if not ids.size:  # no rows, or no tokens
            state.pending = Pending(ids, tree, state.states, False, [])
            return Output(torch.zeros(batch, num_wanted, self.vocabulary), torch.zeros(batch, n, self.config.width))
        self._check_nodes(ids, state, parents)
        state.reserve(n)
        state.reclaim()
        logits = np.empty((batch, num_wanted, program.logit_stride), np.float32)
        hidden = np.empty((batch, n, self.config.width), np.float32)
        keep_all = bool(program.states) and (parents is not None or n <= MAX_NODE_STATES)
        if parents is None and state.prompt is not None:  # states within a prompt depend on the whole prompt
            keep_all = keep_all and bool((state.lengths >= state.prompt.numpy()).all())
        chunk = n if keep_all or parents is not None or self.needs_whole_prompt else max(1, CHUNK // max(batch, 1))
        before, states_before = state.states, []
        after = before
        for start in range(0, n, max(chunk, 1)):
            end = min(start + chunk, n)
            space = self._space(state, end - start, parents)
            space.token[:] = ids[:, start:end].reshape(-1)
            if program.states:
                states_before.append((start, before))
                after = self._room(state, space.nodes if keep_all else batch)
                if not keep_all:
                    after.array[:] = before.array
            self._run_chunk(state, space, start, before, after, keep_all, None if at is None else at.numpy(), logits)
            hidden[:, start:end] = program.read(program.top, space.scratch.array, space.nodes).reshape(
                batch, end - start, -1)
            before = after
        state.pending = Pending(ids, tree, after, keep_all, states_before)
        return Output(torch.from_numpy(logits[:, :, : self.vocabulary]), torch.from_numpy(hidden))

    def _run_chunk(self, state: CompiledState, space: Space, start: int, before: Memory, after: Memory, keep_all: bool,
                   at: np.ndarray | None, logits: np.ndarray) -> None:
        """Run the nodes of `space`, the first of which is node `start` of each row. Write into `logits` those of all
        nodes, or those of the nodes `at` (B, M) that are among them."""
        size = space.nodes // state.batch
        end, lengths, stride = start + size, state.lengths + start, self.program.logit_stride
        if at is None:
            whole = size == logits.shape[1]
            out = logits if whole else np.empty((state.batch, size, stride), np.float32)
            self._run(state, space, lengths, before, after, keep_all, None, out)
            if not whole:
                logits[:, start:end] = out
            return
        row, column, wanted = wanted_in_chunk(at, start, end)
        repeated = len(wanted) > space.nodes  # nodes are wanted several times: compute each once, then gather
        out = np.empty((space.nodes if repeated else len(wanted), stride), np.float32)
        self._run(state, space, lengths, before, after, keep_all, None if repeated else wanted, out)
        logits[row, column] = out[wanted] if repeated else out

    def step(self, tokens: np.ndarray, state: CompiledState) -> np.ndarray:
        """Extend by one token (B,) int64 per row and commit it, with little overhead, for tight decoding loops. Return
        the logits (B, V) of the next token."""
        if state.history or not len(tokens):
            logits = self.extend(torch.from_numpy(tokens)[:, None], state).logits[:, 0].numpy()
            state.commit()
            return logits
        ids = tokens.tolist()
        check_rows(len(ids), state)
        self._check(min(ids), max(ids), state, 1)
        state.reserve(1)
        space = state.spaces.get((1, False)) or self._space(state, 1, None)
        space.token[:] = tokens
        logits = np.empty((len(ids), self.program.logit_stride), np.float32)
        self._run(state, space, state.lengths, state.states, state.states, False, None, logits)  # in place
        state.advance()
        state.pending = None
        return logits[:, : self.vocabulary]

    def _check_nodes(self, ids: np.ndarray, state: CompiledState, parents: Tensor | None) -> None:
        """Check ids (B, N), parents and positions, since the kernels do not."""
        batch, n = ids.shape
        depth = n
        if parents is not None:
            check_parents(parents, batch, n)
            if self.config.learned_positions:
                depth = int(Layout.tree(parents, torch.zeros(batch)).positions.max()) + 1
        flat = ids.ravel().tolist()
        self._check(min(flat), max(flat), state, depth)

    def _check(self, low: int, high: int, state: CompiledState, depth: int) -> None:
        """Check that ids from low to high, and `depth` further positions, lie within their tables."""
        if low < 0 or high >= self.vocabulary:
            raise SegueError(f"token ids must lie in 0..{self.vocabulary - 1}, these reach from {low} to {high}: "
                             "was another codec used?")
        limit = self.config.learned_positions
        if limit and (over := state.longest + depth) > limit:
            raise SegueError(f"position {over - 1} is beyond the {limit} learned positions of this model: "
                             "give a shorter prompt or ask for fewer tokens")

    def _room(self, state: CompiledState, slots: int) -> Memory:
        """Return memory for the states after a run, reusing an earlier run's if there is any: touching fresh pages
        would take as long as the run itself."""
        size = slots * self.program.floats_per_state
        if slots > state.batch:
            state.draft = state.draft.resized(size)
            return state.draft
        spare, state.spare = state.spare, None
        return Memory(size) if spare is None else spare

    def _space(self, state: CompiledState, n: int, parents: Tensor | None) -> Space:
        key = n, parents is not None
        space = state.spaces.get(key)
        if space is None:
            space = Space(self.program, np.full(state.batch, n))
            if n <= MAX_NODE_STATES:
                state.spaces[key] = space
        if parents is not None:
            space.tree(parents.numpy())
        return space

    def _run(self, state: CompiledState, space: Space, lengths: np.ndarray, before: Memory, after: Memory, kept: bool,
             want: np.ndarray | None, logits: np.ndarray) -> None:
        """Run the program. want: indices of the nodes whose logits are written to `logits` (None: all)."""
        space.length[:] = lengths - state.dropped
        if state.prompt is not None:
            space.prompt[:] = state.prompt.numpy()
        if space.single:
            space.position[:] = lengths
        else:
            np.add(space.index, lengths[space.row], out=space.position)
        job = space.job
        job[p.LOCAL], job[p.LOCAL_BYTES] = state.local.address, state.local.array.nbytes // self.threads
        job[p.CACHE], job[p.CAPACITY] = state.cache.address, state.capacity
        job[p.BEFORE], job[p.AFTER], job[p.KEEP] = before.address, after.address, kept
        job[p.SLOTS] = space.nodes if kept else state.batch
        job[p.WANT], job[p.WANTED] = (space.every, space.nodes) if want is None else (want.ctypes.data, len(want))
        job[p.LOGITS] = logits.ctypes.data
        engine.get_team().run(job, space.address, self.threads)

    def replay(self, state: CompiledState, states: Memory, lengths: np.ndarray, tokens: list[np.ndarray]) -> Memory:
        """Return the recurrent states of each row after these tokens, starting from `states` at `lengths`. Keys and
        values are rewritten with the same contents."""
        remaining = np.array([len(row) for row in tokens])
        done, no_logits = np.zeros_like(remaining), np.empty((0, self.program.logit_stride), np.float32)
        while remaining.any():
            counts = remaining if self.needs_whole_prompt else np.minimum(remaining, max(1, CHUNK // len(remaining)))
            space = Space(self.program, counts)
            space.token[:] = np.concatenate([row[a : a + c] for row, a, c in zip(tokens, done, counts)])
            after = Memory(states.array.size, states)
            self._run(state, space, lengths + done, states, after, False, np.empty(0, np.int64), no_logits)
            states, done, remaining = after, done + counts, remaining - counts
        return states


LOADING = threading.Lock()


class Accelerated:
    """A stack decoded by torch until the engine is compiled, and by the compiled engine from then on.

    Each state stays with the implementation that created it; `path` names the one that a new state would get.
    """

    def __init__(self, stack: Stack, compiled: CompiledModel) -> None:
        self.stack, self.compiled, self.loaded = stack.eval(), compiled, False
        self.vocabulary, self.layout_form = stack.vocabulary, stack
        self.needs_whole_prompt = compiled.needs_whole_prompt
        self._builder: threading.Thread | None = None
        if not compile_in_background():  # no cache on disk: compile in this process, in a thread
            self._builder = threading.Thread(target=engine.load_engine, daemon=True)
            self._builder.start()

    @property
    def model(self) -> Stack | CompiledModel:
        """The implementation that creates new states."""
        if not self.loaded and (is_warm() if self._builder is None else not self._builder.is_alive()):
            with LOADING:
                if not self.loaded:
                    self.compiled.load()
                    self.loaded = True
        return self.compiled if self.loaded else self.stack

    @property
    def path(self) -> str:
        if isinstance(self.model, CompiledModel):
            return self.model.path
        return f"{self.stack.path} (the cpu kernels are being compiled, once)"

    def init_state(self, batch: int, history: int = 0) -> Decoding:
        return self.model.init_state(batch, history)

    def extend(self, tokens: Tensor, state: Decoding, parents: Tensor | None = None,
               at: Tensor | None = None) -> Output:
        """See `segue.models.base.Decodable.extend`."""
        if isinstance(state, CompiledState):
            return self.compiled.extend(tokens, state, parents, at)
        with torch.no_grad():
            return self.stack.extend(tokens, state, parents, at)

    def step(self, tokens: np.ndarray, state: Decoding) -> np.ndarray:
        """See `CompiledModel.step`."""
        if isinstance(state, CompiledState):
            return self.compiled.step(tokens, state)
        logits = self.extend(torch.from_numpy(tokens)[:, None], state).logits[:, 0].numpy()
        state.commit()
        return logits


def accelerate(stack: Stack, weights: str = "float32") -> CompiledModel | Accelerated:
    """Return the stack run by the compiled engine, without waiting for a compiler.

    If the engine has been compiled on this machine before, it is loaded, in about half a second. Otherwise another
    process compiles it, once, and torch decodes until that is done. A SegueError says what has no compiled form.
    """
    model = CompiledModel(stack, weights)
    return model.load() if is_warm() else Accelerated(stack, model)


def compile_model(stack: Stack, weights: str = "float32", threads: int | None = None) -> CompiledModel:
    """Lower a stack to the compiled CPU engine. A SegueError says what in it has no compiled form."""
    return CompiledModel(stack, weights, threads).load()
