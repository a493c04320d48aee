"""Layouts: the positions of the nodes (elements) of one call, and what each follows; checks of node arguments."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from segue.errors import SegueError


@dataclass
class Layout:
    """The structure of the nodes (elements) of one call: their positions, what each follows, and where documents start.

    positions: (B, N) long; explicit, never derived from an index or from the length of a cache.
    parents: (B, N) long, or None for a chain. `parents[b, i]` is the node that node i follows in this call, -1 the
        state's end. Nodes are topologically ordered; padding nodes come last and nothing real descends from them.
    starts: (B, N) bool, or None. True where a new document (episode) begins: nothing before it is seen.
    grid: sizes of the sequence axes (time, height, width ...) whose product is N, where the nodes lie on a grid in
        row-major order, or None for one axis. A mixer says how many axes it takes (`Mixer.axes`).
    prompt: (B, N) bool, or None. True at the nodes of a document's prompt, for mixers that read a prompt both ways.
    source: (B, S, D) and (B,) long, or None. Encoder outputs for another sequence, and their lengths without padding,
        for cross-attention; a state remembers them, so that only the first call needs them.
    prompt_end: (B, 1) long, the position after the prompt, where the prompt is not among these nodes; else None.
    sets: (B, N, 2) long, or None. For each node of a chain the set it lies in (0: none) and its part of that set.
        Parts of one set do not see each other; with equal positions, their order makes no difference.
    labels: (B, N) long, or None. The position of each node in a region of the sequence, from 1 (0: in none); see
        `segue.mixers.regions`.
    traits: by name (B, N) long, or None. Attributes of the nodes, for attention that compares them; see
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
        """The layout of x (B, N, ...) in which each row is one document that begins at position 0."""
        return Layout.chain((x.shape[0], x.shape[1]), device=x.device)

    @staticmethod
    def tree(parents: Tensor, first: Tensor) -> Layout:
        """Nodes of a draft tree with roots at position `first` (B,); a node's position is its parent's plus one."""
        layout = Layout(first[:, None].expand(parents.shape), parents)
        return Layout(first[:, None] + layout.follows.sum(-1) - 1, parents)

    @cached_property
    def follows(self) -> Tensor:
        """(B or 1, N, N) bool, whether node q (axis 1) is node k (axis 2) or descends from it in this call."""
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
        """The layout of the chain in reverse order: each document starts at its last node, at position 0."""
        batch, n = self.positions.shape
        starts = None if self.starts is None else F.pad(self.starts[:, 1:], (0, 1), value=True)[:, :n].flip(1)
        return Layout.chain((batch, n), starts=starts, device=self.positions.device)

    @property
    def sees_whole_past(self) -> bool:
        """Whether every node follows all nodes before it: there is no draft tree and there are no sets."""
        return self.parents is None and self.sets is None

    @cached_property
    def restarted_after_prompt(self) -> Layout:
        """This layout with positions counted anew, from 0, after the prompt of each document."""
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
    def has_unit_steps(self) -> bool:
        """Whether positions increase by one from node to node within each document, so that the distance of two nodes
        is the difference of their indices."""
        if not self.sees_whole_past:
            return False
        steps = self.positions.diff(dim=1) == 1
        return bool((steps if self.starts is None else steps | self.starts[:, 1:]).all())

    @cached_property
    def positions_are_indices(self) -> bool:
        """Whether each row is one document from position 0, so that node i stands at position i."""
        return self.has_unit_steps and self.starts is None and not bool(self.positions[:, :1].any())

    @cached_property
    def segments(self) -> Tensor | None:
        """(B, N) long, the number of each node's document in this call; 0 continues the state. None without
        `starts`."""
        return None if self.starts is None else self.starts.long().cumsum(1)

    @property
    def same_document(self) -> Tensor | None:
        """(B, N, N) bool, whether two nodes belong to the same document; None if all do."""
        return None if self.segments is None else self.segments[:, :, None] == self.segments[:, None]


def length_mask(lengths: Tensor, n: int) -> Tensor:
    """(B, n) bool, True at the first `lengths` (B,) places of each row."""
    return torch.arange(n, device=lengths.device) < lengths[:, None]


def gather_nodes(x: Tensor, index: Tensor) -> Tensor:
    """(B, P, ...), the nodes of x (B, N, ...) at `index` (B, P). Negative entries give node 0, for the caller to
    mask."""
    index = index.clamp(min=0).view(*index.shape, *[1] * (x.dim() - 2))
    return x.gather(1, index.expand(-1, -1, *x.shape[2:]))


_VALUE_CHECKS_OFF = ContextVar("value_checks_off", default=False)


@contextmanager
def without_value_checks() -> Iterator[None]:
    """Context in which checks that read values off a tensor are skipped, as a CUDA graph capture requires."""
    token = _VALUE_CHECKS_OFF.set(True)
    try:
        yield
    finally:
        _VALUE_CHECKS_OFF.reset(token)


def can_check_values() -> bool:
    """Whether checks may read values off a tensor: not under torch.compile, nor `without_value_checks`."""
    return not torch.compiler.is_compiling() and not _VALUE_CHECKS_OFF.get()


