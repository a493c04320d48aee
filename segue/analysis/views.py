"""What sequences look like in ways that need no network: how often runs of elements occur, wherever or at their places;
the course of measured numbers and their spectrum. A view is learned from some sequences and makes a table of any."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from segue.analysis.distributions import MIX
from segue.kernels.descent import sparse_matmul

ELEMENTS = 20_000_000  # that are counted at most, of all sequences
PLACES, BANDS, SEGMENTS, WINDOW = 512, 32, 8, 256
WAVES = 1024


@dataclass(frozen=True)
class Sparse:
    """A table (N, D) that is 0 nearly everywhere, row after row: where each begins, columns and values."""

    starts: np.ndarray
    columns: np.ndarray
    values: np.ndarray
    width: int

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.starts) - 1, self.width

    def __getitem__(self, rows: np.ndarray) -> Sparse:
        """Those of a mask (N,)."""
        lengths = np.diff(self.starts)
        kept = np.repeat(rows, lengths)
        return Sparse(np.append(0, np.cumsum(lengths[rows])), self.columns[kept], self.values[kept], self.width)

    def __matmul__(self, weights: np.ndarray) -> np.ndarray:
        """(N, C), with weights (D, C)."""
        out = np.zeros((self.shape[0], weights.shape[1]), np.float32)
        sparse_matmul(self.starts, self.columns, self.values, weights, out)
        return out


class View(Protocol):
    """Made by `learn(given)`, which also gives the table of what it learned from; its fields are all that it is. Rows
    of a table are about of length 1, so that one ridge means as much for every view."""

    def __call__(self, given: Any, /) -> Sparse | np.ndarray:
        """(N, D) of N sequences."""


@dataclass(frozen=True)
class Runs:
    """How often each run of up to `order` elements occurs in sequences of ids, counts of runs that are rare in others
    weighing more (tf-idf, with log counts); a row is of length 1.

    keys: (F,) int64, hashes of the runs that two sequences have or more, rising. weights: (F,) float32. placed: a run
    at another place is another run.
    """

    keys: np.ndarray
    weights: np.ndarray
    order: int
    placed: bool

    @staticmethod
    def learn(rows: Sequence[np.ndarray], bits: float, placed: bool = False, most: int = 1 << 18
              ) -> tuple[Runs, Sparse]:
        """bits: how much the longest runs should say, as many elements as is their entropy. most: runs that are told
        apart, those that most sequences have."""
        order = _order(rows, bits)
        found = [_counted(rows, n, placed) for n in range(1, order + 1)]
        pairs = [np.unique(keys, return_counts=True) for keys, _, _ in found]
        keys, often = (np.concatenate(each) for each in zip(*pairs))
        kept = np.flatnonzero(often > (1 if len(rows) > 2 else 0))
        kept = kept[np.argsort(-often[kept], kind="stable")[:most]]
        kept = kept[np.argsort(keys[kept])]
        weights = 1 + np.log((1 + len(rows)) / (1 + often[kept]))
        view = Runs(keys[kept], weights.astype(np.float32), order, placed)
        return view, view._table(found, len(rows))

    def __call__(self, rows: Sequence[np.ndarray]) -> Sparse:
        return self._table([_counted(rows, n, self.placed) for n in range(1, self.order + 1)], len(rows))

    def _table(self, found: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]], count: int) -> Sparse:
        parts = []
        for keys, row, often in found:
            at = np.searchsorted(self.keys, keys)
            known = np.flatnonzero(at < len(self.keys))
            known = known[self.keys[at[known]] == keys[known]]
            parts.append((row[known], at[known], (1 + np.log(often[known])) * self.weights[at[known]]))
        row, columns, values = (np.concatenate(each) for each in zip(*parts))
        order = np.argsort(row, kind="stable")
        row, columns, values = row[order], columns[order], values[order]
        length = np.sqrt(np.bincount(row, np.square(values), count))
        values = (values / length[row]).astype(np.float32) if len(row) else values.astype(np.float32)
        return Sparse(np.append(0, np.cumsum(np.bincount(row, minlength=count))), columns, values, len(self.keys))


def _counted(rows: Sequence[np.ndarray], n: int, placed: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The different runs of n elements of each row: hash (int64), row and how often, by hash and row."""
    most = max(256, ELEMENTS // max(1, len(rows)))
    rows = [row[:most] for row in rows]
    lengths = np.array([len(row) for row in rows])
    flat = np.concatenate([np.zeros(0, np.int64), *rows]).astype(np.uint64)
    if placed:
        places = np.arange(len(flat)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        flat ^= (places.astype(np.uint64) + np.uint64(1)) << np.uint64(32)
    flat = _mixed(flat + np.uint64(1))
    runs = np.zeros(len(flat), np.uint64)
    for i in range(n):
        runs = _mixed(runs[: len(flat) - i] ^ flat[i:])
    whose = np.repeat(np.arange(len(rows)), lengths)
    inside = whose[: len(runs)] == whose[n - 1 :]
    keys, whose = runs[inside].view(np.int64), whose[: len(runs)][inside]
    order = np.argsort(keys, kind="stable")
    keys, whose = keys[order], whose[order]
    first = np.flatnonzero(np.append(True, (keys[1:] != keys[:-1]) | (whose[1:] != whose[:-1]))[: len(keys)])
    return keys[first], whose[first], np.diff(np.append(first, len(keys)))


def _order(rows: Sequence[np.ndarray], bits: float) -> int:
    """How many elements say so many bits, each alone."""
    _, often = np.unique(np.concatenate([np.zeros(1, np.int64), *rows])[:1_000_000], return_counts=True)
    share = often / often.sum()
    return int(np.clip(np.round(bits / max(-(share * np.log2(share)).sum(), 0.1)), 1, 8))


def _mixed(x: np.ndarray) -> np.ndarray:
    x = x * MIX
    return x ^ (x >> np.uint64(31))


@dataclass(frozen=True)
class Scaled:
    """Numbers, less their means and by their deviations. Half of a deviation is its own, half that of all columns
    together where these are of one sort (`one_sort`): a pixel that is never lit must not count like another."""

    centre: np.ndarray
    scale: np.ndarray

    @staticmethod
    def learn(table: np.ndarray, one_sort: bool = True) -> tuple[Scaled, np.ndarray]:
        centre, square = table.mean(0), table.var(0)
        square = (square + square.mean()) / 2 if one_sort else square
        never = square <= 1e-12 * np.square(table).max(0, initial=1e-12)
        scale = np.where(never, 0, 1 / np.sqrt(np.where(never, 1, square) * len(centre)))
        view = Scaled(centre.astype(np.float32), scale.astype(np.float32))
        return view, view(table)

    def __call__(self, table: np.ndarray) -> np.ndarray:
        return ((table - self.centre) * self.scale).astype(np.float32)


@dataclass(frozen=True)
class Near:
    """`Scaled` numbers as waves whose products fall with the distance, as exp(-|x - y|^2) does (random Fourier
    features: Rahimi & Recht 2007): linear in these is whatever rows near each other have in common."""

    centre: np.ndarray
    scale: np.ndarray
    waves: np.ndarray
    phases: np.ndarray

    @staticmethod
    def learn(table: np.ndarray, one_sort: bool = True, seed: int = 0) -> tuple[Near, np.ndarray]:
        scaled, _ = Scaled.learn(table, one_sort)
        draw = np.random.default_rng(seed)
        waves = 2 ** 0.5 * draw.standard_normal((table.shape[1], WAVES), np.float32)
        view = Near(scaled.centre, scaled.scale, waves, draw.uniform(0, 2 * np.pi, WAVES).astype(np.float32))
        return view, view(table)

    def __call__(self, table: np.ndarray) -> np.ndarray:
        scaled = Scaled(self.centre, self.scale)(table)
        return (2 / WAVES) ** 0.5 * np.cos(scaled @ self.waves + self.phases)


# --- measured numbers -----------------------------------------------------------------------------------------------

def alike(numbers: np.ndarray) -> np.ndarray:
    """Columns of numbers (size, C), each less its mean and by its deviation."""
    spread = np.nanstd(numbers, 0)
    return (numbers - np.nanmean(numbers, 0)) / np.where(spread > 0, spread, 1)


def course(rows: Sequence[np.ndarray], numbers: np.ndarray, places: int) -> np.ndarray:
    """(N, C places): the C columns of numbers (size, C) that ids say, each brought to so many places."""
    return np.stack([np.concatenate([_brought(each, places) for each in _columns(row, numbers)]) for row in rows])


def spectrum(rows: Sequence[np.ndarray], numbers: np.ndarray, window: int) -> np.ndarray:
    """(N, D): of each column mean, deviation, extremes and steps, and how loud it is in bands: the course of that in
    segments, its mean and its deviation over time. window: numbers in a spectrum, a power of 2 (0: none)."""
    bands = min(BANDS, window // 2, max(2, 1 << (256 // numbers.shape[1]).bit_length() - 1))
    found = []
    for row in rows:
        parts = []
        for x in _columns(row, numbers):
            x = np.resize(x, max(2, len(x)))
            step = np.diff(x)
            parts.append(np.array([x.mean(), x.std(), x.min(), x.max(), np.abs(step).mean(), step.std()]))
            if window:
                x = np.pad(x - x.mean(), (0, max(0, window - len(x))))
                pieces = np.lib.stride_tricks.sliding_window_view(x, window)[:: window // 2]
                power = np.square(np.abs(np.fft.rfft(pieces * np.hanning(window))))[:, 1:]
                loud = np.log(power.reshape(len(power), bands, -1).mean(2) + 1e-6 * window)
                parts += [_brought(loud, SEGMENTS).reshape(-1), loud.mean(0), loud.std(0)]
        found.append(np.concatenate(parts))
    return np.stack(found)


def _columns(row: np.ndarray, numbers: np.ndarray) -> list[np.ndarray]:
    """What a row says of each column, without what is missing; 0 where it says nothing."""
    said = [each[np.isfinite(each)] for each in numbers[row].T]
    return [each if len(each) else np.zeros(1) for each in said]


def _brought(x: np.ndarray, places: int) -> np.ndarray:
    """x (n, ...) as so many means over even stretches, which may be shorter than an element."""
    if len(x) == places:
        return x
    whole = np.concatenate([np.zeros((1, *x.shape[1:])), np.cumsum(x, 0)])
    at = np.linspace(0, len(x), places + 1)
    before = np.minimum(at.astype(int), len(x) - 1)
    share = (at - before).reshape(-1, *[1] * (x.ndim - 1))
    return np.diff(whole[before] * (1 - share) + whole[before + 1] * share, axis=0) * places / len(x)


VIEWS: dict[str, type[View]] = {view.__name__: view for view in (Runs, Scaled, Near)}
