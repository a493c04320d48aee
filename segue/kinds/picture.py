"""Pictures: PNG, JPEG, GIF, BMP, WebP, TIFF and PNM files, the arrays of MNIST (IDX), CIFAR (binary) and NumPy, tables
of them (a column a pixel, a list of pixels a cell, packed pictures in Parquet), as sequences of values in raster order,
and back (extra `picture`: Pillow).

A value is one of a few levels, as small pictures have been modelled since PixelRNN (van den Oord et al. 2016,
arXiv 1601.06759); bits per value are the bits per dimension of that literature, at so many levels.
"""

from __future__ import annotations

import io
import json
import math
import re
import warnings
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from segue.errors import SegueError, require
from segue.files import atomic_write
from segue.kinds.base import HEAD as SNIFFED
from segue.kinds.base import Dataset, Kind, Problems, Record, bad, of_class
from segue.kinds.beside import classes_beside
from segue.kinds.codecs import Codec, ItemCodec
from segue.kinds.columns import class_column, class_of, look
from segue.kinds.frame import (
    ROWS,
    TABULAR,
    Look,
    array_header,
    glance,
    is_array,
    is_parquet,
    load_array,
    load_table,
    said,
)
from segue.kinds.packed import opened

SIDE, LEVELS = 16, 8  # what pictures are brought to where nobody says otherwise
SORTS = {"grey": 256, "rgb": 256, "palette": 16}  # the most levels of each
HEAD = re.compile(r"(grey|rgb|palette)(\d{1,3}):(\d{1,4})")
FRAME = "frame"
NAMES = np.array([str(value) for value in range(16**3)], dtype=object)
WIDE, TALL, PIXELS = 4096, 64, 1 << 27  # most columns, most rows for a column, most pixels of a file
SHADES = "·░▒▓█"
CALLED = re.compile(r"(?i)pixel|image|img|picture")  # a column of lists of brightness
ENDINGS = {".ppm", ".pgm", ".pbm", ".pnm"}
PIXEL = re.compile(r"(\d{1,3})(\.0*)?")
FORMATS = ["PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM"]
SIGNS = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF8", b"II*\0", b"MM\0*")
IDX = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
CIFAR = {3073: (10,), 3074: (20, 100)}  # bytes of a row: the labels before the 3 x 32 x 32 values lie below these


