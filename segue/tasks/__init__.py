"""Synthetic tasks: sequences drawn without end whose right answers are known. Fresh draws leave nothing to learn by
heart, so accuracy on other lengths and seeds says what a model can do."""

from __future__ import annotations

from segue.tasks.answers import Answers, echo, small_decoder
from segue.tasks.automata import AUTOMATA, Scratchpad
from segue.tasks.base import Curriculum, Task, read_twice
from segue.tasks.functions import FunctionTask
from segue.tasks.geometry import GEOMETRY
from segue.tasks.graphs import GRAPHS
from segue.tasks.listops import LISTOPS
from segue.tasks.reachability import REACHABILITY, Reachability
from segue.tasks.recall import RECALL
from segue.tasks.sets import INTERSECTION
from segue.tasks.sprites import SpriteWorld

TASKS: dict[str, Task] = {task.name: task for task in (*AUTOMATA, *REACHABILITY, *RECALL, INTERSECTION, LISTOPS)}

__all__ = ["GEOMETRY", "GRAPHS", "TASKS", "Answers", "Curriculum", "FunctionTask", "Reachability", "Scratchpad",
           "SpriteWorld", "Task", "echo", "read_twice", "small_decoder"]
