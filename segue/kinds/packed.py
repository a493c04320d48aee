"""Files as they lie: packed (gzip, xz, bzip2, zstd), or within an archive (zip, tar) that is read as a folder; a
workbook is one of CSV files, a book one of its chapters."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import re
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path, PurePosixPath
from typing import IO, Any

from segue.errors import SegueError
from segue.kinds.books import chapters
from segue.kinds.matlab import arrays
from segue.kinds.sheets import BOOK, sheets

COMPRESSED = {".gz", ".bgz", ".xz", ".bz2", ".zst"}
TARS = {".tgz", ".tbz", ".tbz2", ".txz"}
MATLAB, EPUB = ".mat", ".epub"
ZIPS = {".zip", ".npz", ".mxl", ".epub", ".xlsx", ".xlsm", ".docx", ".pptx", ".ods", ".odt"}
RATIO, LEAST = 200, 1 << 28  # an archive may unpack to so many times its size, or to so many bytes

POINTER = b"version https://git-lfs.github.com/spec/"
# What binary files begin with, what they are and how to go on.
PICKLE = "a pickle, which is never opened: write it as JSON, CSV or .npy"
FOREIGN = {
    b"%PDF": "a PDF: turn it into text, for example with pdftotext",
    **dict.fromkeys((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"), PICKLE),
    b"\xd0\xcf\x11\xe0": "an old Office document: save it as CSV or as text",
    b"\x89HDF": "HDF5: write its arrays as .npy, or its tables as CSV or Parquet",
    b"SQLite format 3": "a database: export its tables as CSV",
    b"BAM\1": "BAM: turn it into FASTQ with samtools fastq",
    **dict.fromkeys((b"ABIF", b".sff"), "raw reads: turn them into FASTQ"),
    b"\0\0\x08": "IDX without pictures, such as the labels of MNIST",
    **dict.fromkeys((b"7z\xbc\xaf\x27\x1c", b"Rar!"), "an archive of a sort that is not read here: unpack it"),
    b"CRAM": "CRAM: turn it into FASTQ with samtools fastq",
    **dict.fromkeys((b"\x43\x27\x41\x1a", b"\x1a\x41\x27\x43"), "a 2bit genome: turn it into FASTA with twoBitToFa"),
    b"BCF\2": "variants, which need the genome in which they stand: segue evaluate MODEL GENOME --variants FILE.vcf",
    **dict.fromkeys((b"CDF\1", b"CDF\2"), "netCDF: write its variables as .npy, or as CSV"),
    **dict.fromkeys((b"RDX", b"RDA", b"X\n\0\0\0"), "saved by R: write it there with write.csv"),
    **dict.fromkeys((b"$FL2", b"<stata_dta>"), "a table of SPSS or Stata: save it as CSV"),
    **dict.fromkeys((b"\xff\xf1", b"\xff\xf9", b"\x30\x26\xb2\x75"), "packed sound: turn it into WAV with ffmpeg"),
    b"\x18FICHIER GUITAR": "Guitar Pro: export it as MIDI or MusicXML",
}
WITHIN = {  # what stands further on, at which byte
    **dict.fromkeys(((4, b"ftypheic"), (4, b"ftypavif")), "a HEIC or AVIF picture: save it as PNG or JPEG"),
    (4, b"ftyp"): "sound or a film in MP4: turn its sound into WAV with ffmpeg",
    (128, b"DICM"): "DICOM: save its pictures as PNG, or its arrays as .npy",
    (344, b"n+1\0"): "NIfTI: save its array as .npy", (344, b"ni1\0"): "NIfTI: save its array as .npy",
    (512, b"\x89HDF"): "MATLAB 7.3, which is HDF5: save it with -v7, or write its arrays as .npy",
    (16, b"\xde\xc0\xef\xbe"): "LMDB: write its entries as FASTA, JSON Lines or .npy"}
# Texts that hold what is no sequence of any kind here, by their beginning, what they are and how to go on.
SCORE = "a score in a form that is not read here: export it as MusicXML or MIDI"
NO_TEXT = {
    r"\((d|l)(p\d+)?\n|c[\w.]+\n\w+\n(p\d+\n)?\(": PICKLE,
    r"##fileformat=VCF": FOREIGN[b"BCF\2"],
    r"##gff-version(?!(.|\n)*\n>)|([^\s#]\S*\t){3}\d+\t\d+\t\S+\t[-+.]\t[.012]\t.*(=|_id \")":
        "annotation (GFF, GTF) without letters: cut the sequences out of the genome with bedtools getfasta or gffread",
    r"(browser .*\n|track .*\n|#.*\n)*(track type=(wiggle_0|bedGraph)|(fixed|variable)Step )":
        "a track of a genome: write its values as CSV or .npy",
    r"(browser .*\n|track .*\n|#.*\n)*chr\w+\t\d+\t\d+(\t.*)?\n(chr\w+\t\d+\t\d+(\t.*)?\n)*(chr|\Z)":
        "places in a genome (BED): cut their sequences out with bedtools getfasta",
    r"(<\?xml[^>]*>\s*)?(<!DOCTYPE[^>]*>\s*)?<(GBSet|INSDSet|TSeqSet|Bioseq-set|UniRef\d*\b|uniparc\b)":
        "XML of sequences in a form that is not read here: download it as FASTA or GenBank",
    r"(<\?xml[^>]*>\s*)?(<!DOCTYPE[^>]*>\s*)?<(museScore|mei\b|score-timewise)": SCORE,
    r"(<\?xml[^>]*>\s*)?<(cml|CDXML|molecule)\b|(REMARK.*\n)*ROOT\n":
        "a molecule in a form that is not read here: save it as SDF or SMILES, say with Open Babel",
    r"(<\?xml[^>]*>\s*)?<(gpx|kml)\b": "a track of places: turn it into CSV, say with gpsbabel -o unicsv",
    r"MEME version|>\S+.*\n\s*A\s*\[": "counts of motifs, which are no sequences: give those that they were counted in",
    r"NAME\s*:[^:]*:(.*\n)*?TOUR_SECTION": "a tour through places: put it beside the .tsp of its name, and give that",
    r"%%MatrixMarket matrix array": "a dense matrix: write it as .npy, or as CSV",
    r"HIERARCHY\s+ROOT": "motion (BVH): write the numbers below its MOTION as CSV",
}


def no_text(head: bytes) -> str | None:
    """What a text is that is no sequence of any kind here, None of all others."""
    text = head[:4096].decode("utf-8", "ignore").lstrip("\ufeff")
    return next((what for pattern, what in NO_TEXT.items() if re.match(pattern, text)), None)


def foreign(head: bytes) -> str:
    """What a file is that is of no kind here, for an error."""
    what = next((name for magic, name in FOREIGN.items() if head.startswith(magic)), None) or no_text(head) or \
        next((name for (at, magic), name in WITHIN.items() if head[at:].startswith(magic)), None)
    first, second = head[:400:2], head[1:400:2]
    for encoding, zeros, signs in (("utf-16-le", second, first), ("utf-16-be", first, second)):
        if what is None and 2 * zeros.count(0) > len(zeros) and signs and not signs.count(0):
            what = f"{encoding.upper()} without a mark, perhaps: give kind=text and encoding={encoding}"
    return f"it is {what}" if what else "it is binary"


@contextmanager
def opened(path: Path) -> Iterator[io.BufferedReader]:
    """Open a file for reading bytes, unpacked where it is gzip, xz, bzip2 or zstd (told by its first bytes, not its
    name). The file may be within an archive: texts.zip/1.txt.

    Whatever goes wrong while it is read, damage in the packed stream included, becomes a SegueError naming the file.
    """
    try:
        with open(actual(path), "rb") as raw:
            stream = _stream(path, raw)
            yield stream if isinstance(stream, io.BufferedReader) else io.BufferedReader(stream, 1 << 20)
    except EOFError as error:
        raise SegueError(f"{path}: the packed file ends too soon (truncated); fetch or copy it again") from error
    except (gzip.BadGzipFile, zlib.error, lzma.LZMAError) as error:
        raise SegueError(f"{path}: the packed file is damaged ({error}); fetch or copy it again") from error
    except FileNotFoundError as error:
        raise SegueError(f"{path}: no such file; check the path") from error
    except PermissionError as error:
        raise SegueError(f"{path}: not readable (permission denied); give read permission, e.g. chmod +r") from error
    except IsADirectoryError as error:
        raise SegueError(f"{path}: is a folder, not a file") from error
    except OSError as error:
        raise SegueError(f"{path}: cannot be read ({error.strerror or error})") from error


def _stream(path: Path, raw: io.BufferedReader) -> Any:
    if raw.peek(len(POINTER)).startswith(POINTER):
        raise SegueError(f"{path}: a pointer of Git LFS, not the file itself: fetch that with git lfs pull")
    magic = raw.peek(6)[:6]
    if magic[:2] == b"\x1f\x8b":
        return gzip.GzipFile(fileobj=raw)
    if magic == b"\xfd7zXZ\x00":
        return lzma.LZMAFile(raw)
    if magic[:3] == b"BZh" and magic[3:4].isdigit():
        return bz2.BZ2File(raw)
    if magic[:4] == b"\x28\xb5\x2f\xfd":
        import pyarrow as pa

        return pa.CompressedInputStream(pa.PythonFile(raw, "r"), "zstd")
    if magic[:4] == b"PK\x03\x04" and path.suffix.lower() in (".pt", ".pth", ".ckpt", ".mscz"):
        raise SegueError(f"{path}: {SCORE if path.suffix.lower() == '.mscz' else PICKLE}")
    if magic[:4] == b"PK\x03\x04":
        raise SegueError(f"{path}: a zip archive; give a file in it (a.zip/b.txt), or unpack it")
    return raw


def bare(path: Path) -> Path:
    """The path without a compression suffix: genome.fna.gz -> genome.fna."""
    return path.with_suffix("") if path.suffix.lower() in COMPRESSED else path


def is_archive(path: Path) -> bool:
    """By its name, and whether it is a file."""
    suffix, inner = path.suffix.lower(), bare(path).suffix.lower()
    return (suffix in TARS | ZIPS | {MATLAB} or inner == ".tar") and path.is_file()


def actual(path: Path) -> Path:
    """Where a file is to be found: itself, or what a file within an archive was unpacked to."""
    archive = next((parent for parent in path.parents if is_archive(parent)), None)
    return path if archive is None else unpacked(archive) / path.relative_to(archive)


def is_there(path: Path) -> bool:
    """Whether there is such a file, on the disk or within an archive."""
    return actual(path).is_file()


def twin(path: Path, name: str) -> Path | None:
    """The file of that name beside another, packed or not; None where there is none."""
    return next(filter(is_there, (path.with_name(name + ending) for ending in ("", *sorted(COMPRESSED)))), None)


def unpacked(archive: Path) -> Path:
    """The folder that an archive was unpacked to, once in the life of the process."""
    try:
        return Path(_unpacked(archive.resolve(), archive.stat().st_mtime_ns).name)
    except SegueError as error:
        raise SegueError(f"{archive}: {error}") from error
    except OSError as error:
        raise SegueError(f"{archive}: cannot be unpacked ({error.strerror or error}); free some space, or set TMPDIR "
                         "to a place that has it") from error


@cache
def _unpacked(archive: Path, changed: int) -> tempfile.TemporaryDirectory[str]:
    """Files only, below the folder, and no more than a bounded number of bytes."""
    folder = tempfile.TemporaryDirectory(prefix="segue-")
    bytes_left = max(LEAST, RATIO * archive.stat().st_size)
    try:
        for name, handle in _members(archive):
            parts = PurePosixPath(name.replace("\\", "/")).parts
            if not parts or parts[0] == "/" or ".." in parts or ":" in parts[0]:
                raise SegueError(f"holds {name!r}, which lies outside of it; unpack it with care, and give the folder")
            place = Path(folder.name, *parts)
            place.parent.mkdir(parents=True, exist_ok=True)
            with open(place, "wb") as sink:
                while block := handle.read(1 << 20):
                    bytes_left -= len(block)
                    if bytes_left < 0:
                        raise SegueError(f"unpacks to more than {RATIO} times its size; unpack it if that is meant")
                    sink.write(block)
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError) as error:
        raise SegueError(f"the archive is damaged ({error}); fetch or copy it again") from error
    except (RuntimeError, NotImplementedError) as error:  # zipfile's words for a password, and for a method
        raise SegueError(f"the archive cannot be unpacked here ({error}); unpack it first") from error
    return folder


def _members(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Name and content of each file in an archive; links, devices and folders are no files."""
    if archive.suffix.lower() == MATLAB:
        yield from arrays(archive)
        return
    if archive.suffix.lower() == EPUB:
        yield from ((name, io.BytesIO(text)) for name, text in chapters(archive))
        return
    if archive.suffix.lower() in ZIPS:
        with zipfile.ZipFile(archive) as box:
            if BOOK in box.namelist():
                if sum(entry.file_size for entry in box.infolist()) > max(LEAST, RATIO * archive.stat().st_size):
                    raise SegueError(f"unpacks to more than {RATIO} times its size; save its sheets as CSV")
                yield from ((name, io.BytesIO(table)) for name, table in sheets(archive))
                return
            if "[Content_Types].xml" in box.namelist() or "content.xml" in box.namelist():
                raise SegueError("an Office document; save it as CSV or as text")
            for entry in box.infolist():
                if not entry.is_dir() and not stat.S_ISLNK(entry.external_attr >> 16):
                    with box.open(entry) as handle:
                        yield entry.filename, handle
        return
    with opened(archive) as packed, tarfile.open(fileobj=packed, mode="r|") as tape:
        for member in tape:
            if member.isfile() and (content := tape.extractfile(member)) is not None:
                yield member.name, content
