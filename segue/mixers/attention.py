"""Softmax attention (Vaswani et al. 2017), with grouped key-value heads (Ainslie et al. 2023), positions of every sort
(`segue.mixers.positions`), learned spans (Sukhbaatar et al. 2019, arXiv 1905.07799) and mask rules
(`segue.mixers.rules`)."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segue.errors import SegueError
from segue.kernels.attention import causal_attention, is_causal_attention_faster
from segue.mixers import rules
from segue.mixers.base import Mixer
from segue.mixers.cache import Cache
from segue.mixers.convolution import ShortConvolution
from segue.mixers.cross import Source
from segue.mixers.layout import Layout, can_check_values
from segue.mixers.positions import alibi_slopes, relative_scores, rotary_frequencies, rotate, sinusoids
from segue.mixers.state import Part, Parts
from segue.mixers.traits import trait_differences

if TYPE_CHECKING:
    from segue.kernels.cpu.program import Program, View


POSITIONS = ("rotary", "alibi", "learned", "sinusoidal", "none")
SCORES_AT_ONCE = 1 << 21  # attention scores that tiled attention computes at a time: bounds its memory


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, bias: Tensor | None = None,
           ) -> tuple[Tensor, Tensor]:
    """Softmax attention that also returns the log-sum-exp of its scores, so that partial results can be merged.

    q: (B, H, Q, E). k, v: (B, G, K, E) with H a multiple of G. mask: bool, True = seen, broadcastable to
    (B, 1, Q, K). bias: added to the scores. Returns (B, H, Q, E) and (B, H, Q), in float32 at least, as the scores
    are; a query that sees nothing gives 0 and -inf.
    """
    group = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(group, 1) if group > 1 else x for x in (k, v))
    scores = (q @ k.transpose(-1, -2)).to(torch.promote_types(q.dtype, torch.float32)) / math.sqrt(q.shape[-1])
    if bias is not None:
        scores = scores + bias
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    lse = scores.logsumexp(-1)
    weights = (scores - lse.nan_to_num(neginf=0.0)[..., None]).exp()
    return weights.to(v.dtype) @ v, lse


def merge(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Merge attention over disjoint sets of keys: pairs (output (B, H, Q, E), log-sum-exp (B, H, Q))."""
    outputs, lses = (torch.stack(x) for x in zip(*parts))
    lse = lses.logsumexp(0)
    weights = (lses - lse.nan_to_num(neginf=0.0)).exp()
    return (weights[..., None] * outputs).sum(0).to(outputs.dtype), lse


def merge_into(out: Tensor, lse: Tensor, other: Tensor, other_lse: Tensor) -> None:
    """`merge` of two results, written into the first: for running sums, without gradients."""
    weight = torch.sigmoid(other_lse - lse).nan_to_num(nan=0.0)  # where neither saw anything
    out.lerp_(other.to(out.dtype), weight[..., None])
    torch.logaddexp(lse, other_lse, out=lse)


def make_rule(causal: bool, window: int | None, prefix: int, prompt: bool, block: int | None, look_back: int,
              global_tokens: int, random_blocks: int, span: int) -> rules.Rule:
    """The mask rule for these options of `Attention`; SegueError if they contradict each other. A learned span is not
    part of the rule: see `Attention._current_rule`."""
    if min(x if x is not None else 1 for x in (window, block)) < 1 or ((prefix or prompt) and not causal):
        raise SegueError(f"a window of {window}, a block of {block}, a prefix of {prefix}, a prompt {prompt} with "
                         f"causal {causal}: windows and blocks hold at least one position, and only a causal mixer "
                         "has a prefix or a prompt")
    if sum(map(bool, (window, block, prefix, prompt, span))) > 1:
        raise SegueError("window, block, prefix, prompt and span are five ways to say what is near: choose one")
    if (look_back or random_blocks) and not block:
        raise SegueError("look_back and random_blocks count blocks: give block too")
    if global_tokens and not (window or block):
        raise SegueError("global_tokens are seen besides a window or a block: give one of them too")
    if window or block:
        return rules.Sparse(window, block, look_back, global_tokens, random_blocks, causal)
    if prompt:
        return rules.prompted
    return rules.prefix(prefix) if prefix else rules.causal if causal else rules.full


