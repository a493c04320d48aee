"""Aggressive decoding: copying the source, blocks at once, the lenient acceptor, and the loss that teaches blocks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from weights import amplify

from segue.decoding import generate
from segue.decoding.accept import near_best
from segue.decoding.draft import BlockDraft, CachedBlockDraft, SourceCopy, Tip, Tree, TrieDraft
from segue.decoding.draft.base import chain_tree
from segue.decoding.generate import make_cost
from segue.mixers.layout import Layout
from segue.models import EncoderDecoder, EncoderDecoderConfig, Stack, StackConfig
from segue.models.base import Decoding, Output
from segue.objectives import Batch, MaskedElements
from segue.objectives.masked import glance, mask_block, masked_blocks, padding_starts, reveal_order, targets_in_place
from segue.testing import ContractBroken, check_acceptor, check_drafter
from segue.testing.decoding import TableModel

V, END, BEGIN, MASK = 12, 0, 12, 13  # what is said is below V
MIXERS = {"attention": ["attention"] * 2, "mamba": ["mamba"], "gru": ["gru"], "mixed": ["mamba", "attention", "gru"]}
BOTH_WAYS = {"attention": {"attention": {"causal": False}}, "bidirectional": {"bidirectional": {"mixer": "gru"}},
             "hydra": {"hydra": {"states": 8}}, "linformer": {"linformer": {"rank": 4, "length": 32}}}


def stack(mixers: Sequence[str], vocabulary: int = V + 1, seed: int = 0, **options: dict[str, object]) -> Stack:
    """Random weights, with scores far from uniform, in float64."""
    torch.manual_seed(seed)
    model = Stack(StackConfig(vocabulary, 16, list(mixers), options)).double()
    amplify(model, 2.5)
    return model.eval()


def reader(name: str = "attention", seed: int = 0) -> Stack:
    """A drafter of blocks: it looks both ways."""
    return stack([name], MASK + 1, seed, **BOTH_WAYS[name])


def prompts(seed: int, count: int = 4) -> list[list[int]]:
    draw = np.random.default_rng(seed)
    return [[*draw.integers(1, V, length).tolist(), BEGIN] for length in draw.integers(1, 14, count)]


# Copying the source


def copy_position(source: list[int], tokens: list[int]) -> int | None:
    """As the paper defines it: 0 at the beginning; else after the suffix of one, two or three tokens that occurs once.
    The beginning counts as a token of both."""
    source, tokens = [-1, *source], [-1, *tokens]
    for n in range(1, min(3, len(tokens)) + 1):
        ends = [end for end in range(n, len(source) + 1) if source[end - n : end] == tokens[-n:]]
        if not ends:
            return None
        if len(ends) == 1:
            return ends[0] - 1
    return None


@settings(max_examples=200, deadline=None)
@given(source=st.lists(st.integers(0, 5), min_size=1, max_size=20), tokens=st.lists(st.integers(0, 5), max_size=8),
       length=st.integers(1, 25), cut=st.integers(0, 8))
def test_source_copy_drafts_the_rest_of_the_source(source: list[int], tokens: list[int], length: int, cut: int) -> None:
    drafter = SourceCopy(separator=9, reach=0)
    drafter.observe(0, [*source, 9, *tokens[:cut]], prompt=True)
    drafter.observe(0, tokens[cut:])
    at = copy_position(source, tokens)
    assert drafter.propose([Tip(0, length, 25)])[0].tokens == ([] if at is None else source[at : at + length])


def nearest_position(source: list[int], tokens: list[int], reach: int) -> int:
    """Token by token: after the equal token nearest to the expected position, else by `copy_position`, else as if
    exchanged."""
    at = 0
    for count, token in enumerate(tokens, 1):
        candidates = [(abs(end - at - 1), end) for end in range(1, len(source) + 1)
                      if source[end - 1] == token and abs(end - at - 1) <= reach]
        results = min(candidates)[1] if candidates else copy_position(source, tokens[:count])
        at = min(at + 1, len(source)) if results is None else results
    return at


@settings(max_examples=200, deadline=None)
@given(source=st.lists(st.integers(0, 5), min_size=1, max_size=20), tokens=st.lists(st.integers(0, 5), max_size=8),
       reach=st.integers(1, 5), cut=st.integers(0, 8))
def test_source_copy_prefers_the_expected_position(source: list[int], tokens: list[int], reach: int, cut: int) -> None:
    drafter = SourceCopy(separator=9, reach=reach)
    drafter.observe(0, [*source, 9, *tokens[:cut]], prompt=True)
    drafter.observe(0, tokens[cut:])
    assert drafter.propose([Tip(0, 25, 25)])[0].tokens == source[nearest_position(source, tokens, reach) :]


def test_source_copy_needs_one_pass_per_edit() -> None:
    """Words are replaced, deleted or inserted, and the source has everything twice: by suffixes alone there would be no
    draft."""
    source = [1, 2, 3, 4, 5, 6, 7, 8] * 2
    for target in ([*source[:5], 9, *source[6:]], [*source[:5], *source[6:]], [*source[:5], 9, *source[5:]]):
        with_reach, without_reach = (generate(Script(17, target), [[*source, 99]], 20,
                                              draft=SourceCopy(99, reach=reach), eos=END,
                                              adaptive=False)[0] for reach in (8, 0))
        assert with_reach.tokens == without_reach.tokens == target and with_reach.passes <= 4 < without_reach.passes


def test_source_copy_stops_at_the_separator() -> None:
    unseparated, separated = SourceCopy(reach=0), SourceCopy(separator=3, reach=0)
    for drafter in (unseparated, separated):
        drafter.observe(0, [5, 6, 3, 7, 8], prompt=True)
    assert unseparated.propose([Tip(0, 9, 9)])[0].tokens == [5, 6, 3, 7, 8]
    assert separated.propose([Tip(0, 9, 9)])[0].tokens == []  # 8 is not in the source
    separated.observe(0, [5])
    assert separated.propose([Tip(0, 9, 9)])[0].tokens == [6]
    assert separated.propose([Tip(1, 9, 9)])[0].tokens == []  # nobody has asked
    check_drafter(SourceCopy)
    check_drafter(lambda: SourceCopy(separator=4, ngram=2, length=3), memory=False)


class Script(TableModel):
    """Generates the target whatever the tokens so far. One row."""

    def __init__(self, prompt: int, target: Sequence[int]) -> None:
        super().__init__(100)
        self.prompt, self.target = prompt, [*target, END, END]

    def extend(self, tokens: Tensor, state: Decoding, parents: Tensor | None = None,
               at: Tensor | None = None) -> Output:
        output = super().extend(tokens, state, parents, at)
        index = (torch.arange(tokens.shape[1])[None] if at is None else at) + int(state.positions) - self.prompt + 1
        index = index.clamp(0, len(self.target) - 1)
        output.logits = F.one_hot(torch.tensor(self.target)[index], self.vocabulary).double()
        return output


def passes(source: list[int], target: list[int]) -> tuple[int, int, int]:
    """Of the paper's loop after the first token: passes, those whose draft differs from the rest of the answer, those
    without a draft."""
    expected, tokens, count, short, single = [*target, END], [target[0]], 0, 0, 0
    while tokens[-1] != END:
        at = copy_position(source, tokens)
        draft = [] if at is None else source[at:]
        rest = expected[len(tokens) :]
        same = next((i for i, pair in enumerate(zip(draft, rest)) if pair[0] != pair[1]), min(len(draft), len(rest)))
        tokens += rest[: same + 1]
        count += 1
        single += not draft
        short += bool(draft) and tokens[-1] != END
    return count, short, single


@settings(max_examples=40, deadline=None)
@given(source=st.lists(st.integers(1, 30), min_size=1, max_size=30), data=st.data())
def test_passes_equal_the_papers_loop(source: list[int], data: st.DataObject) -> None:
    """One pass for a sentence without edits; one more for each draft that is not its rest, and each step without."""
    edits = data.draw(st.dictionaries(st.integers(0, len(source) - 1), st.integers(1, 40), max_size=4))
    target = [edits.get(at, token) for at, token in enumerate(source)]
    prompt = [*source, 99]
    answer = generate(Script(len(prompt), target), [prompt], len(target) + 1, draft=SourceCopy(99, reach=0), eos=END,
                      adaptive=False)[0]
    assert answer.tokens == target and answer.finish == "stop"
    count, short, single = passes(source, target)
    assert answer.passes - 1 == count <= 1 + short + single
    if target == source and len(set(source)) == len(source):
        assert answer.passes == 2


def test_long_sources_are_drafted_in_full() -> None:
    source = [*range(1, 99), *range(98, 0, -1)]
    answer = generate(Script(len(source) + 1, source), [[*source, 99]], 300, draft=SourceCopy(99), eos=END,
                      adaptive=False)[0]
    assert answer.passes == 2 and answer.drafted == len(source) - 1
    adaptive = generate(Script(len(source) + 1, source), [[*source, 99]], 300, draft=SourceCopy(99), eos=END)[0]
    assert adaptive.tokens == source and adaptive.passes <= 12  # some to measure, the rest in long pieces


def test_draft_sizes_include_fractions_of_the_largest() -> None:
    """Eight nodes with the confirmed token, and quarters of the largest."""
    assert make_cost(SourceCopy()).sizes == (0, 7, 16, 64, 256)
    assert make_cost(TrieDraft()).sizes == (0, 7, 16, 64) == make_cost(None).sizes
    assert make_cost(BlockDraft(reader(), 25)).sizes == (0, 6, 25)
    assert make_cost(SourceCopy(length=3)).sizes == (0, 1, 3)


# The same text on every mixer


@pytest.mark.parametrize("name", MIXERS)
def test_drafts_change_no_token(name: str) -> None:
    produced = 0
    for seed in range(2):
        model, chosen_prompts = stack(MIXERS[name], seed=seed), prompts(seed)
        greedy = generate(model, chosen_prompts, 20, eos=END)
        for drafter in (SourceCopy(BEGIN), BlockDraft(reader(seed=seed), 7), BlockDraft(reader("hydra", seed), 12)):
            for acceptor in ("walk", partial(near_best, tau=0.0), partial(near_best, beta=1))[: 3 - seed]:
                drafted = generate(model, chosen_prompts, 20, draft=drafter, acceptor=acceptor, eos=END, adaptive=False)
                assert [answer.tokens for answer in drafted] == [answer.tokens for answer in greedy], seed
                assert all(answer.passes <= answer.produced for answer in drafted)
                produced += sum(answer.produced for answer in drafted)
    assert produced > 300


@pytest.mark.parametrize("name", MIXERS)
def test_source_copy_works_on_an_encoder_decoder(name: str) -> None:
    torch.manual_seed(0)
    encoder = StackConfig(V, 16, ["attention"], {"attention": {"causal": False}})
    model = EncoderDecoder(EncoderDecoderConfig(encoder, StackConfig(V, 16, MIXERS[name]))).double().eval()
    amplify(model, 2.5)
    for chosen_prompts in (prompts(5, 2), [model.prompt([3, 4, 5, 6], [3])]):  # the latter begins an answer
        greedy = generate(model, chosen_prompts, 20, eos=END)
        drafters = (SourceCopy(model.begin), BlockDraft(reader(), 7))
        for drafter in drafters:
            drafted = generate(model, chosen_prompts, 20, draft=drafter, eos=END, adaptive=False)
            assert [answer.tokens for answer in drafted] == [answer.tokens for answer in greedy]
        named = generate(model, chosen_prompts, 20, draft="source", eos=END, adaptive=False)
        assert [answer.tokens for answer in named] == [answer.tokens for answer in greedy]


# Blocks


@pytest.mark.parametrize("name", BOTH_WAYS)
def test_block_drafts_equal_a_plain_pass(name: str) -> None:
    """Rows of any lengths together, and each as a plain pass over text and masks has it."""
    model = reader(name)
    drafter = BlockDraft(model, 5)
    texts = [prompt[:-1] for prompt in prompts(1, 6)]
    for row, text in enumerate(texts):
        drafter.observe(row, text[:2], prompt=True)
        drafter.observe(row, text[2:])
    drafts = drafter.propose([Tip(row, 4, 9) for row in range(6)])
    for text, draft in zip(texts, drafts):
        scores = model(torch.tensor([text + [MASK] * 5])).logits[0, len(text) :, :MASK]
        assert draft.tokens == scores.argmax(-1).tolist()[:4]


def test_the_block_drafter_keeps_the_contract() -> None:
    model = reader()
    model.head.register_forward_hook(lambda module, inputs, scores: scores - 1e3 * (torch.arange(MASK + 1) > 6))
    check_drafter(lambda: BlockDraft(model, 5), memory=False)  # the checker keeps 7 to 10 secret


def test_blocks_stay_within_learned_positions() -> None:
    drafter = BlockDraft(Stack(StackConfig(MASK + 1, 16, ["attention"], learned_positions=12)), 5)
    drafter.observe(0, [1] * 7, prompt=True)
    assert len(drafter.propose([Tip(0, 9, 9)])[0]) == 5
    drafter.observe(0, [1])
    assert len(drafter.propose([Tip(0, 9, 9)])[0]) == 0


class Blocks:
    """Drafts the blocks it was given, and records them."""

    needs_hidden = False

    def __init__(self, vocabulary: int, seed: int, length: int = 6) -> None:
        self.draw, self.vocabulary, self.length = np.random.default_rng(seed), vocabulary, length
        self.proposed: list[list[int]] = []

    def observe(self, row: int, tokens: Sequence[int], prompt: bool = False) -> None: ...

    def propose(self, tips: Sequence[Tip]) -> list[Tree]:
        self.proposed += [self.draw.integers(0, self.vocabulary, min(self.length, tip.depth)).tolist() for tip in tips]
        return [chain_tree(block) for block in self.proposed[-len(tips) :]]

    def forget(self, row: int) -> None: ...


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), beta=st.integers(1, 7), tau=st.floats(0, 6))
def test_the_near_best_acceptor_follows_the_paper(seed: int, beta: int, tau: float) -> None:
    """The walk by the paper's words: a drafted token stays if it is one of the best `beta` and at most `tau` below the
    best; the first that is not gives way to the best one, and ends the block; a whole block has one token more."""
    model, drafter = TableModel(7, seed), Blocks(7, seed)
    answer = generate(model, [[1, 2]], 30, draft=drafter, acceptor=partial(near_best, beta=beta, tau=tau),
                      adaptive=False)[0]
    tokens = [1, 2, answer.tokens[0]]
    for block in drafter.proposed:
        for token in [*block, None]:
            scores = model.table[tokens[-2], tokens[-1]].numpy()
            best = np.argsort(-scores)[:beta].tolist()
            if token is None or token not in best or (token != best[0] and scores[best[0]] - scores[token] >= tau):
                tokens.append(int(scores.argmax()))
                break
            tokens.append(token)
    if len(tokens) - 2 < 30:  # the last place had no room for a draft
        tokens.append(int(model.table[tokens[-2], tokens[-1]].argmax()))
    assert answer.tokens == tokens[2:]


def test_the_near_best_acceptor_at_extreme_options() -> None:
    model, drafter = TableModel(7, 0), Blocks(7, 1)
    answer = generate(model, [[1, 2]], 30, draft=drafter, acceptor=partial(near_best, beta=7, tau=math.inf),
                      adaptive=False)[0]
    ends = np.cumsum([1, *(len(block) + 1 for block in drafter.proposed)])
    assert [answer.tokens[start : end - 1] for start, end in zip(ends, ends[1:])] == drafter.proposed  # word for word
    check_acceptor(partial(near_best, tau=0.0), draws=400)
    with pytest.raises(ContractBroken, match="greedy text changes"):
        check_acceptor(near_best, draws=1)
    ruled_out = lambda scores, prefix: np.where(np.arange(7) == 3, -np.inf, scores)  # noqa: E731
    answer = generate(model, [[1, 2]], 30, draft=Blocks(7, 2), acceptor=partial(near_best, beta=7, tau=math.inf),
                      processors=(ruled_out,), adaptive=False)[0]
    assert 3 not in answer.tokens
    assert generate(model, [[1, 2]], 30, draft=Blocks(7, 1), acceptor="near-best")[0].produced == 30


@pytest.mark.parametrize("name", ["attention", "palm", "mamba"])
def test_cached_block_drafts_equal_a_plain_pass(name: str) -> None:
    """By a model that looks back: as a plain pass over text and masks has it, prompts read in any pieces."""
    model = stack([name], MASK + 1, 3)
    drafter = CachedBlockDraft(model, 5)
    texts = [(prompt, prompts(2, 6)[row][:3]) for row, prompt in enumerate(prompts(1, 6))]
    for row, (prompt, answer) in enumerate(texts):
        drafter.observe(row, prompt, prompt=True)
        drafter.observe(row, answer[:1])
    for count in range(1, 4):
        active = [row for row, (_, answer) in enumerate(texts) if len(answer) >= count]
        for row in active if count > 1 else []:
            drafter.observe(row, texts[row][1][count - 1 : count])
        for row, draft in zip(active, drafter.propose([Tip(row, 4, 9) for row in active])):
            prompt, answer = texts[row][0], texts[row][1][:count]
            tokens = torch.tensor([[*prompt, *answer] + [MASK] * 5])
            layout = Layout.chain((1, tokens.shape[1]), prompt=torch.arange(tokens.shape[1])[None] < len(prompt))
            scores = model(tokens, layout).logits[0, -5:, :MASK]
            assert draft.tokens == scores.argmax(-1).tolist()[:4]


def test_cached_blocks_respect_their_bounds() -> None:
    check_drafter(lambda: CachedBlockDraft(stack(["gru"], 12, 0), 4), memory=False)


# What teaches blocks


def pairs(seed: int, rows: int = 5) -> list[tuple[list[int], list[int]]]:
    draw = np.random.default_rng(seed)
    texts = [draw.integers(1, V, length).tolist() for length in draw.integers(1, 7, 2 * rows)]
    return [(source, [*answer, END]) for source, answer in zip(texts[:rows], texts[rows:])]


def answers(seed: int) -> Batch:
    """Source, separator, answer and its end, padded to one length; the answer named in place."""
    return targets_in_place(Batch.pairs(pairs(seed), BEGIN))


def test_answer_positions_are_recorded() -> None:
    batch = answers(0)
    for row, (source, answer) in enumerate(pairs(0)):
        text = [*source, BEGIN, *answer]
        assert batch.tokens[row].tolist()[: len(text)] == text
        expected = [-1] * (len(source) + 1) + answer
        assert batch.targets[row].tolist() == expected + [-1] * (batch.targets.shape[1] - len(expected))


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), length=st.integers(1, 9))
def test_masked_blocks_follow_a_kept_prefix(seed: int, length: int) -> None:
    batch = answers(seed)
    masked = mask_block(batch, length, MASK, torch.Generator().manual_seed(seed))
    chance = torch.rand(5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).tolist()
    lengths = []
    for row, u in enumerate(chance):
        text = batch.tokens[row].tolist()[: int((batch.targets[row] >= 0).nonzero().max()) + 1]
        n = int((batch.targets[row] >= 0).sum())
        prefix_length = len(text) - (math.floor(n * u) + 1)
        lengths.append(prefix_length + length)
        assert masked.tokens[row, : prefix_length + length].tolist() == text[:prefix_length] + [MASK] * length
        expected = [-1] * prefix_length + text[prefix_length : prefix_length + length]
        assert masked.targets[row].tolist() == expected + [-1] * (masked.tokens.shape[1] - len(expected))
    assert masked.tokens.shape[1] == max(lengths)
    if masked.starts is not None:
        assert masked.starts.nonzero().tolist() == [[row, end] for row, end in enumerate(lengths) if end < max(lengths)]


@pytest.mark.parametrize("name", ["attention", "bidirectional", "hydra"])
def test_without_glancing_the_loss_is_that_of_masked_blocks(name: str) -> None:
    model = reader(name)
    masked = mask_block(answers(3), 4, MASK, torch.Generator().manual_seed(0))
    total = 0.0
    for tokens, targets in zip(masked.tokens, masked.targets):
        masked_positions = (targets >= 0).nonzero()[:, 0]
        text = tokens[: int(masked_positions[0]) + 4][None]
        total += F.cross_entropy(model(text).logits[0, masked_positions], targets[masked_positions], reduction="sum",
                                 label_smoothing=0.1).item()
    for batch in (masked, reveal_order(masked, 0.0)):
        loss = MaskedElements(0.1)(model, batch)
        assert loss.total.item() == pytest.approx(total, rel=1e-9) and loss.count == masked.count
    nats = MaskedElements()(model, masked)
    assert nats.total.item() == pytest.approx(float(nats.terms["nats"])) != pytest.approx(total)
    assert float(MaskedElements(0.1)(model, masked).terms["nats"]) == pytest.approx(nats.total.item())


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), ratio=st.sampled_from([0.0, 0.3, 0.4, 0.5, 1.0]))
def test_a_glance_reveals_a_share_of_the_mistakes(seed: int, ratio: float) -> None:
    model = reader(seed=seed)
    masked = mask_block(answers(seed), 6, MASK, torch.Generator().manual_seed(seed))
    batch = reveal_order(masked, ratio, torch.Generator().manual_seed(seed))
    glanced = glance(model, batch)
    hidden, guess = masked.targets >= 0, model(masked.tokens, masked.layout).logits.argmax(-1)
    mistakes = (hidden & (guess != masked.targets)).sum(1)
    revealed = hidden & (glanced.targets < 0)
    assert revealed.sum(1).tolist() == [math.floor(ratio * count + 1e-9) for count in mistakes.tolist()]
    assert torch.equal(glanced.tokens, torch.where(revealed, masked.targets, masked.tokens))
    assert torch.equal(glanced.targets, masked.targets.masked_fill(revealed, -1))


def test_the_second_pass_repeats_the_dropout_of_the_first() -> None:
    torch.manual_seed(0)
    model = Stack(StackConfig(MASK + 1, 16, ["attention"], {"attention": {"causal": False}}, dropout=0.5)).train()
    batch = reveal_order(mask_block(answers(0), 6, MASK), 1e-9)  # looks, shows nothing
    torch.manual_seed(1)
    glanced = glance(model, batch)
    second = model(glanced.tokens, glanced.layout).logits
    torch.manual_seed(1)
    assert torch.equal(second, model(batch.tokens, batch.layout).logits)
    assert not torch.equal(second, model(batch.tokens, batch.layout).logits)


def test_masked_batches_depend_on_their_step_only() -> None:
    draw = masked_blocks(lambda step: Batch.pairs(pairs(step), BEGIN), 6, MASK, steps=11)
    first, second = draw(3), draw(3)
    assert torch.equal(first.tokens, second.tokens) and torch.equal(first.channels["reveal"], second.channels["reveal"])
    smallest = [float(draw(step).channels["reveal"].min()) for step in (0, 5, 10)]
    assert smallest == pytest.approx([1 / 0.5, 1 / 0.4, 1 / 0.3])  # the share that is shown falls from 0.5 to 0.3
    assert padding_starts(torch.tensor([3, 3]), 3) is None
