"""ListOps (Nangia & Bowman 2018, arXiv 1804.06028): the value of nested lists of digits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median

import torch

from segue.errors import SegueError
from segue.objectives import Batch
from segue.tasks.base import Task

OPERATORS: dict[str, Callable[[list[int]], int]] = {
    "[MIN": min, "[MAX": max, "[MED": lambda digits: int(median(digits)), "[SM": lambda digits: sum(digits) % 10}
SYMBOLS = [*map(str, range(10)), *OPERATORS, "]"]
"""The symbol of each id; the id after the last one is padding in front of a row."""
ARGUMENTS = 5  # of one operator, at most


def value(expression: Sequence[str]) -> int:
    """The value of an expression: ["[MAX", "2", "[MIN", "4", "7", "]", "]"] -> 4."""
    stack: list[tuple[str, list[int]]] = [("", [])]
    for symbol in expression:
        if symbol in OPERATORS:
            stack.append((symbol, []))
        elif symbol == "]" and len(stack) > 1 and stack[-1][1]:
            operator, digits = stack.pop()
            stack[-1][1].append(OPERATORS[operator](digits))
        elif symbol in SYMBOLS[:10]:
            stack[-1][1].append(int(symbol))
        else:
            raise SegueError(f"'{symbol}' is out of place: an expression is a digit or an operator "
                             f"({', '.join(OPERATORS)}), expressions and ]")
    if len(stack) > 1 or len(stack[0][1]) != 1:
        raise SegueError(f"not one whole expression: {' '.join(expression)[:80]}")
    return stack[0][1][0]


def expression(room: int, generator: torch.Generator) -> list[int]:
    """Ids of a random expression of at most `room` elements: an operator's if there is room for one, else a digit."""
    def draw(below: int) -> int:
        return int(torch.randint(below, (), generator=generator))

    if room < 4:
        return [draw(10)]
    count = 2 + draw(min(ARGUMENTS, room - 2) - 1)
    spare = room - 2 - count
    cuts = sorted(draw(spare + 1) for _ in range(count - 1))
    rooms = [1 + end - begin for begin, end in zip([0, *cuts], [*cuts, spare])]
    return [10 + draw(len(OPERATORS)), *(i for part in rooms for i in expression(part, generator)), len(SYMBOLS) - 1]


def listops(rows: int, length: int, generator: torch.Generator) -> Batch:
    """One expression a row; the target at its last element is its value."""
    tokens, targets = torch.full((rows, length), len(SYMBOLS)), torch.full((rows, length), -1)
    for row in range(rows):
        ids = expression(length, generator)
        tokens[row, length - len(ids) :] = torch.tensor(ids)
        targets[row, -1] = value([SYMBOLS[i] for i in ids])
    return Batch(tokens, targets)


LISTOPS = Task("listops", len(SYMBOLS) + 1, listops, 1 / 10, "arXiv 1804.06028", shortest=4)
