"""Which class a row is of: cross-entropy among all classes, those seen, or those of the batch."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segue.errors import SegueError
from segue.objectives.base import Batch, Loss
from segue.objectives.contrastive import asked, similarities

AMONG = ("all", "seen", "new", "batch")


def see(model: nn.Module, labels: Tensor) -> None:
    """In training, tell a classifier which classes it was shown."""
    if model.training and hasattr(model, "mark_seen"):
        model.mark_seen(labels)  # type: ignore[operator]


class ClassLoss:
    """Cross-entropy of the asked places' classes, nats.

    among: the classes that the softmax is over. "all": all that are allocated, so that those still to come are pushed
    away from the first step on (pre-allocated heads, SEQ*). "seen" (default): those that training has shown so far.
    "new": those seen so far whose rows of the head are not frozen, so that what is learned now does not push away
    what was learned before (masked past logits; `Prompting` and `Freeze` freeze the rows of an experience at its end).
    "batch": those of the batch alone, so that new rows do not push old classes away (ER-ACE, Caccia et al. 2022, for
    new and old rows alike); rows then do not add up.
    model: a classifier, or for "all" and "batch" any model with `hidden` and `head`.
    """

    def __init__(self, among: str = "seen") -> None:
        if among not in AMONG:
            raise SegueError(f"a softmax among '{among}' is unknown: choose from {', '.join(AMONG)}")
        self.among = among

    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        features, labels = asked(model, batch)
        see(model, labels)
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
    """(C,) for scores (M, C): the logarithm of how many labels are of each class, -inf where none is."""
    return torch.bincount(labels, minlength=scores.shape[-1]).to(scores).log()


class ProxyReplay:
    """Proxy-based contrastive replay: PCR (Lin et al. 2023, arXiv 2304.04408) and HPCR (arXiv 2309.15038).

    Every row is an anchor, and what it is compared with are the proxies of all rows' labels: -log of e^s(z, y) over the
    sum over rows j of e^s(z, y_j), which is a softmax over the classes of the batch, each weighted by its count. (Its
    gradient is that of cross-entropy with scores adjusted by log counts.) Meant for a `CosineHead`.

    samples: in batches of so many rows at least, the other rows too stand among what an anchor is compared with, those
        of its class among the positives, over which the logarithm is averaged (0: never, as published commands have it;
        2 or more).
    temperature: of the similarities of rows; that of the proxies is the head's.
    Rows do not add up: each is compared with the whole batch.
    """

    def __init__(self, samples: int = 0, temperature: float = 0.09) -> None:
        if samples < 0 or samples == 1 or temperature <= 0:
            raise SegueError(f"samples {samples} at temperature {temperature} do not fit: samples is 0 (never) or at "
                             "least 2, the temperature above 0")
        self.samples, self.temperature = samples, temperature

    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        features, labels = asked(model, batch)
        see(model, labels)
        scores = model.head(features)  # type: ignore[operator]
        own = scores.gather(1, labels[:, None])[:, 0]
        compared, positives = scores + log_counts(labels, scores), own
        if 0 < self.samples <= len(labels):
            others = similarities(features, self.temperature)
            same = (labels[:, None] == labels).fill_diagonal_(False)
            proxies = same.sum(1) + 1  # of the rows of its class, itself included
            positives = (proxies * own + others.masked_fill(~same, 0.0).sum(1)) / (2 * proxies - 1)
            compared = torch.cat([compared, others], 1)
        total = (compared.logsumexp(1) - positives).sum()
        return Loss(total, {"nats": total.detach()}, batch.count)
