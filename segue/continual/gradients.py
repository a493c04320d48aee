"""Losses and gradients that strategies compute outside of training: of single rows, and after a trial step.

Nothing here changes the weights, `parameter.grad`, the optimiser or the random numbers of training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from segue.models.point_process import PointProcess
from segue.objectives import Batch, EventLikelihood, Objective

ROWS = 16  # processed at a time


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that require gradients, by name; tied ones once."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Context with the model in eval mode; afterwards its mode and torch's random state are restored."""
    training = model.training
    model.eval()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        model.train(training)


def total_nats(model: nn.Module, batch: Batch) -> Tensor:
    """Scalar: the sum of -log p over all targets; of a point process, of their times too."""
    if isinstance(model, PointProcess):
        return EventLikelihood()(model, batch).total
    logits = model(batch.tokens, batch.layout).logits.float()
    return F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=-1, reduction="sum")


@torch.no_grad()
def row_nats(model: nn.Module, batch: Batch, rows: int = ROWS) -> Tensor:
    """(B,): the sum of -log p over the targets of each row; of a point process, of their times too. rows: processed at
    a time."""
    device, losses = next(model.parameters()).device, []
    with evaluation_mode(model):
        if isinstance(model, PointProcess):
            return torch.stack([total_nats(model, batch.rows(slice(row, row + 1)).to(device))
                                for row in range(len(batch.tokens))]).float().cpu()
        for begin in range(0, len(batch.tokens), rows):
            piece = batch.rows(slice(begin, begin + rows)).to(device)
            logits = model(piece.tokens, piece.layout).logits.float()
            nats = F.cross_entropy(logits.flatten(0, 1), piece.targets.flatten(), ignore_index=-1, reduction="none")
            losses.append(nats.view(piece.targets.shape).sum(1))
    return torch.cat(losses).cpu()


def gradient(model: nn.Module, batch: Batch, objective: Objective) -> list[Tensor]:
    """The gradient of the loss per element for each of `trainable_parameters(model)`; zeros if one is not used."""
    device = next(model.parameters()).device
    with evaluation_mode(model), torch.enable_grad():
        total = objective(model, batch.to(device)).total / batch.count
        return list(torch.autograd.grad(total, list(trainable_parameters(model).values()), allow_unused=True,
                                        materialize_grads=True))


def row_gradients(model: nn.Module, batch: Batch, of: Callable[[nn.Module, Batch], Tensor] = total_nats,
                  vectorised: bool = False) -> Iterator[Sequence[Tensor]]:
    """For each row, the gradient of the scalar `of(model, row)` for each of `trainable_parameters(model)`.

    vectorised: all rows at once by torch.func.vmap, for models that it can trace and rows of tokens and targets only;
    much faster for small networks, with memory for rows x parameters.
    """
    weights = trainable_parameters(model)
    batch = batch.to(next(iter(weights.values())).device)
    with evaluation_mode(model), torch.enable_grad():
        if vectorised:
            class Scalar(nn.Module):  # `of` as a module, for functional_call
                def __init__(self) -> None:
                    super().__init__()
                    self.model = model

                def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
                    return of(self.model, Batch(tokens[None], targets[None]))

            scalar = Scalar()

            def row_scalar(values: dict[str, Tensor], tokens: Tensor, targets: Tensor) -> Tensor:
                return functional_call(scalar, values, (tokens, targets))

            values = {f"model.{name}": p.detach() for name, p in weights.items()}
            gradients = vmap(grad(row_scalar), in_dims=(None, 0, 0))(values, batch.tokens, batch.targets)
            yield from zip(*gradients.values())
            return
        for index in range(len(batch.tokens)):
            yield torch.autograd.grad(of(model, batch.rows(slice(index, index + 1))), list(weights.values()),
                                      allow_unused=True, materialize_grads=True)


@contextmanager
def virtual_step(model: nn.Module, direction: Sequence[Tensor], rate: float) -> Iterator[None]:
    """Context with the weights at theta - rate * direction; afterwards they are restored exactly."""
    weights = list(trainable_parameters(model).values())
    before = [p.detach().clone() for p in weights]
    with torch.no_grad():
        for p, step in zip(weights, direction):
            p.sub_(step, alpha=rate)
    try:
        yield
    finally:
        with torch.no_grad():
            for p, saved in zip(weights, before):
                p.copy_(saved)
