"""Books of Project Gutenberg as plain text: the book itself, without the licence around it."""

from __future__ import annotations

import re
from collections.abc import Iterator

from segue.kinds.several import Form, Numbered

# The lines around a book, now and in the early years of the project.
BEGIN = re.compile(r"\*\*\* ?START OF (?:THE|THIS) PROJECT GUTENBERG.*|\*END\*?\s*THE SMALL PRINT!.*", re.IGNORECASE)
END = re.compile(r"\*\*\* ?END OF (?:THE|THIS) PROJECT GUTENBERG.*|End of (?:the |this )?Project Gutenberg.*",
                 re.IGNORECASE)


def form_of(head: str) -> Form | None:
    """How the beginning of a file of text is to be read as a book of Project Gutenberg; None where it is none."""
    framed = any(map(BEGIN.match, head.split("\n")))
    return Form("a book of Project Gutenberg; not read: its licence", _book) if framed else None


def _book(lines: Numbered) -> Iterator[tuple[int, str, str]]:
    """The lines between the marks, or up to the end where the file is cut."""
    start, book = 0, list[str]()
    for number, line in lines:
        if BEGIN.match(line):
            start, book = number + 1, []
        elif start and END.match(line):
            break
        else:
            book.append(line)
    if text := "\n".join(book).strip():
        yield start, f"{text}\n", ""
