"""Views of sequences, the linear heads on them, and their weighted sum."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segue.analysis.ensemble import COMBINED, STRENGTHS, Learn, ViewEnsemble, fit_ensemble, heads
from segue.analysis.views import Near, Runs, Scaled, Sparse, course, spectrum
from segue.data.reading import of
from segue.errors import SegueError
from segue.kernels.descent import dual_coordinate_descent

ROWS = st.lists(st.lists(st.integers(0, 3), max_size=9).map(np.array), min_size=3, max_size=6)


def dense(table: Sparse) -> np.ndarray:
    return table @ np.eye(table.shape[1], dtype=np.float32)


@settings(max_examples=40, deadline=None)
@given(ROWS, st.booleans())
def test_ngram_counts_equal_those_by_hand(rows: list[np.ndarray], placed: bool) -> None:
    view, table = Runs.learn(rows, bits=100, placed=placed)
    counts = [Counter((*row[i : i + n].tolist(), *([i] if placed else []), n) for n in range(1, view.order + 1)
                      for i in range(len(row) - n + 1)) for row in rows]
    having = Counter(run for count in counts for run in count)
    frequent = [run for run, often in having.items() if often > 1]
    weights = np.array([1 + np.log((1 + len(rows)) / (1 + having[run])) for run in frequent])
    expected = np.array([[1 + np.log(count[run]) if count[run] else 0 for run in frequent]
                         for count in counts]) * weights
    expected = expected.reshape(len(rows), -1)
    expected /= np.maximum(np.linalg.norm(expected, axis=1, keepdims=True), 1e-9)
    result = dense(table)
    assert result.shape == expected.shape
    np.testing.assert_allclose(result @ result.T, expected @ expected.T, atol=1e-5)  # columns have another order
    np.testing.assert_allclose(dense(view(rows[::-1])), result[::-1])
    keep = np.arange(len(rows)) % 2 == 0
    np.testing.assert_allclose(dense(table[keep]), result[keep])


@pytest.mark.parametrize("hinge", [True, False])
def test_descent_reaches_the_minimum(hinge: bool) -> None:
    draw = np.random.default_rng(0)
    x = draw.normal(size=(30, 6)) * (draw.random((30, 6)) < 0.5)
    y = np.sign(draw.normal(size=30)) if hinge else draw.normal(size=30)
    row, columns = np.nonzero(x)
    starts = np.append(0, np.cumsum(np.bincount(row, minlength=30)))
    weight, dual = np.zeros(7), np.zeros(30)
    orders = np.stack([draw.permutation(30) for _ in range(400)])
    values = x[row, columns].astype(np.float32)
    dual_coordinate_descent(starts, columns, values, y, 0.7, hinge, weight, dual, orders, 0.0)
    w = torch.tensor(weight, requires_grad=True)
    score = torch.from_numpy(x).float().double() @ w[:-1] + w[-1]
    loss = (1 - torch.from_numpy(y) * score).clamp(min=0) if hinge else torch.from_numpy(y) - score
    (w.square().sum() / 2 + 0.7 * loss.square().sum()).backward()
    assert w.grad is not None and float(w.grad.abs().max()) < 1e-4


def test_both_heads_separate_linear_classes() -> None:
    draw = np.random.default_rng(0)
    x = draw.normal(size=(200, 5)).astype(np.float32) / 5**0.5
    for classes, y in ((3, (x[:, :3] * 9).argmax(1)), (2, (x[:, 0] > 0).astype(int)), (0, x[:, 0] + 0.5)):
        y = y.astype(np.float32) if not classes else y
        starts = np.arange(0, 1001, 5)
        sparse = Sparse(starts, np.tile(np.arange(5), 200), x.reshape(-1), 5)
        for table in (x, sparse):
            results = [table @ weight + bias for weight, bias in heads(table, y, classes)]
            assert len(results) == len(STRENGTHS) and results[0].shape == (200, max(1, classes))
            assert (results[2].argmax(1) == y).mean() > 0.95 if classes else np.abs(results[3][:, 0] - y).max() < 0.1


def test_the_ensemble_is_as_good_as_its_best_view() -> None:
    draw = np.random.default_rng(0)
    y = draw.integers(3, size=300)
    rows = [draw.integers(0, 4, 12) + 4 * (draw.random(12) < 0.4) * c for c in y]
    views: dict[str, Any] = {"runs": rows, "noise": draw.normal(size=(300, 4)),
                             "near": np.eye(3)[y] + draw.normal(size=(300, 3))}
    learn: dict[str, Learn] = {"runs": partial(Runs.learn, bits=4), "noise": Scaled.learn, "near": Near.learn}
    result, held_out = fit_ensemble(learn, views, y, 3, np.arange(300))
    accuracies = {name: float((scores_of_view.argmax(1) == y[held_out.rows]).mean())
                  for name, scores_of_view in held_out.scores.items()}
    assert len(held_out.rows) == 300 and accuracies["noise"] < 0.5
    assert accuracies[COMBINED] >= max(accuracies.values()) - 0.01
    assert result.weights[list(result.views).index("noise")] < 0.3 * result.weights.max()
    tensors, values = result.state()
    restored = ViewEnsemble.from_state(tensors, values)
    for name, scores in result(views).items():
        np.testing.assert_array_equal(restored(views)[name], scores)
    with pytest.raises(ValueError, match="other views"):
        ViewEnsemble.from_state({**tensors, "weights": torch.ones(2)}, values)
    doubled = {"noise": np.tile(views["noise"], (2, 1))}  # the same row does not teach its own class
    _, held_out = fit_ensemble({"noise": Scaled.learn}, doubled, np.tile(y, 2), 3, np.tile(np.arange(300), 2))
    assert (held_out.scores["noise"].argmax(1) == np.tile(y, 2)[held_out.rows]).mean() < 0.5
    with pytest.raises(SegueError, match="all the same"):
        fit_ensemble({"noise": Scaled.learn}, views, y, 3, np.zeros(300))


def test_ensembles_predict_numbers() -> None:
    draw = np.random.default_rng(0)
    x = draw.normal(size=(300, 4))
    y = (x[:, 0] - x[:, 1] + 0.1 * draw.normal(size=300)).astype(np.float32)
    results, held_out = fit_ensemble({"all": Scaled.learn, "one": Scaled.learn}, {"all": x, "one": x[:, :1]}, y, 0,
                                     np.arange(300))
    error = {name: float(np.square(scores_of_view[:, 0] - y[held_out.rows]).mean())
             for name, scores_of_view in held_out.scores.items()}
    assert error[COMBINED] < 0.03 < error["one"] and len(STRENGTHS) > 1
    assert np.square(results({"all": x, "one": x[:, :1]})[COMBINED][:, 0] - y).mean() < 0.03


def test_number_views_keep_the_course_of_values() -> None:
    table = np.array([[1.0, np.nan], [3.0, np.nan], [np.nan, 5.0], [np.nan, np.nan]])
    rows = [np.array([0, 2, 1, 2]), np.array([3, 0])]
    np.testing.assert_allclose(course(rows, table, 4), [[1, 1, 3, 3, 5, 5, 5, 5], [1, 1, 1, 1, 0, 0, 0, 0]])
    np.testing.assert_allclose(course([np.array([0, 0, 1, 1])], table[:, :1], 2), [[1, 3]])
    low, high = (np.sin(np.arange(256) * speed) for speed in (0.05, 1.5))
    levels = np.concatenate([low, high])[:, None]
    first, second = spectrum([np.arange(256), np.arange(256, 512)], levels, 32)
    assert np.isfinite(first).all() and len(first) == len(second) and np.abs(first - second).max() > 1
    assert spectrum([np.array([0]), np.array([3])], table, 0).shape == (2, 12)


def test_kinds_declare_numeric_elements() -> None:
    series: Any = of([["a=1", "b=2", "a=3", "b=nan"]], kind="series")
    numbers = series.kind.numbers(series.codec())
    assert numbers.shape[1] == 2 and sorted(numbers[np.isfinite(numbers)]) == [1, 2, 3]
    picture: Any = of([["palette2:2", "0", "7", "4", "1"]], kind="picture")
    codec = picture.codec()
    assert picture.kind.numbers(codec)[codec.encode(["4", "1"])].tolist() == [[1, 0, 0], [0, 0, 1]]
    sound: Any = of([[0, 127, 255]], kind="sound")
    assert (np.diff(sound.kind.numbers(sound.codec())[:256, 0]) > 0).all()
    text: Any = of([b"words"], kind="text")
    assert text.kind.numbers(text.codec()) is None
