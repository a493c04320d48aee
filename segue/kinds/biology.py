"""DNA (and RNA) and protein: FASTA, FASTQ and GenBank files, checked letter by letter at C speed."""

from __future__ import annotations

import hashlib
import io
import re
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice, pairwise, zip_longest
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np

from segue.errors import SegueError, require
from segue.files import write_text
from segue.kinds.base import ARFF, MARK, Dataset, Kind, Problem, Problems, Record, bad, head_of, looks_binary, of_class
from segue.kinds.codecs import BASES, NUCLEOTIDES, RESIDUES, Codec, KmerCodec, LetterCodec
from segue.kinds.columns import cells_of
from segue.kinds.frame import DELIMITED, JSON, LONG_WORD, PARQUET, ROWS, TABULAR, Look, glance, is_parquet
from segue.kinds.headers import class_in_headers
from segue.kinds.packed import bare, opened

RNA_BASES = "ACGU"
TWENTY = RESIDUES[:20]
BLOCK = 1 << 22
BLOCKED = 8  # letters at least in the blocks that some write a sequence's lines in
SHORT = 5  # residues at least of a peptide
LONG = 1000  # letters: that two records are the same is then no chance
PHRED = bytes(range(33, 127))
COLUMNS = {"sequence", "seq", "dna", "protein", "peptide", "cdr3", "sequences", "dna_sequence", "protein_sequence",
           "aa_sequence"}
CAPITALISED = re.compile(r"[A-Z][a-z]{2,}")
SITES = {"site", "recognition_site", "recognition_sequence", "recognition sequence", "recognition site"}
CUTS = re.compile(r"\^|\(-?\d+/-?\d+\)")
NAMES = {"id", "name", "accession", "identifier", "header", "sequence_id", "protein_id", "gene", "instance_name",
         "enzyme"}
BLANKS = b" \t\r\n\v\f"
BASE_WORD = re.compile(r"[ACGTUN]{6,}|[acgtun]{6,}")  # shorter than a `LONG_WORD`, and yet no other word
LEAST = 20  # columns of one letter each at least that are a sequence
FLAT = {  # what files of databases and aligners begin with, and the name of their format in Biopython
    r"LOCUS +\S+ .*\d+ (bp|aa)\b": "genbank",
    r"ID   \S+\s+(Reviewed|Unreviewed|STANDARD|PRELIMINARY);.* \d+ AA\.": "swiss",
    r"ID   .* \d+ (BP|AA)\.": "embl",
    r"# STOCKHOLM": "stockholm",
    r"(CLUSTAL|MUSCLE|PROBCONS|MSAPROBS|Kalign)\b.*alignment|CLUSTAL( [WXO])?\s*\n": "clustal",
    r">(P1|F1|D[LC]|R[LC]|N[13]|XX);": "pir",
    r"(?i)#NEXUS\b": "nexus",
    r"(HEADER    .{40}\d\d-[A-Z]{3}-\d\d|(ATOM|HETATM) +\d+ |CRYST1 |MODEL +\d+ *\n|REMARK +\d+ |TITLE {5}|"
    r"(REMARK.*\n)+(ATOM|HETATM) +\d+ )": "pdb",
    r"(#.*\n)*data_\S+\s(.|\n)*?_(entry\.id|atom_site\.(group_PDB|id))\s": "cif",
    r"[ \t]*\d+[ \t].*\n[ \t]*1[ \t]+[A-Za-z][ \t]+0[ \t]+2[ \t]+\d+[ \t]+1\b": "ct",
    r"(#.*\n)*1[ \t]+[A-Za-z][ \t]+\d+[ \t]*\r?\n2[ \t]+[A-Za-z][ \t]+\d+[ \t]*\r?\n": "bpseq",
    r"(!!(NA|AA)_MULTIPLE_ALIGNMENT|PileUp\b)": "msf",
    r"##maf version=": "maf",
    r"(<\?xml[^>]*>\s*)?<uniprot\b": "uniprot-xml",
    r"@(HD|SQ|RG|PG)\t[A-Z]{2}:": "sam",
    r"[^\s@][^\t\n]*\t\d+\t\S+\t\d+\t\d+\t(\*|(\d+[MIDNSHPX=])+)\t\S+\t\d+\t-?\d+\t([A-Za-z=.]+|\*)(\t|$)": "sam",
}
SNAPGENE = b"\t\0\0\0\x0eSnapGene"
SIZES = re.compile(r"\s*(\d+)[ \t]+(\d+)[ \t]*[A-Za-z]?[ \t]*")  # the first line of PHYLIP: sequences, letters of each
PAIRED = re.compile(rb"[().,\[\]{}<>|:~_-]*[()][().,\[\]{}<>|:~_A-Za-z-]*([ \t]+\([ \d.-]+\))?\s*")  # who pairs
REVERSED = bytes.maketrans(b"ACGTUacgtu", b"TGCAAtgcaa")
GENBANK = {".gb", ".gbk", ".gbff", ".genbank", ".gp", ".gpff"}

Found = tuple[str, bytes, np.ndarray | None]  # name, letters as they stand in the file, qualities


