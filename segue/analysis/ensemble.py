"""Stacked linear heads (Wolpert 1992): predicts the class of a sequence, or a number measured on it, from several views
of it. Each view has a linear head; their scores are summed with weights fitted to scores on held-out folds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from itertools import islice
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from segue.analysis.probes import minimise
from segue.analysis.views import VIEWS, Sparse, View
from segue.errors import SegueError
from segue.kernels.descent import dual_coordinate_descent
from segue.progress import Meter

STRENGTHS = (0.01, 0.1, 1.0, 10.0)  # weights of the loss relative to the ridge penalty, tried in this order
FOLDS, ENOUGH = 5, 2000  # least number of folds; rows of held-out scores that suffice
STEPS = 30  # of L-BFGS at most, for each strength
COMBINED = "all together"  # the name of the weighted sum of all views
Table = Sparse | np.ndarray
Learn = Callable[[Any], tuple[View, Table]]
Head = tuple[np.ndarray, np.ndarray]  # weights (D, C) and biases (C,)


def heads(table: Table, targets: np.ndarray, classes: int, seed: int = 0) -> Iterator[Head]:
    """Linear heads of a table (N, D), one for each of STRENGTHS, each fitted from the one before as the start.

    targets: (N,) class indices below C = `classes`; with classes 0, numbers, fitted by squared error. Dense tables get
    softmax regression by L-BFGS, sparse ones one-vs-rest squared hinge loss by dual coordinate descent.
    """
    return _sparse_heads(table, targets, classes, seed) if isinstance(table, Sparse) else \
        _dense_heads(table, targets, classes)


def _sparse_heads(table: Sparse, targets: np.ndarray, classes: int, seed: int) -> Iterator[Head]:
    n, width = table.shape
    one_vs_rest = [np.where(targets == c, 1.0, -1.0) for c in range(1 if classes == 2 else classes)] or \
        [targets.astype(float)]
    rng, (min_epochs, tolerance) = np.random.default_rng(seed), (10, 0.1) if classes else (50, 0.01)
    orders = np.stack([rng.permutation(n) for _ in range(max(min_epochs, min(100, 50_000 // n)))])
    weights, duals = np.zeros((len(one_vs_rest), width + 1)), np.zeros((len(one_vs_rest), n))
    for strength in STRENGTHS:
        for y, weight, dual in zip(one_vs_rest, weights, duals):
            dual_coordinate_descent(table.starts, table.columns, table.values, y, strength, classes > 0, weight, dual,
                                    orders, tolerance)
        by_class = np.concatenate([weights, -weights]) if classes == 2 else weights
        yield np.ascontiguousarray(by_class[:, :-1].T, np.float32), by_class[:, -1].astype(np.float32)


def _dense_heads(table: np.ndarray, targets: np.ndarray, classes: int) -> Iterator[Head]:
    n, width = table.shape
    x, y = torch.from_numpy(table), torch.from_numpy(targets)
    y = (F.one_hot(y, classes) if classes else y[:, None]).float()
    weight, bias = torch.zeros(width, y.shape[1]), y.mean(0)
    bias = (bias + 1 / n).log() if classes else bias
    for strength in STRENGTHS:
        ridge = 1 / (10 * strength * n)  # a softmax is milder than a squared hinge
        optimizer = torch.optim.LBFGS([weight, bias], max_iter=STEPS, history_size=6, tolerance_grad=1e-6,
                                      tolerance_change=1e-7, line_search_fn="strong_wolfe")

        def closure(ridge: float = ridge) -> Tensor:
            scores = x @ weight + bias
            if classes:
                log_probs = scores.log_softmax(1)
                loss, gradient = -(log_probs * y).sum() / n, (log_probs.exp() - y) / n
            else:
                loss, gradient = (scores - y).square().sum() / n / 2, (scores - y) / n
            weight.grad, bias.grad = x.mT @ gradient + ridge * weight, gradient.sum(0)
            return loss + ridge * weight.square().sum() / 2

        with torch.enable_grad():
            optimizer.step(closure)
        yield weight.numpy().copy(), bias.numpy().copy()


def losses(scores: np.ndarray, targets: np.ndarray, classes: int) -> np.ndarray:
    """(..., M) loss of each row of scores (..., M, C): cross-entropy in nats, or with classes 0 the squared error."""
    return _losses(torch.from_numpy(scores), torch.from_numpy(targets), classes).numpy()


def _losses(scores: Tensor, targets: Tensor, classes: int) -> Tensor:
    if not classes:
        return (scores[..., 0] - targets).square()
    return -scores.log_softmax(-1).gather(-1, targets.expand(scores.shape[:-1])[..., None])[..., 0]


def fit_weights(scores: np.ndarray, targets: np.ndarray, classes: int) -> np.ndarray:
    """(K,) non-negative weights whose sum of scores (K, M, C) has the least mean loss, slightly regularised towards
    1 / K. For classes this also calibrates: the softmax of the sum gives probabilities."""
    y, uniform = torch.from_numpy(targets), 1 / len(scores)
    all_scores = torch.from_numpy(scores)
    root = torch.full((len(scores),), uniform ** 0.5, requires_grad=True)
    minimise([root], lambda: _losses(torch.einsum("k,kmc->mc", root.square(), all_scores), y, classes).mean() +
             (root.square() - uniform).square().sum() / all_scores.shape[1], 100)
    return root.detach().square().numpy()


@dataclass
class ViewEnsemble:
    """views, heads: by name of the view. weights: (K,) of the views' scores in their sum."""

    views: dict[str, View]
    heads: dict[str, Head]
    weights: np.ndarray

    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Scores (N, C) by view, from each view's input for N sequences, and their weighted sum under COMBINED."""
        scores = {}
        for name, view in self.views.items():
            weight, bias = self.heads[name]
            scores[name] = view(inputs[name]) @ weight + bias
        return {COMBINED: np.tensordot(self.weights, np.stack(list(scores.values())), 1), **scores}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and plain values to save; `from_state` is the inverse."""
        tensors, values = {"weights": torch.from_numpy(self.weights)}, {}
        for name, view in self.views.items():
            attributes = {field.name: getattr(view, field.name) for field in fields(view)}  # type: ignore[arg-type]
            arrays = {key: value for key, value in attributes.items() if isinstance(value, np.ndarray)}
            arrays |= dict(zip(("head.weight", "head.bias"), self.heads[name]))
            tensors |= {f"{name}.{key}": torch.from_numpy(array) for key, array in arrays.items()}
            plain = {key: value for key, value in attributes.items() if key not in arrays}
            values[name] = {"view": type(view).__name__, "plain": plain}
        return tensors, values

    @staticmethod
    def from_state(tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> ViewEnsemble:
        """The ensemble that `state` saved. Raises ValueError, KeyError or TypeError if they do not describe one."""
        ensemble = ViewEnsemble({}, {}, tensors["weights"].numpy())
        for name, saved in values.items():
            arrays = {key.removeprefix(f"{name}."): tensor.numpy() for key, tensor in tensors.items()
                      if key.startswith(f"{name}.")}
            weight, bias = arrays.pop("head.weight"), arrays.pop("head.bias")
            if weight.shape[1:] != bias.shape or not all(np.isfinite(array).all() for array in (weight, bias)):
                raise ValueError(f"the head of {name}")
            ensemble.heads[name] = weight, bias
            ensemble.views[name] = VIEWS[saved["view"]](**arrays, **saved["plain"])
        if len(ensemble.weights) != len(ensemble.views):
            raise ValueError("weights of other views")
        return ensemble


@dataclass(frozen=True)
class HeldOutScores:
    """Scores of rows (M,) by heads that were not fitted to those rows' folds. folds: the number of folds the data was
    split into. scores: (M, C) by view, and of COMBINED."""

    rows: np.ndarray
    folds: int
    scores: dict[str, np.ndarray]


def fit_ensemble(learners: Mapping[str, Learn], inputs: Mapping[str, Any], targets: np.ndarray, classes: int,
                 groups: np.ndarray, seed: int = 0, meter: Meter = lambda done, note="": None,
                 ) -> tuple[ViewEnsemble, HeldOutScores]:
    """Fit views, heads and weights to N rows; also returns the scores of held-out rows, to evaluate on.

    learners: by name, learns a view from the entry of `inputs` of that name. targets: (N,) int64 class indices, or,
    with classes 0, (N,) float32 numbers. groups: (N,); rows of one group stay in one fold. meter: gets the share done.

    Cross-validates over folds of groups, in large sets only over enough folds to give ENOUGH held-out rows. Those rows
    choose each head's strength and the weights. The returned scores are cross-fitted: each half of the held-out rows is
    scored with what the other half chose.
    """
    n = len(targets)
    _, group = np.unique(groups, return_inverse=True)
    num_groups = int(group.max(initial=0)) + 1
    if num_groups < 2:
        raise SegueError("the sequences with classes are all the same: give different ones")
    folds = min(max(FOLDS, -(-n // ENOUGH)), num_groups)
    rng = np.random.default_rng(seed)
    fold = (rng.permutation(num_groups) % folds)[group]
    evaluated = np.arange(min(folds, -(-ENOUGH * folds // n)))  # folds
    held_out = np.isin(fold, evaluated)
    rows, half = np.flatnonzero(held_out), rng.integers(2, size=num_groups)[group][held_out]
    views, tables, scores = dict[str, View](), dict[str, Table](), dict[str, np.ndarray]()
    done, total = 0, len(learners) * (len(evaluated) + 1)
    for name, learn in learners.items():
        views[name], tables[name] = learn(inputs[name])
        scores[name] = np.zeros((len(STRENGTHS), len(rows), max(classes, 1)), np.float32)
        for number in evaluated:
            test = fold == number
            scores[name][:, test[held_out]] = _fold_scores(tables[name], test, targets, classes, seed)
            meter((done := done + 1) / total)
    held_out_targets = targets[rows]
    strength, weights = _choose(scores, held_out_targets, classes, np.full(len(rows), True))
    fitted = {}
    for name, i in strength.items():
        fitted[name] = next(islice(heads(tables[name], targets, classes, seed), i, None))
        meter((done := done + 1) / total)
    cross_fitted = _cross_fitted(scores, held_out_targets, classes, half)
    return ViewEnsemble(views, fitted, weights), HeldOutScores(rows, folds, cross_fitted)


def _fold_scores(table: Table, test: np.ndarray, targets: np.ndarray, classes: int, seed: int) -> np.ndarray:
    """(S, T, C): scores of the rows in the mask `test` (N,) for each of STRENGTHS, by heads fitted to all others. Once
    the loss rises, stronger heads are not fitted and get the scores of that head."""
    scores = np.zeros((len(STRENGTHS), int(test.sum()), max(classes, 1)), np.float32)
    test_table, train_table, best = table[test], table[~test], np.inf
    for i, (weight, bias) in enumerate(heads(train_table, targets[~test], classes, seed)):
        scores[i:] = test_table @ weight + bias
        previous, best = best, float(losses(scores[i], targets[test], classes).mean())
        if best > previous:
            break
    return scores


def _choose(scores: Mapping[str, np.ndarray], targets: np.ndarray, classes: int, mask: np.ndarray
            ) -> tuple[dict[str, int], np.ndarray]:
    """By the rows in the mask (M,): the index of the strength with the least mean loss of each view, from scores
    (S, M, C), and the weights (K,) of the views."""
    best = {name: int(losses(each[:, mask], targets[mask], classes).mean(1).argmin()) for name, each in scores.items()}
    return best, fit_weights(np.stack([scores[name][i, mask] for name, i in best.items()]), targets[mask], classes)


def _cross_fitted(scores: Mapping[str, np.ndarray], targets: np.ndarray, classes: int, half: np.ndarray
                  ) -> dict[str, np.ndarray]:
    """(M, C) by view and COMBINED: each half of the rows, 0 or 1 (M,), scored with the strengths and weights that the
    other half chooses (its own, if the other is empty)."""
    shape = (len(targets), max(classes, 1))
    found = {name: np.zeros(shape, np.float32) for name in (COMBINED, *scores)}
    for mask in (half == 0, half == 1):
        chooser = mask if mask.all() else ~mask
        best, weights = _choose(scores, targets, classes, chooser)
        for (name, i), weight in zip(best.items(), weights):
            found[name][mask] = scores[name][i, mask]
            found[COMBINED][mask] += weight * found[name][mask]
    return found
