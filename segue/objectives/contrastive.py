"""Pull rows of one class together and push the others away (SupCon, Khosla et al. 2020, arXiv 2004.11362)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segue.errors import SegueError
from segue.objectives.base import Batch, Loss

RECALLED, ACTIVATIONS = "recalled", "activations"
"""Side channels of a batch with old rows of which only activations are kept: where it has them, (B, T) bool, and what
they are, (B, T, .), at the layer where the model is entered (`forward_from`)."""


def asked(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """The hidden vectors at the asked places, (M, D) in float32 at least, and their targets (M,)."""
    where = batch.targets >= 0
    if RECALLED in batch.channels:
        inside = getattr(model, "backbone", model)
        old = batch.channels[RECALLED][:, 0]
        h = torch.empty_like(batch.channels[ACTIVATIONS])
        h[old] = batch.channels[ACTIVATIONS][old]
        if not bool(old.all()):
            new = batch.rows(~old)
            h = h.index_put((~old,), inside.features(new.tokens, new.layout))
        hidden: Tensor = inside.forward_from(h)[where]
    else:
        hidden = model.hidden(batch.tokens, batch.layout)[where]  # type: ignore[operator]
    return hidden if hidden.dtype == torch.float64 else hidden.float(), batch.targets[where]


def similarities(features: Tensor, temperature: float) -> Tensor:
    """(M, M): cosines of the rows over the temperature, -inf of each row with itself."""
    unit = F.normalize(features, dim=-1)
    return (unit @ unit.mT / temperature).fill_diagonal_(-math.inf)


def supcon(features: Tensor, labels: Tensor, temperature: float = 0.1) -> Tensor:
    """Scalar: the sum over rows of -mean over the other rows p of its class of log softmax(similarities)[p], nats.

    features: (M, D). labels: (M,). A row that is the only one of its class counts nothing.
    """
    same = (labels[:, None] == labels).fill_diagonal_(False)
    if not bool(same.any()):
        return features.sum() * 0
    apart = similarities(features, temperature).log_softmax(-1)
    return -(apart.masked_fill(~same, 0.0).sum(-1) / same.sum(-1).clamp(min=1)).sum()


class SupCon:
    """`supcon` of the vectors at the asked places. Rows do not add up: each is compared with the whole batch."""

    def __init__(self, temperature: float = 0.1) -> None:
        if temperature <= 0:
            raise SegueError(f"a temperature of {temperature} cannot divide similarities: give one above 0")
        self.temperature = temperature

    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        features, labels = asked(model, batch)
        total = supcon(features, labels, self.temperature)
        return Loss(total, {"nats": total.detach()}, batch.count)
