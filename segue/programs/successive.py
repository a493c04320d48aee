"""Successive Prompting (2022, arXiv 2212.04092; EMNLP 2022): a complex question is answered in steps, by asking for the
next simple question, answering that one alone, and so on until there is nothing left to ask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from random import Random
from typing import Any

from segue.analysis.index import VectorIndex
from segue.errors import SegueError
from segue.programs.memory import HASHING, Embedder
from segue.programs.text import TextModel
from segue.programs.tools import SymbolicTools

DECOMPOSE = """Break a question about a passage into simple questions, one at a time. A step is a question that the \
passage answers, or one of: count(a; b), sum(a; b), diff(a; b; unit), not(percentage), top(k, a; b), bottom(k, a; b), \
if_then(a < b; x; y). When the last answer answers the question, write: {done}
{demos}
Passage: {passage}
Question: {question}
{steps}Next:"""
SOLVE = """Answer the question about the passage, as briefly as you can; several answers with ||| between them.
{demos}
Passage: {passage}
Question: {question}
Answer:"""
STEP = "Next: {question}\nAnswer: {answer}\n"
DONE = "no more questions"


@dataclass(frozen=True)
class Step:
    """A simple question with its answer. by: "model" or "tool"."""

    question: str
    answer: str
    by: str = "model"


@dataclass
class Trace:
    """How a question was answered; all of it is JSON. finish: "done" (nothing was left to ask), "cap" (too many steps)
    or "nothing" (an empty question); "" while it goes on. source: where the passage comes from. notes: calls of tools
    that could not be carried out, and went to the model."""

    passage: str
    question: str
    source: str = ""
    steps: list[Step] = field(default_factory=list)
    finish: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def answer(self) -> str:
        """That of the last step."""
        return self.steps[-1].answer if self.steps else ""

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "answer": self.answer}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Trace:
        rest = {name: value for name, value in values.items() if name not in ("answer", "steps")}
        return cls(**rest, steps=[Step(**step) for step in values["steps"]])


@dataclass(frozen=True)
class Demo:
    """A demonstration. query: what it is found by. text: what is shown. source: of its passage; a problem on the same
    passage never sees it. step: the number of the step that it shows, from 0 on, where that matters."""

    query: str
    text: str
    source: str = ""
    step: int | None = None


class DemoIndex:
    """Demonstrations, found by how near their queries are to another.

    embed: makes the vectors. among: of the `among` times k nearest, k are drawn (the authors: 2; 1 takes the nearest).
    """

    def __init__(self, demos: Sequence[Demo], embed: Embedder = HASHING, among: int = 2) -> None:
        if not demos or among < 1:
            raise SegueError(f"an index of {len(demos)} demonstrations, drawn among {among} times as many: give at "
                             "least one of both")
        self.demos, self.embed, self.among = list(demos), embed, among
        self.index = VectorIndex(embed([demo.query for demo in self.demos]))

    def search(self, query: str, k: int, source: str = "", step: int | None = None, seed: str = "") -> list[Demo]:
        """Up to k demonstrations, the nearest last, where it stands closest to the question. source: of the passage
        they must not come from. step: theirs (None: any). seed: of the draw."""
        barred = [at for at, demo in enumerate(self.demos)
                  if (source and demo.source == source) or (step is not None and demo.step not in (None, step))]
        places = self.index.search(self.embed([query]), self.among * k, [barred])[1][0].tolist()
        places = [place for place in places if place >= 0]
        if len(places) > k:
            places = [places[at] for at in sorted(Random(f"{seed} {query}").sample(range(len(places)), k))]
        return [self.demos[place] for place in reversed(places)]


def decompositions(traces: Sequence[Trace], step: str = STEP, done: str = DONE) -> list[Demo]:
    """Of known chains, one demonstration for each step and one for the end: what comes next, found by the complex
    question among those of the same step."""
    demos = []
    for trace in traces:
        for at in range(len(trace.steps) + 1):
            shown = "".join(step.format(question=s.question, answer=s.answer) for s in trace.steps[:at])
            following = trace.steps[at].question if at < len(trace.steps) else done
            text = f"Question: {trace.question}\n{shown}Next: {following}\n"
            demos.append(Demo(trace.question, text, trace.source, at))
    return demos


def solutions(traces: Sequence[Trace]) -> list[Demo]:
    """Of known chains, the simple questions that a model answered, with their passages."""
    return [Demo(step.question, f"Passage: {trace.passage}\nQuestion: {step.question}\nAnswer: {step.answer}\n",
                 trace.source) for trace in traces for step in trace.steps if step.by == "model"]


class SuccessivePrompting:
    """The loop: decompose, solve, and again.

    decomposer: says the next simple question. solver: answers it (default: the same model). tools: carry out questions
    that are calls (None: the solver answers those too). decompose, solve, step: templates; what decomposes sees
    {demos}, {passage}, {question}, {steps} and {done}, what solves {demos}, {passage} and the simple {question} alone.
    questions, answers: demonstrations (see `decompositions`, `solutions`), `shown` of them a prompt. done: a text that
    says there is nothing left to ask, wherever it stands in a reply. limit: steps at most. most: tokens of a reply,
    which ends at a string of `stop`.
    """

    def __init__(self, decomposer: TextModel, solver: TextModel | None = None, tools: SymbolicTools | None = None, *,
                 decompose: str = DECOMPOSE, solve: str = SOLVE, step: str = STEP, questions: DemoIndex | None = None,
                 answers: DemoIndex | None = None, shown: int = 6, done: str = DONE, limit: int = 8, most: int = 64,
                 stop: Sequence[str] = ("\n",), seed: int = 0) -> None:
        self.decomposer, self.solver, self.tools = decomposer, solver or decomposer, tools
        self.templates, self.questions, self.answers, self.shown = (decompose, solve, step), questions, answers, shown
        self.done, self.limit, self.seed = done, limit, seed
        self.options: dict[str, Any] = {"most": most, "stop": stop}

    def question_prompt(self, trace: Trace) -> str:
        """What is asked for the next simple question of a trace."""
        steps = "".join(self.templates[2].format(question=s.question, answer=s.answer) for s in trace.steps)
        demos = self._demos(self.questions, trace.question, trace.source, len(trace.steps))
        return self.templates[0].format(passage=trace.passage, question=trace.question, steps=steps, demos=demos,
                                        done=self.done)

    def answer_prompt(self, trace: Trace, question: str) -> str:
        """What is asked for the answer of a simple question; nothing of the complex one stands there."""
        demos = self._demos(self.answers, question, trace.source, None)
        return self.templates[1].format(passage=trace.passage, question=question, demos=demos)

    def _demos(self, index: DemoIndex | None, query: str, source: str, step: int | None) -> str:
        found = [] if index is None else index.search(query, self.shown, source, step, str(self.seed))
        return "\n".join(demo.text for demo in found)

    def run(self, traces: Sequence[Trace]) -> list[Trace]:
        """Go on with traces until each has a `finish`, all of them together; those that have one stay as they are."""
        while going := [trace for trace in traces if not trace.finish]:
            replies = self.decomposer.write([self.question_prompt(trace) for trace in going], seed=self.seed,
                                            **self.options)
            asked = list[tuple[Trace, str]]()
            for trace, reply in zip(going, replies):
                question = reply.text.strip()
                if self.done in question or not question:
                    trace.finish = "done" if question else "nothing"
                else:
                    asked.append((trace, question))
            asked = [(trace, question) for trace, question in asked if not self._called(trace, question)]
            prompts = [self.answer_prompt(trace, question) for trace, question in asked]
            replies = self.solver.write(prompts, seed=self.seed, **self.options) if asked else []
            for (trace, question), reply in zip(asked, replies):
                trace.steps.append(Step(question, reply.text.strip()))
            for trace in going:
                if not trace.finish and len(trace.steps) >= self.limit:
                    trace.finish = "cap"
        return list(traces)

    def _called(self, trace: Trace, question: str) -> bool:
        """Whether a tool answered the question."""
        try:
            answer = None if self.tools is None else self.tools.call(question)
        except SegueError as error:
            trace.notes.append(f"{question}: {error}")
            return False
        if answer is not None:
            trace.steps.append(Step(question, answer, "tool"))
        return answer is not None

    def ask(self, passage: str, question: str, source: str = "") -> Trace:
        """The trace of one question."""
        return self.run([Trace(passage, question, source)])[0]
