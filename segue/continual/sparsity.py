"""Leave room for later experiences: representations in which few neighbouring units are active at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from segue.continual.buffer import Buffer
from segue.continual.gradients import evaluation_mode
from segue.continual.importance import squared_length
from segue.errors import SegueError
from segue.models.stack import ChannelMixer
from segue.objectives import Batch
from segue.training.checkpoint import join_groups, take_group
from segue.training.loop import Run
from segue.training.strategy import Strategy


def inhibition(h: Tensor, sigma: float, importance: Tensor | None = None) -> Tensor:
    """Scalar: the mean over rows of sum_{i != j} e^{-(i - j)^2 / (2 sigma^2)} e^{-(a_i + a_j)} |h_i| |h_j|.

    h: (N, H) activations. sigma: reach of the inhibition between units, in units (inf: all of them equally).
    importance: a, (H,) of the units for earlier experiences, which are inhibited less; None is 0.
    """
    h = h.abs() if importance is None else h.abs() * torch.exp(-importance)
    positions = torch.arange(h.shape[-1], device=h.device, dtype=h.dtype)
    weights = torch.exp(-(positions[:, None] - positions).square() / (2 * sigma**2))
    weights.fill_diagonal_(0.0)
    return ((h @ weights) * h).sum(-1).mean()


@contextmanager
def activations(model: nn.Module) -> Iterator[list[Tensor]]:
    """Context that records the hidden activations (..., H) of forward passes, layer by layer: inside a stack's channel
    mixers, and the outputs of other networks' ReLUs."""
    recorded: list[Tensor] = []
    hooks = [module.out.register_forward_pre_hook(lambda _, inputs: recorded.append(inputs[0]))
             for module in model.modules() if isinstance(module, ChannelMixer)]
    hooks += [module.register_forward_hook(lambda _, inputs, output: recorded.append(output))
              for module in model.modules() if isinstance(module, nn.ReLU)]
    try:
        yield recorded
    finally:
        for hook in hooks:
            hook.remove()


class SLNID(Strategy):
    """Selfless learning: sparse coding through local neural inhibition and discounting (Aljundi et al. 2019, arXiv
    1806.05421). Adds strength * `inhibition` of the hidden activations, the mean over elements, summed over layers.

    It leaves capacity free but protects no weights: combine it, as in Combined(MAS(), SLNID()). A unit's importance is
    the mean over rows of |d ||F||^2 / d h_i|, with the unit changed equally at all elements (see
    `segue.continual.importance.squared_length`), summed over experiences. Costs one more forward pass a step.

    sigma: reach of the inhibition in units (0: a sixth of the layer). rows: that importances are estimated from.
    """

    name = "slnid"
    asks_next = True
    asks_logits = True

    def __init__(self, strength: float = 1e-3, sigma: float = 0.0, rows: int = 64, seed: int = 0) -> None:
        if strength < 0 or sigma < 0:
            raise SegueError(f"strength {strength} and sigma {sigma} do not fit: both are 0 or more")
        self.strength, self.sigma = strength, sigma
        self.sample = Buffer(rows, seed=seed)
        self.importance: list[Tensor] = []  # of each layer's units
        self.new_rows: Batch | None = None

    def before_step(self, run: Run, batch: Batch) -> Batch:
        self.new_rows = batch
        return batch

    def loss_term(self, run: Run, batch: Batch) -> Tensor:
        with activations(run.model) as layers:
            run.model(batch.tokens, batch.layout)
        if not layers:
            raise SegueError(f"a {type(run.model).__name__} has no hidden activations to hold sparse: it has neither "
                             "channel mixers nor ReLUs")
        terms = []
        for index, h in enumerate(layers):
            importance = self.importance[index].to(h) if self.importance else None
            terms.append(inhibition(h.flatten(0, -2).float(), self.sigma or h.shape[-1] / 6, importance))
        return self.strength * torch.stack(terms).sum()

    def after_step(self, run: Run) -> None:
        if self.new_rows is not None:
            self.sample.offer(self.new_rows)

    def after_experience(self, run: Run) -> None:
        assert self.sample.batch is not None
        rows = self.sample.batch.to(run.device)
        count = len(rows.targets)
        total: list[Tensor] = []
        for index in range(count):
            with evaluation_mode(run.model), torch.enable_grad(), activations(run.model) as layers:
                slopes = torch.autograd.grad(squared_length(run.model, rows.rows(slice(index, index + 1))), layers,
                                             allow_unused=True, materialize_grads=True)
            row_importance = [g.flatten(0, -2).sum(0).abs() / count for g in slopes]
            total = [a + b for a, b in zip(total, row_importance)] if total else row_importance
        self.importance = [a.to(b) + b for a, b in zip(self.importance, total)] if self.importance else total
        self.sample.clear()

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, values = self.sample.state()
        importance = {str(index): t for index, t in enumerate(self.importance)}
        return join_groups({"sample": tensors, "importance": importance}), {"sample": values}

    def load_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        self.sample.load_state(take_group(tensors, "sample"), values["sample"])
        importance = take_group(tensors, "importance")
        self.importance = [importance[str(index)] for index in range(len(importance))]
