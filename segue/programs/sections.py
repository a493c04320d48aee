"""Prompts whose replies have sections: a template, a tolerant parser, and a bounded number of repairs."""

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
    """The sentences of a text, or the items of its list, without list markers and surrounding blanks."""
    parts = [sentence for line in text.splitlines() for sentence in ENDS.split(MARKER.sub("", line))]
    return [" ".join(sentence.split()) for sentence in parts if sentence.strip()]


def shorten(text: str, words: int | None) -> str:
    """The text, or its first sentences up to `words` words in all; a longer first sentence is cut. None: no limit."""
    if words is None or len(text.split()) <= words:
        return text
    sentences, words_left = list[str](), words
    for sentence in split_sentences(text):
        size = len(sentence.split())
        if size > words_left:
            break
        sentences.append(sentence)
        words_left -= size
    return " ".join(sentences or text.split()[:words])


@dataclass(frozen=True)
class Section:
    """A part of a reply. name: key of the parsed text. heading: the text before it. words: limit beyond which it is cut
    at a sentence (default: none). needed: whether a reply without it is repaired."""

    name: str
    heading: str
    words: int | None = None
    needed: bool = True


@dataclass
class Sections:
    """A parsed reply. texts: by name of the section, only those found. problem: what is missing ("": nothing). calls:
    number of calls of the model for it."""

    texts: dict[str, str]
    problem: str = ""
    calls: int = 0


@dataclass(frozen=True)
class SectionedPrompt:
    """A template with {fields}, and the sections that a reply must have.

    Headings are recognised at the beginning of a line with any decoration (`**Plan 1:**`, `## plan 1:`), and elsewhere
    if spelled exactly between blanks; sections may come in any order, and of several with the same heading the first
    counts. Text before all headings is the first section, if its own heading is missing.

    repair: the template of the call after an incomplete reply ({prompt}, {reply}, {problem}, {headings}). tries: calls
    at most, including the first.
    """

    template: str
    sections: tuple[Section, ...]
    repair: str = REPAIR
    tries: int = 3
    pattern: re.Pattern[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.tries < 1 or not self.sections:
            raise SegueError(f"a prompt of {len(self.sections)} sections and {self.tries} tries: at least one of both")
        headings = "|".join(re.escape(s.heading) for s in sorted(self.sections, key=lambda s: -len(s.heading)))
        line = rf"^[ \t#*_>]*+(?i:(?P<line>{headings}))[*_]*"
        object.__setattr__(self, "pattern", re.compile(rf"{line}|(?<!\S)(?P<within>{headings})(?!\w)", re.MULTILINE))

    def fill(self, **fields: str) -> str:
        """The prompt."""
        try:
            return self.template.format_map(fields)
        except (KeyError, IndexError, ValueError) as error:
            raise SegueError(f"the template of a prompt: {error!r}; its fields are {', '.join(fields)}") from error

    def parse(self, reply: str) -> Sections:
        """The sections of a reply, and in words what is missing."""
        names = {section.heading.lower(): section.name for section in self.sections}
        matches, texts = list(self.pattern.finditer(reply)), dict[str, str]()
        ends = [*(match.start() for match in matches), len(reply)]
        found_names = [names[(match["line"] or match["within"]).lower()] for match in matches]
        spans = [(self.sections[0].name, reply[: ends[0]])] if self.sections[0].name not in found_names else []
        spans += [(name, reply[match.end() : end]) for name, match, end in zip(found_names, matches, ends[1:])]
        for name, text in spans:
            while (last := (text := text.rstrip()).rpartition("\n"))[1] and not last[2].strip("#*_> \t"):
                text = last[0]  # a line of decoration belongs to the heading behind it
            if text.strip(" \t\n*_#") and name not in texts:
                texts[name] = text.strip()
        texts = {s.name: shorten(texts[s.name], s.words) for s in self.sections if s.name in texts}
        missing = [s.heading for s in self.sections if s.needed and s.name not in texts]
        return Sections(texts, f"nothing stands behind {' and '.join(map(repr, missing))}" if missing else "")

    def ask(self, model: TextModel, prompts: Sequence[str], **options: Any) -> list[Sections]:
        """The parsed replies to filled prompts; replies with a problem are repaired, in up to `tries` calls in all. A
        remaining problem is reported with the sections of the last reply. options: of `TextModel.write`."""
        results = [Sections({}, "nothing was asked") for _ in prompts]
        current_prompts, pending = dict(enumerate(prompts)), list(range(len(prompts)))
        headings = ", ".join(section.heading for section in self.sections)
        for count in range(1, self.tries + 1):
            replies = model.write([current_prompts[index] for index in pending], **options) if pending else []
            for index, reply in zip(pending, replies):
                results[index] = self.parse(reply.text)
                results[index].calls = count
                current_prompts[index] = self.repair.format(prompt=prompts[index], reply=reply.text,
                                                            problem=results[index].problem, headings=headings)
            pending = [index for index in pending if results[index].problem]
        return results
