"""Counts beside the network in `fit`: which documents are set aside, when each part is fitted, how it is scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from segue.analysis.forecast import filled, season
from segue.continual.memory import sequences
from segue.kinds import Codec, Kind
from segue.kinds.codecs import ItemCodec, LevelCodec, parted
from segue.models import Stack
from segue.models.advised import Advised, Advisor
from segue.models.cloze import ClozeModel
from segue.models.counts import CROSS_FIT_BELOW, TRUST_POSITIONS, BlendedCounts, CountModel, split_held_out
from segue.models.gate import Gate
from segue.models.mixture import GATE_POSITIONS, Mixture
from segue.models.neighbours import Neighbours
from segue.models.prediction import LinearPrediction
from segue.models.regression import Regression
from segue.training.batches import Arrays, Store
from segue.training.evaluate import Ranks, Scored, Tally

FEWEST, MOST = 20, 100_000_000  # elements: below, there is nothing to count; above, the stream fills the memory
EVEN = 2_500  # elements: of fewer none are set aside to learn a gate on, and both are believed alike
GATED = 1_500  # elements that are set aside at least, if they are no more than a fifth
POSITION = 2e-7  # seconds, for each token of the vocabulary, that the gate's fit takes for a position
WIDEST = 1 << 16  # tokens: a distribution is dense
REGULAR = 50_000  # moments that a season is looked for in
DAY, CLEARLY = 24, 0.7  # moments ahead; of the error of the last value, what a season's may be to be believed
ASSORTED = 100  # items from which on neighbours may tell more than runs of them


@dataclass
class Parts:
    """Training documents: those to learn from, and those set aside to fit trust and gate on (counted at the end; none
    of few data)."""

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
    if size < EVEN:
        return Parts(documents(train), [])
    return Parts(*split_held_out(documents(train), float(np.clip(GATED / size, 0.08, 0.2)), seed))


def documents(store: Store) -> list[np.ndarray]:
    """The tokens of each document, int32."""
    return [np.asarray(document, np.int32) for document in sequences(store)]


def positions(vocabulary: int, minutes: float | None) -> tuple[int, int]:
    """Of how many elements trust and the gate learn, so that neither takes more than a sixth of the dial."""
    if minutes is None:
        return TRUST_POSITIONS, GATE_POSITIONS
    return (int(np.clip(40_000 * minutes, 12_000, TRUST_POSITIONS)),
            int(np.clip(10 * minutes / (POSITION * vocabulary), 500, GATE_POSITIONS)))


def scored(vocabulary: int, minutes: float | None) -> float:
    """How many held-out elements are scored in a sixth of the dial."""
    return np.inf if minutes is None else max(2_000, 10 * minutes / (4e-5 + 5e-8 * vocabulary))


def reserve(train: Store, held: Store, vocabulary: int, minutes: float, advised: bool = False) -> float:
    """Seconds of the dial that the counts take: sorting the stream, two small fits, the advisor's where there is one,
    and the score on `held`."""
    size = len(train.tokens)
    gate = POSITION * vocabulary * min(positions(vocabulary, minutes)[1], 0.08 * size) if size >= EVEN else 0.0
    score = (4e-5 + 5e-8 * vocabulary) * min(scored(vocabulary, minutes), len(held.tokens))
    beside = gate + 2.0 if advised else 0.0
    return min(0.4 * 60 * minutes, 3 + 2e-6 * size + gate + beside + score)


def seasons(codec: Codec, given: Sequence[np.ndarray]) -> list[int]:
    """Of measured numbers, column by column, after how many moments they come again in the longest of these documents
    (1: they do not)."""
    turns = codec.turns()
    if not turns or not len(given):
        return [1] * len(turns)
    longest = max(given, key=len)[-REGULAR * len(turns) :]
    return [_season(_numbers(codec, ids)[np.searchsorted(ids, longest[np.isin(longest, ids)])]) for ids in turns]


def _season(values: np.ndarray) -> int:
    """The season of a series, where the value of a season ago says clearly more of the day to come than the last."""
    values = filled(values)
    lag = season(values)
    if lag == 1 or len(values) <= DAY:
        return 1
    naive = [np.abs(values[ahead:] - values[:-ahead]).mean() for ahead in range(1, DAY + 1)]
    return lag if np.abs(values[lag:] - values[:-lag]).mean() < CLEARLY * np.mean(naive) else 1


def _numbers(codec: Codec, ids: np.ndarray) -> np.ndarray:
    """What the ids of a column say, the last of them that it is missing."""
    return np.array([*(parted(codec.token(id))[1] for id in ids[:-1].tolist()), np.nan])


def advisor(kind: Kind, codec: Codec, context: int, given: Sequence[np.ndarray]) -> Advisor | None:
    """What beside counts tells the next elements of documents like these, of a kind (see `Kind.advisor`); None where
    nothing does."""
    if kind.advisor == Regression.name and (turns := codec.turns()):
        numbers = [_numbers(codec, ids)[:-1].tolist() for ids in turns]
        moments = sum(map(len, given)) // len(turns)
        return Regression.for_context(codec.size, turns, numbers, context, moments, seasons(codec, given))
    if kind.advisor == LinearPrediction.name and (said := kind.numbers(codec)) is not None:
        return LinearPrediction(codec.size, said[:, 0])
    if kind.advisor == Neighbours.name and isinstance(codec, ItemCodec) and len(codec.items) >= ASSORTED:
        return Neighbours(codec.size, len(codec.items))
    return None


def mix(model: Stack | ClozeModel, parts: Parts, context: int, seed: int, precision: str = "float32",
        minutes: float | None = None, kind: Kind | None = None, codec: Codec | None = None) -> Mixture:
    """The fitted network with counts of all training documents. minutes: the dial of the whole fit, if it has one.
    kind, codec: of the tokens, where what they are may tell more (see `advisor`)."""
    size = sum(map(len, parts.rest))
    beside = None if kind is None or codec is None else advisor(kind, codec, context, parts.rest)
    if beside is not None and beside.gated and not parts.aside:
        beside = None  # there is nothing to learn on how far to believe it
    counts = BlendedCounts(model.vocabulary) if beside is None else Advised(model.vocabulary, beside)
    trusted, gated = positions(model.vocabulary, minutes)
    if size < CROSS_FIT_BELOW:
        counts.cross_fit(parts.rest, seed)
    else:
        counts.count(parts.rest)
        counts.learn_trust(parts.aside, seed, trusted)
    # Of few numbers a regression knows more than a network: the gate as it begins believes that.
    mixture = Mixture(model, counts, None if parts.aside or beside is not None else Gate.geometric_mean())
    if parts.aside:
        if isinstance(counts, Advised):
            counts.learn_gate(parts.aside, seed, gated)
        shown = parts.aside
        if isinstance(codec, LevelCodec):  # how far to believe the network where numbers lie elsewhere, too
            draw = np.random.default_rng(seed)
            shown = [*shown, *(codec.moved(each, draw) for each in shown)]
        mixture.learn_gate(shown, context, seed, gated, precision=precision)
        counts.count([*parts.rest, *parts.aside])
    first = counts.init_state(1)                  # compiled now, so that the first prompt need not wait for it
    counts.extend(torch.zeros(1, 1, dtype=torch.long), first)
    counts.draft_likeliest(first, 1, 0.0)
    return mixture


def score(mixture: Mixture, store: Store, context: int, precision: str = "float32",
          ranks: Ranks | None = None) -> Scored:
    """As `segue.training.evaluate.score`: every position of every document but its first, once."""
    given = documents(store)
    tally = Tally(len(given), ranks)
    for numbers, scores, targets in mixture.iterate_scores(given, context, precision):
        tally.add(scores, targets, numbers)
    return tally.done()
