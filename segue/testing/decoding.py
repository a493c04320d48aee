"""Checkers of the decoding contracts: `check_drafter`, `check_acceptor`, `check_search`; and the small exact model and
the hostile drafters they work with."""

from __future__ import annotations

import gc
import itertools
import tracemalloc
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from segue.decoding import generate
from segue.decoding.accept import Acceptor
from segue.decoding.draft import Drafter, Tip, Tree
from segue.decoding.sampling import Prefix, Sampling, log_softmax
from segue.decoding.search.base import Options
from segue.models.base import Decoding, Output
from segue.models.counts import TokenState
from segue.testing.contract import ContractBroken


class TableModel:
    """A model whose next token depends on the last two through a random table: float64, exact, the same for a chain
    and a tree. Satisfies `Decodable`; every pass is counted in `passes`.

    sharpness: deviation of the scores; large makes the likeliest token stand out.
    """

    path = "table float64"

    def __init__(self, vocabulary: int = 7, seed: int = 0, sharpness: float = 2.0) -> None:
        self.vocabulary, self.passes = vocabulary, 0
        shape = (vocabulary + 1, vocabulary + 1, vocabulary)  # the extra entry stands for nothing said yet
        self.table = torch.from_numpy(np.random.default_rng(seed).normal(0, sharpness, shape))

    def init_state(self, batch: int, history: int = 0) -> TableState:
        return TableState(torch.full((batch, 2), self.vocabulary), torch.zeros(batch, dtype=torch.long), history)

    def extend(self, tokens: Tensor, state: Decoding, parents: Tensor | None = None,
               at: Tensor | None = None) -> Output:
        assert isinstance(state, TableState)
        self.passes += 1
        batch, n = tokens.shape
        if parents is None:
            parents = torch.arange(-1, n - 1).expand(batch, n)
        elif bool((parents >= torch.arange(n)).any()):
            raise ContractBroken(f"a node follows a later one: parents {parents.tolist()}")
        if bool((tokens < 0).any() or (tokens >= self.vocabulary).any()):
            raise ContractBroken(f"tokens outside the vocabulary: {tokens.tolist()}")
        rows = torch.arange(batch)
        # (B, N + 1, 2): the two tokens that each node's successor depends on; the last slot is the state's end.
        context = torch.cat([torch.zeros(batch, n, 2, dtype=torch.long), state.context[:, None]], 1)
        for node in range(n):
            context[:, node, 0] = context[rows, parents[:, node], 1]
            context[:, node, 1] = tokens[:, node]
        state.pending = (context, n)
        logits = self.table[context[:, :n, 0], context[:, :n, 1]]
        if at is not None:
            logits = logits.gather(1, at[..., None].expand(-1, -1, self.vocabulary))
        return Output(logits, logits.new_zeros(batch, n, 1))

    def answer(self, prompt: Sequence[int], tokens: Sequence[int]) -> np.ndarray:
        """(len(tokens), V) log-probabilities of what follows the prompt and each part of the answer."""
        said = [self.vocabulary, self.vocabulary, *prompt, *tokens]
        start = len(prompt) + 2
        return log_softmax(np.stack([self.table[said[i - 2], said[i - 1]].numpy()
                                     for i in range(start, start + len(tokens))]))


class Reread:
    """The reference of every decoder: a model with no memory but the tokens. Whatever is asked, all of that path is
    read again from its first token, in the training form. Satisfies `Decodable`.

    read: tokens (T,) long -> the plain forward over them, (1, T, ...).
    """

    path = "everything read again"

    def __init__(self, read: Callable[[Tensor], Output], vocabulary: int, longest: int = 1024) -> None:
        self.vocabulary, self.longest = vocabulary, longest
        self.read = lru_cache(maxsize=4096)(lambda tokens: read(torch.tensor(tokens)))

    def init_state(self, batch: int, history: int = 0) -> TokenState:
        return TokenState.fresh(batch, self.longest, history)

    def extend(self, tokens: Tensor, state: Decoding, parents: Tensor | None = None,
               at: Tensor | None = None) -> Output:
        assert isinstance(state, TokenState)
        n = tokens.shape[1]
        above = torch.arange(-1, n - 1).expand(tokens.shape) if parents is None else parents
        logits: list[Tensor] = []
        hidden: list[Tensor] = []
        for said, filled, row, parent in zip(state.past, state.filled, tokens.tolist(), above.tolist()):
            before, found = said[len(said) - filled :].tolist(), list[tuple[Tensor, Tensor]]([None] * n)  # type: ignore[list-item]
            for leaf in set(range(n)) - set(parent):
                path = [leaf]
                while parent[path[-1]] >= 0:
                    path.append(parent[path[-1]])
                out = self.read((*before, *(row[node] for node in path[::-1])))
                for place, node in enumerate(path[::-1], len(before)):
                    found[node] = out.logits[0, place], out.hidden[0, place]
            for into, values in zip((logits, hidden), zip(*found)):
                into.append(torch.stack(values))
        state.pending = tokens.numpy(), None if parents is None else parents.numpy()
        every = torch.stack(logits)
        if at is not None:
            every = every.gather(1, at[..., None].expand(-1, -1, self.vocabulary))
        return Output(every, torch.stack(hidden))


