"""Which elements of a sequence each rank holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from segue.errors import SegueError
from segue.parallel.schedule import Order


@dataclass(frozen=True)
class ContextShard:
    """How a sequence is split over N ranks.

    order: "contiguous", one stretch for each rank; or "zigzag", where of 2N stretches rank r holds numbers r and
    2N - 1 - r, which balances the work of causal attention. Ids, labels, positions and masks must be split alike, and
    labels (the next elements) made before the split.
    """

    ranks: int
    order: Order = "zigzag"

    @property
    def chunks(self) -> int:
        """The number of stretches of each rank."""
        return 2 if self.order == "zigzag" else 1

    def stretch_indices(self, rank: int) -> tuple[int, ...]:
        """The indices of a rank's stretches among all, ascending."""
        return (rank, 2 * self.ranks - 1 - rank) if self.order == "zigzag" else (rank,)

    def positions(self, rank: int, length: int) -> Tensor:
        """(length / N,) long: the positions of a rank's elements in the sequence, ascending."""
        total = self.ranks * self.chunks
        if length % total:
            raise SegueError(f"{length} elements cannot be cut into {total} equal stretches for {self.ranks} ranks: "
                             f"pad to {-(-length // total) * total} (ContextShard.padded)")
        size = length // total
        return torch.cat([torch.arange(at * size, (at + 1) * size) for at in self.stretch_indices(rank)])

    def padded(self, x: Tensor, fill: float = 0, dim: int = 1) -> Tensor:
        """x, padded with `fill` at its end to a length that can be split."""
        more = -x.shape[dim] % (self.ranks * self.chunks)
        return F.pad(x, (0, 0) * (x.dim() - 1 - dim % x.dim()) + (0, more), value=fill) if more else x

    def take(self, x: Tensor, rank: int, dim: int = 1) -> Tensor:
        """A rank's share of whole rows x."""
        return x.index_select(dim, self.positions(rank, x.shape[dim]).to(x.device))

    def join(self, shares: Sequence[Tensor], dim: int = 1) -> Tensor:
        """The whole sequence, from the shares of all ranks in order."""
        length = sum(share.shape[dim] for share in shares)
        order = torch.cat([self.positions(rank, length) for rank in range(self.ranks)]).argsort()
        return torch.cat(list(shares), dim).index_select(dim, order.to(shares[0].device))
