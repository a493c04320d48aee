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
        columns = [int(name) - 1 for name in field if name.isdigit()] or [column]
        fields = ", ".join(f"field={place + 1}" for place in columns)
        return Form(f"a sentence a text, a word a line ({fields})", lambda rows: _sentences(rows, columns))
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
    num_first = counted.count(1)
    if len(lines) > num_first > 1 and counted[0] == 1 and all(b in (a + 1, 1) for a, b in zip(counted, counted[1:])):
        return Form("a text from each line numbered 1", _stories) if num_first < len(lines) // 2 else None
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
    start, lines_of_text = 1, list[str]()
    for number, line in lines:
        first, *rest = BETWEEN.split(line)
        lines_of_text.append(first)
        for other in rest:
            if text := "\n".join(lines_of_text).strip():
                yield start, text, ""
            start, lines_of_text = number, [other]
    if text := "\n".join(lines_of_text).strip():
        yield start, text, ""


def _tunes(lines: Numbered) -> Iterator[tuple[int, str, str]]:
    """Tunes in ABC; what stands before the first is left out."""
    start, lines_of_tune = 0, list[str]()
    for number, line in lines:
        if TUNE.fullmatch(line):
            if start:
                yield start, "\n".join(lines_of_tune).strip("\n"), ""
            start, lines_of_tune = number, []
        lines_of_tune.append(line)
    if start:
        yield start, "\n".join(lines_of_tune).strip("\n"), ""


def _stories(lines: Numbered) -> Iterator[tuple[int, str, str]]:
    start, lines_of_story = 1, list[str]()
    for number, line in lines:
        if lines_of_story and (match := NUMBERED.match(line)) and match[1] == "1":
            yield start, "\n".join(lines_of_story).strip(), ""
            start, lines_of_story = number, []
        lines_of_story.append(line)
    if lines_of_story:
        yield start, "\n".join(lines_of_story).strip(), ""


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
    start, block = 1, list[str]()
    for number, line in chain(lines, [(0, "")]):
        if line.strip():
            start = start if block else number
            block.append(line.rstrip())
        elif block:
            if not block[0].startswith("-DOCSTART-"):
                yield start, block
            block = []


def _words_in(lines: list[str]) -> int | None:
    """The number of the column of words in a CoNLL file (a word in each line, blank lines between sentences): the first
    column with many different values. None of other files."""
    blocks = [[line for line in block if line[0] != "#"] for _, block in _blocks(enumerate(lines, 1))]
    rows = [_cells(line) for block in blocks for line in block]
    if len(blocks) < 3 or len(rows) < 3 * len(blocks) or len({*map(len, rows)}) != 1 or len(rows[0]) < 2:
        return None
    vocabularies = [{cell for cell in column if re.search(r"[^\W\d_]", cell)} for column in zip(*rows)]
    largest = max(map(len, vocabularies))
    column = next(i for i, vocabulary in enumerate(vocabularies) if 3 * len(vocabulary) >= largest)
    are_words = 3 * sum(row[column] in vocabularies[column] for row in rows) > len(rows)
    return column if are_words and largest > 10 else None


def _sentences(lines: Numbered, columns: Sequence[int]) -> Iterator[tuple[int, str, str]]:
    """Sentences of a CoNLL file: the words of each, or its text where a comment gives it (CoNLL-U); several wanted
    columns are lines of their own."""
    for number, block in _blocks(lines):
        rows = [cells for line in block if line[0] != "#" and not re.match(r"\d+[-.]\d+\t", line)
                and len(cells := _cells(line)) > max(columns)]
        raw_text = next((line[8:].strip() for line in block if line.startswith("# text =")), "")
        if rows:
            texts = [" ".join(row[place] for row in rows) for place in columns]
            yield number, raw_text if raw_text and list(columns) == [1] else "\n".join(texts), ""
