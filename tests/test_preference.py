"""Preferences between answers, judges, trees of refinements, the language Lilt, and the claim of SPaR."""

from __future__ import annotations

import copy
import json
import math
from functools import partial
from pathlib import Path
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from weights import shake

import segue
import segue.data
from segue.errors import SegueError
from segue.files import write_json
from segue.kinds.codecs import ByteCodec, ItemCodec, LetterCodec
from segue.models import Stack, StackConfig
from segue.objectives import Preference, preference_batch, preference_loss
from segue.objectives.preference import answer_likelihoods
from segue.papers.spar import critic, editor, interfering
from segue.programs import Judge, Judgement, Local, Refiner, Scripted, preference_pairs, refine_tree, refiner_lessons
from segue.programs.judge import score, yes_or_no
from segue.tasks.lilt import CODEC, FAMILIES, Instruction, holds, lilt
from segue.training.learn import learn
from segue.verbs.prefer import _read_pairs

quick = settings(max_examples=25, deadline=None, derandomize=True)


# Preferences.

def by_hand(model: Stack, reference: Stack, pairs: list[tuple[list[int], list[int], list[int]]], beta: float,
            share: float) -> Tensor:
    """The loss as the papers write it, one pair and one element at a time."""
    def likelihood(of: Stack, prompt: list[int], answer: list[int]) -> Tensor:
        ids = prompt + answer
        scores = of(torch.tensor([ids])).logits[0].log_softmax(-1)
        return sum((scores[i - 1, ids[i]] for i in range(len(prompt), len(ids))), torch.zeros((), dtype=scores.dtype))

    total = torch.zeros((), dtype=torch.float64)
    for prompt, better, worse in pairs:
        better_gain = likelihood(model, prompt, better) - likelihood(reference, prompt, better).detach()
        worse_gain = likelihood(model, prompt, worse) - likelihood(reference, prompt, worse).detach()
        total = total - torch.log(1 / (1 + torch.exp(-beta * (better_gain - worse_gain))))
        total = total - share * likelihood(model, prompt, better) / len(better)
    return total / len(pairs)


@pytest.mark.parametrize("mixer", ["attention", "gru", "mamba", "gla"])
@pytest.mark.parametrize("share", [0.0, 0.1])
def test_the_loss_and_its_gradient_equal_the_papers(mixer: str, share: float) -> None:
    torch.manual_seed(0)
    model = Stack(StackConfig(9, 16, [mixer])).double()
    reference = copy.deepcopy(model)
    shake(model, 0.3)
    pairs = [([1, 2], [3, 4, 5], [4]), ([7], [2], [8, 8, 1, 0]), ([1, 1, 1], [0, 2], [0, 3])]
    loss = Preference(reference, 0.3, share)(model, preference_batch(pairs))
    expected = by_hand(model, reference, pairs, 0.3, share)
    torch.testing.assert_close(loss.total / loss.count, expected)
    slopes = torch.autograd.grad(expected, list(model.parameters()))
    (loss.total / loss.count).backward()
    for p, slope in zip(model.parameters(), slopes):
        torch.testing.assert_close(p.grad, slope)
    assert all(p.grad is None for p in reference.parameters())
    assert set(loss.terms) == {"preference", "nats", "agree"} and not any(t.requires_grad for t in loss.terms.values())


def test_an_unchanged_model_has_no_preference() -> None:
    model = Stack(StackConfig(9, 16, ["attention"]))
    loss = Preference(copy.deepcopy(model), likelihood=0.0)(model, preference_batch([([1], [2, 3], [4])]))
    assert loss.total.item() / loss.count == pytest.approx(math.log(2))
    assert preference_loss(torch.tensor([3.0]), torch.tensor([1.0]), 0.5).item() == pytest.approx(
        -math.log(1 / (1 + math.exp(-1.0))))


@pytest.mark.parametrize(("codec", "better", "worse"), [
    (LetterCodec("ACGT"), "ACACAC", "ACGTTT"), (ItemCodec(["milk", "bread", "plum"]), ["milk", "plum"], ["bread"]),
    (ByteCodec(), b"yes", b"nope")], ids=["dna", "items", "bytes"])
def test_every_codec_learns_preferences(codec: LetterCodec, better: str, worse: str) -> None:
    torch.manual_seed(0)
    model = Stack(StackConfig(codec.size, 16, ["mlstm"]))
    pair = [codec.bos], codec.encode(better).tolist(), codec.encode(worse).tolist()
    batch = preference_batch([pair, pair])
    reference = copy.deepcopy(model)
    learn(model, lambda step: batch, 20, rate=3e-3, objective=Preference(reference))
    change = answer_likelihoods(model, batch) - answer_likelihoods(reference, batch)
    assert change[0] > 1 and change[0] > change[2] + 1  # the better one is likelier than before, and than the worse


