"""Measured sequences: a table of sequences with scores, what predicts the scores, and searches that go on from it."""

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
from segue.design.oracles import Encoder, Oracle, RidgeHead, RidgeOracle
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

FEWER = 8  # changes: so many and fewer are looked at on the way
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1)  # of the ridge, to choose from
LEAST = 20  # measured sequences
WIDEST = 4000  # features of single letters; with more, solving for their weights would take long
BY = ("bidirectional", "fine-tune", *STEERED)
PARTICLES, SAMPLER_STEPS, FINE_TUNING_RATE = 16, 32, 1e-3
Told = Callable[[float], None]  # is told the part of the search that is done


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
        """Sequences of the codec's ids with their scores; of a sequence that is there several times the mean counts."""
        found: dict[tuple[int, ...], list[float]] = {}
        for sequence, score in zip(sequences, scores, strict=True):
            found.setdefault(tuple(sequence), []).append(score)
        means = torch.tensor([sum(each) / len(each) for each in found.values()], dtype=torch.float64)
        if len(found) < LEAST or not float(means.max()) > float(means.min()):
            raise SegueError(f"{len(found)} different sequences with scores, from {min(scores, default=0):g} to "
                             f"{max(scores, default=0):g}: give at least {LEAST}, of different scores")
        letters = torch.tensor(sorted({each for sequence in found for each in sequence}))
        place = {each: number for number, each in enumerate(letters.tolist())}
        lengths = torch.tensor([len(sequence) for sequence in found])
        return Measured(pad_rows([[place[each] for each in sequence] for sequence in found]), lengths, means, letters)

    @property
    def aligned(self) -> bool:
        """Whether all have one length, so that places can be compared."""
        return bool((self.lengths == self.ids.shape[1]).all())

    @cached_property
    def varying(self) -> Tensor:
        """(L,) bool: the places at which the sequences differ; all, where their lengths do."""
        return (self.ids != self.ids[0]).any(0) if self.aligned else torch.ones(self.ids.shape[1], dtype=torch.bool)

    def best(self, count: int) -> Tensor:
        """(count,) long: which have the highest scores, in order."""
        return self.scores.argsort(descending=True, stable=True)[:count]

    def known(self) -> set[tuple[int, ...]]:
        return {tuple(row[:length]) for row, length in zip(self.ids.tolist(), self.lengths.tolist())}


class Features:
    """What predicts scores, of soft rows (B, L, A) with lengths (B,): an encoder's features, the single letters at the
    places that vary, or both, each less its mean over the table and as part of its deviation; and a 1."""

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
    def read(self, measured: Measured, told: Told, rows: int = 64) -> Tensor:
        """(n, D) those of the whole table, by which they are then scaled."""
        found, letters = [], len(measured.letters)
        for begin in range(0, len(measured.ids), rows):
            piece = slice(begin, begin + rows)
            found.append(self.raw(F.one_hot(measured.ids[piece], letters).float(), measured.lengths[piece]))
            told(min(1.0, (begin + rows) / len(measured.ids)))
        raw = torch.cat(found)
        self.mean, self.scale = raw.mean(0), raw.std(0, correction=0).clamp(min=1e-6)
        return F.pad((raw - self.mean) / self.scale, (0, 1), value=1.0)


