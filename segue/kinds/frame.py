"""Tables as columns, whatever they are written in: delimited text, logs of web servers, JSON Lines, a JSON array of
objects, Parquet, Arrow, ORC, XES.

`glance` says from a file's beginning whether it is a table, how it is cut and what its columns are called; the kinds
find out with it whose file it is. `load_table` reads all of it. Nothing here knows what a column means.
"""

from __future__ import annotations

import ast
import codecs
import csv
import io
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from segue.errors import SegueError
from segue.kinds.base import ARFF, HEAD, MOST, Problems, as_utf8, bad, looks_binary, marked, parsed_xml, words
from segue.kinds.documents import as_row, document, evenly_spaced, flat, rows_of
from segue.kinds.games import PLAYED, STONE, are_moves, games_of, is_games
from segue.kinds.packed import actual, bare, opened
from segue.kinds.times import DATE

if TYPE_CHECKING:
    import pyarrow as pa

ROWS = 50  # that a look takes
MANY = 1000  # of rows that may stand class by class, as those of one JSON object do
DAYS = 8  # columns called by dates from which on each row is a series
LINE_SEMICOLON = re.compile(r",?;[ \t]*\r?(\n|$)")  # a semicolon, where it ends a line of commas
SEPARATOR = "\x1f"  # ASCII's unit separator, in place of a delimiter of several characters
DELIMITERS = (",", ";", "\t", "|", "::", " ")  # between cells; a blank stands for any run of blanks
DELIMITED = frozenset((".csv", ".tsv", ".tab", ".psv", ".arff", ".inter"))  # the last as RecBole has them
LINES = frozenset((".jsonl", ".ndjson"))
JSON = LINES | {".json", ".jsonocel"}
PARQUET = frozenset((".parquet", ".pq", ".arrow", ".feather", ".ipc", ".orc"))  # and its like
# Files that may hold a table; so may those that are numbered, as of one day or person, and more of UCI's.
TABULAR = DELIMITED | JSON | PARQUET | {
    "", *words(".txt .dat .data .log .list .trn .tra .tst .tes .train .test .base .item .user .pgn .sgf .rdb .tbl "
                ".prn .asc")}
NUMBERED = re.compile(r"\.(\d+|data[^a-z].*|.*-data)")
SINGLE_QUOTED = re.compile(r"'[^'\n]*'([,;\t]'[^'\n]*')+\s*\n")  # a heading in quotation marks of another sort
IDS = re.compile(r"[A-Za-z_]{0,4}\d+(-\d+)?( +[A-Za-z_]{0,4}\d+(-\d+)?)*")  # N55528 N19639
BARE_LIST = re.compile(r"\[\w[\w-]*(\s*,\s*\w[\w-]*)+\]")  # [E5,E22], a list of words without quotation marks
BRACKETED = re.compile(r"<[^<>\n]+>[,;|\t]")  # a column's name as traders' programs write it
RECBOLE_TYPE = re.compile(r":(token|float)(_seq)?$")  # what RecBole writes behind a column's name
LONG_WORD = re.compile(r"[A-Z*-]{20,}|[a-z*-]{20,}")  # no name of a column, and no word: letters of a sequence
# A line of a web server's log in the common form, or with what NCSA added to it; and one of the proxy Squid.
ACCESS = re.compile(rb'(?:\S+:\d+ )?(\S+) (\S+) (\S+) \[([^\]]+)\] "((?:[^"\\]|\\.)*)" (\S+) (\S+)'
                    rb'(?: "((?:[^"\\]|\\.)*)" "((?:[^"\\]|\\.)*)".*)?\s*')
SQUID = re.compile(rb"(\d+\.\d+) +(\d+) (\S+) (\S+/\d+) (\d+) (\S+) (\S+) (\S+) (\S+/\S+) (\S+)\s*")
LOGS = {"web": (ACCESS, words("client identity account time request status bytes referer agent")),
        "squid": (SQUID, words("time elapsed client result bytes method url account peer type"))}
# Ratings below the film that they are of, as Netflix gave them away; Eurostat's tables, with marks behind numbers.
RATINGS = re.compile(r"\d+:\r?\n\d+,\d,\d{4}-\d\d-\d\d\r?\n")
EUROSTAT = re.compile(r"[^\t\n]*\\(TIME_PERIOD|time)[^\t\n]*\t")
SINGLE_COLUMN_NAMES = {*words("name text sentence word title address city url item event activity action symbol value "
                              "sequence seq smiles molecule")}  # headers of a table of one column
NULLS = ["", *words(r"NULL null NaN nan <NA> #N/A \N")]


@dataclass(frozen=True)
class Look:
    """The beginning of a table.

    names: of the columns; '1', '2', ... without a header. rows: the first rows' cells: text, or lists of a table that
    has them. regular: all rows seen have the same number of cells, two or more. before: lines before the first row.
    """

    names: list[str]
    rows: list[list[Any]]
    headed: bool = True
    regular: bool = True
    form: str = "json"  # or document (an object around the rows), parquet or delimited
    delimiter: str = ","
    quoted: bool = True
    before: int = 0
    odd: tuple[int, ...] = ()  # numbers of the lines in front of the table that are not of it
    quote: str = '"'

    @cached_property
    def _places(self) -> dict[str, int]:
        return {name: place for place, name in reversed([*enumerate(self.names)])}

    def column(self, name: str) -> list[Any]:
        """The cells seen of one column that hold something."""
        place = self._places[name]
        return [row[place] for row in self.rows if place < len(row) and row[place] not in (None, "")]

    def as_dicts(self) -> list[dict[str, Any]]:
        """The rows seen, each as its cells by column."""
        return [dict(zip(self.names, row)) for row in self.rows]

    def without(self, name: str | None) -> Look:
        """The look of all other columns."""
        kept = [place for place, each in enumerate(self.names) if each != name]
        return replace(self, names=[self.names[place] for place in kept],
                       rows=[[row[place] for place in kept if place < len(row)] for row in self.rows])


