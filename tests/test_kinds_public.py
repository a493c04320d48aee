"""Files as public data sets, traders' programs and archives have them, each read as what it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from test_kinds_read import put

from segue.data import Data, read
from segue.errors import SegueError

START = 1609459200000  # the first of January 2021 in milliseconds
draw = np.random.default_rng(0)


def lines(row: Callable[[int], str], count: int = 40, head: str = "") -> str:
    """A file of `head` and so many rows."""
    return head + "".join(row(i) + "\n" for i in range(count))


def near(middle: float, spread: float, digits: int = 2) -> str:
    return f"{draw.normal(middle, spread):.{digits}f}"


def one_of(*choices: str) -> str:
    return str(draw.choice(choices))


def check(path: Path, kind: str, sequences: int, note: str) -> Data:
    data = read(path)
    assert data.kind.name == kind and note in data.problems.description, (data.kind.name, data.problems.description)
    assert len(data) == sequences
    return data


# -- Times

def test_times_that_are_ambiguous_at_one_moment_are_an_error(tmp_path: Path) -> None:
    content = lines(lambda i: f"{i},Story {i} of them,{i % 3},8/4/2016 11:52", head="id,title,author,created_at\n")
    with pytest.raises(SegueError, match="day/month or month/day"):
        read(put(tmp_path / "news.csv", content), kind="events", who="author", what="title")


def test_times_of_traders_and_of_prom(tmp_path: Path) -> None:
    head = "<TICKER>,<PER>,<DATE>,<TIME>,<CLOSE>\n"
    content = lines(lambda i: f"EURUSD,5,20000530,{i // 12:02}{i % 12 * 5:02}00,{near(.93, .001, 4)}",
                    head=head)
    check(put(tmp_path / "eurusd.txt", content), "series", 1,
          "when=<DATE> <TIME> (2000-05-30 00:00:00 to 2000-05-30 03:15:00, every 0:05:00)")
    content = lines(lambda i: f"{i // 4};{35654423 + i};09-10-2012:1{i % 10}.{10 + i};{one_of('decide', 'pay')}",
                    head="Case ID;Event ID;dd-MM-yyyy:HH.mm;Activity\n")
    check(put(tmp_path / "running.csv", content), "events", 10, "when=dd-MM-yyyy:HH.mm (2012-10-09 10:10:00")


# -- Rows

@pytest.mark.parametrize("head, row, label", [
    ("age,workclass,sex,hours,income", lambda i: f"{20 + i},Private,{one_of('Male', 'Female')},{30 + i % 9},"
     f"{one_of('<=50K', '>50K')}", "income"),
    ("id,gender,age,bmi,smokes,stroke", lambda i: f"{9 * i + 3},{one_of('Male', 'Female')},{30 + i * 7 % 40},"
     f"{near(28, 3, 1)},{one_of('yes', 'no', 'once')},{i % 3 // 2}", "stroke"),
    ("male,age,chol,glucose,TenYearCHD", lambda i: f"{i % 2},{30 + i * 7 % 40},{near(230, 30, 1)},{near(80, 9, 1)},"
     f"{i % 3 // 2}", "TenYearCHD"),
    ("X,Y,month,temp,wind,area", lambda i: f"{draw.integers(9)},{draw.integers(7)},{one_of('mar', 'oct')},"
     f"{near(18, 4, 1)},{near(4, 1, 1)},{near(9, 3)}", None)])
def test_the_class_is_no_trait_of_people_and_no_place(tmp_path: Path, head: str, row: Callable[[int], str],
                                                      label: str | None) -> None:
    note = f"class={label} (last)" if label else "area"
    data = check(put(tmp_path / "people.csv", lines(row, 80, head + "\n")), "rows", 80, note)
    assert label or "class=" not in data.problems.description


def test_files_of_rows_have_the_columns_of_the_first(tmp_path: Path) -> None:
    head = "pulse,oxygen,age,unit\n"
    for name, count in (("p1.psv", 60), ("p2.psv", 20)):
        content = lines(lambda i: f"{near(80, 9)},{near(97, 1)},83,UNIT", count, head).replace(",", "|")
        put(tmp_path / "stay" / name, content.replace("UNIT", name))
    data = read(tmp_path / "stay", kind="rows")
    assert {tuple(item.partition("=")[0] for item in record.object) for record in data} == {("pulse", "oxygen", "unit")}
    assert len(data) == 80


# -- Series

def day(i: int) -> str:
    return str(np.datetime64("2020-01-01") + i)


@pytest.mark.parametrize("name, content, note", [
    ("sunspots.csv", lines(lambda i: f"{1749 + i // 12};{i % 12 + 1:02};{1749 + i / 12:.3f}; {near(96, 9, 1)};1"),
     "columns=4,5, when=1 2 (1749-01-01 00:00:00 to 1752-04-01 00:00:00, every month); not read: 3"),
    ("co2.txt", lines(lambda i: f"{1958 + i // 12}  {i % 12 + 1}  {near(315, 1)}  {near(315, 1)}",
                      head="# Monthly means\n#      date  average\n"), "when=1 2 (1958-01-01"),
    ("rain.txt", lines(lambda i: f"2020 1 {i % 31 + 1} {near(3, 1)} {near(8, 1)}", 31), "when=1 2 3 (2020-01-01"),
    ("klines.csv", lines(lambda i: f"{START + 60000 * i},{near(9, 2)},{near(1, .1)},{START + 60000 * i + 59999}"),
     "columns=2,3, when=1 (2021-01-01 00:00:00 to 2021-01-01 00:39:00, every 0:01:00); not read: 4"),
    ("forex.csv", lines(lambda i: f"2000.05.30,{8 + i // 12:02}:{i % 12 * 5:02},{near(.9, .01, 4)},{near(.9, .01, 4)}"),
     "columns=3,4, when=1 2 (2000-05-30 08:00:00 to 2000-05-30 11:15:00, every 0:05:00)"),
    ("minutes.csv", lines(lambda i: f"20120201 00{i:02}00;1.306{i % 3};{near(1.3, .1, 4)};0"), "when=1 (2012-02-01"),
    ("body.dat", lines(lambda i: f"{8.38 + i * .01:.2f} 0 {'NaN' if i % 9 else 104} {near(3, .1)} {near(2, .1)}"),
     "columns=2,3,4,5, when=1 (8.38 to 8.77, every 0.01)"),
    ("buoy.txt", lines(lambda i: f"2020 01 {1 + i // 24:02} {i % 24:02} 50 {near(200, 50, 0)} {near(7, 1)} 99.0", head=(
        "#YY  MM DD hh mm WDIR WSPD GST\n#yr  mo dy hr mn degT m/s  m/s\n")), "when=YY MM DD hh (2020-01-01"),
    ("river.rdb", lines(lambda i: f"USGS\t01646500\t{day(i)}\t{near(6000, 500, 0)}\tA", head=(
        "# WARNING\n#\nagency_cd\tsite_no\tdatetime\t85652_00060\t85652_00060_cd\n5s\t15s\t20d\t14n\t10s\n")),
     "columns=85652_00060, when=datetime (2020-01-01"),
])
def test_series_of_public_archives(tmp_path: Path, name: str, content: str, note: str) -> None:
    check(put(tmp_path / name, content), "series", 1, note)
