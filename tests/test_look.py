"""`look` shows the very matrices the layers apply."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import segue
from segue.analysis.circuits import direct_effects
from segue.errors import SegueError
from segue.verbs.look import look, matrices


def test_shown_matrices_equal_those_the_layers_apply(tmp_path: Path) -> None:
    lines = [f"the {i} cats sat on the mat\n" * 4 for i in range(30)]
    model = segue.fit(lines, steps=2, mixer="mamba+gru+attention", width=32, depth=3, quiet=True, mix=False)
    report = look(model, "the cats sat", out=tmp_path / "look.png", elements=9)
    assert report.layers == ["mamba", "gru", "attention"] and len(report.elements) == 9
    mamba, gru, attention = report.matrices
    assert gru is None and mamba is not None and attention is not None
    assert np.allclose(attention.sum(-1), 1, atol=1e-5) and (np.triu(attention, 1) == 0).all()
    # What a layer says of itself: its output is that matrix times its values.
    tokens = torch.arange(9)[None] % model.codec.size
    first = matrices(model.model, tokens)[0]
    block, positions = model.model.blocks[0], torch.arange(9)[None]
    y = block.mixer_norm(model.model.embed(tokens, positions))
    torch.testing.assert_close(block.mixer.output(first @ block.mixer.values(y), y), block.mixer(y), rtol=0, atol=1e-5)
    assert (tmp_path / "look.png").stat().st_size > 5000 and "layer 2, gru: not linear" in str(report)
    assert {"layer 1 mamba", "layer 2 gru", "layer 3 attention", "layer 3 head 1"} < set(report.effects)
    assert {"layer 1 head 1", "layer 3 head 1"} < set(report.induction) and "induction" not in str(report)
    report.induction["layer 3 head 1"] = 0.8
    assert "(induction): head 1 (80%)" in str(report)


def test_effects_equal_the_direct_effects_of_writes(tmp_path: Path) -> None:
    """Of the only layer of a stack of recurrences, which has no matrix, on the sequences of a file."""
    model = segue.fit([f"{i} dogs ran\n" * 9 for i in range(30)], steps=60, mixer="gru", quiet=True, mix=False, depth=1)
    (tmp_path / "held.txt").write_text("the dogs ran away\n" * 3)
    report = look(model, tmp_path / "held.txt", out=tmp_path / "look.png")
    ids = model.codec.encode("the dogs ran away\n" * 3).tolist()
    rows = [[i for i in (model.codec.bos, *ids, model.codec.eos) if i is not None]]
    tokens, targets = torch.tensor(rows)[:, :-1], torch.tensor(rows)[:, 1:]
    effects = direct_effects(model.model, tokens, targets, heads=False)
    assert report.measured == tokens.shape[1] and report.effects.keys() == effects.keys()
    for name, nats in effects.items():
        assert report.effects[name] == pytest.approx(float(nats.mean()) / np.log(2), abs=1e-5)
    assert report.effects["layer 1 gru"] > 0.05 and "the mixer" in str(report) and "no matrix" in str(report)
    assert (tmp_path / "look.png").stat().st_size > 5000


def test_models_without_matrices_or_writes_are_refused() -> None:
    model = segue.fit([f"{i} dogs ran\n" * 9 for i in range(30)], steps=1, mixer="gru", quiet=True, mix=False, depth=1)
    with pytest.raises(SegueError, match="too little"):
        look(model, "")
