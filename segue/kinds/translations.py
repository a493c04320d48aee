"""Texts in two or more languages: translation memories (TMX), XLIFF, and files side by side, a sentence a line."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from segue.errors import SegueError
from segue.kinds.base import words
from segue.kinds.packed import bare, opened
from segue.kinds.several import Form, Numbered

MEMORY = re.compile(r"\s*(?:<\?xml[^>]*>\s*)?(?:<!DOCTYPE[^>]*>\s*|<!--.*?-->\s*)*<(tmx|xliff)\b", re.DOTALL)
LANGUAGES = set(words("ar bg bn ca cs cy da de el en es et eu fa fi fr ga gl gu he hi hr hu hy id is it ja ka kk km kn "
                      "ko lt lv mk ml mn mr ms mt my nb ne nl nn no pa pl ps pt ro ru si sk sl so sq sr sv sw ta te th "
                      "tl tr uk ur uz vi xh yo zh zu"))
SIDES = LANGUAGES | {"src", "tgt", "trg", "source", "target"}
FEWEST = 10  # lines of files side by side


def form_of(head: str) -> Form | None:
    """How the beginning of a file of text is to be read as a translation memory; None where it is none."""
    return Form("a text a translation unit, its languages one below the other", _units) if MEMORY.match(head) else None


def _units(lines: Numbered) -> Iterator[tuple[int, str, str]]:
    """The segments of each unit; units that lack one are left out."""
    from xml.etree import ElementTree

    text = re.sub(r"^\s*<\?xml[^>]*>", "", "\n".join(line for _, line in lines).lstrip("\ufeff"))
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise SegueError(f"no TMX or XLIFF that can be read ({error}); save it again") from error
    for number, unit in enumerate(root.iter(), 1):
        tag = unit.tag.rpartition("}")[2]
        if tag in ("tu", "trans-unit", "segment"):
            parts = [each for each in unit.iter() if each.tag.rpartition("}")[2] in ("seg", "source", "target")]
            segments = [" ".join("".join(part.itertext()).split()) for part in parts]
            if len(segments) > 1 and all(segments):
                yield number, "\n".join(segments), ""


def side_by_side(paths: Sequence[Path]) -> dict[Path, list[Path]]:
    """The files that belong together, by the first of each group: those that are called alike but for a language or
    a side, such as train.en and train.de or train.src and train.tgt, and have as many lines."""
    groups: dict[tuple[Path, str], list[Path]] = {}
    for path in paths:
        name, language = bare(path), bare(path).suffix[1:].lower()
        if language in SIDES:
            groups.setdefault((name.parent, name.stem), []).append(path)
    return {group[0]: group for group in groups.values() if len(group) > 1 and _as_long(group)}


def _as_long(paths: Iterable[Path]) -> bool:
    """Whether files have the same number of lines, and enough of them."""
    counts = set[int]()
    with suppress(SegueError):
        for path in paths:
            with opened(path) as handle:
                counts.add(sum(1 for _ in handle))
        return len(counts) == 1 and min(counts) >= FEWEST
    return False
