"""What strategies compute beside training: losses and gradients of single rows, and a trial step.

Nothing here moves the weights, touches `parameter.grad` or the optimiser, or draws random numbers that training uses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from segue.objectives import Batch, Objective

ROWS = 16  # whose logits are held at a time


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that learn, by name, each tied one once."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


@contextmanager
def aside(model: nn.Module) -> Iterator[None]:
    """The model as it is used (no dropout); its mode and torch's random numbers are given back as they were."""
    training = model.training
    model.eval()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        model.train(training)


def nats(model: nn.Module, batch: Batch) -> Tensor:
    """Scalar: -log p of all that is asked for, summed."""
    logits = model(batch.tokens, batch.layout).logits.float()
    return F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=-1, reduction="sum")


@torch.no_grad()
def row_nats(model: nn.Module, batch: Batch, rows: int = ROWS) -> Tensor:
    """(B,): -log p of what each row asks for, summed over the row. rows: how many are read at a time."""
    device, found = next(model.parameters()).device, []
    with aside(model):
        for at in range(0, len(batch.tokens), rows):
            part = batch.rows(slice(at, at + rows)).to(device)
            logits = model(part.tokens, part.layout).logits.float()
            lost = F.cross_entropy(logits.flatten(0, 1), part.targets.flatten(), ignore_index=-1, reduction="none")
            found.append(lost.view(part.targets.shape).sum(1))
    return torch.cat(found).cpu()


def gradient(model: nn.Module, batch: Batch, objective: Objective) -> list[Tensor]:
    """Of the loss per element, for each of `trained(model)`: zeros where a parameter has no part in it."""
    device = next(model.parameters()).device
    with aside(model), torch.enable_grad():
        total = objective(model, batch.to(device)).total / batch.count
        return list(torch.autograd.grad(total, list(trained(model).values()), allow_unused=True,
                                        materialize_grads=True))


def row_gradients(model: nn.Module, batch: Batch, of: Callable[[nn.Module, Batch], Tensor] = nats,
                  vectorised: bool = False) -> Iterator[Sequence[Tensor]]:
    """For each row alone the gradient of the scalar `of(model, row)`, for each of `trained(model)`.

    vectorised: all rows at once by torch.func.vmap, for models that it can trace and rows without marks: much faster
    for a small network, more memory (rows x parameters).
    """
    weights = trained(model)
    batch = batch.to(next(iter(weights.values())).device)
    with aside(model), torch.enable_grad():
        if vectorised:
            class Asked(nn.Module):  # `of`, as a module whose weights can be given
                def __init__(self) -> None:
                    super().__init__()
                    self.model = model

                def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
                    return of(self.model, Batch(tokens[None], targets[None]))

            asked = Asked()

            def one(values: dict[str, Tensor], tokens: Tensor, targets: Tensor) -> Tensor:
                return functional_call(asked, values, (tokens, targets))

            values = {f"model.{name}": p.detach() for name, p in weights.items()}
            found = vmap(grad(one), in_dims=(None, 0, 0))(values, batch.tokens, batch.targets)
            yield from zip(*found.values())
            return
        for index in range(len(batch.tokens)):
            yield torch.autograd.grad(of(model, batch.rows(slice(index, index + 1))), list(weights.values()),
                                      allow_unused=True, materialize_grads=True)


@contextmanager
def virtual_step(model: nn.Module, direction: Sequence[Tensor], rate: float) -> Iterator[None]:
    """Inside, the weights stand at theta - rate * direction; afterwards they are, bit for bit, what they were."""
    weights = list(trained(model).values())
    before = [p.detach().clone() for p in weights]
    with torch.no_grad():
        for p, step in zip(weights, direction):
            p.sub_(step, alpha=rate)
    try:
        yield
    finally:
        with torch.no_grad():
            for p, was in zip(weights, before):
                p.copy_(was)
