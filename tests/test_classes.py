"""Classes of sequences of any kind, told from a model's vectors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import segue
from segue.cli import main
from segue.errors import SegueError
from segue.kinds import KINDS
from segue.kinds.base import class_in, of_class
from segue.training.checkpoint import load_tensors, save_tensors
from segue.verbs.classify import CLASSES_FILE, labels_from_names, numeric_labels, wilson_interval


def test_classes_are_parsed_from_names() -> None:
    assert class_in(of_class("a (b).ts:3", "x (y)")) == ("a (b).ts:3", "x (y)")
    assert class_in("a (b).ts:3") == ("a (b).ts:3", "") and of_class("a", "") == "a"
    assert labels_from_names(["d/a.ts:1 (class 1)", "d/a.ts:2 (class -1)"]) == (["1", "-1"], "")
    assert labels_from_names(["/d/x.zip/pos/1.txt", "/d/x.zip/neg/2.txt", "/d/x.zip/neg/deep/3.txt"]) == \
        (["pos", "neg", "neg"], "the folder it is in")
    assert labels_from_names(["d/train/pos/1", "d/train/neg/2", "d/test/pos/3"])[0] == ["pos", "neg", "pos"]
    assert labels_from_names(["d/0_ann_1.wav", "d/0_bob_1.wav", "d/1_ann_1.wav", "d/1_ann_2.wav"]) == \
        (["0", "0", "1", "1"], "the beginning of its file's name")
    assert labels_from_names(["pos.fa:one", "neg.fa:two"]) == (["pos.fa", "neg.fa"], "the file it is in")
    assert labels_from_names(["d/only.fa:one", "d/only.fa:two"])[0] == ["only.fa", "only.fa"]
    with pytest.raises(SegueError, match="says no class, others do"):
        labels_from_names(["a (class 1)", "b"])


@pytest.fixture(scope="module")
def rings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Graphs of two classes: rings of C, class 1, and chains of C, class 2, of the same sizes."""
    folder = tmp_path_factory.mktemp("rings")
    lines = []
    for i in range(60):
        size, ring = 4 + i % 5, i % 2
        lines.append(f"{size} {1 + (1 - ring)}")
        for a in range(size):
            neighbours = sorted({b % size for b in (a - 1, a + 1) if ring or 0 <= b < size})
            lines.append(f"{i % 3} {len(neighbours)} {' '.join(map(str, neighbours))}")
    (folder / "rings.txt").write_text("60\n" + "\n".join(lines) + "\n")
    segue.fit(folder / "rings.txt", out=folder / "model", steps=30, width=32, depth=1, mixer="gru", quiet=True)
    return folder


