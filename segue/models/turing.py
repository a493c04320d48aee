"""Turing machines: tables of rules, a simulator, and some well-known machines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np

from segue.errors import SegueError

BLANK = 0


class Step(NamedTuple):
    """One step of a machine: the state it enters, the symbol it writes on each tape, and by how many cells (-1, 0 or 1)
    it then moves on each."""

    state: int
    written: tuple[int, ...]
    moves: tuple[int, ...]


@dataclass(frozen=True)
class TuringMachine:
    """One or more tapes without end, of symbols 0 ... symbols - 1, the first of which is the blank.

    rules: the step for each (state, symbol read on each tape). A run begins in state 0 with all heads on cell 0, where
    the word on the first tape starts; the machine halts where there is no rule, and accepts if its state is then one of
    `accepting`.
    """

    rules: Mapping[tuple[int, tuple[int, ...]], Step]
    symbols: int
    accepting: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        if not self.rules:
            raise SegueError("a Turing machine without rules does nothing: give some")
        for (state, read), step in self.rules.items():
            sizes = {len(read), len(step.written), len(step.moves)}
            if sizes != {self.tapes} or min(state, step.state) < 0 or not {*step.moves} <= {-1, 0, 1} or \
                    not {*read, *step.written} <= {*range(self.symbols)}:
                raise SegueError(f"the rule for state {state}, reading {read}, is {tuple(step)}: give a state, a "
                                 f"symbol below {self.symbols} for each of {self.tapes} tapes, and a move of -1, 0 or "
                                 "1 for each")

    @property
    def tapes(self) -> int:
        return len(next(iter(self.rules))[1])

    @property
    def states(self) -> int:
        return 1 + max(max(state, step.state) for (state, _), step in self.rules.items())

    def run(self, word: Sequence[int], limit: int = 10_000) -> tuple[list[Step], bool | None]:
        """Run on a word: at most `limit` steps, and whether it accepts (None: it has not halted by then)."""
        cells: list[dict[int, int]] = [dict(enumerate(word)), *({} for _ in range(self.tapes - 1))]
        heads, state, steps = [0] * self.tapes, 0, list[Step]()
        while True:
            step = self.rules.get((state, tuple(tape.get(at, BLANK) for tape, at in zip(cells, heads))))
            if step is None:
                return steps, state in self.accepting
            if len(steps) == limit:
                return steps, None
            for tape, at, symbol in zip(cells, heads, step.written):
                tape[at] = symbol
            heads, state = [at + move for at, move in zip(heads, step.moves)], step.state
            steps.append(step)


def tape_contents(word: Sequence[int], steps: Sequence[Step], tape: int = 0) -> list[int]:
    """The symbols on a tape after these steps, from the first to the last that is not blank."""
    cells, at = dict(enumerate(word if tape == 0 else ())), 0
    for step in steps:
        cells[at] = step.written[tape]
        at += step.moves[tape]
    written = [cell for cell, symbol in cells.items() if symbol != BLANK]
    return [cells.get(cell, BLANK) for cell in range(min(written), max(written) + 1)] if written else []


def increment_machine() -> TuringMachine:
    """Adds one to a binary number; 1 stands for the digit 0, and 2 for 1."""
    zero, one = 1, 2
    to_end, carry, done = range(3)
    rules = {(to_end, zero): (to_end, zero, 1), (to_end, one): (to_end, one, 1), (to_end, BLANK): (carry, BLANK, -1),
             (carry, one): (carry, zero, -1), (carry, zero): (done, one, 0), (carry, BLANK): (done, one, 0)}
    return TuringMachine(single_tape(rules), 3, frozenset({done}))


def palindrome_machine(letters: int = 2) -> TuringMachine:
    """Accepts words of the symbols 1 ... letters that read the same from both ends, comparing these with each other."""
    first, back, accept = 0, 1, 2
    rules = {(back, BLANK): (first, BLANK, 1)}
    for letter in range(1, letters + 1):
        to_end, compare = 1 + 2 * letter, 2 + 2 * letter  # states that remember the letter
        rules |= {(first, letter): (to_end, BLANK, 1), (to_end, BLANK): (compare, BLANK, -1),
                  (compare, letter): (back, BLANK, -1), (compare, BLANK): (accept, BLANK, 0),
                  (back, letter): (back, letter, -1)}
        rules |= {(to_end, other): (to_end, other, 1) for other in range(1, letters + 1)}
    return TuringMachine(single_tape(rules), letters + 1, frozenset({first, accept}))


def single_tape(rules: Mapping[tuple[int, int], tuple[int, int, int]]) -> dict[tuple[int, tuple[int, ...]], Step]:
    """Rules written without the tuples, for a machine of one tape."""
    return {(state, (read,)): Step(then, (written,), (move,)) for (state, read), (then, written, move) in rules.items()}


def random_machine(states: int, symbols: int, tapes: int = 1, seed: int = 0) -> TuringMachine:
    """Random rules, a twentieth of them missing, with a random half of the states accepting."""
    draw, rules = np.random.default_rng(seed), dict[tuple[int, tuple[int, ...]], Step]()
    for state in range(states):
        for read in product(range(symbols), repeat=tapes):
            if not rules or draw.random() < 0.95:
                written, moves = draw.integers(symbols, size=tapes), draw.integers(-1, 2, size=tapes)
                rules[state, read] = Step(int(draw.integers(states)), tuple(written.tolist()), tuple(moves.tolist()))
    return TuringMachine(rules, symbols, frozenset(np.flatnonzero(draw.random(states) < 0.5).tolist()))
