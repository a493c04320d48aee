"""Prefix linear attention, the recurrent model that reads its prompt both ways (Arora et al. 2024, JRT-RNN,
arXiv 2407.05483), with the Taylor feature map of Based (Arora et al. 2024, arXiv 2402.18668)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from segue.errors import SegueError
from segue.kernels.linear import linear_attention, linear_attention_both_ways
from segue.mixers.base import Mixer
from segue.mixers.convolution import ShortConvolution
from segue.mixers.linear import taylor
from segue.mixers.state import Carry, Layout, Part, Recurrence, Tensors


class PrefixLinearRecurrence(Recurrence):
    """The sum of key-value products so far, begun with those of the whole prompt by the encoder's projections.

    Inputs q, k (B, N, H, K), v (B, N, H, E), the encoder's keys and values alike, and prompt (B, N) bool: the nodes
    that the encoder reads. State (B, H, K, E), float32 at least: a long sum does not survive bfloat16.
    """

    def __init__(self, heads: int, key_width: int, value_width: int) -> None:
        super().__init__()
        self.shape = (heads, key_width, value_width)

    def initial(self, batch: int, like: Tensor) -> Tensors:
        return (like.new_zeros(batch, *self.shape, dtype=torch.promote_types(like.dtype, torch.float32)),)

    def scan(self, inputs: Tensors, state: Tensors, starts: Tensor | None = None,
             lengths: Tensor | None = None) -> tuple[Tensor, Tensors]:
        q, k, v, keys, values, read = inputs
        if lengths is not None:
            live = torch.arange(q.shape[1], device=q.device) < lengths[:, None]
            read, starts = read & live, None if starts is None else starts & live
        keys = keys * read[..., None, None]
        if starts is None:
            y, final = linear_attention(q, k, v, state[0] + self._sum(keys, values), None, lengths)
            return y, (final,)
        y, final = linear_attention(q, k, v, state[0], starts, lengths)
        document = starts.long().cumsum(1)
        last = keys * (document == document[:, -1:])[..., None, None]
        return y + linear_attention_both_ways(q, keys, values, starts), (final + self._sum(last, values),)

    @staticmethod
    def _sum(keys: Tensor, values: Tensor) -> Tensor:
        return torch.einsum("bnhk,bnhe->bhke", keys, values)


class PrefixLinearAttention(Mixer):
    """Linear attention whose state, before the first step, already holds the whole prompt: every node reads what stands
    before it and, through keys and values of their own (the encoder's), all of the prompt.

    The prompt is what the layout says (`Layout.prompt`, `State.prompt`), or else the first `prefix` positions of each
    document; without either nothing is read ahead. It must be given whole, and its elements see each other: only what
    comes after it may be predicted from what comes before.

    width: model width D. heads. features: d, the width of queries and keys per head; the state then has
    1 + d + d (d + 1) / 2 rows per head. taps: of the short convolution before the projections (1: the node alone).
    """

    linear_in_values = True
    needs_whole_prompt = True

    def __init__(self, width: int, heads: int = 4, features: int = 16, taps: int = 3, prefix: int = 0) -> None:
        super().__init__(width)
        if width % heads:
            raise SegueError(f"width {width} is not divisible by {heads} heads: choose another number of heads")
        self.heads, self.features, self.prefix = heads, features, prefix
        self.convolution = ShortConvolution(width, taps)
        self.qk = nn.Linear(width, 3 * heads * features, bias=False)  # queries, keys, keys of the encoder
        self.v = nn.Linear(width, 2 * width, bias=False)  # values, values of the encoder
        self.out = nn.Linear(width, width, bias=False)
        self.recurrence = PrefixLinearRecurrence(heads, 1 + features + features * (features + 1) // 2,
                                                 width // heads + 1)

    def parts(self, batch: int, like: Tensor, history: int) -> dict[str, Part]:
        return {"convolution": Carry(self.convolution, self.convolution.initial(batch, like), history),
                "carry": Carry(self.recurrence, self.recurrence.initial(batch, like), history)}

    def _project(self, x: Tensor, layout: Layout, parts: dict[str, Part] | None) -> Tensors:
        x = self.convolution((x,), layout, None if parts is None else parts["convolution"])
        q, k, keys = taylor(self.qk(x).unflatten(-1, (3, self.heads, self.features))).unbind(2)
        both = self.v(x).unflatten(-1, (2, self.heads, -1))
        v, values = torch.cat([both, torch.ones_like(both[..., :1])], -1).unbind(2)  # the ones sum up the weights
        read = layout.positions < self.prefix if layout.prompt is None else layout.prompt
        return q, k, v, keys, values, read.expand(x.shape[:2])

    def run(self, x: Tensor, layout: Layout, parts: dict[str, Part] | None) -> Tensor:
        inputs = self._project(x, layout, parts)
        y = self.recurrence(inputs, layout, None if parts is None else parts["carry"])
        return self.out((y[..., :-1] / y[..., -1:]).flatten(2))

    def _inputs(self, x: Tensor) -> Tensors:
        return self._project(x, Layout.chain((x.shape[0], x.shape[1]), device=x.device), None)

    def matrix(self, x: Tensor) -> Tensor:
        """(B, 2 H, T, T): what each head reads of its own values, then what it reads of the encoder's."""
        q, k, _, keys, _, read = self._inputs(x)
        own = torch.einsum("bihk,bjhk->bhij", q, k).tril()
        ahead = torch.einsum("bihk,bjhk->bhij", q, keys) * read[:, None, None]
        total = (own + ahead).sum(-1, keepdim=True)
        return torch.cat([own / total, ahead / total], 1)

    def values(self, x: Tensor) -> Tensor:
        _, _, v, _, values, _ = self._inputs(x)
        return torch.cat([v, values], 2)[..., :-1].transpose(1, 2)

    def output(self, mixed: Tensor, x: Tensor) -> Tensor:
        own, ahead = mixed.chunk(2, 1)
        return self.out((own + ahead).transpose(1, 2).flatten(2))
