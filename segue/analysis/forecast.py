"""How good forecasts of measured numbers are, by the measures of the field, and the simple forecasts that any other has
to beat: the last value, the value of a season ago (Hyndman & Athanasopoulos, Forecasting: Principles and Practice,
3rd edition, 2021), and what is linear in the latest ones.

A forecast has points (N,), one number for each true one, and draws (N, K), numbers that it thinks as likely.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from segue.errors import SegueError

SHARE = 0.8  # of the draws, the middle ones, that an interval holds
SEASONAL = 0.3  # of the autocorrelation at least, where a season is believed
LONGEST = 800  # moments of a season
DRAWS = 200  # of a simple forecast
SIMPLE = ("last value", "season", "linear")
LEARNED = 5_000  # moments that a linear one is fitted to at most


def mae(points: np.ndarray, truth: np.ndarray) -> float:
    """Mean absolute error."""
    return float(np.abs(points - truth).mean())


def rmse(points: np.ndarray, truth: np.ndarray) -> float:
    """Root of the mean squared error."""
    return math.sqrt(float(np.square(points - truth).mean()))


def mase(points: np.ndarray, truth: np.ndarray, scale: np.ndarray) -> float:
    """Mean absolute scaled error (Hyndman & Koehler 2006): each error (N,) over the mean error `scale` (N,) that the
    simple forecast one season ahead makes in the past; rows whose past never changed are left out."""
    good = scale > 0
    return float((np.abs(points - truth)[good] / scale[good]).mean()) if good.any() else math.nan


def crps(draws: np.ndarray, truth: np.ndarray) -> float:
    """Continuous ranked probability score (Gneiting & Raftery 2007) of draws (N, K): mean of E|X - y| - E|X - X'| / 2.
    Of a single draw the absolute error."""
    count = draws.shape[1]
    rank = (2 * np.arange(1, count + 1) - count - 1) / count**2
    return float((np.abs(draws - truth[:, None]).mean(1) - np.sort(draws, 1) @ rank).mean())


def coverage(draws: np.ndarray, truth: np.ndarray, share: float = SHARE) -> float:
    """Share of the truth that lies in the interval of the middle draws; right is `share`."""
    low, high = np.quantile(draws, [(1 - share) / 2, (1 + share) / 2], axis=1)
    return float(((low <= truth) & (truth <= high)).mean())


def find_season(values: Sequence[float] | np.ndarray) -> int:
    """The moments after which a series (n,) comes again: the highest peak of the autocorrelation of what is left
    without its slow course; 1 where none is high."""
    values = fill_missing(np.asarray(values, float))
    n = len(values)
    most = min(n // 3, LONGEST)
    if most < 2:
        return 1
    time = np.arange(n)
    rest = values - np.polyval(np.polyfit(time, values, 1), time)
    power = np.abs(np.fft.rfft(rest, 2 * n)) ** 2
    found = np.fft.irfft(power)[: most + 2] / np.arange(n, n - most - 2, -1)
    if not found[0] > 1e-12 * max(1.0, float(np.square(values).mean())):
        return 1
    found = found / found[0]
    peaks = [lag for lag in range(2, most + 1) if found[lag] >= found[lag - 1] and found[lag] >= found[lag + 1]]
    best = max(peaks, key=lambda lag: found[lag], default=1)
    if best == 1 or found[best] < SEASONAL:
        return 1
    return next(lag for lag in peaks if found[lag] >= 0.9 * found[best])  # not twice the season


def fill_missing(values: np.ndarray) -> np.ndarray:
    """A series (n,) with what is missing as it was before; at its beginning, as it is first."""
    known = np.isfinite(values)
    if not known.any():
        return np.zeros(len(values))
    place = np.maximum.accumulate(np.where(known, np.arange(len(values)), 0))
    place[: known.argmax()] = known.argmax()
    return values[place]


def naive_forecast(past: np.ndarray, steps: int, lag: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """The forecast that each moment is as the one `lag` before: points (steps,), and draws (K, steps), those points
    with errors that they made in the past (n,), at most 200."""
    past = fill_missing(past)
    lag = min(lag, len(past))
    ahead = np.arange(steps)
    points = past[len(past) - lag + ahead % lag]
    begins = np.arange(lag, len(past) - steps + 1)  # of the moments that could be forecast
    begins = begins[np.unique(np.linspace(0, len(begins) - 1, min(DRAWS, len(begins))).astype(int))] if len(begins) \
        else begins
    errors = past[begins[:, None] + ahead] - past[begins[:, None] - lag + ahead % lag]
    return points, points + errors if len(errors) else points[None]


def linear_forecast(past: np.ndarray, steps: int) -> tuple[np.ndarray, np.ndarray] | None:
    """The next moments from the 2 * `steps` latest ones, as differences from the last, by a ridge that is fitted to
    the past (n,) (as NLinear: Zeng et al. 2022, arXiv 2205.13504): points and draws as of `naive_forecast`, errors
    being those of the fit; None where the past is shorter than 8 * `steps`."""
    if len(past) < 8 * steps:
        return None
    past, lags = fill_missing(past), 2 * steps
    begins = np.arange(len(past) - lags - steps + 1)[-LEARNED:]
    rows = past[begins[:, None] + np.arange(lags + steps)] - past[begins + lags - 1, None]
    x, y = rows[:, : lags - 1], rows[:, lags:]
    penalty = 1e-3 * float(np.square(x).sum()) / lags + 1e-9
    weights = np.linalg.solve(x.T @ x + penalty * np.eye(lags - 1), x.T @ y)
    points = past[-1] + (past[-lags:-1] - past[-1]) @ weights
    errors = (y - x @ weights)[np.unique(np.linspace(0, len(x) - 1, min(DRAWS, len(x))).astype(int))]
    return points, points + errors


@dataclass(frozen=True)
class Combination:
    """What forecasts are combined with (Bates & Granger 1969): a simple forecast, by its name in `SIMPLE`; its weight;
    and of each column the moments after which it comes again (1: it does not)."""

    name: str
    weight: float
    lags: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.name not in SIMPLE or not 0 <= self.weight <= 1 or min(self.lags, default=0) < 1:
            raise SegueError(f"forecasts cannot be combined with '{self.name}', weight {self.weight}, lags "
                             f"{self.lags}: one of {', '.join(SIMPLE)}, a weight up to 1 and lags of 1 or more can")

    def points(self, past: np.ndarray, steps: int) -> np.ndarray:
        """(steps, C), what the simple forecast says behind a past (T, C); nan where that is too short for it, or a
        column holds nothing or has no season."""
        found = np.full((steps, past.shape[1]), np.nan)
        for c, (column, lag) in enumerate(zip(past.T, self.lags)):
            if not np.isfinite(column).any():
                continue
            if self.name == "linear":
                told = linear_forecast(column, steps)
                found[:, c] = np.nan if told is None else told[0]
            elif self.name == "last value" or 1 < lag <= len(column):
                found[:, c] = naive_forecast(column, steps, 1 if self.name == "last value" else lag)[0]
        return found

    def moved(self, draws: np.ndarray, past: np.ndarray) -> np.ndarray:
        """Draws (K, H, C) moved, as they are, so that their medians are the mean of both forecasts. Numbers that were
        never negative in the past (T, C), or always whole, stay so; draws that are nan stay, too."""
        points, middle = self.points(past, draws.shape[1]), np.median(draws, 0)
        found = draws + self.weight * np.nan_to_num(points - middle)
        known = np.isfinite(past)
        whole = np.where(known, past == np.rint(past), True).all(0)
        least = np.where(np.where(known, past >= 0, True).all(0), 0.0, -np.inf)
        found = np.maximum(np.where(whole, np.rint(found), found), least)
        return np.where(np.isfinite(points), found, draws)


def naive_scale(past: np.ndarray, lag: int = 1) -> float:
    """The mean error that the forecast of `naive_forecast` makes one season ahead in the past (n,); nan where it is too
    short.
    """
    errors = np.abs(past[lag:] - past[:-lag])
    errors = errors[np.isfinite(errors)]
    return float(errors.mean()) if len(errors) else math.nan
