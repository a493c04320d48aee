"""The next sample of a wave by linear prediction from those just before it (Atal & Schroeder 1970), the weights found
anew at every place, as a proper distribution over levels: lossless coders of sound begin so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from segue.models.advised import Advisor, histories_before

PREDICTION_ORDER = 16  # samples by which the next one is told
WINDOW = 384  # samples from which the weights are found
DECAY_SAMPLES = 128.0  # samples before the newest at which they count for less by e
TAPER_SAMPLES = 32  # newest samples that count for less too: a sharp end would look like a jump
NOISE_SHARE = 1e-4  # of the power, as if it were white noise beside the wave: keeps the weights finite
ERROR_WINDOWS = (3, 12, 48)  # samples over which the errors just made say how wide the next one may be
MAX_TRAINING_PLACES = 20_000  # places that are learned from at most
WIDTHS = np.array([0.25, 0.6, 1.4, 4.0])  # of the errors, per spread
OTHER_PROBABILITY = 1e-3  # of the probability, for what linear prediction cannot see


class LinearPrediction(Advisor):
    """numbers: what each token says, NaN of those that are no samples."""

    name = "adaptive linear prediction"
    reach: int = WINDOW

    def __init__(self, vocabulary: int, numbers: Sequence[float | None] | np.ndarray) -> None:
        self.vocabulary, self.numbers = vocabulary, np.array(numbers, float)
        known = np.flatnonzero(np.isfinite(self.numbers))
        self.ids = known[np.argsort(self.numbers[known], kind="stable")]
        rising = self.numbers[self.ids]
        self.edges = np.concatenate([[-np.inf], (rising[1:] + rising[:-1]) / 2, [np.inf]])
        self.least = float(np.diff(rising).min()) if len(rising) > 1 else 1.0
        self.rank = np.full(vocabulary, -1)
        self.rank[self.ids] = np.arange(len(self.ids))
        age = np.arange(WINDOW - 1, -1, -1)
        self.taper = np.exp(-age / DECAY_SAMPLES) * np.minimum(1.0, (age + 1) / TAPER_SAMPLES)
        self.size, self.share = np.array([0.0, 1 / 3, 1 / 3, 1 / 3]), np.full(len(WIDTHS), 1 / len(WIDTHS))
        self.end = 0.0

    def learn(self, documents: Sequence[np.ndarray]) -> None:
        total = sum(map(len, documents))
        self.end = sum(int(self.rank[ids[-1]] < 0) for ids in documents if len(ids)) / max(1, total)
        step = max(1, -(-total // MAX_TRAINING_PLACES))
        places = [np.flatnonzero(self.rank[ids] >= 0)[number % step :: step] for number, ids in enumerate(documents)]
        if not sum(map(len, places)):
            return
        behind = np.concatenate([histories_before(ids, at, self.reach) for ids, at in zip(documents, places)])
        truth = np.concatenate([ids[at] for ids, at in zip(documents, places)])
        middle, spread = self._predict_mean_and_features(behind)
        left = np.abs(self.numbers[truth] - middle)
        self.size = np.linalg.solve(spread.T @ spread + 1e-3 * len(left) * np.eye(spread.shape[1]),
                                    spread.T @ np.log(left + self.least))
        cell = self.edges[self.rank[truth][:, None] + np.arange(2)]
        told = np.diff(self._cumulative(cell, middle, spread))[..., 0].T
        for _ in range(50):
            part = told * self.share
            self.share = (part / np.maximum(part.sum(1, keepdims=True), 1e-300)).mean(0) + 1e-4
            self.share /= self.share.sum()

    def _predict_mean_and_features(self, behind: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(N,) what linear prediction says, and (N, 4) what its spread is told by."""
        values = np.nan_to_num(np.append(self.numbers, np.nan)[behind])  # NOTHING is the last of all; silence before
        power = np.abs(np.fft.rfft(values * self.taper, 2 * WINDOW)) ** 2
        alike = np.fft.irfft(power)[:, : PREDICTION_ORDER + 1]
        alike[:, 0] = alike[:, 0] * (1 + NOISE_SHARE) + self.least**2
        apart = np.abs(np.arange(PREDICTION_ORDER)[:, None] - np.arange(PREDICTION_ORDER))
        weights = np.linalg.solve(alike[:, apart], alike[:, 1:, None])[:, ::-1, 0]
        latest = values[:, -max(ERROR_WINDOWS) - PREDICTION_ORDER :]
        windows = np.lib.stride_tricks.sliding_window_view(latest, PREDICTION_ORDER, 1)
        said = np.einsum("ntk,nk->nt", windows, weights)
        errors = np.abs(values[:, -max(ERROR_WINDOWS) :] - said[:, :-1])
        recent = [np.log(errors[:, -samples:].mean(1) + self.least) for samples in ERROR_WINDOWS]
        return said[:, -1], np.stack([np.ones(len(behind)), *recent], 1)

    def _cumulative(self, edges: np.ndarray, middle: np.ndarray, spread: np.ndarray) -> np.ndarray:
        """(W, N, E): the probability to lie below edges (N, E) or (E,), by a logistic error of each of the widths."""
        wide = np.exp(np.clip(spread @ self.size, -20, 20))[:, None] * WIDTHS[:, None, None]
        return 1 / (1 + np.exp(-np.clip((edges - middle[:, None]) / wide, -60, 60)))

    def predict(self, behind: np.ndarray) -> np.ndarray:
        middle, spread = self._predict_mean_and_features(behind)
        out = np.full((len(behind), self.vocabulary), OTHER_PROBABILITY / self.vocabulary)
        told = np.diff(np.tensordot(self.share, self._cumulative(self.edges, middle, spread), 1))
        out[:, self.ids] += (1 - OTHER_PROBABILITY) * (1 - self.end) * told
        nothing = np.flatnonzero(self.rank < 0)
        if len(nothing):
            out[:, nothing] += (1 - OTHER_PROBABILITY) * self.end / len(nothing)
        return out / out.sum(1, keepdims=True)

    def settings(self) -> dict[str, Any]:
        return {"vocabulary": self.vocabulary,
                "numbers": [None if np.isnan(each) else each for each in self.numbers.tolist()]}

    def arrays(self) -> dict[str, np.ndarray]:
        return {"size": self.size, "share": self.share, "end": np.array([self.end])}

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        self.size, self.share, self.end = arrays["size"], arrays["share"], float(arrays["end"][0])
