"""Mask rules: which nodes a node may look at. New attention structures are new rules, not new attention code.

A rule sees a `Pairs` of queries and keys and answers with a boolean tensor that broadcasts to (B, Q, K). Rules
combine with `&` and `|` on their answers. The tree of a draft is no rule of its own: `follows` already knows it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Pairs:
    """All pairs of a query and a key.

    query: (B, Q, 1) long, positions. key: (B, 1, K) long, positions.
    follows: (B or 1, Q, K) bool, the key is the query itself, one of its ancestors in this call, or committed before.
    """

    query: Tensor
    key: Tensor
    follows: Tensor


Rule = Callable[[Pairs], Tensor]


def causal(pairs: Pairs) -> Tensor:
    """What came before, along the node's own path."""
    return pairs.follows


def full(pairs: Pairs) -> Tensor:
    """Everything, both ways."""
    return pairs.follows | True


def window(span: int) -> Rule:
    """What came before, at most `span` positions back (the node itself counts as one)."""
    return lambda pairs: pairs.follows & (pairs.query - pairs.key < span)


def prefix(length: int) -> Rule:
    """The first `length` positions are seen by all, both ways; after them, causal."""
    return lambda pairs: pairs.follows | (pairs.key < length)