class Letters(Kind):
    """What DNA and protein share. `letters`: the legal ones; `mask`: the one that stands for any."""

    storage = "letters"
    written = (".fa", ".fasta", ".fna", ".faa", ".txt")
    split_by = "content"
    decoder = "sample"
    letters: ClassVar[str] = ""
    mask: ClassVar[str] = ""
    surely: ClassVar[frozenset[str]] = frozenset()  # suffixes that mean this kind
    perhaps: ClassVar[frozenset[str]] = frozenset((".fa", ".fasta", ".fas", ".fsa", ".seq", ".a2m", ".a3m"))

    def likely(self, sample: bytes) -> float:
        """0 to 1: how well a sample of letters fits."""
        raise NotImplementedError

    def sniff(self, path: Path, head: bytes) -> float:
        suffix = path.suffix.lower()
        text = head.removeprefix(MARK).lstrip()
        if head.startswith(SNAPGENE):
            return 0.95 * self.likely(b"ACGT")
        if not text or (looks_binary(head) and not is_parquet(head)):
            return 0.0
        if head.startswith(b"##gff") and b"\n>" in head:  # annotation with its sequences behind
            text = text[text.index(b"\n>") + 1 :]
        text = _unmarked(_uncommented(text))
        if (form := _flat(head)) is not None and (sample := _letters(head.removeprefix(MARK).lstrip(), form)):
            return 0.95 * self.likely(sample)
        if text[:1] == b">" and (suffix in self.perhaps or suffix in self.surely or len(text.splitlines()) > 1):
            body = b"\n".join(line for line in text.splitlines() if line[:1] not in (b">", b";"))
            sample = body.translate(None, BLANKS).upper()
            if len(cut := body.split()) > len(text.splitlines()) and len(sample) < BLOCKED * len(cut):
                return 0.0  # words, of a text that begins with >
            if not sample or len(sample.translate(None, (self.letters + ".").encode())) > len(sample) // 10:
                return 0.5 if suffix in self.surely else 0.3 * self.likely(sample) if suffix in self.perhaps else 0.0
            return 0.95 if suffix in self.surely else 0.85 * self.likely(sample)
        if sample := self._bare(text):
            return 0.85 * self.likely(sample)
        table = glance(path, head) if suffix in TABULAR else None
        if table is not None and (table.regular or suffix in DELIMITED | JSON | PARQUET):
            named = base_columns(table) or [name for name in [sequence_column(table)] if name is not None]
            cells = [cell for name in named for cell in table.column(name)]
            letters = "".join(_unwound(cell) for cell in cells if isinstance(cell, str)).upper()
            sample = letters.encode("ascii", "replace")
            if sample and len(sample.translate(None, self.letters.encode())) <= len(sample) // 10:
                return 0.95 * self.likely(sample)
        return 0.6 if suffix in self.surely else 0.0

    def read(self, path: Path, problems: Problems | None = None, *, case: str = "fold", illegal: str = "skip",
             column: str | None = None, features: str | None = None, classes: str | None = None) -> Iterator[Record]:
        """One record a sequence; its name is file:identifier. FASTA (also behind a GFF), FASTQ, SAM (each read once, as
        it was sequenced), GenBank, SnapGene, EMBL, UniProt, PDB and mmCIF, alignments (Stockholm, Clustal, PHYLIP, PIR,
        NEXUS, MSF, MAF), the bases of folded RNA (dot-bracket, CT, BPSEQ), letters alone (a sequence a line, or one
        over lines of one length and a shorter last), or a table (CSV, TSV, Parquet, JSON, ARFF) with sequences in a
        `column` (if None, one called sequence or seq, or one of long words of letters; words of k letters that overlap
        are one sequence, and so are twenty or more columns of one base each). A line of marks below the letters of each
        record (brackets, states, 0 and 1) is not read.

        case: "fold" makes all letters upper case; "keep" leaves soft-masked (lower-case) letters different. illegal:
        what happens to a record with a letter outside the alphabet: "skip" (and tell) or "mask" (it becomes N or X).
        classes: the column of a table, or of FASTA the key of its headers, that says of which class each record is
        ("": one called so, if there is one, or a part of the headers that says few things), which its name then tells.
        FASTQ qualities come as the channel `quality` (Phred). features: of GenBank and EMBL files, in place of whole
        sequences their parts of that sort (CDS, tRNA, gene ...), joined and on their own strand, or for proteins what
        they are translated to.
        """
        if case not in ("fold", "keep") or illegal not in ("skip", "mask"):
            raise SegueError(f"case is 'fold' or 'keep' and illegal is 'skip' or 'mask', not {case!r} and {illegal!r}")
        legal = (self.letters + (self.letters.lower() if case == "keep" else "")).encode()
        table = bytes.maketrans(b".", b"-")
        table = table.upper() if case == "fold" else table
        masked = bytes(i if i in legal else ord(self.mask) for i in range(256))
        found, before = False, problems.total if problems is not None else 0
        for name, sequence, quality in self._sequences(path, problems, column, features, classes):
            sequence = sequence.translate(table)
            wrong = sequence.translate(None, legal)
            if wrong and illegal == "skip":
                bad(problems, path, name, sequence.index(wrong[:1]) + 1,
                    f"{chr(wrong[0])!r} is not a {self.unit} code ({self.letters}); mend it, or illegal='mask' to read "
                    f"it as {self.mask}")
                continue
            sequence = sequence.translate(masked) if wrong else sequence
            found = True
            yield Record(sequence.decode("ascii"), {} if quality is None else {"quality": quality}, f"{path}:{name}")
        if not found and (problems is None or problems.total == before):
            raise SegueError(f"{path}: there is no sequence in this file")

    def read_all(self, paths: list[Path], problems: Problems, named: frozenset[Path],
                 **options: Any) -> Iterator[Record]:
        """As `Kind.read_all`, but a long sequence that an earlier file has too (a genome is often there as FASTA and as
        GenBank) is told and stepped over: it would count twice, and be learned twice."""
        first: dict[bytes, str] = {}  # from a digest of the letters: the record that has them
        scored = len(paths) < 2 or all(map(_has_qualities, paths))
        if not scored and any(map(_has_qualities, paths)):
            problems.note = "letters alone: not all files have qualities"
        for path in paths:
            here: dict[bytes, str] = {}  # within a file, what is repeated is meant
            for record in super().read_all([path], problems, named, **options):
                record = record if scored else replace(record, channels={})
                if len(record.object) >= LONG:
                    digest = hashlib.blake2b(record.object.encode(), digest_size=16).digest()
                    if digest in first:
                        problems.add(Problem(str(path), record.name.removeprefix(f"{path}:"), None,
                                             f"the same sequence as {first[digest]}; read once"))
                        continue
                    here[digest] = record.name
                yield record
            first.update(here)

    def _sequences(self, path: Path, problems: Problems | None, column: str | None, features: str | None,
                   classes: str | None) -> Iterator[Found]:
        with opened(path) as handle:
            head = handle.peek(1 << 12)
            if head.startswith(MARK):
                handle.read(len(MARK))
                head = handle.peek(1 << 12)
            start = _uncommented(head.lstrip())[:8]
            suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
            if not head:
                raise SegueError(f"{path}: the file is empty; give a file with sequences in it")
            if head.startswith(SNAPGENE):
                yield from self._flat(path, handle, "snapgene", problems)
                return
            flat = "genbank" if GENBANK.intersection(suffixes) else _flat(head)
            if features is not None:
                if flat not in ("genbank", "embl"):
                    raise SegueError(f"{path}: only GenBank and EMBL files have features: leave features out")
                yield from self._features(path, handle, flat, features, problems)
                return
            words = head.partition(b"\n")[0].decode("ascii", "replace").split()[:40]
            if column is None and flat is None and len(words) > 2 and " " not in _unwound(" ".join(words)):
                yield from ((str(number), _unwound(line.decode("ascii", "replace")).encode("ascii", "replace"), None)
                            for number, line in enumerate(handle, 1) if line.strip())
                return
            if column is not None or is_parquet(head) or (flat is None and self._tabular(path, head, start)):
                yield from _column(path, problems, column, classes)
                return
            if looks_binary(head):
                raise SegueError(
                    f"{path}: this is binary, not a file of {self.name} sequences (FASTA, FASTQ or GenBank)")
            if flat in OWN:
                yield from OWN[flat](path, handle, problems)
            elif flat is not None:
                yield from self._flat(path, handle, flat, problems)
            elif start[:1] == b"@":
                yield from _fastq(path, handle, problems)
            elif start[:1] == b">" or head.startswith(b"##gff"):
                beginning = head_of(path)
                label = class_in_headers(re.findall(r"(?m)^>(.*\S)", beginning.decode("utf-8", "replace")), classes)
                if classes and label is None:
                    raise SegueError(f"{path}: no {classes}= in its headers to say the class; leave classes out")
                yield from _fasta(path, handle, problems, _has_marks(beginning), label)
            elif self._bare(_unmarked(_uncommented(head))):
                yield from _lines(handle, problems)
            else:
                raise SegueError(f"{path}: line 1 begins with {chr(start[0]) if start else 'a blank'!r}; FASTA begins "
                                 "with '>', FASTQ with '@', GenBank with LOCUS, EMBL and UniProt with ID; of a table, "
                                 "name the column with column=")

    def _tabular(self, path: Path, head: bytes, start: bytes) -> bool:
        table = None if start[:1] in (b">", b"@") and not ARFF.match(head) else glance(bare(path), head_of(path))
        return table is not None and (bool(base_columns(table)) or sequence_column(table) is not None)

    def _bare(self, text: bytes) -> bytes:
        """The letters of the beginning of a file that has nothing but lines of them, b"" of any other."""
        lines = [line for each in text.splitlines() if (line := each.strip())]
        least, cases = (6, self.letters + self.letters.lower()) if self.name == "dna" else (LEAST, self.letters)
        if self.name == "protein" and are_peptides([line.decode("ascii", "replace") for line in lines]):
            least = SHORT
        letters = b"".join(lines)
        strange = letters.translate(None, cases.encode()) or len(set(letters)) < 3 or len(letters) < LEAST
        return b"" if strange or any(len(line) < least for line in lines[:-1]) else letters.upper()

    def _flat(self, path: Path, handle: BinaryIO, form: str, problems: Problems | None) -> Iterator[Found]:
        """The sequence of each record, by Biopython; the features of GenBank and EMBL are not parsed."""
        text = io.TextIOWrapper(handle, "utf-8", "replace")  # names of authors may be in another encoding
        source: Any = handle if form in ("uniprot-xml", "snapgene") else text
        try:
            if form in ("pdb", "cif"):  # what was in the tube, or where that is not told what is in the picture
                source = io.StringIO(text.read())
                whole = re.search(r"(?m)^(SEQRES|_pdbx_poly_seq_scheme\.)", source.getvalue()) is not None
                if not whole and re.search(r"(?m)^(ATOM|HETATM)\b", source.getvalue()) is None:
                    raise SegueError(f"{path}: there is neither a sequence nor an atom in it; download it again")
                form = f"{form}-{'seqres' if whole else 'atom'}"
            if form in ("genbank", "embl"):
                scanners = require("Bio.GenBank.Scanner", "biology")
                scanner = scanners.GenBankScanner() if form == "genbank" else scanners.EmblScanner()
                records = scanner.parse_records(text, do_features=False)
            else:
                with warnings.catch_warnings(action="ignore"):
                    records = require("Bio.SeqIO", "biology").parse(source, form)
            for record in _doubted(path, records, problems):
                name = (record.id or record.name or "").removeprefix("????:").replace("<unknown id>", path.stem)
                try:
                    letters = bytes(record.seq)
                except Exception as error:  # an undefined sequence; the class is Biopython's own
                    raise SegueError(f"{path}, record {record.id}: it holds no sequence (only its length); download it "
                                     "in full") from error
                if form[:3] in ("pdb", "cif") and not letters.strip(b"X"):
                    bad(problems, path, name, None, "no chain of amino acids (DNA, RNA or small molecules)")
                else:
                    yield name, letters.replace(b"?", b"-") if form == "nexus" else letters, None
        except (SegueError, OSError, EOFError):
            raise
        except Exception as error:  # a foreign parser may raise anything on a broken file
            name = {"genbank": "GenBank", "embl": "EMBL", "swiss": "UniProt"}.get(form, form)
            why = error or type(error).__name__
            raise SegueError(f"{path}: no {name} file that Biopython reads ({why}); download it again or give "
                             "FASTA") from error
        finally:
            text.close()

    def _features(self, path: Path, handle: BinaryIO, form: str, sort: str,
                  problems: Problems | None) -> Iterator[Found]:
        """The parts of one sort of each record, by Biopython; for proteins their translations, where they are told."""
        found, text = False, io.TextIOWrapper(handle, "utf-8", "replace")
        try:
            for record in _doubted(path, require("Bio.SeqIO", "biology").parse(text, form), problems):
                for number, feature in enumerate((each for each in record.features if each.type == sort), 1):
                    said = feature.qualifiers
                    names = [said[key][0] for key in ("protein_id", "locus_tag", "gene") if key in said]
                    letters = "".join(said.get("translation", ())).encode() if self.name == "protein" else \
                        bytes(feature.extract(record.seq))
                    if letters:
                        found = True
                        yield names[0] if names else f"{record.id}:{sort}{number}", letters, None
        except (SegueError, OSError, EOFError):
            raise
        except Exception as error:  # a foreign parser may raise anything on a broken file
            raise SegueError(f"{path}: no file whose features Biopython reads ({error}); download it again") from error
        finally:
            text.close()
        if not found:
            raise SegueError(f"{path}: there is no {sort} in this file; look which features it has (CDS, gene, tRNA)")

    def write(self, objects: Iterable[str | Record], path: str | Path) -> None:
        """FASTA, 60 letters a line; a `Record` gives its name, a bare string its number."""
        lines = []
        for number, obj in enumerate(objects, 1):
            name, letters = (obj.name, obj.object) if isinstance(obj, Record) else (f"sequence{number}", obj)
            lines.append(f">{' '.join(name.split()) or f'sequence{number}'}")
            lines += [letters[at : at + 60] for at in range(0, len(letters), 60)]
        write_text(path, "\n".join(lines) + "\n")

    def show(self, obj: str) -> str:
        """Sixty letters a line in tens, each line with the position of its first letter."""
        rows = []
        for at in range(0, len(obj), 60):
            tens = " ".join(obj[i : i + 10] for i in range(at, min(at + 60, len(obj)), 10))
            rows.append(f"{at + 1:>9} {tens}")
        return "\n".join(rows)

    def normalise(self, obj: Any, known: Collection[str] = ()) -> str:
        """Upper-case letters without blanks; a SegueError names the position of one that is not of the kind."""
        text = obj.decode("ascii", "replace") if isinstance(obj, bytes) else obj
        if not isinstance(text, str):
            raise SegueError(f"a {self.name} sequence is a string of letters, not {type(text).__name__}")
        letters = "".join(text.split()).replace(".", "-").upper()
        for position, letter in enumerate(letters, 1):
            if letter not in self.letters:
                raise SegueError(f"position {position}: {letter!r} is not a {self.unit} code ({self.letters})")
        return letters

    def alphabet(self, data: Dataset) -> str:
        """The kind's letters, with lower-case ones where the data keep case."""
        lower = any(letter.islower() for letter in data.vocabulary)
        return self.letters + (self.letters.lower().replace("-", "").replace("*", "") if lower else "")


