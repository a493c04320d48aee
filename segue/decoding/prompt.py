"""Prompts that are more than a list of tokens: with unordered parts (`SetPrompt`), or cut inside a word (`OpenPrompt`).

Sets are those of Set-Based Prompting (McIlroy-Young et al. 2024, arXiv 2406.06581). The order of answer options,
retrieved documents and examples means nothing, and yet it changes the answer. Here all parts of a set begin at the same
position and do not attend to each other; what follows attends to all of them, and its positions begin after the
longest. So everything computed from there on depends on the parts, not on their order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, overload

import torch
from torch import Tensor

from segue.errors import SegueError
from segue.mixers.layout import Layout


class OpenPrompt(list[int]):
    """A prompt whose last tokens were removed, because a longer token might begin with their text; the answer must
    begin with that text. removed_text: what they spelled. removed_count: how many they were. See
    `segue.decoding.healing`."""

    def __init__(self, tokens: Sequence[int], removed_text: bytes | str, removed_count: int) -> None:
        super().__init__(tokens)
        self.removed_text, self.removed_count = removed_text, removed_count


class SetPrompt(Sequence[Any]):
    """A prompt with unordered sets; a sequence of its elements in reading order.

    pieces: run, set, run, set, ..., run: `[A, [B1, B2, B3], D]`. A run is a list of tokens (for a fitted model: an
        object of its kind, such as a text); only the last one, the question, must not be empty. A set is a list of
        runs, its parts. Each is encoded on its own: spaces and separators belong to the parts.
    canonical: sort the parts of a set before they are read, so that answers are bitwise equal in whatever order they
        are given. Otherwise they are read as given, and answers are equal up to rounding (a sum over keys runs in
        another order), which can break a tie differently.

    A set of one part is a run. The answer continues the last run. After a part that is shorter than the longest of its
    set, positions skip the difference: a small shift for a model that never saw one.
    """

    def __init__(self, pieces: Sequence[Any], canonical: bool = True) -> None:
        self.pieces, self.canonical = list(pieces), canonical
        if len(self.pieces) % 2 == 0 or len(self.pieces[-1]) == 0:
            raise SegueError("a prompt with sets is [run, set, run, ..., run], and its last run is not empty: a set is "
                             "a list of runs, and the question comes after it")
        if any(isinstance(piece, str | bytes) for piece in self.pieces[1::2]):
            raise SegueError("every other piece of a prompt with sets is a list of parts: [run, [part, part], run]")

    def map_runs(self, change: Callable[[Any], Any]) -> SetPrompt:
        """The same prompt with `change` applied to each run and part that is not empty."""
        def changed(run: Any) -> Any:
            return change(run) if len(run) else run

        return SetPrompt([[changed(part) for part in piece] if number % 2 else changed(piece)
                          for number, piece in enumerate(self.pieces)], self.canonical)

    def prepend(self, tokens: Sequence[int]) -> SetPrompt:
        """The same prompt after these tokens."""
        return SetPrompt([[*tokens, *self.pieces[0]], *self.pieces[1:]], self.canonical)

    @cached_property
    def placements(self) -> list[tuple[Any, int, int, int]]:
        """For each element in reading order: (element, position, set number or 0 for none, part number in the set)."""
        elements: list[tuple[Any, int, int, int]] = []
        start = sets = 0
        for number, piece in enumerate(self.pieces):
            parts = [part for part in (piece if number % 2 else [piece]) if len(part)]
            if len(parts) > 1:
                sets += 1
                parts = sorted(parts, key=list) if self.canonical else parts
            for index, part in enumerate(parts):
                elements += [(element, start + place, sets * (len(parts) > 1), index)
                             for place, element in enumerate(part)]
            start += max(map(len, parts), default=0)
        return elements

    @property
    def is_ordered(self) -> bool:
        """Whether no set has more than one part, so that this is a plain prompt."""
        return not any(set_number for _, _, set_number, _ in self.placements)

    def __len__(self) -> int:
        return len(self.placements)

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        return [place[0] for place in self.placements[index]] if isinstance(index, slice) else self.placements[index][0]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SetPrompt) and self.placements == other.placements

    def __hash__(self) -> int:
        return hash(tuple(self.placements))


def layout_with_sets(prompts: Sequence[Sequence[int]], device: torch.device | str | None = None) -> Layout | None:
    """The layout of prompts read in one batch, padded at their ends; None if no prompt has sets."""
    if not any(isinstance(prompt, SetPrompt) for prompt in prompts):
        return None
    placements = set_placements(prompts).to(device)
    return Layout(placements[..., 0], sets=placements[..., 1:])


def set_placements(prompts: Sequence[Sequence[int]]) -> Tensor:
    """(B, N, 3) long: position, set and part of every token of padded prompts (see `Batch.sets`)."""
    placements = torch.zeros(len(prompts), max(map(len, prompts)), 3, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        if isinstance(prompt, SetPrompt):
            placements[row, : len(prompt)] = torch.tensor([place[1:] for place in prompt.placements])
        else:
            placements[row, : len(prompt), 0] = torch.arange(len(prompt))
    return placements
