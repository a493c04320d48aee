"""Series in files that are no tables: NumPy arrays, the archives of UEA, UCR and Monash, relational ARFF, recordings,
and lines or blocks of numbers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from segue.errors import SegueError
from segue.kinds.base import HEAD, Problems, Record, bad, of_class
from segue.kinds.beside import classes_beside
from segue.kinds.elements import as_elements
from segue.kinds.frame import load_array
from segue.kinds.moment_rows import SHOWN
from segue.kinds.numbers import is_number, likeness, number_in
from segue.kinds.recordings import recorded
from segue.kinds.roles import measured

MANY = 1000  # rows by which an array is judged
WHOLE = 24  # so many columns without a header: a row is a series, where nothing speaks against it
SHORT = 8  # so many, where something speaks for it
ARCHIVES = {".ts", ".tsf"}
RELATIONAL = re.compile(rb"(?i)@attribute\s+\S+\s+relational\b")
ALIKE = 0.4  # so much neighbours are, where one goes on from the other
PART = 1 << 20  # values of a recording that are one record


def _whole_lines(head: bytes) -> list[str]:
    """The lines of a file's beginning that are not blank, without the last, which may be cut."""
    lines = head.decode("utf-8", "ignore").lstrip("\ufeff").split("\n")
    return [line.strip() for line in lines[: -1 if len(lines) > 1 else None] if line.strip()]


def _cells(part: str) -> list[str]:
    """Numbers between commas, "nan" where one is missing."""
    return ["nan" if cell.strip() in ("?", "") else cell for cell in part.split(",")]


def _columns(parts: Sequence[Sequence[float]] | np.ndarray) -> dict[str, np.ndarray]:
    """Columns as long as the longest, called x1, x2, ...; the only one of a series has no name."""
    longest = max(map(len, parts))
    filled = [np.append(part, [np.nan] * (longest - len(part))) for part in parts]
    return {f"x{number}" if len(filled) > 1 else "": values for number, values in enumerate(filled, 1)}


def fractions_a_line(head: bytes) -> bool:
    """Whether each line is one number with a comma for its point, of eight or more: fractions begin with noughts, names
    of things do not."""
    cells = _whole_lines(head)
    return len(cells) >= 8 and all(re.fullmatch(r"[-+]?\d*,\d+", cell) for cell in cells) and \
        any(re.search(r",0\d", cell) for cell in cells)


