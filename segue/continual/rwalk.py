"""Riemannian walk: a running Fisher information, and how much the path of each weight lowered the loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from segue.continual.gradients import trainable_parameters
from segue.continual.importance import Importance, Weights, fisher, pad_like
from segue.errors import SegueError
from segue.objectives import Batch
from segue.training.loop import Run


class RWalk(Importance):
    """RWalk (Chaudhry et al. 2018, arXiv 1801.10112). The importance is F / max F + s / max s.

    F is a running mean over all steps of the squared gradient, times the elements of the batch, which makes it the mean
    of single rows' where these are many and independent (EWC++). s is, summed over stretches of `every` steps, how much
    the loss fell by a weight's way over F d^2 / 2 + damping, d being how far it came; below 0 it is 0, and it is
    averaged half and half with that of the experiences before. A large damping leaves the fall of the loss alone.

    alpha: the part of each new step in F. scores: False leaves s out, which is EWC++ alone. rows: that F is estimated
    from where a model learned before, without s; see `Importance` for these and the others.
    """

    name = "rwalk"
    default_strength = 10.0

    def __init__(self, strength: float | None = None, alpha: float = 0.9, every: int = 10, damping: float = 1e-3,
                 scores: bool = True, rows: int = 256, anneal: float = 0.0, seed: int = 0) -> None:
        super().__init__(strength, rows=rows, anneal=anneal, seed=seed)
        if not 0 < alpha <= 1 or every < 1 or damping <= 0:
            raise SegueError(f"alpha {alpha}, every {every} and damping {damping} do not fit: alpha is above 0 and at "
                             "most 1, every 1 or more steps, damping above 0")
        self.alpha, self.every, self.damping, self.scores = alpha, every, damping, scores
        self.fisher: Weights = {}
        self.score: Weights = {}  # of the experiences before
        self.gained: Weights = {}  # the score of this one so far
        self.path: Weights = {}  # within a stretch: how much the loss fell, and where the weights began
        self.begin: Weights = {}
        self.slope: Weights = {}  # within a step: the gradient, and where the weights stood
        self.stood: Weights = {}
        self.count = 0

    def estimate(self, run: Run, rows: Batch) -> Weights:
        self.fisher = fisher(run.model, rows)
        return self.weighed()

    def weighed(self) -> Weights:
        parts = [self.fisher, *([self.score] if self.scores and self.score else [])]
        tops = [max(float(value.max()) for value in part.values()) for part in parts]
        return {name: torch.stack([part[name] / max(top, 1e-30) for part, top in zip(parts, tops)]).sum(0)
                for name in self.fisher}

    def consolidate(self, new: Weights) -> None:
        self.importance = new

    def before_experience(self, run: Run) -> None:
        super().before_experience(run)
        for kept in (self.fisher, self.score, self.gained, self.path, self.begin):
            for name, value in kept.items():
                kept[name] = pad_like(value.to(run.device), self.reference[name])
        if not self.gained:
            self.gained, self.path = ({name: torch.zeros_like(p) for name, p in self.reference.items()}
                                      for _ in range(2))
            self.begin = {name: p.clone() for name, p in self.reference.items()}

    def before_step(self, run: Run, batch: Batch) -> Batch:
        self.count = batch.count
        return batch

    def after_backward(self, run: Run) -> None:
        self.slope = self.slopes(run)
        self.stood = {name: p.detach().clone() for name, p in trainable_parameters(run.model).items()}
        new = {name: self.count * slope.square() for name, slope in self.slope.items()}
        self.fisher = {name: value.lerp(new[name], self.alpha) for name, value in self.fisher.items()} or new

    def after_step(self, run: Run) -> None:
        weights = {name: p.detach() for name, p in trainable_parameters(run.model).items()}
        for name, p in weights.items():
            self.path[name] -= self.slope[name] * (p - self.stood[name])
        if (run.step + 1) % self.every == 0:
            self.stretch(weights)

    def stretch(self, weights: Weights) -> None:
        """The end of a stretch: its score, and the next one begins here."""
        for name, p in weights.items():
            cost = self.fisher[name] * (p - self.begin[name]).square() / 2 + self.damping
            self.gained[name] += (self.path[name] / cost).clamp(min=0)
            self.path[name], self.begin[name] = torch.zeros_like(p), p.clone()

    def learned(self, run: Run) -> Weights:
        self.score = {name: (value + self.score[name]) / 2 if name in self.score else value
                      for name, value in self.gained.items()}
        return self.weighed()

    def after_experience(self, run: Run) -> None:
        super().after_experience(run)
        self.gained, self.path, self.begin = {}, {}, {}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, values = super().state()
        named = {"fisher": self.fisher, "score": self.score, "gained": self.gained, "path": self.path,
                 "begin": self.begin}
        return tensors | {f"{kind}.{name}": t for kind, kept in named.items() for name, t in kept.items()}, values

    def load_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        super().load_state(tensors, values)
        self.fisher, self.score, self.gained, self.path, self.begin = (
            {name.removeprefix(f"{kind}."): t for name, t in tensors.items() if name.startswith(f"{kind}.")}
            for kind in ("fisher", "score", "gained", "path", "begin"))
