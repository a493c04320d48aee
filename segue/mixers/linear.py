"""Linear attention (Katharopoulos et al. 2020, arXiv 2006.16236): softmax's exp(q . k) is replaced by an inner product
of features of the query and of the key, so that the past is summarised by one sum of constant size."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segue.errors import SegueError
from segue.kernels.gla import gla
from segue.mixers.base import Mixer
from segue.mixers.layout import Layout
from segue.mixers.state import Parts, Recurrence, Tensors

if TYPE_CHECKING:
    from segue.kernels.cpu.program import Program, View

RELU_OFFSET = 1e-3  # the smallest value of a "relu" feature


class Features(nn.Module):
    """A feature map of queries and keys, (..., K) -> (..., size), whose inner products are not negative."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = self.size = width

    def lower(self, program: Program, name: str, x: View, heads: int) -> View:
        """Emit the features of the `heads` heads of x for the compiled CPU engine, in place or in a register."""
        raise NotImplementedError


class Elu(Features):
    """elu(x) + 1 (Katharopoulos et al. 2020)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.elu(x) + 1

    def lower(self, program: Program, name: str, x: View, heads: int) -> View:
        program.map(x, x, "elu1")
        return x


class Relu(Features):
    """relu(x) + RELU_OFFSET, so that every weight is positive (Choromanski et al. 2020)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x) + RELU_OFFSET

    def lower(self, program: Program, name: str, x: View, heads: int) -> View:
        program.map(x, x, "relu")
        program.map(x, x, shift=RELU_OFFSET)
        return x


