"""`segue design`: from a table of measured sequences to new ones, on tables as they are published."""

from __future__ import annotations

import csv
import gzip
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from segue import cli
from segue.design.measured import BY, Measured, draw_gaps
from segue.errors import SegueError
from segue.kinds import KINDS
from segue.kinds.codecs import NUCLEOTIDES, RESIDUES, LetterCodec
from segue.models import Stack, StackConfig
from segue.models.stack import both_ways
from segue.verbs.design import design, shorten
from segue.verbs.diffused import Diffused
from segue.verbs.fitted import Fitted, Report

OPTIONS: dict[str, dict[str, Any]] = {"attention": {"heads": 2}, "mamba": {"states": 4}}


def model(kind: str = "dna", mixer: str = "mamba", diffusion: bool = False, width: int = 16) -> Fitted:
    """An untrained model."""
    torch.manual_seed(0)
    codec = LetterCodec(NUCLEOTIDES if kind == "dna" else RESIDUES)
    config = StackConfig(codec.size + diffusion, width, [mixer] * 2, {mixer: OPTIONS[mixer]})
    model_class = Diffused if diffusion else Fitted
    return model_class(Stack(both_ways(config) if diffusion else config), codec, KINDS[kind], Report({}), 32)


def measured_score(text: str) -> float:
    """What is measured of a word: how many places are as in ACGTTG."""
    return float(sum(a == b for a, b in zip(text, "ACGTTG")))


