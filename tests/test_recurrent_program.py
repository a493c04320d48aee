"""RecurrentGPT's loop: sections, memories, and a story that goes on from a file as if nothing had happened."""

from __future__ import annotations

import json
import re
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segue.errors import SegueError
from segue.kinds.codecs import ByteCodec, ItemCodec
from segue.models import Stack, StackConfig
from segue.papers.recurrent_gpt import (
    ARMS,
    BUCKETS,
    FULL,
    HEADINGS,
    LAST,
    ROLLING,
    WRITER,
    follow_edits,
    judge,
    write_stories,
)
from segue.programs import Counted, Local, Scripted
from segue.programs.memory import Hashing, LongTerm, ShortTerm, of_model
from segue.programs.recurrent import PLANS, RecurrentProgram, Simulated, Story, by_hand, first_plan
from segue.programs.sections import Section, SectionedPrompt, shorten, split_sentences
from segue.tasks.journeys import CODEC, FACTS, next_being, paragraph, parse_move, reply, write_step

TWO = SectionedPrompt("{ask}", (Section("text", "Text:"), Section("plan", "Plan 1:", words=5)))


# --- sections


@pytest.mark.parametrize("reply", [
    "Text: a b.\nPlan 1: c d.",
    "Plan 1: c d.\nText: a b.",  # swapped
    "**Text:** a b.\n\n## plan 1:\nc d.",  # decorated
    "a b.\nPlan 1: c d.",  # the first heading left out
    "Text: a b. Plan 1: c d.",  # no new line
    "Text: a b.\nPlan 1: c d.\nText: again.\nPlan 1: again.",  # said twice
    "Text: a b.\n***\n\n ## \n** Plan 1:** c d.\n---\n".replace("---", "***"),  # lines of decoration
    "Text: a b.\n" + " " * 200_000 + "\n" * 200_000 + "Plan 1: c d.",  # nothing, at length
])
def test_sections_are_parsed_in_every_spelling(reply: str) -> None:
    result = TWO.parse(reply)
    assert result.texts == {"text": "a b.", "plan": "c d."} and not result.problem


@pytest.mark.parametrize("reply", ["", "Plan 1: c", "Text: a", "Text:\nPlan 1: c", "nothing of the sort"])
def test_a_malformed_reply_is_retried_a_bounded_number_of_times(reply: str) -> None:
    model = Counted(Scripted(lambda prompt: reply))
    result = TWO.ask(model, ["p"])[0]
    assert result.problem and result.calls == model.calls == 3
    script = Scripted([reply, "Text: a\nPlan 1: c"])
    result = TWO.ask(script, ["p"])[0]
    assert result.calls == 2 and not result.problem and "p" in script.prompts[1] and "Plan 1:" in script.prompts[1]


def test_only_failed_prompts_are_retried() -> None:
    script = Scripted(lambda prompt: "Text: a\nPlan 1: c" if prompt == "good" or "first reply" in prompt else "Text: a")
    results = TWO.ask(script, ["good", "bad", "good"])
    assert [result.calls for result in results] == [1, 2, 1] and len(script.prompts) == 4


@settings(deadline=None)
@given(st.text(max_size=80))
def test_any_reply_is_parsed(reply: str) -> None:
    result = TWO.parse(reply)
    assert bool(result.problem) == (set(result.texts) != {"text", "plan"})
    assert len(result.texts.get("plan", "").split()) <= 5


def test_sentences_and_bounds() -> None:
    assert split_sentences("One. Two? 3.5 is three!\n- four\n2) five") == \
        ["One.", "Two?", "3.5 is three!", "four", "five"]
    assert split_sentences('He said "Go!" Then\nnothing') == ['He said "Go!"', "Then", "nothing"]
    assert shorten("One two. Three four. Five.", 4) == "One two. Three four." and shorten("a b c", 2) == "a b"
    with pytest.raises(SegueError, match="its fields are other"):
        TWO.fill(other="x")


# --- memories


def test_pinned_sentences_survive_and_changes_are_logged() -> None:
    memory = ShortTerm(most=3)
    memory.rewrite("Ann is here. Bob left. Cid sleeps. Dan runs.", 1)
    assert memory.sentences == ["Ann is here.", "Bob left.", "Cid sleeps."]
    memory.edit("Ann is gone. Bob left.", 2)
    assert memory.pinned == ["Ann is gone."]
    memory.rewrite("Bob left. Eve came. Fay sings. Gus eats.", 3)
    assert memory.sentences == ["Bob left.", "Eve came.", "Ann is gone."]
    assert memory.log[-1] == {"step": 3, "added": ["Eve came."], "deleted": []}
    memory.edit("Bob left.", 4, pin=False)
    assert memory.pinned == [] and memory.log[-1]["deleted"] == ["Eve came.", "Ann is gone."]
    with pytest.raises(SegueError, match="unpin some"):
        memory.pin(["a.", "b.", "c.", "d."])


