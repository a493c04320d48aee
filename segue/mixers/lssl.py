"""LSSL: a dense linear state space, as a recurrence, a convolution and an ODE (Gu et al. 2021, arXiv 2110.13985).

O(N^2 L) time and O(N L) memory per feature: the reference for faster state spaces. Use it with few states; S4 computes
the same kernels. Where A is trained, one step of the recurrence is two tridiagonal solves.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segue.errors import SegueError
from segue.kernels.convolution import long_convolution
from segue.mixers import hippo
from segue.mixers.ssm import StateSpace, StateSpaceMixer, StepSizes, upcast
from segue.mixers.state import Tensors

if TYPE_CHECKING:
    from segue.kernels.cpu.program import Program, View

CHUNK_NODES = 64  # nodes per step of the recurrent form
Advance = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def krylov(a: Tensor, b: Tensor, length: int) -> Tensor:
    """Return a^l b for l = 0 .. length - 1, by repeated squaring: a (..., N, N), b (..., N) -> (..., N, length)."""
    x = b[..., None]
    while x.shape[-1] < length:
        x, a = torch.cat([x, a @ x], -1), a @ a
    return x[..., :length]


def shift(x: Tensor, by: int, fill: float = 0.0) -> Tensor:
    """Shift x along its last axis: element i of the result is x_(i - by), or `fill` where that does not exist."""
    n = x.shape[-1]
    return F.pad(x[..., max(0, -by) : n - max(0, by)], (max(0, by), max(0, -by)), value=fill)


def tridiagonal(below: Tensor, on: Tensor, above: Tensor, y: Tensor) -> Tensor:
    """Solve below_i x_(i-1) + on_i x_i + above_i x_(i+1) = y_i for x (..., N), without pivoting, by parallel cyclic
    reduction: log N rounds of O(N). below_0 and above_(N-1) are ignored."""
    n, span = on.shape[-1], 1
    below, above = F.pad(below[..., 1:], (1, 0)), F.pad(above[..., :-1], (0, 1))
    while span < n:  # eliminate the neighbours `span` away
        left, right = -below / shift(on, span, 1.0), -above / shift(on, -span, 1.0)
        y = y + left * shift(y, span) + right * shift(y, -span)
        on = on + left * shift(above, span) + right * shift(below, -span)
        below, above, span = left * shift(below, span), right * shift(above, -span), 2 * span
    return y / on


class DenseStateSpace(StateSpace):
    """x_k = A x_{k-1} + B u_k, y_k = C x_k for any A. State: (B, H, N), float32 or wider."""

    states: int
    features: int

    def discrete(self) -> Tensors:
        """Return the discretised A (H, N, N), B (H, N) and C (channels, H, N), float32 or wider."""
        raise NotImplementedError

    def initial(self, batch: int, like: Tensor) -> Tensors:
        return (upcast(like.new_zeros(batch, self.features, self.states)),)

    def kernel(self, length: int) -> Tensor:
        with self.full_precision():
            a, b, c = self.discrete()
            return torch.einsum("mhn,hnl->lmh", c, krylov(a, b, length)).flatten(1)

    def full_precision(self) -> torch.autocast:
        """Return a context without autocast: powers of A do not survive lower precision."""
        return torch.autocast(next(self.parameters()).device.type, enabled=False)

    def scan(self, inputs: Tensors, state: Tensors, starts: Tensor | None = None,
             lengths: Tensor | None = None) -> tuple[Tensor, Tensors]:
        (u,), (x,) = inputs, state
        n = u.shape[1]
        # Cut at the end of every chunk, document and row.
        ends = {*range(CHUNK_NODES, n, CHUNK_NODES), n, *([] if lengths is None else lengths.tolist()),
                *([] if starts is None else torch.nonzero(starts.any(0))[:, 0].tolist())}
        edges = [0, *sorted(ends - {0})]
        outputs, final = [u[:, :0].repeat(1, 1, self.channels)], x
        with self.full_precision():
            advance = self.advance(max((b - a for a, b in pairwise(edges)), default=0))
            for begin, end in pairwise(edges):
                if starts is not None:
                    x = x.masked_fill(starts[:, begin, None, None], 0.0)
                y, x = advance(upcast(u[:, begin:end]), upcast(x))
                outputs.append(y.to(u.dtype))
                final = x if lengths is None else torch.where((lengths >= end)[:, None, None], x, final)
        return torch.cat(outputs, 1), (final.to(state[0].dtype),)

    def advance(self, size: int) -> Advance:
        """Return a function (u (B, n, H), state x) -> (outputs, next state) for any n <= size."""
        a, b, c = self.discrete()
        drive, recall = krylov(a, b, size), krylov(a.mT, torch.einsum("mhn,hnk->mhk", c, a), size)  # A^l B, C A^(l+1)
        kernel = torch.einsum("mhn,hnl->lmh", c, drive).flatten(1)
        power = cache(lambda n: torch.linalg.matrix_power(a, n))

        def run(u: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
            n = u.shape[1]
            y = torch.einsum("bhn,mhnl->blmh", x, recall[..., :n]).flatten(2)
            y = y + long_convolution(u.repeat(1, 1, self.channels), kernel)
            return y, (power(n) @ x[..., None])[..., 0] + torch.einsum("blh,hnl->bhn", u, drive[..., :n].flip(-1))

        return run

    def lower(self, program: Program, source: View, into: View, skip: Tensor) -> None:
        a, b, c = self.discrete()
        program.dense(source, into, a, b, c, skip)


class LearnedDenseStateSpace(DenseStateSpace):
    """A dense state space with A and B shared by all features; for the options see `LSSL`."""

    a: Tensor
    b: Tensor

    def __init__(self, width: int, states: int, channels: int, init: str, learn_a: bool, steps: StepSizes) -> None:
        super().__init__()
        self.features, self.states, self.channels, self.learns = width, states, channels, learn_a
        self.steps = steps
        self.weight = nn.Parameter(torch.randn(channels, width, states))  # C
        a, b = hippo.transition(init, states)
        if not learn_a:
            self.register_buffer("a", a.float())
            self.register_buffer("b", b.float())
            return
        if init != "legs":
            raise SegueError(f"a trained transition matrix starts as 'legs', not '{init}': set learn_a to false")
        # -A = P (D + T^-1) Q with diagonal P, D and Q and a tridiagonal T, initially the inverse of the cumulative sum.
        self.p, self.q, self.b = (nn.Parameter(b.float()) for _ in range(3))
        n = torch.arange(states)
        self.d = nn.Parameter(-n / (2 * n + 1))
        self.t = nn.Parameter(torch.tensor([[-1.0], [1.0], [0.0]]).repeat(1, states))  # below, on, above the diagonal

    def transition(self) -> Tensor:
        """Return the continuous-time A (N, N)."""
        if not self.learns:
            return upcast(self.a)
        below, on, above = upcast(self.t)
        t = torch.diag(below[1:], -1) + torch.diag(on) + torch.diag(above[:-1], 1)
        return -upcast(self.p)[:, None] * (torch.diag(upcast(self.d)) + torch.linalg.inv(t)) * upcast(self.q)

    def discrete(self) -> Tensors:
        a, b = (x.expand(self.features, *x.shape) for x in (self.transition(), upcast(self.b)))
        return *hippo.bilinear(a, b, self.steps()), upcast(self.weight)

    def multiply_forward(self, x: Tensor, dt: Tensor) -> Tensor:
        """Return (I + dt A) x for x (..., N) and dt (...), in O(N log N)."""
        p, q, d, (below, on, above) = (upcast(each) for each in (self.p, self.q, self.d, self.t))
        return x - dt[..., None] * p * (d * q * x + tridiagonal(below, on, above, q * x))

    def solve_backward(self, x: Tensor, dt: Tensor) -> Tensor:
        """Return (I - dt A)^-1 x = Q^-1 (T (P^-1 Q^-1 + dt D) + dt)^-1 T P^-1 x, in O(N log N)."""
        p, q, d, (below, on, above) = (upcast(each) for each in (self.p, self.q, self.d, self.t))
        x, inner = x / p, 1 / (p * q) + dt[..., None] * d
        x = on * x + below * shift(x, 1) + above * shift(x, -1)
        return tridiagonal(below * shift(inner, 1), on * inner + dt[..., None],
                           above * shift(inner, -1), x) / q

    def advance(self, size: int) -> Advance:
        if size != 1 or not self.learns:
            return super().advance(size)
        dt, b, c = self.steps(), upcast(self.b), upcast(self.weight)

        def run(u: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
            x = self.solve_backward(self.multiply_forward(x, dt / 2) + (dt * u[:, 0])[..., None] * b, dt / 2)
            return torch.einsum("bhn,mhn->bmh", x, c).flatten(1)[:, None], x

        return run

    def state_parameters(self) -> list[nn.Parameter]:
        return [p for p in self.parameters() if p is not self.weight]


class LSSL(StateSpaceMixer):
    """A dense state space on each feature.

    width: model width D. states: N. channels: outputs per feature. init: HiPPO family of A, see `hippo.FAMILIES`; only
    "legs" can be trained. learn_a, learn_dt: whether A and B, and the step sizes, are trained. dt_min, dt_max: initial
    range of the step sizes.
    """

    def __init__(self, width: int, states: int = 64, channels: int = 1, init: str = "legs", learn_a: bool = True,
                 learn_dt: bool = True, dt_min: float = 1e-3, dt_max: float = 0.1) -> None:
        steps = StepSizes(width, dt_min, dt_max, learn_dt)
        super().__init__(width, LearnedDenseStateSpace(width, states, channels, init, learn_a, steps), gated=False)
