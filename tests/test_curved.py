"""The claims of curved contrastive learning and of instruction residuals: their data, measures and rules."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from segue.papers import claim
from segue.papers.base import Row
from segue.papers.cpt_ift import BARE, CONTEXT, DIRECT, REPLAY, RESTORED, sample_requests
from segue.papers.curved_contrastive import (
    BLIND,
    BM25,
    CURVED,
    LEXICAL,
    NEXT,
    OTHER,
    Vectors,
    evaluate,
    load_dailydialog,
    load_dialogsum,
)


class Told:
    """Vectors by which every turn knows its number: the nearer behind, the higher."""

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


def systems(**change: Any) -> list[Row]:
    curved = {"spearman": 0.3, "cosines": [0.4, 0.3, 0.2, 0.1], "forward": 0.7, "forward, 95%": [0.68, 0.72],
              "top order": 0.4, "top order, 95%": [0.38, 0.42], "rank, 1 turns": 0.4, "rank, 8 turns": 0.2,
              "rank, 1 ahead": 0.2, "rank, 4 ahead": 0.4}
    blind = {"forward": change.pop("blind", 0.5)}
    rows: list[Row] = [{"system": CURVED, "mixer": "attention", **curved, **change} for _ in range(2)]
    rows += [{"system": system, "mixer": "attention", **curved, **(blind if system == BLIND else {})}
             for system in (BLIND, NEXT)]
    return [*rows, {"system": CURVED, "mixer": OTHER, **curved}, {"system": LEXICAL, "mixer": "", **curved}]


@pytest.mark.parametrize(("change", "verdict"), [
    ({}, "confirmed"), ({"forward, 95%": [0.49, 0.9]}, "refuted"), ({"top order, 95%": [0.16, 0.9]}, "refuted"),
    ({"spearman": 0.19}, "inconclusive"), ({"cosines": [0.4, 0.3, 0.31, 0.1]}, "inconclusive"),
    ({"forward": 0.64}, "inconclusive"), ({"rank, 8 turns": 0.33}, "inconclusive"), ({"blind": 0.51}, "inconclusive")])
def test_the_rule_of_curved_contrastive(change: dict[str, Any], verdict: str) -> None:
    assert claim("curved-contrastive").judge(systems(**change))[0] == verdict


def test_requests_are_asked_and_answered() -> None:
    batch = sample_requests(3, 1, np.random.default_rng(0))
    assert batch.tokens.shape == batch.targets.shape == (3, CONTEXT)
    for row, answers in zip(batch.tokens.tolist(), batch.targets.tolist()):
        text = bytes([*row, max(answers[-1], 10)]).decode()
        told = bytes(a for a in answers if a >= 0).decode().split("\n")
        for line, answer in zip(text.strip("\n").split("\n"), told):
            asked, _, said = line.partition("=")
            word = asked.partition("(")[2].rstrip(")")
            assert said == answer and (word.upper() if asked.startswith("large") else word * 2).startswith(said)
    single = sample_requests(5, 1, np.random.default_rng(0), most=1)
    assert all(bytes(a for a in row if a >= 0).count(b"\n") == 1 for row in single.targets.tolist())


def lengths(restored: tuple[float, float], replay: tuple[float, float], direct: float = 0.2, bare: float = 2.0
            ) -> list[Row]:
    """Of right answers and bits on new data, after 60 steps; after 500 nothing is left of anything."""
    arms = {DIRECT: (direct, bare), BARE: (0.0, bare), REPLAY: replay}
    rows: list[Row] = [{"mixer": "attention", "arm": "base", "steps": 0, "scale": None, "right": 0.0, "new": 3.0}]
    for steps in (60, 500):
        rows += [{"mixer": "attention", "arm": arm, "steps": steps, "scale": None, "right": right, "new": new}
                 for arm, (right, new) in arms.items()]
        rows += [{"mixer": "attention", "arm": RESTORED, "steps": steps, "scale": scale,
                  "right": restored[0] if scale == 1 else 1.0, "new": restored[1]} for scale in (0.5, 1.0, 1.5)]
    return rows


@pytest.mark.parametrize(("restored", "replay", "verdict"), [
    ((0.9, 2.4), (0.8, 2.0), "confirmed"), ((0.9, 2.6), (0.8, 2.0), "inconclusive"),
    ((0.9, 2.4), (0.95, 2.3), "refuted"), ((0.3, 2.4), (0.2, 2.0), "refuted"),
    ((0.9, 2.4), (0.95, 2.5), "confirmed")])
def test_the_rule_of_instruction_residuals(restored: tuple[float, float], replay: tuple[float, float],
                                           verdict: str) -> None:
    assert claim("cpt-ift").judge(lengths(restored, replay))[0] == verdict