class TableState:
    def __init__(self, context: Tensor, positions: Tensor, history: int) -> None:
        self.context, self.positions, self.history = context, positions, history
        self.past: list[list[Tensor]] = [[] for _ in positions]  # of each row, the contexts it can go back to
        self.pending: tuple[Tensor, int] | None = None

    @property
    def batch(self) -> int:
        return len(self.positions)

    def commit(self, path: Tensor | None = None, counts: Tensor | None = None) -> None:
        if self.pending is None:
            raise ContractBroken("commit without extend")
        context, n = self.pending
        if path is not None:
            counts = (path >= 0).sum(1)
            last = path.gather(1, (counts - 1).clamp(min=0)[:, None])[:, 0]
        else:
            counts = torch.full((self.batch,), n) if counts is None else counts
            last = counts - 1
        for row, (past, count) in enumerate(zip(self.past, counts.tolist())):
            if self.history and count:
                nodes = [n, *(range(count) if path is None else path[row, :count].tolist())]
                past += [context[row, node] for node in nodes[:-1]]
                del past[: -self.history]
        self.context = context[torch.arange(self.batch), torch.where(counts > 0, last, n)]
        self.positions, self.pending = self.positions + counts, None

    def select(self, rows: Tensor) -> TableState:
        chosen = TableState(self.context[rows], self.positions[rows], self.history)
        chosen.past = [list(self.past[row]) for row in rows.tolist()]
        return chosen

    def join(self, others: Sequence[TableState]) -> TableState:
        joined = TableState(torch.cat([self.context, *(other.context for other in others)]),
                            torch.cat([self.positions, *(other.positions for other in others)]), self.history)
        joined.past = [list(past) for part in (self, *others) for past in part.past]
        return joined

    def rewind(self, n: int | Tensor) -> None:
        back = torch.as_tensor(n).expand(self.batch)
        if any(count > len(past) for count, past in zip(back.tolist(), self.past)):
            raise ContractBroken(f"{back.tolist()} tokens back with a history of {self.history}")
        for row, (count, past) in enumerate(zip(back.tolist(), self.past)):
            if count:
                self.context[row] = past[-count]
                del past[-count:]
        self.positions, self.pending = self.positions - back, None

    def snapshot(self) -> TableState:
        return self.select(torch.arange(self.batch))

    def restore(self, snapshot: Decoding) -> None:
        assert isinstance(snapshot, TableState)
        self.context, self.positions, self.pending = snapshot.context.clone(), snapshot.positions, None
        self.past = [list(past) for past in snapshot.past]


class WildDraft:
    """Proposes random trees: duplicates, dead ends, deep chains, empty ones.

    truth: answers by row in order of appearance; with probability `honest` a node carries on the truth instead.
    """

    needs_hidden: ClassVar[bool] = False

    def __init__(self, vocabulary: int, seed: int = 0, nodes: int = 12, truth: Sequence[Sequence[int]] = (),
                 honest: float = 0.7) -> None:
        self.vocabulary, self.nodes, self.truth, self.honest = vocabulary, nodes, truth, honest
        self.random = np.random.default_rng(seed)
        self.said: dict[int, int] = {}
        self.order: dict[int, int] = {}

    def observe(self, row: int, tokens: Sequence[int], prompt: bool = False) -> None:
        self.order.setdefault(row, len(self.order))
        self.said[row] = self.said.get(row, 0) + (0 if prompt else len(tokens))

    def propose(self, tips: Sequence[Tip]) -> list[Tree]:
        return [self._wild(tip) for tip in tips]

    def _wild(self, tip: Tip) -> Tree:
        order = self.order[tip.row]
        ahead = list(self.truth[order][self.said[tip.row] :]) if order < len(self.truth) else []
        tree = Tree()
        depths: list[int] = []
        true: dict[int, int] = {-1: 0}  # nodes on the true path, by node: how far along
        for _ in range(int(self.random.integers(0, min(self.nodes, tip.nodes) + 1))):
            spot = max(true) if true and self.random.random() < self.honest else \
                int(self.random.integers(-1, len(tree.tokens)))
            depth = 1 if spot < 0 else depths[spot] + 1
            if depth > tip.depth:
                continue
            token = int(self.random.integers(self.vocabulary))
            if spot in true and true[spot] < len(ahead) and self.random.random() < self.honest:
                token = ahead[true[spot]]
                true[len(tree.tokens)] = true[spot] + 1
            tree.tokens.append(token)
            tree.parents.append(spot)
            depths.append(depth)
        return tree

    def forget(self, row: int) -> None:
        self.said.pop(row, None)