def sequence_column(table: Look) -> str | None:
    """The column of a table that is called as sequences usually are, or that holds long words of letters alone, or
    shorter ones of bases."""
    for called in (COLUMNS, SITES) if table.headed else ():
        named = (name for name in table.names if name.lower() in called)
        if found := next((name for name in named if not _words(table.column(name))), None):
            return found
    for name in table.names[:ROWS]:
        cells = table.column(name)
        letters = [_unwound(cell) if isinstance(cell, str) else "" for cell in cells]
        if len(cells) > 1 and (all(map(LONG_WORD.fullmatch, letters)) or are_peptides(letters) or
                               (len(set(letters)) > 3 and all(map(BASE_WORD.fullmatch, letters)))):
            return name
    return None


def _words(cells: Sequence[Any]) -> bool:
    """Whether these are mostly words or names (Grand Rapids), at a column called site, say."""
    return 2 * sum(isinstance(cell, str) and CAPITALISED.match(cell) is not None for cell in cells) > len(cells)


def are_peptides(cells: Sequence[str]) -> bool:
    """Whether these are short sequences of residues and no words: many, of the twenty letters alone."""
    said = set("".join(cells))
    return len(cells) >= LEAST and said <= set(TWENTY) and len(said) > 14 and 2 * len(set(cells)) > len(cells) and \
        min(map(len, cells)) >= SHORT


