"""Experience replay (Robins 1995; with a reservoir, Chaudhry et al. 2019, arXiv 1902.10486)."""

from __future__ import annotations

import numpy as np
import torch

from segue.continual.buffer import Reservoir
from segue.errors import SegueError
from segue.objectives import Batch
from segue.training.batches import Arrays, Batches
from segue.training.loop import Run
from segue.training.strategy import Strategy


class Replay(Strategy):
    """A share of every batch's rows is old data from the buffer, so a step costs what it did without.

    share: of the rows, between 0 and 1.
    """

    name = "replay"

    def __init__(self, buffer: Reservoir | None = None, share: float = 0.5) -> None:
        if not 0 < share < 1:
            raise SegueError(f"replay's share must lie between 0 and 1, not {share}")
        self.buffer, self.share = buffer, share

    def before_experience(self, run: Run) -> None:
        if self.buffer is None or not len(self.buffer):
            raise SegueError("this model keeps no old data to replay: choose --strategy naive")

    def before_step(self, run: Run, batch: Batch) -> Batch:
        assert self.buffer is not None
        rows, context = batch.tokens.shape
        old = min(rows - 1, max(1, round(self.share * rows))) if rows > 1 else 0
        if not old:  # one row a step: take turns instead
            old = int(np.random.default_rng((run.plan.seed, run.step)).random() < self.share)
        if not old:
            return batch
        pieces = self.buffer.draw(old * max(1, context // self.buffer.length + 1),
                                  np.random.default_rng((run.plan.seed, run.step)))
        again = Batches(Arrays(pieces), context, old, seed=run.plan.seed)
        memory = again.make(0)
        again.close()
        new = batch.rows(torch.arange(rows - old))
        return Batch.join([Batch(part.tokens, part.targets, part.starts) for part in (new, memory)]) \
            if rows > old else memory