def has_negatives(head: bytes, dtype: np.dtype, start: int) -> bool:
    """Whether some of the first whole numbers of an array are below zero: measurements, and no symbols. (-1 may fill up
    rows of symbols.)"""
    held = head[start : start + (len(head) - start) // dtype.itemsize * dtype.itemsize]
    return dtype.kind == "i" and bool((np.frombuffer(held, dtype) < -1).any())


def rows_are_series(grid: np.ndarray) -> bool:
    """Whether the rows of a table without a header (N, C) are series: of many columns, if those are not more alike
    downwards, as moments of several sensors are; of some, if rows are alike along them, and columns are not."""
    along, down = likeness(grid) if grid.shape[1] >= SHORT else (0.0, 0.0)
    return along > ALIKE and down < 0.3 if grid.shape[1] < WHOLE else not (down > 0.5 and down > along)


def whole_rows(grid: np.ndarray) -> bool:
    """Whether whole numbers in a table without a header (N, C) are measurements, not symbols: they say many things,
    neighbours are alike, and rows are not filled up at their ends."""
    if len(grid) < 8 or grid.shape[1] < SHORT or len(np.unique(grid)) <= 16:
        return False
    filled = (grid[:, -1] == grid[:, -2]) & (grid[:, -1] == np.median(grid[:, -1]))
    return max(likeness(grid)) > ALIKE and 4 * filled.sum() < len(grid)


def in_blocks(text: str) -> bool:
    """Whether a text is blocks of lines with blank ones between, each line of so many measured numbers, two or more."""
    blocks = [block.split("\n") for block in re.split(r"\n\s*\n", text.strip())[:20]]
    if len(blocks) < 3 or (len(blocks) < 20 and len(text) > HEAD - 8):
        return False
    rows = [line.split() for block in blocks for line in block]
    return len(rows) > 2 * len(blocks) and len(set(map(len, rows))) == 1 < len(rows[0]) and \
        all(is_number(cell) for row in rows for cell in row) and measured(cell for row in rows for cell in row)


def read_blocks(path: Path, text: str, problems: Problems | None) -> Iterator[Record]:
    """Each block of lines is a series, see `in_blocks`; as those of the vowels of nine speakers are kept (UCI)."""
    if problems is not None:
        problems.note = "a series a block of lines"
    wide = len(text.lstrip().split("\n", 1)[0].split())
    for number, block in enumerate(re.split(r"\n(?:[ \t\r]*\n)+", text.strip("\n")), 1):
        rows = [list(map(number_in, line.split())) for line in block.split("\n")]
        if any(len(row) != wide or not np.isfinite(row).all() for row in rows):
            bad(problems, path, f"block {number}", None, f"not lines of {wide} numbers each; mend or remove it")
            continue
        yield Record(as_elements(_columns([*zip(*rows)])), name=f"{path}:{number}")


def one_a_line(head: bytes) -> bool:
    """Whether each line is one measured number, of eight or more; the last may be cut."""
    cells = _whole_lines(head)
    return len(cells) >= 8 and all(map(is_number, cells)) and measured(cells)


def _by_moment(array: np.ndarray) -> bool:
    """Whether the first axis of an array (N, T, C) is time, as in what sensors along roads say: values go on along it,
    and clearly more so than along the second, which is shorter."""
    if len(array) < WHOLE or len(array) <= array.shape[1]:
        return False
    grid = array[:MANY, :, 0]
    along, down = likeness(grid)
    return down > 0.5 and down > along + 0.1


def read_array(path: Path, raw: bytes, rows: bool | None, problems: Problems | None) -> Iterator[Record]:
    """An array (T,), or (T, C): columns called x1, x2, ...; rows: (N, T), and (N, T, C) always: N series."""
    array = load_array(path, raw, "numbers, of one to three axes")
    if array.dtype.kind not in "iuf" or not 1 <= array.ndim <= 3 or not array.size:
        raise SegueError(f"{path}: an array of {array.dtype} of {array.ndim} axes is no series: give numbers, of one "
                         "axis, of moments and columns, or of series, moments and columns")
    array = array.astype(np.float64)
    if array.ndim == 3 and rows is not True and _by_moment(array):
        array = array.swapaxes(0, 1)
        if problems is not None:
            problems.note = "a series a place of the second axis, a moment a place of the first (else: rows=True)"
    if array.ndim == 2 and ((array.shape[1] >= WHOLE and rows_are_series(array[:MANY])) if rows is None else rows):
        array = array[:, :, None]
        if problems is not None:
            problems.note = "a row a series"
    holds_series = array.ndim == 3
    classes = classes_beside(path, len(array)) if holds_series else None
    if problems is not None and classes:
        problems.note += ", class=the file beside it" if problems.note else "class=the file beside it"
    for number, series in enumerate(array if holds_series else [array.reshape(len(array), -1)], 1):
        name = f"{path}:{number}" if holds_series else str(path)
        yield Record(as_elements(_columns(series.T)), name=of_class(name, classes[number - 1] if classes else ""))


def read_recording(path: Path, form: str, problems: Problems | None) -> Iterator[Record]:
    """A recording; a long one in parts."""
    for name, columns in recorded(path, form):
        length, step = len(next(iter(columns.values()))), max(PART // len(columns), 1)
        if problems is not None:
            problems.note = f"columns={','.join([*columns][:SHOWN])}"
        columns = {"": next(iter(columns.values()))} if len(columns) == 1 else columns
        place = f"{path}:{name}" if name else str(path)
        for start in range(0, length, step):
            yield Record(as_elements({key: values[start : start + step] for key, values in columns.items()}),
                         name=f"{place}@{start}" if length > step else place)


def read_relational(path: Path, text: str, problems: Problems | None) -> Iterator[Record]:
    """A table of Weka whose rows hold series of several columns, a line each within quotes, and perhaps a class."""
    body = re.split(r"(?im)^[ \t]*@data[ \t]*$", text, maxsplit=1)[-1]
    empty = True
    for number, line in enumerate(body.splitlines(), text.count("\n") - body.count("\n") + 1):
        match = re.fullmatch(r"\s*(?:[^'\",]*,)?\s*(['\"])(.*?)\1\s*(?:,\s*(.*?))?\s*", line)
        if not line.strip() or line.lstrip()[:1] == "%":
            continue
        parts = [_cells(part) for part in re.split(r"\\n|;", match[2])] if match else []
        if match is None or not all(is_number(cell) for part in parts for cell in part):
            bad(problems, path, f"line {number}", None, "not the numbers of a series in quotes; mend or remove it")
            continue
        empty = False
        columns = _columns([list(map(number_in, part)) for part in parts])
        label = (match[3] or "").strip("'\"")
        yield Record(as_elements(columns), name=of_class(f"{path}:{number}", label))
    if empty and problems is None:
        raise SegueError(f"{path}: there is no series behind @data; is the file cut short?")


def read_archive(path: Path, text: str, problems: Problems | None) -> Iterator[Record]:
    """A `.ts` file: behind its @data, a series a line, columns between colons, and perhaps its class."""
    header, has_data, data = text, False, ""
    if match := re.search(r"(?im)^@data\s*$", text):
        header, data, has_data = text[: match.start()], text[match.end() :], True
    if not has_data:
        raise SegueError(f"{path}: there is no line @data, behind which the series of a .ts file stand")
    if re.search(r"(?im)^@timestamps\s+true", header):
        raise SegueError(f"{path}: series with time stamps are not read from .ts files: give a table with a column of "
                         "times")
    labelled = bool(re.search(r"(?im)^@(classlabel|targetlabel)\s+true", header))
    # Of a .tsf file: what stands before the numbers of each line.
    attribute_names = [name.lower() for name in re.findall(r"(?im)^@attribute\s+(\S+)", header)]
    first_line = header.count("\n") + 1
    any_series = False
    for number, line in enumerate(data.splitlines(), first_line):
        parts = line.strip().split(":")
        if parts == [""]:
            continue
        label = parts.pop().strip() if labelled and len(parts) > 1 else ""
        values_of, parts = parts[: len(attribute_names)], parts[len(attribute_names) :] or [""]
        series_name = dict(zip(attribute_names, values_of)).get("series_name", number)
        cells = list(map(_cells, parts))
        invalid = next((cell for part in cells for cell in part if not is_number(cell)), None)
        if invalid is not None:
            bad(problems, path, f"line {number}", None, f"{invalid!r:.40} is no number; mend or remove the line")
            continue
        any_series = True
        columns = _columns([list(map(number_in, part)) for part in cells])
        yield Record(as_elements(columns), name=of_class(f"{path}:{series_name}", label))
    if not any_series and problems is None:
        raise SegueError(f"{path}: there is no series behind @data; is the file cut short?")