def base_columns(table: Look) -> list[str]:
    """The columns of a table, `LEAST` or more in a row, that hold a base each; none where there are not so many."""
    if len(table.rows) < 2 or len(table.names) < LEAST:
        return []
    columns = islice(zip_longest(*table.rows), len(table.names))
    held = ["".join(cell if isinstance(cell, str) and len(cell) == 1 else "?" for cell in cells if cell).upper()
            for cells in columns]
    single = [bool(letters) and set(letters) <= set(NUCLEOTIDES) for letters in held]
    for begin, end in _runs(single):
        letters = "".join(held[begin:end]).encode()
        if end - begin >= LEAST and 20 * len(letters.translate(None, b"ACGTUN-")) <= len(letters):
            return table.names[begin:end]
    return []


def _runs(marked: list[bool]) -> Iterator[tuple[int, int]]:
    """Where runs of marked places begin and end."""
    edges = np.flatnonzero(np.diff([False, *marked, False]))
    return zip(edges[::2].tolist(), edges[1::2].tolist())


def _unwound(cell: str) -> str:
    """The letters of a cell; words of k letters each of which goes on one letter further are one sequence. Where a site
    is cut, as in G^AATTC or GGATG(9/13), is no letter."""
    cell = CUTS.sub("", cell)
    words = cell.split()
    if len(words) > 1 and len(words[0]) > 1 and all(a[1:] == b[:-1] for a, b in pairwise(words)):
        return words[0] + "".join(word[-1] for word in words[1:])
    return cell.strip()


