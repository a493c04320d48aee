"""Cycles of translation there and back, programs on lists, and the claim of CyclePrompt."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segue.errors import SegueError
from segue.models import Stack, StackConfig
from segue.papers.cycle_prompt import (
    CODEC,
    check_programs,
    difference,
    make_cycle,
    skills,
)
from segue.programs import Local, Scripted
from segue.programs.cycle import Cycled, CycleProgram, Difference, bare_python
from segue.programs.sandbox import Sandbox
from segue.tasks.list_programs import (
    SOURCE,
    WORDS,
    clauses,
    corrupted,
    parse_clauses,
    program,
    random_program,
    specification,
    steps_of,
)

quick = settings(max_examples=40, deadline=None, derandomize=True)


def letters(target: str, back: str) -> Difference:
    """Letters that are missing."""
    missing = "".join(sorted(set(target) - set(back)))
    return Difference(missing and f"missing {missing}", 1 - len(missing) / len(target))


def scripted(f: Scripted, **options: Any) -> CycleProgram[str, str]:
    """A cycle over a text model whose prompt is the input and all hints so far; g describes the answer."""
    def forward(inputs: Sequence[str], state: Sequence[Cycled[str, str]]) -> list[str]:
        return [reply.text for reply in f.write([" | ".join([x, *cycle_state.hints()])
                                                 for x, cycle_state in zip(inputs, state)])]

    return CycleProgram(forward, list, letters, **options)


def test_prompts_hold_the_hints_of_the_cycles_before() -> None:
    f = Scripted(["a", "ab", "abc", "x"])
    result = scripted(f).run(["abcd"])[0]
    assert f.prompts == ["abcd", "abcd | missing bcd", "abcd | missing bcd | missing cd",
                         "abcd | missing bcd | missing cd | missing d"]
    assert result.calls == 3 * 3 + 1 and result.last == "x" and result.best == "abc"
    assert result.hints() == ["missing bcd", "missing cd", "missing d"] and result.hints(1) == ["missing d"]
    assert result.hints(0) == []


def test_an_exact_inverse_stops_after_one_cycle() -> None:
    results = scripted(Scripted(lambda prompt: prompt)).run(["abc", "d"])
    assert [result.calls
            for result in results] == [3, 3] and all(result.consistent and not result.hints() for result in results)
    assert results[0].drafts[0].difference.score == 1 and results[0].last == results[0].best == "abc"


def test_a_planted_error_is_repaired_in_one_cycle() -> None:
    f = Scripted(lambda prompt: "abc" if "missing c" in prompt else "ab")
    correct, mended = scripted(f).run(["ab", "abc"])
    assert correct.calls == 3 and mended.calls == 6 and mended.last == mended.best == "abc"
    assert [draft.answer for draft in mended.drafts] == ["ab", "abc"]


def test_copied_specifications_are_hidden_from_the_inverse() -> None:
    """f copies the specification into a comment; g would only have to read it there."""
    spec = "add one to n"

    def f(inputs: Sequence[str], state: Sequence[Any]) -> list[str]:
        return [f'def add_one_to(n):\n    """{x}"""\n    return n  # {x}\n' for x in inputs]

    def g(answers: Sequence[str]) -> list[str]:
        return [spec if spec in answer or "add_one" in answer else "returns its input" for answer in answers]

    def diff(target: str, back: str) -> Difference:
        return Difference("" if target == back else "something", float(target == back))

    leaky = CycleProgram(f, g, diff, rounds=1).run([spec])[0]
    honest = CycleProgram(f, g, diff, rounds=1, bare=bare_python).run([spec])[0]
    assert leaky.consistent and not honest.consistent and honest.drafts[0].difference.score == 0
    with pytest.raises(SegueError, match="more than 3"):
        scripted(Scripted(lambda prompt: prompt), longest=3).run(["abcd"])
    with pytest.raises(SegueError, match="0 rounds"):
        scripted(Scripted([]), rounds=0)
    assert CycleProgram(f, g, diff).run([]) == []


def test_comments_and_docstrings_are_stripped() -> None:
    source = ('"""Module."""\ndef double(xs: list) -> list:\n    "Doc."\n    # note\n    total = [2 * x for x in xs]\n'
              '    return total\ndef empty():\n    """Only words."""\nresult = double([1, len("kept")])\n')
    bare = bare_python(source)
    assert not any(word in bare for word in ("Module", "Doc", "note", "double", "total", "xs", "words", "result"))
    space: dict[str, Any] = {}
    exec(bare, space)  # our own text
    assert [2, 8] in space.values() and bare_python(bare) == bare_python(bare_python(bare)) and "len('kept')" in bare
    with pytest.raises(SegueError, match="not Python"):
        bare_python("def (")


def test_no_name_of_the_source_is_left_and_it_still_runs() -> None:
    source = """
