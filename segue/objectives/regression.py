"""Regression: predict real numbers at the positions with a target, with the squared error."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from segue.objectives.base import Batch, Loss

VALUES = "values"  # the channel that holds the values to predict


def residuals(model: nn.Module, batch: Batch) -> Tensor:
    """(B, T, w) predicted minus true values at each position; the predictions are the model's first w outputs."""
    wanted = batch.channels[VALUES]
    wanted = wanted[..., None] if wanted.ndim == 2 else wanted
    predicted = model(batch.tokens, batch.layout).logits[..., : wanted.shape[-1]]
    predicted = predicted if predicted.dtype == torch.float64 else predicted.float()
    return predicted - wanted.to(predicted)


class SquaredError:
    """(prediction - value)², summed over the positions whose target is not -1. The values are in the channel `VALUES`,
    (B, T) or (B, T, w). model: any with at least w outputs, such as a `Classifier` of w classes."""

    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        total = residuals(model, batch)[batch.targets >= 0].square().sum()
        return Loss(total, {"nats": total.detach()}, batch.count)


@torch.no_grad()
def squared_errors(model: nn.Module, batch: Batch) -> Tensor:
    """(B, T) squared error at each position, nan where there is no target; on the device of the model."""
    model.eval()
    batch = batch.to(next(model.parameters()).device)
    return residuals(model, batch).square().sum(-1).masked_fill(batch.targets < 0, torch.nan)


def scored_batch(tokens: Tensor, scores: Tensor) -> Batch:
    """A batch of rows (B, T) whose scores, (B,) or (B, w), are predicted at the last element."""
    targets = torch.full_like(tokens, -1)
    targets[:, -1] = 0
    return Batch(tokens, targets, channels={VALUES: scores[:, None].expand(-1, tokens.shape[1], *scores.shape[1:])})
