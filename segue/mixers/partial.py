"""Partial attention (PALM, 2023, arXiv 2304.04052): a decoder-only language model with a second attention to its prompt
alone, like the cross-attention of an encoder-decoder."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from segue.errors import SegueError
from segue.mixers.attention import Attention
from segue.mixers.base import Mixer
from segue.mixers.cache import Cache, PromptCache
from segue.mixers.layout import Layout
from segue.mixers.state import Part, Parts

if TYPE_CHECKING:
    from segue.kernels.cpu.program import Program, View

LOCAL_OPTIONS = {"window", "block", "look_back", "global_tokens", "random_blocks", "span", "ramp", "span_penalty",
                 "taps", "traits"}


class PartialAttention(Mixer):
    """Self-attention, followed by a second attention whose keys and values come from the prompt alone.

    In one softmax over prompt and answer, the prompt's share of the weight shrinks as the answer grows (about
    m / (m + i) for m and i nodes); the second attention gives it all. Its output projection starts at zero, so that a
    trained language model is initially unchanged. Four mechanisms, each optional, set the prompt apart from the rest;
    without any, this is `Attention`. The prompt is the first `prefix` positions of each document or, if `prefix` is 0,
    what the layout marks (`Layout.prompt`, `State.prompt`). It must be given in one call, and a state holds one
    document.

    width: model width D. heads: number of heads. partial: whether there is the second attention. bidirectional: nodes
    of the prompt see all of it, in both attentions. restart: positions restart at 0 after the prompt. segments: one
    learned vector is added to the nodes of the prompt, another to all others. options: of both attentions (see
    `Attention`), except that LOCAL_OPTIONS apply to the first alone.
    """

    constant_state = False
    needs_whole_prompt = True
    cost = "T²"

    def __init__(self, width: int, heads: int = 4, partial: bool = True, bidirectional: bool = True,
                 restart: bool = True, segments: bool = True, prefix: int = 0, **options: Any) -> None:
        super().__init__(width)
        if not options.get("causal", True) or options.get("prompt"):
            raise SegueError("palm looks back, and reads its prompt both ways if bidirectional: leave causal and "
                             "prompt out")
        self.needs_whole_prompt = partial or bidirectional or restart or segments
        self.bidirectional, self.restart, self.prefix = bidirectional, restart, prefix
        self.attention = Attention(width, heads, prompt=bidirectional, **options)
        self.constant_state = self.attention.constant_state and not restart
        self.kinds = nn.Embedding(2, width) if segments else None  # row 0: answer, row 1: prompt
        if self.kinds is not None:
            nn.init.zeros_(self.kinds.weight)
        self.norm, self.source = None, None
        if partial:
            self.norm = nn.RMSNorm(width)
            global_options = {name: value for name, value in options.items() if name not in LOCAL_OPTIONS}
            self.source = Attention(width, heads, **global_options)
            for parameter in self.source.out.parameters():
                nn.init.zeros_(parameter)

    @property
    def out(self) -> nn.Linear:
        """The output projection that is not zero at initialisation."""
        return self.attention.out

    def parts(self, batch: int, like: Tensor, history: int) -> dict[str, Part]:
        parts = self.attention.parts(batch, like, history)
        for part in parts.values() if self.restart else ():
            if isinstance(part, Cache):
                part.window = None  # what is near by its position may lie far back
        if self.source is not None:
            k = like.new_zeros(batch, self.source.kv_heads, 0, self.source.head_width)
            parts["prompt"] = PromptCache(k, k.clone())
        return parts

    def mark_prompt(self, x: Tensor, layout: Layout) -> tuple[Tensor, Layout]:
        """Return the inputs with segment vectors added, and the layout with its prompt marked and positions restarted
        after it, as far as these are switched on."""
        if self.prefix:
            end = torch.full_like(layout.positions[:, :1], self.prefix)
            layout = replace(layout, prompt=layout.positions < self.prefix, prompt_end=end)
        elif layout.prompt is None:
            layout = replace(layout, prompt=torch.zeros_like(layout.positions, dtype=torch.bool))
        assert layout.prompt is not None
        x = x if self.kinds is None else x + self.kinds(layout.prompt.long())
        return x, layout.restarted_after_prompt if self.restart else layout

    def weights(self, x: Tensor, layout: Layout) -> Tensor:
        """Return the attention weights (B, H, T, T) of the first attention."""
        return self.attention.weights(*self.mark_prompt(x, layout))

    def run(self, x: Tensor, layout: Layout, parts: Parts) -> Tensor:
        x, layout = self.mark_prompt(x, layout)
        y = self.attention.run(x, layout, parts)
        return y if self.source is None else y + self._attend_to_prompt(x + y, layout, parts)

    def _attend_to_prompt(self, x: Tensor, layout: Layout, parts: Parts) -> Tensor:
        assert self.source is not None and self.norm is not None
        q, k, v = self.source.project(self.norm(x), layout.positions)
        if not parts:
            pairs, valid = self.source.pairs(layout), layout.same_document
        else:
            cache = parts["prompt"]
            assert isinstance(cache, PromptCache)
            pairs, valid = cache.pairs(layout), cache.valid(layout)
            k, v = cache.append(k, v, layout)
        assert pairs.prompt is not None
        mask = pairs.prompt.expand(-1, x.shape[1], -1) if self.bidirectional else pairs.prompt & pairs.follows
        mask = mask if valid is None else mask & valid
        any_seen = mask.any(-1, keepdim=True)  # where there is no prompt, nothing is added
        y = self.source.mix(q, k, v, pairs, lambda _: mask | ~any_seen, None)
        return self.source.out(y.transpose(1, 2).flatten(2) * any_seen)

    def lower(self, program: Program, source: View, into: View) -> None:
        x, width = source, self.width
        prompt_options = {"prefix": self.prefix, "ahead": self.bidirectional, "restart": self.restart}
        if self.kinds is not None:
            x = program.register("of a kind", width)
            program.mark_prompt(source, x, self.kinds.weight, self.prefix)
        if self.source is None or self.norm is None:
            self.attention.lower(program, x, into, **prompt_options)
            return
        y = program.register("attended", width)
        program.map(x, y)
        self.attention.lower(program, x, y, **prompt_options)
        program.add(y, into)
        program.add(x, into, -torch.ones(width))
        program.norm(y, y, "rms", self.norm.weight, None, self.norm.eps or torch.finfo(torch.float32).eps)
        self.source.lower(program, y, into, **prompt_options, alone=True)
