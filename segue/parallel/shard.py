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
    """A sequence over N ranks.

    order: "contiguous", each rank one stretch; or "zigzag", of 2N stretches rank r has the ones at r and 2N - 1 - r, so
    that all have as much to do where no query sees a later key. Ids, labels, positions and masks must be cut alike, and
    labels made (the next element) before they are cut.
    """

    ranks: int
    order: Order = "zigzag"

    @property
    def chunks(self) -> int:
        """Stretches of each rank."""
        return 2 if self.order == "zigzag" else 1

    def stretches(self, rank: int) -> tuple[int, ...]:
        """Which of all stretches a rank holds, in order."""
        return (rank, 2 * self.ranks - 1 - rank) if self.order == "zigzag" else (rank,)

    def places(self, rank: int, length: int) -> Tensor:
        """(length / N,) long: where a rank's elements stand in the sequence; they go up."""
        total = self.ranks * self.chunks
        if length % total:
            raise SegueError(f"{length} elements cannot be cut into {total} equal stretches for {self.ranks} ranks: "
                             f"pad to {-(-length // total) * total} (ContextShard.padded)")
        size = length // total
        return torch.cat([torch.arange(at * size, (at + 1) * size) for at in self.stretches(rank)])

    def padded(self, x: Tensor, fill: float = 0, dim: int = 1) -> Tensor:
        """x, with so much of `fill` behind that it can be cut."""
        more = -x.shape[dim] % (self.ranks * self.chunks)
        return F.pad(x, (0, 0) * (x.dim() - 1 - dim % x.dim()) + (0, more), value=fill) if more else x

    def take(self, x: Tensor, rank: int, dim: int = 1) -> Tensor:
        """A rank's share of x."""
        return x.index_select(dim, self.places(rank, x.shape[dim]).to(x.device))

    def join(self, shares: Sequence[Tensor], dim: int = 1) -> Tensor:
        """The sequence again, from the shares of all ranks in order."""
        length = sum(share.shape[dim] for share in shares)
        order = torch.cat([self.places(rank, length) for rank in range(self.ranks)]).argsort()
        return torch.cat(list(shares), dim).index_select(dim, order.to(shares[0].device))