@dataclass
class Frame:
    """Rows of one file: the columns by name, whether there was a header, and the number of each row's line. classes:
    what a column that was taken out (see `segue.kinds.columns.take_classes`) says of each row."""

    path: Path
    columns: dict[str, pa.Array]
    headed: bool
    rows: np.ndarray
    unit: str = "line"  # what `rows` count: a row may be several lines, or none
    classes: np.ndarray | None = None

    def place(self, row: int) -> str:
        return f"{self.unit} {self.rows[row]}"


@lru_cache(maxsize=1)
def glance(path: Path, head: bytes) -> Look | None:
    """The look of a table, or None where the file is none. path: without a compression suffix. head: see `head_of`."""
    suffix = path.suffix.lower()
    if is_parquet(head):
        return _look_parquet(path, head)
    if not head.strip() or looks_binary(head) or suffix in PARQUET:
        return None
    text = head.decode("utf-8", "ignore").removeprefix("\ufeff")
    if is_games(head):
        games = islice(games_of(text), ROWS)
        return Look(["moves", "result"], [[moves, result] for _, moves, result in games], form="json")
    first_char = text.lstrip()[:1]
    if first_char == "{" or suffix in JSON or (first_char == "[" and text.lstrip()[1:].lstrip()[:1] == "{"):
        return _look_json(suffix, text, len(head) >= HEAD)
    look = _look_text(suffix, text, len(head) >= HEAD)
    return look if look is not None and (len(look.names) > 1 or suffix in DELIMITED) else None


def is_tabular(path: Path) -> bool:
    """By its name, without a compression suffix: whether a file may hold a table."""
    suffix = path.suffix.lower()
    return suffix in TABULAR or NUMBERED.fullmatch(suffix) is not None


def is_parquet(head: bytes) -> bool:
    """By its first bytes. Arrow's own files and streams (Feather is one) and ORC are read as Parquet is."""
    return head.startswith((b"PAR1", b"ARROW1", b"FEA1", b"ORC")) or _is_stream(head)


def _is_stream(head: bytes) -> bool:
    """Of Arrow: a mark, then the length of a schema."""
    return head[:4] == b"\xff\xff\xff\xff" and 0 < int.from_bytes(head[4:8], "little") < HEAD << 4 and \
        head[9:12] == b"\0\0\0"


def _read_columnar(source: Any, head: bytes, preview: bool = False) -> pa.Table:
    """The table in a file for which `is_parquet`; bytes that are UTF-8 throughout, as older programs wrote texts, are
    texts. preview: its first rows are enough."""
    import pyarrow as pa

    table = _read_any(source, head, preview)
    for place, field in enumerate(table.schema):
        if pa.types.is_binary(field.type):
            with suppress(pa.ArrowInvalid):
                table = table.set_column(place, field.name, table.column(place).cast(pa.string()))
    return table


def _read_any(source: Any, head: bytes, preview: bool) -> pa.Table:
    import pyarrow as pa
    from pyarrow import feather, orc, parquet

    if head[:4] == b"PAR1":
        file = parquet.ParquetFile(source)
        if not preview or not file.metadata.num_rows:
            return file.read(use_threads=False)
        return pa.Table.from_batches([next(file.iter_batches(ROWS, use_threads=False))])
    if head[:3] == b"ORC":
        stripes = orc.ORCFile(source)
        return pa.Table.from_batches([stripes.read_stripe(0)]) if preview and stripes.nstripes else stripes.read()
    if head[:4] == b"FEA1":
        return feather.read_table(source, use_threads=False)
    seekable = head[:6] == b"ARROW1"
    reader = pa.ipc.open_file(source) if seekable else pa.ipc.open_stream(source)
    if not preview:
        return reader.read_all()
    batch = next((reader.get_batch(i) for i in range(reader.num_record_batches)) if seekable else iter(reader), None)
    return pa.Table.from_batches([] if batch is None else [batch.slice(0, ROWS)], reader.schema)


def is_array(head: bytes) -> bool:
    """Of NumPy, by its first bytes."""
    return head[:6] == b"\x93NUMPY"


def array_header(data: bytes) -> tuple[tuple[int, ...], np.dtype, int, bool] | None:
    """Shape, type, where the numbers begin, and whether they lie in Fortran's order, of an array of numbers."""
    handle = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(handle)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(handle)
    except Exception:  # the header is text that may say anything
        return None
    numeric = dtype.kind in "buif" and dtype.itemsize <= 8 and all(isinstance(n, int) and n >= 0 for n in shape)
    return (tuple(shape), dtype, handle.tell(), bool(fortran)) if numeric and dtype.names is None else None


def load_array(path: Path, data: bytes, what: str) -> np.ndarray:
    """A NumPy array of numbers; a SegueError where it is none or was cut. what: what could be saved, for the error."""
    header = array_header(data)
    if header is None:
        pickled = " (it holds Python objects, a pickle, which is never opened)" if b"'|O'" in data[:256] else ""
        raise SegueError(f"{path}: no array that can be read{pickled}; save it with numpy.save, as {what}")
    shape, dtype, start, fortran = header
    expected, available = math.prod(shape), (len(data) - start) // dtype.itemsize
    if available < expected:
        raise SegueError(f"{path}: the file was cut: it has {available:,} of {expected:,} values; fetch it again")
    values = np.frombuffer(data, dtype, expected, start) if expected else np.empty(0, dtype)
    return values.reshape(shape[::-1]).transpose() if fortran else values.reshape(shape)


def check_parquet(path: Path, head: bytes) -> None:
    """Refuse what is Parquet by name only."""
    if bare(path).suffix.lower() in PARQUET and not is_parquet(head):
        raise SegueError(f"{path}: called Parquet or Arrow, but does not begin so; fetch it again or rename it")


