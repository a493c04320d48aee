"""Verifiers of instructions, the sandbox, functions held against each other, data made in stages; VIF-RAG's claim."""

from __future__ import annotations

import gzip
import json
import platform
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segue.errors import SegueError
from segue.papers.vif_rag import CHECKS, SOURCE, sample_cases
from segue.programs.crosscheck import cross_validate, normalise, same
from segue.programs.pipeline import Pipeline
from segue.programs.sandbox import Sandbox
from segue.programs.verifiers import FOLLOWRAG, VERIFIERS, count_sentences, following, variants, verify
from segue.tasks.lilt import FAMILIES
from segue.verbs.verify import verify as verify_files

quick = settings(max_examples=50, deadline=None, derandomize=True)
WORDS = {"relation": "at least", "num_words": 3}


# Verifiers. The tables hold what the reference implementation says.

@pytest.mark.parametrize(("name", "arguments", "response", "follows"), [
    ("keywords:existence", {"keywords": ["cat", "Dog"]}, "CATS and dogs", True),
    ("keywords:existence", {"keywords": ["cat", "cow"]}, "cats", False),
    ("keywords:existence", {"keywords": ["c++"]}, "I like C++.", True),
    ("keywords:frequency", {"keyword": "la", "frequency": 3, "relation": "at least"}, "La la lalala", True),
    ("keywords:frequency", {"keyword": "la", "frequency": 3, "relation": "less than"}, "la la la", False),
    ("keywords:forbidden_words", {"forbidden_words": ["cat"]}, "cats", True),
    ("keywords:forbidden_words", {"forbidden_words": ["cat"]}, "a Cat.", False),
    ("keywords:letter_frequency", {"letter": "A", "let_frequency": 2, "let_relation": "less than"}, "Abba", False),
    ("keywords:letter_frequency", {"letter": "#", "let_frequency": 2, "let_relation": "at least"}, "##", True),
    ("length_constraints:number_words", WORDS, "one two three", True),
    ("length_constraints:number_words", WORDS, "it's", False),
    ("length_constraints:number_sentences", {"relation": "less than", "num_sentences": 2}, "Mr. A. Smith left", True),
    ("length_constraints:number_sentences", {"relation": "at least", "num_sentences": 3}, 'No! "Why?" he said', True),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "one\n***\ntwo", True),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "***\none\n***\ntwo\n***", True),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "one\n***\n***\ntwo", False),
    ("length_constraints:nth_paragraph_first_word", {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "so"},
     "one\n\n\"So, two", True),
    ("length_constraints:nth_paragraph_first_word", {"num_paragraphs": 2, "nth_paragraph": 3, "first_word": "so"},
     "one\n\ntwo", False),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[a] and [b c]", True),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[a and b]", False),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Hi.\np. s. bye", True),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "Hi. P.S. bye", False),
    ("detectable_content:postscript", {"postscript_marker": "Reminder: "}, "reminder: go", True),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n- b\n**c**", True),
    ("detectable_format:number_bullet_lists", {"num_bullets": 1}, "* a\n* b", False),
    ("detectable_format:constrained_response", {}, "Well. My answer is no.", True),
    ("detectable_format:constrained_response", {}, "No.", False),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*a* b *c*", True),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 1}, "* * **", False),
    ("detectable_format:multiple_sections", {"section_spliter": "PART", "num_sections": 2}, "PART 1 a PART 2 b", True),
    ("detectable_format:multiple_sections", {"section_spliter": "PART", "num_sections": 2}, "PART one PART 2", False),
    ("detectable_format:json_format", {}, "```json\n{\"a\": [1]}\n```", True),
    ("detectable_format:json_format", {}, "{'a': 1}", False),
    ("detectable_format:title", {}, "<<My life>>\nIt was", True),
    ("detectable_format:title", {}, "<<  >>", False),
    ("combination:two_responses", {}, "one\n******\ntwo", True),
    ("combination:two_responses", {}, "one\n******\none", False),
    ("combination:repeat_prompt", {"prompt_to_repeat": "What is it?"}, " what IS it? This.", True),
    ("startend:end_checker", {"end_phrase": "The end."}, 'So: "the END."', True),
    ("startend:end_checker", {"end_phrase": "The end."}, "The end. Or", False),
    ("startend:quotation", {}, ' "so" ', True), ("startend:quotation", {}, '"', False),
    ("change_case:capital_word_frequency", {"capital_frequency": 2, "capital_relation": "at least"},
     "NASA's U.S. base", True),
    ("change_case:capital_word_frequency", {"capital_frequency": 2, "capital_relation": "less than"},
     "WELL-KNOWN thing", True),
    ("punctuation:no_comma", {}, "one, two", False), ("punctuation:no_comma", {}, "", False)])
