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
from segue.kinds.documents import as_row, document, flat, rows_of, spread
from segue.kinds.games import PLAYED, STONE, are_moves, games_of, is_games
from segue.kinds.packed import actual, bare, opened
from segue.kinds.times import DATE

if TYPE_CHECKING:
    import pyarrow as pa

ROWS = 50  # that a look takes
MANY = 1000  # of rows that may stand class by class, as those of one JSON object do
DAYS = 8  # columns called by dates from which on each row is a series
LOG = "log"  # in place of a sign between cells: a web server's log
ENDED = re.compile(r",?;[ \t]*\r?(\n|$)")  # a semicolon, where it ends a line of commas
UNIT = "\x1f"  # ASCII's own sign between cells, which stands for those of several characters
SIGNS = (",", ";", "\t", "|", "::", " ")  # what may stand between cells; a blank stands for any run of blanks
DELIMITED = frozenset((".csv", ".tsv", ".tab", ".arff", ".inter"))  # the last as RecBole has them
LINES = frozenset((".jsonl", ".ndjson"))
JSON = LINES | {".json", ".jsonocel"}
PARQUET = frozenset((".parquet", ".pq", ".arrow", ".feather", ".ipc", ".orc"))  # and its like
# Files that may hold a table.
TABULAR = DELIMITED | JSON | PARQUET | {
    "", *words(".txt .dat .data .log .list .trn .tra .tst .tes .train .test .pgn .sgf")}
SINGLE = re.compile(r"'[^'\n]*'([,;\t]'[^'\n]*')+\s*\n")  # a heading in quotation marks of another sort
IDS = re.compile(r"[A-Za-z_]{0,4}\d+(-\d+)?( +[A-Za-z_]{0,4}\d+(-\d+)?)*")  # N55528 N19639
BARE = re.compile(r"\[\w[\w-]*(\s*,\s*\w[\w-]*)+\]")  # [E5,E22], a list of words without quotation marks
TYPED = re.compile(r":(token|float)(_seq)?$")  # what RecBole writes behind a column's name
LONG_WORD = re.compile(r"[A-Z*-]{20,}|[a-z*-]{20,}")  # no name of a column, and no word: letters of a sequence
# A line of a web server's log in the common form, or with what NCSA added to it.
ACCESS = re.compile(rb'(\S+) (\S+) (\S+) \[([^\]]+)\] "((?:[^"\\]|\\.)*)" (\S+) (\S+)'
                    rb'(?: "((?:[^"\\]|\\.)*)" "((?:[^"\\]|\\.)*)".*)?\s*')
ACCESSED = words("client identity account time request status bytes referer agent")
ALONE = {*words("name text sentence word title address city url item event activity action symbol value sequence seq "
                "smiles molecule")}  # what a column that is alone is called
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
    begin = text.lstrip()[:1]
    if begin == "{" or suffix in JSON or (begin == "[" and text.lstrip()[1:].lstrip()[:1] == "{"):
        return _look_json(suffix, text, len(head) >= HEAD)
    look = _look_text(suffix, text, len(head) >= HEAD)
    return look if look is not None and (len(look.names) > 1 or suffix in DELIMITED) else None


def is_parquet(head: bytes) -> bool:
    """By its first bytes. Arrow's own files and streams (Feather is one) and ORC are read as Parquet is."""
    return head.startswith((b"PAR1", b"ARROW1", b"FEA1", b"ORC")) or _is_stream(head)


def _is_stream(head: bytes) -> bool:
    """Of Arrow: a mark, then the length of a schema."""
    return head[:4] == b"\xff\xff\xff\xff" and 0 < int.from_bytes(head[4:8], "little") < HEAD << 4 and \
        head[9:12] == b"\0\0\0"


