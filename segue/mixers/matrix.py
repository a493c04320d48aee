"""Sequence mixers written as one matrix per head: the classes of structured matrices that the Hydra paper compares
(Hwang et al. 2024, arXiv 2407.09941)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segue.errors import SegueError, check_choice
from segue.mixers.base import Mixer
from segue.mixers.convolution import CentredConvolution
from segue.mixers.layout import Layout
from segue.mixers.state import Parts

ANGLE_SPEED = 1e-3  # turns per node and unit of frequency, of a Vandermonde matrix
TEMPERATURE = 16.0  # of the decays of semiseparable matrices: larger remembers longer


@dataclass(frozen=True)
class MatrixInputs:
    """What the entries of a matrix are computed from.

    p: (B, H, T, P), parameters of each node. index: (B, T), its place in its document. same: (B, 1, T, T) bool, whether
    two nodes share a document. features: d. shift: (H,), for "cauchy" alone.
    """

    p: Tensor
    index: Tensor
    same: Tensor
    features: int
    shift: Tensor | None = None

    def split(self) -> tuple[Tensor, ...]:
        return self.p.split(self.features, -1)

    def scale(self, by: float = 1.0) -> Tensor:
        """Return 1 / sqrt(by * length of the node's document), (B, 1, T, 1)."""
        return (by * self.same.sum(-1, keepdim=True)).to(self.p.dtype).rsqrt()


def dense(e: MatrixInputs) -> Tensor:
    """An unstructured matrix: the parameters of a node are its row."""
    return e.p.gather(-1, e.index[:, None, None].expand(*e.p.shape[:3], -1)) * e.scale()


def toeplitz(e: MatrixInputs) -> Tensor:
    """A Toeplitz matrix: node t of a document holds the weights of distance t, behind and ahead."""
    n = e.p.shape[2]
    distance = e.index[:, :, None] - e.index[:, None]
    begin = torch.arange(n, device=e.p.device) - e.index
    source = (distance.abs() + begin[:, :, None]).clamp(max=n - 1)[:, None].expand(-1, e.p.shape[1], -1, -1).flatten(2)
    behind, ahead = (y.gather(-1, source).unflatten(-1, (n, n)) for y in e.p.unbind(-1))
    return torch.where(distance[:, None] >= 0, behind, ahead) * e.scale(4.0)


def vandermonde(e: MatrixInputs) -> Tensor:
    """A Vandermonde matrix: sums of cosines whose frequencies are one node's parameters and whose time is the other
    node's index; those of the row's node minus those of the column's."""
    q, k = e.split()
    angle = 2 * math.pi * ANGLE_SPEED * e.index.to(q.dtype)[:, None]
    rows = (q[..., :, None, :] * angle[..., None, :, None]).cos()
    columns = (k[..., None, :, :] * angle[..., :, None, None]).cos()
    return (rows - columns).sum(-1) * e.scale(2 * e.features)


def cauchy(e: MatrixInputs) -> Tensor:
    """A Cauchy matrix: reciprocals of sums of positive numbers, one of each node, and a shift."""
    assert e.shift is not None
    q, k = (y.exp() for y in e.split())
    total = q[..., :, None, :] + k[..., None, :, :] + 2 * e.shift.view(-1, 1, 1, 1) + 1e-8
    return total.reciprocal().sum(-1) * e.scale(e.features)


def low_rank(e: MatrixInputs) -> Tensor:
    """Inner products of features: bidirectional linear attention."""
    q, k = e.split()
    return q @ k.mT * e.scale(e.features)


def attention(e: MatrixInputs) -> Tensor:
    """Bidirectional softmax attention."""
    q, k = e.split()
    return (q @ k.mT / math.sqrt(e.features)).masked_fill(~e.same, -math.inf).softmax(-1)


def semiseparable(e: MatrixInputs) -> Tensor:
    """Causal: inner products of features, decayed by all nodes in between."""
    q, k, decay = e.split()
    total = F.logsigmoid(decay[..., 0]).cumsum(-1) / TEMPERATURE
    between = (total[..., :, None] - total[..., None, :]).clamp(max=0).exp()
    return (q @ k.mT * between).tril() * e.scale(e.features)


def quasiseparable(e: MatrixInputs) -> Tensor:
    """Both directions, each with its own features and decays, and a separate diagonal."""
    below, above, own = e.p.split([2 * e.features + 1, 2 * e.features + 1, 1], -1)
    above = semiseparable(replace(e, p=above.flip(2), same=e.same.flip(2, 3))).flip(2, 3)
    return semiseparable(replace(e, p=below)).tril(-1) + above.triu(1) + torch.diag_embed(own[..., 0])


STRUCTURES: dict[str, tuple[Callable[..., Tensor], Callable[[int], int]]] = {  # matrix; parameters per node
    "dense": (dense, lambda d: 0),
    "toeplitz": (toeplitz, lambda d: 2),
    "vandermonde": (vandermonde, lambda d: 2 * d),
    "cauchy": (cauchy, lambda d: 2 * d),
    "low-rank": (low_rank, lambda d: 2 * d),
    "attention": (attention, lambda d: 2 * d),
    "semiseparable": (semiseparable, lambda d: 2 * d + 1),
    "quasiseparable": (quasiseparable, lambda d: 4 * d + 3),
}
SILU_STRUCTURES = ("toeplitz", "low-rank")  # whose aligned parameters pass a SiLU after the convolution


class MatrixMixer(Mixer):
    """One matrix of the chosen class per head, plus the identity, built explicitly: time and memory are quadratic in
    the length for every class. It serves to compare classes; `hydra`, `attention` and `gla` are the fast mixers. The
    result is normalised and gated, as in `hydra`.

    width: model width D. structure: one of STRUCTURES. aligned: the parameters of each node are computed from that node
    (the matrix is sequence-aligned: it depends on the data, and extends to any length); otherwise they are learned for
    documents of at most `length` elements. heads: number of heads. features: d per head. expand: width of the values
    relative to D. taps: of the centred convolution applied to values and aligned parameters. norm_eps: of the norm.
    """

    causal = False
    linear_in_values = True
    cost = "T²"

    def __init__(self, width: int, structure: str = "quasiseparable", aligned: bool = True, length: int = 256,
                 heads: int = 4, features: int = 16, expand: int = 2, taps: int = 7, norm_eps: float = 1e-6) -> None:
        super().__init__(width)
        check_choice("structure", structure, STRUCTURES)
        if structure == "dense" and aligned:
            raise SegueError("a dense matrix has no aligned form: give aligned=False and a length")
        if expand * width % heads:
            raise SegueError(f"value width {expand * width} is not divisible by {heads} heads")
        self.heads, self.features, self.length = heads, features, length
        self.make, numbers = STRUCTURES[structure]
        count, inner = heads * (numbers(features) or length), expand * width
        self.activated = structure in SILU_STRUCTURES
        self.widths = (inner, inner, count if aligned else 0)
        self.into = nn.Linear(width, sum(self.widths), bias=False)
        self.convolution = CentredConvolution(sum(self.widths[1:]), taps, bias=True)
        self.numbers = None if aligned else nn.Parameter(torch.randn(length, count) / math.sqrt(features))
        self.shift = nn.Parameter(torch.full((heads,), 0.5)) if structure == "cauchy" else None
        self.norm = nn.RMSNorm(inner, eps=norm_eps)
        self.out = nn.Linear(inner, width, bias=False)

    def _project(self, x: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        """Return the values (B, T, I) and the aligned parameters (B, T, H P)."""
        read = self.convolution(F.linear(x, self.into.weight[self.widths[0] :]), layout)
        v, numbers = read.split(self.widths[1:], -1)
        return F.silu(v), F.silu(numbers) if self.activated else numbers

    def _matrix(self, numbers: Tensor, layout: Layout) -> Tensor:
        """Return the matrix (B, H, T, T) of these aligned parameters, or of the learned ones where there are any."""
        batch, n = numbers.shape[:2]
        index = torch.arange(n, device=numbers.device).expand(batch, n)
        same = torch.ones(batch, 1, n, n, dtype=torch.bool, device=numbers.device)
        if layout.starts is not None and layout.segments is not None:
            index = index - torch.where(layout.starts, index, 0).cummax(1).values
            same = (layout.segments[:, :, None] == layout.segments[:, None])[:, None]
        if self.numbers is not None:
            if index.numel() and int(index.max()) >= self.length:
                raise SegueError(f"a document of {int(index.max()) + 1} elements is longer than the {self.length} of "
                                 "this matrix: make the mixer with a larger length, or aligned")
            numbers = self.numbers[index]
        p = numbers.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        matrix = self.make(MatrixInputs(p, index, same, self.features, self.shift)).masked_fill(~same, 0.0)
        return matrix + torch.eye(n, dtype=matrix.dtype, device=matrix.device)

    def run(self, x: Tensor, layout: Layout, parts: Parts) -> Tensor:
        v, numbers = self._project(x, layout)
        return self.output(self._matrix(numbers, layout) @ self._heads(v), x)

    def _heads(self, v: Tensor) -> Tensor:
        return v.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def matrix(self, x: Tensor) -> Tensor:
        layout = Layout.of(x)
        return self._matrix(self._project(x, layout)[1], layout)

    def values(self, x: Tensor) -> Tensor:
        return self._heads(self._project(x, Layout.of(x))[0])

    def output(self, mixed: Tensor, x: Tensor) -> Tensor:
        y = mixed.transpose(1, 2).flatten(2).to(self.norm.weight.dtype)
        return self.out(self.norm(y) * F.silu(F.linear(x, self.into.weight[: self.widths[0]])))
