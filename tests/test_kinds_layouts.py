"""The same data in the layouts that people have it in: one reading for all delimiters, headers and clocks."""

from __future__ import annotations

import csv
import gzip
import io
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_kinds_read import GENBANK, put

from segue.data import Data, read
from segue.errors import SegueError
from segue.kinds.frame import NULLS

ANN = {"ann": ["milk", "tea", "tea"], "bob": ["milk"]}
ROWS = [("ann", "tea", 1700000030), ("bob", "milk", 1700000005), ("ann", "milk", 1700000010),
        ("ann", "tea", 1700000020)]


def sequences(data: Data) -> dict[str, list]:
    return {record.name: record.object for record in data}


def table(sign: str, header: str | None = "user,item,time", rows: list[tuple] = ROWS) -> str:
    lines = ([] if header is None else [header.replace(",", sign)]) + [sign.join(map(str, row)) for row in rows]
    return "\n".join(lines) + "\n"


JSONS = [dict(zip(("user", "item", "time"), row)) for row in ROWS]


@pytest.mark.parametrize("name, content", [
    ("tab named text.txt", table("\t")), ("comma.txt", table(",")), ("semicolon.csv", table(";")),
    ("pipe.csv", table("|")), ("comma.tsv", table(",")), ("double.dat", table("::")), ("blank.txt", table(" ")),
    ("u.data", table("\t", None)),
    ("ratings.dat", table("::", None)), ("none", table(",")), ("headless.csv", table(",", None)),
    ("aligned.txt", table("   ")), ("mac.csv", table(",").replace("\n", "\r")),
    ("windows.csv", table(",").replace("\n", "\r\n")), ("mark.csv", "\ufeff" + table(",")),
    ("excel.txt", table("\t").encode("utf-16")), ("excel.csv", table(";").encode("utf-16")),
    ("gone.txt.gz", gzip.compress(table("\t").encode(), mtime=0)),
    ("comment.tsv", "# by hand\n# really\n" + table("\t")),
    ("commented.tsv", table("\t", "#user,item,time")), ("percent.dat", "% asym\n" + table("\t", "% user,item,time")),
    ("title.csv", "Report of May\n\n" + table(",")), ("last.csv", table(",").replace("\n", ",\n")),
    ("index.csv", ",user,item,time\n" + "".join(f"{i},{a},{b},{c}\n" for i, (a, b, c) in enumerate(ROWS))),
    ("written by r.txt", table("\t", rows=[(f'"{i}"', *row) for i, row in enumerate(ROWS)])),
    ("spaces.csv", table(", ")), ("quotes.csv", table(",").replace("tea", '"tea"').replace("ann", '"ann"')),
    ("blank lines.csv", "\n\n" + table(",").replace("\n", "\n\n")),
    ("long.csv", "user,note,item,time\n" + "".join(f'{a},"many, many\nwords",{b},{c}\n' for a, b, c in ROWS)),
    ("array.json", json.dumps(JSONS)), ("pretty.json", json.dumps(JSONS, indent=2)),
    ("lines.json", "".join(json.dumps(row) + "\n" for row in JSONS)),
    ("nested.jsonl", "".join(json.dumps({"user": {"id": a}, "event": {"item": b}, "at": {"time": c}}) + "\n"
                             for a, b, c in ROWS)),
    ("deep.jsonl", "".join(json.dumps({"user": who, "events": [{"item": b, "time": c} for a, b, c in ROWS
                                                               if a == who]}) + "\n" for who in ("ann", "bob"))),
    ("lists.jsonl", "".join(json.dumps({"user": who, "items": [b for a, b, _ in ROWS if a == who],
                                        "time": [c for a, _, c in ROWS if a == who]}) + "\n"
                            for who in ("ann", "bob"))),
], ids=lambda value: value if isinstance(value, str) and len(value) < 20 else "")
def test_every_layout_of_a_table_gives_the_same_events(tmp_path: Path, name: str, content: str | bytes) -> None:
    data = read(put(tmp_path / name, content))
    assert data.kind.name == "events" and not data.problems.total - (name == "title.csv")
    assert sequences(data) == ANN
    times = next(record for record in data if record.name == "ann").channels
    assert times["time"].tolist() == [1700000010, 1700000020, 1700000030] and times["gap"].tolist() == [0, 10, 10]


