"""Convolutional classifiers of sequences over small alphabets, with filters that can be initialised to known motifs."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segue.errors import SegueError
from segue.mixers.layout import Layout
from segue.models.base import Output


def motif_convolution(allowed: np.ndarray, width: int | None = None, extra: int = 0) -> nn.Conv1d:
    """Return a convolution over one-hot letters whose filters detect patterns: the output is 0.5 where a pattern
    begins, and at most -0.5 elsewhere.

    allowed: (F, width, V) bool, the letters that each pattern allows at each place, none after its end (see
    `segue.analysis.restriction.site_filters`). width: of the filters, if wider. extra: randomly initialised filters.
    """
    count, longest, letters = allowed.shape
    width = longest if width is None else width
    if width < longest:
        raise SegueError(f"patterns of {longest} letters do not fit into filters of width {width}: widen them")
    convolution = nn.Conv1d(letters, count + extra, width)
    table = torch.from_numpy(allowed.astype(np.float32)).transpose(1, 2)
    with torch.no_grad():
        convolution.weight[:count] = F.pad(table, (0, width - longest))
        convolution.bias[:count] = 0.5 - table.amax(1).sum(1)  # type: ignore[index]
    return convolution


class ConvClassifier(nn.Module):
    """Classifies whole rows: two convolutions, max and mean pooling of each filter's output, and a hidden layer.

    letters: V; larger ids count as no letter. classes: C. filters, width: of the first convolution; the second has
    `hidden` filters. motifs: patterns that initialise the first filters (see `motif_convolution`), at most `filters`.
    dropout: of the hidden layer. All rows of a batch must have one length. The logits (B, T, C) are the same at every
    position.
    """

    def __init__(self, letters: int, classes: int = 2, filters: int = 64, width: int = 8, hidden: int = 64,
                 dropout: float = 0.3, motifs: np.ndarray | None = None) -> None:
        super().__init__()
        count = 0 if motifs is None else len(motifs)
        if count > filters or (motifs is not None and motifs.shape[2] != letters):
            raise SegueError(f"patterns of shape {getattr(motifs, 'shape', ())} do not fit {filters} filters over "
                             f"{letters} letters: give as many filters, and patterns (F, width, V)")
        self.letters, self.width = letters, width
        self.first = nn.Conv1d(letters, filters, width) if motifs is None else \
            motif_convolution(motifs, width, filters - count)
        self.second = nn.Conv1d(filters, hidden, width)
        self.dense = nn.Sequential(nn.Linear(2 * (filters + hidden), hidden), nn.ReLU(), nn.Dropout(dropout))
        self.head = nn.Linear(hidden, classes)

    def hidden(self, tokens: Tensor, layout: Layout | None = None) -> Tensor:
        """Return hidden vectors (B, T, hidden) of ids (B, T), the same at every position."""
        one_hot = F.one_hot(tokens.clamp(max=self.letters), self.letters + 1)[..., : self.letters]
        x = one_hot.to(self.first.weight.dtype).transpose(1, 2)
        padding = (0, self.width - 1)  # on the right, so that a pattern is detected where it begins
        first = F.relu(self.first(F.pad(x, padding)))
        second = F.relu(self.second(F.pad(first, padding)))
        pooled = torch.cat([pool for y in (first, second) for pool in (y.amax(2), y.mean(2))], 1)
        return self.dense(pooled)[:, None].expand(-1, tokens.shape[1], -1)

    def forward(self, tokens: Tensor, layout: Layout | None = None) -> Output:
        if layout is not None and layout.starts is not None:
            raise SegueError("a convolution over whole rows reads one document a row: do not pack several into one")
        hidden = self.hidden(tokens)
        return Output(self.head(hidden), hidden)
