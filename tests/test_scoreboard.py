"""The scoreboard of mixers, at a tiny scale."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import segue
from segue.cli import main
from segue.errors import SegueError
from segue.mixers import MIXERS
from segue.models import Stack
from segue.verbs import scoreboard as module
from segue.verbs.scoreboard import TASK_SETTINGS, Score, Scoreboard, board_mixers, config_of_size

ROOT = Path(__file__).resolve().parents[1]
SETTING: dict[str, Any] = {"mixers": ["attention", "deltanet:signed"], "parameters": 9_000, "length": 10, "rows": 4}
DONE = {"accuracy": 0.0, "longer": 0.0, "steps": 2, "parameters": 1, "width": 8, "seconds": 0.0}


@pytest.fixture(autouse=True)
def one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "cores", lambda: 1)


@pytest.mark.parametrize("mixer", board_mixers())
def test_every_causal_mixer_competes_at_equal_size(mixer: str) -> None:
    config = config_of_size(mixer, 40, 40_000)
    size = sum(p.numel() for p in Stack(config).parameters())
    assert 0.98 * 40_000 <= size <= 40_000 and config.mixers == [mixer] * 2


def test_only_causal_mixers_are_on_the_board() -> None:
    assert {name.partition(":")[0] for name in board_mixers()} == {
        name for name, mixer in MIXERS.items() if mixer.causal and not mixer.needs_whole_prompt}


@pytest.mark.parametrize("mixer", board_mixers())
def test_every_mixer_runs(mixer: str) -> None:
    results = module.train_cell(mixer, "mqar", 8, 1, 9_000, 2, 0)
    assert 0 <= results["accuracy"] <= 1 and 0 <= results["longer"] <= 1 and results["steps"] == 1


@pytest.mark.slow
def test_every_mixer_runs_on_every_task() -> None:
    board = module.scoreboard(steps=2, quiet=True)
    assert len(board.scores) == len(board_mixers()) * len(TASK_SETTINGS)
    assert not [score for score in board.scores if score.failure]
    sizes = [score.parameters for score in board.scores]
    assert max(sizes) <= 1.1 * min(sizes)


def test_an_interrupted_board_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = segue.compare(tasks="parity,copy", out=tmp_path, steps=2, quiet=True, **SETTING)
    assert isinstance(first, Scoreboard) and len(first.scores) == 4
    assert all(score.accuracy is not None and score.longer is not None for score in first.scores)
    assert json.loads((tmp_path / "scoreboard.json").read_text()) == first.to_dict()
    assert (tmp_path / "scoreboard.png").read_bytes().startswith(b"\x89PNG")
    trained: list[str] = []
    monkeypatch.setattr(module, "train_cell", lambda mixer, task, *_: trained.append(task) or DONE)
    second = segue.compare(tasks="parity,copy,needle", out=tmp_path, steps=2, quiet=True, **SETTING)
    assert isinstance(second, Scoreboard) and trained == ["needle", "needle"]
    assert [s for s in second.scores if s.task != "needle"] == first.scores


def test_failed_cells_are_reported_and_retried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                               capsys: pytest.CaptureFixture[str]) -> None:
    def broken(mixer: str, task: str, *_: Any) -> dict[str, Any]:
        if (mixer, task) == ("attention", "copy"):
            raise RuntimeError("no\nluck")
        return DONE

    monkeypatch.setattr(module, "train_cell", broken)
    board = module.scoreboard("parity,copy", out=tmp_path, steps=1, **SETTING)
    assert "4 of 4 cells to do: about" in capsys.readouterr().err
    score = board.score("attention", "copy")
    assert (score.failure, score.accuracy) == ("RuntimeError: no luck", None)
    assert [s.failure for s in board.scores if s != score] == [""] * 3
    Console(width=200).print(board)
    assert "attention on copy failed: RuntimeError: no luck" in capsys.readouterr().out
    monkeypatch.setattr(module, "train_cell", lambda *_: DONE)
    assert not module.scoreboard("parity,copy", out=tmp_path, steps=1, **SETTING).score("attention", "copy").failure
    assert "1 of 4 cells to do: about" in capsys.readouterr().err


def test_training_ends_when_the_task_is_solved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SOLVED", 0.0)
    assert module.train_cell("gru", "parity", 8, 50, 9_000, 4, 0)["steps"] == 20


@pytest.mark.slow
@pytest.mark.parametrize(("mixer", "task"), [("attention", "mqar"), ("deltanet:signed", "parity"), ("slstm", "parity"),
                                             ("mamba", "selective-copy"), ("hyena", "needle")])
def test_mixers_learn_their_known_tasks(mixer: str, task: str) -> None:
    results = module.train_cell(mixer, task, *TASK_SETTINGS[task], module.PARAMETERS, module.ROWS, 0)
    assert results["accuracy"] >= 0.9


def test_mixers_are_ranked_above_a_guess() -> None:
    scores = [Score("a", "parity", 0.75, 0.25), Score("b", "parity", 0.7, 0.7), Score("c", "parity", failure="x")]
    board = Scoreboard(scores, {"parity": 16}, {"parity": 1}, {"parity": 0.5}, 4, 0, "")
    assert board.mixers == ["b", "a", "c"]
    assert (board.above_guess("a", "parity", "accuracy"), board.above_guess("a", "parity", "longer")) == (0.5, 0.0)


def test_minutes_become_equal_steps_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "cores", lambda: 2)
    monkeypatch.setattr(module, "measure_speed", lambda mixer, *_: {"seconds": 0.25 if mixer == "attention" else 0.5})
    requested_steps: list[int] = []
    monkeypatch.setattr(module, "train_cell", lambda mixer, task, length, steps,
                        *_: requested_steps.append(steps) or DONE)
    compute = module.Cells.compute
    monkeypatch.setattr(module.Cells, "compute", lambda self, expected, workers: compute(self, expected, 1))
    board = module.scoreboard("parity,s5-words", minutes=1, quiet=True, **SETTING)
    assert board.steps == {"parity": 60, "s5-words": 100} and requested_steps == [60, 100] * 2


def test_the_page_of_the_scoreboard_is_current() -> None:
    page = runpy.run_path(str(ROOT / "tools" / "scoreboard.py"))["page"]()
    assert page == (ROOT / "docs" / "scoreboard.md").read_text(encoding="utf-8"), "run python tools/scoreboard.py"


def test_the_scoreboard_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["compare", "--tasks", "parity", "--json", str(tmp_path / "board.json"), "--set", "steps=1", "--set",
              "mixers=gru", "--set", "parameters=9000", "--set", "length=8"])
    assert end.value.code == 0 and "gru" in capsys.readouterr().out
    assert json.loads((tmp_path / "board.json").read_text())["scores"][0]["mixer"] == "gru"


def test_bad_comparisons_are_refused() -> None:
    for options, words in (({}, "sequences or tasks"), ({"tasks": "chess"}, "'chess' is unknown"),
                           ({"tasks": "parity", "mixers": ["bidirectional"]}, "no place on the board"),
                           ({"tasks": "parity", "minutes": 0}, "minutes"), ({"tasks": "parity", "rows": "x"}, "rows"),
                           ({"data": [["a"]], "length": 3}, "goes with tasks")):
        with pytest.raises(SegueError, match=words):
            segue.compare(quiet=True, **options)
