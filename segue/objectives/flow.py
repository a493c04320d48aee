"""Flow matching for real vectors (see `segue.models.flow`), and the autoencoder loss that gives latent vectors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from segue.models.flow import Flow
from segue.objectives.base import Batch, Loss
from segue.objectives.diffusion import stratified_times


class FlowMatching:
    """Squared error between the true velocity and a `Field`'s prediction, averaged over an element's numbers and summed
    over the elements whose target is not -1; the others are known: clean and at time 0.

    tokens: (B, T, C) real vectors with standard deviation about 1. The batch's channels are the field's conditions.
    Times are stratified over the rows, so the random draws depend on the whole batch.

    flow: its times, the same as in sampling. drop: how often each condition is dropped, independently for each row and
        condition, for classifier-free guidance (`Guided`); default: never. blur: standard deviation of noise added to
        known elements, which reduces drift when a model reads its own output.
    """

    def __init__(self, flow: Flow | None = None, drop: Mapping[str, float] | None = None, blur: float = 0.0) -> None:
        self.flow, self.drop, self.blur = flow or Flow(), dict(drop or {}), blur

    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        clean, noisy = batch.tokens, batch.targets >= 0
        # A separate generator: data drawn with the step's seed must not share a random stream with the noise.
        generator = torch.Generator(clean.device).manual_seed(int(torch.randint(2**62, ())))

        def normal() -> Tensor:
            return torch.randn(clean.shape, generator=generator, dtype=clean.dtype, device=clean.device)

        noise, t = normal(), self.flow.shift_times(stratified_times(len(clean), clean.device, generator))
        x = self.flow.add_noise(clean, noise, t, noisy)
        if self.blur:
            x = torch.where(noisy[..., None], x, x + self.blur * normal())
        conditions = {name: self.drop_condition(name, ids, generator) for name, ids in batch.channels.items()}
        velocity = model(x, t, noisy, batch.layout, conditions)
        total = (velocity - (clean - noise))[noisy].square().mean(-1).sum()
        return Loss(total, {"nats": total.detach()}, batch.count)

    def drop_condition(self, name: str, ids: Tensor, generator: torch.Generator) -> Tensor:
        """The ids or vectors (B, ...) of a condition, dropped in randomly chosen rows (id -1, or a zero vector)."""
        if name not in self.drop:
            return ids
        left = torch.rand(len(ids), generator=generator, device=ids.device) < self.drop[name]
        return torch.where(left.view(-1, *[1] * (ids.dim() - 1)), 0 if ids.is_floating_point() else -1, ids)


class Reconstruction:
    """The scaled bound of a variational autoencoder (Kingma & Welling 2014, arXiv 1312.6114): the mean squared
    reconstruction error plus `weight` times the KL divergence, in nats per latent number, from the normal prior.

    model: has `posterior` (inputs -> mean and log variance of latents) and `decode_latents` (latents -> inputs). All
    elements, (B, T, ...) real, are reconstructed.
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
