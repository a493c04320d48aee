"""What a mixer remembers, and the one life cycle all memories share: extend leaves it *pending*, commit makes it real.

A `State` holds the parts of one mixer or of a whole stack, and where each row stands. Parts come in two sorts: a
`Carry` (a recurrence's state, of constant size) and, in `segue.mixers.cache`, a cache with a cursor.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segue.errors import SegueError


@dataclass
class Layout:
    """How the nodes of one call stand to each other and to what came before.

    positions: (B, N) long; explicit, never derived from an index or from the length of a cache.
    parents: (B, N) long, or None for a chain. `parents[b, i]` is the node that node i follows in this call, -1 the
        state's end. Nodes are topologically ordered; padding nodes come last and nothing real descends from them.
    starts: (B, N) bool, or None. True where a new document (episode) begins: nothing before it is seen.
    grid: sizes of the sequence axes (time, height, width ...) whose product is N, where the nodes lie on a grid in
        row-major order, or None for one axis. A mixer says how many axes it takes (`Mixer.axes`).
    prompt: (B, N) bool, or None. True at the nodes of a document's prompt, for mixers that read a prompt both ways.
    source: (B, S, D) and (B,) long, or None. What an encoder made of another sequence, and how much of it is real, for
        cross-attention; a state remembers it, so that only the first call brings it.
    prompt_end: (B, 1) long, the position behind the prompt, where the prompt is not among these nodes; else None.
    sets: (B, N, 2) long, or None. For each node of a chain the set it lies in (0: none) and its part of that set.
        Parts of one set do not see each other; give them the same positions, and their order has no say.
    labels: (B, N) long, or None. Where each node stands in a region of the sequence, from 1 (0: in none); see
        `segue.mixers.regions`.
    traits: by name (B, N) long, or None. What the nodes are besides, for attention that compares it; see
        `segue.mixers.traits`.
    """

    positions: Tensor
    parents: Tensor | None = None
    starts: Tensor | None = None
    grid: tuple[int, ...] | None = None
    prompt: Tensor | None = None
    source: tuple[Tensor, Tensor] | None = None
    prompt_end: Tensor | None = None
    sets: Tensor | None = None
    labels: Tensor | None = None
    traits: dict[str, Tensor] | None = None

    @staticmethod
    def chain(shape: tuple[int, int], first: Tensor | None = None, starts: Tensor | None = None,
              device: torch.device | str | None = None, grid: tuple[int, ...] | None = None,
              prompt: Tensor | None = None) -> Layout:
        """`shape` (B, N) nodes one after the other; `first` (B,) is the position of the first (default 0)."""
        if starts is not None:
            device = starts.device
        index = torch.arange(shape[1], device=device if first is None else first.device)
        positions = index.expand(shape) if first is None else first[:, None] + index
        if starts is not None:
            # At a start the position is 0 again: subtract the position that the latest start would have had.
            latest = torch.where(starts, index, -1).cummax(dim=1).values
            positions = torch.where(latest >= 0, index - latest, positions)
        if grid is not None and math.prod(grid) != shape[1]:
            raise SegueError(f"a grid of {' x '.join(map(str, grid))} has {math.prod(grid)} places, "
                             f"but there are {shape[1]} nodes")
        return Layout(positions, None, starts, grid, prompt)

    @staticmethod
    def of(x: Tensor) -> Layout:
        """Of x (B, N, ...), each row one document from position 0."""
        return Layout.chain((x.shape[0], x.shape[1]), device=x.device)

    @staticmethod
    def tree(parents: Tensor, first: Tensor) -> Layout:
        """Nodes of a draft tree whose roots stand at `first` (B,); a node's position is its parent's plus one."""
        layout = Layout(first[:, None].expand(parents.shape), parents)
        return Layout(first[:, None] + layout.follows.sum(-1) - 1, parents)

    @cached_property
    def follows(self) -> Tensor:
        """(B or 1, N, N) bool: node k is node q itself or one of its ancestors in this call."""
        n = self.positions.shape[1]
        if self.parents is None:
            before = torch.ones(1, n, n, dtype=torch.bool, device=self.positions.device).tril()
            if self.sets is None:
                return before
            one, part = self.sets.unbind(-1)
            return before & ~((one[:, :, None] == one[:, None]) & (one > 0)[:, None]
                              & (part[:, :, None] != part[:, None]))
        # Squaring the one-step relation closes it after log2(N) products.
        one = torch.zeros(*self.parents.shape, n + 1, device=self.positions.device)
        one.scatter_(2, torch.where(self.parents >= 0, self.parents, n)[..., None], 1.0)
        reach = one[..., :n] + torch.eye(n, device=self.positions.device)
        for _ in range(max(n - 1, 1).bit_length()):
            reach = (reach @ reach).clamp(max=1)
        return reach > 0

    def mirrored(self) -> Layout:
        """The chain read from its end: a document then starts at its last node. Positions count from 0 there."""
        batch, n = self.positions.shape
        starts = None if self.starts is None else F.pad(self.starts[:, 1:], (0, 1), value=True)[:, :n].flip(1)
        return Layout.chain((batch, n), starts=starts, device=self.positions.device)

    @property
    def line(self) -> bool:
        """Every node sees all before it: no tree, no sets."""
        return self.parents is None and self.sets is None

    @cached_property
    def restarted(self) -> Layout:
        """The same nodes, with positions that begin at 0 again behind the prompt of each document."""
        if self.prompt is None:
            return self
        end = self.prompt_end
        if end is None:
            behind = torch.where(self.prompt, self.positions + 1, 0)
            if self.segments is None:
                end = behind.amax(1, keepdim=True) if behind.shape[1] else behind
            else:
                segments = self.segments
                table = segments.new_zeros(segments.shape[0], segments.shape[1] + 1)  # a row has so many at most
                end = table.scatter_reduce(1, segments, behind, "amax").gather(1, segments)
        return replace(self, positions=torch.where(self.prompt, self.positions, self.positions - end))

    @cached_property
    def even(self) -> bool:
        """A chain whose positions go up by one within each document: distances are those of the indices."""
        if not self.line:
            return False
        steps = self.positions.diff(dim=1) == 1
        return bool((steps if self.starts is None else steps | self.starts[:, 1:]).all())

    @cached_property
    def aligned(self) -> bool:
        """A chain of one document per row whose node i stands at position i."""
        return self.even and self.starts is None and not bool(self.positions[:, :1].any())

    @cached_property
    def segments(self) -> Tensor | None:
        """(B, N) long: 0 continues the state, each start opens the next segment."""
        return None if self.starts is None else self.starts.long().cumsum(1)

    @property
    def together(self) -> Tensor | None:
        """(B, N, N) bool: two nodes are of one document. None where all are."""
        return None if self.segments is None else self.segments[:, :, None] == self.segments[:, None]


def within(lengths: Tensor, n: int) -> Tensor:
    """(B, n) bool: the first `lengths` (B,) of each row."""
    return torch.arange(n, device=lengths.device) < lengths[:, None]


def gather_nodes(x: Tensor, index: Tensor) -> Tensor:
    """Rows of x (B, N, ...) at `index` (B, P), where negative entries give row 0 (to be masked by the caller)."""
    index = index.clamp(min=0).view(*index.shape, *[1] * (x.dim() - 2))
    return x.gather(1, index.expand(-1, -1, *x.shape[2:]))


_UNREAD = ContextVar("unread", default=False)


@contextmanager
def unread() -> Iterator[None]:
    """Within, nobody checks the numbers of tensors: the work is recorded, and a recording cannot wait for them."""
    token = _UNREAD.set(True)
    try:
        yield
    finally:
        _UNREAD.reset(token)


def may_look() -> bool:
    """Whether the numbers of tensors can be checked here: not while torch compiles, nor `unread`."""
    return not torch.compiler.is_compiling() and not _UNREAD.get()


def check_parents(parents: Tensor, batch: int, n: int) -> None:
    """Refuse what is no forest of `n` nodes per row in topological order; a kernel would wait on it for ever."""
    later = parents >= torch.arange(parents.shape[-1], device=parents.device)
    if parents.shape != (batch, n) or bool((later | (parents < -1)).any()):
        raise SegueError(f"parents {tuple(parents.shape)} of {batch} rows of {n} nodes: give for each node the index "
                         "of an earlier one, or -1")


def check_rows(rows: int, state: Any) -> None:
    """Refuse input of another number of rows than its state has."""
    if rows != state.batch:
        raise SegueError(f"{rows} rows of input cannot follow a state of {state.batch} rows: select the rows first")


def check_path(path: list[list[int]], parents: list[list[int]] | None, batch: int, n: int) -> None:
    """Refuse what is not, for each of `batch` rows, a path from a root of its `n` nodes on, padded with -1 at its end.
    parents: of each row's nodes, or None for a chain."""
    chain = list(range(-1, n - 1))
    good = len(path) == batch
    for row, tree in zip(path, parents or [chain] * batch):
        above, ended = -1, False
        for node in row:
            if node < 0:
                ended = True
            elif ended or node >= n or tree[node] != above:
                good = False
            else:
                above = node
    if not good:
        raise SegueError(f"path {path} is no root-to-node path of the {n} pending nodes of {batch} rows, padded with "
                         "-1 at its end")


