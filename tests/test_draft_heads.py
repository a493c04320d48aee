"""Draft heads: what they start as, what they learn, and that no weights of theirs change a token."""

from __future__ import annotations

import itertools
import queue
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from weights import amplify, shake

from segue.decoding import Cost, generate
from segue.decoding.draft.base import Tip, Tree
from segue.decoding.draft.heads import HeadsDraft, build_tree, count_ranks, default_tree
from segue.decoding.draft.lookup import PromptLookup
from segue.decoding.draft.merged import MergedDrafters
from segue.errors import SegueError
from segue.kernels.cpu.cache import is_warm
from segue.models.compiled_heads import CompiledHeads
from segue.models.heads import DraftHeads, HeadsConfig, TabulatedHeads
from segue.models.stack import Stack, StackConfig
from segue.objectives import Batch, DraftHeadsLoss
from segue.objectives.draft_heads import initialise_linear, lookahead_targets
from segue.serving.engine import AnswerUpdate, Engine, Request
from segue.testing.decoding import check_tree
from segue.testing.learning import check_objective
from segue.training.learn import learn

VOCABULARY = 11
KINDS: dict[str, dict[str, Any]] = {
    "medusa": {"sequential": False, "layers": 2}, "hydra": {"layers": 2}, "hydra++": {"layers": 3, "window": 6}}
TREE = ((0,), (0, 0), (1,), (0, 1), (0, 0, 2), (2,), (1, 0), (0, 0, 0))


def base(mixers: str = "attention", dtype: torch.dtype = torch.float64, seed: int = 0) -> Stack:
    torch.manual_seed(seed)
    model = Stack(StackConfig(VOCABULARY, 16, mixers.split("+"))).to(dtype).eval()
    amplify(model, 2.5)
    return model


def wild(model: Stack, kind: str, seed: int = 0, **choices: Any) -> DraftHeads:
    """Heads with weights that nobody trained."""
    heads = DraftHeads.for_base(model, heads=3, **(KINDS[kind] | choices))
    torch.manual_seed(seed)
    shake(heads, 0.2)
    return heads


def prompts(seed: int = 0) -> list[list[int]]:
    random = np.random.default_rng(seed)
    return [random.integers(1, VOCABULARY, length).tolist() for length in (3, 9, 1, 5)]


def naive_draft(model: Stack, heads: DraftHeads, text: list[int], paths: Any) -> list[int]:
    """The tokens of a tree after `text`, each path computed alone from the beginning."""
    with torch.no_grad():
        hidden = model(torch.tensor([text])).hidden[:, :-1]  # the last token has not been read when a draft is made
        condition = heads.condition(hidden)[0, -1]
        tokens = []
        for path in paths:
            said = [text[-1]]
            for k, rank in enumerate(path, 1):
                scores = heads.logits(k, condition, torch.tensor(said))
                said.append(int(scores.argsort(descending=True)[rank]))
            tokens.append(said[-1])
    return tokens


