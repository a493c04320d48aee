"""Predict a real number at each asked place, by the squared error."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from segue.objectives.base import Batch, Loss

VALUES = "values"  # the channel that holds what is to be predicted


def predicted(model: nn.Module, batch: Batch) -> Tensor:
    """(B, T): the first score of the model at each place, which is its prediction."""
    return model(batch.tokens, batch.layout).logits[..., 0].float()


class SquaredError:
    """(prediction - value)², summed over the places whose target is not -1; values: the channel `VALUES`, (B, T)."""

    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        error = predicted(model, batch) - batch.channels[VALUES]
        total = error.square()[batch.targets >= 0].sum()
        return Loss(total, {"nats": total.detach()}, batch.count)


@torch.no_grad()
def squared_errors(model: nn.Module, batch: Batch) -> Tensor:
    """(B, T): the squared error at each place, nan where none is asked for."""
    model.eval()
    error = (predicted(model, batch) - batch.channels[VALUES]).square()
    return error.masked_fill(batch.targets < 0, torch.nan)
