"""Text and code: bytes that are UTF-8, from plain files, a field of JSON Lines or a column of a table."""

from __future__ import annotations

import codecs as encodings
import csv
import io
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, ClassVar

from segue.errors import SegueError
from segue.files import atomic_write
from segue.kinds import chats, gutenberg, mails, subtitles, translations
from segue.kinds.base import (
    HEAD,
    MARK,
    PIECE,
    Dataset,
    Kind,
    Problems,
    Record,
    bad,
    check_text,
    encoding_of,
    head_of,
    looks_binary,
    marked,
    of_class,
    words,
)
from segue.kinds.beside import classes_beside
from segue.kinds.codecs import BPECodec, ByteCodec, Codec, as_bytes
from segue.kinds.columns import both, class_column, class_of, told
from segue.kinds.documents import as_row, flat
from segue.kinds.films import are_lines, dialogues
from segue.kinds.frame import (
    DELIMITED,
    JSON,
    LINES,
    PARQUET,
    TABULAR,
    Look,
    are_ids,
    by_lines,
    check_parquet,
    csv_rows,
    glance,
    is_parquet,
    json_array,
    json_lines,
    load_table,
    number,
    said,
)
from segue.kinds.packed import bare, no_text, opened
from segue.kinds.several import Form
from segue.kinds.several import form_of as several_of
from segue.kinds.times import DATE

SAMPLE = 1 << 26  # bytes of text that merges are learned from
# Columns and fields that hold text, best first; those of objects (JSON) may have names that say it less surely.
COLUMNS = words("text content body document sentence article story passage dialogue dialog conversation transcript "
                "question message review comment utterance utt tweet post query abstract summary lyrics caption abc "
                "smiles selfies")
FIELDS = words("text content code body document sentence article story passage dialogue dialog conversation transcript "
               "question problem prompt input instruction instructions problem_statement description abstract message "
               "review comment utterance utt tweet post query summary completion output response answer chosen context "
               "title lyrics caption abc smiles selfies")
# What asks and what answers: together they are one text. So are what a few things are made of, and these.
ASKS = words("instruction instructions question questions stem problem problem_statement prompt input context passage "
             "article story body query options choices endings premise buggy mr goal ctx history sent1 obs1 obs2 "
             "patterns")
ANSWERS = words("completion output response answer answers rationale solution solutions canonical_solution chosen "
                "answerkey hypothesis sentence fixed patch ref correct gt target targets responses")
SOURCES = words("text question dialogue dialog conversation transcript document article body content description "
                "intent")
MADE = words("code snippet sql query cmd summary highlights")
RIGHT = words("label answer answerkey correct gold")  # say which of several choices is right
CHOICE = re.compile(r"(choice|option|sol|ending|answer|opt|hyp)[ _]?[0-9a-f]|[a-f]|endings|choices|options",
                    re.IGNORECASE)
VERSION = re.compile(r"(response|output|completion|human_ref|answer)[ _]?[01aj]", re.IGNORECASE)  # and others
LANGUAGE = re.compile(r"(translation\.)?([a-z]{2,3}([_-]\w{2,4})?|(english|french|german|spanish|italian|russian|"
                      r"chinese|japanese)\b.*)", re.IGNORECASE)
NAMED = words("name word surname lastname firstname fullname")  # what holds short texts
DIALOGUES = words("dialogue dialog conversation transcript context")
TOKENS = ("tokens", "words", "token")  # a text in lists of its words
TURNS, ROLES = words("content value text utterance message"), words("role from speaker author agent sender_name user")
LISTED = words("turns utterances conversation conversations messages history dialog dialogue data")  # nobody named
SPEAKERS = (*ROLES, *words("speaker_id speaker_idx speaker_name character sender username participant name who"))
# The columns of a chat that is a table, and those by which messages are known to stand alone, as on public platforms.
MESSAGES, SENT = words("text content message msg body"), words("ts timestamp timestamp_ms date time datetime sent")
ALONE = re.compile(r"(?i)like|retweet|favou?rite|score|star|rating|vote|point|title|subject|label|lang|follower|view")
DIALOGUE = re.compile(r"(dialog(ue)?|conv(ersation)?|thread|chat|scene|message_?tree)[ _]?(id|idx|index|no|nr|num|"
                      r"number|file)?", re.IGNORECASE)  # the column that says to which dialogue a turn belongs
SMILES = {".smi", ".smiles"}  # a molecule a line, its name behind it
LETTERS = bytes(range(65, 91)) + bytes(range(97, 123)) + bytes(range(128, 256))


@dataclass(frozen=True)
class Roles:
    """What columns are read as. field: those of the text; column: that of classes; dialogue: that which says to which
    dialogue a row, one turn of it, belongs ("": all rows are turns of one); speaker: who says it."""

    field: list[str]
    column: str | None = None
    dialogue: str | None = None
    speaker: str | None = None


