"""Which columns of a table, or fields of JSON, hold its text: prose, turns of dialogues, questions with their answers
or choices, translations."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from segue.kinds.base import words
from segue.kinds.columns import class_of
from segue.kinds.frame import Look, are_ids, glance, is_tabular, number
from segue.kinds.times import DATE

# Columns and fields that hold text, best first; those of objects (JSON) may have names that say it less surely.
COLUMNS = words("text content body document sentence article story passage dialogue dialog conversation transcript "
                "question message review comment utterance utt tweet post query abstract summary lyrics caption abc "
                "smiles selfies")
FIELDS = words("text content code body document sentence article story passage dialogue dialog conversation transcript "
               "question problem prompt input instruction instructions problem_statement description abstract message "
               "review comment utterance utt tweet post query summary completion output response answer chosen context "
               "title lyrics caption abc smiles selfies")
# Names of questions and of answers, which together are one text; and of sources and of what was made from them.
ASKS = words("instruction instructions question questions stem problem problem_statement prompt input context passage "
             "article story body query options choices endings premise buggy mr goal ctx history sent1 obs1 obs2 "
             "patterns")
ANSWERS = words("completion output response answer answers rationale solution solutions canonical_solution chosen "
                "answerkey hypothesis sentence fixed patch ref correct gt target targets responses")
SOURCES = words("text question dialogue dialog conversation transcript document article body content description "
                "intent")
MADE = words("code snippet sql query cmd summary highlights")
RIGHT = words("label answer answerkey correct gold")  # which of several choices is right
CHOICE = re.compile(r"(choice|option|sol|ending|answer|opt|hyp)[ _]?[0-9a-f]|[a-f]|endings|choices|options",
                    re.IGNORECASE)
VERSION = re.compile(r"(response|output|completion|human_ref|answer)[ _]?[01aj]", re.IGNORECASE)
LANGUAGE = re.compile(r"(translation\.)?([a-z]{2,3}([_-]\w{2,4})?|(english|french|german|spanish|italian|russian|"
                      r"chinese|japanese)\b.*)", re.IGNORECASE)
NAMED = words("name word surname lastname firstname fullname")  # columns of short texts
DIALOGUES = words("dialogue dialog conversation transcript context")
TOKENS = ("tokens", "words", "token")  # lists of the words of a text
# Fields of the turns of a dialogue: what is said, and by whom; and lists of turns that do not say by whom.
TURN_FIELDS = words("content value text utterance message")
SPEAKER_FIELDS = words("role from speaker author agent sender_name user")
LISTED = words("turns utterances conversation conversations messages history dialog dialogue data")
# Columns where a turn is a row: who speaks, and the id of the dialogue.
SPEAKERS = (*SPEAKER_FIELDS,
            *words("speaker_id speaker_idx speaker_name character sender username participant name who"))
DIALOGUE = re.compile(r"(dialog(ue)?|conv(ersation)?|thread|chat|scene|message_?tree)[ _]?(id|idx|index|no|nr|num|"
                      r"number|file)?", re.IGNORECASE)
# Columns of a chat, and those of posts on public platforms, which stand alone.
MESSAGES, SENT = words("text content message msg body"), words("ts timestamp timestamp_ms date time datetime sent")
POSTS = re.compile(r"(?i)like|retweet|favou?rite|score|star|rating|vote|point|title|subject|label|class|lang|follower|"
                   r"view|video|hash|commit")


def text_columns(table: Look) -> list[str]:
    """The columns of a table that hold its text, in the order in which they are read; none where it holds no text.

    They are, whichever comes first: the turns of a dialogue beside who speaks; a question with its choices; columns by
    their usual names, with a question its answer and with a source what was made of it; the only column; the column
    with the most prose, or all of a translation; lists of texts; lists of words.
    """
    names = table.names
    if turns := [name for name in names if last_part(name) in TURN_FIELDS and speaker_field(name, names) and
                 all(isinstance(cell, list) for cell in table.column(name))]:
        return turns[:1]
    if table.headed and (named := _multiple_choice(table) or _by_usual_names(table)):
        return named
    if len(names) == 1:
        cells = table.column(names[0])
        measured = table.form == "delimited" and any(number(cell) or DATE.fullmatch(cell) for cell in cells)
        return [names[0]] if cells and not measured and all(isinstance(cell, str) for cell in cells) else []
    return _with_prose(table) or _with_lists_of_texts(table)


def _by_usual_names(table: Look) -> list[str]:
    """Text columns by their names, see `text_columns`."""
    names = table.names

    def holds_prose(name: str) -> bool:
        cells = table.column(name)
        numbers = table.form == "delimited" and cells and all(map(number, cells))
        return all(isinstance(cell, str) for cell in cells) and not numbers

    def is_question(name: str) -> bool:
        is_source = last_part(name) == "source" and _are_sentences(table.column(name))
        return (_is_called(name, ASKS) or is_source) and (holds_prose(name) or _are_lists_of_texts(table.column(name)))

    asks = [name for name in names if is_question(name)]
    answers = [name for name in names if _holds_answers(name, table)]
    derived = [name for name in names if last_part(name) in MADE and holds_prose(name)]
    source = next((name for name in names if last_part(name) in SOURCES and holds_prose(name) and derived), None)
    pair = bool(asks and answers)
    if source is not None and not pair:
        return [source, *derived]
    by_name = {last_part(name): name for name in reversed(names)}
    by_name |= {name.lower(): name for name in reversed(names)}
    for keyword in FIELDS if table.form in ("json", "document") or pair else COLUMNS:
        by_name.setdefault(keyword, by_name.get(f"{keyword}1", ""))
        name = by_name[keyword]
        cell = next(iter(table.column(name)), "") if name else None
        if isinstance(cell, str) or (keyword in DIALOGUES and _are_texts(cell)):
            return asks + answers if pair and keyword in ASKS + ANSWERS else _numbered_alike(name, table)
    return asks + answers if pair else []


def _with_prose(table: Look) -> list[str]:
    """The column with the most prose, with those numbered alike; all of a translation, or of a table of nothing but
    texts."""
    names, prose = table.names, dict[str, int]()
    for name in names:
        cells = [cell for cell in table.column(name) if isinstance(cell, str)]
        long = [cell for cell in cells if len(cell) >= 20 and len(cell.split()) >= 4 and not DATE.fullmatch(cell)]
        if not are_ids(long) and 2 * len(long) > len(table.rows) and 2 * len(set(long)) > len(long):
            prose[name] = sum(map(len, long))
    if not prose:
        return []
    if not table.headed and len(names) > 4 and all(len(cell) == 1 and "A" <= cell <= "F"
                                                   for cell in table.column(names[-1])):
        return names  # a question, its choices, and the letter of the right one
    nothing_else = len(prose) == len(names) < 4
    prose = {name: size for name, size in prose.items() if not any(
        _mostly_equal(table, name, other) for other in list(prose)[list(prose).index(name) + 1 :])}
    if not table.headed or nothing_else or (len(prose) > 1 and all(map(LANGUAGE.fullmatch, prose))):
        return list(prose)
    groups = [_numbered_alike(name, table) for name in prose]
    return max(groups, key=lambda group: sum(prose.get(name, 0) for name in group))


def _with_lists_of_texts(table: Look) -> list[str]:
    """Columns whose cells are lists: of the turns of a dialogue, of texts, or of the words of a text."""
    filled = {name: cells for name in table.names if (cells := table.column(name))}
    texts = {name: cells for name, cells in filled.items() if all(map(_are_texts, cells))}
    if turns := [name for name in texts if (last_part(name) in TURN_FIELDS and "." in name) or
                 last_part(name) in LISTED]:
        return turns[:1]
    if long := [name for name, cells in texts.items() if _mean_words(cells) > 4 and
                not any(isinstance(cell[0], list) for cell in cells)]:
        final = [name for name in long if last_part(name).startswith("final_")]
        return final or long  # the others are what the final text was made from
    return [name for name, cells in filled.items() if last_part(name) in TOKENS and len(table.names) > 1 and
            all(isinstance(cell, list) and all(isinstance(word, str) for word in cell) for cell in cells)][:1]


def dialogue_columns(table: Look, field: Sequence[str]) -> tuple[str | None, str | None]:
    """Where each row is a turn of a dialogue with one `field` of text: the columns of the dialogue's id ("" where all
    rows are one dialogue) and of the speaker. (None, None) where rows are no turns."""
    if not table.headed or len(field) != 1 or any(isinstance(cell, list) for cell in table.column(field[0])):
        return None, None
    dialogue = None
    for name in _dialogue_columns(table):
        cells = list(map(class_of, table.column(name)))
        runs = sum(a != b for a, b in pairwise(cells))
        if name != field[0] and 2 * runs <= len(cells) == len(table.rows) > 1:
            dialogue = name
    speaker = next((name for keyword in SPEAKERS for name in table.names
                    if last_part(name) == keyword and name != field[0]
                    and all(not isinstance(cell, list) and len(str(cell)) <= 40 for cell in table.column(name))
                    and len(set(map(class_of, table.column(name)))) > 1), None)
    if dialogue is None and speaker is not None and _is_chat(table, field[0], speaker):
        dialogue = ""
    return (None, None) if dialogue is None else (dialogue, speaker)


def _is_chat(table: Look, field: str, speaker: str) -> bool:
    """Whether rows are the messages of one chat: what a few people say in turn, each at its time (Slack, Discord)."""
    people = list(map(class_of, table.column(speaker)))
    return last_part(field) in MESSAGES and any(last_part(name) in SENT for name in table.names) and \
        not any(map(POSTS.search, table.names)) and len(people) >= 10 and 4 * len(set(people)) <= len(people)


def _dialogue_columns(table: Look) -> list[str]:
    """The columns that are called as ids of dialogues are."""
    return [name for name in table.names if DIALOGUE.fullmatch(last_part(name))] if table.headed else []


def holds_text(path: Path, head: bytes) -> bool:
    """Whether a file is a table with a column of text, by its beginning."""
    table = glance(path, head)
    return table is not None and bool(text_columns(table))


def holds_dialogues(path: Path, head: bytes) -> bool:
    """Whether a file is a table of dialogues whose turns are rows or name their speakers, by its beginning."""
    table = glance(path, head) if is_tabular(path) else None
    if table is None or not (_dialogue_columns(table) or table.form == "document" or path.suffix.lower() == ".csv"):
        return False
    field = text_columns(table)
    return any(speaker_field(name, table.names) for name in field) or dialogue_columns(table, field)[0] is not None


def name_column(table: Look) -> list[str]:
    """The column of names (of people, words) in a table without prose, if most of them differ; [] if there is none."""
    for name in table.names if table.headed else ():
        cells = table.column(name)
        if re.sub("[ _]", "", name.lower()) in NAMED and cells and all(isinstance(cell, str) for cell in cells) and \
                2 * len(set(cells)) > len(cells) and not all(map(number, cells)):
            return [name]
    return []


def are_pairs(table: Look) -> bool:
    """Whether each line is two texts with a tab between them: question and answer, or sentence and translation."""
    first, second = ([str(cell) for cell in table.column(name)] for name in table.names[:2])
    num_sentences = [sum(cell[-1] in ".?!,;:。؟" for cell in cells) for cells in (first, second)]
    wordy = min(sum(len(cell.split()) for cell in cells) for cells in (first, second)) > 3 * len(first)
    return len(table.names) < 4 and len(table.rows) > 9 and (wordy or 2 * max(num_sentences) > len(first)) and \
        all(re.search(r"[^\W\d_]", cell) for cell in first + second) and 4 * len({*zip(first, second)}) > 3 * len(first)


def is_plain(table: Look, field: Sequence[str]) -> bool:
    """Whether these fields hold strings."""
    return any(isinstance(cell, str) for name in field for cell in table.column(name))


def join_fields(cells: Mapping[str, Any], field: Sequence[str]) -> str | None:
    """The text of a row, its fields one below the other; None where they hold no text. Lists of the same length, such
    as questions and their answers, alternate; of several answers to one question the first is taken."""
    parts: list[str | None] = []
    turns = [value for name in field if isinstance(value := cells.get(name), list) and len(field) > 1]
    has_question = any(isinstance(cells.get(name), str) and _is_called(name, ASKS) for name in field) and len(turns) < 2
    if len(turns) > 1 and len(set(map(len, turns))) == 1:
        first = next(name for name in field if isinstance(cells.get(name), list))
        cells = {**{name: value for name, value in cells.items() if not isinstance(value, list)},
                 first: [_first_value(turn) for each in zip(*turns) for turn in each]}
    for name in field:
        value = cells.get(name)
        if isinstance(value, str):
            parts.append(value)
        elif isinstance(value, bool | int | float) and (_is_called(name, ANSWERS) or last_part(name) in RIGHT):
            parts.append(_first_value(value))
        elif isinstance(value, list) and last_part(name) in TOKENS and all(isinstance(word, str) for word in value):
            parts.append(" ".join(value))
        elif isinstance(value := _unwrapped(value), list) and all(isinstance(turn, str | None) for turn in value):
            speakers = cells.get(speaker_field(name, cells) or "") or [None] * len(value)
            spoken = [turn if who is None else f"{who}: {turn}" for who, turn in zip(speakers, value) if turn]
            parts += spoken[:1] if has_question and _is_called(name, ANSWERS) else spoken
    return "\n".join(filter(None, parts)) if any(parts) else None


def speaker_field(name: str, names: Iterable[str]) -> str | None:
    """The field that says who speaks, beside that of the turns of a dialogue: messages.from, or messages.author.name,
    beside messages.text."""
    if "." not in name:
        return None
    speaker_names = {f"{name.rpartition('.')[0]}.{role}{inner}" for role in SPEAKER_FIELDS for inner in ("", ".name")}
    return next((other for other in names if other.lower() in speaker_names), None)


def _multiple_choice(table: Look) -> list[str]:
    """The columns of a multiple-choice question: the question, the choices, and the right one where it is given."""
    def holds_choices(name: str) -> bool:
        cells = table.column(name)
        texts = [cell for cell in cells if isinstance(cell, str)]
        measured = bool(texts) and table.form == "delimited" and all(map(number, texts))
        return (bool(texts) or _are_lists_of_texts(cells)) and not measured

    def is_question(name: str) -> bool:
        has_question_name = _is_called(name, ASKS) or last_part(name) == "sentence"
        return has_question_name and bool(cells := table.column(name)) and all(isinstance(cell, str) for cell in cells)

    choices = [name for name in table.names if CHOICE.fullmatch(last_part(name)) and holds_choices(name)]
    listed = [name for name in choices if isinstance(next(iter(table.column(name)), None), list)]
    asks = [name for name in table.names if name not in choices and is_question(name)]
    if not asks or len(listed or choices) < (1 if listed else 2):
        return []
    answers = [name for name in table.names if name not in (*asks, *choices) and (cells := table.column(name)) and
               (_holds_answers(name, table) or
                (last_part(name) in RIGHT and all(isinstance(cell, str | int) for cell in cells)))]
    return [*asks, *(listed or choices), *answers]


def _mostly_equal(table: Look, name: str, other: str) -> bool:
    """Whether two columns are equal in most rows, such as a text and its normalised form."""
    places = table.names.index(name), table.names.index(other)
    pairs = [(row[places[0]], row[places[1]]) for row in table.rows if len(row) > max(places)]
    return 2 * sum(a == b for a, b in pairs) > len(pairs)


def _numbered_alike(name: str, table: Look) -> list[str]:
    """A column and the text columns numbered like it, in order: sentence1 and sentence2."""
    prefix, digit, suffix = re.fullmatch(r"(.*?)(?:(?<!\d)(\d)(\D*))?", name).groups()  # type: ignore[union-attr]
    counted = [other for i in range(10) if (other := f"{prefix}{i}{suffix}") in table.names] if digit else []
    return [other for other in counted if other == name or any(" " in str(cell) for cell in table.column(other))] or [
        name]


def _holds_answers(name: str, table: Look) -> bool:
    """Whether a column holds right answers: strings, numbers, booleans, or lists of them."""
    *_, last = re.split(r"[ _]", name.lower())
    right = _is_called(name, ANSWERS) or VERSION.fullmatch(last_part(name)) is not None or (
        last == "answer" and not re.match(r"(?i)(wrong|incorrect|bad)", name))
    cells = table.column(name)
    return right and all(isinstance(cell, str | bool | int | float | list) for cell in cells) and bool(cells)


def _is_called(name: str, keywords: Collection[str]) -> bool:
    """Whether the last part of a field's name is among the usual names, or the part before it, as in answers.text."""
    *_, parent, last = ("", *name.lower().split("."))
    return last in keywords or (parent in keywords and last in ("text", "input_text", "spans", "number", "value"))