def _has_qualities(path: Path) -> bool:
    """Whether a file is FASTQ, by its first sign."""
    with suppress(SegueError):
        return head_of(path).removeprefix(MARK).lstrip()[:1] == b"@"
    return False


def _uncommented(text: bytes) -> bytes:
    """The beginning of a file without the comments that some write above FASTA."""
    while text[:1] in (b";", b"#") and b"\n" in text:
        text = text.partition(b"\n")[2].lstrip()
    return text


def _flat(head: bytes) -> str | None:
    """The format of a file of a database or of an aligner, by its first line."""
    text = head.lstrip()[:4096].decode("utf-8", "replace")
    form = next((form for begin, form in FLAT.items() if re.match(begin, text)), None)
    return form if form is not None or not SIZES.match(text) else _phylip_begins(text)


def _letters(text: bytes, form: str) -> bytes:
    """Some letters of a file of a database or of an aligner."""
    lines = text.decode("utf-8", "replace").splitlines()
    if form in ("pdb", "cif", "uniprot-xml"):
        return b"PROTEIN"
    if form in ("ct", "bpseq"):
        return "".join(re.findall(r"(?m)^[ \t]*\d+[ \t]+([A-Za-z])[ \t]", "\n".join(lines))).upper().encode()
    if form == "sam":
        return "".join(cells[9] for line in lines if len(cells := line.split("\t")) > 10 and line[0] != "@").encode()
    if form in ("genbank", "embl", "swiss"):
        return b"PROTEIN" if re.search(r" (aa|AA)\b", lines[0]) else b"ACGT"
    if form == "nexus":
        if kind := re.search(rb"(?i)\bdatatype\s*=\s*(dna|rna|nucleotide|protein)", text):
            return b"PROTEIN" if kind[1].lower() == b"protein" else b"ACGT"
        lines = re.split(r"(?i)^\s*matrix\b", "\n".join(lines), maxsplit=1, flags=re.MULTILINE)[-1].splitlines()
    if form == "maf":
        words = [line.split()[-1] for line in lines if line.startswith("s ")]
    elif form == "phylip":
        words = [re.sub(r"^\S.{9}", "", line) for line in lines[1:]]
    elif form == "msf":
        words = [word for line in text.decode("utf-8", "replace").partition("//")[2].splitlines()
                 for word in line.split()[1:]]
    elif form == "pir":
        words = [line for i, line in enumerate(lines) if line[:1] != ">" and lines[i - 1][:1] != ">"]
    else:
        words = [line.split()[1] for line in lines[1:] if line[:1] not in "# /" and len(line.split()) in (2, 3)]
    return "".join("".join(words).split()).translate(str.maketrans("", "", "*.?~")).upper().encode("ascii", "replace")


