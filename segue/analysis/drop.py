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
    """The normal form of a number ("7" and "7.0" are equal); None for anything else."""
    try:
        return str(float(token))
    except ValueError:
        return None


def normalised(span: str) -> str:
    """Lower case, split at spaces and hyphens; without articles, and without punctuation except in numbers."""
    tokens = []
    for token in re.split("[ -]", span.lower()):
        bare = token if _number(token) is not None else token.translate(PUNCTUATION)
        bare = _number(bare) or bare
        tokens += ARTICLES.sub(" ", bare).split()
    return " ".join(tokens)


def _token_f1(prediction: set[str], answer: set[str]) -> float:
    """F1 of two bags of words; 0 where the answer has numbers and the prediction none of them."""
    numbers = {word for word in answer if _number(word) is not None}
    if numbers and not numbers & prediction:
        return 0.0
    shared = len(prediction & answer)
    precision, recall = (shared / len(bag) if bag else 1.0 for bag in (prediction, answer))
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def best_matching(scores: np.ndarray) -> list[tuple[int, int]]:
    """The assignment of rows to columns of a matrix (N, M) with the largest sum of scores: min(N, M) pairs of row and
    column, sorted by row (Kuhn 1955; by shortest augmenting paths, O(N² M))."""
    if scores.shape[0] > scores.shape[1]:
        return sorted((row, column) for column, row in best_matching(scores.T))
    n, m = scores.shape
    cost = np.pad(-scores, ((1, 0), (1, 0)))
    row_potential, column_potential = np.zeros(n + 1), np.zeros(m + 1)
    row_of = np.zeros(m + 1, np.int64)  # the row assigned to each column, 0 for none
    for row in range(1, n + 1):
        row_of[0], column = row, 0
        shortest, previous, visited = np.full(m + 1, np.inf), np.zeros(m + 1, np.int64), np.zeros(m + 1, bool)
        while True:
            visited[column] = True
            slack = cost[row_of[column]] - row_potential[row_of[column]] - column_potential
            better = ~visited & (slack < shortest)
            shortest[better], previous[better] = slack[better], column
            open_distances = np.where(visited, np.inf, shortest)
            nearest = int(open_distances[1:].argmin()) + 1
            delta = open_distances[nearest]
            row_potential[row_of[visited]] += delta
            column_potential[visited] -= delta
            shortest[~visited] -= delta
            column = nearest
            if not row_of[column]:
                break
        while column:  # augment along the path
            row_of[column], column = row_of[previous[column]], int(previous[column])
    return sorted((int(row_of[column]) - 1, column - 1) for column in range(1, m + 1) if row_of[column])


def drop_scores(predicted: Sequence[str], answers: Sequence[str]) -> tuple[float, float]:
    """(exact match, F1) of predicted spans against the spans of one right answer, 0 to 1. F1 is the mean over the
    longer list of the best pairing of spans, rounded to two decimals as usual."""
    if not answers:
        raise SegueError("there is no right answer to compare with: give one span at least")
    spans = [[normalised(span) for span in side] for side in (predicted, answers)]
    exact = set(spans[0]) == set(spans[1]) and len(predicted) == len(answers)
    bags = [[set(span.split()) for span in side] for side in spans]
    f1 = np.array([[_token_f1(prediction, answer) for prediction in bags[0]] for answer in bags[1]])
    f1 = f1.reshape(len(answers), len(predicted))
    paired = np.zeros(max(f1.shape))
    for row, column in best_matching(f1):
        paired[row] = f1[row, column]
    return float(exact), float(np.round(paired.mean(), 2))


def drop_f1(predicted: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[float, float]:
    """(exact match, F1): the best over the answers of several annotators, each a list of spans."""
    scores = [drop_scores(predicted, answers) for answers in references]
    return max(exact for exact, _ in scores), max(f1 for _, f1 in scores)
