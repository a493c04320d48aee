"""Losses for discrete diffusion (see `segue.models.diffusion`): MDLM, SEDD and D3PM, and bounds on likelihoods.

Targets are aligned with the positions at which they are predicted, and only those positions are corrupted; elements
without a target are read as they are (a source, a prompt). In a next-element batch that predicts every element, the
targets are the documents without their first element. Each row of a batch has its own time; the times are stratified
over the batch, so the random draws depend on the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segue.models.base import mask_tokens
from segue.models.diffusion import AbsorbingProcess, NoiseSchedule, Process, add_time
from segue.objectives.base import Batch, Loss, generator_of
from segue.objectives.masked import isin, logits_at

Predict = Callable[[Tensor, Tensor], Tensor]  # noisy ids (B, L) and times (B,) -> log-probabilities (B, L, V)


def stratified_times(rows: int, device: Any = None, generator: torch.Generator | None = None) -> Tensor:
    """(rows,) float64 times in [0, 1): one uniform draw, shifted by 1 / rows from row to row (antithetic sampling)."""
    first = torch.rand(1, generator=generator, dtype=torch.float64, device=device)
    return (first + torch.arange(rows, device=device)) / rows % 1


def clean_tokens(batch: Batch) -> Tensor:
    """(B, T) the uncorrupted sequences of a batch: targets where there are any, tokens elsewhere."""
    return torch.where(batch.targets >= 0, batch.targets, batch.tokens)


class MaskedDiffusion:
    """The continuous-time bound of masked diffusion (MDLM), in nats over all targets: cross-entropy at the masked
    elements, weighted by the rate of masking, about 1/t. Padding is neither masked nor counted.

    model: bidirectional; its ids are the elements, then the mask, then two or more time knots if it is conditioned on
        the time (see `segue.models.diffusion.add_time`). elements: how many ids are elements (default: all but the
        last, which is the mask). earliest: times are drawn between this and 1.
    schedule: default cosine. The bound is the same for all schedules, but not its variance: with cosine a row of L
        elements is worth L / 4 equally weighted ones, with the paper's log-linear schedule L / 7.
    known: ids that are never masked, as the readable residues of arXiv 2408.00892 (see `LetterMask`): the others are
        predicted given them, they get no probability, and the loss is averaged over the others.
    """

    def __init__(self, schedule: NoiseSchedule | None = None, elements: int | None = None,
                 earliest: float = 1e-3, known: Sequence[int] = ()) -> None:
        self.schedule, self.elements, self.earliest = schedule or NoiseSchedule("cosine"), elements, earliest
        self.known = list(known)

    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        clean = clean_tokens(batch)
        asked = (batch.targets >= 0) & ~isin(clean, self.known)
        elements: Any = self.elements or model.vocabulary - 1  # type: ignore[operator]
        process = AbsorbingProcess(elements)
        t = self.earliest + (1 - self.earliest) * stratified_times(len(clean), clean.device)
        hidden = asked & (process.corrupt(clean, self.schedule.keep_probability(t)[:, None]) == elements)
        noisy = add_time(clean.masked_fill(hidden, elements), t, process, model)
        logits = logits_at(model, replace(batch, tokens=noisy), hidden)[:, :elements]
        nats = -mask_tokens(logits, self.known).log_softmax(-1).gather(1, clean[hidden][:, None])[:, 0]
        total = (self.schedule.weight(t)[:, None].expand_as(hidden)[hidden].to(nats) * nats).sum()
        if self.known:
            total = total * (batch.count / max(1, int(asked.sum())))
        return Loss(total, {"nats": total.detach()}, batch.count)


def score_entropy(process: Process, scores: Tensor, x: Tensor, clean: Tensor, now: Tensor) -> Tensor:
    """(N,) score entropy at noisy ids x (N,) of clean elements (N,), per unit of noise rate; 0 at the true ratios.

    scores: (N, at least V) log scores of each element. now: (N,) float64, the probability that an element is kept.
    """
    ratios = process.ratios(x, clean, now).to(scores)
    each = scores[:, : process.elements].exp() - ratios * scores[:, : process.elements] + \
        torch.xlogy(ratios, ratios) - ratios
    other = torch.arange(process.elements, device=x.device) != x[:, None]
    return process.resting_distribution.to(x.device)[x].to(scores) * torch.where(other, each, 0.0).sum(-1)


class ScoreEntropy:
    """Denoising score entropy (SEDD) in continuous time, in nats over all targets; for the absorbing process it equals
    `MaskedDiffusion`. Scores are derived from the model's prediction of the clean elements (`Process.log_mixture`).

    model: its ids are the process's states, then two or more time knots if it is conditioned on the time (see
        `segue.models.diffusion.add_time`).
    """

    def __init__(self, process: Process, schedule: NoiseSchedule | None = None, earliest: float = 1e-3) -> None:
        self.process, self.schedule, self.earliest = process, schedule or NoiseSchedule(), earliest

    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        clean, asked, process = clean_tokens(batch), batch.targets >= 0, self.process
        t = self.earliest + (1 - self.earliest) * stratified_times(len(clean), clean.device)
        now = self.schedule.keep_probability(t)[:, None].expand_as(clean)
        x = torch.where(asked, process.corrupt(clean, now), clean)
        free = asked & process.can_be_noise(x)
        logits = logits_at(model, replace(batch, tokens=add_time(x, t, process, model)), free)
        x, clean, now = x[free], clean[free], now[free]
        scores = process.log_mixture(process.predict(logits, x), x, now, now)
        rate = self.schedule.rate(t)[:, None].expand_as(free)[free]
        total = (rate.to(scores) * score_entropy(process, scores, x, clean, now)).sum()
        return Loss(total, {"nats": total.detach()}, batch.count)


class StepwiseDiffusion:
    """The discrete-time bound of D3PM with `steps` steps, in nats over all targets: at one step drawn for each row, the
    KL divergence from the exact posterior of the previous state to the model's. Because `NoiseSchedule.grid` ends
    exactly in the resting distribution, there is no prior term, and the mean over many draws is a true bound.

    auxiliary: weight of an added cross-entropy at the elements that may be noise (D3PM: 0.001 for text).
    """

    def __init__(self, process: Process, schedule: NoiseSchedule | None = None, steps: int = 1000,
                 auxiliary: float = 0.0) -> None:
        self.process, self.steps, self.auxiliary = process, steps, auxiliary
        self.kept = (schedule or NoiseSchedule()).grid(steps)

    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        clean, asked, process = clean_tokens(batch), batch.targets >= 0, self.process
        step = 1 + (self.steps * stratified_times(len(clean), clean.device)).long()
        now, before = (self.kept.to(clean.device)[at][:, None].expand_as(clean) for at in (step, step - 1))
        x = torch.where(asked, process.corrupt(clean, now), clean)
        free = asked & process.can_be_noise(x)
        noisy = add_time(x, step.double() / self.steps, process, model)
        logits = logits_at(model, replace(batch, tokens=noisy), free)
        x, clean, now, before = x[free], clean[free], now[free], before[free]
        predicted = process.predict(logits, x)
        true = process.posterior(F.one_hot(clean, process.elements).to(predicted).log(), x, now, before)
        guess = process.posterior(predicted, x, now, before)
        nats = self.steps * torch.where(true.isneginf(), 0.0, true.exp() * (true - guess)).sum()
        plain = -predicted.gather(1, clean[:, None]).sum()
        return Loss(nats + self.auxiliary * plain if self.auxiliary else nats, {"nats": nats.detach()}, batch.count)


def draw_masks(asked: Tensor, draws: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Draw masks: for each of `draws`, which elements to hide, (B, L) bool, and the weight of each row's hidden
    elements, (B,) float64, such that the weighted nats sum in expectation to the negative log-likelihood over random
    orders. The bound of masked diffusion equals this for any schedule: of n elements a set of size s is hidden with
    weight n / s, all sizes equally likely.
    """
    count = asked.sum(1)
    for draw in range(draws):
        chance = torch.rand(len(asked), generator=generator, dtype=torch.float64).to(asked.device)
        size = 1 + (count * (draw + chance) / draws).long()
        order = torch.rand(asked.shape, generator=generator, dtype=torch.float64).to(asked.device)
        rank = order.masked_fill(~asked, 2.0).argsort(1).argsort(1)
        yield asked & (rank < size[:, None]), count / (size * draws)


