"""S4: a state space whose transition matrix is diagonal plus low rank (Gu et al. 2021, arXiv 2111.00396).

The generating function of a kernel of length L has a closed form at the L roots of unity: Cauchy sums over the
eigenvalues, combined by the Woodbury identity. An inverse FFT of it gives the kernel without computing powers of A.
"""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from segue.mixers import hippo
from segue.mixers.lssl import Advance, DenseStateSpace
from segue.mixers.s4d import real_and_imaginary
from segue.mixers.ssm import StateSpaceMixer, StepSizes, upcast
from segue.mixers.state import Tensors

if TYPE_CHECKING:
    from segue.kernels.cpu.program import Program, View

MAX_STEPPED_NODES = 16  # up to this many nodes, the O(N) step is faster than products with dense matrices


def to_real_coordinates(x: Tensor) -> Tensor:
    """Map one half of each conjugate pair, complex (..., N/2), to the vector in real coordinates (..., N)."""
    return math.sqrt(2) * torch.cat([x.real, x.imag], -1)


def from_real_coordinates(x: Tensor) -> Tensor:
    """Invert `to_real_coordinates`: real (..., N) -> complex (..., N/2)."""
    return torch.complex(*x.chunk(2, -1)) / math.sqrt(2)


def dot_pairs(a: Tensor, x: Tensor) -> Tensor:
    """Return the inner product over both halves of every conjugate pair: complex (..., N/2) -> real (..., 1)."""
    return 2 * (a * x).real.sum(-1, keepdim=True)


