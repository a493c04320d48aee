"""What the columns of a table say, by their names and by what is in them: who, what and when."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeGuard
from unicodedata import normalize

import numpy as np

from segue.errors import SegueError
from segue.kinds.base import words
from segue.kinds.frame import ROWS, Frame, Look
from segue.kinds.frame import number as is_number
from segue.kinds.moments import CLOCK, moment_columns, moment_texts
from segue.kinds.numbers import are_numbers
from segue.kinds.times import NUMBER, timelike


@lru_cache(maxsize=1 << 14)
def plain(name: str) -> str:
    """A name in lower case, without signs and accents."""
    return "".join(char for char in normalize("NFKD", name.casefold()) if char.isalnum())


def plain_words(text: str) -> tuple[str, ...]:
    """The words of a text, each as `plain` has names."""
    return tuple(map(plain, words(text)))


# Column names that say who, what and when, best first; compared as `plain`, with or without an ending such as "id".
# What is said weakly is believed only where no column of text says more.
WHO = plain_words(
    "who caseconceptname case user userpseudo session customer visitor patient sender subject client account "
    "member player reviewer author actor login listener reader student learner driver employee buyer entity trace "
    "episode trajectory device bike taxi vehicle sequenceid playlist host person owner order invoice basket cart "
    "transaction trip container cip srcip sourceip sourceipaddress clientip remoteaddr u kunde kunden benutzer nutzer "
    "fall vorgang vorgangs auftrag auftrags antrag antrags bestellung sitzung aanvraag dossiers utilisateur usager "
    "dossier usuario cliente caso utente gebruiker klant zaak "
    "пользователь клиент 用户 客户 会员 ユーザー 顧客 会員 사용자 고객")
WHAT = plain_words(
    "what item activity conceptname eventconceptname event action movie product asin parentasin sku stock song track "
    "artist book article page url command symbol task operation diagnosis icd icd9 icd10 procedure drug medication "
    "mark eventtype request moves isbn station startstation pulocation video film news app game recipe business venue "
    "poi csuristem stopid stopname evt aid contentid questionid artikel produkt aktivität ereignis aktion produit "
    "activité évènement producto artículo actividad acción prodotto articolo attività produto activiteit "
    "товар событие действие 商品 物品 活动 行为 行動 상품 활동")
WEAKLY = plain_words(
    "type state status step key label token code note items events marks types typeevent activities actions songs "
    "tracks problem skill exercise concept target course lesson k i")
WHEN = plain_words(
    "when time timestamp datetime date ts ds unixtimestamp unixreviewtime completetimestamp timetimestamp "
    "starttimestamp starttime eventtime createdat created times timestamps timesincestart day t year")
HOW = plain_words("level loglevel severity priority useranswer answer gender sex")  # says neither who nor what
ENDINGS = ("", *words("id name number no idx index code key num uri en nummer nr nbr numero"))
IDS = re.compile(r"(?i:(^|[ _.-])(id|no|number|nr|nbr|num|key))$|[a-z](Id|ID|No|Number|Nr|Key)$|[a-z]nummer$")
MOMENTS = ("timestamp", "datetime", "date", "time", "at", "ts", "datum", "zeit")  # what other names end on
ADDRESS = re.compile(r"\S+@\S+\.\w+|\d+\w? .*\b(street|st|avenue|ave|road|rd|lane|ln|drive|dr|blvd|way|court|hill)\b.*",
                     re.IGNORECASE)
UNITS = re.compile(r"(utc|gmt|local|epoch|unix|iso|seconds?|secs?|millis(econds)?|micros|nanos|[mun]?s)+$")  # behind
MANY = 100_000  # rows by which a column is judged
FEW = 10  # rows that do not tell what comes again
MEASURED = "read them with kind=series, or each row by itself with kind=rows, or bin them into symbols first"
THIS = "the file"  # who, where a file is all of one entity
THAT = "event"  # what, where nothing is known of events but when they were
Roles = tuple[str | None, str, str | None]  # the columns that say who, what and when


def column_called(names: Iterable[str], keywords: Sequence[str]) -> str | None:
    """The best of `columns_called`; None where there is none."""
    return next(iter(columns_called(names, keywords)), None)


def columns_called(names: Iterable[str], keywords: Sequence[str]) -> list[str]:
    """The columns whose names, or last parts of names, are among the keywords, alone or with one of ENDINGS; in the
    order of the keywords."""
    ranked = [(keywords.index(stem), ENDINGS.index(ending), i, name) for i, name in enumerate(names)
              for whole in {plain(name), plain(name.rpartition(".")[2])} for ending in ENDINGS
              if whole.endswith(ending) and (stem := whole.removesuffix(ending)) in keywords]
    return list(dict.fromkeys(name for *_, name in sorted(ranked)))


def numbered(name: str) -> bool:
    """Whether a column is called as one of numbers of things: anime_id; but not of rows."""
    return bool(IDS.search(name)) and plain(name) not in ("id", "no")


def counts_up(cells: Sequence[Any]) -> bool:
    """Whether these count rows: 1, 2, 3."""
    return len(cells) > 2 and str(cells[0]).isdigit() and \
        all(str(cell) == str(int(cells[0]) + i) for i, cell in enumerate(cells))


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


def time_column_by_place(names: Sequence[str], cells: Callable[[str], Iterable[Any]]) -> str | None:
    """Of a table without a header the column of times: behind the first, one of dates; else behind the second one of
    numbers that may be times; else the first, where none of it comes again."""
    timed = [name for name in names if timelike(cells(name))]
    dated = [name for name in timed if not all(NUMBER.fullmatch(str(cell)) for cell in cells(name) if cell is not None)]
    unrepeated = [name for name in timed if name == names[0] and len(names) > 2 and
                  len(set(map(str, cells(name)))) == len(list(cells(name)))]
    preferred = [name for name in dated if name != names[0]] + [name for name in timed if name in names[2:]]
    return next(iter(preferred + unrepeated), None)


def find_roles(frame: Frame, who: str | None, what: str | None, when: str | None) -> Roles:
    """Which columns say who, what and when: those asked for, else by name, else by what is in them."""
    names = ", ".join(frame.columns)
    for role, requested in (("who", who), ("what", what), ("when", when)):
        if requested not in (None, *frame.columns) and (role, requested) not in (("who", THIS), ("what", THAT)):
            raise SegueError(f"{frame.path}: there is no column '{requested}' to say {role}; there are {names}")
    guess = _by_header if frame.headed else _by_place
    requests = what is not None, when is not None
    entity, item, time = _of_lists(frame, *guess(frame, who, what, when), requested=requests)
    lists = item is not None and _is_list(item if item in frame.columns else time, frame)
    if not lists:
        entity, item = _remaining_roles(frame, entity, item, time)
    if item is None or (entity is None and not lists):
        raise _missing_roles_error(frame, entity, item, time, names)
    return entity, item, time


def has_roles(path: Path, table: Look) -> bool:
    """Whether who and what are found in the first rows, so that the whole table may be read. Several columns of numbers
    alone, without a header, are no events."""
    import pyarrow as pa

    if not table.headed and len(table.names) > 3 and all(is_number(str(cell)) for row in table.rows for cell in row):
        return False
    cells = {name: [row[i] if i < len(row) else None for row in table.rows] for i, name in enumerate(table.names)}
    try:  # of lists that hold numbers and texts there is no column
        columns = {name: pa.array(values) if any(isinstance(value, list) for value in values) else
                   pa.array([None if value in (None, "") else str(value) for value in values], pa.string())
                   for name, values in cells.items()}
        find_roles(Frame(path, columns, table.headed, np.arange(len(table.rows))), None, None, None)
    except (SegueError, pa.ArrowException):
        return False
    return True


def _free(frame: Frame, *taken: str | None) -> list[str]:
    """The columns without a role so far."""
    return [name for name in frame.columns if name not in taken]


def _is_list(name: str | None, frame: Frame) -> TypeGuard[str]:
    return name in frame.columns and "list" in str(frame.columns[name].type)


def _by_header(frame: Frame, who: str | None, what: str | None,
               when: str | None) -> tuple[str | None, str | None, str | None]:
    """Who, what and when, of a table with a header; None where it is not found. The cells of a merged first column are
    filled, a date and a time of day become one column."""
    import pyarrow.compute as compute

    columns = frame.columns
    first = next(iter(columns), None)
    if who is None and first in _free(frame, what, when) and are_merged(columns[first].to_pylist()):
        columns[first], who = compute.fill_null_forward(columns[first]), first
        free = _free(frame, who, what, when)
        what = what or next(iter([*columns_called(free, WHAT), *free]), None)
    if when is None:
        when = find_time_column(frame, _free(frame, who, what))
    entity_columns = [name for name in _free(frame, who, what, when)
                      if _is_list(name, frame) or _says_who(columns[name])]
    if who is None:
        who = column_called(entity_columns, WHO)
    if what is None:
        what = _what_happens(frame, who, when, entity_columns)
    if when is not None and not _is_list(when, frame) and (who is None or what is None):
        what_is_certain = what is not None and column_called([what], WHAT) is not None and not _is_list(what, frame)
        free = _free(frame, who, what, when)
        who, what = guess_who_and_what(free, lambda name: columns[name][:MANY].to_pylist(), who, what)
        who = who or column_called(_free(frame, what, when), WHO) or (THIS if what_is_certain else None)
    if who is None:
        who = column_called(_free(frame, what, when), WHO)
    return who, what, when


def _what_happens(frame: Frame, who: str | None, when: str | None, entity_columns: Sequence[str]) -> str | None:
    """The column called as what happens is, best one in which things come again. entity_columns: those that may say
    who, where no column does yet."""
    free, columns = _free(frame, who, when), frame.columns
    lists = [name for name in free if _is_list(name, frame)]
    if len(lists) > 1:
        lists = [name for name in lists if not measured(_within(frame.columns[name]))]
    only_list = lists if who is None and len(lists) == 1 else []
    candidates = [*only_list, *columns_called(free, WHAT), *columns_called(free, WEAKLY)]
    ids = [name for name in entity_columns if IDS.search(name)] if who is None else [who]
    happen = (name for name in candidates if _is_list(name, frame) or
              _happens(frame.columns, next((whose for whose in ids if whose != name), None), name))
    others = [name for name in free if numbered(name) and not counts_up(columns[name][:MANY].to_pylist())
              and not names_the_same(columns[name][:MANY].to_pylist(), columns[who][:MANY].to_pylist())] \
        if who in columns and not candidates else []
    return next(happen, next(iter(candidates), others[0] if len(others) == 1 else None))


def _by_place(frame: Frame, who: str | None, what: str | None,
              when: str | None) -> tuple[str | None, str | None, str | None]:
    """Who, what and when, of a table without a header: who stands first, what behind it. It is a SegueError if these
    hold texts or measured numbers."""
    def cells(name: str) -> list[Any]:
        return frame.columns[name][:100].to_pylist()

    free = _free(frame, who, what, when)
    if when is None and len(free) > 2:
        when = time_column_by_place(free, cells)
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
              requested: tuple[bool, bool]) -> tuple[str | None, str | None, str | None]:
    """Who, what and when, of a table whose cells may hold lists: the only column of them says what, lists of times
    alone say when nameless events were, and a time that is no list is the row's. requested: whether the user named
    what, and when; else lists of measured numbers are a SegueError."""
    lists = [name for name in _free(frame, who, what, when) if _is_list(name, frame)]
    if what is None and len(lists) == 1:
        what = lists[0]
    if what is None and _is_list(when, frame):
        what = THAT
    if not _is_list(what, frame):
        return who, what, when
    if not requested[1] and not _is_list(who, frame) and not _is_list(when, frame):
        when = None
    if not requested[0]:
        _events_not_measured(frame, what, _within(frame.columns[what]))
    return who, what, when


def _remaining_roles(frame: Frame, who: str | None, what: str | None,
                     when: str | None) -> tuple[str | None, str | None]:
    """Who and what, where one of them is missing: the only column that is left; THIS or THAT where only the times are
    left; THIS and the only column beside the times where both are missing."""
    free = _free(frame, who, what, when)
    if (who is None) == (what is None):
        if who is None and when is not None and len(free) < 2 and not any(
                are_amounts(frame.columns[name][:1000].to_pylist()) for name in free):
            return THIS, free[0] if free else THAT
        return who, what
    last = free[0] if len(free) == 1 and _repeats(frame.columns[free[0]]) else None
    if what is None:
        return who, last
    return (THIS if not free and when is not None else last), what


def _missing_roles_error(frame: Frame, who: str | None, what: str | None, when: str | None, names: str) -> SegueError:
    """What to do about a table that does not say who, or what, or either. names: of its columns, as in the file."""
    missing = [role for role, name in (("who", who), ("what", what)) if name is None]
    hint = f", or who='{THIS}' if all of it is one sequence" if what is not None else \
        "; or read it another way with kind=rows (each row by itself), kind=series or kind=text"
    free = _free(frame, who, what, when)[:20]
    if what is None and any(measured(frame.columns[name][:1000].to_pylist()) for name in free):
        hint = f"; its numbers are measured: {MEASURED}"
    return SegueError(f"{frame.path}: no column says {' and '.join(missing)}; name "
                      f"{'them' if len(missing) > 1 else 'it'} with {' and '.join(f'{role}=' for role in missing)} "
                      f"(columns: {names}){hint}")


def has_merged_cells(table: Look) -> bool:
    """Whether the first column of a table is so (see `are_merged`)."""
    return table.headed and len(table.names) > 1 and are_merged([row[0] or None for row in table.rows if row])


def are_merged(cells: Sequence[Any]) -> bool:
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


def find_time_column(frame: Frame, names: list[str]) -> str | None:
    """The column of times (see `timed`). Several that say when only together become one (see `moment_columns`)."""
    import pyarrow as pa

    def cells(name: str) -> list[Any]:
        return [cell for cell in frame.columns[name][:1000].to_pylist() if cell not in (None, "", "?")]

    parts = _parts([name for name in names if "list" not in str(frame.columns[name].type)], cells)
    if not parts:
        return time_column(names, lambda name: cells(name)[:100])
    joined = moment_texts(parts, [frame.columns.pop(name).to_pylist() for name in parts])
    frame.columns[" ".join(parts)] = pa.array(joined, pa.string())
    return " ".join(parts)


def with_joined_times(table: Look) -> Look:
    """The beginning of a table, with the times that several columns say joined (see `find_time_column`)."""
    parts = _parts(table.names, table.column)
    if not parts:
        return table
    places = [table.names.index(name) for name in parts]
    joined = moment_texts(parts, [[row[place] if place < len(row) else None for row in table.rows] for place in places])
    others = [place for place in range(len(table.names)) if place not in places]
    rows = [[*([*row, *[None] * len(table.names)][place] for place in others), moment]
            for row, moment in zip(table.rows, joined)]
    return replace(table, names=[*(table.names[place] for place in others), " ".join(parts)], rows=rows)


def _parts(names: Iterable[str], cells: Callable[[str], Sequence[Any]]) -> dict[str, str]:
    """See `moment_columns`; nothing where one of the other columns says when."""
    parts = moment_columns(names := list(names), cells)
    single = time_column(names, cells) if parts else None
    return parts if single is None or single in parts or not timelike(cells(single)) else {}


def time_column(names: Iterable[str], cells: Callable[[str], Sequence[Any]]) -> str | None:
    """The column that says when: by its usual name, by how its name ends and what is in it, by the dates in it, or, if
    it has no name, by the years it counts."""
    names = list(names)
    named = columns_called(names, WHEN)
    if named:  # the first that can be read, rather one that only grows
        readable = [name for name in named if all(NUMBER.fullmatch(str(cell)) for cell in cells(name)) or
                    timelike(cells(name))]
        growing = (name for name in readable if len(readable) > 1 and is_growing(cells(name)))
        return next(growing, next(iter(readable), named[0]))
    likely = [name for name in names if timelike(cells(name))]
    stems = [UNITS.sub("", plain(name)) for name in likely]
    by_ending = [name for name, stem in zip(likely, stems) if plain(name).endswith(MOMENTS) or stem.endswith(MOMENTS)]
    dates = [name for name in likely if not all(NUMBER.fullmatch(str(cell)) or CLOCK.fullmatch(str(cell).strip())
                                                for cell in cells(name) if cell is not None)]
    # The moment of an event differs from row to row; that of a last change does not.
    years = [name for name in names[:1] if name in ("", "1") and _counts_years(cells(name))]
    return max(by_ending or dates or years, key=lambda name: len(set(map(str, cells(name)))), default=None)


def _counts_years(cells: Sequence[Any]) -> bool:
    """Whether these are years, or months as 202401, one after the other."""
    texts = list(map(str, cells))
    numbers = [int(text) if len(text) == 4 else int(text[:4]) * 12 + int(text[4:]) for text in texts
               if re.fullmatch(r"(1[5-9]\d\d|2[01]\d\d)(0[1-9]|1[0-2])?", text)]
    return 2 < len(texts) == len(numbers) and all(b - a == 1 for a, b in zip(numbers, numbers[1:]))


def is_growing(cells: Sequence[Any]) -> bool:
    """Whether each of these says a later time than the one before, all of them in numbers or in one order of parts."""
    texts = list(map(str, cells))
    if not all(map(NUMBER.fullmatch, texts)):
        return timelike(cells) and len(texts) > 1 and all(a < b for a, b in zip(texts, texts[1:]))
    with suppress(ValueError):
        return len(texts) > 1 and all(float(a) < float(b) for a, b in zip(texts, texts[1:]))
    return False


def guess_who_and_what(names: Iterable[str], cells: Callable[[str], Sequence[Any]], who: str | None = None,
                       what: str | None = None) -> tuple[str | None, str | None]:
    """Who and what by what is in columns: the first that names something that comes again, and the next. Numbers do so
    where their column is called as numbers of things are. Where one of the two is known, it is the other one's only
    column, if there is one, though not one that what happened tells. A table of more measurements than names is of
    neither."""
    candidates, num_measured = [], 0  # columns of names, and how many of sizes
    for name in names:
        values = [str(cell) for cell in cells(name) if cell not in (None, "") and not isinstance(cell, list)]
        numbers = all(map(is_number, values)) and not plain(name).endswith(ENDINGS[1:])
        repeats = plain(name) not in HOW and 1 < len(set(values)) < len(values)
        if repeats and not numbers and not timelike(values) and not measured(values) and \
                sum(map(len, values)) <= 40 * len(values):
            candidates.append(name)
        num_measured += bool(values) and measured(values)
    if what is not None:
        candidates = [name for name in candidates if not is_determined_by(cells(name), cells(what))]
    if who is not None:
        candidates = [name for name in candidates if not names_the_same(cells(name), cells(who))]
    if who is None and what is None:
        varied = [name for name in candidates[1:] if not is_determined_by(cells(name), cells(candidates[0]))]
        return (candidates[0], varied[0]) if varied and len(candidates) > max(1, num_measured) else (None, None)
    only = candidates[0] if len(candidates) == 1 or (what is None and candidates) else None
    if what is not None and only is not None and 2 * len({*map(str, cells(only))}) > len(cells(only)):
        only = None  # hardly anything happens twice to one of these
    if who is None and len(candidates) > 1:
        only = next((name for name in candidates if IDS.search(name) and
                     5 * len({*map(str, cells(name))}) <= 4 * len(cells(name))), None)  # not one for each row
    return who or only, what or only


def is_determined_by(cells: Sequence[Any], keys: Sequence[Any]) -> bool:
    """Whether one column is determined by another: the component that wrote a line of a log by the template of the
    line, a continent by the country."""
    return len(cells) == len(keys) and len({*zip(map(str, cells), map(str, keys))}) == len({*map(str, keys)})


def names_the_same(cells: Sequence[Any], entities: Sequence[Any]) -> bool:
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
    items = columns[what][:MANY].to_pylist()
    entities = columns.get(who) if who is not None else None
    owners = items if entities is None or "list" in str(entities.type) else entities[:MANY].to_pylist()
    pairs = [(name, each) for name, each in zip(owners, items) if each not in (None, "")]
    distinct, names = {each for _, each in pairs}, {name for name, _ in pairs}
    varied = who is None or len(names) == len(pairs) or len(set(pairs)) > len(names)
    return len(items) < FEW or (len(distinct) < len(pairs) and varied)


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


def are_amounts(cells: Sequence[Any]) -> bool:
    """Numbers, however they are written, that are not all whole ones without a sign."""
    filled = [str(cell) for cell in cells if cell is not None]
    return are_numbers(filled) and not all(map(str.isdigit, filled))


def measured(values: Iterable[Any]) -> bool:
    """Numbers of which some have a fraction or are below zero: measurements, not names of anything."""
    texts = [str(value) for value in values if value is not None]
    numbers = all(re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", text) for text in texts)
    return numbers and any(re.search(r"[.eE]|^-", text) for text in texts)
