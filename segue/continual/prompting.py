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
    """Tells the prompts of a `Prompted` model, or of a `Classifier` on one, where experiences begin and end: what
    belongs to one is frozen at its end, as are the head's rows of all classes seen by then. Train with
    `ClassLoss("new")`, so that those rows are not in the softmax either.

    match: times the cosine between queries and the keys they chose, which the loss per element falls by (L2P,
    DualPrompt: 1). orthogonality: times the penalty that holds components apart (CODA-Prompt; 0, since new components
    are drawn at right angles).
    """

    name = "prompts"

    def __init__(self, match: float = 1.0, orthogonality: float = 0.0) -> None:
        if match < 0 or orthogonality < 0:
            raise SegueError(f"match {match} and orthogonality {orthogonality} are weights: give 0 or more")
        self.match, self.orthogonality = match, orthogonality

    def before_experience(self, run: Run) -> None:
        model = prompted(run)
        model.prompts.begin()
        held = {id(p) for p in run.optimiser.parameters}
        if any(p.requires_grad and id(p) not in held for p in model.prompts.parameters()):
            run.optimiser = run.make_optimiser()  # an experience began within a run, and with it a slice

    def loss_term(self, run: Run, batch: Batch) -> Tensor | None:
        prompts = prompted(run).prompts
        penalty = prompts.penalty() if self.orthogonality else None
        term = None if penalty is None else self.orthogonality * penalty
        if prompts.match is None or not self.match:
            return term
        pull = -self.match * prompts.match.mean()
        return pull if term is None else pull + term

    def after_experience(self, run: Run) -> None:
        prompted(run).prompts.end()
        if isinstance(run.model, Classifier) and isinstance(run.model.head, WeightHead):
            run.model.head.freeze(run.model.seen.nonzero()[:, 0])


def prompted(run: Run) -> Prompted:
    """The prompted part of the model."""
    found = getattr(run.model, "backbone", None) if isinstance(run.model, Classifier) else run.model
    if not isinstance(found, Prompted):
        raise SegueError(f"a {type(run.model).__name__} has no prompts to learn: put a segue.models.Prompted on the "
                         "stack, and a Classifier on that to tell classes")
    return found