def check_asked(at: Tensor, batch: int, n: int) -> None:
    """Refuse what are not, for each of `batch` rows, some of its `n` nodes."""
    if len(at) != batch or (at.numel() and not 0 <= int(at.min()) <= int(at.max()) < n):
        raise SegueError(f"nodes {at.tolist()} are asked for of {n} nodes in {batch} rows")


def check_counts(counts: Tensor, batch: int, n: int) -> None:
    """Refuse what is not, for each of `batch` rows, how many of its `n` nodes are taken."""
    if counts.shape != (batch,) or not all(0 <= count <= n for count in counts.tolist()):
        raise SegueError(f"cannot commit {counts.tolist()} of {n} pending nodes in {batch} rows")


@dataclass
class Nodes:
    """Those nodes of a call that one layer runs on, where these are not all.

    taken: (B, N) bool; no taken node follows one that is not. layout: of the layer's M nodes, which are the taken ones
        of each row in order, then padding. index: (B, M) long, where they stand in the call (None: its first M).
    """

    taken: Tensor
    layout: Layout
    index: Tensor | None

    @staticmethod
    def of(layout: Layout, taken: Tensor) -> Nodes:
        if layout.sets is not None:
            raise SegueError("sets need all layers at all nodes: depth by position reads in order")
        taken = taken.expand(layout.positions.shape)
        size = int(taken.sum(1).max())
        if layout.parents is None and layout.starts is None:  # a row takes its beginning
            prompt = None if layout.prompt is None else layout.prompt[:, :size]
            return Nodes(taken, replace(layout, positions=layout.positions[:, :size], grid=None, prompt=prompt), None)
        index = taken.logical_not().to(torch.uint8).argsort(dim=1, stable=True)[:, :size]
        starts, prompt = (None if x is None else gather_nodes(x.expand(taken.shape), index)
                          for x in (layout.starts, layout.prompt))
        nodes = Nodes(taken, replace(layout, positions=gather_nodes(layout.positions, index), parents=None,
                                     starts=starts, grid=None, prompt=prompt), index)
        if layout.parents is not None:
            parents = gather_nodes(layout.parents, index)
            real = (parents >= 0) & gather_nodes(taken, index)
            nodes.layout.parents = torch.where(real, gather_nodes(nodes.places, parents), -1)
        return nodes

    @cached_property
    def places(self) -> Tensor:
        """(B, N) long: which of the layer's nodes each taken one is."""
        return self.taken.long().cumsum(1) - 1

    def take(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, M, D)."""
        return x[:, : self.layout.positions.shape[1]] if self.index is None else gather_nodes(x, self.index)

    def put(self, x: Tensor, y: Tensor) -> Tensor:
        """x (B, N, D) with y (B, M, D), which the layer made of its nodes, in their places."""
        if self.index is None:
            y = F.pad(y, (0, 0, 0, x.shape[1] - y.shape[1]))
        else:
            y = gather_nodes(y, self.places.clamp(max=y.shape[1] - 1))
        return torch.where(self.taken[..., None], y, x)

    def chosen(self, path: Tensor | None, counts: Tensor | None) -> tuple[Tensor | None, Tensor]:
        """What is committed of the call, in the numbers of this layer's nodes (see `State.commit`)."""
        if path is not None:
            real = (path >= 0) & gather_nodes(self.taken, path)
            return torch.where(real, gather_nodes(self.places, path), -1), real.sum(1)
        taken = self.taken
        if counts is not None:
            taken = taken & (torch.arange(taken.shape[1], device=taken.device) < counts[:, None])
        return None, taken.sum(1)


