"""The labels of the geometric tasks are the exact solutions, told in their order."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segue.errors import SegueError
from segue.papers.pointer_networks import ATTENTION, CLAIM, FIXED, FREE, HALF, NEAREST, POINTER, VALID, make_row
from segue.tasks import GEOMETRY
from segue.tasks.geometry import (
    area,
    area_coverage,
    convex_hull,
    corners,
    delaunay,
    incentre,
    is_simple,
    is_tour,
    nearest_neighbours,
    orientation,
    read_tsplib,
    shortest_tours,
    tour_length,
    unit_square,
)

seeds = st.integers(0, 2**31)


def random_points(seed: int, n: int) -> np.ndarray:
    return np.random.default_rng(seed).random((n, 2))


@settings(max_examples=40, deadline=None)
@given(seeds, st.integers(3, 30))
def test_hulls_equal_scipys(seed: int, n: int) -> None:
    spatial = pytest.importorskip("scipy.spatial")
    points = random_points(seed, n)
    hull = convex_hull(points)
    reference = (1 + spatial.ConvexHull(points).vertices).tolist()  # counter-clockwise too
    assert hull[0] == hull[-1] == min(hull) and corners(hull) == corners(reference)


def test_orientations_are_exact() -> None:
    """Within rounding of one line, where plain arithmetic is wrong more often than not."""
    b, c, plainly = np.array([12.0, 12.0]), np.array([24.0, 24.0]), 0
    for i, j in itertools.product(range(16), repeat=2):
        a = 0.5 + np.array([i, j]) * 2.0**-53
        assert orientation(a, b, c) == (i < j) - (i > j) or i == j == 0
        rounded = (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])
        plainly += np.sign(rounded) == orientation(a, b, c)
    assert plainly < 200


def test_a_hull_has_no_corner_on_an_edge() -> None:
    grid = np.array([[x, y] for x in range(3) for y in range(3)], float) * 0.1
    assert convex_hull(grid) == [1, 7, 9, 3, 1]
    with pytest.raises(SegueError, match="one line"):
        convex_hull(np.array([[0.0, 0], [1, 1], [2, 2]]))


@settings(max_examples=20, deadline=None)
@given(seeds, st.integers(3, 20))
def test_triangulations_equal_scipys(seed: int, n: int) -> None:
    spatial = pytest.importorskip("scipy.spatial")
    points = random_points(seed, n)
    answer = delaunay(points)
    reference = {tuple(sorted(1 + i for i in corner)) for corner in spatial.Delaunay(points).simplices.tolist()}
    triangles = [tuple(answer[at : at + 3]) for at in range(0, len(answer), 3)]
    assert set(triangles) == reference and len(triangles) == len(reference) and all(a < b < c for a, b, c in triangles)
    centres = [tuple(incentre(*points[np.array(three) - 1])) for three in triangles]
    assert centres == sorted(centres)


def test_incentres_and_degenerate_points() -> None:
    centre = incentre(*np.array([[0.0, 0], [4, 0], [0, 3]]))
    np.testing.assert_allclose(centre, [1, 1])
    with pytest.raises(SegueError, match="one circle"):
        delaunay(np.array([[0.0, 0], [1, 0], [0, 1], [1, 1]]))


@settings(max_examples=10, deadline=None)
@given(seeds, st.integers(3, 7))
def test_tours_are_shortest_by_brute_force(seed: int, n: int) -> None:
    points = np.stack([random_points(seed + i, n) for i in range(3)])
    for cities, tour in zip(points, shortest_tours(points).tolist()):
        best = min(tour_length(cities, [1, *order]) for order in itertools.permutations(range(2, n + 1)))
        assert is_tour(tour, n) and tour[0] == 1 and tour[1] <= tour[-1]
        assert tour_length(cities, tour) == pytest.approx(best, abs=1e-12)
        greedy_tour = nearest_neighbours(cities)
        assert is_tour(greedy_tour, n) and tour_length(cities, greedy_tour) >= best - 1e-12


def test_mean_tour_lengths_equal_the_papers() -> None:
    """2.12, 2.87 and their nearest neighbour, for uniform points."""
    for n, mean in ((5, 2.12), (10, 2.87)):
        points = np.random.default_rng(0).random((400, n, 2))
        results = [tour_length(cities, tour) for cities, tour in zip(points, shortest_tours(points))]
        assert np.mean(results) == pytest.approx(mean, abs=0.05)
    with pytest.raises(SegueError, match="3 to 16"):
        shortest_tours(np.zeros((1, 17, 2)))


def test_polygon_areas_and_validity() -> None:
    square = np.array([[0.0, 0], [1, 0], [1, 1], [0, 1], [0.5, 0.5], [0.5, 0]])
    assert is_simple(square, [1, 2, 3, 4, 1]) and is_simple(square, [1, 2, 3, 4]) and is_simple(square, [1, 2, 5])
    for crossed in ([1, 3, 2, 4], [1, 2], [], [1, 2, 1, 3], [1, 2, 6], [1, 2, 3, 6, 4], [1, 1, 2, 3]):
        assert not is_simple(square, crossed), crossed
    assert area(square, [1, 2, 3, 4, 1]) == 1 and area(square, [4, 3, 2, 1]) == 1
    assert corners([3, 4, 1, 2, 3]) == corners([1, 2, 3, 4, 1]) != corners([1, 4, 3, 2, 1])
    coverage = area_coverage(np.stack([square] * 4), [[1, 2, 3, 4, 1], [1, 2, 3], [1, 3, 2, 4, 1], []],
                             [[1, 2, 3, 4, 1]] * 4)
    assert coverage == (0.75, 0.5)
    assert area_coverage(square[None], [[]], [[1, 2, 3, 4, 1]]) == (0.0, 1.0)


def test_tsplib_cities_are_read() -> None:
    text = "NAME : x\nEDGE_WEIGHT_TYPE : EUC_2D\nNODE_COORD_SECTION\n1 1.0 2\n 2 3e1 4\nEOF\n"
    cities = read_tsplib(text)
    assert cities.tolist() == [[1, 2], [30, 4]]
    np.testing.assert_allclose(unit_square(cities), np.array([[0, 0], [1, 2 / 29]]))
    with pytest.raises(SegueError, match="TSPLIB"):
        read_tsplib("EDGE_WEIGHT_TYPE: GEO")


@pytest.mark.parametrize("name", GEOMETRY)
def test_geometry_batches_have_valid_answers(name: str) -> None:
    """Elements, the frame, and the answer with the end as targets."""
    batch, n = GEOMETRY[name].test(4, 6), 6
    repeated = GEOMETRY[name].test(4, 6)
    assert torch.equal(batch.tokens, repeated.tokens) and torch.equal(batch.targets, repeated.targets)
    for line, targets in zip(batch.tokens, batch.targets):
        answer = targets[targets >= 0].tolist()
        assert line[:n, 0].tolist() == [-1] * n and line[n, 0] == 0 and answer[-1] == 0
        assert line[n + 1 : n + len(answer), 0].tolist() == answer[:-1] and bool((targets[:n] == -1).all())
        points = line[:n, 1:].double().numpy()
        if name == "sorting":
            assert points[np.array(answer[:-1]) - 1, 0].tolist() == sorted(points[:, 0].tolist())
        else:
            assert answer[:-1] == {"hull": convex_hull, "delaunay": delaunay,
                                   "tour": lambda cities: shortest_tours(cities[None])[0].tolist()}[name](points)


@pytest.mark.parametrize(("pointer", "attention", "fixed", "cover", "ratio", "verdict"), [
    (0.6, 0.3, 0.2, 0.97, 1.02, "confirmed"), (0.6, 0.6, 0.2, 0.97, 1.02, "refuted"),
    (0.6, 0.3, 0.2, 0.6, 1.02, "refuted"), (0.6, 0.5, 0.2, 0.97, 1.02, "inconclusive"),
    (0.6, 0.2, 0.3, 0.97, 1.02, "inconclusive"), (0.6, 0.3, 0.2, 0.9, 1.02, "inconclusive"),
    (0.6, 0.3, 0.2, 0.97, 1.06, "inconclusive")])
def test_the_rule_of_pointer_networks(pointer: float, attention: float, fixed: float, cover: float, ratio: float,
                                      verdict: str) -> None:
    rows = [make_row("hull", POINTER, n, pointer, 0.99 if n < 20 else cover, 0.0) for n in (5, 10, 15, 20)]
    rows += [make_row("hull", ATTENTION, 10, attention, 0.9, 0.0), make_row("hull", FIXED, 10, fixed, 0.9, 0.0),
             make_row("hull", HALF, 20, 0.0, 0.7, 0.0), make_row("tour", VALID, "5-8", 0.5, ratio, 0.0),
             make_row("tour", FREE, "5-8", 0.5, 1.0, 0.3), make_row("tour", NEAREST, "5-8", 0.3, 1.08, 0.0)]
    assert CLAIM.judge(rows)[0] == verdict
