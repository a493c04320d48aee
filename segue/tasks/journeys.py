"""Journeys: a story of beings that move between places, one move a paragraph; it is consistent if every being leaves
the place that it last entered. A world to measure memories in natural language (after RecurrentGPT, 2023, arXiv
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
"""Beings that a memory holds, and the intended maximum of paragraphs between two moves of one being."""
MOVE = re.compile(rf"({'|'.join(BEINGS)}) leaves (\w+) \. \1 enters (\w+) \.")


def parse_move(paragraph: str) -> tuple[str, str, str] | None:
    """(being, place it left, place it entered) of a paragraph; None if it has no move."""
    match = MOVE.search(paragraph)
    return None if match is None else (match[1], match[2], match[3])


def next_being(random: Random, last: Mapping[str, int], now: int) -> str:
    """The being that moves in paragraph `now`: a new one with probability 1/2 while there are some, else the one whose
    absence is nearest to a number of paragraphs drawn log-uniformly from 1 to FARTHEST. last: the paragraph of each
    being's last move."""
    new = [being for being in BEINGS if being not in last]
    if not last or (new and random.random() < 0.5):
        return random.choice(new)
    absence = math.exp(random.uniform(0.0, math.log(FARTHEST)))
    return min(last, key=lambda being: abs(math.log((now - last[being]) / absence)))


def paragraph(being: str, origin: str, goal: str) -> str:
    return f"{being} leaves {origin} . {being} enters {goal} ."


def reply(text: str, facts: Sequence[str], plans: Sequence[str]) -> str:
    """A writer's answer: the paragraph, the memory, three plans."""
    parts = zip(("first", "second", "third"), plans)
    return f"paragraph {text} memory {' '.join(facts)} {' '.join(f'{name} move {who}' for name, who in parts)}"


def write_step(random: Random) -> Pair:
    """The skill of writing one paragraph from a program's prompt. The being's place is taken from the memory, else from
    the last paragraph, else from the first related passage about it, else guessed. The memory is often edited or empty,
    and the passages often missing or outdated, so that no source suffices alone."""
    last, passages, facts = _random_story(random)
    who = next_being(random, last, len(passages))
    newest, archive = passages[-1:], passages[-2::-1]
    related = sorted(archive, key=lambda text: not text.startswith(who))  # newest first, as an archive gives them
    facts, related = _perturbed(random, who, facts, related)
    known = facts.get(who) or next((move[2] for text in [*newest, *related]
                                    if (move := parse_move(text)) and move[0] == who), random.choice(PLACES))
    goal = random.choice([place for place in PLACES if place != known])
    memory = _remember(facts, who, goal)
    plans = random.sample(BEINGS, 3)
    prompt = PROMPT.format(memory=" ".join(_sentences(facts)), paragraph=" ".join(newest), related=" ".join(related),
                           plan=f"move {who}")
    return prompt.split(), reply(paragraph(who, known, goal), _sentences(memory), plans).split()


def _random_story(random: Random) -> tuple[dict[str, int], list[str], dict[str, str]]:
    """A story of random length: the paragraph of each being's last move, the passages, and the memory of places."""
    last, places, passages, facts = dict[str, int](), dict[str, str](), list[str](), dict[str, str]()
    for now in range(int(60 ** random.random()) - 1):
        who = next_being(random, last, now)
        origin = places.get(who) or random.choice(PLACES)
        goal = random.choice([place for place in PLACES if place != origin])
        passages.append(paragraph(who, origin, goal))
        last[who], places[who] = now, goal
        facts = _remember(facts, who, goal)
    return last, passages, facts


def _remember(facts: Mapping[str, str], who: str, place: str) -> dict[str, str]:
    """The memory with a being's place put first, of FACTS beings."""
    return dict([(who, place), *((other, at) for other, at in facts.items() if other != who)][:FACTS])


def _perturbed(random: Random, who: str, facts: dict[str, str], related: list[str]) -> tuple[dict[str, str], list[str]]:
    """The memory, sometimes emptied or with another place of the being; and one or two of the related passages,
    sometimes shuffled or none."""
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
    return facts, related[:random.choice((1, 2, 2, 2))]


def _sentences(facts: Mapping[str, str]) -> list[str]:
    return [f"{being} at {place} ." for being, place in facts.items()]


def name_place(random: Random) -> Pair:
    """The skill of naming the place of the plan's being from the same prompt."""
    prompt, answer = write_step(random)
    return [*prompt[:-1], "at"], [answer[3]]


SKILLS: dict[str, Draw] = {"step": write_step, "place": name_place,
                           "echo": echo([*BEINGS, *PLACES], 8, behind=("write",))}
