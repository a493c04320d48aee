"""What a model over words says about the letters in them (GENERator, arXiv 2502.07272: bases from a head over 6-mers).

The probability that place j of the next token holds a letter is the sum over all tokens with this letter there. This is
one product with a table, for every codec: k-mers of bases, merges of bytes, single letters.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from segue.errors import SegueError


class Marginals(nn.Module):
    """Scores of tokens (..., V) -> log-probabilities (..., L, U) of what each place of the next token holds.

    spelling: (V, L), the letters' codes of each token, -1 behind its end (`Codec.spelling`).
    letters: (U,) the codes of the columns, in order; the first is -1: the token ends before that place.
    places: (V, L) long, for each token and place the column that is true of it.
    """

    letters: Tensor
    places: Tensor
    table: Tensor

    def __init__(self, spelling: np.ndarray) -> None:
        super().__init__()
        if spelling.ndim != 2 or not spelling.size or int(spelling.max()) < 0:
            raise SegueError(f"a spelling of shape {spelling.shape} spells no letter: give (tokens, places) of codes")
        letters, places = np.unique(np.append(spelling, -1), return_inverse=True)
        self.register_buffer("letters", torch.from_numpy(letters.astype(np.int64)), persistent=False)
        self.register_buffer("places", torch.from_numpy(places[:-1].reshape(spelling.shape)), persistent=False)
        table = torch.zeros(*spelling.shape, len(letters)).scatter_(2, self.places[..., None], 1.0)
        self.register_buffer("table", table.flatten(1), persistent=False)

    def forward(self, logits: Tensor) -> Tensor:
        chances = logits.softmax(-1) @ self.table.to(logits)
        shape = (*logits.shape[:-1], self.places.shape[1], len(self.letters))
        return chances.reshape(shape).clamp(torch.finfo(chances.dtype).tiny).log()
