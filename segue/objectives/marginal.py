"""Words learned by their letters: each place of the next token by its own marginal (GENERator v2, arXiv 2502.07272)."""

from __future__ import annotations

import numpy as np
import torch.nn.functional as F
from torch import nn

from segue.models.spelling import Marginals
from segue.objectives.base import Batch, Loss
from segue.objectives.next_element import NextElement


class MarginalLetters:
    """The mean over the L places of the next token of -log P(what is there), nats. A word that is nearly right costs
    little, unlike in cross-entropy, to which this is equal where tokens are single letters. A token without letters
    (the end) costs its -log P, over L.

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