def _column(path: Path, problems: Problems | None, column: str | None, classes: str | None) -> Iterator[Found]:
    for found, name, cell in cells_of(path, problems, column, sequence_column, "holds sequences by its name", COLUMNS,
                                      NAMES, classes=classes, joined=base_columns):
        if sequence := "".join(_unwound(cell).split()).encode("utf-8", "replace"):
            yield name, sequence, None
        else:
            bad(problems, path, name, None, f"no sequence in column '{found}'; remove the row or fill it")


def _doubted(path: Path, records: Iterator[Any], problems: Problems | None) -> Iterator[Any]:
    """The records of Biopython; what it warns of is told as problems."""
    while True:
        with warnings.catch_warnings(record=True) as doubts:
            warnings.simplefilter("always")
            record = next(records, None)
        if record is None:
            return
        for doubt in doubts if problems is not None else ():
            said = " ".join(str(doubt.message).split())
            bad(problems, path, record.id or record.name or "", None, f"doubtful: {said}")
        yield record


def _phylip_begins(text: str) -> str | None:
    """"phylip" where the first two rows, behind their names, have as many letters as each other, and no more than the
    first line says."""
    first, *rows = [line for line in text.splitlines() if line.strip()]
    said = SIZES.fullmatch(first)
    if said is None or not rows or int(said[2]) < 1 or (int(said[1]) > 1 and len(rows) < 2):
        return None
    for ten in (False, True):
        letters = [_taxon(row, ten)[1] for row in rows[:2]]
        ways = [letters]
        if len(letters) > 1 and (more := "".join(rows[1].split())).isalpha():  # or the first row goes on
            ways.append([letters[0] + more])
        if any(all(re.fullmatch(r"[A-Za-z?*.-]+", each) for each in way) and len({*map(len, way)}) == 1 and
               len(way[0]) <= int(said[2]) for way in ways):
            return "phylip"
    return None


def _taxon(line: str, ten: bool) -> tuple[str, str]:
    """The name and the letters of a row of PHYLIP: the name is ten signs, or a word."""
    name, _, letters = (line[:10], "", line[10:]) if ten else line.strip().partition(" ") \
        if "\t" not in line.strip() else line.strip().partition("\t")
    return name.strip(), "".join(letters.split())


def _phylip(path: Path, handle: BinaryIO, problems: Problems | None) -> Iterator[Found]:
    """Alignments behind lines that say how many sequences of how many letters: row by row or in blocks, their names a
    word or of ten signs; that which fits."""
    lines = [line for each in handle.read().decode("utf-8", "replace").splitlines() if (line := each.rstrip())]
    at = 0
    while at < len(lines):
        said = SIZES.fullmatch(lines[at])
        count, length = (int(said[1]), int(said[2])) if said else (0, 0)
        ways = (way(lines[at + 1 :], count, length, ten) for ten in (False, True) for way in (_in_blocks, _in_rows))
        rows, used = next(filter(None, ways), ([], 0)) if 0 < count < len(lines) - at else ([], 0)
        if not rows:
            raise SegueError(f"{path}, line {at + 1}: no alignment of {count} sequences of {length} letters begins "
                             "here; is the file cut short?")
        at += 1 + used
        yield from ((name, letters.replace("?", "-").encode("utf-8", "replace"), None) for name, letters in rows)


def _in_blocks(lines: list[str], count: int, length: int, ten: bool) -> tuple[list[tuple[str, str]], int] | None:
    """The rows of an alignment in blocks, and how many lines it takes; None where they do not fit."""
    names, letters = zip(*(_taxon(line, ten) for line in lines[:count]))
    rows, used = list(letters), count
    while max(map(len, rows)) < length and used + count <= len(lines):
        rows = [row + "".join(line.split()) for row, line in zip(rows, lines[used : used + count])]
        used += count
    return (list(zip(names, rows)), used) if {*map(len, rows)} == {length} else None


def _in_rows(lines: list[str], count: int, length: int, ten: bool) -> tuple[list[tuple[str, str]], int] | None:
    """As `_in_blocks`, of one sequence behind the other."""
    rows, used = list[tuple[str, str]](), 0
    while len(rows) < count and used < len(lines):
        name, letters = _taxon(lines[used], ten)
        used += 1
        while len(letters) < length and used < len(lines):
            letters += "".join(lines[used].split())
            used += 1
        rows.append((name, letters))
    return (rows, used) if len(rows) == count and {len(row) for _, row in rows} == {length} else None


