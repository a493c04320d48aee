"""Mamba-2: a selective state space with one scalar decay per head (Dao & Gu 2024, arXiv 2405.21060)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segue.errors import SegueError
from segue.kernels.norm import gated_norm
from segue.kernels.ssd import split_projection, ssd
from segue.mixers.base import Mixer
from segue.mixers.convolution import ShortConvolution
from segue.mixers.layout import Layout
from segue.mixers.ssm import initial_step_bias
from segue.mixers.state import Parts, Recurrence, Tensors

if TYPE_CHECKING:
    from segue.kernels.cpu.program import Program, View


class StateSpaceDual(Recurrence):
    """h = exp(dt A) h + dt B x^T; y = h^T C + D x, with one A and D per head.

    Inputs: x, B and C side by side, (B, N, H E + 2 G S), with B and C shared by the H / G heads of a group, and dt
    (B, N, H). State: (B, H, S, E).
    """

    def __init__(self, heads: int, states: int, head_width: int) -> None:
        super().__init__()
        self.shape = (heads, states, head_width)
        self.A_log = nn.Parameter(torch.empty(heads).uniform_(1, 16).log())
        self.D = nn.Parameter(torch.ones(heads))

    def initial(self, batch: int, like: Tensor) -> Tensors:
        return (like.new_zeros(batch, *self.shape),)

    def scan(self, inputs: Tensors, state: Tensors, starts: Tensor | None = None,
             lengths: Tensor | None = None) -> tuple[Tensor, Tensors]:
        u, dt = inputs
        y, final = ssd(u, dt, dt * -self.A_log.exp(), self.D, state[0], starts, lengths)
        return y, (final,)

    def state_factors(self, inputs: Tensors) -> Tensors:
        steps = inputs[1].sum(1, dtype=torch.promote_types(inputs[1].dtype, torch.float32))
        return ((steps * -self.A_log.exp()).exp()[..., None, None],)


class Mamba2(Mixer):
    """The Mamba-2 mixer: a projection, a short convolution, a state-space dual scan, and a gated norm.

    width: model width D. states: S per head and channel. head_width: channels that share a decay (default: the greatest
    common divisor of 64 and the inner width). groups: of heads, each with its own B and C. taps: of the convolution.
    expand: inner width relative to D. bias: whether the input and output projections have one. norm_eps: of the norm.
    """

    linear_in_values = True

    def __init__(self, width: int, states: int = 64, head_width: int | None = None, groups: int = 1, taps: int = 4,
                 expand: int = 2, bias: bool = False, norm_eps: float = 1e-5) -> None:
        super().__init__(width)
        inner = expand * width
        head_width = head_width or math.gcd(64, inner)
        if inner % head_width or inner // head_width % groups:
            raise SegueError(f"an inner width of {inner} is not {groups} groups of heads of {head_width} channels: "
                             "choose head_width and groups that divide it")
        self.heads, self.groups = inner // head_width, groups
        self.widths = (inner, inner + 2 * groups * states, self.heads)  # gate, convolved channels, step sizes
        self.into = nn.Linear(width, sum(self.widths), bias=bias)
        self.convolution = ShortConvolution(self.widths[1], taps, silu=True)
        self.scan = StateSpaceDual(self.heads, states, head_width)
        self.norm = nn.RMSNorm(inner // groups, eps=norm_eps, elementwise_affine=False)
        self.scale = nn.Parameter(torch.ones(inner))
        self.out = nn.Linear(inner, width, bias=bias)
        self.step_bias = nn.Parameter(initial_step_bias(self.heads))

    def state_parameters(self) -> list[nn.Parameter]:
        return [self.scan.A_log, self.scan.D, self.step_bias]

    def _inputs(self, x: Tensor, layout: Layout, parts: Parts) -> tuple[Tensors, Tensor]:
        """Return the scan's inputs and the gate."""
        gate, u, dt = self.into(x).split(self.widths, -1)
        u = self.convolution((u,), layout, parts.get("convolution"))
        return (u, F.softplus(dt + self.step_bias)), gate

    def run(self, x: Tensor, layout: Layout, parts: Parts) -> Tensor:
        inputs, gate = self._inputs(x, layout, parts)
        return self._gate_and_project(self.scan(inputs, layout, parts.get("scan")), gate)

    def _gate_and_project(self, y: Tensor, gate: Tensor) -> Tensor:
        return self.out(gated_norm(y, gate, self.scale, self.groups, self.norm.eps or 0.0))

    def lower(self, program: Program, source: View, into: View) -> None:
        inner, convolved, heads = self.widths
        both, u, y = (program.register(name, width) for name, width in (
            ("both", sum(self.widths)), ("u", convolved), ("y", inner)))
        step, decay = program.register("step", heads), program.register("decay", heads)
        middle = (inner + convolved) // 2
        program.linear(source, both, self.into.weight, self.into.bias)
        program.convolve(both[inner : inner + convolved], u, self.convolution.weight, self.convolution.bias)
        program.map(both[inner + convolved :], step, "softplus", shift=self.step_bias)
        program.map(step, decay, "exp", scale=-self.scan.A_log.exp())
        program.matrix(u[middle:], u[inner:middle], u[:inner], y, heads, decay, write=step, groups=self.groups)
        program.add(u[:inner], y, self.scan.D.repeat_interleave(inner // heads))
        program.multiply(y, both[:inner], "silu")
        program.norm(y, y, "rms", None, None, self.norm.eps or 0.0, self.groups)
        program.multiply(y, self.scale)
        program.linear(y, into, self.out.weight, self.out.bias, add=True)

    def _split_inputs(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return values, keys (B), queries (C), step sizes and the gate."""
        (u, dt), gate = self._inputs(x, Layout.of(x), {})
        return *split_projection(u, self.scan.initial(0, u)[0]), dt, gate

    def matrix(self, x: Tensor) -> Tensor:
        """(B, H, T, T), with the skip connection D on the diagonal."""
        _, B, C, dt, _ = self._split_inputs(x)
        B, C = (y.repeat_interleave(self.heads // self.groups, 2) for y in (B, C))
        decay = (dt * -self.scan.A_log.exp()).cumsum(1).transpose(1, 2)  # (B, H, T)
        between = (decay[..., None] - decay[..., None, :]).clamp(max=0).exp()
        matrix = torch.einsum("bihs,bjhs,bhij,bjh->bhij", C, B, between, dt).tril()
        return matrix + torch.diag_embed(self.scan.D[:, None].expand(-1, x.shape[1]))

    def values(self, x: Tensor) -> Tensor:
        return self._split_inputs(x)[0].transpose(1, 2)

    def output(self, mixed: Tensor, x: Tensor) -> Tensor:
        return self._gate_and_project(mixed.transpose(1, 2).flatten(2), self._split_inputs(x)[4])
