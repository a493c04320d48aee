"""Files as public data sets, traders' programs and archives have them, each read as what it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
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
    for name, head, row in (("gender_submission", "PassengerId,Survived", lambda i: f"{i + 900},{i % 2}"),
                            ("test", "PassengerId,Class,Sex,Age", lambda i: f"{i + 900},{i % 3},{one_of(*'mf')},{i}"),
                            ("train", "PassengerId,Class,Sex,Age,Survived",
                             lambda i: f"{i},{i % 3},{one_of(*'mf')},{i % 37},{i % 2}")):
        put(tmp_path / "ship" / f"{name}.csv", lines(row, 60, head + "\n"))
    data = read(tmp_path / "ship")
    assert data.kind.name == "rows" and len(data) == 120 and len(data[0]) == 4 and len(data[60]) == 3
    assert "there is no column Survived: rows are read without" in str(data.problems)


def test_numbers_of_rows_some_of_which_are_missing_are_no_times(tmp_path: Path) -> None:
    content = lines(lambda i: f"{i + i // 7 + 1},{near(1.5, .1)},{near(13, 1)},{near(72, 2)},{i // 20 + 1}", 60)
    check(put(tmp_path / "glass.data", content), "rows", 60, "class=x5 (last)")


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
    ("klima.txt", lines(lambda i: f"     433;{day(i).replace('-', '')};   {near(9, 2, 1)};  {near(4, 1, 1)};eor", head=(
        "STATIONS_ID;MESS_DATUM;  FX; TMK;eor\n")), "columns=FX,TMK, when=MESS_DATUM (2020-01-01 00:00:00 to 2020-02"),
    ("load.csv", lines(lambda i: f'"01.01.2021 {i:02}:00 - 01.01.2021 {i + 1:02}:00","{near(5e4, 900, 0)}"', 23, (
        '"Time (UTC)","Actual Total Load [MW] - DE"\n')), "when=Time (UTC) (2021-01-01 00:00:00 to 2021-01-01 22:"),
    ("factors.csv", lines(lambda i: f"{1926 + i // 12}{i % 12 + 1:02},  {near(.5, 4)},  {near(0, 2)}", head=(
        "Made by a program of the year before.\n\n,Mkt-RF,SMB\n")), "columns=Mkt-RF,SMB, when=1 (1926-01-01"),
])
def test_series_of_public_archives(tmp_path: Path, name: str, content: str, note: str) -> None:
    check(put(tmp_path / name, content), "series", 1, note)


def test_several_series_of_other_libraries(tmp_path: Path) -> None:
    head, rows = "unique_id,ds,y\n", (lines(lambda i: f"NAME,{i + 1},{near(9, 2, 1)}") for _ in range(2))
    content = head + "".join(row.replace("NAME", name) for row, name in zip(rows, ("H1", "H2")))
    check(put(tmp_path / "nixtla.csv", content), "series", 2, "columns=y, who=unique_id, when=ds (1 to 40, every 1)")
    content = lines(lambda i: json.dumps({"start": "2014-09-07", "target": [i, 3, 5, i % 4], "item_id": f"T{i}"}), 9)
    check(put(tmp_path / "gluonts.jsonl", content), "series", 9, "columns=target, a series a row")


def test_bytes_and_durations_in_parquet(tmp_path: Path) -> None:
    sentences = [f"Some sentence number {i} of it.".encode() for i in range(9)]
    parquet.write_table(pa.table({"text": pa.array(sentences, pa.binary())}), tmp_path / "old.parquet")
    assert check(tmp_path / "old.parquet", "text", 9, "field=text")[3].object == sentences[3]
    times = pa.array([timedelta(seconds=2 * i) for i in range(30)])
    parquet.write_table(pa.table({"time": times, "v": draw.normal(size=30)}), tmp_path / "stop.parquet")
    check(tmp_path / "stop.parquet", "series", 1, "columns=v, when=time (0 to 58, every 2)")


def test_numbers_below_zero_weeks_and_quarters(tmp_path: Path) -> None:
    content = lines(lambda i: f'{day(i)},"{("(1,234.50)", "2,345.10", "(12.00)")[i % 3]}"', head="date,profit\n")
    assert check(put(tmp_path / "a.csv", content), "series", 1, "profit")[0].object[:3] == ["-1234.5", "2345.1", "-12"]
    content = lines(lambda i: f"{2019 + i // 52},{i % 52 + 1},{i * 7 % 90}", 70, "year,week,cases\n")
    check(put(tmp_path / "b.csv", content), "series", 1, "when=year week (2018-12-31 00:00:00 to 2020-04-27 00:00:00")
    content = lines(lambda i: f"Q{i % 4 + 1} {2000 + i // 4},{near(5, 1)}", head="Period,GDP\n")
    check(put(tmp_path / "c.csv", content), "series", 1, "when=Period (2000-01-01 00:00:00 to 2009-10-01 00:00:00")


def test_objects_by_date_and_by_user(tmp_path: Path) -> None:
    rows = {day(9 - i): {"1. open": near(120, 2), "4. close": near(120, 2)} for i in range(9)}
    content = json.dumps({"Meta Data": {"2. Symbol": "IBM"}, "Time Series (Daily)": rows})
    check(put(tmp_path / "a.json", content), "series", 1, "columns=1. open,4. close, when=date (2020-01-02")
    content = json.dumps({f"u{i}": [f"i{(i + k) % 5}" for k in range(i % 4 + 1)] for i in range(20)})
    data = check(put(tmp_path / "b.json", content), "events", 20, "who=who, what=items")
    assert data[2].name == "u2" and data[2].object == ["i2", "i3", "i4"]


def test_what_stations_measure_are_series_whatever_is_beside_it(tmp_path: Path) -> None:
    content = lines(lambda i: f"{i + 1},2013,3,{1 + i // 24},{i % 24},{near(9, 2, 1)},{near(0, 1, 1)},"
                    f"{one_of('NNW', 'N')},{near(4, 1, 1)},A", head="No,year,month,day,hour,PM,TEMP,wd,WSPM,station\n")
    check(put(tmp_path / "air.csv", content), "series", 1, "columns=PM,TEMP,WSPM, who=station, when=year month day ")
    content = "Date,Location,MinTemp,MaxTemp,Rainfall,WindGustDir,RainTomorrow\n" + "".join(lines(
        lambda i: f"{day(i)},TOWN,{near(13, 3, 1)},{near(23, 3, 1)},{near(9, 2, 1)},{one_of(*'NEW')},{one_of(*'YN')}"
        ).replace("TOWN", town) for town in ("Albury", "Cobar"))
    check(put(tmp_path / "weather.csv", content), "series", 2, "columns=MinTemp,MaxTemp,Rainfall, who=Location, ")


# -- Events

@pytest.mark.parametrize("name, content, sequences, note", [
    ("triplets.txt", lines(lambda i: f"b80344d063b5ccb{i % 4}\tSOAKIMP12A8C1309{i % 9}\t{i % 20}"), 4, "who=1, what=2"),
    ("answers.csv", lines(lambda i: f"{i},{i % 20 * 900},{115 + i // 20},{3000 + i * 7 % 30},{i % 20},{i % 4}", head=(
        "row_id,timestamp,user_id,content_id,task_container_id,user_answer\n")), 2, "who=user_id, what=content_id"),
    ("u1.csv", lines(lambda i: f"{START + 1000 * i * i},{i + 1},q{i * 7 % 20},{one_of(*'abcd')},{near(9, 1, 0)}", head=(
        "timestamp,solving_id,question_id,user_answer,elapsed_time\n")), 1, "who=the file, what=question_id"),
    ("viewed.csv", lines(lambda i: f'"Breaking: Season {i % 5}: {one_of("Fly", "Pilot")}",{i % 12 + 1}/{i % 28 + 1}/21',
                         head="Title,Date\n"), 1, "who=the file, what=Title, when=Date"),
    ("trace.txt", " ".join(one_of(*"69") for _ in range(256)), 1, ""),
])
def test_events_of_public_data_sets(tmp_path: Path, name: str, content: str, sequences: int, note: str) -> None:
    check(put(tmp_path / name, content), "cases" if name == "trace.txt" else "events", sequences, note)


def test_measured_numbers_beside_times_are_no_events(tmp_path: Path) -> None:
    path = put(tmp_path / "warm.csv", lines(lambda i: f"{day(i)},{near(9, 2)}", head="date,temperature\n"))
    with pytest.raises(SegueError, match="its numbers are measured"):
        read(path, kind="events")


# -- Text beside numbers

@pytest.mark.parametrize("head, row, field", [
    ("id,comment_text,toxic,obscene,threat,insult", lambda i: f'c{i},"Why the edits made under my name {i} were\ngone, '
     f'when they were just closures?",{i % 2},0,{i % 3},0', "comment_text"),
    ("tweet_id,author_id,text,in_response_to_tweet_id", lambda i: f'{i},{one_of("sprint", "delta")},'
     f'"I would like to help you {i} times, please send a message",{i + 3}.0', "text")])
def test_texts_with_labels_beside_them_are_texts(tmp_path: Path, head: str, row: Callable[[int], str],
                                                 field: str) -> None:
    check(put(tmp_path / "texts.csv", lines(row, head=head + "\n")), "text", 40, f"field={field}")


def test_places_with_a_date_of_each_are_rows(tmp_path: Path) -> None:
    content = lines(lambda i: f"{2539 + i},Clean apartment by the park {i},{i % 20 + 7},{one_of('Bronx', 'Queens')},"
                    f"{near(40.7, .1, 4)},{near(-73.9, .1, 4)},{near(99, 20, 0)},201{i * 7 % 10}-01-{i * 11 % 19 + 10}",
                    60, "id,name,host_id,borough,latitude,longitude,price,last_review\n")
    check(put(tmp_path / "rooms.csv", content), "rows", 60, "borough,latitude,longitude,price")


# -- Files with a layout of their own

def test_logs_of_servers_say_who_asked_for_what(tmp_path: Path) -> None:
    content = lines(lambda i: f"www.example.com:80 10.0.0.{i % 4} - - [06/Nov/2014:19:10:{i:02} +0600] "
                    f'"GET /news/{i % 7}.html HTTP/1.1" 404 177 "-" "Mozilla/5.0"')
    check(put(tmp_path / "hosts.log", content), "events", 4, "who=client, what=request, when=time")
    content = lines(lambda i: f"{1066036250 + i}.129    {i * 7} 10.0.0.{i % 4} TCP_MISS/200 {i * 99} GET "
                    f"http://www.goonernews.com/{i % 7} - DIRECT/207.58.145.61 text/html")
    data = check(put(tmp_path / "squid.log", content), "events", 4, "who=client, what=url, when=time")
    assert data[0].object[:2] == ["http://www.goonernews.com/0", "http://www.goonernews.com/4"]


def test_ratings_below_their_films_and_marks_behind_numbers(tmp_path: Path) -> None:
    content = "".join(f"{film}:\n" + lines(lambda i: f"{1000 + i},{i % 5 + 1},2005-09-{i + 1:02}", 9) for film in "12")
    data = check(put(tmp_path / "combined_data_1.txt", content), "events", 9, "who=1, what=2, when=4")
    assert data[0].object == ["1", "2"]
    years = [*range(2000, 2012)]
    content = "freq,geo\\TIME_PERIOD\t" + "\t".join(f"{year} " for year in years) + "\n" + lines(
        lambda i: f"A,C{i}\t" + "\t".join(": " if year == 2003 else ": c" if year == 2004 else f"{near(3, 1, 1)} b"
                                          for year in years), 9)
    data = check(put(tmp_path / "nama.tsv", content), "series", 9, "a row a series, named by freq,geo")
    assert data[0].object[3:5] == ["nan", "nan"] and len(data[0]) == 12


def test_codes_between_blanks_are_rows(tmp_path: Path) -> None:
    content = lines(lambda i: f"A1{i * 7 % 4} {near(20, 5, 0)} A3{i * 5 % 3} A4{i * 11 % 5} {near(3000, 900, 0)} A201 "
                    f"{i * 13 % 5 // 4 + 1}", 60)
    check(put(tmp_path / "german.data", content), "rows", 60, "class=x7 (last)")


def test_tables_of_users_and_commits(tmp_path: Path) -> None:
    content = lines(lambda i: f"{i + 1}|{20 + i * 7 % 40}|{one_of(*'MF')}|{one_of('writer', 'other')}|8{i}")
    check(put(tmp_path / "u.user", content), "rows", 40, "columns=x1,x2,x3,x4")
    content = lines(lambda i: f"user_{i}\t{one_of(*'mf')}\t{20 + i % 9}\t{one_of(*'JP')}\tAug {i % 28 + 1}, 2006",
                    head="#id\tgender\tage\tcountry\tregistered\n")
    check(put(tmp_path / "profile.tsv", content), "rows", 40, "age,country,")
    content = lines(lambda i: f"{i * 7919:08x},dev{i % 4},2021-03-{i % 28 + 1:02},Fix the parser for case {i} of it",
                    head="hash,author,date,message\n")
    check(put(tmp_path / "commits.csv", content), "text", 40, "field=message")


def test_ships_are_no_places(tmp_path: Path) -> None:
    content = lines(lambda i: f"3677116{i % 3},2020-06-30T00:{i // 3:02}:{i * 7 % 60:02},{near(21, .1, 4)},"
                    f"{near(-157, .1, 4)},{near(9, 1, 1)}", 90, "MMSI,BaseDateTime,LAT,LON,SOG\n")
    assert read(put(tmp_path / "ais.csv", content)).kind.name == "series"
    for name in "12":
        put(tmp_path / f"taxis/{name}.txt", lines(lambda i: f"TAXI,2008-02-02 15:{i:02}:08,{near(9, .1)},{near(3, .1)}"
                                                  ).replace("TAXI", name))
    assert read(tmp_path / "taxis")[1].object[0].startswith("x3=")


def test_letters_beside_frames_are_in_no_known_encoding(tmp_path: Path) -> None:
    content = lines(lambda i: f"用户{i % 5},商品{i % 7},2021-03-{i % 28 + 1:02}", head="用户,商品,时间\n")
    with pytest.raises(SegueError, match="is not UTF-8"):
        read(put(tmp_path / "chinese.csv", content.encode("gb18030")))
    data = read(tmp_path / "chinese.csv", encoding="gb18030")
    assert data.kind.name == "events" and data[0].name == "用户0"
