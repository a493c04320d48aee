"""Regularisation by weight importance: one quadratic penalty, and several estimates of each weight's importance."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segue.continual.buffer import Buffer
from segue.continual.gradients import ROWS, evaluation_mode, row_gradients, total_nats, trainable_parameters
from segue.errors import SegueError, check_choice
from segue.models.stack import Stack, running_mean
from segue.objectives import Batch, generator_of
from segue.training.checkpoint import join_groups, take_group
from segue.training.loop import Run
from segue.training.strategy import Strategy

Weights = dict[str, Tensor]
SHARPNESS = 6.0  # of the sigmoid by which a penalty fades, over the steps until half of it is gone


class Importance(Strategy):
    """Adds strength * sum_i importance_i (theta_i - theta*_i)^2 to the loss per element, where theta* are the weights
    at the end of the experience before, and the importances of all experiences so far are summed.

    Importances are estimated at the end of an experience, from a reservoir of its rows. In an update of a model with
    stored data (`run.past`), they are first estimated from that data, before the first step.

    strength: of the penalty. The default about halved the forgetting of a small language model in an update; the best
    value depends on the scale of the loss, the rate and the optimiser. keep: factor of earlier importances at every new
    experience (online EWC's gamma; 1: no decay). rows: number that importances are estimated from. update: which rows,
    see `UPDATES`. anneal: the fraction of the steps after which the penalty has fallen to half, by a sigmoid, as in
    RecAdam (Chen et al. 2020, arXiv 2004.12651); 0: constant. New rows of a head that grew have importance 0.
    """

    about = "weights"
    default_strength: ClassVar[float] = 1.0

    def __init__(self, strength: float | None = None, keep: float = 1.0, rows: int = 256, update: str = "reservoir",
                 anneal: float = 0.0, seed: int = 0) -> None:
        self.strength = self.default_strength if strength is None else strength
        if self.strength < 0 or not 0 <= keep <= 1 or not 0 <= anneal <= 1:
            raise SegueError(f"strength {self.strength}, keep {keep} and anneal {anneal} do not fit: strength is 0 or "
                             "more, keep and anneal from 0 to 1")
        self.anneal = anneal
        self.keep, self.sample = keep, Buffer(rows, update, seed)
        self.importance: Weights = {}
        self.reference: Weights = {}  # theta*, while an experience is learned
        self.new_rows: Batch | None = None

    def estimate(self, run: Run, rows: Batch) -> Weights:
        """The importance of every weight for the targets of these rows, by name."""
        raise NotImplementedError

    def learned(self, run: Run) -> Weights:
        """The importance of every weight for the experience that was just learned."""
        assert self.sample.batch is not None
        return self.estimate(run, self.sample.batch)

    def consolidate(self, new: Weights) -> None:
        self.importance = {name: value + self.keep * pad_like(self.importance[name], value)
                           if name in self.importance else value for name, value in new.items()}

    def before_experience(self, run: Run) -> None:
        weights = trainable_parameters(run.model)
        self.importance, self.reference = ({name: t.to(run.device) for name, t in tensors.items()}
                                           for tensors in (self.importance, self.reference))
        if self.reference:
            return  # a killed run goes on
        if run.past is not None and not self.importance:
            if not run.past:
                raise SegueError(f"this model keeps no old data, so {self.name} cannot tell which weights matter: "
                                 "choose --strategy naive")
            for batch in run.past:
                self.sample.offer(batch, model=run.model)
            assert self.sample.batch is not None
            self.consolidate(self.estimate(run, self.sample.batch))
            self.sample.clear()
        for name, value in self.importance.items():
            if name not in weights or value.dim() != weights[name].dim():
                raise SegueError(f"the importances of {self.name} are of another model: '{name}' does not fit; remove "
                                 "the memory/strategy.safetensors of this model")
        self.importance = {name: pad_like(value, weights[name]) for name, value in self.importance.items()}
        self.reference = {name: p.detach().clone() for name, p in weights.items()}

    def before_step(self, run: Run, batch: Batch) -> Batch:
        self.new_rows = batch
        return batch

    def penalty_strength(self, run: Run) -> float:
        """The strength at this step."""
        if not self.anneal:
            return self.strength
        return self.strength / (1 + math.exp(SHARPNESS * (run.step / (self.anneal * run.plan.steps) - 1)))

    def loss_term(self, run: Run, batch: Batch) -> Tensor | None:
        if not self.importance or not self.strength:
            return None
        weights = trainable_parameters(run.model)
        penalties = [(value * (weights[name] - self.reference[name]).square()).sum()
                     for name, value in self.importance.items()]
        return self.penalty_strength(run) * torch.stack(penalties).sum()

    def slopes(self, run: Run) -> Weights:
        """After the backward pass, the gradient of the loss without this penalty."""
        slopes, penalty_strength = Weights(), self.penalty_strength(run)
        for name, p in trainable_parameters(run.model).items():
            slopes[name] = torch.zeros_like(p) if p.grad is None else p.grad.clone()
            if name in self.importance:
                slopes[name] -= 2 * penalty_strength * self.importance[name] * (p.detach() - self.reference[name])
        return slopes

    def after_step(self, run: Run) -> None:
        if self.new_rows is not None:
            self.sample.offer(self.new_rows, model=run.model)

    def after_experience(self, run: Run) -> None:
        self.consolidate(self.learned(run))
        self.sample.clear()
        self.reference = {}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, values = self.sample.state()
        groups = {"importance": self.importance, "reference": self.reference, "sample": tensors}
        return join_groups(groups), {"sample": values}

    def load_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        self.importance, self.reference = take_group(tensors, "importance"), take_group(tensors, "reference")
        self.sample.load_state(take_group(tensors, "sample"), values["sample"])


def pad_like(value: Tensor, like: Tensor) -> Tensor:
    """`value` in the shape of `like`, with zeros where that is larger."""
    if value.shape == like.shape:
        return value
    padded = torch.zeros_like(like)
    padded[tuple(slice(n) for n in value.shape)] = value
    return padded


def fisher(model: nn.Module, rows: Batch, nats: Callable[[nn.Module, Batch], Tensor] = total_nats) -> Weights:
    """The diagonal of the Fisher information per predicted element: each row's squared gradient of log p of its
    targets, one row at a time (not the square of a batch's mean), summed and divided by the elements.

    nats: (model, row) -> -log p. By default of the row's own targets, which is the empirical Fisher information;
    `sampled_nats` samples targets from the model."""
    total = {name: torch.zeros_like(p) for name, p in trainable_parameters(model).items()}
    for row in row_gradients(model, rows, nats):
        for into, g in zip(total.values(), row):
            into.addcmul_(g, g)
    return {name: value / rows.count for name, value in total.items()}


def sampled_nats(model: nn.Module, batch: Batch, generator: torch.Generator) -> Tensor:
    """Scalar: the sum of -log p over targets sampled from the model, where the batch has targets."""
    logits = model(batch.tokens, batch.layout).logits[batch.targets >= 0].float()
    targets = torch.multinomial(logits.detach().softmax(-1).cpu(), 1, generator=generator)[:, 0]
    return F.cross_entropy(logits, targets.to(logits.device), reduction="sum")


class EWC(Importance):
    """Elastic weight consolidation (Kirkpatrick et al. 2017, arXiv 1612.00796) with one penalty for all experiences
    (Huszar 2018); with keep below 1 online EWC (Schwarz et al. 2018, arXiv 1805.06370). The importance is half the
    Fisher information, so that `strength` is their lambda.

    labels: "data", the empirical Fisher information of the rows' own targets, or "model", of targets sampled from the
    model's predictions; see `Importance` for the others.
    """

    name = "ewc"
    asks_next = True
    default_strength = 1000.0

    def __init__(self, strength: float | None = None, keep: float = 1.0, rows: int = 256, update: str = "reservoir",
                 anneal: float = 0.0, seed: int = 0, labels: str = "data") -> None:
        super().__init__(strength, keep, rows, update, anneal, seed)
        if labels not in ("data", "model"):
            raise SegueError(f"labels of '{labels}' are unknown: choose from data, model")
        self.labels, self.seed, self.asks_logits = labels, seed, labels == "model"

    def estimate(self, run: Run, rows: Batch) -> Weights:
        nats = total_nats if self.labels == "data" else partial(sampled_nats, generator=generator_of(self.seed, 0))
        return {name: value / 2 for name, value in fisher(run.model, rows, nats).items()}


class L2(Importance):
    """The same importance for every weight: the squared distance to the previous weights (L2-SP, Li et al. 2018, arXiv
    1802.01483; with anneal, RecAdam). Keeps no data."""

    name = "l2"
    default_strength = 0.01

    def __init__(self, strength: float | None = None, anneal: float = 0.0) -> None:
        super().__init__(strength, keep=0.0, anneal=anneal)

    def before_experience(self, run: Run) -> None:
        if run.past is not None and not self.importance:
            self.importance = self.learned(run)
        super().before_experience(run)

    def before_step(self, run: Run, batch: Batch) -> Batch:
        return batch

    def learned(self, run: Run) -> Weights:
        return {name: torch.ones_like(p) for name, p in trainable_parameters(run.model).items()}


def representation(model: nn.Module, batch: Batch) -> Tensor:
    """(B, T, D): the model's hidden vectors, pooled where the model pools.

    For a stack, those before its last norm: the length of a normed vector does not depend on the weights, so that its
    gradient would say nothing about their importance.
    """
    stack = getattr(model, "backbone", model)
    layout = batch.layout
    if not isinstance(stack, Stack):
        return model(batch.tokens, layout).hidden
    x = stack.embed(batch.tokens, layout.positions)
    for index in range(len(stack.blocks)):
        x = stack.run_block(index, x, layout)
    return running_mean(x, layout) if stack.config.pool or getattr(model, "pool", "") else x


def squared_length(model: nn.Module, batch: Batch) -> Tensor:
    """Scalar: ||F||^2, the squared length of the hidden vector, the mean over target elements."""
    target_mask = batch.targets >= 0
    return (representation(model, batch).float().square().sum(-1) * target_mask).sum() / target_mask.sum()


def score_length(model: nn.Module, batch: Batch) -> Tensor:
    """Scalar: ||F||^2, the squared length of the scores, the mean over target elements."""
    target_mask = batch.targets >= 0
    return (model(batch.tokens, batch.layout).logits.float().square().sum(-1) * target_mask).sum() / target_mask.sum()


LENGTHS = {"hidden": squared_length, "scores": score_length}


class MAS(Importance):
    """Memory-aware synapses (Aljundi et al. 2018, arXiv 1711.09601): the sensitivity of the output's squared length to
    each weight, the mean over rows of |d ||F||^2 / d theta_i|, one row at a time. Uses the positions of targets, not
    their values.

    of: "hidden", F is the hidden vector that the head reads (see `representation`), or "scores", the head's outputs,
    for small vocabularies. vectorised: see `row_gradients`.
    """

    name = "mas"
    asks_next = True
    asks_logits = True
    default_strength = 0.3

    def __init__(self, strength: float | None = None, keep: float = 1.0, rows: int = 256, of: str = "hidden",
                 vectorised: bool = False, update: str = "reservoir", anneal: float = 0.0, seed: int = 0) -> None:
        super().__init__(strength, keep, rows, update, anneal, seed)
        check_choice("importance of", of, LENGTHS)
        self.of, self.vectorised = LENGTHS[of], vectorised

    def estimate(self, run: Run, rows: Batch) -> Weights:
        total = {name: torch.zeros_like(p) for name, p in trainable_parameters(run.model).items()}
        for row in row_gradients(run.model, rows, self.of, self.vectorised):
            for into, g in zip(total.values(), row):
                into.add_(g.abs())
        return {name: value / len(rows.targets) for name, value in total.items()}


class LocalMAS(Importance):
    """The Hebbian form of MAS: for each linear layer, F is its output y = W x + b, so that a weight's importance is the
    mean over elements of 2 |y_i| |x_j|. One forward pass; only weights of linear layers are regularised."""

    name = "local-mas"
    asks_next = True
    asks_logits = True

    def estimate(self, run: Run, rows: Batch) -> Weights:
        total = {name: torch.zeros_like(p) for name, p in trainable_parameters(run.model).items()}
        names = {id(p): name for name, p in trainable_parameters(run.model).items()}
        for begin in range(0, len(rows.targets), ROWS):
            batch = rows.rows(slice(begin, begin + ROWS)).to(run.device)
            share = 2 * len(batch.targets) / len(rows.targets)
            with record_linear_calls(run.model) as calls, evaluation_mode(run.model), torch.no_grad():
                run.model(batch.tokens, batch.layout)
            for layer, x, y in calls:
                x, y = x.flatten(0, -2).float().abs(), y.flatten(0, -2).float().abs()
                if id(layer.weight) in names:
                    total[names[id(layer.weight)]] += share * y.T @ x / len(x)
                if layer.bias is not None and id(layer.bias) in names:
                    total[names[id(layer.bias)]] += share * y.mean(0)
        return total


@contextmanager
def record_linear_calls(model: nn.Module) -> Iterator[list[tuple[nn.Linear, Tensor, Tensor]]]:
    """Context that records (layer, input, output) of every call of a linear layer."""
    calls: list[tuple[nn.Linear, Tensor, Tensor]] = []
    hooks = [module.register_forward_hook(lambda layer, inputs, output: calls.append((layer, inputs[0], output)))
             for module in model.modules() if isinstance(module, nn.Linear)]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


class PathImportance(Importance):
    """Importances from the decrease of the loss along each weight's path, -sum_t g_i dtheta_i over the steps. The
    gradient is that of the loss without this penalty."""

    path: Weights
    slope: Weights  # within a step: the gradient, and the weights before it
    last_weights: Weights

    def before_step(self, run: Run, batch: Batch) -> Batch:
        return batch

    def after_backward(self, run: Run) -> None:
        self.last_weights = {name: p.detach().clone() for name, p in trainable_parameters(run.model).items()}
        self.slope = self.slopes(run)

    def after_step(self, run: Run) -> None:
        for name, p in trainable_parameters(run.model).items():
            self.path[name] -= self.slope[name] * (p.detach() - self.last_weights[name])


class SI(PathImportance):
    """Synaptic intelligence (Zenke, Poole & Ganguli 2017, arXiv 1703.04200): a weight's contribution to the decrease of
    the loss along its path, divided by its squared total change + damping, and clamped at 0.

    For earlier experiences without a recorded path (`run.past`), the importance is half the Fisher information: for a
    quadratic loss the two are equal.
    """

    name = "si"
    asks_next = True  # for the Fisher information of earlier data
    default_strength = 100.0

    def __init__(self, strength: float | None = None, keep: float = 1.0, rows: int = 256, damping: float = 1e-3,
                 anneal: float = 0.0, seed: int = 0) -> None:
        super().__init__(strength, keep, rows, anneal=anneal, seed=seed)
        if damping <= 0:
            raise SegueError(f"a damping of {damping} divides by 0 where a weight stays: give one above 0")
        self.damping = damping
        self.path = {}

    def estimate(self, run: Run, rows: Batch) -> Weights:
        return {name: value / 2 for name, value in fisher(run.model, rows).items()}

    def before_experience(self, run: Run) -> None:
        super().before_experience(run)
        self.path = {name: self.path[name].to(run.device) if name in self.path else torch.zeros_like(p)
                     for name, p in self.reference.items()}

    def learned(self, run: Run) -> Weights:
        return {name: self.path[name].clamp(min=0) / ((p.detach() - self.reference[name]).square() + self.damping)
                for name, p in trainable_parameters(run.model).items()}

    def after_experience(self, run: Run) -> None:
        super().after_experience(run)
        self.path = {}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, values = super().state()
        return tensors | join_groups({"path": self.path}), values

    def load_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        super().load_state(tensors, values)
        self.path = take_group(tensors, "path")