class DiceDraft:
    """Draws each node from a distribution of its own, always the same one, and says which (`Tree.q`)."""

    needs_hidden: ClassVar[bool] = False

    def __init__(self, vocabulary: int, seed: int = 0, shape: Sequence[int] = (-1, -1, 0, 0, 2)) -> None:
        self.vocabulary, self.shape = vocabulary, list(shape)
        self.random = np.random.default_rng(seed)
        self.q = self.random.dirichlet(np.ones(vocabulary), len(self.shape) + 1)

    def observe(self, row: int, tokens: Sequence[int], prompt: bool = False) -> None: ...

    def propose(self, tips: Sequence[Tip]) -> list[Tree]:
        trees = []
        for _ in tips:
            tokens = [int(self.random.choice(self.vocabulary, p=self.q[parent + 1])) for parent in self.shape]
            trees.append(Tree(tokens, list(self.shape), self.q))
        return trees

    def forget(self, row: int) -> None: ...


class StubbornDraft(DiceDraft):
    """Proposes the same tree for ever, and picks it without chance. (Random drafts hide a biased acceptor: on average
    they favour no token.)"""

    def propose(self, tips: Sequence[Tip]) -> list[Tree]:
        return [Tree([1, 1, 3, 0], [-1, 0, -1, 2]) for _ in tips]


def broken(name: str, message: str) -> ContractBroken:
    return ContractBroken(f"{name}: {message}")


def check_tree(tree: Tree, tip: Tip, vocabulary: int, name: str = "draft") -> None:
    """A draft is well formed and keeps within its bounds."""
    if len(tree.tokens) != len(tree.parents):
        raise broken(name, f"{len(tree.tokens)} tokens with {len(tree.parents)} parents")
    if any(not -1 <= parent < node for node, parent in enumerate(tree.parents)):
        raise broken(name, f"parents must come before their children: {tree.parents}")
    if any(not 0 <= token < vocabulary for token in tree.tokens):
        raise broken(name, f"tokens outside the vocabulary of {vocabulary}: {tree.tokens}")
    if len(tree) > tip.nodes:
        raise broken(name, f"{len(tree)} nodes where {tip.nodes} were allowed")
    if max(tree.node_depths(), default=0) > tip.depth:
        raise broken(name, f"{max(tree.node_depths())} deep where {tip.depth} was allowed")
    if tree.q is not None:
        if tree.q.shape != (len(tree) + 1, vocabulary):
            raise broken(name, f"q has shape {tree.q.shape}, expected {(len(tree) + 1, vocabulary)}")
        used = tree.q[[parent + 1 for parent in tree.parents]]
        if not np.allclose(used.sum(1), 1) or (used < 0).any():
            raise broken(name, "the rows of q that are used must be distributions")
        if any(row[token] <= 0 for row, token in zip(used, tree.tokens)):
            raise broken(name, "a token was drawn that q rules out")


