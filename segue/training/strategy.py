"""The base class of continual-learning strategies: hooks around the training loop. By itself it is plain
fine-tuning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from segue.objectives import Batch

if TYPE_CHECKING:
    from segue.training.loop import Run


class Strategy:
    """Hooks that decide what to replay, penalise, freeze, grow and remember. One object lives through all experiences.

    Each hook gets the `Run`: its model, optimiser, batches, plan, step, and `run.generator()`, a random generator that
    depends only on seed and step, so that a resumed run draws the same numbers. Everything that hooks remember between
    steps must be in `state()`, or a resumed run would end with other weights.

    about: what it protects or trains, if strategies it is combined with must know: "weights", or an "adapter".
    asks_next: it needs next-element predictions, which bidirectional models do not have.
    asks_logits: it needs scores or hidden vectors of tokens, which models of events in time do not give.
    packs: whether it can train on rows of several documents.
    """

    name = "naive"
    about: ClassVar[str] = ""
    asks_next: ClassVar[bool] = False
    asks_logits: bool = False
    packs: bool = True

    def prepare(self, run: Run) -> None:
        """Called once when the run is made, before its optimiser and before a checkpoint is loaded: add trainable
        modules to the model here, and remove them in `after_experience`."""

    def before_experience(self, run: Run) -> None:
        """Called once before the first step (and again when a run is resumed, after `load_state`)."""

    def before_step(self, run: Run, batch: Batch) -> Batch:
        """Return the batch to train on at this step: `batch`, or one with old rows added (`Batch.join`)."""
        return batch

    def loss_term(self, run: Run, batch: Batch) -> Tensor | None:
        """Return a scalar to add to the loss per element (a penalty), or None."""
        return None

    def after_backward(self, run: Run) -> None:
        """Called with gradients in `parameter.grad`, not yet clipped, to project or mask them."""

    def after_step(self, run: Run) -> None:
        """Called after each optimiser step."""

    def after_experience(self, run: Run) -> None:
        """Called once after the last step, to store examples, estimate importances and the like."""

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that must be in a checkpoint: tensors, and plain JSON values."""
        return {}, {}

    def load_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Restore what `state` returned."""
