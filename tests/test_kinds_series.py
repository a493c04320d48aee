"""The kind of measured numbers: what files it reads, its levels, and what comes back."""

from __future__ import annotations

import gzip
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import segue
from segue.data import of, read
from segue.errors import SegueError
from segue.kinds import KINDS, LevelCodec
from segue.kinds.elements import as_columns, as_elements, levels_of
from segue.kinds.numbers import numbers_in
from segue.testing import check_codec, check_kind

SERIES = KINDS["series"]
TABLES = {
    "one.csv": "value\n1.5\n2.25\n-3\n4\n",
    "several.csv": "date,heat,wet\n2020-01-02,1.5,7\n2020-01-01,0.5,8\n2020-01-03,,9\n",
    "named.csv": "sensor,time,v\na,1,0.5\nb,1,1.5\na,2,0.75\nb,2,1.25\n",
    "comma.csv": "t;v\n1;2,5\n2;3,25\n3;-1,5\n",
    "missing.csv": "row,v,w\n0,1.5,2\n1,?,3\n2,2.5,4\n3,0.5,5\n",
    "rows.tsv": "".join(f"{i % 2}\t" + "\t".join(f"{np.sin(i + t):.3f}" for t in range(30)) + "\n" for i in range(4)),
    "plain.csv": "1.5,2.5\n1.25,2.75\n0.5,-2\n",
    "archive.ts": "#about\n@problemName x\n@classLabel true a b\n@data\n1,2,3.5:4,5,?:a\n1.5,2:0,1:b\n",
}
EXPECTED = {
    "one.csv": [["1.5", "2.25", "-3", "4"]],
    "several.csv": [["heat=0.5", "wet=8", "heat=1.5", "wet=7", "heat=nan", "wet=9"]],
    "named.csv": [["0.5", "0.75"], ["1.5", "1.25"]],
    "comma.csv": [["2.5", "3.25", "-1.5"]],
    "missing.csv": [["v=1.5", "w=2", "v=nan", "w=3", "v=2.5", "w=4", "v=0.5", "w=5"]],
    "plain.csv": [["x1=1.5", "x2=2.5", "x1=1.25", "x2=2.75", "x1=0.5", "x2=-2"]],
    "archive.ts": [["x1=1", "x2=4", "x1=2", "x2=5", "x1=3.5", "x2=nan"], ["x1=1.5", "x2=0", "x1=2", "x2=1"]],
}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    for name, text in TABLES.items():
        (tmp_path / name).write_text(text)
    return {name: tmp_path / name for name in TABLES}


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_recognised_and_read_as_series(files: dict[str, Path], name: str) -> None:
    data = read(files[name])
    assert data.kind is SERIES
    if name in EXPECTED:
        assert [record.object for record in data] == EXPECTED[name]
    else:
        assert len(data) == 4 and all(len(record) == 30 for record in data) and "class 1" in data[1].name


def test_the_contract_of_kinds(files: dict[str, Path]) -> None:
    check_kind(SERIES, [path for name, path in files.items()])


def test_requested_columns_and_rows_are_read(files: dict[str, Path]) -> None:
    assert read(files["several.csv"], columns="wet")[0].object == ["8", "7", "9"]
    assert read(files["several.csv"], columns=["wet", "heat"])[0].object[:2] == ["wet=8", "heat=0.5"]
    assert [record.object for record in read(files["plain.csv"], rows=True)] == [["1.5", "2.5"], ["1.25", "2.75"],
                                                                                 ["0.5", "-2"]]
    with pytest.raises(SegueError, match="no column 'x'; there are date, heat, wet"):
        read(files["several.csv"], columns="x")
    with pytest.raises(SegueError, match="column 'date' holds no numbers"):
        read(files["several.csv"], columns="date")


