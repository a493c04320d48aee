"""Music: MIDI files, MusicXML, Humdrum and piano rolls as sequences of notes, lengths and waits, and back as MIDI
(extra `music`: mido)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from segue.errors import SegueError, require
from segue.files import atomic_write
from segue.kinds.base import Dataset, Kind, Problems, Record, bad, head_of, split_items
from segue.kinds.codecs import Codec, ItemCodec
from segue.kinds.frame import is_array
from segue.kinds.midi import CSV, make_track, open_midi, steps_per_tick, track_notes
from segue.kinds.notes import ALL_ITEMS, GRID, ITEMS, Note, decode_items, encode_notes
from segue.kinds.packed import opened
from segue.kinds.piano_rolls import VOICE_TABLE, array_rolls, is_array_roll, is_json_roll, roll_notes, text_rolls
from segue.kinds.scores import NAMES, is_kern, is_musicxml, read_kern, read_musicxml


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
            return 0.995 if is_array_roll(head) else 0.0
        roll = is_json_roll(head) or VOICE_TABLE.match(head)
        score = is_musicxml(head) or is_kern(head) or CSV.match(head)
        return 0.97 if head.startswith(b"MThd") or boxed or score or roll else 0.0

    def read(self, path: Path, problems: Problems | None = None, *, pedal: bool = True,
             step: float = 0.25) -> Iterator[Record]:
        """One record for each file or piece. pedal: notes last as long as the sustain pedal holds them. step: the
        length of a step of a piano roll in beats. Silence at the beginning is left out; a pitch that starts again while
        it sounds ends the note before."""
        songs, found = list(self._songs(path, pedal, step)), False
        for name, notes, tempi in songs:
            if items := encode_notes(notes, tempi):
                found = True
                yield Record(items, name=f"{path}:{name}" if len(songs) > 1 else str(path))
            elif len(songs) > 1:
                bad(problems, path, name, None, "there is no note in it; remove it")
        if not found:
            raise SegueError(f"{path}: there is no note in this file")

    def _songs(self, path: Path, pedal: bool, step: float) -> Iterator[tuple[str, list[Note], list[tuple[int, int]]]]:
        """The name, the notes and the tempi of each piece in a file."""
        head = head_of(path)
        if is_musicxml(head) or is_kern(head) or is_json_roll(head) or is_array(head) or VOICE_TABLE.match(head):
            if not 1 / GRID <= step <= 4:
                raise SegueError(f"a step lasts 1/{GRID} to 4 beats, not {step}")
            with opened(path) as handle:
                data = handle.read()
            if is_musicxml(head) or is_kern(head):
                yield "", *(read_musicxml if is_musicxml(head) else read_kern)(path, data)
            else:
                yield from ((name, roll_notes(pitches, round(step * GRID)), []) for name, pitches in
                           (array_rolls if is_array(head) else text_rolls)(path, data))
            return
        file = open_midi(require("mido", "music"), path)
        songs = [[track] for track in file.tracks] if file.type == 2 else [file.tracks]
        for number, tracks in enumerate(songs, 1):
            yield str(number), *track_notes(tracks, steps_per_tick(file), pedal)

    def codec(self, data: Dataset) -> Codec:
        """One token for each possible item, so that a new piece has no unknown ones."""
        return ItemCodec(ITEMS)

    def write(self, objects: Iterable[Sequence[str] | Record], path: str | Path) -> None:
        """A MIDI file; several objects are independent patterns of one file (format 2). Items that are no music where
        they stand (a length without a note) are left out, a note without a length lasts half a beat."""
        mido = require("mido", "music")
        songs = [obj if isinstance(obj, Record) else Record(list(obj)) for obj in objects]
        file = mido.MidiFile(type=0 if len(songs) == 1 else 2, ticks_per_beat=GRID)
        for song in songs:
            file.tracks.append(make_track(mido, song))
        with atomic_write(path) as temporary, open(temporary, "wb") as handle:
            file.save(file=handle)

    def show(self, obj: Sequence[str]) -> str:
        """A piano roll of the first 96 quarters of a beat: a line for each pitch from the highest, # where a note
        begins, = where it lasts."""
        notes = [note for note in decode_items(obj)[0] if note.start < 96 * GRID // 4]
        pitches = sorted({(note.program < 128, note.pitch) for note in notes}, reverse=True)
        lines = []
        for tuned, pitch in pitches:
            row = [" "] * 96
            for note in notes:
                if (note.program < 128, note.pitch) == (tuned, pitch):
                    first, last = (4 * step // GRID for step in (note.start, note.start + note.length - 1))
                    for place in range(first, min(last, 95) + 1):
                        row[place] = "=" if place > first or row[place] == "#" else "#"
                    row[first] = "#"
            label = f"{NAMES[pitch % 12]}{pitch // 12 - 1}" if tuned else f"drum{pitch}"
            lines.append(f"{label:>7} {''.join(row).rstrip()}")
        return "\n".join(lines)

    def normalise(self, obj: Any, known: Collection[str] = ()) -> list[str]:
        """Items, or a text of them with blanks, commas or arrows between; one that is none is a SegueError."""
        items = split_items(obj)
        for number, item in enumerate(items, 1):
            if item not in ALL_ITEMS:
                raise SegueError(f"item {number}, {item!r:.40}, is no sign of music: write note0 to note127 (drum for "
                                 "percussion) with length1 to length768 behind, wait1 to wait96, loud0 to loud31, "
                                 "voice0 to voice127, tempo20 to tempo300, or give a MIDI file")
        return items
