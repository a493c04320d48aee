"""Ledger: multi-step questions about a few events, with their reasoning steps, in a vocabulary of about a hundred
words.

A small analogue of DROP (Dua et al. 2019, arXiv 1903.00161) with chains as in Successive Prompting (2022, arXiv
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
"""The output of a decomposition when no step is left."""
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
    """Finished steps, as prompts show them."""
    return "".join(STEP.format(question=question, answer=answer) for question, answer in chain)


def problem(random: Random, least: int = 3, most: int = 5) -> Problem:
    """A question of a random form about `least` to `most` events with different yards."""
    while True:
        size = random.randint(least, most)
        events = [(random.choice(NAMES), random.choice(KINDS), yards, random.choice(HALVES))
                  for yards in random.sample(YARDS, size)]
        form, kind, half = random.choice(FORMS), random.choice(KINDS), random.choice(("", *HALVES))
        matching = [(yards, name) for name, event_kind, yards, event_half in events
                    if event_kind == kind and half in ("", event_half)]
        if len(matching) >= 1 + (form == "range"):
            break
    subject = f"{kind} in {half}" if half else kind
    values = " ; ".join(str(yards) for yards, _ in matching)
    (low, _), (high, holder) = min(matching), max(matching)
    top, bottom = (f"top ( 1 , {values} )", str(high)), (f"bottom ( 1 , {values} )", str(low))
    steps_after = {"longest": (top,), "shortest": (bottom,), "who": (top, (f"by {high}", holder)),
                   "how-many": ((f"count ( {values} )", str(len(matching))),),
                   "range": (top, bottom, (f"diff ( {high} ; {low} )", str(high - low)))}[form]
    passage = " ".join(f"{name} {event_kind} {yards} {event_half} ;" for name, event_kind, yards, event_half in events)
    return Problem(passage, f"{form} {subject}", ((f"list {subject}", values), *steps_after))


def skills(complex_: Callable[[Random], Problem], simple: Callable[[Random], Problem] = problem) -> dict[str, Draw]:
    """The skills of one model: "direct" answers complex questions at once, "chain" writes the steps first, "decompose"
    says the next step, "solve" answers one step, "echo" says words again.

    complex_, simple: draw the problems of the first three, and those whose steps are solved."""

    def direct(random: Random) -> Pair:
        task = complex_(random)
        return DIRECT.format(passage=task.passage, question=task.question).split(), [task.answer]

    def chain(random: Random) -> Pair:
        task = complex_(random)
        prompt = CHAIN.format(passage=task.passage, question=task.question)
        return prompt.split(), [*steps(task.chain).split(), task.answer]

    def decompose(random: Random) -> Pair:
        task = complex_(random)
        done = random.randint(0, len(task.chain))
        prompt = DECOMPOSE.format(question=task.question, steps=steps(task.chain[:done]))
        return prompt.split(), (task.chain[done][0] if done < len(task.chain) else DONE).split()

    def solve(random: Random) -> Pair:
        task = simple(random)
        question, answer = random.choice(task.chain)
        return SOLVE.format(passage=task.passage, question=question).split(), answer.split()

    words = [*NAMES, *KINDS, *map(str, YARDS)]
    return {"direct": direct, "chain": chain, "decompose": decompose, "solve": solve,
            "echo": echo(words, 8, behind=("answer",))}
