"""Pip stories: frames of characters in a place, with captions that leave out what only a picture shows. Made for
StoryDALL-E (Maharana et al. 2022, arXiv 2209.06192), whose films of cartoons cannot be passed on.

A story has a cast of one to three characters, all in its first frame, each in its place from left to right throughout.
Half of the later frames also show a passer-by, or only that: somebody who is not of the cast, in the first place that
is free. A caption says who does what; that of the first frame names where in half of the stories. A frame of the one
character whose frame was the last may call it "it": who of the cast is meant, or which passer-by, only earlier captions
tell. No caption says what colour a character's scarf has, or where the prop of a place hangs; passers-by have no scarf.
Everything lies on patches of 4 x 4 pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SIDE, PATCH, FRAMES = 24, 4, 5
SLOTS = SIDE // (2 * PATCH)
BEGIN, PAD, TEXT = 0, 1, 10  # ids, and how many a caption has with its begin
NAMES = ("pip", "lulu", "momo", "taz", "bibi", "kiki", "nono", "zuzu", "fifi", "roro", "vava")
SEEN = 9  # of them are in the stories that a model learns from
ACTIONS = ("stands", "jumps", "sits", "waves", "dances")
PLACES = ("forest", "beach", "castle", "market", "desert", "harbour")
WORDS = ("<begin>", "<pad>", *NAMES[:SEEN], "and", "it", *ACTIONS, "at", "the", *PLACES)
IDS = {word: id for id, word in enumerate(WORDS)}
TOP = (2, 1, 3, 2, 1)  # row of patches where a character begins, by action
HAND = (False, False, False, True, True)

INK = np.array([[200, 40, 40], [40, 140, 60], [50, 80, 190]])  # of bodies
SCARVES = np.array([[250, 220, 40], [60, 220, 230], [230, 70, 220], [250, 140, 30], [120, 50, 160], [150, 230, 80]])
SKIES = np.array([[120, 170, 130], [150, 200, 240], [150, 140, 170], [230, 200, 170], [240, 220, 180], [90, 110, 140]])
GROUNDS = np.array([[60, 90, 50], [230, 210, 150], [100, 100, 110], [150, 90, 70], [200, 160, 100], [50, 60, 90]])
PROPS = np.array([[30, 60, 30], [250, 250, 120], [60, 50, 80], [200, 60, 60], [250, 240, 230], [230, 230, 240]])
EMBLEMS = np.array([[list("..####.."), list("..####.."), list("..####.."), list("..####..")],
                    [list("...##..."), list("..####.."), list("..####.."), list("...##...")],
                    [list("...##..."), list("...##..."), list("..####.."), list(".######.")]]) == "#"
HATS = np.array([[list(row)] * 4 for row in ("########", "##....##", "#.#.#.#.")]) == "#"


def looks(name: int) -> tuple[int, int, int]:
    """Emblem, colour and hat of a character; those of the last two differ from others' by the hat alone."""
    if name >= SEEN:
        emblem = name - SEEN
        return emblem, emblem, (2 * emblem + 1) % 3
    return name // 3, name % 3, (name // 3 + name % 3) % 3


def body(name: int) -> np.ndarray:
    """(2, 4, 8, 3) uint8: hat and body of a character."""
    emblem, colour, hat = looks(name)
    head = np.where(HATS[hat][..., None], 30, 240) * np.ones(3)
    trunk = np.where(EMBLEMS[emblem][..., None], 255, INK[colour])
    return np.stack([head, trunk]).astype(np.uint8)


BODIES = np.stack([body(name) for name in range(len(NAMES))])  # (names, 2, 4, 8, 3)


@dataclass(frozen=True)
class Stories:
    """N stories of `FRAMES` frames.

    pictures: (N, F, 24, 24, 3) uint8. words: (N, F, TEXT) long, ids of captions (`WORDS`; names that were not seen have
    the ids behind them), `BEGIN` first, `PAD` behind. present: (N, F, names) bool. place: (N,). scarf: (N, names), -1
    for those not of the cast. pronoun: (N, F) bool, where a caption says "it".
    """

    pictures: np.ndarray
    words: np.ndarray
    present: np.ndarray
    place: np.ndarray
    scarf: np.ndarray
    pronoun: np.ndarray


def word_ids(words: Sequence[str]) -> list[int]:
    """Ids of words; names that no model has seen come behind all others."""
    return [IDS[word] if word in IDS else len(WORDS) + NAMES.index(word) - SEEN for word in words]


