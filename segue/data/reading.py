"""Making a data set from files, folders and patterns, or from objects in memory."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from segue.data.arrow import MEMORY, PROGRESS_BYTES, Writer
from segue.data.options import check_options
from segue.data.records import Data
from segue.errors import SegueError
from segue.kinds import KINDS
from segue.kinds.base import Kind, Problems, Record, head_of
from segue.kinds.beside import owner
from segue.kinds.frame import DELIMITED, glance
from segue.kinds.packed import actual, bare, foreign, is_archive, unpacked
from segue.progress import progress

LEAST_PATTERN_FILES = 10  # so many files on a command line are taken for an expanded pattern
# Not data, in folders: files by the beginning of their names, and subfolders.
SKIPPED_FILES = {"readme", "license", "licence", "copying", "notice", "checksums", "sha256sums", "mimetype",
                 "dataset_info", "dataset_infos", "dataset_dict"}
LOCK_FILES = {"package-lock.json", "yarn.lock", "pnpm-lock.yaml", "poetry.lock", "Cargo.lock", "composer.lock",
              "Pipfile.lock", "go.sum", "uv.lock"}  # written by package managers
SKIPPED_FOLDERS = {"__pycache__", "node_modules", "META-INF", "__MACOSX"}


def read(*paths: str | os.PathLike[str], kind: str | None = None, memory: int = MEMORY, **options: Any) -> Data:
    """Read sequences of one kind from files, folders, globs and archives (zip and tar, read as folders), compressed
    (gzip, xz, bzip2, zstd) or not.

    kind: one of `segue.kinds.KINDS`, found from names and contents if None. memory: bytes of records held in memory;
    more go to a temporary folder. options: the kind's own (see its `read`). A folder that `Data.save` wrote is opened.
    Whatever is wrong with the input is a SegueError naming file, record and position, or, where single records or files
    of a folder are bad, an entry of `Data.problems`.
    """
    if not paths:
        raise SegueError("nothing to read: give a file, a folder or a pattern such as 'data/*.txt'")
    if kind is not None and kind not in KINDS:
        raise SegueError(f"there is no kind '{kind}'; there are {', '.join(KINDS)}")
    if len(paths) == 1 and os.path.isfile(os.path.join(paths[0], "data.json")):
        data = Data.open(Path(paths[0]))
        if kind not in (None, data.kind.name):
            raise SegueError(f"{paths[0]} holds {data.kind.name}, not {kind}: leave kind= out, or read its files anew")
        return data
    problems = Problems()
    files, explicit = _find_files(paths)
    owners = {path: owner(path) or path for path in files}
    files, explicit = list(dict.fromkeys(owners.values())), frozenset(owners[path] for path in explicit)
    chosen, files = _choose_kind(files, explicit, kind, problems, options.get("encoding"))
    options = check_options(chosen.read, f"reading {chosen.name}", options)
    writer = Writer(chosen, memory=memory)
    size = sum(_size(path) * (1 if bare(path) == path else 4) for path in files)
    try:
        with progress("reading", size, quiet=size < PROGRESS_BYTES) as meter:
            for record in chosen.read_all(files, problems, explicit, **options):
                writer.add(record)
                meter(min(writer.total, size), f"{writer.count:,} sequences")
        if not writer.count:
            informative = [problem for problem in problems if not problem.text.startswith("skipped")] or problems
            first = f"; first of {problems.total:,} problems: {informative[0]}" if informative else ""
            raise SegueError(f"no usable {chosen.name} sequence in {_join_names(paths)}{first}")
        if kind is not None and problems.total > writer.count and likely(files[0], chosen):
            raise SegueError(f"most of {_join_names(paths)} is no {kind}: {problems[0]}")
    except SegueError as error:
        if kind is None or not (likely_kind := likely(files[0], chosen)):
            raise
        raise SegueError(f"{error}; it looks like {likely_kind}, not {kind}") from error
    return _make_data(writer, problems, options)


def _make_data(writer: Writer, problems: Problems, reading: dict[str, Any] | None = None) -> Data:
    batches = writer.close()
    return Data(writer.kind, batches, elements=writer.elements, problems=problems, fingerprint=writer.fingerprint,
                reading=reading, keep=writer.keep)


def _size(path: Path) -> int:
    """The size of a file in bytes, or 0 if it no longer exists."""
    with suppress(OSError):
        return actual(path).stat().st_size
    return 0


def _find_files(paths: Iterable[str | os.PathLike[str]]) -> tuple[list[Path], frozenset[Path]]:
    """Resolve paths, folders and patterns to files, in order, and the set of those that were named explicitly.

    A bad file is an error if it was named explicitly, else it is skipped. If `LEAST_PATTERN_FILES` or more are named,
    none counts as explicit, because a shell has probably expanded a pattern. Hidden files, caches and files such as
    README or LICENSE are left out of folders.
    """
    files: dict[Path, None] = {}
    explicit: set[Path] = set()
    for pattern in paths:
        path = Path(pattern).expanduser()
        try:
            if path.is_dir() or is_archive(path):
                contents = _files_within(path)
                if not contents:
                    container = "archive" if path.is_file() else "folder"
                    raise SegueError(f"{path}: the {container} has no file to read in it")
                files.update(dict.fromkeys(contents))
            elif actual(path).exists():
                files[path] = None
                explicit.add(path)
            elif glob.has_magic(str(path)):
                matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
                matches = [match for match in matches if match.is_file()]
                if not matches:
                    raise SegueError(f"{pattern}: no file matches this pattern")
                for match in matches:
                    files.update(dict.fromkeys(_files_within(match) if is_archive(match) else [match]))
            else:
                reason = "standard input is not read: write it into a file, and give that" if str(pattern) == "-" else \
                    "no such file or folder; check the path"
                raise SegueError(f"{pattern}: {reason}")
        except (OSError, ValueError) as error:
            raise SegueError(f"{pattern}: cannot be looked up ({error})") from error
    return list(files), frozenset(explicit if len(explicit) < LEAST_PATTERN_FILES else ())


def _files_within(path: Path) -> list[Path]:
    """The files within a folder or an archive. Archives in a folder are unpacked only if there are no other files,
    which might be their contents, but arrays (.npz) always."""
    if path.is_file():
        folder = unpacked(path)
        return [path / file.relative_to(folder) for file in _walk(folder)]
    files = list(_walk(path))
    only_archives = all(map(is_archive, files))
    return [file_within for file in files for file_within in (
        _files_within(file) if is_archive(file) and (only_archives or file.suffix.lower() == ".npz") else [file])]


def _walk(folder: Path) -> Iterator[Path]:
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders
                            if not name.startswith(".") and name not in SKIPPED_FOLDERS)
        for name in sorted(names):
            path = Path(root) / name
            if not name.startswith(".") and name.split(".")[0].lower() not in SKIPPED_FILES and name not in LOCK_FILES \
                    and path.is_file():
                yield path


def _choose_kind(files: list[Path], explicit: frozenset[Path], name: str | None, problems: Problems,
                 encoding: str | None = None) -> tuple[Kind, list[Path]]:
    """The kind with the most bytes of evidence, and its files; others are recorded as problems, or, if named
    explicitly, raise a SegueError. encoding: of the files, if the user gave it."""
    heads = _read_heads(files, explicit, problems, encoding if isinstance(encoding, str) else "utf-8")
    if name is not None:
        if not heads:
            raise SegueError(f"no usable file: {problems[0]}")
        chosen = KINDS[name]
        excluded = {path: found for path, head in heads.items()
                    if path not in explicit and (found := _another(path, head, chosen)) and not KINDS[found].family}
        for path, found in excluded.items() if len(excluded) < len(heads) else ():
            problems.refuse(path, f"skipped: looks like {found}, not {name}; give the file itself to read it as {name}")
        return chosen, [path for path in heads if path not in excluded] or list(heads)
    best: dict[Path, tuple[float, str]] = {}  # confidence and name of each file's kind
    votes: dict[str, float] = {}
    for path, head in heads.items():
        score, found = max(((kind.sniff(bare(path), head), kind.name) for kind in KINDS.values()), key=lambda s: s[0])
        best[path] = score, found
        if score > 0:
            votes[found] = votes.get(found, 0.0) + score * (1 + _size(path))
    if not votes:
        path = next((path for path in heads if path in explicit), next(iter(heads), files[0]))
        raise SegueError(f"{path}: not a file of a kind known here ({', '.join(KINDS)}): {foreign(heads[path])}"
                         if path in heads else str(problems[0]))
    winner = KINDS[max(votes, key=lambda k: votes[k])]
    selected = []
    fitting = {path: score > 0 and (found == winner.name or
                                    bool(winner.family and KINDS[found].family == winner.family))
               for path, (score, found) in best.items()}
    headers = set() if all(fitting.values()) else \
        {_header(path, heads[path]) for path in fitting if fitting[path]} - {b""}
    for path, (score, found) in best.items():
        if fitting[path] or (score > 0 and _header(path, heads[path]) in headers):
            selected.append(path)
        elif path in explicit:
            description = f"looks like {found}" if score > 0 else "looks of no kind known here"
            raise SegueError(f"{path} {description}, other files like {winner.name}: read one kind at a time, or name "
                             "the kind with kind=")
        else:
            description = f"looks like {found}, where most is {winner.name}" if score > 0 else foreign(heads[path])
            problems.refuse(path, f"skipped: {description}")
    return winner, selected


def _header(path: Path, head: bytes) -> bytes:
    """The line that names the columns of a delimited table; b"" of other files."""
    return head.partition(b"\n")[0].strip() if bare(path).suffix.lower() in DELIMITED and (
        layout := glance(bare(path), head)) is not None and layout.headed else b""


def likely(path: Path, chosen: Kind) -> str:
    """The name of the kind that a file looks like, if it is clearly not the chosen one; else ""."""
    with suppress(SegueError):
        return _another(path, head_of(path), chosen)
    return ""


def _another(path: Path, head: bytes, chosen: Kind) -> str:
    """The kind that sniffing assigns a file with confidence, if it is not the chosen one; else ""."""
    score, kind_name = max(((kind.sniff(bare(path), head), kind.name) for kind in KINDS.values()), key=lambda s: s[0])
    is_certain = score >= 0.8 > chosen.sniff(bare(path), head)
    return kind_name if is_certain and (KINDS[kind_name].family or kind_name) != (chosen.family or chosen.name) else ""


def _read_heads(files: list[Path], explicit: frozenset[Path], problems: Problems,
                encoding: str) -> dict[Path, bytes]:
    """The first bytes of each readable file; others are recorded as problems, or, if named explicitly, raise a
    SegueError."""
    heads: dict[Path, bytes] = {}
    for path in files:
        head = None
        try:
            if not actual(path).is_file():
                raise SegueError(f"{path}: is not a regular file; write what comes out of it into one, and give that")
            head = head_of(path, encoding)
            if not head:
                raise SegueError(f"{path}: the file is empty; give a file with sequences in it")
            heads[path] = head
        except SegueError as error:
            # One empty file among others is no reason to stop.
            if path in explicit and (head is None or len(files) == 1):
                raise
            problems.refuse(path, error)
    return heads


def _join_names(paths: Iterable[Any]) -> str:
    listed = [str(path) for path in paths]
    return ", ".join(listed[:3]) + (f" and {len(listed) - 3} more" if len(listed) > 3 else "")


def of(objects: Any, kind: str | None = None) -> Data:
    """Make a data set from objects in memory, which may have different lengths.

    objects: a list of str or bytes (text, unless `kind` says dna or protein); a list of lists or arrays of items (str
    or int); a mapping of name -> any of these; a mapping of name -> table of columns (a mapping or a data frame), of
    which 'item' (or 'what', 'event', 'object') is the sequence and the others, if numbers, are channels; or `Record`s.
    """
    if kind is not None and kind not in KINDS:
        raise SegueError(f"there is no kind '{kind}'; there are {', '.join(KINDS)}")
    if isinstance(objects, (str, bytes)):
        objects = [objects]
    if not isinstance(objects, Mapping) and hasattr(objects, "columns"):
        raise SegueError("a table is one sequence, or needs a file to tell: give {name: table} with the sequence in a "
                         "column 'item', or write it as CSV or Parquet and read that")
    if not isinstance(objects, Mapping) and hasattr(objects, "to_pylist"):
        objects = objects.to_pylist()
    if not isinstance(objects, Iterable):
        raise SegueError(f"{objects!r:.40} is no data: give a path, or a list of sequences")
    pairs = objects.items() if isinstance(objects, Mapping) else ((None, obj) for obj in objects)
    writer: Writer | None = None
    for number, (name, obj) in enumerate(pairs, 1):
        record = _record(obj, str(number if name is None else name))
        if writer is None:
            is_text = isinstance(record.object, (str, bytes))
            writer = Writer(KINDS[kind or ("text" if is_text else "events")])
        try:
            obj = writer.kind.normalise(record.object)
        except (SegueError, TypeError, ValueError) as error:
            raise SegueError(f"record '{record.name}': {error}") from error
        writer.add(Record(obj, record.channels, record.name))
    if writer is None:
        raise SegueError("there is no sequence in the list given: give at least one")
    return _make_data(writer, Problems())


def _record(obj: Any, name: str) -> Record:
    if isinstance(obj, Record):
        return obj
    if isinstance(obj, (str, bytes, bytearray)):
        return Record(obj, name=name)
    if isinstance(obj, Mapping) or hasattr(obj, "columns"):
        columns = {str(c): np.asarray(obj[c]) for c in (obj.keys() if isinstance(obj, Mapping) else obj.columns)}
        main = next((c for c in ("item", "what", "event", "object") if c in columns), None)
        if main is None:
            raise SegueError(f"record '{name}': none of its columns is called item, what, event or object "
                             f"({', '.join(columns)})")
        return Record(columns.pop(main).tolist(), {c: v for c, v in columns.items() if v.dtype.kind in "iufb"}, name)
    if hasattr(obj, "tolist"):
        obj = obj.tolist()
    if not isinstance(obj, Iterable):
        raise SegueError(f"record '{name}' is {obj!r:.40}, not a sequence: give a list of lists, or of strings")
    return Record(list(obj), name=name)
