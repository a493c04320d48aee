"""Average-hard ("saturated") attention (Merrill & Sabharwal 2023, arXiv 2310.07923), for hand-set weights."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from segue.mixers import rules
from segue.mixers.base import Mixer
from segue.mixers.cache import Cache
from segue.mixers.layout import Layout
from segue.mixers.state import Part, Parts


class SaturatedAttention(Mixer):
    """Each head attends uniformly to the keys with the largest score and ignores all others; no positions.

    Queries and keys are projected to `head_width` features and then layer-normalised (the paper's projected pre-norm),
    in `groups` groups separately (its multi-pre-norm); so (x, y, -x, -y) becomes a hash that all positive multiples of
    (x, y) share. The choice has no gradient, so this cannot be trained and is not in MIXERS.
    """

    constant_state = False
    linear_in_values = True
    sets = True
    cost = "T²"

    def __init__(self, width: int, heads: int, head_width: int, groups: int = 1) -> None:
        super().__init__(width)
        self.heads, self.head_width, self.groups = heads, head_width, groups
        self.qkv = nn.Linear(width, 3 * heads * head_width, bias=False)
        self.out = nn.Linear(heads * head_width, width, bias=False)

    def parts(self, batch: int, like: Tensor, history: int) -> dict[str, Part]:
        k = like.new_zeros(batch, self.heads, 0, self.head_width)
        return {"cache": Cache(k, k.clone(), history=history)}

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, self.head_width)).permute(2, 0, 3, 1, 4)
        q, k = (F.layer_norm(y.unflatten(-1, (self.groups, -1)), (self.head_width // self.groups,), eps=0.0).flatten(-2)
                for y in (q, k))
        return q, k, v

    def _weights(self, q: Tensor, k: Tensor, seen: Tensor) -> Tensor:
        scores = (q @ k.mT).masked_fill(~seen[:, None], -float("inf"))
        best = (scores == scores.amax(-1, keepdim=True)).to(q.dtype)
        return best / best.sum(-1, keepdim=True)

    def run(self, x: Tensor, layout: Layout, parts: Parts) -> Tensor:
        q, k, v = self._project(x)
        seen = layout.follows
        if not parts:
            same = layout.same_document
        else:
            cache = parts["cache"]
            assert isinstance(cache, Cache)
            seen, same = rules.causal(cache.pairs(layout)), cache.valid(layout)
            k, v = cache.append(k, v, layout)
        return self.output(self._weights(q, k, seen if same is None else seen & same) @ v, x)

    def matrix(self, x: Tensor) -> Tensor:
        q, k, _ = self._project(x)
        return self._weights(q, k, Layout.of(x).follows)

    def values(self, x: Tensor) -> Tensor:
        return self._project(x)[2]

    def output(self, mixed: Tensor, x: Tensor) -> Tensor:
        return self.out(mixed.transpose(1, 2).flatten(2))
