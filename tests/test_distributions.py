"""How near two sets are by their features: closed forms, plain definitions, and extractors of several models."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segue import SegueError
from segue.analysis.distributions import HashedNgrams, frechet_distance, frontier_area, k_means, mauve, near_groups
from segue.analysis.embedding import embed
from segue.models import Stack, StackConfig


def whitened(draw: np.random.Generator, n: int, d: int) -> np.ndarray:
    """Rows whose mean is 0 and whose covariance is the identity, exactly."""
    rows = draw.normal(size=(n, d))
    rows -= rows.mean(0)
    values, vectors = np.linalg.eigh(np.cov(rows, rowvar=False))
    return rows @ vectors / np.sqrt(values)


@given(st.integers(1, 6), st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_frechet_distances_of_gaussians_equal_the_closed_form(d: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    first, other = whitened(draw, 40, d + 1)[:, :d], whitened(draw, 50, d + 1)[:, :d]
    away, spread = draw.normal(size=d), draw.uniform(0.1, 3, d)
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-8)
    assert frechet_distance(first, other + away) == pytest.approx(np.square(away).sum(), rel=1e-6, abs=1e-8)
    # Diagonal covariances: each axis by itself adds (s - 1)^2.
    assert frechet_distance(first, other * spread) == pytest.approx(np.square(spread - 1).sum(), rel=1e-6, abs=1e-8)
    mixed, second = draw.normal(size=(40, d)), draw.normal(size=(50, d)) @ draw.normal(size=(d, d))
    covariance = np.atleast_2d(np.cov(mixed, rowvar=False)) @ np.atleast_2d(np.cov(second, rowvar=False))
    root = np.sqrt(np.linalg.eigvals(covariance).astype(complex)).real.sum()
    closed_form = np.square(mixed.mean(0) - second.mean(0)).sum() + mixed.var(0, ddof=1).sum() \
        + second.var(0, ddof=1).sum() - 2 * root
    assert frechet_distance(mixed, second) == pytest.approx(closed_form, rel=1e-6, abs=1e-6)
    assert frechet_distance(mixed, second) == pytest.approx(frechet_distance(second, mixed), rel=1e-6, abs=1e-6)


def test_mauve_is_near_one_for_halves_and_near_zero_for_others() -> None:
    draw = np.random.default_rng(0)
    centres = draw.normal(size=(2, 20, 8)) * 4
    halves = [centres[0][draw.integers(20, size=1000)] + draw.normal(size=(1000, 8)) for _ in range(2)]
    unrelated = centres[1][draw.integers(20, size=1000)] + draw.normal(size=(1000, 8))
    assert mauve(*halves) > 0.9
    assert mauve(halves[0], unrelated) < 0.05
    assert mauve(halves[0], unrelated) < mauve(halves[0], np.concatenate([halves[1][:500], unrelated[:500]])) \
        < mauve(*halves)
    assert mauve(*halves, seed=1) == mauve(*halves, seed=1)


@given(st.lists(st.integers(0, 9), min_size=3, max_size=3), st.lists(st.integers(0, 9), min_size=3, max_size=3))
def test_the_frontier_area_is_symmetric_and_bounded(p: list[int], q: list[int]) -> None:
    first, second = (np.array(weights) / max(sum(weights), 1) if sum(weights) else np.full(3, 1 / 3)
                     for weights in (p, q))
    area = frontier_area(first, second)
    assert area == pytest.approx(frontier_area(second, first), abs=1e-9)
    assert 0 <= area <= 1 + 1e-9
    assert frontier_area(first, first) == pytest.approx(1, abs=1e-3)
    if not (first * second).any():
        assert area < 0.01  # nothing in common: the curve (l^5, (1 - l)^5), whose area is 1/252


def test_clusters_are_the_nearest_centres() -> None:
    draw = np.random.default_rng(2)
    points = np.concatenate([draw.normal(size=(30, 2)) + centre for centre in ((0, 0), (20, 0), (0, 20))])
    groups = k_means(points, 3)
    assert [len(set(groups[at : at + 30])) for at in (0, 30, 60)] == [1, 1, 1] and len(set(groups)) == 3
    assert len(k_means(np.zeros((4, 2)), 3)) == 4  # all alike
    crowded = draw.normal(size=(200, 2))

    def squares(tries: int) -> float:
        results = k_means(crowded, 12, tries=tries)
        return sum(float(np.square(crowded[results == i] - crowded[results == i].mean(0)).sum()) for i in set(results))

    assert squares(8) < squares(1)  # the first try is one of the eight


def test_groups_use_components_of_normalised_features() -> None:
    """Not of directions from their mean: those of what lies about the mean go every way."""
    draw = np.random.default_rng(4)
    kinds = np.repeat([0, 1, 2], 40)
    rows = np.array([[50, 0, 0], [50, 9, 0], [50, -9, 0]])[kinds] + 0.5 * draw.normal(size=(120, 3))
    generated_groups, real = near_groups(rows[::2] * draw.uniform(0.2, 5, (60, 1)), rows[1::2], 3)
    for groups, true_kinds in ((generated_groups, kinds[::2]), (real, kinds[1::2])):
        assert len({*zip(groups.tolist(), true_kinds.tolist())}) == 3


def test_hashed_ngrams_distinguish_texts() -> None:
    extractor, words = HashedNgrams(64), ["a", "cat", "sat"]
    same, other = extractor([words, words, []]), extractor([[1, 2, 3]])
    np.testing.assert_array_equal(same[0], same[1])
    np.testing.assert_array_equal(HashedNgrams(64)([words])[0], same[0])
    assert not same[2].any() and np.linalg.norm(same[0]) == pytest.approx(1)
    order = extractor([words[::-1]])
    assert not np.allclose(order[0], same[0]) and not np.allclose(other[0], same[0])
    bag = HashedNgrams(64, order=1)
    np.testing.assert_array_equal(bag([words[::-1]]), bag([words]))


@pytest.mark.parametrize("mixer", ["gru", "mamba", "attention"])
def test_every_mixer_gives_features(mixer: str) -> None:
    model = Stack(StackConfig(11, 8, [mixer])).eval()
    draw = np.random.default_rng(3)
    rows = [draw.integers(5, size=draw.integers(3, 9)) for _ in range(60)]
    shifted_rows = [row + 6 for row in rows]
    features = partial(embed, model)
    same_distance = frechet_distance(features(rows[:30]), features(rows[30:]))
    assert frechet_distance(features(rows[:30]), features(shifted_rows[30:])) > same_distance


def test_incomparable_samples_are_refused() -> None:
    with pytest.raises(SegueError, match="of one extractor"):
        frechet_distance(np.zeros((3, 2)), np.zeros((3, 4)))
    with pytest.raises(SegueError, match="at least 2 rows"):
        frechet_distance(np.zeros((1, 2)), np.zeros((3, 2)))
    with pytest.raises(SegueError, match="of one extractor"):
        mauve(np.zeros((0, 2)), np.zeros((3, 2)))
