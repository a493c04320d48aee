"""Classes of sequences of any kind, told from a model's vectors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import segue
from segue.analysis.probes import folded
from segue.cli import main
from segue.errors import SegueError
from segue.kinds import KINDS
from segue.kinds.base import class_in, of_class
from segue.verbs.classify import labels_of


def test_names_say_classes() -> None:
    assert class_in(of_class("a (b).ts:3", "x (y)")) == ("a (b).ts:3", "x (y)")
    assert class_in("a (b).ts:3") == ("a (b).ts:3", "") and of_class("a", "") == "a"
    assert labels_of(["d/a.ts:1 (class 1)", "d/a.ts:2 (class -1)"]) == ["1", "-1"]
    assert labels_of(["/d/x.zip/pos/1.txt", "/d/x.zip/neg/2.txt", "/d/x.zip/neg/deep/3.txt"]) == ["pos", "neg", "neg"]
    assert labels_of(["pos.fa:one", "neg.fa:two"]) == ["pos.fa", "neg.fa"]
    assert labels_of(["d/only.fa:one", "d/only.fa:two"]) == ["only.fa", "only.fa"]
    with pytest.raises(SegueError, match="says no class, others do"):
        labels_of(["a (class 1)", "b"])


def test_every_part_is_named_by_the_others() -> None:
    draw = np.random.default_rng(0)
    labels = draw.integers(2, size=200)
    good, noise = labels[:, None] + 0.1 * draw.normal(size=(200, 3)), draw.normal(size=(200, 3))
    right = folded({"good": good, "noise": noise}, labels, np.arange(200))
    assert right["good"].all() and 0.3 < right["noise"].mean() < 0.7
    assert right["the most frequent class"].mean() <= max(labels.mean(), 1 - labels.mean()) + 1e-9
    doubled = folded({"noise": np.tile(noise, (2, 1))}, np.tile(labels, 2), np.tile(np.arange(200), 2))
    assert doubled["noise"].mean() < 0.7  # the same row does not teach its own class
    with pytest.raises(SegueError, match="all the same"):
        folded({"noise": noise}, labels, np.zeros(200))


@pytest.fixture(scope="module")
def rings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Graphs of two classes: rings of C, class 1, and chains of C, class 2, of the same sizes."""
    folder = tmp_path_factory.mktemp("rings")
    lines = []
    for i in range(60):
        size, ring = 4 + i % 5, i % 2
        lines.append(f"{size} {1 + (1 - ring)}")
        for a in range(size):
            near = sorted({b % size for b in (a - 1, a + 1) if ring or 0 <= b < size})
            lines.append(f"{i % 3} {len(near)} {' '.join(map(str, near))}")
    (folder / "rings.txt").write_text("60\n" + "\n".join(lines) + "\n")
    segue.fit(folder / "rings.txt", out=folder / "model", steps=30, width=32, depth=1, mixer="gru", quiet=True)
    return folder


def test_graphs_are_classified(rings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = segue.read(rings / "rings.txt")
    assert class_in(data.name(0))[1] == "2" and not any(sign.startswith("=") for sign in data[0].object)
    found = segue.load(rings / "model").classify(rings / "rings.txt", quiet=True)
    assert found.classes == {"1": 30, "2": 30} and found.accuracy["this model"] > 0.9
    assert found.accuracy["the most frequent class"] <= 0.5 and found.accuracy["the length"] < 0.8
    KINDS["graph"].write(data, tmp_path / "new.graphml")  # names without classes
    assert "class" not in (tmp_path / "new.graphml").read_text()
    with pytest.raises(SystemExit) as ended:
        main(["classify", str(rings / "model"), str(rings / "rings.txt"), "--new", str(tmp_path / "new.graphml"),
              "--out", str(tmp_path / "said.csv"), "--json", str(tmp_path / "said.json")])
    out, _ = capsys.readouterr()
    rows = (tmp_path / "said.csv").read_text().splitlines()
    assert ended.value.code == 0 and "accuracy" in out and rows[0] == "name,class,probability" and len(rows) == 61
    truth = [class_in(data.name(i))[1] for i in range(len(data))]
    assert np.mean([row.split(",")[1] == label for row, label in zip(rows[1:], truth)]) > 0.9


def test_folders_are_classes_of_any_kind(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    for name, letters in (("rich", "GGCCA"), ("poor", "AATTG")):
        (tmp_path / f"{name}.fa").write_text("".join(
            f">{i}\n{''.join(draw.choice(list(letters), 60))}\n" for i in range(20)))
    model: Any = segue.fit(tmp_path, steps=3, width=32, quiet=True)
    assert model.kind.name == "dna" and model.classify(tmp_path, quiet=True).accuracy["this model"] > 0.9
    with pytest.raises(SegueError, match="20 sequences of 1 classes cannot be told apart"):
        model.classify(tmp_path / "rich.fa", quiet=True)
