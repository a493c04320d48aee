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
from segue.models import StackConfig
from segue.models.streams import CODES, START, STOP, MultiStream, delay_codes, next_targets, undelay_codes
from segue.objectives import Batch, EachStream
from segue.training.learn import learn

# -- the delay pattern

@settings(max_examples=60, deadline=None)
@given(st.integers(1, 8), st.integers(0, 9), st.integers(0, 100))
def test_undelayed_is_the_inverse(levels: int, frames: int, seed: int) -> None:
    codes = torch.randint(0, 5, (frames, levels), generator=torch.Generator().manual_seed(seed))
    ids = delay_codes(codes)
    assert ids.shape == (frames + levels + 1, levels) and torch.equal(undelay_codes(ids), codes)
    for level in range(levels):
        told = ids[:, level].tolist()
        assert told == [START] * (level + 1) + [c + CODES for c in codes[:, level].tolist()] + [STOP] * (levels - level)
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
def test_decoding_reads_what_training_reads(mixer: str) -> None:
    ours = model(mixer).double().eval()
    ids = delay_codes(torch.randint(0, 3, (9, 3)))[None]
    whole, state, said = ours(ids), ours.init_state(1), []
    for at in range(ids.shape[1]):
        said.append(ours(ids[:, at : at + 1], state=state))
        state.commit()
    for level, logits in enumerate(whole):
        assert logits.shape[-1] == CODES + ours.codes[level]
        torch.testing.assert_close(torch.cat([each[level] for each in said], 1), logits)
    tables = [ours.stack.embedding, *ours.stack.tables]
    summed = sum(table.weight[ids[..., level]] for level, table in enumerate(tables))
    torch.testing.assert_close(ours.stack.embed(ids, torch.zeros(1, 13).long()), summed)


def scale(n: int, first: int) -> torch.Tensor:
    """Frames whose levels follow from the first: what it is, half of it, and the turn of three."""
    up = (first + torch.arange(n)) % 6
    return torch.stack([up, up // 2, torch.arange(n) % 3], 1)


@pytest.mark.parametrize("mixer", ["gla", "gru"])
def test_it_learns_and_goes_on_within_the_pattern(mixer: str) -> None:
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
    whole = continue_streams(actual, [scale(5, 2)], 50, top_k=1)[0]
    assert len(whole) < 20  # it says itself when the piece is over
    again = continue_streams(actual, prompts[1:], 6, seed=3, temperature=1.5)
    twice = continue_streams(actual, prompts[1:], 6, seed=3, temperature=1.5)
    assert all(torch.equal(a, b) for a, b in zip(again, twice))
    assert all(bool((codes >= 0).all()) and bool((codes < torch.tensor(actual.codes)).all()) for codes in again)
    with pytest.raises(SegueError, match=r"not \(frames, 3\)"):
        continue_streams(actual, [torch.zeros(4, 2, dtype=torch.long)], 1)


def test_starts_are_not_asked_for() -> None:
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
    made: Any = make_cross_attention(8, {"mixer": mixer, "heads": 2} if mixer != "gru" else {"mixer": mixer})
    return made.double(), torch.randn(2, 5, 8).double(), torch.randn(2, 6, 8).double()


@pytest.mark.parametrize("mixer", ["gla", "gru", "attention"])
def test_it_asks_where_and_then_what(mixer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cross, x, source = reads(mixer)
    lengths = torch.tensor([6, 4])
    y = cross.run(x, Layout(Layout.of(x).positions, source=(source, lengths)), {})
    order, places = torch.tensor([3, 0, 2, 1, 5, 4]), cross.position_vectors(6, x)
    whole = torch.tensor([6, 6])

    def of(encoded: torch.Tensor) -> torch.Tensor:
        return cross.run(x, Layout(Layout.of(x).positions, source=(encoded, whole)), {})

    plain = of(source)
    torch.testing.assert_close(plain[0], y[0])
    source[1, 4:] = 100.0  # what is no part of a row has no say
    torch.testing.assert_close(cross.run(x, Layout(Layout.of(x).positions, source=(source, lengths)), {}), y)
    source = source.clamp(max=3)
    plain = of(source)
    monkeypatch.setattr(cross, "position_vectors", lambda count, like: places[order])
    torch.testing.assert_close(of(source[:, order]), plain)  # order is in the positions alone
    monkeypatch.setattr(cross, "position_vectors", lambda count, like: places)
    assert float((of(source[:, order]) - plain).detach().abs().max()) > 1e-3
    keys = cross.project(source)[0]
    values = [torch.randn_like(keys) for _ in range(2)]

    def with_values(v: torch.Tensor) -> torch.Tensor:
        monkeypatch.setattr(cross, "project", lambda encoded: (keys, v))
        return of(source)

    one, two = map(with_values, values)
    torch.testing.assert_close(with_values(values[0] + 2 * values[1]), one + 2 * two)


def test_a_wrong_option_is_told() -> None:
    with pytest.raises(SegueError, match="options of cross-attention"):
        make_cross_attention(8, {"mixer": "gla", "nonsense": 1})
    with pytest.raises(SegueError, match="looks ahead"):
        make_cross_attention(8, {"mixer": "hydra", "heads": 2})
    with pytest.raises(SegueError, match="unknown"):
        make_cross_attention(8, {"mixer": "nothing"})
