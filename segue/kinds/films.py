"""Dialogues of films as the Cornell Movie-Dialogs Corpus keeps them (Danescu-Niculescu-Mizil & Lee 2011): a line of a
film a line, +++$+++ between its cells, and in a file beside it which lines are a dialogue."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from segue.kinds.packed import is_there, opened

BETWEEN, LINES = " +++$+++ ", "movie_lines.txt"
OF_LINES = re.compile(r"movie_(conversations|\w+_metadata)\.txt|raw_script_urls\.txt")  # what lies beside the lines
NAME = re.compile(r"L\d+")


def lines_of(path: Path) -> Path | None:
    """The file of lines to which another of the corpus belongs."""
    lines = path.with_name(LINES)
    return lines if OF_LINES.fullmatch(path.name) and is_there(lines) else None


def are_lines(head: str) -> bool:
    """Whether a file holds lines of films: name, speaker's number, film's, speaker, words."""
    cells = head.partition("\n")[0].split(BETWEEN)
    return len(cells) == 5 and NAME.fullmatch(cells[0]) is not None


def dialogues(path: Path, lines: Iterable[tuple[int, str]]) -> Iterator[tuple[str, str]]:
    """Name and text of each dialogue, a turn a line behind who says it; each line by itself where no file beside this
    one says which are one."""
    turn_of = {}
    for _, line in lines:
        cells = line.split(BETWEEN.rstrip())
        if len(cells) == 5 and cells[4].strip():
            turn_of[cells[0].strip()] = f"{cells[3].strip()}: {cells[4].strip()}"
    conversations = path.with_name("movie_conversations.txt")
    if not is_there(conversations):
        yield from turn_of.items()
        return
    with opened(conversations) as handle:
        for row in handle:
            if names := [each for each in NAME.findall(row.decode("ascii", "replace")) if each in turn_of]:
                yield names[0], "\n".join(turn_of[each] for each in names)
