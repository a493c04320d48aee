"""Regions of a sequence, and cross-attention that has a say in them alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from segue.analysis.repeats import occurrences
from segue.errors import SegueError
from segue.mixers.layout import Layout
from segue.mixers.positions import sinusoids
from segue.mixers.regions import RegionLabels
from segue.mixers.state import Carry
from segue.models import EncoderDecoder, EncoderDecoderConfig, Stack, StackConfig
from segue.models.adapters import InitialState
from segue.papers.theme_transformer import OPEN as OPEN60
from segue.papers.theme_transformer import THEME, melody, piece, theme_mask, varied

OPEN, CLOSE, V = 1, 2, 9


def naive(ids: list[int], starts: list[bool] | None = None, label: int = 0) -> list[int]:
    result = []
    for at, token in enumerate(ids):
        if starts is not None and starts[at]:
            label = 0
        label = 1 if token == OPEN else 0 if token == CLOSE or not label else label + 1
        result.append(label)
    return result


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=16), st.data())
def test_online_labels_equal_those_of_whole_rows(ids: list[int], data: st.DataObject) -> None:
    labels, n = RegionLabels(OPEN, CLOSE), len(ids)
    starts = data.draw(st.lists(st.booleans(), min_size=n, max_size=n))
    row = torch.tensor([ids])
    assert labels.label(row, Layout.of(row))[0].tolist() == naive(ids)
    packed = Layout.chain((1, n), starts=torch.tensor([starts]))
    assert labels.label(row, packed)[0].tolist() == naive(ids, starts)
    carry, online = Carry(labels, labels.initial(1, torch.zeros(1)), history=4), []
    cuts = sorted({0, n, *data.draw(st.lists(st.integers(0, n), max_size=3))})
    for begin, end in zip(cuts, cuts[1:]):
        piece = row[:, begin:end]
        online += labels.label(piece, Layout.of(piece), carry)[0].tolist()
        carry.commit(None, None)
    assert online == naive(ids)
    back = min(3, n, int(carry.max_rewind()))
    carry.rewind(torch.tensor([back]))
    assert labels.label(row[:, n - back :], Layout.of(row[:, n - back :]), carry)[0].tolist() == online[n - back :]
    count = data.draw(st.integers(0, n))
    events = ((row == OPEN).long() - (row == CLOSE).long(),)
    _, (last,) = labels.scan(events, (torch.tensor([4]),), None, torch.tensor([count]))
    assert int(last) == ([4, *naive(ids, label=4)])[count]


def themed(gate: Any, mixer: str = "attention", **switches: Any) -> EncoderDecoder:
    torch.manual_seed(0)
    options = {"attention": {"heads": 2, "positions": "sinusoidal"}, "attention:both": {"heads": 2, "causal": False}}
    values = {"vocabulary": V, "width": 8, "options": options, **switches}
    actual = EncoderDecoder(EncoderDecoderConfig(StackConfig(mixers=["attention:both"], **values), StackConfig(
        mixers=[mixer] * 2, regions=[OPEN, CLOSE], cross={"heads": 2, "aligned": True, "gate": gate}, **values)))
    return actual.double().eval()


@pytest.mark.parametrize("mixer", ["attention", "gru", "mamba"])
@pytest.mark.parametrize("gate", ["soft", "xor", ["soft", "xor"]])
def test_the_source_affects_regions_only(gate: Any, mixer: str) -> None:
    model = themed(gate, mixer)
    target = [4, 5, OPEN, 6, 7, CLOSE, 3, 4]
    rows = torch.tensor([[*source, model.begin, *target] for source in ([4, 5, 6], [7, 8, 3])])
    logits = model(rows).logits[:, 3:, :V]
    torch.testing.assert_close(logits[0, :3], logits[1, :3])  # begin, 4, 5: before the first region
    assert float((logits[0, 3] - logits[1, 3]).detach().abs().max()) > 1e-4
    outside = rows.clone()
    outside[outside == OPEN] = 8
    logits = model(outside).logits[:, 3:, :V]
    torch.testing.assert_close(logits[0], logits[1])


def test_xor_gates_hide_the_past_inside_regions() -> None:
    actual = themed("xor", channel="none")
    block = actual.decoder.blocks[0]
    x, source = torch.randn(1, 6, 8).double(), (torch.randn(1, 3, 8).double(), torch.tensor([3]))
    labels = torch.tensor([[0, 1, 2, 3, 0, 0]])
    layout = Layout(Layout.of(x).positions, source=source, labels=labels)
    y = actual.decoder.run_block(0, x, layout)
    other = x.clone()
    other[:, 0] += 1
    z = actual.decoder.run_block(0, other, layout)
    torch.testing.assert_close(y[:, 1:4], z[:, 1:4])
    assert float((y[:, 4:] - z[:, 4:]).detach().abs().max()) > 1e-6
    assert block.gate == "xor"
    y.sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in block.mixer.parameters())


@pytest.mark.parametrize("gate", ["soft", "xor"])
def test_a_layer_equals_multihead_attention(gate: str) -> None:
    actual = themed(gate, norm="layer", channel="mlp", activation="gelu", post_norm=True, bias=True)
    block: Any = actual.decoder.blocks[0]
    x, memory = torch.randn(2, 7, 8).double(), torch.randn(2, 5, 8).double()
    labels = torch.tensor([[0, 1, 2, 3, 0, 1, 2], [1, 2, 3, 4, 5, 6, 0]])
    places = sinusoids(torch.arange(7), 8, x.dtype)
    self_attention, cross_attention = (nn.MultiheadAttention(8, 2, bias=False, batch_first=True).double()
                                       for _ in range(2))
    self_attention.in_proj_weight.data.copy_(block.mixer.qkv.weight)
    self_attention.out_proj.weight.data.copy_(block.mixer.out.weight)
    cross_attention.in_proj_weight.data.copy_(torch.cat([block.cross.q.weight, block.cross.kv.weight]))
    cross_attention.out_proj.weight.data.copy_(block.cross.out.weight)
    g = (labels > 0).double()[..., None]
    placed = x + places
    a = self_attention(placed, placed, placed, attn_mask=torch.ones(7, 7).triu(1).bool(), need_weights=False)[0]
    aligned = x + g * sinusoids((labels - 1).clamp(min=0), 8, x.dtype)
    c = cross_attention(aligned, memory + sinusoids(torch.arange(5), 8, x.dtype), memory, need_weights=False)[0]
    mixed = (((1 - g) * a if gate == "xor" else a) + g * c) / 2
    y = F.layer_norm(x + mixed, (8,), eps=1e-6)
    y = F.layer_norm(y + block.channel.out(F.gelu(block.channel.into(y))), (8,), eps=1e-6)
    layout = Layout(Layout.of(x).positions, source=(memory, torch.tensor([5, 5])), labels=labels)
    torch.testing.assert_close(actual.decoder.run_block(0, x, layout), y)


def test_gates_compose_with_learned_states() -> None:
    model = themed("soft", "gru")
    row = torch.tensor([[4, 5, model.begin, OPEN, 6, CLOSE, 7]])
    adapter = InitialState(rank=0)
    adapter.attach(model)
    for _, parameter in adapter.named_parameters():
        parameter.data.fill_(9.0)
    state = model.init_state(1)
    torch.testing.assert_close(model.extend(row, state).logits[:, 2:], model(row).logits[:, 2:])


def test_bad_sizes_are_refused() -> None:
    with pytest.raises(SegueError, match="give regions"):
        Stack(StackConfig(V, 8, ["gru"], cross={"heads": 2, "gate": "soft"}))
    with pytest.raises(SegueError, match="none of '', soft and xor"):
        Stack(StackConfig(V, 8, ["gru"], cross={"heads": 2, "gate": "hard"}, regions=[1, 2]))
    with pytest.raises(SegueError, match="two of the model's ids"):
        Stack(StackConfig(V, 8, ["gru"], regions=[1, 20]))
    unlabelled = Stack(StackConfig(V, 8, ["gru"], cross={"heads": 2, "aligned": True}))
    with pytest.raises(SegueError, match="needs regions"):
        unlabelled.hidden(torch.zeros(1, 2).long(), Layout(torch.arange(2)[None], source=(torch.zeros(1, 2, 8),
                                                                                      torch.tensor([2]))))


def test_the_claim_scores_returning_themes_only() -> None:
    theme, ids = piece(np.random.default_rng(0))
    assert ids[0] == OPEN60 and ids[1 : 1 + THEME].tolist() == theme.tolist() and len(ids) == 256
    row = torch.from_numpy(ids)[None]
    assert not bool(theme_mask(row)[0, : THEME + 2].any())  # the first is the condition itself
    labels = torch.tensor([naive([{OPEN60: OPEN, OPEN60 + 1: CLOSE}.get(token, 0) for token in ids.tolist()])])
    is_returning = (row == OPEN60).cumsum(1) > 1
    assert torch.equal(theme_mask(row), (labels > 1) & is_returning)
    assert len(occurrences(theme, ids)) >= int((row == OPEN60).sum()) - 1
    rng = np.random.default_rng(1)
    segment = melody(rng)
    for _ in range(50):
        other = varied(segment, rng)
        assert (other[::2] < 48).all() and (other[1::2] >= 48).all() and (other[1::2] < 53).all() and len(other) >= 4
