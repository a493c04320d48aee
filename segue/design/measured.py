"""Measured sequences: a table of sequences with scores, a predictor of the scores, and searches that start from the
table."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segue.analysis.metrics import rank_correlation
from segue.decoding.diffusion import ancestral
from segue.design.offline import Bidirectional, OfflineDesign, SoftDesign
from segue.design.oracles import Encoder, Oracle, RidgeHead, RidgeOracle, standardise
from segue.design.rewards import GumbelRollout, RewardFineTuning
from segue.design.steering import STEERED
from segue.errors import SegueError
from segue.mixers.layout import Layout
from segue.models import Stack
from segue.models.base import pad_rows, padding_starts
from segue.models.diffusion import AbsorbingProcess, Denoiser
from segue.objectives import Batch, Loss, generator_of
from segue.progress import Meter
from segue.training.learn import learn

FEWER = 8  # designs with up to so many changes are candidates at each step too
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1)  # of the ridge, to choose from
LEAST = 20  # measured sequences
WIDEST = 4000  # most features of single letters: the time to solve for their weights grows with the cube
BY = ("bidirectional", "fine-tune", *STEERED)
PARTICLES, SAMPLER_STEPS, FINE_TUNING_RATE = 16, 32, 1e-3
Progress = Callable[[float], None]  # called with the fraction of the search that is done


@dataclass(frozen=True)
class Measured:
    """ids: (n, L) long, different sequences of numbers of `letters`, 0 behind their end. lengths: (n,) long. scores:
    (n,) float64, higher is better. letters: (A,) the codec's ids of the letters that occur."""

    ids: Tensor
    lengths: Tensor
    scores: Tensor
    letters: Tensor

    @staticmethod
    def of(sequences: Sequence[Sequence[int]], scores: Sequence[float]) -> Measured:
        """Sequences of the codec's ids with their scores; duplicates are merged, with the mean of their scores."""
        groups: dict[tuple[int, ...], list[float]] = {}
        for sequence, score in zip(sequences, scores, strict=True):
            groups.setdefault(tuple(sequence), []).append(score)
        means = torch.tensor([sum(group) / len(group) for group in groups.values()], dtype=torch.float64)
        if len(groups) < LEAST or not float(means.max()) > float(means.min()):
            raise SegueError(f"{len(groups)} different sequences with scores, from {min(scores, default=0):g} to "
                             f"{max(scores, default=0):g}: give at least {LEAST}, of different scores")
        letters = torch.tensor(sorted({letter for sequence in groups for letter in sequence}))
        index_of = {letter: number for number, letter in enumerate(letters.tolist())}
        lengths = torch.tensor([len(sequence) for sequence in groups])
        ids = pad_rows([[index_of[letter] for letter in sequence] for sequence in groups])
        return Measured(ids, lengths, means, letters)

    @property
    def aligned(self) -> bool:
        """Whether all sequences have the same length, so that positions correspond."""
        return bool((self.lengths == self.ids.shape[1]).all())

    @cached_property
    def varying(self) -> Tensor:
        """(L,) bool: the positions at which the sequences differ; all positions if their lengths differ."""
        return (self.ids != self.ids[0]).any(0) if self.aligned else torch.ones(self.ids.shape[1], dtype=torch.bool)

    def best(self, count: int) -> Tensor:
        """(count,) long: the indices of the highest scores, in descending order."""
        return self.scores.argsort(descending=True, stable=True)[:count]

    def known(self) -> set[tuple[int, ...]]:
        return {tuple(row[:length]) for row, length in zip(self.ids.tolist(), self.lengths.tolist())}


