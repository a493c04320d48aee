"""Reward fine-tuning of a diffusion model: DRAKES (Wang et al. 2024, arXiv 2410.13643).

The model maximises the mean reward of its samples minus `strength` times the KL divergence of its sampling paths from
the reference model's. The optimum is the reference's distribution times exp(reward / strength), normalised. Samples
have gradients: the last steps of the sampler are soft.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from segue.design.oracles import Oracle
from segue.errors import SegueError
from segue.kernels.gumbel import exponential_noise, straight_through
from segue.models.diffusion import AbsorbingProcess, Denoiser, NoiseSchedule
from segue.objectives import Batch, Loss
from segue.objectives.diffusion import Predict, clean_tokens

KL_FORMS = ("path", "released")


def path_kl(log_p: Tensor, log_q: Tensor, rows: Tensor, kept: Tensor, kept_next: Tensor, form: str = "path") -> Tensor:
    """The KL divergence of one sampling step of a model from another model's, (B,) nats.

    log_p, log_q: (B, L, V) both models' log probabilities of the masked elements; rows: (B, L, V + 1) the soft state
    before the step, the mask last; kept, kept_next: the schedule's probabilities that an element is not masked, at this
    time and the next. form: "path": the sum over masks, each weighted by its probability of being unmasked in this
    step; the sum over steps is the divergence of the paths. "released": as in the authors' code, the sum over partly
    unmasked elements regardless of the step's length, which is 0 on hard states.
    """
    impossible = log_p.isneginf()
    p, log_ratio = log_p.exp(), torch.where(impossible, 0.0, log_p - log_q)
    if form == "path":
        unmask_probability = ((kept_next - kept) / (1 - kept)).to(rows)
        return unmask_probability * (rows[..., -1] * (p * log_ratio).sum(-1)).sum(1)
    unmasked = (1 - rows[..., -1:]) * rows[..., :-1]
    return (unmasked * (p * log_ratio - p + log_q.exp())).sum((1, 2)) / (1 - kept).to(rows)


def harden(rows: Tensor) -> Tensor:
    """One-hot rows of the argmax."""
    return F.one_hot(rows.argmax(-1), rows.shape[-1]).to(rows.dtype)


@dataclass(frozen=True)
class GumbelRollout:
    """The ancestral sampler of masked diffusion with a gradient: one-hot rows in, one-hot rows out.

    steps: of the sampler, as of `ancestral`. soft: how many of the last steps are soft: a mask becomes a Gumbel-softmax
    over the elements and the mask; only these steps pass gradients. temperature: of the softmax; towards 0 a soft step
    becomes an ordinary one. hard: hard rows at each step with the soft rows' gradient (straight-through; this
    over-optimises). kl: a name in KL_FORMS, the form of the divergence. schedule: of the noise. dtype: of the rows.
    Activations are recomputed in the backward pass (checkpointing), so that only the rows of each step are stored.
    """

    steps: int = 128
    soft: int = 50
    temperature: float = 1.0
    hard: bool = False
    kl: str = "path"
    schedule: NoiseSchedule = field(default_factory=NoiseSchedule)
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        if self.steps < 1 or self.soft < 0 or self.temperature <= 0 or self.kl not in KL_FORMS:
            raise SegueError(f"a rollout of {self.steps} steps, {self.soft} of them soft, at temperature "
                             f"{self.temperature} with kl '{self.kl}': take at least one step, a temperature above 0, "
                             f"and a kl of {', '.join(KL_FORMS)}")

    def __call__(self, predict: Predict, x: Tensor, gaps: Tensor, process: AbsorbingProcess,
                 reference: Predict | None = None, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Sample designs (B, L, V), one-hot with gradients, and the KL divergence of their paths from those of
        `reference`, (B,) nats (None: 0). x: (B, L) long; gaps: (B, L) bool, the elements to be sampled, whose values in
        x are ignored. Both models read soft rows."""
        kept = self.schedule.grid(self.steps).to(x.device)
        rows = F.one_hot(x.masked_fill(gaps, process.elements), process.states).to(self.dtype)
        kl = rows.new_zeros(len(rows))
        for step in range(self.steps, 0, -1):
            noise = -exponential_noise(rows, generator).to(rows)
            t = torch.full((len(x),), step / self.steps, dtype=torch.float64, device=x.device)
            advance = partial(self.advance, predict, reference, t=t, kept=kept[step], kept_next=kept[step - 1])
            soft = step <= self.soft
            with torch.set_grad_enabled(torch.is_grad_enabled() and (soft or reference is not None)):
                rows, step_kl = checkpoint(advance, rows, noise, use_reentrant=False)
            kl = kl + step_kl
            rows = rows if soft else harden(rows.detach())
        soft_rows = rows[..., : process.elements]
        return straight_through(harden(soft_rows), soft_rows), kl

    def advance(self, predict: Predict, reference: Predict | None, rows: Tensor, noise: Tensor, t: Tensor, kept: Tensor,
                kept_next: Tensor) -> tuple[Tensor, Tensor]:
        """One sampling step: the rows (B, L, S) after it, and the step's KL divergence (B,)."""
        log_p = predict(rows, t).to(rows)
        log_stay = ((1 - kept_next) / (1 - kept)).log().to(rows).expand(*rows.shape[:2], 1)
        scores = torch.cat([log_p + ((kept_next - kept) / (1 - kept)).log().to(rows), log_stay], -1)
        mask = rows[..., -1:]
        updated = (1 - mask) * rows + mask * ((scores + noise) / self.temperature).softmax(-1)
        if self.hard:
            updated = straight_through(harden(updated), updated)
        if reference is None:
            return updated, rows.new_zeros(len(rows))
        return updated, path_kl(log_p, reference(rows, t).to(rows), rows, kept, kept_next, self.kl)


