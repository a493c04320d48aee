"""Training losses, one file each: `objective(model, batch) -> Loss`."""

from __future__ import annotations

import inspect
from typing import Any

from segue.errors import SegueError
from segue.objectives.base import Batch, Loss, Objective, generator_of
from segue.objectives.distillation import Distillation
from segue.objectives.draft_heads import DraftHeadsLoss
from segue.objectives.events import EventLikelihood
from segue.objectives.masked import MaskedElements
from segue.objectives.mixed import Mixed
from segue.objectives.next_element import NextElement
from segue.objectives.occupancy import OccupancyMatching, RolloutUnlikelihood
from segue.objectives.repetition import DecayedRepetition, TokenUnlikelihood
from segue.objectives.sundae import Sundae

# Those whose rows add up (`segue.testing.check_objective`), for any model. Not here: Sundae, whose chance is that of a
# whole batch, DraftHeadsLoss and EventLikelihood, which teach draft heads and point processes alone.
OBJECTIVES: dict[str, type[Objective]] = {
    "next": NextElement,
    "distillation": Distillation,
    "masked": MaskedElements,
    "mixed": Mixed,
    "decayed-repetition": DecayedRepetition,
    "unlikelihood": TokenUnlikelihood,
    "occupancy": OccupancyMatching,
    "rollout-unlikelihood": RolloutUnlikelihood,
}


def objective_named(name: str, eos: int | None = None) -> Objective:
    """An objective that needs nothing but sequences, to teach a model that continues them. eos: the id that ends one,
    for objectives that look at ends."""
    if name not in OBJECTIVES:
        raise SegueError(f"objective '{name}' is unknown: choose from {', '.join(OBJECTIVES)}")
    kind: Any = OBJECTIVES[name]
    parameters = inspect.signature(kind).parameters
    if missing := [each for each, parameter in parameters.items() if parameter.default is parameter.empty]:
        raise SegueError(f"objective '{name}' needs {' and '.join(missing)} beside the sequences: " + (
            "fit with teacher=FOLDER" if "teacher" in missing else "give it in Python, to segue.training.learn"))
    if getattr(kind, "in_place", False):
        raise SegueError(f"objective '{name}' teaches models that read both ways to fill in what is hidden, and those "
                         "cannot continue a sequence: give it in Python, to segue.training.learn")
    return kind(**({"eos": eos} if "eos" in parameters else {}))


__all__ = ["OBJECTIVES", "Batch", "DecayedRepetition", "Distillation", "DraftHeadsLoss", "EventLikelihood", "Loss",
           "MaskedElements", "Mixed", "NextElement", "Objective", "OccupancyMatching", "RolloutUnlikelihood", "Sundae",
           "TokenUnlikelihood", "generator_of", "objective_named"]