def weak_table(count: int = 300) -> list[tuple[str, float]]:
    """Words of six bases with at most three right places."""
    words = ("".join(letters) for letters in itertools.product("ACGT", repeat=6))
    measured = [(word, measured_score(word)) for word in words if measured_score(word) <= 3]
    return measured[:: max(1, len(measured) // count)]


def capsids(path: Path, rows: int = 200) -> Path:
    """A table of proteins of one length, as of AAV's capsids, with a part of the residues that varies."""
    generator, best = torch.Generator().manual_seed(1), "DEEIRATNPIATEQ"
    lines = ["sequence,score"]
    for _ in range(rows):
        letters = ["ADEINPQRST"[i] for i in torch.randint(10, (len(best),), generator=generator).tolist()]
        keep = (torch.rand(len(best), generator=generator) < 0.3).tolist()
        middle = "".join(b if k else letter for b, k, letter in zip(best, keep, letters))
        lines.append(f"MQYK{middle}WTYD,{sum(a == b for a, b in zip(best, middle))}")
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("mixer", ("mamba", "attention"))
def test_designs_are_new_and_better_than_the_table(mixer: str) -> None:
    measured = weak_table()
    result = design(model(mixer=mixer), measured, 20, steps=30)
    words = [row["sequence"] for row in result.rows]
    assert len(words) == len(set(words)) == 20 and not {word for word, _ in measured} & set(words)
    assert sum(map(measured_score, words)) / 20 > 3 and max(map(measured_score, words)) >= 5
    predicted = [row["predicted_score"] for row in result.rows]
    assert predicted == sorted(predicted, reverse=True)
    for row in result.rows:
        assert row["changes"] == sum(a != b for a, b in zip(row["sequence"], row["start"]))
        assert row["start_score"] == measured_score(row["start"])
    assert result.values["correlation"] > 0.5 and result.values["positions"] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("by", BY[1:])
def test_a_diffusion_model_designs(by: str) -> None:
    measured, fitted = weak_table(), model(mixer="mamba" if by == "fine-tune" else "attention", diffusion=True)
    before = [p.clone() for p in fitted.model.parameters()]
    result = design(fitted, measured, 12, by, steps=4, strength=1.0)
    words = [row["sequence"] for row in result.rows]
    assert len(set(words)) == len(words) == 12 and set("".join(words)) <= set("ACGT")
    assert sum(map(measured_score, words)) / 12 > (1.6 if by == "fine-tune" else 2.2)
    assert all(torch.equal(a, b) and b.requires_grad for a, b in zip(before, fitted.model.parameters()))


def test_lower_scores_can_be_the_goal() -> None:
    result = design(model(), [(word, -value) for word, value in weak_table()], 10, lower=True, steps=20)
    words = [row["sequence"] for row in result.rows]
    assert sum(map(measured_score, words)) / 10 > 3.2
    assert result.rows[0]["predicted_score"] <= result.rows[-1]["predicted_score"] < 0
    assert result.values["least"] == -3 and result.values["most"] == 0


def test_designs_of_different_lengths() -> None:
    measured = [(word + "A" * (i % 3), value) for i, (word, value) in enumerate(weak_table())]
    for fitted, by in ((model(), BY[0]), (model(mixer="attention", diffusion=True), "smc"),
                       (model(mixer="attention", diffusion=True), "fine-tune")):
        result = design(fitted, measured, 5, by, steps=2)
        assert len(result.rows) == 5
        assert all(len(row["sequence"]) == len(row["start"]) for row in result.rows)


def test_the_command_proposes_proteins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = model("protein").save(tmp_path / "model"), tmp_path / "designs.csv"
    table = capsids(tmp_path / "capsids.csv")
    with pytest.raises(SystemExit) as end:
        cli.main(["design", str(folder), "--scores", str(table), "-n", "15", "--changes", "3", "--steps", "10",
                  "--out", str(out)])
    output = capsys.readouterr()
    assert end.value.code == 0 and "predictions, not measurements" in " ".join(output.out.split())
    assert "15 designs written" in output.err
    with out.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert [int(row["rank"]) for row in rows] == list(range(1, 16))
    for row in rows:
        assert 1 <= int(row["changes"]) <= 3
        assert row["sequence"].startswith("MQYK") and row["sequence"].endswith("WTYD")  # what does not vary stays
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_the_command_writes_data_and_respects_positions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = model("protein").save(tmp_path / "model")
    table = capsids(tmp_path / "capsids.csv")
    with pytest.raises(SystemExit) as end:
        cli.main(["design", str(folder), "--scores", str(table), "-n", "5", "--positions", "5-7,10", "--steps", "5",
                  "--json"])
    value = json.loads(capsys.readouterr().out)
    assert end.value.code == 0 and value["positions"] == [5, 6, 7, 10] and len(value["designs"]) == 5
    for row in value["designs"]:
        changed = {place for place, (a, b) in enumerate(zip(row["start"], row["sequence"]), 1) if a != b}
        assert changed and changed <= {5, 6, 7, 10}


def test_a_saved_diffusion_model_is_steered_by_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, table = model("protein", "attention", True).save(tmp_path / "model"), capsids(tmp_path / "capsids.csv")
    with pytest.raises(SystemExit) as end:
        cli.main(["design", str(folder), "--scores", str(table), "-n", "6", "--by", "tds", "--changes", "2", "--json"])
    rows = json.loads(capsys.readouterr().out)["designs"]
    assert end.value.code == 0 and len(rows) == 6 and all(1 <= row["changes"] <= 2 for row in rows)


def binding(path: Path) -> Path:
    """A table as of protein-binding microarrays: both strands, and three numbers."""
    lines = ["8-mer\t8-mer\tE-score\tMedian\tZ-score"]
    for word, value in weak_table(120):
        other = word[::-1].translate(str.maketrans("ACGT", "TGCA"))
        lines.append(f"{word}\t{other}\t{value / 6:.5f}\t{1000 * value:.2f}\t{value:.4f}")
    with gzip.open(path, "wt") as out:
        out.write("\n".join(lines) + "\n")
    return path


def test_a_table_of_binding_needs_the_name_of_its_score(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = binding(tmp_path / "SIX6.txt.gz")
    with pytest.raises(SegueError, match=r"which column has the scores.*score="):
        design(model(), table)
    result = design(model(), table, 5, score="E-score", steps=3)
    assert len(result.rows) == 5 and "sequences from column '8-mer', scores from column 'E-score'" in result.notes[0]
    folder = model().save(tmp_path / "model")
    with pytest.raises(SystemExit) as end:
        cli.main(["design", str(folder), "--scores", str(table)])
    error_text = capsys.readouterr().err
    assert end.value.code == 2 and "--score one of" not in error_text and "name it with --score" in error_text


def test_unusable_rows_are_reported_and_repeats_averaged(tmp_path: Path) -> None:
    rows = [f"{word},{value}" for word, value in weak_table(60)]
    table = tmp_path / "table.csv"
    table.write_text("\n".join(["seq,fitness", *rows, "AC?GTT,3", "ACGTTA,", ",4", rows[0].split(",")[0] + ",2.0"]))
    result = design(model(), table, 3, steps=2)
    assert any("3 of" in note and "left out" in note and "line" in note for note in result.notes)
    assert result.values["measured"] == len(rows)
    measured = Measured.of([[1, 2]] * 2 + [[i, 0] for i in range(30)], [1.0, 3.0, *range(30)])
    assert float(measured.scores[0]) == 2.0


def test_unpredictable_scores_are_reported() -> None:
    generator = torch.Generator().manual_seed(0)
    result = design(model(), [(word, float(torch.rand((), generator=generator))) for word, _ in weak_table(80)], 3,
                    steps=2)
    assert any("little better than a guess" in note for note in result.notes)


def test_scores_of_a_single_value_in_one_half() -> None:
    words = [word for word, _ in weak_table(80)]
    result = design(model(), [(word, float(i == 3)) for i, word in enumerate(words)], 3, steps=2)
    assert result.values["correlation"] == 0 and len(result.rows) == 3


@pytest.mark.parametrize(("options", "message"), [
    ({"by": "luck"}, "choose from bidirectional, fine-tune"), ({"by": "smc"}, "fit one with objective diffusion"),
    ({"n": 0}, "n must be more than 0"), ({"changes": 0}, "changes must be more"), ({"strength": 0.0}, "strength must"),
    ({"positions": "5-9"}, "'5-9' is no place"), ({"positions": "x"}, "from 1 to 6")])
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SegueError, match=message):
        design(model(), weak_table(60), **options)


def test_bad_tables_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SegueError, match="is no file"):
        design(model(), tmp_path / "none.csv")
    with pytest.raises(SegueError, match="give at least 20"):
        design(model(), weak_table()[:5])
    with pytest.raises(SegueError, match="of different scores"):
        design(model(), [(word, 1.0) for word, _ in weak_table()])
    table = tmp_path / "table.csv"
    table.write_text("name,sequence,score\na,ACGT,1\n")
    with pytest.raises(SegueError, match=r"there is no column 'x'.*name, sequence, score"):
        design(model(), table, score="x")
    table.write_text("sequence,score\nEFIL,1\nEFII,2\n")
    with pytest.raises(SegueError, match="no row has a dna sequence"):
        design(model(), table)
    text = Fitted(Stack(StackConfig(257, 8, ["lstm"])), LetterCodec("ab"), KINDS["text"], Report({}), 8)
    with pytest.raises(SegueError, match="letter by letter"):
        design(text, weak_table())


def test_designs_are_reproducible_by_seed() -> None:
    first, repeated, other_seed = (design(model(), weak_table(), 8, steps=5, seed=seed).to_dict() for seed in (1, 1, 2))
    assert first == repeated != other_seed


def test_few_gaps_are_varied_positions() -> None:
    free = torch.tensor([[True, False, True, True], [True, True, False, False]])
    gaps = draw_gaps(free, 2, torch.Generator().manual_seed(0))
    assert gaps.sum(1).tolist() == [2, 2] and not bool((gaps & ~free).any())
    assert draw_gaps(free, None, torch.Generator()) is free


def test_long_sequences_are_shown_by_their_changes() -> None:
    assert shorten("ACGT", "ACGG") == "ACGT"
    start = "A" * 100
    assert shorten("AC" + "A" * 97 + "G", start) == "A2C A100G"
    assert shorten("C" * 100, start).endswith("and 92 more")
