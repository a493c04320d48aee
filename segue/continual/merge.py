"""Interpolation, or extrapolation, between the weights before and after an experience."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from segue.errors import SegueError
from segue.models.delta import Delta
from segue.training.loop import Run
from segue.training.strategy import Strategy


class Merge(Strategy):
    """Plain training that ends at theta* + scale (theta - theta*), where theta* are the weights before the experience:
    WiSE-FT (Wortsman et al. 2022, arXiv 2109.01903) for a scale between 0 and 1, a scaled task vector (Ilharco et al.
    2023, arXiv 2212.04089) for any.

    scale: 1 keeps all that was learned, 0 nothing.
    """

    name = "merge"
    about = "weights"

    def __init__(self, scale: float = 0.5) -> None:
        if scale < 0:
            raise SegueError(f"a scale of {scale} would unlearn the new data: give 0 or more")
        self.scale = scale
        self.initial_weights: dict[str, Tensor] = {}

    def before_experience(self, run: Run) -> None:
        if not self.initial_weights:  # else a killed run goes on
            self.initial_weights = {name: p.detach().clone() for name, p in run.model.named_parameters()}

    def after_experience(self, run: Run) -> None:
        before = {name: t.to(run.device) for name, t in self.initial_weights.items()}
        (Delta.between(run.model, before) * (self.scale - 1)).apply(run.model)
        self.initial_weights = {}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return dict(self.initial_weights), {}

    def load_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        self.initial_weights = dict(tensors)
