"""`update`: gained and forgotten, kept through a kill, and no half-written model."""

from __future__ import annotations

import json
import math
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import segue
from segue.errors import SegueError
from segue.files import held
from segue.training.loop import Run
from segue.verbs.fitted import Fitted
from segue.verbs.update import weights_hash

SMALL = {"width": 32, "depth": 1, "heads": 2, "context": 32, "rows": 8, "threads": 1, "precision": "float32"}


def words(letters: str, n: int = 400, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    return [" ".join("".join(draw.choice(letters) * 2 for _ in range(3)) for _ in range(8)) for _ in range(n)]


@pytest.fixture(scope="module")
def fitted_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fitted") / "model"
    # Without counts, which forget nothing.
    segue.fit(words("abc"), steps=150, out=folder, quiet=True, vocabulary=259, mix=False, **SMALL)
    return folder


@pytest.fixture
def folder(fitted_folder: Path, tmp_path: Path) -> Path:
    shutil.copytree(fitted_folder, tmp_path / "model")
    return tmp_path / "model"


def test_replay_forgets_less_than_naive(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "other")
    new = words("xyz", seed=1)
    naive = segue.load(folder).update(new, strategy="naive", steps=120, quiet=True, rate=0.01)
    replay = segue.load(tmp_path / "other").update(new, strategy="replay", steps=120, quiet=True, rate=0.01)
    for result in (naive, replay):
        assert result.matrix.gain("update 1") > 1.0
        assert result.matrix.names == ["first data", "update 1"]
    assert naive.matrix.forgetting("first data") > 2 * max(0.0, replay.matrix.forgetting("first data")) + 0.05
    reloaded = segue.load(folder)
    assert reloaded.report["updates"][0]["matrix"]["scores"] == naive.matrix.scores.tolist()
    assert list(reloaded.memory.exams) == ["first data", "update 1"]
    assert (folder / "update.png").exists() and not (folder / "updating").exists()
    report_of_third = reloaded.update(words("mno", seed=2), steps=5, quiet=True)
    assert report_of_third.matrix.names == ["first data", "update 1", "update 2"]
    with pytest.raises(SegueError, match="called 'first data' already"):
        reloaded.update(words("mno", seed=3), steps=5, quiet=True, name="first data")


def test_a_model_continues_by_its_new_weights(folder: Path) -> None:
    """The compiled engine, which copies weights, is made anew after an update."""
    model = segue.load(folder)
    before = model.continue_("aabb", n=12).text
    model.update(words("xyz", seed=1), strategy="naive", steps=60, quiet=True, rate=0.01)
    after = model.continue_("aabb", n=12).text
    assert after != before and after == segue.load(folder).continue_("aabb", n=12).text


class Killed(BaseException):
    pass


def kill_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """From now on, a run dies without any clean-up at this step."""
    advance = Run.advance

    def dying(self: Run) -> float:
        if self.step >= steps:
            raise Killed
        return advance(self)

    monkeypatch.setattr(Run, "advance", dying)


def test_a_killed_update_resumes_to_the_same_weights(folder: Path, tmp_path: Path,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(folder, tmp_path / "other")
    new = words("xyz", 100, seed=1)
    uninterrupted = segue.load(tmp_path / "other")
    uninterrupted.update(new, steps=12, quiet=True, save_seconds=0)
    before = weights_hash(segue.load(folder).model)
    for at in (0, 5, 9):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            kill_after(patch, at)
            segue.load(folder).update(new, steps=12, quiet=True, save_seconds=0)
        assert weights_hash(segue.load(folder).model) == before  # the model in the folder is untouched until the end
    with pytest.raises(SegueError, match="unfinished update"):
        segue.load(folder).update(new, steps=13, quiet=True)
    resumed = segue.load(folder)
    resumed.update(new, steps=12, quiet=True, save_seconds=0)
    assert weights_hash(resumed.model) == weights_hash(uninterrupted.model) == weights_hash(segue.load(folder).model)
    assert [p.tolist() for p in resumed.memory.replay.pieces] == [p.tolist()
                                                                  for p in uninterrupted.memory.replay.pieces]


def test_an_interrupted_move_of_a_model_is_finished(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    moves = 0
    replace = os.replace

    def dying(a: str, b: str) -> None:
        nonlocal moves
        if "updating" in str(a) and "updating" not in str(b):  # from the new model over the old
            moves += 1
            if moves == 3:
                raise Killed
        replace(a, b)

    model = segue.load(folder)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("segue.verbs.fitted.os.replace", dying)
        model.update(words("xyz", 60, seed=1), steps=3, quiet=True)
    assert (folder / "updating" / "complete.json").exists()
    with held(folder / "updating"), pytest.raises(SegueError, match="another process is at work"):
        segue.load(folder)
    result = segue.load(folder)
    assert weights_hash(result.model) == weights_hash(model.model)
    assert not (folder / "updating").exists()
    assert json.loads((folder / "report.json").read_text())["updates"]

def test_updates_are_reproducible(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "other")
    new = words("xyz", 60, seed=3)
    a, b = segue.load(folder), segue.load(tmp_path / "other")
    first, second = (model.update(new, steps=6, quiet=True) for model in (a, b))
    assert np.array_equal(first.matrix.scores, second.matrix.scores)
    assert weights_hash(a.model) == weights_hash(b.model)


def test_impossible_updates_are_refused(folder: Path) -> None:
    model: Fitted = segue.load(folder)
    with pytest.raises(SegueError, match="choose from naive, replay"):
        model.update(words("x"), strategy="magic")
    with pytest.raises(SegueError, match="minutes or steps"):
        model.update(words("x"), steps=3, minutes=1)
    with pytest.raises(SegueError, match="no old data"):
        model.memory = None
        model.update(words("xy"), steps=3, quiet=True)


@pytest.mark.parametrize("options, message", [
    ({"width": 8}, "cannot choose width: choose from rate"),
    ({"strategy": "lora + ewc"}, "lora learns an adapter and not the weights that ewc is about"),
    ({"strategy": "merge + o-lora"}, "o-lora learns an adapter and not the weights that merge is about")])
def test_conflicting_options_are_refused_before_learning(folder: Path, options: dict[str, object],
                                                         message: str) -> None:
    with pytest.raises(SegueError, match=message):
        segue.load(folder).update(words("def"), steps=2, quiet=True, **options)
    assert not (folder / "updating").exists()


def test_a_refused_update_does_not_block_the_next(folder: Path) -> None:
    for strategy, choices in (("lora:targets=nothing", {}), ("freeze:parts=nothing", {}), ("naive", {"rows": -1})):
        with pytest.raises(SegueError):
            segue.load(folder).update(words("def"), strategy=strategy, steps=2, quiet=True, **choices)
    assert segue.load(folder).update(words("def"), strategy="naive", steps=2, quiet=True).steps == 2


def test_models_that_read_both_ways_are_refused_an_update(tmp_path: Path) -> None:
    model = segue.fit(words("abc"), out=tmp_path / "model", steps=2, width=16, depth=1, objective="diffusion", seed=1,
                      quiet=True)
    with pytest.raises(SegueError, match="ewc asks for the next element, and this model reads both ways"):
        model.update(words("def"), strategy="ewc", steps=2, quiet=True)
    assert model.update(words("def"), strategy="replay", steps=2, quiet=True).steps == 2


def test_an_update_may_go_to_another_folder(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = weights_hash(segue.load(folder).model)
    ways: dict[str, Any] = {"strategy": "naive", "steps": 3, "quiet": True, "name": 2024}
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_after(patch, 1)
        segue.load(folder).update(words("def", 40), out=tmp_path / "new", save_seconds=0, **ways)
    resumed = segue.load(folder)
    assert "2024" in str(resumed.update(words("def", 40), out=tmp_path / "new", save_seconds=0, **ways))
    assert weights_hash(segue.load(folder).model) == before and not (folder / "updating").exists()
    assert weights_hash(segue.load(tmp_path / "new").model) == weights_hash(resumed.model) != before
    with pytest.raises(SegueError, match="no empty folder"):
        segue.load(folder).update(words("def", 40), out=tmp_path / "new", **ways)


def test_an_update_learns_by_the_objective_of_the_fit() -> None:
    learned = []
    for objective in ("unlikelihood", "next"):
        model = segue.fit(words("abc", 40), steps=2, quiet=True, mix=False, objective="unlikelihood", **SMALL)
        model.report["plan"]["objective"] = objective
        model.update(words("def", 40), strategy="naive", steps=2, quiet=True)
        learned.append(weights_hash(model.model))
    assert learned[0] != learned[1]


def test_an_update_on_few_data_stops_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random letters, which can only be memorised."""
    monkeypatch.setattr("segue.verbs.update.steps_before", lambda *_: 200)
    monkeypatch.setattr("segue.training.loop.PACE_TOLERANCE", math.inf)
    draw = random.Random(0)
    data = ["".join(draw.choices("abcdefgh", k=60)) for _ in range(24)]
    model = segue.fit(data, steps=60, quiet=True, vocabulary=259, mix=False, **SMALL)
    report = model.update(data, minutes=0.1, rate=0.02, quiet=True)
    assert report.matrix.gain("update 1") > -0.02
    assert "of 200 steps: more did no better" in report.notes[-1]
    assert model.update(data, minutes=0.1, rate=0.02, patience=0, quiet=True).matrix.gain("update 2") < -0.05
