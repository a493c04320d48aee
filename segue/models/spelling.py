"""Letter probabilities from a model over multi-letter tokens (GENERator, arXiv 2502.07272: bases from a head over
6-mers).

The probability that place j of the next token is a letter is the sum over all tokens with this letter at j: one matrix
product, for every codec (k-mers of bases, merges of bytes, single letters).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from segue.errors import SegueError


class Marginals(nn.Module):
    """Maps logits of tokens (..., V) to log-probabilities (..., L, U) of the letter at each place of the next token.

    spelling: (V, L), letter codes of each token, padded with -1 (`Codec.spelling`).
    letters: (U,) codes of the columns, ascending; the first is -1, meaning that the token ends before that place.
    places: (V, L) long, the column of each token's letter at each place.
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
        probabilities = logits.softmax(-1) @ self.table.to(logits)
        shape = (*logits.shape[:-1], self.places.shape[1], len(self.letters))
        return probabilities.reshape(shape).clamp(torch.finfo(probabilities.dtype).tiny).log()
