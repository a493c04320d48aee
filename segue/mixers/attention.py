"""Softmax attention (Vaswani et al. 2017), with grouped key-value heads (Ainslie et al. 2023), rotary positions
(Su et al. 2021) or ALiBi biases (Press et al. 2022), and mask rules."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segue.errors import SegueError
from segue.kernels.attention import causal_attention, trains_on
from segue.mixers import rules
from segue.mixers.base import Mixer
from segue.mixers.state import Layout, Part, gather_nodes

if TYPE_CHECKING:
    from segue.kernels.cpu.program import Program, View


def rotary_frequencies(width: int, theta: float = 10_000.0, scaling: dict[str, Any] | None = None) -> Tensor:
    """(width / 2,) angular frequencies, radians per position; computed on the CPU, whatever the default device.

    scaling: slows the planes down so that a model reaches further than it was trained for. {"kind": "linear",
    "factor"} slows all of them. "llama3" and "yarn" (Peng et al. 2023) slow those that turn fewer than `low` times
    over the `length` trained on, leave those that turn more than `high` times, and go from one to the other linearly
    in the number of turns (llama3) or in the plane's index (yarn; `whole`: between whole indices).
    """
    index = torch.arange(0, width, 2, dtype=torch.float64, device="cpu") / width
    frequencies = theta**-index
    if scaling is None:
        return frequencies
    kind, factor = scaling["kind"], scaling["factor"]
    if kind == "linear":
        return frequencies / factor
    if kind not in ("llama3", "yarn"):
        raise SegueError(f"rotary scaling '{kind}' is unknown: choose linear, llama3 or yarn")
    length, low, high = scaling["length"], scaling["low"], scaling["high"]
    if kind == "llama3":
        kept = (frequencies * length / (2 * math.pi) - low) / (high - low)
    else:
        first, last = (width * math.log(length / (2 * math.pi * turns)) / math.log(theta) / 2 for turns in (high, low))
        if scaling.get("whole", True):
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, width - 1)
        kept = 1 - (index * width / 2 - first) / (last - first or 0.001)
    return frequencies * torch.lerp(torch.ones_like(kept) / factor, torch.ones_like(kept), kept.clamp(0, 1))


def rotate(x: Tensor, positions: Tensor, frequencies: Tensor) -> Tensor:
    """Turn the first 2F features of x (B, H, N, E) by position: features i and i + F are one plane.

    positions: (B or 1, N). frequencies: (F,) radians per position. The angles are computed in float64, since a
    float32 angle is off by radians at the positions a long stream reaches.
    """
    if positions.stride(0) == 0:  # every row stands alike: one row of angles serves all
        positions = positions[:1]
    angle = positions[:, None, :, None].to(frequencies.device).double() * frequencies.double()
    cos, sin = angle.cos().to(x.dtype).to(x.device), angle.sin().to(x.dtype).to(x.device)
    half = frequencies.shape[0]
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], dim=-1)


def alibi_slopes(heads: int) -> Tensor:
    """(heads,) the slopes of Press et al.: a geometric series, interpolated where heads is no power of two."""
    whole = 2 ** math.floor(math.log2(heads))
    slopes = [2.0 ** (-8 * (i + 1) / whole) for i in range(whole)]
    slopes += [2.0 ** (-4 * (2 * i + 1) / whole) for i in range(heads - whole)]
    return torch.tensor(slopes, device="cpu")


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, bias: Tensor | None = None,
           ) -> tuple[Tensor, Tensor]:
    """Attention that also returns the log-sum-exp of its scores, so that partial results can be merged.

    q: (B, H, Q, E). k, v: (B, G, K, E) with H a multiple of G. mask: bool, True = seen, broadcastable to
    (B, 1, Q, K). bias: added to the scores. Returns (B, H, Q, E) and (B, H, Q); a query that sees nothing gives 0
    and -inf.
    """
    group = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(group, 1) if group > 1 else x for x in (k, v))
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if bias is not None:
        scores = scores + bias
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    lse = scores.logsumexp(-1)
    weights = (scores - lse.nan_to_num(neginf=0.0)[..., None]).exp()
    return weights @ v, lse


def merge(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Merge attention over disjoint sets of keys: pairs (output (B, H, Q, E), log-sum-exp (B, H, Q))."""
    outputs, lses = (torch.stack(x) for x in zip(*parts))
    lse = lses.logsumexp(0)
    weights = (lses - lse.nan_to_num(neginf=0.0)).exp()
    return (weights[..., None] * outputs).sum(0), lse