ITEMS = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"], exclude_characters='#"'), min_size=1,
                max_size=6).filter(lambda text: text.strip() and text not in NULLS)


@settings(max_examples=60, deadline=None)
@given(sign=st.sampled_from([",", ";", "\t", "|"]), end=st.sampled_from(["\n", "\r\n"]), header=st.booleans(),
       encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]), suffix=st.sampled_from([".csv", ".tsv", ".txt"]),
       rows=st.lists(st.tuples(st.sampled_from(["ann", "bob", "A-17", "ø"]), ITEMS,
                               st.integers(1_500_000_000, 1_700_000_000)), min_size=4, max_size=12))
def test_any_table_is_read_as_it_was_written(tmp_path_factory, sign: str, end: str, header: bool, encoding: str,
                                             suffix: str, rows: list[tuple]) -> None:
    """Quoting, line ends, encodings and delimiters do not change the events."""
    rows = [*rows, ("ann", "tea", 1), ("ann", "tea", 2), ("bob", "x y", 3)]
    written = io.StringIO(newline="")
    writer = csv.writer(written, delimiter=sign, lineterminator=end)
    writer.writerows(([("user", "item", "time")] if header else []) + rows)
    path = put(tmp_path_factory.mktemp("any") / f"t{suffix}", written.getvalue().encode(encoding))
    expected: dict[str, list[str]] = {}
    for user, item, _ in sorted(rows, key=lambda row: row[2]):
        expected.setdefault(user, []).append(item)
    data = read(path, kind="events", **({} if header else {"who": "1", "what": "2", "when": "3"}))
    assert sequences(data) == expected


MOMENTS = [datetime(2023, 12, 25, 8, 5, 1), datetime(2023, 12, 25, 17, 30, 59)]
BETWEEN = (MOMENTS[1] - MOMENTS[0]).total_seconds()


@pytest.mark.parametrize("form", [
    "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S.%f", "%Y/%m/%d %H:%M:%S", "%Y/%m/%d %H:%M:%S.%f", "%d.%m.%Y %H:%M:%S",
    "%m/%d/%Y %I:%M:%S %p", "%d/%m/%y %H:%M:%S", "%d-%b-%Y %H:%M:%S", "%d %b %Y %H:%M:%S", "%b %d, %Y %H:%M:%S",
    "[%d/%b/%Y:%H:%M:%S +0000]", "%a, %d %b %Y %H:%M:%S GMT", "%a %b %d %H:%M:%S %Y", "%a %b %d %H:%M:%S UTC %Y",
    "%Y%m%d%H%M%S", "%Y%m%dT%H%M%SZ", "%d/%m/%Y %H:%M:%S.%f", "%H:%M:%S", "%Y-%m-%d %H:%M:%S+00:00", "%s", "%s000",
    "%s000000", "%s000000000", "%s.0", "%s.5e0"])
def test_every_form_of_time_gives_the_same_gaps(tmp_path: Path, form: str) -> None:
    texts = [moment.replace(tzinfo=UTC).strftime(form.replace("%s", str(int(moment.replace(tzinfo=UTC).timestamp()))))
             for moment in MOMENTS]
    path = put(tmp_path / "t.tsv", "user\titem\ttime\n" + "".join(f"u\t{i}\t{texts[i]}\n" for i in (1, 0)))
    record = read(path)[0]
    assert record.object == ["0", "1"] and record.channels["gap"][1] == pytest.approx(BETWEEN, abs=1e-3)


@settings(max_examples=40, deadline=None)
@given(moments=st.lists(st.datetimes(datetime(1971, 1, 1), datetime(2099, 1, 1)), min_size=3, max_size=8, unique=True),
       form=st.sampled_from(["%Y/%m/%d %H:%M:%S", "%d.%m.%Y %H:%M:%S", "%d-%b-%Y %H:%M:%S", "%Y-%m-%d %H:%M:%S"]),
       zone=st.sampled_from(["", "Z", " +0200", "-03:30"]))