@dataclass(frozen=True)
class Form:
    """How a picture is spelled: its item at the beginning reads grey8:16, the sort, the levels and the width.

    grey: a value is the brightness of a pixel. rgb: red, green and blue of a pixel are a value each. palette: a value
    is a colour, (red * levels + green) * levels + blue.
    """

    sort: str
    levels: int
    width: int

    @classmethod
    def of(cls, item: Any) -> Form | None:
        """What an item says, if it is the first of a picture."""
        said = HEAD.fullmatch(str(item))
        if said is None or not 2 <= int(said[2]) <= SORTS[said[1]] or not int(said[3]):
            return None
        return cls(said[1], int(said[2]), int(said[3]))

    def __str__(self) -> str:
        return f"{self.sort}{self.levels}:{self.width}"

    @property
    def values(self) -> int:
        """How many different ones there are."""
        return self.levels**3 if self.sort == "palette" else self.levels

    @property
    def row(self) -> int:
        """Values of a row."""
        return self.width * (3 if self.sort == "rgb" else 1)

    def spelled(self, image: Any) -> np.ndarray:
        """The values of an image of Pillow of this width, flat."""
        bytes_ = np.asarray(image.convert("L" if self.sort == "grey" else "RGB"), np.int64)
        steps = (bytes_ * (self.levels - 1) * 2 + 255) // 510  # rounded
        return (steps @ [self.levels**2, self.levels, 1] if self.sort == "palette" else steps).reshape(-1)

    def painted(self, values: np.ndarray) -> np.ndarray:
        """(rows, width) or, of colours, (rows, width, 3) uint8; what is missing of the last row is black."""
        steps = np.zeros(max(-(-len(values) // self.row), 1) * self.row, np.int64)
        steps[: len(values)] = np.clip(values, 0, self.values - 1)
        if self.sort == "palette":
            steps = steps[:, None] // np.array([self.levels**2, self.levels, 1]) % self.levels
        shape = (-1, self.width) if self.sort == "grey" else (-1, self.width, 3)
        return np.round(steps.reshape(shape) * (255 / (self.levels - 1))).astype(np.uint8)


@dataclass
class Drawn:
    """One record of a file: the frames, and of a file of ours the form and the number of values of each frame."""

    name: str
    frames: list[Any]
    form: Form | None = None
    counts: Sequence[int] = ()


class Picture(Kind):
    """An object is a list of items: one that says sort, levels and width (`grey8:16`), then the values from left to
    right and from the top down ("0" is black), with `frame` between the frames of an animation or of a story. The unit
    is the dimension, a value. Side channel `grid`: (n, 3) frame, row and column."""

    name = "picture"
    unit = "dimension"
    storage = "items"
    written = (".png",)
    split_by = "entity"
    drawn: ClassVar[bool] = True

    def sniff(self, path: Path, head: bytes) -> float:
        """Low for packed pictures, which often lie beside the text or code that a folder is about."""
        if is_image(head) and (path.suffix.lower() in ENDINGS or head[:1] != b"P"):
            return 0.9 if head[:2] in (b"P1", b"P2", b"P3") else 0.1  # the first are texts of numbers
        if is_array(head):
            header = array_header(head)  # others may be measurements: with kind= they are pictures too
            shape, small = (header[0], header[1].itemsize == 1) if header else ((), False)
            sized = len(shape) in (4, 5) and sum(n >= 8 for n in shape[1:]) >= 2 and bool({1, 3, 4} & {*shape[1:]})
            return 0.99 if sized or (small and 2 < len(shape) < 6) or (small and flattened(shape)) else 0.0
        if is_parquet(head) or (path.suffix.lower() in TABULAR and b"\0" not in head):
            table = glance(path, head)
            return 0.97 if table is not None and pixels_of(table) else 0.0
        if len(head) > 16 and head[:2] == b"\0\0" and head[2] in IDX and head[3] in (3, 4):
            return 0.9
        whole = len(head) == SNIFFED or any(len(head) % row == 0 for row in CIFAR)
        return 0.9 if path.suffix.lower() == ".bin" and whole and cifar_row(head) else 0.0

    def read(self, path: Path, problems: Problems | None = None, *, side: int | None = None, levels: int | None = None,
             colour: str | None = None, rows: int | None = None) -> Iterator[Record]:
        """One record for a picture with all its frames; arrays and tables hold many, and where these, or a file of
        classes beside an array, say of which class each is, its name does.

        side: the width that pictures are brought to, their shape kept (16; 0: as they are). levels: of each value (8).
        colour: grey, rgb or palette (grey). rows: of the last frame only so many, the upper ones, to be continued.
        What segue wrote comes back as it was written where none of the first three is said.
        """
        wanted = check_options(side, levels, colour, rows)
        with opened(path) as handle:
            data = handle.read()
        for drawn in pictures(path, data, problems):
            if problems is not None and wanted is None and drawn.form is None and not problems.note:
                problems.note = f"{SIDE} pixels wide, {LEVELS} levels of grey (others: --read side= levels= colour=)"
            form = wanted or drawn.form or Form("grey", LEVELS, SIDE)
            form = replace(form, width=form.width or drawn.frames[0].width)
            if form.width > WIDE or any(image.height > TALL * image.width for image in drawn.frames):
                bad(problems, path, drawn.name.removeprefix(f"{path}:"), None, "the picture is more "
                    f"than {WIDE} pixels wide, or {TALL} times as high as wide; cut it, or choose side=")
                continue
            frames = [form.spelled(resized(image, form.width)) for image in drawn.frames]
            if form == drawn.form:
                frames = [values[:count] for values, count in zip(frames, drawn.counts)]
            if rows is not None:
                frames[-1] = frames[-1][: rows * form.row]
            yield Record(items(form, frames), {"grid": grid(form, frames)}, drawn.name)

    def reading(self, codec: Codec) -> dict[str, Any]:
        """The form of the pictures that the codec is of; their width only where all have one."""
        forms = [form for item in getattr(codec, "items", ()) if (form := Form.of(item))]
        if not forms:
            return {}
        return {"side": forms[0].width if len(forms) == 1 else 0, "levels": forms[0].levels, "colour": forms[0].sort}

    def codec(self, data: Dataset) -> Codec:
        """A token for each value that there can be, each form there is, and the beginning of a frame."""
        forms = sorted(str(form) for item in data.vocabulary if (form := Form.of(item)))
        values = max((form.values for item in forms if (form := Form.of(item))), default=LEVELS)
        return ItemCodec([*NAMES[:values].tolist(), *forms, FRAME])

    def numbers(self, codec: Codec) -> np.ndarray | None:
        """Brightness; of a palette red, green and blue."""
        forms = [form for item in getattr(codec, "items", ()) if (form := Form.of(item))]
        values = np.arange(max((form.values for form in forms), default=0))
        ids = codec.lookup(NAMES[values].tolist())
        if not forms or ids is None:
            return None
        steps = values[:, None] // np.array([forms[0].levels**2, forms[0].levels, 1]) % forms[0].levels \
            if forms[0].sort == "palette" else values[:, None]
        found = np.full((codec.size, steps.shape[1]), np.nan)
        found[ids] = steps
        return found

    def write(self, objects: Iterable[Sequence[str] | Record], path: str | Path) -> None:
        """A PNG; of several pictures, and of frames, a contact sheet. A note within says what lies where, so that it
        is read as what was written."""
        images = require("PIL.Image", "picture")
        notes = require("PIL.PngImagePlugin", "picture").PngInfo()
        records = [obj if isinstance(obj, Record) else Record(list(obj)) for obj in objects]
        shown = [understood(record.object) for record in records]
        painted = [[form.painted(frame) for frame in frames] for form, frames in shown]
        columns = max(math.isqrt(max(len(shown) - 1, 0)) + 1, 1)
        wide = max((sum(each.shape[1] + 1 for each in frames) for frames in painted), default=1)
        high = max((each.shape[0] + 1 for frames in painted for each in frames), default=1)
        sheet = np.zeros((high * -(-len(shown) // columns), wide * columns, 3), np.uint8)
        told: list[Any] = []
        right = bottom = 1
        for number, (record, (form, values), frames) in enumerate(zip(records, shown, painted)):
            top, left = number // columns * high, number % columns * wide
            places = []
            for value, frame in zip(values, frames):
                height, width = frame.shape[:2]
                sheet[top : top + height, left : left + width] = frame if frame.ndim == 3 else frame[..., None]
                places.append([left, top, len(value)])
                right, bottom, left = max(right, left + width), max(bottom, top + height), left + width + 1
            told.append([record.name if len(records) > 1 else "", str(form), places])
        notes.add_text("segue", json.dumps(told))
        image = images.fromarray(sheet[:bottom, :right])
        if all(form.sort == "grey" for form, _ in shown):
            image = image.convert("L")
        with atomic_write(path) as temporary, open(temporary, "wb") as handle:
            image.save(handle, format="PNG", pnginfo=notes)

    def show(self, obj: Sequence[str]) -> str:
        """Blocks, two a pixel, the frames side by side as far as 96 characters go; of large pictures every second or
        third pixel."""
        form, frames = understood(obj)
        step = -(-form.width // 32)
        lines: list[str] = []
        for frame in frames[: max(96 // (2 * -(-form.width // step) + 2), 1)]:
            bright = form.painted(frame)[::step, ::step]
            bright = (bright if bright.ndim == 2 else bright @ [0.299, 0.587, 0.114]).astype(int)
            blocks = ["".join(2 * SHADES[value * len(SHADES) // 256] for value in row) for row in bright[:64]]
            missing = max(len(blocks), len(lines)) - len(lines)
            lines += [" " * len(lines[0] if lines else "")] * missing
            blocks += [" " * len(blocks[0])] * (len(lines) - len(blocks))
            lines = [f"{line}{'  ' if line else ''}{block}" for line, block in zip(lines, blocks)]
        return "\n".join(lines)

    def normalise(self, obj: Any, known: Collection[str] = ()) -> list[str]:
        """Items, or a text of them with blanks or commas between; where a model knows one form, the item that says it
        may be left out. What is none is a SegueError."""
        obj = obj.decode("utf-8", "replace") if isinstance(obj, bytes) else obj
        found = [item for item in re.split(r"[\s,]+", obj) if item] if isinstance(obj, str) else [str(i) for i in obj]
        forms = [item for item in known if Form.of(item)]
        if found and Form.of(found[0]) is None and len(forms) == 1:
            found = [forms[0], *found]
        form = Form.of(found[0]) if found else None
        if form is None:
            raise SegueError("a picture begins with its sort, levels and width, such as grey8:16, and then has values "
                             "from left to right, 0 for black; or give a file")
        for number, item in enumerate(found[1:], 2):
            if item != FRAME and not (item.isascii() and item.isdecimal() and int(item) < form.values):
                raise SegueError(f"item {number}, {item!r:.40}, is no value of {found[0]}: give whole numbers from 0 "
                                 f"to {form.values - 1}, or {FRAME}")
        return found


def check_options(side: int | None, levels: int | None, colour: str | None, rows: int | None) -> Form | None:
    """The form that the options ask for, of width 0 where pictures keep their own; None where they ask for none."""
    sort = colour or "grey"
    if sort not in SORTS:
        raise SegueError(f"colour '{colour}' is unknown: choose from {', '.join(SORTS)}")
    for name, value, least, most in (("side", side, 0, WIDE), ("levels", levels, 2, SORTS[sort]),
                                     ("rows", rows, 1, WIDE * TALL)):
        if value is not None and not least <= value <= most:
            raise SegueError(f"{name}={value} is none of {sort} pictures: give {least} to {most}")
    if side is None and levels is None and colour is None:
        return None
    return Form(sort, LEVELS if levels is None else levels, SIDE if side is None else side)


def items(form: Form, frames: Sequence[np.ndarray]) -> list[str]:
    """The object of frames of flat values."""
    found = [str(form)]
    for number, frame in enumerate(frames):
        found += [FRAME] * (number > 0)
        found += NAMES[frame].tolist()
    return found


def grid(form: Form, frames: Sequence[np.ndarray]) -> np.ndarray:
    """(n, 3) int32 frame, row and column of each item of that object; one that is no value stands at its frame's
    beginning."""
    parts = []
    for number, frame in enumerate(frames):
        at = np.maximum(np.arange(-1, len(frame)), 0)
        parts.append(np.stack([np.full(len(at), number), at // form.row, at % form.row // (form.row // form.width)], 1))
    return np.concatenate(parts).astype(np.int32)


def understood(obj: Sequence[Any]) -> tuple[Form, list[np.ndarray]]:
    """The form and the frames of an object, as far as a model's answer is one: without a beginning it is a grey picture
    as wide as high, and items that mean nothing where they stand are left out."""
    form = next((form for item in obj if (form := Form.of(item))), None)
    frames: list[list[int]] = [[]]
    for item in map(str, obj):
        if item == FRAME:
            frames.append([])
        elif item.isascii() and item.isdecimal():
            frames[-1].append(int(item[:6]))
    if form is None:
        brightest = max((max(frame) for frame in frames if frame), default=1)
        form = Form("grey", min(max(brightest, 1), 255) + 1, min(max(math.isqrt(len(frames[0])), 1), WIDE))
    return form, [np.array(frame, np.int64) for frame in frames]


def resized(image: Any, width: int) -> Any:
    """The image at that width: each pixel the mean of those that it stands for."""
    if image.width == width:
        return image
    images = require("PIL.Image", "picture")
    size = (width, max(round(image.height * width / image.width), 1))
    return image.resize(size, images.Resampling.BOX)


# -- files


def pictures(path: Path, data: bytes, problems: Problems | None) -> Iterator[Drawn]:
    """What is in a file, told by its first bytes."""
    if is_image(data):
        yield from image_file(path, data)
        return
    if is_parquet(data) or not (is_array(data) or b"\0" in data[:SNIFFED]):
        yield from table_file(path, problems)
        return
    arrays, labels = array_file(path, data, problems)
    labels = labels or classes_beside(path, len(arrays))
    images = require("PIL.Image", "picture")
    for number, frames in enumerate(arrays, 1):
        name = f"{path}:{number}" if len(arrays) > 1 else str(path)
        yield Drawn(of_class(name, labels[number - 1] if labels else ""),
                    [images.fromarray(frame[..., 0] if frame.shape[-1] == 1 else frame[..., :3]) for frame in frames])


def square(count: int) -> tuple[int, int] | None:
    """The side and the channels of a square picture of so many values, of 64 or more; None where it is none."""
    for channels in (1, 3):
        side = math.isqrt(count // channels)
        if side >= 8 and side * side * channels == count:
            return side, channels
    return None


def flattened(shape: tuple[int, ...]) -> bool:
    """Whether an array of two axes has a square picture in each row, as QuickDraw's and CIFAR's do."""
    return len(shape) == 2 and shape[1] >= 256 and shape[0] != shape[1] and square(shape[1]) is not None


def pixels_of(table: Look) -> list[str]:
    """The columns of a table that hold pictures: one of packed ones or of lists of brightness, or a column a pixel."""
    for name in table.names[:ROWS]:
        cells = table.column(name)
        lists = [cell if isinstance(cell, list) else cell.split() for cell in cells
                 if isinstance(cell, (str, list))] if CALLED.search(name) else []
        if cells and (all(isinstance(cell, bytes) and is_image(cell) for cell in cells) or (
                0 < len(lists) == len(cells) and all(square(len(cell)) and bright(cell) for cell in lists))):
            return [name]
    if len(table.names) <= 64 or table.form != "delimited":
        return []
    names = [name for name in table.names if re.fullmatch(r"\D*\d+(x\d+)?", name)] if table.headed else table.names
    if not table.headed and (marks := one_of(table)):
        kept = table.names[:-marks]
        rows = [row[:-marks] for row in table.rows if len(row) == len(table.names)]
        return kept if square(len(kept)) and all(map(bright, rows)) else []
    ends = [names[1:], names[:-1]]  # the class stands first, or last, where that says several things and lesser ones
    if not table.headed and _class_like(table.column(names[-1])) < _class_like(table.column(names[0])):
        ends.reverse()
    for kept in (names, *ends) if len(names) > len(table.names) - 4 else ():
        if square(len(kept)):
            places = [table.names.index(name) for name in (kept[0], kept[-1])]
            rows = [row[places[0] : places[1] + 1] for row in table.rows if len(row) == len(table.names)]
            dark = not any(float(cell) > 15 for row in rows if bright(row) for cell in row)  # then they may be anything
            return kept if rows and all(map(bright, rows)) and not dark else []
    return []


def _class_like(cells: Sequence[Any]) -> tuple[bool, float]:
    """Less for whole numbers that rather are classes than brightness: several, and small."""
    return len(set(map(str, cells))) < 2, max(map(float, cells)) if cells and bright(cells) else math.inf


def one_of(table: Look) -> int:
    """How many columns at the end of a table are the classes, of which each row has a one and else noughts; 0: none."""
    rows = [[str(cell) for cell in row] for row in table.rows if len(row) == len(table.names)]
    for count in range(2, 65):
        if square(len(table.names) - count) and rows and all(sorted(row[-count:]) == ["0"] * (count - 1) + ["1"]
                                                             for row in rows):
            return count
    return 0


def bright(cells: Sequence[Any]) -> bool:
    """Whether all of them are whole numbers from 0 to 255."""
    return all((found := PIXEL.fullmatch(str(cell))) and int(found[1]) < 256 for cell in cells)


def table_file(path: Path, problems: Problems | None) -> Iterator[Drawn]:
    """The pictures of a table, each of the class that a column of labels says."""
    images = require("PIL.Image", "picture")
    frame = load_table(path, Problems() if problems is None else problems, "utf-8")
    seen = look(frame)
    columns = pixels_of(replace(seen, form="delimited"))
    if not columns:
        raise SegueError(f"{path}: no picture, and no table of them that is known here; save it as PNG")
    rest = [name for name in frame.columns if name not in columns]
    of = class_column(path, seen, "") if frame.headed else next(iter(rest), None)
    of = of if of in rest else next((name for name in rest if name.lower().endswith("label")), None)
    labels = [] if of is None else frame.columns[of].to_pylist()
    if not frame.headed and len(rest) > 1 and rest == [*frame.columns][len(columns) :]:  # see `one_of`
        labels = np.stack([_brightness(frame.columns[name]) for name in rest], 1).argmax(1).tolist()
        of = f"{rest[0]} to {rest[-1]}"
        rest = [of]
    if problems is not None:
        told = columns[0] if len(columns) == 1 else f"{columns[0]} to {columns[-1]}"
        problems.note = said([("class", of), ("pictures", told)], [*rest, told])
    cells: Any = frame.columns[columns[0]].to_pylist() if len(columns) == 1 else _scaled(
        np.stack([_brightness(frame.columns[name]) for name in columns], 1))
    for row, values in enumerate(cells):
        place = f"{path}:{frame.place(row)}"
        name = of_class(place, class_of(labels[row]) if labels else "")
        if isinstance(values, bytes):
            try:
                yield from (replace(drawn, name=name) for drawn in image_file(Path(place), values))
            except SegueError as error:
                bad(problems, path, frame.place(row), None, str(error).removeprefix(f"{place}: "))
            continue
        if len(columns) == 1:
            listed = values if isinstance(values, list) else str(values or "").split()
            values = np.array(list(map(int, map(float, listed))) if bright(listed) else [256])
        size = square(len(values))
        if size is None or values.max() > 255:
            bad(problems, path, frame.place(row), None, "not the pixels of a square picture, 0 to 255; mend it")
            continue
        grid = values.astype(np.uint8).reshape(size[0], size[0], size[1])
        yield Drawn(name, [images.fromarray(grid[..., 0] if size[1] == 1 else grid)])


def _brightness(column: Any) -> np.ndarray:
    """A column of whole numbers below 256 as int16, 256 where one is none."""
    import pyarrow as pa
    import pyarrow.compute as compute

    texts = column.cast(pa.string())
    good = compute.match_substring_regex(texts, r"^[0-9]{1,3}(\.0*)?$")
    numbers = compute.cast(compute.cast(compute.if_else(good, texts, None), pa.float32()), pa.int16())
    return np.asarray(compute.fill_null(numbers, 256).to_numpy(zero_copy_only=False))


def _scaled(grid: np.ndarray) -> np.ndarray:
    """Brightness up to 255, of pictures that have but a few steps of it: on and off, or 16 as pens are scanned in."""
    peak = int(grid[grid < 256].max(initial=0))
    return np.where(grid < 256, grid * 255 // peak, grid) if 0 < peak <= 64 else grid


def is_image(head: bytes) -> bool:
    """Whether Pillow is to read it."""
    boxed = (head[:4], head[8:12]) == (b"RIFF", b"WEBP") or (head[:2] == b"BM" and head[6:10] == bytes(4))
    return boxed or head.startswith(SIGNS) or re.match(rb"P[1-6]\s", head) is not None


def image_file(path: Path, data: bytes) -> Iterator[Drawn]:
    """The picture in a file, with all its frames, or the several that `Picture.write` put there."""
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
                frames.append(opaque(path, operations.exif_transpose(image)))
            note = image.info.get("segue")
    except (SegueError, MemoryError):
        raise
    except Exception as error:  # a foreign parser may raise anything on a broken file
        why = " ".join(str(error).split()).partition(" <_io")[0] or type(error).__name__
        raise SegueError(f"{path}: no picture that can be read ({why[:160]}); save it again, say as PNG") from error
    ours = tiles(path, frames[0], note) if isinstance(note, str) and len(frames) == 1 else []
    yield from ours or [Drawn(str(path), frames)]


def opaque(path: Path, image: Any) -> Any:
    """A grey or RGB image, on white where it is transparent."""
    images = require("PIL.Image", "picture")
    if image.mode.startswith(("I", "F")):
        return images.fromarray(as_bytes(path, np.asarray(image)))
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = images.alpha_composite(images.new("RGBA", image.size, "white"), image)
    return image.convert("L" if image.mode in ("1", "L", "LA") else "RGB")


def tiles(path: Path, sheet: Any, note: str) -> list[Drawn]:
    """The pictures that a note of ours says lie in a sheet; none where it says what cannot be."""
    found = []
    try:
        told = json.loads(note)
        for number, (name, item, places) in enumerate(told, 1):
            form = Form.of(item)
            if form is None or not places:
                return []
            frames = []
            for left, top, count in places:
                box = left, top, left + form.width, top + max(-(-count // form.row), 1)
                if not (0 <= left < box[2] <= sheet.width and 0 <= top < box[3] <= sheet.height and count >= 0):
                    return []
                frames.append(sheet.crop(box))
            whole = f"{path}:{name or number}" if len(told) > 1 else str(path)
            found.append(Drawn(whole, frames, form, [count for _, _, count in places]))
    except (ValueError, TypeError, RecursionError):
        return []
    return found


def array_file(path: Path, data: bytes, problems: Problems | None) -> tuple[np.ndarray, list[str] | None]:
    """(pictures, frames, height, width, 1, 3 or 4) uint8, and the class of each where the file says it."""
    if is_array(data):
        return as_bytes(path, framed(path, load_array(path, data, "numbers"))), None
    if data[:2] == b"\0\0" and len(data) > 4 and data[2] in IDX and data[3] in (3, 4):
        dtype, start = np.dtype(IDX[data[2]]), 4 + 4 * data[3]
        if len(data) < start:
            raise SegueError(f"{path}: the file ends in its header; fetch it again")
        shape = tuple(np.frombuffer(data, ">u4", data[3], 4).tolist())
        array = whole_rows(path, shape, numbers(data, dtype, start), problems)
        return as_bytes(path, framed(path, array)), None
    row = cifar_row(data)
    if row is None:
        raise SegueError(f"{path}: no picture, and no array of them (IDX, CIFAR, NumPy) that is known here; save it as "
                         "PNG")
    array = whole_rows(path, (-(-len(data) // row), row), numbers(data, np.dtype("u1"), 0), problems)
    pixels = array[:, -3072:].reshape(-1, 1, 3, 32, 32).transpose(0, 1, 3, 4, 2)
    return pixels, list(map(str, array[:, -3073].tolist()))


def numbers(data: bytes, dtype: np.dtype, start: int) -> np.ndarray:
    """All the whole numbers there are from a byte on."""
    return np.frombuffer(data, dtype, (len(data) - start) // dtype.itemsize, start)


def cifar_row(data: bytes) -> int | None:
    """Bytes of a row of a binary batch of CIFAR-10 or CIFAR-100, if the labels say that it is one."""
    for row, most in CIFAR.items():
        whole = len(data) // row * row
        if whole and all(max(data[at:whole:row]) < bound for at, bound in enumerate(most)):
            return row
    return None


def whole_rows(path: Path, shape: tuple[int, ...], values: np.ndarray, problems: Problems | None) -> np.ndarray:
    """The values in their shape; where the file was cut, the pictures that are whole."""
    each = math.prod(shape[1:])
    if len(values) >= math.prod(shape):
        return values[: math.prod(shape)].reshape(shape)
    text = f"the file was cut: it has {len(values):,} of {math.prod(shape):,} values; fetch it again"
    if not each or not len(values) // each:
        raise SegueError(f"{path}: {text}")
    bad(problems, path, str(len(values) // each + 1), None, text)
    return values[: len(values) // each * each].reshape(-1, *shape[1:])


def framed(path: Path, array: np.ndarray) -> np.ndarray:
    """(pictures, frames, height, width, channels) of an array of any usual layout."""
    shape = array.shape
    if flattened(shape) and (size := square(shape[1])):  # colours last, but for rows as those of CIFAR
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


def as_bytes(path: Path, array: np.ndarray) -> np.ndarray:
    """Brightness as uint8. Numbers from 0 to 1, and truth values, are parts of white, those from 0 to 255 are bytes,
    16-bit ones 257ths; others are spread from the least to the greatest."""
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array * 255 if array.max(initial=0) <= 1 else array)
    values = array.astype(np.float64)
    if not values.size or not np.isfinite(values).all():
        raise SegueError(f"{path}: a picture's numbers are finite ones; not all of these are")
    least, most = float(values.min()), float(values.max())
    if least < 0 or most > 65535 or (array.dtype.kind == "f" and most > 255):
        values = (values - least) * (255 / max(most - least, 1e-300))
    elif most <= 1:
        values = values * 255
    elif most > 255:
        values = values / 257
    return np.round(values).astype(np.uint8)


