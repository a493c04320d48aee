"""Classical point processes, fitted in seconds: homogeneous Poisson, and Hawkes with exponential kernels.

Type k has the intensity lambda_k(t) = base_k + sum over past events (t_j, m_j) and decays b of
excite[k, m_j, b] * b * exp(-b (t - t_j)) (Hawkes 1971). With no decays it is a Poisson process. All likelihoods are
conditional on the first event of each sequence, and end at its last one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

CHUNK = 4096  # events per pass of `Hawkes.predict`, to bound its memory


@dataclass(frozen=True)
class TimedEvents:
    """A padded batch of event sequences. types: (N, L) int, -1 is padding at the end. times: (N, L), ascending."""

    types: np.ndarray
    times: np.ndarray

    @staticmethod
    def of(sequences: Iterable[tuple[np.ndarray, np.ndarray]]) -> TimedEvents:
        """Pad sequences, each a pair of types (n,) and times (n,)."""
        rows = list(sequences)
        longest = max((len(types) for types, _ in rows), default=0)
        types, times = np.full((len(rows), longest), -1), np.zeros((len(rows), longest))
        for row, (kinds, moments) in enumerate(rows):
            types[row, : len(kinds)], times[row, : len(kinds)] = kinds, moments
            times[row, len(kinds) :] = moments[-1] if len(moments) else 0.0
        return TimedEvents(types, times)

    @property
    def has_predecessor(self) -> np.ndarray:
        """(N, L) bool: whether there is an event here, and one before it in its row."""
        live = self.types >= 0
        live[:, :1] = False
        return live


class Hawkes:
    """A multivariate Hawkes process with exponential kernels.

    base: (K,), events per unit of time. excite: (K, K, B), expected number of events of type k triggered by one of type
    m. decays: (B,), per unit of time.
    """

    def __init__(self, base: np.ndarray, excite: np.ndarray, decays: np.ndarray) -> None:
        self.base, self.excite, self.decays = base, excite, decays

    @classmethod
    def fit(cls, data: TimedEvents, types: int, decays: Iterable[float] = (), steps: int = 60) -> Hawkes:
        """Fit by expectation-maximisation over which event, if any, triggered which (Lewis & Mohler 2011).

        types: K. decays: of the kernels, fixed (none: a Poisson process); the weights of several are fitted, which
        allows other shapes. steps: of the EM algorithm."""
        rates = np.array(list(decays), dtype=np.float64)
        live, many = data.has_predecessor, len(rates)
        kinds, spans = data.types[live], (data.times[:, -1:] - data.times)
        total = float(spans[:, 0].sum()) or 1.0
        base = np.full(types, 0.5 / total)
        excite = np.zeros((types, types, many))
        before = _decayed_counts(data, types, rates)[live] * rates  # (n, K, B), kernels at each event
        # Integral of the kernels of each type's events up to the end of their rows.
        reach, seen = np.zeros((types, many)), data.types >= 0
        for index, rate in enumerate(rates):
            reach[:, index] = np.bincount(data.types[seen], (1 - np.exp(-rate * spans))[seen], types)
        for kind in range(types):
            count = int((kinds == kind).sum())
            some = before[kinds == kind].reshape(count, types * many)
            mu, weight = (count + 0.5) / total, np.zeros(types * many)
            if count and many:
                mu, weight = mu / 2, np.full(types * many, count / 2 / max(reach.sum(), 1e-12))
                for _ in range(steps):
                    share = 1 / (mu + some @ weight)
                    mu, weight = mu * share.sum() / total, weight * (share @ some) / np.maximum(reach.ravel(), 1e-12)
                mu = max(mu, 0.5 / total)  # never zero, so that unseen types stay possible
            base[kind], excite[kind] = mu, weight.reshape(types, many)
        return cls(base, excite, rates)

    def log_likelihood(self, data: TimedEvents) -> tuple[np.ndarray, np.ndarray]:
        """Return the log-likelihood of each event given those before: (N, L) of its time, a density per unit of time,
        and (N, L) of its type given the time; 0 where `data.has_predecessor` is False."""
        before = _decayed_counts(data, len(self.base), self.decays) * self.decays
        live, kinds = data.has_predecessor, np.maximum(data.types, 0)
        total = self.base.sum() + np.einsum("nlmb,mb->nl", before, self.excite.sum(0))
        own = self.base[kinds] + np.einsum("nlmb,nlmb->nl", before, self.excite[kinds])
        time = np.log(total) - self.residuals(data)
        return np.where(live, time, 0.0), np.where(live, np.log(own / total), 0.0)

    def _expected_offspring(self, data: TimedEvents) -> np.ndarray:
        """Return how many events those up to and including each one are still expected to trigger, per decay:
        (N, L, B)."""
        after = _decayed_counts(data, len(self.base), self.decays)
        row, place = np.nonzero(data.types >= 0)
        after[row, place, data.types[row, place]] += 1.0
        return np.einsum("nlmb,mb->nlb", after, self.excite.sum(0))

    def residuals(self, data: TimedEvents) -> np.ndarray:
        """Return the integrated total intensity between each event and the one before it, (N, L); 0 at the first."""
        gaps = np.diff(data.times, axis=1, prepend=data.times[:, :1])
        pull = np.roll(self._expected_offspring(data), 1, axis=1)
        expected = self.base.sum() * gaps + (pull * (1 - np.exp(-self.decays * gaps[..., None]))).sum(-1)
        return np.where(data.has_predecessor, expected, 0.0)

    def predict(self, data: TimedEvents, longest: float, points: int = 48) -> tuple[np.ndarray, np.ndarray]:
        """Predict the event after each one: the expected time until it, at most `longest`, (N, L), and the most likely
        type at that time (N, L). points: of the time grid."""
        after = _decayed_counts(data, len(self.base), self.decays)
        row, place = np.nonzero(data.types >= 0)
        after[row, place, data.types[row, place]] += 1.0
        grid = np.concatenate([[0.0], np.logspace(-3, 0, points) * longest])
        integral = 1 - np.exp(-np.outer(grid, self.decays))  # (G, B), of each kernel
        shape = data.types.shape
        flat = after.reshape(data.types.size, len(self.base), len(self.decays))
        mean, kind = np.zeros(len(flat)), np.zeros(len(flat), dtype=np.int64)
        for at in range(0, len(flat), CHUNK):
            part = flat[at : at + CHUNK]
            pull = np.einsum("nmb,mb->nb", part, self.excite.sum(0))
            survival = np.exp(-(self.base.sum() * grid + pull @ integral.T))
            mean[at : at + CHUNK] = ((survival[:, 1:] + survival[:, :-1]) / 2 * np.diff(grid)).sum(1)
            left = part * (self.decays * np.exp(-np.outer(mean[at : at + CHUNK], self.decays)))[:, None]
            kind[at : at + CHUNK] = (self.base + np.einsum("nmb,kmb->nk", left, self.excite)).argmax(1)
        return mean.reshape(shape), kind.reshape(shape)

    def sample(self, rows: int, length: int, generator: np.random.Generator) -> TimedEvents:
        """Sample `rows` sequences of `length` events, starting at time 0 with no past, by thinning (Ogata 1981)."""
        types, times = np.full((rows, length), -1), np.zeros((rows, length))
        excited = np.zeros((rows, len(self.base), len(self.decays)))
        now, count = np.zeros(rows), np.zeros(rows, dtype=np.int64)
        going = np.arange(rows)
        while len(going):
            weighted = np.einsum("nmb,kmb->nk", excited[going] * self.decays, self.excite)
            bound = self.base.sum() + weighted.sum(1)
            wait = generator.exponential(1 / bound)
            now[going] += wait
            excited[going] *= np.exp(-self.decays * wait[:, None])[:, None]
            rates = self.base + np.einsum("nmb,kmb->nk", excited[going] * self.decays, self.excite)
            level = generator.random(len(going)) * bound
            edges = rates.cumsum(1)
            hit = level < edges[:, -1]
            chosen, kind = going[hit], (level[hit, None] >= edges[hit]).sum(1)
            types[chosen, count[chosen]], times[chosen, count[chosen]] = kind, now[chosen]
            excited[chosen, kind] += 1.0
            count[chosen] += 1
            going = going[count[going] < length]
        return TimedEvents(types, times)


def _decayed_counts(data: TimedEvents, types: int, decays: np.ndarray) -> np.ndarray:
    """Return, at each event, the sum of exp(-b (t - t_j)) over the events before it, by their type: (N, L, K, B)."""
    rows, length = data.types.shape
    state = np.zeros((rows, types, len(decays)))
    found = np.zeros((rows, length, types, len(decays)))
    every = np.arange(rows)
    for place, wait in enumerate(_waiting_times(data)):
        state *= np.exp(-decays * wait[:, None])[:, None]
        found[:, place] = state
        here = data.types[:, place] >= 0
        state[every[here], data.types[here, place]] += 1.0
    return found


def _waiting_times(data: TimedEvents) -> Iterator[np.ndarray]:
    yield from np.diff(data.times, axis=1, prepend=data.times[:, :1]).T
