"""SpriteWorld: random films of a small world in which a hero moves by key presses and the weather changes, with
detectors that recover the keys and the event from pixels. For controllable video models, in the manner of GameGen-X
(Che et al. 2024, arXiv 2411.00769).

The world is a torus: sprites that leave on one side enter on the other.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from segue.errors import SegueError

KEYS = ("stay", "left", "right", "up", "down")
EVENTS = ("nothing", "night", "rain", "fog")
LOOKS = ("red", "magenta", "yellow", "orange")
BIOMES = ("meadow", "snow", "sea")
MOVES = torch.tensor([[0, 0], [-1, 0], [1, 0], [0, -1], [0, 1]])  # x, y
LOOK_COLOURS = torch.tensor([[0.90, 0.15, 0.15], [0.90, 0.20, 0.85], [0.95, 0.85, 0.15], [0.95, 0.50, 0.10]])
BIOME_COLOURS = torch.tensor([[0.30, 0.60, 0.30], [0.75, 0.75, 0.80], [0.25, 0.45, 0.50]])
RAIN, MIST, STRANGER = (torch.tensor(rgb) for rgb in ([0.35, 0.55, 1.0], [0.72, 0.72, 0.75], [0.10, 0.10, 0.15]))

CAPTION = ("hero", "in", *LOOKS, *BIOMES)  # the words of captions, by id
INSTRUCTIONS = ("nothing happens", "the night falls", "the rain begins to fall", "the fog comes up")
SPOKEN = tuple(sorted({word for line in INSTRUCTIONS for word in line.split()}))  # the words of instructions
SPOKEN_IDS = torch.tensor([[SPOKEN.index(word) for word in line.split()] + [-1] * (5 - len(line.split()))
                           for line in INSTRUCTIONS])


@dataclass(frozen=True)
class Films:
    """pixels: (B, F, S, S, 3) in [0, 1]. look, biome, event: (B,). keys: (B, (F - 1) / hold), in order. x, y: (B, F),
    the position of the hero's corner."""

    pixels: Tensor
    look: Tensor
    biome: Tensor
    event: Tensor
    keys: Tensor
    x: Tensor
    y: Tensor

    @property
    def captions(self) -> Tensor:
        """(B, 4) word ids of captions: "red hero in snow"; they tell neither keys nor events."""
        hero, into = (torch.full_like(self.look, CAPTION.index(word)) for word in ("hero", "in"))
        return torch.stack([2 + self.look, hero, into, 2 + len(LOOKS) + self.biome], 1)

    @property
    def instructions(self) -> Tensor:
        """(B, 5) word ids of the instruction of each event, -1 behind its last word."""
        return SPOKEN_IDS[self.event]

    def rows(self, which: slice | Tensor) -> Films:
        return Films(*(getattr(self, name)[which] for name in self.__dataclass_fields__))


