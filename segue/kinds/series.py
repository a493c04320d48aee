"""Series of measured numbers: sensors, prices, recordings of any sort, of one column or several at a time.

Tables (CSV, TSV, Parquet, JSON Lines) with a row a moment, or a row or a list a whole series; `.ts` files of the
UEA and UCR archives and `.tsf` files of the Monash one; NumPy arrays.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from segue.errors import SegueError
from segue.files import atomic_write
from segue.kinds.base import ARFF, HEAD, Dataset, Kind, Problems, Record, as_utf8, bad, head_of, of_class, words
from segue.kinds.beside import classes_beside
from segue.kinds.codecs import Codec, LevelCodec, decimal, element, parted
from segue.kinds.columns import CLASSES, classes_of, take_classes, told
from segue.kinds.columns import look as first_rows
from segue.kinds.frame import (
    DELIMITED,
    TABULAR,
    Frame,
    Look,
    array_header,
    glance,
    is_array,
    is_parquet,
    load_array,
    load_table,
    said,
)
from segue.kinds.moments import CALLED
from segue.kinds.numbers import are_numbers, is_number, likeness, number_in, numbers_in
from segue.kinds.packed import bare, opened
from segue.kinds.recordings import form_of, recorded
from segue.kinds.table import (
    ENDINGS,
    WEAKLY,
    WHAT,
    WHEN,
    WHO,
    is_determined_by,
    laid_out,
    measured,
    named_by,
    numbered,
    plain,
    timed,
    when_of,
    with_moments,
)
from segue.kinds.times import EPOCH, Clock, lasting, of_calendar, seconds_of, span, steady, timelike
from segue.kinds.wide import MONTH, wide

WHOLE = 24  # so many columns without a header: a row is a series, where nothing speaks against it
SHORT = 8  # so many, where something speaks for it
COUNTERS = words("row rows rowname rownames rowid rownum rownumber index idx unnamed step no nr obs observation "
                 "instant")  # columns that may count the rows
MARKS = words("anomaly outlier changepoint label")  # columns of noughts and ones that say which moments are odd
CALENDAR = {"year": ("Y", ""), "month": ("M", "Y"), "day": ("D", "M"), "hour": ("h", "D")}  # and what each is within
SHOWN = 20  # columns that are told
BARS = "▁▂▃▄▅▆▇█"
PERIODS = words("month week quarter period hour minute")  # of moments, beside WHEN
# Columns that may name series, beside WHO.
SERIES = words("series unique id station sensor ticker symbol stock site city country region location parameter "
               "variable metric channel field tag store shop branch dept department warehouse plant zone meter "
               "household")
ARCHIVES = {".ts", ".tsf"}
RELATIONAL = re.compile(rb"(?i)@attribute\s+\S+\s+relational\b")
ALIKE = 0.4  # so much neighbours are, where one goes on from the other
MANY = 1000  # rows by which a table is judged
PART = 1 << 20  # values of a recording that are one record

Columns = dict[str, np.ndarray]


class Series(Kind):
    """An object is a list of elements (str), moment by moment and within a moment column by column: "21.5", or, of
    several columns, "temperature=21.5"; "nan" where a number is missing. Numbers have seven digits. The unit is the
    value."""

    name = "series"
    unit = "value"
    storage = "items"
    written = (".csv", ".txt")
    split_by = "name"
    advisor = "linear regression"

    def sniff(self, path: Path, head: bytes) -> float:
        """A table whose columns are measured numbers, times and names of series; events have a what."""
        if is_array(head):
            header = array_header(head)
            told = header is not None and (header[1].kind == "f" or below(head, *header[1:3]))
            return 0.92 if header and told and 1 <= len(header[0]) <= 3 else 0.0
        if form_of(path, head):
            return 0.96
        if RELATIONAL.search(head) and ARFF.match(head):
            return 0.95
        if path.suffix.lower() in ARCHIVES:
            return 0.95 if re.search(rb"(?m)^@(data\s*$|(?i:problemname|univariate|serieslength|relation)\s)", head) \
                else 0.0
        if in_blocks(head.decode("utf-8", "ignore")):
            return 0.9
        if path.suffix.lower() not in TABULAR and not is_parquet(head):
            return 0.0
        look = glance(path, head)
        if look is None and one_a_line(head):
            return 0.7
        if path.suffix.lower() not in DELIMITED and fractions_a_line(head):
            return 0.86
        if look is None or not look.rows or (look.form == "delimited" and not look.regular and
                                             path.suffix.lower() not in DELIMITED):
            return 0.0
        return self.sniff_table(path, look, len(head) < HEAD)

    def sniff_table(self, path: Path, look: Look, whole: bool = False) -> float:
        """`sniff`, of a table by its first rows. whole: there are hardly more of them."""
        look = with_moments(look)
        names = look.names if look.headed else []
        columns = {name: cells for name in look.names if (cells := look.column(name))}
        if lists := [name for name, cells in columns.items() if any(isinstance(cell, list) for cell in cells)]:
            return 0.92 if listed({name: columns[name] for name in lists}) else 0.0
        numbers = [name for name, cells in columns.items() if are_numbers(cells)]
        if wide(look, [name for name in names if says_class(name)]):
            return 0.84
        numbers, times, texts = _sorts(names, columns, numbers)
        when = timed(names, lambda name: columns.get(name, []))
        if when in numbers and look.headed and named_by(names, WHAT) is None and \
                paced(path, look, when, list(columns)) is not None:
            numbers.remove(when)
            times.append(when)
        known = np.concatenate([np.zeros(0), *(numbers_in(columns[name]) for name in numbers)])
        known = known[np.isfinite(known)]
        if not len(known):
            return 0.0
        nameless = [name for name in texts if named_by([name], [*WHO, *SERIES, *WHEN, *PERIODS]) is None
                    and len(set(map(str, columns[name]))) > 1]
        once = any(len(set(map(str, columns[name]))) == len(columns[name]) > 2 for name in times)  # a row a moment
        if look.headed and times and (whose := paced(path, look, times[0], [*texts, *numbers])) is not None:
            if all(name in whose or named_by([name], (*WHO, *WEAKLY)) for name in numbers):
                return 0.0
            entities = [tuple(map(row.get, whose)) for row in look.as_dicts()]
            nameless = [name for name in nameless if name not in whose and not (
                whose and is_determined_by([row.get(name) for row in look.as_dicts()], entities))]
            return 0.81 if not nameless else 0.57 if once else 0.0
        if named_by(names, WHAT) or (named_by(names, WHO) and sum(map(numbered, names)) > 1):
            return 0.0
        if not whole and look.headed and times and same_moment(look, times[0], [*texts, *numbers]):
            return 0.81
        if not (look.headed or texts) and look.regular and len({len(cells) for cells in columns.values()}) == 1 and \
                whole_rows(known.reshape(len(numbers), -1).T if len(known) == sum(map(len, columns.values()))
                            else np.zeros((0, 0))):
            return 0.84
        counts = ((known == np.round(known)) & (known >= 0)).all()  # or numbers that name things
        if counts and look.headed and len(columns) == 1 and named_by(names, [*WHO, *WHAT, *WEAKLY]) is None:
            return 0.6 if len(np.unique(known)) > len(known) / 4 > 1 else 0.0
        if counts and not (once and named_by(names, (*WHO, *WEAKLY)) is None):
            return 0.0
        if nameless:  # sorts of weather, on and off: left out where all else speaks for measurements
            again = all(len(set(map(str, columns[name]))) < len(columns[name]) for name in nameless)
            return 0.5 if once and again and len(nameless) <= len(numbers) else 0.0
        if not look.headed and path.suffix.lower() not in DELIMITED and len(look.rows) < 3:
            return 0.0
        if look.headed and when is None and any(len(set(columns[name])) > len(look.rows) / 2 > 2 for name in texts):
            return 0.4  # what each row is of
        sure = sum(measured(columns[name]) for name in numbers) > max(1, len(texts))
        return 0.81 if look.headed or len(numbers) >= WHOLE or (texts and sure) else 0.6

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
            and is left out (of whole numbers alone the first or last, if these are few and small); None: arrays do so
            from 24 columns, if these are no moments of many sensors, tables without a header as `rows_are_series` says,
            and tables whose columns are called by dates, or numbered. An array of three axes holds series of moments of
            columns, unless its first axis is time.
        classes: the column that says of which class each series is, the same in all its rows ("": one called so, if
            there is one), which its name then tells.
        """
        chosen = [columns] if isinstance(columns, str) else list(columns)
        head, archive = head_of(path), bare(path).suffix.lower() in ARCHIVES
        array, lines = is_array(head), bare(path).suffix.lower() not in DELIMITED and fractions_a_line(head)
        archive, form = archive or bool(RELATIONAL.search(head) and ARFF.match(head)), form_of(bare(path), head)
        if form and not array:
            yield from _recorded(path, form, problems)
            return
        if not array and in_blocks(head.decode("utf-8", "ignore")):
            with opened(path) as handle:
                yield from _blocks(path, as_utf8(path, handle.read(), encoding, problems).decode(), problems)
            return
        if array or archive or lines:
            with opened(path) as handle:
                raw = handle.read()
        if array:
            yield from _array(path, raw, rows, problems)
        elif archive:
            text = as_utf8(path, raw, encoding, problems).decode()
            yield from (_relational if bare(path).suffix.lower() not in ARCHIVES else _archive)(path, text, problems)
        elif lines:
            cells = as_utf8(path, raw, encoding, problems).decode().split()
            yield Record(flat({"": np.array([number_in(cell) for cell in cells])}), name=str(path))
        else:
            frame = load_table(path, Problems() if problems is None else problems, encoding,
                               (who, when, classes, *(name for part in chosen for name in (part, *part.split(",")))))
            yield from self.read_table(frame, problems, chosen, column, who, when, when_format, rows, classes)

    def read_table(self, frame: Frame, problems: Problems | None, chosen: list[str], column: str | None,
                   who: str | None, when: str | None, when_format: str | None, rows: bool | None,
                   classes: str | None) -> Iterator[Record]:
        """`read`, of a table: lists in its cells, a series in each row, or a moment in each."""
        if rows is None and not frame.headed and len(frame.columns) > 2 and _runs(frame):
            rows = False
        if rows is None and not frame.headed:
            found = [numbers_of(frame, name) for name in frame.columns]
            rows = rows_are_series(np.stack([values[:MANY] for values in found if values is not None] or
                                            [np.zeros(0)], 1))
        of = take_classes(frame, classes, (who, when, column, *chosen))
        lists = {name: values[:100].to_pylist() for name, values in frame.columns.items()
                 if "list" in str(values.type)}
        across = listed(lists) if lists and not chosen else []
        beside = [name for name in lists if name not in across and timelike(lists[name][0] or ["?"])]
        if len(across) == 1 and not beside:
            yield from _lists(frame, across[0], of, problems)
            return
        if across:
            frame = laid_out(frame, [*across, *beside])
            who = "series" if "series" in frame.columns else who
        along = []
        if rows is None and not (chosen or who or when) and len(frame.columns) > 2:
            named = [name for name in frame.columns if says_class(name)] if frame.classes is None else []
            along = wide(first_rows(frame), named, frame.classes is not None)
            of = take_classes(frame, named[0]) if along and len(named) == 1 else of
        if (rows or along) and frame.classes is None and (said := classes_beside(frame.path, len(frame.rows))):
            frame.classes, of = np.array(said, object), "the file beside it"
        if rows or along:
            yield from _whole_rows(frame, along, of, problems)
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

    def numbers(self, codec: Codec) -> np.ndarray | None:
        found, turns = np.full((codec.size, len(codec.turns())), np.nan), codec.turns()
        for column, ids in enumerate(turns):
            found[ids, column] = [parted(codec.token(id))[1] for id in ids.tolist()]
        return found if turns else None

    def write(self, objects: Iterable[Sequence[str] | Record], path: str | Path) -> None:
        """CSV, a row a moment; of several series with a column that names them. Channels are columns in front."""
        records = [obj if isinstance(obj, Record) else Record(list(obj)) for obj in objects]
        tables = [table(record.object) for record in records]
        columns = list(dict.fromkeys(column for each in tables for column in each))
        beside = list(dict.fromkeys(name for record in records for name in record.channels))
        head = [*(["series"] if len(records) > 1 else []), *beside]
        with atomic_write(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as handle:
            writer = csv.writer(handle, lineterminator="\n")
            writer.writerow([*head, *(column or "value" for column in columns)])
            for number, (record, each) in enumerate(zip(records, tables), 1):
                name = [record.name or f"series{number}"] if len(records) > 1 else []
                length = max(map(len, each.values()), default=0)
                moments = [np.asarray(record.channels[side])[:: len(each)] if side in record.channels else [""] * length
                           for side in beside]
                filled = [np.append(each.get(column, ()), [np.nan] * (length - len(each.get(column, ()))))
                          for column in columns]
                writer.writerows([*name, *(cells[i] for cells in moments), *map(decimal, row)]
                                 for i, row in enumerate(zip(*filled)))

    def show(self, obj: Sequence[str]) -> str:
        """A line a column: its course in at most 64 bars, from its least number to its greatest."""
        lines = []
        columns = table([item for item in obj if is_number(item.rpartition("=")[2])])
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


def fractions_a_line(head: bytes) -> bool:
    """Whether each line is one number with a comma for its point, of eight or more: fractions begin with noughts, names
    of things do not."""
    lines = head.decode("utf-8", "ignore").lstrip("\ufeff").split("\n")
    cells = [line.strip() for line in lines[: -1 if len(lines) > 1 else None] if line.strip()]
    return len(cells) >= 8 and all(re.fullmatch(r"[-+]?\d*,\d+", cell) for cell in cells) and \
        any(re.search(r",0\d", cell) for cell in cells)


def listed(lists: Mapping[str, Sequence[Any]]) -> list[str]:
    """Of columns of lists those that are series: the one of measured numbers, or several beside lists of times, where
    no column says what happened."""
    def items(name: str) -> list[Any]:
        return [item for cell in lists[name] if isinstance(cell, list) for item in cell if item not in (None, "")]

    numbers = [name for name in lists if (found := items(name)) and all(map(is_number, found))]
    sure = [name for name in numbers if measured(items(name))]
    when = named_by(lists, WHEN)
    said = [name for name in lists if name not in numbers and (found := items(name)) and not timelike(found[:100])]
    if len(sure) == 1 and when is None:
        return [] if said else sure  # what happened, beside how long it took
    lengths = {tuple(len(cell) if isinstance(cell, list) else -1 for cell in cells) for cells in lists.values()}
    dated = [name for name in lists if timelike(items(name)[:100])]
    good = sure and len(lengths) == 1 and (when is None or when in dated) and named_by(lists, (*WHAT, *WEAKLY)) is None
    return [name for name in numbers if name not in dated] if good else []


def says_class(name: str) -> bool:
    """Whether a column is called as one of classes."""
    return plain(name) in (*CLASSES, "target", "classes", "classlabel", "classattribute")


def below(head: bytes, dtype: np.dtype, start: int) -> bool:
    """Whether some of the first whole numbers of an array are below zero: measurements, and no symbols. (-1 may fill
    up rows of symbols.)"""
    held = head[start : start + (len(head) - start) // dtype.itemsize * dtype.itemsize]
    return dtype.kind == "i" and bool((np.frombuffer(held, dtype) < -1).any())


def paced(path: Path, look: Look, when: str, names: Sequence[str]) -> tuple[str, ...] | None:
    """Whose the moments of a table are, if they come at one pace: of one series, or those that a column names, or two
    together; None where they come now and then."""
    import pyarrow as pa

    rows = look.as_dicts()
    rows = [row for row in rows if row.get(when) not in (None, "")]
    try:
        times = seconds_of(pa.array([str(row[when]) for row in rows]), None, path, when)
    except SegueError:
        return None
    keys = [name for name in names if naming(name, [row.get(name) for row in rows])]
    return next((some for some in ((), *((name,) for name in names), *combinations(keys, 2)) if _apart(
        [str([row.get(name) for name in some]) for row in rows], times, True)), None)


def same_moment(look: Look, when: str, names: Sequence[str]) -> bool:
    """Whether the first rows of a table are of one moment, and of a series each, which one or two columns name."""
    rows = look.as_dicts()
    keys = [name for name in names if naming(name, look.column(name))]
    return len(rows) > 2 and len({str(row.get(when)) for row in rows}) == 1 and len(keys) < len(names) and any(
        len({tuple(str(row.get(key)) for key in some) for row in rows}) == len(rows)
        for size in (1, 2) for some in combinations(keys, size))


def naming(name: str, cells: Sequence[Any]) -> bool:
    """Whether a column may name series: texts, or numbers in a column called so, but not a number for each row."""
    return (not all(map(is_number, cells)) or (_names(name) and plain(name) not in ("id", *COUNTERS))) and \
        not timelike(cells)


def _apart(whose: Sequence[str], times: np.ndarray, steadily: bool = False) -> bool:
    """Whether the times of each of these are all different, and of most there are three or more. steadily: and come at
    one pace."""
    places: dict[str, list[int]] = {}
    for row, name in enumerate(whose):
        places.setdefault(name, []).append(row)
    parts = [times[rows] for rows in places.values()]
    long = [part for part in parts if len(part) > 2]
    return 2 * len(long) > len(parts) and all(len(np.unique(part)) == len(part) for part in parts) and not (
        steadily and 2 * sum(bool(np.isfinite(steady(part))) for part in long) <= len(long))


def rows_are_series(grid: np.ndarray) -> bool:
    """Whether the rows of a table without a header (N, C) are series: of many columns, if those are not more alike
    downwards, as moments of several sensors are; of some, if rows are alike along them, and columns are not."""
    along, down = likeness(grid) if grid.shape[1] >= SHORT else (0.0, 0.0)
    return along > ALIKE and down < 0.3 if grid.shape[1] < WHOLE else not (down > 0.5 and down > along)


def whole_rows(grid: np.ndarray) -> bool:
    """Whether whole numbers in a table without a header (N, C) are measurements, not symbols: they say many things,
    neighbours are alike, and rows are not filled up at their ends."""
    if len(grid) < 8 or grid.shape[1] < SHORT or len(np.unique(grid)) <= 16:
        return False
    filled = (grid[:, -1] == grid[:, -2]) & (grid[:, -1] == np.median(grid[:, -1]))
    return max(likeness(grid)) > ALIKE and 4 * filled.sum() < len(grid)


def in_blocks(text: str) -> bool:
    """Whether a text is blocks of lines with blank ones between, each line of so many measured numbers, two or more."""
    blocks = [block.split("\n") for block in re.split(r"\n\s*\n", text.strip())[:20]]
    if len(blocks) < 3 or (len(blocks) < 20 and len(text) > HEAD - 8):
        return False
    rows = [line.split() for block in blocks for line in block]
    return len(rows) > 2 * len(blocks) and len(set(map(len, rows))) == 1 < len(rows[0]) and \
        all(is_number(cell) for row in rows for cell in row) and measured(cell for row in rows for cell in row)


def _blocks(path: Path, text: str, problems: Problems | None) -> Iterator[Record]:
    """Each block of lines is a series, see `in_blocks`; as those of the vowels of nine speakers are kept (UCI)."""
    if problems is not None:
        problems.note = "a series a block of lines"
    wide = len(text.lstrip().split("\n", 1)[0].split())
    for number, block in enumerate(re.split(r"\n(?:[ \t\r]*\n)+", text.strip("\n")), 1):
        rows = [list(map(number_in, line.split())) for line in block.split("\n")]
        if any(len(row) != wide or not np.isfinite(row).all() for row in rows):
            bad(problems, path, f"block {number}", None, f"not lines of {wide} numbers each; mend or remove it")
            continue
        grid = np.array(rows)
        yield Record(flat({f"x{i + 1}": grid[:, i] for i in range(wide)}), name=f"{path}:{number}")


def one_a_line(head: bytes) -> bool:
    """Whether each line is one measured number, of eight or more; the last may be cut."""
    lines = head.decode("utf-8", "ignore").lstrip("\ufeff").split("\n")
    cells = [line.strip() for line in lines[: -1 if len(lines) > 1 else None] if line.strip()]
    return len(cells) >= 8 and all(map(is_number, cells)) and measured(cells)


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


def _sorts(names: Sequence[str], columns: Mapping[str, Sequence[Any]],
           numbers: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """The names of columns of measured numbers, of times and of texts. names: as the header has them, if there is one.
    numbers: the columns that hold some, of which one may be the time."""
    times = [name for name in columns if name not in numbers and (_dated(columns[name]) or (
        len(columns[name]) > 3 and _dated(columns[name][1:])))]  # behind their units
    when = timed(names, lambda name: columns.get(name, []))
    if when is not None and when in numbers and timelike(columns[when]):
        times.append(when)
    return ([name for name in numbers if name not in times], times,
            [name for name in columns if name not in (*numbers, *times)])


def _dated(cells: Sequence[Any]) -> bool:
    """Moments or months of the calendar."""
    return timelike(cells) or all(MONTH.fullmatch(str(cell)) for cell in cells)




def _by_moment(array: np.ndarray) -> bool:
    """Whether the first axis of an array (N, T, C) is time, as in what sensors along roads say: values go on along it,
    and clearly more so than along the second, which is shorter."""
    if len(array) < WHOLE or len(array) <= array.shape[1]:
        return False
    grid = array[:MANY, :, 0]
    along, down = likeness(grid)
    return down > 0.5 and down > along + 0.1


def _array(path: Path, raw: bytes, rows: bool | None, problems: Problems | None) -> Iterator[Record]:
    """An array (T,), or (T, C): columns called x1, x2, ...; rows: (N, T), and (N, T, C) always: N series."""
    array = load_array(path, raw, "numbers, of one to three axes")
    if array.dtype.kind not in "iuf" or not 1 <= array.ndim <= 3 or not array.size:
        raise SegueError(f"{path}: an array of {array.dtype} of {array.ndim} axes is no series: give numbers, of one "
                         "axis, of moments and columns, or of series, moments and columns")
    array = array.astype(np.float64)
    if array.ndim == 3 and rows is not True and _by_moment(array):
        array = array.swapaxes(0, 1)
        if problems is not None:
            problems.note = "a series a place of the second axis, a moment a place of the first (else: rows=True)"
    if array.ndim == 2 and ((array.shape[1] >= WHOLE and rows_are_series(array[:MANY])) if rows is None else rows):
        array = array[:, :, None]
        if problems is not None:
            problems.note = "a row a series"
    several = array.ndim == 3
    classes = classes_beside(path, len(array)) if several else None
    if problems is not None and classes:
        problems.note += ", class=the file beside it" if problems.note else "class=the file beside it"
    for number, each in enumerate(array if several else [array.reshape(len(array), -1)], 1):
        columns = {f"x{i + 1}": each[:, i] for i in range(each.shape[1])} if each.shape[1] > 1 else {"": each[:, 0]}
        name = f"{path}:{number}" if several else str(path)
        yield Record(flat(columns), name=of_class(name, classes[number - 1] if classes else ""))


def _recorded(path: Path, form: str, problems: Problems | None) -> Iterator[Record]:
    """A recording; a long one in parts."""
    for name, columns in recorded(path, form):
        length, step = len(next(iter(columns.values()))), max(PART // len(columns), 1)
        if problems is not None:
            problems.note = f"columns={','.join([*columns][:SHOWN])}"
        columns = {"": next(iter(columns.values()))} if len(columns) == 1 else columns
        where = f"{path}:{name}" if name else str(path)
        for at in range(0, length, step):
            yield Record(flat({key: values[at : at + step] for key, values in columns.items()}),
                         name=f"{where}@{at}" if length > step else where)


def _relational(path: Path, text: str, problems: Problems | None) -> Iterator[Record]:
    """A table of Weka whose rows hold series of several columns, a line each within quotes, and perhaps a class."""
    body = re.split(r"(?im)^[ \t]*@data[ \t]*$", text, maxsplit=1)[-1]
    none = True
    for number, line in enumerate(body.splitlines(), text.count("\n") - body.count("\n") + 1):
        found = re.fullmatch(r"\s*(?:[^'\",]*,)?\s*(['\"])(.*?)\1\s*(?:,\s*(.*?))?\s*", line)
        if not line.strip() or line.lstrip()[:1] == "%":
            continue
        parts = [["nan" if cell.strip() in ("?", "") else cell for cell in part.split(",")]
                 for part in re.split(r"\\n|;", found[2])] if found else []
        if found is None or not all(is_number(cell) for part in parts for cell in part):
            bad(problems, path, f"line {number}", None, "not the numbers of a series in quotes; mend or remove it")
            continue
        none, longest = False, max(map(len, parts))
        filled = [np.append(list(map(number_in, part)), [np.nan] * (longest - len(part))) for part in parts]
        names = [f"x{i + 1}" for i in range(len(filled))] if len(filled) > 1 else [""]
        yield Record(flat(dict(zip(names, filled))), name=of_class(f"{path}:{number}", (found[3] or "").strip("'\"")))
    if none and problems is None:
        raise SegueError(f"{path}: there is no series behind @data; is the file cut short?")


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
    given = [name.lower() for name in re.findall(r"(?im)^@attribute\s+(\S+)", heads)]  # of a .tsf file, before numbers
    before = heads.count("\n") + 1
    any_left = False
    for number, line in enumerate(body.splitlines(), before):
        parts = line.strip().split(":")
        if parts == [""]:
            continue
        label = parts.pop().strip() if labelled and len(parts) > 1 else ""
        said, parts = parts[: len(given)], parts[len(given) :] or [""]
        called = dict(zip(given, said)).get("series_name", number)
        cells = [["nan" if cell.strip() in ("?", "") else cell for cell in part.split(",")] for part in parts]
        columns = [np.array(list(map(number_in, part))) for part in cells]
        strange = next((cell for part in cells for cell in part if not is_number(cell)), None)
        if strange is not None:
            bad(problems, path, f"line {number}", None, f"{strange!r:.40} is no number; mend or remove the line")
            continue
        longest = max(map(len, columns))
        filled = [np.append(values, [np.nan] * (longest - len(values))) for values in columns]
        names = [""] if len(filled) == 1 else [f"x{i + 1}" for i in range(len(filled))]
        any_left = True
        yield Record(flat(dict(zip(names, filled))), name=of_class(f"{path}:{called}", label))
    if not any_left and problems is None:
        raise SegueError(f"{path}: there is no series behind @data; is the file cut short?")


def numbers_of(frame: Frame, name: str) -> np.ndarray | None:
    """A column as float64, NaN where it says nothing; None where most of it is no number."""
    import pyarrow as pa

    column = frame.columns[name]
    if pa.types.is_integer(column.type) or pa.types.is_floating(column.type) or pa.types.is_decimal(column.type):
        return np.asarray(column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False), dtype=np.float64)
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        return None
    with suppress(pa.ArrowInvalid):
        plain = np.asarray(column.cast(pa.float64()).to_numpy(zero_copy_only=False))
        return plain if 2 * np.isfinite(plain).sum() > len(plain) - column.null_count > 0 else None
    coded = column.dictionary_encode()  # most columns of words say few of them
    places = coded.indices.fill_null(len(coded.dictionary)).to_numpy(zero_copy_only=False)
    cells = [*coded.dictionary.to_pylist(), None]
    numbers = numbers_in(cells)[places]
    cells = [cells[place] for place in places.tolist()]
    filled = sum(cell is not None and cell.strip() not in ("", "?", "-", "NA", "null") for cell in cells)
    return numbers if 2 * np.isfinite(numbers).sum() > filled > 0 else None


def _wordy(frame: Frame, names: Iterable[str]) -> list[str]:
    """Those of these columns that hold something, but no numbers."""
    held = [name for name in names if frame.columns[name].null_count < len(frame.rows)]
    return [name for name in held if numbers_of(frame, name) is None]


def _without_units(frame: Frame) -> Frame:
    """A table without a first row that says in what units its numbers are."""
    numbers = [(name, values) for name in frame.columns if (values := numbers_of(frame, name)) is not None]
    if len(frame.rows) < 3 or not numbers or any(np.isfinite(values[0]) or not frame.columns[name][0].as_py()
                                                 for name, values in numbers):
        return frame
    return replace(frame, columns={name: cells[1:] for name, cells in frame.columns.items()}, rows=frame.rows[1:],
                   classes=None if frame.classes is None else frame.classes[1:])


def _lists(frame: Frame, name: str, of: str | None, problems: Problems | None) -> Iterator[Record]:
    """Each cell of a column of lists is a series."""
    if problems is not None:
        problems.note = f"columns={name}, a series a row" + (f", class={of}" if of else "")
    for row, cell in enumerate(frame.columns[name].to_pylist()):
        values = np.array([np.nan if item is None else number_in(item) for item in cell or []])
        if not np.isfinite(values).any():
            bad(problems, frame.path, frame.place(row), None, f"there is no number in '{name}'; remove it")
            continue
        place = f"{frame.path}:{frame.place(row)}"
        if frame.classes is None:
            yield Record(flat({"": values}), name=place)
        elif told(problems, frame.path, frame.place(row), of, frame.classes[row]):
            yield Record(flat({"": values}), name=of_class(place, frame.classes[row]))


def _whole_rows(frame: Frame, along: Sequence[str], of: str | None, problems: Problems | None) -> Iterator[Record]:
    """Each row of a table is a series. along: the columns that are its moments, named by what else the row says; of
    none all, but a first column of whole numbers, their classes, which is left out."""
    columns = {name: numbers_of(frame, name) for name in along or frame.columns}
    numbers = {name: values for name, values in columns.items() if values is not None}
    if not numbers:
        raise SegueError(f"{frame.path}: there are no numbers in this table")
    grid = np.stack(list(numbers.values()), 1)
    first, last = grid[:, 0], grid[:, -1]
    labelled = not along and frame.classes is None and grid.shape[1] > 2
    whole, front = bool((grid == np.round(grid)).all()), bool((first == np.round(first)).all())
    behind = labelled and (whole or not front) and _few(last, grid[:, :-1])
    labelled = labelled and (behind or (_few(first, grid[:, 1:]) if whole else front))
    grid, first = (np.roll(grid, 1, 1), last) if behind else (grid, first)
    rest = _wordy(frame, [name for name in frame.columns if name not in numbers]) if along else []
    if problems is not None:
        whose = f", the {'last' if behind else 'first'} number its class" if labelled else f", class={of}" if of else ""
        whose += f", named by {', '.join(rest)}" if rest else ""
        problems.note = f"a row a series{whose}"
    called = [frame.columns[name].to_pylist() for name in rest]
    for row, values in enumerate(grid[:, labelled:]):
        known = np.flatnonzero(np.isfinite(values))
        label = decimal(first[row]) if labelled else "" if frame.classes is None else frame.classes[row]
        if of and not told(problems, frame.path, frame.place(row), of, label):
            continue
        if not len(known):
            bad(problems, frame.path, frame.place(row), None, "there is no number in this row; remove it")
            continue
        name = ", ".join(str(cells[row]) for cells in called if cells[row] is not None) or frame.place(row)
        yield Record(flat({"": values[: known[-1] + 1]}), name=of_class(f"{frame.path}:{name}", label))


def _few(numbers: np.ndarray, others: np.ndarray) -> bool:
    """Whether whole numbers (N,) may be classes beside measured ones: few, and small."""
    few = len(np.unique(numbers)) <= min(50, max(2, len(numbers) // 4)) and bool((numbers == np.round(numbers)).all())
    whole = bool((others[np.isfinite(others)] % 1 == 0).all())
    return few and (not whole or bool(3 * np.ptp(numbers) < np.nanmax(others) - np.nanmin(others)))


@dataclass
class _Moments:
    """What the columns of a table are, whose rows are moments. numbers: by column. who, when: the columns that name
    series and say when, if any; times: in seconds. labels: the name of each series; series: its rows."""

    numbers: dict[str, np.ndarray]
    who: str | None
    when: str | None
    times: np.ndarray | None
    labels: list[str]
    series: list[np.ndarray]

    def called(self) -> dict[str, str]:
        """What columns are called in items: nothing where there is but one, and numbers are no names."""
        if len(self.numbers) < 2:
            return dict.fromkeys(self.numbers, "")
        return {name: f"x{name}" if name.isdigit() else name for name in self.numbers}

    def clock(self, rows: np.ndarray) -> Clock | None:
        """When a series goes on, where its times come at a regular pace."""
        if self.when is None or self.times is None or not np.isfinite(self.times[rows]).all():
            return None
        gap = steady(self.times[rows])
        return Clock(self.when, self.times[rows], gap) if np.isfinite(gap) else None

    def note(self, names: Sequence[str], of: str | None) -> str:
        """Which columns are read as what; names: all there are, of: where classes were found."""
        between = "" if self.times is None else span(self.times)
        if self.times is not None and np.isfinite(pace := steady(self.times[self.series[0]])):
            real = of_calendar(self.times)
            between += f", every {lasting(pace) if real else f'{pace:g}'}"
        roles = said([("class", of), ("who", self.who), ("when", self.when)],
                     [name for name in names if name not in self.numbers], between)
        more = f",... ({len(self.numbers)} in all)" if len(self.numbers) > SHOWN else ""
        comma = ", " if of or self.who or self.when else ""
        return f"columns={','.join([*self.numbers][:SHOWN])}{more}{comma}{roles}"


def _moments(frame: Frame, chosen: list[str], column: str | None, who: str | None, when: str | None,
             when_format: str | None, classes: str | None, of: str | None,
             problems: Problems | None) -> Iterator[Record]:
    """Each row of a table is a moment."""
    frame = _without_units(frame)
    sorts = [] if frame.headed or who or of else _wordy(frame, _runs(frame))
    if len(sorts) == 1:  # what each of the series is of
        of, frame.classes = sorts[0], np.array(frame.columns[sorts[0]].to_pylist(), object)
    found = _roles(frame, chosen, column, who, when, when_format)
    said_of = None if frame.classes is None else classes_of(frame.classes, found.series, classes)
    if problems is not None:
        problems.note = found.note(list(frame.columns), None if said_of is None else of)
        problems.columns.append(next(iter(found.numbers)) if len(found.numbers) == 1 and frame.headed else "")
    called, times = found.called(), found.times
    for number, (label, mine) in enumerate(zip(found.labels, found.series)):
        if times is not None and np.isfinite(times[mine]).all():
            mine = mine[np.argsort(times[mine], kind="stable")]
        parts = {called[name]: values[mine] for name, values in found.numbers.items()}
        if not any(np.isfinite(values).any() for values in parts.values()):
            bad(problems, frame.path, label, None, "there is no number in this series; remove it")
            continue
        name = f"{frame.path}:{label}" if label else str(frame.path)
        if problems is not None:
            problems.clock = found.clock(mine)
        if said_of is None:
            yield Record(flat(parts), name=name)
        elif told(problems, frame.path, label, of, said_of[number]):
            yield Record(flat(parts), name=of_class(name, said_of[number]))


def _roles(frame: Frame, chosen: list[str], column: str | None, who: str | None, when: str | None,
           when_format: str | None) -> _Moments:
    """Find what was not asked for, and refuse what is not there; see `Series.read`."""
    import pyarrow as pa

    names, there = list(frame.columns), ", ".join(frame.columns)
    chosen = [name for part in chosen for name in ([part] if part in names else part.split(","))]
    chosen = [name[1:] if name not in names and name[1:] in names and name == f"x{name[1:]}" else name
              for name in chosen]  # of a table without a header
    for asked in (*chosen, *filter(None, (who, when))):
        if asked not in names:
            raise SegueError(f"{frame.path}: there is no column '{asked}'; there are {there}")
    sure, asked_who = when is not None, who is not None
    if when is None and frame.headed:
        when = when_of(frame, [name for name in names if name not in (*chosen, who)])
        names = list(frame.columns)
    numbers = {name: values for name in (chosen or [name for name in names if name != who])
               if (values := numbers_of(frame, name)) is not None}
    if missing := [name for name in chosen if name not in numbers]:
        raise SegueError(f"{frame.path}: column '{missing[0]}' holds no numbers; there are {there}")
    if when is None:
        when = next((name for name in names if name not in (*numbers, who) and
                     timelike(frame.columns[name][:100].to_pylist())), None)
    if who is None:
        texts = [name for name in names if name not in numbers and name != when and
                 not (chosen and numbers_of(frame, name) is not None)]
        who = "series" if "series" in names else named_by(texts, [*WHO, *SERIES]) if frame.headed else None
    if who is None and not frame.headed and (runs := _runs(frame)) and not {*runs} & {*chosen}:
        behind = next(name for name in frame.columns if name not in runs)
        who = " ".join(runs)
        if len(runs) > 1:
            frame.columns[who] = pa.array(map(", ".join, zip(*(map(str, frame.columns[name].to_pylist())
                                                               for name in runs))))
            numbers = {name: values for name, values in numbers.items() if name not in runs}
        if when is None and behind not in chosen and \
                _goes_on(numbers_of(frame, behind), frame.columns[who].to_pylist()):
            when = behind
    if who is None and when is not None:
        who = _whose(frame, when, when_format, [*texts, *(name for name in names if name not in (*texts, *chosen))])
    if who is not None and not asked_who and 1 < len(frame.rows) < 2 * len(frame.columns[who].unique()) and (
            when is None or len(frame.columns[who].unique()) == len(frame.rows)):
        who = None  # a name for each row, of a city or so
    groups, labels = np.zeros(len(frame.rows), dtype=np.int64), [""]
    if who is not None:
        place: dict[str, int] = {}
        groups = np.array([place.setdefault(str(cell), len(place)) for cell in frame.columns[who].to_pylist()])
        labels = list(place)
    order = np.argsort(groups, kind="stable")
    series = np.split(order, np.searchsorted(groups[order], np.arange(1, len(labels))))
    times = None if when is None else _times(frame, when, when_format, sure, series)
    when = None if times is None else when
    numbers = {name: values for name, values in numbers.items() if name not in (who, when) and name in frame.columns}
    if not chosen:
        numbers = {name: values for name, values in numbers.items() if not counts_rows(name, values)
                   and not (_names(name) and _constant(values)) and not _marks(name, values)
                   and not (times is not None and repeats_time(name, values, times))} or numbers
    if not numbers:
        raise SegueError(f"{frame.path}: there are no numbers here (columns: {there}); name some with columns=")
    if column is not None and not chosen and len(numbers) > 1:
        if column not in numbers:
            raise SegueError(f"{frame.path}: there is no column '{column}' of numbers, which the model was fitted on; "
                             f"there are {', '.join(numbers)}: name one with columns=")
        numbers = {column: numbers[column]}
    return _Moments(numbers, who, when, times, labels, series)


def _runs(frame: Frame) -> list[str]:
    """The first columns of a table without a header that name its series: texts or whole numbers that stay the same
    for many rows, one series behind the other; before columns of measured numbers."""
    found = []
    for name in frame.columns:
        cells = frame.columns[name].to_pylist()
        changes = sum(a != b for a, b in zip(cells, cells[1:]))
        if not 0 < 8 * changes < len(cells) or measured(cells[:MANY]) or timelike(cells[:MANY]):
            break
        found.append(name)
    rest = [name for name in frame.columns if name not in found]
    return found if found and any(measured(frame.columns[name][:MANY].to_pylist()) for name in rest) else []


def _goes_on(values: np.ndarray | None, whose: Sequence[Any]) -> bool:
    """Whether a column says when: it grows within each series, and counts its rows anew or holds moments."""
    if values is None:
        return False
    begins = np.array([a != b for a, b in zip(whose, whose[1:])])
    gaps = np.diff(values)
    anew = bool((gaps[~begins] == 1).all()) and len(np.unique(values[1:][begins])) == 1
    return anew or (bool((values >= EPOCH).all()) and 50 * (gaps[~begins] < 0).sum() < len(gaps))


def _whose(frame: Frame, when: str, when_format: str | None, names: Sequence[str]) -> str | None:
    """The column that names the series of a table in which times come again: within each of them none does; or two
    that do so together, which become one."""
    import pyarrow as pa

    try:
        times = seconds_of(frame.columns[when], when_format, frame.path, when)
    except SegueError:
        return None
    if len(np.unique(times)) == len(times) or not np.isfinite(times).all():
        return None
    dated = timelike(frame.columns[when][:100].to_pylist())
    whole = [name for name in names if name != when and not measured(frame.columns[name][:1000].to_pylist())
             and (dated or _names(name) or numbers_of(frame, name) is None)]
    cells = {name: list(map(str, frame.columns[name].to_pylist())) for name in names}
    whole += [name for name in names if name not in (*whole, when) and _apart(cells[name], times, True)]
    if found := next((name for name in whole if _apart(cells[name], times)), None):
        return found
    whole.sort(key=list(frame.columns).index)
    for pair in combinations([name for name in whole if naming(name, cells[name][:1000])], 2):
        both = list(map(", ".join, zip(*(cells[name] for name in pair))))
        if _apart(both, times):
            frame.columns[" ".join(pair)] = pa.array(both, pa.string())
            for name in pair:
                frame.columns.pop(name)
            return " ".join(pair)
    return None


def _times(frame: Frame, when: str, when_format: str | None, sure: bool,
           series: Sequence[np.ndarray]) -> np.ndarray | None:
    """Seconds of each row; None where a column that nobody asked for does not say when: names of weekdays, or numbers
    that come again in one of the series, such as the day of a month."""
    column = frame.columns[when]
    moments = sure or timelike(column[:100].to_pylist())
    try:
        times = seconds_of(column, when_format, frame.path, when)
    except SegueError:
        if moments or when_format is not None:
            raise
        return None
    plain = not moments and numbers_of(frame, when) is not None
    return None if plain and any(len(np.unique(times[mine])) < len(mine) for mine in series) else times


def _names(name: str) -> bool:
    """Whether a column is called as one that numbers things."""
    return plain(name).endswith(ENDINGS[1:]) or named_by([name], [*WHO, *SERIES]) is not None


def _constant(values: np.ndarray) -> bool:
    """The same whole number in every row, as that of a station."""
    known = values[np.isfinite(values)]
    same = len(values) > 1 and len(known) == len(values) and bool((known == known[0]).all())
    return same and float(known[0]).is_integer()


def repeats_time(name: str, values: np.ndarray, times: np.ndarray) -> bool:
    """Whether a column says the year, month, day or hour of the times (N,) that another column says."""
    part = next((part for part, called in CALLED.items() if plain(name) in called), None)
    if part not in CALENDAR or not of_calendar(times):
        return False
    known = np.isfinite(times) & np.isfinite(values)
    moments = np.round(times[known]).astype("M8[s]")
    unit, larger = CALENDAR[part]
    said = moments.astype(f"M8[{unit}]")
    number = said.astype(int) + 1970 if part == "year" else (said - moments.astype(f"M8[{larger}]")).astype(int)
    return bool(np.isin(values[known] - number, (0, 1)).mean() > 0.95) if known.any() else False


def _marks(name: str, values: np.ndarray) -> bool:
    """A column that marks some moments as odd, as benchmarks of anomalies have it: no measurement."""
    return plain(name).removeprefix("is") in MARKS and bool(np.isin(values, (0, 1)).all())


def counts_rows(name: str, values: np.ndarray) -> bool:
    """A column that counts the rows."""
    plain = re.sub(r"[^a-z]", "", name.lower())
    whole = len(values) > 1 and float(values[0]).is_integer() and bool((np.diff(values) == 1).all())
    return whole and (plain in ("", *COUNTERS) or _names(name))
