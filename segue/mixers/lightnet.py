"""LightNet: linear attention with keys normalised over the positions, in one scan over one or more axes (Qin et al.
2024, arXiv 2405.21022)."""

from __future__ import annotations

import math
from functools import reduce
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segue.errors import SegueError
from segue.kernels.gla import gla
from segue.kernels.linear import linear_attention_both_ways, linear_attention_on_grid
from segue.kernels.norm import gated_norm
from segue.kernels.scan import linear_scan
from segue.mixers.average import ExponentialAverage
from segue.mixers.base import Mixer
from segue.mixers.layout import Layout, length_mask
from segue.mixers.state import Carry, Part, Parts, Recurrence, Tensors

if TYPE_CHECKING:
    from segue.kernels.cpu.program import Program, View

KEY_LIMIT = 30.0
"""Keys are clamped to +-KEY_LIMIT, so that sums of their exponentials are finite and accurate in float32."""


def divide_queries(q: Tensor, totals: Tensor) -> Tensor:
    """Divide queries (B, N, H, F) by the sums of weights (B, N, H, E) of their features; F may be a multiple of E."""
    return (q.unflatten(-1, (-1, totals.shape[-1])) / totals.clamp(min=1e-37)[..., None, :]).flatten(-2)


class AdditiveRecurrence(Recurrence):
    """Linear attention with a softmax over the positions so far, per key channel.

    The decay g_{t-1} / g_t of the additive recurrence, where g_t is the sum of all weights up to t, telescopes; so the
    state does not decay, and queries are divided by g_t instead.

    Inputs: q, k (B, N, H, F), v (B, N, H, E) and the keys' weights (B, N, H, K), of which k holds F / K rotated copies.
    State: (B, H, F, E) and g (B, H, K), float32 or wider.
    """

    learnable_tensors = (0,)

    def __init__(self, heads: int, rotated_width: int, key_width: int, value_width: int) -> None:
        super().__init__()
        self.shape = (heads, rotated_width, key_width, value_width)

    def initial(self, batch: int, like: Tensor) -> Tensors:
        heads, rotated_width, key_width, value_width = self.shape
        wide = torch.promote_types(like.dtype, torch.float32)
        return (like.new_zeros(batch, heads, rotated_width, value_width, dtype=wide),
                like.new_zeros(batch, heads, key_width, dtype=wide))

    def scan(self, inputs: Tensors, state: Tensors, starts: Tensor | None = None,
             lengths: Tensor | None = None) -> tuple[Tensor, Tensors]:
        q, k, v, weights = inputs
        if not q.shape[1]:
            return v, state
        weights = weights.to(state[1].dtype)
        if lengths is not None:
            live = length_mask(lengths, q.shape[1])
            weights, starts = weights * live[..., None, None], None if starts is None else starts & live
        if starts is None:
            totals = weights.cumsum(1) + state[1][:, None]
        else:
            keeps = torch.logical_not(starts).to(weights.dtype)[..., None, None].expand_as(weights)
            totals = linear_scan(keeps, weights, state[1])
        y, final = gla(divide_queries(q, totals), k, v, None, state[0], starts, lengths)
        return y, (final, totals[:, -1])

    def state_factors(self, inputs: Tensors) -> Tensors:
        return (inputs[0].new_ones(()), inputs[0].new_ones(()))


