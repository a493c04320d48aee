"""Mask rules: which nodes a node may look at. New attention structures are new rules, not new attention code.

A rule sees a `Pairs` of queries and keys and answers with a boolean tensor that broadcasts to (B, Q, K). Rules
combine with `&` and `|` on their answers. The tree of a draft is no rule of its own: `follows` already knows it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor


@dataclass(frozen=True)
class Pairs:
    """All pairs of a query and a key.

    query: (B, Q, 1) long, positions. key: (B, 1, K) long, positions.
    follows: (B or 1, Q, K) bool, the key is the query itself, one of its ancestors in this call, or committed before.
    prompt: (B or 1, 1, K) bool, or None: the key is of the prompt, or was committed before.
    trait_differences: (B, Q, K, R) long, or None: the query's trait less the key's, for each trait that is compared.
    """

    query: Tensor
    key: Tensor
    follows: Tensor
    prompt: Tensor | None = None
    trait_differences: Tensor | None = None


Rule = Callable[[Pairs], Tensor]


def causal(pairs: Pairs) -> Tensor:
    """What came before, along the node's own path."""
    return pairs.follows


def full(pairs: Pairs) -> Tensor:
    """Everything, both ways."""
    return pairs.follows | True


def prefix(length: int) -> Rule:
    """The first `length` positions are seen by all, both ways; after them, causal."""
    return lambda pairs: pairs.follows | (pairs.key < length)


def prompted(pairs: Pairs) -> Tensor:
    """The prompt is seen by all, both ways; after it, causal."""
    return pairs.follows if pairs.prompt is None else pairs.follows | pairs.prompt


@dataclass(frozen=True)
class Sparse:
    """Neighbours, the first positions, and blocks picked at random: a rule whose cost is linear in the length.

    window: neighbours are fewer than so many positions away. Or block, back: they are in the same block of positions
    (position // block), or in one of `back` blocks before. first: so many first positions are seen by all, and (both
    ways) see all. random: so many more blocks are seen by all positions of a block, picked among those before it by its
    number alone. causal: only what came before is seen; else all of this goes both ways, and the blocks are picked
    among twice as many, of which some may not be there.

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
            seen = (query - key).abs() < self.window
        else:
            assert self.block is not None
            query_block, key_block = query // self.block, key // self.block
            seen = (query_block - key_block).abs() <= self.back
            for pick in range(self.random):
                seen = seen | (self.random_block(query_block, pick) == key_block)
        if self.first:
            seen = seen | (key < self.first)
            if not self.causal:
                seen = seen | (query < self.first)
        return seen & pairs.follows if self.causal else seen | (pairs.follows & False)

    def random_block(self, block: Tensor, pick: int) -> Tensor:
        """The number of the block that is picked for each block, -1 for none; a hash, alike on every machine."""
        limit = block if self.causal else 2 * block + 2
        x = block * 2_654_435_761 + (pick + 1) * 40_503
        for _ in range(2):
            x = ((x ^ (x >> 16)) & 0xFFFFFFFF) * 0x45D9F3B
        return torch.where(limit > 0, (x ^ (x >> 16)) % limit.clamp(min=1), -1)

    @property
    def reach(self) -> int:
        """So many positions, the node itself included, hold all neighbours that came before."""
        return self.window if self.window is not None else (self.block or 1) * (self.back + 1)

    @property
    def tile(self) -> int:
        """How many nodes are done together: their neighbours are found in whole tiles."""
        return self.block if self.block is not None else max(16, min(128, self.reach))


@lru_cache(maxsize=64)
def key_tiles(rule: Sparse, count: int, aligned: bool) -> Tensor:
    """(count, K) long: the tiles in which a chain's tiles of queries find all that `rule` lets them see, -1 for none.

    aligned: node i stands at position i. Otherwise positions only go up by one, and there must be no `first` nor
    `random`. First positions that see everything are left to the caller.
    """
    own = torch.arange(count)[:, None]
    back = -(-(rule.reach - 1) // rule.tile)
    if rule.block is not None and aligned:
        back = rule.back
    near = torch.arange(-back, 1 if rule.causal else back + 1)
    found = [own + near]
    if rule.first:
        found.append(torch.arange(-(-rule.first // rule.tile)).expand(count, -1))
    found += [rule.random_block(own, pick) for pick in range(rule.random)]
    index = torch.cat(found, 1)
    index = index.masked_fill((index < 0) | (index > (own if rule.causal else count - 1)), -1).sort(1).values
    again = torch.cat([torch.zeros_like(own, dtype=torch.bool), index[:, 1:] == index[:, :-1]], 1)
    return index.masked_fill(again, -1)
