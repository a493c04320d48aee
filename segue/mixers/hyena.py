"""Hyena: alternating gates and long convolutions, whose filters are learned functions of the lag (Poli et al. 2023,
arXiv 2302.10866)."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segue.kernels.convolution import long_convolution
from segue.mixers.base import Mixer
from segue.mixers.cache import Cache
from segue.mixers.convolution import ShortConvolution
from segue.mixers.layout import Layout
from segue.mixers.ssm import toeplitz, upcast
from segue.mixers.state import Part, Parts

if TYPE_CHECKING:
    from segue.kernels.cpu.program import Program, View

MAX_DIRECT_NODES = 8  # up to this many nodes, a direct sum over the past is cheaper than an FFT


class ImplicitFilters(nn.Module):
    """Filters (lags, width) of any length: a small network with sine activations reads the lag, and its output is
    multiplied by an exponentially decaying window.

    width: number of filters. bands: sinusoids of the lag that the network reads beside the lag itself. hidden: its
    width. frequency: initial frequency of its sines. horizon: the windows have decayed to 1/100 at between 0.3 and 1.5
    times this lag, from channel to channel.
    """

    def __init__(self, width: int, bands: int = 2, hidden: int = 64, frequency: float = 10.0,
                 horizon: int = 1024) -> None:
        super().__init__()
        self.width, self.bands, self.horizon = width, bands, horizon
        self.layers = nn.ModuleList([nn.Linear(1 + 2 * bands, hidden), nn.Linear(hidden, hidden),
                                     nn.Linear(hidden, hidden)])
        self.frequencies = nn.Parameter(torch.full((len(self.layers), hidden), frequency))
        self.last = nn.Linear(hidden, width, bias=False)

    @property
    def max_lag(self) -> int:
        """The lag from which all windows are below 2^-24, so that the filter vanishes in float32."""
        return math.ceil(1.5 * self.horizon * math.log(2**24) / math.log(100)) + 1

    def forward(self, length: int) -> Tensor:
        """Return the filters at lags 0 to length - 1, (length, width), float32 or wider."""
        last = upcast(self.last.weight)
        linspace = partial(torch.linspace, dtype=last.dtype, device=last.device)
        with torch.autocast(last.device.type, enabled=False):
            lag = linspace(0, length - 1, length)[:, None] / self.horizon
            waves = 2 * math.pi * lag * linspace(1e-4, max(self.bands - 1, 1), self.bands)
            y = torch.cat([lag, waves.cos(), -waves.sin()], 1)
            for layer, frequency in zip(self.layers, self.frequencies):
                assert isinstance(layer, nn.Linear)
                y = torch.sin(frequency * F.linear(y, upcast(layer.weight), upcast(layer.bias)))
            rates = math.log(100) / linspace(1.5, 0.3, self.width)
            return F.linear(y, last) * (-rates * lag).exp()


class Hyena(Mixer):
    """z = v; z = x_n * (h_n * z) for each of `order` gates x_n and filters h_n; v and x_n are short convolutions of the
    input. There is no state of constant size: decoding caches the convolutions' inputs, at O(T) per token.

    width: model width D. order: number of gates, and of filters. taps: of the short convolution. horizon, hidden: see
    `ImplicitFilters`.
    """

    constant_state = False
    resettable = False
    cost = "T log T"
    linear_in_values = True

    def __init__(self, width: int, order: int = 2, taps: int = 3, horizon: int = 1024, hidden: int = 64) -> None:
        super().__init__(width)
        self.order = order
        self.into = nn.Linear(width, (order + 1) * width)
        self.convolution = ShortConvolution((order + 1) * width, taps)
        self.filters = ImplicitFilters(order * width, hidden=hidden, horizon=horizon)
        self.skip = nn.Parameter(torch.randn(order * width))
        self.out = nn.Linear(width, width)

    def state_parameters(self) -> list[nn.Parameter]:
        """The parameters of the filter network, which is sensitive: its sines multiply its weights by `frequency`."""
        return list(self.filters.parameters())

    def parts(self, batch: int, like: Tensor, history: int) -> dict[str, Part]:
        past = like.new_zeros(batch, self.order, 0, self.width)
        return {**super().parts(batch, like, history), "past": Cache(past, past[..., :0], None, history)}

    def kernels(self, length: int) -> tuple[Tensor, ...]:
        """Return the `order` filters, each (L, D), with the skip connection added at lag 0."""
        taps = self.filters(length)
        return (taps + F.pad(self.skip.to(taps.dtype)[None], (0, 0, 0, length - 1))).chunk(self.order, 1)

    def _gates(self, x: Tensor, layout: Layout, parts: Parts) -> tuple[Tensor, ...]:
        """Return the gates and, last, the values, each (B, N, D)."""
        u = self.convolution((self.into(x),), layout, parts.get("convolution"))
        return u.chunk(self.order + 1, -1)

    def run(self, x: Tensor, layout: Layout, parts: Parts) -> Tensor:
        *gates, z = self._gates(x, layout, parts)
        cache = parts.get("past")
        assert cache is None or isinstance(cache, Cache)
        before = 0 if cache is None else cache.longest
        conv_inputs = []
        for index, kernel in enumerate(self.kernels(max(before + x.shape[1], 1))):
            conv_inputs.append(z)
            mixed = convolve_call(z, kernel, layout)
            if cache is not None and before:
                mixed = mixed + convolve_past(cache, index, kernel, layout).to(z.dtype)
            z = gates[index] * mixed
        if cache is not None:
            past = torch.stack(conv_inputs, 1)
            cache.append(past, past[..., :0], layout)
        return self.out(z)

    def lower(self, program: Program, source: View, into: View) -> None:
        width = self.width
        raw, u = (program.register(name, (self.order + 1) * width) for name in ("raw", "u"))
        program.linear(source, raw, self.into.weight, self.into.bias)
        program.convolve(raw, u, self.convolution.weight, self.convolution.bias, activation="none")
        z = u[self.order * width :]
        for index, taps in enumerate(self.kernels(self.filters.max_lag)):
            y = program.register(f"z{index % 2}", width)
            program.filter(z, y, taps)
            program.multiply(y, u[index * width : (index + 1) * width])
            z = y
        program.linear(z, into, self.out.weight, self.out.bias, add=True)

    def _gates_of(self, x: Tensor) -> tuple[Tensor, ...]:
        return self._gates(x, Layout.of(x), {})

    def matrix(self, x: Tensor) -> Tensor:
        """(B, D, T, T), one head per channel: the product of alternating filters and gates."""
        n = x.shape[1]
        *gates, _ = self._gates_of(x)
        matrix = torch.eye(n, dtype=x.dtype, device=x.device).expand(len(x), self.width, n, n)
        for gate, kernel in zip(gates, self.kernels(max(n, 1))):
            matrix = gate.transpose(1, 2)[..., None] * (toeplitz(kernel[:n]).to(x.dtype) @ matrix)
        return matrix

    def values(self, x: Tensor) -> Tensor:
        return self._gates_of(x)[-1].transpose(1, 2)[..., None]

    def output(self, mixed: Tensor, x: Tensor) -> Tensor:
        return self.out(mixed[..., 0].transpose(1, 2))


def convolve_call(z: Tensor, kernel: Tensor, layout: Layout) -> Tensor:
    """Convolve the nodes of this call, z (B, N, D), with taps (L, D) along their paths: a chain or a draft's tree."""
    if layout.parents is None or not layout.parents.numel():
        return long_convolution(z, kernel)
    depth = layout.follows.sum(-1) - 1
    taps = kernel[(depth[:, :, None] - depth[:, None]).clamp(min=0)]  # (B, N, N, D)
    return torch.einsum("bqkd,bkd->bqd", taps.to(z.dtype) * layout.follows[..., None], z)


def convolve_past(cache: Cache, index: int, kernel: Tensor, layout: Layout) -> Tensor:
    """Return what the cached nodes contribute to each node of this call, (B, N, D); it depends on a node's depth."""
    before, depth = cache.longest, layout.follows.sum(-1) - 1
    past = cache.k[:, index, :before].to(kernel.dtype)
    if not cache.uniform:  # align the rows at their ends
        source = torch.arange(before, device=past.device) - (before - cache.lengths)[:, None]
        past = past.gather(1, source.clamp(min=0)[..., None].expand_as(past)) * (source >= 0)[..., None]
    deepest = int(depth.max()) + 1 if depth.numel() else 0
    if deepest <= MAX_DIRECT_NODES:
        levels = [torch.einsum("btd,td->bd", past, kernel[level + 1 : level + 1 + before].flip(0))
                  for level in range(deepest)]
        contribution = torch.stack(levels, 1) if levels else past[:, :0]
    else:
        contribution = long_convolution(F.pad(past, (0, 0, 0, deepest)), kernel)[:, before:]
    return contribution.gather(1, depth[..., None].expand(len(contribution), -1, contribution.shape[2]))
