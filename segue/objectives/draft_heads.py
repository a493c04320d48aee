"""Teach draft heads, which guess several tokens ahead, on a frozen base (Medusa, Hydra and Hydra++)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segue.models.heads import DraftHeads, TabulatedHeads
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


@torch.no_grad()
def begin_linear(heads: DraftHeads, batch: Batch, ridge: float = 0.1) -> None:
    """Let each head begin as the linear map of what it is shown that comes nearest to the base's hidden state k tokens
    on, by least squares: its output layer, which is the base's, then says about what the base would say there. Takes
    seconds, and leaves to training by steps what is not linear.

    heads: fresh ones. batch: with the base's hidden states, in the channel "hidden" (B, T, D); it should have several
    times as many tokens as the last head has inputs. ridge: of each input's sum of squares is added so much, times
    inputs per token. Nothing changes where no text goes on for so long as the last head looks ahead.
    """
    count, width = heads.config.heads, heads.config.width
    known, said, _ = ahead(batch, count)
    if not known.any():
        return
    hidden = batch.channels["hidden"].to(heads.embedding)
    steps = [hidden[:, k : k + known.shape[1]][known] for k in range(count + 1)]
    shown, basis = steps[0], heads.embedding[:0].mT
    if heads.config.sequential:  # few tokens span a part of the width: they are written in a basis of that
        kinds, numbers = said[known].unique(return_inverse=True)
        basis = torch.linalg.qr(heads.embedding[kinds].mT).Q  # (D, R)
        shown = torch.cat([shown, (heads.embedding[kinds] @ basis)[numbers].flatten(1)], -1)
    gram, seen = shown.mT @ shown, shown.mT @ torch.cat(steps[1:], -1)
    gram.diagonal().mul_(1 + ridge * gram.shape[0] / len(shown)).add_(1e-6 * gram.diagonal().mean())
    factor = torch.linalg.cholesky(gram)
    for k in range(1, count + 1):
        head: Any = heads.heads[k - 1]
        size = width + k * basis.shape[1]  # what it sees comes first, so its factor is the corner of the last head's
        linear = torch.cholesky_solve(seen[:size, (k - 1) * width : k * width], factor[:size, :size]).mT
        if head.skip is None:
            head.out.weight.copy_(head.out.weight @ linear)
        else:
            slots = linear[:, width:].unflatten(1, (k, -1)) @ basis.mT  # (D, k, D)
            head.skip.weight.copy_(torch.cat([linear[:, :width], slots.flatten(1)], 1))


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
        shown = model.condition(hidden, batch.layout)
        begun: Sequence[Tensor] = (shown,) * model.config.heads
        looked, kinds = None, batch.targets.clamp(min=0).unique()
        if model.config.sequential:  # the share of each kind of token once, not wherever it is said
            looked = TabulatedHeads(model, model.embedding[kinds])
            begun = looked.project_condition(shown)
        total = torch.zeros((), device=shown.device)
        for k, part in enumerate(begun, 1):
            known, said, label = ahead(batch, k)
            # Scored at all places, since to gather the known ones takes longer on the way back.
            part = part[:, : known.shape[1]]
            logits = model.logits(k, part, said) if looked is None else \
                looked.logits(k, part, torch.searchsorted(kinds, said))
            target = (label.clamp(min=0) if wanted is None else wanted[:, k:]).flatten(0, 1)
            nats = F.cross_entropy(logits.float().flatten(0, 1), target, reduction="none")
            total = total + self.fade**k * (nats * known.flatten()).sum()
        return Loss(total, {"nats": total.detach()}, batch.count)
