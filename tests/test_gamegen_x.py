"""The rule of the claim of GameGen-X on tables that are made up."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from segue.papers.base import Row
from segue.papers.gamegen_x import BASE, CODED, FROZEN, JOINT, REAL, SHUFFLED, SMALL, judge, studio, train_branch


def table(**other: Any) -> list[Row]:
    rows = {REAL: (1.0, 0.99, None, None), CODED: (0.98, 0.97, None, None), BASE: (0.2, 0.25, 1.0, None),
            FROZEN: (0.8, 0.8, 1.0, True), SHUFFLED: (0.2, 0.8, None, None), JOINT: (0.7, 0.7, 2.0, False)}
    result = {name: dict(zip(("character", "environment", "frechet", "same"), row)) for name, row in rows.items()}
    for change, value in other.items():
        name, column = change.split("_")
        result[{"real": REAL, "base": BASE, "branch": FROZEN, "others": SHUFFLED, "joint": JOINT}[name]][column] = value
    return [{"arm": name, **row} for name, row in result.items()]


def test_arms_leave_their_foundation_unchanged() -> None:
    place = studio(SMALL, 3)
    before = {name: tensor.clone() for name, tensor in place.base.state_dict().items()}
    for frozen in (False, True):
        train_branch(place, SMALL, 3, frozen)
        assert all(torch.equal(before[name], tensor) for name, tensor in place.base.state_dict().items())
        assert all(p.requires_grad for p in place.base.parameters())


@pytest.mark.parametrize(("change", "verdict"), [
    ({}, "confirmed"),
    ({"real_character": 0.97}, "inconclusive"),
    ({"real_environment": 0.97, "branch_same": False}, "inconclusive"),
    ({"branch_character": 0.39}, "refuted"),
    ({"branch_same": False}, "refuted"),
    ({"branch_character": 0.59}, "inconclusive"),
    ({"base_character": 0.36}, "inconclusive"),
    ({"others_character": 0.31}, "inconclusive"),
    ({"branch_environment": 0.49}, "inconclusive"),
    ({"joint_frechet": 0.9}, "inconclusive"),
])
def test_the_rule_of_gamegen_x(change: dict[str, Any], verdict: str) -> None:
    actual, reason = judge(table(**change))
    same = "the same films, bit by bit" in reason
    assert actual == verdict and same == change.get("branch_same", True)
