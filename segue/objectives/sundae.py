"""Step-unrolled denoising (SUNDAE; Savinov et al. 2022, arXiv 2112.06749): a model that reads both ways learns to make
a text better from any state it may be in, its own drafts included, and so to write in no order at all."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from segue.errors import SegueError
from segue.objectives.base import Batch, Loss


class Sundae:
    """The mean over `steps` of the cross-entropy of all targets in nats. The first step reads the targets with some of
    them replaced by elements drawn evenly from all, each other what the model drew the step before, without gradient.

    Targets stand where they are to be said. Where there is none the element is read as it is (a source, a prompt).
    model: one that reads both ways. rate: the part of a row that is replaced (default: drawn from 0 to 1 for each row).
    elements: how many first ids of the model texts are made of (default: all). A masked language model goes on learning
        so with its mask, the last id, left out (RUM-SUNDAE: Yoshida 2024, arXiv 2408.16241).
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
        said = torch.where(replaced, noise, wanted)
        for _ in range(self.steps):
            logits = model(tokens.masked_scatter(asked, said), layout).logits[asked][:, :elements].float()
            total = total + F.cross_entropy(logits, wanted, reduction="sum") / self.steps
            said = torch.multinomial(logits.detach().softmax(-1), 1)[:, 0]
        return Loss(total, {"nats": total.detach()}, batch.count)
