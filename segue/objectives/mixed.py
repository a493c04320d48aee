"""One of several objectives at each step, by a coin."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import nn

from segue.errors import SegueError
from segue.objectives.base import Batch, Loss, Objective, drawn


class Mixed:
    """Each step learns by one of these objectives, drawn with its share (of the shares' sum).

    The coin depends on the training loop's seed and on the step alone, so all parts of a step, all processes and a
    resumed run see the same side.
    """

    def __init__(self, parts: Sequence[tuple[Objective, float]]) -> None:
        self.parts = list(parts)
        if not self.parts or min(share for _, share in self.parts) <= 0:
            raise SegueError(f"shares must be above 0, not {[share for _, share in self.parts]}: leave objectives "
                             "without a share out")

    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        ends = np.cumsum([share for _, share in self.parts])
        side = int(np.searchsorted(ends, drawn().random() * ends[-1], side="right"))
        return self.parts[side][0](model, batch)
