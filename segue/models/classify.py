"""Classifiers: any backbone that gives hidden vectors, and a head that scores classes from one of them.

A row is classified at the position of its target, usually its last element before the padding: from the hidden vector
there or, with pool "mean", from the mean of the hidden vectors up to there. The backbone may use any mixer; one that
looks both ways also sees the padding, unless `Batch.starts` makes it a document of its own
(`segue.models.base.padding_starts`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segue.errors import SegueError
from segue.mixers.layout import Layout
from segue.models.base import Output
from segue.models.stack import running_mean

EPS = 1e-6  # added to norms


def cosines(x: Tensor, y: Tensor) -> Tensor:
    """(..., M, D), (N, D) -> (..., M, N): the cosine of each pair."""
    return (x / (x.norm(dim=-1, keepdim=True) + EPS)) @ (y / (y.norm(dim=-1, keepdim=True) + EPS)).mT


class ClassHead(nn.Module):
    """Base of all heads: features (..., D) -> scores (..., C), higher is likelier.

    width: D. classes: C, rows allocated so far; `grow` adds more and leaves the existing rows unchanged.
    """

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        if width < 1 or classes < 0:
            raise SegueError(f"a head of {classes} classes cannot read vectors of width {width}: give a width of 1 or "
                             "more, and no negative number of classes")
        self.width, self.classes = width, classes

    def grow(self, classes: int) -> None:
        """Allocate rows for `classes` in all. Call it before making an optimiser, since parameters are replaced."""
        if classes < self.classes:
            raise SegueError(f"a head of {self.classes} classes cannot grow to {classes}: classes stay, ask for more")
        for name, tensor in list(self._rows().items()):
            new_rows = self._new_rows(name, classes - self.classes).to(tensor)
            joined = torch.cat([tensor.detach(), new_rows])
            setattr(self, name, nn.Parameter(joined, tensor.requires_grad) if isinstance(tensor, nn.Parameter)
                    else joined)
        self.classes = classes

    def add_examples(self, features: Tensor, labels: Tensor) -> None:
        """Learn from examples (M, D) with classes (M,); a SegueError for heads that learn by gradients instead."""
        raise SegueError(f"a {type(self).__name__} learns by gradients: train it, it absorbs nothing")

    def _rows(self) -> dict[str, Tensor]:
        """The tensors with one row per class, by attribute name."""
        raise NotImplementedError

    def _new_rows(self, name: str, count: int) -> Tensor:
        """Initial values of `count` new rows of the tensor `name`."""
        raise NotImplementedError


class WeightHead(ClassHead):
    """A head with one learned row per class. frozen: (C,) bool, rows that no longer learn."""

    frozen: Tensor

    def __init__(self, width: int, classes: int, bias: bool) -> None:
        super().__init__(width, classes)
        self.weight = nn.Parameter(self._new_rows("weight", classes))
        self.bias = nn.Parameter(self._new_rows("bias", classes)) if bias else None
        self.register_buffer("frozen", torch.zeros(classes, dtype=torch.bool))

    def freeze(self, classes: Iterable[int] | Tensor) -> None:
        """Stop gradients to the rows of these classes. An optimiser made before may still move them by momentum or
        weight decay."""
        self.frozen[torch.as_tensor(list(classes), dtype=torch.long, device=self.frozen.device)] = True

    def rows(self) -> Tensor:
        """(C, D): the weight, with frozen rows detached."""
        return torch.where(self.frozen[:, None], self.weight.detach(), self.weight)

    def _rows(self) -> dict[str, Tensor]:
        rows: dict[str, Tensor] = {"weight": self.weight, "frozen": self.frozen}
        return rows if self.bias is None else rows | {"bias": self.bias}

    def _new_rows(self, name: str, count: int) -> Tensor:
        if name == "frozen":
            return torch.zeros(count, dtype=torch.bool)
        bound = 1 / math.sqrt(self.width)
        return torch.empty((count, self.width) if name == "weight" else (count,)).uniform_(-bound, bound)


class LinearHead(WeightHead):
    """Linear scores, w_c . f + b_c. bias: whether to add b."""

    def __init__(self, width: int, classes: int, bias: bool = True) -> None:
        super().__init__(width, classes, bias)

    def forward(self, features: Tensor) -> Tensor:
        bias = None if self.bias is None else torch.where(self.frozen, self.bias.detach(), self.bias)
        return F.linear(features, self.rows(), bias)


class CosineHead(WeightHead):
    """cos(w_c, f) / temperature: each row is a proxy of its class, whose norm does not matter.

    temperature: 0.09 (HPCR, arXiv 2309.15038). At 1 (SEQ*, arXiv 2312.07887) scores lie in [-1, 1] and their softmax is
    nearly uniform, which needs a large learning rate.
    """

    def __init__(self, width: int, classes: int, temperature: float = 0.09) -> None:
        super().__init__(width, classes, bias=False)
        if temperature <= 0:
            raise SegueError(f"a temperature of {temperature} cannot divide scores: give one above 0")
        self.temperature = temperature

    def forward(self, features: Tensor) -> Tensor:
        return cosines(features, self.rows()) / self.temperature


class PrototypeHead(ClassHead):
    """Nearest class mean (Mensink et al. 2013): minus the squared distance to the mean of each class's examples, or
    the cosine with it; -inf for classes without examples.

    Learns by `add_examples` alone. cosine: compare directions only.
    """

    sums: Tensor
    counts: Tensor

    def __init__(self, width: int, classes: int, cosine: bool = False) -> None:
        super().__init__(width, classes)
        self.cosine = cosine
        self.register_buffer("sums", self._new_rows("sums", classes))
        self.register_buffer("counts", self._new_rows("counts", classes))

    @torch.no_grad()
    def add_examples(self, features: Tensor, labels: Tensor) -> None:
        self.sums.index_add_(0, labels, features.to(self.sums))
        self.counts.index_add_(0, labels, torch.ones_like(labels, dtype=self.counts.dtype))

    @property
    def means(self) -> Tensor:
        """(C, D), zero where there are no examples."""
        return self.sums / self.counts.clamp(min=1)[:, None]

    def forward(self, features: Tensor) -> Tensor:
        means = self.means.to(features)
        scores = cosines(features, means) if self.cosine else \
            -(features[..., None, :] - means).square().sum(-1)
        return scores.masked_fill(self.counts == 0, -math.inf)

    def _rows(self) -> dict[str, Tensor]:
        return {"sums": self.sums, "counts": self.counts}

    def _new_rows(self, name: str, count: int) -> Tensor:
        return torch.zeros((count, self.width) if name == "sums" else (count,))


class NeighbourHead(ClassHead):
    """k-nearest neighbours: how many of the `nearest` examples are of each class, ties broken by nearness.

    Learns by `add_examples` alone. capacity: number of examples kept, the newest. cosine: nearness by cosine instead of
    distance. units: (C, D) bool, the features used in comparisons with examples of each class (initially all).
    """

    kept: Tensor
    labels: Tensor
    absorbed: Tensor
    units: Tensor

    def __init__(self, width: int, classes: int, nearest: int = 5, capacity: int = 1000, cosine: bool = False) -> None:
        super().__init__(width, classes)
        if nearest < 1 or capacity < nearest:
            raise SegueError(f"the {nearest} nearest of {capacity} examples cannot be found: keep as many, at least 1")
        self.nearest, self.cosine = nearest, cosine
        self.register_buffer("kept", torch.zeros(capacity, width))
        self.register_buffer("labels", torch.full((capacity,), -1))
        self.register_buffer("absorbed", torch.zeros((), dtype=torch.long))
        self.register_buffer("units", self._new_rows("units", classes))

    @torch.no_grad()
    def forget(self, classes: Iterable[int] | Tensor) -> None:
        """Remove all examples of these classes."""
        capacity = len(self.kept)
        order = (self.absorbed + torch.arange(capacity, device=self.labels.device)) % capacity  # oldest first
        forgotten = torch.as_tensor(list(classes), dtype=torch.long, device=self.labels.device)
        order = order[(self.labels[order] >= 0) & ~torch.isin(self.labels[order], forgotten)]
        kept, labels = self.kept[order], self.labels[order]
        self.labels.fill_(-1)
        self.kept[: len(order)], self.labels[: len(order)] = kept, labels
        self.absorbed.fill_(len(order))

    @torch.no_grad()
    def add_examples(self, features: Tensor, labels: Tensor) -> None:
        capacity = len(self.kept)
        slots = (self.absorbed + torch.arange(len(labels), device=labels.device))[-capacity:] % capacity
        self.kept[slots], self.labels[slots] = features[-capacity:].to(self.kept), labels[-capacity:]
        self.absorbed += len(labels)

    def forward(self, features: Tensor) -> Tensor:
        filled = self.labels >= 0
        kept, labels = self.kept[filled].to(features), self.labels[filled]
        similarity = features.new_zeros(*features.shape[:-1], len(labels))
        for units in self.units[labels].unique(dim=0):  # classes that use the same units, together
            same_units = (self.units[labels] == units).all(1)
            similarity[..., same_units] = self._similarity(features * units, kept[same_units] * units)
        nearest = similarity.topk(min(self.nearest, len(labels)), -1).indices
        rank = torch.arange(nearest.shape[-1], device=features.device)
        votes = 1 + (len(rank) - rank) / (len(rank) + 1) ** 2  # what breaks ties sums to less than 1
        scores = features.new_zeros(*features.shape[:-1], self.classes)
        return scores.scatter_add(-1, labels[nearest], votes.to(features).expand(nearest.shape))

    def _similarity(self, features: Tensor, kept: Tensor) -> Tensor:
        return cosines(features, kept) if self.cosine else -(features[..., None, :] - kept).square().sum(-1)

    def _rows(self) -> dict[str, Tensor]:
        return {"units": self.units}

    def _new_rows(self, name: str, count: int) -> Tensor:
        return torch.ones(count, self.width, dtype=torch.bool)


HEADS: dict[str, type[ClassHead]] = {
    "linear": LinearHead, "cosine": CosineHead, "prototype": PrototypeHead, "neighbours": NeighbourHead}


class Features(nn.Module):
    """An identity backbone: rows are hidden vectors already, (B, T, D), so that the head of a frozen backbone can learn
    from features computed once."""

    def hidden(self, tokens: Tensor, layout: Layout) -> Tensor:
        return tokens


class Classifier(nn.Module):
    """A backbone and a head.

    backbone: anything with `hidden(tokens, layout)` -> (B, T, D): a `Stack` of any mixers, or `Features`.
    head: see HEADS. It may have rows for classes not seen yet, or get them by `grow`. pool: "mean" scores the mean of
    the hidden vectors up to each position, "" (default) the vector itself.
    seen: (C,) bool, the classes that occurred in training so far; `predict` chooses among these.
    """

    seen: Tensor

    def __init__(self, backbone: nn.Module, head: ClassHead, pool: str = "") -> None:
        super().__init__()
        width = getattr(getattr(backbone, "config", None), "width", head.width)
        if width != head.width or pool not in ("", "mean"):
            raise SegueError(f"a head of width {head.width} with pool '{pool}' does not fit a backbone of width "
                             f"{width}: give both one width, and pool '' or 'mean'")
        self.backbone, self.head, self.pool = backbone, head, pool
        self.register_buffer("seen", torch.zeros(head.classes, dtype=torch.bool))

    def hidden(self, tokens: Tensor, layout: Layout) -> Tensor:
        """(B, T) ids or (B, T, C) vectors -> (B, T, D)."""
        hidden = self.backbone.hidden(tokens, layout)  # type: ignore[operator]
        return running_mean(hidden, layout) if self.pool else hidden

    def forward(self, tokens: Tensor, layout: Layout | None = None) -> Output:
        """Scores (B, T, C) at every position; only those at target positions are used."""
        hidden = self.hidden(tokens, Layout.of(tokens) if layout is None else layout)
        return Output(self.head(hidden), hidden)

    def mark_seen(self, classes: Iterable[int] | Tensor) -> None:
        """Mark classes as seen; negative numbers, which mask targets, are ignored."""
        classes = torch.as_tensor(classes if isinstance(classes, Tensor) else list(classes), dtype=torch.long)
        if classes.numel() and int(classes.max()) >= self.head.classes:
            raise SegueError(f"class {int(classes.max())} has no row in a head of {self.head.classes} classes: grow it "
                             "before training")
        self.seen[classes[classes >= 0].to(self.seen.device)] = True

    def grow(self, classes: int) -> None:
        """See `ClassHead.grow`."""
        self.seen = torch.cat([self.seen, self.seen.new_zeros(max(0, classes - self.head.classes))])
        self.head.grow(classes)

    @torch.no_grad()
    def predict(self, tokens: Tensor, layout: Layout | None = None, among: Tensor | None = None) -> Tensor:
        """(B, T) the likeliest class at every position. among: (C,) bool, the candidates (default: all seen)."""
        allowed = self.seen if among is None else among
        if not bool(allowed.any()):
            raise SegueError("there is no class to choose from: train the classifier first")
        return self(tokens, layout).logits.masked_fill(~allowed, -math.inf).argmax(-1)