def check_drafter(make: Callable[[], Drafter], vocabulary: int = 11, seed: int = 0, memory: bool = True) -> None:
    """Check a drafter made by `make()`.

    Drafts are well formed and within bounds; the same history gives the same draft, asked once or twice; a request's
    prompt never shows up in another's draft, nor after `forget`, which gives its memory back; the text of decoding with
    it is the text without, in as few passes as tokens at most; its memory stays bounded on an endless stream (`memory`,
    some seconds).
    """
    name = type(make()).__name__
    random = np.random.default_rng(seed)
    motif = random.integers(0, vocabulary, 9).tolist()
    one, two = make(), make()
    if one.needs_hidden:
        raise broken(name, "this checker gives no hidden states: check a drafter that needs them inside its model")
    if len(one.propose([Tip(99, 8, 4)])[0]):
        raise broken(name, "it drafts for a request that said nothing")
    for turn in range(40):
        row = int(random.integers(3))
        tokens = (motif * 2)[turn % 5 : turn % 5 + 6] if turn % 2 else random.integers(0, vocabulary, 4).tolist()
        for drafter in (one, two):
            drafter.observe(row, tokens, prompt=turn < 6)
        tips = [Tip(asked, int(random.integers(1, 40)), int(random.integers(1, 9))) for asked in range(3)]
        first = one.propose(tips)
        if len(first) != len(tips):
            raise broken(name, f"{len(first)} drafts for {len(tips)} tips")
        for tip, tree in zip(tips, first):
            check_tree(tree, tip, vocabulary, name)
        for what, again in (("asked again", one.propose(tips)), ("with the same history", two.propose(tips))):
            if all(tree.q is None for tree in first) and [(tree.tokens, tree.parents) for tree in first] != [
                    (tree.tokens, tree.parents) for tree in again]:
                raise broken(name, f"it drafts differently {what}")
    _check_leaks(make, name)
    _check_forgets(make(), name, vocabulary, random)
    model = TableModel(vocabulary, seed, 3.0)
    prompts = [random.integers(0, vocabulary, length).tolist() for length in (1, 7, 3)]
    ways: list[dict[str, Any]] = [{}, {"decoder": "sample", "temperature": 0.5, "repetition_penalty": 1.1}]
    for options in ways:
        plain = generate(model, prompts, 60, seed=seed, eos=0, **options)
        model.passes = 0
        drafted = generate(model, prompts, 60, seed=seed, eos=0, draft=make(), adaptive=False, **options)
        if [answer.tokens for answer in plain] != [answer.tokens for answer in drafted]:
            raise broken(name, "the text with drafts differs from the text without")
        if model.passes > max(answer.produced for answer in drafted):
            raise broken(name, "more passes than tokens")
    if memory:
        _check_memory(make(), name, vocabulary, random)


def _check_leaks(make: Callable[[], Drafter], name: str) -> None:
    """A secret said in one prompt must not be drafted for another request, during or after."""
    drafter = make()
    secret = [7, 8, 9, 10]
    drafter.observe(0, [1, 2, *secret, 3, 1, 2, *secret, 3, 1, 2], prompt=True)
    drafter.observe(1, [5, 4, 1, 2], prompt=True)
    if set(drafter.propose([Tip(1, 32, 8)])[0].tokens) & set(secret):
        raise broken(name, "one request's prompt leaks into another's draft")
    drafter.observe(0, [4, 4, 6, 1, 2])
    drafter.forget(0)
    drafter.observe(2, [5, 4, 1, 2], prompt=True)
    for row in (1, 2):
        if set(drafter.propose([Tip(row, 32, 8)])[0].tokens) & set(secret):
            raise broken(name, "a prompt is remembered after its request has ended")
    if len(drafter.propose([Tip(0, 32, 8)])[0]):
        raise broken(name, "it drafts for a request that has ended")


def _check_forgets(drafter: Drafter, name: str, vocabulary: int, random: np.random.Generator) -> None:
    """What prompts took is given back when their requests have ended."""
    sizes, requests, length = [], 16, 200
    gc.disable()  # what is new stays in the youngest generation, which is collected fast
    tracemalloc.start()
    try:
        for row in range(2 * requests):
            drafter.observe(row, random.integers(0, vocabulary, length).tolist(), prompt=True)
            drafter.forget(row)
            if row % requests == requests - 1:
                gc.collect(0)
                sizes.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
        gc.enable()
    if (kept := (sizes[1] - sizes[0]) / requests / length) > 4:  # a list of ids takes 8 bytes for each
        raise broken(name, f"of requests that have ended it keeps {kept:.0f} bytes for each token of their prompts")


def _check_memory(drafter: Drafter, name: str, vocabulary: int, random: np.random.Generator) -> None:
    """A long stream, with other requests that come and go beside it."""
    tracemalloc.start()
    try:
        drafter.observe(0, [1], prompt=True)
        sizes = []
        for turn in range(4):
            for part in range(8):
                drafter.observe(0, random.integers(0, vocabulary, 500).tolist())
                row = 1 + 8 * turn + part
                drafter.observe(row, random.integers(0, vocabulary, 200).tolist(), prompt=True)
                drafter.observe(row, [2, 3])
                drafter.forget(row)
            sizes.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    # Whatever fills up does so at a falling pace; a leak grows as much in the last quarter as in the second.
    if sizes[3] - sizes[2] > 0.9 * (sizes[1] - sizes[0]) + 50_000 and sizes[3] > 8_000_000:
        raise broken(name, f"its memory keeps growing: {[f'{size / 1e6:.1f} MB' for size in sizes]}")


