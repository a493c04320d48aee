"""DeltaNet (Yang et al. 2024, arXiv 2406.06484), with eigenvalues down to -1 (Grazzi et al. 2024, arXiv 2411.12537) and
several Householder steps per token (DeltaProduct: Siems et al. 2025, arXiv 2502.10297)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from segue.errors import SegueError
from segue.kernels.delta import delta, delta_matrix, normalise_qk
from segue.kernels.norm import gated_norm
from segue.mixers.base import Mixer
from segue.mixers.convolution import ShortConvolution
from segue.mixers.layout import Layout
from segue.mixers.state import Parts, Recurrence, Tensors

if TYPE_CHECKING:
    from segue.kernels.cpu.program import Program, View

MIN_KEY_NORM = 1e-6  # shorter keys are not scaled to length 1


class DeltaRecurrence(Recurrence):
    """The delta rule, S <- (I - beta k k^T) S + beta k v^T, applied M times per token.

    Inputs: q (B, N, H, K), k (B, N, M, H, K), v (B, N, M, H, E), beta (B, N, M, H). State: (B, H, K, E), float32 or
    wider. Keys are normalised to length 1: a longer one with a beta near 2 would make the state explode.
    """

    def __init__(self, heads: int, key_width: int, value_width: int) -> None:
        super().__init__()
        self.shape = (heads, key_width, value_width)

    def initial(self, batch: int, like: Tensor) -> Tensors:
        return (like.new_zeros(batch, *self.shape, dtype=torch.promote_types(like.dtype, torch.float32)),)

    def scan(self, inputs: Tensors, state: Tensors, starts: Tensor | None = None,
             lengths: Tensor | None = None) -> tuple[Tensor, Tensors]:
        q, k, v, beta = inputs
        y, final = delta(q, k, v, beta, state[0], starts, lengths, MIN_KEY_NORM)
        return y, (final,)


def min_eigenvalue(eigenvalues: tuple[float, float]) -> float:
    """Return the lower end of a range of transition eigenvalues; raise SegueError unless it lies in [-1, 0] and the
    upper end is 1."""
    low, high = eigenvalues
    if high != 1 or not -1 <= low <= 0:
        raise SegueError(f"eigenvalues from {low:g} to {high:g}: give (0, 1), or (-1, 1) to track states")
    return float(low)


class DeltaNet(Mixer):
    """Fast weights with the delta rule, which overwrites the value stored under a key: S <- (I - beta k k^T) S +
    beta k v^T.

    width: model width D. heads: number of heads. expand_k, expand_v: total width of keys and values, relative to D.
    eigenvalues: range of 1 - beta, (0, 1), or (-1, 1), whose reflections can track states. householders: steps per
    token, each with its own key, value and beta. taps: of the short convolution. gate: multiply the output by a SiLU
    gate. norm_eps: of the norm of each head.
    """

    linear_in_values = True

    def __init__(self, width: int, heads: int = 4, expand_k: float = 1.0, expand_v: float = 1.0,
                 eigenvalues: tuple[float, float] = (0.0, 1.0), householders: int = 1, taps: int = 4,
                 gate: bool = False, norm_eps: float = 1e-6) -> None:
        super().__init__(width)
        keys, values = int(width * expand_k), int(width * expand_v)
        if keys % heads or values % heads or householders < 1:
            raise SegueError(f"key width {keys} and value width {values} must be divisible by {heads} heads, and "
                             f"householders ({householders}) at least 1")
        self.heads, self.householders, self.span = heads, householders, 1 - min_eigenvalue(eigenvalues)
        self.widths = (keys, keys * householders, values * householders)
        self.into = nn.Linear(width, sum(self.widths), bias=False)
        self.convolution = ShortConvolution(sum(self.widths), taps, silu=True)
        self.strength = nn.Linear(width, heads * householders, bias=False)
        self.gate = nn.Linear(width, values, bias=False) if gate else None
        self.norm = nn.RMSNorm(values // heads, eps=norm_eps)
        self.out = nn.Linear(values, width, bias=False)
        self.recurrence = DeltaRecurrence(heads, keys // heads, values // heads)
        for linear in (self.into, self.strength, self.gate, self.out):
            if linear is not None:
                nn.init.xavier_uniform_(linear.weight, gain=2**-2.5)

    def _project(self, x: Tensor, layout: Layout, parts: Parts) -> Tensors:
        """Return q, k, v and beta in the shapes of `DeltaRecurrence`."""
        mixed = self.convolution((self.into(x),), layout, parts.get("convolution"))
        q, k, v = mixed.split(self.widths, dim=-1)
        steps = (self.householders, self.heads, -1)
        beta = self.span * torch.sigmoid(self.strength(x)).unflatten(-1, steps[:2])
        return q.unflatten(-1, steps[1:]), k.unflatten(-1, steps), v.unflatten(-1, steps), beta

    def run(self, x: Tensor, layout: Layout, parts: Parts) -> Tensor:
        inputs = self._project(x, layout, parts)
        return self._gate_and_project(self.recurrence(inputs, layout, parts.get("recurrence")), x)

    def _gate_and_project(self, mixed: Tensor, x: Tensor) -> Tensor:
        if self.gate is None:
            return self.out(self.norm(mixed.to(self.norm.weight.dtype)).flatten(2))  # autocast may change it
        return self.out(gated_norm(mixed.flatten(2), self.gate(x), self.norm.weight.repeat(self.heads), self.heads,
                                   self.norm.eps or 0.0, late=True))

    def lower(self, program: Program, source: View, into: View) -> None:
        keys, stepped, _ = self.widths
        raw, mixed = (program.register(name, sum(self.widths)) for name in ("raw", "mixed"))
        beta, y = program.register("beta", self.strength.out_features), program.register("y", self.out.in_features)
        q, k, v = mixed[:keys], mixed[keys : keys + stepped], mixed[keys + stepped :]
        program.linear(source, raw, self.into.weight)
        program.convolve(raw, mixed, self.convolution.weight, self.convolution.bias)
        program.norm(q, q, "l2", None, None, MIN_KEY_NORM, self.heads)
        program.norm(k, k, "l2", None, None, MIN_KEY_NORM, self.heads * self.householders)
        program.linear(source, beta, self.strength.weight, activation="sigmoid")
        program.map(beta, beta, scale=self.span)
        program.matrix(q, k, v, y, self.heads, write=beta, delta=True, steps=self.householders,
                       scale=(keys // self.heads) ** -0.5)
        program.norm(y, y, "rms", self.norm.weight, None, self.norm.eps or 0.0, self.heads)
        if self.gate is not None:
            gate = program.register("gate", self.out.in_features)
            program.linear(source, gate, self.gate.weight)
            program.multiply(y, gate, "silu")
        program.linear(y, into, self.out.weight, add=True)

    def matrix(self, x: Tensor) -> Tensor:
        """(B, H M, T, T), with the M steps of a head next to each other."""
        q, k, _, beta = self._project(x, Layout.of(x), {})
        return delta_matrix(*normalise_qk(q, k, MIN_KEY_NORM), beta).flatten(1, 2)

    def values(self, x: Tensor) -> Tensor:
        return self._project(x, Layout.of(x), {})[2].permute(0, 3, 2, 1, 4).flatten(1, 2)

    def output(self, mixed: Tensor, x: Tensor) -> Tensor:
        return self._gate_and_project(mixed.unflatten(1, (self.heads, -1)).sum(2).transpose(1, 2), x)
