"""Short convolutions: the causal one that recurrent mixers put before their state, and one that looks both ways."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from segue.mixers.state import Layout, Recurrence, Tensors, gather_nodes


class ShortConvolution(Recurrence):
    """Depthwise causal convolution over `taps` nodes; its state is the last taps - 1 inputs.

    weight: (D, taps), the last tap weighs the node itself. bias: (D,).
    """

    def __init__(self, width: int, taps: int = 4) -> None:
        super().__init__()
        bound = 1 / math.sqrt(taps)
        self.weight = nn.Parameter(torch.empty(width, taps).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(width))

    def initial(self, batch: int, like: Tensor) -> Tensors:
        return (like.new_zeros(batch, self.weight.shape[1] - 1, self.weight.shape[0]),)

    def scan(self, inputs: Tensors, state: Tensors, starts: Tensor | None = None,
             lengths: Tensor | None = None) -> tuple[Tensor, Tensors]:
        (x,), (window,) = inputs, state
        n, taps = x.shape[1], self.weight.shape[1]
        line = torch.cat([window, x], 1)
        document = None if starts is None else nn.functional.pad(starts.long().cumsum(1), (taps - 1, 0))
        y = self.bias.expand_as(x)
        for tap in range(taps):
            seen = line[:, tap : tap + n]
            if document is not None:
                seen = seen * (document[:, tap : tap + n] == document[:, taps - 1 :])[..., None]
            y = y + seen * self.weight[:, tap]
        if lengths is None:
            last, end = line[:, n:], None if document is None else document[:, -1:]
        else:
            last = gather_nodes(line, lengths[:, None] + torch.arange(taps - 1, device=x.device))
            end = None if document is None else document.gather(1, (lengths[:, None] + taps - 2).clamp(min=0))
        if document is not None and end is not None:
            index = torch.arange(taps - 1, device=x.device) + (n if lengths is None else lengths[:, None])
            same = document.gather(1, index.expand(x.shape[0], -1)) == end
            last = last * same[..., None]
        return y, (last,)


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
