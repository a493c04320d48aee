"""Times as tables write them: numbers, ISO 8601 and the usual dates, in seconds since 1970."""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from segue.errors import SegueError
from segue.kinds.base import words

DATES = [*words("%Y-%m-%d %Y/%m/%d %Y.%m.%d %Y年%m月%d日 %d.%m.%Y %d-%m-%Y %m-%d-%Y %d/%m/%Y %m/%d/%Y %d/%m/%y "
                "%m/%d/%y %d.%m.%y %d-%b-%Y %d-%b-%y"),
         "%d/%b/%Y", "%d %b %Y", "%b %d, %Y", "%b %d %Y", "%a, %d %b %Y", "%a %b %d %Y"]
CLOCKS = ("", " %H:%M:%S", " %H:%M", " %I:%M:%S %p", " %I:%M %p", " %H.%M.%S", " %H.%M")
MONTHS = words("%Y-%m %Y/%m %m/%Y %m.%Y %b-%Y %b-%y %Y-%b %YM%m")
FORMATS = [date + clock for date in DATES for clock in CLOCKS] + \
    ["%d/%b/%Y:%H:%M:%S", "%d-%m-%Y:%H.%M", "%a %b %d %H:%M:%S %Y", *MONTHS, "%b %Y", "%Y %b"]
DATED = re.compile(r"(?i)dat(e|um|a)|fecha|日|tag\b")
SERIAL = 29221, 65746  # days of a spreadsheet: the years 1980 to 2079
DATE = re.compile(r"\[?([A-Z][a-z]{2},? )?(\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}|\d{1,2}[-/ ][A-Za-z]{3,9}[-/ ]\d{2,4}|"
                  r"[A-Z][a-z]{2,8}\.? \d{1,2},?( [\d:]+)?( [+-]\d{4}| [A-Z]{3,4})? \d{4}|\d{4}年\d{1,2}月\d{1,2}日)"
                  r"([T ,:].*)?|\d{4}[-/](0?[1-9]|1[0-2])|\d{4}[-/ ]?Q[1-4]|Q[1-4][-/ ]\d{4}|"
                  r"[A-Z][a-z]{2}[- ](\d{2}|\d{4})|"
                  r"(January|February|March|April|June|July|August|September|October|November|December)[- ]\d{4}|"
                  r"\d{4}[- ][A-Z][a-z]{2}|\d{4}M(0?[1-9]|1[0-2])")
DAY = re.compile(r"(19|20)\d\d(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])")  # 20240131
NUMBER = re.compile(r"[-+]?[\d.]+([eE][-+]?\d+)?")


YEAR = 31556952  # seconds, on average
EPOCH, LATEST = 1e8, 1.3e10  # times between these are moments of the calendar, in seconds since 1970


def of_calendar(times: np.ndarray) -> bool:
    """Whether these are moments of the calendar, as one of them is for sure."""
    return bool(EPOCH <= np.nanmax(np.abs(times), initial=0) < LATEST)


def shown(time: float, dated: bool = False) -> str:
    """A time for people: of the calendar where it is one, as those `dated` are, to the second."""
    if dated or EPOCH <= abs(time) < LATEST:
        with suppress(ValueError, OverflowError, OSError):
            return datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%d %H:%M:%S")
        return f"{time:.0f}"
    return f"{time:.6g}"


def written(time: float) -> str:
    """A time as tables have it: ISO 8601 where that is a moment of the calendar, read again as what it was."""
    with suppress(ValueError, OverflowError, OSError):
        text = datetime.fromtimestamp(time, UTC).replace(tzinfo=None).isoformat(" ")
        if time >= EPOCH and _moment(text) == time:
            return text
    return repr(time)


def lasting(seconds: float) -> str:
    """A gap for people: 0:15:00, 1 day, month."""
    days = seconds / 86400
    return {1: "month", 3: "quarter", 12: "year"}.get(_months(days)) or \
        str(timedelta(seconds=seconds)).removesuffix(", 0:00:00")


def _months(days: float) -> int:
    """How many months a gap of so many days is; 0 where it is no month, quarter or year."""
    return 1 if 28 <= days <= 31 else 3 if 90 <= days <= 92 else 12 if 365 <= days <= 366 else 0


def span(times: np.ndarray) -> str:
    """The first and the last of times."""
    finite = times[np.isfinite(times)]
    dated = of_calendar(finite)
    return f"{shown(finite.min(), dated)} to {shown(finite.max(), dated)}" if len(finite) else ""


