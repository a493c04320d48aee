"""Flow matching: straight ways from noise to real vectors, and models that say how to go along them (Lipman et al.
2023, arXiv 2210.02747; rectified flow: Liu et al. 2022, arXiv 2209.03003).

Element x at time t is (1 - t) x + t noise, noise at 1 and data at 0, and its velocity towards the data is x - noise.
Elements that are given stay as they are, at time 0. It is what `segue.models.diffusion` is for ids.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segue.errors import SegueError
from segue.mixers import Mixer
from segue.mixers.layout import Layout
from segue.models.stack import Stack, StackConfig

Conditions = Mapping[str, Tensor]
"""What a field is told, by name: ids (B, ...) long, -1 where nothing is told; or real vectors, zeros there."""
NOTHING: Conditions = {}
TIME_FEATURES = 16  # numbers that tell a stack the time


class Field(Protocol):
    """Velocities of elements x (B, T, C): at time t (B,) where they are asked for, asked (B, T) bool, and elsewhere
    given and at time 0. -> (B, T, C), of which those asked for count."""

    def __call__(self, x: Tensor, t: Tensor, asked: Tensor, layout: Layout, given: Conditions = NOTHING) -> Tensor: ...


@dataclass(frozen=True)
class Flow:
    """The times of a flow, the same in training and in sampling.

    shift: s > 1 spends more of them near the noise, s t / (1 + (s - 1) t), as sequences of many elements need, whose
        sum tells more than each of them (Esser et al. 2024, arXiv 2403.03206).
    """

    shift: float = 1.0

    def __post_init__(self) -> None:
        if not self.shift > 0:
            raise SegueError(f"a flow's times are shifted by a number above 0, not {self.shift}")

    def shift_times(self, t: Tensor) -> Tensor:
        """Times in [0, 1], as they are spent."""
        return self.shift * t / (1 + (self.shift - 1) * t)

    def times(self, steps: int) -> Tensor:
        """(steps + 1,) float64, from 1 to 0."""
        if steps < 1:
            raise SegueError(f"a flow goes at least one step, not {steps}")
        return self.shift_times(torch.linspace(1, 0, steps + 1, dtype=torch.float64))

    @staticmethod
    def add_noise(clean: Tensor, noise: Tensor, t: Tensor, asked: Tensor) -> Tensor:
        """Elements clean (B, T, C) at times t (B,), those not asked for as they are."""
        part = t.to(clean)[:, None, None]
        return torch.where(asked[..., None], (1 - part) * clean + part * noise, clean)


def time_features(t: Tensor, size: int) -> Tensor:
    """(...) times in [0, 1] -> (..., size): cosines, then sines, of 1000 t at frequencies from 1 to 1/10000."""
    frequencies = torch.exp(-math.log(10_000) * torch.arange(size // 2, device=t.device) / (size // 2))
    angles = 1000 * t[..., None].float() * frequencies
    return torch.cat([angles.cos(), angles.sin()], -1)


class LayeredField(nn.Module):
    """A field made of `blocks` that change vectors (B, N, D) of width D one after the other: so another model may write
    to them in between (`segue.models.control`).

    `begin` makes the vectors, and whatever else the blocks need to know; `run` applies one block, or a copy of it;
    `end` reads the velocities off.
    """

    width: int

    @property
    def layers(self) -> list[nn.Module]:
        raise NotImplementedError

    def begin(self, x: Tensor, t: Tensor, asked: Tensor, layout: Layout, given: Conditions) -> tuple[Tensor, Any]:
        raise NotImplementedError

    def run(self, block: nn.Module, hidden: Tensor, at: Any) -> Tensor:
        raise NotImplementedError

    def end(self, hidden: Tensor, at: Any) -> Tensor:
        raise NotImplementedError

    def state_parameters(self) -> list[nn.Parameter]:
        """See `Stack.state_parameters`."""
        return [p for module in self.modules() if isinstance(module, Mixer) for p in module.state_parameters()]

    def forward(self, x: Tensor, t: Tensor, asked: Tensor, layout: Layout, given: Conditions = NOTHING) -> Tensor:
        hidden, at = self.begin(x, t, asked, layout, given)
        for block in self.layers:
            hidden = self.run(block, hidden, at)
        return self.end(hidden, at)


class StackField(LayeredField):
    """A stack of any mixers as a field: of each element it reads the values, the element's own time, and what is told.

    config: of the stack; its vocabulary, inputs and head are set here. A field of more than one unknown element must
        read both ways to have the right law (`segue.models.stack.both_ways`). size: C. told: names of conditions,
        classes for each row (B,) or element (B, T), and how many classes each has.
    """

    def __init__(self, config: StackConfig, size: int, told: Mapping[str, int] | None = None) -> None:
        super().__init__()
        self.told, self.width = dict(told or {}), config.width
        inputs = size + TIME_FEATURES + sum(self.told.values())
        self.stack = Stack(replace(config, vocabulary=size, inputs=inputs, tied=False))

    @property
    def layers(self) -> list[nn.Module]:
        return list(self.stack.blocks)

    def begin(self, x: Tensor, t: Tensor, asked: Tensor, layout: Layout, given: Conditions) -> tuple[Tensor, Layout]:
        parts = [x, time_features(torch.where(asked, t[:, None].float(), 0.0), TIME_FEATURES).to(x)]
        for name, classes in self.told.items():
            ids = given.get(name, torch.full(x.shape[:1], -1, device=x.device))
            ids = ids[:, None].expand(x.shape[:2]) if ids.dim() == 1 else ids
            parts.append(one_hot(ids, classes).to(x))
        return self.stack.embed(torch.cat(parts, -1), layout.positions), layout

    def run(self, block: Any, hidden: Tensor, at: Layout) -> Tensor:
        block.mixer.check_layout(at)
        return block(hidden, lambda mixer, y: mixer.run(y, at, {}))

    def end(self, hidden: Tensor, at: Layout) -> Tensor:
        return self.stack.head(self.stack.finish(hidden, at))


class EvenField(LayeredField):
    """A field whose network is left what no straight guess knows, of deviation one at every time (Karras et al. 2022,
    arXiv 2206.00364). Where numbers are of deviation one, that guess of the velocity is (1 - 2 t) x / d with d = (1 -
    t)² + t², and the network, over the root of d, is added to it: at time 1 it says where an element ends, and towards
    0 ever more of the noise. No time then outweighs the others, as small times do if the network says the element
    itself, over t. Learns and samples as any field.
    """

    def __init__(self, inner: LayeredField) -> None:
        super().__init__()
        self.inner, self.width = inner, inner.width

    @property
    def layers(self) -> list[nn.Module]:
        return self.inner.layers

    def begin(self, x: Tensor, t: Tensor, asked: Tensor, layout: Layout, given: Conditions) -> tuple[Tensor, Any]:
        hidden, at = self.inner.begin(x, t, asked, layout, given)
        return hidden, (at, x, t.to(x)[:, None, None])

    def run(self, block: nn.Module, hidden: Tensor, at: Any) -> Tensor:
        return self.inner.run(block, hidden, at[0])

    def end(self, hidden: Tensor, at: Any) -> Tensor:
        inner, x, t = at
        spread = (1 - t).square() + t.square()
        return (1 - 2 * t) / spread * x + self.inner.end(hidden, inner) / spread.sqrt()


def one_hot(ids: Tensor, classes: int) -> Tensor:
    """(...) long -> (..., classes), zeros where the id is -1; a SegueError where it is no class."""
    if ids.numel() and (int(ids.max()) >= classes or int(ids.min()) < -1):
        raise SegueError(f"a condition has ids from {int(ids.min())} to {int(ids.max())}, and {classes} classes: ids "
                         "lie below, or are -1 where nothing is told")
    return F.one_hot(ids + 1, classes + 1)[..., 1:]


@dataclass(frozen=True)
class Guided:
    """A field that goes further the way that what it is told makes it go (classifier-free guidance: Ho & Salimans 2022,
    arXiv 2207.12598): v(untold) + weight (v(told) - v(untold)). It reads everything twice, unless weight is 1.

    weight: 1 is the field itself. names: what it is not told the other time (default: everything). The field must have
    learned to do without (`FlowMatching.drop`).
    """

    field: Field
    weight: float
    names: tuple[str, ...] | None = None

    def __call__(self, x: Tensor, t: Tensor, asked: Tensor, layout: Layout, given: Conditions = NOTHING) -> Tensor:
        told = self.field(x, t, asked, layout, given)
        if self.weight == 1:
            return told
        left = {name: ids for name, ids in given.items() if self.names is not None and name not in self.names}
        untold = self.field(x, t, asked, layout, left)
        return untold + self.weight * (told - untold)
