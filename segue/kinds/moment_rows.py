"""Tables with a row a moment: which columns are measured, which say when, and which name the series."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from segue.errors import SegueError
from segue.kinds.base import Problems, Record, bad, check_columns, of_class, words
from segue.kinds.columns import classes_of, has_class
from segue.kinds.elements import as_elements
from segue.kinds.frame import Frame, Look, describe_roles
from segue.kinds.moments import CALLED
from segue.kinds.numbers import is_number, numbers_in
from segue.kinds.roles import ENDINGS, WHO, column_called, find_time_column, measured, plain
from segue.kinds.times import EPOCH, YEAR, Clock, lasting, of_calendar, scaled, seconds_of, span, steady, timelike

MANY = 1000  # rows by which a column is judged
SHOWN = 20  # columns that are told
COUNTERS = words("row rows rowname rownames rowid rownum rownumber index idx unnamed step no nr obs observation "
                 "instant")  # columns that may count the rows
MARKS = words("anomaly outlier changepoint label")  # columns of noughts and ones that say which moments are odd
CALENDAR = {"year": ("Y", ""), "month": ("M", "Y"), "day": ("D", "M"), "hour": ("h", "D")}  # and what each is within
PERIODS = words("month week quarter period hour minute")  # of moments, beside WHEN
# Columns that may name series, beside WHO.
SERIES = words("series unique id station sensor ticker symbol stock site city country region location parameter "
               "variable metric channel field tag store shop branch dept department warehouse plant zone meter "
               "household")


def evenly_timed(path: Path, look: Look, when: str, names: Sequence[str]) -> tuple[str, ...] | None:
    """The columns, none to two, that together name series whose times in column `when` come at one pace; None where
    times are irregular however rows are grouped."""
    import pyarrow as pa

    rows = look.as_dicts()
    rows = [row for row in rows if row.get(when) not in (None, "")]
    try:
        times = seconds_of(pa.array([str(row[when]) for row in rows]), None, path, when)
    except SegueError:
        return None
    keys = [name for name in names if naming(name, [row.get(name) for row in rows])]
    return next((columns for columns in ((), *((name,) for name in names), *combinations(keys, 2)) if _distinct_times(
        [str([row.get(name) for name in columns]) for row in rows], times, True)), None)


def same_moment(look: Look, when: str, names: Sequence[str]) -> bool:
    """Whether the first rows of a table are of one moment, and of a series each, which one or two columns name."""
    rows = look.as_dicts()
    keys = [name for name in names if naming(name, look.column(name))]
    return len(rows) > 2 and len({str(row.get(when)) for row in rows}) == 1 and len(keys) < len(names) and any(
        len({tuple(str(row.get(key)) for key in columns) for row in rows}) == len(rows)
        for size in (1, 2) for columns in combinations(keys, size))


def naming(name: str, cells: Sequence[Any]) -> bool:
    """Whether a column may name series: texts, or numbers in a column called so, but not a number for each row."""
    return (not all(map(is_number, cells)) or (_is_id_name(name) and plain(name) not in ("id", *COUNTERS))) and \
        not timelike(cells)


def _distinct_times(owners: Sequence[str], times: np.ndarray, steadily: bool = False) -> bool:
    """Whether the times of each of these are all different, and of most there are three or more. steadily: and come at
    one pace."""
    places: dict[str, list[int]] = {}
    for row, name in enumerate(owners):
        places.setdefault(name, []).append(row)
    parts = [times[rows] for rows in places.values()]
    long = [part for part in parts if len(part) > 2]
    return 2 * len(long) > len(parts) and all(len(np.unique(part)) == len(part) for part in parts) and not (
        steadily and 2 * sum(bool(np.isfinite(steady(part))) for part in long) <= len(long))


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


def columns_without_numbers(frame: Frame, names: Iterable[str]) -> list[str]:
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

    def note(self, names: Sequence[str], label_column: str | None) -> str:
        """Which columns are read as what, for users. names: of all columns. label_column: the classes', if any."""
        time_span = "" if self.times is None else span(self.times)
        if self.times is not None and np.isfinite(pace := steady(self.times[self.series[0]])):
            is_calendar = of_calendar(self.times)
            time_span += f", every {lasting(pace) if is_calendar else f'{pace:g}'}"
        roles = describe_roles([("class", label_column), ("who", self.who), ("when", self.when)],
                               [name for name in names if name not in self.numbers], time_span)
        more = f",... ({len(self.numbers)} in all)" if len(self.numbers) > SHOWN else ""
        comma = ", " if label_column or self.who or self.when else ""
        return f"columns={','.join([*self.numbers][:SHOWN])}{more}{comma}{roles}"


