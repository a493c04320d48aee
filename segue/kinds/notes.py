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
    at = bisect_left(values, value)
    return min(values[max(at - 1, 0) : at + 1] or values[-1:], key=lambda other: abs(other - value))


def encode_notes(notes: Iterable[Note], tempi: Iterable[tuple[int, int]]) -> list[str]:
    """The items of notes and of tempi (start in steps, beats a minute), in order of time. Silence before the first note
    is left out, of notes that start together with the same program and pitch the last is kept, and a note ends where
    the next of its program and pitch starts."""
    chords: dict[int, dict[tuple[int, int], Note]] = {}  # by start, by program and pitch: one note of each
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


def decode_items(items: Iterable[str]) -> tuple[list[Note], list[tuple[int, int]]]:
    """The notes and tempi of items, the inverse of `encode_notes`. Items that mean nothing where they stand are
    ignored; a note without a length lasts half a beat."""
    notes, tempi = list[Note](), list[tuple[int, int]]()
    now, voice, loud = 0, 0, LOUD[-1] * 5 // 8
    items = list(items)
    for item, after in zip(items, [*items[1:], ""]):
        what, value = re.fullmatch(r"([a-z]+)(\d+)", item).groups() if item in ALL_ITEMS else ("", "0")  # type: ignore[union-attr]
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