class Attention(Mixer):
    """Multi-head attention with a key-value cache.

    width: model width D. heads: query heads. kv_heads: key-value heads (default: heads). head_width: features per head
        (default: width / heads).
    positions: "rotary", "alibi", "learned" (a vector for each of `length` positions) or "sinusoidal" (both are added
        to the mixer's input), or "none". theta, rotary_fraction, scaling: base of the rotary frequencies, how much
        of a head they turn, and how they are slowed down (see `rotary_frequencies`).
    relative: so many distances have a learned vector per head that queries are compared with (Music Transformer), on
        top of `positions`; clamp: farther keys have the last of them, instead of none. 0: none.
    traits: by the name of a trait of the elements (`Layout.traits`: their time, their pitch), so many differences
        either way have a learned vector per head too, where both elements have it (Music Transformer's relative time
        and pitch; memory in T² then).
    causal: False looks both ways. prefix: so many first positions are seen by all, both ways; prompt: so is the prompt
        (`Layout.prompt`, `State.prompt`), a prefix language model (either must be given whole).
    window: fewer than so many positions away. block, look_back: in the same block of positions, or so many blocks
        before. global_tokens, random_blocks: what is seen besides (see `rules.Sparse`; the cost is linear in T).
        global_projections: what the global tokens read, they read by queries, keys and values of their own, as
        Longformer's do (only where attention looks both ways).
        Segment recurrence (Transformer-XL, Dai et al. 2019) is a block with look_back=1, read block by block with
        `segue.training.truncated.truncated_bptt`.
    span: each head learns how far it looks, at most so many positions: weights fade to nothing over `ramp` positions
        beyond what it learned. span_penalty: what the mean learned part of `span` costs in the loss (`penalty`).
    A part "given" of the memory holds keys and values that come with no token, as they are (a prompt, see
    `segue.models.prompts`): all queries see them, and they have no position.
    taps: queries, keys and values are made of a short causal convolution over so many nodes, which is the node itself
        to begin with (0: of the node). Two let a key say what stood before it, so that copying and looking up are
        learned much sooner (after the shift of H3, Fu et al. 2022, arXiv 2212.14052).
    qkv_bias, out_bias: biases of the projections. qk_norm: RMS-normalise queries and keys per head (epsilon norm_eps).
    """

    constant_state = False
    cost = "T²"
    linear_in_values = True
    frequencies: Tensor
    slopes: Tensor

    def __init__(self, width: int, heads: int = 4, kv_heads: int | None = None, head_width: int | None = None,
                 positions: str = "rotary", theta: float = 10_000.0, rotary_fraction: float = 1.0,
                 scaling: dict[str, Any] | None = None, length: int = 1024, relative: int = 0, clamp: bool = False,
                 traits: dict[str, int] | None = None,
                 causal: bool = True, window: int | None = None, prefix: int = 0, block: int | None = None,
                 look_back: int = 0, global_tokens: int = 0, random_blocks: int = 0,
                 global_projections: bool = False, span: int = 0, ramp: int = 32, span_penalty: float = 0.0,
                 qkv_bias: bool = False, out_bias: bool = False, qk_norm: bool = False, norm_eps: float = 1e-6,
                 prompt: bool = False, taps: int = 0) -> None:
        super().__init__(width)
        self.heads, self.kv_heads = heads, kv_heads or heads
        if head_width is None and width % heads:
            raise SegueError(f"width {width} is not divisible by {heads} heads: choose another number of heads")
        if heads % self.kv_heads:
            raise SegueError(f"{heads} heads cannot share {self.kv_heads} key-value heads: choose a divisor")
        if positions not in POSITIONS:
            raise SegueError(f"attention positions '{positions}' are unknown: choose from {', '.join(POSITIONS)}")
        self.rule = make_rule(causal, window, prefix, prompt, block, look_back, global_tokens, random_blocks, span)
        if global_projections and (causal or not global_tokens or positions == "alibi" or relative or traits):
            raise SegueError("projections of their own are for global tokens that look both ways, without ALiBi or "
                             "learned distances: give global_tokens and causal=False")
        self.head_width = head_width or width // heads
        self.positions, self.window, self.clamp = positions, window, clamp
        self.span, self.ramp, self.span_penalty = span, ramp, span_penalty
        self.causal, self.needs_whole_prompt = causal, prefix > 0 or prompt
        self.prefix = prefix
        self.sets = causal and not (self.needs_whole_prompt or taps or traits)
        self.constant_state = self._cache_window() is not None
        self.qkv = nn.Linear(width, (heads + 2 * self.kv_heads) * self.head_width, bias=qkv_bias)
        self.qkv_global = copy.deepcopy(self.qkv) if global_projections else None
        if self.qkv_global is not None:
            self.qkv_global.reset_parameters()
            self.linear_in_values = False
        self.convolution = ShortConvolution(width, taps) if taps else None
        if self.convolution is not None:
            self.convolution.weight.data[:, -1] += 1
            self.linear_in_values = False
        self.out = nn.Linear(heads * self.head_width, width, bias=out_bias)
        self.q_norm = nn.RMSNorm(self.head_width, eps=norm_eps) if qk_norm else None
        self.k_norm = nn.RMSNorm(self.head_width, eps=norm_eps) if qk_norm else None
        if positions == "rotary":
            turned = int(self.head_width * rotary_fraction) // 2 * 2
            self.register_buffer("frequencies", rotary_frequencies(turned, theta, scaling), persistent=False)
        if positions == "alibi":
            self.register_buffer("slopes", alibi_slopes(heads), persistent=False)
        self.places = nn.Embedding(length, width) if positions == "learned" else None
        if self.places is not None:
            nn.init.normal_(self.places.weight, std=0.02)
        distances = torch.randn(heads, relative if causal else max(0, 2 * relative - 1), self.head_width)
        self.distances = nn.Parameter(distances * self.head_width**-0.5) if relative else None
        self.traits = nn.ParameterDict({
            name: nn.Parameter(torch.randn(heads, 2 * most - 1, self.head_width) * self.head_width**-0.5)
            for name, most in (traits or {}).items()})
        self.learned_span = nn.Parameter(torch.full((heads,), 0.5)) if span else None  # as a part of `span`

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
        parts: dict[str, Part] = {"cache": Cache(k, k.clone(), self._cache_window(), history)}
        if self.traits:  # of the nodes in the cache, in the place of keys
            known = torch.zeros(batch, 1, 0, len(self.traits), dtype=torch.long, device=like.device)
            parts["traits"] = Cache(known, known[..., :0], self._cache_window(), history)
        return {**parts, **super().parts(batch, like, history)}

    def limit_window(self, window: int) -> None:
        """Turn this into sliding-window attention over the latest `window` positions."""
        self.window, self.rule = window, rules.Sparse(window)
        self.constant_state = self._cache_window() is not None

    def _current_rule(self) -> rules.Rule:
        """The mask rule in force; with learned spans, a window as long as the longest of them."""
        if self.learned_span is None:
            return self.rule
        longest = self.ramp + float(self.learned_span.detach().clamp(0, 1).max()) * self.span
        return rules.Sparse(window=math.ceil(longest), causal=self.causal)

    def _cache_window(self) -> int | None:
        """How many of the latest nodes the cache must hold; None for all."""
        if self.span and self.causal:
            return self.ramp + self.span
        rule = self.rule
        sparse = isinstance(rule, rules.Sparse) and rule.causal and not rule.first and not rule.random
        return rule.reach if isinstance(rule, rules.Sparse) and sparse else None

    def project(self, x: Tensor, positions: Tensor, linear: nn.Linear | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Project nodes x (B, N, D) at positions (B, N) to queries (B, H, N, E), keys and values (B, G, N, E). linear:
        the projection (default: `qkv`)."""
        if self.places is not None:
            limit = self.places.num_embeddings
            if can_check_values() and positions.numel() and int(positions.max()) >= limit:
                raise SegueError(f"position {int(positions.max())} is beyond the {limit} learned positions of this "
                                 "attention: give a shorter sequence or choose a larger length")
            x = x + self.places(positions)
        elif self.positions == "sinusoidal":
            x = x + sinusoids(positions, self.width, x.dtype)
        qkv = (self.qkv if linear is None else linear)(x).unflatten(-1, (-1, self.head_width)).transpose(1, 2)
        q, k, v = qkv.split([self.heads, self.kv_heads, self.kv_heads], dim=1)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = (F.rms_norm(y, (self.head_width,), norm.weight.to(y.dtype), norm.eps)  # in y's type under autocast
                    for norm, y in ((self.q_norm, q), (self.k_norm, k)))
        if self.positions == "rotary":
            q, k = (rotate(y, positions, self.frequencies) for y in (q, k))
        return q, k, v

    @staticmethod
    def pairs(layout: Layout) -> rules.Pairs:
        """Queries and keys of a call without a cache: the nodes themselves."""
        prompt = None if layout.prompt is None else layout.prompt[:, None]
        return rules.Pairs(layout.positions[:, :, None], layout.positions[:, None], layout.follows, prompt)

    def bias(self, q: Tensor, pairs: rules.Pairs, unit_steps: bool = False) -> Tensor | None:
        """The bias added to the scores, (B or 1, H, ..., Q, K), or None. unit_steps: see `relative_scores`."""
        bias: Tensor | None = None
        distance = pairs.query - pairs.key
        distances = distance.abs()[:, None]
        per_head = (-1, *[1] * (distance.dim() - 1))
        if self.positions == "alibi":
            bias = -self.slopes.to(q.dtype).view(per_head) * distances.to(q.dtype)
        relative = [] if self.distances is None else [
            relative_scores(q, self.distances, distance, self.causal, unit_steps, self.clamp)]
        differences = () if pairs.trait_differences is None else pairs.trait_differences.unbind(-1)
        for table, difference in zip(self.traits.values(), differences):
            relative.append(relative_scores(q, table, difference, False, False, self.clamp))
        if relative:
            scores = sum(relative[1:], relative[0]) / math.sqrt(self.head_width)
            bias = scores if bias is None else bias + scores
        if self.learned_span is not None:
            # Weights times m, normalised again, are the weights of scores plus log m.
            ends = self.ramp + self.span * self.learned_span.clamp(0, 1).view(per_head)
            mask_values = ((ends - distances) / self.ramp).clamp(max=1)
            log_mask = mask_values.clamp(min=torch.finfo(mask_values.dtype).tiny).log()
            log_mask = log_mask.masked_fill(mask_values <= 0, -math.inf).to(q.dtype)
            bias = log_mask if bias is None else bias + log_mask
        return bias

    def _trait_differences(self, layout: Layout, parts: Parts) -> Tensor | None:
        """`Pairs.trait_differences` of the nodes and all keys, or None; with a cache, appends the nodes' traits to
        it."""
        if not self.traits:
            return None
        if missing := [name for name in self.traits if name not in (layout.traits or {})]:
            raise SegueError(f"this attention compares the {' and '.join(missing)} of elements, which it does not "
                             "get: give in the stack's config, under traits, what each id has, and read it by the "
                             "stack alone (not by windows, prompts or depths)")
        assert layout.traits is not None
        traits = torch.stack([layout.traits[name] for name in self.traits], -1)
        cache = parts.get("traits")
        if cache is None:
            return trait_differences(traits, traits)
        assert isinstance(cache, Cache)
        return trait_differences(traits, cache.append(traits[:, None], traits[:, None, :, :0], layout)[0][:, 0])

    def run(self, x: Tensor, layout: Layout, parts: Parts) -> Tensor:
        if self.training and self.learned_span is not None:
            self.learned_span.data.clamp_(0, 1)  # outside [0, 1] it has no gradient
        if self.convolution is not None:
            x = self.convolution((x,), layout, parts.get("convolution"))
        q, k, v = self.project(x, layout.positions)
        n, rule = x.shape[1], self._current_rule()
        if rule is rules.prompted and (layout.prompt is None or n == 1):
            rule = rules.causal
        cache, given = parts.get("cache"), parts.get("given")
        assert given is None or isinstance(given, Source)
        is_first_call = True
        if cache is None:
            valid = layout.same_document
        else:
            assert isinstance(cache, Cache)
            is_first_call, valid = cache.longest == 0, cache.valid(layout)
            k, v = cache.append(k, v, layout)
        shared, difference = self.kv_heads != self.heads, self._trait_differences(layout, parts)
        has_no_bias = self.positions != "alibi" and self.distances is None and self.learned_span is None and \
            not self.traits
        is_plain = has_no_bias and given is None and valid is None and layout.sees_whole_past
        is_training = not parts and q.requires_grad and has_no_bias and not shared and layout.sees_whole_past
        windowed = self.window is not None and self._cache_window() is not None and layout.has_unit_steps
        if is_training and (rule is rules.causal or windowed) and \
                is_causal_attention_faster(q, self.window, layout.segments):
            if torch.is_autocast_enabled("cpu"):
                q, k, v = (y.to(torch.get_autocast_dtype("cpu")) for y in (q, k, v))
            y = causal_attention(q, k, v, layout.segments, self.window)
        elif is_plain and rule is rules.causal and (is_first_call or n == 1):
            y = F.scaled_dot_product_attention(q, k, v, is_causal=n > 1, enable_gqa=shared)
        elif is_plain and rule is rules.full:
            y = F.scaled_dot_product_attention(q, k, v, enable_gqa=shared)
        elif isinstance(rule, rules.Sparse) and is_first_call and n > 2 * rule.tile and layout.has_unit_steps and \
                given is None and difference is None and \
                (layout.positions_are_indices or not (rule.first or rule.random)):
            y = self._attend_in_tiles(q, k, v, layout, rule)
        else:
            pairs = self.pairs(layout) if cache is None else cache.pairs(layout)
            pairs = replace(pairs, trait_differences=difference)
            looks_back = not self.needs_whole_prompt or rule is rules.causal
            unit_steps = is_first_call and looks_back and layout.has_unit_steps
            y = self.mix(q, k, v, pairs, rule, valid, unit_steps, given)
        if self.qkv_global is not None:
            if given is not None:
                raise SegueError("prefixes and global projections do not go together: leave one of them out")
            y = self._attend_globally(x, y, layout)
        return self._project_out(y)

    def _attend_globally(self, x: Tensor, y: Tensor, layout: Layout) -> Tensor:
        """y (B, H, N, E) with the outputs of the global tokens of each document replaced by those of attention through
        the projection `qkv_global`."""
        assert isinstance(self.rule, rules.Sparse)
        if not x.numel():
            return y
        first = (layout.positions < self.rule.first).expand(len(x), -1)
        index = first.long().argsort(dim=1, descending=True, stable=True)[:, : int(first.sum(1).max())]
        is_global = first.gather(1, index)
        q, k, v = self.project(x, layout.positions, self.qkv_global)
        index_of_features = index[:, None, :, None].expand(-1, self.heads, -1, self.head_width)
        mask = None
        if layout.segments is not None:
            mask = (layout.segments.gather(1, index)[..., None] == layout.segments[:, None])[:, None]
        attended = F.scaled_dot_product_attention(q.gather(2, index_of_features), k, v, mask,
                                                  enable_gqa=self.kv_heads != self.heads)
        attended = torch.where(is_global[:, None, :, None], attended.to(y.dtype), y.gather(2, index_of_features))
        return y.scatter(2, index_of_features, attended)

    def mix(self, q: Tensor, k: Tensor, v: Tensor, pairs: rules.Pairs, rule: rules.Rule, valid: Tensor | None,
            unit_steps: bool = False, given: Source | None = None) -> Tensor:
        """Attend from queries (B, H, Q, E) to keys and values (B, G, K, E) under a mask rule; returns (B, H, Q, E). All
        may have one axis more, the third, for tiles. valid: bool mask of the keys that exist and belong to the query's
        document (None: all). unit_steps: see `relative_scores`. given: further keys and values without positions,
        visible to every query."""
        mask, bias = rule(pairs), self.bias(q, pairs, unit_steps)
        mask = (mask if valid is None else mask & valid)[:, None]
        if given is not None:
            size = given.k.shape[2]
            k, v = (torch.cat([x.to(y.dtype), y], 2) for x, y in ((given.k, k), (given.v, v)))
            visible = mask.new_ones(len(q), 1, q.shape[2], size)
            visible = visible if given.mask is None else visible & given.mask
            mask = torch.cat([visible, mask.expand(*visible.shape[:3], -1)], -1)
            bias = None if bias is None else F.pad(bias, (size, 0))
        if bias is not None and bias.requires_grad:  # torch's fused attention has no gradient for it
            return attend(q, k, v, mask, bias)[0]
        if bias is not None:
            mask = bias.masked_fill(~mask, -math.inf)
        if q.dim() == 4:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=q.shape[1] != k.shape[1])
        rows = (q.shape[0], q.shape[2])
        mask = mask.expand(rows[0], -1, -1, -1, -1)
        q, k, v, mask = (x.transpose(1, 2).flatten(0, 1) for x in (q, k, v, mask))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=q.shape[1] != k.shape[1])
        return y.unflatten(0, rows).transpose(1, 2)

    def _attend_in_tiles(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout, rule: rules.Sparse) -> Tensor:
        """Block-sparse attention over a chain: each tile of queries attends to the few tiles of keys that it may
        see."""
        n, size = q.shape[2], rule.tile
        count = -(-n // size)
        key_tiles = rules.key_tiles(rule, count, layout.positions_are_indices).to(q.device)
        places = torch.arange(count * size, device=q.device).view(count, size)

        def padded(x: Tensor) -> Tensor:  # (B, n, ...) or (B, G, n, E)
            return F.pad(x, (0, 0) * (x.dim() == 4) + (0, count * size - n))

        q, k, v = (padded(x).unflatten(2, (count, size)) for x in (q, k, v))
        positions = padded(layout.positions[:1] if layout.positions.stride(0) == 0 else layout.positions)
        segments = None if layout.segments is None else padded(layout.segments)

        def gather_tiles(x: Tensor) -> Tensor:
            """The key tiles of each query tile: (B, G, C, size, E) -> (B, G, C, K size, E)."""
            return x.index_select(2, key_tiles.clamp(min=0).flatten()).unflatten(2, key_tiles.shape).flatten(3, 4)

        def attend_tiles(index: Tensor, nodes: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            """The outputs of query tiles (B, H, C, size, E). index: (C, K), their key tiles. nodes: (C, size)."""
            keys = places[index.clamp(min=0)].flatten(1)
            pairs = rules.Pairs(positions[:, nodes][..., None], positions[:, keys][:, :, None],
                                (keys[:, None] <= nodes[..., None])[None])
            exists = (index >= 0).repeat_interleave(size, 1)[:, None]
            valid = (exists & ((keys < n)[:, None] | (keys[:, None] == nodes[..., None])))[None]  # padding sees itself
            if segments is not None:
                valid = valid & (segments[:, nodes][..., None] == segments[:, keys][:, :, None])
            return self.mix(q, k, v, pairs, rule, valid).flatten(2, 3)

        # As many tiles at once as keep the scores small, since large allocations are fresh memory each time. Tensors
        # are split once for all pieces, since the gradient of a slice is as large as the whole tensor.
        at_once = max(1, SCORES_AT_ONCE // (q.shape[0] * self.heads * size * size * key_tiles.shape[1]))
        pieces = zip(key_tiles.split(at_once), places.split(at_once),
                     *(x.split(at_once, 2) for x in (q, gather_tiles(k), gather_tiles(v))))
        y = torch.cat([attend_tiles(*piece) for piece in pieces], 2)[:, :, :n]
        if rule.first and not rule.causal:
            first = min(rule.first, n)
            follows = torch.ones(1, first, n, dtype=torch.bool, device=q.device)  # not of all queries: that is N x N
            all_keys = rules.Pairs(layout.positions[:, :first, None], layout.positions[:, None], follows)
            q, k, v = (x.flatten(2, 3)[:, :, :n] for x in (q, k, v))
            attended = self.mix(q[:, :, :first], k, v, all_keys, rules.full, None)
            y = torch.cat([attended, y[:, :, first:]], 2)
        return y

    def penalty(self) -> Tensor | None:
        if self.learned_span is None or not self.span_penalty:
            return None
        return self.span_penalty * self.learned_span.clamp(0, 1).mean()

    def lower(self, program: Program, source: View, into: View, **prompt: Any) -> None:
        """See `Mixer.lower`. prompt: arguments of `Program.attend` about the prompt, if a mixer that contains this one
        sets them."""
        if not self.causal:
            raise SegueError("attention that looks ahead has no form for the compiled CPU engine")
        sparse = self.rule if isinstance(self.rule, rules.Sparse) else rules.Sparse()
        if self.distances is not None or self.traits or self.span or self.positions in ("learned", "sinusoidal") or \
                sparse.first or sparse.random:
            raise SegueError("this attention has no form for the compiled CPU engine: causal ones, prefixes, windows "
                             "and blocks have, with rotary, ALiBi or no positions")
        if prompt.get("restart") and (self.positions == "alibi" or self.window or sparse.block):
            raise SegueError("distances of positions that restart after a prompt have no form for the compiled CPU "
                             "engine: leave out ALiBi, window and block, or restart")
        if self.needs_whole_prompt and not prompt:
            prompt = {"ahead": True, "prefix": self.prefix}
        wide, narrow = self.heads * self.head_width, self.kv_heads * self.head_width
        qkv, y = program.register("qkv", wide + 2 * narrow), program.register("y", wide)
        q, k, v = qkv[:wide], qkv[wide : wide + narrow], qkv[wide + narrow :]
        if self.convolution is not None:
            convolved = program.register("near", self.width)
            program.convolve(source, convolved, self.convolution.weight, self.convolution.bias, activation="none")
            source = convolved
        program.linear(source, qkv, self.qkv.weight, self.qkv.bias)
        if self.q_norm is not None and self.k_norm is not None:
            for part, norm, heads in ((q, self.q_norm, self.heads), (k, self.k_norm, self.kv_heads)):
                program.norm(part, part, "rms", norm.weight, None, norm.eps or 0.0, heads)
        program.attend(q, k, v, y, self.heads, self.kv_heads, self.window,
                       self.frequencies if self.positions == "rotary" else None,
                       self.slopes if self.positions == "alibi" else None, sparse.block, sparse.back, **prompt)
        program.linear(y, into, self.out.weight, self.out.bias, add=True)

    def matrix(self, x: Tensor) -> Tensor:
        if not self.linear_in_values:
            return super().matrix(x)
        return self.weights(x, Layout.of(x))

    def weights(self, x: Tensor, layout: Layout) -> Tensor:
        """(B, H, T, T), the attention weights of each node (row) over all nodes (column)."""
        x = x if self.convolution is None else self.convolution((x,), layout)
        q, k, _ = self.project(x, layout.positions)
        pairs = replace(self.pairs(layout), trait_differences=self._trait_differences(layout, {}))
        mask, same_document = self._current_rule()(pairs), layout.same_document
        mask = (mask if same_document is None else mask & same_document)[:, None]
        eye = torch.eye(x.shape[1], dtype=q.dtype, device=q.device).expand(*k.shape[:2], -1, -1)
        return attend(q, k, eye, mask, self.bias(q, pairs))[0]

    def values(self, x: Tensor) -> Tensor:
        if not self.linear_in_values:  # global tokens have values of their own
            return super().values(x)
        v = self.project(x, Layout.of(x).positions)[2]
        return v.repeat_interleave(self.heads // self.kv_heads, 1)

    def output(self, mixed: Tensor, x: Tensor) -> Tensor:
        if not self.linear_in_values:
            return super().output(mixed, x)
        return self._project_out(mixed)

    def _project_out(self, mixed: Tensor) -> Tensor:
        return self.out(mixed.transpose(1, 2).flatten(2))
