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
        for row, (row_types, row_times) in enumerate(rows):
            types[row, : len(row_types)], times[row, : len(row_types)] = row_types, row_times
            times[row, len(row_types) :] = row_times[-1] if len(row_times) else 0.0
        return TimedEvents(types, times)

    @property
    def has_predecessor(self) -> np.ndarray:
        """(N, L) bool: whether there is an event here, and one before it in its row."""
        valid = self.types >= 0
        valid[:, :1] = False
        return valid


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
        valid, num_decays = data.has_predecessor, len(rates)
        event_types, time_to_end = data.types[valid], (data.times[:, -1:] - data.times)
        total_time = float(time_to_end[:, 0].sum()) or 1.0
        base, excite = np.zeros(types), np.zeros((types, types, num_decays))
        kernels = _decayed_counts(data, types, rates)[valid] * rates  # (n, K, B), kernels at each event
        # Integral of the kernels of each type's events up to the end of their rows.
        kernel_integrals, is_event = np.zeros((types, num_decays)), data.types >= 0
        for index, rate in enumerate(rates):
            integrals = (1 - np.exp(-rate * time_to_end))[is_event]
            kernel_integrals[:, index] = np.bincount(data.types[is_event], integrals, types)
        for kind in range(types):
            count = int((event_types == kind).sum())
            type_kernels = kernels[event_types == kind].reshape(count, types * num_decays)
            base[kind], weights = _fit_intensity(type_kernels, kernel_integrals.ravel(), total_time, steps)
            excite[kind] = weights.reshape(types, num_decays)
        return cls(base, excite, rates)

    def log_likelihood(self, data: TimedEvents) -> tuple[np.ndarray, np.ndarray]:
        """Return the log-likelihood of each event given those before: (N, L) of its time, a density per unit of time,
        and (N, L) of its type given the time; 0 where `data.has_predecessor` is False."""
        kernels = _decayed_counts(data, len(self.base), self.decays) * self.decays
        valid, types = data.has_predecessor, np.maximum(data.types, 0)
        total_rate = self.base.sum() + np.einsum("nlmb,mb->nl", kernels, self.excite.sum(0))
        type_rate = self.base[types] + np.einsum("nlmb,nlmb->nl", kernels, self.excite[types])
        time_log_prob = np.log(total_rate) - self.residuals(data)
        return np.where(valid, time_log_prob, 0.0), np.where(valid, np.log(type_rate / total_rate), 0.0)

    def _counts_after(self, data: TimedEvents) -> np.ndarray:
        """Return the decayed counts right after each event, itself included: (N, L, K, B)."""
        after = _decayed_counts(data, len(self.base), self.decays)
        row, column = np.nonzero(data.types >= 0)
        after[row, column, data.types[row, column]] += 1.0
        return after

    def residuals(self, data: TimedEvents) -> np.ndarray:
        """Return the integrated total intensity between each event and the one before it, (N, L); 0 at the first."""
        gaps = np.diff(data.times, axis=1, prepend=data.times[:, :1])
        # How many events those before are still expected to trigger, per decay: (N, L, B).
        offspring = np.roll(np.einsum("nlmb,mb->nlb", self._counts_after(data), self.excite.sum(0)), 1, axis=1)
        expected = self.base.sum() * gaps + (offspring * (1 - np.exp(-self.decays * gaps[..., None]))).sum(-1)
        return np.where(data.has_predecessor, expected, 0.0)

    def predict(self, data: TimedEvents, longest: float, points: int = 48) -> tuple[np.ndarray, np.ndarray]:
        """Predict the event after each one: the expected time until it, at most `longest`, (N, L), and the most likely
        type at that time (N, L). points: of the time grid."""
        grid = np.concatenate([[0.0], np.logspace(-3, 0, points) * longest])
        integral = 1 - np.exp(-np.outer(grid, self.decays))  # (G, B), of each kernel
        shape = data.types.shape
        flat = self._counts_after(data).reshape(data.types.size, len(self.base), len(self.decays))
        mean, kind = np.zeros(len(flat)), np.zeros(len(flat), dtype=np.int64)
        for begin in range(0, len(flat), CHUNK):
            batch = flat[begin : begin + CHUNK]
            offspring = np.einsum("nmb,mb->nb", batch, self.excite.sum(0))
            survival = np.exp(-(self.base.sum() * grid + offspring @ integral.T))
            mean[begin : begin + CHUNK] = ((survival[:, 1:] + survival[:, :-1]) / 2 * np.diff(grid)).sum(1)
            kernels = batch * (self.decays * np.exp(-np.outer(mean[begin : begin + CHUNK], self.decays)))[:, None]
            kind[begin : begin + CHUNK] = (self.base + np.einsum("nmb,kmb->nk", kernels, self.excite)).argmax(1)
        return mean.reshape(shape), kind.reshape(shape)

    def sample(self, rows: int, length: int, generator: np.random.Generator) -> TimedEvents:
        """Sample `rows` sequences of `length` events, starting at time 0 with no past, by thinning (Ogata 1981)."""
        types, times = np.full((rows, length), -1), np.zeros((rows, length))
        excited = np.zeros((rows, len(self.base), len(self.decays)))
        time, count = np.zeros(rows), np.zeros(rows, dtype=np.int64)
        active = np.arange(rows)
        while len(active):
            weighted = np.einsum("nmb,kmb->nk", excited[active] * self.decays, self.excite)
            bound = self.base.sum() + weighted.sum(1)
            wait = generator.exponential(1 / bound)
            time[active] += wait
            excited[active] *= np.exp(-self.decays * wait[:, None])[:, None]
            rates = self.base + np.einsum("nmb,kmb->nk", excited[active] * self.decays, self.excite)
            level = generator.random(len(active)) * bound
            edges = rates.cumsum(1)
            accepted = level < edges[:, -1]
            accepted_rows, kind = active[accepted], (level[accepted, None] >= edges[accepted]).sum(1)
            types[accepted_rows, count[accepted_rows]] = kind
            times[accepted_rows, count[accepted_rows]] = time[accepted_rows]
            excited[accepted_rows, kind] += 1.0
            count[accepted_rows] += 1
            active = active[count[active] < length]
        return TimedEvents(types, times)


