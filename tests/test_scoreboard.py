"""The scoreboard of mixers, at a tiny scale."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import segue
from segue.cli import main
from segue.errors import SegueError
from segue.mixers import MIXERS
from segue.models import Stack
from segue.verbs import scoreboard as module
from segue.verbs.scoreboard import Scoreboard, contestants, equal_size

SETTING = {"mixers": ["attention", "deltanet:signed"], "parameters": 9_000, "length": 10, "rows": 4}


def test_all_causal_mixers_compete_at_equal_size() -> None:
    assert {name.partition(":")[0] for name in contestants()} == {
        name for name, mixer in MIXERS.items() if mixer.causal and not mixer.needs_whole_prompt}
    for mixer in ("attention", "gru", "mamba:signed", "deltanet:products"):
        config = equal_size(mixer, 40, 60_000)
        size = sum(p.numel() for p in Stack(config).parameters())
        assert 0.99 * 60_000 <= size <= 60_000 and config.mixers == [mixer] * 2


def test_board_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "cores", lambda: 1)
    first = segue.compare(tasks="parity,copy", out=tmp_path, steps=2, quiet=True, **SETTING)
    assert isinstance(first, Scoreboard) and len(first.scores) == 4
    assert all(0 <= score.accuracy <= 1 and 0 <= score.longer <= 1 for score in first.scores)
    assert json.loads((tmp_path / "scoreboard.json").read_text()) == first.to_dict()
    assert (tmp_path / "scoreboard.png").read_bytes().startswith(b"\x89PNG")
    trained: list[str] = []
    monkeypatch.setattr(module, "train", lambda mixer, task, *_: trained.append(task) or {
        "accuracy": 0.0, "longer": 0.0, "parameters": 1, "seconds": 0.0})
    second = segue.compare(tasks="parity,copy,needle", out=tmp_path, steps=2, quiet=True, **SETTING)
    assert isinstance(second, Scoreboard) and trained == ["needle", "needle"]
    assert [s for s in second.scores if s.task != "needle"] == first.scores


def test_minutes_become_steps_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "cores", lambda: 2)
    monkeypatch.setattr(module, "seconds_per_step", lambda mixer, *_: 0.25 if mixer == "attention" else 0.5)
    monkeypatch.setattr(module.Cells, "compute", lambda self, wanted, workers: [
        make() if name.startswith("steps") else {"accuracy": 0.5, "longer": 0.5, "parameters": 1, "seconds": 0.0}
        for name, make in wanted.items()])
    assert module.scoreboard("parity,copy", minutes=1, quiet=True, **SETTING).steps == 80  # type: ignore[arg-type]


def test_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                               capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(module, "cores", lambda: 1)
    with pytest.raises(SystemExit) as end:
        main(["compare", "--tasks", "parity", "--json", str(tmp_path / "board.json"), "--set", "steps=1", "--set",
              'mixers=["gru"]', "--set", "parameters=9000", "--set", "length=8"])
    assert end.value.code == 0 and "gru" in capsys.readouterr().out
    assert json.loads((tmp_path / "board.json").read_text())["scores"][0]["mixer"] == "gru"


def test_what_cannot_be_compared_says_so() -> None:
    for asked, words in (({}, "sequences or tasks"), ({"tasks": "chess"}, "'chess' is unknown"),
                         ({"tasks": "parity", "mixers": ["bidirectional"]}, "no place on the board"),
                         ({"tasks": "parity", "minutes": 0}, "minutes"),
                         ({"data": [["a"]], "length": 3}, "goes with tasks")):
        with pytest.raises(SegueError, match=words):
            segue.compare(quiet=True, **asked)
