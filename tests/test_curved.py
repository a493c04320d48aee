"""The claims of curved contrastive learning and of instruction residuals: their data, measures and rules."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from segue.papers.cpt_ift import CONTEXT, sample_requests
from segue.papers.curved_contrastive import (
    BM25,
    Vectors,
    evaluate,
    load_dailydialog,
    load_dialogsum,
    without_copies,
)


class Told:
    """Vectors from which the distance of turns can be read: the nearer, the higher the score."""

    def score(self, turn: int, others: np.ndarray, odd: bool) -> np.ndarray:
        return np.where(others > turn, 1.0 - 0.1 * (others - turn), -1.0)

    def history(self, turns: list[int], others: np.ndarray) -> np.ndarray:
        return np.sum([self.score(turn, others, True) for turn in turns], 0)


def test_a_perfect_system_scores_high_and_an_ignorant_one_at_chance() -> None:
    test = [[[i * 20 + j] for j in range(12)] for i in range(6)]
    results = evaluate(Told(), test, 0)  # type: ignore[arg-type]
    assert results["spearman"] == pytest.approx(1) and results["forward"] == results["top order"] == 1
    assert results["cosines"] == sorted(results["cosines"], reverse=True) and results["rank, 1 ahead"] <= 0.6
    nothing = evaluate(BM25(test), test, 0)  # no word is said twice
    assert nothing["forward"] == 0.5 and nothing["top order"] == pytest.approx(1 / 6)
    assert nothing["rank, 8 turns"] == pytest.approx((6 + 1) / 2 / 6)

    class Flat:
        def before(self, rows: list[list[int]], odd: bool) -> torch.Tensor:
            return torch.nn.functional.normalize(torch.randn(len(rows), 4, generator=torch.Generator().manual_seed(1)))

        def after(self, rows: list[list[int]]) -> torch.Tensor:
            return self.before(rows, True)

    blind = evaluate(Vectors(Flat(), test), test, 0)  # type: ignore[arg-type]
    assert blind["forward"] == 0.5  # the same both ways


def test_dialogues_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"Hi . __eou__ Hello ! __eou__\nBye __eou__\n"))
    assert load_dailydialog(tmp_path / "a.gz") == [["Hi .", "Hello !"], ["Bye"]]
    rows = [{"dialogue": "#Person1#: Hi.\n#Person2#: Hello!"}]
    (tmp_path / "b.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    assert load_dialogsum(tmp_path / "b.gz") == [["Hi.", "Hello!"]]


def test_request_batches_have_the_right_answers() -> None:
    batch = sample_requests(3, 1, np.random.default_rng(0))
    assert batch.tokens.shape == batch.targets.shape == (3, CONTEXT)
    for row, answers in zip(batch.tokens.tolist(), batch.targets.tolist()):
        text = bytes([*row, max(answers[-1], 10)]).decode()
        answer_lines = bytes(a for a in answers if a >= 0).decode().split("\n")
        for line, answer in zip(text.strip("\n").split("\n"), answer_lines):
            request, _, text_answer = line.partition("=")
            word = request.partition("(")[2].rstrip(")")
            expected = word.upper() if request.startswith("large") else word * 2
            assert text_answer == answer and expected.startswith(text_answer)
    single = sample_requests(5, 1, np.random.default_rng(0), most=1)
    assert all(bytes(a for a in row if a >= 0).count(b"\n") == 1 for row in single.targets.tolist())


def test_dialogues_of_the_test_part_are_not_learned_from() -> None:
    test = [["How was your holiday?", "Yes.", "It rained for all of the week."], ["What time is it?", "Half past ten."]]
    copied = ["How was your holiday ?", "No!", "it rained, for all of the week"]
    other = ["How was your holiday?", "I stayed at home with the children.", "Did they like that?"]
    assert without_copies([copied, other, ["Where did you leave the keys?", "Yes."]], test) == [
        other, ["Where did you leave the keys?", "Yes."]]
