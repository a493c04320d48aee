"""Writing files so that a kill or a full disk never leaves half of one."""

from __future__ import annotations

import glob
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


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it replaces `path`, on any failure it is removed.

    The data are on disk (fsync) before the rename, so a power cut leaves the old file or the new one, whole. Where a
    pipe or a device has that name they go into it; where a link has it, to what it names.
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
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        mode = temporary.stat().st_mode           # as the user's umask has it; some writers give the owner alone a file
        yield temporary
        with open(temporary, "rb") as handle:
            os.fchmod(handle.fileno(), mode)
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except Exception as error:
        raise _refused(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _refused(path: Path, error: Exception) -> Exception:
    """What to say where a place could not be written; another error as it is. safetensors has its own for a full
    disk."""
    if not isinstance(error, OSError) and type(error).__name__ != "SafetensorError":
        return error
    return SegueError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}; free some space or choose "
                      "another place")


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on success it takes the place of `path`, on any failure it is removed.

    What a killed process left behind under such a temporary name is removed on the next write, or where it is all that
    there is of the old folder, put back.
    """
    path = Path(path)
    for left in path.parent.glob(f".{glob.escape(path.name)}.*"):
        owner, sort = left.name.split(".")[-2:]
        if owner.isdigit() and Path("/proc").exists() and not Path(f"/proc/{owner}").exists():
            if sort == "old" and not path.exists():
                with suppress(OSError):
                    os.replace(left, path)
            elif sort in ("old", "tmp"):
                shutil.rmtree(left, ignore_errors=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    old = path.with_name(f".{path.name}.{os.getpid()}.old")
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
        raise _refused(path, error) from error
    finally:
        if old.exists() and not path.exists():  # also where ctrl-C came between the two renames
            os.replace(old, path)
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


@contextmanager
def workspace(path: Path | None, hold: bool = True) -> Iterator[Path]:
    """Yield the folder `path`, made where it is not there, and kept; where it is None, a temporary one that goes
    afterwards. hold: another process that would work in it meanwhile is refused."""
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
    """Hold a folder that is there. Whoever asks for it too gets a SegueError, until this process lets go, or is killed.
    Where the file system knows no locks nothing is held."""
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
    """What `draw` draws into a figure of `size` inches, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    draw(figure)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
