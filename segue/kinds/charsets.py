"""In which character encoding a text is that is not UTF-8: what it says itself, else what its letters say."""

from __future__ import annotations

import codecs
import re
from collections import Counter
from functools import lru_cache

# What languages were written in before Unicode, with their most usual letters beyond ASCII; of encodings that do
# equally well the first one counts.
WEST = "éèàáíóúüöäñçåßêãõøæòùìâîôûëïðþý£°«»½"
QUOTES = "‘’“”–—…"
LATIN = (("latin-1", WEST), ("cp1252", WEST + QUOTES), ("mac-roman", WEST + QUOTES), ("cp850", WEST),
         *((encoding, letters)
           for letters in ("áéíóúýčďěňřšťůž", "áäčďéíĺľňóôŕšťúýž", "ąćęłńóśźż", "áéíóúüöőű", "ăâîşţ", "čćšžđ")
           for encoding in ("cp1250", "iso8859-2")),
         ("cp1254", "ıüşöçğİ" + QUOTES))
RARE = {"mac-roman": 0.05, "cp850": 0.05}  # by how much they must be better than others
OTHER = (*((encoding, "оеаинтсрвляПНВСМКОДЯ")
           for encoding in ("cp1251", "koi8-r", "cp866", "mac-cyrillic", "iso8859-5", "cp855")),
         ("cp1253", "αοιετσνηυρκ"), ("cp1255", "יוהלאמרתב"), ("cp1256", "اليمنرتبو"), ("iso8859-6", "اليمنرتبو"),
         ("tis-620", "านรอกเงม่ว"), ("shift_jis", "のにはをたがでいし"), ("euc-jp", "のにはをたがでいし"),
         ("euc-kr", "이다는을의에가하고지도로한사인자기대어해리아시를은서나라"),
         ("gb18030", "的一是了不我在有人，。"), ("big5", "的一是了不我在有人，。"))
MANY = ("shift_jis", "euc-jp", "euc-kr", "gb18030", "big5")  # of thousands of signs: the usual ones are fewer of them
# What programs mean by a name: the larger encoding that their systems have under it.
MEANT = {"gb2312": "gb18030", "gbk": "gb18030", "shift_jis": "cp932", "euc_kr": "cp949", "big5": "big5hkscs",
         "iso8859-1": "cp1252", "iso8859-9": "cp1254", "tis-620": "cp874"}
DECLARED = re.compile(rb"""(?i)\A\s*<\?xml[^>]*\bencoding\s*=\s*["']([\w.:-]+)|<meta\b[^>]*\bcharset\s*=\s*["']?"""
                      rb"""([\w.:-]+)|\A(?:[^\n]*\n)?[ \t]*(?:#|//|%|;|\\)[^\n]*?\bcoding[:=][ \t]*([\w.-]+)""")
HEADER = 2048  # bytes in which a file says its encoding
SAMPLE = 1 << 13  # bytes by which letters are judged
MOST = 1 << 20  # bytes in which they are looked for
BROKEN = 50  # one sign in so many may be broken: a file cut within one, a byte of another encoding


def declared_encoding(data: bytes) -> str | None:
    """The encoding that a file names (in XML's first line, in HTML's head, as editors read it), in Python's words; None
    where it names none that there is, or its text is not in it."""
    match = DECLARED.search(data[:HEADER])
    if match is None:
        return None
    try:
        name = codecs.lookup(next(filter(None, match.groups())).decode("ascii")).name
        sample = _sample(data)
        for encoding in (MEANT.get(name, name), name):
            text = sample.decode(encoding, "replace")
            if name != "utf-8" and BROKEN * text.count("\ufffd") <= sum(sign > "\x7f" for sign in text):
                return encoding
    except (LookupError, UnicodeError):
        pass
    return None


def likely_encoding(data: bytes) -> tuple[str, bool]:
    """The encoding of before Unicode in which a text has the most of the usual letters, and whether it surely is it."""
    return _likely(_sample(data))


def _sample(data: bytes) -> bytes:
    """The lines of a text that are not ASCII alone, as many as it is judged by."""
    lines, size = list[bytes](), 0
    match = re.search(rb"[\x80-\xff]", data)
    start = 0 if match is None else match.start()
    for line in re.split(rb"[\r\n]+", data[max(0, start - 80) : start + MOST]):
        if not line.isascii():
            lines.append(line[: SAMPLE - size])
            size += len(line)
            if size >= SAMPLE:
                break
    return b"\n".join(lines)


@lru_cache(maxsize=1024)
def _likely(sample: bytes) -> tuple[str, bool]:
    num_high = len(sample.translate(None, bytes(range(128))))
    num_following = sum(len(run) - 1 for run in re.findall(rb"[\x80-\xff]{2,}", sample))
    best, best_score, surely = "latin-1", (False, -1.0), False
    for encoding, letters in OTHER if 2 * num_following > num_high else LATIN:  # Latin letters stand among ASCII
        text = sample.decode(encoding, "replace")
        counts = Counter(text)
        total = max(1, sum(count for sign, count in counts.items() if sign > "\x7f"))
        usual = [sign for sign in counts if sign in letters]
        num_usual = sum(counts[sign] for sign in usual)
        # Signs amid letters, and capitals within words, are letters of another encoding.
        num_signs = sum(count for sign, count in counts.items()
                        if sign > "\x7f" and not sign.isalpha() and sign not in letters)
        num_capitals = sum(b > "\x7f" and b.isupper() and a.islower() for a, b in zip(text, text[1:]))
        by_chance = encoding in ("cp1250", "iso8859-2", "cp1254") and sum(map(str.isalpha, usual)) < 3
        weight = 3 if encoding in MANY else 1
        score = not by_chance, (weight * num_usual - 0.3 * num_capitals - 0.1 * num_signs) / total - \
            0.002 * len(letters) - RARE.get(encoding, 0)
        if score > best_score:
            best, best_score = encoding, score
            surely = (8 if encoding in MANY else 3) * num_usual >= total >= max(BROKEN * counts["\ufffd"],
                                                                                  4 * num_signs)
    return best, surely