def _look_parquet(path: Path, head: bytes) -> Look | None:
    import pyarrow as pa

    with suppress(pa.ArrowException, OSError, NotImplementedError, StopIteration), \
            pa.memory_map(str(actual(path))) as source:
        table = _read_columnar(source, head, preview=True).slice(0, ROWS)
        names = [name for name in table.column_names if name != "__index_level_0__"]
        if not len(table):
            return Look(names, [], form="parquet")
        return _look_objects([flat(row) for row in table.select(names).to_pylist()], "parquet")
    return None


def is_json_lines(text: str) -> bool:
    """Whether JSON is a value a line, by its beginning; else it is one array."""
    first, _, rest = text.lstrip().partition("\n")
    if first[:1] != "[" or not rest.strip():
        return first[:1] != "["
    with suppress(ValueError, RecursionError):
        return bool(json.loads(first))
    return False


def _look_json(suffix: str, text: str, cut: bool) -> Look | None:
    """cut: the text goes on."""
    if suffix not in LINES and (document_rows := document(text, cut)):
        return _look_objects(list(evenly_spaced(document_rows, MANY)), "document")
    decoder, separators = json.JSONDecoder(), re.compile(r"[,\s]*")
    rows: list[dict[str, Any]] = []
    lines = is_json_lines(text)
    position = 0 if lines else text.index("[") + 1
    while len(rows) < ROWS:
        position = separators.match(text, position).end()  # type: ignore[union-attr]
        try:
            value, end = decoder.raw_decode(text, position)
        except (ValueError, RecursionError):
            break
        row = as_row(value)
        if row is None or (lines and "\n" in text[position:end].strip()):
            return None  # one object over many lines: no table
        rows.append(row)
        position = end
    if not rows and text.lstrip()[:2] in ("{'", "{u"):  # as Python writes it
        written = text.split("\n")[: -1 if cut else None]
        rows = [flat(value) for line in written[:ROWS] if isinstance(value := literal(line), dict)]
    if not rows:  # a first row longer than the look, perhaps
        list_names = set(re.findall(r'"([^"\\]{1,64})"\s*:\s*\[(?!\s*[\[{])', text))
        names = [] if "\n" in text else list(dict.fromkeys(re.findall(r'"([^"\\]{1,64})"\s*:', text)))
        return Look(names, [[[0] if name in list_names else None for name in names]]) if names else None
    return _look_objects(rows, "json")


def _look_objects(rows: list[dict[str, Any]], form: str) -> Look:
    names = list(dict.fromkeys(name for row in rows for name in row))
    return Look(names, [[row.get(name) for name in names] for row in rows], form=form)


def _look_text(suffix: str, text: str, cut: bool, requested: frozenset[str] = frozenset()) -> Look | None:
    """The look of delimited text. cut: the text goes on. requested: names of columns; a first line that holds one is a
    header, and where these are numbers there is none."""
    if ARFF.match(text[:HEAD].encode()):
        return _look_arff(text)
    text = _usual(text)
    lines = re.split(r"(?<=\r)" if text.count("\r") > 2 * text.count("\n") else r"(?<=\n)", text)
    if cut and len(lines) > 2:
        lines.pop()
    if log := _log_of([line.encode() for line in lines[:ROWS]]):
        return _look_log(lines, log)
    declared = re.fullmatch(r'"?sep=(.)"?\s*', lines[0])  # Excel's way to say the delimiter
    skipped = next((i for i, line in enumerate(lines) if line.strip() and line.lstrip()[0] not in "#%"
                    and not (declared and i == 0)), 0)
    comments, lines = lines[:skipped], lines[skipped:]
    delimiter, quoted = (declared[1], True) if declared else _delimiter(lines, suffix)
    rows = list(islice(_cells(lines, delimiter, quoted), ROWS))
    if not rows:
        return None
    counts = [len(row) for _, row in rows]
    width = max(set(counts), key=counts.count)
    num_titles = _num_title_rows(counts, width)
    title_lines, rows = tuple(skipped + number for number, _ in rows[:num_titles]), rows[num_titles:]
    first_line, body = rows[0][0], [row for _, row in rows]
    first = [cell.strip() for cell in body[0]]
    headed = True
    if names := _comment_header(comments, delimiter, quoted, width):
        before = skipped
    elif _is_header(first, body[1:], requested):
        names, before, body = [RECBOLE_TYPE.sub("", name) for name in first], skipped + first_line, body[1:]
        if below := _num_header_rows(first, body, width):
            names, before, body = _joined_header(first, body[:below], width), skipped + rows[below][0], body[below:]
    elif num_titles == 1 and delimiter != " " and (title := _short_header(lines, delimiter, quoted, width, body)):
        names, before, title_lines = [*title, *map(str, range(len(title) + 1, width + 1))], skipped + 1, ()
    else:
        names, headed = [str(i + 1) for i in range(width)], False
        before = skipped + first_line - 1 - sum(cell.count("\n") for cell in body[0])
    if headed and len(names) == width - 1 and len(body) > 1:  # a nameless column: of row names, or empty
        names = [*names, ""] if all(row[-1].strip() == "" for row in body if len(row) == width) else ["row", *names]
    names = _unique_names([name or str(i + 1) for i, name in enumerate(names)])
    regular = width > 1 and all(len(row) == width for row in body)
    cells = _parse_lists([[cell.strip() for cell in row] for row in body], width)
    return Look(names, cells, headed, regular, "delimited", delimiter, quoted, before, title_lines)


def _look_log(lines: list[str], log: str) -> Look:
    """The look of a server's log: a row a request, see `LOGS`."""
    pattern, names = LOGS[log]
    requests = [[cell.decode() for cell in match.groups(b"")] for line in lines[:ROWS]
                if (match := pattern.fullmatch(line.encode()))]
    return Look(list(names), requests, True, True, "delimited", log, False)


