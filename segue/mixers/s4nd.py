"""S4ND: diagonal state spaces over images and video, one along each axis (Nguyen et al. 2022, arXiv 2210.06583)."""

from __future__ import annotations

from torch import Tensor, nn

from segue.errors import SegueError
from segue.kernels.convolution import long_convolution
from segue.kernels.scan import diagonal_kernel
from segue.mixers.layout import Layout
from segue.mixers.s4d import Modes
from segue.mixers.ssm import StateSpace, StateSpaceMixer, toeplitz
from segue.mixers.state import Carry, Tensors


class SeparableStateSpace(StateSpace):
    """The outer product of one two-sided kernel per axis; each is the sum of a causal and an anti-causal kernel.

    pairs: per axis, the modes of the kernel that looks back and of the one that looks ahead.
    """

    def __init__(self, pairs: list[tuple[Modes, Modes]]) -> None:
        super().__init__()
        self.modes = nn.ModuleList(nn.ModuleList(pair) for pair in pairs)

    def kernels(self, axis: int, length: int) -> list[Tensor]:
        """Return the two kernels (L, H) along an axis: over the elements before, and after."""
        pair = self.modes[axis]
        assert isinstance(pair, nn.ModuleList)
        return [diagonal_kernel(*modes.discrete(), length) for modes in pair if isinstance(modes, Modes)]

    def forward(self, inputs: Tensors, layout: Layout, carry: Carry | None = None) -> Tensor:
        (x,), grid = inputs, layout.grid or inputs[0].shape[1:2]
        grid = (1,) * (len(self.modes) - len(grid)) + tuple(grid)
        y = x.unflatten(1, grid)
        for axis, length in enumerate(grid if x.numel() else ()):
            lines = y.movedim(axis + 1, -2)
            mixed = long_convolution(lines.flatten(0, -3), *self.kernels(axis, length))
            y = mixed.view(lines.shape).movedim(-2, axis + 1)
        return y.flatten(1, -2)

    def state_parameters(self) -> list[nn.Parameter]:
        return [p for module in self.modules() if isinstance(module, Modes) for p in module.state_parameters()]


class S4ND(StateSpaceMixer):
    """A bidirectional diagonal state space on each feature along each axis of a grid, computed by FFTs.

    width: model width D. axes: the most axes a grid may have, 1 or more; a grid with fewer is given leading axes of
        length one (an image is a video of one frame). For the other options see `Modes`.
    """

    causal = False
    resettable = False

    def __init__(self, width: int, axes: int = 2, states: int = 64, init: str = "legs", rule: str = "zoh",
                 dt_min: float = 1e-3, dt_max: float = 0.1, bandlimit: float = 0.0) -> None:
        if axes < 1:
            raise SegueError(f"{axes} axes: give one or more")
        pairs = [tuple(Modes(width, states, init, rule, dt_min, dt_max, bandlimit) for _ in range(2))
                 for _ in range(axes)]
        super().__init__(width, SeparableStateSpace(pairs))  # type: ignore[arg-type]
        self.axes = axes

    def matrix(self, x: Tensor) -> Tensor:
        """(B, D, T, T) for elements that lie along the last axis alone."""
        *others, (ahead, back) = [self.recurrence.kernels(axis, length)  # type: ignore[operator]
                                  for axis, length in enumerate([1] * (self.axes - 1) + [x.shape[1]])]
        matrix = toeplitz(ahead) + toeplitz(back).mT
        for kernels in others:
            matrix = matrix * (kernels[0] + kernels[1])[0, :, None, None]
        return matrix.to(x.dtype).expand(x.shape[0], -1, -1, -1)
