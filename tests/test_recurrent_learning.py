"""The parity checks of the recurrent review: truncated and real-time learning against plain back-propagation."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from segue.errors import SegueError
from segue.mixers import GRU, LSTM, Attention, Bidirectional, Elman, Jordan, Mixer
from segue.objectives.policy import advantages, clipped_policy
from segue.training.truncated import rtrl, truncated_bptt

CELLS = [Elman, Jordan, LSTM, GRU]


def bptt(mixer: Mixer, x: Tensor, target: Tensor) -> dict[str, Tensor]:
    mixer.zero_grad()
    (mixer(x) - target).square().sum().backward()
    return {name: p.grad.clone() for name, p in mixer.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("cell", CELLS)
def test_rtrl_equals_bptt(cell: type[Mixer]) -> None:
    torch.manual_seed(0)
    mixer = cell(5).double()
    x, target = torch.randn(2, 6, 5).double(), torch.randn(2, 6, 5).double()
    recurrence = mixer.recurrence
    results = rtrl(recurrence, (x,), recurrence.initial(2, x), lambda row, t, y: (y[0] - target[row, t]).square().sum())
    for name, expected in bptt(mixer, x, target).items():
        torch.testing.assert_close(results[name.removeprefix("recurrence.")], expected, atol=1e-8, rtol=1e-8)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(length=st.integers(1, 12), k1=st.integers(1, 5), times=st.integers(1, 4),
       cell=st.sampled_from([*CELLS, Attention]))
def test_truncated_bptt_is_exact_when_it_reaches_far_enough(length: int, k1: int, times: int,
                                                            cell: type[Mixer]) -> None:
    torch.manual_seed(length)
    mixer = cell(8).double()
    x, target = torch.randn(2, length, 8).double(), torch.randn(2, length, 8).double()
    expected = bptt(mixer, x, target)
    mixer.zero_grad()
    outputs = []
    for span, y in truncated_bptt(mixer.extend, mixer.init_state(2), x, k1, times * k1):
        (y - target[:, span]).square().sum().backward()
        outputs.append(y.detach())
    torch.testing.assert_close(torch.cat(outputs, 1), mixer(x).detach())  # the state is carried exactly
    reaches = times * k1 >= length
    for name, p in mixer.named_parameters():
        same = torch.allclose(p.grad, expected[name], atol=1e-9)
        assert same or not reaches, name


def test_truncated_gradients_differ_from_full_ones() -> None:
    torch.manual_seed(0)
    mixer = Elman(8).double()
    x, target = torch.randn(2, 12, 8).double(), torch.randn(2, 12, 8).double()
    expected = bptt(mixer, x, target)
    mixer.zero_grad()
    for span, y in truncated_bptt(mixer.extend, mixer.init_state(2), x, 3):
        (y - target[:, span]).square().sum().backward()
    slopes = dict(mixer.named_parameters())["recurrence.module.weight_hh_l0"].grad
    assert not torch.allclose(slopes, expected["recurrence.module.weight_hh_l0"], atol=1e-3)


def test_bad_truncation_is_refused() -> None:
    for k2 in (4, 0):
        with pytest.raises(SegueError, match="multiple"):
            next(truncated_bptt(Elman(4).extend, Elman(4).init_state(1), torch.zeros(1, 4, 4), 3, k2))


@pytest.mark.parametrize("cell", CELLS)
def test_bidirectional_equals_both_directions(cell: type[Mixer]) -> None:
    torch.manual_seed(0)
    name = cell.__name__.lower()
    mixer = Bidirectional(6, mixer=name).double()
    x = torch.randn(2, 9, 6).double()
    from segue.mixers import Layout

    both = mixer.read_both_ways(x, Layout.chain((2, 9)))
    torch.testing.assert_close(both, torch.cat([mixer.ahead(x), mixer.back(x.flip(1)).flip(1)], -1))
    starts = torch.zeros(2, 12, dtype=torch.bool)
    starts[:, 9] = True  # padding is a document of its own, so the backward pass does not begin in it
    padded = torch.cat([x, torch.randn(2, 3, 6).double()], 1)
    results = mixer(padded, Layout.chain((2, 12), starts=starts))[:, :9]
    torch.testing.assert_close(results, mixer(x))
    with pytest.raises(SegueError, match="looks ahead"):
        mixer.extend(x, Elman(6).init_state(2))


@given(st.integers(1, 9), st.integers(0, 1000), st.floats(0, 1), st.floats(0, 1))
@settings(max_examples=25, deadline=None)
def test_advantages_end_with_their_episodes(length: int, seed: int, discount: float, trace: float) -> None:
    draw = torch.Generator().manual_seed(seed)
    rewards, values = (torch.randn(2, length + extra, generator=draw, dtype=torch.float64) for extra in (0, 1))
    ends = torch.rand(2, length, generator=draw) < 0.3
    results = advantages(rewards, values, ends, discount, trace)
    for row in range(2):
        for start in range(length):
            total = 0.0
            for t in range(start, length):
                after = 0.0 if ends[row, t] else float(values[row, t + 1])
                total += (discount * trace) ** (t - start) * float(rewards[row, t] + discount * after - values[row, t])
                if ends[row, t]:
                    break
            assert float(results[row, start]) == pytest.approx(total, abs=1e-9)


def test_policy_gradients_stop_at_the_clip() -> None:
    logs = torch.tensor([0.0, 0.5, -0.5, 0.5, -0.5], requires_grad=True)  # as it was, and too far either way
    loss = clipped_policy(logs, torch.zeros(5), torch.tensor([1.0, 1.0, -1.0, -1.0, 1.0]))
    loss.backward()
    e = torch.tensor(0.5).exp()
    assert float(loss) == pytest.approx(-float(1 + 1.2 - 0.8 - e + 1 / e) / 5)
    assert logs.grad is not None
    torch.testing.assert_close(logs.grad, torch.stack([torch.tensor(-1.0), *torch.zeros(2), e, -1 / e]) / 5)
