"""Exponential moving averages, several per channel (the multi-dimensional damped average of Mega: Ma et al. 2022, arXiv
2209.10655; as position encodings on a grid: Qin et al. 2023, arXiv 2305.04749)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segue.kernels.convolution import long_convolution
from segue.kernels.scan import linear_scan
from segue.mixers.layout import length_mask
from segue.mixers.state import Recurrence, Tensors

if TYPE_CHECKING:
    from segue.kernels.cpu.program import Program, View


class ExponentialAverage(Recurrence):
    """h_t = a h_{t-1} + (1 - a) x_t for each channel and each of its decays a; y_t is a weighted sum of a channel's h.

    width: D. states: S decays per channel. Inputs: x (B, N, D). State: (B, D, S), float32 or wider: a slow decay does
    not survive bfloat16.
    """

    def __init__(self, width: int, states: int = 4) -> None:
        super().__init__()
        # Initial time constants spread over about 1.4 to 64 elements, within each channel or, if S = 1, over channels.
        spread = torch.linspace(0.0, 4.1, states).repeat(width, 1) if states > 1 else torch.linspace(0.0, 4.1, width)
        self.rate = nn.Parameter(spread.view(width, states))  # a = sigmoid(rate)
        self.weight = nn.Parameter(torch.randn(width, states) / states**0.5)

    def initial(self, batch: int, like: Tensor) -> Tensors:
        return (like.new_zeros(batch, *self.rate.shape, dtype=torch.promote_types(like.dtype, torch.float32)),)

    def average_along(self, x: Tensor, axis: int = 1) -> Tensor:
        """Average along one axis of x (B, ..., D), each line independently and without a state, by one convolution, or
        one scan where a channel has a single decay."""
        wide = torch.promote_types(x.dtype, torch.float32)
        rate, weight = self.rate.to(wide), self.weight.to(wide)
        if rate.shape[1] == 1 and x.numel():
            lines = x.to(wide).flatten(0, axis - 1).flatten(2)  # (lines, N, later axes and D)
            repeats = lines.shape[2] // len(rate)
            decay, gain = (y[:, 0].repeat(repeats) for y in (torch.sigmoid(rate), torch.sigmoid(-rate) * weight))
            return linear_scan(decay[None, None], lines * gain, torch.zeros_like(lines[:, 0])).view_as(x).to(x.dtype)
        lines = x.movedim(axis, -2)
        kernel = (self._times_input_weight(self._powers(x.shape[axis], wide)) * weight).sum(-1)
        return long_convolution(lines.flatten(0, -3), kernel).view_as(lines).movedim(-2, axis)

    def _powers(self, n: int, dtype: torch.dtype) -> Tensor:
        """Return the decays to the powers 0, 1, ... N - 1: (N, D, S)."""
        steps = torch.arange(n, dtype=dtype, device=self.rate.device)
        return (F.logsigmoid(self.rate.to(dtype)) * steps[:, None, None]).exp()

    def _times_input_weight(self, power: Tensor) -> Tensor:
        """Return `power` times 1 - a, the weight of a new input in the average."""
        return power * torch.sigmoid(-self.rate.to(power.dtype))

    def scan(self, inputs: Tensors, state: Tensors, starts: Tensor | None = None,
             lengths: Tensor | None = None) -> tuple[Tensor, Tensors]:
        (x,), (h,) = inputs, state
        n, rate, weight = x.shape[1], self.rate.to(h.dtype), self.weight.to(h.dtype)
        if not x.numel():
            return x, state
        if n > 1 and starts is None and lengths is None:  # the same decays at all nodes: one convolution
            power = self._powers(n + 1, h.dtype)
            before = torch.einsum("bds,nds->bnd", h, power[1:] * weight)
            gains = self._times_input_weight(power[:-1].flip(0))
            final = h * power[-1] + torch.einsum("bnd,nds->bds", x.to(h.dtype), gains)
            return self.average_along(x) + before.to(x.dtype), (final,)
        a = torch.sigmoid(rate).expand(x.shape[0], n, *rate.shape)
        b = torch.sigmoid(-rate) * x.to(h.dtype)[..., None]
        if lengths is not None:
            live = length_mask(lengths, n)
            starts = None if starts is None else starts & live
            a, b = a.where(live[..., None, None], 1.0), b * live[..., None, None]
        if starts is not None:
            a = a.masked_fill(starts[..., None, None], 0.0)
        states = linear_scan(a, b, h)
        return (states * weight).sum(-1).to(x.dtype), (states[:, -1],)

    def lower(self, program: Program, source: View, into: View, skip: Tensor | None = None) -> None:
        """Emit into = the averages of `source`, plus skip * source, for the compiled CPU engine."""
        wide = torch.promote_types(self.rate.dtype, torch.float32)
        decay, weight = (torch.complex(x, torch.zeros_like(x)) for x in (
            torch.sigmoid(self.rate.to(wide)), self._times_input_weight(self.weight.to(wide))))
        program.modes(source, into, decay, weight, skip)
