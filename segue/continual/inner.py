"""Tune a copy of a model on a few rows, as a function of its weights: the inner loop of a task (Finn et al. 2017, arXiv
1703.03400), with rates of each weight and step that can be learned (Antoniou et al. 2019, arXiv 1810.09502)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call

from segue.continual.buffer import Recent
from segue.continual.gradients import trainable_parameters
from segue.errors import SegueError
from segue.models.base import Output
from segue.objectives import Batch, ClassLoss, Objective, generator_of

Weights = dict[str, Tensor]


class _Loss(nn.Module):
    """A model's objective as a module, for `functional_call`."""

    def __init__(self, model: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, batch: Batch) -> Tensor:
        return self.objective(self.model, batch).total / batch.count


class InnerLoop(nn.Module):
    """Gradient descent from a model's weights, which stay as they are.

    model: any. steps: taken on each set. rate: initial rate of every weight and step. objective: default `ClassLoss`
    over all classes of the head. learned: train the rates, as logarithms `log_rates` (steps, trained weights), by the
    loss after tuning; gradients then flow through the tuning (second order) wherever they are recorded.

    The model is in evaluation mode: no dropout, and no batch statistics.
    """

    def __init__(self, model: nn.Module, steps: int = 5, rate: float = 0.01, objective: Objective | None = None,
                 learned: bool = False) -> None:
        super().__init__()
        if steps < 1 or rate <= 0:
            raise SegueError(f"{steps} steps at rate {rate} tune nothing: give one or more, and a rate above 0")
        self.model, self.steps, self.learned = model, steps, learned
        self._loss = _Loss(model, objective or ClassLoss("all"))
        rates = torch.full((steps, len(trainable_parameters(model))), math.log(rate))
        self.log_rates = nn.Parameter(rates, requires_grad=learned)
        self.eval()

    def start(self) -> Weights:
        """The model's weights, as the start of the loop; attached to the graph if rates are learned."""
        return {name: p if self.learned else p.detach() for name, p in trainable_parameters(self.model).items()}

    def loss(self, weights: Weights, batch: Batch) -> Tensor:
        """Scalar: the objective per target element with these weights."""
        value: Tensor = functional_call(self._loss, {f"model.{name}": w for name, w in weights.items()}, (batch,))
        return value

    def learn(self, weights: Weights, batches: Batch | Callable[[int], Batch]) -> Weights:
        """The weights after `steps` steps. batches: the rows of all steps, or those of each one."""
        second_order = self.learned and torch.is_grad_enabled()
        rates = self.log_rates.exp() if second_order else self.log_rates.detach().exp()
        for step in range(self.steps):
            with torch.enable_grad():
                if not second_order:
                    weights = {name: w.detach().requires_grad_() for name, w in weights.items()}
                loss = self.loss(weights, batches(step) if callable(batches) else batches)
                slopes = torch.autograd.grad(loss, list(weights.values()), create_graph=second_order, allow_unused=True,
                                             materialize_grads=True)
            with torch.set_grad_enabled(second_order):
                weights = {name: w - rate * slope for (name, w), rate, slope in
                           zip(weights.items(), rates[step], slopes)}
        return weights

    def scores(self, weights: Weights, batch: Batch) -> Tensor:
        """(M, C): the scores at the target elements with these weights."""
        output: Output = functional_call(self.model, weights, (batch.tokens, batch.layout))
        return output.logits[batch.targets >= 0]


def tuned(inner: InnerLoop, sets: list[Batch], recall: int = 0, queue: int = 0, seed: int = 0) -> Weights:
    """The weights after learning the sets in order (2022, arXiv 2209.07863).

    recall: rows of earlier sets, drawn at each step, that are added to the new ones (0: plain tuning). queue: number of
    latest sets that are kept for that. The number of steps is the same either way.
    """
    weights, memory = inner.start(), Recent(queue)
    for number, rows in enumerate(sets):
        def batch(step: int, rows: Batch = rows, number: int = number) -> Batch:
            if not recall or not len(memory):
                return rows
            drawn = memory.draw(recall, generator_of(seed, number * inner.steps + step))
            return Batch.join([rows, memory.rows(drawn)])

        weights = inner.learn(weights, batch)
        memory.offer(rows)
    return weights