def test_written_times_round_trip(tmp_path_factory, moments: list[datetime], form: str, zone: str) -> None:
    moments = [moment.replace(microsecond=0) for moment in moments]
    away = {" +0200": 7200, "-03:30": -12600}.get(zone, 0)
    rows = "".join(f"u\t{i}\t{moment.strftime(form)}{zone}\n" for i, moment in enumerate(moments))
    record = read(put(tmp_path_factory.mktemp("t") / "t.tsv", "user\titem\ttime\n" + rows))[0]
    assert record.channels["time"].tolist() == sorted(m.replace(tzinfo=UTC).timestamp() - away for m in moments)


def test_other_forms_of_time_are_read(tmp_path: Path) -> None:
    ties = read(put(tmp_path / "ties.csv", "user,item,time\nu,b,5\nu,a,5\nu,c,-1.5\n"))[0]
    assert ties.object == ["c", "b", "a"] and ties.channels["gap"].tolist() == [0, 6.5, 0], "ties as in the file"
    days = read(put(tmp_path / "days.csv", "user,item,day\nu,a,20240301\nu,b,20240229\n"))[0]
    assert days.channels["gap"].tolist() == [0, 86400]
    two = read(put(tmp_path / "two.csv", "Date,Time,Order,Item\n2016-10-30,09:58:11,1,Bread\n"
                                         "2016-10-30,9:05:34,1,Tea\n"))
    assert two[0].object == ["Tea", "Bread"] and two[0].channels["gap"].tolist() == [0, 3157]
    assert "when=Date Time" in two.problems.note
    shop = read(put(tmp_path / "shop.csv", "InvoiceNo,StockCode,Quantity,InvoiceDate,CustomerID\n"
                                           "5,85A,6,12/21/2010 8:26,17\n5,71B,6,12/1/2010 8:28,17\n"))
    assert shop[0].name == "17" and shop[0].object == ["71B", "85A"]
    partly_timed = read(put(tmp_path / "some.csv", "user,item,time\nu,a,1700000001000\nu,b,soon\nu,c,1700000003000\n"))
    assert partly_timed[0].channels["gap"].tolist() == [0, 2] and partly_timed.problems.total == 1
    log = read(put(tmp_path / "log.csv", "timestamp,event\n2024-01-01 00:00:02,stop\n2024-01-01 00:00:01,start\n"))
    assert log[0].object == ["start", "stop"] and log[0].name.endswith("log.csv"), "a file of one entity"