def draw(count: int, seed: int, unseen: bool = False) -> Stories:
    """Stories without end, fixed by the seed. unseen: one character of each is of those that no other story has."""
    chance = np.random.default_rng(seed)
    pictures = np.zeros((count, FRAMES, SIDE, SIDE, 3), np.uint8)
    words = np.full((count, FRAMES, TEXT), PAD)
    present = np.zeros((count, FRAMES, len(NAMES)), bool)
    place = chance.integers(len(PLACES), size=count)
    scarf = np.full((count, len(NAMES)), -1)
    pronoun = np.zeros((count, FRAMES), bool)
    for story in range(count):
        cast, others = np.split(chance.permutation(SEEN), [1 + chance.choice(SLOTS, p=(0.2, 0.5, 0.3))])
        if unseen:
            cast[0] = SEEN + chance.integers(len(NAMES) - SEEN)
        home = dict(zip(cast, np.sort(chance.permutation(SLOTS)[: len(cast)])))
        scarf[story, cast] = chance.integers(len(SCARVES), size=len(cast))
        prop, told, shown = int(chance.integers(SIDE // PATCH)), chance.random() < 0.5, cast
        for frame in range(FRAMES):
            it = frame > 0 and len(shown) == 1 and chance.random() < 0.5
            if frame and not it:
                size = 1 + chance.choice(3, p=(0.55, 0.25, 0.2))
                passing = chance.permutation(others)[: chance.choice(2)]
                own = np.sort(chance.permutation(len(cast))[: size - len(passing)])
                shown = np.concatenate([cast[own], passing])
            action = int(chance.integers(len(ACTIONS)))
            who = ["it"] if it else " and ".join(NAMES[name] for name in shown).split()
            where = ["at", "the", PLACES[place[story]]] if told and not frame else []
            ids = [BEGIN, *word_ids([*who, ACTIONS[action], *where])]
            words[story, frame, : len(ids)] = ids
            present[story, frame, shown] = True
            pronoun[story, frame] = it
            free = min(set(range(SLOTS)) - {home.get(name) for name in shown}, default=SLOTS)
            paint(pictures[story, frame], place[story], prop, action,
                  [(home.get(name, free), name, scarf[story, name]) for name in shown])
    return Stories(pictures, words, present, place, scarf, pronoun)


def paint(canvas: np.ndarray, place: int, prop: int, action: int, cast: Sequence[tuple[int, int, int]]) -> None:
    """A frame into a canvas (24, 24, 3). cast: place from left to right, name and scarf (-1: none) of each one."""
    canvas[:], canvas[4 * PATCH :] = SKIES[place], GROUNDS[place]
    canvas[:PATCH, prop * PATCH : (prop + 1) * PATCH] = PROPS[place]
    for slot, name, scarf in cast:
        top, columns = TOP[action] * PATCH, slice(2 * slot * PATCH, 2 * (slot + 1) * PATCH)
        hat, trunk = BODIES[name]
        canvas[top : top + PATCH, columns] = hat
        canvas[top + PATCH : top + 2 * PATCH, columns] = INK[looks(name)[1]] if scarf < 0 else SCARVES[scarf]
        canvas[top + 2 * PATCH : top + 3 * PATCH, columns] = trunk
        if HAND[action]:
            canvas[top - PATCH : top, columns.stop - PATCH : columns.stop] = INK[looks(name)[1]]


def scarves_seen(pictures: np.ndarray) -> np.ndarray:
    """(n, 24, 24, 3) uint8 -> (n, names): the scarf colour nearest to what lies where each character, if it were in the
    picture, would be: between the hat and the body that are most like its own."""
    pictures = pictures.astype(np.float32)
    spots = [(top * PATCH, slot * 2 * PATCH) for top in sorted(set(TOP)) for slot in range(SLOTS)]
    cut = np.stack([pictures[:, y : y + 3 * PATCH, x : x + 2 * PATCH] for y, x in spots], 1)  # (n, spots, 12, 8, 3)
    middle = cut[:, :, PATCH : 2 * PATCH].mean((2, 3))
    colour = np.square(middle[:, :, None] - SCARVES).sum(-1).argmin(-1)  # (n, spots)
    around = np.stack([cut[:, :, :PATCH], cut[:, :, 2 * PATCH :]], 2)
    where = np.stack([np.square(around - own.astype(np.float32)).mean((2, 3, 4, 5)) for own in BODIES]).argmin(-1)
    return np.take_along_axis(colour, where.T, 1)