def steady(seconds: np.ndarray) -> float:
    """The gap that lies between most of these moments (N,) and the next, or nearly; nan where there is none."""
    gaps = np.diff(np.sort(seconds[np.isfinite(seconds)]))
    near = gaps[np.abs(gaps - (middle := np.median(gaps))) <= middle / 20] if len(gaps) > 1 else gaps[:0]
    sizes, counts = np.unique(near, return_counts=True)
    return float(sizes[counts.argmax()]) if 2 * len(near) > len(gaps) and middle > 0 else np.nan


@dataclass(frozen=True)
class Clock:
    """The moments of a series. name: of the column that says them. times: (T,), in order. gap: between most of them."""

    name: str
    times: np.ndarray
    gap: float

    def after(self, count: int) -> np.ndarray:
        """(count,) the times that follow: at the same days of the next months, on weekdays only where all were, or at
        the same gap."""
        last, steps, day = self.times[-1], np.arange(1, count + 1), np.timedelta64(1, "D")
        if not of_calendar(self.times) or self.gap < 86400:
            return np.asarray(last + steps * self.gap)
        moment = np.datetime64(round(last), "s")
        date = moment.astype("M8[D]")
        if months := _months(self.gap / 86400):
            first, final = date.astype("M8[M]"), (date + day).astype("M8[M]") > date.astype("M8[M]")
            begins = first + steps * months
            dates = (begins + 1).astype("M8[D]") - day if final else begins.astype("M8[D]") + (date - first)
        elif self.gap == 86400 and np.is_busday(np.round(self.times).astype("M8[s]").astype("M8[D]")).all():
            dates = np.busday_offset(date, steps)
        else:
            return np.asarray(last + steps * self.gap)
        return (dates + (moment - date)).astype("M8[s]").astype(np.float64)

    def format(self, times: np.ndarray) -> list[str]:
        """Times as text: dates if all times are whole days, dates and times of day else, numbers if not of a calendar.
        """
        if not of_calendar(self.times):
            return [f"{time:.10g}" for time in times.tolist()]
        days = bool((self.times % 86400 == 0).all() and (times % 86400 == 0).all())
        fine = bool((times != np.round(times)).any())
        form = "%Y-%m-%d" if days else "%Y-%m-%d %H:%M:%S.%f" if fine else "%Y-%m-%d %H:%M:%S"
        return [datetime.fromtimestamp(time, UTC).strftime(form) for time in times.tolist()]


def timelike(cells: Iterable[Any]) -> bool:
    """Moments in the calendar, not just numbers."""
    texts = [cell if isinstance(cell, datetime) else str(cell).strip() for cell in cells if cell is not None]
    return bool(texts) and all(
        isinstance(text, datetime)
        or ((moment := _moment(text)) is not None and (moment >= 1e8 or not NUMBER.fullmatch(text)))
        or bool(DATE.fullmatch(text) or DAY.fullmatch(text)) for text in texts)


def _moment(text: str) -> float | None:
    """Seconds of a number, of an ISO time (UTC without a zone), or of a time of day; else None."""
    try:
        value = float(text)
        return value if np.isfinite(value) else None
    except ValueError:
        pass
    if clock := re.fullmatch(r"\s*(\d+):([0-5]\d)(?::([0-5]\d(?:\.\d+)?))?\s*", text):
        return int(clock[1]) * 3600.0 + int(clock[2]) * 60 + float(clock[3] or 0)
    if clock := re.fullmatch(r"\s*(\d+):([0-5]\d\.\d+)\s*", text):
        return int(clock[1]) * 60.0 + float(clock[2])
    try:
        moment = datetime.fromisoformat(text.strip())
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None


def seconds_of(column: Any, when_format: str | None, path: Path, name: str = "") -> np.ndarray:
    """Times as float64 seconds; NaN where one cannot be read. Whole columns at once where Arrow can. name: of the
    column; where it says a date, numbers may be the days of a spreadsheet."""
    seconds = _seconds(column, when_format, path)
    distinct = seconds[np.isfinite(seconds)]
    if when_format is None and DATED.search(name) and len(distinct) and (distinct >= SERIAL[0]).all() and \
            (distinct < SERIAL[1]).all():
        return np.asarray(np.round((seconds - 25569) * 86400))  # the first of January 1970
    return seconds


