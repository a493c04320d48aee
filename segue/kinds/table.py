"""Interactions and event logs: tables of who did what when, and logs of one case a line."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from segue.errors import SegueError
from segue.files import atomic_write, write_text
from segue.kinds.base import Dataset, Kind, Problem, Problems, Record, bad, bare, check_text, opened, words
from segue.kinds.codecs import Codec, ItemCodec

if TYPE_CHECKING:
    import pyarrow as pa


# Column names that say who, what and when, best first; compared in lower case without signs, "id" at the end dropped.
WHO = words(
    "who user case caseconceptname session customer visitor patient subject client account member player "
    "reviewer author listener reader student entity trace device sequenceid host person owner u"
)
WHAT = words(
    "what item activity conceptname event action movie product asin song track artist book article page "
    "url command symbol mark eventtype type state key label token code items events marks types "
    "activities actions songs tracks k i"
)
WHEN = words(
    "when time timestamp datetime date ts unixtimestamp unixreviewtime completetimestamp timetimestamp "
    "starttimestamp starttime eventtime createdat created times timestamps day t"
)
DATES = words("%Y/%m/%d %d.%m.%Y %d-%m-%Y %d/%m/%Y %m/%d/%Y")
FORMATS = [date + time for date in DATES for time in (" %H:%M:%S", " %H:%M", "")]
DELIMITERS = {".csv": ",;\t|", ".tsv": "\t", ".tab": "\t"}

Roles = tuple[str | None, str, str | None]  # the columns that say who, what and when


@dataclass
class Frame:
    """Rows of one file: the columns by name, the header as found, and the number of the first row's line (or 0)."""

    path: Path
    columns: dict[str, Any]  # name -> pyarrow array
    headed: bool
    rows: np.ndarray  # line or row number of each row, for messages