@torch.no_grad()
def any_order_nll(predict: Predict, clean: Tensor, asked: Tensor, mask: int, draws: int = 16, seed: int = 0) -> Tensor:
    """(B,) nats: an unbiased estimate, from `draws` masks, of each row's negative log-likelihood averaged over random
    orders, which bounds that of masked diffusion and any-order models. asked: (B, L) bool, the elements to predict; the
    others are given. mask: id of the mask, the first after the elements."""
    total = torch.zeros(len(clean), dtype=torch.float64, device=clean.device)
    t = torch.ones_like(total)
    for hidden, weight in draw_masks(asked, draws, generator_of(seed, 0)):
        logs = predict(clean.masked_fill(hidden, mask), t * hidden.sum(1) / clean.shape[1])
        nats = -logs.gather(2, clean.clamp(max=mask - 1)[..., None])[..., 0].double()
        total += weight * torch.where(hidden, nats, 0.0).sum(1)
    return total


@torch.no_grad()
def exact_distribution(predict: Predict, elements: int, length: int, mask: int, rows: int = 1 << 14) -> Tensor:
    """(elements,) * length float64: the exact probability of every sequence when elements are unmasked one by one in
    uniformly random order, the limit of masked diffusion with many steps (see `first_hitting`). Only for short
    sequences: the model reads all (elements + 1)^length partly masked ones, `rows` at a time."""
    states = torch.cartesian_prod(*[torch.arange(elements + 1)] * length).view(-1, length)
    ids = torch.where(states == elements, mask, states)
    masked = (states == elements).sum(1)
    law = torch.zeros(len(states), dtype=torch.float64)
    law[-1] = 1.0  # all masked
    weights = (elements + 1) ** torch.arange(length - 1, -1, -1)
    for left in range(length, 0, -1):
        for part in (masked == left).nonzero()[:, 0].split(rows):
            log_p = predict(ids[part], torch.full((len(part),), left / length, dtype=torch.float64))
            chances = law[part, None, None] * log_p[..., :elements].double().exp() / left
            row, place = (states[part] == elements).nonzero(as_tuple=True)
            after = part[row, None] + (torch.arange(elements) - elements) * weights[place, None]
            law.index_add_(0, after.flatten(), chances[row, place].flatten())
    return law.view((elements + 1,) * length)[(slice(elements),) * length]
