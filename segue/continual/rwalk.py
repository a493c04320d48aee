"""Riemannian walk: a running Fisher information, and the decrease of the loss along each weight's path."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from segue.continual.gradients import trainable_parameters
from segue.continual.importance import PathImportance, Weights, fisher, pad_like
from segue.errors import SegueError
from segue.objectives import Batch
from segue.training.checkpoint import join_groups, take_group
from segue.training.loop import Run


class RWalk(PathImportance):
    """RWalk (Chaudhry et al. 2018, arXiv 1801.10112). The importance is F / max F + s / max s.

    F is a running mean over all steps of the squared gradient, times the elements of the batch, which estimates the
    mean of single rows' squared gradients where these are many and independent (EWC++). s is the sum over intervals of
    `every` steps of the decrease of the loss along the weight's path divided by F d^2 / 2 + damping, where d is the
    weight's change over the interval; terms are clamped at 0, and s is averaged equally with that of the earlier
    experiences. With a large damping s is proportional to the decrease of the loss alone.

    alpha: weight of each new step in F. scores: False leaves s out, which is EWC++ alone. rows: number that F is
    estimated from in an update of a model with stored data, without s; see `Importance` for the others.
    """

    name = "rwalk"
    asks_next = True  # for the Fisher information of earlier data
    default_strength = 10.0

    def __init__(self, strength: float | None = None, alpha: float = 0.9, every: int = 10, damping: float = 1e-3,
                 scores: bool = True, rows: int = 256, anneal: float = 0.0, seed: int = 0) -> None:
        super().__init__(strength, rows=rows, anneal=anneal, seed=seed)
        if not 0 < alpha <= 1 or every < 1 or damping <= 0:
            raise SegueError(f"alpha {alpha}, every {every} and damping {damping} do not fit: alpha is above 0 and at "
                             "most 1, every 1 or more steps, damping above 0")
        self.alpha, self.every, self.damping, self.scores = alpha, every, damping, scores
        self.fisher: Weights = {}
        self.score: Weights = {}  # of the earlier experiences
        self.current_score: Weights = {}  # the score of this experience so far
        self.path = {}  # within an interval: the decrease of the loss, and the weights at its start
        self.interval_start: Weights = {}
        self.count = 0

    def estimate(self, run: Run, rows: Batch) -> Weights:
        self.fisher = fisher(run.model, rows)
        return self.combined_importance()

    def combined_importance(self) -> Weights:
        parts = [self.fisher, *([self.score] if self.scores and self.score else [])]
        maxima = [max(float(value.max()) for value in part.values()) for part in parts]
        return {name: torch.stack([part[name] / max(maximum, 1e-30) for part, maximum in zip(parts, maxima)]).sum(0)
                for name in self.fisher}

    def consolidate(self, new: Weights) -> None:
        self.importance = new

    def before_experience(self, run: Run) -> None:
        super().before_experience(run)
        for weights in (self.fisher, self.score, self.current_score, self.path, self.interval_start):
            for name, value in weights.items():
                weights[name] = pad_like(value.to(run.device), self.reference[name])
        if not self.current_score:
            self.current_score, self.path = ({name: torch.zeros_like(p) for name, p in self.reference.items()}
                                             for _ in range(2))
            self.interval_start = {name: p.clone() for name, p in self.reference.items()}

    def before_step(self, run: Run, batch: Batch) -> Batch:
        self.count = batch.count
        return batch

    def after_backward(self, run: Run) -> None:
        super().after_backward(run)
        new = {name: self.count * slope.square() for name, slope in self.slope.items()}
        self.fisher = {name: value.lerp(new[name], self.alpha) for name, value in self.fisher.items()} or new

    def after_step(self, run: Run) -> None:
        super().after_step(run)
        if (run.step + 1) % self.every == 0:
            self.end_interval({name: p.detach() for name, p in trainable_parameters(run.model).items()})

    def end_interval(self, weights: Weights) -> None:
        """Add the score of an interval, and start the next one at these weights."""
        for name, p in weights.items():
            cost = self.fisher[name] * (p - self.interval_start[name]).square() / 2 + self.damping
            self.current_score[name] += (self.path[name] / cost).clamp(min=0)
            self.path[name], self.interval_start[name] = torch.zeros_like(p), p.clone()

    def learned(self, run: Run) -> Weights:
        self.score = {name: (value + self.score[name]) / 2 if name in self.score else value
                      for name, value in self.current_score.items()}
        return self.combined_importance()

    def after_experience(self, run: Run) -> None:
        super().after_experience(run)
        self.current_score, self.path, self.interval_start = {}, {}, {}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, values = super().state()
        groups = {"fisher": self.fisher, "score": self.score, "gained": self.current_score, "path": self.path,
                  "begin": self.interval_start}
        return tensors | join_groups(groups), values

    def load_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        super().load_state(tensors, values)
        self.fisher, self.score, self.current_score, self.path, self.interval_start = (
            take_group(tensors, group) for group in ("fisher", "score", "gained", "path", "begin"))