class Text(Kind):
    """Text: an object is bytes (UTF-8; a str is encoded), its unit the byte. Plain files, a field of JSON Lines or of a
    JSON array, a column of CSV, TSV or Parquet. What is not UTF-8 is a SegueError that says at which byte, unless
    `encoding` or errors="keep" is given (see `read`)."""

    name = "text"
    unit = "byte"
    storage = "bytes"
    several = False
    family = "text"
    split_by = "content"
    extensions: ClassVar[frozenset[str]] = frozenset(words(
        ".txt .text .md .rst .tex .org .adoc .srt .log .html .htm .xml .jsonl .ndjson .json .yaml .yml .toml .ini .cfg "
        ".abc"))

    def sniff(self, path: Path, head: bytes) -> float:
        suffix = path.suffix.lower()
        if is_parquet(head):
            return 0.7 if _holds_text(path, head) else 0.0
        if not head or looks_binary(head) or no_text(head):
            return 0.0
        if _holds_dialogues(path, head):
            return 0.91  # and not who spoke after whom
        if suffix in LINES:
            return 0.8 if _holds_text(path, head) else 0.3
        several = self.name == "text" and suffix not in self.extensions and (
            mails.is_mail(head) or form_of(head.decode("utf-8", "replace")))
        surely = 0.8 if suffix in self.extensions or several else 0.2
        if suffix in DELIMITED:
            table = glance(path, head)
            surely = 0.7 if _holds_text(path, head) else 0.5 if table is not None and named_columns(table) else 0.2
        elif suffix == ".json" and (table := glance(path, head)) is not None and is_plain_table(table):
            surely = 0.8 if text_columns(table) else 0.5 if named_columns(table) else 0.3
        if not head.translate(None, b"0123456789 .,;:+-eE\t\r\n"):
            return 0.02  # numbers alone
        try:
            encodings.getincrementaldecoder("utf-8")().decode(head)
        except UnicodeDecodeError:
            return surely / 2
        return surely

    def read(self, path: Path, problems: Problems | None = None, *, encoding: str = "utf-8", errors: str = "strict",
             lines: bool = False, field: Sequence[str] = (), classes: str | None = None) -> Iterator[Record]:
        """One record a file (in pieces of 16 MiB, cut at a line end, where it is longer).

        encoding: the file's; it is turned into UTF-8 (without being told: UTF-16 with a byte order mark, and what is
        not UTF-8 where its letters are surely those of another). errors: "strict" stops at the first broken byte with
        its offset; "keep" takes bytes as they are. lines: one record a
        line that is not empty. field: of JSON (lines, or an array of objects), CSV, TSV and Parquet the field or column
        that holds the text, one record a row (found if not given, by its name or by what is in it; a table without one
        is plain text). Several fields, such as a question and its answer, follow each other line by line, and so do the
        turns of a dialogue, each behind who says it, within a row or, where no field is given, in rows of their own.
        Plain text whose lines each begin or end with a class is a text a line, without it, and so are lines for which a
        file beside it says as many classes; sentences of a word a line (CoNLL) are a text each, of the words or of the
        columns that `field` counts; so are numbered lines up to the next that is numbered 1, and what stands between
        <|endoftext|>. Chats, mails, subtitles, translation memories and books of Project Gutenberg are read without
        what their programs put around the words; files side by side that are translations, a sentence a line, are read
        together. classes: the field or column that says of which class each record is ("": one that seems to, what
        is in front of or behind each line, or in a file beside it), which its name then tells.
        """
        beside = classes_beside(path) if self.name == "text" and not (field or classes) else None
        if beside is not None:
            each = list(self._read(path, problems, encoding, errors, bare(path).suffix.lower() not in JSON, [], None))
            if len(each) == len(beside):
                if problems is not None:
                    problems.note = "; ".join(filter(None, (problems.note, "classes from the file beside it")))
                yield from (Record(record.object, name=of_class(record.name, label if classes == "" else ""))
                            for record, label in zip(each, beside))
                return
        field = [field] if isinstance(field, str) else list(field)
        yield from self._read(path, problems, encoding, errors, lines, field, classes)

    def _read(self, path: Path, problems: Problems | None, encoding: str, errors: str, lines: bool, field: list[str],
              classes: str | None) -> Iterator[Record]:
        if errors not in ("strict", "keep"):
            raise SegueError(f"errors is 'strict' or 'keep', not {errors!r}")
        try:
            "".encode(encoding)  # refuses what is known but no encoding of text, such as hex
            encoding = encodings.lookup(encoding).name if errors == "keep" else encoding_of(path, encoding, problems)
        except (LookupError, ValueError) as error:
            raise SegueError(f"there is no text encoding called '{encoding}'; try utf-8, latin-1 or utf-16") from error
        suffix = bare(path).suffix.lower()
        head = head_of(path, encoding).decode("utf-8", "ignore").removeprefix("\ufeff")
        if self.name == "text" and not (lines or field) and are_lines(head):
            if problems is not None:
                problems.note = "a dialogue a text, each turn behind who says it"
            for name, text in dialogues(path, self._lines(path, encoding, errors)):
                yield Record(text.encode(), name=f"{path}:{name}")
            return
        if self.name == "text" and not (lines or field) and mails.is_mail(head.encode()):
            yield from mails.mails(path, problems)
            return
        if self.name == "text" and not lines and suffix not in {".csv", ".arff", ".inter"} | JSON | PARQUET and (
                several := form_of(head, field, suffix in DELIMITED)):
            if problems is not None:
                problems.note = several.note.replace("not read: the class", "read: the class" if classes is not None
                                                     else "not read: the class")
            found = False
            for number, text, label in several.cut(self._lines(path, encoding, errors)):
                found = True
                yield Record(text.encode(), name=of_class(f"{path}:{number}", label if classes == "" else ""))
            if not found:
                raise SegueError(f"{path}: there is no text in this file ({several.note})")
            return
        if not lines and (field or classes or suffix in TABULAR):
            rows = self._rows(path, problems, field, classes, encoding)
            if rows is not None:
                yield from rows
                return
        if not lines and suffix == ".ipynb":
            yield Record(_notebook(path), name=str(path))
            return
        found, smiles = False, suffix in SMILES
        for start, piece in self._pieces(path, encoding, errors):
            if not piece.strip():
                continue
            found = True
            if not (lines or smiles):
                if problems is not None and self.name == "text" and suffix not in self.extensions - {".txt", ".text"} \
                        and _a_text_a_line(piece):
                    problems.note = "a file a text (a line a text: --read lines=true)"
                yield Record(piece, name=str(path) if start == 0 else f"{path}@{start}")
                continue
            for line in piece.splitlines():
                start += 1
                if line.strip():
                    yield Record(line.split()[0] if smiles else line, name=f"{path}:{start}")
        if not found:
            raise SegueError(f"{path}: the file is empty; give a file with text in it")

    def read_all(self, paths: list[Path], problems: Problems, named: frozenset[Path],
                 **options: Any) -> Iterator[Record]:
        """As `Kind.read_all`, but files side by side that are translations of each other, a sentence a line, are read
        together: a text of each line and what it is in the other languages."""
        asked = self.name != "text" or any(options.get(name) for name in ("lines", "field", "classes"))
        groups = {} if asked else translations.side_by_side(paths)
        others = {path for group in groups.values() for path in group[1:]}
        for path in paths:
            if path in groups:
                yield from self._side_by_side(groups[path], problems, options)
            elif path not in others:
                yield from super().read_all([path], problems, named, **options)

    def _side_by_side(self, paths: list[Path], problems: Problems, options: dict[str, Any]) -> Iterator[Record]:
        errors, given = options.get("errors", "strict"), options.get("encoding", "utf-8")
        problems.note = f"lines of files side by side ({', '.join(bare(path).suffix[1:] for path in paths)})"
        rows = (self._lines(path, encoding_of(path, given, problems), errors) for path in paths)
        for row in zip(*rows):
            said = [line.strip() for _, line in row]
            if all(said):
                yield Record("\n".join(said).encode(), name=f"{paths[0]}:{row[0][0]}")

    def _pieces(self, path: Path, encoding: str, errors: str) -> Iterator[tuple[int, bytes]]:
        """Pieces of a file as UTF-8, each with its offset in bytes of the file."""
        with opened(path) as handle:
            offset, rest = 0, b""
            encoding = marked(handle.peek(4)[:4], encoding)
            decoder = encodings.getincrementaldecoder(encoding)()
            while True:
                block = handle.read(PIECE)
                last = len(block) < PIECE
                if encoding == "utf-8":
                    data = rest + block
                    cut = len(data) if last else _cut(data)
                    piece, rest = data[:cut], data[cut:]
                    if errors == "strict":
                        check_text(path, piece, offset)
                    size = len(piece)
                    if offset == 0 and errors == "strict":
                        piece = piece.removeprefix(MARK)
                else:
                    try:
                        piece, size = decoder.decode(block, final=last).encode("utf-8"), len(block)
                    except ValueError as error:
                        raise SegueError(f"{path}: near byte {offset:,}: not {encoding} ({error}); give the right "
                                         "encoding=") from error
                if piece:
                    yield offset, piece
                offset += size
                if last:
                    return

    def _rows(self, path: Path, problems: Problems | None, field: list[str], classes: str | None,
              encoding: str) -> Iterator[Record] | None:
        """The texts of a table, or None where the file is to be read as it is."""
        head, suffix = head_of(path, encoding), bare(path).suffix.lower()
        sure = bool(field or classes) or suffix in DELIMITED | JSON | PARQUET
        check_parquet(path, head)
        table = glance(bare(path), head)
        if table is not None and table.form == "document":  # of which the beginning says little
            with opened(path) as handle:
                table = glance(bare(path), handle.read())
        if table is None and suffix in LINES:
            return self._read_lines(path, problems, Roles(field, classes or None))  # which says what is wrong
        if table is None and field:
            raise SegueError(f"{path}: there is no table here to take '{field[0]}' from; leave field= out")
        loose = table is not None and table.regular and not table.headed and suffix in (".txt", "") and \
            table.delimiter == "\t"
        pairs = table is not None and loose and _in_pairs(table)
        tabbed = table is not None and table.delimiter == "\t" and (table.headed or pairs or (
            loose and classes is None and len(table.names) == 2 and class_column(path, table, "") is not None))
        if self.name == "code" and suffix == ".json" and not (field or classes):
            return None  # one of the files of a program
        if table is None or not (sure or classes == "" or tabbed or table.form != "delimited"):
            return None
        column = class_column(path, table, classes)
        if column in field and classes:
            raise both(path, classes)
        rest = table.without(column)
        pairs = pairs and column is None
        asked, field = field, field or (rest.names[:2] if pairs else text_columns(rest)) or named_columns(rest) or (
            rest.names if column and len(rest.names) == 1 else [])
        if classes and not field:
            raise SegueError(f"{path}: no column holds text; name one with field= (columns: {', '.join(rest.names)})")
        if column in field or not field:  # one that only by chance is called as classes are
            column, field = None, field or text_columns(table)
        sure = sure or tabbed or (table.form != "delimited" and _plain(table, field))
        if suffix not in LINES | PARQUET and not (field and (sure or (column and table.regular))):
            return None
        dialogue, speaker = (None, None) if asked or column else dialogue_columns(table, field)
        if problems is not None and field:
            by = [("said by", role) for role in (speaker, *(_role(name, table.names) for name in field)) if role]
            within = "all" if dialogue == "" else dialogue
            problems.note = said([("class", column), ("dialogue", within), *by, *(("field", name) for name in field)],
                                 table.names)
        roles = Roles(field, column, dialogue, speaker)
        if table.form == "delimited":
            rows = self._read_table(path, problems, table, roles, encoding)
        elif table.form == "json" and by_lines(head.decode("utf-8", "ignore").removeprefix("\ufeff")):
            rows = self._read_lines(path, problems, roles)
        else:
            rows = self._read_columns(path, problems, table.form, roles)
        return rows if dialogue is None else _dialogues(rows)

    def _lines(self, path: Path, encoding: str, errors: str) -> Iterator[tuple[int, str]]:
        """The lines of a file, counted from 1."""
        number, rest = 0, b""
        for _, piece in self._pieces(path, encoding, errors):
            *whole, rest = (rest + piece).split(b"\n")
            for line in whole:
                number += 1
                yield number, line.decode("utf-8", "replace").rstrip("\r")
        yield number + 1, rest.decode("utf-8", "replace").rstrip("\r")

    def _read_lines(self, path: Path, problems: Problems | None, roles: Roles) -> Iterator[Record]:
        field, found = roles.field or [FIELDS[0]], False
        with opened(path) as handle:
            if handle.peek(3)[:3] == MARK:
                handle.read(3)
            for number, row in json_lines(path, handle, problems):
                cells = as_row(row) or {}
                text = _joined(cells, field)
                if text is None:
                    fields = ", ".join(cells) or "none"
                    bad(problems, path, str(number), None,
                        f"no text in field '{', '.join(field)}'; name the field with field= (fields: {fields})")
                elif text and (record := _record(path, number, text, cells, roles, problems)):
                    found = True
                    yield record
        if not found:
            first = f" ({problems[0]})" if problems else ""
            raise SegueError(f"{path}: no line holds text; name its field with field={first}")

    def _read_columns(self, path: Path, problems: Problems | None, form: str, roles: Roles) -> Iterator[Record]:
        """Columns of Parquet, or fields of a JSON array."""
        field = roles.field
        if form == "parquet":
            all_of = [*field, *filter(None, (roles.column, roles.dialogue, roles.speaker))]
            columns = load_table(path, Problems(), "utf-8").columns
            wanted = {name: cells for name, cells in columns.items()
                      if any(each == name or each.startswith(f"{name}.") for each in all_of)} or columns
            cells = zip(*(values.to_pylist() for values in wanted.values()))
            rows = [flat(dict(zip(wanted, row))) for row in cells]
        else:
            with opened(path) as handle:
                rows = json_array(path, handle.read().removeprefix(MARK))
        names = dict.fromkeys(name for row in rows for name in row)
        lacking = next((name for name in field if name not in names), None)
        if lacking is not None or not field:
            raise SegueError(f"{path}: there is no column '{lacking or 'text'}'; there are {', '.join(names)}")
        found = False
        for place, row in enumerate(rows, 1):
            if text := _joined(row, field):
                if record := _record(path, place, text, row, roles, problems):
                    found = True
                    yield record
            elif any(row.get(name) not in (None, "") for name in field):
                bad(problems, path, f"row {place}", None, f"no text in column '{', '.join(field)}'; mend or remove it")
        if not found:
            raise SegueError(f"{path}: no row holds text in column '{', '.join(field)}'; name another one with field=")

    def _read_table(self, path: Path, problems: Problems | None, table: Look, roles: Roles,
                    encoding: str) -> Iterator[Record]:
        field, found, weka = roles.field, False, bare(path).suffix.lower() == ".arff"
        for name in field:
            if name not in table.names:
                raise SegueError(f"{path}: there is no column '{name}'; there are {', '.join(table.names)}")
        csv.field_size_limit(max(PIECE, csv.field_size_limit()))  # a cell may be a long document
        with opened(path) as handle:
            encoding = marked(handle.peek(4)[:4], encoding)
            lines = io.TextIOWrapper(handle, "utf-8-sig" if encoding == "utf-8" else encoding, newline="")
            before, rows = 0, csv_rows(lines, table.delimiter, table.quoted, strict=True, quote=table.quote)
            try:
                before = sum(1 for _ in islice(lines, table.before))
                for row in rows:
                    number = before + rows.line_num
                    if len(row) != len(table.names):
                        if row and not (weka and row[0].startswith("%")):
                            bad(problems, path, str(number), None,
                                f"{len(row)} columns where the first line has {len(table.names)}; quote what holds a "
                                "delimiter")
                    elif (text := _joined(cells := dict(zip(table.names, row)), field)) and \
                            (record := _record(path, number, text, cells, roles, problems)):
                        found = True
                        yield record
            except (csv.Error, UnicodeError) as error:
                where = f"{path}: line {before + rows.line_num}"
                raise SegueError(f"{where}: {error}; mend it, or read it as plain text with lines=true") from error
        if not found:
            raise SegueError(f"{path}: no row holds text in column '{', '.join(field)}'; name another one with field=")

    def codec(self, data: Dataset, *, vocabulary: int | None = None, tokenizer: str | Path | None = None) -> Codec:
        """Bytes or byte-pair encoding.

        vocabulary: number of tokens; 257 or fewer means the byte codec; None takes 257 below 256 KB of text, 1,024
        below 4 MB, else 2,048. tokenizer: a tokenizer.json to load instead.
        """
        if tokenizer is not None:
            return BPECodec.from_tokenizer(tokenizer)
        size = data.total
        if vocabulary is None:
            vocabulary = 257 if size < 1 << 18 else 1024 if size < 1 << 22 else 2048
        if vocabulary <= 257:
            return ByteCodec()
        step = max(1, -(-size // SAMPLE))  # every step-th record, so that a sample is spread over the whole
        return BPECodec.train(data.objects(step), vocabulary)

    def write(self, objects: Iterable[bytes | str], path: str | Path) -> None:
        """One file; several objects follow each other, each ending with a line end; of JSON Lines an object a line."""
        parts = [as_bytes(obj) for obj in objects]
        if Path(path).suffix.lower() in LINES:
            parts = [json.dumps({"text": part.decode("utf-8", "replace")}, ensure_ascii=False).encode() + b"\n"
                     for part in parts]
        elif len(parts) != 1:
            parts = [part if part.endswith(b"\n") else part + b"\n" for part in parts]
        with atomic_write(path) as temporary:
            temporary.write_bytes(b"".join(parts))

    def show(self, obj: bytes | str) -> str:
        return as_bytes(obj).decode("utf-8", "replace")

    def normalise(self, obj: Any, known: Collection[str] = ()) -> bytes:
        return as_bytes(obj)

    def cut(self, window: bytes) -> int:
        """After the first line end."""
        return window.find(b"\n") + 1


class Code(Text):
    """Program text: as `Text` in all but how its files are told (by their endings, or a first line with #!)."""

    name = "code"
    extensions: ClassVar[frozenset[str]] = frozenset(words(
        ".py .pyi .pyx .c .h .cc .cpp .cxx .hpp .cu .java .kt .scala .js .jsx .ts .tsx .go .rs .rb .php .pl .pm .lua "
        ".r .jl .m .swift .cs .fs .hs .ml .mli .ex .exs .erl .clj .lisp .el .scm .sh .bash .zsh .sql .vim .asm .s .f90 "
        ".css .scss .vue .dart .zig .nim .v .sv .vhd .cmake .mk .ipynb"))

    def sniff(self, path: Path, head: bytes) -> float:
        suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
        inner = suffixes[0] if suffixes[1:] == [".txt"] else ""  # train.java.txt
        named = path.name in {"Makefile", "Dockerfile"} or self.extensions.intersection((*suffixes[-1:], inner))
        letters = len(head) - len(head.translate(None, LETTERS))
        if not (named or head[:2] == b"#!") or looks_binary(head) or letters < len(head) // 10:
            return 0.0  # numbers alone are a file of another sort by that name
        return 0.85 if inner else max(0.6, super().sniff(path, head))


def form_of(head: str, field: Sequence[str] = (), table: bool = False) -> Form | None:
    """How a plain file that is not one text as it stands is read; None where it is. See `segue.kinds.several.form_of`
    for `field` and `table`."""
    known = (gutenberg, chats, subtitles, translations)
    form = None if field or table else next(filter(None, (each.form_of(head) for each in known)), None)
    return form or several_of(head, field, table)


def _notebook(path: Path) -> bytes:
    """What was typed into the cells of a Jupyter notebook, a blank line between them; no outputs."""
    with opened(path) as handle:
        raw = handle.read()
    try:
        cells = ["".join(cell["source"]) for cell in json.loads(raw)["cells"]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise SegueError(f"{path}: not a notebook of Jupyter, version 4 ({error!r}); save it again") from error
    return "\n\n".join(cells).encode("utf-8", "backslashreplace")


def _a_text_a_line(piece: bytes) -> bool:
    """Whether lines seem to be texts of their own, such as names or sentences: many short ones, and none empty."""
    lines = piece[:HEAD].split(b"\n")[:-1]
    return len(lines) >= 50 and all(0 < len(line.strip()) <= 400 for line in lines)


def _cut(data: bytes) -> int:
    """Where to cut a piece of a longer file: after its last line end, else before its last character."""
    cut = data.rfind(b"\n") + 1
    if not cut:
        cut = len(data) - 1
        while cut > max(1, len(data) - 4) and data[cut] & 0xC0 == 0x80:
            cut -= 1
    return cut


def _holds_text(path: Path, head: bytes) -> bool:
    table = glance(path, head)
    return table is not None and bool(text_columns(table))


def _last(name: str) -> str:
    """The last part of a field's name, in lower case."""
    return name.rpartition(".")[2].lower()


def _are_texts(cell: Any) -> bool:
    """A list of texts, some of them of several words."""
    cell = _unnested(cell)
    return isinstance(cell, list) and all(isinstance(turn, str) for turn in cell) and \
        any(len(turn.split()) > 2 for turn in cell)


def _role(name: str, names: Iterable[str]) -> str | None:
    """The field that says who speaks, beside that of the turns of a dialogue: messages.from, or messages.author.name,
    beside messages.text."""
    if "." not in name:
        return None
    beside = {f"{name.rpartition('.')[0]}.{role}{inner}" for role in ROLES for inner in ("", ".name")}
    return next((other for other in names if other.lower() in beside), None)


def _is(name: str, usual: Collection[str]) -> bool:
    """Whether a field is called so: by its last part, or by the one before, as in answers.text."""
    *_, before, last = ("", *name.lower().split("."))
    return last in usual or (before in usual and last in ("text", "input_text", "spans", "number", "value"))


def _joined(cells: Mapping[str, Any], field: Sequence[str]) -> str | None:
    """The text of a row; None where it has none in these fields. Lists of one length, as of questions and of their
    answers, take turns; of the answers to one question the first is taken."""
    parts: list[str | None] = []
    turns = [value for name in field if isinstance(value := cells.get(name), list) and len(field) > 1]
    asked = any(isinstance(cells.get(name), str) and _is(name, ASKS) for name in field) and len(turns) < 2
    if len(turns) > 1 and len(set(map(len, turns))) == 1:
        first = next(name for name in field if isinstance(cells.get(name), list))
        cells = {**{name: value for name, value in cells.items() if not isinstance(value, list)},
                 first: [_one(turn) for each in zip(*turns) for turn in each]}
    for name in field:
        value = cells.get(name)
        if isinstance(value, str):
            parts.append(value)
        elif isinstance(value, bool | int | float) and (_is(name, ANSWERS) or _last(name) in RIGHT):
            parts.append(_one(value))
        elif isinstance(value, list) and _last(name) in TOKENS and all(isinstance(word, str) for word in value):
            parts.append(" ".join(value))
        elif isinstance(value := _unnested(value), list) and all(isinstance(turn, str | None) for turn in value):
            speakers = cells.get(_role(name, cells) or "") or [None] * len(value)
            said = [turn if who is None else f"{who}: {turn}" for who, turn in zip(speakers, value) if turn]
            parts += said[:1] if asked and _is(name, ANSWERS) else said
    return "\n".join(filter(None, parts)) if any(parts) else None


def _unnested(value: Any) -> Any:
    """A list of one list as that list."""
    return value[0] if isinstance(value, list) and len(value) == 1 and isinstance(value[0], list) else value


def _one(value: Any) -> str | None:
    """What a cell says, the first of several."""
    if isinstance(value, list):
        return _one(value[0]) if value else None
    return value if value is None or isinstance(value, str) else json.dumps(value)


def _record(path: Path, place: int, text: str, cells: Mapping[str, Any], roles: Roles,
            problems: Problems | None) -> Record | None:
    """The text of a row; where there is a column of classes, None if it says none. Of a turn of a dialogue the name is
    that of the dialogue."""
    label = "" if roles.column is None else class_of(cells.get(roles.column))
    label = "" if label == "-" and str(roles.column).startswith("gold") else label  # SNLI's: those who judged disagree
    if roles.column is not None and not told(problems, path, str(place), roles.column, label):
        return None
    speaker = class_of(cells.get(roles.speaker or ""))
    text = f"{speaker}: {text.strip()}" if speaker else text
    name = place if roles.dialogue is None else class_of(cells.get(roles.dialogue)) if roles.dialogue else 1
    return Record(text.encode("utf-8", "backslashreplace"), name=of_class(f"{path}:{name}", label))


def _dialogues(turns: Iterable[Record]) -> Iterator[Record]:
    """The turns of one name as one text, a line each."""
    said: dict[str, list[bytes]] = {}
    for turn in turns:
        said.setdefault(turn.name, []).append(turn.object)
    yield from (Record(b"\n".join(each), name=name) for name, each in said.items())


def dialogue_columns(table: Look, field: Sequence[str]) -> tuple[str | None, str | None]:
    """Where rows are the turns of dialogues, a `field` of text each, the columns that say to which dialogue each
    belongs and who says it; None where there is no such column."""
    if not table.headed or len(field) != 1 or any(isinstance(cell, list) for cell in table.column(field[0])):
        return None, None
    dialogue = None
    for name in _dialogue_names(table):
        cells = list(map(class_of, table.column(name)))
        runs = sum(a != b for a, b in pairwise(cells))
        if name != field[0] and 2 * runs <= len(cells) == len(table.rows) > 1:
            dialogue = name
    speaker = next((name for usual in SPEAKERS for name in table.names if _last(name) == usual and name != field[0]
                    and all(not isinstance(cell, list) and len(str(cell)) <= 40 for cell in table.column(name))
                    and len(set(map(class_of, table.column(name)))) > 1), None)
    if dialogue is None and speaker is not None and _is_chat(table, field[0], speaker):
        dialogue = ""
    return (None, None) if dialogue is None else (dialogue, speaker)


def _is_chat(table: Look, field: str, speaker: str) -> bool:
    """Whether rows are the messages of one chat: what a few people say in turn, each at its time (Slack, Discord)."""
    people = list(map(class_of, table.column(speaker)))
    return _last(field) in MESSAGES and any(_last(name) in SENT for name in table.names) and \
        not any(map(ALONE.search, table.names)) and len(people) >= 10 and 4 * len(set(people)) <= len(people)


def _dialogue_names(table: Look) -> list[str]:
    return [name for name in table.names if DIALOGUE.fullmatch(_last(name))] if table.headed else []


def _holds_dialogues(path: Path, head: bytes) -> bool:
    table = glance(path, head) if path.suffix.lower() in TABULAR else None
    if table is None or not (_dialogue_names(table) or table.form == "document" or path.suffix.lower() == ".csv"):
        return False
    field = text_columns(table)
    return any(_role(name, table.names) for name in field) or dialogue_columns(table, field)[0] is not None


def text_columns(table: Look) -> list[str]:
    """The columns of a table that hold its text: the turns of a dialogue, a usual name, or that with the most prose;
    with a question its answer, with a source what was made of it, and all of a translation."""
    names = table.names

    def prose_in(name: str) -> bool:
        cells = table.column(name)
        numbers = table.form == "delimited" and cells and all(map(number, cells))
        return all(isinstance(cell, str) for cell in cells) and not numbers

    if turns := [name for name in names if _last(name) in TURNS and _role(name, names) and
                 all(isinstance(cell, list) for cell in table.column(name))]:
        return turns[:1]
    if table.headed and (chosen := _multiple_choice(table)):
        return chosen
    if table.headed:
        known = {_last(name): name for name in reversed(names)}
        known |= {name.lower(): name for name in reversed(names)}
        asks = [name for name in names if (_is(name, ASKS) or (_last(name) == "source" and _wordy(table.column(name))))
                and (prose_in(name) or _lists_texts(table.column(name)))]
        answers = [name for name in names if _answers(name, table)]
        made = [name for name in names if _last(name) in MADE and prose_in(name)]
        source = next((name for name in names if _last(name) in SOURCES and prose_in(name) and made), None)
        pair = bool(asks and answers)
        if source is not None and not pair:
            return [source, *made]
        for usual in FIELDS if table.form in ("json", "document") or pair else COLUMNS:
            known.setdefault(usual, known.get(f"{usual}1", ""))
            cell = next(iter(table.column(known[usual])), "") if known[usual] else None
            if isinstance(cell, str) or (usual in DIALOGUES and _are_texts(cell)):
                return asks + answers if pair and usual in ASKS + ANSWERS else _siblings(known[usual], table)
        if pair:
            return asks + answers
    if len(names) == 1:
        cells = table.column(names[0])
        told = table.form == "delimited" and any(number(cell) or DATE.fullmatch(cell) for cell in cells)
        return [names[0]] if cells and not told and all(isinstance(cell, str) for cell in cells) else []
    prose = {}
    for name in names:
        cells = [cell for cell in table.column(name) if isinstance(cell, str)]
        long = [cell for cell in cells if len(cell) >= 20 and len(cell.split()) >= 4 and not DATE.fullmatch(cell)]
        if are_ids(long):
            continue
        if 2 * len(long) > len(table.rows) and 2 * len(set(long)) > len(long):
            prose[name] = sum(map(len, long))
    if prose and not table.headed and len(names) > 4 and all(len(cell) == 1 and "A" <= cell <= "F"
                                                             for cell in table.column(names[-1])):
        return names  # a question, its choices, and the letter of one
    if prose:
        alone = len(prose) == len(names) < 4  # there is nothing but texts
        prose = {name: size for name, size in prose.items() if not any(
            _copies(table, name, other) for other in list(prose)[list(prose).index(name) + 1 :])}
        if not table.headed or alone or (len(prose) > 1 and all(map(LANGUAGE.fullmatch, prose))):
            return list(prose)
        groups = [_siblings(name, table) for name in prose]
        return max(groups, key=lambda group: sum(prose.get(name, 0) for name in group))
    if turns := [name for name in names if ((_last(name) in TURNS and "." in name) or _last(name) in LISTED) and
                 (cells := table.column(name)) and all(map(_are_texts, cells))]:
        return turns[:1]
    if long := [name for name in names if (cells := table.column(name)) and all(map(_are_texts, cells)) and
                _mean_words(cells) > 4 and not any(isinstance(cell[0], list) for cell in cells)]:
        final = [name for name in long if _last(name).startswith("final_")]
        return final or long  # the others are what it was made of
    return [name for name in names if _last(name) in TOKENS and (cells := table.column(name)) and len(names) > 1 and
            all(isinstance(cell, list) and all(isinstance(word, str) for word in cell) for cell in cells)][:1]


def is_plain_table(table: Look) -> bool:
    """Whether there are several rows and columns, and no lists in them."""
    return len(table.rows) > 3 and len(table.names) > 1 and not any(
        isinstance(cell, list | dict) for row in table.rows for cell in row)


def _copies(table: Look, name: str, other: str) -> bool:
    """Whether two columns say the same in most rows, as a text and what was made of it for those who read it aloud."""
    places = table.names.index(name), table.names.index(other)
    pairs = [(row[places[0]], row[places[1]]) for row in table.rows if len(row) > max(places)]
    return 2 * sum(a == b for a, b in pairs) > len(pairs)


def _in_pairs(table: Look) -> bool:
    """Whether each line is a text and what belongs to it, as an answer or a translation, with a tab between them."""
    first, second = ([str(cell) for cell in table.column(name)] for name in table.names[:2])
    ended = [sum(cell[-1] in ".?!,;:。؟" for cell in cells) for cells in (first, second)]
    several = min(sum(len(cell.split()) for cell in cells) for cells in (first, second)) > 3 * len(first)
    return len(table.names) < 4 and len(table.rows) > 9 and (several or 2 * max(ended) > len(first)) and \
        all(re.search(r"[^\W\d_]", cell) for cell in first + second) and 4 * len({*zip(first, second)}) > 3 * len(first)


def _mean_words(cells: Sequence[Any]) -> float:
    """How many words the texts in lists have on average."""
    counts = [len(each.split()) for cell in cells for each in _unnested(cell)]
    return sum(counts) / len(counts)


def named_columns(table: Look) -> list[str]:
    """The column of a table without prose that is called as names and titles are, most of them different."""
    for name in table.names if table.headed else ():
        cells = table.column(name)
        if re.sub("[ _]", "", name.lower()) in NAMED and cells and all(isinstance(cell, str) for cell in cells) and \
                2 * len(set(cells)) > len(cells) and not all(map(number, cells)):
            return [name]
    return []


def _multiple_choice(table: Look) -> list[str]:
    """Where questions come with what may be chosen: the question, the choices, and which is right, if that is told."""
    choices = [name for name in table.names if CHOICE.fullmatch(_last(name)) and (
        (texts := [cell for cell in table.column(name) if isinstance(cell, str)]) or _lists_texts(table.column(name)))
        and not (texts and table.form == "delimited" and all(map(number, texts)))]
    listed = [name for name in choices if isinstance(next(iter(table.column(name)), None), list)]
    asks = [name for name in table.names if name not in choices and (_is(name, ASKS) or _last(name) == "sentence") and
            (cells := table.column(name)) and all(isinstance(cell, str) for cell in cells)]
    if not asks or len(listed or choices) < (1 if listed else 2):
        return []
    answers = [name for name in table.names if name not in (*asks, *choices) and (cells := table.column(name)) and
               (_answers(name, table) or (_last(name) in RIGHT and all(isinstance(cell, str | int) for cell in cells)))]
    return [*asks, *(listed or choices), *answers]


def _plain(table: Look, field: Sequence[str]) -> bool:
    """Whether there are texts in these fields."""
    return any(isinstance(cell, str) for name in field for cell in table.column(name))


def _wordy(cells: Sequence[Any]) -> bool:
    """Whether these are sentences, and not names of what they are from."""
    return sum(len(str(cell).split()) for cell in cells) > 4 * len(cells)


def _lists_texts(cells: Sequence[Any]) -> bool:
    """Lists of words or texts in every cell, such as the options of a question; not of single letters."""
    return all(isinstance(cell, list) and all(isinstance(each, str) for each in cell) for cell in cells) and any(
        len(each) > 1 for cell in cells for each in cell)


def _answers(name: str, table: Look) -> bool:
    """Whether a column holds right answers: texts, numbers, yes or no, or lists of them."""
    *_, last = re.split(r"[ _]", name.lower())
    right = _is(name, ANSWERS) or VERSION.fullmatch(_last(name)) is not None or (
        last == "answer" and not re.match(r"(?i)(wrong|incorrect|bad)", name))
    cells = table.column(name)
    return right and all(isinstance(cell, str | bool | int | float | list) for cell in cells) and bool(cells)


def _siblings(name: str, table: Look) -> list[str]:
    """A column and those of words that are counted with it, in order: sentence1 and sentence2."""
    before, digit, behind = re.fullmatch(r"(.*?)(?:(?<!\d)(\d)(\D*))?", name).groups()  # type: ignore[union-attr]
    counted = [other for i in range(10) if (other := f"{before}{i}{behind}") in table.names] if digit else []
    return [other for other in counted if other == name or any(" " in str(cell) for cell in table.column(other))] or [
        name]
