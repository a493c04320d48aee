"""Reformer (Kitaev, Kaiser & Levskaya 2020, arXiv 2001.04451): attention within locality-sensitive hash buckets."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segue.errors import SegueError
from segue.mixers.attention import attend, merge
from segue.mixers.base import Mixer
from segue.mixers.layout import Layout
from segue.mixers.positions import rotary_frequencies, rotate
from segue.mixers.state import Parts

MAX_SINGLE_HASH = 32  # rotations of one hash; more buckets take two hashes, or hashing would be quadratic in T


class Reformer(Mixer):
    """Attention with shared queries and keys, restricted to hash buckets.

    Keys are the queries scaled to length one. Random rotations put similar ones into the same bucket; nodes sorted by
    bucket are cut into chunks, and each attends to the nodes of its bucket in its own chunk and the one before. Several
    rounds of hashing are merged by their log-sum-exps, each pair counting once. A node attends to itself only if it
    would attend to no other. Chunk boundaries depend on everything that is hashed, later elements and other documents
    included: so this can neither continue from a state nor reset at documents.

    width: model width D. heads: number of heads, must divide `width`. chunk: nodes in a chunk, and the mean size of a
    bucket. rounds: of hashing. positions: "rotary" or "none". seed: of the rotations, the same in every call.
    """

    causal = False
    resettable = False
    linear_in_values = True

    def __init__(self, width: int, heads: int = 4, chunk: int = 64, rounds: int = 2, positions: str = "rotary",
                 seed: int = 0) -> None:
        super().__init__(width)
        if width % heads or chunk < 1 or rounds < 1 or positions not in ("rotary", "none"):
            raise SegueError(f"width {width}, heads {heads}, chunk {chunk}, rounds {rounds}, positions '{positions}': "
                             "heads must divide the width, chunk and rounds be positive, positions rotary or none")
        self.heads, self.chunk, self.rounds, self.positions, self.seed = heads, chunk, rounds, positions, seed
        self.qv = nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    @torch.no_grad()
    def hash_buckets(self, x: Tensor) -> Tensor:
        """Return bucket numbers (rounds, B, H, N) long, about `chunk` nodes per bucket: argmax([q R; -q R]) with random
        R, or a pair of these. Queries are computed in float32 or wider, because rounding would change buckets."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            q = F.linear(x.to(dtype), self.qv.weight[: self.width].to(dtype))
            q = q.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            buckets = torch.zeros(self.rounds, *q.shape[:-1], dtype=torch.long, device=q.device)
            if q.shape[2] <= self.chunk:  # everything fits in one chunk: a single bucket
                return buckets
            half, generator = max(1, q.shape[2] // (2 * self.chunk)), torch.Generator().manual_seed(self.seed)
            for num_rotations in [half] if half <= MAX_SINGLE_HASH else 2 * [round((half / 2) ** 0.5)]:
                rotations = torch.randn(self.rounds, q.shape[-1], num_rotations, generator=generator,
                                        dtype=torch.float64)
                rotated = torch.einsum("bhne,rek->rbhnk", q, rotations.to(q))
                largest = rotated.abs().argmax(-1, keepdim=True)
                hashes = largest + num_rotations * (rotated.gather(-1, largest) < 0)
                buckets = 2 * num_rotations * buckets + hashes[..., 0]
        return buckets

    def _heads(self, x: Tensor) -> tuple[Tensor, Tensor]:
        q, v = self.qv(x).unflatten(-1, (2 * self.heads, -1)).transpose(1, 2).chunk(2, 1)
        return q, v

    def _attend(self, x: Tensor, q: Tensor, v: Tensor, positions: Tensor) -> Tensor:
        n, size = q.shape[2], self.chunk
        if n == 0:
            return v
        buckets = self.hash_buckets(x)
        if self.positions == "rotary":
            q = rotate(q, positions, rotary_frequencies(q.shape[-1] // 2 * 2).to(q.device))
        unit_queries = F.normalize(q, dim=-1)
        order = buckets.sort(dim=-1, stable=True).indices
        sorted_index = order.argsort(-1)
        count = -(-n // size)
        rounds = []
        sees_none = torch.ones(q.shape[:3], dtype=torch.bool, device=q.device)
        for index in range(self.rounds):
            queries = F.pad(order[index], (0, count * size - n), value=-1).unflatten(-1, (count, size))
            keys = torch.cat([F.pad(queries[:, :, :-1], (0, 0, 1, 0), value=-1), queries], -1)
            together = torch.stack([_same_bucket(bucket, chunk, queries, keys)
                                    for bucket, chunk in zip(buckets, sorted_index // size)])
            itself = queries[..., None] == keys[..., None, :]
            real = (keys >= 0)[..., None, :]
            visible = together[index] & real & ~itself
            sees_none &= ~_unsort(visible.any(-1), sorted_index[index])
            rounds.append((queries, keys, visible, itself & real, together.sum(0)))
        parts = []
        for index, (queries, keys, visible, itself, times_seen) in enumerate(rounds):
            mask = visible | (itself & _gather_nodes(sees_none, queries)[..., None])
            y, lse = attend(_gather_nodes(q, queries), _gather_nodes(unit_queries, keys), _gather_nodes(v, keys), mask,
                            -times_seen.clamp(min=1).to(q.dtype).log())  # a pair found by several rounds counts once
            parts.append((_unsort(y, sorted_index[index]), _unsort(lse, sorted_index[index])))
        return merge(parts)[0]

    def run(self, x: Tensor, layout: Layout, parts: Parts) -> Tensor:
        return self.output(self._attend(x, *self._heads(x), layout.positions), x)

    def matrix(self, x: Tensor) -> Tensor:
        q, _ = self._heads(x)
        eye = torch.eye(x.shape[1], dtype=q.dtype, device=q.device).expand(*q.shape[:2], -1, -1)
        return self._attend(x, q, eye, Layout.of(x).positions)

    def values(self, x: Tensor) -> Tensor:
        return self._heads(x)[1]

    def output(self, mixed: Tensor, x: Tensor) -> Tensor:
        return self.out(mixed.transpose(1, 2).flatten(2))


def _gather_nodes(x: Tensor, index: Tensor) -> Tensor:
    """Gather nodes of x (B, H, N, ...) at index (B, H, C, S), -1 standing for any: (B, H, C, S, ...)."""
    flat = index.clamp(min=0).flatten(2)
    flat = flat.view(*flat.shape, *[1] * (x.dim() - 3)).expand(-1, -1, -1, *x.shape[3:])
    return x.gather(2, flat).unflatten(2, index.shape[2:])


def _unsort(x: Tensor, sorted_index: Tensor) -> Tensor:
    """Reorder sorted chunks (B, H, C, S, ...) to the nodes' own order (B, H, N, ...): node i is at sorted_index[i]."""
    return _gather_nodes(x.flatten(2, 3), sorted_index[..., None])[:, :, :, 0]


def _same_bucket(bucket: Tensor, chunk: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
    """Return (B, H, C, S, 2 S) bool: query and key share a bucket, and the key is in the query's chunk or the one
    before."""
    chunk_distance = _gather_nodes(chunk, queries)[..., None] - _gather_nodes(chunk, keys)[..., None, :]
    same_bucket = _gather_nodes(bucket, queries)[..., None] == _gather_nodes(bucket, keys)[..., None, :]
    return same_bucket & (chunk_distance >= 0) & (chunk_distance <= 1)
