"""The panel of known answers: its damages, its rule, and its reading of metrics."""

from __future__ import annotations

import numpy as np
import pytest

from segue.papers import claim
from segue.papers.base import Row
from segue.papers.sequence_generation_metrics import CLAIMS, CORRUPTIONS, LEVELS, NOISE, SHARP, WORDS, damages, detect


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_corruption_grows_with_its_level_from_zero(name: str) -> None:
    texts = [[f"{i}-{j}" for j in range(WORDS)] for i in range(20)]
    other_texts = [[f"old {i}-{j}" for j in range(WORDS)] for i in range(40)]
    changed = []
    for level in LEVELS:
        results = CORRUPTIONS[name](texts, level, other_texts, np.random.default_rng(1))
        assert len(results) == len(texts) and all(results)
        changed.append(sum(word != had for text, old in zip(results, texts)
                           for word, had in zip(text + [""] * (WORDS - len(text)), old)))
    assert changed[0] == 0 and changed == sorted(changed) and changed[-1] > changed[1] > 0


def test_metric_directions_equal_the_table() -> None:
    rising = [1.0, 2.0, 3.0, 4.0, 5.0]
    results = [detect("Brier", rising), -detect("BLEU", rising), detect("MAUVE (GRU)", rising[::-1])]
    assert results == pytest.approx([1, 1, 1])
    assert detect("novelty", [3.0, 2.0, 5.0, 0.0, 9.0]) == pytest.approx(1)  # how far from the undamaged
    assert detect("BLEU", [1.0] * 5) == 0


def table(**change: float) -> list[Row]:
    """All claims hold, but for metric and damage in `change` (on the first text; with "!" on both)."""
    rows: list[Row] = []
    for text in ("A", "B"):
        for metric, claims in CLAIMS.items():
            values = {each: 1.0 if each in damages(claims) else 0.0 for each in (*CORRUPTIONS, SHARP, NOISE)}
            for key, value in change.items():
                named, damage = key.strip("!").split("/")
                if named == metric and (text == "A" or key.endswith("!")):
                    values[damage] = value
            rows.append({"text": text, "metric": metric, "claims to see": claims, "undamaged": 0.5, **values,
                         "values": {}})
    return rows


@pytest.mark.parametrize(("change", "verdict"), [
    ({}, "confirmed"), ({"BLEU/drop": 0.9}, "confirmed"), ({"BLEU/drop": 0.89}, "inconclusive"),
    ({"BLEU/drop!": 0.5}, "refuted"), ({"MRR/noise!": 0.0}, "refuted"), ({"distinct-1/cut!": -1.0}, "confirmed"),
    ({"BLEU/drop": 0.5, "chrF/cut": 0.2}, "inconclusive")])
def test_the_rule_of_the_panel(change: dict[str, float], verdict: str) -> None:
    results, reason = claim("sequence-generation-metrics").judge(table(**change))
    assert results == verdict
    assert ("distinct-1 rewards cut" in reason) == ("distinct-1/cut!" in change)