def test_columns_that_hold_times_are_recognised(tmp_path: Path) -> None:
    def values(text: str, **options: Any) -> list[str]:
        (tmp_path / "a.csv").write_text(text)
        return list(read(tmp_path / "a.csv", **options)[0].object)

    # The day of a month alone says no order: rows stay, and the columns that count them go.
    dates = [(month, day) for month in (1, 2) for day in range(1, 29)]
    rows = "".join(f"{i},2020,{day},{month + day / 100}\n" for i, (month, day) in enumerate(dates))
    columns = as_columns(values("No,year,day,v\n" + rows))
    assert list(columns) == ["year", "day", "v"]
    np.testing.assert_allclose(columns["v"], [month + day / 100 for month, day in dates])
    # Days or months first: the user can say it.
    rows = "".join(f"{month:02}/01/2020,{month}.5\n" for month in (2, 3, 1))
    with pytest.raises(SegueError, match="give when_format="):
        values("Date,v\n" + rows)
    assert values("Date,v\n" + rows, when_format="%m/%d/%Y") == ["1.5", "2.5", "3.5"]
    # Other languages, newest first.
    assert values("日付,気温\n2020/01/02,2.5\n2020/01/01,1.5\n") == ["1.5", "2.5"]
    assert values("day,v\nMonday,1.5\nFriday,2.5\n", kind="series") == ["1.5", "2.5"]
    assert values("0.5,1.5\n1.5,1.5\n") == ["x1=0.5", "x2=1.5", "x1=1.5", "x2=1.5"]  # no count of rows


