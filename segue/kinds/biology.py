"""DNA (and RNA) and protein sequences: how their files are told apart, read and checked, and written as FASTA."""

from __future__ import annotations

import hashlib
import io
import re
import warnings
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

from segue.errors import SegueError, require
from segue.files import write_text
from segue.kinds.base import ARFF, MARK, Dataset, Kind, Problem, Problems, Record, bad, head_of, looks_binary
from segue.kinds.codecs import BASES, NUCLEOTIDES, RESIDUES, Codec, KmerCodec, LetterCodec
from segue.kinds.columns import cells_of
from segue.kinds.frame import DELIMITED, JSON, PARQUET, TABULAR, glance, is_parquet
from segue.kinds.headers import class_in_headers, headers_of
from segue.kinds.packed import bare, opened
from segue.kinds.sequence_columns import (
    COLUMNS,
    LEAST,
    SHORT,
    TWENTY,
    are_peptides,
    base_columns,
    join_kmers,
    sequence_column,
)
from segue.kinds.sequence_files import (
    BLANKS,
    READERS,
    Found,
    annotation_files,
    format_of,
    has_annotation_lines,
    is_fastq,
    letters_alone,
    looks_like_bases,
    read_fasta,
    read_fastq,
    read_lines,
    sample_letters,
    with_warnings,
    without_comments,
)

RNA_BASES = "ACGU"
BLOCKED = 8  # the fewest letters in a block, where the lines of sequences are written in blocks
LONG = 1000  # letters from which on two equal records are no coincidence
NAMES = {"id", "name", "accession", "identifier", "header", "sequence_id", "protein_id", "gene", "instance_name",
         "enzyme"}
SNAPGENE = b"\t\0\0\0\x0eSnapGene"
GENBANK = {".gb", ".gbk", ".gbff", ".genbank", ".gp", ".gpff"}


