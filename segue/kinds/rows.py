"""Tables whose rows stand alone: flowers with their measures, people with their answers, each row a thing of its own.

No column says when, neighbours are not alike, and nothing happens to anybody: else see `segue.kinds.series` and
`segue.kinds.table`. A table of which nothing else is known is read so too.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from segue.errors import SegueError
from segue.files import atomic_write
from segue.kinds.base import Dataset, Kind, Problems, Record, head_of, looks_binary, of_class, words
from segue.kinds.codecs import MISSING, CellCodec, Codec, decimal
from segue.kinds.columns import class_column, class_of, has_class, look, says_few
from segue.kinds.frame import DELIMITED, JSON, PARQUET, Frame, Look, glance, is_parquet, is_tabular, load_table
from segue.kinds.frame import number as is_number
from segue.kinds.moment_rows import counts_rows, numbers_of, says_when
from segue.kinds.numbers import likeness, number_in
from segue.kinds.packed import actual, bare
from segue.kinds.roles import (
    WHAT,
    WHO,
    addresses,
    are_wordy,
    column_called,
    has_merged_cells,
    is_growing,
    measured,
    numbered,
    time_column,
    with_joined_times,
)
from segue.kinds.series import says_class
from segue.kinds.table import in_blocks
from segue.kinds.text_columns import text_columns
from segue.kinds.times import timelike
from segue.kinds.wide import number_grid, wide

MOST = 128  # columns; a row of more is a series, or a picture
FEWEST = 3  # columns, but of numbers, some of them measured, 2
MANY = 50  # rows by which a column is judged
IDENTIFIERS = words("fips zip zipcode postcode geoid iata icao iso iso2 iso3 code key rank")  # beside ids and numbers
PLACES = (words("lat lon"), words("lat lng"), words("lat long"), words("latitude longitude"))
ALIKE = 0.3  # more than that rows are to the next where they are moments
NONE = {"", "?", "NA", "N/A", "na", "n/a", "nan", "NaN", "null", "None", "-"}


class Rows(Kind):
    """Each row of a table is an object: a list of its cells (str), each with its column before it ("age=39",
    "sex=female"), "?" where there is none; the column that says the class comes last. The unit is the value."""

    name = "rows"
    unit = "value"
    storage = "items"
    split_by = "content"
    decoder = "sample"

    def sniff(self, path: Path, head: bytes) -> float:
        if not is_parquet(head) and (not is_tabular(path) or looks_binary(head)):
            return 0.0
        table = glance(path, head)
        has_table_suffix = path.suffix.lower() in DELIMITED | JSON | PARQUET
        if table is None or not (has_table_suffix or table.regular) or in_blocks(table, head):
            return 0.0
        return 0.845 if stand_alone(table) else fallback_score(table, has_table_suffix)

    def read(self, path: Path, problems: Problems | None = None, *, columns: Sequence[str] = (),
             classes: str | None = None, encoding: str = "utf-8") -> Iterator[Record]:
        """One record a row. columns: those to read, in this order; else all but one that counts the rows and those that
        hold another text in nearly each. classes: the column that says of which class each row is, which its name then
        tells ("": one called so, else the last or first that says few things over and over)."""
        chosen = [columns] if isinstance(columns, str) else list(columns)
        frame = load_table(path, Problems() if problems is None else problems, encoding, (classes, *chosen))
        if any("list" in str(column.type) for column in frame.columns.values()):
            raise SegueError(f"{path}: cells of this table are lists, so rows are no lists of plain values: read it as "
                             "events, series or text")
        if not frame.headed:
            frame.columns = {f"x{name}" if name.isdigit() else name: cells for name, cells in frame.columns.items()}
        columns_by_name = {" ".join(name.replace("=", " ").split()) or "x": name for name in frame.columns}
        label_column = class_of_rows(frame, classes)
        cells = informative_columns(frame, columns_by_name, label_column) if not chosen else {
            name: cells_of(frame, column) for name, column in columns_by_name.items() if name in chosen}
        if missing := [name for name in chosen if name not in cells and name != label_column]:
            if len(missing) > len(chosen) // 2:
                raise SegueError(f"{path}: there is no column '{missing[0]}'; there are {', '.join(columns_by_name)}")
            if problems is not None:
                problems.refuse(path, f"there is no column {', '.join(missing)}: rows are read without")
        labels = None
        if classes is not None and label_column is not None:
            cells = {name: values for name, values in cells.items() if columns_by_name[name] != label_column}
            labels = list(map(class_of, frame.columns[label_column].to_pylist()))
        order = sorted(cells, key=chosen.index if chosen else lambda name: columns_by_name[name] == label_column)
        only_class = not chosen and [columns_by_name[name] for name in order] == [label_column]
        if not order or only_class:
            besides = f" but '{label_column}'" if order else ""
            raise SegueError(f"{path}: no column of this table{besides} says anything that comes again or is a number "
                             f"(columns: {', '.join(columns_by_name)}); name some with columns=")
        if problems is not None:
            unread = [name for name in columns_by_name if name not in cells and columns_by_name[name] != label_column]
            problems.note = describe_columns(order, label_column, classes is not None, unread)
        for i, row in enumerate(zip(*(cells[name] for name in order))):
            name = f"{path}:{frame.place(i)}"
            if labels is not None:
                if not has_class(problems, path, frame.place(i), label_column, labels[i]):
                    continue
                name = of_class(name, labels[i])
            yield Record([f"{column}={cell}" for column, cell in zip(order, row)], name=name)

    def read_all(self, paths: list[Path], problems: Problems, named: frozenset[Path],
                 **options: Any) -> Iterator[Record]:
        """As `Kind.read_all`, but of all files the columns of that are read which has most of them; it comes first."""
        for path in sorted(paths, key=_width, reverse=True):
            for record in super().read_all([path], problems, named, **options):
                if not options.get("columns"):
                    options["columns"] = [item.partition("=")[0] for item in record.object]
                yield record

    def codec(self, data: Dataset, *, levels: int = 32) -> Codec:
        """Of each column that holds more than ten different numbers `levels` of them, its quantiles (all, where there
        are at most twice as many); of others what they say, the thousand commonest things at most."""
        if levels < 2:
            raise SegueError(f"levels={levels}: numbers are told apart by two levels at least")
        counts_by_column: dict[str, dict[str, int]] = {}
        for obj in islice(data.objects(), MANY):
            for item in obj:
                counts_by_column.setdefault(item.partition("=")[0], {})
        for item, count in data.vocabulary.items():
            column, _, cell = str(item).partition("=")
            counts_by_column.setdefault(column, {})[cell] = count
        return CellCodec({column: values_of(cell_counts, levels) for column, cell_counts in counts_by_column.items()})

    def reading(self, codec: Codec) -> dict[str, Any]:
        return {"columns": list(codec.columns)} if isinstance(codec, CellCodec) else {}

    def numbers(self, codec: Codec) -> np.ndarray | None:
        """A column for each of measured numbers, and for each thing that another says one of 1 and 0."""
        return codec.numbers() if isinstance(codec, CellCodec) else None

    def write(self, objects: Iterable[Sequence[str] | Record], path: str | Path) -> None:
        """CSV with a header, a row a row."""
        rows = [dict(item.split("=", 1) for item in (obj.object if isinstance(obj, Record) else obj) if "=" in item)
                for obj in objects]
        columns = list(dict.fromkeys(column for row in rows for column in row))
        with atomic_write(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as handle:
            writer = csv.writer(handle, lineterminator="\n")
            writer.writerow(columns)
            writer.writerows([row.get(column, MISSING) for column in columns] for row in rows)

    def show(self, obj: Sequence[str]) -> str:
        return ", ".join(obj)

    def normalise(self, obj: Any, known: Collection[str] = ()) -> list[str]:
        """Cells; or a text of them, a comma or a blank before each column's name; or a mapping."""
        if isinstance(obj, bytes):
            obj = obj.decode("utf-8", "replace")
        if isinstance(obj, Mapping):
            obj = [f"{column}={MISSING if cell is None else cell}" for column, cell in obj.items()]
        if isinstance(obj, str):
            obj = re.split(r"\s*[,;→]\s*(?=[^,;=]+=)", obj.strip(" ,;→")) if "=" in obj else obj.split(",")
        items = [str(item).strip() for item in obj]
        if invalid := next((item for item in items if "=" not in item), None):
            raise SegueError(f"{invalid!r:.60} is no cell of a row: give column=value")
        return items