class Watched(HeadsDraft):
    """Keeps every draft with the text that it follows."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.texts: dict[int, list[int]] = {}
        self.drafts: list[tuple[list[int], Tip, Tree]] = []

    def observe(self, row: int, tokens: Any, prompt: bool = False) -> None:
        super().observe(row, tokens, prompt)
        self.texts.setdefault(row, []).extend(tokens)

    def propose(self, tips: Any) -> list[Tree]:
        trees = super().propose(tips)
        assert [tree.tokens for tree in super().propose(tips)] == [tree.tokens for tree in trees]  # asked twice
        self.drafts += [(list(self.texts[tip.row]), tip, tree) for tip, tree in zip(tips, trees)]
        return trees


class Moody(Cost):
    """Another draft size every pass, zero included."""

    def budget(self) -> int:
        return (8, 0, 3, 1, 0, 0, 5)[self.passes % 7]


@pytest.mark.parametrize("kind", KINDS)
def test_untrained_heads_repeat_the_base(kind: str) -> None:
    model = base()
    output = model(torch.arange(8)[None])
    heads = DraftHeads.for_base(model, **KINDS[kind])
    for k in range(1, 5):
        actual = heads.logits(k, heads.condition(output.hidden), torch.ones(1, 8, k).long())
        torch.testing.assert_close(actual, output.logits)


@pytest.mark.parametrize("enough_data", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_heads_start_as_the_least_squares_map(kind: str, enough_data: bool) -> None:
    """Also where there are fewer kinds of tokens than channels, or than tokens to fit."""
    model = base()
    text = torch.randint(VOCABULARY, (40, 21)) if enough_data else torch.randint(4, (2, 9))
    batch = Batch(text[:, :-1], text[:, 1:], None, {"hidden": model(text[:, :-1]).hidden.detach()})
    heads = DraftHeads.for_base(model, heads=3, **KINDS[kind])
    initialise_linear(heads, batch, ridge=1e-6)
    hidden_at, following, _ = lookahead_targets(batch, 3)
    hidden = batch.channels["hidden"]
    length = hidden_at.shape[1]
    for k in (1, 2, 3):
        z = hidden[:, :length]
        if heads.config.sequential:
            z = torch.cat([z, model.embedding(following[:, :, :k]).flatten(2)], -1)
        expected = hidden[:, k : k + length].flatten(0, 1)
        nearest = torch.linalg.lstsq(z.flatten(0, 1), expected, driver="gelsd").solution
        scores = heads.logits(k, heads.condition(hidden[:, :length]), following[:, :, :k]).flatten(0, 1)
        torch.testing.assert_close(scores, model.head(z.flatten(0, 1) @ nearest), atol=0.01, rtol=0.01)
    before = {name: tensor.clone() for name, tensor in heads.state_dict().items()}
    initialise_linear(heads, Batch(text[:, :3], text[:, 1:4], None, {"hidden": hidden[:, :3]}))  # none is so long
    assert all(torch.equal(tensor, before[name]) for name, tensor in heads.state_dict().items())


def test_hydra_without_token_weights_equals_medusa() -> None:
    model = base()
    medusa, hydra = wild(model, "medusa"), wild(model, "hydra", seed=1)
    with torch.no_grad():
        for medusa_head, hydra_head in zip(medusa.heads, hydra.heads):
            hydra_head.skip.weight.zero_()
            hydra_head.skip.weight[:, :16] = torch.eye(16)
            hydra_head.blocks[0].weight.zero_()
            hydra_head.blocks[0].weight[:, :16] = medusa_head.blocks[0].weight
            hydra_head.blocks[0].bias[:] = medusa_head.blocks[0].bias
            hydra_head.blocks[1].load_state_dict(medusa_head.blocks[1].state_dict())
            hydra_head.out.load_state_dict(medusa_head.out.state_dict())
    hidden = torch.randn(5, 16, dtype=torch.float64)
    for k in (1, 2, 3):
        tokens = torch.randint(VOCABULARY, (5, k))
        torch.testing.assert_close(hydra.logits(k, hidden, tokens), medusa.logits(k, hidden, tokens))


@pytest.mark.parametrize("layers", [1, 3])
def test_tabulated_heads_equal_multiplied_ones(layers: int) -> None:
    heads = wild(base(), "hydra", layers=layers)
    condition, tabulated = torch.randn(2, 1, 16, dtype=torch.float64), TabulatedHeads(heads)
    for k, begun in enumerate(tabulated.project_condition(condition), 1):
        tokens = torch.randint(VOCABULARY, (2, 5, k))
        torch.testing.assert_close(tabulated.logits(k, begun, tokens), heads.logits(k, condition, tokens))
    assert HeadsDraft(heads).quick is not None  # so the other tests draft with it
    assert not TabulatedHeads.is_worthwhile(HeadsConfig(50_000, 768), 4)
    assert not TabulatedHeads.is_worthwhile(HeadsConfig(11, 16, sequential=False), 4)


@pytest.mark.parametrize("tables", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_compiled_heads_equal_the_heads(kind: str, tables: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ragged rows, piece after piece; with float32 weights exactly, with bytes nearly."""
    worthwhile = staticmethod(lambda config, size: tables and config.sequential)
    monkeypatch.setattr(TabulatedHeads, "is_worthwhile", worthwhile)
    heads = wild(base(dtype=torch.float32), kind).eval()
    pieces = [torch.randn(2, n, 16) for n in (5, 1, 3)]
    tokens = torch.randint(VOCABULARY, (2, 4, 3))
    for weights, tolerance in (("float32", 1e-4), ("int8", 0.1)):
        fast, states = CompiledHeads(heads, weights), []
        if heads.config.window:
            states = [heads.init_state(2), fast.init_state(2)]
        with torch.inference_mode():
            for piece in pieces:
                expected, actual = (form.condition(piece, None, *states[at : at + 1])
                                    for at, form in enumerate((heads, fast)))
                assert float((expected - actual).norm() / expected.norm()) < tolerance
                for state in states:
                    state.commit(None, torch.tensor([piece.shape[1], piece.shape[1] - 1]))
                condition = expected[:, -1:]
                for k, begun in enumerate(fast.project_condition(condition), 1):
                    scores = heads.logits(k, condition.expand(2, 4, 16), tokens[..., :k])
                    results = fast.logits(k, begun, tokens[..., :k]).expand_as(scores)
                    assert float((scores - results).norm() / scores.norm()) < tolerance
    assert isinstance(HeadsDraft(heads).reader, CompiledHeads) == is_warm()


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_accepts_stored_hidden_vectors(kind: str) -> None:
    model, text = base(), torch.randint(VOCABULARY, (3, 9))
    batch = Batch(text[:, :-1], text[:, 1:])
    loss, heads = DraftHeadsLoss(model, distil=True), wild(model, kind)
    with_hidden = replace(batch, channels={"hidden": model(batch.tokens).hidden.detach()})
    torch.testing.assert_close(loss(heads, with_hidden).total, loss(heads, batch).total)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("distil", [False, True])
