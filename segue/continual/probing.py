"""Probing accuracy: how well the backbone's features classify all experiences, apart from the model's own head (Zheng
et al. 2024, arXiv 2312.07887)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from segue.analysis.probes import PROBES, features_of, probe
from segue.continual.buffer import labels_of
from segue.errors import check_choice
from segue.objectives import Batch
from segue.training.loop import Run
from segue.training.strategy import Strategy


class Probing(Strategy):
    """Fits a new head to the features of all experiences, before the first one and after each; the model is unchanged.

    train, test: rows of all experiences that the head is fitted to and measured on. kind: one of PROBES. choices: of
    `segue.analysis.probes.fitted_head`. accuracies: measured so far, the first before any training.
    """

    name = "probing"

    def __init__(self, train: Batch, test: Batch, kind: str = "linear", **choices: Any) -> None:
        check_choice("probe", kind, PROBES)
        self.train, self.test, self.kind, self.choices = train, test, kind, choices
        self.accuracies: list[float] = []

    def before_experience(self, run: Run) -> None:
        if not self.accuracies:
            self.accuracies.append(self.measure(run))

    def after_experience(self, run: Run) -> None:
        self.accuracies.append(self.measure(run))

    def measure(self, run: Run) -> float:
        def read(batch: Batch) -> tuple[Tensor, Tensor]:
            batch = batch.to(run.device)
            last = batch.targets.shape[1] - 1 - (batch.targets >= 0).int().flip(1).argmax(1)
            return features_of(run.model, batch.tokens, last), torch.tensor(labels_of(batch), device=run.device)

        return probe(self.kind, read(self.train), read(self.test), **self.choices)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {}, {"found": self.accuracies}

    def load_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        self.accuracies = values["found"]
