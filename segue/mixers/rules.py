"""Mask rules: which nodes a node may attend to. New attention structures are new rules, not new attention code.

A rule takes a `Pairs` of queries and keys and returns a boolean tensor that broadcasts to (B, Q, K). Rules combine by
`&` and `|` on their results. Draft trees need no rule of their own: `follows` already encodes them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor


@dataclass(frozen=True)
class Pairs:
    """All pairs of a query and a key, as mask rules see them.

    query: (B, Q, 1) long, positions. key: (B, 1, K) long, positions.
    follows: (B or 1, Q, K) bool, the key is the query itself, one of its ancestors in this call, or in the cache.
    prompt: (B or 1, 1, K) bool, or None: the key belongs to the prompt, or is in the cache.
    trait_differences: (B, Q, K, R) long, or None: the query's trait minus the key's, for each compared trait.
    """

    query: Tensor
    key: Tensor
    follows: Tensor
    prompt: Tensor | None = None
    trait_differences: Tensor | None = None


Rule = Callable[[Pairs], Tensor]


def causal(pairs: Pairs) -> Tensor:
    """A node sees its past, along its own path, and itself."""
    return pairs.follows


def full(pairs: Pairs) -> Tensor:
    """A node sees everything, before and after it."""
    return pairs.follows | True


def prefix(length: int) -> Rule:
    """All nodes see the first `length` positions, also those before them; the rest is causal."""
    return lambda pairs: pairs.follows | (pairs.key < length)


def prompted(pairs: Pairs) -> Tensor:
    """All nodes see the whole prompt, also from within it; the rest is causal."""
    return pairs.follows if pairs.prompt is None else pairs.follows | pairs.prompt


@dataclass(frozen=True)
class Sparse:
    """Sparse attention to neighbours, the first positions, and random blocks: its cost is linear in the length.

    window: a node sees positions less than this far away. Or block, back: it sees its own block of positions
    (position // block) and the `back` blocks before. first: this many first positions are seen by all and, unless
    causal, see all. random: all positions of a block also see this many random blocks, chosen among those before it by
    a hash of its number. causal: only the past is seen; else all of this applies in both directions, and random blocks
    are chosen among twice as many, some of which may lie beyond the end.

    Sliding windows are `window`; Longformer's (Beltagy et al. 2020, arXiv 2004.05150) add `first`; the blocks of
    MASFormer (2023, arXiv 2310.12442) are `block`, segment recurrence is a block with `back=1`; BigBird (Zaheer et al.
    2020, arXiv 2007.14062) is a block with `back=1`, `first` and `random`.
    """

    window: int | None = None
    block: int | None = None
    back: int = 0
    first: int = 0
    random: int = 0
    causal: bool = True

    def __call__(self, pairs: Pairs) -> Tensor:
        query, key = pairs.query, pairs.key
        if self.window is not None:
            visible = (query - key).abs() < self.window
        else:
            assert self.block is not None
            query_block, key_block = query // self.block, key // self.block
            visible = (query_block - key_block).abs() <= self.back
            for pick in range(self.random):
                visible = visible | (self.random_block(query_block, pick) == key_block)
        if self.first:
            visible = visible | (key < self.first)
            if not self.causal:
                visible = visible | (query < self.first)
        return visible & pairs.follows if self.causal else visible | (pairs.follows & False)

    def random_block(self, block: Tensor, pick: int) -> Tensor:
        """Return the number of the random block that each block sees, -1 for none; a hash, the same on every machine.
        """
        limit = block if self.causal else 2 * block + 2
        x = block * 2_654_435_761 + (pick + 1) * 40_503
        for _ in range(2):
            x = ((x ^ (x >> 16)) & 0xFFFFFFFF) * 0x45D9F3B
        return torch.where(limit > 0, (x ^ (x >> 16)) % limit.clamp(min=1), -1)

    @property
    def reach(self) -> int:
        """How many positions back, the node itself included, contain all neighbours in its past."""
        return self.window if self.window is not None else (self.block or 1) * (self.back + 1)

    @property
    def tile(self) -> int:
        """Number of nodes that are computed together, against whole tiles of keys."""
        return self.block if self.block is not None else max(16, min(128, self.reach))


@lru_cache(maxsize=64)
def key_tiles(rule: Sparse, count: int, aligned: bool) -> Tensor:
    """Return, for each of `count` query tiles of a chain, the key tiles that contain all `rule` lets it see: (count, K)
    long, -1 for none.

    aligned: node i is at position i. Otherwise positions only go up by one, and `first` and `random` must be 0. First
    positions, which see everything unless causal, are left to the caller.
    """
    tiles = torch.arange(count)[:, None]
    num_back = -(-(rule.reach - 1) // rule.tile)
    if rule.block is not None and aligned:
        num_back = rule.back
    offsets = torch.arange(-num_back, 1 if rule.causal else num_back + 1)
    candidates = [tiles + offsets]
    if rule.first:
        candidates.append(torch.arange(-(-rule.first // rule.tile)).expand(count, -1))
    candidates += [rule.random_block(tiles, pick) for pick in range(rule.random)]
    index = torch.cat(candidates, 1)
    index = index.masked_fill((index < 0) | (index > (tiles if rule.causal else count - 1)), -1).sort(1).values
    repeated = torch.cat([torch.zeros_like(tiles, dtype=torch.bool), index[:, 1:] == index[:, :-1]], 1)
    return index.masked_fill(repeated, -1)