def _columnar(source: Any, head: bytes, few: bool = False) -> pa.Table:
    """The table in a file for which `is_parquet`. few: its first rows are enough."""
    import pyarrow as pa
    from pyarrow import feather, orc, parquet

    if head[:4] == b"PAR1":
        file = parquet.ParquetFile(source)
        if not few or not file.metadata.num_rows:
            return file.read(use_threads=False)
        return pa.Table.from_batches([next(file.iter_batches(ROWS, use_threads=False))])
    if head[:3] == b"ORC":
        stripes = orc.ORCFile(source)
        return pa.Table.from_batches([stripes.read_stripe(0)]) if few and stripes.nstripes else stripes.read()
    if head[:4] == b"FEA1":
        return feather.read_table(source, use_threads=False)
    whole = head[:6] == b"ARROW1"
    reader = pa.ipc.open_file(source) if whole else pa.ipc.open_stream(source)
    if not few:
        return reader.read_all()
    batch = next((reader.get_batch(i) for i in range(reader.num_record_batches)) if whole else iter(reader), None)
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
    good = dtype.kind in "buif" and dtype.itemsize <= 8 and all(isinstance(n, int) and n >= 0 for n in shape)
    return (tuple(shape), dtype, handle.tell(), bool(fortran)) if good and dtype.names is None else None


def load_array(path: Path, data: bytes, what: str) -> np.ndarray:
    """A NumPy array of numbers; a SegueError where it is none or was cut. what: what could be saved, for the error."""
    header = array_header(data)
    if header is None:
        pickled = " (it holds Python objects, a pickle, which is never opened)" if b"'|O'" in data[:256] else ""
        raise SegueError(f"{path}: no array that can be read{pickled}; save it with numpy.save, as {what}")
    shape, dtype, start, fortran = header
    whole, there = math.prod(shape), (len(data) - start) // dtype.itemsize
    if there < whole:
        raise SegueError(f"{path}: the file was cut: it has {there:,} of {whole:,} values; fetch it again")
    values = np.frombuffer(data, dtype, whole, start) if whole else np.empty(0, dtype)
    return values.reshape(shape[::-1]).transpose() if fortran else values.reshape(shape)


def check_parquet(path: Path, head: bytes) -> None:
    """Refuse what is Parquet by name only."""
    if bare(path).suffix.lower() in PARQUET and not is_parquet(head):
        raise SegueError(f"{path}: called Parquet or Arrow, but does not begin so; fetch it again or rename it")


def _look_parquet(path: Path, head: bytes) -> Look | None:
    import pyarrow as pa

    with suppress(pa.ArrowException, OSError, NotImplementedError, StopIteration), \
            pa.memory_map(str(actual(path))) as source:
        table = _columnar(source, head, few=True).slice(0, ROWS)
        names = [name for name in table.column_names if name != "__index_level_0__"]
        if not len(table):
            return Look(names, [], form="parquet")
        return _look_rows([flat(row) for row in table.select(names).to_pylist()], "parquet")
    return None


def by_lines(text: str) -> bool:
    """Whether JSON is a value a line, by its beginning; else it is one array."""
    first, _, rest = text.lstrip().partition("\n")
    if first[:1] != "[" or not rest.strip():
        return first[:1] != "["
    with suppress(ValueError, RecursionError):
        return bool(json.loads(first))
    return False


def _look_json(suffix: str, text: str, cut: bool) -> Look | None:
    """cut: the text goes on."""
    if suffix not in LINES and (found := document(text, cut)):
        return _look_rows(list(spread(found, MANY)), "document")
    decoder, between = json.JSONDecoder(), re.compile(r"[,\s]*")
    rows: list[dict[str, Any]] = []
    lines = by_lines(text)
    at = 0 if lines else text.index("[") + 1
    while len(rows) < ROWS:
        at = between.match(text, at).end()  # type: ignore[union-attr]
        try:
            value, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            break
        row = as_row(value)
        if row is None or (lines and "\n" in text[at:end].strip()):
            return None  # one object over many lines: no table
        rows.append(row)
        at = end
    if not rows and text.lstrip()[:2] in ("{'", "{u"):  # as Python writes it
        written = text.split("\n")[: -1 if cut else None]
        rows = [flat(value) for line in written[:ROWS] if isinstance(value := literal(line), dict)]
    if not rows:  # a first row longer than the look, perhaps
        listed = set(re.findall(r'"([^"\\]{1,64})"\s*:\s*\[(?!\s*[\[{])', text))
        names = [] if "\n" in text else list(dict.fromkeys(re.findall(r'"([^"\\]{1,64})"\s*:', text)))
        return Look(names, [[[0] if name in listed else None for name in names]]) if names else None
    return _look_rows(rows, "json")


def _look_rows(rows: list[dict[str, Any]], form: str) -> Look:
    names = list(dict.fromkeys(name for row in rows for name in row))
    return Look(names, [[row.get(name) for name in names] for row in rows], form=form)


