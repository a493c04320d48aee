"""Feature tables of sequences that need no network: tf-idf of n-grams, anywhere or at their positions; resampled
numbers and their spectrum. A view is learned from some sequences and makes a feature table of any."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from segue.analysis.distributions import MIX
from segue.kernels.descent import sparse_matmul

ELEMENTS = 20_000_000  # counted at most, over all sequences
PLACES, BANDS, SEGMENTS, WINDOW = 512, 32, 8, 256
WAVES = 1024


@dataclass(frozen=True)
class Sparse:
    """A sparse matrix (N, D) in compressed rows (CSR): starts (N + 1,), columns and values (nnz,), and width D."""

    starts: np.ndarray
    columns: np.ndarray
    values: np.ndarray
    width: int

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.starts) - 1, self.width

    def __getitem__(self, rows: np.ndarray) -> Sparse:
        """The rows of a boolean mask (N,)."""
        lengths = np.diff(self.starts)
        kept = np.repeat(rows, lengths)
        return Sparse(np.append(0, np.cumsum(lengths[rows])), self.columns[kept], self.values[kept], self.width)

    def __matmul__(self, weights: np.ndarray) -> np.ndarray:
        """(N, C), with weights (D, C)."""
        out = np.zeros((self.shape[0], weights.shape[1]), np.float32)
        sparse_matmul(self.starts, self.columns, self.values, weights, out)
        return out


class View(Protocol):
    """A feature map made by `learn(inputs)`, which also returns the feature table of those inputs. Its dataclass fields
    are its whole state. Rows have a norm of about 1, so that one ridge penalty is as strong for every view."""

    def __call__(self, inputs: Any, /) -> Sparse | np.ndarray:
        """Features (N, D) of N sequences."""


@dataclass(frozen=True)
class Runs:
    """tf-idf of the n-grams of sequences of ids, n up to `order`, with log counts and rows of norm 1.

    keys: (F,) int64, ascending hashes of the n-grams found in two sequences or more. weights: (F,) float32, their
    inverse document frequencies. placed: an n-gram at another position is another n-gram.
    """

    keys: np.ndarray
    weights: np.ndarray
    order: int
    placed: bool

    @staticmethod
    def learn(rows: Sequence[np.ndarray], bits: float, placed: bool = False, most: int = 1 << 18
              ) -> tuple[Runs, Sparse]:
        """bits: information that the longest n-grams should hold; `order` is this over the entropy of an element.
        most: n-grams that are kept, those found in the most sequences."""
        order = _choose_order(rows, bits)
        counts = [_count_ngrams(rows, n, placed) for n in range(1, order + 1)]
        frequencies = [np.unique(keys, return_counts=True) for keys, _, _ in counts]
        keys, frequency = (np.concatenate(column) for column in zip(*frequencies))  # frequency: in how many rows
        kept = np.flatnonzero(frequency > (1 if len(rows) > 2 else 0))
        kept = kept[np.argsort(-frequency[kept], kind="stable")[:most]]
        kept = kept[np.argsort(keys[kept])]
        weights = 1 + np.log((1 + len(rows)) / (1 + frequency[kept]))
        view = Runs(keys[kept], weights.astype(np.float32), order, placed)
        return view, view._table(counts, len(rows))

    def __call__(self, rows: Sequence[np.ndarray]) -> Sparse:
        return self._table([_count_ngrams(rows, n, self.placed) for n in range(1, self.order + 1)], len(rows))

    def _table(self, counts: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]], num_rows: int) -> Sparse:
        """The table of what `_count_ngrams` gave for each n; n-grams that are not among `keys` are left out."""
        parts = []
        for keys, row, count in counts:
            column = np.searchsorted(self.keys, keys)
            known = np.flatnonzero(column < len(self.keys))
            known = known[self.keys[column[known]] == keys[known]]
            parts.append((row[known], column[known], (1 + np.log(count[known])) * self.weights[column[known]]))
        row, columns, values = (np.concatenate(part) for part in zip(*parts))
        order = np.argsort(row, kind="stable")
        row, columns, values = row[order], columns[order], values[order]
        norm = np.sqrt(np.bincount(row, np.square(values), num_rows))
        values = (values / norm[row]).astype(np.float32) if len(row) else values.astype(np.float32)
        return Sparse(np.append(0, np.cumsum(np.bincount(row, minlength=num_rows))), columns, values, len(self.keys))


def _count_ngrams(rows: Sequence[np.ndarray], n: int, placed: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The distinct n-grams of each row: hash (int64), row and count of each, sorted by hash and row."""
    longest = max(256, ELEMENTS // max(1, len(rows)))
    rows = [row[:longest] for row in rows]
    lengths = np.array([len(row) for row in rows])
    flat = np.concatenate([np.zeros(0, np.int64), *rows]).astype(np.uint64)
    if placed:
        positions = np.arange(len(flat)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        flat ^= (positions.astype(np.uint64) + np.uint64(1)) << np.uint64(32)
    flat = _mix_bits(flat + np.uint64(1))
    hashes = np.zeros(len(flat), np.uint64)
    for i in range(n):
        hashes = _mix_bits(hashes[: len(flat) - i] ^ flat[i:])
    row = np.repeat(np.arange(len(rows)), lengths)
    inside = row[: len(hashes)] == row[n - 1 :]  # not across the end of a row
    keys, row = hashes[inside].view(np.int64), row[: len(hashes)][inside]
    order = np.argsort(keys, kind="stable")
    keys, row = keys[order], row[order]
    first = np.flatnonzero(np.append(True, (keys[1:] != keys[:-1]) | (row[1:] != row[:-1]))[: len(keys)])
    return keys[first], row[first], np.diff(np.append(first, len(keys)))


def _choose_order(rows: Sequence[np.ndarray], bits: float) -> int:
    """How many elements hold so many bits together, by the entropy of single ones; 1 to 8."""
    _, counts = np.unique(np.concatenate([np.zeros(1, np.int64), *rows])[:1_000_000], return_counts=True)
    p = counts / counts.sum()
    return int(np.clip(np.round(bits / max(-(p * np.log2(p)).sum(), 0.1)), 1, 8))


def _mix_bits(x: np.ndarray) -> np.ndarray:
    """A step of a multiplicative hash of uint64."""
    x = x * MIX
    return x ^ (x >> np.uint64(31))


@dataclass(frozen=True)
class Scaled:
    """Columns of numbers, standardised. Where all columns are of one sort (`one_sort`), each column's variance is
    averaged with the mean variance of all: a pixel that is hardly ever lit must not count like the others."""

    centre: np.ndarray
    scale: np.ndarray

    @staticmethod
    def learn(table: np.ndarray, one_sort: bool = True) -> tuple[Scaled, np.ndarray]:
        centre, variance = table.mean(0), table.var(0)
        variance = (variance + variance.mean()) / 2 if one_sort else variance
        constant = variance <= 1e-12 * np.square(table).max(0, initial=1e-12)
        scale = np.where(constant, 0, 1 / np.sqrt(np.where(constant, 1, variance) * len(centre)))
        view = Scaled(centre.astype(np.float32), scale.astype(np.float32))
        return view, view(table)

    def __call__(self, table: np.ndarray) -> np.ndarray:
        return ((table - self.centre) * self.scale).astype(np.float32)


@dataclass(frozen=True)
class Near:
    """Random Fourier features of `Scaled` numbers, which approximate the Gaussian kernel exp(-|x - y|^2) (Rahimi and
    Recht 2007), so that a linear head on them can use what rows near each other have in common."""

    centre: np.ndarray
    scale: np.ndarray
    waves: np.ndarray
    phases: np.ndarray

    @staticmethod
    def learn(table: np.ndarray, one_sort: bool = True, seed: int = 0) -> tuple[Near, np.ndarray]:
        scaled, _ = Scaled.learn(table, one_sort)
        rng = np.random.default_rng(seed)
        waves = 2 ** 0.5 * rng.standard_normal((table.shape[1], WAVES), np.float32)
        view = Near(scaled.centre, scaled.scale, waves, rng.uniform(0, 2 * np.pi, WAVES).astype(np.float32))
        return view, view(table)

    def __call__(self, table: np.ndarray) -> np.ndarray:
        scaled = Scaled(self.centre, self.scale)(table)
        return (2 / WAVES) ** 0.5 * np.cos(scaled @ self.waves + self.phases)


# --- measured numbers -----------------------------------------------------------------------------------------------

def standardise(numbers: np.ndarray) -> np.ndarray:
    """Columns of numbers (size, C), each minus its mean and over its standard deviation; nan stays nan."""
    deviation = np.nanstd(numbers, 0)
    return (numbers - np.nanmean(numbers, 0)) / np.where(deviation > 0, deviation, 1)


def course(rows: Sequence[np.ndarray], numbers: np.ndarray, places: int) -> np.ndarray:
    """(N, C places): the series of each column, resampled to so many places.

    rows: of ids. numbers: (size, C), the numbers that each id stands for, nan where it says nothing of a column.
    """
    return np.stack([np.concatenate([_resample(x, places) for x in _columns(row, numbers)]) for row in rows])


def spectrum(rows: Sequence[np.ndarray], numbers: np.ndarray, window: int) -> np.ndarray:
    """(N, D): of each column mean, deviation, extremes and steps, and its log power in bands of frequency: resampled to
    SEGMENTS, and its mean and deviation over time. rows, numbers: see `course`. window: elements of a Fourier
    transform, a power of 2 (0: no spectrum)."""
    bands = min(BANDS, window // 2, max(2, 1 << (256 // numbers.shape[1]).bit_length() - 1))
    features = []
    for row in rows:
        parts = []
        for x in _columns(row, numbers):
            x = np.resize(x, max(2, len(x)))
            step = np.diff(x)
            parts.append(np.array([x.mean(), x.std(), x.min(), x.max(), np.abs(step).mean(), step.std()]))
            if window:
                log_power = _band_power(x, window, bands)
                parts += [_resample(log_power, SEGMENTS).reshape(-1), log_power.mean(0), log_power.std(0)]
        features.append(np.concatenate(parts))
    return np.stack(features)


def _band_power(x: np.ndarray, window: int, bands: int) -> np.ndarray:
    """(windows, bands): log mean power of x (n,) in bands of frequency, in Hann windows that overlap by half."""
    x = np.pad(x - x.mean(), (0, max(0, window - len(x))))
    windows = np.lib.stride_tricks.sliding_window_view(x, window)[:: window // 2]
    power = np.square(np.abs(np.fft.rfft(windows * np.hanning(window))))[:, 1:]
    return np.log(power.reshape(len(power), bands, -1).mean(2) + 1e-6 * window)


def _columns(row: np.ndarray, numbers: np.ndarray) -> list[np.ndarray]:
    """The series of each column, without missing values; [0] where none is left."""
    series = [x[np.isfinite(x)] for x in numbers[row].T]
    return [x if len(x) else np.zeros(1) for x in series]


def _resample(x: np.ndarray, places: int) -> np.ndarray:
    """x (n, ...) as means over so many even stretches, which may be shorter than an element."""
    if len(x) == places:
        return x
    integral = np.concatenate([np.zeros((1, *x.shape[1:])), np.cumsum(x, 0)])
    edges = np.linspace(0, len(x), places + 1)
    left = np.minimum(edges.astype(int), len(x) - 1)
    fraction = (edges - left).reshape(-1, *[1] * (x.ndim - 1))
    return np.diff(integral[left] * (1 - fraction) + integral[left + 1] * fraction, axis=0) * places / len(x)


VIEWS: dict[str, type[View]] = {view.__name__: view for view in (Runs, Scaled, Near)}