@dataclass(frozen=True)
class SpriteWorld:
    """size: S, pixels of a frame's side. frames: F of a film. hold: frames for which a key is held; in each the hero
    moves two pixels, and a stranger one, in its own random direction. begins: the frame in which the weather changes.
    apart: the hero starts at multiples of so many pixels, a divisor of `size`."""

    size: int = 32
    frames: int = 9
    hold: int = 4
    begins: int = 2
    apart: int = 2

    def __post_init__(self) -> None:
        if self.size < 16 or self.hold < 1 or (self.frames - 1) % self.hold or 4 * self.hold >= self.size:
            raise SegueError(f"a world of {self.size} pixels and {self.frames} frames, {self.hold} to a key: keys fill "
                             "the frames behind the first, and move the hero by less than half a world of at least 16")
        if self.apart < 1 or self.size % self.apart:
            raise SegueError(f"a hero who begins at multiples of {self.apart} in a world of {self.size} pixels: give a "
                             "number that parts it")

    def draw(self, rows: int, generator: torch.Generator) -> Films:
        presses = (self.frames - 1) // self.hold

        def integers(below: int, *shape: int) -> Tensor:
            return torch.randint(below, shape or (rows,), generator=generator)

        look, biome, event = integers(len(LOOKS)), integers(len(BIOMES)), integers(len(EVENTS))
        keys, walks = integers(len(KEYS), rows, presses), integers(len(KEYS), rows, presses)
        x, y = self._positions(integers(self.size // self.apart, rows, 2) * self.apart, MOVES[keys] * 2)
        pixels = BIOME_COLOURS[biome][:, None, None, None].expand(-1, self.frames, self.size, self.size, -1)
        stranger = self._positions(integers(self.size, rows, 2), MOVES[walks])
        pixels = torch.where(self._square(*stranger, 4), STRANGER, pixels)
        pixels = torch.where(self._square(x, y, 6), LOOK_COLOURS[look][:, None, None, None], pixels)
        return Films(self._weathered(pixels, event), look, biome, event, keys, x, y)

    def _positions(self, start: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
        """x and y in each frame, (B, F), from a start (B, 2) and the step in each frame of each key (B, presses, 2)."""
        positions = torch.cat([start[:, None], steps.repeat_interleave(self.hold, 1)], 1).cumsum(1) % self.size
        return positions[..., 0], positions[..., 1]

    def _square(self, x: Tensor, y: Tensor, side: int) -> Tensor:
        """(B, F, S, S, 1) bool: the mask of a square with its corner at x, y, (B, F)."""
        index = torch.arange(self.size)
        across, down = ((index - corner[..., None]) % self.size < side for corner in (x, y))
        return (across[:, :, None] & down[..., None])[..., None]

    def _weathered(self, pixels: Tensor, event: Tensor) -> Tensor:
        """The pixels under each film's event, from frame `begins` on."""
        frame, row, column = (torch.arange(n) for n in (self.frames, self.size, self.size))
        streaks = (5 * column - row[:, None] + 3 * frame[:, None, None]) % 16 < 2
        rainy = torch.where(streaks[..., None], RAIN, pixels)
        by_event = torch.stack([pixels, 0.45 * pixels, rainy, 0.35 * pixels + 0.65 * MIST])
        event_at = torch.where((frame >= self.begins)[:, None], event, 0).T  # (B, F)
        return by_event[event_at, torch.arange(len(event))[:, None], frame]

    # Detectors.

    def detect_keys(self, pixels: Tensor) -> Tensor:
        """(B, (F - 1) / hold): the keys that the hero followed, by the movement of the centre of its colour."""
        red = (pixels[..., 0] - pixels[..., 1:].mean(-1)).clamp(min=0)
        red = torch.where(red > 0.4 * red.amax((2, 3), keepdim=True), red, 0)
        angle = torch.arange(self.size) * (2 * torch.pi / self.size)
        phase = torch.polar(torch.ones(self.size), angle)  # the circular mean, as the world is a torus
        centre = torch.stack([(red.sum(axis) * phase).sum(-1).angle() for axis in (2, 3)], -1)  # (B, F, 2), x and y
        at_keys = centre[:, :: self.hold] * self.size / (2 * torch.pi)
        moved = (at_keys.diff(dim=1) + self.size / 2) % self.size - self.size / 2
        expected = MOVES * 2.0 * self.hold
        return (moved[:, :, None] - expected).square().sum(-1).argmin(-1)

    def detect_event(self, pixels: Tensor) -> Tensor:
        """(B,): the event of each film, by the change of light, blue and contrast from its first frame to its last."""
        first, last = pixels[:, 0], pixels[:, -1]
        blue = [(frame[..., 2] - frame[..., 1] - 0.25).clamp(min=0).mean((1, 2)) for frame in (first, last)]
        light, contrast = ([frame.mean((1, 2, 3)) for frame in (first, last)],
                           [frame.std((1, 2)).mean(1) for frame in (first, last)])
        night = light[1] < 0.7 * light[0]
        rain = blue[1] - blue[0] > 0.006
        fog = contrast[1] < 0.65 * contrast[0]
        event = torch.where(fog, EVENTS.index("fog"), EVENTS.index("nothing"))
        return torch.where(night, EVENTS.index("night"), torch.where(rain, EVENTS.index("rain"), event))
