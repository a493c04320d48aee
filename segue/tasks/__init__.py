"""Synthetic tasks: endless random sequences with known answers. As every batch is new, nothing can be memorised, and
accuracy at other lengths and seeds measures what a model can do."""

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
