"""What a kind of sequence is: how its files are read and checked, its codec, and how results are written and shown.

Nothing here imports torch.
"""

from __future__ import annotations

import codecs as encodings
import lzma
import re
import zlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np

from segue.errors import SegueError
from segue.kinds.charsets import declared_encoding, likely_encoding
from segue.kinds.packed import opened

if TYPE_CHECKING:
    from segue.kinds.codecs import Codec
    from segue.kinds.times import Clock

PIECE = 1 << 24  # bytes of one file held at a time
HEAD = 1 << 16  # bytes of its beginning by which a file is told
MOST = 1 << 22  # bytes of it where the columns of a table are named a line each, which may be thousands
FEW = 6  # lines that are looked at of a table whose rows are long
FAR = 1 << 26  # bytes that are looked through for the sequences of a file which begins with much else
# Annotation, alignments and reads: how such a file begins, and where its sequences do.
SEQUENCES = [(re.compile(beginning), re.compile(letters)) for beginning, letters in (
    (rb"##gff", rb"\n>"), (rb"# STOCKHOLM", rb"\n[^#\s]"), (rb"@(HD|SQ|RG|PG)\t", rb"\n[^@]"),
    (rb"(?i)#NEXUS", rb"(?i)\n\s*matrix\b"), (rb"!!(NA|AA)_MULTIPLE|PileUp", rb"\n//"))]
ARFF = re.compile(rb"(?i)\s*(%[^\n]*\n\s*)*@relation\b")  # a table as Weka writes it
MARK = encodings.BOM_UTF8


def words(text: str) -> tuple[str, ...]:
    """A list of words, written as one."""
    return tuple(text.split())


def split_items(obj: Any, separators: str = r"[\s,→]+") -> list[Any]:
    """What a user gives as a sequence: a text, or bytes of one, cut at the separators (a pattern), or its items."""
    obj = obj.decode("utf-8", "replace") if isinstance(obj, bytes) else obj
    return [item for item in re.split(separators, obj) if item] if isinstance(obj, str) else list(obj)


# What files of well-known formats are called. Nothing else is written under such a name.
BINARY = words(".mid .midi .kar .wav .flac .mp3 .ogg .m4a .mp4 .png .jpg .jpeg .gif .webp .bmp .tif .tiff .npy .npz "
               ".mat .parquet .arrow .feather .orc .mxl .pdf .docx .xlsx .epub .bam .gz .bgz .bz2 .xz .zst .zip .tar "
               ".tgz")
PLAIN = words(".txt .json .jsonl .ndjson .csv .tsv .xml .html .musicxml .krn .abc .sdf .mol .mol2 .xyz .pdb .cif .fa "
              ".fasta .fna .faa .fastq .fq .gb .gbk .embl .sam .vcf .gml .graphml .dot .xes .pgn .smi .smiles .arff "
              ".ts .tsf")


@dataclass(frozen=True)
class Record:
    """One sequence as its field knows it.

    object: bytes (text, code), str of letters (DNA, protein) or a list of str or int items (events).
    channels: arrays aligned with the object's elements (a time, a gap, a quality).
    name: where it came from: file and record, or the entity whose events these are.
    """

    object: Any
    channels: Mapping[str, np.ndarray] = field(default_factory=dict)
    name: str = ""

    def __len__(self) -> int:
        return len(self.object)


@dataclass(frozen=True)
class Problem:
    """Something wrong in the input: which file, which record, where in it, and what to do."""

    file: str
    record: str
    position: int | None
    text: str

    def __str__(self) -> str:
        record = f", record {self.record}" if self.record else ""
        position = f", position {self.position:,}" if self.position is not None else ""
        return f"{self.file}{record}{position}: {self.text}"


