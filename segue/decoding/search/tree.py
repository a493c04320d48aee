"""Tree search guided by the model's own confidence (Wilson 2024, arXiv 2410.19117), in the manner of AlphaZero (Silver
et al. 2017, arXiv 1712.01815): select a leaf, expand it, value it by a greedy completion, back the value up.

The paper gives the outline; what fills it here is the standard algorithm. No token is read twice while its state is
kept: completions share what they have in common, and a later visit to a node of an earlier completion costs nothing.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from segue.analysis.texts import repetition
from segue.decoding.sampling import draw
from segue.decoding.search.base import Hypothesis, Place, Together
from segue.decoding.verify import likeliest
from segue.errors import SegueError

NGRAM = 3  # repetition is counted in these
CONFIDENCES: dict[str, Callable[[Sequence[float]], float]] = {
    "mean": lambda steps: sum(steps) / len(steps), "sum": sum, "min": min}
"""Log-probabilities of an answer's tokens -> its confidence, natural logarithm."""


@dataclass(frozen=True)
class Tree(Together):
    """Options of a tree search.

    budget: tokens that the model may read for it, the prompt left out, over all hypotheses. (If no answer is complete
        by then, one is completed beyond it.)
    branching: children of a node. chunk: tokens of an edge: with 1 the children are the likeliest next tokens, with
        more they are continuations of that many tokens, drawn from the model; those with the same text are one.
    selection: "puct" (the child with the largest Q + exploration * prior * sqrt(visits of all) / (1 + its visits)) or
        "best-first" (the leaf of the highest confidence anywhere). exploration: 0 exploits, large spreads evenly.
    backup: Q is the "mean" or the "max" of the values below a node.
    rollout: tokens of the greedy completion that values a leaf (None: to its end; 0: the confidence of the leaf
        itself). A value is exp(confidence).
    confidence: "mean", "sum" or "min" of the tokens' log-probabilities, or a function of a hypothesis that gives the
        logarithm of its worth (a reward, a classifier). Answers are ranked by it. Mean and min like loops, sum likes
        short answers. repetition_cost: taken from it, times the share of the answer's trigrams that came before in it.
    parallel: leaves valued at once, kept apart by virtual losses. move_every: after so many tokens read, the root moves
        to its most visited child, whose subtree is kept (None: it stays).
    states: states kept for branching off; others are read again from the nearest one kept, which counts. seed: of the
        drawn chunks. num_return_sequences: answers given, best first.
    """

    options: ClassVar[tuple[str, ...]] = (
        "budget", "branching", "chunk", "selection", "exploration", "backup", "rollout", "confidence",
        "repetition_cost", "parallel", "move_every", "states", "seed", "num_return_sequences")
    needs_hidden: ClassVar[bool] = False
    returns: ClassVar[bool] = True

    budget: int = 512
    branching: int = 4
    chunk: int = 1
    selection: str = "puct"
    exploration: float = 1.25
    backup: str = "max"
    rollout: int | None = None
    confidence: str | Callable[[Hypothesis], float] = "mean"
    repetition_cost: float = 0.0
    parallel: int = 1
    move_every: int | None = None
    states: int = 128
    seed: int = 0
    num_return_sequences: int = 1

    def __post_init__(self) -> None:
        for name, least in (("budget", 1), ("branching", 1), ("chunk", 1), ("exploration", 0), ("rollout", 0),
                            ("repetition_cost", 0), ("parallel", 1), ("move_every", 1), ("states", 1),
                            ("num_return_sequences", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise SegueError(f"{name} of a tree search must be at least {least}, not {value}")
        for name, allowed in (("selection", ("puct", "best-first")), ("backup", ("mean", "max")),
                            ("confidence", (*CONFIDENCES,))):
            value = getattr(self, name)
            if not callable(value) and value not in allowed:
                raise SegueError(f"{name} '{value}' is unknown: choose from {', '.join(allowed)}")

    @property
    def width(self) -> int:
        return self.parallel * (self.branching if self.chunk > 1 else 1)

    def begin(self, n: int, stops: frozenset[int]) -> TreeSearch:
        return TreeSearch(self, n, stops)


@dataclass(eq=False)
class Node:
    """A hypothesis in the tree. prior: among its siblings. children: None until it is expanded. worth, best: sum and
    largest of the values below. underway: simulations that pass through it now. busy: one is valuing it. closed:
    nothing below is left to look at."""

    hypothesis: Hypothesis
    prior: float = 1.0
    parent: Node | None = None
    children: list[Node] | None = None
    visits: int = 0
    worth: float = 0.0
    best: float = 0.0
    underway: int = 0
    busy: bool = False
    closed: bool = False

    def line(self) -> Iterator[Node]:
        """Itself, its parent and so on up to the first."""
        node: Node | None = self
        while node is not None:
            yield node
            node = node.parent


@dataclass
class Seen:
    """What was read once. likely, drawn: next tokens with their log-probabilities, the likeliest first, and samples.
    place: where the model can go on from, None if its state was given up."""

    likely: list[tuple[int, float]]
    drawn: list[tuple[int, float]] = field(default_factory=list)
    place: Place | None = None


Reading = Generator[list[Hypothesis], None, None]  # yields what must be read before it can go on


class TreeSearch:
    """The search of one answer, see `Tree`. Simulations are generators that yield the hypotheses which the model must
    read before they can go on, so that several wait for the same pass."""

    def __init__(self, options: Tree, n: int, stops: frozenset[int]) -> None:
        self.options, self.n, self.stops = options, n, stops
        self.root = Node(Hypothesis())
        self.seen: dict[tuple[int, ...], Seen] = {}  # by tokens
        self.standing: dict[tuple[int, ...], None] = {}  # those with a place, by last use; the prompt's stays
        self.pool: dict[tuple[tuple[int, ...], bool], Hypothesis] = {}
        self.heap: list[tuple[float, int, Node]] = [(0.0, 0, self.root)]
        self.numbers = itertools.count(1)
        self.random = np.random.default_rng(options.seed)
        self.running: list[Reading] = []
        self.spent, self.due = 0, options.move_every
        self.finishing = False

    def advance(self, living: Sequence[Hypothesis], logprobs: np.ndarray) -> list[Hypothesis]:
        if not self.seen:
            self.root.hypothesis = living[0]
        for hypothesis, row in zip(living, logprobs):
            self._learn(hypothesis, row)
        asked = self._asked()
        if not self.finishing and (not asked or self.spent + self._cost(asked) > self.options.budget):
            if self.pool:
                return []
            self.finishing, self.running = True, [self._finish()]
            asked = self._asked()
        self.spent += self._cost(asked)
        return asked

    def results(self) -> list[Hypothesis]:
        return sorted(self.pool.values(), key=lambda answer: -answer.score)[: self.options.num_return_sequences]

    def _cost(self, asked: Sequence[Hypothesis]) -> int:
        return sum(len(each.tokens) - each.place.read for each in asked if each.place is not None)

    def _learn(self, hypothesis: Hypothesis, logprobs: np.ndarray) -> None:
        likely = [said for said in likeliest(logprobs, self.options.branching) if said[1] > -np.inf]
        seen = Seen(likely, place=hypothesis.place)
        hypothesis.place = None  # kept in one spot, so that it can be given up
        if self.options.chunk > 1:
            drawn = [draw(np.exp(logprobs), float(self.random.random())) for _ in range(self.options.branching)]
            seen.drawn = [(token, float(logprobs[token])) for token in drawn]
        key = tuple(hypothesis.tokens)
        self.seen[key] = seen
        if key:
            self.standing[key] = None
        if len(self.standing) > self.options.states:
            oldest = next(iter(self.standing))
            del self.standing[oldest]
            self.seen[oldest].place = None

    def _asked(self) -> list[Hypothesis]:
        """Let simulations go on as far as they can; what they all wait for."""
        waiting, asked = self.running, list[Hypothesis]()
        self.running = []
        while len(self.running) < self.options.parallel:
            simulation = waiting.pop(0) if waiting else None if self.finishing else self._begin()
            if simulation is None:
                break
            if wanted := next(simulation, None):
                self.running.append(simulation)
                for hypothesis in wanted:
                    hypothesis.place = self._nearest(hypothesis.tokens)
                asked += wanted
        return asked

    def _nearest(self, tokens: list[int]) -> Place:
        for length in range(len(tokens) - 1, -1, -1):
            key = tuple(tokens[:length])
            seen = self.seen.get(key)
            if seen is not None and seen.place is not None:
                if key:
                    self.standing[key] = self.standing.pop(key)
                return seen.place
        raise AssertionError("the prompt's own state is always kept")

    def _begin(self) -> Reading | None:
        """The next simulation; None if nothing is left, or all that is left waits for one underway."""
        if self.due is not None and self.options.move_every is not None and self.spent >= self.due \
                and self.root.children:
            self.root = max(self.root.children, key=lambda child: child.visits)
            self.due += self.options.move_every
        node = None if self.root.closed else self._select()
        if node is None:
            return None
        node.busy = True
        for each in node.line():
            each.underway += 1
        return self._simulate(node)

    def _select(self) -> Node | None:
        if self.options.selection == "best-first":
            while self.heap:
                node = heapq.heappop(self.heap)[-1]
                if self.root in node.line():
                    return node
            return None
        node = self.root
        while node.children is not None and not node.busy:
            free = [child for child in node.children if not child.closed and not child.busy]
            if not free:
                return None
            spread = self.options.exploration * max(sum(c.visits + c.underway for c in node.children), 1) ** 0.5
            parent = self._quality(node, 0.0)
            node = max(free, key=lambda child: self._quality(child, parent)
                       + spread * child.prior / (1 + child.visits + child.underway))
        return None if node.busy else node

    def _quality(self, node: Node, unvisited: float) -> float:
        if not node.visits + node.underway:
            return unvisited
        if self.options.backup == "max":
            return node.best if node.visits else unvisited
        return node.worth / (node.visits + node.underway)  # those underway count as lost

    def _simulate(self, node: Node) -> Reading:
        end = node.hypothesis
        if not self._over(end):
            node.children = yield from self._children(node)
            end = yield from self._complete(end, self.options.rollout)
            if self.options.selection == "best-first":
                for child in node.children:
                    heapq.heappush(self.heap, (-self._confidence(child.hypothesis), next(self.numbers), child))
        if self._over(end):
            self._keep(end)
        value = float(np.exp(self._confidence(end)))
        node.busy = False
        for each in node.line():
            each.visits += 1
            each.underway -= 1
            each.worth += value
            each.best = max(each.best, value)
            each.closed = all(child.closed for child in each.children or ())

    def _children(self, node: Node) -> Generator[list[Hypothesis], None, list[Node]]:
        if self.options.chunk == 1:
            yield from self._read([node.hypothesis])
            found = [self._longer(node.hypothesis, *said) for said in self._at(node.hypothesis).likely]
        else:
            found = yield from self._chunks(node.hypothesis)
        priors = np.exp([child.total - node.hypothesis.total for child in found])
        order = np.argsort(-priors, kind="stable")
        return [Node(found[i], float(priors[i] / priors.sum()), node) for i in order]

    def _chunks(self, start: Hypothesis) -> Generator[list[Hypothesis], None, list[Hypothesis]]:
        """Continuations drawn from the model, as often as `branching` says. While they say the same they are one."""
        grown = [(start, self.options.branching)]
        for _ in range(self.options.chunk):
            yield from self._read([hypothesis for hypothesis, _ in grown if not self._over(hypothesis)])
            after: dict[tuple[tuple[int, ...], bool], tuple[Hypothesis, int]] = {}
            for hypothesis, times in grown:
                if self._over(hypothesis):
                    after[tuple(hypothesis.tokens), hypothesis.stopped] = hypothesis, times
                    continue
                for said in self._at(hypothesis).drawn[:times]:
                    longer = self._longer(hypothesis, *said)
                    key = tuple(longer.tokens), longer.stopped
                    after[key] = longer, after.get(key, (longer, 0))[1] + 1
            grown = list(after.values())
        return [hypothesis for hypothesis, _ in grown]

    def _complete(self, hypothesis: Hypothesis, most: int | None) -> Generator[list[Hypothesis], None, Hypothesis]:
        """Greedily, by `most` tokens at most."""
        while not self._over(hypothesis) and most != 0:
            yield from self._read([hypothesis])
            hypothesis = self._longer(hypothesis, *self._at(hypothesis).likely[0])
            most = None if most is None else most - 1
        return hypothesis

    def _finish(self) -> Reading:
        """The budget is spent and no answer is there: complete the most visited path."""
        node = self.root
        while node.children and any(child.visits for child in node.children):
            node = max(node.children, key=lambda child: child.visits)
        self._keep((yield from self._complete(node.hypothesis, None)))

    def _read(self, hypotheses: Sequence[Hypothesis]) -> Reading:
        if unread := [each for each in hypotheses if tuple(each.tokens) not in self.seen]:
            yield unread

    def _at(self, hypothesis: Hypothesis) -> Seen:
        return self.seen[tuple(hypothesis.tokens)]

    def _longer(self, hypothesis: Hypothesis, token: int, logprob: float) -> Hypothesis:
        return hypothesis.ended(logprob) if token in self.stops else hypothesis.extended(token, logprob)

    def _over(self, hypothesis: Hypothesis) -> bool:
        return hypothesis.stopped or len(hypothesis.tokens) == self.n

    def _keep(self, answer: Hypothesis) -> None:
        answer.score = self._confidence(answer)
        self.pool[tuple(answer.tokens), answer.stopped] = answer

    def _confidence(self, hypothesis: Hypothesis) -> float:
        if callable(self.options.confidence):
            value = self.options.confidence(hypothesis)
        elif hypothesis.length:
            last = [hypothesis.total - sum(hypothesis.logprobs)] * hypothesis.stopped
            value = CONFIDENCES[self.options.confidence]([*hypothesis.logprobs, *last])
        else:
            value = 0.0
        cost = self.options.repetition_cost
        return value - cost * repetition(hypothesis.tokens, NGRAM) if cost else value
