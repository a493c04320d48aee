"""The linear recurrent unit (Orvieto et al. 2023, arXiv 2303.06349)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from segue.mixers.diagonal import DiagonalMixer, DiagonalRecurrence
from segue.mixers.ssm import upcast


class RingDecays(DiagonalRecurrence):
    """Decays exp(-exp(nu) + i exp(theta)), initialised uniformly on the ring between two radii, up to a phase."""

    def __init__(self, states: int, radii: tuple[float, float], phase: float) -> None:
        super().__init__()
        smallest = torch.finfo(torch.float32).tiny
        low, high = radii
        square = (torch.rand(states) * (high**2 - low**2) + low**2).clamp(1e-12, 1 - 1e-6)
        self.nu = nn.Parameter((-0.5 * square.log()).log())
        self.theta = nn.Parameter((torch.rand(states) * phase).clamp(min=smallest).log())

    def decay(self) -> Tensor:
        return torch.polar((-upcast(self.nu).exp()).exp(), upcast(self.theta).exp())


class LRU(DiagonalMixer):
    """h_t = a h_{t-1} + gamma B u_t, y_t = Re(C h_t) + D u_t; gamma normalises the states whatever their decay.

    width: model width H. states: P (default: width). radii: initial range of |a|; nearer to one remembers longer.
    phase: largest initial angle of a, radians.
    """

    def __init__(self, width: int, states: int | None = None, radii: tuple[float, float] = (0.0, 1.0),
                 phase: float = 2 * math.pi) -> None:
        super().__init__(width)
        states = states or width
        self.recurrence = RingDecays(states, radii, phase)
        self.gamma = nn.Parameter((1 - self.recurrence.decay().detach().abs().square()).sqrt().log())
        self.B = nn.Parameter(torch.randn(states, width, 2) / math.sqrt(2 * width))
        self.C = nn.Parameter(torch.randn(width, states, 2) / math.sqrt(states))
        self.D = nn.Parameter(torch.randn(width))

    def state_parameters(self) -> list[nn.Parameter]:
        return [*super().state_parameters(), self.gamma]

    def inputs(self) -> Tensor:
        return upcast(self.gamma).exp()[:, None] * torch.view_as_complex(upcast(self.B))
