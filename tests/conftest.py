"""Shared fixtures. `shared_data(NAME)` gives a folder of real data beside the checkout, or skips with the reason."""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

if shutil.which("nvidia-smi") is None:  # Triton's own functions are interpreted only if that is told before torch loads
    os.environ.setdefault("TRITON_INTERPRET", "1")

settings.register_profile("untimed", deadline=None)  # a busy machine is no error
settings.load_profile("untimed")

os.fsync = lambda handle: None  # no power is cut here, and waiting for a disk takes a twentieth of all time


def pytest_collection_finish() -> None:
    """What has been imported stays: the garbage collector need not go through all of it again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)  # objects; collections


DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture
def shared_data() -> Callable[[str], Path]:
    def folder(name: str) -> Path:
        path = DATA / name
        if not path.is_dir():
            pytest.skip(f"real data '{name}' is not beside this checkout")
        return path

    return folder
