"""What learns while a text is scored, and what windows tell each other, against what they must equal."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from weights import shake

from segue.mixers.cache import Cache
from segue.mixers.layout import Layout
from segue.models import Stack, StackConfig
from segue.models.windows import WindowRecurrence
from segue.objectives import Batch, NextElement
from segue.training.adapt import StateOptimiser, dynamic_evaluation, state_evaluation, token_nats

MIXED = ["attention", "gru", "mamba"]


def stack(*mixers: str, **options: Any) -> Stack:
    torch.manual_seed(0)
    options_by_mixer = {"attention": {"heads": 2, **options}, "mamba": {"states": 2},
                        "jrt": {"heads": 2, "key_width": 3}}
    model = Stack(StackConfig(9, 16, list(mixers), {name: options_by_mixer[name] for name in mixers
                                                    if name in options_by_mixer}))
    model = model.double().eval()
    shake(model, 0.2)
    return model


def text(length: int, rows: int = 2) -> Tensor:
    return torch.randint(9, (rows, length), generator=torch.Generator().manual_seed(1))


def plain_nats(model: Stack, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        logits = model(tokens[:, :-1]).logits
    return F.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none")


# --- hidden-state optimisation ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("mixers", [["attention"], ["gru"], MIXED, ["s4", "attention"]])
def test_a_zero_rate_equals_evaluation(mixers: list[str]) -> None:
    model, tokens = stack(*mixers), text(23)
    for block in (1, 5, 40):
        torch.testing.assert_close(state_evaluation(model, tokens, block, 0.0), plain_nats(model, tokens))
        torch.testing.assert_close(dynamic_evaluation(model, tokens, block, 0.0), plain_nats(model, tokens))


@pytest.mark.parametrize("mixers", [["attention"], MIXED, ["s4"]])
def test_blocks_are_scored_before_they_are_learned(mixers: list[str]) -> None:
    """The first block's score equals plain evaluation, and later tokens change no earlier score."""
    model, tokens = stack(*mixers), text(21)
    weights = [p.clone() for p in model.parameters()]
    for evaluate in (state_evaluation, dynamic_evaluation):
        results = evaluate(model, tokens, 5, 0.1)
        torch.testing.assert_close(results[:, :5], plain_nats(model, tokens)[:, :5])
        assert (results[:, 5:] - plain_nats(model, tokens)[:, 5:]).abs().max() > 1e-3
        other = tokens.clone()
        other[:, 16:] = (other[:, 16:] + 1) % 9
        torch.testing.assert_close(evaluate(model, other, 5, 0.1)[:, :15], results[:, :15])
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters()))


