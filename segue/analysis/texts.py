"""Metrics of generated texts as sequences of tokens or words: overlap with references, diversity, repetition."""

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
    """Corpus BLEU, 0 to 100: pooled hits and totals of all texts, each with its own references. Exponential smoothing
    as in sacrebleu: the first n without any hit counts as 1/2 of a hit, the next as 1/4 ..."""
    totals, miss = list[tuple[float, float]](), 1.0
    for n in range(1, order + 1):
        counts = [_hits(text, own, n) for text, own in zip(texts, references, strict=True)]
        hits, total = float(sum(hits for hits, _ in counts)), float(sum(total for _, total in counts))
        if not hits and totals and total:
            hits = (miss := miss / 2)
        totals.append((hits, total))
    return _bleu(totals, sum(map(len, texts)), sum(_nearest(text, own) for text, own in zip(texts, references)))


def _hits(text: Text, references: Sequence[Text], n: int) -> tuple[int, int]:
    """Clipped n-gram matches of a text: n-grams that are in references, each at most as often as in one of them; and
    the number of its n-grams."""
    counts = ngrams(text, n)
    limits: Counter[tuple[Hashable, ...]] = Counter()
    for reference in references:
        limits |= ngrams(reference, n)
    return (counts & limits).total(), counts.total()


def _nearest(text: Text, references: Sequence[Text]) -> int:
    """The length of the reference nearest in length, the shorter of two."""
    return min((abs(len(reference) - len(text)), len(reference)) for reference in references)[1]


def _bleu(counts: Sequence[tuple[float, float]], length: int, reference_length: int) -> float:
    """BLEU from (hits, total) of each n, with the brevity penalty."""
    if not all(hits for hits, _ in counts):
        return 0.0
    brevity = min(0.0, 1 - reference_length / length)
    return 100 * exp(sum(log(hits / total) for hits, total in counts) / len(counts) + brevity)


def chrf(texts: Sequence[str], references: Sequence[str], order: int = 6, beta: float = 2.0) -> float:
    """chrF2 of a corpus, 0 to 100 (Popovic 2015): n-grams of letters without white space up to `order`; precision and
    recall over all texts, each averaged over the n that both sides have, recall counting `beta` times as much."""
    pairs = [("".join(text.split()), "".join(reference.split()))
             for text, reference in zip(texts, references, strict=True)]
    shares = []
    for n in range(1, order + 1):
        counts = [(*_hits(text, [reference], n), max(0, len(reference) - n + 1)) for text, reference in pairs]
        hits, in_texts, in_references = (sum(column) for column in zip(*counts))
        if in_texts and in_references:
            shares.append((hits / in_texts, hits / in_references))
    precision, recall = (sum(column) / len(shares) for column in zip(*shares)) if shares else (0.0, 0.0)
    return 100 * (1 + beta**2) * precision * recall / max(beta**2 * precision + recall, 1e-300)


def rouge(text: Text, reference: Text, n: int = 0) -> float:
    """ROUGE-n, the F1 of shared n-grams; n = 0: ROUGE-L, of the longest common subsequence (Lin 2004). 0 to 1."""
    if n:
        hits, in_text = _hits(text, [reference], n)
        in_reference = max(0, len(reference) - n + 1)
    else:
        hits, in_text, in_reference = common_subsequence(text, reference), len(text), len(reference)
    return 2 * hits / (in_text + in_reference) if in_text + in_reference else 0.0


def common_subsequence(one: Text, other: Text) -> int:
    """The length of the longest common subsequence, by bit-parallel dynamic programming (Hyyro 2004)."""
    positions, full = dict[Hashable, int](), (1 << len(one)) - 1  # the bits at which each element is in `one`
    for i, element in enumerate(one):
        positions[element] = positions.get(element, 0) | 1 << i
    row = full
    for element in other:
        matches = row & positions.get(element, 0)
        row = (row + matches | row - matches) & full
    return len(one) - row.bit_count()


