"""`speed_up`: heads trained, drafters measured, the fastest kept with the model, and no text changed."""

from __future__ import annotations

import json
import random
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import segue
from segue.cli import main
from segue.data import of
from segue.decoding.draft import DRAFTERS
from segue.decoding.draft.heads import HeadsDraft, build_tree
from segue.errors import SegueError
from segue.models.heads import DraftHeads
from segue.training.batches import Batches
from segue.verbs.speed_up import TOKENS_PER_STEP, HeadsTrainingData, choose_tree, sample_prompts

SMALL = {"width": 32, "depth": 1, "heads": 2, "context": 32, "rows": 8, "threads": 1, "precision": "float32"}
QUICK: dict[str, Any] = {"steps": 12, "prompts": 2, "n": 12, "nodes": 8, "quiet": True}


def words(n: int = 200) -> list[str]:
    draw = random.Random(0)
    return [" ".join("".join(draw.choice("abc") * 2 for _ in range(3)) for _ in range(8)) for _ in range(n)]


@pytest.fixture(scope="module", params=["attention", "gru"])
def fitted_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fitted") / "model"
    segue.fit(words(), steps=20, out=folder, quiet=True, vocabulary=259, mixer=request.param,
              mix=request.param == "gru", **SMALL)
    return folder


@pytest.fixture
def folder(fitted_folder: Path, tmp_path: Path) -> Path:
    shutil.copytree(fitted_folder, tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("sequences", [["a", "b", "c"] * 20, ["ab", "bac"] * 20])
def test_prompts_of_single_elements(sequences: list[str]) -> None:
    """Prompts have a single element there, before which no head has read anything."""
    model = segue.fit(sequences, steps=4, quiet=True, vocabulary=259, mix=False, **SMALL)
    report = model.speed_up(sequences, **QUICK)
    assert report.drafters["heads"].texts == 4


def test_the_fastest_draft_is_saved_and_changes_no_text(folder: Path) -> None:
    model = segue.load(folder)
    undrafted = model.continue_("aabb", n=20, draft="none")
    report = model.speed_up(words(), sort="hydra++", **QUICK)
    names = {"none", "heads", *DRAFTERS} - {"depth"}  # it has one layer
    names |= {"counts"} if model.mixture is not None else set()
    assert set(report.drafters) == names
    assert report.best == max(names, key=lambda name: report.drafters[name].tokens_per_second)
    for row in report.drafters.values():
        assert row.texts == 4 and row.same >= 3  # float32: a near-tie may part one
    assert report.drafters["none"].tokens_per_pass == 1
    assert report.heads["steps"] == 12 and json.loads(json.dumps(report.to_dict()))["best"] == report.best

    reloaded = segue.load(folder)
    assert reloaded.best_draft == report.best and reloaded.heads.paths == model.heads.paths
    for draft in (None, "heads"):
        assert reloaded.continue_("aabb", n=20, draft=draft).text == undrafted.text
    reloaded.best_draft = "heads"
    reloaded.save_drafts(folder)
    answer = segue.load(folder).continue_("aabb", n=20)
    assert (answer.draft, answer.text) == ("heads", undrafted.text)
    # An update carries them on.
    reloaded.update(words()[:40], steps=2, quiet=True)
    assert segue.load(folder).best_draft == "heads"


def test_the_command_respects_its_time_limit(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "words.txt").write_text("\n".join(words()))
    with pytest.raises(SystemExit) as end:
        main(["speed-up", str(folder), str(tmp_path / "words.txt"), "--minutes", "0.02"])
    output = capsys.readouterr().out
    assert end.value.code == 0 and "tokens a pass" in output and "hydra" in output
    assert f"continue now drafts with: {segue.load(folder).best_draft}" in output


def test_models_without_heads_are_measured(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(base: Any, **choices: Any) -> DraftHeads:
        raise SegueError("not this one")

    monkeypatch.setattr(DraftHeads, "for_base", refuse)
    report = segue.load(folder).speed_up(words(), **QUICK)
    assert report.without == "no heads: not this one" and "heads" not in report.drafters and not report.heads
    assert segue.load(folder).heads is None and segue.load(folder).best_draft == report.best
    assert not (folder / "drafts" / "heads.safetensors").exists()


def test_bad_requests_are_refused(folder: Path) -> None:
    model = segue.load(folder)
    with pytest.raises(SegueError, match="speed-up"):
        model.continue_("a", n=2, draft="heads")
    with pytest.raises(SegueError, match="medusa, hydra"):
        model.speed_up(words(), sort="cerberus")
    with pytest.raises(SegueError, match="more than 0"):
        model.speed_up(words(), 0.0)
    with pytest.raises(SegueError, match="same kind"):
        model.speed_up(of([["a", "b"], ["c"]] * 9))
    model.speed_up(words(), sort="medusa", **QUICK)
    path = folder / "drafts" / "heads.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:100])
    for name in ("a damaged file", "no file"):
        with pytest.raises(SegueError, match="speed-up"):
            print(name, segue.load(folder))
        path.unlink(missing_ok=True)
    path.write_bytes(content)
    (folder / "drafts" / "best.json").write_text('{"draft": "magic"}')
    with pytest.raises(SegueError, match="speed-up"):
        segue.load(folder)


def test_heads_of_another_model_are_refused(folder: Path, tmp_path: Path) -> None:
    model = segue.load(folder)
    model.speed_up(words(), sort="hydra", **QUICK)
    other = segue.fit(words(), steps=1, quiet=True, mix=False, vocabulary=259, **{**SMALL, "width": 64})
    with pytest.raises(SegueError, match="another shape"):
        HeadsDraft.load(folder / "drafts" / "heads.safetensors", other.model)


def test_heads_learn_from_data_and_generated_text(folder: Path) -> None:
    fitted = segue.load(folder)
    store = of(words()).encode(fitted.codec)
    readings = HeadsTrainingData(fitted, fitted.model, store, rows=32 * (TOKENS_PER_STEP // fitted.context), seed=3)
    text, rows_of_each_kind = readings.data, 8 * readings.rows
    assert len(text.tokens) == 4 * rows_of_each_kind
    batches = Batches(store, fitted.context, rows_of_each_kind, 3)
    for turn, place in ((0, 0), (1, 2 * rows_of_each_kind)):
        assert torch.equal(text.tokens[place : place + rows_of_each_kind], batches(turn).tokens)
    batches.close()
    with torch.inference_mode():
        output = fitted.model(text.tokens, text.layout)
    torch.testing.assert_close(text.channels["hidden"].float(), output.hidden, atol=0.1, rtol=0.1)
    after_prime = torch.arange(fitted.context) >= fitted.context // 4  # any prime
    greedy = (text.targets >= 0) & after_prime & (torch.arange(len(text.tokens))[:, None] // rows_of_each_kind == 1)
    assert greedy.sum() > 200 and (output.logits.argmax(-1) == text.targets)[greedy].float().mean() > 0.99
    assert text.starts is None or not text.starts[rows_of_each_kind : 2 * rows_of_each_kind].any()
    trained_rows = torch.cat([readings(step).tokens for step in range(len(text.tokens) // readings.rows)])
    assert sorted(map(tuple, trained_rows.tolist())) == sorted(map(tuple, text.tokens.tolist()))  # all of them once


def test_the_tree_size_is_the_fastest(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fitted = segue.load(folder)
    heads = DraftHeads.for_base(fitted.model, heads=3)
    chances = np.array([[0.6, 0.3], [0.5, 0.2], [0.4, 0.1]])

    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

    class Slow:
        """A pass takes 20 ms, and so many seconds more for each node."""

        def __init__(self, seconds: float) -> None:
            self.seconds = seconds

        def __getattr__(self, name: str) -> Any:
            return getattr(fitted.model, name)

        def extend(self, tokens: Any, *rest: Any) -> Any:
            clock[0] += 0.02 + self.seconds * tokens.shape[1]
            return fitted.model.extend(tokens, *rest)

    assert choose_tree(heads, chances, Slow(0.0), [1, 2, 3], 8).paths == build_tree(chances, 8)
    assert choose_tree(heads, chances, Slow(0.05), [1, 2, 3], 8).paths == build_tree(chances, 1)


def test_prompts_are_cut_inside_documents() -> None:
    store = of(["abc", "d", "efghijk" * 20]).encode(of(["abc"]).codec())
    offsets = set(store.offsets.tolist())
    tokens = store.tokens.tolist()
    for piece in sample_prompts(store, 40, 10):
        assert 1 <= len(piece) <= 10
        places = [end for end in range(len(piece), len(tokens)) if tokens[end - len(piece) : end] == piece]
        assert any(not offsets & set(range(end - len(piece) + 1, end + 1)) for end in places)
