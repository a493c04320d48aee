"""Learning numbers of each sequence."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from segue.objectives.base import Batch, Loss

SCORE = "score"  # the channel with the numbers


class Regression:
    """The squared error of a model's scores at the asked places; what they are to be is in the channel "score", (B, T)
    or (B, T, w), and targets only say where. model: any with so many scores, such as a `Classifier` of w classes.
    """

    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        asked = batch.targets >= 0
        aims = batch.channels[SCORE][asked]
        aims = aims[:, None] if aims.ndim == 1 else aims
        said = model(batch.tokens, batch.layout).logits[asked][:, : aims.shape[1]]
        total = (said - aims.to(said)).square().sum()
        return Loss(total, {"nats": total.detach()}, batch.count)


def scored(tokens: Tensor, scores: Tensor) -> Batch:
    """Whole rows (B, T) with their scores, (B,) or (B, w), asked for at the last element."""
    targets = torch.full_like(tokens, -1)
    targets[:, -1] = 0
    return Batch(tokens, targets, channels={SCORE: scores[:, None].expand(-1, tokens.shape[1], *scores.shape[1:])})
