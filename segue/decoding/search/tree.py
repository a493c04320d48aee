"""Tree search guided by the model's own confidence (Wilson 2024, arXiv 2410.19117), in the manner of AlphaZero (Silver
et al. 2017, arXiv 1712.01815): select a leaf, expand it, value it by a greedy rollout, back the value up.

The paper gives an outline; the details here are the standard algorithm's. No token is read twice while its state is
kept: rollouts share their common prefixes, and a later visit to a node of an earlier rollout costs nothing.
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
from segue.decoding.search.base import BatchedSearch, Hypothesis, Place
from segue.decoding.verify import top_tokens
from segue.errors import SegueError, check_choice

REPETITION_NGRAM = 3  # tokens
CONFIDENCES: dict[str, Callable[[Sequence[float]], float]] = {
    "mean": lambda steps: sum(steps) / len(steps), "sum": sum, "min": min}
"""Log-probabilities of an answer's tokens -> its confidence, natural logarithm."""


@dataclass(frozen=True)
class Tree(BatchedSearch):
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
        logarithm of its value (a reward, a classifier). Answers are ranked by it. Mean and min favour loops, sum
        favours short answers. repetition_cost: subtracted, times the share of the answer's trigrams that repeat.
    parallel: leaves evaluated at once, kept apart by virtual losses. move_every: every so many tokens read, the root
        moves to its most visited child, whose subtree is kept (None: it stays).
    states: model states kept for branching; a hypothesis without one is read again from its nearest kept ancestor,
        which counts against the budget. seed: of the sampled chunks. num_return_sequences: answers given, best first.
    """

    options: ClassVar[tuple[str, ...]] = (
        "budget", "branching", "chunk", "selection", "exploration", "backup", "rollout", "confidence",
        "repetition_cost", "parallel", "move_every", "states", "seed", "num_return_sequences")
    needs_hidden: ClassVar[bool] = False
    revisits: ClassVar[bool] = True

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
        for name, minimum in (("budget", 1), ("branching", 1), ("chunk", 1), ("exploration", 0), ("rollout", 0),
                              ("repetition_cost", 0), ("parallel", 1), ("move_every", 1), ("states", 1),
                              ("num_return_sequences", 1)):
            value = getattr(self, name)
            if value is not None and value < minimum:
                raise SegueError(f"{name} of a tree search must be at least {minimum}, not {value}")
        for name, allowed in (("selection", ("puct", "best-first")), ("backup", ("mean", "max")),
                              ("confidence", (*CONFIDENCES,))):
            value = getattr(self, name)
            if not callable(value):
                check_choice(name, value, allowed)

    @property
    def width(self) -> int:
        return self.parallel * (self.branching if self.chunk > 1 else 1)

    def begin(self, n: int, stops: frozenset[int]) -> TreeSearch:
        return TreeSearch(self, n, stops)


@dataclass(eq=False)
class Node:
    """A hypothesis in the tree.

    prior: its probability among its siblings. children: None until it is expanded. value_sum, best: sum and maximum of
    the values backed up through it. in_flight: unfinished simulations that pass through it (virtual losses).
    evaluating: a simulation is valuing this leaf. exhausted: nothing below is left to visit.
    """

    hypothesis: Hypothesis
    prior: float = 1.0
    parent: Node | None = None
    children: list[Node] | None = None
    visits: int = 0
    value_sum: float = 0.0
    best: float = 0.0
    in_flight: int = 0
    evaluating: bool = False
    exhausted: bool = False

    def path_to_root(self) -> Iterator[Node]:
        """This node, its parent and so on up to the root."""
        node: Node | None = self
        while node is not None:
            yield node
            node = node.parent


@dataclass
class Expansion:
    """What the model said after a hypothesis. most_likely, sampled: next tokens with their log-probabilities, the
    likeliest first, and drawn ones. place: the state to continue from, None once it was evicted."""

    most_likely: list[tuple[int, float]]
    sampled: list[tuple[int, float]] = field(default_factory=list)
    place: Place | None = None


Reading = Generator[list[Hypothesis], None, None]  # yields the hypotheses that it needs read


class TreeSearch:
    """The search of one answer, see `Tree`. A simulation is a generator that yields the hypotheses it needs read before
    it can continue, so that several simulations share one pass of the model."""

    def __init__(self, options: Tree, n: int, stops: frozenset[int]) -> None:
        self.options, self.n, self.stops = options, n, stops
        self.root = Node(Hypothesis())
        self.expansions: dict[tuple[int, ...], Expansion] = {}  # by the hypothesis' tokens
        # Hypotheses whose state is kept, least recently used first (the prompt's always is, and is not listed).
        self.kept_states: dict[tuple[int, ...], None] = {}
        self.answers: dict[tuple[tuple[int, ...], bool], Hypothesis] = {}
        self.heap: list[tuple[float, int, Node]] = [(0.0, 0, self.root)]
        self.numbers = itertools.count(1)
        self.random = np.random.default_rng(options.seed % 2**64)  # negative ones, too
        self.running: list[Reading] = []
        self.tokens_read, self.next_move = 0, options.move_every
        self.finishing = False

    def advance(self, living: Sequence[Hypothesis], logprobs: np.ndarray) -> list[Hypothesis]:
        if not self.expansions:
            self.root.hypothesis = living[0]
        for hypothesis, row in zip(living, logprobs):
            self._record(hypothesis, row)
        requests = self._advance_simulations()
        if not self.finishing and (not requests or self.tokens_read + self._cost(requests) > self.options.budget):
            if self.answers:
                return []
            self.finishing, self.running = True, [self._finish()]
            requests = self._advance_simulations()
        self.tokens_read += self._cost(requests)
        return requests

    def results(self) -> list[Hypothesis]:
        return sorted(self.answers.values(), key=lambda answer: -answer.score)[: self.options.num_return_sequences]

    def _cost(self, requests: Sequence[Hypothesis]) -> int:
        """The number of tokens that the model must read for these hypotheses."""
        return sum(len(hypothesis.tokens) - hypothesis.place.read
                   for hypothesis in requests if hypothesis.place is not None)

    def _record(self, hypothesis: Hypothesis, logprobs: np.ndarray) -> None:
        """Store the likeliest and the sampled next tokens of a hypothesis, and its state; evict the oldest state if
        there are too many."""
        likely = [choice for choice in top_tokens(logprobs, self.options.branching) if choice[1] > -np.inf]
        expansion = Expansion(likely, place=hypothesis.place)
        hypothesis.place = None  # only the expansion holds the state, so that it can be evicted
        if self.options.chunk > 1:
            samples = [draw(np.exp(logprobs), float(self.random.random())) for _ in range(self.options.branching)]
            expansion.sampled = [(token, float(logprobs[token])) for token in samples]
        key = tuple(hypothesis.tokens)
        self.expansions[key] = expansion
        if key:
            self.kept_states[key] = None
        if len(self.kept_states) > self.options.states:
            oldest = next(iter(self.kept_states))
            del self.kept_states[oldest]
            self.expansions[oldest].place = None

    def _advance_simulations(self) -> list[Hypothesis]:
        """Run simulations until each waits for the model; returns the hypotheses to read next."""
        waiting, requests = self.running, list[Hypothesis]()
        self.running = []
        while len(self.running) < self.options.parallel:
            simulation = waiting.pop(0) if waiting else None if self.finishing else self._begin()
            if simulation is None:
                break
            if needed := next(simulation, None):
                self.running.append(simulation)
                for hypothesis in needed:
                    hypothesis.place = self._nearest_state(hypothesis.tokens)
                requests += needed
        return requests

    def _nearest_state(self, tokens: list[int]) -> Place:
        """The kept state of the longest proper prefix of the tokens; marks it as recently used."""
        for length in range(len(tokens) - 1, -1, -1):
            key = tuple(tokens[:length])
            expansion = self.expansions.get(key)
            if expansion is not None and expansion.place is not None:
                if key:
                    self.kept_states[key] = self.kept_states.pop(key)
                return expansion.place
        raise AssertionError("the prompt's own state is always kept")

    def _begin(self) -> Reading | None:
        """The next simulation; None if nothing is left, or all that is left waits for a running one."""
        if self.next_move is not None and self.options.move_every is not None and self.tokens_read >= self.next_move \
                and self.root.children:
            self.root = max(self.root.children, key=lambda child: child.visits)
            self.next_move += self.options.move_every
        node = None if self.root.exhausted else self._select()
        if node is None:
            return None
        node.evaluating = True
        for ancestor in node.path_to_root():
            ancestor.in_flight += 1
        return self._simulate(node)

    def _select(self) -> Node | None:
        """The leaf to evaluate next, by PUCT or best-first; None if all candidates are being evaluated."""
        if self.options.selection == "best-first":
            while self.heap:
                node = heapq.heappop(self.heap)[-1]
                if self.root in node.path_to_root():
                    return node
            return None
        node = self.root
        while node.children is not None and not node.evaluating:
            candidates = [child for child in node.children if not child.exhausted and not child.evaluating]
            if not candidates:
                return None
            exploration = self.options.exploration * max(sum(c.visits + c.in_flight for c in node.children), 1) ** 0.5
            parent = self._q_value(node, 0.0)
            node = max(candidates, key=lambda child: self._q_value(child, parent)
                       + exploration * child.prior / (1 + child.visits + child.in_flight))
        return None if node.evaluating else node

    def _q_value(self, node: Node, unvisited: float) -> float:
        """The maximum or mean of the values backed up through a node; `unvisited` if there are none."""
        if not node.visits + node.in_flight:
            return unvisited
        if self.options.backup == "max":
            return node.best if node.visits else unvisited
        return node.value_sum / (node.visits + node.in_flight)  # unfinished ones count as a value of 0 (virtual loss)

    def _simulate(self, node: Node) -> Reading:
        """Expand a leaf, value it by a rollout, and back the value up to the root."""
        end = node.hypothesis
        if not self._is_complete(end):
            node.children = yield from self._children(node)
            end = yield from self._complete(end, self.options.rollout)
            if self.options.selection == "best-first":
                for child in node.children:
                    heapq.heappush(self.heap, (-self._confidence(child.hypothesis), next(self.numbers), child))
        if self._is_complete(end):
            self._keep(end)
        value = float(np.exp(self._confidence(end)))
        node.evaluating = False
        for ancestor in node.path_to_root():
            ancestor.visits += 1
            ancestor.in_flight -= 1
            ancestor.value_sum += value
            ancestor.best = max(ancestor.best, value)
            ancestor.exhausted = all(child.exhausted for child in ancestor.children or ())

    def _children(self, node: Node) -> Generator[list[Hypothesis], None, list[Node]]:
        """The child nodes of a leaf, the most probable first."""
        if self.options.chunk == 1:
            yield from self._read([node.hypothesis])
            continuations = [self._append(node.hypothesis, *choice)
                             for choice in self._look_up(node.hypothesis).most_likely]
        else:
            continuations = yield from self._chunks(node.hypothesis)
        priors = np.exp([child.total - node.hypothesis.total for child in continuations])
        order = np.argsort(-priors, kind="stable")
        return [Node(continuations[i], float(priors[i] / priors.sum()), node) for i in order]

    def _chunks(self, start: Hypothesis) -> Generator[list[Hypothesis], None, list[Hypothesis]]:
        """`branching` sampled continuations of `chunk` tokens; identical ones are merged and read once."""
        beams = [(start, self.options.branching)]
        for _ in range(self.options.chunk):
            yield from self._read([hypothesis for hypothesis, _ in beams if not self._is_complete(hypothesis)])
            merged: dict[tuple[tuple[int, ...], bool], tuple[Hypothesis, int]] = {}
            for hypothesis, count in beams:
                if self._is_complete(hypothesis):
                    merged[tuple(hypothesis.tokens), hypothesis.stopped] = hypothesis, count
                    continue
                for choice in self._look_up(hypothesis).sampled[:count]:
                    longer = self._append(hypothesis, *choice)
                    key = tuple(longer.tokens), longer.stopped
                    merged[key] = longer, merged.get(key, (longer, 0))[1] + 1
            beams = list(merged.values())
        return [hypothesis for hypothesis, _ in beams]

    def _complete(self, hypothesis: Hypothesis, limit: int | None) -> Generator[list[Hypothesis], None, Hypothesis]:
        """Extend greedily to the end, or by `limit` tokens at most."""
        while not self._is_complete(hypothesis) and limit != 0:
            yield from self._read([hypothesis])
            hypothesis = self._append(hypothesis, *self._look_up(hypothesis).most_likely[0])
            limit = None if limit is None else limit - 1
        return hypothesis

    def _finish(self) -> Reading:
        """Complete the most visited path greedily; used when the budget is spent before any answer was complete."""
        node = self.root
        while node.children and any(child.visits for child in node.children):
            node = max(node.children, key=lambda child: child.visits)
        self._keep((yield from self._complete(node.hypothesis, None)))

    def _read(self, hypotheses: Sequence[Hypothesis]) -> Reading:
        if unread := [hypothesis for hypothesis in hypotheses if tuple(hypothesis.tokens) not in self.expansions]:
            yield unread

    def _look_up(self, hypothesis: Hypothesis) -> Expansion:
        return self.expansions[tuple(hypothesis.tokens)]

    def _append(self, hypothesis: Hypothesis, token: int, logprob: float) -> Hypothesis:
        return hypothesis.ended(logprob) if token in self.stops else hypothesis.extended(token, logprob)

    def _is_complete(self, hypothesis: Hypothesis) -> bool:
        return hypothesis.stopped or len(hypothesis.tokens) == self.n

    def _keep(self, answer: Hypothesis) -> None:
        answer.score = self._confidence(answer)
        self.answers[tuple(answer.tokens), answer.stopped] = answer

    def _confidence(self, hypothesis: Hypothesis) -> float:
        if callable(self.options.confidence):
            value = self.options.confidence(hypothesis)
        elif hypothesis.length:
            last = [hypothesis.total - sum(hypothesis.logprobs)] * hypothesis.stopped
            value = CONFIDENCES[self.options.confidence]([*hypothesis.logprobs, *last])
        else:
            value = 0.0
        cost = self.options.repetition_cost
        return value - cost * repetition(hypothesis.tokens, REPETITION_NGRAM) if cost else value
