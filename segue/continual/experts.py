"""Expert Gate (Aljundi, Chakravarty & Tuytelaars 2017, arXiv 1611.06194): a model for each experience, and small
autoencoders whose errors route each row to one of them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segue.continual.distil import LwF
from segue.continual.stream import Experience, ordered_batches
from segue.errors import SegueError
from segue.mixers.layout import Layout
from segue.models.base import Output
from segue.objectives import Batch, Loss, Objective
from segue.training.learn import learn
from segue.training.strategy import Strategy


class Gate(nn.Module):
    """A one-layer undercomplete autoencoder of one experience's features, (B, F) -> its error on each, (B,).

    Features are standardised by that experience and squashed by a sigmoid; the error is the cross-entropy of the
    reconstruction from a code of ReLU units, minus its minimum (the entropy of the target), in nats, summed over the
    features.

    mean, deviation: (F,) of the experience. code: units, fewer than F.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, mean: Tensor, deviation: Tensor, code: int) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("deviation", deviation)
        self.encode, self.decode = nn.Linear(len(mean), code), nn.Linear(code, len(mean))

    def forward(self, features: Tensor) -> Tensor:
        target = torch.sigmoid((features - self.mean) / self.deviation)
        logits = self.decode(torch.relu(self.encode(target)))
        cross_entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        return (cross_entropy - F.binary_cross_entropy(target, target, reduction="none")).sum(-1)


def reconstruction(model: nn.Module, batch: Batch) -> Loss:
    """The objective of a `Gate`: batches of features (B, 1, F)."""
    total = model(batch.tokens[:, 0]).sum()
    return Loss(total, {"nats": total.detach()}, batch.count)


def mean_vector(batch: Batch) -> Tensor:
    """(B, F): the mean of a row's real vectors."""
    return batch.tokens.float().mean(1)


class ExpertGate(nn.Module):
    """Experts by name, each with its gate. As a model, it runs each row by the expert whose gate has the least error.

    make: returns a new expert, any model. features: batch -> (B, F) real numbers that do not change with learning, such
    as `mean_vector` of real inputs (default), or the hidden vectors of a frozen model. code: units of the gates.
    temperature: of the softmax over minus the gates' errors. related: a new expert starts with the weights of the most
    related one; if the relatedness is above `related`, it is trained with `LwF`, to keep what both share. The paper's
    errors include the entropy, which moves relatedness towards 1: its 0.85 is laxer than ours.
    """

    def __init__(self, make: Callable[[], nn.Module], features: Callable[[Batch], Tensor] = mean_vector, code: int = 10,
                 temperature: float = 2.0, related: float = 0.85) -> None:
        super().__init__()
        if code < 1 or temperature <= 0:
            raise SegueError(f"a code of {code} units at temperature {temperature} cannot separate rows: give at least "
                             "one unit, and a temperature above 0")
        self.make, self.features, self.code = make, features, code
        self.temperature, self.related = temperature, related
        self.names: list[str] = []
        self.classes: list[tuple[int, ...]] = []  # of each expert; it names no others (empty: all)
        self.experts, self.gates = nn.ModuleList(), nn.ModuleList()

    def errors(self, batch: Batch) -> Tensor:
        """(B, K): the reconstruction error of each gate on each row's features."""
        if not self.names:
            raise SegueError("there are no experts yet: let it learn an experience first")
        features = self.features(batch)
        return torch.stack([gate(features) for gate in self.gates], 1)

    def probabilities(self, batch: Batch) -> Tensor:
        """(B, K): softmax of minus the errors over the temperature."""
        return torch.softmax(-self.errors(batch) / self.temperature, 1)

    @torch.no_grad()
    def relatedness(self, gate: nn.Module, batch: Batch) -> list[float]:
        """The relatedness of the gate's experience to each learned one, on rows of the gate's: 1 - (e_k - e) / e with
        the mean errors e of the gate and e_k of the other gates."""
        own_error = gate(self.features(batch)).mean()
        other_errors = self.errors(batch).mean(0)
        return (1 - (other_errors - own_error) / own_error).tolist()

    def learn(self, experience: Experience, steps: int, objective: Objective | None = None, *, rows: int = 10,
              rate: float = 3e-3, gate_steps: int = 500, gate_rate: float = 1e-2, seed: int = 0, **choices: Any
              ) -> dict[str, float]:
        """Add an expert for the experience; returns its relatedness to each earlier expert, by name.

        steps, objective, rows, rate, choices: of the expert's training, as for `segue.training.learn`. gate_steps,
        gate_rate: of its gate's. The last fifth of the rows is held out from the gate and measures the relatedness.
        """
        count = len(experience.train.targets)
        shown = max(1, count - max(1, count // 5))
        features = self.features(experience.train)[:shown]
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            deviation = features.std(0, correction=0)
            # The floor keeps a feature that is constant here from dominating the error of other experiences.
            gate = Gate(features.mean(0), deviation.clamp(min=0.1 * float(deviation.mean()) + 1e-6), self.code)
        gate_rows = Batch(features[:, None], torch.zeros(len(features), 1, dtype=torch.long))
        learn(gate, ordered_batches(gate_rows, 32, seed), gate_steps, rate=gate_rate, objective=reconstruction,
              seed=seed)
        held_out = experience.train.rows(slice(shown, None)) if count > 1 else experience.train
        relatedness = dict(zip(self.names, self.relatedness(gate, held_out))) if self.names else {}
        nearest = max(relatedness, key=lambda name: relatedness[name], default=None)
        expert, strategy = self.make(), Strategy()
        if nearest is not None:
            expert = copy.deepcopy(self.experts[self.names.index(nearest)])
            if relatedness[nearest] > self.related:
                strategy = LwF()
                strategy.learned = 1
        learn(expert, ordered_batches(experience.train, rows, seed), steps, rate=rate, objective=objective,
              strategy=strategy, seed=seed, **choices)
        self.names.append(experience.name)
        self.classes.append(experience.classes)
        self.experts.append(expert)
        self.gates.append(gate)
        return relatedness

    def route(self, batch: Batch) -> Tensor:
        """(B,) long: the expert of each row."""
        return self.errors(batch).argmin(1)

    def forward(self, tokens: Tensor, layout: Layout | None = None) -> Output:
        """Scores (B, T, V) of each row by its expert; all experts have the same vocabulary. One document per row."""
        batch = Batch(tokens, torch.zeros(tokens.shape[:2], dtype=torch.long, device=tokens.device))
        chosen, outputs = self.route(batch), {}
        for index in chosen.unique().tolist():
            outputs[index] = output = self.experts[index](tokens[chosen == index])
            if self.classes[index]:
                excluded = torch.ones(output.logits.shape[-1], dtype=torch.bool, device=tokens.device)
                excluded[list(self.classes[index])] = False
                output.logits = output.logits.masked_fill(excluded, -math.inf)
        logits, hidden = (torch.stack([getattr(outputs[int(index)], field)[int((chosen[:row] == index).sum())]
                                       for row, index in enumerate(chosen)]) for field in ("logits", "hidden"))
        return Output(logits, hidden)
