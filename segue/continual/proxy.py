"""The components of HPCR (Lin et al. 2023, arXiv 2309.15038) besides its proxy loss (`segue.objectives.ProxyReplay`):
distillation of the outputs stored with old rows, and a periodic scale of the loss."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from segue.continual.buffer import Buffer, labels_of
from segue.continual.gradients import evaluation_mode
from segue.continual.replay import Replay, Retrieve
from segue.errors import SegueError
from segue.objectives import Batch, Loss, Objective, relation_distillation, score_distillation
from segue.training.loop import Run
from segue.training.strategy import Strategy


def last_target_hidden(model: nn.Module, batch: Batch) -> Tensor:
    """(B, D): the hidden vector at each row's last target, that of its class."""
    target_mask = batch.targets >= 0
    last = target_mask.shape[1] - 1 - target_mask.int().flip(1).argmax(1)
    hidden: Tensor = model.hidden(batch.tokens, batch.layout)  # type: ignore[operator]
    return hidden[torch.arange(len(last), device=last.device), last].float()


class ProxyDistillation(Replay):
    """Replay of rows with the model's features and scores for them from before it learned them, which are distilled
    from the second experience on (HPCR's distillation component).

    alpha: weight of the squared change of scores, weighted by the batch's classes (PCD, `score_distillation`); scores
    of a cosine head are as large as 1 / temperature, so that alpha depends on it. beta: weight of
    `relation_distillation` (SCD) at `temperature`. Both compare each row's last target. capacity, share, update,
    retrieve, seed: see `Replay`.
    """

    name = "proxy-distillation"
    asks_logits = True

    def __init__(self, alpha: float = 0.1, beta: float = 0.5, temperature: float = 0.09, capacity: int = 1000,
                 share: float = 0.5, update: str = "reservoir", retrieve: str | Retrieve = "uniform",
                 seed: int = 0) -> None:
        super().__init__(capacity, share, update, retrieve, seed=seed)
        if alpha < 0 or beta < 0 or temperature <= 0:
            raise SegueError(f"alpha {alpha} and beta {beta} at temperature {temperature} do not fit: the first two "
                             "are 0 or more, the temperature above 0")
        self.alpha, self.beta, self.temperature = alpha, beta, temperature
        self.drawn: Tensor | None = None  # rows of the buffer in this step's batch
        self.labels: list[int] = []  # of this step's batch
        self.new_payload: dict[str, Tensor] = {}  # features and scores of this step's new rows before the step
        choose = self.retrieve

        def retrieve_and_record(run: Run, batch: Batch, buffer: Buffer, n: int) -> Tensor:
            self.drawn = choose(run, batch, buffer, n)
            return self.drawn

        self.retrieve = retrieve_and_record

    def before_step(self, run: Run, batch: Batch) -> Batch:
        self.drawn = None
        if run.past is None:
            self.new_payload = self.payload(run, batch)
        mixed = super().before_step(run, batch)
        self.labels = labels_of(mixed)
        return mixed

    @torch.no_grad()
    def payload(self, run: Run, rows: Batch) -> dict[str, Tensor]:
        with evaluation_mode(run.model):
            features = last_target_hidden(run.model, rows.to(run.device))
            return {"features": features, "scores": run.model.head(features)}  # type: ignore[operator]

    def offer(self, run: Run, rows: Batch) -> None:
        self.buffer.offer(rows, self.new_payload if run.past is None else self.payload(run, rows), run.model)

    def loss_term(self, run: Run, batch: Batch) -> Tensor | None:
        if self.drawn is None or not (self.alpha or self.beta) or (run.past is None and not self.learned):
            return None
        features = last_target_hidden(run.model, self.buffer.rows(self.drawn).to(run.device))
        stored = {name: values[self.drawn].to(run.device) for name, values in self.buffer.payload.items()}
        labels = torch.tensor(self.labels, device=run.device)
        scores = score_distillation(run.model.head(features), stored["scores"], labels)  # type: ignore[operator]
        return self.alpha * scores + self.beta * relation_distillation(features, stored["features"], self.temperature)


class Scaled:
    """scale * another objective, whose terms stay as they are."""

    def __init__(self, objective: Objective, scale: float = 1.0) -> None:
        self.objective, self.scale = objective, scale

    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        loss = self.objective(model, batch)
        return Loss(self.scale * loss.total, loss.terms, loss.count)


class LossScale(Strategy):
    """Multiplies the objective's loss, without the terms of strategies, by a factor that goes from `low` to `high` and
    back in each `period` steps, a cosine that restarts with every experience.

    In HPCR's temperature component the factor is the 1 / temperature in front of a softmax's gradient, as distinct from
    the temperature inside: 0.09 / 0.16 to 0.09 / 0.05. It has an effect under gradient descent (`sgd`); AdamW divides
    by the gradient's size.
    """

    name = "loss-scale"

    def __init__(self, low: float = 0.09 / 0.16, high: float = 0.09 / 0.05, period: int = 500) -> None:
        if not 0 < low <= high or period < 1:
            raise SegueError(f"a factor from {low} to {high} in {period} steps is none: give 0 < low <= high, and a "
                             "period of 1 or more")
        self.low, self.high, self.period = low, high, period
        self.scaled: Scaled | None = None

    def factor(self, step: int) -> float:
        """The factor at this step of an experience."""
        return self.low + (self.high - self.low) * (1 - math.cos(2 * math.pi * step / self.period)) / 2

    def before_experience(self, run: Run) -> None:
        run.objective = self.scaled = Scaled(run.objective)

    def after_experience(self, run: Run) -> None:
        assert self.scaled is not None
        run.objective = self.scaled.objective

    def before_step(self, run: Run, batch: Batch) -> Batch:
        assert self.scaled is not None
        self.scaled.scale = self.factor(run.step)
        return batch
