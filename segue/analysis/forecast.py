"""Metrics of forecasts of measured numbers, and the baseline forecasts that any other has to beat: the last value, the
value one season before (naive and seasonal naive: Hyndman & Athanasopoulos, Forecasting: Principles and Practice,
3rd edition, 2021), and a linear regression on the latest values.

A forecast has points (N,), one for each true number, and draws (N, K), samples of its predictive distribution.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from segue.errors import SegueError

SHARE = 0.8  # of the draws that a prediction interval holds, the middle ones
SEASONAL = 0.3  # least autocorrelation at the lag of a season
LONGEST = 800  # steps of a season
DRAWS = 200  # of a baseline forecast
SIMPLE = ("last value", "season", "linear")
LEARNED = 5_000  # latest windows at most that the linear baseline is fitted to


def mae(points: np.ndarray, truth: np.ndarray) -> float:
    """Mean absolute error."""
    return float(np.abs(points - truth).mean())


def rmse(points: np.ndarray, truth: np.ndarray) -> float:
    """Root of the mean squared error."""
    return math.sqrt(float(np.square(points - truth).mean()))


def mase(points: np.ndarray, truth: np.ndarray, scale: np.ndarray) -> float:
    """Mean absolute scaled error (Hyndman & Koehler 2006): each error (N,) over `scale` (N,), the mean error of the
    seasonal naive forecast on the past (`naive_scale`); rows with a constant past are left out."""
    valid = scale > 0
    return float((np.abs(points - truth)[valid] / scale[valid]).mean()) if valid.any() else math.nan


def crps(draws: np.ndarray, truth: np.ndarray) -> float:
    """Continuous ranked probability score (Gneiting & Raftery 2007) of draws (N, K): mean of E|X - y| - E|X - X'| / 2.
    Of a single draw it is the absolute error."""
    count = draws.shape[1]
    weights = (2 * np.arange(1, count + 1) - count - 1) / count**2  # sorted draws @ weights = E|X - X'| / 2
    return float((np.abs(draws - truth[:, None]).mean(1) - np.sort(draws, 1) @ weights).mean())


def coverage(draws: np.ndarray, truth: np.ndarray, share: float = SHARE) -> float:
    """Share of true numbers inside the central prediction interval of the draws; calibrated if it equals `share`."""
    low, high = np.quantile(draws, [(1 - share) / 2, (1 + share) / 2], axis=1)
    return float(((low <= truth) & (truth <= high)).mean())


def find_season(values: Sequence[float] | np.ndarray) -> int:
    """The period of a series (n,) in steps: the highest peak of the autocorrelation without the linear trend; 1 where
    no peak is high."""
    values = fill_missing(np.asarray(values, float))
    n = len(values)
    max_lag = min(n // 3, LONGEST)
    if max_lag < 2:
        return 1
    time = np.arange(n)
    detrended = values - np.polyval(np.polyfit(time, values, 1), time)
    power = np.abs(np.fft.rfft(detrended, 2 * n)) ** 2
    covariance = np.fft.irfft(power)[: max_lag + 2] / np.arange(n, n - max_lag - 2, -1)
    if not covariance[0] > 1e-12 * max(1.0, float(np.square(values).mean())):
        return 1
    acf = covariance / covariance[0]
    peaks = [lag for lag in range(2, max_lag + 1) if acf[lag] >= acf[lag - 1] and acf[lag] >= acf[lag + 1]]
    best = max(peaks, key=lambda lag: acf[lag], default=1)
    if best == 1 or acf[best] < SEASONAL:
        return 1
    return next(lag for lag in peaks if acf[lag] >= 0.9 * acf[best])  # not twice the season


def fill_missing(values: np.ndarray) -> np.ndarray:
    """A series (n,) with each missing number as the last known one before it; at the beginning, as the first one; 0
    where none is known."""
    known = np.isfinite(values)
    if not known.any():
        return np.zeros(len(values))
    source = np.maximum.accumulate(np.where(known, np.arange(len(values)), 0))
    source[: known.argmax()] = known.argmax()
    return values[source]


def naive_forecast(past: np.ndarray, steps: int, lag: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """The seasonal naive forecast, each value as the one `lag` steps before: points (steps,), and draws (K, steps), the
    points plus errors of the same forecast at DRAWS or fewer times in the past (n,)."""
    past = fill_missing(past)
    lag = min(lag, len(past))
    ahead = np.arange(steps)
    points = past[len(past) - lag + ahead % lag]
    starts = np.arange(lag, len(past) - steps + 1)  # of past stretches that could be forecast
    starts = starts[np.unique(np.linspace(0, len(starts) - 1, min(DRAWS, len(starts))).astype(int))] if len(starts) \
        else starts
    errors = past[starts[:, None] + ahead] - past[starts[:, None] - lag + ahead % lag]
    return points, points + errors if len(errors) else points[None]


def linear_forecast(past: np.ndarray, steps: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Ridge regression of the next `steps` values on the 2 * `steps` latest ones, both as differences from the last
    value, fitted to the past (n,) (as NLinear: Zeng et al. 2022, arXiv 2205.13504). Points and draws as of
    `naive_forecast`, with the residuals of the fit; None where the past is shorter than 8 * `steps`."""
    if len(past) < 8 * steps:
        return None
    past, lags = fill_missing(past), 2 * steps
    starts = np.arange(len(past) - lags - steps + 1)[-LEARNED:]
    rows = past[starts[:, None] + np.arange(lags + steps)] - past[starts + lags - 1, None]
    x, y = rows[:, : lags - 1], rows[:, lags:]
    penalty = 1e-3 * float(np.square(x).sum()) / lags + 1e-9
    weights = np.linalg.solve(x.T @ x + penalty * np.eye(lags - 1), x.T @ y)
    points = past[-1] + (past[-lags:-1] - past[-1]) @ weights
    errors = (y - x @ weights)[np.unique(np.linspace(0, len(x) - 1, min(DRAWS, len(x))).astype(int))]
    return points, points + errors


