"""The next sample of a wave by linear prediction from those just before it (Atal & Schroeder 1970), as a proper
distribution over levels. The weights are solved for anew at every position, as in lossless audio coders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from segue.models.advised import Advisor, histories_before
from segue.models.regression import fit_mixture_weights

PREDICTION_ORDER = 16  # latest samples that the next one is a linear combination of
WINDOW = 384  # latest samples that the weights are estimated from
DECAY_SAMPLES = 128.0  # age at which a sample's weight in the estimate has fallen by a factor of e
TAPER_SAMPLES = 32  # newest samples that are tapered too: a sharp end would look like a jump
NOISE_SHARE = 1e-4  # share of the power added as white noise, which keeps the weights finite
ERROR_WINDOWS = (3, 12, 48)  # samples over which recent errors are averaged to predict the error scale
MAX_TRAINING_PLACES = 20_000  # training positions used, at most
WIDTHS = np.array([0.25, 0.6, 1.4, 4.0])  # of the logistic errors, in units of the error scale
OTHER_PROBABILITY = 1e-3  # spread evenly over the vocabulary, for what linear prediction cannot see


class LinearPrediction(Advisor):
    """numbers: (V,) the sample value of each token, NaN (or None) for tokens that are not samples.

    The learned arrays: "size" (4,), weights of the log error scale; "share" (W,), of the error widths; "end" (1,), the
    probability that the sequence ends.
    """

    name = "adaptive linear prediction"
    reach: int = WINDOW

    def __init__(self, vocabulary: int, numbers: Sequence[float | None] | np.ndarray) -> None:
        self.vocabulary, self.numbers = vocabulary, np.array(numbers, float)
        samples = np.flatnonzero(np.isfinite(self.numbers))
        self.ids = samples[np.argsort(self.numbers[samples], kind="stable")]
        levels = self.numbers[self.ids]
        self.edges = np.concatenate([[-np.inf], (levels[1:] + levels[:-1]) / 2, [np.inf]])
        self.smallest_step = float(np.diff(levels).min()) if len(levels) > 1 else 1.0
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
        histories = np.concatenate([histories_before(ids, at, self.reach) for ids, at in zip(documents, places)])
        targets = np.concatenate([ids[at] for ids, at in zip(documents, places)])
        means, error_features = self._predict_mean_and_features(histories)
        errors = np.abs(self.numbers[targets] - means)
        penalty = 1e-3 * len(errors) * np.eye(error_features.shape[1])
        self.size = np.linalg.solve(error_features.T @ error_features + penalty,
                                    error_features.T @ np.log(errors + self.smallest_step))
        edges = self.edges[self.rank[targets][:, None] + np.arange(2)]
        likelihoods = np.diff(self._cumulative(edges, means, error_features))[..., 0].T
        self.share = fit_mixture_weights(likelihoods, self.share)

    def _predict_mean_and_features(self, histories: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(N,) the linear prediction after each history (N, reach), and (N, 4) the features of its log error scale."""
        # `NO_TOKEN`, -1, reads the appended entry: before a document's beginning there is silence
        values = np.nan_to_num(np.append(self.numbers, np.nan)[histories])
        power = np.abs(np.fft.rfft(values * self.taper, 2 * WINDOW)) ** 2
        autocorrelation = np.fft.irfft(power)[:, : PREDICTION_ORDER + 1]
        autocorrelation[:, 0] = autocorrelation[:, 0] * (1 + NOISE_SHARE) + self.smallest_step**2
        lags = np.abs(np.arange(PREDICTION_ORDER)[:, None] - np.arange(PREDICTION_ORDER))
        weights = np.linalg.solve(autocorrelation[:, lags], autocorrelation[:, 1:, None])[:, ::-1, 0]
        latest = values[:, -max(ERROR_WINDOWS) - PREDICTION_ORDER :]
        windows = np.lib.stride_tricks.sliding_window_view(latest, PREDICTION_ORDER, 1)
        predicted = np.einsum("ntk,nk->nt", windows, weights)
        errors = np.abs(values[:, -max(ERROR_WINDOWS) :] - predicted[:, :-1])
        recent_errors = [np.log(errors[:, -samples:].mean(1) + self.smallest_step) for samples in ERROR_WINDOWS]
        return predicted[:, -1], np.stack([np.ones(len(histories)), *recent_errors], 1)

    def _cumulative(self, edges: np.ndarray, means: np.ndarray, error_features: np.ndarray) -> np.ndarray:
        """(W, N, E): the probability to lie below edges (N, E) or (E,), under a logistic error around `means` (N,) of
        each of the WIDTHS times the predicted error scale."""
        scales = np.exp(np.clip(error_features @ self.size, -20, 20))[:, None] * WIDTHS[:, None, None]
        return 1 / (1 + np.exp(-np.clip((edges - means[:, None]) / scales, -60, 60)))

    def predict(self, histories: np.ndarray) -> np.ndarray:
        means, error_features = self._predict_mean_and_features(histories)
        out = np.full((len(histories), self.vocabulary), OTHER_PROBABILITY / self.vocabulary)
        probabilities = np.diff(np.tensordot(self.share, self._cumulative(self.edges, means, error_features), 1))
        out[:, self.ids] += (1 - OTHER_PROBABILITY) * (1 - self.end) * probabilities
        other_ids = np.flatnonzero(self.rank < 0)
        if len(other_ids):
            out[:, other_ids] += (1 - OTHER_PROBABILITY) * self.end / len(other_ids)
        return out / out.sum(1, keepdims=True)

    def settings(self) -> dict[str, Any]:
        return {"vocabulary": self.vocabulary,
                "numbers": [None if np.isnan(number) else number for number in self.numbers.tolist()]}

    def arrays(self) -> dict[str, np.ndarray]:
        return {"size": self.size, "share": self.share, "end": np.array([self.end])}

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        self.size, self.share, self.end = arrays["size"], arrays["share"], float(arrays["end"][0])
