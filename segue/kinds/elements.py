"""Series of numbers as columns and as the elements of one sequence, moment by moment."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from segue.kinds.codecs import decimal, element, parted

Columns = dict[str, np.ndarray]


def levels_of(numbers: np.ndarray, levels: int) -> list[float]:
    """Levels for these numbers (n,), see `Series.codec`."""
    numbers = numbers[np.isfinite(numbers)]
    different = np.unique(numbers)
    if not len(different):
        return [0.0]
    if len(different) > 2 * levels:
        half, low, high = levels // 2, different[0], different[-1]
        margin = (high - low) / 4
        different = np.concatenate([np.quantile(numbers, (np.arange(levels - half) + 0.5) / (levels - half)),
                                    np.linspace(low - margin, high + margin, half)])
    return sorted({float(decimal(number)) for number in different})


def as_elements(columns: Columns) -> list[str]:
    """Columns of one length -> elements, moment by moment."""
    if list(columns) == [""]:
        return list(map(decimal, columns[""].tolist()))
    sides = [[f"{name}={decimal(number)}" for number in values.tolist()] for name, values in columns.items()]
    return [item for moment in zip(*sides) for item in moment]


def in_turn(obj: Sequence[str], columns: Sequence[str]) -> list[str]:
    """Elements in which these columns take turns, with missing numbers where one was left out. Elements of any other
    column are returned as they are."""
    if not {parted(item)[0] for item in obj} <= set(columns):
        return list(obj)
    result: list[str] = []
    for item in obj:
        while (column := columns[len(result) % len(columns)]) != parted(item)[0]:
            result.append(element(column, np.nan))
        result.append(item)
    return result


def as_columns(obj: Sequence[str]) -> Columns:
    """Elements -> columns. What a model left out at a moment is missing there: a moment ends where a column that it
    has comes again, or one that stands before."""
    order: dict[str, int] = {}
    pairs = list(map(parted, obj))
    for column, _ in pairs:
        order.setdefault(column, len(order))
    moments: list[dict[str, float]] = []
    last = len(order)
    for column, number in pairs:
        if order[column] <= last:
            moments.append({})
        moments[-1][column], last = number, order[column]
    return {column: np.array([moment.get(column, np.nan) for moment in moments]) for column in order}
