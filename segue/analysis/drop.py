"""Scores of answers that are numbers, dates or spans of text: the exact match and F1 of DROP (Dua et al. 2019, arXiv
1903.00161)."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence

import numpy as np

from segue.errors import SegueError

ARTICLES = re.compile(r"\b(?:a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)


def _number(token: str) -> str | None:
    """A number as it is compared, "7" and "7.0" alike; None for anything else."""
    try:
        return str(float(token))
    except ValueError:
        return None


def normalised(span: str) -> str:
    """Lower case, split at blanks and hyphens; punctuation gone but for that of numbers; articles gone."""
    tokens = []
    for token in re.split("[ -]", span.lower()):
        bare = token if _number(token) is not None else token.translate(PUNCTUATION)
        bare = _number(bare) or bare
        tokens += ARTICLES.sub(" ", bare).split()
    return " ".join(tokens)


def _overlap(told: set[str], right: set[str]) -> float:
    """F1 of two bags of words; 0 where the right one has numbers and none of them was told."""
    numbers = {word for word in right if _number(word) is not None}
    if numbers and not numbers & told:
        return 0.0
    both = len(told & right)
    precision, recall = (both / len(bag) if bag else 1.0 for bag in (told, right))
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def best_matching(scores: np.ndarray) -> list[tuple[int, int]]:
    """Places of the entries of a matrix (N, M), no two in one row or column, whose sum is largest: min(N, M) of them,
    by row (Kuhn 1955; by shortest augmenting paths, O(N² M))."""
    if scores.shape[0] > scores.shape[1]:
        return sorted((row, column) for column, row in best_matching(scores.T))
    n, m = scores.shape
    cost = np.pad(-scores, ((1, 0), (1, 0)))
    u, v, holder = np.zeros(n + 1), np.zeros(m + 1), np.zeros(m + 1, np.int64)  # potentials; the row of each column
    for row in range(1, n + 1):
        holder[0], at = row, 0
        least, back, seen = np.full(m + 1, np.inf), np.zeros(m + 1, np.int64), np.zeros(m + 1, bool)
        while True:
            seen[at] = True
            slack = cost[holder[at]] - u[holder[at]] - v
            better = ~seen & (slack < least)
            least[better], back[better] = slack[better], at
            beyond = np.where(seen, np.inf, least)
            step_to = int(beyond[1:].argmin()) + 1
            delta = beyond[step_to]
            u[holder[seen]] += delta
            v[seen] -= delta
            least[~seen] -= delta
            at = step_to
            if not holder[at]:
                break
        while at:
            holder[at], at = holder[back[at]], int(back[at])
    return sorted((int(holder[column]) - 1, column - 1) for column in range(1, m + 1) if holder[column])


def drop_scores(told: Sequence[str], right: Sequence[str]) -> tuple[float, float]:
    """(exact match, F1) of the spans that were told and those that are right, 0 to 1: F1 is the mean over the longer
    list, spans paired so that it is highest, rounded to two decimals as is usual."""
    if not right:
        raise SegueError("there is no right answer to compare with: give one span at least")
    spans = [[normalised(span) for span in side] for side in (told, right)]
    exact = set(spans[0]) == set(spans[1]) and len(told) == len(right)
    bags = [[set(span.split()) for span in side] for side in spans]
    overlaps = np.array([[_overlap(one, other) for one in bags[0]] for other in bags[1]]).reshape(len(right), len(told))
    found = np.zeros(max(overlaps.shape))
    for row, column in best_matching(overlaps):
        found[row] = overlaps[row, column]
    return float(exact), float(np.round(found.mean(), 2))


def drop_f1(told: Sequence[str], answers: Sequence[Sequence[str]]) -> tuple[float, float]:
    """(exact match, F1): the best over the answers of several annotators, each a list of spans."""
    scores = [drop_scores(told, right) for right in answers]
    return max(exact for exact, _ in scores), max(f1 for _, f1 in scores)
