"""Moments that several columns of a table say together: year, month, day and hour, or a date and a time of day."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from functools import lru_cache, partial
from typing import Any

import numpy as np

from segue.kinds.base import words
from segue.kinds.times import DATE, steady

# What columns of each part are called, compared in lower case and without signs; and the numbers that it may be.
CALLED = {part: words(called) for part, called in (
    ("year", "year yr yyyy yy jahr annee anno ano"), ("month", "month mon mo mnth mm monat mois mes mese"),
    ("day", "day dy dd dom mday dayofmonth dateofmonth tag jour dia date"), ("hour", "hour hours hr hh stunde heure"),
    ("minute", "minute minutes min mi"), ("second", "second seconds sec ss"),
    ("week", "week wk weeknumber weekno epiweek isoweek kw woche semaine semana settimana"))}
WITHIN = {"year": (1000, 2999), "month": (1, 12), "day": (1, 31), "hour": (0, 23), "minute": (0, 59), "second": (0, 59),
          "week": (1, 53)}
MONTHS = words("jan feb mar apr may jun jul aug sep oct nov dec")
CLOCK = re.compile(r"\d{1,2}:\d\d(:\d\d([.,]\d+)?)?( ?[AaPp]\.?[Mm]\.?)?|([01]\d|2[0-3])\.[0-5]\d\.[0-5]\d")  # alone
UNSAID = 1972  # in place of a year that nothing says: a leap year, and too long ago to be shown as a date
DAY = re.compile(r"(19|20)?\d\d(0[1-9]|1[0-2])([0-2]\d|3[01])")  # 20081109, or 081109 of this century
MONTH_DAY = re.compile(r"(0[1-9]|1[0-2])[-/]([0-2]\d|3[01])")  # 03-17, as phones write their logs
ISO = re.compile(r"\d{4}-\d\d-\d\d")
OFFSET = words("timeframe milliseconds millis ms")  # columns of milliseconds since a day's visit began
SECOND = re.compile(r"([01]?\d|2[0-3])[0-5]\d[0-5]\d|\d{1,4}")  # 203518 of a clock, without noughts in front

Cells = Callable[[str], Sequence[Any]]


def moment_columns(names: Iterable[str], cells: Cells) -> dict[str, str]:
    """The columns that say when only together, the longest part first, and what each of them says: a date, a clock, or
    a part of `CALLED`. Nothing where one column says it alone."""
    values_of = {name: [str(cell).strip() for cell in cells(name) if cell not in (None, "")] for name in names}

    def first(test: Callable[[str], Any], *aliases: str) -> str | None:
        return next((name for name, values in values_of.items() if values and (not aliases or _plain(name) in aliases)
                     and all(map(test, values))), None)

    if all(map(str.isdigit, values_of)) and (counted := _counted(values_of)):
        return counted
    parts = {part: name for part, called in CALLED.items() if (name := first(partial(_says, part), *called))}
    if "month" not in parts and (month := first(_names_month, "date")) is not None:
        parts["month"] = month
    hours = {parts[part]: part for part in ("hour", "minute", "second") if part in parts} if "hour" in parts else {}
    clock = first(CLOCK.fullmatch)
    date = first(lambda cell: DATE.fullmatch(cell) and ":" not in cell and not CLOCK.fullmatch(cell))
    if date is None and (date := first(DAY.fullmatch, "date")) is not None and clock is None:
        clock = first(SECOND.fullmatch, "time")
    if date is None and clock is not None:
        date = first(MONTH_DAY.fullmatch, "date")
    if date is not None:
        offset = first(str.isdigit, *OFFSET) if all(map(ISO.fullmatch, values_of[date])) else None
        repeated = len(set(values_of[date])) < len(values_of[date])
        clock_columns = {clock: "clock"} if clock else {offset: "offset"} if offset else hours if repeated else {}
        return {date: "date", **clock_columns} if clock_columns else {}
    if "year" in parts and "week" in parts and "month" not in parts:
        return {parts["year"]: "year", parts["week"]: "week"}
    days: dict[str, str] = {parts[part]: part for part in ("year", "month", "day") if part in parts}
    if "month" not in parts or ("year" not in parts and not ("day" in parts and clock)):
        return {}
    return days if "day" not in parts else {**days, clock: "clock"} if clock else {**days, **hours}


def _counted(values_of: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """The first columns of a table without a header, and what they say, where they count months, days or hours at one
    pace: year and month, with day and hour where only these tell rows apart."""
    for width in (2, 3, 4):
        parts = dict(zip(values_of, [*CALLED][:width]))
        columns = [values_of[name] for name in parts]
        if len(columns) < width or not all(_says(part, cell) for part, cells in zip(parts.values(), columns)
                                           for cell in cells):
            return {}
        try:
            moments = [datetime.fromisoformat(str(text)) for text in moment_texts(parts, columns)]
        except ValueError:
            return {}
        seconds = np.array([(moment - moments[0]).total_seconds() for moment in moments])
        if len(moments) > 8 and moments[0].year >= 1500 and (np.diff(seconds) > 0).all() and \
                np.isfinite(steady(seconds)):
            return parts
    return {}


def moment_texts(parts: Mapping[str, str], columns: Iterable[Sequence[Any]]) -> list[str | None]:
    """The moments that the columns of `moment_columns` give, as text, a row each; None where a cell is missing."""
    return [None if None in row or "" in row else _text(dict(zip(parts.values(), (str(cell).strip() for cell in row))))
            for row in zip(*columns)]


def _text(cells: Mapping[str, str]) -> str | None:
    numbers = {part: _part(part, cell) for part, cell in cells.items() if part in CALLED}
    if None in numbers.values():
        return None
    if "week" in cells:  # of ISO 8601, its Monday
        with suppress(ValueError):
            return str(datetime.fromisocalendar(int(numbers["year"] or 0), int(numbers["week"] or 0), 1).date())
        return None
    date = cells.get("date") or f"{numbers.get('year', UNSAID)}-{numbers['month']:02d}-{numbers.get('day', 1):02d}"
    if DAY.fullmatch(date):
        date = f"{'20' * (len(date) < 8)}{date[:-4]}-{date[-4:-2]}-{date[-2:]}"
    if MONTH_DAY.fullmatch(date):
        date = f"{UNSAID}-{date[:2]}-{date[3:]}"
    if "offset" in cells:
        return str(datetime.fromisoformat(date) + timedelta(milliseconds=int(cells["offset"])))
    clock = cells.get("clock", "")
    if SECOND.fullmatch(clock):
        clock = f"{clock.zfill(6)[:2]}:{clock.zfill(6)[2:4]}:{clock.zfill(6)[4:]}"
    if "hour" in numbers:
        clock = f"{numbers['hour']:02d}:{numbers.get('minute', 0):02d}:{numbers.get('second', 0):02d}"
    return f"{date} {clock}".strip()


def _plain(name: str) -> str:
    return re.sub(r"[^a-z]", "", name.lower())


def _names_month(cell: str) -> bool:
    return cell.isalpha() and cell[:3].lower() in MONTHS


def _says(part: str, cell: str) -> bool:
    return _part(part, cell) is not None


@lru_cache(maxsize=4096)
def _part(part: str, cell: str) -> int | None:
    """The number of a part of a moment that a cell says, None where it says none."""
    if part == "month" and _names_month(cell):
        return MONTHS.index(cell[:3].lower()) + 1
    match = re.fullmatch(r"(\d{1,4})(\.0*)?", cell)
    low, high = WITHIN[part]
    return int(match[1]) if match and low <= int(match[1]) <= high else None
