"""Making data in stages of writing and filtering, where each item knows how it came to be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from segue.errors import SegueError

Value = Mapping[str, Any]
Write = Callable[[Sequence[Value]], Sequence[Iterable[Mapping[str, Any]]]]
"""For each value, the entries that are new in what comes of it: none, one or several."""
Filter = Callable[[Sequence[Value]], Sequence[str]]
"""For each value, why it is dropped; "" keeps it."""


@dataclass(frozen=True)
class Item:
    """value: what it says, JSON by name. trail: for each stage it went through, the stage's name and which of that
    stage's answers it was; the first entry is the number of the value it began as."""

    value: dict[str, Any]
    trail: tuple[tuple[str, int], ...]


@dataclass
class Produced:
    """items: what came through. stages: for each stage, how many came in and went out. dropped: for each filter, how
    many were dropped for which reason."""

    items: list[Item]
    stages: list[tuple[str, int, int]] = field(default_factory=list)
    dropped: dict[str, Counter[str]] = field(default_factory=dict)

    def rows(self) -> list[dict[str, Any]]:
        """JSON rows with their provenance, for `segue.files` or a training set."""
        return [item.value | {"provenance": [list(step) for step in item.trail]} for item in self.items]


class Pipeline:
    """Stages one behind the other; each sees all items at once, so that models are asked together."""

    def __init__(self) -> None:
        self.stages: list[tuple[str, Write | Filter, bool]] = []

    def write(self, name: str, stage: Write) -> Pipeline:
        """A stage that makes items of items."""
        self.stages.append((name, stage, True))
        return self

    def keep(self, name: str, stage: Filter) -> Pipeline:
        """A stage that drops items."""
        self.stages.append((name, stage, False))
        return self

    def run(self, values: Iterable[Value]) -> Produced:
        made = Produced([Item(dict(value), (("given", number),)) for number, value in enumerate(values)])
        for name, stage, writes in self.stages:
            before = made.items
            answers: Sequence[Any] = stage([item.value for item in before])
            if len(answers) != len(before):
                raise SegueError(f"stage '{name}' answered {len(answers)} of {len(before)} items: give one each")
            if writes:
                made.items = [Item(item.value | dict(entry), (*item.trail, (name, number)))
                              for item, entries in zip(before, answers) for number, entry in enumerate(entries)]
            else:
                made.items = [Item(item.value, (*item.trail, (name, 0))) for item, why in zip(before, answers)
                              if not why]
                made.dropped[name] = Counter(why for why in answers if why)
            made.stages.append((name, len(before), len(made.items)))
        return made
