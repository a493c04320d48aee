"""Text and code: bytes that are UTF-8, from plain files, a field of JSON Lines or a column of a table."""

from __future__ import annotations

import codecs as encodings
import csv
import io
import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
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
    as_utf8,
    bad,
    check_columns,
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
from segue.kinds.columns import class_column, class_conflict, class_of, has_class
from segue.kinds.documents import as_row, flat
from segue.kinds.films import are_lines, dialogues
from segue.kinds.frame import (
    DELIMITED,
    JSON,
    LINES,
    PARQUET,
    Look,
    check_parquet,
    csv_rows,
    describe_roles,
    glance,
    is_json_lines,
    is_parquet,
    is_tabular,
    json_array,
    json_lines,
    load_table,
)
from segue.kinds.packed import bare, no_text, opened
from segue.kinds.several import Form
from segue.kinds.several import form_of as several_of
from segue.kinds.text_columns import (
    FIELDS,
    are_pairs,
    dialogue_columns,
    holds_dialogues,
    holds_text,
    is_plain,
    join_fields,
    name_column,
    speaker_field,
    text_columns,
)

SAMPLE = 1 << 26  # bytes of text that merges are learned from
SMILES = {".smi", ".smiles"}  # a molecule a line, its name behind it
MINIFIED = 500  # mean length of a line from which on code was not written by people
MOST_NOTES = 3  # of different files that are told, the most frequent ones
TAG = re.compile(rb"</?[A-Za-z][^<>@]{0,400}>|<[!?][^<>]{0,400}>|&#?\w{1,8};")
COMMAND = re.compile(rb"\\[A-Za-z]+\*?(?:[\[{][^\[\]{}]*[\]}])*")
LEAST_MARKUP = 0.05  # of the bytes of a text, from which on it is worth a word
LETTERS = bytes(range(65, 91)) + bytes(range(97, 123)) + bytes(range(128, 256))