@settings(deadline=None)
@given(st.lists(st.text("abc ", min_size=1, max_size=12), min_size=1, max_size=12), st.text("abc ", max_size=8),
       st.integers(1, 5))
def test_retrieval_ranks_by_cosine_and_grows_incrementally(texts: list[str], query: str, k: int) -> None:
    embed, archive = Hashing(64), LongTerm(Hashing(64), recency=0.0)
    for place, text in enumerate(texts):
        archive.add(text, place=place)
    vectors, query_vector = embed(texts), embed([query])[0]
    norms = np.linalg.norm(vectors, axis=1) * np.linalg.norm(query_vector)
    cosines = np.divide(vectors @ query_vector, norms, out=np.zeros(len(texts), np.float32), where=norms > 0)
    results = archive.search(query, k)
    assert np.allclose([result.score for result in results], np.sort(cosines)[::-1][:k], atol=1e-6)
    assert all(result.note == {"place": result.place} and result.text == texts[result.place] for result in results)
    assert archive.index is not None
    reloaded = LongTerm.from_dict(archive.to_dict(), embed)
    assert reloaded.search(query, k) == results
    torch.testing.assert_close(archive.index.vectors,
                               torch.nn.functional.normalize(torch.from_numpy(vectors), dim=-1))


def test_retrieval_ties_prefer_the_newer() -> None:
    archive = LongTerm(Hashing())
    for text in ("fox in cave", "owl in mill", "fox in field", "owl in tower"):
        archive.add(text)
    assert [hit.text for hit in archive.search("where is fox", 2)] == ["fox in field", "fox in cave"]
    assert [hit.text for hit in archive.search("fox", 2, without={2})] == ["fox in cave", "owl in tower"]
    newest = LongTerm(None)
    for text in "abc":
        newest.add(text)
    assert [hit.text for hit in newest.search("a", 2)] == ["c", "b"] and LongTerm().search("a") == []


@pytest.mark.parametrize("mixer", ["gru", "attention"])
@pytest.mark.parametrize("codec", [ByteCodec(), ItemCodec(["fox", "owl", "in"])], ids=["bytes", "words"])
def test_retrieval_by_a_models_own_vectors(mixer: str, codec: ByteCodec | ItemCodec) -> None:
    torch.manual_seed(0)
    archive = LongTerm(of_model(Stack(StackConfig(codec.size, 16, [mixer])).eval(), codec), recency=0.0)
    archive.add("fox in")
    archive.add("owl owl owl")
    assert archive.search("fox in", 1)[0].place == 0


# --- the loop


def writer(call: int) -> str:
    return "\n".join([f"Paragraph: Paragraph {call} is told.", f"Summary: Sum {call}.",
                      f"Memory: Fact {call}. Fact {call - 1}.", *(f"Plan {i}: Do {call}-{i}." for i in (1, 2, 3))])


BEGIN = "\n".join(["Title: T", "Outline: O", "Paragraph 1: One. And. More.", "Paragraph 2: Two.", "Paragraph 3: Three.",
                   "Summary: Fact 0.", "Plan 1: Do 0-1.", "Plan 2: Do 0-2.", "Plan 3: Do 0-3."])


class Canned:
    """Answers each sort of call, counting the writer's."""

    def __init__(self) -> None:
        self.written, self.sorts = 0, list[str]()

    def __call__(self, prompt: str) -> str:
        if "Choice: 1, 2 or 3" in prompt:
            self.sorts.append("select")
            return "Choice: Plan 2, for it is best\nReason: because"
        if "twice its length" in prompt:
            self.sorts.append("extend")
            newest, plan = (prompt.split(f"{heading}:\n")[1].split("\n")[0]
                            for heading in ("newest paragraph", "next one"))
            return f"Paragraph: {newest} At length.\nPlan: Outline of {plan}"
        if "You begin" in prompt:
            self.sorts.append("start")
            return BEGIN
        self.sorts.append("write")
        self.written += 1
        return writer(self.written)


