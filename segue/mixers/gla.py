"""Gated linear attention (Yang et al. 2024, arXiv 2312.06635)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segue.errors import SegueError
from segue.kernels.gla import FLOOR, gla
from segue.kernels.norm import gated_norm
from segue.mixers.base import Mixer
from segue.mixers.convolution import ShortConvolution
from segue.mixers.layout import Layout
from segue.mixers.state import Parts, Recurrence, Tensors

if TYPE_CHECKING:
    from segue.kernels.cpu.program import Program, View


class GatedLinearRecurrence(Recurrence):
    """S <- diag(exp g) S + k v^T, y = S^T q.

    Inputs: q, k (B, N, H, K), v (B, N, H, E), log decays g (B, N, H, K). State: (B, H, K, E).
    """

    def __init__(self, heads: int, key_width: int, value_width: int) -> None:
        super().__init__()
        self.shape = (heads, key_width, value_width)

    def initial(self, batch: int, like: Tensor) -> Tensors:
        return (like.new_zeros(batch, *self.shape),)

    def scan(self, inputs: Tensors, state: Tensors, starts: Tensor | None = None,
             lengths: Tensor | None = None) -> tuple[Tensor, Tensors]:
        q, k, v, g = inputs
        y, final = gla(q, k, v, g, state[0], starts, lengths)
        return y, (final,)

    def state_factors(self, inputs: Tensors) -> Tensors:
        return (inputs[3].sum(1, dtype=torch.promote_types(inputs[3].dtype, torch.float32)).exp()[..., None],)


class GatedLinearAttention(Mixer):
    """Linear attention whose state decays by a data-dependent gate per key feature.

    width: model width D. heads: number of heads. expand_k, expand_v: total width of keys and values, relative to D.
    gate_rank: rank of the gate's projection. temperature: log decays are log sigmoid(.) / temperature, so larger
        remembers longer. remember: the gates' biases are initialised so that the features of each head have time
        constants from temperature / log 2 to this many nodes, log-spaced (0: all about the former).
    taps: of a short causal convolution and SiLU on queries, keys and values (0: none; 4 in Lina-Speech).
    norm_eps: of the norm of each head.
    """

    linear_in_values = True

    def __init__(self, width: int, heads: int = 4, expand_k: float = 0.5, expand_v: float = 1.0, gate_rank: int = 16,
                 temperature: float = 16.0, norm_eps: float = 1e-6, taps: int = 0, remember: int = 0) -> None:
        super().__init__(width)
        keys, values = int(width * expand_k), int(width * expand_v)
        if keys % heads or values % heads:
            raise SegueError(f"key width {keys} and value width {values} must be divisible by {heads} heads")
        self.heads, self.temperature = heads, temperature
        self.widths = (keys, keys, values, values)
        self.qkvr = nn.Linear(width, sum(self.widths), bias=False)
        self.convolution = ShortConvolution(sum(self.widths[:3]), taps, silu=True) if taps else None
        self.gate = nn.Sequential(nn.Linear(width, gate_rank, bias=False), nn.Linear(gate_rank, keys))
        if remember:
            shortest = temperature / math.log(2)
            if remember < shortest:
                raise SegueError(f"gates that remember {remember} nodes: give {math.ceil(shortest)} at least, or 0")
            nodes = torch.logspace(math.log10(shortest), math.log10(remember), keys // heads)
            bias = torch.logit(torch.exp(-temperature / nodes)).repeat(heads)
            self.gate[1].bias = nn.Parameter(bias)
        self.norm = nn.RMSNorm(values // heads, eps=norm_eps)
        self.out = nn.Linear(values, width, bias=False)
        self.recurrence = GatedLinearRecurrence(heads, keys // heads, values // heads)

    def _project(self, x: Tensor, layout: Layout, parts: Parts) -> Tensors:
        qkv = F.linear(x, self.qkvr.weight[: -self.widths[3]])
        if self.convolution is not None:
            qkv = self.convolution((qkv,), layout, parts.get("convolution"))
        q, k, v = qkv.split(self.widths[:3], dim=-1)
        g = (F.logsigmoid(self.gate(x)) / self.temperature).clamp(min=FLOOR)
        q, k, v, g = (y.unflatten(-1, (self.heads, -1)) for y in (q, k, v, g))
        return q * q.shape[-1] ** -0.5, k, v, g

    def run(self, x: Tensor, layout: Layout, parts: Parts) -> Tensor:
        mixed = self.recurrence(self._project(x, layout, parts), layout, parts.get("recurrence"))
        return self.output(mixed.transpose(1, 2), x)

    def lower(self, program: Program, source: View, into: View) -> None:
        keys, _, values, _ = self.widths
        narrow, wide = self.gate
        assert isinstance(narrow, nn.Linear) and isinstance(wide, nn.Linear)
        qkvr, low = program.register("qkvr", sum(self.widths)), program.register("low", narrow.out_features)
        decay, y = program.register("decay", keys), program.register("y", values)
        qkv, r = qkvr[: 2 * keys + values], qkvr[2 * keys + values :]
        program.linear(source, qkvr, self.qkvr.weight)
        if self.convolution is not None:
            raw, qkv = qkv, program.register("qkv", 2 * keys + values)
            program.convolve(raw, qkv, self.convolution.weight, self.convolution.bias)
        q, k, v = qkv[:keys], qkv[keys : 2 * keys], qkv[2 * keys :]
        program.linear(source, low, narrow.weight)
        program.linear(low, decay, wide.weight, wide.bias)
        program.decay(decay, self.temperature, FLOOR)
        program.matrix(q, k, v, y, self.heads, decay, scale=(keys // self.heads) ** -0.5)
        program.norm(y, y, "rms", self.norm.weight, None, self.norm.eps or 0.0, self.heads)
        program.multiply(y, r, "silu")
        program.linear(y, into, self.out.weight, add=True)

    def matrix(self, x: Tensor) -> Tensor:
        q, k, _, g = (y.transpose(1, 2) for y in self._project(x, Layout.of(x), {}))
        decay = g.cumsum(2)
        between = (decay[:, :, :, None] - decay[:, :, None]).clamp(max=0).exp()
        return torch.einsum("bhik,bhjk,bhijk->bhij", q, k, between).tril()

    def values(self, x: Tensor) -> Tensor:
        return self._project(x, Layout.of(x), {})[2].transpose(1, 2)

    def output(self, mixed: Tensor, x: Tensor) -> Tensor:
        gate = F.linear(x, self.qkvr.weight[-self.widths[3] :])
        return self.out(gated_norm(mixed.transpose(1, 2).flatten(2), gate, self.norm.weight.repeat(self.heads),
                                   self.heads, self.norm.eps or 0.0, late=True))
