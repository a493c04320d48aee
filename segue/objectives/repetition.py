"""Losses against repetition: decaying probabilities of repeated sentences (DITTO: Xu et al. 2022, arXiv 2206.02369),
and unlikelihood of tokens that already occurred (Welleck et al. 2019, arXiv 1908.04319)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from segue.errors import SegueError
from segue.objectives.base import Batch, Loss, content_rng


class Repeated(NamedTuple):
    """A text that repeats one sentence to its end.

    places: (n + 1,) long, which element of the original row stands at each position. begin: where the sentence first
    begins. period: its length; from `begin` on, positions i and i + period hold the same element.
    """

    places: Tensor
    begin: int
    period: int


def repeat_sentence(row: Tensor, separator: int | Sequence[int], draw: np.random.Generator,
                    together: int = 1) -> Repeated | None:
    """Draw a sentence of the row and repeat it, preceded once by the sentence before it, to the row's length.

    row: (n,) long. separator: the ids that end sentences. A sentence here begins with the separator of the previous one
    and stops before its own, so each copy has exactly one. It is drawn among the non-empty sentences of which two
    copies fit into n elements; None if there is none. together: up to this many consecutive sentences are repeated as
    one.
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
    """DITTO: one sentence of each document is repeated; from its second copy on, the probability p of each element is
    trained towards gamma times p*, its probability one copy earlier: -log(1 - |p - gamma p*|), no gradient through p*.

    separator: ids that end sentences (or bars, lines, words). together: up to this many consecutive sentences are
        repeated as one; a model only unlearns loops of the lengths it is shown. gamma: between 0 and 1. excess: only
        penalise p above gamma p* (with gamma 0, unlikelihood of the repeated elements).
    A document has the weight of its number of predictions, so that this and maximum likelihood have the same scale
    (`Mixed` alternates between them); documents without a sentence to repeat use maximum likelihood.
    """

    FLOOR = 1e-20

    def __init__(self, separator: int | Sequence[int], gamma: float = 0.5, excess: bool = False,
                 together: int = 1) -> None:
        if not 0 <= gamma <= 1 or together < 1:
            raise SegueError(f"gamma must lie between 0 and 1, not {gamma}, and together be at least 1, not {together}")
        self.separator, self.gamma, self.excess, self.together = separator, gamma, excess, together

    def repeat(self, batch: Batch) -> tuple[Batch, Tensor, Tensor]:
        """The batch with a sentence of each document repeated; (B, T) long, how many positions earlier the same
        prediction was made (0: not penalised); (B, T), the weight of each prediction."""
        places = torch.arange(batch.tokens.shape[1], device=batch.tokens.device)
        index = places.repeat(batch.tokens.shape[0], 1)
        targets, period = batch.targets.clone(), torch.zeros_like(batch.targets)
        weight = (batch.targets >= 0).float()
        for row, span in batch.documents():
            text = batch.tokens[row, span]
            found = repeat_sentence(text, self.separator, content_rng(*text.tolist()), self.together)
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
        log_probs = logits.log_softmax(-1).gather(2, again.targets.clamp(min=0)[..., None])[..., 0]
        decay = self.penalty(log_probs.exp(), period)
        punished = period > 0
        total = (weight * torch.where(punished, decay, -log_probs)).sum()
        return Loss(total, {"nats": total.detach(), "repetition": (weight * decay * punished).sum().detach()},
                    batch.count)

    def penalty(self, chance: Tensor, period: Tensor) -> Tensor:
        """(B, T) nats, from the probability of each target and how many positions earlier the same one was predicted.
        """
        places = torch.arange(chance.shape[1], device=chance.device)
        before = chance.detach().gather(1, (places - period).clamp(min=0))
        apart = chance - self.gamma * before
        apart = apart.clamp(min=0) if self.excess else apart.abs()
        return -(1 - apart).clamp(min=self.FLOOR).log()


class TokenUnlikelihood:
    """Maximum likelihood plus weight * -log(1 - p) for every distinct element that the document contains so far, except
    the target."""

    def __init__(self, weight: float = 1.0) -> None:
        self.weight = weight

    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        asked, targets = batch.targets >= 0, batch.targets.clamp(min=0)[..., None]
        logits = model(batch.tokens, batch.layout).logits
        log_probs = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
        times = torch.zeros_like(log_probs).scatter(2, batch.tokens[..., None], 1.0)
        seen = times.cumsum(1)
        if batch.starts is not None:  # subtract the counts of the row's earlier documents
            places = torch.arange(seen.shape[1], device=seen.device)
            begin = torch.where(batch.starts, places, 0).cummax(1).values[..., None].expand_as(seen)
            seen = seen - (seen - times).gather(1, begin)
        wrong = (seen > 0).scatter(2, targets, False)
        nats = -(log_probs.gather(2, targets)[..., 0] * asked).sum()
        again = -((1 - log_probs.exp()).clamp(min=DecayedRepetition.FLOOR).log() * (wrong & asked[..., None])).sum()
        return Loss(nats + self.weight * again, {"nats": nats.detach(), "unlikelihood": again.detach()}, batch.count)