def test_missing_pairs_are_refused() -> None:
    model = Stack(StackConfig(9, 8, ["gru"]))
    with pytest.raises(SegueError, match="3 rows are no pairs"):
        Preference(model)(model, preference_batch([([1], [2], [3])] * 2).rows(slice(3)))
    with pytest.raises(SegueError, match="empty prompt"):
        preference_batch([([], [1], [2])])
    with pytest.raises(SegueError, match="beta"):
        Preference(model, beta=0.0)
    with pytest.raises(SegueError, match="leave accumulate out"):  # pairs would be put together wrongly
        learn(model, lambda step: preference_batch([([1], [2], [3])] * 2), 1, objective=Preference(model), accumulate=2)


# The verb.

@pytest.mark.parametrize(("kind", "prompt", "better", "worse"), [
    ("text", "say: ", "yes", "no"), ("dna", "ACGT", "AAAA", "CCCC"), ("dna", "", "ACAC", "GG")])
def test_prefer_changes_every_fitted_model(kind: str, prompt: str, better: str, worse: str, tmp_path: Path) -> None:
    texts = [(prompt + ending) * 12 for ending in (better, worse)] * 12
    model = segue.fit(segue.data.of(texts, kind=kind), out=tmp_path / "model", steps=3, quiet=True, mix=False)
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text((json.dumps({"prompt": prompt, "chosen": better, "rejected": worse}) + "\n") * 20)
    report = model.prefer(pairs, steps=4, rate=1e-2, quiet=True)
    assert (report.pairs, report.held_out, report.steps, report.moved) == (18, 2, 4, 1.0)
    assert "held-out" in str(report) and all(len(pair) == 2 for pair in report.bits.values())
    reloaded = segue.load(tmp_path / "model")
    assert reloaded.report["preferences"][0]["pairs"] == 18 and not (tmp_path / "model" / "updating").exists()
    for expected, actual in zip(model.model.parameters(), reloaded.model.parameters()):
        torch.testing.assert_close(expected, actual)
    second_report = reloaded.prefer([(prompt, better, worse)] * 2, steps=1, quiet=True)
    assert second_report.likelier[1] == 1.0


