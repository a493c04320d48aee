"""Interactions and event logs: tables of who did what when, and logs of one case a line."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from segue.errors import SegueError
from segue.files import atomic_write, write_text
from segue.kinds.base import HEAD, Dataset, Kind, Problems, Record, bad, check_columns, of_class
from segue.kinds.codecs import Codec, ItemCodec
from segue.kinds.columns import classes_of, has_class, take_classes
from segue.kinds.frame import (
    DELIMITED,
    JSON,
    PARQUET,
    Frame,
    Look,
    are_ids,
    are_times_by_line,
    describe_roles,
    glance,
    is_array,
    is_parquet,
    is_tabular,
    listed,
    load_table,
)
from segue.kinds.games import as_pgn, moves_in
from segue.kinds.roles import (
    THAT,
    THIS,
    WEAKLY,
    WHAT,
    WHEN,
    WHO,
    Roles,
    addresses,
    are_amounts,
    are_numbers_of,
    are_things,
    are_wordy,
    column_called,
    counts_up,
    find_roles,
    guess_who_and_what,
    has_merged_cells,
    has_roles,
    measured,
    names_the_same,
    numbered,
    time_column,
    time_column_by_place,
    with_joined_times,
)
from segue.kinds.text_columns import text_columns
from segue.kinds.times import seconds_of, span, steady, timelike, written

OCEL = {"ocel:activity", "ocel:timestamp"}  # columns of an object-centric log
BETWEEN = re.compile(r"\s*[→,]\s*|\s+")  # what may stand between items that somebody types
LONG_ID = re.compile(r"(?=.*\d)[\w-]{8,}")  # SOAKIMP12A8C13995
LONGEST = 40  # words of an item


class Events(Kind):
    """Who did what, when: tables (CSV, TSV and other delimited text, JSON Lines, a JSON array, Parquet, XES logs) with
    a row an event, or a row a whole sequence. An object is the list of one entity's items (str), its unit the event.

    The columns are found from names and contents, or named (see `read`). A row without one of them is stepped over and
    told; a table in which they cannot be found is a SegueError that lists its columns.
    """

    name = "events"
    unit = "event"
    storage = "items"
    written = (".csv", ".tsv", ".jsonl", ".pgn", ".txt")
    split_by = "entity"
    advisor = "neighbours of items"

    def sniff(self, path: Path, head: bytes) -> float:
        suffix = path.suffix.lower()
        if suffix == ".xes":
            return 0.9 if b"<log" in head else 0.0
        if is_array(head):
            return 0.9
        if not is_tabular(path) and not is_parquet(head):
            return 0.0
        if suffix not in JSON | PARQUET and b"\0" not in head and are_times_by_line(_whole_lines(head)):
            return 0.87
        table = with_lists(glance(path, head))
        if table is None:
            return 0.9 if suffix in PARQUET or is_parquet(head) else 0.0
        single, table = set(table.names), with_joined_times(table) if table.headed else table
        table_suffixes = DELIMITED | JSON | PARQUET
        if suffix not in table_suffixes and table.form == "delimited" and not table.regular:
            return 0.0
        if (table.form == "delimited" and suffix not in table_suffixes and not table.rows) or in_blocks(table, head):
            return 0.0  # one line; words of sentences, a line a word and a blank line behind each sentence
        names = table.names if table.headed else []
        if set(names) >= OCEL:
            return 0.9
        who, what, weak_what, when = (column_called(names, usual) for usual in (WHO, WHAT, WEAKLY, WHEN))
        when = when or next((name for name in names if name not in single), None)
        item = what or weak_what
        if item and any(isinstance(cell, list) for cell in table.column(item)):
            return 0.9 if what or not text_columns(table) else 0.65
        if who and not item and not text_columns(table) and (candidates := [
                name for name in names if name != who and numbered(name) and not counts_up(table.column(name)) and
                not names_the_same(table.column(name), table.column(who))]):
            what = item = candidates[0] if len(candidates) == 1 else None
        if item and who:
            return 0.9 if what else 0.65
        changes = what is not None and len(set(map(str, table.column(what)))) > 1  # no station, the same in all rows
        if (changes and when) or has_merged_cells(table) or (item and len(names) == 1):
            return 0.75
        if names and self._guessed(path, table):
            return 0.72
        if when and len(names) == 2 and not are_amounts(table.column(next(name for name in names if name != when))):
            return 0.6
        if addresses(table):
            return 0.05
        if not table.headed and _interactions(table):
            return 0.85
        listed = _listed(table)
        if (len(listed) == 1 or (listed and not table.headed)) and not text_columns(table) and \
                not are_wordy([each for cell in table.column(listed[0]) if isinstance(cell, list) for each in cell]):
            return 0.85
        wordy = not table.headed and any(are_wordy(table.column(name)) for name in table.names[:2])
        vague = wordy or table.form in ("json", "document")
        return 0.0 if suffix not in table_suffixes else 0.1 if vague else 0.43 if has_roles(path, table) else 0.25

    def _guessed(self, path: Path, table: Look) -> bool:
        """Whether who and what are found by the contents of columns, in a table of unevenly spaced times."""
        import pyarrow as pa

        when = time_column(table.names, table.column)
        columns = [name for name in table.names if name != when]
        roles = guess_who_and_what(columns, table.column, column_called(columns, WHO), column_called(columns, WHAT))
        if when is None or not timelike(table.column(when)) or None in roles:
            return False
        with suppress(SegueError):
            moments = seconds_of(pa.array(map(str, table.column(when))), None, path, when)
            return len(np.unique(moments)) < len(moments) or not np.isfinite(steady(moments))
        return False

    def read(self, path: Path, problems: Problems | None = None, *, who: str | None = None, what: str | None = None,
             when: str | None = None, also: Sequence[str] = (), when_format: str | None = None,
             classes: str | None = None, encoding: str = "utf-8") -> Iterator[Record]:
        """One record an entity, its events in the order of time (of the file, where there is no time).

        who, what, when: names (or, without a header, numbers from 1) of the columns; found from names and contents if
        None. who='the file': all events of a file are of one entity. what='event': all events are of one sort, of which
        only the time is known, as where rows are lists of times alone. also: further columns of numbers, kept as
        channels. when_format: of text times, as for `strptime`, where none of the usual ways is meant. classes: the
        column that says of which class each entity is, the same in all its rows ("": one called so, if there is one),
        which its name then tells. Channels: `time` (seconds since 1970, or whatever number was given) and `gap` (since
        the event before; 0 for the first). A column of lists (JSON Lines, Parquet) makes each row a sequence.
        """
        soft = problems if problems is not None else Problems()
        yield from self.read_all([path], soft, frozenset([path]), who=who, what=what, when=when, also=also,
                                 when_format=when_format, classes=classes, encoding=encoding)
        if problems is None and soft:
            raise SegueError(str(soft[0]))

    def read_all(self, paths: list[Path], problems: Problems, named: frozenset[Path], *,  # type: ignore[override]
                 who: str | None = None, what: str | None = None, when: str | None = None, also: Sequence[str] = (),
                 when_format: str | None = None, classes: str | None = None,
                 encoding: str = "utf-8") -> Iterator[Record]:
        """All files are one table: the events of an entity come together whichever files hold them."""
        import pyarrow.types as types

        also = [also] if isinstance(also, str) else list(also)
        tables, label_column = _load_tables(paths, problems, named, (who, what, when), also, classes, encoding)
        if not tables:
            return
        frames = _same_columns(tables, problems, named)
        first, roles = frames[0]
        columns = first.columns
        role_names = [*zip(("who", "what", "when"), roles), *(("also", name) for name in also)]
        problems.note = describe_roles([("class", label_column), *role_names], columns)
        check_columns(first.path, also, columns)

        def has_lists(name: str | None) -> bool:
            return name in columns and (types.is_list(columns[name].type) or types.is_large_list(columns[name].type))

        sequence_column = roles[1] if roles[1] in columns else roles[2]
        if has_lists(sequence_column) and not has_lists(roles[0]):
            for frame, _ in frames:
                yield from _read_list_rows(frame, roles, also, when_format, label_column, problems)
            return
        if has_lists(sequence_column):  # a table within each row
            frames = [(unnested(frame, [*filter(None, roles), *also]), roles) for frame, _ in frames]
        events = [_events(frame, roles, also, when_format, problems) for frame, _ in frames]
        events = [part for part in events if len(part[0])]
        time_span = ""
        if roles[2] and events:
            time_span = span(np.concatenate([part[2] for part in events]))
            problems.note = describe_roles([("class", label_column), *role_names], columns, time_span)
        for record, label in _grouped(events, bool(roles[2]), also, classes):
            if label is None:
                problems.note = describe_roles(role_names, columns, time_span)
                yield record
            elif has_class(problems, first.path, record.name, label_column, label):
                yield replace(record, name=of_class(record.name, label))

    def codec(self, data: Dataset, *, min_count: int = 1, vocabulary: int | None = None) -> Codec:
        """One item a token, most frequent first, and an unknown item. min_count: items seen less often are unknown.
        vocabulary: at most so many tokens."""
        return ItemCodec.count(data.vocabulary, min_count, vocabulary)

    def write(self, objects: Iterable[Sequence[str | int] | Record], path: str | Path) -> None:
        """CSV (or TSV or JSON Lines, as the file is called) with the columns who, what and, where a `Record` carries
        time, when (of the calendar, or a number); games of chess, where the file is called .pgn, as PGN."""
        if Path(path).suffix.lower() == ".pgn":
            games = [obj if isinstance(obj, Record) else Record(list(obj)) for obj in objects]
            write_text(path, "".join(as_pgn([*map(str, game.object)], game.name or "?") for game in games))
            return
        rows: list[list[Any]] = []
        timed = False
        for number, obj in enumerate(objects, 1):
            record = obj if isinstance(obj, Record) else Record(list(obj), name=f"sequence{number}")
            times = record.channels.get("time")
            timed = timed or times is not None
            rows += [[record.name or f"sequence{number}", item, "" if times is None else written(float(times[i]))]
                     for i, item in enumerate(record.object)]
        names, suffix = ["who", "what", "when"][: 3 if timed else 2], Path(path).suffix.lower()
        if suffix == ".jsonl":
            write_text(path, "".join(json.dumps(dict(zip(names, row)), ensure_ascii=False) + "\n" for row in rows))
            return
        with atomic_write(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as handle:
            writer = csv.writer(handle, delimiter="\t" if suffix == ".tsv" else ",", lineterminator="\n")
            writer.writerow(names)
            writer.writerows(row[: len(names)] for row in rows)

    def show(self, obj: Sequence[str | int]) -> str:
        """One line: a → b → c."""
        return " → ".join(map(str, obj))

    def normalise(self, obj: Any, known: Collection[str] = ()) -> list[Any]:
        """Text is cut into items at commas and arrows; where there are none, at blanks. A `known` item is one whatever
        is in it, and where all of them are single signs, a word is cut into its own."""
        if isinstance(obj, bytes):
            obj = obj.decode("utf-8", "replace")
        if isinstance(obj, str) and (moves := moves_in(obj)) and set(moves) <= set(known) and re.search(r"\d\.", obj):
            return moves  # 1. e4 e5 2. Nf3
        return _typed(obj.strip(), known) if isinstance(obj, str) else list(obj)


def _whole_lines(head: bytes) -> str:
    """The beginning of a file without a last line that may be cut."""
    return head.decode("utf-8", "ignore").rpartition("\n")[0] if len(head) >= HEAD else head.decode("utf-8", "ignore")


def _typed(text: str, known: Collection[str]) -> list[str]:
    """The items that a text names, see `Events.normalise`: at each place the longest known one of up to LONGEST
    words."""
    separators = list(BETWEEN.finditer(text))
    starts, ends = [0, *(found.end() for found in separators)], [*(found.start() for found in separators), len(text)]
    explicit = [i for i, found in enumerate(separators) if not found[0].isspace()]
    last_words = [*explicit, len(separators)] if explicit else range(len(ends))  # where an item may end
    single_characters = bool(known) and all(len(item) == 1 for item in known)
    items: list[str] = []
    i = 0
    while i < len(starts):
        ahead = [j for j in last_words if i <= j < i + LONGEST] or [next(j for j in last_words if j >= i)]
        last = next((j for j in reversed(ahead) if text[starts[i] : ends[j]] in known), ahead[0])
        item = text[starts[i] : ends[last]]
        split = single_characters and item not in known
        items += [character for character in item if not character.isspace()] if split else [item]
        i = last + 1
    return list(filter(None, items))


def in_blocks(table: Look, head: bytes) -> bool:
    """A table without a header in which blank lines stand between several rows and several others."""
    rows = [bool(line.strip()) for line in head.split(b"\n")]
    return not table.headed and sum(each == (True, True, False, True)
                                    for each in zip(rows, rows[1:], rows[2:], rows[3:])) > 1


def _interactions(table: Look) -> bool:
    """A table without a header that may be of events: who and what are ids of which the first come again, and either
    both are whole numbers or long, with one column more at most, or there are times beside them; and no texts. What is
    measured at dates, or at prices, is none."""
    if len(table.rows) < 3 or not 2 <= len(table.names) <= 12 or text_columns(table):
        return False
    when = time_column_by_place(table.names, table.column)
    first, second = (table.column(name) for name in [name for name in table.names if name != when][:2])
    if when is None and are_numbers_of(first) and are_things(second):
        return True
    if measured(first) or (when is None and timelike(second)) or (
            timelike(first) and any(measured(table.column(name)) for name in table.names)):
        return False
    ids = all(cell and len(cell) <= 40 and not re.search(r"\s", cell) for cell in first + second)
    numbered_ids = all(map(str.isdigit, first + second)) or all(LONG_ID.fullmatch(cell) for cell in first + second)
    return ids and ((numbered_ids and len(table.names) < 4) or when is not None) and 1 < len(set(first)) < len(first)


def _listed(table: Look) -> list[str]:
    """The columns that hold lists."""
    lists = [name for name in table.names if any(isinstance(cell, list) for cell in table.column(name))]
    return lists if len(lists) == 1 else [name for name in lists if not measured(
        item for cell in table.column(name) if isinstance(cell, list) for item in cell)]


def _load_tables(paths: Iterable[Path], problems: Problems, named: frozenset[Path],
                 requested: tuple[str | None, str | None, str | None], also: Sequence[str], classes: str | None,
                 encoding: str) -> tuple[list[tuple[Frame, Roles]], str | None]:
    """The tables of all files that can be read, each with the columns that say who, what and when, and the column of
    classes, which is taken out of them. requested: the columns who, what and when where the user names them. A file
    that cannot be read is a problem, or, if it is in `named`, an error."""
    tables: list[tuple[Frame, Roles]] = []
    label_column: str | None = None
    for path in paths:
        try:
            frame = _prepared(load_table(path, problems, encoding, (*requested, *also, classes)))
            if classes:
                label_column = take_classes(frame, classes, (*requested, *also))
            roles = find_roles(frame, *requested)
            if classes == "":  # of what is left
                label_column = take_classes(frame, classes, (*roles, *also)) or label_column
            tables.append((frame, roles))
        except SegueError as error:
            if path in named:
                raise
            problems.refuse(path, error)
    return tables, label_column


def _same_columns(tables: list[tuple[Frame, Roles]], problems: Problems,
                  named: frozenset[Path]) -> list[tuple[Frame, Roles]]:
    """The tables with the columns that most rows have; others are problems, or, if named, errors."""
    rows: dict[tuple[str, ...], int] = {}
    for frame, _ in tables:
        rows[tuple(frame.columns)] = rows.get(tuple(frame.columns), 0) + len(frame.rows)
    header = max(rows, key=lambda columns: rows[columns])
    alike = [(frame, roles) for frame, roles in tables if tuple(frame.columns) == header]
    for frame, _ in tables:
        if tuple(frame.columns) != header:
            columns_here, columns_there = ", ".join(frame.columns), ", ".join(header)
            text = f"its columns ({columns_here}) differ from those of {alike[0][0].path} ({columns_there})"
            if frame.path in named:
                raise SegueError(f"{frame.path}: {text}; read them apart")
            problems.refuse(frame.path, f"skipped: {text}; name the file to read it alone")
    return alike


def with_lists(table: Look | None) -> Look | None:
    """The beginning of a table, with what is several ids with blanks between as lists of them."""
    if table is None or table.form != "delimited":
        return table
    places = [place for place, name in enumerate(table.names) if are_ids(table.column(name))]
    return replace(table, rows=[[cell.split() if place in places else cell for place, cell in enumerate(row)]
                                for row in table.rows])


def _prepared(frame: Frame) -> Frame:
    """As `with_lists` does it; an object-centric log (OCEL as CSV) has a row for each object of each event."""
    import pyarrow as pa

    if frame.columns.keys() >= OCEL:
        objects = [name for name in frame.columns if name.startswith("ocel:type:")]
        cells = zip(*(frame.columns[name].to_pylist() for name in objects))
        id_lists = [[cell if isinstance(cell, list) else listed(cell) or [] for cell in row if cell] for row in cells]
        object_lists = [[object_id for ids in row for object_id in ids] for row in id_lists]
        places = np.repeat(np.arange(len(object_lists)), list(map(len, object_lists)))
        columns = {name: frame.columns[f"ocel:{name}"].take(places) for name in ("activity", "timestamp")}
        columns = {"case": pa.array([str(each) for row in object_lists for each in row], pa.string()), **columns}
        frame = replace(frame, columns=columns, rows=frame.rows[places])
    for name, column in frame.columns.items():
        if pa.types.is_string(column.type) and are_ids([cell.strip() for cell in column.drop_null().to_pylist()]):
            lists = [cell.split() if cell else None for cell in column.to_pylist()]
            frame.columns[name] = pa.array(lists, pa.large_list(pa.string()))
    return frame


def _events(frame: Frame, roles: Roles, also: Sequence[str], when_format: str | None,
            problems: Problems) -> tuple[Any, ...]:
    """Columns of a table, row by row: who and what as arrays of text, when as seconds (N,), the further numbers (N,) of
    `also`, and the classes. A row that lacks one of these, but the class, is a problem and is left out."""
    import pyarrow as pa
    import pyarrow.compute as compute

    who, what, when = roles
    texts = [_texts(frame, who or THIS, str(frame.path)), _texts(frame, what, THAT)]
    times = None if when is None else seconds_of(frame.columns[when], when_format, frame.path, when)
    numbers = [_numbers(frame, name) for name in also]
    missing = {who: _blank(texts[0]), what: _blank(texts[1])}
    missing |= {} if times is None else {when: np.isnan(times)}
    missing |= {name: np.isnan(values) for name, values in zip(also, numbers)}
    lacking, classes = np.zeros(len(frame.rows), dtype=bool), frame.classes
    for column, absent in missing.items():
        for row in np.flatnonzero(absent & ~lacking):
            bad(problems, frame.path, frame.place(int(row)), None,
                f"no usable value in column '{column}'; mend or remove it")
        lacking |= absent
    if lacking.any():
        keep = ~lacking
        texts = [compute.filter(text, pa.array(keep)) for text in texts]
        times = None if times is None else times[keep]
        numbers = [values[keep] for values in numbers]
        classes = None if classes is None else classes[keep]
    return texts[0], texts[1], times, numbers, classes


def _texts(frame: Frame, name: str, all_of: str) -> Any:
    """A column as text without blanks around it; `all_of` in every row where there is no such column (THIS, THAT)."""
    import pyarrow as pa
    import pyarrow.compute as compute

    column = frame.columns[name] if name in frame.columns else pa.array([all_of] * len(frame.rows))
    try:
        return compute.utf8_trim_whitespace(column.cast(pa.large_string()))
    except pa.ArrowException as error:
        raise SegueError(f"{frame.path}: column '{name}' holds {column.type}, which is no name of anything") from error


def _numbers(frame: Frame, name: str) -> np.ndarray:
    """A column as float64; NaN where it has no number."""
    import pyarrow as pa

    try:
        return np.asarray(frame.columns[name].cast(pa.float64()).to_numpy(zero_copy_only=False))
    except pa.ArrowException as error:
        raise SegueError(
            f"{frame.path}: column '{name}' is not all numbers and cannot be a channel ({error})") from error


def _blank(text: Any) -> np.ndarray:
    """(n,) bool: which texts are missing or empty."""
    import pyarrow.compute as compute

    return np.asarray(compute.fill_null(compute.equal(text, ""), True).to_numpy(zero_copy_only=False), dtype=bool)


def _grouped(parts: list[tuple[Any, ...]], timed: bool, also: Sequence[str],
             classes: str | None) -> Iterator[tuple[Record, str | None]]:
    """One record an entity, entities in the order they first appear, events by time, equal times as in the file; and
    its class, None where no column says classes (see `classes_of`, which takes the name that was asked for)."""
    import pyarrow as pa

    if not parts:
        return
    who, what = (pa.chunked_array([part[i] for part in parts]).combine_chunks().dictionary_encode() for i in (0, 1))
    names, codes = who.dictionary.to_pylist(), who.indices.to_numpy()
    items, item_codes = np.array(what.dictionary.to_pylist(), dtype=object), what.indices.to_numpy()
    times = np.concatenate([part[2] for part in parts]) if timed else None
    numbers = [np.concatenate([part[3][i] for part in parts]) for i in range(len(also))]
    order = np.lexsort((times, codes)) if times is not None else np.argsort(codes, kind="stable")
    bounds = np.searchsorted(codes[order], np.arange(len(names) + 1))
    item_codes = item_codes[order]
    channels: dict[str, np.ndarray] = {}
    if times is not None:
        times = times[order]
        channels = {"time": times, "gap": np.diff(times, prepend=times[0])}
        channels["gap"][bounds[:-1]] = 0.0
    channels |= {column: values[order] for column, values in zip(also, numbers)}
    labels: Sequence[str] | None = None
    if all(part[4] is not None for part in parts):
        labels = classes_of(np.concatenate([part[4] for part in parts]), np.split(order, bounds[1:-1]), classes)
    for i, (name, start, stop) in enumerate(zip(names, bounds[:-1].tolist(), bounds[1:].tolist())):
        channels_of = {channel: values[start:stop] for channel, values in channels.items()}
        yield Record(items[item_codes[start:stop]].tolist(), channels_of, name), None if labels is None else labels[i]


def unnested(frame: Frame, names: Sequence[str]) -> Frame:
    """A table whose rows hold tables, as lists of one length, as one table: what is no list is repeated. Where there
    are several rows, a column `series` counts them."""
    import pyarrow as pa
    import pyarrow.compute as compute

    lengths = next(compute.list_value_length(frame.columns[name]) for name in names
                   if "list" in str(frame.columns[name].type)).fill_null(0).to_numpy(zero_copy_only=False)
    places = pa.array(np.repeat(np.arange(len(lengths)), lengths))
    columns = {name: compute.list_flatten(column) if "list" in str(column.type) else column.take(places)
               for name, column in frame.columns.items() if name in names}
    for name, column in columns.items():
        if len(column) != len(places):
            raise SegueError(f"{frame.path}: the lists in column '{name}' are not as long as the others; mend them")
    if len(lengths) > 1:
        columns.setdefault("series", pa.array(np.repeat(np.arange(1, len(lengths) + 1), lengths)))
    classes = None if frame.classes is None else np.repeat(frame.classes, lengths)
    return Frame(frame.path, columns, True, np.repeat(frame.rows, lengths), frame.unit, classes)


def _moments(column: Any, when_format: str | None, path: Path) -> list[Any]:
    """Seconds of each row of a column of lists (see `seconds_of`); None where a row has no list."""
    import pyarrow.compute as compute

    if "list" not in str(column.type) or not any(lengths := compute.list_value_length(column).to_pylist()):
        return column.to_pylist()
    flat = seconds_of(compute.list_flatten(column), when_format, path)
    seconds = np.split(flat, np.cumsum([n or 0 for n in lengths]))
    return [None if length is None else part for length, part in zip(lengths, seconds)]


def _read_list_rows(frame: Frame, roles: Roles, also: Sequence[str], when_format: str | None, label_column: str | None,
                    problems: Problems) -> Iterator[Record]:
    """Rows that hold whole sequences."""
    who, what, when = roles
    names = frame.columns[who].to_pylist() if who is not None else [None] * len(frame.rows)
    item_lists = frame.columns[what].to_pylist() if what in frame.columns else None
    channel_lists = {"time": _moments(frame.columns[when], when_format, frame.path)} if when is not None else {}
    channel_lists |= {name: frame.columns[name].to_pylist() for name in also}
    for i, row in enumerate(frame.rows):
        name = f"{frame.path}:{row}" if names[i] is None else str(names[i])
        if frame.classes is not None:
            if not has_class(problems, frame.path, frame.place(i), label_column, frame.classes[i]):
                continue
            name = of_class(name, frame.classes[i])
        channels: dict[str, np.ndarray] = {}
        try:
            items = item_lists[i] if item_lists is not None else [THAT] * (0 if channel_lists["time"][i] is None else
                                                                           len(channel_lists["time"][i]))
            if not items or any(item is None for item in items):
                raise ValueError("an empty list, or an item missing in it")
            for channel, values in channel_lists.items():
                numbers = np.array(values[i], dtype=np.float64)
                if numbers.shape != (len(items),) or not np.isfinite(numbers).all():
                    raise ValueError(f"column '{channel}' has not one number for each of {len(items)} events")
                channels[channel] = numbers
        except (ValueError, TypeError) as error:
            bad(problems, frame.path, frame.place(i), None, f"{error}; mend or remove it")
            continue
        order = np.argsort(channels["time"], kind="stable") if "time" in channels else np.arange(len(items))
        channels = {channel: values[order] for channel, values in channels.items()}
        if "time" in channels:
            channels["gap"] = np.diff(channels["time"], prepend=channels["time"][0])
        yield Record([str(items[j]) for j in order], channels, name)
