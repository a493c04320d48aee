"""Control of a trained field by a branch that adds to its blocks (ControlNet: Zhang et al. 2023, arXiv 2302.05543),
conditioned on a player's keys, instructions and guides (InstructNet of GameGen-X: Che et al. 2024, arXiv 2411.00769).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor, nn

from segue.errors import SegueError
from segue.mixers.cross import CrossAttention
from segue.mixers.layout import Layout
from segue.models.flow import NOTHING, Conditions, LayeredField, one_hot
from segue.models.spacetime import Words, unscaled_norm, zero_init

INSTRUCTION = "instruction"  # condition: a text, ids (B, S) long, padded with -1
GUIDE = "guide"  # condition: elements (B, T, C) of a video of edges or motions, zeros where there is none


def make_network(*sizes: int) -> nn.Sequential:
    """Return linear maps of these sizes with SiLUs between them."""
    layers = [layer for into, out in zip(sizes, sizes[1:]) for layer in (nn.SiLU(), nn.Linear(into, out))]
    return nn.Sequential(*layers[1:])


class Experts(nn.Module):
    """The control layers of one block of a branch, each added to the branch's vectors.

    Keys act by FiLM: vectors are scaled and shifted by a network of the keys. Instructions act by cross-attention to
    the words. A network follows; `write` projects the result to the field, initially to zero. keys: number of key
    choices in all, 0 for none. words: 0 for no instructions.
    """

    def __init__(self, width: int, keys: int, words: int, heads: int) -> None:
        super().__init__()
        self.film = make_network(keys, width, width, 2 * width) if keys else None
        self.cross = CrossAttention(width, heads) if words else None
        self.channel = make_network(width, 2 * width, width)
        self.write = nn.Linear(width, width)
        zero_init(self.write)

    def forward(self, z: Tensor, keys: Tensor | None, words: tuple[Tensor, Tensor] | None) -> Tensor:
        """Update z (B, N, D). keys: (B, N, choices), one-hot. words: encoded instruction and its lengths."""
        if self.film is not None:
            scale, shift = self.film(keys).chunk(2, -1)
            z = z + unscaled_norm(z) * scale + shift
        if self.cross is not None:
            positions = torch.arange(z.shape[1], device=z.device)[None]
            z = z + self.cross.run(unscaled_norm(z), Layout(positions, source=words), {})
        return z + self.channel(unscaled_norm(z))


class ControlBranch(nn.Module):
    """A controlled field: `base` plus a branch. For a row without conditions it equals the base, bit by bit.

    base: any `LayeredField`; the branch adds to its first `depth` blocks (default: all), and its blocks start as copies
        of these. frozen: the base is not trained and stays in evaluation mode (no dropout); False: both are trained.
    keys: number of choices per key name; conditions are ids per row (B,) or per element (B, T).
    words: vocabulary of instructions (`INSTRUCTION`), 0 for none. heads: of the cross-attention to them.
    shown: numbers per element of a guide (`GUIDE`), 0 for none; a guide has the shape of the generated elements, comes
        from its video by the same codec, and is added to the branch's input.
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

    def forward(self, x: Tensor, t: Tensor, noisy: Tensor, layout: Layout, conditions: Conditions = NOTHING) -> Tensor:
        hidden, inputs = self.base.begin(x, t, noisy, layout, conditions)
        z, keys, words, controlled = self.read_controls(hidden, conditions, x)
        for index, block in enumerate(self.base.layers):
            hidden = self.base.run(block, hidden, inputs)
            if index < len(self.copies) and bool(controlled.any()):
                expert = self.experts[index]
                z = expert(self.base.run(self.copies[index], z, inputs), keys, words)
                hidden = torch.where(controlled, hidden + expert.write(z), hidden)
        return self.base.end(hidden, inputs)

    def read_controls(self, hidden: Tensor, conditions: Conditions,
                      x: Tensor) -> tuple[Tensor, Tensor | None, tuple[Tensor, Tensor] | None, Tensor]:
        """Return the branch's inputs: the base's vectors plus the guide (B, N, D); one-hot keys (B, T, choices), zeros
        where none is given, or None; the encoded instruction or None; and whether a row has any condition, (B, 1, 1).
        """
        controlled = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        keys: list[Tensor] = []
        for name, choices in self.keys.items():
            ids = conditions.get(name, torch.full(x.shape[:1], -1, device=x.device))
            ids = ids[:, None].expand(x.shape[:2]) if ids.dim() == 1 else ids
            keys.append(one_hot(ids, choices).to(x))
            controlled = controlled | (ids >= 0).any(1)
        words = None
        if self.words is not None:
            ids = conditions.get(INSTRUCTION, torch.full((len(x), 0), -1, device=x.device))
            words, controlled = self.words(ids), controlled | (ids >= 0).any(1)
        if self.guide is not None and (guide := conditions.get(GUIDE)) is not None:
            if guide.shape != (*x.shape[:2], self.guide.in_features):
                raise SegueError(f"a guide of shape {tuple(guide.shape)} beside elements of shape {tuple(x.shape)}: "
                                 f"give {self.guide.in_features} numbers for each element")
            hidden, controlled = hidden + self.guide(guide.to(x)), controlled | (guide != 0).flatten(1).any(1)
        return hidden, torch.cat(keys, -1) if keys else None, words, controlled[:, None, None]
