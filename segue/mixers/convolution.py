"""Functions of a few neighbouring nodes: the short causal convolution in front of recurrent mixers, products of the
last inputs, and a centred convolution."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn

from segue.kernels.convolution import short_convolution, tap_windows
from segue.mixers.layout import Layout, gather_nodes
from segue.mixers.state import Recurrence, Tensors


class WindowRecurrence(Recurrence):
    """A function of the last `taps` inputs of each channel, with the last taps - 1 inputs as its state.

    Inputs before the beginning of a document count as zero. A subclass implements `combine`.
    """

    learnable_tensors = ()

    width: int
    taps: int

    def combine(self, x: Tensor, window: Tensor, starts: Tensor | None) -> Tensor:
        """Return the outputs (B, N, ...) of inputs x (B, N, D) that follow those in `window` (B, taps - 1, D)."""
        raise NotImplementedError

    def initial(self, batch: int, like: Tensor) -> Tensors:
        return (like.new_zeros(batch, self.taps - 1, self.width),)

    def scan(self, inputs: Tensors, state: Tensors, starts: Tensor | None = None,
             lengths: Tensor | None = None) -> tuple[Tensor, Tensors]:
        (x,), (window,) = inputs, state
        return self.combine(x, window, starts), (self._next_window(x, window, starts, lengths),)

    def state_factors(self, inputs: Tensors) -> Tensors | None:
        return (inputs[0].new_zeros(()),) if inputs[0].shape[1] >= self.taps - 1 else None

    def _next_window(self, x: Tensor, window: Tensor, starts: Tensor | None, lengths: Tensor | None) -> Tensor:
        """Return the last taps - 1 inputs, those of earlier documents zeroed: the window of the next node."""
        kept = self.taps - 1
        if lengths is None:  # only the end matters
            begin = max(x.shape[1] - kept, 0)
            x, starts = x[:, begin:], None if starts is None else starts[:, begin:]
            lengths = torch.full(x.shape[:1], x.shape[1], device=x.device)
        index = lengths[:, None] + torch.arange(kept, device=x.device)
        last = gather_nodes(torch.cat([window, x], 1), index)
        if starts is None or not kept:
            return last
        document = nn.functional.pad(starts.long().cumsum(1), (kept, 0))
        end = document.gather(1, (lengths[:, None] + kept - 1).clamp(min=0))
        return last * (document.gather(1, index) == end)[..., None]


class ShortConvolution(WindowRecurrence):
    """A depthwise causal convolution over `taps` nodes, followed by a SiLU if `silu`.

    weight: (D, taps), the last tap for the node itself. bias: (D,).
    """

    def __init__(self, width: int, taps: int = 4, silu: bool = False) -> None:
        super().__init__()
        self.width, self.taps, self.silu = width, taps, silu
        bound = 1 / math.sqrt(taps)
        self.weight = nn.Parameter(torch.empty(width, taps).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(width))

    def combine(self, x: Tensor, window: Tensor, starts: Tensor | None) -> Tensor:
        return short_convolution(x, self.weight, self.bias, window, starts, self.silu)


class InputProducts(WindowRecurrence):
    """Products of the last 1, 2, ... `taps` inputs of each of `width` channels: outputs (B, N, taps * D)."""

    def __init__(self, width: int, taps: int) -> None:
        super().__init__()
        self.width, self.taps = width, taps

    def combine(self, x: Tensor, window: Tensor, starts: Tensor | None) -> Tensor:
        return torch.cat([*itertools.accumulate(reversed(tap_windows(x, window, starts)), torch.mul)], -1)


class CentredConvolution(nn.Module):
    """A depthwise convolution over `taps` nodes of a document, `ahead` of them after the node itself (default: half).

    weight: (D, taps), from the node furthest back to the one furthest ahead. bias: (D,), if `bias`.
    """

    def __init__(self, width: int, taps: int, ahead: int | None = None, bias: bool = False) -> None:
        super().__init__()
        bound = 1 / math.sqrt(taps)
        self.weight = nn.Parameter(torch.empty(width, taps).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None
        self.ahead = taps // 2 if ahead is None else ahead

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        n, taps, segments = x.shape[1], self.weight.shape[1], layout.segments
        around = (taps - 1 - self.ahead, self.ahead)
        line = nn.functional.pad(x, (0, 0, *around))
        document = None if segments is None else nn.functional.pad(segments, around, value=-1)
        y = torch.zeros_like(x)
        for tap in range(taps):
            seen = line[:, tap : tap + n]
            if document is not None and segments is not None:
                seen = seen * (document[:, tap : tap + n] == segments)[..., None]
            y = y + seen * self.weight[:, tap]
        return y if self.bias is None else y + self.bias