def test_instruction_checks_equal_known_verdicts(name: str, arguments: dict[str, Any], response: str,
                                                 follows: bool) -> None:
    assert verify(name, response, arguments) is follows


def test_languages_are_detected() -> None:
    pytest.importorskip("langdetect")
    english = "this is a plain sentence in the english language"
    assert verify("change_case:english_lowercase", english) and not verify("change_case:english_lowercase", "No.")
    assert verify("change_case:english_capital", english.upper())
    assert verify("language:response_language", "das ist ein ganz einfacher deutscher Satz", {"language": "de"})
    assert verify("language:response_language", "1 2 3", {"language": "de"})  # nothing can be told


@pytest.mark.parametrize(("text", "count"), [
    ("", 0), ("One", 1), ("One. Two.", 2), ("Dr. No came. He left!", 2), ("Wait... what? Yes.", 2), ("Really?! Yes", 2),
    ("e.g. this. And that", 2), ('"Is it?" It is.', 2), ("J. K. Rowling wrote it.", 1), ("It is 3.5 m. long.", 1)])
def test_sentences_are_counted(text: str, count: int) -> None:
    assert count_sentences(text) == count


@quick
@given(st.text("ab*\n ", max_size=30))
def test_a_loose_check_looks_at_eight_variants(text: str) -> None:
    lines = text.split("\n")
    cuts = [text] + ["\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1])]
    assert set(variants(text)) == set(cuts) | {cut.replace("*", "") for cut in cuts} and len(variants(text)) == 8
    instruction = ("keywords:frequency", {"keyword": "a", "frequency": 2, "relation": "less than"})
    assert verify(instruction[0], text, instruction[1], loose=True) == any(
        variant.strip() and variant.count("a") < 2 for variant in variants(text))


def test_loose_checks_drop_markers() -> None:
    assert not verify("startend:quotation", 'Sure:\n"**so**"')
    assert verify("startend:quotation", 'Sure:\n"**so**"', loose=True)


def test_unknown_instructions_are_refused() -> None:
    with pytest.raises(SegueError, match="'rhyme' is unknown: choose from keywords"):
        verify("rhyme", "text")
    with pytest.raises(SegueError, match="cannot take the arguments"):
        verify("length_constraints:number_words", "text", {"words": 3})
    with pytest.raises(SegueError, match="'about' is unknown"):
        verify("length_constraints:number_words", "text", WORDS | {"relation": "about"})
    with pytest.raises(SegueError, match="1 responses for 0 items"):
        following([], ["x"])
    assert set(FOLLOWRAG.values()) <= set(VERIFIERS) and len(FOLLOWRAG) == 22 and len(VERIFIERS) == 25


def test_verifier_scores() -> None:
    items = [{"instruction_id_list": ["punctuation:no_comma", "length_words"], "kwargs": [{}, WORDS], "type": "ifnq"},
             {"instruction_id_list": ["format_no_commas"], "kwargs": [{"unused": None}], "type": "iftq"}]
    result = following(items, ["one two", "so, Sir:\nnone"])
    assert result.scores() == pytest.approx({"prompts, strict": 0, "instructions, strict": 1 / 3, "prompts, loose": 0.5,
                                             "instructions, loose": 2 / 3})
    assert result.families()["length_words"] == {"asked": 1, "strict": 0, "loose": 0}
    with pytest.raises(SegueError, match=r"source 'webq' .* sources are"):
        result.scores("webq")


@pytest.mark.parametrize("name", ["ifeval/input_data.jsonl", "followrag-sample/followRAG_ifnq_first300.jsonl.gz"])
def test_every_item_of_the_real_sets_can_be_checked(name: str, shared_data: Callable[[str], Path]) -> None:
    path = shared_data(name.partition("/")[0]) / name.partition("/")[2]
    content = path.read_bytes()
    items = [json.loads(line) for line in (gzip.decompress(content) if path.suffix == ".gz" else content).splitlines()]
    pytest.importorskip("langdetect")
    result = following(items, [item["prompt"][:300] for item in items])
    assert all(len(strict) == len(item["kwargs"]) for strict, item in zip(result.strict, items))
    assert all(loose or not strict for rows in zip(result.strict, result.loose) for strict, loose in zip(*rows))


@pytest.mark.parametrize(("name", "arguments"), [
    ("change_case:capital_word_frequency", {"capital_frequency": 1, "capital_relation": "at least"}),
    ("detectable_format:number_bullet_lists", {"num_bullets": 3}), ("detectable_format:title", {}),
    ("detectable_content:number_placeholders", {"num_placeholders": 1}),
    ("detectable_format:multiple_sections", {"section_spliter": "Part", "num_sections": 1}),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 1})])
