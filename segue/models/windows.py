"""Recurrence between windows, added to a trained model (Yoshida, Ettinger & Gimpel 2020, arXiv 2008.07027)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from segue.errors import SegueError
from segue.mixers.attention import attend
from segue.mixers.state import Layout
from segue.models.base import Output
from segue.models.stack import Stack

FAINT = 6.0  # nats by which what a vector does not pool at first lies below what it does


class WindowRecurrence(nn.Module):
    """A stack that reads a row window by window, of which each is told what the one before it was about.

    The hidden states behind block `source` of a window are pooled over time and pass a small network; the vectors that
    come out are keys and values that every element of the next window attends to, behind block `into`. The weights of
    the pools are learned. They begin as those of a mean: of the whole window for the first vector, of its last element
    for the last one, of ever shorter ends for those between, since vectors that began alike would stay so. That
    attention begins at zero, so that the model is at first what it was on each window alone. Gradients flow through all
    windows of a row. For training and scoring; it keeps no state.

    stack: moved with the rest. window: elements of a window. vectors: pooled ones. source, into: blocks, counted from 0
    (default: the last one, and the one in the middle); with `into` above `source` a window hears of no more than the
    one before it. heads: of the new attention. checkpointing: keep each window's inputs only and compute the rest
    again on the way back, so that memory is that of one window.
    """

    def __init__(self, stack: Stack, window: int, vectors: int = 1, source: int | None = None, into: int | None = None,
                 heads: int = 4, checkpointing: bool = False) -> None:
        super().__init__()
        depth, width = len(stack.blocks), stack.config.width
        self.source, self.into = depth - 1 if source is None else source, depth // 2 if into is None else into
        if min(window, vectors) < 1 or width % heads or not (0 <= self.into < depth and 0 <= self.source < depth):
            raise SegueError(f"windows of {window}, {vectors} vectors from block {self.source} into block {self.into} "
                             f"of {depth}, {heads} heads of width {width} together: sizes must be positive, blocks "
                             "there, and the heads divide the width")
        self.stack, self.window, self.heads, self.checkpointing = stack, window, heads, checkpointing
        ends = window ** torch.linspace(1, 0 if vectors > 1 else 1, vectors)
        distances = torch.arange(window - 1, -1, -1)
        self.pool = nn.Parameter((distances >= ends.round()[:, None]) * -FAINT)
        self.module = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width),
                                    nn.GELU(), nn.Linear(width, width), nn.LayerNorm(width))
        self.norm, self.q = nn.LayerNorm(width), nn.Linear(width, width, bias=False)
        self.kv, self.out = nn.Linear(width, 2 * width, bias=False), nn.Linear(width, width, bias=False)
        nn.init.zeros_(self.out.weight)

    @property
    def head(self) -> nn.Linear:
        return self.stack.head

    def summary(self, x: Tensor) -> Tensor:
        """Hidden states (B, W, D) of a window -> (B, vectors, D)."""
        weights = self.pool[:, -x.shape[1] :].softmax(-1)
        return self.module(torch.einsum("vw,bwd->bvd", weights, x))

    def look(self, x: Tensor, told: Tensor) -> Tensor:
        """(B, W, D): what each element makes of the vectors told by the window before."""
        q = self.q(self.norm(x)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.kv(told).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.out(attend(q, k, v)[0].transpose(1, 2).flatten(2))

    def _read(self, tokens: Tensor, told: Tensor | None) -> tuple[Tensor, Tensor]:
        """Hidden states (B, W, D) after the last norm of one window, and what it tells the next one."""
        layout = Layout.of(tokens)
        x, tell = self.stack.embed(tokens, layout.positions), None
        for index, block in enumerate(self.stack.blocks):
            x = block(x, lambda mixer, y: mixer.run(y, layout, {}))
            if index == self.into and told is not None:
                x = x + self.look(x, told)
            if index == self.source:
                tell = self.summary(x)
        assert tell is not None
        return self.stack.norm(x), tell

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
