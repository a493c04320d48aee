"""Music: MIDI files, MusicXML, Humdrum and piano rolls as sequences of notes, lengths and waits, and back as MIDI
(extra `music`: mido).

The signs are those of performance modelling (Oore et al. 2018; Huang et al. 2018), with the length at each note in
place of a sign for its end, as in REMI (Huang & Yang 2020): no note can be left hanging. Times are in 48ths of a beat,
which hold every usual note value, and at the usual tempo of a recording are the 10 ms of those papers.
"""

from __future__ import annotations

import csv
import io
import json
import re
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from segue.errors import SegueError, require
from segue.files import atomic_write
from segue.kinds.base import Dataset, Kind, Problems, Record, bad, head_of
from segue.kinds.codecs import Codec, ItemCodec
from segue.kinds.frame import array_header, is_array, load_array
from segue.kinds.packed import opened

GRID = 48  # steps of a beat
WAITS = range(1, 2 * GRID + 1)  # steps; a longer wait is several
LENGTHS = [*range(1, 2 * GRID + 1), *range(2 * GRID + 12, 8 * GRID + 1, 12), *range(9 * GRID, 16 * GRID + 1, GRID)]
LOUD = range(32)  # velocities, four each
TEMPI = sorted({120, *(round(20 * 1.04**step) for step in range(70))})  # beats a minute, 4 % apart
DRUMS = 9  # the channel of percussion
PEDAL = 64  # the control that holds notes
ITEMS = [f"{what}{value}" for what, values in (
    ("note", range(128)), ("length", LENGTHS), ("wait", WAITS), ("loud", LOUD), ("drum", range(128)),
    ("voice", range(128)), ("tempo", TEMPI)) for value in values]
KNOWN = frozenset(ITEMS)
# A table with a column a voice, pitches and nothing else in it.
VOICES = re.compile(rb'"?(note|voice)_?\d"?([,;\t]"?(note|voice)_?\d"?){1,8}\s*\n[\d,;\t\r\n]+', re.IGNORECASE)
CSV = re.compile(rb"(?:\xef\xbb\xbf)?\s*(?:#[^\n]*\n\s*)*0, *0, *Header, *[012], *\d+, *\d+", re.IGNORECASE)  # midicsv
NAMES = ["C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B"]

CSV_EVENTS = {  # of midicsv, and what mido calls them and their values
    "note_on_c": ("note_on", "channel", "note", "velocity"), "note_off_c": ("note_off", "channel", "note", "velocity"),
    "program_c": ("program_change", "channel", "program"), "tempo": ("set_tempo", "tempo"),
    "control_c": ("control_change", "channel", "control", "value")}


@dataclass(frozen=True, order=True)
class Note:
    """start, length: in steps. program: of General MIDI, 128 for drums. loud: one of LOUD."""

    start: int
    program: int
    pitch: int
    length: int
    loud: int


