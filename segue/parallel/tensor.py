"""Tensor parallelism (Megatron-LM, Shoeybi et al. 2019, arXiv 1909.08053): heads and hidden features of a stack are
split over ranks. Every rank reads all elements with its part of each layer, and the outputs are summed. Compared with
splitting the sequence, the weights are split too, but every rank holds all activations between the layers."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from segue.errors import SegueError
from segue.mixers import Attention, Mixer
from segue.mixers.layout import Layout
from segue.mixers.state import State
from segue.models.stack import ChannelMixer, OnePassModel, Stack
from segue.parallel.communicate import Communicator, all_reduce


class _CopyToRanks(torch.autograd.Function):
    """Forward the identity, backward an all-reduce (Megatron's f)."""

    @staticmethod
    def forward(ctx: Any, comm: Communicator, x: Tensor) -> Tensor:
        ctx.comm = comm
        return x.view_as(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor]:
        return None, all_reduce(ctx.comm, grads[0])


class _SumOverRanks(torch.autograd.Function):
    """Forward an all-reduce, backward the identity (Megatron's g)."""

    @staticmethod
    def forward(ctx: Any, comm: Communicator, x: Tensor) -> Tensor:
        return all_reduce(comm, x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor]:
        return None, grads[0]


class _ParallelChannelMixer(nn.Module):
    """A channel mixer whose hidden features are split over ranks."""

    def __init__(self, comm: Communicator, channel: nn.Module) -> None:
        super().__init__()
        self.comm, self.channel = comm, channel

    def forward(self, x: Tensor) -> Tensor:
        return _SumOverRanks.apply(self.comm, self.channel(_CopyToRanks.apply(self.comm, x)))


class TensorParallel(OnePassModel, nn.Module):
    """A stack of attention layers of which this rank holds some heads and hidden features, as copies of its part of the
    stack's weights. Embedding, norms and head are whole on every rank, and so are their gradients. With dropout, all
    ranks need the same random state."""

    def __init__(self, stack: Stack, comm: Communicator) -> None:
        super().__init__()
        config, size = stack.config, comm.size
        options = dict(config.options)
        for name, block in zip(config.mixers, stack.blocks):
            mixer = block.mixer
            if not isinstance(mixer, Attention) or mixer.distances is not None or mixer.learned_span is not None or \
                    mixer.traits or mixer.qkv_global is not None or mixer.positions == "alibi" or config.shared or \
                    config.cross is not None:
                raise SegueError(f"a stack of '{name}' cannot be cut by heads: attention without parameters of its "
                                 "heads can, in layers of their own")
            if mixer.heads % size or mixer.kv_heads % size or config.hidden_width % size:
                raise SegueError(f"{mixer.heads} heads, {mixer.kv_heads} of keys, and {config.hidden_width} hidden "
                                 f"features cannot be cut over {size} ranks: no more ranks than heads, and a divisor")
            options[name] = {**options.get(name, {}), "heads": mixer.heads // size, "kv_heads": mixer.kv_heads // size,
                             "head_width": mixer.head_width}
        self.comm = comm
        own = Stack(replace(config, options=options, hidden=config.hidden_width // size)).to(
            next(stack.parameters()).device, next(stack.parameters()).dtype)
        weights = {name: weight.clone() for name, weight in stack.state_dict().items()}
        for index, block in enumerate(stack.blocks):
            mixer = block.mixer
            assert isinstance(mixer, Attention)
            sizes = [heads * mixer.head_width for heads in (mixer.heads, mixer.kv_heads, mixer.kv_heads)]
            self._split(weights, f"blocks.{index}.mixer.qkv", f"blocks.{index}.mixer.out", sizes)
            if isinstance(block.channel, ChannelMixer):
                self._split(weights, f"blocks.{index}.channel.into", f"blocks.{index}.channel.out",
                            [config.hidden_width] * (1 + block.channel.gated))
        own.load_state_dict(weights)
        for block in own.blocks:
            for part in (block.mixer, block.channel):
                bias = None if part is None else dict(part.named_parameters()).get("out.bias")
                if bias is not None and comm.rank:
                    bias.requires_grad_(False)
            for name, parameter in block.mixer.named_parameters():
                if not name.startswith(("qkv.", "out.")):  # shared by all heads, so its gradient is a sum over ranks
                    parameter.register_hook(partial(all_reduce, comm))
            if block.channel is not None:
                block.channel = _ParallelChannelMixer(comm, block.channel)  # type: ignore[assignment]
        self.stack = own
        self.train(stack.training)

    def _split(self, weights: dict[str, Tensor], into: str, out: str, sizes: list[int]) -> None:
        """Keep this rank's part of two linear maps: rows of the first (of each of its parts, which have these sizes)
        and columns of the second."""
        def own_part(x: Tensor, dim: int) -> Tensor:
            return x.chunk(self.comm.size, dim)[self.comm.rank]

        for name in (f"{into}.weight", f"{into}.bias"):
            if name in weights:
                weights[name] = torch.cat([own_part(x, 0) for x in weights[name].split(sizes)])
        weights[f"{out}.weight"] = own_part(weights[f"{out}.weight"], 1)
        if f"{out}.bias" in weights:
            weights[f"{out}.bias"] *= self.comm.rank == 0  # added, and learned, on one rank only

    @property
    def head(self) -> nn.Linear:
        return self.stack.head

    def hidden(self, tokens: Tensor, layout: Layout, state: State | None = None) -> Tensor:
        if state is not None:
            raise SegueError("a stack that is cut by heads reads whole sequences: continue with the stack itself")
        x = self.stack.embed(tokens, layout.positions)
        for block in self.stack.blocks:
            x = block(x, partial(self.mix, layout=layout))
        return self.stack.finish(x, layout)

    def mix(self, mixer: Mixer, x: Tensor, layout: Layout) -> Tensor:
        """Run a mixer that is split over ranks on x (B, T, D)."""
        return _SumOverRanks.apply(self.comm, mixer.run(_CopyToRanks.apply(self.comm, x), layout, {}))


def tensor_parallel(stack: Stack, comm: Communicator) -> TensorParallel:
    """This rank's part of a stack split by heads and hidden features; every rank reads all elements of all rows. A
    SegueError if there are more ranks than heads."""
    return TensorParallel(stack, comm)
