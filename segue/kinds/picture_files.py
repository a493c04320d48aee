"""Files of pictures: images (PNG, JPEG, GIF, BMP, WebP, TIFF, PNM), arrays (MNIST's IDX, CIFAR's binary, NumPy), and
tables with a column for each pixel, a list of pixels in a cell, or packed images (extra `picture`: Pillow).
"""

from __future__ import annotations

import io
import json
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from segue.errors import SegueError, require
from segue.kinds.base import HEAD as SNIFFED
from segue.kinds.base import Problems, bad, of_class
from segue.kinds.beside import classes_beside
from segue.kinds.columns import class_column, class_of, look
from segue.kinds.frame import ROWS, Look, describe_roles, is_array, is_parquet, load_array, load_table
from segue.kinds.picture_form import PIXELS, Form

PICTURE_NAME = re.compile(r"(?i)pixel|image|img|picture")  # a column of lists of brightness
ENDINGS = {".ppm", ".pgm", ".pbm", ".pnm"}
PIXEL = re.compile(r"(\d{1,3})(\.0*)?")
FORMATS = ["PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM"]
MAGIC = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF8", b"II*\0", b"MM\0*")
IDX = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
CIFAR = {3073: (10,), 3074: (20, 100)}  # bytes of a row: the labels before the 3 x 32 x 32 values lie below these


@dataclass
class ImageRecord:
    """One record of a file: the frames, and of a file of ours the form and the number of values of each frame."""

    name: str
    frames: list[Any]
    form: Form | None = None
    counts: Sequence[int] = ()


def read_pictures(path: Path, data: bytes, problems: Problems | None) -> Iterator[ImageRecord]:
    """The pictures of a file, whose format is recognised by its first bytes."""
    if is_image(data):
        yield from _read_image(path, data)
        return
    if is_parquet(data) or not (is_array(data) or b"\0" in data[:SNIFFED]):
        yield from _read_table(path, problems)
        return
    arrays, labels = _read_arrays(path, data, problems)
    arrays = _stretch(arrays).astype(np.uint8, copy=False)
    labels = labels or classes_beside(path, len(arrays))
    images = require("PIL.Image", "picture")
    for number, frames in enumerate(arrays, 1):
        name = f"{path}:{number}" if len(arrays) > 1 else str(path)
        pictures = [images.fromarray(frame[..., 0] if frame.shape[-1] == 1 else frame[..., :3]) for frame in frames]
        yield ImageRecord(of_class(name, labels[number - 1] if labels else ""), pictures)


