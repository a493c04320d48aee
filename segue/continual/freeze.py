"""Freeze parts of a model, from some experience on (SEQ*, Zheng et al. 2024, arXiv 2312.07887)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from segue.errors import SegueError
from segue.models.classify import Classifier, WeightHead
from segue.objectives import Batch
from segue.training.loop import Run
from segue.training.strategy import Strategy


class Freeze(Strategy):
    """Freezes parts of the model after the first experiences.

    Frozen parameters get no gradient, and frozen modules are in evaluation mode, so that dropout does not change their
    features. Between experiences both are restored.

    parts: names of modules or parameters, a list or a text with "|" between; a module includes its submodules. Default:
    all but what the head uses.
    warm_up: number of experiences that train the whole model first (0: none).
    old_classes: the head's rows of all classes seen so far learn no more once an experience is over (a `Classifier`
        with a linear or cosine head).
    """

    name = "freeze"
    about = "weights"

    def __init__(self, parts: str | Sequence[str] = "", warm_up: int = 0, old_classes: bool = False) -> None:
        if warm_up < 0:
            raise SegueError(f"a warm-up of {warm_up} experiences is not possible: give 0 or more")
        self.parts = parts.split("|") if isinstance(parts, str) and parts else parts
        self.warm_up, self.old_classes = warm_up, old_classes
        self.learned = 0  # experiences
        self.frozen_parameters: list[nn.Parameter] = []
        self.frozen_modules: list[nn.Module] = []

    def before_experience(self, run: Run) -> None:
        if self.learned < self.warm_up:
            return
        model, head_parameters = run.model, set[nn.Parameter]()
        if self.parts == "":
            head_parameters = set(getattr(model, "head", nn.Module()).parameters())
        parts = [name for name, _ in model.named_children() if name != "head"] if self.parts == "" else self.parts
        selected = [find_part(model, part) for part in parts]
        self.frozen_modules = [part for part in selected if isinstance(part, nn.Module)]
        for part in selected:
            parameters = part.parameters() if isinstance(part, nn.Module) else [part]
            self.frozen_parameters += [p for p in parameters if p.requires_grad and p not in head_parameters]
        for parameter in self.frozen_parameters:
            parameter.requires_grad_(False)

    def before_step(self, run: Run, batch: Batch) -> Batch:
        for module in self.frozen_modules:  # each step, since a measurement ends with all of the model in training mode
            module.eval()
        return batch

    def after_experience(self, run: Run) -> None:
        for parameter in self.frozen_parameters:
            parameter.requires_grad_(True)
        self.frozen_parameters, self.frozen_modules = [], []
        self.learned += 1
        if self.old_classes:
            if not isinstance(run.model, Classifier) or not isinstance(run.model.head, WeightHead):
                raise SegueError(f"a {type(run.model).__name__} has no rows of old classes to freeze: give a "
                                 "Classifier with a linear or cosine head")
            run.model.head.freeze(run.model.seen.nonzero()[:, 0])

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {}, {"learned": self.learned}

    def load_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        self.learned = values["learned"]


def find_part(model: nn.Module, name: str) -> nn.Module | nn.Parameter:
    """The module or parameter of that name."""
    modules, parameters = dict(model.named_modules()), dict(model.named_parameters(remove_duplicate=False))
    if name not in modules and name not in parameters:
        raise SegueError(f"the model has no part '{name}': choose from "
                         f"{', '.join(child for child, _ in model.named_children())}, or what is within them")
    return modules[name] if name in modules else parameters[name]
