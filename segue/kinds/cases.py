"""Logs of one case a line: each sign an activity, or each word."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from segue.errors import SegueError
from segue.files import write_text
from segue.kinds.base import ARFF, HEAD, Kind, Problems, Record, as_utf8, bad
from segue.kinds.frame import DELIMITED
from segue.kinds.packed import bare, opened, twin
from segue.kinds.table import Events

# A sequence of sets as SPMF has it: -1 behind each set, -2 at the end.
SETS = re.compile(rb"(\s*@[^\n]*\n)*\s*\d+ (\d+ |-1 )*-1 -2\s*(\n|$)")
# Lines of numbers below the names that they stand for, as the visits of msnbc.com are kept (UCI).
NUMBERED = re.compile(rb"%[^\n]*\n\s*(?P<names>[^%\d\n]+)\n\s*%[^\n]*\n(?P<cases>(\s*\d[\d ]*(\r?\n|$))+)")


class Cases(Kind):
    """A log of one case a line: each sign an activity, or each word. An object is a list of items (str), the unit is
    the event; it is asked for by name, unless all items are whole numbers. What is not text is a SegueError.

    Where the file's name says "event" and one that says "time" in its place lies beside it, that one holds a number
    for each event (as the data of recurrent marked temporal point processes are kept, Du et al. 2016)."""

    name = "cases"
    unit = "event"
    storage = "items"
    split_by = "name"
    advisor = "neighbours of items"

    def sniff(self, path: Path, head: bytes) -> float:
        """Lines of whole numbers that come again and again, or, in a file that is called a table, lines of few or many
        cells that do; other cases cannot be told from text: ask for them."""
        if b"\0" in head:
            return 0.0
        twin_file = beside(path, "time", "event") or beside(path, "event", "time")
        if twin_file is not None and re.fullmatch(rb"[-+.\deE\s]*", head):
            return 0.92
        lines = head.split(b"\n")
        if len(head) >= HEAD and len(lines) > 1:
            lines.pop()
        if path.suffix.lower() in DELIMITED and not ARFF.match(head):
            cells = [_cells(line.decode("utf-8", "replace")) for line in lines if line.strip()]
            if any(re.search(rb"[^,\s]\s*,\s*,\s*[^,\s]", line) for line in lines):
                return 0.0  # a table with empty cells among others
            distinct = {cell for line in cells for cell in line}
            ragged = len({len(line) for line in cells}) > 2
            return 0.83 if ragged and 4 * len(distinct) <= sum(map(len, cells)) else 0.0
        if SETS.match(head) or NUMBERED.match(head):
            return 0.88
        items = [line.split() for line in lines if line.strip()]
        flat = [item for line in items for item in line]
        if not items or not all(map(bytes.isdigit, flat)) or len(flat) < 2 * len(items) or len(items[0]) < 2:
            return 0.0
        ragged = len({len(line) for line in items}) > 1
        repeats = 2 * len(set(flat)) <= len(flat)
        return 0.83 if repeats or (ragged and _counted([line.decode() for line in lines])) else 0.0

    def read(self, path: Path, problems: Problems | None = None, *, elements: str | None = None,
             timed: bool = True, encoding: str = "utf-8") -> Iterator[Record]:
        """One record a line; empty lines are no cases. elements: "characters", "words" or "cells" between commas (told
        apart, if None, by whether a line of the first thousand holds a blank or a tab; cells in a CSV file). Where the
        first words are whole numbers that count the lines, they name them. timed: where there is a file of times beside
        this one, its numbers are the channels `time` and `gap`, as of events."""
        if elements not in (None, "characters", "words", "cells"):
            raise SegueError(f"elements is 'characters', 'words' or 'cells', not {elements!r}")
        with opened(path) as handle:
            raw = as_utf8(path, handle.read(), encoding, problems)
        lines, names = raw.decode().splitlines(), list[str]()
        if numbered_cases := NUMBERED.match(raw[:HEAD]):
            names = numbered_cases["names"].decode().split()
            lines = ["" if i < raw.count(b"\n", 0, numbered_cases.start("cases")) else line
                     for i, line in enumerate(lines)]
        if elements is None and SETS.match(raw):
            yield from _sets(path, lines, problems)
            return
        if elements is None and bare(path).suffix.lower() in DELIMITED:
            elements = "cells"
        if elements is None:
            elements = "words" if any(len(line.split()) > 1 for line in lines[:1000]) else "characters"
        found = False
        clock = beside(path, "event", "time") if timed else None
        times = _lines_of_numbers(clock, encoding) if clock is not None else None
        named = elements == "words" and times is None and _counted(lines)
        if problems is not None and (named or clock is not None):
            problems.note = "the first word of a line names it" if named else "when=the file of times beside it"
        for number, line in enumerate(lines, 1):
            items = line.split() if elements == "words" else _cells(line) if elements == "cells" else list(line.strip())
            if not items:
                continue
            if names:
                items = [names[int(item) - 1] if 0 < int(item) <= len(names) else item for item in items]
            found, channels = True, {}
            if times is not None:
                event_times = times[number - 1] if number <= len(times) else np.zeros(0)
                if len(event_times) != len(items) or not np.isfinite(event_times).all():
                    bad(problems, path, f"line {number}", None,
                        f"{clock} has not one number for each of its {len(items)} events; mend or remove it")
                    continue
                order = np.argsort(event_times, kind="stable")
                event_times, items = event_times[order], [items[i] for i in order]
                channels = {"time": event_times, "gap": np.diff(event_times, prepend=event_times[0])}
            yield Record(items[named:], channels, items[0] if named else f"{path}:{number}")
        if not found:
            raise SegueError(f"{path}: the file is empty; give a file with one case a line")

    def read_all(self, paths: list[Path], problems: Problems, named: frozenset[Path],
                 **options: Any) -> Iterator[Record]:
        """Files of times belong to those beside them; where some files have none, all are read without."""
        clocks = {clock for path in paths if (clock := beside(path, "event", "time")) is not None}
        files = [path for path in paths if path not in clocks]
        for path in files:
            if (events := beside(path, "time", "event")) is not None:
                raise SegueError(f"{path}: holds the times of {events}; give that file")
        untimed = [path for path in files if beside(path, "event", "time") is None]
        if len(untimed) < len(files) and untimed:
            problems.refuse(untimed[0], "has no file of times beside it, so all files are read without times; read "
                                        "those that have apart")
            options["timed"] = False
        yield from super().read_all(files, problems, named, **options)

    codec = Events.codec
    normalise = Events.normalise

    def write(self, objects: Iterable[Sequence[str | int] | Record], path: str | Path) -> None:
        """One case a line; without blanks between where every item is one sign, with commas where one has a blank."""
        cases = [[str(item) for item in (obj.object if isinstance(obj, Record) else obj)] for obj in objects]
        glue = _glue(item for case in cases for item in case)
        write_text(path, "".join(glue.join(case) + "\n" for case in cases))

    def show(self, obj: Sequence[str | int]) -> str:
        items = [str(item) for item in obj]
        return _glue(items).join(items)


def _sets(path: Path, lines: Sequence[str], problems: Problems | None) -> Iterator[Record]:
    """Sequences of sets, a line each, as SPMF has them; the items of a set one after the other. Lines with @ITEM say
    what items are called."""
    names = dict(line.split("=", 2)[1:] for line in lines if line.startswith("@ITEM=") and line.count("=") > 1)
    if problems is not None:
        problems.note = "sequences of sets (SPMF), the items of a set one after the other"
    for number, line in enumerate(lines, 1):
        items = line.split()
        if not items or line.startswith(("@", "%", "#")):
            continue
        if items[-1] != "-2" or not all(item.lstrip("-").isdigit() for item in items):
            bad(problems, path, f"line {number}", None, "not a sequence of sets of numbers that ends with -2; mend it")
        elif members := [names.get(item, item) for item in items if item not in ("-1", "-2")]:
            yield Record(members, name=f"{path}:{number}")


def beside(path: Path, word: str, replacement: str) -> Path | None:
    """The file next to `path` whose name has `other` in place of `word`, packed or not, or None."""
    if word not in path.name:
        return None
    name = bare(path).name.replace(word, replacement)
    return twin(path, name)


def _lines_of_numbers(path: Path, encoding: str) -> list[np.ndarray]:
    """(n,) float64 of each line of a file."""
    with opened(path) as handle:
        lines = as_utf8(path, handle.read(), encoding).decode().splitlines()
    numbers = []
    for number, line in enumerate(lines, 1):
        try:
            numbers.append(np.array(line.split(), dtype=np.float64))
        except ValueError as error:
            raise SegueError(f"{path}, line {number}: holds more than numbers ({error}); mend it, or read without it "
                             "(timed=False)") from error
    return numbers


def _cells(line: str) -> list[str]:
    """What stands between commas, quoted or not."""
    with suppress(csv.Error):
        return [cell.strip() for cell in next(csv.reader([line]), []) if cell.strip()]
    return [cell.strip() for cell in line.split(",") if cell.strip()]


def _glue(items: Iterable[str]) -> str:
    """What stands between such items on a line."""
    items = list(items)
    return "" if all(len(item) == 1 for item in items) else "," if any(" " in item for item in items) else " "


def _counted(lines: Sequence[str]) -> bool:
    """Whether the first words count the lines, with more behind them."""
    items = [line.split() for line in lines if line.strip()]
    firsts = [line[0] for line in items]
    if len(items) < 3 or min(map(len, items)) < 2 or not firsts[0].isdigit():
        return False
    return firsts == [str(int(firsts[0]) + i) for i in range(len(firsts))]
