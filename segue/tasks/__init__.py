"""Synthetic tasks: sequences drawn without end whose right answers are known. Fresh draws leave nothing to learn by
heart, so accuracy on other lengths and seeds says what a model can do."""

from __future__ import annotations

from segue.tasks.base import Task, read_twice
from segue.tasks.recall import COPY
from segue.tasks.sets import INTERSECTION

TASKS: dict[str, Task] = {task.name: task for task in (COPY, INTERSECTION)}

__all__ = ["TASKS", "Task", "read_twice"]
