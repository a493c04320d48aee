"""Prompts whose replies come in sections: a template, a parser that takes what models write, and a bounded repair."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from segue.errors import SegueError
from segue.programs.text import TextModel

MARKER = re.compile(r"^\s*(?:[-*\u2022]|\d+[.)])\s+")  # of an item in a list
ENDS = re.compile(r"(?:(?<=[.!?\u2026])|(?<=[.!?\u2026][\"'\u201d\u2019)\]]))\s+")

REPAIR = """{prompt}

A first reply to this was:
{reply}

It cannot be used: {problem}. Write the whole reply again, with these headings, each on a line of its own: {headings}"""


def split_sentences(text: str) -> list[str]:
    """The sentences of a text, or the items of its list, without marks of lists and blanks around."""
    found = [part for line in text.splitlines() for part in ENDS.split(MARKER.sub("", line))]
    return [" ".join(part.split()) for part in found if part.strip()]


def shorten(text: str, words: int | None) -> str:
    """The text, or so many of its first sentences as have `words` words at most; the first one is cut if need be."""
    if words is None or len(text.split()) <= words:
        return text
    kept, room = list[str](), words
    for sentence in split_sentences(text):
        size = len(sentence.split())
        if size > room:
            break
        kept.append(sentence)
        room -= size
    return " ".join(kept or text.split()[:words])


@dataclass(frozen=True)
class Section:
    """A part of a reply. name: what the parsed text is called. heading: what stands in front of it. words: so many at
    most, the rest is cut at a sentence. needed: whether a reply without it is asked for again."""

    name: str
    heading: str
    words: int | None = None
    needed: bool = True


@dataclass
class Sections:
    """A reply taken apart. texts: by name, only those that are there. problem: what is wrong with it ("": nothing).
    calls: how often a model was asked for it."""

    texts: dict[str, str]
    problem: str = ""
    calls: int = 0


@dataclass(frozen=True)
class SectionedPrompt:
    """A template with {fields}, and the sections that a reply must have.

    Headings are found at the beginning of a line however they are decorated (`**Plan 1:**`, `## plan 1:`), and spelled
    exactly between blanks elsewhere; sections may come in any order, and the first of two with one heading counts.
    What stands in front of all headings is the first section, where its own heading is missing.

    repair: the template of the call after a reply that lacks something ({prompt}, {reply}, {problem}, {headings}).
    tries: calls at most, the first one included.
    """

    template: str
    sections: tuple[Section, ...]
    repair: str = REPAIR
    tries: int = 3
    pattern: re.Pattern[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.tries < 1 or not self.sections:
            raise SegueError(f"a prompt of {len(self.sections)} sections and {self.tries} tries: at least one of both")
        some = "|".join(re.escape(s.heading) for s in sorted(self.sections, key=lambda s: -len(s.heading)))
        line = rf"^[ \t#*_>]*+(?i:(?P<line>{some}))[*_]*"
        object.__setattr__(self, "pattern", re.compile(rf"{line}|(?<!\S)(?P<within>{some})(?!\w)", re.MULTILINE))

    def fill(self, **fields: str) -> str:
        """The prompt."""
        try:
            return self.template.format_map(fields)
        except (KeyError, IndexError, ValueError) as error:
            raise SegueError(f"the template of a prompt: {error!r}; its fields are {', '.join(fields)}") from error

    def parse(self, reply: str) -> Sections:
        """The sections of a reply, and in words what is missing."""
        names = {section.heading.lower(): section.name for section in self.sections}
        marks, texts = list(self.pattern.finditer(reply)), dict[str, str]()
        ends = [*(mark.start() for mark in marks), len(reply)]
        begun = [names[(mark["line"] or mark["within"]).lower()] for mark in marks]
        spans = [(self.sections[0].name, reply[: ends[0]])] if self.sections[0].name not in begun else []
        spans += [(name, reply[mark.end() : end]) for name, mark, end in zip(begun, marks, ends[1:])]
        for name, text in spans:
            while (last := (text := text.rstrip()).rpartition("\n"))[1] and not last[2].strip("#*_> \t"):
                text = last[0]  # a line of decoration belongs to the heading behind it
            if text.strip(" \t\n*_#") and name not in texts:
                texts[name] = text.strip()
        texts = {s.name: shorten(texts[s.name], s.words) for s in self.sections if s.name in texts}
        missing = [s.heading for s in self.sections if s.needed and s.name not in texts]
        return Sections(texts, f"nothing stands behind {' and '.join(map(repr, missing))}" if missing else "")

    def ask(self, model: TextModel, prompts: Sequence[str], **options: Any) -> list[Sections]:
        """The parsed replies to filled prompts; those with a problem are asked for again, `tries` times in all. What
        still has one then says so, with the sections that the last reply had. options: of `TextModel.write`."""
        found = [Sections({}, "nothing was asked") for _ in prompts]
        asked, left = dict(enumerate(prompts)), list(range(len(prompts)))
        headings = ", ".join(section.heading for section in self.sections)
        for count in range(1, self.tries + 1):
            replies = model.write([asked[at] for at in left], **options) if left else []
            for at, reply in zip(left, replies):
                found[at] = self.parse(reply.text)
                found[at].calls = count
                asked[at] = self.repair.format(prompt=prompts[at], reply=reply.text, problem=found[at].problem,
                                               headings=headings)
            left = [at for at in left if found[at].problem]
        return found
