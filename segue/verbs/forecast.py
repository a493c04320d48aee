"""Forecasts of measured numbers by a fitted model: how good they are beside simple ones of the same moments, and which
of these, combined with its own, makes them better."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from segue.analysis.forecast import SIMPLE, Combination, linear, scale, season, simple
from segue.analysis.registry import METRICS
from segue.decoding.forecast import sample_forecasts
from segue.kinds.codecs import element, parted
from segue.kinds.series import table
from segue.training.evaluate import OURS

if TYPE_CHECKING:
    from segue.data import Data
    from segue.verbs.fitted import Fitted

STEPS, WINDOWS, SAMPLES = 24, 16, 50  # moments ahead, places from which, and draws, at most
TOKENS = 40_000  # that all of them may take
FEWEST = 8  # moments of a past; windows that a combination is chosen by
# Samples; weights of a simple forecast, no more than ours has, since few windows choose; how much of our error at most;
# and by how many standard errors over the windows it must be nearer.
DRAWN, WEIGHTS, BETTER, SURE = 24, (0.25, 0.5), 0.97, 1.5
MEASURES = ("MAE", "RMSE", "MASE", "CRPS", "coverage")
MEAN, SEASON, LINE = "mean of columns", "value of a season ago", "linear, of the past"


def forecast_errors(fitted: Fitted, data: Data, weights: str = "float32", seed: int = 0,
                    ) -> tuple[dict[str, dict[str, dict[str, float]]], str]:
    """By column (and, of several, in the mean over them), by method, each of MEASURES; and a line that says of what.
    Nothing, and a line that says why, where the sequences are too short.

    From places spread evenly over the second halves of the sequences, up to 24 moments ahead, no more than a quarter of
    the usual length; the model reads the moments before, as many as a row of it has. Its point is the median of 50
    samples; the simple forecasts say theirs themselves, from all moments of the sequence before.
    """
    windows = _windows(fitted, data)
    if not windows.pasts:
        return {}, f"no forecasts: the sequences are too short ({windows.usual} moments) to look ahead in"
    steps, pasts = windows.steps, windows.pasts
    ours = forecasts(fitted, windows.columns, pasts, steps, SAMPLES, weights, seed)
    found: dict[str, dict[str, dict[str, float]]] = {}
    for c, column in enumerate(windows.columns):
        before, truth = [past[:, c] for past in pasts], windows.truth[..., c]
        lag = season(max(before, key=len))
        sizes = np.repeat(np.array([scale(past, min(lag, len(past) - 1)) for past in before])[:, None], steps, 1)
        told = {OURS: (np.median(ours[..., c], 1), ours[..., c]), **_rivals(before, steps, lag)}
        known = np.isfinite(truth)
        if known.any():
            found[column or getattr(fitted.codec, "column", "") or "value"] = {
                name: _measured(points, draws, truth, sizes, known) for name, (points, draws) in told.items()}
    if len(found) > 1:
        found[MEAN] = _mean(list(found.values()), len(windows.columns))
    with_it = "" if fitted.combination is None else \
        f"; ours combined with {fitted.combination.name}, weight {fitted.combination.weight:g}"
    return found, (f"forecasts of {steps} moments from {len(pasts)} places: MASE in errors of the simple forecast in "
                   "the past; CRPS and coverage (of the 80% interval) of "
                   f"{SAMPLES} samples, for the simple ones of the errors they made in the past{with_it}")


def forecasts(fitted: Fitted, columns: Sequence[str], pasts: Sequence[np.ndarray], steps: int, samples: int = SAMPLES,
              weights: str = "float32", seed: int = 0) -> np.ndarray:
    """(P, K, steps, C) numbers: samples of the moments that follow each past (T, C)."""
    prompts = [_prompt(fitted, columns, past) for past in pasts]
    draws = sample_forecasts(fitted.decodable(weights), fitted.codec, prompts, steps, samples, seed)
    if fitted.combination is not None:
        draws = np.stack([fitted.combination.moved(each, past) for each, past in zip(draws, pasts)])
    return draws


def combination(fitted: Fitted, data: Data) -> Combination | None:
    """The simple forecast, and its weight, that brings the medians of a model nearest to held-out data; None where none
    is clearly better than the model by itself. What comes before held-out moments in their sequences is their past."""
    windows = _windows(fitted, *data.histories(), at_most=2 * WINDOWS)
    if len(windows.pasts) < FEWEST:
        return None
    ours = np.median(forecasts(fitted, windows.columns, windows.pasts, windows.steps, DRAWN), 1)
    sizes = np.array([[scale(column) for column in past.T] for past in windows.pasts])[:, None]
    sizes = np.where(sizes > 0, sizes, np.nan)
    lags = tuple(season(column) for column in max(windows.pasts, key=len).T)

    def errors(points: np.ndarray) -> np.ndarray:
        """(P,), the mean of each window; nan where nothing of it is known."""
        apart = np.abs(points - windows.truth) / sizes
        known = np.isfinite(apart).reshape(len(apart), -1)
        return np.where(known, apart.reshape(len(apart), -1), 0).sum(1) / np.where(known.any(1), known.sum(1), np.nan)

    mine = errors(ours)
    if np.isfinite(mine).sum() < FEWEST:  # numbers that never change have no scale
        return None
    best, least = None, BETTER * np.nanmean(mine)
    for name in SIMPLE:
        told = np.stack([Combination(name, 1.0, lags).points(past, windows.steps) for past in windows.pasts])
        for weight in WEIGHTS:
            found = errors(ours + weight * np.nan_to_num(told - ours))
            gain = (mine - found)[np.isfinite(mine - found)]
            sure = len(gain) >= FEWEST and gain.mean() > SURE * gain.std() / np.sqrt(len(gain))
            if sure and np.nanmean(found) < least:
                best, least = Combination(name, weight, lags), float(np.nanmean(found))
    return best


@dataclass
class Windows:
    """From where forecasts are made: pasts (T, C) and what is true of the `steps` moments behind each, (P, steps, C),
    nan where it is not known. usual: moments of a sequence."""

    columns: list[str]
    usual: int
    steps: int
    pasts: list[np.ndarray]
    truth: np.ndarray


def _windows(fitted: Fitted, data: Data, before: np.ndarray | None = None, at_most: int = WINDOWS) -> Windows:
    """Places spread evenly over the second halves of the sequences, or behind so many elements of each."""
    turns = fitted.codec.turns()
    columns = [parted(fitted.codec.token(int(turn[0])))[0] for turn in turns]
    series = [table(obj) for obj in data.objects()]
    lengths = np.array([max(map(len, each.values()), default=0) for each in series])
    first = lengths // 2 if before is None else before // len(turns)
    usual = int(np.median(lengths if before is None else 2 * (lengths - first)))
    steps = min(STEPS, usual // 4)
    places = [(row, place) for row in range(len(series))
              for place in range(max(FEWEST, first[row]), lengths[row] - steps + 1)] if steps else []
    most = max(2, min(at_most, TOKENS // max(1, SAMPLES * steps * len(turns))))
    chosen = np.unique(np.linspace(0, len(places) - 1, min(most, len(places))).astype(int))
    places = [places[i] for i in chosen.tolist()]
    grids = {row: np.stack([series[row].get(column, np.full(lengths[row], np.nan)) for column in columns], 1)
             for row in {row for row, _ in places}}
    truth = np.array([grids[row][place : place + steps] for row, place in places])
    return Windows(columns, usual, steps, [grids[row][:place] for row, place in places], truth)


def _prompt(fitted: Fitted, columns: Sequence[str], past: np.ndarray) -> list[int]:
    """The last moments of a past (T, columns), as many as a row of the model has."""
    room, begin = max(1, fitted.context // len(columns)), fitted.codec.bos
    ids = np.stack([fitted.codec.encode([element(column, number) for number in numbers.tolist()])
                    for column, numbers in zip(columns, past[-room:].T)], 1)
    return ([begin] if begin is not None and len(past) <= room else []) + ids.reshape(-1).tolist()


def _rivals(pasts: Sequence[np.ndarray], steps: int, lag: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """By name, the points (P, H) and draws (P, K, H) of the simple forecasts behind each past; the linear one only
    where every past is long enough for it. lag: moments of a season, 1 of none."""
    lags = {"last value": 1} | ({f"{SEASON} ({lag})": lag} if lag > 1 else {})
    told = {name: [simple(past, steps, each) for past in pasts] for name, each in lags.items()}
    lines = [line for past in pasts if (line := linear(past, steps)) is not None]
    if len(lines) == len(pasts):
        told[LINE] = lines
    even = (np.arange(SAMPLES) + 0.5) / SAMPLES  # where the draws, of any number, are taken
    return {name: (np.stack([points for points, _ in each]),
                   np.stack([np.quantile(draws, even, axis=0) for _, draws in each])) for name, each in told.items()}


def _mean(found: Sequence[Mapping[str, Mapping[str, float]]], columns: int) -> dict[str, dict[str, float]]:
    """Each measure in the mean over the columns, of the methods that say something of all of them. A season may be
    another one in each."""
    means = {}
    for name in (OURS, "last value", SEASON, LINE):
        every = [each for column in found for method, each in column.items() if method.startswith(name)]
        if len(every) == columns:
            means[name] = {measure: float(np.mean([each[measure] for each in every])) for measure in MEASURES
                           if all(measure in each for each in every)}
    return means


def _measured(points: np.ndarray, draws: np.ndarray, truth: np.ndarray, sizes: np.ndarray,
              known: np.ndarray) -> dict[str, float]:
    """MEASURES over the moments that are known, those left out that cannot be told. points, truth, sizes: (P, H).
    draws: (P, K, H)."""
    given = {"points": points[known], "truth": truth[known], "scale": np.nan_to_num(sizes[known]),
             "draws": draws.transpose(0, 2, 1)[known]}
    told = {name: METRICS[name].compute(*(given[need] for need in METRICS[name].needs)) for name in MEASURES}
    return {name: value for name, value in told.items() if np.isfinite(value)}