@dataclass(frozen=True)
class Predictor:
    """Two heads on the same features: `train`, fitted to one half of the table, is what a search climbs; `judge`,
    fitted to the other half, says what is to be thought of its results.

    half: (n,) bool, those of `train`. kind: of the features, chosen with the strength of the ridge by how well each
    half predicts the other; correlation: Spearman's, there; error: the root mean square, in the scores' units.
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
    def fit(measured: Measured, encoder: Encoder, seed: int = 0, told: Told = lambda part: None) -> Predictor:
        """Reads the table by the encoder and chooses."""
        half = torch.rand(len(measured.scores), generator=generator_of(seed, 0)).argsort() < len(measured.scores) // 2
        letters = measured.aligned and int(measured.varying.sum()) * len(measured.letters) <= WIDEST
        whole = Features(measured, encoder, letters)
        table, width = whole.read(measured, told), len(measured.varying.nonzero()) * len(measured.letters)
        kinds = {"the model's features": slice(0, table.shape[1] - 1)}
        if letters:
            begin = table.shape[1] - 1 - width
            kinds = {"the model's features": slice(0, begin), "single letters": slice(begin, begin + width),
                     "the model's features and single letters": slice(0, begin + width)}
        best: tuple[float, Any] | None = None
        for (kind, columns), strength in product(kinds.items(), STRENGTHS):
            some = torch.cat([table[:, columns], table[:, -1:]], 1)
            heads = [RidgeHead.fit(some[of], measured.scores[of], strength) for of in (half, ~half)]
            guesses = [heads[0](some[~half]), heads[1](some[half])]
            true = [measured.scores[~half], measured.scores[half]]
            correlations = [rank_correlation(guess.numpy(), each.numpy()) for guess, each in zip(guesses, true)]
            correlation = 0.0 if any(map(math.isnan, correlations)) else sum(correlations) / 2
            if best is None or correlation > best[0]:
                error = float((torch.cat(guesses) - torch.cat(true)).square().mean().sqrt())
                best = correlation, (some, *heads, strength, kind, error)
        assert best is not None
        some, train, judge, strength, kind, error = best[1]
        features = Features(measured, None if kind == "single letters" else encoder, "letters" in kind)
        columns = kinds[kind]
        assert isinstance(whole.mean, Tensor) and isinstance(whole.scale, Tensor)
        features.mean, features.scale = whole.mean[columns], whole.scale[columns]
        return Predictor(features, some, half, train, judge, strength, kind, best[0], error)

    def oracle(self, head: RidgeHead, lengths: Tensor) -> Oracle:
        """A head on soft rows of these lengths."""
        return RidgeOracle(partial(self.features, lengths=lengths), head)


@dataclass(frozen=True)
class Found:
    """ids: (m, L) sequences that a search came upon, the last ones first. starts: (m,) long, the measured sequence that
    each goes back to. ends: how many of them are where the search ended."""

    ids: Tensor
    starts: Tensor
    ends: int


def search_bidirectional(measured: Measured, predictor: Predictor, starts: Tensor, free: Tensor,
                         most: int | None, steps: int,
                         seed: int, told: Told) -> Found:
    """From each start the way of a soft design by both losses, with the mix that adapts (BIB); and from each step of it
    also what it is with fewer changes, which is closer to what was measured."""
    lengths, half = measured.lengths[starts], predictor.half
    design = SoftDesign(measured.ids[starts], len(measured.letters), free, most, generator=generator_of(seed, 1))
    scores, table = measured.scores[half], predictor.table[half]
    auxiliary = RidgeHead.bagged(table, scores, strength=predictor.strength, generator=generator_of(seed, 2))
    search = OfflineDesign(
        Bidirectional.of(table, (scores - scores.mean()) / scores.std(correction=0), strength=predictor.strength),
        lambda rows: predictor.features(rows, lengths), auxiliary=auxiliary, steps=steps)
    fewer = range(1, min(FEWER, int(free.sum(1).max()) if most is None else most))
    way: list[Tensor] = []

    def seen(step: int, design: SoftDesign) -> None:
        way.extend([*(design.ids(most=count) for count in fewer), design.ids()])
        told(step / steps)

    search(design, seen)
    return Found(torch.cat(way[::-1]), starts.repeat(len(way)), len(starts))


def draw_gaps(free: Tensor, most: int | None, generator: torch.Generator) -> Tensor:
    """(B, L) bool: which places are written anew, all that are free or `most` of them by chance."""
    if most is None:
        return free
    chance = torch.rand(free.shape, generator=generator).masked_fill(~free, 2.0)
    return free & (chance.argsort(1).argsort(1) < most)


def search_by_diffusion(model: Stack, by: str, measured: Measured, predictor: Predictor, starts: Tensor, free: Tensor,
                        most: int | None, steps: int, seed: int, strength: float, told: Told) -> Found:
    """From each start a group of samples of a diffusion model, its free places written anew: by one that is fine-tuned
    (DRAKES), or steered."""
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
        tuned, some = copy.deepcopy(model).requires_grad_(True), max(1, len(rows) // 8)

        def draw(step: int) -> Batch:
            told(step / steps)
            chosen = torch.randint(len(rows), (some,), generator=generator_of(seed + 2, step))
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
            drawn, _ = ancestral(predict, x, gaps, process, count, generator)
    else:
        predict = Denoiser(model, process, layout, allowed=allowed)
        drawn, _ = STEERED[by](predict, x, gaps, process, oracle_of(lengths), strength, steps=count,
                               particles=PARTICLES, generator=generator)
    told(1.0)
    number = torch.full((process.elements,), -1)
    number[letters] = torch.arange(len(letters))
    return Found(number[drawn], rows, 0)


@dataclass(frozen=True)
class Proposal:
    """A sequence that nobody has measured. ids: of the codec. predicted: by the judge, in the scores' units. climbed:
    by the head that the search climbed. start: which measured sequence it goes back to. changes: in how many places."""

    ids: list[int]
    predicted: float
    climbed: float
    start: int
    changes: int


def propose(measured: Measured, predictor: Predictor, n: int, by: str = BY[0], model: Stack | None = None,
            free: Tensor | None = None, most: int | None = None, steps: int = 50, seed: int = 0, strength: float = 0.5,
            starts: int = 64, told: Told = lambda part: None) -> list[Proposal]:
    """Up to n sequences that are not in the table, the best predicted first.

    by: a name in BY; all but the first need the diffusion `model`, frozen. free: (L,) bool, the places that may change
    (default: those that vary). most: places that may differ from the start. steps: of the search, or of fine-tuning.
    strength: how dear it is to depart from the model, in deviations of the scores. starts: how many of the best
    measured sequences designs begin at.
    """
    begin = measured.best(min(n, starts) if by == BY[0] else min(max(1, -(-2 * n // PARTICLES)), starts))
    real = torch.arange(measured.ids.shape[1]) < measured.lengths[begin][:, None]
    free = real & (measured.varying if free is None else free)
    if by == BY[0]:
        found = search_bidirectional(measured, predictor, begin, free, most, steps, seed, told)
    elif model is None:
        raise SegueError(f"'{by}' writes with a diffusion model: fit one with objective diffusion, or choose {BY[0]}")
    else:
        found = search_by_diffusion(model, by, measured, predictor, begin, free, most, steps, seed, strength, told)
    known, lengths = measured.known(), measured.lengths[found.starts].tolist()
    new: dict[tuple[int, ...], int] = {}
    for row, (ids, length) in enumerate(zip(found.ids.tolist(), lengths)):
        if (each := tuple(ids[:length])) not in known:
            new.setdefault(each, row)
    rows = torch.tensor(list(new.values()), dtype=torch.long)
    if not len(rows):
        return []
    climbed, judged = predict_scores(measured, predictor, found, rows)
    order = climbed.argsort(descending=True, stable=True)
    order = order[(rows[order] >= found.ends).long().argsort(stable=True)][:n]  # where the search ended comes first
    order = order[judged[order].argsort(descending=True, stable=True)]
    proposals = []
    for at in order.tolist():
        row, start = int(rows[at]), int(found.starts[rows[at]])
        length = int(measured.lengths[start])
        ids, old = found.ids[row, :length], measured.ids[start, :length]
        proposals.append(Proposal(measured.letters[ids].tolist(), float(judged[at]), float(climbed[at]), start,
                                  int((ids != old).sum())))
    return proposals


@torch.no_grad()
def predict_scores(measured: Measured, predictor: Predictor, found: Found, rows: Tensor) -> tuple[Tensor, Tensor]:
    """What both heads predict for some of what was found, in the scores' units."""
    climbed, judged = [], []
    for piece in rows.split(64):
        features = predictor.features(F.one_hot(found.ids[piece], len(measured.letters)).float(),
                                      measured.lengths[found.starts[piece]])
        climbed.append(predictor.train(features))
        judged.append(predictor.judge(features))
    return torch.cat(climbed), torch.cat(judged)


def sub_meter(meter: Meter, begin: float, end: float) -> Told:
    """Tells a meter of a stretch of the work."""
    return partial(lambda part: meter(begin + (end - begin) * part))
