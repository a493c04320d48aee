"""Multilayer perceptrons: on each element independently (a backbone for classifiers of vectors), or on whole rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from segue.errors import SegueError
from segue.mixers.layout import Layout
from segue.models.base import Output


class Perceptron(nn.Module):
    """Linear layers, each followed by a ReLU, on every element independently: (B, T, C) -> (B, T, D).

    inputs: C. widths: of the layers, the last one D. `Classifier` adds a head.
    """

    def __init__(self, inputs: int, widths: Sequence[int]) -> None:
        super().__init__()
        if inputs < 1 or not widths or min(widths) < 1:
            raise SegueError(f"{inputs} inputs and layers of widths {list(widths)} make no network: give one layer or "
                             "more, all sizes at least 1")
        sizes = [inputs, *widths]
        self.layers = nn.Sequential(*(part for into, out in zip(sizes, sizes[1:])
                                      for part in (nn.Linear(into, out), nn.ReLU())))

    def hidden(self, tokens: Tensor, layout: Layout) -> Tensor:
        return self.layers(tokens)


class Flat(nn.Module):
    """A `Perceptron` that reads a whole row as one vector and outputs logits at each position: for short rows of fixed
    length.

    vocabulary: V. length: L of the rows. widths: of the layers. classes: logits per position (default: V).
    """

    def __init__(self, vocabulary: int, length: int, widths: Sequence[int], classes: int | None = None) -> None:
        super().__init__()
        self.vocabulary, self.length, self.classes = vocabulary, length, classes or vocabulary
        self.perceptron = Perceptron(vocabulary * length, widths)
        self.out = nn.Linear(widths[-1], length * self.classes)

    def forward(self, tokens: Tensor, layout: Layout | None = None) -> Output:
        """Return logits (B, L, classes) for tokens (B, L) long, or rows of weights over ids (B, L, V)."""
        if tokens.shape[1] != self.length:
            raise SegueError(f"this network reads rows of {self.length} elements, not of {tokens.shape[1]}")
        rows = tokens if tokens.is_floating_point() else F.one_hot(tokens, self.vocabulary)
        hidden = self.perceptron.layers(rows.to(self.out.weight.dtype).flatten(1))
        return Output(self.out(hidden).unflatten(1, (self.length, self.classes)), hidden[:, None])
