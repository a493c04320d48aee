"""Linear time-invariant state spaces: their matrices, their kernels, and the mixers made of them."""

from __future__ import annotations

import math

import pytest
import torch

from segue.errors import SegueError
from segue.mixers import hippo


def response(family: str, states: int, times: torch.Tensor) -> torch.Tensor:
    """e^{As} B at each time s, (T, N)."""
    a, b = hippo.transition(family, states)
    return torch.stack([torch.linalg.matrix_exp(a * s) @ b for s in times.tolist()])


def legendre(states: int, x: torch.Tensor) -> torch.Tensor:
    return torch.stack([torch.special.legendre_polynomial_p(x, n) * math.sqrt(2 * n + 1) for n in range(states)], 1)


def test_hippo_bases_in_closed_form() -> None:
    s = torch.linspace(0, 3, 7, dtype=torch.float64)
    legs = legendre(8, 2 * (-s).exp() - 1) * (-s).exp()[:, None]
    assert (response("legs", 8, s) - legs).abs().max() < 1e-10
    lagt = torch.stack([torch.special.laguerre_polynomial_l(s, n) for n in range(8)], 1) * (-s / 2).exp()[:, None]
    assert (response("lagt", 8, s) - lagt).abs().max() < 1e-10
    # Sliding windows, by finitely many functions: inside the window the basis, beyond it nearly nothing.
    inside, beyond = torch.linspace(0.1, 0.8, 8, dtype=torch.float64), torch.linspace(1.5, 3, 8, dtype=torch.float64)
    found, expected = response("legt", 64, inside)[:, :4], legendre(4, 1 - 2 * inside)
    assert (found - expected).abs().max() < 0.1 and response("legt", 64, beyond)[:, :4].abs().max() < 0.1
    found, turn = response("fourier", 128, inside)[:, :6], 2 * math.pi * inside[:, None] * torch.arange(3)
    waves = torch.stack([turn.cos(), turn.sin()], 2).flatten(1) * math.sqrt(2)
    waves[:, 0] /= math.sqrt(2)
    assert (found - waves).abs().max() < 0.2 and response("fourier", 128, beyond)[:, :6].abs().max() < 0.2


@pytest.mark.parametrize("family", hippo.FAMILIES)
def test_hippo_is_normal_but_for_a_low_rank(family: str) -> None:
    states = 64
    a, b = hippo.transition(family, states)
    p = hippo.correction(family, states)
    normal = a + p.T @ p
    rest = normal - normal.diagonal().mean() * torch.eye(states)
    assert (rest + rest.T).abs().max() < 1e-12 * max(1.0, float(a.abs().max()))
    eigenvalues, low, drive, v = hippo.dplr(family, states)
    assert (eigenvalues.imag >= 0).all() and (eigenvalues.real <= 1e-12).all()
    assert drive.imag.abs().max() < 1e-9 and (drive.real >= 0).all()
    # Both halves of each pair together are the real matrices again.
    both = torch.cat([v, v.conj()], 1)
    assert (both.mH @ both - torch.eye(states)).abs().max() < 1e-9
    q = torch.cat([low, low.conj()], 1)
    whole = both @ (torch.diag(torch.cat([eigenvalues, eigenvalues.conj()])) - q.T @ q.conj()) @ both.mH
    assert (whole - a).abs().max() < 1e-9 * float(a.abs().max())
    assert (2 * (v @ drive).real - b).abs().max() < 1e-9


@pytest.mark.parametrize("init", hippo.DIAGONALS)
def test_diagonal_state_matrices_are_stable(init: str) -> None:
    eigenvalues, b = hippo.diagonal(init, 16, torch.Generator().manual_seed(0))
    assert eigenvalues.shape == b.shape == (8,) and (eigenvalues.real < 0).all() and (eigenvalues.imag >= 0).all()
    if init == "legs":  # the approximations come near the largest frequency
        assert hippo.diagonal("inv", 16)[0].imag.max() == pytest.approx(float(eigenvalues.imag.max()), rel=0.1)


def test_discretisation() -> None:
    """Diagonal rules are the dense ones, and the held input's answer is the integral."""
    eigenvalues, b = hippo.diagonal("lin", 8)
    dt = torch.tensor(0.1, dtype=torch.float64)
    dense, drive = hippo.bilinear(torch.diag(eigenvalues), b, dt.to(eigenvalues.dtype))
    decay, gain = hippo.discretise(eigenvalues, dt, "bilinear")
    assert (dense - torch.diag(decay)).abs().max() < 1e-14 and (drive - gain * b).abs().max() < 1e-14
    decay, gain = hippo.discretise(eigenvalues, dt)
    middle = (torch.arange(1000, dtype=torch.float64) + 0.5) * dt / 1000
    assert (decay - (eigenvalues * dt).exp()).abs().max() < 1e-14
    assert (gain - (eigenvalues * middle[:, None]).exp().mean(0) * dt).abs().max() < 1e-7


def test_a_gate_is_a_backward_euler_step() -> None:
    """x' = -x + u with dt = e^z is x = (1 - sigmoid(z)) x + sigmoid(z) u (LSSL, lemma 3.1)."""
    z = torch.linspace(-3, 3, 7, dtype=torch.float64)
    one = torch.ones(1, dtype=torch.float64)
    a, b = hippo.bilinear(-one[:, None], one, z.exp(), alpha=1.0)
    assert (a.flatten() - (1 - z.sigmoid())).abs().max() < 1e-15 and (b.flatten() - z.sigmoid()).abs().max() < 1e-15


def test_hippo_refuses() -> None:
    for call in (lambda: hippo.transition("legz", 4), lambda: hippo.diagonal("log", 4), lambda: hippo.dplr("legs", 5),
                 lambda: hippo.discretise(torch.ones(1), torch.ones(1), "euler")):
        with pytest.raises(SegueError):
            call()
