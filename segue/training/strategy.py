"""Hooks around the training loop. The base class does nothing: it is plain fine-tuning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from segue.objectives import Batch

if TYPE_CHECKING:
    from segue.training.loop import Run


class Strategy:
    """What to mix in, penalise, freeze, grow and keep. One object lives through all experiences of a stream.

    Each hook gets the `Run`: its model, optimiser, loader, plan, step, and `run.generator()`, a random generator that
    depends on seed and step only, so that a resumed run draws the same numbers. Whatever the hooks remember between
    steps must be in `state()`, or a killed run would not end with the same weights.

    about: what it holds on to or learns, where that matters to others: "weights", or an "adapter" beside them.
    asks_next: it asks the model for the next element, which one that reads both ways does not say.
    packs: whether it can learn from rows of several documents.
    """

    name = "naive"
    about: ClassVar[str] = ""
    asks_next: ClassVar[bool] = False
    packs: bool = True

    def prepare(self, run: Run) -> None:
        """Once when the run is made, before its optimiser and before a checkpoint is read: what is to learn besides the
        model's own parameters is put on the model here, and taken off in `after_experience`."""

    def before_experience(self, run: Run) -> None:
        """Once before the first step (again when a killed run is resumed, after `load_state`)."""

    def before_step(self, run: Run, batch: Batch) -> Batch:
        """The batch to learn from at this step: `batch`, or one with old rows mixed in (`Batch.join`)."""
        return batch

    def loss_term(self, run: Run, batch: Batch) -> Tensor | None:
        """A scalar added to the loss per element (a penalty), or None."""
        return None

    def after_backward(self, run: Run) -> None:
        """Gradients are in `parameter.grad`, averaged over processes and not yet clipped: project or mask them."""

    def after_step(self, run: Run) -> None:
        """The weights have just moved."""

    def after_experience(self, run: Run) -> None:
        """Once after the last step: consolidate, keep examples, estimate importances."""

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What must survive a kill: tensors, and plain JSON values."""
        return {}, {}

    def load_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Take back what `state` gave."""
