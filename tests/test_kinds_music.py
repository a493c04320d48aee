"""MIDI files: what is heard is what is spelled, and what is spelled is played again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import segue
from segue.errors import SegueError
from segue.kinds import KINDS
from segue.kinds.notes import GRID, ITEMS, LENGTHS, LOUD, TEMPI, Note, decode_items, encode_notes, nearest
from segue.kinds.piano_rolls import is_json_roll
from segue.testing.kinds import check_kind

mido = pytest.importorskip("mido")
MUSIC = KINDS["music"]

notes = st.lists(st.builds(Note, st.integers(0, 600), st.sampled_from([0, 0, 24, 128]), st.sampled_from([36, 60, 64]),
                           st.sampled_from(LENGTHS[:120]), st.sampled_from(list(LOUD))), min_size=1, max_size=30)
tempi = st.lists(st.tuples(st.integers(0, 700), st.sampled_from(TEMPI)), max_size=4)


def midi(path: Path, *tracks: list[tuple[int, Any]], ticks: int = 480, type: int = 1) -> Path:
    """A file of (time, message) by track."""
    file = mido.MidiFile(type=type, ticks_per_beat=ticks)
    for track in tracks:
        now, midi_track = 0, mido.MidiTrack()
        for at, message in sorted(track, key=lambda event: event[0]):
            midi_track.append(message.copy(time=at - now))
            now = at
        file.tracks.append(midi_track)
    file.save(path)
    return path


def on(note: int, velocity: int = 64, channel: int = 0) -> Any:
    return mido.Message("note_on", note=note, velocity=velocity, channel=channel)


def off(note: int, channel: int = 0) -> Any:
    return mido.Message("note_off", note=note, channel=channel)


@given(values=st.lists(st.integers(0, 900), min_size=1, unique=True).map(sorted), value=st.floats(0, 900))
def test_nearest_equals_brute_force(values: list[int], value: float) -> None:
    assert abs(nearest(values, value) - value) == min(abs(candidate - value) for candidate in values)


@given(notes=notes, tempi=tempi)
def test_note_tokens_round_trip(notes: list[Note], tempi: list[tuple[int, int]]) -> None:
    """Starts, pitches, instruments and loudness are kept; of twins one; a note ends where its pitch begins again."""
    items = encode_notes(notes, tempi)
    decoded, _ = decode_items(items)
    first = min(note.start for note in notes)
    expected = {}
    for note in sorted(notes):
        later = [other.start for other in notes
                 if other.start > note.start and (other.program, other.pitch) == (note.program, note.pitch)]
        length = min(note.length, min(later, default=1 << 20) - note.start)
        length = max(candidate for candidate in LENGTHS if candidate <= length)
        expected[note.start, note.program, note.pitch] = Note(note.start - first, note.program, note.pitch, length,
                                                              note.loud)
    assert sorted(decoded) == sorted(expected.values())
    assert set(items) <= set(ITEMS)
    assert encode_notes(*decode_items(items)) == items, "it is spelled in one way"


@settings(max_examples=40, deadline=None)
@given(songs=st.lists(st.tuples(notes, tempi), min_size=1, max_size=3))
def test_written_files_round_trip(tmp_path_factory: pytest.TempPathFactory, songs: list[Any]) -> None:
    path = tmp_path_factory.mktemp("midi") / "songs.mid"
    objects = [encode_notes(*song) for song in songs]
    MUSIC.write(objects, path)
    assert [record.object for record in MUSIC.read(path)] == objects
    assert mido.MidiFile(path).type == (0 if len(songs) == 1 else 2)


def test_a_file_by_hand(tmp_path: Path) -> None:
    """Two tracks, a tempo, an instrument, drums, a pause longer than a wait, silence in front, velocity 0 as an end."""
    path = midi(tmp_path / "hand.mid",
                [(0, mido.MetaMessage("set_tempo", tempo=500_000)),
                 (960, mido.MetaMessage("set_tempo", tempo=600_000))],
                [(480, on(60)), (720, on(60, velocity=0)), (960, on(64, 100)), (960 + 240, off(64))],
                [(0, mido.Message("program_change", program=24, channel=3)), (960, on(40, 64, 3)), (1440, off(40, 3)),
                 (480 * 6, on(36, 80, 9)), (480 * 6 + 10, off(36, 9))])
    [record] = MUSIC.read(path)
    slower = nearest(TEMPI, 100)
    assert record.object == ["loud16", "note60", "length24", "wait48", f"tempo{slower}", "loud25", "note64", "length24",
                             "voice24", "loud16", "note40", "length48", "wait96", "wait96", "loud20", "drum36",
                             "length1"]
    assert record.name == str(path)


def test_unknown_midi_chunks_are_skipped(tmp_path: Path) -> None:
    MUSIC.write([["note60", "length48", "wait48", "note62", "length48"]], tmp_path / "plain.mid")
    data = (tmp_path / "plain.mid").read_bytes()
    place = data.index(b"MTrk")
    (tmp_path / "alien.mid").write_bytes(data[:place] + b"XFIH\0\0\0\3abc" + data[place:] + b"XFKM\0\0\0\0")
    plain, with_chunk = (next(iter(MUSIC.read(tmp_path / f"{name}.mid"))).object for name in ("plain", "alien"))
    assert plain == with_chunk


@pytest.mark.parametrize("meta", [b"\x59\x02\xfe\xff", b"\x59\x02\x09\x00", b"\x58\x02\x04\x02", b"\x20\x00",
                                  b"\x54\x05\xff\x00\x00\x00\x00", b"\x51\x01\x07"])
def test_malformed_meta_events_are_skipped(tmp_path: Path, meta: bytes) -> None:
    path = midi(tmp_path / "a.mid", [(0, on(60)), (480, off(60))])
    expected = next(MUSIC.read(path)).object
    data = path.read_bytes()
    size, rest = int.from_bytes(data[18:22]), data[22:]
    path.write_bytes(data[:18] + (size + 2 + len(meta)).to_bytes(4) + b"\0\xff" + meta + rest)
    assert next(MUSIC.read(path)).object == expected


def test_many_instruments_that_begin_together(tmp_path: Path) -> None:
    items = encode_notes([Note(0, program, 40 + program, 24, 20) for program in range(20)], [])
    MUSIC.write([items], tmp_path / "a.mid")
    assert next(MUSIC.read(tmp_path / "a.mid")).object == items


def test_a_midi_file_in_a_riff_container_is_read(tmp_path: Path) -> None:
    KINDS["music"].write([["note60", "length12"]], tmp_path / "a.mid")
    raw = (tmp_path / "a.mid").read_bytes()
    (tmp_path / "a.rmi").write_bytes(b"RIFF" + (len(raw) + 12).to_bytes(4, "little") + b"RMIDdata"
                                     + len(raw).to_bytes(4, "little") + raw)
    assert segue.read(tmp_path / "a.rmi")[0].object == segue.read(tmp_path / "a.mid")[0].object
    (tmp_path / "b.mid").write_bytes(raw[:-3])
    with pytest.raises(SegueError, match=r"it ends too soon"):
        segue.read(tmp_path / "b.mid")


def test_scores_in_musicxml(tmp_path: Path) -> None:
    def note(step: str, length: int, inside: str = "", octave: int = 4) -> str:
        pitch = f"<pitch><step>{step}</step><alter>-1</alter><octave>{octave}</octave></pitch>" if step else "<rest/>"
        return f"<note>{inside}{pitch}<duration>{length}</duration></note>"

    measure = (note("D", 2), note("F", 2, "<chord/>"), note("", 1), note("A", 1, '<tie type="start"/>'),
               note("A", 4, '<tie type="stop"/>'), "<backup><duration>8</duration></backup>", note("G", 8, octave=2))
    text = ('<?xml version="1.0"?>\n<!DOCTYPE score-partwise PUBLIC "-//x" "y">\n<score-partwise><part-list><score-part'
            ' id="P1"><midi-instrument id="I"><midi-program>41</midi-program></midi-instrument></score-part>'
            '</part-list><part id="P1"><measure number="1"><attributes><divisions>2</divisions></attributes>'
            f'<direction><sound tempo="90"/></direction>{"".join(measure)}</measure></part></score-partwise>')
    (tmp_path / "a.musicxml").write_text(text)
    data = segue.read(tmp_path / "a.musicxml")
    assert data.kind.name == "music" and data[0].object == [
        "tempo89", "voice40", "loud20", "note42", "length192", "note61", "length48", "note64", "length48", "wait72",
        "note68", "length120"]
    for broken, message in ((text[:-20], "no MusicXML that can"), (text.replace("note>", "n>"), "there is no note")):
        (tmp_path / "b.xml").write_text(broken)
        with pytest.raises(SegueError, match=message):
            segue.read(tmp_path / "b.xml")


def test_a_measure_of_musicxml_is_as_long_as_its_longest_voice(tmp_path: Path) -> None:
    def note(step: str, length: int) -> str:
        return f"<note><pitch><step>{step}</step><octave>4</octave></pitch><duration>{length}</duration></note>"

    measures = (note("C", 4) + "<backup><duration>4</duration></backup>" + note("E", 1), note("G", 4))
    (tmp_path / "a.musicxml").write_text(
        '<score-partwise><part-list><score-part id="P1"/></part-list><part id="P1">'
        + "".join(f"<measure>{measure}</measure>" for measure in measures) + "</part></score-partwise>")
    found, _ = decode_items(segue.read(tmp_path / "a.musicxml")[0].object)
    assert {note.pitch: note.start for note in found} == {60: 0, 64: 0, 67: 4 * GRID}


def test_parts_of_musicxml_stay_in_time(tmp_path: Path) -> None:
    """Where one part's measure is too short, or too long."""
    def part(step: str, *lengths: int) -> str:
        rest, note = "<rest/>", f"<pitch><step>{step}</step><octave>4</octave></pitch>"
        return "".join(f"<measure><note>{note}<duration>1</duration></note><note>{rest}<duration>{length - 1}"
                       "</duration></note></measure>" for length in lengths)

    for parts in ((part("C", 4, 4, 4, 4), part("E", 4, 3, 4, 5), part("G", 8, 4, 4, 4)),
                  (part("C", 4, 4, 4, 4), part("E", 4, 3, 5, 4))):
        (tmp_path / "a.musicxml").write_text(f"<score-partwise>{''.join(f'<part>{each}</part>' for each in parts)}"
                                             "</score-partwise>")
        found, _ = decode_items(segue.read(tmp_path / "a.musicxml")[0].object)
        assert [(note.start, note.pitch) for note in found] == [
            (4 * GRID * number, pitch) for number in range(4) for pitch in (60, 64, 67)[: len(parts)]]


