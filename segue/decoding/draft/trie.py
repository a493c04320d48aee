"""The trie draft of Lookahead (Zhao et al., KDD 2024): frequent n-grams of the prompt and of earlier answers.

A `Trie` counts n-grams: a node's count is how often its path occurred. Each request has its own trie of its prompt,
which is dropped when the request ends, so that no prompt leaks into another request; one trie of answers is shared.
Retrieval walks both at once. (The authors keep both counts in one trie, and zero the prompt's at the end.)
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from heapq import heapify, heappop, heappush, heapreplace
from operator import itemgetter
from typing import ClassVar, Literal, NamedTuple

from segue.decoding.draft.base import NO_DRAFT, Tip, Tree
from segue.errors import SegueError

MAX_VISITED = 4096  # nodes visited in one retrieval
INPUT_WEIGHT, OUTPUT_WEIGHT = 1 - 1e-4, 1e-4  # counts in the prompt outrank counts in answers, which break ties


class Node:
    """A path that occurred `count` times. While its continuation occurred only once, that is kept as a tuple of tokens,
    `tail`; most of a trie is such tails, at a tenth of the memory of nodes."""

    __slots__ = ("children", "count", "tail")

    def __init__(self, count: float, tail: tuple[int, ...] = ()) -> None:
        self.count, self.tail = count, tail
        self.children: dict[int, Node] | None = None

    def child_nodes(self) -> dict[int, Node]:
        """The nodes one token further."""
        if self.children is not None:
            return self.children
        return {self.tail[0]: Node(1, self.tail[1:])} if self.tail else {}


class Trie:
    """Counts of all n-grams up to `depth` tokens.

    max_nodes: a first token's tree that outgrows it is squeezed (n-grams that occurred once are dropped, counts are
    halved) once 1,024 trees were touched, or max_nodes nodes added, since the last check. capacity: all trees are
    squeezed when together they hold more nodes than this (some 30 bytes each, since most are in tails).
    """

    SQUEEZE_AFTER = 1024

    def __init__(self, depth: int, max_nodes: int = 65_536, capacity: int = 2_000_000) -> None:
        self.depth, self.max_nodes, self.capacity = depth, max_nodes, capacity
        self.roots: dict[int, Node] = {}
        self.sizes: dict[int, int] = {}
        self.size = 0
        self._touched: set[int] = set()
        self._added = 0

    def insert(self, tokens: Sequence[int], start: int, stop: int) -> None:
        """Count the branches that begin at positions start..stop-1 of `tokens`, each up to `depth` tokens long."""
        for place in range(start, stop):
            branch = tuple(tokens[place : place + self.depth])
            first = branch[0]
            node = self.roots.get(first)
            if node is None:
                node = self.roots[first] = Node(0)
                self.sizes[first] = 0
            node.count += 1
            created, at, length = 1 - bool(self.sizes[first]), 1, len(branch)
            while at < length:
                if node.children is None:
                    if not node.tail:
                        node.tail = branch[at:]
                        created += length - at
                        break
                    node.children, node.tail = node.child_nodes(), ()
                child = node.children.get(branch[at])
                if child is None:
                    node.children[branch[at]] = Node(1, branch[at + 1 :])
                    created += length - at
                    break
                child.count += 1
                node = child
                at += 1
            self.sizes[first] += created
            self.size += created
            self._added += created
            self._touched.add(first)
            if len(self._touched) >= self.SQUEEZE_AFTER or self._added >= self.max_nodes:
                self.squeeze([first for first in self._touched if self.sizes[first] > self.max_nodes])
            if self.size > self.capacity:
                self.squeeze(list(self.roots))

    def squeeze(self, trees: Sequence[int]) -> None:
        """Drop paths with a count of at most 1 from these first tokens' trees, and halve the other counts."""
        for first in trees:
            root, size = self.roots[first], 1
            self.size -= self.sizes[first]
            if root.count <= 1:
                del self.roots[first], self.sizes[first]
                continue
            root.count /= 2
            stack = [root]
            while stack:
                node = stack.pop()
                frequent = {token: child for token, child in node.child_nodes().items() if child.count > 1}
                node.children, node.tail = frequent or None, ()
                size += len(frequent)
                for child in frequent.values():
                    child.count /= 2
                    stack.append(child)
            self.sizes[first] = size
            self.size += size
        self._touched.clear()
        self._added = 0

    def find(self, tokens: Sequence[int]) -> Node | None:
        """The node of these tokens (at least one); None if they never occurred."""
        node = self.roots.get(tokens[0])
        for token in tokens[1:]:
            if node is None:
                return None
            node = node.child_nodes().get(token)
        return node

    def count(self, tokens: Sequence[int]) -> float:
        """How often these tokens (1 to `depth`) occurred, as halved by squeezing."""
        node = self.find(tokens)
        return 0.0 if node is None else node.count

    def __len__(self) -> int:
        """The number of nodes."""
        return self.size


