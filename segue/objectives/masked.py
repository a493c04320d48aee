"""Predict hidden elements in place: masks, what is shown of them after a glance, and the loss at the rest.

Masking (`mask_some`, as of masked language models, and `mask_block`), glancing (`glance`, Qian et al. 2021, arXiv
2008.07905) and the loss are apart: batches are masked as they are drawn, a pure function of the step; all chance is in
the batch, none in the objective.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segue.objectives.base import Batch, Loss, generator_of

REVEAL = "reveal"  # the channel that `glance` reads


def padding(lengths: Tensor, n: int) -> Tensor | None:
    """Starts (B, n) by which what lies behind the first `lengths` (B,) elements of a row is a document of its own, so
    that a mixer which looks both ways does not see it; None where nothing does."""
    places = torch.arange(n, device=lengths.device)
    return (places == lengths[:, None]) if bool((lengths < n).any()) else None


def in_place(batch: Batch) -> Batch:
    """A batch that asks for each element one place before it (B, T), one document a row -> (B, T + 1), asked for where
    it stands."""
    asked = F.pad(batch.targets, (1, 0), value=-1)
    return Batch(torch.where(asked >= 0, asked, F.pad(batch.tokens, (0, 1))), asked)


def mask_some(batch: Batch, mask: int, share: float = 0.15, generator: torch.Generator | None = None) -> Batch:
    """Hide some of the elements that `targets` names in place, (B, T), and ask for those (BERT: Devlin et al. 2019).

    mask: the id of a mask, behind all others. share: of the elements, each with this chance; at least one of a row. Of
    those hidden, 8 in 10 are masks, 1 in 10 a random element, 1 in 10 as they were.
    """
    asked = batch.targets >= 0
    chance, how = (torch.rand(asked.shape, generator=generator, dtype=torch.float64).to(asked.device) for _ in range(2))
    random = torch.randint(mask, asked.shape, generator=generator).to(asked.device)
    chance = chance.masked_fill(~asked, 2.0)
    hidden = asked & ((chance < share) | (chance == chance.min(1, keepdim=True).values))
    tokens = torch.where(how < 0.8, mask, torch.where(how < 0.9, random, batch.tokens))
    return replace(batch, tokens=torch.where(hidden, tokens, batch.tokens),
                   targets=batch.targets.masked_fill(~hidden, -1))


def masked_some(batches: Callable[[int], Batch], mask: int, share: float = 0.15, seed: int = 0,
                ) -> Callable[[int], Batch]:
    """Batches as for the next element -> batches for a masked language model (`mask_some`)."""
    def draw(step: int) -> Batch:
        return mask_some(in_place(batches(step)), mask, share, generator_of(seed + 1, step))  # not those of the rows

    return draw


def mask_block(batch: Batch, length: int, mask: int, generator: torch.Generator | None = None) -> Batch:
    """Of each row's answer a first part, of random length, is kept, and behind it stand `length` masks.

    batch: tokens (B, T), one document a row; targets name the answer in place, (B, T), -1 elsewhere (an unbroken run,
    at least one element; its end token belongs to it). mask: the id of a mask. Of an answer of n elements
    n - 1 - floor(n u) are kept, u uniform in [0, 1). The masks may go beyond its end; nothing is asked for there, and
    nothing of the row stands behind them. Rows are padded to one length (see `padding`).
    """
    asked = batch.targets >= 0
    count, first = asked.sum(1), asked.long().argmax(1)
    chance = torch.rand(len(count), generator=generator, dtype=torch.float64).to(count.device)
    begin = first + count - 1 - (count * chance).long()
    end = begin + length
    n = int(end.max())

    def fit(x: Tensor, fill: int) -> Tensor:
        return F.pad(x, (0, max(0, n - x.shape[1])), value=fill)[:, :n]

    places = torch.arange(n, device=count.device)
    hidden = places >= begin[:, None]
    tokens = fit(batch.tokens, mask).masked_fill(hidden, mask)
    targets = fit(batch.targets, -1).masked_fill(~hidden | (places >= end[:, None]), -1)
    return Batch(tokens, targets, padding(end, n))


def reveal_order(batch: Batch, ratio: float, generator: torch.Generator | None = None) -> Batch:
    """Draw the order in which `glance` shows what is hidden: of a row of which the model gets c elements wrong, the
    first floor(ratio * c).

    The channel "reveal" (B, T) float64 holds for each hidden element how many must be wrong for it to be shown.
    """
    hidden = batch.targets >= 0
    chance = torch.rand(hidden.shape, generator=generator, dtype=torch.float64).to(hidden.device)
    rank = 1 + chance.masked_fill(~hidden, 2.0).argsort(1).argsort(1)
    needed = rank.double() / ratio if ratio > 0 else torch.full_like(chance, torch.inf)
    return replace(batch, channels={**batch.channels, REVEAL: needed})


def masked_blocks(batches: Callable[[int], Batch], length: int, mask: int, steps: int, seed: int = 0,
                  ratios: tuple[float, float] = (0.5, 0.3)) -> Callable[[int], Batch]:
    """Batches of whole answers, as for the next element (`Batch.pairs`) -> batches of masked blocks (`mask_block`) and
    what to show of them (`reveal_order`), the ratio going from the first of `ratios` to the second in `steps` steps."""
    def draw(step: int) -> Batch:
        generator = generator_of(seed + 1, step)
        ratio = ratios[0] + (ratios[1] - ratios[0]) * min(1.0, step / max(1, steps - 1))
        return reveal_order(mask_block(in_place(batches(step)), length, mask, generator), ratio, generator)

    return draw


def logits_at(model: nn.Module, batch: Batch, asked: Tensor) -> Tensor:
    """(count, V) float32 or float64 scores of the elements where `asked` (B, T) is True."""
    head = getattr(model, "head", None)
    if isinstance(head, nn.Linear):
        logits = head(model.hidden(batch.tokens, batch.layout)[asked])  # type: ignore[operator]
    else:
        logits = model(batch.tokens, batch.layout).logits[asked]
    return logits if logits.dtype == torch.float64 else logits.float()


@torch.no_grad()
def glance(model: nn.Module, batch: Batch) -> Batch:
    """The batch with some of what is hidden shown, the more the worse the model guesses it; see `reveal_order`.

    Chance (dropout) is left as it was found: what the model draws next is what it drew here.
    """
    hidden = batch.targets >= 0
    device = batch.tokens.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        guess = logits_at(model, batch, hidden).argmax(-1)
    wrong = torch.zeros_like(batch.targets)
    wrong[hidden] = (guess != batch.targets[hidden]).long()
    shown = hidden & (batch.channels[REVEAL] <= wrong.sum(1, keepdim=True))
    return replace(batch, tokens=torch.where(shown, batch.targets, batch.tokens),
                   targets=batch.targets.masked_fill(shown, -1))


class MaskedElements:
    """Cross-entropy of the elements that `targets` names, in place, after a glance if the batch has an order for it.

    smoothing: so much of each label is spread evenly over all elements (Szegedy et al. 2016).
    """

    in_place: ClassVar[bool] = True  # targets are asked for where they stand

    def __init__(self, smoothing: float = 0.0) -> None:
        self.smoothing = smoothing

    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        if REVEAL in batch.channels:
            batch = glance(model, batch)
        asked = batch.targets >= 0
        logs = logits_at(model, batch, asked).log_softmax(-1)
        nats = -logs.gather(1, batch.targets[asked][:, None]).sum()
        total = (1 - self.smoothing) * nats - self.smoothing * logs.mean(-1).sum() if self.smoothing else nats
        return Loss(total, {"nats": nats.detach()}, batch.count)
