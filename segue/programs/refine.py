"""Make an answer better step by step: a tree of refinements, searched by what a judge says of them (SPaR: Cheng et al.
2024, arXiv 2412.11605)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from segue.errors import SegueError
from segue.programs.judge import Judge, Judgement
from segue.programs.text import TextModel

Refine = Callable[[str, str, str, int], Sequence[str]]
"""(prompt, answer, critique, n) -> up to n better answers; "" where none came out."""
JudgeAll = Callable[[Sequence[tuple[str, str]]], Sequence[Judgement]]


class Refiner:
    """A text model that makes answers better: `Refine` for `refine_tree`.

    ask: (prompt, answer, critique) -> what the model is asked; it must say to put the answer between the `marks`. What
    is not between them counts as no answer.
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
        inside = [reply.text.partition(begin)[2].partition(end) for reply in replies]
        return [text.strip() if closed else "" for text, closed, _ in inside]


@dataclass(eq=False)
class Node:
    """An answer of the tree. value: what the judge gave it, from 0 to 1. order: the how manieth answer it was."""

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
    """What a search found. best: the first answer that was good enough, else the best one seen, the first of those at
    the top value, with the root among them. judged: answers that the judge was asked about."""

    root: Node
    best: Node
    success: bool
    judged: int


def refine_tree(prompt: str, answer: str, critique: str, refine: Refine, judge: JudgeAll, *, value: float = 0.0,
                search: Literal["breadth", "depth"] = "breadth", branch: int = 3, keep: int = 2, depth: int = 3,
                budget: int = 1000, enough: float = 0.5, tries: int = 3,
                cache: dict[tuple[str, str], Judgement] | None = None) -> Refinement:
    """Search for an answer that the judge values above `enough`.

    value: the judge's of the answer given. search: "breadth" refines the `keep` best answers of a level at once;
    "depth" the best of an answer's refinements first, then the next. branch: refinements of each. depth: levels.
    budget: answers to be made, at most. tries: how often a refiner that gives nothing is asked. cache: judgements by
    (prompt, answer), added to; one may be shared by many searches.
    """
    if search not in ("breadth", "depth"):
        raise SegueError(f"search '{search}' is unknown: choose breadth or depth")
    known = {} if cache is None else cache
    root, made, asked = Node(answer, value, critique), 0, 0

    def expand(node: Node) -> list[Node]:
        """The node's refinements, the best first; earlier ones first where they are alike."""
        nonlocal made, asked
        wanted = min(branch, budget - made)
        answers: list[str] = []
        for _ in range(tries):
            if len(answers) < wanted:
                answers += [text for text in refine(prompt, node.answer, node.critique, wanted - len(answers)) if text]
        new = [case for case in dict.fromkeys((prompt, text) for text in answers) if case not in known]
        asked += len(new)
        known.update(zip(new, judge(new) if new else [], strict=True))
        for text in answers:
            judgement, made = known[prompt, text], made + 1
            if judgement.value is not None:
                node.children.append(Node(text, judgement.value, judgement.critique, judgement, node, made))
        return sorted(node.children, key=lambda child: -child.value)

    def down(node: Node) -> Node | None:
        """Depth first: the first answer below that is good enough."""
        if node.depth == depth or made >= budget:
            return None
        children = expand(node)
        if children and children[0].value > enough:
            return children[0]
        return next((found for child in children[:keep] if (found := down(child)) is not None), None)

    final = None
    if search == "depth":
        final = down(root)
    else:
        level = [root]
        while level and final is None and level[0].depth < depth and made < budget:
            found = sorted((child for node in level if made < budget for child in expand(node)),
                           key=lambda child: -child.value)
            final = found[0] if found and found[0].value > enough else None
            level = found[:keep]
    best = final or max(root.walk(), key=lambda node: (node.value, -node.order))
    return Refinement(root, best, final is not None, asked)


@dataclass(frozen=True)
class Preferred:
    """A pair of answers that differ in what was broken. tree: how the better one was found."""

    prompt: str
    better: str
    worse: str
    tree: Refinement


def preference_pairs(actor: TextModel, prompts: Sequence[str], judge: Judge, refine: Refine, *, samples: int = 5,
                     temperature: float = 0.9, top_p: float = 0.9, most: int = 2048, seed: int = 0,
                     **search: Any) -> list[Preferred]:
    """Where the judge finds fault with one of the actor's `samples` answers to a prompt, the first such answer and its
    refinement, if one is good enough. Ties count as no fault. search: options of `refine_tree`."""
    replies = actor.write([prompt for prompt in prompts for _ in range(samples)], most=most, temperature=temperature,
                          top_p=top_p, seed=seed)
    cases = [(prompt, replies[i * samples + j].text) for i, prompt in enumerate(prompts) for j in range(samples)]
    judged = judge(cases, seed)
    pairs = []
    for i, prompt in enumerate(prompts):
        faults = [j for j in range(i * samples, (i + 1) * samples) if judged[j].label is False]
        if faults:
            answer, critique = cases[faults[0]][1], judged[faults[0]].critique
            tree = refine_tree(prompt, answer, critique, refine, judge, **search)
            tree.root.judgement = judged[faults[0]]
            if tree.success and tree.best.answer != answer:
                pairs.append(Preferred(prompt, tree.best.answer, answer, tree))
    return pairs


def refiner_lessons(pairs: Sequence[Preferred], judge: Judge, refiner: Refiner) -> dict[str, list[tuple[str, str]]]:
    """What the model that judges and refines may learn of its own work, by rejection fine-tuning: what it was asked,
    and the reply that proved right. "refine": the refinement that was good enough, of the answer before it. "pass" and
    "fail": judgements on which the votes were mixed, by the critique of the majority. Of each at most one a prompt.

    pairs: of `preference_pairs`, with these two.
    """
    begin, end = refiner.marks
    found: dict[str, list[tuple[str, str]]] = {"refine": [], "pass": [], "fail": []}
    for prompt, tree in {pair.prompt: pair.tree for pair in reversed(pairs)}.items():
        if (before := tree.best.parent) is not None:
            asked = refiner.ask(prompt, before.answer, before.critique)
            found["refine"].append((asked, f"{begin}{tree.best.answer}{end}"))
        for name, label in (("pass", True), ("fail", False)):
            mixed = (node for node in tree.root.walk() if node.judgement is not None and node.judgement.mixed and
                     node.judgement.label is label)
            if (node := next(mixed, None)) is not None:
                found[name].append((judge.ask(prompt, node.answer), node.critique))
    return found
