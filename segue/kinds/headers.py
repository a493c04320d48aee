"""What the headers of FASTA files say of the class of a sequence."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from segue.kinds.columns import CLASSES, says_few
from segue.kinds.documents import PART
from segue.kinds.packed import opened

BASES = re.compile(r"(sp|tr|gi|gb|emb|dbj|ref|pdb|pir|lcl|gnl|UniRef\d*)[|_]")  # of databases, which say names alone
KEYS = (*CLASSES, "target", "type", "family")
MANY = 2000  # headers by which a file is judged


@dataclass(frozen=True)
class HeaderClass:
    """Where the headers say the class, for users, and what reads it from one ("": it says none)."""

    where: str
    read: Callable[[str], str]


def headers_of(path: Path) -> list[str]:
    """Headers from all over a FASTA file, since classes often stand one behind the other."""
    with opened(path) as handle:
        headers = [line for line in handle if line[:1] == b">"]
    step = max(1, len(headers) // MANY)
    return [header[1:].strip().decode("utf-8", "replace") for header in headers[::step]]


def class_in_headers(headers: Sequence[str], requested: str | None) -> HeaderClass | None:
    """What reads the class from a header; None where headers say none. requested: the key before its = sign; a number:
    the part of that place between bars or blanks; "": a key called as classes are, or a part between bars, or a second
    word, that says few things over and over."""
    if requested and requested.isdigit():
        part = _part("|" if any("|" in header for header in headers) else None, int(requested) - 1)
        return part if any(map(part.read, headers)) else None
    if requested:
        value = _value(requested)
        return value if any(map(value.read, headers)) else None
    if requested is None or not headers or any(map(BASES.match, headers)):
        return None
    readers = [_value(key) for key in KEYS]
    for separator in ("|", None):
        counts = {len(header.split(separator)) for header in headers}
        if min(counts) > 1 and max(counts) <= 4:
            readers += [_part(separator, place) for place in range(1, min(counts))]
    for reader in readers:
        labels = list(map(reader.read, headers))
        if says_few(labels) and not all(map(PART.fullmatch, labels)):
            return reader
    return None


def _value(key: str) -> HeaderClass:
    pattern = re.compile(rf"(?i)(?:^|[\s|;])\[?{re.escape(key)}[=:]\s*([^\s|;\]]+)")
    return HeaderClass(f"what is behind '{key}=' in the headers",
                       lambda header: match[1] if (match := pattern.search(header)) else "")


def _part(separator: str | None, place: int) -> HeaderClass:
    return HeaderClass(
        f"part {place + 1} of the headers, cut at {'bars' if separator else 'blanks'}",
        lambda header: header.split(separator)[place].strip() if len(header.split(separator)) > place else "")
