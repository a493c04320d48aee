"""Per-letter loss for tokens of several letters, by each letter's marginal (GENERator v2, arXiv 2502.07272)."""

from __future__ import annotations

import numpy as np
import torch.nn.functional as F
from torch import nn

from segue.models.spelling import Marginals
from segue.objectives.base import Batch, Loss
from segue.objectives.next_element import NextElement


class MarginalLetters:
    """The mean over the L letters of the next token of -log P(letter), nats, P being the marginal over all tokens.
    Unlike with cross-entropy, a token that is wrong in one letter costs little; for single-letter tokens the two are
    equal. A token without letters (the end token) costs -log P(token) / L.

    spelling: (V, L), see `Marginals`. None: every token is one letter.
    """

    def __init__(self, spelling: np.ndarray | None = None) -> None:
        self.marginals = None if spelling is None else Marginals(spelling)

    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        if self.marginals is None:
            return NextElement()(model, batch)
        asked = batch.targets >= 0
        logits, targets = model(batch.tokens, batch.layout).logits[asked].float(), batch.targets[asked]
        marginals = self.marginals.to(logits.device)
        true = marginals.places[targets]
        letters = -marginals(logits).gather(2, true[..., None])[..., 0].mean(1)
        whole = F.cross_entropy(logits, targets, reduction="none") / true.shape[1]
        total = letters.where((true > 0).any(1), whole).sum()
        return Loss(total, {"nats": total.detach()}, batch.count)