class Events(Kind):
    name = "events"
    unit = "event"
    storage = "items"
    split_by = "entity"
    extensions: ClassVar[frozenset[str]] = frozenset((".csv", ".tsv", ".tab", ".parquet", ".pq", ".jsonl", ".ndjson"))

    def sniff(self, path: Path, head: bytes) -> float:
        if head[:4] == b"PAR1":
            return 0.9
        if b"\0" in head or path.suffix.lower() not in self.extensions:
            return 0.0
        first = head.lstrip(b"\xef\xbb\xbf \r\n").split(b"\n", 1)[0].strip()
        if first[:1] == b"{":
            try:
                names = list(json.loads(first))
            except (ValueError, RecursionError):
                return 0.0
            return 0.9 if _named(names, WHAT) and (_named(names, WHO) or _named(names, WHEN)) else 0.1
        names = re.split(r"[,;\t|]", first.decode("utf-8", "replace").replace('"', ""))
        return 0.9 if _named(names, WHO) and _named(names, WHAT) else 0.4

    def read(
        self,
        path: Path,
        problems: Problems | None = None,
        *,
        who: str | None = None,
        what: str | None = None,
        when: str | None = None,
        also: Sequence[str] = (),
        when_format: str | None = None,
        encoding: str = "utf-8",
    ) -> Iterator[Record]:
        """One record an entity, its events in the order of time (of the file, where there is no time).

        who, what, when: names (or, without a header, numbers from 1) of the columns; found from names and contents if
        None. also: further columns of numbers, kept as channels. when_format: of text times, as for `strptime`, where
        ISO 8601 is not meant. Channels: `time` (seconds since 1970, or whatever number was given) and `gap` (since the
        event before; 0 for the first). A column of lists (JSON Lines, Parquet) makes each row a sequence.
        """
        soft = problems if problems is not None else Problems()
        yield from self.read_all(
            [path],
            soft,
            frozenset([path]),
            who=who,
            what=what,
            when=when,
            also=also,
            when_format=when_format,
            encoding=encoding,
        )
        if problems is None and soft:
            raise SegueError(str(soft[0]))

    def read_all(  # type: ignore[override]
        self,
        paths: list[Path],
        problems: Problems,
        named: frozenset[Path],
        *,
        who: str | None = None,
        what: str | None = None,
        when: str | None = None,
        also: Sequence[str] = (),
        when_format: str | None = None,
        encoding: str = "utf-8",
    ) -> Iterator[Record]:
        """All files are one table: the events of an entity come together whichever files hold them."""
        also = [also] if isinstance(also, str) else list(also)
        frames: list[tuple[Frame, Roles]] = []
        for path in paths:
            try:
                frame = load_table(path, problems, encoding, (who, what, when, *also))
                frames.append((frame, _roles(frame, who, what, when)))
            except SegueError as error:
                if path in named:
                    raise
                problems.add(Problem(str(path), "", None, str(error).removeprefix(f"{path}: ")))
        if not frames:
            return
        weight: dict[tuple[str, ...], int] = {}
        for frame, _ in frames:
            key = tuple(frame.columns)
            weight[key] = weight.get(key, 0) + len(frame.rows)
        header = max(weight, key=lambda key: weight[key])
        chosen = [(frame, roles) for frame, roles in frames if tuple(frame.columns) == header]
        for frame, _ in frames:
            if tuple(frame.columns) != header:
                mine, theirs = ", ".join(frame.columns), ", ".join(header)
                text = f"its columns ({mine}) differ from those of {chosen[0][0].path} ({theirs})"
                if frame.path in named:
                    raise SegueError(f"{frame.path}: {text}; read them apart")
                problems.add(Problem(str(frame.path), "", None, f"skipped: {text}; name the file to read it alone"))
        roles = chosen[0][1]
        said = [f"{role}={name}" for role, name in zip(("who", "what", "when"), roles) if name is not None]
        unread = [name for name in header if name not in (*roles, *also)]
        problems.note = ", ".join(said + [f"also={name}" for name in also]) + \
            (f"; not read: {', '.join(unread)}" if unread else "")
        for name in also:
            if name not in header:
                raise SegueError(f"{chosen[0][0].path}: there is no column '{name}'; there are {', '.join(header)}")
        import pyarrow.types as types

        if types.is_list(chosen[0][0].columns[roles[1]].type) or types.is_large_list(
            chosen[0][0].columns[roles[1]].type
        ):
            for frame, _ in chosen:
                yield from _lists(frame, roles, also, problems)
            return
        parts = [_events(frame, roles, also, when_format, problems) for frame, _ in chosen]
        yield from _grouped([part for part in parts if len(part[0])], bool(roles[2]), also)

    def codec(self, data: Dataset, *, min_count: int = 1, vocabulary: int | None = None) -> Codec:
        """One item a token, most frequent first, and an unknown item. min_count: items seen less often are unknown.
        vocabulary: at most so many tokens."""
        return ItemCodec.count(data.vocabulary, min_count, vocabulary)

    def write(self, objects: Iterable[Sequence[str | int] | Record], path: str | Path) -> None:
        """CSV with the columns who, what and, where a `Record` carries time, when (seconds)."""
        rows: list[list[Any]] = []
        timed = False
        for number, obj in enumerate(objects, 1):
            record = obj if isinstance(obj, Record) else Record(list(obj), name=f"sequence{number}")
            times = record.channels.get("time")
            timed = timed or times is not None
            rows += [
                [record.name or f"sequence{number}", item, "" if times is None else repr(float(times[i]))]
                for i, item in enumerate(record.object)
            ]
        with atomic_write(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as handle:
            writer = csv.writer(handle, lineterminator="\n")
            writer.writerow(["who", "what", "when"] if timed else ["who", "what"])
            writer.writerows(row if timed else row[:2] for row in rows)

    def show(self, obj: Sequence[str | int]) -> str:
        return " → ".join(map(str, obj))

    def normalise(self, obj: Any) -> list[Any]:
        if isinstance(obj, bytes):
            obj = obj.decode("utf-8", "replace")
        if isinstance(obj, str):
            return obj.replace("→", " ").replace(",", " ").split()
        return list(obj)


class Cases(Kind):
    """A log of one case a line: each sign an activity, or each word."""

    name = "cases"
    unit = "event"
    storage = "items"
    split_by = "name"

    def sniff(self, path: Path, head: bytes) -> float:
        return 0.0  # cannot be told from text: asked for by name

    def read(self, path: Path, problems: Problems | None = None, *, elements: str | None = None) -> Iterator[Record]:
        """One record a line; empty lines are no cases. elements: "characters" or "words" (told apart by whether a line
        of the first thousand holds a blank or a tab, if None)."""
        if elements not in (None, "characters", "words"):
            raise SegueError(f"elements is 'characters' or 'words', not {elements!r}")
        with opened(path) as handle:
            raw = handle.read()
        check_text(path, raw)
        lines = raw.decode("utf-8").removeprefix("\ufeff").split("\n")
        if elements is None:
            elements = "words" if any(len(line.split()) > 1 for line in lines[:1000]) else "characters"
        found = False
        for number, line in enumerate(lines, 1):
            items = line.split() if elements == "words" else list(line.strip())
            if items:
                found = True
                yield Record(items, name=f"{path}:{number}")
        if not found:
            raise SegueError(f"{path}: the file is empty; give a file with one case a line")

    codec = Events.codec
    normalise = Events.normalise

    def write(self, objects: Iterable[Sequence[str | int] | Record], path: str | Path) -> None:
        """One case a line; without blanks between where every item is one sign."""
        cases = [[str(item) for item in (obj.object if isinstance(obj, Record) else obj)] for obj in objects]
        glue = "" if all(len(item) == 1 for case in cases for item in case) else " "
        write_text(path, "".join(glue.join(case) + "\n" for case in cases))

    def show(self, obj: Sequence[str | int]) -> str:
        items = [str(item) for item in obj]
        return ("" if all(len(item) == 1 for item in items) else " ").join(items)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _named(names: Iterable[str], usual: tuple[str, ...]) -> str | None:
    """The column whose name says what is looked for."""
    ranked = [
        (usual.index(plain), i, name)
        for i, name in enumerate(names)
        for plain in (_plain(name), _plain(name).removesuffix("id"))
        if plain in usual
    ]
    return min(ranked)[2] if ranked else None


def load_table(path: Path, problems: Problems, encoding: str, asked: Iterable[str | None] = ()) -> Frame:
    """A file as columns: Parquet by its magic, JSON Lines by its first sign, else delimited text. A first line
    that holds a name of a column `asked` for is a header."""
    import pyarrow as pa

    with opened(path) as handle:
        raw = handle.read()
    if not raw.strip():
        raise SegueError(f"{path}: the file is empty; give a table with a row an event")
    if bare(path).suffix.lower() in (".parquet", ".pq") and raw[:4] != b"PAR1":
        raise SegueError(f"{path}: called Parquet, but does not begin as Parquet does; fetch it again or rename it")
    try:
        if raw[:4] == b"PAR1":
            import pyarrow.parquet as parquet

            table = parquet.read_table(pa.BufferReader(raw), use_threads=False)
            rows = np.arange(1, len(table) + 1)
            return Frame(path, _columns(path, table), True, rows)
        if encoding.lower().replace("_", "-") not in ("utf-8", "utf8"):
            raw = raw.decode(encoding).encode("utf-8")
        raw = raw.removeprefix(b"\xef\xbb\xbf")
        check_text(path, raw)
        if raw.lstrip()[:1] == b"{":
            return _load_json(path, raw, problems)
        return _load_text(path, raw, problems, {name for name in asked if name})
    except (UnicodeError, LookupError) as error:
        raise SegueError(f"{path}: cannot be read as {encoding} ({error}); give the right encoding=") from error
    except (pa.ArrowException, csv.Error, OSError, NotImplementedError) as error:
        raise SegueError(f"{path}: not a readable table ({error}); write it again, or convert it to CSV") from error


def _columns(path: Path, table: pa.Table) -> dict[str, Any]:
    if len(set(table.column_names)) != len(table.column_names):
        double = next(name for name in table.column_names if table.column_names.count(name) > 1)
        raise SegueError(f"{path}: two columns are called '{double}'; rename one")
    return {name: table.column(name).combine_chunks() for name in table.column_names}


def _load_json(path: Path, raw: bytes, problems: Problems) -> Frame:
    """Line by line, so that a bad line is named and stepped over."""
    import pyarrow as pa

    rows, numbers = [], []
    for number, line in enumerate(raw.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            bad(problems, path, str(number), getattr(error, "pos", None), "not a line of JSON; mend or remove it")
            continue
        if not isinstance(row, dict):
            bad(problems, path, str(number), None, "the line is not a JSON object ({...}); mend or remove it")
            continue
        rows.append(row)
        numbers.append(number)
    if not rows:
        raise SegueError(f"{path}: no line is a JSON object" + (f" ({problems[-1]})" if problems else ""))
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {}
    for name in names:
        values = [row.get(name) for row in rows]
        if any(isinstance(value, (list, dict)) for value in values):
            if not all(value is None or isinstance(value, list) for value in values):
                continue  # nested objects cannot be a role
            values = [
                None if value is None else [None if item is None else str(item) for item in value] for value in values
            ]
            columns[name] = pa.array(values, pa.large_list(pa.string()))
        else:
            columns[name] = pa.array(
                [None if value is None else value if isinstance(value, str) else json.dumps(value) for value in values],
                pa.string(),
            )
    return Frame(path, columns, True, np.array(numbers))


def _load_text(path: Path, raw: bytes, problems: Problems, asked: set[str]) -> Frame:
    import pyarrow as pa
    from pyarrow import csv as arrow_csv

    if b"\n" not in raw and b"\r" in raw:
        raw = raw.replace(b"\r", b"\n")
    start = len(raw) - len(raw.lstrip(b"\r\n"))
    first_line = raw[:start].count(b"\n") + 1
    raw = raw[start:]
    sample = raw[: 1 << 16].decode("utf-8", "ignore").split("\n")
    sample = [line.rstrip("\r") for line in (sample[:-1] if len(raw) > 1 << 16 and len(sample) > 1 else sample)][:50]
    sample = [line for line in sample if line.strip()]
    if not sample:
        raise SegueError(f"{path}: the file is empty; give a table with a row an event")
    delimiter = _delimiter(path, sample)
    cells = [next(csv.reader([line], delimiter=delimiter), [""]) for line in sample[:2]]
    headed = not any(_number(cell) for cell in cells[0]) and (
        len(cells) < 2
        or bool(asked.intersection(cells[0]))
        or any(_number(cell) for cell in cells[1])
        or bool(_named(cells[0], WHO) or _named(cells[0], WHAT) or _named(cells[0], WHEN))
    )
    names = [name.strip() for name in cells[0]] if headed else [str(i + 1) for i in range(len(cells[0]))]
    names = [name or str(i + 1) for i, name in enumerate(names)]
    dropped: list[int] = []

    def ragged(row: Any) -> str:
        line = (row.number or 0) + first_line - 1
        dropped.append(row.number or 0)
        bad(
            problems,
            path,
            f"line {line}",
            None,
            f"{row.actual_columns} cells where {row.expected_columns} belong; mend or remove the line",
        )
        return "skip"

    table = arrow_csv.read_csv(
        pa.BufferReader(raw),
        read_options=arrow_csv.ReadOptions(use_threads=False, column_names=names, skip_rows=0, block_size=1 << 24),
        parse_options=arrow_csv.ParseOptions(
            delimiter=delimiter, invalid_row_handler=ragged, newlines_in_values=b'"' in raw
        ),
        convert_options=arrow_csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=True, null_values=[""]
        ),
    )
    rows = np.arange(1, len(table) + len(dropped) + 1) + first_line - 1
    if dropped:
        rows = np.delete(rows, np.unique(np.array(dropped) - 1).clip(0, len(rows) - 1))[: len(table)]
    if headed:
        table, rows = table.slice(1), rows[1:]
    if len(dropped) > len(table):
        raise SegueError(f"{path}: most lines have not the {len(names)} cells of the first ({problems[-1].record}: "
                         f"{problems[-1].text}); if it is no table, name the kind with kind=")
    if not len(table):
        raise SegueError(f"{path}: there is no row below the header; give a table with a row an event")
    return Frame(path, _columns(path, table), headed, rows)


def _delimiter(path: Path, sample: list[str]) -> str:
    """The sign that cuts every line of the sample into the same number of cells, or most lines at least."""
    best, score = ",", 0.0
    for sign in DELIMITERS.get(path.suffix.lower(), ",;\t| ") or ",;\t| ":
        counts = [line.count(sign) for line in sample]
        usual = max(set(counts), key=counts.count)
        agreement = counts.count(usual) / len(counts) if usual else 0.0
        if agreement > score:
            best, score = sign, agreement
    return best


def _number(cell: str) -> bool:
    return bool(re.fullmatch(r"\s*[-+]?(\d[\d.eE+:/TZ -]*)\s*", cell))


def _roles(frame: Frame, who: str | None, what: str | None, when: str | None) -> Roles:
    """Which columns say who, what and when: those asked for, else by name, else by what is in them."""
    columns = frame.columns
    listed = ", ".join(columns)
    for role, asked in (("who", who), ("what", what), ("when", when)):
        if asked is not None and asked not in columns:
            raise SegueError(f"{frame.path}: there is no column '{asked}' to say {role}; there are {listed}")
    taken = [name for name in (who, what, when) if name is not None]

    def free() -> list[str]:
        return [name for name in columns if name not in taken]

    if when is None and (when := _named(free(), WHEN) if frame.headed else None):
        taken.append(when)
    if when is None and not frame.headed and len(free()) > 2:
        when = next((name for name in free()[2:] if _timelike(columns[name])), None)
        taken += [when] if when else []
    if who is None and (who := _named(free(), WHO) if frame.headed else None):
        taken.append(who)
    if what is None and (what := _named(free(), WHAT) if frame.headed else None):
        taken.append(what)
    rest = free()
    if not frame.headed and who is None and len(rest) > 1:
        who = rest.pop(0)
    if not frame.headed and what is None and rest:
        what = rest.pop(0)
    if who is None and len(rest) == 1 and what is not None and _repeats(columns[rest[0]]):
        who = rest.pop()
    if what is None and len(rest) == 1 and who is not None and _repeats(columns[rest[0]]):
        what = rest.pop()
    lists = what is not None and "list" in str(columns[what].type)
    if what is None or (who is None and not lists):
        missing = " and ".join(role for role, name in (("who", who), ("what", what)) if name is None)
        raise SegueError(
            f"{frame.path}: no column says {missing}; name {'them' if ' and ' in missing else 'it'} with "
            f"{'who= and what=' if ' and ' in missing else missing + '='} (columns: {listed})"
        )
    return who, what, when


def _timelike(column: Any) -> bool:
    texts = [value for value in column[:100].to_pylist() if value is not None]
    return (
        bool(texts)
        and all(_moment(str(text)) is not None for text in texts)
        and not all(str(text).isdigit() and len(str(text)) < 9 for text in texts)
    )


def _repeats(column: Any) -> bool:
    return len(column.unique()) < len(column)


def _moment(text: str) -> float | None:
    """Seconds of a number or an ISO time (UTC where no zone is said), or None."""
    try:
        value = float(text)
        return value if np.isfinite(value) else None
    except ValueError:
        pass
    try:
        moment = datetime.fromisoformat(text.strip())
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None


def _seconds(column: Any, when_format: str | None, path: Path) -> np.ndarray:
    """Times as float64 seconds; NaN where one cannot be read. Whole columns at once where Arrow can."""
    import pyarrow as pa
    import pyarrow.compute as compute

    if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
        micros = column.cast(pa.timestamp("us", getattr(column.type, "tz", None))).cast(pa.int64())
        return np.asarray(compute.divide(micros.cast(pa.float64()), 1e6).to_numpy(zero_copy_only=False))
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        try:
            return _scaled(column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False))
        except pa.ArrowException as error:
            raise SegueError(f"{path}: a column of {column.type} is no time; name another with when=") from error
    text = column.cast(pa.string())
    if when_format is not None:
        return _parsed(text, when_format, path)
    for cast in (
        lambda: _scaled(text.cast(pa.float64()).to_numpy(zero_copy_only=False)),
        lambda: text.cast(pa.timestamp("us")).cast(pa.int64()).to_numpy(zero_copy_only=False) / 1e6,
        lambda: text.cast(pa.timestamp("us", "UTC")).cast(pa.int64()).to_numpy(zero_copy_only=False) / 1e6,
    ):
        try:
            return np.asarray(cast(), dtype=np.float64)
        except pa.ArrowException:
            continue
    moments = [None if value is None else _moment(value) for value in text.to_pylist()]
    iso = np.array([np.nan if moment is None else moment for moment in moments])
    if np.isnan(iso).mean() < 0.5:
        return iso
    tried = [_parsed(text, form, path) for form in FORMATS]
    failures = [int(np.isnan(times).sum()) for times in tried]
    least = min(failures)
    if least > len(text) // 2:
        example = next((value for value in text.to_pylist() if value), "")
        raise SegueError(
            f"{path}: {example[:40]!r} is no time known here; give when_format= (as '%d.%m.%Y %H:%M'), or seconds, "
            "or ISO times"
        )
    best = [times for times, failed in zip(tried, failures) if failed == least]
    if any(not np.array_equal(best[0], other, equal_nan=True) for other in best[1:]):
        raise SegueError(
            f"{path}: the times may be day/month or month/day; give when_format='%d/%m/%Y ...' or '%m/%d/%Y ...'"
        )
    return best[0]


