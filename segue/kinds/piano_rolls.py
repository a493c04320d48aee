"""Piano rolls, which say for each step which pitches sound: JSON, arrays, and CSV with a column for each voice."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from segue.errors import SegueError
from segue.kinds.frame import array_header, load_array
from segue.kinds.notes import LENGTHS, Note, nearest

# A CSV file with nothing but a column of pitches for each voice.
VOICE_TABLE = re.compile(rb'"?(note|voice)_?\d"?([,;\t]"?(note|voice)_?\d"?){1,8}\s*\n[\d,;\t\r\n]+', re.IGNORECASE)


def is_json_roll(head: bytes) -> bool:
    """Whether a file is a JSON piano roll (pieces of steps of pitches, perhaps in an object of named parts), by its
    beginning."""
    if not re.match(rb'\s*(\{\s*"[^"]{1,40}"\s*:\s*)?\[\s*\[\s*\[[-\d,\s]*\]', head):
        return False
    steps = [step.split(b",") if step.strip() else [] for step in re.findall(rb"\[([-\d,\s]*)\]", head)]
    pitches = [int(pitch) for step in steps for pitch in step if pitch.strip().lstrip(b"-").isdigit()]
    heard = [pitch for pitch in pitches if pitch != -1]
    return len(steps) > 4 and len(set(heard)) > 2 and max(map(len, steps)) <= 12 and \
        min(heard) >= 12 and max(heard) <= 115


def text_rolls(path: Path, data: bytes) -> Iterator[tuple[str, list[list[int]]]]:
    """The name and the steps of each piece of a piano roll in JSON, or in CSV with a column for each voice."""
    if VOICE_TABLE.match(data):
        cells = [re.findall(r"\d+", line) for line in data.decode("utf-8", "replace").splitlines()[1:]]
        yield "1", [[pitch for pitch in map(int, row) if 0 < pitch < 128] for row in cells]
        return
    try:
        value = json.loads(data)
        for part, pieces in value.items() if isinstance(value, dict) else [("", value)]:
            for number, piece in enumerate(pieces, 1):
                steps = [[pitch for pitch in map(int, step) if 0 <= pitch < 128] for step in piece]
                yield f"{part}:{number}" if part else str(number), steps
    except (ValueError, TypeError, RecursionError) as error:
        raise SegueError(f"{path}: no piano roll that can be read ({error}); write it again") from error


def is_array_roll(head: bytes) -> bool:
    """Whether a NumPy file is a piano roll over the 88 keys of a piano, of one or several pieces, by its beginning."""
    header = array_header(head)
    if header is None or header[1].kind not in "bu" or header[0][-1:] != (88,) or len(header[0]) not in (2, 3):
        return False
    return len(np.unique(np.frombuffer(head, np.uint8, -1, header[2]))) <= 2 or header[1].itemsize == 1


def array_rolls(path: Path, data: bytes) -> Iterator[tuple[str, list[list[int]]]]:
    """The name and the steps of each piece of an array (steps, keys) or (pieces, steps, keys), over 88 keys or 128
    pitches; values above 0 are notes."""
    array = load_array(path, data, "numbers")
    if array.ndim not in (2, 3) or array.shape[-1] not in (88, 128):
        raise SegueError(f"{path}: an array of shape {array.shape} is no piano roll: give steps of 88 keys, or of 128 "
                         "pitches")
    lowest = 21 if array.shape[-1] == 88 else 0
    for number, piece in enumerate(array if array.ndim == 3 else array[None], 1):
        yield str(number), [(np.flatnonzero(step > 0) + lowest).tolist() for step in piece]


def roll_notes(steps: Iterable[Sequence[int]], length: int) -> list[Note]:
    """The notes of a piano roll; a pitch in consecutive steps is one note. length: of a step, in grid steps."""
    notes, held = list[Note](), dict[int, int]()
    for index, pitches in enumerate([*steps, []]):
        for pitch in [pitch for pitch in held if pitch not in pitches]:
            start = held.pop(pitch)
            notes.append(Note(start * length, 0, pitch, nearest(LENGTHS, (index - start) * length), 20))
        for pitch in pitches:
            held.setdefault(pitch, index)
    return notes
