"""Tables whose rows are series: columns called by dates or years, or numbered from left to right."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

import numpy as np

from segue.kinds.frame import DAYS, Look
from segue.kinds.numbers import are_numbers, likeness, number_in
from segue.kinds.roles import WHEN, column_called
from segue.kinds.times import DATE, timelike

MONTH = re.compile(r"\d{4}[-/. ]?(0?[1-9]|1[0-2]|Q[1-4])|[A-Za-z]{3,9}[-. ]\d{1,2},? ?\d{4}", re.IGNORECASE)
YEAR = re.compile(r"[A-Za-z]?(1[5-9]\d\d|2[01]\d\d)( \[YR\d{4}\])?")  # 1960, X1960, or as the World Bank has it
MANY = 24  # so many numbered columns are moments
FEW = 5  # so many, where numbers stay near each other along a row
MOST_BESIDE = 8  # columns of names beside them
ALIKE = 0.4  # how alike neighbours in a row are where one goes on from the other
SAME_SIZE = 0.5  # the share of all variance that lies between rows, where a row's numbers stay near each other


def wide(table: Look, classes: Collection[str] = (), has_classes: bool = False) -> list[str]:
    """The columns of a table that are moments, where each row is a series: called by dates or years, or numbered from
    left to right, and beside them names and classes, but no times. Empty for other tables.

    classes: the columns that say of which class each row is. has_classes: they were found, and taken out, before.
    """
    if not table.headed:
        return []
    others = [name for name in table.names if (cells := table.column(name)) and not are_numbers(cells)]
    for pattern in (DATE, MONTH):
        dated = [name for name in table.names if name not in others and pattern.fullmatch(name)]
        if len(dated) >= DAYS:
            return dated
    years = [name for name in table.names if name not in others and YEAR.fullmatch(name)]
    year_numbers = [int(re.sub(r"\D", "", name)[:4]) for name in years]
    if len(years) >= DAYS and len(set(np.diff(year_numbers).tolist())) == 1 and year_numbers[1] > year_numbers[0]:
        return years
    moments = _numbered(table.names, others)
    set_of_moments = set(moments)
    others_beside = [name for name in table.names if name not in set_of_moments]
    if len(moments) < FEW or column_called(others, WHEN) or any(timelike(table.column(name)) for name in others):
        return []
    if not all(name in others or name in classes for name in others_beside) or len(others_beside) > MOST_BESIDE:
        return []
    grid = number_grid(table, moments)
    named = [name for name in others_beside if name not in classes]
    if len(moments) >= MANY and (named or has_classes or classes):
        return moments if named or has_classes or likeness(grid)[0] > ALIKE else []
    unique_names = [name for name in named if len(set(map(str, table.column(name)))) == len(table.rows) > 1]
    return moments if unique_names and _near_each_other(grid) else []


def _numbered(names: Sequence[str], excluded: Collection[str]) -> list[str]:
    """The columns of numbers that are counted one by one, V2, V3, ..., with the last such name."""
    parts = [re.fullmatch(r"(.*?)(\d+)", name) for name in names]
    stem = next((part[1] for part in reversed(parts) if part), None)
    numbered = [part for part in parts if part and part[1] == stem and part[0] not in excluded]
    counted = [int(part[2]) for part in numbered]
    in_order = counted == list(range(counted[0], counted[0] + len(counted))) if counted else False
    return [part[0] for part in numbered] if in_order else []


def number_grid(table: Look, names: Sequence[str]) -> np.ndarray:
    """(N, C) float64: the numbers seen in these columns, NaN where there is none."""
    place_of = {name: place for place, name in enumerate(table.names)}
    places = [place_of[name] for name in names]
    return np.array([[number_in(row[place]) if place < len(row) else np.nan for place in places]
                     for row in table.rows], dtype=np.float64).reshape(len(table.rows), len(places))


def _near_each_other(grid: np.ndarray) -> bool:
    """Whether the numbers of a row are more like each other than like those of other rows, as sizes of one thing."""
    rows = grid[np.isfinite(grid).sum(1) > 1]
    if len(rows) < 3 or not np.nanvar(rows) > 0:
        return False
    return bool(np.nanvar(rows, axis=1).mean() < (1 - SAME_SIZE) * np.nanvar(rows))
