"""Functions of a few neighbours: the causal convolution that recurrent mixers put before their state, products of the
last inputs, and a convolution that looks both ways."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn

from segue.kernels.convolution import short_convolution
from segue.kernels.scan import compiles
from segue.mixers.state import Layout, Recurrence, Tensors, gather_nodes


class Window(Recurrence):
    """What is made of the last `taps` inputs of each node, channel by channel; its state is the last taps - 1 of them.

    Before the beginning, and before a document's, inputs are nought.
    """

    width: int
    taps: int

    def combine(self, seen: list[Tensor]) -> Tensor:
        """The inputs (B, N, D) as each node sees them, from taps - 1 nodes before to its own -> outputs (B, N, ...)."""
        raise NotImplementedError

    def initial(self, batch: int, like: Tensor) -> Tensors:
        return (like.new_zeros(batch, self.taps - 1, self.width),)

    def scan(self, inputs: Tensors, state: Tensors, starts: Tensor | None = None,
             lengths: Tensor | None = None) -> tuple[Tensor, Tensors]:
        (x,), (window,) = inputs, state
        n, taps = x.shape[1], self.taps
        line = torch.cat([window, x], 1)
        document = None if starts is None else nn.functional.pad(starts.long().cumsum(1), (taps - 1, 0))
        seen = [line[:, tap : tap + n] for tap in range(taps)]
        if document is not None:
            seen = [inputs * (document[:, tap : tap + n] == document[:, taps - 1 :])[..., None]
                    for tap, inputs in enumerate(seen)]
        return self.combine(seen), (self._last(line, document, lengths, n),)

    def _last(self, line: Tensor, document: Tensor | None, lengths: Tensor | None, n: int) -> Tensor:
        """The state after n nodes, or `lengths` (B,). line: (B, taps - 1 + n, D), of which `document` (alike, without
        D) says to what it belongs."""
        taps = self.taps
        if lengths is None:
            last, end = line[:, n:], None if document is None else document[:, -1:]
        else:
            last = gather_nodes(line, lengths[:, None] + torch.arange(taps - 1, device=line.device))
            end = None if document is None else document.gather(1, (lengths[:, None] + taps - 2).clamp(min=0))
        if document is not None and end is not None:
            index = torch.arange(taps - 1, device=line.device) + (n if lengths is None else lengths[:, None])
            same = document.gather(1, index.expand(line.shape[0], -1)) == end
            last = last * same[..., None]
        return last


class ShortConvolution(Window):
    """Depthwise causal convolution over `taps` nodes.

    weight: (D, taps), the last tap weighs the node itself. bias: (D,).
    """

    def __init__(self, width: int, taps: int = 4) -> None:
        super().__init__()
        self.width, self.taps = width, taps
        bound = 1 / math.sqrt(taps)
        self.weight = nn.Parameter(torch.empty(width, taps).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(width))

    def scan(self, inputs: Tensors, state: Tensors, starts: Tensor | None = None,
             lengths: Tensor | None = None) -> tuple[Tensor, Tensors]:
        (x,), (window,), few = inputs, state, self.taps - 1
        if lengths is not None or x.shape[1] < few or not compiles(x, window, self.weight):
            return super().scan(inputs, state, starts, lengths)
        y = short_convolution(x, window, self.weight, self.bias, starts)
        line = torch.cat([window, x[:, x.shape[1] - few :]], 1)
        document = None if starts is None else nn.functional.pad(starts[:, -few:].long().cumsum(1), (few, 0))
        return y, (self._last(line, document, None, few),)

    def combine(self, seen: list[Tensor]) -> Tensor:
        y = self.bias.expand_as(seen[0])
        for tap, inputs in enumerate(seen):
            y = y + inputs * self.weight[:, tap]
        return y


class Products(Window):
    """Products of the last 1, 2, ... `taps` inputs of each of `width` channels: outputs (B, N, taps * D)."""

    def __init__(self, width: int, taps: int) -> None:
        super().__init__()
        self.width, self.taps = width, taps

    def combine(self, seen: list[Tensor]) -> Tensor:
        return torch.cat([*itertools.accumulate(reversed(seen), torch.mul)], -1)


class CentredConvolution(nn.Module):
    """Depthwise convolution over `taps` nodes of a document, `ahead` of them after the node itself (default: half).

    weight: (D, taps), from the node furthest back to the one furthest ahead.
    """

    def __init__(self, width: int, taps: int, ahead: int | None = None) -> None:
        super().__init__()
        bound = 1 / math.sqrt(taps)
        self.weight = nn.Parameter(torch.empty(width, taps).uniform_(-bound, bound))
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
        return y
