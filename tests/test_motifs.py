"""Motifs: passages that return, varied; and where a known one returns."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segue.analysis.repeats import distance_table, edit_distances, occurrences, pair_scores
from segue.errors import SegueError
from segue.training.motifs import MotifRetriever, cut_segments, edit_randomly, largest_cluster


def naive(a: list[int], b: list[int]) -> int:
    if not a or not b:
        return len(a) + len(b)
    return min(naive(a[1:], b) + 1, naive(a, b[1:]) + 1, naive(a[1:], b[1:]) + (a[0] != b[0]))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 2), max_size=5), st.lists(st.integers(0, 2), max_size=5))
def test_edit_distances_equal_the_recursion(a: list[int], b: list[int]) -> None:
    assert edit_distances(a, b, anywhere=False)[-1] == naive(a, b)
    results = edit_distances(a, b)
    for end in range(len(b) + 1):
        assert results[end] == min(naive(a, b[begin:end]) for begin in range(end + 1))


def test_a_pattern_is_found_where_it_returns() -> None:
    pattern = np.arange(10)
    changed = np.array([0, 1, 2, 9, 4, 5, 6, 8, 9])  # one replaced, one left out
    other = np.arange(20, 35)
    ids = np.concatenate([pattern, other, changed, other, pattern[:4]])
    assert occurrences(pattern, ids) == [10, 34]
    assert occurrences(pattern, ids, tolerance=0.0) == [10] and occurrences(pattern, other) == []
    assert distance_table([pattern, changed])[0, 1] == pytest.approx(0.2)


def test_segments_cover_a_sequence() -> None:
    ids = np.arange(11)
    assert [segment.tolist() for segment in cut_segments(ids, 4)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]
    assert [len(segment) for segment in cut_segments(ids, 4, hop=3)] == [4, 4, 4, 2]
    assert [len(segment) for segment in cut_segments(ids[:1], 4)] == [1]
    with pytest.raises(SegueError, match="segments of 0"):
        cut_segments(ids, 0)


def test_labels_of_noise_are_no_motif() -> None:
    assert largest_cluster(np.array([-1, -1, -1])).tolist() == []
    assert largest_cluster(np.array([1, -1, 0, 0, 1, 0])).tolist() == [2, 3, 5]
    assert pair_scores(np.array([0, 0, -1, -1]), np.array([0, 0, 0, -1])) == (1, 1, 3)


def planted(rng: np.random.Generator, letters: int, length: int, rate: float) -> tuple[list[np.ndarray], np.ndarray]:
    """Segments of a sequence, among them four varied copies of one."""
    motif = rng.integers(0, letters, length)
    true = np.isin(np.arange(10), rng.permutation(10)[:4])
    return [edit_randomly(motif, rng, rate, letters) if has_motif else rng.integers(0, letters, length)
            for has_motif in true], np.where(true, 0, -1)


@pytest.mark.parametrize("letters, length, mixer", [(4, 40, "gru"), (30, 12, "gla")])  # DNA; a log of 30 events
def test_a_planted_motif_is_found(letters: int, length: int, mixer: str) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    pieces = [planted(rng, letters, length, 0.1) for _ in range(48)]
    alter = partial(edit_randomly, rate=0.1, letters=letters)
    retriever = MotifRetriever(letters, alter, mixer=mixer, width=32, eps=0.3)
    retriever.fit([segments for segments, _ in pieces[:40]], steps=50, rows=24)
    scores = [metrics.adjusted_rand_score(true, retriever.clusters(segments)) for segments, true in pieces[40:]]
    assert np.mean(scores) > 0.6, scores
    segments, true = pieces[-1]
    assert set(retriever.motif(segments).tolist()) & set(np.flatnonzero(true == 0).tolist())
    with pytest.raises(SegueError, match="2 or more"):
        retriever.fit([segments])
    with pytest.raises(SegueError, match="cosine distance"):
        MotifRetriever(4, partial(edit_randomly, rate=0.1, letters=4), eps=0.0)
