"""Liquid-S4: a state space whose transition depends on the input (Hasani et al. 2022, arXiv 2209.12951).

x_k = (A + B u_k) x_{k-1} + B u_k is expanded and truncated: only products of consecutive inputs are kept, y = sum_p K_p
* (u_k u_{k-1} ... u_{k-p+1}), so that it remains a convolution, over more inputs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segue.errors import SegueError
from segue.mixers import hippo
from segue.mixers.convolution import InputProducts
from segue.mixers.layout import Layout
from segue.mixers.s4d import DiagonalStateSpace, Modes, real_and_imaginary
from segue.mixers.ssm import StateSpaceMixer, upcast
from segue.mixers.state import Parts, Tensors

if TYPE_CHECKING:
    from segue.kernels.cpu.program import Program, View


class LiquidModes(Modes):
    """Modes of the kernels of orders p = 1 .. `degree`, side by side.

    liquid: "kb", K_p[l] = C A^l B^p; or "pb", which drops A beyond the first order: K_p is C B^p at l = 0 alone.
    """

    def __init__(self, width: int, states: int, degree: int, liquid: str, init: str, dt_min: float,
                 dt_max: float) -> None:
        super().__init__(width, states, init, dt_min=dt_min, dt_max=dt_max)
        self.degree, self.keeps = degree, liquid == "kb"
        nn.init.normal_(self.weight, std=0.5**0.5)  # C alone: B is a parameter of its own
        b = hippo.diagonal(init, states)[1].to(torch.complex64)[:, None].expand(-1, width)
        self.b = nn.Parameter(real_and_imaginary(b).contiguous())

    def discrete(self) -> tuple[Tensor, Tensor]:
        decay, gain = hippo.discretise(self.eigenvalues(), self.steps(), self.rule)
        b, c = gain * torch.complex(*upcast(self.b)), 2 * torch.complex(*upcast(self.weight))
        decays = [decay, *[decay * self.keeps] * (self.degree - 1)]
        weights = [c * b**p for p in range(1, self.degree + 1)]
        return real_and_imaginary(torch.cat(decays, -1)), real_and_imaginary(torch.cat(weights, -1))

    def state_parameters(self) -> list[nn.Parameter]:
        return [*super().state_parameters(), self.b]


class LiquidDiagonal(DiagonalStateSpace):
    """One diagonal recurrence per order of input products."""

    modes: LiquidModes

    def initial(self, batch: int, like: Tensor) -> Tensors:
        return (super().initial(batch, like)[0].repeat(1, 1, 1, self.modes.degree),)

    def lower(self, program: Program, source: View, into: View, skip: Tensor) -> None:
        decays, weights = (torch.complex(*x).T.chunk(self.modes.degree) for x in self.modes.discrete())
        product, before, y = source, program.register("before", source.width), program.register("order", source.width)
        program.modes(source, into, decays[0], weights[0], skip)
        for lag in range(1, self.modes.degree):
            last, product = product, program.register(f"product {lag}", source.width)
            program.map(last, product)
            program.convolve(source, before, F.pad(torch.ones(source.width, 1), (0, lag)), activation="none")
            program.multiply(product, before)
            if self.modes.keeps:
                program.modes(product, y, decays[lag], weights[lag])
                program.add(y, into)
            else:  # "pb": no state beyond the first order
                program.add(product, into, weights[lag].real.sum(1))


class LiquidS4(StateSpaceMixer):
    """A diagonal liquid state space on each feature.

    width: model width D. states: N. degree: highest order of input products, 2 or more. liquid: "pb" or "kb", see
    `LiquidModes`. init, dt_min, dt_max: as for S4D. `matrix` applies to the products, which are not linear in x.
    """

    def __init__(self, width: int, states: int = 64, degree: int = 2, liquid: str = "pb", init: str = "legs",
                 dt_min: float = 1e-3, dt_max: float = 0.1) -> None:
        if degree < 2 or liquid not in ("pb", "kb"):
            raise SegueError(f"degree {degree} with liquid '{liquid}': choose 2 or more, and pb or kb")
        super().__init__(width, LiquidDiagonal(LiquidModes(width, states, degree, liquid, init, dt_min, dt_max)))
        self.degree, self.products = degree, InputProducts(width, degree)

    def inputs(self, x: Tensor, layout: Layout, parts: Parts) -> Tensor:
        return self.products((x,), layout, parts.get("products"))

    def _finish(self, y: Tensor, x: Tensor) -> Tensor:
        return super()._finish(y.unflatten(-1, (self.degree, -1)).sum(-2), x)
