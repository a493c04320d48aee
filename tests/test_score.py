"""`score`: generated sequences beside real ones, of any kind, from files and from memory."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import segue
from segue import SegueError, cli
from segue.kinds import KINDS
from segue.verbs.score import score


def texts(seed: int, n: int = 60) -> list[str]:
    draw = np.random.default_rng(seed)
    return [" ".join(f"w{i}" for i in draw.integers(50, size=12)) for _ in range(n)]


def test_real_ones_score_as_real_and_loops_do_not() -> None:
    good = {row.metric: row for row in score(texts(0), texts(1, 120), texts(2), quiet=True).rows}
    bad = {row.metric: row for row in score(["w1 w2 w3 w4 " * 3] * 60, texts(1, 120), texts(2), quiet=True).rows}
    assert good.keys() == bad.keys() and "BLEU" not in good
    assert {"distinct-1", "rep-4", "self-BLEU", "novelty", "MAUVE", "Frechet distance"} <= good.keys()
    assert good["rep-4"].value == good["rep-4"].real == 0 and bad["rep-4"].value > 0.5
    assert bad["Frechet distance"].low > good["Frechet distance"].high
    real = good["Frechet distance"].real
    assert real is not None and good["Frechet distance"].low < real < good["Frechet distance"].high
    assert good["distinct-1"].better == "↑" and good["entropy"].better == "as real"


def test_pairs_copies_and_notes() -> None:
    real = texts(1, 30)
    result = score(real, real, real, pairs=True, quiet=True)
    rows = {row.metric: row for row in result.rows}
    assert rows["BLEU"].value == pytest.approx(100) and rows["exact match"].value == 1 and rows["novelty"].value == 0
    assert rows["BLEU"].real is None and rows["MAUVE"].real is None and any("60 real" in note for note in result.notes)
    mixed = {row.metric: row for row in score(real[::-1], real, pairs=True, most=20, quiet=True).rows}
    assert mixed["BLEU"].value < 60 and "novelty" not in mixed


@pytest.mark.parametrize(("kind", "letters"), [("dna", "ACGT"), ("protein", "ACDEFGHIKLMNPQRSTVWY")])
def test_sequences_of_letters(kind: str, letters: str, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    rows = {name: ["".join(draw.choice(list(letters), 40)) for _ in range(n)] for name, n in (("a", 20), ("b", 40))}
    for name, some in rows.items():
        (tmp_path / f"{name}.fa").write_text("".join(f">{i}\n{row}\n" for i, row in enumerate(some)))
    result = score(tmp_path / "a.fa", tmp_path / "b.fa", kind=kind, quiet=True)
    assert result.samples == 20 and kind in result.unit and KINDS[kind]
    assert all(row.low <= row.value <= row.high for row in result.rows)


def test_by_the_vectors_of_a_model_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, seed in (("made", 0), ("real", 1)):
        (tmp_path / f"{name}.txt").write_text("\n".join(texts(seed, 24)))
    segue.fit(tmp_path / "real.txt", out=tmp_path / "model", steps=2, mixer="gru", width=16, depth=1, quiet=True,
              mix=False)
    for more in ([], ["--model", str(tmp_path / "model")]):
        with pytest.raises(SystemExit) as end:
            cli.main(["score", str(tmp_path / "made.txt"), "--reference", str(tmp_path / "real.txt"), *more, "--json",
                      str(tmp_path / "scores.json")])
        assert end.value.code == 0 and "Frechet distance" in capsys.readouterr().out
        saved = json.loads((tmp_path / "scores.json").read_text())
        assert saved["samples"] == 24 and saved["features"] == ("the model's vectors" if more else "hashed n-grams")


@pytest.mark.parametrize(("made", "real", "options", "message"), [
    (["one"], ["one line"], {}, "too few"), (["a", "b"], ["a", "b", "c"], {"pairs": True}, "no pairs"),
    (["a", "b"], ["a", "b"], {}, "give 3 or more"), (["a", "b"], ["a", "b"], {"most": 1}, "most=3")])
def test_what_cannot_be_scored_is_told(made: list[str], real: list[str], options: dict[str, int], message: str) -> None:
    with pytest.raises(SegueError, match=message):
        score(made, real, quiet=True, **options)  # type: ignore[arg-type]


def test_where_one_side_is_one_text_both_are_cut_into_lines() -> None:
    made, real = "\n".join(texts(0, 9)), ["\n".join(texts(i, 9)) for i in (1, 2)]
    assert score([made], real, quiet=True).samples == 9
    rows = {row.metric: row for row in score([made], [made], pairs=True, quiet=True).rows}
    assert rows["exact match"].value == 1
