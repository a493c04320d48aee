"""The next measured number by linear regression on those before it, as a proper distribution over levels: a ridge for
its mean, one for the logarithm of its spread, and logistic errors of several widths around it; and that it stays as it
was, or is what numbers of the column often are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from segue.models.advised import Advisor, histories_before

OWN, OTHERS = 48, 49  # moments of a column's own past, and columns that are told by each other, at most
ERROR_WINDOWS = (3, 12, OWN)  # moments over which the size of changes says how wide errors are
MAX_TRAINING_MOMENTS = 20_000  # moments that are learned from at most
PENALTIES = (1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # of weights, per moment, of inputs brought to one size
NEAR_LEVELS = 3  # moments about a season ago: one before it, that one, and one behind it
MIN_PAST_FOR_MEAN = 12  # moments of a past that says by itself around what its numbers lie, which may have moved since
MAX_CATEGORIES = 24  # different numbers of a column up to which it is of sorts rather than measured
MIN_REPEATS = 30  # times that a column stayed, or did not: of fewer nothing is learned apart
WIDTHS = np.array([0.25, 0.6, 1.4, 4.0])  # of the errors, per spread
OTHER_PROBABILITY = 1e-3  # of the probability, for what a regression cannot see


class Regression(Advisor):
    """Numbers of several columns take turns. Each is told by its column's latest ones, as differences from the last, by
    the latest changes of the other columns and what they are at this moment, as far as they were said.

    turns: for each column its numbers' ids, rising, the last that of a missing one; numbers: what the ids say.
    lags: moments of a column's own past, others: of the other columns'. seasons: for each column after how many moments
    it comes again; where that is further back than its own past, it is told by the numbers about a season ago, too.
    """

    name = "linear regression"
    gated = False  # runs of levels tell a little more of the next number, and lead astray where the next ones are drawn

    def __init__(self, vocabulary: int, turns: Sequence[Sequence[int]], numbers: Sequence[Sequence[float]], lags: int,
                 others: int, seasons: Sequence[int] = ()) -> None:
        self.vocabulary, self.lags, self.others = vocabulary, lags, others
        self.seasons = [season if season > lags else 0 for season in seasons] or [0] * len(turns)
        self.turns, self.numbers = [np.asarray(ids) for ids in turns], [np.asarray(each, float) for each in numbers]
        self.reach = (max(lags, others + 1, *(season + 1 for season in self.seasons)) + 1) * len(turns)
        self.column, self.value = np.full(vocabulary + 1, -1), np.full(vocabulary + 1, np.nan)  # the last: of nothing
        for column, (ids, each) in enumerate(zip(self.turns, self.numbers)):
            self.column[ids], self.value[ids[:-1]] = column, each
        self.between = [(each[1:] + each[:-1]) / 2 for each in self.numbers]

    @classmethod
    def for_context(cls, vocabulary: int, turns: Sequence[np.ndarray], numbers: Sequence[Sequence[float]], context: int,
                    moments: int, seasons: Sequence[int] = ()) -> Regression:
        """One that reaches no further than a row of `context` tokens, with few enough weights for so many moments."""
        fit = [season if (season + NEAR_LEVELS) * len(turns) <= context else 0 for season in seasons]
        lags = int(np.clip(min(OWN, context // len(turns) - 1, moments // 20), 1, OWN))
        others = min(2, lags) if len(turns) <= OTHERS else 0  # more do not help forecasts that go on from forecasts
        return cls(vocabulary, [ids.tolist() for ids in turns], [list(each) for each in numbers], lags, others, fit)

    def learn(self, documents: Sequence[np.ndarray]) -> None:
        ends = [number for number, ids in enumerate(documents) if len(ids) and self.column[ids[-1]] < 0]
        self.end = max(len(ends), 0.01) / max(1, sum(map(len, documents))) * len(self.turns)
        self.models = [self._fit(column, documents) for column in range(len(self.turns))]

    def _fit(self, column: int, documents: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        ids, numbers = self.turns[column], self.numbers[column]
        found = [np.flatnonzero(self.column[each] == column) for each in documents]
        counts = sum((np.bincount(np.searchsorted(ids, each[place]), minlength=len(ids))
                      for each, place in zip(documents, found)), np.zeros(len(ids), int))
        known = counts[:-1] / max(1, counts[:-1].sum())
        mean = float(known @ numbers)
        model = {"often": (counts[:-1] + 0.5) / (counts[:-1] + 0.5).sum(),
                 "missing": (counts[-1:] + 0.01) / (counts.sum() + 0.02),
                 "mean": np.array([mean]), "deviation": np.array([max(float(np.sqrt(known @ (numbers - mean) ** 2)),
                                                                      1e-9)])}
        total = sum(map(len, found))
        step = max(1, -(-total // MAX_TRAINING_MOMENTS))
        behind = np.concatenate([histories_before(each, place[number % step :: step], self.reach)
                                 for number, (each, place) in enumerate(zip(documents, found))])
        truth = np.concatenate([self.value[each[place[number % step :: step]]]
                                for number, (each, place) in enumerate(zip(documents, found))])
        x, last, spread, there = self._features(column, behind, model)
        good = there & np.isfinite(truth)
        stayed = self._repeats_last(behind)[good]
        said, last, truth = np.searchsorted(numbers, truth[good]), last[good], truth[good]
        x, y, spread = x[good], (truth - last) / model["deviation"], spread[good]
        if len(x) < 8:
            return model
        cut, sizes = len(x) * 4 // 5, np.sqrt(np.square(x).mean(0)) + 1e-9
        x = x / sizes

        def ridge(penalty: float, n: int) -> np.ndarray:
            return np.linalg.solve(x[:n].T @ x[:n] + penalty * n * np.eye(x.shape[1]), x[:n].T @ y[:n])

        penalty = min(PENALTIES, key=lambda each: np.abs(x[cut:] @ ridge(each, cut) - y[cut:]).mean())
        left = x @ ridge(penalty, len(x)) - y
        moved = truth != last  # a number that stays says nothing of how far others go
        some = moved if moved.sum() > MIN_REPEATS else np.ones(len(moved), bool)
        size = np.linalg.solve(spread[some].T @ spread[some] + 1e-3 * some.sum() * np.eye(spread.shape[1]),
                               spread[some].T @ np.log(np.abs(left[some]) + 1e-3))
        edges = np.concatenate([[-np.inf], self.between[column], [np.inf]])[said[:, None] + np.arange(2)]
        told = np.diff(_cumulative(edges, truth + left * model["deviation"], spread, model | {"size": size}))[..., 0].T
        parts = np.column_stack([told, ~moved, model["often"][said]])
        share = np.full((2, parts.shape[1]), 1 / parts.shape[1])
        for state in range(2):
            mine = parts[stayed == state] if (stayed == state).sum() > MIN_REPEATS else parts
            for _ in range(50):
                part = mine * share[state]
                share[state] = (part / np.maximum(part.sum(1, keepdims=True), 1e-300)).mean(0) + 1e-4
                share[state] /= share[state].sum()
        return model | {"weights": ridge(penalty, len(x)) / sizes, "size": size, "share": share}

    def _features(self, column: int, behind: np.ndarray, model: dict[str, np.ndarray],
                  ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Of tails (N, reach) behind which the column's turn is: (N, F) what its mean and (N, 4) its spread are told
        by, in deviations, (N,) its last number and whether there is one."""
        many, deviation = len(self.turns), model["deviation"]
        values = self.value[behind]  # NOTHING is the last of all
        values[self.column[behind] < 0] = np.nan

        def lagged(other: int, moments: int, now: bool) -> np.ndarray:
            """(N, moments) of a column, the newest last, what is missing as it was before, or else behind."""
            back = np.arange(moments, 0, -1) * many + column - other - many * now
            return _fill_missing(values[:, -back])

        own = lagged(column, self.lags + 1, False)
        there, own = np.isfinite(own[:, -1]), np.nan_to_num(own)
        last, changes = own[:, -1], np.abs(np.diff(own, axis=1)) / deviation
        level = (last[:, None] - model["mean"]) / deviation
        parts = [np.ones((len(behind), 1)), *([level] if self.lags < MIN_PAST_FOR_MEAN else []),
                 (own[:, :-1] - last[:, None]) / deviation]
        if season := self.seasons[column]:
            ago = values[:, -(np.arange(season + 1, season + 1 - NEAR_LEVELS, -1) * many)]
            parts += [np.where(np.isfinite(ago), ago - last[:, None], 0.0) / deviation]
        for other in range(many):
            if other != column and self.others:
                each = np.nan_to_num(lagged(other, self.others + 1, other < column))
                scale = np.maximum(np.ptp(self.numbers[other]) / 6, 1e-9)
                parts += [np.diff(each, axis=1) / scale]
        recent = [np.log(changes[:, -moments:].mean(1) + 1e-3) for moments in ERROR_WINDOWS]
        return np.concatenate(parts, 1), last, np.stack([np.ones(len(behind)), *recent], 1), there

    def _repeats_last(self, behind: np.ndarray) -> np.ndarray:
        """(N,) bool: behind which of the tails the last two numbers of the column whose turn it is are the same."""
        many = len(self.turns)
        return behind[:, -many] == behind[:, -2 * many]

    def can_predict(self, tails: np.ndarray) -> np.ndarray:
        """Of columns of more than `MAX_CATEGORIES` numbers."""
        measured = np.array([len(each) > MAX_CATEGORIES for each in self.numbers])
        return measured[self._next_column(tails)]

    def _next_column(self, tails: np.ndarray) -> np.ndarray:
        """(N,): the column whose turn it is."""
        return (self.column[tails[:, -1]] + 1) % len(self.turns)

    def predict(self, behind: np.ndarray) -> np.ndarray:
        turn = self._next_column(behind)
        out = np.full((len(behind), self.vocabulary), OTHER_PROBABILITY / self.vocabulary)
        for column, model in enumerate(self.models):
            rows = np.flatnonzero(turn == column)
            if not len(rows):
                continue
            chances = np.tile(model["often"], (len(rows), 1))
            if "weights" in model:
                x, last, spread, there = self._features(column, behind[rows], model)
                middle = last + (x @ model["weights"]) * model["deviation"]
                share = model["share"][self._repeats_last(behind[rows]).astype(int)]
                below = np.einsum("nw,wne->ne", share[:, : len(WIDTHS)],
                                  _cumulative(self.between[column], middle, spread, model))
                told = np.diff(below, axis=1, prepend=0.0, append=share[:, : len(WIDTHS)].sum(1, keepdims=True))
                told += share[:, -1:] * model["often"]
                told[there, np.searchsorted(self.numbers[column], last[there])] += share[there, -2]
                chances[there] = told[there]
            missing, end = float(model["missing"][0]), self.end if column == 0 else 0.0
            ids = self.turns[column]
            out[rows[:, None], ids[None, :-1]] += (1 - OTHER_PROBABILITY) * (1 - missing) * (1 - end) * chances
            out[rows, ids[-1]] += (1 - OTHER_PROBABILITY) * missing * (1 - end)
            nothing = np.flatnonzero(self.column[:-1] < 0)
            out[rows[:, None], nothing[None]] += (1 - OTHER_PROBABILITY) * end / len(nothing)
        return out / out.sum(1, keepdims=True)

    def settings(self) -> dict[str, Any]:
        return {"vocabulary": self.vocabulary, "turns": [ids.tolist() for ids in self.turns],
                "numbers": [each.tolist() for each in self.numbers], "lags": self.lags, "others": self.others,
                "seasons": self.seasons}

    def arrays(self) -> dict[str, np.ndarray]:
        return {"end": np.array([self.end]), **{f"{column}.{name}": value for column, model in enumerate(self.models)
                                                for name, value in model.items()}}

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        self.end = float(arrays["end"][0])
        self.models = [{key.partition(".")[2]: value for key, value in arrays.items()
                        if key.partition(".")[0] == str(column)} for column in range(len(self.turns))]


def _cumulative(edges: np.ndarray, middle: np.ndarray, spread: np.ndarray, model: dict[str, np.ndarray]) -> np.ndarray:
    """(W, N, E): the probability to lie below edges (N, E) or (E,), by a logistic error of each of the WIDTHS."""
    wide = np.exp(np.clip(spread @ model["size"], -12, 12)) * model["deviation"]
    return 1 / (1 + np.exp(-np.clip((edges - middle[:, None]) / (wide[:, None] * WIDTHS[:, None, None]), -60, 60)))


def _fill_missing(values: np.ndarray) -> np.ndarray:
    """(N, T) with what is missing as it was before, at a beginning as it is first; nan where nothing is known."""
    known, n = np.isfinite(values), np.arange(values.shape[1])
    place = np.maximum.accumulate(np.where(known, n, -1), 1)
    place = np.where(place < 0, known.argmax(1)[:, None], place)
    return np.take_along_axis(values, place, 1)
