"""The count model that `fit` mixes with the network: its calibration documents, fitting and scoring."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from segue.analysis.forecast import fill_missing, find_season
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
from segue.training.evaluate import RankCollector, Scored, Tally

LEAST_ELEMENTS = 20  # of training data; fewer are not worth counting
MOST_ELEMENTS = 100_000_000  # of training data; more would fill the memory
LEAST_CALIBRATED = 2_500  # elements; with fewer no calibration set is held out, and the gate stays at one half
CALIBRATION_ELEMENTS = 1_500  # held out for calibration at least, unless that is more than a fifth
GATE_SECONDS = 2e-7  # for fitting the gate, per position and token of the vocabulary
MOST_TOKENS = 1 << 16  # of the vocabulary, since distributions are dense
SEASON_MOMENTS = 50_000  # the last moments of a series, in which a season is looked for
HORIZON = 24  # moments ahead that decide whether a season is worth using
SEASON_ERROR = 0.7  # a season counts if its naive error is below this part of the last value's
LEAST_ITEMS = 100  # different items from which on a model of neighbours may help


@dataclass
class CountsData:
    """Training documents, and documents held out to calibrate the counts and the gate (none of small data sets). The
    latter are counted too in the end."""

    training: list[np.ndarray]
    calibration: list[np.ndarray]

    @property
    def store(self) -> Arrays:
        """The documents that the network is trained on."""
        return Arrays(self.training)


def fit_ngram_baseline(train: Store, vocabulary: int) -> CountModel | None:
    """A Kneser-Ney model to compare a network without counts to; None if there is too much data for one."""
    if len(train.tokens) > MOST_ELEMENTS or vocabulary > MOST_TOKENS:
        return None
    return CountModel(vocabulary, smoothing="kneser-ney").fit(document_tokens(train))


def split_documents(train: Store, vocabulary: int, seed: int) -> CountsData | None:
    """Split the documents for fitting a mixture; None if there is too little or too much data to count."""
    size = len(train.tokens)
    if not LEAST_ELEMENTS <= size <= MOST_ELEMENTS or vocabulary > MOST_TOKENS:
        return None
    if size < LEAST_CALIBRATED:
        return CountsData(document_tokens(train), [])
    share = float(np.clip(CALIBRATION_ELEMENTS / size, 0.08, 0.2))
    return CountsData(*split_held_out(document_tokens(train), share, seed))


def document_tokens(store: Store) -> list[np.ndarray]:
    """The tokens of each document, int32."""
    return [np.asarray(document, np.int32) for document in sequences(store)]


def calibration_sizes(vocabulary: int, minutes: float | None) -> tuple[int, int]:
    """How many elements to fit the counts' trust and the gate on, so that each takes at most a sixth of the budget."""
    if minutes is None:
        return TRUST_POSITIONS, GATE_POSITIONS
    return (int(np.clip(40_000 * minutes, 12_000, TRUST_POSITIONS)),
            int(np.clip(10 * minutes / (GATE_SECONDS * vocabulary), 500, GATE_POSITIONS)))


def elements_to_score(vocabulary: int, minutes: float | None) -> float:
    """How many held-out elements can be scored in a sixth of the time budget."""
    return np.inf if minutes is None else max(2_000, 10 * minutes / (4e-5 + 5e-8 * vocabulary))


def reserved_seconds(train: Store, held: Store, vocabulary: int, minutes: float, advised: bool = False) -> float:
    """Seconds of the time budget to reserve for the counts: sorting the tokens, fitting trust, gate and advisor, and
    scoring `held`."""
    size = len(train.tokens)
    gate = 0.0
    if size >= LEAST_CALIBRATED:
        gate = GATE_SECONDS * vocabulary * min(calibration_sizes(vocabulary, minutes)[1], 0.08 * size)
    score = (4e-5 + 5e-8 * vocabulary) * min(elements_to_score(vocabulary, minutes), len(held.tokens))
    advisor_seconds = gate + 2.0 if advised else 0.0
    return min(0.4 * 60 * minutes, 3 + 2e-6 * size + gate + advisor_seconds + score)


