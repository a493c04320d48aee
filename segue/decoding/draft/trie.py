"""The trie draft of Lookahead (Zhao et al., KDD 2024): branches of what was said, in the prompt and in answers.

A `Trie` counts n-grams: the number at a node is how often its path was said. Each request has a trie of its own for
its prompt, which goes when the request ends, so that no prompt leaks into another request; one trie of answers is
shared. Retrieval walks both at once. (The authors keep both counts in one trie, and zero the prompt's at the end.)
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from heapq import heapify, heappop, heappush
from typing import ClassVar, Literal, NamedTuple

from segue.decoding.draft.base import NOTHING, Tip, Tree
from segue.errors import SegueError

INPUT_WEIGHT, OUTPUT_WEIGHT = 1 - 1e-4, 1e-4  # hits in the prompt outrank hits in answers, which break ties


class Node:
    __slots__ = ("children", "count")

    def __init__(self, count: float) -> None:
        self.count = count
        self.children: dict[int, Node] = {}


class Trie:
    """Counts of all n-grams up to `depth` tokens. Also a suffix index: `count` answers how often something was said.

    max_nodes: a first token's tree that outgrows it is squeezed (what was said once is dropped, counts are halved)
    when 1,024 trees were touched, or max_nodes nodes added, since the last look. capacity: all trees are squeezed
    when together they hold more nodes than this (about 200 bytes each).
    """

    LOOK_AFTER = 1024

    def __init__(self, depth: int, max_nodes: int = 65_536, capacity: int = 400_000) -> None:
        self.depth, self.max_nodes, self.capacity = depth, max_nodes, capacity
        self.roots: dict[int, Node] = {}
        self.sizes: dict[int, int] = {}
        self.size = 0
        self._touched: set[int] = set()
        self._added = 0

    def insert(self, tokens: Sequence[int], start: int, stop: int) -> None:
        """Count the branches that begin at the places start..stop-1 of `tokens`, each up to `depth` tokens long."""
        for place in range(start, stop):
            branch = tokens[place : place + self.depth]
            first = branch[0]
            root = self.roots.get(first)
            if root is None:
                root = self.roots[first] = Node(0)
                self.sizes[first] = 0
            root.count += 1
            node, created = root, 1 - bool(self.sizes[first])
            for token in branch[1:]:
                child = node.children.get(token)
                if child is None:
                    child = node.children[token] = Node(1)
                    created += 1
                else:
                    child.count += 1
                node = child
            self.sizes[first] += created
            self.size += created
            self._added += created
            self._touched.add(first)
            if len(self._touched) >= self.LOOK_AFTER or self._added >= self.max_nodes:
                self.squeeze([first for first in self._touched if self.sizes[first] > self.max_nodes])
            if self.size > self.capacity:
                self.squeeze(list(self.roots))

    def squeeze(self, trees: Sequence[int]) -> None:
        """Drop what was said at most once in these first tokens' trees, and halve the other counts."""
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
                node.children = {token: child for token, child in node.children.items() if child.count > 1}
                size += len(node.children)
                for child in node.children.values():
                    child.count /= 2
                    stack.append(child)
            self.sizes[first] = size
            self.size += size
        self._touched.clear()
        self._added = 0

    def find(self, tokens: Sequence[int]) -> Node | None:
        node = self.roots.get(tokens[0])
        for token in tokens[1:]:
            if node is None:
                return None
            node = node.children.get(token)
        return node

    def count(self, tokens: Sequence[int]) -> float:
        """How often these tokens (1 to `depth`) were said, less what squeezing took."""
        node = self.find(tokens)
        return 0.0 if node is None else node.count

    def __len__(self) -> int:
        """Nodes held."""
        return self.size


class _Place(NamedTuple):
    """A node found below the query, in the prompt's trie or the answers' or both. parent: an index, -1 the query."""

    token: int
    parent: int
    depth: int
    rank: float  # the mixed count


class _Request:
    def __init__(self, trie: Trie | None) -> None:
        self.prompt = trie
        self.tail: list[int] = []  # the last tokens said, oldest first
        self.waiting: list[int] = []  # the answer's tokens whose branches are not yet complete


Mode = Literal["hier", "par", "one"]
Source = Literal["mix", "input", "output"]


