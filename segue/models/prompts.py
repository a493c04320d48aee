"""Prompts that are looked up: pools of learned vectors which a sequence's own beginning chooses from, layer by layer.

A chosen prompt stands in a layer as rows of its input, between the beginning that chose it and what follows; what the
layer makes of those rows is dropped. To attention they are keys and values, unprompted queries read them, and nothing
masks them; to a recurrence they are steps that set its state. So every mixer can be prompted (prefixes: Li & Liang
2021, arXiv 2101.00190; pools: Wang et al. 2022, arXiv 2112.08654; for event streams: PromptTPP, Xue et al. 2023, arXiv
2310.04993).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segue.errors import SegueError


class PromptPool(nn.Module):
    """Slots, each a key of `width` features and a prompt of `length` rows of them. All are drawn from U(-1, 1).

    top: slots chosen for a sequence; as many as there are slots: always all of them, in their own order.
    """

    def __init__(self, width: int, slots: int = 10, length: int = 5, top: int = 5) -> None:
        super().__init__()
        if not 1 <= top <= slots or length < 1:
            raise SegueError(f"a pool of {slots} slots of {length} rows cannot give {top}: choose from 1 to {slots}")
        self.keys = nn.Parameter(torch.rand(slots, width) * 2 - 1)
        self.prompts = nn.Parameter(torch.rand(slots, length, width) * 2 - 1)
        self.top = top

    def choose(self, query: Tensor) -> tuple[Tensor, Tensor]:
        """query (B, D) -> the slots of the nearest keys (B, top) long, nearest first, and the sum of their cosines
        (B,). Each row chooses for itself: what else is in the batch has no say."""
        cosines = F.normalize(query, dim=-1) @ F.normalize(self.keys, dim=-1).T
        if self.top == len(self.keys):
            return torch.arange(self.top, device=query.device).expand(len(query), -1), cosines.sum(-1)
        near, chosen = cosines.topk(self.top, dim=-1)
        return chosen, near.sum(-1)

    def rows(self, chosen: Tensor) -> Tensor:
        """The prompts of slots (B, top), one after the other: (B, top * length, D)."""
        return self.prompts[chosen].flatten(1, 2)


class LayerPrompts(nn.Module):
    """A pool for each of `depth` layers.

    prefix: so many first elements of a sequence choose its prompts, which nothing but what comes after them sees; so
    no prompt knows of what it helps to predict. slots, length, top: of each pool.
    centre, seen: the mean of all queries in training, and how many; keys are compared with what a query is beyond it,
    since all queries point nearly the same way.
    match: (B,) the cosines between the last queries and the keys that they chose, summed over layers; the queries
    themselves are not moved by them. An objective adds it (`segue.objectives.EventLikelihood`).
    """

    centre: Tensor
    seen: Tensor

    def __init__(self, depth: int, width: int, prefix: int, slots: int = 10, length: int = 5, top: int = 5) -> None:
        super().__init__()
        if prefix < 1:
            raise SegueError(f"prompts are chosen by the first elements of a sequence, 1 or more of them, not {prefix}")
        self.prefix, self.size = prefix, top * length
        pools = nn.ModuleList(PromptPool(width, slots, length, top) for _ in range(depth))
        self.pools: list[PromptPool] = pools  # type: ignore[assignment]
        self.match = torch.zeros(0)
        self.register_buffer("centre", torch.zeros(width))
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    def forward(self, query: Tensor, temporal: Tensor) -> list[Tensor]:
        """query (B, D): the mean of what the prefix is to the model. temporal (B, D): what is added to each row, the
        part of a prompt that is not learned by slot. -> a prompt (B, size, D) for each layer."""
        query = query.detach()
        if self.training:
            self.seen += len(query)
            self.centre += (query - self.centre).sum(0) / self.seen
        chosen = [pool.choose(query - self.centre) for pool in self.pools]
        self.match = torch.stack([cosine for _, cosine in chosen]).sum(0)
        return [pool.rows(slots) + temporal[:, None] for pool, (slots, _) in zip(self.pools, chosen)]
