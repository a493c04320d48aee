"""The next measured number by linear regression on the numbers before it, as a proper distribution over levels.

The mean is a ridge regression, the logarithm of the error scale another, and errors are a mixture of logistic
distributions of several widths. Two more components say that the number repeats the last one, and that it is drawn from
the column's frequencies.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from segue.models.advised import Advisor, histories_before

MAX_LAGS = 48  # moments of a column's own history, at most
MAX_CROSS_COLUMNS = 49  # columns up to which each is regressed on the others too
ERROR_WINDOWS = (3, 12, MAX_LAGS)  # moments over which recent changes are averaged to predict the error scale
MAX_TRAINING_MOMENTS = 20_000  # training moments used, at most
RIDGE_PENALTIES = (1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # candidates, per moment, for features of unit size
SEASON_WINDOW = 3  # moments read around a season ago: the one before it, that one and the one after it
MIN_LAGS_WITHOUT_LEVEL = 12  # with fewer lags the level itself is a feature; more show the level, which may have moved
MAX_CATEGORIES = 24  # distinct numbers up to which a column counts as categorical, not measured
MIN_REPEATS = 30  # rows of a class (repeated or changed) needed to fit it separately
MIN_TRAINING_ROWS = 8  # rows below which a column is predicted by its frequencies alone
EM_STEPS = 50  # of the mixture weights
WIDTHS = np.array([0.25, 0.6, 1.4, 4.0])  # of the logistic errors, in units of the error scale
OTHER_PROBABILITY = 1e-3  # spread evenly over the vocabulary, for what a regression cannot see


class Regression(Advisor):
    """Numbers of several columns take turns. Each is regressed on its column's latest numbers, as differences from the
    last one, on the latest changes of the other columns, and on their numbers of this moment as far as they precede it.

    turns: for each column the ids of its numbers, ascending, and last the id of a missing number. numbers: the value of
    each id of a column but the last. lags: moments of a column's own history; others: of the other columns'. seasons:
    for each column its period in moments (0: none); beyond `lags`, numbers around a season ago become features too.

    The learned arrays of a column, by name: "often" (L,), frequencies of its L levels; "missing" (1,), probability of a
    missing number; "mean" and "deviation" (1,), of its numbers; and, with enough data, "weights" (F,) of the mean's
    regression in deviations, "size" (4,), weights of the log error scale, and "share" (2, W + 2), the weights of the W
    error widths, of repeating the last number and of the frequencies, after a change and after a repeat.
    """

    name = "linear regression"
    gated = False  # runs of levels tell a little more of the next number, but mislead when forecasts feed on forecasts

    def __init__(self, vocabulary: int, turns: Sequence[Sequence[int]], numbers: Sequence[Sequence[float]], lags: int,
                 others: int, seasons: Sequence[int] = ()) -> None:
        self.vocabulary, self.lags, self.others = vocabulary, lags, others
        self.seasons = [season if season > lags else 0 for season in seasons] or [0] * len(turns)
        self.turns = [np.asarray(ids) for ids in turns]
        self.numbers = [np.asarray(levels, float) for levels in numbers]
        self.reach = (max(lags, others + 1, *(season + 1 for season in self.seasons)) + 1) * len(turns)
        # The last entry of both tables is that of `NO_TOKEN`, -1.
        self.column, self.value = np.full(vocabulary + 1, -1), np.full(vocabulary + 1, np.nan)
        for column, (ids, levels) in enumerate(zip(self.turns, self.numbers)):
            self.column[ids], self.value[ids[:-1]] = column, levels
        self.midpoints = [(levels[1:] + levels[:-1]) / 2 for levels in self.numbers]

    @classmethod
    def for_context(cls, vocabulary: int, turns: Sequence[np.ndarray], numbers: Sequence[Sequence[float]], context: int,
                    moments: int, seasons: Sequence[int] = ()) -> Regression:
        """A regression that reaches no further back than `context` tokens, with few enough weights for so many training
        `moments`."""
        seasons = [season if (season + SEASON_WINDOW) * len(turns) <= context else 0 for season in seasons]
        lags = int(np.clip(min(MAX_LAGS, context // len(turns) - 1, moments // 20), 1, MAX_LAGS))
        # more lags of other columns do not help forecasts that feed on forecasts
        others = min(2, lags) if len(turns) <= MAX_CROSS_COLUMNS else 0
        return cls(vocabulary, [ids.tolist() for ids in turns], [list(levels) for levels in numbers], lags, others,
                   seasons)

    def learn(self, documents: Sequence[np.ndarray]) -> None:
        ended = sum(bool(len(ids)) and self.column[ids[-1]] < 0 for ids in documents)
        self.end = max(ended, 0.01) / max(1, sum(map(len, documents))) * len(self.turns)
        self.models = [self._fit(column, documents) for column in range(len(self.turns))]

    def _fit(self, column: int, documents: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """The learned arrays of a column, see the class."""
        places = [np.flatnonzero(self.column[ids] == column) for ids in documents]
        model = self._level_statistics(column, np.concatenate([ids[at] for ids, at in zip(documents, places)]))
        step = max(1, -(-sum(map(len, places)) // MAX_TRAINING_MOMENTS))
        places = [at[number % step :: step] for number, at in enumerate(places)]
        histories = np.concatenate([histories_before(ids, at, self.reach) for ids, at in zip(documents, places)])
        targets = np.concatenate([self.value[ids[at]] for ids, at in zip(documents, places)])
        features, last, error_features, observed = self._features(column, histories, model)
        valid = observed & np.isfinite(targets)
        if valid.sum() < MIN_TRAINING_ROWS:
            return model
        features, last, targets, error_features = features[valid], last[valid], targets[valid], error_features[valid]
        model["weights"], residuals = _fit_ridge(features, (targets - last) / model["deviation"])
        changed = targets != last
        model["size"] = _fit_log_scale(error_features, residuals, changed)

        level = np.searchsorted(self.numbers[column], targets)
        edges = np.concatenate([[-np.inf], self.midpoints[column], [np.inf]])[level[:, None] + np.arange(2)]
        means = targets + residuals * model["deviation"]
        error_likelihoods = np.diff(_cumulative(edges, means, error_features, model))[..., 0].T
        likelihoods = np.column_stack([error_likelihoods, ~changed, model["often"][level]])
        repeated = self._repeats_last(histories)[valid]
        uniform = np.full(likelihoods.shape[1], 1 / likelihoods.shape[1])
        model["share"] = np.stack([
            fit_mixture_weights(likelihoods[rows] if rows.sum() > MIN_REPEATS else likelihoods, uniform)
            for rows in (~repeated, repeated)])
        return model

    def _level_statistics(self, column: int, tokens: np.ndarray) -> dict[str, np.ndarray]:
        """Frequencies, mean and deviation of a column's numbers, from all its tokens in the training data."""
        ids, numbers = self.turns[column], self.numbers[column]
        counts = np.bincount(np.searchsorted(ids, tokens), minlength=len(ids))
        frequencies = counts[:-1] / max(1, counts[:-1].sum())
        mean = float(frequencies @ numbers)
        deviation = max(float(np.sqrt(frequencies @ (numbers - mean) ** 2)), 1e-9)
        return {"often": (counts[:-1] + 0.5) / (counts[:-1] + 0.5).sum(),
                "missing": (counts[-1:] + 0.01) / (counts.sum() + 0.02),
                "mean": np.array([mean]), "deviation": np.array([deviation])}

    def _features(self, column: int, histories: np.ndarray, model: dict[str, np.ndarray],
                  ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The regressors of histories (N, reach) after which it is this column's turn: (N, F) features of the mean, in
        deviations; (N,) the column's last number; (N, 4) features of the log error scale; (N,) bool, whether any number
        of the column is observed, without which the rest means nothing."""
        num_columns, deviation = len(self.turns), model["deviation"]
        values, columns = self.value[histories], self.column[histories]

        def lagged(other: int, moments: int, this_moment: bool) -> np.ndarray:
            """The latest `moments` numbers of a column, (N, moments), the newest last, missing ones filled."""
            steps_back = np.arange(moments, 0, -1) * num_columns + column - other - num_columns * this_moment
            return _fill_missing(own(other, steps_back))

        def own(other: int, steps_back: np.ndarray) -> np.ndarray:
            """The numbers so many elements back, nan where they are none of that column's."""
            return np.where(columns[:, -steps_back] == other, values[:, -steps_back], np.nan)

        history = lagged(column, self.lags + 1, False)
        observed, history = np.isfinite(history[:, -1]), np.nan_to_num(history)
        last, changes = history[:, -1], np.abs(np.diff(history, axis=1)) / deviation
        parts = [np.ones((len(histories), 1))]
        if self.lags < MIN_LAGS_WITHOUT_LEVEL:
            parts.append((last[:, None] - model["mean"]) / deviation)
        parts.append((history[:, :-1] - last[:, None]) / deviation)
        if season := self.seasons[column]:
            season_ago = own(column, np.arange(season + 1, season + 1 - SEASON_WINDOW, -1) * num_columns)
            parts.append(np.where(np.isfinite(season_ago), season_ago - last[:, None], 0.0) / deviation)
        for other in range(num_columns):
            if other != column and self.others:
                other_history = np.nan_to_num(lagged(other, self.others + 1, other < column))
                scale = np.maximum(np.ptp(self.numbers[other]) / 6, 1e-9)
                parts.append(np.diff(other_history, axis=1) / scale)
        recent_changes = [np.log(changes[:, -moments:].mean(1) + 1e-3) for moments in ERROR_WINDOWS]
        error_features = np.stack([np.ones(len(histories)), *recent_changes], 1)
        return np.concatenate(parts, 1), last, error_features, observed

    def _repeats_last(self, histories: np.ndarray) -> np.ndarray:
        """(N,) bool: whether the last two numbers of the column whose turn it is are equal."""
        num_columns = len(self.turns)
        return histories[:, -num_columns] == histories[:, -2 * num_columns]

    def can_predict(self, histories: np.ndarray) -> np.ndarray:
        """(N,) bool: whether the next number is of a measured column, of more than `MAX_CATEGORIES` numbers."""
        measured = np.array([len(levels) > MAX_CATEGORIES for levels in self.numbers])
        return measured[self._next_column(histories)]

    def _next_column(self, histories: np.ndarray) -> np.ndarray:
        """(N,): the column whose turn it is."""
        return (self.column[histories[:, -1]] + 1) % len(self.turns)

    def predict(self, histories: np.ndarray) -> np.ndarray:
        next_column = self._next_column(histories)
        out = np.full((len(histories), self.vocabulary), OTHER_PROBABILITY / self.vocabulary)
        no_column = np.flatnonzero(self.column[:-1] < 0)
        for column, model in enumerate(self.models):
            rows = np.flatnonzero(next_column == column)
            if not len(rows):
                continue
            levels = self._level_probabilities(column, histories[rows])
            missing, end = float(model["missing"][0]), self.end if column == 0 else 0.0
            ids = self.turns[column]
            out[rows[:, None], ids[None, :-1]] += (1 - OTHER_PROBABILITY) * (1 - missing) * (1 - end) * levels
            out[rows, ids[-1]] += (1 - OTHER_PROBABILITY) * missing * (1 - end)
            out[rows[:, None], no_column[None]] += (1 - OTHER_PROBABILITY) * end / len(no_column)
        return out / out.sum(1, keepdims=True)

    def _level_probabilities(self, column: int, histories: np.ndarray) -> np.ndarray:
        """(N, L): the distribution of a column's next number, given that there is one; its frequencies where the
        history shows none of its numbers."""
        model = self.models[column]
        out = np.tile(model["often"], (len(histories), 1))
        if "weights" not in model:
            return out
        features, last, error_features, observed = self._features(column, histories, model)
        means = last + (features @ model["weights"]) * model["deviation"]
        share = model["share"][self._repeats_last(histories).astype(int)]
        width_share, repeat_share, frequency_share = share[:, : len(WIDTHS)], share[:, -2], share[:, -1:]
        below = np.einsum("nw,wne->ne", width_share,
                          _cumulative(self.midpoints[column], means, error_features, model))
        mixture = np.diff(below, axis=1, prepend=0.0, append=width_share.sum(1, keepdims=True))
        mixture += frequency_share * model["often"]
        mixture[observed, np.searchsorted(self.numbers[column], last[observed])] += repeat_share[observed]
        out[observed] = mixture[observed]
        return out

    def settings(self) -> dict[str, Any]:
        return {"vocabulary": self.vocabulary, "turns": [ids.tolist() for ids in self.turns],
                "numbers": [levels.tolist() for levels in self.numbers], "lags": self.lags, "others": self.others,
                "seasons": self.seasons}

    def arrays(self) -> dict[str, np.ndarray]:
        return {"end": np.array([self.end]), **{f"{column}.{name}": value for column, model in enumerate(self.models)
                                                for name, value in model.items()}}

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        self.end = float(arrays["end"][0])
        self.models = [{key.partition(".")[2]: value for key, value in arrays.items()
                        if key.partition(".")[0] == str(column)} for column in range(len(self.turns))]


def _fit_ridge(features: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ridge regression of targets (N,) on features (N, F), the penalty chosen on the last fifth of the rows: weights
    (F,) for the features as they are, and residuals (N,), predicted minus observed."""
    sizes = np.sqrt(np.square(features).mean(0)) + 1e-9
    x, num_train = features / sizes, len(features) * 4 // 5

    def solve(penalty: float, n: int) -> np.ndarray:
        return np.linalg.solve(x[:n].T @ x[:n] + penalty * n * np.eye(x.shape[1]), x[:n].T @ targets[:n])

    def held_out_error(penalty: float) -> float:
        return np.abs(x[num_train:] @ solve(penalty, num_train) - targets[num_train:]).mean()

    weights = solve(min(RIDGE_PENALTIES, key=held_out_error), len(x))
    return weights / sizes, x @ weights - targets


def _fit_log_scale(features: np.ndarray, residuals: np.ndarray, changed: np.ndarray) -> np.ndarray:
    """Weights (4,) of the log of the error scale on features (N, 4). Numbers that repeat say nothing of how far others
    move, so only rows where the number `changed` (N,) count if there are enough."""
    rows = changed if changed.sum() > MIN_REPEATS else np.ones(len(changed), bool)
    penalty = 1e-3 * rows.sum() * np.eye(features.shape[1])
    return np.linalg.solve(features[rows].T @ features[rows] + penalty,
                           features[rows].T @ np.log(np.abs(residuals[rows]) + 1e-3))


def fit_mixture_weights(likelihoods: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weights (K,) of mixture components by expectation-maximisation, from likelihoods (N, K) of each target. weights:
    (K,) to begin with."""
    for _ in range(EM_STEPS):
        joint = likelihoods * weights
        weights = (joint / np.maximum(joint.sum(1, keepdims=True), 1e-300)).mean(0) + 1e-4
        weights /= weights.sum()
    return weights


def _cumulative(edges: np.ndarray, means: np.ndarray, error_features: np.ndarray,
                model: dict[str, np.ndarray]) -> np.ndarray:
    """(W, N, E): the probability to lie below edges (N, E) or (E,), under a logistic error around `means` (N,) of each
    of the WIDTHS times the predicted error scale."""
    scale = np.exp(np.clip(error_features @ model["size"], -12, 12)) * model["deviation"]
    return 1 / (1 + np.exp(-np.clip((edges - means[:, None]) / (scale[:, None] * WIDTHS[:, None, None]), -60, 60)))


def _fill_missing(values: np.ndarray) -> np.ndarray:
    """(N, T) with each missing number replaced by the one before it, at the beginning by the first one observed; NaN
    where a row has none."""
    known, n = np.isfinite(values), np.arange(values.shape[1])
    place = np.maximum.accumulate(np.where(known, n, -1), 1)
    place = np.where(place < 0, known.argmax(1)[:, None], place)
    return np.take_along_axis(values, place, 1)
