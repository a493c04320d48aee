"""RecurrentGPT (2023, arXiv 2305.13304): a text without end, written paragraph by paragraph by a loop whose state is
language. What an LSTM holds in numbers stands here in words: the last paragraph is its output, the short-term memory
its hidden state, the archive its cell, the plan its gate; a person may read and edit all of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from segue.errors import SegueError, check_choice
from segue.files import read_json, write_json
from segue.programs.memory import HASHING, Embedder, Found, LongTerm, ShortTerm
from segue.programs.sections import Section, SectionedPrompt, Sections, shorten, split_sentences
from segue.programs.text import TextModel
from segue.progress import progress

PLANS = ("plan1", "plan2", "plan3")
START = SectionedPrompt("""You begin a long work of fiction. What it is to be:
{premise}

Write its title, an outline, its first three paragraphs of about ten sentences each, a summary of them of ten to \
twenty sentences that holds every fact that later paragraphs must agree with, and three different plans, of three to \
five sentences each, for what comes next. Put each behind its heading, on a line of its own:
Title: Outline: Paragraph 1: Paragraph 2: Paragraph 3: Summary: Plan 1: Plan 2: Plan 3:""", (
    Section("title", "Title:", 40, needed=False), Section("outline", "Outline:", 400, needed=False),
    *(Section(f"paragraph{i}", f"Paragraph {i}:", 600) for i in (1, 2, 3)), Section("memory", "Summary:", 500),
    *(Section(f"plan{i}", f"Plan {i}:", 150) for i in (1, 2, 3))))
WRITER = SectionedPrompt("""You write a long work of fiction, one paragraph at a time. You see only what follows.

What happened so far:
{memory}

The last paragraph:
{paragraph}

What the next paragraph is to tell:
{plan}

Earlier passages that it may refer to, the most fitting first:
{related}
{wish}
Write behind these headings, each on a line of its own:
Paragraph: the next paragraph of the work, about twenty sentences, that tells what was planned and contradicts nothing.
Summary: the same in one or two sentences, with names.
Rationale: which facts of what happened so far may be left out now, and which must be added, and why.
Memory: what happened so far, rewritten in ten to twenty sentences and fewer than 400 words; keep every fact that \
later paragraphs will need.
Plan 1:
Plan 2:
Plan 3: three different plans for the paragraph after that, each of three to five sentences.""", (
    Section("paragraph", "Paragraph:", 600), Section("summary", "Summary:", 60, needed=False),
    Section("rationale", "Rationale:", needed=False), Section("memory", "Memory:", 500),
    *(Section(f"plan{i}", f"Plan {i}:", 150) for i in (1, 2, 3))))
SELECT = SectionedPrompt("""You advise the author of a long work of fiction. What happened so far:
{memory}

The last paragraph:
{paragraph}

Plans for the next one:
1. {plan1}
2. {plan2}
3. {plan3}

Say which is the most interesting and fits best, behind these headings, each on a line of its own:
Choice: 1, 2 or 3
Reason:""", (Section("choice", "Choice:"), Section("reason", "Reason:", needed=False)))
EXTEND = SectionedPrompt("""You revise a long work of fiction. What happened so far:
{memory}

Its newest paragraph:
{paragraph}

The plan for the next one:
{plan}

