"""Fields over films: diffusion transformers whose blocks mix within frames and over time in turn (DiT: Peebles & Xie
2023, arXiv 2212.09748; Open-Sora, and GameGen-X: Che et al. 2024, arXiv 2411.00769), of any mixer on either axis.

A picture is a film of one frame, and a series of real vectors a film of one place.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segue.errors import SegueError
from segue.mixers import MIXERS
from segue.mixers.cross import CrossAttention
from segue.mixers.layout import Layout
from segue.mixers.positions import sinusoids
from segue.models.flow import NOTHING, Conditions, LayeredField, time_features
from segue.models.stack import ChannelMixer, StackConfig, both_ways

TEXT = "text"  # what a field is told in words: ids (B, S) long, -1 behind the last


@dataclass(frozen=True)
class SpaceTimeConfig:
    """size: C, numbers of an element. width: D. pairs: blocks over space, each with one over time behind it.
    space, time: mixers of each, read both ways (see `both_ways`), with their options. A mixer of several axes is given
        each frame as it lies, another one line by line. Places have sinusoids added at the bottom.
    text: how many ids there are in what the field is told in words, 0 for no words. heads: of the cross-attention to
        them. hidden: width inside the channel mixers (default: 4 D).
    """

    size: int
    width: int
    pairs: int
    space: str = "attention"
    time: str = "attention"
    space_options: dict[str, Any] = field(default_factory=dict)
    time_options: dict[str, Any] = field(default_factory=dict)
    text: int = 0
    heads: int = 4
    hidden: int | None = None

    def __post_init__(self) -> None:
        if unknown := {self.space, self.time} - MIXERS.keys():
            raise SegueError(f"mixers {sorted(unknown)} are unknown: choose from {', '.join(sorted(MIXERS))}")
        if min(self.size, self.width, self.pairs) < 1:
            raise SegueError(f"a field of {self.size} numbers, width {self.width} and {self.pairs} pairs of blocks: "
                             "give at least 1 of each")

    @property
    def stack(self) -> StackConfig:
        """Space, time, space ... as layers that read both ways."""
        names = [f"{self.space}:space", f"{self.time}:time"]
        options = dict(zip(names, (self.space_options, self.time_options)))
        return both_ways(StackConfig(self.size, self.width, names * self.pairs, options, channel="mlp", bias=True,
                                     hidden=self.hidden, activation="gelu_tanh"))


@dataclass
class BlockInputs:
    """What blocks know besides the vectors: how these lie, what is given, what the time does (2, B, 6, D), at the time
    of what is asked for and at 0, and what is told in words."""

    grid: tuple[int, ...]
    asked: Tensor
    clock: Tensor
    words: tuple[Tensor, Tensor] | None

    def fold(self, x: Tensor, over_time: bool) -> Tensor:
        """(B, N, D) -> each frame, or each place over time, as a row of its own."""
        x = x.unflatten(1, (self.grid[0], -1))
        return (x.transpose(1, 2) if over_time else x).flatten(0, 1)

    def unfold(self, x: Tensor, over_time: bool) -> Tensor:
        x = x.unflatten(0, (len(self.asked), -1))
        return (x.transpose(1, 2) if over_time else x).flatten(1, 2)


class SpaceTimeBlock(nn.Module):
    """x + gate * mixer(norm x), x + cross-attention(x) to the words, x + gate * channel(norm x), each norm scaled and
    shifted by the time: by one small network for all blocks, and a table of the block (adaLN-single: Chen et al. 2023,
    arXiv 2310.00426). Over time everything written is zero at first."""

    def __init__(self, config: SpaceTimeConfig, index: int) -> None:
        super().__init__()
        stack, width = config.stack, config.width
        name = stack.mixers[index]
        self.over_time = index % 2 == 1
        try:
            self.mixer = MIXERS[name.partition(":")[0]](width, **stack.options.get(name, {}))
        except TypeError as error:
            raise SegueError(f"options of mixer '{name}': {error}") from error
        self.cross = CrossAttention(width, config.heads) if config.text else None
        self.channel = ChannelMixer(stack)
        self.table = nn.Parameter(torch.randn(6, width) / math.sqrt(width))
        for module in (self.mixer, self.cross, self.channel) if self.over_time else ():
            if module is not None:
                zero_init(module.out)

    def forward(self, x: Tensor, scene: BlockInputs) -> Tensor:
        asked, given = (self.table + scene.clock)[:, :, None]
        shift, scale, gate, shift2, scale2, gate2 = torch.where(scene.asked[..., None, None], asked, given).unbind(2)
        lines = scene.fold(unscaled_norm(x) * (1 + scale) + shift, self.over_time)
        frame = scene.grid[1:]
        grid = frame if not self.over_time and 1 < len(frame) <= self.mixer.axes else None
        layout = Layout.chain((lines.shape[0], lines.shape[1]), device=x.device, grid=grid)
        x = x + gate * scene.unfold(self.mixer.run(lines, layout, {}), self.over_time)
        if self.cross is not None:
            x = x + self.cross.run(x, Layout(layout.positions, source=scene.words), {})
        return x + gate2 * self.channel(unscaled_norm(x) * (1 + scale2) + shift2)


def unscaled_norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


def zero_init(linear: Any) -> None:
    """Makes a linear map write nothing, until it learns to."""
    nn.init.zeros_(linear.weight)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)


class Words(nn.Module):
    """Ids (B, S) long, -1 behind the last -> what cross-attention reads (`Layout.source`): a vector that is always
    there, then one of each word and its place."""

    def __init__(self, words: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words + 1, width)
        nn.init.normal_(self.embedding.weight, std=width**-0.5)

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        if ids.numel() and int(ids.max()) + 1 >= self.embedding.num_embeddings:
            raise SegueError(f"the words have the id {int(ids.max())}, and the model knows "
                             f"{self.embedding.num_embeddings - 1}: were they encoded for another one?")
        vectors = self.embedding(F.pad(ids + 1, (1, 0)))
        places = torch.arange(vectors.shape[1], device=ids.device)[None]
        return vectors + sinusoids(places, vectors.shape[2], vectors.dtype) * vectors.shape[2] ** -0.5, \
            1 + (ids >= 0).sum(1)


class SpatioTemporalDiT(LayeredField):
    """A `Field` over films: elements (B, frames * places, C) on the grid of their layout, whose first axis is time.

    What it is told: "text", see `TEXT`. At the start it is a model of pictures, frame by frame.
    """

    def __init__(self, config: SpaceTimeConfig) -> None:
        super().__init__()
        self.config, self.width = config, config.width
        self.into = nn.Linear(config.size, config.width)
        self.clock = nn.Sequential(nn.Linear(64, config.width), nn.SiLU(), nn.Linear(config.width, config.width),
                                   nn.SiLU(), nn.Linear(config.width, 6 * config.width))
        self.words = Words(config.text, config.width) if config.text else None
        self.blocks = nn.ModuleList(SpaceTimeBlock(config, index) for index in range(2 * config.pairs))
        self.table = nn.Parameter(torch.randn(2, config.width) / math.sqrt(config.width))
        self.head = nn.Linear(config.width, config.size)
        zero_init(self.head)

    @property
    def layers(self) -> list[nn.Module]:
        return list(self.blocks)

    def begin(self, x: Tensor, t: Tensor, asked: Tensor, layout: Layout,
              given: Conditions = NOTHING) -> tuple[Tensor, BlockInputs]:
        if layout.starts is not None:
            raise SegueError("a row holds one film: give films of one length, one a row")
        grid = layout.grid or (x.shape[1],)
        clock = self.clock(time_features(torch.stack([t.float(), torch.zeros_like(t, dtype=torch.float)]), 64).to(x))
        words = None
        if self.words is not None:
            words = self.words(given.get(TEXT, torch.full((len(x), 0), -1, device=x.device)))
        hidden = self.into(x) + self.places(grid[1:], x).repeat(grid[0], 1)
        return hidden, BlockInputs(grid, asked, clock.unflatten(-1, (6, -1)), words)

    def places(self, frame: tuple[int, ...], like: Tensor) -> Tensor:
        """(places, D): sinusoids of each axis of a frame, each on its share of the features."""
        if not frame:
            return like.new_zeros(1, self.width)
        share = self.width // len(frame)
        at = torch.cartesian_prod(*(torch.arange(length, device=like.device) for length in frame))
        waves = sinusoids(at.view(-1, len(frame)).T, share, like.dtype)  # (axes, places, share)
        return F.pad(waves.transpose(0, 1).flatten(1), (0, self.width - share * len(frame)))

    def run(self, block: nn.Module, hidden: Tensor, at: BlockInputs) -> Tensor:
        return block(hidden, at)

    def end(self, hidden: Tensor, at: BlockInputs) -> Tensor:
        asked, given = (self.table + at.clock[:, :, :2])[:, :, None]
        shift, scale = torch.where(at.asked[..., None, None], asked, given).unbind(2)
        return self.head(unscaled_norm(hidden) * (1 + scale) + shift)