class LowRankStateSpace(DenseStateSpace):
    """x' = (Lambda - P P*) x + B u, y = C x, discretised by the bilinear rule and initialised as HiPPO-LegS.

    Parameters hold one half of each conjugate pair. The state is kept in real coordinates, where A is block-diagonal
    (2 x 2 blocks) minus a rank-one matrix.
    """

    def __init__(self, width: int, states: int, steps: StepSizes) -> None:
        super().__init__()
        self.features, self.states, self.steps = width, states, steps
        eigenvalues, p, b, _ = hippo.dplr("legs", states)
        self.decay = nn.Parameter((-eigenvalues.real).log().float().repeat(width, 1))  # a logarithm: it stays a decay
        self.frequency = nn.Parameter(eigenvalues.imag.float().repeat(width, 1))
        self.p, self.b = (nn.Parameter(real_and_imaginary(x).float()[:, None].repeat(1, width, 1)) for x in (p[0], b))
        self.weight = nn.Parameter(torch.randn(2, width, states // 2) / math.sqrt(2))  # C

    def eigenvalues(self) -> Tensor:
        """Lambda, complex (H, N/2)."""
        return torch.complex(-upcast(self.decay).exp(), upcast(self.frequency))

    def vectors(self) -> Tensors:
        """P, B and C, complex (H, N/2)."""
        p, b, c = (torch.complex(*upcast(x)) for x in (self.p, self.b, self.weight))
        return p, b, c

    def discrete(self) -> Tensors:
        eigenvalues, (p, b, c) = self.eigenvalues(), self.vectors()
        on, off = (torch.diag_embed(x) for x in (eigenvalues.real, eigenvalues.imag))
        blocks = torch.cat([torch.cat([on, -off], -1), torch.cat([off, on], -1)], -2)
        a = blocks - to_real_coordinates(p)[..., None] * to_real_coordinates(p)[..., None, :]
        a, drive = hippo.bilinear(a, to_real_coordinates(b), self.steps())
        return a, drive, to_real_coordinates(c.conj())[None]

    def kernel(self, length: int) -> Tensor:
        if not length:
            return self.decay.new_zeros(0, self.features)
        with self.full_precision():
            (p, b, _), (a, _, c) = self.vectors(), self.discrete()
            # C (I - A^L) truncates the infinite generating function to its first L terms.
            c = from_real_coordinates(c[0] - (c[0][:, None] @ torch.linalg.matrix_power(a, length))[:, 0]).conj()
            angle = 2 * math.pi / length * torch.arange(length // 2 + 1, device=p.device, dtype=a.dtype)
            turn = torch.polar(torch.ones_like(angle), -angle)
            spectrum = kernel_spectrum(self.eigenvalues(), torch.stack([c * b, c * p, p.conj() * b, p.conj() * p], 1),
                                       turn, self.steps())
            return torch.fft.irfft(spectrum, n=length).T

    def advance(self, size: int) -> Advance:
        if size > MAX_STEPPED_NODES:
            return super().advance(size)
        (a, away, seen, b), c = self.step_coefficients(), self.vectors()[2]

        def run(u: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
            x, outputs = from_real_coordinates(x), []
            for t in range(u.shape[1]):
                x = a * x - away * dot_pairs(seen, x) + b * u[:, t, :, None]
                outputs.append(dot_pairs(c, x)[..., 0])
            return torch.stack(outputs, 1), to_real_coordinates(x)

        return run

    def step_coefficients(self) -> Tensors:
        """Return the O(N) step: a, away, seen, b, complex (H, N/2), with x_k = a x_{k-1} - away dot(seen, x_{k-1}) +
        b u_k. The bilinear rule maps diagonal plus rank one to diagonal plus rank one."""
        eigenvalues, (p, b, _), rate = self.eigenvalues(), self.vectors(), 2 / self.steps()[:, None]
        inverse = 1 / (rate - eigenvalues)
        back = p.conj() * inverse / (1 + dot_pairs(p.conj() * inverse, p))
        return (rate + eigenvalues) * inverse, inverse * p, 2 * rate * back, 2 * inverse * (b - p * dot_pairs(back, b))

    def lower(self, program: Program, source: View, into: View, skip: Tensor) -> None:
        exact = copy.deepcopy(self).double()
        a, away, seen, b = exact.step_coefficients()
        program.low_rank(source, into, a, away, 2 * seen, b, 2 * exact.vectors()[2], skip)

    def state_parameters(self) -> list[nn.Parameter]:
        return [self.decay, self.frequency, self.p, self.b, self.steps.log]


def kernel_spectrum(eigenvalues: Tensor, products: Tensor, turn: Tensor, dt: Tensor) -> Tensor:
    """Return the spectrum (H, F) of the bilinear kernel of Lambda - P P* at the points `turn` (F,) of the unit circle.

    products: (H, 4, N/2), C B, C P, P* B and P* P, for one half of each conjugate pair. With g = 2 / dt (1 - w) /
    (1 + w), the two Cauchy terms of a pair combine into one fraction with real coefficients; everything is multiplied
    by 1 + w, so that w = -1 needs no special case.
    """
    far, near = 2 / dt[:, None, None] * (1 - turn), 1 + turn
    poles = eigenvalues[..., None]
    fraction = 1 / (far * far - 2 * poles.real * far * near + poles.abs().square() * near * near)  # (H, N/2, F)
    coefficients = 2 * torch.cat([products, products * eigenvalues[:, None].conj()], 1).real  # (H, 8, N/2)
    sums = torch.view_as_complex((coefficients @ torch.view_as_real(fraction).flatten(2)).unflatten(2, (-1, 2)))
    cb, cp, pb, pp = (far * sums[:, :4] - near * sums[:, 4:]).unbind(1)
    return 2 * (cb - near * cp * pb / (1 + near * pp))


class S4(StateSpaceMixer):
    """A diagonal-plus-low-rank state space on each feature.

    width: model width D. states: N, stored as N/2 complex ones. dt_min, dt_max: initial range of the step sizes.
    """

    def __init__(self, width: int, states: int = 64, dt_min: float = 1e-3, dt_max: float = 0.1) -> None:
        super().__init__(width, LowRankStateSpace(width, states, StepSizes(width, dt_min, dt_max)))
