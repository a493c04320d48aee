"""Layers of which only chosen connections exist, and of which units can stand still for good (NISPA, Gurbuz & Dovrolis
2022, arXiv 2206.09117; SHARP, 2023, arXiv 2305.18563); a network of them that can be entered half-way."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segue.errors import SegueError
from segue.mixers.layout import Layout

FIXED_TYPE = 1 << 30  # the type of what never changes: inputs and a trunk


class Masked(nn.Module):
    """Base of layers with a choice of connections: a linear map, or a causal convolution, of vectors.

    inputs: C. units: D. kernel: elements that a convolution reads, its own the last (0: a linear map); a connection is
    then a whole kernel. density: the part of the connections that exists, chosen at random; biases all do.

    weight: (D, C) or (D, C, kernel). connections: (D, C) bool. types: (D,) long, how long a unit has been at work: 0 it
    is free, 1 since this experience, and one more for every experience that ended since. frozen: (D,) bool; those units
    compute with `kept` and `kept_bias` instead of the parameters, so that no momentum or decay can move them.
    """

    connections: Tensor
    types: Tensor
    frozen: Tensor
    kept: Tensor
    kept_bias: Tensor

    def __init__(self, inputs: int, units: int, kernel: int = 0, density: float = 1.0) -> None:
        super().__init__()
        if min(inputs, units) < 1 or kernel < 0 or not 0 < density <= 1:
            raise SegueError(f"{inputs} inputs, {units} units, a kernel of {kernel} and a density of {density} make no "
                             "layer: sizes are 1 or more, a kernel 0 or more, a density above 0 and at most 1")
        self.inputs, self.units, self.kernel = inputs, units, kernel
        shape = (units, inputs, kernel) if kernel else (units, inputs)
        self.weight, self.bias = nn.Parameter(torch.zeros(shape)), nn.Parameter(torch.zeros(units))
        chosen = torch.randperm(units * inputs)[: max(1, round(density * units * inputs))]
        self.register_buffer("connections", torch.zeros(units * inputs, dtype=torch.bool))
        self.connections[chosen] = True
        self.connections = self.connections.view(units, inputs)
        self.register_buffer("types", torch.ones(units, dtype=torch.long))
        self.register_buffer("frozen", torch.zeros(units, dtype=torch.bool))
        self.register_buffer("kept", torch.zeros(shape))
        self.register_buffer("kept_bias", torch.zeros(units))
        self.renew(torch.ones(units, dtype=torch.bool))

    def effective(self) -> tuple[Tensor, Tensor]:
        """Weight and bias as they count: zero where there is no connection."""
        tail = (1,) * (self.weight.dim() - 2)
        weight = torch.where(self.frozen.view(-1, 1, *tail), self.kept, self.weight)
        return weight * self.connections.view(self.units, self.inputs, *tail), \
            torch.where(self.frozen, self.kept_bias, self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, D)."""
        weight, bias = self.effective()
        if not self.kernel:
            return F.linear(x, weight, bias)
        return F.conv1d(F.pad(x.mT, (self.kernel - 1, 0)), weight, bias).mT

    @torch.no_grad()
    def freeze(self, units: Tensor) -> None:
        """(D,) bool: these units compute the same from now on, whatever happens to the parameters."""
        new = units & ~self.frozen
        self.kept[new], self.kept_bias[new] = self.weight[new], self.bias[new]
        self.frozen |= new

    @torch.no_grad()
    def drop(self, edges: Tensor) -> int:
        """(D, C) bool: these connections are no more; how many there were."""
        gone = edges & self.connections
        self.connections &= ~gone
        return int(gone.sum())

    @torch.no_grad()
    def grow(self, count: int, targets: Tensor, generator: torch.Generator | None = None) -> int:
        """Up to `count` new connections, at random, from any source into these units (D,) bool, with weight zero; how
        many there was room for."""
        room = (~self.connections & targets[:, None]).flatten().nonzero()[:, 0]
        chosen = room[torch.randperm(len(room), generator=generator)[:count].to(room.device)]
        self.weight.view(self.units * self.inputs, -1)[chosen] = 0
        self.connections.view(-1)[chosen] = True
        return len(chosen)

    @torch.no_grad()
    def renew(self, units: Tensor, generator: torch.Generator | None = None) -> None:
        """(D,) bool: fresh weights (He et al. 2015, by the fan out) and no bias for these units."""
        fresh = nn.init.kaiming_normal_(torch.empty(self.weight.shape), mode="fan_out", nonlinearity="relu",
                                        generator=generator)
        self.weight[units], self.bias[units] = fresh[units.cpu()].to(self.weight), 0.0


