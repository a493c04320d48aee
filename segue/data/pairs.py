"""Negatives for classifiers of pairs: pairs that do not belong together but look as if they did.

A classifier learns whatever distinguishes true pairs from negatives: if those differ in length, length is enough. The
functions here match more and more features of the true pair, and the simplest feature that still separates them (see
`segue.analysis.probes.probe`) is the baseline that a claim must beat.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from segue.errors import SegueError
from segue.kinds.codons import ORDER, translate

Pair = tuple[str, str]


def other(pairs: Sequence[Pair], draw: np.random.Generator) -> Iterator[str]:
    """For each pair, the second of another pair, of any length."""
    _check_pairs(pairs)
    return (_draw_other(pairs, second, range(len(pairs)), draw) for _, second in pairs)


def same_length(pairs: Sequence[Pair], draw: np.random.Generator) -> Iterator[str]:
    """For each pair, the second of another pair with the nearest length."""
    _check_pairs(pairs)
    by_length = defaultdict[int, list[int]](list)
    for i, (_, second) in enumerate(pairs):
        by_length[len(second)].append(i)
    with_choice = {n for n, group in by_length.items() if len({pairs[i][1] for i in group}) > 1}
    for _, second in pairs:
        n = len(second)
        nearest = min((abs(m - n) for m in by_length if m != n or n in with_choice), default=0)
        candidates = by_length[n] if nearest == 0 else by_length.get(n - nearest, []) + by_length.get(n + nearest, [])
        yield _draw_other(pairs, second, candidates, draw)


def shuffled(pairs: Sequence[Pair], draw: np.random.Generator) -> Iterator[str]:
    """For each pair, its own second shuffled: the same length and composition."""
    for _, second in pairs:
        if len(set(second)) < 2:
            raise SegueError(f"{second[:40]!r} has one order only: leave sequences of a single letter out")
        while (new := "".join(draw.permutation(list(second)))) == second:
            pass
        yield new


def mutated(pairs: Sequence[Pair], draw: np.random.Generator, count: int = 1) -> Iterator[str]:
    """For each pair, its own second with `count` letters replaced by others that occur in seconds."""
    alphabet = sorted({letter for _, second in pairs for letter in second})
    for _, second in pairs:
        letters = list(second)
        if len(alphabet) < 2 or not letters:
            raise SegueError("there are no two letters to exchange: give sequences that are not empty, nor all of one "
                             "letter")
        for at in draw.choice(len(letters), min(count, len(letters)), replace=False):
            letters[at] = str(draw.choice([letter for letter in alphabet if letter != letters[at]]))
        yield "".join(letters)


def frameshifted(pairs: Sequence[Pair], draw: np.random.Generator, code: int = 11) -> Iterator[str]:
    """For each pair of DNA and protein, the translation after deleting a base in the first half (and adding one at the
    end)."""
    for first, _ in pairs:
        at = int(draw.integers(0, max(1, len(first) // 2)))
        yield translate(first[:at] + first[at + 1 :] + str(draw.choice(list(ORDER))), code)


def _draw_other(pairs: Sequence[Pair], second: str, candidates: Sequence[int], draw: np.random.Generator) -> str:
    """A random second of `among` that differs from `second`; at least one must."""
    while (drawn := pairs[candidates[int(draw.integers(len(candidates)))]][1]) == second:
        pass
    return drawn


def _check_pairs(pairs: Sequence[Pair]) -> None:
    if len({second for _, second in pairs}) < 2:
        raise SegueError("there is no other pair to take a second from: give at least two different ones")


NEGATIVES: dict[str, Callable[[Sequence[Pair], np.random.Generator], Iterator[str]]] = {
    "other": other, "length": same_length, "composition": shuffled, "mutation": mutated, "frameshift": frameshifted,
    "mutations": partial(mutated, count=3)}


def matched_negatives(pairs: Sequence[Pair], how: str = "composition", seed: int = 0) -> list[Pair]:
    """One negative for each pair, with the same first. how: a name in NEGATIVES. Deterministic given pairs and seed."""
    if how not in NEGATIVES:
        raise SegueError(f"negatives '{how}' are unknown: choose from {', '.join(NEGATIVES)}")
    return [(first, new) for (first, _), new in zip(pairs, NEGATIVES[how](pairs, np.random.default_rng(seed)))]


def length_features(pairs: Sequence[Pair], times: float = 1.0) -> np.ndarray:
    """(n, 3) features of length alone: both lengths, and how far the first is from `times` the second."""
    lengths = np.array([[len(first), len(second)] for first, second in pairs], np.float32)
    return np.concatenate([lengths, np.abs(lengths[:, :1] - times * lengths[:, 1:])], 1)


@dataclass(frozen=True)
class Distance:
    """Two elements of sequences, by index, and the target cosine of the first as BEFORE and the second as AFTER. odd:
    whether they are an odd number of turns apart, so that the speaker changes."""

    before: int
    after: int
    odd: bool
    cosine: float


def relative_distances(sequences: Sequence[Sequence[Any]], window: int = 5, seed: int = 0) -> list[Distance]:
    """The training pairs of curved contrastive learning (Erker et al. 2022, arXiv 2211.07591), from every window of
    `window` elements; a shorter sequence gives none. For each distance d in a window there are

    - its first element before the d-th, with a target cosine of (window - d) / window;
    - the same two in reverse order, with target 0;
    - one of the two with a random element in place of the other, with random parity and target 0.

    Indices count the elements of all sequences, concatenated. Deterministic given sequences and seed.
    """
    if window < 2:
        raise SegueError(f"in a window of {window} nothing lies before anything: give 2 or more")
    generator, total, first = np.random.default_rng(seed), sum(map(len, sequences)), 0
    pairs = list[Distance]()
    for sequence in sequences:
        for at in range(first, first + len(sequence) - window + 1):
            for d in range(1, window):
                odd, random_index = bool(d % 2), int(generator.integers(total))
                pairs += [Distance(at, at + d, odd, (window - d) / window), Distance(at + d, at, odd, 0.0)]
                pair = (random_index, at + d) if generator.integers(2) else (at, random_index)
                pairs.append(Distance(*pair, bool(generator.integers(2)), 0.0))
        first += len(sequence)
    return pairs
