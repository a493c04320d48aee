"""Files of DNA, RNA and protein sequences: FASTA, FASTQ, SAM, alignments, tables of paired bases, letters alone.

`format_of` recognises those that are not FASTA or FASTQ. The formats of databases are read by Biopython in
`segue.kinds.biology`; `READERS` reads the others.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from io import BufferedReader
from itertools import chain, permutations
from operator import eq
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from segue.errors import SegueError
from segue.kinds.base import HEAD, MARK, Problems, bad, head_of, of_class
from segue.kinds.codecs import NUCLEOTIDES
from segue.kinds.headers import HeaderClass

BLOCK = 1 << 22
MOST_FILES = 64  # that are compared with each other
PHRED = bytes(range(33, 127))
BLANKS = b" \t\r\n\v\f"
FORMATS = {  # what files of databases and aligners begin with, and the name of their format in Biopython
    r"(G\w+\.SEQ .*\n(.*\n){0,12}?)?LOCUS +\S+ .*\d+ (bp|aa)\b": "genbank",
    r"ID   \S+\s+(Reviewed|Unreviewed|STANDARD|PRELIMINARY|IPI);.* \d+ AA\.": "swiss",
    r"ID   .* \d+ (BP|AA)\.": "embl",
    r"# STOCKHOLM": "stockholm",
    r"(CLUSTAL|MUSCLE|PROBCONS|MSAPROBS|Kalign)\b.*alignment|CLUSTAL( ?[WXO]| FORMAT\b.*)?\s*\n": "clustal",
    r">(P1|F1|D[LC]|R[LC]|N[13]|XX);": "pir",
    r"(?i)#NEXUS\b": "nexus",
    r"(HEADER    (.{40}\d\d-[A-Z]{3}-\d\d|.*\n(COMPND|REMARK|TITLE|EXPDTA|SEQRES|ATOM) )|(ATOM|HETATM) +\d+ |CRYST1 |"
    r"MODEL +\d+ *\n|REMARK +\d+ |TITLE {5}|"
    r"(EXPDTA|COMPND) {4}\S|(SEQRES|HELIX) +\d+ +\w+ |"
    r"(REMARK.*\n)+(ATOM|HETATM) +\d+ )": "pdb",
    r"(#.*\n)*data_\S+\s(.|\n)*?_(entry\.id|atom_site\.(group_PDB|id))\s": "cif",
    r"[ \t]*\d+[ \t].*\n[ \t]*1[ \t]+[A-Za-z][ \t]+0[ \t]+2[ \t]+\d+[ \t]+1\b": "ct",
    r"(#.*\n)*1[ \t]+[A-Za-z][ \t]+\d+[ \t]*\r?\n2[ \t]+[A-Za-z][ \t]+\d+[ \t]*\r?\n": "bpseq",
    r"(.*\n){0,20}?.*\bMSF: *\d+ +Type: [NP]\b": "msf",
    r"(.*\n){0,20}?.*\bLength: *\d+ .*\bCheck: *\d+ +\.\.[ \t]*\r?\n": "gcg",
    r"##maf version=": "maf",
    r"(<\?xml[^>]*>\s*)?<uniprot\b": "uniprot-xml",
    r"@(HD|SQ|RG|PG)\t[A-Z]{2}:": "sam",
    r"[^\s@][^\t\n]*\t\d+\t\S+\t\d+\t\d+\t(\*|(\d+[MIDNSHPX=])+)\t\S+\t\d+\t-?\d+\t([A-Za-z=.]+|\*)(\t|$)": "sam",
}
SIZES = re.compile(r"\s*(\d+)[ \t]+(\d+)[ \t]*[A-Za-z]?[ \t]*")  # the first line of PHYLIP: sequences, letters of each
BLOCKS = re.compile(rb"[ \t]*(\d+[ \t]+)?([A-Za-z*.-]{10}[ \t]+)*[A-Za-z*.-]{1,10}[ \t]*\d*[ \t]*")  # of ten letters
PAIRED = re.compile(rb"[().,\[\]{}<>|:~_-]*[()][().,\[\]{}<>|:~_A-Za-z-]*([ \t]+\([ \d.-]+\))?\s*")  # who pairs
REVERSED = bytes.maketrans(b"ACGTUacgtu", b"TGCAAtgcaa")
Found = tuple[str, bytes, np.ndarray | None]  # name, letters as they stand in the file, qualities


def format_of(head: bytes) -> str | None:
    """The name of a file's format in `FORMATS`, or "phylip", by its first lines; None of others, FASTA among them."""
    text = head.removeprefix(MARK).lstrip()[:4096].decode("utf-8", "replace")
    form = next((form for pattern, form in FORMATS.items() if re.match(pattern, text)), None)
    return form if form is not None or not SIZES.match(text) else _phylip_format(text)


