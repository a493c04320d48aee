"""Tasks of memory: what was read must be said again."""

from __future__ import annotations

import torch
from torch import Tensor

from segue.objectives import Batch
from segue.tasks.base import Task

SYMBOLS = 8
CUES = 4
PAIRS = 32
"""Different keys, and different values, of associative recall."""


def echoed(body: Tensor, symbols: Tensor, mark: int) -> Batch:
    """A body, a mark, then the symbols once more, of which every one is asked for."""
    tokens = torch.cat([body, torch.full((len(body), 1), mark), symbols], 1)
    targets = torch.full_like(tokens, -1)
    targets[:, -1 - symbols.shape[1] : -1] = symbols
    return Batch(tokens, targets)


def some(rows: int, among: int, count: int, generator: torch.Generator) -> Tensor:
    """(rows, count) different numbers below `among`, in random order."""
    return torch.rand(rows, among, generator=generator).argsort(1)[:, :count]


def copy(rows: int, length: int, generator: torch.Generator) -> Batch:
    """Symbols, then the same symbols again (Hochreiter & Schmidhuber 1997)."""
    n = (length - 1) // 2
    symbols = torch.randint(SYMBOLS, (rows, n), generator=generator)
    marks = torch.full((rows, length - 1 - 2 * n), SYMBOLS)
    return echoed(torch.cat([symbols, marks], 1), symbols, SYMBOLS)


def selective_copy(rows: int, length: int, generator: torch.Generator) -> Batch:
    """Symbols strewn among blanks, then the same symbols without the blanks (Gu & Dao 2023, arXiv 2312.00752)."""
    n = max(1, length // 5)
    symbols = torch.randint(SYMBOLS, (rows, n), generator=generator)
    body = torch.full((rows, length - 1 - n), SYMBOLS + 1)
    body.scatter_(1, some(rows, body.shape[1], n, generator).sort(1).values, symbols)
    return echoed(body, symbols, SYMBOLS)


def associative_recall(rows: int, length: int, generator: torch.Generator) -> Batch:
    """Multi-query associative recall (Arora et al. 2023, arXiv 2312.04927): keys each with its value, then the keys in
    another order among blanks, each asking for its value."""
    n = min(length // 4, PAIRS)
    keys = some(rows, PAIRS, n, generator)
    values = torch.randint(PAIRS, 2 * PAIRS, (rows, n), generator=generator)
    asked = some(rows, n, n, generator)
    places = some(rows, length - 2 * n, n, generator)
    questions = torch.full((rows, length - 2 * n), 2 * PAIRS).scatter(1, places, keys.gather(1, asked))
    answers = torch.full((rows, length - 2 * n), -1).scatter(1, places, values.gather(1, asked))
    pairs = torch.stack([keys, values], 2).flatten(1)
    return Batch(torch.cat([pairs, questions], 1), torch.cat([torch.full_like(pairs, -1), answers], 1))


def induction(rows: int, length: int, generator: torch.Generator) -> Batch:
    """Random symbols; each that was seen before asks for what followed it last (Olsson et al. 2022, arXiv
    2209.11895). The last one always was."""
    tokens = torch.randint(2 * SYMBOLS, (rows, length), generator=generator)
    again = torch.randint(length - 1, (rows, 1), generator=generator)
    tokens[:, -1:] = tokens.gather(1, again)
    index = torch.arange(length)
    same = (tokens[:, :, None] == tokens[:, None]) & (index[:, None] > index)  # (B, asking, seen)
    latest = torch.where(same, index, -1).amax(2)
    return Batch(tokens, torch.where(latest >= 0, tokens.gather(1, latest + 1), -1))


def needle(rows: int, length: int, generator: torch.Generator) -> Batch:
    """Noise with one marked value somewhere in it; the last element, a question, asks for that value (Kamradt 2023,
    "needle in a haystack")."""
    tokens = torch.randint(SYMBOLS, 2 * SYMBOLS, (rows, length), generator=generator)
    value = torch.randint(SYMBOLS, (rows, 1), generator=generator)
    place = torch.randint(length - 2, (rows, 1), generator=generator)
    tokens.scatter_(1, place, 2 * SYMBOLS)
    tokens.scatter_(1, place + 1, value)
    tokens[:, -1] = 2 * SYMBOLS + 1
    targets = torch.full_like(tokens, -1)
    targets[:, -1:] = value
    return Batch(tokens, targets)


def delayed_cue(rows: int, length: int, generator: torch.Generator) -> Batch:
    """A cue, distractors, and at the end the question which cue it was (the temporal-order problems of Hochreiter &
    Schmidhuber 1997, as small as they can be)."""
    cue = torch.randint(CUES, (rows, 1), generator=generator)
    noise = torch.randint(CUES, 2 * CUES, (rows, length - 2), generator=generator)
    tokens = torch.cat([cue, noise, torch.full((rows, 1), 2 * CUES)], 1)
    targets = torch.full_like(tokens, -1)
    targets[:, -1:] = cue
    return Batch(tokens, targets)


COPY = Task("copy", SYMBOLS + 1, copy, 1 / SYMBOLS, shortest=3)
RECALL = (
    COPY,
    Task("selective-copy", SYMBOLS + 2, selective_copy, 1 / SYMBOLS, "arXiv 2312.00752", shortest=3),
    Task("mqar", 2 * PAIRS + 1, associative_recall, 1 / PAIRS, "arXiv 2312.04927", shortest=4),
    Task("induction", 2 * SYMBOLS, induction, 1 / (2 * SYMBOLS), "arXiv 2209.11895"),
    Task("delayed-cue", 2 * CUES + 1, delayed_cue, 1 / CUES, shortest=3),
    Task("needle", 2 * SYMBOLS + 2, needle, 1 / SYMBOLS, shortest=3),
)
