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
        fields = {name: value for name, value in values.items() if name not in ("answer", "steps")}
        return cls(**fields, steps=[Step(**step) for step in values["steps"]])


@dataclass(frozen=True)
class Demo:
    """A demonstration. query: the text that it is retrieved by. text: its part of the prompt. source: of its passage;
    it is never used for a question on the same passage. step: the number of its step, from 0 on (None: any)."""

    query: str
    text: str
    source: str = ""
    step: int | None = None


class DemoIndex:
    """Demonstrations, retrieved by the similarity of their queries.

    embed: computes the vectors. among: k are drawn from the `among` times k nearest (the authors: 2; 1 takes the
    nearest).
    """

    def __init__(self, demos: Sequence[Demo], embed: Embedder = HASHING, among: int = 2) -> None:
        if not demos or among < 1:
            raise SegueError(f"an index of {len(demos)} demonstrations, drawn among {among} times as many: give at "
                             "least one of both")
        self.demos, self.embed, self.among = list(demos), embed, among
        self.index = VectorIndex(embed([demo.query for demo in self.demos]))

    def search(self, query: str, k: int, source: str = "", step: int | None = None, seed: str = "") -> list[Demo]:
        """Up to k demonstrations, the nearest last, next to the question in the prompt. source: of the passage that is
        excluded. step: of the demonstrations (None: any). seed: of the draw."""
        excluded = [index for index, demo in enumerate(self.demos)
                    if (source and demo.source == source) or (step is not None and demo.step not in (None, step))]
        indices = self.index.search(self.embed([query]), self.among * k, [excluded])[1][0].tolist()
        indices = [position for position in indices if position >= 0]
        if len(indices) > k:
            indices = [indices[index] for index in sorted(Random(f"{seed} {query}").sample(range(len(indices)), k))]
        return [self.demos[position] for position in reversed(indices)]


def decompositions(traces: Sequence[Trace], step: str = STEP, done: str = DONE) -> list[Demo]:
    """Demonstrations of decomposing, from solved traces: one for each step and one for the end, with the complex
    question as query."""
    demos = []
    for trace in traces:
        for number in range(len(trace.steps) + 1):
            history = "".join(step.format(question=s.question, answer=s.answer) for s in trace.steps[:number])
            next_question = trace.steps[number].question if number < len(trace.steps) else done
            text = f"Question: {trace.question}\n{history}Next: {next_question}\n"
            demos.append(Demo(trace.question, text, trace.source, number))
    return demos


def solutions(traces: Sequence[Trace]) -> list[Demo]:
    """Demonstrations of answering, from solved traces: the simple questions that a model answered, with passages."""
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
        """The prompt for the next simple question of a trace."""
        steps = "".join(self.templates[2].format(question=s.question, answer=s.answer) for s in trace.steps)
        demos = self._demos(self.questions, trace.question, trace.source, len(trace.steps))
        return self.templates[0].format(passage=trace.passage, question=trace.question, steps=steps, demos=demos,
                                        done=self.done)

    def answer_prompt(self, trace: Trace, question: str) -> str:
        """The prompt for the answer of a simple question, without the complex question."""
        demos = self._demos(self.answers, question, trace.source, None)
        return self.templates[1].format(passage=trace.passage, question=question, demos=demos)

    def _demos(self, index: DemoIndex | None, query: str, source: str, step: int | None) -> str:
        demos = [] if index is None else index.search(query, self.shown, source, step, str(self.seed))
        return "\n".join(demo.text for demo in demos)

    def run(self, traces: Sequence[Trace]) -> list[Trace]:
        """Continue all unfinished traces together until each has a `finish`; finished ones are unchanged."""
        while active := [trace for trace in traces if not trace.finish]:
            replies = self.decomposer.write([self.question_prompt(trace) for trace in active], seed=self.seed,
                                            **self.options)
            questions = list[tuple[Trace, str]]()
            for trace, reply in zip(active, replies):
                question = reply.text.strip()
                if self.done in question or not question:
                    trace.finish = "done" if question else "nothing"
                else:
                    questions.append((trace, question))
            questions = [pair for pair in questions if not self._answer_by_tool(*pair)]
            prompts = [self.answer_prompt(trace, question) for trace, question in questions]
            replies = self.solver.write(prompts, seed=self.seed, **self.options) if questions else []
            for (trace, question), reply in zip(questions, replies):
                trace.steps.append(Step(question, reply.text.strip()))
            for trace in active:
                if not trace.finish and len(trace.steps) >= self.limit:
                    trace.finish = "cap"
        return list(traces)

    def _answer_by_tool(self, trace: Trace, question: str) -> bool:
        """Answer the question by a tool; False if it is no call of one, or the call failed (noted in the trace)."""
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
