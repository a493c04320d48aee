"""Discrete diffusion: noise processes on sequences of ids, and denoising by a bidirectional model.

Both processes replace each element, independently of all others, by a sample from a resting distribution: the mask
("absorbing") or a uniform element ("uniform"). What D3PM (Austin et al. 2021, arXiv 2107.03006), SEDD (Lou et al. 2024,
arXiv 2310.16834) and MDLM (Sahoo et al. 2024, arXiv 2406.07524) compute is then one sum, `Process.log_mixture`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from segue.errors import SegueError
from segue.mixers.layout import Layout

NOISES = ("log-linear", "cosine", "linear", "geometric")


@dataclass(frozen=True)
class NoiseSchedule:
    """The amount of noise at time t in [0, 1]: an element is unchanged with probability exp(-sigma(t)).

    name: "log-linear" (the probability is 1 - (1 - least) t), "cosine" (least + (1 - least) cos(pi t / 2)), "linear"
        (sigma is most t) or "geometric" (sigma is least^(1-t) most^t). least: in (0, 1). most: 1 or more.
    """

    name: str = "log-linear"
    least: float = 1e-3
    most: float = 20.0

    def __post_init__(self) -> None:
        if self.name not in NOISES or not 0 < self.least < 1 <= self.most:
            raise SegueError(f"noise schedule '{self.name}' with least {self.least} and most {self.most}: choose "
                             f"{', '.join(NOISES)}, least between 0 and 1, and most 1 or more")

    def sigma(self, t: Tensor) -> Tensor:
        """Return the total noise sigma at times t."""
        if self.name == "log-linear":
            return -torch.log1p(-(1 - self.least) * t)
        if self.name == "cosine":
            return -torch.log(self.least + (1 - self.least) * torch.cos(math.pi / 2 * t))
        return self.most * t if self.name == "linear" else self.least ** (1 - t) * self.most**t

    def rate(self, t: Tensor) -> Tensor:
        """Return the derivative of sigma at times t."""
        sigma, span = self.sigma(t), 1 - self.least
        if self.name == "log-linear":
            return span * sigma.exp()
        if self.name == "cosine":
            return span * math.pi / 2 * torch.sin(math.pi / 2 * t) * sigma.exp()
        return torch.full_like(t, self.most) if self.name == "linear" else sigma * math.log(self.most / self.least)

    def keep_probability(self, t: Tensor) -> Tensor:
        """Return the probability that an element is unchanged at times t."""
        return (-self.sigma(t)).exp()

    def weight(self, t: Tensor) -> Tensor:
        """Return the weight of a masked element's loss at times t: rate / (exp(sigma) - 1), the rate of masking
        over the odds of being masked already."""
        return self.rate(t) / torch.expm1(self.sigma(t))

    def grid(self, steps: int) -> Tensor:
        """Return the keep probabilities at 0, 1/steps, ..., 1, (steps + 1,) float64; exactly 1 first and 0 last."""
        if steps < 1:
            raise SegueError(f"a chain of noise has at least one step, not {steps}")
        keep = self.keep_probability(torch.linspace(0, 1, steps + 1, dtype=torch.float64))
        keep[0], keep[-1] = 1.0, 0.0
        return keep


class Process:
    """A noise process on sequences of the ids 0 ... elements - 1; see `AbsorbingProcess` and `UniformProcess`.

    elements: V. states: S, number of ids in noisy sequences. Below, `now` and `before` are keep probabilities, one for
    all elements or one each: at the time of a noisy sequence, and at an earlier time (hence larger).
    """

    def __init__(self, elements: int, states: int) -> None:
        if elements < 1:
            raise SegueError(f"diffusion needs at least one element, not {elements}: what is the model's vocabulary?")
        self.elements, self.states = elements, states

    @property
    def resting_distribution(self) -> Tensor:
        """The distribution at time 1, (S,) float64."""
        raise NotImplementedError

    def sample_resting(self, like: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Sample ids from the resting distribution, in the shape of `like`."""
        raise NotImplementedError

    def can_be_noise(self, x: Tensor) -> Tensor:
        """Return which of the ids x have positive probability under the resting distribution, bool."""
        return self.resting_distribution.to(x.device)[x] > 0

    def corrupt(self, x: Tensor, now: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Add noise to elements x (B, L) long: each is kept with probability `now`, else resampled."""
        unchanged = torch.rand(x.shape, generator=generator, dtype=torch.float64, device=x.device) < now
        return torch.where(unchanged, x, self.sample_resting(x, generator))

    def predict(self, logits: Tensor, x: Tensor) -> Tensor:
        """Turn logits (..., V or more) into log-probabilities (..., V) of the clean elements, given noisy ids x."""
        return logits[..., : self.elements].log_softmax(-1)

    def log_mixture(self, log_p: Tensor, x: Tensor, now: Tensor, before: Tensor) -> Tensor:
        """Return, for every state y, the logarithm (..., S) of the sum over x_0 of p(x_0) q_before(y | x_0) /
        q_now(x | x_0).

        log_p: (..., V) log-probabilities of x_0. x: (...) noisy ids. If both times are equal, this is the log of
        SEDD's concrete score, the ratio of the probabilities of y and x; times q(x | y) it is the posterior.
        """
        resting = self.resting_distribution.to(x.device)
        now, before = now[..., None], before[..., None]
        likelihood = now * F.one_hot(x, self.states)[..., : self.elements] + (1 - now) * resting[x][..., None]
        weight = torch.where(log_p.isneginf(), log_p, log_p - likelihood.log().to(log_p))
        stays = F.pad(weight + before.log().to(log_p), (0, self.states - self.elements), value=-math.inf)
        return torch.logaddexp(stays, weight.logsumexp(-1, keepdim=True) + ((1 - before) * resting).log().to(log_p))

    def posterior(self, log_p: Tensor, x: Tensor, now: Tensor, before: Tensor) -> Tensor:
        """Return log-probabilities (..., S) of the states at an earlier time, given the noisy ids x: the exact
        posterior q(x_before | x_now, x_0), averaged over x_0 (D3PM). Arguments as of `log_mixture`."""
        step = (now / before)[..., None]
        transition = step * F.one_hot(x, self.states) \
            + (1 - step) * self.resting_distribution.to(x.device)[x][..., None]
        return self.log_mixture(log_p, x, now, before) + transition.log().to(log_p)

    def ratios(self, x: Tensor, clean: Tensor, now: Tensor) -> Tensor:
        """Return q_now(y | clean) / q_now(x | clean) for every element y: (..., V) float64."""
        resting, now = self.resting_distribution.to(x.device), now[..., None]
        likelihood = now * F.one_hot(clean, self.states) + (1 - now) * resting
        return likelihood[..., : self.elements] / likelihood.gather(-1, x[..., None])


class AbsorbingProcess(Process):
    """Elements turn into the mask, the id `elements`, and stay masked."""

    def __init__(self, elements: int) -> None:
        super().__init__(elements, elements + 1)

    @property
    def resting_distribution(self) -> Tensor:
        return F.one_hot(torch.tensor(self.elements), self.states).double()

    def sample_resting(self, like: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return torch.full_like(like, self.elements)

    def predict(self, logits: Tensor, x: Tensor) -> Tensor:
        return subs_log_probabilities(logits, x, self.elements)

    def posterior(self, log_p: Tensor, x: Tensor, now: Tensor, before: Tensor) -> Tensor:
        if not bool((x == self.elements).all()):
            return super().posterior(log_p, x, now, before)
        unmask, stay = ((before - now) / (1 - now)).log(), ((1 - before) / (1 - now)).log()
        return torch.cat([log_p + unmask[..., None].to(log_p), stay.expand(x.shape)[..., None].to(log_p)], -1)


class UniformProcess(Process):
    """Elements turn into uniformly random elements."""

    def __init__(self, elements: int) -> None:
        super().__init__(elements, elements)

    @property
    def resting_distribution(self) -> Tensor:
        return torch.full((self.elements,), 1 / self.elements, dtype=torch.float64)

    def sample_resting(self, like: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return torch.randint(self.elements, like.shape, generator=generator, device=like.device)


def subs_log_probabilities(logits: Tensor, x: Tensor, mask: int) -> Tensor:
    """Return log-probabilities (..., mask) of clean elements in MDLM's parameterisation (SUBS): an unmasked element is
    itself, and no element is the mask.

    logits: (..., mask or more). x: (...) long, or soft rows (..., mask + 1 or more), which count as their most likely
    id. mask: its id, the number of elements. Gradients reach the logits at masked positions.
    """
    x = x.argmax(-1) if x.is_floating_point() else x
    itself = F.one_hot(x.clamp(max=mask - 1), mask).to(logits.dtype).log()
    return torch.where((x == mask)[..., None], logits[..., :mask].log_softmax(-1), itself)


def add_time(x: Tensor, t: Tensor, process: Process, model: Any) -> Tensor:
    """Return the model's input for noisy ids x (B, L), or soft rows of them (B, L, S), at times t (B,).

    If the model has more ids than the process has states, the others are knots of a linear interpolation of time from 0
    to 1: each element becomes a soft row with weights on its own id and on two knots. Otherwise the model gets no time.
    """
    knots = model.vocabulary - process.states
    if knots == 0:
        return x
    if knots < 2:
        raise SegueError(f"this model has {model.vocabulary} ids, and the process {process.states} states: give as "
                         "many ids as states, or at least two more, to tell the time by")
    weight = model.embedding.weight
    offset = t.to(weight)[:, None] * (knots - 1) - torch.arange(knots, device=x.device)
    time = (1 - offset.abs()).clamp(min=0)[:, None].expand(-1, x.shape[1], -1)
    rows = x if x.is_floating_point() else F.one_hot(x, process.states)
    return torch.cat([rows.to(weight), time], -1)


@dataclass(frozen=True)
class Denoiser:
    """Maps noisy ids x (B, L) long and times t (B,) to log-probabilities of the clean elements, (B, L, V), float32 or
    wider. For the absorbing process x may be soft rows (B, L, S), with gradients.

    model: a bidirectional one. layout: the model's. temperature: divides the logits; 0: argmax.
    allowed: (V,), (L, V) or (B, L, V) bool, the elements allowed at each position; None: all.
    """

    model: Any
    process: Process
    layout: Layout | None = None
    temperature: float = 1.0
    allowed: Tensor | None = None

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        logits = self.model(add_time(x, t, self.process, self.model), self.layout).logits
        logits = (logits if logits.dtype == torch.float64 else logits.float())[..., : self.process.elements]
        if self.allowed is not None:
            logits = logits.masked_fill(~self.allowed, -torch.inf)
        if self.temperature == 0:
            best = logits.argmax(-1)
            logits = F.one_hot(best, self.process.elements).to(logits).log()
        elif self.temperature != 1:
            logits = logits / self.temperature
        return self.process.predict(logits, x)