@pytest.mark.parametrize("filler", ["-", "\n", " ", ".", "<", "[", "*"])
def test_checks_are_linear_on_long_runs(name: str, arguments: dict[str, Any], filler: str) -> None:
    """Quadratic patterns would take minutes."""
    assert not verify(name, "x" + filler * 200_000 + "y", arguments)


# The sandbox.

GOOD = "def evaluate(text):\n    return len(text) > 2\n"


def evaluate_body(body: str, calls: Sequence[Sequence[Any]] = (("x",),), **options: Any) -> list[Any]:
    return Sandbox(seconds=1.0, **options).run(f"def evaluate(x):\n{body}", "evaluate", calls)


def test_plain_functions_run() -> None:
    sandbox = Sandbox()
    assert [out.value for out in sandbox.run(GOOD, "evaluate", [["ab"], ["abc"]])] == [False, True]
    assert "interpreter" in sandbox.walls
    assert "kernel" in sandbox.walls or sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64")
    body = "    import re, math\n    print(x)\n    return [re.sub('a', 'b', x), math.pi > 3, None, {'k': 1.5}]"
    assert evaluate_body(body, [["aa"]])[0].value == ["bb", True, None, {"k": 1.5}]
    assert evaluate_body("    return x", [])  == []


def test_the_sandbox_refuses_without_its_isolation() -> None:
    for sandbox in (Sandbox(needs=("kernel", "moat")), Sandbox(needs=("moat",))):
        with pytest.raises(SegueError, match=r"no \w+ wall .* needs=\(\)"):
            cross_validate([GOOD], [(["ab"], False)], sandbox)
    assert Sandbox(needs=()).run(GOOD, "evaluate", [["abc"]])[0].value is True


@pytest.mark.parametrize("body", [
    "    while True: pass",
    "    try:\n        while True: pass\n    except BaseException: return 1",
    "    import os\n    return os.fork()",
    "    import re\n    return re.enum.sys.modules['os'].fork()",
    "    open('{file}', 'w').write('x')",
    "    import re\n    os = re.enum.sys.modules['os']\n    return os.write(os.open('{file}', 65), b'x')",
    "    import re\n    return re.enum.sys.modules['os'].system('touch {file}')",
    "    import re\n    return re.enum.sys.modules['ctypes'].CDLL(None).system(b'touch {file}')",
    "    import socket\n    return socket.create_connection(('127.0.0.1', 9))",
    "    import urllib.request",
    "    return [0] * 10**10",
    "    return 'x' * 10**11",
    "    return 'x' * 2_000_000",
    "    return evaluate(x)",
    "    raise SystemExit",
    "    import re\n    re.enum.sys.modules['os']._exit(0)",
    "    return {1, 2}",
    "    return (",
    "    import re\n    os = re.enum.sys.modules['os']\n    for fd in range(1, 20):\n        try: "
    "os.write(fd, b'[' * 200_000 + b'\\n')\n        except OSError: pass",
], ids=lambda body: body.split("\n")[-1].strip()[:30])
def test_failing_functions_give_no_verdict(body: str, tmp_path: Path) -> None:
    file, begin = tmp_path / "written", time.monotonic()
    results = evaluate_body(body.replace("{file}", str(file)), [["x"], ["y"], ["z"]], memory=200 * 2**20)
    assert len(results) == 3 and not any(out.ok for out in results) and all(out.value is None for out in results)
    assert not file.exists() and time.monotonic() - begin < 60


