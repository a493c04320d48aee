"""Classification losses: cross-entropy over all classes, the classes seen so far, or those of the batch."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segue.errors import SegueError, check_choice
from segue.objectives.base import Batch, Loss
from segue.objectives.contrastive import similarities, target_features

AMONG = ("all", "seen", "new", "batch")


def mark_seen_classes(model: nn.Module, labels: Tensor) -> None:
    """In training mode, record the classes of these labels in a classifier that tracks seen classes."""
    if model.training and hasattr(model, "mark_seen"):
        model.mark_seen(labels)  # type: ignore[operator]


class ClassLoss:
    """Cross-entropy of the class at each position with a target, nats.

    among: the classes that the softmax runs over. "all": every allocated class, so that future classes are pushed down
    from the first step on (pre-allocated heads, SEQ*). "seen" (default): the classes shown in training so far.
    "new": the seen classes whose head rows are not frozen, so that learning new classes does not push down the scores
    of old ones (masked past logits; `Prompting` and `Freeze` freeze the rows of an experience at its end).
    "batch": only the classes of the batch, with the same effect (ER-ACE, Caccia et al. 2022, here for new and old rows
    alike); the loss is then not a sum over rows.
    model: a classifier, or for "all" and "batch" any model with `hidden` and `head`.
    """

    def __init__(self, among: str = "seen") -> None:
        check_choice("a softmax among", among, AMONG)
        self.among, self.compares_rows = among, among == "batch"

    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        features, labels = target_features(model, batch)
        mark_seen_classes(model, labels)
        scores = model.head(features)  # type: ignore[operator]
        if self.among != "all":
            allowed: Any = log_counts(labels, scores).isfinite() if self.among == "batch" else model.seen
            if self.among == "new":
                head: Any = model.head
                allowed = allowed & ~head.frozen
            scores = scores.masked_fill(~allowed, -math.inf)
        total = F.cross_entropy(scores, labels, reduction="sum")
        return Loss(total, {"nats": total.detach()}, batch.count)


def log_counts(labels: Tensor, scores: Tensor) -> Tensor:
    """(C,) log of the number of labels in each class, -inf for a class with none. scores: (M, C), for C and dtype."""
    return torch.bincount(labels, minlength=scores.shape[-1]).to(scores).log()


class ProxyReplay:
    """Proxy-based contrastive replay: PCR (Lin et al. 2023, arXiv 2304.04408) and HPCR (arXiv 2309.15038).

    Every row is an anchor, compared with the class proxies (head rows) of all rows' labels: -log of e^s(z, y) over the
    sum over rows j of e^s(z, y_j). This is a softmax over the classes of the batch, each weighted by its count; its
    gradient is that of cross-entropy with scores adjusted by log counts. Meant for a `CosineHead`.

    samples: in batches of at least this many rows, an anchor is also compared with the other rows; those of its class
        are further positives, and the log-probability is averaged over all positives (0: never, as in the published
        commands; otherwise 2 or more).
    temperature: for row similarities; the head has its own for the proxies.
    The loss is not a sum over rows: each row is compared with the whole batch.
    """

    compares_rows: ClassVar[bool] = True

    def __init__(self, samples: int = 0, temperature: float = 0.09) -> None:
        if samples < 0 or samples == 1 or temperature <= 0:
            raise SegueError(f"samples {samples} at temperature {temperature} do not fit: samples is 0 (never) or at "
                             "least 2, the temperature above 0")
        self.samples, self.temperature = samples, temperature

    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        features, labels = target_features(model, batch)
        mark_seen_classes(model, labels)
        scores = model.head(features)  # type: ignore[operator]
        own = scores.gather(1, labels[:, None])[:, 0]
        compared, positives = scores + log_counts(labels, scores), own
        if 0 < self.samples <= len(labels):
            others = similarities(features, self.temperature)
            same = (labels[:, None] == labels).fill_diagonal_(False)
            proxies = same.sum(1) + 1  # one for each row of the anchor's class, itself included
            positives = (proxies * own + others.masked_fill(~same, 0.0).sum(1)) / (2 * proxies - 1)
            compared = torch.cat([compared, others], 1)
        total = (compared.logsumexp(1) - positives).sum()
        return Loss(total, {"nats": total.detach()}, batch.count)