Write behind these headings, each on a line of its own:
Paragraph: the newest paragraph at about twice its length, with the same events in the same order.
Plan: the plan as an outline of five to seven sentences.""", (
    Section("paragraph", "Paragraph:", 900), Section("plan", "Plan:", 250)))
CHARACTER = "You may bring in a new character, if it serves the story.\n"


@dataclass
class Story:
    """The state of the loop; all of it is JSON.

    step: paragraphs written. paragraph, summary: the newest. plan: what the next one is to tell ("": to be chosen
    among `plans`). memory, archive: of the short and the long term; the newest paragraph is not yet in the archive.
    paragraphs: all of them, which the archive's notes point into. log: what happened, only ever added to. seed: of
    what is drawn.
    """

    memory: ShortTerm
    archive: LongTerm
    paragraph: str = ""
    summary: str = ""
    plan: str = ""
    plans: list[str] = field(default_factory=list)
    step: int = 0
    paragraphs: list[str] = field(default_factory=list)
    log: list[dict[str, Any]] = field(default_factory=list)
    seed: int = 0

    @property
    def text(self) -> str:
        return "\n\n".join(self.paragraphs)

    def edit(self, patch: Mapping[str, Any]) -> None:
        """A person's changes. patch: "plan", "paragraph" (the newest), "memory" (its new sentences are pinned, see
        `ShortTerm.edit`), "pinned" (exactly these sentences), each a new text."""
        if unknown := set(patch) - {"plan", "paragraph", "memory", "pinned"}:
            raise SegueError(f"a story has no {', '.join(sorted(unknown))} to edit: change plan, paragraph, memory or "
                             "pinned")
        if "memory" in patch:
            self.memory.edit(patch["memory"], self.step)
        if "pinned" in patch:
            self.memory.pin(patch["pinned"])
        self.plan = patch.get("plan", self.plan)
        if "paragraph" in patch:
            self.paragraph = patch["paragraph"]
            self.paragraphs[-1:] = [self.paragraph]
        self.log.append({"step": self.step, "edit": dict(patch)})

    def to_dict(self) -> dict[str, Any]:
        return {name: value.to_dict() if hasattr(value, "to_dict") else value for name, value in vars(self).items()}

    def save(self, path: str | Path) -> None:
        write_json(path, self.to_dict())

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], embed: Embedder | None) -> Story:
        try:
            return cls(**{**values, "memory": ShortTerm(**values["memory"]),
                          "archive": LongTerm.from_dict(values["archive"], embed)})
        except (KeyError, TypeError, ValueError) as error:
            raise SegueError(f"this is no saved story: {error!r}") from error

    @classmethod
    def load(cls, path: str | Path, embed: Embedder | None) -> Story:
        """A saved story; embed: the one it was written with."""
        values = read_json(path)
        try:
            return cls.from_dict(values, embed)
        except SegueError as error:
            raise SegueError(f"{path}: {error}; give a file that segue write wrote") from error


Turn = Callable[[Sequence[Story]], Sequence[Mapping[str, Any]]]
"""What happens between two paragraphs: to each story a patch (see `Story.edit`) that names at least its next plan."""


def first_plan(stories: Sequence[Story]) -> list[Mapping[str, Any]]:
    """The turn that asks nobody: each story goes on by its first plan."""
    return [{"plan": story.plans[0]} for story in stories]


def by_hand(ask: Callable[[Story], Mapping[str, Any] | str]) -> Turn:
    """The turn of a person. ask: shown a story, gives a patch (co-writing: a plan picked or written, the memory put
    right), or a text that becomes the plan (interactive fiction: what the reader does)."""

    def turn(stories: Sequence[Story]) -> list[Mapping[str, Any]]:
        answers = [ask(story) for story in stories]
        return [{"plan": answer} if isinstance(answer, str) else answer for answer in answers]

    return turn


@dataclass(frozen=True)
class Simulated:
    """The turn of a model in the place of a person: one call picks a plan, another lengthens the newest paragraph and
    makes an outline of the plan. What cannot be read of the first is the first plan; of the second, as it was."""

    model: TextModel
    select: SectionedPrompt = SELECT
    extend: SectionedPrompt | None = EXTEND
    temperature: float = 0.5
    most: int = 1500

    def __call__(self, stories: Sequence[Story]) -> list[Mapping[str, Any]]:
        options = {"most": self.most, "temperature": self.temperature, "seed": stories[0].seed + stories[0].step}
        contexts = [{"memory": story.memory.text, "paragraph": story.paragraph} for story in stories]
        prompts = [self.select.fill(**context, **dict(zip(PLANS, [*story.plans, "", ""])))
                   for context, story in zip(contexts, stories)]
        patches = list[Mapping[str, Any]]()
        for story, reply in zip(stories, self.select.ask(self.model, prompts, **options)):
            number = re.search(r"[1-9]", reply.texts.get("choice", ""))
            choice = int(number[0]) - 1 if number else 0
            patches.append({"plan": story.plans[choice if choice < len(story.plans) else 0]})
        if self.extend is None:
            return patches
        prompts = [self.extend.fill(**context, **patch) for context, patch in zip(contexts, patches)]
        return [{**patch, **reply.texts} for patch, reply in
                zip(patches, self.extend.ask(self.model, prompts, **options))]


class RecurrentProgram:
    """The loop: retrieve, write, remember; then a turn (`Turn`) picks the next plan.

    model: any text model. embed: of the archive (None: it gives back the newest). related: passages that are retrieved
    for a plan. archive: what is kept of a paragraph, its "summary" (where the model gave one) or the "paragraph"; both
    point to the paragraph's number. recency: see `LongTerm`. memory: sentences of the short-term memory at most (0: no
    such memory); words: its words at most. wish: the chance of a line that allows a new character. most: tokens of a
    reply. Many stories are written together, each as if it were alone, if the model is greedy or they are one.
    """

    def __init__(self, model: TextModel, embed: Embedder | None = HASHING, *, writer: SectionedPrompt = WRITER,
                 start: SectionedPrompt = START, related: int = 2, archive: str = "summary", recency: float = 0.05,
                 memory: int = 20, words: int = 500, wish: float = 0.1, temperature: float = 0.5,
                 most: int = 3000) -> None:
        check_choice("archive", archive, ("summary", "paragraph"))
        self.model, self.embed, self.writer, self.start_prompt = model, embed, writer, start
        self.related, self.archive, self.recency, self.wish = related, archive, recency, wish
        self.memory, self.words = memory, words
        self.options = {"most": most, "temperature": temperature}

    def blank(self, **fields: Any) -> Story:
        """A story of nothing yet but what is `fields`: paragraph, plans, seed ..."""
        return Story(ShortTerm(most=self.memory, words=self.words), LongTerm(self.embed, self.recency), **fields)

    def start(self, premise: str, seed: int = 0) -> Story:
        """A new story: title, outline, three paragraphs, a memory of them and three plans in one call."""
        prompt = self.start_prompt.fill(premise=premise)
        reply = self.start_prompt.ask(self.model, [prompt], seed=seed, **self.options)[0]
        if reply.problem:
            raise SegueError(f"the model began no story after {reply.calls} calls: {reply.problem}")
        story, texts = self.blank(seed=seed), reply.texts
        story.paragraphs = [texts[f"paragraph{i}"] for i in (1, 2, 3)]
        for number, paragraph in enumerate(story.paragraphs[:-1]):
            story.archive.add(self._archived_text(paragraph, ""), paragraph=number)
        story.paragraph, story.step = story.paragraphs[-1], 3
        story.memory.rewrite(texts["memory"], story.step)
        story.plans = [texts[name] for name in PLANS if name in texts]
        story.log.append({"step": story.step, "title": texts.get("title", ""), "outline": texts.get("outline", ""),
                          "premise": premise, "calls": reply.calls})
        return story

    def retrieve(self, story: Story) -> list[Found]:
        return story.archive.search(story.plan, self.related)

    def prompt(self, story: Story) -> str:
        """What the writer is asked for the next paragraph: bounded, however long the story is."""
        limit = partial(shorten, words=600)
        random = Random(f"{story.seed} {story.step}")
        return self.writer.fill(memory=story.memory.text, paragraph=limit(story.paragraph), plan=limit(story.plan),
                                related="\n".join(limit(passage.text) for passage in self.retrieve(story)),
                                wish=CHARACTER if random.random() < self.wish else "")

    def advance(self, story: Story, reply: Sections) -> None:
        """Take what the writer wrote into a story. A memory that is missing stays as it was, and so do plans; a missing
        paragraph is an error, or an empty one where the writer's prompt does not need it."""
        texts = reply.texts
        if reply.problem and "paragraph" not in texts:
            raise SegueError(f"the model wrote no paragraph {story.step + 1} in {reply.calls} calls: {reply.problem}")
        related = [passage.place for passage in self.retrieve(story)]
        if story.paragraph:
            story.archive.add(self._archived_text(story.paragraph, story.summary), paragraph=len(story.paragraphs) - 1)
        if "memory" in texts:
            story.memory.rewrite(texts["memory"], story.step + 1)
        story.log.append({"step": story.step + 1, "plan": story.plan, "related": related, "calls": reply.calls,
                          "problem": reply.problem})
        story.paragraph, story.summary = texts.get("paragraph", ""), texts.get("summary", "")
        story.paragraphs.append(story.paragraph)
        story.plans = [texts[name] for name in PLANS if name in texts] or story.plans
        story.step, story.plan = story.step + 1, ""

    def _archived_text(self, paragraph: str, summary: str) -> str:
        return (summary or " ".join(split_sentences(paragraph)[:2])) if self.archive == "summary" else paragraph

    def step(self, stories: Sequence[Story], turn: Turn = first_plan) -> None:
        """One paragraph more of each story. A call that fails leaves them as they were, but for plans already made."""
        unplanned = [story for story in stories if not story.plan]
        for story, patch in zip(unplanned, turn(unplanned) if unplanned else (), strict=True):
            if not patch.get("plan"):
                raise SegueError("the turn gave no plan: it names what the next paragraph is to tell")
            story.edit(patch)
        seed = stories[0].seed + stories[0].step if stories else 0
        prompts = [self.prompt(story) for story in stories]
        replies = self.writer.ask(self.model, prompts, seed=seed, **self.options)
        for story, prompt, reply in zip(stories, prompts, replies):
            self.advance(story, reply)
            story.log[-1]["words"] = len(prompt.split())

    def rollout(self, story: Story, steps: int, turn: Turn = first_plan, save: str | Path | None = None,
                quiet: bool = True) -> Story:
        """So many paragraphs more. save: a file in which the story is kept after each, so that a run that was ended
        goes on from `Story.load` with the very prompts it would have made."""
        with progress("writing", steps, quiet=quiet) as meter:
            for done in range(1, steps + 1):
                self.step([story], turn)
                if save is not None:
                    story.save(save)
                meter(done, f"paragraph {story.step}")
        return story
