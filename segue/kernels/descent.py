"""Linear models of sparse rows by descent in the dual, a coordinate at a time (Hsieh et al. 2008), compiled with
Numba."""

from __future__ import annotations

from numba import njit


@njit(cache=True, nogil=True, fastmath=True)
def dual_coordinate_descent(starts, columns, values, wanted, strength, hinge, weight, dual, orders, tolerance):
    """Lower |w|^2 / 2 + strength * sum of the squared losses, in place. hinge: losses max(0, 1 - y f) of wanted -1 and
    1; else y - f.

    Row i has values[starts[i]:starts[i + 1]] in these columns, and a 1 behind them. weight: (D + 1,) is the sum of the
    rows by their dual (N,) (and by wanted, with hinge); give both as they were left to go on. orders: (rounds, N), in
    which each round takes the rows; a round that moves no row's error by more than the tolerance is the last.
    """
    ridge, bias = 1 / (2 * strength), weight.size - 1
    for order in orders:
        moved = 0.0
        for i in order:
            score, square = weight[bias], 1.0 + ridge
            for j in range(starts[i], starts[i + 1]):
                score += weight[columns[j]] * values[j]
                square += values[j] * values[j]
            y = wanted[i]
            if hinge:
                new = max(dual[i] - (y * score - 1 + dual[i] * ridge) / square, 0.0)
                step = (new - dual[i]) * y
            else:
                step = (y - score - dual[i] * ridge) / square
                new = dual[i] + step
            if step != 0:
                dual[i] = new
                moved = max(moved, abs(step) * square)
                weight[bias] += step
                for j in range(starts[i], starts[i + 1]):
                    weight[columns[j]] += step * values[j]
        if moved < tolerance:
            break


@njit(cache=True, nogil=True)
def sparse_matmul(starts, columns, values, weights, out):
    """out (N, C) += sparse rows (N, D) @ weights (D, C)."""
    for i in range(starts.size - 1):
        for j in range(starts[i], starts[i + 1]):
            for k in range(weights.shape[1]):
                out[i, k] += values[j] * weights[columns[j], k]
