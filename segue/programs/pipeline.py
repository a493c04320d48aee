"""Data generation in stages of writing and filtering, with the provenance of each item."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from segue.errors import SegueError

Value = Mapping[str, Any]
Write = Callable[[Sequence[Value]], Sequence[Iterable[Mapping[str, Any]]]]
"""For each value, the new entries of each item made from it: none, one or several."""
Filter = Callable[[Sequence[Value]], Sequence[str]]
"""For each value, the reason to drop it; "" keeps it."""


@dataclass(frozen=True)
class Item:
    """value: its JSON values by name. trail: for each stage it went through, the stage's name and the number of that
    stage's answer; the first entry is the number of the input value."""

    value: dict[str, Any]
    trail: tuple[tuple[str, int], ...]


@dataclass
class Produced:
    """items: the results. stages: for each stage, its name and numbers of items in and out. dropped: for each filter,
    the counts of reasons."""

    items: list[Item]
    stages: list[tuple[str, int, int]] = field(default_factory=list)
    dropped: dict[str, Counter[str]] = field(default_factory=dict)

    def rows(self) -> list[dict[str, Any]]:
        """JSON rows with their provenance, for `segue.files` or a training set."""
        return [item.value | {"provenance": [list(step) for step in item.trail]} for item in self.items]


class Pipeline:
    """A sequence of stages; each gets all items at once, so that models are called in batches."""

    def __init__(self) -> None:
        self.stages: list[tuple[str, Write | Filter, bool]] = []

    def write(self, name: str, stage: Write) -> Pipeline:
        """Add a stage that makes new items from items."""
        self.stages.append((name, stage, True))
        return self

    def keep(self, name: str, stage: Filter) -> Pipeline:
        """Add a stage that drops items."""
        self.stages.append((name, stage, False))
        return self

    def run(self, values: Iterable[Value]) -> Produced:
        produced = Produced([Item(dict(value), (("given", number),)) for number, value in enumerate(values)])
        for name, stage, writes in self.stages:
            items = produced.items
            answers: Sequence[Any] = stage([item.value for item in items])
            if len(answers) != len(items):
                raise SegueError(f"stage '{name}' answered {len(answers)} of {len(items)} items: give one each")
            if writes:
                produced.items = [Item(item.value | dict(entry), (*item.trail, (name, number)))
                                  for item, entries in zip(items, answers) for number, entry in enumerate(entries)]
            else:
                produced.items = [Item(item.value, (*item.trail, (name, 0))) for item, reason in zip(items, answers)
                                  if not reason]
                produced.dropped[name] = Counter(reason for reason in answers if reason)
            produced.stages.append((name, len(items), len(produced.items)))
        return produced
