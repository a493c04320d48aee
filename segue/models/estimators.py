"""Classifiers of scikit-learn on features, for data sets too small for a network, and as the baseline of one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from segue.errors import SegueError, require


def distinct_columns(features: np.ndarray) -> np.ndarray:
    """(C,) indices, ascending, of the columns that are neither constant nor equal to an earlier one (as those of
    isoschizomers, enzymes that cut at the same site)."""
    _, first = np.unique(features, axis=1, return_index=True)
    return np.array(sorted(i for i in first.tolist() if (features[:, i] != features[0, i]).any()), np.int64)


def informative_columns(features: np.ndarray, labels: np.ndarray, most: int = 0) -> np.ndarray:
    """(C,) indices of the columns to learn from: the distinct ones of features (N, F), or the `most` of these (0: all)
    that have the highest mutual information with the labels (N,)."""
    columns = distinct_columns(features)
    if not len(columns):
        raise SegueError("every feature is constant: there is nothing to learn from")
    if 0 < most < len(columns):
        select = require("sklearn.feature_selection", "classical")
        information = select.mutual_info_classif(features[:, columns], labels, random_state=0)
        columns = np.sort(columns[np.argsort(-information, kind="stable")[:most]])
    return columns


class Estimator:
    """Any classifier of scikit-learn, on two classes. Columns are selected, scaled and learned from the rows of `fit`
    alone, so that nothing leaks from the rows to be classified.

    model: a classifier, not fitted. scaled: give each feature mean 0 and variance 1. most: see `informative_columns`.
    It cannot be saved, since scikit-learn's own format is a pickle, which can run any code when loaded: fit it again.
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
        self.columns = selected = informative_columns(features, labels, self.most)
        self.mean, self.scale = features[:, selected].mean(0), features[:, selected].std(0)
        self.model.fit(self._read(features), labels)
        return self

    def _read(self, features: np.ndarray) -> np.ndarray:
        if self.columns is None:
            raise SegueError("this classifier has learned nothing yet: fit it first")
        selected = features[:, self.columns]
        return (selected - self.mean) / self.scale if self.scaled else selected

    def scores(self, features: np.ndarray) -> np.ndarray:
        """(N,) scores of True, higher is likelier: the model's decision function where it has one (threshold 0), else
        the probability of True (threshold 0.5)."""
        x = self._read(features)
        if hasattr(self.model, "decision_function"):
            return np.asarray(self.model.decision_function(x))
        return np.asarray(self.model.predict_proba(x)[:, 1])

    def predict(self, features: np.ndarray) -> np.ndarray:
        """(N,) bool, the predicted class of each row of features (N, F)."""
        return np.asarray(self.model.predict(self._read(features)), bool)


def svm(seed: int = 0, **options: Any) -> Estimator:
    """A support vector machine with radial basis functions; options: C, gamma ..."""
    return Estimator(require("sklearn.svm", "classical").SVC(random_state=seed, **options))


def forest(seed: int = 0, trees: int = 500, **options: Any) -> Estimator:
    """A random forest of balanced class weights."""
    model = require("sklearn.ensemble", "classical").RandomForestClassifier(
        trees, max_features="sqrt", class_weight="balanced", random_state=seed, **options)
    return Estimator(model, scaled=False)


def logistic(seed: int = 0, **options: Any) -> Estimator:
    """Logistic regression."""
    options = {"max_iter": 2000, **options}
    return Estimator(require("sklearn.linear_model", "classical").LogisticRegression(random_state=seed, **options))


ESTIMATORS: dict[str, Callable[..., Estimator]] = {"svm": svm, "forest": forest, "logistic": logistic}