def test_drums_in_musicxml_are_those_of_their_instruments(tmp_path: Path) -> None:
    hit = ("<note><unpitched><display-step>C</display-step><display-octave>5</display-octave></unpitched>"
           "<duration>1</duration>{}</note>")
    (tmp_path / "a.musicxml").write_text(
        '<score-partwise><part-list><score-part id="P1">'
        + "".join(f'<midi-instrument id="I{key}"><midi-channel>10</midi-channel><midi-program>0</midi-program>'
                  f"<midi-unpitched>{key}</midi-unpitched></midi-instrument>" for key in (37, 39))
        + '</score-part></part-list><part id="P1"><measure number="1">'
        + "".join(hit.format(f'<instrument id="{id}"/>') for id in ("I37", "I39", "other"))
        + "</measure></part></score-partwise>")
    assert [item for item in segue.read(tmp_path / "a.musicxml")[0].object if item[:4] == "drum"] == [
        "drum36", "drum38", "drum72"]


def test_piano_rolls_in_json(tmp_path: Path) -> None:
    piece = [[60, 64], [60, 67], [], [-1, 62], [62]]
    (tmp_path / "a.json").write_text(json.dumps({"train": [piece, [[]]], "test": [[[72, 76]] * 4]}))
    data = segue.read(tmp_path / "a.json")
    expected = ["loud20", "note60", "length24", "note64", "length12", "wait12", "note67", "length12",
                "wait24", "note62", "length24"]
    assert data.kind.name == "music" and data[0].object == expected and data.name(1).endswith("a.json:test:1")
    assert "record train:2: there is no note in it" in str(data.problems[0])
    assert segue.read(tmp_path / "a.json", step=0.5)[1].object == ["loud20", "note72", "length96", "note76", "length96"]
    for other in ([[[0, 0, 255], [9, 0, 0]]] * 9, [[[3, 1], [2]]] * 9, [[60, 62], [64]]):
        (tmp_path / "b.json").write_text(json.dumps(other))
        assert not is_json_roll((tmp_path / "b.json").read_bytes())
    (tmp_path / "b.json").write_text(json.dumps([piece, piece])[:-3])
    with pytest.raises(SegueError, match="no piano roll that can be read"):
        segue.read(tmp_path / "b.json")