def edit_distance(one: Text, other: Text) -> int:
    """The fewest insertions, deletions, replacements and transpositions that turn one into the other
    (Damerau-Levenshtein, Lowrance & Wagner 1975: transposed elements may have others between them)."""
    infinite, last_row = len(one) + len(other), dict[Hashable, int]()
    table = [[infinite] * (len(other) + 2), [infinite, *range(len(other) + 1)]]  # with a border row and column
    for i, a in enumerate(one, 1):
        row, above, last_column = [infinite, i], table[-1], 0
        for j, b in enumerate(other, 1):
            k, m = last_row.get(b, 0), last_column  # where b was last in `one`, and a in `other`, before here
            if a == b:
                last_column = j
            transposed = table[k][m] + (i - k - 1) + 1 + (j - m - 1)
            row.append(min(above[j] + (a != b), row[j] + 1, above[j + 1] + 1, transposed))
        table.append(row)
        last_row[a] = i
    return table[-1][-1]


def edit_similarity(one: Text, other: Text) -> float:
    """1 - `edit_distance` / the longer length: 1 where both are equal."""
    return 1 - edit_distance(one, other) / max(len(one), len(other), 1)


def distinct(texts: Sequence[Text], n: int) -> float:
    """distinct-n: different n-grams of all texts over their number of tokens (Li et al. 2016)."""
    return len(set().union(*(ngrams(text, n) for text in texts))) / max(sum(map(len, texts)), 1)


def repetition(text: Text, n: int) -> float:
    """rep-n: the share of a text's n-grams that are repeats, 1 - different / all; 0 where it is shorter than n."""
    counts = ngrams(text, n)
    return 1 - len(counts) / max(counts.total(), 1) if counts else 0.0


def predicted_repeats(predicted: Text, text: Text, window: int = 128) -> tuple[float, float]:
    """The share of a model's argmax predictions that are among the `window` elements before (rep/l), and of those that
    are also wrong (wrep/l) (Welleck et al. 2020). predicted[i]: the argmax given text[:i]."""
    if window < 1:
        raise SegueError("window needs at least 1")
    repeats = [element in text[max(0, i - window) : i] for i, element in enumerate(predicted)]
    wrong = [repeat and element != true for repeat, element, true in zip(repeats, predicted, text, strict=True)]
    return sum(repeats) / max(len(text), 1), sum(wrong) / max(len(text), 1)


def diversity(texts: Sequence[Text]) -> float:
    """The product over n = 2, 3, 4 of 1 - the mean of `repetition` (Su et al. 2022, arXiv 2202.06417)."""
    return prod(1 - sum(repetition(text, n) for text in texts) / max(len(texts), 1) for n in (2, 3, 4))


def self_bleu(texts: Sequence[Text], order: int = 4) -> float:
    """The mean over texts of `sentence_bleu` with all others as references (Zhu et al. 2018, arXiv 1802.01886): high
    where they are similar. 0 of fewer than two."""
    if len(texts) < 2:
        return 0.0
    top_counts = [_top_counts(texts, n) for n in range(1, order + 1)]
    lengths = sorted(map(len, texts))
    total = 0.0
    for index, text in enumerate(texts):
        counts = []
        for n, top in enumerate(top_counts, 1):
            own = ngrams(text, n)
            hits = sum(min(count, top[gram][2] if top[gram][1] == index else top[gram][0])
                       for gram, count in own.items())
            counts.append((hits + (n > 1), own.total() + (n > 1)))
        rank = bisect_left(lengths, len(text))
        neighbours = lengths[max(0, rank - 1) : rank] + lengths[rank + 1 : rank + 2]  # without its own length
        total += _bleu(counts, len(text), min((abs(n - len(text)), n) for n in neighbours)[1]) if text else 0.0
    return total / len(texts)


