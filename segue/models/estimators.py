"""Classifiers of scikit-learn on features, for data too few for a network, and as the floor that one must beat."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from segue.errors import SegueError, require


def distinct_columns(features: np.ndarray) -> np.ndarray:
    """The columns that are neither constant nor the same as one before (isoschizomers: enzymes of one site)."""
    _, first = np.unique(features, axis=1, return_index=True)
    return np.array(sorted(i for i in first.tolist() if (features[:, i] != features[0, i]).any()), np.int64)


def informative_columns(features: np.ndarray, labels: np.ndarray, most: int = 0) -> np.ndarray:
    """The columns to learn from: the distinct ones, and of these the `most` (0: all) that share most information with
    the labels."""
    columns = distinct_columns(features)
    if not len(columns):
        raise SegueError("every feature is constant: there is nothing to learn from")
    if 0 < most < len(columns):
        select = require("sklearn.feature_selection", "classical")
        shared = select.mutual_info_classif(features[:, columns], labels, random_state=0)
        columns = np.sort(columns[np.argsort(-shared, kind="stable")[:most]])
    return columns


class Estimator:
    """Any classifier of scikit-learn, on two classes. What is chosen, scaled and learned is so from the rows of `fit`
    alone, so that none of it leaks from those to be judged.

    model: a classifier, not fitted. scaled: give each feature mean 0 and variance 1. most: see `informative_columns`.
    It is not saved: scikit-learn's own format is a pickle, which may run anything where it is loaded. Fit it again.
    """

    def __init__(self, model: Any, scaled: bool = True, most: int = 0) -> None:
        self.model, self.scaled, self.most = model, scaled, most
        self.columns: np.ndarray | None = None

    def fit(self, features: np.ndarray, labels: np.ndarray) -> Estimator:
        """features: (N, F). labels: (N,) bool."""
        labels = np.asarray(labels, bool)
        if features.ndim != 2 or len(features) != len(labels) or labels.all() or not labels.any():
            raise SegueError(f"features of shape {features.shape} for {len(labels)} labels: one row for each, and rows "
                             "of both classes")
        self.columns = columns = informative_columns(features, labels, self.most)
        self.mean, self.scale = features[:, columns].mean(0), features[:, columns].std(0)
        self.model.fit(self._read(features), labels)
        return self

    def _read(self, features: np.ndarray) -> np.ndarray:
        if self.columns is None:
            raise SegueError("this classifier has learned nothing yet: fit it first")
        kept = features[:, self.columns]
        return (kept - self.mean) / self.scale if self.scaled else kept

    def scores(self, features: np.ndarray) -> np.ndarray:
        """(N,) higher is likelier true: the model's own decision where it has one (0 is its threshold), else the chance
        of true (0.5)."""
        x = self._read(features)
        if hasattr(self.model, "decision_function"):
            return np.asarray(self.model.decision_function(x))
        return np.asarray(self.model.predict_proba(x)[:, 1])

    def predict(self, features: np.ndarray) -> np.ndarray:
        """(N,) bool."""
        return np.asarray(self.model.predict(self._read(features)), bool)


def svm(seed: int = 0, **options: Any) -> Estimator:
    """A support vector machine with radial basis functions; options: C, gamma ..."""
    return Estimator(require("sklearn.svm", "classical").SVC(random_state=seed, **options))


def forest(seed: int = 0, trees: int = 500, **options: Any) -> Estimator:
    """A random forest whose classes weigh alike."""
    made = require("sklearn.ensemble", "classical").RandomForestClassifier(
        trees, max_features="sqrt", class_weight="balanced", random_state=seed, **options)
    return Estimator(made, scaled=False)


def logistic(seed: int = 0, **options: Any) -> Estimator:
    """Logistic regression."""
    options = {"max_iter": 2000, **options}
    return Estimator(require("sklearn.linear_model", "classical").LogisticRegression(random_state=seed, **options))


ESTIMATORS: dict[str, Callable[..., Estimator]] = {"svm": svm, "forest": forest, "logistic": logistic}