def test_the_pedal_lengthens_notes(tmp_path: Path) -> None:
    down, up = (mido.Message("control_change", control=64, value=value) for value in (127, 0))
    path = midi(tmp_path / "pedal.mid", [(0, down), (0, on(60)), (50, off(60)), (50, on(62)), (100, off(62)),
                                         (100, on(60)), (150, off(60)), (480, up)])

    def lengths(**options: Any) -> list[tuple[int, int]]:
        [record] = MUSIC.read(path, **options)
        return [(note.pitch, note.length * 10) for note in decode_items(record.object)[0]]

    assert lengths() == [(60, 100), (62, 430), (60, 380)], "until the pedal is up, or the pitch begins again"
    assert lengths(pedal=False) == [(60, 50), (62, 50), (60, 50)]


def test_the_contract(tmp_path: Path) -> None:
    file = midi(tmp_path / "one.mid", [(0, on(60)), (480, off(60)), (480, on(64, 90)), (900, off(64))] +
                [(1000 + 50 * i, message) for i in range(40) for message in (on(40 + i), off(40 + i))])
    check_kind(MUSIC, [file], mutations=60)


def test_mistakes_are_told_in_one_line(tmp_path: Path) -> None:
    empty = midi(tmp_path / "empty.mid", [(0, mido.Message("program_change", program=3))])
    with pytest.raises(SegueError, match="no note"):
        segue.read(empty)
    (tmp_path / "cut.mid").write_bytes(midi(tmp_path / "x.mid", [(0, on(60)), (9, off(60))]).read_bytes()[:20])
    with pytest.raises(SegueError, match=r"cut\.mid: no MIDI file that can be read"):
        segue.read(tmp_path / "cut.mid")
    with pytest.raises(SegueError, match="item 2, 'note128', is no sign of music"):
        MUSIC.normalise("note60, note128")
    assert MUSIC.normalise("note60 length24 → wait12") == ["note60", "length24", "wait12"]


