"""Linear models of sparse rows by dual coordinate descent (Hsieh et al. 2008), compiled with Numba."""

from __future__ import annotations

from numba import njit


@njit(cache=True, nogil=True, fastmath=True)
def dual_coordinate_descent(starts, columns, values, wanted, strength, hinge, weight, dual, orders, tolerance):
    """Minimise |w|^2 / 2 + strength * sum of the squared losses, in place. hinge: losses max(0, 1 - y f) of targets y =
    -1 and 1; else y - f.

    Row i has values[starts[i]:starts[i + 1]] in its columns, and a constant 1 after them. weight: (D + 1,), the sum of
    the rows weighted by dual (N,) (with hinge, times their targets); pass both as they were left to continue. orders:
    (rounds, N), the order of the rows in each round; a round that changes no row's error by more than the tolerance is
    the last.
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
