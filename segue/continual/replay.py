"""Replay: training on old rows together with new ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from segue.continual.buffer import Buffer
from segue.continual.gradients import gradient, row_nats, virtual_step
from segue.errors import SegueError, check_choice
from segue.objectives import Batch, Objective
from segue.training.loop import Run
from segue.training.strategy import Strategy


class Rehearsal(Strategy):
    """Base class of strategies that keep old rows in a `Buffer`.

    In a stream, rows are offered to the buffer right after the step that trained on them (again in a second epoch). In
    an update of a model with stored data (`run.past`), the buffer is filled from that, once, before the first step.

    capacity: rows stored. update: the policy that chooses them, see `UPDATES`. seed: of the buffer's choices.
    """

    def __init__(self, capacity: int = 1000, update: str = "reservoir", seed: int = 0) -> None:
        self.buffer = Buffer(capacity, update, seed)
        self.new_rows: Batch | None = None  # the new rows of this step
        self.learned = 0  # number of experiences so far

    def payload(self, run: Run, rows: Batch) -> dict[str, Tensor]:
        """Tensors to store with rows."""
        return {}

    def offer(self, run: Run, rows: Batch) -> None:
        self.buffer.offer(rows, partial(self.payload, run), run.model)

    def before_experience(self, run: Run) -> None:
        if run.past is not None and not run.past:
            raise SegueError("this model keeps no old data to replay: choose --strategy naive")
        if run.past and not len(self.buffer):  # else a killed run goes on
            for batch in run.past:
                self.offer(run, batch)

    def before_step(self, run: Run, batch: Batch) -> Batch:
        self.new_rows = batch
        return batch

    def after_step(self, run: Run) -> None:
        if run.past is None and self.new_rows is not None:
            self.offer(run, self.new_rows)

    def after_experience(self, run: Run) -> None:
        self.learned += 1
        if run.past is not None:
            self.buffer.clear()

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, values = self.buffer.state()
        return tensors, {**values, "learned": self.learned}

    def load_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        self.buffer.load_state(tensors, values)
        self.learned = values["learned"]


Retrieve = Callable[[Run, Batch, Buffer, int], Tensor]


def retrieve_uniform(run: Run, batch: Batch, buffer: Buffer, n: int) -> Tensor:
    """(n,) long, or fewer if the buffer has fewer: random rows."""
    return buffer.draw(n, run.generator())


def retrieve_earlier(run: Run, batch: Batch, buffer: Buffer, n: int) -> Tensor:
    """Like `retrieve_uniform`, only from rows of earlier experiences."""
    old = (buffer.payload["experience"] != buffer.notes["experience"]).nonzero()[:, 0]
    return old[torch.randperm(len(old), generator=run.generator())[:n]]


def interference(model: nn.Module, batch: Batch, rows: Batch, objective: Objective, rate: float) -> Tensor:
    """(B,) nats: how much a trial step of gradient descent on `batch` would increase the loss of each of `rows`."""
    direction, losses_before = gradient(model, batch, objective), row_nats(model, rows)
    with virtual_step(model, direction, rate):
        return row_nats(model, rows) - losses_before


def retrieve_interfered(run: Run, batch: Batch, buffer: Buffer, n: int, candidates: int = 50, rate: float | None = None,
                        among: Retrieve = retrieve_uniform) -> Tensor:
    """MIR (Aljundi et al. 2019, arXiv 1908.04742): of `candidates` random rows the `n` whose loss a step on the new
    rows would increase most. rate: of that step (default: the plan's current rate; under AdamW or Muon, whose steps do
    not follow the gradient, this ranks rows by how much their gradients oppose the new ones'). among: the source of
    candidates, `retrieve_uniform` or, as in the released code, `retrieve_earlier`."""
    drawn = among(run, batch, buffer, max(candidates, n))
    if len(drawn) <= n:
        return drawn
    rate = run.plan.rate * run.plan.scale(run.step) if rate is None else rate
    harm = interference(run.model, batch, buffer.rows(drawn), run.objective, rate)
    return drawn[harm.topk(n).indices]


RETRIEVALS: dict[str, Retrieve] = {"uniform": retrieve_uniform, "earlier": retrieve_earlier, "mir": retrieve_interfered}


class Replay(Rehearsal):
    """Experience replay (Robins 1995; with a reservoir, Chaudhry et al. 2019, arXiv 1902.10486): a share of the rows of
    every batch is old.

    share: of old rows, between 0 and 1, on average over the steps. retrieve: which old rows, a name in RETRIEVALS or
    such a function. instead: old rows replace new ones, so that a step costs the same; else they are added. Default:
    added in a stream, where each new row comes only once, and replacing in an update. capacity, update, seed: see
    `Rehearsal`.
    """

    name = "replay"

    def __init__(self, capacity: int = 1000, share: float = 0.5, update: str = "reservoir",
                 retrieve: str | Retrieve = "uniform", instead: bool | None = None, seed: int = 0) -> None:
        super().__init__(capacity, update, seed)
        self.instead = instead
        if not 0 < share < 1:
            raise SegueError(f"replay's share must lie between 0 and 1, not {share}")
        if isinstance(retrieve, str):
            check_choice("retrieve", retrieve, RETRIEVALS)
        self.share = share
        self.retrieve: Retrieve = RETRIEVALS[retrieve] if isinstance(retrieve, str) else retrieve

    def payload(self, run: Run, rows: Batch) -> dict[str, Tensor]:
        return {"experience": torch.full((len(rows.targets),), -1 if run.past is not None else self.learned)}

    def before_experience(self, run: Run) -> None:
        super().before_experience(run)
        self.buffer.notes["experience"] = self.learned

    def before_step(self, run: Run, batch: Batch) -> Batch:
        self.new_rows = batch
        rows = len(batch.targets)
        instead = run.past is not None if self.instead is None else self.instead
        expected_old = rows * self.share / (1 if instead else 1 - self.share)
        old_count = int(expected_old + np.random.default_rng((run.plan.seed, run.step)).random())
        if not old_count or not len(self.buffer):
            return batch
        new = batch.rows(torch.arange(max(1, rows - old_count))) if instead else batch
        indices = self.retrieve(run, new, self.buffer, old_count)
        if not len(indices):
            return batch
        memory = self.buffer.rows(indices)
        if instead and old_count >= rows:
            self.new_rows = None
            return memory
        self.new_rows = new
        channels = {name: values for name, values in new.channels.items() if name in memory.channels}
        return Batch.join([replace(new, channels=channels), memory])


class MIR(Replay):
    """Replay of the rows whose loss a step on the new ones would increase most, see `retrieve_interfered`. among: a
    name in RETRIEVALS."""

    name = "mir"
    asks_next = True

    def __init__(self, capacity: int = 1000, share: float = 0.5, candidates: int = 50, rate: float | None = None,
                 update: str = "reservoir", among: str = "uniform", seed: int = 0) -> None:
        check_choice("among", among, RETRIEVALS)
        if candidates < 1:
            raise SegueError(f"{candidates} candidates are none to choose from: give 1 or more")
        super().__init__(capacity, share, update, partial(retrieve_interfered, candidates=candidates, rate=rate,
                                                          among=RETRIEVALS[among]), seed=seed)


class GSS(Replay):
    """Replay from a buffer of rows whose gradients differ, see `greedy_gradients`. Every row that is offered costs its
    gradient, and those of what it is compared with: in an update that is some passes over what the model keeps."""

    name = "gss"
    asks_next = True

    def __init__(self, capacity: int = 200, share: float = 0.5, seed: int = 0) -> None:
        super().__init__(capacity, share, "gss", seed=seed)
