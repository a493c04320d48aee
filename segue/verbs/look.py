"""`look`: which elements each element attends to, layer by layer, for mixers that are linear in their values; and how
much each layer and each head contributes to the predictions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from segue.analysis.circuits import adds_up, direct_effects, induction_scores, matrices
from segue.decoding.continuation import as_text, prime_object, prime_tokens
from segue.errors import SegueError
from segue.files import write_picture
from segue.models import Stack
from segue.models.base import pad_rows
from segue.verbs.fitted import Fitted

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HEADS = 4  # drawn per layer
MOST_NAMES = 48  # elements; with more, their names in the picture would be unreadable
EFFECT_ROWS = 64  # sequences of a file on which effects are measured
INDUCTION_LENGTH = 32  # elements of the random sequence that the model reads twice
INDUCTION_THRESHOLD = 0.5  # score from which on a head is called an induction head


@dataclass
class Look:
    """What a model attends to, and what its parts contribute.

    layers: name of each layer's mixer. matrices: per layer the (H, T, T) float32 matrix that it applied to its values,
        or None if it is not linear in them. elements: the T elements as text.
    effects: by part ("layer 2 attention", "layer 2 head 1", "layer 2 channel"; see `segue.analysis.circuits`), by how
        many bits the prediction of an element gets worse if the part's direct contribution is replaced by its mean;
        empty for non-causal models and those whose layers' outputs do not add up (`adds_up`). measured: the number of
        elements averaged over.
    induction: by head, the share of its attention in a repeated random sequence that goes to what followed the same
        element before (see `induction_scores`); empty for non-causal models. picture: the file drawn, if any.
    """

    layers: list[str]
    matrices: list[np.ndarray | None]
    elements: list[str]
    effects: dict[str, float] = field(default_factory=dict)
    measured: int = 0
    induction: dict[str, float] = field(default_factory=dict)
    picture: Path | None = None

    def of_layer(self, layer: int, scores: dict[str, float] | None = None) -> dict[str, float]:
        """The effects of one layer's parts (the mixer, its heads, the channel mixer), or the entries of `scores` about
        them. layer: from 1 on."""
        prefix, values = f"layer {layer} ", self.effects if scores is None else scores
        return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}

    def __str__(self) -> str:
        def line(index: int, name: str, matrix: np.ndarray | None) -> str:
            text = f"layer {index}, {name}: not linear in its values, it has no matrix"
            if matrix is not None:
                back = np.arange(matrix.shape[-1])[:, None] - np.arange(matrix.shape[-1])
                weight = np.abs(matrix) / np.maximum(np.abs(matrix).sum(-1, keepdims=True), 1e-12)
                far = (weight * np.abs(back)).sum(-1).mean()
                text = f"layer {index}, {name}: {matrix.shape[0]} heads, reads {far:.1f} elements away on average"
            parts = self.of_layer(index)
            heads = ", ".join(f"{bits:.3f}" for part, bits in parts.items() if part.startswith("head "))
            carried = [f"the mixer {parts[name]:.3f}" + (f" (by head {heads})" if heads else "")] if parts else []
            carried += [f"the channel mixer {parts['channel']:.3f}"] if "channel" in parts else []
            copies = [f"{part.removeprefix('head ')} ({score:.0%})"
                      for part, score in self.of_layer(index, self.induction).items() if score >= INDUCTION_THRESHOLD]
            text += f"; finds again what followed before (induction): head {', '.join(copies)}" if copies else ""
            return text + (f"; carries, in bits an element: {', '.join(carried)}" if carried else "")

        lines = [line(i, *pair) for i, pair in enumerate(zip(self.layers, self.matrices), 1)]
        if self.effects:
            lines.append(f"carries: how much worse {self.measured:,} elements are predicted with the mean of what a "
                         "part adds to the prediction directly")
        return "\n".join(lines + ([f"picture: {self.picture}"] if self.picture else []))


def measure_effects(network: Stack, rows: Sequence[Sequence[int]]) -> tuple[dict[str, float], int]:
    """The values of `Look.effects` and `Look.measured`, measured on rows of ids."""
    tokens, targets = pad_rows([row[:-1] for row in rows]), pad_rows([row[1:] for row in rows], -1)
    effects = direct_effects(network, tokens, targets, heads=False) | direct_effects(network, tokens, targets)
    return {name: float(nats.mean()) / math.log(2) for name, nats in effects.items()}, int((targets >= 0).sum())


def look(model: Fitted, data: Any, out: str | Path | None = None, elements: int = 128,
         state: str | None = None) -> Look:
    """Show what the model's layers attend to in the first sequence of `data`, and the effects of its parts.

    data: an object of the model's kind, or a path; for a file, effects are means over its first sequences. out: a PNG
    to draw. elements: of a sequence, at most. state: a learned initial state to start from (see `Fitted.from_state`).
    """
    with model.from_state(state):
        return _look(model, data, out, elements)


def _look(model: Fitted, data: Any, out: str | Path | None, elements: int) -> Look:
    network = model.model
    if not isinstance(network, Stack):
        raise SegueError("only a native model's layers can be looked at: fit one, or convert the folder")
    ids = prime_tokens(model.codec, prime_object(model.kind, data, model.codec, model.reading))[:elements]
    if len(ids) < 2:
        raise SegueError("there is too little to look at: give two elements at least")
    maps = [None if m is None else m[0].float().cpu().numpy()
            for m in matrices(network, torch.tensor([ids], device=model.device))]
    names = [repr(as_text(model.codec.decode([i])))[1:-1] for i in ids]
    result = Look(list(network.config.mixers), maps, names)
    causal = all(block.mixer.causal for block in network.blocks)
    if causal:
        max_length = network.config.learned_positions or 2 * INDUCTION_LENGTH
        result.induction = induction_scores(network, min(INDUCTION_LENGTH, max_length // 2))
    if adds_up(network.config) and causal:
        rows = [ids]
        if isinstance(data, Path):
            store = model.read(data).encode(model.codec)
            rows = [store[i].ids[:elements].tolist() for i in range(min(len(store), EFFECT_ROWS))]
            rows = [row for row in rows if len(row) > 1]
        result.effects, result.measured = measure_effects(network, rows)
    if not result.effects and all(matrix is None for matrix in maps):
        raise SegueError(f"no layer of this model ({', '.join(dict.fromkeys(result.layers))}) is linear in its values, "
                         "and it does not go on from left to right: there is nothing to look at")
    if out is not None:
        result.picture = Path(out)
        num_panels = sum(m is not None for m in maps) + bool(result.effects)
        write_picture(out, lambda figure: draw(figure, result), (14, 3.6 * num_panels))
    return result


def draw(figure: Figure, result: Look) -> None:
    """Draw a row per layer with up to four of its heads, each on its own scale, and a row for the effects of all
    parts."""
    rows = [(name, m) for name, m in zip(result.layers, result.matrices) if m is not None]
    columns = max([1, *(min(HEADS, len(m)) for _, m in rows)])
    grid = figure.add_gridspec(len(rows) + bool(result.effects), columns)
    for index, (name, matrix) in enumerate(rows):
        for column, head in enumerate(np.linspace(0, len(matrix) - 1, min(HEADS, len(matrix))).astype(int)):
            panel, weights = figure.add_subplot(grid[index, column]), matrix[head]
            limit = float(np.abs(weights).max()) or 1.0
            signed = bool((weights < 0).any())
            panel.imshow(weights, cmap="RdBu" if signed else "Greys", vmin=-limit if signed else 0, vmax=limit)
            panel.set_title(f"{name}, head {head + 1} of {len(matrix)}", fontsize="small")
            if len(result.elements) <= MOST_NAMES:
                panel.set_xticks(range(len(result.elements)), result.elements, fontsize=5, rotation=90)
                panel.set_yticks(range(len(result.elements)), result.elements, fontsize=5)
            else:
                panel.set_xticks([])
                panel.set_yticks([])
            panel.set_xlabel("read", fontsize="small")
            panel.set_ylabel("reader", fontsize="small")
    if result.effects:
        panel = figure.add_subplot(grid[-1, :])
        for layer in range(1, len(result.layers) + 1):
            parts = {name: bits for name, bits in result.of_layer(layer).items() if name != "bias"}
            panel.bar([f"{layer} {name}" for name in parts], list(parts.values()),
                      color=[f"C{layer - 1}" if " " not in name else "lightgrey" for name in parts])
        panel.tick_params(axis="x", rotation=90, labelsize=6)
        panel.set_ylabel("bits an element", fontsize="small")
        panel.set_title("what parts carry: layers (coloured) and their heads (grey)", fontsize="small")
