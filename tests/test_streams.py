"""Elements of several codes at once, and cross-attention that asks where."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segue.decoding.streams import continue_streams
from segue.errors import SegueError
from segue.mixers.cross import PositionAwareCrossAttention, make_cross_attention
from segue.mixers.layout import Layout
from segue.models import Stack, StackConfig
from segue.models.streams import CODES, START, STOP, MultiStream, delay_codes, next_targets, undelay_codes
from segue.objectives import Batch, EachStream
from segue.training.learn import learn
from segue.training.optimiser import groups_of

# -- the delay pattern

@settings(max_examples=60, deadline=None)
@given(st.integers(1, 8), st.integers(0, 9), st.integers(0, 100))
def test_undelayed_inverts_delayed(levels: int, frames: int, seed: int) -> None:
    codes = torch.randint(0, 5, (frames, levels), generator=torch.Generator().manual_seed(seed))
    ids = delay_codes(codes)
    assert ids.shape == (frames + levels + 1, levels) and torch.equal(undelay_codes(ids), codes)
    for level in range(levels):
        level_ids = ids[:, level].tolist()
        assert level_ids == [START] * (level + 1) + [c + CODES
                                                     for c in codes[:, level].tolist()] + [STOP] * (levels - level)
    broken = ids.clone()
    broken[level, level] = STOP  # where a start stands
    with pytest.raises(SegueError, match="not delayed"):
        undelay_codes(broken)
    with pytest.raises(SegueError, match="not delayed"):
        undelay_codes(ids[:levels])


def model(mixer: str = "gla", codes: tuple[int, ...] = (6, 4, 3)) -> MultiStream:
    torch.manual_seed(0)
    return MultiStream(StackConfig(1, 32, [mixer] * 2, options={"attention": {"heads": 2}}), codes)


@pytest.mark.parametrize("mixer", ["gla", "attention", "mlstm", "gru"])
def test_stepwise_decoding_equals_the_training_form(mixer: str) -> None:
    stream_model = model(mixer).double().eval()
    ids = delay_codes(torch.randint(0, 3, (9, 3)))[None]
    full, state, stepped = stream_model(ids), stream_model.init_state(1), []
    for at in range(ids.shape[1]):
        stepped.append(stream_model(ids[:, at : at + 1], state=state))
        state.commit()
    for level, logits in enumerate(full):
        assert logits.shape[-1] == CODES + stream_model.codes[level]
        torch.testing.assert_close(torch.cat([step[level] for step in stepped], 1), logits)
    tables = [stream_model.stack.embedding, *stream_model.stack.tables]
    summed = sum(table.weight[ids[..., level]] for level, table in enumerate(tables))
    torch.testing.assert_close(stream_model.stack.embed(ids, torch.zeros(1, 13).long()), summed)


def scale(n: int, first: int) -> torch.Tensor:
    """Frames whose levels follow from the first: what it is, half of it, and the turn of three."""
    up = (first + torch.arange(n)) % 6
    return torch.stack([up, up // 2, torch.arange(n) % 3], 1)


@pytest.mark.parametrize("mixer", ["gla", "gru"])
def test_a_stream_model_learns_and_continues_the_pattern(mixer: str) -> None:
    actual = model(mixer)

    def draw(step: int) -> Batch:
        ids = torch.stack([delay_codes(scale(14, (step + row) % 6)) for row in range(6)])
        return Batch(ids[:, :-1], next_targets(ids))

    run = learn(actual, draw, 60, rate=0.01, objective=EachStream())
    assert run.loss < 0.3
    prompts = [scale(5, 2), scale(1, 0), scale(0, 0)]
    actual.train()
    answers = continue_streams(actual, prompts, 6, top_k=1)
    assert actual.training
    assert torch.equal(answers[0], scale(11, 2)[5:]) and answers[1].shape == (6, 3)
    sampled = continue_streams(actual, [scale(5, 2)], 50, top_k=1)[0]
    assert len(sampled) < 20  # it says itself when the piece is over
    repeated = continue_streams(actual, prompts[1:], 6, seed=3, temperature=1.5)
    twice = continue_streams(actual, prompts[1:], 6, seed=3, temperature=1.5)
    assert all(torch.equal(a, b) for a, b in zip(repeated, twice))
    assert all(bool((codes >= 0).all()) and bool((codes < torch.tensor(actual.codes)).all()) for codes in repeated)
    with pytest.raises(SegueError, match=r"not \(frames, 3\)"):
        continue_streams(actual, [torch.zeros(4, 2, dtype=torch.long)], 1)


def test_start_tokens_are_not_targets() -> None:
    ids = delay_codes(torch.tensor([[1, 2], [3, 4]]))
    assert next_targets(ids).tolist() == [[3, -1], [5, 4], [1, 6], [1, 1]]
    single = model(codes=(5,))
    batch = Batch(ids[None, :-1, :1], next_targets(ids)[None, :, :1])
    expected = torch.nn.functional.cross_entropy(single(batch.tokens)[0][0], batch.targets[0, :, 0], reduction="sum")
    torch.testing.assert_close(EachStream()(single, batch).total, expected)
    with pytest.raises(SegueError, match="one code or more"):
        model(codes=())


# -- cross-attention by position

def reads(mixer: str) -> tuple[PositionAwareCrossAttention, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    cross: Any = make_cross_attention(8, {"mixer": mixer, "heads": 2} if mixer != "gru" else {"mixer": mixer})
    return cross.double(), torch.randn(2, 5, 8).double(), torch.randn(2, 6, 8).double()


@pytest.mark.parametrize("mixer", ["gla", "gru", "attention"])
def test_cross_attention_by_position_reads_places_then_values(mixer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cross, x, source = reads(mixer)
    lengths = torch.tensor([6, 4])
    y = cross.run(x, Layout(Layout.of(x).positions, source=(source, lengths)), {})
    order, places = torch.tensor([3, 0, 2, 1, 5, 4]), cross.position_vectors(6, x)
    full_lengths = torch.tensor([6, 6])

    def of(encoded: torch.Tensor) -> torch.Tensor:
        return cross.run(x, Layout(Layout.of(x).positions, source=(encoded, full_lengths)), {})

    reference = of(source)
    torch.testing.assert_close(reference[0], y[0])
    source[1, 4:] = 100.0  # what is no part of a row has no say
    torch.testing.assert_close(cross.run(x, Layout(Layout.of(x).positions, source=(source, lengths)), {}), y)
    source = source.clamp(max=3)
    reference = of(source)
    monkeypatch.setattr(cross, "position_vectors", lambda count, like: places[order])
    torch.testing.assert_close(of(source[:, order]), reference)  # order is in the positions alone
    monkeypatch.setattr(cross, "position_vectors", lambda count, like: places)
    assert float((of(source[:, order]) - reference).detach().abs().max()) > 1e-3
    keys = cross.project(source)[0]
    values = [torch.randn_like(keys) for _ in range(2)]

    def with_values(v: torch.Tensor) -> torch.Tensor:
        monkeypatch.setattr(cross, "project", lambda encoded: (keys, v))
        return of(source)

    first, second = map(with_values, values)
    torch.testing.assert_close(with_values(values[0] + 2 * values[1]), first + 2 * second)


def test_bad_options_are_refused() -> None:
    with pytest.raises(SegueError, match="options of cross-attention"):
        make_cross_attention(8, {"mixer": "gla", "nonsense": 1})
    with pytest.raises(SegueError, match="looks ahead"):
        make_cross_attention(8, {"mixer": "hydra", "heads": 2})
    with pytest.raises(SegueError, match="unknown"):
        make_cross_attention(8, {"mixer": "nothing"})


def test_states_within_a_cross_attention_have_their_own_learning_rate() -> None:
    groups = groups_of(Stack(StackConfig(9, 8, ["gru"], cross={"mixer": "mamba", "states": 4})), muon=False)
    assert {name.rpartition("cross.mixer.")[2] for name in groups["state"]} == {"scan.A_log", "scan.D", "step.bias"}
