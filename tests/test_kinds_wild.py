"""Files as they occur in the wild: archives, flat files of databases, dialogues, logs of other tools."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from pyarrow import feather, orc
from test_kinds_read import EVENTS, GENBANK, put

import segue
from segue.data import Data, read
from segue.errors import SegueError
from segue.kinds import KINDS, ByteCodec, Record, packed
from segue.kinds.base import HEAD, class_in
from segue.kinds.documents import complete_prefix
from segue.kinds.frame import Look
from segue.kinds.packed import FOREIGN
from segue.models import Stack, StackConfig
from segue.testing.kinds import check_kind
from segue.verbs.fit import repeat_share
from segue.verbs.fitted import Fitted, Report


def texts(data: Data) -> list[str]:
    return [record.object.decode() for record in data]


def zipped(files: dict[str, str | bytes]) -> bytes:
    with zipfile.ZipFile(box := io.BytesIO(), "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return box.getvalue()


def taped(files: dict[str, str | bytes], mode: str) -> bytes:
    with tarfile.open(fileobj=(box := io.BytesIO()), mode=mode) as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content.encode() if isinstance(content, str) else content)
            archive.addfile(entry, io.BytesIO(content.encode() if isinstance(content, str) else content))
        link = tarfile.TarInfo("link.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    return box.getvalue()


CORPUS: dict[str, str | bytes] = {"corpus/a.txt": "one text\n", "corpus/b/c.txt": "another text\n",
                                  "corpus/README.md": "about\n", "corpus/.hidden.txt": "no\n",
                                  "META-INF/container.xml": "<x/>\n", "mimetype": "application/epub+zip"}


@pytest.mark.parametrize("name, content", [
    ("t.zip", zipped(CORPUS)), ("t.tar", taped(CORPUS, "w")), ("t.tgz", taped(CORPUS, "w:gz")),
    ("t.tar.bz2", taped(CORPUS, "w:bz2")), ("t.tar.xz", taped(CORPUS, "w:xz"))])
def test_an_archive_is_a_folder(tmp_path: Path, name: str, content: bytes) -> None:
    path = put(tmp_path / name, content)
    data = read(path)
    assert texts(data) == ["one text\n", "another text\n"] and not data.problems
    assert data.name(0) == f"{path}/corpus/a.txt", "names do not depend on where it was unpacked"
    assert texts(read(tmp_path)) == texts(data), "alone in a folder"
    assert texts(read(path / "corpus/b/c.txt")) == ["another text\n"]
    assert texts(read(tmp_path / "*")) == texts(data), "and behind a pattern"
    put(tmp_path / "beside.txt", "loose\n")
    loose = read(tmp_path)
    assert texts(loose) == ["loose\n"] and loose.problems.total == 1, "what lies beside it may be what was in it"


def test_tables_in_an_archive_and_zstd(tmp_path: Path) -> None:
    data = read(put(tmp_path / "ratings.zip", zipped({"a/ratings.csv": EVENTS})))
    assert data.kind.name == "events" and data.total == 4
    parquet.write_table(pa.table({"text": ["one long text", "two"]}), box := io.BytesIO())
    assert texts(read(put(tmp_path / "p.zip", zipped({"p.parquet": box.getvalue()})))) == ["one long text", "two"]
    with pa.CompressedOutputStream(sink := pa.BufferOutputStream(), "zstd") as stream:
        stream.write(EVENTS.encode())
    squeezed = sink.getvalue().to_pybytes()
    assert read(put(tmp_path / "e.csv.zst", squeezed)).total == 4
    with pytest.raises(SegueError, match=r"f\.csv\.zst"):
        read(put(tmp_path / "f.csv.zst", squeezed[:-9]))


def test_an_archive_cannot_write_outside_or_fill_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("../evil.txt", "/evil.txt", "a/../../evil.txt", "C:/evil.txt", "..\\evil.txt"):
        for content in (zipped({name: "x" * 99}), taped({name: "x" * 99}, "w")):
            path = put(tmp_path / ("e.zip" if content[:2] == b"PK" else "e.tar"), content)
            with pytest.raises(SegueError, match="lies outside"):
                read(path)
    monkeypatch.setattr(packed, "LEAST", 1 << 20)
    with pytest.raises(SegueError, match="200 times its size"):
        read(put(tmp_path / "bomb.zip", zipped({"z.txt": b"0" * (1 << 23)})))
    for name, content, message in (("n.zip", zipped({}), "no file to read"),
                                   ("cut.tgz", taped(CORPUS, "w:gz")[:-60], "cut"),
                                   ("n.docx", zipped({"[Content_Types].xml": ""}), "Office"),
                                   ("in.zip", zipped({"in.zip": zipped(CORPUS)}), "a zip archive; give a file in it"),
                                   ("plain.tar", b"no archive", "damaged")):
        with pytest.raises(SegueError, match=message):
            read(put(tmp_path / name, content))


@pytest.mark.parametrize("magic", FOREIGN)
def test_files_of_no_kind_are_named(tmp_path: Path, magic: bytes) -> None:
    with pytest.raises(SegueError, match=FOREIGN[magic].split(":")[0].replace("(", ".").replace(")", ".")):
        read(put(tmp_path / "a.bin", magic + bytes(300)))


GENE = b'chr1\tHAVANA\texon\t1\t90\t.\t+\t.\tgene_id "E1";\n'


@pytest.mark.parametrize("content, message", [
    (b"(dp0\nVtrain\np1\n(lp2\nI1\na.", "a pickle"), (b"cnumpy.core.multiarray\n_reconstruct\np0\n(c", "a pickle"),
    (zipped({"a/data.pkl": b"\x80\2"}), "a pickle"), (bytes(4) + b"ftypM4A ", "WAV with ffmpeg"),
    (bytes(4) + b"ftypheic", "HEIC"), (bytes(128) + b"DICM", "DICOM"), (bytes(512) + b"\x89HDF", "save it with -v7"),
    (b"##fileformat=VCFv4.2\n#CHROM\tPOS\n", "--variants"), (b"##gff-version 3\nchr1\ta\tb\t1\t9\t.\n", "gffread"),
    (GENE, "gffread"), (b"chr1\t0\t9\tp\nchr2\t7\t9\tq\n", "BED"), (b"<?xml version='1.0'?>\n<gpx v='1'>", "gpsbabel"),
    (b"track type=bedGraph\nchr1\t0\t9\t0.5\n", "a track of a genome"), (b"<?xml ?>\n<museScore>", "MusicXML"),
    (b">MA1\tX\nA  [ 0 3 ]\nC  [ 1 2 ]\n", "counts of motifs"),
    (b"%%MatrixMarket matrix array real general\n1 1\n2\n", "a dense matrix")])
def test_binary_files_are_not_read_as_text(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(SegueError, match=message):
        read(put(tmp_path / ("a.pt" if content[:2] == b"PK" else "a.xyz"), content))
    assert read(put(tmp_path / "b.gff", b"##gff-version 3\na\tb\n##FASTA\n>a\nACGTTGCA\n")).kind.name == "dna"


CHAT = [{"role": "user", "content": "Who wrote it?"}, {"role": "assistant", "content": "Nobody\nknows."}]
SAID = "user: Who wrote it?\nassistant: Nobody\nknows."


@pytest.mark.parametrize("rows, expected, note", [
    ([{"messages": CHAT, "id": 1}], SAID, "said by=messages.role, field=messages.content; not read: id"),
    ([{"conversations": [{"from": turn["role"], "value": turn["content"]} for turn in CHAT]}], SAID,
     "said by=conversations.from, field=conversations.value"),
    ([{"id": 7, "prompt": "Who?", "completion": "I."}], "Who?\nI.", "field=prompt, field=completion; not read: id"),
    ([{"question": "Who?", "answer": "I."}], "Who?\nI.", "field=question, field=answer"),
    ([{"instruction": "Add", "input": "", "output": "3"}, {"instruction": "Add", "input": "1 2", "output": "3"}],
     "Add\n3", "field=instruction, field=input, field=output"),
    ([{"prompt": "Who?", "chosen": "I.", "rejected": "no"}], "Who?\nI.",
     "field=prompt, field=chosen; not read: rejected"),
    ([{"prompt": "Who?", "n": 1}], "Who?", "field=prompt; not read: n"),
    ([{"instruction": "Who?", "context": "", "response": "I.", "kind": "a"}], "Who?\nI.",
     "field=instruction, field=context, field=response; not read: kind"),
    ([{"dialog": ["Who was it then?", "I."], "act": [1, 2]}], "Who was it then?\nI.", "field=dialog; not read: act"),
    ([{"text": "all of it", "answer": "no"}], "all of it", "field=text; not read: answer"),
    (["a text", "another"], "a text", "field=text"),
])
def test_dialogues_and_answers_are_one_text(tmp_path: Path, rows: list, expected: str, note: str) -> None:
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    files = [("a.jsonl", lines), ("b.jsonl", "\ufeff" + lines), ("c.json", json.dumps(rows)),
             ("d.json", "\ufeff" + json.dumps(rows, indent=2))]
    for name, content in files:
        data = read(put(tmp_path / name, content), kind="text")
        assert texts(data)[0] == expected and len(data) == len(rows) and data.problems.note == note
        assert read(tmp_path / name).kind.name == "text"
    if isinstance(rows[0], dict) and len(rows[0]) > 1 and "n" not in rows[0]:
        parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "e.parquet")
        assert texts(read(tmp_path / "e.parquet"))[0] == expected


def test_fields_may_be_several(tmp_path: Path) -> None:
    path = put(tmp_path / "a.csv", 'a,b,c\nx,"y, z",1\nu,,2\n')
    assert texts(read(path, kind="text", field=["b", "a"])) == ["y, z\nx", "u"]
    with pytest.raises(SegueError, match="no column 'd'; there are a, b, c"):
        read(path, kind="text", field=["a", "d"])


@pytest.mark.parametrize("name, content", [
    ("a.json", "[[3, 1, 2], [3, 3]]"), ("b.jsonl", "[3, 1, 2]\n[3, 3]\n"),
    ("c.jsonl", '{"ids": [3, 1, 2]}\n{"ids": [3, 3]}\n'),
    ("d.json", '[\n ["3", "1", "2"],\n ["3", "3"]\n]'), ("e.npz", None), ("f.parquet", None)])
def test_lists_of_items_are_sequences(tmp_path: Path, name: str, content: str | None) -> None:
    if name.endswith(".npz"):
        np.savez(tmp_path / name, a=np.array([3, 1, 2]), b=np.array([[3, 3]], dtype=np.uint8))
    elif content is None:
        parquet.write_table(pa.table({"input_ids": [[3, 1, 2], [3, 3]]}), tmp_path / name)
    else:
        put(tmp_path / name, content)
    data = read(tmp_path / name)
    assert data.kind.name == "events" and [record.object for record in data] == [["3", "1", "2"], ["3", "3"]]


def test_arrays_of_other_shapes_are_refused(tmp_path: Path) -> None:
    for array, message in ((np.ones((2, 2, 1, 1)), "float64 of 4 axes"), (np.ones((1, 1, 1), int), "of 3 axes"),
                           (np.array([[1], 2], dtype=object), "Python objects, a pickle")):
        np.save(tmp_path / "a.npy", array)
        with pytest.raises(SegueError, match=message):
            read(tmp_path / "a.npy")
    rows = np.array([[3, 1], [2, 2]])
    np.save(tmp_path / "a.npy", rows)
    assert [record.object for record in read(tmp_path / "a.npy")] == [["3", "1"], ["2", "2"]]


def test_events_within_a_json_object_are_read(tmp_path: Path) -> None:
    """What an interface of the web sends: a table within an object, its times written out."""
    events = [{"user_id": user, "event": action, "time": f"2024-01-01T00:00:{second:02}Z"}
              for user, action, second in (("ann", "open", 9), ("bob", "open", 2), ("ann", "close", 4))]
    data = read(put(tmp_path / "a.json", json.dumps({"events": events})), kind="events")
    assert {record.name: record.object for record in data} == {"ann": ["close", "open"], "bob": ["open"]}
    lines = "".join(json.dumps({"user": user, "events": [event for event in events if event["user_id"] == user]}) + "\n"
                    for user in ("ann", "bob"))
    data = read(put(tmp_path / "b.jsonl", lines.replace("user_id", "session_kept")))
    assert {record.name: record.object for record in data} == {"ann": ["close", "open"], "bob": ["open"]}
    assert data[0].channels["gap"].tolist() == [0, 5]


def test_nested_parquet_columns_are_read(tmp_path: Path) -> None:
    rows = [{"user": {"id": user}, "event": {"item": item, "at": {"time": time}}}
            for user, item, time in (("ann", "tea", 3), ("bob", "tea", 1), ("ann", "milk", 2))]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    data = read(tmp_path / "a.parquet")
    assert {record.name: record.object for record in data} == {"ann": ["milk", "tea"], "bob": ["tea"]}
    assert data.problems.note == "who=user.id, what=event.item, when=event.at.time (1 to 3)"


def test_misleading_tables_without_header_are_read(tmp_path: Path) -> None:
    clicks = "".join(f"{i // 2},2014-04-07T10:5{i}:00.046Z,21453650{i % 2},0\n" for i in range(4))
    data = read(put(tmp_path / "clicks.dat", clicks))
    assert data.problems.note == "who=1, what=3, when=2 (2014-04-07 10:50:00 to 2014-04-07 10:53:00); not read: 4"
    assert data[0].object == ["214536500", "214536501"]
    sentence = "the weather is fine and we go out"
    tweets = "".join(f'"{4 * (i % 2)}","{1467810369 + i}","NO_QUERY","user{i}","{sentence} {i}"\n' for i in range(9))
    assert texts(read(put(tmp_path / "tweets.csv", tweets)))[0] == sentence + " 0"
    measured = "".join(f"{i % 2 + 1}\t0.{i}1\t-0.{i}2\t0.{i}3\n" for i in range(9))
    first = "".join(f"{1700000000 + i},u{i % 2},{'ab'[i % 2]}{i % 4}\n" for i in range(9))
    note = "who=2, what=3, when=1 (2023-11-14 22:13:20 to 2023-11-14 22:13:28)"
    assert read(put(tmp_path / "first.csv", first)).problems.note == note
    hours = "date,HUFL,OT\n2016-07-01 00:00,5.8,30.5\n2016-07-01 01:00,5.6,27.7\n"
    for name, rows, message in (("a.jsonl", '{"values": [0.5, 1.25]}\n' * 3, "holds measured numbers"),
                                ("a.json", "[[0.5, 1], [2, 2]]", "holds measured numbers"),
                                ("ucr.tsv", measured, "2 holds measured numbers"),
                                ("hours.csv", hours, "its numbers are measured: read them with kind=series")):
        assert read(put(tmp_path / name, rows)).kind.name == ("rows" if name == "ucr.tsv" else "series")
        with pytest.raises(SegueError, match=message):
            read(tmp_path / name, kind="events")
    twice = read(put(tmp_path / "twice.csv", "user,item,item,time\nann,tea,1,3\nann,milk,1,2\n"))
    assert twice[0].object == ["milk", "tea"] and twice.problems.note.endswith("not read: item (2)")


def test_molecules_a_line_are_read(tmp_path: Path) -> None:
    path = put(tmp_path / "a.smi", "CCO ethanol\nc1ccccc1\tbenzene ring\n\nO\n")
    data = read(path)
    assert [record.object for record in data] == ["CCO", "c1ccccc1", "O"] and data[1].name.endswith(":benzene ring")
    path = put(tmp_path / "b.smi", "smiles,id\nCCO,Z1\nc1ccccc1,Z2\n")
    assert [record.name for record in read(path)] == [f"{path}:Z1", f"{path}:Z2"]
    path = put(tmp_path / "c.smi", "smiles\tid\tweight\nCCO\tZ1\t46.1\n")
    assert [record.name for record in read(path)] == [f"{path}:Z1"]


EMBL = """ID   X1; SV 1; linear; mRNA; STD; PLN; 20 BP.
XX
AC   X1;
XX
SQ   Sequence 20 BP; 5 A; 5 C; 5 G; 5 T; 0 other;
     acgtacgtac gtacgtacgt                                                    20
