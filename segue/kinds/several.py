"""Plain texts that hold many: lines that say their class, sentences of a word a line, numbered lines, tunes in ABC,
texts with a mark between them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, takewhile

from segue.kinds.base import HEAD

LABEL = "__label__"  # what fastText puts in front of a class
FIRST = re.compile(r"([A-Z]{2,}:\w+|[-+]?\d)[ \t]+(?=\S)")  # DESC:manner How did it ...
WORDS = re.compile(r"[^\W\d_]{2,}")
# 84-121123-0000 HE SAID ...
KEY = re.compile(r"(?=\S*[A-Za-z_-])(?=\S*\d)(?!\d{4}-\d\d?-\d\d?[ \t])[\w-]{4,}[ \t]+(?=\S)")
LAST = re.compile(r"(.*\S)@([A-Za-z]\w*)\s*$")  # It rose by a third .@positive
NUMBERED = re.compile(r"(\d+)[ \t]+(?=\S)")
BETWEEN = re.compile(r"\s*<\|endoftext\|>\s*")
ENDED = re.compile(r"<\|endoftext\|>[ \t]*\r?$", re.MULTILINE)  # and no mention of it in a sentence
TURN = "__eou__"  # behind each turn of a dialogue, of which a line holds all
BEHIND = "a line a text; not read: the class in front of it"
LEAST = 20  # lines by which a file is told
TUNE = re.compile(r"X:\s*\d+\s*")  # the first line of each tune in ABC
SELFIES = re.compile(r"(?:\[[^\[\]\s]{1,20}\]|\.){2,}")  # a molecule: [C][=C][Branch1][Ring1]
Numbered = Iterable[tuple[int, str]]


@dataclass(frozen=True)
class Form:
    """How a plain file is split into texts. note: a description for users. cut: turns numbered lines into (number of
    the first line, text, class or "")."""

    note: str
    cut: Callable[[Numbered], Iterator[tuple[int, str, str]]]


def form_of(head: str, field: Sequence[str] = (), table: bool = False) -> Form | None:
    """How a file is split into texts, by its beginning; None of a file that is one text. field: the numbers of the
    columns to read from CoNLL files. table: by its name the file is a table, so it can only be a CoNLL file."""
    if not table and ENDED.search(head):
        return Form("a text up to each <|endoftext|>", _between)
    lines = head.split("\n")
    lines = [line.rstrip() for line in (lines[:-1] if len(head.encode()) >= HEAD else lines)]
    if (column := _words_in(lines)) is not None:
        wanted = [int(name) - 1 for name in field if name.isdigit()] or [column]
        said = ", ".join(f"field={place + 1}" for place in wanted)
        return Form(f"a sentence a text, a word a line ({said})", lambda rows: _sentences(rows, wanted))
    lines = [line for line in lines if line]
    if table:
        return None
    if sum(TUNE.fullmatch(line) is not None for line in lines) > 1 and any(line.startswith("K:") for line in lines):
        return Form("a tune a text, from each line X: on", _tunes)
    if len(lines) > 2 and all(map(SELFIES.fullmatch, lines)):
        return Form("a line a text, a molecule in SELFIES", _lines)
    if lines and lines[0].startswith(LABEL):
        return Form(BEHIND, _behind)
    if len(lines) < LEAST or field:
        return None
    counted = [int(found[1]) if (found := NUMBERED.match(line)) else 0 for line in lines]
    again = counted.count(1)
    if len(lines) > again > 1 and counted[0] == 1 and all(b in (a + 1, 1) for a, b in zip(counted, counted[1:])):
        return Form("a text from each line numbered 1", _stories) if again < len(lines) // 2 else None
    if sum(TURN in line for line in lines) > 0.9 * len(lines):
        return Form(f"a line a text, {TURN} behind each turn", _lines)
    first = [found[1] for line in lines if (found := FIRST.match(line))]  # one class alone where they stand in order
    if len(first) == len(lines) and (_few(first) or len({*first}) == 1) and \
            5 * sum(len(WORDS.findall(line)) > 2 for line in lines) > 4 * len(lines):
        return Form(BEHIND, _behind)
    keys = [found[0] for line in lines if (found := KEY.match(line))]
    if len({*keys}) == len(lines) and len({re.sub(r"\d", "0", key) for key in keys}) < 4:
        return Form("a line a text; not read: the name in front of it", _named)
    last = [found[2] for line in lines if (found := LAST.match(line))]
    if len(last) == len(lines) and _few(last):
        return Form("a line a text; not read: the class behind its last @", _before)
    return None


def _few(labels: Sequence[str]) -> bool:
    return 1 < len(set(labels)) <= max(2, len(labels) // 3)


def _between(lines: Numbered) -> Iterator[tuple[int, str, str]]:
    begin, part = 1, list[str]()
    for number, line in lines:
        first, *others = BETWEEN.split(line)
        part.append(first)
        for other in others:
            if text := "\n".join(part).strip():
                yield begin, text, ""
            begin, part = number, [other]
    if text := "\n".join(part).strip():
        yield begin, text, ""


def _tunes(lines: Numbered) -> Iterator[tuple[int, str, str]]:
    """Tunes in ABC; what stands before the first is left out."""
    begin, part = 0, list[str]()
    for number, line in lines:
        if TUNE.fullmatch(line):
            if begin:
                yield begin, "\n".join(part).strip("\n"), ""
            begin, part = number, []
        part.append(line)
    if begin:
        yield begin, "\n".join(part).strip("\n"), ""


def _stories(lines: Numbered) -> Iterator[tuple[int, str, str]]:
    begin, part = 1, list[str]()
    for number, line in lines:
        if part and (found := NUMBERED.match(line)) and found[1] == "1":
            yield begin, "\n".join(part).strip(), ""
            begin, part = number, []
        part.append(line)
    if part:
        yield begin, "\n".join(part).strip(), ""


def _lines(lines: Numbered) -> Iterator[tuple[int, str, str]]:
    yield from ((number, line.strip(), "") for number, line in lines if line.strip())


def _behind(lines: Numbered) -> Iterator[tuple[int, str, str]]:
    """Texts behind their class, of several classes the first."""
    for number, line in lines:
        labels = list(takewhile(lambda word: word.startswith(LABEL), line.split())) or line.split()[:1]
        if text := line.strip()[sum(len(label) + 1 for label in labels) :].strip():
            yield number, text, labels[0].removeprefix(LABEL)


def _named(lines: Numbered) -> Iterator[tuple[int, str, str]]:
    """Texts behind a name, as in the transcripts of speech data sets (LibriSpeech, AISHELL, Kaldi)."""
    yield from ((number, text[-1], "") for number, line in lines if len(text := line.strip().split(None, 1)) > 1)


def _before(lines: Numbered) -> Iterator[tuple[int, str, str]]:
    yield from ((number, found[1], found[2]) for number, line in lines if (found := LAST.match(line)))


def _cells(line: str) -> list[str]:
    return line.split("\t") if "\t" in line else line.split()


def _blocks(lines: Numbered) -> Iterator[tuple[int, list[str]]]:
    """Blocks of lines between blank lines, each with the number of its first line; without -DOCSTART- blocks."""
    begin, block = 1, list[str]()
    for number, line in chain(lines, [(0, "")]):
        if line.strip():
            begin = begin if block else number
            block.append(line.rstrip())
        elif block:
            if not block[0].startswith("-DOCSTART-"):
                yield begin, block
            block = []


def _words_in(lines: list[str]) -> int | None:
    """The number of the column of words in a CoNLL file (a word in each line, blank lines between sentences): the first
    column with many different values. None of other files."""
    blocks = [[line for line in block if line[0] != "#"] for _, block in _blocks(enumerate(lines, 1))]
    rows = [_cells(line) for block in blocks for line in block]
    if len(blocks) < 3 or len(rows) < 3 * len(blocks) or len({*map(len, rows)}) != 1 or len(rows[0]) < 2:
        return None
    said = [{cell for cell in column if re.search(r"[^\W\d_]", cell)} for column in zip(*rows)]
    most = max(map(len, said))
    worded = next(place for place, words in enumerate(said) if 3 * len(words) >= most)
    return worded if 3 * sum(row[worded] in said[worded] for row in rows) > len(rows) and most > 10 else None


def _sentences(lines: Numbered, wanted: Sequence[int]) -> Iterator[tuple[int, str, str]]:
    """Sentences of a CoNLL file: the words of each, or its text where a comment gives it (CoNLL-U); several wanted
    columns are lines of their own."""
    for number, block in _blocks(lines):
        rows = [cells for line in block if line[0] != "#" and not re.match(r"\d+[-.]\d+\t", line)
                and len(cells := _cells(line)) > max(wanted)]
        told = next((line[8:].strip() for line in block if line.startswith("# text =")), "")
        if rows:
            said = [" ".join(row[place] for row in rows) for place in wanted]
            yield number, told if told and list(wanted) == [1] else "\n".join(said), ""