def _parsed(text: Any, form: str, path: Path) -> np.ndarray:
    import pyarrow as pa
    import pyarrow.compute as compute

    try:
        moments = compute.strptime(text, form, "s", error_is_null=True)
    except (pa.ArrowException, ValueError) as error:
        raise SegueError(f"{path}: '{form}' is no time format ({error})") from error
    return moments.cast(pa.int64()).cast(pa.float64()).to_numpy(zero_copy_only=False)


def _scaled(numbers: np.ndarray) -> np.ndarray:
    """Epoch numbers in seconds, whether they were milli-, micro- or nanoseconds (told by their size)."""
    finite = np.abs(numbers[np.isfinite(numbers)])
    middle = float(np.median(finite)) if finite.size else 0.0
    scale = 1e9 if middle > 1e17 else 1e6 if middle > 1e14 else 1e3 if middle > 1e11 else 1.0
    return np.where(np.isfinite(numbers), numbers / scale, np.nan)


def _events(
    frame: Frame, roles: Roles, also: Sequence[str], when_format: str | None, problems: Problems
) -> tuple[Any, ...]:
    """who and what as text arrays, when as seconds, further numbers; rows that lack any of them are stepped over."""
    import pyarrow as pa
    import pyarrow.compute as compute

    who, what, when = roles
    texts = []
    for role in (who, what):
        column = frame.columns[role or what]
        try:
            texts.append(column.cast(pa.large_string()))
        except pa.ArrowException as error:
            raise SegueError(
                f"{frame.path}: column '{role}' holds {column.type}, which is no name of anything"
            ) from error
    missing: dict[str | None, np.ndarray] = {who: _absent(texts[0]), what: _absent(texts[1])}
    times = None
    if when is not None:
        times = _seconds(frame.columns[when], when_format, frame.path)
        missing[when] = np.isnan(times)
    numbers = []
    for name in also:
        column = frame.columns[name]
        try:
            values = column.cast(pa.float64()).to_numpy(zero_copy_only=False)
        except pa.ArrowException as error:
            raise SegueError(
                f"{frame.path}: column '{name}' is not all numbers and cannot be a channel ({error})"
            ) from error
        numbers.append(values)
        missing[name] = np.isnan(values)
    lacking = np.zeros(len(frame.rows), dtype=bool)
    for column_name, absent in missing.items():
        for row in np.flatnonzero(absent & ~lacking):
            bad(
                problems,
                frame.path,
                f"line {frame.rows[row]}",
                None,
                f"no usable value in column '{column_name}'; mend or remove it",
            )
        lacking |= absent
    if lacking.any():
        keep = ~lacking
        texts = [compute.filter(text, pa.array(keep)) for text in texts]
        times = None if times is None else times[keep]
        numbers = [values[keep] for values in numbers]
    return texts[0], texts[1], times, numbers


