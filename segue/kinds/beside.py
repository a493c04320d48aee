"""Files that belong to another which lies beside them: the classes of what an array holds, the samples of a recording,
the tour through places."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np

from segue.errors import SegueError
from segue.kinds.base import words
from segue.kinds.films import lines_of
from segue.kinds.frame import is_array
from segue.kinds.packed import bare, is_there, opened

HELD = words("x X images image imgs data features inputs signals text texts sentences seq.in")  # what sequences are in,
SAID = words("y Y labels label targets target classes")  # and those of their classes
CALLED = {said: re.compile(rf"(?i)(?<![a-z])({'|'.join(map(re.escape, names))})(?=train|test|val|[^a-z]|$)")
          for said, names in ((True, SAID), (False, HELD))}
SIZED = {"idx1": "idx3", "idx3": "idx1"}  # in names of IDX files
MOST = 1 << 26  # bytes of a file of classes


def owner(path: Path) -> Path | None:
    """The file with which this one is read; None where it is read by itself."""
    suffix = bare(path).suffix.lower()
    if suffix in (".dat", ".mat", ".atr", ".qrs") and is_there(head := path.with_suffix(".hea")):
        return head
    if suffix == ".tour":
        place = path.with_name(f"{path.stem.removesuffix('.opt')}.tsp")
        return place if is_there(place) else None
    if (lines := lines_of(path)) is not None:
        return lines
    held = next(filter(is_there, _called(path, True)), None)
    return held if held is not None and classes_in(path) is not None else None


def classes_beside(path: Path, count: int | None = None) -> list[str] | None:
    """The class of each of so many sequences (None: of however many) in a file, where one beside it says them."""
    class_file = next(filter(is_there, _called(path, False)), None)
    classes = None if class_file is None else classes_in(class_file)
    return classes if classes is not None and count in (None, len(classes)) else None


def classes_in(path: Path) -> list[str] | None:
    """The classes that a file says and nothing else: an array of one axis, or of a one among noughts in each row, IDX,
    or a whole number a line, or a word, that comes again and again."""
    try:
        with opened(path) as handle:
            data = handle.read(MOST)
    except SegueError:
        return None
    if data[:4] == b"\0\0\x08\1":
        return list(map(str, data[8:]))
    if not is_array(data):
        lines = data.split(b"\n")
        cells = [line.strip() for line in lines if line.strip()]
        named = all(re.fullmatch(rb"[A-Za-z][\w#+.-]*", cell) for cell in cells) and len(cells) >= 4 * len(set(cells))
        integers = all(map(bytes.isdigit, cells)) and len(cells) >= 2 * len(set(cells))
        return [cell.decode() for cell in cells] if cells and (named or integers) else None
    with suppress(ValueError, EOFError, OSError):
        array = np.load(io.BytesIO(data), allow_pickle=False)
        if array.ndim == 2 and array.shape[1] > 1 and array.dtype.kind in "iufb" and (array.sum(1) == 1).all() and \
                ((array == 0) | (array == 1)).all():
            array = array.argmax(1)
        array = array.reshape(-1) if array.ndim == 2 and 1 in array.shape else array
        integers = array.dtype.kind in "iubU" or (array.dtype.kind == "f" and (array == np.round(array)).all())
        if array.ndim == 1 and integers:
            return [str(int(each) if isinstance(each, float) else each) for each in array.tolist()]
    return None


def _called(path: Path, from_classes: bool) -> Iterator[Path]:
    """The names that the file of sequences may have, of a file of classes (`from_classes`), or the other way round."""
    if from_classes and path.name.endswith("-labels.lst"):
        yield path.with_name(path.name.replace("-labels.lst", ".jsonl"))
    if not from_classes and path.suffix == ".jsonl":
        yield path.with_name(f"{path.stem}-labels.lst")
    if bare(path).suffix.lower() not in (".npy", ".txt", ".in", "") and "ubyte" not in path.name:
        return
    for match in CALLED[from_classes].finditer(path.name):
        for replacement in HELD if from_classes else SAID:
            prefix, suffix = path.name[: match.start()], path.name[match.end() :]
            yield path.with_name(prefix + replacement + re.sub("idx[13]", lambda size: SIZED[size[0]], suffix))
