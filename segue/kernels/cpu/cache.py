"""Where compiled code is kept between runs: a folder of the user's, not beside the sources (they may be read-only).

Compiling the engine takes many seconds, loading it half of one. `compile_in_background` has it compiled by another
process, so that neither the first prompt nor the interpreter lock waits for it; `is_warm` says whether that is done.
"""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import cache
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import llvmlite.binding as llvm
import numba
from numba import types

STALE = 300  # seconds after which a build that left no result is taken for dead


@cache
def folder() -> Path | None:
    """`$SEGUE_CACHE`, else `$XDG_CACHE_HOME/segue` or `~/.cache/segue`, else a folder of the user's own for temporary
    files; below it, one folder per state and place of the code, interpreter and processor. None: there is no place to
    write.

    Numba itself notices changes in the file of the function that it cached, not in the files that this one calls into;
    and it keeps apart what lies in different places, so that one copy of the code is not warm because another is.
    """
    digest = hashlib.sha256(f"{Path(__file__).parent} {sys.version} {numba.__version__} {llvm.get_host_cpu_name()} "
                            f"{llvm.get_host_cpu_features().flatten()}".encode())
    for source in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(source.read_bytes())
    asked = os.environ.get("SEGUE_CACHE")
    for find in (lambda: Path(asked),) if asked else (_users, _private_folder):
        with suppress(OSError, RuntimeError):  # no home, or one that is read-only
            place = find() / f"kernels-{digest.hexdigest()[:12]}"
            place.mkdir(parents=True, exist_ok=True)
            if os.access(place, os.W_OK):
                return place
    return None


def _users() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "segue")


def _private_folder() -> Path:
    """Where there is no home, as in containers: a folder for temporary files that no other user can write to, since
    compiled code is run."""
    place = Path(gettempdir(), f"segue-{os.getuid()}")
    place.mkdir(mode=0o700, exist_ok=True)
    found = place.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise PermissionError(place)
    return place


def compile_cached(function: Callable[..., Any], **options: Any) -> Any:
    """`numba.njit` without the interpreter lock, cached on disk where that is possible."""
    place, options = folder(), {"nogil": True, **options}
    if place is None:
        return numba.njit(**options)(function)
    with _cached(place):
        return numba.njit(cache=True, **options)(function)


@contextmanager
def _cached(place: Path) -> Iterator[None]:
    before, numba.config.CACHE_DIR = numba.config.CACHE_DIR, str(place)
    try:
        yield
    finally:
        numba.config.CACHE_DIR = before


NAMED: dict[str, Any] = {}


def compile_named(name: str, function: Callable[..., None], count: int, **options: Any) -> Any:
    """A function of `count` integers that is compiled here and now, and that other compiled code calls by its name:
    whatever else it calls becomes part of it, and is compiled with it again each time."""
    signature, place = types.void(*[types.int64] * count), folder()
    with nullcontext() if place is None else _cached(place):
        NAMED[name] = numba.cfunc(signature, cache=place is not None, **options)(function)
    llvm.add_symbol(name, NAMED[name].address)
    return types.ExternalFunction(name, signature)


def is_warm() -> bool:
    """Whether the engine is loaded rather than compiled when it is first used."""
    place = folder()
    return place is not None and (place / "ready").exists()


def mark_compiled() -> None:
    """Say that the engine has been compiled here."""
    place = folder()
    if place is not None:
        (place / "ready").touch()


def compile_in_background() -> bool:
    """See that the engine gets compiled, by a process of its own that outlives this one; False where that cannot be.

    At most one such process runs at a time.
    """
    place = folder()
    if place is None:
        return False
    if is_warm():
        return True
    building = place / "building"
    try:
        if building.exists() and time.time() - building.stat().st_mtime > STALE:
            building.unlink()
        building.open("x").close()
    except FileExistsError:
        return True
    except OSError:
        return False
    code = "import os; os.nice(5); from segue.kernels.cpu import engine; engine.load_engine()"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    try:
        subprocess.Popen([sys.executable, "-c", code], env=environment, start_new_session=True,
                         stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    except OSError:
        return False
    return True