def _width(path: Path) -> tuple[int, int]:
    """How many columns the beginning of a file has, and its size in bytes; (0, 0) of one that cannot be read."""
    with suppress(SegueError, OSError):
        table = glance(bare(path), head_of(path))
        return len(table.names) if table else 0, actual(path).stat().st_size
    return 0, 0


def describe_columns(order: Sequence[str], label_column: str | None, taken: bool, skipped: Sequence[str]) -> str:
    """How a table was understood."""
    more = f",... ({len(order)} in all)" if len(order) > 20 else ""
    last = f", class={label_column}" + ("" if taken else " (last)") if label_column else ""
    unread = f"; not read: {', '.join(skipped[:8])}" if skipped else ""
    unread += f" and {len(skipped) - 8} more" if len(skipped) > 8 else ""
    return f"each row by itself, columns={','.join(order[:20])}{more}{last}{unread}"


def stand_alone(table: Look) -> bool:
    """Whether the rows of a table are things of their own, by its beginning."""
    if not 2 <= len(table.names) <= MOST or len(table.rows) < 8 or has_merged_cells(table):
        return False
    columns = {name: cells for name in table.names if (cells := table.column(name)) and not (
        table.headed and plain_id(name) and is_identifier(name, cells))}
    if len(columns) < 2 or any(
            isinstance(cell, list | dict) for cells in columns.values() for cell in cells):
        return False
    numbers = [name for name, cells in columns.items() if _holds_numbers(cells)]
    texts = [name for name in columns if name not in numbers]
    times = [name for name in columns if timelike(columns[name])]
    prose = [name for name in texts if name not in times and (
        are_wordy(columns[name]) or len(set(map(str, columns[name]))) > len(table.rows) / 2)]
    if table.form == "delimited" and table.delimiter == " " and len(texts) >= len(numbers) and not all(
            numbers and re.fullmatch(r"[A-Z]\d+", cell) for name in texts for cell in columns[name]):
        return False  # words of sentences, and no codes
    if len(columns) < (2 if len(numbers) > 1 and any(measured(columns[name]) for name in numbers) else FEWEST) or \
            addresses(table) or len(prose) > min(2, len(numbers) / 3) or (
                prose and prose == text_columns(table) and (len(numbers) < 3 or _are_long(columns[prose[0]]))):
        return False
    names = table.names if table.headed else []
    when = time_column(names, lambda name: columns.get(name, []))
    ranks = [np.unique(list(map(str, columns[name])), return_inverse=True)[1].tolist() for name in times]
    identified = any(plain_id(name) and name not in columns for name in table.names)
    places = _has_places(columns) and (not times or (identified and not any(map(_rises, ranks))))
    if not places and (times or (when is not None and _rises(list(map(number_in, columns[when]))))):
        return False
    joined = with_joined_times(table)
    if joined is not table and is_growing(joined.column(joined.names[-1])):
        return False
    if not table.headed and table.names[0] in numbers and says_when(number_grid(table, table.names[:1])[:, 0]):
        return False
    if table.headed and column_called(names, WHO) and (column_called(names, WHAT) or sum(map(numbered, names)) > 1):
        return False
    if not table.headed and ((len(columns) < 4 and not _measures_and_class(columns, table)) or
                             (_ids(columns, table) and len(columns) < 6)):
        return False  # who did what
    if wide(table, [name for name in names if says_class(name)]):
        return False
    if places:
        return True
    if (not table.headed and len(numbers) >= 16 and not texts and _is_smooth_along_rows(table, numbers)):
        return False
    named = [name for name in prose if len(set(columns[name])) == len(table.rows)]  # a car, a state
    return bool(named and table.headed) or len(texts) - len(prose) > 2 or not _rows_are_moments(table, numbers)


