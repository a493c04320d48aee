"""What programs export or log: chats, mails, subtitles, translation memories, books of Project Gutenberg."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_kinds_read import put
from test_kinds_wild import texts

from segue.data import read
from segue.errors import SegueError
from segue.kinds import KINDS
from segue.testing.kinds import check_kind

SAID = [("Ann", "shall we go?"), ("Ben Orr", "yes"), ("Ann", "when: at one or two?"), ("Ben Orr", "at one"),
        ("Ann", "fine"), ("Ben Orr", "bring bread")]
CHAT = "\n".join(f"{name}: {text}" for name, text in SAID)
LAYOUTS = {
    "android": "12/31/20, 9:15\u202fPM - {0}: {1}\n", "ios": "\u200e[31.12.20, 21:15:03] {0}: {1}\r\n",
    "iso": "[2020-12-31, 21:15] {0}: {1}\n", "irc": "[21:15] <{2}> {1}\n", "irssi": "21:15 <@{2}> {1}\n",
    "weechat": "2020-12-31 21:15:03\t@{2}\t{1}\n", "discord": "[31-Dec-20 09:15 PM] {0}\n{1}\n\n",
    "telegram": "{0}, [31.12.2020 21:15]\n{1}\n\n"}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_chat_is_read_without_its_times_and_notices(tmp_path: Path, layout: str) -> None:
    line = LAYOUTS[layout]
    lines = [line.format(name, text, name.replace(" ", "_")) for name, text in SAID]
    if layout in ("android", "ios"):
        stamp = line.split("{")[0].removesuffix(" - ").strip()
        notice = f"{stamp} - Ann added Ben\n" if layout == "android" else f"{stamp} Ann: \u200eimage omitted\n"
        lines[1:1] = [notice, lines[0].replace("shall we go?", "<Media omitted>")]
        lines[-1] = lines[-1].replace("bread", "bread\nand wine")
    elif layout in ("irc", "irssi"):
        lines[1:1] = ["21:15 -!- carl has joined #x\n", "=== carl is away\n"]
    elif layout == "weechat":
        lines[1:1] = ["2020-12-31 21:15:03\t-->\tcarl has joined\n"]
    data = read(put(tmp_path / "chat.txt", "".join(lines)))
    expected = CHAT + "\nand wine" if layout in ("android", "ios") else CHAT
    expected = expected.replace("Ben Orr", "Ben_Orr") if layout in ("irc", "irssi", "weechat") else expected
    assert texts(data) == [expected] and "not read: its times" in data.problems.note


def test_a_log_is_not_read_as_a_chat(tmp_path: Path) -> None:
    log = "".join(f"2020-12-31, 21:1{i % 10} - {('INFO', 'ERROR')[i % 2]}: step {i} is done\n" for i in range(30))
    assert texts(read(put(tmp_path / "run.log", log))) == [log]


def test_chats_as_json_and_tables(tmp_path: Path) -> None:
    messages = [{"sender_name": name, "timestamp_ms": 100 - i, "content": text} for i, (name, text) in
                enumerate(reversed(SAID))]
    newest = {"participants": [{"name": "Ann"}], "messages": messages, "title": "x"}
    assert texts(read(put(tmp_path / "message_1.json", json.dumps(newest)))) == [CHAT]
    notice = {"type": "service", "date": "2020-12-31T21:15:03", "actor": "Ann", "action": "phone_call", "text": ""}
    telegram = [{"type": "message", "date": "2020-12-31T21:15:03", "date_unixtime": "1", "from": name, "text": [
        {"type": "bold", "text": text[:2]}, text[2:]]} for name, text in SAID]
    chats = {"chats": {"about": "x", "list": [{"name": "a", "messages": [notice, *telegram]}]}}
    assert texts(read(put(tmp_path / "result.json", json.dumps(chats)))) == [CHAT]
    slack = [{"type": "message", "user": name, "text": text, "ts": f"16410{i}.1"} for i, (name, text) in
             enumerate(SAID * 2)]
    assert texts(read(put(tmp_path / "2020-12-31.json", json.dumps(slack)))) == [f"{CHAT}\n{CHAT}"]
    rows = "".join(f'{hash(name)},{name},31-Dec-20 09:15 PM,"{text}",\n' for name, text in SAID * 2)
    assert texts(read(put(tmp_path / "d.csv", f"AuthorID,Author,Date,Content,Attachments\n{rows}"))) == [
        f"{CHAT}\n{CHAT}"]


MAILS = """From ann at example.org  Thu Dec 31 21:15:03 2020
From: Ann <ann@example.org>
Subject: =?utf-8?q?caf=C3=A9?=
 and bread
