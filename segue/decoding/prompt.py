"""Prompts that are more than tokens in a row: some parts have no order, or the last tokens may be taken back.

Sets are those of Set-Based Prompting (McIlroy-Young et al. 2024, arXiv 2406.06581). Answer options, retrieved documents
and examples stand in an order that means nothing, and yet it changes the answer. Here all parts of a set begin at the
same position and do not see each other; what follows sees all of them, and stands behind the longest. So everything
computed from there on depends on the parts, not on their order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, overload

import torch
from torch import Tensor

from segue.errors import SegueError
from segue.mixers.state import Layout


class OpenPrompt(list[int]):
    """A prompt without the last tokens of a text, which might be the beginning of a longer token; the answer says them
    again, as part of whatever token comes. rest: what they spelled; taken: how many they were. See
    `segue.decoding.healing`."""

    def __init__(self, tokens: Sequence[int], rest: bytes | str, taken: int) -> None:
        super().__init__(tokens)
        self.rest, self.taken = rest, taken


class SetPrompt(Sequence[Any]):
    """A prompt with sets in it; a sequence of its elements, in the order in which they are read.

    pieces: run, set, run, set, ..., run: `[A, [B1, B2, B3], D]`. A run is a list of tokens (for a fitted model: an
        object of its kind, such as a text), which may be empty but for the last one: it is what asks. A set is a list
        of runs, its parts. Each is encoded on its own: spaces and separators belong to the parts.
    canonical: the parts of a set are sorted before they are read, so that answers are equal to the last bit in whatever
        order they are given. Without, the order is the given one, and answers are equal but for rounding (a sum over
        keys runs in another order), which can turn a tie.

    A set of one part is a run. Tokens that are added stand behind the last run. Positions skip what a part is shorter
    than the longest of its set: a small shift for a model that never saw that.
    """

    def __init__(self, pieces: Sequence[Any], canonical: bool = True) -> None:
        self.pieces, self.canonical = list(pieces), canonical
        if len(self.pieces) % 2 == 0 or len(self.pieces[-1]) == 0:
            raise SegueError("a prompt with sets is [run, set, run, ..., run], and its last run is not empty: a set is "
                             "a list of runs, and what asks comes behind it")
        if any(isinstance(piece, str | bytes) for piece in self.pieces[1::2]):
            raise SegueError("every other piece of a prompt with sets is a list of parts: [run, [part, part], run]")

    def mapped(self, change: Callable[[Any], Any]) -> SetPrompt:
        """The same with each run and each part changed; empty ones stay."""
        def changed(run: Any) -> Any:
            return change(run) if len(run) else run

        return SetPrompt([[changed(part) for part in piece] if number % 2 else changed(piece)
                          for number, piece in enumerate(self.pieces)], self.canonical)

    def behind(self, tokens: Sequence[int]) -> SetPrompt:
        """The same behind more tokens."""
        return SetPrompt([[*tokens, *self.pieces[0]], *self.pieces[1:]], self.canonical)

    @cached_property
    def places(self) -> list[tuple[Any, int, int, int]]:
        """Of each element: itself, its position, its set (0: none), its part of that set."""
        found: list[tuple[Any, int, int, int]] = []
        start = sets = 0
        for number, piece in enumerate(self.pieces):
            parts = [part for part in (piece if number % 2 else [piece]) if len(part)]
            if len(parts) > 1:
                sets += 1
                parts = sorted(parts, key=list) if self.canonical else parts
            for index, part in enumerate(parts):
                found += [(element, start + place, sets * (len(parts) > 1), index)
                          for place, element in enumerate(part)]
            start += max(map(len, parts), default=0)
        return found

    @property
    def ordered(self) -> bool:
        """No set has more than one part."""
        return not any(one for _, _, one, _ in self.places)

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        return [place[0] for place in self.places[index]] if isinstance(index, slice) else self.places[index][0]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SetPrompt) and self.places == other.places

    def __hash__(self) -> int:
        return hash(tuple(self.places))


def arrange(prompts: Sequence[Sequence[int]], device: torch.device | str | None = None) -> Layout | None:
    """Where the tokens of prompts stand that are read together from their beginning, shorter ones padded at their end;
    None if none has sets."""
    if not any(isinstance(prompt, SetPrompt) for prompt in prompts):
        return None
    places = placed(prompts).to(device)
    return Layout(places[..., 0], sets=places[..., 1:])


def placed(prompts: Sequence[Sequence[int]]) -> Tensor:
    """(B, N, 3) long: the position, the set and the part of every token of padded prompts (see `Batch.sets`)."""
    places = torch.zeros(len(prompts), max(map(len, prompts)), 3, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        if isinstance(prompt, SetPrompt):
            places[row, : len(prompt)] = torch.tensor([place[1:] for place in prompt.places])
        else:
            places[row, : len(prompt), 0] = torch.arange(len(prompt))
    return places
