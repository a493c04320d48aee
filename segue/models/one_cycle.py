"""Fit a few parameters to a table of cases: minibatch AdamW with a one-cycle learning rate (Smith & Topin 2018, arXiv
1708.07120). For things smaller than a model, such as the gate between two models."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor


def one_cycle(parameters: Iterable[Tensor], cost: Callable[[Tensor], Tensor], cases: int, steps: int, batch: int,
              draw: torch.Generator, rate: float = 5e-3, decay: float = 0.01) -> None:
    """Minimise the mean of `cost` over `cases` by training `parameters` in place.

    cost: maps indices (B,) of cases to their costs (B,). steps: number of updates. batch: cases per update. draw:
    shuffles every pass over the cases. rate: peak learning rate. decay: weight decay.
    """
    optimiser = torch.optim.AdamW(parameters, lr=rate, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps)
    order = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        while len(order) < batch:
            order = torch.cat([order, torch.randperm(cases, generator=draw)])
        rows, order = order[:batch], order[batch:]
        loss = cost(rows).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
