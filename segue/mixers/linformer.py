"""Linformer (Wang et al. 2020, arXiv 2006.04768): attention to a few learned mixtures of all positions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segue.errors import SegueError
from segue.mixers.attention import attend
from segue.mixers.base import Mixer
from segue.mixers.layout import Layout, can_check_values
from segue.mixers.state import Parts


class Linformer(Mixer):
    """Attention to keys and values projected along the sequence to `rank` rows: softmax(Q (E K)^T / sqrt(e)) (F V).

    Every row of E K mixes all positions: so this can be neither causal nor separate documents, and padding a sequence
    changes its result.

    width: model width D. heads: number of heads, must divide `width`. rank: rows of E and F, shared by all heads.
    length: columns of E and F, the longest sequence in elements; a shorter one uses the first columns. A longer one
    raises SegueError.
    """

    causal = False
    resettable = False
    linear_in_values = True

    def __init__(self, width: int, heads: int = 4, rank: int = 32, length: int = 1024) -> None:
        super().__init__(width)
        if width % heads:
            raise SegueError(f"width {width} is not divisible by {heads} heads: choose another number of heads")
        self.heads, self.length = heads, length
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.mix_keys = nn.Parameter(torch.randn(rank, length) * rank**-0.5)
        self.mix_values = nn.Parameter(torch.randn(rank, length) * rank**-0.5)
        self.out = nn.Linear(width, width, bias=False)

    def _mixing_columns(self, mix: Tensor, positions: Tensor) -> Tensor:
        """Return the columns of E or F at these positions, (B or 1, 1, rank, N)."""
        if positions.numel() and can_check_values() and int(positions.max()) >= self.length:
            raise SegueError(f"position {int(positions.max())} is beyond the {self.length} that this Linformer was "
                             "made for: give shorter sequences or choose a larger length")
        if positions.stride(0) == 0:
            positions = positions[:1]
        return F.embedding(positions, mix.T).mT[:, None]

    def _heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.qkv(x).unflatten(-1, (3 * self.heads, -1)).transpose(1, 2).chunk(3, 1)
        return q, k, v

    def run(self, x: Tensor, layout: Layout, parts: Parts) -> Tensor:
        q, k, v = self._heads(x)
        keys, values = (self._mixing_columns(mix, layout.positions).to(q.dtype)
                        for mix in (self.mix_keys, self.mix_values))
        return self.output(F.scaled_dot_product_attention(q, keys @ k, values @ v), x)

    def matrix(self, x: Tensor) -> Tensor:
        q, k, _ = self._heads(x)
        positions = Layout.of(x).positions
        values = self._mixing_columns(self.mix_values, positions).expand(x.shape[0], self.heads, -1, -1)
        return attend(q, self._mixing_columns(self.mix_keys, positions) @ k, values)[0]

    def values(self, x: Tensor) -> Tensor:
        return self._heads(x)[2]

    def output(self, mixed: Tensor, x: Tensor) -> Tensor:
        return self.out(mixed.transpose(1, 2).flatten(2))
