"""Text and code: bytes that are UTF-8, from plain files, a field of JSON Lines or a column of a table."""

from __future__ import annotations

import codecs as encodings
import csv
import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

from segue.errors import SegueError
from segue.files import atomic_write
from segue.kinds.base import PIECE, Dataset, Kind, Problems, Record, bad, bare, check_text, looks_binary, opened, words
from segue.kinds.codecs import BPECodec, ByteCodec, Codec, as_bytes

SAMPLE = 1 << 26  # bytes of text that merges are learned from
FIELDS = words("text content code body document sentence question prompt input description title abstract message")
COLUMNS = words("text content body document sentence question message review comment utterance abstract")  # of tables
TABLES = {".csv": ",", ".tsv": "\t"}  # their delimiters


class Text(Kind):
    name = "text"
    unit = "byte"
    storage = "bytes"
    family = "text"
    split_by = "content"
    extensions: ClassVar[frozenset[str]] = frozenset(
        words(
            ".txt .text .md .rst .tex .org .adoc .srt .log .html .htm .xml .jsonl .ndjson .json .yaml .yml .toml "
            ".ini .cfg .abc"
        )
    )

    def sniff(self, path: Path, head: bytes) -> float:
        if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
            return 0.3  # UTF-16: text, to be read with encoding=
        if not head or looks_binary(head):
            return 0.0
        if path.suffix.lower() in {".jsonl", ".ndjson"} and _field(head.split(b"\n", 1)[0]) is None:
            return 0.3
        surely = 0.8 if path.suffix.lower() in self.extensions else 0.2
        if path.suffix.lower() in TABLES and _column(path.suffix.lower(), head) is not None:
            surely = 0.7  # less than a table of events is sure of itself
        try:
            encodings.getincrementaldecoder("utf-8")().decode(head)
        except UnicodeDecodeError:
            return surely / 2
        return surely

    def read(
        self,
        path: Path,
        problems: Problems | None = None,
        *,
        encoding: str = "utf-8",
        errors: str = "strict",
        lines: bool = False,
        field: str | None = None,
    ) -> Iterator[Record]:
        """One record a file (in pieces of 16 MiB, cut at a line end, where it is longer).

        encoding: the file's; it is turned into UTF-8. errors: "strict" stops at the first broken byte with its offset;
        "keep" takes bytes as they are. lines: one record a line that is not empty. field: of JSON Lines the field, of
        CSV and TSV the column that holds the text, one record a row (found if None; a table without one is plain text).
        """
        if errors not in ("strict", "keep"):
            raise SegueError(f"errors is 'strict' or 'keep', not {errors!r}")
        try:
            known = encodings.lookup(encoding)
            if not known._is_text_encoding:
                raise LookupError
        except (LookupError, ValueError) as error:
            raise SegueError(f"there is no text encoding called '{encoding}'; try utf-8, latin-1 or utf-16") from error
        suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
        if (table := bare(path).suffix.lower()) in TABLES and not lines:
            with opened(path) as handle:
                head = handle.readline(1 << 16)
            if field is not None or _column(table, head) is not None:
                yield from self._read_table(path, problems, field, TABLES[table], known.name)
                return
        if field is not None or ".jsonl" in suffixes or ".ndjson" in suffixes:
            yield from self._read_json(path, problems, field)
            return
        found = False
        for start, piece in self._pieces(path, known.name, errors):
            if not piece.strip():
                continue
            found = True
            if not lines:
                yield Record(piece, name=str(path) if start == 0 else f"{path}@{start}")
                continue
            for line in piece.splitlines():
                start += 1
                if line.strip():
                    yield Record(line, name=f"{path}:{start}")
        if not found:
            raise SegueError(f"{path}: the file is empty; give a file with text in it")

    def _pieces(self, path: Path, encoding: str, errors: str) -> Iterator[tuple[int, bytes]]:
        """Pieces of a file as UTF-8, each with its offset in bytes of the file."""
        with opened(path) as handle:
            offset, rest = 0, b""
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
                else:
                    try:
                        piece, size = decoder.decode(block, final=last).encode("utf-8"), len(block)
                    except ValueError as error:
                        raise SegueError(
                            f"{path}: near byte {offset:,}: not {encoding} ({error}); give the right encoding="
                        ) from error
                if piece:
                    yield offset, piece
                offset += size
                if last:
                    return

    def _read_json(self, path: Path, problems: Problems | None, field: str | None) -> Iterator[Record]:
        found = False
        with opened(path) as handle:
            for number, line in enumerate(handle, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError) as error:
                    bad(
                        problems,
                        path,
                        str(number),
                        getattr(error, "pos", None),
                        "not a line of JSON; mend or remove it",
                    )
                    continue
                field = field or _field(line)
                text = row.get(field) if isinstance(row, dict) else None
                if not isinstance(text, str):
                    fields = ", ".join(map(str, row)) if isinstance(row, dict) else "none"
                    bad(
                        problems,
                        path,
                        str(number),
                        None,
                        f"no text in field '{field or FIELDS[0]}'; name the field with field= (fields: {fields})",
                    )
                    continue
                if text:
                    found = True
                    yield Record(text.encode("utf-8", "backslashreplace"), name=f"{path}:{number}")
        if not found:
            raise SegueError(
                f"{path}: no line holds text; name its field with field=" + (f" ({problems[0]})" if problems else "")
            )

    def _read_table(self, path: Path, problems: Problems | None, field: str | None, delimiter: str,
                    encoding: str) -> Iterator[Record]:
        found = False
        with opened(path) as handle:
            if encoding == "utf-8":
                encoding = "utf-8-sig"
            rows = csv.reader(io.TextIOWrapper(handle, encoding, newline=""), delimiter=delimiter, strict=True)
            try:
                names = next(rows, [])
                field = field or next((name for name in COLUMNS if name in map(str.lower, names)), None)
                place = next((place for place, name in enumerate(names) if field in (name, name.lower())), None)
                if place is None:
                    raise SegueError(f"{path}: there is no column '{field}'; there are {', '.join(names)}")
                for row in rows:
                    if len(row) != len(names):
                        if row:
                            bad(problems, path, str(rows.line_num), None,
                                f"{len(row)} columns where the first line has {len(names)}; quote what holds a "
                                "delimiter")
                    elif row[place]:
                        found = True
                        yield Record(row[place].encode(), name=f"{path}:{rows.line_num}")
            except (csv.Error, UnicodeError) as error:
                raise SegueError(f"{path}: line {rows.line_num}: {error}; mend it, or read it as plain text with "
                                 "lines=true") from error
        if not found:
            raise SegueError(f"{path}: no row holds text in column '{field}'; name another one with field=")

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
        """One file; several objects follow each other, each ending with a line end."""
        parts = [as_bytes(obj) for obj in objects]
        with atomic_write(path) as temporary:
            temporary.write_bytes(
                parts[0]
                if len(parts) == 1
                else b"".join(part if part.endswith(b"\n") else part + b"\n" for part in parts)
            )

    def show(self, obj: bytes | str) -> str:
        return as_bytes(obj).decode("utf-8", "replace")

    def normalise(self, obj: Any) -> bytes:
        return as_bytes(obj)

    def cut(self, window: bytes) -> int:
        return window.find(b"\n") + 1