class Cache:
    """Keys and values of the committed nodes, with a cursor per row; pending nodes lie beyond the longest row.

    window: of a windowed attention (None: everything stays); then window + history nodes stay. Positions are kept
    beside the keys, because the index in the cache says nothing about the position.
    """

    def __init__(self, k: Tensor, v: Tensor, window: int | None = None, history: int = 0) -> None:
        self.k, self.v, self.window, self.history = k, v, window, history
        batch, capacity = k.shape[0], k.shape[2]
        self.positions = torch.zeros(batch, capacity, dtype=torch.long, device=k.device)
        self.segments = torch.zeros(batch, capacity, dtype=torch.long, device=k.device)
        self.lengths = torch.zeros(batch, dtype=torch.long, device=k.device)
        self.segment = torch.zeros(batch, dtype=torch.long, device=k.device)
        self.dropped = torch.zeros(batch, dtype=torch.bool, device=k.device)  # did nodes leave the window for good?
        self.longest, self.uniform = 0, True  # of `lengths`, kept aside to spare a device round trip per token
        self.pending: tuple[Tensor, Tensor, Tensor, Tensor] | None = None
        self.placed = False  # do the pending keys and values lie behind the committed ones already?

    def put(self, k: Tensor, v: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        """Put new nodes (B, G, N, E) behind the committed ones, uncommitted; returns all keys and all values
        (B, G, L + N, E)."""
        batch, n, cursor = k.shape[0], k.shape[2], self.longest
        k, v = k.to(self.k.dtype), v.to(self.v.dtype)  # autocast gives others
        segments = self.segment[:, None].expand(batch, n)
        if layout.segments is not None:
            segments = segments + layout.segments
        self.pending = (k, v, layout.positions.expand(batch, n), segments)
        self.placed = not (torch.is_grad_enabled() and (k.requires_grad or self.k.requires_grad))
        if not self.placed:
            return torch.cat([self.k[:, :, :cursor], k], 2), torch.cat([self.v[:, :, :cursor], v], 2)
        self._reserve(cursor + n)
        self.k[:, :, cursor : cursor + n], self.v[:, :, cursor : cursor + n] = k, v
        return self.k[:, :, : cursor + n], self.v[:, :, : cursor + n]

    def pairs(self, layout: Layout) -> rules.Pairs:
        """The nodes of a call and all they may look at: the committed nodes, then each other."""
        positions, cursor = layout.positions.expand(len(self.lengths), -1), self.longest
        before = torch.ones(1, positions.shape[1], cursor, dtype=torch.bool, device=positions.device)
        follows = torch.cat([before.expand(layout.follows.shape[0], -1, -1), layout.follows], 2)
        keys = torch.cat([self.positions[:, :cursor], positions], 1)
        return rules.Pairs(positions[:, :, None], keys[:, None], follows)

    def valid(self, layout: Layout) -> Tensor | None:
        """Where a key exists and is of the same document as the query, (B, N or 1, L + N) bool (None: everywhere)."""
        n, cursor, valid = layout.positions.shape[1], self.longest, None
        if not self.uniform:
            index = torch.arange(cursor + n, device=self.k.device)
            valid = ((index < self.lengths[:, None]) | (index >= cursor))[:, None]
        if layout.segments is not None or bool(self.segment.any()):
            segments = self.segment[:, None].expand(-1, n) + (0 if layout.segments is None else layout.segments)
            same = segments[:, :, None] == torch.cat([self.segments[:, :cursor], segments], 1)[:, None]
            valid = same if valid is None else valid & same
        return valid

    def commit(self, path: Tensor | None, counts: Tensor | None) -> None:
        assert self.pending is not None, "extend first"
        k, v, positions, segments = self.pending
        batch, n = positions.shape
        self.pending = None
        if path is None and counts is None and self.uniform and n:  # the common case: all rows take all nodes
            end = self.longest + n
            if not self.placed:
                self._reserve(end)
                self._write((slice(None), slice(None), slice(self.longest, end)), k, v)
            self.positions[:, self.longest : end], self.segments[:, self.longest : end] = positions, segments
            self.lengths, self.segment, self.longest = self.lengths + n, segments[:, -1], end
            if self.window is not None:
                self._settle()
            return
        if path is not None:
            index = path.clamp(min=0)[:, None, :, None]
            k = k.gather(2, index.expand(-1, k.shape[1], -1, k.shape[3]))
            v = v.gather(2, index.expand(-1, v.shape[1], -1, v.shape[3]))
            positions, segments, n = gather_nodes(positions, path), gather_nodes(segments, path), path.shape[1]
        if counts is None:
            counts = torch.full((batch,), n, device=k.device)
        if n == 0:
            return
        added = torch.arange(n, device=k.device)
        kept = added < counts[:, None]
        self._reserve(self.longest + n)
        row, node = torch.nonzero(kept, as_tuple=True)
        slot = self.lengths[row] + node
        self._write((row, slice(None), slot), k[row, :, node], v[row, :, node])
        self.positions[row, slot], self.segments[row, slot] = positions[row, node], segments[row, node]
        self.lengths = self.lengths + counts
        last = (counts - 1).clamp(min=0)[:, None]
        self.segment = torch.where(counts > 0, segments.gather(1, last)[:, 0], self.segment)
        self._settle()

    def _write(self, where: tuple, k: Tensor, v: Tensor) -> None:
        if self.k.requires_grad or k.requires_grad:
            self.k, self.v = self.k.clone(), self.v.clone()
        self.k[where], self.v[where] = k, v

    def _reserve(self, capacity: int) -> None:
        """Grow by doubling, so that n tokens cost O(n) copying."""
        extra = capacity - self.k.shape[2]
        if extra <= 0:
            return
        extra = max(extra, self.k.shape[2], 64)
        self.k, self.v = (F.pad(x, (0, 0, 0, extra)) for x in (self.k, self.v))
        self.positions, self.segments = (F.pad(x, (0, extra)) for x in (self.positions, self.segments))

    def _settle(self) -> None:
        keep = None if self.window is None else self.window + self.history
        if keep is not None and self.k.shape[2] > 2 * keep + 64 and bool((self.lengths > 2 * keep).any()):
            drop = (self.lengths - keep).clamp(min=0)
            self.dropped = self.dropped | (drop > 0)
            index = drop[:, None] + torch.arange(keep, device=drop.device)
            wide = index[:, None, :, None].expand(-1, self.k.shape[1], -1, self.k.shape[3])
            self.k, self.v = self.k.gather(2, wide), self.v.gather(2, wide)
            self.positions, self.segments = self.positions.gather(1, index), self.segments.gather(1, index)
            self.lengths = self.lengths - drop
        self.longest = int(self.lengths.max()) if len(self.lengths) else 0
        self.uniform = bool((self.lengths == self.longest).all())

    def reach(self) -> Tensor:
        # Where nodes have left, the next one must still find its whole window.
        return torch.where(self.dropped, self.lengths - (self.window or 1) + 1, self.lengths)

    def rewind(self, n: Tensor) -> None:
        self.lengths, self.pending = self.lengths - n, None
        self._settle()
        self._recall()

    def _recall(self) -> None:
        """The current document of each row is that of its last node."""
        if self.segments.shape[1]:
            last = (self.lengths - 1).clamp(min=0)[:, None]
            self.segment = torch.where(self.lengths > 0, self.segments.gather(1, last)[:, 0], 0)

    def _twin(self, rows: Tensor | slice) -> Cache:
        used = slice(0, self.longest)
        twin = Cache(self.k[rows, :, used].clone(), self.v[rows, :, used].clone(), self.window, self.history)
        twin.positions, twin.segments = self.positions[rows, used].clone(), self.segments[rows, used].clone()
        twin.lengths, twin.segment, twin.dropped = self.lengths[rows], self.segment[rows], self.dropped[rows]
        twin._settle()
        return twin

    def select(self, rows: Tensor) -> Cache:
        return self._twin(rows)

    def join(self, others: Sequence[Cache]) -> Cache:
        parts = [self, *others]
        capacity = max(part.longest for part in parts)

        def stacked(name: str, axis: int) -> Tensor:
            tensors = [getattr(part, name)[(slice(None),) * axis + (slice(0, capacity),)] for part in parts]
            room = [capacity - x.shape[axis] for x in tensors]
            return torch.cat([F.pad(x, (*[0] * (2 * (x.dim() - 1 - axis)), 0, n)) for x, n in zip(tensors, room)])

        joined = Cache(stacked("k", 2), stacked("v", 2), self.window, self.history)
        joined.positions, joined.segments = stacked("positions", 1), stacked("segments", 1)
        joined.lengths, joined.segment, joined.dropped = (
            torch.cat([getattr(part, name) for part in parts]) for name in ("lengths", "segment", "dropped"))
        joined._settle()
        return joined

    def copy(self) -> Cache:
        return self._twin(slice(None))

    def detach(self) -> None:
        self.k, self.v = self.k.detach(), self.v.detach()

    def tensors(self) -> dict[str, Tensor]:
        return {"k": self.k[:, :, : self.longest], "v": self.v[:, :, : self.longest],
                "positions": self.positions[:, : self.longest], "segments": self.segments[:, : self.longest],
                "lengths": self.lengths}

    def load(self, tensors: dict[str, Tensor]) -> None:
        self.k, self.v, self.positions, self.segments, self.lengths = (
            tensors[name].clone() for name in ("k", "v", "positions", "segments", "lengths"))
        self.dropped, self.pending = torch.zeros_like(self.lengths, dtype=torch.bool), None
        self._settle()
        self._recall()


class Attention(Mixer):
    """Multi-head attention with a key-value cache.

    width: model width D. heads: query heads. kv_heads: key-value heads (default: heads). head_width: features per head
        (default: width / heads).
    positions: "rotary", "alibi" or "none". theta, rotary_fraction, scaling: base of the rotary frequencies, how much
        of a head they turn, and how they are slowed down (see `rotary_frequencies`).
    causal: False looks both ways. window: at most so many positions back. prefix: so many first positions are seen by
        all, both ways (then the prompt must be given whole).
    qkv_bias, out_bias: biases of the projections. qk_norm: RMS-normalise queries and keys per head (epsilon norm_eps).
    """

    constant_state = False
    cost = "T²"
    linear_in_values: ClassVar[bool] = True
    frequencies: Tensor
    slopes: Tensor

    def __init__(self, width: int, heads: int = 4, kv_heads: int | None = None, head_width: int | None = None,
                 positions: str = "rotary", theta: float = 10_000.0, rotary_fraction: float = 1.0,
                 scaling: dict[str, Any] | None = None, causal: bool = True, window: int | None = None, prefix: int = 0,
                 qkv_bias: bool = False, out_bias: bool = False, qk_norm: bool = False, norm_eps: float = 1e-6) -> None:
        super().__init__(width)
        self.heads, self.kv_heads = heads, kv_heads or heads
        if head_width is None and width % heads:
            raise SegueError(f"width {width} is not divisible by {heads} heads: choose another number of heads")
        if heads % self.kv_heads:
            raise SegueError(f"{heads} heads cannot share {self.kv_heads} key-value heads: choose a divisor")
        if positions not in ("rotary", "alibi", "none"):
            raise SegueError(f"attention positions '{positions}' are unknown: choose rotary, alibi or none")
        if window is not None and (window < 1 or prefix or not causal):
            raise SegueError(f"a window of {window} with prefix {prefix} and causal {causal}: a window is of at least "
                             "one position, causal and without a prefix")
        self.head_width = head_width or width // heads
        self.positions, self.window = positions, window
        self.causal, self.needs_whole_prompt = causal, prefix > 0  # type: ignore[misc]
        self.constant_state = window is not None  # type: ignore[misc]
        if not causal:
            self.rule: rules.Rule = rules.full
        elif prefix:
            self.rule = rules.prefix(prefix)
        else:
            self.rule = rules.causal if window is None else rules.window(window)
        self.qkv = nn.Linear(width, (heads + 2 * self.kv_heads) * self.head_width, bias=qkv_bias)
        self.out = nn.Linear(heads * self.head_width, width, bias=out_bias)
        self.q_norm = nn.RMSNorm(self.head_width, eps=norm_eps) if qk_norm else None
        self.k_norm = nn.RMSNorm(self.head_width, eps=norm_eps) if qk_norm else None
        if positions == "rotary":
            turned = int(self.head_width * rotary_fraction) // 2 * 2
            self.register_buffer("frequencies", rotary_frequencies(turned, theta, scaling), persistent=False)
        if positions == "alibi":
            self.register_buffer("slopes", alibi_slopes(heads), persistent=False)

    def _apply(self, fn, recurse=True):  # type: ignore[no-untyped-def]
        # Casting a model to bfloat16 must not cast its rotary frequencies; a device without float64 cannot hold them.
        frequencies = self._buffers.pop("frequencies", None)
        super()._apply(fn, recurse)
        if frequencies is not None:
            device = self.qkv.weight.device
            self.register_buffer("frequencies", frequencies if device.type == "mps" else frequencies.to(device),
                                 persistent=False)
        return self

    def parts(self, batch: int, like: Tensor, history: int) -> dict[str, Part]:
        k = like.new_zeros(batch, self.kv_heads, 0, self.head_width)
        return {"cache": Cache(k, k.clone(), self.window, history)}

    def _project(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        qkv = self.qkv(x).unflatten(-1, (-1, self.head_width)).transpose(1, 2)
        q, k, v = qkv.split([self.heads, self.kv_heads, self.kv_heads], dim=1)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = (F.rms_norm(y, (self.head_width,), norm.weight.to(y.dtype), norm.eps)  # in y's type under autocast
                    for norm, y in ((self.q_norm, q), (self.k_norm, k)))
        if self.positions == "rotary":
            q, k = (rotate(y, positions, self.frequencies) for y in (q, k))
        return q, k, v

    @staticmethod
    def _pairs(layout: Layout) -> rules.Pairs:
        return rules.Pairs(layout.positions[:, :, None], layout.positions[:, None], layout.follows)

    def _mask_and_bias(self, pairs: rules.Pairs, valid: Tensor | None, like: Tensor) -> tuple[Tensor, Tensor | None]:
        mask = self.rule(pairs)
        mask = (mask if valid is None else mask & valid)[:, None]
        bias = None
        if self.positions == "alibi":
            bias = -self.slopes.to(like.dtype)[:, None, None] * (pairs.query - pairs.key)[:, None].abs().to(like.dtype)
        return mask, bias

    def run(self, x: Tensor, layout: Layout, parts: dict[str, Part] | None) -> Tensor:
        q, k, v = self._project(x, layout.positions)
        n = x.shape[1]
        cache: Any = None
        fresh = True
        if parts is None:
            valid = None if layout.segments is None else layout.segments[:, :, None] == layout.segments[:, None]
        else:
            cache = parts["cache"]
            assert isinstance(cache, Cache)
            fresh, valid = cache.longest == 0, cache.valid(layout)
            k, v = cache.put(k, v, layout)
        plain = valid is None and layout.parents is None and self.positions != "alibi"
        shared = self.kv_heads != self.heads
        reach = self.rule is rules.causal or (self.window is not None and n <= self.window)
        if parts is None and q.requires_grad and trains_on(q) and reach and layout.parents is None and not shared \
                and self.positions != "alibi":
            if torch.is_autocast_enabled("cpu"):
                q, k, v = (y.to(torch.get_autocast_dtype("cpu")) for y in (q, k, v))
            y = causal_attention(q, k, v, layout.segments)
        elif plain and self.rule is rules.causal and (fresh or n == 1):
            y = F.scaled_dot_product_attention(q, k, v, is_causal=n > 1, enable_gqa=shared)
        elif plain and self.rule is rules.full:
            y = F.scaled_dot_product_attention(q, k, v, enable_gqa=shared)
        else:
            mask, bias = self._mask_and_bias(self._pairs(layout) if cache is None else cache.pairs(layout), valid, q)
            if bias is not None:
                mask = bias.masked_fill(~mask, -math.inf)
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=shared)
        return self.output(y, x)

    def lower(self, program: Program, source: View, into: View) -> None:
        if not self.causal or self.needs_whole_prompt:
            raise SegueError("attention that looks ahead has no form for the compiled CPU engine")
        wide, narrow = self.heads * self.head_width, self.kv_heads * self.head_width
        qkv, y = program.register("qkv", wide + 2 * narrow), program.register("y", wide)
        q, k, v = qkv[:wide], qkv[wide : wide + narrow], qkv[wide + narrow :]
        program.linear(source, qkv, self.qkv.weight, self.qkv.bias)
        if self.q_norm is not None and self.k_norm is not None:
            for part, norm, heads in ((q, self.q_norm, self.heads), (k, self.k_norm, self.kv_heads)):
                program.norm(part, part, "rms", norm.weight, None, norm.eps or 0.0, heads)
        program.attend(q, k, v, y, self.heads, self.kv_heads, self.window,
                       self.frequencies if self.positions == "rotary" else None,
                       self.slopes if self.positions == "alibi" else None)
        program.linear(y, into, self.out.weight, self.out.bias, add=True)

    def matrix(self, x: Tensor) -> Tensor:
        layout = Layout.chain((x.shape[0], x.shape[1]), device=x.device)
        q, k, _ = self._project(x, layout.positions)
        mask, bias = self._mask_and_bias(self._pairs(layout), None, q)
        eye = torch.eye(x.shape[1], dtype=q.dtype, device=q.device).expand(*k.shape[:2], -1, -1)
        return attend(q, k, eye, mask, bias)[0]

    def values(self, x: Tensor) -> Tensor:
        v = self._project(x, Layout.chain((x.shape[0], x.shape[1]), device=x.device).positions)[2]
        return v.repeat_interleave(self.heads // self.kv_heads, 1)

    def output(self, mixed: Tensor, x: Tensor) -> Tensor:
        return self.out(mixed.transpose(1, 2).flatten(2))
