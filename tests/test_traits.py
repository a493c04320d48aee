"""Traits of elements, and attention that compares them (Music Transformer's relative time and pitch)."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from segue.errors import SegueError
from segue.mixers import Attention
from segue.mixers.layout import Layout
from segue.mixers.state import Parts
from segue.mixers.traits import ABSENT, Traits
from segue.models import Stack, StackConfig, expand_pattern
from segue.testing import check_mixer, check_model

# Ids 0 to 3 are notes, 4 and 5 move the clock by one and two steps, 6 does neither.
TABLES: dict[str, dict[str, Any]] = {
    "pitch": {"of": [60, 62, 64, 60, None, None, None]}, "time": {"of": [0, 0, 0, None, 1, 2, None], "sum": True}}


def test_pitch_and_time_traits_are_extracted() -> None:
    traits, tokens = Traits(TABLES, 7), torch.tensor([[0, 4, 1, 5, 6, 3, 4], [4, 5, 2, 2, 4, 6, 0]])
    starts = torch.zeros(2, 7, dtype=torch.bool)
    starts[1, 4] = True  # the clock begins again
    results = traits.look_up(tokens, Layout.chain((2, 7), starts=starts))
    assert results["pitch"].tolist() == [[60, ABSENT, 62, ABSENT, ABSENT, 60, ABSENT],
                                         [ABSENT, ABSENT, 64, 64, ABSENT, ABSENT, 60]]
    assert results["time"].tolist() == [[0, 1, 1, 3, 3, 3, 4], [1, 3, 3, 3, 1, 1, 1]]


class Knowing(Attention):
    """Attention over synthetic elements whose traits are in their vectors."""

    def run(self, x: Tensor, layout: Layout, parts: Parts) -> Tensor:
        return super().run(x, replace(layout, traits=synthetic_traits(x)), parts)


def synthetic_traits(x: Tensor) -> dict[str, Tensor]:
    x = x.to(torch.bfloat16)  # the same in every type
    pitch = (3 * x[..., 0]).round().long()
    return {"time": (4 * x[..., 1]).round().long(), "pitch": torch.where(x[..., 2] > 1, ABSENT, pitch)}


OPTIONS = [{"traits": {"time": 3, "pitch": 5}}, {"traits": {"pitch": 4}, "relative": 6, "clamp": True, "kv_heads": 1},
           {"traits": {"time": 2}, "window": 5}]


@pytest.mark.parametrize("options", OPTIONS)
def test_trait_attention_equals_a_loop_over_pairs(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    mixer, x = Knowing(8, heads=2, positions="none", **options).double(), torch.randn(1, 13, 8, dtype=torch.float64)
    traits, clamp = synthetic_traits(x), options.get("clamp", False)
    q, k, v = (y[0] for y in mixer.project(x, torch.arange(13)[None]))
    mixed = torch.zeros(2, 13, 4, dtype=torch.float64)
    tables = [(mixer.traits[name], traits[name][0].tolist(), limit) for name, limit in options["traits"].items()]
    for head in range(2):
        kv_head = 0 if options.get("kv_heads") == 1 else head
        for i in range(13):
            scores = torch.full((13,), -math.inf, dtype=torch.float64)
            for j in range(max(0, i - options.get("window", 13) + 1), i + 1):
                scores[j] = q[head, i] @ k[kv_head, j]
                if mixer.distances is not None:
                    scores[j] += q[head, i] @ mixer.distances[head, min(i - j, 5)]
                for table, of, limit in tables:
                    if ABSENT not in (of[i], of[j]) and (clamp or abs(of[i] - of[j]) < limit):
                        scores[j] += q[head, i] @ table[head, limit - 1
                                                        + max(-limit + 1, min(limit - 1, of[i] - of[j]))]
            mixed[head, i] = (scores / 2).softmax(0) @ v[kv_head]
    expected = mixer.out(mixed.transpose(0, 1).flatten(1))
    with torch.no_grad():
        assert torch.allclose(mixer(x)[0], expected, atol=1e-12)
    assert torch.allclose(mixer(x.requires_grad_())[0], expected, atol=1e-12)
    state, outputs = mixer.init_state(1), []
    for piece in x.detach().split([4, 1, 1, 7], 1):
        outputs.append(mixer.extend(piece, state))
        state.commit()
    assert torch.allclose(torch.cat(outputs, 1)[0], expected, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS)
def test_contract(options: dict[str, Any]) -> None:
    knowing = Knowing(8, heads=2, positions="none", **options)
    knowing.linear_in_values = False  # its matrix is asked for without a layout
    assert check_mixer(knowing, examples=2)


def comparing(pattern: str) -> Stack:
    torch.manual_seed(0)
    options = {"attention:music": {"traits": {"time": 4, "pitch": 6}, "relative": 5}}
    model = Stack(StackConfig(7, 16, expand_pattern(pattern), options, traits=TABLES)).double()
    for table in model.blocks[-1].mixer.traits.values():  # type: ignore[operator]
        table.data *= 3
    return model


@pytest.mark.slow
@pytest.mark.parametrize("pattern", ["gru+attention:music", "attention:music*2"])
def test_models_that_compare_traits_keep_the_contract(pattern: str) -> None:
    assert check_model(comparing(pattern), examples=2)


@torch.no_grad()
def test_models_that_compare_traits_decode_exactly() -> None:
    """Ragged rows, forks, a draft tree and the way back: clocks go along."""
    model, tokens = comparing("gru+attention:music"), torch.randint(7, (2, 12))
    assert StackConfig.from_dict(model.config.to_dict()) == model.config
    full, state = model(tokens).logits, model.init_state(2, history=4)
    model.extend(tokens[:, :6], state)
    state.commit(counts=torch.tensor([6, 4]))
    state.rewind(torch.tensor([2, 0]))
    state = state.select(torch.tensor([1, 0, 1]))
    rows = tokens[[1, 0, 1]]
    drafted = torch.stack([rows[:, 4], (rows[:, 4] + 3) % 7, rows[:, 5], rows[:, 6]], 1)  # the second is a wrong guess
    model.extend(drafted, state, torch.tensor([[-1, -1, 0, 2]] * 3))
    state.commit(torch.tensor([[0, 2, 3]] * 3))
    results = model.extend(rows[:, 7:], state).logits
    assert torch.allclose(results, full[[1, 0, 1], 7:], atol=1e-10)


def test_zero_trait_tables_equal_plain_attention() -> None:
    attention, music = Attention(8), Knowing(8, traits={"time": 4})
    music.load_state_dict(attention.state_dict() | {"traits.time": torch.zeros(4, 7, 2)})
    x = torch.randn(2, 9, 8)
    assert torch.allclose(attention(x), music(x), atol=1e-6)


def test_trait_attention_is_invariant_to_transposition_and_shift() -> None:
    """Without positions and pitch embeddings the output depends on differences only."""
    torch.manual_seed(0)
    mixer, x = Attention(8, positions="none", traits={"time": 9, "pitch": 9}), torch.randn(1, 6, 8)
    time, pitch = torch.tensor([[0, 0, 1, 2, 2, 5]]), torch.tensor([[60, 64, 62, 60, 67, ABSENT]])
    layout = Layout.of(x)
    output = mixer(x, replace(layout, traits={"time": time, "pitch": pitch}))
    moved = torch.where(pitch == ABSENT, ABSENT, pitch + 5)
    assert torch.equal(output, mixer(x, replace(layout, traits={"time": time + 7, "pitch": moved})))
    assert not torch.allclose(output, mixer(x, replace(layout, traits={"time": time * 2, "pitch": pitch})))


def test_missing_traits_are_refused_by_name() -> None:
    with pytest.raises(SegueError, match="compares the pitch of elements"):
        Attention(8, traits={"pitch": 4})(torch.randn(1, 4, 8))
    with pytest.raises(SegueError, match="trait 'pitch' is to be"):
        Stack(StackConfig(9, 8, ["attention"], traits=TABLES))
    with pytest.raises(SegueError, match="leave inputs and tables out"):
        Stack(StackConfig(7, 8, ["attention"], traits=TABLES, inputs=3, tied=False))