def test_a_failing_call_leaves_the_others_alone() -> None:
    results = evaluate_body("    while x == 'loop': pass\n    return x", [["a"], ["loop"], ["b"]])
    assert [out.value for out in results] == ["a", None, "b"] and results[1].error == "out of time"


def test_functions_run_in_fresh_processes() -> None:
    sandbox = Sandbox()
    spoiler = "import re\nre.sub = lambda *a: 'spoiled'\ndef evaluate(x):\n    return re.sub('a', 'b', x)"
    assert sandbox.run(spoiler, "evaluate", [["a"]])[0].value == "spoiled"
    assert evaluate_body("    import re\n    return re.sub('a', 'b', x)", [["a"]])[0].value == "b"


# Functions against cases.

def test_cross_validation_by_a_hand_table() -> None:
    """Five functions of a number and twelve cases "above 5": two are right, one is off by one, one is constantly true,
    one crashes. Of the cases 11 is wrong; only the function that is off by one reproduces the case of 5."""
    functions = ["def evaluate(x): return x > 5", "def evaluate(x): return not x <= 5",
                 "def evaluate(x): return x >= 5", "def evaluate(x): return True", "def evaluate(x): return missing"]
    cases = [([x], x > 5) for x in range(11)] + [([11], False)]
    result = cross_validate(functions, cases, Sandbox(seconds=2.0))
    assert result.functions == functions[:3] and len(result.cases) == 11 and functions[4] not in result.accuracy
    assert [round(result.accuracy[source], 3) for source in functions[:4]] == [1.0, 1.0, round(10 / 11, 3),
                                                                             round(5 / 11, 3)]
    strict = cross_validate(functions, cases, Sandbox(seconds=2.0), accuracy=0.95)
    assert strict.functions == functions[:2]
    agreed = cross_validate(functions, [*cases, ([5.0], True)], Sandbox(seconds=2.0), support=0.5)
    assert ([5.0], True) not in agreed.cases


@pytest.mark.parametrize(("functions", "cases", "reason"), [
    ([GOOD, GOOD, GOOD], [([str(i)], False) for i in range(12)], "1 functions run"),
    ([f"{GOOD}# {i}" for i in range(3)], [(["a"], False)] * 12, "1 different cases"),
    ([f"{GOOD}# {i}" for i in range(3)], [([str(i)], False) for i in range(12)], "all expect the same"),
    (["import requests\n" + GOOD.replace("len", "requests.get")] * 3, [([str(i)], False) for i in range(12)],
     "0 functions run")])
def test_dropped_functions_have_reasons(functions: list[str], cases: list[Any], reason: str) -> None:
    result = cross_validate(functions, cases, Sandbox(seconds=2.0))
    assert not result.functions and not result.cases and reason in result.reason


def test_a_constant_function_is_dropped() -> None:
    functions = [f"{GOOD}# {i}" for i in range(3)] + ["def evaluate(text): return True"]
    cases = [(["x" * (3 + i)], True) for i in range(11)] + [(["x"], False)]
    assert cross_validate(functions, cases, Sandbox(seconds=2.0)).functions == functions[:3]


@pytest.mark.parametrize(("one_", "other", "is_equal"), [
    (True, "True", True), (True, " true ", True), (None, "None", True), (None, "null", True), (3, "3", True),
    (3, 3.0, True), (True, 1, False), ("Yes", "yes", True), ([1, "a"], '[1, "a"]', True), (False, None, False),
    ("[" * 200_000, "[" * 200_000 + " ", True)], ids=lambda value: repr(value)[:20])
def test_equal_values_are_recognised(one_: Any, other: Any, is_equal: bool) -> None:
    assert same(one_, other) is is_equal and normalise(one_) == normalise(normalise(one_))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_supervisors_checks_are_right_except_the_planted_one(family: str) -> None:
    cases = sample_cases(family, 60, Random(0))
    *correct_checks, planted_check = CHECKS[family]
    for check in (*correct_checks, planted_check):
        space: dict[str, Any] = {}
        exec(SOURCE.format(check), space)  # our own text
        mistakes = [arguments for arguments, expected in cases if space["evaluate"](*arguments) != expected]
        assert bool(mistakes) == (check == planted_check), (family, check, mistakes[:1])


# Data in stages.

