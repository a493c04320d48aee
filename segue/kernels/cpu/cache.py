"""Where compiled code is kept between runs: a folder of the user's, not beside the sources (they may be read-only)."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba


def folder() -> Path:
    """`$SEGUE_CACHE`, else `$XDG_CACHE_HOME/segue`, else `~/.cache/segue`; below it, one folder per state of the code.

    Numba notices changes in the file of the function that it cached, not in the files that this one calls into; the
    digest does.
    """
    home = os.environ.get("SEGUE_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "segue"
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    return Path(home) / f"kernels-{digest.hexdigest()[:12]}"


def compiled(function: Callable[..., Any]) -> Any:
    """`numba.njit` without the interpreter lock, cached on disk where that is possible."""
    before = numba.config.CACHE_DIR
    try:
        place = folder()
        place.mkdir(parents=True, exist_ok=True)
        if os.access(place, os.W_OK):
            numba.config.CACHE_DIR = str(place)
            return numba.njit(nogil=True, cache=True)(function)
    except (OSError, RuntimeError):
        pass  # no home, or a read-only one: compile anew in each process
    finally:
        numba.config.CACHE_DIR = before
    return numba.njit(nogil=True)(function)
