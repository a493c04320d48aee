"""Write docs/scoreboard.md, from the board in benchmarks/results/scoreboard.

    segue compare --tasks synthetic --out benchmarks/results/scoreboard
    python tools/scoreboard.py

Commit the board, its picture and the page together: a test compares the page with what this makes.
"""

from __future__ import annotations

from pathlib import Path
from statistics import mean

from segue.files import read_json, write_text
from segue.mixers import MIXERS
from segue.tasks import TASKS
from segue.verbs.scoreboard import DEPTH, RATE, SOLVED, TEST_ROWS, VARIANTS, Score, Scoreboard, board_mixers

ROOT = Path(__file__).resolve().parents[1]
BOARD = ROOT / "benchmarks" / "results" / "scoreboard"
PAGE = ROOT / "docs" / "scoreboard.md"
SOLVED_SHARE = 0.95  # of the way from a guess to all right

QUESTIONS = {
    "parity": "after each bit: is the number of ones so far odd? One state to flip",
    "modular-count": "after each bit: the number of ones so far, modulo three. A rotation, beyond any diagonal real "
                     "recurrence",
    "s5-words": "after each of five random permutations of five places: which of the 120 permutations are they "
                "all together? Products that do not commute, in a group that is not solvable",
    "copy": "say six symbols again, of eight kinds",
    "selective-copy": "the same of three symbols strewn among blanks: what does not matter must be left out",
    "mqar": "multi-query associative recall: four keys, each with its value, then the keys in another order, each "
            "asking for its value",
    "induction": "random symbols; each one that was seen before asks for what followed it last",
    "needle": "the one marked value in a row of noise, asked for at its end",
    "listops": "the value of nested lists of digits under minimum, maximum, median and sum modulo ten",
}

INTRODUCTION = """\
# Which mixer learns what?

Every mixer that only looks back, on nine tasks whose right answers are known: three of tracking a state, five of
recalling what was read, one of reading a tree. Open this page to choose a mixer; [the page of mixers](mixers.md) says
what each one costs and keeps. This page is written by `python tools/scoreboard.py` from what
`segue compare --tasks synthetic --out DIR` measured.

![Accuracy of every mixer on every task, at the longest length of the training and at twice that]({picture})

How to read it: a number is the accuracy in percent on {rows} fresh rows, over all elements that are asked for. The
colour is how far that lies on the way from a guess, which is the last row, to all right: dark has learned nothing. To
the left the rows are as long as the longest of the training, to the right twice as long, longer than any that was
trained on: a mixer that is bright there has found the rule. The best in the mean of both comes first.

All is equal but the mixer: {depth} layers, {least:,} to {most:,} parameters (the width is as large as fits, what is
left goes to the channel mixers), the same rows in the same order, Muon at {rate} for all, no dropout, one seed
({seed}). A training ends when {solved:.0%} of fresh answers are right, or after the steps below. The budget is small,
seconds a cell, so that it separates mixers: a dark cell says *not learned in so many steps*, not *cannot be learned*,
and a few points between two mixers say nothing. A mixer that reads both ways has no place here, since most rows say
their answers later.
"""


def row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def read_board() -> Scoreboard:
    values = read_json(BOARD / "scoreboard.json")
    return Scoreboard(**values | {"scores": [Score(**score) for score in values["scores"]]})


def mixer_link(mixer: str) -> str:
    """A link to the mixer's file, and the options of a variant."""
    name = mixer.partition(":")[0]
    file = MIXERS[name].__module__.rpartition(".")[2]
    options = ", ".join(f"{option} {value}" for option, value in VARIANTS.get(mixer, {}).items())
    return f"[`{mixer}`](../segue/mixers/{file}.py)" + f" ({options})" * bool(options)


def page() -> str:
    board = read_board()
    scores = [score for score in board.scores if not score.failure]
    sizes = [score.parameters for score in scores]
    lines = [INTRODUCTION.format(picture="../benchmarks/results/scoreboard/scoreboard.png", rows=TEST_ROWS, depth=DEPTH,
                                 least=min(sizes), most=max(sizes), rate=RATE, seed=board.seed, solved=SOLVED),
             row("task", "what is asked", "length", "steps", "a guess", "source"), row(*["---"] * 6)]
    for task, length in board.lengths.items():
        lines.append(row(f"`{task}`", QUESTIONS[task], f"{length}, {2 * length}", str(board.steps[task]),
                         f"{board.guess[task]:.0%}", TASKS[task].source))
    lines += ["", "In short. *learned*, *longer*: the mean over the tasks of how far a mixer is on the way from "
              f"a guess to all right, at both lengths. *solved*: the tasks on which that is {SOLVED_SHARE:.0%} at "
              "least, in bold where at twice the length too. *time*: of one core for 100 steps.", "",
              row("mixer", "learned", "longer", "solved", "width", "time"), row(*["---"] * 6)]
    for mixer in board.mixers:
        trained_length, twice_as_long = ([board.above_guess(mixer, task, field) for task in board.lengths]
                                         for field in ("accuracy", "longer"))
        solved = [f"**{task}**" if b >= SOLVED_SHARE else task
                  for task, a, b in zip(board.lengths, trained_length, twice_as_long) if a >= SOLVED_SHARE]
        mixer_scores = [score for score in scores if score.mixer == mixer]
        widths = sorted({score.width for score in mixer_scores})
        per_step = sum(score.seconds for score in mixer_scores) / max(1, sum(score.steps for score in mixer_scores))
        lines.append(row(mixer_link(mixer), f"{mean(trained_length):.0%}", f"{mean(twice_as_long):.0%}",
                         ", ".join(solved),
                         " to ".join(map(str, dict.fromkeys((widths[0], widths[-1])) if widths else [])),
                         f"{100 * per_step:.1f} s"))
    failed = [f"- {score.mixer} on {score.task} failed: {score.failure}" for score in board.scores if score.failure]
    missing = ", ".join(f"`{mixer}`" for mixer in board_mixers() if mixer not in board.mixers)
    lines += ["", f"Measured with {board.summary}." + f" Not measured yet: {missing}." * bool(missing), *failed]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    write_text(PAGE, page())
