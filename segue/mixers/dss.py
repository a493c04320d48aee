"""DSS: a diagonal state space whose kernel is normalised over a length (Gupta et al. 2022, arXiv 2203.14343)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from segue.mixers.s4d import DiagonalStateSpace, Modes, real_and_imaginary
from segue.mixers.ssm import StateSpaceMixer, upcast

MAX_GROWTH = 20.0  # e-folds a mode may grow over the length, so that float32 can still hold the others beside it


class SoftmaxModes(Modes):
    """Modes that decay or grow: Re sum_n w_n / lambda_n e^{l dt lambda_n} / sum_{r < length} e^{r dt lambda_n}.

    A growing mode weighs the beginning of the sequence rather than its end. Here `decay` is the real part of lambda
    itself, not its logarithm.
    """

    def __init__(self, width: int, states: int, length: int, dt_min: float, dt_max: float) -> None:
        super().__init__(width, states, dt_min=dt_min, dt_max=dt_max)
        self.length = length
        self.decay.data = -self.decay.data.exp()
        nn.init.normal_(self.weight, std=0.5**0.5)

    def discrete(self) -> tuple[Tensor, Tensor]:
        dt = self.steps()
        real = torch.minimum(upcast(self.decay), MAX_GROWTH / (self.length * dt))
        eigenvalues = torch.complex(real, upcast(self.frequency))
        z = eigenvalues * dt
        share = torch.expm1(z) / torch.expm1(self.length * z)  # one over a geometric sum
        weights = torch.complex(*upcast(self.weight)) / eigenvalues * share
        return real_and_imaginary(z.exp()), real_and_imaginary(weights)


class DSS(StateSpaceMixer):
    """A diagonal state space on each feature, normalised by a softmax over `length` elements (DSS-softmax; DSS-exp is
    S4D with the rule "zoh").

    width: model width D. states: N, stored as N/2 complex ones. length: expected length of the sequences; longer ones
        can be read, but growing modes keep growing. dt_min, dt_max: initial range of the step sizes.
    """

    def __init__(self, width: int, states: int = 64, length: int = 1024, dt_min: float = 1e-3,
                 dt_max: float = 0.1) -> None:
        super().__init__(width, DiagonalStateSpace(SoftmaxModes(width, states, length, dt_min, dt_max)))
