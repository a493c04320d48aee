"""Forecasts of measured numbers by a fitted model: how accurate they are next to simple forecasts, and whether
averaging with one of those improves them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from segue.analysis.forecast import SIMPLE, Combination, find_season, linear_forecast, naive_forecast, naive_scale
from segue.analysis.registry import METRICS
from segue.decoding.continuation import turn_columns
from segue.decoding.forecast import sample_forecasts
from segue.kinds.codecs import element
from segue.kinds.elements import as_columns
from segue.training.evaluate import OURS

if TYPE_CHECKING:
    from segue.data import Data
    from segue.verbs.fitted import Fitted

STEPS = 24  # moments ahead, at most
WINDOWS = 16  # forecasts to evaluate, at most
SAMPLES = 50  # per forecast
TOKENS = 40_000  # to sample in all, at most
LEAST_PAST = 8  # moments before a forecast
# To choose a combination:
LEAST_WINDOWS = 8
CHOICE_SAMPLES = 24  # per forecast
WEIGHTS = (0.25, 0.5, 0.75, 1.0)  # of the simple forecast; with 1, samples keep only their spread from the model
ERROR_RATIO = 0.97  # of the combined to the model's own error, at most
STANDARD_ERRORS = 1.5  # by which the improvement must exceed 0
MEASURES = ("MAE", "RMSE", "MASE", "CRPS", "coverage")
MEAN, SEASON, LINE = "mean of columns", "value of a season ago", "linear, of the past"


def forecast_errors(fitted: Fitted, data: Data, weights: str = "float32", seed: int = 0,
                    ) -> tuple[dict[str, dict[str, dict[str, float]]], str]:
    """MEASURES by column (and their mean over columns) and method, and a note for the report. Without any errors, the
    note says why: the sequences are too short.

    Forecasts start at places spread evenly over the second halves of the sequences and go up to 24 moments ahead, at
    most a quarter of the median length. The model reads one context of moments before; its point forecast is the
    median of 50 samples. Simple forecasts use all moments before.
    """
    windows = _select_windows(fitted, data)
    if not windows.pasts:
        return {}, f"no forecasts: the sequences are too short ({windows.usual} moments) to look ahead in"
    steps, pasts = windows.steps, windows.pasts
    samples = combined_forecasts(fitted, windows.columns, pasts, steps, SAMPLES, weights, seed)
    errors: dict[str, dict[str, dict[str, float]]] = {}
    for c, column in enumerate(windows.columns):
        history, truth = [past[:, c] for past in pasts], windows.truth[..., c]
        lag = find_season(max(history, key=len))
        sizes = np.repeat(np.array([naive_scale(past, min(lag, len(past) - 1)) for past in history])[:, None], steps, 1)
        by_method = {OURS: (np.median(samples[..., c], 1), samples[..., c]), **_simple_forecasts(history, steps, lag)}
        observed = np.isfinite(truth)
        if observed.any():
            errors[column or getattr(fitted.codec, "column", "") or "value"] = {
                name: _measures(points, draws, truth, sizes, observed) for name, (points, draws) in by_method.items()}
    if len(errors) > 1:
        errors[MEAN] = _mean_over_columns(list(errors.values()), len(windows.columns))
    combined = "" if fitted.combination is None else \
        f"; ours combined with {fitted.combination.name}, weight {fitted.combination.weight:g}"
    return errors, (f"forecasts of {steps} moments from {len(pasts)} places: MASE in errors of the simple forecast in "
                    "the past; CRPS and coverage (of the 80% interval) of "
                    f"{SAMPLES} samples, for the simple ones of the errors they made in the past{combined}")


def combined_forecasts(fitted: Fitted, columns: Sequence[str], pasts: Sequence[np.ndarray], steps: int,
                       samples: int = SAMPLES, weights: str = "float32", seed: int = 0) -> np.ndarray:
    """(P, K, steps, C): K samples of the moments that follow each of P pasts (T, C)."""
    prompts = [_prompt(fitted, columns, past) for past in pasts]
    draws = sample_forecasts(fitted.decodable(weights), fitted.codec, prompts, steps, samples, seed)
    if fitted.combination is not None:
        draws = np.stack([fitted.combination.shift(window, past) for window, past in zip(draws, pasts)])
    return draws


def choose_combination(fitted: Fitted, data: Data) -> Combination | None:
    """The simple forecast, with its weight, that improves the model's median forecasts most on held-out data when
    averaged with them; None if none clearly does. The past of held-out moments is all that precedes them."""
    windows = _select_windows(fitted, *data.histories(), at_most=2 * WINDOWS, samples=CHOICE_SAMPLES)
    if len(windows.pasts) < LEAST_WINDOWS:
        return None
    medians = np.median(combined_forecasts(fitted, windows.columns, windows.pasts, windows.steps, CHOICE_SAMPLES), 1)
    sizes = np.array([[naive_scale(column) for column in past.T] for past in windows.pasts])[:, None]
    sizes = np.where(sizes > 0, sizes, np.nan)
    lags = tuple(find_season(column) for column in max(windows.pasts, key=len).T)

    def errors(points: np.ndarray) -> np.ndarray:
        """(P,) mean scaled error of each window; nan if none of its numbers is known."""
        scaled = np.abs(points - windows.truth) / sizes
        mask = np.isfinite(scaled).reshape(len(scaled), -1)
        return np.where(mask, scaled.reshape(len(scaled), -1), 0).sum(1) / np.where(mask.any(1), mask.sum(1), np.nan)

    model_errors = errors(medians)
    if np.isfinite(model_errors).sum() < LEAST_WINDOWS:  # constant numbers have no scale
        return None
    chosen, best_error = None, ERROR_RATIO * np.nanmean(model_errors)
    for name in SIMPLE:
        simple = np.stack([Combination(name, 1.0, lags).points(past, windows.steps) for past in windows.pasts])
        for weight in WEIGHTS:
            combined_errors = errors(medians + weight * np.nan_to_num(simple - medians))
            gain = (model_errors - combined_errors)[np.isfinite(model_errors - combined_errors)]
            is_clear = len(gain) >= LEAST_WINDOWS and gain.mean() > STANDARD_ERRORS * gain.std() / np.sqrt(len(gain))
            if is_clear and np.nanmean(combined_errors) < best_error:
                chosen, best_error = Combination(name, weight, lags), float(np.nanmean(combined_errors))
    return chosen


@dataclass
class ForecastWindows:
    """Where forecasts are made. pasts: P arrays (T, C). truth: (P, steps, C) the moments after each past, nan where
    unknown. usual: median length of a sequence, in moments."""

    columns: list[str]
    usual: int
    steps: int
    pasts: list[np.ndarray]
    truth: np.ndarray


def _select_windows(fitted: Fitted, data: Data, start: np.ndarray | None = None,
                    at_most: int = WINDOWS, samples: int = SAMPLES) -> ForecastWindows:
    """Windows spread evenly over the second halves of the sequences, or over what follows the first `start` elements
    of each; fewer than `at_most` where `samples` of each would be more than TOKENS."""
    turns = fitted.codec.turns()
    columns = turn_columns(fitted.codec)
    series = [as_columns(obj) for obj in data.objects()]
    lengths = np.array([max(map(len, each.values()), default=0) for each in series])
    first = lengths // 2 if start is None else start // len(turns)
    median_length = int(np.median(lengths if start is None else 2 * (lengths - first)))
    steps = min(STEPS, median_length // 4)
    starts = [(row, moment) for row in range(len(series))
              for moment in range(max(LEAST_PAST, first[row]), lengths[row] - steps + 1)] if steps else []
    num_windows = max(2, min(at_most, TOKENS // max(1, samples * steps * len(turns))))
    chosen = np.unique(np.linspace(0, len(starts) - 1, min(num_windows, len(starts))).astype(int))
    starts = [starts[i] for i in chosen.tolist()]
    grids = {row: np.stack([series[row].get(column, np.full(lengths[row], np.nan)) for column in columns], 1)
             for row in {row for row, _ in starts}}
    truth = np.array([grids[row][moment : moment + steps] for row, moment in starts])
    return ForecastWindows(columns, median_length, steps, [grids[row][:moment] for row, moment in starts], truth)


def _prompt(fitted: Fitted, columns: Sequence[str], past: np.ndarray) -> list[int]:
    """Token ids of the last moments of a past (T, columns), as many as fit into the model's context."""
    max_moments, begin = max(1, fitted.context // len(columns)), fitted.codec.bos
    ids = np.stack([fitted.codec.encode([element(column, number) for number in numbers.tolist()])
                    for column, numbers in zip(columns, past[-max_moments:].T)], 1)
    return ([begin] if begin is not None and len(past) <= max_moments else []) + ids.reshape(-1).tolist()


def _simple_forecasts(pasts: Sequence[np.ndarray], steps: int, lag: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """By name, points (P, H) and samples (P, K, H) of the simple forecasts after each past; the linear one only if
    every past is long enough for it. lag: moments of a season, 1 for none."""
    lags = {"last value": 1} | ({f"{SEASON} ({lag})": lag} if lag > 1 else {})
    by_name = {name: [naive_forecast(past, steps, each) for past in pasts] for name, each in lags.items()}
    lines = [line for past in pasts if (line := linear_forecast(past, steps)) is not None]
    if len(lines) == len(pasts):
        by_name[LINE] = lines
    quantiles = (np.arange(SAMPLES) + 0.5) / SAMPLES  # quantiles that turn any number of samples into SAMPLES
    return {name: (np.stack([points for points, _ in each]),
                   np.stack([np.quantile(draws, quantiles, axis=0) for _, draws in each]))
            for name, each in by_name.items()}


def _mean_over_columns(scores: Sequence[Mapping[str, Mapping[str, float]]],
                       columns: int) -> dict[str, dict[str, float]]:
    """The mean of each measure over the columns, for methods that have it in all of them. The season may differ between
    columns."""
    means = {}
    for name in (OURS, "last value", SEASON, LINE):
        methods = [errors for column in scores for method, errors in column.items() if method.startswith(name)]
        if len(methods) == columns:
            means[name] = {measure: float(np.mean([errors[measure] for errors in methods])) for measure in MEASURES
                           if all(measure in errors for errors in methods)}
    return means


def _measures(points: np.ndarray, draws: np.ndarray, truth: np.ndarray, sizes: np.ndarray,
              observed: np.ndarray) -> dict[str, float]:
    """MEASURES over the known moments, without those that are undefined. points, truth, sizes: (P, H). draws: (P, K,
    H).
    """
    arguments = {"points": points[observed], "truth": truth[observed], "scale": np.nan_to_num(sizes[observed]),
                 "draws": draws.transpose(0, 2, 1)[observed]}
    values = {name: METRICS[name].compute(*(arguments[need] for need in METRICS[name].needs)) for name in MEASURES}
    return {name: value for name, value in values.items() if np.isfinite(value)}