def test_day_first_and_named_months_are_read(tmp_path: Path) -> None:
    days = [datetime(2018, 8, 14) + timedelta(days=i) for i in range(40)]
    months = [datetime(1990 + i // 12, 1 + i % 12, 1) for i in range(40)]
    for form, times, pace in (("%d-%m-%Y", days, "every 1 day"), ("%m-%d-%Y", days, "every 1 day"),
                              ("%d/%m/%Y", months, "every month"), ("%m/%d/%Y", months, "every month"),
                              ("%d-%m-%Y", months, "every month"), ("%B-%Y", months, "every month")):
        rows = "".join(f"{time.strftime(form)},{1.5 + i % 7}\n" for i, time in enumerate(times))
        data = read(put(tmp_path / "price.csv", "Date,Price\n" + rows))
        assert f"when=Date ({times[0]} to {times[-1]}, {pace})" in data.problems.note, form


def test_carriage_returns_end_lines(tmp_path: Path) -> None:
    rows = "\r".join(f"{user},{item}" for user, item in (("u", "a"), ("u", "b"), ("v", "a"), ("v", "c")))
    data = read(put(tmp_path / "clicks.csv", ("user,item\r" + rows + "\r\n").encode()))
    assert sequences(data) == {"u": ["a", "b"], "v": ["a", "c"]}


def test_row_numbers_and_customer_numbers_are_no_events(tmp_path: Path) -> None:
    rows = "".join(f"{i + 1},{15634602 + 37 * i},{600 + i * i % 97},{'FM'[i % 2]},{i % 7}.5,{i * i % 3 % 2}\n"
                   for i in range(60))
    data = read(put(tmp_path / "churn.csv", "RowNumber,CustomerId,Score,Gender,Balance,Exited\n" + rows))
    assert (data.kind.name, len(data)) == ("rows", 60)


def test_parquet_as_pandas_and_others_write_it(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    times = pa.array([datetime(2024, 1, 1, tzinfo=UTC) + timedelta(seconds=t) for t in (3, 1, 2)],
                     pa.timestamp("ns", "Europe/Berlin"))
    base = {"user_id": pa.array([7, 7, 8]), "item": pa.array(["a", "b", "a"]).dictionary_encode(), "ts": times,
            "__index_level_0__": pa.array([0, 1, 2])}
    pq.write_table(pa.table(base), tmp_path / "p.parquet")
    data = read(tmp_path / "p.parquet")
    assert sequences(data) == {"7": ["b", "a"], "8": ["a"]} and data[0].channels["gap"].tolist() == [0, 2]
    pq.write_table(pa.table({"id": [1, 2], "text": ["one", "two words"]}), tmp_path / "t.parquet")
    data = read(tmp_path / "t.parquet")
    assert data.kind.name == "text" and [*data.objects()] == [b"one", b"two words"]
    pq.write_table(pa.table({"id": [1, 2], "sequence": ["ACGT" * 5, "GG"]}), tmp_path / "d.parquet")
    data = read(tmp_path / "d.parquet")
    assert data.kind.name == "dna" and data[0].object == "ACGT" * 5
    pq.write_table(pa.table({"x": [1.5, 2.5]}), tmp_path / "x.parquet")
    assert read(tmp_path / "x.parquet").kind.name == "series"
    with pytest.raises(SegueError, match=r"no column says who and what.*\(columns: x\)"):
        read(tmp_path / "x.parquet", kind="events")
    pq.write_table(pa.table({"user": ["a"], "item": ["b"]}).slice(0, 0), tmp_path / "none.parquet")
    with pytest.raises(SegueError, match="no usable events"):
        read(tmp_path / "none.parquet")


def test_process_logs_in_xes_are_read(tmp_path: Path) -> None:
    def event(action: str, at: str) -> str:
        return f'<event><string key="concept:name" value="{action}"/><date key="time:timestamp" value="{at}"/></event>'

    log = ('<?xml version="1.0"?>\n<log xmlns="http://x.org/"><trace><string key="concept:name" value="A"/>'
           + event("pay", "2020-01-01T00:00:09.500+01:00") + event("ask", "2020-01-01T00:00:00+01:00")
           + "</trace><trace>" + event("ask", "2020-01-02T00:00:00Z") + "</trace></log>")
    data = read(put(tmp_path / "a.xes.gz", gzip.compress(log.encode())))
    assert data.kind.name == "events" and sequences(data) == {"A": ["ask", "pay"], "trace 2": ["ask"]}
    assert data[0].channels["gap"].tolist() == [0, 9.5]
    for content, message in ((log[:-20], "no XES that can be read"), ("<log></log>", "there is no event")):
        with pytest.raises(SegueError, match=message):
            read(put(tmp_path / "b.xes", content))


@pytest.mark.parametrize("name, content, message", [
    ("data.csv", "data,label\n-0.195,0\n-0.21,0\n-0.21,1\n", "no column says who.*columns: data, label"),
    ("esol.csv", "Compound ID,logS,rings\nA B,1.5,2\nC,2.5,3\n", "no column says who and what"),
    ("pieces.csv", "composer,title,file\nBach,Fugue,a.mid\nBach,Prelude,b.mid\n", "columns: composer, title, file"),
    ("nothing.csv", "user,item,time\n,,\n,,\n", "no usable value in column 'user'"),
    ("one.csv", "events\na\nb\n", "no column says who"),
    ("pairs.tsv", "Go on now.\tGeh weiter.\nWait for me!\tWarte bitte auf mich!\n", "1 and 2 hold texts"),
    ("array.json", '[{"user": 1, "item": "a"}, 3]', "not all entries"),
    ("cut.json", '[{"user": 1, "item": "a"}, {"user": 2', "not JSON"),
])
def test_tables_without_clear_columns_ask_for_them(tmp_path: Path, name: str, content: str, message: str) -> None:
    with pytest.raises(SegueError, match=message):
        read(put(tmp_path / name, content), kind="events" if name in ("array.json", "pairs.tsv", "data.csv") else None)


def test_a_file_without_header_is_one_sequence_on_request(tmp_path: Path) -> None:
    data = read(put(tmp_path / "a.csv", "a,b\nc,d\na,b\n"), kind="events", who="the file")
    assert [record.object for record in data] == [["a", "c", "a"]]


def test_the_separator_that_excel_names_is_used(tmp_path: Path) -> None:
    path = put(tmp_path / "a.csv", "sep=;\r\nuser;item\r\nann;tea\r\nbob;tea\r\nann;milk\r\n")
    data = read(path)
    assert data.problems.note == "who=user, what=item" and data[0].object == ["tea", "milk"] and not data.problems
    assert read(path, kind="text", field="item")[1].name.endswith("a.csv:4")


def test_texts_in_tables_are_read(tmp_path: Path) -> None:
    reference = "There is a place in the city centre, Alimentum, that is not for families."
    rows = f'mr,ref\n"name[A], area[c], food[x]","{reference}"\nname[B],"{reference} So."\n'
    data = read(put(tmp_path / "e2e.csv", rows))
    assert data.kind.name == "text" and data[0].object == b"name[A], area[c], food[x]\n" + reference.encode()
    assert data.problems.note == "field=mr, field=ref"
    rows = "".join(f"{i % 3}\t( ( ( [MAX {i} ) 5 ) 9 ) ] ) {i}\n" for i in range(9))
    data = read(put(tmp_path / "listops.tsv", rows))
    assert data.kind.name == "text" and data[0].object == b"( ( ( [MAX 0 ) 5 ) 9 ) ] ) 0"
    talks = [{"fname": f"d{i}", "dialogue": "#A#: Hello there!\n#B#: And you?", "topic": "talk"} for i in range(3)]
    for name, content in (("d.jsonl", "\n".join(map(json.dumps, talks))), ("d.json", json.dumps(talks, indent=1))):
        data = read(put(tmp_path / name, content))
        assert data.kind.name == "text" and data[0].object == talks[0]["dialogue"].encode()
        assert data.problems.note == "field=dialogue; not read: fname, topic"
    data = read(put(tmp_path / "unusual.jsonl", "\n".join(
        json.dumps({"k1": f"id-{i}", "k2": f"a rather long piece of prose, the {i}th"}) for i in range(4))))
    assert data[0].object == b"a rather long piece of prose, the 0th"
    pairs = "Go on.\tGeh weiter.\nWait for me, please!\tWarte bitte auf mich!\nWho is it?\tWer ist es denn?\n"
    data = read(put(tmp_path / "pairs.tsv", pairs))
    assert data.kind.name == "text" and b"Geh weiter" in b"".join(data.objects()), "no sentence is taken for a header"
    data = read(put(tmp_path / "document.csv", "id,text\n1," + "long " * 50_000 + "\n"))
    assert data.total == 5 * 50_000
    data = read(put(tmp_path / "semicolons.csv", 'id;text\n1;"a; b"\n2;c\n'))
    assert [*data.objects()] == [b"a; b", b"c"]
    nested = {"train": [["set a timer for me please", "timer"]] * 3}
    data = read(put(tmp_path / "nested.json", json.dumps(nested, indent=1)))
    assert data.kind.name == "text" and data[0].object.startswith(b"{"), "no table: as it is"
    data = read(put(tmp_path / "sms.tsv", "label\ttext\nham\tOk lar\nspam\tFree entry\nham\tU dun\n"))
    assert [*data.objects()] == [b"Ok lar", b"Free entry", b"U dun"]
    data = read(put(tmp_path / "inches.tsv", "id\ttext\n1\t5\" disk\n2\tplain\n3\tit's \"so\"\n"))
    assert [*data.objects()] == [b'5" disk', b"plain", b'it\'s "so"'], "quotes that quote nothing"


def test_lines_of_numbers_are_read_as_cases(tmp_path: Path) -> None:
    data = read(put(tmp_path / "log.txt", "5 5 22 5\n5 22 5 11 11\n22 5\n"))
    assert data.kind.name == "cases" and data[0].object == ["5", "5", "22", "5"]
    data = read(put(tmp_path / "baskets.txt", "1 7 8 9\n2 8 7\n3 9 9 9\n"))
    assert sequences(data) == {"1": ["7", "8", "9"], "2": ["8", "7"], "3": ["9", "9", "9"]}
    assert data.problems.note == "the first word of a line names it"
    data = read(put(tmp_path / "pairs.txt", "1 7\n1 8\n2 7\n2 9\n"))
    assert data.kind.name == "events" and sequences(data) == {"1": ["7", "8"], "2": ["7", "9"]}
    for name, content in (("pi.txt", "3.14159 2653\n"), ("times.txt", "0.5 1.5 2.5\n0.25 0.75\n"),
                          ("points.txt", "1 37 52\n2 49 49\n3 52 64\n"),
                          ("poem.txt", "one two\nthree four\nfive six\n")):
        assert read(put(tmp_path / name, content)).kind.name == "text"


def test_text_in_other_tools_formats_is_read(tmp_path: Path) -> None:
    words = "Grüße, Welt\r\nund mehr\r\n"
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"):
        mark = {"utf-16-le": "\ufeff", "utf-16-be": "\ufeff"}.get(encoding, "")
        data = read(put(tmp_path / "a.txt", (mark + words).encode(encoding)))
        assert data.kind.name == "text" and data[0].object == words.encode(), encoding
    assert read(put(tmp_path / "l.txt", words.encode("latin-1")))[0].object == words.encode()
    assert read(tmp_path / "l.txt", encoding="latin-1")[0].object == words.encode()
    assert read(put(tmp_path / "long.txt", "x" * (1 << 20)))[0].object == b"x" * (1 << 20)
    assert read(put(tmp_path / "train.java.txt", "public void run() { }\n")).kind.name == "code"
    assert read(put(tmp_path / "series.ts", "@data\n" + "0.5,0.25,1:" * 99)).kind.name == "series", "no TypeScript"


def test_sequences_in_other_tools_formats_are_read(tmp_path: Path) -> None:
    def letters(name: str, content: str | bytes, **options) -> tuple[str, list[str], int]:
        data = read(put(tmp_path / name, content), **options)
        return data.kind.name, [record.object for record in data], data.problems.total

    for fasta in (">a\nACGTNACGT\nGG\n>b\nTTTT\n", ">a\r\nACGTNACGT\r\nGG\r\n>b\r\nTTTT\r\n",
                  "\ufeff>a\nACGTNACGTGG\n>b\nTTTT", "\n\n>a\nacgtnacgt\n\ngg\n\n\n>b\ntt tt\n\n",
                  "; a comment\n>a\nACGTNACGTGG\n>b\nTTTT\n", ">a\rACGTNACGTGG\r>b\rTTTT\r"):
        assert letters("a.fa", fasta) == ("dna", ["ACGTNACGTGG", "TTTT"], 0), fasta
        assert letters("noname.txt", fasta)[1] == ["ACGTNACGTGG", "TTTT"]
    assert letters("a.fa", ">a\nACGT\n>\nGG\n>c\n>d\nTT\n")[1:] == (["ACGT", "GG", "TT"], 1)
    assert letters("rna.fa", ">a\nACGUUACG\n")[:2] == ("dna", ["ACGUUACG"])
    assert letters("gaps.fa", ">a\nAC--GT..ACGT\n")[1] == ["AC--GT--ACGT"]
    assert letters("p.faa", ">a\nGATTACA\n>b\nMKLV*\n")[:2] == ("protein", ["GATTACA", "MKLV*"])
    assert letters("p.fa", ">a\nGATTACAGAT\n>b\nMKLVWIERSTMKLVWIERST\n")[0] == "protein"
    wrapped = "@r1 x\nACGT\nGG\n+\nII@I\n@I\n@r2\nAC\n+r2\n@@\n"
    assert letters("w.fq", wrapped) == ("dna", ["ACGTGG", "AC"], 0)
    assert letters("w.fastq.gz", gzip.compress(wrapped.replace("\n", "\r\n").encode()))[1] == ["ACGTGG", "AC"]
    several = GENBANK.replace("TEST", "ONE1") + GENBANK.replace("TEST", "TWO2")
    for name in ("s.gb", "s.gbff", "s.txt"):
        assert letters(name, several) == ("dna", ["ACGTACGTACGTACGTACGTNNAC"] * 2, 0)
    assert letters("crlf.gbk", several.replace("\n", "\r\n"))[1] == ["ACGTACGTACGTACGTACGTNNAC"] * 2


def test_times_in_a_file_beside_the_events(tmp_path: Path) -> None:
    put(tmp_path / "event-train.txt", "5 6 5\n7 5\n5 7 5 6\n")
    (tmp_path / "time-train.txt.gz").write_bytes(gzip.compress(b"0.5 2 1\n0 10\n0 1 2 2.5\n"))
    for place in (tmp_path, tmp_path / "event-train.txt"):
        data = read(place)
        assert data.kind.name == "cases" and data.channels.keys() == {"time", "gap"} and not data.problems
        assert data[0].object == ["5", "5", "6"]  # in the order of time
        assert data[0].channels["gap"].tolist() == [0, 0.5, 1]
    assert not read(tmp_path / "event-train.txt", timed=False).channels
    with pytest.raises(SegueError, match=r"the times of .*event-train.txt; give that file"):
        read(tmp_path / "time-train.txt.gz")
    put(tmp_path / "event-test.txt", "5 6\n5 7 5 6\n")
    data = read(tmp_path)
    assert not data.channels and "no file of times beside it" in str(data.problems[0])
    put(tmp_path / "time-test.txt", "0 1\n0 1 2\n")
    data = read(tmp_path)
    assert len(data) == 4 and "line 2" in str(data.problems[0]) and "each of its 4 events" in str(data.problems[0])
    put(tmp_path / "time-test.txt", "0 1\n0 soon\n")
    with pytest.raises(SegueError, match="line 2: holds more than numbers"):
        read(tmp_path / "event-test.txt")


def test_times_without_types_are_events_of_one_type(tmp_path: Path) -> None:
    rows = [{"t": times, "t_max": 24} for times in ([0.5, 2.0], [3.5])]
    put(tmp_path / "posts.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    data = read(tmp_path / "posts.jsonl")
    assert [record.object for record in data] == [["event", "event"], ["event"]]
    assert data[0].channels["gap"].tolist() == [0, 1.5]
    put(tmp_path / "logins.csv", "user,time\nann,10\nbob,12\nann,13\n")
    data = read(tmp_path / "logins.csv", what="event")
    assert sequences(data) == {"ann": ["event", "event"],
                               "bob": ["event"]} and data[0].channels["time"].tolist() == [10, 13]


@pytest.mark.parametrize("name, content, first", [
    ("steam-200k.csv", "".join(f"{151603712 + i // 6},{game},{what},1.0,0\n" for i in range(12) for game in (
        '"The Elder, Scrolls V Skyrim"', "Dota 2") for what in ("purchase", "play")), "The Elder, Scrolls V Skyrim"),
    ("bpi.csv", "Vorgangsnummer;Aktivität;Zeitstempel\n" + "".join(
        f"V-{i // 3};{'ABC'[i % 3]};{1 + i % 27:02d}.01.2015 10:{i % 60:02d}\n" for i in range(30)), "A"),
    ("quotes.tsv", "user\tquote\n" + "".join(f'u{i % 5}\t"said ""no"" {i % 3}"\n' for i in range(30)), 'said "no" 0'),
    ("hawkes.json", '{"timestamps": [[0.5, 1.5, 4], [1, 2]], "types": [[0, 1, 1], [1, 0]]}', "0"),
    ("ocel.csv", "ocel:eid,ocel:timestamp,ocel:activity,ocel:type:item,ocel:type:order\n" + "".join(
        f"e{i},1980-01-{i + 1:02d},{'AB'[i % 2]},\"['i1', 'i2']\",['o1']\n" for i in range(9)), "A"),
])
def test_events_in_log_and_shop_formats_are_read(tmp_path: Path, name: str, content: str, first: str) -> None:
    (tmp_path / name).write_text(content)
    data = read(tmp_path / name)
    assert data.kind.name == "events" and len(data) > 1 and data[0].object[0] == first
