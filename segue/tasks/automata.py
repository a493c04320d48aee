"""State-tracking tasks: an automaton reads symbols, and the model predicts its state.

The target is the state after every prefix (Grazzi et al. 2024, arXiv 2411.12537), or with a `Scratchpad` the final
state after intermediate tokens (Merrill & Sabharwal 2023, arXiv 2310.07923). """

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from segue.errors import check_choice
from segue.models.automata import (
    DFA,
    alternating_group,
    counter,
    generators,
    random_dfa,
    symmetric_group,
    transpositions,
    word_problem,
)
from segue.objectives import Batch
from segue.tasks.base import Task


def tracking(name: str, dfa: DFA, source: str = "arXiv 2411.12537") -> Task:
    """A start token and random symbols; the target after each symbol is the automaton's state."""
    start = dfa.symbols

    def draw(rows: int, length: int, generator: torch.Generator) -> Batch:
        word = torch.randint(dfa.symbols, (rows, length - 1), generator=generator)
        ignored = torch.full((rows, 1), -1)
        return Batch(torch.cat([torch.full_like(ignored, start), word], 1), torch.cat([ignored, dfa.run(word)], 1))

    return Task(name, max(dfa.symbols + 1, dfa.states), draw, 1 / dfa.states, source)


def dyck(kinds: int = 2, depth: int = 8) -> Task:
    """Random nested brackets up to `depth`; the target after each is the kind of the innermost open bracket, or `kinds`
    if none is open. Ids: opening brackets 0 ... kinds - 1, closing ones kinds ... 2 kinds - 1, start token 2 kinds."""

    def draw(rows: int, length: int, generator: torch.Generator) -> Batch:
        tokens = torch.full((rows, length), 2 * kinds)
        targets = torch.full((rows, length), -1)
        stack, height = torch.full((rows, depth + 1), kinds), torch.zeros(rows, dtype=torch.long)
        row = torch.arange(rows)
        for t in range(1, length):
            opens = (torch.rand(rows, generator=generator) < 0.5) & (height < depth) | (height == 0)
            kind = torch.randint(kinds, (rows,), generator=generator)
            tokens[:, t] = torch.where(opens, kind, kinds + stack[row, height])
            height = height + torch.where(opens, 1, -1)
            stack[row[opens], height[opens]] = kind[opens]
            targets[:, t] = stack[row, height]
        return Batch(tokens, targets)

    return Task("dyck", 2 * kinds + 1, draw, 1 / (kinds + 1), "arXiv 2310.07923")


POLICIES = ("none", "dummy", "log", "root", "linear")


@dataclass(frozen=True)
class Scratchpad:
    """The intermediate tokens between a word of n symbols and the answer, the state after the word.

    policy: "none"; "dummy", n meaningless tokens; "log", the states after 2, 4, 8 ... symbols; "root", after each of
    about sqrt n equal parts; "linear", all states. Ids: the symbols, the states, a start token, the dummy token.
    """

    policy: str

    def __post_init__(self) -> None:
        check_choice("scratchpad", self.policy, POLICIES)

    def steps(self, n: int) -> list[int]:
        """The prefix lengths whose states are written; the last one is the answer."""
        if self.policy == "linear":
            return list(range(1, n + 1))
        if self.policy == "root":
            return [*range(part := math.isqrt(n), n, part), n]
        return [2**i for i in range(1, n.bit_length()) if 2**i < n and self.policy == "log"] + [n]

    def length(self, n: int) -> int:
        """Tokens of a row: the start token, the symbols and the intermediate tokens, without the answer."""
        return 1 + n + len(self.steps(n)) - 1 + n * (self.policy == "dummy")

    def task(self, name: str, dfa: DFA) -> Task:
        """The word problem with this scratchpad; rows are padded with start tokens in front."""
        start, dummy = dfa.symbols + dfa.states, dfa.symbols + dfa.states + 1

        def draw(rows: int, length: int, generator: torch.Generator) -> Batch:
            n = max(n for n in range(1, length) if self.length(n) <= length)
            word = torch.randint(dfa.symbols, (rows, n), generator=generator)
            written = dfa.symbols + dfa.run(word)[:, torch.tensor(self.steps(n)) - 1]
            padding = torch.full((rows, length - self.length(n) + 1), start)
            dummies = torch.full((rows, n * (self.policy == "dummy")), dummy)
            tokens = torch.cat([padding, word, dummies, written[:, :-1]], 1)
            targets = torch.full_like(tokens, -1)
            targets[:, length - written.shape[1] :] = written
            return Batch(tokens, targets)

        return Task(name, dfa.symbols + dfa.states + 2, draw, 1 / dfa.states, "arXiv 2310.07923",
                    shortest=self.length(1))


S5 = symmetric_group(5)
A5 = alternating_group(5)
A5_WORDS = word_problem(A5, generators(A5, 6))

AUTOMATA = (
    tracking("parity", counter(2)),
    tracking("modular-count", counter(3)),
    tracking("modular-sum", counter(3, 3)),
    tracking("s3-words", word_problem(symmetric_group(3))),
    tracking("s5-words", word_problem(S5, generators(S5, 6))),
    tracking("s5-swaps", word_problem(S5, transpositions(5))),
    tracking("a5-words", A5_WORDS, "arXiv 2310.07923"),
    tracking("random-dfa", random_dfa(6, 3)),
    dyck(),
    *(Scratchpad(policy).task(f"a5-words-{policy}", A5_WORDS) for policy in POLICIES),
)
