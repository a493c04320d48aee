"""Scores of generated texts as sequences of tokens or words: overlap with references, variety."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from math import exp, log, log2, prod

import numpy as np
import torch
from torch import Tensor

from segue.errors import SegueError
from segue.models.base import Decodable, init_prompt_state, pad_rows

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
    counts = [_hits(text, references, n) for n in range(1, order + 1)]
    return _bleu([(hits + (n > 0), total + (n > 0)) for n, (hits, total) in enumerate(counts)], len(text),
                 _nearest(text, references))


def bleu(texts: Sequence[Text], references: Sequence[Sequence[Text]], order: int = 4) -> float:
    """BLEU of a corpus, 0 to 100: hits and totals of all texts together, each with references of its own. Where none of
    the n-grams of a length hits, the first such length counts 1/2 of a hit, the next 1/4 ... (sacrebleu's "exp")."""
    totals, miss = list[tuple[float, float]](), 1.0
    for n in range(1, order + 1):
        counts = [_hits(text, given, n) for text, given in zip(texts, references, strict=True)]
        hits, total = float(sum(hits for hits, _ in counts)), float(sum(total for _, total in counts))
        if not hits and totals and total:
            hits = (miss := miss / 2)
        totals.append((hits, total))
    return _bleu(totals, sum(map(len, texts)), sum(_nearest(text, given) for text, given in zip(texts, references)))


def _hits(text: Text, references: Sequence[Text], n: int) -> tuple[int, int]:
    """How many n-grams of a text references hold, each at most as often as in one of them; and how many there are."""
    found = ngrams(text, n)
    allowed: Counter[tuple[Hashable, ...]] = Counter()
    for reference in references:
        allowed |= ngrams(reference, n)
    return (found & allowed).total(), found.total()


def _nearest(text: Text, references: Sequence[Text]) -> int:
    return min((abs(len(reference) - len(text)), len(reference)) for reference in references)[1]


def _bleu(counts: Sequence[tuple[float, float]], length: int, wanted: int) -> float:
    if not all(hits for hits, _ in counts):
        return 0.0
    return 100 * exp(sum(log(hits / total) for hits, total in counts) / len(counts) + min(0.0, 1 - wanted / length))


def chrf(texts: Sequence[str], references: Sequence[str], order: int = 6, beta: float = 2.0) -> float:
    """chrF2 of a corpus, 0 to 100 (Popovic 2015): n-grams of letters without white space up to `order`; precision and
    recall over all texts, each averaged over the n that both sides have, recall counting `beta` times as much."""
    pairs = [("".join(text.split()), "".join(reference.split()))
             for text, reference in zip(texts, references, strict=True)]
    shares = []
    for n in range(1, order + 1):
        counts = [(*_hits(text, [reference], n), max(0, len(reference) - n + 1)) for text, reference in pairs]
        hits, said, wanted = (sum(column) for column in zip(*counts))
        if said and wanted:
            shares.append((hits / said, hits / wanted))
    precision, recall = (sum(column) / len(shares) for column in zip(*shares)) if shares else (0.0, 0.0)
    return 100 * (1 + beta**2) * precision * recall / max(beta**2 * precision + recall, 1e-300)


def rouge(text: Text, reference: Text, n: int = 0) -> float:
    """ROUGE-n, the F1 of shared n-grams; n = 0: ROUGE-L, of the longest common subsequence (Lin 2004). 0 to 1."""
    if n:
        hits, said = _hits(text, [reference], n)
        wanted = max(0, len(reference) - n + 1)
    else:
        hits, said, wanted = common_subsequence(text, reference), len(text), len(reference)
    return 2 * hits / (said + wanted) if said + wanted else 0.0


def common_subsequence(one: Text, other: Text) -> int:
    """The length of the longest common subsequence, a row of its table at a time in the bits of a number (Hyyro
    2004)."""
    places, full = dict[Hashable, int](), (1 << len(one)) - 1
    for at, element in enumerate(one):
        places[element] = places.get(element, 0) | 1 << at
    row = full
    for element in other:
        there = row & places.get(element, 0)
        row = (row + there | row - there) & full
    return len(one) - row.bit_count()


def edit_distance(one: Text, other: Text) -> int:
    """How many elements must be put in, taken out, exchanged, or swapped with their neighbour, to make one the other
    (Damerau-Levenshtein, Lowrance & Wagner 1975: others may come between the two that were swapped)."""
    far, last = len(one) + len(other), dict[Hashable, int]()
    table = [[far] * (len(other) + 2), [far, *range(len(other) + 1)]]  # one row and column beyond those of the prefixes
    for i, a in enumerate(one, 1):
        row, before, match = [far, i], table[-1], 0
        for j, b in enumerate(other, 1):
            k, at = last.get(b, 0), match  # where b stood last in one, and a in the other, before here
            if a == b:
                match = j
            row.append(min(before[j] + (a != b), row[j] + 1, before[j + 1] + 1,
                           table[k][at] + (i - k - 1) + 1 + (j - at - 1)))
        table.append(row)
        last[a] = i
    return table[-1][-1]


def edit_similarity(one: Text, other: Text) -> float:
    """1 - `edit_distance` / the longer length: 1 where both are the same."""
    return 1 - edit_distance(one, other) / max(len(one), len(other), 1)


def distinct(texts: Sequence[Text], n: int) -> float:
    """How many different n-grams the texts of one list hold, divided by how many tokens (Li et al. 2016)."""
    return len(set().union(*(ngrams(text, n) for text in texts))) / max(sum(map(len, texts)), 1)


def repetition(text: Text, n: int) -> float:
    """The share of a text's n-grams that it held before, 1 - different / all (rep-n); 0 where it is shorter than n."""
    found = ngrams(text, n)
    return 1 - len(found) / max(found.total(), 1) if found else 0.0


def predicted_repeats(predicted: Text, text: Text, window: int = 128) -> tuple[float, float]:
    """How often a model's likeliest next element is one of the `window` before it (rep/l), and how often it is that and
    wrong (wrep/l), over all elements of a text (Welleck et al. 2020): predicted[i] is what text[i] was expected to
    be."""
    if window < 1:
        raise SegueError("window needs at least 1")
    again = [said in text[max(0, at - window) : at] for at, said in enumerate(predicted)]
    wrong = [held and said != true for held, said, true in zip(again, predicted, text, strict=True)]
    return sum(again) / max(len(text), 1), sum(wrong) / max(len(text), 1)


def diversity(texts: Sequence[Text]) -> float:
    """The product over n = 2, 3, 4 of 1 - the mean of `repetition` (Su et al. 2022, arXiv 2202.06417)."""
    return prod(1 - sum(repetition(text, n) for text in texts) / max(len(texts), 1) for n in (2, 3, 4))


def self_bleu(texts: Sequence[Text], order: int = 4) -> float:
    """The mean over texts of `sentence_bleu` with all others as references (Zhu et al. 2018, arXiv 1802.01886): high
    where they are alike. 0 of fewer than two."""
    if len(texts) < 2:
        return 0.0
    owners: list[dict[tuple[Hashable, ...], tuple[int, int, int]]] = []  # the highest count, whose it is, the next
    for n in range(1, order + 1):
        best = dict[tuple[Hashable, ...], tuple[int, int, int]]()
        for at, text in enumerate(texts):
            for gram, count in ngrams(text, n).items():
                most, owner, second = best.get(gram, (0, -1, 0))
                best[gram] = (count, at, most) if count > most else (most, owner, max(second, count))
        owners.append(best)
    lengths = sorted(map(len, texts))
    total = 0.0
    for at, text in enumerate(texts):
        counts = []
        for n, best in enumerate(owners, 1):
            found = ngrams(text, n)
            hits = sum(min(count, best[gram][2] if best[gram][1] == at else best[gram][0])
                       for gram, count in found.items())
            counts.append((hits + (n > 1), found.total() + (n > 1)))
        place = bisect_left(lengths, len(text))
        near = lengths[max(0, place - 1) : place] + lengths[place + 1 : place + 2]  # without its own
        total += _bleu(counts, len(text), min((abs(n - len(text)), n) for n in near)[1]) if text else 0.0
    return total / len(texts)


def entropy(texts: Sequence[Text]) -> float:
    """Bits of the distribution of single elements over all texts."""
    counts = sum((Counter(text) for text in texts), Counter[Hashable]())
    n = counts.total()
    return -sum(count / n * log2(count / n) for count in counts.values()) + 0.0


def zipf(texts: Sequence[Text]) -> float:
    """The exponent s of frequency ~ rank^-s over the elements of all texts (Holtzman et al. 2020), by least squares
    between the logarithms; about 1 in prose. 0 of fewer than two different ones."""
    counts = sorted(sum((Counter(text) for text in texts), Counter[Hashable]()).values(), reverse=True)
    if len(counts) < 2:
        return 0.0
    return -float(np.polyfit(np.log(np.arange(1, len(counts) + 1)), np.log(counts), 1)[0])


def novelty(texts: Sequence[Text], learned: Sequence[Text], n: int = 4) -> float:
    """The share of the texts' n-grams that no text that was learned from holds: low where they are copied; 0 where
    there are none."""
    held = set().union(*(ngrams(text, n) for text in learned))
    found = [gram for text in texts for gram in ngrams(text, n).elements()]
    return sum(gram not in held for gram in found) / max(len(found), 1)


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
    table = pad_rows([[*prompt, *answer] for answer in answers])
    with torch.inference_mode():
        state = init_prompt_state(model, [prompt] * len(answers))
        table = table.to(state.positions.device)
        chances = model.extend(table, state).logits[:, len(prompt) - 1 : -1].double().log_softmax(-1)
        said = chances.gather(2, table[:, len(prompt) :, None])[..., 0]
    return [float(row[: len(answer)].sum()) for row, answer in zip(said, answers)]