class RewardFineTuning:
    """Minus the reward of a model's own samples, plus `strength` times the KL divergence of their paths from the
    reference's (DRAKES): an objective for `learn`. The elements of a batch with targets are resampled; the others, such
    as flanks or a scaffold, are kept. A row's loss is weighted by the mean number of targets of a row.

    oracle: scores soft rows (B, L, V), with gradients. reference: the model before fine-tuning, frozen here. strength:
    weight of the divergence; at 0 all samples become the same. rollout: how samples are drawn. elements: V (default:
    the mask is the model's last id). allowed: (V,) bool, the elements that may be sampled (default: all).
    """

    def __init__(self, oracle: Oracle, reference: nn.Module, strength: float = 1e-3,
                 rollout: GumbelRollout | None = None, elements: int | None = None,
                 allowed: Tensor | None = None) -> None:
        if strength < 0:
            raise SegueError(f"a strength of {strength} would reward departing from the reference: give 0 or more")
        self.oracle, self.strength, self.rollout = oracle, strength, rollout or GumbelRollout()
        self.reference, self.elements, self.allowed = reference.eval().requires_grad_(False), elements, allowed

    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        elements: Any = self.elements or model.vocabulary - 1  # type: ignore[operator]
        process, layout = AbsorbingProcess(elements), batch.layout
        predict, predict_reference = (Denoiser(network, process, layout, allowed=self.allowed)
                                      for network in (model, self.reference))
        designs, kl = self.rollout(predict, clean_tokens(batch), batch.targets >= 0, process,
                                   predict_reference if self.strength else None)
        reward = self.oracle(designs)
        elements_per_row = batch.count / len(batch.targets)
        total = elements_per_row * (self.strength * kl - reward).sum()
        terms = {"nats": total, "reward": elements_per_row * reward.sum(), "kl": elements_per_row * kl.sum()}
        return Loss(total, {name: term.detach() for name, term in terms.items()}, batch.count)