def test_graphs_are_classified(rings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = segue.read(rings / "rings.txt")
    assert class_in(data.name(0))[1] == "2" and not any(sign.startswith("=") for sign in data[0].object)
    result: Any = segue.load(rings / "model").classify(rings / "rings.txt", quiet=True)
    assert result.classes == {"1": 30, "2": 30} and result.accuracy["this model"] > 0.9
    assert result.accuracy["the most frequent class"] <= 0.5 and result.accuracy["the length"] < 0.8
    KINDS["graph"].write(data, tmp_path / "new.graphml")  # names without classes
    assert "class" not in (tmp_path / "new.graphml").read_text()
    with pytest.raises(SystemExit) as ended:
        main(["classify", str(rings / "model"), str(rings / "rings.txt"), "--new", str(tmp_path / "new.graphml"),
              "--out", str(tmp_path / "said.csv"), "--json", str(tmp_path / "said.json")])
    out, _ = capsys.readouterr()
    rows = (tmp_path / "said.csv").read_text().splitlines()
    assert ended.value.code == 0 and "accuracy" in out and rows[0] == "name,class,probability" and len(rows) == 61
    expected = [class_in(data.name(i))[1] for i in range(len(data))]
    assert np.mean([row.split(",")[1] == label for row, label in zip(rows[1:], expected)]) > 0.9


def test_folders_are_classes_of_any_kind(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    for name, letters in (("rich", "GGCCA"), ("poor", "AATTG")):
        (tmp_path / f"{name}.fa").write_text("".join(
            f">{i}\n{''.join(draw.choice(list(letters), 60))}\n" for i in range(20)))
    model: Any = segue.fit(tmp_path, steps=3, width=32, quiet=True)
    assert model.kind.name == "dna" and model.classify(tmp_path, quiet=True).accuracy["this model"] > 0.9
    with pytest.raises(SegueError, match="20 sequences of 1 classes cannot be told apart"):
        model.classify(tmp_path / "rich.fa", quiet=True)


TABLES: dict[str, tuple[str, str, list[str], list[str]]] = {  # a table, its column of classes, first object, classes
    "text.csv": ("text,category,n\nhello my old friend,greet,1\nbye then old friend,leave,2\nof no class here,,3\n",
                 "category", ["hello my old friend"], ["greet", "leave"]),
    "short.tsv": ("word\tintent\nhello\tgreet\nbye\tleave\n", "intent", ["hello"], ["greet", "leave"]),
    "text.jsonl": ('{"text": "hello my friend", "of": {"kind": 1}}\n{"text": "bye", "of": {"kind": true}}\n', "of.kind",
                   ["hello my friend"], ["1", "True"]),
    "dna.csv": ("sequence,label\nACGTACGTACGTACGTACGTACGT,0\nACGTACGTACGTACGTACGTACGTAA,1\n", "label",
                ["ACGTACGTACGTACGTACGTACGT"], ["0", "1"]),
    "molecule.csv": ("smiles,id,toxic\nCCO,a,no\nc1ccccc1,b,yes\nCCN,c,no\nCC(=O)O,d,no\n", "toxic", ["CCO"],
                     ["no", "yes", "no", "no"]),
    "events.csv": ("user,item,class\nu1,a,x\nu1,b,x\nu2,a,y\nu3,a,x\nu3,b,y\n", "class", ["a", "b"], ["x", "y"]),
    "events.jsonl": ('{"items": ["a", "b"], "label": "x"}\n{"items": ["a"], "label": "y"}\n', "label", ["a", "b"],
                     ["x", "y"]),
    "series.csv": ("who,value,label\na,0.5,1\na,1.5,1\nb,0.25,2\nb,2.5,2\n", "label", ["0.5", "1.5"], ["1", "2"]),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_column_gives_the_class(name: str, tmp_path: Path) -> None:
    content, column, first, classes = TABLES[name]
    path, kind = tmp_path / name, name.partition(".")[0].replace("short", "text")
    path.write_text(content)
    data = segue.read(path, kind=kind, classes=column)
    result = data[0].object
    assert [result.decode() if isinstance(result, bytes) else result] == first or result == first
    assert [class_in(data.name(i))[1] for i in range(len(data))] == classes
    assert f"class={column}" in data.problems.note
    assert all(class_in(data.name(i))[1] == "" for data in [segue.read(path, kind=kind)] for i in range(len(data)))
    with pytest.raises(SegueError, match="there is no column 'colour' to say the class; there are "):
        segue.read(path, kind=kind, classes="colour")
    usual = segue.read(path, kind=kind, classes="")
    assert ("class=" in usual.problems.note) == any(class_in(usual.name(i))[1] for i in range(len(usual)))
    expected = [] if column in ("of.kind", "toxic") or name == "events.csv" else classes  # u3 is of two: no class then
    assert [label for i in range(len(usual)) if (label := class_in(usual.name(i))[1])] == expected


def test_columns_of_classes_in_parquet_and_rows_of_numbers(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    texts = ["hello my old friend of mine", "bye then old friend of mine"]
    parquet.write_table(pa.table({"text": texts, "y": [1.0, 0.0]}), tmp_path / "a.parquet")
    data = segue.read(tmp_path / "a.parquet", classes="")
    assert [class_in(data.name(i))[1] for i in range(2)] == ["1", "0"] and data[0].object.decode() == texts[0]
    parquet.write_table(pa.table({"text": texts, "y": [0.3, 0.7]}), tmp_path / "b.parquet")
    assert class_in(segue.read(tmp_path / "b.parquet", classes="").name(0))[1] == ""  # measured, no class
    (tmp_path / "c.csv").write_text("a,b,c,of\n0.5,1.5,2.5,x\n1.5,0.5,3.5,y\n")
    data = segue.read(tmp_path / "c.csv", kind="series", rows=True, classes="of")
    assert [class_in(data.name(i))[1] for i in range(2)] == ["x", "y"] and data[0].object == ["0.5", "1.5", "2.5"]
    (tmp_path / "d.csv").write_text("text,other\nhello my old friend,a\n")
    with pytest.raises(SegueError, match="column 'text' cannot say the class and be read as well"):
        segue.read(tmp_path / "d.csv", kind="text", field="text", classes="text")


def test_wilson_intervals_equal_known_values() -> None:
    low, high = wilson_interval(1.0, 20)
    assert (low, high) == pytest.approx((0.8389, 1), abs=1e-4)
    assert wilson_interval(0.0, 20) == pytest.approx((0, 1 - low))
    assert wilson_interval(0.5, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)


@pytest.fixture(scope="module")
def moods(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts of two moods in tables, and a model of them."""
    folder, draw = tmp_path_factory.mktemp("moods"), np.random.default_rng(0)
    words = {"glad": ["sun", "song", "dance", "laugh"], "sad": ["rain", "tears", "alone", "grey"]}
    for name, count in (("train", 20), ("test", 6)):
        rows = [f"{' '.join(draw.choice(words[mood], 6))} {i},{mood}" for i in range(count) for mood in words]
        (folder / f"{name}.csv").write_text("text,mood\n" + "\n".join(rows) + "\n")
    (folder / "new.csv").write_text("text\nsun song dance sun laugh song\nrain tears grey alone rain rain\n")
    segue.fit(folder / "train.csv", out=folder / "model", steps=2, width=32, depth=1, mixer="attention", quiet=True)
    return folder


def test_classify_tests_a_model_and_saves_its_classes(moods: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["classify", str(moods / "model"), *arguments])
        return ended.value.code, *capsys.readouterr()  # type: ignore[return-value]

    train, test, new = (str(moods / f"{name}.csv") for name in ("train", "test", "new"))
    code, _, error = run("--new", new)
    assert code == 2 and "no classes are kept with this model" in error and error.count("\n") == 1
    assert "there is no column 'tone' to say the class; there are text, mood" in run(train, "--label", "tone")[2]
    assert "2 sequences of 1 classes cannot be told apart" in run(new)[2]
    code, out, _ = run(train, "--label", "mood", "--test", test, "--save", "--device", "cpu",
                       "--json", str(moods / "found.json"))
    results = json.loads((moods / "found.json").read_text())
    assert code == 0 and "read as class=mood, field=text" in out and "by which 12 others were told" in out
    assert results["tested"] == 12 and results["folds"] == 0 and results["classes"] == {"glad": 20, "sad": 20}
    assert results["accuracy"]["this model"] > 0.9 and results["accuracy"]["the most frequent class"] == 0.5
    assert results["intervals"]["the most frequent class"] == pytest.approx(wilson_interval(0.5, 12))
    code, out, error = run("--new", new)
    assert code == 0 and "csv:2: glad (" in out and "csv:3: sad (" in out and "of when it was saved" in out, error
    for bad_arguments in (["--new", new, "--test", test], ["--new", new, "--label", "mood"], []):
        code, _, error = run(*bad_arguments)
        assert code == 2 and "nothing to learn classes from" in error


def test_tests_of_other_classes_and_of_known_sequences(moods: Path) -> None:
    model = segue.load(moods / "model")
    rows = (moods / "test.csv").read_text().splitlines()
    (moods / "third.csv").write_text("\n".join([*rows, "a stone lies here,calm", (moods / "train.csv").read_text()
                                                .splitlines()[1]]) + "\n")
    result: Any = model.classify(moods / "train.csv", test=moods / "third.csv", label="mood", quiet=True)
    assert result.tested == 14 and any("1 of the 14 test sequences are of classes that were not learned (calm)" in note
                                       for note in result.notes)
    assert any("1 of the 14 test sequences were learned from too" in note for note in result.notes)
    assert result.accuracy["this model"] <= 13 / 14 and result.balanced["this model"] <= 2 / 3
    (moods / "other.csv").write_text("text,mood\na stone lies here,calm\na tree stands here,calm\n")
    with pytest.raises(SegueError, match="none of the 2 test sequences is of a class that was learned: theirs are "):
        model.classify(moods / "train.csv", test=moods / "other.csv", label="mood", quiet=True)
    (moods / "plain.txt").write_text("rain\nsong\ngrey\n")
    with pytest.raises(SegueError, match="txt is of no table with a column 'mood': leave label= out"):
        model.classify(moods / "plain.txt", label="mood", quiet=True)


def test_measured_numbers_are_predicted(moods: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw = np.random.default_rng(1)
    texts = [draw.choice(["rain", "snow"], 6).tolist() for _ in range(60)]
    rows = [f"{' '.join(text)} {i},{text.count('rain') / 4 + i / 999:.4f}" for i, text in enumerate(texts)]
    for name, part in (("wet", rows[:50]), ("dry", rows[50:])):
        (moods / f"{name}.csv").write_text("\n".join(["text,litres", *part]) + "\n")
    with pytest.raises(SystemExit) as ended:
        main(["classify", str(moods / "model"), str(moods / "wet.csv"), "--label", "litres", "--test",
              str(moods / "dry.csv"), "--save", "--json", str(moods / "litres.json")])
    out, _ = capsys.readouterr()
    results = json.loads((moods / "litres.json").read_text())
    assert ended.value.code == 0 and "rank correlation" in out and "50 numbers" in out
    assert results["error"]["all together"] < 0.6 * results["error"]["the mean"]
    assert results["correlation"]["the mean"] == 0
    model: Any = segue.load(moods / "model")
    predictions = model.classify(new=moods / "new.csv", quiet=True)
    assert predictions.said[0][1] + 0.3 < predictions.said[1][1]
    assert f"csv:3: {predictions.said[1][1]:.4g}" in predictions.lines()[1]
    predictions.save(moods / "said.csv")
    assert (moods / "said.csv").read_text().startswith("name,number\n")
    with pytest.raises(SegueError, match="'none' is no number to learn from, and 19 others are"):
        numeric_labels([*(f"{i / 2}" for i in range(19)), "none"])
    assert numeric_labels(["a", "b"] * 10) is numeric_labels(list("0123456789") * 3) is None
    parts = model.classify(moods / "wet.csv", label="litres", quiet=True)
    assert parts.tested == 50 and parts.folds == 5 and "each told by what was learned without its part" in str(parts)
    with pytest.raises(SegueError, match=r"test sequences say glad, sad, glad, sad, glad, \.\.\., and not all numbers"):
        model.classify(moods / "wet.csv", test=segue.read(moods / "test.csv", classes="mood"), label="litres",
                       quiet=True)


def test_saved_classes_belong_to_their_model(moods: Path) -> None:
    model = segue.load(moods / "model")
    model.classify(moods / "train.csv", label="mood", save=True, pool="last", quiet=True)
    before = model.classify(new=moods / "new.csv", quiet=True).said
    assert before == segue.load(moods / "model").classify(new=moods / "new.csv", quiet=True).said
    segue.load(moods / "model").save(moods / "moved")
    assert before == segue.load(moods / "moved").classify(new=moods / "new.csv", quiet=True).said
    path = moods / "model" / CLASSES_FILE
    tensors, values = load_tensors(path)
    for broken in ({**values, "views": {}}, {**values, "format": "?"}, {}):
        save_tensors(path, tensors, broken)
        with pytest.raises(SegueError, match=str(path)):
            model.classify(new=moods / "new.csv", quiet=True)
    save_tensors(path, tensors, values)
    next(model.model.parameters()).data += 0.1
    with pytest.raises(SegueError, match="the model has learned since its classes were saved"):
        model.classify(new=moods / "new.csv", quiet=True)
    model.folder = None
    with pytest.raises(SegueError, match="in no folder to keep the classes in"):
        model.classify(moods / "train.csv", label="mood", save=True, quiet=True)


def test_numbers_of_one_level_are_no_copies(tmp_path: Path) -> None:
    rows = [f"{i / 80:.3f},{i % 7 / 9:.3f},{'ab'[i % 2]}" for i in range(80)]
    for name, part in (("train", rows[::2] + rows[1:9:2]), ("test", rows[11::2] + rows[:1])):
        (tmp_path / f"{name}.csv").write_text("\n".join(["long,wide,class", *part]) + "\n")
    model = segue.fit(tmp_path / "train.csv", kind="rows", steps=2, width=16, depth=1, levels=2, quiet=True)
    found: Any = model.classify(segue.read(tmp_path / "train.csv", kind="rows", classes=""), test=segue.read(
        tmp_path / "test.csv", kind="rows", classes=""), quiet=True)
    assert "1 of the 36 test sequences were learned from too: leave them out" in found.notes
