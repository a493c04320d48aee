"""Classes, or numbers, told from several views of sequences at once: a linear head on each view, and by how much each
is trusted, from what they say of sequences that they have not learned from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from itertools import islice
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from segue.analysis.views import VIEWS, Sparse, View
from segue.errors import SegueError
from segue.kernels.descent import dual_coordinate_descent
from segue.progress import Meter

STRENGTHS = (0.01, 0.1, 1.0, 10.0)  # of learning beside the ridge, to choose from
FOLDS, ENOUGH = 5, 2000  # parts; rows that are told without having been learned from
STEPS = 30  # of L-BFGS at most, for each strength
TOGETHER = "all together"
Table = Sparse | np.ndarray
Learn = Callable[[Any], tuple[View, Table]]
Head = tuple[np.ndarray, np.ndarray]  # weights (D, C) and biases (C,)


def heads(table: Table, wanted: np.ndarray, classes: int, seed: int = 0) -> Iterator[Head]:
    """Linear heads of a table (N, D), one for each of STRENGTHS, each from where the last ended.

    wanted: (N,) which of the C classes; or, with classes 0, numbers, by their squared error. A dense table gets softmax
    regression by L-BFGS, a sparse one the squared hinge of each class against the others.
    """
    return _sparse(table, wanted, classes, seed) if isinstance(table, Sparse) else _dense(table, wanted, classes)


def _sparse(table: Sparse, wanted: np.ndarray, classes: int, seed: int) -> Iterator[Head]:
    n, width = table.shape
    signs = [np.where(wanted == c, 1.0, -1.0) for c in range(1 if classes == 2 else classes)] or [wanted.astype(float)]
    draw, (least, tolerance) = np.random.default_rng(seed), (10, 0.1) if classes else (50, 0.01)
    orders = np.stack([draw.permutation(n) for _ in range(max(least, min(100, 50_000 // n)))])
    weights, duals = np.zeros((len(signs), width + 1)), np.zeros((len(signs), n))
    for strength in STRENGTHS:
        for sign, weight, dual in zip(signs, weights, duals):
            dual_coordinate_descent(table.starts, table.columns, table.values, sign, strength, classes > 0, weight,
                                    dual, orders, tolerance)
        found = np.concatenate([weights, -weights]) if classes == 2 else weights
        yield np.ascontiguousarray(found[:, :-1].T, np.float32), found[:, -1].astype(np.float32)


def _dense(table: np.ndarray, wanted: np.ndarray, classes: int) -> Iterator[Head]:
    n, width = table.shape
    x, y = torch.from_numpy(table), torch.from_numpy(wanted)
    goal = (F.one_hot(y, classes) if classes else y[:, None]).float()
    weight, bias = torch.zeros(width, goal.shape[1]), goal.mean(0)
    bias = (bias + 1 / n).log() if classes else bias
    for strength in STRENGTHS:
        ridge = 1 / (10 * strength * n)  # a softmax is milder than a squared hinge
        solver = torch.optim.LBFGS([weight, bias], max_iter=STEPS, history_size=6, tolerance_grad=1e-6,
                                   tolerance_change=1e-7, line_search_fn="strong_wolfe")

        def cost(ridge: float = ridge) -> Tensor:
            scores = x @ weight + bias
            if classes:
                chances = scores.log_softmax(1)
                loss, slope = -(chances * goal).sum() / n, (chances.exp() - goal) / n
            else:
                loss, slope = (scores - goal).square().sum() / n / 2, (scores - goal) / n
            weight.grad, bias.grad = x.mT @ slope + ridge * weight, slope.sum(0)
            return loss + ridge * weight.square().sum() / 2

        with torch.enable_grad():
            solver.step(cost)
        yield weight.numpy().copy(), bias.numpy().copy()


def losses(scores: np.ndarray, wanted: np.ndarray, classes: int) -> np.ndarray:
    """(..., M): what scores (..., M, C) cost, row by row: nats, or with classes 0 the squared error."""
    return _losses(torch.from_numpy(scores), torch.from_numpy(wanted), classes).numpy()


def _losses(scores: Tensor, wanted: Tensor, classes: int) -> Tensor:
    if not classes:
        return (scores[..., 0] - wanted).square()
    return -scores.log_softmax(-1).gather(-1, wanted.expand(scores.shape[:-1])[..., None])[..., 0]


def trust(scores: np.ndarray, wanted: np.ndarray, classes: int) -> np.ndarray:
    """(K,) at least 0: the weights by which the sum of K scores (K, M, C) costs least, a little drawn to 1 / K; for
    classes that also makes chances of them."""
    found, y, even = torch.from_numpy(scores), torch.from_numpy(wanted), 1 / len(scores)
    root = torch.full((len(scores),), even ** 0.5, requires_grad=True)
    solver = torch.optim.LBFGS([root], max_iter=100, line_search_fn="strong_wolfe")

    def cost() -> Tensor:
        solver.zero_grad()
        loss = _losses(torch.einsum("k,kmc->mc", root.square(), found), y, classes).mean() + \
            (root.square() - even).square().sum() / found.shape[1]
        loss.backward()
        return loss

    with torch.enable_grad():
        solver.step(cost)
    return root.detach().square().numpy()


@dataclass
class ViewEnsemble:
    """Views by name, a head for each, and by how much each is trusted, (K,)."""

    views: dict[str, View]
    heads: dict[str, Head]
    weights: np.ndarray

    def __call__(self, given: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Scores (N, C) by view, from what each is given of N sequences, and of all together."""
        found = {}
        for name, view in self.views.items():
            weight, bias = self.heads[name]
            found[name] = view(given[name]) @ weight + bias
        return {TOGETHER: np.tensordot(self.weights, np.stack(list(found.values())), 1), **found}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and plain values, from which `restored` makes it again."""
        tensors, values = {"weights": torch.from_numpy(self.weights)}, {}
        for name, view in self.views.items():
            parts = {each.name: getattr(view, each.name) for each in fields(view)}  # type: ignore[arg-type]
            arrays = {key: part for key, part in parts.items() if isinstance(part, np.ndarray)}
            arrays |= dict(zip(("head.weight", "head.bias"), self.heads[name]))
            tensors |= {f"{name}.{key}": torch.from_numpy(part) for key, part in arrays.items()}
            plain = {key: part for key, part in parts.items() if key not in arrays}
            values[name] = {"view": type(view).__name__, "plain": plain}
        return tensors, values

    @staticmethod
    def restored(tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> ViewEnsemble:
        """What `state` gave; a ValueError, KeyError or TypeError where it is none."""
        told = ViewEnsemble({}, {}, tensors["weights"].numpy())
        for name, of in values.items():
            own = {key.removeprefix(f"{name}."): each.numpy() for key, each in tensors.items()
                   if key.startswith(f"{name}.")}
            weight, bias = own.pop("head.weight"), own.pop("head.bias")
            if weight.shape[1:] != bias.shape or not all(np.isfinite(each).all() for each in (weight, bias)):
                raise ValueError(f"the head of {name}")
            told.heads[name] = weight, bias
            told.views[name] = VIEWS[of["view"]](**own, **of["plain"])
        if len(told.weights) != len(told.views):
            raise ValueError("weights of other views")
        return told


@dataclass(frozen=True)
class Held:
    """What was said of some rows (M,) by heads that had learned from other parts, of so many: scores (M, C) by view,
    and of all together."""

    rows: np.ndarray
    parts: int
    scores: dict[str, np.ndarray]


def fit_ensemble(learn: Mapping[str, Learn], given: Mapping[str, Any], wanted: np.ndarray, classes: int,
                 groups: np.ndarray, seed: int = 0, meter: Meter = lambda done, note="": None,
                 ) -> tuple[ViewEnsemble, Held]:
    """Learn from N rows.

    learn: by name how a view is learned from what is `given` by that name. wanted: (N,) int64 classes; or, with classes
    0, (N,) float32 numbers. groups: (N,), rows of one are in one part. Of large sets but some parts are held out,
    ENOUGH rows in all. The strength of each head, and the weights, are chosen by those rows; for their own scores by
    the other half of them. meter: is told the share that is done.
    """
    n = len(wanted)
    _, group = np.unique(groups, return_inverse=True)
    if group.max(initial=0) < 1:
        raise SegueError("the sequences with classes are all the same: give different ones")
    parts = min(max(FOLDS, -(-n // ENOUGH)), int(group.max()) + 1)
    draw = np.random.default_rng(seed)
    part = (draw.permutation(group.max() + 1) % parts)[group]
    measured = np.arange(min(parts, -(-ENOUGH * parts // n)))
    held = np.isin(part, measured)
    rows, half = np.flatnonzero(held), draw.integers(2, size=group.max() + 1)[group][held]
    views, tables, found, done = dict[str, View](), dict[str, Table](), dict[str, np.ndarray](), 0
    for name in learn:
        views[name], tables[name] = learn[name](given[name])
        found[name] = np.zeros((len(STRENGTHS), len(rows), max(classes, 1)), np.float32)
        for number in measured:
            out, least = part == number, np.inf
            some, rest = tables[name][out], tables[name][~out]
            for i, (weight, bias) in enumerate(heads(rest, wanted[~out], classes, seed)):
                found[name][i:, out[held]] = some @ weight + bias  # where it gets worse, what comes is not tried
                last, least = least, float(losses(found[name][i, out[held]], wanted[out], classes).mean())
                if least > last:
                    break
            meter((done := done + 1) / len(learn) / (len(measured) + 1))
    truth = wanted[rows]

    def chosen(among: np.ndarray) -> tuple[dict[str, int], np.ndarray]:
        best = {name: int(losses(each[:, among], truth[among], classes).mean(1).argmin())
                for name, each in found.items()}
        return best, trust(np.stack([found[name][i, among] for name, i in best.items()]), truth[among], classes)

    said = {name: np.zeros((len(rows), max(classes, 1)), np.float32) for name in (TOGETHER, *found)}
    for mine in (half == 0, half == 1):
        best, weights = chosen(mine if mine.all() else ~mine)
        for (name, i), weight in zip(best.items(), weights):
            said[name][mine] = found[name][i, mine]
            said[TOGETHER][mine] += weight * said[name][mine]
    best, weights = chosen(np.full(len(rows), True))
    final = {}
    for name, i in best.items():
        final[name] = next(islice(heads(tables[name], wanted, classes, seed), i, None))
        meter((done := done + 1) / len(learn) / (len(measured) + 1))
    return ViewEnsemble(views, final, weights), Held(rows, parts, said)
