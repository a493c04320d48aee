"""Distillation of earlier outputs: the previous model's on new rows, or those stored with old rows."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segue.continual.gradients import evaluation_mode
from segue.continual.replay import Rehearsal
from segue.errors import SegueError
from segue.objectives import Batch, Distillation
from segue.training.checkpoint import weights_of
from segue.training.loop import Run
from segue.training.strategy import Strategy


class LwF(Strategy):
    """Learning without forgetting (Li & Hoiem 2016, arXiv 1606.09282): on the new rows the model also imitates itself
    as it was before this experience. Keeps no data. Costs a copy of the model and a pass of each a step.

    strength: times T^2 KL(before, now) per element, both at temperature T, see `Distillation`.
    """

    name = "lwf"
    asks_next = True
    asks_logits = True

    def __init__(self, strength: float = 1.0, temperature: float = 2.0) -> None:
        if strength < 0 or temperature <= 0:
            raise SegueError(f"strength {strength} at temperature {temperature} do not fit: strength is 0 or more, the "
                             "temperature above 0")
        self.strength, self.temperature = strength, temperature
        self.learned = 0  # experiences
        self.teacher_weights: dict[str, Tensor] = {}
        self.distillation: Distillation | None = None

    def before_experience(self, run: Run) -> None:
        if not self.learned and run.past is None:
            return  # there is nothing to keep yet
        teacher = copy.deepcopy(run.model).requires_grad_(False)
        if self.teacher_weights:  # a killed run goes on
            state = teacher.state_dict()
            for name, tensor in self.teacher_weights.items():
                state[name].copy_(tensor)
        self.teacher_weights = {name: t.clone() for name, t in weights_of(teacher).items()}
        self.distillation = Distillation(teacher, 1.0, self.temperature)

    def loss_term(self, run: Run, batch: Batch) -> Tensor | None:
        if self.distillation is None or not self.strength:
            return None
        return self.strength * self.distillation(run.model, batch).total / batch.count

    def after_experience(self, run: Run) -> None:
        self.learned += 1
        self.teacher_weights, self.distillation = {}, None

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return dict(self.teacher_weights), {"learned": self.learned}

    def load_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        self.teacher_weights, self.learned = tensors, values["learned"]


VALUES = 1 << 24  # stored scores in all, at most


class DER(Rehearsal):
    """Dark experience replay (Buzzega et al. 2020, arXiv 2004.07211): old rows are stored with the model's scores at
    that time, which it must keep predicting.

    In a stream, scores are those right after the step that learned the row; in an update, those of the model before it.
    alpha: times the mean squared difference of the scores of old rows, over target elements and the vocabulary. rows:
    old rows a step (0: as many as new ones). capacity: rows stored, or fewer, so that their scores are at most 2^24
    numbers.
    """

    name = "der"
    asks_next = True
    asks_logits = True
    beta = 0.0

    def __init__(self, alpha: float = 0.5, rows: int = 0, capacity: int = 1000, update: str = "reservoir",
                 seed: int = 0) -> None:
        super().__init__(capacity, update, seed)
        if alpha < 0 or rows < 0:
            raise SegueError(f"alpha {alpha} and rows {rows} do not fit: both are 0 or more")
        self.alpha, self.rows = alpha, rows

    def offer(self, run: Run, rows: Batch) -> None:
        stored = self.buffer.payload["scores"] if len(self.buffer) else model_scores(run.model, rows.rows(slice(0, 1)))
        self.buffer.capacity = min(self.buffer.capacity, max(1, VALUES // stored[0].numel()))
        super().offer(run, rows)

    def payload(self, run: Run, rows: Batch) -> dict[str, Tensor]:
        return {"scores": model_scores(run.model, rows)}

    def loss_term(self, run: Run, batch: Batch) -> Tensor | None:
        if not len(self.buffer):
            return None
        generator = run.generator()
        indices = self.buffer.draw(self.rows or len(batch.targets), generator)
        scores, stored_scores, _ = self.replay_scores(run, indices)
        term = self.alpha * F.mse_loss(scores, stored_scores)
        if self.beta:
            logits, _, targets = self.replay_scores(run, self.buffer.draw(self.rows or len(batch.targets), generator))
            term = term + self.beta * F.cross_entropy(logits, targets)
        return term

    def replay_scores(self, run: Run, indices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The model's scores (K, V), stored scores (K, V) and targets (K,) at the target elements of the buffer's rows
        `indices`."""
        rows = self.buffer.rows(indices).to(run.device)
        target_mask = rows.targets >= 0
        stored_scores = self.buffer.payload["scores"][indices].to(run.device)[target_mask]
        return run.model(rows.tokens, rows.layout).logits[target_mask].float(), stored_scores, rows.targets[target_mask]


class DERpp(DER):
    """DER++: the targets of old rows are learned too. beta: times their mean cross-entropy, over other rows."""

    name = "der++"

    def __init__(self, alpha: float = 0.5, beta: float = 0.5, rows: int = 0, capacity: int = 1000,
                 update: str = "reservoir", seed: int = 0) -> None:
        super().__init__(alpha, rows, capacity, update, seed)
        if beta < 0:
            raise SegueError(f"beta is 0 or more, not {beta}")
        self.beta = beta


@torch.no_grad()
def model_scores(model: nn.Module, rows: Batch) -> Tensor:
    """(B, T, V) on the CPU."""
    rows = rows.to(next(model.parameters()).device)
    with evaluation_mode(model):
        return model(rows.tokens, rows.layout).logits.float().cpu()
