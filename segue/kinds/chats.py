"""Chats as programs export or log them: WhatsApp, Telegram, Signal, Discord, and IRC (irssi, WeeChat, mIRC, ZNC)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial

from segue.kinds.several import Form, Numbered

DATE = r"\d{1,4}[./-]\d{1,2}[./-]\d{2,4}|\d{1,2}-[A-Z][a-z]{2}-\d\d"
TIME = r"\d{1,2}[:.]\d\d(?:[:.]\d\d)?(?:[ \u202f]?[AaPp]\.?[ \u202f]?[Mm]\.?)?"
STAMP = rf"(?:(?P<date>{DATE})(?:,? |T))?{TIME}(?: UTC|Z)?"
# [12:01] <nick> hello, and 12:01 < nick> hello; the time may be missing.
NICK = re.compile(rf"(?:(?:\[{STAMP}\]|{STAMP.replace('?P<date>', '')}) ?)?<[ @+%&~!]*(?P<name>[^<>\s]{{1,40}})> "
                  r"(?P<text>.*)")
# 12/31/20, 9:15 PM - Ann Lee: hello, and [31.12.20, 21:15:03] Ann Lee: hello. A comma or a dash tells them from logs.
NAMED = re.compile(rf"(?:\[(?P<date1>{DATE}),? {TIME}\]|(?P<date2>{DATE}),? {TIME} [-\u2013]) "
                   r"(?P<name>[^:\t<>\[\]/]{1,40}): ?(?P<text>.*)")
TABBED = re.compile(rf"(?P<date>{DATE}) {TIME}\t[ @+%&~]*(?P<name>[^\t<>=*-][^\t]{{0,39}})\t(?P<text>.*)")  # WeeChat
# Who speaks stands above what is said: [15-Jan-22 10:47 PM] ann#1234, and Ann, [15.01.2022 10:47]
ABOVE = re.compile(rf"\[(?P<date1>{DATE}) {TIME}\] (?P<name1>[^:<>]{{1,40}})|"
                   rf"(?P<name2>[^:<>\[\]]{{1,40}}), \[(?P<date2>{DATE}),? {TIME}\]:?")
LAYOUTS = {"inline": (NICK, NAMED, TABBED), "above": (ABOVE,)}
STAMPED = re.compile(rf"\[?{STAMP}\]?[ \t,]")  # a line with a time: a message, or what the program says
NOTICE = re.compile(r"(---|===|\*\*\*|-!-|<?--+>?) ?")  # what an IRC program says itself: who joins, who leaves
OMITTED = re.compile(r"\u200e.*|<[^<>]+>|\{(Attachments|Embed|Reactions)\}")  # in place of a picture
LEVELS = {"debug", "info", "notice", "warn", "warning", "error", "critical", "fatal", "trace"}  # of logs
LEAST = 6  # messages by which a chat is recognised
LONG = 1 << 16  # characters after which the next day begins a text of its own


def form_of(head: str) -> Form | None:
    """How the beginning of a file of text is to be read as a chat; None where it is none."""
    lines = [line.strip("\u200e\u200f\r ") for line in head.split("\n")[:400]]
    lines = [line for line in lines if line]
    for layout, patterns in LAYOUTS.items():
        for pattern in patterns:
            names = [_named(match, "name") for line in lines if (match := pattern.fullmatch(line))]
            if len(names) >= max(LEAST, len(lines) // 4) and 2 * len(set(names)) <= len(names) and \
                    not LEVELS.intersection(map(str.lower, names)):
                return Form("a chat, each message behind who sends it; not read: its times",
                            partial(_texts, pattern=pattern, above=layout == "above"))
    return None


def _named(match: re.Match[str], name: str) -> str:
    """What a pattern finds as `name`, `name1` or `name2`."""
    return next((value for key, value in match.groupdict().items() if key.startswith(name) and value), "")


def _texts(lines: Numbered, pattern: re.Pattern[str], above: bool) -> Iterator[tuple[int, str, str]]:
    """The messages of a chat, one text of whole days for every `LONG` characters. above: names stand on lines of their
    own."""
    start, size, day, messages = 1, 0, "", list[list[str]]()
    for number, row in lines:
        line = row.strip("\u200e\u200f\r ")
        match = pattern.fullmatch(line)
        if match is None:
            notice = not above and (STAMPED.match(line) or NOTICE.match(line))
            if messages and line and not notice and not OMITTED.fullmatch(line):
                messages[-1].append(line)  # a message of several lines
                size += len(line)
            continue
        date = _named(match, "date")
        if date != day and size > LONG:
            yield start, _joined(messages), ""
            start, size, messages = number, 0, []
        day, text = date, "" if above else row.strip("\r ")[-len(match["text"]) :] if match["text"] else ""
        messages.append([f"{_named(match, 'name').strip()}:", *([] if OMITTED.fullmatch(text) else [text])])
        size += len(text)
    if messages:
        yield start, _joined(messages), ""


def _joined(messages: list[list[str]]) -> str:
    """Messages as lines, without those that say nothing; several by one person in a row keep their name each."""
    texts = [(name, "\n".join(filter(None, lines))) for name, *lines in messages]
    return "\n".join(f"{name} {text}" for name, text in texts if text)
