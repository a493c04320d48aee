"""Files as they occur in the wild: archives, flat files of databases, dialogues, logs of other tools."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from test_kinds_read import EVENTS, put

from segue.data import Data, read
from segue.errors import SegueError
from segue.kinds import packed
from segue.kinds.packed import FOREIGN


def texts(data: Data) -> list[str]:
    return [record.object.decode() for record in data]


def zipped(files: dict[str, str | bytes]) -> bytes:
    with zipfile.ZipFile(box := io.BytesIO(), "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return box.getvalue()


def taped(files: dict[str, str | bytes], how: str) -> bytes:
    with tarfile.open(fileobj=(box := io.BytesIO()), mode=how) as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content.encode() if isinstance(content, str) else content)
            archive.addfile(entry, io.BytesIO(content.encode() if isinstance(content, str) else content))
        link = tarfile.TarInfo("link.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    return box.getvalue()


CORPUS: dict[str, str | bytes] = {"corpus/a.txt": "one text\n", "corpus/b/c.txt": "another text\n",
                                  "corpus/README.md": "about\n", "corpus/.hidden.txt": "no\n"}


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
    for name, content, says in (("n.zip", zipped({}), "no file to read"), ("n.docx", zipped({"[Content_Types].xml": ""}),
                                "Office"), ("cut.tgz", taped(CORPUS, "w:gz")[:-60], "cut.tgz"),
                                ("in.zip", zipped({"in.zip": zipped(CORPUS)}), "a zip archive; unpack it"),
                                ("plain.tar", b"no archive", "damaged")):
        with pytest.raises(SegueError, match=says):
            read(put(tmp_path / name, content))


@pytest.mark.parametrize("magic", FOREIGN)
def test_what_is_of_no_kind_is_named(tmp_path: Path, magic: bytes) -> None:
    with pytest.raises(SegueError, match=FOREIGN[magic].split(":")[0].replace("(", ".").replace(")", ".")):
        read(put(tmp_path / "a.bin", magic + bytes(300)))
