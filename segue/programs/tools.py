"""Symbolic tools: functions of numbers, dates and lists that a model calls by writing `name(arguments)` (after the
annotations of Successive Prompting, 2022, arXiv 2212.04092)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal

from segue.errors import SegueError

SMALL = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
         "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen")
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
WORDS = {word: value for value, word in (*enumerate(SMALL), *zip(range(20, 100, 10), TENS))}
SCALES = {"hundred": 100, "thousand": 1_000, "million": 1_000_000, "billion": 1_000_000_000}
MONTHS = {name: month for month, name in enumerate((
    "january", "february", "march", "april", "may", "june", "july", "august", "september", "october", "november",
    "december"), 1)}
MONTH = re.compile(rf"\b(?:{'|'.join(f'{name[:3]}(?:{name[3:]})?' for name in MONTHS)})\b\.?", re.IGNORECASE)
FIGURE = re.compile(r"(?<![\w.])-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?\.?|(?<!\w)-?\.\d+")
CALL = re.compile(r"\s*([a-z_]+)\s*\((.*)\)[\s.?]*", re.DOTALL)
COMPARISON = re.compile(r"<=|>=|==|<|>|=")
SPANS = "|||"
"""The separator of the spans of an answer."""


def parse_number(text: str) -> Decimal:
    """The first number in a text: digits (28-yard, 1,847, 3.9 %, .5, 1640s), or number words (twenty-one thousand),
    multiplied by a following scale word (1.5 million). Raises SegueError if there is none."""
    figure = FIGURE.search(re.sub(r"(?<=\d)(?=[^\W\d_])", " ", text))
    words = re.findall(r"[a-z]+", text.lower())
    if figure is not None:
        value = Decimal(figure[0].replace(",", "").rstrip("."))
        for word in words:
            value *= SCALES.get(word, 1)
        return value
    total, current, found_word = 0, 0, False
    for word in words:
        if word in WORDS:
            current, found_word = current + WORDS[word], True
        elif word in SCALES and (found_word or word == words[0]):
            current, found_word = max(current, 1) * SCALES[word], True
            if word != "hundred":
                total, current = total + current, 0
        elif found_word and word != "and":
            break
    if not found_word:
        raise SegueError(f"there is no number in '{text.strip()}'")
    return Decimal(total + current)


def format_number(value: Decimal) -> str:
    """A number as an answer: no exponent, no trailing zeros after the point."""
    text = f"{value:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


@dataclass(frozen=True)
class PartialDate:
    """A date whose year, month or day may be unknown (None)."""

    year: int | None
    month: int | None
    day: int | None

    @classmethod
    def read(cls, text: str) -> PartialDate:
        """Parse "June 15, 1914", "15 June 1914", "June 1914", "15 June" or "1914"; SegueError if it is no date."""
        month = MONTH.search(text)
        named = None if month is None else next(n for name, n in MONTHS.items() if name[:3] == month[0][:3].lower())
        figures = [int(figure) for figure in re.findall(r"\d+", text)]
        year = next((figure for figure in figures if figure > 31), None)
        day = next((figure for figure in figures if 0 < figure <= 31), None) if named else None
        if year is None and named is None:
            raise SegueError(f"there is no date in '{text.strip()}'")
        return cls(year, named, day)

    def filled(self, other: PartialDate) -> PartialDate:
        """The date with missing parts filled: the year from another date, month and day by 1."""
        return PartialDate(self.year if self.year is not None else other.year, self.month or 1, self.day or 1)

    @property
    def key(self) -> tuple[int, int, int]:
        return self.year or 0, self.month or 0, self.day or 0

    def day_number(self) -> int:
        try:
            return date(*self.key).toordinal()
        except (ValueError, OverflowError) as error:
            raise SegueError(f"there is no day {self.key}: {error}") from error


def parse_dates(a: str, b: str) -> tuple[PartialDate, PartialDate]:
    """Parse two dates; a missing year is taken from the other one."""
    first, second = PartialDate.read(a), PartialDate.read(b)
    return first.filled(second), second.filled(first)


def split_arguments(text: str) -> list[str]:
    """Split arguments at semicolons, or else at commas outside of numbers; also at the separators of spans."""
    separated = text.replace(SPANS, ";")
    parts = separated.split(";") if ";" in separated else re.split(r",(?!\d{3}(?!\d))", separated)
    return [part for part in (part.strip().strip("'\"").strip() for part in parts) if part]


def difference(a: str, b: str, unit: str = "") -> str:
    unit = unit.strip().lower().rstrip("s")
    if unit not in ("", "year", "month", "day"):
        raise SegueError(f"the unit '{unit}' of a difference is unknown: choose years, months or days")
    if unit == "" and not (MONTH.search(a) and MONTH.search(b)):
        return format_number(abs(parse_number(a) - parse_number(b)))
    first, second = parse_dates(a, b)
    if unit == "year":
        return str(abs(first.key[0] - second.key[0]))
    if unit == "month":
        return str(abs((first.key[0] - second.key[0]) * 12 + first.key[1] - second.key[1]))
    return str(abs(first.day_number() - second.day_number()))


def evaluate_condition(condition: str) -> bool:
    """Whether `a < b` (or >, <=, >=, =) is true, of numbers or of dates."""
    sign = COMPARISON.search(condition)
    if sign is None or not (a := condition[: sign.start()].strip()) or not (b := condition[sign.end() :].strip()):
        raise SegueError(f"'{condition.strip()}' compares nothing: write a < b or a > b")
    order: tuple[Decimal, Decimal] | tuple[tuple[int, int, int], tuple[int, int, int]]
    if MONTH.search(a) or MONTH.search(b):
        first, second = parse_dates(a, b)
        order = first.key, second.key
    else:
        order = parse_number(a), parse_number(b)
    return {"<": order[0] < order[1], ">": order[0] > order[1], "<=": order[0] <= order[1],  # type: ignore[operator]
            ">=": order[0] >= order[1]}.get(sign[0], order[0] == order[1])  # type: ignore[operator]


def pick_ranked(text: str, largest: bool) -> str:
    """The k-th largest or smallest item of `k, a; b; c`, as it is written."""
    head, comma, rest = text.partition(",")
    if not comma:
        raise SegueError("give a rank and a list: top(1, a; b; c)")
    rank, ranked = int(parse_number(head)), list[tuple[Decimal, str]]()
    for item in split_arguments(rest):
        try:
            ranked.append((parse_number(item), item))
        except SegueError:
            continue  # items without a number have no rank
    if not 1 <= rank <= len(ranked):
        raise SegueError(f"there is no number {rank} in a list of {len(ranked)}")
    return sorted(ranked, key=lambda pair: pair[0], reverse=largest)[rank - 1][1]


def check_arguments(arguments: Sequence[str], least: int, most: int, usage: str) -> Sequence[str]:
    if not least <= len(arguments) <= most:
        raise SegueError(f"{len(arguments)} arguments where {usage} is meant")
    return arguments


def choose_branch(text: str) -> str:
    condition, yes, no = check_arguments([part.strip() for part in text.split(";")], 3, 3, "if_then(a < b; x; y)")
    return yes if evaluate_condition(condition) else no


Tool = Callable[[str], str]
"""The text between the brackets -> the result; raises SegueError."""
TOOLS: Mapping[str, Tool] = {
    "count": lambda text: str(len(split_arguments(text))),
    "sum": lambda text: format_number(sum(map(parse_number, check_arguments(
        split_arguments(text), 1, 10_000, "sum(a; b)")), Decimal())),
    "diff": lambda text: difference(*check_arguments(split_arguments(text), 2, 3, "diff(a; b) or diff(a; b; unit)")),
    "not": lambda text: format_number(100 - parse_number(*check_arguments(
        split_arguments(text), 1, 1, "not(percentage)"))),
    "top": lambda text: pick_ranked(text, largest=True),
    "bottom": lambda text: pick_ranked(text, largest=False),
    "if_then": choose_branch,
}


@dataclass(frozen=True)
class SymbolicTools:
    """The tools that a program has. tools: by name."""

    tools: Mapping[str, Tool] | None = None

    def call(self, text: str) -> str | None:
        """The result of a call `name(arguments)`; None if the text is no call of a tool. Raises SegueError if the call
        fails."""
        match, tools = CALL.fullmatch(text), TOOLS if self.tools is None else self.tools
        return None if match is None or match[1] not in tools else tools[match[1]](match[2].strip())