def fallback_score(table: Look, has_table_suffix: bool) -> float:
    """How surely a table is read row by row where nothing speaks for another kind: more surely with two columns of
    numbers than with names that come again. has_table_suffix: the file is called as tables are."""
    if not 2 <= len(table.names) <= MOST or len(table.rows) < 4 or text_columns(table):
        return 0.0
    columns = {name: cells for name in table.names if (cells := table.column(name))}
    if any(isinstance(cell, list | dict) for cells in columns.values() for cell in cells):
        return 0.0
    columns = {name: cells for name, cells in columns.items() if not is_identifier(name, cells)}
    numbers = [name for name, cells in columns.items() if _holds_numbers(cells)]
    repeating = [name for name, cells in columns.items() if name not in numbers and len(set(cells)) < len(cells)]
    if len(numbers) + len(repeating) < (2 if table.headed else 4):
        return 0.0
    if not has_table_suffix and table.headed:  # more surely than a text by its name, less than times speak for a series
        return 0.805 if len(numbers) > 1 and table.delimiter != " " else 0.0
    if not has_table_suffix and (table.delimiter == " " or len(numbers) < 3):
        return 0.0
    return 0.55 if table.headed and len(numbers) > 1 else 0.42


def is_identifier(name: str, cells: Sequence[Any]) -> bool:
    """Whether a column gives each row a name or number of its own: it is called so, and none comes again."""
    has_id_name = plain_id(name) or numbered(name) or name.strip().lower() in IDENTIFIERS
    return has_id_name and len(set(map(str, cells))) == len(cells) and not measured(cells)


