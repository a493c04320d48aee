"""Step-unrolled denoising autoencoder (SUNDAE; Savinov et al. 2022, arXiv 2112.06749): a bidirectional model learns to
improve any corrupted text, including its own drafts, and so to generate in parallel, in no fixed order."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from segue.errors import SegueError
from segue.objectives.base import Batch, Loss


class Sundae:
    """The mean over `steps` of the cross-entropy of all targets in nats. The first step reads the targets with some of
    them replaced by uniformly random elements; each further step reads the model's own samples from the step before,
    without gradient through them.

    Targets are aligned with the positions at which they are predicted; other elements are read as they are (a source, a
    prompt). model: bidirectional. rate: the fraction of a row that is replaced (default: uniform in 0 to 1, drawn for
    each row). elements: texts consist of the first so many ids (default: all); leave out the mask, the last id, to
        continue training a masked language model (RUM-SUNDAE: Yoshida 2024, arXiv 2408.16241).
    """

    def __init__(self, steps: int = 2, rate: float | None = None, elements: int | None = None) -> None:
        if steps < 1 or (rate is not None and not 0 <= rate <= 1) or (elements is not None and elements < 1):
            raise SegueError("denoising takes at least one step, a rate from 0 to 1 and at least one element, not "
                             f"{steps}, {rate} and {elements}")
        self.steps, self.rate, self.elements = steps, rate, elements

    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        tokens, asked, layout = batch.tokens, batch.targets >= 0, batch.layout
        wanted, total = batch.targets[asked], torch.zeros((), device=tokens.device)
        rate = torch.rand(len(tokens), 1, device=tokens.device) if self.rate is None else self.rate
        elements: Any = self.elements or model.vocabulary
        noise = torch.randint(elements, (len(wanted),), device=tokens.device)
        replaced = (torch.rand(tokens.shape, device=tokens.device) < rate)[asked]
        draft = torch.where(replaced, noise, wanted)
        for _ in range(self.steps):
            logits = model(tokens.masked_scatter(asked, draft), layout).logits[asked][:, :elements].float()
            total = total + F.cross_entropy(logits, wanted, reduction="sum") / self.steps
            draft = torch.multinomial(logits.detach().softmax(-1), 1)[:, 0]
        return Loss(total, {"nats": total.detach()}, batch.count)