def _seconds(column: Any, when_format: str | None, path: Path) -> np.ndarray:
    import pyarrow as pa
    import pyarrow.compute as compute

    if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
        micros = column.cast(pa.timestamp("us", getattr(column.type, "tz", None)), safe=False).cast(pa.int64())
        return np.asarray(compute.divide(micros.cast(pa.float64()), 1e6).to_numpy(zero_copy_only=False))
    if pa.types.is_duration(column.type) or pa.types.is_time(column.type):
        unit = pa.duration("us") if pa.types.is_duration(column.type) else pa.time64("us")
        return np.asarray(column.cast(unit).cast(pa.int64()).to_numpy(zero_copy_only=False) / 1e6)
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        try:
            return scaled(column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False))
        except pa.ArrowException as error:
            raise SegueError(f"{path}: a column of {column.type} is no time; name another with when=") from error
    text = compute.utf8_trim_whitespace(column.cast(pa.string()))
    return _guessed(text, path) if when_format is None else _parsed(text, when_format, path)


def _guessed(text: Any, path: Path) -> np.ndarray:
    """Seconds of times in an unknown format: numbers, ISO 8601, or another usual one."""
    import pyarrow as pa

    with suppress(pa.ArrowException):
        return scaled(text.cast(pa.float64()).to_numpy(zero_copy_only=False))
    for zone in (None, "UTC"):
        with suppress(pa.ArrowException):
            return text.cast(pa.timestamp("us", zone)).cast(pa.int64()).to_numpy(zero_copy_only=False) / 1e6
    encoded = text.dictionary_encode()
    distinct = encoded.dictionary.to_pylist()
    seconds = np.array([np.nan if (moment := _moment(value)) is None else moment for value in distinct])
    if np.isnan(seconds).mean() >= 0.5:
        seconds = _dated(distinct, path)
    places = encoded.indices.fill_null(len(seconds)).to_numpy(zero_copy_only=False)
    times = np.append(seconds, np.nan)[places]
    return scaled(times) if 2 * sum(bool(NUMBER.fullmatch(value)) for value in distinct) > len(distinct) else times


QUARTER = re.compile(r"(?P<year>\d{4})[-/ ]?Q(?P<quarter>[1-4])|Q(?P<first>[1-4])[-/ ](?P<last>\d{4})")
AMERICA = {"E": "-0500", "C": "-0600", "M": "-0700", "P": "-0800"}  # in winter
POINTED = re.compile(r"\b(\d{1,2})\.(\d\d)\.(\d\d)\.(\d{1,9})(?= ?[AP]M)")  # as Oracle writes it
UNTIL = re.compile(r"(.*\d:\d\d) - .*\d:\d\d.*")  # of a time from and to, the first
# A written time in three: the date and the clock to the second, its fraction, its zone.
WRITTEN = re.compile(r"\[?(?P<clock>.*?)(?:(?<=:\d\d:\d\d)[.,](?P<fraction>\d{1,9}))?(?P<half> ?[AP]M)?\s*"
                     r"(?P<zone>Z|UTC|GMT|[ECMP][SD]T|(?<=[\d ])[+-]\d\d:?\d\d)?(?P<year> \d{4})?\]?")


