"""Drafts by counting: the likeliest continuation by the corpus a model learned from and by what was said so far.

A mixture of a network and counts agrees with its counts most of the time, and these cost a small part of the network.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch

from segue.decoding.draft.base import Tip, Tree, branch
from segue.models.counts import BlendedCounts, TokenState


class CountDraft:
    """Drafts a chain by `BlendedCounts`, as long as each token is likely enough.

    length: tokens drafted at most. least: a token less likely than this ends the draft.
    """

    name: ClassVar[str] = "counts"
    needs_hidden: ClassVar[bool] = False

    def __init__(self, counts: BlendedCounts, length: int = 12, least: float = 0.3) -> None:
        self.counts, self.length, self.least = counts, length, least
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
            tokens = [] if state is None or length < 1 else self.counts.draft_likeliest(state, length, self.least)
            drafts.append(branch(tokens))
        return drafts

    def forget(self, row: int) -> None:
        self._states.pop(row, None)
