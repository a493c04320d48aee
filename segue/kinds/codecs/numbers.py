"""Measured numbers: one token a level of a column, in series and in the rows of tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from segue.errors import SegueError
from segue.kinds.codecs.base import END, MISSING, Codec

MOST_CATEGORIES = 24  # up to so many levels, the numbers of a column are categories rather than measurements


class _ColumnCodec(Codec):
    """Ids are the values of the first column and its missing value, those of the next column, and so on; last the end,
    which begins a sequence too. elements: what each id but the end decodes to. starts: the first id of each column."""

    exact = False
    eos: int
    elements: list[str]
    starts: dict[str, int]

    def decode(self, ids: Iterable[int]) -> list[str]:
        array = self.checked(ids)
        return [self.elements[id] for id in array[array != self.eos].tolist()]

    def token(self, id: int) -> str:
        return END if id == self.eos else self.elements[id]


class LevelCodec(_ColumnCodec):
    """Measured numbers, quantised: each becomes the nearest level of its column, or missing. An element is a str: the
    number, "nan" where it is missing; with several columns, the column's name before it ("temperature=21.5").

    levels: the levels of each column, ascending, with seven significant digits. Ids: the levels of the first column,
    its missing value, those of the next column, and so on; last the end. column: the name that files gave to an only
    column, which is not repeated in its elements.
    """

    name = "levels"

    def __init__(self, levels: Mapping[str, Sequence[float]], column: str = "") -> None:
        self.column = column
        self.levels = {column: [float(decimal(level)) for level in rising] for column, rising in levels.items()}
        for column, rising in self.levels.items():
            if not rising or any(a >= b for a, b in zip(rising, rising[1:])) or not np.isfinite(rising).all():
                raise SegueError(f"the levels of column '{column}' are not rising numbers")
        self.between = {column: (np.array(rising[1:]) + rising[:-1]) / 2 for column, rising in self.levels.items()}
        sizes = [len(rising) + 1 for rising in self.levels.values()]
        self.starts = dict(zip(self.levels, np.cumsum([0, *sizes]).tolist()))
        self.elements = [element(column, level) for column, rising in self.levels.items()
                         for level in (*rising, np.nan)]
        self.bos = self.eos = len(self.elements)
        self.size = self.eos + 1

    def lookup(self, elements: Sequence[Any] | None) -> np.ndarray | None:
        return None if elements is None else self.encode(elements)

    def encode(self, obj: Sequence[str]) -> np.ndarray:
        members: dict[str, list[int]] = {}  # of each column, the positions of its elements
        values = np.empty(len(obj))
        for i, item in enumerate(obj):
            column, values[i] = parted(item)
            members.setdefault(column, []).append(i)
        ids = np.empty(len(obj), dtype=np.int32)
        for column, rows in members.items():
            if column not in self.levels:
                raise SegueError(f"position {rows[0] + 1:,}: there is no column '{column}' here; there "
                                 f"{'is' if len(self.levels) == 1 else 'are'} {', '.join(map(repr, self.levels))}")
            indices = np.searchsorted(self.between[column], values[rows])
            ids[rows] = self.starts[column] + np.where(np.isnan(values[rows]), len(self.levels[column]), indices)
        return ids

    def turns(self) -> list[np.ndarray]:
        return [np.arange(self.starts[column], self.starts[column] + len(rising) + 1)
                for column, rising in self.levels.items()]

    def moved(self, ids: np.ndarray, draw: np.random.Generator) -> np.ndarray:
        """Data augmentation: with probability 1/2 all measured columns (of more than `MOST_CATEGORIES` levels) shifted
        by a random part of the distance to their lowest or highest level, since future numbers may lie where few of the
        training data did."""
        shift = draw.uniform(-1, 1)
        if draw.random() < 0.5:
            return ids
        shifted = ids.copy()
        for column, rising in self.levels.items():
            mask = (ids >= self.starts[column]) & (ids < self.starts[column] + len(rising))
            if len(rising) <= MOST_CATEGORIES or not mask.any():
                continue
            values = np.array(rising)[ids[mask] - self.starts[column]]
            values = values + shift * (rising[-1] - values.max() if shift > 0 else values.min() - rising[0])
            shifted[mask] = self.starts[column] + np.searchsorted(self.between[column], values)
        return shifted

    def weights(self) -> np.ndarray:
        return np.array([1] * len(self.elements) + [0], dtype=np.int64)

    def state(self) -> dict[str, Any]:
        return {"levels": self.levels, **({"column": self.column} if self.column else {})}


def decimal(number: float) -> str:
    """A measured number as text of seven significant digits, the precision of float32; "nan" where it is missing."""
    return f"{number:.7g}".replace("-0", "0") if number == 0 else f"{number:.7g}"


def element(column: str, number: float) -> str:
    """The element of a number in a column: column=number, or the number alone where the only column has no name."""
    return f"{column}={decimal(number)}" if column else decimal(number)


def parted(text: str) -> tuple[str, float]:
    """The column and the number that an element holds, the inverse of `element`."""
    column, _, number = str(text).rpartition("=")
    try:
        return column, float(number)
    except ValueError as error:
        raise SegueError(f"{text!r:.60} is no measured number: give numbers, or column=number") from error


class CellCodec(_ColumnCodec):
    """Rows of a table: an element is a cell with its column's name before it ("age=39", "sex=female", "age=?" where it
    is missing). columns: the values of each: levels, ascending, of which a number becomes the nearest; or texts, of
    which an unknown one becomes missing. Ids: the values of the first column and its missing value, those of the next
    column, and so on; last the end."""

    name = "cells"

    def __init__(self, columns: Mapping[str, Sequence[float] | Sequence[str]]) -> None:
        self.columns: dict[str, list[Any]] = {column: list(values) for column, values in columns.items()}
        self.elements: list[str] = []
        self.starts: dict[str, int] = {}
        self.between: dict[str, np.ndarray] = {}
        for column, values in self.columns.items():
            if "=" in column or not column.isprintable() or len(set(values)) < len(values):
                raise SegueError(f"column '{column}' has a name with =, or says a thing twice")
            self.starts[column] = len(self.elements)
            if values and not isinstance(values[0], str):
                self.between[column] = (np.array(values[1:]) + values[:-1]) / 2
            self.elements += [element(column, item) if column in self.between else f"{column}={item}"
                              for item in values] + [f"{column}={MISSING}"]
        self.ids = {item: id for id, item in enumerate(self.elements)}
        self.bos = self.eos = len(self.elements)
        self.size = self.eos + 1

    def encode(self, obj: Sequence[str]) -> np.ndarray:
        return np.fromiter((self.ids[item] if item in self.ids else self._nearest(item) for item in obj),
                           dtype=np.int32, count=len(obj))

    def _nearest(self, element: str) -> int:
        column, separator, cell = str(element).partition("=")
        if column not in self.columns or not separator:
            raise SegueError(f"{element!r:.60}: there is no column '{column}' here; there are "
                             f"{', '.join(self.columns)} (give column=value)")
        if column in self.between:
            with suppress(ValueError):
                if np.isfinite(number := float(cell)):
                    return self.starts[column] + int(np.searchsorted(self.between[column], number))
        return self.starts[column] + len(self.columns[column])

    def cells(self) -> list[np.ndarray]:
        """The ids of each column; the last is its missing value."""
        return [np.arange(start, start + len(self.columns[column]) + 1) for column, start in self.starts.items()]

    def numbers(self) -> np.ndarray:
        """(size, C) float64: what each id means in numbers: one column for each numeric column of the table, and a
        one-hot column for each value of the others; nan in columns of which an id says nothing."""
        sides = []
        for column, ids in zip(self.columns, self.cells()):
            if column in self.between:
                columns = [np.append(self.columns[column], np.nan)]
            else:
                columns = list(np.eye(len(ids))[: len(ids) - 1])
            for values in columns:
                sides.append(np.full(self.size, np.nan))
                sides[-1][ids] = values
        return np.stack(sides, 1) if sides else np.zeros((self.size, 0))

    def weights(self) -> np.ndarray:
        return np.array([1] * len(self.elements) + [0], dtype=np.int64)

    def state(self) -> dict[str, Any]:
        return {"columns": self.columns}
