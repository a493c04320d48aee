"""Linear time-invariant state spaces: their matrices, their kernels, and the mixers made of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from segue.errors import SegueError
from segue.kernels.convolution import long_convolution_reference
from segue.mixers import DSS, LSSL, S4, S4D, S4ND, Layout, LiquidS4, hippo
from segue.mixers.lssl import DenseStateSpace
from segue.mixers.s4d import DiagonalStateSpace
from segue.mixers.ssm import StateSpaceMixer, scale_step_sizes


def response(family: str, states: int, times: torch.Tensor) -> torch.Tensor:
    """e^{As} B at each time s, (T, N)."""
    a, b = hippo.transition(family, states)
    return torch.stack([torch.linalg.matrix_exp(a * s) @ b for s in times.tolist()])


def legendre(states: int, x: torch.Tensor) -> torch.Tensor:
    return torch.stack([torch.special.legendre_polynomial_p(x, n) * math.sqrt(2 * n + 1) for n in range(states)], 1)


def test_hippo_bases_equal_their_closed_form() -> None:
    s = torch.linspace(0, 3, 7, dtype=torch.float64)
    legs = legendre(8, 2 * (-s).exp() - 1) * (-s).exp()[:, None]
    assert (response("legs", 8, s) - legs).abs().max() < 1e-10
    lagt = torch.stack([torch.special.laguerre_polynomial_l(s, n) for n in range(8)], 1) * (-s / 2).exp()[:, None]
    assert (response("lagt", 8, s) - lagt).abs().max() < 1e-10
    # Sliding windows, by finitely many functions: inside the window the basis, beyond it nearly nothing.
    inside, beyond = torch.linspace(0.1, 0.8, 8, dtype=torch.float64), torch.linspace(1.5, 3, 8, dtype=torch.float64)
    results, expected = response("legt", 64, inside)[:, :4], legendre(4, 1 - 2 * inside)
    assert (results - expected).abs().max() < 0.1 and response("legt", 64, beyond)[:, :4].abs().max() < 0.1
    results, turn = response("fourier", 128, inside)[:, :6], 2 * math.pi * inside[:, None] * torch.arange(3)
    waves = torch.stack([turn.cos(), turn.sin()], 2).flatten(1) * math.sqrt(2)
    waves[:, 0] /= math.sqrt(2)
    assert (results - waves).abs().max() < 0.2 and response("fourier", 128, beyond)[:, :6].abs().max() < 0.2


@pytest.mark.parametrize("length", [1, 2, 50])
def test_compressed_signals_are_projections_at_every_time(length: int) -> None:
    u = torch.randn(2, length, generator=torch.Generator().manual_seed(length), dtype=torch.float64)
    result = hippo.compress_signal(u, 6)
    assert result.shape == (2, length, 6)
    points, weights = (torch.from_numpy(x) for x in np.polynomial.legendre.leggauss(8))
    for end in {1, length}:
        # Each element is held for one unit of time: over it, polynomials are integrated exactly.
        x = (torch.arange(end)[:, None] + (points + 1) / 2) / end
        expected = torch.einsum("bk,kp,p,kpn->bn", u[:, :end], torch.ones_like(x), weights / (2 * end),
                                legendre(6, 2 * x.flatten() - 1).unflatten(0, x.shape))
        assert (result[:, end - 1] - expected).abs().max() < 1e-10


def test_polynomials_are_reconstructed() -> None:
    """Of finely sampled ones: those of lower degree come back, and higher ones do not."""
    time = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    signals = torch.stack([time**3 - time, time**6])
    reconstructed = hippo.reconstruct_signal(hippo.compress_signal(signals, 5)[:, -1], time)
    away = (reconstructed - signals).abs().amax(1)
    assert away[0] < 1e-3 < away[1]


@pytest.mark.parametrize("family", hippo.FAMILIES)
def test_hippo_is_normal_plus_low_rank(family: str) -> None:
    states = 64
    a, b = hippo.transition(family, states)
    p = hippo.low_rank_correction(family, states)
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
    product = both @ (torch.diag(torch.cat([eigenvalues, eigenvalues.conj()])) - q.T @ q.conj()) @ both.mH
    assert (product - a).abs().max() < 1e-9 * float(a.abs().max())
    assert (2 * (v @ drive).real - b).abs().max() < 1e-9


@pytest.mark.parametrize("init", hippo.DIAGONALS)
def test_diagonal_state_matrices_are_stable(init: str) -> None:
    eigenvalues, b = hippo.diagonal(init, 16, torch.Generator().manual_seed(0))
    assert eigenvalues.shape == b.shape == (8,) and (eigenvalues.real < 0).all() and (eigenvalues.imag >= 0).all()
    if init == "legs":  # the approximations come near the largest frequency
        assert hippo.diagonal("inv", 16)[0].imag.max() == pytest.approx(float(eigenvalues.imag.max()), rel=0.1)


def test_discretisations_equal_dense_ones_and_integrals() -> None:
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


def test_a_gate_equals_a_backward_euler_step() -> None:
    """x' = -x + u with dt = e^z is x = (1 - sigmoid(z)) x + sigmoid(z) u (LSSL, lemma 3.1)."""
    z = torch.linspace(-3, 3, 7, dtype=torch.float64)
    unit = torch.ones(1, dtype=torch.float64)
    a, b = hippo.bilinear(-unit[:, None], unit, z.exp(), alpha=1.0)
    assert (a.flatten() - (1 - z.sigmoid())).abs().max() < 1e-15 and (b.flatten() - z.sigmoid()).abs().max() < 1e-15


