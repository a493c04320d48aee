"""Programs on lists of integers, and specifications of them in words: one clause for each operation, in any order. Tiny
models learn to translate both ways within minutes on a CPU, and whether a program meets its specification is known."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from segue.errors import SegueError

PHRASES = {
    "add": ("add K to each", "increase all by K"), "mul": ("multiply each by K", "scale all by K"),
    "even": ("keep the even ones", "throw out odd ones"), "odd": ("keep the odd ones", "throw out even ones"),
    "above": ("keep those above K", "throw out up to K"), "drop": ("skip the foremost K", "leave K out in front"),
    "take": ("take the foremost K", "stop after K"), "reverse": ("turn it around", "read it backwards"),
    "sort": ("sort them", "put in order"), "once": ("remove doubles", "keep each once"),
    "list": ("give the list", "return all"), "sum": ("give the total", "return them summed"),
    "max": ("give the largest", "return the maximum"), "len": ("give the count", "return how many"),
}
ENDS = ("list", "sum", "max", "len")
PLACES = ("1st", "2nd", "3rd", "4th")
MOST = 9
WORDS = tuple(dict.fromkeys([*PHRASES, *map(str, range(1, MOST + 1)), *PLACES, "last", ",",
                             *(word for pair in PHRASES.values() for text in pair for word in text.split()
                               if word != "K")]))
_OPERATIONS = {text: name for name, pair in PHRASES.items() for text in pair}

Step = tuple[str, int]
"""An operation and its number, 0 where it has none."""
SOURCE = '''def evaluate(program, numbers):
    steps = list(program)
    while steps:
        name = steps.pop(0)
        if name in ("add", "mul", "above", "drop", "take"):
            k = int(steps.pop(0))
        if name == "add": numbers = [n + k for n in numbers]
        elif name == "mul": numbers = [n * k for n in numbers]
        elif name == "even": numbers = [n for n in numbers if n % 2 == 0]
        elif name == "odd": numbers = [n for n in numbers if n % 2]
        elif name == "above": numbers = [n for n in numbers if n > k]
        elif name == "drop": numbers = numbers[k:]
        elif name == "take": numbers = numbers[:k]
        elif name == "reverse": numbers = numbers[::-1]
        elif name == "sort": numbers = sorted(numbers)
        elif name == "once": numbers = list(dict.fromkeys(numbers))
        else:
            if steps: raise ValueError("words behind the end")
            return {"list": list, "sum": sum, "max": lambda n: max(n, default=0), "len": len}[name](numbers)
    raise ValueError("no end")
'''
"""An interpreter of programs in Python, for `segue.programs.sandbox`: (words of a program, list) -> list or number."""


def random_program(random: Random, least: int = 2, most: int = 4) -> list[Step]:
    """`least` to `most` operations and an end."""
    names = random.choices([name for name in PHRASES if name not in ENDS], k=random.randint(least, most))
    return [(name, random.randint(1, MOST) if "K" in PHRASES[name][0] else 0)
            for name in [*names, random.choice(ENDS)]]


def program(steps: Sequence[Step]) -> list[str]:
    """The program's words."""
    return [word for name, k in steps for word in ((name, str(k)) if k else (name,))]


def clause(place: str, step: Step, wording: int = 0) -> list[str]:
    """The words of one operation: its place and what it does, in one of two wordings."""
    name, k = step
    return [place, *PHRASES[name][wording].replace("K", str(k)).split()]


def clauses(steps: Sequence[Step]) -> list[tuple[str, Step]]:
    """Each step with its place."""
    return list(zip([*PLACES[: len(steps) - 1], "last"], steps))


def specification(steps: Sequence[Step], random: Random | None = None) -> list[str]:
    """A clause for each operation; with `random`, in random order and wording."""
    parts = [clause(place, step, random.randrange(2) if random else 0) for place, step in clauses(steps)]
    if random is not None:
        random.shuffle(parts)
    return [word for i, words in enumerate(parts) for word in ([","] * (i > 0) + words)]


def parse_clauses(words: Sequence[str]) -> list[tuple[str, Step]]:
    """The steps of a specification, sorted by place; clauses that cannot be parsed are left out."""
    step_at = {}
    for part in " ".join(words).split(" , "):
        place, _, text = part.partition(" ")
        number = next((word for word in text.split() if word.isdigit()), "0")
        name = _OPERATIONS.get(" ".join("K" if word.isdigit() else word for word in text.split()))
        if name is not None and place in (*PLACES, "last"):
            step_at[place] = (name, int(number))
    return [(place, step_at[place]) for place in (*PLACES, "last") if place in step_at]


def steps_of(words: Sequence[str]) -> list[Step]:
    """The steps of a program's words."""
    steps = list[Step]()
    for word in words:
        if word in PHRASES:
            steps.append((word, 0))
        elif steps and word.isdigit():
            steps[-1] = (steps[-1][0], int(word))
        else:
            raise SegueError(f"'{word}' is no operation: choose from {', '.join(PHRASES)}")
    return steps


def corrupted(steps: Sequence[Step], random: Random) -> list[Step]:
    """A different program: one step missing, two exchanged, or one with another number or operation."""
    while True:
        changed, i = list(steps), random.randrange(len(steps))
        match random.choice(("missing", "exchanged", "other")):
            case "missing" if i < len(steps) - 1:
                changed.pop(i)
            case "exchanged" if i < len(steps) - 2:
                changed[i : i + 2] = changed[i + 1], changed[i]
            case _:
                *inner, end = random_program(random)
                changed[i] = end if i == len(steps) - 1 else random.choice(inner)
        if changed != list(steps):
            return changed