def _dated(texts: list[str], path: Path) -> np.ndarray:
    """Seconds of times written in any usual way other than ISO 8601; all in one and the same."""
    import pyarrow as pa

    clocks, offsets = [], []
    for text in texts:
        text = POINTED.sub(r"\1:\2:\3.\4", UNTIL.sub(r"\1", text))
        text = QUARTER.sub(lambda said: f"{said['year'] or said['last']}-"
                           f"{3 * int(said['quarter'] or said['first']) - 2:02d}", text)
        parsed = WRITTEN.fullmatch(text)
        if parsed and (parsed["zone"] or "")[:1] in ("+", "-") and not re.search(r"\d[:.]\d\d", parsed["clock"]):
            parsed = None  # 14-08-2018
        fraction, zone = (parsed["fraction"], parsed["zone"] or "") if parsed else (None, "")
        if zone[1:] in ("ST", "DT"):
            zone = f"-{int(AMERICA[zone[0]][1:]) - 100 * (zone[1] == 'D'):04d}"
        zone_offset = int(f"{zone[0]}1") * (int(zone[1:3]) * 3600 + int(zone[-2:]) * 60) \
            if zone[:1] in tuple("+-") else 0
        parts = (parsed["clock"], parsed["half"] or "", parsed["year"] or "") if parsed else (text,)
        clocks.append(" ".join("".join(parts).split()))
        offsets.append(float(f"0.{fraction or 0}") - zone_offset)
    sample = pa.array(clocks[:: max(1, len(clocks) // 500)], pa.string())
    candidates = [form for form in FORMATS if np.isnan(_living(_parsed(sample, form, path))).mean() < 0.5]
    column = pa.array(clocks, pa.string())
    tried = [_living(_parsed(column, form, path)) for form in candidates]
    failures = [int(np.isnan(times).sum()) for times in tried]
    if not tried or min(failures) > len(texts) // 2:
        example = next((text for text in texts if text), "")
        raise SegueError(f"{path}: {example[:40]!r} is no time known here; give when_format= (as '%d.%m.%Y %H:%M'), or "
                         "seconds, or ISO times")
    best = [times for times, failed in zip(tried, failures) if failed == min(failures)]
    if any(not np.array_equal(best[0], other, equal_nan=True) for other in best[1:]):
        in_order = [times for times in best if (np.diff(times) > 0).all() or (np.diff(times) < 0).all()]
        in_order = in_order if len(texts) > 2 else []
        even = [times for times in in_order if _unevenness(times) < 4]  # 01/02/1990 behind 01/01/1990: months, not days
        if len(in_order) == 1 or len(even) == 1:  # rows were kept as they came
            return (in_order[0] if len(in_order) == 1 else even[0]) + np.array(offsets)
        dashed = [times for form, times, failed in zip(candidates, tried, failures)
                  if failed == min(failures) and form.startswith("%d-%m-%Y")]
        if dashed:  # whoever writes 01-04-1982 mostly means April
            return dashed[0] + np.array(offsets)
        raise SegueError(f"{path}: the times may be day/month or month/day; give when_format='%d/%m/%Y ...' or "
                         "'%m/%d/%Y ...'")
    return best[0] + np.array(offsets)


def _unevenness(times: np.ndarray) -> float:
    """The longest gap between times (N,) in shortest ones."""
    gaps = np.abs(np.diff(times))
    return float(gaps.max() / gaps.min())


def _parsed(text: Any, form: str, path: Path) -> np.ndarray:
    """Seconds by a format, NaN where a text has another form."""
    import pyarrow as pa
    import pyarrow.compute as compute

    try:
        moments = compute.strptime(text, form, "s", error_is_null=True)
    except (pa.ArrowException, ValueError) as error:
        raise SegueError(f"{path}: '{form}' is no time format ({error})") from error
    return moments.cast(pa.int64()).cast(pa.float64()).to_numpy(zero_copy_only=False)


def _living(times: np.ndarray) -> np.ndarray:
    """NaN for what lies before the year 1500 or after 2300: the format was another one."""
    return np.where((times > -14831769600) & (times < 10413792000), times, np.nan)


def scaled(numbers: np.ndarray) -> np.ndarray:
    """Numbers in seconds: of an epoch in milli-, micro- or nanoseconds (told by their size), or dates written as one
    number (202401, 20240131, with hours, minutes and seconds behind: 20240131235959)."""
    usable = np.isfinite(numbers)
    finite = numbers[usable]
    for digits in (6, 8, 10, 12, 14):
        if finite.size > (5 if digits == 6 else 0) and (finite == np.round(finite)).all() and _calendar(finite, digits):
            dates = [datetime.strptime(str(int(value)), "%Y%m%d%H%M%S"[: digits - 2]) for value in finite.tolist()]
            seconds = np.full(len(numbers), np.nan)
            seconds[usable] = [date.replace(tzinfo=UTC).timestamp() for date in dates]
            return seconds
    middle = float(np.median(np.abs(finite))) if finite.size else 0.0
    scale = 1e9 if middle > 1e17 else 1e6 if middle > 1e14 else 1e3 if middle > 1e11 else 1.0
    return np.where(usable, numbers / scale, np.nan)


def _calendar(numbers: np.ndarray, digits: int) -> bool:
    """Whether all are days of the calendar written as numbers of so many digits."""
    days = numbers * 100 + 1 if digits == 6 else numbers // 10 ** (digits - 8)
    if days.min() < 19000101 or days.max() > 21001231:
        return False
    clock = numbers.astype(np.int64) % 10 ** max(digits - 8, 0) * 10 ** (14 - digits)
    clocks = clock // 10000 < 24, clock // 100 % 100 < 60, clock % 100 < 60
    try:
        for day in np.unique(days).astype(np.int64).tolist():
            datetime.strptime(str(day), "%Y%m%d")
    except ValueError:
        return False
    return bool(np.logical_and.reduce(clocks).all())