def test_bad_hippo_options_are_refused() -> None:
    for call, message in ((lambda: hippo.transition("legz", 4), "family 'legz'"),
                          (lambda: hippo.diagonal("log", 4), "matrix 'log'"),
                          (lambda: hippo.dplr("legs", 5), "even number"),
                          (lambda: hippo.discretise(torch.ones(1), torch.ones(1), "euler"), "discretisation 'euler'")):
        with pytest.raises(SegueError, match=message):
            call()


# Naive references: the equations, one step at a time.


def by_loop(a: Tensor, b: Tensor, c: Tensor, u: Tensor) -> Tensor:
    """x = A x + B u and y = Re(C x) for one feature: u (T,) -> y (T,)."""
    x, outputs = torch.zeros_like(b), []
    for t in range(len(u)):
        x = a @ x + b * u[t]
        outputs.append((c @ x).real)
    return torch.stack(outputs)


def finish(mixer: StateSpaceMixer, y: Tensor, x: Tensor) -> Tensor:
    """From what the state space gave, (T, D), to the output; a liquid one adds up what its orders give."""
    heads = F.pad(y.T, (0, 0, 0, mixer.recurrence.kernel(1).shape[1] - len(y.T) if mixer.causal else 0))
    return mixer.output(heads[None, ..., None], x[None])[0]


def modes(recurrence: DiagonalStateSpace) -> tuple[Tensor, Tensor, Tensor]:
    """Lambda, C B and dt, written out from the parameters."""
    m = recurrence.modes
    return torch.complex(-m.decay.exp(), m.frequency), torch.complex(*m.weight), m.steps.log.exp()


@torch.no_grad()
@pytest.mark.parametrize("rule", ["zoh", "bilinear"])
def test_s4d_equals_loops(rule: str) -> None:
    torch.manual_seed(0)
    mixer, x = S4D(3, states=6, init="legs", rule=rule).double(), torch.randn(40, 3, dtype=torch.float64)
    eigenvalues, weight, dt = modes(mixer.recurrence)
    rows = []
    for h in range(3):
        z, eye = torch.diag(eigenvalues[:, h]) * dt[h], torch.eye(3)
        if rule == "zoh":
            a, gain = torch.matrix_exp(z), torch.linalg.solve(z / dt[h], torch.matrix_exp(z) - eye)
        else:
            a, gain = torch.linalg.solve(eye - z / 2, eye + z / 2), torch.linalg.inv(eye - z / 2) * dt[h]
        rows.append(by_loop(a, gain.sum(1), 2 * weight[:, h], x[:, h]))
    assert (mixer(x[None])[0] - finish(mixer, torch.stack(rows, 1), x)).abs().max() < 1e-11


