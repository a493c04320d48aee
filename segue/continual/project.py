"""Gradients projected so that a step does not raise the loss on old rows, to first order."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from segue.continual.gradients import gradient, trainable_parameters
from segue.continual.replay import Rehearsal
from segue.errors import SegueError
from segue.objectives import Batch
from segue.training.loop import Run


def nonnegative(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The v >= 0 (k,) that minimises v.A v / 2 + b.v, by the active-set method of Lawson & Hanson (1974): exact after
    finitely many steps. a: (k, k) symmetric and positive definite. b: (k,)."""
    v, free = np.zeros(len(b)), np.zeros(len(b), dtype=bool)
    tolerance = 1e-10 * max(1.0, float(np.abs(b).max(initial=0)))
    while True:
        slope = -(a @ v + b)
        blocked = ~free & (slope > tolerance)
        if not blocked.any():
            return v
        free[np.argmax(np.where(blocked, slope, -np.inf))] = True
        while True:
            candidate = np.zeros(len(b))
            candidate[free] = np.linalg.solve(a[np.ix_(free, free)], -b[free])
            if (candidate[free] > 0).all():
                v = candidate
                break
            infeasible = free & (candidate <= 0)
            step = np.min(v[infeasible] / (v[infeasible] - candidate[infeasible]))
            v = v + step * (candidate - v)
            free &= v > tolerance
            v[~free] = 0.0
            if not free.any():
                break


def project(direction: Tensor, constraints: Tensor, margin: float = 0.0) -> Tensor:
    """(P,) the vector nearest to `direction` whose products with all rows of `constraints` (K, P) are at least 0.

    margin: a lower bound of the multipliers of all constraints if any is violated, which favours the old rows more
    (GEM's gamma).
    """
    violated = constraints @ direction < 0
    if not bool(violated.any()):
        return direction
    length = constraints.norm(dim=1).clamp(min=1e-12)
    unit = (constraints / length[:, None]).double()
    gram = (unit @ unit.T).cpu().numpy() + 1e-9 * np.eye(len(unit))
    least = margin * length.double().cpu().numpy()
    v = least + nonnegative(gram, (unit @ direction.double()).cpu().numpy() + gram @ least)
    return (direction.double() + unit.T @ torch.from_numpy(v).to(unit)).to(direction.dtype)


class GEM(Rehearsal):
    """Gradient episodic memory (Lopez-Paz & Ranzato 2017, arXiv 1706.08840): a step may not raise the loss of the
    stored rows of any earlier experience. Costs a gradient on all stored rows of each of them, a step.

    margin: see `project`. In an update, all earlier data of the model is one experience.
    """

    name = "gem"

    def __init__(self, margin: float = 0.0, capacity: int = 200, update: str = "reservoir", seed: int = 0) -> None:
        super().__init__(capacity, update, seed)
        if margin < 0:
            raise SegueError(f"a margin of {margin} would let steps raise the loss of old rows: give 0 or more")
        self.margin = margin

    def payload(self, run: Run, rows: Batch) -> dict[str, Tensor]:
        return {"experience": torch.full((len(rows.targets),), -1 if run.past is not None else self.learned)}

    def earlier(self, run: Run) -> list[Batch]:
        """Batches of stored rows, one for each constraint: the loss of none of them may grow."""
        experiences = self.buffer.payload.get("experience", torch.zeros(0))
        return [self.buffer.rows((experiences == number).nonzero()[:, 0]) for number in experiences.unique().tolist()
                if number != self.learned]

    def after_backward(self, run: Run) -> None:
        earlier = self.earlier(run)
        if not earlier:
            return
        weights = list(trainable_parameters(run.model).values())
        direction = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in weights])
        constraints = torch.stack([torch.cat([g.flatten() for g in gradient(run.model, rows, run.objective)])
                                   for rows in earlier])
        projected = project(direction, constraints, self.margin)
        if projected is not direction:
            for p, g in zip(weights, projected.split([p.numel() for p in weights])):
                p.grad = g.view_as(p).clone()


class AGEM(GEM):
    """Averaged GEM (Chaudhry et al. 2019, arXiv 1812.00420): one constraint, from a random batch of all earlier rows.

    rows: of that batch (0: as many as a step has).
    """

    name = "agem"

    def __init__(self, rows: int = 0, capacity: int = 1000, update: str = "reservoir", seed: int = 0) -> None:
        super().__init__(0.0, capacity, update, seed)
        if rows < 0:
            raise SegueError(f"rows are 0 or more, not {rows}")
        self.rows = rows

    def earlier(self, run: Run) -> list[Batch]:
        experiences = self.buffer.payload.get("experience", torch.zeros(0))
        old = (experiences != self.learned).nonzero()[:, 0]
        if not len(old):
            return []
        chosen = torch.randperm(len(old), generator=run.generator())[: self.rows or run.plan.rows]
        return [self.buffer.rows(old[chosen])]