def _absent(text: Any) -> np.ndarray:
    import pyarrow.compute as compute

    blank = compute.equal(compute.utf8_trim_whitespace(text), "")
    return np.asarray(compute.fill_null(blank, True).to_numpy(zero_copy_only=False), dtype=bool)


def _grouped(parts: list[tuple[Any, ...]], timed: bool, also: Sequence[str]) -> Iterator[Record]:
    """One record an entity, entities in the order they first appear, events by time, equal times as in the file."""
    import pyarrow as pa

    if not parts:
        return
    who = pa.chunked_array([part[0] for part in parts]).combine_chunks().dictionary_encode()
    what = pa.chunked_array([part[1] for part in parts]).combine_chunks().dictionary_encode()
    codes = who.indices.to_numpy()
    names = who.dictionary.to_pylist()
    items = np.array(what.dictionary.to_pylist(), dtype=object)
    things = what.indices.to_numpy()
    times = np.concatenate([part[2] for part in parts]) if timed else None
    numbers = [np.concatenate([part[3][i] for part in parts]) for i in range(len(also))]
    order = np.lexsort((times, codes)) if times is not None else np.argsort(codes, kind="stable")
    bounds = np.searchsorted(codes[order], np.arange(len(names) + 1))
    things = things[order]
    channels: dict[str, np.ndarray] = {}
    if times is not None:
        times = times[order]
        channels = {"time": times, "gap": np.diff(times, prepend=times[0])}
        channels["gap"][bounds[:-1]] = 0.0
    channels |= {column: values[order] for column, values in zip(also, numbers)}
    for name, start, stop in zip(names, bounds[:-1].tolist(), bounds[1:].tolist()):
        parts_of = {channel: values[start:stop] for channel, values in channels.items()}
        yield Record(items[things[start:stop]].tolist(), parts_of, name)


