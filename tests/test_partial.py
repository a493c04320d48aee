"""Partial attention: what a language model on a source and a target is, and what its four additions change."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from weights import shake

from segue.analysis.influence import prompt_mass, prompt_sensitivity
from segue.decoding import generate
from segue.mixers import Layout, PartialAttention
from segue.mixers.positions import rotate
from segue.models import Stack, StackConfig
from segue.objectives import Batch
from segue.testing import check_model

PARTS = ("partial", "bidirectional", "restart", "segments")
EVERY = [dict(zip(PARTS, chosen)) for chosen in itertools.product((False, True), repeat=4)]


def stack(mixer: str = "palm", depth: int = 2, **options: Any) -> Stack:
    torch.manual_seed(0)
    model = Stack(StackConfig(11, 16, [mixer] * depth, {mixer: {"heads": 2, **options}})).double().eval()
    shake(model, 0.3)
    return model


def pairs(sources: list[int], targets: int, seed: int = 0) -> Batch:
    """Rows of a source and a target, of which each element is predicted; what follows a shorter row is junk."""
    tokens = torch.randint(11, (len(sources), max(sources) + targets), generator=torch.Generator().manual_seed(seed))
    lengths, index = torch.tensor(sources)[:, None], torch.arange(tokens.shape[1])
    is_target = (index >= lengths - 1) & (index < lengths + targets - 1)
    return Batch(tokens, torch.where(is_target, tokens.roll(-1, 1), -1), prompt=index < lengths)


# --- a language model is an encoder-decoder, restricted ------------------------------------------------------------


@torch.no_grad()
def test_a_language_model_equals_a_regularized_encoder_decoder() -> None:
    """An encoder and a decoder with the same weights, of which the decoder's layer l has one softmax over the encoder's
    layer l and itself, the encoder looks back only, and positions go on: the logits are those of a language model."""
    model, tokens, m = stack("attention", 3), torch.randint(11, (2, 12)), 5

    def project(block: Any, x: Tensor, first: int) -> list[Tensor]:
        q, k, v = block.mixer.qkv(block.mixer_norm(x)).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        positions = torch.arange(first, first + x.shape[1]).expand(2, -1)
        return [*(rotate(y, positions, block.mixer.frequencies) for y in (q, k)), v]

    def softmax(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        return (q @ k.mT / math.sqrt(8)).masked_fill(~mask, -math.inf).softmax(-1) @ v

    def rest(block: Any, x: Tensor, read: Tensor) -> Tensor:
        x = x + block.mixer.out(read.transpose(1, 2).flatten(2))
        return x + block.channel(block.channel_norm(x))

    source, memory = model.embedding(tokens[:, :m]), []  # the encoder, and what each of its layers knows
    for block in model.blocks:
        q, k, v = project(block, source, 0)
        memory.append((k, v))
        source = rest(block, source, softmax(q, k, v, torch.ones(m, m, dtype=torch.bool).tril()))
    target, n = model.embedding(tokens[:, m:]), 12 - m
    for block, (keys, values) in zip(model.blocks, memory):
        q, k, v = project(block, target, m)
        mask = torch.cat([torch.ones(n, m, dtype=torch.bool), torch.ones(n, n, dtype=torch.bool).tril()], 1)
        target = rest(block, target, softmax(q, torch.cat([keys, k], 2), torch.cat([values, v], 2), mask))
    logits = model.head(model.norm(torch.cat([source, target], 1)))
    assert (logits - model(tokens).logits).abs().max() < 1e-12


@torch.no_grad()
@pytest.mark.parametrize("parts", [{"partial": True, "segments": True, "bidirectional": False, "restart": False},
                                   dict.fromkeys(PARTS, False)])
def test_added_parts_leave_a_trained_model_unchanged_at_first(parts: dict[str, bool]) -> None:
    """With the new projection and the vectors of segments at zero, as they begin."""
    trained, batch = stack("attention"), pairs([3, 6], 5)
    torch.manual_seed(1)
    palm = Stack(StackConfig(11, 16, ["palm"] * 2, {"palm": {"heads": 2, **parts}})).double()
    weights = {name.replace("mixer.", "mixer.attention."): value for name, value in trained.state_dict().items()}
    missing, unknown = palm.load_state_dict(weights, strict=False)
    assert not unknown and all(any(new in name for new in ("source", "kinds", "mixer.norm")) for name in missing)
    assert torch.equal(palm(batch.tokens, batch.layout).logits, trained(batch.tokens).logits)


def test_partial_attention_without_parts_equals_attention() -> None:
    torch.manual_seed(0)
    a = Stack(StackConfig(11, 16, ["palm"], {"palm": {"heads": 2, **dict.fromkeys(PARTS, False)}}))
    torch.manual_seed(0)
    b = Stack(StackConfig(11, 16, ["attention"], {"attention": {"heads": 2}}))
    for (name, actual), expected in zip(a.named_parameters(), b.parameters(), strict=True):
        assert torch.equal(actual, expected), name


# --- the mixer against its definition ------------------------------------------------------------------------------


def by_definition(mixer: PartialAttention, x: Tensor, m: int) -> Tensor:
    """One document (T, D) whose first m nodes are its prompt, node by node and head by head."""
    n = len(x)
    kind = [int(i < m) for i in range(n)]
    place = [i - m if mixer.restart and i >= m else i for i in range(n)]
    if mixer.kinds is not None:
        x = x + mixer.kinds.weight[kind]

    def attention(part: Any, x: Tensor, is_visible: Any) -> Tensor:
        q, k, v = part.qkv(x).view(n, 3, 2, -1).permute(1, 2, 0, 3)
        q, k = (rotate(y[None], torch.tensor([place]), part.frequencies)[0] for y in (q, k))
        rows = []
        for i in range(n):
            keys = [j for j in range(n) if is_visible(i, j)]
            scores = torch.einsum("he,hje->hj", q[:, i], k[:, keys]) / math.sqrt(q.shape[-1])
            rows.append(torch.einsum("hj,hje->he", scores.softmax(-1), v[:, keys]).flatten() if keys else
                        x.new_zeros(q.shape[0] * q.shape[2]))
        return part.out(torch.stack(rows))

    y = attention(mixer.attention, x, lambda i, j: j <= i or (mixer.bidirectional and j < m))
    if mixer.source is None or mixer.norm is None:
        return y
    read = attention(mixer.source, mixer.norm(x + y), lambda i, j: j < m and (mixer.bidirectional or j <= i))
    return y + (read if m else 0)


@torch.no_grad()
@pytest.mark.parametrize("parts", EVERY)
def test_partial_attention_equals_its_definition(parts: dict[str, bool]) -> None:
    """Prompts of several lengths, one of them none, alone and packed in one row."""
    mixer = stack(**parts).blocks[0].mixer
    assert isinstance(mixer, PartialAttention)
    batch, x = pairs([4, 1, 7], 5), torch.randn(3, 12, 16, dtype=torch.float64)
    assert batch.prompt is not None
    batch.prompt[1] = False
    expected = torch.stack([by_definition(mixer, row, m) for row, m in zip(x, (4, 0, 7))])
    assert (mixer(x, batch.layout) - expected).abs().max() < 1e-10
    starts = torch.zeros(1, 36, dtype=torch.bool)
    starts[0, [0, 12, 24]] = True
    packed = Layout.chain((1, 36), starts=starts, prompt=batch.prompt.view(1, 36))
    assert (mixer(x.view(1, 36, 16), packed).view(3, 12, 16) - expected).abs().max() < 1e-10


NEAR = [{"bidirectional": False, "restart": restart, **near} for restart in (False, True)
        for near in ({"window": 3}, {"block": 2, "look_back": 1}, {"span": 4, "ramp": 2})]


@torch.no_grad()
@pytest.mark.parametrize("parts", [*EVERY, *NEAR, {"taps": 2}])
def test_decoding_equals_the_full_forward(parts: dict[str, Any]) -> None:
    """Prompts of different lengths together, step by step and with drafts as trees; padding of a shorter prompt has no
    effect."""
    model, prompts = stack(**parts), [[1, 5, 2, 7, 7, 3], [4], [9, 2, 8, 9, 2, 8, 9] * 12]
    expected = []
    for prompt in prompts:
        said: list[int] = []
        for _ in range(8):
            tokens = torch.tensor([prompt + said])
            layout = Layout.chain((1, tokens.shape[1]), prompt=torch.arange(tokens.shape[1])[None] < len(prompt))
            said.append(int(model(tokens, layout).logits[0, -1].argmax()))
        expected.append(said)
    assert [answer.tokens for answer in generate(model, prompts, 8)] == expected
    assert [answer.tokens for answer in generate(model, prompts, 8, draft="both")] == expected
    padded_logits = []
    for junk in (0, 10):
        state = model.init_state(3)
        state.prompt = torch.tensor(list(map(len, prompts)))
        table = torch.tensor([prompt + [junk] * (84 - len(prompt)) for prompt in prompts])
        model.extend(table, state)
        state.commit(counts=state.prompt)
        padded_logits.append(model.extend(torch.tensor([[1], [2], [3]]), state).logits)
    assert torch.equal(*padded_logits)


@pytest.mark.parametrize("pattern", ["palm+gru", "mamba+palm"])
def test_partial_attention_in_mixed_stacks_decodes_exactly(pattern: str) -> None:
    torch.manual_seed(0)
    names = pattern.split("+")
    model = Stack(StackConfig(6, 8, names, {"palm": {"heads": 2, "prefix": 3}}))
    check_model(model, examples=3, longest=12, prompt=3, shrink=False, only="any life")


@torch.no_grad()
def test_the_second_cache_holds_the_prompt_only() -> None:
    model = stack()
    state = model.init_state(2)
    state.prompt = torch.tensor([3, 5])
    model.extend(torch.randint(11, (2, 5)), state)
    state.commit(counts=state.prompt)
    for _ in range(6):
        model.extend(torch.randint(11, (2, 1)), state)
        state.commit()
    sizes = {name: tensor.shape[2] for name, tensor in state.tensors().items() if name.endswith(".k")}
    assert sizes == {"0.cache.k": 11, "0.prompt.k": 5, "1.cache.k": 11, "1.prompt.k": 5}


# --- how much of the prompt is used --------------------------------------------------------------------------------


def test_uniform_attention_to_the_prompt_decays_with_length() -> None:
    """Without queries each of m + i nodes has the same share."""
    model, batch = stack("attention"), pairs([6, 6], 9)
    for block in model.blocks:
        block.mixer.qkv.weight.data[:16] = 0  # type: ignore[union-attr, index]
    expected = torch.tensor([6 / (6 + i) for i in range(9)], dtype=torch.float64)
    results = prompt_mass(model, batch.tokens, batch.layout, batch.targets >= 0)
    torch.testing.assert_close(results, expected, rtol=1e-14, atol=0)


@torch.no_grad()
def test_sensitivity_equals_the_mean_divergence() -> None:
    """Against a loop, of a prompt with one place to swap; and none where the swapped one cannot be seen."""
    model, batch = stack(), pairs([4, 4], 5)
    place = torch.zeros_like(batch.tokens, dtype=torch.bool)
    place[:, 2] = True
    batch.tokens[:, 2] = torch.tensor([3, 8])
    result = prompt_sensitivity(model, batch.tokens, batch.layout, batch.targets >= 0, place, swaps=40)
    assert (result > 0).all() and len(result) == 5
    other = batch.tokens.clone()
    other[:, 2] = torch.tensor([8, 3])
    p, q = (model(tokens, batch.layout).logits.log_softmax(-1) for tokens in (batch.tokens, other))
    full_divergence = F.kl_div(q, p, reduction="none", log_target=True).sum(-1)[:, 3:8].mean(0)
    assert 0.25 < float(result.sum() / full_divergence.sum()) < 0.75  # half of the swaps draw what stood there
    deaf, batch = stack("attention", window=2), pairs([9], 6)
    first = torch.arange(15)[None] < 1
    assert (prompt_sensitivity(deaf, batch.tokens, batch.layout, batch.targets >= 0, first) == 0).all()
