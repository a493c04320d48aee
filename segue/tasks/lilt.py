"""Lilt, a small language of instructions that programs can verify: write some words about a topic under one to three
constraints. Tiny models learn to follow it within two minutes on a CPU, and the errors of every answer are known
exactly."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from segue.errors import SegueError
from segue.kinds.codecs import ItemCodec
from segue.tasks.answers import Answers, Pair, echo

TOPICS = {
    "animals": ("cat", "dog", "cow", "hen", "fox", "owl", "bee", "rat", "pig", "elk"),
    "food": ("rice", "bread", "plum", "soup", "corn", "milk", "cake", "bean", "leek", "pear"),
    "tools": ("saw", "axe", "drill", "rope", "nail", "file", "clamp", "spade", "brush", "knife"),
    "places": ("port", "farm", "lake", "hill", "town", "cave", "mill", "barn", "park", "isle"),
}
NOUNS = tuple(noun for nouns in TOPICS.values() for noun in nouns)
MOST = 9
QUOTE, USER, BOT = '"', "<user>", "<bot>"
COUNTED, NAMED = ("exactly", "atleast"), ("include", "avoid", "twice", "start", "end")
FAMILIES = (*COUNTED, *NAMED, "upper", "lower", "quote")
CODEC = ItemCodec([*NOUNS, *map(str.upper, NOUNS), *map(str, range(1, MOST + 1)), *TOPICS, *FAMILIES, USER, BOT, QUOTE,
                   "write", "about", ".", "words", "echo"])

Constraint = tuple[str, str]
"""A family and its argument: a number, a noun, or ""."""


def body(answer: Sequence[str]) -> list[str]:
    """An answer without the quotation marks around it."""
    return list(answer[1:-1] if quoted(answer) else answer)


def quoted(answer: Sequence[str]) -> bool:
    return len(answer) > 2 and answer[0] == answer[-1] == QUOTE


def holds(constraint: Constraint, answer: Sequence[str]) -> bool:
    """Whether an answer satisfies a constraint. Nouns are compared without regard to case."""
    family, argument = constraint
    words = body(answer)
    lower = [word.lower() for word in words]
    match family:
        case "exactly":
            return len(words) == int(argument)
        case "atleast":
            return len(words) >= int(argument)
        case "include":
            return argument in lower
        case "avoid":
            return argument not in lower
        case "twice":
            return lower.count(argument) == 2
        case "start":
            return lower[:1] == [argument]
        case "end":
            return lower[-1:] == [argument]
        case "upper":
            return all(word.isupper() for word in words)
        case "lower":
            return all(word.islower() for word in words)
        case "quote":
            return quoted(answer)
        case "topic":
            return bool(lower) and set(lower) <= set(TOPICS[argument])
    raise SegueError(f"'{family}' is no family of constraints: choose from {', '.join(FAMILIES)}")


@dataclass(frozen=True)
class Instruction:
    """A request for words about a topic, under constraints."""

    topic: str
    constraints: tuple[Constraint, ...]

    @staticmethod
    def sample(random: Random, most: int = 3, among: Sequence[str] = FAMILIES) -> Instruction:
        """One to `most` constraints of different families, in random order, that can all be satisfied."""
        while True:
            topic = random.choice(list(TOPICS))
            families = random.sample(among, random.randint(1, min(most, len(among))))
            instruction = Instruction(topic, tuple((family, str(random.randint(1, MOST)) if family in COUNTED else
                                                    random.choice(TOPICS[topic]) if family in NAMED else "")
                                                   for family in families))
            if not instruction.violations(instruction.answer(random)):
                return instruction

    @staticmethod
    def read(prompt: Sequence[str]) -> Instruction:
        """The instruction of a prompt's words."""
        try:
            begin, end = prompt.index("about") + 1, len(prompt) - list(reversed(prompt)).index(BOT) - 1
            topic, *parts = " ".join(prompt[begin:end]).split(" . ")
            constraints = tuple((part.split()[0], part.split()[1] if " " in part else "") for part in parts)
            return Instruction(topic, constraints)
        except (ValueError, IndexError) as error:
            raise SegueError(f"'{' '.join(prompt)}' is no instruction of Lilt: write {USER} write about animals . "
                             f"exactly 3 words {BOT}") from error

    @property
    def prompt(self) -> list[str]:
        parts = [word for family, argument in self.constraints for word in
                 (".", family, *[argument] * bool(argument), *["words"] * (family in COUNTED))]
        return [USER, "write", "about", self.topic, *parts, BOT]

    def violations(self, answer: Sequence[str]) -> list[Constraint]:
        """The constraints that an answer violates; words of another topic, or no words, violate ("topic", topic)."""
        return [each for each in (("topic", self.topic), *self.constraints) if not holds(each, answer)]

    def answer(self, random: Random, upper: bool | None = None) -> list[str]:
        """Words that satisfy all constraints, if possible. upper: the case, where no constraint fixes it (default:
        random)."""
        argument_of = dict(self.constraints)
        required = Counter({argument_of[family]: 1 for family in ("include", "start", "end") if family in argument_of})
        required |= Counter({argument_of["twice"]: 2} if "twice" in argument_of else {})
        start, end = ([argument_of[family]] if family in argument_of else [] for family in ("start", "end"))
        middle = list((required - Counter(start + end)).elements())
        least = max(int(argument_of.get("atleast", 1)), len(middle) + len(start + end))
        count = int(argument_of.get("exactly", random.randint(least, max(least, min(MOST, least + 4)))))
        others = sorted(set(TOPICS[self.topic]) - {argument_of.get("avoid"), argument_of.get("twice")})
        middle += random.choices(others, k=max(0, count - len(middle) - len(start + end)))
        random.shuffle(middle)
        if upper is None:
            upper = random.random() < 0.5
        words = cased([*start, *middle, *end], "upper" in argument_of or (upper and "lower" not in argument_of))
        return [QUOTE, *words, QUOTE] if "quote" in argument_of else words

    def repaired(self, answer: Sequence[str], constraint: Constraint, random: Random) -> list[str]:
        """An answer changed in as few words as a constraint needs; it may violate others afterwards."""
        (family, argument), words, quote = constraint, body(answer), quoted(answer)
        upper = sum(word.isupper() for word in words) * 2 > len(words)
        noun, index = cased([argument], upper)[0], random.randrange(max(1, len(words)))

        def other() -> str:
            return cased([random.choice([word for word in TOPICS[self.topic] if word != argument])], upper)[0]

        match family:
            case "exactly" | "atleast":
                while len(words) < int(argument):
                    words.insert(random.randint(0, len(words)), other())
                while family == "exactly" and len(words) > int(argument):
                    words.pop(random.randrange(len(words)))
            case "include":
                words[index : index + 1] = [noun]
            case "avoid":
                words = [other() if word.lower() == argument else word for word in words]
            case "twice":
                present = [i for i, word in enumerate(words) if word.lower() == argument]
                for i in random.sample(present, max(0, len(present) - 2)):
                    words[i] = other()
                absent = [i for i in range(len(words)) if i not in present]
                for i in random.sample(absent, min(len(absent), max(0, 2 - len(present)))):
                    words[i] = noun
            case "start":
                words[:1] = [noun]
            case "end":
                words[-1:] = [noun]
            case "upper" | "lower":
                words = cased(words, family == "upper")
            case "quote":
                quote = True
            case "topic":
                words = [word if word.lower() in TOPICS[self.topic] else other() for word in words] or [other()]
        return [QUOTE, *words, QUOTE] if quote else words


def cased(words: Sequence[str], upper: bool) -> list[str]:
    return [word.upper() if upper else word.lower() for word in words]


def write(random: Random) -> Pair:
    """The skill of answering a random instruction."""
    instruction = Instruction.sample(random)
    return instruction.prompt, instruction.answer(random)


ECHO = echo([*NOUNS, *map(str.upper, NOUNS)], 8, before=(USER, "echo"), behind=(BOT,))
"""The skill of repeating nouns in either case."""


def lilt(early: int = 300) -> Answers:
    """Instructions with answers, mixed with echo rows: half of all in the first `early` steps, then 15%. Without echo
    rows small models do not learn to copy a word of the prompt into the answer."""
    return Answers(CODEC, {"write": write, "echo": ECHO},
                   {0: {"write": 0.5, "echo": 0.5}, early: {"write": 0.85, "echo": 0.15}})
