"""The tour: learn the Python standard library, continue a half-written function, learn its documentation, report.

Everything it reads is on every machine with Python; nothing is downloaded.
"""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Iterable
from pathlib import Path

from segue.errors import SegueError
from segue.files import write_text

SKIPPED = {"test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "pydoc_data", "__pycache__"}

PRIME = '''\
def read_header(stream, limit=65536):
    """Read one header line from stream and split it into a name and a value.

    Raises ValueError if the line is too long or has no colon.
    """
    line = stream.readline(limit + 1)
    if len(line) > limit:
        raise ValueError("'''


def held_out(name: str, share: int) -> bool:
    """One name in `share`, picked by its hash: the same on every machine."""
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) % share == 0


def standard_library() -> tuple[list[Path], list[Path]]:
    """Source files of this interpreter's standard library, for training and held out (one in 20, by hash)."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = sorted(path for path in root.rglob("*.py") if SKIPPED.isdisjoint(path.relative_to(root).parts[:-1]))
    if len(files) < 100:
        raise SegueError(f"only {len(files)} source files of the standard library are in {root}; "
                         "the demo needs them: on Debian, apt install libpython3-stdlib")
    held = [path for path in files if held_out(path.relative_to(root).as_posix(), 20)]
    return [path for path in files if path not in set(held)], held


def documentation(folder: Path) -> tuple[list[Path], list[Path]]:
    """The interpreter's own language reference (what `help("for")` shows), written to files; one in 6 held out."""
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise SegueError("this Python has no pydoc_data.topics, which the demo learns from: "
                         "on Debian, apt install libpython3-stdlib") from error
    files = []
    for name, text in sorted(topics.items()):
        files.append(folder / f"{name}.txt")
        write_text(files[-1], text)
    held = [path for path in files if held_out(path.stem, 6)]
    return [path for path in files if path not in set(held)], held


def megabytes(files: Iterable[Path]) -> float:
    return sum(path.stat().st_size for path in files) / 1e6
