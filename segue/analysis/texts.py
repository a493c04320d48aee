"""Scores of generated texts as sequences of tokens or words: overlap with references, variety."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from math import exp, log

import torch

from segue.models.base import Decodable, state_for

Text = Sequence[Hashable]


def ngrams(text: Text, n: int) -> Counter[tuple[Hashable, ...]]:
    return Counter(tuple(text[at : at + n]) for at in range(len(text) - n + 1))


def sentence_bleu(text: Text, references: Sequence[Text], order: int = 4) -> float:
    """BLEU of one text, 0 to 100: the geometric mean of its n-gram precisions up to `order`, each n-gram counted at
    most as often as in one reference, times a penalty where it is shorter than the reference nearest in length
    (Papineni et al. 2002); above unigrams, one is added to hits and totals (Lin and Och 2004)."""
    if not text:
        return 0.0
    precision = 0.0
    for n in range(1, order + 1):
        found = ngrams(text, n)
        allowed: Counter[tuple[Hashable, ...]] = Counter()
        for reference in references:
            allowed |= ngrams(reference, n)
        hits, total = (found & allowed).total() + (n > 1), found.total() + (n > 1)
        if not hits:
            return 0.0
        precision += log(hits / total) / order
    nearest = min((abs(len(reference) - len(text)), len(reference)) for reference in references)[1]
    return 100 * exp(precision + min(0.0, 1 - nearest / len(text)))


def distinct(texts: Sequence[Text], n: int) -> float:
    """How many different n-grams the texts of one list hold, divided by how many tokens (Li et al. 2016)."""
    return len(set().union(*(ngrams(text, n) for text in texts))) / max(sum(map(len, texts)), 1)


def log_likelihoods(model: Decodable, prompt: Sequence[int], answers: Sequence[Sequence[int]]) -> list[float]:
    """Natural log-probabilities of answers to a prompt (token ids, the stop token included where there is one)."""
    table = torch.zeros(len(answers), len(prompt) + max(map(len, answers)), dtype=torch.long)
    for row, answer in enumerate(answers):
        table[row, : len(prompt) + len(answer)] = torch.tensor([*prompt, *answer])
    with torch.inference_mode():
        state = state_for(model, [prompt] * len(answers))
        table = table.to(state.positions.device)
        chances = model.extend(table, state).logits[:, len(prompt) - 1 : -1].double().log_softmax(-1)
        said = chances.gather(2, table[:, len(prompt) :, None])[..., 0]
    return [float(row[: len(answer)].sum()) for row, answer in zip(said, answers)]
