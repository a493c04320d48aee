"""Pull together what belongs together and push the rest away: rows of one class (SupCon, Khosla et al. 2020, arXiv
2004.11362), a history and what came next (in-batch and over all items; Recformer, Li et al. 2023, arXiv
2305.13731)."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segue.errors import SegueError
from segue.objectives.base import Batch, Loss
from segue.objectives.masked import MaskedElements

RECALLED, ACTIVATIONS = "recalled", "activations"
"""Side channels of a batch with old rows of which only activations are kept: where it has them, (B, T) bool, and what
they are, (B, T, .), at the layer where the model is entered (`forward_from`)."""


def asked(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """The hidden vectors at the asked places, (M, D) in float32 at least, and their targets (M,)."""
    where = batch.targets >= 0
    if RECALLED in batch.channels:
        inside: Any = getattr(model, "backbone", model)
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


MASKED, WANTED = "masked", "wanted"  # channels: ids with masks among them, and what stands there


def in_batch(queries: Tensor, keys: Tensor, temperature: float = 0.05) -> Tensor:
    """Scalar: the sum over rows of -log softmax of the cosines of each query (B, D) with all keys (B, D) over the
    temperature, at its own key, nats (InfoNCE: van den Oord et al. 2018)."""
    scores = F.normalize(queries, dim=-1) @ F.normalize(keys, dim=-1).mT / temperature
    return F.cross_entropy(scores, torch.arange(len(scores), device=scores.device), reduction="sum")


class InBatch:
    """`in_batch` of the vectors at the asked places: those of the first half of the rows are queries, those of the
    second half their keys, each row's among the others'.

    fill: how much it counts, per element, that masked elements are filled in, where the batch has the channels "masked"
    (B, T), the ids with masks among them, and "wanted" (B, T), what stands there (-1: nothing is asked), in a pass of
    its own.
    """

    def __init__(self, temperature: float = 0.05, fill: float = 0.1) -> None:
        if temperature <= 0:
            raise SegueError(f"a temperature of {temperature} cannot divide similarities: give one above 0")
        self.temperature, self.fill, self.masked = temperature, fill, MaskedElements()

    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        features, _ = asked(model, batch)
        if len(features) % 2:
            raise SegueError(f"{len(features)} rows are no pairs: give queries and then as many keys")
        queries, keys = features.chunk(2)
        total = in_batch(queries, keys, self.temperature)
        terms = {"nats": total.detach()}
        if MASKED in batch.channels and self.fill:
            ids = batch.channels[MASKED]
            tokens = torch.cat([ids[..., None], batch.tokens[..., 1:]], -1) if batch.tokens.dim() == 3 else ids
            filled = self.masked(model, replace(batch, tokens=tokens, targets=batch.channels[WANTED], channels={}))
            each = batch.count * filled.total / max(1, filled.count)
            total, terms["fill"] = total + self.fill * each, each.detach()
        return Loss(total, terms, batch.count)


COSINE = "cosine"  # channel: the cosine that is wanted of each pair, at the first element of its first row


class CosineRegression:
    """Squared errors of the cosines between the vectors at the asked places, of the first half of the rows and of the
    second, against the batch's channel "cosine" (B, T); the mean over elements is that over pairs, which is
    sentence-transformers' CosineSimilarityLoss (curved contrastive learning, arXiv 2211.07591)."""

    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        features, _ = asked(model, batch)
        wanted = batch.channels[COSINE][: len(features) // 2, 0].to(features)
        if len(features) != len(batch.tokens) or len(features) % 2:
            raise SegueError(f"{len(features)} vectors of {len(batch.tokens)} rows are no pairs: ask for one of each "
                             "row, the first halves of all pairs and then the second")
        one, other = features.chunk(2)
        # Twice the pairs' sum, since a batch of pairs counts an element for each of their rows.
        total = 2 * (F.cosine_similarity(one, other) - wanted).square().sum()
        return Loss(total, {"nats": total.detach()}, batch.count)


class Scorer(Protocol):
    """Scores of vectors (M, D) with all items: (M, N)."""

    def scores(self, features: Tensor) -> Tensor: ...


class AllItems:
    """Cross-entropy of the items that `targets` names, over all that an index holds, by the vectors at the asked places
    (`segue.analysis.items.ItemIndex`). The index does not learn."""

    def __init__(self, index: Scorer) -> None:
        self.index = index

    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        features, items = asked(model, batch)
        total = F.cross_entropy(self.index.scores(features), items, reduction="sum")
        return Loss(total, {"nats": total.detach()}, batch.count)