def _look_text(suffix: str, text: str, cut: bool, asked: frozenset[str] = frozenset()) -> Look | None:
    """cut: the text goes on. asked: names of columns; a first line that holds one is a header, and where these are
    numbers there is none."""
    if ARFF.match(text[:HEAD].encode()):
        return _look_arff(text)
    text = text.replace("'", '"') if SINGLE.match(text) else text
    text = ENDED.sub("\n", text) if ended(text) else text
    lines = re.split(r"(?<=\r)" if text.count("\r") > 2 * text.count("\n") else r"(?<=\n)", text)
    if cut and len(lines) > 2:
        lines.pop()
    if _accessed(line.encode() for line in lines[:ROWS]):
        asked_for = [[cell.decode() for cell in found.groups(b"")] for line in lines[:ROWS]
                     if (found := ACCESS.fullmatch(line.encode()))]
        return Look(list(ACCESSED), asked_for, True, True, "delimited", LOG, False)
    told = re.fullmatch(r'"?sep=(.)"?\s*', lines[0])  # Excel's way to say the sign
    noted = next((i for i, line in enumerate(lines) if line.strip() and line.lstrip()[0] not in "#%"
                  and not (told and i == 0)), 0)
    before, lines = lines[:noted], lines[noted:]
    delimiter, quoted = (told[1], True) if told else _delimiter(lines, suffix)
    rows = list(islice(_cells(lines, delimiter, quoted), ROWS))
    if not rows:
        return None
    counts = [len(row) for _, row in rows]
    usual = max(set(counts), key=counts.count)
    odd = 0
    while odd < min(10, len(rows) - 2) and counts[odd] not in (usual, usual - 1) and counts[odd + 1 :].count(usual) > 1:
        odd += 1  # a title above the table
    strange, rows = tuple(noted + number for number, _ in rows[:odd]), rows[odd:]
    last, body = rows[0][0], [row for _, row in rows]
    first = [cell.strip() for cell in body[0]]
    comment = next(_cells([before[-1].lstrip("#% ")], delimiter, quoted), (0, [""]))[1] if before else []
    comment = comment[len(comment) == usual + 1 and comment[0][-1:] == ":" :]  # Fields: date time ...
    if len({*comment} - {""}) == len(comment) == usual > 1 and not any(map(number, comment)):
        names, headed, begin = [name.strip() for name in comment], True, noted
    elif _is_header(first, body[1:], asked):
        names, headed, begin, body = [TYPED.sub("", name) for name in first], True, noted + last, body[1:]
        if below := _header_rows(first, body, usual):
            names, begin, body = _joined_header(first, body[:below], usual), noted + rows[below][0], body[below:]
    elif odd == 1 and delimiter != " " and (title := _short_header(lines, delimiter, quoted, usual, body)):
        names, headed, begin, strange = [*title, *map(str, range(len(title) + 1, usual + 1))], True, noted + 1, ()
    else:
        names, headed = [str(i + 1) for i in range(usual)], False
        begin = noted + last - 1 - sum(cell.count("\n") for cell in body[0])
    if headed and len(names) == usual - 1 and len(body) > 1:  # a nameless column: of row names, or empty
        names = [*names, ""] if all(row[-1].strip() == "" for row in body if len(row) == usual) else ["row", *names]
    names = _different([name or str(i + 1) for i, name in enumerate(names)])
    regular = usual > 1 and all(len(row) == usual for row in body)
    cells: list[list[Any]] = [[cell.strip() for cell in row] for row in body]
    for place in range(usual):
        lists = [listed(row[place]) if place < len(row) else None for row in cells]
        if any(lists) and all(each is not None or row[place : place + 1] in ([], [""])
                              for each, row in zip(lists, cells)):
            cells = [[*row[:place], each, *row[place + 1 :]] for each, row in zip(lists, cells)]
    return Look(names, cells, headed, regular, "delimited", delimiter, quoted, begin, strange)


def ended(text: str) -> bool:
    """Whether each line of commas has a semicolon at its end, and none before."""
    lines = [line.rstrip() for line in text.split("\n", ROWS)[:ROWS] if line.strip()]
    lines = lines[: -1 if len(lines) > 1 else None]
    return bool(lines) and all("," in line and line.find(";") == len(line) - 1 for line in lines)