def test_the_loss_equals_a_sum_over_positions(kind: str, distil: bool) -> None:
    model = base("attention")
    heads = wild(model, kind)
    random = torch.Generator().manual_seed(0)
    documents = [torch.randint(VOCABULARY, (length,), generator=random) for length in (7, 3, 6)]
    # One packed row, as `Batches` makes it: each document without its last token, which is only a target.
    starts = torch.zeros(1, 15, dtype=torch.bool)
    starts[0, [6, 8, 13]] = True
    tokens = torch.cat([*(document[:-1] for document in documents), torch.zeros(2).long()])[None]
    targets = torch.cat([*(document[1:] for document in documents), torch.full((2,), -1)])[None]
    expected = 0.0
    for document in documents:
        output = model(document[None, :-1])
        condition = heads.condition(output.hidden)[0]
        for k in (1, 2, 3):
            for t in range(len(document) - 1 - k):
                scores = heads.logits(k, condition[t], document[t + 1 : t + 1 + k]).log_softmax(-1)
                target = output.logits[0, t + k].softmax(-1) if distil else \
                    F.one_hot(document[t + 1 + k], VOCABULARY)
                expected += 0.8**k * -float((target * scores).sum().detach())
    loss = DraftHeadsLoss(model, distil=distil)(heads, Batch(tokens, targets, starts))
    assert float(loss.total.detach()) == pytest.approx(expected, rel=1e-5)
    assert loss.count == 13
    check_objective(DraftHeadsLoss(model, distil=distil), lambda: wild(model, kind))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mixers", ["attention", "gru", "mamba+attention+gru"])
def test_draft_heads_change_no_token(mixers: str, kind: str) -> None:
    """Greedy and sampled, ragged rows, drafts switched on and off; and every draft is the naive one."""
    emitted = 0
    for seed, options in enumerate(({}, {"decoder": "sample", "temperature": 0.8, "repetition_penalty": 1.1})):
        model = base(mixers, seed=seed)
        heads = wild(model, kind, seed)
        eos = 0 if options else None
        undrafted = generate(model, prompts(seed), 24, seed=seed, eos=eos, **options)  # type: ignore[arg-type]
        for cost in (Cost(sizes=(8,), fixed=True), Moody(sizes=(0, 8))):
            drafter = Watched(heads, TREE)
            drafted = generate(model, prompts(seed), 24, draft=drafter, seed=seed, eos=eos, cost=cost,
                               **options)  # type: ignore[arg-type]
            assert [(a.tokens, a.finish) for a in undrafted] == [(a.tokens, a.finish) for a in drafted]
            assert not drafter._seen  # nothing stays of requests that have ended
            emitted += sum(answer.produced for answer in drafted)
            for text, tip, tree in drafter.drafts[::5]:
                check_tree(tree, tip, VOCABULARY)
                paths = [path for path in TREE[: tip.nodes] if len(path) <= tip.depth]
                assert tree.tokens == naive_draft(model, heads, text, paths)
    assert emitted > 100


def test_node_scores_equal_path_scores() -> None:
    model = base("mamba+attention+gru")
    drafter = HeadsDraft(wild(model, "hydra++"), TREE)
    text = prompts()[1]
    drafter.observe(0, text)
    state = model.init_state(1)
    with torch.inference_mode():
        hidden = model.extend(torch.tensor([text[:-1]]), state).hidden[0]
        state.commit()
        tree = drafter.propose([Tip(0, 8, 3, hidden)])[0]
        assert len(tree) == len(TREE)
        output = model.extend(torch.tensor([[text[-1], *tree.tokens]]), state.snapshot(),
                              torch.tensor([[-1, *(parent + 1 for parent in tree.parents)]]))
        for node in range(len(tree)):
            path = [tree.tokens[step] for step in tree.path(node)]
            single = model(torch.tensor([[*text, *path]])).logits[0, -1]
            torch.testing.assert_close(output.logits[0, node + 1], single)


