"""A judge: a text model that is asked several times, and may abstain (SPaR: Cheng et al. 2024, arXiv 2412.11605)."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean

from segue.programs.text import TextModel

Parse = Callable[[str], float | None]
"""A reply's vote as a number (yes is 1, no 0), or None if it has none."""


@dataclass(frozen=True)
class Judgement:
    """Votes on one answer. votes: numbers, None for abstentions. replies: the text of each vote."""

    votes: tuple[float | None, ...]
    replies: tuple[str, ...] = ()

    @property
    def valid_votes(self) -> list[float]:
        return [vote for vote in self.votes if vote is not None]

    @property
    def value(self) -> float | None:
        """The mean of the votes (of yes and no: the share of yes); None where all abstained."""
        return mean(self.valid_votes) if self.valid_votes else None

    @property
    def label(self) -> bool | None:
        """The majority; None for a tie, or if all abstained."""
        value = self.value
        return None if value is None or value == 0.5 else value > 0.5

    @property
    def mixed(self) -> bool:
        """Whether the votes differ."""
        return len(set(self.valid_votes)) > 1

    @property
    def critique(self) -> str:
        """The first reply that votes with the majority (without one: the first with a vote)."""
        for vote, reply in zip(self.votes, self.replies):
            if vote is not None and (self.label is None or (vote > 0.5) == self.label):
                return reply
        return ""


class Judge:
    """Asks a model `votes` times about each answer.

    ask: (prompt, answer) -> the judge's prompt. parse: reads a reply (`yes_or_no`, `score`). temperature, top_p: of the
    votes. tries: how often yes-or-no votes are repeated that are tied or all abstentions.
    """

    def __init__(self, model: TextModel, ask: Callable[[str, str], str], parse: Parse | None = None, votes: int = 5,
                 temperature: float = 0.7, top_p: float = 1.0, most: int = 2048, tries: int = 1) -> None:
        self.model, self.ask, self.parse, self.votes = model, ask, parse or yes_or_no, votes
        self.temperature, self.top_p, self.most, self.tries = temperature, top_p, most, tries

    def __call__(self, cases: Sequence[tuple[str, str]], seed: int = 0) -> list[Judgement]:
        """A judgement of each (prompt, answer), in order."""
        judgements: dict[int, Judgement] = {}
        for attempt in range(self.tries):
            undecided = [i for i in range(len(cases)) if i not in judgements or judgements[i].label is None]
            prompts = [self.ask(*cases[i]) for i in undecided for _ in range(self.votes)]
            replies = [reply.text for reply in self.model.write(
                prompts, most=self.most, temperature=self.temperature, top_p=self.top_p,
                seed=seed * self.tries + attempt)] if prompts else []
            for index, i in enumerate(undecided):
                votes = tuple(replies[index * self.votes : (index + 1) * self.votes])
                judgements[i] = Judgement(tuple(map(self.parse, votes)), votes)
        return [judgements[i] for i in range(len(cases))]


def yes_or_no(reply: str, header: str = "") -> float | None:
    """1 for the first word "yes" and 0 for "no" after the last `header`; None without either, or without the header."""
    if header and header not in reply:
        return None
    words = re.search(r"\b(yes|no)\b", reply.rpartition(header)[2] if header else reply, re.IGNORECASE)
    return None if words is None else float(words[1].lower() == "yes")


def score(reply: str, most: int = 10) -> float | None:
    """The first whole number from 0 to `most` after the word "score", or in the whole reply without that word."""
    numbers = re.findall(r"(?<![\d.])\d+(?![\d.]*\d)", re.split(r"score", reply, flags=re.IGNORECASE)[-1])
    return next((float(number) for number in numbers if len(number) < 20 and int(number) <= most), None)
