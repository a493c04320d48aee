"""Pip stories: frames of characters in a place, with captions that leave out details which only earlier pictures show.
A free substitute for the cartoons of StoryDALL-E (Maharana et al. 2022, arXiv 2209.06192), which cannot be
redistributed.

A story has a cast of one to three characters, all in its first frame, each in a fixed slot from left to right. Half of
the later frames also show a passer-by, or only that: a character outside the cast, in the first free slot. A caption
says who does what; that of the first frame names the place in half of the stories. If the previous frame shows a single
character and this one shows the same, the caption may call it "it", which only earlier captions resolve. No caption
tells the colour of a character's scarf, or the position of the prop; passers-by have no scarf. Everything is aligned to
patches of 4 x 4 pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SIDE, PATCH, FRAMES = 24, 4, 5
SLOTS = SIDE // (2 * PATCH)
BEGIN, PAD, TEXT = 0, 1, 10  # two ids, and the length of a caption with BEGIN
NAMES = ("pip", "lulu", "momo", "taz", "bibi", "kiki", "nono", "zuzu", "fifi", "roro", "vava")
SEEN = 9  # of them, the first, are in training stories
ACTIONS = ("stands", "jumps", "sits", "waves", "dances")
PLACES = ("forest", "beach", "castle", "market", "desert", "harbour")
WORDS = ("<begin>", "<pad>", *NAMES[:SEEN], "and", "it", *ACTIONS, "at", "the", *PLACES)
IDS = {word: id for id, word in enumerate(WORDS)}
TOP = (2, 1, 3, 2, 1)  # the top row of patches of a character, by action
HAND = (False, False, False, True, True)  # whether a hand is raised, by action

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
    """Emblem, colour and hat of a character; the two unseen ones differ from others by the hat alone."""
    if name >= SEEN:
        emblem = name - SEEN
        return emblem, emblem, (2 * emblem + 1) % 3
    return name // 3, name % 3, (name // 3 + name % 3) % 3


def body(name: int) -> np.ndarray:
    """(2, 4, 8, 3) uint8: pixels of a character's hat and body."""
    emblem, colour, hat = looks(name)
    head = np.where(HATS[hat][..., None], 30, 240) * np.ones(3)
    trunk = np.where(EMBLEMS[emblem][..., None], 255, INK[colour])
    return np.stack([head, trunk]).astype(np.uint8)


BODIES = np.stack([body(name) for name in range(len(NAMES))])  # (names, 2, 4, 8, 3)


@dataclass(frozen=True)
class Stories:
    """N stories of `FRAMES` frames.

    pictures: (N, F, 24, 24, 3) uint8. words: (N, F, TEXT) long, ids of captions (`WORDS`; unseen names have ids behind
    those), `BEGIN` first, `PAD` behind. present: (N, F, names) bool. place: (N,). scarf: (N, names), -1 outside the
    cast. pronoun: (N, F) bool, whether a caption says "it".
    """

    pictures: np.ndarray
    words: np.ndarray
    present: np.ndarray
    place: np.ndarray
    scarf: np.ndarray
    pronoun: np.ndarray


def word_ids(words: Sequence[str]) -> list[int]:
    """Ids of words; unseen names come behind all others."""
    return [IDS[word] if word in IDS else len(WORDS) + NAMES.index(word) - SEEN for word in words]


def draw(count: int, seed: int, unseen: bool = False) -> Stories:
    """Random stories, determined by the seed. unseen: one character of each story is one that is never in others."""
    rng = np.random.default_rng(seed)
    stories = Stories(np.zeros((count, FRAMES, SIDE, SIDE, 3), np.uint8), np.full((count, FRAMES, TEXT), PAD),
                      np.zeros((count, FRAMES, len(NAMES)), bool), rng.integers(len(PLACES), size=count),
                      np.full((count, len(NAMES)), -1), np.zeros((count, FRAMES), bool))
    for story in range(count):
        _fill_story(stories, story, unseen, rng)
    return stories


def _fill_story(stories: Stories, story: int, unseen: bool, rng: np.random.Generator) -> None:
    """Draw the cast, captions and frames of one story into its row of `stories`."""
    cast, others = np.split(rng.permutation(SEEN), [1 + rng.choice(SLOTS, p=(0.2, 0.5, 0.3))])
    if unseen:
        cast[0] = SEEN + rng.integers(len(NAMES) - SEEN)
    slot = dict(zip(cast, np.sort(rng.permutation(SLOTS)[: len(cast)])))
    scarf, place = stories.scarf[story], stories.place[story]
    scarf[cast] = rng.integers(len(SCARVES), size=len(cast))
    prop, names_place, shown = int(rng.integers(SIDE // PATCH)), rng.random() < 0.5, cast
    for frame in range(FRAMES):
        pronoun = frame > 0 and len(shown) == 1 and rng.random() < 0.5
        if frame and not pronoun:
            size = 1 + rng.choice(3, p=(0.55, 0.25, 0.2))
            passers_by = rng.permutation(others)[: rng.choice(2)]
            of_cast = np.sort(rng.permutation(len(cast))[: size - len(passers_by)])
            shown = np.concatenate([cast[of_cast], passers_by])
        action = int(rng.integers(len(ACTIONS)))
        subject = ["it"] if pronoun else " and ".join(NAMES[name] for name in shown).split()
        location = ["at", "the", PLACES[place]] if names_place and not frame else []
        ids = [BEGIN, *word_ids([*subject, ACTIONS[action], *location])]
        stories.words[story, frame, : len(ids)] = ids
        stories.present[story, frame, shown] = True
        stories.pronoun[story, frame] = pronoun
        free = min(set(range(SLOTS)) - {slot.get(name) for name in shown}, default=SLOTS)
        paint(stories.pictures[story, frame], place, prop, action,
              [(slot.get(name, free), name, scarf[name]) for name in shown])


def paint(canvas: np.ndarray, place: int, prop: int, action: int, cast: Sequence[tuple[int, int, int]]) -> None:
    """Paint a frame on a canvas (24, 24, 3). cast: slot from the left, name and scarf (-1: none) of each character."""
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


def detect_scarves(pictures: np.ndarray) -> np.ndarray:
    """(n, 24, 24, 3) uint8 -> (n, names): the scarf of each character, assuming that it is in the picture: the colour
    nearest to the patches between the hat and body that match its own best."""
    pictures = pictures.astype(np.float32)
    spots = [(top * PATCH, slot * 2 * PATCH) for top in sorted(set(TOP)) for slot in range(SLOTS)]
    crops = np.stack([pictures[:, y : y + 3 * PATCH, x : x + 2 * PATCH] for y, x in spots], 1)  # (n, spots, 12, 8, 3)
    middle = crops[:, :, PATCH : 2 * PATCH].mean((2, 3))
    scarf = np.square(middle[:, :, None] - SCARVES).sum(-1).argmin(-1)  # (n, spots)
    hat_and_body = np.stack([crops[:, :, :PATCH], crops[:, :, 2 * PATCH :]], 2)
    best = np.stack([np.square(hat_and_body - own.astype(np.float32)).mean((2, 3, 4, 5)) for own in BODIES]).argmin(-1)
    return np.take_along_axis(scarf, best.T, 1)
