"""Constrained answers obey their rule, with every decoder, with drafts, in batches."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import torch

from segue.decoding import generate
from segue.decoding.constrain import LegalNext
from segue.decoding.continuation import continue_objects
from segue.errors import SegueError
from segue.kinds.codecs import BPECodec, ByteCodec, ItemCodec
from segue.models import Stack, StackConfig
from segue.testing.decoding import TableModel

DECODERS: list[dict[str, Any]] = [
    {"decoder": "greedy"}, {"decoder": "greedy", "draft": "both"}, {"decoder": "sample", "seed": 1},
    {"decoder": "sample", "seed": 1, "draft": "both", "adaptive": False}, {"decoder": "beam"},
    {"decoder": "diverse-beam"},
]


def stack(vocabulary: int) -> Stack:
    torch.manual_seed(0)
    return Stack(StackConfig(vocabulary, 16, ["attention", "gru"], {"attention": {"heads": 2}})).eval()


@pytest.mark.parametrize("options", DECODERS, ids=lambda options: " ".join(map(str, options.values())))
@pytest.mark.parametrize("codec", [ByteCodec(), BPECodec.train(["12 apples and 7 pears; é"] * 9, 300)],
                         ids=["bytes", "merges"])
def test_answers_match_the_pattern(codec: Any, options: dict[str, Any]) -> None:
    pytest.importorskip("outlines_core")
    pattern = r"[0-9]{1,3} (apples|pears)(; é+)?"
    model = stack(codec.size)
    for answer in continue_objects(model, codec, ["I have ", "x"], 60, regex=pattern, **options):
        assert answer.finish == "stop" and re.fullmatch(pattern, answer.text or "")


def test_drafts_change_nothing_under_a_pattern() -> None:
    pytest.importorskip("outlines_core")
    codec = ByteCodec()
    model = stack(codec.size).double()
    undrafted, drafted = (continue_objects(model, codec, ["ab"], 40, "sample", draft, regex="(ab|ba)*",
                                           seed=4, **options)[0]
                          for draft, options in (("none", {}), ("both", {"adaptive": False})))
    assert undrafted.tokens == drafted.tokens


def test_json_of_a_schema() -> None:
    pytest.importorskip("outlines_core")
    codec = ByteCodec()
    expected = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 0}, "ok": {"type": "boolean"}},
                "required": ["n", "ok"]}
    results = 0
    for answer in continue_objects(stack(codec.size), codec, [""] * 8, 120, "sample", json_schema=expected, seed=3):
        if answer.finish == "stop":
            value = json.loads(answer.text or "")
            assert isinstance(value["n"], int) and isinstance(value["ok"], bool)
            results += 1
    assert results
    with pytest.raises(SegueError, match="schema"):
        continue_objects(stack(codec.size), codec, [""], 5, json_schema="{not json")
    with pytest.raises(SegueError, match="pattern"):
        continue_objects(stack(codec.size), codec, [""], 5, regex="(")


def test_a_callback_sees_the_path_of_each_node() -> None:
    """No token twice: every decoder returns a valid tour."""
    model = TableModel(6, 1)
    tour = LegalNext(lambda tokens: set(range(6)) - set(tokens))
    for options in DECODERS:
        for answer in generate(model, [[1, 2], [3]], 6, processors=(tour,), **options):
            assert sorted(answer.tokens) == list(range(6))
    assert generate(model, [[1]], 3, processors=(LegalNext(lambda tokens: None),))[0].tokens == \
        generate(model, [[1]], 3)[0].tokens


def test_items_are_constrained_by_callbacks_only() -> None:
    pytest.importorskip("outlines_core")
    codec = ItemCodec(["a", "b", "c"])
    with pytest.raises(SegueError, match="callback"):
        continue_objects(stack(codec.size), codec, [["a"]], 3, regex="ab*")
