"""Probes: what frozen features know. New heads read classes off the features of any model that gives hidden states
(Zheng et al. 2024, arXiv 2312.07887); questions ask what one vector for a sequence knows of its length, content, order
and class (Papreja et al. 2019, arXiv 1907.01098)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segue.errors import SegueError
from segue.mixers.layout import Layout, gather_nodes
from segue.models.classify import ClassHead, CosineHead, LinearHead, PrototypeHead, running_mean

PROBES = ("linear", "cosine", "prototype", "cosine prototype", "logistic")
RIDGE = 1e-3  # of the logistic probe: half of it times the squared weights is added to the mean cross-entropy


@torch.no_grad()
def features_of(model: Any, tokens: Tensor, last: Tensor | None = None, pool: str = "", rows: int = 64) -> Tensor:
    """(B, D): what a model makes of each row, its hidden vector at the row's last element.

    model: a `Stack`, a `Classifier`, or anything `Decodable` that tells its hidden states (compiled, Hugging Face);
        one that is an `nn.Module` is read in evaluation mode, which it keeps afterwards.
    tokens: (B, T). last: (B,) long, where the last element of each row is (default: T - 1); what is behind is padding.
    pool: "mean" for the mean of all vectors up to there. rows: read at a time.
    """
    if isinstance(model, nn.Module):
        model.eval()
    last = torch.full((len(tokens),), tokens.shape[1] - 1, device=tokens.device) if last is None else last
    found = []
    for piece, places in zip(tokens.split(rows), last.split(rows)):
        layout = Layout.of(piece)
        hidden = model.hidden(piece, layout) if hasattr(model, "hidden") else \
            model.extend(piece, model.init_state(len(piece))).hidden
        hidden = running_mean(hidden, layout) if pool == "mean" else hidden
        found.append(gather_nodes(hidden, places[:, None])[:, 0])
    return torch.cat(found)


def fitted_head(kind: str, features: Tensor, labels: Tensor, classes: int, *, epochs: int = 20, rows: int = 128,
                rate: float = 1e-3, temperature: float = 0.09, seed: int = 0) -> ClassHead:
    """A fresh head for features (M, D) with classes (M,): one of PROBES.

    Prototypes are class means; linear and cosine heads learn by Adam: epochs, rows a step, rate. temperature: of the
    cosine head's scores. "logistic" is the linear head that L-BFGS finds on standardised features, with a ridge:
    nothing about it is left to chance.
    """
    if kind not in PROBES:
        raise SegueError(f"probe '{kind}' is unknown: choose from {', '.join(PROBES)}")
    width = features.shape[1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if kind.endswith("prototype"):
            head: ClassHead = PrototypeHead(width, classes, cosine=kind.startswith("cosine")).to(features)
            head.add_examples(features, labels)
            return head
        head = LinearHead(width, classes) if kind in ("linear", "logistic") else CosineHead(width, classes, temperature)
        head = head.to(features)
        if kind == "logistic":
            return _logistic(head, features, labels)
        adam = torch.optim.Adam(head.parameters(), lr=rate)
        for _ in range(epochs):
            for chosen in torch.randperm(len(labels)).split(rows):
                adam.zero_grad()
                F.cross_entropy(head(features[chosen]), labels[chosen]).backward()
                adam.step()
    return head.requires_grad_(False)


def _logistic(head: Any, features: Tensor, labels: Tensor) -> ClassHead:
    """The linear head of multinomial logistic regression on standardised features, (M, D) with (M,)."""
    centre, spread = features.mean(0), features.std(0, correction=0)
    spread = torch.where(spread > 1e-6 * features.abs().amax(), spread, torch.inf)  # what never varies says nothing
    scaled = (features - centre) / spread
    weight, bias = (torch.zeros_like(each, requires_grad=True) for each in (head.weight, head.bias))
    solver = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def cost() -> Tensor:
        solver.zero_grad()
        loss = F.cross_entropy(scaled @ weight.mT + bias, labels) + RIDGE * weight.square().sum() / 2
        loss.backward()
        return loss

    solver.step(cost)
    head.weight.data = weight.detach() / spread
    head.bias.data = bias.detach() - head.weight.data @ centre
    return head.requires_grad_(False)


def probe(kind: str, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], **choices: Any) -> float:
    """The share of test rows whose class a head of that kind, fitted to the training rows, names.

    train, test: features (M, D) and classes (M,). choices: of `fitted_head`.
    """
    classes = int(max(train[1].max(), test[1].max())) + 1
    with torch.enable_grad():
        head = fitted_head(kind, train[0].detach(), train[1], classes, **choices)
    with torch.no_grad():
        return float((head(test[0]).argmax(-1) == test[1]).float().mean())


def shuffled_probe(kind: str, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], times: int = 20,
                   seed: int = 0, **choices: Any) -> tuple[float, list[float]]:
    """`probe`, and beside it the same of probes whose training labels were shuffled, `times` times: what a probe of
    these features finds where there is nothing to find (the control task of Hewitt & Liang 2019, arXiv 1909.03368)."""
    generator = torch.Generator().manual_seed(seed)
    real = probe(kind, train, test, seed=seed, **choices)
    orders = [torch.randperm(len(train[1]), generator=generator) for _ in range(times)]
    return real, [probe(kind, (train[0], train[1][order]), test, seed=seed, **choices) for order in orders]


# --- what a vector knows of its sequence ----------------------------------------------------------------------------

Encoder = Callable[[Sequence[np.ndarray]], np.ndarray]
Rows = list[np.ndarray]


@dataclass(frozen=True)
class Question:
    """Something that can be asked of vectors. rows: N sequences of ids. labels: (N,), the answers, from 0 on. groups:
    (N,), rows of one group stay on one side of a split."""

    name: str
    rows: Rows
    labels: np.ndarray
    groups: np.ndarray


@dataclass(frozen=True)
class Answer:
    """How well vectors answer a question on held-out rows. accuracy, and balanced: the mean over classes of the share
    that is found. by_majority, by_length: accuracies of the class that is the most frequent in training, and of the
    length alone. classes, tested: how many there are, and how many rows."""

    name: str
    accuracy: float
    balanced: float
    by_majority: float
    by_length: float
    classes: int
    tested: int


def content_groups(rows: Sequence[np.ndarray]) -> np.ndarray:
    """(N,): rows that hold the same in the same order are of one group."""
    numbers: dict[bytes, int] = {}
    return np.array([numbers.setdefault(np.asarray(row, np.int64).tobytes(), len(numbers)) for row in rows])


def question(name: str, rows: Sequence[np.ndarray], labels: Sequence[int] | np.ndarray,
             groups: np.ndarray | None = None) -> Question:
    """Of which class is it? labels: -1 for rows that are of none. groups: default, equal rows are of one."""
    kept = np.flatnonzero(np.asarray(labels) >= 0).tolist()
    groups = content_groups(rows) if groups is None else np.asarray(groups)
    return Question(name, [np.asarray(rows[i]) for i in kept], np.asarray(labels)[kept].astype(np.int64), groups[kept])


def length_question(rows: Sequence[np.ndarray], bins: int = 10, groups: np.ndarray | None = None) -> Question:
    """How long is it? Of `bins` lengths, each with about as many rows."""
    lengths = np.array([len(row) for row in rows])
    edges = np.unique(np.quantile(lengths, np.arange(1, bins) / bins))
    return question("length", rows, np.searchsorted(edges, lengths, side="right"), groups)


def content_question(rows: Sequence[np.ndarray], elements: Sequence[int] | int = 20,
                     groups: np.ndarray | None = None) -> Question:
    """Which of some elements is in it? Of rows that hold exactly one of them, whose elements are given, or so many of
    those that most rows hold."""
    if isinstance(elements, int):
        often = Counter(element for row in rows for element in np.unique(row).tolist())
        elements = [element for element, _ in often.most_common(elements)]
    held = [np.flatnonzero(np.isin(elements, row)) for row in rows]
    return question("content", rows, [int(each[0]) if len(each) == 1 else -1 for each in held], groups)


def permuted(row: np.ndarray, share: float, draw: np.random.Generator) -> np.ndarray:
    """The row with so many of its places, drawn, put among each other anew; at least two."""
    row, count = np.array(row), max(2, round(share * len(row)))
    places = draw.permutation(len(row))[:count]
    row[np.sort(places)] = row[places]
    return row


def order_question(rows: Sequence[np.ndarray], share: float = 1.0, way: str = "shuffle", seed: int = 0,
                   groups: np.ndarray | None = None) -> Question:
    """Is it in order? Each row of two elements or more as it is (0), and with `share` of its places put among each
    other anew, or, way "reverse", turned round (1); both are of one group."""
    if way not in ("shuffle", "reverse") or not 0 < share <= 1:
        raise SegueError(f"order by '{way}' of a share {share}: choose shuffle or reverse, and a share above 0")
    draw = np.random.default_rng(seed)
    groups = content_groups(rows) if groups is None else np.asarray(groups)
    kept = [i for i, row in enumerate(rows) if len(row) > 1]
    whole = [np.asarray(rows[i]) for i in kept]
    other = [permuted(row, share, draw) if way == "shuffle" else row[::-1].copy() for row in whole]
    return Question("order", whole + other, np.repeat([0, 1], len(kept)), np.tile(groups[kept], 2))


def grouped_split(groups: np.ndarray, fraction: float = 0.2, seed: int = 0) -> np.ndarray:
    """(N,) bool: True for about `fraction` of the rows, whole groups (N,) of them, drawn."""
    names, number = np.unique(groups, return_inverse=True)
    sizes = np.bincount(number)
    order = np.random.default_rng(seed).permutation(len(names))
    held = order[np.cumsum(sizes[order]) <= fraction * len(groups)]
    if not len(held) or len(held) == len(names):
        raise SegueError(f"{len(names)} groups cannot be split with {fraction:.0%} held out: give more groups")
    return np.isin(number, held)


def lengths_of(rows: Sequence[np.ndarray]) -> np.ndarray:
    """(N, 3): the length of each row in ways that a linear head can use, and nothing else of it."""
    n = np.array([max(1, len(row)) for row in rows], float)
    return np.stack([n, np.log(n), 1 / n], 1)


def answered(encoder: Encoder, asked: Question, fraction: float = 0.2, seed: int = 0, kind: str = "logistic") -> Answer:
    """Fit a head (of PROBES) to the vectors that an encoder makes of some rows, and see what it says of the others.

    encoder: rows -> (N, D), such as `partial(embed, model)` of any model (`segue.analysis.embedding`). fraction: of the
    rows held out, by groups.
    """
    held, labels = grouped_split(asked.groups, fraction, seed), torch.from_numpy(asked.labels)
    classes = int(labels.max()) + 1

    def said(table: np.ndarray) -> np.ndarray:
        features = torch.from_numpy(np.asarray(table, np.float64))
        with torch.enable_grad():
            head = fitted_head(kind, features[~held], labels[~held], classes, seed=seed)
        return head(features[held]).argmax(-1).numpy() == asked.labels[held]

    right, truth = said(encoder(asked.rows)), asked.labels[held]
    most = np.bincount(asked.labels[~held]).argmax()
    return Answer(asked.name, float(right.mean()), float(np.mean([right[truth == c].mean() for c in np.unique(truth)])),
                  float((truth == most).mean()), float(said(lengths_of(asked.rows)).mean()), classes, len(truth))
