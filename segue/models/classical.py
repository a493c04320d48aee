"""Classical models of discrete sequences, beside `segue.models.counts`: hidden Markov models, state merging, spectral
learning. All are `SequencePredictor`s. Paper: next-element."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from segue.errors import SegueError
from segue.kernels import hmm
from segue.models.counts import CountModel, as_checked_ids


def as_ids(sequence: Any) -> np.ndarray:
    """Ids (n,) int64 of a `Sequence` or of an array of ids."""
    return np.asarray(getattr(sequence, "ids", sequence), np.int64)


def check_sequences(sequences: Iterable[Any], vocabulary: int) -> list[tuple[int, ...]]:
    """The ids of each sequence; a SegueError where all are empty, or one has ids that are not below `vocabulary`."""
    out = [tuple(as_ids(sequence).tolist()) for sequence in sequences]
    if not any(out):
        raise SegueError("there is nothing to learn: every sequence is empty")
    for number, ids in enumerate(out):
        if ids and (min(ids) < 0 or max(ids) >= vocabulary):
            raise SegueError(f"sequence {number} has ids outside 0..{vocabulary - 1}")
    return out


def directly_follows(sequences: Iterable[Any], vocabulary: int) -> CountModel:
    """The directly-follows graph as a predictor: each element from the one before it, the first from the start."""
    return CountModel(vocabulary, 1, "none").fit(sequences)


# ------------------------------------------------------------------------------------------------------------------
# Hidden Markov model


class HMM:
    """Hidden Markov model with categorical emissions, fitted by Baum-Welch from several random starts.

    vocabulary: V. states: K. restarts: number of random starts; the one of the highest likelihood after `trial`
    iterations is continued. iterations: at most, of that one. tolerance: stop when the mean log-likelihood per element
    improves by less.
    start (K,), transition (K, K), emission (K, V): probabilities, rows sum to 1. history: log-likelihood of the
    training data before each iteration of the continued fit, never falling.
    """

    def __init__(self, vocabulary: int, states: int, restarts: int = 10, iterations: int = 500,
                 tolerance: float = 1e-5, trial: int = 15, seed: int = 0) -> None:
        if states < 1 or vocabulary < 1 or restarts < 1:
            raise SegueError(f"a hidden Markov model with {states} states, {vocabulary} symbols and {restarts} "
                             "restarts: each must be at least 1")
        self.vocabulary, self.states, self.restarts = vocabulary, states, restarts
        self.iterations, self.tolerance, self.trial, self.seed = iterations, tolerance, trial, seed
        self.history: list[float] = []

    def fit(self, sequences: Iterable[Any]) -> HMM:
        """Learn sequences (arrays of ids or `Sequence`) anew."""
        # event logs repeat sequences: each distinct one is visited once, with a weight
        unique = Counter(ids for ids in check_sequences(sequences, self.vocabulary) if ids)
        flat = np.concatenate([np.array(ids, np.int64) for ids in unique])
        offsets = np.cumsum([0, *map(len, unique)])
        weights = np.array(list(unique.values()), float)
        size = float(sum(len(ids) * n for ids, n in unique.items()))
        rng = np.random.default_rng(self.seed)
        frequency = np.bincount(flat, np.repeat(weights, np.diff(offsets)), self.vocabulary) / size
        best, best_score = None, -np.inf
        for _ in range(self.restarts):
            self.start = rng.dirichlet(np.ones(self.states))
            self.transition = rng.dirichlet(np.ones(self.states), self.states)
            self.emission = rng.dirichlet(np.ones(self.vocabulary), self.states) * (frequency > 0) + frequency
            self.emission /= self.emission.sum(1, keepdims=True)
            iterations = self.trial if self.restarts > 1 else self.iterations
            history = self._run_baum_welch(flat, offsets, weights, size, iterations)
            if history[-1] > best_score:
                best, best_score = (self.start, self.transition, self.emission, history), history[-1]
        assert best is not None
        self.start, self.transition, self.emission, self.history = best
        if self.restarts > 1:
            self.history = self.history + self._run_baum_welch(flat, offsets, weights, size, self.iterations)
        return self

    def _run_baum_welch(self, flat: np.ndarray, offsets: np.ndarray, weights: np.ndarray, size: float,
                        iterations: int) -> list[float]:
        history: list[float] = []
        for _ in range(iterations):
            start_counts, transition_counts, emission_counts = (
                np.zeros_like(x) for x in (self.start, self.transition, self.emission))
            history.append(hmm.expectation_step(flat, offsets, weights, self.start, self.transition, self.emission,
                                                start_counts, transition_counts, emission_counts))
            if len(history) > 1 and history[-1] - history[-2] < self.tolerance * size:
                break
            self.start = start_counts / start_counts.sum()
            self.transition = _normalise_rows(transition_counts, self.transition)
            self.emission = _normalise_rows(emission_counts, self.emission)
        return history

    def _states(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The forward pass: state probabilities (n, K) given the elements so far, and the probability (n,) of each
        element given those before it."""
        as_checked_ids(ids, self.vocabulary)
        alpha, scales = np.empty((ids.size, self.states)), np.empty(ids.size)
        hmm.forward(ids, self.start, self.transition, self.emission, alpha, scales)
        return alpha, scales

    def log_likelihood(self, sequence: Any) -> float:
        """Natural logarithm of the probability of a sequence, -inf if it is impossible."""
        with np.errstate(divide="ignore"):
            return float(np.log(self._states(as_ids(sequence))[1]).sum())

    def next(self, prefix: Any) -> np.ndarray:
        ids = as_ids(prefix)
        state = self.start if not ids.size else self._states(ids)[0][-1] @ self.transition
        return state @ self.emission

    def predictions(self, sequence: Any) -> np.ndarray:
        ids = as_ids(sequence)
        states = np.vstack([self.start[None], self._states(ids)[0][:-1] @ self.transition]) if ids.size else \
            np.empty((0, self.states))
        return states @ self.emission


