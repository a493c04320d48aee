"""Scores in MusicXML and Humdrum **kern, as notes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

from segue.errors import SegueError
from segue.kinds.notes import GRID, LENGTHS, TEMPI, Note, nearest

NAMES = ["C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B"]
STEPS = {"c": 0, "d": 2, "e": 4, "f": 5, "g": 7, "a": 9, "b": 11}


def is_musicxml(head: bytes) -> bool:
    """Whether a file is MusicXML, by its beginning."""
    return head.lstrip()[:1] == b"<" and b"<score-partwise" in head[:4096]


def read_musicxml(path: Path, data: bytes) -> tuple[list[Note], list[tuple[int, int]]]:
    """The notes of a score in MusicXML, and its tempi as (start, beats a minute). Repeats are played once, grace notes
    are left out."""
    from xml.etree import ElementTree

    try:
        score = ElementTree.fromstring(data)
        programs = {part.get("id"): min(max(int(part.findtext(".//midi-program") or 1), 1), 128) - 1
                    for part in score.iter("score-part")}
        struck = {instrument.get("id"): int(key) - 1 for instrument in score.iter("midi-instrument")
                  if (key := instrument.findtext("midi-unpitched"))}
        drums = {part.get("id") for part in score.iter("score-part") if part.findtext(".//midi-channel") == "10"}
        notes, tempi = list[Note](), list[tuple[int, int]]()
        parts = {part: list(_placed(part)) for part in score.iter("part")}
        starts = _measure_starts(parts.values())
        for part, elements in parts.items():
            program = 128 if part.get("id") in drums else programs.get(part.get("id"), 0)
            shift, tied = 0, dict[int, Note]()
            for number, element, place, length in elements:
                onset = starts[number] + place
                tempi += [(round(onset), nearest(TEMPI, float(sound.get("tempo", 0)))) for sound in
                          element.iter("sound") if sound.get("tempo")]
                if (moved := element.find("transpose")) is not None:
                    shift = int(moved.findtext("chromatic") or 0) + 12 * int(moved.findtext("octave-change") or 0)
                pitch = _sounding_pitch(element, shift, struck) if element.tag == "note" else None
                if pitch is None or element.find("grace") is not None or element.find("cue") is not None:
                    continue
                steps = nearest(LENGTHS, max(length, 1))
                ties = {tie.get("type") for tie in element.iter("tie")}
                note = Note(round(onset), program, pitch, steps, 20)
                if "stop" in ties and pitch in tied:
                    first_part = tied.pop(pitch)
                    note = replace(first_part, length=nearest(LENGTHS, first_part.length + length))
                if "start" in ties:
                    tied[pitch] = note
                else:
                    notes.append(note)
            notes += tied.values()
    except (ElementTree.ParseError, ValueError, OverflowError, ZeroDivisionError) as error:
        raise SegueError(f"{path}: no MusicXML that can be read ({error}); save it again") from error
    return notes, tempi


def _placed(part: Any) -> Iterator[tuple[int, Any, float, float]]:
    """Each element of a part: the number of its measure, where in it the element begins, and its length, in steps."""
    beat = 1.0
    for number, measure in enumerate(part.iter("measure")):
        now = onset = 0.0
        for element in measure:
            beat = float(element.findtext("divisions") or beat)
            length = float(element.findtext("duration") or 0) / beat * GRID
            if element.tag == "backup":
                now -= length
                continue
            onset = onset if element.find("chord") is not None else now
            yield number, element, onset, length
            if element.tag == "forward" or (element.tag == "note" and element.find("grace") is None):
                now = max(now, onset + length)


def _measure_starts(parts: Iterable[Sequence[tuple[int, Any, float, float]]]) -> list[float]:
    """Where each measure begins, in steps. A measure is as long as its longest voice, or, where parts do not agree, as
    it is in most of them, and then as most measures are, so that all stay in time."""
    lengths: list[list[float]] = []
    for elements in parts:
        ends: dict[int, float] = {}
        for number, _, place, length in elements:
            ends[number] = max(ends.get(number, 0.0), place + length)
        lengths += [[] for _ in range(max(ends, default=-1) + 1 - len(lengths))]
        for number, end in ends.items():
            lengths[number] += [round(end, 3)] if end > 0 else []
    common = Counter(chain.from_iterable(lengths))
    return list(accumulate((max(each, key=lambda length: (each.count(length), common[length])) if each else 0.0
                            for each in lengths), initial=0.0))


def _sounding_pitch(note: Any, shift: int, struck: Mapping[str | None, int]) -> int | None:
    """The pitch of a note of MusicXML, transposed by `shift` semitones; of percussion, the key of its instrument in
    `struck`, or its place on the staff; None for a rest."""
    instrument = note.find("instrument")
    if note.find("unpitched") is not None and instrument is not None and instrument.get("id") in struck:
        return min(max(struck[instrument.get("id")], 0), 127)
    for tag, step in (("pitch", "step"), ("unpitched", "display-step")):
        if (place := note.find(tag)) is not None and place.findtext(step):
            octave = int(place.findtext(step.replace("step", "octave")) or 4)
            value = NAMES.index(place.findtext(step)) + 12 * (octave + 1) + round(float(place.findtext("alter") or 0))
            return min(max(value + (shift if tag == "pitch" else 0), 0), 127)
    return None


def is_kern(head: bytes) -> bool:
    """Whether a file is Humdrum with a **kern spine, by its beginning."""
    text = head.decode("utf-8", "replace").lstrip("\ufeff")
    return re.match(r"(!.*\n|\s*\n)*\*\*\w+(\t\*\*\w+)*\s*(\n|$)", text) is not None and "**kern" in text


def read_kern(path: Path, data: bytes) -> tuple[list[Note], list[tuple[int, int]]]:
    """The notes of all **kern spines, and the tempi as (start, beats a minute). Repeats are played once, grace notes
    are left out."""
    lines = [(number, line.rstrip("\r").split("\t")) for number, line in
             enumerate(data.decode("utf-8", "replace").removeprefix("\ufeff").split("\n"), 1)
             if line.strip() and line[0] != "!"]
    spines = [cell == "**kern" for cell in lines[0][1]] if lines else []  # whether each spine holds notes
    notes, tempi, tied = list[Note](), list[tuple[int, int]](), dict[int, Note]()
    end_times = [0.0] * len(spines)  # when the notes of each spine end
    now = 0.0
    for number, cells in lines[1:]:
        if len(cells) != len(spines):
            raise SegueError(f"{path}, line {number}: {len(cells)} spines where there are {len(spines)}; is a line "
                             "missing, or a tab?")
        if cells[0][:1] == "*":
            tempi += [(round(now), nearest(TEMPI, float(cell[3:]))) for cell in cells
                      if re.fullmatch(r"\*MM\d+(\.\d+)?", cell)]
            spines, end_times = _spines(cells, spines, end_times)
            continue
        if cells[0][:1] == "=":
            continue
        started = [(column, cell) for column, cell in enumerate(cells)
                   if spines[column] and cell[:1] not in (".", "!", "")]
        now = max([now, *(end_times[column] for column, cell in started if "q" not in cell)])
        for column, cell in started:
            longest = 0.0
            for token in cell.split():
                value = re.search(r"(\d+)(?:%(\d+))?(\.*)", token)
                if "q" in token or value is None:
                    continue
                plain = 4.0 * GRID * int(value[2] or 1) / int(value[1]) if value[1].strip("0") else \
                    4.0 * GRID * 2 ** len(value[1])  # 0 is a breve, 00 a longa
                length = plain * (2 - 0.5 ** len(value[3]))
                longest = longest or length
                if (pitch := _kern_pitch(token)) is None:
                    continue
                note = Note(round(now), 0, pitch, nearest(LENGTHS, max(length, 1)), 20)
                if ("]" in token or "_" in token) and pitch in tied:
                    first_part = tied.pop(pitch)
                    note = replace(first_part, length=nearest(LENGTHS, first_part.length + length))
                if "[" in token or "_" in token:
                    tied[pitch] = note
                else:
                    notes.append(note)
            end_times[column] = now + longest if longest else end_times[column]
    return [*notes, *tied.values()], tempi


def _kern_pitch(token: str) -> int | None:
    """The pitch of a note of **kern: c is middle C, cc above it, C below; None for a rest."""
    match = re.search(r"(?<![a-gA-G])(([a-g])\2*|([A-G])\3*)([#-]*)", token)
    if match is None or "r" in token:
        return None
    letters = match[1]
    octave = 4 + len(letters) - 1 if letters.islower() else 4 - len(letters)
    shift = match[4].count("#") - match[4].count("-")
    return min(max(12 * (octave + 1) + STEPS[letters[0].lower()] + shift, 0), 127)


def _spines(cells: Sequence[str], spines: Sequence[bool], end_times: Sequence[float]) -> tuple[list[bool], list[float]]:
    """Which spines hold notes, and when the notes of each end, after a line of interpretations, which may split, join,
    end, add and exchange spines."""
    kept: list[tuple[bool, float]] = []
    joining = False
    for cell, spine, end in zip(cells, spines, end_times):
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
