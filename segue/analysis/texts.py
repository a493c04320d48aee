"""Scores of generated texts as sequences of tokens or words: overlap with references, variety."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from math import exp, log

import torch
from torch import Tensor

from segue.models.base import Decodable, padded, state_for

Text = Sequence[Hashable]


def ngrams(text: Text, n: int) -> Counter[tuple[Hashable, ...]]:
    """How often each run of n elements occurs."""
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


def repetition(text: Text, n: int) -> float:
    """The share of a text's n-grams that it held before, 1 - different / all (rep-n); 0 where it is shorter than n."""
    found = ngrams(text, n)
    return 1 - len(found) / max(found.total(), 1) if found else 0.0


@dataclass
class Reinforcement:
    """How sure a model is of sentences the more often they were said, for the first to the Nth time.

    chance: (N,) mean probability of their tokens (TP). risen: (N,) share of tokens that are likelier than the first
    time (IP). chosen: (N,) share that are the likeliest there (WR).
    """

    chance: list[float]
    risen: list[float]
    chosen: list[float]


def reinforcement(model: Decodable, texts: Sequence[tuple[Sequence[int], Sequence[int]]], times: int,
                  places: slice = slice(None)) -> Reinforcement:
    """Read each sentence `times` times in a row behind its context (Xu et al. 2022, arXiv 2206.02369).

    texts: (context, sentence) pairs of token ids, no context empty. places: which tokens of each sentence count (say
    `slice(1, None)`, without the separator that it begins with).
    """
    chances: list[Tensor] = []
    best: list[Tensor] = []
    for context, sentence in texts:
        tokens = torch.tensor([[*context, *list(sentence) * times]])
        with torch.inference_mode():
            state = model.init_state(1)
            tokens = tokens.to(state.positions.device)
            scores = model.extend(tokens, state).logits[0, len(context) - 1 : -1].double()
        said = tokens[0, len(context) :, None]
        chances.append(scores.softmax(-1).gather(1, said).view(times, -1)[:, places])
        best.append((scores.argmax(-1, keepdim=True) == said).view(times, -1)[:, places])
    chance, chosen = torch.cat(chances, 1), torch.cat(best, 1).double()
    risen = (chance > chance[:1]).double()
    return Reinforcement(*(values.mean(1).tolist() for values in (chance, risen, chosen)))


def log_likelihoods(model: Decodable, prompt: Sequence[int], answers: Sequence[Sequence[int]]) -> list[float]:
    """Natural log-probabilities of answers to a prompt (token ids, the stop token included where there is one)."""
    table = padded([[*prompt, *answer] for answer in answers])
    with torch.inference_mode():
        state = state_for(model, [prompt] * len(answers))
        table = table.to(state.positions.device)
        chances = model.extend(table, state).logits[:, len(prompt) - 1 : -1].double().log_softmax(-1)
        said = chances.gather(2, table[:, len(prompt) :, None])[..., 0]
    return [float(row[: len(answer)].sum()) for row, answer in zip(said, answers)]