def _are_long(cells: Sequence[Any]) -> bool:
    """Sentences, of more than ten words on average, and no names of what the rows are."""
    return sum(len(str(cell).split()) for cell in cells) > 10 * len(cells)


def _holds_numbers(cells: Sequence[Any]) -> bool:
    filled = [cell for cell in cells if str(cell).strip() not in NONE]
    return bool(filled) and all(np.isfinite(number_in(cell)) for cell in filled)


def _has_places(columns: Mapping[str, Sequence[Any]]) -> bool:
    """Whether there are columns of latitudes and longitudes: without times, or where each has its number and the times
    are in no order, these are places, not a way."""
    by_name = {name.strip().lower(): cells for name, cells in columns.items()}
    return any(set(pair) <= by_name.keys() and all(_holds_numbers(by_name[name]) for name in pair) for pair in PLACES)


def _rises(numbers: Sequence[float]) -> bool:
    """Whether numbers never fall, as times do not; or come again and again, as those of several series."""
    finite = [number for number in numbers if np.isfinite(number)]
    falls = sum(b < a for a, b in zip(finite, finite[1:]))
    return len(set(finite)) > 1 and falls * 3 <= len(finite) // 3


def _measures_and_class(columns: Mapping[str, Sequence[Any]], table: Look) -> bool:
    """Whether one column says the class and all others are measured."""
    label = likely_class(table)
    return label is not None and all(measured(cells) for name, cells in columns.items() if name != label)


def _ids(columns: Mapping[str, Sequence[Any]], table: Look) -> bool:
    """Whether the first two columns are whole numbers or ids, and the first name comes again."""
    first, second = list(columns.values())[:2]
    return not measured(first) and not measured(second) and 1 < len(set(first)) < len(first)


def _grid(table: Look, numbers: Sequence[str]) -> np.ndarray:
    """(N, C) of the columns of numbers, what is missing at its column's mean; constant columns are left out."""
    grid = number_grid(table, numbers)
    grid = grid[:, np.isfinite(grid).any(0)]
    grid = np.where(np.isfinite(grid), grid, np.nanmean(grid, 0, keepdims=True) if grid.size else 0)
    return grid[:, grid.std(0) > 0]


def _is_smooth_along_rows(table: Look, numbers: Sequence[str]) -> bool:
    """Whether rows are alike along them."""
    grid = _grid(table, numbers)
    return grid.size > 0 and likeness(grid)[0] > 0.4


def _rows_are_moments(table: Look, numbers: Sequence[str]) -> bool:
    """Whether rows resemble the one before, as moments do: the autocorrelation at lag 1 of the ranks in each column, in
    the mean over columns, is above ALIKE. Where a column says classes, the rows of each class are taken by themselves
    and weighted by their number."""
    grid = _grid(table, numbers)
    if not grid.size or len(grid) < 8 or _is_grouped(grid):
        return False
    keys = (grid == np.round(grid)).all(0) & (np.diff(grid, axis=0) > 0).all(0)  # by which rows were sorted
    grid = grid[:, ~keys] if not keys.all() else grid
    groups = _groups(table)
    correlations, counts = list[float](), list[int]()
    for rows in groups:
        group = grid[rows]
        group = group[:, np.ptp(group, 0) > 0]
        if len(group) < 8 or not group.size:
            continue
        ranks = np.stack([np.unique(column, return_inverse=True)[1] for column in group.T], 1).astype(float)
        ranks -= ranks.mean(0)
        correlations.append(float(((ranks[1:] * ranks[:-1]).sum(0) / (ranks ** 2).sum(0)).mean()))
        counts.append(len(group))
    mean = sum(r * count for r, count in zip(correlations, counts)) / sum(counts) if counts else 0.0
    return mean > ALIKE


def _is_grouped(grid: np.ndarray) -> bool:
    """Whether rows (N, C) stand in groups that share several columns, as houses those of their town: three columns or
    more seldom change, and where one does the others do."""
    changes = grid[1:] != grid[:-1]
    slow = changes[:, 2 * changes.sum(0) < len(changes)]
    return slow.shape[1] > 2 and 2 * slow.any(1).sum() < slow.sum()