def _normalise_rows(counts: np.ndarray, previous: np.ndarray) -> np.ndarray:
    """Counts (R, C) as probabilities; rows without counts, of states that nothing visits, stay as they were."""
    totals = counts.sum(1, keepdims=True)
    return np.where(totals > 0, counts / np.maximum(totals, 1e-300), previous)


# ------------------------------------------------------------------------------------------------------------------
# State merging


class StateMerging:
    """ALERGIA (Carrasco & Oncina 1994): a probabilistic automaton, by merging compatible states of the prefix tree.

    vocabulary: V. alpha: significance of the Hoeffding test that separates two states; smaller merges more. end: id of
    the symbol that ends sequences, if any; it leads to no state.
    Candidate states are compared, in the order of their shortest prefix, with those already kept (red-blue). Where a
    prefix leaves the automaton, the overall frequencies are predicted and the walk restarts from the first state.

    counts: (states, V) how often each element followed; moves: (states, V) the next state or -1; stops: (states,) how
    many sequences ended there without an end symbol.
    """

    def __init__(self, vocabulary: int, alpha: float = 0.05, end: int | None = None) -> None:
        if not 0 < alpha <= 2:
            raise SegueError(f"alpha {alpha} of a Hoeffding test must lie in (0, 2]")
        self.vocabulary, self.alpha, self.end = vocabulary, alpha, end

    def fit(self, sequences: Iterable[Any]) -> StateMerging:
        """Learn sequences (arrays of ids or `Sequence`) anew: their prefix tree, then the merges."""
        self._seen: list[dict[int, int]] = [{}]
        self._next: list[dict[int, int]] = [{}]
        self._total = [0]
        lines = Counter(check_sequences(sequences, self.vocabulary))
        for ids, times in lines.items():
            node = 0
            self._total[0] += times
            for x in ids:
                self._seen[node][x] = self._seen[node].get(x, 0) + times
                if x == self.end:
                    break
                if x not in self._next[node]:
                    self._next[node][x] = len(self._total)
                    self._seen.append({})
                    self._next.append({})
                    self._total.append(0)
                node = self._next[node][x]
                self._total[node] += times
        self._merge_all()
        return self

    def _merge_all(self) -> None:
        red = [0]
        blue = deque((0, x) for x in sorted(self._next[0]))  # by the arc that leads there, shortest prefix first
        while blue:
            parent, x = blue.popleft()
            node = self._next[parent][x]
            for state in red:
                if self._compatible(state, node):
                    self._next[parent][x] = state
                    new_arcs = self._fold(state, node, set(red))
                    blue.extend(arc for arc in new_arcs if arc not in blue)
                    break
            else:
                red.append(node)
                blue.extend((node, y) for y in sorted(self._next[node]))
        index = {node: i for i, node in enumerate(red)}
        self.moves = np.full((len(red), self.vocabulary), -1)
        self.counts = np.zeros((len(red), self.vocabulary))
        for node, i in index.items():
            for x, n in self._seen[node].items():
                self.counts[i, x] = n
                self.moves[i, x] = index[self._next[node][x]] if x in self._next[node] else -1
        self.stops = np.array([self._total[node] for node in red]) - self.counts.sum(1)
        self.overall = self.counts.sum(0) / max(self.counts.sum(), 1)
        del self._seen, self._next, self._total

    def _different(self, hits_a: int, total_a: int, hits_b: int, total_b: int) -> bool:
        """Whether two relative frequencies differ by Hoeffding's bound."""
        bound = np.sqrt(0.5 * np.log(2 / self.alpha)) * (1 / np.sqrt(total_a) + 1 / np.sqrt(total_b))
        return abs(hits_a / total_a - hits_b / total_b) > bound

    def _compatible(self, a: int, b: int) -> bool:
        """Whether no two states that a merge of nodes a and b would join have different next-element frequencies."""
        pairs = [(a, b)]
        while pairs:
            a, b = pairs.pop()
            total_a, total_b = self._total[a], self._total[b]
            if not total_a or not total_b:
                continue
            counts_a, counts_b = self._seen[a], self._seen[b]
            if self._different(total_a - sum(counts_a.values()), total_a, total_b - sum(counts_b.values()), total_b):
                return False
            for x in counts_a.keys() | counts_b.keys():
                if self._different(counts_a.get(x, 0), total_a, counts_b.get(x, 0), total_b):
                    return False
                if x in self._next[a] and x in self._next[b]:
                    pairs.append((self._next[a][x], self._next[b][x]))
        return True

    def _fold(self, into: int, tree: int, red: set[int]) -> list[tuple[int, int]]:
        """Merge the subtree of node `tree` into node `into`; returns the new arcs (node, element) out of `red` nodes.
        """
        pairs, new_arcs = [(into, tree)], []
        while pairs:
            a, b = pairs.pop()
            self._total[a] += self._total[b]
            for x, n in self._seen[b].items():
                self._seen[a][x] = self._seen[a].get(x, 0) + n
            for x, child in self._next[b].items():
                if x in self._next[a]:
                    pairs.append((self._next[a][x], child))
                else:
                    self._next[a][x] = child
                    if a in red:
                        new_arcs.append((a, x))
        return sorted(new_arcs)

    @property
    def states(self) -> int:
        return len(self.moves)

    def _walk(self, ids: np.ndarray) -> list[int]:
        """The n + 1 states before each of n elements and after the last; -1 after an element without a transition."""
        states = [0]
        for x in ids.tolist():
            states.append(int(self.moves[max(states[-1], 0), x]))
        return states

    def _distribution(self, state: int) -> np.ndarray:
        total = self.counts[state].sum() if state >= 0 else 0
        return self.counts[state] / total if total else self.overall

    def next(self, prefix: Any) -> np.ndarray:
        return self._distribution(self._walk(as_ids(prefix))[-1])

    def predictions(self, sequence: Any) -> np.ndarray:
        ids = as_ids(sequence)
        return np.array([self._distribution(state) for state in self._walk(ids)[:-1]]).reshape(-1, self.vocabulary)