def square_size(count: int) -> tuple[int, int] | None:
    """The side and the channels of a square picture with this number of values, at least 64; None if there is none."""
    for channels in (1, 3):
        side = math.isqrt(count // channels)
        if side >= 8 and side * side * channels == count:
            return side, channels
    return None


def holds_flat_squares(shape: tuple[int, ...]) -> bool:
    """Whether each row of a two-dimensional array is a flattened square picture, as in QuickDraw and CIFAR."""
    return len(shape) == 2 and shape[1] >= 256 and shape[0] != shape[1] and square_size(shape[1]) is not None


def picture_columns(table: Look) -> list[str]:
    """The columns of a table that hold pictures: one of packed images or of lists of pixels, or a column for each
    pixel; [] if there are none."""
    for name in table.names[:ROWS]:
        cells = table.column(name)
        lists = [cell if isinstance(cell, list) else cell.split() for cell in cells
                 if isinstance(cell, (str, list))] if PICTURE_NAME.search(name) else []
        packed = bool(cells) and all(isinstance(cell, bytes) and is_image(cell) for cell in cells)
        if packed or (0 < len(lists) == len(cells) and all(square_size(len(cell)) and are_brightness(cell)
                                                           for cell in lists)):
            return [name]
    if len(table.names) <= 64 or table.form != "delimited" or (not table.headed and len(table.rows) < 2):
        return []
    names = [name for name in table.names if re.fullmatch(r"\D*\d+(x\d+)?", name)] if table.headed else table.names
    if not table.headed and (marks := one_hot_columns(table)):
        kept = table.names[:-marks]
        rows = [row[:-marks] for row in table.rows if len(row) == len(table.names)]
        return kept if square_size(len(kept)) and all(map(are_brightness, rows)) else []
    # The class stands first, or last, where that says several things and lesser ones.
    candidates = [names[1:], names[:-1]]
    if not table.headed and _as_class(table.column(names[-1])) < _as_class(table.column(names[0])):
        candidates.reverse()
    for kept in (names, *candidates) if len(names) > len(table.names) - 4 else ():
        if square_size(len(kept)):
            places = [table.names.index(name) for name in (kept[0], kept[-1])]
            rows = [row[places[0] : places[1] + 1] for row in table.rows if len(row) == len(table.names)]
            # Small numbers alone may be anything.
            dark = not any(float(cell) > 15 for row in rows if are_brightness(row) for cell in row)
            return kept if rows and all(map(are_brightness, rows)) and not dark else []
    return []


def _as_class(cells: Sequence[Any]) -> tuple[bool, float]:
    """A sort key, less for columns that look more like classes than like brightness: several different small
    numbers."""
    return len(set(map(str, cells))) < 2, max(map(float, cells)) if cells and are_brightness(cells) else math.inf


def one_hot_columns(table: Look) -> int:
    """The number of columns at the end of a table that are a one-hot class; 0 if there are none."""
    rows = [[str(cell) for cell in row] for row in table.rows if len(row) == len(table.names)]
    for count in range(2, 65):
        if square_size(len(table.names) - count) and rows and all(sorted(row[-count:]) == ["0"] * (count - 1) + ["1"]
                                                             for row in rows):
            return count
    return 0


def are_brightness(cells: Sequence[Any]) -> bool:
    """Whether all cells are whole numbers from 0 to 255."""
    return all((match := PIXEL.fullmatch(str(cell))) and int(match[1]) < 256 for cell in cells)


def _read_table(path: Path, problems: Problems | None) -> Iterator[ImageRecord]:
    """The pictures of a table, with their classes from a column of labels."""
    images = require("PIL.Image", "picture")
    frame = load_table(path, Problems() if problems is None else problems, "utf-8")
    table = look(frame)
    columns = picture_columns(replace(table, form="delimited"))
    if not columns:
        raise SegueError(f"{path}: no picture, and no table of them that is known here; save it as PNG")
    others = [name for name in frame.columns if name not in columns]
    classes = class_column(path, table, "") if frame.headed else next(iter(others), None)
    classes = classes if classes in others else next((name for name in others if name.lower().endswith("label")), None)
    labels = [] if classes is None else frame.columns[classes].to_pylist()
    if not frame.headed and len(others) > 1 and others == [*frame.columns][len(columns) :]:  # see `one_hot_columns`
        labels = np.stack([_brightness(frame.columns[name]) for name in others], 1).argmax(1).tolist()
        classes = f"{others[0]} to {others[-1]}"
        others = [classes]
    if problems is not None:
        span = columns[0] if len(columns) == 1 else f"{columns[0]} to {columns[-1]}"
        problems.note = describe_roles([("class", classes), ("pictures", span)], [*others, span])
    cells: Any = frame.columns[columns[0]].to_pylist() if len(columns) == 1 else _stretch(
        np.stack([_brightness(frame.columns[name]) for name in columns], 1))
    for row, values in enumerate(cells):
        place = f"{path}:{frame.place(row)}"
        name = of_class(place, class_of(labels[row]) if labels else "")
        if isinstance(values, bytes):
            try:
                yield from (replace(drawn, name=name) for drawn in _read_image(Path(place), values))
            except SegueError as error:
                bad(problems, path, frame.place(row), None, str(error).removeprefix(f"{place}: "))
            continue
        if len(columns) == 1:
            listed = values if isinstance(values, list) else str(values or "").split()
            values = np.array(list(map(int, map(float, listed))) if are_brightness(listed) else [256])
        size = square_size(len(values))
        if size is None or values.max() > 255:
            bad(problems, path, frame.place(row), None, "not the pixels of a square picture, 0 to 255; mend it")
            continue
        grid = values.astype(np.uint8).reshape(size[0], size[0], size[1])
        yield ImageRecord(name, [images.fromarray(grid[..., 0] if size[1] == 1 else grid)])


def _brightness(column: Any) -> np.ndarray:
    """A column as int16: whole numbers below 256 as they are, 256 for anything else."""
    import pyarrow as pa
    import pyarrow.compute as compute

    texts = column.cast(pa.string())
    valid = compute.match_substring_regex(texts, r"^[0-9]{1,3}(\.0*)?$")
    numbers = compute.cast(compute.cast(compute.if_else(valid, texts, None), pa.float32()), pa.int16())
    return np.asarray(compute.fill_null(numbers, 256).to_numpy(zero_copy_only=False))


def _stretch(grid: np.ndarray) -> np.ndarray:
    """Brightness stretched to 255 where pictures use only a few levels: black and white, or the 16 of scanned
    digits."""
    peak = int(grid[grid < 256].max(initial=0))
    return np.where(grid < 256, grid.astype(np.int64) * 255 // peak, grid) if 0 < peak <= 64 else grid


def is_image(head: bytes) -> bool:
    """Whether a file is an image that Pillow reads, by its beginning."""
    boxed = (head[:4], head[8:12]) == (b"RIFF", b"WEBP") or (head[:2] == b"BM" and head[6:10] == bytes(4))
    return boxed or head.startswith(MAGIC) or re.match(rb"P[1-6]\s", head) is not None


def _read_image(path: Path, data: bytes) -> Iterator[ImageRecord]:
    """The picture of an image file with all its frames, or the pictures of a contact sheet that `Picture.write`
    wrote."""
    images, operations = require("PIL.Image", "picture"), require("PIL.ImageOps", "picture")
    try:
        with warnings.catch_warnings(), images.open(io.BytesIO(data), formats=FORMATS) as image:
            warnings.simplefilter("ignore")
            count = getattr(image, "n_frames", 1) if image.format != "MPO" else 1  # behind it are previews
            if image.width * image.height * count > PIXELS:
                raise SegueError(f"{path}: {image.width} x {image.height} pixels in {count} frames are more than a "
                                 "picture may have; make it smaller")
            frames = []
            for number in range(count):
                image.seek(number)
                image.load()
                frames.append(_without_alpha(path, operations.exif_transpose(image)))
            note = image.info.get("segue")
    except (SegueError, MemoryError):
        raise
    except Exception as error:  # a foreign parser may raise anything on a broken file
        why = " ".join(str(error).split()).partition(" <_io")[0] or type(error).__name__
        raise SegueError(f"{path}: no picture that can be read ({why[:160]}); save it again, say as PNG") from error
    ours = _from_contact_sheet(path, frames[0], note) if isinstance(note, str) and len(frames) == 1 else []
    yield from ours or [ImageRecord(str(path), frames)]


def _without_alpha(path: Path, image: Any) -> Any:
    """The image in grey or RGB, over white where it is transparent."""
    images = require("PIL.Image", "picture")
    if image.mode.startswith(("I", "F")):
        return images.fromarray(_as_uint8(path, np.asarray(image)))
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = images.alpha_composite(images.new("RGBA", image.size, "white"), image)
    return image.convert("L" if image.mode in ("1", "L", "LA") else "RGB")


def _from_contact_sheet(path: Path, sheet: Any, note: str) -> list[ImageRecord]:
    """The pictures of a contact sheet, from the note that `Picture.write` left in it; [] if the note does not fit."""
    pictures = []
    try:
        contents = json.loads(note)
        for number, (name, item, places) in enumerate(contents, 1):
            form = Form.of(item)
            if form is None or not places:
                return []
            frames = []
            for left, top, count in places:
                box = left, top, left + form.width, top + max(-(-count // form.row), 1)
                if not (0 <= left < box[2] <= sheet.width and 0 <= top < box[3] <= sheet.height and count >= 0):
                    return []
                frames.append(sheet.crop(box))
            full_name = f"{path}:{name or number}" if len(contents) > 1 else str(path)
            pictures.append(ImageRecord(full_name, frames, form, [count for _, _, count in places]))
    except (ValueError, TypeError, RecursionError):
        return []
    return pictures


def _read_arrays(path: Path, data: bytes, problems: Problems | None) -> tuple[np.ndarray, list[str] | None]:
    """Pictures as (pictures, frames, height, width, channels) uint8, and their classes where the file has them."""
    if is_array(data):
        return _as_uint8(path, _as_frames(path, load_array(path, data, "numbers"))), None
    if data[:2] == b"\0\0" and len(data) > 4 and data[2] in IDX and data[3] in (3, 4):
        dtype, start = np.dtype(IDX[data[2]]), 4 + 4 * data[3]
        if len(data) < start:
            raise SegueError(f"{path}: the file ends in its header; fetch it again")
        shape = tuple(np.frombuffer(data, ">u4", data[3], 4).tolist())
        array = _complete_pictures(path, shape, _read_numbers(data, dtype, start), problems)
        return _as_uint8(path, _as_frames(path, array)), None
    row = cifar_row(data)
    if row is None:
        raise SegueError(f"{path}: no picture, and no array of them (IDX, CIFAR, NumPy) that is known here; save it as "
                         "PNG")
    array = _complete_pictures(path, (-(-len(data) // row), row), _read_numbers(data, np.dtype("u1"), 0), problems)
    pixels = array[:, -3072:].reshape(-1, 1, 3, 32, 32).transpose(0, 1, 3, 4, 2)
    return pixels, list(map(str, array[:, -3073].tolist()))


def _read_numbers(data: bytes, dtype: np.dtype, start: int) -> np.ndarray:
    """All complete numbers of a type from byte `start` on."""
    return np.frombuffer(data, dtype, (len(data) - start) // dtype.itemsize, start)


def cifar_row(data: bytes) -> int | None:
    """The bytes of a row of a CIFAR-10 or CIFAR-100 batch, recognised by its labels; None if it is none."""
    for row, bounds in CIFAR.items():
        complete = len(data) // row * row
        if complete and all(max(data[at:complete:row]) < bound for at, bound in enumerate(bounds)):
            return row
    return None


def _complete_pictures(path: Path, shape: tuple[int, ...], values: np.ndarray, problems: Problems | None) -> np.ndarray:
    """The values in their shape; of a truncated file, the complete pictures."""
    picture_size = math.prod(shape[1:])
    if len(values) >= math.prod(shape):
        return values[: math.prod(shape)].reshape(shape)
    text = f"the file was cut: it has {len(values):,} of {math.prod(shape):,} values; fetch it again"
    if not picture_size or not len(values) // picture_size:
        raise SegueError(f"{path}: {text}")
    bad(problems, path, str(len(values) // picture_size + 1), None, text)
    return values[: len(values) // picture_size * picture_size].reshape(-1, *shape[1:])


def _as_frames(path: Path, array: np.ndarray) -> np.ndarray:
    """An array of any usual layout as (pictures, frames, height, width, channels)."""
    shape = array.shape
    if holds_flat_squares(shape) and (size := square_size(shape[1])):  # colours last, but for rows as those of CIFAR
        side, channels = size
        array = array.reshape(-1, channels, side, side) if channels > 1 else array.reshape(-1, side, side)
        shape = array.shape
    if array.ndim == 4 and shape[2] in (1, 3, 4) and not {*shape[:2], shape[3]} & {1, 3, 4}:  # the last axis counts
        array = array.transpose(3, 0, 1, 2)
        shape = array.shape
    if array.ndim in (3, 4) and shape[-1] in (1, 3, 4):  # a colour picture, or several
        array = array[(None,) * (4 - array.ndim)][:, None]
    elif array.ndim == 4 and shape[1] in (1, 3, 4):  # channels first
        array = array.transpose(0, 2, 3, 1)[:, None]
    elif array.ndim == 5 and shape[-1] in (1, 3, 4):
        pass
    elif array.ndim in (2, 3):  # a grey picture, or several
        array = array[(None,) * (3 - array.ndim)][:, None, ..., None]
    elif array.ndim == 4:  # stories of grey pictures
        array = array[..., None]
    else:
        raise SegueError(f"{path}: an array of shape {shape} is none of pictures: give (pictures, height, width), with "
                         "1, 3 or 4 channels behind them or none")
    if not array.size or max(array.shape[1:]) > 1 << 14:
        raise SegueError(f"{path}: an array of shape {shape} has no picture in it, or one that is too large")
    return array


def _as_uint8(path: Path, array: np.ndarray) -> np.ndarray:
    """Brightness as uint8. Booleans and numbers from 0 to 1 are fractions of white, numbers from 0 to 255 stay, 16-bit
    numbers are divided by 257; all others are scaled from their minimum to their maximum."""
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array * 255 if array.max(initial=0) <= 1 else array)
    values = array.astype(np.float64)
    if not values.size or not np.isfinite(values).all():
        raise SegueError(f"{path}: a picture's numbers are finite ones; not all of these are")
    low, high = float(values.min()), float(values.max())
    if low < 0 or high > 65535 or (array.dtype.kind == "f" and high > 255):
        values = (values - low) * (255 / max(high - low, 1e-300))
    elif high <= 1:
        values = values * 255
    elif high > 255:
        values = values / 257
    return np.round(values).astype(np.uint8)
