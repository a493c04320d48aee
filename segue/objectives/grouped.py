"""Task-incremental classification: the task of each row is known, and the softmax runs over that task's classes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from segue.errors import SegueError
from segue.objectives.base import Batch, Loss


class GroupedClasses:
    """Cross-entropy of each target among the classes of its own group, sums in nats.

    groups: the classes of each task; no class belongs to two. Replayed old rows use their own group as well.
    """

    def __init__(self, groups: Sequence[Sequence[int]]) -> None:
        classes = [c for group in groups for c in group]
        if not classes or len(set(classes)) != len(classes):
            raise SegueError(f"groups {[list(group) for group in groups]} share a class, or have none")
        self.of = torch.full((max(classes) + 1,), -1)
        for index, group in enumerate(groups):
            self.of[list(group)] = index

    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        asked = batch.targets >= 0
        scores, targets = model(batch.tokens, batch.layout).logits[asked].float(), batch.targets[asked]
        known = self.of.to(scores.device)
        of = F.pad(known, (0, scores.shape[1] - len(known)), value=-1)
        nats = F.cross_entropy(scores.masked_fill(of != known[targets][:, None], -math.inf), targets, reduction="sum")
        return Loss(nats, {"nats": nats.detach()}, batch.count)
