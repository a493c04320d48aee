"""Reading: every kind from every format, and every sort of bad input named in one line."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segue.data import read
from segue.errors import SegueError
from segue.kinds import KINDS, Record
from segue.testing import check_kind
from segue.testing.kinds import survives

NOISE = random.Random(0).randbytes(2000)
FASTA = ">one first\nACGTACGTNN\nACGT\n\n>two\nTTTT\nGG\n"
FASTQ = "@r1\nACGT\n+\nIIII\n@r2\nGGN\n+r2\n!!~\n"
PROTEIN = ">sp|P1|A protein\nMKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQ\n>two\nMSWLKEVIGTEKAVIAMCHLRALPGDPSFD*\n"
EVENTS = "user,item,timestamp\nann,tea,30\nbob,milk,5\nann,milk,10\nann,tea,20\n"
GENBANK = """LOCUS       TEST                      24 bp    DNA     linear   UNK 01-JAN-1980
DEFINITION  A test.
ACCESSION   TEST
VERSION     TEST.1
FEATURES             Location/Qualifiers
     source          1..24
ORIGIN
        1 acgtacgtac gtacgtacgt nnac
//
"""


def put(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


# -- good input


def test_text_and_code_are_told_apart(tmp_path: Path) -> None:
    data = read(put(tmp_path / "a.txt", "héllo\nworld\n"))
    assert data.kind.name == "text" and [r.object for r in data] == ["héllo\nworld\n".encode()]
    for name in ("b.py", "c.rs", "Makefile"):
        assert read(put(tmp_path / name, "x = 1\n" * 9)).kind.name == "code"
    assert read(put(tmp_path / "script", "#!/bin/sh\necho\n")).kind.name == "code"
    assert read(put(tmp_path / "noname", "some words\n")).kind.name == "text"
    folder = read(tmp_path)
    assert folder.kind.name == "code" and len(folder) == 6, "text beside code is read with it"


@pytest.mark.parametrize("suffix, pack", [(".gz", gzip.compress), (".xz", lzma.compress), (".bz2", bz2.compress)])
def test_packed_files(tmp_path: Path, suffix: str, pack) -> None:
    path = put(tmp_path / f"a.fa{suffix}", pack(FASTA.encode()))
    data = read(path)
    assert data.kind.name == "dna" and [r.object for r in data] == ["ACGTACGTNNACGT", "TTTTGG"]
    assert read(put(tmp_path / "misnamed.fa", pack(FASTA.encode()))).total == 20


def test_folders_globs_and_several_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a/1.txt", "a/b/2.txt", ".hidden/3.txt", "a/__pycache__/4.txt", "a/README.md", "a/.5.txt"):
        put(tmp_path / name, f"text {name}\n")
    monkeypatch.chdir(tmp_path)
    assert len(read("a")) == 2
    assert len(read("a/*.txt")) == 1 and len(read("a/**/*.txt")) == 3
    assert len(read("a/1.txt", "a", Path("a/1.txt"))) == 2, "a file named twice is read once"
    assert len(read("a/README.md")) == 1, "a README that is asked for is read"


def test_lines_encodings_and_json_lines(tmp_path: Path) -> None:
    path = put(tmp_path / "names.txt", "emma\n\nolivia\r\nava")
    assert [r.object for r in read(path, lines=True)] == [b"emma", b"olivia", b"ava"]
    assert read(path, lines=True).name(1).endswith("names.txt:3")
    assert read(put(tmp_path / "l.txt", "café".encode("latin-1")), encoding="latin-1")[0].object == "café".encode()
    assert read(put(tmp_path / "u.txt", "café".encode("utf-16")), encoding="utf-16")[0].object == "café".encode()
    assert read(put(tmp_path / "k.txt", b"caf\xe9"), errors="keep")[0].object == b"caf\xe9"
    lines = "".join(json.dumps({"id": i, "text": f"t{i}"}) + "\n" for i in range(3))
    data = read(put(tmp_path / "a.jsonl.gz", gzip.compress(lines.encode())))
    assert data.kind.name == "text" and [r.object for r in data] == [b"t0", b"t1", b"t2"]
    other = put(tmp_path / "b.jsonl", '{"q": "one", "a": "two"}\n')
    assert read(other, field="a", kind="text")[0].object == b"two"


def test_a_long_file_is_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segue.kinds.text.PIECE", 1000)
    text = "".join(f"line {i} é\n" for i in range(500))
    pieces = read(put(tmp_path / "a.txt", text))
    assert len(pieces) > 5 and b"".join(r.object for r in pieces) == text.encode()
    assert all(r.object.endswith(b"\n") for r in pieces)
    for unbroken in ("é" * 5000, "🎵" * 3000, "a" + "🎵" * 3000):
        pieces = read(put(tmp_path / "b.txt", unbroken))
        assert b"".join(r.object for r in pieces) == unbroken.encode()
        assert all(r.object.decode() for r in pieces), "cut between characters"
    malformed = text.encode()[:3000] + b"\xff" + text.encode()[3000:]
    with pytest.raises(SegueError, match="byte 3,000 is not UTF-8"):
        read(put(tmp_path / "c.txt", malformed))


def test_fasta(tmp_path: Path) -> None:
    data = read(put(tmp_path / "x.fa", FASTA))
    assert [data.name(i) for i in range(2)] == [f"{tmp_path}/x.fa:one", f"{tmp_path}/x.fa:two"]
    assert read(put(tmp_path / "y.fa", FASTA.replace("\n", "\r\n")))[0].object == "ACGTACGTNNACGT"
    assert read(put(tmp_path / "z.fa", FASTA.rstrip().replace("\n", "\r")))[1].object == "TTTTGG"
    soft = put(tmp_path / "soft.fa", ">a\nacgTTTacg.\n")
    assert read(soft)[0].object == "ACGTTTACG-"
    with_case = read(soft, case="keep")
    assert with_case[0].object == "acgTTTacg-" and with_case.codec().decode(with_case.codec().encode("acgT")) == "acgT"
    assert read(put(tmp_path / "rna.fa", ">a\nACGUUU\n")).kind.name == "dna"


def test_fasta_does_not_depend_on_the_block_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(tmp_path / "x.fa", "".join(f">s{i} >not a record\n{'ACGT' * (i % 7 + 1)}\n" for i in range(50)))
    expected = [(r.name, r.object) for r in read(path)]
    assert len(expected) == 50
    for size in (1, 2, 3, 7, 64):
        monkeypatch.setattr("segue.kinds.sequence_files.BLOCK", size)
        assert [(r.name, r.object) for r in read(path)] == expected


def test_fastq_keeps_quality(tmp_path: Path) -> None:
    data = read(put(tmp_path / "r.fastq", FASTQ))
    assert data.kind.name == "dna" and [r.object for r in data] == ["ACGT", "GGN"]
    assert data[1].channels["quality"].tolist() == [0, 0, 93]


def test_genbank(tmp_path: Path) -> None:
    pytest.importorskip("Bio")
    data = read(put(tmp_path / "g.gb", GENBANK))
    assert data.kind.name == "dna" and data[0].object == "ACGTACGTACGTACGTACGTNNAC"
    assert data.name(0).endswith("g.gb:TEST.1")


def test_one_genome_in_two_files_is_read_once(tmp_path: Path) -> None:
    genome, other = "ACGTTGCA" * 150, "ACGTTGCC" * 150
    put(tmp_path / "a.fna", f">NC_1\n{genome}\n>twice\n{genome}\n>short\nACGT\n")
    put(tmp_path / "b.fna", f">NC_1.1\n{genome.lower()}\n>more\n{other}\n>short\nACGT\n")
    data = read(tmp_path)
    assert [record.object for record in data] == [genome, genome, "ACGT", other, "ACGT"]
    assert data.problems.total == 1 and "b.fna, record NC_1.1" in str(data.problems[0])
    assert str(data.problems[0]).endswith(f"the same sequence as {tmp_path / 'a.fna'}:twice; read once")


def test_protein(tmp_path: Path) -> None:
    data = read(put(tmp_path / "p.fasta", PROTEIN))
    assert data.kind.name == "protein" and data[1].object.endswith("*")


def test_sequences_in_a_table(tmp_path: Path) -> None:
    data = read(put(tmp_path / "a.csv", "sequence,label\nACGT,1\nGGNN,0\n,1\nAC!,0\n"))
    assert data.kind.name == "dna" and [r.object for r in data] == ["ACGT", "GGNN"] and data.problems.total == 2
    assert data.name(1).endswith("a.csv:line 3")
    protein = read(put(tmp_path / "b.tsv", "id\tseq\tscore\np1\tMKLVW\t3\n"))
    assert protein.kind.name == "protein" and protein.name(0).endswith("b.tsv:p1")
    assert read(put(tmp_path / "c.csv", "x,y\nAC,GT\n"), kind="dna", column="y")[0].object == "GT"
    with pytest.raises(SegueError, match=r"no column called z; name one with column= \(columns: x, y\)"):
        read(tmp_path / "c.csv", kind="dna", column="z")


@pytest.mark.parametrize("name, content", [
    ("a.csv", EVENTS), ("a.tsv", EVENTS.replace(",", "\t")), ("b.csv", EVENTS.replace(",", ";")),
    ("c.csv", EVENTS.replace("user,item,timestamp", "timestamp,UserID,Movie Id").replace("ann,tea,30", "30,ann,tea")
     .replace("bob,milk,5", "5,bob,milk").replace("ann,milk,10", "10,ann,milk").replace("ann,tea,20", "20,ann,tea")),
    ("d.csv", "\ufeff" + EVENTS), ("e.csv", EVENTS.replace("\n", "\r\n")),
    ("f.csv.gz", gzip.compress(EVENTS.encode(), mtime=0)),
    ("g.jsonl", "".join(json.dumps(dict(zip(("user", "item", "timestamp"), line.split(",")))) + "\n"
                        for line in EVENTS.splitlines()[1:])),
    ("h.csv", EVENTS.replace("tea", '"tea"').replace("user", '"user"'))])
def test_event_tables(tmp_path: Path, name: str, content: str | bytes) -> None:
    data = read(put(tmp_path / name, content))
    assert data.kind.name == "events"
    assert {r.name: r.object for r in data} == {"ann": ["milk", "tea", "tea"], "bob": ["milk"]}
    ann = next(r for r in data if r.name == "ann")
    assert ann.channels["time"].tolist() == [10, 20, 30] and ann.channels["gap"].tolist() == [0, 10, 10]
    assert data.vocabulary == {"milk": 2, "tea": 2} and data.lengths.sum() == 4


def test_parquet_and_typed_columns(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"case": [1, 1, 2], "activity": ["a", "b", "a"],
                      "when": pa.array([2_000_000, 1_000_000, 0], pa.timestamp("us"))})
    pq.write_table(table, tmp_path / "t.parquet")
    data = read(tmp_path / "t.parquet")
    assert {r.name: r.object for r in data} == {"1": ["b", "a"], "2": ["a"]}
    assert data[0].channels["time"].tolist() == [1, 2]


def test_columns_may_be_named_or_numbered(tmp_path: Path) -> None:
    path = put(tmp_path / "odd.csv", "a,b,c,d\nx,1,7,0.5\ny,2,8,0.25\nx,2,9,1\n")
    with pytest.raises(SegueError, match="no column says who and what; name them with who= and what="):
        read(path)
    data = read(path, who="a", what="b", when="c", also="d")
    assert data[0].object == ["1", "2"] and data[0].channels["d"].tolist() == [0.5, 1]
    bare = put(tmp_path / "bare.txt", "1 7\n1 8\n2 7\n")
    assert {r.name: r.object for r in read(bare, kind="events")} == {"1": ["7", "8"], "2": ["7"]}
    assert {r.name: r.object for r in read(bare, kind="events", who=2, what=1)} == {"7": ["1", "2"], "8": ["1"]}


@pytest.mark.parametrize("times, seconds", [
    (["2024-01-01T00:00:01", "2024-01-01T00:00:00"], 1), (["2024-01-01 00:00:01.5", "2024-01-01 00:00:00.0"], 1.5),
    (["2024-01-02", "2024-01-01"], 86400), (["2024-01-01T00:00:01Z", "2024-01-01T00:00:00Z"], 1),
    (["2024-01-01T01:00:01+01:00", "2024-01-01T00:00:00+00:00"], 1), (["1700000001", "1700000000"], 1),
    (["1700000001000", "1700000000000"], 1), (["1700000001000000", "1700000000000000"], 1), (["2.5", "1"], 1.5),
    (["25.12.2023 10:00:01", "25.12.2023 10:00:00"], 1), (["2023/12/25 10:01", "2023/12/25 10:00"], 60),
    (["12/25/2023", "12/24/2023"], 86400), (["25/12/2023", "24/12/2023"], 86400)])
def test_times(tmp_path: Path, times: list[str], seconds: float) -> None:
    rows = "".join(f"u,{i},{time}\n" for i, time in enumerate(times))
    record = read(put(tmp_path / "t.csv", "user,item,time\n" + rows))[0]
    assert record.object == ["1", "0"] and record.channels["gap"].tolist() == [0, seconds]


def test_ambiguous_times_ask_for_their_format(tmp_path: Path) -> None:
    path = put(tmp_path / "t.csv", "user,item,time\nu,a,01/02/2023\nu,b,03/02/2023\n")
    with pytest.raises(SegueError, match="day/month or month/day"):
        read(path)
    assert read(path, when_format="%d/%m/%Y")[0].channels["gap"].tolist() == [0, 2 * 86400]


def test_one_table_in_many_files(tmp_path: Path) -> None:
    put(tmp_path / "jan.csv", "user,item,time\nann,a,1\nbob,b,2\n")
    put(tmp_path / "feb.csv", "user,item,time\nann,c,0\n")
    put(tmp_path / "items.csv", "item,title\na,A\n")
    data = read(tmp_path)
    assert {r.name: r.object for r in data} == {"ann": ["c", "a"], "bob": ["b"]}
    assert data.problems.total == 1 and "no column says who" in str(data.problems[0])


def test_rows_that_hold_lists(tmp_path: Path) -> None:
    path = put(tmp_path / "l.jsonl", '{"t": [0, 2.5], "k": [4, 1]}\n{"t": [3, 1], "k": [7, 8]}\n{"t": [1], "k": []}\n')
    data = read(path)
    assert data.kind.name == "events" and [r.object for r in data] == [["4", "1"], ["8", "7"]]
    assert data[1].channels["time"].tolist() == [1, 3] and data.problems.total == 1


def test_cases(tmp_path: Path) -> None:
    signs = read(put(tmp_path / "a.txt", "0123\n\n01:<\n"), kind="cases")
    assert [r.object for r in signs] == [["0", "1", "2", "3"], ["0", "1", ":", "<"]]
    assert [r.object for r in read(put(tmp_path / "b.txt", "5 22 5\n5\n"), kind="cases")] == [["5", "22", "5"], ["5"]]
    assert read(tmp_path / "a.txt", kind="cases", elements="words")[0].object == ["0123"]


def test_written_files_round_trip(tmp_path: Path) -> None:
    KINDS["text"].write([b"one", b"two\n"], tmp_path / "a.txt")
    assert (tmp_path / "a.txt").read_bytes() == b"one\ntwo\n"
    KINDS["dna"].write([Record("ACGT" * 40, name="x y"), "GG"], tmp_path / "a.fa")
    assert [r.object for r in read(tmp_path / "a.fa")] == ["ACGT" * 40, "GG"]
    timed = Record(["a", "b"], {"time": np.array([1.5, 2])}, "ann")
    KINDS["events"].write([timed], tmp_path / "a.csv")
    back = read(tmp_path / "a.csv")[0]
    assert (back.name, back.object, back.channels["time"].tolist()) == ("ann", ["a", "b"], [1.5, 2])
    KINDS["events"].write([["x,y", 'q"']], tmp_path / "b.csv")
    assert read(tmp_path / "b.csv")[0].object == ["x,y", 'q"']
    KINDS["cases"].write([["a", "b"], ["c"]], tmp_path / "c.txt")
    assert (tmp_path / "c.txt").read_text() == "ab\nc\n"


def test_the_contract_of_every_kind(tmp_path: Path) -> None:
    check_kind(KINDS["text"], [put(tmp_path / "a.txt", "some text\nand more é\n" * 9)])
    check_kind(KINDS["code"], [put(tmp_path / "a.py", "def f(x):\n    return x\n" * 9)])
    check_kind(KINDS["dna"], [put(tmp_path / "a.fa", FASTA), put(tmp_path / "a.fq", FASTQ)])
    check_kind(KINDS["protein"], [put(tmp_path / "p.faa.gz", gzip.compress(PROTEIN.encode()))])
    check_kind(KINDS["events"], [put(tmp_path / "e.csv", EVENTS)])
    check_kind(KINDS["cases"], [put(tmp_path / "c.txt", "abc\nab\n")])


# -- bad input


@pytest.mark.parametrize("name, content, options, message", [
    ("a.txt", b"", {}, "the file is empty"),
    ("a.txt", b"\n \n", {}, "the file is empty"),
    ("a.txt", b"\0" * 100, {}, "binary"),
    ("a.txt", b"\0" * 100, {"kind": "text"}, "a NUL byte at byte 0"),
    ("a.bin", bytes(range(256)) * 9, {}, "not a file of a kind known here"),
    ("a.txt", b"ok\ncaf\xff noir\n", {}, r"byte 6 \(line 2\) is not UTF-8 \(0xff\); give encoding="),
    ("a.txt", "text".encode("utf-16")[:-1], {}, "not utf-16 .*; give the right encoding="),
    ("a.txt.gz", gzip.compress(NOISE, mtime=0)[:-900], {"kind": "text"}, "truncated"),
    ("a.txt.gz", gzip.compress(b"hello " * 900, mtime=0)[:-8] + b"12345678", {"kind": "text"}, "damaged"),
    ("a.txt.xz", lzma.compress(NOISE)[:-900], {"kind": "text"}, "truncated"),
    ("a.txt.bz2", bz2.compress(NOISE)[:-900], {"kind": "text"}, "truncated"),
    ("a.txt", b"words", {"kind": "opera"}, "there is no kind 'opera'; there are text"),
    ("a.txt", b"words", {"colour": 1}, "has no option 'colour'; it takes encoding"),
    ("a.txt", b"words", {"lines": "maybe"}, "'lines' is true or false"),
    ("a.txt", b"words", {"encoding": "rot13"}, "no text encoding called 'rot13'"),
    ("a.txt", b"words", {"encoding": "klingon"}, "no text encoding called 'klingon'"),
    ("a.txt", b"words", {"errors": "ignore"}, "'strict' or 'keep'"),
    ("a.zip", b"PK\x03\x04" + bytes(range(99)), {}, "damaged"),
    ("a.fa", b">one\nACGTACGTACGTACGTACG!ACGT\n", {}, "record one, position 20: '!' is not a base code"),
    ("a.fa", b">one\n", {}, "record one: the record has no sequence"),
    ("a.fa", b"ACGT\n", {"kind": "dna"}, "FASTA begins with '>'"),
    ("a.fa", b"\x93\0\x12", {"kind": "dna"}, "binary"),
    ("a.fq", b"@r\nACGT\n+\nII\n", {}, "4 letters but 2 qualities"),
    ("a.fq", b"@r\nACGT\nIIII\n", {"kind": "dna"}, "a FASTQ record is @name, letters, . and as many"),
    ("a.fa", b">one\nMKLVFE!!99\n", {}, "position 7: '!' is not a residue code"),
    ("a.gb", b"LOCUS       X\n//\n", {}, "GenBank|no sequence"),
    ("a.gb", b"LOCUS broken\n", {}, "a.gb: there is no sequence"),
    ("a.csv", b"user,item\n", {}, "no row below the header"),
    ("a.csv", b"user,item,time\n1,2\n3,4,5,6\n", {}, "most lines have not the 3 cells .*line 3: 4 cells"),
    ("a.parquet", b"user,item\na,b\n", {}, "called Parquet or Arrow, but"),
    ("a.csv", b"user,item\na,b\n", {"what": "product"}, "no column 'product' to say what; there are user, item"),
    ("a.csv", b"user,item\na,b\n", {"also": ["price"]}, "no column 'price'"),
    ("a.csv", b"user,item,p\na,b,cheap\n", {"also": ["p"]}, "'p' is not all numbers"),
    ("a.csv", b"movieId,title\n1,A\n2,B\n", {}, "no column says who"),
    ("a.csv", b"user,item,time\na,b,yesterday\na,c,today\n", {}, "'yesterday' is no time known here"),
    ("a.csv", b"user,item,time\na,b,1\n", {"when_format": "%Q"}, "no time|no usable"),
    ("a.csv", b"user,user\na,b\n", {"who": "user"}, r"no column says what.*user, user \(2\)"),
    ("a.csv", b"user,item\nanna,caf\xff\n", {}, "byte 18 .* is not UTF-8"),
    ("a.csv", b"user,item\n\0,a\n", {"kind": "events"}, "NUL"),
    ("a.parquet", b"PAR1nonsense", {}, "not a readable table"),
    ("a.jsonl", b'{"user": 1\n', {"kind": "events"}, "not a line of JSON"),
    ("a.jsonl", b'{"tags": ["a"], "is": "x"}\n{"tags": [], "is": "x"}\n', {"what": "is"}, "no column says who;"),
    ("a.jsonl", b'{"a": 1}\n', {"kind": "text"}, "no text in field"),
    ("a.csv", b"text,b\n,1\n", {"kind": "text"}, "no row holds text"),
])
def test_bad_input_is_one_line(tmp_path: Path, name: str, content: bytes, options: dict, message: str) -> None:
    path = put(tmp_path / name, content)
    with pytest.raises(SegueError, match=message) as error:
        read(path, **options)
    assert "\n" not in str(error.value)
    if not options or options.get("kind") in KINDS:
        assert name in str(error.value), "the file is named"


def test_bad_paths(tmp_path: Path) -> None:
    for path, message in ((tmp_path / "none.txt", "no such file or folder"), (f"{tmp_path}/*.txt", "no file matches"),
                          (tmp_path, "no file to read"), ("a\0b", "cannot be looked up|no such file"),
                          ("x" * 5000, "cannot be looked up|no such file")):
        with pytest.raises(SegueError, match=message):
            read(path)
    with pytest.raises(SegueError, match="nothing to read"):
        read()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SegueError, match="not a regular file"):
        read(tmp_path / "pipe")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_permission_denied(tmp_path: Path) -> None:
    path = put(tmp_path / "a.txt", "secret")
    path.chmod(0)
    with pytest.raises(SegueError, match="permission denied"):
        read(path)


def test_permission_denied_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(tmp_path / "a.txt", "secret")

    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(SegueError, match=r"a\.txt: not readable \(permission denied\)"):
        read(path)


def test_a_folder_without_a_usable_file(tmp_path: Path) -> None:
    put(tmp_path / "a.bin", bytes(range(256)))
    put(tmp_path / "b.txt", b"")
    with pytest.raises(SegueError, match="a kind known here"):
        read(tmp_path)


def test_bad_files_of_a_folder_are_skipped(tmp_path: Path) -> None:
    put(tmp_path / "good.txt", "good text\n" * 50)
    put(tmp_path / "latin.txt", b"caf\xff\n")
    put(tmp_path / "empty.txt", b"")
    put(tmp_path / "cut.txt.gz", gzip.compress(os.urandom(3000))[:500])
    put(tmp_path / "picture.png", b"\x89PNG\r\n\x1a\n\0\0")
    data = read(tmp_path)
    assert len(data) == 1 and data.problems.total == 4
    texts = " | ".join(map(str, data.problems))
    assert all(word in texts for word in ("latin.txt", "not UTF-8", "empty.txt", "cut.txt.gz", "picture.png"))


def test_bad_records_are_skipped_and_reported(tmp_path: Path) -> None:
    data = read(put(tmp_path / "a.fa", ">good\nACGTACGTACGTACGT\n>bad\nACG!\n>empty\n>good2\nACGT\n"))
    assert len(data) == 2 and data.problems.total == 2
    assert str(data.problems[0]).endswith("illegal='mask' to read it as N")
    assert (data.problems[0].record, data.problems[0].position) == ("bad", 4)
    assert read(tmp_path / "a.fa", illegal="mask")[1].object == "ACGN"
    table = read(put(tmp_path / "a.csv", "user,item,time\na,b,1\na,b\n,c,3\na,c,\nb,c,x\nb,c,9\na,z,0\n"))
    assert {r.name: r.object for r in table} == {"a": ["z", "b"], "b": ["c"]}
    assert table.problems.total == 4
    assert "line 3: 2 cells where 3 belong" in str(table.problems[0])
    assert "line 4: no usable value in column 'user'" in str(table.problems[1])


def test_kinds_do_not_mix(tmp_path: Path) -> None:
    text = put(tmp_path / "a.txt", "words\n" * 20)
    genome = put(tmp_path / "a.fa", FASTA)
    with pytest.raises(SegueError, match=r"a\.fa looks like dna, other files like text: read one kind at a time"):
        read(text, genome)


def test_names_that_are_not_unicode(tmp_path: Path) -> None:
    path = os.path.join(os.fsencode(tmp_path), b"caf\xe9.txt")
    with open(path, "wb") as handle:
        handle.write(b"words")
    data = read(tmp_path)
    assert data[0].object == b"words" and data.name(0).encode()
    with open(path, "wb") as handle:
        handle.write(b"caf\xe9")
    with pytest.raises(SegueError) as error:
        read(os.fsdecode(path))
    str(error.value).encode()


SEEDS = {"a.txt": b"some text\nmore\n", "a.py": b"x = 1\n", "a.jsonl": b'{"text": "a"}\n{"user": 1, "item": 2}\n',
         "a.fa": FASTA.encode(), "a.fq": FASTQ.encode(), "a.faa": PROTEIN.encode(), "a.gb": GENBANK.encode(),
         "a.csv": EVENTS.encode(), "a.tsv": EVENTS.replace(",", "\t").encode(), "a.parquet": b"PAR1",
         "a.txt.gz": gzip.compress(b"text " * 9), "a.fa.xz": lzma.compress(FASTA.encode()), "a": b"",
         "a.csv.bz2": b"BZh9"}


@settings(max_examples=200, deadline=None)
@given(name=st.sampled_from(sorted(SEEDS)), kind=st.sampled_from([None, None, *KINDS]), data=st.data())
def test_no_bytes_under_any_name_ever_cause_a_traceback(tmp_path_factory, name: str, kind: str | None, data) -> None:
    seed = SEEDS[name]
    at = data.draw(st.integers(0, len(seed)))
    content = data.draw(st.one_of(
        st.binary(max_size=200),
        st.binary(max_size=20).map(lambda extra: seed[:at] + extra + seed[at:]),
        st.binary(max_size=20).map(lambda extra: seed[:at] + extra + seed[at + len(extra):]),
        st.text(alphabet='>@+ACGTacgtNX!,;\t\n\r"\0 {}[]:.0123456789-TZué', max_size=120).map(str.encode),
        st.text(max_size=60).map(str.encode)))
    path = tmp_path_factory.mktemp("fuzz") / name
    path.write_bytes(content)
    survives(path, kind)


def test_a_table_with_a_column_of_text_is_text(tmp_path: Path) -> None:
    """Rows become documents, quoted line ends and delimiters included; a table of events stays one."""
    path = tmp_path / "asked.csv"
    path.write_text('Text,category\n"where, when\nand why",card\n,card\nhow much,fee\n')
    data = read(path)
    assert data.kind.name == "text" and [*data.objects()] == [b"where, when\nand why", b"how much"]
    assert [*read(path, field="category").objects()] == [b"card", b"card", b"fee"]
    path.write_text("text,category\none,two,three\nfour,five\n")
    data = read(path)
    assert [*data.objects()] == [b"four"] and "3 columns" in str(data.problems[0])
    path.write_text('text,category\n"open,two\n')
    with pytest.raises(SegueError, match="line 2"):
        read(path)
    path.write_text("user,event,text\na,1,x\na,2,y\n")
    assert read(path).kind.name == "events"
