"""Tasks whose answers are positions in the input (Vinyals et al. 2015, arXiv 1506.03134), with their exact solutions.

Elements are points of the plane; answers are sequences of positions from 1, as pointer networks output them. The order
of an answer matters (arXiv 1511.06391): each solver states its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from fractions import Fraction

import numpy as np
import torch

from segue.errors import SegueError
from segue.objectives import Batch
from segue.tasks.base import Task

Array = np.ndarray
Answer = list[int]


def orientation(a: Array, b: Array, c: Array) -> int:
    """1 if a, b, c turn left, -1 if right, 0 if collinear; exact."""
    left, right = (b[0] - a[0]) * (c[1] - a[1]), (b[1] - a[1]) * (c[0] - a[0])
    turn = left - right
    if abs(turn) <= 1e-15 * (abs(left) + abs(right)):  # within rounding
        (ax, ay), (bx, by), (cx, cy) = (map(Fraction, map(float, point)) for point in (a, b, c))
        turn = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
    return int(turn > 0) - int(turn < 0)


def convex_hull(points: Array) -> Answer:
    """The corners of the hull of points (n, 2), counter-clockwise from the one that is first in the input, which is
    repeated at the end. Points on an edge are not corners."""
    points = np.asarray(points, np.float64)
    order = np.lexsort((points[:, 1], points[:, 0])).tolist()
    chains: list[list[int]] = []
    for direction in (order, order[::-1]):
        chain: list[int] = []
        for i in direction:
            while len(chain) > 1 and orientation(points[chain[-2]], points[chain[-1]], points[i]) <= 0:
                chain.pop()
            chain.append(i)
        chains.append(chain)
    hull = [*chains[0][:-1], *chains[1][:-1]]
    if len(hull) < 3:
        raise SegueError(f"{len(points)} points on one line have no hull with an area")
    first = hull.index(min(hull))
    return [1 + i for i in (*hull[first:], *hull[:first], hull[first])]


def incentre(a: Array, b: Array, c: Array) -> Array:
    """The incentre of a triangle: its corners weighted by their opposite sides. (..., 2) each."""
    sides = np.stack([np.linalg.norm(p - q, axis=-1) for p, q in ((b, c), (a, c), (a, b))], -1)
    return (np.stack([a, b, c], -2) * sides[..., None]).sum(-2) / sides.sum(-1, keepdims=True)


def delaunay(points: Array) -> Answer:
    """The Delaunay triangles of points (n, 2), whose circumcircles contain no other point: each as three ascending
    positions, ordered by their incentres (x, then y), concatenated. By trying all triangles, O(n^4)."""
    points = np.asarray(points, np.float64)
    triples = np.array(list(itertools.combinations(range(len(points)), 3)))
    corners = points[triples]  # (M, 3, 2)
    a, b = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    turn = np.sign(a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0])
    d = corners[:, None] - points[None, :, None]  # (M, n, 3, 2), corners seen from each point
    inside = np.linalg.det(np.concatenate([d, (d**2).sum(-1, keepdims=True)], -1)) * turn[:, None]
    inside[np.arange(len(triples))[:, None], triples] = -1.0  # a corner is not inside its own circle
    if (np.abs(inside) < 1e-13).any():
        raise SegueError("four points within rounding of one circle, or three of one line, have no one Delaunay "
                         "triangulation: move them")
    triangles = triples[(inside < 0).all(1)]
    centres = incentre(*(points[triangles[:, i]] for i in range(3)))
    return (1 + triangles[np.lexsort((centres[:, 1], centres[:, 0]))]).ravel().tolist()


def distances(points: Array) -> Array:
    """(..., n, n) Euclidean distances between points (..., n, 2)."""
    return np.linalg.norm(points[..., :, None, :] - points[..., None, :, :], axis=-1)


def shortest_tours(points: Array) -> Array:
    """The shortest tours of B sets of n points (B, n, 2), as positions (B, n): from the first point, in the direction
    of the lower of its two neighbours. Exact (Held & Karp 1962), O(2^n n^2)."""
    batch, n = points.shape[:2]
    if not 3 <= n <= 16:
        raise SegueError(f"tours are solved for 3 to 16 points, not {n}: their number of subsets doubles with each")
    d, m = distances(np.asarray(points, np.float64)), n - 1
    best = np.full((batch, 1 << m, m), np.inf)  # of the paths from point 0 through a subset, ending at a point of it
    previous = np.zeros((batch, 1 << m, m), np.int64)
    best[:, 1 << np.arange(m), np.arange(m)] = d[:, 0, 1:]
    sizes = np.array([bin(subset).count("1") for subset in range(1 << m)])
    for size in range(2, n):
        for end in range(m):
            subsets = np.flatnonzero((sizes == size) & (np.arange(1 << m) >> end & 1))
            total = best[:, subsets ^ (1 << end)] + d[:, None, 1:, end + 1]
            previous[:, subsets, end] = total.argmin(-1)
            best[:, subsets, end] = total.min(-1)
    rows, subset = np.arange(batch), np.full(batch, (1 << m) - 1)
    end = (best[:, -1] + d[:, 1:, 0]).argmin(-1)
    tours = np.ones((batch, n), np.int64)
    for place in range(m, 0, -1):
        tours[:, place] = end + 2
        end, subset = previous[rows, subset, end], subset ^ (1 << end)
    reversed_tours = np.concatenate([tours[:, :1], tours[:, :0:-1]], 1)
    return np.where((tours[:, 1] > tours[:, -1])[:, None], reversed_tours, tours)


def nearest_neighbours(points: Array) -> Answer:
    """The greedy tour of points (n, 2): from the first, always to the nearest unvisited one."""
    d, tour = distances(points), [0]
    while len(tour) < len(points):
        d[:, tour[-1]] = np.inf
        tour.append(int(d[tour[-1]].argmin()))
    return [1 + i for i in tour]


def tour_length(points: Array, tour: Sequence[int]) -> float:
    """The length of a tour of points (n, 2), given as positions from 1."""
    stops = points[np.array(tour) - 1]
    return float(np.linalg.norm(stops - np.roll(stops, -1, 0), axis=-1).sum())


def is_tour(tour: Sequence[int], n: int) -> bool:
    """Whether a tour visits each of n points once."""
    return sorted(tour) == list(range(1, n + 1))


def corners(answer: Sequence[int]) -> Answer:
    """The corners of a polygon, rotated to begin at the lowest position; the first may be repeated at the end."""
    ring = list(answer[:-1] if len(answer) > 1 and answer[0] == answer[-1] else answer)
    first = ring.index(min(ring)) if ring else 0
    return ring[first:] + ring[:first]


def is_simple(points: Array, answer: Sequence[int]) -> bool:
    """Whether a polygon has at least three corners, all different, and its edges meet only at common corners."""
    ring = [points[i - 1] for i in corners(answer)]
    n = len(ring)
    if n < 3 or len(set(corners(answer))) < n:
        return False
    edges = [(ring[i], ring[(i + 1) % n]) for i in range(n)]

    def between(a: Array, b: Array, c: Array) -> bool:
        """Whether c, on the line through a and b, is between them."""
        return bool((np.minimum(a, b) <= c).all() and (c <= np.maximum(a, b)).all())

    for (i, (a, b)), (j, (c, d)) in itertools.combinations(enumerate(edges), 2):
        if j - i in (1, n - 1):  # adjacent edges share a corner, and must not overlap
            tip, middle, other = (a, b, d) if j - i == 1 else (c, d, b)
            if orientation(tip, middle, other) == 0 and np.dot(tip - middle, other - middle) > 0:
                return False
            continue
        triples = ((a, b, c), (a, b, d), (c, d, a), (c, d, b))
        sides = [orientation(*triple) for triple in triples]
        if (sides[0] != sides[1] and sides[2] != sides[3]) or \
                any(side == 0 and between(*triple) for side, triple in zip(sides, triples)):
            return False
    return True


def area(points: Array, answer: Sequence[int]) -> float:
    """The area of a simple polygon (shoelace formula)."""
    x, y = points[np.array(corners(answer)) - 1].T
    return float(abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2)


def area_coverage(points: Array, answers: Sequence[Sequence[int]], truths: Sequence[Sequence[int]],
                  ) -> tuple[float, float]:
    """(coverage, failures) of polygons on points (B, n, 2) against the true hulls: the mean share of the true area that
    simple polygons cover, and the share of polygons that are not simple. The paper reports a failure above 1%."""
    coverage = [area(p, a) / area(p, t) for p, a, t in zip(points, answers, truths) if is_simple(p, a)]
    return float(np.mean(coverage)) if coverage else 0.0, (len(answers) - len(coverage)) / len(answers)


def read_tsplib(text: str) -> Array:
    """The cities (n, 2) of a planar instance of TSPLIB (Reinelt 1991)."""
    header, separator, body = text.partition("NODE_COORD_SECTION")
    rows = [line.split() for line in body.partition("EOF")[0].strip().splitlines()]
    if not separator or "EUC_2D" not in header or any(len(row) != 3 for row in rows):
        raise SegueError("not an instance of TSPLIB with cities in the plane: it wants EDGE_WEIGHT_TYPE EUC_2D and a "
                         "NODE_COORD_SECTION of number, x, y")
    return np.array([row[1:] for row in rows], np.float64)


def unit_square(points: Array) -> Array:
    """Points (..., n, 2) shifted and scaled uniformly to the unit square, which they span in at least one direction."""
    low = points.min(-2, keepdims=True)
    return (points - low) / (points - low).max((-2, -1), keepdims=True)


def planar(solve: Callable[[Array], Sequence[Sequence[int]]]) -> Callable[[int, int, torch.Generator], Batch]:
    """A function that draws uniform points of the unit square with their solutions, as `Batch.pointing`."""

    def draw(rows: int, length: int, generator: torch.Generator) -> Batch:
        points = torch.rand(rows, length, 2, generator=generator).numpy()
        return Batch.pointing(list(zip(points, solve(points))))

    return draw


def sorting(rows: int, length: int, generator: torch.Generator) -> Batch:
    """Uniform numbers; the answer is their positions in ascending order (arXiv 1511.06391)."""
    values = torch.rand(rows, length, 1, generator=generator)
    return Batch.pointing(list(zip(values.numpy(), (1 + values[..., 0].argsort(1)).tolist())))


def _batched(solve: Callable[[Array], Answer]) -> Callable[[Array], list[Answer]]:
    return lambda batch: [solve(points) for points in batch]


# Elements are real numbers, so the vocabulary holds no ids but the frame; `length` counts the elements.
GEOMETRY: dict[str, Task] = {task.name: task for task in (
    Task("hull", 1, planar(_batched(convex_hull)), 0.0, "arXiv 1506.03134", shortest=3),
    Task("delaunay", 1, planar(_batched(delaunay)), 0.0, "arXiv 1506.03134", shortest=3),
    Task("tour", 1, planar(lambda points: shortest_tours(points).tolist()), 0.0, "arXiv 1506.03134", shortest=3),
    Task("sorting", 1, sorting, 0.0, "arXiv 1511.06391", shortest=1),
)}
