"""Recurrence between windows, added to a trained model (Yoshida, Ettinger & Gimpel 2020, arXiv 2008.07027)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from segue.errors import SegueError
from segue.mixers.layout import Layout
from segue.models.base import Output
from segue.models.stack import Stack

FAINT = 6.0  # nats by which what a vector does not pool at first lies below what it does


class WindowRecurrence(nn.Module):
    """A stack that reads a row window by window, of which each is told what the one before it was about.

    The hidden states behind block `source` of a window are pooled over time, and a small network adds to what is
    pooled, nothing at first. The vectors that come out are elements in front of the next window, from block `into` on:
    what the stack has learned makes keys and values of them, or a recurrence's beginning. The weights of the pools are
    learned. They begin as those of a mean: of the whole window for the first vector, of its last element for the last
    one, of ever shorter ends for those between, so that they stand in the order of time; and vectors that began alike
    would stay so. Gradients flow through all windows of a row. For training and scoring; it keeps no state.

    stack: moved with the rest. window: elements of a window. vectors: pooled ones. source, into: blocks, counted from 0
    (default: the two in the middle, so that vectors are in the space of what they stand in front of); with `into` above
    `source` a window hears of no more than the one before it. checkpointing: keep each window's inputs only and compute
    the rest again on the way back, so that memory is that of one window.
    """

    def __init__(self, stack: Stack, window: int, vectors: int = 1, source: int | None = None, into: int | None = None,
                 checkpointing: bool = False) -> None:
        super().__init__()
        depth, width = len(stack.blocks), stack.config.width
        self.into = depth // 2 if into is None else into
        self.source = max(depth // 2 - 1, 0) if source is None else source
        if min(window, vectors) < 1 or not (0 <= self.into < depth and 0 <= self.source < depth):
            raise SegueError(f"windows of {window}, {vectors} vectors from block {self.source} into block {self.into} "
                             f"of {depth}: sizes must be positive, and blocks there")
        self.stack, self.window, self.checkpointing = stack, window, checkpointing
        ends = window ** torch.linspace(1, 0 if vectors > 1 else 1, vectors)
        distances = torch.arange(window - 1, -1, -1)
        self.pool = nn.Parameter((distances >= ends.round()[:, None]) * -FAINT)
        self.module = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width),
                                    nn.GELU(), last := nn.Linear(width, width))
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    @property
    def head(self) -> nn.Linear:
        return self.stack.head

    def summary(self, x: Tensor) -> Tensor:
        """Hidden states (B, W, D) of a window -> (B, vectors, D)."""
        pooled = torch.einsum("vw,bwd->bvd", self.pool[:, -x.shape[1] :].softmax(-1), x)
        return pooled + self.module(pooled)

    def _read(self, tokens: Tensor, told: Tensor | None) -> tuple[Tensor, Tensor]:
        """Hidden states (B, W, D) after the last norm of one window, and what it tells the next one."""
        length, layout = tokens.shape[1], Layout.of(tokens)
        x, tell = self.stack.embed(tokens, layout.positions), None
        for index, block in enumerate(self.stack.blocks):
            if index == self.into and told is not None:
                x = torch.cat([told, x], 1)
                layout = Layout.of(x[..., 0])
            parts = block.initial_parts(x)  # every window begins as a row does
            x = block(x, lambda mixer, y, layout=layout, parts=parts: mixer.run(y, layout, parts))
            if index == self.source:
                tell = self.summary(x[:, -length:])
        assert tell is not None
        return self.stack.finish(x[:, -length:], Layout.of(tokens)), tell

    def hidden(self, tokens: Tensor, layout: Layout | None = None) -> Tensor:
        """(B, T) -> (B, T, D) after the last norm. Each row must be one text from its beginning."""
        if layout is not None and (layout.starts is not None or layout.prompt is not None):
            raise SegueError("windows are counted from the beginning of a row: give one document a row, no prompt")
        found, told = list[Tensor](), None
        for piece in tokens.split(self.window, 1):
            if self.checkpointing and torch.is_grad_enabled():
                x, told = checkpoint(self._read, piece, told, use_reentrant=False)
            else:
                x, told = self._read(piece, told)
            found.append(x)
        return torch.cat(found, 1)

    def forward(self, tokens: Tensor, layout: Layout | None = None) -> Output:
        hidden = self.hidden(tokens, layout)
        return Output(self.head(hidden), hidden)
