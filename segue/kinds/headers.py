"""What the headers of FASTA files say of the class of a sequence."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from segue.kinds.columns import CLASSES, says_few
from segue.kinds.documents import PART

BASES = re.compile(r"(sp|tr|gi|gb|emb|dbj|ref|pdb|pir|lcl|gnl|UniRef\d*)[|_]")  # of databases, which say names alone
KEYS = (*CLASSES, "target", "type", "family")
Reads = Callable[[str], str]


def class_in_headers(headers: Sequence[str], requested: str | None) -> Reads | None:
    """What reads the class from a header; None where headers say none. requested: the key before its = sign; "": a key
    called as classes are, or a part between bars, or a second word, that says few things over and over."""
    if requested:
        return _value(requested) if any(map(_value(requested), headers)) else None
    if requested is None or not headers or any(map(BASES.match, headers)):
        return None
    readers = [_value(key) for key in KEYS]
    for separator in ("|", None):
        counts = {len(header.split(separator)) for header in headers}
        if min(counts) > 1 and max(counts) <= 4:
            readers += [_part(separator, place) for place in range(1, min(counts))]
    for read in readers:
        labels = [read(header) for header in headers]
        if says_few(labels) and not all(map(PART.fullmatch, labels)):
            return read
    return None


def _value(key: str) -> Reads:
    pattern = re.compile(rf"(?i)(?:^|[\s|;])\[?{re.escape(key)}[=:]\s*([^\s|;\]]+)")
    return lambda header: match[1] if (match := pattern.search(header)) else ""


def _part(separator: str | None, place: int) -> Reads:
    return lambda header: header.split(separator)[place].strip() if len(header.split(separator)) > place else ""
