"""HiPPO: transition matrices of state spaces x' = A x + B u that memorise the past (Gu et al. 2020, arXiv 2008.07669).

The state of each family holds the coefficients of the past u(t - s) in an orthonormal basis, e^{As} B in closed form:

- "legs": sqrt(2n + 1) P_n(2 e^-s - 1) e^-s, Legendre polynomials of an exponentially warped past: all time scales.
  `compress_signal` uses the scaled version instead, whose window grows with the signal, so that nothing fades.
- "legt": Legendre polynomials on a sliding window of one unit of time (approximately: N of them).
- "lagt": Laguerre functions L_n(s) e^(-s/2).
- "fourier": cosines and sines on a sliding window of one unit of time (Gu et al. 2022, arXiv 2206.12037).

All are normal plus low rank, A + sum P P^T = V Lambda V* (S4, arXiv 2111.00396), which makes long kernels cheap.
Everything here is float64 or complex128. One half of each conjugate pair is kept, so a real output is 2 Re(C x).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from segue.errors import SegueError

FAMILIES = ("legs", "legt", "lagt", "fourier")
DIAGONALS = ("legs", "lin", "inv", "real", "random")
Pair = tuple[Tensor, Tensor]


def transition(family: str, states: int) -> Pair:
    """Return A (N, N) and B (N,) of a family (see FAMILIES) with N `states`, an even number for "fourier"."""
    n = torch.arange(states, dtype=torch.float64)
    root, lower = (2 * n + 1).sqrt(), torch.ones(states, states, dtype=torch.float64).tril()
    if family == "legs":
        return -root[:, None] * root * lower.tril(-1) - torch.diag(n + 1), root
    if family == "legt":
        sign = (1 - 2 * ((n[:, None] - n) % 2)) * (1 - lower) + lower  # (-1)^(n - k) above the diagonal
        return -root[:, None] * root * sign, root
    if family == "lagt":
        return torch.eye(states, dtype=torch.float64) / 2 - lower, torch.ones(states, dtype=torch.float64)
    if family == "fourier":
        _check_even(states)
        # Pairs (cosine, sine) of frequency f; the first sine is zero. At the far end of the window the series converges
        # to the mean of u(t - 1) and u(t), from which the state knows what leaves the window.
        turn = torch.zeros(states - 1, dtype=torch.float64)
        turn[::2] = 2 * math.pi * torch.arange(states // 2)
        now = torch.zeros(states, dtype=torch.float64)
        now[::2], now[0] = math.sqrt(2), 1
        return torch.diag(turn, -1) - torch.diag(turn, 1) - 2 * now[:, None] * now, 2 * now
    raise SegueError(f"HiPPO family '{family}' is unknown: choose from {', '.join(FAMILIES)}")


def compress_signal(u: Tensor, states: int) -> Tensor:
    """Compress signals u (..., T) to HiPPO-LegS states (..., T, N): after each element, the whole signal so far.

    The `states` numbers are the coefficients of its best approximation by a polynomial of lower degree, whatever the
    length; nothing is learnt (Gu et al. 2020). In logarithmic time the measure is stationary, so from k to k + 1
    elements the state moves by exp(A log((k + 1) / k)) towards that of a constant signal of the new element.
    `reconstruct_signal` inverts this.
    """
    a, initial = transition("legs", states)[0], torch.eye(states, dtype=torch.float64)[0]
    steps = torch.arange(1, u.shape[-1], dtype=torch.float64)
    transitions = torch.linalg.matrix_exp(a * (1 + 1 / steps).log()[:, None, None])
    coefficients = [u[..., :1].double() * initial]
    for element, move in zip(u[..., 1:].double().unbind(-1), transitions):
        target = element[..., None] * initial
        coefficients.append((coefficients[-1] - target) @ move.T + target)
    return torch.stack(coefficients[: u.shape[-1]], -2)


def reconstruct_signal(states: Tensor, places: Tensor) -> Tensor:
    """Evaluate states (..., N) of `compress_signal` at places (P,) from 0, the beginning, to 1, now: (..., P)."""
    degrees = torch.arange(states.shape[-1])
    basis = torch.special.legendre_polynomial_p(2 * places.double()[:, None] - 1, degrees) * (2 * degrees + 1).sqrt()
    return states @ basis.T


def low_rank_correction(family: str, states: int) -> Tensor:
    """Return P (R, N), real, such that A + P^T P is normal (skew, or -1/2 plus skew). R is 2 for "legt", else 1."""
    b = transition(family, states)[1]
    if family == "legt":
        even = torch.arange(states) % 2 == 0
        return torch.stack([b * even, b * ~even])
    return (b * math.sqrt(0.5))[None]


def dplr(family: str, states: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the diagonal-plus-low-rank form: Lambda (N/2,), P (R, N/2), B (N/2,), V (N, N/2), where
    A = V (Lambda - P^T conj(P)) V* over whole conjugate pairs.

    The phases of the eigenvectors are chosen so that B is real and not negative: the same numbers on every machine.
    """
    _check_even(states)
    a, b = transition(family, states)
    p = low_rank_correction(family, states)
    normal = a + p.T @ p
    if family == "fourier":  # block-diagonal already, and its frequency 0 is a double eigenvalue
        eye = torch.eye(states, dtype=torch.complex128)
        v = (eye[:, ::2] - 1j * eye[:, 1::2]) / math.sqrt(2)
        frequencies = torch.diag(normal, -1)[::2]
    else:
        frequencies, v = torch.linalg.eigh(-1j * (normal - normal.diagonal().mean() * torch.eye(states)))
        frequencies, v = frequencies[states // 2 :], v[:, states // 2 :]
        projected = v.mH @ b.to(v.dtype)
        v = v * (projected / projected.abs())
    eigenvalues = torch.complex(normal.diagonal().mean().expand_as(frequencies), frequencies)
    return eigenvalues, p.to(v.dtype) @ v.conj(), v.mH @ b.to(v.dtype), v


def diagonal(init: str, states: int, generator: torch.Generator | None = None) -> Pair:
    """Return initial eigenvalues (N/2,) with negative real parts, and B (N/2,), of a diagonal state space (S4D, arXiv
    2206.11893).

    init: "legs", HiPPO-LegS without its low rank; "lin" and "inv", two approximations of it; "real", decays alone;
        "random", log-normal decays and frequencies, with no particular memory.
    """
    _check_even(states)
    n = torch.arange(states // 2, dtype=torch.float64)
    half, ones = torch.full_like(n, -0.5), torch.ones(states // 2, dtype=torch.complex128)
    if init == "legs":
        eigenvalues, _, b, _ = dplr("legs", states)
        return eigenvalues, b
    if init == "lin":
        return torch.complex(half, math.pi * n), ones
    if init == "inv":
        return torch.complex(half, states / math.pi * (states / (2 * n + 1) - 1)), ones
    if init == "real":
        return torch.complex(-(n + 1), torch.zeros_like(n)), ones
    if init == "random":
        decay, frequency = (torch.randn(states // 2, dtype=torch.float64, generator=generator).exp() for _ in range(2))
        return torch.complex(-decay, frequency), ones
    raise SegueError(f"initial state matrix '{init}' is unknown: choose from {', '.join(DIAGONALS)}")


def bilinear(a: Tensor, b: Tensor, dt: Tensor, alpha: float = 0.5) -> Pair:
    """Discretise dense A (..., N, N), B (..., N) with steps dt (...) to those of x_k = A x_{k-1} + B u_k, by the
    generalised bilinear rule: alpha = 0 is forward Euler, 1 backward Euler, 1/2 bilinear."""
    eye, step = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device), dt[..., None, None]
    solution = torch.cat([eye + (1 - alpha) * step * a, step * b[..., None].expand(*a.shape[:-1], 1)], -1)
    solution = torch.linalg.solve(eye - alpha * step * a, solution)
    return solution[..., :-1], solution[..., -1]


def discretise(eigenvalues: Tensor, dt: Tensor, rule: str = "zoh") -> Pair:
    """Discretise a diagonal state space: return the factors of the state and of B in one step. dt broadcasts.

    rule: "zoh" (zero-order hold: the input is constant over the step) or "bilinear".
    """
    z = eigenvalues * dt
    if rule == "zoh":
        return z.exp(), torch.expm1(z) / eigenvalues
    if rule == "bilinear":
        return (1 + z / 2) / (1 - z / 2), dt / (1 - z / 2)
    raise SegueError(f"discretisation '{rule}' is unknown: choose zoh or bilinear")


def _check_even(states: int) -> None:
    if states < 2 or states % 2:
        raise SegueError(f"{states} states cannot form conjugate pairs: give an even number")
