"""Parts of a model that learn less often than the rest, or not at all."""

from __future__ import annotations

from segue.errors import SegueError
from segue.training.loop import Run
from segue.training.strategy import Strategy


class Alternate(Strategy):
    """Parameters whose names begin with `part` learn at every `every`-th step only (0: never); the others, where
    `rest` is given, as often as that says. With prompts this is their asynchronous refresh (PromptTPP, Xue et al.
    2023, arXiv 2310.04993)."""

    name = "alternate"

    def __init__(self, part: str, every: int = 2, rest: int = 1) -> None:
        if every < 0 or rest < 0 or every == rest == 0:
            raise SegueError(f"every {every} and rest {rest} are numbers of steps: 0 for never, and not both")
        self.part, self.every, self.rest = part, every, rest

    def after_backward(self, run: Run) -> None:
        for name, parameter in run.model.named_parameters():
            every = self.every if name.startswith(self.part) else self.rest
            if every == 0 or run.step % every:
                parameter.grad = None