def test_a_roll_is_shown() -> None:
    roll = MUSIC.show(["note60", f"length{GRID}", f"wait{GRID}", "note64", f"length{GRID // 2}", "drum36", "length1"])
    assert [line.split(maxsplit=1) for line in roll.splitlines()] == [["E4", "#="], ["C4", "#==="], ["drum36", "#"]]
    assert roll.splitlines()[0].index("#") == roll.splitlines()[1].index("#") + 4


def test_malformed_tokens_become_the_valid_notes(tmp_path: Path) -> None:
    """Generated tokens need not be music: lengths without notes, notes without lengths, more than 15 instruments."""
    malformed = ["length3", "note60", "wait96", "tempo120", "note61", "note61", "length9", *(
        item for program in range(20) for item in (f"voice{program}", f"note{40 + program}", "length5")), "drum40"]
    MUSIC.write([malformed], tmp_path / "odd.mid")
    [record] = MUSIC.read(tmp_path / "odd.mid")
    assert sum(item.startswith("note") for item in record.object) == 22
    rewritten = tmp_path / "again.mid"
    MUSIC.write([record], rewritten)
    assert next(iter(MUSIC.read(rewritten))).object == record.object


def test_fit_continue_and_write_end_to_end(tmp_path: Path) -> None:
    """Fit on scales, go on from a file of one, and write a file that any player reads."""
    for key in range(12):
        scale = [item for step in (0, 2, 4, 5, 7, 9, 11, 12) * 4 for item in (f"note{48 + key + step}", "length24",
                                                                             "wait24")]
        MUSIC.write([scale], tmp_path / "songs" / f"{key}.mid")
    model = segue.fit(tmp_path / "songs", out=tmp_path / "model", steps=30, seed=1, quiet=True, mix=False, width=64,
                      depth=2)
    assert model.kind.name == "music"
    answer = model.continue_(tmp_path / "songs" / "3.mid", n=60)
    answer.save(tmp_path / "next.mid")
    played = mido.MidiFile(tmp_path / "next.mid")
    assert sum(message.type == "note_on" for message in played.tracks[0]) >= 40
    [record] = MUSIC.read(tmp_path / "next.mid")
    assert record.object[:20] == next(iter(MUSIC.read(tmp_path / "songs" / "3.mid"))).object[:20]


