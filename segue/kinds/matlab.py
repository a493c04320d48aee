"""Files of MATLAB (.mat), up to version 7: what an archive of NumPy arrays would hold (extra `sound`, for SciPy)."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from segue.errors import SegueError, require

MANY = 10_000  # arrays of a cell


def arrays(path: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """The name of each array of numbers, with .npy behind, and the file that it would be; of structures and cells what
    is in them."""
    with open(path, "rb") as handle:
        head = handle.read(128)
    if head.startswith(b"MATLAB 7.3") or head.startswith(b"\x89HDF"):
        raise SegueError("a file of MATLAB 7.3, which is HDF5; save it with -v7, or write its arrays as .npy")
    try:
        variables = require("scipy.io", "sound").loadmat(path)
    except SegueError:
        raise
    except Exception as error:  # a foreign parser may raise anything on a broken file
        raise SegueError(f"no MATLAB file that can be read ({error or type(error).__name__}); save it with -v7, or "
                         "write its arrays as .npy") from error
    empty = True
    for name, array in ((name, array) for key, value in variables.items() if key[:2] != "__"
                        for name, array in _within(key, value)):
        empty = False
        np.save(box := io.BytesIO(), array)
        box.seek(0)
        yield f"{name}.npy", box
    if empty:
        raise SegueError("there is no array of numbers in it")


def _within(name: str, value: Any) -> Iterator[tuple[str, np.ndarray]]:
    if not isinstance(value, np.ndarray) or (value.dtype.hasobject and value.size > MANY):
        return
    if value.dtype.names:
        for i, row in enumerate(value.reshape(-1), 1):
            for field in value.dtype.names:
                yield from _within(f"{name}.{i}.{field}" if value.size > 1 else f"{name}.{field}", row[field])
    elif value.dtype.hasobject:
        for i, item in enumerate(value.reshape(-1), 1):
            yield from _within(f"{name}.{i}", item)
    elif value.size and value.dtype.kind in "buif":
        yield name, value
