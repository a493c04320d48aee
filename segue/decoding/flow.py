"""Sampling from flow-matching models of sequences of real vectors (see `segue.objectives.flow`): generating chosen
elements, and continuing clip by clip."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from segue.decoding.loop import eval_mode
from segue.errors import SegueError
from segue.mixers.layout import Layout
from segue.models.flow import NOTHING, Conditions, Field, Flow, Guided

Grid = tuple[int, ...]


@torch.inference_mode()
def euler(model: Field, x: Tensor, noisy: Tensor, layout: Layout | None = None, conditions: Conditions = NOTHING,
          flow: Flow | None = None, steps: int = 20, guidance: float = 1.0, seed: int = 0) -> Tensor:
    """Generate the elements of x (B, T, C) that `noisy` (B, T) bool marks, from noise, by `steps` Euler steps.

    The other elements are returned unchanged to the bit; the values of x at those to generate are ignored. flow:
    as in training. guidance: see `Guided`. seed: fixes the noise of all rows together.
    """
    if x.dim() != 3 or noisy.shape != x.shape[:2]:
        raise SegueError(f"elements of shape {tuple(x.shape)} and a mask of {tuple(noisy.shape)} of noisy ones: give "
                         "(B, T, C) real numbers and (B, T) truth values")
    layout = Layout.of(x) if layout is None else layout
    noise = torch.randn(x.shape, generator=torch.Generator(x.device).manual_seed(seed), device=x.device, dtype=x.dtype)
    x = torch.where(noisy[..., None], noise, x)
    guided = Guided(model, guidance)
    with eval_mode(model):
        for time, next_time in pairwise((flow or Flow()).times(steps).tolist()):
            t = torch.full(x.shape[:1], time, device=x.device)
            updated = x + (time - next_time) * guided(x, t, noisy, layout, conditions)
            x = torch.where(noisy[..., None], updated, x)
    return x


class FrameCodec(Protocol):
    """Encodes frames (B, F, ...) as elements (B, T, C) on a grid whose first axis is time, and decodes them. F frames
    become 1 + (F - 1) / stride moments, causally: a moment does not depend on later frames."""

    @property
    def stride(self) -> int: ...
    def encode(self, frames: Tensor) -> tuple[Tensor, Grid]: ...
    def decode(self, elements: Tensor, grid: Grid) -> Tensor: ...


class IdentityCodec:
    """The codec of a series (B, T, C) of real vectors, whose frames are elements already."""

    stride = 1

    def encode(self, frames: Tensor) -> tuple[Tensor, Grid]:
        return frames, (frames.shape[1],)

    def decode(self, elements: Tensor, grid: Grid) -> Tensor:
        return elements


@dataclass
class ClipRollout:
    """Continues frames clip by clip: encodes the last ones, generates the next clip, decodes it, and repeats.

    model: the field. codec: of its elements. block: frames of a clip, a multiple of the codec's stride. context: frames
    before a clip that the model sees, 1 plus a multiple of the stride. Others: of `euler`.
    """

    model: Field
    codec: FrameCodec = field(default_factory=IdentityCodec)
    block: int = 1
    context: int = 1
    flow: Flow = field(default_factory=Flow)
    steps: int = 20
    guidance: float = 1.0

    def __post_init__(self) -> None:
        stride = self.codec.stride
        if self.block < 1 or self.context < 1 or self.block % stride or (self.context - 1) % stride:
            raise SegueError(f"clips of {self.block} frames behind {self.context}: with a codec of stride {stride} the "
                             "first is a multiple of it, and the other one more than a multiple")

    @torch.inference_mode()
    def __call__(self, frames: Tensor, clips: int, conditions: Callable[[int, Grid], Conditions] | None = None,
                 seed: int = 0) -> Tensor:
        """The frames (B, K, ...) followed by `clips` clips of `block` frames; of the K, the last `context` are seen.
        conditions: (clip number from 0, grid) -> the conditions of each clip."""
        if frames.shape[1] < self.context:
            raise SegueError(f"{frames.shape[1]} frames, and the model goes on from {self.context}: give as many")
        for clip in range(clips):
            context, (moments, *space) = self.codec.encode(frames[:, -self.context :])
            count = self.block // self.codec.stride
            new = context.new_zeros(len(context), count * context.shape[1] // moments, context.shape[2])
            grid, x = (moments + count, *space), torch.cat([context, new], 1)
            noisy = (torch.arange(x.shape[1], device=x.device) >= context.shape[1]).expand(x.shape[:2])
            layout = Layout.chain((x.shape[0], x.shape[1]), device=x.device, grid=grid if space else None)
            generated = euler(self.model, x, noisy, layout, NOTHING if conditions is None else conditions(clip, grid),
                              self.flow, self.steps, self.guidance, seed + clip)
            frames = torch.cat([frames, self.codec.decode(generated, grid)[:, -self.block :]], 1)
        return frames
