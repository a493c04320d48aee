"""MIDI files and what midicsv writes of them, as notes and back (extra `music`: mido)."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from segue.errors import SegueError, require
from segue.kinds.base import Record
from segue.kinds.notes import GRID, LENGTHS, TEMPI, Note, decode_items, nearest
from segue.kinds.packed import opened

DRUMS = 9  # the percussion channel, counted from 0
PEDAL = 64  # the controller of the sustain pedal
CSV = re.compile(rb"(?:\xef\xbb\xbf)?\s*(?:#[^\n]*\n\s*)*0, *0, *Header, *[012], *\d+, *\d+", re.IGNORECASE)  # midicsv
CSV_EVENTS = {  # of midicsv, and what mido calls them and their values
    "note_on_c": ("note_on", "channel", "note", "velocity"), "note_off_c": ("note_off", "channel", "note", "velocity"),
    "program_c": ("program_change", "channel", "program"), "tempo": ("set_tempo", "tempo"),
    "control_c": ("control_change", "channel", "control", "value")}


def notes_by_track(path: str | Path, pedal: bool = True) -> dict[str, list[Note]]:
    """The notes of each track of a MIDI file by the track's name, starting when they do in the file. Tracks without
    notes are left out, tracks of the same name are merged. pedal: see `Music.read`."""
    file = open_midi(require("mido", "music"), Path(path))
    found: dict[str, list[Note]] = {}
    for track in file.tracks:
        if notes := track_notes([track], steps_per_tick(file), pedal)[0]:
            found.setdefault(track.name, []).extend(notes)
    return {name: sorted(notes) for name, notes in found.items()}


def open_midi(mido: Any, path: Path) -> Any:
    """A `mido.MidiFile`; a SegueError where there is none that can be read."""
    with opened(path) as handle:
        data = handle.read()
        try:
            if CSV.match(data):
                return _from_csv(mido, data)
            with _any_meta(mido):
                file = mido.MidiFile(file=io.BytesIO(_standard_chunks(data)), clip=True)
        except SegueError:
            raise
        except Exception as error:  # a foreign parser may raise anything on a broken file
            why = " ".join(str(error).split()) or ("it ends too soon" if isinstance(error, EOFError) else
                                                   type(error).__name__)
            raise SegueError(f"{path}: no MIDI file that can be read ({why}); save it again") from error
    if not file.ticks_per_beat:
        raise SegueError(f"{path}: its header does not say how long a tick is; save it again")
    return file


@contextmanager
def _any_meta(mido: Any) -> Iterator[None]:
    """Within it, mido keeps meta events that it cannot decode, such as a key of nine sharps, which say nothing here."""
    from mido.midifiles import midifiles

    build = midifiles.build_meta_message

    def keep(type_byte: int, data: Any, delta: int = 0) -> Any:
        try:
            return build(type_byte, data, delta)
        except Exception:  # of many sorts
            return mido.UnknownMetaMessage(type_byte, data, time=delta)

    midifiles.build_meta_message = keep
    try:
        yield
    finally:
        midifiles.build_meta_message = build


def _from_csv(mido: Any, data: bytes) -> Any:
    """A `mido.MidiFile` from the output of midicsv: track, time, event and its values in each line."""
    file = mido.MidiFile(type=1, ticks_per_beat=480)
    tracks: dict[int, list[tuple[int, Any]]] = {}
    for cells in csv.reader(io.StringIO(data.decode("utf-8", "replace").lstrip("\ufeff")), skipinitialspace=True):
        name = cells[2].lower() if len(cells) > 2 and cells[0][:1] != "#" else ""
        if name == "header":
            file.type, file.ticks_per_beat = int(cells[3]), int(cells[5])
        elif name in CSV_EVENTS:
            event, *fields = CSV_EVENTS[name]
            values = dict(zip(fields, map(int, cells[3:])))
            message = mido.MetaMessage(event, **values) if event == "set_tempo" else mido.Message(event, **values)
            tracks.setdefault(int(cells[0]), []).append((int(cells[1]), message))
        elif name == "start_track":
            tracks.setdefault(int(cells[0]), [])
    for events in tracks.values():
        now, track = 0, mido.MidiTrack()
        for at, message in sorted(events, key=lambda event: event[0]):
            track.append(message.copy(time=at - now))
            now = at
        file.tracks.append(track)
    return file


def _standard_chunks(data: bytes) -> bytes:
    """A MIDI file without non-standard chunks, which readers are to skip, and without the RIFF container of .rmi
    files."""
    if data[:4] == b"RIFF" and (header_start := data.find(b"MThd")) >= 0:
        data = data[header_start:]
    kept, start = [], 0
    while (name := data[start : start + 4]).isalnum() and \
            (end := start + 8 + int.from_bytes(data[start + 4 : start + 8])) <= len(data):
        if name in (b"MThd", b"MTrk"):
            kept.append(data[start:end])
        start = end
    return b"".join([*kept, data[start:]])


def steps_per_tick(file: Any) -> float:
    """The length of a MIDI tick in steps. Files with SMPTE times (ticks are fractions of film frames) do not know
    beats: these are taken as 120 a minute."""
    division = file.ticks_per_beat % (1 << 16)
    if division < 1 << 15:
        return GRID / division
    return 2 * GRID / max((256 - (division >> 8)) * (division & 255), 1)


def track_notes(tracks: Iterable[Any], scale: float, pedal: bool) -> tuple[list[Note], list[tuple[int, int]]]:
    """The notes of simultaneous tracks, and the tempi as (start, beats a minute). scale: steps in a tick."""
    notes, tempi = list[Note](), list[tuple[int, int]]()
    for track in tracks:
        now, programs, held = 0, [0] * 16, [False] * 16
        sounding: dict[tuple[int, int], tuple[int, int, int]] = {}  # channel, pitch: start, program, velocity
        waiting: set[tuple[int, int]] = set()  # released, but sustained by the pedal
        cut: dict[tuple[int, int], int] = {}  # when a note was ended by the next; its note-off is still to come

        def end(key: tuple[int, int], now: int, sounding: Any = sounding, waiting: Any = waiting) -> None:
            start, program, velocity = sounding.pop(key)
            waiting.discard(key)
            onset, release = round(start * scale), round(now * scale)
            notes.append(Note(onset, program, key[1], nearest(LENGTHS, max(release - onset, 1)), velocity // 4))

        for message in track:
            now += message.time
            if message.type == "set_tempo":
                tempi.append((round(now * scale), nearest(TEMPI, 6e7 / max(message.tempo, 1))))
            elif message.type == "program_change":
                programs[message.channel] = message.program
            elif message.type == "control_change" and message.control == PEDAL and pedal:
                held[message.channel] = message.value >= 64
                for key in [] if held[message.channel] else [key for key in waiting if key[0] == message.channel]:
                    end(key, now)
            elif message.type in ("note_on", "note_off"):
                key = message.channel, message.note
                if message.type == "note_on" and message.velocity:
                    if key in sounding:
                        if key not in waiting:
                            cut[key] = now
                        end(key, now)
                    program = 128 if message.channel == DRUMS else programs[message.channel]
                    sounding[key] = now, program, message.velocity
                elif key in sounding and cut.pop(key, None) != now:  # otherwise it is the note-off of the note before
                    waiting.add(key) if held[message.channel] else end(key, now)
        for key in list(sounding):
            end(key, now)
    return notes, tempi


def make_track(mido: Any, song: Record) -> Any:
    """A `mido.MidiTrack` that plays a record of items. Each instrument has its own channel as long as there are free
    ones."""
    notes, tempi = decode_items(song.object)
    events: list[tuple[int, int, Any]] = [  # (time, order within a time, message): tempi, offs, notes and programs
        (time, 0, mido.MetaMessage("set_tempo", tempo=round(6e7 / bpm))) for time, bpm in tempi]
    channels: dict[int, int] = {128: DRUMS}
    playing = [0] * 16
    for note in notes:
        tuned = len(channels) - 1
        channel = channels.setdefault(note.program, [each for each in range(16) if each != DRUMS][tuned % 15])
        if note.program < 128 and playing[channel] != note.program:
            playing[channel] = note.program
            events.append((note.start, 2, mido.Message("program_change", channel=channel, program=note.program)))
        events.append((note.start, 2, mido.Message("note_on", channel=channel, note=note.pitch,
                                                   velocity=4 * note.loud + 2)))
        events.append((note.start + note.length, 1, mido.Message("note_off", channel=channel, note=note.pitch)))
    track, now = mido.MidiTrack(), 0
    if song.name:
        track.append(mido.MetaMessage("track_name", name=song.name.encode("ascii", "replace").decode()))
    for time, _, message in sorted(events, key=lambda each: each[:2]):
        track.append(message.copy(time=time - now))
        now = time
    return track
