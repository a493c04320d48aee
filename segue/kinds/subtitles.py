"""Subtitles and captions of films: SubRip (.srt), WebVTT (.vtt), SubStation Alpha (.ass, .ssa), YouTube's (.sbv)."""

from __future__ import annotations

import re
from collections.abc import Iterator

from segue.kinds.several import Form, Numbered

TIME = r"(?:\d{1,3}:)?\d\d:\d\d[,.:]\d{1,3}"
CUE = re.compile(rf"[ \t]*{TIME}(?:[ \t]*-->[ \t]*|,){TIME}.*")
DIALOGUE = re.compile(r"Dialogue:(?:[^,]*,){9}(.*)")  # SubStation Alpha: the words are the tenth cell
MARKUP = re.compile(r"<[^<>]*>|\{\\[^{}]*\}")  # <i>, <c.yellow>, {\an8}


def form_of(head: str) -> Form | None:
    """How the beginning of a file of text is to be read as subtitles; None where it holds none."""
    text = head.lstrip()
    if text.startswith("[Script Info]") and DIALOGUE.search(head):
        return Form("the words of subtitles; not read: times and styles", _of_substation)
    first = next((i for i, line in enumerate(text.split("\n")[:40]) if CUE.fullmatch(line.rstrip("\r"))), None)
    if first is not None and (text.startswith("WEBVTT") or first < 2):
        return Form("the words of subtitles; not read: numbers and times", _of_cues)
    return None


def _of_cues(lines: Numbered) -> Iterator[tuple[int, str, str]]:
    """The lines below each time up to a blank one or the number of the next. A line that repeats the last, as rolling
    captions do, is left out."""
    words, inside, blank = list[str](), False, True
    for _, line in lines:
        if CUE.fullmatch(line):
            if words and not blank and words[-1].isdigit():
                words.pop()  # the number of this cue, without a blank line before it
            inside, blank = True, False
            continue
        text = " ".join(MARKUP.sub("", line).replace("\\N", " ").split())
        blank = not line.strip()
        inside = inside and not blank
        if inside and text and text != "".join(words[-1:]):
            words.append(text)
    if words:
        yield 1, "\n".join(words), ""


def _of_substation(lines: Numbered) -> Iterator[tuple[int, str, str]]:
    words = [" ".join(re.sub(r"\\[Nnh]", " ", MARKUP.sub("", match[1])).split())
             for _, line in lines if (match := DIALOGUE.fullmatch(line.strip()))]
    if any(words):
        yield 1, "\n".join(filter(None, words)), ""