class Features:
    """Features of soft rows (B, L, A) with lengths (B,): an encoder's features, the single letters at the positions
    that vary, or both, each standardised over the table; and a constant 1."""

    def __init__(self, measured: Measured, encoder: Encoder | None, letters: bool) -> None:
        self.encoder, self.places = encoder, measured.varying.nonzero()[:, 0] if letters else None
        self.mean: Tensor | float = 0.0
        self.scale: Tensor | float = 1.0

    def raw(self, rows: Tensor, lengths: Tensor) -> Tensor:
        parts = [] if self.encoder is None else [self.encoder(rows, lengths).double()]
        if self.places is not None:
            parts.append(rows[:, self.places].double().flatten(1))
        return torch.cat(parts, 1)

    def __call__(self, rows: Tensor, lengths: Tensor) -> Tensor:
        """(B, D) float64."""
        return F.pad((self.raw(rows, lengths) - self.mean) / self.scale, (0, 1), value=1.0)

    @torch.no_grad()
    def read(self, measured: Measured, progress: Progress, batch_size: int = 64) -> Tensor:
        """Compute the features of the whole table (n, D), and keep their means and deviations for later rows."""
        raw_parts, letters = [], len(measured.letters)
        for begin in range(0, len(measured.ids), batch_size):
            batch = slice(begin, begin + batch_size)
            raw_parts.append(self.raw(F.one_hot(measured.ids[batch], letters).float(), measured.lengths[batch]))
            progress(min(1.0, (begin + batch_size) / len(measured.ids)))
        raw = torch.cat(raw_parts)
        self.mean, self.scale = raw.mean(0), raw.std(0, correction=0).clamp(min=1e-6)
        return F.pad((raw - self.mean) / self.scale, (0, 1), value=1.0)


@dataclass(frozen=True)
class Predictor:
    """Two heads on the same features: `train`, fitted to one half of the table, is maximised by the search; `judge`,
    fitted to the other half, evaluates its results.

    table: (n, D) features of the table. half: (n,) bool, the rows that `train` is fitted to. kind, strength: of the
    features and of the ridge, chosen by two-fold cross-validation between the halves; correlation: Spearman's there;
    error: the root mean square error, in the scores' units.
    """

    features: Features
    table: Tensor
    half: Tensor
    train: RidgeHead
    judge: RidgeHead
    strength: float
    kind: str
    correlation: float
    error: float

    @staticmethod
    def fit(measured: Measured, encoder: Encoder, seed: int = 0, progress: Progress = lambda part: None) -> Predictor:
        """Encode the table, and choose the features and the ridge's strength with the best rank correlation."""
        half = torch.rand(len(measured.scores), generator=generator_of(seed, 0)).argsort() < len(measured.scores) // 2
        letters = measured.aligned and int(measured.varying.sum()) * len(measured.letters) <= WIDEST
        whole = Features(measured, encoder, letters)
        table, width = whole.read(measured, progress), len(measured.varying.nonzero()) * len(measured.letters)
        kinds = {"the model's features": slice(0, table.shape[1] - 1)}
        if letters:
            begin = table.shape[1] - 1 - width
            kinds = {"the model's features": slice(0, begin), "single letters": slice(begin, begin + width),
                     "the model's features and single letters": slice(0, begin + width)}
        best: tuple[float, Any] | None = None
        for (kind, columns), strength in product(kinds.items(), STRENGTHS):
            selected = torch.cat([table[:, columns], table[:, -1:]], 1)
            heads = [RidgeHead.fit(selected[of], measured.scores[of], strength) for of in (half, ~half)]
            predictions = [heads[0](selected[~half]), heads[1](selected[half])]
            targets = [measured.scores[~half], measured.scores[half]]
            correlations = [rank_correlation(prediction.numpy(), target.numpy())
                            for prediction, target in zip(predictions, targets)]
            correlation = 0.0 if any(map(math.isnan, correlations)) else sum(correlations) / 2
            if best is None or correlation > best[0]:
                error = float((torch.cat(predictions) - torch.cat(targets)).square().mean().sqrt())
                best = correlation, (selected, *heads, strength, kind, error)
        assert best is not None
        selected, train, judge, strength, kind, error = best[1]
        features = Features(measured, None if kind == "single letters" else encoder, "letters" in kind)
        columns = kinds[kind]
        assert isinstance(whole.mean, Tensor) and isinstance(whole.scale, Tensor)
        features.mean, features.scale = whole.mean[columns], whole.scale[columns]
        return Predictor(features, selected, half, train, judge, strength, kind, best[0], error)

    def oracle(self, head: RidgeHead, lengths: Tensor) -> Oracle:
        """A head as an oracle of soft rows of these lengths."""
        return RidgeOracle(partial(self.features, lengths=lengths), head)


