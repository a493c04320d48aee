"""Learn from a larger model's predictions as well as from the data (Hinton, Vinyals & Dean 2015, arXiv 1503.02531)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segue.errors import SegueError
from segue.objectives.base import Batch, Loss
from segue.objectives.contrastive import similarities


class Distillation:
    """(1 - part) * cross-entropy + part * T^2 * KL(teacher at temperature T, model at temperature T), sums in nats.

    teacher: a model over the same elements; it is not trained. part: from 0 (the data alone) to 1 (the teacher alone).
    temperature: T; the larger, the more the teacher's unlikely elements count. T^2 keeps the gradient's scale.
    """

    def __init__(self, teacher: nn.Module, part: float = 0.5, temperature: float = 2.0) -> None:
        self.teacher, self.part, self.temperature = teacher.eval(), part, temperature

    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        asked = batch.targets >= 0
        logits = model(batch.tokens, batch.layout).logits[asked].float()
        with torch.no_grad():
            taught = self.teacher.to(batch.tokens.device)(batch.tokens, batch.layout).logits[asked].float()
        if taught.shape != logits.shape:
            raise SegueError(f"a teacher of {taught.shape[-1]} elements cannot teach a model of {logits.shape[-1]}: "
                             "both need the same codec")
        nats = F.cross_entropy(logits, batch.targets[asked], reduction="sum")
        apart = F.kl_div((logits / self.temperature).log_softmax(-1), (taught / self.temperature).log_softmax(-1),
                         reduction="sum", log_target=True)
        total = (1 - self.part) * nats + self.part * self.temperature**2 * apart
        return Loss(total, {"nats": nats.detach(), "distillation": apart.detach()}, batch.count)


def score_distillation(scores: Tensor, stored: Tensor, labels: Tensor) -> Tensor:
    """Scalar: the mean squared difference between scores (R, C) and those stored with the same rows (R, C' <= C), each
    class weighted by its share of the labels (M,) of the whole batch (PCD, arXiv 2309.15038)."""
    errors = (scores[:, : stored.shape[1]] - stored.to(scores)).square().mean(0)
    counts = torch.bincount(labels, minlength=len(errors))[: len(errors)].to(errors)
    return (counts * errors).sum() / len(labels)


def relation_distillation(features: Tensor, stored: Tensor, temperature: float = 0.09) -> Tensor:
    """Scalar: keep the similarities between rows as they were (SCD, arXiv 2309.15038): the mean over rows of the
    cross-entropy, in nats, between the old and the new softmax over the other rows of cosine / temperature.
    features, stored: (R, D), new and old vectors of the same rows.
    """
    if len(features) < 2:
        return features.sum() * 0
    now, then = similarities(features, temperature), similarities(stored.to(features), temperature)
    return -(then.softmax(-1) * now.log_softmax(-1).masked_fill(now.isinf(), 0.0)).sum(-1).mean()