def _phylip_format(text: str) -> str | None:
    """"phylip" if the first two rows, after their names, have the same number of letters, and no more than the first
    line says; else None."""
    first, *rows = [line for line in text.splitlines() if line.strip()]
    sizes = SIZES.fullmatch(first)
    if sizes is None or not rows or int(sizes[2]) < 1 or (int(sizes[1]) > 1 and len(rows) < 2):
        return None
    for ten in (False, True):
        letters = [_split_row(row, ten)[1] for row in rows[:2]]
        readings = [letters]
        if len(letters) > 1 and (continued := "".join(rows[1].split())).isalpha():  # or the first row goes on
            readings.append([letters[0] + continued])
        if any(all(re.fullmatch(r"[A-Za-z?*.-]+", each) for each in pair) and len({*map(len, pair)}) == 1 and
               len(pair[0]) <= int(sizes[2]) for pair in readings):
            return "phylip"
    return None


def looks_like_bases(sample: bytes) -> bool:
    """Whether letters of sequences are rather bases than residues: nine tenths of them are, gaps apart, or two thirds
    where all others are ambiguous codes, as in primers."""
    letters = sample.translate(None, b"-.")
    others = letters.translate(None, b"ACGTUN")
    ambiguous = not others.translate(None, NUCLEOTIDES.encode())
    return len(others) <= len(letters) // (3 if ambiguous else 10)


def sample_letters(text: bytes, form: str) -> bytes:
    """Some letters of the sequences in a file of this format, to distinguish DNA from protein."""
    lines = text.decode("utf-8", "replace").splitlines()
    if form in ("pdb", "cif", "uniprot-xml"):
        return b"PROTEIN"
    if form in ("ct", "bpseq"):
        return "".join(re.findall(r"(?m)^[ \t]*\d+[ \t]+([A-Za-z])[ \t]", "\n".join(lines))).upper().encode()
    if form == "sam":
        return "".join(cells[9] for line in lines if len(cells := line.split("\t")) > 10 and line[0] != "@").encode()
    if form in ("genbank", "embl", "swiss"):
        first = next(line for line in lines if line[:5] in ("LOCUS", "ID   "))
        return b"PROTEIN" if re.search(r" (aa|AA)\b", first) else b"ACGT"
    if form == "nexus":
        if kind := re.search(rb"(?i)\bdatatype\s*=\s*(dna|rna|nucleotide|protein)", text):
            return b"PROTEIN" if kind[1].lower() == b"protein" else b"ACGT"
        lines = re.split(r"(?i)^\s*matrix\b", "\n".join(lines), maxsplit=1, flags=re.MULTILINE)[-1].splitlines()
    if form == "maf":
        words = [line.split()[-1] for line in lines if line.startswith("s ")]
    elif form == "phylip":
        words = [re.sub(r"^\S.{9}", "", line) for line in lines[1:] if len(line) > 10]
    elif form == "msf":
        words = [word for line in text.decode("utf-8", "replace").partition("//")[2].splitlines()
                 for word in line.split()[1:]]
    elif form == "gcg":
        words = [re.sub(r"\d", "", text.decode("utf-8", "replace").partition("..")[2])]
    elif form == "pir":
        words = [line for i, line in enumerate(lines) if line[:1] != ">" and lines[i - 1][:1] != ">"]
    else:
        words = [line.split()[1] for line in lines[1:] if line[:1] not in "# /" and len(line.split()) in (2, 3)]
    return "".join("".join(words).split()).translate(str.maketrans("", "", "*.?~")).upper().encode("ascii", "replace")