@torch.no_grad()
def test_dss_equals_its_formula() -> None:
    """Both signs of the real part: the softmax over the length, shifted so that nothing overflows."""
    torch.manual_seed(0)
    mixer = DSS(4, states=6, length=50).double()
    m = mixer.recurrence.modes
    m.decay += torch.randn_like(m.decay)
    assert (m.decay > 0).any() and (m.decay < 0).any()
    eigenvalues, weight, dt = torch.complex(m.decay, m.frequency), torch.complex(*m.weight), m.steps.log.exp()
    exponents = torch.arange(50)[:, None, None] * eigenvalues * dt
    shift = exponents.real.amax(0)
    share = (exponents - shift).exp() / (exponents - shift).exp().sum(0)
    expected = (weight / eigenvalues * share).sum(1).real
    assert (mixer.recurrence.kernel(50) - expected).abs().max() < 1e-10


@torch.no_grad()
@pytest.mark.parametrize("liquid", ["pb", "kb"])
def test_liquid_s4_equals_its_sums(liquid: str) -> None:
    torch.manual_seed(0)
    mixer = LiquidS4(2, states=4, degree=3, liquid=liquid, init="lin", dt_min=0.1, dt_max=1.0).double()
    x = torch.randn(12, 2, dtype=torch.float64)
    eigenvalues, c, dt = modes(mixer.recurrence)
    a = (eigenvalues * dt).exp()
    b = (a - 1) / eigenvalues * torch.complex(*mixer.recurrence.modes.b)
    y = torch.zeros_like(x)
    for t in range(12):
        for p in (1, 2, 3):
            for lag in range(t - p + 2):
                if p == 1 or liquid == "kb" or lag == 0:
                    kernel = (2 * c * a**lag * b**p).sum(0).real
                    y[t] += kernel * x[t - lag - p + 1 : t - lag + 1].prod(0)
    assert (mixer(x[None])[0] - finish(mixer, y, x)).abs().max() < 1e-11


@torch.no_grad()
def test_liquid_s4_equals_the_liquid_system_to_second_order() -> None:
    """x_k = (A + B u_k) x_{k-1} + B u_k with inputs at two neighbouring nodes only, where no product is left out."""
    torch.manual_seed(0)
    mixer = LiquidS4(1, states=2, liquid="kb", init="lin", dt_min=0.5, dt_max=1.0).double()
    eigenvalues, c, dt = modes(mixer.recurrence)
    a = (eigenvalues * dt).exp()
    b = (a - 1) / eigenvalues * torch.complex(*mixer.recurrence.modes.b)
    x = torch.zeros(9, 1, dtype=torch.float64)
    x[3:5] = torch.randn(2, 1)
    state, outputs = torch.zeros_like(a), []
    for t in range(9):
        state = (a + b * x[t]) * state + b * x[t]
        outputs.append((2 * c * state).sum(0).real)
    assert (mixer(x[None])[0] - finish(mixer, torch.stack(outputs), x)).abs().max() < 1e-11


@torch.no_grad()
@pytest.mark.parametrize("length", [1, 2, 17, 64, 101])
def test_s4_kernel_equals_powers_of_its_matrix(length: int) -> None:
    torch.manual_seed(0)
    space = S4(3, states=32).double().recurrence
    a, b, c = space.discrete()
    eigenvalues, (p, drive, out) = space.eigenvalues(), space.vectors()
    for h in range(3):
        # Both halves of every pair, and no trick at all.
        poles, low, b_, c_ = (torch.cat([x[h], x[h].conj()]) for x in (eigenvalues, p, drive, out))
        dense, dt = torch.diag(poles) - low[:, None] * low.conj(), space.steps()[h]
        power, step = hippo.bilinear(dense, b_, dt.to(dense.dtype))
        expected = []
        for _ in range(length):
            expected.append(c_ @ step)
            step = power @ step
        expected = torch.stack(expected)
        assert expected.imag.abs().max() < 1e-12
        assert (space.kernel(length)[:, h] - expected.real).abs().max() < 1e-10
        assert (DenseStateSpace.kernel(space, length)[:, h] - expected.real).abs().max() < 1e-10
    assert space.kernel(0).shape == (0, 3)


