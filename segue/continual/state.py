"""State tuning: train one initial state for each experience, and no weights (Lina-Speech, 2024, arXiv 2410.23320).
Without it the model is unchanged, bit for bit."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from segue.errors import SegueError
from segue.models.adapters import InitialState
from segue.training.checkpoint import join_groups, take_group
from segue.training.loop import Run
from segue.training.strategy import Strategy


class StateTuning(Strategy):
    """Each experience trains an `InitialState` by AdamW and detaches it at the end: attach one of `states` to use the
    model of that experience; without one it is the original model. Needs a model with recurrent mixers.

    rank, scale, seed: see `InitialState`; the published scale of 0.02 suits small states: where the model's states are
    large, a larger one learns more (see the notes of `segue.papers.lina_speech`). rate: learning rate, in place of the
    plan's (the small scale needs a large one).
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
        done = [initial for initial in self.states if initial.model is None]
        return join_groups({str(index): {name: p.detach() for name, p in initial.named_parameters()}
                            for index, initial in enumerate(done)}), {"learned": len(done)}

    def load_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        learning, self.states = [initial for initial in self.states if initial.model is not None], []
        for index in range(values["learned"]):
            initial = InitialState(**self.settings)
            initial.loaded = take_group(tensors, str(index))
            self.states.append(initial)
        self.states += learning