def with_warnings(path: Path, records: Iterator[Any], problems: Problems | None) -> Iterator[Any]:
    """Biopython's records; its warnings become problems."""
    while True:
        with warnings.catch_warnings(record=True) as doubts:
            warnings.simplefilter("always")
            record = next(records, None)
        if record is None:
            return
        for doubt in doubts if problems is not None else ():
            message = " ".join(str(doubt.message).split())
            bad(problems, path, record.id or record.name or "", None, f"doubtful: {message}")
        yield record


def _split_row(line: str, ten: bool) -> tuple[str, str]:
    """The name and the letters of a row of PHYLIP. ten: names are ten characters; else they are a word."""
    name, _, letters = (line[:10], "", line[10:]) if ten else line.strip().partition(" ") \
        if "\t" not in line.strip() else line.strip().partition("\t")
    return name.strip(), "".join(letters.split())


def _read_phylip(path: Path, handle: BinaryIO, problems: Problems | None) -> Iterator[Found]:
    """PHYLIP: alignments after a line with the number of sequences and of letters, sequential or interleaved, with
    names of ten characters or a word, whichever fits."""
    lines = [line for each in handle.read().decode("utf-8", "replace").splitlines() if (line := each.rstrip())]
    start = 0
    while start < len(lines):
        sizes = SIZES.fullmatch(lines[start])
        count, length = (int(sizes[1]), int(sizes[2])) if sizes else (0, 0)
        attempts = (read_rows(lines[start + 1 :], count, length, ten) for ten in (False, True)
                    for read_rows in (_interleaved, _sequential))
        rows, used = next(filter(None, attempts), ([], 0)) if 0 < count < len(lines) - start else ([], 0)
        if not rows:
            raise SegueError(f"{path}, line {start + 1}: no alignment of {count} sequences of {length} letters begins "
                             "here; is the file cut short?")
        start += 1 + used
        yield from ((name, letters.replace("?", "-").encode("utf-8", "replace"), None) for name, letters in rows)


def _interleaved(lines: list[str], count: int, length: int, ten: bool) -> tuple[list[tuple[str, str]], int] | None:
    """The rows of an interleaved alignment, and the number of its lines; None if the lines do not fit."""
    if len({line[:1].isspace() for line in lines[:count]}) > 1:
        return None  # a row that goes on
    names, letters = zip(*(_split_row(line, ten) for line in lines[:count]))
    rows, used = list(letters), count
    while max(map(len, rows)) < length and used + count <= len(lines):
        rows = [row + "".join(line.split()) for row, line in zip(rows, lines[used : used + count])]
        used += count
    return (list(zip(names, rows)), used) if {*map(len, rows)} == {length} else None


def _sequential(lines: list[str], count: int, length: int, ten: bool) -> tuple[list[tuple[str, str]], int] | None:
    """As `_interleaved`, for one sequence after the other."""
    rows, used = list[tuple[str, str]](), 0
    while len(rows) < count and used < len(lines):
        name, letters = _split_row(lines[used], ten)
        used += 1
        while len(letters) < length and used < len(lines):
            letters += "".join(lines[used].split())
            used += 1
        rows.append((name, letters))
    return (rows, used) if len(rows) == count and {len(row) for _, row in rows} == {length} else None


