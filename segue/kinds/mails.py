"""Mails: mailboxes (mbox, as mail programs, Google Takeout and the archives of mailing lists write them) and single
messages (.eml, Maildir, newsgroups)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path

from segue.kinds.base import Problems, Record, bad
from segue.kinds.books import seen
from segue.kinds.packed import opened

FROM = re.compile(rb"From \S+(?: at \S+)?.* \d{4}(?: [-+]\d{4})?\s*")  # the line in front of each mail of a mailbox
HEADER = re.compile(rb"([A-Za-z][A-Za-z0-9-]*):")
SURE = {b"message-id", b"received", b"mime-version", b"newsgroups", b"return-path", b"content-type", b"delivered-to"}
ESCAPED = re.compile(rb"(?m)^>(>*From )")


def is_mail(head: bytes) -> bool:
    """Whether a file holds mails, by the headers at its beginning."""
    names, lines = set[bytes](), head.removeprefix(b"\xef\xbb\xbf").lstrip().split(b"\n")
    if in_mbox := lines[0].startswith(b"From "):
        del lines[0]
    for line in lines:
        if not line.strip():
            break
        if line[:1] in (b" ", b"\t") and names:
            continue  # a header that goes on
        if (match := HEADER.match(line.lstrip(b">"))) is None:
            return False
        names.add(match[1].lower())
    return b"from" in names and (in_mbox or bool(names & SURE) or names >= {b"to", b"subject"})


def mails(path: Path, problems: Problems | None) -> Iterator[Record]:
    """The text of each mail of a file: the subject, a blank line and the body. Encodings are undone, of a mail in
    several forms the plain one is taken; attachments and all other headers are left out."""
    if problems is not None:
        problems.note = "a mail a text, subject and body; not read: other headers, attachments"
    with opened(path) as handle:
        for number, raw in _split_mails(handle):
            try:
                text = _text_of(raw)
            except Exception as error:  # Python's parser of headers may raise anything on a broken one
                bad(problems, path, str(number), None, f"no mail that can be read ({error}); mend or remove it")
                continue
            if text:
                yield Record(text.encode("utf-8", "backslashreplace"), name=f"{path}:{number}")


def _split_mails(lines: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """The line where each mail begins, and its bytes without the line in front of it."""
    start, raw, after_blank = 1, list[bytes](), True
    for number, line in enumerate(lines, 1):
        if after_blank and FROM.fullmatch(line):
            if raw:
                yield start, b"".join(raw)
            start, raw = number, []
        else:
            raw.append(line)
        after_blank = not line.strip()
    if raw:
        yield start, b"".join(raw)


def _text_of(raw: bytes) -> str:
    """The subject and the body of a mail."""
    mail = message_from_bytes(ESCAPED.sub(rb"\1", raw), EmailMessage, policy=policy.default)
    subject = " ".join(str(mail.get("Subject", "")).split())
    part = mail.get_body(("plain", "html"))
    if part is None or part.get_content_maintype() != "text":
        return subject
    body = part.get_payload(decode=True)
    data = body if isinstance(body, bytes) else b""
    text = data.decode("latin-1")
    for charset in (part.get_content_charset("utf-8"), "utf-8"):
        with suppress(LookupError, UnicodeError):
            text = data.decode(charset)
            break
    text = seen(text) if part.get_content_subtype() == "html" else text.replace("\r\n", "\n")
    return "\n\n".join(filter(None, (subject, text.strip())))