Content-Type: text/plain; charset=utf-8
Content-Transfer-Encoding: quoted-printable

shall we go to the caf=C3=A9? =
now

>From here it is far.

From ben@example.org Thu Dec 31 21:16:03 2020
From: ben@example.org
Content-Type: multipart/alternative; boundary=b

--b
Content-Type: text/html

<style>p {}</style><p>yes, <b>at one</b></p>
--b--
"""


def test_a_mail_is_read_as_subject_and_body(tmp_path: Path) -> None:
    path = put(tmp_path / "list.mbox", MAILS)
    data = read(path)
    assert texts(data) == ["caf\xe9 and bread\n\nshall we go to the caf\xe9? now\n\nFrom here it is far.",
                           "yes, at one"]
    assert [data.name(i) for i in range(2)] == [f"{path}:1", f"{path}:13"]
    single = "Message-ID: <1@x>\r\nFrom: a@x\r\nX-Y: z\r\n\t" + "w " * 300 + "\r\nSubject: hi\r\n\r\nhello\r\n"
    assert texts(read(put(tmp_path / "a.eml", single))) == ["hi\n\nhello"]
    play = "From: afar\nenter Ben.\n" * 20
    assert texts(read(put(tmp_path / "play.txt", play))) == [play]


def test_subtitles_are_read_without_times(tmp_path: Path) -> None:
    cues = ["1\n00:00:01,000 --> 00:00:02,000\n<i>shall we</i> go?\n",
            "2\n00:00:03,000 --> 00:00:04,500\n- yes\n- 42\n",
            "3\n00:00:05,000 --> 00:00:06,000\n- 42\n- when?\n"]
    expected = ["shall we go?\n- yes\n- 42\n- when?"]
    assert texts(read(put(tmp_path / "a.srt", "\n".join(cues)))) == expected
    assert texts(read(put(tmp_path / "b.srt",
                          "".join(cues).replace("\n", "\r\n")))) == expected  # no blank lines between
    vtt = "WEBVTT\nKind: captions\n\nNOTE by Ann\n\n" + "\n".join(cues).replace(",", ".").replace("00:00:", "00:")
    assert texts(read(put(tmp_path / "a.vtt", vtt))) == expected
    lines = expected[0].split("\n")
    ass = "[Script Info]\nTitle: x\n\n[Events]\n" + "".join(
        f"Dialogue: 0,0:00:0{i}.00,0:00:09.00,Default,,0,0,0,,{{\\an8}}{line}\n" for i, line in enumerate(lines))
    assert texts(read(put(tmp_path / "a.ass", ass))) == expected
    with pytest.raises(SegueError, match="there is no text in this file"):
        read(put(tmp_path / "c.srt", "1\n00:00:01,000 --> 00:00:02,000\n\n"))


def test_translation_files_are_read(tmp_path: Path) -> None:
    units = "".join(f'<tu><tuv xml:lang="en"><seg>one &amp; {i}</seg></tuv><tuv xml:lang="de"><seg>eins {i}</seg></tuv>'
                    "</tu>" for i in range(3))
    tmx = f'<?xml version="1.0" encoding="UTF-8"?>\n<tmx version="1.4"><header/><body>{units}</body></tmx>\n'
    assert texts(read(put(tmp_path / "a.tmx", tmx))) == [f"one & {i}\neins {i}" for i in range(3)]
    with pytest.raises(SegueError, match="no TMX or XLIFF"):
        read(put(tmp_path / "b.tmx", tmx[:150]))
    english, german = ([f"{word} {i}\n" for i in range(12)] for word in ("one", "eins"))
    put(tmp_path / "side" / "train.en", "".join(english))
    put(tmp_path / "side" / "train.de", "".join([*german[:5], "\n", *german[6:]]))
    data = read(tmp_path / "side")
    assert texts(data) == [f"eins {i}\none {i}" for i in range(12) if i != 5]
    assert data.problems.note == "lines of files side by side (de, en)"
    assert len(read(tmp_path / "side", lines=True)) == 23
    put(tmp_path / "side" / "train.en", "".join(english[1:]))
    assert len(read(tmp_path / "side")) == 2


def test_the_licence_of_a_project_gutenberg_book_is_dropped(tmp_path: Path) -> None:
    framed = "The Project Gutenberg eBook of X\n\n*** START OF THE PROJECT GUTENBERG EBOOK X ***\n\nOnce upon\n" \
             "a time.\n\n*** END OF THE PROJECT GUTENBERG EBOOK X ***\n\nUpdated editions\n"
    path = put(tmp_path / "pg1.txt", framed)
    assert texts(read(path)) == ["Once upon\na time.\n"]
    check_kind(KINDS["text"], [path, put(tmp_path / "list.mbox", MAILS)])


def test_a_tune_book_is_split_into_tunes(tmp_path: Path) -> None:
    tunes = ["X: 1\nT:One\nM:3/4\nK:G\nd2B|A2e:|", "X:2\nT:Two\nK:D\n% a part\nA2|d2 f2:|"]
    data = read(put(tmp_path / "book.abc", "% a book\n\n" + "\n\n".join(tunes) + "\n"))
    assert texts(data) == tunes
    assert len(read(put(tmp_path / "one.abc", f"{tunes[0]}\n"))) == 1


def test_selfies_are_read_a_molecule_a_line(tmp_path: Path) -> None:
    lines = ["[C][=C][F]", "[C][Branch1][C][F][Cl]", "[C][C@@H1][O].[Na+1]"]
    assert texts(read(put(tmp_path / "a.txt", "\n".join(lines) + "\n"))) == lines
    rows = "".join(f"{line},{i}\n" for i, line in enumerate(lines))
    assert texts(read(put(tmp_path / "a.csv", f"selfies,logp\n{rows}"))) == lines


def test_the_final_version_of_a_sentence_is_read(tmp_path: Path) -> None:
    versions = ["first", "short", "clear", "final"]
    rows = [{"table_page_title": f"Page {i}", "sentence_annotations": [
        {f"{name}_sentence": f"the {name} words of number {i} are said here" for name in versions}]} for i in range(30)]
    data = read(put(tmp_path / "totto.jsonl", "".join(json.dumps(row) + "\n" for row in rows)))
    assert texts(data)[4] == "the final words of number 4 are said here" and len(data) == 30


def test_games_of_go_are_read_as_moves(tmp_path: Path) -> None:
    games = "(;GM[1]FF[4]SZ[19]PB[Ann]C[good \\] (game)]RE[W+R]\n;B[pd];W[dd]C[x]\n(;B[pp];W[])(;B[dp];W[qq]))\n" \
            "(;GM[1]SZ[9]RE[0];B[aa];W[tt])\n"
    data = read(put(tmp_path / "go.sgf", games))
    assert [record.object for record in data] == [["Bpd", "Wdd", "Bpp", "W"], ["Baa", "W"]]
    assert [data.name(i).rpartition(":")[2] for i in range(2)] == ["1", "4"]
    assert len(read(put(tmp_path / "cut.sgf", games[:69]))[0].object) == 2


def test_minified_code_is_read_only_where_it_is_named(tmp_path: Path) -> None:
    put(tmp_path / "src" / "a.js", "var a = 1;\n" * 9)
    minified = put(tmp_path / "src" / "a.min.js", "var a=1;" * 900)
    put(tmp_path / "src" / "package-lock.json", "{}\n")
    data = read(tmp_path / "src")
    assert texts(data) == ["var a = 1;\n" * 9]
    assert data.problems.total == 1 and "minified or generated" in str(data.problems[0])
    assert len(read(minified)) == 1
    (tmp_path / "src" / "a.js").unlink()
    assert len(read(tmp_path / "src")) == 1
