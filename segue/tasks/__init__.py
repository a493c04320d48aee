"""Synthetic tasks: sequences drawn without end whose right answers are known. Fresh draws leave nothing to learn by
heart, so accuracy on other lengths and seeds says what a model can do."""

from __future__ import annotations

from segue.tasks.automata import AUTOMATA, Scratchpad
from segue.tasks.base import Task
from segue.tasks.listops import LISTOPS
from segue.tasks.recall import RECALL

TASKS: dict[str, Task] = {task.name: task for task in (*AUTOMATA, *RECALL, LISTOPS)}

__all__ = ["TASKS", "Scratchpad", "Task"]
