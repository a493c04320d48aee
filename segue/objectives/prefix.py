"""Learning behind a prompt that is read both ways, and in it (JRT-RNN: Arora et al. 2024, arXiv 2407.05483)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from segue.errors import SegueError
from segue.objectives.base import Batch, Loss, drawn
from segue.objectives.masked import MaskPolicy, RandomMask


class PrefixAndNext:
    """The next element behind the prompt, and within it elements that a mask hides, asked for where they stand:
    (next + weight * masked) / (1 + weight), each the mean over its elements.

    Nothing within a prompt is asked for as the next one, since what reads both ways has seen it; targets there do not
    count. Chance belongs to a row and the step. Rows do not add up: each part is a mean over the batch.

    mask: the id of a mask. weight: 0.25 as released. policy: what of a prompt is hidden (default: 15%).
    """

    def __init__(self, mask: int, weight: float = 0.25, policy: MaskPolicy | None = None) -> None:
        if weight < 0:
            raise SegueError(f"a weight of {weight} for masked elements: give 0 or more")
        self.mask, self.weight, self.policy = mask, weight, policy or RandomMask(0.15)

    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        if batch.prompt is None:
            raise SegueError("nothing says what the prompts are: mark the beginning of each row (Batch.prompt)")
        within = F.pad(batch.prompt[:, 1:], (0, 1))  # is the next one still in the prompt?
        if batch.starts is not None:
            within = within & ~F.pad(batch.starts[:, 1:], (0, 1))
        asked = (batch.targets >= 0) & ~within
        chances = [torch.Generator().manual_seed(int(drawn(*row).integers(1 << 62))) for row in batch.tokens.tolist()]
        hidden = torch.cat([self.policy(prompt[None], chance, row[None])
                            for prompt, chance, row in zip(batch.prompt, chances, batch.tokens)])
        logits = model(batch.tokens.masked_fill(hidden, self.mask), batch.layout).logits
        logits = logits if logits.dtype == torch.float64 else logits.float()
        count = int(asked.sum())
        nats, masked = (F.cross_entropy(logits[where], wanted[where], reduction="sum")
                        for where, wanted in ((asked, batch.targets), (hidden, batch.tokens)))
        total = (nats + self.weight * masked * (count / max(1, int(hidden.sum())))) / (1 + self.weight)
        return Loss(total, {"nats": nats.detach(), "masked": masked.detach()}, count)