def _sam(path: Path, handle: BinaryIO, problems: Problems | None) -> Iterator[Found]:
    """The reads of an alignment to a genome, each once and as it was sequenced."""
    scored: bool | None = None
    for number, line in enumerate(handle, 1):
        cells = line.rstrip(b"\r\n").split(b"\t")
        if line[:1] == b"@" or not line.strip():
            continue
        if len(cells) < 11 or not cells[1].isdigit():
            bad(problems, path, str(number), None, "not the eleven columns of a read in SAM; is the file cut short?")
            continue
        flag, letters, quality = int(cells[1]), cells[9], cells[10]
        if flag & 0x900 or letters == b"*":  # told again for another place
            continue
        scored = quality != b"*" if scored is None else scored
        if scored and len(quality) != len(letters):
            bad(problems, path, _name(cells[0], number), None, f"{len(letters)} letters but {len(quality)} qualities; "
                                                               "mend or remove it")
            continue
        back = -1 if flag & 16 else 1
        letters = letters.translate(REVERSED)[::-1] if flag & 16 else letters
        scores = np.frombuffer(quality, np.uint8)[::back] - np.uint8(33) if scored else None
        yield _name(cells[0], number), letters, scores


def _clustal(path: Path, handle: BinaryIO, problems: Problems | None) -> Iterator[Found]:
    """The rows of an alignment in blocks: a name, letters, and how many there were so far, if that is told."""
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


def _lines(handle: BinaryIO, problems: Problems | None) -> Iterator[Found]:
    """Letters alone: a sequence a line, or one over lines of one length and a shorter last."""
    lines = [(str(number), line) for number, each in enumerate(_unmarked(_uncommented(handle.read())).splitlines(), 1)
             if (line := each.strip())]
    lengths = {len(line) for _, line in lines[:-1]}
    wrapped = len(lengths) == 1 and len(lines[-1][1]) < max(lengths)
    if problems is not None and len(lines) > 1:
        problems.note = "one sequence over all lines" if wrapped else "a sequence a line"
    if wrapped:
        lines = [("1", b"".join(line for _, line in lines))]
    yield from ((name, line, None) for name, line in lines)


def _has_marks(head: bytes) -> bool:
    """Whether each record of the beginning of a FASTA file is a line of letters and a line of marks below it: signs
    that are no letters, or few letters where there are many above."""
    records = [part.splitlines()[1:] for part in (b"\n" + head).split(b"\n>")[1:]]
    whole = [[line.strip() for line in lines if line.strip()] for lines in (records[:-1] or records)]
    if not whole or any(len(lines) != 2 or len(lines[0]) != len(lines[1].split()[0]) for lines in whole):
        return False
    above, below = ({*b"".join(lines[i].split()[0] for lines in whole)} for i in (0, 1))
    strange = not bytes(below).isalpha() and not below & above
    return strange or (len(whole) > 2 and 2 * len(below) <= len(above) > 14)


def _unmarked(text: bytes) -> bytes:
    """A text without the lines of marks below letters, such as brackets for who pairs with whom."""
    lines = text.splitlines(keepends=True)
    if text[:1] == b">":
        return b"".join(line for i, line in enumerate(lines) if i % 3 != 2) if _has_marks(text) else text
    for i, line in enumerate(lines[1:], 1):
        if PAIRED.fullmatch(line) and len(line.split()[0]) == len(lines[i - 1].strip()):
            return b"".join(lines[:i])
    return text


def _ct(path: Path, handle: BinaryIO, problems: Problems | None) -> Iterator[Found]:
    """Connectivity tables: a line with the count of bases and a name, and a line a base; some structures in a row."""
    lines = [cells for each in handle.read().decode("utf-8", "replace").splitlines() if (cells := each.split())]
    at = 0
    while at < len(lines):
        count = int(lines[at][0]) if lines[at][0].isdigit() else 0
        rows = lines[at + 1 : at + 1 + count]
        counted = [row[0] for row in rows if len(row) > 4]
        if not count or counted != [*map(str, range(1, count + 1))]:
            raise SegueError(f"{path}: no connectivity table of {count} bases begins at '{' '.join(lines[at])[:40]}'; "
                             "is the file cut short?")
        yield " ".join(lines[at][1:]) or str(at + 1), "".join(row[1] for row in rows).encode("utf-8", "replace"), None
        at += 1 + count


def _bpseq(path: Path, handle: BinaryIO, problems: Problems | None) -> Iterator[Found]:
    """A line a base: its number, the base, and with which it pairs."""
    lines = [line.split() for line in handle.read().decode("utf-8", "replace").splitlines()
             if line.strip() and line[0] != "#"]
    if any(len(cells) != 3 or cells[0] != str(number) for number, cells in enumerate(lines, 1)):
        raise SegueError(f"{path}: not a line of number, base and partner for each base (BPSEQ); mend it")
    yield path.stem, "".join(cells[1] for cells in lines).encode("utf-8", "replace"), None