//
"""
UNIPROT = """ID   A_HUMAN                 Reviewed;          12 AA.
AC   P00001;
DE   RecName: Full=A;
SQ   SEQUENCE   12 AA;  1354 MW;  0 CRC64;
     MKTAYIAKQR QI
//
"""
STOCKHOLM = "# STOCKHOLM 1.0\n#=GF ID x\none/1-9   MKTAY.IAK\ntwo/1-9   MKTAYWIA-\n#=GC SS_cons  .........\n//\n"
CLUSTAL = "CLUSTAL W (1.82) multiple sequence alignment\n\n\none   ACGTAC-T\ntwo   ACGTACGT\n      ****** *\n"
PIR = ">P1;one\na protein of mine\nMKTAYIAKQR*\n"
ONE = "# STOCKHOLM 1.0\n#=GF ID x\n\nP1/1-12      MKTAYIAKQRQI\n#=GC scorecons 000000000000\n//\n"
NEXUS = "#NEXUS\nbegin data;\ndimensions ntax=2 nchar=5;\nformat datatype=dna missing=? gap=-;\nmatrix\n" \
        "one GGGC?\ntwo GG-CA\n;\nend;\n"
CHAINS = "HEADER    DNA WITH A PROTEIN                      01-JAN-01   1ABC\nSEQRES   1 A    2  MET SER\n" \
         "SEQRES   1 B    2   DG  DC\n"
SNAPGENE = b"\t\0\0\0\x0eSnapGene\0\1\0\x0f\0\x13" + b"\0\0\0\0\x0d\0ACGTACGTACGT"
AMINO = GENBANK.replace("24 bp    DNA  ", "24 aa         ").replace("acgtacgtac gtacgtacgt nnac",
                                                                    "mktayiakqr qisfvkshfs rqle")


@pytest.mark.parametrize("name, content, kind, letters", [
    ("a.embl", EMBL, "dna", ["ACGTACGTACGTACGTACGT"]), ("uniprot_sprot.dat", UNIPROT, "protein", ["MKTAYIAKQRQI"]),
    ("P00001.txt", UNIPROT, "protein", ["MKTAYIAKQRQI"]), ("a.sto", STOCKHOLM, "protein", ["MKTAY-IAK", "MKTAYWIA-"]),
    ("a.aln", CLUSTAL, "dna", ["ACGTAC-T", "ACGTACGT"]), ("a.pir", PIR, "protein", ["MKTAYIAKQR"]),
    ("a.gb", AMINO, "protein", ["MKTAYIAKQRQISFVKSHFSRQLE"]), ("a.a2m", ">a\nACGT-C\n", "dna", ["ACGT-C"]),
    ("a.tsv", f"one\t{'MKWLF' * 5}\ntwo\t{'MKWLY' * 5}\n", "protein", ["MKWLF" * 5, "MKWLY" * 5]),
    ("a.csv", f"label,read\n1,{'ACGTT' * 5}\n2,{'TCGTT' * 5}\n", "dna", ["ACGTT" * 5, "TCGTT" * 5]),
    ("b.csv", "peptide,affinity\nMKWLF,0.5\nIIWLF,0.25\n", "protein", ["MKWLF", "IIWLF"]),
    ("one.sth", ONE, "protein", ["MKTAYIAKQRQI"]), ("a.nex", NEXUS, "dna", ["GGGC-", "GG-CA"]),
    ("a.phy", " 2 10\nMesohippusACGTACGTAC\nHypohippusACGTACGTAA\n", "dna", ["ACGTACGTAC", "ACGTACGTAA"]),
    ("a.dna", SNAPGENE, "dna", ["ACGTACGTACGT"]),
])
def test_flat_files_of_biology_are_read(tmp_path: Path, name: str, content: str | bytes, kind: str,
                                        letters: list[str]) -> None:
    pytest.importorskip("Bio")
    data = read(put(tmp_path / name, content))
    assert data.kind.name == kind and [record.object for record in data] == letters and not data.problems


def test_chains_of_other_molecules_are_reported(tmp_path: Path) -> None:
    pytest.importorskip("Bio")
    data = read(put(tmp_path / "a.pdb", CHAINS))
    assert [record.object for record in data] == ["MS"] and "no chain of amino acids" in str(data.problems[0])


def test_pointers_of_git_lfs_are_refused(tmp_path: Path) -> None:
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 7\n"
    for name in ("a.csv", "a.txt", "a.wav", "a.smi"):
        with pytest.raises(SegueError, match="a pointer of Git LFS, not the file"):
            read(put(tmp_path / name, pointer))
    put(tmp_path / "b.txt", "a text of words\n")
    assert len(read(tmp_path)) == 1


def test_lists_of_numbers_and_texts_beside_other_columns(tmp_path: Path) -> None:
    rows = "".join(f"{smiles},\"[0, 1]\",\"[None, {i}]\"\n" for i, smiles in enumerate(["C=O", "CC(=O)O", "C#N"] * 2))
    data = read(put(tmp_path / "a.csv", f"smiles,atoms,bonds\n{rows}"))
    assert (data.kind.name, len(data)) == ("molecule", 6)


def test_malformed_flat_files_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("Bio")
    for name, content, message in (("a.embl", EMBL.rpartition("//")[0], "does not end with //"),
                                   ("a.gb", GENBANK.partition("ORIGIN")[0], "no GenBank file that Biopython"),
                                   ("a.aln", "CLUSTAL W\n\none   AC\ntwo   ACGT TT GG\n",
                                    "4 is not a name and letters")):
        with pytest.raises(SegueError, match=message):
            read(put(tmp_path / name, content), kind="dna")
    empty = read(put(tmp_path / "r.fastq", "@a\nAC\n+\nII\n@trimmed\n\n+\n\n@b\nGT\n+\nII\n"))
    assert [record.object for record in empty] == ["AC", "GT"] and "no letters" in str(empty.problems[0])
    for words in ("CLUSTAL is a program\none two\n", "LOCUS of control\nis a concept\n", "ID   card\nof 12 BP.\n"):
        assert read(put(tmp_path / "notes.txt", words * 3)).kind.name == "text"
    events = "".join(f"u{i % 5},{'AccountOpenedByOwner' if i % 2 else 'AccountClosedByOwner'}\n" for i in range(9))
    assert read(put(tmp_path / "e.csv", "user,event\n" + events)).kind.name == "events"


def test_typed_items_are_split_at_signs_or_blanks() -> None:
    normalise = KINDS["events"].normalise
    assert normalise("a b  c") == ["a", "b", "c"]
    for typed in ("Create Fine → Send Fine", "Create Fine, Send Fine", "Create Fine,Send Fine,"):
        assert normalise(typed) == ["Create Fine", "Send Fine"]
    assert normalise("Create Fine,") == ["Create Fine"]


def test_typed_items_are_split_by_known_items() -> None:
    normalise, known_items = KINDS["events"].normalise, {"Create Fine", "Send Fine", "Send", "Pay, then go", "Pay"}
    assert normalise("Create Fine", known_items) == ["Create Fine"]
    assert normalise("Create Fine Send Send Fine", known_items) == ["Create Fine", "Send", "Send Fine"]
    assert normalise("Create Fine, Send it back → Pay, then go", known_items) == ["Create Fine", "Send it back",
                                                                                  "Pay, then go"]
    assert normalise("Pay it", known_items) == ["Pay", "it"] and normalise("", known_items) == []
    assert normalise("012 3<:", {*"0123<:"}) == [*"0123<:"] and normalise("012", {"0", "12"}) == ["012"]


def test_prose_that_begins_with_a_quotation_mark_of_mail_is_text(tmp_path: Path) -> None:
    text = ">from the commercials , this looks like a mild tale\nin the end it is a dear old film .\n"
    assert read(put(tmp_path / "said.txt", text * 5)).kind.name == "text"
    blocks = ">a\n" + "MKLVAGTRWS ACDEFGHIKL MNPQRSTVWY\n" * 4
    assert read(put(tmp_path / "blocks.fa", blocks)).kind.name == "protein"
    peptides = "".join(f">p{i}\nMKLV\n" for i in range(9))
    assert read(put(tmp_path / "peptides.txt", peptides)).kind.name == "protein"


def test_baskets_are_cases(tmp_path: Path) -> None:
    rows = [["whole milk", "rolls"], ["rolls"], ["beer", "rolls", "whole milk"], ["beer"], ["beer", "rolls"]] * 4
    data = read(put(tmp_path / "groceries.csv", "".join(",".join(row) + "\n" for row in rows)))
    quoted = "".join(",".join(row) + "\n" for row in rows).replace("rolls", '"rolls, two"')
    assert read(put(tmp_path / "quoted.csv", quoted))[0].object == ["whole milk", "rolls, two"]
    assert data.kind.name == "cases" and [record.object for record in data] == rows
    data.kind.write([record.object for record in data], tmp_path / "again.csv")
    assert [record.object for record in read(tmp_path / "again.csv")] == rows
    assert read(put(tmp_path / "a.txt", "a b,c\n"), kind="cases", elements="cells")[0].object == ["a b", "c"]


def test_numbers_below_their_names_are_cases(tmp_path: Path) -> None:
    text = "% Different categories found in input file:\n\nfrontpage news tech\n\n\n% Sequences:\n\n1 1 \n2 3 \n3 \n"
    data = read(put(tmp_path / "msnbc.seq", text))
    assert [record.object for record in data] == [["frontpage", "frontpage"], ["news", "tech"], ["tech"]]
    assert (data.kind.name, data.name(0)) == ("cases", f"{tmp_path / 'msnbc.seq'}:8")


def test_sequences_of_sets_are_cases(tmp_path: Path) -> None:
    sets = "@CONVERTED_FROM_TEXT\n@ITEM=1=the\n@ITEM=2=river\n1 -1 2 1 -1 -2\n2 -1 -2\n"
    data = read(put(tmp_path / "spmf.txt", sets))
    assert data.kind.name == "cases" and [record.object for record in data] == [["the", "river", "the"], ["river"]]
    check_kind(KINDS["cases"], [tmp_path / "spmf.txt"], mutations=6)


def test_files_of_another_kind_are_skipped_and_told(tmp_path: Path) -> None:
    put(tmp_path / "a.fa", ">a\nACGTACGTAA\n")
    put(tmp_path / "b.faa", ">b\nMKWLFHYDEQ\n")
    for kind, other in (("dna", "protein"), ("protein", "dna")):
        data = read(tmp_path, kind=kind)
        assert len(data) == 1 and f"skipped: looks like {other}, not {kind}" in str(data.problems[0])


def test_tables_of_one_heading_are_of_one_kind(tmp_path: Path) -> None:
    waves = "".join(f"{np.sin(i / 9):.4f},{np.cos(i / 7):.4f}\n" for i in range(200))
    put(tmp_path / "1.csv", "#left, right\n" + waves)
    put(tmp_path / "2.csv", "#left, right\n1,0\n1,1\n0,1\n")
    put(tmp_path / "target.csv", "#number, class\n1,0\n2,1\n3,0\n")
    data = read(tmp_path)
    assert (data.kind.name, len(data), len(data.problems)) == ("series", 2, 1)
    assert "target.csv: skipped" in str(data.problems[0])


def test_per_letter_annotations_are_no_sequences(tmp_path: Path) -> None:
    names = [f"P{i}" for i in range(9)]
    put(tmp_path / "sequences.fasta", "".join(f">{name}\n{'MKTAYIAKQRQISFVKSHFW' * 3}{name}EE\n" for name in names))
    put(tmp_path / "sampled.fasta", "".join(f">{name} SET=train\n{'CCHHHHHHCCEEEEEECCCC' * 3}CCCC\n" for name in names))
    put(tmp_path / "mask.fasta", "".join(f">{name}\n{'01111111111111111111' * 3}1111\n" for name in names[4:]))
    put(tmp_path / "mutants.fasta", "".join(f">{name}\n{'MKTAYIAKQRQISFVKSHWW' * 3}CCEE\n" for name in names))
    data = read(tmp_path, illegal="mask")
    assert (data.kind.name, len(data), data.problems.total) == ("protein", 18, 2)
    assert all("skipped: a letter or digit for each residue of " in str(problem) for problem in data.problems)


def test_click_times_of_milliseconds_and_days_are_read(tmp_path: Path) -> None:
    rows = [(1, "c", 526309, "09"), (1, "b", 75848, "09"), (2, "c", 990, "10"), (1, "a", 7, "09"), (2, "a", 12, "10")]
    data = read(put(tmp_path / "views.csv", "session_id;user_id;item_id;timeframe;eventdate\n" + "".join(
        f"{user};NA;{item};{at};2016-05-{day}\n" for user, item, at, day in rows * 4)))
    assert "who=session_id, what=item_id, when=eventdate timeframe (2016-05-09 00:00:00 to" in data.problems.note
    assert "".join(data[0].object) == "aaaabbbbcccc" and data[0].channels["gap"].tolist()[4] == pytest.approx(75.841)


def test_a_notebook_is_read_as_its_cells(tmp_path: Path) -> None:
    cells = [{"cell_type": "markdown", "source": ["# Title\n", "words"]},
             {"cell_type": "code", "source": "x = 1", "outputs": [{"data": {"image/png": "iVBORw0KGgo" * 99}}]}]
    data = read(put(tmp_path / "a.ipynb", json.dumps({"cells": cells, "nbformat": 4}, indent=1)))
    assert data.kind.name == "code" and texts(data) == ["# Title\nwords\n\nx = 1"]
    with pytest.raises(SegueError, match="not a notebook of Jupyter"):
        read(put(tmp_path / "b.ipynb", "{}" * 20))


def test_one_long_line_is_inspected_a_bounded_number_of_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its words may be the columns of a table, to all of which each kind has a look."""
    looks, column = list[str](), Look.column
    monkeypatch.setattr(Look, "column", lambda self, name: looks.append(name) or column(self, name))
    assert read(put(tmp_path / "long.txt", "the of and a to in is you that it " * 500)).kind.name == "text"
    assert len(looks) < 2.1 * 5_000


def test_logs_in_the_encoding_that_they_name(tmp_path: Path) -> None:
    log = ('<?xml version="1.0" encoding="{}"?><log><trace><string key="concept:name" value="1"/>' +
           "".join(f'<event><string key="concept:name" value="{name}"/></event>' for name in ("über", "ein")) +
           "</trace></log>")
    for name in ("UTF-16", "ISO-8859-1", "utf-8"):
        (tmp_path / "log.xes").write_bytes(log.format(name).encode(name))
        assert segue.read(tmp_path / "log.xes")[0].object == ["über", "ein"]
    (tmp_path / "log.xes").write_bytes(log.format("UTF-8").encode("latin-1"))
    assert segue.read(tmp_path / "log.xes", encoding="latin-1")[0].object == ["über", "ein"]
    for encoding in ("klingon", "utf-7"):
        (tmp_path / "log.xes").write_bytes(log.format(encoding).encode("latin-1"))
        with pytest.raises(SegueError, match="XES"):
            segue.read(tmp_path / "log.xes")