class _DraftNode(NamedTuple):
    """A node found after the query, in the prompt's trie, the answers' or both. parent: an index, -1 for the query."""

    token: int
    parent: int
    depth: int
    rank: float  # the weighted sum of both counts


# Rank, token, its node in the trie of the prompt and in that of the answers.
_Sibling = tuple[float, int, Node | None, Node | None]
_rank = itemgetter(0)


def _ranked_children(prompt: Node | None, answer: Node | None) -> list[_Sibling]:
    """The tokens that follow a node in either trie, best first."""
    answer_children = answer.child_nodes() if answer is not None else {}
    if prompt is None:
        siblings: list[_Sibling] = [(OUTPUT_WEIGHT * in_answer.count, token, None, in_answer)
                                    for token, in_answer in answer_children.items()]
    else:
        prompt_children = prompt.child_nodes()
        siblings = []
        for token, in_prompt in prompt_children.items():
            in_answer = answer_children.get(token)
            rank = INPUT_WEIGHT * in_prompt.count
            siblings.append((rank if in_answer is None else rank + OUTPUT_WEIGHT * in_answer.count, token, in_prompt,
                             in_answer))
        siblings += [(OUTPUT_WEIGHT * in_answer.count, token, None, in_answer)
                     for token, in_answer in answer_children.items() if token not in prompt_children]
    siblings.sort(key=_rank, reverse=True)
    return siblings


class _Request:
    def __init__(self, trie: Trie | None) -> None:
        self.prompt = trie
        self.tail: list[int] = []  # the last tokens, oldest first
        self.waiting: list[int] = []  # the answer's tokens whose branches are not complete yet


Mode = Literal["hier", "par", "one"]
Source = Literal["mix", "input", "output"]


