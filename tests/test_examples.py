"""The examples run."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def folders(tmp_path: Path) -> tuple[str, str]:
    for name, animal in (("old", "cat"), ("new", "dog")):
        (tmp_path / name).mkdir()
        for i in range(12):
            (tmp_path / name / f"{i}.txt").write_text(f"{animal} number {i} sat on the mat and slept\n" * 20)
    return str(tmp_path / "old"), str(tmp_path / "new")


def test_learn_and_continue(folders: tuple[str, str]) -> None:
    assert example("learn_and_continue").main(folders[0], "cat number", steps=3)


def test_keep_learning(folders: tuple[str, str]) -> None:
    assert set(example("keep_learning").main(*folders, steps=3)) == {"naive", "replay"}


def test_which_mixer(folders: tuple[str, str]) -> None:
    module = example("which_mixer")
    scores = module.main(folders[0], steps=2)
    assert set(scores) == set(module.MIXERS) and all(bits > 0 for bits in scores.values())
