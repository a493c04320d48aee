"""A learned gate that mixes two distributions over the same tokens, by how certain they are and how well they agree."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segue.models.one_cycle import one_cycle


def agreement(p: Tensor, q: Tensor) -> Tensor:
    """Features (..., 7) of two log-distributions (..., V): entropies, largest probabilities, the probability that each
    gives to the other's likeliest token, and the overlap. They do not depend on the vocabulary."""
    p_probs, q_probs = p.exp(), q.exp()
    p_max, p_argmax = p_probs.max(-1, keepdim=True)
    q_max, q_argmax = q_probs.max(-1, keepdim=True)
    return torch.cat([-(p_probs * p).sum(-1, keepdim=True), -(q_probs * q).sum(-1, keepdim=True), p_max, q_max,
                      p_probs.gather(-1, q_argmax), q_probs.gather(-1, p_argmax),
                      torch.minimum(p_probs, q_probs).sum(-1, keepdim=True)], -1)


class Gate(nn.Module):
    """A small network that computes, from `agreement`, the exponents a of a first distribution p (the network's) and b
    of a second q (the counts'): the mixture is proportional to p^a q^b."""

    mean: Tensor
    scale: Tensor

    def __init__(self, hidden: int = 16) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(7, hidden), nn.Linear(hidden, 2)
        self.register_buffer("mean", torch.zeros(7))
        self.register_buffer("scale", torch.ones(7))
        draw = torch.Generator().manual_seed(0)  # a separate generator: the result does not depend on what ran before
        for parameter in self.into.parameters():
            nn.init.uniform_(parameter, -(7**-0.5), 7**-0.5, generator=draw)
        nn.init.zeros_(self.out.weight)
        with torch.no_grad():
            self.out.bias.copy_(torch.tensor([-2.0, 0.54]))  # a = 0.13, b = 1: begin from the counts alone

    @classmethod
    def geometric_mean(cls) -> Gate:
        """An untrained gate with a = b = 1/2, for lack of data to fit one."""
        gate = cls()
        with torch.no_grad():
            gate.out.bias.fill_(np.log(np.expm1(0.5)))
        return gate

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        a, b = F.softplus(self.out(torch.tanh(self.into((features - self.mean) / self.scale)))).split(1, -1)
        return a, b

    def mix(self, p: Tensor, q: Tensor) -> Tensor:
        """Log-probabilities (..., V) of the mixture of two log-distributions."""
        a, b = self(agreement(p, q))
        return (a * p + b * q).log_softmax(-1)


def fit_gate(gate: Gate, p: Tensor, q: Tensor, targets: Tensor, seed: int, epochs: int) -> float:
    """Maximise the likelihood of `targets` (P,) under the mixture of p and q (P, V); returns its bits per element."""
    batches = list(zip(p.split(1024), q.split(1024)))
    features = torch.cat([agreement(x.float().log_softmax(-1), y.float().log_softmax(-1)) for x, y in batches])
    gate.mean, gate.scale = features.mean(0), features.std(0, correction=0) + 1e-2
    generator = torch.Generator().manual_seed(seed)
    steps, batch = max(epochs * len(targets) // 256, 50), min(256, max(16, epochs * len(targets) // 50))

    def cost(rows: Tensor) -> Tensor:
        a, b = gate(features[rows])
        mixed = a * p[rows].float() + b * q[rows].float()
        return mixed.logsumexp(-1) - mixed.gather(1, targets[rows, None])[:, 0]

    one_cycle(gate.parameters(), cost, len(targets), steps, batch, generator)
    with torch.no_grad():
        return float(torch.cat([cost(rows) for rows in torch.arange(len(targets)).split(1024)]).mean() / np.log(2))