@pytest.mark.parametrize("mixers", [["attention", "attention"], MIXED])
def test_state_gradients_equal_finite_differences(mixers: list[str]) -> None:
    model, tokens = stack(*mixers), text(12)
    state = model.init_state(2)
    with torch.no_grad():
        model.extend(tokens[:, :5], state)
        state.commit()
    snapshot = state.snapshot()
    _, before, grads = StateOptimiser(model, state, 0.1).gradients(tokens[:, 5:11], tokens[:, 6:])

    def loss(name: str, place: tuple[int, ...], change: float) -> float:
        copied_state, tensors = snapshot.snapshot(), snapshot.tensors()
        moved = tensors[name].clone()
        moved[place] += change
        copied_state.load({**tensors, name: moved})
        with torch.no_grad():
            return float(token_nats(model, tokens[:, 5:11], tokens[:, 6:], copied_state).sum())

    for name, x in before.items():
        place = tuple(size // 2 for size in x.shape)
        slope = (loss(name, place, 1e-6) - loss(name, place, -1e-6)) / 2e-6
        assert abs(slope - float(grads[name][place])) < 1e-6, name
        assert grads[name].shape[2:3] == x.shape[2:3] or grads[name].shape[2] == x.shape[2] + 6


def by_hand(model: Stack, tokens: Tensor, block: int, rate: float) -> Tensor:
    """One layer of attention, with an optimiser for each node's key and value."""
    layer, nats_by_block = model.blocks[0], []
    mixer: Any = layer.mixer
    nodes: list[tuple[list[Tensor], torch.optim.Adam]] = []
    for begin in range(0, tokens.shape[1] - 1, block):
        end = min(begin + block, tokens.shape[1] - 1)
        x = model.embedding(tokens[:, begin:end])
        q, k, v = mixer.project(layer.mixer_norm(x), torch.arange(begin, end).expand(len(tokens), -1))
        for i in range(end - begin):
            pair = [y[:, :, i].detach().clone().requires_grad_() for y in (k, v)]
            nodes.append((pair, torch.optim.Adam(pair, rate)))
        keys, values = (torch.stack([pair[which] for pair, _ in nodes], 2) for which in (0, 1))
        visible = torch.arange(len(nodes)) <= torch.arange(begin, end)[:, None]
        x = x + mixer.output(F.scaled_dot_product_attention(q, keys, values, attn_mask=visible), x)
        logits = model.head(model.norm(x + layer.channel(layer.channel_norm(x))))  # type: ignore[misc]
        nats = F.cross_entropy(logits.transpose(1, 2), tokens[:, begin + 1 : end + 1], reduction="none")
        nats_by_block.append(nats.detach())
        for _, adam in nodes:
            adam.zero_grad()
        nats.sum().backward()
        for _, adam in nodes:
            adam.step()
    return torch.cat(nats_by_block, 1)


def test_every_key_and_value_has_its_own_adam() -> None:
    model, tokens = stack("attention"), text(24)
    expected = by_hand(model, tokens, 5, 0.05)
    torch.testing.assert_close(state_evaluation(model, tokens, 5, 0.05), expected)
    model.requires_grad_(False)
    torch.testing.assert_close(state_evaluation(model, tokens, 5, 0.05), expected)
    assert not any(p.requires_grad for p in model.parameters())


def test_optimiser_moments_leave_with_dropped_cache_rows() -> None:
    """With a windowed cache: the rows that stay are updated as if none had been dropped."""
    model, tokens = stack("attention", "attention", window=6), text(160, 1)
    optimiser = StateOptimiser(model, model.init_state(1), 0.05)
    result, sizes = [], []
    for begin in range(0, 155, 5):
        result.append(optimiser.read(tokens[:, begin : begin + 5], tokens[:, begin + 1 : begin + 6]))
        cache = optimiser.state.layers[0]["cache"]
        assert isinstance(cache, Cache) and optimiser.moments["0.cache.k"][0].shape == cache.tensors()["k"].shape
        sizes.append(cache.longest)
    assert max(sizes) < 100 and sizes != sorted(sizes)
    windowed = stack("attention", "attention", window=6)
    for block in windowed.blocks:
        block.mixer._cache_window = lambda: None  # type: ignore[method-assign, union-attr, operator]
    torch.testing.assert_close(torch.cat(result, 1), state_evaluation(windowed, tokens[:, :156], 5, 0.05))


def test_adaptation_lowers_the_loss_of_repeated_text() -> None:
    """A text of one phrase, unknown to the model: adaptation of caches and of recurrent states."""
    tokens = torch.tensor([[1, 5, 2, 7, 3, 3, 8, 0] * 12])
    for mixers, smallest_gain in ((["attention"], 0.05), (["gru"], 0.0), (MIXED, 0.05)):  # a gated unit soon forgets
        model = stack(*mixers)
        before = float(plain_nats(model, tokens).mean())
        assert float(state_evaluation(model, tokens, 8, 0.05).mean()) < before - smallest_gain, mixers
        assert float(dynamic_evaluation(model, tokens, 8, 0.1).mean()) < before - 0.05, mixers


# --- recurrence between windows --------------------------------------------------------------------------------------


def recurrent(*mixers: str, **options: Any) -> WindowRecurrence:
    model = WindowRecurrence(stack(*mixers), 6, vectors=3, **options).double()
    shake(model, 0.2)
    return model


@torch.no_grad()
@pytest.mark.parametrize("mixers", [["attention", "attention"], MIXED])
def test_a_single_window_equals_the_stack(mixers: list[str]) -> None:
    model, tokens = recurrent(*mixers), text(20)
    assert torch.equal(model(tokens).logits[:, :6], model.stack(tokens[:, :6]).logits)
    assert not torch.allclose(model(tokens).logits[:, 6:12], model.stack(tokens[:, 6:12]).logits)


@torch.no_grad()
def test_summaries_of_single_elements_equal_prepended_elements() -> None:
    """With a pool for each element and a module that adds nothing, the upper block reads the lower block's outputs of
    the previous window and of this one in one piece."""
    base, tokens = stack("attention", "attention"), text(20)
    model = WindowRecurrence(base, 6, vectors=6).double()
    model.pool.data = torch.eye(6, dtype=torch.float64) * 1000
    below, above = (lambda x, block=block: block(x, lambda mixer, y: mixer(y)) for block in base.blocks)
    lower = [below(base.embed(piece, Layout.of(piece).positions)) for piece in tokens.split(6, 1)]
    upper = [above(lower[0]), *(above(torch.cat(pair, 1))[:, 6:] for pair in zip(lower, lower[1:]))]
    torch.testing.assert_close(model(tokens).logits, base.head(base.norm(torch.cat(upper, 1))))


@torch.no_grad()
def test_summaries_start_as_means_of_shrinking_suffixes() -> None:
    x = torch.randn(2, 16, 16, dtype=torch.float64)
    model = WindowRecurrence(stack("attention"), 16, vectors=3).double()
    means = torch.stack([x[:, -end:].mean(1) for end in (16, 4, 1)], 1)
    torch.testing.assert_close(model.summary(x), means, atol=0.1, rtol=0)
    windowed = WindowRecurrence(stack("attention"), 16).double()
    torch.testing.assert_close(windowed.summary(x), x.mean(1, keepdim=True))


@torch.no_grad()
@pytest.mark.parametrize("places", [{}, {"source": 0, "into": 0}, {"source": 0, "into": 2}, {"source": 2, "into": 0}])
def test_windows_depend_on_earlier_windows_only(places: dict[str, int]) -> None:
    model, tokens = recurrent(*MIXED, **places), text(20)
    for place in (3, 6, 11, 19):
        other = tokens.clone()
        other[:, place] = (other[:, place] + 1) % 9
        changed = (model(tokens).logits != model(other).logits).any(-1).any(0)
        assert not changed[:place].any() and changed[place]
        later = changed[(place // 6 + 1) * 6 :]  # the next window, and, where a chain is made, all that follow
        assert later.all() if model.into <= model.source else later[:6].all() and not later[6:].any()


def test_window_gradients_are_equal_with_checkpointing() -> None:
    tokens, result = text(21), []
    for checkpointing in (False, True):
        torch.manual_seed(3)
        model = recurrent("attention", "gru", checkpointing=checkpointing)
        loss = NextElement()(model, Batch(tokens[:, :-1], torch.where(torch.arange(20) == 19, tokens[:, 1:], -1)))
        result.append(torch.autograd.grad(loss.total, list(model.parameters())))
        names = [name for name, _ in model.named_parameters()]
    for name, a, b in zip(names, *result):
        assert a.abs().max() > 0, name
        torch.testing.assert_close(a, b)
