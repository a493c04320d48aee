"""Series of measured numbers: sensors, prices, recordings of any sort, of one column or several at a time.

Tables (CSV, TSV, Parquet, JSON Lines) with a row a moment, or a row or a list a whole series; `.ts` files of the
UEA and UCR archives; NumPy arrays.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from segue.errors import SegueError
from segue.files import atomic_write
from segue.kinds.base import Dataset, Kind, Problems, Record, as_utf8, bad, head_of, of_class, words
from segue.kinds.codecs import Codec, LevelCodec, decimal, element, parted
from segue.kinds.columns import classes_of, take_classes, told
from segue.kinds.frame import (
    DELIMITED,
    TABULAR,
    Frame,
    array_header,
    glance,
    is_array,
    is_parquet,
    load_array,
    load_table,
    said,
)
from segue.kinds.packed import bare, opened
from segue.kinds.table import WEAKLY, WHAT, WHEN, WHO, measured, named_by, seconds_of, timelike, when_of

WHOLE = 24  # so many columns without a header: a row is a series
COUNTERS = words("row index unnamed step no nr instant")  # columns that may count the rows
MONTH = re.compile(r"\d{4}[-/. ]?(0?[1-9]|1[0-2]|Q[1-4])|[A-Za-z]{3,9}[-. ]\d{1,2},? ?\d{4}", re.IGNORECASE)
BARS = "▁▂▃▄▅▆▇█"
# Columns that may name series, beside WHO.
SERIES = words("series unique id station sensor ticker symbol stock site city country region location")

Columns = dict[str, np.ndarray]


class Series(Kind):
    """An object is a list of elements (str), moment by moment and within a moment column by column: "21.5", or, of
    several columns, "temperature=21.5"; "nan" where a number is missing. Numbers have seven digits. The unit is the
    value."""

    name = "series"
    unit = "value"
    storage = "items"
    split_by = "name"

    def sniff(self, path: Path, head: bytes) -> float:
        """A table whose columns are measured numbers, times and names of series; events have a what."""
        if is_array(head):
            header = array_header(head)
            return 0.92 if header and header[1].kind == "f" and 1 <= len(header[0]) <= 2 else 0.0
        if path.suffix.lower() == ".ts":
            return 0.95 if re.search(rb"(?m)^@(data\s*$|(?i:problemname|univariate|serieslength)\s)", head) else 0.0
        if path.suffix.lower() not in TABULAR and not is_parquet(head):
            return 0.0
        look = glance(path, head)
        if look is None and one_a_line(head):
            return 0.7
        if look is None or not look.rows or (look.form == "delimited" and not look.regular and
                                             path.suffix.lower() not in DELIMITED):
            return 0.0
        names = look.names if look.headed else []
        columns = {name: cells for name in look.names if (cells := look.column(name))}
        lists = [name for name, cells in columns.items() if any(isinstance(cell, list) for cell in cells)]
        if lists:
            items = [item for cell in columns[lists[0]] if isinstance(cell, list) for item in cell if item is not None]
            alone = len(lists) == 1 and named_by(lists, WHEN) is None
            return 0.92 if alone and all(map(_is_number, items)) and measured(items) else 0.0
        numbers = [name for name, cells in columns.items() if 2 * sum(map(_is_number, cells)) > len(cells)
                   or 2 * np.isfinite(_column(cells)).sum() > len(cells)]
        times = [name for name in columns if name not in numbers and _dated(columns[name])]
        texts = [name for name in columns if name not in (*numbers, *times)]
        known = np.concatenate([np.zeros(0), *(_column(columns[name]) for name in numbers)])
        known = known[np.isfinite(known)]
        nameless = [name for name in texts if named_by([name], [*WHO, *SERIES, *WHEN]) is None]
        once = any(len(set(columns[name])) == len(columns[name]) > 2 for name in times)  # a row a moment
        if named_by(names, WHAT) or not len(known):
            return 0.0
        if ((known == np.round(known)) & (known >= 0)).all() and \
                not (once and named_by(names, (*WHO, *WEAKLY)) is None):
            return 0.0
        if nameless:  # sorts of weather, on and off: left out where all else speaks for measurements
            sorts = all(len(set(map(str, columns[name]))) < len(columns[name]) for name in nameless)
            return 0.5 if once and sorts and len(nameless) <= len(numbers) else 0.0
        if not look.headed and path.suffix.lower() not in DELIMITED and len(look.rows) < 3:
            return 0.0
        return 0.8 if look.headed or len(numbers) >= WHOLE else 0.6

    def read(self, path: Path, problems: Problems | None = None, *, columns: Sequence[str] = (),
             column: str | None = None, who: str | None = None, when: str | None = None,
             when_format: str | None = None, rows: bool | None = None, classes: str | None = None,
             encoding: str = "utf-8") -> Iterator[Record]:
        """One record a series: a file, or of a table with a column `who` each name in it.

        columns: those to read, in this order; else all that hold numbers, but the time and one that counts the rows.
        column: of several that would be read, where `columns` are not said, this one: what a model was fitted on.
        who, when: the columns that name series and say when; found from names and contents if None. Rows are put in the
            order of time. when_format: of text times, as for `strptime`, where none of the usual ways is meant.
        rows: each row is a series, as in the UCR archive, where the first number, if they all are whole, is its class
            and is left out; None: tables without a header do so from 24 columns.
        classes: the column that says of which class each series is, the same in all its rows ("": one called so, if
            there is one), which its name then tells.
        """
        chosen = [columns] if isinstance(columns, str) else list(columns)
        array, archive = is_array(head_of(path)), bare(path).suffix.lower() == ".ts"
        if array or archive:
            with opened(path) as handle:
                raw = handle.read()
        if array:
            yield Record(flat(_array(path, raw)), name=str(path))
        elif archive:
            yield from _archive(path, as_utf8(path, raw, encoding).decode(), problems)
        else:
            frame = load_table(path, Problems() if problems is None else problems, encoding,
                               (who, when, classes, *(name for part in chosen for name in (part, *part.split(",")))))
            if rows is None:
                rows = not frame.headed and len(frame.columns) >= WHOLE
            of = take_classes(frame, classes, (who, when, column, *chosen))
            listed = [name for name in frame.columns if "list" in str(frame.columns[name].type)]
            if len(listed) == 1 and not chosen:
                yield from _lists(frame, listed[0], of, problems)
            elif rows:
                yield from _whole_rows(frame, of, problems)
            else:
                yield from _moments(frame, chosen, column, who, when, when_format, classes, of, problems)

    def codec(self, data: Dataset, *, levels: int = 128) -> Codec:
        """The levels of each column: its numbers, where there are at most twice as many different ones; else half of
        `levels` as its quantiles, and half evenly over its range and a quarter of that beyond at both ends."""
        if levels < 2:
            raise SegueError(f"levels={levels}: numbers are told apart by two levels at least")
        seen: dict[str, list[tuple[float, int]]] = {}
        for item, count in data.vocabulary.items():
            column, number = parted(item)
            seen.setdefault(column, []).append((number, count))
        columns = {column: tuple(map(np.array, zip(*pairs))) for column, pairs in seen.items()}
        columns = {column: columns[column] for column in order_of(data, columns)}
        called = set(getattr(getattr(data, "problems", None), "columns", ()))
        return LevelCodec({column: steps(np.repeat(numbers, counts), levels)
                           for column, (numbers, counts) in columns.items()},
                          called.pop() if len(called) == 1 and list(columns) == [""] else "")

    def reading(self, codec: Codec) -> dict[str, Any]:
        """The columns that the codec is of; of one that is alone its name, by which it is found among several."""
        columns, called = list(getattr(codec, "levels", {})), getattr(codec, "column", "")
        return {"columns": columns} if len(columns) > 1 else {"column": called} if called else {}

    def write(self, objects: Iterable[Sequence[str] | Record], path: str | Path) -> None:
        """CSV, a row a moment; of several series with a column that names them."""
        records = [obj if isinstance(obj, Record) else Record(list(obj)) for obj in objects]
        tables = [table(record.object) for record in records]
        columns = list(dict.fromkeys(column for each in tables for column in each))
        head = ["series"] if len(records) > 1 else []
        with atomic_write(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as handle:
            writer = csv.writer(handle, lineterminator="\n")
            writer.writerow([*head, *(column or "value" for column in columns)])
            for number, (record, each) in enumerate(zip(records, tables), 1):
                name = [record.name or f"series{number}"] if head else []
                length = max(map(len, each.values()), default=0)
                filled = [np.append(each.get(column, ()), [np.nan] * (length - len(each.get(column, ()))))
                          for column in columns]
                writer.writerows([*name, *map(decimal, row)] for row in zip(*filled))

    def show(self, obj: Sequence[str]) -> str:
        """A line a column: its course in at most 64 bars, from its least number to its greatest."""
        lines = []
        columns = table([item for item in obj if _is_number(item.rpartition("=")[2])])
        widest = max(map(len, columns), default=0)
        for column, values in columns.items():
            known = values[np.isfinite(values)]
            if not len(known):
                continue
            low, high = known.min(), known.max()
            pieces = [part[np.isfinite(part)] for part in np.array_split(values, min(64, len(values)))]
            heights = [int((part.mean() - low) / ((high - low) or 1) * (len(BARS) - 1) + 0.5) if len(part) else None
                       for part in pieces]
            bars = "".join(" " if height is None else BARS[height] for height in heights)
            lines.append(f"{column:<{widest}} {bars} {decimal(low)} to {decimal(high)}, {len(values):,} values".strip())
        return "\n".join(lines)

    def normalise(self, obj: Any, known: Collection[str] = ()) -> list[str]:
        """Elements, numbers, an array (T,) of them, or a text of them with blanks or commas between."""
        obj = obj.decode("utf-8", "replace") if isinstance(obj, bytes) else obj
        if isinstance(obj, str):  # names of columns may have blanks
            obj = [item for item in re.split(r"([^=]*=[^\s,;→]+)[\s,;→]*" if "=" in obj else r"[\s,;→]+", obj.strip())
                   if item]
        items = list(obj)
        return [element(*parted(item if isinstance(item, str) else repr(float(item)))) for item in items]


def one_a_line(head: bytes) -> bool:
    """Whether each line is one measured number, of eight or more; the last may be cut."""
    lines = head.decode("utf-8", "ignore").lstrip("\ufeff").split("\n")
    cells = [line.strip() for line in lines[: -1 if len(lines) > 1 else None] if line.strip()]
    return len(cells) >= 8 and all(map(_is_number, cells)) and measured(cells)


def order_of(data: Dataset, columns: Iterable[str]) -> list[str]:
    """These columns as they take turns: in the order of a series that is there from its beginning."""
    whole = getattr(data, "whole", lambda i: (True, True))
    begin = next((i for i in range(len(data)) if whole(i)[0]), 0)
    return list(dict.fromkeys([*(parted(item)[0] for item in data[begin].object), *columns]))


def steps(numbers: np.ndarray, levels: int) -> list[float]:
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


def flat(columns: Columns) -> list[str]:
    """Columns of one length -> elements, moment by moment."""
    if list(columns) == [""]:
        return list(map(decimal, columns[""].tolist()))
    sides = [[f"{name}={decimal(number)}" for number in values.tolist()] for name, values in columns.items()]
    return [item for moment in zip(*sides) for item in moment]


def table(obj: Sequence[str]) -> Columns:
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


def _dated(cells: Sequence[Any]) -> bool:
    """Moments or months of the calendar."""
    return timelike(cells) or all(MONTH.fullmatch(str(cell)) for cell in cells)


def _is_number(cell: Any) -> bool:
    return bool(np.isfinite(_number(cell))) or str(cell).strip().lower() == "nan"


def _number(cell: Any) -> float:
    """A cell as a number, with a comma for the point where it has one; NaN where it is none."""
    try:
        return float(cell)
    except (TypeError, ValueError):
        text = str(cell).strip()
    try:
        return float(text.replace(",", ".")) if text.count(",") == 1 and "." not in text else np.nan
    except ValueError:
        return np.nan


def _column(cells: Sequence[Any]) -> np.ndarray:
    """Cells of a column as numbers, NaN where one is none. Commas and points that can only stand between thousands
    (1,234.5 and 1.234,5; 1,234,567; 1,234 beside 999) are left out, in all of the column."""
    signed = [str(cell).strip() for cell in cells if "," in str(cell)]
    if signed:
        signed += (text for cell in cells if "," not in (text := str(cell).strip()) and "." in text)
        beside = any(str(cell).strip().isdigit() for cell in cells)
        for thousands, point in (",.", ".,"):
            grouped = re.compile(rf"[-+]?[1-9]\d{{0,2}}([{thousands}]\d{{3}})+([{point}]\d*)?")
            plain = re.compile(rf"[-+]?\d*([{point}]\d*)?")
            said = [text for text in signed if thousands in text]
            sure = any(point in text or text.count(thousands) > 1 for text in said) or (
                thousands == "," and (beside or len(said) < len(signed)))
            if said and sure and all((grouped if thousands in text else plain).fullmatch(text) for text in signed):
                cells = [str(cell).replace(thousands, "").replace(point, ".") for cell in cells]
                break
    return np.array([_number(cell) for cell in cells])


def _array(path: Path, raw: bytes) -> Columns:
    """An array (T,), or (T, C): columns called x1, x2, ..."""
    array = load_array(path, raw, "numbers, of one or two axes")
    if array.dtype.kind not in "iuf" or not 1 <= array.ndim <= 2 or not array.size:
        raise SegueError(f"{path}: an array of {array.dtype} of {array.ndim} axes is no series: give numbers, of one "
                         "axis, or of moments and columns")
    array = array.astype(np.float64)
    return {"": array} if array.ndim == 1 else {f"x{i + 1}": array[:, i] for i in range(array.shape[1])}


def _archive(path: Path, text: str, problems: Problems | None) -> Iterator[Record]:
    """A `.ts` file: behind its @data, a series a line, columns between colons, and perhaps its class."""
    heads, found, body = text, False, ""
    if match := re.search(r"(?im)^@data\s*$", text):
        heads, body, found = text[: match.start()], text[match.end() :], True
    if not found:
        raise SegueError(f"{path}: there is no line @data, behind which the series of a .ts file stand")
    if re.search(r"(?im)^@timestamps\s+true", heads):
        raise SegueError(f"{path}: series with time stamps are not read from .ts files: give a table with a column of "
                         "times")
    labelled = bool(re.search(r"(?im)^@(classlabel|targetlabel)\s+true", heads))
    before = heads.count("\n") + 1
    any_left = False
    for number, line in enumerate(body.splitlines(), before):
        parts = line.strip().split(":")
        if parts == [""]:
            continue
        label = parts.pop().strip() if labelled and len(parts) > 1 else ""
        cells = [["nan" if cell.strip() in ("?", "") else cell for cell in part.split(",")] for part in parts]
        columns = [np.array(list(map(_number, part))) for part in cells]
        strange = next((cell for part in cells for cell in part if not _is_number(cell)), None)
        if strange is not None:
            bad(problems, path, f"line {number}", None, f"{strange!r:.40} is no number; mend or remove the line")
            continue
        longest = max(map(len, columns))
        filled = [np.append(values, [np.nan] * (longest - len(values))) for values in columns]
        names = [""] if len(filled) == 1 else [f"x{i + 1}" for i in range(len(filled))]
        any_left = True
        yield Record(flat(dict(zip(names, filled))), name=of_class(f"{path}:{number}", label))
    if not any_left and problems is None:
        raise SegueError(f"{path}: there is no series behind @data; is the file cut short?")


def _numbers(frame: Frame, name: str) -> np.ndarray | None:
    """A column as float64, NaN where it says nothing; None where most of it is no number."""
    import pyarrow as pa

    column = frame.columns[name]
    if pa.types.is_integer(column.type) or pa.types.is_floating(column.type) or pa.types.is_decimal(column.type):
        return np.asarray(column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False), dtype=np.float64)
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        return None
    cells = column.to_pylist()
    numbers = _column(cells)
    filled = sum(cell is not None and cell.strip() not in ("", "?", "-", "NA", "null") for cell in cells)
    return numbers if 2 * np.isfinite(numbers).sum() > filled > 0 else None


def _lists(frame: Frame, name: str, of: str | None, problems: Problems | None) -> Iterator[Record]:
    """Each cell of a column of lists is a series."""
    if problems is not None:
        problems.note = f"columns={name}, a series a row" + (f", class={of}" if of else "")
    for row, cell in enumerate(frame.columns[name].to_pylist()):
        values = np.array([np.nan if item is None else _number(item) for item in cell or []])
        if not np.isfinite(values).any():
            bad(problems, frame.path, frame.place(row), None, f"there is no number in '{name}'; remove it")
            continue
        place = f"{frame.path}:{frame.place(row)}"
        if frame.classes is None:
            yield Record(flat({"": values}), name=place)
        elif told(problems, frame.path, frame.place(row), of, frame.classes[row]):
            yield Record(flat({"": values}), name=of_class(place, frame.classes[row]))


def _whole_rows(frame: Frame, of: str | None, problems: Problems | None) -> Iterator[Record]:
    """Each row of a table is a series; a first column of whole numbers, their classes, is left out."""
    columns = {name: _numbers(frame, name) for name in frame.columns}
    numbers = {name: values for name, values in columns.items() if values is not None}
    if not numbers:
        raise SegueError(f"{frame.path}: there are no numbers in this table")
    grid = np.stack(list(numbers.values()), 1)
    first = grid[:, 0]
    labelled = frame.classes is None and grid.shape[1] > 2 and bool((first == np.round(first)).all()) and \
        not bool((grid == np.round(grid)).all())
    if problems is not None:
        whose = ", the first number its class" if labelled else f", class={of}" if of else ""
        problems.note = f"a row a series{whose}"
    for row, values in enumerate(grid[:, labelled:]):
        last = np.flatnonzero(np.isfinite(values))
        label = decimal(first[row]) if labelled else "" if frame.classes is None else frame.classes[row]
        if of and not told(problems, frame.path, frame.place(row), of, label):
            continue
        if not len(last):
            bad(problems, frame.path, frame.place(row), None, "there is no number in this row; remove it")
            continue
        yield Record(flat({"": values[: last[-1] + 1]}), name=of_class(f"{frame.path}:{frame.place(row)}", label))


def _moments(frame: Frame, chosen: list[str], column: str | None, who: str | None, when: str | None,
             when_format: str | None, classes: str | None, of: str | None,
             problems: Problems | None) -> Iterator[Record]:
    """Each row of a table is a moment."""
    names, there = list(frame.columns), ", ".join(frame.columns)
    chosen = [name for part in chosen for name in ([part] if part in names else part.split(","))]
    chosen = [name[1:] if name not in names and name[1:] in names and name == f"x{name[1:]}" else name
              for name in chosen]  # of a table without a header
    for asked in (*chosen, *filter(None, (who, when))):
        if asked not in names:
            raise SegueError(f"{frame.path}: there is no column '{asked}'; there are {there}")
    sure = when is not None
    if when is None and frame.headed:
        when = when_of(frame, [name for name in names if name not in (*chosen, who)])
        names = list(frame.columns)
    numbers = {name: values for name in (chosen or [name for name in names if name != who])
               if (values := _numbers(frame, name)) is not None}
    if missing := [name for name in chosen if name not in numbers]:
        raise SegueError(f"{frame.path}: column '{missing[0]}' holds no numbers; there are {there}")
    if when is None:
        when = next((name for name in names if name not in (*numbers, who) and
                     timelike(frame.columns[name][:100].to_pylist())), None)
    if who is None:
        texts = [name for name in names if name not in numbers and name != when]
        who = "series" if "series" in names else named_by(texts, [*WHO, *SERIES]) if frame.headed else None
    groups, labels = np.zeros(len(frame.rows), dtype=np.int64), [""]
    if who is not None:
        place: dict[str, int] = {}
        groups = np.array([place.setdefault(str(cell), len(place)) for cell in frame.columns[who].to_pylist()])
        labels = list(place)
    order = np.argsort(groups, kind="stable")
    series = np.split(order, np.searchsorted(groups[order], np.arange(1, len(labels))))
    times = None if when is None else _times(frame, when, when_format, sure, series)
    when = None if times is None else when
    numbers = {name: values for name, values in numbers.items() if name not in (who, when)}
    if not chosen:
        numbers = {name: values for name, values in numbers.items() if not _counts(name, values)} or numbers
    if not numbers:
        raise SegueError(f"{frame.path}: there are no numbers here (columns: {there}); name some with columns=")
    if column is not None and not chosen and len(numbers) > 1:
        if column not in numbers:
            raise SegueError(f"{frame.path}: there is no column '{column}' of numbers, which the model was fitted on; "
                             f"there are {', '.join(numbers)}: name one with columns=")
        numbers = {column: numbers[column]}
    said_of = None if frame.classes is None else classes_of(frame.classes, series, classes)
    if problems is not None:
        of = None if said_of is None else of
        roles = said([("class", of), ("who", who), ("when", when)], [name for name in names if name not in numbers])
        problems.note = f"columns={','.join(numbers)}{', ' if of or who or when else ''}{roles}"
        problems.columns.append(next(iter(numbers)) if len(numbers) == 1 and frame.headed else "")
    called = {name: f"x{name}" if name.isdigit() else name for name in numbers} if len(numbers) > 1 else \
        dict.fromkeys(numbers, "")
    for number, (label, mine) in enumerate(zip(labels, series)):
        if times is not None and np.isfinite(times[mine]).all():
            mine = mine[np.argsort(times[mine], kind="stable")]
        parts = {called[name]: values[mine] for name, values in numbers.items()}
        if not any(np.isfinite(values).any() for values in parts.values()):
            bad(problems, frame.path, label, None, "there is no number in this series; remove it")
            continue
        name = f"{frame.path}:{label}" if label else str(frame.path)
        if said_of is None:
            yield Record(flat(parts), name=name)
        elif told(problems, frame.path, label, of, said_of[number]):
            yield Record(flat(parts), name=of_class(name, said_of[number]))


def _times(frame: Frame, when: str, when_format: str | None, sure: bool,
           series: Sequence[np.ndarray]) -> np.ndarray | None:
    """Seconds of each row; None where a column that nobody asked for does not say when: names of weekdays, or numbers
    that come again in one of the series, such as the day of a month."""
    column = frame.columns[when]
    moments = sure or timelike(column[:100].to_pylist())
    try:
        times = seconds_of(column, when_format, frame.path)
    except SegueError:
        if moments or when_format is not None:
            raise
        return None
    plain = not moments and _numbers(frame, when) is not None
    return None if plain and any(len(np.unique(times[mine])) < len(mine) for mine in series) else times


def _counts(name: str, values: np.ndarray) -> bool:
    """A column that counts the rows."""
    plain = re.sub(r"[^a-z]", "", name.lower())
    whole = len(values) > 1 and float(values[0]).is_integer() and bool((np.diff(values) == 1).all())
    return whole and plain in ("", *COUNTERS)
