"""Hydra: a bidirectional state space as one quasiseparable matrix (Hwang et al. 2024, arXiv 2407.09941)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segue.errors import SegueError, check_choice
from segue.kernels.norm import gated_norm
from segue.kernels.ssd import ssd
from segue.mixers.base import Mixer
from segue.mixers.convolution import CentredConvolution
from segue.mixers.layout import Layout
from segue.mixers.ssm import initial_step_bias
from segue.mixers.state import Parts, Tensors

MERGES = ("quasiseparable", "add", "multiply", "concatenate", "forward")


def shift_to_next(y: Tensor, starts: Tensor | None) -> Tensor:
    """Shift y (B, N, ...) one node on, with zeros where a document begins."""
    moved = torch.cat([y.new_zeros(y.shape[0], 1, *y.shape[2:]), y], 1)[:, :-1]
    return moved if starts is None else moved.masked_fill(starts.view(*starts.shape, *[1] * (y.dim() - 2)), 0.0)


def semiseparable(b: Tensor, c: Tensor, dt: Tensor, g: Tensor) -> Tensor:
    """Return the matrix (B, H, T, T) with entries c_i . b_j exp(g_{j+1} + ... + g_i) dt_j for i >= j, else 0.

    b, c: (B, T, S). dt, g: (B, T, H), step sizes and log decays.
    """
    decay = g.transpose(1, 2).cumsum(-1)
    between = (decay[..., :, None] - decay[..., None, :]).clamp(max=0).exp()
    return (torch.einsum("bis,bjs->bij", c, b)[:, None] * between * dt.transpose(1, 2)[:, :, None]).tril()


class Hydra(Mixer):
    """Two selective state spaces, one from each end, each shifted by one node so that it excludes the node itself,
    which has a separate weight: the matrix is free below, on and above the diagonal. Both directions run as one batch
    and share the input and output projections.

    width: model width D. heads: number of heads, must divide the inner width. states: S per head. taps: of the
    convolution, centred on the node. expand: inner width relative to D. merge: "quasiseparable"; or another way to join
    the directions, without the shift: "add", "multiply", "concatenate" (and a linear map), or "forward", one direction
    with a causal convolution. norm_eps: of the output norm.
    """

    causal = False

    def __init__(self, width: int, heads: int = 4, states: int = 64, taps: int = 7, expand: int = 2,
                 merge: str = "quasiseparable", norm_eps: float = 1e-6) -> None:
        super().__init__(width)
        inner = expand * width
        if inner % heads:
            raise SegueError(f"inner width {inner} is not divisible by {heads} heads: choose another number of heads")
        check_choice("merge", merge, MERGES)
        self.heads, self.merge, self.ways = heads, merge, 1 if merge == "forward" else 2
        self.linear_in_values = merge in ("quasiseparable", "add", "forward")
        mixed = inner + 2 * self.ways * states  # x, and b and c of each way
        self.widths, self.inner = [inner, mixed, self.ways * heads], [inner, *[states] * (2 * self.ways)]
        self.into = nn.Linear(width, sum(self.widths), bias=False)
        self.convolution = CentredConvolution(mixed, taps, ahead=None if self.ways == 2 else 0)
        self.step = nn.Parameter(initial_step_bias(heads))
        self.A_log = nn.Parameter(torch.zeros(heads))
        self.diagonal = nn.Linear(inner, heads)
        nn.init.ones_(self.diagonal.bias)
        self.join = nn.Linear(2 * inner, inner, bias=False) if merge == "concatenate" else None
        self.norm = nn.RMSNorm(inner, eps=norm_eps)
        self.out = nn.Linear(inner, width, bias=False)

    def state_parameters(self) -> list[nn.Parameter]:
        return [self.A_log, self.step]

    def _inputs(self, x: Tensor, layout: Layout) -> tuple[Tensor, list[Tensors]]:
        """Return values (B, N, H, E) and, per direction and in its order of nodes, b and c (B, N, S), and step sizes
        and log decays (B, N, H)."""
        _, mixed, dt = self.into(x).split(self.widths, -1)
        v, *bc = F.silu(self.convolution(mixed, layout)).split(self.inner, -1)
        directions: list[Tensors] = []
        for direction, steps in enumerate(dt.chunk(self.ways, -1)):
            b, c, steps = (y.flip(1) if direction else y for y in (bc[2 * direction], bc[2 * direction + 1], steps))
            steps = F.softplus(steps + self.step)
            directions.append((b, c, steps, -steps * self.A_log.exp()))
        return v.unflatten(-1, (self.heads, -1)), directions

    def _weights(self, v: Tensor) -> Tensor:
        """Return the diagonal of the matrix, each node's weight for itself: (B, N, H)."""
        return self.diagonal(v.flatten(2))

    def run(self, x: Tensor, layout: Layout, parts: Parts) -> Tensor:
        v, directions = self._inputs(x, layout)
        b, c, dt, g = (torch.cat(pair) for pair in zip(*directions))
        u = torch.cat([torch.cat([v, v.flip(1)])[: len(b)].flatten(2), b, c], -1)
        starts = layout.starts
        if starts is not None and self.ways == 2:
            mirrored = layout.mirrored().starts
            assert mirrored is not None
            starts = torch.cat([starts, mirrored])
        initial = u.new_zeros(len(u), self.heads, b.shape[-1], v.shape[-1])
        y = ssd(u, dt, g, u.new_zeros(self.heads), initial, starts)[0].unflatten(-1, (self.heads, -1))
        if self.merge == "quasiseparable":
            y = shift_to_next(y, starts)
        diagonal = self._weights(v)[..., None] * v
        if self.ways == 1:
            return self._finish((y + diagonal).flatten(2), x)
        forward, backward = y.chunk(2)
        backward = backward.flip(1)
        if self.join is not None:
            joined = self.join(torch.cat([forward.flatten(2), backward.flatten(2)], -1))
            return self._finish(joined + diagonal.flatten(2), x)
        merged = forward * backward if self.merge == "multiply" else forward + backward
        return self._finish((merged + diagonal).flatten(2), x)

    def _finish(self, y: Tensor, x: Tensor) -> Tensor:
        gate = F.linear(x, self.into.weight[: self.widths[0]])
        return self.out(gated_norm(y, gate, self.norm.weight, 1, self.norm.eps or 0.0, late=True))

    def matrix(self, x: Tensor) -> Tensor:
        if not self.linear_in_values:
            return super().matrix(x)
        v, directions = self._inputs(x, Layout.of(x))
        matrix = torch.diag_embed(self._weights(v).transpose(1, 2))
        for direction, inputs in enumerate(directions):
            part = semiseparable(*inputs)
            if self.merge == "quasiseparable":
                part = shift_to_next(part.transpose(1, 2), None).transpose(1, 2)
            matrix = matrix + (part.flip(2, 3) if direction else part)
        return matrix

    def values(self, x: Tensor) -> Tensor:
        if not self.linear_in_values:
            return super().values(x)
        return self._inputs(x, Layout.of(x))[0].transpose(1, 2)

    def output(self, mixed: Tensor, x: Tensor) -> Tensor:
        if not self.linear_in_values:
            return super().output(mixed, x)
        return self._finish(mixed.transpose(1, 2).flatten(2), x)
