"""Tasks whose answers are positions of the input (Vinyals et al. 2015, arXiv 1506.03134), with their exact solutions.

Elements are points of the plane; answers are positions from 1 on, as a pointer network says them. An answer has to be
said in some order, and which one matters (arXiv 1511.06391): each labeller states its own.
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
    """1 where a, b, c turn left, -1 right, 0 on one line; exact."""
    left, right = (b[0] - a[0]) * (c[1] - a[1]), (b[1] - a[1]) * (c[0] - a[0])
    turn = left - right
    if abs(turn) <= 1e-15 * (abs(left) + abs(right)):  # within rounding
        (ax, ay), (bx, by), (cx, cy) = (map(Fraction, map(float, point)) for point in (a, b, c))
        turn = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
    return int(turn > 0) - int(turn < 0)


def convex_hull(points: Array) -> Answer:
    """The corners of the hull of points (n, 2), counter-clockwise from the one that comes first in the input, which is
    said again at the end. What lies on an edge is no corner."""
    points = np.asarray(points, np.float64)
    order = np.lexsort((points[:, 1], points[:, 0])).tolist()
    chains: list[list[int]] = []
    for way in (order, order[::-1]):
        chain: list[int] = []
        for i in way:
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
    """The centre of the circle inside a triangle: its corners weighted by the sides that face them. (..., 2) each."""
    sides = np.stack([np.linalg.norm(p - q, axis=-1) for p, q in ((b, c), (a, c), (a, b))], -1)
    return (np.stack([a, b, c], -2) * sides[..., None]).sum(-2) / sides.sum(-1, keepdims=True)


def delaunay(points: Array) -> Answer:
    """The triangles of points (n, 2) whose circumcircles hold no other point: each as three positions that go up,
    ordered by their incentres (by x, then y), one behind the other. By trying all triangles, O(n^4)."""
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
    found = triples[(inside < 0).all(1)]
    centres = incentre(*(points[found[:, i]] for i in range(3)))
    return (1 + found[np.lexsort((centres[:, 1], centres[:, 0]))]).ravel().tolist()


def distances(points: Array) -> Array:
    """(..., n, n) between points (..., n, 2)."""
    return np.linalg.norm(points[..., :, None, :] - points[..., None, :, :], axis=-1)


def shortest_tours(points: Array) -> Array:
    """The shortest round trips of B sets of n points (B, n, 2), as positions (B, n): from the first point on, in the
    direction that comes to the lower of its two neighbours first. Exact (Held & Karp 1962), O(2^n n^2)."""
    batch, n = points.shape[:2]
    if not 3 <= n <= 16:
        raise SegueError(f"tours are solved for 3 to 16 points, not {n}: their number of subsets doubles with each")
    d, m = distances(np.asarray(points, np.float64)), n - 1
    best = np.full((batch, 1 << m, m), np.inf)  # of the paths from point 0 through a subset, ending at a point of it
    came = np.zeros((batch, 1 << m, m), np.int64)
    best[:, 1 << np.arange(m), np.arange(m)] = d[:, 0, 1:]
    sizes = np.array([bin(subset).count("1") for subset in range(1 << m)])
    for size in range(2, n):
        for end in range(m):
            subsets = np.flatnonzero((sizes == size) & (np.arange(1 << m) >> end & 1))
            total = best[:, subsets ^ (1 << end)] + d[:, None, 1:, end + 1]
            came[:, subsets, end] = total.argmin(-1)
            best[:, subsets, end] = total.min(-1)
    rows, subset = np.arange(batch), np.full(batch, (1 << m) - 1)
    end = (best[:, -1] + d[:, 1:, 0]).argmin(-1)
    tours = np.ones((batch, n), np.int64)
    for place in range(m, 0, -1):
        tours[:, place] = end + 2
        end, subset = came[rows, subset, end], subset ^ (1 << end)
    back = np.concatenate([tours[:, :1], tours[:, :0:-1]], 1)
    return np.where((tours[:, 1] > tours[:, -1])[:, None], back, tours)


def nearest_neighbours(points: Array) -> Answer:
    """A round trip of points (n, 2) from the first on, always to the nearest that is left."""
    d, tour = distances(points), [0]
    while len(tour) < len(points):
        d[:, tour[-1]] = np.inf
        tour.append(int(d[tour[-1]].argmin()))
    return [1 + i for i in tour]


def tour_length(points: Array, tour: Sequence[int]) -> float:
    """Of the round trip through points (n, 2) by positions from 1 on."""
    stops = points[np.array(tour) - 1]
    return float(np.linalg.norm(stops - np.roll(stops, -1, 0), axis=-1).sum())


def is_tour(tour: Sequence[int], n: int) -> bool:
    """Whether it visits each of n points once."""
    return sorted(tour) == list(range(1, n + 1))


def corners(answer: Sequence[int]) -> Answer:
    """Of a polygon, from its lowest position on; the first one may stand at the end again."""
    ring = list(answer[:-1] if len(answer) > 1 and answer[0] == answer[-1] else answer)
    first = ring.index(min(ring)) if ring else 0
    return ring[first:] + ring[:first]


def is_simple(points: Array, answer: Sequence[int]) -> bool:
    """Whether a polygon has three corners or more, none twice, and no two of its edges meet but at a common corner."""
    ring = [points[i - 1] for i in corners(answer)]
    n = len(ring)
    if n < 3 or len(set(corners(answer))) < n:
        return False
    edges = [(ring[i], ring[(i + 1) % n]) for i in range(n)]

    def between(a: Array, b: Array, c: Array) -> bool:
        """Whether c, which lies on the line through a and b, lies between them."""
        return bool((np.minimum(a, b) <= c).all() and (c <= np.maximum(a, b)).all())

    for (i, (a, b)), (j, (c, d)) in itertools.combinations(enumerate(edges), 2):
        if j - i in (1, n - 1):  # neighbours meet at a corner; they must not lie on one another
            tip, middle, other = (a, b, d) if j - i == 1 else (c, d, b)
            if orientation(tip, middle, other) == 0 and np.dot(tip - middle, other - middle) > 0:
                return False
            continue
        sides = [orientation(*three) for three in ((a, b, c), (a, b, d), (c, d, a), (c, d, b))]
        touch = ((a, b, c), (a, b, d), (c, d, a), (c, d, b))
        if (sides[0] != sides[1] and sides[2] != sides[3]) or \
                any(side == 0 and between(*three) for side, three in zip(sides, touch)):
            return False
    return True


def area(points: Array, answer: Sequence[int]) -> float:
    """Of a simple polygon."""
    x, y = points[np.array(corners(answer)) - 1].T
    return float(abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2)


def area_coverage(points: Array, answers: Sequence[Sequence[int]], truths: Sequence[Sequence[int]],
                  ) -> tuple[float, float]:
    """Of polygons through points (B, n, 2), held against the true hulls: the mean share of the area that the simple
    ones cover, and the share that is not simple. The paper calls it a failure where that is above one in a hundred."""
    found = [area(p, a) / area(p, t) for p, a, t in zip(points, answers, truths) if is_simple(p, a)]
    return float(np.mean(found)) if found else 0.0, (len(answers) - len(found)) / len(answers)


def read_tsplib(text: str) -> Array:
    """The cities (n, 2) of a planar instance of TSPLIB (Reinelt 1991)."""
    head, found, body = text.partition("NODE_COORD_SECTION")
    rows = [line.split() for line in body.partition("EOF")[0].strip().splitlines()]
    if not found or "EUC_2D" not in head or any(len(row) != 3 for row in rows):
        raise SegueError("not an instance of TSPLIB with cities in the plane: it wants EDGE_WEIGHT_TYPE EUC_2D and a "
                         "NODE_COORD_SECTION of number, x, y")
    return np.array([row[1:] for row in rows], np.float64)


def unit_square(points: Array) -> Array:
    """Points (..., n, 2) moved and scaled, without distortion, so that they fill the unit square one way at least."""
    low = points.min(-2, keepdims=True)
    return (points - low) / (points - low).max((-2, -1), keepdims=True)


def planar(solve: Callable[[Array], Sequence[Sequence[int]]]) -> Callable[[int, int, torch.Generator], Batch]:
    """Draws sets of uniform points of the unit square, solved. A Batch of them, see `Batch.pointing`."""

    def draw(rows: int, length: int, generator: torch.Generator) -> Batch:
        points = torch.rand(rows, length, 2, generator=generator).numpy()
        return Batch.pointing(list(zip(points, solve(points))))

    return draw


def sorting(rows: int, length: int, generator: torch.Generator) -> Batch:
    """Uniform numbers, to be pointed at from the least on (arXiv 1511.06391)."""
    values = torch.rand(rows, length, 1, generator=generator)
    return Batch.pointing(list(zip(values.numpy(), (1 + values[..., 0].argsort(1)).tolist())))


def _each(solve: Callable[[Array], Answer]) -> Callable[[Array], list[Answer]]:
    return lambda points: [solve(one) for one in points]


# Rows of elements, which are real numbers, so the vocabulary is the frame alone; `length` counts the elements.
GEOMETRY: dict[str, Task] = {task.name: task for task in (
    Task("hull", 1, planar(_each(convex_hull)), 0.0, "arXiv 1506.03134", shortest=3),
    Task("delaunay", 1, planar(_each(delaunay)), 0.0, "arXiv 1506.03134", shortest=3),
    Task("tour", 1, planar(lambda points: shortest_tours(points).tolist()), 0.0, "arXiv 1506.03134", shortest=3),
    Task("sorting", 1, sorting, 0.0, "arXiv 1511.06391", shortest=1),
)}