@dataclass(frozen=True)
class Roles:
    """The columns of a table by their role. field: the text; column: the class; dialogue: the id of the dialogue of
    which a row is a turn ("": all rows are one dialogue); speaker: who says it."""

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
            return 0.7 if holds_text(path, head) else 0.0
        if not head or looks_binary(head) or no_text(head):
            return 0.0
        if holds_dialogues(path, head):
            return 0.91  # and not who spoke after whom
        if suffix in LINES:
            return 0.8 if holds_text(path, head) else 0.3
        holds_several = self.name == "text" and suffix not in self.extensions and (
            mails.is_mail(head) or form_of(head.decode("utf-8", "replace")))
        score = 0.8 if suffix in self.extensions or holds_several else 0.2
        if suffix in DELIMITED:
            table = glance(path, head)
            score = 0.7 if holds_text(path, head) else 0.5 if table is not None and name_column(table) else 0.2
        elif suffix == ".json" and (table := glance(path, head)) is not None and is_plain_table(table):
            score = 0.8 if text_columns(table) else 0.5 if name_column(table) else 0.3
        if not head.translate(None, b"0123456789 .,;:+-eE\t\r\n"):
            return 0.02  # numbers alone
        try:
            encodings.getincrementaldecoder("utf-8")().decode(head)
        except UnicodeDecodeError:
            return score / 2
        return score

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
        class_labels = classes_beside(path) if self.name == "text" and not (field or classes) else None
        if class_labels is not None:
            by_lines = bare(path).suffix.lower() not in JSON
            records = list(self._read(path, problems, encoding, errors, by_lines, [], None))
            if len(records) == len(class_labels):
                if problems is not None:
                    problems.note = "; ".join(filter(None, (problems.note, "classes from the file beside it")))
                yield from (Record(record.object, name=of_class(record.name, label if classes == "" else ""))
                            for record, label in zip(records, class_labels))
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
        if self.name == "text" and not lines:
            texts = self._texts_within(path, problems, head, encoding, errors, field, classes)
            if texts is not None:
                yield from texts
                return
        if not lines and (field or classes or is_tabular(bare(path))):
            rows = self._rows(path, problems, field, classes, encoding)
            if rows is not None:
                yield from rows
                return
        if not lines and suffix == ".ipynb":
            yield Record(_notebook(path), name=str(path))
            return
        yield from self._plain_text(path, problems, encoding, errors, lines)

    def _texts_within(self, path: Path, problems: Problems | None, head: str, encoding: str, errors: str,
                      field: list[str], classes: str | None) -> Iterator[Record] | None:
        """The texts of a plain file that holds several, or one with something around it; None of other files."""
        if not field and mails.is_mail(head.encode()):
            return mails.mails(path, problems)
        lines = self._lines(path, encoding, errors)
        if not field and are_lines(head):
            if problems is not None:
                problems.note = "a dialogue a text, each turn behind who says it"
            return (Record(text.encode(), name=f"{path}:{name}") for name, text in dialogues(path, lines))
        suffix = bare(path).suffix.lower()
        if suffix in {".csv", ".arff", ".inter"} | JSON | PARQUET:
            return None
        form = form_of(head, field, suffix in DELIMITED)
        if form is None:
            return None
        if problems is not None:
            unread = "not read: the class"
            problems.note = form.note if classes is None else form.note.replace(unread, "read: the class")
        texts = (Record(text.encode(), name=of_class(f"{path}:{number}", label if classes == "" else ""))
                 for number, text, label in form.cut(lines))
        return not_empty(texts, f"{path}: there is no text in this file ({form.note})")

    def _plain_text(self, path: Path, problems: Problems | None, encoding: str, errors: str,
                    lines: bool) -> Iterator[Record]:
        """The pieces of a file as they stand, or its lines; of SMILES the first word of each line."""
        found, suffix = False, bare(path).suffix.lower()
        smiles = suffix in SMILES
        for start, piece in self._pieces(path, encoding, errors):
            if not piece.strip():
                continue
            found = True
            if lines or smiles:
                yield from (Record(line.split()[0] if smiles else line, name=f"{path}:{number}")
                            for number, line in enumerate(piece.splitlines(), start + 1) if line.strip())
                continue
            if problems is not None and self.name == "text" and suffix not in self.extensions - {".txt", ".text"} \
                    and _a_text_a_line(piece):
                problems.note = "a file a text (a line a text: --read lines=true)"
            if problems is not None and self.name == "text" and start == 0 and (markup := markup_of(piece[:HEAD])):
                problems.markup[markup] += 1
            yield Record(piece, name=str(path) if start == 0 else f"{path}@{start}")
        if not found:
            raise SegueError(f"{path}: the file is empty; give a file with text in it")

    def read_all(self, paths: list[Path], problems: Problems, named: frozenset[Path],
                 **options: Any) -> Iterator[Record]:
        """As `Kind.read_all`, but files that are translations of each other line by line are read together, a text for
        each line and its translations. A note that is true of some files only says of how many."""
        explicit = self.name != "text" or any(options.get(name) for name in ("lines", "field", "classes"))
        groups = {} if explicit else translations.side_by_side(paths)
        translations_of = {path for group in groups.values() for path in group[1:]}
        notes = Counter[str]()
        for path in paths:
            problems.note = ""
            try:
                if path in groups:
                    yield from self._side_by_side(groups[path], problems, options)
                elif path not in translations_of:
                    yield from super().read_all([path], problems, named, **options)
            except SegueError as error:
                if path in named:
                    raise
                problems.refuse(path, error)
            notes[problems.note] += path not in translations_of
        if len(notes := Counter({note: count for note, count in notes.items() if note and count})) > 0:
            problems.note = "; ".join(note if count == len(paths) - len(translations_of) else
                                      f"{note} ({count:,} of {len(paths) - len(translations_of):,} files)"
                                      for note, count in notes.most_common(MOST_NOTES))

    def _side_by_side(self, paths: list[Path], problems: Problems, options: dict[str, Any]) -> Iterator[Record]:
        """A text of each line of the first file and the same line of the others; lines that lack one are left out."""
        errors, encoding = options.get("errors", "strict"), options.get("encoding", "utf-8")
        problems.note = f"lines of files side by side ({', '.join(bare(path).suffix[1:] for path in paths)})"
        rows = (self._lines(path, encoding_of(path, encoding, problems), errors) for path in paths)
        for row in zip(*rows):
            translated = [line.strip() for _, line in row]
            if all(translated):
                yield Record("\n".join(translated).encode(), name=f"{paths[0]}:{row[0][0]}")

    def _pieces(self, path: Path, encoding: str, errors: str) -> Iterator[tuple[int, bytes]]:
        """Pieces of a file as UTF-8, each with its offset in bytes of the file."""
        with opened(path) as handle:
            offset, carry = 0, b""
            encoding = marked(handle.peek(4)[:4], encoding)
            decoder = encodings.getincrementaldecoder(encoding)()
            while True:
                block = handle.read(PIECE)
                last = len(block) < PIECE
                if encoding == "utf-8":
                    data = carry + block
                    cut = len(data) if last else _cut(data)
                    piece, carry = data[:cut], data[cut:]
                    if errors == "strict":
                        check_text(path, piece, offset, keep=", or errors='keep' to read it as it is")
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
        """The texts of a table; None where the file is not to be read as a table."""
        head, suffix = head_of(path, encoding), bare(path).suffix.lower()
        check_parquet(path, head)
        table = glance(bare(path), head)
        if table is not None and table.form == "document":  # of which the beginning says little
            with opened(path) as handle:
                table = glance(bare(path), handle.read())
        if table is None and suffix in LINES:
            return self._read_lines(path, problems, Roles(field, classes or None))  # which says what is wrong
        if table is None and field:
            raise SegueError(f"{path}: there is no table here to take '{field[0]}' from; leave field= out")
        of_program = self.name == "code" and suffix == ".json" and not (field or classes)
        roles = None if table is None or of_program else _find_roles(path, table, field, classes)
        if table is None or roles is None:
            return None
        if problems is not None and roles.field:
            speakers = (roles.speaker, *(speaker_field(name, table.names) for name in roles.field))
            said_by = [("said by", name) for name in speakers if name]
            dialogue = ("dialogue", "all" if roles.dialogue == "" else roles.dialogue)
            fields = [("field", name) for name in roles.field]
            problems.note = describe_roles([("class", roles.column), dialogue, *said_by, *fields], table.names)
        if table.form == "delimited":
            rows = self._read_table(path, problems, table, roles, encoding)
        elif table.form == "json" and is_json_lines(head.decode("utf-8", "ignore").removeprefix("\ufeff")):
            rows = self._read_lines(path, problems, roles)
        else:
            rows = self._read_columns(path, problems, table.form, roles)
        return rows if roles.dialogue is None else _dialogues(rows)

    def _lines(self, path: Path, encoding: str, errors: str) -> Iterator[tuple[int, str]]:
        """The lines of a file, counted from 1."""
        number, carry = 0, b""
        for _, piece in self._pieces(path, encoding, errors):
            *complete, carry = (carry + piece).split(b"\n")
            for line in complete:
                number += 1
                yield number, line.decode("utf-8", "replace").rstrip("\r")
        yield number + 1, carry.decode("utf-8", "replace").rstrip("\r")

    def _read_lines(self, path: Path, problems: Problems | None, roles: Roles) -> Iterator[Record]:
        field, found = roles.field or [FIELDS[0]], False
        with opened(path) as handle:
            if handle.peek(3)[:3] == MARK:
                handle.read(3)
            for number, row in json_lines(path, handle, problems):
                cells = as_row(row) or {}
                text = join_fields(cells, field)
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
            if text := join_fields(row, field):
                if record := _record(path, place, text, row, roles, problems):
                    found = True
                    yield record
            elif any(row.get(name) not in (None, "") for name in field):
                bad(problems, path, f"row {place}", None, f"no text in column '{', '.join(field)}'; mend or remove it")
        if not found:
            raise SegueError(f"{path}: no row holds text in column '{', '.join(field)}'; name another one with field=")

    def _read_table(self, path: Path, problems: Problems | None, table: Look, roles: Roles,
                    encoding: str) -> Iterator[Record]:
        field, found, is_arff = roles.field, False, bare(path).suffix.lower() == ".arff"
        check_columns(path, field, table.names)
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
                        if row and not (is_arff and row[0].startswith("%")):
                            bad(problems, path, str(number), None,
                                f"{len(row)} columns where the first line has {len(table.names)}; quote what holds a "
                                "delimiter")
                    elif (text := join_fields(cells := dict(zip(table.names, row)), field)) and \
                            (record := _record(path, number, text, cells, roles, problems)):
                        found = True
                        yield record
            except UnicodeError:
                with opened(path) as whole:
                    as_utf8(path, whole.read(), encoding)  # says at which byte, and what encoding it may be
                raise
            except csv.Error as error:
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
        has_code_name = path.name in {"Makefile", "Dockerfile"} or self.extensions.intersection((*suffixes[-1:], inner))
        letters = len(head) - len(head.translate(None, LETTERS))
        if not (has_code_name or head[:2] == b"#!") or looks_binary(head) or letters < len(head) // 10:
            return 0.0  # numbers alone are a file of another sort by that name
        return 0.85 if inner else max(0.6, super().sniff(path, head))

    def read_all(self, paths: list[Path], problems: Problems, named: frozenset[Path],
                 **options: Any) -> Iterator[Record]:
        """As `Text.read_all`, but minified and generated files, which would outweigh what people wrote, are skipped
        unless they are named or there are no others."""
        lengths = {path: line_length(path) for path in paths if path not in named}
        minified = {path for path, length in lengths.items() if length > MINIFIED}
        minified = minified if len(minified) < len(paths) else set()
        for path in sorted(minified):
            problems.refuse(path, f"skipped: minified or generated (its lines have {lengths[path]:,} characters on "
                                  "average); give the file itself to read it")
        yield from super().read_all([path for path in paths if path not in minified], problems, named, **options)


