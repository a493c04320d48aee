"""Search in a tree of refinements of an answer, guided by a judge (SPaR: Cheng et al. 2024, arXiv 2412.11605)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from segue.errors import check_choice
from segue.programs.judge import Judge, Judgement
from segue.programs.text import TextModel

Refine = Callable[[str, str, str, int], Sequence[str]]
"""(prompt, answer, critique, n) -> up to n refined answers; "" for a failed one."""
JudgeAll = Callable[[Sequence[tuple[str, str]]], Sequence[Judgement]]


class Refiner:
    """A text model that refines answers: `Refine` for `refine_tree`.

    ask: (prompt, answer, critique) -> the model's prompt, which must tell it to put the answer between the `marks`.
    Text outside of them is ignored.
    """

    def __init__(self, model: TextModel, ask: Callable[[str, str, str], str],
                 marks: tuple[str, str] = ("<answer>", "</answer>"), temperature: float = 0.7,
                 most: int = 3072) -> None:
        self.model, self.ask, self.marks, self.temperature, self.most = model, ask, marks, temperature, most
        self.calls = 0

    def __call__(self, prompt: str, answer: str, critique: str, count: int) -> list[str]:
        begin, end = self.marks
        self.calls += 1  # another seed each time: the same node may be asked again
        replies = self.model.write([self.ask(prompt, answer, critique)] * count, most=self.most,
                                   temperature=self.temperature, seed=self.calls)
        extracted = [reply.text.partition(begin)[2].partition(end) for reply in replies]
        return [text.strip() if closed else "" for text, closed, _ in extracted]


@dataclass(eq=False)
class Node:
    """An answer of the tree. value: the judge's, from 0 to 1. order: its number, in the order of creation."""

    answer: str
    value: float
    critique: str = ""
    judgement: Judgement | None = None
    parent: Node | None = None
    order: int = 0
    children: list[Node] = field(default_factory=list)

    @property
    def depth(self) -> int:
        return 0 if self.parent is None else 1 + self.parent.depth

    @property
    def chain(self) -> list[Node]:
        """From the root to here."""
        return [self] if self.parent is None else [*self.parent.chain, self]

    def walk(self) -> Iterator[Node]:
        yield self
        for child in self.children:
            yield from child.walk()


@dataclass(frozen=True)
class Refinement:
    """The result of a search. best: the first answer whose value is above the threshold, else the first one of the
    highest value, the root included. judged: number of answers that the judge evaluated."""

    root: Node
    best: Node
    success: bool
    judged: int


def refine_tree(prompt: str, answer: str, critique: str, refine: Refine, judge: JudgeAll, *, value: float = 0.0,
                search: Literal["breadth", "depth"] = "breadth", branch: int = 3, keep: int = 2, depth: int = 3,
                budget: int = 1000, enough: float = 0.5, tries: int = 3,
                cache: dict[tuple[str, str], Judgement] | None = None) -> Refinement:
    """Search for an answer that the judge values above `enough`.

    value: the judge's, of the initial answer. search: "breadth" refines the `keep` best answers of each level; "depth"
    refines the best refinement of an answer first, then the next. branch: refinements per answer. depth: levels.
    budget: limit of created answers. tries: limit of calls of the refiner per answer, while refinements are missing.
    cache: judgements by (prompt, answer), which the search adds to; it can be shared by searches.
    """
    check_choice("search", search, ("breadth", "depth"))
    judgements = {} if cache is None else cache
    root, num_answers, judged = Node(answer, value, critique), 0, 0

    def expand(node: Node) -> list[Node]:
        """Create the node's refinements; returns them by descending value, earlier ones first on ties."""
        nonlocal num_answers, judged
        count = min(branch, budget - num_answers)
        answers: list[str] = []
        for _ in range(tries):
            if len(answers) < count:
                answers += [text for text in refine(prompt, node.answer, node.critique, count - len(answers)) if text]
        cases = [case for case in dict.fromkeys((prompt, text) for text in answers) if case not in judgements]
        judged += len(cases)
        judgements.update(zip(cases, judge(cases) if cases else [], strict=True))
        for text in answers:
            judgement, num_answers = judgements[prompt, text], num_answers + 1
            if judgement.value is not None:
                node.children.append(Node(text, judgement.value, judgement.critique, judgement, node, num_answers))
        return sorted(node.children, key=lambda child: -child.value)

    def search_deep(node: Node) -> Node | None:
        """Depth first: the first descendant whose value is above `enough`, or None."""
        if node.depth == depth or num_answers >= budget:
            return None
        children = expand(node)
        if children and children[0].value > enough:
            return children[0]
        return next((found for child in children[:keep] if (found := search_deep(child)) is not None), None)

    final = None
    if search == "depth":
        final = search_deep(root)
    else:
        level = [root]
        while level and final is None and level[0].depth < depth and num_answers < budget:
            children = sorted((child for node in level if num_answers < budget for child in expand(node)),
                              key=lambda child: -child.value)
            final = children[0] if children and children[0].value > enough else None
            level = children[:keep]
    best = final or max(root.walk(), key=lambda node: (node.value, -node.order))
    return Refinement(root, best, final is not None, judged)


