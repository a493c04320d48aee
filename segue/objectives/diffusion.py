"""Learning to undo noise (see `segue.models.diffusion`): the losses of MDLM, SEDD and D3PM, and bounds on likelihoods.

Targets stand in the places where they are to be predicted, and only those places become noise; where there is no target
the element is read as it is (a source, a prompt). In a batch for the next element that asks for all elements, targets
are the documents without their first element. Each row of a batch has its own time, and the times are spread evenly, so
random numbers belong to the whole batch.
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


def spread(rows: int, device: Any = None, generator: torch.Generator | None = None) -> Tensor:
    """(rows,) float64 in [0, 1): one draw, and the others evenly behind it (antithetic)."""
    first = torch.rand(1, generator=generator, dtype=torch.float64, device=device)
    return (first + torch.arange(rows, device=device)) / rows % 1


def whole(batch: Batch) -> Tensor:
    """(B, T) the batch's sequences without noise."""
    return torch.where(batch.targets >= 0, batch.targets, batch.tokens)


class MaskedDiffusion:
    """The continuous-time bound of masked diffusion (MDLM), in nats over all targets: cross-entropy where masks stand,
    weighted by how fast they come, about 1/t. Padding is neither masked nor counted.

    model: one that reads both ways, its ids the elements, the mask, and if it is to be told the time two or more knots
        (see `segue.models.diffusion.add_time`). elements: how many (default: the mask is the last id). earliest: times
        are drawn from there to 1.
    schedule: default cosine. All have the same bound; with this one a row of L elements says as much as L / 4 that are
        asked for alike, with the log-linear one of the paper L / 7, since few elements with large weights say less.
    known: ids that are never noise, as the readable residues of arXiv 2408.00892 (see `LetterMask`): what else there is
    is learned given them, none of them counts as an answer, and losses are for each of the others.
    """

    def __init__(self, schedule: NoiseSchedule | None = None, elements: int | None = None,
                 earliest: float = 1e-3, known: Sequence[int] = ()) -> None:
        self.schedule, self.elements, self.earliest = schedule or NoiseSchedule("cosine"), elements, earliest
        self.known = list(known)

    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        clean = whole(batch)
        asked = (batch.targets >= 0) & ~isin(clean, self.known)
        elements: Any = self.elements or model.vocabulary - 1  # type: ignore[operator]
        process = AbsorbingProcess(elements)
        t = self.earliest + (1 - self.earliest) * spread(len(clean), clean.device)
        hidden = asked & (process.corrupt(clean, self.schedule.keep_probability(t)[:, None]) == elements)
        noisy = add_time(clean.masked_fill(hidden, elements), t, process, model)
        logits = logits_at(model, replace(batch, tokens=noisy), hidden)[:, :elements]
        nats = -mask_tokens(logits, self.known).log_softmax(-1).gather(1, clean[hidden][:, None])[:, 0]
        total = (self.schedule.weight(t)[:, None].expand_as(hidden)[hidden].to(nats) * nats).sum()
        if self.known:
            total = total * (batch.count / max(1, int(asked.sum())))
        return Loss(total, {"nats": total.detach()}, batch.count)


def score_entropy(process: Process, scores: Tensor, x: Tensor, clean: Tensor, now: Tensor) -> Tensor:
    """(N,) the score entropy at noisy ids x (N,) of elements `clean` (N,), relative to the rate of the noise.

    scores: (N, at least V) log scores of each element. now: (N,) float64, the chance that one is kept. At the true
    ratios of chances it is nought.
    """
    ratios = process.ratios(x, clean, now).to(scores)
    each = scores[:, : process.elements].exp() - ratios * scores[:, : process.elements] + \
        torch.xlogy(ratios, ratios) - ratios
    other = torch.arange(process.elements, device=x.device) != x[:, None]
    return process.resting_distribution.to(x.device)[x].to(scores) * torch.where(other, each, 0.0).sum(-1)