def test_pipeline_items_record_their_provenance() -> None:
    pipeline = (Pipeline().write("twice", lambda values: [[{"b": v["a"]}, {"b": v["a"] + 1}] for v in values])
                .keep("even", lambda values: ["" if v["b"] % 2 == 0 else "odd" for v in values])
                .write("none of 2", lambda values: [[] if v["b"] == 2 else [{}] for v in values])
                .run([{"a": 1}, {"a": 3}]))
    assert [item.value for item in pipeline.items] == [{"a": 3, "b": 4}]
    assert pipeline.items[0].trail == (("given", 1), ("twice", 1), ("even", 0), ("none of 2", 0))
    assert pipeline.stages == [("twice", 2, 4), ("even", 4, 2), ("none of 2", 2, 1)]
    assert pipeline.dropped == {"even": {"odd": 2}}
    assert json.loads(json.dumps(pipeline.rows()))[0]["provenance"][1] == ["twice", 1]
    assert Pipeline().run([]).items == []
    with pytest.raises(SegueError, match="answered 0 of 1"):
        Pipeline().keep("lazy", lambda values: []).run([{}])


# The verb.

ITEMS = [{"key": 1, "prompt": "Say no commas.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]},
         {"key": 2, "prompt": "Say two words.", "instruction_id_list": ["length_words", "startend:quotation"],
          "kwargs": [WORDS, {}]}]


def lines(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_verify_reads_items_and_responses_in_any_order(tmp_path: Path) -> None:
    items = lines(tmp_path / "items.jsonl", ITEMS)
    by_prompt = lines(tmp_path / "r.jsonl", [{"prompt": "Say two words.", "response": 'Here:\n"so it is"'},
                                             {"prompt": "Say no commas.", "response": "one, two"}])
    report = verify_files(items, by_prompt)
    assert report.items == 2 and report.missing == 0 and report.sources == {}
    assert report.scores == pytest.approx({"prompts, strict": 0, "instructions, strict": 1 / 3,
                                           "prompts, loose": 0.5, "instructions, loose": 2 / 3})
    assert report.families["startend:quotation"] == {"asked": 1, "strict": 0, "loose": 1}
    assert "startend:quotation" in str(report) and "prompts, loose: 50.0%" in str(report)
    packed = tmp_path / "whole.json.gz"
    packed.write_bytes(gzip.compress(json.dumps([item | {"response": "so", "type": f"if{item['key']}"}
                                                 for item in ITEMS]).encode()))
    single = verify_files(packed)
    assert set(single.sources) == {"if1", "if2"} and single.sources["if1"]["prompts, strict"] == 1
    twice = lines(tmp_path / "twice.jsonl", [ITEMS[0] | {"response": text} for text in ("one, two", "one two")])
    assert verify_files(twice).scores["prompts, strict"] == 0.5
    partly = verify_files(items, lines(tmp_path / "one.jsonl", [{"key": 2, "response": "x"}]))
    assert partly.items == 1 and partly.missing == 1 and "1 items have no response" in str(partly)


@pytest.mark.parametrize(("rows", "message"), [
    ([{"prompt": "p"}], "line 1 has no text 'response'"), ([{"response": "r"}], "prompt or key"),
    ([{"prompt": "q", "response": "r"}], "must be alike"),
    ([{"key": 1, "response": "r"}] * 2, "line 2 is a second response"),
    ([3], "line 1 is no JSON object"), ([], "holds no items")])
def test_verify_says_what_is_wrong_with_responses(rows: list[Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(SegueError, match=message):
        verify_files(lines(tmp_path / "items.jsonl", ITEMS), lines(tmp_path / "r.jsonl", rows))


@pytest.mark.parametrize(("text", "message"), [
    ('{"prompt": "p", "instruction_id_list": [], "kwargs": []}', "line 1 has no instruction_id_list"),
    ('{"prompt": "p", "instruction_id_list": ["a"], "kwargs": ["b"]}', "kwargs that are no object"),
    ('{"prompt": "p", "instruction_id_list": [["a"]], "kwargs": [{}]}', "line 1 has no instruction_id_list"),
    ('{"prompt": "p", "instr', "not a line of JSON"), ('[{"a": 1}, 2]', "entry 2 is no JSON"),
    ('[{"a"', "cut short"), ("", "holds no items")])
def test_verify_says_what_is_wrong_with_items(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    path.write_text(text)
    with pytest.raises(SegueError, match=message):
        verify_files(path, path)