class TrieDraft:
    """Drafts the branches that followed the last tokens most often.

    nodes: drafted at most. branch: depth of a draft at most. query: the longest suffix looked up; shorter ones are
    tried while the draft has fewer than `branch` nodes. mode: "hier", a tree with shared prefixes; "par", the same
    branches side by side, nothing shared; "one", the most frequent branch. source: "input" looks into the prompt,
    "output" into answers, "mix" into both. stop_words: tokens too common to be looked up alone.
    """

    needs_hidden: ClassVar[bool] = False

    def __init__(self, nodes: int = 64, branch: int = 12, query: int = 2, mode: Mode = "hier", source: Source = "mix",
                 stop_words: Collection[int] = ()) -> None:
        if mode not in ("hier", "par", "one") or source not in ("mix", "input", "output"):
            raise SegueError(f"trie mode '{mode}' with source '{source}' is unknown: choose hier, par or one, and mix, "
                             "input or output")
        if min(nodes, branch, query) < 1:
            raise SegueError("a trie draft needs at least one node, a branch of one and a query of one token")
        self.nodes, self.branch, self.query = nodes, branch, query
        self.mode, self.source, self.stop_words = mode, source, frozenset(stop_words)
        # The longest query must still leave `branch` tokens below it.
        self.depth = branch + query
        self.answers = Trie(self.depth, 16 * nodes)  # a first token's tree; the authors' default of 512 is tiny
        self._requests: dict[int, _Request] = {}

    def observe(self, row: int, tokens: Sequence[int], prompt: bool = False) -> None:
        request = self._requests.get(row)
        if request is None:
            request = self._requests[row] = _Request(None)
        request.tail = (request.tail + list(tokens[-self.query:]))[-self.query:]
        if prompt:
            if self.source != "output":
                request.prompt = request.prompt or Trie(self.depth)
                request.prompt.insert(list(tokens), 0, len(tokens))
        elif self.source != "input":
            # A position is counted once its whole branch is known; the last ones are counted in `forget`.
            waiting = request.waiting
            waiting.extend(tokens)
            complete = len(waiting) - self.depth + 1
            if complete > 0:
                self.answers.insert(waiting, 0, complete)
                del waiting[:complete]

    def warm(self, answers: Sequence[Sequence[int]]) -> None:
        """Add earlier answers to the trie of answers."""
        for tokens in answers:
            self.answers.insert(list(tokens), 0, len(tokens))

    def forget(self, row: int) -> None:
        request = self._requests.pop(row, None)
        if request is not None and request.waiting:
            self.answers.insert(request.waiting, 0, len(request.waiting))

    def propose(self, tips: Sequence[Tip]) -> list[Tree]:
        return [self._retrieve(tip) for tip in tips]

    def _retrieve(self, tip: Tip) -> Tree:
        """The draft after a tip, from the longest suffix with enough continuations."""
        request = self._requests.get(tip.row)
        nodes, branch = min(self.nodes, tip.nodes), min(self.branch, tip.depth)
        if request is None or nodes < 1 or branch < 1:
            return NO_DRAFT
        best: list[_DraftNode] = []
        for length in range(len(request.tail), 0, -1):
            query = request.tail[-length:]
            if length == 1 and query[0] in self.stop_words:
                continue
            prompt = request.prompt.find(query) if request.prompt is not None else None
            answer = self.answers.find(query) if self.source != "input" else None
            candidates = self._best(prompt, answer, nodes, branch)
            if len(candidates) > len(best):
                best = candidates
            if len(best) >= branch:
                break
        return self._lay_out(best, nodes) if best else NO_DRAFT

    def _best(self, prompt: Node | None, answer: Node | None, nodes: int, branch: int) -> list[_DraftNode]:
        """The best nodes below the query, parents before children, with `parent` as an index into the list.

        A count never exceeds its parent's, so repeatedly taking the best of a frontier yields the best of all without
        visiting the rest. Half of the draft goes to the best by answers; the rest is filled by rank.
        """
        if self.mode == "one":
            return self._follow(prompt, answer, min(nodes, branch))
        chosen: list[_DraftNode] = []
        known: dict[tuple[int, int], int] = {}  # (parent, token) -> index in chosen
        if prompt is not None and answer is not None:
            self._select_best(chosen, known, None, answer, nodes // 2, branch)
        self._select_best(chosen, known, prompt, answer, nodes, branch)
        return chosen

    def _select_best(self, chosen: list[_DraftNode], known: dict[tuple[int, int], int], prompt: Node | None,
                     answer: Node | None, limit: int, branch: int) -> None:
        """Append the best nodes below the query to `chosen` until it holds `limit`."""
        # The heap holds only the best untaken one of each set of siblings, which are sorted by rank.
        heap: list[tuple[float, int, int, int, list[_Sibling]]] = []
        age = visited = depth = 0  # age breaks ties: first come, first served
        parent = -1
        while True:
            if depth < branch and visited < MAX_VISITED:
                siblings = _ranked_children(prompt, answer)
                if siblings:
                    age += 1
                    visited += len(siblings)
                    heappush(heap, (-siblings[0][0], age, 0, parent, siblings))
            if not heap or len(chosen) >= limit:
                return
            _, order, position, grandparent, siblings = heap[0]
            rank, token, prompt, answer = siblings[position]
            if position + 1 < len(siblings):
                heapreplace(heap, (-siblings[position + 1][0], order, position + 1, grandparent, siblings))
            else:
                heappop(heap)
            depth = 1 if grandparent < 0 else chosen[grandparent].depth + 1
            parent = known.get((grandparent, token), -1)
            if parent < 0:
                parent = known[grandparent, token] = len(chosen)
                chosen.append(_DraftNode(token, grandparent, depth, rank))

    def _follow(self, prompt: Node | None, answer: Node | None, length: int) -> list[_DraftNode]:
        """The most frequent branch below the query, of at most `length` nodes."""
        chosen: list[_DraftNode] = []
        while len(chosen) < length:
            siblings = _ranked_children(prompt, answer)
            if not siblings:
                break
            rank, token, prompt, answer = siblings[0]
            chosen.append(_DraftNode(token, len(chosen) - 1, len(chosen) + 1, rank))
        return chosen

    def _lay_out(self, draft: list[_DraftNode], nodes: int) -> Tree:
        """The draft as a tree in the order found, or (mode "par") as separate branches, best first, while they fit."""
        if self.mode != "par":
            return Tree([node.token for node in draft], [node.parent for node in draft])
        inner = {node.parent for node in draft}
        leaves = [(-node.rank, place) for place, node in enumerate(draft) if place not in inner]
        heapify(leaves)
        tokens: list[int] = []
        parents: list[int] = []
        while leaves and len(tokens) < nodes:
            place = heappop(leaves)[1]
            branch = []
            while place >= 0:
                branch.append(draft[place].token)
                place = draft[place].parent
            for depth, token in enumerate(branch[::-1][: nodes - len(tokens)]):
                parents.append(len(tokens) - 1 if depth else -1)
                tokens.append(token)
        return Tree(tokens, parents)
