"""Cross-attention to another sequence, the source, which does not change while decoding: by content (Vaswani et al.
2017), or by position in the source (Lina-Speech, 2024, arXiv 2410.23320)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segue.errors import SegueError, check_choice
from segue.mixers.base import Mixer
from segue.mixers.layout import Layout, length_mask
from segue.mixers.positions import sinusoids
from segue.mixers.state import Part, Parts


class Source:
    """Keys and values (B, G, S, E) of a source, of which the first `lengths` (B,) of each row are no padding.

    They are set by the first call and fixed from then on: commit and rewind do not change them. Rows that were forked
    from one another have the same `origin` (B,), and share their memory where possible.
    """

    def __init__(self, k: Tensor, v: Tensor, lengths: Tensor, origin: Tensor | None = None) -> None:
        self.k, self.v, self.lengths = k, v, lengths
        self.origin = torch.arange(len(lengths), device=k.device) if origin is None else origin
        self.pending: Source | None = None
        real = length_mask(lengths, k.shape[2])
        self.mask = None if bool(real.all()) else real[:, None, None]  # (B, 1, 1, S), None: all are real

    @property
    def is_empty(self) -> bool:
        """Whether no source has been read yet."""
        return self.k.shape[2] == 0

    def commit(self, path: Tensor | None, counts: Tensor | None) -> None:
        if self.pending is not None:
            self._assign(self.pending)

    def _assign(self, other: Source) -> None:
        self.k, self.v, self.lengths, self.origin, self.mask = other.k, other.v, other.lengths, other.origin, other.mask
        self.pending = None

    def select(self, rows: Tensor) -> Source:
        origin = self.origin[rows]
        if torch.equal(origin, self.origin):  # the forks of each row change places
            return self.copy()
        if len(rows) and bool((origin == origin[0]).all()):
            first = int(rows[0])
            k, v = (x[first : first + 1].expand(len(rows), -1, -1, -1) for x in (self.k, self.v))
        else:
            k, v = self.k[rows], self.v[rows]
        return Source(k, v, self.lengths[rows], origin)

    def join(self, others: Sequence[Source]) -> Source:
        parts, origins, first = [self, *others], [], 0
        longest = max(part.k.shape[2] for part in parts)
        k, v = (torch.cat([F.pad(x, (0, 0, 0, longest - x.shape[2])) for x in tensors])
                for tensors in zip(*((part.k, part.v) for part in parts)))
        for part in parts:
            origins.append(part.origin + first)
            first += int(part.origin.max()) + 1 if len(part.origin) else 0
        return Source(k, v, torch.cat([part.lengths for part in parts]), torch.cat(origins))

    def max_rewind(self) -> Tensor:
        return torch.full_like(self.lengths, torch.iinfo(torch.long).max)

    def rewind(self, n: Tensor) -> None:
        self.pending = None

    def copy(self) -> Source:
        copied = Source.__new__(Source)  # tensors are replaced, never written into, so a copy may share them
        copied._assign(self)
        return copied

    def detach(self) -> None:
        self.k, self.v = self.k.detach(), self.v.detach()

    def tensors(self) -> dict[str, Tensor]:
        return {"k": self.k, "v": self.v, "lengths": self.lengths}

    def load(self, tensors: dict[str, Tensor]) -> None:
        self._assign(Source(tensors["k"], tensors["v"], tensors["lengths"]))


def resolve_source(layout: Layout, parts: Parts, project: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Source:
    """The source that this call attends to: the one its layout brings, projected to keys and values and left pending in
    the part "source"; else the one that part remembers."""
    remembered = parts.get("source")
    assert remembered is None or isinstance(remembered, Source)
    if layout.source is not None:
        encoded, lengths = layout.source
        source = Source(*project(encoded), lengths)
        if remembered is not None:
            remembered.pending = source
        return source
    if remembered is None or remembered.is_empty:
        raise SegueError("cross-attention has no source: give the whole prompt first, or a layout with a source")
    return remembered


class CrossAttention(Mixer):
    """Queries of the sequence's nodes, keys and values of the source, no positions.

    The source is what the first call's layout brings (`Layout.source`), and what the state remembers from then on.

    width: model width D. heads: query heads. kv_heads: key-value heads (default: heads). head_width: features per head
        (default: width / heads). bias: of all projections. first: the first position that attends to the source
        (default: all do); earlier nodes may be read before there is a source. aligned: add sinusoids to queries, of
        their position in their region (`Layout.labels`), and to keys, of their position in the source, both from 0, so
        that regions align with the source (theme-aligned positions, Theme Transformer, 2021, arXiv 2111.04093).
    """

    cost: ClassVar[str] = "T S"

    def __init__(self, width: int, heads: int = 4, kv_heads: int | None = None, head_width: int | None = None,
                 bias: bool = False, first: int | None = None, aligned: bool = False) -> None:
        super().__init__(width)
        self.heads, self.kv_heads, self.first, self.aligned = heads, kv_heads or heads, first, aligned
        if (head_width is None and width % heads) or heads % self.kv_heads:
            raise SegueError(f"cross-attention of {heads} heads, {self.kv_heads} of keys and values, at width {width}: "
                             "the width must be divisible by the heads, and these by those of keys and values")
        self.head_width = head_width or width // heads
        self.q = nn.Linear(width, heads * self.head_width, bias=bias)
        self.kv = nn.Linear(width, 2 * self.kv_heads * self.head_width, bias=bias)
        self.out = nn.Linear(heads * self.head_width, width, bias=bias)

    def parts(self, batch: int, like: Tensor, history: int) -> dict[str, Part]:
        k = like.new_zeros(batch, self.kv_heads, 0, self.head_width)
        return {"source": Source(k, k, torch.zeros(batch, dtype=torch.long, device=like.device))}

    def project(self, encoded: Tensor) -> tuple[Tensor, Tensor]:
        """(B, S, D) -> keys and values (B, G, S, E)."""
        k, v = self.kv(encoded).chunk(2, -1)
        if self.aligned:
            places = sinusoids(torch.arange(encoded.shape[1], device=encoded.device), self.width, encoded.dtype)
            k = k + F.linear(places, self.kv.weight[: k.shape[-1]])
        k, v = (x.unflatten(-1, (-1, self.head_width)).transpose(1, 2) for x in (k, v))
        return k, v

    def run(self, x: Tensor, layout: Layout, parts: Parts) -> Tensor:
        attends = None if self.first is None else layout.positions >= self.first
        if attends is not None and layout.source is None and not bool(attends.any()):
            return torch.zeros_like(x)
        source = resolve_source(layout, parts, self.project)
        if self.aligned:
            if layout.labels is None:
                raise SegueError("aligned cross-attention needs regions: give the model regions, the ids that open and "
                                 "close one")
            places = sinusoids((layout.labels - 1).clamp(min=0), self.width, x.dtype)
            x = x + places.masked_fill(layout.labels[..., None] == 0, 0.0)
        q = self.q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = source.k, source.v
        y = F.scaled_dot_product_attention(q, k, v, source.mask, enable_gqa=self.heads != self.kv_heads)
        y = self.out(y.transpose(1, 2).flatten(2))
        return y if attends is None else y * attends[..., None]


class PositionAwareCrossAttention(Mixer):
    """Single-head cross-attention in two steps: find a position in the source, then read there (Lina-Speech).

    Attention of queries to keys gives a mean of the source's position vectors, (B, N, D); a causal mixer updates it
    from the past, x + mixer(norm(x)); and attention of the result to the position vectors reads the values. So what is
    read depends on the query through a position alone, and the mixer learns how that advances. Positions are
    sinusoidal, from 0. Queries, keys and values are layer-normed.

    width: model width D. mixer: name in `MIXERS` of any causal one, options: its keyword arguments.
    """

    cost: ClassVar[str] = "T S"

    def __init__(self, width: int, mixer: str = "gla", **options: Any) -> None:
        super().__init__(width)
        from segue.mixers import MIXERS  # which names this module's neighbours

        check_choice("mixer", mixer, sorted(MIXERS))
        self.q, self.kv = nn.Linear(width, width, bias=False), nn.Linear(width, 2 * width, bias=False)
        self.q_norm, self.k_norm, self.v_norm = (nn.LayerNorm(width) for _ in range(3))
        self.norm, self.mixer = nn.RMSNorm(width), MIXERS[mixer](width, **options)
        self.out = nn.Linear(width, width, bias=False)
        if not self.mixer.causal:
            raise SegueError(f"mixer '{mixer}' looks ahead: cross-attention of a decoder must be causal")
        self.constant_state = self.mixer.constant_state
        self.resettable = self.mixer.resettable

    def parts(self, batch: int, like: Tensor, history: int) -> dict[str, Part]:
        k = like.new_zeros(batch, 1, 0, self.width)
        mixer_parts = {f"cross {name}": part for name, part in self.mixer.parts(batch, like, history).items()}
        return {"source": Source(k, k, torch.zeros(batch, dtype=torch.long, device=like.device)), **mixer_parts}

    def project(self, encoded: Tensor) -> tuple[Tensor, Tensor]:
        k, v = self.kv(encoded).chunk(2, -1)
        return self.k_norm(k)[:, None], self.v_norm(v)[:, None]

    def position_vectors(self, count: int, like: Tensor) -> Tensor:
        """(S, D): the vector of each position of the source."""
        return sinusoids(torch.arange(count, device=like.device), self.width, like.dtype)

    def run(self, x: Tensor, layout: Layout, parts: Parts) -> Tensor:
        source = resolve_source(layout, parts, self.project)
        q = self.q_norm(self.q(x))[:, None]
        places = self.position_vectors(source.k.shape[2], x).expand(len(x), 1, -1, -1)
        read_positions = F.scaled_dot_product_attention(q, source.k, places, source.mask)[:, 0]
        mixer_parts = {name.removeprefix("cross "): part for name, part in parts.items() if name.startswith("cross ")}
        read_positions = read_positions + self.mixer.run(self.norm(read_positions), layout, mixer_parts)
        return self.out(F.scaled_dot_product_attention(read_positions[:, None], places, source.v, source.mask)[:, 0])


def make_cross_attention(width: int, options: Mapping[str, Any]) -> Mixer:
    """Make the cross-attention of a block from its options: by position if they name a mixer, else by content."""
    mixer_class = PositionAwareCrossAttention if "mixer" in options else CrossAttention
    try:
        return mixer_class(width, **options)
    except TypeError as error:
        raise SegueError(f"options of cross-attention: {error}") from error
