"""Pairs of sequences, and pairs that do not belong together but look as if they did.

What tells pairs from negatives is what a classifier learns: where negatives have other lengths than what they stand
for, length is enough. So each sort matches more of it, and the simplest feature that still tells them apart (see
`segue.analysis.probes.probe`) is the floor that a claim must beat.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from segue.errors import SegueError
from segue.kinds.codons import ORDER, translate

Pair = tuple[str, str]


def other(pairs: Sequence[Pair], i: int, draw: np.random.Generator) -> Pair:
    """The second of another pair, of any length."""
    return pairs[i][0], pairs[_another(pairs, i, np.ones(len(pairs), bool), draw)][1]


def same_length(pairs: Sequence[Pair], i: int, draw: np.random.Generator) -> Pair:
    """The second of another pair, of those that come nearest in length."""
    far = np.array([abs(len(second) - len(pairs[i][1])) for _, second in pairs])
    far[[second == pairs[i][1] for _, second in pairs]] = np.iinfo(far.dtype).max
    return pairs[i][0], pairs[_another(pairs, i, far == far.min(), draw)][1]


def shuffled(pairs: Sequence[Pair], i: int, draw: np.random.Generator) -> Pair:
    """Its own second in another order: of the same length and composition."""
    first, second = pairs[i]
    if len(set(second)) < 2:
        raise SegueError(f"{second[:40]!r} has one order only: leave sequences of a single letter out")
    letters = list(second)
    while (new := "".join(draw.permutation(letters))) == second:
        pass
    return first, new


def mutated(pairs: Sequence[Pair], i: int, draw: np.random.Generator, count: int = 1) -> Pair:
    """Its own second with `count` letters exchanged for others that occur in seconds."""
    first, second = pairs[i]
    alphabet = sorted({letter for _, each in pairs for letter in each})
    letters = list(second)
    if len(alphabet) < 2 or not letters:
        raise SegueError("there are no two letters to exchange: give sequences that are not empty, nor of one letter")
    for at in draw.choice(len(letters), min(count, len(letters)), replace=False):
        letters[at] = str(draw.choice([letter for letter in alphabet if letter != letters[at]]))
    return first, "".join(letters)


def frameshifted(pairs: Sequence[Pair], i: int, draw: np.random.Generator, code: int = 11) -> Pair:
    """Of a DNA and its protein: what the DNA says where a base in its first half is lost (and one comes at its end)."""
    first = pairs[i][0]
    at = int(draw.integers(0, max(1, len(first) // 2)))
    return first, translate(first[:at] + first[at + 1 :] + str(draw.choice(list(ORDER))), code)


NEGATIVES: dict[str, Callable[[Sequence[Pair], int, np.random.Generator], Pair]] = {
    "other": other, "length": same_length, "composition": shuffled, "mutation": mutated, "frameshift": frameshifted,
    "mutations": partial(mutated, count=3)}


def matched_negatives(pairs: Sequence[Pair], how: str = "composition", seed: int = 0) -> list[Pair]:
    """One pair that does not belong together for each that does, with its first. how: a name in NEGATIVES. The same for
    the same pairs and seed."""
    if how not in NEGATIVES:
        raise SegueError(f"negatives '{how}' are unknown: choose from {', '.join(NEGATIVES)}")
    draw = np.random.default_rng(seed)
    return [NEGATIVES[how](pairs, i, draw) for i in range(len(pairs))]


def lengths(pairs: Sequence[Pair], times: float = 1.0) -> np.ndarray:
    """(n, 3) what length alone tells of a pair: both lengths, and how far the first is from `times` the second."""
    both = np.array([[len(first), len(second)] for first, second in pairs], np.float32)
    return np.concatenate([both, np.abs(both[:, :1] - times * both[:, 1:])], 1)


def _another(pairs: Sequence[Pair], i: int, among: np.ndarray, draw: np.random.Generator) -> int:
    others = [j for j in np.flatnonzero(among).tolist() if pairs[j][1] != pairs[i][1]]
    if not others:
        raise SegueError("there is no other pair to take a second from: give at least two different ones")
    return int(draw.choice(others))
