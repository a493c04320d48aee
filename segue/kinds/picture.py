"""Pictures: image files, arrays and tables of them, as sequences of values in raster order, and back as PNG (extra
`picture`: Pillow)."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from segue.errors import SegueError, require
from segue.files import atomic_write
from segue.kinds.base import HEAD as SNIFFED
from segue.kinds.base import Dataset, Kind, Problems, Record, bad, split_items
from segue.kinds.codecs import Codec, ItemCodec
from segue.kinds.frame import TABULAR, array_header, glance, is_array, is_parquet
from segue.kinds.packed import opened
from segue.kinds.picture_files import (
    CIFAR,
    ENDINGS,
    IDX,
    cifar_row,
    holds_flat_squares,
    is_image,
    picture_columns,
    read_pictures,
)
from segue.kinds.picture_form import (
    FRAME,
    LEVELS,
    NAMES,
    SIDE,
    SORTS,
    TALL,
    WIDE,
    Form,
    decode_items,
    encode_frames,
    grid,
    resize,
)

SHADES = "·░▒▓█"


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
            return 0.99 if sized or (small and 2 < len(shape) < 6) or (small and holds_flat_squares(shape)) else 0.0
        if is_parquet(head) or (path.suffix.lower() in TABULAR and b"\0" not in head):
            table = glance(path, head)
            return 0.97 if table is not None and picture_columns(table) else 0.0
        if len(head) > 16 and head[:2] == b"\0\0" and head[2] in IDX and head[3] in (3, 4):
            return 0.9
        complete = len(head) == SNIFFED or any(len(head) % row == 0 for row in CIFAR)
        return 0.9 if path.suffix.lower() == ".bin" and complete and cifar_row(head) else 0.0

    def read(self, path: Path, problems: Problems | None = None, *, side: int | None = None, levels: int | None = None,
             colour: str | None = None, rows: int | None = None) -> Iterator[Record]:
        """One record for a picture with all its frames; arrays and tables hold many, and where these, or a file of
        classes beside an array, say of which class each is, its name does.

        side: the width that pictures are brought to, their shape kept (16; 0: as they are). levels: of each value (8).
        colour: grey, rgb or palette (grey). rows: of the last frame only so many, the upper ones, to be continued.
        What segue wrote comes back as it was written where none of the first three is said.
        """
        requested = form_of_options(side, levels, colour, rows)
        with opened(path) as handle:
            data = handle.read()
        for picture in read_pictures(path, data, problems):
            if problems is not None and requested is None and picture.form is None and not problems.note:
                problems.note = f"{SIDE} pixels wide, {LEVELS} levels of grey (others: --read side= levels= colour=)"
            form = requested or picture.form or Form("grey", LEVELS, SIDE)
            form = replace(form, width=form.width or picture.frames[0].width)
            if form.width > WIDE or any(image.height > TALL * image.width for image in picture.frames):
                bad(problems, path, picture.name.removeprefix(f"{path}:"), None, "the picture is more "
                    f"than {WIDE} pixels wide, or {TALL} times as high as wide; cut it, or choose side=")
                continue
            frames = [form.quantise(resize(image, form.width)) for image in picture.frames]
            if form == picture.form:
                frames = [values[:count] for values, count in zip(frames, picture.counts)]
            if rows is not None:
                frames[-1] = frames[-1][: rows * form.row]
            yield Record(encode_frames(form, frames), {"grid": grid(form, frames)}, picture.name)

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
        brightness = np.full((codec.size, steps.shape[1]), np.nan)
        brightness[ids] = steps
        return brightness

    def write(self, objects: Iterable[Sequence[str] | Record], path: str | Path) -> None:
        """A PNG; of several pictures, and of frames, a contact sheet. A note within says what lies where, so that it
        is read as what was written."""
        images = require("PIL.Image", "picture")
        notes = require("PIL.PngImagePlugin", "picture").PngInfo()
        records = [obj if isinstance(obj, Record) else Record(list(obj)) for obj in objects]
        pictures = [decode_items(record.object) for record in records]
        rendered = [[form.render(frame) for frame in frames] for form, frames in pictures]
        columns = max(math.isqrt(max(len(pictures) - 1, 0)) + 1, 1)
        cell_width = max((sum(each.shape[1] + 1 for each in frames) for frames in rendered), default=1)
        cell_height = max((each.shape[0] + 1 for frames in rendered for each in frames), default=1)
        sheet = np.zeros((cell_height * -(-len(pictures) // columns), cell_width * columns, 3), np.uint8)
        contents: list[Any] = []
        right = bottom = 1
        for number, (record, (form, values), frames) in enumerate(zip(records, pictures, rendered)):
            top, left = number // columns * cell_height, number % columns * cell_width
            places = []
            for value, frame in zip(values, frames):
                height, width = frame.shape[:2]
                sheet[top : top + height, left : left + width] = frame if frame.ndim == 3 else frame[..., None]
                places.append([left, top, len(value)])
                right, bottom, left = max(right, left + width), max(bottom, top + height), left + width + 1
            contents.append([record.name if len(records) > 1 else "", str(form), places])
        notes.add_text("segue", json.dumps(contents))
        image = images.fromarray(sheet[:bottom, :right])
        if all(form.sort == "grey" for form, _ in pictures):
            image = image.convert("L")
        with atomic_write(path) as temporary, open(temporary, "wb") as handle:
            image.save(handle, format="PNG", pnginfo=notes)

    def show(self, obj: Sequence[str]) -> str:
        """Blocks, two a pixel, the frames side by side as far as 96 characters go; of large pictures every second or
        third pixel."""
        form, frames = decode_items(obj)
        step = -(-form.width // 32)
        lines: list[str] = []
        for frame in frames[: max(96 // (2 * -(-form.width // step) + 2), 1)]:
            bright = form.render(frame)[::step, ::step]
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
        items = list(map(str, split_items(obj, r"[\s,]+")))
        forms = [item for item in known if Form.of(item)]
        if items and Form.of(items[0]) is None and len(forms) == 1:
            items = [forms[0], *items]
        form = Form.of(items[0]) if items else None
        if form is None:
            raise SegueError("a picture begins with its sort, levels and width, such as grey8:16, and then has values "
                             "from left to right, 0 for black; or give a file")
        for number, item in enumerate(items[1:], 2):
            if item != FRAME and not (item.isascii() and item.isdecimal() and int(item) < form.values):
                raise SegueError(f"item {number}, {item!r:.40}, is no value of {items[0]}: give whole numbers from 0 "
                                 f"to {form.values - 1}, or {FRAME}")
        return items


def form_of_options(side: int | None, levels: int | None, colour: str | None, rows: int | None) -> Form | None:
    """The form that the options ask for, of width 0 where pictures keep their own; None where they ask for none."""
    sort = colour or "grey"
    if sort not in SORTS:
        raise SegueError(f"colour '{colour}' is unknown: choose from {', '.join(SORTS)}")
    for name, value, low, high in (("side", side, 0, WIDE), ("levels", levels, 2, SORTS[sort]),
                                   ("rows", rows, 1, WIDE * TALL)):
        if value is not None and not low <= value <= high:
            raise SegueError(f"{name}={value} is none of {sort} pictures: give {low} to {high}")
    if side is None and levels is None and colour is None:
        return None
    return Form(sort, LEVELS if levels is None else levels, SIDE if side is None else side)