class ScoreEntropy:
    """Denoising score entropy (SEDD) in continuous time, in nats over all targets; of the absorbing process it is
    `MaskedDiffusion`. Scores are read off what the model says each element was, `Process.mixed`.

    model: its ids are the process's states, and two or more knots if it is to be told the time (see
        `segue.models.diffusion.add_time`).
    """

    def __init__(self, process: Process, schedule: NoiseSchedule | None = None, earliest: float = 1e-3) -> None:
        self.process, self.schedule, self.earliest = process, schedule or NoiseSchedule(), earliest

    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        clean, asked, process = whole(batch), batch.targets >= 0, self.process
        t = self.earliest + (1 - self.earliest) * spread(len(clean), clean.device)
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
    """The bound of a chain of `steps` steps (D3PM), in nats over all targets: at a step drawn for each row, how far
    what the model takes for the state before is from the exact posterior, by Kullback and Leibler. As
    `NoiseSchedule.grid` ends in the resting distribution, nothing is left out, and the mean over many draws is a bound.

    auxiliary: weight of the cross-entropy at what may be noise, which is added to it (D3PM: 0.001 for text).
    """

    def __init__(self, process: Process, schedule: NoiseSchedule | None = None, steps: int = 1000,
                 auxiliary: float = 0.0) -> None:
        self.process, self.steps, self.auxiliary = process, steps, auxiliary
        self.kept = (schedule or NoiseSchedule()).grid(steps)

    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        clean, asked, process = whole(batch), batch.targets >= 0, self.process
        step = 1 + (self.steps * spread(len(clean), clean.device)).long()
        now, before = (self.kept.to(clean.device)[at][:, None].expand_as(clean) for at in (step, step - 1))
        x = torch.where(asked, process.corrupt(clean, now), clean)
        free = asked & process.can_be_noise(x)
        noisy = add_time(x, step.double() / self.steps, process, model)
        logits = logits_at(model, replace(batch, tokens=noisy), free)
        x, clean, now, before = x[free], clean[free], now[free], before[free]
        said = process.predict(logits, x)
        true = process.posterior(F.one_hot(clean, process.elements).to(said).log(), x, now, before)
        guess = process.posterior(said, x, now, before)
        nats = self.steps * torch.where(true.isneginf(), 0.0, true.exp() * (true - guess)).sum()
        plain = -said.gather(1, clean[:, None]).sum()
        return Loss(nats + self.auxiliary * plain if self.auxiliary else nats, {"nats": nats.detach()}, batch.count)


def questions(asked: Tensor, draws: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """What to hide of rows, (B, L) bool, and what the nats of each hidden element count, (B,) float64, so that in the
    mean all add up to the negative log-likelihood over random orders. That is what the bound of masked diffusion comes
    to with any schedule: of n elements a set of size s is asked for with weight n / s, all sizes alike.
    """
    count = asked.sum(1)
    for draw in range(draws):
        chance = torch.rand(len(asked), generator=generator, dtype=torch.float64).to(asked.device)
        size = 1 + (count * (draw + chance) / draws).long()
        order = torch.rand(asked.shape, generator=generator, dtype=torch.float64).to(asked.device)
        rank = order.masked_fill(~asked, 2.0).argsort(1).argsort(1)
        yield asked & (rank < size[:, None]), count / (size * draws)


@torch.no_grad()
def any_order(predict: Predict, clean: Tensor, asked: Tensor, mask: int, draws: int = 16, seed: int = 0) -> Tensor:
    """(B,) nats: an estimate, from so many draws and without bias, of each row's negative log-likelihood over random
    orders, a bound on what masked diffusion and any-order models give it. asked: (B, L) bool, of which elements; the
    others are known. mask: the id behind the elements."""
    total = torch.zeros(len(clean), dtype=torch.float64, device=clean.device)
    t = torch.ones_like(total)
    for hidden, weight in questions(asked, draws, generator_of(seed, 0)):
        logs = predict(clean.masked_fill(hidden, mask), t * hidden.sum(1) / clean.shape[1])
        nats = -logs.gather(2, clean.clamp(max=mask - 1)[..., None])[..., 0].double()
        total += weight * torch.where(hidden, nats, 0.0).sum(1)
    return total


@torch.no_grad()
def exact_law(predict: Predict, elements: int, length: int, mask: int, rows: int = 1 << 14) -> Tensor:
    """(elements,) * length float64: the chance of every sequence so long, if masks are lifted one by one in any order:
    the law of masked diffusion in the limit of many steps (see `first_hitting`). For short sequences: the model reads
    all (elements + 1)^length that are partly masked, so many `rows` at a time."""
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