def test_types_and_times_in_lists(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_text(
        '{"time_since_start": [0.5, 1.5], "type_event": [3, 1], "seq_idx": 0}\n' * 3)
    data = segue.read(tmp_path / "events.jsonl")
    assert data.kind.name == "events" and data[0].object == ["3", "1"]
    assert data[0].channels["time"].tolist() == [0.5, 1.5]


def test_series_with_gaps_in_lists_and_a_number_a_line(tmp_path: Path) -> None:
    (tmp_path / "gluon.jsonl").write_text('{"start": "2020-01-01", "target": [1.5, null, 2.5]}\n' * 3)
    data = segue.read(tmp_path / "gluon.jsonl")
    assert data.kind.name == "series" and data[0].object == ["1.5", "nan", "2.5"]
    (tmp_path / "lines.txt").write_text("".join(f"{i / 4}\n" for i in range(30)))
    assert segue.read(tmp_path / "lines.txt").kind.name == "series"
    (tmp_path / "lines.txt").write_text("1.5\n" * 12 + "about\n")
    assert segue.read(tmp_path / "lines.txt").kind.name == "text"


def test_columns_of_a_series_alternate_in_file_order(tmp_path: Path) -> None:
    (tmp_path / "wide.csv").write_text("step,heat,wet\n" + "".join(
        f"{i},{i / 7:.2f},{0.5 + i % 2}\n" for i in range(60)))  # of the second column few numbers come often
    data = segue.read(tmp_path / "wide.csv")
    for part in (data, *data.split(0.2)):
        assert segue.read(tmp_path / "wide.csv", **data.kind.reading(part.codec()))[0].object == data[0].object


RIVER = ["The river is high today.", "Nobody went to the mill.", "A boat was lost at night.", "It rained for days."]


@pytest.mark.parametrize("value, expected, label", [
    ({"train": [[text, "ab"[i % 2]] for i, text in enumerate(RIVER)], "val": [[RIVER[0], "a"]]}, RIVER[0], "a"),
    ({"P1": [{"tokens": RIVER[0].split(), "h": ["a"]}] * 3, "P2": [{"tokens": ["A", "boat"]}] * 3}, RIVER[0], "P1"),
    ({"text": RIVER, "label": [0, 1, 1, 0]}, RIVER[0], "0"),
    ({"text": dict(zip("0123", RIVER)), "label": dict(zip("0123", "xyyx"))}, RIVER[0], "x"),
    ({"columns": ["text", "label"], "index": [0, 1], "data": [[RIVER[1], 1], [RIVER[2], 0]]}, RIVER[1], "1"),
    ({"version": "1", "data": [{"body": text, "label": "xy"[i % 2]} for i, text in enumerate(RIVER)]}, RIVER[0], "x"),
    ({"features": [{"name": "a"}], "rows": [{"row": {"text": text, "label": 1}} for text in RIVER]}, RIVER[0], "1"),
    ({"good": RIVER[:2], "bad": RIVER[2:]}, RIVER[0], "good"),
    ({f"q{i}": {"question": "Why?", "answer": text} for i, text in enumerate(RIVER)}, f"Why?\n{RIVER[0]}", None),
    ({"name": "x", "dependencies": {"a": "1"}, "files": ["a", "b"]}, None, None),
    ({"menu": {"open": "Open"}, "dialog": {"ok": "Yes", "no": "No"}}, None, None),
])
def test_tables_within_one_object_of_json(tmp_path: Path, value: dict, expected: str | None, label: str | None) -> None:
    for name, content in (("a.json", json.dumps(value)), ("b.json", json.dumps(value, indent=2)))[expected is None :]:
        path = put(tmp_path / name, content)
        data = read(path, classes="")
        assert data.kind.name == "text" and texts(data)[0] == (content if expected is None else expected)
        assert class_in(data.name(0))[1] == (label or "") and len(read(path)) == len(data)
    long = json.dumps({"P1": [{"tokens": RIVER[0].split()}] * 2000, "P2": [{"tokens": ["A", "boat"]}] * 9})
    assert len(long) > HEAD and len(read(put(tmp_path / "long.json", long), classes="")) == 2009


def test_all_classes_of_files_sorted_by_class_are_found(tmp_path: Path) -> None:
    rows = {"oos_val": [["What is the sense of life?", "oos"]] * 60,
            "train": [[f"Please do the thing {i}.", f"thing {i // 20}"] for i in range(1200)]}
    data = read(put(tmp_path / "a.json", json.dumps(rows)), classes="")
    assert len({class_in(data.name(i))[1] for i in range(len(data))}) == 61


def test_a_truncated_json_value_is_completed() -> None:
    value = {"a": [{"b": "x, ]y", "c": [1, 2]}, {"b": "\\\"", "c": []}], "d": 1}
    text = json.dumps(value)
    results = [complete_prefix(text[:end]) for end in range(len(text))]
    assert results[0] is None and results[-1] == {"a": value["a"]} and {"a": [{"b": "x, ]y"}]} in results
    assert complete_prefix('"a", 1') is None and complete_prefix("]],") is None


def test_parts_of_a_message_are_joined_to_text(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": "x"}}]
    row = {"messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": "A cat."}]}
    data = read(put(tmp_path / "a.jsonl", json.dumps(row) + "\n"))
    assert texts(data) == ["user: What is this?\nassistant: A cat."]
    values = [{"type": "image_url", "value": "1.jpg"}, {"type": "text", "value": "What is this?"}]
    row = {"messages": [{"role": "user", "content": values, "loss_weight": 0.0}, {"role": "assistant", "content": [
        {"type": "text", "value": "A cat."}], "loss_weight": 1.0}]}
    assert texts(read(put(tmp_path / "b.jsonl", json.dumps(row) + "\n"))) == texts(data)
    rows = [{"from": "Ann", "text": ["see ", {"type": "link", "text": "http://x"}]}, {"from": "Ann", "text": "yes"}]
    assert texts(read(put(tmp_path / "chat.json", json.dumps({"name": "x", "id": 3, "messages": rows})))) == [
        "Ann: see http://x\nAnn: yes"]


@pytest.mark.parametrize("name, content, kind, letters, label", [
    ("a.arff", "% of\n@RELATION x\n@attribute id string\n"
     + "".join(f"@attribute 'p {i}' {{A,C,G,T}}\n" for i in range(24)) + "@attribute Class {EI,N}\n@data\n"
     + "".join(f"r{i},{','.join('ACGT' * 6)},{'EI' if i % 2 else 'N'}\n" for i in range(6)), "dna", "ACGT" * 6, "N"),
    ("b.arff", "@relation x\n@attribute text string\n@attribute spam {yes,no}\n@data\n"
     + "".join(f"'It isn\\'t the river, {i}.',{'yes' if i % 2 else 'no'}\n" for i in range(6)), "text",
     "It isn't the river, 0.", "no"),
    ("splice.data", "".join(f"{'EI' if i % 2 else 'N'},   S-{i},\t  {'ACGTN' * 6}\n" for i in range(8)), "dna",
     "ACGTN" * 6, "N"),
    ("SpamCollection", "".join(f"{'ham' if i % 2 else 'spam'}\tThe river is high, {i}.\n" for i in range(8)), "text",
     "The river is high, 0.", "spam"),
    ("news.csv", "".join(f'"{i % 3}","A title {i}","The river is high today, {i}"\n' for i in range(9)), "text",
     "The river is high today, 0", "0"),
    ("mood.csv", "text,mood\n" + "".join(f"The river is high {i},{'ab'[i % 2]}\n" for i in range(8)), "text",
     "The river is high 0", "a"),
    ("fast.txt", "".join(f"__label__{'ab'[i % 2]} __label__z The river is high.\n" for i in range(6)), "text",
     "The river is high.", "a"),
    ("promoters.data", "".join(f"{'+-'[i % 2]},S{i},\t\t{'acgt' * 6}{f'{i:03b}'.replace('0', 'a').replace('1', 'c')}\n"
                               for i in range(8)), "dna", "ACGT" * 6 + "AAA", "+"),
    ("kmers.tsv", "sequence\tlabel\n" + "".join(f"ACGTA CGTAC GTACG {'TACGA' if i % 2 else 'TACGG'}\t{i % 2}\n"
                                              for i in range(6)), "dna", "ACGTACGG", "0"),
])
def test_classes_in_other_formats_are_read(tmp_path: Path, name: str, content: str, kind: str, letters: str,
                                           label: str) -> None:
    data = read(put(tmp_path / name, content), classes="")
    result = data[0].object
    assert data.kind.name == kind and (result.decode() if isinstance(result, bytes) else result) == letters
    assert class_in(data.name(0))[1] == label
    assert len({class_in(data.name(i))[1] for i in range(len(data))}) > 1