@dataclass(frozen=True)
class Combination:
    """Combines a model's forecasts with a baseline (Bates & Granger 1969). name: of the baseline, one of `SIMPLE`.
    weight: of the baseline, 0 to 1. lags: the season of each column in steps (1: none)."""

    name: str
    weight: float
    lags: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.name not in SIMPLE or not 0 <= self.weight <= 1 or min(self.lags, default=0) < 1:
            raise SegueError(f"forecasts cannot be combined with '{self.name}', weight {self.weight}, lags "
                             f"{self.lags}: one of {', '.join(SIMPLE)}, a weight up to 1 and lags of 1 or more can")

    def points(self, past: np.ndarray, steps: int) -> np.ndarray:
        """(steps, C), the baseline forecast after a past (T, C); nan for columns whose past is too short for it, empty,
        or without a season."""
        points = np.full((steps, past.shape[1]), np.nan)
        for c, (column, lag) in enumerate(zip(past.T, self.lags)):
            if not np.isfinite(column).any():
                continue
            if self.name == "linear":
                forecast = linear_forecast(column, steps)
                points[:, c] = np.nan if forecast is None else forecast[0]
            elif self.name == "last value" or 1 < lag <= len(column):
                points[:, c] = naive_forecast(column, steps, 1 if self.name == "last value" else lag)[0]
        return points

    def shift(self, draws: np.ndarray, past: np.ndarray) -> np.ndarray:
        """Draws (K, H, C) shifted so that their medians are the weighted mean of both forecasts. Columns that were
        never negative in the past (T, C), or always integers, stay so; draws that are nan stay nan."""
        points, medians = self.points(past, draws.shape[1]), np.median(draws, 0)
        shifted = draws + self.weight * np.nan_to_num(points - medians)
        known = np.isfinite(past)
        integer = np.where(known, past == np.rint(past), True).all(0)
        lowest = np.where(np.where(known, past >= 0, True).all(0), 0.0, -np.inf)
        shifted = np.maximum(np.where(integer, np.rint(shifted), shifted), lowest)
        return np.where(np.isfinite(points), shifted, draws)


def naive_scale(past: np.ndarray, lag: int = 1) -> float:
    """The mean absolute error of the seasonal naive forecast on the past (n,) (`mase`); nan where that is too short."""
    errors = np.abs(past[lag:] - past[:-lag])
    errors = errors[np.isfinite(errors)]
    return float(errors.mean()) if len(errors) else math.nan
