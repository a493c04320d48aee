"""Next-element loss after a bidirectional prefix, and masked loss inside it (JRT-RNN: Arora et al. 2024, arXiv
2407.05483)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from segue.errors import SegueError
from segue.objectives.base import Batch, Loss, content_rng
from segue.objectives.masked import MaskPolicy, RandomMask


class PrefixAndNext:
    """Next-element loss after the prompt plus masked-element loss inside it: (next + weight * masked) / (1 + weight),
    each term the mean over its elements.

    Next-element targets inside a prompt are ignored, since a bidirectional layer has already seen the answer. The mask
    is drawn from each row's content and the step. The loss is not a sum over rows: each term is a mean over the batch.

    mask: id of the mask token. weight: default 0.25, as in the released code. policy: which prompt elements are hidden
    (default: a random 15%).
    """

    def __init__(self, mask: int, weight: float = 0.25, policy: MaskPolicy | None = None) -> None:
        if weight < 0:
            raise SegueError(f"a weight of {weight} for masked elements: give 0 or more")
        self.mask, self.weight, self.policy = mask, weight, policy or RandomMask(0.15)

    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        if batch.prompt is None:
            raise SegueError("nothing says what the prompts are: mark the beginning of each row (Batch.prompt)")
        within = F.pad(batch.prompt[:, 1:], (0, 1))  # True where the next element still belongs to the prompt
        if batch.starts is not None:
            within = within & ~F.pad(batch.starts[:, 1:], (0, 1))
        asked = (batch.targets >= 0) & ~within
        generators = [torch.Generator().manual_seed(int(content_rng(*row).integers(1 << 62)))
                      for row in batch.tokens.tolist()]
        hidden = torch.cat([self.policy(prompt[None], generator, row[None])
                            for prompt, generator, row in zip(batch.prompt, generators, batch.tokens)])
        logits = model(batch.tokens.masked_fill(hidden, self.mask), batch.layout).logits
        logits = logits if logits.dtype == torch.float64 else logits.float()
        # Times the batch's count, by which a training step divides: it includes the targets that are ignored here.
        nats, masked = (F.cross_entropy(logits[at], wanted[at], reduction="sum") * (batch.count / max(1, int(at.sum())))
                        for at, wanted in ((asked, batch.targets), (hidden, batch.tokens)))
        total = (nats + self.weight * masked) / (1 + self.weight)
        return Loss(total, {"nats": nats.detach(), "masked": masked.detach()}, batch.count)
