"""`look` shows the very matrices the layers apply."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import segue
from segue.errors import SegueError
from segue.verbs.look import look, matrices


def test_the_matrices_are_those_the_layers_apply(tmp_path: Path) -> None:
    lines = [f"the {i} cats sat on the mat\n" * 4 for i in range(30)]
    model = segue.fit(lines, steps=2, mixer="mamba+gru+attention", width=32, depth=3, quiet=True, mix=False)
    seen = look(model, "the cats sat", out=tmp_path / "look.png", elements=9)
    assert seen.layers == ["mamba", "gru", "attention"] and len(seen.elements) == 9
    mamba, gru, attention = seen.matrices
    assert gru is None and mamba is not None and attention is not None
    assert np.allclose(attention.sum(-1), 1, atol=1e-5) and (np.triu(attention, 1) == 0).all()
    # What a layer says of itself: its output is that matrix times its values.
    tokens = torch.arange(9)[None] % model.codec.size
    first = matrices(model.model, tokens)[0]
    block, positions = model.model.blocks[0], torch.arange(9)[None]
    y = block.mixer_norm(model.model.embed(tokens, positions))
    torch.testing.assert_close(block.mixer.output(first @ block.mixer.values(y), y), block.mixer(y), rtol=0, atol=1e-5)
    assert (tmp_path / "look.png").stat().st_size > 5000 and "layer 2, gru: not linear" in str(seen)


def test_what_cannot_be_looked_at_is_refused() -> None:
    model = segue.fit([f"{i} dogs ran\n" * 9 for i in range(30)], steps=1, mixer="gru", quiet=True, mix=False, depth=1)
    with pytest.raises(SegueError, match="no matrix to draw"):
        look(model, "dogs ran")
    with pytest.raises(SegueError, match="too little"):
        look(model, "")
