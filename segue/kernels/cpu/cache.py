"""The on-disk cache of compiled code: a folder of the user's, not next to the sources (which may be read-only).

Compiling the engine takes many seconds, loading it half a second. `compile_in_background` compiles it in another
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
    configured = os.environ.get("SEGUE_CACHE")
    for locate in (lambda: Path(configured),) if configured else (_users, _private_folder):
        with suppress(OSError, RuntimeError):  # no home, or one that is read-only
            directory = locate() / f"kernels-{digest.hexdigest()[:12]}"
            directory.mkdir(parents=True, exist_ok=True)
            if os.access(directory, os.W_OK):
                return directory
    return None


def _users() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "segue")


def _private_folder() -> Path:
    """A temporary folder for use without a home folder, as in containers; no other user may write to it, since the
    compiled code is run."""
    directory = Path(gettempdir(), f"segue-{os.getuid()}")
    directory.mkdir(mode=0o700, exist_ok=True)
    status = directory.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise PermissionError(directory)
    return directory


def compile_cached(function: Callable[..., Any], **options: Any) -> Any:
    """`numba.njit` without the interpreter lock, cached on disk where possible."""
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
    """Compile a function of `count` integers now, and make it callable by name from other compiled code, which then
    links to it; called in the usual way it would be inlined and compiled again with every caller."""
    signature, place = types.void(*[types.int64] * count), folder()
    with nullcontext() if place is None else _cached(place):
        NAMED[name] = numba.cfunc(signature, cache=place is not None, **options)(function)
    llvm.add_symbol(name, NAMED[name].address)
    return types.ExternalFunction(name, signature)


def is_warm() -> bool:
    """Whether the engine's first use loads it from the cache rather than compiling it."""
    place = folder()
    return place is not None and (place / "ready").exists()


def mark_compiled() -> None:
    """Record that the engine has been compiled."""
    place = folder()
    if place is not None:
        (place / "ready").touch()


def compile_in_background() -> bool:
    """Compile the engine in a separate process, which outlives this one; False where that is impossible.

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