def _num_title_rows(counts: list[int], width: int) -> int:
    """How many rows, ten at most, are a title above the table: by their counts of cells, neither the usual `width` nor
    one less, as a header without a name for its first column has."""
    titles = 0
    while titles < min(10, len(counts) - 2) and counts[titles] not in (width, width - 1) and \
            counts[titles + 1 :].count(width) > 1:
        titles += 1
    return titles


def _comment_header(comments: list[str], delimiter: str, quoted: bool, width: int) -> list[str]:
    """The names of `width` columns where a comment line above the table gives them ("#Fields: date time"), the last
    that may do so; else nothing."""
    for comment in reversed(comments):
        cells = next(_cells([comment.lstrip("#% ")], delimiter, quoted), (0, [""]))[1]
        cells = cells[len(cells) == width + 1 and cells[0].rstrip(":").lower() == "fields" :]
        if len({*cells} - {""}) == len(cells) == width > 1 and not any(map(number, cells)):
            return [name.strip() for name in cells]
    return []


def _parse_lists(rows: list[list[str]], width: int) -> list[list[Any]]:
    """Rows of cells with the columns that hold lists (see `listed`) in every cell that is not empty as lists."""
    cells: list[list[Any]] = rows
    for i in range(width):
        lists = [listed(row[i]) if i < len(row) else None for row in cells]
        if any(lists) and all(value is not None or row[i : i + 1] in ([], [""]) for value, row in zip(lists, cells)):
            cells = [[*row[:i], value, *row[i + 1 :]] for value, row in zip(lists, cells)]
    return cells


def has_line_semicolons(text: str) -> bool:
    """Whether each line of commas has a semicolon at its end, and none before."""
    lines = [line.rstrip() for line in text.split("\n", ROWS)[:ROWS] if line.strip()]
    lines = lines[: -1 if len(lines) > 1 else None]
    return bool(lines) and all("," in line and line.find(";") == len(line) - 1 for line in lines)


def _look_arff(text: str) -> Look | None:
    """The beginning of a table of Weka: the columns a line each, and behind @data their cells."""
    head, data, body = text.partition(next(iter(re.findall(r"(?im)^[ \t]*@data[ \t]*\r?\n", text)), "\0"))
    named = re.findall(r"(?im)^[ \t]*@attribute[ \t]+('(?:[^'\\]|\\.)*'|\"[^\"]*\"|\S+)", head)
    names = _unique_names([name.strip("'\"") for name in named])
    if not data or not names:
        return None
    quote = "'" if "'" in body and body.count('"') < body.count("'") else '"'
    cells = islice(_cells(body.splitlines(keepends=True), ",", True, quote), ROWS)
    rows = [[cell.strip() for cell in row] for _, row in cells]
    regular = all(len(row) == len(names) for row in rows[:-1])
    return Look(names, rows, True, regular, "delimited", ",", True, (head + data).count("\n"), quote=quote)


def literal(line: str) -> Any:
    """What Python wrote, {'a': 1}; None where it is something else."""
    with suppress(ValueError, SyntaxError, RecursionError, MemoryError):
        return ast.literal_eval(line.strip())
    return None


def listed(cell: str) -> list[Any] | None:
    """The list of plain values that a cell says, as programs write them: [1, 2], ['a', 'b'] or [a, b]; else None."""
    if cell[:1] != "[" or cell[-1:] != "]":
        return None
    if BARE_LIST.fullmatch(cell) and not cell[1:-1].replace(",", "").replace(" ", "").isdigit():
        return [word.strip() for word in cell[1:-1].split(",")]
    for parse in (json.loads, ast.literal_eval):
        with suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            values = parse(cell)
            return values if all(isinstance(each, str | int | float) for each in values) else None
    return None


def are_ids(cells: Sequence[Any]) -> bool:
    """Whether these are ids with blanks between, several in most cells, and not always so many; or moves of games."""
    if not all(isinstance(cell, str) for cell in cells):
        return False
    if are_moves(cells):
        return True
    if not all(map(IDS.fullmatch, cells)):
        return False
    counts = [len(cell.split()) for cell in cells]
    return 2 * sum(count > 1 for count in counts) > len(counts) and len(set(counts)) > 2


def _log_of(lines: list[bytes]) -> str | None:
    """Of which of `LOGS` these are the first lines, of which the last may be cut."""
    lines = [line for line in lines if line.strip()]
    return next((log for log, (pattern, _) in LOGS.items() if
                 10 * sum(pattern.fullmatch(line) is not None for line in lines) >= 9 * max(len(lines) - 1, 1)), None)


def _unique_names(names: list[str]) -> list[str]:
    """Names of columns, each made different from the others: the second 'item' is 'item (2)'."""
    counts: Counter[str] = Counter()
    unique = []
    for name in names:
        counts[name] += 1
        unique.append(name if counts[name] == 1 else f"{name} ({counts[name]})")
    return unique


def _delimiter(lines: list[str], suffix: str) -> tuple[str, bool]:
    """The delimiter by which most rows have the same number of cells, two or more, and whether cells are quoted."""
    best_agreement, best_width, best = 0.0, 1, (",", True)
    text = "".join(lines)
    for delimiter in ("\t", *DELIMITERS) if suffix in (".tsv", ".tab") else DELIMITERS:
        if delimiter not in text and delimiter != " ":
            continue
        for quoted in (True,) if delimiter in ",;" or '"' not in text else (True, False):
            counts = [len(row) for _, row in islice(_cells(lines, delimiter, quoted), ROWS)]
            width = max(set(counts), key=counts.count, default=1)
            agreement = counts.count(width) / len(counts) if width > 1 else 0.0
            tabs = delimiter == "\t" != best[0] and 0 < agreement == best_agreement and width == best_width and not all(
                "\t\t" in line for line in lines[:ROWS] if line.strip())  # texts hold commas, but no tabs
            if delimiter == " " and suffix in DELIMITED and (agreement < 1 or not any(map(str.isdigit, text))):
                continue  # words of names
            if agreement > best_agreement or tabs:
                best_agreement, best_width, best = agreement, width, (delimiter, quoted)
    return best