def test_heads_draft_together_with_others() -> None:
    model = base("gru")
    undrafted = generate(model, prompts(), 20, eos=0)
    both = MergedDrafters([HeadsDraft(wild(model, "hydra++"), TREE), PromptLookup()])
    assert both.needs_hidden
    drafted = generate(model, prompts(), 20, eos=0, draft=both, cost=Moody(sizes=(0, 8)))
    assert [answer.tokens for answer in undrafted] == [answer.tokens for answer in drafted]


@pytest.mark.parametrize("kind", ["hydra", "hydra++"])
def test_requests_joining_a_batch_have_their_own_drafts(kind: str) -> None:
    model = base("attention+gru")
    heads = wild(model, kind)
    drafter = Watched(heads, TREE)
    engine = Engine(model, rows=3, piece=4, draft=drafter)
    updates: queue.Queue[tuple[int, AnswerUpdate]] = queue.Queue()
    answers: dict[int, list[int]] = {}
    try:
        for number in range(5):
            request = Request(prompts(number)[number % 4], 6 + 5 * (number % 3))
            engine.submit(request, lambda news, number=number: updates.put((number, news)))
        running = 5
        while running:
            number, news = updates.get(timeout=60)
            assert news.error is None
            answers.setdefault(number, []).extend(news.tokens)
            running -= news.finish is not None
    finally:
        engine.close()
    for number, tokens in answers.items():
        assert tokens == generate(model, [prompts(number)[number % 4]], 6 + 5 * (number % 3))[0].tokens
    assert len({len(text) for text, _, _ in drafter.drafts}) > 5 and not drafter._seen
    for text, tip, tree in drafter.drafts:
        paths = [path for path in TREE[: tip.nodes] if len(path) <= tip.depth]
        assert tree.tokens == naive_draft(model, heads, text, paths)


def test_a_tree_holds_the_likeliest_paths() -> None:
    chances = np.random.default_rng(0).random((3, 4)) * 0.5
    every = [path for size in (1, 2, 3) for path in itertools.product(range(4), repeat=size)]
    product = {path: np.prod([chances[depth, rank] for depth, rank in enumerate(path)]) for path in every}
    best = sorted(every, key=lambda path: -product[path])
    for nodes in (1, 5, 30):
        assert build_tree(chances, nodes) == tuple(best[:nodes])
    assert build_tree(np.zeros((2, 3)), 5) == ((0,),)  # heads that are never right: the least there is
    tree = default_tree(4)
    assert len(tree) == 63 and max(map(len, tree)) == 4
    with pytest.raises(SegueError, match="after its parent"):
        HeadsDraft(wild(base(), "medusa"), [(0, 1), (0,)])
    with pytest.raises(SegueError, match="native model"):
        DraftHeads.for_base(base().blocks[0])


def test_trained_heads_draft_the_bases_own_text() -> None:
    """On the base's own text heads of each sort improve, the base stays unchanged, and a tree by counts saves
    passes."""
    model = base("gru", torch.float32, seed=3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    starts = [[i, j] for i in range(VOCABULARY) for j in (1, 2, 3)]
    texts = [start + answer.tokens for start, answer in zip(starts, generate(model, starts, 30))]
    text = torch.tensor(texts)
    batch = Batch(text[:, :-1], text[:, 1:])
    for kind in KINDS:
        torch.manual_seed(0)
        heads = DraftHeads.for_base(model, heads=3, **KINDS[kind])
        hits = count_ranks(heads, model, batch)[0]
        learn(heads, lambda step: batch, 40, rate=3e-3, objective=DraftHeadsLoss(model, distil=kind == "hydra++"))
        after, trials = count_ranks(heads, model, batch)
        assert trials.tolist() == [len(texts) * (31 - k) for k in (1, 2, 3)]
        assert after.sum() <= trials.sum() and after[:, 0].sum() > hits[:, 0].sum()
        drafter = HeadsDraft(heads, build_tree(after / trials[:, None], 12))
        answers = generate(model, starts[:4], 30, draft=drafter, adaptive=False)
        assert [answer.tokens for answer in answers] == [row[2:] for row in texts[:4]]
        assert sum(answer.passes for answer in answers) < 0.7 * sum(answer.produced for answer in answers)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
