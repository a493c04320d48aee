"""Rows of tables that stand alone: found, read, written, coded, continued, and their classes told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from segue import read
from segue.decoding.continuation import codec_processors
from segue.decoding.sampling import Prefix
from segue.errors import SegueError
from segue.kinds import KINDS, CellCodec
from segue.kinds.base import class_in
from segue.testing import check_codec, check_kind

ROWS = KINDS["rows"]
draw = np.random.default_rng(0)
SIZES = [[f"{each:.2g}" for each in draw.normal((5 + c, 3, 1 + c), 0.3)] for c in range(3) for _ in range(20)]
KINDLY = ["setosa", "versicolor", "virginica"]
FLOWERS = [",".join(map(str, sizes)) + f",{KINDLY[i // 20]}\n" for i, sizes in enumerate(SIZES)]
PEOPLE = "".join(f"{draw.integers(17, 90)},{'SP'[draw.integers(2)]}rivate,{draw.integers(10000, 99999)},{i % 4}0,"
                 f"{'?' if i % 9 == 4 else 'Mar ried'}, {'<>'[draw.integers(2)]}50K\n" for i in range(60))
SHIP = "survived,gender,age,fare,deck\n" + "".join(
    f"{draw.integers(2)},{'fe' if i % 3 else ''}male,{'' if i % 5 == 2 else draw.integers(90)},"
    f"{draw.integers(500) / 8},{'C' * (i % 2)}\n" for i in range(40))
MOONS = [(i % 2, *draw.normal(i % 2, 0.3, 2)) for i in draw.permutation(60)]
CARS = ",\n".join(f'{{"Name": "car {i}", "power": {i}.5, "weight": {i * 71 % 83}.5, "doors": {i % 4}, "Origin": '
                  f'"{"UE"[i % 2]}"}}' for i in range(60))


@pytest.mark.parametrize("name, content, first, note", [
    ("iris.csv", "long,wide,petal,species\n" + "".join(FLOWERS), f"long={SIZES[0][0]}", "class=species (last)"),
    ("iris.data", "".join(FLOWERS), f"x1={SIZES[0][0]}", "class=x4 (last)"),
    ("wine.data", "".join(f"{i // 20 + 1},{','.join(map(str, sizes))}\n" for i, sizes in enumerate(SIZES)),
     f"x2={SIZES[0][0]}", "class=x1 (last)"),
    ("moons.csv", "".join(f"{x:.3f},{y:.3f},{c}\n" for c, x, y in MOONS), f"x1={MOONS[0][1]:.3f}", "class=x3 (last)"),
    ("moons.txt", "".join(f"{c} {x:.3f} {y:.3f}\n" for c, x, y in sorted(MOONS, key=lambda m: m[0])),
     "x2=", "class=x1 (last)"),
    ("adult.data", PEOPLE, "x1=", "class=x6 (last)"), ("titanic.csv", SHIP, "gender=male", "class=survived (last)"),
    ("cars.json", f"[{CARS}]", "power=0.5", "class=Origin (last); not read: Name")])
def test_rows_are_distinguished_from_moments_and_events(tmp_path: Path, name: str, content: str, first: str,
                                                        note: str) -> None:
    (tmp_path / name).write_text(content)
    data = read(tmp_path / name)
    assert data.kind.name == "rows" and data[0].object[0].startswith(first) and note in data.problems.note
    assert data.problems.note.startswith("each row by itself, columns=")


def test_the_contract_of_rows(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("long,wide,petal,species\n" + "".join(FLOWERS))
    (tmp_path / "b.csv").write_text(SHIP)
    check_kind(ROWS, [tmp_path / "a.csv", tmp_path / "b.csv"], mutations=8)
    codec = CellCodec({"age": [1.0, 2.5, 4.0], "sex": ["f", "m=?"], "": []})
    check_codec(codec, [["age=1", "sex=m=?", "=?"], []])
    assert codec.decode(codec.encode(["age=3.9", "sex=x", "age=old"])) == ["age=4", "sex=?", "age=?"]
    assert codec.numbers()[:3, 0].tolist() == [1, 2.5, 4] and codec.numbers()[4, 1:].tolist() == [1, 0]
    with pytest.raises(SegueError, match="there is no column 'size' here; there are age, sex"):
        codec.encode(["size=1"])


def test_columns_and_classes_of_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("id,long,wide,petal,species\n" + "".join(f"{i},{row}" for i, row in enumerate(FLOWERS)))
    data_without_classes = read(path, classes="")
    assert class_in(data_without_classes.name(0))[1] == "setosa" and len(data_without_classes[0].object) == 3
    assert data_without_classes.problems.note.endswith("class=species; not read: id")
    assert read(path, columns=["petal", "long"])[0].object == [f"petal={SIZES[0][2]}", f"long={SIZES[0][0]}"]
    assert ROWS.normalise("long=5, wide=3") == ["long=5", "wide=3"] == ROWS.normalise({"long": 5, "wide": 3})
    with pytest.raises(SegueError, match="no cell of a row: give column=value"):
        ROWS.normalise("5, 3")
    (tmp_path / "lists.jsonl").write_text('{"a": [1, 2]}\n' * 9)
    with pytest.raises(SegueError, match="cells of this table are lists"):
        read(tmp_path / "lists.jsonl", kind="rows")


def test_a_row_is_continued_to_its_end() -> None:
    codec = CellCodec({"age": [1.0, 2.5], "sex": ["f"], "size": [3.0]})
    (rule,) = codec_processors(codec)

    def open_after(*cells: str) -> list[str]:
        prefix = Prefix(codec.encode(cells).tolist(), codec.size)
        return [codec.token(id) for id in np.flatnonzero(np.isfinite(rule(np.zeros(codec.size), prefix))).tolist()]

    assert open_after() == ["age=1", "age=2.5", "age=?"] and open_after("age=1") == ["sex=f", "sex=?"]
    assert open_after("sex=f", "age=1") == ["size=3", "size=?"] and open_after("size=3") == ["<end>"]


def _towns(count: int = 60) -> str:
    """Houses of towns: three columns are the town's, two the house's own."""
    rng = np.random.default_rng(3)
    return "".join(f"{t * 7 % 5}.5 {t % 3} {300 + t * 11 % 7} {rng.normal(6, 1):.3f} {rng.normal(20, 5):.1f}\n"
                   for t in range(count // 6) for _ in range(6))


@pytest.mark.parametrize("name, content", [
    ("housing.csv", _towns()),
    ("haberman.csv", "".join(f"{30 + i // 4},{60 + i * 7 % 10},{i * 5 % 9},{1 + i % 3 // 2}\n" for i in range(40))),
    ("mpg.csv", "mpg,cylinders,weight,name\n" + "".join(f"{15 + i / 9:.1f},{4 + i % 5},{2000 + i},ford {i // 2}\n"
                                                         for i in range(40))),
    ("cars.json", "[" + ", ".join(f'{{"Name": "ford {i // 2}", "mpg": {15 + i / 9:.1f}, "weight": {2000 + i}}}'
                                  for i in range(40)) + "]"),
    ("winds.csv", "longitude,latitude,speed\n" + "".join(f"{i % 10},{i // 10},{i % 7}.5\n" for i in range(80))),
    ("county.tsv", "id\trate\n" + "".join(f"{1001 + 2 * i + i % 3}\t{i * 37 % 11 / 10}\n" for i in range(40))),
    ("haberman.data", "".join(f"{30 + i * 7 % 41},{58 + i % 12},{i * i % 9},{1 + i % 4 // 3}\n" for i in range(60))),
    ("survived.csv", "rownames,group,outcome\n" + "".join(
        f"{i},{'drug' if i < 60 else 'none'},{'died' if i % 40 < 9 else 'survived'}\n" for i in range(80))),
    ("criteo.txt", "label,I1,I2,C1\n" + "".join(f"{i % 3 // 2},{i},{i * 7 % 5}.0,{i * 7919:08x}\n" for i in range(40))),
])
def test_tables_without_other_structure_are_read_row_by_row(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    data = read(tmp_path / name)
    assert data.kind.name == "rows" and len(data) in (40, 60, 80)


def test_columns_fixed_by_the_user_are_no_events(tmp_path: Path) -> None:
    rows = [f"{land},{part},{1952 + 5 * i},{40 + i * i % 7}.5" for land, part in (
        ("Chad", "Africa"), ("Laos", "Asia"), ("Mali", "Africa")) for i in range(12)]
    (tmp_path / "gap.csv").write_text("\n".join(["country,continent,year,lifeExp", *rows]))
    data = read(tmp_path / "gap.csv")
    assert data.kind.name == "series" and len(data) == 3 and "when=year" in data.problems.note
