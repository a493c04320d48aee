"""Notes, and the items they are encoded as.

The items are those of performance modelling (Oore et al. 2018; Huang et al. 2018), with the length given at each note
in place of an event for its end, as in REMI (Huang & Yang 2020), so that no note is left hanging. Times are in 48ths of
a beat, which hold every usual note value, and at 120 beats a minute are the 10 ms of those papers.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

GRID = 48  # steps in a beat
WAITS = range(1, 2 * GRID + 1)  # steps; longer waits are several items
LENGTHS = [*range(1, 2 * GRID + 1), *range(2 * GRID + 12, 8 * GRID + 1, 12), *range(9 * GRID, 16 * GRID + 1, GRID)]
LOUD = range(32)  # levels of loudness, four MIDI velocities each
TEMPI = sorted({120, *(round(20 * 1.04**step) for step in range(70))})  # beats a minute, 4 % apart
ITEMS = [f"{what}{value}" for what, values in (
    ("note", range(128)), ("length", LENGTHS), ("wait", WAITS), ("loud", LOUD), ("drum", range(128)),
    ("voice", range(128)), ("tempo", TEMPI)) for value in values]
ALL_ITEMS = frozenset(ITEMS)


@dataclass(frozen=True, order=True)
class Note:
    """A note. start, length: in steps. program: of General MIDI, 128 for percussion. loud: one of `LOUD`."""

    start: int
    program: int
    pitch: int
    length: int
    loud: int


def nearest(values: Sequence[int], value: float) -> int:
    """The value nearest to a number. values: sorted."""
    index = bisect_left(values, value)
    return min(values[max(index - 1, 0) : index + 1] or values[-1:], key=lambda other: abs(other - value))


def encode_notes(notes: Iterable[Note], tempi: Iterable[tuple[int, int]]) -> list[str]:
    """The items of notes and of tempi (start in steps, beats a minute), in order of time. Silence before the first note
    is left out, of notes that start together with the same program and pitch the last is kept, and a note ends where
    the next of its program and pitch starts."""
    chords: dict[int, dict[tuple[int, int], Note]] = {}  # by start, by program and pitch: one note of each
    next_start: dict[tuple[int, int], int] = {}  # where the next note of that program and pitch begins
    for note in sorted(notes):
        chords.setdefault(note.start, {})[note.program, note.pitch] = note
    if not chords:
        return []
    first, last = min(chords), max(chords)
    for start in reversed(chords):
        for key, note in chords[start].items():
            room = next_start.get(key, start + LENGTHS[-1]) - start
            chords[start][key] = replace(note, length=LENGTHS[bisect_right(LENGTHS, min(note.length, room)) - 1])
            next_start[key] = start
    changes: dict[int, int] = {}
    for time, bpm in sorted(tempi, key=lambda tempo: tempo[0]):  # of several at one time the last holds
        if time <= last:
            changes[max(time, first)] = bpm
    items, now, current = list[str](), first, {"tempo": 120, "voice": 0, "loud": -1}

    def say(field: str, value: int) -> None:
        if current[field] != value:
            current[field] = value
            items.append(f"{field}{value}")

    for time in sorted(chords.keys() | changes.keys()):
        if time not in chords and changes[time] == current["tempo"]:
            continue
        full_waits, remainder = divmod(time - now, WAITS[-1])
        items += [f"wait{WAITS[-1]}"] * full_waits + ([f"wait{remainder}"] if remainder else [])
        now = time
        say("tempo", changes.get(time, current["tempo"]))
        for note in chords.get(time, {}).values():
            if note.program < 128:
                say("voice", note.program)
            say("loud", note.loud)
            items += [f"{'note' if note.program < 128 else 'drum'}{note.pitch}", f"length{note.length}"]
    return items


def decode_items(items: Iterable[str]) -> tuple[list[Note], list[tuple[int, int]]]:
    """The notes and tempi of items, the inverse of `encode_notes`. Items that mean nothing where they stand are
    ignored; a note without a length lasts half a beat."""
    notes, tempi = list[Note](), list[tuple[int, int]]()
    now, voice, loud = 0, 0, LOUD[-1] * 5 // 8
    items = list(items)
    for item, following in zip(items, [*items[1:], ""]):
        field, value = re.fullmatch(r"([a-z]+)(\d+)", item).groups() if item in ALL_ITEMS else ("", "0")  # type: ignore[union-attr]
        number = int(value)
        if field == "wait":
            now += number
        elif field == "voice":
            voice = number
        elif field == "loud":
            loud = number
        elif field == "tempo":
            tempi.append((now, number))
        elif field in ("note", "drum"):
            length = int(following.removeprefix("length")) if following.startswith("length") else GRID // 2
            notes.append(Note(now, 128 if field == "drum" else voice, number, length, loud))
    return notes, tempi
