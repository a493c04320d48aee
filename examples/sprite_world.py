"""Learn a small world from films of it, then play it: press keys, let night fall, and watch what the model makes.

    python examples/sprite_world.py film.gif
"""

from __future__ import annotations

import sys

import torch
from PIL import Image
from torch import Tensor

from segue.decoding.flow import ClipRollout
from segue.files import atomic_write
from segue.models.control import INSTRUCTION
from segue.models.spacetime import TEXT
from segue.papers.gamegen_x import FLOW, KEY, Setting, studio, train_branch
from segue.tasks.sprites import EVENTS, KEYS, SPOKEN_IDS

CLIPS = (("right", "nothing"), ("down", "nothing"), ("left", "night"))  # a key that is held, and an event


def main(path: str, setting: Setting | None = None) -> Tensor:
    """Returns the film, (frames, height, width, 3) in [0, 1]: a frame of the world, and three clips behind it."""
    setting = setting or Setting()
    place = studio(setting, 0)
    branch = train_branch(place, setting, 0)
    start = place.tests.rows(slice(0, 1))

    def conditions(clip: int, grid: tuple[int, ...]) -> dict[str, Tensor]:
        key, event = CLIPS[clip]
        presses = (place.world.frames - 1) // place.world.hold
        pressed = torch.tensor([[-1, *[KEYS.index(key)] * presses]]).repeat_interleave(grid[1] * grid[2], 1)
        return {TEXT: start.captions, KEY: pressed, INSTRUCTION: SPOKEN_IDS[[EVENTS.index(event)]]}

    play = ClipRollout(branch, place.coder, place.world.frames - 1, flow=FLOW, steps=setting.steps,
                       guidance=setting.guidance)
    film = play(start.pixels[:, :1], len(CLIPS), conditions)[0].clamp(0, 1)
    frames = [Image.fromarray(frame.numpy()).resize((192, 192), 0) for frame in (255 * film).byte()]
    with atomic_write(path) as file:
        frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], duration=150, loop=0)
    return film


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
