"""Fields over video: diffusion transformers whose blocks alternate between mixing within frames and over time (DiT:
Peebles & Xie 2023, arXiv 2212.09748; Open-Sora, and GameGen-X: Che et al. 2024, arXiv 2411.00769), with any mixers.

An image is a video of one frame, and a series of real vectors a video of one place per frame.
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

TEXT = "text"  # condition: a text, ids (B, S) long, padded with -1


@dataclass(frozen=True)
class SpaceTimeConfig:
    """Config of a `SpatioTemporalDiT`.

    size: C, numbers per element. width: D. pairs: blocks over space, each followed by one over time.
    space, time: their mixers, made bidirectional (see `both_ways`), and options. A mixer with several axes gets each
        frame as a grid, any other a frame's places as one sequence. Sinusoids of the places are added to the input.
    text: vocabulary of the text condition, 0 for none. heads: of the cross-attention to it. hidden: width inside the
        channel mixers (default: 4 D).
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
        """The layers (space, time, space, ...) as the config of a bidirectional stack."""
        names = [f"{self.space}:space", f"{self.time}:time"]
        options = dict(zip(names, (self.space_options, self.time_options)))
        return both_ways(StackConfig(self.size, self.width, names * self.pairs, options, channel="mlp", bias=True,
                                     hidden=self.hidden, activation="gelu_tanh"))


@dataclass
class BlockInputs:
    """What blocks need besides the vectors.

    grid: frames, and the axes of a frame. noisy: (B, N) bool, the elements to be generated. clock: (2, B, 6, D), scale
    and shift parameters of the time, for noisy elements and for known ones (time 0). words: encoded text and its
    lengths, or None.
    """

    grid: tuple[int, ...]
    noisy: Tensor
    clock: Tensor
    words: tuple[Tensor, Tensor] | None

    def fold(self, x: Tensor, over_time: bool) -> Tensor:
        """Reshape (B, N, D) so that each frame, or each place over time, is a row of its own."""
        x = x.unflatten(1, (self.grid[0], -1))
        return (x.transpose(1, 2) if over_time else x).flatten(0, 1)

    def unfold(self, x: Tensor, over_time: bool) -> Tensor:
        """Invert `fold`."""
        x = x.unflatten(0, (len(self.noisy), -1))
        return (x.transpose(1, 2) if over_time else x).flatten(1, 2)


class SpaceTimeBlock(nn.Module):
    """x + gate * mixer(norm x), x + cross-attention(x) to the words, x + gate * channel(norm x), with each norm scaled
    and shifted by the time: by one small network for all blocks, plus a table per block (adaLN-single: Chen et al.
    2023, arXiv 2310.00426). Blocks over time have outputs initialised to zero."""

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
            if module is None:
                continue
            if not hasattr(module, "out"):
                raise SegueError(f"mixer '{name.partition(':')[0]}' has no output map to begin at zero: choose another "
                                 "over time")
            zero_init(module.out)

    def forward(self, x: Tensor, inputs: BlockInputs) -> Tensor:
        noisy_terms, known_terms = (self.table + inputs.clock)[:, :, None]
        terms = torch.where(inputs.noisy[..., None, None], noisy_terms, known_terms)
        shift, scale, gate, shift2, scale2, gate2 = terms.unbind(2)
        rows = inputs.fold(unscaled_norm(x) * (1 + scale) + shift, self.over_time)
        frame = inputs.grid[1:]
        grid = frame if not self.over_time and 1 < len(frame) <= self.mixer.axes else None
        layout = Layout.chain((rows.shape[0], rows.shape[1]), device=x.device, grid=grid)
        x = x + gate * inputs.unfold(self.mixer.run(rows, layout, {}), self.over_time)
        if self.cross is not None:
            x = x + self.cross.run(x, Layout(layout.positions, source=inputs.words), {})
        return x + gate2 * self.channel(unscaled_norm(x) * (1 + scale2) + shift2)


def unscaled_norm(x: Tensor) -> Tensor:
    """Layer norm over the last axis without learned scale and shift."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


def zero_init(linear: Any) -> None:
    """Initialise a linear map to zero."""
    nn.init.zeros_(linear.weight)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)


class Words(nn.Module):
    """Embeds text for cross-attention (`Layout.source`): ids (B, S) long, padded with -1 -> vectors (B, 1 + S, D) and
    lengths (B,). The first vector is there even for empty text; the others are embeddings plus sinusoids."""

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
    """A `Field` over video: elements (B, frames * places, C) on the grid of their layout, whose first axis is time.

    Condition: "text", see `TEXT`. At initialisation it treats each frame independently, as an image.
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

    def begin(self, x: Tensor, t: Tensor, noisy: Tensor, layout: Layout,
              conditions: Conditions = NOTHING) -> tuple[Tensor, BlockInputs]:
        if layout.starts is not None:
            raise SegueError("a row holds one film: give films of one length, one a row")
        grid = layout.grid or (x.shape[1],)
        clock = self.clock(time_features(torch.stack([t.float(), torch.zeros_like(t, dtype=torch.float)]), 64).to(x))
        words = None
        if self.words is not None:
            words = self.words(conditions.get(TEXT, torch.full((len(x), 0), -1, device=x.device)))
        hidden = self.into(x) + self.places(grid[1:], x).repeat(grid[0], 1)
        return hidden, BlockInputs(grid, noisy, clock.unflatten(-1, (6, -1)), words)

    def places(self, frame: tuple[int, ...], x: Tensor) -> Tensor:
        """Return sinusoids of the places of a frame, (places, D), each axis on its own share of the features."""
        if not frame:
            return x.new_zeros(1, self.width)
        features = self.width // len(frame)
        coordinates = torch.cartesian_prod(*(torch.arange(length, device=x.device) for length in frame))
        waves = sinusoids(coordinates.view(-1, len(frame)).T, features, x.dtype)  # (axes, places, features)
        return F.pad(waves.transpose(0, 1).flatten(1), (0, self.width - features * len(frame)))

    def run(self, block: nn.Module, hidden: Tensor, inputs: BlockInputs) -> Tensor:
        return block(hidden, inputs)

    def end(self, hidden: Tensor, inputs: BlockInputs) -> Tensor:
        noisy_terms, known_terms = (self.table + inputs.clock[:, :, :2])[:, :, None]
        shift, scale = torch.where(inputs.noisy[..., None, None], noisy_terms, known_terms).unbind(2)
        return self.head(unscaled_norm(hidden) * (1 + scale) + shift)
