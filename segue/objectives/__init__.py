"""Training losses, one file each: `objective(model, batch) -> Loss`."""

from __future__ import annotations

from segue.objectives.base import Batch, Loss, Objective
from segue.objectives.distillation import Distillation
from segue.objectives.draft_heads import DraftHeadsLoss
from segue.objectives.masked import MaskedElements
from segue.objectives.next_element import NextElement
from segue.objectives.sundae import Sundae

OBJECTIVES: dict[str, type[Objective]] = {
    "next": NextElement,
    "distillation": Distillation,
    "masked": MaskedElements,
}

__all__ = ["OBJECTIVES", "Batch", "Distillation", "DraftHeadsLoss", "Loss", "MaskedElements", "NextElement",
           "Objective", "Sundae"]
