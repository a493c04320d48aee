"""Files as public data sets, traders' programs and archives have them, each read as what it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from test_kinds_read import put

from segue.data import Data, read
from segue.errors import SegueError

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
