"""Journeys: a story of beings that move between places, told paragraph by paragraph; a telling is true if everybody
leaves where they last went. The world in which memories of words are measured (after RecurrentGPT, 2023, arXiv
2305.13304)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from random import Random

from segue.kinds.codecs import ItemCodec
from segue.tasks.answers import Draw, Pair, echo

BEINGS = ("bear", "crow", "deer", "fox", "goat", "hare", "lynx", "mole", "newt", "owl", "toad", "wolf")
PLACES = ("bridge", "cave", "field", "forest", "harbour", "island", "mill", "tower")
CODEC = ItemCodec([*BEINGS, *PLACES, "leaves", "enters", "at", "move", ".", "memory", "paragraph", "related", "plan",
                   "write", "first", "second", "third", "echo"])
PROMPT = "memory {memory} paragraph {paragraph} related {related} plan {plan} write"
FACTS, FARTHEST = 4, 40
"""How many beings a memory holds, and paragraphs between two of one being at most, as far as it can be helped."""
TOLD = re.compile(rf"({'|'.join(BEINGS)}) leaves (\w+) \. \1 enters (\w+) \.")


def told(paragraph: str) -> tuple[str, str, str] | None:
    """Who left which place and entered which; None if the paragraph does not say so."""
    found = TOLD.search(paragraph)
    return None if found is None else (found[1], found[2], found[3])


def next_being(random: Random, last: Mapping[str, int], now: int) -> str:
    """Who moves in paragraph `now`: somebody new in every other paragraph while there is, else whoever comes
    nearest to having been away for a number of paragraphs that is drawn log-uniformly from 1 to FARTHEST. last: when
    each was told of."""
    new = [being for being in BEINGS if being not in last]
    if not last or (new and random.random() < 0.5):
        return random.choice(new)
    away = math.exp(random.uniform(0.0, math.log(FARTHEST)))
    return min(last, key=lambda being: abs(math.log((now - last[being]) / away)))


def paragraph(being: str, origin: str, goal: str) -> str:
    return f"{being} leaves {origin} . {being} enters {goal} ."


def reply(text: str, facts: Sequence[str], plans: Sequence[str]) -> str:
    """What a writer says: the paragraph, the memory, three plans."""
    parts = zip(("first", "second", "third"), plans)
    return f"paragraph {text} memory {' '.join(facts)} {' '.join(f'{name} move {who}' for name, who in parts)}"


def step(random: Random) -> Pair:
    """The skill of writing one paragraph from what a program shows, as a writer does who believes the memory, then the
    last paragraph, then the passage that stands first of those on the being; who knows nothing guesses. Often
    the memory was edited, or is empty, or the passages are none or stale: no source can be leaned on alone."""
    last, at, passages, facts = dict[str, int](), dict[str, str](), list[str](), dict[str, str]()
    for now in range(int(60 ** random.random()) - 1):
        who = next_being(random, last, now)
        origin = at.get(who) or random.choice(PLACES)
        goal = random.choice([place for place in PLACES if place != origin])
        passages.append(paragraph(who, origin, goal))
        last[who], at[who] = now, goal
        facts = dict([(who, goal), *((other, place) for other, place in facts.items() if other != who)][:FACTS])
    who = next_being(random, last, len(passages))
    newest, archive = passages[-1:], passages[-2::-1]
    related = sorted(archive, key=lambda text: not text.startswith(who))  # the newest first, as an archive gives them
    chance = random.random()
    if chance < 0.15:
        facts = {}
    elif chance < 0.5:
        facts = {being: random.choice(PLACES) if being == who else place for being, place in facts.items()}
    chance = random.random()
    if chance < 0.3:
        related = []
    elif chance < 0.4:
        related = random.sample(related, len(related))
    related = related[:random.choice((1, 2, 2, 2))]
    known = facts.get(who) or next((move[2] for text in [*newest, *related] if (move := told(text)) and move[0] == who),
                                   random.choice(PLACES))
    goal = random.choice([place for place in PLACES if place != known])
    kept = [(who, goal), *((other, place) for other, place in facts.items() if other != who)][:FACTS]
    plans = random.sample(BEINGS, 3)
    shown = PROMPT.format(memory=" ".join(f"{being} at {place} ." for being, place in facts.items()),
                          paragraph=" ".join(newest), related=" ".join(related), plan=f"move {who}")
    answer = reply(paragraph(who, known, goal), [f"{being} at {place} ." for being, place in kept], plans)
    return shown.split(), answer.split()


def place(random: Random) -> Pair:
    """The skill of saying at once where the being of the plan is, by what a writer is shown."""
    shown, answer = step(random)
    return [*shown[:-1], "at"], [answer[3]]


SKILLS: dict[str, Draw] = {"step": step, "place": place, "echo": echo([*BEINGS, *PLACES], 8, behind=("write",))}