def csv_rows(lines: Iterable[str], delimiter: str, quoted: bool, strict: bool = False, quote: str = '"') -> Any:
    """A `csv.reader` that knows the delimiter `::` too, and single quotes with backslashes before those inside."""
    if delimiter == "::":
        lines, delimiter = (line.replace("::", SEPARATOR) for line in lines), SEPARATOR
    weka = quote == "'"
    return csv.reader(lines, delimiter=delimiter, strict=strict, quotechar=quote, skipinitialspace=weka,
                      escapechar="\\" if weka else None, quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE)


def _cells(lines: Iterable[str], delimiter: str, quoted: bool, quote: str = '"') -> Iterator[tuple[int, list[str]]]:
    """Rows of cells, each with the number of its last line from 1; blank lines give none."""
    if delimiter == " ":
        yield from ((number, line.split()) for number, line in enumerate(lines, 1) if line.strip())
        return
    reader = csv_rows(lines, delimiter, quoted, quote=quote)
    with suppress(csv.Error):  # a cell without end: no table by this delimiter
        for row in reader:
            if any(cell.strip() for cell in row):
                yield reader.line_num, row


def _short_header(lines: list[str], delimiter: str, quoted: bool, width: int, body: list[list[str]]) -> list[str]:
    """The names of the first columns in a first line that has fewer cells than the rows below, all of which are of
    numbers; else nothing."""
    first = [cell.strip() for cell in next(_cells(lines, delimiter, quoted), (0, [""]))[1]]
    named = 2 < len(first) < width and len({*first} - {""}) == len(first) and not any(map(number, first))
    return first if named and all(len(row) == width and all(map(number, row)) for row in body) else []


def _num_header_rows(first: list[str], body: list[list[str]], width: int) -> int:
    """How many rows below a first one are of the header too, up to three: no cell of theirs above numbers is one, and
    the first row has cells that stand for several, or they say the same all over."""
    if len(body) < 6:
        return 0
    complete = [row for row in body[3:] if len(row) == width]
    columns = [[cell.strip() for cell in column if cell.strip()] for column in zip(*complete)]
    numeric = [place for place, cells in enumerate(columns) if cells and all(map(number, cells)) and
               not all(map(DATE.fullmatch, cells))]
    headings = [first[place] if place < len(first) else "" for place in numeric]
    count = 0
    while numeric and count < 3 and not any(map(number, body[count])) and body[count][0].strip() + first[0]:
        cells = [body[count][place].strip() if place < len(body[count]) else "" for place in numeric]
        if len(set(headings)) == len(headings) > 1 and "" not in headings and len(set(cells)) > 1:
            break  # the units of columns that have names
        count += 1
    return count if len(numeric) > 1 else 0


def _joined_header(first: list[str], below: list[list[str]], width: int) -> list[str]:
    """The names of columns under a header of several rows, joined from top to bottom: an empty cell of the first row
    repeats the one before it, as merged cells are written. Rows that say the same in all columns are left out."""
    rows = [[cell.strip() for cell in row] + [""] * (width - len(row)) for row in (first, *below)]
    rows = [row for row in rows if len({*row[1:]} - {""}) > 1] or rows[:1]
    for i in range(2, width):
        rows[0][i] = rows[0][i] or rows[0][i - 1]
    names = [" ".join(filter(None, column)) for column in zip(*rows)]
    index = next((row[0].strip() for row in reversed([first, *below]) if row and row[0].strip()), names[0])
    return [index, *names[1:]]


def _is_header(first: list[str], body: list[list[str]], requested: frozenset[str]) -> bool:
    """Whether a first row names the columns: by the names that were requested, by numbers below words, or because its
    cells are short and none of them comes again in its column."""
    if any(name.isdigit() for name in requested):
        return False
    days = {cell for cell in first if DATE.fullmatch(cell)}
    if requested.intersection(first) or (len(days) >= DAYS and 2 * len(days) > len(set(first)) == len(first)):
        return True
    if first[0] == "" and body and ([row[0] for row in body[:3]] == ["0", "1", "2"] or
                                    first[1:] == list(map(str, range(len(first) - 1)))):
        return True  # of pandas: rows or columns are counted
    if _has_numbered_names(first, body):
        return True
    if any(map(number, first)) or any(all(map(LONG_WORD.fullmatch, column)) for column in zip(first, *body)):
        return False
    if not body or any(2 * sum(number(cell) for cell in column) >= len(column) for column in zip(*body)):
        return True
    if len(first) == 1:
        alike = [row[0][:1].isupper() == first[0][:1].isupper() for row in body if row]
        last = re.split(r"[_ ]", first[0].lower())[-1]
        return bool(SINGLE_COLUMN_NAMES & {last, last.removesuffix("s")}) or 2 * sum(alike) < len(alike)
    names = [cell for cell in first if cell]  # a table may have columns that are empty all over
    repeats = any(cell and place < len(row) and row[place].strip() == cell for place, cell in enumerate(first)
                  for row in body)
    short = all(len(cell.split()) <= 4 and cell[-1:] not in ".!?" for cell in names)
    return short and not repeats and len(set(names)) == len(names) > len(first) // 3