def test_the_loop_calls_as_by_hand() -> None:
    canned = Canned()
    script = Scripted(canned)
    program = RecurrentProgram(script, archive="paragraph", recency=0.05)
    story = program.start("A premise.")
    program.rollout(story, 5, Simulated(script))
    assert canned.sorts == ["start"] + ["select", "extend", "write"] * 5
    assert story.archive.texts == ["One. And. More.", "Two.", "Three. At length.",
                                   *(f"Paragraph {i} is told. At length." for i in (1, 2, 3, 4))]
    assert story.paragraph == "Paragraph 5 is told." and story.step == 8 and len(story.paragraphs) == 8
    plans = [entry["plan"] for entry in story.log if "plan" in entry]
    assert plans == ["Outline of Do 0-2."] + [f"Outline of Do {i}-2." for i in (1, 2, 3, 4)]
    assert story.memory.sentences == ["Fact 5.", "Fact 4."] and story.plan == ""
    assert story.memory.log[-1] == {"step": 8, "added": ["Fact 5."], "deleted": ["Fact 3."]}
    last = script.prompts[-1]
    for part in ("Fact 4. Fact 3.", "Paragraph 4 is told. At length.", "Outline of Do 4-2."):
        assert part in last
    assert "Paragraph 3 is told. At length." in last.split("most fitting first:")[1]  # retrieved; the newest never is


def test_a_killed_run_resumes_with_the_same_prompts(tmp_path: Path) -> None:
    uninterrupted = Scripted(Canned())
    program = RecurrentProgram(uninterrupted)
    program.rollout(program.start("P."), 6, Simulated(uninterrupted))
    canned = Canned()
    first = Scripted(canned)
    program = RecurrentProgram(first)
    program.rollout(program.start("P."), 3, Simulated(first), save=tmp_path / "story.json")
    second = Scripted(canned)
    program = RecurrentProgram(second)
    story = Story.load(tmp_path / "story.json", Hashing())
    program.rollout(story, 3, Simulated(second), save=tmp_path / "story.json")
    assert first.prompts + second.prompts == uninterrupted.prompts
    assert json.loads((tmp_path / "story.json").read_text())["step"] == 9
    assert story.archive.texts[2:] == ["Three. At length.", *(f"Sum {i}." for i in (1, 2, 3, 4, 5))]
    assert [note["paragraph"] for note in story.archive.notes] == list(range(8))
    (tmp_path / "other.json").write_text('{"step": 1}')
    with pytest.raises(SegueError, match="no saved story"):
        Story.load(tmp_path / "other.json", None)


def test_people_edit_plans_and_paragraphs() -> None:
    program = RecurrentProgram(Scripted(Canned()))
    story = program.start("P.")
    patch = {"plan": "Go home.", "memory": "Fact 0. The door is red.", "paragraph": "Third, put right."}
    program.rollout(story, 1, by_hand(lambda screen: patch))
    assert "The door is red." in story.memory.sentences and story.archive.texts[-1] == "Third, put right."
    program.rollout(story, 1, by_hand(lambda screen: "I open the door."))  # a reader's action is the plan
    assert [entry["plan"] for entry in story.log if "plan" in entry] == ["Go home.", "I open the door."]
    assert "The door is red." in story.memory.sentences
    story.edit({"pinned": []})
    program.rollout(story, 1)
    assert "The door is red." not in story.memory.sentences
    with pytest.raises(SegueError, match="gave no plan"):
        program.rollout(story, 1, by_hand(lambda screen: ""))
    with pytest.raises(SegueError, match="no hero to edit"):
        story.edit({"hero": "Ann"})


@pytest.mark.parametrize("mixer", ["gru", "mamba"])
def test_any_model_of_bytes_ends_in_bounded_calls(mixer: str) -> None:
    torch.manual_seed(0)
    codec = ByteCodec()
    model = Counted(Local(Stack(StackConfig(codec.size, 16, [mixer])).eval().requires_grad_(False), codec))
    program = RecurrentProgram(model, embed=of_model(model.model.model, codec), most=12)  # type: ignore[attr-defined]
    story = program.blank(plans=["Begin."])
    program.rollout(story, 2)  # without any heading all that it says is the paragraph
    assert model.calls <= 6 and story.step == 2 and len(story.archive) == 1 and story.log[-1]["problem"]


def test_missing_parts_of_a_reply_stay_unchanged() -> None:
    replies = iter([BEGIN, *["Paragraph: Only this."] * 3, *[""] * 3])
    program = RecurrentProgram(Scripted(lambda prompt: next(replies)))
    story = program.start("P.")
    program.rollout(story, 1)
    assert story.memory.sentences == ["Fact 0."] and story.plans[0] == "Do 0-1." and story.log[-1]["problem"]
    with pytest.raises(SegueError, match="wrote no paragraph 5 in 3 calls"):
        program.rollout(story, 1)
    assert story.step == 4 and len(story.archive) == 3  # as it was before
    with pytest.raises(SegueError, match="began no story after 3 calls"):
        RecurrentProgram(Scripted(lambda prompt: "")).start("P.")


