"""Functions learned from examples in the prompt: elements, oracles, curves, and that nothing leaks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segue.analysis.curves import per_position_curve
from segue.errors import SegueError
from segue.models import Stack, StackConfig
from segue.objectives import SquaredError
from segue.objectives.regression import squared_errors
from segue.tasks import Curriculum, FunctionTask
from segue.tasks.functions import Prompts, averaging, least_squares, nearest_neighbours, windows
from segue.training.learn import learn


def regressor(pattern: str = "attention", inputs: int = 2, seed: int = 0) -> Stack:
    torch.manual_seed(seed)
    return Stack(StackConfig(1, 16, pattern.split("+"), learned_positions=64, inputs=inputs, tied=False)).eval()


def test_a_prompt_of_two_pairs_by_hand() -> None:
    x, y = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]), torch.tensor([[5.0, 6.0]])
    batch = Prompts(x, y, torch.tensor([[5.0, 7.0]])).batch
    assert batch.tokens.tolist() == [[[1, 2], [5, 0], [3, 4], [7, 0]]]
    assert batch.targets.tolist() == [[0, -1, 0, -1]] and batch.count == 2
    assert batch.channels["values"].tolist() == [[5, 0, 6, 0]]


@settings(max_examples=30, deadline=None)
@given(inputs=st.integers(1, 3), window=st.integers(1, 4), points=st.integers(1, 9), seed=st.integers(0, 99))
def test_labels_equal_sums_over_the_window(inputs: int, window: int, points: int, seed: int) -> None:
    task = FunctionTask(inputs, window)
    prompts = task.draw(3, points, torch.Generator().manual_seed(seed))
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(3, points, inputs, generator=generator)
    w = torch.randn(3, window, inputs, generator=generator) / (window * inputs) ** 0.5
    torch.testing.assert_close(prompts.x, x)
    for i in range(points):
        expected = sum((w[:, j] * x[:, i - j]).sum(-1) for j in range(window) if i >= j)
        torch.testing.assert_close(prompts.y[:, i], expected)
    if window == 1:  # the linear regression of Garg et al., (x @ w) of the same draws
        torch.testing.assert_close(prompts.y, (x @ w[:, 0, :, None])[..., 0])


def test_functions_have_unit_variance() -> None:
    for shape in ("linear", "relu", "autoregressive"):
        y = FunctionTask(2, 3, shape).draw(4000, 12, torch.Generator().manual_seed(1)).y[:, -1]
        assert float(y.square().mean()) == pytest.approx(1, abs=0.12)
    noisy = FunctionTask(1, 1, noise=2.0).draw(4000, 3, torch.Generator().manual_seed(1)).y
    assert float(noisy.square().mean()) == pytest.approx(5, rel=0.1)
    with pytest.raises(SegueError, match="shapes are"):
        FunctionTask(1, 1, "cubic")


@pytest.mark.parametrize("window", [1, 3])
def test_least_squares_equals_numpys(window: int) -> None:
    prompts = FunctionTask(2, window, noise=0.3).test(4, 9)
    results, ridged = least_squares(prompts, window), least_squares(prompts, window, ridge=0.7)
    features = windows(prompts.x, window).double().numpy()
    for row in range(4):
        assert results[row, 0] == 0
        for t in range(1, 9):
            a, b = features[row, :t], prompts.y[row, :t].double().numpy()
            expected = features[row, t] @ np.linalg.lstsq(a, b, rcond=None)[0]
            assert float(results[row, t]) == pytest.approx(expected, abs=1e-4)
            expected = features[row, t] @ np.linalg.solve(a.T @ a + 0.7 * np.eye(a.shape[1]), a.T @ b)
            assert float(ridged[row, t]) == pytest.approx(expected, abs=1e-4)
            nearest = np.argsort(np.linalg.norm(prompts.x[row, :t] - prompts.x[row, t], axis=-1))[:3]
            assert float(nearest_neighbours(prompts)[row, t]) == pytest.approx(float(b[nearest].mean()), abs=1e-5)
            mean = (prompts.y[row, :t, None] * prompts.x[row, :t]).mean(0)
            assert float(averaging(prompts)[row, t]) == pytest.approx(float(mean @ prompts.x[row, t]), abs=1e-5)


def test_the_floors_of_windows() -> None:
    """Window-aware least squares is exact once it has as many labels as weights; without the window two thirds of the
    variance are left."""
    prompts = FunctionTask(2, 3).test(1500, 24)
    aware, blind = ((predict - prompts.y).square().mean(0)
                    for predict in (least_squares(prompts, 3), least_squares(prompts)))
    assert float(aware[8:].max()) < 1e-4 < float(aware[3])
    assert float(blind[-4:].mean()) == pytest.approx(2 / 3, abs=0.12)
    mixed = prompts.shuffled(torch.Generator().manual_seed(0))
    assert float((least_squares(mixed, 3) - mixed.y).square()[:, -4:].mean()) > 0.6
    for row in range(3):  # the pairs themselves are kept
        before, after = (sorted(zip(p.x[row].flatten().tolist()[::2], p.y[row].tolist())) for p in (prompts, mixed))
        assert before == after


def test_no_predictor_beats_the_bayes_one() -> None:
    """Ridge with the ratio of noise variance to weight variance, against other ridges."""
    task, errors = FunctionTask(2, 2, noise=0.5), {}
    prompts = task.test(3000, 8)
    best = 0.25 * task.window * task.inputs
    for ridge in (best / 8, best, best * 8):
        errors[ridge] = float((least_squares(prompts, 2, ridge) - prompts.y).square().mean())
    assert min(errors, key=lambda ridge: errors[ridge]) == best


@pytest.mark.parametrize("pattern", ["attention", "mamba", "gru+gla"])
def test_predictions_do_not_see_their_own_label(pattern: str) -> None:
    model = regressor(pattern)
    prompts = FunctionTask(2, 2).test(2, 6)
    before = model(prompts.batch.tokens).logits[..., 0]
    changed = prompts.shown.clone()
    changed[:, 3] += 1
    after = model(Prompts(prompts.x, prompts.y, changed).batch.tokens).logits[..., 0]
    torch.testing.assert_close(after[:, :7], before[:, :7])  # up to x_4, which stands at 6
    assert ((after[:, 8::2] - before[:, 8::2]).abs() > 1e-7).all()


def test_corruption_replaces_a_share_of_what_is_shown_and_nothing_else() -> None:
    prompts = FunctionTask(1, 3).test(500, 16)
    for share in (0.0, 0.3, 1.0):
        other = prompts.corrupted(share, torch.Generator().manual_seed(0))
        changed = other.shown != prompts.shown
        assert float(changed.float().mean()) == pytest.approx(share, abs=0.03)
        assert torch.equal(other.y, prompts.y) and torch.equal(other.x, prompts.x)
        assert float(other.shown.var()) == pytest.approx(float(prompts.y.var()), rel=0.1)


def test_a_curriculum_grows_with_the_step() -> None:
    assert [Curriculum(5, 8, 10).at(step) for step in (0, 9, 10, 35, 99)] == [5, 5, 6, 8, 8]
    draw = FunctionTask(4, 1).batches(2, Curriculum(3, 7, 2, by=2), active=Curriculum(1, 4, 3))
    assert [draw(step).tokens.shape[1] for step in (0, 2, 50)] == [6, 10, 14]
    assert [int((draw(step).tokens[:, ::2] != 0).any(1).any(0).sum()) for step in (0, 3, 50)] == [1, 2, 4]
    assert torch.equal(draw(4).tokens, draw(4).tokens) and not torch.equal(draw(4).tokens, draw(5).tokens)
    curriculum = FunctionTask(1, 3).batches(2, 5, window=Curriculum(1, 3, 2))
    for step in range(6):
        single, batch = FunctionTask(1, 1 + step // 2).batches(2, 5)(step), curriculum(step)
        assert torch.equal(batch.tokens, single.tokens)
        assert torch.equal(batch.channels["values"], single.channels["values"])


def test_the_squared_error_by_hand_and_learned() -> None:
    model, task = regressor(inputs=1), FunctionTask(1, 1)
    batch = task.test(3, 5).batch
    loss = SquaredError()(model, batch)
    expected = (model(batch.tokens).logits[:, ::2, 0] - batch.channels["values"][:, ::2]).square()
    torch.testing.assert_close(loss.total, expected.sum())
    errors = squared_errors(model, batch)
    torch.testing.assert_close(errors[:, ::2], expected.detach())
    assert errors[:, 1::2].isnan().all() and loss.count == 15
    single = [SquaredError()(model, batch.rows(slice(i, i + 1))).total for i in range(3)]
    torch.testing.assert_close(torch.stack(single).sum(), loss.total)
    fixed = task.batches(16, 4)
    run = learn(regressor(inputs=1), lambda step: fixed(0), 60, rate=5e-3, objective=SquaredError())
    assert run.curve[-1]["loss"] < 0.5 * run.curve[0]["loss"]


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 99), rows=st.integers(20, 60))
def test_curves_are_means_with_bootstrap_intervals(seed: int, rows: int) -> None:
    values = torch.randn(rows, 3, generator=torch.Generator().manual_seed(seed)).double() + torch.tensor([0, 5, 9])
    values[0, 1] = torch.nan
    curve = per_position_curve(values, seed=seed)
    torch.testing.assert_close(curve.mean, values.nanmean(0))
    assert (curve.low < curve.mean).all() and (curve.mean < curve.high).all()
    error = float(values[:, 2].std()) / rows**0.5
    assert float(curve.high[2] - curve.low[2]) == pytest.approx(2 * 1.645 * error, rel=0.25)
    with pytest.raises(SegueError, match="level"):
        per_position_curve(values, level=1.0)