def _read_sam(path: Path, handle: BinaryIO, problems: Problems | None) -> Iterator[Found]:
    """SAM: each read once, as it was sequenced (reverse-complemented if it was aligned to the other strand)."""
    scored: bool | None = None
    for number, line in enumerate(handle, 1):
        cells = line.rstrip(b"\r\n").split(b"\t")
        if line[:1] == b"@" or not line.strip():
            continue
        if len(cells) < 11 or not cells[1].isdigit():
            bad(problems, path, str(number), None, "not the eleven columns of a read in SAM; is the file cut short?")
            continue
        flag, letters, quality = int(cells[1]), cells[9], cells[10]
        if flag & 0x900 or letters == b"*":  # a secondary or supplementary alignment
            continue
        scored = quality != b"*" if scored is None else scored
        if scored and len(quality) != len(letters):
            bad(problems, path, _record_name(cells[0], number), None,
                f"{len(letters)} letters but {len(quality)} qualities; mend or remove it")
            continue
        back = -1 if flag & 16 else 1
        letters = letters.translate(REVERSED)[::-1] if flag & 16 else letters
        scores = np.frombuffer(quality, np.uint8)[::back] - np.uint8(33) if scored else None
        yield _record_name(cells[0], number), letters, scores


def _read_clustal(path: Path, handle: BinaryIO, problems: Problems | None) -> Iterator[Found]:
    """Clustal: an interleaved alignment, each row a name, letters, and perhaps their number so far."""
    rows: dict[str, bytes] = {}
    for number, line in enumerate(handle.read().splitlines(), 1):
        cells = line.split()
        if number == 1 or not line[:1].strip():
            continue  # the title, a blank line, or marks below a block
        if len(cells) not in (2, 3) or not (len(cells) == 2 or cells[2].isdigit()):
            raise SegueError(f"{path}: line {number} is not a name and letters, as Clustal writes them; align again")
        name = cells[0].decode("utf-8", "replace")
        rows[name] = rows.get(name, b"") + cells[1]
    if len(set(map(len, rows.values()))) > 1:
        raise SegueError(f"{path}: its rows are not all of one length; is the alignment cut short?")
    yield from ((name, letters, None) for name, letters in rows.items())


def _read_msf(path: Path, handle: BinaryIO, problems: Problems | None) -> Iterator[Found]:
    """MSF of GCG: names before a line //, then an interleaved alignment, a name and letters in blocks each row."""
    head, _, body = handle.read().decode("utf-8", "replace").partition("\n//")
    lengths = {name: int(length) for name, length in re.findall(r"(?m)^\s*Name:\s*(\S+).*Len:\s*(\d+)", head)}
    rows = dict.fromkeys(lengths, "")
    for line in body.splitlines():
        if (cells := line.split()) and cells[0] in rows:
            rows[cells[0]] += "".join(cells[1:])
    for name, letters in rows.items():
        if letters and len(letters) == lengths[name]:
            yield name, letters.replace("~", "-").encode("utf-8", "replace"), None
        else:
            bad(problems, path, name, None, f"{len(letters)} letters where {lengths[name]} are said; is the file cut "
                "short?")


def _read_gcg(path: Path, handle: BinaryIO, problems: Problems | None) -> Iterator[Found]:
    """GCG: one sequence in numbered blocks, behind a line with its name, its length and two dots."""
    head, body = re.split(r"(?m)\.\.[ \t]*\r?$", handle.read().decode("utf-8", "replace"), maxsplit=1)
    name = head.splitlines()[-1].partition("Length:")[0].split()
    letters = "".join(re.sub(r"\d", "", body).split())
    if not letters:
        raise SegueError(f"{path}: no letters behind the two dots; is the file cut short?")
    yield name[0] if name else path.stem, letters.encode("utf-8", "replace"), None