@torch.no_grad()
@pytest.mark.parametrize("states", [1, 2, 5, 32])
def test_lssl_tridiagonal_solves_equal_dense_inverses(states: int) -> None:
    """Tridiagonal solves are the dense inverses, also where training has moved A away from where it began."""
    torch.manual_seed(0)
    lssl = LSSL(3, states=states).double().recurrence
    for parameter in (lssl.p, lssl.q, lssl.d, lssl.t):
        parameter += 0.1 * torch.randn_like(parameter)
    a, eye, x, dt = lssl.transition(), torch.eye(states).double(), torch.randn(2, 3, states).double(), lssl.steps() / 2
    step = dt[:, None, None] * a
    assert torch.allclose(lssl.multiply_forward(x, dt), ((eye + step) @ x[..., None])[..., 0], atol=1e-10)
    assert torch.allclose(lssl.solve_backward(x, dt), torch.linalg.solve(eye - step, x[..., None])[..., 0], atol=1e-10)


@torch.no_grad()
def test_lssl_s4_and_the_recurrence_agree() -> None:
    """Three algorithms, one HiPPO-LegS."""
    torch.manual_seed(0)
    states, length = 32, 150
    lssl, s4 = LSSL(2, states=states).double(), S4(2, states=states).double()
    a, b = hippo.transition("legs", states)
    assert (lssl.recurrence.transition() - a).abs().max() < 1e-4  # whose square roots were rounded to float32
    root = b
    for parameter in (lssl.recurrence.p, lssl.recurrence.q, lssl.recurrence.b):
        parameter.copy_(root)
    n = torch.arange(states, dtype=torch.float64)
    lssl.recurrence.d.copy_(-n / (2 * n + 1))
    assert (lssl.recurrence.transition() - a).abs().max() < 1e-11
    eigenvalues, p, drive, v = hippo.dplr("legs", states)
    s4.recurrence.steps.log.copy_(lssl.recurrence.steps.log)
    s4.recurrence.decay.copy_((-eigenvalues.real).log())
    s4.recurrence.frequency.copy_(eigenvalues.imag)
    s4.recurrence.p.copy_(torch.view_as_real(p[0]).T[:, None])
    s4.recurrence.b.copy_(torch.view_as_real(drive).T[:, None])
    c = lssl.recurrence.weight[0].to(v.dtype) @ v
    s4.recurrence.weight.copy_(torch.stack([c.real, c.imag]))
    kernel = lssl.recurrence.kernel(length)
    assert (kernel - s4.recurrence.kernel(length)).abs().max() < 1e-9
    u = torch.randn(length, dtype=torch.float64)
    for h in range(2):
        step = lssl.recurrence.steps()[h]
        eye = torch.eye(states, dtype=torch.float64)
        inverse = torch.linalg.inv(eye - step / 2 * a)
        y = by_loop(inverse @ (eye + step / 2 * a), inverse @ b * step, lssl.recurrence.weight[0, h], u)
        assert (long_convolution_reference(u[None, :, None], kernel[:, h : h + 1])[0, :, 0] - y).abs().max() < 1e-9


@torch.no_grad()
@pytest.mark.parametrize("make", [LSSL, partial(LSSL, channels=2, init="legt", learn_a=False), S4, S4D,
                                  partial(LiquidS4, liquid="kb")])
def test_long_prompts_in_pieces_equal_the_whole(make: Callable[..., StateSpaceMixer]) -> None:
    """Over many chunks, in rows of different lengths, however the prompt is cut."""
    torch.manual_seed(0)
    mixer = make(4, states=8).double()
    x, lengths = torch.randn(3, 300, 4, dtype=torch.float64), torch.tensor([300, 129, 0])
    expected, state = mixer(x), mixer.init_state(3)
    outputs, last = [], 0
    for size in (70, 1, 5, 224):
        outputs.append(mixer.extend(x[:, last : last + size], state))
        state.commit(counts=(lengths - last).clamp(0, size))
        last += size
    y = torch.cat(outputs, 1)
    assert all((y[row, :n] - expected[row, :n]).abs().max() < 1e-9 for row, n in enumerate((300, 129)))
    continuation = torch.randn(3, 20, 4, dtype=torch.float64)
    y = mixer.extend(continuation, state)
    for row, n in enumerate(lengths.tolist()):
        full = mixer(torch.cat([x[row, :n], continuation[row]])[None])[0, n:]
        assert (y[row] - full).abs().max() < 1e-9


