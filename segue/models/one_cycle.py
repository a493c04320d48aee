"""Fit a handful of parameters to a table of cases: minibatch AdamW with one cycle of the learning rate (Smith & Topin
2018, arXiv 1708.07120). For what is smaller than a model, such as the gate between two of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor


def one_cycle(parameters: Iterable[Tensor], cost: Callable[[Tensor], Tensor], cases: int, steps: int, batch: int,
              draw: torch.Generator, rate: float = 5e-3, decay: float = 0.01) -> None:
    """Lower the mean of `cost`, which gives that of each case (B,) at an index (B,) of `cases`, in place.

    Every pass over the cases has an order of its own, by `draw`. rate: the highest. decay: weight decay.
    """
    optimiser = torch.optim.AdamW(parameters, lr=rate, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps)
    pick = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        while len(pick) < batch:
            pick = torch.cat([pick, torch.randperm(cases, generator=draw)])
        now, pick = pick[:batch], pick[batch:]
        loss = cost(now).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
