"""S5: one state space with many inputs and outputs, run by a parallel scan (Smith et al. 2022, arXiv 2208.04933) that
resets where an episode starts (Lu et al. 2023, arXiv 2303.03982)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from segue.errors import SegueError
from segue.mixers import hippo
from segue.mixers.diagonal import DiagonalMixer, DiagonalRecurrence
from segue.mixers.ssm import upcast


class SampledDecays(DiagonalRecurrence):
    """Decays exp(Lambda dt) with one dt per state; Lambda = -exp(rate) + i frequency, so that no state can grow."""

    def __init__(self, eigenvalues: Tensor, steps: tuple[float, float]) -> None:
        super().__init__()
        low, high = map(math.log, steps)
        self.rate = nn.Parameter((-eigenvalues.real).log().float())
        self.frequency = nn.Parameter(eigenvalues.imag.float())
        self.step = nn.Parameter(torch.rand(len(eigenvalues)) * (high - low) + low)

    def discrete(self) -> hippo.Pair:
        """Return the decays (P,) and the input gains (P,) of a zero-order hold."""
        rate, frequency, step = map(upcast, (self.rate, self.frequency, self.step))
        return hippo.discretise(torch.complex(-rate.exp(), frequency), step.exp())

    def decay(self) -> Tensor:
        return self.discrete()[0]


class S5(DiagonalMixer):
    """One diagonal state space over all features, initialised from the HiPPO-N matrix.

    width: model width H. states: P complex ones, each standing for a conjugate pair (default: half the width).
    blocks: number of diagonal blocks, each initialised as a smaller HiPPO-N matrix; must divide `states`.
    steps: initial range of the step sizes.
    """

    recurrence: SampledDecays

    def __init__(self, width: int, states: int | None = None, blocks: int = 1,
                 steps: tuple[float, float] = (0.001, 0.1)) -> None:
        super().__init__(width)
        states = states or max(width // 2, 1)
        if blocks < 1 or states % blocks:
            raise SegueError(f"{states} states cannot be in {blocks} blocks: choose a number that divides them")
        eigenvalues, _, _, v = hippo.dplr("legs", 2 * states // blocks)
        v = torch.block_diag(*[v] * blocks)
        self.recurrence = SampledDecays(eigenvalues.repeat(blocks), steps)
        b = torch.randn(2 * states, width, dtype=torch.float64) / math.sqrt(width)
        c = torch.randn(width, 2 * states, dtype=torch.complex128) / math.sqrt(states)
        self.B = nn.Parameter(torch.view_as_real(v.mH @ b.to(v.dtype)).float())
        self.C = nn.Parameter(2 * torch.view_as_real(c @ v).float())  # twice: the conjugate half is not computed
        self.D = nn.Parameter(torch.randn(width))

    def inputs(self) -> Tensor:
        return self.recurrence.discrete()[1][:, None] * torch.view_as_complex(upcast(self.B))