class TrieDraft:
    """Drafts the branches that followed the last tokens most often.

    nodes: S, drafted at most. branch: deepest draft. query: the longest suffix that is looked up; shorter ones follow
    while the draft has fewer than `branch` nodes. mode: "hier", a tree with shared prefixes; "par", the same branches
    side by side, nothing shared; "one", the most frequent branch. source: "input" looks into the prompt, "output"
    into answers, "mix" into both. stop_words: tokens too common to be looked up alone.
    max_nodes: bound on a first token's tree in the trie of answers (the authors' default of 512 is tiny: 16 S here).
    max_visited: bound on the nodes looked at in one retrieval.
    """

    needs_hidden: ClassVar[bool] = False

    def __init__(self, nodes: int = 64, branch: int = 12, query: int = 2, mode: Mode = "hier", source: Source = "mix",
                 stop_words: Collection[int] = (), max_nodes: int | None = None, max_visited: int = 4096) -> None:
        if mode not in ("hier", "par", "one") or source not in ("mix", "input", "output"):
            raise SegueError(f"trie mode '{mode}' with source '{source}' is unknown: choose hier, par or one, and mix, "
                             "input or output")
        if min(nodes, branch, query) < 1:
            raise SegueError("a trie draft needs at least one node, a branch of one and a query of one token")
        self.nodes, self.branch, self.query = nodes, branch, query
        self.mode, self.source, self.stop_words = mode, source, frozenset(stop_words)
        self.max_visited = max_visited
        # A one-token query must still leave `branch` tokens below it, a longer one too.
        self.depth = branch + query
        self.answers = Trie(self.depth, max_nodes or 16 * nodes)
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
            # A place is counted once its whole branch is known; the tails are counted at the end.
            waiting = request.waiting
            waiting.extend(tokens)
            complete = len(waiting) - self.depth + 1
            if complete > 0:
                self.answers.insert(waiting, 0, complete)
                del waiting[:complete]

    def warm(self, answers: Sequence[Sequence[int]]) -> None:
        """Count answers given earlier."""
        for tokens in answers:
            self.answers.insert(list(tokens), 0, len(tokens))

    def forget(self, row: int) -> None:
        request = self._requests.pop(row, None)
        if request is not None and request.waiting:
            self.answers.insert(request.waiting, 0, len(request.waiting))

    def propose(self, tips: Sequence[Tip]) -> list[Tree]:
        return [self._retrieve(tip) for tip in tips]

    def _retrieve(self, tip: Tip) -> Tree:
        request = self._requests.get(tip.row)
        nodes, branch = min(self.nodes, tip.nodes), min(self.branch, tip.depth)
        if request is None or nodes < 1 or branch < 1:
            return NOTHING
        best: list[_Place] = []
        for length in range(len(request.tail), 0, -1):
            query = request.tail[-length:]
            if length == 1 and query[0] in self.stop_words:
                continue
            prompt = request.prompt.find(query) if request.prompt is not None else None
            answer = self.answers.find(query) if self.source != "input" else None
            found = self._best(prompt, answer, nodes, branch)
            if len(found) > len(best):
                best = found
            if len(best) >= branch:
                break
        return self._lay_out(best, nodes) if best else NOTHING

    def _best(self, prompt: Node | None, answer: Node | None, nodes: int, branch: int) -> list[_Place]:
        """The likeliest nodes below a place, parents before children, with `parent` as an index into the list.

        A count never exceeds its parent's, so taking the best of a frontier again and again yields the best of all
        without visiting the rest. Half of the draft is kept for the best by answers, then filled by the mixed count.
        """
        if self.mode == "one":
            return self._follow(prompt, answer, min(nodes, branch))
        chosen: list[_Place] = []
        known: dict[tuple[int, int], int] = {}  # (parent, token) -> index in chosen
        if prompt is not None and answer is not None:
            self._take(chosen, known, None, answer, nodes // 2, branch)
        self._take(chosen, known, prompt, answer, nodes, branch)
        return chosen

    def _take(self, chosen: list[_Place], known: dict[tuple[int, int], int], prompt: Node | None, answer: Node | None,
              limit: int, branch: int) -> None:
        """Take the best below a place into `chosen` until it holds `limit`."""
        heap: list[tuple[float, int, int, int, Node | None, Node | None]] = []
        age = 0  # breaks ties: first come, first served
        parent, depth = -1, 0
        while True:
            if depth < branch and age < self.max_visited:
                below = prompt.children if prompt is not None else {}
                beside = answer.children if answer is not None else {}
                for token, x in below.items():
                    y = beside.get(token)
                    rank = INPUT_WEIGHT * x.count + (OUTPUT_WEIGHT * y.count if y is not None else 0.0)
                    age += 1
                    heappush(heap, (-rank, age, token, parent, x, y))
                for token, y in beside.items():
                    if token not in below:
                        age += 1
                        heappush(heap, (-OUTPUT_WEIGHT * y.count, age, token, parent, None, y))
            if not heap or len(chosen) >= limit:
                return
            negative, _, token, parent, prompt, answer = heappop(heap)
            depth = 1 if parent < 0 else chosen[parent].depth + 1
            place = known.get((parent, token))
            if place is None:
                place = known[parent, token] = len(chosen)
                chosen.append(_Place(token, parent, depth, -negative))
            parent = place

    def _follow(self, prompt: Node | None, answer: Node | None, length: int) -> list[_Place]:
        chosen: list[_Place] = []
        while len(chosen) < length:
            below: dict[int, float] = {}
            for node, weight in ((prompt, INPUT_WEIGHT), (answer, OUTPUT_WEIGHT)):
                for token, child in node.children.items() if node is not None else ():
                    below[token] = below.get(token, 0.0) + weight * child.count
            if not below:
                break
            token = max(below, key=below.__getitem__)
            prompt = prompt.children.get(token) if prompt is not None else None
            answer = answer.children.get(token) if answer is not None else None
            chosen.append(_Place(token, len(chosen) - 1, len(chosen) + 1, below[token]))
        return chosen

    def _lay_out(self, found: list[_Place], nodes: int) -> Tree:
        """As a tree in the order found, or its branches side by side, best first, while they fit."""
        if self.mode != "par":
            return Tree([node.token for node in found], [node.parent for node in found])
        inner = {node.parent for node in found}
        leaves = [(-node.rank, place) for place, node in enumerate(found) if place not in inner]
        heapify(leaves)
        tokens: list[int] = []
        parents: list[int] = []
        while leaves and len(tokens) < nodes:
            place = heappop(leaves)[1]
            branch = []
            while place >= 0:
                branch.append(found[place].token)
                place = found[place].parent
            for depth, token in enumerate(branch[::-1][: nodes - len(tokens)]):
                parents.append(len(tokens) - 1 if depth else -1)
                tokens.append(token)
        return Tree(tokens, parents)
