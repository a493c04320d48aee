"""Train any model on batches that are drawn, with the one loop: for tasks, claims and experiments."""

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
    """Move the model `steps` steps by AdamW, on the device where it is; the finished `Run` has the learning curve.

    batches: the rows of each step, a pure function of it (see `Task.batches`). rate: of all parameters but the mixers'
    state parameters, which learn at most at 0.001. held_out: a score, lower is better, that `patience` (a choice) goes
    by to end with the best weights. choices: any other entry of `Plan` (warmup, decay, clip ...).
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
    """Rows of a fixed set for `learn`, drawn anew for each step, with replacement."""
    def batch(step: int) -> Batch:
        return data.rows(torch.randint(len(data.tokens), (rows,), generator=generator_of(seed, step)))

    return batch


def windows(ids: Tensor, rows: int, length: int, generator: torch.Generator) -> Tensor:
    """(rows, length + 1) pieces from anywhere in a long sequence (n,): `length` elements and what follows each."""
    begins = torch.randint(len(ids) - length - 1, (rows, 1), generator=generator)
    return ids[begins + torch.arange(length + 1)]


class Until(Strategy):
    """Ends the training once the model is right about so much of a batch, see `accuracy`; looks every few steps."""

    def __init__(self, batch: Batch, right: float, every: int = 10) -> None:
        self.batch, self.right, self.every = batch, right, every

    def after_step(self, run: Run) -> None:
        if (run.step + 1) % self.every == 0:
            run.stopped = accuracy(run.model, self.batch) >= self.right
            run.model.train()


def device_of(model: Any) -> torch.device:
    """Where the weights are, if there are any."""
    parameters = model.parameters() if isinstance(model, nn.Module) else ()
    return next((p.device for p in parameters), torch.device("cpu"))


@torch.no_grad()
def accuracy(model: nn.Module, batch: Batch) -> float:
    """The share of asked-for elements that the model names (greedy)."""
    model.eval()
    batch = batch.to(device_of(model))
    guess = model(batch.tokens, batch.layout).logits.argmax(-1)
    asked = batch.targets >= 0
    return float((guess == batch.targets)[asked].float().mean())


@torch.no_grad()
def answer_accuracy(model: Any, batch: Batch) -> float:
    """The share of rows whose last answer is right where the model reads what it said before (greedy), not what would
    have been right. model: one that can continue. batch: asks for the elements of all rows from one position on."""
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
