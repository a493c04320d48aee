"""Memory tasks: elements of the input must be reproduced."""

from __future__ import annotations

import torch
from torch import Tensor

from segue.objectives import Batch
from segue.tasks.base import Task

SYMBOLS = 8
CUES = 4
PAIRS = 32
"""Numbers of keys and of values in associative recall."""


def with_copy(body: Tensor, symbols: Tensor, mark: int) -> Batch:
    """A body, a mark, then the symbols again, all of which are targets."""
    tokens = torch.cat([body, torch.full((len(body), 1), mark), symbols], 1)
    targets = torch.full_like(tokens, -1)
    targets[:, -1 - symbols.shape[1] : -1] = symbols
    return Batch(tokens, targets)


def distinct(rows: int, limit: int, count: int, generator: torch.Generator) -> Tensor:
    """(rows, count) distinct random numbers below `limit`, in random order."""
    return torch.rand(rows, limit, generator=generator).argsort(1)[:, :count]


def copy(rows: int, length: int, generator: torch.Generator) -> Batch:
    """Symbols, then the same symbols again (Hochreiter & Schmidhuber 1997)."""
    n = (length - 1) // 2
    symbols = torch.randint(SYMBOLS, (rows, n), generator=generator)
    marks = torch.full((rows, length - 1 - 2 * n), SYMBOLS)
    return with_copy(torch.cat([symbols, marks], 1), symbols, SYMBOLS)


def selective_copy(rows: int, length: int, generator: torch.Generator) -> Batch:
    """Symbols scattered among blanks, then the same symbols without the blanks (Gu & Dao 2023, arXiv 2312.00752)."""
    n = max(1, length // 5)
    symbols = torch.randint(SYMBOLS, (rows, n), generator=generator)
    body = torch.full((rows, length - 1 - n), SYMBOLS + 1)
    body.scatter_(1, distinct(rows, body.shape[1], n, generator).sort(1).values, symbols)
    return with_copy(body, symbols, SYMBOLS)


def associative_recall(rows: int, length: int, generator: torch.Generator) -> Batch:
    """Multi-query associative recall (Arora et al. 2023, arXiv 2312.04927): pairs of key and value, then the keys in
    another order among blanks; the target at each is its value."""
    n = min(length // 4, PAIRS)
    keys = distinct(rows, PAIRS, n, generator)
    values = torch.randint(PAIRS, 2 * PAIRS, (rows, n), generator=generator)
    order = distinct(rows, n, n, generator)
    places = distinct(rows, length - 2 * n, n, generator)
    queries = torch.full((rows, length - 2 * n), 2 * PAIRS).scatter(1, places, keys.gather(1, order))
    answers = torch.full((rows, length - 2 * n), -1).scatter(1, places, values.gather(1, order))
    pairs = torch.stack([keys, values], 2).flatten(1)
    return Batch(torch.cat([pairs, queries], 1), torch.cat([torch.full_like(pairs, -1), answers], 1))


def induction(rows: int, length: int, generator: torch.Generator) -> Batch:
    """Random symbols; the target at each repeated one is what followed its last occurrence (Olsson et al. 2022, arXiv
    2209.11895). The last symbol is always a repeated one."""
    tokens = torch.randint(2 * SYMBOLS, (rows, length), generator=generator)
    repeated = torch.randint(length - 1, (rows, 1), generator=generator)
    tokens[:, -1:] = tokens.gather(1, repeated)
    index = torch.arange(length)
    same = (tokens[:, :, None] == tokens[:, None]) & (index[:, None] > index)  # (B, query, earlier)
    latest = torch.where(same, index, -1).amax(2)
    return Batch(tokens, torch.where(latest >= 0, tokens.gather(1, latest + 1), -1))


def needle(rows: int, length: int, generator: torch.Generator) -> Batch:
    """Noise with one marked value at a random position; the last element, a query, has that value as its target
    (Kamradt 2023, "needle in a haystack")."""
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
    """A cue, distractors, and a query at the end whose target is the cue (the smallest of the temporal-order problems
    of Hochreiter & Schmidhuber 1997)."""
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
