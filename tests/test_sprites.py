"""The small world of sprites: what happens in it is what its judges see."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segue.errors import SegueError
from segue.tasks import SpriteWorld
from segue.tasks.sprites import BIOMES, CAPTION, EVENTS, INSTRUCTIONS, KEYS, LOOKS, SPOKEN


@settings(max_examples=6, deadline=None)
@given(st.sampled_from([(32, 9, 4), (32, 5, 4), (16, 7, 3), (24, 11, 5)]), st.integers(0, 999))
def test_judges_recognise_every_film(shape: tuple[int, int, int], seed: int) -> None:
    size, frames, hold = shape
    world = SpriteWorld(size, frames, hold)
    films = world.draw(200, torch.Generator().manual_seed(seed))
    assert films.pixels.shape == (200, frames, size, size, 3)
    assert float(films.pixels.min()) >= 0 and float(films.pixels.max()) <= 1
    assert float((world.detect_keys(films.pixels) == films.keys).float().mean()) >= 0.98
    assert float((world.detect_event(films.pixels) == films.event).float().mean()) >= 0.98


def test_films_follow_their_conditions() -> None:
    world = SpriteWorld()
    films = world.draw(400, torch.Generator().manual_seed(1))
    repeated = world.draw(400, torch.Generator().manual_seed(1))
    assert torch.equal(films.pixels, repeated.pixels) and torch.equal(films.keys, repeated.keys)
    for name, choices in (("keys", KEYS), ("event", EVENTS), ("look", LOOKS), ("biome", BIOMES)):
        counts = getattr(films, name).flatten().bincount()
        assert len(counts) == len(choices) and int(counts.min()) > 0.6 * int(counts.sum()) / len(choices)
    film = films.rows(slice(3, 4))
    words = [CAPTION[i] for i in film.captions[0].tolist()]
    assert words == [LOOKS[int(film.look)], "hero", "in", BIOMES[int(film.biome)]]
    spoken = [SPOKEN[i] for i in film.instructions[0].tolist() if i >= 0]
    assert " ".join(spoken) == INSTRUCTIONS[int(film.event)]
    before = films.pixels[:, : world.begins]
    calm = films.event == 0
    assert torch.equal(world.detect_event(torch.cat([before, before], 1)), torch.zeros(400, dtype=torch.long))
    moved = torch.stack([films.x, films.y], -1).diff(dim=1)
    assert int(calm.sum()) and bool(((moved % world.size == 0) | (moved.abs() % (world.size - 4) == 2)).all())
    corner = films.pixels[torch.arange(400), 0, films.y[:, 0], films.x[:, 0]]
    assert bool((corner[:, 0] - corner[:, 1:].mean(1) > 0.2).all())  # the hero is where it is said to be


def test_impossible_worlds_are_refused() -> None:
    for bad_sizes in ((8, 9, 4), (32, 8, 4), (32, 17, 8), (32, 9, 0)):
        with pytest.raises(SegueError, match="pixels"):
            SpriteWorld(*bad_sizes)
    with pytest.raises(SegueError, match="parts it"):
        SpriteWorld(apart=5)


def test_a_hero_may_go_from_cell_to_cell() -> None:
    films = SpriteWorld(24, 9, 4, apart=8).draw(100, torch.Generator().manual_seed(0))
    cells = torch.stack([films.x, films.y])[..., ::4]
    assert not bool((cells % 8).any()) and set(cells.flatten().tolist()) == {0, 8, 16}
    moved = cells.diff(dim=2) % 24
    assert torch.equal((moved > 0).sum(0), (films.keys > 0).long())