@dataclass(frozen=True)
class Candidates:
    """The results of a search. ids: (m, L) sequences, the latest first. starts: (m,) long, the index of the measured
    sequence that each was started from. ends: how many of them, at the front, are final designs."""

    ids: Tensor
    starts: Tensor
    ends: int


def search_bidirectional(measured: Measured, predictor: Predictor, starts: Tensor, free: Tensor, most: int | None,
                         steps: int, seed: int, progress: Progress) -> Candidates:
    """Optimise a soft design from each start by the forward and the backward loss with the adaptive mix (BIB). The
    candidates are the designs of all steps, and each step's designs restricted to fewer changes, which stay closer to
    the measured sequences."""
    lengths, half = measured.lengths[starts], predictor.half
    design = SoftDesign(measured.ids[starts], len(measured.letters), free, most, generator=generator_of(seed, 1))
    scores, table = measured.scores[half], predictor.table[half]
    auxiliary = RidgeHead.bagged(table, scores, strength=predictor.strength, generator=generator_of(seed, 2))
    search = OfflineDesign(
        Bidirectional.of(table, standardise(table, scores)[0], strength=predictor.strength),
        lambda rows: predictor.features(rows, lengths), auxiliary=auxiliary, steps=steps)
    fewer_changes = range(1, min(FEWER, int(free.sum(1).max()) if most is None else most))
    path: list[Tensor] = []

    def record(step: int, design: SoftDesign) -> None:
        path.extend([*(design.ids(most=count) for count in fewer_changes), design.ids()])
        progress(step / steps)

    search(design, record)
    return Candidates(torch.cat(path[::-1]), starts.repeat(len(path)), len(starts))


def draw_gaps(free: Tensor, most: int | None, generator: torch.Generator) -> Tensor:
    """(B, L) bool: the positions to be resampled, all that are free or a random `most` of them."""
    if most is None:
        return free
    chance = torch.rand(free.shape, generator=generator).masked_fill(~free, 2.0)
    return free & (chance.argsort(1).argsort(1) < most)


