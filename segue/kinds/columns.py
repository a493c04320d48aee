"""Sequences written in one column of a table, a row each."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from segue.errors import SegueError
from segue.kinds.base import Problems
from segue.kinds.frame import ROWS, Look, load_table


def cells_of(path: Path, problems: Problems | None, column: str | None, find: Callable[[Look], str | None], holds: str,
             usual: Collection[str], names: Collection[str], encoding: str = "utf-8") -> Iterator[tuple[str, str, str]]:
    """Column, name and cell of each row of a table; the name is the cell of a column among `names` (lower case), else
    the row's place.

    column: the one asked for (None: what `find` sees in the first rows, or a SegueError that says what none `holds`).
    usual: what such columns are called, by which a header is told from a row.
    """
    frame = load_table(path, problems if problems is not None else Problems(), encoding, [column, *usual])
    columns = [values[:ROWS].to_pylist() for values in frame.columns.values()]
    found = column or find(Look(list(frame.columns), [[*row] for row in zip(*columns)], frame.headed))
    if found is None or found not in frame.columns:
        which = f"called {column}" if column else holds
        raise SegueError(f"{path}: no column {which}; name one with column= (columns: {', '.join(frame.columns)})")
    named = next((frame.columns[name].to_pylist() for name in frame.columns if name.strip().lower() in names), None)
    for i, cell in enumerate(frame.columns[found].to_pylist()):
        yield found, frame.place(i) if named is None or named[i] is None else str(named[i]), str(cell or "")
