"""What a model still knows: classes read off its frozen features by heads that are fitted anew (Zheng et al. 2024,
arXiv 2312.07887). Works on every model that gives hidden states."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segue.errors import SegueError
from segue.mixers.state import Layout, gather_nodes
from segue.models.classify import ClassHead, CosineHead, LinearHead, PrototypeHead, running_mean

PROBES = ("linear", "cosine", "prototype", "cosine prototype")


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
    cosine head's scores.
    """
    if kind not in PROBES:
        raise SegueError(f"probe '{kind}' is unknown: choose from {', '.join(PROBES)}")
    width = features.shape[1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if kind.endswith("prototype"):
            head: ClassHead = PrototypeHead(width, classes, cosine=kind.startswith("cosine")).to(features)
            head.absorb(features, labels)
            return head
        head = LinearHead(width, classes) if kind == "linear" else CosineHead(width, classes, temperature)
        head = head.to(features)
        adam = torch.optim.Adam(head.parameters(), lr=rate)
        for _ in range(epochs):
            for chosen in torch.randperm(len(labels)).split(rows):
                adam.zero_grad()
                F.cross_entropy(head(features[chosen]), labels[chosen]).backward()
                adam.step()
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