class Problems(list[Problem]):
    """Problems met while reading that were stepped over: the first `keep` of them, and how many there were in all.

    note: how the input was understood, where that had to be found out (which column says what). guesses: in which
    encodings files were read that are not UTF-8. markup: how many texts are full of which sort of markup. columns: of
    kinds whose columns are a whole each, the name of the only one that was read, for each file. clock: of a series that
    was read last, its moments, where they come at one pace.
    """

    keep = 1000

    def __init__(self, found: Iterable[Problem] = (), total: int | None = None, note: str = "",
                 columns: Iterable[str] = ()) -> None:
        super().__init__(found)
        self.total = len(self) if total is None else total
        self.note = note
        self.guesses: set[str] = set()
        self.markup = Counter[str]()
        self.columns = list(columns)
        self.clock: Clock | None = None

    def add(self, problem: Problem) -> None:
        self.total += 1
        if len(self) < self.keep:
            self.append(problem)

    @property
    def description(self) -> str:
        """How the input was understood, for users: `note`, which encodings were guessed, and what markup is in it."""
        guesses = ", ".join(sorted(self.guesses))
        guess = f"not UTF-8: read as {guesses} (encoding= says another)" if guesses else ""
        sorts = ", ".join(f"{name} in {count:,}" for name, count in self.markup.most_common())
        markup = f"markup ({sorts}) is learned as it stands: take it out first to learn words alone" if sorts else ""
        return "; ".join(filter(None, (self.note, guess, markup)))

    def refuse(self, path: Path, why: SegueError | str) -> None:
        """A file that is left out as a whole."""
        self.add(Problem(str(path), "", None, str(why).removeprefix(f"{path}: ").removeprefix(f"{path}, ")))


class Dataset(Protocol):
    """What a codec may be learned from; `segue.data.Data` is one."""

    @property
    def total(self) -> int: ...

    @property
    def vocabulary(self) -> Mapping[Any, int]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> Record: ...

    def objects(self, step: int = 1) -> Iterator[Any]: ...


class Kind(ABC):
    """The contract of a kind. One object per kind stands in `segue.kinds.KINDS`.

    name: how the user calls it. unit: what one base unit is called ("byte", "base", "residue", "event").
    storage: what an object is: "bytes", "letters" (a str of ASCII) or "items" (a list of str or of int).
    split_by: how train and held-out records are told apart by default: "name", "content" or "entity".
    family: kinds of one family are read together from one folder (text and code).
    several: whether a file holds many sequences, each with its name; else it is one (a text, a sound).
    drawn: whether people are shown an answer as a drawing of the whole (`show`), and not what was added.
    decoder: how an answer is chosen where nobody says: by "sample" where the likeliest goes round in circles, such as
        DNA or music; None: greedy.
    closed: whether a sequence that is cut off is of no use, as a molecule with an open ring.
    written: what a file that `write` writes may be called, best first.
    advisor: what tells the next element beside counts, by its name in `segue.models.advised.make_advisor`, if anything
        does.
    """

    name: ClassVar[str] = ""
    unit: ClassVar[str] = ""
    storage: ClassVar[str] = "bytes"
    split_by: ClassVar[str] = "name"
    family: ClassVar[str] = ""
    several: ClassVar[bool] = True
    drawn: ClassVar[bool] = False
    decoder: ClassVar[str | None] = None
    closed: ClassVar[bool] = False
    written: ClassVar[tuple[str, ...]] = PLAIN
    advisor: ClassVar[str] = ""

    @abstractmethod
    def sniff(self, path: Path, head: bytes) -> float:
        """How surely a file is of this kind, 0 to 1. path: without a compression suffix. head: see `head_of`."""

    @abstractmethod
    def read(self, path: Path, problems: Problems | None = None) -> Iterator[Record]:
        """Records of one file, lazily. A bad record goes to `problems` and is stepped over; without `problems`, and
        where the whole file cannot be used, it is a SegueError with file, record, position and how to mend it.
        Each kind adds its own keyword options."""

    def read_all(self, paths: list[Path], problems: Problems, named: frozenset[Path],
                 **options: Any) -> Iterator[Record]:
        """Records of many files. A file that cannot be used at all is an error if the user named it (it is in `named`)
        and a problem otherwise."""
        for path in paths:
            try:
                yield from self.read(path, problems, **options)
            except SegueError as error:
                if path in named:
                    raise
                problems.refuse(path, error)

    @abstractmethod
    def codec(self, data: Dataset) -> Codec:
        """A codec for this data; what is learned (merges, items) is learned from this data only. Each kind adds its own
        keyword options."""

    @abstractmethod
    def write(self, objects: Iterable[Any], path: str | Path) -> None:
        """Write objects, or (where there are `several` in a file) `Record`s with their names, in the field's own file
        format, atomically."""

    def check_name(self, path: str | Path) -> None:
        """Refuse to write a file under the name of another format: programs would take it for one."""
        suffix = Path(path).suffix.lower()
        if suffix in BINARY + PLAIN and suffix not in self.written:
            raise SegueError(f"{path}: {self.name} is not written as {suffix}: name a file that ends in "
                             f"{' or '.join(self.written[:3])}")

    def well_formed(self, obj: Any) -> bool:
        """Whether a whole object is one that users of the kind would take for one; most kinds take all."""
        return True

    @abstractmethod
    def show(self, obj: Any) -> str:
        """The object for a terminal."""

    def reading(self, codec: Codec) -> dict[str, Any]:
        """The options of `read` that give objects of this codec, where other objects could be read from the files."""
        return {}

    def numbers(self, codec: Codec) -> np.ndarray | None:
        """Where elements are measured numbers, what each id says: (size, C), a column for each of the C that take
        turns, NaN in those of which it says nothing. None where elements are no numbers."""
        return None

    def normalise(self, obj: Any, known: Collection[str] = ()) -> Any:
        """A user's prime as an object of this kind (text given as str becomes bytes, and so on). known: the items there
        are, where that helps to tell them apart in a text."""
        return obj

    def cut(self, window: Any) -> int:
        """Where in `window`, the elements after a wished cut, a long object is best cut (text: after a line end)."""
        return 0


