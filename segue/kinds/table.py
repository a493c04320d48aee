"""Interactions and event logs: tables of who did what when, and logs of one case a line."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeGuard
from unicodedata import normalize

import numpy as np

from segue.errors import SegueError
from segue.files import atomic_write, write_text
from segue.kinds.base import ARFF, HEAD, Dataset, Kind, Problems, Record, as_utf8, bad, of_class, words
from segue.kinds.codecs import Codec, ItemCodec
from segue.kinds.columns import classes_of, take_classes, told
from segue.kinds.frame import (
    DELIMITED,
    JSON,
    PARQUET,
    ROWS,
    TABULAR,
    Frame,
    Look,
    are_ids,
    glance,
    is_array,
    is_parquet,
    listed,
    load_table,
    said,
    times_a_line,
)
from segue.kinds.frame import number as is_number
from segue.kinds.games import as_pgn, moves_in
from segue.kinds.moments import CLOCK, spelled, together
from segue.kinds.packed import bare, opened, twin
from segue.kinds.text_columns import text_columns
from segue.kinds.times import NUMBER, seconds_of, span, steady, timelike, written


@lru_cache(maxsize=1 << 14)
def plain(name: str) -> str:
    """A name in lower case, without signs and accents."""
    return "".join(char for char in normalize("NFKD", name.casefold()) if char.isalnum())


def named(text: str) -> tuple[str, ...]:
    return tuple(map(plain, words(text)))


# Column names that say who, what and when, best first; compared as `plain`, with or without an ending such as "id".
# What is said weakly is believed only where no column of text says more.
WHO = named("who caseconceptname case user userpseudo session customer visitor patient sender subject client account "
            "member player reviewer author actor login listener reader student learner driver employee buyer entity "
            "trace episode trajectory device bike taxi vehicle sequenceid playlist host person owner order invoice "
            "basket cart transaction trip container cip u kunde kunden benutzer nutzer fall vorgang vorgangs auftrag "
            "auftrags antrag antrags bestellung sitzung aanvraag dossiers utilisateur "
            "usager dossier "
            "usuario cliente caso utente gebruiker klant zaak пользователь клиент 用户 客户 会员 ユーザー 顧客 会員 "
            "사용자 고객")
WHAT = named("what item activity conceptname eventconceptname event action movie product asin sku stock song track "
             "artist book article page url command symbol task operation diagnosis icd icd9 icd10 procedure drug "
             "medication mark eventtype request moves isbn station startstation pulocation video film news app game "
             "recipe business venue poi csuristem stopid stopname evt aid artikel produkt aktivität ereignis aktion "
             "produit activité évènement producto artículo actividad acción prodotto articolo attività produto "
             "activiteit товар событие действие 商品 物品 活动 行为 行動 상품 활동")
WEAKLY = named("type state status step key label token code note items events marks types typeevent activities actions "
               "songs tracks problem skill exercise concept target course lesson k i")
WHEN = named("when time timestamp datetime date ts unixtimestamp unixreviewtime completetimestamp timetimestamp "
             "starttimestamp starttime eventtime createdat created times timestamps timesincestart day t year")
# A sequence of sets as SPMF has it: -1 behind each set, -2 at the end.
SETS = re.compile(rb"(\s*@[^\n]*\n)*\s*\d+ (\d+ |-1 )*-1 -2\s*(\n|$)")
# Lines of numbers below the names that they stand for, as the visits of msnbc.com are kept (UCI).
NUMBERED = re.compile(rb"%[^\n]*\n\s*(?P<names>[^%\d\n]+)\n\s*%[^\n]*\n(?P<cases>(\s*\d[\d ]*(\r?\n|$))+)")
OCEL = {"ocel:activity", "ocel:timestamp"}  # columns of an object-centric log
HOW = named("level loglevel severity priority")  # of a log: says neither who nor what
ENDINGS = ("", *words("id name number no idx index code key num uri en nummer nr nbr numero"))
IDS = re.compile(r"(?i:(^|[ _.-])(id|no|number|nr|nbr|num|key))$|[a-z](Id|ID|No|Number|Nr|Key)$|[a-z]nummer$")
MOMENTS = ("timestamp", "datetime", "date", "time", "at", "ts", "datum", "zeit")  # what other names end on
ADDRESS = re.compile(r"\S+@\S+\.\w+|\d+\w? .*\b(street|st|avenue|ave|road|rd|lane|ln|drive|dr|blvd|way|court|hill)\b.*",
                     re.IGNORECASE)
UNITS = re.compile(r"(utc|gmt|local|epoch|unix|iso|seconds?|secs?|millis(econds)?|micros|nanos|[mun]?s)+$")  # behind
BETWEEN = re.compile(r"\s*[→,]\s*|\s+")  # what may stand between items that somebody types
LONGEST = 40  # words of an item
MANY = 100_000  # rows by which a column is judged
FEW = 10  # rows that do not tell what comes again
MEASURED = "read them with kind=series, or each row by itself with kind=rows, or bin them into symbols first"
THIS = "the file"  # who, where a file is all of one entity
THAT = "event"  # what, where nothing is known of events but when they were

Roles = tuple[str | None, str, str | None]  # the columns that say who, what and when


class Events(Kind):
    """Who did what, when: tables (CSV, TSV and other delimited text, JSON Lines, a JSON array, Parquet, XES logs) with
    a row an event, or a row a whole sequence. An object is the list of one entity's items (str), its unit the event.

    The columns are found from names and contents, or named (see `read`). A row without one of them is stepped over and
    told; a table in which they cannot be found is a SegueError that lists its columns.
    """

    name = "events"
    unit = "event"
    storage = "items"
    written = (".csv", ".tsv", ".jsonl", ".pgn", ".txt")
    split_by = "entity"
    advisor = "neighbours of items"

    def sniff(self, path: Path, head: bytes) -> float:
        suffix = path.suffix.lower()
        if suffix == ".xes":
            return 0.9 if b"<log" in head else 0.0
        if is_array(head):
            return 0.9
        if suffix not in TABULAR and not is_parquet(head):
            return 0.0
        if suffix not in JSON | PARQUET and b"\0" not in head and times_a_line(_whole_lines(head)):
            return 0.87
        table = with_lists(glance(path, head))
        if table is None:
            return 0.9 if suffix in PARQUET or is_parquet(head) else 0.0
        table = with_moments(table)
        sorts = DELIMITED | JSON | PARQUET
        if suffix not in sorts and table.form == "delimited" and not table.regular:
            return 0.0
        if (table.form == "delimited" and suffix not in sorts and not table.rows) or in_blocks(table, head):
            return 0.0  # one line; words of sentences, a line a word and a blank line behind each sentence
        names = table.names if table.headed else []
        if set(names) >= OCEL:
            return 0.9
        who, what, weak, when = (named_by(names, usual) for usual in (WHO, WHAT, WEAKLY, WHEN))
        thing = what or weak
        if thing and any(isinstance(cell, list) for cell in table.column(thing)):
            return 0.9 if what or not text_columns(table) else 0.65
        if who and not thing and (others := [name for name in names if name != who and numbered(name) and
                                             not _same(table.column(name), table.column(who))]):
            what = thing = others[0] if len(others) == 1 else None
        if thing and who:
            return 0.9 if what else 0.65
        if (what and when) or merged(table) or (thing and len(names) == 1):
            return 0.75
        if names and self._guessed(path, table):
            return 0.72
        if addresses(table):
            return 0.05
        if not table.headed and _interactions(table):
            return 0.85
        listed = _listed(table)
        if (len(listed) == 1 or (listed and not table.headed)) and not text_columns(table) and \
                not are_wordy([each for cell in table.column(listed[0]) if isinstance(cell, list) for each in cell]):
            return 0.85
        wordy = not table.headed and any(are_wordy(table.column(name)) for name in table.names[:2])
        vague = wordy or table.form in ("json", "document")
        return 0.0 if suffix not in sorts else 0.1 if vague else 0.43 if _has_roles(path, table) else 0.25

    def _guessed(self, path: Path, table: Look) -> bool:
        """Whether who and what can be told from what is in a table of moments that do not come at one pace."""
        import pyarrow as pa

        when = timed(table.names, table.column)
        rest = [name for name in table.names if name != when]
        roles = told_apart(rest, table.column, named_by(rest, WHO), named_by(rest, WHAT))
        if when is None or not timelike(table.column(when)) or None in roles:
            return False
        with suppress(SegueError):
            moments = seconds_of(pa.array(map(str, table.column(when))), None, path, when)
            return len(np.unique(moments)) < len(moments) or not np.isfinite(steady(moments))
        return False

    def read(self, path: Path, problems: Problems | None = None, *, who: str | None = None, what: str | None = None,
             when: str | None = None, also: Sequence[str] = (), when_format: str | None = None,
             classes: str | None = None, encoding: str = "utf-8") -> Iterator[Record]:
        """One record an entity, its events in the order of time (of the file, where there is no time).

        who, what, when: names (or, without a header, numbers from 1) of the columns; found from names and contents if
        None. who='the file': all events of a file are of one entity. what='event': all events are of one sort, of which
        only the time is known, as where rows are lists of times alone. also: further columns of numbers, kept as
        channels. when_format: of text times, as for `strptime`, where none of the usual ways is meant. classes: the
        column that says of which class each entity is, the same in all its rows ("": one called so, if there is one),
        which its name then tells. Channels: `time` (seconds since 1970, or whatever number was given) and `gap` (since
        the event before; 0 for the first). A column of lists (JSON Lines, Parquet) makes each row a sequence.
        """
        soft = problems if problems is not None else Problems()
        yield from self.read_all([path], soft, frozenset([path]), who=who, what=what, when=when, also=also,
                                 when_format=when_format, classes=classes, encoding=encoding)
        if problems is None and soft:
            raise SegueError(str(soft[0]))

    def read_all(self, paths: list[Path], problems: Problems, named: frozenset[Path], *,  # type: ignore[override]
                 who: str | None = None, what: str | None = None, when: str | None = None, also: Sequence[str] = (),
                 when_format: str | None = None, classes: str | None = None,
                 encoding: str = "utf-8") -> Iterator[Record]:
        """All files are one table: the events of an entity come together whichever files hold them."""
        import pyarrow.types as types

        also = [also] if isinstance(also, str) else list(also)
        found: list[tuple[Frame, Roles]] = []
        of: str | None = None
        for path in paths:
            try:
                frame = _readied(load_table(path, problems, encoding, (who, what, when, *also, classes)))
                if classes:
                    of = take_classes(frame, classes, (who, what, when, *also))
                roles = _roles(frame, who, what, when)
                if classes == "":  # of what is left
                    of = take_classes(frame, classes, (*roles, *also)) or of
                found.append((frame, roles))
            except SegueError as error:
                if path in named:
                    raise
                problems.refuse(path, error)
        if not found:
            return
        frames = _alike(found, problems, named)
        first, roles = frames[0]
        columns = first.columns
        meant = [*zip(("who", "what", "when"), roles), *(("also", name) for name in also)]
        problems.note = said([("class", of), *meant], columns)
        for name in also:
            if name not in columns:
                raise SegueError(f"{first.path}: there is no column '{name}'; there are {', '.join(columns)}")
        def has_lists(name: str | None) -> bool:
            return name in columns and (types.is_list(columns[name].type) or types.is_large_list(columns[name].type))

        whole = roles[1] if roles[1] in columns else roles[2]
        if has_lists(whole) and not has_lists(roles[0]):
            for frame, _ in frames:
                yield from _lists(frame, roles, also, when_format, of, problems)
            return
        if has_lists(whole):  # a table within each row
            frames = [(laid_out(frame, [*filter(None, roles), *also]), roles) for frame, _ in frames]
        parts = [_events(frame, roles, also, when_format, problems) for frame, _ in frames]
        parts = [part for part in parts if len(part[0])]
        between = ""
        if roles[2] and parts:
            between = span(np.concatenate([part[2] for part in parts]))
            problems.note = said([("class", of), *meant], columns, between)
        for record, label in _grouped(parts, bool(roles[2]), also, classes):
            if label is None:
                problems.note = said(meant, columns, between)
                yield record
            elif told(problems, first.path, record.name, of, label):
                yield replace(record, name=of_class(record.name, label))

    def codec(self, data: Dataset, *, min_count: int = 1, vocabulary: int | None = None) -> Codec:
        """One item a token, most frequent first, and an unknown item. min_count: items seen less often are unknown.
        vocabulary: at most so many tokens."""
        return ItemCodec.count(data.vocabulary, min_count, vocabulary)

    def write(self, objects: Iterable[Sequence[str | int] | Record], path: str | Path) -> None:
        """CSV (or TSV or JSON Lines, as the file is called) with the columns who, what and, where a `Record` carries
        time, when (of the calendar, or a number); games of chess, where the file is called .pgn, as PGN."""
        if Path(path).suffix.lower() == ".pgn":
            games = [obj if isinstance(obj, Record) else Record(list(obj)) for obj in objects]
            write_text(path, "".join(as_pgn([*map(str, game.object)], game.name or "?") for game in games))
            return
        rows: list[list[Any]] = []
        timed = False
        for number, obj in enumerate(objects, 1):
            record = obj if isinstance(obj, Record) else Record(list(obj), name=f"sequence{number}")
            times = record.channels.get("time")
            timed = timed or times is not None
            rows += [[record.name or f"sequence{number}", item, "" if times is None else written(float(times[i]))]
                     for i, item in enumerate(record.object)]
        names, suffix = ["who", "what", "when"][: 3 if timed else 2], Path(path).suffix.lower()
        if suffix == ".jsonl":
            write_text(path, "".join(json.dumps(dict(zip(names, row)), ensure_ascii=False) + "\n" for row in rows))
            return
        with atomic_write(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as handle:
            writer = csv.writer(handle, delimiter="\t" if suffix == ".tsv" else ",", lineterminator="\n")
            writer.writerow(names)
            writer.writerows(row[: len(names)] for row in rows)

    def show(self, obj: Sequence[str | int]) -> str:
        """One line: a → b → c."""
        return " → ".join(map(str, obj))

    def normalise(self, obj: Any, known: Collection[str] = ()) -> list[Any]:
        """Text is cut into items at commas and arrows; where there are none, at blanks. A `known` item is one whatever
        is in it, and where all of them are single signs, a word is cut into its own."""
        if isinstance(obj, bytes):
            obj = obj.decode("utf-8", "replace")
        if isinstance(obj, str) and (moves := moves_in(obj)) and set(moves) <= set(known) and re.search(r"\d\.", obj):
            return moves  # 1. e4 e5 2. Nf3
        return _typed(obj.strip(), known) if isinstance(obj, str) else list(obj)


class Cases(Kind):
    """A log of one case a line: each sign an activity, or each word. An object is a list of items (str), the unit is
    the event; it is asked for by name, unless all items are whole numbers. What is not text is a SegueError.

    Where the file's name says "event" and one that says "time" in its place lies beside it, that one holds a number
    for each event (as the data of recurrent marked temporal point processes are kept, Du et al. 2016)."""

    name = "cases"
    unit = "event"
    storage = "items"
    split_by = "name"
    advisor = "neighbours of items"

    def sniff(self, path: Path, head: bytes) -> float:
        """Lines of whole numbers that come again and again, or, in a file that is called a table, lines of few or many
        cells that do; other cases cannot be told from text: ask for them."""
        if b"\0" in head:
            return 0.0
        two = beside(path, "time", "event") or beside(path, "event", "time")
        if two is not None and re.fullmatch(rb"[-+.\deE\s]*", head):
            return 0.92
        lines = head.split(b"\n")
        if len(head) >= HEAD and len(lines) > 1:
            lines.pop()
        if path.suffix.lower() in DELIMITED and not ARFF.match(head):
            cells = [_cells(line.decode("utf-8", "replace")) for line in lines if line.strip()]
            if any(re.search(rb"[^,\s]\s*,\s*,\s*[^,\s]", line) for line in lines):
                return 0.0  # a table with empty cells among others
            known = {cell for line in cells for cell in line}
            ragged = len({len(line) for line in cells}) > 2
            return 0.83 if ragged and 4 * len(known) <= sum(map(len, cells)) else 0.0
        if SETS.match(head) or NUMBERED.match(head):
            return 0.88
        items = [line.split() for line in lines if line.strip()]
        flat = [item for line in items for item in line]
        if not items or not all(map(bytes.isdigit, flat)) or len(flat) < 2 * len(items) or len(items[0]) < 2:
            return 0.0
        ragged = len({len(line) for line in items}) > 1
        again = 2 * len(set(flat)) <= len(flat)
        return 0.83 if again or (ragged and _counted([line.decode() for line in lines])) else 0.0

    def read(self, path: Path, problems: Problems | None = None, *, elements: str | None = None,
             timed: bool = True, encoding: str = "utf-8") -> Iterator[Record]:
        """One record a line; empty lines are no cases. elements: "characters", "words" or "cells" between commas (told
        apart, if None, by whether a line of the first thousand holds a blank or a tab; cells in a CSV file). Where the
        first words are whole numbers that count the lines, they name them. timed: where there is a file of times beside
        this one, its numbers are the channels `time` and `gap`, as of events."""
        if elements not in (None, "characters", "words", "cells"):
            raise SegueError(f"elements is 'characters', 'words' or 'cells', not {elements!r}")
        with opened(path) as handle:
            raw = as_utf8(path, handle.read(), encoding, problems)
        lines, called = raw.decode().splitlines(), list[str]()
        if numbered_cases := NUMBERED.match(raw[:HEAD]):
            called = numbered_cases["names"].decode().split()
            lines = ["" if i < raw.count(b"\n", 0, numbered_cases.start("cases")) else line
                     for i, line in enumerate(lines)]
        if elements is None and SETS.match(raw):
            yield from _sets(path, lines, problems)
            return
        if elements is None and bare(path).suffix.lower() in DELIMITED:
            elements = "cells"
        if elements is None:
            elements = "words" if any(len(line.split()) > 1 for line in lines[:1000]) else "characters"
        found = False
        clock = beside(path, "event", "time") if timed else None
        times = _lines_of_numbers(clock, encoding) if clock is not None else None
        named = elements == "words" and times is None and _counted(lines)
        if problems is not None and (named or clock is not None):
            problems.note = "the first word of a line names it" if named else "when=the file of times beside it"
        for number, line in enumerate(lines, 1):
            items = line.split() if elements == "words" else _cells(line) if elements == "cells" else list(line.strip())
            if not items:
                continue
            if called:
                items = [called[int(item) - 1] if 0 < int(item) <= len(called) else item for item in items]
            found, channels = True, {}
            if times is not None:
                own = times[number - 1] if number <= len(times) else np.zeros(0)
                if len(own) != len(items) or not np.isfinite(own).all():
                    bad(problems, path, f"line {number}", None,
                        f"{clock} has not one number for each of its {len(items)} events; mend or remove it")
                    continue
                order = np.argsort(own, kind="stable")
                own, items = own[order], [items[i] for i in order]
                channels = {"time": own, "gap": np.diff(own, prepend=own[0])}
            yield Record(items[named:], channels, items[0] if named else f"{path}:{number}")
        if not found:
            raise SegueError(f"{path}: the file is empty; give a file with one case a line")

    def read_all(self, paths: list[Path], problems: Problems, named: frozenset[Path],
                 **options: Any) -> Iterator[Record]:
        """Files of times belong to those beside them; where some files have none, all are read without."""
        clocks = {clock for path in paths if (clock := beside(path, "event", "time")) is not None}
        files = [path for path in paths if path not in clocks]
        for path in files:
            if (events := beside(path, "time", "event")) is not None:
                raise SegueError(f"{path}: holds the times of {events}; give that file")
        some = [path for path in files if beside(path, "event", "time") is None]
        if len(some) < len(files) and some:
            problems.refuse(some[0], "has no file of times beside it, so all files are read without times; read those "
                                     "that have apart")
            options["timed"] = False
        yield from super().read_all(files, problems, named, **options)

    codec = Events.codec
    normalise = Events.normalise

    def write(self, objects: Iterable[Sequence[str | int] | Record], path: str | Path) -> None:
        """One case a line; without blanks between where every item is one sign, with commas where one has a blank."""
        cases = [[str(item) for item in (obj.object if isinstance(obj, Record) else obj)] for obj in objects]
        glue = _glue(item for case in cases for item in case)
        write_text(path, "".join(glue.join(case) + "\n" for case in cases))

    def show(self, obj: Sequence[str | int]) -> str:
        items = [str(item) for item in obj]
        return _glue(items).join(items)


def _sets(path: Path, lines: Sequence[str], problems: Problems | None) -> Iterator[Record]:
    """Sequences of sets, a line each, as SPMF has them; the items of a set one after the other. Lines with @ITEM say
    what items are called."""
    called = dict(line.split("=", 2)[1:] for line in lines if line.startswith("@ITEM=") and line.count("=") > 1)
    if problems is not None:
        problems.note = "sequences of sets (SPMF), the items of a set one after the other"
    for number, line in enumerate(lines, 1):
        items = line.split()
        if not items or line.startswith(("@", "%", "#")):
            continue
        if items[-1] != "-2" or not all(item.lstrip("-").isdigit() for item in items):
            bad(problems, path, f"line {number}", None, "not a sequence of sets of numbers that ends with -2; mend it")
        elif said := [called.get(item, item) for item in items if item not in ("-1", "-2")]:
            yield Record(said, name=f"{path}:{number}")


def _whole_lines(head: bytes) -> str:
    """The beginning of a file without a last line that may be cut."""
    return head.decode("utf-8", "ignore").rpartition("\n")[0] if len(head) >= HEAD else head.decode("utf-8", "ignore")


def _typed(text: str, known: Collection[str]) -> list[str]:
    """The items that a text names, see `Events.normalise`: at each place the longest known one."""
    signs = list(BETWEEN.finditer(text))
    begins, ends = [0, *(sign.end() for sign in signs)], [*(sign.start() for sign in signs), len(text)]
    marked = [i for i, sign in enumerate(signs) if not sign[0].isspace()]
    places = [*marked, len(signs)] if marked else range(len(ends))  # where an item may end
    single = bool(known) and all(len(item) == 1 for item in known)
    items: list[str] = []
    at = 0
    while at < len(begins):
        ahead = [i for i in places if at <= i < at + LONGEST] or [next(i for i in places if i >= at)]
        last = next((i for i in reversed(ahead) if text[begins[at] : ends[i]] in known), ahead[0])
        item = text[begins[at] : ends[last]]
        items += [item] if not single or item in known else [sign for sign in item if not sign.isspace()]
        at = last + 1
    return list(filter(None, items))


def beside(path: Path, word: str, other: str) -> Path | None:
    """The file next to `path` whose name has `other` in place of `word`, packed or not, or None."""
    if word not in path.name:
        return None
    name = bare(path).name.replace(word, other)
    return twin(path, name)


def _lines_of_numbers(path: Path, encoding: str) -> list[np.ndarray]:
    """(n,) float64 of each line of a file."""
    with opened(path) as handle:
        lines = as_utf8(path, handle.read(), encoding).decode().splitlines()
    numbers = []
    for number, line in enumerate(lines, 1):
        try:
            numbers.append(np.array(line.split(), dtype=np.float64))
        except ValueError as error:
            raise SegueError(f"{path}, line {number}: holds more than numbers ({error}); mend it, or read without it "
                             "(timed=False)") from error
    return numbers


def _cells(line: str) -> list[str]:
    """What stands between commas, quoted or not."""
    with suppress(csv.Error):
        return [cell.strip() for cell in next(csv.reader([line]), []) if cell.strip()]
    return [cell.strip() for cell in line.split(",") if cell.strip()]


def _glue(items: Iterable[str]) -> str:
    """What stands between such items on a line."""
    items = list(items)
    return "" if all(len(item) == 1 for item in items) else "," if any(" " in item for item in items) else " "


def named_by(names: Iterable[str], usual: Sequence[str]) -> str | None:
    """The column whose name, or last part of a name, says what is looked for."""
    return next(iter(ranked(names, usual)), None)


def ranked(names: Iterable[str], usual: Sequence[str]) -> list[str]:
    """All such columns, the one that says it best first."""
    found = [(usual.index(stem), ENDINGS.index(ending), i, name) for i, name in enumerate(names)
              for whole in {plain(name), plain(name.rpartition(".")[2])} for ending in ENDINGS
              if whole.endswith(ending) and (stem := whole.removesuffix(ending)) in usual]
    return list(dict.fromkeys(name for *_, name in sorted(found)))


def numbered(name: str) -> bool:
    """Whether a column is called as one of numbers of things: anime_id; but not of rows."""
    return bool(IDS.search(name)) and plain(name) not in ("id", "no")


def in_blocks(table: Look, head: bytes) -> bool:
    """A table without a header in which blank lines stand between several rows and several others."""
    rows = [bool(line.strip()) for line in head.split(b"\n")]
    return not table.headed and sum(each == (True, True, False, True)
                                    for each in zip(rows, rows[1:], rows[2:], rows[3:])) > 1


def _interactions(table: Look) -> bool:
    """A table without a header that may be of events: who and what are ids of which the first come again, and either
    both are whole numbers, with one column more at most, or there are times beside them; and no texts."""
    if len(table.rows) < 3 or not 2 <= len(table.names) <= 12 or text_columns(table):
        return False
    when = _clock(table.names, table.column)
    first, second = (table.column(name) for name in [name for name in table.names if name != when][:2])
    if when is None and are_numbers_of(first) and are_things(second):
        return True
    ids = all(cell and len(cell) <= 40 and not re.search(r"\s", cell) for cell in first + second)
    whole = all(map(str.isdigit, first + second))
    return ids and ((whole and len(table.names) < 4) or when is not None) and 1 < len(set(first)) < len(first)


def are_numbers_of(cells: Sequence[Any]) -> bool:
    """Whether these are long whole numbers, as those of users, of which some come again."""
    return all(isinstance(cell, str) and cell.isdigit() and len(cell) > 5 for cell in cells) and \
        1 < len(set(cells)) < len(cells)


def are_things(cells: Sequence[Any]) -> bool:
    """Whether these are short names, as of games, of which many come again."""
    return all(isinstance(cell, str) and len(cell) <= 80 and re.search(r"[^\W\d_]{3}", cell) for cell in cells) and \
        1 < len(set(cells)) < 0.8 * len(cells)


def addresses(table: Look) -> bool:
    """Whether a column holds where people live or their mail: then a row is one of them, and nothing happens."""
    return any(len(cells := table.column(name)) > 2 and all(isinstance(cell, str) and ADDRESS.fullmatch(cell)
                                                            for cell in cells) for name in table.names[:ROWS])


def _listed(table: Look) -> list[str]:
    """The columns that hold lists."""
    lists = [name for name in table.names if any(isinstance(cell, list) for cell in table.column(name))]
    return lists if len(lists) == 1 else [name for name in lists if not measured(
        item for cell in table.column(name) if isinstance(cell, list) for item in cell)]


def _clock(names: Sequence[str], cells: Callable[[str], Iterable[Any]]) -> str | None:
    """Of a table without a header the column of times: behind the first, one of dates; else behind the second one of
    numbers that may be times; else the first, where none of it comes again."""
    timed = [name for name in names if timelike(cells(name))]
    dated = [name for name in timed if not all(NUMBER.fullmatch(str(cell)) for cell in cells(name) if cell is not None)]
    once = [name for name in timed if name == names[0] and len(names) > 2 and
            len(set(map(str, cells(name)))) == len(list(cells(name)))]
    later = [name for name in dated if name != names[0]] + [name for name in timed if name in names[2:]]
    return next(iter(later + once), None)


def _counted(lines: Sequence[str]) -> bool:
    """Whether the first words count the lines, with more behind them."""
    items = [line.split() for line in lines if line.strip()]
    firsts = [line[0] for line in items]
    if len(items) < 3 or min(map(len, items)) < 2 or not firsts[0].isdigit():
        return False
    return firsts == [str(int(firsts[0]) + i) for i in range(len(firsts))]


def _alike(found: list[tuple[Frame, Roles]], problems: Problems, named: frozenset[Path]) -> list[tuple[Frame, Roles]]:
    """The tables with the columns that most rows have; others are problems, or, if named, errors."""
    rows: dict[tuple[str, ...], int] = {}
    for frame, _ in found:
        rows[tuple(frame.columns)] = rows.get(tuple(frame.columns), 0) + len(frame.rows)
    header = max(rows, key=lambda columns: rows[columns])
    alike = [(frame, roles) for frame, roles in found if tuple(frame.columns) == header]
    for frame, _ in found:
        if tuple(frame.columns) != header:
            mine, theirs = ", ".join(frame.columns), ", ".join(header)
            text = f"its columns ({mine}) differ from those of {alike[0][0].path} ({theirs})"
            if frame.path in named:
                raise SegueError(f"{frame.path}: {text}; read them apart")
            problems.refuse(frame.path, f"skipped: {text}; name the file to read it alone")
    return alike


def _roles(frame: Frame, who: str | None, what: str | None, when: str | None) -> Roles:
    """Which columns say who, what and when: those asked for, else by name, else by what is in them."""
    names = ", ".join(frame.columns)
    for role, asked in (("who", who), ("what", what), ("when", when)):
        if asked is not None and asked not in frame.columns and (role, asked) not in (("who", THIS), ("what", THAT)):
            raise SegueError(f"{frame.path}: there is no column '{asked}' to say {role}; there are {names}")
    guess = _by_header if frame.headed else _by_place
    whose, thing, clock = _of_lists(frame, *guess(frame, who, what, when), asked=(what is not None, when is not None))
    lists = thing is not None and _is_list(thing if thing in frame.columns else clock, frame)
    if not lists:
        whose, thing = _what_is_left(frame, whose, thing, clock)
    if thing is None or (whose is None and not lists):
        raise _untold(frame, whose, thing, clock, names)
    return whose, thing, clock


def _has_roles(path: Path, table: Look) -> bool:
    """Whether who and what are found in the first rows, so that the whole table may be read. Several columns of numbers
    alone, without a header, are no events."""
    import pyarrow as pa

    if not table.headed and len(table.names) > 3 and all(is_number(str(cell)) for row in table.rows for cell in row):
        return False
    cells = {name: [row[i] if i < len(row) else None for row in table.rows] for i, name in enumerate(table.names)}
    columns = {name: pa.array(values) if any(isinstance(value, list) for value in values) else
               pa.array([None if value in (None, "") else str(value) for value in values], pa.string())
               for name, values in cells.items()}
    try:
        _roles(Frame(path, columns, table.headed, np.arange(len(table.rows))), None, None, None)
    except (SegueError, pa.ArrowException):
        return False
    return True


def _free(frame: Frame, *taken: str | None) -> list[str]:
    """The columns that say nothing yet."""
    return [name for name in frame.columns if name not in taken]


def _is_list(name: str | None, frame: Frame) -> TypeGuard[str]:
    return name in frame.columns and "list" in str(frame.columns[name].type)


def _by_header(frame: Frame, who: str | None, what: str | None,
               when: str | None) -> tuple[str | None, str | None, str | None]:
    """Who, what and when, of a table with a header; None where it is not told. The cells of a merged first column are
    filled, a date and a time of day become one column."""
    import pyarrow.compute as compute

    columns = frame.columns
    first = next(iter(columns), None)
    if who is None and first in _free(frame, what, when) and _is_merged(columns[first].to_pylist()):
        columns[first], who = compute.fill_null_forward(columns[first]), first
        rest = _free(frame, who, what, when)
        what = what or next(iter([*ranked(rest, WHAT), *rest]), None)
    if when is None:
        when = when_of(frame, _free(frame, who, what))
    several = [name for name in _free(frame, who, what, when) if _is_list(name, frame) or _says_who(columns[name])]
    if who is None:
        who = named_by(several, WHO)
    if what is None:
        what = _what_happens(frame, who, when, several)
    if when is not None and not _is_list(when, frame) and (who is None or what is None):
        sure = what is not None and named_by([what], WHAT) is not None and not _is_list(what, frame)
        who, what = told_apart(_free(frame, who, what, when), lambda name: columns[name][:MANY].to_pylist(), who, what)
        who = who or named_by(_free(frame, what, when), WHO) or (THIS if sure else None)
    if who is None:
        who = named_by(_free(frame, what, when), WHO)
    return who, what, when


def _what_happens(frame: Frame, who: str | None, when: str | None, several: Sequence[str]) -> str | None:
    """The column called as what happens is, best one in which things come again. several: the columns that may say who,
    where nothing does yet."""
    free, columns = _free(frame, who, when), frame.columns
    lists = [name for name in free if _is_list(name, frame)]
    if len(lists) > 1:
        lists = [name for name in lists if not measured(_within(frame.columns[name]))]
    alone = lists if who is None and len(lists) == 1 else []
    able = [*alone, *ranked(free, WHAT), *ranked(free, WEAKLY)]
    ids = [name for name in several if IDS.search(name)] if who is None else [who]
    happen = (name for name in able if _is_list(name, frame) or
              _happens(frame.columns, next((whose for whose in ids if whose != name), None), name))
    others = [name for name in free if numbered(name) and not _same(
        columns[name][:MANY].to_pylist(), columns[who][:MANY].to_pylist())] if who in columns and not able else []
    return next(happen, next(iter(able), others[0] if len(others) == 1 else None))


def _by_place(frame: Frame, who: str | None, what: str | None,
              when: str | None) -> tuple[str | None, str | None, str | None]:
    """Who, what and when, of a table without a header: who stands first, what behind it. It is a SegueError if these
    hold texts or measured numbers."""
    def cells(name: str) -> list[Any]:
        return frame.columns[name][:100].to_pylist()

    free = _free(frame, who, what, when)
    if when is None and len(free) > 2:
        when = _clock(free, cells)
    free = _free(frame, who, what, when)
    lists = [name for name in free if _is_list(name, frame)]
    if who is None and len(free) > 1:
        who = next((name for name in free if lists and name not in lists and _says_who(frame.columns[name])), free[0])
    free = _free(frame, who, what, when)
    if what is None and lists:
        what = lists[0]
    elif what is None and free:
        what = next((name for name in free if not measured(cells(name))), free[0])
        if any(are_wordy(cells(name)) and not are_things(cells(name)) for name in (who, what) if name in frame.columns):
            raise SegueError(f"{frame.path}: {who} and {what} hold texts: give who= and what= if they are events")
        _events_not_measured(frame, what, frame.columns[what].unique().to_pylist())
    return who, what, when


def _of_lists(frame: Frame, who: str | None, what: str | None, when: str | None,
              asked: tuple[bool, bool]) -> tuple[str | None, str | None, str | None]:
    """Who, what and when, of a table whose cells may hold lists: the only column of them says what, lists of times
    alone say when nameless events were, and a time that is no list is the row's. asked: whether what, and when, were
    asked for; else lists of measured numbers are a SegueError."""
    lists = [name for name in _free(frame, who, what, when) if _is_list(name, frame)]
    if what is None and len(lists) == 1:
        what = lists[0]
    if what is None and _is_list(when, frame):
        what = THAT
    if not _is_list(what, frame):
        return who, what, when
    if not asked[1] and not _is_list(who, frame) and not _is_list(when, frame):
        when = None
    if not asked[0]:
        _events_not_measured(frame, what, _within(frame.columns[what]))
    return who, what, when


def _what_is_left(frame: Frame, who: str | None, what: str | None, when: str | None) -> tuple[str | None, str | None]:
    """Who and what, where one of them is not told and one column is left that may say it, or none but the times."""
    free = _free(frame, who, what, when)
    if (who is None) == (what is None):
        return (THIS, THAT) if who is None and not free and when is not None else (who, what)
    last = free[0] if len(free) == 1 and _repeats(frame.columns[free[0]]) else None
    if what is None:
        return who, last
    return (THIS if not free and when is not None else last), what


def _untold(frame: Frame, who: str | None, what: str | None, when: str | None, names: str) -> SegueError:
    """What to do about a table that does not say who, or what, or either. names: of its columns, as in the file."""
    missing = [role for role, name in (("who", who), ("what", what)) if name is None]
    hint = f", or who='{THIS}' if all of it is one sequence" if what is not None else \
        "; or read it as text with kind=text"
    rest = _free(frame, who, what, when)[:20]
    if what is None and any(measured(frame.columns[name][:1000].to_pylist()) for name in rest):
        hint = f"; its numbers are measured: {MEASURED}"
    return SegueError(f"{frame.path}: no column says {' and '.join(missing)}; name "
                      f"{'them' if len(missing) > 1 else 'it'} with {' and '.join(f'{role}=' for role in missing)} "
                      f"(columns: {names}){hint}")


def with_lists(table: Look | None) -> Look | None:
    """The beginning of a table, with what is several ids with blanks between as lists of them."""
    if table is None or table.form != "delimited":
        return table
    places = [place for place, name in enumerate(table.names) if are_ids(table.column(name))]
    return replace(table, rows=[[cell.split() if place in places else cell for place, cell in enumerate(row)]
                                for row in table.rows])


def _readied(frame: Frame) -> Frame:
    """As `with_lists` does it; an object-centric log (OCEL as CSV) has a row for each object of each event."""
    import pyarrow as pa

    if frame.columns.keys() >= OCEL:
        objects = [name for name in frame.columns if name.startswith("ocel:type:")]
        cells = zip(*(frame.columns[name].to_pylist() for name in objects))
        whose = [[each for cell in row if cell for each in (cell if isinstance(cell, list) else listed(cell) or [])]
                 for row in cells]
        places = np.repeat(np.arange(len(whose)), list(map(len, whose)))
        columns = {name: frame.columns[f"ocel:{name}"].take(places) for name in ("activity", "timestamp")}
        columns = {"case": pa.array([str(each) for row in whose for each in row], pa.string()), **columns}
        frame = replace(frame, columns=columns, rows=frame.rows[places])
    for name, column in frame.columns.items():
        if pa.types.is_string(column.type) and are_ids([cell.strip() for cell in column.drop_null().to_pylist()]):
            lists = [cell.split() if cell else None for cell in column.to_pylist()]
            frame.columns[name] = pa.array(lists, pa.large_list(pa.string()))
    return frame


def merged(table: Look) -> bool:
    """Whether the first column of a table is so (see `_is_merged`)."""
    return table.headed and len(table.names) > 1 and _is_merged([row[0] or None for row in table.rows if row])


def _is_merged(cells: Sequence[Any]) -> bool:
    """Whether each cell holds for the empty ones below it, as merged ones of a sheet do: the first is filled, few
    others are, and none of them comes again."""
    filled = [cell for cell in cells if cell is not None]
    texts = bool(filled) and all(isinstance(cell, str) for cell in filled) and cells[0] is not None
    return texts and 1 < len(filled) == len(set(filled)) and 2 * len(filled) < len(cells)


def _events_not_measured(frame: Frame, what: str, values: Iterable[Any]) -> None:
    """Refuse a column that was taken for what happened, but holds measurements."""
    if measured(values):
        raise SegueError(f"{frame.path}: {what} holds measured numbers, which are no events ({MEASURED}); or give "
                         "what=")


def when_of(frame: Frame, names: list[str]) -> str | None:
    """The column of times (see `timed`). Several that say when only together become one (see `together`)."""
    import pyarrow as pa

    def cells(name: str) -> list[Any]:
        return [cell for cell in frame.columns[name][:1000].to_pylist() if cell not in (None, "", "?")]

    parts = _parts([name for name in names if "list" not in str(frame.columns[name].type)], cells)
    if not parts:
        return timed(names, lambda name: cells(name)[:100])
    said = spelled(parts, [frame.columns.pop(name).to_pylist() for name in parts])
    frame.columns[" ".join(parts)] = pa.array(said, pa.string())
    return " ".join(parts)


def with_moments(table: Look) -> Look:
    """The beginning of a table, as `when_of` makes it."""
    parts = _parts(table.names, table.column) if table.headed else {}
    if not parts:
        return table
    places = [table.names.index(name) for name in parts]
    said = spelled(parts, [[row[place] if place < len(row) else None for row in table.rows] for place in places])
    rest = [place for place in range(len(table.names)) if place not in places]
    rows = [[*([*row, *[None] * len(table.names)][place] for place in rest), moment]
            for row, moment in zip(table.rows, said)]
    return replace(table, names=[*(table.names[place] for place in rest), " ".join(parts)], rows=rows)


def _parts(names: Iterable[str], cells: Callable[[str], Sequence[Any]]) -> dict[str, str]:
    """See `together`; nothing where one of the other columns says when."""
    parts = together(names := list(names), cells)
    alone = timed(names, cells) if parts else None
    return parts if alone is None or alone in parts or not timelike(cells(alone)) else {}


def timed(names: Iterable[str], cells: Callable[[str], Sequence[Any]]) -> str | None:
    """The column that says when: by its usual name, by how its name ends and what is in it, or by the dates in it."""
    usual = ranked(names, WHEN)
    if usual:  # the first that can be read, rather one that only grows
        able = [name for name in usual if all(NUMBER.fullmatch(str(cell)) for cell in cells(name)) or
                timelike(cells(name))]
        return next((name for name in able if len(able) > 1 and _grows(cells(name))), next(iter(able), usual[0]))
    likely = [name for name in names if timelike(cells(name))]
    stems = [UNITS.sub("", plain(name)) for name in likely]
    ends = [name for name, stem in zip(likely, stems) if plain(name).endswith(MOMENTS) or stem.endswith(MOMENTS)]
    dates = [name for name in likely if not all(NUMBER.fullmatch(str(cell)) or CLOCK.fullmatch(str(cell).strip())
                                                for cell in cells(name) if cell is not None)]
    return max(ends or dates, key=lambda name: len(set(map(str, cells(name)))), default=None)  # the last change, not
    # when it was opened


def _grows(cells: Sequence[Any]) -> bool:
    """Whether each of these says a later time than the one before, all of them in numbers or in one order of parts."""
    texts = list(map(str, cells))
    if not all(map(NUMBER.fullmatch, texts)):
        return timelike(cells) and len(texts) > 1 and all(a < b for a, b in zip(texts, texts[1:]))
    with suppress(ValueError):
        return len(texts) > 1 and all(float(a) < float(b) for a, b in zip(texts, texts[1:]))
    return False


def told_apart(names: Iterable[str], cells: Callable[[str], Sequence[Any]], who: str | None = None,
               what: str | None = None) -> tuple[str | None, str | None]:
    """Who and what by what is in columns: the first that names something that comes again, and the next. Numbers do so
    where their column is called as numbers of things are. Where one of the two is known, it is the other one's only
    column, if there is one, though not one that what happened tells. A table of more measurements than names is of
    neither."""
    able, sizes = [], 0  # columns of names, and how many of sizes
    for name in names:
        values = [str(cell) for cell in cells(name) if cell not in (None, "") and not isinstance(cell, list)]
        numbers = all(map(is_number, values)) and not plain(name).endswith(ENDINGS[1:])
        again = plain(name) not in HOW and 1 < len(set(values)) < len(values)
        if again and not numbers and not timelike(values) and not measured(values) and \
                sum(map(len, values)) <= 40 * len(values):
            able.append(name)
        sizes += bool(values) and measured(values)
    if what is not None:
        able = [name for name in able if not is_determined_by(cells(name), cells(what))]
    if who is not None:
        able = [name for name in able if not _same(cells(name), cells(who))]
    if who is None and what is None:
        varied = [name for name in able[1:] if not is_determined_by(cells(name), cells(able[0]))]
        return (able[0], varied[0]) if varied and len(able) > max(1, sizes) else (None, None)
    alone = able[0] if len(able) == 1 or (what is None and able) else None
    if who is None and len(able) > 1:
        alone = next((name for name in able if IDS.search(name) and
                      5 * len({*map(str, cells(name))}) <= 4 * len(cells(name))), None)  # not one for each row
    return who or alone, what or alone


def is_determined_by(cells: Sequence[Any], things: Sequence[Any]) -> bool:
    """Whether one column is determined by another: the component that wrote a line of a log by the template of the
    line, a continent by the country."""
    return len(cells) == len(things) and len({*zip(map(str, cells), map(str, things))}) == len({*map(str, things)})


def _same(cells: Sequence[Any], entities: Sequence[Any]) -> bool:
    """Whether a column says of each entity one thing, and of different ones different things, such as its number."""
    different = len({*map(str, entities)})
    return different < len(entities) and is_determined_by(cells, entities) and len({*map(str, cells)}) == different


def are_wordy(cells: Sequence[Any]) -> bool:
    """Texts, not names of anything: more than two words each on average."""
    return sum(len(str(cell).split()) for cell in cells if cell is not None) > 2 * len(cells)


def _says_who(column: Any) -> bool:
    """Whether a column names several, some of them again, and most rows have a name."""
    values = [value for value in column[:MANY].to_pylist() if value not in (None, "", "NA")]
    return 2 * len(values) > len(column[:MANY]) and 1 < len(set(values)) < max(len(values), FEW)


def _happens(columns: Mapping[str, Any], who: str | None, what: str) -> bool:
    """Whether what a column says comes again, and is not of each entity one and the same."""
    said = columns[what][:MANY].to_pylist()
    entities = columns.get(who) if who is not None else None
    whose = said if entities is None or "list" in str(entities.type) else entities[:MANY].to_pylist()
    known = [(name, each) for name, each in zip(whose, said) if each not in (None, "")]
    things, names = {each for _, each in known}, {name for name, _ in known}
    varied = who is None or len(names) == len(known) or len(set(known)) > len(names)
    return len(said) < FEW or (len(things) < len(known) and varied)


def _within(column: Any) -> list[Any]:
    """What is in the first lists of a column."""
    return [item for row in column[:100].to_pylist() for item in row or []]


def _repeats(column: Any) -> bool:
    """A column of ids or kinds of things: some come again, and they are no measurements, texts or lists."""
    if "list" in str(column.type):
        return False
    values = column.unique().to_pylist()
    if len(values) == len(column) or "float" in str(column.type) or "double" in str(column.type):
        return False
    texts = [str(value) for value in values if value is not None]
    return not measured(texts) and sum(map(len, texts)) <= 40 * len(texts)


def measured(values: Iterable[Any]) -> bool:
    """Numbers of which some have a fraction or are below zero: measurements, not names of anything."""
    texts = [str(value) for value in values if value is not None]
    numbers = all(re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", text) for text in texts)
    return numbers and any(re.search(r"[.eE]|^-", text) for text in texts)


def _events(frame: Frame, roles: Roles, also: Sequence[str], when_format: str | None,
            problems: Problems) -> tuple[Any, ...]:
    """who and what as text arrays, when as seconds, further numbers, classes; rows that lack any but the last of them
    are stepped over."""
    import pyarrow as pa
    import pyarrow.compute as compute

    who, what, when = roles
    texts = [_texts(frame, who or THIS, str(frame.path)), _texts(frame, what, THAT)]
    times = None if when is None else seconds_of(frame.columns[when], when_format, frame.path, when)
    numbers = [_numbers(frame, name) for name in also]
    missing = {who: _blank(texts[0]), what: _blank(texts[1])}
    missing |= {} if times is None else {when: np.isnan(times)}
    missing |= {name: np.isnan(values) for name, values in zip(also, numbers)}
    lacking, classes = np.zeros(len(frame.rows), dtype=bool), frame.classes
    for column, absent in missing.items():
        for row in np.flatnonzero(absent & ~lacking):
            bad(problems, frame.path, frame.place(int(row)), None,
                f"no usable value in column '{column}'; mend or remove it")
        lacking |= absent
    if lacking.any():
        keep = ~lacking
        texts = [compute.filter(text, pa.array(keep)) for text in texts]
        times = None if times is None else times[keep]
        numbers = [values[keep] for values in numbers]
        classes = None if classes is None else classes[keep]
    return texts[0], texts[1], times, numbers, classes


def _texts(frame: Frame, name: str, all_of: str) -> Any:
    """A column as text without blanks around it; `all_of` in every row where there is no such column (THIS, THAT)."""
    import pyarrow as pa
    import pyarrow.compute as compute

    column = frame.columns[name] if name in frame.columns else pa.array([all_of] * len(frame.rows))
    try:
        return compute.utf8_trim_whitespace(column.cast(pa.large_string()))
    except pa.ArrowException as error:
        raise SegueError(f"{frame.path}: column '{name}' holds {column.type}, which is no name of anything") from error


def _numbers(frame: Frame, name: str) -> np.ndarray:
    """A column as float64; NaN where it has no number."""
    import pyarrow as pa

    try:
        return np.asarray(frame.columns[name].cast(pa.float64()).to_numpy(zero_copy_only=False))
    except pa.ArrowException as error:
        raise SegueError(
            f"{frame.path}: column '{name}' is not all numbers and cannot be a channel ({error})") from error


def _blank(text: Any) -> np.ndarray:
    """(n,) bool: which texts are missing or empty."""
    import pyarrow.compute as compute

    return np.asarray(compute.fill_null(compute.equal(text, ""), True).to_numpy(zero_copy_only=False), dtype=bool)


def _grouped(parts: list[tuple[Any, ...]], timed: bool, also: Sequence[str],
             classes: str | None) -> Iterator[tuple[Record, str | None]]:
    """One record an entity, entities in the order they first appear, events by time, equal times as in the file; and
    its class, None where no column says classes (see `classes_of`, which takes the name that was asked for)."""
    import pyarrow as pa

    if not parts:
        return
    who, what = (pa.chunked_array([part[i] for part in parts]).combine_chunks().dictionary_encode() for i in (0, 1))
    names, codes = who.dictionary.to_pylist(), who.indices.to_numpy()
    items, things = np.array(what.dictionary.to_pylist(), dtype=object), what.indices.to_numpy()
    times = np.concatenate([part[2] for part in parts]) if timed else None
    numbers = [np.concatenate([part[3][i] for part in parts]) for i in range(len(also))]
    order = np.lexsort((times, codes)) if times is not None else np.argsort(codes, kind="stable")
    bounds = np.searchsorted(codes[order], np.arange(len(names) + 1))
    things = things[order]
    channels: dict[str, np.ndarray] = {}
    if times is not None:
        times = times[order]
        channels = {"time": times, "gap": np.diff(times, prepend=times[0])}
        channels["gap"][bounds[:-1]] = 0.0
    channels |= {column: values[order] for column, values in zip(also, numbers)}
    labels: Sequence[str] | None = None
    if all(part[4] is not None for part in parts):
        labels = classes_of(np.concatenate([part[4] for part in parts]), np.split(order, bounds[1:-1]), classes)
    for i, (name, start, stop) in enumerate(zip(names, bounds[:-1].tolist(), bounds[1:].tolist())):
        parts_of = {channel: values[start:stop] for channel, values in channels.items()}
        yield Record(items[things[start:stop]].tolist(), parts_of, name), None if labels is None else labels[i]


def laid_out(frame: Frame, names: Sequence[str]) -> Frame:
    """A table whose rows hold tables, as lists of one length, as one table: what is no list is said again. Where there
    are several rows, a column `series` counts them."""
    import pyarrow as pa
    import pyarrow.compute as compute

    lengths = next(compute.list_value_length(frame.columns[name]) for name in names
                   if "list" in str(frame.columns[name].type)).fill_null(0).to_numpy(zero_copy_only=False)
    places = pa.array(np.repeat(np.arange(len(lengths)), lengths))
    columns = {name: compute.list_flatten(column) if "list" in str(column.type) else column.take(places)
               for name, column in frame.columns.items() if name in names}
    for name, column in columns.items():
        if len(column) != len(places):
            raise SegueError(f"{frame.path}: the lists in column '{name}' are not as long as the others; mend them")
    if len(lengths) > 1:
        columns.setdefault("series", pa.array(np.repeat(np.arange(1, len(lengths) + 1), lengths)))
    classes = None if frame.classes is None else np.repeat(frame.classes, lengths)
    return Frame(frame.path, columns, True, np.repeat(frame.rows, lengths), frame.unit, classes)


def _moments(column: Any, when_format: str | None, path: Path) -> list[Any]:
    """Seconds of each row of a column of lists (see `seconds_of`); None where a row has no list."""
    import pyarrow.compute as compute

    if "list" not in str(column.type) or not any(lengths := compute.list_value_length(column).to_pylist()):
        return column.to_pylist()
    flat = seconds_of(compute.list_flatten(column), when_format, path)
    seconds = np.split(flat, np.cumsum([n or 0 for n in lengths]))
    return [None if length is None else part for length, part in zip(lengths, seconds)]


def _lists(frame: Frame, roles: Roles, also: Sequence[str], when_format: str | None, of: str | None,
           problems: Problems) -> Iterator[Record]:
    """Rows that hold whole sequences."""
    who, what, when = roles
    names = frame.columns[who].to_pylist() if who is not None else [None] * len(frame.rows)
    things = frame.columns[what].to_pylist() if what in frame.columns else None
    timed = {"time": _moments(frame.columns[when], when_format, frame.path)} if when is not None else {}
    timed |= {name: frame.columns[name].to_pylist() for name in also}
    for i, row in enumerate(frame.rows):
        name = f"{frame.path}:{row}" if names[i] is None else str(names[i])
        if frame.classes is not None:
            if not told(problems, frame.path, frame.place(i), of, frame.classes[i]):
                continue
            name = of_class(name, frame.classes[i])
        channels: dict[str, np.ndarray] = {}
        try:
            items = things[i] if things is not None else [THAT] * (0 if timed["time"][i] is None else
                                                                   len(timed["time"][i]))
            if not items or any(item is None for item in items):
                raise ValueError("an empty list, or an item missing in it")
            for channel, values in timed.items():
                numbers = np.array(values[i], dtype=np.float64)
                if numbers.shape != (len(items),) or not np.isfinite(numbers).all():
                    raise ValueError(f"column '{channel}' has not one number for each of {len(items)} events")
                channels[channel] = numbers
        except (ValueError, TypeError) as error:
            bad(problems, frame.path, frame.place(i), None, f"{error}; mend or remove it")
            continue
        order = np.argsort(channels["time"], kind="stable") if "time" in channels else np.arange(len(items))
        channels = {channel: values[order] for channel, values in channels.items()}
        if "time" in channels:
            channels["gap"] = np.diff(channels["time"], prepend=channels["time"][0])
        yield Record([str(items[j]) for j in order], channels, name)
