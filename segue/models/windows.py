"""Recurrence between windows, added to a trained model (Yoshida, Ettinger & Gimpel 2020, arXiv 2008.07027)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from segue.errors import SegueError
from segue.mixers.layout import Layout
from segue.models.base import Output
from segue.models.stack import Stack

INITIAL_POOL_GAP = 6.0  # nats between the pooling scores of elements outside and inside a vector's initial span


class WindowRecurrence(nn.Module):
    """A stack that reads a row window by window and passes a summary of each window on to the next.

    The hidden states after block `source` of a window are pooled over time; a small residual network, initially zero,
    transforms the result. The pooled vectors are prepended to the next window from block `into` on, where attention
    makes keys and values of them and a recurrence reads them first. The pooling weights are learned. They start as
    means over spans that end with the window: all of it for the first vector, the last element alone for the last one,
    and ever shorter spans between, so that the vectors are in the order of time; vectors that start equal would stay
    equal. Gradients flow through all windows of a row. For training and scoring only: it keeps no decoding state.

    stack: part of this module. window: elements per window. vectors: number of pooled vectors. source, into: block
    indices (default: the two in the middle, so that vectors come from the space they are inserted into); with `into`
    above `source` a window depends on the one before it alone. checkpointing: store each window's inputs only and
    recompute the rest in the backward pass, so that memory is that of one window (if all mixers are recomputable).
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
        steps_from_end = torch.arange(window - 1, -1, -1)
        self.pool = nn.Parameter((steps_from_end >= ends.round()[:, None]) * -INITIAL_POOL_GAP)
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

    def _read(self, tokens: Tensor, carried: Tensor | None) -> tuple[Tensor, Tensor]:
        """Read one window (B, W) after the vectors `carried` (B, vectors, D) from the window before, if any: hidden
        states (B, W, D) after the last norm, and the vectors for the next window."""
        length, layout = tokens.shape[1], Layout.of(tokens)
        x, summary = self.stack.embed(tokens, layout.positions), None
        for index, block in enumerate(self.stack.blocks):
            if index == self.into and carried is not None:
                x = torch.cat([carried, x], 1)
                layout = Layout.of(x[..., 0])
            parts = block.initial_parts(x)  # every window starts from the state of a row's beginning
            x = block(x, lambda mixer, y, layout=layout, parts=parts: mixer.run(y, layout, parts))
            if index == self.source:
                summary = self.summary(x[:, -length:])
        assert summary is not None
        return self.stack.finish(x[:, -length:], Layout.of(tokens)), summary

    def hidden(self, tokens: Tensor, layout: Layout | None = None) -> Tensor:
        """(B, T) -> (B, T, D) after the last norm. Each row must be one text from its beginning."""
        if layout is not None and (layout.starts is not None or layout.prompt is not None):
            raise SegueError("windows are counted from the beginning of a row: give one document a row, no prompt")
        outputs, carried = list[Tensor](), None
        recomputable = all(block.recomputable for block in self.stack.blocks)
        for window in tokens.split(self.window, 1):
            if self.checkpointing and recomputable and torch.is_grad_enabled():
                x, carried = checkpoint(self._read, window, carried, use_reentrant=False)
            else:
                x, carried = self._read(window, carried)
            outputs.append(x)
        return torch.cat(outputs, 1)

    def forward(self, tokens: Tensor, layout: Layout | None = None) -> Output:
        hidden = self.hidden(tokens, layout)
        return Output(self.head(hidden), hidden)