def _look_arff(text: str) -> Look | None:
    """The beginning of a table of Weka: the columns a line each, and behind @data their cells."""
    head, data, body = text.partition(next(iter(re.findall(r"(?im)^[ \t]*@data[ \t]*\r?\n", text)), "\0"))
    named = re.findall(r"(?im)^[ \t]*@attribute[ \t]+('(?:[^'\\]|\\.)*'|\"[^\"]*\"|\S+)", head)
    names = _different([name.strip("'\"") for name in named])
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
    if BARE.fullmatch(cell) and not cell[1:-1].replace(",", "").replace(" ", "").isdigit():
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


def _accessed(lines: Iterable[bytes]) -> bool:
    """Whether these are the first lines of a web server's log; the last may be cut."""
    told = [ACCESS.fullmatch(line) is not None for line in lines if line.strip()]
    return 10 * sum(told) >= 9 * max(len(told) - 1, 1)


def _different(names: list[str]) -> list[str]:
    """Names of columns of which none is there twice: the second 'item' is 'item (2)'."""
    seen: Counter[str] = Counter()
    found = []
    for name in names:
        seen[name] += 1
        found.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return found


def _delimiter(lines: list[str], suffix: str) -> tuple[str, bool]:
    """The sign by which most rows have the same number of cells, two or more, and whether cells are quoted."""
    most, cells, best = 0.0, 1, (",", True)
    text = "".join(lines)
    for delimiter in ("\t", *SIGNS) if suffix in (".tsv", ".tab") else SIGNS:
        if delimiter not in text and delimiter != " ":
            continue
        for quoted in (True,) if delimiter in ",;" or '"' not in text else (True, False):
            counts = [len(row) for _, row in islice(_cells(lines, delimiter, quoted), ROWS)]
            usual = max(set(counts), key=counts.count, default=1)
            agreement = counts.count(usual) / len(counts) if usual > 1 else 0.0
            tabs = delimiter == "\t" != best[0] and 0 < agreement == most and usual == cells and not all(
                "\t\t" in line for line in lines[:ROWS] if line.strip())  # texts hold commas, but no tabs
            if delimiter == " " and suffix in DELIMITED and (agreement < 1 or not any(map(str.isdigit, text))):
                continue  # words of names
            if agreement > most or tabs:
                most, cells, best = agreement, usual, (delimiter, quoted)
    return best


def csv_rows(lines: Iterable[str], delimiter: str, quoted: bool, strict: bool = False, quote: str = '"') -> Any:
    """A `csv.reader` that knows the delimiter `::` too, and single quotes with backslashes before those inside."""
    if delimiter == "::":
        lines, delimiter = (line.replace("::", UNIT) for line in lines), UNIT
    weka = quote == "'"
    return csv.reader(lines, delimiter=delimiter, strict=strict, quotechar=quote, skipinitialspace=weka,
                      escapechar="\\" if weka else None, quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE)


def _cells(lines: Iterable[str], delimiter: str, quoted: bool, quote: str = '"') -> Iterator[tuple[int, list[str]]]:
    """Rows of cells, each with the number of its last line from 1; blank lines give none."""
    if delimiter == " ":
        yield from ((number, line.split()) for number, line in enumerate(lines, 1) if line.strip())
        return
    reader = csv_rows(lines, delimiter, quoted, quote=quote)
    with suppress(csv.Error):  # a cell without end: no table by this sign
        for row in reader:
            if any(cell.strip() for cell in row):
                yield reader.line_num, row


def _short_header(lines: list[str], delimiter: str, quoted: bool, usual: int, body: list[list[str]]) -> list[str]:
    """The names of the first columns in a first line that has fewer cells than the rows below, all of which are of
    numbers; else nothing."""
    first = [cell.strip() for cell in next(_cells(lines, delimiter, quoted), (0, [""]))[1]]
    named = 2 < len(first) < usual and len({*first} - {""}) == len(first) and not any(map(number, first))
    return first if named and all(len(row) == usual and all(map(number, row)) for row in body) else []


