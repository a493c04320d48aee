"""Learn one initial state for each experience, and no weight (Lina-Speech, 2024, arXiv 2410.23320). Without it the
model stays the same, bit for bit."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from segue.errors import SegueError
from segue.models.adapters import InitialState
from segue.training.loop import Run
from segue.training.strategy import Strategy


class StateTuning(Strategy):
    """Each experience learns an `InitialState` by AdamW and takes it off again: attach one of `states` to have the
    model of that experience. Without one it is the model of before. Takes a model of recurrences, whole or in part.

    rank, scale, seed: see `InitialState`; the published scale of 0.02 suits small states: where those that the model
    reaches have large numbers, a larger one learns more (see the notes of `segue.papers.lina_speech`). rate: of
    learning, in place of the plan's (the small scale asks for it).
    """

    name = "state"
    about = "adapter"
    packs = False

    def __init__(self, rank: int = 1, rate: float = 0.1, scale: float = 0.02, seed: int = 0) -> None:
        if rate <= 0:
            raise SegueError(f"a rate of {rate} learns nothing: give one above 0")
        self.rate = rate
        self.settings: dict[str, Any] = {"rank": rank, "scale": scale, "seed": seed}
        self.states: list[InitialState] = []
        InitialState(**self.settings)  # refuses what it cannot be

    def prepare(self, run: Run) -> None:
        rates = dict.fromkeys(("rate", "table_rate", "vector_rate", "state_rate"), self.rate)
        run.plan = run.plan.with_(**rates, decay=0.0)
        self.states.append(InitialState(**self.settings))
        self.states[-1].attach(run.model)

    def after_experience(self, run: Run) -> None:
        self.states[-1].detach()

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        done = [each for each in self.states if each.model is None]
        return {f"{index}.{name}": parameter.detach() for index, each in enumerate(done)
                for name, parameter in each.named_parameters()}, {"learned": len(done)}

    def load_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        learning, self.states = [each for each in self.states if each.model is not None], []
        for index in range(values["learned"]):
            each = InitialState(**self.settings)
            each.loaded = {name.removeprefix(f"{index}."): tensor for name, tensor in tensors.items()
                           if name.startswith(f"{index}.")}
            self.states.append(each)
        self.states += learning