class Code(Text):
    name = "code"
    extensions: ClassVar[frozenset[str]] = frozenset(
        words(
            ".py .pyi .pyx .c .h .cc .cpp .cxx .hpp .cu .java .kt .scala .js .jsx .ts .tsx .go .rs .rb .php .pl "
            ".pm .lua .r .jl .m .swift .cs .fs .hs .ml .mli .ex .exs .erl .clj .lisp .el .scm .sh .bash .zsh .sql "
            ".vim .asm .s .f90 .css .scss .vue .dart .zig .nim .v .sv .vhd .cmake .mk"
        )
    )

    def sniff(self, path: Path, head: bytes) -> float:
        code = path.suffix.lower() in self.extensions or path.name in {"Makefile", "Dockerfile"} or head[:2] == b"#!"
        return max(0.6, super().sniff(path, head)) if code and not looks_binary(head) else 0.0


def _cut(data: bytes) -> int:
    """Where to cut a piece of a longer file: after its last line end, else before its last character."""
    cut = data.rfind(b"\n") + 1
    if not cut:
        cut = len(data) - 1
        while cut > max(1, len(data) - 4) and data[cut] & 0xC0 == 0x80:
            cut -= 1
    return cut


def _column(suffix: str, head: bytes) -> str | None:
    """The column of a delimited table that holds its text, by its usual name."""
    first = head.removeprefix(b"\xef\xbb\xbf").split(b"\n", 1)[0].decode("utf-8", "replace")
    names = [name.strip().strip('"').lower() for name in first.split(TABLES[suffix])]
    return next((name for name in COLUMNS if name in names), None) if len(names) > 1 else None


def _field(line: bytes) -> str | None:
    """The field of a JSON line that holds its text: a usual name, else the only string field."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict):
        return None
    strings = [name for name, value in row.items() if isinstance(value, str)]
    usual = [name for name in FIELDS if name in strings]
    return usual[0] if usual else strings[0] if len(strings) == 1 and len(row) == 1 else None