def _header_rows(first: list[str], body: list[list[str]], usual: int) -> int:
    """How many rows below a first one are of the header too, up to three: no cell of theirs above numbers is one, and
    the first row has cells that stand for several, or they say the same all over."""
    if len(body) < 6:
        return 0
    rest = [row for row in body[3:] if len(row) == usual]
    columns = [[cell.strip() for cell in column if cell.strip()] for column in zip(*rest)]
    above = [place for place, cells in enumerate(columns) if cells and all(map(number, cells)) and
             not all(map(DATE.fullmatch, cells))]
    said = [first[place] if place < len(first) else "" for place in above]
    count = 0
    while above and count < 3 and not any(number(cell) for cell in body[count]) and body[count][0].strip() + first[0]:
        cells = [body[count][place].strip() if place < len(body[count]) else "" for place in above]
        if len(set(said)) == len(said) > 1 and "" not in said and len(set(cells)) > 1:
            break  # the units of columns that have names
        count += 1
    return count if len(above) > 1 else 0


def _joined_header(first: list[str], below: list[list[str]], usual: int) -> list[str]:
    """The names of columns that several rows say: a cell that is empty in the first row goes on from the one before,
    and below it stands which of several it is. What says the same all over is left out."""
    rows = [[cell.strip() for cell in row] + [""] * (usual - len(row)) for row in (first, *below)]
    rows = [row for row in rows if len({*row[1:]} - {""}) > 1] or rows[:1]
    for i in range(2, usual):
        rows[0][i] = rows[0][i] or rows[0][i - 1]
    names = [" ".join(filter(None, column)) for column in zip(*rows)]
    index = next((row[0].strip() for row in reversed([first, *below]) if row and row[0].strip()), names[0])
    return [index, *names[1:]]


def _is_header(first: list[str], body: list[list[str]], asked: frozenset[str]) -> bool:
    """Whether a first row names the columns: by what was asked for, by numbers below words, or because its cells are
    short and none of them comes again in its column."""
    if any(name.isdigit() for name in asked):
        return False
    days = {cell for cell in first if DATE.fullmatch(cell)}
    if asked.intersection(first) or (len(days) >= DAYS and 2 * len(days) > len(set(first)) == len(first)):
        return True
    if first[0] == "" and body and ([row[0] for row in body[:3]] == ["0", "1", "2"] or
                                    first[1:] == list(map(str, range(len(first) - 1)))):
        return True  # of pandas: rows or columns are counted
    counted = [place for place, cell in enumerate(first) if number(cell)]
    if counted and len(body) > 1 and len(set(first)) == len(first) > len(counted) and not any(
            number(row[place]) for row in body for place in counted if place < len(row)):
        return True  # some are numbers, as pandas writes it, or years, with texts below
    at = [int(first[place]) for place in counted if first[place].isdigit()]
    if len(at) == len(counted) > 2 and at == list(range(at[0], at[0] + len(at))) and at[0] < 2 and \
            len(set(first)) == len(first) and any(all(map(number, column)) for name, *column in zip(first, *body)
                                                  if not number(name)):
        return True  # date,0,1,2,OT
    if len(at) == len(first) > 2 and at == list(range(at[0], at[0] + len(at))) and at[0] < 2 and any(
            re.search(r"\d[.,]\d", cell) for row in body for cell in row):
        return True  # 0,1,2, above measured numbers
    if len(at) == len(counted) >= DAYS and len(set(np.diff(at).tolist())) == 1 and at[0] < at[1] and \
            at[0] >= 1500 and at[-1] < 2200 and len(at) < len(set(first)) == len(first):
        return True  # years
    if any(map(number, first)) or any(all(map(LONG_WORD.fullmatch, column)) for column in zip(first, *body)):
        return False
    if not body or any(2 * sum(number(cell) for cell in column) >= len(column) for column in zip(*body)):
        return True
    if len(first) == 1:
        alike = [row[0][:1].isupper() == first[0][:1].isupper() for row in body if row]
        last = re.split(r"[_ ]", first[0].lower())[-1]
        return bool(ALONE & {last, last.removesuffix("s")}) or 2 * sum(alike) < len(alike)
    names = [cell for cell in first if cell]  # a table may have columns that are empty all over
    again = any(cell and place < len(row) and row[place].strip() == cell for place, cell in enumerate(first)
                for row in body)
    short = all(len(cell.split()) <= 4 and cell[-1:] not in ".!?" for cell in names)
    return short and not again and len(set(names)) == len(names) > len(first) // 3


