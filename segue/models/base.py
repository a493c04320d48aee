"""The protocol that decoders, programs and servers know: anything that can be extended by tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from segue.errors import SegueError
from segue.mixers.state import Layout, State

__all__ = ["Decodable", "Decoding", "Layout", "Output", "State", "check_tokens", "reads_whole", "state_for"]


@dataclass
class Output:
    """logits: (B, N, V), or (B, M, V) where only some nodes were asked for. hidden: (B, N, D) after the last norm."""

    logits: Tensor
    hidden: Tensor


def check_tokens(tokens: Tensor, vocabulary: int) -> None:
    """Refuse token ids outside the vocabulary. tokens: on the CPU; elsewhere the look would stall the device."""
    if tokens.numel():
        least, most = (int(token) for token in tokens.aminmax())
        if least < 0 or most >= vocabulary:
            raise SegueError(f"token ids must be from 0 to {vocabulary - 1}, these are from {least} to {most}: "
                             "was another codec used?")


class Decoding(Protocol):
    """What a decodable model remembers: see `segue.mixers.state.State`, which is the native one."""

    positions: Tensor

    @property
    def batch(self) -> int: ...
    def commit(self, path: Tensor | None = None, counts: Tensor | None = None) -> None: ...
    def select(self, rows: Tensor) -> Decoding: ...
    def join(self, others: Sequence[Any]) -> Decoding: ...
    def rewind(self, n: int | Tensor) -> None: ...
    def snapshot(self) -> Decoding: ...
    def restore(self, snapshot: Any) -> None: ...


@runtime_checkable
class Decodable(Protocol):
    """A model that can be decoded. Native stacks, compiled engines, Hugging Face folders and mixtures all are.

    vocabulary: number of token ids. path: which code runs, for reports (e.g. "torch float32").
    """

    @property
    def vocabulary(self) -> int: ...
    @property
    def path(self) -> str: ...

    def init_state(self, batch: int, history: int = 0) -> Decoding:
        """A fresh memory for `batch` rows, able to go back `history` tokens."""
        ...

    def extend(self, tokens: Tensor, state: Decoding, parents: Tensor | None = None,
               at: Tensor | None = None) -> Output:
        """Nodes (B, N) long that follow `state`: a chain, or a tree by `parents` (see `Layout`). Left pending in it.

        at: (B, M) long, the nodes whose logits are wanted (default: all of them).
        """
        ...


def reads_whole(model: Decodable) -> bool:
    """Whether some part must see the whole prompt at once."""
    return isinstance(model, nn.Module) and any(getattr(part, "needs_whole_prompt", False) for part in model.modules())


def state_for(model: Decodable, prompts: Sequence[Sequence[int]], history: int = 0) -> Decoding:
    """A fresh memory for these prompts, a row each; parts that read a prompt both ways are told where each ends."""
    state = model.init_state(len(prompts), history)
    if isinstance(state, State) and reads_whole(model):
        state.prompt = torch.tensor([len(prompt) for prompt in prompts], device=state.positions.device)
    return state
