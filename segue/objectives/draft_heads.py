"""Teach draft heads, which guess several tokens ahead, on a frozen base (Medusa, Hydra and Hydra++)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segue.models.heads import DraftHeads, Looked
from segue.objectives.base import Batch, Loss


def ahead(batch: Batch, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Where the k tokens behind the next one's place are known: at all places t but the last k of each row,

    whether x_{t+1} .. x_{t+1+k} are all of t's own document (B, T - k), the first k of them (B, T - k, k), and the
    last one (B, T - k).
    """
    targets, length = batch.targets, max(batch.targets.shape[1] - k, 0)
    known = targets[:, :length] >= 0
    for j in range(1, k + 1):
        known = known & (targets[:, j : j + length] >= 0)
        if batch.starts is not None:
            known = known & ~batch.starts[:, j : j + length]
    said = torch.stack([targets[:, j : j + length] for j in range(k)], -1)
    return known, said.clamp(min=0), targets[:, k : k + length]


class DraftHeadsLoss:
    """The sum over heads k of fade^k times the cross-entropy of head k, in nats; tokens before its own are true ones.

    base: the frozen model; it is not moved. fade: later heads count less (0.8 in both papers). distil: learn the
    base's own distribution k tokens on (Hydra++) instead of the text's token. A batch may bring the base's hidden
    states, in the channel "hidden" (B, T, D): they are then not computed again.
    """

    def __init__(self, base: nn.Module, fade: float = 0.8, distil: bool = False) -> None:
        self.base, self.fade, self.distil = base.eval(), fade, distil

    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        assert isinstance(model, DraftHeads)
        hidden = batch.channels.get("hidden")
        with torch.no_grad():
            if hidden is None:
                hidden = self.base(batch.tokens, batch.layout).hidden
            hidden = hidden.to(model.embedding)
            wanted = self.base.head(hidden).float().softmax(-1) if self.distil else None  # type: ignore[operator]
        shown = model.see(hidden, batch.layout)
        begun: Sequence[Tensor] = (shown,) * model.config.heads
        score: Callable[[int, Tensor, Tensor], Tensor] = model.logits
        if model.config.sequential and model.config.vocabulary < batch.tokens.numel():
            looked = Looked(model)  # each token's share once, not wherever it is said
            begun, score = looked.begin(shown), looked.logits
        total = torch.zeros((), device=shown.device)
        for k, part in enumerate(begun, 1):
            known, said, label = ahead(batch, k)
            # Scored at all places, since to gather the known ones takes longer on the way back.
            logits = score(k, part[:, : known.shape[1]], said).float().flatten(0, 1)
            target = (label.clamp(min=0) if wanted is None else wanted[:, k:]).flatten(0, 1)
            total = total + self.fade**k * (F.cross_entropy(logits, target, reduction="none") * known.flatten()).sum()
        return Loss(total, {"nats": total.detach()}, batch.count)
