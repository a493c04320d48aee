"""Learn one task after the other in the weights of a hypernetwork (`segue.models.hypernetwork.Generated`). The network
of an old task is kept by holding still what the hypernetwork generates for it."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from segue.continual.gradients import trainable_parameters
from segue.continual.importance import Importance, Weights
from segue.continual.stream import Experience, Measure, accuracy_over
from segue.errors import SegueError
from segue.models.hypernetwork import ChunkedLSTM, Generated
from segue.objectives import Batch
from segue.training.loop import Run
from segue.training.strategy import Strategy


class OutputMatching(Strategy):
    """Adds beta / (T - 1) sum_t ||h(e_t) - h*(e_t)||^2 over the T - 1 earlier tasks, where h* is the generator at the
    start of the current one (von Oswald et al. 2020, arXiv 1906.00695). Every experience is the next task.

    beta: of the penalty, a sum over all generated weights: a larger target network needs a smaller beta.
    sample: number of old tasks drawn at each step (0: all).
    """

    name = "output-matching"

    def __init__(self, beta: float = 0.01, sample: int = 0) -> None:
        if beta < 0 or sample < 0:
            raise SegueError(f"beta {beta} over {sample} tasks: give 0 or more of both")
        self.beta, self.sample = beta, sample
        self.learned = 0  # tasks
        self.saved_generator: Weights = {}

    def before_experience(self, run: Run) -> None:
        model = generated(run)
        model.choose(self.learned)
        if not self.saved_generator:  # otherwise a killed run goes on
            self.saved_generator = {name: p.detach().clone() for name, p in model.generator.named_parameters()}
        self.saved_generator = {name: p.to(run.device) for name, p in self.saved_generator.items()}

    def loss_term(self, run: Run, batch: Batch) -> Tensor | None:
        if not self.learned or not self.beta:
            return None
        generator, tasks = generated(run).generator, torch.arange(self.learned)
        if 0 < self.sample < self.learned:
            tasks = torch.randperm(self.learned, generator=run.generator())[: self.sample]
        tasks = tasks.to(run.device)
        with torch.no_grad():
            saved = {f"generator.{name}": p for name, p in self.saved_generator.items()}
            target = functional_call(Flat(generator), saved, tasks)
        return self.beta * (generator.generate_flat(tasks) - target).square().sum(1).mean()

    def after_experience(self, run: Run) -> None:
        self.learned += 1
        self.saved_generator = {}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return dict(self.saved_generator), {"learned": self.learned}

    def load_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        self.saved_generator, self.learned = tensors, values["learned"]


class Flat(nn.Module):
    """`WeightGenerator.flat` as a module's call."""

    def __init__(self, generator: nn.Module) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, tasks: Tensor) -> Tensor:
        return self.generator.generate_flat(tasks)  # type: ignore[operator]


class OutputMAS(Importance):
    """Penalises changes of the generator's weights psi by their importance for the generated weights,
    |d ||h(e_t)||^2 / d psi| of every learned task. Old tasks' weights are not generated again. Every experience is the
    next task."""

    name = "output-mas"
    default_strength = 0.1

    def __init__(self, strength: float | None = None, keep: float = 1.0) -> None:
        super().__init__(strength, keep)
        self.tasks = 0  # learned

    def before_experience(self, run: Run) -> None:
        generated(run).choose(self.tasks)
        super().before_experience(run)

    def learned(self, run: Run) -> Weights:
        model, weights = generated(run), trainable_parameters(run.model)
        length = model.generator.generate_flat(model.task[None]).square().sum()
        slopes = torch.autograd.grad(length, list(weights.values()), allow_unused=True, materialize_grads=True)
        return {name: slope.abs() for name, slope in zip(weights, slopes)}

    def after_step(self, run: Run) -> None:
        pass  # no rows are needed

    def after_experience(self, run: Run) -> None:
        super().after_experience(run)
        self.tasks += 1

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, values = super().state()
        return tensors, {**values, "tasks": self.tasks}

    def load_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        super().load_state(tensors, values)
        self.tasks = values["tasks"]


class Grow(Strategy):
    """Adds `units` to the recurrent cell after a task that was learned worse than the earlier ones: its mean loss over
    the last tenth of its steps is above `threshold` times theirs. The weights generated for old tasks stay the same."""

    name = "grow"

    def __init__(self, threshold: float = 1.2, units: int = 8) -> None:
        if threshold <= 0 or units < 1:
            raise SegueError(f"threshold {threshold} and {units} units: give a threshold above 0 and 1 unit or more")
        self.threshold, self.units = threshold, units
        self.ends: list[float] = []  # the loss at the end of each experience
        self.losses: list[float] = []

    def before_experience(self, run: Run) -> None:
        self.losses = self.losses if run.step else []

    def after_step(self, run: Run) -> None:
        self.losses.append(run.loss)

    def after_experience(self, run: Run) -> None:
        generator = generated(run).generator
        if not isinstance(generator, ChunkedLSTM):
            raise SegueError(f"a {type(generator).__name__} has no cell to grow: take a ChunkedLSTM")
        end = mean(self.losses[-max(1, len(self.losses) // 10) :])
        if self.ends and end > self.threshold * mean(self.ends):
            generator.grow(self.units)
        self.ends.append(end)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {}, {"ends": self.ends, "losses": self.losses}

    def load_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        self.ends, self.losses = values["ends"], values["losses"]


def generated(run: Run) -> Generated:
    if not isinstance(run.model, Generated):
        raise SegueError(f"the weights of a {type(run.model).__name__} are not generated: put it into a "
                         "segue.models.hypernetwork.Generated")
    return run.model


def known_task_accuracy(stream: Sequence[Experience]) -> Measure:
    """Accuracy of a `Generated` model with the task of each experience known: its index in the stream."""
    task_index = {experience.name: index for index, experience in enumerate(stream)}

    def measure(model: nn.Module, experience: Experience, seen: Sequence[int]) -> float:
        assert isinstance(model, Generated)
        model.choose(task_index[experience.name])
        return accuracy_over(model, experience.test)

    return measure


@torch.no_grad()
def inferred_accuracy(model: Generated, test: Batch, tasks: int) -> float:
    """Accuracy with the task unknown: each row by the network of lowest entropy on it, among the first `tasks`."""
    model.eval()
    target_mask = test.targets >= 0
    inferred_tasks, correct = model.infer(test.tokens, test.layout, tasks, target_mask), torch.zeros_like(target_mask)
    for task in range(tasks):
        model.choose(task)
        predictions = model(test.tokens, test.layout).logits.argmax(-1)
        correct |= (predictions == test.targets) & (inferred_tasks == task)[:, None]
    return float(correct[target_mask].float().mean())