class Part(Protocol):
    """One memory inside a state. `path` (B, P) are node indices padded with -1, or None for a chain, of which the
    first `counts` (B,) nodes are taken (None: all)."""

    def commit(self, path: Tensor | None, counts: Tensor | None) -> None: ...
    def select(self, rows: Tensor) -> Part: ...
    def join(self, others: Sequence[Any]) -> Part: ...  # the rows of other parts of its sort below its own
    def reach(self) -> Tensor: ...  # (B,): how many tokens each row can go back
    def rewind(self, n: Tensor) -> None: ...  # no more than that
    def copy(self) -> Part: ...
    def detach(self) -> None: ...
    def tensors(self) -> dict[str, Tensor]: ...
    def load(self, tensors: dict[str, Tensor]) -> None: ...


Parts = Mapping[str, Part]  # the memories of one layer by name; empty where nothing is remembered (training)


class State:
    """The memory of one mixer (one layer) or of a stack (many), for a batch of rows.

    positions: (B,) long, the position the next token of each row will take.
    layers: for each layer its named parts.
    prompt: (B,) long, or None: how many first positions are the prompt of each row, for mixers that read a prompt both
        ways and models that count from its end; set it before the prompt is given.
    spans: for each layer, or None: it runs only on nodes that stand less than so many places behind the prompt (see
        `behind`); where it does not run, its memory stays as it was. Whoever runs the layers of a call says in `given`
        which nodes a layer had where those are not all (None: not one).
    floor: (B,) long, the position behind each row's last set (see `Layout.sets`), or where it was loaded: no row can go
        back beyond.
    """

    def __init__(self, layers: list[dict[str, Part]], positions: Tensor, prompt: Tensor | None = None,
                 spans: Sequence[int] | None = None) -> None:
        self.layers = layers
        self.positions = positions
        self.prompt = prompt
        self.spans = spans
        self.floor = torch.zeros_like(positions)
        self.pending: Layout | None = None
        self.given: dict[int, Nodes | None] = {}

    @property
    def batch(self) -> int:
        return self.positions.shape[0]

    def layout(self, n: int, parents: Tensor | None = None, positions: Tensor | None = None,
               starts: Tensor | None = None) -> Layout:
        """The layout of `n` new nodes that follow this state."""
        if parents is not None:
            check_parents(parents, self.batch, n)
        if positions is not None:
            layout = Layout(positions, parents, starts)
        elif parents is None:
            layout = Layout.chain((self.batch, n), self.positions, starts)
        elif starts is None:
            layout = Layout.tree(parents, self.positions)
        else:
            raise SegueError("a draft tree cannot cross the start of a document: give `starts` or `parents`")
        if self.prompt is not None:
            layout.prompt_end = self.prompt[:, None]
            layout.prompt = layout.positions < layout.prompt_end
        return layout

    def behind(self, positions: Tensor) -> Tensor:
        """How many places behind their row's prompt `positions` (B, N) stand: 0 the first, below 0 within it."""
        return positions if self.prompt is None else positions - self.prompt[:, None]

    def commit(self, path: Tensor | None = None, counts: Tensor | None = None) -> None:
        """Make pending nodes real, and forget the rest.

        path: (B, P) long, one root-to-node path per row, padded with -1. None takes a chain: all of it, or the
        first `counts` (B,) nodes of each row (ragged prompts).
        """
        layout = self.pending
        if layout is None:
            raise SegueError("nothing is pending: call extend before commit")
        n = layout.positions.shape[1]
        if path is not None:
            check_path(path.tolist(), None if layout.parents is None else layout.parents.tolist(), self.batch, n)
            counts = (path >= 0).sum(1)
        elif layout.parents is not None:
            raise SegueError("a draft tree is pending: say which path to commit")
        elif counts is not None:
            check_counts(counts, self.batch, n)
        if layout.sets is not None and n:
            self._leave_sets(layout.sets[..., 0] > 0, layout.positions, counts)
        for index, layer in enumerate(self.layers):
            nodes = self.given.get(index)
            if nodes is None and index in self.given:
                continue
            own = (path, counts) if nodes is None else nodes.chosen(path, counts)
            for part in layer.values():
                part.commit(*own)
        if counts is None:
            if n:
                self.positions = layout.positions[:, -1] + 1
        elif n:
            last = (counts - 1).clamp(min=0)[:, None]
            if path is not None:
                last = path.gather(1, last).clamp(min=0) if path.shape[1] else torch.zeros_like(last)
            self.positions = torch.where(counts > 0, layout.positions.gather(1, last)[:, 0] + 1, self.positions)
        self.pending = None

    def _leave_sets(self, inside: Tensor, positions: Tensor, counts: Tensor | None) -> None:
        """Where each row stands behind its last set. inside: (B, N) bool, the nodes of sets."""
        index = torch.arange(inside.shape[1], device=inside.device)
        counts = torch.full_like(self.positions, inside.shape[1]) if counts is None else counts
        after = torch.where(inside & (index < counts[:, None]), index + 1, 0).amax(1)
        if bool(((after > 0) & (after >= counts)).any()):
            raise SegueError("a row ends within a set: commit it with at least one token that follows the whole set")
        behind = positions.gather(1, after.clamp(max=inside.shape[1] - 1)[:, None])[:, 0]
        self.floor = torch.where(after > 0, behind, self.floor)

    def select(self, rows: Tensor) -> State:
        """A new state with these rows (long (R,), repeats allowed): fork, reorder or drop."""
        layers = [{name: part.select(rows) for name, part in layer.items()} for layer in self.layers]
        prompt = None if self.prompt is None else self.prompt[rows]
        return self._like(layers, self.positions[rows], prompt, self.floor[rows])

    def join(self, others: Sequence[State]) -> State:
        """A new state with the rows of this one and of others of the same model below them (requests join a batch)."""
        layers = [{name: part.join([other.layers[index][name] for other in others]) for name, part in layer.items()}
                  for index, layer in enumerate(self.layers)]
        states, prompt = [self, *others], None
        if any(state.prompt is not None for state in states):
            prompt = torch.cat([torch.zeros_like(state.positions) if state.prompt is None else state.prompt
                                for state in states])
        return self._like(layers, torch.cat([state.positions for state in states]), prompt,
                          torch.cat([state.floor for state in states]))

    def _like(self, layers: list[dict[str, Part]], positions: Tensor, prompt: Tensor | None, floor: Tensor) -> Self:
        """A state of the same model for other rows."""
        state = type(self)(layers, positions, prompt, self.spans)
        state.floor = floor
        return state

    def rewind(self, n: int | Tensor) -> None:
        """Forget the last `n` (int or (B,)) committed tokens; positions go back with them."""
        n = torch.as_tensor(n, device=self.positions.device).expand(self.batch)
        if (n < 0).any() or (n > self.positions - self.floor).any():
            raise SegueError(f"cannot rewind {n.tolist()} tokens at positions {self.positions.tolist()}" +
                             (f", of which those before {self.floor.tolist()} are fixed" if self.floor.any() else ""))
        back = [self._taken_of_last(n, index) for index in range(len(self.layers))]
        for index, where, part in self._parts():  # all are asked before one is moved
            reach = part.reach().to(n.device)  # what is remembered for transformers lies on the CPU
            if (back[index] > reach).any():
                raise SegueError(f"'{where}' of the state can go back {reach.tolist()} tokens here, not "
                                 f"{back[index].tolist()}: create it with init_state(batch, history=N) for a larger N")
        for index, _, part in self._parts():
            part.rewind(back[index])
        self.positions = self.positions - n
        self.pending = None

    def _taken_of_last(self, n: Tensor, index: int) -> Tensor:
        """(B,): how many of the last `n` tokens layer `index` ran on."""
        if self.spans is None:
            return n
        first = self.behind((self.positions - n)[:, None])[:, 0]
        return (self.spans[index] - first).clamp(min=0).minimum(n)

    def snapshot(self) -> State:
        """An independent copy of what is committed."""
        layers = [{name: part.copy() for name, part in layer.items()} for layer in self.layers]
        return self._like(layers, self.positions.clone(), self.prompt, self.floor)

    def restore(self, snapshot: State) -> None:
        """Go back to a snapshot, which stays usable."""
        copy = snapshot.snapshot()
        self.layers, self.positions, self.prompt, self.floor = copy.layers, copy.positions, copy.prompt, copy.floor
        self.pending = None

    def detach(self) -> None:
        """Cut the graph: later losses do not flow back beyond here (truncated back-propagation through time)."""
        for _, _, part in self._parts():
            part.detach()

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor of the committed state by name: to count, move, save, or train. See `load`."""
        named = {f"{where}.{name}": tensor for _, where, part in self._parts()
                 for name, tensor in part.tensors().items()}
        return {"positions": self.positions, **named}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Put tensors in place, named as `tensors()` names them, all for the same rows.

        They may be parameters (a trained initial state): gradients flow into them. What came before cannot be rewound.
        """
        if set(tensors) != set(self.tensors()):
            raise SegueError(f"a state of {sorted(self.tensors())} cannot load {sorted(tensors)}")
        for _, where, part in self._parts():
            part.load({name: tensors[f"{where}.{name}"] for name in part.tensors()})
        self.positions = self.floor = tensors["positions"]
        self.pending = None

    def _parts(self) -> Iterator[tuple[int, str, Part]]:
        for index, layer in enumerate(self.layers):
            for name, part in layer.items():
                yield index, f"{index}.{name}", part