def said(roles: Iterable[tuple[str, str | None]], names: Iterable[str], span: str = "") -> str:
    """How a table was understood: the columns that have a role, and what was not read of it. span: what the column that
    says when says."""
    chosen = {name: role for role, name in roles if name is not None}
    rest = [name for name in names if name not in chosen]
    unread = f"; not read: {', '.join(rest[:8])}" + (f" and {len(rest) - 8} more" if len(rest) > 8 else "")
    told = [f"{role}={name}" + (f" ({span})" if span and role == "when" else "") for name, role in chosen.items()]
    return ", ".join(told) + (unread if rest else "")


def number(cell: str) -> bool:
    """A number, a share, a date or a time."""
    return bool(re.fullmatch(r"\s*[-+]?[\d.,]*\d[\d.,eE+:/TZ -]*%?\s*", cell))


def load_table(path: Path, problems: Problems, encoding: str, asked: Iterable[str | None] = ()) -> Frame:
    """A file as columns: Parquet by its magic, JSON and XES by their first sign, else delimited text."""
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
        begin = raw.lstrip()[:1000]
        if begin[:1] == b"{" or bare(path).suffix.lower() in JSON or (begin[:1] == b"[" and
                                                                      begin[1:].lstrip()[:1] == b"{"):
            if bare(path).suffix.lower() not in LINES and (found := document(raw.decode())):
                return _of_objects(path, found, "row")
            if by_lines(raw[:HEAD].decode("utf-8", "ignore")):
                return _load_lines(path, raw, problems)
            return _of_objects(path, json_array(path, raw), "row")
        if is_games(raw[:HEAD]):
            return _load_games(path, raw.decode(), problems)
        if times_a_line(text := raw.decode()):
            return _load_times(path, text)
        return _load_text(path, raw, problems, frozenset(name for name in asked if name))
    except (pa.ArrowException, csv.Error, UnicodeError, OSError, NotImplementedError) as error:
        raise SegueError(f"{path}: not a readable table ({error}); write it again, or convert it to CSV") from error


def _columns(path: Path, table: pa.Table) -> dict[str, Any]:
    if len(set(table.column_names)) != len(table.column_names):
        double = next(name for name in table.column_names if table.column_names.count(name) > 1)
        raise SegueError(f"{path}: two columns are called '{double}'; rename one")
    return {name: table.column(name).combine_chunks() for name in table.column_names}


def _load_parquet(path: Path, raw: bytes) -> Frame:
    import pyarrow as pa

    table = _columnar(pa.BufferReader(raw), raw)
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


def times_a_line(text: str) -> bool:
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
        strange = next((move for move in moves if not (PLAYED.fullmatch(move) or STONE.fullmatch(move))), None)
        if strange is None:
            games.append((line, moves, result))
        else:
            bad(problems, path, f"line {line}", None, f"{strange!r:.40} is no move; mend or remove the game")
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
    return Frame(path, _objects(rows), True, np.array(numbers))


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


def _of_objects(path: Path, rows: list[dict[str, Any]], unit: str) -> Frame:
    return Frame(path, _objects(rows), True, np.arange(1, len(rows) + 1), unit)


def _objects(rows: list[dict[str, Any]]) -> dict[str, Any]:
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
    """By its first sign."""
    with suppress(LookupError):
        return raw[:1000].decode(marked(raw, encoding), "ignore").lstrip("\ufeff\r\n\t ").startswith("<")
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
        said = None if codecs.lookup(encoding).name == "utf-8" else encoding
        parser = ElementTree.XMLParser(encoding=said)
        for _, element in ElementTree.iterparse(io.BytesIO(raw), ("end",), parser):
            if element.tag.rpartition("}")[2] == "trace":
                traces += 1
                case = attributes(element).get("concept:name") or f"trace {traces}"
                rows += [{"case:concept:name": case, **attributes(event)} for event in element
                         if event.tag.rpartition("}")[2] == "event"]
                element.clear()
    if not rows:
        raise SegueError(f"{path}: there is no event in this log (XES: log, trace, event)")
    return _of_objects(path, rows, "event")