def check_parents(parents: Tensor, batch: int, n: int) -> None:
    """Raise SegueError unless `parents` (B, N) is a forest in topological order; a kernel would never return on
    others."""
    later = parents >= torch.arange(parents.shape[-1], device=parents.device)
    if parents.shape != (batch, n) or bool((later | (parents < -1)).any()):
        raise SegueError(f"parents {tuple(parents.shape)} of {batch} rows of {n} nodes: give for each node the index "
                         "of an earlier one, or -1")


def check_rows(rows: int, state: Any) -> None:
    """Raise SegueError if the input has another number of rows than its state."""
    if rows != state.batch:
        raise SegueError(f"{rows} rows of input cannot follow a state of {state.batch} rows: select the rows first")


def check_commit(path: Tensor | None, counts: Tensor | None, parents: Tensor | np.ndarray | None, batch: int, n: int
                 ) -> None:
    """Raise SegueError unless `batch` rows of `n` pending nodes can be committed so. parents: of a draft tree's nodes,
    None of a chain. path: each row goes from a root down the tree, and is padded with -1 at its end; or, of a chain,
    counts: (B,) from 0 to n (None: all)."""
    if path is not None:
        _check_path(path.tolist(), None if parents is None else parents.tolist(), batch, n)
    elif parents is not None:
        raise SegueError("a draft tree is pending: say which path to commit")
    elif counts is not None and (counts.shape != (batch,) or not all(0 <= count <= n for count in counts.tolist())):
        raise SegueError(f"cannot commit {counts.tolist()} of {n} pending nodes in {batch} rows")


def _check_path(path: list[list[int]], parents: list[list[int]] | None, batch: int, n: int) -> None:
    chain = list(range(-1, n - 1))
    valid = len(path) == batch
    for row, tree in zip(path, parents or [chain] * batch):
        above, ended = -1, False
        for node in row:
            if node < 0:
                ended = True
            elif ended or node >= n or tree[node] != above:
                valid = False
            else:
                above = node
    if not valid:
        raise SegueError(f"path {path} is no root-to-node path of the {n} pending nodes of {batch} rows, padded with "
                         "-1 at its end")


def check_node_indices(at: Tensor, batch: int, n: int) -> None:
    """Raise SegueError unless `at` (B, M) holds indices of `n` nodes, for each of `batch` rows."""
    if len(at) != batch or (at.numel() and not 0 <= int(at.min()) <= int(at.max()) < n):
        raise SegueError(f"nodes {at.tolist()} are asked for of {n} nodes in {batch} rows")


@dataclass
class LayerNodes:
    """The subset of a call's nodes that one layer runs on (`segue.models.depth`).

    taken: (B, N) bool; no taken node follows one that is not. layout: of the layer's M nodes, which are the taken ones
        of each row in order, then padding. index: (B, M) long, where they stand in the call (None: its first M).
    """

    taken: Tensor
    layout: Layout
    index: Tensor | None

    @staticmethod
    def of(layout: Layout, taken: Tensor) -> LayerNodes:
        if layout.sets is not None:
            raise SegueError("sets need all layers at all nodes: depth by position reads in order")
        taken = taken.expand(layout.positions.shape)
        size = int(taken.sum(1).max())
        if layout.parents is None and layout.starts is None:  # the first `size` nodes of each row are its taken ones
            prompt = None if layout.prompt is None else layout.prompt[:, :size]
            first = replace(layout, positions=layout.positions[:, :size], grid=None, prompt=prompt)
            return LayerNodes(taken, first, None)
        index = taken.logical_not().to(torch.uint8).argsort(dim=1, stable=True)[:, :size]
        starts, prompt = (None if x is None else gather_nodes(x.expand(taken.shape), index)
                          for x in (layout.starts, layout.prompt))
        positions = gather_nodes(layout.positions, index)
        own = replace(layout, positions=positions, parents=None, starts=starts, grid=None, prompt=prompt)
        nodes = LayerNodes(taken, own, index)
        if layout.parents is not None:
            parents = gather_nodes(layout.parents, index)
            real = (parents >= 0) & gather_nodes(taken, index)
            nodes.layout.parents = torch.where(real, gather_nodes(nodes.local_index, parents), -1)
        return nodes

    @cached_property
    def local_index(self) -> Tensor:
        """(B, N) long, the index of each taken node among the layer's nodes."""
        return self.taken.long().cumsum(1) - 1

    def gather(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, M, D), the vectors of the layer's nodes."""
        return x[:, : self.layout.positions.shape[1]] if self.index is None else gather_nodes(x, self.index)

    def scatter(self, x: Tensor, y: Tensor) -> Tensor:
        """x (B, N, D) in which the layer's nodes are replaced by its output y (B, M, D)."""
        if self.index is None:
            y = F.pad(y, (0, 0, 0, x.shape[1] - y.shape[1]))
        else:
            y = gather_nodes(y, self.local_index.clamp(max=y.shape[1] - 1))
        return torch.where(self.taken[..., None], y, x)

    def localise_commit(self, path: Tensor | None, counts: Tensor | None) -> tuple[Tensor | None, Tensor]:
        """The arguments of `State.commit` in terms of this layer's nodes: path and counts."""
        if path is not None:
            real = (path >= 0) & gather_nodes(self.taken, path)
            return torch.where(real, gather_nodes(self.local_index, path), -1), real.sum(1)
        taken = self.taken
        if counts is not None:
            taken = taken & (torch.arange(taken.shape[1], device=taken.device) < counts[:, None])
        return None, taken.sum(1)
