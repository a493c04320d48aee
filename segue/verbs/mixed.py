"""Counts beside the network in `fit`: which documents are set aside, when each part is fitted, how it is scored."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from segue.continual.memory import sequences
from segue.models import Stack
from segue.models.counts import BlendedCounts, CountModel, hold_back
from segue.models.mixture import Mixture
from segue.training.batches import Arrays, Store
from segue.training.evaluate import Scored, Tally

FEWEST, MOST = 20_000, 100_000_000  # elements: below, trust is not learned well; above, the stream fills the memory
WIDEST = 1 << 16  # tokens: a distribution is dense


@dataclass
class Parts:
    """Training documents: those to learn from, and those set aside to fit trust and gate on (counted at the end)."""

    rest: list[np.ndarray]
    aside: list[np.ndarray]

    @property
    def store(self) -> Arrays:
        """What the network learns from."""
        return Arrays(self.rest)


def classical(train: Store, vocabulary: int) -> CountModel | None:
    """What a network without counts is measured against; None where the data are too many."""
    if len(train.tokens) > MOST or vocabulary > WIDEST:
        return None
    return CountModel(vocabulary, smoothing="kneser-ney").fit(documents(train))


def part(train: Store, vocabulary: int, seed: int) -> Parts | None:
    """How to fit a mixture on this data; None where a network alone is better: few data, or too many."""
    size = len(train.tokens)
    if not FEWEST <= size <= MOST or vocabulary > WIDEST:
        return None
    return Parts(*hold_back(documents(train), seed=seed))


def documents(store: Store) -> list[np.ndarray]:
    """The tokens of each document, int32."""
    return [np.asarray(document, np.int32) for document in sequences(store)]


def reserve(train: Store, minutes: float) -> float:
    """Seconds of the dial that the counts take: sorting the stream twice, and two small fits."""
    return min(0.25 * 60 * minutes, 8 + 2e-6 * len(train.tokens))


def mix(model: Stack, parts: Parts, context: int, seed: int, precision: str = "float32") -> Mixture:
    """The fitted network with counts of all training documents."""
    counts = BlendedCounts(model.vocabulary)
    counts.count(parts.rest)
    counts.learn_trust(parts.aside, seed)
    mixture = Mixture(model, counts)
    mixture.learn_gate(parts.aside, context, seed, precision=precision)
    counts.count([*parts.rest, *parts.aside])
    first = counts.init_state(1)                  # compiled now, so that the first prompt need not wait for it
    counts.extend(torch.zeros(1, 1, dtype=torch.long), first)
    counts.likeliest(first, 1, 0.0)
    return mixture


def score(mixture: Mixture, store: Store, context: int, precision: str = "float32") -> Scored:
    """As `segue.training.evaluate.score`: every position of every document but its first, once."""
    given = documents(store)
    tally = Tally(len(given))
    for numbers, scores, targets in mixture.walk(given, context, precision):
        tally.add(scores, targets, numbers)
    return tally.done()