Tensors = tuple[Tensor, ...]


class Recurrence(nn.Module):
    """A state of constant size that moves along the sequence: h_t = f(h_{t-1}, inputs_t), outputs_t = g(h_t, inputs_t).

    A subclass says how a fresh state looks and how to run a chain; trees, commits, ragged rows and rewinding follow.

    free: which tensors of the state may begin as any numbers, where the beginning is learned (None: all).
    """

    free: ClassVar[tuple[int, ...] | None] = None

    def initial(self, batch: int, like: Tensor) -> Tensors:
        """The state before anything was seen: tensors of shape (B, ...), on the device and of the dtype of `like`."""
        raise NotImplementedError

    def opened(self, batch: int, like: Tensor) -> Tensors:
        """A state as fresh as `initial`, to whose free tensors numbers can be added: where a learned one begins."""
        return self.initial(batch, like)

    def scan(self, inputs: Tensors, state: Tensors, starts: Tensor | None = None,
             lengths: Tensor | None = None) -> tuple[Tensor, Tensors]:
        """Run a chain of inputs (B, N, ...) from `state`; give the outputs (B, N, ...) and the state at the end.

        starts: (B, N) bool, the state is fresh again before these nodes.
        lengths: (B,), the returned state is the one after this many nodes (0: `state` itself).
        """
        raise NotImplementedError

    def kept(self, inputs: Tensors) -> Tensors | None:
        """Where all that a chain of inputs does to the state before it is to multiply it, element by element, and to
        add to it: the factors, broadcastable to the state. Else None."""
        return None

    def forward(self, inputs: Tensors, layout: Layout, carry: Carry | None = None) -> Tensor:
        """Outputs (B, N, ...) of all nodes; with a `carry`, from its state, leaving the inputs pending in it."""
        state = self.initial(inputs[0].shape[0], inputs[0]) if carry is None else carry.before(inputs, layout.starts)
        if layout.parents is None or not layout.parents.numel():
            outputs, final = self.scan(inputs, state, layout.starts)
        else:
            outputs, final = self._scan_tree(inputs, state, layout), None
        if carry is not None:
            carry.pending = (inputs, layout.starts, final)
        return outputs

    def _scan_tree(self, inputs: Tensors, state: Tensors, layout: Layout) -> Tensor:
        """Level by level: all nodes of one depth take one step from their parents' states."""
        assert layout.parents is not None
        parents, depth = layout.parents, layout.follows.sum(-1) - 1
        # The last slot holds the state the roots follow, so that a parent of -1 finds it by plain indexing.
        nodes = [torch.cat([s.new_zeros(s.shape[0], parents.shape[1], *s.shape[1:]), s[:, None]], 1) for s in state]
        order: list[tuple[Tensor, Tensor]] = []
        outputs: list[Tensor] = []
        for level in range(int(depth.max()) + 1):
            row, node = torch.nonzero(depth == level, as_tuple=True)
            before = tuple(s[row, parents[row, node]] for s in nodes)
            out, after = self.scan(tuple(x[row, node][:, None] for x in inputs), before)
            for index, new in enumerate(after):
                nodes[index] = nodes[index].index_put((row, node), new)
            order.append((row, node))
            outputs.append(out[:, 0])
        row, node = (torch.cat(index) for index in zip(*order))
        found = torch.cat(outputs)
        return found.new_zeros(*parents.shape, *found.shape[1:]).index_put((row, node), found)