def _has_numbered_names(first: list[str], body: list[list[str]]) -> bool:
    """Whether numbers in a first row are names of columns: they stand above texts, count the columns from 0 or 1, or
    are years at even distances."""
    numeric = [place for place, cell in enumerate(first) if number(cell)]
    distinct = len(set(first)) == len(first)
    if numeric and len(body) > 1 and distinct and len(first) > len(numeric) and not any(
            number(row[place]) for row in body for place in numeric if place < len(row)):
        return True  # some are numbers, as pandas writes it, or years, with texts below
    values = [int(first[place]) for place in numeric if first[place].isdigit()]
    counting = len(values) > 2 and values == list(range(values[0], values[0] + len(values))) and values[0] < 2
    if counting and len(values) == len(numeric) and distinct and any(
            all(map(number, column)) for name, *column in zip(first, *body) if not number(name)):
        return True  # date,0,1,2,OT
    if counting and len(values) == len(first) and any(re.search(r"\d[.,]\d", cell) for row in body for cell in row):
        return True  # 0,1,2, above measured numbers
    return len(values) == len(numeric) >= DAYS and len(set(np.diff(values).tolist())) == 1 and \
        1500 <= values[0] < values[1] and values[-1] < 2200 and len(values) < len(first) and distinct  # years


def describe_roles(roles: Iterable[tuple[str, str | None]], names: Iterable[str], span: str = "") -> str:
    """How a table was understood, for users: the role of each column that has one, and the columns that are not read.
    span: from when to when the column of times is."""
    chosen = {name: role for role, name in roles if name is not None}
    described = [f"{role}={name}" + (f" ({span})" if span and role == "when" else "") for name, role in chosen.items()]
    rest = [name for name in names if name not in chosen]
    if not rest:
        return ", ".join(described)
    more = f" and {len(rest) - 8} more" if len(rest) > 8 else ""
    return f"{', '.join(described)}; not read: {', '.join(rest[:8])}{more}"


def number(cell: str) -> bool:
    """A number, a share, a date or a time."""
    return bool(re.fullmatch(r"\s*[-+]?[\d.,]*\d[\d.,eE+:/TZ -]*%?\s*", cell))


def load_table(path: Path, problems: Problems, encoding: str, requested: Iterable[str | None] = ()) -> Frame:
    """A file as columns: Parquet by its magic, JSON and XES by their first character, else delimited text."""
    import pyarrow as pa

    with opened(path) as handle:
        raw = handle.read()
    if not raw.strip():
        raise SegueError(f"{path}: the file is empty; give a table with a row an event")
    check_parquet(path, raw)
    try:
        if is_parquet(raw):
            return _load_parquet(path, raw)
        if is_array(raw):
            return _load_array(path, raw)
        if is_xml(raw, encoding):
            return _load_xes(path, raw.lstrip(), encoding)
        raw = as_utf8(path, raw, encoding, problems)
        start = raw.lstrip()[:1000]
        if start[:1] == b"{" or bare(path).suffix.lower() in JSON or (start[:1] == b"[" and
                                                                      start[1:].lstrip()[:1] == b"{"):
            if bare(path).suffix.lower() not in LINES and (rows := document(raw.decode())):
                return _frame_of_objects(path, rows, "row")
            if is_json_lines(raw[:HEAD].decode("utf-8", "ignore")):
                return _load_lines(path, raw, problems)
            return _frame_of_objects(path, json_array(path, raw), "row")
        if is_games(raw[:HEAD]):
            return _load_games(path, raw.decode(), problems)
        if are_times_by_line(text := raw.decode()):
            return _load_times(path, text)
        return _load_text(path, raw, problems, frozenset(name for name in requested if name))
    except (pa.ArrowException, csv.Error, UnicodeError, OSError, NotImplementedError) as error:
        raise SegueError(f"{path}: not a readable table ({error}); write it again, or convert it to CSV") from error


def _columns(path: Path, table: pa.Table) -> dict[str, Any]:
    if len(set(table.column_names)) != len(table.column_names):
        double = next(name for name in table.column_names if table.column_names.count(name) > 1)
        raise SegueError(f"{path}: two columns are called '{double}'; rename one")
    return {name: table.column(name).combine_chunks() for name in table.column_names}


def _load_parquet(path: Path, raw: bytes) -> Frame:
    import pyarrow as pa

    table = _read_columnar(pa.BufferReader(raw), raw)
    while any(pa.types.is_struct(each.type) for each in table.schema):
        table = table.flatten()  # as `flat` does
    columns = _columns(path, table)
    columns.pop("__index_level_0__", None)  # of pandas
    return Frame(path, columns, True, np.arange(1, len(table) + 1), "row")


def _load_array(path: Path, raw: bytes) -> Frame:
    """A NumPy array of whole numbers: of one axis a sequence, of two a sequence a row."""
    import pyarrow as pa

    array = load_array(path, raw, "whole numbers, of one or two axes")
    if array.dtype.kind not in "iub" or not 1 <= array.ndim <= 2 or not array.size:
        raise SegueError(f"{path}: an array of {array.dtype} of {array.ndim} axes is no sequence of symbols: give "
                         "whole numbers, of one or two axes (measured ones binned first)")
    rows = [list(map(str, row.tolist())) for row in np.atleast_2d(array)]
    return Frame(path, {"items": pa.array(rows, pa.large_list(pa.string()))}, True, np.arange(1, len(rows) + 1), "row")


def are_times_by_line(text: str) -> bool:
    """Whether each line says when things happened: numbers with fractions that do not fall, on each line so many."""
    lines = [line.replace(",", " ").split() for line in text.split("\n") if line.strip()]
    try:
        rows = [list(map(float, line)) for line in lines]
    except ValueError:
        return False
    return len(rows) > 2 and len(set(map(len, rows))) > 1 and all(row == sorted(row) and len(row) > 1 for row in rows) \
        and any(number != int(number) for row in rows for number in row if math.isfinite(number))