class SparseNetwork(nn.Module):
    """Masked layers, a ReLU behind each, that stand on a fixed trunk: a backbone for `Classifier`.

    inputs: C, of the trunk's hidden vectors, or of the rows themselves; how many ids there are, where rows are ids.
    widths: units of the layers, the last one D.
    early: how many layers lie below E, where activations are kept and brought back (`features`, `forward_from`).
    density: of each layer's connections, one for all or one each. kernels: of each layer, see `Masked` (default: 0).
    trunk: anything with `hidden(tokens, layout)`, which is never trained (default: none).

    Free units of the last layer (type 0) give zero.
    """

    def __init__(self, inputs: int, widths: Sequence[int], early: int = 1, density: float | Sequence[float] = 0.4,
                 kernels: Sequence[int] = (), trunk: nn.Module | None = None) -> None:
        super().__init__()
        kernels = list(kernels) or [0] * len(widths)
        densities = [density] * len(widths) if isinstance(density, float | int) else list(density)
        if not widths or not 0 <= early < len(widths) or not len(kernels) == len(densities) == len(widths):
            raise SegueError(f"layers {list(widths)} with kernels {kernels} and densities {densities}, {early} of them "
                             "early, do not fit: give each of them one, and at least one that is not early")
        sizes = [inputs, *widths]
        self.layers = nn.ModuleList(Masked(*each) for each in zip(sizes, widths, kernels, densities))
        self.early, self.trunk = early, None if trunk is None else trunk.eval().requires_grad_(False)

    @property
    def masked(self) -> list[Masked]:
        return [layer for layer in self.layers if isinstance(layer, Masked)]

    def pointwise(self, first: int = 0) -> bool:
        """Whether the layers from that one on look at each element by itself."""
        return all(layer.kernel <= 1 for layer in self.masked[first:])

    def train(self, mode: bool = True) -> SparseNetwork:
        super().train(mode)
        if self.trunk is not None:
            self.trunk.eval()
        return self

    def features(self, tokens: Tensor, layout: Layout, upto: int | None = None) -> Tensor:
        """(B, T) ids or (B, T, C) vectors -> (B, T, .): what the first `upto` layers make of them (default: `early`; 0:
        the trunk alone)."""
        if layout.starts is not None and any(layer.kernel > 1 for layer in self.masked):
            raise SegueError("a convolution reads across the documents of a packed row: give each document a row")
        h = tokens if tokens.dim() == 3 else F.one_hot(tokens, self.masked[0].inputs).to(self.masked[0].weight)
        if self.trunk is not None:
            with torch.no_grad():
                h = self.trunk.hidden(tokens, layout)  # type: ignore[operator]
        for layer in self.masked[: self.early if upto is None else upto]:
            h = F.relu(layer(h))
        return h

    def forward_from(self, h: Tensor, upto: int | None = None) -> Tensor:
        """(B, T, .): what `features` gave -> (B, T, D)."""
        for layer in self.masked[self.early if upto is None else upto :]:
            h = F.relu(layer(h))
        return h * (self.masked[-1].types > 0)

    def hidden(self, tokens: Tensor, layout: Layout) -> Tensor:
        return self.forward_from(self.features(tokens, layout))

    @torch.no_grad()
    def activity(self, tokens: Tensor, layout: Layout, live: Tensor) -> list[Tensor]:
        """Of each layer (D,): every unit's activation, summed over the elements where live (B, T) is True."""
        found, h = [], self.features(tokens, layout, 0)
        for layer in self.masked:
            h = F.relu(layer(h))
            found.append(h[live].sum(0))
        return found

    def source_types(self) -> list[Tensor]:
        """Of each layer (C,): the types of what it reads."""
        first = torch.full_like(self.masked[0].connections[0], FIXED_TYPE, dtype=torch.long)
        return [first, *(layer.types for layer in self.masked[:-1])]

    @torch.no_grad()
    def choose(self, activity: Sequence[Tensor], share: float) -> None:
        """Units that were never promoted are at work (type 1) where they belong to the smallest set of their layer's
        units that makes the part `share` of its activity, and free (type 0) else."""
        for layer, made in zip(self.masked, activity):
            order = made.argsort(descending=True, stable=True)
            before = made[order].cumsum(0) - made[order]
            chosen = torch.zeros_like(layer.frozen)
            chosen[order] = (before < share * made.sum()) & (made[order] > 0)
            layer.types = torch.where(layer.types > 1, layer.types, chosen.long())

    @torch.no_grad()
    def rewire(self, generator: torch.Generator | None = None) -> int:
        """Connections from free units into units at work go, and as many grow elsewhere, into free units. So what a
        unit reads is never younger than itself. Returns how many found no room: capacity is spent."""
        missing = 0
        for layer, source in zip(self.masked, self.source_types()):
            count = layer.drop((layer.types > 0)[:, None] & (source == 0))
            missing += count - layer.grow(count, layer.types == 0, generator)
        return missing

    @torch.no_grad()
    def promote(self, early: int = 1, late: int = 2) -> None:
        """An experience is over: units at work grow older. early, late: units of those layers freeze once their type is
        above that."""
        for index, layer in enumerate(self.masked):
            layer.types = layer.types + (layer.types > 0)
            layer.freeze(layer.types > (early if index < self.early else late))