@dataclass(frozen=True)
class Preferred:
    """A pair of answers: a rejected one and its refinement. tree: the search that found the better one."""

    prompt: str
    better: str
    worse: str
    tree: Refinement


def preference_pairs(actor: TextModel, prompts: Sequence[str], judge: Judge, refine: Refine, *, samples: int = 5,
                     temperature: float = 0.9, top_p: float = 0.9, most: int = 2048, seed: int = 0,
                     **search: Any) -> list[Preferred]:
    """For each prompt, the first of the actor's `samples` answers that the judge rejects, paired with its refinement,
    if the search succeeds. Ties count as accepted. search: options of `refine_tree`."""
    replies = actor.write([prompt for prompt in prompts for _ in range(samples)], most=most, temperature=temperature,
                          top_p=top_p, seed=seed)
    cases = [(prompt, replies[i * samples + j].text) for i, prompt in enumerate(prompts) for j in range(samples)]
    judgements = judge(cases, seed)
    pairs = []
    for i, prompt in enumerate(prompts):
        rejected = [j for j in range(i * samples, (i + 1) * samples) if judgements[j].label is False]
        if rejected:
            answer, critique = cases[rejected[0]][1], judgements[rejected[0]].critique
            tree = refine_tree(prompt, answer, critique, refine, judge, **search)
            tree.root.judgement = judgements[rejected[0]]
            if tree.success and tree.best.answer != answer:
                pairs.append(Preferred(prompt, tree.best.answer, answer, tree))
    return pairs


def refiner_lessons(pairs: Sequence[Preferred], judge: Judge, refiner: Refiner) -> dict[str, list[tuple[str, str]]]:
    """Rejection fine-tuning data for the model that judges and refines: (prompt, correct reply) by kind. "refine": the
    successful refinement of the answer before it. "pass" and "fail": judgements with mixed votes, with the critique of
    the majority as reply. At most one of each kind per prompt.

    pairs: of `preference_pairs`, with these two.
    """
    begin, end = refiner.marks
    lessons: dict[str, list[tuple[str, str]]] = {"refine": [], "pass": [], "fail": []}
    for prompt, tree in {pair.prompt: pair.tree for pair in reversed(pairs)}.items():
        if (previous := tree.best.parent) is not None:
            prompt_ = refiner.ask(prompt, previous.answer, previous.critique)
            lessons["refine"].append((prompt_, f"{begin}{tree.best.answer}{end}"))
        for name, label in (("pass", True), ("fail", False)):
            mixed = (node for node in tree.root.walk() if node.judgement is not None and node.judgement.mixed and
                     node.judgement.label is label)
            if (node := next(mixed, None)) is not None:
                lessons[name].append((judge.ask(prompt, node.answer), node.critique))
    return lessons
