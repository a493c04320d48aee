"""Series of measured numbers: sensors, prices, recordings of any sort, of one column or several at a time.

Tables (CSV, TSV, Parquet, JSON Lines) with a row a moment, or a row or a list a whole series; `.ts` files of the
UEA and UCR archives and `.tsf` files of the Monash one; NumPy arrays.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from segue.errors import SegueError
from segue.files import atomic_write
from segue.kinds.base import ARFF, HEAD, Dataset, Kind, Problems, Record, as_utf8, bad, head_of, of_class
from segue.kinds.beside import classes_beside
from segue.kinds.codecs import Codec, LevelCodec, decimal, element, parted
from segue.kinds.columns import CLASSES, has_class, take_classes
from segue.kinds.columns import look as first_rows
from segue.kinds.elements import as_columns, as_elements, levels_of
from segue.kinds.frame import (
    DELIMITED,
    Frame,
    Look,
    array_header,
    glance,
    is_array,
    is_parquet,
    is_tabular,
    load_table,
)
from segue.kinds.moment_rows import (
    PERIODS,
    SERIES,
    columns_without_numbers,
    evenly_timed,
    numbers_of,
    read_moments,
    run_columns,
    same_moment,
    says_when,
)
from segue.kinds.numbers import are_numbers, is_number, number_in, numbers_in
from segue.kinds.packed import bare, opened
from segue.kinds.recordings import form_of
from segue.kinds.roles import (
    WEAKLY,
    WHAT,
    WHEN,
    WHO,
    column_called,
    is_determined_by,
    measured,
    numbered,
    plain,
    time_column,
    with_joined_times,
)
from segue.kinds.series_files import (
    ARCHIVES,
    RELATIONAL,
    WHOLE,
    fractions_a_line,
    has_negatives,
    in_blocks,
    one_a_line,
    read_archive,
    read_array,
    read_blocks,
    read_recording,
    read_relational,
    rows_are_series,
    whole_rows,
)
from segue.kinds.table import unnested
from segue.kinds.times import timelike
from segue.kinds.wide import MONTH, wide

BARS = "▁▂▃▄▅▆▇█"
MANY = 1000  # rows by which a table is judged


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
            measured_values = header is not None and (header[1].kind == "f" or has_negatives(head, *header[1:3]))
            return 0.92 if header and measured_values and 1 <= len(header[0]) <= 3 else 0.0
        if form_of(path, head):
            return 0.96
        if RELATIONAL.search(head) and ARFF.match(head):
            return 0.95
        if path.suffix.lower() in ARCHIVES:
            return 0.95 if re.search(rb"(?m)^@(data\s*$|(?i:problemname|univariate|serieslength|relation)\s)", head) \
                else 0.0
        if in_blocks(head.decode("utf-8", "ignore")):
            return 0.9
        if not is_tabular(path) and not is_parquet(head):
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

    def sniff_table(self, path: Path, look: Look, complete: bool = False) -> float:
        """`sniff`, of a table by its first rows. complete: there are hardly more of them."""
        look = with_joined_times(look)
        names = look.names if look.headed else []
        columns = {name: cells for name in look.names if (cells := look.column(name))}
        if lists := [name for name, cells in columns.items() if any(isinstance(cell, list) for cell in cells)]:
            return 0.92 if listed({name: columns[name] for name in lists}) else 0.0
        numbers = [name for name, cells in columns.items() if are_numbers(cells)]
        if wide(look, [name for name in names if says_class(name)]):
            return 0.84
        numbers, times, texts = _measured_times_texts(names, columns, numbers)
        when = time_column(names, lambda name: columns.get(name, []))
        if when in numbers and look.headed and column_called(names, WHAT) is None and \
                evenly_timed(path, look, when, list(columns)) is not None:
            numbers.remove(when)
            times.append(when)
        values = np.concatenate([np.zeros(0), *(numbers_in(columns[name]) for name in numbers)])
        values = values[np.isfinite(values)]
        if not len(values):
            return 0.0
        nameless = [name for name in texts if column_called([name], [*WHO, *SERIES, *WHEN, *PERIODS]) is None
                    and len(set(map(str, columns[name]))) > 1]
        # Whether a row is a moment.
        unique_times = any(len(set(map(str, columns[name]))) == len(columns[name]) > 2 for name in times)
        key_columns = evenly_timed(path, look, times[0], [*texts, *numbers]) if look.headed and times else None
        if key_columns is not None:
            if all(name in key_columns or column_called([name], (*WHO, *WEAKLY)) for name in numbers):
                return 0.0
            entities = [tuple(map(row.get, key_columns)) for row in look.as_dicts()]
            nameless = [name for name in nameless if name not in key_columns and not (
                key_columns and is_determined_by([row.get(name) for row in look.as_dicts()], entities))]
            many = len([name for name in numbers if measured(columns[name])]) > max(2, len(nameless))
            return 0.81 if not nameless or many else 0.57 if unique_times else 0.0
        if column_called(names, WHAT) or (column_called(names, WHO) and sum(map(numbered, names)) > 1):
            return 0.0
        if not complete and look.headed and times and same_moment(look, times[0], [*texts, *numbers]):
            return 0.81
        if not (look.headed or texts) and look.regular and len({len(cells) for cells in columns.values()}) == 1 and \
                whole_rows(values.reshape(len(numbers), -1).T if len(values) == sum(map(len, columns.values()))
                            else np.zeros((0, 0))):
            return 0.84
        counts = ((values == np.round(values)) & (values >= 0)).all()  # or numbers that name things
        if counts and look.headed and len(columns) == 1 and column_called(names, [*WHO, *WHAT, *WEAKLY]) is None:
            return 0.6 if len(np.unique(values)) > len(values) / 4 > 1 else 0.0
        if counts and not (unique_times and column_called(names, (*WHO, *WEAKLY)) is None):
            return 0.0
        if nameless:  # sorts of weather, on and off: left out where all else speaks for measurements
            repeating = all(len(set(map(str, columns[name]))) < len(columns[name]) for name in nameless)
            return 0.5 if unique_times and repeating and len(nameless) <= len(numbers) else 0.0
        if not look.headed and path.suffix.lower() not in DELIMITED and len(look.rows) < 3:
            return 0.0
        if look.headed and when is None and any(len(set(columns[name])) > len(look.rows) / 2 > 2 for name in texts):
            return 0.4  # what each row is of
        timed = bool(times) or (not look.headed and look.names[0] in numbers and
                                says_when(numbers_in(columns[look.names[0]])))
        mostly_measured = sum(measured(columns[name]) for name in numbers) > max(1, len(texts))
        return 0.81 if look.headed or timed or len(numbers) >= WHOLE or (texts and mostly_measured) else 0.6

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
            yield from read_recording(path, form, problems)
            return
        if not array and in_blocks(head.decode("utf-8", "ignore")):
            with opened(path) as handle:
                yield from read_blocks(path, as_utf8(path, handle.read(), encoding, problems).decode(), problems)
            return
        if array or archive or lines:
            with opened(path) as handle:
                raw = handle.read()
        if array:
            yield from read_array(path, raw, rows, problems)
        elif archive:
            text = as_utf8(path, raw, encoding, problems).decode()
            read_text = read_archive if bare(path).suffix.lower() in ARCHIVES else read_relational
            yield from read_text(path, text, problems)
        elif lines:
            cells = as_utf8(path, raw, encoding, problems).decode().split()
            yield Record(as_elements({"": np.array([number_in(cell) for cell in cells])}), name=str(path))
        else:
            frame = load_table(path, Problems() if problems is None else problems, encoding,
                               (who, when, classes, *(name for part in chosen for name in (part, *part.split(",")))))
            yield from self.read_table(frame, problems, chosen, column, who, when, when_format, rows, classes)

    def read_table(self, frame: Frame, problems: Problems | None, chosen: list[str], column: str | None,
                   who: str | None, when: str | None, when_format: str | None, rows: bool | None,
                   classes: str | None) -> Iterator[Record]:
        """`read`, of a table: lists in its cells, a series in each row, or a moment in each."""
        if rows is None and not frame.headed and len(frame.columns) > 2 and run_columns(frame):
            rows = False
        if rows is None and not frame.headed:
            columns = [numbers_of(frame, name) for name in frame.columns]
            rows = rows_are_series(np.stack([values[:MANY] for values in columns if values is not None] or
                                            [np.zeros(0)], 1))
        label_column = take_classes(frame, classes, (who, when, column, *chosen))
        lists = {name: values[:100].to_pylist() for name, values in frame.columns.items()
                 if "list" in str(values.type)}
        series_lists = listed(lists) if lists and not chosen else []
        time_lists = [name for name in lists if name not in series_lists and timelike(lists[name][0] or ["?"])]
        if len(series_lists) == 1 and not time_lists:
            yield from _read_list_rows(frame, series_lists[0], label_column, problems)
            return
        if series_lists:
            frame = unnested(frame, [*series_lists, *time_lists])
            who = "series" if "series" in frame.columns else who
        moment_columns = []
        if rows is None and not (chosen or who or when) and len(frame.columns) > 2:
            class_columns = [name for name in frame.columns if says_class(name)] if frame.classes is None else []
            moment_columns = wide(first_rows(frame), class_columns, frame.classes is not None)
            if moment_columns and len(class_columns) == 1:
                label_column = take_classes(frame, class_columns[0])
        by_rows = bool(rows or moment_columns)
        if by_rows and frame.classes is None and (labels := classes_beside(frame.path, len(frame.rows))):
            frame.classes, label_column = np.array(labels, object), "the file beside it"
        if by_rows:
            yield from _read_rows(frame, moment_columns, label_column, problems)
        else:
            yield from read_moments(frame, chosen, column, who, when, when_format, classes, label_column, problems)

    def codec(self, data: Dataset, *, levels: int = 128) -> Codec:
        """The levels of each column: its numbers, where there are at most twice as many different ones; else half of
        `levels` as its quantiles, and half evenly over its range and a quarter of that beyond at both ends."""
        if levels < 2:
            raise SegueError(f"levels={levels}: numbers are told apart by two levels at least")
        counted: dict[str, list[tuple[float, int]]] = {}
        for item, count in data.vocabulary.items():
            column, number = parted(item)
            counted.setdefault(column, []).append((number, count))
        columns = {column: tuple(map(np.array, zip(*pairs))) for column, pairs in counted.items()}
        columns = {column: columns[column] for column in order_of(data, columns)}
        column_names = set(getattr(getattr(data, "problems", None), "columns", ()))
        return LevelCodec({column: levels_of(np.repeat(numbers, counts), levels)
                           for column, (numbers, counts) in columns.items()},
                          column_names.pop() if len(column_names) == 1 and list(columns) == [""] else "")

    def reading(self, codec: Codec) -> dict[str, Any]:
        """The columns that the codec is of; of one that is alone its name, by which it is found among several."""
        columns, name = list(getattr(codec, "levels", {})), getattr(codec, "column", "")
        return {"columns": columns} if len(columns) > 1 else {"column": name} if name else {}

    def numbers(self, codec: Codec) -> np.ndarray | None:
        values, turns = np.full((codec.size, len(codec.turns())), np.nan), codec.turns()
        for column, ids in enumerate(turns):
            values[ids, column] = [parted(codec.token(id))[1] for id in ids.tolist()]
        return values if turns else None

    def write(self, objects: Iterable[Sequence[str] | Record], path: str | Path) -> None:
        """CSV, a row a moment; of several series with a column that names them. Channels are columns in front."""
        records = [obj if isinstance(obj, Record) else Record(list(obj)) for obj in objects]
        tables = [as_columns(record.object) for record in records]
        columns = list(dict.fromkeys(column for each in tables for column in each))
        channel_names = list(dict.fromkeys(name for record in records for name in record.channels))
        head = [*(["series"] if len(records) > 1 else []), *channel_names]
        with atomic_write(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as handle:
            writer = csv.writer(handle, lineterminator="\n")
            writer.writerow([*head, *(column or "value" for column in columns)])
            for number, (record, each) in enumerate(zip(records, tables), 1):
                name = [record.name or f"series{number}"] if len(records) > 1 else []
                length = max(map(len, each.values()), default=0)
                moments = [np.asarray(record.channels[side])[:: len(each)] if side in record.channels else [""] * length
                           for side in channel_names]
                filled = [np.append(each.get(column, ()), [np.nan] * (length - len(each.get(column, ()))))
                          for column in columns]
                writer.writerows([*name, *(cells[i] for cells in moments), *map(decimal, row)]
                                 for i, row in enumerate(zip(*filled)))

    def show(self, obj: Sequence[str]) -> str:
        """A line a column: its course in at most 64 bars, from its least number to its greatest."""
        lines = []
        columns = as_columns([item for item in obj if is_number(item.rpartition("=")[2])])
        widest = max(map(len, columns), default=0)
        for column, values in columns.items():
            finite = values[np.isfinite(values)]
            if not len(finite):
                continue
            low, high = finite.min(), finite.max()
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


def listed(lists: Mapping[str, Sequence[Any]]) -> list[str]:
    """The columns of lists that hold series: the only one of measured numbers, or all of numbers beside lists of times,
    unless a column is called as events are. lists: the cells of the columns of lists, by name."""
    def items(name: str) -> list[Any]:
        return [item for cell in lists[name] if isinstance(cell, list) for item in cell if item not in (None, "")]

    numbers = [name for name in lists if (values := items(name)) and all(map(is_number, values))]
    measured_lists = [name for name in numbers if measured(items(name)) or plain(name) == "target"]
    when = column_called(lists, WHEN)
    other_lists = [name for name in lists if name not in numbers and (values := items(name))
                   and not timelike(values[:100])]
    if len(measured_lists) == 1 and when is None:
        return [] if other_lists else measured_lists  # what happened, beside how long it took
    lengths = {tuple(len(cell) if isinstance(cell, list) else -1 for cell in cells) for cells in lists.values()}
    dated = [name for name in lists if timelike(items(name)[:100])]
    is_series = measured_lists and len(lengths) == 1 and (when is None or when in dated)
    return [name for name in numbers if name not in dated] if is_series and column_called(
        lists, (*WHAT, *WEAKLY)) is None else []


def says_class(name: str) -> bool:
    """Whether a column is called as one of classes."""
    return plain(name) in (*CLASSES, "target", "classes", "classlabel", "classattribute")


def order_of(data: Dataset, columns: Iterable[str]) -> list[str]:
    """These columns as they take turns: in the order of a series that is there from its beginning."""
    is_whole = getattr(data, "whole", lambda i: (True, True))
    first = next((i for i in range(len(data)) if is_whole(i)[0]), 0)
    return list(dict.fromkeys([*(parted(item)[0] for item in data[first].object), *columns]))


def _measured_times_texts(names: Sequence[str], columns: Mapping[str, Sequence[Any]],
                          numbers: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """The names of columns of measured numbers, of times and of texts. names: as the header has them, if there is one.
    numbers: the columns that hold some, of which one may be the time."""
    times = [name for name in columns if name not in numbers and (_dated(columns[name]) or (
        len(columns[name]) > 3 and _dated(columns[name][1:])))]  # behind their units
    when = time_column(names, lambda name: columns.get(name, []))
    if when is not None and when in numbers and timelike(columns[when]):
        times.append(when)
    return ([name for name in numbers if name not in times], times,
            [name for name in columns if name not in (*numbers, *times)])


def _dated(cells: Sequence[Any]) -> bool:
    """Moments or months of the calendar."""
    return timelike(cells) or all(MONTH.fullmatch(str(cell)) for cell in cells)


def _read_list_rows(frame: Frame, name: str, label_column: str | None, problems: Problems | None) -> Iterator[Record]:
    """Each cell of a column of lists is a series."""
    if problems is not None:
        problems.note = f"columns={name}, a series a row" + (f", class={label_column}" if label_column else "")
    for row, cell in enumerate(frame.columns[name].to_pylist()):
        values = np.array([np.nan if item is None else number_in(item) for item in cell or []])
        if not np.isfinite(values).any():
            bad(problems, frame.path, frame.place(row), None, f"there is no number in '{name}'; remove it")
            continue
        place = f"{frame.path}:{frame.place(row)}"
        if frame.classes is None:
            yield Record(as_elements({"": values}), name=place)
        elif has_class(problems, frame.path, frame.place(row), label_column, frame.classes[row]):
            yield Record(as_elements({"": values}), name=of_class(place, frame.classes[row]))


def _read_rows(frame: Frame, moment_columns: Sequence[str], label_column: str | None,
               problems: Problems | None) -> Iterator[Record]:
    """Each row of a table is a series. moment_columns: its moments; the other columns name it. Where this is empty, all
    columns are moments, but the one that `_class_place` finds, which is left out. label_column: the column from which
    `frame.classes` was taken."""
    columns = {name: numbers_of(frame, name) for name in moment_columns or frame.columns}
    if not any(values is not None for values in columns.values()):
        raise SegueError(f"{frame.path}: there are no numbers in this table")
    absent = np.full(len(frame.rows), np.nan)  # of a moment of which nothing is known
    numbers = {name: absent if values is None else values for name, values in columns.items()
               if values is not None or moment_columns}
    grid = np.stack(list(numbers.values()), 1)
    class_place = _class_place(grid) if not moment_columns and frame.classes is None else None
    if class_place == "last":
        grid = np.roll(grid, 1, 1)
    labels = grid[:, 0]
    others = [name for name in frame.columns if name not in numbers]
    name_columns = columns_without_numbers(frame, others) if moment_columns else []
    if problems is not None:
        class_note = f", the {class_place} number its class" if class_place else \
            f", class={label_column}" if label_column else ""
        name_note = f", named by {', '.join(name_columns)}" if name_columns else ""
        problems.note = f"a row a series{class_note}{name_note}"
    name_cells = [frame.columns[name].to_pylist() for name in name_columns]
    for row, values in enumerate(grid[:, 1:] if class_place else grid):
        finite = np.flatnonzero(np.isfinite(values))
        label = decimal(labels[row]) if class_place else "" if frame.classes is None else frame.classes[row]
        if label_column and not has_class(problems, frame.path, frame.place(row), label_column, label):
            continue
        if not len(finite):
            bad(problems, frame.path, frame.place(row), None, "there is no number in this row; remove it")
            continue
        name = ", ".join(str(cells[row]) for cells in name_cells if cells[row] is not None) or frame.place(row)
        yield Record(as_elements({"": values[: finite[-1] + 1]}), name=of_class(f"{frame.path}:{name}", label))


def _class_place(grid: np.ndarray) -> str | None:
    """Which column of (N, C) numbers is the class of each row, as in the UCR archive: "first", if it alone is of whole
    numbers; of whole numbers throughout, or where the first are not whole, the "last" if these are few and small, else
    the "first" if it is; None: neither."""
    if grid.shape[1] < 3:
        return None
    first, last = grid[:, 0], grid[:, -1]
    all_integers, first_is_integer = bool((grid == np.round(grid)).all()), bool((first == np.round(first)).all())
    if (all_integers or not first_is_integer) and _few(last, grid[:, :-1]):
        return "last"
    return "first" if (_few(first, grid[:, 1:]) if all_integers else first_is_integer) else None


def _few(numbers: np.ndarray, others: np.ndarray) -> bool:
    """Whether whole numbers (N,) may be classes beside measured ones: few, and small."""
    few = len(np.unique(numbers)) <= min(50, max(2, len(numbers) // 4)) and bool((numbers == np.round(numbers)).all())
    others_are_integers = bool((others[np.isfinite(others)] % 1 == 0).all())
    return few and (not others_are_integers or bool(3 * np.ptp(numbers) < np.nanmax(others) - np.nanmin(others)))


