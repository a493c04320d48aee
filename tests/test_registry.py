"""The table of metrics: every one computes, keeps its bounds and its direction, and has an interval that holds."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segue import SegueError
from segue.analysis.registry import METRICS, metric


def inputs(draw: np.random.Generator, n: int, accuracy: float) -> dict[str, Any]:
    """What metrics need, of predictions and samples of which so large a share is right."""
    targets, is_right = draw.integers(6, size=n), draw.random(n) < accuracy
    scores = draw.random((n, 6))
    scores[is_right, targets[is_right]] += 2
    chances = np.exp(3 * scores) / np.exp(3 * scores).sum(1, keepdims=True)
    real = [draw.integers(4000, size=12).tolist() for _ in range(n)]
    samples = [text if same else [1] * 12 for text, same in zip(real, is_right)]
    features = draw.normal(size=(n, 3)) + 4 * (1 - accuracy)
    ranks = 1 + 4 * (scores > scores[np.arange(n), targets][:, None]).sum(1)
    nats = -np.log(chances[np.arange(n), targets])
    return {"targets": targets, "scores": scores, "chances": chances, "ranks": ranks, "samples": samples,
            "references": real, "learned": real[: n // 2], "features": features, "real": draw.normal(size=(n, 3)),
            "nats": nats, "units": np.full(n, 2), "truth": targets + 0.5,
            "points": targets + np.where(is_right, 0.6, 3.0),
            "draws": targets[:, None] + np.where(is_right, 0.6, 3.0)[:, None] + draw.normal(size=(n, 9)),
            "scale": np.ones(n)}


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_declares_its_direction(name: str) -> None:
    draw, metric = np.random.default_rng(0), METRICS[name]
    good_inputs, bad_inputs = (inputs(draw, 100, accuracy) for accuracy in (0.95, 0.3))
    better, worse = (metric.measure(*(each[need] for need in metric.needs)) for each in (good_inputs, bad_inputs))
    assert metric.definition and all(metric.bounds[0] <= each.low <= each.value <= each.high <= metric.bounds[1]
                                     for each in (better, worse))
    assert better.n == 100
    if metric.higher is not None and name != "calibration error":  # which an unsure prediction may pass
        assert (better.value > worse.value) == metric.higher, (better, worse)


@given(st.integers(0, 10**6))
@settings(max_examples=10, deadline=None)
def test_the_interval_of_a_mean_equals_the_textbooks(seed: int) -> None:
    nats = np.random.default_rng(seed).exponential(size=400)
    result = METRICS["bits per unit"].measure(nats, np.full(400, 1 / math.log(2)), groups=400)
    assert result.value == pytest.approx(nats.mean())
    assert result.high - result.value == pytest.approx(1.96 * nats.std(ddof=1) / 20, rel=1e-6)


def test_the_interval_of_mauve_keeps_its_clusters() -> None:
    draw = np.random.default_rng(1)
    result = METRICS["MAUVE"].measure(*draw.normal(size=(2, 300, 4)))
    assert result.value == METRICS["MAUVE"].compute(*np.random.default_rng(1).normal(size=(2, 300, 4)))
    assert 0.005 < result.high - result.low < 0.3


def test_metrics_equal_known_values() -> None:
    assert metric("perplexity").compute([math.log(7)] * 5) == pytest.approx(7)
    assert metric("bits per unit").compute([math.log(4)], [1]) == pytest.approx(2)  # uniform DNA
    assert [metric("NDCG@10").compute([rank]) for rank in (1, 2, 3)] == pytest.approx([1, 0.6309, 0.5], abs=1e-4)
    chances = np.array([[0.7, 0.3]] * 10)
    assert metric("calibration error").compute(chances, np.array([0] * 7 + [1] * 3)) == pytest.approx(0)
    assert metric("Brier").compute(np.array([[0.0, 1.0]]), np.array([0])) == 2
    # Every row once, with nothing left out: too few for an interval.
    assert math.isnan(metric("MRR").measure([2]).low)


def test_bad_inputs_are_refused() -> None:
    with pytest.raises(SegueError, match="metric 'bleu' is unknown"):
        metric("bleu")
    with pytest.raises(SegueError, match="needs samples, references"):
        metric("BLEU").measure([["a"]])
    with pytest.raises(SegueError, match="2 samples, 1 references"):
        metric("BLEU").measure([["a"], ["b"]], [["a"]])
    with pytest.raises(SegueError, match="at least one"):
        metric("distinct-1").measure([])