def _read_flat(path: Path, handle: BinaryIO, problems: Problems | None) -> Iterator[Found]:
    """The text of UniProt and of EMBL: entries that end with a line //, of which the accession and the sequence are
    read."""
    entry, names, parts = b"", dict[bytes, bytes](), list[bytes]()
    for line in chain(handle, [b""]):
        if line[:5] == b"     ":
            parts.append(line)
        elif line[:2] == b"ID":
            entry = line
        elif line[:2] in (b"AC", b"SV"):
            names.setdefault(line[:2], line[5:].split(b";")[0].strip())
        elif entry and line[:2] in (b"//", b""):
            version = re.match(rb"ID   (\S+); SV (\d+);", entry)
            said = [b".".join(version.groups()) if version else b"", names.get(b"SV", b""), names.get(b"AC", b"")]
            name = next((each for each in said if each.strip(b".")), entry.split()[1]).decode("utf-8", "replace")
            if not line:
                bad(problems, path, name, None, "the entry does not end with //; is the file cut short?")
            elif parts:
                yield name, b"".join(parts).translate(None, BLANKS + b"0123456789"), None
            else:
                bad(problems, path, name, None, "it holds no sequence (only its length); download it in full")
            entry, names, parts = b"", {}, []


def read_lines(handle: BinaryIO, problems: Problems | None) -> Iterator[Found]:
    """Nothing but letters: a sequence in each line, or one sequence over lines of equal length and a shorter last."""
    text = letters_alone(handle.read())
    lines = [(str(number), line) for number, each in enumerate(text.splitlines(), 1) if (line := each.strip())]
    lengths = {len(line) for _, line in lines[:-1]}
    wrapped = len(lengths) == 1 and len(lines[-1][1]) < max(lengths)
    if problems is not None and len(lines) > 1:
        problems.note = "one sequence over all lines" if wrapped else "a sequence a line"
    if wrapped:
        lines = [("1", b"".join(line for _, line in lines))]
    yield from ((name, line, None) for name, line in lines)


def has_annotation_lines(head: bytes) -> bool:
    """Whether each FASTA record at the beginning of a file is a line of letters and a line of annotation below it
    (brackets, states, digits): characters that are no letters, or few different ones."""
    records = [record.splitlines()[1:] for record in (b"\n" + head).split(b"\n>")[1:]]
    complete = [[line.strip() for line in lines if line.strip()] for lines in (records[:-1] or records)]
    if not complete or any(len(lines) != 2 or len(lines[0]) != len(lines[1].split()[0]) for lines in complete):
        return False
    above, below = ({*b"".join(lines[i].split()[0] for lines in complete)} for i in (0, 1))
    differs = not bytes(below).isalpha() and not below & above
    return differs or (len(complete) > 2 and 2 * len(below) <= len(above) > 14)


def without_annotation(text: bytes) -> bytes:
    """A text without the lines of annotation below letters, such as the brackets of base pairs."""
    lines = text.splitlines(keepends=True)
    if text[:1] == b">":
        return b"".join(line for i, line in enumerate(lines) if i % 3 != 2) if has_annotation_lines(text) else text
    for i, line in enumerate(lines[1:], 1):
        if PAIRED.fullmatch(line) and len(line.split()[0]) == len(lines[i - 1].strip()):
            return b"".join(lines[:i])
    return text


def letters_alone(text: bytes) -> bytes:
    """A text without comments at its beginning and annotation below letters; one whose letters stand in blocks of ten,
    perhaps with their numbers beside them, becomes a line."""
    text = without_annotation(without_comments(text))
    lines = [line for line in text.splitlines() if line.strip()]
    if lines and len(re.findall(rb"[A-Za-z*.-]+", lines[0])) > 1 and all(map(BLOCKS.fullmatch, lines)):
        return b"".join(text.split()).translate(None, b"0123456789")
    return text


def without_comments(text: bytes) -> bytes:
    """A text without the comment lines (; or #) at its beginning."""
    while text[:1] in (b";", b"#") and b"\n" in text:
        text = text.partition(b"\n")[2].lstrip()
    return text


