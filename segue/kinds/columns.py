"""Sequences in a column of a table, a row each, and the column of their classes, whatever the table is written in."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from segue.errors import SegueError
from segue.kinds.base import Problems, bad, of_class, words
from segue.kinds.frame import ROWS, Frame, Look, describe_roles, load_table

CLASSES = words("label class category intent y")  # what columns of classes are called, best first
PERHAPS = words("target survived diagnosis outcome sentiment topic emotion relation genre species language lang key "
                "quality polarity rating stars gender sex author origin nationality")  # if they say few things
OF_PEOPLE = words("gender sex")  # told of people whatever the class is
FRACTION = re.compile(r"[-+]?\d*\.\d*[1-9]\d*([eE].*)?")


def cells_of(path: Path, problems: Problems | None, column: str | None, find: Callable[[Look], str | None], holds: str,
             keywords: Collection[str], names: Collection[str], encoding: str = "utf-8", classes: str | None = None,
             joined: Callable[[Look], list[str]] | None = None) -> Iterator[tuple[str, str, str]]:
    """Column, name and cell of each row of a table; the name is the cell of a column among `names` (lower case), else
    the row's place, and tells the class.

    column: the one asked for (None: what `find` sees in the first rows, or a SegueError that says what none `holds`).
    keywords: what such columns are called, by which a header is told from a row. classes: see `class_column`. joined:
    says by the first rows which columns are one, their cells one after the other.
    """
    import pyarrow as pa

    frame = load_table(path, problems if problems is not None else Problems(), encoding, [column, classes, *keywords])
    label_column = take_classes(frame, classes, [column])
    if column is None and joined is not None and (joined_names := joined(look(frame))):
        column = f"{joined_names[0]} to {joined_names[-1]}"
        cells = zip(*([cell or "" for cell in frame.columns.pop(name).to_pylist()] for name in joined_names))
        frame.columns[column] = pa.array(map("".join, cells))
    chosen = column or find(look(frame))
    if chosen is None or chosen not in frame.columns:
        which = f"called {column}" if column else holds
        raise SegueError(f"{path}: no column {which}; name one with column= (columns: {', '.join(frame.columns)})")
    if problems is not None and label_column is not None:
        problems.note = describe_roles([("class", label_column), ("column", chosen)], [label_column, *frame.columns])
    named = next((frame.columns[name].to_pylist() for name in frame.columns if name.strip().lower() in names), None)
    for i, cell in enumerate(frame.columns[chosen].to_pylist()):
        name = frame.place(i) if named is None or named[i] is None else str(named[i])
        if frame.classes is None:
            yield chosen, name, str(cell or "")
        elif has_class(problems, path, name, label_column, frame.classes[i]):
            yield chosen, of_class(name, frame.classes[i]), str(cell or "")


def look(frame: Frame) -> Look:
    """The beginning of a table that was read."""
    columns = [[cell.strip() if isinstance(cell, str) else cell for cell in values[:ROWS].to_pylist()]
               for values in frame.columns.values()]
    return Look(list(frame.columns), [[*row] for row in zip(*columns)], frame.headed)


def class_column(path: Path, table: Look, requested: str | None) -> str | None:
    """The column of the class of each row. requested: its name, which must be there; "": one that is called as such
    columns usually are and holds no measured numbers, if there is one, or of a table without a header, or of two
    columns, the only one that says few things over and over; None: none."""
    if requested and requested not in table.names:
        names = ', '.join(table.names)
        raise SegueError(f"{path}: there is no column '{requested}' to say the class; there are {names}")
    if requested or requested is None:
        return requested
    repeating = [name for name in table.names if name != "part" and says_few(table.column(name))]
    if not table.headed or all(name.isdigit() for name in table.names if name != "part"):
        return repeating[0] if len(repeating) == 1 else None
    by_name = {name.strip().lower().rpartition(".")[2]: name for name in reversed(table.names)}
    lower = {name.strip().lower() for name in table.names}
    places = [name for name in lower if name[-1:] == "y" and f"{name[:-1]}x" in lower]  # x and y
    named = next((by_name[keyword] for keyword in CLASSES if keyword in by_name and keyword not in places), None)
    if named is None:
        by_ending = [name for name in repeating if name.strip().lower() not in places and (
                     re.split(r"[_ .]", name.lower())[-1] in CLASSES or name[:3].lower() == "is_")]
        likely = by_ending + [by_name[keyword] for keyword in PERHAPS if by_name.get(keyword) in repeating]
        last = table.names[-1]
        if likely and likely[0].strip().lower() in OF_PEOPLE and last in repeating and \
                len(set(map(class_of, table.column(last)))) == 2:
            return last  # income, behind the sex of those who have it
        return next(iter(likely or (repeating if len(table.names) == 2 and len(repeating) == 1 else [])), None)
    cells = list(map(class_of, table.column(named)))
    texts = sum(len(cell.split()) for cell in cells) > 4 * len(cells)
    return None if texts or any(map(_no_class, table.column(named))) else named


def _no_class(cell: Any) -> bool:
    """A list, or a measured number."""
    return isinstance(cell, list) or bool(FRACTION.fullmatch(class_of(cell)))


def says_few(cells: list[Any]) -> bool:
    """Whether short words or whole numbers come again and again, and not always the same."""
    if any(map(_no_class, cells)):
        return False
    names = list(map(class_of, cells))
    return 1 < len(set(names)) <= max(2, len(names) // 3) and all(len(name) <= 40 for name in names)


def class_of(cell: Any) -> str:
    """The class in a cell, as text; "" where there is none."""
    if cell is None or isinstance(cell, list) or cell != cell:
        return ""
    return str(int(cell) if isinstance(cell, float) and cell.is_integer() else cell).strip()


def has_class(problems: Problems | None, path: Path | str, record: str, column: str | None, label: str) -> bool:
    """Whether a record has a class; without one, a problem is noted."""
    if not label:
        bad(problems, path, record, None, f"column '{column}' says no class, or several; fill it or remove the record")
    return bool(label)


def take_classes(frame: Frame, requested: str | None, kept: Iterable[str | None] = ()) -> str | None:
    """Take the column of classes (see `class_column`) out of a table, so that nothing else can be read from it, and
    give its name. kept: columns that are something else; it is a SegueError to ask for one of these."""
    column = class_column(frame.path, look(frame), requested)
    if column is None or (column in kept and not requested):
        return None
    if column in kept:
        raise class_conflict(frame.path, column)
    frame.classes = np.array([class_of(cell) for cell in frame.columns.pop(column).to_pylist()], object)
    return column


def class_conflict(path: Path, column: str) -> SegueError:
    return SegueError(f"{path}: column '{column}' cannot say the class and be read as well: choose another for one")


def classes_of(classes: np.ndarray, groups: Iterable[np.ndarray], requested: str | None) -> list[str] | None:
    """The class of each group of rows of `classes` (N,): "" where its rows say none, or several. None where they say
    several and nobody asked for this column: then it says something else."""
    labels = [sorted({*classes[group]} - {""}) for group in groups]
    if not requested and any(len(each) > 1 for each in labels):
        return None
    return [each[0] if len(each) == 1 else "" for each in labels]