def test_real_songs_round_trip(shared_data, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    data = segue.read(shared_data("pop909-midi") / "themes.zip")
    assert len(data) == 29 and not data.problems
    for record in data:
        MUSIC.write([record], tmp_path / "song.mid")
        assert next(iter(MUSIC.read(tmp_path / "song.mid"))).object == record.object


def test_a_note_struck_again_keeps_its_own_end(tmp_path: Path) -> None:
    path = midi(tmp_path / "again.mid", [(0, on(60)), (480, on(60)), (480, off(60)), (960, off(60))])
    [record] = MUSIC.read(path)
    assert [note.length for note in decode_items(record.object)[0]] == [GRID, GRID]


def test_several_files_are_continued_in_one_call(tmp_path: Path) -> None:
    for name in ("a", "b"):
        MUSIC.write([["note60", "length24", "wait24"] * 20 + ["note62", "length24"]], tmp_path / "in" / f"{name}.mid")
    model = segue.fit(tmp_path / "in", out=tmp_path / "model", steps=2, seed=1, quiet=True, mix=False)
    answers = model.continue_([tmp_path / "in" / "a.mid", tmp_path / "in" / "b.mid"], n=4)
    assert len(answers) == 2 and all(len(answer.value) <= 4 for answer in answers)


def test_smpte_ticks_are_read(tmp_path: Path) -> None:
    path = midi(tmp_path / "a.mid", [(0, on(60)), (500, on(60, 0))])
    data = bytearray(path.read_bytes())
    data[12:14] = bytes([256 - 25, 40])  # 25 frames a second of 40 ticks: 500 ticks are half a second
    path.write_bytes(data)
    assert decode_items(segue.read(path)[0].object)[0][0].length == GRID
    data[12:14] = bytes(2)
    path.write_bytes(data)
    with pytest.raises(SegueError, match="how long a tick is"):
        segue.read(path)


def test_midicsv_files_are_read_as_music(tmp_path: Path) -> None:
    lines = ['0, 0, Header, 1, 2, 480', '1, 0, Start_track', '1, 0, Title_t, "A, B"', '1, 0, Tempo, 600000',
             '1, 0, End_track', '2, 0, Start_track', '2, 0, Program_c, 0, 19', '2, 0, Note_on_c, 0, 60, 80',
             '2, 480, Note_off_c, 0, 60, 0', '2, 480, Note_on_c, 0, 64, 80', '2, 960, Note_on_c, 0, 64, 0',
             '2, 960, End_track', '0, 0, End_of_file']
    path = tmp_path / "a.csv"
    path.write_text("# written by midicsv\n" + "\n".join(lines) + "\n", encoding="utf-8")
    data = segue.read(path)
    assert data.kind.name == "music"
    assert data[0].object == ["tempo100", "voice19", "loud20", "note60", "length48", "wait48", "note64", "length48"]
    path.write_text("\n".join(lines).replace("60, 80", "sixty, 80"), encoding="utf-8")
    with pytest.raises(SegueError, match="no MIDI file that can be read"):
        segue.read(path)


@pytest.mark.parametrize("value, length", [("00", 16 * GRID), ("0", 8 * GRID), ("0.", 12 * GRID), ("1", 4 * GRID),
                                           ("10", 19), ("4.", 72), ("3%2", 128)])
def test_note_values_of_kern(tmp_path: Path, value: str, length: int) -> None:
    (tmp_path / "a.krn").write_text(f"**kern\n{value}c\n*-\n")
    (note,), _ = decode_items(next(MUSIC.read(tmp_path / "a.krn")).object)
    assert note.length == nearest(LENGTHS, length)