def _groups(table: Look) -> list[np.ndarray]:
    """The rows of each class, where a column says few things; else all."""
    all_rows = np.arange(len(table.rows))
    name = likely_class(table)
    if name is None:
        return [all_rows]
    place = table.names.index(name)
    cells = np.array([str(row[place]) if place < len(row) else "" for row in table.rows])
    return [np.flatnonzero(cells == each) for each in np.unique(cells)]


def likely_class(table: Look) -> str | None:
    """The column that says the class: one called so, else the last or the first that says few things over and over, in
    words, or noughts and ones, where columns have names."""
    if named := class_column(Path(), table, ""):
        return named
    candidates = [table.names[-1], table.names[0]] if table.names else []
    for name in candidates:
        cells = table.column(name)
        constant = len(set(map(str, cells))) == 1 and len(cells) >= 8
        numbers = table.headed and _holds_numbers(cells) and {*map(number_in, cells)} != {0, 1}
        if cells and not numbers and (says_few(cells) or constant):
            return name
    return None


def class_of_rows(frame: Frame, requested: str | None) -> str | None:
    """The column that says classes, see `Rows.read`."""
    if requested:
        return class_column(frame.path, look(frame), requested)
    step = max(1, len(frame.rows) // 1000)  # classes often stand one behind the other
    sample = Frame(frame.path, {name: column.take(np.arange(0, len(frame.rows), step)[:1000])
                                for name, column in frame.columns.items()}, frame.headed, frame.rows[::step][:1000])
    cells = [[cell.strip() if isinstance(cell, str) else cell for cell in column.to_pylist()]
             for column in sample.columns.values()]
    return likely_class(Look(list(frame.columns), [list(row) for row in zip(*cells)], frame.headed))


def informative_columns(frame: Frame, columns_by_name: Mapping[str, str],
                        label_column: str | None) -> dict[str, list[str]]:
    """The cells of all columns but those that count or name the rows or are the same in each."""
    informative = {}
    for name, column in columns_by_name.items():
        values, cells = numbers_of(frame, column), cells_of(frame, column)
        filled = [cell for cell in cells if cell != MISSING]
        names = values is None and len(filled) >= MANY and 2 * len(set(filled)) > len(filled)
        counts = values is not None and len(values) >= MANY and (counts_rows(name, values) or ((
            numbered(name) or plain_id(name)) and 2 * len(set(filled)) > len(filled)))
        empty = len(cells) >= MANY and len(set(cells)) == 1
        if column == label_column or not (names or counts or empty):
            informative[name] = cells
    return informative


def plain_id(name: str) -> bool:
    """Whether a column is called as what numbers rows."""
    return name.strip().lower() in ("id", "no", "index", "row", "rownames", "rowname", "unnamed: 0")


def cells_of(frame: Frame, column: str) -> list[str]:
    """The cells of a column as they stand in elements: numbers with seven digits, MISSING where there is none."""
    numbers, cells = numbers_of(frame, column), frame.columns[column].to_pylist()
    coded = numbers is not None and any(re.match(r"0\d", str(cell).strip()) for cell in cells[:1000])
    if numbers is not None and not coded:
        return [decimal(number) if np.isfinite(number) else MISSING for number in numbers.tolist()]
    texts = {cell: _cell(cell) for cell in set(cells)}
    return [texts[cell] for cell in cells]


def _cell(cell: Any) -> str:
    """A text as it stands in an element: on one line, its first 80 signs."""
    text = "" if cell is None else " ".join("".join(c if c.isprintable() else " " for c in str(cell)).split())
    return MISSING if text in NONE else text[:80]


def values_of(counts: Mapping[str, int], levels: int) -> list[float] | list[str]:
    """The values that a column may take in the codec, see `Rows.codec`: its numbers in ascending order, or quantiles of
    them, or its texts, the most frequent first."""
    counts = {cell: count for cell, count in counts.items() if cell != MISSING}
    numbers = np.array([number_in(cell) if is_number(cell) else np.nan for cell in counts])
    if len(counts) > 10 and np.isfinite(numbers).all():
        different = np.unique(numbers)
        if len(different) > 2 * levels:
            all_of = np.repeat(numbers, list(counts.values()))
            different = np.unique(np.quantile(all_of, (np.arange(levels) + 0.5) / levels, method="nearest"))
        return sorted({float(decimal(number)) for number in different.tolist()})
    return sorted(counts, key=lambda cell: (-counts[cell], cell))[:1000]


