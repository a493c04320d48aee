"""Music as bars, positions, and what happens there: REMI (Huang & Yang 2020, arXiv 2002.00212), with parts and themes
as in Theme Transformer (2021, arXiv 2111.04093). A grammar says what may follow, so that every answer can be played.

A piece is `bar` and what stands in it: `at0` to `at15`, sixteenths of a bar of four beats, each with `tempo` and notes:
a part's pitch (`melody60`), its `length` in sixteenths and its loudness (`loud`). `theme` and `theme-end` stand where
bars begin.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from segue.errors import SegueError
from segue.kinds.codecs import ItemCodec
from segue.kinds.notes import GRID, LOUD, Note

STEP = GRID // 4  # of a sixteenth
PLACES = 16  # of a bar
LENGTHS = range(1, 65)  # sixteenths
TEMPI = range(17, 195, 3)
THEME, THEME_END, BAR = "theme", "theme-end", "bar"


class Remi:
    """Encodes pieces with these parts as items. items: all possible ones; codec: gives each an id."""

    def __init__(self, parts: Sequence[str] = ("melody", "piano")) -> None:
        if not parts or not all(re.fullmatch("[a-z]+", part) and part not in ("at", "bar", "loud", "length", "tempo",
                                                                              "theme") for part in parts):
            raise SegueError(f"parts {list(parts)!r} need names of small letters, others than those of items")
        self.parts = list(parts)
        self.items = [BAR, THEME, THEME_END, *(f"at{n}" for n in range(PLACES)), *(f"tempo{n}" for n in TEMPI),
                      *(f"length{n}" for n in LENGTHS), *(f"loud{n}" for n in LOUD),
                      *(f"{part}{n}" for part in parts for n in range(128))]
        self.codec = ItemCodec(self.items)
        self._sort = {item: re.sub(r"\d+$", "", item) for item in self.items}

    def spell(self, notes: Mapping[str, Iterable[Note]], tempi: Iterable[tuple[int, int]] = (),
              themes: Iterable[tuple[int, int]] = ()) -> list[str]:
        """The items of notes by part, in time rounded to sixteenths from the file's beginning. themes: the bars at
        which one begins and at which it is over."""
        events: dict[int, list[str]] = {}
        for step, bpm in sorted(tempi, key=lambda tempo: tempo[0]):
            nearest = TEMPI[max(0, min(len(TEMPI) - 1, round((bpm - TEMPI[0]) / TEMPI.step)))]
            events[round(step / STEP)] = [f"tempo{nearest}"]  # of several in one sixteenth the last
        for part in self.parts:
            distinct: dict[tuple[int, int], Note] = {}
            for note in sorted(notes.get(part, ())):
                distinct[round(note.start / STEP), note.pitch] = note  # twins are one
            for (step, pitch), note in sorted(distinct.items()):
                length = max(LENGTHS[0], min(LENGTHS[-1], round(note.length / STEP)))
                events.setdefault(step, []).extend([f"{part}{pitch}", f"length{length}", f"loud{note.loud}"])
        theme_starts, theme_ends = (set(each) for each in zip(*themes)) if (themes := list(themes)) else (set(), set())
        last = max([step // PLACES for step in events] + [end - 1 for end in theme_ends], default=-1)
        items = list[str]()
        for number in range(last + 1):
            items += [THEME_END] * (number in theme_ends) + [THEME] * (number in theme_starts) + [BAR]
            for place in range(PLACES):
                if here := events.get(number * PLACES + place):
                    items += [f"at{place}", *here]
        return items + [THEME_END] * (last + 1 in theme_ends)

    def understand(self, items: Iterable[str]) -> tuple[dict[str, list[Note]], list[tuple[int, int]],
                                                         list[tuple[int, int]]]:
        """Notes by part, tempi and themes: the inverse of `spell`, up to the rounding. What breaks the grammar is a
        SegueError that says where."""
        notes: dict[str, list[Note]] = {part: [] for part in self.parts}
        tempi, themes, theme_start, bar, now = list[tuple[int, int]](), list[tuple[int, int]](), -1, -1, 0
        grammar, pitch, part, length = self.grammar(), 0, "", 0
        for number, item in enumerate(items, 1):
            if item not in self._sort or not grammar.may(item):
                raise SegueError(f"item {number}, {item!r:.40}, cannot stand there: what may follow is "
                                 f"{', '.join(sorted(grammar.sorts()))}")
            grammar.say(item)
            name, value = self._sort[item], int(re.sub(r"\D", "", item) or 0)
            if name == BAR:
                bar += 1
            elif name == THEME:
                theme_start = bar + 1
            elif name == THEME_END:
                themes.append((theme_start, bar + 1))
            elif name == "at":
                now = (bar * PLACES + value) * STEP
            elif name == "tempo":
                tempi.append((now, value))
            elif name in notes:
                part, pitch = name, value
            elif name == "length":
                length = value * STEP
            else:
                notes[part].append(Note(now, self.parts.index(part), pitch, length, value))
        return notes, tempi, themes

    def grammar(self) -> Grammar:
        """The grammar before the first item."""
        return Grammar(self)

    def legal(self, prompt: Sequence[int] = ()) -> Callable[[list[int]], list[int]]:
        """What may follow behind a prompt of the codec's ids, as `segue.decoding.constrain.LegalNext` asks; the end
        only where a bar may begin and no theme is open."""
        def legal_next(generated: list[int]) -> list[int]:
            grammar = self.grammar()
            for item in self.codec.decode([*prompt, *generated]):
                grammar.say(str(item))
            may_end = BAR in grammar.sorts() and grammar.last != THEME and not grammar.inside
            end_tokens = [self.codec.eos] if self.codec.eos is not None and may_end else []
            return [index for index, item in enumerate(self.items) if grammar.may(item)] + end_tokens

        return legal_next


class Grammar:
    """What may follow the items so far: a bar, then places in order; at a place a tempo before notes, each a part's
    pitch, a length and a loudness; a theme begins and ends where a bar does, and not twice."""

    def __init__(self, remi: Remi) -> None:
        self.remi, self.last, self.place, self.inside = remi, "", -1, False

    def sorts(self) -> set[str]:
        """The kinds of items that may come next: their names without numbers."""
        parts, edges = set(self.remi.parts), {BAR, THEME_END if self.inside else THEME}
        if self.last == "":
            return {BAR, THEME}
        if self.last == THEME:
            return {BAR}
        if self.last == THEME_END:
            return {BAR, THEME}
        if self.last == BAR:
            return edges | {"at"}
        if self.last == "at":
            return parts | {"tempo"}
        if self.last == "tempo":
            return edges | {"at"} | parts
        return {"length"} if self.last in parts else {"loud"} if self.last == "length" else edges | {"at"} | parts

    def may(self, item: str) -> bool:
        """Whether an item may come next."""
        name = self.remi._sort[item]
        return name in self.sorts() and (name != "at" or int(item[2:]) > self.place)

    def say(self, item: str) -> None:
        """Advance by an item."""
        self.last = self.remi._sort[item]
        if self.last == "at":
            self.place = int(item[2:])
        elif self.last == BAR:
            self.place = -1
        elif self.last in (THEME, THEME_END):
            self.inside = self.last == THEME