class Music(Kind):
    """Standard MIDI files (.mid, .rmi, or as midicsv writes them), scores (MusicXML, .mxl, Humdrum **kern), all parts
    together, and piano rolls (JSON: pieces of steps of the pitches that sound; arrays of steps of 88 keys or 128
    pitches; CSV with a column a voice). An object is a list of items: `note60` or `drum36` and the `length12` it lasts,
    `wait24` until the next one; `loud`, `voice` (the instrument) and `tempo` stand in front of the note from which on
    they hold. The unit is the event. A file of independent patterns (format 2) or pieces is a record each."""

    name = "music"
    unit = "event"
    storage = "items"
    written = (".mid", ".midi", ".kar")
    split_by = "entity"  # a piece as a whole: what it repeats would be known from its other parts
    decoder = "sample"

    def sniff(self, path: Path, head: bytes) -> float:
        boxed = (head[:4], head[8:12]) == (b"RIFF", b"RMID")
        if is_array(head):
            return 0.995 if rolled(head) else 0.0
        roll = is_roll(head) or VOICES.match(head)
        written = is_score(head) or is_kern(head) or CSV.match(head)
        return 0.97 if head.startswith(b"MThd") or boxed or written or roll else 0.0

    def read(self, path: Path, problems: Problems | None = None, *, pedal: bool = True,
             step: float = 0.25) -> Iterator[Record]:
        """One record a file, or a piece. pedal: notes last as long as the pedal holds them. step: beats that a step of
        a piano roll lasts. Silence at the beginning is left out; a pitch that begins while it sounds ends what
        sounded."""
        songs, found = list(self._songs(path, pedal, step)), False
        for name, notes, tempi in songs:
            if items := spelled(notes, tempi):
                found = True
                yield Record(items, name=f"{path}:{name}" if len(songs) > 1 else str(path))
            elif len(songs) > 1:
                bad(problems, path, name, None, "there is no note in it; remove it")
        if not found:
            raise SegueError(f"{path}: there is no note in this file")

    def _songs(self, path: Path, pedal: bool, step: float) -> Iterator[tuple[str, list[Note], list[tuple[int, int]]]]:
        """The name, the notes and the tempi of each piece of a file."""
        head = head_of(path)
        if is_score(head) or is_kern(head) or is_roll(head) or is_array(head) or VOICES.match(head):
            if not 1 / GRID <= step <= 4:
                raise SegueError(f"a step lasts 1/{GRID} to 4 beats, not {step}")
            with opened(path) as handle:
                data = handle.read()
            if is_score(head) or is_kern(head):
                yield "", *(written if is_score(head) else of_kern)(path, data)
            else:
                yield from ((name, unrolled(pitches, round(step * GRID)), []) for name, pitches in
                           (array_rolls if is_array(head) else rolls)(path, data))
            return
        file = _opened(require("mido", "music"), path)
        songs = [[track] for track in file.tracks] if file.type == 2 else [file.tracks]
        for number, tracks in enumerate(songs, 1):
            yield str(number), *_heard(tracks, _steps(file), pedal)

    def codec(self, data: Dataset) -> Codec:
        """An item a token; every item there can be has one, so that a new piece has no unknown ones."""
        return ItemCodec(ITEMS)

    def write(self, objects: Iterable[Sequence[str] | Record], path: str | Path) -> None:
        """A MIDI file; several objects are independent patterns of one file (format 2). Items that are no music where
        they stand (a length without a note) are left out, a note without a length lasts half a beat."""
        mido = require("mido", "music")
        songs = [obj if isinstance(obj, Record) else Record(list(obj)) for obj in objects]
        file = mido.MidiFile(type=0 if len(songs) == 1 else 2, ticks_per_beat=GRID)
        for song in songs:
            file.tracks.append(_track(mido, song))
        with atomic_write(path) as temporary, open(temporary, "wb") as handle:
            file.save(file=handle)

    def show(self, obj: Sequence[str]) -> str:
        """A piano roll of the first 96 quarters of a beat: a line for each pitch from the highest, # where a note
        begins, = where it lasts."""
        notes = [note for note in understood(obj)[0] if note.start < 96 * GRID // 4]
        pitches = sorted({(note.program < 128, note.pitch) for note in notes}, reverse=True)
        lines = []
        for tuned, pitch in pitches:
            row = [" "] * 96
            for note in notes:
                if (note.program < 128, note.pitch) == (tuned, pitch):
                    begin, end = (4 * at // GRID for at in (note.start, note.start + note.length - 1))
                    for place in range(begin, min(end, 95) + 1):
                        row[place] = "=" if place > begin or row[place] == "#" else "#"
                    row[begin] = "#"
            label = f"{NAMES[pitch % 12]}{pitch // 12 - 1}" if tuned else f"drum{pitch}"
            lines.append(f"{label:>7} {''.join(row).rstrip()}")
        return "\n".join(lines)

    def normalise(self, obj: Any, known: Collection[str] = ()) -> list[str]:
        """Items, or a text of them with blanks, commas or arrows between; one that is none is a SegueError."""
        obj = obj.decode("utf-8", "replace") if isinstance(obj, bytes) else obj
        items = [item for item in re.split(r"[\s,→]+", obj) if item] if isinstance(obj, str) else list(obj)
        for number, item in enumerate(items, 1):
            if item not in KNOWN:
                raise SegueError(f"item {number}, {item!r:.40}, is no sign of music: write note0 to note127 (drum for "
                                 "percussion) with length1 to length768 behind, wait1 to wait96, loud0 to loud31, "
                                 "voice0 to voice127, tempo20 to tempo300, or give a MIDI file")
        return items


def nearest(values: Sequence[int], value: float) -> int:
    """The nearest of sorted values."""
    at = bisect_left(values, value)
    return min(values[max(at - 1, 0) : at + 1] or values[-1:], key=lambda other: abs(other - value))


def parts(path: str | Path, pedal: bool = True) -> dict[str, list[Note]]:
    """The notes of each track of a MIDI file by its name, in the file's own time; tracks without notes are left out, of
    one name are one. pedal: see `Music.read`."""
    file = _opened(require("mido", "music"), Path(path))
    found: dict[str, list[Note]] = {}
    for track in file.tracks:
        if notes := _heard([track], _steps(file), pedal)[0]:
            found.setdefault(track.name, []).extend(notes)
    return {name: sorted(notes) for name, notes in found.items()}


def _opened(mido: Any, path: Path) -> Any:
    """A MIDI file whose times are in beats."""
    with opened(path) as handle:
        data = handle.read()
        try:
            if CSV.match(data):
                return _of_csv(mido, data)
            file = mido.MidiFile(file=io.BytesIO(known_chunks(data)), clip=True)
        except SegueError:
            raise
        except Exception as error:  # a foreign parser may raise anything on a broken file
            why = " ".join(str(error).split()) or ("it ends too soon" if isinstance(error, EOFError) else
                                                   type(error).__name__)
            raise SegueError(f"{path}: no MIDI file that can be read ({why}); save it again") from error
    if not file.ticks_per_beat:
        raise SegueError(f"{path}: its header does not say how long a tick is; save it again")
    return file


def _of_csv(mido: Any, data: bytes) -> Any:
    """A MIDI file from what midicsv wrote: track, time, event and its values a line."""
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


def _steps(file: Any) -> float:
    """How many steps a tick of a MIDI file lasts. Where ticks are parts of film frames (SMPTE), and beats are not
    known, there are 120 beats a minute."""
    division = file.ticks_per_beat % (1 << 16)
    if division < 1 << 15:
        return GRID / division
    return 2 * GRID / max((256 - (division >> 8)) * (division & 255), 1)


def is_score(head: bytes) -> bool:
    """Whether a file is MusicXML, by its beginning."""
    return head.lstrip()[:1] == b"<" and b"<score-partwise" in head[:4096]


def written(path: Path, data: bytes) -> tuple[list[Note], list[tuple[int, int]]]:
    """The notes of a score in MusicXML, and (start, beats a minute) of its tempi; repeats are played once, grace notes
    not at all."""
    from xml.etree import ElementTree

    try:
        score = ElementTree.fromstring(data)
        programs = {part.get("id"): int(part.findtext(".//midi-program") or 1) - 1 for part in score.iter("score-part")}
        drums = {part.get("id") for part in score.iter("score-part") if part.findtext(".//midi-channel") == "10"}
        notes, tempi = list[Note](), list[tuple[int, int]]()
        for part in score.iter("part"):
            program = 128 if part.get("id") in drums else programs.get(part.get("id"), 0)
            now, onset, beat, shift, tied = 0.0, 0.0, 1.0, 0, dict[int, Note]()
            for element in (each for measure in part.iter("measure") for each in measure):
                beat = float(element.findtext("divisions") or beat)
                length = float(element.findtext("duration") or 0) / beat * GRID
                tempi += [(round(now), nearest(TEMPI, float(sound.get("tempo", 0)))) for sound in element.iter("sound")
                          if sound.get("tempo")]
                if (moved := element.find("transpose")) is not None:
                    shift = int(moved.findtext("chromatic") or 0) + 12 * int(moved.findtext("octave-change") or 0)
                if element.tag in ("backup", "forward"):
                    now += length if element.tag == "forward" else -length
                if element.tag != "note" or element.find("grace") is not None:
                    continue
                onset = onset if element.find("chord") is not None else now
                now = max(now, onset + length) if element.find("chord") is not None else onset + length
                if (pitch := sounding(element, shift)) is None:
                    continue
                steps = nearest(LENGTHS, max(length, 1))
                ties = {tie.get("type") for tie in element.iter("tie")}
                note = Note(round(onset), program, pitch, steps, 20)
                if "stop" in ties and pitch in tied:
                    begun = tied.pop(pitch)
                    note = replace(begun, length=nearest(LENGTHS, begun.length + length))
                if "start" in ties:
                    tied[pitch] = note
                else:
                    notes.append(note)
            notes += tied.values()
    except (ElementTree.ParseError, ValueError, OverflowError, ZeroDivisionError) as error:
        raise SegueError(f"{path}: no MusicXML that can be read ({error}); save it again") from error
    return notes, tempi


def sounding(note: Any, shift: int) -> int | None:
    """The pitch of a note of MusicXML, `shift` from where it is written; of percussion where it stands on the staff;
    None of a rest."""
    for sort, step in (("pitch", "step"), ("unpitched", "display-step")):
        if (place := note.find(sort)) is not None and place.findtext(step):
            octave = int(place.findtext(step.replace("step", "octave")) or 4)
            value = NAMES.index(place.findtext(step)) + 12 * (octave + 1) + round(float(place.findtext("alter") or 0))
            return min(max(value + (shift if sort == "pitch" else 0), 0), 127)
    return None


def is_roll(head: bytes) -> bool:
    """Whether a file is JSON of pieces of steps of pitches, perhaps in an object of their parts, by its beginning."""
    if not re.match(rb'\s*(\{\s*"[^"]{1,40}"\s*:\s*)?\[\s*\[\s*\[[-\d,\s]*\]', head):
        return False
    steps = [step.split(b",") if step.strip() else [] for step in re.findall(rb"\[([-\d,\s]*)\]", head)]
    pitches = [int(pitch) for step in steps for pitch in step if pitch.strip().lstrip(b"-").isdigit()]
    heard = [pitch for pitch in pitches if pitch != -1]
    return len(steps) > 4 and len(set(heard)) > 2 and max(map(len, steps)) <= 12 and \
        min(heard) >= 12 and max(heard) <= 115


def rolls(path: Path, data: bytes) -> Iterator[tuple[str, list[list[int]]]]:
    """The name and the steps of each piece of a JSON piano roll, or of a CSV file with a column a voice."""
    if VOICES.match(data):
        cells = [re.findall(r"\d+", line) for line in data.decode("utf-8", "replace").splitlines()[1:]]
        yield "1", [[pitch for pitch in map(int, row) if 0 < pitch < 128] for row in cells]
        return
    try:
        value = json.loads(data)
        for part, pieces in value.items() if isinstance(value, dict) else [("", value)]:
            for number, piece in enumerate(pieces, 1):
                steps = [[pitch for pitch in map(int, step) if 0 <= pitch < 128] for step in piece]
                yield f"{part}:{number}" if part else str(number), steps
    except (ValueError, TypeError, RecursionError) as error:
        raise SegueError(f"{path}: no piano roll that can be read ({error}); write it again") from error


def rolled(head: bytes) -> bool:
    """Whether an array is of steps of the 88 keys of a piano, on or off, of one piece or of several; by its
    beginning."""
    header = array_header(head)
    if header is None or header[1].kind not in "bu" or header[0][-1:] != (88,) or len(header[0]) not in (2, 3):
        return False
    return len(np.unique(np.frombuffer(head, np.uint8, -1, header[2]))) <= 2 or header[1].itemsize == 1


def array_rolls(path: Path, data: bytes) -> Iterator[tuple[str, list[list[int]]]]:
    """The name and the steps of each piece of an array (steps, keys) or (pieces, steps, keys), of 88 keys or 128
    pitches; what is above 0 sounds."""
    array = load_array(path, data, "numbers")
    if array.ndim not in (2, 3) or array.shape[-1] not in (88, 128):
        raise SegueError(f"{path}: an array of shape {array.shape} is no piano roll: give steps of 88 keys, or of 128 "
                         "pitches")
    lowest = 21 if array.shape[-1] == 88 else 0
    for number, piece in enumerate(array if array.ndim == 3 else array[None], 1):
        yield str(number), [(np.flatnonzero(step > 0) + lowest).tolist() for step in piece]


def unrolled(steps: Iterable[Sequence[int]], length: int) -> list[Note]:
    """The notes of a piano roll; a pitch that goes on is one note. length: of a step."""
    notes, begun = list[Note](), dict[int, int]()
    for at, pitches in enumerate([*steps, []]):
        for pitch in [pitch for pitch in begun if pitch not in pitches]:
            start = begun.pop(pitch)
            notes.append(Note(start * length, 0, pitch, nearest(LENGTHS, (at - start) * length), 20))
        for pitch in pitches:
            begun.setdefault(pitch, at)
    return notes


def known_chunks(data: bytes) -> bytes:
    """A MIDI file without chunks of other sorts, which readers are to step over, and without the box of an RMID."""
    if data[:4] == b"RIFF" and (begin := data.find(b"MThd")) >= 0:
        data = data[begin:]
    kept, at = [], 0
    while data[at : at + 4].isalnum() and at + 8 + (size := int.from_bytes(data[at + 4 : at + 8])) <= len(data):
        if data[at : at + 4] in (b"MThd", b"MTrk"):
            kept.append(data[at : at + 8 + size])
        at += 8 + size
    return b"".join([*kept, data[at:]])


def _heard(tracks: Iterable[Any], scale: float, pedal: bool) -> tuple[list[Note], list[tuple[int, int]]]:
    """The notes of tracks that sound together, and (start, beats a minute) of the tempi. scale: steps of a tick."""
    notes, tempi = list[Note](), list[tuple[int, int]]()
    for track in tracks:
        now, programs, held = 0, [0] * 16, [False] * 16
        sounding: dict[tuple[int, int], tuple[int, int, int]] = {}  # channel, pitch: start, program, velocity
        waiting: set[tuple[int, int]] = set()  # let go, but held by the pedal
        cut: dict[tuple[int, int], int] = {}  # when a note was ended by the next, its own end still to come

        def end(key: tuple[int, int], now: int, sounding: Any = sounding, waiting: Any = waiting) -> None:
            start, program, velocity = sounding.pop(key)
            waiting.discard(key)
            begin, over = round(start * scale), round(now * scale)
            notes.append(Note(begin, program, key[1], nearest(LENGTHS, max(over - begin, 1)), velocity // 4))

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
                elif key in sounding and cut.pop(key, None) != now:  # else it is the end of the note before
                    waiting.add(key) if held[message.channel] else end(key, now)
        for key in list(sounding):
            end(key, now)
    return notes, tempi


def spelled(notes: Iterable[Note], tempi: Iterable[tuple[int, int]]) -> list[str]:
    """The items of notes and tempi, in order of time; silence before the first note is left out."""
    chords: dict[int, dict[tuple[int, int], Note]] = {}  # by start, by program and pitch: twins are one
    ends: dict[tuple[int, int], int] = {}  # where the next note of that program and pitch begins
    for note in sorted(notes):
        chords.setdefault(note.start, {})[note.program, note.pitch] = note
    if not chords:
        return []
    first, last = min(chords), max(chords)
    for start in reversed(chords):
        for key, note in chords[start].items():
            room = ends.get(key, start + LENGTHS[-1]) - start
            chords[start][key] = replace(note, length=LENGTHS[bisect_right(LENGTHS, min(note.length, room)) - 1])
            ends[key] = start
    changes: dict[int, int] = {}
    for at, bpm in sorted(tempi, key=lambda tempo: tempo[0]):  # of several at one time the last holds
        if at <= last:
            changes[max(at, first)] = bpm
    items, now, said = list[str](), first, {"tempo": 120, "voice": 0, "loud": -1}

    def say(what: str, value: int) -> None:
        if said[what] != value:
            said[what] = value
            items.append(f"{what}{value}")

    for at in sorted(chords.keys() | changes.keys()):
        if at not in chords and changes[at] == said["tempo"]:
            continue
        whole, rest = divmod(at - now, WAITS[-1])
        items += [f"wait{WAITS[-1]}"] * whole + ([f"wait{rest}"] if rest else [])
        now = at
        say("tempo", changes.get(at, said["tempo"]))
        for note in chords.get(at, {}).values():
            if note.program < 128:
                say("voice", note.program)
            say("loud", note.loud)
            items += [f"{'note' if note.program < 128 else 'drum'}{note.pitch}", f"length{note.length}"]
    return items


def understood(items: Iterable[str]) -> tuple[list[Note], list[tuple[int, int]]]:
    """The notes and tempi that items say: the inverse of `spelled`."""
    notes, tempi = list[Note](), list[tuple[int, int]]()
    now, voice, loud = 0, 0, LOUD[-1] * 5 // 8
    items = list(items)
    for item, after in zip(items, [*items[1:], ""]):
        what, value = re.fullmatch(r"([a-z]+)(\d+)", item).groups() if item in KNOWN else ("", "0")  # type: ignore[union-attr]
        number = int(value)
        if what == "wait":
            now += number
        elif what == "voice":
            voice = number
        elif what == "loud":
            loud = number
        elif what == "tempo":
            tempi.append((now, number))
        elif what in ("note", "drum"):
            length = int(after.removeprefix("length")) if after.startswith("length") else GRID // 2
            notes.append(Note(now, 128 if what == "drum" else voice, number, length, loud))
    return notes, tempi


def _track(mido: Any, song: Record) -> Any:
    """A track that plays a song. Each instrument has a channel of its own while there are any."""
    notes, tempi = understood(song.object)
    placed: list[tuple[int, int, Any]] = [  # at one time: tempi, ends, instruments, beginnings
        (at, 0, mido.MetaMessage("set_tempo", tempo=round(6e7 / bpm))) for at, bpm in tempi]
    channels: dict[int, int] = {128: DRUMS}
    playing = [0] * 16
    for note in notes:
        tuned = len(channels) - 1
        channel = channels.setdefault(note.program, [each for each in range(16) if each != DRUMS][tuned % 15])
        if note.program < 128 and playing[channel] != note.program:
            playing[channel] = note.program
            placed.append((note.start, 2, mido.Message("program_change", channel=channel, program=note.program)))
        placed.append((note.start, 3, mido.Message("note_on", channel=channel, note=note.pitch,
                                                   velocity=4 * note.loud + 2)))
        placed.append((note.start + note.length, 1, mido.Message("note_off", channel=channel, note=note.pitch)))
    track, now = mido.MidiTrack(), 0
    if song.name:
        track.append(mido.MetaMessage("track_name", name=song.name.encode("ascii", "replace").decode()))
    for at, _, message in sorted(placed, key=lambda each: each[:2]):
        track.append(message.copy(time=at - now))
        now = at
    return track


# -- Humdrum **kern: spines of notes side by side, a line a moment

STEPS = {"c": 0, "d": 2, "e": 4, "f": 5, "g": 7, "a": 9, "b": 11}


def is_kern(head: bytes) -> bool:
    """Whether a file is Humdrum with a **kern spine, by its beginning."""
    text = head.decode("utf-8", "replace").lstrip("\ufeff")
    return re.match(r"(!.*\n|\s*\n)*\*\*\w+(\t\*\*\w+)*\s*(\n|$)", text) is not None and "**kern" in text


def of_kern(path: Path, data: bytes) -> tuple[list[Note], list[tuple[int, int]]]:
    """The notes of all **kern spines, and (start, beats a minute) of the tempi; repeats are played once, grace notes
    not at all."""
    lines = [(number, line.rstrip("\r").split("\t")) for number, line in
             enumerate(data.decode("utf-8", "replace").removeprefix("\ufeff").split("\n"), 1)
             if line.strip() and line[0] != "!"]
    spines = [cell == "**kern" for cell in lines[0][1]] if lines else []  # which are notes
    notes, tempi, tied = list[Note](), list[tuple[int, int]](), dict[int, Note]()
    ends = [0.0] * len(spines)  # when what sounds in each spine is over
    now = 0.0
    for number, cells in lines[1:]:
        if len(cells) != len(spines):
            raise SegueError(f"{path}, line {number}: {len(cells)} spines where there are {len(spines)}; is a line "
                             "missing, or a tab?")
        if cells[0][:1] == "*":
            tempi += [(round(now), nearest(TEMPI, float(cell[3:]))) for cell in cells
                      if re.fullmatch(r"\*MM\d+(\.\d+)?", cell)]
            spines, ends = _spines(cells, spines, ends)
            continue
        if cells[0][:1] == "=":
            continue
        started = [(at, cell) for at, cell in enumerate(cells) if spines[at] and cell[:1] not in (".", "!", "")]
        now = max([now, *(ends[at] for at, cell in started if "q" not in cell)])
        for at, cell in started:
            longest = 0.0
            for token in cell.split():
                value = re.search(r"(\d+)(?:%(\d+))?(\.*)", token)
                if "q" in token or value is None:
                    continue
                whole = 8.0 * GRID if set(value[1]) == {"0"} else 4.0 * GRID * int(value[2] or 1) / int(value[1])
                length = whole * (2 - 0.5 ** len(value[3]))
                longest = longest or length
                if (pitch := _kern_pitch(token)) is None:
                    continue
                note = Note(round(now), 0, pitch, nearest(LENGTHS, max(length, 1)), 20)
                if ("]" in token or "_" in token) and pitch in tied:
                    begun = tied.pop(pitch)
                    note = replace(begun, length=nearest(LENGTHS, begun.length + length))
                if "[" in token or "_" in token:
                    tied[pitch] = note
                else:
                    notes.append(note)
            ends[at] = now + longest if longest else ends[at]
    return [*notes, *tied.values()], tempi


def _kern_pitch(token: str) -> int | None:
    """The pitch of a note of **kern: c is middle C, cc above it, C below; None of a rest."""
    found = re.search(r"(?<![a-gA-G])(([a-g])\2*|([A-G])\3*)([#-]*)", token)
    if found is None or "r" in token:
        return None
    letters = found[1]
    octave = 4 + len(letters) - 1 if letters.islower() else 4 - len(letters)
    shift = found[4].count("#") - found[4].count("-")
    return min(max(12 * (octave + 1) + STEPS[letters[0].lower()] + shift, 0), 127)


def _spines(cells: Sequence[str], spines: Sequence[bool], ends: Sequence[float]) -> tuple[list[bool], list[float]]:
    """Which spines are notes, and when what sounds in each is over, behind a line that may split, join, end, begin and
    exchange them."""
    kept: list[tuple[bool, float]] = []
    joining = False
    for cell, spine, end in zip(cells, spines, ends):
        joins = cell == "*v"
        if joins and joining:
            kept[-1] = (kept[-1][0] or spine, max(kept[-1][1], end))
        elif cell != "*-":
            kept += [(cell == "**kern" if cell[:2] == "**" else spine, end)] * (2 if cell == "*^" else 1)
            kept += [(False, end)] * (cell == "*+")
        joining = joins
    swapped = [at for at, cell in enumerate(cells) if cell == "*x"]
    if len(swapped) == 2 and max(swapped) < len(kept):
        a, b = swapped
        kept[a], kept[b] = kept[b], kept[a]
    return [spine for spine, _ in kept], [end for _, end in kept]
