"""Training losses, one file each: `objective(model, batch) -> Loss`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from segue.errors import SegueError, check_choice
from segue.objectives.base import Batch, Loss, Objective, generator_of
from segue.objectives.classes import ClassLoss, ProxyReplay
from segue.objectives.contrastive import AllItems, CosineRegression, InBatch, SupCon, info_nce, supcon, target_features
from segue.objectives.diffusion import MaskedDiffusion, ScoreEntropy, StepwiseDiffusion
from segue.objectives.distillation import Distillation, relation_distillation, score_distillation
from segue.objectives.draft_heads import DraftHeadsLoss
from segue.objectives.events import EventLikelihood
from segue.objectives.flow import FlowMatching, Reconstruction
from segue.objectives.grouped import GroupedClasses
from segue.objectives.marginal import MarginalLetters
from segue.objectives.masked import Cloze, MaskedElements
from segue.objectives.mixed import Mixed
from segue.objectives.next_element import EachStream, NextElement
from segue.objectives.occupancy import OccupancyMatching, RolloutUnlikelihood
from segue.objectives.order import OrderSearch
from segue.objectives.preference import Preference, preference_batch, preference_loss
from segue.objectives.prefix import PrefixAndNext
from segue.objectives.regression import SquaredError
from segue.objectives.repetition import DecayedRepetition, TokenUnlikelihood
from segue.objectives.sundae import Sundae

# Objectives for any model whose loss is a sum over rows (`segue.testing.check_objective`). Not here: Sundae and
# diffusion, whose random draws depend on the whole batch; ProxyReplay, SupCon, InBatch, CosineRegression and
# Preference, which compare rows with each other; PrefixAndNext, a sum of two means; AllItems, DraftHeadsLoss, ClassLoss
# and EventLikelihood, which need special models; SquaredError, FlowMatching and Reconstruction, for real numbers.
OBJECTIVES: dict[str, type[Objective]] = {
    "next": NextElement,
    "distillation": Distillation,
    "masked": MaskedElements,
    "cloze": Cloze,
    "mixed": Mixed,
    "decayed-repetition": DecayedRepetition,
    "unlikelihood": TokenUnlikelihood,
    "occupancy": OccupancyMatching,
    "rollout-unlikelihood": RolloutUnlikelihood,
    "order-search": OrderSearch,
    "marginal": MarginalLetters,
}

# Objectives that train a bidirectional model on plain sequences, with random draws that depend on the whole batch.
ANY_ORDER: dict[str, type[Objective]] = {"diffusion": MaskedDiffusion}
BOTH_WAYS = ("cloze", *ANY_ORDER)  # names in `fit` of all objectives for bidirectional models; cloze can also continue


def objective_named(name: str, eos: int | None = None, spelling: Callable[[], np.ndarray] | None = None,
                    known: Sequence[int] = ()) -> Objective:
    """Make an objective that needs nothing but sequences, by its name in `OBJECTIVES` or `ANY_ORDER`; SegueError if it
    is unknown or needs more. eos: the end id, for objectives that treat ends specially. spelling: returns the letters
    of the tokens (`Codec.spelling`), for per-letter objectives. known: ids never hidden, for any-order objectives."""
    if name in ANY_ORDER:
        return ANY_ORDER[name](known=known)  # type: ignore[call-arg]
    if known:
        raise SegueError(f"objective '{name}' hides nothing by letters: known= is for {', '.join(ANY_ORDER)}")
    check_choice("objective", name, (*OBJECTIVES, *ANY_ORDER))
    kind: Any = OBJECTIVES[name]
    parameters = inspect.signature(kind).parameters
    if missing := [each for each, parameter in parameters.items() if parameter.default is parameter.empty]:
        raise SegueError(f"objective '{name}' needs {' and '.join(missing)} beside the sequences: " + (
            "fit with teacher=FOLDER" if "teacher" in missing else "give it in Python, to segue.training.learn"))
    if getattr(kind, "in_place", False):
        raise SegueError(f"objective '{name}' teaches models that read both ways to fill in what is hidden, and those "
                         "cannot continue a sequence: give it in Python, to segue.training.learn, or take diffusion")
    given: dict[str, Any] = {"eos": eos} if "eos" in parameters else {}
    if "spelling" in parameters and spelling is not None:
        given["spelling"] = spelling()
    return kind(**given)


__all__ = [
    "ANY_ORDER",
    "BOTH_WAYS",
    "OBJECTIVES",
    "AllItems",
    "Batch",
    "ClassLoss",
    "Cloze",
    "CosineRegression",
    "DecayedRepetition",
    "Distillation",
    "DraftHeadsLoss",
    "EachStream",
    "EventLikelihood",
    "FlowMatching",
    "GroupedClasses",
    "InBatch",
    "Loss",
    "MarginalLetters",
    "MaskedDiffusion",
    "MaskedElements",
    "Mixed",
    "NextElement",
    "Objective",
    "OccupancyMatching",
    "OrderSearch",
    "Preference",
    "PrefixAndNext",
    "ProxyReplay",
    "Reconstruction",
    "RolloutUnlikelihood",
    "ScoreEntropy",
    "SquaredError",
    "StepwiseDiffusion",
    "Sundae",
    "SupCon",
    "TokenUnlikelihood",
    "generator_of",
    "info_nce",
    "objective_named",
    "preference_batch",
    "preference_loss",
    "relation_distillation",
    "score_distillation",
    "supcon",
    "target_features",
]
