"""Finite automata: tables of transitions, the common ones, and the words of permutation groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import torch
from torch import Tensor

from segue.errors import SegueError

Permutation = tuple[int, ...]


@dataclass(frozen=True)
class DFA:
    """A deterministic automaton that begins in state 0.

    delta: (Q, S) long; the state after reading a symbol in a state. accepting: (Q,) bool, or None where none is asked.
    """

    delta: Tensor
    accepting: Tensor | None = None

    def __post_init__(self) -> None:
        if self.delta.dim() != 2 or not self.delta.numel() or not 0 <= int(self.delta.min()) <= int(self.delta.max()) \
                < self.states:
            raise SegueError(f"a table of transitions {tuple(self.delta.shape)} names states that it does not have: "
                             "give (states, symbols) entries below the number of states")

    @property
    def states(self) -> int:
        return self.delta.shape[0]

    @property
    def symbols(self) -> int:
        return self.delta.shape[1]

    def run(self, word: Tensor) -> Tensor:
        """(B, T) long symbols -> (B, T) the state after each of them."""
        state, found = torch.zeros(word.shape[0], dtype=torch.long), []
        for t in range(word.shape[1]):
            state = self.delta[state, word[:, t]]
            found.append(state)
        return torch.stack(found, 1) if found else word.clone()


def counter(modulus: int, symbols: int = 2) -> DFA:
    """Adds each symbol 0 ... symbols - 1 to a sum modulo `modulus`: parity (2, 2), counting (m, 2), sums (m, m)."""
    return DFA((torch.arange(modulus)[:, None] + torch.arange(symbols)) % modulus)


def random_dfa(states: int, symbols: int, seed: int = 0) -> DFA:
    """Random transitions among states that can all be reached, with a random half of them accepting."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        delta = torch.randint(states, (states, symbols), generator=generator)
        reached = torch.zeros(states, dtype=torch.bool)
        reached[0] = True
        for _ in range(states):
            reached[delta[reached].flatten()] = True
        if bool(reached.all()):
            return DFA(delta, torch.rand(states, generator=generator) < 0.5)


def compose(first: Permutation, then: Permutation) -> Permutation:
    """What doing `first` and `then` after it does to each place."""
    return tuple(then[i] for i in first)


def is_even(permutation: Permutation) -> bool:
    n = len(permutation)
    return sum(permutation[i] > permutation[j] for i in range(n) for j in range(i + 1, n)) % 2 == 0


def symmetric_group(n: int) -> list[Permutation]:
    """All permutations of n places, the identity first."""
    return list(permutations(range(n)))


def alternating_group(n: int) -> list[Permutation]:
    """The even ones, the identity first."""
    return [p for p in symmetric_group(n) if is_even(p)]


def transpositions(n: int) -> list[Permutation]:
    """The identity and every exchange of two places."""
    return [p for p in symmetric_group(n) if sum(i != j for i, j in enumerate(p)) <= 2]


def generators(group: Sequence[Permutation], count: int) -> list[Permutation]:
    """`count` elements, drawn until their products are the whole group; the same every time."""
    generator = torch.Generator().manual_seed(0)
    while True:
        chosen = [group[i] for i in torch.randperm(len(group), generator=generator)[:count].tolist()]
        reached, edge = {group[0]}, [group[0]]
        while edge:
            edge = list({compose(p, g) for p in edge for g in chosen} - reached)
            reached |= set(edge)
        if len(reached) == len(group):
            return chosen


def word_problem(group: Sequence[Permutation], alphabet: Sequence[Permutation] | None = None) -> DFA:
    """State i is the product `group[i]` of the elements read so far, each one of the `alphabet` (default: any)."""
    index = {p: i for i, p in enumerate(group)}
    return DFA(torch.tensor([[index[compose(p, a)] for a in alphabet or group] for p in group]))