def read_moments(frame: Frame, chosen: list[str], column: str | None, who: str | None, when: str | None,
                 when_format: str | None, classes: str | None, label_column: str | None,
                 problems: Problems | None) -> Iterator[Record]:
    """Each row of a table is a moment."""
    frame = _without_units(frame)
    text_columns = [] if frame.headed or who or label_column else columns_without_numbers(frame, run_columns(frame))
    if len(text_columns) == 1:  # what each of the series is of
        label_column, frame.classes = text_columns[0], np.array(frame.columns[text_columns[0]].to_pylist(), object)
    moments = _find_columns(frame, chosen, column, who, when, when_format)
    labels = None if frame.classes is None else classes_of(frame.classes, moments.series, classes)
    if problems is not None:
        problems.note = moments.note(list(frame.columns), None if labels is None else label_column)
        problems.columns.append(next(iter(moments.numbers)) if len(moments.numbers) == 1 and frame.headed else "")
    element_names, times = moments.called(), moments.times
    for number, (label, rows) in enumerate(zip(moments.labels, moments.series)):
        if times is not None and np.isfinite(times[rows]).all():
            rows = rows[np.argsort(times[rows], kind="stable")]
        parts = {element_names[name]: values[rows] for name, values in moments.numbers.items()}
        if not any(np.isfinite(values).any() for values in parts.values()):
            bad(problems, frame.path, label, None, "there is no number in this series; remove it")
            continue
        name = f"{frame.path}:{label}" if label else str(frame.path)
        if problems is not None:
            problems.clock = moments.clock(rows)
        if labels is None:
            yield Record(as_elements(parts), name=name)
        elif has_class(problems, frame.path, label, label_column, labels[number]):
            yield Record(as_elements(parts), name=of_class(name, labels[number]))


def _find_columns(frame: Frame, chosen: list[str], column: str | None, who: str | None, when: str | None,
                  when_format: str | None) -> _Moments:
    """What the columns are: those that were named, else found; a SegueError for names that are not there. See
    `Series.read` for the options."""
    column_list = ", ".join(frame.columns)
    chosen = _requested_columns(frame, chosen, who, when)
    when_requested, who_requested = when is not None, who is not None
    if when is None and (frame.headed or len(frame.columns) > 1):
        when = find_time_column(frame, [name for name in frame.columns if name not in (*chosen, who)])
    names = list(frame.columns)
    if when is None and not frame.headed and len(names) > 1 and who is None and names[0] not in chosen and \
            (first := numbers_of(frame, names[0])) is not None and says_when(first):
        when = names[0]
    numbers = {name: values for name in (chosen or [name for name in names if name != who])
               if (values := numbers_of(frame, name)) is not None}
    if missing := [name for name in chosen if name not in numbers]:
        raise SegueError(f"{frame.path}: column '{missing[0]}' holds no numbers; there are {column_list}")
    if when is None:
        when = next((name for name in names if name not in (*numbers, who) and
                     timelike(frame.columns[name][:100].to_pylist())), None)
    if who is None:
        texts = [name for name in names if name not in numbers and name != when and
                 not (chosen and numbers_of(frame, name) is not None)]
        who = "series" if "series" in names else column_called(texts, [*WHO, *SERIES]) if frame.headed else None
    if who is None and not frame.headed and (runs := run_columns(frame)) and not {*runs} & {*chosen}:
        next_column = next(name for name in frame.columns if name not in runs)
        who = _joined_columns(frame, runs)
        numbers = {name: values for name, values in numbers.items() if len(runs) == 1 or name not in runs}
        if when is None and next_column not in chosen and \
                _is_time_of_runs(numbers_of(frame, next_column), frame.columns[who].to_pylist()):
            when = next_column
    if who is None and when is not None:
        others = [name for name in names if name not in (*texts, *chosen)]
        who = _naming_columns(frame, when, when_format, [*texts, *others])
    if who is not None and not who_requested and 1 < len(frame.rows) < 2 * len(frame.columns[who].unique()) and (
            when is None or len(frame.columns[who].unique()) == len(frame.rows)):
        who = None  # a name for each row, of a city or so
    labels, series = _split_series(frame, who)
    times = None if when is None else _seconds_of_rows(frame, when, when_format, when_requested, series)
    when = None if times is None else when
    numbers = {name: values for name, values in numbers.items() if name not in (who, when) and name in frame.columns}
    if not chosen:
        numbers = _measurements(numbers, times)
    if not numbers:
        raise SegueError(f"{frame.path}: there are no numbers here (columns: {column_list}); name some with columns=")
    if column is not None and not chosen and len(numbers) > 1:
        if column not in numbers:
            raise SegueError(f"{frame.path}: there is no column '{column}' of numbers, which the model was fitted on; "
                             f"there are {', '.join(numbers)}: name one with columns=")
        numbers = {column: numbers[column]}
    return _Moments(numbers, who, when, times, labels, series)


