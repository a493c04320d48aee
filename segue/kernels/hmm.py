"""Forward and Baum-Welch passes of a hidden Markov model of K states over V symbols (Baum et al. 1970), compiled with
Numba."""

from __future__ import annotations

import numpy as np

from segue.kernels.jit import jit


@jit()
def forward(ids, start, move, emit, alpha, scale):
    """Fill alpha (n, K), the distribution of the state after each of the ids (n,), and scale (n,), the probability of
    each element given those before it. An element of probability 0 is treated as unobserved. start: (K,). move: (K, K).
    emit: (K, V)."""
    states = start.size
    for t in range(ids.size):
        total = 0.0
        for j in range(states):
            before = start[j]
            if t:
                before = 0.0
                for i in range(states):
                    before += alpha[t - 1, i] * move[i, j]
            alpha[t, j] = before
            total += before * emit[j, ids[t]]
        scale[t] = total
        if total > 0:
            for j in range(states):
                alpha[t, j] *= emit[j, ids[t]] / total


@jit()
def expectation_step(flat, offsets, weights, start, move, emit, starts, moves, emits):
    """The expectation step over weighted sequences flat[offsets[s] : offsets[s + 1]]: adds the expected counts to
    `starts` (K,), `moves` (K, K) and `emits` (K, V); returns the weighted log-likelihood."""
    states = start.size
    longest = 1
    for s in range(weights.size):
        longest = max(longest, offsets[s + 1] - offsets[s])
    alpha, scale = np.empty((longest, states)), np.empty(longest)
    beta, older = np.empty(states), np.empty(states)
    likelihood = 0.0
    for s in range(weights.size):
        ids = flat[offsets[s]:offsets[s + 1]]
        forward(ids, start, move, emit, alpha, scale)
        beta[:] = 1.0
        for t in range(ids.size - 1, -1, -1):
            likelihood += weights[s] * np.log(max(scale[t], 1e-300))
            for i in range(states):
                posterior = weights[s] * alpha[t, i] * beta[i]
                emits[i, ids[t]] += posterior
                if t == 0:
                    starts[i] += posterior
            if t:
                for i in range(states):
                    older[i] = 0.0
                    for j in range(states):
                        flow = move[i, j] * emit[j, ids[t]] * beta[j] / max(scale[t], 1e-300)
                        older[i] += flow
                        moves[i, j] += weights[s] * alpha[t - 1, i] * flow
                for i in range(states):
                    beta[i] = older[i]
    return likelihood