def find_seasons(codec: Codec, documents: Sequence[np.ndarray]) -> list[int]:
    """The season of each column of measured numbers, in moments, found in the longest document; 1: no season."""
    turns = codec.turns()
    if not turns or not len(documents):
        return [1] * len(turns)
    longest = max(documents, key=len)[-SEASON_MOMENTS * len(turns) :]
    return [_find_season(_token_values(codec, ids)[np.searchsorted(ids, longest[np.isin(longest, ids)])])
            for ids in turns]


def _find_season(values: np.ndarray) -> int:
    """The season of a series, or 1 unless the value one season ago predicts clearly better than the last values do."""
    values = fill_missing(values)
    lag = find_season(values)
    if lag == 1 or len(values) <= HORIZON:
        return 1
    naive = [np.abs(values[ahead:] - values[:-ahead]).mean() for ahead in range(1, HORIZON + 1)]
    return lag if np.abs(values[lag:] - values[:-lag]).mean() < SEASON_ERROR * np.mean(naive) else 1


def _token_values(codec: Codec, ids: np.ndarray) -> np.ndarray:
    """The numbers that the ids of a column stand for; the last id stands for a missing value."""
    return np.array([*(parted(codec.token(id))[1] for id in ids[:-1].tolist()), np.nan])


def make_advisor(kind: Kind, codec: Codec, context: int, documents: Sequence[np.ndarray]) -> Advisor | None:
    """A predictor to use beside the counts for documents of this kind (see `Kind.advisor`); None if there is none."""
    if kind.advisor == Regression.name and (turns := codec.turns()):
        numbers = [_token_values(codec, ids)[:-1].tolist() for ids in turns]
        moments = sum(map(len, documents)) // len(turns)
        return Regression.for_context(codec.size, turns, numbers, context, moments, find_seasons(codec, documents))
    if kind.advisor == LinearPrediction.name and (values := kind.numbers(codec)) is not None:
        return LinearPrediction(codec.size, values[:, 0])
    if kind.advisor == Neighbours.name and isinstance(codec, ItemCodec) and len(codec.items) >= LEAST_ITEMS:
        return Neighbours(codec.size, len(codec.items))
    return None


def fit_mixture(model: Stack | ClozeModel, data: CountsData, context: int, seed: int, precision: str = "float32",
                minutes: float | None = None, kind: Kind | None = None, codec: Codec | None = None) -> Mixture:
    """The trained network mixed with counts of all training documents.

    minutes: time budget of the whole fit, if it has one. kind, codec: of the tokens; they may allow an advisor (see
    `make_advisor`).
    """
    size = sum(map(len, data.training))
    advisor = None if kind is None or codec is None else make_advisor(kind, codec, context, data.training)
    if advisor is not None and advisor.gated and not data.calibration:
        advisor = None  # there is no data to learn its gate on
    counts = BlendedCounts(model.vocabulary) if advisor is None else Advised(model.vocabulary, advisor)
    trust_size, gate_size = calibration_sizes(model.vocabulary, minutes)
    if size < CROSS_FIT_BELOW:
        counts.cross_fit(data.training, seed)
    else:
        counts.count(data.training)
        counts.learn_trust(data.calibration, seed, trust_size)
    # With few numbers a regression predicts better than a network, and the gate's initial value says so.
    mixture = Mixture(model, counts, None if data.calibration or advisor is not None else Gate.geometric_mean())
    if data.calibration:
        if isinstance(counts, Advised):
            counts.learn_gate(data.calibration, seed, gate_size)
        documents = data.calibration
        if isinstance(codec, LevelCodec):  # also learn how far to trust the network on shifted series
            generator = np.random.default_rng(seed)
            documents = [*documents, *(codec.moved(document, generator) for document in documents)]
        mixture.learn_gate(documents, context, seed, gate_size, precision=precision)
        counts.count([*data.training, *data.calibration])
    state = counts.init_state(1)  # compile the kernels now, so that the first prompt does not wait for them
    counts.extend(torch.zeros(1, 1, dtype=torch.long), state)
    counts.draft_likeliest(state, 1, 0.0)
    return mixture


def score_mixture(mixture: Mixture, store: Store, context: int, precision: str = "float32",
                  ranks: RankCollector | None = None) -> Scored:
    """Score a mixture like `segue.training.evaluate.score`: every position of every document but its first, once."""
    documents = document_tokens(store)
    tally = Tally(len(documents), ranks)
    for numbers, scores, targets in mixture.iterate_scores(documents, context, precision):
        tally.add(scores, targets, numbers)
    return tally.result()