def _top_counts(texts: Sequence[Text], n: int) -> dict[tuple[Hashable, ...], tuple[int, int, int]]:
    """By n-gram: its highest count in one text, the index of that text, and the highest count in another text."""
    top = dict[tuple[Hashable, ...], tuple[int, int, int]]()
    for index, text in enumerate(texts):
        for gram, count in ngrams(text, n).items():
            highest, owner, second = top.get(gram, (0, -1, 0))
            top[gram] = (count, index, highest) if count > highest else (highest, owner, max(second, count))
    return top


def entropy(texts: Sequence[Text]) -> float:
    """Bits of the distribution of single elements over all texts."""
    counts = sum((Counter(text) for text in texts), Counter[Hashable]())
    n = counts.total()
    return -sum(count / n * log2(count / n) for count in counts.values()) + 0.0


def zipf(texts: Sequence[Text]) -> float:
    """Zipf's exponent s of frequency ~ rank^-s over the elements of all texts (Holtzman et al. 2020), by least squares
    on the logarithms; about 1 in prose. 0 for fewer than two different elements."""
    counts = sorted(sum((Counter(text) for text in texts), Counter[Hashable]()).values(), reverse=True)
    if len(counts) < 2:
        return 0.0
    return -float(np.polyfit(np.log(np.arange(1, len(counts) + 1)), np.log(counts), 1)[0])


def novelty(texts: Sequence[Text], training: Sequence[Text], n: int = 4) -> float:
    """The share of the texts' n-grams that are in no training text: low where texts are copied; 0 without n-grams."""
    known = set().union(*(ngrams(text, n) for text in training))
    grams = [gram for text in texts for gram in ngrams(text, n).elements()]
    return sum(gram not in known for gram in grams) / max(len(grams), 1)


@dataclass
class Reinforcement:
    """The self-reinforcement of a model by repeated sentences, for their first to Nth occurrence.

    chance: (N,) mean probability of their tokens (TP). risen: (N,) share of tokens that are more probable than at the
    first occurrence (IP). chosen: (N,) share that are the argmax (WR).
    """

    chance: list[float]
    risen: list[float]
    chosen: list[float]


def reinforcement(model: Decodable, texts: Sequence[tuple[Sequence[int], Sequence[int]]], times: int,
                  places: slice = slice(None)) -> Reinforcement:
    """Read each sentence `times` times in a row after its context (Xu et al. 2022, arXiv 2206.02369).

    texts: (context, sentence) pairs of token ids, no context empty. places: the tokens of each sentence that count
    (`slice(1, None)` leaves out a separator at its beginning).
    """
    probabilities: list[Tensor] = []
    argmax: list[Tensor] = []
    for context, sentence in texts:
        tokens = torch.tensor([[*context, *list(sentence) * times]])
        with torch.inference_mode():
            state = model.init_state(1)
            tokens = tokens.to(state.positions.device)
            scores = model.extend(tokens, state).logits[0, len(context) - 1 : -1].double()
        targets = tokens[0, len(context) :, None]
        probabilities.append(scores.softmax(-1).gather(1, targets).view(times, -1)[:, places])
        argmax.append((scores.argmax(-1, keepdim=True) == targets).view(times, -1)[:, places])
    chance, chosen = torch.cat(probabilities, 1), torch.cat(argmax, 1).double()
    risen = (chance > chance[:1]).double()
    return Reinforcement(*(values.mean(1).tolist() for values in (chance, risen, chosen)))


def log_likelihoods(model: Decodable, prompt: Sequence[int], answers: Sequence[Sequence[int]]) -> list[float]:
    """Natural log-probabilities of answers to a prompt (token ids, the stop token included where there is one)."""
    table = pad_rows([[*prompt, *answer] for answer in answers])
    with torch.inference_mode():
        state = init_prompt_state(model, [prompt] * len(answers))
        table = table.to(state.positions.device)
        log_probs = model.extend(table, state).logits[:, len(prompt) - 1 : -1].double().log_softmax(-1)
        token_log_probs = log_probs.gather(2, table[:, len(prompt) :, None])[..., 0]
    return [float(row[: len(answer)].sum()) for row, answer in zip(token_log_probs, answers)]