def _read_ct(path: Path, handle: BinaryIO, problems: Problems | None) -> Iterator[Found]:
    """CT, connectivity tables: a line with the number of bases and a name, then a line for each base; one or more."""
    lines = [cells for each in handle.read().decode("utf-8", "replace").splitlines() if (cells := each.split())]
    i = 0
    while i < len(lines):
        count = int(lines[i][0]) if lines[i][0].isdigit() else 0
        rows = lines[i + 1 : i + 1 + count]
        counted = [row[0] for row in rows if len(row) > 4]
        if not count or counted != [*map(str, range(1, count + 1))]:
            raise SegueError(f"{path}: no connectivity table of {count} bases begins at '{' '.join(lines[i])[:40]}'; "
                             "is the file cut short?")
        yield " ".join(lines[i][1:]) or str(i + 1), "".join(row[1] for row in rows).encode("utf-8", "replace"), None
        i += 1 + count


def _read_bpseq(path: Path, handle: BinaryIO, problems: Problems | None) -> Iterator[Found]:
    """BPSEQ: a line for each base: its number, the base, and the number of its partner."""
    lines = [line.split() for line in handle.read().decode("utf-8", "replace").splitlines()
             if line.strip() and line[0] != "#"]
    if any(len(cells) != 3 or cells[0] != str(number) for number, cells in enumerate(lines, 1)):
        raise SegueError(f"{path}: not a line of number, base and partner for each base (BPSEQ); mend it")
    yield path.stem, "".join(cells[1] for cells in lines).encode("utf-8", "replace"), None


def read_fasta(path: Path, handle: BinaryIO, problems: Problems | None, marks: bool = False,
               label: HeaderClass | None = None) -> Iterator[Found]:
    """FASTA. marks: each record is a line of letters and a line of annotation. label: where a header says the class."""
    notes = ([] if label is None else [f"class={label.where}"]) + ["not read: the marks below the letters"] * marks
    if problems is not None and notes:
        problems.note = "; ".join(notes)
    for number, (header, body) in enumerate(_fasta_records(handle), 1):
        name, lines = _record_name(header, number), body.split() if marks else []
        if marks and (len(lines) < 2 or len(lines[0]) != len(lines[1])):
            bad(problems, path, name, None, "not as many marks below as letters; is the file cut short?")
            continue
        body = re.sub(rb"(?m)^=.*$", b"", body) if b"=" in body else body  # the end of a block of XMFA
        sequence = lines[0] if marks else body.translate(None, BLANKS)
        if label is not None:
            name = of_class(name, label.read(header.decode("utf-8", "replace").strip()))
        if sequence:
            yield name, sequence, None
        else:
            bad(problems, path, name, None, "the record has no sequence; remove its header or add the letters")


