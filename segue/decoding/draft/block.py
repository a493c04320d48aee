"""Generalised aggressive decoding (Ge, Xia et al. 2022, arXiv 2205.10350): a bidirectional model drafts a whole block
of tokens in one pass. It is trained by `segue.objectives.masked`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from segue.decoding.draft.base import Tip, Tree, chain_tree
from segue.decoding.draft.model import ModelDraft
from segue.mixers.layout import Layout, gather_nodes
from segue.models.base import Decodable, pad_rows
from segue.models.stack import Stack
from segue.objectives.masked import padding_starts


class BlockDraft:
    """Appends masks to the prompt and the answer so far, and drafts the likeliest token at each of them.

    model: a bidirectional stack whose last id is the mask; the other ids are those of the model that is decoded. It
        reads the whole text again for every draft, up to its learned positions. length: masks, so tokens drafted at
        most.
    """

    name: ClassVar[str] = "block"
    needs_hidden: ClassVar[bool] = False

    def __init__(self, model: Stack, length: int = 25) -> None:
        self.model, self.length, self.mask = model.eval(), length, model.vocabulary - 1
        self.max_positions = model.config.learned_positions or sys.maxsize
        self._texts: dict[int, list[int]] = {}

    def observe(self, row: int, tokens: Sequence[int], prompt: bool = False) -> None:
        self._texts.setdefault(row, []).extend(tokens)

    def propose(self, tips: Sequence[Tip]) -> list[Tree]:
        rows = [tip.row for tip in tips if self._texts.get(tip.row) and min(tip.nodes, tip.depth) > 0
                and len(self._texts[tip.row]) + self.length <= self.max_positions]
        groups: dict[int, list[int]] = {}
        for row in rows:  # a model that cannot reset inside a row would see padding: group by length
            groups.setdefault(0 if self.model.resettable else len(self._texts[row]), []).append(row)
        drafts: dict[int, list[int]] = {}
        for group in groups.values():
            drafts |= zip(group, self.guess([self._texts[row] for row in group]))
        return [chain_tree(drafts.get(tip.row, [])[: min(tip.nodes, tip.depth)]) for tip in tips]

    @torch.inference_mode()
    def guess(self, texts: Sequence[Sequence[int]]) -> list[list[int]]:
        """The likeliest token at each of `length` masks after each text."""
        device = next(self.model.parameters()).device
        lengths = torch.tensor([len(text) for text in texts])
        tokens = pad_rows([[*text, *[self.mask] * self.length] for text in texts], self.mask)
        starts = padding_starts(lengths + self.length, tokens.shape[1])
        layout = Layout.chain((tokens.shape[0], tokens.shape[1]), starts=None if starts is None else starts.to(device),
                              device=device)
        hidden = self.model.hidden(tokens.to(device), layout)
        masks = lengths[:, None] + torch.arange(self.length)
        scores: Tensor = self.model.head(gather_nodes(hidden, masks.to(device)))
        return scores[..., : self.mask].argmax(-1).tolist()

    def forget(self, row: int) -> None:
        self._texts.pop(row, None)


class CachedBlockDraft(ModelDraft):
    """As `BlockDraft`, with a causal model (which may read its prompt both ways): it keeps its state, and a block costs
    one pass over the new tokens and the masks. Each mask sees those before it.

    model: anything decodable, the compiled engine too, whose last id is the mask. length: masks, so tokens drafted at
        most.
    """

    def __init__(self, model: Decodable, length: int = 25) -> None:
        super().__init__(model, length, name="block")
        self.mask = model.vocabulary - 1

    def _draft(self, tips: list[Tip], chains: dict[int, list[int]]) -> None:
        """Draft the likeliest tokens at the masks, for all tips in one pass."""
        rows = [tip.row for tip in tips]
        state = self._read(rows)
        tokens = torch.full((len(rows), 1 + self.length), self.mask)
        tokens[:, 0] = torch.tensor([self._unread[row][-1] for row in rows])
        output = self.model.extend(tokens.to(state.positions.device), state)  # pending, and never committed
        scores = output.logits[:, 1:, : self.mask]
        for tip, drafted in zip(tips, scores.argmax(-1).tolist()):
            chains[tip.row] = drafted[: min(tip.nodes, tip.depth, self.length)]
