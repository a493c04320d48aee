"""The protocol between models and everything that decodes them: `Decodable`, its state, and helpers for prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from segue.errors import SegueError
from segue.mixers.layout import Layout
from segue.mixers.state import State

__all__ = [
    "Decodable",
    "Decoding",
    "Layout",
    "Output",
    "State",
    "are_alike",
    "begin_token",
    "check_prompt",
    "check_tokens",
    "decoder_start_token",
    "init_prompt_state",
    "layout_form",
    "mask_tokens",
    "max_positions",
    "needs_whole_prompt",
    "pad_rows",
    "padding_starts",
    "set_prompt_lengths",
    "source_length",
]


@dataclass
class Output:
    """logits: (B, N, V), or (B, M, V) of the requested nodes. hidden: (B, N, D) after the last norm."""

    logits: Tensor
    hidden: Tensor


def check_tokens(tokens: Tensor, vocabulary: int) -> None:
    """Raise SegueError for token ids outside the vocabulary. tokens: on the CPU; reading values elsewhere stalls the
    device."""
    if tokens.numel():
        least, most = (int(token) for token in tokens.aminmax())
        if least < 0 or most >= vocabulary:
            raise SegueError(f"token ids must be from 0 to {vocabulary - 1}, these are from {least} to {most}: "
                             "was another codec used?")


def pad_rows(rows: Sequence[Sequence[int]], fill: int = 0) -> Tensor:
    """(B, N) long, rows of ids of any lengths, padded with `fill` at their ends."""
    table = torch.full((len(rows), max(map(len, rows), default=0)), fill)
    for row, ids in zip(table, rows):
        row[: len(ids)] = torch.tensor(list(ids))
    return table


def mask_tokens(logits: Tensor, ids: Sequence[int]) -> Tensor:
    """Logits (..., V) with those of `ids` set to -inf."""
    return logits.index_fill(-1, torch.tensor(list(ids), device=logits.device), -torch.inf) if len(ids) else logits


def padding_starts(lengths: Tensor, n: int) -> Tensor | None:
    """`Layout.starts` (B, n) that make the padding after the first `lengths` (B,) elements of a row a document of its
    own, so that a mixer that looks both ways does not see it; None if there is no padding."""
    places = torch.arange(n, device=lengths.device)
    return (places == lengths[:, None]) if bool((lengths < n).any()) else None


def begin_token(model: Any) -> int | None:
    """The id that separates source and target in prompts of an encoder-decoder (`segue.models.seq2seq`), else None."""
    begin = getattr(model, "begin", None)
    return begin if isinstance(begin, int) else None


def source_length(model: Any, prompt: Sequence[int]) -> int:
    """The number of tokens up to and including the separator in an encoder-decoder's prompt; 0 for other models."""
    begin = begin_token(model)
    return 0 if begin is None or begin not in prompt else list(prompt).index(begin) + 1


def decoder_start_token(model: Any) -> int | None:
    """The id that a transformers encoder-decoder feeds its decoder in place of the separator; None for other models."""
    start = getattr(model, "start", None)
    return start if begin_token(model) is not None and isinstance(start, int) else None


def check_prompt(model: Any, prompt: Sequence[int]) -> None:
    """Raise SegueError for a prompt that an encoder-decoder cannot read; any other model takes all prompts."""
    begin = begin_token(model)
    if begin is None:
        return
    if prompt.count(begin) != 1:
        raise SegueError(f"the prompt of an encoder-decoder has one begin ({begin}) between source and target, not "
                         f"{prompt.count(begin)}: make it with model.prompt(source, prefix)")
    if prompt[0] == begin:
        raise SegueError("the prompt has an empty source: an encoder-decoder needs something to read")


class Decoding(Protocol):
    """The decoding state of a `Decodable`; the native one is `segue.mixers.state.State`, which documents the
    methods."""

    @property
    def positions(self) -> Tensor: ...
    @property
    def batch(self) -> int: ...
    def commit(self, path: Tensor | None = None, counts: Tensor | None = None) -> None: ...
    def select(self, rows: Tensor) -> Decoding: ...
    def join(self, others: Sequence[Any]) -> Decoding: ...
    def rewind(self, n: int | Tensor) -> None: ...
    def snapshot(self) -> Decoding: ...
    def restore(self, snapshot: Any) -> None: ...


def are_alike(one: Decoding, other: Decoding) -> bool:
    """Whether two states (of a mixture: those of its network) belong to the same code, so that they can be joined."""
    return type(getattr(one, "network", one)) is type(getattr(other, "network", other))


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
        """A fresh state for `batch` rows, which can be rewound by `history` tokens."""
        ...

    def extend(self, tokens: Tensor, state: Decoding, parents: Tensor | None = None,
               at: Tensor | None = None) -> Output:
        """Run tokens (B, N) long after `state`, as a chain or as a tree by `parents` (see `Layout`), and leave them
        pending.

        at: (B, M) long, the nodes whose logits are wanted (default: all of them). In the prompt of an encoder-decoder
            nodes after the last of them are padding.
        """
        ...


def max_positions(model: Any) -> int | None:
    """The number of positions that a model has embeddings for or was made for; None where they have no end. In an
    encoder-decoder that restarts them (`restart`), those of the target."""
    inner = getattr(model, "network", model)  # of a mixture
    forms = (getattr(inner, name, None) for name in ("layout_form", "decoder", "stack"))
    return getattr(next((form for form in forms if form is not None), inner), "max_positions", None)


def needs_whole_prompt(model: Decodable) -> bool:
    """Whether the model must be given the whole prompt in one call: what it says itself, else whether some part of it
    must be."""
    own: bool | None = getattr(model, "needs_whole_prompt", None)
    if own is None and isinstance(model, nn.Module):
        return any(getattr(part, "needs_whole_prompt", False) for part in model.modules())
    return bool(own)


def set_prompt_lengths(model: Decodable, state: Decoding, lengths: Tensor) -> None:
    """Record the length of each row's prompt, (B,) long, in a state whose model needs it: one that reads prompts both
    ways or counts positions from their end (`counts_from_prompt`), also inside a mixture. Call it before the prompt is
    read. An encoder-decoder finds the end of its source by itself."""
    inner, memory = getattr(model, "network", model), getattr(state, "network", state)
    if hasattr(memory, "prompt") and (getattr(inner, "counts_from_prompt", False)
                                      or (needs_whole_prompt(model) and begin_token(model) is None)):
        memory.prompt = lengths.to(memory.positions.device)


def init_prompt_state(model: Decodable, prompts: Sequence[Sequence[int]], history: int = 0) -> Decoding:
    """A fresh state with a row for each prompt, in which the prompts' lengths are set (see `set_prompt_lengths`)."""
    state = model.init_state(len(prompts), history)
    set_prompt_lengths(model, state, torch.tensor([len(prompt) for prompt in prompts]))
    return state


def layout_form(model: Decodable) -> Decodable:
    """The form of a model whose `extend` also takes a `layout`, as prompts with sets need; SegueError if it has none.

    It is the model's attribute `layout_form`; that of the compiled engine is the stack in plain torch.
    """
    form: Decodable | None = getattr(model, "layout_form", None)
    if form is None:
        raise SegueError(f"a {type(model).__name__} reads a prompt in its order only: sets need a native model of "
                         "attention (fitted with --set mix=false), or one of transformers")
    return form
