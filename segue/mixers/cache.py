"""Key-value caches: the memory of attention in a decoding state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from segue.errors import SegueError
from segue.mixers import rules
from segue.mixers.layout import Layout, gather_nodes


class Cache:
    """A key-value cache with a length per row. Committed nodes come first, pending nodes after the longest row's end.

    window: of sliding-window attention (None: keep everything). The cache then keeps window + history nodes, and as
    many more as there were nodes in sets, since the parts of a set share positions. Positions are stored beside the
    keys, because the index of a key in the cache does not tell its position.
    """

    row_fields: ClassVar[tuple[str, ...]] = ("lengths", "segment", "dropped")  # tensors with one entry per row

    def __init__(self, k: Tensor, v: Tensor, window: int | None = None, history: int = 0) -> None:
        self.k, self.v, self.window, self.history = k, v, window, history
        batch, capacity = k.shape[0], k.shape[2]
        self.positions = torch.zeros(batch, capacity, dtype=torch.long, device=k.device)
        self.segments = torch.zeros(batch, capacity, dtype=torch.long, device=k.device)
        self.lengths = torch.zeros(batch, dtype=torch.long, device=k.device)
        self.segment = torch.zeros(batch, dtype=torch.long, device=k.device)
        self.dropped = torch.zeros(batch, dtype=torch.bool, device=k.device)  # whether nodes were dropped
        self.longest, self.uniform = 0, True  # of `lengths`; kept here to spare a device round trip per token
        self.pending: tuple[Tensor, Tensor, Tensor, Tensor] | None = None
        self.is_written = False  # whether the pending keys and values are in `k` and `v` already

    def append(self, k: Tensor, v: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        """Append new nodes (B, G, N, E) as pending; returns all keys and all values, (B, G, L + N, E) each."""
        batch, n, cursor = k.shape[0], k.shape[2], self.longest
        k, v = k.to(self.k.dtype), v.to(self.v.dtype)  # autocast gives others
        segments = self.segment[:, None].expand(batch, n)
        if layout.segments is not None:
            segments = segments + layout.segments
        if layout.sets is not None and self.window is not None:
            self.window += n
        self.pending = (k, v, layout.positions.expand(batch, n), segments)
        self.is_written = not (torch.is_grad_enabled() and (k.requires_grad or self.k.requires_grad))
        if not self.is_written:
            return torch.cat([self.k[:, :, :cursor], k], 2), torch.cat([self.v[:, :, :cursor], v], 2)
        self._reserve(cursor + n)
        self.k[:, :, cursor : cursor + n], self.v[:, :, cursor : cursor + n] = k, v
        return self.k[:, :, : cursor + n], self.v[:, :, : cursor + n]

    def pairs(self, layout: Layout) -> rules.Pairs:
        """Queries and keys of a call: its nodes against the committed nodes followed by the nodes themselves."""
        positions, cursor = layout.positions.expand(len(self.lengths), -1), self.longest
        before = torch.ones(1, positions.shape[1], cursor, dtype=torch.bool, device=positions.device)
        follows = torch.cat([before.expand(layout.follows.shape[0], -1, -1), layout.follows], 2)
        keys = torch.cat([self.positions[:, :cursor], positions], 1)
        prompt = None
        if layout.prompt is not None:
            prompt = layout.prompt.expand(positions.shape)
            prompt = torch.cat([prompt.new_ones(len(prompt), cursor), prompt], 1)[:, None]
        return rules.Pairs(positions[:, :, None], keys[:, None], follows, prompt)

    def valid(self, layout: Layout) -> Tensor | None:
        """(B, N or 1, L + N) bool, whether a key exists and belongs to the query's document; None if all do."""
        n, cursor, valid = layout.positions.shape[1], self.longest, None
        if not self.uniform:
            index = torch.arange(cursor + n, device=self.k.device)
            valid = ((index < self.lengths[:, None]) | (index >= cursor))[:, None]
        if layout.segments is not None or bool(self.segment.any()):
            segments = self.segment[:, None].expand(-1, n) + (0 if layout.segments is None else layout.segments)
            same = segments[:, :, None] == torch.cat([self.segments[:, :cursor], segments], 1)[:, None]
            valid = same if valid is None else valid & same
        return valid

    def commit(self, path: Tensor | None, counts: Tensor | None) -> None:
        assert self.pending is not None, "extend first"
        k, v, positions, segments = self.pending
        batch, n = positions.shape
        self.pending = None
        if path is None and counts is None and self.uniform and n:  # the common case: all rows take all nodes
            end = self.longest + n
            if not self.is_written:
                self._reserve(end)
                self._write((slice(None), slice(None), slice(self.longest, end)), k, v)
            self.positions[:, self.longest : end], self.segments[:, self.longest : end] = positions, segments
            self.lengths, self.segment, self.longest = self.lengths + n, segments[:, -1], end
            if self.window is not None:
                self._trim()
            return
        if path is not None:
            index = path.clamp(min=0)[:, None, :, None]
            k = k.gather(2, index.expand(-1, k.shape[1], -1, k.shape[3]))
            v = v.gather(2, index.expand(-1, v.shape[1], -1, v.shape[3]))
            positions, segments, n = gather_nodes(positions, path), gather_nodes(segments, path), path.shape[1]
        if counts is None:
            counts = torch.full((batch,), n, device=k.device)
        if n == 0:
            return
        added = torch.arange(n, device=k.device)
        kept = added < counts[:, None]
        self._reserve(self.longest + n)
        row, node = torch.nonzero(kept, as_tuple=True)
        slot = self.lengths[row] + node
        self._write((row, slice(None), slot), k[row, :, node], v[row, :, node])
        self.positions[row, slot], self.segments[row, slot] = positions[row, node], segments[row, node]
        self.lengths = self.lengths + counts
        last = (counts - 1).clamp(min=0)[:, None]
        self.segment = torch.where(counts > 0, segments.gather(1, last)[:, 0], self.segment)
        self._trim()

    def _write(self, where: tuple, k: Tensor, v: Tensor) -> None:
        if self.k.requires_grad or k.requires_grad:
            self.k, self.v = self.k.clone(), self.v.clone()
        self.k[where], self.v[where] = k, v

    def _reserve(self, capacity: int) -> None:
        """Grow by doubling, so that n tokens cost O(n) copying."""
        extra = capacity - self.k.shape[2]
        if extra <= 0:
            return
        extra = max(extra, self.k.shape[2], 64)
        self.k, self.v = (F.pad(x, (0, 0, 0, extra)) for x in (self.k, self.v))
        self.positions, self.segments = (F.pad(x, (0, extra)) for x in (self.positions, self.segments))

    def _trim(self) -> None:
        """Drop nodes that have left the window (once they are many), and update `longest` and `uniform`."""
        keep = None if self.window is None else self.window + self.history
        if keep is not None and self.k.shape[2] > 2 * keep + 64 and bool((self.lengths > 2 * keep).any()):
            drop = (self.lengths - keep).clamp(min=0)
            self.dropped = self.dropped | (drop > 0)
            index = drop[:, None] + torch.arange(keep, device=drop.device)
            self.k, self.v = (x.gather(2, index[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))
                              for x in (self.k, self.v))
            self.positions, self.segments = self.positions.gather(1, index), self.segments.gather(1, index)
            self.lengths = self.lengths - drop
        self.longest = int(self.lengths.max()) if len(self.lengths) else 0
        self.uniform = bool((self.lengths == self.longest).all())

    def max_rewind(self) -> Tensor:
        # Where nodes were dropped, the next node must still find its whole window.
        return torch.where(self.dropped, self.lengths - (self.window or 1) + 1, self.lengths)

    def rewind(self, n: Tensor) -> None:
        self.lengths, self.pending = self.lengths - n, None
        self._trim()
        self._update_segment()

    def _update_segment(self) -> None:
        """Set the current document of each row to that of its last node."""
        if self.segments.shape[1]:
            last = (self.lengths - 1).clamp(min=0)[:, None]
            self.segment = torch.where(self.lengths > 0, self.segments.gather(1, last)[:, 0], 0)

    def _copy_rows(self, rows: Tensor | slice) -> Cache:
        used = slice(0, self.longest)
        twin = type(self)(self.k[rows, :, used].clone(), self.v[rows, :, used].clone(), self.window, self.history)
        twin.positions, twin.segments = self.positions[rows, used].clone(), self.segments[rows, used].clone()
        for name in self.row_fields:
            setattr(twin, name, getattr(self, name)[rows])
        twin._trim()
        return twin

    def select(self, rows: Tensor) -> Cache:
        return self._copy_rows(rows)

    def join(self, others: Sequence[Cache]) -> Cache:
        parts = [self, *others]
        capacity = max(part.longest for part in parts)

        def stacked(name: str, axis: int) -> Tensor:
            tensors = [getattr(part, name)[(slice(None),) * axis + (slice(0, capacity),)] for part in parts]
            room = [capacity - x.shape[axis] for x in tensors]
            return torch.cat([F.pad(x, (*[0] * (2 * (x.dim() - 1 - axis)), 0, n)) for x, n in zip(tensors, room)])

        window = None if self.window is None else max(part.window or 0 for part in parts)
        joined = type(self)(stacked("k", 2), stacked("v", 2), window, self.history)
        joined.positions, joined.segments = stacked("positions", 1), stacked("segments", 1)
        for name in self.row_fields:
            setattr(joined, name, torch.cat([getattr(part, name) for part in parts]))
        joined._trim()
        return joined

    def copy(self) -> Cache:
        return self._copy_rows(slice(None))

    def detach(self) -> None:
        self.k, self.v = self.k.detach(), self.v.detach()

    def tensors(self) -> dict[str, Tensor]:
        return {"k": self.k[:, :, : self.longest], "v": self.v[:, :, : self.longest],
                "positions": self.positions[:, : self.longest], "segments": self.segments[:, : self.longest],
                "lengths": self.lengths}

    def load(self, tensors: dict[str, Tensor]) -> None:
        self.k, self.v, self.positions, self.segments, self.lengths = (
            tensors[name].clone() for name in ("k", "v", "positions", "segments", "lengths"))
        self.dropped, self.pending = torch.zeros_like(self.lengths, dtype=torch.bool), None
        self._trim()
        self._update_segment()