def chi_square(counts: np.ndarray, expected: np.ndarray) -> float:
    """How many deviations a chi-square statistic lies above its mean (Wilson and Hilferty): above 4 is no chance.

    Cells with few expected counts are pooled.
    """
    order = np.argsort(expected)
    pool = int(np.searchsorted(expected[order].cumsum(), 8.0)) + 1
    cells = [order[:pool], *[np.array([cell]) for cell in order[pool:]]]
    observed = np.array([counts[cell].sum() for cell in cells])
    wanted = np.array([expected[cell].sum() for cell in cells])
    freedom = max(len(cells) - 1, 1)
    statistic = float(((observed - wanted) ** 2 / np.maximum(wanted, 1e-9)).sum())
    return float(((statistic / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / np.sqrt(2 / (9 * freedom)))


def exact_answers(model: TableModel, prompt: Sequence[int], sampling: Sampling, length: int) -> np.ndarray:
    """(V,) * length, the exact probability of every answer of so many tokens."""
    found = np.ones((model.vocabulary,) * length)
    for at in range(length):
        for said in itertools.product(range(model.vocabulary), repeat=at):
            prefix = Prefix(prompt, model.vocabulary)
            for token in said:
                prefix.append(token)
            before = [model.vocabulary, model.vocabulary, *prefix.tokens][-2:]
            scores = model.table[before[0], before[1]].numpy().copy()
            chances = sampling.distribution(scores, prefix)
            found[said] *= chances.reshape(-1, *[1] * (length - at - 1))
    return found


def check_acceptor(acceptor: Acceptor, draws: int = 3000, seed: int = 0, vocabulary: int = 5) -> None:
    """Check that an acceptor is exact.

    It takes at least one token, along one path of the draft, each scored at the node before it, and stops where the
    answer ends; greedy text is that of plain decoding whatever is drafted; of sampled answers the first and the second,
    and the second and the third token follow the model's distribution (chi-square) with no draft, with picked drafts,
    with and without processors, and with drawn ones.
    """
    name = getattr(acceptor, "__name__", type(acceptor).__name__)
    checked = _Watched(acceptor, name)
    model = TableModel(vocabulary, seed, 1.0)
    prompts = [[1, 2], [3], [0, 4, 2]]
    greedy = generate(model, prompts, 40, eos=0, logprobs=True)
    for turn in range(4):
        for drafter in (WildDraft(vocabulary, turn, truth=[answer.tokens for answer in greedy]),
                        DiceDraft(vocabulary, turn)):
            drafted = generate(model, prompts, 40, eos=0, draft=drafter, acceptor=checked, adaptive=False,
                               logprobs=True)
            if [answer.tokens for answer in greedy] != [answer.tokens for answer in drafted]:
                raise broken(name, "greedy text changes with the draft")
            if [answer.logprobs for answer in greedy] != [answer.logprobs for answer in drafted]:
                raise broken(name, "it takes tokens with the scores of other nodes")
    plain: dict[str, Any] = {"temperature": 0.8}
    processed: dict[str, Any] = {"top_k": 3, "repetition_penalty": 1.5}
    for what, draft, options, count in (("no draft", None, plain, 1 + draws // 4),
                                        ("picked drafts", StubbornDraft(vocabulary), plain, draws),
                                        ("picked drafts", StubbornDraft(vocabulary), processed, draws),
                                        ("drawn drafts", DiceDraft(vocabulary, seed), processed, draws)):
        chances = exact_answers(model, prompts[0], Sampling(True, **options), 3)
        # Four tokens: the first comes without a draft, the last never from one, those between from two deep.
        answers = generate(model, [prompts[0]] * count, 4, "sample", draft, acceptor=checked, seed=seed,
                           adaptive=False, batch=1000, **options)
        for first, others in ((0, 2), (1, 0)):
            pairs = [vocabulary * answer.tokens[first] + answer.tokens[first + 1] for answer in answers]
            counts = np.bincount(pairs, minlength=vocabulary**2).astype(float)
            expected = count * chances.sum(others).ravel()
            if (counts[expected == 0] > 0).any():
                raise broken(name, f"with {what} and {options} it says what the processors rule out")
            if (score := chi_square(counts, expected)) > 4:
                raise broken(name, f"with {what} and {options} tokens {first + 1} and {first + 2} are not distributed "
                                   f"as the model's ({score:.1f} deviations)")


class _Watched:
    """An acceptor under observation."""

    def __init__(self, acceptor: Acceptor, name: str) -> None:
        self.acceptor, self.name = acceptor, name

    def __call__(self, tree: Tree, row: Any) -> int:
        taken: list[int] = []
        ended = False
        take = row.take

        def watched(token: int, node: int) -> bool:
            nonlocal ended
            if ended:
                raise broken(self.name, "it takes tokens after the end")
            taken.append(token)
            ended = take(token, node)
            return ended

        row.take = watched
        try:
            place = self.acceptor(tree, row)
        finally:
            del row.take
        path = [tree.tokens[node] for node in tree.path(place)]
        if not taken:
            raise broken(self.name, "it takes no token")
        if taken[: len(path)] != path or not (len(taken) == len(path) + 1 or (ended and len(taken) == len(path))):
            raise broken(self.name, f"it took {taken} but says its path holds {path}")
        return place


def check_search(make: Callable[[int], Options], exact: bool = True, seed: int = 0) -> None:
    """Check a search, made by `make(width)`.

    Answers are apart, best first, within n, hold no stop token, and their log-probabilities, token by token, are the
    model's; the same alone or beside other prompts. With `exact` (its score is the log-probability and its width the
    only thing that it leaves out) those that a width of everything finds are the best of all answers, in order; if
    these are several, a smaller width gives as many as it is wide.
    """
    name = type(make(2)).__name__
    model = TableModel(4, seed, 1.5)
    prompts = [[1, 2], [3], [1, 1, 2, 0]]
    n, stop = 4, 0
    several = dict.fromkeys(range(len(prompts)), False)  # whether all are asked for
    for width in (200, 3, 1):
        options = make(width)
        found = options.run(model, prompts, [n] * 3, Sampling(), frozenset([stop]))
        for number, (prompt, answers) in enumerate(zip(prompts, [each.answers for each in found])):
            alone = options.run(model, [prompt], [n], Sampling(), frozenset([stop]))
            if [answer.tokens for answer in alone[0].answers] != [answer.tokens for answer in answers]:
                raise broken(name, "an answer depends on the other prompts")
            if not answers:
                raise broken(name, "no answer")
            if len({(*answer.tokens, answer.stopped) for answer in answers}) < len(answers):
                raise broken(name, "the same answer twice")
            if any(a.score < b.score for a, b in zip(answers, answers[1:])):
                raise broken(name, "answers are not in order")
            for answer in answers:
                ending = [stop] if answer.stopped else []
                if len(answer.tokens) + len(ending) > n or stop in answer.tokens:
                    raise broken(name, f"answer {answer.tokens} goes beyond its end")
                said = [*answer.tokens, *ending]
                chances = [row[token] for row, token in zip(model.answer(prompt, said), said)]
                if abs(sum(chances) - answer.total) > 1e-9:
                    raise broken(name, f"answer {answer.tokens} has log-probability {sum(chances)}, not {answer.total}")
                if not np.allclose(chances[: len(answer.tokens)], answer.logprobs, atol=1e-9):
                    raise broken(name, f"the tokens of answer {answer.tokens} have log-probabilities {chances}, not "
                                       f"{answer.logprobs}")
            if exact and width == 200:
                several[number] = len(answers) > 1
                for place, (answer, best) in enumerate(zip(answers, sorted(_every(model, prompt, n, stop))[::-1]), 1):
                    if abs(answer.total - best) > 1e-9:
                        raise broken(name, f"with a width of everything it finds {answer.total:.6f} in place {place}, "
                                           f"the best there is {best:.6f}")
            elif several[number] and len(answers) < width:
                raise broken(name, f"with a width of {width} it gives {len(answers)} answers")


def _every(model: TableModel, prompt: list[int], n: int, stop: int) -> list[float]:
    """Log-probabilities of all answers: those that end with the stop token, and those of full length."""
    others = [token for token in range(model.vocabulary) if token != stop]
    answers = [[*said, stop] for length in range(n) for said in itertools.product(others, repeat=length)]
    answers += [list(said) for said in itertools.product(others, repeat=n)]
    return [float(sum(row[token] for row, token in zip(model.answer(prompt, said), said))) for said in answers]