def _fasta(path: Path, handle: BinaryIO, problems: Problems | None, marks: bool = False,
           label: Callable[[str], str] | None = None) -> Iterator[Found]:
    """marks: there is a line of them below each line of letters; label: the class that a header says."""
    notes = ["class=a part of the headers"] * (label is not None) + ["not read: the marks below the letters"] * marks
    if problems is not None and notes:
        problems.note = "; ".join(notes)
    for number, (header, body) in enumerate(_headed(handle), 1):
        name, lines = _name(header, number), body.split() if marks else []
        if marks and (len(lines) < 2 or len(lines[0]) != len(lines[1])):
            bad(problems, path, name, None, "not as many marks below as letters; is the file cut short?")
            continue
        sequence = lines[0] if marks else body.translate(None, BLANKS)
        if label is not None:
            name = of_class(name, label(header.decode("utf-8", "replace").strip()))
        if sequence:
            yield name, sequence, None
        else:
            bad(problems, path, name, None, "the record has no sequence; remove its header or add the letters")


def _headed(handle: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    """Header and lines of each FASTA record; read in blocks, since one may be a whole chromosome."""

    def record() -> tuple[bytes, bytes]:
        header, _, body = b"".join(parts).partition(b"\n")
        return header, body

    parts: list[bytes] = []  # the record being read, without its ">"
    carry, begun = b"\n", False
    while True:
        block = handle.read(BLOCK)
        text = carry + block
        if b"\r" in text and b"\n" not in text.strip(b"\n"):
            text = text.replace(b"\r", b"\n")  # line ends of old Macs
        carry = b"\n" if block and text.endswith(b"\n") else b""
        text = text[: len(text) - len(carry)]
        first, *others = text.split(b"\n>")
        parts.append(first)
        for part in others:
            if begun:
                yield record()
            parts, begun = [part], True
        if not block:
            break
    if begun:
        yield record()


def _name(header: bytes, number: int) -> str:
    """The first word of a header, or the number of its record."""
    return (header.split() or [str(number).encode()])[0].decode("utf-8", "replace")


OWN: dict[str, Callable[[Path, BinaryIO, Problems | None], Iterator[Found]]] = {
    "clustal": _clustal, "phylip": _phylip, "sam": _sam, "ct": _ct, "bpseq": _bpseq,
}  # formats of `FLAT` that Biopython is not asked for


def _fastq(path: Path, handle: BinaryIO, problems: Problems | None) -> Iterator[Found]:
    """Letters may take several lines, up to the '+', and qualities as many signs."""
    number = 0
    while header := handle.readline():
        if not header.strip():
            continue
        number += 1
        name = _name(header[1:], number)
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
        yield name, sequence, scores - np.uint8(33)


class DNA(Letters):
    """DNA and RNA: an object is a str of IUPAC nucleotide codes (ACGTNRYSWKMBDHV, U, and - for a gap), its unit the
    base. How files are read, and what is wrong in them, see `read`."""

    name = "dna"
    unit = "base"
    letters = NUCLEOTIDES
    mask = "N"
    surely = frozenset((".fna", ".ffn", ".frn", ".fastq", ".fq", *GENBANK - {".gp", ".gpff"}))

    def sniff(self, path: Path, head: bytes) -> float:
        text = head.lstrip()
        lines = text.split(b"\n", 3)
        if text[:1] == b"@" and len(lines) > 2 and lines[2][:1] == b"+" and not looks_binary(head):
            return 0.95
        return super().sniff(path, head)

    def likely(self, sample: bytes) -> float:
        return 1.0 if len(sample.translate(None, b"ACGTUN-.")) <= len(sample) // 10 else 0.2

    def codec(self, data: Dataset, *, k: int = 1) -> Codec:
        """k = 1: a base a token (IUPAC codes, U and gap included). k > 1: non-overlapping words of k bases, of RNA with
        U for T."""
        letters = self.alphabet(data)
        if k == 1:
            return LetterCodec(letters)
        counts = data.vocabulary
        return KmerCodec(k, letters, RNA_BASES if counts.get("U", 0) > counts.get("T", 0) else BASES)


class Protein(Letters):
    """Protein: an object is a str of residue codes (the twenty, U, O, the ambiguous BZJX, * for a stop, - for a gap),
    its unit the residue. How files are read, and what is wrong in them, see `read`."""

    name = "protein"
    unit = "residue"
    letters = RESIDUES
    mask = "X"
    surely = frozenset((".faa", ".pep", ".gp", ".gpff"))

    def likely(self, sample: bytes) -> float:
        return 1.0 if len(sample.translate(None, b"ACGTUN-.")) > len(sample) // 10 else 0.2

    def codec(self, data: Dataset, *, k: int = 1) -> Codec:
        """k = 1: a residue a token: the twenty, U, O, the ambiguous B Z J X, stop and gap. k > 1: non-overlapping words
        of k of the twenty, up to four."""
        letters = self.alphabet(data)
        return LetterCodec(letters) if k == 1 else KmerCodec(k, letters, TWENTY)
