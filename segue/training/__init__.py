"""Training: the loop, the recipe, checkpoints, several processes, evaluation; `fit` puts them together."""

from __future__ import annotations

from segue.training.batches import Arrays, Batches
from segue.training.loop import Run
from segue.training.recipe import Plan
from segue.training.strategy import Strategy

__all__ = ["Arrays", "Batches", "Plan", "Run", "Strategy"]
