"""A table of the metrics of predictions and of generated sequences: their inputs, direction, definition, bounds, and
jackknife intervals.

Blanks, molecules, variants and continual learning have their own reports (`segue.analysis.blanks`, `molecules`,
`variants`; `segue.continual.metrics`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any

import numpy as np

from segue.analysis import forecast, metrics, texts
from segue.analysis.binary import calibration_error
from segue.analysis.distributions import frechet_distance, mauve, mauve_of, near_groups
from segue.errors import SegueError, check_choice

INF = math.inf
FIXED = "learned"  # the training sequences: never resampled


@dataclass(frozen=True)
class Measured:
    """value; low, high: the ends of its 95% interval (nan for a single row); n: rows."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Metric:
    """compute: a function of the inputs that it `needs`, in that order: lists or arrays with a row for each case.
    higher: whether higher is better; None where the value of real data is the ideal. bounds: least and greatest value.

    needs: "samples", "references" (one for each sample), "learned" (the training sequences); "features" of samples and
    "real" ones, (N, D) and (M, D); "chances" (probabilities) or "scores" (N, V) and "targets" (N,); "ranks" (N,), 1 the
    best; "nats" (N,), -log p of each row, and "units" (N,), its number of bytes, bases ...; "points" (N,) and "draws"
    (N, K), forecasts of the numbers in "truth" (N,), and "scale" (N,), the past error of the naive forecast.

    once: (prepare, compute): a costly step on the inputs, done once and not in each resample, such as clustering, and
    the function of its results.
    """

    compute: Callable[..., float]
    higher: bool | None
    needs: tuple[str, ...]
    definition: str
    bounds: tuple[float, float] = (-INF, INF)
    once: tuple[Callable[..., tuple[Any, ...]], Callable[..., float]] | None = None

    @property
    def arrow(self) -> str:
        return {True: "↑", False: "↓", None: "as real"}[self.higher]

    def measure(self, *inputs: Any, groups: int = 20, seed: int = 0) -> Measured:
        """The value and its interval, by the delete-a-group jackknife (Tukey 1958): unlike in a bootstrap no row is
        duplicated, which would lower diversity and raise distances between sets."""
        if len(inputs) != len(self.needs):
            raise SegueError(f"this metric needs {', '.join(self.needs)}: {len(inputs)} were given")
        resampled = [rows for need, rows in zip(self.needs, inputs) if need != FIXED]
        n = min(map(len, resampled))
        if not n or ("real" not in self.needs and any(len(rows) != n for rows in resampled)):
            raise SegueError(f"{', '.join(f'{len(rows):,} {need}' for need, rows in zip(self.needs, inputs))}: give as "
                             "many of each, at least one")
        compute = self.compute
        if self.once is not None:
            inputs, compute = self.once[0](*inputs), self.once[1]
            resampled = list(inputs)
        value, groups = compute(*inputs), min(groups, n)
        if groups < 2:
            return Measured(value, math.nan, math.nan, n)
        group_of = {size: np.random.default_rng(seed).permutation(size) % groups for size in set(map(len, resampled))}
        estimates = np.array([compute(*(
            rows if need == FIXED else _take(rows, np.flatnonzero(group_of[len(rows)] != group))
            for need, rows in zip(self.needs, inputs))) for group in range(groups)])
        margin = 1.96 * math.sqrt((groups - 1) / groups * np.square(estimates - estimates.mean()).sum())
        return Measured(value, max(value - margin, min(self.bounds[0], value)),
                        min(value + margin, max(self.bounds[1], value)), n)


def _take(rows: Any, index: np.ndarray) -> Any:
    return rows[index] if isinstance(rows, np.ndarray) else [rows[i] for i in index.tolist()]


def _mean(score: Callable[[Any, Any], float], samples: Sequence[Any], references: Sequence[Any]) -> float:
    return fmean(score(*pair) for pair in zip(samples, references))


def _per_unit(nats: Sequence[float], units: Sequence[float]) -> float:
    return float(np.sum(nats) / (math.log(2) * np.sum(units)))


def _calibration(probabilities: np.ndarray, targets: np.ndarray) -> float:
    return calibration_error(probabilities.argmax(1) == targets, probabilities.max(1))


def _text(text: Any) -> str:
    return text if isinstance(text, str) else " ".join(map(str, text))


PAIR, CHANCES, SCORES = ("samples", "references"), ("chances", "targets"), ("scores", "targets")