def of_class(name: str, label: str) -> str:
    """The name of a record whose file says of which class it is; the record's own where it does not."""
    return f"{name} (class {label})" if label else name


def class_in(name: str) -> tuple[str, str]:
    """What `of_class` put together: the name and the class, "" where there is none."""
    match = re.fullmatch(r"(.*) \(class (.+)\)", name, re.DOTALL)
    return (match[1], match[2]) if match else (name, "")


def bad(problems: Problems | None, path: Path | str, record: str, position: int | None, text: str) -> None:
    """Collect a problem with one record, or raise it where nobody collects."""
    problem = Problem(str(path), record, position, text)
    if problems is None:
        raise SegueError(str(problem))
    problems.add(problem)


def check_columns(path: Path, requested: Iterable[str], names: Collection[str]) -> None:
    """Raise SegueError where a table with columns of these names lacks one that is requested."""
    for name in requested:
        if name not in names:
            raise SegueError(f"{path}: there is no column '{name}'; there are {', '.join(names)}")


def head_of(path: Path, encoding: str = "utf-8") -> bytes:
    """The first `HEAD` unpacked bytes of a file, and as many from where its `SEQUENCES` begin further on, as UTF-8
    where it is in another encoding: this one, or one that a mark at its beginning or its letters tell; a stream that is
    damaged further on still gives its beginning."""
    with opened(path) as handle:
        head = b""
        try:
            while len(head) < HEAD and (block := handle.read1(HEAD - len(head))):
                head += block
            if len(head) >= HEAD and ARFF.match(head):
                while b"@data" not in head.lower() and len(head) < MOST and (block := handle.read(HEAD)):
                    head += block
            while len(head) >= HEAD and is_wide(head) and head.count(b"\n") < FEW and len(head) < MOST and \
                    (block := handle.read(HEAD)):
                head += block
            letters = next((letters for beginning, letters in SEQUENCES if beginning.match(head)), None)
            if len(head) >= HEAD and letters is not None and not letters.search(head) and \
                    (match := letters.search(more := handle.read(FAR))):
                head += more[match.start() : match.start() + HEAD]
        except (EOFError, OSError, zlib.error, lzma.LZMAError):
            if not head:
                raise
        with suppress(LookupError, UnicodeError):  # of what there is not the reader says what is wrong
            encoding = detect_encoding(head, encoding)
            return head if encoding == "utf-8" else head.decode(encoding, "ignore").encode("utf-8", "ignore")
        return head


def is_wide(head: bytes) -> bool:
    """Whether the first line of a text may be one of a table of a thousand columns or more."""
    first = head.partition(b"\n")[0]
    return head[:1] not in b"[{" and max(map(first.count, (b",", b"\t", b";"))) >= 1000


