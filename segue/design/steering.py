"""Steering a diffusion model's samples towards high scores without training: by gradients (classifier guidance), by
resampling particles (SMC; Wu et al. 2023, arXiv 2306.17775, and Li et al. 2024, arXiv 2408.08252), or both.

As the number of particles grows, their distribution converges to the model's times exp(score / strength), normalised.
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
    """Ancestral sampling (see `ancestral`), steered by an oracle. The value of a partly masked sequence is the oracle's
    score of its likeliest completion.

    predict: reads soft rows. x: (B, L) long; gaps: (B, L) bool, the elements to be sampled, whose values in x are
    ignored. strength: cost of departing from the model. guidance: each element's probabilities are multiplied by
    exp(guidance * slope / strength), with the gradient of the expected sequence's score as slope (classifier guidance;
    1 is the optimum to first order). resample: after each step, resample each group of `particles` rows (default: all
    rows; one problem and length per group) with weights exp(gain in value / strength), corrected for the guidance.
    """
    particles = len(x) if particles is None else particles
    if strength <= 0 or particles < 1 or len(x) % particles:
        raise SegueError(f"{len(x)} rows in groups of {particles} at strength {strength}: give whole groups of at "
                         "least one, and a strength above 0")
    kept = (schedule or NoiseSchedule()).grid(steps).to(x.device)
    x, elements = x.masked_fill(gaps, process.elements), process.elements

    def evaluate(x: Tensor, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Log probabilities of the masked elements (B, L, V), values of x (B,), and gradients (B, L, S) of the expected
        score."""
        rows = F.one_hot(x, process.states).float().requires_grad_(guidance != 0)
        with torch.set_grad_enabled(guidance != 0):
            log_p = predict(rows, torch.full((len(x),), step / steps, dtype=torch.float64, device=x.device))
            expected = rows[..., :elements] + rows[..., elements:] * log_p.exp().to(rows)
            slope = torch.autograd.grad(oracle(expected).sum(), rows)[0] if guidance else torch.zeros_like(rows)
        with torch.no_grad():
            return log_p.detach(), oracle(harden(expected.detach())).double(), slope

    log_p, value, slope = evaluate(x, steps)
    for step in range(steps, 0, -1):
        masked = x == elements
        posterior = process.posterior(log_p[masked].double(), x[masked], kept[step], kept[step - 1])
        proposal = (posterior + guidance / strength * slope[masked].double()).log_softmax(-1)
        samples = gumbel_max(proposal, generator)
        log_weight = torch.zeros(x.shape, dtype=torch.float64, device=x.device)
        log_weight[masked] = (posterior.log_softmax(-1) - proposal).gather(-1, samples[:, None])[:, 0]
        x = x.masked_scatter(masked, samples)
        log_p, next_value, slope = evaluate(x, step - 1)
        if resample:
            total = log_weight.sum(1) + (next_value - value) / strength
            rows = resample_particles(total.view(-1, particles), generator)
            x, gaps, log_p, next_value, slope = (tensor[rows] for tensor in (x, gaps, log_p, next_value, slope))
        value = next_value
    return x, steps + 1


def resample_particles(log_weights: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Systematic resampling: (G, P) log weights -> (G P,) long, P row indices for each group, each row the floor or the
    ceiling of its expected number of times."""
    groups, particles = log_weights.shape
    edges = log_weights.softmax(-1).cumsum(-1)
    first = torch.rand(groups, 1, generator=generator, dtype=torch.float64, device=log_weights.device)
    points = (first + torch.arange(particles, device=log_weights.device)) / particles
    chosen = torch.searchsorted(edges, points).clamp(max=particles - 1)
    return (chosen + particles * torch.arange(groups, device=log_weights.device)[:, None]).flatten()


def classifier_free(predict: Predict, labels: Tensor, none: int, weight: float = 2.0) -> Predict:
    """Classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598; a baseline of DRAKES) for any sampler:
    conditional^weight unconditional^(1 - weight), normalised for each masked element.

    predict: of ids (B, L). labels: (L,) or (B, L) bool, the known elements of a row that are the condition. none: the
    id in their place that stands for no condition, which the model must have been trained with. weight: 1 is the
    conditional model, 0 the unconditional one.
    """
    def guided(x: Tensor, t: Tensor) -> Tensor:
        conditional = predict(x, t)
        if weight == 1:
            return conditional
        unconditional = predict(torch.where(labels.to(x.device), none, x), t)
        excluded = conditional.isneginf() | unconditional.isneginf()  # elements that are known or not allowed
        mixed = unconditional + weight * (conditional - unconditional)
        return torch.where(excluded, conditional, mixed).log_softmax(-1)

    return guided


STEERED: dict[str, Callable[..., Sampled]] = {
    "guidance": partial(sample_steered, guidance=1.0, resample=False),
    "smc": sample_steered,
    "tds": partial(sample_steered, guidance=1.0),
}
