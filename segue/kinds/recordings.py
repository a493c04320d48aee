"""Recordings of instruments in forms of their own: WFDB (PhysioNet), EDF and BDF, the places of TSPLIB, strokes of pens
(Omniglot, Quick, Draw!) and tracks (Geolife), as columns of numbers for `segue.kinds.series`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator
from itertools import takewhile
from pathlib import Path

import numpy as np

from segue.errors import SegueError
from segue.kinds.base import as_utf8, of_class
from segue.kinds.packed import is_there, opened

Columns = dict[str, np.ndarray]
HEADER = re.compile(rb"(#[^\n]*\n|\s*\n)*\S+[ \t]+[1-9]\d{0,3}([ \t]+[\d.]\S*([ \t]+\d+.*)?)?\r?\n(#[^\n]*\n)*"
                    rb"\S+[ \t]+(8|16|24|32|61|80|160|212|310|311)\b")
PLACES = re.compile(rb"\s*[A-Z_]+\s*:(.*\n)+?\s*(NODE_COORD|EDGE_WEIGHT|DISPLAY_DATA)_SECTION")

STROKES = re.compile(rb"\s*START\s*\n\s*[-+.\d]+\s*,\s*[-+.\d]")
DRAWINGS = re.compile(rb"\s*\{(\"[a-z_]+\": *(\"[^\"]*\"|\w+), *)*\"drawing\": *\[\s*\[\s*\[")
TRACK = b"Geolife trajectory"


def form_of(path: Path, head: bytes) -> str:
    """Which of these a file is, by its name and beginning; "" for none."""
    if head[:8] in (b"0       ", b"\xffBIOSEMI") and len(head) >= 256 and head[236:244].strip(b" -").isdigit():
        return "edf"
    if path.suffix.lower() == ".hea":
        return "wfdb" if HEADER.match(head) else ""
    drawn = "strokes" if STROKES.match(head) else "drawings" if DRAWINGS.match(head) else ""
    return drawn or ("track" if head.startswith(TRACK) else "tsplib" if PLACES.match(head) else "")


def recorded(path: Path, form: str) -> Iterator[tuple[str, Columns]]:
    """The columns of a file of that form, with a name of each part where these are not of one length."""
    yield from {"wfdb": _wfdb, "edf": _edf, "tsplib": _tsplib, "strokes": _strokes, "drawings": _drawings,
                "track": _track}[form](path)


def _bytes(path: Path) -> bytes:
    with opened(path) as handle:
        return handle.read()


def _unique_names(names: list[str]) -> list[str]:
    """Names of columns, none twice, and none with what stands between columns and numbers."""
    plain = [" ".join(name.replace("=", " ").split()) or f"x{i}" for i, name in enumerate(names, 1)]
    return [name if name not in plain[:i] else f"{name} ({i + 1})" for i, name in enumerate(plain)]


# -- Strokes of a pen, and tracks

def _drawn(strokes: list[list[tuple[float, float]]]) -> Columns:
    """x and y of each point, and whether the pen stays down behind it."""
    down = [float(i < len(stroke) - 1) for stroke in strokes for i in range(len(stroke))]
    points = np.array([point for stroke in strokes for point in stroke], dtype=np.float64).reshape(-1, 2)
    return {"x": points[:, 0], "y": points[:, 1], "pen": np.array(down)}


def _strokes(path: Path) -> Iterator[tuple[str, Columns]]:
    """x, y and perhaps a time a line, BREAK behind each stroke; the times are left out."""
    strokes: list[list[tuple[float, float]]] = [[]]
    for number, line in enumerate(as_utf8(path, _bytes(path), "utf-8").decode().splitlines(), 1):
        if line.strip() in ("BREAK", "START", ""):
            strokes.append([])
            continue
        try:
            x, y = map(float, line.split(",")[:2])
        except ValueError as error:
            raise SegueError(f"{path}, line {number}: neither x,y nor BREAK ({error}); mend it") from error
        strokes[-1].append((x, y))
    if not any(strokes):
        raise SegueError(f"{path}: there is no stroke in this file; is it cut short?")
    yield "", _drawn(strokes)


def _drawings(path: Path) -> Iterator[tuple[str, Columns]]:
    """A drawing a line as JSON: [[xs, ys], ...], and what it shows."""
    for number, line in enumerate(_bytes(path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            strokes = [[(float(x), float(y)) for x, y in zip(*stroke[:2])] for stroke in row["drawing"]]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise SegueError(f"{path}, line {number}: not a drawing ({error}); mend or remove it") from error
        if any(strokes):
            yield of_class(str(row.get("key_id", number)), str(row.get("word", ""))), _drawn(strokes)


def _track(path: Path) -> Iterator[tuple[str, Columns]]:
    """Latitude, longitude, 0, feet above the sea (-777: not known), days and times a line, behind six lines."""
    lines = as_utf8(path, _bytes(path), "utf-8").decode().splitlines()[6:]
    rows = [line.split(",")[:4] for line in lines if line.strip()]
    try:
        points = np.array(rows, dtype=np.float64).reshape(-1, 4)[:, [0, 1, 3]]
    except ValueError as error:
        raise SegueError(f"{path}: not all lines behind the sixth are of a track ({error}); mend or remove them"
                         ) from error
    if not len(points):
        raise SegueError(f"{path}: there is no place in this track; is it cut short?")
    points[points[:, 2] == -777, 2] = np.nan
    yield "", dict(zip(("latitude", "longitude", "altitude"), points.T))


# -- WFDB: a header in text, and the samples in files beside it

def _wfdb(path: Path) -> Iterator[tuple[str, Columns]]:
    lines = [line.split() for line in as_utf8(path, _bytes(path), "utf-8").decode().splitlines()
             if line.strip() and line[0] != "#"]
    if "/" in lines[0][0]:
        raise SegueError(f"{path}: a record of several segments: give the headers of these")
    names: list[str] = []
    signals: list[np.ndarray] = []
    by_file: dict[str, list[list[str]]] = {}
    for line in lines[1 : 1 + int(lines[0][1])]:
        if len(line) < 2:
            raise SegueError(f"{path}: a signal without a format; fetch the header again")
        by_file.setdefault(line[0], []).append(line)
    for name, rows in by_file.items():
        match = re.fullmatch(r"(\d+)(?::\d+)?(?:\+(\d+))?", rows[0][1])
        if match is None or int(match[1]) not in SAMPLES or not is_there(file := path.with_name(Path(name).name)):
            raise SegueError(f"{path}: the samples in {name} ({rows[0][1]}) are not there, or in a format that is not "
                             f"read here ({', '.join(map(str, SAMPLES))}); fetch them beside it, or give CSV")
        samples = SAMPLES[int(match[1])](_bytes(file)[int(match[2] or 0) :])
        samples = samples[: len(samples) // len(rows) * len(rows)].reshape(-1, len(rows))
        for column, line in zip(samples.T.astype(np.float64), rows):
            gain = re.match(r"([-\d.eE+]+)?(?:\((-?\d+)\))?", line[2] if len(line) > 2 else "")
            zero = int(gain[2]) if gain and gain[2] else int(line[4]) if len(line) > 4 and re.fullmatch(
                r"-?\d+", line[4]) else 0
            column[column == MISSING.get(int(match[1]), np.nan)] = np.nan
            try:
                scale = float(gain[1]) if gain and gain[1] else 0.0
            except ValueError:
                scale = 0.0
            signals.append((column - zero) / (scale or 200.0))
            names.append(" ".join(line[8:]))
    if not signals:
        raise SegueError(f"{path}: there is no signal in this record")
    shortest = min(map(len, signals))
    yield "", dict(zip(_unique_names(names), (each[:shortest] for each in signals)))


def _of_12_bits(data: bytes) -> np.ndarray:
    """Two samples in three bytes."""
    groups = np.frombuffer(data[: len(data) // 3 * 3], np.uint8).reshape(-1, 3).astype(np.int32)
    first, second = groups[:, 0] | (groups[:, 1] & 15) << 8, groups[:, 2] | (groups[:, 1] >> 4) << 8
    samples = np.stack([first, second], 1).reshape(-1)
    return np.where(samples > 2047, samples - 4096, samples)


def _of_24_bits(data: bytes) -> np.ndarray:
    groups = np.frombuffer(data[: len(data) // 3 * 3], np.uint8).reshape(-1, 3).astype(np.int32)
    return (groups @ np.array([1, 1 << 8, 1 << 16], np.int32) << 8) >> 8


def _whole(dtype: str, data: bytes) -> np.ndarray:
    size = np.dtype(dtype).itemsize
    return np.frombuffer(data[: len(data) // size * size], dtype)


SAMPLES: dict[int, Callable[[bytes], np.ndarray]] = {
    16: lambda data: _whole("<i2", data), 61: lambda data: _whole(">i2", data), 24: _of_24_bits,
    32: lambda data: _whole("<i4", data), 80: lambda data: _whole("u1", data).astype(np.int32) - 128,
    160: lambda data: _whole("<u2", data).astype(np.int32) - (1 << 15), 212: _of_12_bits}
MISSING = {16: -(1 << 15), 61: -(1 << 15), 80: -128, 160: -(1 << 15), 212: -2048, 24: -(1 << 23), 32: -(1 << 31)}


# -- EDF: European data format, and BDF, its form with 24 bits

def _edf(path: Path) -> Iterator[tuple[str, Columns]]:
    data = _bytes(path)
    try:
        count, records = int(data[252:256]), int(data[236:244])
        fields = [16, 80, 8, 8, 8, 8, 8, 80, 8, 32]  # bytes of what is said of each signal, one thing after the other
        start, fields_of = 256, list[list[str]]()
        for width in fields:
            end = start + width * count
            fields_of.append([data[at : at + width].decode("latin-1").strip() for at in range(start, end, width)])
            start = end
        physical_min, physical_max, digital_min, digital_max = (
            [float(cell) for cell in fields_of[i]] for i in (3, 4, 5, 6))
        sizes = [int(cell) for cell in fields_of[8]]
        if count < 1 or min(sizes) < 1:
            raise ValueError("no signals")
    except ValueError as error:
        raise SegueError(f"{path}: no EDF whose header can be read ({error}); fetch it again") from error
    is_edf = data[:1] == b"0"
    samples = _whole("<i2", data[start:]) if is_edf else _of_24_bits(data[start:])
    num_records = len(samples) // sum(sizes)
    num_records = min(num_records, records) if records > 0 else num_records
    if not num_records:
        raise SegueError(f"{path}: the file ends before the first of its {records} records; fetch it again")
    grid = samples[: num_records * sum(sizes)].reshape(num_records, -1)
    offsets = np.cumsum([0, *sizes])
    signals = {i: grid[:, offsets[i] : offsets[i + 1]].reshape(-1).astype(np.float64) for i in range(count)
               if not fields_of[0][i].endswith("Annotations") and digital_max[i] != digital_min[i]}
    names = dict(zip(signals, _unique_names([fields_of[0][i] for i in signals])))
    gains = {i: (physical_max[i] - physical_min[i]) / (digital_max[i] - digital_min[i]) for i in signals}
    units = {i: (values - digital_min[i]) * gains[i] + physical_min[i] for i, values in signals.items()}
    for size in dict.fromkeys(sizes[i] for i in signals):  # those of one rate together
        yield "" if len({sizes[i] for i in signals}) == 1 else f"{size} a record", \
            {names[i]: values for i, values in units.items() if sizes[i] == size}


# -- TSPLIB: places, in the order of a tour that lies beside them

def _tsplib(path: Path) -> Iterator[tuple[str, Columns]]:
    lines = [line.split() for line in as_utf8(path, _bytes(path), "utf-8").decode().splitlines() if line.strip()]
    first_place = next((i for i, line in enumerate(lines, 1) if line[0].rstrip(":") in ("NODE_COORD_SECTION",
                                                                                        "DISPLAY_DATA_SECTION")), None)
    if first_place is None:
        raise SegueError(f"{path}: holds how far places are from each other, not where they are: write its matrix as "
                         "edges with a weight (source,target,weight), and read it with kind=graph")
    body = list(takewhile(lambda line: line[0].lstrip("-").isdigit() and len(line) in (3, 4), lines[first_place:]))
    try:
        rows = {line[0]: [float(cell) for cell in line[1:]] for line in body}
        grid = np.array([rows[place] for place in _tour(path, rows)])
    except ValueError as error:
        raise SegueError(f"{path}: not all places are two numbers, or three; mend it") from error
    if not rows:
        raise SegueError(f"{path}: there is no place in it; is the file cut short?")
    yield "", dict(zip("xyz", grid.T))


def _tour(path: Path, places: Collection[str]) -> list[str]:
    """The places in the order of a tour beside the file, if there is one through all of them; else as they stand."""
    for name in (f"{path.stem}.opt.tour", f"{path.stem}.tour"):
        if is_there(file := path.with_name(name)):
            text = _bytes(file).decode("utf-8", "replace")
            tour = re.findall(r"(?<![-\d])\d+", text.partition("TOUR_SECTION")[2].partition("-1")[0])
            if sorted(tour) == sorted(places):
                return tour
    return list(places)
