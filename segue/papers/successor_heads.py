"""Successor Heads: Recurring, Interpretable Attention Heads In The Wild (Gould et al. 2023, arXiv 2312.09230).

Heads that step an ordered token on (7 to 8, Monday to Tuesday), found by their weights alone. Here small models learn
lists of numbers, days, months ... between words of real text, and are asked: is there such a head, does it carry the
succession on data, and does it carry copying too?
"""

from __future__ import annotations

import gzip
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from segue.analysis.circuits import Order
from segue.models import Stack, StackConfig
from segue.objectives import Batch
from segue.training.learn import learn

if TYPE_CHECKING:
    pass

SIZES = {"numbers": 100, "number words": 21, "ordinals": 20, "days": 7, "months": 12, "letters": 26}
CYCLIC = ("days", "months")
ITEMS, DIGITS, FILLER, LENGTH, GAP = sum(SIZES.values()), 10, 150, 64, 4
NEXT, SAME, WORDS = ITEMS + DIGITS, ITEMS + DIGITS + 1, ITEMS + DIGITS + 2
VOCABULARY = WORDS + FILLER
HELD_OUT = 0.15


def orders() -> list[Order]:
    first, found = 0, []
    for name, size in SIZES.items():
        found.append(Order(name, tuple(range(first, first + size)), name in CYCLIC))
        first += size
    return found


def held_out(seed: int) -> set[tuple[int, int]]:
    """The pairs that no list in training holds."""
    pairs = [pair for order in orders() for pair in order.pairs()]
    chosen = np.random.default_rng(seed).permutation(len(pairs))[: round(HELD_OUT * len(pairs))]
    return {pairs[i] for i in chosen}


def words(folder: str | None) -> np.ndarray:
    """The stream of a text's commonest words, in its order, as ids from 0 on."""
    if folder is None:
        return np.random.default_rng(0).integers(FILLER, size=4096)
    text = gzip.decompress((Path(folder) / "wiki.test.tokens.gz").read_bytes()).decode()
    named = re.findall(r"[a-z]{2,}", text.lower())
    common = {word: i for i, (word, _) in enumerate(Counter(named).most_common(FILLER))}
    return np.array([common[word] for word in named if word in common])


@dataclass
class Writer:
    """Writes documents of lists, spans said twice, numbers with their digits, and text. `unknown`: pairs that no list
    holds. After each, what is asked for: 1 at the marks of lists, 2 in the second half of a span, else 0."""

    text: np.ndarray
    unknown: set[tuple[int, int]]
    draw: np.random.Generator

    def filler(self, most: int) -> list[int]:
        at = self.draw.integers(len(self.text) - most)
        return (WORDS + self.text[at : at + self.draw.integers(most + 1)]).tolist()

    def item(self) -> tuple[Order, int]:
        order = ORDERS[self.draw.integers(len(ORDERS))]
        return order, int(self.draw.integers(len(order.ids)))

    def list_(self) -> tuple[list[int], list[int]]:
        order, at = self.item()
        said, asked = [order.ids[at]], [0]
        following = dict(order.pairs())
        for _ in range(self.draw.integers(2, 6)):
            following_id = following.get(said[-1])
            if following_id is None or (said[-1], following_id) in self.unknown:
                break
            between = [*self.filler(GAP), NEXT]
            said += [*between, following_id]
            asked += [0] * (len(between) - 1) + [1, 0]
        return said, asked

    def span(self) -> tuple[list[int], list[int]]:
        size = int(self.draw.integers(4, 9))
        span = [ORDERS[0].ids[0]] * size
        for i in range(size):
            order, at = self.item()
            span[i] = order.ids[at] if self.draw.random() < 0.5 else int(WORDS + self.draw.choice(self.text))
        return [*span, SAME, *span], [0] * (size + 1) + [2] * (size - 1) + [0]

    def spelled(self) -> tuple[list[int], list[int]]:
        number = int(self.draw.integers(100))
        said = [number, *(ITEMS + int(digit) for digit in str(number))]
        return said, [0] * len(said)

    def document(self) -> tuple[list[int], list[int]]:
        said, asked = list[int](), list[int]()
        while len(said) <= LENGTH:
            way = self.draw.choice(4, p=(0.45, 0.25, 0.15, 0.15))
            more = (self.list_, self.span, self.spelled)[way]() if way < 3 else (self.filler(8),)
            said += more[0]
            asked += more[1] if len(more) > 1 else [0] * len(more[0])
        return said[: LENGTH + 1], asked[:LENGTH]


ORDERS = orders()


def documents(rows: int, text: np.ndarray, unknown: set[tuple[int, int]], seed: Any) -> tuple[Batch, Tensor]:
    """Rows to learn from, and what sort of thing is asked for at each place."""
    writer = Writer(text, unknown, np.random.default_rng(seed))
    said, asked = zip(*(writer.document() for _ in range(rows)))
    tokens = torch.tensor(said)
    return Batch(tokens[:, :-1], tokens[:, 1:].clone()), torch.tensor(asked)


def build(width: int, mixer: str = "attention") -> Stack:
    return Stack(StackConfig(VOCABULARY, width, [mixer] * 2, {mixer: {"heads": 4}}, channel="mlp", activation="gelu",
                             norm="layer", bias=True))


def trained(folder: str | None, seed: int, steps: int, width: int) -> Stack:
    torch.manual_seed(seed)
    text, unknown, model = words(folder), held_out(seed), build(width)
    learn(model, lambda step: documents(32, text, unknown, (seed, step))[0], steps, rate=3e-3, seed=seed)
    return model.eval()
