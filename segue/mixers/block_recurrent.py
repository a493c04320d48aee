"""Block-recurrent attention (Hutchins et al. 2022, arXiv 2203.07852): attention within blocks, and a few state vectors
that are passed on from block to block."""

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
    """Attention to the current block so far, the block before, and S memory vectors. When a block is full, the memory
    attends to itself and to the block, and is updated through a learned gate.

    Inputs: q, r, k, v (B, N, H, E): queries to blocks and to memory, keys and values. State: memory (B, S, D), keys and
    values of the previous block and of the current one so far, each (B, 2 W, H, E), and the number of nodes (B,) long.
    """

    learnable_tensors = (0,)

    def __init__(self, width: int, heads: int, memory: int, block: int) -> None:
        super().__init__()
        self.heads, self.block, self.shape = heads, block, (2 * block, heads, width // heads)
        self.names = nn.Parameter(torch.randn(memory, width))  # identity embeddings of the memory vectors
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, 4 * width, bias=False)
        self.update = nn.Linear(2 * width, width)
        self.gate = nn.Parameter(torch.ones(width))

    def initial(self, batch: int, like: Tensor) -> Tensors:
        empty = like.new_zeros(batch, *self.shape)
        count = torch.zeros(batch, dtype=torch.long, device=like.device)
        return like.new_zeros(batch, *self.names.shape), empty, empty, count

    def run_within_block(self, inputs: Tensors, state: Tensors) -> tuple[Tensor, Tensors]:
        """Process nodes (B, M, ...) that lie in one block; if M > 1, every row must have seen as many nodes."""
        (q, r, k, v), (memory, keys, values, count) = inputs, state
        block, slots = self.block, torch.arange(2 * self.block, device=count.device)
        index = block + (count % block)[:, None] + torch.arange(q.shape[1], device=count.device)
        slot = index[..., None, None].expand_as(k)
        keys, values = keys.scatter(1, slot, k.to(keys.dtype)), values.scatter(1, slot, v.to(values.dtype))
        seen = (slots <= index[..., None]) & ((slots >= block) | (count >= block)[:, None, None])  # (B, M, 2 W)
        parts = self.project(self.norm(memory + self.names.to(memory.dtype)))
        self_queries, block_queries, memory_keys, memory_values = parts.unflatten(-1, (-1, keys.shape[-1])).chunk(4, -2)
        y = torch.cat([attend_heads(q, keys, values, seen), attend_heads(r, memory_keys, memory_values)], -1)
        count = count + q.shape[1]
        full = count % block == 0
        if bool(full.any()):
            read = torch.cat([attend_heads(self_queries, memory_keys, memory_values),
                              attend_heads(block_queries, keys[:, block:], values[:, block:])], -1)
            updated = torch.lerp(self.update(read), memory.to(read.dtype), self.gate.sigmoid().to(read.dtype))
            memory = torch.where(full[:, None, None], updated.to(memory.dtype), memory)
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
        for piece in zip(*(x.split(sizes, 1) for x in inputs)):  # split, since each slice has a full-size gradient
            y, state = self.run_within_block(piece, state)
            outputs.append(y)
        return torch.cat(outputs, 1), state


def attend_heads(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None = None) -> Tensor:
    """Attend from q (B, Q, H, E) to k, v (B, K, H, E) under a mask (B, Q, K), and concatenate heads: (B, Q, H E)."""
    q, k, v = (x.transpose(1, 2) for x in (q, k.to(q.dtype), v.to(q.dtype)))
    return attend(q, k, v, None if seen is None else seen[:, None])[0].transpose(1, 2).flatten(2)


class BlockRecurrent(Mixer):
    """Each node attends to its own block so far, to the block before, and to memory vectors that summarise the past.

    width: model width D. heads: number of heads, must divide `width`. block: nodes in a block, counted from the
    beginning of a document. memory: number of memory vectors. Training takes one step per block; rows with several
    documents take one per node. There are no position encodings.
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