class SteppedRecurrence(Recurrence):
    """A recurrence given by one step, run in a plain loop: for those that no fused kernel covers."""

    def step(self, inputs: Tensors, state: Tensors) -> tuple[Tensor, Tensors]:
        """inputs (B, ...) and state (B, ...) of one node -> its output (B, ...) and the next state."""
        raise NotImplementedError

    def scan(self, inputs: Tensors, state: Tensors, starts: Tensor | None = None,
             lengths: Tensor | None = None) -> tuple[Tensor, Tensors]:
        batch, n = inputs[0].shape[:2]

        def choose(rows: Tensor, a: Tensors, b: Tensors) -> Tensors:
            return tuple(torch.where(rows.view(-1, *[1] * (x.dim() - 1)), x, y) for x, y in zip(a, b))

        fresh, outputs = self.initial(batch, inputs[0]), []
        wanted = state
        for t in range(n):
            if starts is not None:
                state = choose(starts[:, t], fresh, state)
            y, state = self.step(tuple(x[:, t] for x in inputs), state)
            outputs.append(y)
            wanted = state if lengths is None else choose(t < lengths, state, wanted)
        if not outputs:
            y, _ = self.step(tuple(x.new_zeros(batch, *x.shape[2:]) for x in inputs), state)
            return y.new_zeros(batch, 0, *y.shape[1:]), state
        return torch.stack(outputs, 1), wanted


