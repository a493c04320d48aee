"""Train any model on sampled batches with the training loop, for tasks, claims and experiments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from segue.objectives import Batch, Objective, generator_of
from segue.training.loop import Run
from segue.training.recipe import Plan
from segue.training.strategy import Strategy


def learn(model: nn.Module, batches: Callable[[int], Batch], steps: int, *, rate: float = 3e-3, seed: int = 0,
          objective: Objective | None = None, strategy: Strategy | None = None, quiet: bool = True,
          held_out: Callable[[nn.Module], float] | None = None, **choices: Any) -> Run:
    """Train the model for `steps` steps of AdamW on its device. Returns the finished `Run`, with the learning curve.

    batches: maps a step to its batch, as a pure function (see `Task.batches`). rate: the learning rate; the mixers'
    state parameters learn at most at 0.001. held_out: a score of the model, lower is better, for early stopping with
    the best weights (choose `patience`). choices: any other entry of `Plan` (warmup, decay, clip ...).
    """
    first = batches(0).targets
    plan = Plan(vocabulary=1, rows=first.shape[0], context=first.shape[1], steps=steps, seed=seed, muon=False,
                rate=rate, table_rate=rate, vector_rate=rate, state_rate=min(rate, 1e-3), decay=0.0, warmup=0.05,
                threads=torch.get_num_threads())
    run = Run(model, batches, plan.with_(**choices), objective=objective, strategy=strategy,
              held_out=held_out)
    run.train(quiet=quiet)
    return run


def minibatches(data: Batch, rows: int, seed: int = 0) -> Callable[[int], Batch]:
    """Batches for `learn` of random rows of a fixed set, with replacement."""
    def batch(step: int) -> Batch:
        return data.rows(torch.randint(len(data.tokens), (rows,), generator=generator_of(seed, step)))

    return batch


def random_windows(ids: Tensor, rows: int, length: int, generator: torch.Generator) -> Tensor:
    """(rows, length + 1) windows at random offsets of a long sequence (n,): `length` inputs and their targets."""
    begins = torch.randint(len(ids) - length - 1, (rows, 1), generator=generator)
    return ids[begins + torch.arange(length + 1)]


class StopWhenAccurate(Strategy):
    """Stops training once the accuracy on a batch reaches `right`; checks every `every` steps."""

    def __init__(self, batch: Batch, right: float, every: int = 10) -> None:
        self.batch, self.right, self.every = batch, right, every

    def after_step(self, run: Run) -> None:
        if (run.step + 1) % self.every == 0:
            run.stopped = accuracy(run.model, self.batch) >= self.right
            run.model.train()


def device_of(model: Any) -> torch.device:
    """The device of the model's parameters; the CPU if it has none."""
    parameters = model.parameters() if isinstance(model, nn.Module) else ()
    return next((p.device for p in parameters), torch.device("cpu"))


@torch.no_grad()
def accuracy(model: nn.Module, batch: Batch) -> float:
    """The share of targets (-1: none) that are the model's most probable prediction."""
    model.eval()
    batch = batch.to(device_of(model))
    predictions = model(batch.tokens, batch.layout).logits.argmax(-1)
    valid_mask = batch.targets >= 0
    return float((predictions == batch.targets)[valid_mask].float().mean())


@torch.no_grad()
def answer_accuracy(model: Any, batch: Batch) -> float:
    """The share of rows whose last answer is right when the model decodes greedily from its own earlier answers. model:
    one that can be decoded. batch: has targets in all rows from the same position on."""
    model.eval()
    first = int((batch.targets[0] >= 0).nonzero()[0])
    batch = batch.to(device_of(model))
    state, tokens = model.init_state(batch.tokens.shape[0]), batch.tokens[:, : first + 1]
    if batch.prompt is not None:
        state.prompt = batch.prompt.sum(1)
    for _ in range(first, batch.tokens.shape[1]):
        tokens = model.extend(tokens, state).logits[:, -1:].argmax(-1)
        state.commit()
    return float((tokens[:, 0] == batch.targets[:, -1]).float().mean())
