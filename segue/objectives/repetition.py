"""Against texts that turn in circles: repetitions that a model learns to believe in less each time (DITTO: Xu et al.
2022, arXiv 2206.02369), and unlikelihood of what was said already (Welleck et al. 2019, arXiv 1908.04319)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from segue.errors import SegueError
from segue.objectives.base import Batch, Loss, drawn


class Repeated(NamedTuple):
    """A text that says one sentence over and over.

    places: (n + 1,) long, which element of the row stands at each place. begin: where the sentence stands first.
    period: its length, so that places i and i + period hold the same element from there on.
    """

    places: Tensor
    begin: int
    period: int


def repeat_sentence(row: Tensor, separator: int | Sequence[int], draw: np.random.Generator,
                    together: int = 1) -> Repeated | None:
    """A sentence of the row with the one before it in front, then that sentence over and over.

    row: (n,) long. separator: the ids that end sentences. A sentence here begins with the separator that ended the one
    before and stops ahead of its own, so each copy has exactly one. It is drawn among those of which two copies fit
    into n elements, empty ones apart; None where there is none. together: up to so many sentences in a row are one.
    """
    ends = torch.isin(row, torch.as_tensor(separator, device=row.device)).nonzero()[:, 0].tolist()
    fit = [(first + 1, begin, end) for place, (first, begin) in enumerate(zip(ends, ends[1:]), 2)
           for end in ends[place : place + together]
           if end - begin > 1 and begin - first - 1 + 2 * (end - begin) <= len(row)]
    if not fit:
        return None
    first, begin, end = fit[draw.integers(len(fit))]
    before, period = begin - first, end - begin
    place = torch.arange(len(row) + 1, device=row.device)
    return Repeated(torch.where(place < before, first + place, begin + (place - before) % period), before, period)


class DecayedRepetition:
    """Of each document a sentence is said over and over; from its second time on, the probability p of each element is
    to be gamma times p*, what it was one time earlier: -log(1 - |p - gamma p*|), where p* is not moved.

    separator: ids that end sentences (or bars, lines, words). together: up to so many of them are repeated as one; a
        model is kept only from circles of a length that it is shown. gamma: between 0 and 1. excess: punish only what
        is above gamma p* (with gamma 0, unlikelihood of the repeated elements).
    A document counts as many nats as it has predictions, at their mean, so that this and maximum likelihood weigh alike
    (`Mixed` takes them in turns); documents without a sentence to repeat are learned by maximum likelihood.
    """

    FLOOR = 1e-20

    def __init__(self, separator: int | Sequence[int], gamma: float = 0.5, excess: bool = False,
                 together: int = 1) -> None:
        if not 0 <= gamma <= 1 or together < 1:
            raise SegueError(f"gamma must lie between 0 and 1, not {gamma}, and together be at least 1, not {together}")
        self.separator, self.gamma, self.excess, self.together = separator, gamma, excess, together

    def repeat(self, batch: Batch) -> tuple[Batch, Tensor, Tensor]:
        """The batch with its documents repeating themselves; (B, T) long, how many places earlier the same prediction
        stands (0: it is not punished); (B, T), what each prediction counts."""
        places = torch.arange(batch.tokens.shape[1], device=batch.tokens.device)
        index = places.repeat(batch.tokens.shape[0], 1)
        targets, period = batch.targets.clone(), torch.zeros_like(batch.targets)
        weight = (batch.targets >= 0).float()
        for row, span in batch.documents():
            text = batch.tokens[row, span]
            found = repeat_sentence(text, self.separator, drawn(*text.tolist()), self.together)
            if found is None:
                continue
            asked = int(weight[row, span].sum())
            index[row, span] = span.start + found.places[:-1]
            targets[row, span] = text[found.places[1:]]
            # Place i predicts element i + 1. Nothing predicts a document's first element.
            again = slice(span.start + max(found.begin - 1, 0) + found.period, span.stop)
            period[row, again], weight[row, span] = found.period, 0
            weight[row, again] = asked / (again.stop - again.start)
        rows = torch.arange(len(index), device=index.device)[:, None]
        channels = {name: values[rows, index] for name, values in batch.channels.items()}
        return replace(batch, tokens=batch.tokens[rows, index], targets=targets, channels=channels), period, weight

    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        again, period, weight = self.repeat(batch)
        logits = model(again.tokens, again.layout).logits
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        said = logits.log_softmax(-1).gather(2, again.targets.clamp(min=0)[..., None])[..., 0]
        decay = self.penalty(said.exp(), period)
        punished = period > 0
        total = (weight * torch.where(punished, decay, -said)).sum()
        return Loss(total, {"nats": total.detach(), "repetition": (weight * decay * punished).sum().detach()},
                    batch.count)

    def penalty(self, chance: Tensor, period: Tensor) -> Tensor:
        """(B, T) nats, from the probability of each target and how many places earlier the same one stands."""
        places = torch.arange(chance.shape[1], device=chance.device)
        before = chance.detach().gather(1, (places - period).clamp(min=0))
        apart = chance - self.gamma * before
        apart = apart.clamp(min=0) if self.excess else apart.abs()
        return -(1 - apart).clamp(min=self.FLOOR).log()


class TokenUnlikelihood:
    """Maximum likelihood, and weight * -log(1 - p) for every element that the document holds up to here, the right one
    apart; each counts once, however often it stands there."""

    def __init__(self, weight: float = 1.0) -> None:
        self.weight = weight

    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        asked, targets = batch.targets >= 0, batch.targets.clamp(min=0)[..., None]
        logits = model(batch.tokens, batch.layout).logits
        said = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
        times = torch.zeros_like(said).scatter(2, batch.tokens[..., None], 1.0)
        seen = times.cumsum(1)
        if batch.starts is not None:  # less what stood in the row before the document
            places = torch.arange(seen.shape[1], device=seen.device)
            begin = torch.where(batch.starts, places, 0).cummax(1).values[..., None].expand_as(seen)
            seen = seen - (seen - times).gather(1, begin)
        wrong = (seen > 0).scatter(2, targets, False)
        nats = -(said.gather(2, targets)[..., 0] * asked).sum()
        again = -((1 - said.exp()).clamp(min=DecayedRepetition.FLOOR).log() * (wrong & asked[..., None])).sum()
        return Loss(nats + self.weight * again, {"nats": nats.detach(), "unlikelihood": again.detach()}, batch.count)
