"""What goes with a fitted model so that it can learn on: pieces of what it learned from, and of what it is measured on.

Both are bounded, so a model stays small however much it has learned.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from segue.continual.buffer import Reservoir
from segue.errors import SegueError
from segue.files import read_json, write_json
from segue.training.batches import Store

REPLAY_ELEMENTS = 1 << 18  # of the replay buffer, in all
EXAM_ELEMENTS = 1 << 15  # of each experience's held-out part


def sequences(store: Store) -> Iterator[np.ndarray]:
    """The tokens of each sequence of a store."""
    for begin, end in zip(store.offsets[:-1], store.offsets[1:]):
        yield np.asarray(store.tokens[int(begin) : int(end)])


class Memory:
    """replay: pieces of all training data so far, for strategies that look back. exams: for each experience by name,
    pieces of its held-out part, on which forgetting is measured. context: elements a piece gives to predict."""

    def __init__(self, context: int, seed: int = 0) -> None:
        self.context, self.seed = context, seed
        self.replay = Reservoir(max(1, REPLAY_ELEMENTS // (context + 1)), context + 1, seed)
        self.exams: dict[str, Reservoir] = {}

    def learned(self, name: str, train: Store, held: Store) -> None:
        """Take in an experience: what was learned from, and what it is to be measured on."""
        self.replay.offer(sequences(train))
        self.exams[name] = self.exam(held)

    def exam(self, held: Store) -> Reservoir:
        exam = Reservoir(max(1, EXAM_ELEMENTS // (self.context + 1)), self.context + 1, self.seed)
        exam.offer(sequences(held))
        return exam

    def save(self, folder: Path) -> None:
        self.replay.save(folder / "replay")
        for index, exam in enumerate(self.exams.values()):
            exam.save(folder / f"exam-{index}")
        write_json(folder / "memory.json", {"context": self.context, "seed": self.seed, "exams": list(self.exams)})

    @classmethod
    def load(cls, folder: Path) -> Memory:
        values = read_json(folder / "memory.json")
        try:
            memory, names = cls(values["context"], values["seed"]), list(values["exams"])
        except (KeyError, TypeError, ValueError) as error:
            raise SegueError(f"{folder / 'memory.json'} does not describe what a model keeps ({error!r}): was the "
                             "folder copied whole?") from error
        memory.replay = Reservoir.load(folder / "replay")
        memory.exams = {name: Reservoir.load(folder / f"exam-{index}") for index, name in enumerate(names)}
        return memory
