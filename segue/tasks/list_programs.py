"""Programs on lists of whole numbers, a few words each, and what they say in other words: a clause for each operation,
in any order. Both ways can be learned within minutes on a CPU, and whether a program does what was said is known."""

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
_SAID = {text: name for name, pair in PHRASES.items() for text in pair}

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
"""What a program does, as Python for `segue.programs.sandbox`: (words of the program, list) -> list or number."""


def drawn(random: Random, least: int = 2, most: int = 4) -> list[Step]:
    """Some operations and an end."""
    names = random.choices([name for name in PHRASES if name not in ENDS], k=random.randint(least, most))
    return [(name, random.randint(1, MOST) if "K" in PHRASES[name][0] else 0)
            for name in [*names, random.choice(ENDS)]]


def program(steps: Sequence[Step]) -> list[str]:
    """The program's words."""
    return [word for name, k in steps for word in ((name, str(k)) if k else (name,))]


def clause(place: str, step: Step, wording: int = 0) -> list[str]:
    """Where an operation comes, and what it does."""
    name, k = step
    return [place, *PHRASES[name][wording].replace("K", str(k)).split()]


def clauses(steps: Sequence[Step]) -> list[tuple[str, Step]]:
    return list(zip([*PLACES[: len(steps) - 1], "last"], steps))


def specification(steps: Sequence[Step], random: Random | None = None) -> list[str]:
    """A clause an operation; with a random, in any order and either wording."""
    found = [clause(place, step, random.randrange(2) if random else 0) for place, step in clauses(steps)]
    if random is not None:
        random.shuffle(found)
    return [word for i, words in enumerate(found) for word in ([","] * (i > 0) + words)]


def read(words: Sequence[str]) -> list[tuple[str, Step]]:
    """The clauses of a specification by place; those that say nothing are left out."""
    found = {}
    for part in " ".join(words).split(" , "):
        place, _, text = part.partition(" ")
        number = next((word for word in text.split() if word.isdigit()), "0")
        name = _SAID.get(" ".join("K" if word.isdigit() else word for word in text.split()))
        if name is not None and place in (*PLACES, "last"):
            found[place] = (name, int(number))
    return [(place, found[place]) for place in (*PLACES, "last") if place in found]


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
    """One step missing, two exchanged, or one with another number or operation: never the same program."""
    while True:
        found, at = list(steps), random.randrange(len(steps))
        match random.choice(("missing", "exchanged", "other")):
            case "missing" if at < len(steps) - 1:
                found.pop(at)
            case "exchanged" if at < len(steps) - 2:
                found[at : at + 2] = found[at + 1], found[at]
            case _:
                *inner, end = drawn(random)
                found[at] = end if at == len(steps) - 1 else random.choice(inner)
        if found != list(steps):
            return found
