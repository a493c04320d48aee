"""Training losses, one file each: `objective(model, batch) -> Loss`."""

from __future__ import annotations

from segue.objectives.base import Batch, Loss, Objective
from segue.objectives.distillation import Distillation
from segue.objectives.draft_heads import DraftHeadsLoss
from segue.objectives.masked import MaskedElements
from segue.objectives.mixed import Mixed
from segue.objectives.next_element import NextElement
from segue.objectives.occupancy import OccupancyMatching, RolloutUnlikelihood
from segue.objectives.repetition import DecayedRepetition, TokenUnlikelihood
from segue.objectives.sundae import Sundae

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

__all__ = ["OBJECTIVES", "Batch", "DecayedRepetition", "Distillation", "DraftHeadsLoss", "Loss", "MaskedElements",
           "Mixed", "NextElement", "Objective", "OccupancyMatching", "RolloutUnlikelihood", "Sundae",
           "TokenUnlikelihood"]
