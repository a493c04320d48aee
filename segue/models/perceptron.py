"""A plain network on each element by itself: the backbone of a classifier of vectors, where there is no sequence."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from segue.errors import SegueError
from segue.mixers.state import Layout


class Perceptron(nn.Module):
    """Linear layers, a ReLU behind each: (B, T, C) real vectors -> (B, T, D), every element alone.

    inputs: C. widths: of the layers, the last one D. Give it a head with `Classifier`.
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
