"""Learn an experience with prompts alone, without stored data (L2P, DualPrompt, CODA-Prompt)."""

from __future__ import annotations

from torch import Tensor

from segue.errors import SegueError
from segue.models.classify import Classifier, WeightHead
from segue.models.prompts import Prompted
from segue.objectives import Batch
from segue.training.loop import Run
from segue.training.strategy import Strategy


class Prompting(Strategy):
    """Begins and ends experiences of the prompts of a `Prompted` model, or of a `Classifier` on one: an experience's
    prompts are frozen at its end, as are the head's rows of all classes seen so far. Train with `ClassLoss("new")`, so
    that those rows are not in the softmax either.

    match: weight of the cosine between queries and their chosen keys, subtracted from the loss per element (L2P,
    DualPrompt: 1). orthogonality: weight of the penalty that keeps components orthogonal (CODA-Prompt; 0, since new
    components are initialised orthogonal).
    """

    name = "prompts"

    def __init__(self, match: float = 1.0, orthogonality: float = 0.0) -> None:
        if match < 0 or orthogonality < 0:
            raise SegueError(f"match {match} and orthogonality {orthogonality} are weights: give 0 or more")
        self.match, self.orthogonality = match, orthogonality

    def before_experience(self, run: Run) -> None:
        model = prompted(run)
        model.prompts.begin()
        optimised = {id(p) for p in run.optimiser.parameters}
        if any(p.requires_grad and id(p) not in optimised for p in model.prompts.parameters()):
            run.optimiser = run.make_optimiser()  # an experience began within a run, and with it a slice

    def loss_term(self, run: Run, batch: Batch) -> Tensor | None:
        prompts = prompted(run).prompts
        penalty = prompts.penalty() if self.orthogonality else None
        term = None if penalty is None else self.orthogonality * penalty
        if prompts.match is None or not self.match:
            return term
        match_term = -self.match * prompts.match.mean()
        return match_term if term is None else match_term + term

    def after_experience(self, run: Run) -> None:
        prompted(run).prompts.end()
        if isinstance(run.model, Classifier) and isinstance(run.model.head, WeightHead):
            run.model.head.freeze(run.model.seen.nonzero()[:, 0])


def prompted(run: Run) -> Prompted:
    """The prompted part of the model."""
    backbone = getattr(run.model, "backbone", None) if isinstance(run.model, Classifier) else run.model
    if not isinstance(backbone, Prompted):
        raise SegueError(f"a {type(run.model).__name__} has no prompts to learn: put a segue.models.Prompted on the "
                         "stack, and a Classifier on that to tell classes")
    return backbone