METRICS: dict[str, Metric] = {
    "perplexity": Metric(lambda nats: math.exp(float(np.mean(nats))), False, ("nats",),
                         "exp of the mean of -log p(token), over all tokens", (1, INF)),
    "bits per unit": Metric(_per_unit, False, ("nats", "units"),
                            "sum of -log2 p over the sum of bytes, bases ...; does not depend on tokens", (0, INF)),
    "log-loss": Metric(metrics.log_loss, False, CHANCES, "mean of -log2 p(true)", (0, INF)),
    "Brier": Metric(lambda chances, targets: metrics.brier(chances, targets) * chances.shape[1], False, CHANCES,
                    "mean of the sum over classes of (p - 1[true])^2, 0 to 2", (0, 2)),
    "calibration error": Metric(_calibration, False, CHANCES,
                                "mean over 15 bins of |p of the likeliest - share that is right|, by their sizes",
                                (0, 1)),
    "accuracy": Metric(metrics.top_k, True, SCORES, "share of true elements that score highest, ties by expectation",
                       (0, 1)),
    "top-5": Metric(partial(metrics.top_k, k=5), True, SCORES, "share of true elements among the 5 highest", (0, 1)),
    "HR@10": Metric(lambda ranks: float(np.mean(np.asarray(ranks) <= 10)), True, ("ranks",),
                    "share of ranks up to 10", (0, 1)),
    "NDCG@10": Metric(lambda ranks: fmean(1 / math.log2(rank + 1) if rank <= 10 else 0.0 for rank in ranks), True,
                      ("ranks",), "mean of 1 / log2(rank + 1) up to rank 10", (0, 1)),
    "MRR": Metric(lambda ranks: fmean(1 / rank for rank in ranks), True, ("ranks",), "mean of 1 / rank", (0, 1)),
    "exact match": Metric(partial(_mean, lambda a, b: float(list(a) == list(b))), True, PAIR,
                          "share of samples that are their reference", (0, 1)),
    "BLEU": Metric(lambda samples, references: texts.bleu(samples, [[each] for each in references]), True, PAIR,
                   "geometric mean of 1- to 4-gram precisions of the corpus, times a penalty of brevity", (0, 100)),
    "chrF": Metric(lambda samples, references: texts.chrf([*map(_text, samples)], [*map(_text, references)]), True,
                   PAIR, "F2 of 1- to 6-grams of letters, over the corpus", (0, 100)),
    "ROUGE-1": Metric(partial(_mean, partial(texts.rouge, n=1)), True, PAIR, "mean F1 of shared elements", (0, 1)),
    "ROUGE-2": Metric(partial(_mean, partial(texts.rouge, n=2)), True, PAIR, "mean F1 of shared 2-grams", (0, 1)),
    "ROUGE-L": Metric(partial(_mean, texts.rouge), True, PAIR, "mean F1 of the longest common subsequence", (0, 1)),
    "edit similarity": Metric(partial(_mean, texts.edit_similarity), True, PAIR,
                              "mean of 1 - Damerau-Levenshtein distance / longer length", (0, 1)),
    "distinct-1": Metric(partial(texts.distinct, n=1), True, ("samples",), "different elements / all elements", (0, 1)),
    "distinct-2": Metric(partial(texts.distinct, n=2), True, ("samples",), "different 2-grams / all elements", (0, 1)),
    "rep-4": Metric(lambda samples: fmean(texts.repetition(text, 4) for text in samples), False, ("samples",),
                    "mean over texts of 1 - different / all 4-grams", (0, 1)),
    "diversity": Metric(texts.diversity, True, ("samples",), "product of 1 - rep-n over n = 2, 3, 4", (0, 1)),
    "self-BLEU": Metric(texts.self_bleu, False, ("samples",), "mean BLEU of each sample against all others", (0, 100)),
    "entropy": Metric(texts.entropy, None, ("samples",), "bits of the distribution of single elements", (0, INF)),
    "Zipf": Metric(texts.zipf, None, ("samples",), "exponent of frequency by rank", (-INF, INF)),
    "novelty": Metric(texts.novelty, None, ("samples", FIXED), "share of 4-grams that what was learned does not hold",
                      (0, 1)),
    "MAE": Metric(forecast.mae, False, ("points", "truth"), "mean of |forecast - truth|", (0, INF)),
    "RMSE": Metric(forecast.rmse, False, ("points", "truth"), "root of the mean of (forecast - truth)^2", (0, INF)),
    "MASE": Metric(forecast.mase, False, ("points", "truth", "scale"),
                   "mean of |forecast - truth| / the error of the forecast by the last season in the past", (0, INF)),
    "CRPS": Metric(forecast.crps, False, ("draws", "truth"), "mean of E|X - truth| - E|X - X'| / 2 of the draws",
                   (0, INF)),
    "coverage": Metric(forecast.coverage, None, ("draws", "truth"),
                       "share of the truth inside the middle 80% of the draws; right is 0.8", (0, 1)),
    "MAUVE": Metric(mauve, True, ("features", "real"), "area under the curve of divergences from mixtures, scale 5, "
                    "over groups of near features; of 1,000 rows at least", (0, 1), (near_groups, mauve_of)),
    "Frechet distance": Metric(frechet_distance, False, ("features", "real"),
                               "|m - m'|^2 + trace(S + S' - 2 (S S')^(1/2)) of features", (0, INF)),
}


def metric(name: str) -> Metric:
    check_choice("metric", name, METRICS)
    return METRICS[name]
