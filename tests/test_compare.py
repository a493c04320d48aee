"""`compare`: every method on one split, by one scorer."""

from __future__ import annotations

import random

import numpy as np
import pytest

import segue
from segue.errors import SegueError
from segue.verbs.compare import subsample


def loops(n: int = 150) -> list[list[str]]:
    draw = random.Random(0)
    return [["in", *["work", "check"] * draw.randint(1, 4), draw.choice(["good", "bad"])] for _ in range(n)]


def test_all_methods_are_compared() -> None:
    comparison = segue.compare(loops(), minutes=0.05, quiet=True)
    by_name = {result.method: result for result in comparison.results}
    assert {"directly-follows graph", "Kneser-Ney", "hidden Markov model", "automaton (spectral)", "attention",
            "mamba"} <= set(by_name)
    assert [r.bits for r in comparison.results] == sorted(r.bits for r in comparison.results)
    assert by_name["Witten-Bell"].bits < 0.75 * by_name["frequencies"].bits
    assert all(0 <= r.accuracy <= 1 and r.bits > 0 and np.isfinite(r.brier) for r in comparison.results)
    assert comparison.to_dict()["results"][0]["method"] == comparison.results[0].method


def test_bad_comparisons_are_refused() -> None:
    with pytest.raises(SegueError, match="minutes"):
        segue.compare(loops(), minutes=0)
    with pytest.raises(SegueError):
        segue.compare([["a"]], minutes=0.1, quiet=True)


def test_a_sample_is_spread_over_the_data() -> None:
    sequences = [np.full(10, i) for i in range(100)]
    chosen = [int(s[0]) for s in subsample(sequences, 100)]
    assert len(chosen) == 10 and chosen[0] == 0 and chosen[-1] == 99
    assert subsample(sequences, 10_000) is sequences
