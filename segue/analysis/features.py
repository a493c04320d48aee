"""Features that a model's vectors are made of: a sparse autoencoder finds them, steering exchanges them, and so do
maps that take a place in an order apart from which order it is (Bricken et al. 2023; Gould et al. 2023, arXiv
2312.09230)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segue.errors import SegueError


class SparseAutoencoder(nn.Module):
    """x (M, D) -> features relu(W x + b) (M, F) -> their sum of directions plus an offset (M, D).

    Directions (F, D) have length one, or the penalty on the features would say nothing.
    """

    def __init__(self, width: int, features: int) -> None:
        super().__init__()
        self.into = nn.Linear(width, features)
        self.directions = nn.Parameter(self.into.weight.detach().clone())
        self.offset = nn.Parameter(torch.zeros(width))
        self.normalise()

    @torch.no_grad()
    def normalise(self) -> None:
        self.directions.copy_(F.normalize(self.directions, dim=-1))

    def encode(self, x: Tensor) -> Tensor:
        return F.relu(self.into(x))

    def decode(self, features: Tensor) -> Tensor:
        return features @ self.directions + self.offset

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))


def fit_autoencoder(x: Tensor, features: int = 512, sparsity: float = 0.3, steps: int = 2000, rows: int = 256,
                    rate: float = 1e-3, seed: int = 0) -> SparseAutoencoder:
    """Learn one on vectors (M, D) by Adam: squared error plus `sparsity` times the sum of the features, mean over rows.

    The vectors are taken as they are: scale them so that their mean squared length is about D, or choose `sparsity`
    for theirs.
    """
    if x.dim() != 2 or not len(x):
        raise SegueError(f"an autoencoder learns from vectors (M, D), not {tuple(x.shape)}")
    x = x.detach()
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        model = SparseAutoencoder(x.shape[1], features).to(x)
        model.offset.data.copy_(x.mean(0))
        adam = torch.optim.Adam(model.parameters(), lr=rate)
        for _ in range(steps):
            some = x[torch.randint(len(x), (min(rows, len(x)),))]
            found = model.encode(some)
            adam.zero_grad()
            ((model.decode(found) - some).square().sum(-1) + sparsity * found.sum(-1)).mean().backward()
            adam.step()
            model.normalise()
    return model.requires_grad_(False)


def steered(x: Tensor, away: Tensor, toward: Tensor, strength: float | Tensor) -> Tensor:
    """x (M, D) with `strength` of one direction (D,) exchanged for another: x - strength away + strength toward."""
    return x + strength * (toward - away)


def exchangeable(x: Tensor, index: Tensor, group: Tensor, ridge: float = 1e-3) -> tuple[Tensor, Tensor]:
    """Two maps (D, D) that take vectors apart into what says the place in an order and what says which order it is, so
    that parts of different ones can be put together: x[t] @ first + x[s] @ second is near the vector of what has the
    index of t and the group of s (March and 5 make May). Least squares over all pairs whose outcome is among `x`.

    x: (M, D), say of `segue.analysis.circuits.effective_inputs`. index, group: (M,) long, no two alike in both. ridge:
    times the mean square of x, what keeps the maps small where there are few pairs.
    """
    places = {pair: at for at, pair in enumerate(zip(index.tolist(), group.tolist()))}
    if len(places) < len(x):
        raise SegueError(f"{len(x)} vectors have {len(places)} different pairs of index and group: give each one "
                         "of its own")
    found = [(t, s, places[i, g]) for t, i in enumerate(index.tolist()) for s, g in enumerate(group.tolist())
             if (i, g) in places]
    first, second, made = torch.tensor(found, device=x.device).T
    both, width = torch.cat([x[first], x[second]], 1), x.shape[1]
    gram = both.T @ both + ridge * len(both) * x.square().mean() * torch.eye(2 * width).to(x)
    maps = torch.linalg.solve(gram, both.T @ x[made])
    return maps[:width], maps[width:]