class Carry:
    """The committed state of a `Recurrence`, what is pending, and enough past inputs to go back `history` tokens."""

    def __init__(self, recurrence: Recurrence, state: Tensors, history: int = 0) -> None:
        self.recurrence = recurrence
        self.state = state
        self.history = history
        self.pending: tuple[Tensors, Tensor | None, Tensors | None] | None = None
        # To rewind, replay: `base` is an older state, `trail` the inputs since then, `fill` how many of them per row.
        self.base = state
        self.trail: Tensors | None = None
        self.fill = torch.zeros(state[0].shape[0], dtype=torch.long, device=state[0].device)

    def before(self, inputs: Tensors, starts: Tensor | None) -> Tensors:
        """The state that these inputs follow."""
        return self.state

    def commit(self, path: Tensor | None, counts: Tensor | None) -> None:
        assert self.pending is not None, "extend first"
        inputs, starts, final = self.pending
        if path is not None:
            inputs = tuple(gather_nodes(x, path) for x in inputs)
            starts = None if starts is None else gather_nodes(starts, path)
        if path is None and counts is None and final is not None:
            self.state = final
        elif inputs[0].shape[1]:
            self.state = self.recurrence.scan(inputs, self.state, starts, counts)[1]
        if self.history:
            self._remember(inputs, starts, counts)
        self.pending = None

    def _remember(self, inputs: Tensors, starts: Tensor | None, counts: Tensor | None) -> None:
        batch, n = inputs[0].shape[:2]
        if starts is None:
            starts = torch.zeros(batch, n, dtype=torch.bool, device=inputs[0].device)
        if counts is None:
            counts = torch.full((batch,), n, device=inputs[0].device)
        new = (*inputs, starts)
        old = self.trail if self.trail is not None else tuple(x[:, :0] for x in new)
        index = torch.arange(old[0].shape[1] + n, device=inputs[0].device)
        kept = torch.where(index < old[0].shape[1], index < self.fill[:, None],
                           index - old[0].shape[1] < counts[:, None])
        order = kept.logical_not().to(torch.uint8).argsort(dim=1, stable=True)
        self.fill = self.fill + counts
        order = order[:, : int(self.fill.max()) if batch else 0]
        trail = tuple(gather_nodes(torch.cat([a, b], 1), order) for a, b in zip(old, new))
        if trail[0].shape[1] > 2 * self.history:  # move the base forward, so that the trail stays bounded
            drop = (self.fill - self.history).clamp(min=0)
            self.base = self.recurrence.scan(trail[:-1], self.base, trail[-1], drop)[1]
            window = drop[:, None] + torch.arange(self.history, device=drop.device)
            trail = tuple(gather_nodes(x, window.clamp(max=trail[0].shape[1] - 1)) for x in trail)
            self.fill = self.fill - drop
        self.trail = trail

    def reach(self) -> Tensor:
        return self.fill

    def rewind(self, n: Tensor) -> None:
        self.pending = None
        if self.trail is None or not n.any():
            return
        self.fill = self.fill - n
        self.state = self.recurrence.scan(self.trail[:-1], self.base, self.trail[-1], self.fill)[1]

    def select(self, rows: Tensor) -> Carry:
        chosen = Carry(self.recurrence, tuple(s[rows] for s in self.state), self.history)
        chosen.base = tuple(s[rows] for s in self.base)
        chosen.trail = None if self.trail is None else tuple(s[rows] for s in self.trail)
        chosen.fill = self.fill[rows]
        return chosen

    def join(self, others: Sequence[Carry]) -> Carry:
        parts = [self, *others]

        def stacked(states: list[Tensors]) -> Tensors:
            return tuple(torch.cat(tensors) for tensors in zip(*states))

        joined = Carry(self.recurrence, stacked([part.state for part in parts]), self.history)
        joined.base, joined.fill = stacked([part.base for part in parts]), torch.cat([part.fill for part in parts])
        trails = [part.trail for part in parts if part.trail is not None]
        if trails:
            longest = max(trail[0].shape[1] for trail in trails)
            padded = []
            for part in parts:
                trail = part.trail or tuple(x.new_zeros(len(part.fill), 0, *x.shape[2:]) for x in trails[0])
                padded.append(tuple(torch.cat([x, x.new_zeros(x.shape[0], longest - x.shape[1], *x.shape[2:])], 1)
                                    for x in trail))
            joined.trail = stacked(padded)
        return joined

    def copy(self) -> Carry:
        # Tensors are replaced, never written into, so a copy may share them.
        twin = Carry(self.recurrence, self.state, self.history)
        twin.base, twin.trail, twin.fill = self.base, self.trail, self.fill
        return twin

    def detach(self) -> None:
        self.state, self.base = (tuple(s.detach() for s in x) for x in (self.state, self.base))
        self.trail = None if self.trail is None else tuple(x.detach() for x in self.trail)

    def tensors(self) -> dict[str, Tensor]:
        return {str(index): tensor for index, tensor in enumerate(self.state)}

    def load(self, tensors: dict[str, Tensor]) -> None:
        self.state = self.base = tuple(tensors[str(index)] for index in range(len(tensors)))
        self.trail, self.pending, self.fill = None, None, torch.zeros_like(self.fill)