class Taylor(Features):
    """[1, x / K^1/4, x x^T / sqrt(2 K)]: inner products are 1 + s + s^2 / 2 with s = q . k / sqrt(K), the second-order
    Taylor polynomial of exp s (Based: Arora et al. 2024, arXiv 2402.18668), which is at least 1/2. Of the symmetric
    x x^T, only the upper triangle is kept, with off-diagonal entries times sqrt(2)."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.size = 1 + width + width * (width + 1) // 2

    def _pairs(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        i, j = torch.triu_indices(self.width, self.width, device=like.device)
        return i, j, (self.width * (1 + (i == j).to(like.dtype))).rsqrt()

    def forward(self, x: Tensor) -> Tensor:
        i, j, share = self._pairs(x)
        # A product with a one-hot matrix, because indexing, and above all its gradient, takes several times as long.
        both = x.flatten(0, -2) @ F.one_hot(torch.cat([i, j]), self.width).to(x.dtype).T
        first, second = both.view(*x.shape[:-1], 2 * len(i)).chunk(2, -1)
        return torch.cat([torch.ones_like(x[..., :1]), x * self.width**-0.25, first * second * share], -1)

    def lower(self, program: Program, name: str, x: View, heads: int) -> View:
        into, one = program.register(name, heads * self.size), torch.ones(1)
        program.polynomial(x, into, torch.cat([one, one.expand(self.width) * self.width**-0.25, self._pairs(one)[2]]),
                           heads)
        return into


class Favor(Features):
    """Positive orthogonal random features, 2 K of them, whose inner products are unbiased estimates of
    exp(q . k / sqrt(K)) (Performer: Choromanski et al. 2020, arXiv 2009.14794)."""

    directions: Tensor

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.size = 2 * width
        q, r = torch.linalg.qr(torch.randn(self.size // width, width, width))
        q = q * r.diagonal(dim1=1, dim2=2).sign()[:, None]  # makes the directions uniform
        lengths = torch.randn(self.size, width).norm(dim=1, keepdim=True)
        self.register_buffer("directions", q.flatten(0, 1) * lengths)

    def forward(self, x: Tensor) -> Tensor:
        x = x * self.width**-0.25
        return (x @ self.directions.T - x.square().sum(-1, keepdim=True) / 2).exp() * self.size**-0.5

    def lower(self, program: Program, name: str, x: View, heads: int) -> View:
        into = program.register(name, heads * self.size)
        program.exponential(x, into, self.directions, heads)
        return into


FEATURES: dict[str, type[Features]] = {"elu": Elu, "taylor": Taylor, "favor": Favor, "relu": Relu}


def divide_by_weight(sums: Tensor, weight: Tensor) -> Tensor:
    """Return `sums / weight`, with the weight clamped to the smallest normal float: random features can underflow."""
    return sums / weight.clamp(min=torch.finfo(weight.dtype).tiny)


class LinearRecurrence(Recurrence):
    """Inputs: features q, k (B, N, H, F) and v (B, N, H, E). State: (B, H, F, E + 1), the sums of k v^T and of k."""

    learnable_tensors = ()  # the sums of k are divided by, and must stay positive

    def __init__(self, heads: int, features: int, value_width: int) -> None:
        super().__init__()
        self.shape = (heads, features, value_width + 1)

    def initial(self, batch: int, like: Tensor) -> Tensors:
        # A sum that never decays outgrows the precision of bfloat16 after some hundred nodes.
        return (like.new_zeros(batch, *self.shape, dtype=torch.promote_types(like.dtype, torch.float32)),)

    def scan(self, inputs: Tensors, state: Tensors, starts: Tensor | None = None,
             lengths: Tensor | None = None) -> tuple[Tensor, Tensors]:
        q, k, v = inputs
        y, final = gla(q, k, F.pad(v, (0, 1), value=1.0), None, state[0], starts, lengths)
        return divide_by_weight(y[..., :-1], y[..., -1:]), (final,)

    def state_factors(self, inputs: Tensors) -> Tensors | None:
        return (inputs[0].new_ones(()),)


class LinearAttention(Mixer):
    """Attention with weights features(q) . features(k), normalised to sum to one; no positions.

    width: model width D. heads: number of heads, must divide `width`. features: "elu", "taylor", "favor" or "relu".
    key_width: per head (default: width / heads, but at most 16 for "taylor", whose features grow with its square).
    """

    linear_in_values = True

    def __init__(self, width: int, heads: int = 4, features: str = "elu", key_width: int | None = None) -> None:
        super().__init__(width)
        if width % heads or features not in FEATURES:
            raise SegueError(f"features '{features}' with {heads} heads at width {width}: the width must be divisible "
                             f"by the heads, the features one of {', '.join(FEATURES)}")
        keys = key_width or min(width // heads, 16 if features == "taylor" else width)
        self.heads, self.widths = heads, (heads * keys, heads * keys, width)
        self.qkv = nn.Linear(width, sum(self.widths), bias=False)
        self.features = FEATURES[features](keys)
        self.out = nn.Linear(width, width, bias=False)
        self.recurrence = LinearRecurrence(heads, self.features.size, width // heads)

    def _project(self, x: Tensor) -> Tensors:
        q, k, v = (y.unflatten(-1, (self.heads, -1)) for y in self.qkv(x).split(self.widths, dim=-1))
        return self.features(q), self.features(k), v

    def run(self, x: Tensor, layout: Layout, parts: Parts) -> Tensor:
        mixed = self.recurrence(self._project(x), layout, parts.get("recurrence"))
        return self.output(mixed.transpose(1, 2), x)

    def lower(self, program: Program, source: View, into: View) -> None:
        keys, _, width = self.widths
        qkv, y = program.register("qkv", sum(self.widths)), program.register("y", width)
        program.linear(source, qkv, self.qkv.weight)
        q, k = (self.features.lower(program, name, x, self.heads) for name, x in (
            ("q", qkv[:keys]), ("k", qkv[keys : 2 * keys])))
        program.matrix(q, k, qkv[2 * keys :], y, self.heads,
                       floor=torch.full((self.heads,), torch.finfo(torch.float32).tiny))
        program.linear(y, into, self.out.weight, add=True)

    def matrix(self, x: Tensor) -> Tensor:
        q, k, _ = (y.transpose(1, 2) for y in self._project(x))
        weights = (q @ k.mT).tril()
        return divide_by_weight(weights, weights.sum(-1, keepdim=True))

    def values(self, x: Tensor) -> Tensor:
        return self._project(x)[2].transpose(1, 2)

    def output(self, mixed: Tensor, x: Tensor) -> Tensor:
        return self.out(mixed.transpose(1, 2).flatten(2))