def _lists(frame: Frame, roles: Roles, also: Sequence[str], problems: Problems) -> Iterator[Record]:
    """Rows that hold whole sequences."""
    who, what, when = roles
    names = frame.columns[who].to_pylist() if who is not None else [None] * len(frame.rows)
    things = frame.columns[what].to_pylist()
    timed = {
        channel: frame.columns[column].to_pylist()
        for channel, column in ([("time", when)] if when is not None else []) + [(name, name) for name in also]
    }
    for i, row in enumerate(frame.rows):
        name = f"{frame.path}:{row}" if names[i] is None else str(names[i])
        items = things[i]
        channels = {}
        try:
            if not items or any(item is None for item in items):
                raise ValueError("an empty list, or an item missing in it")
            for channel, values in timed.items():
                numbers = np.array(values[i], dtype=np.float64)
                if numbers.shape != (len(items),) or not np.isfinite(numbers).all():
                    raise ValueError(f"column '{channel}' has not one number for each of {len(items)} events")
                channels[channel] = numbers
        except (ValueError, TypeError) as error:
            bad(problems, frame.path, f"line {row}", None, f"{error}; mend or remove it")
            continue
        order = np.argsort(channels["time"], kind="stable") if "time" in channels else np.arange(len(items))
        channels = {channel: values[order] for channel, values in channels.items()}
        if "time" in channels:
            channels["gap"] = np.diff(channels["time"], prepend=channels["time"][0])
        yield Record([str(items[j]) for j in order], channels, name)
