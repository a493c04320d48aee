"""Block-recurrent attention (Hutchins et al. 2022, arXiv 2203.07852): attention inside blocks, and a few vectors that
carry on from block to block."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from segue.errors import SegueError
from segue.mixers.attention import attend
from segue.mixers.base import Mixer
from segue.mixers.state import Carry, Layout, Part, SteppedRecurrence, Tensors


class BlockRecurrence(SteppedRecurrence):
    """Inputs q, r, k, v (B, N, H, E): queries of the block and of the memory, keys and values. State: memory (B, S, D),
    the block's keys and values so far (B, W, H, E), and how many there are (B,) long.

    When a block is full, the memory looks at itself and at the block, and moves by a learned gate.
    """

    def __init__(self, width: int, heads: int, memory: int, block: int) -> None:
        super().__init__()
        self.heads, self.block, self.shape = heads, block, (block, heads, width // heads)
        self.first = nn.Parameter(torch.randn(memory, width))
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, 4 * width, bias=False)
        self.update = nn.Linear(2 * width, width)
        self.gate = nn.Parameter(torch.ones(width))

    def initial(self, batch: int, like: Tensor) -> Tensors:
        empty = like.new_zeros(batch, *self.shape)
        fill = torch.zeros(batch, dtype=torch.long, device=like.device)
        return self.first.to(like.dtype).expand(batch, -1, -1), empty, empty, fill

    def piece(self, inputs: Tensors, state: Tensors) -> tuple[Tensor, Tensors]:
        """Nodes (B, M, ...) that lie in one block; M is 1, or the same room is left in every row."""
        (q, r, k, v), (memory, keys, values, fill) = inputs, state
        index = fill[:, None] + torch.arange(q.shape[1], device=fill.device)
        slot = index[..., None, None].expand_as(k)
        keys, values = keys.scatter(1, slot, k.to(keys.dtype)), values.scatter(1, slot, v.to(values.dtype))
        seen = torch.arange(self.block, device=fill.device) <= index[..., None]  # (B, M, W)
        ours = self.project(self.norm(memory)).unflatten(-1, (-1, keys.shape[-1])).chunk(4, -2)
        mine, theirs, memory_keys, memory_values = ours
        y = torch.cat([look(q, keys, values, seen), look(r, memory_keys, memory_values)], -1)
        full = fill + q.shape[1] == self.block
        if bool(full.any()):
            found = torch.cat([look(mine, memory_keys, memory_values), look(theirs, keys, values)], -1)
            moved = torch.lerp(self.update(found), memory.to(found.dtype), self.gate.sigmoid().to(found.dtype))
            memory = torch.where(full[:, None, None], moved.to(memory.dtype), memory)
        room = full[:, None, None, None]
        return y, (memory, keys.masked_fill(room, 0.0), values.masked_fill(room, 0.0),
                   torch.where(full, 0, fill + q.shape[1]))

    def step(self, inputs: Tensors, state: Tensors) -> tuple[Tensor, Tensors]:
        y, state = self.piece(tuple(x[:, None] for x in inputs), state)
        return y[:, 0], state

    def scan(self, inputs: Tensors, state: Tensors, starts: Tensor | None = None,
             lengths: Tensor | None = None) -> tuple[Tensor, Tensors]:
        n, fill = inputs[0].shape[1], state[3]
        if starts is not None or lengths is not None or not n or not len(fill) or bool((fill != fill[0]).any()):
            return super().scan(inputs, state, starts, lengths)
        outputs = []
        edges = [0, *range(self.block - int(fill[0]), n, self.block), n]
        for begin, end in zip(edges, edges[1:]):
            y, state = self.piece(tuple(x[:, begin:end] for x in inputs), state)
            outputs.append(y)
        return torch.cat(outputs, 1), state


def look(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None = None) -> Tensor:
    """Attention of (B, Q, H, E) to (B, K, H, E), heads side by side: (B, Q, H E)."""
    q, k, v = (x.transpose(1, 2) for x in (q, k.to(q.dtype), v.to(q.dtype)))
    return attend(q, k, v, None if seen is None else seen[:, None])[0].transpose(1, 2).flatten(2)


class BlockRecurrent(Mixer):
    """Each node looks at its own block so far and at the memory that the blocks before it left.

    width: model width D. heads. block: nodes in a block, counted from where a document begins. memory: vectors.
    Training takes one step per block; rows with several documents take one per node. No positions: a block is a set to
    its nodes but for what they were told before.
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

    def parts(self, batch: int, like: Tensor, history: int) -> dict[str, Part]:
        return {"carry": Carry(self.recurrence, self.recurrence.initial(batch, like), history)}

    def run(self, x: Tensor, layout: Layout, parts: dict[str, Part] | None) -> Tensor:
        inputs = self.qrkv(x).unflatten(-1, (4 * self.heads, -1)).chunk(4, -2)
        return self.out(self.recurrence(inputs, layout, None if parts is None else parts["carry"]))
