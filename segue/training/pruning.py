"""Magnitude pruning: the smallest weights go to zero on a schedule while the others learn on (Zhu & Gupta 2017,
arXiv 1710.01878)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from segue.training.strategy import Strategy

if TYPE_CHECKING:
    from segue.training.loop import Run


class Prune(Strategy):
    """Prunes the weights in matrices (not in tables, norms or biases) by magnitude.

    share: of these weights that is zero in the end; at fraction t of the schedule, (1 - (1 - t)^3) * share of them is.
    until: the fraction of the steps at which the schedule ends. every: steps between two choices. Pruned weights stay
    zero. The tensors stay dense: smaller when compressed, not faster.
    """

    name = "prune"

    def __init__(self, share: float, until: float = 0.7, every: int = 10) -> None:
        self.share, self.until, self.every = share, until, every
        self.kept: dict[str, Tensor] = {}

    def after_step(self, run: Run) -> None:
        self._cut(run)  # first, or what was zero would compete again
        if run.step % self.every == 0:
            t = min(1.0, (run.step + 1) / (self.until * run.plan.steps))
            self._choose(run, self.share * (1 - (1 - t) ** 3))

    def after_experience(self, run: Run) -> None:
        self._cut(run)  # averaged or earlier weights may have been kept
        self._choose(run, self.share)

    def _matrices(self, run: Run) -> dict[str, nn.Parameter]:
        return {name: p for group in ("matrix", "weight") for name, p in run.optimiser.groups.get(group, {}).items()}

    @torch.no_grad()
    def _cut(self, run: Run) -> None:
        for name, weight in self._matrices(run).items():
            if name in self.kept:
                weight.mul_(self.kept[name].to(weight.device))

    @torch.no_grad()
    def _choose(self, run: Run, share: float) -> None:
        weights = self._matrices(run)
        sizes = torch.cat([weight.abs().flatten() for weight in weights.values()])
        count = round(share * len(sizes))
        if count:
            limit = sizes.kthvalue(count).values
            self.kept = {name: weight.abs() > limit for name, weight in weights.items()}
            self._cut(run)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return self.kept, {}

    def load_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        self.kept = tensors
