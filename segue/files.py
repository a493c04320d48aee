"""Writing files so that a kill or a full disk never leaves a half-written one."""

from __future__ import annotations

import glob
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from segue.errors import SegueError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_serial = itertools.count()  # tells the writes of this process apart: several threads may write one path at once


def _temporary_path(path: Path, suffix: str) -> Path:
    """An unused hidden name beside `path`: its name, a number for this write, the process id, the suffix."""
    return path.with_name(f".{path.name}.{next(_serial)}.{os.getpid()}.{suffix}")


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` to write to; it replaces `path` on success and is removed on failure.

    The data are on disk (fsync) before the rename, so a power cut leaves the old file or the new one, whole. Processes
    and threads that write the same path at once do not disturb each other: the last one to finish wins. If `path` is a
    pipe or a device, the data are copied into it; if it is a symbolic link, its target is replaced.
    """
    path = Path(path)
    if path.exists() and not path.is_file() and not path.is_dir():
        with TemporaryDirectory(prefix="segue-") as spare:
            yield Path(spare) / "written"
            try:
                with open(Path(spare) / "written", "rb") as whole, open(path, "wb") as into:
                    shutil.copyfileobj(whole, into)
            except OSError as error:
                raise SegueError(f"cannot write into {path} ({error.strerror}): choose another place") from error
        return
    path = Path(os.path.realpath(path))
    temporary = _temporary_path(path, "tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        mode = temporary.stat().st_mode  # what the umask allows; some writers recreate the file for its owner alone
        yield temporary
        with open(temporary, "rb") as handle:
            os.fchmod(handle.fileno(), mode)
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except Exception as error:
        raise _write_error(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _write_error(path: Path, error: Exception) -> Exception:
    """A SegueError for a failed write (safetensors has an error of its own for a full disk); other errors unchanged."""
    if not isinstance(error, OSError) and type(error).__name__ != "SafetensorError":
        return error
    return SegueError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}; free some space or choose "
                      "another place")


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path` to fill; it replaces `path` on success and is removed on failure.

    Temporary folders left behind by a killed process are removed on the next write. If one of them is the only copy of
    the old folder, it is moved back to `path` first.
    """
    path = Path(path)
    for left in path.parent.glob(f".{glob.escape(path.name)}.*"):
        pid, suffix = left.name.split(".")[-2:]
        if pid.isdigit() and Path("/proc").exists() and not Path(f"/proc/{pid}").exists():
            if suffix == "old" and not path.exists():
                with suppress(OSError):
                    os.replace(left, path)
            elif suffix in ("old", "tmp"):
                shutil.rmtree(left, ignore_errors=True)
    temporary, old = _temporary_path(path, "tmp"), _temporary_path(path, "old")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                with open(file, "rb") as handle:
                    os.fsync(handle.fileno())
        if path.exists():
            os.replace(path, old)
        os.replace(temporary, path)
    except Exception as error:
        raise _write_error(path, error) from error
    finally:
        if old.exists() and not path.exists():  # Ctrl-C may come between the two renames
            os.replace(old, path)
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


@contextmanager
def workspace(path: Path | None, hold: bool = True) -> Iterator[Path]:
    """Yield the folder `path`, created if missing and kept afterwards; for None, a temporary folder that is deleted.

    hold: lock the folder (see `held`), so that no other process works in it at the same time.
    """
    if path is None:
        with TemporaryDirectory(prefix="segue-") as spare:
            yield Path(spare)
        return
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SegueError(f"cannot make {path} ({error.strerror}): choose another place") from error
    with held(path) if hold else nullcontext():
        yield path


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Lock an existing folder. Whoever else asks for it gets a SegueError until the lock is released or this process
    dies. Does nothing where the file system or the platform has no locks."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise SegueError(f"another process is at work in {folder}: wait for it, or choose another place") \
                    from error
        yield
    finally:
        os.close(handle)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text, atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write a JSON value, indented, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: str | Path) -> Any:
    """Read a JSON file; a missing or broken one is a SegueError that names it."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SegueError(f"{path} is missing: is this a folder that segue wrote?") from error
    except (OSError, ValueError) as error:
        raise SegueError(f"{path} is not readable JSON ({error}): copy the folder again, or make it anew") from error


def write_picture(path: str | Path, draw: Callable[[Figure], None], size: tuple[float, float] = (8, 4.5)) -> None:
    """Save what `draw` draws on a figure of `size` inches as a PNG, atomically."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    draw(figure)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
