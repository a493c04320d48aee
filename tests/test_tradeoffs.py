"""The picture of quality, diversity and speed: every decoder is in it, and its names can be read."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scripts import script

from segue.decoding import ACCEPTORS, DECODERS, DRAFTERS

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def tool() -> Any:
    return script("tools/tradeoffs.py")


def test_every_decoder_and_drafter_is_in_it(tool: Any) -> None:
    drafts = {way.draft for way in tool.WAYS.values()}
    decoders = {way.options.get("decoder", "greedy") for way in tool.WAYS.values()}
    assert {name for name, recipe in DECODERS.items() if recipe.draft is None} == decoders
    assert set(DRAFTERS) - {"source"} <= drafts  # there is no source to copy
    assert "typical" in ACCEPTORS and all(way.family in tool.COLOURS for way in tool.WAYS.values())


@pytest.mark.parametrize("seed", range(3))
def test_labels_overlap_neither_each_other_nor_points(tool: Any, seed: int) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    random = np.random.default_rng(seed)
    result = {name: {"judge": random.normal(-3, 0.4), "distinct-2": random.uniform(0.2, 0.9), "model": -3.0,
                     "rep-4": 0.1, "self-BLEU": 30.0} for name, way in tool.WAYS.items() if way.family != "drafts"}
    result[tool.TRUTH] = {"judge": -3.2, "model": -3.1, "rep-4": 0.0}
    speeds = {name: float(np.exp(random.normal())) for name in tool.WAYS} | {"tokens/s": 1000.0}
    figure = Figure(figsize=(13, 7.2), layout="constrained")
    FigureCanvasAgg(figure)
    tool.draw(result, speeds, figure)
    figure.canvas.draw()
    plane, renderer = figure.axes[0], figure.canvas.get_renderer()
    boxes = [np.array(Text.get_window_extent(text, renderer)) for text in plane.texts]  # without the lines
    points = plane.transData.transform([(values["judge"], values["distinct-2"]) for values in result.values()
                                        if "distinct-2" in values])
    assert len(boxes) == len(result)
    for first, second in itertools.combinations(boxes, 2):
        assert (first[1] <= second[0]).any() or (second[1] <= first[0]).any()
    assert not any(((box[0] < point) & (point < box[1])).all() for box in boxes for point in points)
    assert tool.table(result, speeds).count("\n") == len(result) + 4
