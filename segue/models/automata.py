"""Finite automata as transition tables: common ones, random ones, and word problems of permutation groups."""

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
    """A deterministic finite automaton with initial state 0.

    delta: (Q, S) long, the next state for each state and symbol. accepting: (Q,) bool, or None if not needed.
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
        """Return the state after each symbol of words (B, T) long: (B, T)."""
        state, states = torch.zeros(word.shape[0], dtype=torch.long), []
        for t in range(word.shape[1]):
            state = self.delta[state, word[:, t]]
            states.append(state)
        return torch.stack(states, 1) if states else word.clone()


def counter(modulus: int, symbols: int = 2) -> DFA:
    """Return the automaton that sums its symbols 0 ... symbols - 1 modulo `modulus`: parity (2, 2), counting (m, 2)."""
    return DFA((torch.arange(modulus)[:, None] + torch.arange(symbols)) % modulus)


def random_dfa(states: int, symbols: int, seed: int = 0) -> DFA:
    """Return a random automaton whose states are all reachable, each accepting with probability 1/2."""
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
    """Return the permutation that applies `first`, then `then`."""
    return tuple(then[i] for i in first)


def is_even(permutation: Permutation) -> bool:
    """Return whether the number of inversions is even."""
    n = len(permutation)
    return sum(permutation[i] > permutation[j] for i in range(n) for j in range(i + 1, n)) % 2 == 0


def symmetric_group(n: int) -> list[Permutation]:
    """Return all permutations of n places, the identity first."""
    return list(permutations(range(n)))


def alternating_group(n: int) -> list[Permutation]:
    """Return the even permutations of n places, the identity first."""
    return [p for p in symmetric_group(n) if is_even(p)]


def transpositions(n: int) -> list[Permutation]:
    """Return the identity and all exchanges of two places."""
    return [p for p in symmetric_group(n) if sum(i != j for i, j in enumerate(p)) <= 2]


def generators(group: Sequence[Permutation], count: int) -> list[Permutation]:
    """Return `count` random elements that generate the whole group; the same in every call."""
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
    """Return the automaton of a group's word problem: state i means that the product of the elements read so far is
    `group[i]`; symbols are elements of `alphabet` (default: the group)."""
    index = {p: i for i, p in enumerate(group)}
    return DFA(torch.tensor([[index[compose(p, a)] for a in alphabet or group] for p in group]))
