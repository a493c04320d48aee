"""S4D: a diagonal state space (Gu et al. 2022, arXiv 2206.11893)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from segue.kernels.scan import diagonal_kernel, diagonal_scan
from segue.mixers import hippo
from segue.mixers.ssm import StateSpace, StateSpaceMixer, StepSizes, upcast
from segue.mixers.state import Tensors

if TYPE_CHECKING:
    from segue.kernels.cpu.program import Program, View


class Modes(nn.Module):
    """The parameters of N/2 conjugate pairs of damped oscillations per feature: y = 2 Re(C x), x' = Lambda x + u.

    width: H features. states: N. init: how Lambda starts, see `hippo.diagonal`. rule: discretisation, "zoh" or
    "bilinear". dt_min, dt_max: initial range of the step sizes. bandlimit: drop modes above this fraction of the
    Nyquist frequency, so that what was learnt at one sampling rate holds at another (S4ND, arXiv 2210.06583); 0 keeps
    all.
    """

    def __init__(self, width: int, states: int = 64, init: str = "legs", rule: str = "zoh", dt_min: float = 1e-3,
                 dt_max: float = 0.1, bandlimit: float = 0.0) -> None:
        super().__init__()
        columns = [hippo.diagonal(init, states) for _ in range(width if init == "random" else 1)]
        eigenvalues, b = (torch.stack(x, 1).to(torch.complex64).expand(-1, width) for x in zip(*columns))
        self.rule, self.bandlimit = rule, bandlimit
        self.steps = StepSizes(width, dt_min, dt_max)
        self.decay = nn.Parameter((-eigenvalues.real).log().contiguous())  # as a logarithm, so that it stays a decay
        self.frequency = nn.Parameter(eigenvalues.imag.contiguous())
        # Only the product of C and B matters: it is one parameter, as (real, imaginary).
        product = b * torch.randn(states // 2, width, dtype=torch.complex64)
        self.weight = nn.Parameter(torch.view_as_real(product).movedim(-1, 0).contiguous())

    def eigenvalues(self) -> Tensor:
        """Lambda, complex (N/2, H)."""
        return torch.complex(-upcast(self.decay).exp(), upcast(self.frequency))

    def discrete(self) -> tuple[Tensor, Tensor]:
        """Return the discretised decays and output weights, each (2, N/2, H), as `diagonal_scan` takes them."""
        eigenvalues, dt = self.eigenvalues(), self.steps()
        decay, gain = hippo.discretise(eigenvalues, dt, self.rule)
        weights = 2 * torch.complex(*upcast(self.weight)) * gain
        if self.bandlimit:
            weights = weights * (eigenvalues.imag.abs() * dt < math.pi * self.bandlimit)
        return real_and_imaginary(decay), real_and_imaginary(weights)

    def state_parameters(self) -> list[nn.Parameter]:
        return [self.decay, self.frequency, self.steps.log]


def real_and_imaginary(x: Tensor) -> Tensor:
    """Stack the real and imaginary parts: complex (...) -> real (2, ...)."""
    return torch.stack([x.real, x.imag])


class DiagonalStateSpace(StateSpace):
    """The recurrence of `modes`. State: (B, 2, N/2, H), real and imaginary parts, float32 or wider."""

    def __init__(self, modes: Modes) -> None:
        super().__init__()
        self.modes = modes

    def initial(self, batch: int, like: Tensor) -> Tensors:
        return (upcast(like.new_zeros(batch, 2, *self.modes.decay.shape)),)

    def kernel(self, length: int) -> Tensor:
        return diagonal_kernel(*self.modes.discrete(), length)

    def scan(self, inputs: Tensors, state: Tensors, starts: Tensor | None = None,
             lengths: Tensor | None = None) -> tuple[Tensor, Tensors]:
        y, final = diagonal_scan(inputs[0], *self.modes.discrete(), state[0], starts, lengths)
        return y, (final,)

    def state_parameters(self) -> list[nn.Parameter]:
        return self.modes.state_parameters()

    def lower(self, program: Program, source: View, into: View, skip: Tensor) -> None:
        decay, weights = (torch.complex(*x).T for x in self.modes.discrete())
        program.modes(source, into, decay, weights, skip)


class S4D(StateSpaceMixer):
    """A diagonal state space on each feature. width: model width D. For the other options see `Modes`."""

    def __init__(self, width: int, states: int = 64, init: str = "legs", rule: str = "zoh", dt_min: float = 1e-3,
                 dt_max: float = 0.1, bandlimit: float = 0.0) -> None:
        super().__init__(width, DiagonalStateSpace(Modes(width, states, init, rule, dt_min, dt_max, bandlimit)))