class PromptCache(Cache):
    """A cache that keeps only the nodes of the prompt at the beginning of each row.

    count: (B,) how many nodes each row has committed in all, to know when a rewind reaches into the prompt.
    """

    row_fields: ClassVar[tuple[str, ...]] = (*Cache.row_fields, "count")

    def __init__(self, k: Tensor, v: Tensor, window: int | None = None, history: int = 0) -> None:
        super().__init__(k, v, window, history)
        self.count = torch.zeros_like(self.lengths)
        self.prompt: Tensor | None = None  # (B, N) bool, which pending nodes are of the prompt

    def append(self, k: Tensor, v: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        assert layout.prompt is not None
        if layout.starts is not None:
            raise SegueError("a state holds the prompt of one document: begin the next one with a fresh state")
        self.prompt = layout.prompt
        return super().append(k, v, layout)

    def commit(self, path: Tensor | None, counts: Tensor | None) -> None:
        assert self.prompt is not None, "extend first"
        if path is None:
            path = torch.arange(self.prompt.shape[1], device=self.k.device).expand(self.prompt.shape)
            path = path if counts is None else torch.where(path < counts[:, None], path, -1)
        self.count = self.count + (path >= 0).sum(1)
        kept = (path >= 0) & self.prompt.gather(1, path.clamp(min=0))
        super().commit(path[:, : int(kept.any(0).sum())], kept.sum(1))
        self.prompt = None

    def max_rewind(self) -> Tensor:
        return self.count

    def rewind(self, n: Tensor) -> None:
        self.count = self.count - n
        super().rewind((self.lengths - self.count).clamp(min=0))

    def tensors(self) -> dict[str, Tensor]:
        return {**super().tensors(), "count": self.count}

    def load(self, tensors: dict[str, Tensor]) -> None:
        super().load(tensors)
        self.count = tensors["count"].clone()


class FixedCache(Cache):
    """A cache of fixed capacity whose tensors are written in place and never replaced, as a captured CUDA graph
    requires (`segue.models.recorded`). Lengths live in tensors alone.

    Each row takes one node per call, and nothing is dropped: the caller ensures that there is room.
    """

    def __init__(self, like: Cache, capacity: int) -> None:
        def room(x: Tensor) -> Tensor:
            return x.new_zeros(len(x), x.shape[1], capacity, x.shape[3])

        super().__init__(room(like.k), room(like.v))
        self.longest, self.uniform = capacity, False

    def append(self, k: Tensor, v: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        slot = self.lengths[:, None]
        for here, new in ((self.k, k), (self.v, v)):
            where = slot[:, None, :, None].expand(-1, new.shape[1], 1, new.shape[3])
            here.scatter_(2, where, new.to(here.dtype))
        self.positions.scatter_(1, slot, layout.positions.expand(slot.shape))
        self.segments.scatter_(1, slot, self.segment[:, None])
        return self.k, self.v

    def pairs(self, layout: Layout) -> rules.Pairs:
        follows = torch.ones(1, 1, self.longest, dtype=torch.bool, device=self.k.device)
        return rules.Pairs(layout.positions.expand(len(self.lengths), -1)[:, :, None], self.positions[:, None], follows)

    def valid(self, layout: Layout) -> Tensor:
        index = torch.arange(self.longest, device=self.k.device)
        before = (index < self.lengths[:, None]) & (self.segments == self.segment[:, None])
        return (before | (index == self.lengths[:, None]))[:, None]

    def commit(self, path: Tensor | None = None, counts: Tensor | None = None) -> None:
        self.lengths.add_(1)

    def copy_from(self, cache: Cache) -> None:
        """Take over the contents of `cache`."""
        used = slice(0, cache.longest)
        for here, other in ((self.k, cache.k), (self.v, cache.v)):
            here[:, :, used] = other[:, :, used]
        self.positions[:, used], self.segments[:, used] = cache.positions[:, used], cache.segments[:, used]
        self.lengths.copy_(cache.lengths)
        self.segment.copy_(cache.segment)

    def copy_to(self, cache: Cache, added: int) -> None:
        """Write the contents back to `cache`, with the `added` nodes that each row has taken since `copy_from`."""
        used = slice(0, cache.longest + added)
        cache.k, cache.v = self.k[:, :, used].clone(), self.v[:, :, used].clone()
        cache.positions, cache.segments = self.positions[:, used].clone(), self.segments[:, used].clone()
        cache.lengths = self.lengths.clone()
        cache._trim()