def test_prompts_stay_bounded_over_200_steps() -> None:
    draw = Random(0)

    def rambles(prompt: str) -> str:
        words = [" ".join(f"w{draw.randrange(99)}" for _ in range(9)) + "." for _ in range(draw.randint(1, 200))]
        return "\n".join(f"{section.heading} {' '.join(words)}" for section in RecurrentProgram(script).writer.sections)

    script = Scripted(rambles)
    program = RecurrentProgram(script)
    story = program.blank(plans=["Begin."])
    program.rollout(story, 200, first_plan)
    assert max(len(prompt.split()) for prompt in script.prompts) < 500 + 4 * 600 + 300
    assert len(story.archive) == 199 and set(story.plans) and len(PLANS) == 3


# --- the claim


def test_the_synthetic_world_is_consistent() -> None:
    pairs = [write_step(Random(seed)) for seed in range(300)]
    for prompt_words, answer_words in pairs:
        prompt, answer = " ".join(prompt_words), " ".join(answer_words)
        being, origin, goal = parse_move(answer) or ("", "", "")
        assert prompt.endswith(f"move {being} write") and origin != goal
        result = WRITER.parse(answer)
        assert not result.problem and result.texts["memory"].startswith(f"{being} at {goal} .")
        assert len(split_sentences(result.texts["memory"])) <= FACTS
        if f" {being} at " in prompt:  # the memory knows better than all passages
            assert f" {being} at {origin} ." in prompt
    assert all(CODEC.unk not in CODEC.encode([*prompt_words, *answer_words]) for prompt_words, answer_words in pairs)


def test_gaps_cover_all_distances() -> None:
    random, last, gaps = Random(1), dict[str, int](), list[int]()
    for now in range(400):
        being = next_being(random, last, now)
        gaps += [now - last[being]] if being in last else []
        last[being] = now
    assert all(sum(gap in bucket for gap in gaps) > 30 for bucket in BUCKETS.values())


def oracle(prompt: str) -> str:
    """A writer that believes the memory, then the last paragraph, then the first passage."""
    memory, rest = prompt.removeprefix("memory").split(" paragraph ", 1)
    newest, rest = rest.split("related", 1)
    related, plan = rest.split("plan ")
    being = plan.split()[1]
    facts = {fact.split()[0]: fact.split()[2] for fact in split_sentences(memory)}
    passages = [newest, *re.findall(r"\w+ leaves \w+ \. \w+ enters \w+ \.", related)]
    moves = [move for text in passages if (move := parse_move(text))]
    at = facts.get(being) or next((move[2] for move in moves if move[0] == being), "cave")
    goal = "mill" if at != "mill" else "tower"
    kept = [f"{being} at {goal} .", *(f"{name} at {place} ." for name, place in facts.items() if name != being)]
    return reply(paragraph(being, at, goal), kept[:FACTS], ["fox", "owl", "crow"])


def test_both_memories_make_a_perfect_writer_consistent() -> None:
    shares = {}
    for arm in ARMS:
        results = write_stories(Scripted(oracle), arm, seed=0, stories=3, steps=60)  # type: ignore[arg-type]
        distant = [is_right for away, is_right in results["returns"] if away in BUCKETS[LAST]]
        shares[arm] = sum(distant) / len(distant)
        assert results["words"][3] <= results["words"][1]
    assert shares[FULL] == shares["no short-term memory"] == 1 and shares["no long-term memory"] < 0.9
    assert follow_edits(Scripted(oracle), seed=0, stories=3) == 1  # type: ignore[arg-type]


def test_prompts_of_any_writer_are_bounded() -> None:
    draw, words = Random(0), [*HEADINGS.values(), *["fox", "at", "leaves", "mill"] * 8, "."]
    results = [write_stories(Scripted(reply), FULL, seed=0, stories=3, steps=30)["words"]  # type: ignore[arg-type]
               for reply in (oracle, lambda prompt: " ".join(draw.choices(words, k=48)))]
    assert max(results[1]) <= max(results[0]) == 47


def test_all_verdicts_can_be_reached() -> None:
    def table(full: float, rolling: float, followed: float = 0.9) -> list[dict[str, Any]]:
        arms = {FULL: full, ROLLING: rolling, "no long-term memory": 0.3, "no short-term memory": 0.8,
                "no recency": 0.3}
        return [{"memory": arm, LAST: share, "prompt early": 50, "prompt late": 50, "edits followed": followed}
                for arm, share in arms.items()]

    assert judge(table(0.95, 0.15))[0] == "confirmed" and judge(table(0.95, 0.15, 0.5))[0] == "inconclusive"
    assert judge(table(0.75, 0.15))[0] == "inconclusive" and judge(table(0.20, 0.15))[0] == "refuted"
