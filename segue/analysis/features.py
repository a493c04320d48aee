"""Features of a model's hidden vectors: a sparse autoencoder that finds them (Bricken et al. 2023), steering along
their directions, and linear maps that separate an element's index in an ordered group from which group it is in (Gould
et al. 2023, arXiv 2312.09230)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segue.errors import SegueError


class SparseAutoencoder(nn.Module):
    """x (M, D) -> features relu(W x + b) (M, F) -> features @ directions + offset (M, D).

    Directions (F, D) have norm one; otherwise larger directions would evade the penalty on the features.
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
    """Fit one to vectors (M, D) by Adam: squared error plus `sparsity` times the sum of the features, mean over rows.

    The vectors are not scaled: scale them to a mean squared norm of about D, or choose `sparsity` to fit theirs.
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
            batch = x[torch.randint(len(x), (min(rows, len(x)),))]
            active = model.encode(batch)
            adam.zero_grad()
            ((model.decode(active) - batch).square().sum(-1) + sparsity * active.sum(-1)).mean().backward()
            adam.step()
            model.normalise()
    return model.requires_grad_(False)


def steered(x: Tensor, away: Tensor, toward: Tensor, strength: float | Tensor) -> Tensor:
    """x (M, D) with `strength` of one direction (D,) exchanged for another: x - strength away + strength toward."""
    return x + strength * (toward - away)


def index_group_maps(x: Tensor, index: Tensor, group: Tensor, ridge: float = 1e-3) -> tuple[Tensor, Tensor]:
    """Two linear maps (D, D), one for the index of an element in an ordered group and one for its group:
    x[t] @ index_map + x[s] @ group_map is near the vector with the index of t and the group of s (5 and March make
    May). Ridge regression over all pairs whose result is among `x`.

    x: (M, D), say of `segue.analysis.circuits.effective_inputs`. index, group: (M,) long, pairs all different. ridge:
    penalty, relative to the mean square of x.
    """
    rows = {pair: row for row, pair in enumerate(zip(index.tolist(), group.tolist()))}
    if len(rows) < len(x):
        raise SegueError(f"{len(x)} vectors have {len(rows)} different pairs of index and group: give each one "
                         "of its own")
    triples = [(t, s, rows[i, g]) for t, i in enumerate(index.tolist()) for s, g in enumerate(group.tolist())
               if (i, g) in rows]
    of_index, of_group, target = torch.tensor(triples, device=x.device).T
    inputs, width = torch.cat([x[of_index], x[of_group]], 1), x.shape[1]
    gram = inputs.T @ inputs + ridge * len(inputs) * x.square().mean() * torch.eye(2 * width).to(x)
    maps = torch.linalg.solve(gram, inputs.T @ x[target])
    return maps[:width], maps[width:]
