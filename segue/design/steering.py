"""Steering a diffusion model's samples towards what scores high, without teaching it: by gradients, by particles that
are drawn again by their worth (SMC; Wu et al. 2023, arXiv 2306.17775, and Li et al. 2024, arXiv 2408.08252), or both.

The particles' law comes, with their number, to the model's law times exp(score / strength).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from segue.decoding.diffusion import Sampled
from segue.design.oracles import Oracle
from segue.design.rewards import harden
from segue.errors import SegueError
from segue.kernels.gumbel import gumbel_max
from segue.models.diffusion import AbsorbingProcess, NoiseSchedule
from segue.objectives.diffusion import Predict


def sample_steered(predict: Predict, x: Tensor, gaps: Tensor, process: AbsorbingProcess, oracle: Oracle,
                   strength: float = 0.5, steps: int = 128, guidance: float = 0.0, resample: bool = True,
                   particles: int | None = None, generator: torch.Generator | None = None,
                   schedule: NoiseSchedule | None = None) -> Sampled:
    """Undo the noise step by step, as `ancestral`. After each step a sequence is worth what the oracle gives to the
    likeliest sequence that it may become.

    predict: reads soft rows. x: (B, L) long; what stands in its gaps (B, L) bool does not matter. strength: how dear it
    is to depart from the model. guidance: each element's chances are tilted by exp(guidance * slope / strength), the
    slope being that of the expected sequence's score (classifier guidance; 1 is what the tilt asks for, to first
    order). resample: draw each group of `particles` rows (default: all; one problem and length each) again after each
    step, by exp(gain in worth / strength), with what the guidance has changed taken back.
    """
    particles = len(x) if particles is None else particles
    if strength <= 0 or particles < 1 or len(x) % particles:
        raise SegueError(f"{len(x)} rows in groups of {particles} at strength {strength}: give whole groups of at "
                         "least one, and a strength above 0")
    kept = (schedule or NoiseSchedule()).grid(steps).to(x.device)
    x, elements = x.masked_fill(gaps, process.elements), process.elements

    def look(x: Tensor, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """What the masks may be (B, L, V), what x is worth (B,), and the slopes (B, L, S) of its expected score."""
        rows = F.one_hot(x, process.states).float().requires_grad_(guidance != 0)
        with torch.set_grad_enabled(guidance != 0):
            log_p = predict(rows, torch.full((len(x),), step / steps, dtype=torch.float64, device=x.device))
            expected = rows[..., :elements] + rows[..., elements:] * log_p.exp().to(rows)
            slope = torch.autograd.grad(oracle(expected).sum(), rows)[0] if guidance else torch.zeros_like(rows)
        with torch.no_grad():
            return log_p.detach(), oracle(harden(expected.detach())).double(), slope

    log_p, worth, slope = look(x, steps)
    for step in range(steps, 0, -1):
        free = x == elements
        law = process.posterior(log_p[free].double(), x[free], kept[step], kept[step - 1])
        proposal = (law + guidance / strength * slope[free].double()).log_softmax(-1)
        new = gumbel_max(proposal, generator)
        log_weight = torch.zeros(x.shape, dtype=torch.float64, device=x.device)
        log_weight[free] = (law.log_softmax(-1) - proposal).gather(-1, new[:, None])[:, 0]
        x = x.masked_scatter(free, new)
        log_p, after, slope = look(x, step - 1)
        if resample:
            rows = resample_particles((log_weight.sum(1) + (after - worth) / strength).view(-1, particles), generator)
            x, gaps, log_p, after, slope = (each[rows] for each in (x, gaps, log_p, after, slope))
        worth = after
    return x, steps + 1


def resample_particles(log_weights: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """(G, P) log weights -> (G P,) long: for each group P of its rows, each as often as its weight says, to the next
    whole number up or down (systematic resampling)."""
    groups, particles = log_weights.shape
    edges = log_weights.softmax(-1).cumsum(-1)
    first = torch.rand(groups, 1, generator=generator, dtype=torch.float64, device=log_weights.device)
    places = (first + torch.arange(particles, device=log_weights.device)) / particles
    chosen = torch.searchsorted(edges, places).clamp(max=particles - 1)
    return (chosen + particles * torch.arange(groups, device=log_weights.device)[:, None]).flatten()


def classifier_free(predict: Predict, labels: Tensor, none: int, weight: float = 2.0) -> Predict:
    """What a model is told counts for more (classifier-free guidance: Ho & Salimans 2022, arXiv 2207.12598, as DRAKES
    has it beside itself): told^weight untold^(1 - weight), for each mask by itself and normalised. For any sampler.

    predict: of ids (B, L). labels: (L,) or (B, L) bool, the known elements of a row that say what is wanted. none: the
    id that stands there where nothing is said; the model must have learned with it there, too. weight: 1 is the model
    itself, 0 knows of no label.
    """
    def guided(x: Tensor, t: Tensor) -> Tensor:
        told = predict(x, t)
        if weight == 1:
            return told
        untold = predict(torch.where(labels.to(x.device), none, x), t)
        sure = told.isneginf() | untold.isneginf()  # what is no mask, and elements that there are not
        return torch.where(sure, told, untold + weight * (told - untold)).log_softmax(-1)

    return guided


STEERED: dict[str, Callable[..., Sampled]] = {
    "guidance": partial(sample_steered, guidance=1.0, resample=False),
    "smc": sample_steered,
    "tds": partial(sample_steered, guidance=1.0),
}