def marked(data: bytes, encoding: str) -> str:
    """The encoding: where UTF-8 is meant, UTF-16 or UTF-32 if a byte order mark at the beginning says so."""
    if encodings.lookup(encoding).name != "utf-8":
        return encoding
    if data[:4] in (encodings.BOM_UTF32_LE, encodings.BOM_UTF32_BE):
        return "utf-32"
    return "utf-16" if data[:2] in (encodings.BOM_UTF16_LE, encodings.BOM_UTF16_BE) else encoding


def detect_encoding(data: bytes, encoding: str, problems: Problems | None = None) -> str:
    """The encoding in Python's words; where UTF-8 is meant, that which a mark at the beginning of a file tells, or
    where it cannot be UTF-8, the one it names itself, or its letters tell, if they do so surely."""
    encoding = encodings.lookup(marked(data, encoding)).name
    if encoding != "utf-8" or data.isascii() or looks_binary(data[:HEAD]):
        return encoding
    decoded = encodings.getincrementaldecoder("utf-8")("replace").decode(data)
    broken = decoded.count("\ufffd")
    if not broken or sum(character > "\x7f" for character in decoded) > 2 * broken:
        return encoding  # good, or damaged
    guess, surely = declared_encoding(data), True
    if guess is None:
        guess, surely = likely_encoding(data)
    if not surely:
        return encoding
    if problems is not None:
        problems.guesses.add(guess)
    return encodings.lookup(guess).name


def encoding_of(path: Path, encoding: str, problems: Problems | None = None) -> str:
    """The encoding of a text file (see `detect_encoding`), by as much of it as is held at a time."""
    with opened(path) as handle:
        return detect_encoding(handle.read(PIECE), encoding, problems)


def as_utf8(path: Path, data: bytes, encoding: str, problems: Problems | None = None) -> bytes:
    """A whole file as UTF-8 without a mark; a SegueError where it is not text in this encoding."""
    try:
        encoding = detect_encoding(data, encoding, problems)
        if encodings.lookup(encoding).name != "utf-8":
            data = data.decode(encoding).encode("utf-8")
    except (UnicodeError, LookupError) as error:
        raise SegueError(f"{path}: cannot be read as {encoding} ({error}); give the right encoding=") from error
    data = data.removeprefix(MARK)
    check_text(path, data)
    return data


@contextmanager
def parsed_xml(path: Path, name: str) -> Iterator[None]:
    """Within it, a file of the format `name` that is not whole XML, or in an encoding that there is not, is a
    SegueError."""
    from xml.etree.ElementTree import ParseError

    try:
        yield
    except (ParseError, LookupError, ValueError) as error:
        raise SegueError(f"{path}: no {name} that can be read ({error}); is it cut short? Save it again, as "
                         "UTF-8") from error


def looks_binary(head: bytes) -> bool:
    """NUL or many control bytes: not text in any usual 8-bit encoding."""
    if b"\x00" in head:
        return True
    control = len(head) - len(head.translate(None, bytes(range(1, 7)) + bytes(range(14, 27)) + b"\x1c\x1d\x1e\x1f\x7f"))
    return control > len(head) // 20


def check_text(path: Path, data: bytes, offset: int = 0, keep: str = "") -> None:
    """Refuse what is not UTF-8 text, saying where; `offset` is where in the file `data` begins, `keep` how damaged text
    can be read nevertheless."""
    if offset == 0 and looks_binary(head := data[:HEAD]):
        nul = head.find(b"\0")
        what = f"a NUL byte at byte {nul:,}" if nul >= 0 else "many control bytes"
        raise SegueError(f"{path}: this is binary, not text ({what}); give a text file")
    if data.isascii():
        return
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = f" (line {data[: error.start].count(10) + 1:,})" if offset == 0 else ""
        decoded = data.decode("utf-8", "replace")
        if sum(character > "\x7f" for character in decoded) > 2 * decoded.count("\ufffd"):
            advice = f"the rest is: mend it there{keep}"
        else:
            advice = f"give encoding='{likely_encoding(data)[0]}' or what it is"
        raise SegueError(f"{path}: byte {offset + error.start:,}{line} is not UTF-8 (0x{data[error.start]:02x}); "
                         f"{advice}") from error
