"""Flow matching: straight paths from noise to real vectors, and models of the velocity along them (Lipman et al. 2023,
arXiv 2210.02747; rectified flow: Liu et al. 2022, arXiv 2209.03003).

At time t an element x is (1 - t) x + t noise, so noise at 1 and data at 0, and its velocity towards the data is
x - noise. Known elements stay as they are, at time 0. For ids, see `segue.models.diffusion`.
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
from segue.mixers.layout import Layout
from segue.models.stack import Stack, StackConfig

Conditions = Mapping[str, Tensor]
"""Conditions of a field by name: ids (B, ...) long, -1 where there is none; or real vectors, zeros where there is none.
"""
NOTHING: Conditions = {}
TIME_FEATURES = 16  # size of a stack's time embedding


class Field(Protocol):
    """Returns velocities (B, T, C) of elements x (B, T, C), which are meaningful where noisy (B, T) bool is True.

    Noisy elements, which are to be generated, are at times t (B,); all others are known, at time 0.
    """

    def __call__(self, x: Tensor, t: Tensor, noisy: Tensor, layout: Layout,
                 conditions: Conditions = NOTHING) -> Tensor: ...


@dataclass(frozen=True)
class Flow:
    """The time schedule of a flow, the same in training and in sampling.

    shift: s > 1 puts more times near the noise, s t / (1 + (s - 1) t), as long sequences need, in which many elements
        together reveal more than each alone (Esser et al. 2024, arXiv 2403.03206).
    """

    shift: float = 1.0

    def __post_init__(self) -> None:
        if not self.shift > 0:
            raise SegueError(f"a flow's times are shifted by a number above 0, not {self.shift}")

    def shift_times(self, t: Tensor) -> Tensor:
        """Shift times t in [0, 1]."""
        return self.shift * t / (1 + (self.shift - 1) * t)

    def times(self, steps: int) -> Tensor:
        """Return the shifted times of `steps` sampling steps, from 1 to 0: (steps + 1,) float64."""
        if steps < 1:
            raise SegueError(f"a flow goes at least one step, not {steps}")
        return self.shift_times(torch.linspace(1, 0, steps + 1, dtype=torch.float64))

    @staticmethod
    def add_noise(clean: Tensor, noise: Tensor, t: Tensor, noisy: Tensor) -> Tensor:
        """Add noise to elements clean (B, T, C) at times t (B,), where noisy (B, T) is True."""
        time = t.to(clean)[:, None, None]
        return torch.where(noisy[..., None], (1 - time) * clean + time * noise, clean)


def time_features(t: Tensor, size: int) -> Tensor:
    """Embed times (...) in [0, 1] as (..., size): cosines, then sines, of 1000 t at frequencies from 1 to 1/10000."""
    frequencies = torch.exp(-math.log(10_000) * torch.arange(size // 2, device=t.device) / (size // 2))
    angles = 1000 * t[..., None].float() * frequencies
    return torch.cat([angles.cos(), angles.sin()], -1)


class LayeredField(nn.Module):
    """A field made of blocks (`layers`) that update vectors (B, N, D) in turn, so that another model can add to them in
    between (`segue.models.control`).

    `begin` returns the vectors and whatever else the blocks need; `run` applies one block, or a copy of it; `end`
    returns the velocities. width: D.
    """

    width: int

    @property
    def layers(self) -> list[nn.Module]:
        raise NotImplementedError

    def begin(self, x: Tensor, t: Tensor, noisy: Tensor, layout: Layout, conditions: Conditions) -> tuple[Tensor, Any]:
        raise NotImplementedError

    def run(self, block: nn.Module, hidden: Tensor, inputs: Any) -> Tensor:
        raise NotImplementedError

    def end(self, hidden: Tensor, inputs: Any) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor, t: Tensor, noisy: Tensor, layout: Layout, conditions: Conditions = NOTHING) -> Tensor:
        hidden, inputs = self.begin(x, t, noisy, layout, conditions)
        for block in self.layers:
            hidden = self.run(block, hidden, inputs)
        return self.end(hidden, inputs)


class StackField(LayeredField):
    """A stack of any mixers as a field: it reads each element's values, time and conditions.

    config: of the stack; its vocabulary, inputs and head are overridden. A field for more than one noisy element must
        be bidirectional to model their joint distribution (`segue.models.stack.both_ways`). size: C.
    condition_classes: number of classes per condition name (default: no conditions); conditions are ids per row (B,)
        or per element (B, T).
    """

    def __init__(self, config: StackConfig, size: int, condition_classes: Mapping[str, int] | None = None) -> None:
        super().__init__()
        self.condition_classes, self.width = dict(condition_classes or {}), config.width
        inputs = size + TIME_FEATURES + sum(self.condition_classes.values())
        self.stack = Stack(replace(config, vocabulary=size, inputs=inputs, tied=False))

    @property
    def layers(self) -> list[nn.Module]:
        return list(self.stack.blocks)

    def begin(self, x: Tensor, t: Tensor, noisy: Tensor, layout: Layout,
              conditions: Conditions) -> tuple[Tensor, Layout]:
        parts = [x, time_features(torch.where(noisy, t[:, None].float(), 0.0), TIME_FEATURES).to(x)]
        for name, classes in self.condition_classes.items():
            ids = conditions.get(name, torch.full(x.shape[:1], -1, device=x.device))
            ids = ids[:, None].expand(x.shape[:2]) if ids.dim() == 1 else ids
            parts.append(one_hot(ids, classes).to(x))
        return self.stack.embed(torch.cat(parts, -1), layout.positions), layout

    def run(self, block: Any, hidden: Tensor, inputs: Layout) -> Tensor:
        block.mixer.check_layout(inputs)
        return block(hidden, lambda mixer, y: mixer.run(y, inputs, {}))

    def end(self, hidden: Tensor, inputs: Layout) -> Tensor:
        return self.stack.head(self.stack.finish(hidden, inputs))


class EvenField(LayeredField):
    """A preconditioned field: the network predicts the residual of the best linear guess, which has unit variance at
    every time (Karras et al. 2022, arXiv 2206.00364).

    For data of unit variance, the linear guess of the velocity is (1 - 2 t) x / d with d = (1 - t)² + t²; the output of
    `inner`, divided by the root of d, is added to it. So no time dominates the loss, as small times do if a network
    predicts the element itself and is divided by t. Trains and samples as any field.
    """

    def __init__(self, inner: LayeredField) -> None:
        super().__init__()
        self.inner, self.width = inner, inner.width

    @property
    def layers(self) -> list[nn.Module]:
        return self.inner.layers

    def begin(self, x: Tensor, t: Tensor, noisy: Tensor, layout: Layout, conditions: Conditions) -> tuple[Tensor, Any]:
        hidden, inputs = self.inner.begin(x, t, noisy, layout, conditions)
        return hidden, (inputs, x, t.to(x)[:, None, None])

    def run(self, block: nn.Module, hidden: Tensor, inputs: Any) -> Tensor:
        return self.inner.run(block, hidden, inputs[0])

    def end(self, hidden: Tensor, inputs: Any) -> Tensor:
        inner, x, t = inputs
        variance = (1 - t).square() + t.square()
        return (1 - 2 * t) / variance * x + self.inner.end(hidden, inner) / variance.sqrt()


def one_hot(ids: Tensor, classes: int) -> Tensor:
    """Return one-hot rows (..., classes) of ids (...) long, zeros where an id is -1; a SegueError if out of range."""
    if ids.numel() and (int(ids.max()) >= classes or int(ids.min()) < -1):
        raise SegueError(f"a condition has ids from {int(ids.min())} to {int(ids.max())}, and {classes} classes: ids "
                         "lie below that, or are -1 for none")
    return F.one_hot(ids + 1, classes + 1)[..., 1:]


@dataclass(frozen=True)
class Guided:
    """A field with classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598): v(without) + weight (v(with) -
    v(without)), with and without conditions. It runs the field twice, unless weight is 1.

    weight: 1 is the field itself. names: conditions dropped in the second run (default: all). The field must have been
    trained with dropped conditions (`FlowMatching.drop`).
    """

    field: Field
    weight: float
    names: tuple[str, ...] | None = None

    def __call__(self, x: Tensor, t: Tensor, noisy: Tensor, layout: Layout, conditions: Conditions = NOTHING) -> Tensor:
        conditional = self.field(x, t, noisy, layout, conditions)
        if self.weight == 1:
            return conditional
        kept_conditions = {name: ids for name, ids in conditions.items()
                           if self.names is not None and name not in self.names}
        unconditional = self.field(x, t, noisy, layout, kept_conditions)
        return unconditional + self.weight * (conditional - unconditional)
