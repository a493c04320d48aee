"""The examples run."""

from __future__ import annotations

from pathlib import Path

import pytest
from scripts import script


@pytest.fixture
def folders(tmp_path: Path) -> tuple[str, str]:
    for name, animal in (("old", "cat"), ("new", "dog")):
        (tmp_path / name).mkdir()
        for i in range(12):
            (tmp_path / name / f"{i}.txt").write_text(f"{animal} number {i} sat on the mat and slept\n" * 20)
    return str(tmp_path / "old"), str(tmp_path / "new")


def test_learn_and_continue(folders: tuple[str, str]) -> None:
    assert script("examples/learn_and_continue.py").main(folders[0], "cat number", steps=3)


def test_keep_learning(folders: tuple[str, str]) -> None:
    assert set(script("examples/keep_learning.py").main(*folders, steps=3)) == {"naive", "replay"}


def test_which_mixer(folders: tuple[str, str]) -> None:
    module = script("examples/which_mixer.py")
    scores = module.main(folders[0], steps=2, mix=False)
    assert set(scores) == set(module.MIXERS) and all(bits > 0 for bits in scores.values())


def test_sprite_world(tmp_path: Path) -> None:
    from segue.papers.gamegen_x import SMALL

    film = script("examples/sprite_world.py").main(str(tmp_path / "film.gif"), SMALL)
    assert film.shape == (13, 24, 24, 3) and (tmp_path / "film.gif").read_bytes().startswith(b"GIF89a")
