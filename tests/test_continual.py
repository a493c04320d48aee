"""The replay buffer and the score matrix."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segue.continual.buffer import Reservoir
from segue.continual.metrics import ScoreMatrix
from segue.errors import SegueError


@settings(max_examples=30, deadline=None, derandomize=True)
@given(lengths=st.lists(st.integers(0, 30), max_size=12), capacity=st.integers(1, 8), length=st.integers(2, 9))
def test_a_reservoir_is_bounded_and_holds_only_offered_pieces(lengths: list[int], capacity: int, length: int) -> None:
    buffer = Reservoir(capacity, length)
    start, pieces = 0, []
    for n in lengths:
        ids = np.arange(start, start + n)
        buffer.offer([ids])
        pieces += [ids[b : b + length].tolist() for b in range(0, max(n - 1, 0), length)]
        start += n
    assert buffer.seen == len(pieces)
    assert len(buffer) == min(capacity, len(pieces))
    assert all(piece.tolist() in pieces for piece in buffer.pieces)


def test_a_reservoir_keeps_every_piece_with_equal_probability() -> None:
    counts = np.zeros(20)
    for seed in range(2000):
        buffer = Reservoir(5, 2, seed)
        buffer.offer(np.array([i, i]) for i in range(20))
        for piece in buffer.pieces:
            counts[piece[0]] += 1
    expected = 2000 * 5 / 20
    chi2 = ((counts - expected) ** 2 / expected).sum()
    assert chi2 < 43.8  # 99.9% of the chi-square distribution with 19 degrees of freedom


def test_a_loaded_reservoir_continues_as_the_saved_one(tmp_path: Path) -> None:
    sequences = [np.arange(i, i + 7) for i in range(50)]
    uninterrupted, half = Reservoir(6, 4, 3), Reservoir(6, 4, 3)
    uninterrupted.offer(sequences)
    half.offer(sequences[:20])
    half.save(tmp_path)
    loaded = Reservoir.load(tmp_path)
    loaded.offer(sequences[20:])
    assert [p.tolist() for p in uninterrupted.pieces] == [p.tolist() for p in loaded.pieces]
    (tmp_path / "replay.safetensors").write_bytes(b"nonsense")
    with pytest.raises(SegueError, match="replay"):
        Reservoir.load(tmp_path)


def test_an_empty_reservoir_is_saved_too(tmp_path: Path) -> None:
    buffer = Reservoir(3, 4)
    buffer.save(tmp_path)
    assert len(Reservoir.load(tmp_path)) == 0


def test_forgetting_and_gain() -> None:
    bits = ScoreMatrix(np.array([[2.0, 5.0], [2.5, 3.0], [2.25, 2.5]]), ["old", "new"], ["before", "one", "two"],
                       "bits per byte")
    assert bits.forgetting("old") == pytest.approx(0.25)
    assert bits.gain("new") == pytest.approx(2.5)
    accuracy = ScoreMatrix(np.array([[0.9, 0.1], [0.7, 0.8]]), ["old", "new"], ["before", "after"], "accuracy", True)
    assert accuracy.forgetting("old") == pytest.approx(0.2)
    assert accuracy.gain("old") == pytest.approx(-0.2)
    assert accuracy.to_dict()["gain"]["new"] == pytest.approx(0.7)


def test_averages_and_backward_transfer() -> None:
    stream = ScoreMatrix(np.array([[0.1, 0.2, 0.0], [0.9, 0.1, 0.0], [0.5, 0.8, 0.1], [0.3, 0.6, 0.7]]),
                         ["a", "b", "c"], ["before", "a", "b", "c"], "accuracy", True)
    assert stream.average == pytest.approx((0.3 + 0.6 + 0.7) / 3)
    assert stream.average_so_far == pytest.approx((0.9 + 0.65 + 1.6 / 3) / 3)
    assert stream.backward_transfer == pytest.approx(((0.3 - 0.9) + (0.6 - 0.8)) / 2)
    update = ScoreMatrix(np.array([[2.0, 3.0, 5.0], [2.5, 2.9, 4.0]]), ["a", "b", "new"], ["before", "after"], "bits")
    assert update.backward_transfer == pytest.approx((-0.5 + 0.1) / 2)  # fewer bits are better
    assert update.average == update.average_so_far == pytest.approx(9.4 / 3)
    single = ScoreMatrix(np.array([[0.0], [1.0]]), ["a"], ["before", "a"], "accuracy", True)
    assert single.backward_transfer == 0.0
    assert stream.to_dict()["backward_transfer"] == stream.backward_transfer