def _fit_intensity(kernels: np.ndarray, integrals: np.ndarray, total_time: float,
                   steps: int) -> tuple[float, np.ndarray]:
    """Fit one type's base rate and weights (K * B,) of the kernels by expectation-maximisation. kernels: (n, K * B), at
    each of the type's events. integrals: (K * B,), of the kernels over all of the data."""
    count, size = kernels.shape
    base, weights = (count + 0.5) / total_time, np.zeros(size)
    if count and size:
        base, weights = base / 2, np.full(size, count / 2 / max(integrals.sum(), 1e-12))
        for _ in range(steps):
            inverse = 1 / (base + kernels @ weights)
            base = base * inverse.sum() / total_time
            weights = weights * (inverse @ kernels) / np.maximum(integrals, 1e-12)
        base = max(base, 0.5 / total_time)  # never zero, so that unseen types stay possible
    return base, weights


def _decayed_counts(data: TimedEvents, types: int, decays: np.ndarray) -> np.ndarray:
    """Return, at each event, the sum of exp(-b (t - t_j)) over the events before it, by their type: (N, L, K, B)."""
    rows, length = data.types.shape
    state = np.zeros((rows, types, len(decays)))
    out = np.zeros((rows, length, types, len(decays)))
    all_rows = np.arange(rows)
    for column, wait in enumerate(_waiting_times(data)):
        state *= np.exp(-decays * wait[:, None])[:, None]
        out[:, column] = state
        is_event = data.types[:, column] >= 0
        state[all_rows[is_event], data.types[is_event, column]] += 1.0
    return out


def _waiting_times(data: TimedEvents) -> Iterator[np.ndarray]:
    yield from np.diff(data.times, axis=1, prepend=data.times[:, :1]).T
