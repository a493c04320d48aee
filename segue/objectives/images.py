"""Losses for image models, and for models of text followed by image tokens."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segue.objectives.base import Batch, Loss


class CodedReconstruction:
    """The loss of a vector-quantised image tokenizer: mean squared error of its reconstructions plus `commitment` times
    the distance of its vectors from their codes. Batch: tokens (B, 3, H, W) from 0 to 1."""

    def __init__(self, commitment: float = 0.25) -> None:
        self.commitment = commitment

    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        coded = model(batch.tokens)
        error = (coded.picture - batch.tokens).square().mean()
        return Loss((error + self.commitment * coded.apart) * batch.count, {"nats": error.detach() * batch.count},
                    batch.count)  # nats, up to scale, of pixels with a deviation of their own


class FrameLabels:
    """Cross-entropy of the things shown in an image (binary, one for each) and of its place
    (`segue.models.images.FrameClassifier`). Batch: tokens (B, 3, H, W); targets (B, things + 1), 1 or 0 for each thing,
    then the place's index."""

    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        things, places = model(batch.tokens)
        loss = F.binary_cross_entropy_with_logits(things, batch.targets[:, :-1].float()) + \
            F.cross_entropy(places, batch.targets[:, -1])
        return Loss(loss * batch.count, {"nats": loss.detach() * batch.count}, batch.count)


class SegmentCrossEntropy:
    """Next-element loss with one weight for each segment, whatever its length: the sum over segments of weight times
    the mean nats of its elements. owner: (V,) long, the segment of each id (`segue.models.segments`). weights: by
    segment, default 1."""

    def __init__(self, owner: Tensor, weights: Mapping[int, float] | None = None) -> None:
        self.owner, self.weights = owner, dict(weights or {})

    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        asked = batch.targets >= 0
        targets = batch.targets[asked]
        nats = F.cross_entropy(model(batch.tokens, batch.layout).logits[asked].float(), targets, reduction="none")
        owner = self.owner.to(targets.device)[targets]
        parts = [self.weights.get(int(segment), 1.0) * nats[owner == segment].mean() for segment in owner.unique()]
        return Loss(torch.stack(parts).sum() * batch.count, {"nats": nats.sum().detach()}, batch.count)
