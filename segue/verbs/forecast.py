"""How well a fitted model forecasts measured numbers, beside simple forecasts of the same moments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from segue.analysis.forecast import linear, scale, season, simple
from segue.analysis.registry import METRICS
from segue.decoding.forecast import drawn
from segue.kinds.codecs import element, parted
from segue.kinds.series import table
from segue.training.evaluate import OURS

if TYPE_CHECKING:
    from segue.data import Data
    from segue.verbs.fitted import Fitted

STEPS, WINDOWS, SAMPLES = 24, 16, 50  # moments ahead, places from which, and draws, at most
TOKENS = 40_000  # that all of them may take
FEWEST = 8  # moments of a past
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
    turns = fitted.codec.turns()
    columns = [parted(fitted.codec.token(int(turn[0])))[0] for turn in turns]
    series = [table(obj) for obj in data.objects()]
    lengths = [max(map(len, each.values()), default=0) for each in series]
    places, steps = _places(lengths, len(turns))
    if not places:
        return {}, f"no forecasts: the sequences are too short ({int(np.median(lengths))} moments) to look ahead in"
    grids = {row: np.stack([series[row].get(column, np.full(lengths[row], np.nan)) for column in columns], 1)
             for row in {row for row, _ in places}}
    prompts = [_prompt(fitted, columns, grids[row][:place]) for row, place in places]
    ours = drawn(fitted.decodable(weights), fitted.codec, prompts, steps, SAMPLES, seed)
    found: dict[str, dict[str, dict[str, float]]] = {}
    for c, column in enumerate(columns):
        pasts = [grids[row][:place, c] for row, place in places]
        truth = np.stack([grids[row][place : place + steps, c] for row, place in places])
        lag = season(max(pasts, key=len))
        sizes = np.repeat(np.array([scale(past, min(lag, len(past) - 1)) for past in pasts])[:, None], steps, 1)
        told = {OURS: (np.median(ours[..., c], 1), ours[..., c]), **_rivals(pasts, steps, lag)}
        known = np.isfinite(truth)
        if known.any():
            found[column or getattr(fitted.codec, "column", "") or "value"] = {
                name: _measured(points, draws, truth, sizes, known) for name, (points, draws) in told.items()}
    if len(found) > 1:
        found[MEAN] = _mean(list(found.values()), len(columns))
    return found, (f"forecasts of {steps} moments from {len(places)} places: MASE in errors of the simple forecast in "
                   "the past; CRPS and coverage (of the 80% interval) of "
                   f"{SAMPLES} samples, for the simple ones of the errors they made in the past")


def _places(lengths: Sequence[int], columns: int) -> tuple[list[tuple[int, int]], int]:
    """From where, (sequence, moment), and how many moments ahead; no places where the sequences are too short."""
    steps = min(STEPS, int(np.median(lengths)) // 4)
    places = [(row, place) for row, length in enumerate(lengths)
              for place in range(max(FEWEST, length // 2), length - steps + 1)] if steps else []
    if not places:
        return [], 0
    most = max(2, min(WINDOWS, TOKENS // (SAMPLES * steps * columns)))
    return [places[i] for i in np.unique(np.linspace(0, len(places) - 1, most).astype(int)).tolist()], steps


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