def _load_text(path: Path, raw: bytes, problems: Problems, asked: frozenset[str]) -> Frame:
    import pyarrow as pa
    from pyarrow import csv as arrow_csv

    if SINGLE.match(raw[:HEAD].decode("utf-8", "ignore")):
        raw = raw.replace(b"'", b'"')
    if ended(raw[:HEAD].decode("utf-8", "ignore")):
        raw = ENDED.sub("\n", raw.decode()).encode()
    if raw.count(b"\r") > 2 * raw.count(b"\n"):
        raw = raw.replace(b"\r\n", b"\n").replace(b"\r", b"\n")  # line ends of old Macs
    seen = MOST if ARFF.match(raw[:HEAD]) else HEAD
    look = _look_text(bare(path).suffix.lower(), raw[:seen].decode("utf-8", "ignore"), len(raw) > seen, asked)
    if look is None:
        raise SegueError(f"{path}: the file is empty; give a table with a row an event")
    for line in look.odd:
        bad(problems, path, f"line {line}", None, f"not of the table of {len(look.names)} columns below; remove it")
    raw, delimiter, first = _body(raw, look)
    while seen > HEAD and raw.rstrip().rpartition(b"\n")[2].startswith(b"%"):  # what Weka's files may end with
        raw = raw.rstrip().rpartition(b"\n")[0]
    if not raw.strip():
        raise SegueError(f"{path}: there is no row below the header; give a table with a row an event")
    sign = look.quote.encode()
    quoted = look.quoted and sign in raw
    several = quoted and any(line.count(sign) % 2 for line in raw.split(b"\n"))  # some line end stands within quotes
    dropped: list[int] = []

    def ragged(row: Any) -> str:
        dropped.append(row.number or 0)
        where = f"row {row.number}" if several else f"line {(row.number or 0) + first - 1}"
        text = f"{row.actual_columns} cells where {row.expected_columns} belong; mend or remove the line"
        bad(problems, path, where, None, text)
        return "skip"

    table = arrow_csv.read_csv(
        pa.BufferReader(raw),
        read_options=arrow_csv.ReadOptions(use_threads=False, column_names=look.names, block_size=1 << 24),
        parse_options=arrow_csv.ParseOptions(delimiter=delimiter, invalid_row_handler=ragged, newlines_in_values=quoted,
                                             quote_char=look.quote if look.quoted else False,
                                             escape_char="\\" if look.quote == "'" else False),
        convert_options=arrow_csv.ConvertOptions(column_types=dict.fromkeys(look.names, pa.string()),
                                                 strings_can_be_null=True, null_values=NULLS),
    )
    rows = np.arange(1, len(table) + len(dropped) + 1) + (0 if several else first - 1)
    if dropped:
        rows = np.delete(rows, np.unique(np.array(dropped) - 1).clip(0, len(rows) - 1))[: len(table)]
    if len(dropped) > len(table):
        raise SegueError(f"{path}: most lines have not the {len(look.names)} cells of the first "
                         f"({problems[-1].record}: {problems[-1].text}); if it is no table, name the kind with kind=")
    if not len(table):
        raise SegueError(f"{path}: there is no row below the header; give a table with a row an event")
    columns = {name: column for name, column in _columns(path, table).items()
               if not (look.headed and name.isdigit() and column.null_count == len(column))}  # after a last delimiter
    for name, column in columns.items():
        if len(column) > column.null_count and listed(column.drop_null()[0].as_py()) is not None:
            lists = [None if cell is None else listed(cell.strip()) for cell in column.to_pylist()]
            if sum(each is None for each in lists) == column.null_count:
                texts = [None if each is None else list(map(_text, each)) for each in lists]
                columns[name] = pa.array(texts, pa.large_list(pa.string()))
    return Frame(path, columns, look.headed, rows, "row" if several else "line")


def _body(raw: bytes, look: Look) -> tuple[bytes, str, int]:
    """The rows of a table without what stands before them, the one sign between cells, the number of the first line."""
    begin = 0
    for _ in range(look.before):
        begin = raw.find(b"\n", begin) + 1 or len(raw)
    raw, delimiter = raw[begin:], look.delimiter
    if delimiter == LOG:
        raw = b"\n".join(line if row is None else UNIT.encode().join(row.groups(b"")) for line, row in
                        ((line, ACCESS.fullmatch(line)) for line in raw.split(b"\n")))
        return raw, UNIT, 1
    if delimiter == "::":
        raw, delimiter = raw.replace(b"::", UNIT.encode()), UNIT
    elif delimiter == " ":
        raw, delimiter = b"\n".join(UNIT.encode().join(line.split()) for line in raw.split(b"\n")), UNIT
    start = len(raw) - len(raw.lstrip(b"\r\n"))
    return raw[start:], delimiter, look.before + raw[:start].count(b"\n") + 1