def test_published_dialogue_pairs_are_read(tmp_path: Path) -> None:
    path, talk = tmp_path / "pairs.jsonl", "Human: Hi.\n\nAssistant: "
    rows = [({"chosen": f"{talk}Yes.", "rejected": f"{talk}Yet?"},
             ("Human: Hi.\n\n", "Assistant: Yes.", "Assistant: Yet?")),
            ({name: [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": reply}]
              for name, reply in (("chosen", "Yes."), ("rejected", "No."))}, ("Hi.", "Yes.", "No.")),
            ({"prompt": "Hi.", "chosen": [{"role": "assistant", "content": "Yes."}],
              "rejected": [{"role": "assistant", "content": "No."}]}, ("Hi.", "Yes.", "No."))]
    for row, pair in rows:
        path.write_text(json.dumps(row) + "\n")
        assert _read_pairs(path)[0] == [pair]


def test_malformed_pairs_are_refused(tmp_path: Path) -> None:
    model = segue.fit(["one two three four\n" * 9] * 9, steps=1, quiet=True)
    table = tmp_path / "pairs.csv"
    for text, message in (("prompt,chosen\na,b\n", "no column rejected"), ("", "empty"),
                          ("prompt,chosen,rejected\na,,c\na,b,c\n", "line 2: no continuation"),
                          ("prompt,chosen,rejected\na,b,c\na,b,b\n", "line 3: both continuations are the same"),
                          ("prompt,chosen,rejected\na,b,c\n", "1 pairs are too few")):
        table.write_text(text)
        with pytest.raises(SegueError, match=message):
            model.prefer(table, quiet=True)
    with pytest.raises(SegueError, match="no such file"):
        model.prefer(tmp_path / "none.csv", quiet=True)
    with pytest.raises(SegueError, match="of text"):
        model.prefer([(["a"], ["b"], ["c"])] * 3, quiet=True)
    write_json(model.save(tmp_path / "model") / "updating" / "request.json", {})
    with pytest.raises(SegueError, match="unfinished update"):
        model.prefer([("a", "b", "c")] * 3, quiet=True)
    assert (tmp_path / "model" / "updating" / "request.json").exists()
    reads_both_ways = segue.fit(["one two three four\n" * 9] * 9, steps=1, quiet=True, objective="diffusion")
    with pytest.raises(SegueError, match="learned the next element"):
        reads_both_ways.prefer([("a", "b", "c")] * 2)


# Judges.

@pytest.mark.parametrize(("reply", "header", "message"), [
    ("All is well. Final: Yes, it does", "Final:", 1.0), ("yes in part. Final: no", "Final:", 0.0),
    ("Yes indeed", "Final:", None), ("Final: maybe", "Final:", None), ("Final: no. Final: yes", "Final:", 1.0),
    ("I say NO", "", 0.0), ("yesterday", "", None)])
def test_yes_or_no(reply: str, header: str, message: float | None) -> None:
    assert yes_or_no(reply, header) == message


@pytest.mark.parametrize(("reply", "message"), [("Score: 10", 10), ("score: 7/10", 7), ("11, or rather 9", 9),
                                                ("none", None), ("I give 3. Score: 8", 8), ("Score: 0", 0),
                                                ("Score: " + "1" * 5000, None)])
def test_scores(reply: str, message: float | None) -> None:
    assert score(reply) == message


def test_votes() -> None:
    assert Judgement((1, 0, None, 1)).value == pytest.approx(2 / 3) and Judgement((1, 0, None, 1)).label is True
    assert Judgement((1, 0)).label is None and Judgement((None,)).label is None and Judgement((None,)).value is None
    assert Judgement((0, 1, 0), ("a", "b", "c")).critique == "a" and Judgement((0, 1, 0)).mixed
    script = Scripted(["yes", "no", "?", "?", "no", "no", "?", "?"])
    judge = Judge(script, "{} {}".format, votes=2, tries=2)
    first, second = judge([("p", "a"), ("q", "b")])
    assert (first.votes, second.votes) == ((0.0, 0.0), (None, None))  # the tied one is asked anew
    assert script.prompts == ["p a", "p a", "q b", "q b"] * 2


# Trees, by a hand trace. An answer is a word, its refinements add a letter, and a table says what each is worth.

WORTH = {"a": 0.2, "b": 0.4, "c": 0.4, "aa": 0.1, "ba": 0.3, "bb": 0.5, "bc": 0.2, "ca": 0.5, "cb": 0.0, "cc": 0.9,
         "bba": 0.8}


def table(cases: object) -> list[Judgement]:
    return [Judgement((WORTH.get(answer, 0.0),), (f"critique of {answer}",)) for _, answer in cases]  # type: ignore


def grow(prompt: str, answer: str, critique: str, count: int) -> list[str]:
    assert critique == ("what is wrong" if answer == "" else f"critique of {answer}")
    return [answer + letter for letter in "abc"[:count]]


@pytest.mark.parametrize(("options", "visited", "best", "success"), [
    ({"enough": 0.85}, "a b c ba bb bc ca cb cc", "cc", True),
    ({}, "a b c ba bb bc ca cb cc", "cc", True),
    ({"search": "depth"}, "a b c ba bb bc bba bbb bbc", "bba", True),
    ({"search": "depth", "enough": 0.85}, "a b c ba bb bc bba bbb bbc baa bab bac ca cb cc", "cc", True),
    ({"keep": 1}, "a b c ba bb bc bba bbb bbc", "bba", True),
    ({"branch": 2, "depth": 1}, "a b", "b", False),
    ({"budget": 5}, "a b c ba bb", "bb", False),
    ({"search": "depth", "budget": 5}, "a b c ba bb", "bb", False)])
def test_the_order_of_a_search(options: dict, visited: str, best: str, success: bool) -> None:
    result = refine_tree("p", "", "what is wrong", grow, table, **options)
    nodes = sorted(list(result.root.walk())[1:], key=lambda node: node.order)
    assert [node.answer for node in nodes] == visited.split()
    assert (result.best.answer, result.success) == (best, success)
    assert [node.answer for node in result.best.chain] == [best[:n] for n in range(len(best) + 1)]


def test_a_search_without_improvement_keeps_the_original() -> None:
    dull = refine_tree("p", "root", "", lambda *_: ["x"], lambda cases: [Judgement((0.0,)) for _ in cases], value=0.1)
    assert dull.best is dull.root and not dull.success and dull.judged == 1  # the same answer is judged once
    mute = refine_tree("p", "root", "", lambda *_: [], table)
    assert mute.best is mute.root and mute.judged == 0
    unjudged = refine_tree("p", "root", "", lambda *_: ["x"], lambda cases: [Judgement((None,)) for _ in cases])
    assert not unjudged.root.children
    with pytest.raises(SegueError, match="breadth, depth"):
        refine_tree("p", "", "", grow, table, search="best")  # type: ignore[arg-type]


def test_a_refiners_answer_is_read_between_marks() -> None:
    script = Scripted(["So: <answer> good </answer> bye", "good", "<answer>cut short", "<answer>fine</answer>"])
    refiner = Refiner(script, "{} {} {}".format)
    assert refiner("p", "a", "c", 3) == ["good", "", ""] and script.prompts == ["p a c"] * 3
    result = refine_tree("p", "a", "c", refiner, lambda cases: [Judgement((1.0,)) for _ in cases], branch=1)
    assert result.success and result.best.answer == "fine"


def test_judgements_are_cached_by_prompt_and_answer() -> None:
    cache: dict[tuple[str, str], Judgement] = {}
    refine = partial(refine_tree, answer="", critique="what is wrong", refine=grow, judge=table, depth=1, cache=cache)
    assert refine("p").judged == 3 and refine("p").judged == 0 and refine("q").judged == 3


def test_a_refiner_learns_from_its_own_trees() -> None:
    actor = Scripted(["bad"])
    votes = Scripted(["fault: no", "fault: no", "fine: yes", *["still: no"] * 3, "well: yes", "no", "well: yes"])
    judge, refiner = Judge(votes, "judge {} {}".format, votes=3), \
        Refiner(Scripted(["<answer>worse</answer>", "<answer>good</answer>"]), "refine {} {} {}".format)
    pairs = preference_pairs(actor, ["p"], judge, refiner, samples=1, branch=2) * 2
    assert [(pair.worse, pair.better) for pair in pairs] == [("bad", "good")] * 2
    assert refiner_lessons(pairs, judge, refiner) == {
        "refine": [("refine p bad fault: no", "<answer>good</answer>")],
        "pass": [("judge p good", "well: yes")], "fail": [("judge p bad", "fault: no")]}  # on "worse" all agreed


# Lilt.

@quick
@given(st.integers(0, 10**6))
def test_instructions_can_be_parsed_answered_and_repaired(seed: int) -> None:
    random = Random(seed)
    instruction = Instruction.sample(random)
    answer = instruction.answer(random)
    assert Instruction.read(instruction.prompt) == instruction and not instruction.violations(answer)
    assert all(word in CODEC.items for word in instruction.prompt + answer)
    for constraint in Instruction.sample(random, most=3).constraints:
        faulty = Instruction(instruction.topic, (constraint,))
        if constraint[0] != "twice" or len(answer) > 3:  # two of a word need two places
            assert holds(constraint, faulty.repaired(answer, constraint, random))


@pytest.mark.parametrize(("constraint", "answer", "is_kept"), [
    (("exactly", "2"), "cat dog", True), (("exactly", "2"), '" cat dog "', True), (("exactly", "3"), "cat dog", False),
    (("atleast", "2"), "cat dog cow", True), (("include", "cat"), "dog CAT", True),
    (("avoid", "cat"), "dog CAT", False), (("twice", "cat"), "cat cat cat", False),
    (("twice", "cat"), "cat dog CAT", True), (("start", "cat"), "cat", True),
    (("start", "cat"), "", False), (("end", "cat"), '" dog cat "', True), (("upper", ""), "CAT dog", False),
    (("lower", ""), "cat dog", True), (("quote", ""), '" cat', False), (("quote", ""), '" cat "', True),
    (("topic", "animals"), "cat plum", False), (("topic", "animals"), "", False), (("topic", "animals"), "CAT", True)])
def test_constraints(constraint: tuple[str, str], answer: str, is_kept: bool) -> None:
    assert holds(constraint, answer.split()) is is_kept


def test_malformed_instructions_are_refused() -> None:
    with pytest.raises(SegueError, match="no instruction of Lilt"):
        Instruction.read(["say", "hello"])
    with pytest.raises(SegueError, match="choose from exactly"):
        holds(("rhyme", ""), ["cat"])
    instructions = [Instruction.sample(Random(seed)) for seed in range(200)]
    assert {family for instruction in instructions for family, _ in instruction.constraints} == set(FAMILIES)


@pytest.mark.parametrize("mixer", ["gru", "mamba"])
def test_a_round_of_self_play_with_every_mixer(mixer: str) -> None:
    torch.manual_seed(0)
    model = Stack(StackConfig(CODEC.size, 32, [mixer]))
    learn(model, lilt().batches(16), 4, rate=3e-3)
    random = Random(0)
    prompts = [" ".join(Instruction.sample(random).prompt) for _ in range(6)]
    judge = Judge(critic(random, flip=0.0), "{}\n{}".format, partial(yes_or_no, header="Answer:"), votes=1)
    pairs = preference_pairs(Local(model.eval(), CODEC), prompts, judge, editor(random), samples=2, most=8, depth=5)
    assert pairs
    for pair, other in zip(pairs, interfering(pairs, 0)):
        instruction = Instruction.read(pair.prompt.split())
        assert instruction.violations(pair.worse.split())
        assert not instruction.violations(pair.better.split()) and not instruction.violations(other.better.split())