def _load_games(path: Path, text: str, problems: Problems) -> Frame:
    import pyarrow as pa

    games = []
    for line, moves, result in games_of(text):
        illegal = next((move for move in moves if not (PLAYED.fullmatch(move) or STONE.fullmatch(move))), None)
        if illegal is None:
            games.append((line, moves, result))
        else:
            bad(problems, path, f"line {line}", None, f"{illegal!r:.40} is no move; mend or remove the game")
    if not games:
        raise SegueError(f"{path}: there is no game with moves in this file (PGN, SGF)")
    columns = {"moves": pa.array([moves for _, moves, _ in games], pa.large_list(pa.string())),
               "result": pa.array([result for *_, result in games], pa.string())}
    return Frame(path, columns, True, np.array([line for line, *_ in games]))


def _load_times(path: Path, text: str) -> Frame:
    import pyarrow as pa

    rows = [(number, line.replace(",", " ").split()) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    return Frame(path, {"time": pa.array([row for _, row in rows], pa.large_list(pa.string()))}, True,
                 np.array([number for number, _ in rows]))


def json_lines(path: Path, lines: Iterable[bytes], problems: Problems | None) -> Iterator[tuple[int, Any]]:
    """What each line says that is not blank, with its number; a bad line is named and stepped over."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            if not isinstance(value := literal(line.decode("utf-8", "replace")), dict):  # as Python writes it
                bad(problems, path, str(number), getattr(error, "pos", None), "not a line of JSON; mend or remove it")
                continue
        yield number, value


def _load_lines(path: Path, raw: bytes, problems: Problems) -> Frame:
    rows, numbers = [], []
    for number, value in json_lines(path, raw.split(b"\n"), problems):
        if (row := as_row(value)) is None:
            bad(problems, path, str(number), None, "the line is not a JSON object ({...}); mend or remove it")
            continue
        rows.append(row)
        numbers.append(number)
    if not rows:
        raise SegueError(f"{path}: no line is a JSON object" + (f" ({problems[-1]})" if problems else ""))
    return Frame(path, _columns_of_objects(rows), True, np.array(numbers))


def json_array(path: Path, raw: bytes) -> list[dict[str, Any]]:
    """The rows of a JSON array (see `as_row`), or of an object around them (see `document`)."""
    try:
        value = json.loads(raw)
        if isinstance(value, dict):
            return rows_of(value) or []
        rows = [as_row(each) for each in value]
    except (ValueError, RecursionError) as error:
        raise SegueError(f"{path}: not JSON ({error}); is the file cut short?") from error
    if None in rows:
        raise SegueError(f"{path}: not all entries of the JSON array are objects ({{...}}); mend or remove the others")
    return [row for row in rows if row is not None]


def _frame_of_objects(path: Path, rows: list[dict[str, Any]], unit: str) -> Frame:
    return Frame(path, _columns_of_objects(rows), True, np.arange(1, len(rows) + 1), unit)


def _columns_of_objects(rows: list[dict[str, Any]]) -> dict[str, Any]:
    import pyarrow as pa

    columns: dict[str, Any] = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row.get(name) for row in rows]
        if any(isinstance(value, list) for value in values):
            lists = [list(map(_text, value)) if isinstance(value, list) else None for value in values]
            columns[name] = pa.array(lists, pa.large_list(pa.string()))
        else:
            columns[name] = pa.array(list(map(_text, values)), pa.string())
    return columns


def _text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value)


def is_xml(raw: bytes, encoding: str) -> bool:
    """By its first character, where that is none of a header such as <DATE>,<TIME>."""
    with suppress(LookupError):
        start = raw[:1000].decode(marked(raw, encoding), "ignore").lstrip("\ufeff\r\n\t ")
        return start[:1] == "<" and not BRACKETED.match(start)
    return False


def _load_xes(path: Path, raw: bytes, encoding: str) -> Frame:
    """The events of an XES log, the process miners' XML: a column an attribute, and one for the name of the trace.
    encoding: where it is not UTF-8, in place of what the file says of itself."""
    from xml.etree import ElementTree

    def attributes(element: ElementTree.Element) -> dict[str, Any]:
        return {child.get("key", ""): child.get("value") for child in element if child.get("key")}

    rows: list[dict[str, Any]] = []
    traces = 0
    with parsed_xml(path, "XES"):
        override = None if codecs.lookup(encoding).name == "utf-8" else encoding
        parser = ElementTree.XMLParser(encoding=override)
        for _, element in ElementTree.iterparse(io.BytesIO(raw), ("end",), parser):
            if element.tag.rpartition("}")[2] == "trace":
                traces += 1
                case = attributes(element).get("concept:name") or f"trace {traces}"
                rows += [{"case:concept:name": case, **attributes(event)} for event in element
                         if event.tag.rpartition("}")[2] == "event"]
                element.clear()
    if not rows:
        raise SegueError(f"{path}: there is no event in this log (XES: log, trace, event)")
    return _frame_of_objects(path, rows, "event")


def _load_text(path: Path, raw: bytes, problems: Problems, requested: frozenset[str]) -> Frame:
    """Delimited text as columns of text; a row with another number of cells is a problem and is left out."""
    raw = _usual_csv(raw)
    head_size = MOST if ARFF.match(raw[:HEAD]) else HEAD
    head = raw[:head_size].decode("utf-8", "ignore")
    look = _look_text(bare(path).suffix.lower(), head, len(raw) > head_size, requested)
    if look is None:
        raise SegueError(f"{path}: the file is empty; give a table with a row an event")
    for line in look.odd:
        bad(problems, path, f"line {line}", None, f"not of the table of {len(look.names)} columns below; remove it")
    raw, delimiter, first_line = _body(raw, look)
    while head_size > HEAD and raw.rstrip().rpartition(b"\n")[2].startswith(b"%"):  # what Weka's files may end with
        raw = raw.rstrip().rpartition(b"\n")[0]
    if not raw.strip():
        raise SegueError(f"{path}: there is no row below the header; give a table with a row an event")
    table, rows, unit = _parse_csv(path, raw, look, delimiter, first_line, problems)
    columns = {name: column for place, (name, column) in enumerate(_columns(path, table).items(), 1)
               if not (look.headed and name == str(place) and column.null_count == len(column))}  # of no name
    return Frame(path, {name: _parsed_list_column(column) for name, column in columns.items()}, look.headed, rows, unit)


def _usual_csv(raw: bytes) -> bytes:
    """Delimited text as `_usual` has it, with line feeds."""
    if _usual(head := raw[:HEAD].decode("utf-8", "ignore")) != head:
        raw = _usual(raw.decode()).encode()
    if raw.count(b"\r") > 2 * raw.count(b"\n"):
        raw = raw.replace(b"\r\n", b"\n").replace(b"\r", b"\n")  # line ends of old Macs
    return raw


def _usual(text: str) -> str:
    """Delimited text with double quotes, without a semicolon that ends each line or what marks numbers, and with the
    film in each rating (see `RATINGS`), whose lines keep their places."""
    text = text.replace("'", '"') if SINGLE_QUOTED.match(text) else text
    text = LINE_SEMICOLON.sub("\n", text) if has_line_semicolons(text) else text
    if EUROSTAT.match(text):
        text = re.sub(r"(?<=\t):(?=[\t\r\n]|\Z)", "", re.sub(r"(?<=[\d:])( [a-z]+)? *(?=[\t\r\n]|\Z)", "", text))
    if RATINGS.match(text):
        film, rated = "", list[str]()
        for line in text.splitlines():
            film = line[:-1] if line.endswith(":") else film
            user, _, rest = line.partition(",")
            rated.append(f"{user},{film},{rest}" if rest else "")
        text = "\n".join(rated)
    return text


def _parse_csv(path: Path, raw: bytes, look: Look, delimiter: str, first_line: int,
               problems: Problems) -> tuple[pa.Table, np.ndarray, str]:
    """The rows below a header as columns of text, their numbers, and what these count: lines of the file (the rows
    begin in `first_line`), or rows where line ends stand within quotes."""
    import pyarrow as pa
    from pyarrow import csv as arrow_csv

    quote = look.quote.encode()
    quoted = look.quoted and quote in raw
    multiline = quoted and any(line.count(quote) % 2 for line in raw.split(b"\n"))  # some line end stands within quotes
    dropped: list[int] = []

    def drop_ragged(row: Any) -> str:
        dropped.append(row.number or 0)
        place = f"row {row.number}" if multiline else f"line {(row.number or 0) + first_line - 1}"
        text = f"{row.actual_columns} cells where {row.expected_columns} belong; mend or remove the line"
        bad(problems, path, place, None, text)
        return "skip"

    table = arrow_csv.read_csv(
        pa.BufferReader(raw),
        read_options=arrow_csv.ReadOptions(use_threads=False, column_names=look.names, block_size=1 << 24),
        parse_options=arrow_csv.ParseOptions(delimiter=delimiter, invalid_row_handler=drop_ragged,
                                             newlines_in_values=quoted,
                                             quote_char=look.quote if look.quoted else False,
                                             escape_char="\\" if look.quote == "'" else False),
        convert_options=arrow_csv.ConvertOptions(column_types=dict.fromkeys(look.names, pa.string()),
                                                 strings_can_be_null=True, null_values=NULLS),
    )
    rows = np.arange(1, len(table) + len(dropped) + 1) + (0 if multiline else first_line - 1)
    if dropped:
        rows = np.delete(rows, np.unique(np.array(dropped) - 1).clip(0, len(rows) - 1))[: len(table)]
    if len(dropped) > len(table):
        raise SegueError(f"{path}: most lines have not the {len(look.names)} cells of the first "
                         f"({problems[-1].record}: {problems[-1].text}); if it is no table, name the kind with kind=")
    if not len(table):
        raise SegueError(f"{path}: there is no row below the header; give a table with a row an event")
    return table, rows, "row" if multiline else "line"


def _parsed_list_column(column: Any) -> Any:
    """A column of text as lists of text where each cell that is filled says a list (see `listed`); else as it is."""
    import pyarrow as pa

    if len(column) == column.null_count or listed(column.drop_null()[0].as_py()) is None:
        return column
    lists = [None if cell is None else listed(cell.strip()) for cell in column.to_pylist()]
    if sum(values is None for values in lists) != column.null_count:
        return column
    return pa.array([None if values is None else list(map(_text, values)) for values in lists],
                    pa.large_list(pa.string()))


def _body(raw: bytes, look: Look) -> tuple[bytes, str, int]:
    """The rows of a table without what stands before them, the one character between cells, and the number of the first
    line of the rows."""
    offset = 0
    for _ in range(look.before):
        offset = raw.find(b"\n", offset) + 1 or len(raw)
    raw, delimiter = raw[offset:], look.delimiter
    if delimiter in LOGS:
        raw = b"\n".join(line if row is None else SEPARATOR.encode().join(row.groups(b"")) for line, row in
                        ((line, LOGS[delimiter][0].fullmatch(line)) for line in raw.split(b"\n")))
        return raw, SEPARATOR, 1
    if delimiter == "::":
        raw, delimiter = raw.replace(b"::", SEPARATOR.encode()), SEPARATOR
    elif delimiter == " ":
        raw, delimiter = b"\n".join(SEPARATOR.encode().join(line.split()) for line in raw.split(b"\n")), SEPARATOR
    start = len(raw) - len(raw.lstrip(b"\r\n"))
    return raw[start:], delimiter, look.before + raw[:start].count(b"\n") + 1
