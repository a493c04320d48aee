"""Teaching a diffusion model to write what scores high: DRAKES (Wang et al. 2024, arXiv 2410.13643).

The model maximises the mean reward of its samples less `strength` times the divergence of its paths, from the masks to
the sequence, from those of the model that it was. Its optimum is the law of that model times exp(reward / strength).
Samples have gradients: the last steps of the sampler are soft.
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


def path_kl(log_p: Tensor, log_q: Tensor, rows: Tensor, now: Tensor, before: Tensor, form: str = "path") -> Tensor:
    """(B,) nats: how far one step of a model's paths is from another model's, by Kullback and Leibler.

    log_p, log_q: (B, L, V) what both take the masks for; rows: (B, L, V + 1) the soft state before the step, the mask
    last; now, before: the chances that an element is kept, at this time and the next. form: "path": masks count, each
    by the chance that it is lifted in this step; summed over the steps that is the divergence of the paths themselves.
    "released": as in the authors' code, what is half written counts and the step's length does not, so that on hard
    states it is 0.
    """
    dead = log_p.isneginf()
    p, log_ratio = log_p.exp(), torch.where(dead, 0.0, log_p - log_q)
    if form == "path":
        lifted = ((before - now) / (1 - now)).to(rows)
        return lifted * (rows[..., -1] * (p * log_ratio).sum(-1)).sum(1)
    written = (1 - rows[..., -1:]) * rows[..., :-1]
    return (written * (p * log_ratio - p + log_q.exp())).sum((1, 2)) / (1 - now).to(rows)


def harden(rows: Tensor) -> Tensor:
    """One-hot rows of the likeliest."""
    return F.one_hot(rows.argmax(-1), rows.shape[-1]).to(rows.dtype)


@dataclass(frozen=True)
class GumbelRollout:
    """The ancestral sampler of masked diffusion with a gradient: one-hot rows in, one-hot rows out.

    steps: of the sampler, as of `ancestral`. soft: how many of the last ones are soft: a mask becomes a Gumbel-softmax
    of what may stand there, and keeps so much of a mask; gradients pass these steps alone. temperature: of the softmax;
    towards 0 a soft step becomes an ordinary one. hard: hard rows at each step, with the soft ones' gradient (this
    over-optimises). What a step computes is computed again on the way back, so memory grows by rows of weights alone.
    kl: a name in KL_FORMS, for the divergence. dtype: of the rows.
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
        """Designs (B, L, V) one-hot, with gradients, and (B,) nats, the divergence of their paths from those of
        `reference` (None: 0). x: (B, L) long; what stands in its gaps (B, L) bool does not matter. Both models read
        soft rows."""
        kept = self.schedule.grid(self.steps).to(x.device)
        rows = F.one_hot(x.masked_fill(gaps, process.elements), process.states).to(self.dtype)
        total = rows.new_zeros(len(rows))
        for step in range(self.steps, 0, -1):
            noise = -exponential_noise(rows, generator).to(rows)
            t = torch.full((len(x),), step / self.steps, dtype=torch.float64, device=x.device)
            advance = partial(self.advance, predict, reference, t=t, now=kept[step], before=kept[step - 1])
            soft = step <= self.soft
            with torch.set_grad_enabled(torch.is_grad_enabled() and (soft or reference is not None)):
                rows, added = checkpoint(advance, rows, noise, use_reentrant=False)
            total = total + added
            rows = rows if soft else harden(rows.detach())
        soft_rows = rows[..., : process.elements]
        return straight_through(harden(soft_rows), soft_rows), total

    def advance(self, predict: Predict, reference: Predict | None, rows: Tensor, noise: Tensor, t: Tensor, now: Tensor,
                before: Tensor) -> tuple[Tensor, Tensor]:
        """One step: the rows (B, L, S) after it, and what it adds to the divergence (B,)."""
        log_p = predict(rows, t).to(rows)
        stays = ((1 - before) / (1 - now)).log().to(rows).expand(*rows.shape[:2], 1)
        scores = torch.cat([log_p + ((before - now) / (1 - now)).log().to(rows), stays], -1)
        mask = rows[..., -1:]
        new = (1 - mask) * rows + mask * ((scores + noise) / self.temperature).softmax(-1)
        if self.hard:
            new = straight_through(harden(new), new)
        if reference is None:
            return new, rows.new_zeros(len(rows))
        return new, path_kl(log_p, reference(rows, t).to(rows), rows, now, before, self.kl)


class RewardFineTuning:
    """Minus the reward of a model's own samples, plus `strength` times the divergence of their paths from the
    reference's (DRAKES): an objective for `learn`. What a batch asks for is written anew; the rest of its rows, such as
    flanks or a scaffold, stays. One row's loss counts as many elements as are asked for in it.

    oracle: scores soft rows (B, L, V), with gradients. reference: the model as it was, frozen here. strength: how dear
    it is to depart from it; at 0 all samples end as one. rollout: how samples are drawn. elements: V (default: the mask
    is the model's last id). allowed: (V,) bool, the elements that there may be (default: all).
    """

    def __init__(self, oracle: Oracle, reference: nn.Module, strength: float = 1e-3,
                 rollout: GumbelRollout | None = None, elements: int | None = None,
                 allowed: Tensor | None = None) -> None:
        if strength < 0:
            raise SegueError(f"a strength of {strength} would pay for departing from the reference: give 0 or more")
        self.oracle, self.strength, self.rollout = oracle, strength, rollout or GumbelRollout()
        self.reference, self.elements, self.allowed = reference.eval().requires_grad_(False), elements, allowed

    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        elements: Any = self.elements or model.vocabulary - 1  # type: ignore[operator]
        process, layout = AbsorbingProcess(elements), batch.layout
        predict, before = (Denoiser(each, process, layout, allowed=self.allowed) for each in (model, self.reference))
        designs, kl = self.rollout(predict, clean_tokens(batch), batch.targets >= 0, process,
                                   before if self.strength else None)
        reward = self.oracle(designs)
        share = batch.count / len(batch.targets)
        total = share * (self.strength * kl - reward).sum()
        terms = {"nats": total, "reward": share * reward.sum(), "kl": share * kl.sum()}
        return Loss(total, {name: term.detach() for name, term in terms.items()}, batch.count)