def _requested_columns(frame: Frame, chosen: Iterable[str], who: str | None, when: str | None) -> list[str]:
    """The names of the columns to read: a text may name several, with commas between, and 'x1' is column 1 of a table
    without a header. A SegueError where one of these, `who` or `when` is not in the table."""
    names = list(frame.columns)
    separate = [name for part in chosen for name in ([part] if part in names else part.split(","))]
    requested = [name[1:] if name not in names and name[1:] in names and name == f"x{name[1:]}" else name
                 for name in separate]
    check_columns(frame.path, (*requested, *filter(None, (who, when))), names)
    return requested


def _joined_columns(frame: Frame, names: Sequence[str]) -> str:
    """Add a column of the cells of these columns with commas between, if there are several; its name."""
    import pyarrow as pa

    joined = " ".join(names)
    if len(names) > 1:
        frame.columns[joined] = pa.array(map(", ".join, zip(*(map(str, frame.columns[name].to_pylist())
                                                              for name in names))))
    return joined


def _split_series(frame: Frame, who: str | None) -> tuple[list[str], list[np.ndarray]]:
    """The label of each series and the numbers of its rows, in the order of their first rows; one series with all
    rows and no label where no column names series."""
    groups, labels = np.zeros(len(frame.rows), dtype=np.int64), [""]
    if who is not None:
        index: dict[str, int] = {}
        groups = np.array([index.setdefault(str(cell), len(index)) for cell in frame.columns[who].to_pylist()])
        labels = list(index)
    order = np.argsort(groups, kind="stable")
    return labels, np.split(order, np.searchsorted(groups[order], np.arange(1, len(labels))))


def _measurements(numbers: Mapping[str, np.ndarray], times: np.ndarray | None) -> dict[str, np.ndarray]:
    """Columns of numbers without those that count rows, number things, mark anomalies or repeat the time; all of them
    where none would be left."""
    kept = {name: values for name, values in numbers.items() if not counts_rows(name, values)
            and not ((_is_id_name(name) or name == "1") and _constant(values)) and not _marks_anomalies(name, values)
            and not (times is not None and repeats_time(name, values, times))}
    return kept or dict(numbers)


def run_columns(frame: Frame) -> list[str]:
    """The first columns of a table without a header that name its series: texts or whole numbers that stay the same
    for many rows, one series behind the other; before columns of measured numbers."""
    naming_columns = []
    for name in frame.columns:
        cells = frame.columns[name].to_pylist()
        changes = sum(a != b for a, b in zip(cells, cells[1:]))
        if not 0 < 8 * changes < len(cells) or measured(cells[:MANY]) or timelike(cells[:MANY]):
            break
        naming_columns.append(name)
    others = [name for name in frame.columns if name not in naming_columns]
    return naming_columns if any(measured(frame.columns[name][:MANY].to_pylist()) for name in others) else []


def _is_time_of_runs(values: np.ndarray | None, owners: Sequence[Any]) -> bool:
    """Whether a column says when: it grows within each series, and counts its rows anew or holds moments."""
    if values is None:
        return False
    starts = np.array([a != b for a, b in zip(owners, owners[1:])])
    gaps = np.diff(values)
    restarts = bool((gaps[~starts] == 1).all()) and len(np.unique(values[1:][starts])) == 1
    return restarts or (bool((values >= EPOCH).all()) and 50 * (gaps[~starts] < 0).sum() < len(gaps))


