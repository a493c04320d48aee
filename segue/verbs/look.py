"""`look`: what each element of a sequence reads, layer by layer, where a mixer is linear in its values."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from segue.decoding.continuation import as_text, prime_object, prime_tokens
from segue.errors import SegueError
from segue.files import write_picture
from segue.mixers.state import Layout
from segue.models import Stack
from segue.verbs.fitted import Fitted

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HEADS = 4  # drawn per layer
NAMED = 48  # with more elements than this, their names would not be readable


@dataclass
class Look:
    """layers: name of each layer's mixer. matrices: per layer the (H, T, T) float32 matrix it applied, or None where it
    is not linear in its values. elements: the T elements as text. picture: where they are drawn, if they are."""

    layers: list[str]
    matrices: list[np.ndarray | None]
    elements: list[str]
    picture: Path | None = None

    def __str__(self) -> str:
        def line(index: int, name: str, matrix: np.ndarray | None) -> str:
            if matrix is None:
                return f"layer {index}, {name}: not linear in its values, it has no matrix"
            back = np.arange(matrix.shape[-1])[:, None] - np.arange(matrix.shape[-1])
            weight = np.abs(matrix) / np.maximum(np.abs(matrix).sum(-1, keepdims=True), 1e-12)
            far = (weight * np.abs(back)).sum(-1).mean()
            return f"layer {index}, {name}: {matrix.shape[0]} heads, reads {far:.1f} elements away on average"

        lines = [line(i, *pair) for i, pair in enumerate(zip(self.layers, self.matrices), 1)]
        return "\n".join(lines + ([f"picture: {self.picture}"] if self.picture else []))


@torch.no_grad()
def matrices(model: Stack, tokens: Tensor) -> list[Tensor | None]:
    """For each layer the (B, H, T, T) matrix it applies to its values on `tokens` (B, T), or None where it has none."""
    layout = Layout.of(tokens)
    found: list[Tensor | None] = []

    def mix(mixer: Any, y: Tensor) -> Tensor:
        found.append(mixer.matrix(y) if mixer.linear_in_values else None)
        return mixer.run(y, layout, {})

    x = model.embed(tokens, layout.positions)
    for block in model.blocks:
        x = block(x, mix)
    return found


def look(model: Fitted, data: Any, out: str | Path | None = None, elements: int = 128) -> Look:
    """What the first sequence of `data` makes the model's layers read.

    data: an object of the model's kind, or a path to one. out: a PNG, if given. elements: look at so many at most.
    """
    network = model.model
    if not isinstance(network, Stack):
        raise SegueError("only a native model's layers can be looked at: fit one, or convert the folder")
    ids = prime_tokens(model.codec, prime_object(model.kind, data, model.codec))[:elements]
    if len(ids) < 2:
        raise SegueError("there is too little to look at: give two elements at least")
    found = [None if m is None else m[0].float().numpy() for m in matrices(network, torch.tensor([ids]))]
    names = [repr(as_text(model.codec.decode([i])))[1:-1] for i in ids]
    result = Look(list(network.config.mixers), found, names)
    if all(m is None for m in found):
        raise SegueError(f"no layer of this model ({', '.join(dict.fromkeys(result.layers))}) is linear in its values: "
                         "there is no matrix to draw")
    if out is not None:
        result.picture = Path(out)
        rows = sum(m is not None for m in found)
        write_picture(out, lambda figure: draw(figure, result), (14, 3.6 * rows))
    return result


def draw(figure: Figure, seen: Look) -> None:
    """A row per layer, up to four heads (or, of many channels, four spread over them) each, on one scale per panel."""
    rows = [(name, m) for name, m in zip(seen.layers, seen.matrices) if m is not None]
    columns = max(min(HEADS, len(m)) for _, m in rows)
    panels = figure.subplots(len(rows), columns, squeeze=False)
    for panel in panels.flat:
        panel.set_axis_off()
    for index, (name, matrix) in enumerate(rows):
        for column, head in enumerate(np.linspace(0, len(matrix) - 1, min(HEADS, len(matrix))).astype(int)):
            panel, shown = panels[index, column], matrix[head]
            panel.set_axis_on()
            limit = float(np.abs(shown).max()) or 1.0
            signed = bool((shown < 0).any())
            panel.imshow(shown, cmap="RdBu" if signed else "Greys", vmin=-limit if signed else 0, vmax=limit)
            panel.set_title(f"{name}, head {head + 1} of {len(matrix)}", fontsize="small")
            if len(seen.elements) <= NAMED:
                panel.set_xticks(range(len(seen.elements)), seen.elements, fontsize=5, rotation=90)
                panel.set_yticks(range(len(seen.elements)), seen.elements, fontsize=5)
            panel.set_xlabel("read", fontsize="small")
            panel.set_ylabel("reader", fontsize="small")
