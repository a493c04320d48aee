"""Mamba: a selective state space behind a short convolution (Gu & Dao 2023, arXiv 2312.00752)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segue.kernels.scan import selective_scan
from segue.mixers.base import Mixer
from segue.mixers.convolution import ShortConvolution
from segue.mixers.delta import min_eigenvalue
from segue.mixers.layout import Layout, length_mask
from segue.mixers.ssm import initial_step_bias
from segue.mixers.state import Parts, Recurrence, Tensors

if TYPE_CHECKING:
    from segue.kernels.cpu.program import Program, View


class SelectiveScan(Recurrence):
    """h = a h + dt u B; y = C h + D u, with a = low + (1 - low) exp(dt A).

    inner: I channels. states: S per channel. low: smallest factor of the state, 0 for Mamba, down to -1.
    Inputs: u, dt (B, N, I), B and C (B, N, S). State: (B, I, S).
    """

    def __init__(self, inner: int, states: int, low: float = 0.0) -> None:
        super().__init__()
        self.low = low
        self.A_log = nn.Parameter(torch.arange(1, states + 1, dtype=torch.float32).log().repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))

    def initial(self, batch: int, like: Tensor) -> Tensors:
        return (like.new_zeros(batch, *self.A_log.shape),)

    def scan(self, inputs: Tensors, state: Tensors, starts: Tensor | None = None,
             lengths: Tensor | None = None) -> tuple[Tensor, Tensors]:
        u, dt, B, C = inputs
        if lengths is not None:  # dt = 0 neither writes nor decays
            live = length_mask(lengths, u.shape[1])
            dt = dt * live[..., None]
            starts = None if starts is None else starts & live
        y, final = selective_scan(u, dt, -self.A_log.exp(), B, C, self.D, state[0], starts, self.low)
        return y, (final,)

    def state_factors(self, inputs: Tensors) -> Tensors | None:
        steps = inputs[1].sum(1, dtype=torch.promote_types(inputs[1].dtype, torch.float32))
        return None if self.low else ((steps[..., None] * -self.A_log.exp()).exp(),)


class Mamba(Mixer):
    """The Mamba mixer: a projection, a short convolution, a selective scan, and a SiLU gate.

    width: model width D. states: S per channel. taps: of the convolution. expand: inner width relative to D.
    rank: of the step-size projection (default: D / 16, rounded up). bias: whether the input and output projections have
    one. eigenvalues: range of the state's factors, (0, 1), or (-1, 1) to track states (Grazzi et al. 2024, arXiv
    2411.12537).
    """

    linear_in_values = True

    def __init__(self, width: int, states: int = 16, taps: int = 4, expand: int = 2, rank: int | None = None,
                 bias: bool = False, eigenvalues: tuple[float, float] = (0.0, 1.0)) -> None:
        super().__init__(width)
        inner, self.states, self.rank = expand * width, states, rank or math.ceil(width / 16)
        self.into = nn.Linear(width, 2 * inner, bias=bias)
        self.convolution = ShortConvolution(inner, taps, silu=True)
        self.select = nn.Linear(inner, self.rank + 2 * states, bias=False)
        self.step = nn.Linear(self.rank, inner)
        self.scan = SelectiveScan(inner, states, min_eigenvalue(eigenvalues))
        self.out = nn.Linear(inner, width, bias=bias)
        self.step.bias.data = initial_step_bias(inner)
        nn.init.uniform_(self.step.weight, -(self.rank**-0.5), self.rank**-0.5)

    def state_parameters(self) -> list[nn.Parameter]:
        return [self.scan.A_log, self.scan.D, self.step.bias]

    def _inputs(self, x: Tensor, layout: Layout, parts: Parts) -> tuple[Tensors, Tensor]:
        """Return the scan's inputs (u, dt, B, C) and the gate."""
        u, gate = self.into(x).chunk(2, -1)
        u = self.convolution((u,), layout, parts.get("convolution"))
        rank, B, C = self.select(u).split([self.rank, self.states, self.states], dim=-1)
        return (u, F.softplus(self.step(rank)), B, C), gate

    def run(self, x: Tensor, layout: Layout, parts: Parts) -> Tensor:
        inputs, gate = self._inputs(x, layout, parts)
        y = self.scan(inputs, layout, parts.get("scan"))
        return self.out(y * F.silu(gate))

    def lower(self, program: Program, source: View, into: View) -> None:
        inner, states, rank = self.step.out_features, self.states, self.rank
        both, u, dt, y = (program.register(name, width) for name, width in (
            ("both", 2 * inner), ("u", inner), ("dt", inner), ("y", inner)))
        chosen = program.register("chosen", rank + 2 * states)
        program.linear(source, both, self.into.weight, self.into.bias)
        program.convolve(both[:inner], u, self.convolution.weight, self.convolution.bias)
        program.linear(u, chosen, self.select.weight)
        program.linear(chosen[:rank], dt, self.step.weight, self.step.bias)
        program.scan(u, dt, chosen[rank : rank + states], chosen[rank + states :], both[inner:], y,
                     -self.scan.A_log.exp(), self.scan.D, self.scan.low)
        program.linear(y, into, self.out.weight, self.out.bias, add=True)

    def matrix(self, x: Tensor) -> Tensor:
        """(B, I, T, T), one head per inner channel, with D on the diagonal (Ali et al. 2024, arXiv 2403.01590)."""
        (_, dt, B, C), _ = self._inputs(x, Layout.of(x), {})
        factor = self.scan.low + (1 - self.scan.low) * (dt[..., None] * -self.scan.A_log.exp()).exp()  # (B, T, I, S)
        later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril(-1)[..., None, None]
        between = torch.where(later, factor[:, :, None], 1.0).cumprod(1)  # no logarithms: factors may be negative
        matrix = torch.einsum("bis,bijcs,bjs,bjc->bcij", C, between, B, dt).tril()
        return matrix + torch.diag_embed(self.scan.D[:, None].expand(-1, x.shape[1]))

    def values(self, x: Tensor) -> Tensor:
        (u, *_), _ = self._inputs(x, Layout.of(x), {})
        return u.transpose(1, 2)[..., None]

    def output(self, mixed: Tensor, x: Tensor) -> Tensor:
        gate = self.into(x).chunk(2, -1)[1]
        return self.out(mixed[..., 0].transpose(1, 2) * F.silu(gate))
