"""Block-recurrent attention (Hutchins et al. 2022, arXiv 2203.07852): attention inside blocks, and a few vectors that
carry on from block to block."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from segue.errors import SegueError
from segue.mixers.attention import attend
from segue.mixers.base import Mixer
from segue.mixers.layout import Layout
from segue.mixers.state import Parts, SteppedRecurrence, Tensors

if TYPE_CHECKING:
    from segue.kernels.cpu.program import Program, View


class BlockRecurrence(SteppedRecurrence):
    """Inputs q, r, k, v (B, N, H, E): queries of blocks and of memory, keys and values. State: memory (B, S, D), then
    keys and values of the block before and of this one so far (B, 2 W, H, E), and how many nodes there were (B,) long.

    When a block is full, the memory looks at itself and at the block, and moves by a learned gate.
    """

    learnable_tensors = (0,)

    def __init__(self, width: int, heads: int, memory: int, block: int) -> None:
        super().__init__()
        self.heads, self.block, self.shape = heads, block, (2 * block, heads, width // heads)
        self.names = nn.Parameter(torch.randn(memory, width))  # what tells the memory's vectors apart
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, 4 * width, bias=False)
        self.update = nn.Linear(2 * width, width)
        self.gate = nn.Parameter(torch.ones(width))

    def initial(self, batch: int, like: Tensor) -> Tensors:
        empty = like.new_zeros(batch, *self.shape)
        count = torch.zeros(batch, dtype=torch.long, device=like.device)
        return like.new_zeros(batch, *self.names.shape), empty, empty, count

    def run_within_block(self, inputs: Tensors, state: Tensors) -> tuple[Tensor, Tensors]:
        """Nodes (B, M, ...) that lie in one block; M is 1, or every row has seen as many nodes."""
        (q, r, k, v), (memory, keys, values, count) = inputs, state
        block, slots = self.block, torch.arange(2 * self.block, device=count.device)
        index = block + (count % block)[:, None] + torch.arange(q.shape[1], device=count.device)
        slot = index[..., None, None].expand_as(k)
        keys, values = keys.scatter(1, slot, k.to(keys.dtype)), values.scatter(1, slot, v.to(values.dtype))
        seen = (slots <= index[..., None]) & ((slots >= block) | (count >= block)[:, None, None])  # (B, M, 2 W)
        parts = self.project(self.norm(memory + self.names.to(memory.dtype)))
        mine, theirs, memory_keys, memory_values = parts.unflatten(-1, (-1, keys.shape[-1])).chunk(4, -2)
        y = torch.cat([attend_heads(q, keys, values, seen), attend_heads(r, memory_keys, memory_values)], -1)
        count = count + q.shape[1]
        full = count % block == 0
        if bool(full.any()):
            found = torch.cat([attend_heads(mine, memory_keys, memory_values),
                               attend_heads(theirs, keys[:, block:], values[:, block:])], -1)
            moved = torch.lerp(self.update(found), memory.to(found.dtype), self.gate.sigmoid().to(found.dtype))
            memory = torch.where(full[:, None, None], moved.to(memory.dtype), memory)
            keys, values = (torch.where(full[:, None, None, None], x.roll(block, 1), x) for x in (keys, values))
        return y, (memory, keys, values, count)

    def step(self, inputs: Tensors, state: Tensors) -> tuple[Tensor, Tensors]:
        y, state = self.run_within_block(tuple(x[:, None] for x in inputs), state)
        return y[:, 0], state

    def scan(self, inputs: Tensors, state: Tensors, starts: Tensor | None = None,
             lengths: Tensor | None = None) -> tuple[Tensor, Tensors]:
        n, count = inputs[0].shape[1], state[3]
        if starts is not None or lengths is not None or not n or not len(count) or bool((count != count[0]).any()):
            return super().scan(inputs, state, starts, lengths)
        outputs = []
        edges = [0, *range(self.block - int(count[0]) % self.block, n, self.block), n]
        sizes = [end - begin for begin, end in zip(edges, edges[1:])]
        for piece in zip(*(x.split(sizes, 1) for x in inputs)):  # the gradient of a slice would be all of x, every time
            y, state = self.run_within_block(piece, state)
            outputs.append(y)
        return torch.cat(outputs, 1), state


def attend_heads(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None = None) -> Tensor:
    """Attention of (B, Q, H, E) to (B, K, H, E), heads side by side: (B, Q, H E)."""
    q, k, v = (x.transpose(1, 2) for x in (q, k.to(q.dtype), v.to(q.dtype)))
    return attend(q, k, v, None if seen is None else seen[:, None])[0].transpose(1, 2).flatten(2)


class BlockRecurrent(Mixer):
    """Each node looks at its own block so far, at the block before, and at the memory that all those before left.

    width: model width D. heads. block: nodes in a block, counted from where a document begins. memory: vectors.
    Training takes one step per block; rows with several documents take one per node. No positions: what is seen is a
    set, but for what its elements were told before.
    """

    def __init__(self, width: int, heads: int = 4, block: int = 64, memory: int = 16) -> None:
        super().__init__(width)
        if width % heads or block < 1 or memory < 1:
            raise SegueError(f"width {width} with {heads} heads, blocks of {block}, {memory} memory vectors: the heads "
                             "must divide the width, the others be positive")
        self.heads = heads
        self.qrkv = nn.Linear(width, 4 * width, bias=False)
        self.out = nn.Linear(2 * width, width, bias=False)
        self.recurrence = BlockRecurrence(width, heads, memory, block)

    def run(self, x: Tensor, layout: Layout, parts: Parts) -> Tensor:
        inputs = self.qrkv(x).unflatten(-1, (4 * self.heads, -1)).chunk(4, -2)
        return self.out(self.recurrence(inputs, layout, parts.get("recurrence")))

    def lower(self, program: Program, source: View, into: View) -> None:
        width, heads, memory = self.width, self.heads, self.recurrence
        qrkv, y = program.register("qrkv", 4 * width), program.register("y", 2 * width)
        q, r, k, v = (qrkv[part * width : (part + 1) * width] for part in range(4))
        program.linear(source, qrkv, self.qrkv.weight)
        program.attend(q, k, v, y[:width], heads, heads, None, None, None, memory.block, back=1)
        program.recall(r, y[width:], heads, memory.block, memory.names, memory.norm, memory.project.weight,
                       memory.update, memory.gate.sigmoid())
        program.linear(y, into, self.out.weight, add=True)
