"""Control of a field that is ready: a branch beside it writes to its blocks (ControlNet: Zhang et al. 2023, arXiv
2302.05543), by what a player presses, says and shows (InstructNet of GameGen-X: Che et al. 2024, arXiv
2411.00769)."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor, nn

from segue.errors import SegueError
from segue.mixers import Mixer
from segue.mixers.cross import CrossAttention
from segue.mixers.layout import Layout
from segue.models.flow import NOTHING, Conditions, LayeredField, one_hot
from segue.models.spacetime import Words, unscaled_norm, zero_init

INSTRUCTION = "instruction"  # what a branch is told in words: ids (B, S) long, -1 behind the last
GUIDE = "guide"  # what it is shown: elements (B, T, C) of a film of edges or motions, zeros where nothing is shown


def make_network(*sizes: int) -> nn.Sequential:
    """Linear maps with SiLUs between them."""
    parts = [part for into, out in zip(sizes, sizes[1:]) for part in (nn.SiLU(), nn.Linear(into, out))]
    return nn.Sequential(*parts[1:])


class Experts(nn.Module):
    """What a branch does in one block. Operations: FiLM, the vectors scaled and shifted by a network of the keys.
    Instructions: cross-attention to the words, then a network. Each is added to what the branch had; then what it
    writes to the field, nothing at first."""

    def __init__(self, width: int, keys: int, words: int, heads: int) -> None:
        super().__init__()
        self.film = make_network(keys, width, width, 2 * width) if keys else None
        self.cross = CrossAttention(width, heads) if words else None
        self.channel = make_network(width, 2 * width, width)
        self.write = nn.Linear(width, width)
        zero_init(self.write)

    def forward(self, z: Tensor, pressed: Tensor | None, said: tuple[Tensor, Tensor] | None) -> Tensor:
        if self.film is not None:
            scale, shift = self.film(pressed).chunk(2, -1)
            z = z + unscaled_norm(z) * scale + shift
        if self.cross is not None:
            positions = torch.arange(z.shape[1], device=z.device)[None]
            z = z + self.cross.run(unscaled_norm(z), Layout(positions, source=said), {})
        return z + self.channel(unscaled_norm(z))


class ControlBranch(nn.Module):
    """A field under control: `base` with a branch. Where a row is told nothing, it is the base bit by bit.

    base: any field of layers, whose first `depth` blocks are written to (default: all); the branch's blocks begin as
        copies of these. frozen: the base does not learn, and never trains (no dropout); False: both learn together.
    keys: names of what is pressed and how many choices each has, ids for each row (B,) or element (B, T).
    words: how many ids there are in instructions (`INSTRUCTION`), 0 for none. heads: of the cross-attention to them.
    shown: numbers of an element of a guide (`GUIDE`), 0 for none; it lies as the elements that are made, is made of its
        film by the same codec, and is added to what the branch begins with.
    """

    def __init__(self, base: LayeredField, keys: Mapping[str, int] | None = None, words: int = 0,
                 depth: int | None = None, heads: int = 4, frozen: bool = True, shown: int = 0) -> None:
        super().__init__()
        self.base, self.width, self.keys, self.frozen = base, base.width, dict(keys or {}), frozen
        depth = len(base.layers) if depth is None else depth
        if not 1 <= depth <= len(base.layers) or not (self.keys or words or shown):
            raise SegueError(f"a branch of {depth} blocks beside {len(base.layers)}, with keys {self.keys}, {words} "
                             f"words and guides of {shown} numbers: it has at least one block, no more than the base, "
                             "and something to go by")
        self.copies = nn.ModuleList(copy.deepcopy(block) for block in base.layers[:depth])
        experts = nn.ModuleList(Experts(self.width, sum(self.keys.values()), words, heads) for _ in range(depth))
        self.experts: list[Experts] = experts  # type: ignore[assignment]
        self.words = Words(words, self.width) if words else None
        self.guide = nn.Linear(shown, self.width, bias=False) if shown else None
        base.requires_grad_(not frozen)
        self.train()

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self.frozen:
            self.base.eval()
        return self

    def state_parameters(self) -> list[nn.Parameter]:
        """See `Stack.state_parameters`."""
        return [p for module in self.modules() if isinstance(module, Mixer) for p in module.state_parameters()]

    def forward(self, x: Tensor, t: Tensor, asked: Tensor, layout: Layout, given: Conditions = NOTHING) -> Tensor:
        hidden, at = self.base.begin(x, t, asked, layout, given)
        z, pressed, said, told = self.read_controls(hidden, given, x)
        for index, block in enumerate(self.base.layers):
            hidden = self.base.run(block, hidden, at)
            if index < len(self.copies) and bool(told.any()):
                expert = self.experts[index]
                z = expert(self.base.run(self.copies[index], z, at), pressed, said)
                hidden = torch.where(told, hidden + expert.write(z), hidden)
        return self.base.end(hidden, at)

    def read_controls(self, hidden: Tensor, given: Conditions,
              x: Tensor) -> tuple[Tensor, Tensor | None, tuple[Tensor, Tensor] | None, Tensor]:
        """What the branch begins with: the base's vectors and what was shown; keys (B, T, choices), zeros where none is
        known; what was said; and whether anything was told, (B, 1, 1)."""
        told = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        pressed: list[Tensor] = []
        for name, choices in self.keys.items():
            ids = given.get(name, torch.full(x.shape[:1], -1, device=x.device))
            ids = ids[:, None].expand(x.shape[:2]) if ids.dim() == 1 else ids
            pressed.append(one_hot(ids, choices).to(x))
            told = told | (ids >= 0).any(1)
        said = None
        if self.words is not None:
            ids = given.get(INSTRUCTION, torch.full((len(x), 0), -1, device=x.device))
            said, told = self.words(ids), told | (ids >= 0).any(1)
        if self.guide is not None and (shown := given.get(GUIDE)) is not None:
            if shown.shape != (*x.shape[:2], self.guide.in_features):
                raise SegueError(f"a guide of shape {tuple(shown.shape)} beside elements of shape {tuple(x.shape)}: "
                                 f"give {self.guide.in_features} numbers for each element")
            hidden, told = hidden + self.guide(shown.to(x)), told | (shown != 0).flatten(1).any(1)
        return hidden, torch.cat(pressed, -1) if pressed else None, said, told[:, None, None]
