"""Predict real numbers at the asked places, by the squared error."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from segue.objectives.base import Batch, Loss

VALUES = "values"  # the channel that holds what is to be predicted


def errors(model: nn.Module, batch: Batch) -> Tensor:
    """(B, T, w): how far the model's first w scores at each place are from the w values wanted there."""
    wanted = batch.channels[VALUES]
    wanted = wanted[..., None] if wanted.ndim == 2 else wanted
    said = model(batch.tokens, batch.layout).logits[..., : wanted.shape[-1]]
    said = said if said.dtype == torch.float64 else said.float()
    return said - wanted.to(said)


class SquaredError:
    """(prediction - value)², summed over the places whose target is not -1, which only says where; values: the channel
    `VALUES`, (B, T) or (B, T, w). model: any with so many scores, such as a `Classifier` of w classes."""

    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        total = errors(model, batch)[batch.targets >= 0].square().sum()
        return Loss(total, {"nats": total.detach()}, batch.count)


@torch.no_grad()
def squared_errors(model: nn.Module, batch: Batch) -> Tensor:
    """(B, T): the squared error at each place, nan where none is asked for; on the device of the model."""
    model.eval()
    batch = batch.to(next(model.parameters()).device)
    return errors(model, batch).square().sum(-1).masked_fill(batch.targets < 0, torch.nan)


def scored(tokens: Tensor, scores: Tensor) -> Batch:
    """Whole rows (B, T) with their scores, (B,) or (B, w), asked for at the last element."""
    targets = torch.full_like(tokens, -1)
    targets[:, -1] = 0
    return Batch(tokens, targets, channels={VALUES: scores[:, None].expand(-1, tokens.shape[1], *scores.shape[1:])})