def _find_roles(path: Path, table: Look, field: list[str], classes: str | None) -> Roles | None:
    """The columns of a table by their role; None where the file is plain text that only looks like a table. field,
    classes: as the user named them, see `Text.read`."""
    suffix = bare(path).suffix.lower()
    is_table = bool(field or classes) or suffix in DELIMITED | JSON | PARQUET
    tabbed = table.delimiter == "\t"
    plain_tabs = tabbed and table.regular and not table.headed and suffix in (".txt", "")
    pairs = plain_tabs and are_pairs(table)
    tabbed = tabbed and (table.headed or pairs or (
        plain_tabs and classes is None and len(table.names) == 2 and class_column(path, table, "") is not None))
    if not (is_table or classes == "" or tabbed or table.form != "delimited"):
        return None
    column = class_column(path, table, classes)
    if column in field and classes:
        raise class_conflict(path, classes)
    rest = table.without(column)
    pairs = pairs and column is None
    requested, field = field, field or (rest.names[:2] if pairs else text_columns(rest)) or name_column(rest) or (
        rest.names if column and len(rest.names) == 1 else [])
    if classes and not field:
        raise SegueError(f"{path}: no column holds text; name one with field= (columns: {', '.join(rest.names)})")
    if column in field or not field:  # one that only by chance is called as classes are
        column, field = None, field or text_columns(table)
    is_table = is_table or tabbed or (table.form != "delimited" and is_plain(table, field))
    if suffix not in LINES | PARQUET and not (field and (is_table or (column and table.regular))):
        return None
    dialogue, speaker = (None, None) if requested or column else dialogue_columns(table, field)
    return Roles(field, column, dialogue, speaker)


