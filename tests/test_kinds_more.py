"""More files of other makers: chats, pairs, books, speech, games a line, and the ways back into their own formats."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from test_kinds_read import put

import segue
from segue.data import Data, read
from segue.decoding.continuation import prime_record
from segue.errors import SegueError
from segue.kinds import KINDS
from segue.kinds.base import Record
from segue.testing.kinds import check_kind

RIVER = ["The river is high today.", "Nobody can cross it now.", "We wait for the ferry.", "It comes at noon."]
NODES = {"a": {"message": None, "parent": None, "children": ["b"]},
         "b": {"message": {"author": {"role": "user"}, "content": {"parts": [RIVER[0]]}}, "parent": "a",
               "children": ["x", "c"]},
         "c": {"message": {"author": {"role": "assistant"}, "content": {"parts": [RIVER[1]]}}, "parent": "b",
               "children": []},
         "x": {"message": {"author": {"role": "assistant"}, "content": {"parts": ["no"]}}, "parent": "b",
               "children": []}}
PAIRS = "".join(f"{a} {i}?\t{b} {i}.\n" for i in range(9) for a, b in zip(RIVER, RIVER[1:]))
KERN = "**kern\n*M4/4\n=1\n4c\n4d\n4e\n4f\n=2\n4g\n4a\n*-\n"
GAMES = ["e4 e5 Nf3 Nc6 Bb5", "d4 d5 c4 dxc4 e3 b5", "c4 e5 Nc3 O-O g3"]


def texts(data: Data) -> list[str]:
    return [record.object.decode() for record in data]


@pytest.mark.parametrize("name, content, count, expected, note", [
    ("84-121.trans.txt", "".join(f"84-121-{i:04} {RIVER[i % 4].upper()}\n" for i in range(24)), 24, RIVER[0].upper(),
     "a line a text; not read: the name in front of it"),
    ("metadata.csv", "".join(f"LJ001-{i:04}|{RIVER[i % 4]} {i}|{RIVER[i % 4]} {i}\n" for i in range(24)), 24,
     f"{RIVER[0]} 0", "field=3; not read: 1, 2"),
    ("dialogs.txt", PAIRS, 27, f"{RIVER[0]} 0?\n{RIVER[1]} 0.", "field=1, field=2"),
    ("deu.txt", "".join(f"Go {i}.\tGeh {i}.\tCC-BY 2.0 (France) Attribution: tatoeba.org #{i} (CM)\n"
                        for i in range(20)), 20, "Go 0.\nGeh 0.", "field=1, field=2; not read: 3"),
    ("intents.json", json.dumps({"intents": [{"tag": tag, "patterns": ["Hi there", f"Is {tag} here?"], "responses":
                                              ["Hello, and thanks"], "context": [""]} for tag in "abc"]}), 3,
     "Hi there\nIs a here?\nHello, and thanks", "field=patterns, field=responses; not read: tag, context"),
    ("webnlg.json", json.dumps({"entries": [{str(i): {"category": "x", "lexicalisations": [{"lang": "", "lex": text}]}}
                                            for i, text in enumerate(RIVER)]}), 4, RIVER[0],
     "field=lexicalisations.lex; not read: category, lexicalisations.lang"),
    ("conversations.json", json.dumps([{"title": "x", "mapping": NODES}] * 2), 2,
     f"user: {RIVER[0]}\nassistant: {RIVER[1]}", "said by=messages.role, field=messages.content; not read: title"),
    ("mt.tsv", "id\tsource\ttarget\n" + "".join(f"{i}\t{RIVER[i % 4]}\t{RIVER[3 - i % 4]} {i}\n"
                                                for i in range(20)), 20,
     f"{RIVER[0]}\n{RIVER[3]} 0", "field=source, field=target; not read: id"),
    ("discord.csv", "AuthorID,Author,Date,Content\n" + "".join(
        f"{7 + i % 3},ann{i % 3},2024-01-01T10:{i:02}:00,{RIVER[i % 4]} {i}\n" for i in range(24)), 1,
     "\n".join(f"ann{i % 3}: {RIVER[i % 4]} {i}" for i in range(24)),
     "dialogue=all, said by=Author, field=Content; not read: AuthorID, Date"),
])
def test_texts_in_published_formats_are_read(tmp_path: Path, name: str, content: str, count: int, expected: str,
                                             note: str) -> None:
    data = read(put(tmp_path / name, content))
    assert (data.kind.name, len(data), texts(data)[0], data.problems.note) == ("text", count, expected, note)
    check_kind(KINDS["text"], [tmp_path / name], mutations=2)


def test_days_and_sentences_are_not_taken_as_names(tmp_path: Path) -> None:
    for line in ("2024-01-{0:02} We waited for the ferry.", "In-2024 we waited {0}.", "mp3 files {0} are not read."):
        data = read(put(tmp_path / "a.txt", "".join(line.format(i) + "\n" for i in range(1, 30))))
        assert len(data) == 1


def test_film_dialogues_are_read(tmp_path: Path) -> None:
    lines = "".join(f"L{9 - i} +++$+++ u{i} +++$+++ m0 +++$+++ ANN{i} +++$+++ {text}\n" for i, text in enumerate(RIVER))
    path = put(tmp_path / "movie_lines.txt", lines.replace("noon", "café").encode("latin-1"))
    assert texts(read(path))[3] == "ANN3: It comes at café."
    put(tmp_path / "movie_conversations.txt", "u0 +++$+++ u1 +++$+++ m0 +++$+++ ['L8', 'L9']\n" * 2)
    put(tmp_path / "movie_titles_metadata.txt", "m0 +++$+++ the river +++$+++ 1999\n")
    data = read(tmp_path)
    assert texts(data) == [f"ANN1: {RIVER[1]}\nANN0: {RIVER[0]}"] * 2 and not data.problems


def test_a_book_is_read_chapter_by_chapter(tmp_path: Path) -> None:
    page = '<?xml version="1.0"?><html><head><title/><style>p {{}}</style></head><body><h1>{0}</h1><p>{0}\n' \
        "&amp; on.<br/>So.</p></body></html>"
    spine = '<package xmlns="http://www.idpf.org/2007/opf"><manifest><item id="b" href="b%201.xhtml"/>' \
        '<item id="a" href="a.xhtml"/></manifest><spine><itemref idref="b"/><itemref idref="a"/></spine></package>'
    with zipfile.ZipFile(box := io.BytesIO(), "w") as archive:
        for name, content in {"mimetype": "application/epub+zip", "O/a.xhtml": page.format("One"), "O/x.css": "p {}",
                              "O/b 1.xhtml": page.format("Two"), "O/nav.xhtml": page.format("No"),
                              "O/c.opf": spine}.items():
            archive.writestr(name, content)
    data = read(put(tmp_path / "a.epub", box.getvalue()))
    assert texts(data) == ["Two\n\nTwo & on.\nSo.\n", "One\n\nOne & on.\nSo.\n"] and not data.problems
    with zipfile.ZipFile(box, "a") as archive:
        archive.writestr("META-INF/rights.xml", "")
    with pytest.raises(SegueError, match="without protection"):
        read(put(tmp_path / "b.epub", box.getvalue()))


@pytest.mark.parametrize("name, line", [("san.txt", "{}"), ("numbered.txt", "1. {} 1-0"),
                                        ("uci.txt", "e2e4 e7e5 g1f3 {0[3]}7a8q")])
def test_games_round_trip_through_pgn(tmp_path: Path, name: str, line: str) -> None:
    data = read(put(tmp_path / name, "".join(line.format(game) + "\n" for game in GAMES * 8)))
    moves = [record.object for record in data]
    assert data.kind.name == "events" and len(moves) == 24
    assert not any({"1.", "1-0"}.intersection(game) for game in moves)
    KINDS["events"].write([Record(moves[0], name='a "b"'), moves[1] * 20], tmp_path / "a.pgn")
    assert [record.object for record in read(tmp_path / "a.pgn")] == [moves[0], moves[1] * 20]
    first, second = moves[0][:2]
    assert KINDS["events"].normalise(f"1. {first} {second}!", data.vocabulary) == [first, second]


def test_primes_of_another_kind_are_refused_by_name(tmp_path: Path) -> None:
    river, tune = put(tmp_path / "a.srt", "\n".join(RIVER) * 9), KINDS["music"]
    for path, message in ((river, "it looks like text, not music"),
                          (put(tmp_path / "b.mid", " \n"), "the file is empty"),
                          (tmp_path, "is a folder; give one of the files in it")):
        with pytest.raises(SegueError, match=message):
            prime_record(tune, path, tune.codec(read(put(tmp_path / "a.krn", KERN))))


def test_an_answer_without_a_prime_is_not_empty() -> None:
    fitted = segue.fit(["a", "b"] * 20, steps=1, width=16, depth=1, mixer="gru", mix=False, quiet=True)
    rest = [id for id in range(fitted.codec.size) if id not in (1, 2)]
    answers = [[fitted.continue_(None, 3, "greedy", draft="none", eos=eos, suppress_tokens=rest, **options).tokens
                for eos in (1, 2)] for options in ({}, {"min_new_tokens": 0})]
    assert all(answers[0]) and not all(answers[1])
    ending = {"eos": 2 if answers[1][0] else 1, "suppress_tokens": rest}  # the model's first choice is to end
    assert fitted.continue_(["a", None], 3, "greedy", draft="none", **ending)[1].tokens, "beside other primes, too"
    assert all(answer.tokens for answer in fitted.continue_(None, 3, samples=20, **ending).answers)


def test_kmer_words_and_episodes_are_read(tmp_path: Path) -> None:
    sequences = ["ACGTTGCAACGGATTC"[i:] + "ACGTTGCAACGGATTC"[:i] for i in range(9)]
    lines = "".join(" ".join(sequence[i : i + 6] for i in range(len(sequence) - 5)) + "\n" for sequence in sequences)
    data = read(put(tmp_path / "6_3k.txt", lines))
    assert data.kind.name == "dna" and [record.object for record in data] == sequences
    rows = "".join(f"{i // 5},{i % 5},{i * i % 7},{i * i % 3},0.0\n" for i in range(40))
    data = read(put(tmp_path / "a.csv", "episode,step,state,action,reward\n" + rows))
    assert len(data) == 8 and data.problems.note.startswith("who=episode, what=action")


@pytest.mark.parametrize("kind, obj, accepted, refused", [
    ("events", ["a", "b"], [".csv", ".tsv", ".jsonl", ".txt"], [".parquet", ".json", ".mid"]),
    ("molecule", "CCO", [".smi", ".csv", ".txt"], [".sdf", ".png"]),
    ("music", ["loud19", "note60", "length24"], [".mid", ".kar"], [".musicxml", ".wav", ".json"]),
    ("sound", [128, 130, 9], [".wav", ".flac"], [".mp3", ".txt"]),
    ("dna", "ACGTACGTACGT", [".fa", ".fna", ".txt"], [".fastq", ".gb", ".fa.gz"]),
    ("text", b"The river.\n", [".txt", ".md", ".json", ""], [".pdf", ".txt.gz", ".parquet"])])
def test_answers_are_written_only_to_matching_endings(tmp_path: Path, kind: str, obj: Any, accepted: list[str],
                                                      refused: list[str]) -> None:
    for needed in ("mido", "soundfile", "rdkit"):
        pytest.importorskip(needed)
    for ending in accepted:
        path = tmp_path / f"a{ending}"
        KINDS[kind].check_name(path)
        KINDS[kind].write([Record(obj, name="x") if KINDS[kind].several else obj], path)
        back = read(path, kind=kind)
        assert back.kind.name == kind and list(back[0].object)[: len(obj)] == list(obj)
    assert kind != "sound" or (tmp_path / "a.flac").read_bytes()[:4] == b"fLaC"
    for ending in refused:
        with pytest.raises(SegueError, match=rf"is not written as .*name a file that ends in \{accepted[0]}"):
            KINDS[kind].check_name(tmp_path / f"a{ending}")


def test_words_are_no_molecules_and_side_files_are_skipped(tmp_path: Path) -> None:
    pytest.importorskip("rdkit")
    with pytest.raises(SegueError, match=r"most of .*; it looks like text, not molecule"):
        read(put(tmp_path / "a.srt", "1\nC\n" + "\n".join(RIVER) * 3), kind="molecule")
    put(tmp_path / "hf" / "dataset_info.json", json.dumps({"builder_name": "x", "text": "about"}))
    put(tmp_path / "hf" / "data.jsonl", "".join(json.dumps({"text": text}) + "\n" for text in RIVER))
    assert texts(read(tmp_path / "hf")) == RIVER


def test_a_column_of_names_called_site_holds_no_letters(tmp_path: Path) -> None:
    (tmp_path / "sites.json").write_text(json.dumps(
        [{"yield": 20 + i % 7 + i / 9, "site": ("Grand Rapids", "Waseca", "Morris")[i % 3]} for i in range(60)]))
    assert segue.read(tmp_path / "sites.json").kind.name != "protein"
    (tmp_path / "enzymes.csv").write_text("enzyme,site\nEcoRI,G^AATTC\nBamHI,G^GATCC\nHindIII,A^AGCTT\n")
    assert segue.read(tmp_path / "enzymes.csv").kind.name == "dna"
