"""Sequential recommenders over item ids: the networks of SASRec (Kang & McAuley 2018, arXiv 1808.09781) and BERT4Rec
(Sun et al. 2019, arXiv 1904.06690), and their training batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F

from segue.models import Stack, StackConfig
from segue.models.base import padding_starts
from segue.objectives import Batch, generator_of
from segue.objectives.masked import MaskPolicy, mask_some


def item_stack(items: int, length: int, width: int, dropout: float = 0.0, causal: bool = False) -> Stack:
    """Two blocks of attention with learned positions and a tied head over the items and one more id, `items`: the begin
    token of a history (causal: SASRec), or the mask (BERT4Rec, with BERT's transform before the head)."""
    attention = {"heads": 2, "causal": causal, "positions": "none"}
    return Stack(StackConfig(items + 1, width, ["attention"] * 2, {"attention": attention}, channel="mlp",
                             activation="gelu", norm="layer", bias=True, learned_positions=length, dropout=dropout,
                             transform=not causal))


def item_batches(histories: Sequence[np.ndarray], items: int, length: int, rows: int, seed: int = 0,
                 mask: MaskPolicy | None = None) -> Callable[[int], Batch]:
    """The training batches, by step: windows of `length` items of users drawn in proportion to the lengths of their
    histories; shorter histories are padded. mask: the masking policy of BERT4Rec; None: next-item targets, with the id
    `items` before the first item."""
    flat, sizes = torch.from_numpy(np.concatenate(histories)), torch.tensor([len(each) for each in histories])
    first, weights = sizes.cumsum(0) - sizes, sizes.double()

    def batch(step: int) -> Batch:
        generator = generator_of(seed, step)
        users = torch.multinomial(weights, rows, replacement=True, generator=generator)
        counts = sizes[users].clamp(max=length)
        begin = (torch.rand(rows, generator=generator) * (sizes[users] - counts + 1)).long()
        valid_mask = torch.arange(length) < counts[:, None]
        tokens = flat[torch.where(valid_mask, (first[users] + begin)[:, None] + torch.arange(length), 0)]
        targets, starts = tokens.masked_fill(~valid_mask, -1), padding_starts(counts, length)
        if mask is None:
            return Batch(F.pad(tokens, (1, 0), value=items)[:, :-1], targets, starts)
        return mask_some(Batch(tokens, targets, starts), items, mask, generator, unmasked=0.0)

    return batch
