"""Several drafters at once, their drafts merged into one tree."""

from __future__ import annotations

from collections.abc import Sequence

from segue.decoding.draft.base import NO_DRAFT, Drafter, Tip, Tree
from segue.errors import SegueError


def merge_trees(trees: Sequence[Tree], nodes: int) -> Tree:
    """Merge trees into one of at most `nodes` nodes, sharing common prefixes; earlier trees take precedence."""
    trees = [tree for tree in trees if len(tree)]
    if len(trees) < 2:
        return trees[0] if trees else NO_DRAFT
    merged = Tree()
    known: dict[tuple[int, int], int] = {}
    for tree in trees:
        indices: list[int | None] = []  # of this tree's nodes in the merged one
        for token, parent in zip(tree.tokens, tree.parents):
            above = -1 if parent < 0 else indices[parent]
            index = None
            if above is not None:
                index = known.get((above, token))
                if index is None and len(merged.tokens) < nodes:
                    index = known[above, token] = len(merged.tokens)
                    merged.tokens.append(token)
                    merged.parents.append(above)
            indices.append(index)
    return merged


class MergedDrafters:
    """Merges the drafts of several drafters; earlier ones take precedence. They must be deterministic (no `Tree.q`)."""

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
        return [merge_trees(trees, tip.nodes) for tip, trees in zip(tips, zip(*drafts))]

    def forget(self, row: int) -> None:
        for drafter in self.drafters:
            drafter.forget(row)