@torch.no_grad()
@pytest.mark.parametrize("grid, axes", [((5,), 1), ((5,), 2), ((4, 3), 2), ((3, 4), 3), ((2, 3, 4), 3)])
def test_s4nd_equals_explicit_sums(grid: tuple[int, ...], axes: int) -> None:
    torch.manual_seed(0)
    mixer = S4ND(2, axes=axes, states=4).double()
    count = math.prod(grid)
    x = torch.randn(count, 2, dtype=torch.float64)
    full = (1,) * (axes - len(grid)) + grid
    kernels = [mixer.recurrence.kernels(axis, size) for axis, size in enumerate(full)]
    places = list(itertools.product(*map(range, full)))
    y = torch.zeros_like(x)
    for i, at in enumerate(places):
        for j, other in enumerate(places):
            factor = torch.ones(2, dtype=torch.float64)
            for (ahead, back), a, b in zip(kernels, at, other):
                factor *= (ahead[a - b] if a >= b else 0) + (back[b - a] if b >= a else 0)
            y[i] += factor * x[j]
    results = mixer(x[None], Layout.chain((1, count), grid=grid))[0]
    assert (results - finish(mixer, y, x)).abs().max() < 1e-11
    with pytest.raises(SegueError, match="sequence axes"):
        mixer(x[None], Layout.chain((1, count), grid=(1,) * axes + (count,)))


@torch.no_grad()
@pytest.mark.parametrize("make", [S4D, S4, LSSL])
def test_resampling_rescales_time(make: Callable[..., StateSpaceMixer]) -> None:
    """Every other sample of a slow signal, with steps twice as long, gives every other output."""
    torch.manual_seed(0)
    mixer = make(2, states=8, dt_min=1e-3, dt_max=1e-2).double()
    time = torch.arange(400, dtype=torch.float64) / 400
    x = torch.stack([(7 * time).sin(), (11 * time).cos() - 1], -1)[None]
    y, slow = mixer(x)[:, 1::2], x[:, 1::2]
    before = (mixer(slow) - y).abs().max()
    scale_step_sizes(mixer, 2.0)
    assert (mixer(slow) - y).abs().max() < 0.05 * before


@torch.no_grad()
def test_bandlimit_removes_modes_above_the_rate() -> None:
    mixer = S4D(3, states=64, init="lin", dt_min=0.03, bandlimit=0.5)
    decay, weights = mixer.recurrence.modes.discrete()
    turn = torch.atan2(decay[1], decay[0]).abs()
    below_rate = mixer.recurrence.modes.frequency * mixer.recurrence.modes.steps() < math.pi / 2
    assert torch.equal((weights != 0).any(0),
                       below_rate) and not below_rate.all() and (turn[below_rate] < math.pi / 2).all()


@pytest.mark.parametrize("make, message", [
    (lambda: S4D(4, states=5), "even number"), (lambda: S4D(4, init="none"), "matrix 'none' is unknown"),
    (lambda: S4D(4, rule="euler")(torch.zeros(1, 3, 4)), "'euler' is unknown"),
    (lambda: S4(4, states=3), "even number"), (lambda: LSSL(4, init="legt"), "starts as 'legs'"),
    (lambda: LSSL(4, init="x", learn_a=False), "'x' is unknown"),
    (lambda: LiquidS4(4, degree=1), "choose 2 or more"), (lambda: LiquidS4(4, liquid="x"), "pb or kb"),
    (lambda: S4ND(4, axes=0), "give one or more"),
])
def test_bad_options_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(SegueError, match=message):
        make()
