"""Tables that are one JSON value: an array of rows, or an object around them, as data sets and interfaces of the web
are written."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any

# Members of an object that hold its rows, where others say something of them all.
WITHIN = ("data", "rows", "records", "items", "examples", "instances", "samples", "results", "documents", "entries",
          "annotations", "messages", "events", "playlists", "common_examples", "dialogues", "train")
ASKED = ("problem", "question", "prompt", "instruction")
ANSWERED = ("solution", "answer", "response", "output", "completion")
SPOKEN = ("role", "from", "speaker", "author", "agent", "sender_name")  # by which a list of objects is a dialogue
WORDED = ("content", "value", "text")  # what each says
MEDIA = re.compile(r"(image|audio|video|file)", re.IGNORECASE)
PART = re.compile(r"(.*[_-])?(train|test|val|valid|validation|dev|eval|heldout)(ing)?([_-].*)?", re.IGNORECASE)
TOKEN = re.compile(r'"(?:[^"\\]|\\.)*(?:"|\\?\Z)|[\[\]{},]')  # a string may be cut
DATE = re.compile(r"\d{4}-\d\d(-\d\d)?([T ].*)?")
SAMPLE_SIZE = 50  # members by which an object is told


def as_row(value: Any) -> dict[str, Any] | None:
    """A JSON value as cells: an object laid flat, a string as a text, a list of plain values as items, one of objects
    as the lists of their members; None: no row."""
    if isinstance(value, dict):
        return flat(value)
    if _are_tables(value):
        return flat({"items": value})
    if isinstance(value, str):
        return {"text": value}
    plain = isinstance(value, list) and value and not any(isinstance(item, (dict, list)) for item in value)
    return {"items": value} if plain else None


def _thread(row: dict[str, Any]) -> dict[str, Any]:
    """A message with replies, and these with theirs, as the dialogue of the first replies."""
    turns, branch = list[dict[str, Any]](), [row]
    while branch and isinstance(branch[0], dict):
        turns.append({"role": branch[0].get("role"), "text": branch[0].get("text")})
        branch = branch[0].get("replies") or []
    return {**{name: cell for name, cell in row.items() if name not in ("role", "text", "replies")}, "messages": turns}


def _chat_turns(nodes: dict[str, Any]) -> list[dict[str, Any]] | None:
    """The turns of a chat that is kept as a tree of nodes by name, along the last answer to each (ChatGPT's export);
    None of other objects."""
    if not nodes or not all(isinstance(node, dict) and node.keys() >= {"message", "parent", "children"}
                            for node in nodes.values()):
        return None
    turns = list[dict[str, Any]]()
    node_name = next((name for name, node in nodes.items() if node["parent"] not in nodes), None)
    for _ in nodes:
        node = nodes.get(node_name or "")
        if node is None:
            break
        message = node["message"] if isinstance(node["message"], dict) else {}
        content, author = message.get("content"), message.get("author")
        parts = content.get("parts") if isinstance(content, dict) else None
        text = "\n".join(part for part in parts or () if isinstance(part, str)).strip()
        if text and isinstance(author, dict) and author.get("role") in ("user", "assistant"):
            turns.append({"role": author["role"], "content": text})
        children = node["children"]
        node_name = children[-1] if isinstance(children, list) and children and isinstance(children[-1], str) else None
    return turns


def flat(row: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested objects as columns of their own: {"user": {"id": 1}} is user.id; a list of objects gives lists, and one of
    the parts of a message, each with its type, the text of them."""
    cells: dict[str, Any] = {}
    if row.keys() >= {"role", "text", "replies"}:
        row = _thread(row)
    for key, value in row.items():
        name = f"{prefix}{key}"
        if key == "mapping" and isinstance(value, dict) and (turns := _chat_turns(value)):
            name, value = f"{prefix}messages", turns
        if isinstance(value, dict):
            cells |= flat(value, f"{name}.")
        elif isinstance(value, list) and (joined := _parts(value)) is not None:
            cells[name] = joined
        elif isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            inner = [flat(item) for item in value]
            for part in dict.fromkeys(part for item in inner for part in item):
                cells[f"{name}.{part}"] = [item.get(part) for item in inner]
        else:
            cells[name] = value
    return cells


def _parts(value: list[Any]) -> str | None:
    """The text of a message that is a list of texts and of parts with a type; None where it is another list."""
    parts = [part for part in value if isinstance(part, dict)]
    if any(part.keys() & {*SPOKEN} for part in parts):
        return None  # messages, each by somebody
    texts_of = [text for part in parts if isinstance(text := part.get("text"), str)]
    if len(texts_of) == len(value) > 1 and any(part.keys() == {"text"} for part in parts) and \
            any(text != text.strip() for text in texts_of):
        return "".join(texts_of)  # some of them with what they name
    typed = parts and all("type" in part for part in parts) and all(isinstance(part, (dict, str)) for part in value)
    texts = [part if isinstance(part, str) else _text_of_part(part) for part in value] if typed else []
    return "".join(text for text in texts if isinstance(text, str)) if any(texts) else None


def _text_of_part(part: dict[str, Any]) -> Any:
    """The text of a part with a type: {"type": "text", "text": ...}, or with its value, if that is no picture, sound or
    film."""
    return part.get("text", part.get("value") if not MEDIA.match(str(part["type"])) else None)


def complete_prefix(text: str) -> Any:
    """The value of JSON text that was cut off, up to its last comma and closed there; None where there is none."""
    closing, closers, cut = list[str](), "", 0
    for match in TOKEN.finditer(text):
        character = match[0]
        if character in ("[", "{"):
            closing.append("]" if character == "[" else "}")
        elif character in ("]", "}"):
            if not closing:
                return None
            closing.pop()
        elif character == ",":
            cut, closers = match.start(), "".join(reversed(closing))
    with suppress(ValueError, RecursionError):
        if closers:
            return json.loads(text[:cut] + closers)
    return None


def document(text: str, cut: bool = False) -> list[dict[str, Any]] | None:
    """The rows of a text that is one JSON object around them (see `rows_of`); None where it is another text. cut: it
    goes on."""
    if text.lstrip()[:1] != "{":
        return None
    try:
        value = json.loads(text)
    except RecursionError:
        return None
    except ValueError as error:
        value = complete_prefix(text) if cut and "Extra data" not in str(error) else None
    return rows_of(value) if isinstance(value, dict) else None


def rows_of(value: dict[str, Any]) -> list[dict[str, Any]] | None:
    """The rows of an object around them, or None where it is no table: rows by the name of a part or of a class (the
    columns `part` and `key` say it), an object a row by its name, columns as lists or as objects by number (pandas),
    or rows beside members that describe all of them."""
    members = list(value.values())
    if (events := _of_ocel(value)) is not None:
        return events
    if "nodes" in value:
        return None  # a graph
    if {"columns", "data"} <= value.keys() and _are_lists(value["data"]) and isinstance(value["columns"], list):
        return [flat(dict(zip(map(str, value["columns"]), row))) for row in value["data"]]
    if isinstance(value.get("chats"), dict) and _are_tables(chats := value["chats"].get("list")):  # all of Telegram's
        return [flat(_forwards(chat)) for chat in chats]
    if _is_one_text(value):
        return [flat(_forwards(value))]
    if (dated := next((member for member in members if _is_dated(member)), None)) is not None:
        return [{"date": date, **flat(row)} for date, row in dated.items()]
    if members and _are_lists(members):
        return _of_lists(value)
    if len(members) > 1 and all(isinstance(member, dict) for member in members):
        return _of_objects(value)
    if len(members) == 1 and isinstance(members[0], dict):
        value = members[0]
    if _is_one_text(value):
        return [flat(_forwards(value))]
    lower = {name.lower(): member for name, member in value.items()}
    inner = next((rows for name in WITHIN if isinstance(rows := lower.get(name), list) and rows and
                  all((isinstance(row, dict) and "role" not in row) or _are_tables(row) for row in rows)), None)
    if inner is None or _are_tables(inner[0]):
        return None if inner is None else [row for each in inner if (row := as_row(each)) is not None]
    return [flat(row) for row in _nested_rows(inner)]


def _is_dated(member: Any) -> bool:
    """An object of rows, each under its date, as services of the web answer."""
    return isinstance(member, dict) and len(member) > 2 and all(map(DATE.fullmatch, member)) and all(
        isinstance(row, dict) for row in member.values())


def _of_ocel(value: dict[str, Any]) -> list[dict[str, Any]] | None:
    """The events of an object-centric log (OCEL 1 and 2), once for each object that has a part in them, which is the
    case; None for another value."""
    first, second = value.get("ocel:events"), value.get("events")
    rows: list[tuple[Any, Any, Any]] = []  # objects, activity, time
    if isinstance(first, dict):
        rows = [(event.get("ocel:omap"), event.get("ocel:activity"), event.get("ocel:timestamp"))
                for event in first.values() if isinstance(event, dict)]
    elif isinstance(second, list) and second and all(isinstance(event, dict) and "relationships" in event
                                                     for event in second):
        rows = [([related.get("objectId") for related in event["relationships"] or [] if isinstance(related, dict)],
                 event.get("type"), event.get("time")) for event in second]
    events = [{"case": str(case), "activity": what, "time": when} for cases, what, when in rows
              if isinstance(cases, list) for case in cases]
    return events or None


def _is_one_text(value: dict[str, Any]) -> bool:
    """Whether an object is one question with its answer, or one dialogue."""
    has_question, has_answer = (any(isinstance(value.get(name), str) for name in names) for names in (ASKED, ANSWERED))
    turns = next((value[name] for name in ("messages", "conversations", "conversation") if name in value), None)
    if (has_question and has_answer) or turns is None or not _are_tables(turns):
        return has_question and has_answer
    spoken = [turn for turn in turns if turn.keys() & {*SPOKEN} and
              any(isinstance(turn.get(name), str | list) for name in WORDED)]
    # A chat, whose messages have times, holds notices too.
    return len(spoken) == len(turns) or (len(spoken) > len(turns) // 2 and any(map(_time, spoken)))


def _time(turn: dict[str, Any]) -> Any:
    """The time of a message, by the names that chats give it; None without one."""
    return next((turn[name] for name in ("timestamp_ms", "timestamp", "date_unixtime") if name in turn), None)


def _forwards(value: dict[str, Any]) -> dict[str, Any]:
    """A chat whose messages are listed from the last to the first, the other way round."""
    turns = value.get("messages", [])
    times = [_time(turn) for turn in turns if _time(turn) is not None] if _are_tables(turns) else []
    first, last = (str(time).rjust(20) for time in (times[0], times[-1])) if times else ("", "")  # numbers, or ISO 8601
    return {**value, "messages": turns[::-1]} if first > last else value


def _nested_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows that only hold others, as articles their paragraphs and these their questions: those others, each with the
    other members of the row that holds it."""
    if len({name for row in rows for name in row}) > 1 and all(
            len(row) == 1 and isinstance(next(iter(row.values())), dict) for row in rows):
        return [next(iter(row.values())) for row in rows]  # each under a name of its own (WebNLG)
    nested = {name for row in rows for name, cell in row.items() if _holds_tables(cell)}
    if len(nested) != 1:
        return rows
    name = nested.pop()
    lengths = [_words(rows[:SAMPLE_SIZE]), _words(each for row in rows[:SAMPLE_SIZE] for each in row.get(name) or [])]
    if lengths[0] > max(12, lengths[1]):
        return rows  # what is said of them all is the text
    return [{**{key: cell for key, cell in row.items() if key != name}, **inner}
            for row in rows for inner in row.get(name) or []]


def _words(rows: Iterable[dict[str, Any]]) -> int:
    """How many words the longest text has."""
    return max((len(cell.split()) for row in rows for cell in row.values() if isinstance(cell, str)), default=0)


def _holds_tables(cell: Any) -> bool:
    """Whether these are objects, no turns of a dialogue, each with a list of objects."""
    return isinstance(cell, list) and bool(cell) and all(
        isinstance(inner, dict) and not inner.keys() & {*SPOKEN} and
        any(isinstance(each, list) and each and isinstance(each[0], dict) for each in inner.values()) for inner in cell)


def _of_lists(value: dict[str, list[Any]]) -> list[dict[str, Any]] | None:
    items = [item for member in value.values() for item in member[:SAMPLE_SIZE]]
    if not items:
        return None
    if all(map(_are_tables, items)):
        return _keyed((key, as_row(item) or {}) for key, member in value.items() for item in member)
    if _are_aligned(value):
        return [dict(zip(value, row)) for row in zip(*value.values())]
    if all(isinstance(item, dict) for item in items) or _are_lists(items):
        if any("role" in item for item in items) or (_are_lists(items) and len({len(item) for item in items}) > 1):
            return None  # turns of one dialogue, or sequences
        if (inner := next((name for name in WITHIN if name in value), "train")) != "train":
            value = {inner: value[inner]}  # the others say something of them all
        return _keyed((key, flat(_numbered(item))) for key, member in value.items()
                      for item in (_nested_rows(member) if _are_tables(member) else member))
    if any(isinstance(item, (dict, list)) for item in items):
        return None
    lengths = sorted({len(member) for member in value.values()})
    if len(value) > 8 and len(lengths) > 2 and not any(isinstance(item, str) and " " in item for item in items):
        return [{"who": key, "items": member} for key, member in value.items()]  # of each user the items
    long = any(sum(map(len, member[:SAMPLE_SIZE])) > 12 * len(member[:SAMPLE_SIZE]) for member in value.values()
               if member and all(isinstance(item, str) for item in member[:SAMPLE_SIZE]))
    if len(value) > 1 and long and len(lengths) < 3 and lengths[-1] > len(value):  # the last column may be cut
        return [dict(zip(value, row)) for row in zip(*value.values())]
    if len(value) > SAMPLE_SIZE and len(lengths) == 1:
        return _keyed((key, _numbered(member)) for key, member in value.items())
    texts = [item for item in items if isinstance(item, str) and len(item.split()) > 2]
    if len(value) > 1 and 2 * len(texts) > len(items):
        return _keyed((key, {"text": item}) for key, member in value.items() for item in member)
    return None


def _of_objects(value: dict[str, dict[str, Any]]) -> list[dict[str, Any]] | None:
    members = [member for member in list(value.values())[:SAMPLE_SIZE] if member]
    if not members:
        return None
    first = list(members[0])
    if first[0].isdigit() and all(list(member) == first[: len(member)] for member in members):
        return [flat({name: member[place] for name, member in value.items() if place in member}) for place in first]
    shared = set(first).intersection(*members[1:-1])  # the last may be cut
    if len(members) < 2 or 2 * len(shared) < len(set(first).union(*members)):
        return None
    return _keyed((key, flat(member)) for key, member in value.items())


def _are_aligned(value: dict[str, list[Any]]) -> bool:
    """Whether each member holds as many lists of plain values, and these are as long in all of them: a sequence in each
    place, its times in one member and its marks in another."""
    lists = list(value.values())
    if len(lists) < 2 or not all(map(_are_lists, lists)) or any(
            isinstance(item, dict | list) for row in lists[0][:SAMPLE_SIZE] + lists[-1][:SAMPLE_SIZE] for item in row):
        return False
    sizes = [[len(each) for each in member] for member in lists]
    return len(sizes[0]) > 1 and all(size == sizes[0] for size in sizes[1:]) and (
        len(set(sizes[0])) > 1 or not all(PART.fullmatch(name) for name in value))


def _keyed(rows: Iterable[tuple[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    """Rows with a column for the names they stand under."""
    pairs = list(rows)
    if len({key for key, _ in pairs}) < 2:
        return [row for _, row in pairs]
    name = "part" if all(PART.fullmatch(key) for key in {key for key, _ in pairs}) else "key"
    return [{**row, name: key} for key, row in pairs]


def _numbered(row: Any) -> dict[str, Any]:
    return row if isinstance(row, dict) else {str(i): cell for i, cell in enumerate(row, 1)}


def _are_tables(value: Any) -> bool:
    """A list of objects, each a row of its own."""
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


def _are_lists(values: Any) -> bool:
    return isinstance(values, list) and bool(values) and all(isinstance(value, list) for value in values)


def evenly_spaced(rows: list[dict[str, Any]], count: int) -> Iterator[dict[str, Any]]:
    """So many rows at most, from the beginning to the end."""
    return iter(rows[:: max(1, -(-len(rows) // count))])
