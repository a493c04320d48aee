"""Learning to go from noise to real vectors (see `segue.models.flow`), and to make such vectors of something larger."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from segue.models.flow import Flow
from segue.objectives.base import Batch, Loss
from segue.objectives.diffusion import spread


class FlowMatching:
    """The mean squared error of an element's numbers, between velocity and what a `Field` says; summed over the asked
    elements, those whose target is not -1, which only says where: the others are given, clean and at time 0.

    tokens: (B, T, C) real vectors, of deviation about one. What the field is told are the batch's channels. Times are
    spread evenly over the rows of a batch: chance is that of a whole batch.

    flow: its times, the same as in sampling. drop: how often each of what is told is left out, row by row and each by
        itself, so that the field can do without it (`Guided`); default: never. blur: the deviation of noise on given
        elements, which makes a model that reads its own answers drift less.
    """

    def __init__(self, flow: Flow | None = None, drop: Mapping[str, float] | None = None, blur: float = 0.0) -> None:
        self.flow, self.drop, self.blur = flow or Flow(), dict(drop or {}), blur

    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        clean, asked = batch.tokens, batch.targets >= 0
        # Of a stream of its own: data that are drawn with the step's seed must not be what noise is drawn from.
        own = torch.Generator(clean.device).manual_seed(int(torch.randint(2**62, ())))

        def normal() -> Tensor:
            return torch.randn(clean.shape, generator=own, dtype=clean.dtype, device=clean.device)

        noise, t = normal(), self.flow.shift_times(spread(len(clean), clean.device, own))
        x = self.flow.add_noise(clean, noise, t, asked)
        if self.blur:
            x = torch.where(asked[..., None], x, x + self.blur * normal())
        told = {name: self.told(name, ids, own) for name, ids in batch.channels.items()}
        said = model(x, t, asked, batch.layout, told)
        total = (said - (clean - noise))[asked].square().mean(-1).sum()
        return Loss(total, {"nats": total.detach()}, batch.count)

    def told(self, name: str, ids: Tensor, generator: torch.Generator) -> Tensor:
        """The ids or vectors (B, ...) of a condition, without those of the rows in which it is left out."""
        if name not in self.drop:
            return ids
        left = torch.rand(len(ids), generator=generator, device=ids.device) < self.drop[name]
        return torch.where(left.view(-1, *[1] * (ids.dim() - 1)), 0 if ids.is_floating_point() else -1, ids)


class Reconstruction:
    """The bound of a variational autoencoder (Kingma & Welling 2014, arXiv 1312.6114), scaled: the mean squared error
    of the elements' numbers, and `weight` times the mean nats by which a latent number differs from noise.

    model: has `posterior` (inputs -> mean and log variance of latents) and `decoded` (latents -> inputs). The elements,
    (B, T, ...) real, are all asked for.
    """

    def __init__(self, weight: float = 1e-4) -> None:
        self.weight = weight

    def __call__(self, model: Any, batch: Batch) -> Loss:
        mean, log_variance = model.posterior(batch.tokens)
        made = model.decode_latents(mean + torch.randn_like(mean) * (log_variance / 2).exp())
        error = (made - batch.tokens).square().mean()
        nats = (mean.square() + log_variance.exp() - 1 - log_variance).mean() / 2
        total = (error + self.weight * nats) * batch.count
        return Loss(total, {"nats": total.detach(), "error": (error * batch.count).detach()}, batch.count)
