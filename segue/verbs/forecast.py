"""How well a fitted model forecasts measured numbers, beside simple forecasts of the same moments."""

from __future__ import annotations

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
MEAN, LINE = "mean of columns", "linear, of the past"


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
    lengths = np.array([max(map(len, each.values()), default=0) for each in series])
    steps = min(STEPS, int(np.median(lengths)) // 4)
    places = [(row, place) for row, length in enumerate(lengths.tolist())
              for place in range(max(FEWEST, length // 2), length - steps + 1)] if steps else []
    if not places:
        return {}, f"no forecasts: the sequences are too short ({int(np.median(lengths))} moments) to look ahead in"
    samples = SAMPLES
    most = max(2, min(WINDOWS, TOKENS // (samples * steps * len(turns))))
    places = [places[i] for i in np.unique(np.linspace(0, len(places) - 1, most).astype(int)).tolist()]
    grids = {row: np.stack([series[row].get(column, np.full(lengths[row], np.nan)) for column in columns], 1)
             for row in {row for row, _ in places}}
    model, begin, room = fitted.decodable(weights), fitted.codec.bos, max(1, fitted.context // len(turns))
    prompts = []
    for row, place in places:
        first = max(0, place - room)
        ids = np.stack([_ids(fitted, column, grids[row][first:place, c]) for c, column in enumerate(columns)], 1)
        prompts.append(([] if first or begin is None else [begin]) + ids.reshape(-1).tolist())
    ours = drawn(model, fitted.codec, prompts, steps, samples, seed)
    found: dict[str, dict[str, dict[str, float]]] = {}
    even = (np.arange(samples) + 0.5) / samples  # where the simple ones' draws, of any number, are taken
    for c, column in enumerate(columns):
        pasts = [grids[row][:place, c] for row, place in places]
        lag = season(max(pasts, key=len))
        rivals = {"last value": 1} | ({f"value of a season ago ({lag})": lag} if lag > 1 else {})
        truth = np.stack([grids[row][place : place + steps, c] for row, place in places])
        sizes = np.repeat(np.array([scale(past, min(lag, len(past) - 1)) for past in pasts])[:, None], steps, 1)
        told = {OURS: (np.median(ours[..., c], 1), ours[..., c])}
        found_by = {name: [simple(past, steps, each) for past in pasts] for name, each in rivals.items()}
        lines = [line for past in pasts if (line := linear(past, steps)) is not None]
        for name, each in (found_by | ({LINE: lines} if len(lines) == len(pasts) else {})).items():
            points, draws = zip(*each)
            told[name] = np.stack(points), np.stack([np.quantile(rows, even, axis=0) for rows in draws])
        known = np.isfinite(truth)
        if known.any():
            found[column or getattr(fitted.codec, "column", "") or "value"] = {
                name: _measured(points, draws, truth, sizes, known) for name, (points, draws) in told.items()}
    if len(found) > 1:
        names = [OURS, "last value", "value of a season ago", LINE]
        rows = {name: [each for column in found.values() for method, each in column.items() if method.startswith(name)]
                for name in names}
        found[MEAN] = {name: {measure: float(np.mean([each[measure] for each in every])) for measure in MEASURES
                               if all(measure in each for each in every)}
                       for name, every in rows.items() if len(every) == len(columns)}
    return found, (f"forecasts of {steps} moments from {len(places)} places: MASE in errors of the simple forecast in "
                   "the past; CRPS and coverage (of the 80% interval) of "
                   f"{samples} samples, for the simple ones of the errors they made in the past")


def _ids(fitted: Fitted, column: str, numbers: np.ndarray) -> np.ndarray:
    return fitted.codec.encode([element(column, number) for number in numbers.tolist()])


def _measured(points: np.ndarray, draws: np.ndarray, truth: np.ndarray, sizes: np.ndarray,
              known: np.ndarray) -> dict[str, float]:
    """MEASURES over the moments that are known, those left out that cannot be told. points, truth, sizes: (P, H).
    draws: (P, K, H)."""
    given = {"points": points[known], "truth": truth[known], "scale": np.nan_to_num(sizes[known]),
             "draws": draws.transpose(0, 2, 1)[known]}
    told = {name: METRICS[name].compute(*(given[need] for need in METRICS[name].needs)) for name in MEASURES}
    return {name: value for name, value in told.items() if np.isfinite(value)}
