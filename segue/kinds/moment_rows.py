"""Tables with a row a moment: which columns are measured, which say when, and which name the series."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from segue.errors import SegueError
from segue.kinds.base import Problems, Record, bad, of_class, words
from segue.kinds.columns import classes_of, has_class
from segue.kinds.elements import as_elements
from segue.kinds.frame import Frame, Look, describe_roles
from segue.kinds.moments import CALLED
from segue.kinds.numbers import is_number, numbers_in
from segue.kinds.roles import ENDINGS, WHO, column_called, find_time_column, measured, plain
from segue.kinds.times import EPOCH, Clock, lasting, of_calendar, seconds_of, span, steady, timelike

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


def paced(path: Path, look: Look, when: str, names: Sequence[str]) -> tuple[str, ...] | None:
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

    def note(self, names: Sequence[str], of: str | None) -> str:
        """Which columns are read as what; names: all there are, of: where classes were found."""
        between = "" if self.times is None else span(self.times)
        if self.times is not None and np.isfinite(pace := steady(self.times[self.series[0]])):
            real = of_calendar(self.times)
            between += f", every {lasting(pace) if real else f'{pace:g}'}"
        roles = describe_roles([("class", of), ("who", self.who), ("when", self.when)],
                               [name for name in names if name not in self.numbers], between)
        more = f",... ({len(self.numbers)} in all)" if len(self.numbers) > SHOWN else ""
        comma = ", " if of or self.who or self.when else ""
        return f"columns={','.join([*self.numbers][:SHOWN])}{more}{comma}{roles}"


def read_moments(frame: Frame, chosen: list[str], column: str | None, who: str | None, when: str | None,
                 when_format: str | None, classes: str | None, of: str | None,
                 problems: Problems | None) -> Iterator[Record]:
    """Each row of a table is a moment."""
    frame = _without_units(frame)
    sorts = [] if frame.headed or who or of else columns_without_numbers(frame, run_columns(frame))
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
            yield Record(as_elements(parts), name=name)
        elif has_class(problems, frame.path, label, of, said_of[number]):
            yield Record(as_elements(parts), name=of_class(name, said_of[number]))


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
        when = find_time_column(frame, [name for name in names if name not in (*chosen, who)])
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
        who = "series" if "series" in names else column_called(texts, [*WHO, *SERIES]) if frame.headed else None
    if who is None and not frame.headed and (runs := run_columns(frame)) and not {*runs} & {*chosen}:
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


def run_columns(frame: Frame) -> list[str]:
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
    return plain(name).endswith(ENDINGS[1:]) or column_called([name], [*WHO, *SERIES]) is not None


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