def form_of(head: str, field: Sequence[str] = (), table: bool = False) -> Form | None:
    """How a plain file is read that holds several texts, or one with something around it, by its beginning; None for
    other files. field, table: see `segue.kinds.several.form_of`."""
    known = (gutenberg, chats, subtitles, translations)
    form = None if field or table else next(filter(None, (each.form_of(head) for each in known)), None)
    return form or several_of(head, field, table)


def not_empty(records: Iterable[Record], error: str) -> Iterator[Record]:
    """The records; where there are none, a SegueError with this text."""
    found = False
    for record in records:
        found = True
        yield record
    if not found:
        raise SegueError(error)


def line_length(path: Path) -> int:
    """The mean length of the lines at the beginning of a file; 0 of notebooks and of files that cannot be read."""
    with suppress(SegueError):
        head = head_of(path) if bare(path).suffix.lower() != ".ipynb" else b""
        return len(head) // max(head.count(b"\n"), 1)
    return 0


def _notebook(path: Path) -> bytes:
    """The source of the cells of a Jupyter notebook, separated by blank lines, without outputs."""
    with opened(path) as handle:
        raw = handle.read()
    try:
        cells = ["".join(cell["source"]) for cell in json.loads(raw)["cells"]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise SegueError(f"{path}: not a notebook of Jupyter, version 4 ({error!r}); save it again") from error
    return "\n\n".join(cells).encode("utf-8", "backslashreplace")


def markup_of(head: bytes) -> str:
    """The sort of markup that a text is full of, by its beginning; "" of one without."""
    start = head.lstrip()[:1000].lower()
    tags = sum(map(len, TAG.findall(head)))
    if tags > LEAST_MARKUP * len(head):
        html = b"<html" in start or b"<!doctype html" in start
        return "HTML" if html or (b"<?xml" not in start and b"<p" in head.lower()) else "XML"
    if b"\\begin{" in head and sum(map(len, COMMAND.findall(head))) > LEAST_MARKUP * len(head):
        return "LaTeX"
    if start[:1] in (b"{", b"[") and sum(map(head.count, b'{}[]":,')) > LEAST_MARKUP * len(head):
        with suppress(ValueError, RecursionError):
            return "JSON" if len(head) >= HEAD or isinstance(json.loads(head), dict | list) else ""
    return ""


def _a_text_a_line(piece: bytes) -> bool:
    """Whether each line seems to be a text of its own, such as a name or a sentence: many short lines, none empty."""
    lines = piece[:HEAD].split(b"\n")[:-1]
    return len(lines) >= 50 and all(0 < len(line.strip()) <= 400 for line in lines)


def _cut(data: bytes) -> int:
    """Where to cut a piece of a longer file: after its last line end, or else before its last character."""
    cut = data.rfind(b"\n") + 1
    if not cut:
        cut = len(data) - 1
        while cut > max(1, len(data) - 4) and data[cut] & 0xC0 == 0x80:
            cut -= 1
    return cut


def _record(path: Path, place: int, text: str, cells: Mapping[str, Any], roles: Roles,
            problems: Problems | None) -> Record | None:
    """The record of a row, named after the row or, for a turn of a dialogue, after the dialogue; None where the column
    of classes is empty."""
    label = "" if roles.column is None else class_of(cells.get(roles.column))
    label = "" if label == "-" and str(roles.column).startswith("gold") else label  # SNLI's: those who judged disagree
    if roles.column is not None and not has_class(problems, path, str(place), roles.column, label):
        return None
    speaker = class_of(cells.get(roles.speaker or ""))
    text = f"{speaker}: {text.strip()}" if speaker else text
    name = place if roles.dialogue is None else class_of(cells.get(roles.dialogue)) if roles.dialogue else 1
    return Record(text.encode("utf-8", "backslashreplace"), name=of_class(f"{path}:{name}", label))


def _dialogues(turns: Iterable[Record]) -> Iterator[Record]:
    """One record for each dialogue: its turns (records of the same name) as lines."""
    turns_of: dict[str, list[bytes]] = {}
    for turn in turns:
        turns_of.setdefault(turn.name, []).append(turn.object)
    yield from (Record(b"\n".join(each), name=name) for name, each in turns_of.items())


def is_plain_table(table: Look) -> bool:
    """Whether a table has several rows and columns, and no lists in its cells."""
    return len(table.rows) > 3 and len(table.names) > 1 and not any(
        isinstance(cell, list | dict) for row in table.rows for cell in row)


