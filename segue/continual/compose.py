"""Strategies made of other strategies: several combined, and one that detects the boundaries of experiences."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segue.errors import SegueError
from segue.objectives import Batch
from segue.training.checkpoint import join_groups, take_group
from segue.training.loop import Run
from segue.training.strategy import Strategy


class Combined(Strategy):
    """Several strategies combined: hooks are called in order, each getting the batch or gradients that the previous one
    left; loss terms are added."""

    def __init__(self, *strategies: Strategy) -> None:
        self.strategies = strategies
        self.name = "+".join(strategy.name for strategy in strategies)
        self.packs = all(strategy.packs for strategy in strategies)
        adapters = [strategy for strategy in strategies if strategy.about == "adapter"]
        weights = [strategy for strategy in strategies if strategy.about == "weights"]
        if adapters and (others := [*adapters[1:], *weights]):
            raise SegueError(f"{adapters[0].name} learns an adapter and not the weights that {others[0].name} is "
                             "about: leave one of the two out, or join it with replay, der or lwf")

    def prepare(self, run: Run) -> None:
        for strategy in self.strategies:
            strategy.prepare(run)

    def before_experience(self, run: Run) -> None:
        for strategy in self.strategies:
            strategy.before_experience(run)

    def before_step(self, run: Run, batch: Batch) -> Batch:
        for strategy in self.strategies:
            batch = strategy.before_step(run, batch)
        return batch

    def loss_term(self, run: Run, batch: Batch) -> Tensor | None:
        terms = [term for strategy in self.strategies if (term := strategy.loss_term(run, batch)) is not None]
        return torch.stack(terms).sum() if terms else None

    def after_backward(self, run: Run) -> None:
        for strategy in self.strategies:
            strategy.after_backward(run)

    def after_step(self, run: Run) -> None:
        for strategy in self.strategies:
            strategy.after_step(run)

    def after_experience(self, run: Run) -> None:
        for strategy in self.strategies:
            strategy.after_experience(run)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors: dict[str, Tensor] = {}
        values: dict[str, Any] = {}
        for index, strategy in enumerate(self.strategies):
            strategy_tensors, values[str(index)] = strategy.state()
            tensors |= join_groups({str(index): strategy_tensors})
        return tensors, values

    def load_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        for index, strategy in enumerate(self.strategies):
            strategy.load_state(take_group(tensors, str(index)), values[str(index)])


class Plateau:
    """Detects plateaus in a sequence of losses (Aljundi et al. 2019, arXiv 1812.03596).

    A plateau begins when the mean of the last `window` losses is below `mean` and their variance below `variance`; the
    next one only after a peak, where the mean of a window was above that of the last plateau by more than its standard
    deviation. Both thresholds are on the scale of the loss.
    """

    def __init__(self, window: int = 5, mean: float = 0.5, variance: float = 0.1) -> None:
        if window < 2:
            raise SegueError(f"a window of {window} losses has no variance: give 2 or more")
        self.mean, self.variance = mean, variance
        self.losses: deque[float] = deque(maxlen=window)
        self.peak: float | None = None  # a mean must exceed this before the next plateau

    def __call__(self, loss: float) -> bool:
        """Whether a plateau begins with this loss."""
        self.losses.append(loss)
        if len(self.losses) < (self.losses.maxlen or 0):
            return False
        mean, variance = float(np.mean(self.losses)), float(np.var(self.losses))
        if self.peak is not None:
            if mean > self.peak:
                self.peak = None
            return False
        if mean < self.mean and variance < self.variance:
            self.peak = mean + variance**0.5
            return True
        return False


class TaskFree(Strategy):
    """Runs a strategy that needs experiences on a stream without boundaries: at every plateau of the loss one
    experience ends and the next begins (`on_boundary`). The boundaries of the stream itself are ignored.

    strategy: any, for example MAS(update="hardest") as in Aljundi et al. 2019, arXiv 1812.03596.
    window, mean, variance: see `Plateau`.
    """

    def __init__(self, strategy: Strategy, window: int = 5, mean: float = 0.5, variance: float = 0.1) -> None:
        self.strategy, self.plateau = strategy, Plateau(window, mean, variance)
        self.name = f"task-free {strategy.name}"
        self.boundaries: list[int] = []  # steps, counted over all runs, after which a boundary was detected
        self.steps = 0

    def on_boundary(self, run: Run) -> None:
        self.boundaries.append(self.steps)
        self.strategy.after_experience(run)
        self.strategy.before_experience(run)

    def prepare(self, run: Run) -> None:
        parameters_before = len(list(run.model.parameters()))
        self.strategy.prepare(run)
        if len(list(run.model.parameters())) != parameters_before:
            raise SegueError(f"{self.strategy.name} needs the boundaries of experiences, since it adds to the model at "
                             "each of them: use it without TaskFree")

    def before_experience(self, run: Run) -> None:
        self.strategy.before_experience(run)

    def before_step(self, run: Run, batch: Batch) -> Batch:
        return self.strategy.before_step(run, batch)

    def loss_term(self, run: Run, batch: Batch) -> Tensor | None:
        return self.strategy.loss_term(run, batch)

    def after_backward(self, run: Run) -> None:
        self.strategy.after_backward(run)

    def after_step(self, run: Run) -> None:
        self.strategy.after_step(run)
        self.steps += 1
        if self.plateau(run.loss):
            self.on_boundary(run)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, values = self.strategy.state()
        return tensors, {"within": values, "losses": list(self.plateau.losses), "peak": self.plateau.peak,
                         "boundaries": self.boundaries, "steps": self.steps}

    def load_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        self.strategy.load_state(tensors, values["within"])
        self.plateau.losses.extend(values["losses"])
        self.plateau.peak, self.boundaries, self.steps = values["peak"], values["boundaries"], values["steps"]