def _fasta_records(handle: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    """The header and the body of each FASTA record, read in blocks, since one may be a whole chromosome."""

    def record() -> tuple[bytes, bytes]:
        header, _, body = b"".join(parts).partition(b"\n")
        return header, body

    parts: list[bytes] = []  # the record being read, without its ">"
    carry, in_record = b"\n", False
    while True:
        block = handle.read(BLOCK)
        text = carry + block
        if b"\r" in text and b"\n" not in text.strip(b"\n"):
            text = text.replace(b"\r", b"\n")  # line ends of old Macs
        carry = b"\n" if block and text.endswith(b"\n") else b""
        text = text[: len(text) - len(carry)]
        first, *following = text.split(b"\n>")
        parts.append(first)
        for part in following:
            if in_record:
                yield record()
            parts, in_record = [part], True
        if not block:
            break
    if in_record:
        yield record()


def _record_name(header: bytes, number: int) -> str:
    """The first word of a header, or the number of the record if it is empty."""
    return (header.split() or [str(number).encode()])[0].decode("utf-8", "replace")


def is_fastq(path: Path) -> bool:
    """Whether a file is FASTQ, by its first character."""
    with suppress(SegueError):
        return head_of(path).removeprefix(MARK).lstrip()[:1] == b"@"
    return False


def read_fastq(path: Path, handle: BufferedReader, problems: Problems | None) -> Iterator[Found]:
    """FASTQ; letters and qualities may be wrapped over several lines."""
    number, zero = 0, _sign_of_zero(handle.peek(HEAD))
    if problems is not None and zero != PHRED[0]:
        problems.note = "qualities as Illumina wrote them before version 1.8, where @ is 0"
    while header := handle.readline():
        if not header.strip():
            continue
        number += 1
        name = _record_name(header[1:], number)
        parts, plus = [], handle.readline()
        while plus and plus[:1] not in b"+@":
            parts.append(plus.strip(BLANKS))
            plus = handle.readline()
        if header[:1] != b"@" or plus[:1] != b"+":
            raise SegueError(f"{path}, record {number}: a FASTQ record is @name, letters, + and as many qualities, "
                             "this is not; is a line missing before it?")
        sequence = b"".join(parts)
        quality = handle.readline().rstrip(b"\r\n")
        while len(parts) > 1 and len(quality) < len(sequence) and (line := handle.readline()):
            quality += line.rstrip(b"\r\n")
        if not sequence and not quality:
            bad(problems, path, name, None, "the read has no letters (all trimmed away?); remove it")
            continue
        if not sequence or len(sequence) != len(quality):
            bad(problems, path, name, min(len(sequence), len(quality)) + 1,
                f"{len(sequence)} letters but {len(quality)} qualities; is the file cut short?")
            continue
        scores = np.frombuffer(quality, dtype=np.uint8)
        if quality.translate(None, PHRED):
            bad(problems, path, name, int(np.flatnonzero((scores < 33) | (scores > 126))[0]) + 1,
                "the quality is not a sign between ! and ~; mend or remove the record")
            continue
        yield name, sequence, np.maximum(scores, zero) - np.uint8(zero)


def _sign_of_zero(head: bytes) -> int:
    """The sign that stands for a quality of 0 in a FASTQ file of four lines a record: @ if at its beginning none is
    below ; (-5), one is above K (which would be 42) and none above h (40); else !."""
    lines = [line for line in head.splitlines()[:-1] if line.strip()]
    lines = lines[: len(lines) // 4 * 4]
    signs = b"".join(lines[3::4])
    regular = {line[:1] for line in lines[::4]} == {b"@"} and {line[:1] for line in lines[2::4]} == {b"+"}
    return ord("@") if regular and ord(";") <= min(signs) and ord("K") < max(signs) <= ord("h") else PHRED[0]


READERS: dict[str, Callable[[Path, BinaryIO, Problems | None], Iterator[Found]]] = {
    "clustal": _read_clustal, "phylip": _read_phylip, "msf": _read_msf, "gcg": _read_gcg, "swiss": _read_flat,
    "embl": _read_flat, "sam": _read_sam, "ct": _read_ct, "bpseq": _read_bpseq,
}  # formats of `FORMATS` that Biopython is not asked for


def annotation_files(paths: Sequence[Path]) -> dict[Path, Path]:
    """The FASTA files that say something of each letter of another one's sequences, such as the secondary structure,
    with the other: their first records have the same names and lengths, but other letters, at most half as many."""
    first = {path: records for path in paths if 1 < len(paths) <= MOST_FILES and (records := _first_records(path))}
    found = {}
    for path, other in permutations(first, 2):
        both = [(marks, first[other][name]) for name, marks in first[path].items() if name in first[other]]
        if len(both) < 3 or any(len(a) != len(b) for a, b in both):
            continue
        said, letters = (b"".join(parts) for parts in zip(*both))
        if 2 * len(set(said)) <= len(set(letters)) and 2 * sum(map(eq, said, letters)) < len(letters):
            found[path] = other
    return found


def _first_records(path: Path) -> dict[str, bytes]:
    """The letters of the first records of a FASTA file by their names, without one that the look at it cuts."""
    head = head_of(path)
    if head[:1] != b">":
        return {}
    parts = [part.partition(b"\n") for part in head[1:].split(b"\n>")]
    if len(head) >= HEAD and len(parts) > 1:
        parts.pop()
    named = [(name.split()[0].decode("utf-8", "replace"), body) for name, _, body in parts if name.split()]
    return {name: b"".join(body.split()) for name, body in named}
