"""Sparse layers with a mask of connections and units that can be frozen (NISPA, Gurbuz & Dovrolis 2022, arXiv
2206.09117; SHARP, 2023, arXiv 2305.18563), and a network of them that can be run from an intermediate layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segue.errors import SegueError
from segue.mixers.layout import Layout

FIXED_TYPE = 1 << 30  # the type of units that never change: inputs and the trunk's outputs


class Masked(nn.Module):
    """A linear map, or a causal convolution, with a mask of connections.

    inputs: C. units: D. kernel: elements that a convolution reads, the current one last (0: a linear map); a connection
    is then a whole kernel. density: fraction of the connections that exist, chosen at random; all biases exist.

    weight: (D, C) or (D, C, kernel). connections: (D, C) bool. types: (D,) long, the age of a unit: 0 if free, 1 if in
    use since this experience, plus one for every experience that ended since. frozen: (D,) bool; these units compute
    with `kept` and `kept_bias` instead of the parameters, so that neither momentum nor weight decay can move them.
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
        """Return the effective weight and bias: frozen units' own, zero where there is no connection."""
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
        """Freeze units (D,) bool: whatever happens to the parameters, their weights stay as they are now."""
        newly_frozen = units & ~self.frozen
        self.kept[newly_frozen], self.kept_bias[newly_frozen] = self.weight[newly_frozen], self.bias[newly_frozen]
        self.frozen |= newly_frozen

    @torch.no_grad()
    def drop(self, edges: Tensor) -> int:
        """Remove connections (D, C) bool, and return how many of them existed."""
        removed = edges & self.connections
        self.connections &= ~removed
        return int(removed.sum())

    @torch.no_grad()
    def grow(self, count: int, targets: Tensor, generator: torch.Generator | None = None) -> int:
        """Add up to `count` random connections into the units `targets` (D,) bool, with weight zero, and return how
        many there was room for."""
        room = (~self.connections & targets[:, None]).flatten().nonzero()[:, 0]
        chosen = room[torch.randperm(len(room), generator=generator)[:count].to(room.device)]
        self.weight.view(self.units * self.inputs, -1)[chosen] = 0
        self.connections.view(-1)[chosen] = True
        return len(chosen)

    @torch.no_grad()
    def renew(self, units: Tensor, generator: torch.Generator | None = None) -> None:
        """Reinitialise units (D,) bool: He weights (He et al. 2015, fan-out mode) and zero biases."""
        initial = nn.init.kaiming_normal_(torch.empty(self.weight.shape), mode="fan_out", nonlinearity="relu",
                                          generator=generator)
        self.weight[units], self.bias[units] = initial[units.cpu()].to(self.weight), 0.0


class SparseNetwork(nn.Module):
    """Masked layers, each followed by a ReLU, on top of a frozen trunk: a backbone for `Classifier`.

    inputs: C, width of the trunk's hidden vectors, or of the rows themselves; for rows of ids, the number of ids.
    widths: units of the layers, the last one D.
    early: number of layers below the point where activations are stored and replayed (`features`, `forward_from`).
    density: of each layer's connections, one for all or one each. kernels: of each layer, see `Masked` (default: 0).
    trunk: anything with `hidden(tokens, layout)`; it is never trained (default: none).

    Free units of the last layer (type 0) output zero.
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
        self.layers = nn.ModuleList(Masked(*arguments) for arguments in zip(sizes, widths, kernels, densities))
        self.early, self.trunk = early, None if trunk is None else trunk.eval().requires_grad_(False)

    @property
    def masked(self) -> list[Masked]:
        """The layers, typed."""
        return [layer for layer in self.layers if isinstance(layer, Masked)]

    def pointwise(self, first: int = 0) -> bool:
        """Whether the layers from number `first` on treat each element independently."""
        return all(layer.kernel <= 1 for layer in self.masked[first:])

    def train(self, mode: bool = True) -> SparseNetwork:
        super().train(mode)
        if self.trunk is not None:
            self.trunk.eval()
        return self

    def features(self, tokens: Tensor, layout: Layout, upto: int | None = None) -> Tensor:
        """Run the trunk and the first `upto` layers (default: `early`; 0: the trunk alone) on ids (B, T) or vectors
        (B, T, C): (B, T, units)."""
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
        """Run the remaining layers on the output of `features`, with the same `upto`: (B, T, D)."""
        for layer in self.masked[self.early if upto is None else upto :]:
            h = F.relu(layer(h))
        return h * (self.masked[-1].types > 0)

    def hidden(self, tokens: Tensor, layout: Layout) -> Tensor:
        return self.forward_from(self.features(tokens, layout))

    @torch.no_grad()
    def activity(self, tokens: Tensor, layout: Layout, live: Tensor) -> list[Tensor]:
        """Return each layer's activations (D,), summed over the elements where live (B, T) is True."""
        sums, h = [], self.features(tokens, layout, 0)
        for layer in self.masked:
            h = F.relu(layer(h))
            sums.append(h[live].sum(0))
        return sums

    def source_types(self) -> list[Tensor]:
        """Return, for each layer, the types (C,) of its inputs."""
        first = torch.full_like(self.masked[0].connections[0], FIXED_TYPE, dtype=torch.long)
        return [first, *(layer.types for layer in self.masked[:-1])]

    @torch.no_grad()
    def choose(self, activity: Sequence[Tensor], share: float) -> None:
        """Mark units that were never promoted as in use (type 1) if they belong to the smallest set of units that
        accounts for the fraction `share` of their layer's activity, else as free (type 0)."""
        for layer, activations in zip(self.masked, activity):
            order = activations.argsort(descending=True, stable=True)
            activity_before = activations[order].cumsum(0) - activations[order]
            chosen = torch.zeros_like(layer.frozen)
            chosen[order] = (activity_before < share * activations.sum()) & (activations[order] > 0)
            layer.types = torch.where(layer.types > 1, layer.types, chosen.long())

    @torch.no_grad()
    def rewire(self, generator: torch.Generator | None = None) -> int:
        """Remove connections from free units into units in use, and add as many into free units, so that a unit never
        reads a younger one. Return how many could not be added, because capacity is exhausted."""
        missing = 0
        for layer, source in zip(self.masked, self.source_types()):
            count = layer.drop((layer.types > 0)[:, None] & (source == 0))
            missing += count - layer.grow(count, layer.types == 0, generator)
        return missing

    @torch.no_grad()
    def promote(self, early: int = 1, late: int = 2) -> None:
        """End an experience: units in use grow older by one. early, late: type above which units of the early and of
        the late layers are frozen."""
        for index, layer in enumerate(self.masked):
            layer.types = layer.types + (layer.types > 0)
            layer.freeze(layer.types > (early if index < self.early else late))
