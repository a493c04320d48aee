"""Drafts from count models: the likeliest continuation by n-gram counts of the training data and of this request.

A mixture of a network and counts mostly agrees with its counts, which cost a fraction of the network.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch

from segue.decoding.draft.base import Tip, Tree, chain_tree
from segue.models.counts import BlendedCounts, TokenState


class CountDraft:
    """Drafts a chain of the likeliest tokens by `BlendedCounts`, as long as each is likely enough.

    length: tokens drafted at most. min_probability: a token less likely than this ends the draft.
    """

    name: ClassVar[str] = "counts"
    needs_hidden: ClassVar[bool] = False

    def __init__(self, counts: BlendedCounts, length: int = 12, min_probability: float = 0.3) -> None:
        self.counts, self.length, self.min_probability = counts, length, min_probability
        self._states: dict[int, TokenState] = {}

    def observe(self, row: int, tokens: Sequence[int], prompt: bool = False) -> None:
        state = self._states.setdefault(row, self.counts.init_state(1))
        ids = torch.tensor([list(tokens)], dtype=torch.long)
        if ids.numel():
            self.counts.probabilities(ids, state, at=torch.empty(1, 0, dtype=torch.long))
            state.commit()

    def propose(self, tips: Sequence[Tip]) -> list[Tree]:
        drafts = []
        for tip in tips:
            state, length = self._states.get(tip.row), min(self.length, tip.nodes, tip.depth)
            tokens = []
            if state is not None and length > 0:
                tokens = self.counts.draft_likeliest(state, length, self.min_probability)
            drafts.append(chain_tree(tokens))
        return drafts

    def forget(self, row: int) -> None:
        self._states.pop(row, None)
