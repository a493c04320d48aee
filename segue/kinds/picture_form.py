"""How pictures are encoded as items: quantised values in raster order, behind an item that gives their form.

Values have a few levels, as small pictures have been modelled since PixelRNN (van den Oord et al. 2016, arXiv
1601.06759); bits per value are the bits per dimension of that literature, at that number of levels.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from segue.errors import require

SIDE, LEVELS = 16, 8  # what pictures are brought to where nobody says otherwise
SORTS = {"grey": 256, "rgb": 256, "palette": 16}  # the most levels of each
FORM_ITEM = re.compile(r"(grey|rgb|palette)(\d{1,3}):(\d{1,4})")
FRAME = "frame"
NAMES = np.array([str(value) for value in range(16**3)], dtype=object)
WIDE, TALL, PIXELS = 4096, 64, 1 << 27  # most columns, most rows for a column, most pixels of a file


@dataclass(frozen=True)
class Form:
    """How a picture is encoded. Its first item gives this form: grey8:16 is the sort, the levels and the width.

    grey: a value is the brightness of a pixel. rgb: red, green and blue of a pixel are a value each. palette: a value
    is a colour, (red * levels + green) * levels + blue.
    """

    sort: str
    levels: int
    width: int

    @classmethod
    def of(cls, item: Any) -> Form | None:
        """The form that the first item of a picture gives; None for other items."""
        said = FORM_ITEM.fullmatch(str(item))
        if said is None or not 2 <= int(said[2]) <= SORTS[said[1]] or not int(said[3]):
            return None
        return cls(said[1], int(said[2]), int(said[3]))

    def __str__(self) -> str:
        return f"{self.sort}{self.levels}:{self.width}"

    @property
    def values(self) -> int:
        """The number of different values."""
        return self.levels**3 if self.sort == "palette" else self.levels

    @property
    def row(self) -> int:
        """The number of values in a row."""
        return self.width * (3 if self.sort == "rgb" else 1)

    def quantise(self, image: Any) -> np.ndarray:
        """The values of a Pillow image of this width, flattened."""
        bytes_ = np.asarray(image.convert("L" if self.sort == "grey" else "RGB"), np.int64)
        steps = (bytes_ * (self.levels - 1) * 2 + 255) // 510  # rounded
        return (steps @ [self.levels**2, self.levels, 1] if self.sort == "palette" else steps).reshape(-1)

    def render(self, values: np.ndarray) -> np.ndarray:
        """Values as pixels, (rows, width) or for colours (rows, width, 3) uint8; an incomplete last row is filled with
        black."""
        steps = np.zeros(max(-(-len(values) // self.row), 1) * self.row, np.int64)
        steps[: len(values)] = np.clip(values, 0, self.values - 1)
        if self.sort == "palette":
            steps = steps[:, None] // np.array([self.levels**2, self.levels, 1]) % self.levels
        shape = (-1, self.width) if self.sort == "grey" else (-1, self.width, 3)
        return np.round(steps.reshape(shape) * (255 / (self.levels - 1))).astype(np.uint8)


def encode_frames(form: Form, frames: Sequence[np.ndarray]) -> list[str]:
    """The object (list of items) of frames of flattened values."""
    found = [str(form)]
    for number, frame in enumerate(frames):
        found += [FRAME] * (number > 0)
        found += NAMES[frame].tolist()
    return found


def grid(form: Form, frames: Sequence[np.ndarray]) -> np.ndarray:
    """The frame, row and column of each item of that object, (n, 3) int32; items that are not values have the position
    of their frame's first value."""
    parts = []
    for number, frame in enumerate(frames):
        at = np.maximum(np.arange(-1, len(frame)), 0)
        parts.append(np.stack([np.full(len(at), number), at // form.row, at % form.row // (form.row // form.width)], 1))
    return np.concatenate(parts).astype(np.int32)


def decode_items(obj: Sequence[Any]) -> tuple[Form, list[np.ndarray]]:
    """The form and the frames of an object. A model's answer need not be well formed: without a form it is read as a
    square grey picture, and items that mean nothing where they stand are ignored."""
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


def resize(image: Any, width: int) -> Any:
    """The image at that width, each pixel the mean of those it covers."""
    if image.width == width:
        return image
    images = require("PIL.Image", "picture")
    size = (width, max(round(image.height * width / image.width), 1))
    return image.resize(size, images.Resampling.BOX)