class Letters(Kind):
    """Base class of DNA and protein. letters: the legal ones; mask: the one that stands for any."""

    storage = "letters"
    written = (".fa", ".fasta", ".fna", ".faa", ".txt")
    split_by = "content"
    decoder = "sample"
    letters: ClassVar[str] = ""
    mask: ClassVar[str] = ""
    surely: ClassVar[frozenset[str]] = frozenset()  # suffixes that mean this kind
    perhaps: ClassVar[frozenset[str]] = frozenset((".fa", ".fasta", ".fas", ".fsa", ".seq", ".a2m", ".a3m"))

    def likely(self, sample: bytes) -> float:
        """How well a sample of letters fits this kind, 0 to 1."""
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
        text = letters_alone(text)
        if (form := format_of(head)) is not None and (sample := sample_letters(head.removeprefix(MARK).lstrip(), form)):
            return 0.95 * self.likely(sample)
        if text[:1] == b">" and (suffix in self.perhaps or suffix in self.surely or len(text.splitlines()) > 1):
            body = b"\n".join(line for line in text.splitlines() if line[:1] not in (b">", b";"))
            sample = body.translate(None, BLANKS).upper()
            if len(cut := body.split()) > len(text.splitlines()) and len(sample) < BLOCKED * len(cut) and \
                    suffix not in self.perhaps | self.surely:
                return 0.0  # words, of a text that begins with >
            if not sample or len(sample.translate(None, (self.letters + ".").encode())) > len(sample) // 10:
                return 0.5 if suffix in self.surely else 0.3 * self.likely(sample) if suffix in self.perhaps else 0.0
            return 0.95 if suffix in self.surely else 0.85 * self.likely(sample)
        if sample := self._bare_letters(text):
            return 0.85 * self.likely(sample)
        table = glance(path, head) if suffix in TABULAR else None
        if table is not None and (table.regular or suffix in DELIMITED | JSON | PARQUET):
            named = base_columns(table) or [name for name in [sequence_column(table)] if name is not None]
            cells = [cell for name in named for cell in table.column(name)]
            letters = "".join(join_kmers(cell) for cell in cells if isinstance(cell, str)).upper()
            sample = letters.encode("ascii", "replace")
            if sample and len(sample.translate(None, self.letters.encode())) <= len(sample) // 10:
                return 0.95 * self.likely(sample)
        return 0.6 if suffix in self.surely else 0.0

    def read(self, path: Path, problems: Problems | None = None, *, case: str = "fold", illegal: str = "skip",
             column: str | None = None, features: str | None = None, classes: str | None = None) -> Iterator[Record]:
        """One record a sequence; its name is file:identifier. FASTA (also behind a GFF), FASTQ, SAM (each read once, as
        it was sequenced), GenBank, SnapGene, EMBL, UniProt, PDB and mmCIF, alignments (Stockholm, Clustal, PHYLIP, PIR,
        NEXUS, MSF, MAF), GCG, the bases of folded RNA (dot-bracket, CT, BPSEQ), letters alone (a sequence a line; or
        one, over lines of one length and a shorter last, or in blocks of ten), or a table (CSV, TSV, Parquet, JSON,
        ARFF) with sequences in a `column` (if None, one called sequence or seq, or one of long words of letters; words
        of k letters that overlap are one sequence, and so are twenty or more columns of one base each). A line of marks
        below the letters of each record (brackets, states, 0 and 1) is not read.

        case: "fold" makes all letters upper case; "keep" leaves soft-masked (lower-case) letters different. illegal:
        what happens to a record with a letter outside the alphabet: "skip" (and tell) or "mask" (it becomes N or X).
        classes: the column of a table, or of FASTA the key of its headers or the number of their part between bars or
        blanks (of >P1|EUK|SP, 3 is SP), that says of which class each record is
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
        any_record, num_problems = False, problems.total if problems is not None else 0
        for name, sequence, quality in self._read_sequences(path, problems, column, features, classes):
            sequence = sequence.translate(table)
            wrong = sequence.translate(None, legal)
            if wrong and illegal == "skip":
                bad(problems, path, name, sequence.index(wrong[:1]) + 1,
                    f"{chr(wrong[0])!r} is not a {self.unit} code ({self.letters}); mend it, or illegal='mask' to read "
                    f"it as {self.mask}")
                continue
            sequence = sequence.translate(masked) if wrong else sequence
            any_record = True
            yield Record(sequence.decode("ascii"), {} if quality is None else {"quality": quality}, f"{path}:{name}")
        if not any_record and (problems is None or problems.total == num_problems):
            raise SegueError(f"{path}: there is no sequence in this file")

    def read_all(self, paths: list[Path], problems: Problems, named: frozenset[Path],
                 **options: Any) -> Iterator[Record]:
        """As `Kind.read_all`, but a long sequence that an earlier file holds too (a genome is often there as FASTA and
        as GenBank) is reported and skipped, so that it is not learned twice; and so are `annotation_files`."""
        for path, other in annotation_files(paths).items():
            problems.refuse(path, f"skipped: a letter or digit for each {self.unit} of {other.name}")
            paths = [each for each in paths if each != path]
        record_of: dict[bytes, str] = {}  # from a digest of the letters: the record that has them
        scored = len(paths) < 2 or all(map(is_fastq, paths))
        if not scored and any(map(is_fastq, paths)):
            problems.note = "letters alone: not all files have qualities"
        for path in paths:
            digests_here: dict[bytes, str] = {}  # within a file, what is repeated is meant
            for record in super().read_all([path], problems, named, **options):
                record = record if scored else replace(record, channels={})
                if len(record.object) >= LONG:
                    digest = hashlib.blake2b(record.object.encode(), digest_size=16).digest()
                    if digest in record_of:
                        problems.add(Problem(str(path), record.name.removeprefix(f"{path}:"), None,
                                             f"the same sequence as {record_of[digest]}; read once"))
                        continue
                    digests_here[digest] = record.name
                yield record
            record_of.update(digests_here)

    def _read_sequences(self, path: Path, problems: Problems | None, column: str | None, features: str | None,
                        classes: str | None) -> Iterator[Found]:
        with opened(path) as handle:
            head = handle.peek(1 << 12)
            if head.startswith(MARK):
                handle.read(len(MARK))
                head = handle.peek(1 << 12)
            start = without_comments(head.lstrip())[:8]
            suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
            if not head:
                raise SegueError(f"{path}: the file is empty; give a file with sequences in it")
            if head.startswith(SNAPGENE):
                yield from self._biopython_records(path, handle, "snapgene", problems)
                return
            form = "genbank" if GENBANK.intersection(suffixes) else format_of(head)
            if features is not None:
                if form not in ("genbank", "embl"):
                    raise SegueError(f"{path}: only GenBank and EMBL files have features: leave features out")
                yield from self._read_features(path, handle, form, features, problems)
                return
            words = head.partition(b"\n")[0].decode("ascii", "replace").split()[:40]
            if column is None and form is None and len(words) > 2 and " " not in join_kmers(" ".join(words)):
                yield from ((str(number), join_kmers(line.decode("ascii", "replace")).encode("ascii", "replace"), None)
                            for number, line in enumerate(handle, 1) if line.strip())
                return
            if column is not None or is_parquet(head) or (form is None and self._holds_sequences(path, head, start)):
                yield from _table_sequences(path, problems, column, classes)
                return
            if looks_binary(head):
                raise SegueError(
                    f"{path}: this is binary, not a file of {self.name} sequences (FASTA, FASTQ or GenBank)")
            if form in READERS:
                yield from READERS[form](path, handle, problems)
            elif form is not None:
                yield from self._biopython_records(path, handle, form, problems)
            elif start[:1] == b"@":
                yield from read_fastq(path, handle, problems)
            elif start[:1] == b">" or head.startswith(b"##gff"):
                label = None if classes is None else class_in_headers(headers_of(path), classes)
                if classes and label is None:
                    raise SegueError(f"{path}: no {classes}= in its headers to say the class; leave classes out, or "
                                     "give the number of the part between bars that says it")
                yield from read_fasta(path, handle, problems, has_annotation_lines(head_of(path)), label)
            elif self._bare_letters(letters_alone(head)):
                yield from read_lines(handle, problems)
            else:
                raise SegueError(f"{path}: line 1 begins with {chr(start[0]) if start else 'a blank'!r}; FASTA begins "
                                 "with '>', FASTQ with '@', GenBank with LOCUS, EMBL and UniProt with ID; of a table, "
                                 "name the column with column=")

    def _holds_sequences(self, path: Path, head: bytes, start: bytes) -> bool:
        table = None if start[:1] in (b">", b"@") and not ARFF.match(head) else glance(bare(path), head_of(path))
        return table is not None and (bool(base_columns(table)) or sequence_column(table) is not None)

    def _bare_letters(self, text: bytes) -> bytes:
        """The letters of the beginning of a file that has nothing but lines of them, b"" of any other."""
        lines = [line for each in text.splitlines() if (line := each.strip())]
        shortest, alphabet = (6, self.letters + self.letters.lower()) if self.name == "dna" else (LEAST, self.letters)
        if self.name == "protein" and are_peptides([line.decode("ascii", "replace") for line in lines]):
            shortest = SHORT
        letters = b"".join(lines)
        unlikely = letters.translate(None, alphabet.encode()) or len(set(letters)) < 3 or len(letters) < LEAST
        return b"" if unlikely or any(len(line) < shortest for line in lines[:-1]) else letters.upper()

    def _biopython_records(self, path: Path, handle: BinaryIO, form: str, problems: Problems | None) -> Iterator[Found]:
        """The sequence of each record, by Biopython; the features of GenBank are not parsed."""
        text = io.TextIOWrapper(handle, "utf-8", "replace")  # names of authors may be in another encoding
        source: Any = handle if form in ("uniprot-xml", "snapgene") else text
        try:
            if form in ("pdb", "cif"):  # what was in the tube, or where that is not told what is in the picture
                source = io.StringIO(text.read())
                has_sequence = re.search(r"(?m)^(SEQRES|_pdbx_poly_seq_scheme\.)", source.getvalue()) is not None
                if not has_sequence and re.search(r"(?m)^(ATOM|HETATM)\b", source.getvalue()) is None:
                    raise SegueError(f"{path}: there is neither a sequence nor an atom in it; download it again")
                form = f"{form}-{'seqres' if has_sequence else 'atom'}"
            if form == "genbank":
                scanner = require("Bio.GenBank.Scanner", "biology").GenBankScanner()
                records = scanner.parse_records(text, do_features=False)
            else:
                with warnings.catch_warnings(action="ignore"):
                    records = require("Bio.SeqIO", "biology").parse(source, form)
            for record in with_warnings(path, records, problems):
                name = (record.id or record.name or "").removeprefix("????:").replace("<unknown id>", path.stem)
                try:
                    letters = bytes(record.seq)
                except Exception:  # an undefined sequence; the class is Biopython's own
                    bad(problems, path, name, None, "it holds no sequence (only its length); download it in full")
                    continue
                if form[:3] in ("pdb", "cif") and not letters.strip(b"X"):
                    bad(problems, path, name, None, "no chain of amino acids (DNA, RNA or small molecules)")
                else:
                    yield name, letters.replace(b"?", b"-") if form == "nexus" else letters, None
        except (SegueError, OSError, EOFError):
            raise
        except Exception as error:  # a foreign parser may raise anything on a broken file
            name, why = form.replace("genbank", "GenBank"), error or type(error).__name__
            raise SegueError(f"{path}: no {name} file that Biopython reads ({why}); download it again or give "
                             "FASTA") from error
        finally:
            text.close()

    def _read_features(self, path: Path, handle: BinaryIO, form: str, kind: str,
                       problems: Problems | None) -> Iterator[Found]:
        """The features of one kind of each record, by Biopython; for proteins their translations, where given."""
        any_feature, text = False, io.TextIOWrapper(handle, "utf-8", "replace")
        try:
            for record in with_warnings(path, require("Bio.SeqIO", "biology").parse(text, form), problems):
                for number, feature in enumerate((each for each in record.features if each.type == kind), 1):
                    qualifiers = feature.qualifiers
                    names = [qualifiers[key][0] for key in ("protein_id", "locus_tag", "gene") if key in qualifiers]
                    letters = "".join(qualifiers.get("translation", ())).encode() if self.name == "protein" else \
                        bytes(feature.extract(record.seq))
                    if letters:
                        any_feature = True
                        yield names[0] if names else f"{record.id}:{kind}{number}", letters, None
        except (SegueError, OSError, EOFError):
            raise
        except Exception as error:  # a foreign parser may raise anything on a broken file
            raise SegueError(f"{path}: no file whose features Biopython reads ({error}); download it again") from error
        finally:
            text.close()
        if not any_feature:
            raise SegueError(f"{path}: there is no {kind} in this file; look which features it has (CDS, gene, tRNA)")

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


def _table_sequences(path: Path, problems: Problems | None, column: str | None, classes: str | None) -> Iterator[Found]:
    cells = cells_of(path, problems, column, sequence_column, "holds sequences by its name", COLUMNS, NAMES,
                     classes=classes, joined=base_columns)
    for used, name, cell in cells:
        if sequence := "".join(join_kmers(cell).split()).encode("utf-8", "replace"):
            yield name, sequence, None
        else:
            bad(problems, path, name, None, f"no sequence in column '{used}'; remove the row or fill it")


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
        return 1.0 if looks_like_bases(sample) else 0.2

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
        return 0.2 if looks_like_bases(sample) else 1.0

    def codec(self, data: Dataset, *, k: int = 1) -> Codec:
        """k = 1: a residue a token: the twenty, U, O, the ambiguous B Z J X, stop and gap. k > 1: non-overlapping words
        of k of the twenty, up to four."""
        letters = self.alphabet(data)
        return LetterCodec(letters) if k == 1 else KmerCodec(k, letters, TWENTY)
