"""Contrastive losses: between rows of one class (SupCon, Khosla et al. 2020, arXiv 2004.11362), and between a history
and the next item, with in-batch negatives or over all items (Recformer, Li et al. 2023, arXiv 2305.13731)."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segue.errors import SegueError
from segue.objectives.base import Batch, Loss
from segue.objectives.masked import MaskedElements

RECALLED, ACTIVATIONS = "recalled", "activations"
"""Side channels for replaying stored activations: which rows are replayed, (B, T) bool, and their activations,
(B, T, .), at the layer from which the model continues (`forward_from`)."""


def target_features(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """The hidden states at all positions with a target, (M, D) in float32 at least, and these targets, (M,)."""
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
    """(M, M) cosine similarities of all pairs of rows, divided by the temperature; -inf on the diagonal."""
    unit = F.normalize(features, dim=-1)
    return (unit @ unit.mT / temperature).fill_diagonal_(-math.inf)


def supcon(features: Tensor, labels: Tensor, temperature: float = 0.1) -> Tensor:
    """Supervised contrastive loss, nats: the sum over rows of -mean over the other rows p of the same class of
    log softmax(similarities)[p].

    features: (M, D). labels: (M,). A row that is the only one of its class contributes 0.
    """
    same = (labels[:, None] == labels).fill_diagonal_(False)
    if not bool(same.any()):
        return features.sum() * 0
    log_probs = similarities(features, temperature).log_softmax(-1)
    return -(log_probs.masked_fill(~same, 0.0).sum(-1) / same.sum(-1).clamp(min=1)).sum()


class SupCon:
    """`supcon` of the hidden states at all positions with a target. Not a sum over rows: each is compared with the
    whole batch."""

    compares_rows: ClassVar[bool] = True

    def __init__(self, temperature: float = 0.1) -> None:
        if temperature <= 0:
            raise SegueError(f"a temperature of {temperature} cannot divide similarities: give one above 0")
        self.temperature = temperature

    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        features, labels = target_features(model, batch)
        total = supcon(features, labels, self.temperature)
        return Loss(total, {"nats": total.detach()}, batch.count)


MASKED, WANTED = "masked", "wanted"  # channels: ids with some of them masked, and the ids to predict there


def info_nce(queries: Tensor, keys: Tensor, temperature: float = 0.05) -> Tensor:
    """InfoNCE with in-batch negatives (van den Oord et al. 2018), nats: the sum over queries (B, D) of -log softmax, at
    the query's own key, of its cosines with all keys (B, D) divided by the temperature."""
    scores = F.normalize(queries, dim=-1) @ F.normalize(keys, dim=-1).mT / temperature
    return F.cross_entropy(scores, torch.arange(len(scores), device=scores.device), reduction="sum")


class InBatch:
    """`info_nce` of the hidden states at positions with a target: the first half of the rows are queries, the second
    half their keys; the keys of other rows are the negatives.

    fill: weight of a masked-element loss, per element, computed in a second pass if the batch has the channels "masked"
    (B, T), the partly masked ids, and "wanted" (B, T), the ids to predict (-1: none).
    """

    compares_rows: ClassVar[bool] = True

    def __init__(self, temperature: float = 0.05, fill: float = 0.1) -> None:
        if temperature <= 0:
            raise SegueError(f"a temperature of {temperature} cannot divide similarities: give one above 0")
        self.temperature, self.fill, self.masked = temperature, fill, MaskedElements()

    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        features, _ = target_features(model, batch)
        if len(features) % 2:
            raise SegueError(f"{len(features)} rows are no pairs: give queries and then as many keys")
        queries, keys = features.chunk(2)
        total = info_nce(queries, keys, self.temperature)
        terms = {"nats": total.detach()}
        if MASKED in batch.channels and self.fill:
            ids = batch.channels[MASKED]
            tokens = torch.cat([ids[..., None], batch.tokens[..., 1:]], -1) if batch.tokens.dim() == 3 else ids
            filled = self.masked(model, replace(batch, tokens=tokens, targets=batch.channels[WANTED], channels={}))
            each = batch.count * filled.total / max(1, filled.count)
            total, terms["fill"] = total + self.fill * each, each.detach()
        return Loss(total, terms, batch.count)


COSINE = "cosine"  # channel: the target cosine of each pair, at the first element of its first row


class CosineRegression:
    """Squared error between the cosine of each pair of vectors and its target cosine in the batch's channel "cosine"
    (B, T). Row i of the first half is paired with row i of the second half; each row has one target position. The mean
    over elements equals the mean over pairs, as in sentence-transformers' CosineSimilarityLoss (curved contrastive
    learning, arXiv 2211.07591)."""

    compares_rows: ClassVar[bool] = True

    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        features, _ = target_features(model, batch)
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
    """Cross-entropy of the target items over all items of an index (`segue.analysis.items.ItemIndex`), scored with the
    hidden states at the target positions. The index is not trained."""

    def __init__(self, index: Scorer) -> None:
        self.index = index

    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        features, items = target_features(model, batch)
        total = F.cross_entropy(self.index.scores(features), items, reduction="sum")
        return Loss(total, {"nats": total.detach()}, batch.count)
