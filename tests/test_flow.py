"""Flow matching against closed forms and a scheduler written by hand; any backbone, any kind of real vectors."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from segue.decoding.flow import ClipRollout, euler
from segue.errors import SegueError
from segue.mixers.layout import Layout
from segue.models import SpaceTimeConfig, SpatioTemporalDiT, StackConfig
from segue.models.flow import EvenField, Flow, Guided, StackField, time_features
from segue.models.stack import both_ways
from segue.objectives import Batch, FlowMatching, generator_of
from segue.training.learn import learn

MEAN = torch.tensor([0.5, -1.0], dtype=torch.float64)
COVARIANCE = torch.tensor([[1.0, 0.6], [0.6, 0.5]], dtype=torch.float64)


def velocity(t: float) -> tuple[Tensor, Tensor]:
    """A (2, 2) and b (2,): of normal data the mean velocity at x and t is A x + b."""
    mixed = (1 - t) ** 2 * COVARIANCE + t**2 * torch.eye(2)
    slope = ((1 - t) * COVARIANCE - t * torch.eye(2)) @ torch.linalg.inv(mixed)
    return slope, MEAN - (1 - t) * slope @ MEAN


def exact(x: Tensor, t: Tensor, noisy: Tensor, layout: Layout, conditions: Any = None) -> Tensor:
    slope, offset = velocity(float(t[0]))
    return x @ slope.T + offset


def sample_data(rows: int, generator: torch.Generator) -> Tensor:
    noise = torch.randn(rows, 1, 2, generator=generator, dtype=torch.float64)
    return MEAN + noise @ torch.linalg.cholesky(COVARIANCE).T


class Always(Flow):
    """One time."""

    def shift_times(self, t: Tensor) -> Tensor:
        return torch.full_like(t, 0.3)


class Affine(nn.Linear):
    def forward(self, x: Tensor, *_: Any) -> Tensor:
        return super().forward(x)


def test_a_linear_field_learns_the_closed_form() -> None:
    model = Affine(2, 2).double()

    def batch(step: int) -> Batch:
        return Batch(sample_data(1000, generator_of(0, step)), torch.zeros(1000, 1, dtype=torch.long))

    learn(model, batch, 300, rate=0.03, objective=FlowMatching(Always()))
    slope, offset = velocity(0.3)
    torch.testing.assert_close(model.weight.detach(), slope, atol=0.05, rtol=0)
    torch.testing.assert_close(model.bias.detach(), offset, atol=0.05, rtol=0)


def test_the_closed_form_has_the_least_loss() -> None:
    rows = 40_000
    clean, t = sample_data(rows, torch.Generator().manual_seed(0)), 0.3
    torch.manual_seed(0)
    batch = Batch(clean, torch.zeros(rows, 1, dtype=torch.long))
    loss = FlowMatching(Always())(exact, batch)  # type: ignore[arg-type]
    slope, _ = velocity(t)
    mixed = (1 - t) ** 2 * COVARIANCE + t**2 * torch.eye(2)
    smallest = COVARIANCE + torch.eye(2) - slope @ mixed @ slope.T  # the variance of the velocity that x leaves open
    assert float(loss.total) / rows == pytest.approx(float(smallest.trace()) / 2, rel=0.02)


def test_euler_steps_end_in_the_mean_and_covariance_of_the_data() -> None:
    x = torch.zeros(20_000, 1, 2, dtype=torch.float64)
    samples = euler(exact, x, torch.ones(20_000, 1, dtype=torch.bool), steps=100)[:, 0]
    torch.testing.assert_close(samples.mean(0), MEAN, atol=0.03, rtol=0)
    torch.testing.assert_close(samples.T.cov(), COVARIANCE, atol=0.03, rtol=0)


@settings(max_examples=20, deadline=None)
@given(st.floats(0.3, 5), st.integers(1, 20))
def test_euler_steps_equal_a_scheduler_by_hand(shift: float, steps: int) -> None:
    """With the usual signs: the model predicts noise - data, and each step adds (next sigma - sigma) times that."""
    sigmas = [1 - i / steps for i in range(steps)]
    sigmas = [shift * s / (1 + (shift - 1) * s) for s in sigmas] + [0.0]
    x = torch.randn(3, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = x.clone()
    for now, after in zip(sigmas, sigmas[1:]):
        velocity_now = -(expected.sin() + now)
        expected = expected + (after - now) * velocity_now
    noisy = torch.ones(3, 2, dtype=torch.bool)
    samples = euler(lambda x, t, *_: x.sin() + t[:, None, None], torch.empty_like(x), noisy,
                    flow=Flow(shift), steps=steps)
    torch.testing.assert_close(samples, expected, atol=1e-6, rtol=0)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.booleans(), min_size=6, max_size=6), st.integers(0, 99))
def test_known_elements_are_returned_unchanged(mask: list[bool], seed: int) -> None:
    x = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(seed))
    noisy = torch.tensor(mask).view(2, 3)
    inputs = list[Tensor]()

    def model(x: Tensor, *_: Any) -> Tensor:
        inputs.append(x.clone())
        return x.cos()

    samples = euler(model, x, noisy, steps=3, seed=seed)
    for x_seen in (*inputs, samples):
        assert torch.equal(x_seen[~noisy], x[~noisy])
    torch.manual_seed(seed)
    FlowMatching()(lambda x, *_: inputs.append(x) or x, Batch(x, torch.where(noisy, 0, -1)))  # type: ignore[arg-type]
    assert torch.equal(inputs[-1][~noisy], x[~noisy])


def test_known_elements_have_no_loss_and_may_be_blurred() -> None:
    x, targets = torch.randn(4, 3, 2), torch.tensor([[-1, 0, 0]] * 4)
    inputs = list[Tensor]()

    def model(x: Tensor, t: Tensor, noisy: Tensor, *_: Any) -> Tensor:
        inputs.append(x)
        return torch.where(noisy[..., None], 0.0, torch.nan)

    loss = FlowMatching(blur=0.1)(model, Batch(x, targets))  # type: ignore[arg-type]
    assert loss.count == 8 and math.isfinite(float(loss.total))
    assert 0.01 < float((inputs[0] - x)[:, 0].std()) < 0.3


def test_conditions_are_dropped_row_by_row() -> None:
    ids, draw = torch.arange(3000).view(1000, 3), torch.Generator().manual_seed(0)
    loss = FlowMatching(drop={"a": 0.25})
    is_kept = (loss.drop_condition("a", ids, draw) >= 0).all(1)
    assert torch.equal(loss.drop_condition("b", ids, draw), ids) and 0.7 < float(is_kept.float().mean()) < 0.8
    dropped = loss.drop_condition("a", torch.ones(1000, 2, 3), draw).flatten(1)  # of real vectors, zeros
    assert ((dropped == 0).all(1) | (dropped == 1).all(1)).all() and 0.2 < float((dropped == 0).float().mean()) < 0.3


def test_condition_dropout_does_not_change_the_noise() -> None:
    batch = Batch(torch.randn(4, 3, 2), torch.zeros(4, 3).long(), channels={"a": torch.ones(4, 3).long()})

    def after(objective: FlowMatching) -> Tensor:
        torch.manual_seed(0)
        objective(lambda x, *_: x, batch)  # type: ignore[arg-type]
        return torch.get_rng_state()

    assert torch.equal(after(FlowMatching()), after(FlowMatching(drop={"a": 0.5})))


def field(mixer: str, size: int = 2, condition_classes: dict[str, int] | None = None) -> StackField:
    torch.manual_seed(0)
    return StackField(both_ways(StackConfig(1, 24, [mixer, mixer])), size, condition_classes)


def test_guidance_extrapolates_from_the_unconditional_field() -> None:
    model = field("gru", condition_classes={"class": 3})
    x, t, noisy = torch.randn(2, 5, 2), torch.rand(2), torch.ones(2, 5, dtype=torch.bool)
    layout, ids = Layout.of(x), torch.tensor([0, 2])
    conditional, unconditional = model(x, t, noisy, layout, {"class": ids}), model(x, t, noisy, layout)
    assert not torch.allclose(conditional, unconditional)
    torch.testing.assert_close(Guided(model, 3.0)(x, t, noisy, layout, {"class": ids}),
                               unconditional + 3 * (conditional - unconditional))
    torch.testing.assert_close(Guided(model, 1.0)(x, t, noisy, layout, {"class": ids}), conditional)
    torch.testing.assert_close(Guided(model, 3.0, ("other",))(x, t, noisy, layout, {"class": ids}), conditional)
    torch.testing.assert_close(model(x, t, noisy, layout, {"class": torch.tensor([-1, 2])})[0], unconditional[0])
    with pytest.raises(SegueError, match="classes"):
        model(x, t, noisy, layout, {"class": torch.tensor([3, 0])})


def test_an_even_field_leaves_unit_deviation_to_its_network() -> None:
    """For data that are noise the residual is zero; for other data it has unit deviation at every time."""
    inner, generator = field("gru"), torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 4000, 1, 2, generator=generator)
    noisy = torch.ones(4000, 1, dtype=torch.bool)
    for time in (0.0, 0.1, 0.5, 0.9, 1.0):
        t = torch.full((4000,), time)
        x = Flow.add_noise(clean, noise, t, noisy)
        spread = (1 - time) ** 2 + time**2
        residual = (time * clean - (1 - time) * noise) / spread**0.5
        inner_output = inner(x, t, noisy, Layout.of(x))
        model = EvenField(inner)(x, t, noisy, Layout.of(x))
        torch.testing.assert_close(model - (clean - noise), (inner_output - residual) / spread**0.5)
        assert abs(float(residual.std()) - 1) < 0.03 and abs(float((x * residual).mean())) < 0.03


def circles(rows: int, length: int, seed: int) -> Tensor:
    """Points on circles, a tenth of a turn a step, so that continuations are known."""
    angle = 2 * math.pi * (torch.rand(rows, 1, generator=torch.Generator().manual_seed(seed)) +
                           torch.arange(length) / 10)
    return 1.4 * torch.stack([angle.cos(), angle.sin()], -1)


@pytest.mark.parametrize("mixer", ["gru", "attention", pytest.param("mamba", marks=pytest.mark.slow)])
def test_a_rollout_continues_a_series(mixer: str) -> None:
    model = field(mixer) if mixer != "mamba" else EvenField(field(mixer))

    def batch(step: int) -> Batch:
        return Batch(circles(32, 6, step), torch.tensor([[-1] * 4 + [0] * 2] * 32))

    learn(model, batch, 150, rate=5e-3, objective=FlowMatching(), cooldown=0.5)
    series = circles(20, 10, 1_000_000)
    continued = ClipRollout(model, block=2, context=4, steps=10)(series[:, :4], 3)
    assert torch.equal(continued[:, :4], series[:, :4]) and continued.shape == series.shape
    away = (continued - series)[:, 4:].square().sum(-1).mean().sqrt()
    still = (series[:, 3:4] - series)[:, 4:].square().sum(-1).mean().sqrt()  # who stays where he is
    assert float(away) < 0.35 * float(still)


def test_a_rollout_equals_single_clips() -> None:
    model, calls = field("lstm", condition_classes={"class": 3}), list[tuple[int, tuple[int, ...]]]()
    start = circles(2, 3, 0)

    def conditions(clip: int, grid: tuple[int, ...]) -> dict[str, Tensor]:
        calls.append((clip, grid))
        return {"class": torch.tensor([clip, 2])}

    rolled_out = ClipRollout(model, block=2, context=3, steps=4, guidance=2.0)(start, 2, conditions, seed=5)
    x = start
    for clip in range(2):
        context_and_blank = torch.cat([x[:, -3:], torch.full((2, 2, 2), torch.nan)], 1)
        noisy = torch.tensor([[False] * 3 + [True] * 2] * 2)
        new = euler(model, context_and_blank, noisy, None, {"class": torch.tensor([clip, 2])}, steps=4, guidance=2.0,
                    seed=5 + clip)
        x = torch.cat([x, new[:, -2:]], 1)
    assert torch.equal(rolled_out, x) and calls == [(0, (5,)), (1, (5,))]
    with pytest.raises(SegueError, match="goes on from 3"):
        ClipRollout(model, block=2, context=3)(start[:, :2], 1)
    with pytest.raises(SegueError, match="clips of 0 frames"):
        ClipRollout(model, block=0)


@pytest.mark.parametrize(("space", "time"), [("s4nd", "gru"), ("hydra", "attention")])
def test_one_frame_films_are_generated_by_class(space: str, time: str) -> None:
    """Pictures of one brightness, conditioned on its class."""
    torch.manual_seed(0)
    options = {"s4nd": {"states": 4}, "hydra": {"states": 4}}[space]
    model = SpatioTemporalDiT(SpaceTimeConfig(1, 16, 1, space, time, options, {}, text=2, heads=2))

    def batch(step: int) -> Batch:
        classes = torch.randint(2, (32, 1), generator=generator_of(0, step))
        pictures = (2.0 * classes - 1)[..., None].expand(-1, 9, -1)
        return Batch(pictures, torch.zeros(32, 9, dtype=torch.long), channels={"text": classes}, grid=(1, 3, 3))

    learn(model, batch, 120, rate=1e-2, objective=FlowMatching(drop={"text": 0.2}), cooldown=0.5)
    classes = torch.tensor([[0], [1]] * 4)
    samples = euler(model, torch.zeros(8, 9, 1), torch.ones(8, 9, dtype=torch.bool),
                    Layout.chain((8, 9), grid=(1, 3, 3)), {"text": classes}, steps=10)
    assert bool((samples.mean((1, 2)).sign() == 2 * classes[:, 0] - 1).all())


def test_flow_times_fall_from_one_to_zero() -> None:
    even, shifted = Flow().times(4), Flow(3.0).times(4)
    assert even.tolist() == [1, 0.75, 0.5, 0.25,
                             0] and shifted[0] == 1 and shifted[-1] == 0 and bool((shifted >= even).all())
    assert time_features(torch.zeros(2, 3), 8).shape == (2, 3, 8)
    for call, message in ((lambda: Flow(0.0), "above 0"), (lambda: Flow().times(0), "at least one step")):
        with pytest.raises(SegueError, match=message):
            call()
    with pytest.raises(SegueError, match="real"):
        euler(exact, torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool))