# ------------------------------------------------------------------------------------------------------------------
# Spectral learning


class Spectral:
    """Weighted automaton from the singular value decomposition of a Hankel matrix (Hsu, Kakade & Zhang 2009).

    vocabulary: V. end: id of the symbol that ends sequences, if any. rank: R, of the automaton. length: of the prefixes
    and suffixes in the Hankel matrix, of which the `most` commonest are used.
    Its values can be negative: predictions are shifted to be at least 0 and normalised.

    start (R,): state before the first element. step: for each symbol the operator (R, R) that reads it. In a state s,
    s @ prefix_weights (R,) is the probability of the prefix read so far, next_weights (V, R) @ s that of the prefix
    followed by each element, and s @ stop (R,) that of the sequence ending here.
    """

    def __init__(self, vocabulary: int, end: int | None = None, rank: int = 8, length: int = 3,
                 most: int = 1000) -> None:
        self.vocabulary, self.end, self.rank, self.length, self.most = vocabulary, end, rank, length, most

    def fit(self, sequences: Iterable[Any]) -> Spectral:
        """Learn sequences (arrays of ids or `Sequence`) anew, from the frequencies of their prefixes."""
        lines = Counter(ids[:-1] if ids and ids[-1] == self.end else ids
                        for ids in check_sequences(sequences, self.vocabulary))
        total = lines.total()
        prefixes: Counter[tuple[int, ...]] = Counter()
        for ids, n in lines.items():
            for k in range(min(len(ids), 2 * self.length + 1) + 1):  # a prefix, an element and a suffix of the basis
                prefixes[ids[:k]] += n
        basis = [w for w, _ in prefixes.most_common() if len(w) <= self.length][: self.most]
        return self.learn(lambda w: prefixes.get(w, 0) / total, lambda w: lines.get(w, 0) / total, basis)

    def learn(self, prefix_value: Callable[[tuple[int, ...]], float], value: Callable[[tuple[int, ...]], float],
              basis: Sequence[tuple[int, ...]]) -> Spectral:
        """Learn from any distribution: prefix_value(w) is the probability that a sequence begins with w, value(w) that
        it is w. The entry (u, v) of the Hankel matrix, for words u and v of the basis, is prefix_value(u + v)."""
        words = list(basis)
        symbols = [x for x in range(self.vocabulary) if x != self.end]
        hankel = np.array([[prefix_value(u + v) for v in words] for u in words])
        _, singular_values, basis_vectors = np.linalg.svd(hankel)
        rank = min(self.rank, int((singular_values > 1e-12 * singular_values[0]).sum()))
        basis_vectors = basis_vectors[:rank].T
        pseudo_inverse = np.linalg.pinv(hankel @ basis_vectors)
        empty = words.index(())
        self.start = hankel[empty] @ basis_vectors
        self.step, nothing = {}, [0.0] * len(words)
        for x in symbols:  # what no sequence begins with, none begins with and goes on from either
            shifted = np.array([[prefix_value((*u, x, *v)) for v in words] if prefix_value((*u, x)) else nothing
                                for u in words])
            self.step[x] = pseudo_inverse @ shifted @ basis_vectors
        self.prefix_weights = pseudo_inverse @ hankel[:, empty]
        self.next_weights = np.zeros((self.vocabulary, rank))
        self.next_weights[symbols] = [step @ self.prefix_weights for step in self.step.values()]
        self.stop = pseudo_inverse @ np.array([value(u) for u in words])
        return self

    def _distribution(self, state: np.ndarray) -> np.ndarray:
        out = self.next_weights @ state
        if self.end is not None:
            out[self.end] = state @ self.stop
        out -= min(out.min(), 0)
        return out / out.sum() if out.sum() > 0 else np.full(self.vocabulary, 1 / self.vocabulary)

    def predictions(self, sequence: Any) -> np.ndarray:
        ids = as_ids(sequence)
        return self._predictions(ids)[:len(ids)]

    def _predictions(self, ids: np.ndarray) -> np.ndarray:
        state, out = self.start, [self._distribution(self.start)]
        for x in ids.tolist():
            if x in self.step:
                state = state @ self.step[x]
                weight = state @ self.prefix_weights
                if abs(weight) > 1e-12:  # only the direction matters
                    state = state / weight
            out.append(self._distribution(state))
        return np.array(out)

    def next(self, prefix: Any) -> np.ndarray:
        return self._predictions(as_ids(prefix))[-1]