def _naming_columns(frame: Frame, when: str, when_format: str | None, names: Sequence[str]) -> str | None:
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
    candidates = [name for name in names if name != when and not measured(frame.columns[name][:1000].to_pylist())
                  and (dated or _is_id_name(name) or numbers_of(frame, name) is None)]
    cells = {name: list(map(str, frame.columns[name].to_pylist())) for name in names}
    candidates += [name for name in names
                   if name not in (*candidates, when) and _distinct_times(cells[name], times, True)]
    if single := next((name for name in candidates if _distinct_times(cells[name], times)), None):
        return single
    candidates.sort(key=list(frame.columns).index)
    for pair in combinations([name for name in candidates if naming(name, cells[name][:1000])], 2):
        joined = list(map(", ".join, zip(*(cells[name] for name in pair))))
        if _distinct_times(joined, times):
            frame.columns[" ".join(pair)] = pa.array(joined, pa.string())
            for name in pair:
                frame.columns.pop(name)
            return " ".join(pair)
    return None


def _seconds_of_rows(frame: Frame, when: str, when_format: str | None, requested: bool,
                     series: Sequence[np.ndarray]) -> np.ndarray | None:
    """Seconds of each row; None where a column that nobody asked for does not say when: names of weekdays, or numbers
    that come again in one of the series, such as the day of a month."""
    column = frame.columns[when]
    moments = requested or timelike(column[:100].to_pylist())
    try:
        times = seconds_of(column, when_format, frame.path, when)
    except SegueError:
        if moments or when_format is not None:
            raise
        return None
    plain = not moments and numbers_of(frame, when) is not None
    return None if plain and any(len(np.unique(times[rows])) < len(rows) for rows in series) else times


def _is_id_name(name: str) -> bool:
    """Whether a column is called as one that numbers things."""
    return plain(name).endswith(ENDINGS[1:]) or column_called([name], [*WHO, *SERIES]) is not None


def _constant(values: np.ndarray) -> bool:
    """The same whole number in every row, as that of a station."""
    finite = values[np.isfinite(values)]
    is_constant = len(values) > 1 and len(finite) == len(values) and bool((finite == finite[0]).all())
    return is_constant and float(finite[0]).is_integer()


def says_when(values: np.ndarray) -> bool:
    """Whether the first numbers (N,) of rows without a header say when: they rise from row to row, as moments of the
    calendar or at a pace other than that of counting."""
    if len(values) < 8 or not (np.diff(values) > 0).all():
        return False
    pace = steady(values)
    return timelike(values[:100].tolist()) or (bool(np.isfinite(pace)) and not (
        pace == 1 and bool((values == np.round(values)).all())))


def repeats_time(name: str, values: np.ndarray, times: np.ndarray) -> bool:
    """Whether a column says the year, month, day or hour of the times (N,) that another column says, or these again: as
    years with fractions, or so much later or earlier in each row."""
    finite = np.isfinite(times) & np.isfinite(values)
    if not finite.any() or not of_calendar(times):
        return False
    years, others = values[finite] - times[finite] / YEAR - 1970, scaled(values[finite])
    if np.abs(years).max() < 0.1 and (values[finite] % 1 > 0).any():
        return True
    if len(others) > 2 and of_calendar(others) and np.ptp(others - times[finite]) < 0.01:
        return True
    part = next((part for part, aliases in CALLED.items() if plain(name) in aliases), None)
    if part not in CALENDAR:
        return False
    moments = np.round(times[finite]).astype("M8[s]")
    unit, larger = CALENDAR[part]
    truncated = moments.astype(f"M8[{unit}]")
    number = truncated.astype(int) + 1970 if part == "year" else \
        (truncated - moments.astype(f"M8[{larger}]")).astype(int)
    return bool(np.isin(values[finite] - number, (0, 1)).mean() > 0.95)


def _marks_anomalies(name: str, values: np.ndarray) -> bool:
    """A column that marks some moments as odd, as benchmarks of anomalies have it: no measurement."""
    return plain(name).removeprefix("is") in MARKS and bool(np.isin(values, (0, 1)).all())


def counts_rows(name: str, values: np.ndarray) -> bool:
    """A column that counts the rows."""
    plain = re.sub(r"[^a-z]", "", name.lower())
    counting = len(values) > 1 and float(values[0]).is_integer() and bool((np.diff(values) == 1).all())
    return counting and (plain in ("", *COUNTERS) or _is_id_name(name))
