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


def test_real_texts_score_as_real_and_loops_do_not() -> None:
    rows_of_real = {row.metric: row for row in score(texts(0), texts(1, 120), texts(2), quiet=True).rows}
    rows_of_loops = {row.metric: row for row in score(["w1 w2 w3 w4 " * 3] * 60, texts(1, 120), texts(2),
                                                      quiet=True).rows}
    assert rows_of_real.keys() == rows_of_loops.keys() and "BLEU" not in rows_of_real
    assert {"distinct-1", "rep-4", "self-BLEU", "novelty", "MAUVE", "Frechet distance"} <= rows_of_real.keys()
    assert rows_of_real["rep-4"].value == rows_of_real["rep-4"].real == 0 and rows_of_loops["rep-4"].value > 0.5
    assert rows_of_loops["Frechet distance"].low > rows_of_real["Frechet distance"].high
    real = rows_of_real["Frechet distance"].real
    assert real is not None and rows_of_real["Frechet distance"].low < real < rows_of_real["Frechet distance"].high
    assert rows_of_real["distinct-1"].better == "↑" and rows_of_real["entropy"].better == "as real"


def test_pairs_copies_and_notes() -> None:
    real = texts(1, 30)
    result = score(real, real, real, pairs=True, quiet=True)
    rows = {row.metric: row for row in result.rows}
    assert rows["BLEU"].value == pytest.approx(100) and rows["exact match"].value == 1 and rows["novelty"].value == 0
    assert rows["BLEU"].real is None and rows["MAUVE"].real is None and any("60 real" in note for note in result.notes)
    mixed = {row.metric: row for row in score(real[::-1], real, pairs=True, most=20, quiet=True).rows}
    assert mixed["BLEU"].value < 60 and "novelty" not in mixed


@pytest.mark.parametrize(("kind", "letters"), [("dna", "ACGT"), ("protein", "ACDEFGHIKLMNPQRSTVWY")])
def test_letter_sequences_are_scored(kind: str, letters: str, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    rows = {name: ["".join(draw.choice(list(letters), 40)) for _ in range(n)] for name, n in (("a", 20), ("b", 40))}
    for name, sequences in rows.items():
        (tmp_path / f"{name}.fa").write_text("".join(f">{i}\n{row}\n" for i, row in enumerate(sequences)))
    result = score(tmp_path / "a.fa", tmp_path / "b.fa", kind=kind, quiet=True)
    assert result.samples == 20 and kind in result.unit and KINDS[kind]
    assert all(row.low <= row.value <= row.high for row in result.rows)


def test_by_the_vectors_of_a_model_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, seed in (("made", 0), ("real", 1)):
        (tmp_path / f"{name}.txt").write_text("\n".join(texts(seed, 24)))
    segue.fit(tmp_path / "real.txt", out=tmp_path / "model", steps=2, mixer="gru", width=16, depth=1, quiet=True,
              mix=False)
    for model_options in ([], ["--model", str(tmp_path / "model")]):
        with pytest.raises(SystemExit) as end:
            cli.main(["score", str(tmp_path / "made.txt"), "--reference", str(tmp_path / "real.txt"),
                      *model_options, "--json", str(tmp_path / "scores.json")])
        assert end.value.code == 0 and "Frechet distance" in capsys.readouterr().out
        saved = json.loads((tmp_path / "scores.json").read_text())
        assert saved["samples"] == 24 and saved["features"] == ("the model's vectors" if model_options
                                                                else "hashed n-grams")


@pytest.mark.parametrize(("generated", "real", "options", "message"), [
    (["one"], ["one line"], {}, "too few"), (["a", "b"], ["a", "b", "c"], {"pairs": True}, "no pairs"),
    (["a", "b"], ["a", "b"], {}, "give 3 or more"), (["a", "b"], ["a", "b"], {"most": 1}, "most=3")])
def test_unscorable_texts_are_refused(generated: list[str], real: list[str], options: dict[str, int],
                                      message: str) -> None:
    with pytest.raises(SegueError, match=message):
        score(generated, real, quiet=True, **options)  # type: ignore[arg-type]


def test_a_single_text_is_scored_line_by_line() -> None:
    generated, real = "\n".join(texts(0, 9)), ["\n".join(texts(i, 9)) for i in (1, 2)]
    assert score([generated], real, quiet=True).samples == 9
    rows = {row.metric: row for row in score([generated], [generated], pairs=True, quiet=True).rows}
    assert rows["exact match"].value == 1
