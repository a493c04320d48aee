"""Draft heads in the compiled CPU engine, by default with int8 weights, since the cost of a draft is reading them.

Quantisation is harmless: a draft may be wrong, and the model that verifies it is not quantised.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from segue.kernels.cpu import engine
from segue.kernels.cpu import program as p
from segue.kernels.cpu.simd import BLOCK, TILE
from segue.models.compiled import (
    CHUNK,
    MAX_NODE_STATES,
    CompiledModel,
    CompiledState,
    Memory,
    Pending,
    Space,
    lower_block,
)
from segue.models.heads import DraftHeads, TabulatedHeads


class CompiledHeads:
    """Compiled float32 `DraftHeads` on the CPU: their `init_state` and `condition`, and the `project_condition` and
    `logits` of `TabulatedHeads`. Weights are copied when this is created. weights: "int8" or "float32". threads: per
    call (default: as many as torch uses)."""

    @torch.no_grad()
    def __init__(self, heads: DraftHeads, weights: str = "int8", threads: int | None = None) -> None:
        config, self.weights, self.threads = heads.config, weights, threads or torch.get_num_threads()
        self.config, self.embedding = config, heads.embedding
        self.attention = AttentionProgram(heads, weights, self.threads) if config.window else None
        self.tabulated = TabulatedHeads(heads) if config.sequential else None
        self.tables = TabulatedHeads.is_worthwhile(config, heads.embedding.element_size())
        if self.tabulated is not None:
            first, product = p.Program(weights), self.tabulated.product
            condition, sums = first.register("condition", config.width), first.register("sums", len(product))
            first.linear(condition, sums, product, self.tabulated.bias)
            self.first = StatelessProgram(first, condition, sums, self.threads)
        self.levels = [self._level(k, head) for k, head in enumerate(heads.heads, 1)]
        if not self.tables:
            self.tabulated = None
        engine.load_engine()

    def _level(self, k: int, head: Any) -> StatelessProgram:
        """Compile head k from its first block's pre-activations on, with the drafted tokens' embeddings concatenated
        unless they were added from tables."""
        width, program, blocks = self.config.width, p.Program(self.weights), head.blocks
        source = u = program.register("u", width)
        if self.config.sequential:
            drafted = 0 if self.tables else k * width
            source = program.register("z", 2 * width + drafted)
            u, inner, blocks = source[:width], source[width : 2 * width], blocks[1:]
            if drafted:
                token_weights = torch.cat([head.skip.weight, head.blocks[0].weight])[:, width:]
                program.linear(source[2 * width :], source[: 2 * width], token_weights, add=True)
            program.map(inner, inner, "silu")
            program.add(inner, u)
        update, logits = program.register("more", width), program.register("logits", self.config.vocabulary)
        for block in blocks:
            program.linear(u, update, block.weight, block.bias, activation="silu")
            program.add(update, u)
        program.linear(u, logits, head.out.weight, head.out.bias)
        return StatelessProgram(program, source, logits, self.threads)

    def init_state(self, batch: int) -> CompiledState:
        """See `DraftHeads.init_state`."""
        assert self.attention is not None
        return self.attention.init_state(batch)

    def condition(self, hidden: Tensor, layout: None = None, state: CompiledState | None = None) -> Tensor:
        """See `DraftHeads.condition`."""
        if self.attention is None:
            return hidden.float()
        return self.attention.attend(hidden.float(), self.init_state(len(hidden)) if state is None else state)

    def project_condition(self, condition: Tensor) -> tuple[Tensor, ...]:
        """See `TabulatedHeads.project_condition`; heads that are not sequential take the condition itself."""
        if not self.config.sequential:
            return (condition,) * self.config.heads
        return self.first(condition.flatten(0, -2)).view(*condition.shape[:-1], -1).chunk(self.config.heads, -1)

    def logits(self, k: int, projected: Tensor, tokens: Tensor) -> Tensor:
        """See `DraftHeads.logits`. projected: the entry of head k in the result of `project_condition`."""
        z = projected
        if self.tabulated is not None:
            z = projected + F.embedding(tokens + self.tabulated.offsets[:k], self.tabulated.tables[k - 1]).sum(-2)
        elif self.config.sequential:
            drafted = F.embedding(tokens, self.embedding).flatten(-2)
            z = torch.cat([projected.expand(*drafted.shape[:-1], -1), drafted], -1)
        return self.levels[k - 1](z.flatten(0, -2)).view(*z.shape[:-1], -1)


class StatelessProgram:
    """A program without state: maps rows (n, width) of the register `source` to rows of `into`."""

    def __init__(self, program: p.Program, source: p.View, into: p.View, threads: int) -> None:
        program.finish()
        self.program, self.source, self.into, self.threads = program, source, into, threads
        self.spaces: dict[int, Space] = {}
        self.local = Memory(p.padded(TILE + BLOCK * (3 * TILE + program.widest), 2 * TILE) * threads)

    def __call__(self, x: Tensor) -> Tensor:
        n = len(x)
        space = self.spaces.get(n) or Space(self.program, np.ones(n, np.int64))
        if n <= MAX_NODE_STATES:
            self.spaces[n] = space
        self.program.read(self.source, space.scratch.array, n)[:] = x.numpy()
        space.job[p.LOCAL], space.job[p.LOCAL_BYTES] = self.local.address, self.local.array.nbytes // self.threads
        engine.get_team().run(space.job, space.address, self.threads)
        return torch.from_numpy(self.program.read(self.into, space.scratch.array, n).copy())


class AttentionProgram(CompiledModel):
    """The attention layer of Hydra++, which reads hidden states instead of tokens."""

    def __init__(self, heads: DraftHeads, weights: str, threads: int) -> None:
        self.weights, self.threads, self.needs_whole_prompt = weights, threads, False
        self.program, width = p.Program(weights), heads.config.width
        self.source = self.program.register("x", width)
        lower_block(self.program, heads.attention, heads.shape, self.source)
        self.program.finish()

    def attend(self, hidden: Tensor, state: CompiledState) -> Tensor:
        """Run the layer on hidden states (B, N, D) that follow `state`, and leave them pending there."""
        batch, n, width = hidden.shape
        state.reserve(n)
        output, chunk = np.empty((batch, n, width), np.float32), max(1, CHUNK // batch)
        for start in range(0, n, chunk):
            end = min(start + chunk, n)
            space = self._space(state, end - start, None)
            x = self.program.read(self.source, space.scratch.array, space.nodes)
            x[:] = hidden[:, start:end].reshape(-1, width).numpy()
            self._run(state, space, state.lengths + start, state.states, state.states, False, None, output)
            output[:, start:end] = x.reshape(batch, -1, width)
        state.pending = Pending(np.zeros((batch, n), np.int64), None, state.states, False, [])
        return torch.from_numpy(output)