def test_numbers_in_common_spellings_are_read(tmp_path: Path) -> None:
    for cells, expected in ((["1,234.50", "999.5", "-2,000"], [1234.5, 999.5, -2000]), (["1,234", "999"], [1234, 999]),
                            (["1,234,567", "1,000,000"], [1234567, 1e6]), (["1.234,5", "999,5"], [1234.5, 999.5]),
                            (["1,5", "2,25"], [1.5, 2.25]), (["0,123", "1,234"], [0.123, 1.234]),
                            (["1,5", "x"], [1.5, np.nan]), (["1.5", None, "1e3"], [1.5, np.nan, 1000])):
        np.testing.assert_array_equal(numbers_in(cells), expected)
    (tmp_path / "a.csv").write_text('Date,Close,Volume\n"Jan 2, 2020",999.5,"1,234,567"\n"Jan 1, 2020","1,001.5",900\n')
    assert read(tmp_path / "a.csv")[0].object == ["Close=1001.5", "Volume=900", "Close=999.5", "Volume=1234567"]
    decimals = pa.array([Decimal("1.25"), Decimal("-3.50")])
    parquet.write_table(pa.table({"price": decimals}), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet", kind="series")[0].object == ["1.25", "-3.5"]


@pytest.mark.parametrize(("name", "text", "kind"), [
    ("months.csv", "Month,Passengers\n1949-01,112\n1949-02,118\n1949-03,132\n", "series"),
    ("days.csv", "Date,Births\n1959-01-01,35\n1959-01-02,32\n1959-01-03,30\n", "series"),
    ("sorts.csv", "time,sky,heat\n2020-01-01,rain,1.5\n2020-01-02,sun,2.5\n2020-01-03,sun,0.5\n", "series"),
    ("tickers.csv", "date,ticker,close\n2020-01-01,AA,1.5\n2020-01-01,BB,2.5\n2020-01-02,AA,1.25\n", "series"),
    ("status.csv", "time,status\n2020-01-01,200\n2020-01-02,404\n2020-01-03,200\n", "events"),
    ("clicks.csv", "user,item,rating,date\n1,2,4.5,2020-01-01\n1,3,3.5,2020-01-02\n2,2,1.0,2020-01-03\n", "events"),
    ("class.ts", "@Data()\nexport class A {\n  x: number = 1.5;\n}\n", "code"),
])
def test_only_measured_tables_are_series(tmp_path: Path, name: str, text: str, kind: str) -> None:
    (tmp_path / name).write_text(text)
    assert read(tmp_path / name).kind.name == kind


def test_levels_cover_all_numbers() -> None:
    codec = SERIES.codec(of([[str(number) for number in range(250_000)]], kind="series"))
    assert abs(float(codec.decode(codec.encode(["249000"]))[0]) - 249_000) < 3000


def test_files_are_read_with_the_models_columns(files: dict[str, Path], tmp_path: Path) -> None:
    codec = SERIES.codec(read(files["several.csv"]))
    (tmp_path / "more.csv").write_text('wet,date,heat,"dry, cold"\n1,2020-01-01,2.5,3\n')
    options = SERIES.reading(codec)
    assert read(tmp_path / "more.csv", **options)[0].object == ["heat=2.5", "wet=1"]
    assert read(tmp_path / "more.csv", columns=["dry, cold"])[0].object == ["3"]
    assert read(tmp_path / "more.csv", columns="wet,heat")[0].object == ["wet=1", "heat=2.5"]
    original = read(files["plain.csv"])
    assert read(files["plain.csv"], **SERIES.reading(original.codec()))[0].object == original[0].object
    assert SERIES.reading(SERIES.codec(read(files["one.csv"]))) == {"column": "value"}


def test_a_damaged_array_is_one_error_line(tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(b'\x93NUMPY\x01\x00v\x00{"descr": ( \n' + b" " * 120)
    for kind in (None, "series", "events"):
        with pytest.raises(SegueError, match=r"a\.npy"):
            read(tmp_path / "a.npy", kind=kind)


def test_many_series_of_one_table(tmp_path: Path) -> None:
    rows = [f"s{i % 5000},{i // 5000},{i % 7}.5" for i in range(20_000)]
    (tmp_path / "a.csv").write_text("\n".join(["sensor,time,v", *rows]))
    data = read(tmp_path / "a.csv")
    assert len(data) == 5000 and data[4999].object == [f"{(4999 + 5000 * t) % 7}.5" for t in range(4)]


def test_arrays_and_packed_files(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([[0.5, 1], [2, 3]], dtype=np.float32))
    assert read(tmp_path / "a.npy")[0].object == ["x1=0.5", "x2=1", "x1=2", "x2=3"]
    np.save(tmp_path / "ids.npy", np.arange(5))
    assert read(tmp_path / "ids.npy").kind.name == "events"  # whole numbers are symbols, unless one says so
    assert read(tmp_path / "ids.npy", kind="series")[0].object == list("01234")
    (tmp_path / "one.csv.gz").write_bytes(gzip.compress(TABLES["one.csv"].encode()))
    assert read(tmp_path / "one.csv.gz").kind is SERIES


@pytest.mark.parametrize(("name", "text", "reason"), [
    ("cut.ts", "@problemName x\n@univariate true\n", "no line @data"),
    ("bad.ts", "@data\n1,x,3\n", "line 2: 'x' is no number"),
    ("empty.csv", "", "the file is empty"),
    ("words.csv", "a,b\nx,y\nz,w\n", "there are no numbers here"),
])
def test_unreadable_files_give_the_reason(tmp_path: Path, name: str, text: str, reason: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(SegueError, match=reason):
        list(SERIES.read(tmp_path / name))


def test_a_model_of_one_column_finds_it_among_others(tmp_path: Path) -> None:
    (tmp_path / "one.csv").write_text("date,OT\n2020-01-01,1.5\n2020-01-02,2.5\n")
    (tmp_path / "wide.csv").write_text("date,HUFL,OT\n2020-01-01,7.5,3.5\n2020-01-02,8.5,4.5\n")
    (tmp_path / "other.csv").write_text("date,HUFL,LULL\n2020-01-01,7.5,3.5\n2020-01-02,8.5,4.5\n")
    (tmp_path / "renamed.csv").write_text("date,heat\n2020-01-01,7.5\n2020-01-02,8.5\n")
    data = read(tmp_path / "one.csv")
    data.save(tmp_path / "saved")
    for form in (data, data.open(tmp_path / "saved")):
        codec = SERIES.codec(form)
        codec.save(tmp_path / "codec")
        options = SERIES.reading(type(codec).load(tmp_path / "codec"))
        assert read(tmp_path / "wide.csv", **options)[0].object == ["3.5", "4.5"]
        assert read(tmp_path / "renamed.csv", **options)[0].object == ["7.5", "8.5"]  # there is no other
        assert read(tmp_path / "wide.csv", columns=["HUFL"], **options)[0].object == ["7.5", "8.5"]
        with pytest.raises(SegueError, match="there is no column 'OT' of numbers, which the model was fitted on; there "
                                             "are HUFL, LULL: name one with columns="):
            read(tmp_path / "other.csv", **options)


def test_truncated_arrays_are_refused(tmp_path: Path) -> None:
    values = np.arange(12, dtype=">f4").reshape(4, 3)
    for name, array in (("c", values), ("fortran", np.asfortranarray(values))):
        np.save(tmp_path / f"{name}.npy", array)
        assert read(tmp_path / f"{name}.npy", kind="series")[0].object[:4] == ["x1=0", "x2=1", "x3=2", "x1=3"]
    content = (tmp_path / "c.npy").read_bytes()
    (tmp_path / "cut.npy").write_bytes(content[:-5])
    with pytest.raises(SegueError, match="the file was cut: it has 10 of 12 values"):
        read(tmp_path / "cut.npy", kind="series")
    np.save(tmp_path / "none.npy", np.zeros((0, 3)))
    with pytest.raises(SegueError, match="is no series"):
        read(tmp_path / "none.npy", kind="series")
    np.save(tmp_path / "objects.npy", np.array([None, "x"], dtype=object), allow_pickle=True)
    for kind in ("series", "events", "picture"):
        with pytest.raises(SegueError, match="no array that can be read"):
            read(tmp_path / "objects.npy", kind=kind)


numbers = st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=400)


@settings(max_examples=40, deadline=None)
@given(numbers, st.integers(2, 40))
def test_levels_are_close_and_exact_for_few_values(values: list[float], levels: int) -> None:
    array = np.array(values)
    codec = LevelCodec({"": levels_of(array, levels)})
    obj = as_elements({"": array})
    check_codec(codec, [obj])
    decoded = np.array(codec.decode(codec.encode(obj)), dtype=float)
    if len(np.unique(array)) <= 2 * levels:
        np.testing.assert_allclose(decoded, array, rtol=1e-6, atol=1e-30)
    else:  # nearest of the levels, which are closer than an even grid of half their number over the range
        width = 1.5 * np.ptp(array) / max(levels // 2 - 1, 1)
        assert np.abs(decoded - array).max() <= max(width, 1e-6)


def test_columns_left_out_by_a_model_are_missing_values() -> None:
    columns = as_columns(["a=1", "b=2", "a=3", "a=4", "b=5", "b=6"])
    np.testing.assert_array_equal(columns["a"], [1, 3, 4, np.nan])
    np.testing.assert_array_equal(columns["b"], [2, np.nan, 5, 6])


def test_a_model_learns_and_continues_a_wave(tmp_path: Path) -> None:
    time = np.arange(3000)
    wave = np.stack([np.sin(time / 4), np.cos(time / 4)], 1).round(1)
    np.save(tmp_path / "wave.npy", wave)
    model = segue.fit(tmp_path / "wave.npy", steps=100, quiet=True, mixer="gru", width=48)
    prime = as_elements({"x1": wave[:100, 0], "x2": wave[:100, 1]})
    answer = model.continue_(prime, n=40, decoder="greedy")
    continuation = as_columns(answer.value)
    assert np.abs(continuation["x1"] - wave[100:120, 0]).mean() < 0.25
    answer.save(tmp_path / "more.csv")
    assert read(tmp_path / "more.csv")[0].object[:200] == prime
    assert answer.text.startswith("x1=")


def test_typed_numbers_become_elements() -> None:
    assert SERIES.normalise("1.50, 2 nan") == ["1.5", "2", "nan"]
    assert SERIES.normalise(np.array([0.25, -1.0])) == ["0.25", "-1"]
    assert SERIES.normalise("a=1.0 b=2") == ["a=1", "b=2"]
    assert SERIES.normalise("Temp (C)=1.0, Rel. hum, %=2 → Temp (C)=nan") == \
        ["Temp (C)=1", "Rel. hum, %=2", "Temp (C)=nan"]
    with pytest.raises(SegueError, match="'x' is no measured number"):
        SERIES.normalise("1 x")


DAYS_OF_2020 = [f"{1 + i // 28}/{1 + i % 28}/20" for i in range(56)]
WIDE = {
    "covid.csv": ",Country/Region,Lat,Long," + ",".join(DAYS_OF_2020) + "\n" + "".join(
        f",Land {c},{c}.5,{c}.25," + ",".join(str((c + 1) * i) for i in range(56)) + "\n" for c in range(12)),
    "years.csv": "Country," + ",".join(map(str, range(2000, 2020))) + "\n" + "".join(
        f"Land {c}," + ",".join(f"{(c + 1) * 1.04 ** y:.3f}" for y in range(20)) + "\n" for c in range(12)),
    "Yearly-test.csv": '"V1","V2","V3","V4","V5","V6","V7"\n' + "".join(
        f'"Y{c}",' + ",".join(f'"{1000 * (c + 1) + 9 * y}.5"' for y in range(6)) + "\n" for c in range(12)),
    "sales.csv": "id,item_id,state_id," + ",".join(f"d_{i}" for i in range(1, 31)) + "\n" + "".join(
        f"A_{c}_X,A_{c},CA," + ",".join(str((c * i) % 5) for i in range(30)) + "\n" for c in range(12))}


@pytest.mark.parametrize("name", WIDE)
def test_tables_with_a_column_per_moment_are_read(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(WIDE[name])
    data = segue.read(tmp_path / name)
    assert data.kind.name == "series" and len(data) == 12 and data.problems.note.startswith("a row a series, named by")


HOURS = [f"2011-01-{1 + i // 24:02d} {i % 24:02d}:00:00" for i in range(48)]


@pytest.mark.parametrize("name, content, note", [
    ("LD2011.txt", '"";' + ";".join(f'"MT_{i:03d}"' for i in range(1, 31)) + "\n" + "".join(
        f'"{hour}";' + ";".join(f"{i * c % 7},{c}" for c in range(30)) + "\n" for i, hour in enumerate(HOURS)),
     "(30 in all), when=1 (2011-01-01 00:00:00 to"),
    ("two.csv", "Region,North,,South,\nDate,Sales,Cost,Sales,Cost\n" + "".join(
        f"{hour},{i},{i % 5}.5,{i % 7},{i % 3}\n" for i, hour in enumerate(HOURS)),
     "columns=North Sales,North Cost,South Sales,South Cost, when=Date"),
    ("stock.csv", "Price,Close,Volume\nTicker,AAPL,AAPL\nDate,,\n" + "".join(
        f"{hour[:10]},{i}.5,{i * i}\n" for i, hour in enumerate(HOURS[::24] * 1)) + "".join(
        f"2011-02-{i:02d},{i}.5,{i * i}\n" for i in range(1, 20)), "columns=Close,Volume, when=Date"),
    ("load.csv", '"Y"\n' + "".join(f"{20000 + i * i}\n" for i in range(40)), "columns=Y"),
    ("rates.csv", "0,1,2\n" + "".join(f"{i * 7 % 40 / 8},{i}.25,{i + i % 3}\n" for i in range(40)), "columns=0,1,2"),
    ("parts.csv", "date,year,month,level\n" + "".join(f"2020-{i % 12 + 1:02d}-01,2020,{i + 1},{i}.5\n"
                                                      for i in range(12)), "columns=level, when=date"),
    ("sun.csv", "Month,Sunspots\n" + "".join(f"{1749 + i // 12}-{i % 12 + 1:02d},{i}.5\n" for i in range(40)),
     "columns=Sunspots, when=Month (1749-01-01"),
    ("rows.csv", "rownames,value\n" + "".join(f"{i + 1},{abs(i - 20)}.5\n" for i in range(40)), "columns=value"),
])
def test_headers_of_numbers_of_several_rows_and_of_units(tmp_path: Path, name: str, content: str, note: str) -> None:
    (tmp_path / name).write_text(content)
    data = segue.read(tmp_path / name)
    assert data.kind.name == "series" and note in data.problems.note, data.problems.note
