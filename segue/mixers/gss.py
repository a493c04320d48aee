"""Gated state space (GSS): a narrow diagonal state space whose output is widened and multiplied by a gate (Mehta et al.
2022, arXiv 2206.13947)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segue.mixers.base import Mixer
from segue.mixers.layout import Layout
from segue.mixers.s4d import DiagonalStateSpace, Modes
from segue.mixers.ssm import toeplitz
from segue.mixers.state import Parts

if TYPE_CHECKING:
    from segue.kernels.cpu.program import Program, View


class GSS(Mixer):
    """out(widen(S gelu(W u)) * gelu(V u)), where the state space S is initialised with random eigenvalues.

    width: model width D. states: N per narrow channel. narrow: channels of the state space (default: D / 4).
    wide: channels of the gate (default: 4 D). bias: whether the projections have one.
    """

    linear_in_values = True

    def __init__(self, width: int, states: int = 64, narrow: int | None = None, wide: int | None = None,
                 bias: bool = True) -> None:
        super().__init__(width)
        narrow, wide = narrow or max(width // 4, 1), wide or 4 * width
        self.widths = (narrow, wide)
        self.into = nn.Linear(width, narrow + wide, bias=bias)
        self.recurrence = DiagonalStateSpace(Modes(narrow, states, init="random"))
        self.widen = nn.Linear(narrow, wide, bias=bias)
        self.out = nn.Linear(wide, width, bias=bias)

    def state_parameters(self) -> list[nn.Parameter]:
        return self.recurrence.state_parameters()

    def run(self, x: Tensor, layout: Layout, parts: Parts) -> Tensor:
        u, gate = F.gelu(self.into(x)).split(self.widths, -1)
        y = self.recurrence((u,), layout, parts.get("recurrence"))
        return self.out(self.widen(y) * gate)

    def lower(self, program: Program, source: View, into: View) -> None:
        narrow, wide = self.widths
        both, y, read = (program.register(name, width) for name, width in (
            ("both", narrow + wide), ("y", narrow), ("read", wide)))
        decay, weights = (torch.complex(*x).T for x in self.recurrence.modes.discrete())
        program.linear(source, both, self.into.weight, self.into.bias, activation="gelu")
        program.modes(both[:narrow], y, decay, weights)
        program.linear(y, read, self.widen.weight, self.widen.bias)
        program.multiply(read, both[narrow:])
        program.linear(read, into, self.out.weight, self.out.bias, add=True)

    def matrix(self, x: Tensor) -> Tensor:
        """(B, narrow, T, T), one head per narrow channel: the Toeplitz matrix of its kernel."""
        return toeplitz(self.recurrence.kernel(x.shape[1])).to(x.dtype).expand(len(x), -1, -1, -1)

    def values(self, x: Tensor) -> Tensor:
        return F.gelu(self.into(x))[..., : self.widths[0]].transpose(1, 2)[..., None]

    def output(self, mixed: Tensor, x: Tensor) -> Tensor:
        gate = F.gelu(self.into(x))[..., self.widths[0] :]
        return self.out(self.widen(mixed[..., 0].transpose(1, 2)) * gate)
