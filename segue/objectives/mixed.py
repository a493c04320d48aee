"""Draw one of several objectives at each training step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import nn

from segue.errors import SegueError
from segue.objectives.base import Batch, Loss, Objective, content_rng


class Mixed:
    """At each step one of these objectives is drawn, with probability proportional to its share.

    The draw depends only on the training loop's seed and the step, so all micro-batches of a step, all processes and a
    resumed run draw the same one.
    """

    def __init__(self, parts: Sequence[tuple[Objective, float]]) -> None:
        self.parts = list(parts)
        if not self.parts or min(share for _, share in self.parts) <= 0:
            raise SegueError(f"shares must be above 0, not {[share for _, share in self.parts]}: leave objectives "
                             "without a share out")

    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        ends = np.cumsum([share for _, share in self.parts])
        side = int(np.searchsorted(ends, content_rng().random() * ends[-1], side="right"))
        return self.parts[side][0](model, batch)
