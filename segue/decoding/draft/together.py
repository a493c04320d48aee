"""Several drafters at once: their drafts in one tree."""

from __future__ import annotations

from collections.abc import Sequence

from segue.decoding.draft.base import NOTHING, Drafter, Tip, Tree
from segue.errors import SegueError


def merge(trees: Sequence[Tree], nodes: int) -> Tree:
    """One tree that holds the paths of all, what they share once; the first ones have precedence for `nodes` places."""
    trees = [tree for tree in trees if len(tree)]
    if len(trees) < 2:
        return trees[0] if trees else NOTHING
    merged = Tree()
    known: dict[tuple[int, int], int] = {}
    for tree in trees:
        places: list[int | None] = []  # of this tree's nodes in the merged one
        for token, parent in zip(tree.tokens, tree.parents):
            above = -1 if parent < 0 else places[parent]
            place = None
            if above is not None:
                place = known.get((above, token))
                if place is None and len(merged.tokens) < nodes:
                    place = known[above, token] = len(merged.tokens)
                    merged.tokens.append(token)
                    merged.parents.append(above)
            places.append(place)
    return merged


class Together:
    """Merges the drafts of several drafters, the first ones first. They must pick their drafts, not draw them."""

    def __init__(self, drafters: Sequence[Drafter]) -> None:
        if not drafters:
            raise SegueError("give at least one drafter")
        self.drafters = list(drafters)
        self.needs_hidden = any(drafter.needs_hidden for drafter in drafters)

    def observe(self, row: int, tokens: Sequence[int], prompt: bool = False) -> None:
        for drafter in self.drafters:
            drafter.observe(row, tokens, prompt)

    def propose(self, tips: Sequence[Tip]) -> list[Tree]:
        drafts = [drafter.propose(tips) for drafter in self.drafters]
        return [merge(trees, tip.nodes) for tip, trees in zip(tips, zip(*drafts))]

    def forget(self, row: int) -> None:
        for drafter in self.drafters:
            drafter.forget(row)