class LightNet(Mixer):
    """Linear attention whose keys are softmaxed over positions, with a norm per head and a low-rank output gate.

    width: model width D. heads: number of heads, must divide `width`. causal: False sees the whole document, and also
    accepts elements on a grid. axes: number of grid axes (time, height, width ...), each of which rotates its own share
    of the features by position (MD-LRPE); 0: no positions. A causal LightNet has one axis. toeplitz: decays per channel
    and axis of the moving averages that are added to the input (MD-TPE, which the paper uses in the first layer only;
    0: none). gate_rank: rank of the output gate. theta: base of the rotation frequencies. norm_eps: of the head norm.
    """

    linear_in_values = True

    def __init__(self, width: int, heads: int = 4, causal: bool = True, axes: int = 1, toeplitz: int = 0,
                 gate_rank: int = 16, theta: float = 10_000.0, norm_eps: float = 1e-6) -> None:
        super().__init__(width)
        if width % heads:
            raise SegueError(f"width {width} is not divisible by {heads} heads: choose another number of heads")
        if causal and axes > 1:
            raise SegueError(f"a causal LightNet has one axis, not {axes}: choose causal=False")
        self.heads, self.rotated_axes = heads, axes
        self.causal, self.axes = causal, max(1, axes)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.gate = nn.Sequential(nn.Linear(width, gate_rank, bias=False), nn.Linear(gate_rank, width, bias=False))
        self.norm = nn.RMSNorm(width // heads, eps=norm_eps)
        self.out = nn.Linear(width, width, bias=False)
        self.share, self.theta = math.ceil(width / heads / max(1, axes)), theta
        self.averages = nn.ModuleList(ExponentialAverage(width, toeplitz) for _ in range(self.axes if toeplitz else 0))
        self.placed = nn.Sequential(nn.RMSNorm(width, eps=norm_eps), nn.Linear(width, width, bias=False)) \
            if toeplitz else None
        self.recurrence = AdditiveRecurrence(heads, (2 if axes else 1) * width // heads, width // heads, width // heads)

    def state_parameters(self) -> list[nn.Parameter]:
        return [average.rate for average in self.averages if isinstance(average, ExponentialAverage)]

    def check_layout(self, layout: Layout) -> None:
        super().check_layout(layout)
        if layout.grid is not None and (self.causal or layout.starts is not None):
            raise SegueError("LightNet reads a grid as a whole: choose causal=False, and give one document per row")

    def parts(self, batch: int, like: Tensor, history: int) -> dict[str, Part]:
        averages = {f"average{axis}": Carry(average, average.initial(batch, like), history)
                    for axis, average in enumerate(self.averages) if isinstance(average, Recurrence)}
        return {**super().parts(batch, like, history), **averages}

    def _add_averages(self, x: Tensor, layout: Layout, parts: Parts) -> Tensor:
        """Return x with moving averages along each axis added."""
        if self.placed is None:
            return x
        if layout.grid is None:
            average = self.averages[0]
            return x + self.placed(average((x,), layout, parts.get("average0")))
        field = x.unflatten(1, layout.grid)
        along = [average.average_along(field, axis) for axis, average in enumerate(self.averages[: len(layout.grid)], 1)
                 if isinstance(average, ExponentialAverage)]
        return x + self.placed(reduce(torch.add, along).flatten(1, -2))

    def _rotate(self, layout: Layout, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Expand queries and keys (B, N, H, E) to cosine and sine parts (B, N, H, 2 E), whose inner products depend on
        the distance of positions alone. Angles are in float64, as for rotary positions."""
        if not self.rotated_axes:
            return q, k
        angle = layout.positions[..., None].double() * self._angles(q)
        angle = F.pad(angle, (0, q.shape[-1] - angle.shape[-1]))[:, :, None]  # features of other axes are not rotated
        circle = torch.stack([angle.cos(), angle.sin()], -2)
        queries, keys = ((x[..., None, :] * circle.to(x.dtype)).flatten(-2) for x in (q, k))
        return queries, keys

    def _angles(self, like: Tensor) -> Tensor:
        """Return the rotation frequencies of one axis, (share,) radians per position, float64."""
        return self.theta ** -(torch.arange(self.share, dtype=torch.float64, device=like.device) / self.share)

    def _weights(self, k: Tensor, layout: Layout) -> Tensor:
        """Return the nodes' weights (B, N, H, E): unnormalised if causal, since the recurrence divides them by their
        running sums, else normalised to sum to one over each document."""
        k = k.to(torch.promote_types(k.dtype, torch.float32))
        if not self.causal and layout.segments is None:
            return k.softmax(1)
        weights = k.clamp(-KEY_LIMIT, KEY_LIMIT).exp()
        if self.causal:
            return weights
        assert layout.segments is not None
        index = layout.segments[..., None, None].expand_as(weights)
        sums = weights.new_zeros(len(weights), weights.shape[1] + 1, *weights.shape[2:]).scatter_add(1, index, weights)
        return weights / sums.gather(1, index)

    def _project(self, x: Tensor, layout: Layout) -> Tensors:
        """Return queries, key weights and values, each (B, N, H, E)."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(2)
        return F.silu(q), self._weights(k, layout), v

    def run(self, x: Tensor, layout: Layout, parts: Parts) -> Tensor:
        x = self._add_averages(x, layout, parts)
        q, weights, v = self._project(x, layout)
        if layout.grid is not None and self.rotated_axes:
            y = linear_attention_on_grid(q, weights.to(v.dtype), v, layout.grid, self._angles(q))
            return self._gate_and_project(y, x)
        q, k = self._rotate(layout, q, weights)
        k = k.to(v.dtype)
        if self.causal:
            y = self.recurrence((q, k, v, weights), layout, parts.get("recurrence"))
        else:
            y = linear_attention_both_ways(q, k, v, layout.starts)
        return self._gate_and_project(y, x)

    def _gate_and_project(self, y: Tensor, x: Tensor) -> Tensor:
        scale = self.norm.weight.repeat(self.heads)
        return self.out(gated_norm(y.flatten(2), self.gate(x), scale, self.heads, self.norm.eps or 0.0, late=True))

    def lower(self, program: Program, source: View, into: View) -> None:
        if not self.causal:
            raise SegueError("a LightNet that looks ahead has no form for the compiled CPU engine")
        width, heads, x = self.width, self.heads, source
        qkv, y, totals, gate = (program.register(name, size) for name, size in (
            ("qkv", 3 * width), ("y", width), ("totals", width), ("gate", width)))
        if self.placed is not None:
            x, average = (program.register(name, width) for name in ("placed", "average"))
            self.averages[0].lower(program, source, average)  # type: ignore[operator]
            program.norm(average, average, "rms", self.placed.get_parameter("0.weight"), None, self.norm.eps or 0.0)
            program.map(source, x)
            program.linear(average, x, self.placed.get_parameter("1.weight"), add=True)
        program.linear(x, qkv, self.qkv.weight)
        q, k, v = (qkv[part * width : (part + 1) * width] for part in range(3))
        program.map(q, q, "silu")
        program.map(k, k, "exp", limit=KEY_LIMIT)
        program.diagonal(torch.ones(width), k, totals)
        program.multiply(q, totals, "reciprocal")
        if self.rotated_axes:
            rotated = [program.register(name, 2 * width) for name in ("rotated q", "rotated k")]
            for part, into_part in zip((q, k), rotated):
                program.turn(part, into_part, self._angles(self.out.weight), heads)
            q, k = rotated
        program.matrix(q, k, v, y, heads)
        program.norm(y, y, "rms", self.norm.weight, None, self.norm.eps or 0.0, heads)
        narrow = program.register("narrow", self.gate.get_parameter("0.weight").shape[0])
        program.linear(x, narrow, self.gate.get_parameter("0.weight"))
        program.linear(narrow, gate, self.gate.get_parameter("1.weight"), activation="silu")
        program.multiply(y, gate)
        program.linear(y, into, self.out.weight, add=True)

    def _inputs(self, x: Tensor) -> tuple[Tensor, Layout]:
        layout = Layout.of(x)
        return self._add_averages(x, layout, {}), layout

    def matrix(self, x: Tensor) -> Tensor:
        x, layout = self._inputs(x)
        q, weights, _ = self._project(x, layout)
        q, k = self._rotate(layout, q, weights)
        matrix = torch.einsum("bihf,bjhf->bhij", divide_queries(q, weights.cumsum(1)) if self.causal else q, k)
        return matrix.tril() if self.causal else matrix

    def values(self, x: Tensor) -> Tensor:
        x, layout = self._inputs(x)
        return self._project(x, layout)[2].transpose(1, 2)

    def output(self, mixed: Tensor, x: Tensor) -> Tensor:
        return self._gate_and_project(mixed.transpose(1, 2), self._inputs(x)[0])
