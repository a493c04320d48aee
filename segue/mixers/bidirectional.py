"""A bidirectional pair of mixers (Schuster & Paliwal 1997), for scoring and tagging, where the whole input is known."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from segue.errors import SegueError
from segue.mixers.base import Mixer
from segue.mixers.layout import Layout
from segue.mixers.state import Parts


class Bidirectional(Mixer):
    """A causal mixer reading forwards beside another reading backwards, projected back to the model's width.

    width: model width D. mixer: name of the causal mixer for both directions; `options` go to both.
    """

    causal = False

    def __init__(self, width: int, mixer: str = "lstm", **options: Any) -> None:
        super().__init__(width)
        from segue.mixers import MIXERS  # here, because the table lists this class too

        if mixer not in MIXERS or not MIXERS[mixer].causal:
            raise SegueError(f"mixer '{mixer}' is not causal: choose a causal one")
        self.ahead, self.back = MIXERS[mixer](width, **options), MIXERS[mixer](width, **options)
        self.resettable = self.ahead.resettable
        self.out = nn.Linear(2 * width, width, bias=False)

    def read_both_ways(self, x: Tensor, layout: Layout) -> Tensor:
        """Return the outputs of the forward and the backward mixer side by side, (B, N, 2 D)."""
        back = self.back.run(x.flip(1), layout.mirrored(), {}).flip(1)
        return torch.cat([self.ahead.run(x, layout, {}), back], -1)

    def run(self, x: Tensor, layout: Layout, parts: Parts) -> Tensor:
        return self.out(self.read_both_ways(x, layout))
