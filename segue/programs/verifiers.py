"""Instructions that a program can check: the 25 of IFEval (Zhou et al. 2023, arXiv 2311.07911), by its names and those
of FollowRAG (2024, arXiv 2410.09584), strict and loose, and the scores made of them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from segue.errors import SegueError, check_choice, require

Verifier = Callable[..., bool]
"""(response, the instruction's arguments by name) -> whether the response follows it."""

OPTIONS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
ABBREVIATIONS = frozenset(re.split(" ", (
    "mr mrs ms dr prof rev gen col capt lt sgt sen rep gov st mt inc ltd corp co jr sr vs etc e.g i.e cf al approx "
    "dept est fig no vol p pp ph.d u.s u.k u.n a.m p.m d.c b.c a.d jan feb mar apr jun jul aug sep sept oct nov dec")))


def compare(count: int, relation: str, bound: int) -> bool:
    match relation:
        case "less than":
            return count < bound
        case "at least":
            return count >= bound
        case "at most":
            return count <= bound
    raise SegueError(f"relation '{relation}' is unknown: write 'at least', 'at most' or 'less than'")


def count_sentences(text: str) -> int:
    """How many sentences: ended by . ? or ! before a blank or the text's end, but for abbreviations, initials, and
    numbers and rows of dots before a small letter. The reference counts with NLTK's Punkt model, whose counts differ
    now and then."""
    words = [word.strip("\"'()[]*_“”‘’") for word in text.split()]
    count, in_sentence = 0, False
    for word, following in zip(words, [*words[1:], ""]):
        in_sentence = in_sentence or any(map(str.isalnum, word))
        if not in_sentence or not word.endswith((".", "?", "!")):
            continue
        stem = word.rstrip(".").lower()
        dotted = word.endswith(".") and (stem in ABBREVIATIONS or (len(stem) == 1 and stem.isalpha()))
        trailing = (word.endswith("..") or stem.isdigit()) and following[:1].islower()
        if following and (dotted or trailing):
            continue
        count, in_sentence = count + 1, False
    return count + in_sentence


def count_words(text: str) -> int:
    return len(re.findall(r"\w+", text))


def count_capitals(text: str) -> int:
    """The number of words in capitals only; parts after an apostrophe or punctuation are separate words."""
    words = re.findall(r"(?:[^\W_]\.){2,}(?![^\W_])|[\w\-/.]+|'\w+", text.replace("'", " '"))
    return sum(map(str.isupper, words))


def detect_language(text: str) -> str:
    """The code of a text's language, "" where none can be told."""
    detect = require("langdetect", "programs")
    detect.DetectorFactory.seed = 0
    try:
        return str(detect.detect(text))
    except detect.LangDetectException:
        return ""


def find_all(pattern: str, text: str) -> list[str]:
    return re.findall(pattern, text, re.IGNORECASE | re.MULTILINE)


def json_format(text: str) -> bool:
    text = text.strip()
    for fence in ("```json", "```Json", "```JSON", "```"):
        text = text.removeprefix(fence)
    try:
        json.loads(text.removesuffix("```").strip())
    except (ValueError, RecursionError):
        return False
    return True


def paragraphs(text: str, num_paragraphs: int) -> bool:
    """So many paragraphs between lines of ***, none of them empty but the first and the last."""
    parts = [part.strip() for part in re.split(r"\s?\*\*\*\s?", text)]
    parts = parts if parts[0] else parts[1:]
    parts = parts if not parts or parts[-1] else parts[:-1]
    return all(parts) and len(parts) == num_paragraphs


def first_word(text: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """So many paragraphs with blank lines between them, and this word at the beginning of the nth."""
    parts = re.split(r"\n\n", text)
    filled = sum(bool(part.strip()) for part in parts)
    if nth_paragraph > filled or not parts[nth_paragraph - 1].strip():
        return False
    word = parts[nth_paragraph - 1].split()[0].lstrip("'").lstrip('"')
    return filled == num_paragraphs and re.split(r"[.,?!'\"]", word)[0].lower() == first_word.lower()


def postscript(text: str, postscript_marker: str) -> bool:
    marker = postscript_marker.strip()
    pattern = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}.get(marker, re.escape(marker.lower()))
    return bool(re.search(pattern, text.lower()))


def title(line: str) -> bool:
    """Whether something stands between the line's first << and its last >>."""
    begin, end = line.find("<<"), line.rfind(">>")
    return 0 <= begin <= end - 3 and bool(line[begin : end + 2].lstrip("<").rstrip(">").strip())


def highlights(text: str, num_highlights: int) -> bool:
    single = [mark for mark in re.findall(r"\*[^\n*]*\*", text) if mark.strip("*").strip()]
    double = [mark for mark in re.findall(r"\*\*[^\n*]*\*\*", text) if mark[2:-2].strip()]
    return len(single) + len(double) >= num_highlights


def two_responses(text: str) -> bool:
    parts = [part.strip() for part in text.split("******")]
    answers = [part for part in parts if part]
    return all(parts[1:-1]) and len(answers) == 2 and answers[0] != answers[1]


def quotation(text: str) -> bool:
    text = text.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


def is_cased(text: str, cased: bool) -> bool:
    return cased and detect_language(text) in ("en", "")


# As the reference says, but that it draws a letter where it is asked to count what is none, such as "#".
VERIFIERS: dict[str, Verifier] = {
    "keywords:existence": lambda text, keywords: all(find_all(re.escape(word), text) for word in keywords),
    "keywords:frequency": lambda text, keyword, frequency, relation: compare(
        len(find_all(re.escape(keyword.strip()), text)), relation, frequency),
    "keywords:forbidden_words": lambda text, forbidden_words: not any(
        find_all(rf"\b{re.escape(word)}\b", text) for word in forbidden_words),
    "keywords:letter_frequency": lambda text, letter, let_frequency, let_relation: compare(
        text.lower().count(letter.strip().lower()), let_relation, let_frequency),
    "language:response_language": lambda text, language: detect_language(text) in (language, ""),
    "length_constraints:number_sentences": lambda text, num_sentences, relation: compare(
        count_sentences(text), relation, num_sentences),
    "length_constraints:number_paragraphs": paragraphs,
    "length_constraints:number_words": lambda text, num_words, relation: compare(
        count_words(text), relation, num_words),
    "length_constraints:nth_paragraph_first_word": first_word,
    "detectable_content:number_placeholders": lambda text, num_placeholders: sum(
        map(bool, re.findall(r"\[[^]\n]*+(]?)", text))) >= num_placeholders,  # one scan, over what is never closed too
    "detectable_content:postscript": postscript,
    "detectable_format:number_bullet_lists": lambda text, num_bullets: len(
        find_all(r"^[^\S\n]*+\*[^*].*$", text) + find_all(r"^[^\S\n]*+-.*$", text)) == num_bullets,
    "detectable_format:constrained_response": lambda text: any(option in text for option in OPTIONS),
    "detectable_format:number_highlighted_sections": highlights,
    "detectable_format:multiple_sections": lambda text, section_spliter, num_sections: len(
        re.findall(rf"\s?{re.escape(section_spliter.strip())}\s?\d+\s?", text)) >= num_sections,
    "detectable_format:json_format": json_format,
    "detectable_format:title": lambda text: any(map(title, text.split("\n"))),
    "combination:two_responses": two_responses,
    "combination:repeat_prompt": lambda text, prompt_to_repeat: text.strip().lower().startswith(
        prompt_to_repeat.strip().lower()),
    "startend:end_checker": lambda text, end_phrase: text.strip().strip('"').lower().endswith(
        end_phrase.strip().lower()),
    "startend:quotation": quotation,
    "change_case:capital_word_frequency": lambda text, capital_frequency, capital_relation: compare(
        count_capitals(text), capital_relation, capital_frequency),
    "change_case:english_capital": lambda text: is_cased(text, text.isupper()),
    "change_case:english_lowercase": lambda text: is_cased(text, text.islower()),
    "punctuation:no_comma": lambda text: "," not in text,
}

FOLLOWRAG = {
    "keywords_inclusion": "keywords:existence", "keywords_frequency": "keywords:frequency",
    "keywords_exclusion": "keywords:forbidden_words", "format_language": "language:response_language",
    "length_sentence": "length_constraints:number_sentences",
    "length_paragraph": "length_constraints:number_paragraphs", "length_words": "length_constraints:number_words",
    "position_first_word": "length_constraints:nth_paragraph_first_word",
    "structure_placeholder": "detectable_content:number_placeholders",
    "position_postscript": "detectable_content:postscript",
    "structure_bullets": "detectable_format:number_bullet_lists",
    "structure_highlights": "detectable_format:number_highlighted_sections",
    "structure_sections": "detectable_format:multiple_sections", "format_json": "detectable_format:json_format",
    "structure_title": "detectable_format:title", "format_repeat_question": "combination:repeat_prompt",
    "position_end_with": "startend:end_checker", "cases_capital_words": "change_case:capital_word_frequency",
    "cases_uppercase": "change_case:english_capital", "cases_lowercase": "change_case:english_lowercase",
    "format_no_commas": "punctuation:no_comma", "format_quotation": "startend:quotation",
}
"""FollowRAG's names of the same instructions."""


def variants(response: str) -> list[str]:
    """The texts of a loose check: the response without its first line, its last, or both (pleasantries around an
    answer), and each without asterisks (Markdown)."""
    lines = response.split("\n")
    cuts = [response, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    return [*cuts, *(cut.replace("*", "") for cut in cuts)]


def verify(name: str, response: str, arguments: Mapping[str, Any] | None = None, loose: bool = False) -> bool:
    """Whether a response follows one instruction; an empty one follows none. loose: or any of its `variants` does.

    name: as in VERIFIERS or FOLLOWRAG. arguments: by their names in IFEval; those that are None are left out.
    """
    check_choice("instruction", name, (*VERIFIERS, *FOLLOWRAG))
    verifier = VERIFIERS[FOLLOWRAG.get(name, name)]
    given = {key: value for key, value in (arguments or {}).items() if value is not None}
    try:
        return any(bool(text.strip()) and verifier(text, **given) for text in
                   (variants(response) if loose else [response]))
    except (TypeError, AttributeError, IndexError) as error:
        raise SegueError(f"instruction '{name}' cannot take the arguments {given}: {error}") from error


@dataclass(frozen=True)
class Following:
    """Results of checking responses. names, strict, loose: for each item, an entry per instruction. sources: of each
    item ("": unknown)."""

    names: list[list[str]]
    strict: list[list[bool]]
    loose: list[list[bool]]
    sources: list[str]

    def scores(self, source: str | None = None) -> dict[str, float]:
        """IFEval's four: the share of prompts with all instructions followed, and of instructions followed; each strict
        and loose; of one source or of all."""
        chosen = [i for i, item_source in enumerate(self.sources) if source in (None, item_source)]
        if not chosen:
            raise SegueError(f"no responses of source {source!r} were checked: their sources are "
                             f"{sorted(set(self.sources))}")
        values = {}
        for mode, marks in (("strict", self.strict), ("loose", self.loose)):
            rows = [marks[i] for i in chosen]
            values[f"prompts, {mode}"] = mean(map(all, rows))
            values[f"instructions, {mode}"] = mean(mark for row in rows for mark in row)
        return values

    def families(self) -> dict[str, dict[str, float]]:
        """By instruction: its count ("asked"), and the shares followed."""
        table: dict[str, list[tuple[bool, bool]]] = {}
        for names, strict, loose in zip(self.names, self.strict, self.loose):
            for name, *marks in zip(names, strict, loose):
                table.setdefault(name, []).append((marks[0], marks[1]))
        return {name: {"asked": len(rows), "strict": mean(strict for strict, _ in rows),
                       "loose": mean(loose for _, loose in rows)}
                for name, rows in sorted(table.items())}


def following(items: Iterable[Mapping[str, Any]], responses: Sequence[str]) -> Following:
    """Check a response to each item of IFEval's or FollowRAG's form: instruction_id_list, kwargs, and maybe type."""
    items = list(items)
    if len(items) != len(responses):
        raise SegueError(f"{len(responses)} responses for {len(items)} items: give one each")
    result = Following([], [], [], [])
    for item, response in zip(items, responses):
        names = list(item["instruction_id_list"])
        instructions = list(zip(names, item["kwargs"], strict=True))
        result.names.append(names)
        result.strict.append([verify(name, response, arguments) for name, arguments in instructions])
        result.loose.append([verify(name, response, arguments, loose=True) for name, arguments in instructions])
        result.sources.append(str(item.get("type", "")))
    return result
