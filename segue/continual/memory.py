"""The data that is saved with a fitted model for later updates: pieces of its training data and of held-out data.

Both are bounded, so a model stays small however much data it has seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from segue.continual.buffer import Reservoir, structured
from segue.errors import SegueError
from segue.files import read_json, write_json
from segue.objectives import Batch
from segue.training.batches import Arrays, Batches, Store
from segue.training.checkpoint import load_tensors, save_tensors
from segue.training.strategy import Strategy
from segue.training.timed import EventStore

REPLAY_ELEMENTS = 1 << 18  # of the replay buffer, in all
STRATEGY = "strategy.safetensors"
EXAM_ELEMENTS = 1 << 15  # of each experience's held-out part


def sequences(store: Store, channels: Sequence[str] = ()) -> Iterator[np.ndarray]:
    """The tokens of each sequence of a store, structured with these channels of the store if there are any."""
    for begin, end in zip(store.offsets[:-1].tolist(), store.offsets[1:].tolist()):
        yield structured(store.tokens[begin:end], **{name: store.channels[name][begin:end] for name in channels})


class Memory:
    """Data kept for updates. replay: a sample of all training data so far. exams: by name of the experience, a sample
    of its held-out data, on which forgetting is measured. context: predicted elements per piece. strategy: the name and
    the state of the strategy of the last update, if it has any. channels: those of the data that are kept beside the
    ids; with "gap", pieces are events in time."""

    def __init__(self, context: int, seed: int = 0, channels: Sequence[str] = ()) -> None:
        self.context, self.seed, self.channels = context, seed, tuple(channels)
        self.replay = Reservoir(max(1, REPLAY_ELEMENTS // (context + 1)), context + 1, seed)
        self.exams: dict[str, Reservoir] = {}
        self.strategy: tuple[str, dict[str, Tensor], dict[str, Any]] | None = None

    def past(self, rows: int, seed: int, packing: bool) -> list[Batch]:
        """All pieces of the replay buffer once, in batches of `rows` rows; see `Batches`."""
        if not len(self.replay):
            return []
        batches = Batches(self.open(self.replay), self.context, rows, seed, packing)
        try:
            return [batches.make(step) for step in range(len(batches.epoch(0).batches))]
        finally:
            batches.close()

    def open(self, sample: Reservoir) -> Store:
        """The pieces of a sample as sequences to train on or to measure."""
        pieces = Arrays(sample.pieces)
        return EventStore(pieces) if "gap" in pieces.channels else pieces

    def remind(self, strategy: Strategy) -> None:
        """Restore the strategy's state after the last update, if that used the same strategy."""
        if self.strategy is not None and self.strategy[0] == strategy.name:
            _, tensors, values = self.strategy
            strategy.load_state({name: t.clone() for name, t in tensors.items()}, values)

    def keep(self, strategy: Strategy) -> None:
        """Store the strategy's state for the next update, in place of any other's."""
        tensors, values = strategy.state()
        self.strategy = (strategy.name, tensors, values) if tensors else None

    def learned(self, name: str, train: Store, held: Store) -> None:
        """Add an experience: its training data to the replay sample, and its held-out data as an exam."""
        self.replay.offer(sequences(train, self.channels))
        self.exams[name] = self.exam(held)

    def exam(self, held: Store) -> Reservoir:
        exam = Reservoir(max(1, EXAM_ELEMENTS // (self.context + 1)), self.context + 1, self.seed)
        exam.offer(sequences(held, self.channels))
        return exam

    def save(self, folder: Path) -> None:
        self.replay.save(folder / "replay")
        for index, exam in enumerate(self.exams.values()):
            exam.save(folder / f"exam-{index}")
        if self.strategy is not None:
            name, tensors, values = self.strategy
            save_tensors(folder / STRATEGY, tensors, {"name": name, "values": values})
        else:
            (folder / STRATEGY).unlink(missing_ok=True)
        write_json(folder / "memory.json", {"context": self.context, "seed": self.seed, "exams": list(self.exams),
                                            **({"channels": self.channels} if self.channels else {})})

    @classmethod
    def load(cls, folder: Path) -> Memory:
        values = read_json(folder / "memory.json")
        try:
            memory = cls(values["context"], values["seed"], values.get("channels", ()))
            names = list(values["exams"])
        except (KeyError, TypeError, ValueError) as error:
            raise SegueError(f"{folder / 'memory.json'} does not describe what a model keeps ({error!r}): was the "
                             "folder copied whole?") from error
        memory.replay = Reservoir.load(folder / "replay")
        if (folder / STRATEGY).exists():
            tensors, kept = load_tensors(folder / STRATEGY)
            if not isinstance(kept.get("name"), str) or not isinstance(kept.get("values"), dict):
                raise SegueError(f"{folder / STRATEGY} does not say which strategy it is of: remove it")
            memory.strategy = kept["name"], tensors, kept["values"]
        memory.exams = {name: Reservoir.load(folder / f"exam-{index}") for index, name in enumerate(names)}
        return memory