def search_by_diffusion(model: Stack, by: str, measured: Measured, predictor: Predictor, starts: Tensor, free: Tensor,
                        most: int | None, steps: int, seed: int, strength: float, progress: Progress) -> Candidates:
    """Resample the free positions of each start PARTICLES times by a diffusion model, fine-tuned to the score (DRAKES)
    or steered."""
    process, letters = AbsorbingProcess(model.vocabulary - 1), measured.letters
    allowed = torch.zeros(process.elements, dtype=torch.bool)
    allowed[letters] = True
    rows = starts.repeat_interleave(PARTICLES)
    lengths, generator = measured.lengths[rows], generator_of(seed, 1)
    layout = Layout.chain((len(rows), measured.ids.shape[1]), starts=padding_starts(lengths, measured.ids.shape[1]))
    gaps = draw_gaps(free.repeat_interleave(PARTICLES, 0), most, generator)
    x = letters[measured.ids[rows]]

    def oracle_of(lengths: Tensor) -> Oracle:
        score = predictor.oracle(predictor.train, lengths)
        return lambda rows: score(rows[..., letters])

    count = min(SAMPLER_STEPS, max(2, int(gaps.sum(1).max())))
    if by == "fine-tune":
        tuned, batch_size = copy.deepcopy(model).requires_grad_(True), max(1, len(rows) // 8)

        def draw(step: int) -> Batch:
            progress(step / steps)
            chosen = torch.randint(len(rows), (batch_size,), generator=generator_of(seed + 2, step))
            starts = padding_starts(lengths[chosen], x.shape[1])
            return Batch(x[chosen], x[chosen].masked_fill(~gaps[chosen], -1), starts,
                         {"length": lengths[chosen, None].expand(-1, x.shape[1])})

        reference, rollout = model, GumbelRollout(count, min(count, 8), 0.5)

        def objective(model: nn.Module, batch: Batch) -> Loss:
            oracle = oracle_of(batch.channels["length"][:, 0])
            return RewardFineTuning(oracle, reference, strength, rollout, process.elements, allowed)(model, batch)

        learn(tuned, draw, steps, rate=FINE_TUNING_RATE, seed=seed, objective=objective)
        with torch.no_grad():
            predict = Denoiser(tuned.eval(), process, layout, allowed=allowed)
            samples, _ = ancestral(predict, x, gaps, process, count, generator)
    else:
        predict = Denoiser(model, process, layout, allowed=allowed)
        samples, _ = STEERED[by](predict, x, gaps, process, oracle_of(lengths), strength, steps=count,
                                 particles=PARTICLES, generator=generator)
    progress(1.0)
    index_of = torch.full((process.elements,), -1)
    index_of[letters] = torch.arange(len(letters))
    return Candidates(index_of[samples], rows, 0)


@dataclass(frozen=True)
class Proposal:
    """A sequence that is not in the table. ids: of the codec. predicted: the judge's score, in the scores' units.
    climbed: the score of the head that the search maximised. start: the index of the measured sequence that it was
    started from. changes: positions that differ from that one."""

    ids: list[int]
    predicted: float
    climbed: float
    start: int
    changes: int


def propose(measured: Measured, predictor: Predictor, n: int, by: str = BY[0], model: Stack | None = None,
            free: Tensor | None = None, most: int | None = None, steps: int = 50, seed: int = 0, strength: float = 0.5,
            starts: int = 64, progress: Progress = lambda part: None) -> list[Proposal]:
    """Up to n sequences that are not in the table, the best predicted first.

    by: a name in BY; all but the first need the diffusion `model`, frozen. free: (L,) bool, the positions that may
    change (default: those that vary). most: positions that may differ from the start, at most (default: all). steps: of
    the search, or of fine-tuning. strength: cost of departing from the model, in deviations of the scores. starts: how
    many of the best measured sequences the search starts from, at most. progress: called with the fraction done.
    """
    begin = measured.best(min(n, starts) if by == BY[0] else min(max(1, -(-2 * n // PARTICLES)), starts))
    valid_mask = torch.arange(measured.ids.shape[1]) < measured.lengths[begin][:, None]
    free = valid_mask & (measured.varying if free is None else free)
    if by == BY[0]:
        candidates = search_bidirectional(measured, predictor, begin, free, most, steps, seed, progress)
    elif model is None:
        raise SegueError(f"'{by}' writes with a diffusion model: fit one with objective diffusion, or choose {BY[0]}")
    else:
        candidates = search_by_diffusion(model, by, measured, predictor, begin, free, most, steps, seed, strength,
                                         progress)
    known, lengths = measured.known(), measured.lengths[candidates.starts].tolist()
    first_rows: dict[tuple[int, ...], int] = {}
    for row, (ids, length) in enumerate(zip(candidates.ids.tolist(), lengths)):
        if (sequence := tuple(ids[:length])) not in known:
            first_rows.setdefault(sequence, row)
    rows = torch.tensor(list(first_rows.values()), dtype=torch.long)
    if not len(rows):
        return []
    climbed, judged = predict_scores(measured, predictor, candidates, rows)
    order = climbed.argsort(descending=True, stable=True)
    order = order[(rows[order] >= candidates.ends).long().argsort(stable=True)][:n]  # the search's final designs first
    order = order[judged[order].argsort(descending=True, stable=True)]
    proposals = []
    for index in order.tolist():
        row, start = int(rows[index]), int(candidates.starts[rows[index]])
        length = int(measured.lengths[start])
        ids, start_ids = candidates.ids[row, :length], measured.ids[start, :length]
        proposals.append(Proposal(measured.letters[ids].tolist(), float(judged[index]), float(climbed[index]), start,
                                  int((ids != start_ids).sum())))
    return proposals


@torch.no_grad()
def predict_scores(measured: Measured, predictor: Predictor, candidates: Candidates,
                   rows: Tensor) -> tuple[Tensor, Tensor]:
    """The predictions of both heads, `train` and `judge`, for some candidates' rows, in the scores' units."""
    climbed, judged = [], []
    for batch in rows.split(64):
        features = predictor.features(F.one_hot(candidates.ids[batch], len(measured.letters)).float(),
                                      measured.lengths[candidates.starts[batch]])
        climbed.append(predictor.train(features))
        judged.append(predictor.judge(features))
    return torch.cat(climbed), torch.cat(judged)


def sub_meter(meter: Meter, begin: float, end: float) -> Progress:
    """Reports progress to a meter, as the part of the whole work from `begin` to `end`."""
    return partial(lambda fraction: meter(begin + (end - begin) * fraction))
