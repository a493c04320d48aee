"""Prefix linear attention (JRT-RNN: Arora et al. 2024, arXiv 2407.05483): a recurrent model that reads its prompt in
both directions, with the Taylor feature map of Based (Arora et al. 2024, arXiv 2402.18668)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segue.errors import SegueError
from segue.kernels.gla import gla
from segue.kernels.linear import linear_attention_both_ways
from segue.mixers.base import Mixer
from segue.mixers.convolution import ShortConvolution
from segue.mixers.layout import Layout, length_mask
from segue.mixers.linear import FEATURES, LinearRecurrence, divide_by_weight
from segue.mixers.state import Parts, Tensors

if TYPE_CHECKING:
    from segue.kernels.cpu.program import Program, View


class PrefixLinearRecurrence(LinearRecurrence):
    """Linear attention whose state starts from the encoder's key-value products summed over the whole prompt.

    Inputs: features q, k (B, N, H, F) and v (B, N, H, E), the encoder's keys and values of the same shapes, and a mask
    (B, N) bool of the nodes that the encoder reads; or the first three alone where it reads none. State: as of
    `LinearRecurrence`.
    """

    def scan(self, inputs: Tensors, state: Tensors, starts: Tensor | None = None,
             lengths: Tensor | None = None) -> tuple[Tensor, Tensors]:
        if len(inputs) == 3:
            return super().scan(inputs, state, starts, lengths)
        q, k, v, keys, values, read = inputs
        v, values = (F.pad(x, (0, 1), value=1.0) for x in (v, values))  # the ones sum up the weights
        if lengths is not None:
            live = length_mask(lengths, q.shape[1])
            read, starts = read & live, None if starts is None else starts & live
        keys = keys * read[..., None, None]
        if starts is None:
            y, final = gla(q, k, v, None, state[0] + self._sum_products(keys, values), None, lengths)
        else:
            y, final = gla(q, k, v, None, state[0], starts, lengths)
            y = y + linear_attention_both_ways(q, keys, values, starts)
            document = starts.long().cumsum(1)
            final = final + self._sum_products(keys * (document == document[:, -1:])[..., None, None], values)
        return divide_by_weight(y[..., :-1], y[..., -1:]), (final,)

    @staticmethod
    def _sum_products(keys: Tensor, values: Tensor) -> Tensor:
        return torch.einsum("bnhk,bnhe->bhke", keys, values)


class PrefixLinearAttention(Mixer):
    """Linear attention in which every node attends to its past and, through the encoder's own keys and values, to the
    whole prompt.

    The prompt is the first `prefix` positions of each document or, if `prefix` is 0, what the layout marks
    (`Layout.prompt`, `State.prompt`); if it marks nothing, this is causal linear attention. The prompt must be given in
    one call, and its elements see each other: only elements after it may be predicted.

    width: model width D. heads: number of heads, must divide `width`. features: "taylor", "elu", "favor" or "relu"
    (see `LinearAttention`). key_width: of queries and keys per head, before the feature map. taps: of the short
    convolution before the projections (1: the node alone). prefix: see above.
    """

    linear_in_values = True
    needs_whole_prompt = True

    def __init__(self, width: int, heads: int = 4, features: str = "taylor", key_width: int = 16, taps: int = 3,
                 prefix: int = 0) -> None:
        super().__init__(width)
        if width % heads or features not in FEATURES:
            raise SegueError(f"features '{features}' with {heads} heads at width {width}: the width must be divisible "
                             f"by the heads, the features one of {', '.join(FEATURES)}")
        self.heads, self.prefix = heads, prefix
        self.convolution = ShortConvolution(width, taps)
        self.qk = nn.Linear(width, 3 * heads * key_width, bias=False)  # queries, keys, keys of the encoder
        self.v = nn.Linear(width, 2 * width, bias=False)  # values, values of the encoder
        self.features = FEATURES[features](key_width)
        self.out = nn.Linear(width, width, bias=False)
        self.recurrence = PrefixLinearRecurrence(heads, self.features.size, width // heads)

    def _project(self, x: Tensor, layout: Layout, parts: Parts, ahead: bool = True) -> Tensors:
        """Return the recurrence's inputs, without the encoder's if not `ahead`."""
        x = self.convolution((x,), layout, parts.get("convolution"))
        qk, vs = self.qk(x).unflatten(-1, (3, self.heads, -1)), self.v(x).unflatten(-1, (2, self.heads, -1))
        if not ahead:
            return *self.features(qk[:, :, :2]).unbind(2), vs[:, :, 0]
        q, k, keys = self.features(qk).unbind(2)
        v, values = vs.unbind(2)
        read = layout.positions < self.prefix if self.prefix or layout.prompt is None else layout.prompt
        return q, k, v, keys, values, read.expand(x.shape[:2])

    def run(self, x: Tensor, layout: Layout, parts: Parts) -> Tensor:
        inputs = self._project(x, layout, parts, bool(parts or self.prefix or layout.prompt is not None))
        return self.out(self.recurrence(inputs, layout, parts.get("recurrence")).flatten(2))

    def lower(self, program: Program, source: View, into: View) -> None:
        heads, width, keys = self.heads, self.width, self.qk.out_features // 3
        x, qk, v, y = (program.register(name, size) for name, size in (
            ("near", width), ("qk", 3 * keys), ("v", 2 * width), ("y", width)))
        program.convolve(source, x, self.convolution.weight, self.convolution.bias, activation="none")
        program.linear(x, qk, self.qk.weight)
        program.linear(x, v, self.v.weight)
        q, own, ahead = (self.features.lower(program, name, qk[part * keys : (part + 1) * keys], heads)
                         for part, name in enumerate(("q", "k", "keys")))
        program.prefixed(q, own, v[:width], ahead, v[width:], y, heads, self.prefix)
        program.linear(y, into, self.out.weight, add=True)

    def _project_alone(self, x: Tensor) -> Tensors:
        return self._project(x, Layout.of(x), {})

    def matrix(self, x: Tensor) -> Tensor:
        """(B, 2 H, T, T): the weights of each head on the decoder's values, then on the encoder's."""
        q, k, _, keys, _, read = self._project_alone(x)
        own = torch.einsum("bihk,bjhk->bhij", q, k).tril()
        ahead = torch.einsum("bihk,bjhk->bhij", q, keys) * read[:, None, None]
        total = (own + ahead).sum(-1, keepdim=True)
        return torch.cat([own / total, ahead / total], 1)

    def values(self, x: Tensor) -> Tensor:
        _, _, v, _, values, _ = self._project_alone(x)
        return torch.cat([v, values], 2).transpose(1, 2)

    def output(self, mixed: Tensor, x: Tensor) -> Tensor:
        own, ahead = mixed.chunk(2, 1)
        return self.out((own + ahead).transpose(1, 2).flatten(2))