def test_long_weka_headers_are_read(tmp_path: Path) -> None:
    row_names = ", ".join(f"row-{i}" for i in range(HEAD // 8))
    rows = "".join(f"row-{i},{','.join('ACGT' * 6)},x\n" for i in range(5))
    text = f"@relation x\n@attribute id {{{row_names}}}\n" + "".join(f"@attribute p{i} {{A}}\n" for i in range(24))
    data = read(put(tmp_path / "a.arff", f"{text}@attribute class {{x}}\n@DATA\n{rows}"))
    assert data.kind.name == "dna" and len(data) == 5 and data[0].object == "ACGT" * 6


@pytest.mark.parametrize("name, content, kind, letters", [
    ("a.seq", "ACGTACGTAC\nACGTACGTAC\nACG\n", "dna", ["ACGTACGTACACGTACGTACACG"]),
    ("one.txt", "acgtnacgtt" * 9, "dna", ["ACGTNACGTT" * 9]),
    ("b.txt", "ACGTACGTAC\r\nACGTACG\r\nACGTAAAAA\r\n", "dna", ["ACGTACGTAC", "ACGTACG", "ACGTAAAAA"]),
    ("p.txt", f"{'MKWLF' * 5}\n{'MKWLFHY' * 4}\n", "protein", ["MKWLF" * 5, "MKWLFHY" * 4]),
    ("c.fa", "# by a tool\n; old\n>a\nACGT\n", "dna", ["ACGT"]),
    ("d.gff", "##gff-version 3\nc\tx\tgene\t1\t4\t.\t+\t.\tID=g\n##FASTA\n>c\nACGT\n", "dna", ["ACGT"]),
    ("e.nex", "#NEXUS\nBEGIN DATA;\nDIMENSIONS NTAX=2 NCHAR=4;\nFORMAT DATATYPE=DNA GAP=-;\nMATRIX\na ACGT\nb AC-T\n;\n"
     "END;\n", "dna", ["ACGT", "AC-T"]),
    ("f.aln", "CLUSTAL O(1.2.4) multiple sequence alignment\n\n\na ACGT 4\nb AC-T 3\n  ** *\n\na AC 6\nb AC 5\n",
     "dna", ["ACGTAC", "AC-TAC"]),
    ("h.pdb", f"{'HEADER    HYDROLASE':<50}01-JAN-90   1ABC\nSEQRES   1 A    3  MET LYS VAL\n", "protein", ["MKV"]),
    ("g.tsv", "8-mer\tscore\n" + "".join(f"ACGTACG{base}\t0.{i}\n" for i, base in enumerate("ACGT")), "dna",
     [f"ACGTACG{base}" for base in "ACGT"]),
])
def test_letters_in_other_formats_are_read(tmp_path: Path, name: str, content: str, kind: str,
                                           letters: list[str]) -> None:
    pytest.importorskip("Bio")
    data = read(put(tmp_path / name, content))
    assert data.kind.name == kind and [record.object for record in data] == letters and not data.problems


def test_words_are_not_read_as_sequence_letters(tmp_path: Path) -> None:
    for name, words in (("a.txt", "aardvark\nabacus\n" * 9), ("b.txt", "x" * 500), ("c.txt", "ATTACK AT DAWN\n" * 9),
                        ("d.txt", "CAT\nTAG\nACT\n" * 9)):
        assert read(put(tmp_path / name, words)).kind.name == "text"


@pytest.mark.parametrize("encoding, text", [
    ("mac-roman", "Le château était à l’ombre; “très bien”, dit-il."),
    ("cp850", "Müßige Bären hören das Gebrüll, ähnlich."),
    ("cp866", "Привет, как дела сегодня? Москва."), ("koi8-r", "Привет, как дела сегодня?"),
    ("mac-cyrillic", "Привет, как дела? Я здесь, Москва."), ("iso8859-5", "Привет, как дела сегодня?"),
    ("iso8859-2", "Příliš žluťoučký kůň úpěl ďábelské ódy."),
    ("cp1254", "Bugün İstanbul'da yağmur yağıyor, şemsiyeni aç."),
    ("cp1250", "Hűvös szél fújt, az ősz közeledett; gyümölcsöt szedtünk és főztünk."),
    ("latin-1", "È la città più bella, perché no? Sì, però."), ("cp1252", "“Spam,” he said – “every day” – and went.")])
def test_encodings_are_detected_amid_markup(tmp_path: Path, encoding: str, text: str) -> None:
    page = "".join(f"<p class='{i}'><a href='http://example.org/{i}'>{text}</a></p>\n" for i in range(9))
    data = read(put(tmp_path / "a.txt", page.encode(encoding)))
    assert texts(data) == [page] and f"read as {encoding} (encoding=" in data.problems.description


@pytest.mark.parametrize("name, begin, encoding", [
    ("a.xml", '<?xml version="1.0" encoding="windows-1255"?>\n', "cp1255"),
    ("a.html", "<meta charset=koi8-u>\n", "koi8-u"), ("b.html", "<meta charset='gb2312'>", "gb18030"),
    ("a.py", "#!/usr/bin/python\n# -*- coding: cp1255 -*-\n", "cp1255"),
    ("c.html", "<meta charset='utf-7'>", "latin-1"), ("d.html", "<meta charset='nothing'>", "latin-1")])
def test_files_are_in_the_encoding_that_they_name(tmp_path: Path, name: str, begin: str, encoding: str) -> None:
    text = begin + {"cp1255": "שלום", "koi8-u": "їжак", "gb18030": "鎔基"}.get(encoding, "déjà") + " x" * 9 + "\n"
    data = read(put(tmp_path / name, text.encode(encoding)))
    assert texts(data) == [text] and f"read as {encoding} (encoding=" in data.problems.description


@pytest.mark.parametrize("name, content, sort", [
    ("a.html", "<html><body>" + "<p>The river is <b>high</b> today.</p>\n" * 9, "HTML"),
    ("a.xml", '<?xml version="1.0"?>\n<TEI>' + "<sp who='#a'><l>The river is high.</l></sp>\n" * 9 + "</TEI>", "XML"),
    ("a.tex", "\\begin{document}\n" + "\\section{The river} It is \\emph{high} today.\n" * 9, "LaTeX"),
    ("a.json", json.dumps({"train": [{"input": [[0, 1], [1, 0]], "output": [[1]]}]}), "JSON"),
    ("a.txt", "if a < b and c > d: the river is high, and AT&T is here.\n" * 9, "")])
def test_learned_markup_is_reported(tmp_path: Path, name: str, content: str, sort: str) -> None:
    data = read(put(tmp_path / name, content))
    note = f"markup ({sort} in 1) is learned as it stands" if sort else ""
    assert note in data.problems.description and bool(note) == ("markup" in data.problems.description)
    assert texts(data) == [content]


def test_what_is_true_of_some_files_only_says_of_how_many(tmp_path: Path) -> None:
    put(tmp_path / "a.txt", "The river is high.\n" * 3)
    put(tmp_path / "b.txt", "river\n" * 60)
    assert read(tmp_path).problems.note == "a file a text (a line a text: --read lines=true) (1 of 2 files)"
    put(tmp_path / "a.txt", "water\n" * 60)
    assert read(tmp_path).problems.note == "a file a text (a line a text: --read lines=true)"
    put(tmp_path / "c.txt", "thé\n".encode() * 9 + b"th\xc3")
    with pytest.raises(SegueError, match=r"c.txt: byte 47 \(line 10\) is not UTF-8 \(0xc3\); the rest is: mend it "
                                         r"there, or errors='keep'"):
        read(tmp_path / "c.txt")


def test_legacy_encodings_are_detected_by_their_letters(tmp_path: Path) -> None:
    for encoding, text in (("cp1251", "Привет, как дела сегодня?"), ("shift_jis", "こんにちは世界。今日はいい天気。"),
                           ("gb18030", "我们不是在说这个人的一天。"), ("latin-1", "Ça va très bien, merci à tous.")):
        data = read(put(tmp_path / "a.txt", (text * 9).encode(encoding)))
        assert texts(data) == [text * 9] and f"not UTF-8: read as {encoding} (encoding=" in data.problems.description
        with pytest.raises(SegueError, match=r"byte 3,\d+ .*is not UTF-8"):  # damaged
            read(put(tmp_path / "a.txt", (text * 9).encode() + b"x" * 3000 + text.encode(encoding)[:2]))
    with pytest.raises(SegueError, match="UTF-16-LE without a mark, perhaps: give kind=text and encoding=utf-16-le"):
        read(put(tmp_path / "b.txt", "The river is high.".encode("utf-16-le")))
    assert texts(read(tmp_path / "b.txt", encoding="utf-16-le")) == ["The river is high."]
    rows = "texte;classe\n" + "".join(f"Ça va très bien, merci {i};{i % 2}\n" for i in range(9))
    for options in ({}, {"encoding": "latin-1"}):
        data = read(put(tmp_path / "c.csv", rows.encode("latin-1")), **options)
        assert data.kind.name == "text" and texts(data)[1] == "Ça va très bien, merci 1"
    line = b"title,line\n" + b"".join(b"I went to the river %d,It was high, said he\n".replace(b", s", b" s") % i
                                     for i in range(9))
    data = read(put(tmp_path / "e.csv", line + b"It wasn\xd5t,I said it wasn\xd5t\n"))  # of a Mac
    assert texts(data)[-1] == "It wasn’t" and "read as mac-roman" in data.problems.description
    data = read(put(tmp_path / "d.csv", "user,item\nann,thé\nann,café\nann,lait\n".encode("latin-1")))
    assert data[0].object == ["thé", "café", "lait"] and "read as latin-1" in data.describe()["note"]


BUYS = [(f"k{i * 7 % 5}", ["Tee", "Brot", "Öl"][i * i % 3], datetime(2023, 1, 28, 9, 5) + timedelta(hours=i * i))
        for i in range(24)]
SPAN = "2023-01-28 09:05:00 to 2023-02-19 10:05:00"
LOG = '10.0.0.{0} - - [{2:%d/%b/%Y:%H:%M:%S} +0000] "GET /{1} HTTP/1.1" 200 512 "-" "Mozilla/5.0 (X11)"'


@pytest.mark.parametrize("name, heading, row, note", [
    ("kasse.csv", "Kunde;Artikel;Datum;Uhrzeit;Preis", "{0};{1};{2:%d.%m.%Y};{2:%H:%M};1,5",
     "who=Kunde, what=Artikel, when=Datum Uhrzeit (*); not read: Preis"),
    ("compras.csv", "usuario,producto,fecha,hora", "{0},{1},{2:%Y-%m-%d},{2:%H:%M:%S}",
     "who=usuario, what=producto, when=fecha hora (*)"),
    ("log.csv", "日時,ユーザー,商品", "{2:%Y年%m月%d日 %H:%M},{0},{1}", "when=日時 (*), who=ユーザー, what=商品"),
    ("unknown.csv", "müşteri,ürün,tarih", "{0},{1},{2:%d/%m/%Y %H.%M}", "who=müşteri, what=ürün, when=tarih (*)"),
    ("excel.csv", "sep=;\nuser;item;time", "{0};{1};{2:%Y-%m-%d %H:%M}", "who=user, what=item, when=time (*)"),
    ("units.tsv", "session\turl\ttimestamp_us", "{0}\t{1}\t{3:.0f}000000",
     "who=session, what=url, when=timestamp_us (*)"),
    ("days.csv", "Customer,Item,Date", "{0},{1},{4:.6f}", "who=Customer, what=Item, when=Date (*)"),
    ("hours.csv", "client,event,datum", "{0},{1},{2:%Y%m%d%H%M}", "who=client, what=event, when=datum (*)"),
    ("oracle.tsv", "USER_ID\tITEM_ID\tEVENT_TS", "{0}\t{1}\t{2:%d-%b-%y %I.%M.%S}.000000 {2:%p}",
     "who=USER_ID, what=ITEM_ID, when=EVENT_TS (*)"),
    ("mail.csv", "sender,subject,date", '{0},{1},"{2:%a, %d %b %Y %H:%M:%S} +0000"',
     "who=sender, what=subject, when=date (*)"),
    ("ga4.jsonl", "", '{{"event_date": "{2:%Y%m%d}", "event_timestamp": "{3:.0f}000000", "event_name": "{1}", '
     '"user_pseudo_id": "{0}"}}', "who=user_pseudo_id, what=event_name, when=event_timestamp (*); not read: "
                                  "event_date"),
    ("access.log", "", LOG, "who=client, what=request, when=time (*); not read: identity, account, status, bytes, "
                            "referer, agent"),
    ("u_ex.log", "#Version: 1.0\n#Fields: date time cs-uri-stem c-ip", "{2:%Y-%m-%d %H:%M:%S} /{1} 10.0.0.{0}",
     "what=cs-uri-stem, who=c-ip, when=date time (*)"),
    ("rows.json", '{"next": null, "data": [', '{{"user": "{0}", "item": "{1}", "ts": "{2:%Y-%m-%dT%H:%M:%S}Z"}},',
     "who=user, what=item, when=ts (*)")])
def test_events_in_other_formats_are_read(tmp_path: Path, name: str, heading: str, row: str, note: str) -> None:
    days = (datetime(1970, 1, 1) - datetime(1899, 12, 30)).days
    lines = [heading] * bool(heading)
    for user, item, time in BUYS:
        seconds = time.replace(tzinfo=UTC).timestamp()
        lines.append(row.format(user, item, time, seconds, seconds / 86400 + days))
    if name.endswith(".json"):
        lines[-1] = lines[-1][:-1] + "]}"
    data = read(put(tmp_path / name, "\n".join(lines) + "\n"))
    result = data.problems.note
    assert data.kind.name == "events" and len(data) == 5 and data.total == 24
    assert sorted(result.replace(SPAN, "*").split(", ")) == sorted(note.split(", "))


@pytest.mark.parametrize("form", ["arrow", "stream", "feather", "orc"])
def test_arrow_and_orc_are_read_as_parquet_is(tmp_path: Path, form: str) -> None:
    table = pa.table({"user": [user for user, _, _ in BUYS], "item": [item for _, item, _ in BUYS],
                      "time": pa.array([time for _, _, time in BUYS], pa.timestamp("ns" if form != "orc" else "us"))})
    path = tmp_path / f"a.{form}"
    if form == "orc":
        orc.write_table(table, path)
    elif form == "feather":
        feather.write_feather(table, path)
    else:
        with pa.OSFile(str(path), "wb") as sink, (pa.ipc.new_file if form == "arrow" else pa.ipc.new_stream)(
                sink, table.schema) as writer:
            writer.write_table(table)
    data = read(path)
    assert data.problems.note == f"who=user, what=item, when=time ({SPAN})" and data.total == 24
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(SegueError, match="not a readable table"):
        read(path)


def test_lists_written_into_cells_are_lists(tmp_path: Path) -> None:
    rows = "".join(f"{i},\"[{i}, {i + 1}, 3]\"\n" for i in range(4))
    data = read(put(tmp_path / "a.csv", "session,items\n" + rows))
    assert data.kind.name == "events" and data[1].object == ["1", "2", "3"] and data[1].name == "1"
    assert read(put(tmp_path / "b.csv", "timestamp\n2020-01-01\n2020-01-03\n")).describe()["vocabulary"] == 1


WAVE = [20 + i * i % 7 + i / 8 for i in range(60)]
CLOCK = [datetime(2023, 1, 28) + timedelta(minutes=15 * i) for i in range(60)]


def _series(row: str, of: int = 60) -> str:
    return "\n".join(row.format(CLOCK[i], WAVE[i], str(WAVE[i]).replace(".", ","), i, i % 3) for i in range(of)) + "\n"


@pytest.mark.parametrize("name, content, series, note", [
    ("ld.txt", '"";"MT_1";"MT_2"\n' + _series('"{0:%Y-%m-%d %H:%M:%S}";{2};{2}'), 1, "columns=MT_1,MT_2, when=1 (*)"),
    ("dwd.txt", "STATIONS_ID;MESS_DATUM;TT_TU;eor\n" + _series("  3987;{0:%Y%m%d%H%M};  {1:.2f};eor"), 1,
     "columns=TT_TU, when=MESS_DATUM (*); not read: STATIONS_ID, eor"),
    ("price.csv", "Date,Price,Vol.,Change %\n" + _series('"{0:%b %d, %Y %H:%M}","1,{1:06.2f}",{1:.1f}K,{1:.1f}%'), 1,
     "columns=Price,Vol.,Change %, when=Date (*)"),
    ("influx.csv", "#group,false,false\n#default,_result,\n,_time,_value\n" + _series(",{0:%Y-%m-%dT%H:%M:%SZ},{1}"), 1,
     "columns=_value, when=_time (*)"),
    ("value.txt", _series("{2}") + "21,05\n", 1, ""),
    ("lightwave.csv", "'Elapsed time','MLII'\n'hh:mm:ss.mmm','mV'\n" + _series("'0:{3:06.3f}',{1}", 59), 1,
     "columns=MLII, when=Elapsed time (0 to 58, every 1)"),
    ("gdp.csv", "Quarter;Umsatz\n" + "".join(f"{1990 + i // 4}Q{i % 4 + 1};1.234.{500 + i}\n" for i in range(20)), 1,
     "columns=Umsatz, when=Quarter (1990-01-01 00:00:00 to 1994-10-01 00:00:00, every quarter)"),
    ("sun.csv", "Year,Sunspots\n" + "".join(f"{1700 + i},{i * i % 7}.5\n" for i in range(20)), 1,
     "columns=Sunspots, when=Year (1700 to 1719, every 1)"),
    ("gps.csv", "vehicle,timestamp,lat,speed\n" + "".join(_series(f"v{k}," "{0},{1},{3}") for k in (1, 2)), 2,
     "columns=lat,speed, who=vehicle, when=timestamp (*)"),
    ("long.csv", "timestamp,parameter,value\n" + "".join(_series("{0}," f"p{k}," "{1}") for k in (1, 2)), 2,
     "columns=value, who=parameter, when=timestamp (*)"),
    ("wide.csv", "Page," + ",".join(f"{day}" for day in CLOCK[::4]) + "\n" + "en,1,2,3" + ",4" * 12 + "\n"
     + "de,2,2,3" + ",5" * 12 + "\n", 2, "a row a series, named by Page"),
    ("m4.csv", "V1," + ",".join(f"V{i}" for i in range(2, 40)) + "\nH1,1.5" + ",2.5" * 37 + "\nH2,1.5,2" + "," * 36
     + "\n", 2, "a row a series, named by V1"),
    ("a.tsf", "@relation a\n@attribute series_name string\n@attribute start date\n@missing true\n@data\n"
     "T1:2020-01-01 00-00-00:1.5,2,?\nT2:2020-01-01 00-00-00:1,2.5\n", 2, ""),
    ("gluon.jsonl", '{"start": "2020-01-01", "target": [1.5, 2, 2.5], "feat_static_cat": [0]}\n' * 3, 3,
     "columns=target, a series a row"),
    ("prsa.csv", "No,year,month,day,hour,pm2.5,cbwd\n" + "".join(
        f"{i + 1},2010,{1 + i // 48},{1 + i // 24 % 2},{i % 24},{i * 7 % 5 if i else 'NA'},{'NW' if i % 3 else 'cv'}\n"
        for i in range(96)), 1, "columns=pm2.5, when=year month day hour (2010-01-01 00:00:00 to 2010-02-02 23:00:00, "
     "every 1:00:00); not read: No, cbwd"),
    ("hour.csv", "instant,dteday,hr,cnt\n" + "".join(f"{i},2011-01-0{1 + i // 24},{i % 24},{i * 7 % 5}\n"
                                                     for i in range(48)), 1,
     "columns=cnt, when=dteday hr (2011-01-01 00:00:00 to 2011-01-02 23:00:00, every 1:00:00); not read: instant"),
    ("shampoo.csv", '"Month","Sales"\n' + "".join(f'"{1 + i // 12}-{1 + i % 12:02}",{WAVE[i]}\n' for i in range(36)), 1,
     "columns=Sales; not read: Month"),
    ("water.csv", "Year,Water\n" + "".join(f"{1885 + i},{300 + i * i % 7}\n" for i in range(30)), 1,
     "columns=Water, when=Year (1885 to 1914, every 1)"),
    ("deaths.csv", "Entity,Year,Deaths\n" + "".join(f"{who},{1900 + i},{i * i % 7}\n" for who in ("All", "Flood")
                                                    for i in range(30)), 2,
     "columns=Deaths, who=Entity, when=Year (1900 to 1929, every 1)"),
    ("lstnet.txt", "".join(",".join(str(int((40 + 37 * k % 29) * WAVE[i // 5])) for k in range(30)) + "\n"
                           for i in range(60)), 1,
     "columns=" + ",".join(map(str, range(1, 21))) + ",... (30 in all)"),
    ("pens.tra", "".join(",".join(f"{50 + (20 + i % 9) * np.sin(k / 3 + i * i):3.0f}" for k in range(16))
                         + f", {i % 10}\n" for i in range(40)), 40, "a row a series, the last number its class"),
    ("yahoo.csv", "timestamp,value,is_anomaly\n" + _series("{3},{1},0") + "60,9.5,1\n", 1,
     "columns=value, when=timestamp (0 to 60, every 1); not read: is_anomaly"),
    ("electricity.csv", "date,0,1,2,OT\n" + _series("{0},{1},-{1},1.5,2"), 1,
     "columns=0,1,2,OT, when=date (*)"),
    ("air.csv", "Date;Time;CO;;\n" + _series("{0:%d/%m/%Y;%H.%M.%S};{2};;") + ";;;;\n" * 3, 1,
     "columns=CO, when=Date Time (*)"),
    ("wisdm_raw.txt", "".join(f"{33 + i // 120},{['Walking', 'Sitting'][i // 60 % 2]},{49105962326000 + i * 50000000},"
                              f"{WAVE[i % 60]},-{WAVE[i % 60]};\n" for i in range(240)), 4,
     "columns=4,5, class=2, who=1 2, when=3 (4.9106e+10 to 4.91179e+10, every 50000); not read: 1"),
    ("train_FD001.txt", "".join(f"{1 + i // 30} {1 + i % 30} {WAVE[i]} 100.0" + f" {WAVE[i] * 2}" * 21 + " \n"
                                for i in range(60)), 2,
     "columns=" + ",".join(map(str, range(3, 23))) + ",... (23 in all), who=1, when=2 (1 to 30, every 1)"),
    ("sales.csv", "id,date,store_nbr,family,sales\n" + "".join(
        f"{4 * i + k},{CLOCK[i]},{1 + k // 2},{'AB'[k % 2]},{WAVE[i]}\n" for i in range(60) for k in range(4)), 4,
     "columns=sales, who=store_nbr family, when=date (*); not read: id"),
    ("walmart.csv", "Store,Dept_nbr,Date,Sales\n" + "".join(
        f"{1 + k // 9},{k % 9},{CLOCK[i]},{i * 7 % 5}\n" for i in range(60) for k in range(63)), 63,
     "columns=Sales, who=Store Dept_nbr, when=Date (*)"),
    ("ae.train", "\n".join("".join(f"{WAVE[i]} -0.{i}\n" for i in range(10 + k)) for k in range(4)), 4,
     "a series a block of lines"),
    ("libras.data", "".join(",".join(f"{.5 + .4 * np.sin(k / 9 + i * i):.5f}" for k in range(30)) + f",{i % 10}\n"
                            for i in range(40)), 40, "a row a series, the last number its class"),
    ("pbs.csv", "Month,Scripts\n" + "".join(f"{1991 + i // 12} {CLOCK[0].replace(month=1 + i % 12):%b},{i * i % 7}\n"
                                             for i in range(24)), 1,
     "columns=Scripts, when=Month (1991-01-01 00:00:00 to 1992-12-01 00:00:00, every month)"),
    ("eurostat.csv", "period,value\n" + "".join(f"{1991 + i // 12}M{1 + i % 12:02},{WAVE[i]}\n" for i in range(24)), 1,
     "columns=value, when=period (1991-01-01 00:00:00 to 1992-12-01 00:00:00, every month)"),
    ("lynx.csv", ",0\n" + "".join(f"{1821 + i},{269 + i * i % 70}\n" for i in range(30)), 1,
     "columns=0, when=1 (1821 to 1850, every 1)"),
    ("meteo.json", json.dumps({"elevation": 38.0, "hourly": {"time": [str(each) for each in CLOCK], "rain": WAVE,
                                                             "heat": WAVE}}), 1,
     "columns=hourly.rain,hourly.heat, when=hourly.time (*)")])
def test_series_in_other_formats_are_read(tmp_path: Path, name: str, content: str, series: int, note: str) -> None:
    data = read(put(tmp_path / name, content))
    span = "2023-01-28 00:00:00 to 2023-01-28 14:45:00, every 0:15:00"
    assert (data.kind.name, len(data)) == ("series", series)
    assert data.problems.note.replace(span, "*") == note
    if "who=" in note:  # as a model reads them that was fitted on these
        codec = data.kind.codec(data)
        assert len(read(tmp_path / name, kind="series", **data.kind.reading(codec))) == series


def test_arrays_of_windows_are_series(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(3, 5, 2))
    np.save(tmp_path / "a.npy", values)
    data = read(tmp_path / "a.npy")
    assert len(data) == 3 and np.allclose([float(item.partition("=")[2]) for item in data[1].object],
                                          values[1].reshape(-1))
    np.save(tmp_path / "b.npy", np.ones((4, 30)) / 3)
    assert len(read(tmp_path / "b.npy")) == 4 and len(read(tmp_path / "b.npy", rows=False)) == 1


def test_biopython_warnings_become_notes(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    pytest.importorskip("Bio")
    text = ("LOCUS       X            12 bp    DNA  linear   BCT 01-JAN-2020\nACCESSION   X\n"
            "FEATURES             Location/Qualifiers\n     CDS             1..6\n"
            "                     /locus_tag=\"a\"\nORIGIN\n        1 acgtacgtacgt\n//\n")
    for options, letters in (({}, "ACGTACGTACGT"), ({"features": "CDS"}, "ACGTAC")):
        data = read(put(tmp_path / "a.gb", text), **options)
        assert [record.object for record in data] == [letters] and "doubtful: " in str(data.problems[0])
    assert not recwarn.list


def test_written_events_keep_their_times(tmp_path: Path) -> None:
    for times in ([1.7e9, 1.7e9 + 0.25, 1.7e9 + 86400.0], [0.5, 2.0, 1e7]):
        KINDS["events"].write([Record(["a", "b", "c"], {"time": np.array(times)}, "x")], tmp_path / "a.csv")
        assert segue.read(tmp_path / "a.csv")[0].channels["time"].tolist() == times
        assert ("2023-11-14 22:13:20.250000" in (tmp_path / "a.csv").read_text()) == (times[0] > 1e9)


def test_reads_beside_a_genome_and_files_of_another_kind(tmp_path: Path) -> None:
    put(tmp_path / "d" / "a.fastq", "@a\nACGT\n+\nIIII\n")
    put(tmp_path / "d" / "b.fa", ">b\nACGTA\n")
    data = read(tmp_path / "d")
    assert [record.object for record in data] == ["ACGT", "ACGTA"] and not data[0].channels
    assert data.problems.note == "letters alone: not all files have qualities"
    assert "quality" in read(tmp_path / "d" / "a.fastq")[0].channels
    for kind in ("dna", "music"):
        with pytest.raises(SegueError, match=f"; it looks like protein, not {kind}"):
            read(put(tmp_path / "p.faa", ">p\nMKWLFHYDE\n"), kind=kind)


def test_lines_that_may_be_texts_get_a_note(tmp_path: Path) -> None:
    note = "a file a text (a line a text: --read lines=true)"
    names = "".join(f"name{i}\r\n" for i in range(60))
    for name, content, message in (("a.txt", names, note), ("train.en", names, note),
                                   ("b.txt", names + "\n" + names, ""),
                                   ("c.abc", names, ""), ("d.py", names, ""), ("e.txt", names[:60], "")):
        assert read(put(tmp_path / name, content)).problems.note == message
    assert len(data := read(tmp_path / "a.txt", lines=True)) == 60 and not data.problems.note


def test_the_contract_on_files_of_other_makers(tmp_path: Path) -> None:
    pytest.importorskip("mido")
    rows = "".join(f"'It rained {i}.',{'yes' if i % 2 else 'no'}\n" for i in range(6))
    text = "@relation x\n@attribute text string\n@attribute spam {yes,no}\n@data\n"
    files = {"text": {"a.arff": text + rows, "a.jsonl": json.dumps({"text": RIVER[0]}) + "\n",
                      "a.json": json.dumps({"train": [[line, "x"] for line in RIVER], "val": [[RIVER[0], "y"]]})},
             "dna": {"a.seq": "ACGTACGTAC\nACGTACGTAC\nACG\n", "a.aln": "CLUSTAL W alignment\n\na ACGT\nb AC-T\n"},
             "music": {"b.json": json.dumps([[[60, 64], [60, 67], []]] * 4)}}
    for kind, contents in files.items():
        check_kind(KINDS[kind], [put(tmp_path / name, content) for name, content in contents.items()], mutations=10)


def test_a_workbook_is_a_folder_of_tables(tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    book.active.title = "Käufe"
    book.create_sheet("leer")
    for row in [["Kunde", "Artikel", "Datum", "Preis"],
                *(["k" + "12"[i % 2], "Öl", datetime(2023, 3, 15, 6 * i), 1.5 if i else "#DIV/0!"] for i in range(4))]:
        book.active.append(row)
    book.save(tmp_path / "a.xlsx")
    data = read(tmp_path / "a.xlsx")
    span = "2023-03-15 00:00:00 to 2023-03-15 18:00:00"
    assert data.problems.note == f"who=Kunde, what=Artikel, when=Datum ({span}); not read: Preis"
    assert {record.name: record.object for record in data} == {"k1": ["Öl", "Öl"], "k2": ["Öl", "Öl"]}
    with zipfile.ZipFile(tmp_path / "a.xlsx") as box:
        parts = {name: box.read(name).decode() for name in box.namelist()}
    (tmp_path / "b.xlsx").write_bytes(zipped({**parts, "xl/worksheets/sheet1.xml": "<worksheet>"}))
    with pytest.raises(SegueError, match="no workbook that can be read"):
        read(tmp_path / "b.xlsx")


BASES = "ACGTTGCAAC" * 6
RELAXED = f"2 60\none_of_them {BASES}\nother {BASES[::-1]}\n"
BLOCKS = f"  2 60\none of it {BASES[:30]}\nother     {BASES[30:]}\n\n{BASES[30:]}\n{BASES[:30]}\n"
ROWS = f"2 60\none\t{BASES[:30]}\n{BASES[30:]}\nother\t{BASES[30:]}\n{BASES[:30]}\n"
READ = "{}\t{}\tchr1\t1\t60\t9M\t*\t0\t0\tACGTTGCAA\tABCDEFGHI\tNM:i:0\n"
ATOMS = "".join(f"ATOM  {i:>5}  CA  {name} A{i:>4}    {i:8.3f}{i:8.3f}{i:8.3f}  1.00 50.00           C  \n"
                for i, name in enumerate(["MET", "LYS", "VAL"], 1))
SCHEME = "loop_\n" + "".join(f"_pdbx_poly_seq_scheme.{name}\n" for name in ("asym_id", "mon_id")) + "A MET\nA LYS\n#\n"
WATER = "3\n\nO 0.0 0.0 0.119\nH 0.0 0.763 -0.477\nH 0.0 -0.763 -0.477\n"
METHANE = "2\ngdb 1\t157.7\nC\t-0.01\t1.1*^-6\t0.1\t-0.5\nH\t0.2\t-0.1\t0.1\t0.1\n1341.3\t1.2\nC\tC\nInChI=1S/CH4\n"
TRIPOS = """@<TRIPOS>MOLECULE
water
 3 2 0 0 0
SMALL
NO_CHARGES

@<TRIPOS>ATOM
 1 O 0.0 0.0 0.0 O.3
 2 H 0.9 0.0 0.0 H
 3 H 0.0 0.9 0.0 H
@<TRIPOS>BOND
 1 1 2 1
 2 1 3 1
"""


@pytest.mark.parametrize("name, content, kind, objects", [
    ("a.phy", RELAXED, "dna", [BASES, BASES[::-1]]), ("b.phy", BLOCKS, "dna", [BASES, BASES[30:] + BASES[:30]]),
    ("c.phylip", ROWS * 2, "dna", [BASES, BASES[30:] + BASES[:30]] * 2),
    ("d.phy", RELAXED.replace("A", "W").replace("C", "K"), "protein", None),
    ("a.sam", "@SQ\tSN:chr1\tLN:9\n" + READ.format("a", 0) + READ.format("b", 16) + READ.format("b", 256), "dna",
     ["ACGTTGCAA", "TTGCAACGT"]), ("b.txt", READ.format("a", 0) * 2, "dna", ["ACGTTGCAA"] * 2),
    ("a.maf", "##maf version=1\na score=1\ns hg18.chr7 2 9 + 99 ACGTTGCAA\ns mm4.chr6 2 8 + 99 ACG-TGCAA\n\n", "dna",
     ["ACGTTGCAA", "ACG-TGCAA"]),
    ("a.pdb", ATOMS + "END\n", "protein", ["MKV"]), ("b.cif", "data_AF-P1-F1\n#\n_entry.id AF-P1-F1\n#\n" + SCHEME,
                                                    "protein", ["MK"]),
    ("a.inchi", "InChI=1S/CH4/h1H4\nInChI=1S/C2H6O/c1-2-3/h3H,2H2,1H3\tethanol\n" * 2, "molecule", ["C", "CCO"] * 2),
    ("b.csv", 'InChI,y\n"InChI=1S/C2H6O/c1-2-3/h3H,2H2,1H3",1.5\n' * 1, "molecule", ["CCO"]),
    ("src-train.txt", "C C ( = O ) O . O C\nc 1 c c c c c 1 Br\nO = C ( O ) C\nC [Si] ( C ) C\n", "molecule",
     ["CC(=O)O.OC", "c1ccccc1Br", "O=C(O)C", "C[Si](C)C"]),
    ("a.rsmi", "ReactionSmiles\tPatentNumber\nCC(=O)Cl.OCC>>CC(=O)OCC\tUS1\n", "molecule", ["CC(=O)Cl.OCC>>CC(=O)OCC"]),
    ("a.xyz", WATER * 2, "molecule", ["O", "O"]), ("qm9.xyz", METHANE, "molecule", ["C"]),
    ("a.mol2", TRIPOS * 2, "molecule", ["O"] * 2)])
def test_formats_of_biology_and_chemistry(tmp_path: Path, name: str, content: str, kind: str,
                                          objects: list[str] | None) -> None:
    for needed in ("Bio", "rdkit"):
        pytest.importorskip(needed)
    data = read(put(tmp_path / name, content))
    results = [record.object for record in data]
    assert data.kind.name == kind and results == (objects or results) and not data.problems
    if name.endswith(("phy", "sam", "maf")):
        check_kind(KINDS[kind], [tmp_path / name], mutations=8)


TRIANGLE = ["@", "@", "-1", "@", "-1", "-2"]
ONE_WAY = ["@", "@", ">1", "@", ">1", ">2"]
GEXF = """<?xml version="1.0" encoding="UTF-8"?>
<gexf xmlns="http://www.gexf.net/1.2draft"><graph defaultedgetype="undirected">
<attributes class="node"><attribute id="0" title="kind" type="string"/></attributes><nodes>
<node id="a"><attvalues><attvalue for="0" value="x"/></attvalues></node><node id="b"/><node id="c"/></nodes>
<edges><edge source="a" target="b"/><edge source="b" target="c"/><edge source="c" target="a"/></edges></graph></gexf>
"""
OGB = {"edge.csv": "0,1\n1,2\n2,0\n0,1\n", "num-node-list.csv": "3\n2\n", "num-edge-list.csv": "3\n1\n",
       "node-feat.csv": "6,0\n6,0\n7,0\n6,0\n7,0\n", "graph-label.csv": "0\n1\n"}


@pytest.mark.parametrize("name, content, signs", [
    ("a.net", '*Vertices 3\n1 "b b" 0.1 0.2\n*Edges\n1 2 1\n2 3\n3 1\n', ["@b_b", *TRIANGLE[1:]]),
    ("b.net", "%c\n*vertices 3\r\n*arcslist\r\n1 2 3\r\n*arcs\r\n2 3\r\n", ONE_WAY),
    ("a.dot", "strict graph {\n  a [y=1];\n  a -- b -- c -- a /* c */\n}\n", TRIANGLE),
    ("b.gv", 'digraph "g" { rankdir=LR; node [shape=box]\n a -> {b c} // c\n subgraph s { b -> c } }', ONE_WAY),
    ("a.gexf", GEXF, ["@x", *TRIANGLE[1:]]), ("a.graph", "% c\n3 3\n2 3\n1 3\n1 2\n", TRIANGLE),
    ("a.col", "c x\np edge 3 3\ne 1 2\ne 2 3\ne 1 3\n", TRIANGLE), ("a.tgf", "1\n2\n3\n#\n1 2\n1 3\n2 3\n", ONE_WAY),
    ("out.a", "% sym unweighted\n% 3 3 3\n1 2\n2 3\n3 1\n", TRIANGLE),
    ("a.nwk", "((A:1,B:0.2)0.9:1,C);\n", ["@", "@", ">1", "@A", ">1", "@B", ">2", "@C", ">4"]),
    ("a.nt", "<a> <p> <b> .\n<b> <p> <c> .\n<a> <p> <c> .\n", ["@", "@", ">1", ":p", "@", ">1", ":p", ">2", ":p"]),
    ("raw.zip", OGB, ["@6,0", "@6,0", ">1", "@7,0", ">1", "<2"])])
def test_formats_of_graphs(tmp_path: Path, name: str, content: str | dict, signs: list[str]) -> None:
    path = put(tmp_path / name, zipped(content) if isinstance(content, dict) else content)
    data = read(path, order="given")
    assert data.kind.name == "graph" and data[0].object == signs and not data.problems
    if name.endswith(("net", "gv", "nwk", "gexf")):
        check_kind(KINDS["graph"], [path], mutations=8)


def test_sparse_rows_and_triples_are_graphs(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", adj_indptr=np.array([0, 2, 4, 6]), adj_indices=np.array([1, 2, 0, 2, 0, 1]),
             adj_data=np.ones(6), adj_shape=np.array([3, 3]), labels=np.array([0, 1, 1]))
    data = read(tmp_path / "a.npz")
    assert data.kind.name == "graph" and sorted(data[0].object) == sorted(["@0", "@1", "@1", "-1", "-1", "-2"])
    rows = "".join(f"/m/{a}\t/is/{'of' if a % 2 else 'in'}\t/m/{a * a % 7}\n" for a in range(12))
    assert read(put(tmp_path / "train.txt", rows)).problems.note == "labels edge=edge_label"
    rows = "".join(f"u{a % 3}\tclick\ti{a * a % 7}\n" for a in range(12))
    assert read(put(tmp_path / "clicks.tsv", rows)).kind.name == "events"


def saved(array: np.ndarray) -> bytes:
    np.save(box := io.BytesIO(), array)
    return box.getvalue()


WINDOWS = np.sin(np.arange(6)[:, None] + np.arange(30) / 4).round(3)
ROW = [",".join(map(str, row)) for row in WINDOWS]
ATTRIBUTES = "".join(f"@attribute att{i} numeric\n" for i in range(30))
DIGITAL = (np.sin(np.arange(40) / 3) * 900).astype(np.int64)
PAIR = np.stack([DIGITAL & 4095, DIGITAL[::-1] & 4095])
TWELVE = np.stack([PAIR[0] & 255, PAIR[0] >> 8 | PAIR[1] >> 8 << 4, PAIR[1] & 255], 1).astype(np.uint8).tobytes()
SPACES = "NAME: four\nTYPE: TSP\nDIMENSION: 3\nNODE_COORD_SECTION\n1 1.5 2\n2 3.5 4\n 3 5.5 6\nEOF\n"


def edf(labels: list[str], sizes: list[int], data: bytes) -> bytes:
    fields = [(labels, 16), (["a"], 80), (["uV"], 8), (["-100"], 8), (["100"], 8), (["-2000"], 8), (["2000"], 8),
              ([""], 80), (list(map(str, sizes)), 8), ([""], 32)]
    header = b"".join(cell.encode().ljust(width) for cells, width in fields
                      for cell in (cells if len(cells) > 1 else cells * len(labels)))
    head = [("0", 8), ("X", 80), ("X", 80), ("01.01.00", 8), ("00.00.00", 8), ("768", 8), ("", 44), ("2", 8), ("1", 8),
            (str(len(labels)), 4)]
    return b"".join(cell.encode().ljust(width) for cell, width in head) + header + data


RECORDINGS: list[tuple[str, dict[str, str | bytes], list[str], str]] = [
    ("a.arff", {"a.arff": f"% c\n@relation x\n{ATTRIBUTES}@attribute target {{-1,1}}\n@data\n" + "".join(
        f"{row},{1 - 2 * (i % 2)}\n" for i, row in enumerate(ROW))}, ROW[0].split(","), "1"),
    ("b.arff", {"b.arff": f"@relation x\n@attribute r relational\n{ATTRIBUTES}@end r\n@attribute c {{a,b}}\n@data\n" +
                f"'{ROW[0]}\\n{ROW[1]}',a\n'{ROW[2]}\\n{ROW[3]}',b\n"},
     [f"x{i}={x}" for pair in zip(ROW[0].split(","), ROW[1].split(",")) for i, x in enumerate(pair, 1)], "a"),
    ("a", {"a/X_train.txt": "\n".join(ROW).replace(",", "  "), "a/y_train.txt": "5\n6\n" * 3}, ROW[0].split(","), "5"),
    ("a.npz", {"X.npy": saved(WINDOWS[:, :, None]), "y.npy": saved(np.arange(6) % 2)}, ROW[0].split(","), "0"),
    ("b.npz", {"x_test.npy": saved(WINDOWS), "y_test.npy": saved(np.eye(6))}, ROW[0].split(","), "0"),
    ("a.npy", {"a.npy": saved(DIGITAL.astype(np.int16))}, list(map(str, DIGITAL)), ""),
    ("a.hea", {"a.hea": "a 2 360 40\na.dat 212 200(0)/mV 12 0 0 0 0 MLII\na.dat 212 100(0) 12 0 0 0 0 V5\n# x\n",
               "a.dat": TWELVE}, [f"{name}={x / gain:.7g}" for pair in zip(DIGITAL, DIGITAL[::-1])
                                  for x, name, gain in zip(pair, ("MLII", "V5"), (200, 100))], ""),
    ("b.dat", {"b.hea": "b 1 500 40\nb.dat 16 1/mV\n", "b.dat": DIGITAL.astype("<i2").tobytes()},
     list(map(str, DIGITAL)), ""),
    ("a.edf", {"a.edf": edf(["EEG", "EDF Annotations"], [20, 4], b"".join(
        part.astype("<i2").tobytes() + bytes(8) for part in (DIGITAL[:20], DIGITAL[20:])))},
     [f"{x / 20:.7g}" for x in DIGITAL], ""),
    ("a.txt", {"a.txt": "START\n65.25,-19.5,0\n65.5,-21.5,66\nBREAK\n1,-2,99\n"},
     ["x=65.25", "y=-19.5", "pen=1", "x=65.5", "y=-21.5", "pen=0", "x=1", "y=-2", "pen=0"], ""),
    ("cat.ndjson", {"cat.ndjson": '{"word":"cat","key_id":"5","drawing":[[[1,2],[3,4]],[[5],[6]]]}\n'},
     ["x=1", "y=3", "pen=1", "x=2", "y=4", "pen=0", "x=5", "y=6", "pen=0"], "cat"),
    ("a.plt", {"a.plt": "Geolife trajectory\nWGS 84\n\n\n\n0\n39.5,116.25,0,492,39744.12,2008-10-23,02:53:04\n"},
     ["latitude=39.5", "longitude=116.25", "altitude=492"], ""),
    ("four.tsp", {"four.tsp": SPACES, "four.opt.tour": "NAME: x\nTYPE: TOUR\nTOUR_SECTION\n2\n1\n3\n-1\nEOF\n"},
     ["x=3.5", "y=4", "x=1.5", "y=2", "x=5.5", "y=6"], "")]


@pytest.mark.parametrize("name, files, items, label", RECORDINGS, ids=[each[0] for each in RECORDINGS])
def test_recordings_and_windows_with_classes(tmp_path: Path, name: str, files: dict, items: list[str],
                                             label: str) -> None:
    if name.endswith(".npz"):
        put(tmp_path / name, zipped(files))
    for file, content in {} if name.endswith(".npz") else files.items():
        put(tmp_path / file, content)
    data = read(tmp_path / name)
    assert (data.kind.name, data.problems.total) == ("series", 0)
    assert [float(item.rpartition("=")[2]) for item in data[0].object] == pytest.approx(
        [float(item.rpartition("=")[2]) for item in items], rel=1e-6)
    assert [item.rpartition("=")[0] for item in data[0].object] == [item.rpartition("=")[0] for item in items]
    assert class_in(data.name(0))[1] == label
    if (tmp_path / name).is_file() and not name.endswith((".npz", ".dat")):
        check_kind(KINDS["series"], [tmp_path / name], mutations=6)


def test_matlab_is_an_archive_of_arrays(tmp_path: Path) -> None:
    savemat = pytest.importorskip("scipy.io").savemat
    savemat(tmp_path / "a.mat", {"val": DIGITAL[None].astype(np.int16)})
    assert read(tmp_path / "a.mat")[0].object == list(map(str, DIGITAL))
    savemat(tmp_path / "b.mat", {"set": {"X": WINDOWS, "y": np.arange(6)[:, None]}, "who": "me"})
    assert class_in(read(tmp_path / "b.mat").name(4))[1] == "4"
    for content, message in ((b"MATLAB 7.3 MAT-file".ljust(600, b"\0"), "save it with -v7"),
                             ((tmp_path / "b.mat").read_bytes()[:300], "no MATLAB file that can be read|no array")):
        with pytest.raises(SegueError, match=message):
            read(put(tmp_path / "c.mat", content))


INK = (np.add.outer(np.arange(4) * 9, np.arange(64)) * 37 % 256).astype(np.uint8).reshape(4, 8, 8)
BRIGHT = [" ".join(map(str, each.reshape(-1))) for each in INK]
HEADED = "label," + ",".join(f"pixel{i}" for i in range(64)) + "\n"
PIXELS = "".join(f"{i % 2},{','.join(each.split())}\n" for i, each in enumerate(BRIGHT))
IDX = {"train-images-idx3-ubyte": b"\0\0\x08\3" + np.array(INK.shape, ">u4").tobytes() + INK.tobytes(),
       "train-labels-idx1-ubyte": b"\0\0\x08\1\0\0\0\4\0\1\0\1"}


def packed_pictures() -> bytes:
    images = pytest.importorskip("PIL.Image")
    rows = []
    for i, picture in enumerate(INK):
        images.fromarray(picture).save(box := io.BytesIO(), "PNG")
        rows.append({"image": {"bytes": box.getvalue(), "path": None}, "label": i % 2})
    parquet.write_table(pa.Table.from_pylist(rows), table := io.BytesIO())
    return table.getvalue()


@pytest.mark.parametrize("name, content", [
    ("train.csv", HEADED + PIXELS), ("mnist.csv", PIXELS), ("a.parquet", packed_pictures),
    ("fer.csv", "emotion,pixels,Usage\n" + "".join(f"{i % 2},{each},Training\n" for i, each in enumerate(BRIGHT))),
    ("idx", IDX), ("a.npz", {"x_train.npy": saved(INK), "y_train.npy": saved(np.arange(4)[:, None] % 2)}),
    ("b.npz", {"train_images.npy": saved(np.stack([INK] * 3, -1)), "train_labels.npy": saved(np.arange(4) % 2)})])
def test_pictures_in_tables_and_with_classes(tmp_path: Path, name: str, content: Any) -> None:
    pytest.importorskip("PIL")
    if name == "idx":
        for file, raw in IDX.items():
            put(tmp_path / name / file, raw)
    else:
        content = content() if callable(content) else content
        put(tmp_path / name, zipped(content) if isinstance(content, dict) else content)
    data = read(tmp_path / name, side=0, levels=256)
    assert (data.kind.name, len(data), data.problems.total) == ("picture", 4, 0)
    assert data[1].object == ["grey256:8", *BRIGHT[1].split()]
    assert [class_in(data.name(i))[1] for i in range(4)] == ["0", "1", "0", "1"]
    if name == "mnist.csv":
        check_kind(KINDS["picture"], [tmp_path / name], mutations=4)


def test_pictures_of_few_levels_are_scaled(tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    on = [[int(cell) > 99 for cell in line.split()] for line in BRIGHT]
    semeion = "".join(" ".join(f"{cell:d}.0000" for cell in line) + f" {i % 2:d} {1 - i % 2:d} \n"
                      for i, line in enumerate(on))
    optdigits = "".join(",".join(f"{16 * cell}" for cell in line) + f",{1 - i % 2}\n" for i, line in enumerate(on))
    for name, text in (("semeion.data", semeion), ("optdigits.tra", optdigits)):
        data = read(put(tmp_path / name, text), side=0)
        assert (data.kind.name, [class_in(data.name(i))[1] for i in range(4)]) == ("picture", ["1", "0", "1", "0"])
        assert [record.object[1:] for record in data] == [[str(7 * cell) for cell in line] for line in on]


def test_picture_arrays_of_any_axis_order_are_read(tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    colours = np.stack([INK] * 3, 1).repeat(2, 2).repeat(2, 3)  # four of three channels of 16 x 16
    last = np.concatenate([colours, colours]).transpose(2, 3, 1, 0)
    for array in (colours, colours.transpose(0, 2, 3, 1), last, colours.reshape(4, -1), colours / np.float32(255)):
        np.save(tmp_path / "a.npy", array)
        data = read(tmp_path / "a.npy", side=0, levels=256)
        assert (data.kind.name, len(data)) == ("picture", 8 if array is last else 4)
        assert data[2].object[1:17:2] == BRIGHT[2].split()[:8]


CHORALE = """!!!COM: Bach
**kern\t**kern\t**text
*clefF4\t*\t*
*MM100\t*MM100\t*
=1\t=1\t=1
4C\t4c 4e\tla
*^\t*\t*
8D\t4r\t[4e-\t.
8E\t.\t.\t.
*v\t*v\t*\t*
4r\t4e-]\t.
.\tqf\t.
2BB-;\t4.gg#\t.
.\t8r\t.
*-\t*-\t*-
"""
KEYS = np.zeros((8, 88), np.uint8)
KEYS[:4, 39] = KEYS[4:, 43] = 1


@pytest.mark.parametrize("name, content, items", [
    ("a.krn", CHORALE, "tempo100 loud20 note48 length48 note60 length48 note64 length48 wait48 note50 length24 note63 "
     "length96 wait24 note52 length24 wait72 note46 length96 note80 length72"),
    ("a.csv", "note0,note1\n" + "60,0\n" * 4 + "64,60\n" * 4,
     "loud20 note60 length96 wait48 note64 length48"),
    ("a.npz", zipped({"train.npy": saved(KEYS[None])}), "loud20 note60 length48 wait48 note64 length48")])
def test_music_in_other_formats_is_read(tmp_path: Path, name: str, content: str | bytes, items: str) -> None:
    data = read(put(tmp_path / name, content))
    assert data.kind.name == "music" and data[0].object == items.split()
    if name == "a.krn":
        pytest.importorskip("mido")
        check_kind(KINDS["music"], [tmp_path / name], mutations=10)
        with pytest.raises(SegueError, match="line 9: 3 spines where there are 4"):
            read(put(tmp_path / name, CHORALE.replace("8E\t.\t.\t.", "8E\t.\t.")))


def test_a_model_reads_new_files_with_its_own_options(tmp_path: Path) -> None:
    path = put(tmp_path / "names.txt", "".join(f"name{i * i % 97}\n" for i in range(60)))
    stack, report = Stack(StackConfig(257, 8, ["gru"])), Report({"reading": read(path, lines=True, classes="").reading})
    model = Fitted(stack, ByteCodec(), KINDS["text"], report, 16)
    assert model.reading == {"lines": True} and len(model.read(path)) == 60
    assert len(model.read(path, lines=None)) == 1, "and null takes it back"
    assert model.reading_differences(read(path, kind="text")) == [
        "the data were read without lines=, those that the model was fitted on with lines=true"]
    read(path, lines=True).save(tmp_path / "saved")
    assert not model.reading_differences(read(tmp_path / "saved")) + model.reading_differences(model.read(["name"]))


def test_items_rarely_repeated_are_not_recommended_twice(tmp_path: Path) -> None:
    rows = "".join(f"u{i // 4},m{i * 5 % 12}\n" for i in range(40))
    rated = read(put(tmp_path / "ratings.csv", "user,movie\n" + rows))
    codec = KINDS["events"].codec(rated)
    assert repeat_share(rated.encode(codec), len(codec.items)) == 0
    plays = read(put(tmp_path / "plays.csv", "user,song\n" + "".join(f"u{i // 4},m{i % 2}\n" for i in range(40))))
    assert repeat_share(plays.encode(codec), len(codec.items)) == 0.5
    stack = Stack(StackConfig(codec.size, 8, ["gru"])).eval()
    for share, once in ((0.0, True), (0.5, False)):
        model = Fitted(stack, codec, KINDS["events"], Report({"repeats": share}), 16)
        continued = model.continue_(["m0", "m5"], n=8, min_new_tokens=8).whole
        assert (model.rarely_repeats, len(set(continued)) == len(continued) == 10) == (once, once)


def test_games_are_read_as_their_moves(tmp_path: Path) -> None:
    """Comments, variations, glyphs and numbers are dropped; a truncated game is reported."""
    tags = '[Event "Rated"]\n[Site "x"]\n[Result "{}"]\n\n'
    games = ("1. e4 e5 {Ruy (Lopez)} 2. Nf3! (2. f4 exf4 (2... d5) 3. Nf3) Nc6 $1\n3. Bb5 a6 1/2-1/2\n\n",
             "1. e4 { [%eval 0.17] } 1... c5 2. O-O-O e8=Q+ 1-0\n\n", "1. e4 e5 2. Qxxx *\n")
    text = "".join(tags.format(game.split()[-1]) + game for game in games)
    data = read(file := put(tmp_path / "two.pgn", text), classes="")
    assert [record.object for record in data] == [["e4", "e5", "Nf3", "Nc6", "Bb5", "a6"],
                                                  ["e4", "c5", "O-O-O", "e8=Q+"]]
    assert [class_in(record.name) for record in data] == [(f"{file}:1", "1/2-1/2"), (f"{file}:8", "1-0")]
    assert [str(problem) for problem in data.problems] == [
        f"{file}, record line 14: 'Qxxx' is no move; mend or remove the game"]
    rows = "a,white,d4 d5 c4 c6 cxd5\nb,black,e4 e5 Nf3 Nc6\n" * 3
    data = read(put(tmp_path / "games.csv", f"id,winner,moves\n{rows}"))
    assert (data.kind.name, data[0].object) == ("events", ["d4", "d5", "c4", "c6", "cxd5"])


def test_lines_of_objects_and_times_are_read(tmp_path: Path) -> None:
    rows = [[{"time_since_start": 0.5 * j, "type_event": j % (2 + i)} for j in range(4 + i)] for i in range(3)]
    parts = {"train": rows, "test": rows}
    for name, value in (("a.json", {"train": rows, "dim_process": 3}), ("b.json", rows), ("c.json", parts)):
        data = read(put(tmp_path / name, json.dumps(value)))
        assert data.kind.name == "events" and data[1].object == ["0", "1", "2", "0", "1"]
        assert data[0].channels["time"].tolist() == [0, 0.5, 1, 1.5]
    data = read(put(tmp_path / "times.txt", "0.5 1.25 3\n1 2.5\n0.25 0.25 4 9\n"))
    assert data.problems.note == "what=event, when=time" and data[2].channels["gap"].tolist() == [0, 0, 3.75, 5]


ASKED = [{"id": f"5a{i}", "question": f"Is {text.lower()[:-1]}?", "answer": i % 2 == 0, "passage": text}
         for i, text in enumerate(RIVER)]
SQUAD = {"data": [{"title": "Water", "paragraphs": [{"context": text, "qas": [
    {"id": "a", "question": "Why?", "answers": [{"text": "Rain", "answer_start": 3}] * 2},
    {"id": "b", "question": "Who?", "answers": [{"text": "Nobody", "answer_start": 0}]}]} for text in RIVER]}] * 2}


@pytest.mark.parametrize("name, value, expected, note", [
    ("boolq.jsonl", ASKED, f"Is the river is high today?\n{RIVER[0]}\ntrue",
     "field=question, field=passage, field=answer; not read: id"),
    ("squad.json", SQUAD, f"{RIVER[0]}\nWhy?\nRain\nWho?\nNobody",
     "field=context, field=qas.question, field=qas.answers.text; not read: title, qas.id, qas.answers.answer_start"),
    ("arc.jsonl", [{"question": {"stem": text, "choices": [{"text": each, "label": "A"} for each in ("mill", "no")]},
                    "answerKey": "B"} for text in RIVER], f"{RIVER[0]}\nmill\nno\nB",
     "field=question.stem, field=question.choices.text, field=answerKey; not read: question.choices.label"),
    ("hh.jsonl", [{"chosen": text, "rejected": f"{text} Not so, not so."} for text in RIVER], RIVER[0],
     "field=chosen; not read: rejected"),
    ("mbpp.jsonl", [{"text": "Add two.", "code": "def f(a, b):\n    return a + b", "task_id": 1}] * 3,
     "Add two.\ndef f(a, b):\n    return a + b", "field=text, field=code; not read: task_id"),
    ("wmt.jsonl", [{"translation": {"de": text, "en": text.upper()}} for text in RIVER],
     f"{RIVER[0]}\n{RIVER[0].upper()}", "field=translation.de, field=translation.en"),
    ("snli.jsonl", [{"sentence1": text, "sentence2": text.upper(), "n": 1} for text in RIVER],
     f"{RIVER[0]}\n{RIVER[0].upper()}", "field=sentence1, field=sentence2; not read: n"),
    ("log.json", {f"S{i}.json": {"goal": {"a": 1}, "log": [{"text": text, "metadata": {}} for text in RIVER]}
                  for i in range(3)}, "\n".join(RIVER), "field=log.text; not read: goal.a, key"),
    ("chat.json", {"a": {"content": [{"message": text, "agent": "x"} for text in RIVER], "b": 1},
                   "c": {"content": [{"message": RIVER[0], "agent": "y"}] * 2, "b": 2}},
     "\n".join(f"x: {text}" for text in RIVER), "said by=content.agent, field=content.message; not read: b, key"),
    ("sums.csv", "question,answer\n" + "".join(f"What is {i} + 1?,{i + 1}\n" for i in range(9)), "What is 0 + 1?\n1",
     "field=question, field=answer"),
    ("wmt.tsv", "".join(f"{text}\t{text.upper()}\n" for text in RIVER), f"{RIVER[0]}\n{RIVER[0].upper()}",
     "field=1, field=2"),
    ("spam.csv", "v1,v2,,,\n" + "".join(f"{'ab'[i % 2]},{text},,,\n" for i, text in enumerate(RIVER)), RIVER[0],
     "field=v2; not read: v1, 3, 4, 5"),
    ("one.txt", "Who knows the time and what the user of it was, or who the author is?", None, ""),
    ("ner.tsv", "".join(f"{i % 4}\t{'ABAA'[i % 4]}\tO\n" + "\n" * (i % 4 == 3) for i in range(16)), None, ""),
    ("httpd.log", "".join(f"[Sun Dec 04 2005] [{'notice' if i % 2 else 'error'}] child {i}\n" for i in range(9)), None,
     ""),
])
def test_questions_precede_their_answers(tmp_path: Path, name: str, value: object, expected: str | None,
                                         note: str) -> None:
    content = value if isinstance(value, str) else json.dumps(value) if name.endswith(".json") else "".join(
        json.dumps(row) + "\n" for row in value)  # type: ignore[attr-defined]
    data = read(put(tmp_path / name, content))
    assert (data.kind.name, data.problems.note) == ("text", note)
    assert texts(data)[0] == (content if expected is None else expected)


PLAYS = [{"username": f"u{i % 7}", "product_id": str(i * i % 5), "date": f"2017-12-{1 + i:02d}", "hours": 1.5,
          "text": RIVER[i % 4]} for i in range(20)]
DAYS = [f"2016-03-{1 + i:02d} 10:0{i % 7}:00" for i in range(20)]


@pytest.mark.parametrize("name, content, note, count", [
    ("steam.json", "".join(f"{row}\n" for row in PLAYS), "who=username, what=product_id, when=date (*)", 7),
    ("diginetica.csv", "sessionId;userId;itemId\n" + "".join(f"{i // 4};NA;{i * i % 7}\n" for i in range(20)),
     "who=sessionId, what=itemId", 5),
    ("kuairec.csv", "user_id,video_id,watch_ratio\n" + "".join(f"{i % 3},{i * i % 7},0.{i}\n" for i in range(20)),
     "who=user_id, what=video_id", 3),
    ("anime.csv", "user_id,anime_id,rating\n" + "".join(f"{i % 3},{i * i % 7},{-1 if i % 4 else 8}\n"
                                                        for i in range(20)),
     "who=user_id, what=anime_id", 3),
    ("ml.inter", "user_id:token\titem_id:token\ttimestamp:float\n" + "".join(
        f"{i % 3}\t{i * i % 7}\t{881250949 + i}\n" for i in range(20)),
     "who=user_id, what=item_id, when=timestamp (*)", 3),
    ("gowalla.txt", "".join(f"{i // 5}\t2010-10-1{i % 9}T23:55:27Z\t30.{i}\t-97.7\t{i * i % 7}\n" for i in range(20)),
     "who=1, what=5, when=2 (*)", 4),
    ("tsmc.txt", "".join(f"{i % 4}\tv{i * i % 7}\tArts & Crafts Store\tTue Apr 03 18:{i}:09 +0000 2012\n"
                         for i in range(10, 30)), "who=1, what=2, when=4 (*)", 4),
    ("jodie.csv", "user_id,item_id,timestamp,features\n" + "".join(f"{i % 3},{i * i % 7},{i}.0,0.1,0.2,0.3\n"
                                                                for i in range(20)),
     "who=user_id, what=item_id, when=timestamp (*)", 3),
    ("bpi2013.csv", "SR Number;Change Date+Time;Status;Product\n" + "".join(
        f"1-36{i % 4};{day};{'AQC'[i * i % 7 % 3]};P{i % 4}\n" for i, day in enumerate(DAYS)),
     "who=SR Number, what=Status, when=Change Date+Time (*)", 4),
    ("bpi2019.csv", "eventID ,case concept:name,event concept:name,event time:timestamp\n" + "".join(
        f"{i},c{i % 4},{'AQC'[i * i % 7 % 3]},{day}\n" for i, day in enumerate(DAYS)),
     "who=case concept:name, what=event concept:name, when=event time:timestamp (*)", 4),
    ("tickets.csv", "number,state,opened_at,updated_at\n" + "".join(
        f"n{i % 4},{'AQC'[i * i % 7 % 3]},2016-03-01 01:1{i % 4},{day}\n" for i, day in enumerate(DAYS)),
     "who=number, what=state, when=updated_at (*)", 4),
    ("log_structured.csv", "LineId,Time,Level,EventId\n" + "".join(
        f"{i},{day},{'ab'[i % 2]},E{i * i % 3}\n" for i, day in enumerate(DAYS)),
     "who=the file, what=EventId, when=Time (*)", 1),
    ("phone_structured.csv", "LineId,Date,Time,Pid,EventId\n" + "".join(
        f"{i},03-1{i // 10},0{i % 10}:15:16.5,{10 + i},E{i * i % 3}\n" for i in range(20)),
     "who=the file, what=EventId, when=Date Time (*)", 1),
    ("hdfs_structured.csv", "LineId,Date,Time,Pid,EventId\n" + "".join(
        f"{i},081109,2035{18 + i},{i * 2 // 3},E{i * i % 3}\n" for i in range(20)),
     "who=the file, what=EventId, when=Date Time (*)", 1),
    ("linux_structured.csv", "LineId,Month,Date,Time,Component,EventId\n" + "".join(
        f"{i},{'Jun' if i < 9 else 'Jul'},{14 + i % 9},0{i % 9}:15:16,{'ab'[i * i % 3 % 2]},E{i * i % 3}\n"
        for i in range(20)), "who=the file, what=EventId, when=Month Date Time (*)", 1),
    ("linux2_structured.csv", "LineId,Month,Date,Time,Component,Content,EventId\n" + "".join(
        f"{i},Jun,{10 + i // 9},{i % 9:02d}:16:01,sshd,check pass; the user is not known here,E{i * i % 5}\n"
        for i in range(20)), "who=the file, what=EventId, when=Month Date Time (*)", 1),
    ("ssh_structured.csv", "LineId,Date,Day,Time,Component,EventId\n" + "".join(
        f"{i},Dec,{10 + i // 9},{i % 9:02d}:16:01,sshd,E{i * i % 5}\n"
        for i in range(20)), "who=the file, what=EventId, when=Date Day Time (*)", 1),
    ("traces.csv", "BlockId,Label,Features,TimeInterval\n" + "".join(
        f'blk_{i},Fail,"[E5,E2,E{i % 3}]","[0.0, 1.5, 0.5]"\n' for i in range(20)), "what=Features", 20),
    ("mind.tsv", "".join(f"{i}\tU{i % 4}\t11/13/2019 8:36:5{i % 10} AM\t"
                         f"{' '.join(f'N{k * k % 7}' for k in range(i % 5))}\tN{i}-1 N2-0{' N3-0' * (i % 3)}\n"
                         for i in range(2, 40)), "who=2, what=4", 31),
    ("seq.csv", "user_id,item_seq\n" + "".join(f"{i},{' '.join(f'{k * i % 7}' for k in range(i % 4 + 2))}\n"
                                               for i in range(20)), "who=user_id, what=item_seq", 20),
    ("ner.csv", "Sentence #,Word,Tag\n" + "".join(f"{'' if i % 4 else f'Sentence: {i // 4}'},w{i * i % 7},O\n"
                                                  for i in range(20)), "who=Sentence #, what=Word", 5),
    ("assist.csv", "order_id,user_id,problem_id,correct\n" + "".join(f"{i},{i // 5},{i * i % 7},{i % 2}\n"
                                                                     for i in range(20)),
     "who=user_id, what=problem_id", 4),
    ("mpd.json", json.dumps({"info": {"slice": "0-9"}, "playlists": [
        {"name": "x", "modified_at": 1493424000, "tracks": [{"pos": k, "track": f"t{k * i % 3}"} for k in range(4)]}
        for i in range(9)]}), "what=tracks.track", 9),
    ("hawkes.json", json.dumps([[{"time_since_start": k / 2, "type_event": k * i % 3} for k in range(4)]
                                for i in range(9)]), "what=items.type_event, when=items.time_since_start", 9),
])
def test_user_and_item_columns_of_public_files_are_found(tmp_path: Path, name: str, content: str, note: str,
                                                         count: int) -> None:
    data = read(put(tmp_path / name, content))
    result, span, rest = data.problems.note.partition(" (")
    assert (data.kind.name, len(data), bool(data.problems)) == ("events", count, name == "mind.tsv")
    assert result.partition("; not read")[0] + (" (*)" if span and "when" in result else "") == note


PARSE = "(ROOT (S (NP The river) (VP is high today) .))"
PAIRS = [(f"{i} times. {text}", f"Not {i}: {text.lower()}", ["entailment", "neutral", "-"][i % 3])
         for i, text in enumerate(RIVER * 5)]


@pytest.mark.parametrize("name, content, count, expected, label", [
    ("snli.jsonl", "".join(json.dumps({"gold_label": c, "sentence1": a, "sentence1_parse": PARSE, "sentence2": b,
                                       "sentence2_parse": PARSE}) + "\n" for a, b, c in PAIRS), 14,
     "{0}\n{1}", "entailment"),
    ("snli.txt", "gold_label\tsentence1_parse\tsentence1\tsentence2\tlabel1\n" + "".join(
        f"{c}\t{PARSE}\t{a}\t{b}\t{c}\n" for a, b, c in PAIRS), 14, "{0}\n{1}", "entailment"),
    ("mrpc.txt", "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n" + "".join(
        f"{i % 2}\t{i}\t{i + 9}\t{a}\t{b}\n" for i, (a, b, _) in enumerate(PAIRS)), 20, "{0}\n{1}", "0"),
    ("qqp.tsv", "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n" + "".join(
        f"{i}\t{i}\t{i + 9}\t{a}\t{b}\t{i % 2}\n" for i, (a, b, _) in enumerate(PAIRS)), 20, "{0}\n{1}", "0"),
    ("qnli.tsv", "index\tquestion\tsentence\tlabel\n" + "".join(
        f"{i}\t{a}\t{b}\t{i % 2}\n" for i, (a, b, _) in enumerate(PAIRS)), 20, "{0}\n{1}", "0"),
    ("roc.csv", "storyid,storytitle,sentence1,sentence2,sentence3\n" + "".join(
        f"s{i},A title,{a},{b},{a}\n" for i, (a, b, _) in enumerate(PAIRS)), 20, "{0}\n{1}\n{0}", ""),
    ("haiku.csv", "0,1,source\n" + "".join(f"{a},{b},web\n" for a, b, _ in PAIRS), 20, "{0}\n{1}", ""),
    ("race.txt", json.dumps({"article": PAIRS[0][0], "id": "x", "questions": ["Why?"], "answers": ["A"]}), 1,
     "{0}\nWhy?\nA", ""),
    ("tacred.json", json.dumps([{"id": str(i), "relation": "ab"[i % 2], "token": a.split()}
                                for i, (a, *_) in enumerate(PAIRS)]), 20, "{0}", "a"),
    ("tweets.csv", "".join(f'"{i % 2}","{i}","Mon Apr 06 22:19:{i + 10} PDT 2009","u{i}","{b} {i}"\n'
                           for i, (a, b, _) in enumerate(PAIRS)), 20, "{1} 0", "0"),
    ("names.csv", "name\n" + "Ann Lee\nBo Ray\nCy Fox\n", 3, "Ann Lee", ""),
    ("nameless.csv", "Ann Lee\nBo Ray\nCy Fox\n", 3, "Ann Lee", ""),
])
def test_benchmark_texts_and_classes_are_read(tmp_path: Path, name: str, content: str, count: int, expected: str,
                                              label: str) -> None:
    data = read(put(tmp_path / name, content), classes="")
    assert (data.kind.name, len(data)) == ("text", count) and read(tmp_path / name).kind.name == "text"
    assert texts(data)[0] == expected.format(*PAIRS[0]) and class_in(data.name(0))[1] == label


def test_long_rows_are_recognised_quickly() -> None:
    """A search for blank lines took minutes where rows are long."""
    head = b"\n".join(b" 1.5000000e+00" * 90 for _ in range(50))
    assert not KINDS["events"].sniff(Path("TRAIN.txt"), head)


ASKED_FOR = [f"What is number {i} of the river called" for i in range(8)]
LABELLED = "".join(f"{['DESC:manner', 'HUM:ind', 'LOC:other'][i % 3]} {ASKED_FOR[i % 8]} ?\n" for i in range(30))
SENTENCES = "".join("".join(f"{k}\t{word}\t{word.lower()}\tNOUN\n" for k, word in enumerate(text.split(), 1)) + "\n"
                    for text in RIVER * 2)
TOLD = [{"text": "add "}, {"text": "a tune", "entity": "name"}, {"text": " to my list"}]
TREE = {"text": "Who was it?", "role": "prompter", "lang": "en", "replies": [
    {"text": "Nobody.", "role": "assistant", "replies": [{"text": "So?", "role": "prompter", "replies": []}]},
    {"text": "I.", "role": "assistant", "replies": []}]}


@pytest.mark.parametrize("name, content, count, expected, label", [
    ("trec.label", LABELLED, 30, f"{ASKED_FOR[0]} ?", "DESC:manner"),
    ("rt.all", "".join(f"{i * i % 3 % 2} {text}\n" for i, text in enumerate(ASKED_FOR * 4)), 32, ASKED_FOR[0], "0"),
    ("subj.all", "".join(f"{i // 900} {text}\n" for i, text in enumerate(ASKED_FOR * 225)), 1800, ASKED_FOR[0], "0"),
    ("cr.all", "".join(f"{1 - i // 900} {text}\n" for i, text in enumerate(ASKED_FOR * 225)), 1800, ASKED_FOR[0], "1"),
    ("phrases.txt", "".join(f"{text} .@{'ab'[i * i % 3 % 2]}\n" for i, text in enumerate(ASKED_FOR * 4)), 32,
     f"{ASKED_FOR[0]} .", "a"),
    ("sms.txt", "".join(f"{'hs'[i * i % 3 % 2]}am\t{text} {i}\n" for i, text in enumerate(ASKED_FOR * 4)), 32,
     f"{ASKED_FOR[0]} 0", "ham"),
    ("ud.conllu", f"# newdoc\n# text = {RIVER[0]}\n" + SENTENCES, 8, RIVER[0], ""),
    ("germeval.tsv", "# source\n" + SENTENCES, 8, RIVER[0], ""),
    ("eng.testa", "-DOCSTART- -X-\n\n" + SENTENCES.replace("\t", " "), 8, RIVER[0], ""),
    ("babi.txt", ("1 Ann went out.\n2 Bo came in.\n3 Where is Ann? \tout\t1\n" * 9), 9,
     "1 Ann went out.\n2 Bo came in.\n3 Where is Ann? \tout\t1", ""),
    ("tiny.txt", "<|endoftext|>\n".join(f"{text}\nAnd so on.\n" for text in RIVER), 4, f"{RIVER[0]}\nAnd so on.", ""),
    ("daily.txt", "".join(f"{text} __eou__ {text} __eou__\n" for text in RIVER * 5), 20,
     f"{RIVER[0]} __eou__ {RIVER[0]} __eou__", ""),
    ("meld.csv", "Utterance,Speaker,Emotion,Dialogue_ID\n" + "".join(
        f"{text},{'AB'[i % 2]},joy,{i // 4}\n" for i, text in enumerate(RIVER * 3)), 3,
     f"A: {RIVER[0]}\nB: {RIVER[1]}\nA: {RIVER[2]}\nB: {RIVER[3]}", ""),
    ("piqa.jsonl", "".join(json.dumps({"goal": text, "sol1": "wade", "sol2": "swim"}) + "\n" for text in RIVER), 4,
     f"{RIVER[0]}\nwade\nswim", ""),
    ("swag.jsonl", "".join(json.dumps({"ind": i, "ctx_b": "he", "ctx": text, "label": 1, "split": "val",
                                       "endings": ["swims.", "runs."]}) + "\n" for i, text in enumerate(RIVER)), 4,
     f"{RIVER[0]}\nswims.\nruns.\n1", ""),
    ("oasst.jsonl", json.dumps({"id": "x", "prompt": TREE}) + "\n", 1,
     "prompter: Who was it?\nassistant: Nobody.\nprompter: So?", ""),
    ("bench.jsonl", json.dumps({"id": 1, "kind": "a", "turns": ["Who was it then?", "And why so?"]}) + "\n", 1,
     "Who was it then?\nAnd why so?", ""),
    ("bbh.json", json.dumps({"canary": "no", "examples": [{"input": text, "target": "Yes"} for text in RIVER]}), 4,
     f"{RIVER[0]}\nYes", ""),
    ("trivia.json", json.dumps({"Data": [{"Question": text, "Answer": {"Value": "Rain", "Aliases": ["a"]}}
                                         for text in RIVER], "Version": 1}), 4, f"{RIVER[0]}\nRain", ""),
    ("pairs.csv", "said,answered\n" + "".join(f"{text} Yes.,{text} No.\n" for text in RIVER), 4,
     f"{RIVER[0]} Yes.\n{RIVER[0]} No.", ""),
    ("arxiv.jsonl", json.dumps({"id": 1, "article_text": RIVER, "labels": None}), 1, "\n".join(RIVER), ""),
    ("shp.jsonl", json.dumps({"history": "Who was it then?", "n": 1, "human_ref_A": "I was.", "human_ref_B": "No."}), 1,
     "Who was it then?\nI was.", ""),
    ("snips.json", json.dumps({"AddTo": [{"data": TOLD}] * 3}, indent=1), 3, "add a tune to my list", ""),
    ("one.json", json.dumps({"problem": "How many are there?", "level": "5", "solution": "Two."}, indent=1), 1,
     "How many are there?\nTwo.", ""),
    ("coqa.json", json.dumps({"version": "1.0", "data": [
        {"story": f"{text} {i}, so, " * 40, "questions": [{"input_text": "Why so?"}], "answers": [{"input_text": "So"}]}
        for i, text in enumerate(RIVER * 20)]}), 80, f"{RIVER[0]} 0, so, " * 40 + "\nWhy so?\nSo", ""),
])
def test_files_of_many_texts_are_split(tmp_path: Path, name: str, content: str, count: int, expected: str,
                                       label: str) -> None:
    data = read(put(tmp_path / name, content))
    assert (data.kind.name, len(data), texts(data)[0], class_in(data.name(0))[1]) == ("text", count, expected, "")
    if label:
        assert class_in(read(tmp_path / name, classes="").name(0))[1] == label
    if name == "piqa.jsonl":
        put(tmp_path / "piqa-labels.lst", "0\n1\n1\n0\n")
        assert [class_in(read(tmp_path, classes="").name(i))[1] for i in range(4)] == ["0", "1", "1", "0"]
    if name == "ud.conllu":
        assert texts(read(tmp_path / name, field=["4"]))[1] == " ".join(["NOUN"] * len(RIVER[1].split()))


RESIDUES = "MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQ"
BASES = "GGGAAACUUCGGUUUCCC"


@pytest.mark.parametrize("name, content, kind, expected, label", [
    ("signalp.fasta", "".join(f">P{i}|EUK|{'AB'[i % 2]}|{i}\n{RESIDUES}\n{'S' * 9}{'O' * 24}\n" for i in range(9)),
     "protein", RESIDUES, "A"),
    ("masks.fasta", "".join(f">P{i}\n{RESIDUES}\n{'0' * 30}111\n" for i in range(9)), "protein", RESIDUES, ""),
    ("fold.dbn", "".join(f">r{i}\n{BASES}\n((((((......)))))) (-4.20)\n" for i in range(4)), "dna", BASES, ""),
    ("one.dbn", f"#Name: one\n{BASES * 2}\n{'((((((......))))))' * 2}\nSSSSSSHHHHHH\n", "dna", BASES * 2, ""),
    ("one.ct", "  4  ENERGY = -1  one\n" + "".join(f" {i} {base} {i - 1} {(i + 1) % 5} 0 {i}\n" for i, base in
                                                 enumerate("GAAC", 1)), "dna", "GAAC", ""),
    ("one.bpseq", "".join(f"{i} {base} 0\n" for i, base in enumerate(BASES, 1)), "dna", BASES, ""),
    ("flip.fa", "".join(f">S{i} TARGET={'AB'[i % 2]} SET=train\n{RESIDUES}\n" for i in range(9)), "protein", RESIDUES,
     "A"),
    ("deep.fa", "".join(f">S{i} {'AB'[i % 2]}.x-M{' test' * (i % 2)}\n{RESIDUES}\n" for i in range(9)), "protein",
     RESIDUES, "A.x-M"),
    ("swiss.fa", "".join(f">sp|S{i}|X_HUMAN PE={i % 2}\n{RESIDUES}\n" for i in range(9)), "protein", RESIDUES, ""),
    ("sites.tsv", "enzyme\tsite\tn\nEcoRI\tG^AATTC\tBN\nFokI\tGGATG(9/13)\tN\nAvaII\tG^GWCC\t\n", "dna", "GAATTC", ""),
    ("amp.csv", "".join(f"{RESIDUES[i : i + 11]},{i % 2}\n" for i in range(22)), "protein", RESIDUES[:11], "0"),
    ("amp.txt", "".join(f"{RESIDUES[i : i + 7 + i % 4]}\n" for i in range(22)), "protein", RESIDUES[:7], ""),
])
def test_letters_with_annotations_and_classes_are_read(tmp_path: Path, name: str, content: str, kind: str,
                                                       expected: str, label: str) -> None:
    data = read(put(tmp_path / name, content), classes="")
    assert (data.kind.name, data[0].object, class_in(data.name(0))[1]) == (kind, expected, label)
    note_by_file = {"signalp.fasta": "part 3 of the headers, cut at bars",
                    "deep.fa": "part 2 of the headers, cut at blanks",
                    "flip.fa": "what is behind 'target=' in the headers"}
    assert name not in note_by_file or data.problems.note.startswith(f"class={note_by_file[name]}")
    assert read(tmp_path / name)[0].object == expected and not data.problems
    if name == "signalp.fasta":
        order = "".join(f">P{i}|{'AB'[i // 3000]}|{'XY'[i % 2]}|{i % 3}\n{RESIDUES}\n" for i in range(6000))
        sorted_ = put(tmp_path / "sorted.fasta", order)
        assert class_in(read(sorted_, classes="").name(5999))[1] == "B"
        assert class_in(read(sorted_, classes="3").name(5999))[1] == "Y"
        cut = read(put(tmp_path / name, content[:-5]))
        assert len(cut) == 8 and "cut short" in str(cut.problems[0])
    if name in ("fold.dbn", "one.ct"):
        check_kind(KINDS["dna"], [tmp_path / name], mutations=6)


def test_lines_with_classes_in_another_file(tmp_path: Path) -> None:
    put(tmp_path / "train_text.txt", "".join(f"{text} {i}\n" for i, text in enumerate(RIVER * 3)))
    put(tmp_path / "train_labels.txt", "0\n2\n" * 6)
    data = read(tmp_path, classes="")
    assert len(data) == 12 and class_in(data.name(1))[1] == "2" and len(read(tmp_path / "train_text.txt")) == 12
    put(tmp_path / "train_labels.txt", "0\n2\n")
    assert len(read(tmp_path / "train_text.txt")) == 1, "not as many"
    put(tmp_path / "a/seq.in", "".join(f"{text}\n" for text in RIVER * 4))
    put(tmp_path / "a/label", "to_go\nto_come\n" * 8)
    assert class_in(read(tmp_path / "a", classes="").name(3))[1] == "to_come"


def test_a_number_for_each_line_is_no_class(tmp_path: Path) -> None:
    put(tmp_path / "text.txt", "".join(f"{text} {i}\n" for i, text in enumerate(RIVER * 3)))
    put(tmp_path / "labels.txt", "".join(f"{i}\n" for i in range(12)))
    assert read(tmp_path / "text.txt").problems.note != "classes from the file beside it"


def test_object_centric_logs_and_lists_of_neighbours(tmp_path: Path) -> None:
    first = {"ocel:global-log": {}, "ocel:events": {f"e{i}": {
        "ocel:activity": "abc"[i % 3], "ocel:timestamp": f"2021-01-01T0{i}:00:00", "ocel:omap": [f"o{i // 3}", "p"]}
        for i in range(9)}, "ocel:objects": {f"o{i}": {"ocel:type": "order"} for i in range(3)}}
    second = {"objectTypes": [], "eventTypes": [], "objects": [{"id": "o0", "type": "order"}], "events": [
        {"id": f"e{i}", "type": "abc"[i % 3], "time": f"2021-01-01T0{i}:00:00Z",
         "relationships": [{"objectId": f"o{i // 3}", "qualifier": "x"}]} for i in range(9)]}
    for name, log, count in (("a.jsonocel", first, 4), ("b.json", second, 3)):
        data = read(put(tmp_path / name, json.dumps(log)))
        assert (data.kind.name, len(data), data[0].object) == ("events", count, ["a", "b", "c"])
        assert data.problems.note.startswith("who=case, what=activity, when=time")
    ring = {str(i): [(i + 1) % 9, (i - 1) % 9] for i in range(9)}
    both = read(put(tmp_path / "ring.json", json.dumps(ring)))
    directed = read(put(tmp_path / "way.json", json.dumps({node: [str(ends[0])] for node, ends in ring.items()})))
    assert (both.kind.name, len(both)) == (directed.kind.name, len(directed)) == ("graph", 1)
    assert sum(sign[0] == "<" for sign in both[0].object) == 0 < len(directed[0].object)
    groups = json.dumps({"x": ["a", "b"], "y": ["c"], "z": ["a"]})
    assert read(put(tmp_path / "groups.json", groups)).kind.name != "graph"


def test_arrays_whose_rows_are_moments(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    roads = np.sin(np.arange(200) / 9)[:, None] * 40 + draw.normal(0, 5, (200, 30)) + draw.normal(0, 40, 30)
    np.save(tmp_path / "speeds.npy", roads)
    np.savez(tmp_path / "roads.npz", data=np.stack([roads, roads + 9], 2))
    flat, deep = read(tmp_path / "speeds.npy"), read(tmp_path / "roads.npz")
    assert (len(flat), len(flat[0])) == (1, 6000) and (len(deep), len(deep[0])) == (30, 400)
    assert "a moment a place of the first" in deep.problems.note


def test_whole_rows_in_files_of_training(tmp_path: Path) -> None:
    lines = "".join(f"{i % 3}.0000 " + " ".join(f"{np.sin(k / 5 + i * i):.4f}" for k in range(64)) + " \n"
                    for i in range(30))
    data = read(put(tmp_path / "zip.train", lines))
    assert (data.kind.name, len(data), class_in(data.name(1))[1]) == ("series", 30, "1")
