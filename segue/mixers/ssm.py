"""What linear time-invariant state spaces share: x' = A x + B u and y = C x + D u on each feature.

Sampled every dt, such a system is both a recurrence, used for decoding, and a long convolution, used for training.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segue.errors import SegueError
from segue.kernels.convolution import long_convolution
from segue.mixers.base import Mixer
from segue.mixers.layout import Layout
from segue.mixers.state import Carry, Parts, Recurrence

if TYPE_CHECKING:
    from segue.kernels.cpu.program import Program, View


class StepSizes(nn.Module):
    """One step size dt per feature, initialised log-uniformly in [dt_min, dt_max]; a feature looks back about 1 / dt
    elements.

    learn: whether dt is trained.
    """

    log: nn.Parameter  # or a buffer, where it is not trained

    def __init__(self, width: int, dt_min: float = 1e-3, dt_max: float = 0.1, learn: bool = True) -> None:
        super().__init__()
        log = math.log(dt_min) + (math.log(dt_max) - math.log(dt_min)) * torch.rand(width)
        if learn:
            self.log = nn.Parameter(log)
        else:
            self.register_buffer("log", log)

    def forward(self) -> Tensor:
        """Return dt (H,), float32 or wider."""
        return upcast(self.log).exp()


def initial_step_bias(count: int) -> Tensor:
    """(count,): biases whose softplus, the step sizes at the start, is log-uniform in [0.001, 0.1] (Mamba)."""
    step = torch.exp(torch.rand(count) * (math.log(0.1) - math.log(0.001)) + math.log(0.001))
    return step + torch.log(-torch.expm1(-step))


@torch.no_grad()
def scale_step_sizes(model: nn.Module, rate: float) -> None:
    """Adapt `model`, in place, to signals with `rate` times fewer samples per second: multiply its step sizes by it."""
    for module in model.modules():
        if isinstance(module, StepSizes):
            module.log.add_(math.log(rate))


def upcast(x: Tensor) -> Tensor:
    """Return x in float32, or as it is where it is wider: decays near one do not survive bfloat16."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class StateSpace(Recurrence):
    """A recurrence that is also a convolution. Inputs u (B, N, H); outputs (B, N, channels * H).

    A subclass implements `initial`, `kernel` and `scan`.
    """

    channels = 1  # outputs per feature

    def kernel(self, length: int) -> Tensor:
        """Return the impulse response over `length` nodes: (L, channels * H)."""
        raise NotImplementedError

    def forward(self, inputs: tuple[Tensor, ...], layout: Layout, carry: Carry | None = None) -> Tensor:
        if carry is not None or layout.parents is not None:
            return super().forward(inputs, layout, carry)
        u = inputs[0].repeat(1, 1, self.channels)
        if layout.starts is not None:
            return self._forward_documents(u, layout.starts)
        return long_convolution(u, self.kernel(u.shape[1]))

    def _forward_documents(self, u: Tensor, starts: Tensor) -> Tensor:
        """Convolve each document by itself. A convolution cannot reset within a row, so documents become rows of their
        own, batched with others of similar length (up to a factor of two)."""
        index = torch.arange(u.shape[1], device=u.device)
        begins = starts | (index == 0)
        place = (index - torch.where(begins, index, 0).cummax(1).values).flatten()  # of an element in its document
        document = begins.flatten().cumsum(0) - 1
        lengths = torch.bincount(document)
        kernel, flat, y = self.kernel(int(lengths.max()) if len(lengths) else 0), u.flatten(0, 1), torch.zeros_like(u)
        room = 1
        while u.numel() and room < 2 * int(lengths.max()):
            chosen = (lengths > room // 2) & (lengths <= room)
            which = torch.nonzero(chosen[document])[:, 0]
            at = (chosen.cumsum(0)[document[which]] - 1, place[which])
            rows = u.new_zeros(int(chosen.sum()), room, u.shape[2]).index_put(at, flat[which])
            y = y.flatten(0, 1).index_put((which,), long_convolution(rows, kernel)[at]).view_as(u)
            room *= 2
        return y

    def state_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of A, B and dt; C is trained like any other weight."""
        raise NotImplementedError

    def lower(self, program: Program, source: View, into: View, skip: Tensor) -> None:
        """Emit the recurrence, plus skip * source, for the compiled CPU engine."""
        raise SegueError(f"{type(self).__name__} has no form for the compiled CPU engine")


class StateSpaceMixer(Mixer):
    """A state space on each feature, a skip connection D u, a GELU, and a linear map that mixes the features.

    recurrence: the state space. gated: whether the linear map ends in a gated linear unit.
    """

    linear_in_values = True

    def __init__(self, width: int, recurrence: StateSpace, gated: bool = True) -> None:
        super().__init__(width)
        self.recurrence, self.gated = recurrence, gated
        self.skip = nn.Parameter(torch.randn(recurrence.channels * width))
        self.out = nn.Linear(recurrence.channels * width, width * (1 + gated))

    def state_parameters(self) -> list[nn.Parameter]:
        return self.recurrence.state_parameters()

    def inputs(self, x: Tensor, layout: Layout, parts: Parts) -> Tensor:
        """Return the input of the state space, (B, N, F)."""
        return x

    def run(self, x: Tensor, layout: Layout, parts: Parts) -> Tensor:
        u = self.inputs(x, layout, parts)
        return self._finish(self.recurrence((u,), layout, parts.get("recurrence")), x)

    def _finish(self, y: Tensor, x: Tensor) -> Tensor:
        mixed = self.out(F.gelu(y + self.skip * x.repeat(1, 1, self.recurrence.channels)))
        return F.glu(mixed, -1) if self.gated else mixed

    def lower(self, program: Program, source: View, into: View) -> None:
        y, mixed = program.register("y", self.out.in_features), program.register("mixed", self.width)
        self.recurrence.lower(program, source, y, self.skip)
        program.map(y, y, "gelu")
        # The engine's gated maps take the gate first.
        weight, bias = (torch.cat([x[self.width :], x[: self.width]]) for x in (self.out.weight, self.out.bias))
        program.linear(y, mixed, weight, bias, activation="sigmoid" if self.gated else "none", gated=self.gated)
        program.add(mixed, into)

    def matrix(self, x: Tensor) -> Tensor:
        """(B, F, T, T), one head per feature: the Toeplitz matrix of its kernel, the same for every input."""
        return toeplitz(self.recurrence.kernel(x.shape[1])).to(x.dtype).expand(x.shape[0], -1, -1, -1)

    def values(self, x: Tensor) -> Tensor:
        u = self.inputs(x, Layout.of(x), {})
        return u.repeat(1, 1, self.recurrence.channels).transpose(1, 2)[..., None]

    def output(self, mixed: Tensor, x: Tensor) -> Tensor:
        return self._finish(mixed[..., 0].transpose(1, 2), x)


def toeplitz(kernel: Tensor) -> Tensor:
    """Turn kernels (L, H) into matrices (H, L, L) with kernel[i - j] at (i, j) and zeros above the diagonal."""
    index = torch.arange(kernel.shape[0], device=kernel.device)
    return kernel.T[:, (index[:, None] - index).clamp(min=0)].tril()