def last_part(name: str) -> str:
    """The last part of a field's name, in lower case."""
    return name.rpartition(".")[2].lower()


def _are_texts(cell: Any) -> bool:
    """Whether a cell is a list of strings, some of several words."""
    cell = _unwrapped(cell)
    return isinstance(cell, list) and all(isinstance(turn, str) for turn in cell) and \
        any(len(turn.split()) > 2 for turn in cell)


def _are_lists_of_texts(cells: Sequence[Any]) -> bool:
    """Whether all cells are lists of strings longer than single letters, such as the options of a question."""
    return all(isinstance(cell, list) and all(isinstance(each, str) for each in cell) for cell in cells) and any(
        len(each) > 1 for cell in cells for each in cell)


def _mean_words(cells: Sequence[Any]) -> float:
    """The mean number of words of the texts in lists."""
    counts = [len(each.split()) for cell in cells for each in _unwrapped(cell)]
    return sum(counts) / len(counts)


def _are_sentences(cells: Sequence[Any]) -> bool:
    """Whether cells are sentences, with more than four words on average."""
    return sum(len(str(cell).split()) for cell in cells) > 4 * len(cells)


def _unwrapped(value: Any) -> Any:
    """The inner list of a list that holds nothing but one list; anything else unchanged."""
    return value[0] if isinstance(value, list) and len(value) == 1 and isinstance(value[0], list) else value


def _first_value(value: Any) -> str | None:
    """A cell as text, of a list its first value."""
    if isinstance(value, list):
        return _first_value(value[0]) if value else None
    return value if value is None or isinstance(value, str) else json.dumps(value)
