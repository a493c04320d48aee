"""Train draft heads, which predict several tokens ahead, on a frozen base model (Medusa, Hydra and Hydra++)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segue.models.heads import DraftHeads, TabulatedHeads
from segue.objectives.base import Batch, Loss


def lookahead_targets(batch: Batch, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The inputs and the target of head k at all positions t but the last k of each row: whether x_{t+1} .. x_{t+1+k}
    all belong to t's document, (B, T - k) bool; the first k of them, (B, T - k, k); and the last, head k's target,
    (B, T - k).
    """
    targets, length = batch.targets, max(batch.targets.shape[1] - k, 0)
    known = targets[:, :length] >= 0
    for j in range(1, k + 1):
        known = known & (targets[:, j : j + length] >= 0)
        if batch.starts is not None:
            known = known & ~batch.starts[:, j : j + length]
    given = torch.stack([targets[:, j : j + length] for j in range(k)], -1)
    return known, given.clamp(min=0), targets[:, k : k + length]


@torch.no_grad()
def initialise_linear(heads: DraftHeads, batch: Batch, ridge: float = 0.1) -> None:
    """Initialise each head as the linear map of its inputs that best predicts, by least squares, the base's hidden
    state k tokens ahead: its output layer, shared with the base, then predicts roughly what the base would. This takes
    seconds and leaves only the nonlinear part to gradient training.

    heads: freshly made. batch: has the base's hidden states in the channel "hidden" (B, T, D), and should hold several
    times as many tokens as the last head has inputs. ridge: regularisation, this fraction of each input's sum of
    squares, times inputs per token. If no document is as long as the last head looks ahead, nothing changes.
    """
    count, width = heads.config.heads, heads.config.width
    known, given, _ = lookahead_targets(batch, count)
    if not known.any():
        return
    hidden = batch.channels["hidden"].to(heads.embedding)
    steps = [hidden[:, k : k + known.shape[1]][known] for k in range(count + 1)]
    shown, basis = steps[0], heads.embedding[:0].mT
    if heads.config.sequential:  # few tokens span a part of the width: they are written in a basis of that
        kinds, numbers = given[known].unique(return_inverse=True)
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
    """The sum over heads k of fade^k times the cross-entropy of head k, in nats, with teacher forcing.

    base: the frozen model. fade: discount of later heads (0.8 in both papers). distil: learn the base's own
    distribution k tokens ahead (Hydra++) instead of the text's token. If a batch has the base's hidden states in the
    channel "hidden" (B, T, D), they are not computed again.
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
        if model.config.sequential:  # project each distinct token once, not at each of its occurrences
            looked = TabulatedHeads(model, model.embedding[kinds])
            begun = looked.project_condition(shown)
        total = torch.zeros((), device=shown.device)
        for k, part in enumerate(begun, 1):
            known, given, label = lookahead_targets(batch, k)
            # Scored at all positions: gathering the known ones would make the backward pass slower.
            part = part[:, : known.shape[1]]
            logits = model.logits(k, part, given) if looked is None else \
                looked.logits(k, part, torch.searchsorted(kinds, given))
            target = (label.clamp(min=0) if wanted is None else wanted[:, k:]).flatten(0, 1)
            nats = F.cross_entropy(logits.float().flatten(0, 1), target, reduction="none")
            total = total + self.fade**k * (nats * known.flatten()).sum()
        return Loss(total, {"nats": total.detach()}, batch.count)