import math as leak_module
from dataclasses import dataclass
@dataclass
class LeakBox:
    "leak"
    leak_size: "leak of an annotation" = 2
    def __post_init__(self):
        self.leak_double = 2 * self.leak_size
    def leak_method(self, leak_factor=1):
        return self.leak_double * leak_factor
async def leak_later():
    "leak"
def leak_count(*leak_rest, **leak_named):
    leak_total = 0
    def leak_inner():
        nonlocal leak_total
        leak_total += LeakBox(leak_size=3).leak_method(leak_factor=7)
    leak_inner()
    try:
        leak_module.sqrt("x")
    except TypeError as leak_error:
        return leak_total, type(leak_error), sorted([1, 2], key=lambda leak_key: -leak_key)
found = leak_count()
"""
    bare, space = bare_python(source), dict[str, Any]()
    assert "leak" not in bare.lower()
    exec(bare, space)  # our own text
    assert (42, TypeError, [2, 1]) in space.values()


def test_what_is_no_python_is_refused() -> None:
    with pytest.raises(SegueError, match="not Python"):
        bare_python("def (")
    with pytest.raises(SegueError, match="not Python"):
        bare_python("-" * 5000 + "1")


# Programs on lists.

@quick
@given(st.integers(0, 10**6))
def test_programs_and_specifications_round_trip(seed: int) -> None:
    random = Random(seed)
    steps = random_program(random)
    words = specification(steps, random)
    assert parse_clauses(words) == clauses(steps) == parse_clauses(specification(steps))
    assert steps_of(program(steps)) == steps and set(words) <= set(WORDS) and set(program(steps)) <= set(WORDS)
    corrupted_steps = corrupted(steps, random)
    assert corrupted_steps != steps
    result = difference(words, specification(corrupted_steps))
    assert result.hint and result.score < 1 and difference(words, specification(steps)) == Difference("", 1.0)


def test_programs_follow_their_specifications() -> None:
    table = [("add 2 list", [3, 4, 3]), ("mul 3 sum", 12), ("odd once list", [1]), ("above 1 len", 1),
             ("drop 1 take 1 list", [2]), ("reverse sort max", 2), ("even reverse list", [2]), ("drop 9 max", 0)]
    calls = [[words.split(), [1, 2, 1]] for words, _ in table]
    assert [out.value for out in Sandbox().run(SOURCE, "evaluate", calls)] == [expected for _, expected in table]
    bad_programs = [[["add"], [1]], [["sum", "add"], [1]], [[], []]]
    assert not any(out.ok for out in Sandbox().run(SOURCE, "evaluate", bad_programs))
    tasks = [[("add", 2), ("list", 0)]] * 3
    assert check_programs([["add", "2", "list"], ["add", "3", "list"], ["nonsense"]], tasks, 0) == [True, False, False]
    malformed = ["1st", "dance", ",", "9th", "sort", "them", ",", "last", "give", "the", "count"]
    assert parse_clauses(malformed) == [("last", ("len", 0))]
    with pytest.raises(SegueError, match="'dance' is no operation"):
        steps_of(["dance"])


@pytest.mark.parametrize("mixer", ["gru", "mamba"])
def test_every_mixer_runs_the_cycle(mixer: str) -> None:
    torch.manual_seed(0)
    local = Local(Stack(StackConfig(CODEC.size, 16, [mixer])).eval().requires_grad_(False), CODEC)
    specs = [specification(random_program(Random(i)), Random(i)) for i in range(3)]
    state = make_cycle(local, 0).run(specs)
    assert all(len(run.drafts) <= 3 and run.calls == 3 * len(run.drafts) + (run.answer is not None)
               for run in state)
    for skill in skills().values():
        prompt, answer = skill(Random(1))
        assert CODEC.unk not in CODEC.encode([*prompt, *answer]).tolist()
