"""Scores of texts: each against its plain definition on drawn texts, and worked examples."""

from __future__ import annotations

import math
from collections import Counter
from functools import cache
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segue.analysis.metrics import pass_at
from segue.analysis.texts import (
    bleu,
    chrf,
    common_subsequence,
    distinct,
    diversity,
    edit_distance,
    edit_similarity,
    entropy,
    novelty,
    predicted_repeats,
    repetition,
    rouge,
    self_bleu,
    sentence_bleu,
    zipf,
)
from segue.errors import SegueError

words = st.text("abc", max_size=7)
groups = st.lists(words, min_size=2, max_size=5)


@given(words, words)
def test_subsequence_lengths_and_edit_distances_equal_recursions(first: str, second: str) -> None:
    @cache
    def shared(i: int, j: int) -> int:
        if not i or not j:
            return 0
        return shared(i - 1, j - 1) + 1 if first[i - 1] == second[j - 1] else max(shared(i - 1, j), shared(i, j - 1))

    @cache
    def edits(i: int, j: int) -> int:
        if not i or not j:
            return i + j
        costs = [edits(i - 1, j) + 1, edits(i, j - 1) + 1, edits(i - 1, j - 1) + (first[i - 1] != second[j - 1])]
        # A swap: one[k] and one[i - 1] are other[j - 1] and other[m]; what lies between goes or comes.
        costs += [edits(k, m) + (i - k - 2) + 1 + (j - m - 2) for k in range(i - 1) for m in range(j - 1)
                  if first[k] == second[j - 1] and first[i - 1] == second[m]]
        return min(costs)

    assert common_subsequence(first, second) == shared(len(first), len(second))
    assert edit_distance(first, second) == edits(len(first), len(second)) == edit_distance(second, first)
    assert 0 <= edit_similarity(first, second) <= 1 and edit_similarity(first, first) == 1


def test_worked_distances() -> None:
    assert edit_distance("ca", "abc") == 2  # the swap may hold others between; without that it is 3
    assert edit_distance("kitten", "sitting") == 3 and edit_distance("ab", "ba") == 1
    assert rouge(["the", "cat", "sat"], ["the", "cat"], 1) == pytest.approx(0.8)
    assert rouge("axbc", "abc") == pytest.approx(6 / 7)


@given(groups)
@settings(deadline=None)
def test_self_bleu_averages_over_texts(texts: list[str]) -> None:
    scores = [sentence_bleu(text, texts[:i] + texts[i + 1 :]) for i, text in enumerate(texts)]
    assert self_bleu(texts) == pytest.approx(sum(scores) / len(texts))


@given(st.lists(st.tuples(words, words), min_size=1, max_size=4))
def test_bleu_and_chrf_equal_their_definitions(pairs: list[tuple[str, str]]) -> None:
    texts, references = [a for a, _ in pairs], [b for _, b in pairs]

    def counted(text: str, n: int) -> Counter[str]:
        return Counter(text[i : i + n] for i in range(len(text) - n + 1))

    for n in (1, 2):
        for a, b in pairs:
            both, size = (counted(a, n) & counted(b, n)).total(), counted(a, n).total() + counted(b, n).total()
            assert rouge(a, b, n) == pytest.approx(2 * both / size if size else 0)
    precisions, recalls = [], []
    for n in range(1, 7):
        hits = sum((counted(a, n) & counted(b, n)).total() for a, b in pairs)
        produced, expected = (sum(counted(value, n).total() for value in side) for side in (texts, references))
        if produced and expected:
            precisions.append(hits / produced)
            recalls.append(hits / expected)
    p, r = (np.mean(value) if value else 0.0 for value in (precisions, recalls))
    assert chrf(texts, references) == pytest.approx(100 * 5 * p * r / (4 * p + r) if p + r else 0)
    assert chrf(texts, [f" {value[:2]} {value[2:]}" for value in references]) == pytest.approx(chrf(texts, references))
    corpus_score = bleu(texts, [[value] for value in references])
    assert 0 <= corpus_score <= 100 + 1e-9
    if all(len(value) > 3 for value in texts):
        assert bleu(texts, [[value] for value in texts]) == pytest.approx(100)


def test_bleu_of_a_corpus() -> None:
    # Hits of totals over both: 5/6, 3/4, 1/2, and of no 4-gram at all nothing can hit.
    assert bleu(["abc", "xyz"], [["abc"], ["xyw"]], 3) == pytest.approx(100 * (5 / 6 * 3 / 4 * 1 / 2) ** (1 / 3))
    assert bleu(["abc", "xyz"], [["abc"], ["xyw"]]) == 0
    # No 2-gram hits, then no 3-gram: half a hit of 2, a quarter of 1; and a word short of four.
    assert bleu(["abc"], [["cbax"]], 3) == pytest.approx(100 * (1 * 0.25 * 0.25) ** (1 / 3) * math.exp(-1 / 3))
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        bleu(["a", "b"], [["a"]])


@given(groups)
def test_diversity_measures_equal_their_definitions(texts: list[str]) -> None:
    grams = [[text[i : i + 2] for i in range(len(text) - 1)] for text in texts]
    flat = [gram for run in grams for gram in run]
    assert distinct(texts, 2) == pytest.approx(len(set(flat)) / max(sum(map(len, texts)), 1))
    rep = [1 - len(set(run)) / len(run) if run else 0.0 for run in grams]
    assert [repetition(text, 2) for text in texts] == pytest.approx(rep)
    assert 0 <= diversity(texts) <= 1
    letters = Counter("".join(texts)).values()
    chances = np.array(list(letters)) / max(sum(letters), 1)
    assert entropy(texts) == pytest.approx(-(chances * np.log2(chances)).sum(), abs=1e-12)
    assert novelty(texts, texts, 2) == 0 and novelty(texts, ["zz"], 2) == (1 if flat else 0)
    assert novelty(texts, texts[:1], 2) == pytest.approx(np.mean([g not in grams[0] for g in flat]) if flat else 0)


def test_degenerate_and_known_answers() -> None:
    assert diversity([]) == 1 and entropy([[]]) == 0 and self_bleu(["a"]) == 0 and zipf(["aaa"]) == 0
    assert self_bleu(["abcde"] * 3) == pytest.approx(100)
    power = [i for i in range(1, 200) for _ in range(round(100_000 / i))]
    assert zipf([power]) == pytest.approx(1, abs=0.01)
    assert zipf(["aabbcc"]) == pytest.approx(0, abs=1e-9)
    assert entropy(["abcd"]) == 2


def test_likeliest_elements_that_were_said_before() -> None:
    assert predicted_repeats("xaab", "abab", 1) == (0.25, 0.25)  # of the last one only "a" for "b"
    assert predicted_repeats("xaab", "abab", 2) == (0.75, 0.25)  # and "a" for "a", "b" for "b", which are right
    assert predicted_repeats("", "") == (0, 0)
    with pytest.raises(SegueError, match="at least 1"):
        predicted_repeats("a", "a", 0)


@given(st.lists(st.booleans(), min_size=1, max_size=6), st.integers(1, 6))
def test_pass_at_k_equals_enumeration(tries: list[bool], k: int) -> None:
    n, correct = len(tries), sum(tries)
    if k > n:
        with pytest.raises(SegueError, match="tries or more"):
            pass_at(k, [n], [correct])
        return
    passes = [any(chosen) for chosen in combinations(tries, k)]
    assert pass_at(k, [n], [correct]) == pytest.approx(np.mean(passes))
    assert pass_at(k, [n, n], [correct, 0]) == pytest.approx(np.mean(passes) / 2)
