"""Ledger: questions about a few events that take several steps to answer, with the steps, in a hundred words.

A small likeness of DROP (Dua et al. 2019, arXiv 1903.00161) with chains as in Successive Prompting (2022, arXiv
2212.04092): a passage is events `NAME KIND YARDS HALF ;`, a step a simple question about it (`list`, `who`) or a call
(`top`, `bottom`, `count`, `diff`) that `segue.programs.tools` can run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from segue.kinds.codecs import ItemCodec
from segue.tasks.answers import Draw, Pair, echo

NAMES = ("ada", "ben", "cleo", "dan", "eva", "fred", "gina", "hugo", "ida", "joe", "kim", "leo", "mia", "ned", "olga",
         "paul")
KINDS, HALVES = ("run", "pass", "kick"), ("first", "second")
FORMS = ("longest", "shortest", "who", "how-many", "range")
YARDS = range(10, 60)
MODES = ("direct", "chain", "decompose", "solve", "echo")
SIGNS = ("in", "list", "top", "bottom", "count", "diff", "by", "none", "question", "answer", *";(),=|")
CODEC = ItemCodec([*NAMES, *KINDS, *HALVES, *FORMS, *map(str, range(60)), *SIGNS, *MODES])
DONE = "none"
"""What a decomposition says once there is nothing left to ask."""
DIRECT, CHAIN, SOLVE = (f"{mode} {{passage}} question {{question}} answer" for mode in ("direct", "chain", "solve"))
DECOMPOSE, STEP = "decompose {question} question {steps} answer", "{question} = {answer} | "


@dataclass(frozen=True)
class Problem:
    """passage, question: words between blanks. chain: the simple questions and their answers, in order; the last answer
    is the problem's."""

    passage: str
    question: str
    chain: tuple[tuple[str, str], ...]

    @property
    def answer(self) -> str:
        return self.chain[-1][1]


def steps(chain: Sequence[tuple[str, str]]) -> str:
    """Steps as they are shown to what goes on from them."""
    return "".join(STEP.format(question=question, answer=answer) for question, answer in chain)


def problem(random: Random, least: int = 3, most: int = 5) -> Problem:
    """A question of a drawn form about `least` to `most` events with different yards."""
    while True:
        size = random.randint(least, most)
        events = [(random.choice(NAMES), random.choice(KINDS), yards, random.choice(HALVES))
                  for yards in random.sample(YARDS, size)]
        form, kind, half = random.choice(FORMS), random.choice(KINDS), random.choice(("", *HALVES))
        found = [(yards, name) for name, sort, yards, when in events if sort == kind and half in ("", when)]
        if len(found) >= 1 + (form == "range"):
            break
    what = f"{kind} in {half}" if half else kind
    listed = " ; ".join(str(yards) for yards, _ in found)
    (low, _), (high, holder) = min(found), max(found)
    top, bottom = (f"top ( 1 , {listed} )", str(high)), (f"bottom ( 1 , {listed} )", str(low))
    rest = {"longest": (top,), "shortest": (bottom,), "who": (top, (f"by {high}", holder)),
            "how-many": ((f"count ( {listed} )", str(len(found))),),
            "range": (top, bottom, (f"diff ( {high} ; {low} )", str(high - low)))}[form]
    passage = " ".join(f"{name} {sort} {yards} {when} ;" for name, sort, yards, when in events)
    return Problem(passage, f"{form} {what}", ((f"list {what}", listed), *rest))


def skills(complex_: Callable[[Random], Problem], simple: Callable[[Random], Problem] = problem) -> dict[str, Draw]:
    """The skills of one model: "direct" answers complex questions at once, "chain" writes the steps first, "decompose"
    says the next step, "solve" answers one step, "echo" says words again.

    complex_, simple: draw the problems of the first three, and those whose steps are solved."""

    def direct(random: Random) -> Pair:
        drawn = complex_(random)
        return DIRECT.format(passage=drawn.passage, question=drawn.question).split(), [drawn.answer]

    def chain(random: Random) -> Pair:
        drawn = complex_(random)
        asked = CHAIN.format(passage=drawn.passage, question=drawn.question)
        return asked.split(), [*steps(drawn.chain).split(), drawn.answer]

    def decompose(random: Random) -> Pair:
        drawn = complex_(random)
        done = random.randint(0, len(drawn.chain))
        asked = DECOMPOSE.format(question=drawn.question, steps=steps(drawn.chain[:done]))
        return asked.split(), (drawn.chain[done][0] if done < len(drawn.chain) else DONE).split()

    def solve(random: Random) -> Pair:
        drawn = simple(random)
        question, answer = random.choice(drawn.chain)
        return SOLVE.format(passage=drawn.passage, question=question).split(), answer.split()

    words = [*NAMES, *KINDS, *map(str, YARDS)]
    return {"direct": direct, "chain": chain, "decompose": decompose, "solve": solve,
            "echo": echo(words, 8, behind=("answer",))}
